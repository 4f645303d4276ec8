//! A job: its manifest with its plan, its log and its storage. What runs is below: generations one after another, each put together
//! of members and a coordinator, on one machine or among several workers. The only module that names concrete connectors.

use std::path::PathBuf;
use std::sync::Arc;

use penstock_checkpoint::ids::LogId;
use penstock_checkpoint::log::{JobLog, LogError, Options as LogOptions};
use penstock_checkpoint::store::{CheckpointStore, LocalFolder, Objects, Remote, S3Options, Slow};
use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::{StorageKind, StreamingJob};
use penstock_crds::manifest::Positions;
use penstock_crds::validate;
use penstock_plan::{Plan, Terms, Verdict, plan_json, verdict};
use tokio::sync::watch;

use crate::coordinator::{AcceptLoss, Asked, GoBack, Release, Trigger};
use crate::error::{EngineError, Result};
use crate::fault;
use crate::member::storage;

pub(crate) mod assembly;
pub(crate) mod connectors;
pub(crate) mod generations;
pub mod given;
mod graph;
pub mod http;
mod identity;
mod machine;
pub mod memory;
mod metrics;
pub(crate) mod slots;
pub(crate) mod workers;

pub use generations::{run, state_verdict_in_time};
pub use machine::Place;

/// What a person chooses on the command line.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Where secrets are mounted: `<dir>/<secret>/<key>`.
    pub secrets: Option<PathBuf>,
    /// Bytes for state, staging and exchange.
    pub memory: usize,
    /// The volume. Default: `.penstock/volumes/<namespace>/<name>`.
    pub state: Option<PathBuf>,
    /// State rests in memory only: for benches.
    pub memory_state: bool,
    /// Uids whose state may be dropped.
    pub drop_state: Vec<String>,
    /// Sources that may go on past input that is gone.
    pub accept_loss: Vec<AcceptLoss>,
    /// The job's log. Absent: that of its name, or one that is drawn.
    pub log_id: Option<LogId>,
    /// Which version this is. Absent: none is ever on trial.
    pub release: Option<Release>,
    /// `<job>/<logId>` of the savepoint that the manifest names, in a cluster.
    pub savepoint: Option<String>,
    /// An earlier epoch, to which a person goes back.
    pub go_back: Option<GoBack>,
    /// What is asked for while the job runs; absent: nothing ever is.
    pub asked: Option<watch::Receiver<Asked>>,
    /// Which of several workers this is; absent: the only one.
    pub place: Option<Place>,
}

/// The plan of a job. What its own structure does not show to be wrong (what comes later, and its SQL), each at its place in
/// the file.
pub fn plan_of(job: &StreamingJob, positions: &Positions) -> Result<Plan, Vec<Diagnostic>> {
    let placed = |mut faults: Vec<Diagnostic>| {
        faults.iter_mut().for_each(|f| positions.place(f));
        faults
    };
    let later = validate::unsupported(&job.spec);
    if !later.is_empty() {
        return Err(placed(later));
    }
    penstock_plan::plan(job).map_err(placed)
}

/// The name of a job.
pub fn full_name(job: &StreamingJob) -> (String, String) {
    let namespace = job
        .metadata
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    (namespace, job.metadata.name.clone().unwrap_or_default())
}

/// The store that holds the job's logs, at `<prefix>/<namespace>/<name>`.
pub fn open_store(job: &StreamingJob, secrets: Option<&PathBuf>) -> Result<CheckpointStore> {
    let (namespace, name) = full_name(job);
    Ok(open_root(job, secrets)?.below(&format!("{namespace}/{name}")))
}

/// The checkpoint storage of a job, with everything of every job that shares it.
pub fn open_root(job: &StreamingJob, secrets: Option<&PathBuf>) -> Result<CheckpointStore> {
    let storage_spec = job.spec.checkpoint.storage.as_ref();
    let failed = |e: penstock_checkpoint::store::StoreError| storage(LogError::from(e));
    let (objects, prefix): (Arc<dyn Objects>, String) = match storage_spec.and_then(|s| s.kind()) {
        None => (
            Arc::new(LocalFolder::open(".penstock").map_err(failed)?),
            String::new(),
        ),
        Some(StorageKind::Local(local)) => (
            Arc::new(LocalFolder::open(&local.path).map_err(failed)?),
            String::new(),
        ),
        Some(StorageKind::S3(s3)) => {
            let secret = |key: &str| -> Option<String> {
                let of = &storage_spec?.secret_ref.as_ref()?.name;
                let text = std::fs::read_to_string(secrets?.join(of).join(key)).ok()?;
                Some(text.trim_end().to_owned())
            };
            let env = |key: &str| std::env::var(key).ok();
            let options = S3Options {
                bucket: s3.bucket.clone(),
                region: if s3.region.is_empty() {
                    "us-east-1".to_owned()
                } else {
                    s3.region.clone()
                },
                endpoint: s3.endpoint.clone(),
                path_style: s3.path_style,
                access_key: secret("access_key_id").or_else(|| env("AWS_ACCESS_KEY_ID")),
                secret_key: secret("secret_access_key").or_else(|| env("AWS_SECRET_ACCESS_KEY")),
                session_token: secret("session_token").or_else(|| env("AWS_SESSION_TOKEN")),
            };
            (
                Arc::new(Remote::s3(&options).map_err(failed)?),
                s3.prefix.clone(),
            )
        }
        Some(StorageKind::Gcs(_) | StorageKind::Azure(_)) => {
            return Err(EngineError::fail(
                "PR0402",
                "checkpoint.storage",
                "only s3 and local storage are in this version",
            ));
        }
    };
    let objects = match fault::put_delay() {
        Some(delay) => Arc::new(Slow::new(objects, delay)),
        None => objects,
    };
    Ok(CheckpointStore::new(objects, prefix))
}

/// What becomes of the state of the version that ran last, when its plan differs; `None` when nothing has changed or nothing
/// ran yet.
pub async fn state_verdict(
    job: &StreamingJob,
    plan: &Plan,
    options: &RunOptions,
) -> Result<Option<Verdict>> {
    let terms = Terms {
        drop_state: &options.drop_state,
        stateless: options.release.as_ref().is_some_and(|r| r.stateless),
    };
    for log in predecessors(job, options).await? {
        let Some(claim) = log.fold().claim().filter(|c| c.plan_hash != plan.plan_hash) else {
            continue;
        };
        let old = log
            .store()
            .get(&plan_path(&claim.plan_hash))
            .await
            .map_err(|e| storage(LogError::from(e)))?;
        if let Some(old) = old.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(Some(verdict(&old, plan, terms)));
        }
    }
    Ok(None)
}

/// Logs whose state the job may go on with.
async fn predecessors(job: &StreamingJob, options: &RunOptions) -> Result<Vec<JobLog>> {
    let secrets = options.secrets.as_ref();
    if let Some(id) = options.log_id {
        let root = open_root(job, secrets)?;
        let place = given::Place {
            job,
            id,
            root: &root,
            savepoint: options.savepoint.as_deref(),
        };
        return Ok(place.predecessor().await?.into_iter().collect());
    }
    let store = open_store(job, secrets)?;
    let mut logs = Vec::new();
    for id in store.logs().await.map_err(|e| storage(LogError::from(e)))? {
        let log = JobLog::open(store.below(&id.to_string()), LogOptions::default());
        logs.extend(log.await.map_err(storage)?);
    }
    Ok(logs)
}

/// Where a plan lies below its log.
pub fn plan_path(hash: &str) -> String {
    format!("plan/{hash}.json")
}

/// Of each worker.
fn slots(job: &StreamingJob) -> usize {
    usize::try_from(job.spec.workers.slots).unwrap_or(1).max(1)
}

/// Keeps the plan beside the log that names it.
async fn write_plan(log: &JobLog, plan: &Plan) -> Result<()> {
    let text = plan_json(plan).to_string();
    let written = log
        .store()
        .put(&plan_path(&plan.plan_hash), text.into_bytes().into())
        .await;
    written.map_err(|e| storage(LogError::from(e)))
}

fn trigger(job: &StreamingJob) -> Trigger {
    use penstock_crds::job::Trigger as T;
    match job.spec.trigger.kind() {
        T::Continuous => Trigger::Continuous,
        T::ProcessingTime { interval } => Trigger::ProcessingTime {
            interval: interval.into(),
        },
        T::AvailableNow { drain } => Trigger::AvailableNow { drain },
        T::Once { drain } => Trigger::Once { drain },
    }
}
