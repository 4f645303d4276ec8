//! A step on the log of a job that does not run: a pod of its own, made from the job's own template, that does one thing and ends.
//! It has the job's identity and secrets, and neither its volume nor its certificate.

use serde_json::{Value, json};

use crate::names::{self, JOB, MANAGER, SAVEPOINT, WORKER};
use crate::version::Version;

/// What is to be done on the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Pin the epoch where the job ended.
    Savepoint(String),
    Unpin(String),
    /// Remove everything but what savepoints pin.
    Remove,
}

impl Step {
    /// For the pod's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Savepoint(_) => "pin",
            Self::Unpin(_) => "unpin",
            Self::Remove => "remove",
        }
    }

    fn words(&self) -> Vec<String> {
        match self {
            Self::Savepoint(name) => vec!["savepoint".to_owned(), name.clone()],
            Self::Unpin(name) => vec!["unpin".to_owned(), name.clone()],
            Self::Remove => vec!["remove".to_owned()],
        }
    }
}

/// Whom a step is for.
#[derive(Debug, Clone)]
pub struct For<'a> {
    pub namespace: &'a str,
    pub job: &'a str,
    /// The object that owns the pod: a job, or a savepoint.
    pub owner: Value,
    /// Its name, from which the pod has its own.
    pub name: &'a str,
    /// The ConfigMap with the job as it is to be read.
    pub manifest: &'a str,
    /// The job, and with it its account, is gone.
    pub orphaned: bool,
}

/// The pod has this long.
const DEADLINE: u64 = 600;

/// `None` where the version's template is not one that this controller's kind wrote.
pub fn step_pod(of: &For<'_>, version: &Version, step: &Step) -> Option<Value> {
    let mut spec = version.template.get("spec")?.clone();
    let container = spec["containers"].get_mut(0)?;
    let args: Vec<String> = serde_json::from_value(container["args"].clone()).ok()?;
    let value = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).cloned()
    };
    let file = args.get(args.iter().position(|a| a == "--")? + 1)?;
    let mut words: Vec<String> = ["--output", "json", "step"].map(str::to_owned).to_vec();
    words.push(file.clone());
    for name in ["--log-id", "--secrets"] {
        words.extend([name.to_owned(), value(name)?]);
    }
    words.extend(step.words());
    let env = container["env"].clone();
    *container = json!({
        "name": "step",
        "image": container["image"],
        "command": container["command"],
        "args": words,
        "env": env,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container["securityContext"],
        "volumeMounts": kept(&container["volumeMounts"]),
    });
    let mut volumes = kept(&spec["volumes"]);
    for volume in volumes.iter_mut().filter(|v| v["name"] == "job") {
        volume["configMap"]["name"] = json!(of.manifest);
    }
    spec["volumes"] = json!(volumes);
    spec["restartPolicy"] = json!("OnFailure");
    spec["activeDeadlineSeconds"] = json!(DEADLINE);
    spec["terminationGracePeriodSeconds"] = json!(5);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("topologySpreadConstraints");
    }
    if of.orphaned && spec["serviceAccountName"] == names::workers(of.job) {
        spec["serviceAccountName"] = json!("default");
    }
    let mut labels = json!({
        // Not the name of workers: Service, policy and budget pick them by it.
        "app.kubernetes.io/name": "penstock-step",
        "app.kubernetes.io/component": "step",
        "app.kubernetes.io/part-of": "penstock",
        "app.kubernetes.io/managed-by": MANAGER,
        JOB: of.job,
    });
    if of.owner["kind"] == "Savepoint" {
        labels[SAVEPOINT] = of.owner["name"].clone();
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names::step(of.name, step.name()),
            "namespace": of.namespace,
            "labels": labels,
            "ownerReferences": [of.owner],
        },
        "spec": spec,
    }))
}

/// Volumes, or mounts of them, without the state and the certificate, which went with the workers.
fn kept(all: &Value) -> Vec<Value> {
    let gone = |v: &&Value| v["name"] != names::CLAIM && v["name"] != names::CERTIFICATE;
    all.as_array()
        .into_iter()
        .flatten()
        .filter(gone)
        .cloned()
        .collect()
}

/// Whether a pod is a worker, and no step.
pub fn is_worker(component: Option<&String>) -> bool {
    component.is_none_or(|c| c == WORKER)
}
