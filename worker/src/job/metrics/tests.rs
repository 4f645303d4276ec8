//! No manifest makes as many series as a Prometheus would mind.

use std::time::Duration;

use penstock_crds::job::StreamingJob;

use super::*;
use crate::coordinator::progress::SourceNow;
use crate::task::{OperatorCounts, TaskTimes};

/// The most that a worker may show.
const SERIES: usize = 2000;

/// A job with so many sources and sinks; only their names count.
fn job(sources: usize, sinks: usize) -> StreamingJob {
    let text = r#"{"apiVersion": "penstock.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "large"}, "spec": {
        "sources": [{"name": "s", "generator": {}, "columns": []}], "sql": "", "sinks": [{"name": "k", "print": {}}]}}"#;
    let mut job: StreamingJob = serde_json::from_str(text).expect("a job");
    let (source, sink) = (job.spec.sources[0].clone(), job.spec.sinks[0].clone());
    job.spec.sources = (0..sources)
        .map(|i| {
            let mut source = source.clone();
            source.name = format!("source_{i}");
            source
        })
        .collect();
    job.spec.sinks = (0..sinks)
        .map(|i| {
            let mut sink = sink.clone();
            sink.name = format!("sink_{i}");
            sink
        })
        .collect();
    job
}

/// What such a job counts, with everything that can have a series.
fn measured(job: &StreamingJob, operators: usize, partitions: usize) -> (Now, Timings) {
    let mut now = Now::default();
    now.watermark = Some(1);
    let timings = Timings::default();
    let one = TaskTimes {
        busy: Duration::from_secs(1),
        ..TaskTimes::default()
    };
    for source in &job.spec.sources {
        now.by_source.push(SourceNow {
            rows: 1,
            bytes: 1,
            ..SourceNow::default()
        });
        now.times.insert(format!("{}/source-0", source.name), one);
    }
    for sink in &job.spec.sinks {
        now.sink_rows.push(1);
        now.sink_errors.insert(sink.name.clone(), 1);
        now.times.insert(format!("{}/sink-0", sink.name), one);
        let label = BySink {
            sink: sink.name.clone(),
        };
        timings.processing.get_or_create(&label).observe(1.0);
        timings.e2e.get_or_create(&label).observe(1.0);
    }
    for i in 0..operators {
        let uid = format!("view/calc-{i:03}");
        let counts = OperatorCounts {
            rows_in: 1,
            state_keys: 2,
            memory_bytes: 3,
            ..OperatorCounts::default()
        };
        now.operators.insert(uid.clone(), counts);
        now.times.insert(uid, one);
    }
    let sources = job.spec.sources.len();
    now.lags = (0..partitions)
        .map(|i| SplitLag {
            source: i % sources,
            split: format!("topic/{i}"),
            records: 1,
            seconds: 1.0,
        })
        .collect();
    for why in Restart::ALL {
        now.restarts.insert(why, 1);
    }
    (now, timings)
}

/// Series by family: each bucket of a histogram is one.
fn series(scrape: &str) -> BTreeMap<&str, usize> {
    let mut by = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        *by.entry(line.split(['{', ' ']).next().unwrap_or_default())
            .or_default() += 1;
    }
    by
}

fn scrape(sources: usize, sinks: usize, operators: usize, partitions: usize) -> String {
    let job = job(sources, sinks);
    let (now, timings) = measured(&job, operators, partitions);
    text(&job, &now, &timings, 0)
}

#[test]
fn no_manifest_has_two_thousand_series() {
    for sources in [1, 32] {
        for sinks in 1..=32 {
            for operators in [0, 39, 41, 60, 133, 134, 500] {
                for partitions in [0, PARTITIONS, 10_000] {
                    let scrape = scrape(sources, sinks, operators, partitions);
                    let by = series(&scrape);
                    let all: usize = by.values().sum();
                    assert!(
                        all < SERIES,
                        "{all} series of {sources} sources, {sinks} sinks, {operators} operators, {partitions} partitions: {by:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_has_no_series_of_its_own_is_in_the_sum() {
    let sum = |scrape: &str, family: &str| -> f64 {
        let samples = scrape.lines().filter(|line| line.starts_with(family));
        samples
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    };
    let scrape = scrape(32, 32, 500, 10_000);
    assert_eq!(sum(&scrape, "penstock_operator_input_rows_total{"), 500.0);
    assert_eq!(sum(&scrape, "penstock_state_keys{"), 1000.0);
    assert_eq!(sum(&scrape, "penstock_state_bytes{"), 1500.0);
    assert_eq!(sum(&scrape, "penstock_task_time_seconds_total{"), 564.0);
    assert_eq!(sum(&scrape, "penstock_source_lag_records{"), 10_000.0);
    let other = r#"penstock_operator_input_rows_total{operator="other"} 460"#;
    assert!(scrape.contains(other), "{scrape}");
    // A source or a sink is never among the others.
    assert!(scrape.contains(r#"operator="source_31/source-0",state="busy"} 1"#));
}

#[test]
fn with_few_sinks_a_large_job_shows_every_operator() {
    let scrape = scrape(1, 1, 133, 1);
    assert!(!scrape.contains(r#"operator="other""#), "{scrape}");
    assert!(scrape.contains(r#"operator="view/calc-132"} 1"#));
}
