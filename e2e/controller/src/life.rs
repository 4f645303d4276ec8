//! The life of a job, step by step: what a person writes, and where it is to end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use penstock_crds::job::StreamingJob;
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
    Suspend,
    Resume,
    ScaleUp,
    ScaleDown,
    Delete,
}

impl Step {
    pub const ALL: [Self; 9] = [
        Self::Create,
        Self::Upgrade,
        Self::FailedUpgrade,
        Self::Repair,
        Self::Suspend,
        Self::Resume,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::Delete,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Upgrade => "upgrade",
            Self::FailedUpgrade => "failed upgrade",
            Self::Repair => "repair",
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
            Self::Create | Self::Upgrade | Self::Repair | Self::Resume | Self::ScaleDown => {
                ("Running", 1)
            }
            Self::FailedUpgrade => ("RolledBack", 1),
            Self::Suspend => ("Suspended", 0),
            Self::ScaleUp => ("Running", 3),
            Self::Delete => ("", 0),
        }
    }

    /// The manifest as the person writes it; nothing to delete the job.
    fn manifest(self, namespace: &str) -> Option<Value> {
        let limit = match self {
            Self::Create => 10,
            Self::FailedUpgrade => 30,
            Self::Delete => return None,
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
        })
    }

    /// What the person does.
    pub async fn act(&self, step: Step, fault: Option<(Write, Fault)>) -> Result<()> {
        self.proxy.begin(fault).await?;
        match step.manifest(&self.namespace) {
            Some(job) => plane::apply(&self.plane.admin, &job).await,
            None => {
                let jobs: Api<StreamingJob> =
                    Api::namespaced(self.plane.admin.clone(), &self.namespace);
                jobs.delete(JOB, &DeleteParams::foreground()).await?;
                Ok(())
            }
        }
    }

    /// Waits until the step is where it is to end, by what everybody can see, and nothing more is written.
    pub async fn settled(&self, step: Step) -> Result<Picture> {
        let began = Instant::now();
        while !self.is_there(step).await? || self.proxy.quiet() < QUIET {
            if began.elapsed() > PATIENCE {
                bail!("{}: not there after {PATIENCE:?}", step.name());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.picture().await
    }

    async fn is_there(&self, step: Step) -> Result<bool> {
        let (reason, size) = step.goal();
        let pods: Api<Pod> = Api::namespaced(self.plane.admin.clone(), &self.namespace);
        let pods = pods.list(&ListParams::default()).await?;
        let jobs: Api<StreamingJob> = Api::namespaced(self.plane.admin.clone(), &self.namespace);
        let Some(job) = jobs.get_opt(JOB).await? else {
            return Ok(step == Step::Delete && pods.items.is_empty());
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

    /// Waits until the namespace is as it was in a life without faults; what differs when it does not come to that.
    pub async fn converges(&self, expected: &Picture) -> Result<Vec<String>> {
        let began = Instant::now();
        let mut held = 0;
        loop {
            let differences = picture::differences(&self.picture().await?, expected);
            held = if differences.is_empty() { held + 1 } else { 0 };
            if held == 2 {
                return Ok(Vec::new());
            }
            if began.elapsed() > PATIENCE {
                return Ok(differences);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn picture(&self) -> Result<Picture> {
        let places = (self.namespace.as_str(), self.own.as_str());
        picture::take(&self.plane.admin, places, JOB, self.engine).await
    }

    /// Whether the end of the step was told in an event.
    pub async fn is_told(&self, step: Step) -> Result<bool> {
        let (reason, _) = step.goal();
        Ok(reason.is_empty()
            || picture::is_told(&self.plane.admin, &self.namespace, reason).await?)
    }
}
