//! What the controller knows of one job at one moment. Read by `observe`, judged by `decide`; nothing else reaches a decision.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, ServiceAccount};
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::JobStatus;
use penstock_crds::savepoint::Savepoint;
use penstock_crds::units::Timestamp;
use serde_json::Value;

use crate::autoscale::History;
use crate::kind::Kind;
use crate::names::{self, GENERATION, MEMORY, VERSION};

/// Everything about one job.
#[derive(Debug, Clone)]
pub struct Facts {
    pub now: DateTime<Utc>,
    pub job: StreamingJob,
    /// Objects by kind and name that have a child's name, whoever owns them.
    pub objects: BTreeMap<(Kind, String), Value>,
    pub stateful_set: Option<StatefulSet>,
    /// Its workers.
    pub pods: Vec<Pod>,
    /// Pods of steps on its log.
    pub steps: Vec<Pod>,
    /// The savepoint that its spec restores from, if it is there.
    pub restores_from: Option<Savepoint>,
    /// The savepoint that it leaves when it is deleted.
    pub farewell: Option<Savepoint>,
    pub claims: Vec<PersistentVolumeClaim>,
    /// ConfigMaps of versions, by name of the version.
    pub versions: BTreeMap<String, ConfigMap>,
    /// What the job's coordinator said last.
    pub said: Option<Said>,
    /// What was heard of its load.
    pub load: History,
    /// The service account that the spec names, if it names one that is there.
    pub account: Option<ServiceAccount>,
    /// The identity of the authority that signs certificates.
    pub authority: String,
    /// What is wrong with the SQL of a version that was not made yet, in the words of `penstock lint`.
    pub sql_faults: Vec<String>,
}

/// What a coordinator answered, or why it did not.
#[derive(Debug, Clone)]
pub struct Said {
    pub at: DateTime<Utc>,
    pub status: Result<JobStatus, String>,
}

impl Said {
    /// The worker that coordinates, as far as was heard.
    pub fn coordinator(&self) -> u32 {
        let said = self.status.as_ref().ok();
        said.and_then(|s| s.coordinator).unwrap_or(0)
    }

    /// What counts as said now: not older than a few polls.
    pub fn now(&self, now: DateTime<Utc>) -> Option<&JobStatus> {
        const FRESH: Duration = Duration::from_secs(60);
        let age = (now - self.at).to_std().unwrap_or_default();
        self.status.as_ref().ok().filter(|_| age < FRESH)
    }
}

impl Facts {
    /// Of a job of which nothing else is known, at this moment.
    pub fn of(job: StreamingJob, now: DateTime<Utc>) -> Self {
        Self {
            now,
            job,
            objects: BTreeMap::new(),
            stateful_set: None,
            pods: Vec::new(),
            steps: Vec::new(),
            restores_from: None,
            farewell: None,
            claims: Vec::new(),
            versions: BTreeMap::new(),
            said: None,
            load: History::default(),
            account: None,
            authority: String::new(),
            sql_faults: Vec::new(),
        }
    }

    pub fn name(&self) -> &str {
        self.job.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether an object of a child's name belongs to somebody else.
    pub fn is_foreign(&self, kind: Kind, name: &str) -> bool {
        let Some(object) = self.objects.get(&(kind, name.to_owned())) else {
            return false;
        };
        let owners = object["metadata"]["ownerReferences"].as_array();
        let uid = self.job.metadata.uid.as_deref();
        !owners.is_some_and(|o| o.iter().any(|o| o["uid"].as_str() == uid))
    }

    /// The version that the StatefulSet is to run.
    pub fn running_version(&self) -> Option<&str> {
        version_that_runs(self.stateful_set.as_ref()?)
    }

    /// What the StatefulSet remembers.
    pub fn memory(&self) -> Memory {
        let set = self.stateful_set.as_ref();
        set.and_then(memory).unwrap_or_default()
    }

    /// Whether the StatefulSet was written for a newer edit than the job at hand, which is out of a cache that lags behind: to
    /// act on it would run a version again that was left already.
    pub fn is_behind(&self) -> bool {
        let uid = self.job.metadata.uid.as_deref();
        let set = self.stateful_set.as_ref().filter(|s| {
            let owners = s.metadata.owner_references.iter().flatten();
            owners.into_iter().any(|o| Some(o.uid.as_str()) == uid)
        });
        let annotations = set.and_then(|s| s.metadata.annotations.as_ref());
        let written_for: Option<i64> = annotations.and_then(|a| a.get(GENERATION)?.parse().ok());
        written_for > self.job.metadata.generation
    }

    /// Workers that were asked for last.
    pub fn asked_for(&self) -> Option<u32> {
        let set = self.stateful_set.as_ref()?.spec.as_ref()?;
        u32::try_from(set.replicas?).ok()
    }

    /// Workers that are ready.
    pub fn ready(&self) -> usize {
        self.pods.iter().filter(|p| is_ready(p)).count()
    }

    /// What the coordinator says now: not older than a few polls.
    pub fn status(&self) -> Option<&JobStatus> {
        self.said.as_ref()?.now(self.now)
    }
}

/// The version of a pod.
pub fn version_of(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(VERSION).map(String::as_str)
}

/// Whether a pod's containers are ready and it is not on its way out.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What the StatefulSet remembers.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// The version whose results are published: what a failed upgrade goes back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
    /// The version that is on its way, and since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// A version that failed. It is not tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// How the run of a version ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Trial {
    pub version: String,
    pub since: Timestamp,
    /// It ran: what keeps it from running later is not the change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ran: bool,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RolledBack {
    pub version: String,
    pub why: GaveUp,
}

/// How the run of a version ended: kept by the StatefulSet once the pods are gone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ended {
    pub version: String,
    /// What a person had ordered by then: a new order is a new try.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub orders: String,
    /// Why it failed for good; absent when it completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<GaveUp>,
}

/// Why the container of a worker ended for good, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GaveUp {
    pub code: String,
    pub message: String,
}

/// How far a step on a log is.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    /// Nobody has begun it.
    Absent,
    /// On its way; what kept its last try from succeeding.
    Running(Option<String>),
    /// Its pod has ended for good, evicted or out of time, without an answer: another one can try.
    Over,
    /// It has ended, with this answer.
    Done(Value),
}

/// The state of the step whose pod has this name.
pub fn step_state(steps: &[Pod], name: &str) -> StepState {
    let named = |p: &&Pod| p.metadata.name.as_deref() == Some(name);
    let Some(pod) = steps.iter().find(named) else {
        return StepState::Absent;
    };
    let status = pod.status.as_ref();
    let container = status
        .and_then(|s| s.container_statuses.as_ref())
        .and_then(|all| all.first());
    let state = container.and_then(|c| c.state.as_ref());
    let ended = state.and_then(|s| s.terminated.as_ref());
    if let Some(ended) = ended.filter(|e| e.exit_code == 0) {
        let answer = ended.message.as_deref().unwrap_or_default();
        return StepState::Done(serde_json::from_str(answer).unwrap_or_default());
    }
    if status.and_then(|s| s.phase.as_deref()) == Some("Failed") {
        return StepState::Over;
    }
    let before = container.and_then(|c| c.last_state.as_ref());
    let failed = ended.or_else(|| before.and_then(|s| s.terminated.as_ref()));
    let words = failed.and_then(|f| f.message.as_deref()).map(|m| {
        let said: Value = serde_json::from_str(m).unwrap_or_default();
        match (said["message"].as_str(), said["code"].as_str()) {
            (Some(text), Some(code)) => format!("{text} [{code}]"),
            _ => m.to_owned(),
        }
    });
    let waits = || {
        let waiting = state.and_then(|s| s.waiting.as_ref())?;
        let reason = waiting.reason.clone()?;
        (reason != "ContainerCreating").then_some(reason)
    };
    StepState::Running(words.or_else(waits))
}

/// What a supervisor wrote as it gave up.
pub fn gave_up(pod: &Pod) -> Option<GaveUp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let state = statuses.iter().find(|s| s.name == "worker")?;
    let ended = state.state.as_ref().and_then(|s| s.terminated.as_ref());
    let ended = ended.or_else(|| {
        let last = state.last_state.as_ref();
        last.and_then(|s| s.terminated.as_ref())
    })?;
    serde_json::from_str(ended.message.as_deref()?).ok()
}

/// A label of an object.
pub fn job_of(labels: Option<&BTreeMap<String, String>>) -> Option<&str> {
    labels?.get(names::JOB).map(String::as_str)
}

fn version_that_runs(set: &StatefulSet) -> Option<&str> {
    let template = set.spec.as_ref()?.template.metadata.as_ref()?;
    let version = template.annotations.as_ref()?.get(VERSION);
    version.map(String::as_str)
}

fn memory(set: &StatefulSet) -> Option<Memory> {
    let memory = set.metadata.annotations.as_ref()?.get(MEMORY)?;
    serde_json::from_str(memory).ok()
}

/// Versions that a StatefulSet cannot do without: the one that runs, and the one that may run again.
pub fn versions_of(set: &StatefulSet) -> BTreeSet<String> {
    let runs = version_that_runs(set).map(str::to_owned);
    let accepted = memory(set).and_then(|m| m.accepted);
    runs.into_iter().chain(accepted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_older_edit_than_the_one_that_was_acted_on_is_out_of_a_cache_that_lags_behind() {
        let job = crate::build::tests::job();
        let written_for = |generation: &str, uid: &str| {
            let owner =
                json!({"apiVersion": "v1", "kind": "StreamingJob", "name": "payments", "uid": uid});
            let metadata =
                json!({"annotations": {GENERATION: generation}, "ownerReferences": [owner]});
            Facts {
                stateful_set: serde_json::from_value(json!({"metadata": metadata})).unwrap(),
                ..Facts::of(job.clone(), DateTime::UNIX_EPOCH)
            }
        };
        let uid = job.metadata.uid.clone().unwrap();
        assert!(written_for("2", &uid).is_behind());
        assert!(!written_for("1", &uid).is_behind());
        // That of an earlier job of this name says nothing of this one.
        assert!(!written_for("2", "another").is_behind());
    }
}
