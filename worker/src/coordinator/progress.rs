//! What a job is doing, for people and machines: one value that the coordinator writes and `/status`, `/metrics` and the
//! progress line read. Timestamps, never ages.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;

use super::graph::{GraphMeter, GraphNow, Layout};
pub use super::lag::SplitLag;
use super::load::{LoadMeter, Point, Worked};
use crate::member::protocol::Snapshot;
use crate::message::{Barrier, EventTime};
pub use crate::metrics::Phase as PhaseOfEpoch;
use crate::metrics::{ByPhase, BySink, Timings};
use crate::task::{OperatorCounts, TaskTimes};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    Pending,
    Restoring,
    Running,
    Completed,
    Failed,
}

impl Phase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Restoring => "Restoring",
            Self::Running => "Running",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
        }
    }
}

/// The newest commit.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastEpoch {
    pub number: u64,
    pub committed_at_ms: i64,
    /// From its barrier to its commit.
    pub duration_ms: u64,
    /// Since the commit before it, or since the barrier for the first one: what rates are measured by.
    pub span_ms: u64,
    pub bytes: u64,
    pub rows_in: u64,
    pub rows_out: u64,
}

/// A copy of everything, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Now {
    pub phase: Phase,
    pub epoch: LastEpoch,
    pub published: u64,
    /// Least over the sinks, in microseconds of event time.
    pub watermark: Option<i64>,
    pub held_back_by: Option<String>,
    /// Since this process began.
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_in: u64,
    pub bad: u64,
    pub late: u64,
    pub dead_letters: u64,
    /// Sink to what keeps it from publishing.
    pub held: BTreeMap<String, String>,
    /// By uid, summed over the slots.
    pub operators: BTreeMap<String, OperatorCounts>,
    /// By uid of the task, summed over the slots.
    pub times: BTreeMap<String, TaskTimes>,
    pub by_source: Vec<SourceNow>,
    pub sink_rows: Vec<u64>,
    pub commits: u64,
    pub durations: Vec<u64>,
    pub load: LoadMeter,
    /// The greatest share that one key has of the rows of an operator; 0 where none has much.
    pub hot_key_share: f64,
    /// Unread records, as of the last commit.
    pub lag: Option<u64>,
    /// By split; splits whose end is unknown are left out.
    pub lags: Vec<SplitLag>,
    /// When the lags were measured, and how long they are good for.
    lag_at_ms: i64,
    lag_good_ms: i64,
    pub log: String,
    /// Generations that ended before the job, by why.
    pub restarts: BTreeMap<Restart, u64>,
    /// How often a sink could not publish and tried again.
    pub sink_errors: BTreeMap<String, u64>,
    pub last_failure: Option<LastFailure>,
    pub generation: u64,
    /// The version that runs, in a cluster.
    pub version: String,
    pub on_trial: bool,
    /// The newest epochs of this process, oldest first.
    pub epochs: VecDeque<LastEpoch>,
    /// The worker that coordinates, where there are several.
    pub coordinator: Option<u32>,
    /// It is another one, or none at this moment.
    pub follows: bool,
    /// Savepoints, by name.
    pub pins: BTreeMap<String, PinNow>,
    /// What earlier generations of this process had counted.
    before: Counted,
}

/// A savepoint of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinNow {
    pub epoch: u64,
    /// What restoring it reads; 0 where this process did not make it.
    pub bytes: u64,
}

/// Why a generation ended before the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Restart {
    /// Another process claimed the job.
    Fenced,
    /// Something did not answer, and may again.
    Retry,
}

impl Restart {
    pub const ALL: [Self; 2] = [Self::Fenced, Self::Retry];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Retry => "retry",
        }
    }
}

/// What ended the last generation that ended with an error.
#[derive(Debug, Clone)]
pub struct LastFailure {
    pub at_ms: i64,
    pub code: &'static str,
    pub message: String,
}

/// Counters of commits, which begin anew with a generation's slots.
#[derive(Debug, Clone, Default)]
struct Counted {
    rows_in: u64,
    rows_out: u64,
    bytes_in: u64,
    bad: u64,
    late: u64,
    dead_letters: u64,
    by_source: Vec<SourceNow>,
    sink_rows: Vec<u64>,
    operators: BTreeMap<String, OperatorCounts>,
    times: BTreeMap<String, TaskTimes>,
}

#[derive(Debug, Clone, Default)]
pub struct SourceNow {
    pub splits: u64,
    pub idle: u64,
    pub rows: u64,
    pub bytes: u64,
    pub bad: u64,
    pub late: u64,
}

impl Now {
    /// Age of the oldest record of a split that is not read, at most. Where nobody could look for too long, what came since is
    /// unread for all that is known.
    pub fn lag_seconds(&self, lag: &SplitLag, now_ms: i64) -> f64 {
        let since = now_ms - self.lag_at_ms;
        let looks = matches!(self.phase, Phase::Restoring | Phase::Running);
        if looks && since > self.lag_good_ms {
            return lag.seconds + since as f64 / 1000.0;
        }
        lag.seconds
    }

    /// Of the first epochs of this process, from the barrier (planned: from the plan) to the commit: number, and the
    /// milliseconds that half of them, and 99 of 100, took at most.
    pub fn percentiles(&self) -> Option<(usize, u64, u64)> {
        let mut sorted = self.durations.clone();
        sorted.sort_unstable();
        let at = |share: usize| {
            sorted
                .get((sorted.len() * share).div_ceil(100).max(1) - 1)
                .copied()
        };
        Some((sorted.len(), at(50)?, at(99)?))
    }
}

/// How long a published epoch took.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// From its barrier (planned: from its plan).
    pub since_barrier: Duration,
    pub since_commit: Duration,
    /// Of the greatest event time that it stands on.
    pub age_ms: Option<i64>,
}

/// Shared by the coordinator (writer) and everybody who looks.
#[derive(Debug, Default)]
pub struct Progress {
    now: Mutex<Now>,
    /// Apart from the rest: it is as large as the job, and few ask for it.
    graph: Mutex<GraphMeter>,
    pub timings: Timings,
}

/// Durations of epochs that are kept for percentiles.
const DURATIONS: usize = 4096;
/// Epochs that are kept for people.
const EPOCHS: usize = 100;

impl Progress {
    pub fn now(&self) -> Now {
        self.now.lock().clone()
    }

    pub fn phase(&self, phase: Phase) {
        self.now.lock().phase = phase;
    }

    /// Which worker coordinates, as far as this one knows, and whether it is this one. Of how the job is at this moment another one
    /// shows nothing; what it has counted stays.
    pub fn coordinator(&self, worker: Option<u32>, this: bool) {
        let mut now = self.now.lock();
        now.coordinator = worker;
        now.follows = !this;
        if worker.is_none() && now.phase == Phase::Running {
            now.phase = Phase::Pending;
        }
        if worker.is_some() && !this {
            *self.graph.lock() = GraphMeter::default();
            (now.lag, now.watermark, now.held_back_by) = (None, None, None);
            now.lags.clear();
            now.load = LoadMeter::default();
            now.hot_key_share = 0.0;
            for counts in now.operators.values_mut() {
                (counts.state_keys, counts.memory_bytes, counts.disk_bytes) = (0, 0, 0);
            }
        }
    }

    pub fn is(&self, phase: Phase) -> bool {
        self.now.lock().phase == phase
    }

    /// A generation begins: its counters start at nothing, those of the process go on.
    pub fn generation(&self) {
        *self.graph.lock() = GraphMeter::default();
        let mut now = self.now.lock();
        now.phase = Phase::Restoring;
        now.hot_key_share = 0.0;
        now.before = Counted {
            rows_in: now.rows_in,
            rows_out: now.rows_out,
            bytes_in: now.bytes_in,
            bad: now.bad,
            late: now.late,
            dead_letters: now.dead_letters,
            by_source: now.by_source.clone(),
            sink_rows: now.sink_rows.clone(),
            operators: now.operators.clone(),
            times: now.times.clone(),
        };
    }

    /// The slots of a generation have begun.
    pub fn began(&self, layout: Layout, now_ms: i64) {
        self.graph.lock().begin(layout, now_ms);
    }

    /// What every task does; `None` before a generation's first commit, and where another worker coordinates.
    pub fn graph(&self) -> Option<GraphNow> {
        self.graph.lock().read()
    }

    pub fn release(&self, version: &str, on_trial: bool) {
        let mut now = self.now.lock();
        version.clone_into(&mut now.version);
        now.on_trial = on_trial;
    }

    pub fn pins(&self, pins: BTreeMap<String, PinNow>) {
        self.now.lock().pins = pins;
    }

    /// Workers of the generation that runs.
    pub fn workers(&self) -> usize {
        self.graph.lock().workers()
    }

    pub fn restored(&self, epoch: u64) {
        let mut now = self.now.lock();
        now.epoch.number = epoch;
    }

    pub fn published(&self, through: u64) {
        let mut now = self.now.lock();
        now.published = through;
        now.held.clear();
    }

    pub fn held(&self, sink: &str, text: &str) {
        let mut now = self.now.lock();
        *now.sink_errors.entry(sink.to_owned()).or_default() += 1;
        now.held.insert(sink.to_owned(), text.to_owned());
    }

    pub fn log(&self, id: String) {
        self.now.lock().log = id;
    }

    pub fn restarted(&self, why: Restart) {
        *self.now.lock().restarts.entry(why).or_default() += 1;
    }

    pub fn failed(&self, failure: LastFailure) {
        self.now.lock().last_failure = Some(failure);
    }

    /// `every`: how often somebody looks at the least.
    pub fn lag(&self, lags: Vec<SplitLag>, now_ms: i64, every: Duration) {
        let mut now = self.now.lock();
        now.lag_at_ms = now_ms;
        // The look itself takes a while.
        let good = every + Duration::from_secs(10);
        now.lag_good_ms = i64::try_from(good.as_millis()).unwrap_or(i64::MAX);
        now.lag = Some(lags.iter().map(|l| l.records).sum());
        now.lags = lags;
    }

    /// An epoch is out: how long each part took, and how old its newest row was then, for every sink.
    pub fn published_epoch(&self, sinks: &[(String, u16)], took: Published) {
        self.observe(PhaseOfEpoch::Publish, took.since_commit);
        for (sink, _) in sinks {
            let by = BySink { sink: sink.clone() };
            let of = self.timings.processing.get_or_create(&by);
            of.observe(took.since_barrier.as_secs_f64());
            drop(of);
            if let Some(age_ms) = took.age_ms {
                let of = self.timings.e2e.get_or_create(&by);
                of.observe(age_ms.max(0) as f64 / 1000.0);
            }
        }
    }

    pub fn observe(&self, phase: PhaseOfEpoch, took: Duration) {
        let phase = ByPhase {
            phase: phase.name(),
        };
        let of = self.timings.checkpoint.get_or_create(&phase);
        of.observe(took.as_secs_f64());
    }

    pub fn committed(&self, barrier: Barrier, snapshot: &Snapshot, took: Duration, now_ms: i64) {
        let mut now = self.now.lock();
        let sum = |f: &dyn Fn(&crate::task::SlotCounts) -> u64| {
            snapshot.counts.iter().map(f).sum::<u64>()
        };
        let before = now.before.clone();
        let rows_in = before.rows_in + sum(&|c| c.sources.iter().map(|s| s.rows).sum());
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let since = u64::try_from(now_ms - now.epoch.committed_at_ms).unwrap_or(0);
        now.epoch = LastEpoch {
            number: barrier.epoch,
            committed_at_ms: now_ms,
            duration_ms,
            span_ms: if now.commits == 0 { duration_ms } else { since },
            bytes: snapshot.bytes,
            rows_in: rows_in.saturating_sub(now.rows_in),
            rows_out: snapshot.rows_out,
        };
        let worked = |c: &crate::task::SlotCounts| Worked {
            slot: c.times.iter().map(|(_, t)| t.busy).sum(),
            process: c.process,
        };
        let point = Point {
            at_ms: now_ms,
            generation: barrier.generation,
            rows: rows_in,
            lag: now.lag,
            worked: snapshot.counts.iter().map(worked).collect(),
        };
        now.load.add(point);
        let mut graph = self.graph.lock();
        graph.add(now_ms, &snapshot.counts);
        now.hot_key_share = graph.hot_key_share();
        drop(graph);
        if now.epochs.len() == EPOCHS {
            now.epochs.pop_front();
        }
        let newest = now.epoch;
        now.epochs.push_back(newest);
        now.rows_in = rows_in;
        now.rows_out = before.rows_out + sum(&|c| c.sink_rows.iter().sum());
        now.bytes_in = before.bytes_in + sum(&|c| c.sources.iter().map(|s| s.bytes).sum());
        now.bad = before.bad + sum(&|c| c.sources.iter().map(|s| s.bad).sum());
        now.late = before.late + sum(&|c| c.late.iter().sum());
        now.dead_letters =
            before.dead_letters + sum(&|c| c.sources.iter().map(|s| s.dead_letters).sum());
        now.commits += 1;
        now.generation = barrier.generation;
        if now.durations.len() < DURATIONS {
            now.durations.push(duration_ms);
        }
        let least = snapshot
            .watermarks
            .values()
            .map(|at| at.to)
            .min()
            .filter(|t| *t > EventTime::MIN);
        now.watermark = least.map(EventTime::micros);
        now.held_back_by = snapshot
            .counts
            .iter()
            .flat_map(|c| &c.held_back_by)
            .flatten()
            .next()
            .map(|s| s.0.to_string());
        now.operators = before.operators;
        now.operators.values_mut().for_each(OperatorCounts::rest);
        now.times = before.times;
        let sources = snapshot.counts.first().map_or(0, |c| c.sources.len());
        now.by_source = before.by_source;
        now.by_source.resize(sources, SourceNow::default());
        let sinks = snapshot.counts.first().map_or(0, |c| c.sink_rows.len());
        now.sink_rows = before.sink_rows;
        now.sink_rows.resize(sinks, 0);
        for (source, splits) in &snapshot.splits {
            if let Some(of) = now.by_source.get_mut(*source) {
                of.splits = splits.len() as u64;
                of.idle = splits.values().filter(|s| s.idle).count() as u64;
            }
        }
        for counts in &snapshot.counts {
            for (uid, counts) in &counts.operators {
                now.operators.entry(uid.clone()).or_default().add(*counts);
            }
            for (uid, times) in &counts.times {
                now.times.entry(uid.clone()).or_default().add(*times);
            }
            for (of, c) in now.by_source.iter_mut().zip(&counts.sources) {
                of.rows += c.rows;
                of.bytes += c.bytes;
                of.bad += c.bad;
            }
            for (of, late) in now.by_source.iter_mut().zip(&counts.late) {
                of.late += late;
            }
            for (of, rows) in now.sink_rows.iter_mut().zip(&counts.sink_rows) {
                *of += rows;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::BarrierKind;
    use crate::task::{SlotCounts, SourceCounts};

    fn counted(rows: u64) -> OperatorCounts {
        OperatorCounts {
            rows_in: rows,
            rows_out: rows,
            state_keys: 1,
            memory_bytes: 1,
            disk_bytes: 1,
            lookups: rows,
        }
    }

    fn commit(progress: &Progress, epoch: u64, rows: u64) {
        let barrier = Barrier {
            epoch,
            generation: 1,
            kind: BarrierKind::Checkpoint,
            now_ms: 0,
        };
        let counts = SlotCounts {
            sources: vec![SourceCounts {
                rows,
                ..SourceCounts::default()
            }],
            late: vec![rows / 10],
            operators: vec![("o".to_owned(), counted(rows))],
            times: vec![(
                "o".to_owned(),
                TaskTimes {
                    busy: Duration::from_secs(rows),
                    ..TaskTimes::default()
                },
            )],
            sink_rows: vec![2 * rows],
            ..SlotCounts::default()
        };
        let snapshot = Snapshot {
            barrier,
            packs: Vec::new(),
            bytes: 0,
            splits: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            counts: vec![counts],
            rows_out: 0,
        };
        progress.committed(barrier, &snapshot, Duration::ZERO, 1000);
    }

    #[test]
    fn a_lag_that_nobody_can_measure_grows_while_the_job_runs() {
        let progress = Progress::default();
        progress.generation();
        let lag = SplitLag {
            source: 0,
            split: "t/0".to_owned(),
            records: 0,
            seconds: 0.0,
        };
        progress.lag(vec![lag.clone()], 1000, Duration::from_secs(20));
        let seconds = |now_ms| progress.now().lag_seconds(&lag, now_ms);
        assert_eq!(seconds(31_000), 0.0);
        assert_eq!(seconds(61_000), 60.0);
        // One that has ended has nobody who looks.
        progress.phase(Phase::Completed);
        assert_eq!(seconds(61_000), 0.0);
    }

    #[test]
    fn counters_go_on_over_generations() {
        let progress = Progress::default();
        progress.generation();
        commit(&progress, 1, 100);
        commit(&progress, 2, 130);
        progress.restarted(Restart::Fenced);
        progress.generation();
        assert_eq!(progress.now().rows_in, 130);
        commit(&progress, 3, 50);
        let now = progress.now();
        assert_eq!(
            (now.epoch.rows_in, now.rows_in, now.rows_out),
            (50, 180, 360)
        );
        assert_eq!((now.late, now.by_source[0].rows), (18, 180));
        assert_eq!(now.sink_rows, [360]);
        assert_eq!(now.operators["o"], counted(180));
        assert_eq!(now.times["o"].busy, Duration::from_secs(180));
        assert_eq!(now.restarts[&Restart::Fenced], 1);
    }
}
