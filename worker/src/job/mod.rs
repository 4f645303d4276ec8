//! A job, put together: the manifest's plan, its connectors, its log and volume, one member with its slots, and the
//! coordinator. The only module that names concrete connectors. Runs generations until the job ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use penstock_checkpoint::gc::Retention;
use penstock_checkpoint::ids::{Entropy, LogId, MemberId, Nonce, SystemEntropy};
use penstock_checkpoint::log::{JobLog, LogError, Options as LogOptions};
use penstock_checkpoint::record::Created;
use penstock_checkpoint::store::{CheckpointStore, LocalFolder, Objects, Remote, S3Options, Slow};
use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::{StorageKind, StreamingJob};
use penstock_crds::manifest::Positions;
use penstock_crds::validate;
use penstock_plan::graph::StreamGraph;
use penstock_plan::{Plan, Terms, Verdict, plan_json, verdict};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio::task::JoinHandle;

use crate::clock::{Clock, SystemClock};
use crate::coordinator::progress::{LastFailure, Phase, Progress, Restart};
use crate::coordinator::{
    AcceptLoss, Adopts, Asked, Coordinator, GoBack, Outcome, Parts, Release, Settings, Trigger,
    bases,
};
use crate::error::{EngineError, ErrorKind, Result};
use crate::fault;
use crate::member::seat::Seat;
use crate::member::team::{self, Line};
use crate::member::{Member, storage};
use crate::network::hub::Hub;
use crate::network::{Exchange, Peer};
use crate::process;
use crate::sinks::{Guarantee, SinkRef};
use crate::state::{Budget, Planted, StateOptions, StateWorker};
use crate::task::Policy;

pub(crate) mod connectors;
pub mod given;
pub mod http;
mod identity;
mod machine;
pub mod memory;
mod metrics;
mod slots;
pub(crate) mod workers;

pub(crate) use connectors::Connected;
use machine::Machine;
pub use machine::Place;
pub use slots::SlotThreads;
use workers::Worker;

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

/// Runs a job until it ends, is stopped by `stop`, or fails. Begins a new generation after a fence or a passing failure.
pub async fn run(
    job: &StreamingJob,
    plan: Arc<Plan>,
    options: &RunOptions,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Outcome> {
    let outcome = generations(job, plan, options, progress.clone(), stop).await;
    progress.phase(if outcome.is_ok() {
        Phase::Completed
    } else {
        Phase::Failed
    });
    outcome
}

async fn generations(
    job: &StreamingJob,
    plan: Arc<Plan>,
    options: &RunOptions,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Outcome> {
    let (namespace, name) = full_name(job);
    let volume = options.state.clone().unwrap_or_else(|| {
        PathBuf::from(".penstock/volumes")
            .join(&namespace)
            .join(&name)
    });
    let worked = AtomicBool::new(false);
    let looked = AtomicBool::new(false);
    let cluster = options.log_id.is_some();
    // Who started several workers has asked the storage before: they wait for it.
    let proven = Arc::new(Proven::new(cluster || options.place.is_some()));
    let worker = match options.place.clone() {
        None => None,
        Some(place) => {
            let machine = Machine {
                job: job.clone(),
                plan: plan.clone(),
                options: options.clone(),
                volume: volume.clone(),
                proven: proven.clone(),
                progress: progress.clone(),
                stop: stop.clone(),
            };
            let (progress, stop) = (progress.clone(), stop.clone());
            let post = place.listen()?;
            Some(Worker::new(post, Arc::new(machine), progress, stop))
        }
    };
    let ended = one_after_another(&stop, &progress, || async {
        let ended = async {
            if let Some(worker) = &worker {
                return worker.run().await;
            }
            // By the Secret as it is now.
            let store = open_store(job, options.secrets.as_ref())?;
            proven.prove(&store).await?;
            generation(job, &plan, options, &progress, &stop, &store, &volume).await
        };
        let ended = ended.await;
        let member = worker.as_ref().is_some_and(Worker::was_member);
        worked.fetch_or(progress.is(Phase::Running) || member, Ordering::Relaxed);
        let ended = ended.map_err(|e| at_the_start(e, cluster, worked.load(Ordering::Relaxed)));
        ended.map_err(|e| looked_again(e, &looked))
    });
    let ended = ended.await;
    let ended = ended.map(|ended| ended.unwrap_or_else(|| cut_short(&progress)));
    if let Some(worker) = &worker {
        worker.tell_end(&ended).await;
    }
    ended
}

/// Whether the store has been found to keep what it must.
pub(crate) struct Proven {
    /// Storage that has not answered yet is waited for.
    patient: bool,
    done: AtomicBool,
}

impl Proven {
    fn new(patient: bool) -> Self {
        Self {
            patient,
            done: AtomicBool::new(false),
        }
    }

    /// Once.
    async fn prove(&self, store: &CheckpointStore) -> Result<()> {
        if !self.done.load(Ordering::Relaxed) {
            prove(store).await.map_err(|e| unproven(e, self.patient))?;
            self.done.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A login that never worked is told to the person who starts the job. One that did is tried on with, until the Secret has been
/// changed too; and so it is on a cluster, where Secrets come to their places later than pods do.
fn at_the_start(error: EngineError, cluster: bool, worked: bool) -> EngineError {
    let kind = match error.kind {
        ErrorKind::Refused if !cluster && !worked => ErrorKind::Fail,
        kind => kind,
    };
    EngineError { kind, ..error }
}

/// Storage that has not answered yet: a person who starts the job is told so, a pod waits for it.
fn unproven(error: EngineError, patient: bool) -> EngineError {
    let kind = match error.kind {
        ErrorKind::Retry if !patient => ErrorKind::Fail,
        kind => kind,
    };
    EngineError { kind, ..error }
}

/// An object that is damaged or gone stays so, and only a person mends it. But who slept may look for what the job's next owner
/// has collected: so the job is joined again, once, and the log says who owns it.
fn looked_again(error: EngineError, looked: &AtomicBool) -> EngineError {
    let lost = matches!(error.code, "PR0404" | "PR0405");
    let before = looked.swap(lost, Ordering::Relaxed);
    let kind = match error.kind {
        ErrorKind::Invalid if lost && !before => ErrorKind::Retry,
        kind => kind,
    };
    EngineError { kind, ..error }
}

/// The store refuses a second create of one key, or the job does not begin.
async fn prove(store: &CheckpointStore) -> Result<()> {
    let proven = store.prove_create_if_absent(&mut SystemEntropy).await;
    proven.map_err(|e| {
        let careless = e.kind == penstock_checkpoint::store::ErrorKind::Invalid;
        let error = storage(LogError::from(e));
        EngineError {
            code: if careless { "PR0403" } else { error.code },
            ..error
        }
    })
}

/// As [`state_verdict`], for a job that nobody watches: waits for storage that does not answer, as its generations do. `None` also
/// where a stop was asked for meanwhile.
pub async fn state_verdict_in_time(
    job: &StreamingJob,
    plan: &Plan,
    options: &RunOptions,
    progress: &Progress,
    stop: &watch::Receiver<bool>,
) -> Result<Option<Verdict>> {
    let looked = AtomicBool::new(false);
    let verdict = one_after_another(stop, progress, || async {
        let verdict = state_verdict(job, plan, options).await;
        verdict.map_err(|e| looked_again(e, &looked))
    });
    Ok(verdict.await?.flatten())
}

/// Before a generation that follows one that got somewhere.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Generations until one ends the job: after a fence or a passing failure the process joins again. `None`: a stop was asked for
/// between two.
pub(crate) async fn one_after_another<T, F: Future<Output = Result<T>>>(
    stop: &watch::Receiver<bool>,
    progress: &Progress,
    mut generation: impl FnMut() -> F,
) -> Result<Option<T>> {
    let mut stop = stop.clone();
    let mut pause = FIRST_PAUSE;
    loop {
        let before = progress.now().epoch.number;
        let ended = generation().await;
        if let Err(e) = &ended {
            progress.failed(LastFailure {
                at_ms: SystemClock.now().get(),
                code: e.code,
                message: e.to_string(),
            });
        }
        match ended {
            Err(e)
                if matches!(
                    e.kind,
                    ErrorKind::Fenced | ErrorKind::Retry | ErrorKind::Refused
                ) =>
            {
                // Who asked for a stop has it: what is committed is safe, and the log's next owner goes on with it.
                if *stop.borrow() {
                    tracing::warn!(error = %e, "stopped by the generation's end");
                    return Ok(None);
                }
                tracing::warn!(error = %e, "the generation is over, joining again");
                progress.restarted(match e.kind {
                    ErrorKind::Fenced => Restart::Fenced,
                    ErrorKind::Retry
                    | ErrorKind::Refused
                    | ErrorKind::Fail
                    | ErrorKind::Invalid => Restart::Retry,
                });
                // The delay grows with each generation that no commit followed.
                if progress.now().epoch.number > before {
                    pause = FIRST_PAUSE;
                }
                if asked_within(&mut stop, pause).await {
                    return Ok(None);
                }
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            other => return other.map(Some),
        }
    }
}

/// Stopped without a word in the log: at the newest commit that this process knows of.
pub(crate) fn cut_short(progress: &Progress) -> Outcome {
    let now = progress.now();
    let epoch = now.epoch.number;
    Outcome::Stopped {
        epoch,
        pending: (now.published < epoch).then_some(now.published),
    }
}

/// Whether a stop is asked for within the pause.
async fn asked_within(stop: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    let asked = async {
        // Nobody can ask any more once the sender is gone.
        if stop.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::time::timeout(pause, asked).await.is_ok()
}

async fn generation(
    job: &StreamingJob,
    plan: &Arc<Plan>,
    options: &RunOptions,
    progress: &Arc<Progress>,
    stop: &watch::Receiver<bool>,
    store: &CheckpointStore,
    volume: &std::path::Path,
) -> Result<Outcome> {
    let (log, adopts) = open_log(job, plan, options, progress, store, volume).await?;
    let setup = setup(job, plan, options, log, adopts, volume)?;
    serve(
        job,
        plan,
        setup,
        Team::Here(1),
        stop.clone(),
        progress.clone(),
    )
    .await
}

/// The job's log, with the plan beside it.
async fn open_log(
    job: &StreamingJob,
    plan: &Plan,
    options: &RunOptions,
    progress: &Progress,
    store: &CheckpointStore,
    volume: &std::path::Path,
) -> Result<(JobLog, Option<Adopts>)> {
    let (namespace, name) = full_name(job);
    let key_groups = given::key_groups(job);
    let (log, adopts) = match options.log_id {
        Some(id) => {
            let place = given::Place {
                job,
                id,
                root: &open_root(job, options.secrets.as_ref())?,
                savepoint: options.savepoint.as_deref(),
            };
            place.open().await?
        }
        None => {
            let created = Created {
                name: format!("{namespace}/{name}"),
                key_groups,
                parent: None,
            };
            let log = identity::open_log(store, volume, created, &job.spec).await?;
            (log, None)
        }
    };
    if log.fold().key_groups() != key_groups {
        let text = format!(
            "keyGroups is {key_groups}, the job began with {}: it is fixed for a job's life",
            log.fold().key_groups()
        );
        return Err(EngineError::fail("PR0410", "spec.keyGroups", text));
    }
    progress.log(log.fold().log().to_string());
    write_plan(&log, plan).await?;
    Ok((log, adopts))
}

fn setup(
    job: &StreamingJob,
    plan: &Plan,
    options: &RunOptions,
    log: JobLog,
    adopts: Option<Adopts>,
    volume: &std::path::Path,
) -> Result<Setup> {
    let facts = connectors::LogFacts::of(job, log.fold());
    let connected = connectors::connect(job, plan, options, facts)?;
    Ok(Setup {
        log,
        connected,
        clock: Arc::new(SystemClock),
        state: (!options.memory_state).then(|| volume.join("state")),
        memory: options.memory,
        slots: slots(job),
        threads: SlotThreads::Own,
        at_once: !trigger(job).planned(),
        trigger: trigger(job),
        accept_loss: options.accept_loss.clone(),
        release: options.release.clone(),
        adopts,
        go_back: options.go_back.clone(),
        asked: options.asked.clone().unwrap_or_else(Asked::nothing),
    })
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

/// What a generation runs on, once its log is open.
struct Setup {
    log: JobLog,
    connected: connectors::Connected,
    clock: Arc<dyn Clock>,
    /// Folder of the state; `None`: in memory.
    state: Option<PathBuf>,
    /// Of this process.
    memory: usize,
    /// Of each member.
    slots: usize,
    threads: SlotThreads,
    at_once: bool,
    trigger: Trigger,
    accept_loss: Vec<AcceptLoss>,
    release: Option<Release>,
    adopts: Option<Adopts>,
    go_back: Option<GoBack>,
    asked: watch::Receiver<Asked>,
}

/// The right to have the volume open; each member that has it open keeps a part of it.
pub(crate) type Held = Option<Arc<OwnedMutexGuard<()>>>;

/// Who takes part in a generation.
pub(crate) enum Team {
    /// So many members, all in this process.
    Here(usize),
    /// One in each worker.
    Workers {
        me: Peer,
        /// To the others.
        lines: BTreeMap<Peer, Line>,
        exchange: Arc<dyn Exchange>,
        held: Held,
    },
}

impl Team {
    fn members(&self) -> Vec<Peer> {
        let number = |n| Peer::here(MemberId::new(u32::try_from(n).unwrap_or(u32::MAX)));
        match self {
            Self::Here(members) => (0..*members).map(number).collect(),
            Self::Workers { me, lines, .. } => {
                let mut ids: Vec<Peer> = lines.keys().copied().collect();
                ids.push(*me);
                ids.sort_unstable();
                ids
            }
        }
    }

    /// Those of this process.
    fn own(&self) -> Vec<Peer> {
        match self {
            Self::Here(_) => self.members(),
            Self::Workers { me, .. } => vec![*me],
        }
    }
}

/// One generation: members with their slots, and the coordinator. May be dropped at any time, as a crash would.
async fn serve(
    job: &StreamingJob,
    plan: &Plan,
    setup: Setup,
    team: Team,
    stop: watch::Receiver<bool>,
    progress: Arc<Progress>,
) -> Result<Outcome> {
    let Setup {
        log,
        connected,
        clock,
        state,
        memory,
        slots,
        threads,
        at_once,
        trigger,
        accept_loss,
        release,
        adopts,
        go_back,
        asked,
    } = setup;
    let key_groups = log.fold().key_groups();
    let sinks: Vec<(String, u16)> = connected
        .sinks
        .iter()
        .map(|(name, sink, _)| (name.clone(), sink.shards()))
        .collect();
    let own = team.own();
    let memory_of_each = memory / own.len();
    let volume = |peer: &Peer| {
        let options = Volume {
            id: peer.id,
            dir: state.as_deref(),
            key_groups,
            log: log.fold().log(),
            memory: memory_of_each,
        };
        Ok((*peer, options.open(plan)?))
    };
    let states = own.iter().map(volume).collect::<Result<Vec<_>>>()?;
    let spec = &job.spec.checkpoint;
    let settings = Settings {
        job: job.metadata.name.clone().unwrap_or_default(),
        trigger,
        interval: spec.interval.into(),
        retention: Retention {
            epochs: u64::from(spec.retention.epochs),
            duration: spec.retention.duration.into(),
        },
        plan_hash: plan.plan_hash.clone(),
        members: team.members(),
        slots,
        sinks,
        key_groups,
        base_epochs: fault::base_epochs().unwrap_or(bases::EPOCHS),
        epoch_bytes: memory as u64 / 16,
        accept_loss,
        release,
        adopts,
        go_back,
        asked,
    };
    let (exchange, lines, held): (Arc<dyn Exchange>, _, _) = match team {
        Team::Here(_) => (Arc::new(Hub::default()), BTreeMap::new(), None),
        Team::Workers {
            exchange,
            lines,
            held,
            ..
        } => (exchange, lines, held),
    };
    assemble(Assembly {
        settings,
        log,
        graph: Arc::new(plan.graph.clone()),
        connected,
        states,
        lines,
        exchange,
        clock,
        threads,
        at_once,
        early_bytes: early_bytes(memory_of_each, slots),
        held,
        nonces: Box::new(|| Box::new(|| Nonce::from_bytes(SystemEntropy.bytes16()))),
        stop,
        progress,
    })
    .await
}

/// Bytes of state and staged outputs at which one of a member's slots asks for an early barrier.
const fn early_bytes(memory: usize, slots: usize) -> usize {
    memory / 8 / slots
}

/// Where a member has its state.
struct Volume<'a> {
    id: MemberId,
    /// `None`: in memory.
    dir: Option<&'a Path>,
    key_groups: u16,
    log: LogId,
    /// Bytes.
    memory: usize,
}

impl Volume<'_> {
    fn open(&self, plan: &Plan) -> Result<StateWorker> {
        StateWorker::open(StateOptions {
            // That of the first is where that of the only one is.
            dir: self.dir.map(|dir| match self.id.get() {
                0 => dir.to_owned(),
                number => dir.with_extension(number.to_string()),
            }),
            total_groups: self.key_groups,
            log_id: self.log.to_string(),
            schema_fingerprint: state_fingerprint(plan),
            nonce: u64::from_le_bytes(
                SystemEntropy.bytes16()[..8]
                    .try_into()
                    .expect("eight of sixteen bytes"),
            ),
            budget: Budget::new(self.memory),
            stateful: plan.graph.nodes.iter().any(|n| n.fingerprint.is_some()),
            planted: Planted::default(),
        })
    }
}

/// Draws the nonces of a member.
pub(crate) type Nonces = Box<dyn FnMut() -> Nonce + Send + Sync>;

/// What a generation is put together from. `generation` takes it from the machine, a simulation from its world.
pub(crate) struct Assembly {
    pub settings: Settings,
    pub log: JobLog,
    pub graph: Arc<StreamGraph>,
    pub connected: Connected,
    /// Of each member in this process.
    pub states: Vec<(Peer, StateWorker)>,
    /// To the members elsewhere.
    pub lines: BTreeMap<Peer, Line>,
    pub exchange: Arc<dyn Exchange>,
    pub clock: Arc<dyn Clock>,
    pub threads: SlotThreads,
    /// Changes of sinks that publish at once may leave within an epoch. Not in planned ones: what leaves within an epoch depends
    /// on how its input arrived, and a planned epoch that runs again gives the same rows.
    pub at_once: bool,
    /// As [`early_bytes`] says.
    pub early_bytes: usize,
    pub held: Held,
    /// Makes each member's.
    pub nonces: Box<dyn FnMut() -> Nonces + Send + Sync>,
    pub stop: watch::Receiver<bool>,
    pub progress: Arc<Progress>,
}

/// One generation of its members and their coordinator, to its end.
pub(crate) async fn assemble(assembly: Assembly) -> Result<Outcome> {
    let Assembly {
        settings,
        log,
        graph,
        connected,
        states,
        mut lines,
        exchange,
        clock,
        threads,
        at_once,
        early_bytes,
        held,
        mut nonces,
        stop,
        progress,
    } = assembly;
    let works = Works::new(WorksParts {
        log: log.fold().log(),
        store: log.store().clone(),
        key_groups: settings.key_groups,
        graph,
        sources: connected.sources,
        sinks: connected.sinks,
        exchange,
        clock: clock.clone(),
        slots: settings.slots,
        threads,
        at_once,
        early_bytes,
        held,
    });
    let mut members = Vec::new();
    for (peer, state) in states {
        let (line, member) = works.member(peer.id, state, nonces());
        lines.insert(peer, line);
        members.push(member);
    }
    let (to_team, team_inbox) = mpsc::unbounded_channel();
    let (to_coordinator, inbox) = mpsc::unbounded_channel();
    let shards = settings.sinks.iter().map(|(_, shards)| *shards).collect();
    let pure = team::Team::new(lines.len(), settings.slots, settings.key_groups, shards);
    // In the order of their places.
    let lines = lines.into_values().collect();
    process::spawn(team::carry(pure, team_inbox, to_coordinator, lines));
    let mut coordinator = Coordinator::new(Parts {
        settings,
        log,
        sources: connected.infos,
        member: to_team,
        inbox,
        clock,
        stop,
        progress,
    });
    let outcome = coordinator.run().await;
    drop(coordinator);
    // A member ends its slots; a slot that hangs in a connector would hang the process, so that has a bound.
    let ended = futures::future::join_all(members);
    if tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .is_err()
    {
        tracing::warn!("a member did not end within 20 s");
    }
    outcome
}

/// What the members of a process are made of.
pub(crate) struct Works {
    log: LogId,
    store: CheckpointStore,
    key_groups: u16,
    slots: usize,
    shares_late: bool,
    sinks: Vec<(String, SinkRef, Guarantee)>,
    sources: Vec<String>,
    factory: Arc<slots::GraphSlots>,
    held: Held,
}

pub(crate) struct WorksParts {
    pub log: LogId,
    pub store: CheckpointStore,
    pub key_groups: u16,
    pub graph: Arc<StreamGraph>,
    pub sources: Vec<slots::SourceParts>,
    pub sinks: Vec<(String, SinkRef, Guarantee)>,
    pub exchange: Arc<dyn Exchange>,
    pub clock: Arc<dyn Clock>,
    pub slots: usize,
    pub threads: SlotThreads,
    pub at_once: bool,
    pub early_bytes: usize,
    pub held: Held,
}

impl Works {
    pub(crate) fn new(parts: WorksParts) -> Self {
        let stateful = parts.graph.nodes.iter().filter(|n| n.fingerprint.is_some());
        let lettered = |s: &slots::SourceParts| matches!(s.rules.on_late, Policy::DeadLetter(_));
        Self {
            log: parts.log,
            store: parts.store,
            key_groups: parts.key_groups,
            slots: parts.slots,
            shares_late: stateful.count() > 1 && parts.sources.iter().any(lettered),
            sinks: parts.sinks.clone(),
            sources: parts.sources.iter().map(|s| s.rules.name.clone()).collect(),
            held: parts.held,
            factory: Arc::new(slots::GraphSlots {
                graph: parts.graph,
                key_groups: parts.key_groups,
                exchange: parts.exchange,
                sources: parts.sources,
                sinks: parts.sinks,
                clock: parts.clock,
                early_bytes: parts.early_bytes,
                at_once: parts.at_once,
                threads: parts.threads,
            }),
        }
    }

    /// Begins a member; it ends when its line is dropped.
    pub(crate) fn member(
        &self,
        id: MemberId,
        state: StateWorker,
        nonces: Nonces,
    ) -> (Line, JoinHandle<()>) {
        let (to, inbox) = mpsc::unbounded_channel();
        let (outbox, from) = mpsc::unbounded_channel();
        let member = Member {
            id,
            log: self.log,
            store: self.store.clone(),
            key_groups: self.key_groups,
            seat: Seat::alone(self.slots),
            state,
            slots: self.factory.clone(),
            shares_late: self.shares_late,
            sinks: self.sinks.clone(),
            sources: self.sources.clone(),
            nonces,
            inbox,
            outbox,
        };
        let held = self.held.clone();
        let running = process::spawn(async move {
            member.run().await;
            drop(held);
        });
        (Line { to, from }, running)
    }
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

/// Of everything that the bytes of state depend on: an instance written under another one is not used.
pub(crate) fn state_fingerprint(plan: &Plan) -> String {
    let of = plan
        .graph
        .nodes
        .iter()
        .filter_map(|n| Some(format!("{}={:016x}", n.uid.0, n.fingerprint?.0)));
    let text = of.collect::<Vec<_>>().join(";");
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_ends_a_job_that_a_person_has_just_started_and_no_other() {
        let refused = || EngineError::new(ErrorKind::Refused, "PR0211", "source a", "no");
        assert_eq!(at_the_start(refused(), false, false).kind, ErrorKind::Fail);
        assert_eq!(
            at_the_start(refused(), false, true).kind,
            ErrorKind::Refused
        );
        assert_eq!(
            at_the_start(refused(), true, false).kind,
            ErrorKind::Refused
        );
        let passing = EngineError::retry("PR0208", "source a", "no");
        assert_eq!(at_the_start(passing, false, false).kind, ErrorKind::Retry);
    }

    #[test]
    fn storage_that_does_not_answer_ends_a_job_that_a_person_has_just_started_and_no_other() {
        let away = || EngineError::retry("PR0402", "checkpoint storage", "no");
        assert_eq!(unproven(away(), false).kind, ErrorKind::Fail);
        assert_eq!(unproven(away(), true).kind, ErrorKind::Retry);
    }

    #[test]
    fn an_object_that_is_gone_is_looked_for_once_more() {
        let looked = AtomicBool::new(false);
        let kind = |code| looked_again(EngineError::invalid(code, "pack", "gone"), &looked).kind;
        assert_eq!(kind("PR0405"), ErrorKind::Retry);
        assert_eq!(kind("PR0404"), ErrorKind::Invalid);
        assert_eq!(kind("PR0207"), ErrorKind::Invalid);
        assert_eq!(
            kind("PR0405"),
            ErrorKind::Retry,
            "the look before was another"
        );
    }
}
