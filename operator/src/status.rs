//! The status of a job: conditions as kstatus reads them, and the numbers that its coordinator told. Timestamps, never ages.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use penstock_crds::job::{Phase, StreamingJob, StreamingJobStatus};
use penstock_crds::rpc::JobStatus;
use penstock_crds::status::{
    AutoscalingStatus, CountStatus, EpochStatus, FailureStatus, LagStatus, RateStatus,
    RunningVersion, WatermarkStatus,
};

use crate::autoscale;
use crate::build::Size;
use crate::facts::Facts;
use crate::names::selector_text;
use crate::version::log_id;

mod health;

use health::Health;
pub use health::health_changes;

/// Where a job stands, in one word and one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub reason: Reason,
    pub message: String,
}

/// The reason of the condition Ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Starting,
    WorkersNotReady,
    Running,
    Upgrading,
    RolledBack,
    Suspending,
    Suspended,
    Completed,
    Failed,
    PriorLogFound,
    Invalid,
    ForeignObject,
    ChildRefused,
    DataLossRisk,
    UpgradeBlocked,
    SavepointNotReady,
    Deleting,
}

impl Reason {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::WorkersNotReady => "WorkersNotReady",
            Self::Running => "Running",
            Self::Upgrading => "Upgrading",
            Self::RolledBack => "RolledBack",
            Self::Suspending => "Suspending",
            Self::Suspended => "Suspended",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::PriorLogFound => "PriorLogFound",
            Self::Invalid => "Invalid",
            Self::ForeignObject => "ForeignObject",
            Self::ChildRefused => "ChildRefused",
            Self::DataLossRisk => "DataLossRisk",
            Self::UpgradeBlocked => "UpgradeBlocked",
            Self::SavepointNotReady => "SavepointNotReady",
            Self::Deleting => "Deleting",
        }
    }

    /// Nothing more is to be done: the job is as it was asked for.
    const fn is_ready(self) -> bool {
        matches!(self, Self::Running | Self::Suspended | Self::Completed)
    }

    /// Only a person mends it.
    const fn is_stalled(self) -> bool {
        matches!(
            self,
            Self::Failed
                | Self::PriorLogFound
                | Self::Invalid
                | Self::ForeignObject
                | Self::RolledBack
                | Self::DataLossRisk
                | Self::UpgradeBlocked
        )
    }

    /// Whether its event is a warning.
    pub const fn is_trouble(self) -> bool {
        self.is_stalled() || matches!(self, Self::WorkersNotReady | Self::ChildRefused)
    }

    fn phase(self, facts: &Facts) -> Phase {
        match self {
            Self::Starting | Self::WorkersNotReady => match facts.status().map(|s| s.phase) {
                Some(Phase::Restoring) => Phase::Restoring,
                _ => Phase::Pending,
            },
            Self::Running | Self::Upgrading | Self::Suspending => Phase::Running,
            Self::RolledBack => Phase::RolledBack,
            Self::Suspended => Phase::Suspended,
            Self::Completed => Phase::Completed,
            Self::Failed | Self::PriorLogFound | Self::DataLossRisk | Self::UpgradeBlocked => {
                Phase::Failed
            }
            Self::Invalid
            | Self::ForeignObject
            | Self::ChildRefused
            | Self::SavepointNotReady
            | Self::Deleting => {
                let before = facts.job.status.as_ref().and_then(|s| s.phase);
                before
                    .filter(|_| !facts.pods.is_empty())
                    .unwrap_or(Phase::Pending)
            }
        }
    }
}

/// The whole status.
pub fn of(facts: &Facts, version: &str, size: Size, standing: &Standing) -> StreamingJobStatus {
    let before = facts.job.status.clone().unwrap_or_default();
    let reason = standing.reason;
    let mut wanted = vec![("Ready", reason.is_ready())];
    let runs = facts.status().is_some_and(|s| s.phase == Phase::Running);
    wanted.push(("Available", runs && facts.ready() > 0));
    // Abnormal-true conditions are there only when they are true.
    if !reason.is_ready() && !reason.is_stalled() {
        wanted.push(("Reconciling", true));
    }
    if reason.is_stalled() {
        wanted.push(("Stalled", true));
    }
    if reason == Reason::RolledBack {
        wanted.push(("RolledBack", true));
    }
    if reason == Reason::Completed {
        wanted.push(("Completed", true));
    }
    let shown = wanted.into_iter().map(|(type_, status)| Health {
        type_,
        status,
        reason: standing.reason.name(),
        message: standing.message.clone(),
    });
    let conditions = shown
        .chain(health::of(facts, standing))
        .map(|shown| condition(&before.conditions, shown, facts));
    let told = facts.status();
    StreamingJobStatus {
        observed_generation: facts.job.metadata.generation,
        phase: Some(reason.phase(facts)),
        conditions: conditions.collect(),
        // That of an earlier job, where it was adopted.
        log_id: told
            .map(|s| s.log_id.clone())
            .or(before.log_id)
            .or_else(|| log_id(&facts.job)),
        version: running(facts, version, before.version),
        replicas: Some(i32::try_from(facts.pods.len()).unwrap_or(i32::MAX)),
        selector: Some(selector_text(facts.name())),
        desired_replicas: Some(i32::try_from(size.0).unwrap_or(i32::MAX)),
        ready_replicas: Some(i32::try_from(facts.ready()).unwrap_or(i32::MAX)),
        epoch: told.and_then(epoch).or(before.epoch),
        watermark: told.and_then(watermark).or(before.watermark),
        lag: told.and_then(lag).or(before.lag),
        rates: told.map(rates).or(before.rates),
        counts: told.map(counts).or(before.counts),
        last_failure: told.and_then(last_failure).or(before.last_failure),
        autoscaling: scaling(facts),
    }
}

/// What the autoscaler makes of what was heard.
fn scaling(facts: &Facts) -> Option<AutoscalingStatus> {
    let decision = autoscale::of(&facts.job, &facts.load, facts.asked_for(), facts.now)?;
    let before = facts
        .job
        .status
        .as_ref()
        .and_then(|s| s.autoscaling.as_ref());
    let is = facts.asked_for().unwrap_or(decision.workers);
    Some(autoscale::shown(decision, is, before, facts.now))
}

/// What runs, or ran last. An edit that leaves the version as it is counts, whether a worker is up to say so or not.
fn running(facts: &Facts, version: &str, before: Option<RunningVersion>) -> Option<RunningVersion> {
    let spec = facts.job.metadata.generation.unwrap_or(0);
    // A worker of another version, which is about to go, says nothing of this one.
    let Some(told) = facts.status().filter(|s| s.version == version) else {
        return before.map(|b| RunningVersion {
            spec: if b.plan_hash == version { spec } else { b.spec },
            ..b
        });
    };
    Some(RunningVersion {
        spec,
        plan_hash: version.to_owned(),
        engine: told.engine.clone(),
    })
}

/// The status of a job with the numbers that the coordinator told since; none where they are the same.
pub fn news(job: &StreamingJob, told: &JobStatus) -> Option<StreamingJobStatus> {
    let before = job.status.as_ref()?;
    let status = StreamingJobStatus {
        epoch: epoch(told).or_else(|| before.epoch.clone()),
        watermark: watermark(told).or_else(|| before.watermark.clone()),
        lag: lag(told).or_else(|| before.lag.clone()),
        rates: Some(rates(told)),
        counts: Some(counts(told)),
        last_failure: last_failure(told).or_else(|| before.last_failure.clone()),
        ..before.clone()
    };
    (*before != status).then_some(status)
}

/// Whether two statuses differ in measurements only.
pub fn same_but_numbers(a: &StreamingJobStatus, b: &StreamingJobStatus) -> bool {
    let bare = |s: &StreamingJobStatus| StreamingJobStatus {
        epoch: None,
        watermark: None,
        lag: None,
        rates: None,
        counts: None,
        last_failure: None,
        ..s.clone()
    };
    // Of a failure only when it was: the same one once more.
    let failed = |s: &StreamingJobStatus| {
        let failure = s.last_failure.clone();
        failure.map(|f| (f.code, f.message))
    };
    bare(a) == bare(b) && failed(a) == failed(b)
}

/// A condition; its time is that of its last change.
fn condition(before: &[Condition], shown: Health, facts: &Facts) -> Condition {
    let status = if shown.status { "True" } else { "False" };
    let old = before.iter().find(|c| c.type_ == shown.type_);
    let since = old
        .filter(|c| c.status == status)
        .map_or_else(|| time(facts.now), |c| c.last_transition_time.clone());
    Condition {
        type_: shown.type_.to_owned(),
        status: status.to_owned(),
        reason: shown.reason.to_owned(),
        message: bounded(&shown.message),
        observed_generation: facts.job.metadata.generation,
        last_transition_time: since,
    }
}

/// Status has at most 8 KiB, and an event's note one.
///
/// What a manifest or a row wrote into a message stays text: nothing in it moves the cursor of whoever reads it in a terminal, or
/// hides what comes after it.
pub fn bounded(message: &str) -> String {
    cut(message, 1000)
}

/// As `bounded`, of a name or a code.
pub fn word(text: &str) -> String {
    cut(text, 100)
}

fn cut(text: &str, most: usize) -> String {
    let text: String = text
        .chars()
        .map(|c| if is_shown(c) { c } else { '\u{fffd}' })
        .collect();
    if text.len() <= most {
        return text;
    }
    format!("{}…", &text[..text.floor_char_boundary(most)])
}

/// Whether a character is seen where it stands: no control, no mark of another direction, nothing without width.
fn is_shown(c: char) -> bool {
    let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c == '\n' || !(c.is_control() || hidden)
}

pub fn time(at: DateTime<Utc>) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(at.timestamp()).unwrap_or_default())
}

fn two_digits(x: f64) -> f64 {
    if x <= 0.0 || !x.is_finite() {
        return 0.0;
    }
    let unit = 10f64.powf(x.log10().floor() - 1.0);
    let rounded = (x / unit).round() * unit;
    // Whole numbers without a tail of binary fractions.
    (rounded * 100.0).round() / 100.0
}

fn epoch(of: &JobStatus) -> Option<EpochStatus> {
    let e = of.epoch.as_ref()?;
    Some(EpochStatus {
        number: e.number,
        committed_at: e.committed_at,
        duration: penstock_crds::units::Duration::from_millis(e.duration_ms),
        bytes: e.bytes,
        rows_in: e.rows_in,
        rows_out: e.rows_out,
    })
}

fn watermark(of: &JobStatus) -> Option<WatermarkStatus> {
    let w = of.watermark.as_ref()?;
    Some(WatermarkStatus {
        time: w.time,
        held_back_by: w.held_back_by.clone(),
    })
}

fn lag(of: &JobStatus) -> Option<LagStatus> {
    let l = of.lag.as_ref()?;
    Some(LagStatus {
        records: l.records,
        seconds: l.seconds.round() as u64,
    })
}

fn rates(of: &JobStatus) -> RateStatus {
    RateStatus {
        rows_in: two_digits(of.rates.rows_in),
        rows_out: two_digits(of.rates.rows_out),
    }
}

fn counts(of: &JobStatus) -> CountStatus {
    CountStatus {
        late: of.counts.late,
        dead_letters: of.counts.dead_letters,
        restarts: of.counts.restarts,
    }
}

fn last_failure(of: &JobStatus) -> Option<FailureStatus> {
    let f = of.last_failure.as_ref()?;
    Some(FailureStatus {
        at: f.at,
        code: f.code.clone(),
        message: bounded(&f.message),
    })
}

#[cfg(test)]
mod tests {
    use penstock_crds::job::StreamingJobStatus;
    use penstock_crds::rpc::JobStatus;

    use super::{news, two_digits};
    use crate::decide::tests::running;

    #[test]
    fn what_is_written_already_is_no_news() {
        let mut facts = running();
        let mut told: JobStatus = facts.status().unwrap().clone();
        facts.job.status = Some(StreamingJobStatus::default());
        facts.job.status = news(&facts.job, &told);
        assert!(facts.job.status.is_some());
        assert_eq!(news(&facts.job, &told), None);
        told.counts.late += 1;
        assert_ne!(news(&facts.job, &told), None);
    }

    #[test]
    fn a_message_moves_no_cursor() {
        let told = super::bounded("unknown column \u{1b}[2Jx\u{202e}y");
        assert_eq!(told, "unknown column \u{fffd}[2Jx\u{fffd}y");
    }

    #[test]
    fn numbers_have_two_digits() {
        for (x, shown) in [(0.0, 0.0), (12345.0, 12000.0), (0.1234, 0.12), (9.96, 10.0)] {
            assert!((two_digits(x) - shown).abs() < 1e-9, "{x}");
        }
    }
}
