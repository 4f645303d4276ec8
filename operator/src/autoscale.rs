//! How many workers a job should have: pure, in the line of DS2. What it learns of a job it learns from the time that slots were busy,
//! so that a job which merely keeps up shows what it could do; what it asks for is one step, after which it looks again.
//!
//! ```text
//! required = max(λ / ρ, λ + (lag + λ·T_r) / T_c)      the second while the job is behind its target
//! capacity(P) = the hottest worker's true rate × N / ⌈N / P⌉      N: what can be divided
//! ```

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::JobStatus;
use penstock_crds::status::{AutoscalingStatus, Phase};
use penstock_crds::units::Timestamp;
use penstock_crds::workers::AutoscalingMode;

/// Share of its capacity that a job is to use.
const RHO: f64 = 0.75;
/// In how long a job that is behind is to catch up.
const CATCH_UP: f64 = 300.0;
/// Windows of which the greater mean counts as the load. No decision before the first is full.
const SHORT: TimeDelta = TimeDelta::seconds(60);
const LONG: TimeDelta = TimeDelta::seconds(180);
/// Down goes only what was too much for so long, and by at least this share.
const STABLE: TimeDelta = TimeDelta::seconds(300);
const WORTH: f64 = 0.15;
const HOUR: TimeDelta = TimeDelta::seconds(3600);
/// Without a sample for so long nothing is known.
const FRESH: TimeDelta = TimeDelta::seconds(50);
/// A slot that works less of its time shows nothing of what it could do.
const MEANINGFUL: f64 = 0.05;
/// As hard as the hardest within this share.
const HARDEST: f64 = 0.9;
/// The busiest slot is at its end, and the others work at most this share of what it does: one key, or one split, is hot.
const AT_ITS_END: f64 = 0.9;
const SKEWED: f64 = 0.5;
/// How long a change takes until rows are read again, a pod's start included.
const CHANGE: Duration = Duration::from_secs(15);
/// A step up that raised what is read by less than this share of what was expected did not help.
const HELPED: f64 = 0.3;

/// What the coordinator said at one moment, about the time since it was asked before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub at: DateTime<Utc>,
    /// Workers that took part.
    pub workers: u32,
    /// Rows read, and rows that came, each second.
    pub read: f64,
    pub came: f64,
    /// Rows that were not read yet, and in how many seconds they came.
    pub lag: f64,
    pub lag_seconds: f64,
    /// Share of its time that the busiest slot worked, and the mean of all slots.
    pub busiest: f64,
    pub busy: f64,
    /// Into how many its work can be divided.
    pub parts: u32,
    /// Sinks hold the commits back.
    pub sink_bound: bool,
    /// It runs, and its checkpoints succeed.
    pub healthy: bool,
}

/// What the manifest allows, and what the job can be divided into.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    pub least: u32,
    pub most: u32,
    pub target_lag: Duration,
    /// Splits of its sources or key groups, whichever are fewer.
    pub parts: u32,
    /// How long the last change of the number took, until rows were read again.
    pub change_takes: Duration,
}

/// A change of the number of workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    pub at: DateTime<Utc>,
    pub from: u32,
    pub to: u32,
    /// Rows read each second before it.
    pub read: f64,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Not enough is known yet.
    Learning,
    /// Nothing was heard for a while.
    MetricsMissing,
    /// It does not run, or its checkpoints fail: more workers mend neither.
    Unhealthy,
    /// What is processed waits for a sink.
    SinkBound,
    /// One slot is at its end and the others are not.
    HotKey,
    /// The last step up did not help.
    NoGain,
    /// It has as many as it may.
    AtMaximum,
    /// The load asks for more.
    Load,
    /// The lag asks for more.
    CatchingUp,
    /// It has more than it needs, for long enough.
    Spare,
    /// It has what it needs.
    WithinTarget,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub workers: u32,
    pub reason: Reason,
}

impl Sample {
    /// `None`: it does not say how loaded it is.
    pub fn of(told: &JobStatus, at: DateTime<Utc>) -> Option<Self> {
        let load = told.load?;
        let lag = told.lag.as_ref();
        Some(Self {
            at,
            workers: load.workers,
            read: load.read,
            came: load.came,
            lag: lag.map_or(0.0, |l| l.records as f64),
            lag_seconds: lag.map_or(0.0, |l| l.seconds),
            busiest: load.busiest,
            busy: load.busy,
            parts: load.parts,
            sink_bound: told.held_back_by.is_some(),
            healthy: told.phase == Phase::Running && told.lag.is_some(),
        })
    }
}

/// Samples of a job, at most those of an hour.
#[derive(Debug, Clone, Default)]
pub struct History(Vec<Sample>);

impl History {
    /// Whoever asks, and however often.
    pub fn add(&mut self, sample: Sample) {
        const APART: TimeDelta = TimeDelta::seconds(10);
        if self.0.last().is_some_and(|s| sample.at - s.at < APART) {
            return;
        }
        self.0.retain(|s| sample.at - s.at < HOUR);
        self.0.push(sample);
    }

    /// Changes of the number of workers.
    fn steps(&self) -> Vec<Step> {
        let change = |two: &[Sample]| {
            let [before, after] = two else { return None };
            (before.workers != after.workers).then_some(Step {
                at: before.at,
                from: before.workers,
                to: after.workers,
                read: before.read,
            })
        };
        self.0.windows(2).filter_map(change).collect()
    }
}

/// Whether the number of workers is to follow the load, or that is at least to be said.
pub fn is_asked_for(job: &StreamingJob) -> bool {
    let spec = job.spec.autoscaling.as_ref();
    spec.is_some_and(|a| a.mode != AutoscalingMode::Disabled)
}

/// Whether its decisions are carried out.
pub fn is_active(job: &StreamingJob) -> bool {
    let spec = job.spec.autoscaling.as_ref();
    spec.is_some_and(|a| a.mode == AutoscalingMode::Active)
}

/// How many workers there are to be, and why; `None`: nobody has asked for that. `now_there`: as many as there were asked for last.
pub fn of(
    job: &StreamingJob,
    history: &History,
    now_there: Option<u32>,
    now: DateTime<Utc>,
) -> Option<Decision> {
    let spec = job.spec.autoscaling.as_ref();
    let spec = spec.filter(|a| a.mode != AutoscalingMode::Disabled)?;
    let most = spec.max_replicas.unwrap_or(spec.min_replicas);
    let start = job.spec.workers.replicas.unwrap_or(spec.min_replicas);
    let is = now_there.filter(|n| *n > 0).unwrap_or(start);
    let is = is.clamp(spec.min_replicas, most);
    let there = history.0.last().map(|s| (s.workers, s.parts));
    let Some((_, parts)) = there.filter(|(workers, _)| *workers == is) else {
        return Some(Decision {
            workers: is,
            reason: Reason::Learning,
        });
    };
    let limits = Limits {
        least: spec.min_replicas,
        most,
        target_lag: spec.target_lag.into(),
        parts,
        change_takes: CHANGE,
    };
    Some(decide(&history.0, &history.steps(), &limits, now))
}

/// As the status shows it. `is`: how many there are; the time is that of the last other decision.
pub fn shown(
    decision: Decision,
    is: u32,
    before: Option<&AutoscalingStatus>,
    now: DateTime<Utc>,
) -> AutoscalingStatus {
    let word = match decision.workers.cmp(&is) {
        std::cmp::Ordering::Less => "Down",
        std::cmp::Ordering::Equal => "Hold",
        std::cmp::Ordering::Greater => "Up",
    };
    let reason = decision.reason.to_string();
    let same = before.filter(|b| b.decision == word && b.reason == reason);
    AutoscalingStatus {
        decision: word.to_owned(),
        reason,
        at: same.map_or_else(|| Timestamp::from(now), |b| b.at),
    }
}

/// What is to be done about a job that has these samples and made these changes, oldest first.
pub fn decide(samples: &[Sample], steps: &[Step], limits: &Limits, now: DateTime<Utc>) -> Decision {
    let Some(newest) = samples.last() else {
        return Decision {
            workers: limits.least,
            reason: Reason::Learning,
        };
    };
    let is = newest.workers;
    let hold = |reason| Decision {
        workers: is.clamp(limits.least, limits.most),
        reason,
    };
    if now - newest.at > FRESH {
        return hold(Reason::MetricsMissing);
    }
    if !newest.healthy {
        return hold(Reason::Unhealthy);
    }
    // Of what was before the last change nothing is a measure any more.
    let last = steps.last();
    let since = last.map_or(DateTime::<Utc>::MIN_UTC, |step| step.at);
    let settled: Vec<&Sample> = samples
        .iter()
        .filter(|s| s.at > since && s.workers == is && s.healthy)
        .collect();
    let full = settled
        .first()
        .is_some_and(|s| now - s.at >= SHORT - TimeDelta::seconds(15));
    if !full {
        return hold(Reason::Learning);
    }
    let Some(rate) = rate_of_one(&settled, limits) else {
        return hold(Reason::Learning);
    };
    let behind = newest.lag_seconds > limits.target_lag.as_secs_f64();
    let load = load(&settled, now);
    let required = required(load, behind.then_some(newest.lag), limits);
    let wanted = least(required, rate, limits);
    if wanted > is {
        if !lasts(&settled, rate, limits, now) {
            return hold(Reason::WithinTarget);
        }
        let why = match () {
            () if newest.sink_bound => Reason::SinkBound,
            () if hot(&settled) => Reason::HotKey,
            () if in_vain(last, &settled) => Reason::NoGain,
            () if is >= limits.most => Reason::AtMaximum,
            () => {
                let reason = match least(load / RHO, rate, limits) > is {
                    true => Reason::Load,
                    false => Reason::CatchingUp,
                };
                return Decision {
                    workers: wanted,
                    reason,
                };
            }
        };
        return hold(why);
    }
    if wanted < is && !behind && newest.lag_seconds <= limits.target_lag.as_secs_f64() / 2.0 {
        return down(&settled, steps, rate, limits, now).map_or(
            hold(Reason::WithinTarget),
            |workers| Decision {
                workers,
                reason: Reason::Spare,
            },
        );
    }
    // Nothing that is allowed could do more.
    hold(match behind && required > capacity(is, rate, limits) {
        true => Reason::AtMaximum,
        false => Reason::WithinTarget,
    })
}

/// Rows a second that the hottest worker could do: what it did, by the time that it worked. The samples count in which it worked
/// hardest, and three at least: with little to do, much of its time goes into what does not grow with the load.
fn rate_of_one(samples: &[&Sample], limits: &Limits) -> Option<f64> {
    let shows = |s: &&&Sample| s.busiest >= MEANINGFUL && s.read > 0.0;
    let mut shown: Vec<&&Sample> = samples.iter().filter(shows).collect();
    shown.sort_by(|a, b| b.busiest.total_cmp(&a.busiest));
    let hard = |s: &&&&Sample| s.busiest >= shown[0].busiest * HARDEST;
    let hardest = shown.iter().take_while(hard).count().max(3);
    let hardest = &shown[..hardest.min(shown.len())];
    let rates = hardest
        .iter()
        .map(|s| s.read / divided(s.workers, limits) / s.busiest);
    (!hardest.is_empty()).then(|| rates.sum::<f64>() / hardest.len() as f64)
}

/// Into how many equal parts the work of so many is divided: the one that has most parts counts.
fn divided(workers: u32, limits: &Limits) -> f64 {
    let parts = limits.parts.max(1);
    f64::from(parts) / f64::from(parts.div_ceil(workers.max(1)))
}

/// Rows that come each second.
fn load(samples: &[&Sample], now: DateTime<Utc>) -> f64 {
    let mean = |window: TimeDelta| {
        let within: Vec<f64> = samples
            .iter()
            .filter(|s| now - s.at <= window)
            .map(|s| s.came)
            .collect();
        within.iter().sum::<f64>() / within.len().max(1) as f64
    };
    mean(SHORT).max(mean(LONG))
}

/// Rows a second that the job must be able to do. `lag`: of one that is behind.
fn required(load: f64, lag: Option<f64>, limits: &Limits) -> f64 {
    let steady = load / RHO;
    match lag {
        None => steady,
        Some(lag) => {
            let change = limits.change_takes.as_secs_f64();
            steady.max(load + (lag + load * change) / CATCH_UP)
        }
    }
}

/// What so many workers can do.
fn capacity(workers: u32, rate: f64, limits: &Limits) -> f64 {
    rate * divided(workers, limits)
}

/// The least number of workers that can do so much; where none can, the least of those that can do most.
fn least(required: f64, rate: f64, limits: &Limits) -> u32 {
    let mut best = limits.least;
    for workers in limits.least..=limits.most {
        if capacity(workers, rate, limits) >= required {
            return workers;
        }
        if capacity(workers, rate, limits) > capacity(best, rate, limits) {
            best = workers;
        }
    }
    best
}

/// Whether too much has come for the whole of the short window: what is over sooner is worked off as lag, and what begins in it is not yet
/// known for what it is.
fn lasts(samples: &[&Sample], rate: f64, limits: &Limits, now: DateTime<Utc>) -> bool {
    let target = limits.target_lag.as_secs_f64();
    let mut within = samples.iter().filter(|s| now - s.at < SHORT);
    within.all(|s| {
        let lag = (s.lag_seconds > target).then_some(s.lag);
        required(s.came, lag, limits) > capacity(s.workers, rate, limits)
    })
}

fn hot(samples: &[&Sample]) -> bool {
    let recent = samples.iter().rev().take(3);
    recent.clone().count() == 3
        && recent
            .clone()
            .all(|s| s.busiest >= AT_ITS_END && s.busy <= s.busiest * SKEWED)
}

/// Whether the last step up brought nothing, and little has changed since.
fn in_vain(last: Option<&Step>, samples: &[&Sample]) -> bool {
    let Some(step) = last.filter(|step| step.to > step.from && step.read > 0.0) else {
        return false;
    };
    let reads = samples.iter().map(|s| s.read).fold(0.0, f64::max);
    let expected = step.read * (f64::from(step.to) / f64::from(step.from.max(1)) - 1.0);
    // Who is not at the end of what it can do has read all that came.
    let at_its_end = samples
        .iter()
        .rev()
        .take(3)
        .all(|s| s.busiest >= AT_ITS_END);
    at_its_end && reads - step.read < expected * HELPED
}

/// Fewer, if the most that was needed in the whole window is worth a change. The window doubles with each step up that took a step
/// down back within the hour.
fn down(
    samples: &[&Sample],
    steps: &[Step],
    rate: f64,
    limits: &Limits,
    now: DateTime<Utc>,
) -> Option<u32> {
    let is = samples.last()?.workers;
    let recent = steps.windows(2).filter(|two| now - two[1].at < HOUR);
    let taken_back = recent.filter(|two| two[0].to < two[0].from && two[1].to > two[1].from);
    let doubled = u32::try_from(taken_back.count()).unwrap_or(u32::MAX);
    let stable = (STABLE * 2_i32.saturating_pow(doubled.min(4))).min(HOUR);
    if now - samples.first()?.at < stable {
        return None;
    }
    let window = samples.iter().filter(|s| now - s.at <= stable);
    let most = window.map(|s| s.came).fold(0.0, f64::max);
    let needed = least(most / RHO, rate, limits);
    let worth = f64::from(is) * (1.0 - WORTH);
    (f64::from(needed) <= worth).then_some(needed)
}

#[cfg(test)]
mod tests;
