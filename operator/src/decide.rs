//! What to do about a job: pure. The same facts give the same decision, in the controller and in every test.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use penstock_crds::codes::Code;
use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::{
    DeletionPolicy, Phase, StreamingJob, StreamingJobStatus, Trigger, UpgradeStrategy,
};
use penstock_crds::units::Quantity;
use penstock_crds::validate::{self, Place};
use serde_json::Value;

use crate::autoscale;
use crate::build::{self, Child, Size};
use crate::facts::{Ended, Facts, Memory, gave_up, is_ready, version_of};
use crate::issue::{self, Issue};
use crate::kind::Kind;
use crate::names;
use crate::settings::Settings;
use crate::status::{self, Reason, Standing};
use crate::version::{Version, name_of};

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// A certificate that is made now: before the StatefulSet, whose pods mount it.
    pub certificate: Option<Issue>,
    /// Children as they should be.
    pub apply: Vec<Child>,
    /// Pods to delete, so that they come back with the StatefulSet's template.
    pub replace: Vec<Doomed>,
    /// Pods whose node is lost: nobody waits for their goodbye. A zombie is fenced by the job's log.
    pub force: Vec<Doomed>,
    /// Claims that keep their pod from every node that is left: what they hold is in the checkpoint storage.
    pub abandon: Vec<String>,
    /// Claims that are to be larger, and how large.
    pub grow: Vec<(String, Quantity)>,
    /// Children that nothing needs any more.
    pub remove: Vec<(Kind, String)>,
    /// Pods of steps on the log that are to be there.
    pub steps: Vec<Value>,
    /// A savepoint that is to be there.
    pub savepoint: Option<Value>,
    /// Whether the job is to be held, when it is deleted, until it was cleaned up after; `None`: as it is.
    pub hold: Option<bool>,
    pub status: StreamingJobStatus,
    pub events: Vec<Event>,
    pub again: Duration,
}

/// A pod that is to go: this one, and not its successor of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    pub name: String,
    pub uid: String,
    /// Seconds for its goodbye; `None`: as long as it was given.
    pub grace: Option<u32>,
}

impl Doomed {
    fn of(pod: &Pod) -> Option<Self> {
        Some(Self {
            name: pod.metadata.name.clone()?,
            uid: pod.metadata.uid.clone()?,
            grace: None,
        })
    }
}

/// Something worth telling, on the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub warning: bool,
    pub reason: &'static str,
    pub note: String,
}

/// How often a job that runs is asked how far it is.
pub const POLL: Duration = Duration::from_secs(15);
/// How often one that is on its way is looked at.
const SOON: Duration = Duration::from_secs(2);
/// What a worker says that finds the log of an earlier job of this name.
const PRIOR_LOG: &str = "PR0407";
/// Input that is gone.
const DATA_LOSS: &str = "PR0207";
/// A log that was written by a newer engine.
const NEWER_LOG: &str = "PR0406";

pub fn decide(facts: &Facts, settings: &Settings) -> Decision {
    if facts.job.metadata.deletion_timestamp.is_some() {
        return farewell::decide(facts, settings);
    }
    let faults = faults(facts, settings);
    if !faults.is_empty() {
        return refused(facts, faults);
    }
    let wanted = name_of(&facts.job);
    let mut memory = facts.memory().next(facts, &wanted);
    let version = match known(facts, memory.to_run(&wanted).0) {
        Some(version) => version,
        None => match restore::place(facts, settings) {
            Ok(savepoint) => {
                let settings = with_own_storage(facts, settings);
                build::make_version(&facts.job, &settings, savepoint.as_deref())
            }
            Err((reason, message)) => return standing_still(facts, reason, message),
        },
    };
    memory.ended = ended(facts, &memory, &version);
    let scaling = autoscale::of(&facts.job, &facts.load, facts.asked_for(), facts.now);
    let scaling = scaling.filter(|_| autoscale::is_active(&facts.job));
    let size = match memory.ended {
        Some(_) => Size(0),
        None if facts.job.spec.suspend => Size(0),
        None => match scaling {
            Some(decision) => Size(decision.workers),
            None => Size(facts.job.spec.workers.replicas.unwrap_or(1)),
        },
    };
    let scaled = scaling.and_then(|decision| scaled(facts, size, decision));
    let mut apply = build::surroundings(&facts.job, &version, settings);
    let state = volumes::of_the_set(facts);
    let issue = issue::of(&facts.job, &version.name, &facts.authority, facts.now);
    let named = facts.stateful_set.as_ref().and_then(issue::named_by);
    let is_made = named == Some(issue.secret.as_str());
    apply.push(build::stateful_set(
        &facts.job, &version, size, &memory, &state, &issue,
    ));
    let foreign: Vec<&Child> = apply
        .iter()
        .filter(|c| facts.is_foreign(c.kind, &c.name))
        .collect();
    if let Some(child) = foreign.first() {
        let text = format!(
            "{} {} exists and belongs to somebody else: rename the job, or remove it",
            child.kind.api().2,
            child.name
        );
        return standing_still(facts, Reason::ForeignObject, text);
    }
    let replace = outdated(facts, &version);
    let (force, abandon) = loss::repairs(facts);
    let standing = standing(facts, &version, size, &memory);
    let again = match standing.reason {
        Reason::Running
        | Reason::Suspended
        | Reason::Completed
        | Reason::Failed
        | Reason::PriorLogFound
        | Reason::DataLossRisk
        | Reason::UpgradeBlocked
        | Reason::RolledBack => POLL,
        _ => SOON,
    };
    Decision {
        certificate: (!is_made).then_some(issue),
        remove: superfluous(facts, &memory, &version),
        replace,
        force,
        grow: volumes::grow(facts),
        abandon,
        status: status::of(facts, &version.name, size, &standing),
        events: events(facts, &standing).into_iter().chain(scaled).collect(),
        steps: Vec::new(),
        savepoint: None,
        hold: Some(facts.job.spec.deletion_policy != DeletionPolicy::Retain)
            .filter(|hold| *hold != farewell::is_held(facts)),
        apply,
        again,
    }
}

/// A change of the number of workers, by the autoscaler.
fn scaled(facts: &Facts, size: Size, decision: autoscale::Decision) -> Option<Event> {
    let is = facts.asked_for().filter(|n| *n > 0 && *n != size.0)?;
    // Who is suspended, or has ended, has none.
    (decision.workers == size.0).then(|| Event {
        warning: false,
        reason: "Scaled",
        note: format!("from {is} to {} workers: {}", size.0, decision.reason),
    })
}

/// The version that the StatefulSet runs, as a job.
fn running_job(facts: &Facts) -> Option<StreamingJob> {
    let running = facts.running_version().and_then(|v| known(facts, v));
    running.and_then(|v| v.job())
}

/// The job whose state a changed one takes: what was accepted last, whatever was tried since.
pub fn predecessor(facts: &Facts) -> Option<StreamingJob> {
    let accepted = facts.memory().accepted?;
    known(facts, &accepted)?.job()
}

/// A job that names no storage keeps the one that it began with, whatever the settings say by now: its log is there.
fn with_own_storage(facts: &Facts, settings: &Settings) -> Settings {
    let own = running_job(facts).and_then(|job| job.spec.checkpoint.storage);
    Settings {
        storage: own.or_else(|| settings.storage.clone()),
        ..settings.clone()
    }
}

/// What the edit may not change, in the words of the webhook, which may have been away.
fn forbidden(facts: &Facts) -> Vec<Diagnostic> {
    let Some(old) = running_job(facts) else {
        return Vec::new();
    };
    let mut new = facts.job.clone();
    if new.spec.checkpoint.storage.is_none() {
        // It keeps that of the version.
        new.spec
            .checkpoint
            .storage
            .clone_from(&old.spec.checkpoint.storage);
    }
    // Volumes are judged by what is there.
    let mut old = old;
    old.spec.state.clone_from(&new.spec.state);
    let mut faults = validate::transition(&old, &new);
    if let Some(was) = volumes::there(facts) {
        faults.extend(validate::transition_of_volumes(&was, &new.spec.state));
    }
    faults
}

/// The account that a job names lends it its rights, so its owner must have said that it may.
fn account(facts: &Facts) -> Option<Diagnostic> {
    let name = &facts.job.spec.workers.service_account_name;
    if name.is_empty() {
        return None;
    }
    let told = match &facts.account {
        None => format!("the service account {name:?} is not there"),
        Some(account) => {
            let labels = account.metadata.labels.as_ref();
            let allowed = labels.and_then(|l| l.get(names::ALLOW_JOBS));
            if allowed.is_some_and(|value| value == "true") {
                return None;
            }
            format!("the service account {name:?} is not for jobs")
        }
    };
    let path = "workers.serviceAccountName";
    let help = format!("its owner labels it {}=true", names::ALLOW_JOBS);
    Some(Diagnostic::error(Code::ACCOUNT, path, told).with_help(help))
}

/// What is wrong with the spec, in the words of `penstock lint`; no warnings.
fn faults(facts: &Facts, settings: &Settings) -> Vec<String> {
    let mut faults = validate::validate(&facts.job, Place::Cluster);
    faults.retain(Diagnostic::is_error);
    if faults.is_empty() {
        faults.extend(validate::unsupported(&facts.job.spec));
        faults.extend(validate::unsupported_in_cluster(&facts.job.spec));
        faults.extend(validate::bounds(&facts.job, &settings.bounds));
        faults.extend(validate::orders(&facts.job));
        faults.extend(forbidden(facts));
        faults.extend(account(facts));
    }
    let mut texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    if texts.is_empty() {
        texts.clone_from(&facts.sql_faults);
    }
    texts
}

/// A version that was made before.
fn known(facts: &Facts, name: &str) -> Option<Version> {
    Version::read(facts.versions.get(name)?, name)
}

fn refused(facts: &Facts, mut faults: Vec<String>) -> Decision {
    const SHOWN: usize = 5;
    let more = faults.len().saturating_sub(SHOWN);
    faults.truncate(SHOWN);
    if more > 0 {
        faults.push(format!("and {more} more"));
    }
    standing_still(facts, Reason::Invalid, faults.join("; "))
}

/// What is told where the API server does not take a child: a quota, or a form that only it knows. It is tried again.
pub fn not_taken(facts: &Facts, why: &str) -> Decision {
    let text = format!("the API server refuses what the job needs: {why}");
    standing_still(facts, Reason::ChildRefused, text)
}

/// Nothing is changed: what runs goes on as it is, and is brought back where its node is gone.
fn standing_still(facts: &Facts, reason: Reason, message: String) -> Decision {
    let standing = Standing { reason, message };
    let version = facts.running_version().unwrap_or_default().to_owned();
    let size = Size(u32::try_from(facts.pods.len()).unwrap_or(u32::MAX));
    let (force, abandon) = loss::repairs(facts);
    Decision {
        certificate: None,
        apply: Vec::new(),
        replace: Vec::new(),
        force,
        abandon,
        grow: Vec::new(),
        remove: Vec::new(),
        steps: Vec::new(),
        savepoint: None,
        hold: None,
        status: status::of(facts, &version, size, &standing),
        events: events(facts, &standing),
        again: POLL,
    }
}

/// How the run of this version ended, if it has. Written down before the pods that show it are scaled away.
fn ended(facts: &Facts, memory: &Memory, version: &Version) -> Option<Ended> {
    let orders = build::orders(&facts.job).join(" ");
    let known = memory.ended.as_ref();
    if let Some(ended) = known.filter(|e| e.version == version.name && e.orders == orders) {
        return Some(ended.clone());
    }
    let mine = || {
        let pods = facts.pods.iter();
        pods.filter(|p| version_of(p) == Some(&version.name) && orders_of(p) == orders)
    };
    let failed = mine().find_map(gave_up);
    let bounded = matches!(
        facts.job.spec.trigger.kind(),
        Trigger::AvailableNow { .. } | Trigger::Once { .. }
    );
    // Said by one of these pods, and not by one before them.
    let made = mine().filter_map(|p| p.metadata.creation_timestamp.as_ref());
    let made = made.map(|at| at.0.as_second()).max();
    let since = facts.said.as_ref().map(|s| s.at.timestamp());
    let completed = bounded
        && since >= made
        && mine().next().is_some()
        && facts
            .status()
            .is_some_and(|s| s.phase == Phase::Completed && s.version == version.name);
    (failed.is_some() || completed).then(|| Ended {
        version: version.name.clone(),
        orders,
        failed,
    })
}

/// Pods of another version than the one that is to run.
fn outdated(facts: &Facts, version: &Version) -> Vec<Doomed> {
    /// Long enough to be told, too short to be waited for.
    const AT_ONCE: u32 = 1;
    let orders = build::orders(&facts.job).join(" ");
    let pods = facts.pods.iter().filter(|p| {
        let other = version_of(p).is_some_and(|v| v != version.name);
        // An order that was taken back has been carried out, or means nothing any more.
        let unheard = !orders.is_empty() && orders_of(p) != orders;
        p.metadata.deletion_timestamp.is_none() && (other || unheard)
    });
    let grace = match facts.job.spec.upgrade.strategy {
        UpgradeStrategy::LastCheckpoint | UpgradeStrategy::Stateless => Some(AT_ONCE),
        UpgradeStrategy::Savepoint => None,
    };
    pods.filter_map(|pod| {
        let doomed = Doomed::of(pod)?;
        Some(Doomed { grace, ..doomed })
    })
    .collect()
}

/// What a pod was started with by a person's word.
fn orders_of(pod: &Pod) -> &str {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(names::ORDERS))
        .map_or("", String::as_str)
}

/// ConfigMaps of versions that neither run, nor are wanted, nor may come back.
fn superfluous(facts: &Facts, memory: &Memory, version: &Version) -> Vec<(Kind, String)> {
    let used: Vec<&str> = facts.pods.iter().filter_map(version_of).collect();
    let running = facts.running_version();
    facts
        .versions
        .keys()
        .filter(|v| {
            **v != version.name
                && !memory.needs(v)
                && Some(v.as_str()) != running
                && !used.contains(&v.as_str())
        })
        .map(|v| (Kind::ConfigMap, names::version(facts.name(), v)))
        .collect()
}

fn standing(facts: &Facts, version: &Version, size: Size, memory: &Memory) -> Standing {
    let say = |reason, message: &str| Standing {
        reason,
        message: message.to_owned(),
    };
    match &memory.ended {
        Some(Ended {
            failed: Some(why), ..
        }) => {
            let reason = match why.code.as_str() {
                PRIOR_LOG => Reason::PriorLogFound,
                DATA_LOSS => Reason::DataLossRisk,
                NEWER_LOG => Reason::UpgradeBlocked,
                _ => Reason::Failed,
            };
            return Standing {
                reason,
                message: format!("{} [{}]", why.message, why.code),
            };
        }
        Some(Ended { failed: None, .. }) => {
            return say(Reason::Completed, "everything available was read");
        }
        None => {}
    }
    if size == Size(0) {
        return match facts.pods.len() {
            0 => say(
                Reason::Suspended,
                "stopped at a barrier; spec.suspend is true",
            ),
            _ => say(Reason::Suspending, "stopping at a barrier"),
        };
    }
    if let Some(failed) = &memory.rolled_back {
        let (message, code) = (&failed.why.message, &failed.why.code);
        return Standing {
            reason: Reason::RolledBack,
            message: format!(
                "the changed job failed and the version before it came back, nothing of it was published: {message} [{code}]; change the spec to try again"
            ),
        };
    }
    let current = facts
        .pods
        .iter()
        .filter(|p| version_of(p) == Some(&version.name));
    let ready = current.filter(|p| is_ready(p)).count();
    let said = facts.status().filter(|s| s.version == version.name);
    match said.map(|s| s.phase) {
        _ if ready < size.0 as usize => match why_not_ready(facts) {
            Some(why) => Standing {
                reason: Reason::WorkersNotReady,
                message: why,
            },
            None => say(Reason::Starting, "workers are starting"),
        },
        None => say(Reason::Starting, "the workers have not answered yet"),
        Some(Phase::Running) if said.is_some_and(|s| s.on_trial) => say(
            Reason::Upgrading,
            "the changed job runs on trial: its results are published when it is accepted",
        ),
        Some(Phase::Running) => say(Reason::Running, "the job runs and commits"),
        Some(_) => say(Reason::Starting, "the job restores its state"),
    }
}

/// What keeps a pod from its start, in the words of Kubernetes.
fn why_not_ready(facts: &Facts) -> Option<String> {
    facts.pods.iter().find_map(|p| {
        let name = p.metadata.name.as_deref().unwrap_or_default();
        let status = p.status.as_ref()?;
        let waiting = status.container_statuses.iter().flatten().find_map(|c| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone().unwrap_or_default();
            (reason != "ContainerCreating" && reason != "PodInitializing").then(|| {
                let message = waiting.message.clone().unwrap_or_default();
                format!("pod {name}: {reason} {message}")
                    .trim_end()
                    .to_owned()
            })
        });
        waiting.or_else(|| {
            let scheduled = status.conditions.iter().flatten();
            let held = scheduled
                .into_iter()
                .find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
            let message = held.message.clone().unwrap_or_default();
            Some(format!("pod {name} cannot be scheduled: {message}"))
        })
    })
}

/// Said once: when the reason of Ready is another one than status shows.
fn events(facts: &Facts, standing: &Standing) -> Vec<Event> {
    let shown = facts.job.status.as_ref().and_then(|s| {
        let ready = s.conditions.iter().find(|c| c.type_ == "Ready")?;
        Some(ready.reason.clone())
    });
    if shown.as_deref() == Some(standing.reason.name()) {
        return Vec::new();
    }
    vec![Event {
        warning: standing.reason.is_trouble(),
        reason: standing.reason.name(),
        note: standing.message.clone(),
    }]
}

pub mod farewell;
mod loss;
pub mod restore;
pub mod savepoint;
#[cfg(test)]
pub(crate) mod tests;
mod volumes;
