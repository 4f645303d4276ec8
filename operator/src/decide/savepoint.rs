//! What to do about a Savepoint: pure. A job that runs is asked to pin an epoch, and says itself when everything up to it is
//! published; for one that does not run, a step on its log pins the epoch where it ended.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::JobStatus;
use penstock_crds::savepoint::{Savepoint, SavepointPhase, SavepointStatus};
use penstock_crds::units::Timestamp;
use serde_json::{Value, json};

use super::farewell::{is_overdue, is_skipped};
use super::{Event, POLL, SOON};
use crate::build::{For, Step, step_pod};
use crate::facts::{StepState, step_state};
use crate::names::{self, FINALIZER};
use crate::settings::Settings;
use crate::status::{bounded, time};
use crate::version::{MANIFEST, TEMPLATE, Version, log_id, log_id_in};

/// Everything about one savepoint.
#[derive(Debug, Clone)]
pub struct SavepointFacts {
    pub now: DateTime<Utc>,
    pub savepoint: Savepoint,
    /// The job, if there is one of this name.
    pub job: Option<StreamingJob>,
    /// Its workers' pods.
    pub workers: usize,
    /// What its coordinator says now.
    pub said: Option<JobStatus>,
    /// The version that the job runs, or ran last.
    pub version: Option<ConfigMap>,
    /// What the savepoint keeps of the job, to be able to speak to its log when the job is gone.
    pub kept: Option<ConfigMap>,
    /// Pods of steps of this savepoint.
    pub steps: Vec<Pod>,
}

/// What is asked of a running job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Pin,
    Unpin,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct SavepointDecision {
    /// Whether the savepoint is to be held when it is deleted; `None`: as it is.
    pub hold: Option<bool>,
    /// The ConfigMap that it keeps.
    pub keep: Option<Value>,
    pub ask: Option<Ask>,
    /// The pod of a step that is to be there.
    pub step: Option<Value>,
    /// A step's pod that has done its work.
    pub sweep: Option<String>,
    pub status: SavepointStatus,
    pub events: Vec<Event>,
    pub again: Duration,
}

/// A label of pods holds it.
const LONGEST: usize = 63;

/// Of a job without a log.
const NOTHING_TO_KEEP: &str = "NothingToKeep";

/// Whether it found that there is nothing to keep.
pub fn is_of_nothing(status: &SavepointStatus) -> bool {
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.is_some_and(|c| c.reason == NOTHING_TO_KEEP)
}

/// Where a savepoint stands.
struct Standing {
    phase: SavepointPhase,
    reason: &'static str,
    message: String,
    epoch: Option<u64>,
    bytes: Option<u64>,
}

pub fn decide(facts: &SavepointFacts, settings: &Settings) -> SavepointDecision {
    let own;
    let facts = match is_of_another(facts) {
        true => {
            own = SavepointFacts {
                job: None,
                workers: 0,
                said: None,
                ..facts.clone()
            };
            &own
        }
        false => facts,
    };
    let before = facts.savepoint.status.clone().unwrap_or_default();
    let mut decision = SavepointDecision {
        hold: None,
        keep: None,
        ask: None,
        step: None,
        sweep: None,
        status: before.clone(),
        events: Vec::new(),
        again: POLL,
    };
    let held = facts.savepoint.metadata.finalizers.as_ref();
    let held = held.is_some_and(|f| f.iter().any(|f| f == FINALIZER));
    if facts.savepoint.metadata.deletion_timestamp.is_some() {
        if held {
            give_up(facts, &mut decision);
        }
        return decision;
    }
    if before.phase == Some(SavepointPhase::Completed) {
        decision.sweep = swept(facts);
        return decision;
    }
    let fits = names_of(facts).0.len() <= LONGEST;
    // Before anything is pinned: or nobody would know that there is something to unpin.
    if !held && fits {
        decision.hold = Some(true);
    }
    if facts.kept.is_none() && fits {
        decision.keep = facts.version.as_ref().map(|version| kept(facts, version));
    }
    let standing = proceed(facts, &mut decision);
    if standing.phase == SavepointPhase::Pending {
        decision.again = SOON;
    }
    let told = before.conditions.iter().find(|c| c.type_ == "Ready");
    if told.map(|c| c.reason.as_str()) != Some(standing.reason) {
        decision.events.push(Event {
            warning: standing.phase == SavepointPhase::Failed,
            reason: standing.reason,
            note: standing.message.clone(),
        });
    }
    decision.status = status(facts, settings, &before, &standing);
    decision
}

/// Whether the job of this name is a later one, with a log of its own, than the savepoint is of: what that says, or has, is not about
/// this epoch. One that adopted the log has it.
fn is_of_another(facts: &SavepointFacts) -> bool {
    let Some(job) = &facts.job else {
        return false;
    };
    let kept = facts.kept.as_ref().and_then(|k| Version::read(k, "kept"));
    let Some(origin) = kept.and_then(|v| log_id_in(&v.template)) else {
        return false;
    };
    let status = facts.savepoint.status.as_ref();
    let place = status.and_then(|s| s.location.as_deref());
    let log = place.and_then(|url| url.rsplit('/').next());
    if log_id(job).as_ref() == Some(&origin) {
        return false;
    }
    match &facts.said {
        Some(said) => said.log_id != origin && Some(said.log_id.as_str()) != log,
        // Workers that have not answered may have adopted it.
        None => facts.workers == 0,
    }
}

/// Brings a savepoint forward.
fn proceed(facts: &SavepointFacts, decision: &mut SavepointDecision) -> Standing {
    let name = names_of(facts).0;
    let pending = |reason, message: &str| Standing {
        phase: SavepointPhase::Pending,
        reason,
        message: message.to_owned(),
        epoch: None,
        bytes: None,
    };
    if name.len() > LONGEST {
        return Standing {
            phase: SavepointPhase::Failed,
            ..pending(
                "NameTooLong",
                &format!("a savepoint's name has at most {LONGEST} characters"),
            )
        };
    }
    let Some(job) = &facts.job else {
        return Standing {
            phase: SavepointPhase::Failed,
            ..pending(
                "JobNotFound",
                "there is no job of this name in the namespace",
            )
        };
    };
    if let Some(said) = &facts.said {
        // What a step found is old by now.
        decision.sweep = swept(facts);
        let there = said.savepoints.iter().find(|s| s.name == name);
        return match there {
            Some(s) if s.completed => completed(s.epoch, s.bytes),
            Some(s) => Standing {
                epoch: Some(s.epoch),
                ..pending(
                    "Publishing",
                    "the epoch is pinned; its results are not all published yet",
                )
            },
            None => {
                decision.ask = Some(Ask::Pin);
                match said.on_trial {
                    true => pending(
                        "OnTrial",
                        "a changed job is on trial: the savepoint follows when it is accepted",
                    ),
                    false => pending("Requested", "the job pins its next epoch"),
                }
            }
        };
    }
    if facts.workers > 0 {
        return pending("JobNotReady", "the job does not answer yet");
    }
    if job.metadata.deletion_timestamp.is_none() && !rests(job) {
        return pending("JobNotReady", "the job has no workers yet");
    }
    let step = Step::Savepoint(name.to_owned());
    let named = names::step(&pod_name(facts), step.name());
    match step_state(&facts.steps, &named) {
        StepState::Done(answer) => match answer["epoch"].as_u64() {
            Some(epoch) if answer["completed"] == true => {
                completed(epoch, answer["bytes"].as_u64().unwrap_or(0))
            }
            _ if answer["nothing"] == true => Standing {
                phase: SavepointPhase::Failed,
                ..pending(
                    NOTHING_TO_KEEP,
                    "the job has committed nothing yet, so there is nothing to keep",
                )
            },
            epoch => Standing {
                epoch,
                ..pending(
                    "Publishing",
                    "the epoch is pinned; its results are not all published: they are when the job runs again",
                )
            },
        },
        StepState::Over => {
            decision.sweep = Some(named);
            pending(
                "Pinning",
                "a step ended without an answer, another one follows",
            )
        }
        StepState::Running(None) => pending(
            "Pinning",
            "a step on the job's log pins the epoch where it ended",
        ),
        StepState::Running(Some(why)) => pending(
            "StepFailing",
            &format!("the step on the job's log does not succeed: {why}"),
        ),
        StepState::Absent => {
            decision.step = pod(facts, &step, false);
            match decision.step.as_ref().or(decision.keep.as_ref()) {
                Some(_) => pending(
                    "Pinning",
                    "a step on the job's log pins the epoch where it ended",
                ),
                None => pending("JobNotReady", "the job never ran"),
            }
        }
    }
}

/// A job that has no workers because it is to have none.
fn rests(job: &StreamingJob) -> bool {
    use penstock_crds::job::Phase;
    let phase = job.status.as_ref().and_then(|s| s.phase);
    matches!(
        phase,
        Some(Phase::Suspended | Phase::Completed | Phase::Failed)
    )
}

fn completed(epoch: u64, bytes: u64) -> Standing {
    Standing {
        phase: SavepointPhase::Completed,
        reason: "Completed",
        message: format!("epoch {epoch} is kept, and everything up to it is published"),
        epoch: Some(epoch),
        bytes: Some(bytes),
    }
}

/// A savepoint that is deleted is unpinned first; not for ever.
fn give_up(facts: &SavepointFacts, decision: &mut SavepointDecision) {
    let metadata = &facts.savepoint.metadata;
    let deleted = metadata
        .deletion_timestamp
        .as_ref()
        .map(|t| t.0.as_second());
    let mut release = |warning: bool, reason: &'static str, note: &str| {
        decision.hold = Some(false);
        decision.events.push(Event {
            warning,
            reason,
            note: note.to_owned(),
        });
    };
    if is_skipped(metadata.annotations.as_ref()) {
        return release(
            true,
            "CleanupSkipped",
            "its epoch stays pinned in the job's log: the clean-up was skipped by annotation",
        );
    }
    if is_overdue(deleted, facts.now.timestamp()) {
        return release(
            true,
            "CleanupGivenUp",
            "its epoch stays pinned in the job's log: nobody could unpin it in time",
        );
    }
    if facts.kept.is_none() {
        return release(false, "Deleted", "nothing was pinned for it");
    }
    if let Some(said) = &facts.said {
        let name = names_of(facts).0;
        if said.savepoints.iter().any(|s| s.name == name) {
            decision.ask = Some(Ask::Unpin);
            decision.again = SOON;
            return;
        }
        return release(
            false,
            "Unpinned",
            "the job's log does not keep its epoch any more",
        );
    }
    decision.again = SOON;
    if facts.workers > 0 {
        return;
    }
    let step = Step::Unpin(names_of(facts).0.to_owned());
    let named = names::step(&pod_name(facts), step.name());
    match step_state(&facts.steps, &named) {
        StepState::Done(_) => release(
            false,
            "Unpinned",
            "the job's log does not keep its epoch any more",
        ),
        StepState::Running(_) => {}
        StepState::Over => decision.sweep = Some(named),
        StepState::Absent => decision.step = pod(facts, &step, facts.job.is_none()),
    }
}

/// The name of the savepoint and that of its job.
fn names_of(facts: &SavepointFacts) -> (&str, &str) {
    let name = facts.savepoint.metadata.name.as_deref().unwrap_or_default();
    (name, &facts.savepoint.spec.job_ref.name)
}

/// What pods of its steps are called by.
fn pod_name(facts: &SavepointFacts) -> String {
    format!("{}-savepoint", names_of(facts).0)
}

fn owner(savepoint: &Savepoint) -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "Savepoint",
        "name": savepoint.metadata.name,
        "uid": savepoint.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// What a savepoint keeps of its job.
fn kept(facts: &SavepointFacts, version: &ConfigMap) -> Value {
    let (name, job) = names_of(facts);
    let data = version.data.clone().unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names::step(name, "savepoint"),
            "namespace": facts.savepoint.metadata.namespace,
            "labels": {
                "app.kubernetes.io/name": "penstock-savepoint",
                "app.kubernetes.io/part-of": "penstock",
                "app.kubernetes.io/managed-by": names::MANAGER,
                names::SAVEPOINT: name,
                names::JOB: job,
            },
            "ownerReferences": [owner(&facts.savepoint)],
        },
        "immutable": true,
        "data": {MANIFEST: data.get(MANIFEST), TEMPLATE: data.get(TEMPLATE)},
    })
}

fn pod(facts: &SavepointFacts, step: &Step, orphaned: bool) -> Option<Value> {
    let (_, job) = names_of(facts);
    let name = pod_name(facts);
    let version = Version::read(facts.kept.as_ref()?, "kept")?;
    let of = For {
        namespace: facts.savepoint.metadata.namespace.as_deref()?,
        job,
        owner: owner(&facts.savepoint),
        name: &name,
        manifest: &names::step(names_of(facts).0, "savepoint"),
        orphaned,
    };
    step_pod(&of, &version, step)
}

/// The pod that pinned, once nobody reads its answer any more.
fn swept(facts: &SavepointFacts) -> Option<String> {
    let pod = facts.steps.first()?;
    pod.metadata.name.clone()
}

fn status(
    facts: &SavepointFacts,
    settings: &Settings,
    before: &SavepointStatus,
    standing: &Standing,
) -> SavepointStatus {
    let done = standing.phase == SavepointPhase::Completed;
    let failed = standing.phase == SavepointPhase::Failed;
    let mut wanted = vec![("Ready", done)];
    if failed {
        wanted.push(("Stalled", true));
    } else if !done {
        wanted.push(("Reconciling", true));
    }
    let generation = facts.savepoint.metadata.generation;
    let conditions = wanted.into_iter().map(|(type_, is)| {
        let status = if is { "True" } else { "False" };
        let old = before
            .conditions
            .iter()
            .find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: standing.reason.to_owned(),
            message: bounded(&standing.message),
            observed_generation: generation,
            last_transition_time: old
                .map_or_else(|| time(facts.now), |c| c.last_transition_time.clone()),
        }
    });
    SavepointStatus {
        observed_generation: generation,
        conditions: conditions.collect(),
        phase: Some(standing.phase),
        epoch: standing.epoch,
        location: standing.epoch.and_then(|_| location(facts, settings)),
        bytes: standing.bytes.filter(|b| *b > 0),
        completed_at: done
            .then(|| Timestamp::from_epoch_millis(facts.now.timestamp_millis()))
            .flatten(),
    }
}

/// URL of the log. An adopted one has not the job's own identity: the job says which it is.
fn location(facts: &SavepointFacts, settings: &Settings) -> Option<String> {
    let job = facts.job.as_ref()?;
    let storage = job.spec.checkpoint.storage.as_ref();
    let storage = storage.or(settings.storage.as_ref())?;
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let url = super::restore::url(storage, namespace)?;
    let told = facts.said.as_ref().map(|s| s.log_id.clone());
    let known = job.status.as_ref().and_then(|s| s.log_id.clone());
    let log = told.or(known).or_else(|| log_id(job))?;
    Some(format!("{url}/{}/{log}", names_of(facts).1))
}

#[cfg(test)]
mod tests;
