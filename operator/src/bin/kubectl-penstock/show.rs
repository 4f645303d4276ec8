//! What a person reads of a job: one screen, its lag, its epochs.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use kube::ResourceExt;
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::Epoch;
use penstock_crds::savepoint::Savepoint;

/// One screen: what it does, where it is, what holds it back.
pub fn status(job: &StreamingJob, now: DateTime<Utc>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<12} {text}");
    };
    let namespace = job.namespace().unwrap_or_default();
    line("Job", format!("{namespace}/{}", job.name_any()));
    let Some(s) = &job.status else {
        line(
            "Phase",
            "nobody has looked at it: is the controller there?".to_owned(),
        );
        return out;
    };
    if let Some(phase) = s.phase {
        line("Phase", format!("{phase:?}"));
    }
    if let Some(ready) = s.conditions.iter().find(|c| c.type_ == "Ready") {
        line(
            "Ready",
            format!("{}, {}: {}", ready.status, ready.reason, ready.message),
        );
    }
    let others: Vec<&str> = s
        .conditions
        .iter()
        .filter(|c| c.type_ != "Ready" && c.status == "True")
        .map(|c| c.type_.as_str())
        .collect();
    if !others.is_empty() {
        line("Conditions", others.join(", "));
    }
    if s.observed_generation != job.metadata.generation {
        line("Spec", "the newest edit was not looked at yet".to_owned());
    }
    if let (Some(ready), Some(wanted)) = (s.ready_replicas, s.desired_replicas) {
        line("Workers", format!("{ready} of {wanted} ready"));
    }
    if let Some(e) = &s.epoch {
        let ago = ago(e.committed_at.epoch_millis(), now);
        line(
            "Epoch",
            format!(
                "{}, {ago}; took {}, {} rows in, {} out",
                e.number, e.duration, e.rows_in, e.rows_out
            ),
        );
    }
    if let Some(w) = &s.watermark {
        let held = w.held_back_by.as_ref();
        let held = held.map_or_else(String::new, |by| format!(", held back by {by}"));
        line("Watermark", format!("{}{held}", w.time));
    }
    if let Some(l) = &s.lag {
        line("Lag", format!("{} records, {} s", l.records, l.seconds));
    }
    if let Some(r) = &s.rates {
        line("Rows/s", format!("{} in, {} out", r.rows_in, r.rows_out));
    }
    if let Some(c) = &s.counts {
        line(
            "Counts",
            format!(
                "{} late, {} dead letters, {} restarts",
                c.late, c.dead_letters, c.restarts
            ),
        );
    }
    if let Some(f) = &s.last_failure {
        let ago = ago(f.at.epoch_millis(), now);
        line("Failure", format!("{ago}: {} [{}]", f.message, f.code));
    }
    out
}

pub fn lag(job: &StreamingJob, _: DateTime<Utc>) -> String {
    match job.status.as_ref().and_then(|s| s.lag.as_ref()) {
        Some(l) => format!("{} records, {} s\n", l.records, l.seconds),
        None => {
            "not known: no source of the job has an end, or no worker has told yet\n".to_owned()
        }
    }
}

/// How long ago, for people.
pub fn ago(at_ms: i64, now: DateTime<Utc>) -> String {
    let seconds = (now.timestamp_millis() - at_ms).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

/// The newest epochs, newest first, and the savepoints that pin some.
pub fn epochs(epochs: &[Epoch], savepoints: &[Savepoint], now: DateTime<Utc>) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>10}  {:<12} {:>8}  {:>12} {:>12} {:>12}  SAVEPOINT",
        "EPOCH", "COMMITTED", "TOOK", "ROWS IN", "ROWS OUT", "BYTES"
    );
    for e in epochs.iter().rev() {
        let pins = savepoints.iter().filter(|s| epoch_of(s) == Some(e.number));
        let pins: Vec<String> = pins.map(ResourceExt::name_any).collect();
        let _ = writeln!(
            out,
            "{:>10}  {:<12} {:>5} ms  {:>12} {:>12} {:>12}  {}",
            e.number,
            ago(e.committed_at.epoch_millis(), now),
            e.duration_ms,
            e.rows_in,
            e.rows_out,
            e.bytes,
            pins.join(", ")
        );
    }
    let oldest = epochs.first().map_or(u64::MAX, |e| e.number);
    for s in savepoints {
        if let Some(epoch) = epoch_of(s).filter(|e| *e < oldest) {
            let _ = writeln!(out, "{epoch:>10}  {:>66}", s.name_any());
        }
    }
    out
}

fn epoch_of(savepoint: &Savepoint) -> Option<u64> {
    savepoint.status.as_ref()?.epoch
}

#[cfg(test)]
mod tests {
    use penstock_operator::clock;
    use serde_json::json;

    use super::*;

    fn job() -> StreamingJob {
        serde_json::from_value(json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "StreamingJob",
            "metadata": {"name": "payments", "namespace": "risk", "generation": 3},
            "spec": {
                "sources": [{"name": "a", "generator": {}, "columns": [{"name": "n", "type": "BIGINT"}]}],
                "sql": "INSERT INTO out SELECT n FROM a", "sinks": [{"name": "out", "print": {}}],
            },
            "status": {
                "observedGeneration": 2, "phase": "Running",
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Running", "message": "the job runs and commits", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "Available", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ],
                "desiredReplicas": 1, "readyReplicas": 1,
                "epoch": {"number": 7, "committedAt": "2026-01-01T00:00:00Z", "duration": "120ms", "bytes": 1, "rowsIn": 10, "rowsOut": 2},
                "lag": {"records": 5, "seconds": 1},
            },
        }))
        .unwrap()
    }

    #[test]
    fn one_screen_says_what_it_does_and_where_it_is() {
        let now = "2026-01-01T00:03:00Z".parse().unwrap();
        assert_eq!(
            status(&job(), now),
            "Job          risk/payments\n\
             Phase        Running\n\
             Ready        True, Running: the job runs and commits\n\
             Conditions   Available\n\
             Spec         the newest edit was not looked at yet\n\
             Workers      1 of 1 ready\n\
             Epoch        7, 3 min ago; took 120ms, 10 rows in, 2 out\n\
             Lag          5 records, 1 s\n"
        );
        assert_eq!(lag(&job(), now), "5 records, 1 s\n");
    }

    #[test]
    fn epochs_are_listed_newest_first_with_what_pins_them() {
        let epoch = |number: u64| Epoch {
            number,
            committed_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            duration_ms: 12,
            bytes: 7,
            rows_in: 10,
            rows_out: 2,
        };
        let savepoint = |name: &str, epoch: u64| -> Savepoint {
            serde_json::from_value(json!({
                "apiVersion": "penstock.dev/v1alpha1", "kind": "Savepoint", "metadata": {"name": name},
                "spec": {"jobRef": {"name": "payments"}}, "status": {"epoch": epoch},
            }))
            .unwrap()
        };
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let text = epochs(
            &[epoch(7), epoch(8)],
            &[savepoint("old", 3), savepoint("new", 8)],
            now,
        );
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].starts_with("8 ") && lines[1].ends_with("new"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("7 ") && lines[2].ends_with("7"),
            "{text}"
        );
        assert!(
            lines[3].starts_with("3 ") && lines[3].ends_with("old"),
            "{text}"
        );
    }

    #[test]
    fn a_job_nobody_has_looked_at_says_so() {
        let mut job = job();
        job.status = None;
        assert!(status(&job, clock::now()).contains("is the controller there?"));
    }
}
