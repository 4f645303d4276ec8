//! The life of a job, step by step: what a person writes, and where it is to end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use parking_lot::Mutex;
use penstock_crds::job::StreamingJob;
use penstock_crds::savepoint::{Savepoint, SavepointPhase};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::operator::{How, Operator};
use crate::picture::{self, Picture};
use crate::plane::{self, Plane};
use crate::proxy::{Fault, Proxy, Write};

/// The job's name, the same in every life.
pub const JOB: &str = "payments";
/// A controller that has nothing more to do looks again every two seconds at most.
const QUIET: Duration = Duration::from_millis(2600);
/// A step that takes longer has not converged.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Create,
    Upgrade,
    FailedUpgrade,
    Repair,
    /// A savepoint of the job that runs.
    Savepoint,
    Unpin,
    Suspend,
    Resume,
    ScaleUp,
    ScaleDown,
    /// From now on it leaves a savepoint when it is deleted.
    Hold,
    Delete,
    /// The savepoint that it left is deleted.
    Forget,
}

impl Step {
    pub const ALL: [Self; 13] = [
        Self::Create,
        Self::Upgrade,
        Self::FailedUpgrade,
        Self::Repair,
        Self::Savepoint,
        Self::Unpin,
        Self::Suspend,
        Self::Resume,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::Hold,
        Self::Delete,
        Self::Forget,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Upgrade => "upgrade",
            Self::FailedUpgrade => "failed upgrade",
            Self::Repair => "repair",
            Self::Savepoint => "savepoint",
            Self::Unpin => "unpin",
            Self::Hold => "hold",
            Self::Forget => "forget",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::ScaleUp => "scale up",
            Self::ScaleDown => "scale down",
            Self::Delete => "delete",
        }
    }

    /// The reason of Ready and the pods that the step ends with.
    pub const fn goal(self) -> (&'static str, usize) {
        match self {
            Self::Create
            | Self::Upgrade
            | Self::Repair
            | Self::Savepoint
            | Self::Unpin
            | Self::Resume
            | Self::ScaleDown
            | Self::Hold => ("Running", 1),
            Self::FailedUpgrade => ("RolledBack", 1),
            Self::Suspend => ("Suspended", 0),
            Self::ScaleUp => ("Running", 3),
            Self::Delete | Self::Forget => ("", 0),
        }
    }

    /// The reason of the event that tells of its end, where one does before the end is written.
    pub const fn told(self) -> Option<&'static str> {
        match self {
            Self::Create | Self::Upgrade | Self::Repair | Self::Resume | Self::ScaleUp => {
                Some("Running")
            }
            Self::FailedUpgrade => Some("RolledBack"),
            Self::Suspend => Some("Suspended"),
            Self::Savepoint => Some("Completed"),
            Self::Unpin | Self::Forget => Some("Unpinned"),
            Self::ScaleDown | Self::Hold | Self::Delete => None,
        }
    }

    /// Whether it begins and ends with the same reason of Ready: where a fault keeps what lies between from being written, nothing
    /// has changed that an event could tell.
    pub const fn ends_as_it_began(self) -> bool {
        matches!(self, Self::Upgrade | Self::ScaleUp)
    }

    /// How many savepoints there are when it has ended, all of them completed.
    const fn savepoints(self) -> usize {
        match self {
            Self::Savepoint | Self::Delete => 1,
            _ => 0,
        }
    }

    /// The manifest of the job as the person writes it; `None`: something else is done.
    fn manifest(self, namespace: &str) -> Option<Value> {
        let limit = match self {
            Self::Create => 10,
            Self::FailedUpgrade => 30,
            Self::Savepoint | Self::Unpin | Self::Delete | Self::Forget => return None,
            _ => 20,
        };
        let mut job = manifest(namespace, JOB, limit);
        match self {
            Self::FailedUpgrade => {
                let template = json!({"metadata": {"labels": {"penstock.test/fate": "gives-up"}}});
                job["spec"]["workers"] = json!({"podTemplate": template});
            }
            Self::Suspend => job["spec"]["suspend"] = json!(true),
            Self::ScaleUp => job["spec"]["workers"] = json!({"replicas": 3}),
            Self::ScaleDown => job["spec"]["workers"] = json!({"replicas": 1}),
            Self::Hold => {
                job["spec"]["workers"] = json!({"replicas": 1});
                job["spec"]["deletionPolicy"] = json!("Savepoint");
            }
            _ => {}
        }
        Some(job)
    }
}

/// A job as a person writes it.
pub fn manifest(namespace: &str, name: &str, limit: u32) -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "StreamingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "sources": [{
                "name": "payments",
                "kafka": {"bootstrapServers": "kafka:9092", "topics": ["payments"]},
                "format": {"json": {}},
                "columns": [{"name": "amount", "type": "BIGINT"}],
            }],
            "sql": format!("INSERT INTO large SELECT amount FROM payments WHERE amount > {limit}"),
            "sinks": [{
                "name": "large",
                "kafka": {"bootstrapServers": "kafka:9092", "topic": "large"},
                "format": {"json": {}},
            }],
            "checkpoint": {"storage": {"s3": {"bucket": "streams"}}},
        },
    })
}

/// A planner that finds nothing wrong: what it would say is no subject here.
pub fn planner(folder: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("planner");
    std::fs::write(&path, "#!/bin/sh\nexec cat >/dev/null\n")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        self.operator.end();
    }
}

/// A namespace, a controller for it alone, and the proxy between that and the API server.
pub struct Life<'a> {
    plane: &'a Plane,
    engine: &'a Engine,
    pub namespace: String,
    own: String,
    pub proxy: Proxy,
    pub operator: Operator,
    /// The uid of the job, from when it was first seen.
    uid: Mutex<String>,
    /// When the step began.
    began: Mutex<Timestamp>,
}

impl<'a> Life<'a> {
    pub async fn begin(
        plane: &'a Plane,
        engine: &'a Engine,
        program: &Path,
        number: usize,
    ) -> Result<Self> {
        let (namespace, own) = (format!("life-{number}-x"), format!("own-{number}-x"));
        plane.namespace(&namespace, false).await?;
        plane.namespace(&own, true).await?;
        let proxy = Proxy::start(plane.controller().await?).await?;
        let operator = Operator::start(How {
            program: program.to_owned(),
            kubeconfig: plane.kubeconfig(&format!("{own}.kubeconfig"), &proxy.url)?,
            folder: plane.folder.clone(),
            own: own.clone(),
            name: own.clone(),
            namespaces: vec![namespace.clone()],
            planner: planner(&plane.folder)?,
            metrics: 0,
        })?;
        proxy.kills(operator.clone());
        Ok(Self {
            operator,
            plane,
            engine,
            namespace,
            own,
            proxy,
            uid: Mutex::default(),
            began: Mutex::default(),
        })
    }

    /// What the person does.
    pub async fn act(&self, step: Step, fault: Option<(Write, Fault)>) -> Result<()> {
        self.proxy.begin(fault).await?;
        *self.began.lock() = Timestamp::now();
        if let Some(job) = step.manifest(&self.namespace) {
            return plane::apply(&self.plane.admin, &job).await;
        }
        let (client, namespace) = (self.plane.admin.clone(), &self.namespace);
        match step {
            Step::Savepoint => {
                let savepoint = json!({
                    "apiVersion": "penstock.dev/v1alpha1",
                    "kind": "Savepoint",
                    "metadata": {"name": "kept", "namespace": namespace},
                    "spec": {"jobRef": {"name": JOB}},
                });
                let savepoints: Api<Savepoint> = Api::namespaced(client, namespace);
                let savepoint = serde_json::from_value(savepoint)?;
                savepoints
                    .create(&PostParams::default(), &savepoint)
                    .await?;
            }
            Step::Unpin | Step::Forget => {
                let savepoints: Api<Savepoint> = Api::namespaced(client, namespace);
                for savepoint in self.savepoints().await? {
                    let name = savepoint.name_any();
                    savepoints.delete(&name, &DeleteParams::default()).await?;
                }
            }
            _ => {
                // As tools for GitOps do.
                let jobs: Api<StreamingJob> = Api::namespaced(client, namespace);
                jobs.delete(JOB, &DeleteParams::foreground()).await?;
            }
        }
        Ok(())
    }

    async fn savepoints(&self) -> Result<Vec<Savepoint>> {
        let all: Api<Savepoint> = Api::namespaced(self.plane.admin.clone(), &self.namespace);
        Ok(all.list(&ListParams::default()).await?.items)
    }

    /// Waits until the step is where it is to end, by what everybody can see, and nothing more is written.
    pub async fn settled(&self, step: Step) -> Result<Picture> {
        let began = Instant::now();
        loop {
            if self.is_there(step).await? && self.proxy.quiet() >= QUIET {
                let picture = self.picture().await?;
                if !picture::has_garbage(&picture) {
                    return Ok(picture);
                }
            }
            if began.elapsed() > PATIENCE {
                bail!("{}: not there after {PATIENCE:?}", step.name());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn is_there(&self, step: Step) -> Result<bool> {
        let (reason, size) = step.goal();
        let pods: Api<Pod> = Api::namespaced(self.plane.admin.clone(), &self.namespace);
        let pods = pods.list(&ListParams::default()).await?;
        let jobs: Api<StreamingJob> = Api::namespaced(self.plane.admin.clone(), &self.namespace);
        let savepoints = self.savepoints().await?;
        let completed = |s: &Savepoint| {
            let phase = s.status.as_ref().and_then(|s| s.phase);
            phase == Some(SavepointPhase::Completed)
        };
        if savepoints.len() != step.savepoints() || !savepoints.iter().all(completed) {
            return Ok(false);
        }
        let Some(job) = jobs.get_opt(JOB).await? else {
            let gone = matches!(step, Step::Delete | Step::Forget);
            return Ok(gone && pods.items.is_empty());
        };
        let Some(status) = job.status else {
            return Ok(false);
        };
        let mut conditions = status.conditions.iter();
        Ok(status.observed_generation == job.metadata.generation
            && conditions.any(|c| c.type_ == "Ready" && c.reason == reason)
            && status.ready_replicas == i32::try_from(size).ok()
            && pods.items.len() == size)
    }

    /// Waits until the namespace is as it was in a life without faults, nothing more is written and it is so once more; what differs
    /// when it does not come to that.
    pub async fn converges(&self, expected: &Picture) -> Result<Vec<String>> {
        let began = Instant::now();
        let mut held = false;
        loop {
            let is_quiet = self.proxy.quiet() >= QUIET;
            let mut differences = picture::differences(&self.picture().await?, expected);
            let is_equal = is_quiet && differences.is_empty();
            if held && is_equal {
                return Ok(Vec::new());
            }
            held = is_equal;
            if began.elapsed() > PATIENCE {
                if differences.is_empty() {
                    differences.push(format!("it is still written to after {PATIENCE:?}"));
                }
                return Ok(differences);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn picture(&self) -> Result<Picture> {
        let places = (self.namespace.as_str(), self.own.as_str());
        if self.uid.lock().is_empty() {
            let jobs: Api<StreamingJob> =
                Api::namespaced(self.plane.admin.clone(), &self.namespace);
            let uid = jobs.get_opt(JOB).await?.and_then(|job| job.uid());
            *self.uid.lock() = uid.unwrap_or_default();
        }
        let uid = self.uid.lock().clone();
        picture::take(&self.plane.admin, places, (JOB, &uid), self.engine).await
    }

    /// Whether the end of the step was told in an event, since it began.
    pub async fn is_told(&self, step: Step) -> Result<bool> {
        let Some(reason) = step.told() else {
            return Ok(true);
        };
        let since = *self.began.lock();
        picture::is_told(&self.plane.admin, &self.namespace, reason, since).await
    }
}
