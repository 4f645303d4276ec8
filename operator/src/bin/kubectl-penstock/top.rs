//! What a person reads of a job at work: its operators in each slot, and its workers.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use penstock_crds::rpc::{Graph, JobStatus, KeyGroups, Operator, Queued, Subtask};

use super::show::ago;

/// One screen: the job in a line, a table of operators, a table of workers.
pub fn top(of: &JobStatus, now: DateTime<Utc>) -> String {
    let mut out = job(of, now);
    match &of.graph {
        Some(graph) => {
            operators(&mut out, graph);
            skew(&mut out, graph);
            workers(&mut out, of, graph);
        }
        None => {
            out.push_str("\nnothing is measured yet: its generation has not committed an epoch\n")
        }
    }
    out
}

fn job(of: &JobStatus, now: DateTime<Utc>) -> String {
    let lag = of.lag.as_ref().map_or_else(
        || "lag unknown".to_owned(),
        |lag| format!("lag {} records, {:.0} s", lag.records, lag.seconds),
    );
    let epoch = of.epoch.as_ref().map_or_else(
        || "no epoch yet".to_owned(),
        |epoch| {
            let committed = ago(epoch.committed_at.epoch_millis(), now);
            format!("epoch {}, {committed}", epoch.number)
        },
    );
    let workers = of.graph.as_ref().map_or(0, |graph| graph.workers.len());
    let workers = match workers {
        0 => String::new(),
        1 => ", 1 worker".to_owned(),
        n => format!(", {n} workers"),
    };
    format!(
        "{}/{}: {:.0} rows/s in, {:.0} out, {lag}, {epoch}{workers}\n",
        of.namespace, of.job, of.rates.rows_in, of.rates.rows_out
    )
}

fn operators(out: &mut String, graph: &Graph) {
    let longest = graph.operators.iter().map(|o| o.uid.chars().count()).max();
    let wide = longest.unwrap_or_default().max("OPERATOR".len());
    let _ = writeln!(
        out,
        "\n{:<wide$}  {:>4}  {:>6}  {:>10}  {:>10}  {:>5}  {:>7}  {:>5}  {:>8}  {:>9}",
        "OPERATOR", "SLOT", "WORKER", "IN/S", "OUT/S", "BUSY", "BLOCKED", "IDLE", "ALIGN", "QUEUED"
    );
    let mut line = |uid: &str, slot: &str, worker: &str, of: &Figures| {
        let Figures {
            rates: (rows_in, rows_out),
            busy,
            blocked,
            idle,
            align,
            queued,
        } = of;
        let text = format!(
            "{uid:<wide$}  {slot:>4}  {worker:>6}  {rows_in:>10.0}  {rows_out:>10.0}  {:>5}  {:>7}  {:>5}  {:>8}  {:>9}",
            percent(*busy),
            percent(*blocked),
            percent(*idle),
            align.map_or_else(String::new, |ms| format!("{ms:.0} ms")),
            queued.map_or_else(String::new, |q| bytes(q.bytes)),
        );
        let _ = writeln!(out, "{}", text.trim_end());
    };
    for operator in &graph.operators {
        let [only] = &operator.subtasks[..] else {
            line(&operator.uid, "all", "", &Figures::of_all(operator));
            for subtask in &operator.subtasks {
                let (slot, worker) = (subtask.slot.to_string(), subtask.worker.to_string());
                line("", &slot, &worker, &Figures::of(subtask));
            }
            continue;
        };
        let (slot, worker) = (only.slot.to_string(), only.worker.to_string());
        line(&operator.uid, &slot, &worker, &Figures::of(only));
    }
}

/// A line of the table.
struct Figures {
    rates: (f64, f64),
    busy: f64,
    blocked: f64,
    idle: f64,
    align: Option<f64>,
    queued: Option<Queued>,
}

impl Figures {
    fn of(subtask: &Subtask) -> Self {
        Self {
            rates: (subtask.rates.rows_in, subtask.rates.rows_out),
            busy: subtask.busy,
            blocked: subtask.backpressured,
            idle: subtask.idle,
            align: subtask.alignment_ms,
            queued: subtask.queued,
        }
    }

    /// Sums of what can be summed, means of shares, the longest alignment.
    fn of_all(operator: &Operator) -> Self {
        let all = &operator.subtasks;
        let sum = |of: fn(&Subtask) -> f64| all.iter().map(of).sum::<f64>();
        let slots = all.len().max(1) as f64;
        let queued = all.iter().filter_map(|s| s.queued);
        Self {
            rates: (sum(|s| s.rates.rows_in), sum(|s| s.rates.rows_out)),
            busy: sum(|s| s.busy) / slots,
            blocked: sum(|s| s.backpressured) / slots,
            idle: sum(|s| s.idle) / slots,
            align: all.iter().filter_map(|s| s.alignment_ms).reduce(f64::max),
            queued: queued.reduce(|a, b| Queued {
                messages: a.messages + b.messages,
                bytes: a.bytes + b.bytes,
            }),
        }
    }
}

/// Nothing where no operator has had enough rows by key.
fn skew(out: &mut String, graph: &Graph) {
    let keyed = graph.operators.iter();
    let keyed = keyed.filter(|o| o.hottest_group.is_some() || o.hottest_key.is_some());
    let keyed: Vec<&Operator> = keyed.collect();
    let wide = keyed.iter().map(|o| o.uid.chars().count()).max();
    let Some(wide) = wide.map(|wide| wide.max("MOST ROWS OF".len())) else {
        return;
    };
    let _ = writeln!(
        out,
        "\n{:<wide$}  KEY GROUP  SHARE  SHARE  KEY",
        "MOST ROWS OF"
    );
    for operator in keyed {
        let (group, its_share) = operator.hottest_group.as_ref().map_or_else(
            || (String::new(), String::new()),
            |hot| (hot.group.to_string(), percent(hot.share)),
        );
        let (share, key) = operator.hottest_key.as_ref().map_or_else(
            || (String::new(), "none has 5 %".to_owned()),
            |hot| (percent(hot.share), plain(&hot.key)),
        );
        let _ = writeln!(
            out,
            "{:<wide$}  {group:>9}  {its_share:>5}  {share:>5}  {key}",
            operator.uid
        );
    }
}

/// A key is somebody's data: nothing in it is for the terminal.
fn plain(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.collect()
}

fn workers(out: &mut String, of: &JobStatus, graph: &Graph) {
    let _ = writeln!(
        out,
        "\nWORKER  SLOTS  {:>9}  MESSAGES  KEY GROUPS",
        "QUEUED"
    );
    for worker in &graph.workers {
        let ranges: Vec<String> = worker.ranges.iter().map(range).collect();
        let coordinates = match of.coordinator == Some(worker.worker) {
            true => ", coordinates",
            false => "",
        };
        let _ = writeln!(
            out,
            "{:>6}  {:>5}  {:>9}  {:>8.0}  {} ({}){coordinates}",
            worker.worker,
            worker.slots,
            bytes(worker.queued.bytes),
            worker.queued.messages,
            worker.key_groups,
            ranges.join(", ")
        );
    }
}

fn range(of: &KeyGroups) -> String {
    match of.first == of.last {
        true => of.first.to_string(),
        false => format!("{}-{}", of.first, of.last),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn bytes(n: f64) -> String {
    const K: f64 = 1024.0;
    match n {
        n if n < K => format!("{n:.0} B"),
        n if n < K * K => format!("{:.1} KiB", n / K),
        n if n < K * K * K => format!("{:.1} MiB", n / K / K),
        n => format!("{:.1} GiB", n / K / K / K),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn subtask(slot: u32, rates: (f64, f64), shares: [f64; 3], channels: bool) -> Value {
        let mut subtask = json!({
            "slot": slot, "worker": slot, "rows_in": 1000, "rows_out": 1000, "rates": {"in": rates.0, "out": rates.1},
            "busy": shares[0], "backpressured": shares[1], "idle": shares[2],
        });
        if channels {
            subtask["alignment_ms"] = json!(4.2 + f64::from(slot));
            subtask["queued"] = json!({"messages": 3.0, "bytes": 3000.0 * f64::from(slot)});
        }
        subtask
    }

    /// Two workers of one slot each, of which the second has the hot half of the rows.
    fn status() -> Value {
        json!({
            "job": "payments", "namespace": "risk", "log_id": "0", "generation": 4, "coordinator": 1, "phase": "Running", "engine": "0.1.0",
            "epoch": {"number": 7, "committed_at": "2026-01-01T00:00:00Z", "duration_ms": 20, "bytes": 1, "rows_in": 10, "rows_out": 2},
            "lag": {"records": 1200, "seconds": 3.4},
            "rates": {"in": 10_000.4, "out": 12.0},
            "counts": {"late": 0, "dead_letters": 0, "restarts": 0}, "sources": [], "sinks": [],
            "graph": {
                "seconds": 15.0,
                "operators": [
                    {"uid": "payments/source-0", "kind": "source", "stage": 0, "subtasks": [
                        subtask(0, (5000.0, 5000.0), [0.5, 0.25, 0.25], false),
                        subtask(1, (5000.0, 5000.0), [0.5, 0.25, 0.25], false),
                    ]},
                    {"uid": "alerts/window-aggregate-0", "kind": "window-aggregate", "stage": 1,
                     "inputs": [{"uid": "payments/source-0", "keyed": true}],
                     "hottest_group": {"group": 40, "share": 0.52}, "hottest_key": {"key": "card-7\u{1b}[2J", "share": 0.5}, "subtasks": [
                        subtask(0, (2500.0, 4.0), [0.2, 0.0, 0.8], true),
                        subtask(1, (7500.0, 8.0), [1.0, 0.0, 0.0], true),
                    ]},
                ],
                "workers": [
                    {"worker": 0, "slots": 1, "key_groups": 32, "ranges": [{"first": 0, "last": 31}], "queued": {"messages": 3.0, "bytes": 0.0}},
                    {"worker": 1, "slots": 1, "key_groups": 32, "ranges": [{"first": 32, "last": 63}], "queued": {"messages": 3.0, "bytes": 3000.0}},
                ],
            },
        })
    }

    fn shown(status: Value) -> String {
        let status: JobStatus = serde_json::from_value(status).unwrap();
        top(&status, "2026-01-01T00:00:02Z".parse().unwrap())
    }

    #[test]
    fn one_screen_shows_each_operator_in_each_slot_and_each_worker() {
        insta::assert_snapshot!(shown(status()));
    }

    #[test]
    fn a_generation_that_has_committed_nothing_says_so() {
        let mut status = status();
        for absent in ["graph", "epoch", "lag"] {
            status.as_object_mut().unwrap().remove(absent);
        }
        insta::assert_snapshot!(shown(status));
    }
}
