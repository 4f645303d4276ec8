//! Metrics of one process (OpenMetrics text). All of them stand here and in the book's reference; values come from the progress of
//! the job, which is written once per epoch, so that nothing is counted for a scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use penstock_crds::job::StreamingJob;
use penstock_crds::source::OnLate;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::coordinator::progress::{Now, PhaseOfEpoch, Restart, SplitLag};
use crate::message::EventTime;
use crate::metrics::{ByPhase, BySink, Timings};

/// Partitions that have series of their own. Beyond it a source has one series for all: a scrape stays small.
const PARTITIONS: usize = 100;
/// Sinks that a job can have, by the schema.
const SINKS: usize = 32;
/// Tasks of sources and sinks that have series of their own: all that a job can have.
const ENDS: usize = 32 + SINKS;
/// Operators that have series of their own in a job with as many sinks as there can be. The others are summed under [`OTHER`], so
/// that no manifest makes 2,000 series.
const OPERATORS: usize = 40;
/// Each sink fewer, with its histograms, leaves room for more operators.
const OPERATORS_PER_SINK: usize = 3;
/// The label of what is summed. No uid is like it.
const OTHER: &str = "other";

#[cfg(test)]
mod tests;

type Float = Gauge<f64, AtomicU64>;
type Seconds = Counter<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BySource {
    source: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByPartition {
    source: String,
    topic: String,
    partition: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByOperator {
    operator: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByState {
    operator: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByTier {
    operator: String,
    tier: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BySinkAndReason {
    sink: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

/// Everything that there is to say, as one scrape.
pub fn text(job: &StreamingJob, now: &Now, timings: &Timings, now_ms: i64) -> String {
    let mut registry = Registry::with_prefix("penstock");
    sources(&mut registry, job, now);
    lags(&mut registry, job, now, now_ms);
    sinks(&mut registry, job, now, timings);
    let own = Own::of(job, now);
    operators(&mut registry, now, &own);
    tasks(&mut registry, now, &own);
    skew(&mut registry, now);
    event_time(&mut registry, now, now_ms);
    epochs(&mut registry, now, timings);
    generations(&mut registry, now);
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        let _ = writeln!(text, "# {error}");
    }
    text
}

fn sources(registry: &mut Registry, job: &StreamingJob, now: &Now) {
    let (rows, bytes, bad, late) = (
        Family::<BySource, Counter>::default(),
        Family::<BySource, Counter>::default(),
        Family::<BySource, Counter>::default(),
        Family::<BySource, Counter>::default(),
    );
    let idle = Family::<BySource, Gauge>::default();
    let mut late_letters = 0;
    for (i, source) in job.spec.sources.iter().enumerate() {
        let n = now.by_source.get(i).cloned().unwrap_or_default();
        let label = BySource {
            source: source.name.clone(),
        };
        rows.get_or_create(&label).inc_by(n.rows);
        bytes.get_or_create(&label).inc_by(n.bytes);
        bad.get_or_create(&label).inc_by(n.bad);
        late.get_or_create(&label).inc_by(n.late);
        idle.get_or_create(&label).set(gauge(n.idle));
        if source.on_late == OnLate::DeadLetter {
            late_letters += n.late;
        }
    }
    registry.register("source_rows", "Rows read", rows);
    registry.register("source_bytes", "Bytes read from the transport", bytes);
    registry.register("deserialization_errors", "Rows that could not be read", bad);
    registry.register("late_rows", "Rows whose last window had closed", late);
    registry.register(
        "watermark_idle_partitions",
        "Splits that are idle and do not hold the watermark back",
        idle,
    );
    let letters = Family::<ByReason, Counter>::default();
    for (reason, n) in [("error", now.dead_letters), ("late", late_letters)] {
        letters.get_or_create(&ByReason { reason }).inc_by(n);
    }
    registry.register("dead_letter_rows", "Rows sent to dead letters", letters);
}

fn lags(registry: &mut Registry, job: &StreamingJob, now: &Now, now_ms: i64) {
    let (records, bytes) = (
        Family::<ByPartition, Gauge>::default(),
        Family::<ByPartition, Gauge>::default(),
    );
    let seconds = Family::<ByPartition, Float>::default();
    let mut by: BTreeMap<(usize, String, String), (u64, f64)> = BTreeMap::new();
    let many = now.lags.len() > PARTITIONS;
    for lag in &now.lags {
        let (topic, partition) = if many {
            (String::new(), String::new())
        } else {
            place(lag)
        };
        let of = by.entry((lag.source, topic, partition)).or_default();
        *of = (of.0 + lag.records, of.1.max(now.lag_seconds(lag, now_ms)));
    }
    for ((source, topic, partition), (unread, age)) in by {
        let Some(name) = job.spec.sources.get(source).map(|s| s.name.clone()) else {
            continue;
        };
        let label = ByPartition {
            source: name,
            topic,
            partition,
        };
        records.get_or_create(&label).set(gauge(unread));
        seconds.get_or_create(&label).set(age);
        // By the mean size of what was read.
        if let Some(read) = now.by_source.get(source).filter(|n| n.rows > 0) {
            let unread = u128::from(unread) * u128::from(read.bytes) / u128::from(read.rows);
            bytes
                .get_or_create(&label)
                .set(i64::try_from(unread).unwrap_or(i64::MAX));
        }
    }
    registry.register("source_lag_records", "Records not yet read", records);
    registry.register("source_lag_bytes", "Bytes not yet read, estimated", bytes);
    registry.register(
        "source_lag_seconds",
        "Age of the oldest record not yet read, estimated",
        seconds,
    );
}

/// Topic and partition; the split's own name where it has none.
fn place(lag: &SplitLag) -> (String, String) {
    match lag.split.rsplit_once('/') {
        Some((topic, partition)) if partition.parse::<u32>().is_ok() => {
            (topic.to_owned(), partition.to_owned())
        }
        _ => (String::new(), lag.split.clone()),
    }
}

fn sinks(registry: &mut Registry, job: &StreamingJob, now: &Now, timings: &Timings) {
    let rows = Family::<BySink, Counter>::default();
    let errors = Family::<BySinkAndReason, Counter>::default();
    for (i, sink) in job.spec.sinks.iter().enumerate() {
        let label = BySink {
            sink: sink.name.clone(),
        };
        rows.get_or_create(&label)
            .inc_by(now.sink_rows.get(i).copied().unwrap_or(0));
        let retries = now.sink_errors.get(&sink.name).copied().unwrap_or(0);
        let label = BySinkAndReason {
            sink: sink.name.clone(),
            reason: "retry",
        };
        errors.get_or_create(&label).inc_by(retries);
    }
    registry.register("sink_rows", "Rows staged for, or sent to, sinks", rows);
    registry.register("sink_errors", "Publications that were tried again", errors);
    registry.register(
        "processing_latency_seconds",
        "From an epoch's barrier or plan until every sink has published it",
        timings.processing.clone(),
    );
    registry.register(
        "e2e_latency_seconds",
        "From the greatest event time of an epoch until every sink has published it",
        timings.e2e.clone(),
    );
}

/// Uids with series of their own: the first in their order, which is the same at every scrape.
struct Own<'a>(BTreeSet<&'a str>);

impl<'a> Own<'a> {
    fn of(job: &StreamingJob, now: &'a Now) -> Self {
        let most = OPERATORS + OPERATORS_PER_SINK * SINKS.saturating_sub(job.spec.sinks.len());
        let operators = now.operators.keys().take(most);
        let ends = now.times.keys().filter(|u| !now.operators.contains_key(*u));
        Self(
            operators
                .chain(ends.take(ENDS))
                .map(String::as_str)
                .collect(),
        )
    }

    fn label(&self, uid: &str) -> String {
        let own = self.0.contains(uid);
        if own { uid } else { OTHER }.to_owned()
    }
}

fn operators(registry: &mut Registry, now: &Now, own: &Own<'_>) {
    let (input, output, keys, lookups, bytes) = (
        Family::<ByOperator, Counter>::default(),
        Family::<ByOperator, Counter>::default(),
        Family::<ByOperator, Gauge>::default(),
        Family::<ByOperator, Counter>::default(),
        Family::<ByTier, Gauge>::default(),
    );
    for (uid, counts) in &now.operators {
        let label = ByOperator {
            operator: own.label(uid),
        };
        input.get_or_create(&label).inc_by(counts.rows_in);
        output.get_or_create(&label).inc_by(counts.rows_out);
        keys.get_or_create(&label).inc_by(gauge(counts.state_keys));
        lookups.get_or_create(&label).inc_by(counts.lookups);
        for (tier, size) in [("memory", counts.memory_bytes), ("disk", counts.disk_bytes)] {
            let label = ByTier {
                operator: own.label(uid),
                tier,
            };
            bytes.get_or_create(&label).inc_by(gauge(size));
        }
    }
    registry.register("operator_input_rows", "Rows into an operator", input);
    registry.register("operator_output_rows", "Rows out of an operator", output);
    registry.register(
        "state_keys",
        "Keys of an operator's state that are ready in memory, estimated",
        keys,
    );
    registry.register(
        "state_lookups",
        "Keys of an operator's state that were not in memory and were looked up on disk",
        lookups,
    );
    registry.register(
        "state_bytes",
        "Bytes of an operator's state in memory and on disk, estimated",
        bytes,
    );
}

fn tasks(registry: &mut Registry, now: &Now, own: &Own<'_>) {
    let times = Family::<ByState, Seconds>::default();
    for (uid, t) in &now.times {
        for (state, time) in [
            ("busy", t.busy),
            ("idle", t.idle),
            ("backpressured", t.backpressured),
        ] {
            let label = ByState {
                operator: own.label(uid),
                state,
            };
            times.get_or_create(&label).inc_by(time.as_secs_f64());
        }
    }
    registry.register(
        "task_time_seconds",
        "What tasks did with their time, summed over the slots",
        times,
    );
}

fn skew(registry: &mut Registry, now: &Now) {
    let share = Float::default();
    share.set(now.hot_key_share);
    registry.register(
        "hot_key_share",
        "Greatest share that one key has of the rows of an operator, sampled",
        share,
    );
}

fn event_time(registry: &mut Registry, now: &Now, now_ms: i64) {
    // At the end of the input everything has been seen.
    let watermark = now
        .watermark
        .filter(|us| EventTime::from_micros(*us) < EventTime::MAX);
    if let Some(us) = watermark {
        let (at, lag) = (Float::default(), Float::default());
        at.set(us as f64 / 1e6);
        lag.set(now_ms as f64 / 1e3 - us as f64 / 1e6);
        registry.register(
            "watermark_timestamp_seconds",
            "The watermark, event time",
            at,
        );
        registry.register(
            "watermark_lag_seconds",
            "How far the watermark is behind the clock",
            lag,
        );
    }
}

fn epochs(registry: &mut Registry, now: &Now, timings: &Timings) {
    let last = Float::default();
    last.set(now.epoch.committed_at_ms as f64 / 1000.0);
    registry.register(
        "checkpoint_last_success_timestamp_seconds",
        "When the newest epoch was committed",
        last,
    );
    for phase in PhaseOfEpoch::ALL {
        let phase = ByPhase {
            phase: phase.name(),
        };
        drop(timings.checkpoint.get_or_create(&phase));
    }
    registry.register(
        "checkpoint_duration_seconds",
        "Parts of an epoch's life",
        timings.checkpoint.clone(),
    );
    let size = Family::<ByKind, Gauge>::default();
    size.get_or_create(&ByKind { kind: "pack" })
        .set(gauge(now.epoch.bytes));
    registry.register(
        "checkpoint_size_bytes",
        "Bytes that the newest epoch wrote",
        size,
    );
    let commits = Family::<ByResult, Counter>::default();
    let abandoned = now.restarts.values().sum();
    for (result, n) in [("committed", now.commits), ("abandoned", abandoned)] {
        commits.get_or_create(&ByResult { result }).inc_by(n);
    }
    registry.register(
        "checkpoints",
        "Epochs committed, and those given up with their generation",
        commits,
    );
}

fn generations(registry: &mut Registry, now: &Now) {
    let restarts = Family::<ByReason, Counter>::default();
    for why in Restart::ALL {
        let n = now.restarts.get(&why).copied().unwrap_or(0);
        let reason = why.name();
        restarts.get_or_create(&ByReason { reason }).inc_by(n);
    }
    registry.register(
        "restarts",
        "Generations that ended before the job",
        restarts,
    );
    let fenced: Counter = Counter::default();
    fenced.inc_by(now.restarts.get(&Restart::Fenced).copied().unwrap_or(0));
    registry.register(
        "fenced",
        "Generations that another process ended by claiming the job",
        fenced,
    );
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
