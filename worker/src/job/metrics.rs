//! Metrics of one process (OpenMetrics text). Declared here, all of them; values come from the progress of the job, so that
//! nothing is counted per record.

use std::fmt::Write as _;

use penstock_crds::job::StreamingJob;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::coordinator::progress::Now;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BySource {
    source: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BySink {
    sink: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByOperator {
    operator: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByReason {
    reason: String,
}

/// Counters of the job's progress, written into a registry of one scrape.
pub fn text(job: &StreamingJob, now: &Now) -> String {
    let mut registry = Registry::with_prefix("penstock");
    let rows = Family::<BySource, Counter>::default();
    let bytes = Family::<BySource, Counter>::default();
    let bad = Family::<BySource, Counter>::default();
    let late = Family::<BySource, Counter>::default();
    for (source, n) in job.spec.sources.iter().zip(&now.by_source) {
        let label = BySource { source: source.name.clone() };
        rows.get_or_create(&label).inc_by(n.rows);
        bytes.get_or_create(&label).inc_by(n.bytes);
        bad.get_or_create(&label).inc_by(n.bad);
        late.get_or_create(&label).inc_by(n.late);
    }
    registry.register("source_rows", "Rows read", rows);
    registry.register("source_bytes", "Bytes read from the transport", bytes);
    registry.register("deserialization_errors", "Rows that could not be read", bad);
    registry.register("late_rows", "Rows whose last window had closed", late);
    let letters = Family::<ByReason, Counter>::default();
    letters.get_or_create(&ByReason { reason: "error".to_owned() }).inc_by(now.dead_letters);
    registry.register("dead_letter_rows", "Rows sent to dead letters", letters);
    let sinks = Family::<BySink, Counter>::default();
    for (sink, n) in job.spec.sinks.iter().zip(&now.sink_rows) {
        sinks.get_or_create(&BySink { sink: sink.name.clone() }).inc_by(*n);
    }
    registry.register("sink_rows", "Rows staged for, or sent to, sinks", sinks);
    let (input, output, keys, memory) =
        (Family::<ByOperator, Counter>::default(), Family::<ByOperator, Counter>::default(), Family::<ByOperator, Gauge>::default(), Family::<ByOperator, Gauge>::default());
    for (uid, i, o, k, b) in &now.operators {
        let label = ByOperator { operator: uid.clone() };
        input.get_or_create(&label).inc_by(*i);
        output.get_or_create(&label).inc_by(*o);
        keys.get_or_create(&label).set(i64::try_from(*k).unwrap_or(i64::MAX));
        memory.get_or_create(&label).set(i64::try_from(*b).unwrap_or(i64::MAX));
    }
    registry.register("operator_input_rows", "Rows into an operator", input);
    registry.register("operator_output_rows", "Rows out of an operator", output);
    registry.register("state_keys", "Keys in an operator's state, estimated", keys);
    registry.register("operator_memory_bytes", "Memory of an operator outside its tables, estimated", memory);
    epochs(&mut registry, now);
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        let _ = writeln!(text, "# {error}");
    }
    text
}

fn epochs(registry: &mut Registry, now: &Now) {
    let last = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    last.set(now.epoch.committed_at_ms as f64 / 1000.0);
    registry.register("checkpoint_last_success_timestamp_seconds", "When the newest epoch was committed", last);
    let durations = Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]);
    for ms in &now.durations {
        durations.observe(*ms as f64 / 1000.0);
    }
    registry.register("checkpoint_duration_seconds", "From the barrier to the commit", durations);
    let size: Gauge = Gauge::default();
    size.set(i64::try_from(now.epoch.bytes).unwrap_or(i64::MAX));
    registry.register("checkpoint_size_bytes", "Bytes of the newest epoch's pack", size);
    let commits: Counter = Counter::default();
    commits.inc_by(now.commits);
    registry.register("checkpoints", "Epochs committed", commits);
    let restarts: Counter = Counter::default();
    restarts.inc_by(now.restarts);
    registry.register("restarts", "Generations that ended before the job", restarts);
    if let Some(us) = now.watermark {
        let at = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        at.set(us as f64 / 1e6);
        registry.register("watermark_timestamp_seconds", "The watermark, event time", at);
    }
    if let Some(records) = now.lag {
        let lag: Gauge = Gauge::default();
        lag.set(i64::try_from(records).unwrap_or(i64::MAX));
        registry.register("source_lag_records", "Records not yet read, all sources", lag);
    }
}
