//! A job that is deleted, and leaves nothing behind, or a savepoint: its workers stop at a barrier, then a step on its log does what
//! `deletionPolicy` says, then it may go. Nothing here needs a healthy job, and nothing waits for ever.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use penstock_crds::job::DeletionPolicy;
use penstock_crds::savepoint::SavepointPhase;
use serde_json::{Value, json};

use super::savepoint::is_of_nothing;
use super::{Decision, Doomed, Event, POLL, SOON, faults, known, standing_still};
use crate::build::{self, For, Size, Step};
use crate::facts::{Facts, StepState, step_state};
use crate::issue;
use crate::kind::Kind;
use crate::names::{self, FINALIZER, SKIP_CLEANUP};
use crate::settings::Settings;
use crate::status::Reason;
use crate::version::name_of;

/// How long a clean-up may take, from the deletion.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Whether the job is to be held until it was cleaned up after.
pub fn is_held(facts: &Facts) -> bool {
    let all = facts.job.metadata.finalizers.as_ref();
    all.is_some_and(|f| f.iter().any(|f| f == FINALIZER))
}

/// Whether an object's clean-up is to be left out, by a person's word.
pub fn is_skipped(annotations: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    annotations
        .and_then(|a| a.get(SKIP_CLEANUP))
        .map(String::as_str)
        == Some("true")
}

/// Whether the time for it is over.
pub fn is_overdue(deleted: Option<i64>, now: i64) -> bool {
    deleted.is_some_and(|at| now - at >= PATIENCE.as_secs() as i64)
}

/// The finalizer of a deletion that takes the children first (`--cascade=foreground`, which GitOps tools use).
const CHILDREN_FIRST: &str = "foregroundDeletion";

/// What remains to be done for a job that is deleted.
pub fn decide(facts: &Facts, settings: &Settings) -> Decision {
    let waiting = |message: String| Decision {
        again: SOON,
        // Volumes stay or go by the policy.
        abandon: Vec::new(),
        ..standing_still(facts, Reason::Deleting, message)
    };
    if !is_held(facts) {
        // Children go with their owner.
        return Decision {
            again: POLL,
            ..waiting("everything that was made for it goes with it".to_owned())
        };
    }
    let policy = facts.job.spec.deletion_policy;
    if is_skipped(facts.job.metadata.annotations.as_ref()) {
        let note =
            "its log stays in the checkpoint storage: the clean-up was skipped by annotation";
        return released(facts, true, "CleanupSkipped", note.to_owned());
    }
    let deleted = facts.job.metadata.deletion_timestamp.as_ref();
    if is_overdue(deleted.map(|t| t.0.as_second()), facts.now.timestamp()) {
        let note = format!(
            "its log stays in the checkpoint storage: the clean-up did not end within {} minutes",
            PATIENCE.as_secs() / 60
        );
        return released(facts, true, "CleanupGivenUp", note);
    }
    let mut finalizers = facts.job.metadata.finalizers.iter().flatten();
    if finalizers.any(|f| f == CHILDREN_FIRST) {
        // What would be made now would go with them.
        return waiting(
            "the workers stop at a barrier, with everything that was made for it".to_owned(),
        );
    }
    let ran = facts.job.status.as_ref().and_then(|s| s.version.as_ref());
    let ran = ran.map(|v| v.plan_hash.as_str());
    let wanted = name_of(&facts.job);
    let names = facts
        .running_version()
        .into_iter()
        .chain(ran)
        .chain([wanted.as_str()]);
    let mut versions = names.filter_map(|name| known(facts, name));
    let version = match versions.next() {
        Some(version) => version,
        None if ran.is_none() && !faults(facts, settings).is_empty() => {
            return released(facts, false, "Deleted", "it never ran".to_owned());
        }
        None => {
            // Gone with the children, or never made: the step finds out whether there is a log.
            let version = build::make_version(&facts.job, settings, None);
            let mut apply = build::surroundings(&facts.job, &version, settings);
            apply.retain(|c| matches!(c.kind, Kind::ServiceAccount | Kind::ConfigMap));
            return Decision {
                apply,
                ..waiting("its last steps are prepared".to_owned())
            };
        }
    };
    if !facts.pods.is_empty() || may_start(facts) {
        let state = super::volumes::of_the_set(facts);
        let issue = issue::of(&facts.job, &version.name, &facts.authority, facts.now);
        let memory = facts.memory();
        let set = build::stateful_set(&facts.job, &version, Size(0), &memory, &state, &issue);
        return Decision {
            apply: vec![set],
            ..waiting("the workers stop at a barrier".to_owned())
        };
    }
    let uid = facts.job.metadata.uid.clone().unwrap_or_default();
    match policy {
        DeletionPolicy::Retain => released(facts, false, "Deleted", "its log stays".to_owned()),
        DeletionPolicy::Savepoint => {
            let name = names::farewell(facts.name(), &uid);
            let status = facts
                .farewell
                .as_ref()
                .map(|s| s.status.clone().unwrap_or_default());
            match status {
                Some(s) if s.phase == Some(SavepointPhase::Completed) => {
                    let note = format!("savepoint {name} keeps epoch {}", s.epoch.unwrap_or(0));
                    released(facts, false, "SavepointKept", note)
                }
                Some(s) if is_of_nothing(&s) => {
                    let note = "it committed nothing: there is nothing to keep";
                    released(facts, false, "NothingToKeep", note.to_owned())
                }
                Some(_) => waiting(format!("savepoint {name} is made")),
                None => Decision {
                    savepoint: Some(savepoint(facts, &name)),
                    ..waiting(format!("savepoint {name} is made"))
                },
            }
        }
        DeletionPolicy::Delete => {
            let manifest = names::version(facts.name(), &version.name);
            let of = For {
                namespace: facts.job.metadata.namespace.as_deref().unwrap_or_default(),
                job: facts.name(),
                owner: build::owner(&facts.job),
                name: facts.name(),
                manifest: &manifest,
                orphaned: false,
            };
            let step = Step::Remove;
            let pod = names::step(facts.name(), step.name());
            match step_state(&facts.steps, &pod) {
                StepState::Done(answer) => {
                    let note = match answer["pinned"].as_array() {
                        Some(pins) => format!(
                            "its log is removed but for what savepoints keep: {}",
                            Value::from(pins.clone())
                        ),
                        None => "its log is removed".to_owned(),
                    };
                    released(facts, false, "CheckpointRemoved", note)
                }
                StepState::Running(None) => waiting("its log is being removed".to_owned()),
                StepState::Running(Some(why)) => {
                    waiting(format!("its log cannot be removed yet: {why}"))
                }
                StepState::Over => Decision {
                    replace: outlived(facts, &pod),
                    ..waiting("its log is being removed, by another pod".to_owned())
                },
                StepState::Absent => Decision {
                    steps: build::step_pod(&of, &version, &step).into_iter().collect(),
                    ..waiting("its log is being removed".to_owned())
                },
            }
        }
    }
}

/// Whether a pod may still come: the StatefulSet is the newer truth, a pod of it may not have been seen yet.
fn may_start(facts: &Facts) -> bool {
    let foreign = facts.is_foreign(Kind::StatefulSet, &names::workers(facts.name()));
    let Some(set) = facts.stateful_set.as_ref().filter(|_| !foreign) else {
        return false;
    };
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let there = set.status.as_ref().map_or(0, |s| s.replicas);
    wanted != 0 || there != 0
}

/// The pod of a step that ended for good without an answer, as one that goes: the next look makes it anew.
fn outlived(facts: &Facts, name: &str) -> Vec<Doomed> {
    let named = |p: &&Pod| p.metadata.name.as_deref() == Some(name);
    let pod = facts.steps.iter().find(named);
    pod.and_then(Doomed::of).into_iter().collect()
}

fn released(facts: &Facts, warning: bool, reason: &'static str, note: String) -> Decision {
    Decision {
        hold: Some(false),
        events: vec![Event {
            warning,
            reason,
            note: note.clone(),
        }],
        again: POLL,
        ..standing_still(facts, Reason::Deleting, note)
    }
}

fn savepoint(facts: &Facts, name: &str) -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "Savepoint",
        "metadata": {
            "name": name,
            "namespace": facts.job.metadata.namespace,
            "labels": {names::JOB: facts.name(), "app.kubernetes.io/managed-by": names::MANAGER},
        },
        "spec": {"jobRef": {"name": facts.name()}},
    })
}
