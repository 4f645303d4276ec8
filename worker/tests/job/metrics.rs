//! What `/metrics` and `/status` say of a running job is what the book says that they say.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use penstock_worker::coordinator::Outcome;
use penstock_worker::coordinator::progress::Progress;
use penstock_worker::job::{self as whole, RunOptions, http};
use tokio::sync::watch;

use super::{ask, job, repository};

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: measured}
spec:
  sources:
    - name: ticks
      generator: {rowsPerSecond: 2000, rows: 1000000}
      columns:
        - {name: n, type: BIGINT, generate: {sequence: {}}}
        - {name: ts, type: TIMESTAMP(3), nullable: false, generate: {now: {}}}
      watermark: {column: ts, maxOutOfOrderness: 0s}
  sql: |
    INSERT INTO out SELECT window_start, COUNT(*) AS c
    FROM TUMBLE(TABLE ticks, DESCRIPTOR(ts), INTERVAL '1' SECOND) GROUP BY window_start, window_end
  sinks:
    - name: out
      print: {}
  # The one split leaves two slots idle: event time goes on without them.
  workers: {slots: 3}
  trigger: {continuous: {}}
  checkpoint: {interval: 100ms, storage: {local: {path: FOLDER/log}}}
"#;

/// Names in the first column of the reference's table.
fn documented() -> BTreeSet<String> {
    let text =
        std::fs::read_to_string(repository("docs/src/reference/metrics.md")).expect("the page");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

/// Names of the samples, as the reference has them: without the prefix, histograms by their own name.
fn sampled(scrape: &str) -> BTreeSet<String> {
    let histograms: BTreeSet<&str> = scrape
        .lines()
        .filter_map(|line| {
            line.strip_prefix("# TYPE penstock_")?
                .strip_suffix(" histogram")
        })
        .collect();
    let samples = scrape.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let name = name.strip_prefix("penstock_").expect("the prefix");
            let parts = ["_bucket", "_sum", "_count"];
            let base = parts.iter().find_map(|part| name.strip_suffix(part));
            base.filter(|base| histograms.contains(base))
                .unwrap_or(name)
                .to_owned()
        })
        .collect()
}

#[test]
fn every_documented_metric_has_a_sample_and_no_other_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = JOB.replace("FOLDER", &folder.path().display().to_string());
    let (spec, plan) = job(&manifest);
    let options = RunOptions {
        memory: 64 << 20,
        state: Some(folder.path().join("volume")),
        ..RunOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let progress = Arc::new(Progress::default());
    let shown = http::Shown {
        job: spec.clone(),
        plan: plan.clone(),
        progress: progress.clone(),
    };
    let address = runtime
        .block_on(http::serve(SocketAddr::from(([127, 0, 0, 1], 0)), shown))
        .expect("it listens");
    let (stop, stopping) = watch::channel(false);
    let running =
        runtime.spawn(async move { whole::run(&spec, plan, &options, progress, stopping).await });
    let expected = documented();
    assert!(expected.len() > 20, "{expected:?}");
    let mut scrape = String::new();
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(100));
        (_, scrape) = ask(address, "/metrics");
        if sampled(&scrape) == expected {
            break;
        }
    }
    let found = sampled(&scrape);
    let missing: Vec<_> = expected.difference(&found).collect();
    let more: Vec<_> = found.difference(&expected).collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "without a sample: {missing:?}; not documented: {more:?}"
    );
    let series = scrape.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 2000, "{series} series");
    let (_, status) = ask(address, "/status");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["sources"][0]["name"], "ticks");
    assert!(status["counts"]["rows_in"].as_u64() > Some(0), "{status}");
    assert!(status["lag"]["seconds"].is_number(), "{status}");
    let operators = status["graph"]["operators"].as_array();
    for operator in operators.expect("it has committed") {
        let subtasks = operator["subtasks"].as_array().expect("subtasks");
        assert_eq!(subtasks.len(), 3, "one in each slot: {operator}");
        for subtask in subtasks {
            let share = |of: &str| subtask[of].as_f64().expect("a share");
            let all = share("busy") + share("backpressured") + share("idle");
            assert!((all - 1.0).abs() < 0.01, "{operator}");
        }
    }
    stop.send(true).expect("it runs");
    let ended = runtime.block_on(running).expect("no panic");
    assert!(
        matches!(ended, Ok(Outcome::Stopped { pending: None, .. })),
        "{ended:?}"
    );
}
