//! When changes leave: as soon as the input has run dry only where that brings them out sooner.

mod job;

use job::plan;
use penstock_plan::emission::at_once;
use penstock_plan::graph::{Op, Phase};

const ALLOW: &str = "  sqlOptions: {allowUnboundedState: true}\n";

/// Uids of the nodes whose changes leave at once, sources and sinks apart, where these sinks publish at once.
fn hurried(sql: &str, sinks: &[&str]) -> Vec<String> {
    let graph = plan(sql, ALLOW).expect("it plans").graph;
    let leaves = at_once(&graph, |name| sinks.contains(&name));
    let named = graph.nodes.iter().zip(leaves).filter(|(node, leaves)| {
        *leaves
            && !matches!(
                node.op,
                Op::Source { .. } | Op::Sink { .. } | Op::Calc { .. }
            )
    });
    named
        .map(|(node, _)| {
            let partial = matches!(
                node.op,
                Op::WindowAggregate {
                    phase: Phase::Partial,
                    ..
                }
            );
            let phase = if partial { " partial" } else { "" };
            format!("{}{phase}", node.uid.0)
        })
        .collect()
}

const GROUPED: &str =
    "INSERT INTO changes SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin";

#[test]
fn an_aggregate_is_hurried_by_a_sink_that_publishes_at_once_and_by_no_other() {
    assert_eq!(hurried(GROUPED, &["changes"]), ["changes/aggregate-0"]);
    assert_eq!(hurried(GROUPED, &[]), [""; 0]);
}

#[test]
fn a_chain_of_aggregates_is_hurried_as_a_whole() {
    let sql = "INSERT INTO changes SELECT n, COUNT(*) AS places FROM (SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin) GROUP BY n";
    assert_eq!(hurried(sql, &["changes"]).len(), 2);
}

#[test]
fn where_sinks_differ_what_they_share_waits_and_the_rest_does_not() {
    let sql = "CREATE VIEW per AS SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin;
INSERT INTO changes SELECT origin, n FROM per;
INSERT INTO keyed SELECT dest, COUNT(*) AS n FROM flights GROUP BY dest";
    assert_eq!(hurried(sql, &["keyed"]), ["keyed/aggregate-0"]);
    let shared =
        "CREATE VIEW per AS SELECT origin AS dest, COUNT(*) AS n FROM flights GROUP BY origin;
INSERT INTO changes SELECT dest, n FROM per;
INSERT INTO keyed SELECT dest, n FROM per";
    assert_eq!(hurried(shared, &["keyed"]), [""; 0]);
    assert_eq!(hurried(shared, &["changes", "keyed"]).len(), 1);
}

#[test]
fn nothing_is_hurried_that_waits_for_a_watermark_or_for_the_whole_result() {
    let window = "FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end";
    let closed = format!("INSERT INTO out SELECT origin, window_start, COUNT(*) AS n {window}");
    let graph = plan(&closed, "").expect("it plans").graph;
    let leaves = at_once(&graph, |_| true);
    for (node, leaves) in graph.nodes.iter().zip(leaves) {
        if let Op::WindowAggregate { phase, .. } = node.op {
            assert_eq!(leaves, phase == Phase::Final, "{}", node.uid.0);
        }
    }
    let whole = "INSERT INTO whole SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin";
    assert_eq!(hurried(whole, &["whole"]), [""; 0]);
}

#[test]
fn both_phases_of_a_window_that_is_told_early_are_hurried() {
    let sql = "INSERT INTO changes SELECT origin, window_start, window_end, COUNT(*) AS n FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end EMIT ON WINDOW UPDATE";
    let hurried = hurried(sql, &["changes"]);
    assert_eq!(hurried.len(), 2, "{hurried:?}");
    assert!(hurried[0].ends_with(" partial"), "{hurried:?}");
}
