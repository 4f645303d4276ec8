//! Conditions of a job that runs: whether it commits, keeps up, and has room. Each is there while it can be told.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use penstock_crds::job::{StreamingJob, Trigger};
use penstock_crds::rpc::JobStatus;
use penstock_crds::status::Phase;

use super::{Reason, Standing};
use crate::facts::Facts;

/// A condition, before its time is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub type_: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Lag that is still kept up with, where the spec does not say.
const TARGET_LAG: Duration = Duration::from_secs(30);
/// Conditions that numbers alone can change.
const MEASURED: [&str; 3] = ["CheckpointHealthy", "CaughtUp", "StatePressure"];
/// Shares of the volume, in percent.
const PRESSURE: u64 = 80;
const HIGH_PRESSURE: u64 = 90;
/// The code of a storage that does not answer.
const STORAGE: &str = "PR0402";

pub fn of(facts: &Facts, standing: &Standing) -> Vec<Health> {
    let mut all = Vec::new();
    if standing.reason == Reason::DataLossRisk {
        all.push(Health {
            type_: "DataLossRisk",
            status: true,
            reason: "InputGone",
            message: standing.message.clone(),
        });
    }
    if let Some(told) = facts.status() {
        all.extend(measured(&facts.job, told, facts.now));
    }
    all
}

/// Whether what a job says now is another health than its status shows.
pub fn health_changes(job: &StreamingJob, told: &JobStatus, now: DateTime<Utc>) -> bool {
    let now = measured(job, told, now);
    let shown = job.status.iter().flat_map(|s| &s.conditions);
    let shown: Vec<_> = shown
        .filter(|c| MEASURED.contains(&c.type_.as_str()))
        .collect();
    let told = |c: &&Condition| {
        let status = c.status == "True";
        now.iter()
            .any(|h| (h.type_, h.status, h.reason) == (c.type_.as_str(), status, c.reason.as_str()))
    };
    now.len() != shown.len() || !shown.iter().all(told)
}

/// What the numbers of a job that runs make of it.
fn measured(job: &StreamingJob, told: &JobStatus, now: DateTime<Utc>) -> Vec<Health> {
    if told.phase != Phase::Running {
        return Vec::new();
    }
    let each = [
        checkpoint(job, told, now),
        caught_up(job, told),
        pressure(job, told),
    ];
    each.into_iter().flatten().collect()
}

/// Planned epochs are made when there is input, so their age says nothing.
fn checkpoint(job: &StreamingJob, told: &JobStatus, now: DateTime<Utc>) -> Option<Health> {
    let spec = &job.spec;
    let Trigger::Continuous = spec.trigger.kind() else {
        return None;
    };
    let epoch = told.epoch.as_ref()?;
    let age = now.timestamp_millis() - epoch.committed_at.epoch_millis();
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    let bound = Duration::from(spec.checkpoint.timeout) + Duration::from(spec.checkpoint.interval);
    let health = |status, reason, message| Health {
        type_: "CheckpointHealthy",
        status,
        reason,
        message,
    };
    if age < bound {
        let message = "epochs are committed".to_owned();
        return Some(health(true, "Committing", message));
    }
    let failure = told.last_failure.as_ref().filter(|f| f.code == STORAGE);
    // Of a moment, not an age: it stays the same while nothing changes.
    let since = &epoch.committed_at;
    Some(match failure {
        Some(f) => health(
            false,
            "StorageUnavailable",
            format!(
                "nothing is committed since {since}: {} [{STORAGE}]",
                f.message
            ),
        ),
        None => health(
            false,
            "NotCommitting",
            format!("nothing is committed since {since}; the epoch goes on"),
        ),
    })
}

/// With room between the two, so that it does not change with every poll.
fn caught_up(job: &StreamingJob, told: &JobStatus) -> Option<Health> {
    let lag = told.lag.as_ref()?.seconds;
    let target = job.spec.autoscaling.as_ref().map(|a| a.target_lag);
    let target = target.map_or(TARGET_LAG, Duration::from).as_secs_f64();
    let was = job.status.as_ref().is_some_and(|s| {
        let mut all = s.conditions.iter();
        all.any(|c| c.type_ == "CaughtUp" && c.status == "True")
    });
    let status = lag <= if was { 2.0 * target } else { target };
    let (reason, message) = match status {
        true => (
            "WithinTarget",
            format!("the job is at most {target} s behind"),
        ),
        false => ("Behind", format!("the job is more than {target} s behind")),
    };
    Some(Health {
        type_: "CaughtUp",
        status,
        reason,
        message,
    })
}

/// There only when it is true.
fn pressure(job: &StreamingJob, told: &JobStatus) -> Option<Health> {
    let state = &job.spec.state;
    let size = match &state.ephemeral {
        Some(ephemeral) => ephemeral.size,
        None => state.volume.clone().unwrap_or_default().size,
    };
    let share = told.state.disk_bytes.saturating_mul(100) / size.as_bytes().max(1);
    let (reason, bound) = match share {
        HIGH_PRESSURE.. => ("VolumeAlmostFull", HIGH_PRESSURE),
        PRESSURE.. => ("VolumeFilling", PRESSURE),
        _ => return None,
    };
    Some(Health {
        type_: "StatePressure",
        status: true,
        reason,
        message: format!(
            "the state takes more than {bound} percent of {size}; state.volume.size may grow"
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decide::tests::{now, running};

    fn told(more: serde_json::Value) -> Facts {
        let mut facts = running();
        let said = facts.said.as_mut().unwrap();
        let mut status = serde_json::to_value(said.status.as_ref().unwrap()).unwrap();
        for (name, value) in more.as_object().unwrap() {
            status[name] = value.clone();
        }
        said.status = Ok(serde_json::from_value(status).unwrap());
        facts
    }

    fn health(facts: &Facts, type_: &str) -> Option<(bool, &'static str)> {
        let standing = Standing {
            reason: Reason::Running,
            message: String::new(),
        };
        let all = of(facts, &standing);
        let found = all.into_iter().find(|h| h.type_ == type_)?;
        Some((found.status, found.reason))
    }

    fn epoch(seconds_ago: i64) -> serde_json::Value {
        let at = now() - chrono::TimeDelta::seconds(seconds_ago);
        let at = at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({"number": 7, "committed_at": at, "duration_ms": 1, "bytes": 1, "rows_in": 1, "rows_out": 1})
    }

    #[test]
    fn a_job_that_commits_nothing_for_too_long_is_not_healthy_and_says_why() {
        let of = |facts: &Facts| health(facts, "CheckpointHealthy");
        assert_eq!(of(&told(json!({}))), None);
        assert_eq!(
            of(&told(json!({"epoch": epoch(60)}))),
            Some((true, "Committing"))
        );
        let old = json!({"epoch": epoch(400)});
        assert_eq!(of(&told(old)), Some((false, "NotCommitting")));
        let failure = json!({"at": "2026-01-01T00:00:00Z", "code": "PR0402", "message": "away"});
        let away = json!({"epoch": epoch(400), "last_failure": failure});
        assert_eq!(of(&told(away)), Some((false, "StorageUnavailable")));
    }

    #[test]
    fn a_job_has_caught_up_below_the_target_and_has_not_above_twice_of_it() {
        let lag = |seconds: f64| told(json!({"lag": {"records": 1, "seconds": seconds}}));
        let of = |facts: &Facts| health(facts, "CaughtUp").map(|h| h.0);
        assert_eq!(of(&lag(29.0)), Some(true));
        assert_eq!(of(&lag(31.0)), Some(false));
        let mut was = lag(31.0);
        let condition = json!([{"type": "CaughtUp", "status": "True", "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        was.job.status = Some(serde_json::from_value(json!({"conditions": condition})).unwrap());
        assert_eq!(of(&was), Some(true));
        assert_eq!(of(&told(json!({}))), None);
    }

    #[test]
    fn numbers_that_change_the_health_wake_the_job() {
        let lag = |seconds: f64| told(json!({"lag": {"records": 1, "seconds": seconds}}));
        let wakes = |facts: &Facts| health_changes(&facts.job, facts.status().unwrap(), facts.now);
        let caught_up = |status: &str, reason: &str| {
            let mut facts = lag(1.0);
            let condition = json!([{"type": "CaughtUp", "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
            facts.job.status =
                Some(serde_json::from_value(json!({"conditions": condition})).unwrap());
            facts
        };
        assert!(wakes(&lag(1.0)), "nothing is shown yet");
        assert!(!wakes(&caught_up("True", "WithinTarget")));
        assert!(wakes(&caught_up("False", "Behind")));
        let mut silent = caught_up("True", "WithinTarget");
        silent.said = told(json!({})).said;
        assert!(wakes(&silent), "nobody tells the lag any more");
    }

    #[test]
    fn a_volume_that_fills_is_told_from_four_fifths_on() {
        let filled = |gib: u64| {
            let state = json!({"keys": 1, "memory_bytes": 1, "disk_bytes": gib << 30});
            let mut facts = told(json!({"state": state}));
            let volume = json!({"volume": {"size": "20Gi"}});
            facts.job.spec.state = serde_json::from_value(volume).unwrap();
            health(&facts, "StatePressure")
        };
        assert_eq!(filled(15), None);
        assert_eq!(filled(16), Some((true, "VolumeFilling")));
        assert_eq!(filled(18), Some((true, "VolumeAlmostFull")));
    }
}
