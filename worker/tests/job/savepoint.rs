//! Savepoints that are asked for while a job runs, by any trigger: pinned once, completed when everything is published, given up.

use std::sync::Arc;
use std::time::Duration;

use penstock_checkpoint::log::read_all;
use penstock_checkpoint::record::Kind;
use penstock_worker::coordinator::Asked;
use penstock_worker::coordinator::progress::{Now, Phase, Progress};
use penstock_worker::job::{self as whole, RunOptions};
use tokio::sync::watch;
use tokio::time::Instant;

use super::job;

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: pins}
spec:
  sources:
    - name: ticks
      generator: {rowsPerSecond: 200}
      columns: [{name: n, type: BIGINT, generate: {sequence: {start: 0}}}]
  sql: INSERT INTO out SELECT DISTINCT n FROM ticks
  sqlOptions: {allowUnboundedState: true}
  sinks: [{name: out, files: {url: "file://FOLDER/out/", rollInterval: 1s}, format: {json: {}}}]
  trigger: TRIGGER
  checkpoint: {interval: INTERVAL, storage: {local: {path: FOLDER/log}}}
"#;

async fn until(progress: &Progress, what: &str, enough: impl Fn(&Now) -> bool) -> Now {
    let last = Instant::now() + Duration::from_secs(60);
    loop {
        let now = progress.now();
        if enough(&now) {
            return now;
        }
        assert!(Instant::now() < last, "in vain: {what}: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pinned_while_it_runs(trigger: &str, interval: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let text = JOB
        .replace("FOLDER", &folder.path().display().to_string())
        .replace("TRIGGER", trigger)
        .replace("INTERVAL", interval);
    let (spec, plan) = job(&text);
    let (asking, asked) = watch::channel(Asked::default());
    let options = RunOptions {
        memory: 64 << 20,
        state: Some(folder.path().join("volume")),
        asked: Some(asked),
        ..RunOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let progress = Arc::new(Progress::default());
        let (stop, stopping) = watch::channel(false);
        let (running, watched) = (spec.clone(), progress.clone());
        let run =
            tokio::spawn(
                async move { whole::run(&running, plan, &options, watched, stopping).await },
            );
        until(&progress, "it runs and reads", |n| {
            n.phase == Phase::Running
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        asking.send_modify(|asked| asked.pin("one"));
        // Of an interval of an hour nobody waits for the end.
        let pinned = until(&progress, "it is completed", |n| {
            n.pins.get("one").is_some_and(|p| p.epoch <= n.published)
        })
        .await
        .pins["one"];
        assert!(pinned.bytes > 0);
        asking.send_modify(|asked| asked.pin("two"));
        let later = until(&progress, "the second", |n| n.pins.contains_key("two")).await;
        assert_eq!(later.pins["one"], pinned, "it stays where it is");
        // A planned epoch is made when there is input: the newest may still be the same.
        let planned = !trigger.contains("continuous");
        let two = later.pins["two"].epoch;
        assert!(two > pinned.epoch || planned && two == pinned.epoch);
        asking.send_modify(|asked| asked.unpin("one"));
        asking.send_modify(|asked| asked.pin("three"));
        until(&progress, "it is given up", |n| !n.pins.contains_key("one")).await;
        stop.send(true).expect("somebody listens");
        run.await.expect("no panic").expect("it stops");
        let store = whole::open_store(&spec, None).expect("a store");
        let logs = store.logs().await.expect("listed");
        let log = store.below(&logs[0].to_string());
        let mut names = Vec::new();
        for record in read_all(&log).await.expect("read") {
            match record.kind {
                Kind::Pin(pin) => names.push(pin.name),
                Kind::Unpin(unpin) => names.push(format!("-{}", unpin.name)),
                _ => {}
            }
        }
        names.sort();
        assert_eq!(names, ["-one", "one", "three", "two"]);
    });
}

#[test]
fn a_continuous_job_pins_an_epoch_when_it_is_asked_and_not_at_the_next_interval() {
    pinned_while_it_runs("{continuous: {}}", "10m");
}

#[test]
fn a_planned_job_pins_its_newest_epoch() {
    pinned_while_it_runs("{processingTime: {interval: 100ms}}", "10s");
}
