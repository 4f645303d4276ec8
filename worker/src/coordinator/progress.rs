//! What a job is doing, for people and machines: one value that the coordinator writes and `/status`, `/metrics` and the
//! progress line read. Timestamps, never ages.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::member::protocol::Snapshot;
use crate::message::{Barrier, EventTime};

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
    pub operators: Vec<(String, u64, u64, u64, u64)>,
    pub by_source: Vec<SourceNow>,
    pub sink_rows: Vec<u64>,
    pub commits: u64,
    pub durations: Vec<u64>,
    /// Unread records, as of the last commit.
    pub lag: Option<u64>,
    pub log: String,
    pub restarts: u64,
    pub generation: u64,
}

#[derive(Debug, Clone, Default)]
pub struct SourceNow {
    pub splits: u64,
    pub rows: u64,
    pub bytes: u64,
    pub bad: u64,
    pub late: u64,
}

impl Now {
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

/// Shared by the coordinator (writer) and everybody who looks.
#[derive(Debug, Default)]
pub struct Progress {
    now: Mutex<Now>,
}

/// Durations of epochs that are kept for percentiles.
const DURATIONS: usize = 4096;

impl Progress {
    pub fn now(&self) -> Now {
        self.now.lock().clone()
    }

    pub fn phase(&self, phase: Phase) {
        self.now.lock().phase = phase;
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
        self.now
            .lock()
            .held
            .insert(sink.to_owned(), text.to_owned());
    }

    pub fn log(&self, id: String) {
        self.now.lock().log = id;
    }

    pub fn restarted(&self) {
        self.now.lock().restarts += 1;
    }

    pub fn lag(&self, records: u64) {
        self.now.lock().lag = Some(records);
    }

    pub fn committed(&self, barrier: Barrier, snapshot: &Snapshot, took: Duration, now_ms: i64) {
        let mut now = self.now.lock();
        let sum = |f: &dyn Fn(&crate::task::SlotCounts) -> u64| {
            snapshot.counts.iter().map(f).sum::<u64>()
        };
        let rows_in = sum(&|c| c.sources.iter().map(|s| s.rows).sum());
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
        now.rows_in = rows_in;
        now.rows_out = sum(&|c| c.sink_rows.iter().sum());
        now.bytes_in = sum(&|c| c.sources.iter().map(|s| s.bytes).sum());
        now.bad = sum(&|c| c.sources.iter().map(|s| s.bad).sum());
        now.late = sum(&|c| c.late.iter().sum());
        now.dead_letters = sum(&|c| c.sources.iter().map(|s| s.dead_letters).sum());
        now.commits += 1;
        now.generation = barrier.generation;
        if now.durations.len() < DURATIONS {
            now.durations.push(duration_ms);
        }
        let least = snapshot
            .watermarks
            .values()
            .min()
            .copied()
            .filter(|t| *t > EventTime::MIN);
        now.watermark = least.map(EventTime::micros);
        now.held_back_by = snapshot
            .counts
            .iter()
            .flat_map(|c| &c.held_back_by)
            .flatten()
            .next()
            .map(|s| s.0.to_string());
        let mut operators: BTreeMap<String, (u64, u64, u64, u64)> = BTreeMap::new();
        let sources = snapshot.counts.first().map_or(0, |c| c.sources.len());
        now.by_source = vec![SourceNow::default(); sources];
        let sinks = snapshot.counts.first().map_or(0, |c| c.sink_rows.len());
        now.sink_rows = vec![0; sinks];
        for (source, splits) in &snapshot.splits {
            if let Some(of) = now.by_source.get_mut(*source) {
                of.splits = splits.len() as u64;
            }
        }
        for counts in &snapshot.counts {
            for (uid, rows_in, rows_out, keys, bytes) in &counts.operators {
                let of = operators.entry(uid.clone()).or_default();
                *of = (of.0 + rows_in, of.1 + rows_out, of.2 + keys, of.3 + bytes);
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
        now.operators = operators
            .into_iter()
            .map(|(uid, (i, o, k, b))| (uid, i, o, k, b))
            .collect();
    }
}
