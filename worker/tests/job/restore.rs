//! What a run begins with: the log of its name, whatever `startFresh` says; nothing, never where `restoreFrom` asks for something;
//! and input that is gone only with a person's consent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_checkpoint::record::Kind;
use penstock_worker::coordinator::progress::Progress;
use penstock_worker::coordinator::{AcceptLoss, Outcome};
use penstock_worker::error::{ErrorKind, Result};
use penstock_worker::job::{self as whole, RunOptions};
use tokio::sync::watch;

use super::job;

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: restored}
spec:
  sources:
    - name: t
      files: {url: "file://FOLDER/in/", pattern: "*.jsonl"}
      format: {json: {}}
      columns: [{name: id, type: BIGINT, nullable: false}]
      limits: {maxFilesPerEpoch: 1}
  sql: INSERT INTO out SELECT id FROM t
  sinks:
    - name: out
      files: {url: "file://FOLDER/out/"}
      format: {json: {}}
  trigger: {availableNow: {drain: false}}
  checkpoint: {storage: {local: {path: FOLDER/log}}}
"#;

fn run(folder: &Path, extra: &str, accept_loss: &[&str]) -> Result<Outcome> {
    run_as(&format!("{JOB}{extra}"), folder, accept_loss)
}

fn run_as(manifest: &str, folder: &Path, accept_loss: &[&str]) -> Result<Outcome> {
    let (spec, plan) = job(&manifest.replace("FOLDER", &folder.display().to_string()));
    let options = RunOptions {
        memory: 64 << 20,
        state: Some(folder.join("volume")),
        accept_loss: accept_loss
            .iter()
            .map(|s| AcceptLoss::parse(s, "a test").expect("a source"))
            .collect(),
        ..RunOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (_stop, stopping) = watch::channel(false);
    runtime.block_on(whole::run(
        &spec,
        plan,
        &options,
        Arc::new(Progress::default()),
        stopping,
    ))
}

fn ids(folder: &Path) -> Vec<i64> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(folder.join("out")).expect("the output is there") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let text = std::fs::read_to_string(path).expect("text");
            for line in text.lines() {
                let row: serde_json::Value = serde_json::from_str(line).expect("an object");
                ids.push(row["id"].as_i64().expect("a number"));
            }
        }
    }
    ids.sort_unstable();
    ids
}

fn input(folder: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(folder.join("in")).expect("made");
    std::fs::write(folder.join("in").join(name), text).expect("written");
}

#[test]
fn a_restore_without_a_log_is_refused_and_one_with_a_log_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    input(folder, "a.jsonl", "{\"id\":1}\n");
    for from in [
        "{savepoint: {name: before}}",
        "{latest: {}}",
        "{epoch: {number: 7}}",
    ] {
        let refused = run(folder, &format!("  restoreFrom: {from}\n"), &[]);
        let error = refused.expect_err("there is no log");
        assert_eq!(error.code, "PR0411", "{error}");
        assert!(
            error.to_string().contains("take restoreFrom out"),
            "{error}"
        );
    }
    run(folder, "", &[]).expect("it begins");
    input(folder, "b.jsonl", "{\"id\":2}\n");
    run(folder, "  restoreFrom: {latest: {}}\n", &[]).expect("it goes on");
    assert_eq!(ids(folder), [1, 2]);
}

#[test]
fn start_fresh_does_not_make_a_lost_volume_a_lost_job() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    input(folder, "a.jsonl", "{\"id\":1}\n");
    run(folder, "  startFresh: true\n", &[]).expect("it begins");
    std::fs::remove_dir_all(folder.join("volume")).expect("the volume is lost");
    input(folder, "b.jsonl", "{\"id\":2}\n");
    run(folder, "  startFresh: true\n", &[]).expect("it goes on");
    assert_eq!(ids(folder), [1, 2]);
}

#[test]
fn an_operator_that_was_dropped_begins_empty_when_it_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let distinct = JOB.replace("SELECT id", "SELECT DISTINCT id") + "  state: {ttl: 720h}\n";
    input(folder, "a.jsonl", "{\"id\":1}\n");
    run_as(&distinct, folder, &[]).expect("it begins");
    input(folder, "b.jsonl", "{\"id\":1}\n{\"id\":2}\n");
    run_as(&distinct, folder, &[]).expect("it goes on");
    assert_eq!(ids(folder), [1, 2], "what was seen is state");
    input(folder, "c.jsonl", "{\"id\":3}\n");
    run_as(JOB, folder, &[]).expect("the operator is gone");
    input(folder, "d.jsonl", "{\"id\":1}\n{\"id\":1}\n{\"id\":3}\n");
    run_as(&distinct, folder, &[]).expect("it is back");
    assert_eq!(ids(folder), [1, 1, 2, 3, 3], "it has seen nothing yet");
    std::fs::remove_dir_all(folder.join("volume")).expect("the volume is lost");
    input(folder, "e.jsonl", "{\"id\":1}\n{\"id\":2}\n");
    run_as(&distinct, folder, &[]).expect("it goes on");
    assert_eq!(ids(folder), [1, 1, 2, 2, 3, 3]);
}

#[test]
fn input_that_is_gone_stops_the_job_until_the_loss_is_accepted_and_the_log_keeps_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    input(folder, "a.jsonl", "{\"id\":1}\n");
    input(folder, "b.jsonl", "no json\n");
    let failed = run(folder, "", &[]).expect_err("the second file is bad");
    assert_eq!(failed.code, "PR0201", "{failed}");
    std::fs::remove_file(folder.join("in/b.jsonl")).expect("deleted");
    input(folder, "c.jsonl", "{\"id\":3}\n");
    let gone = run(folder, "", &[]).expect_err("a file is gone");
    assert_eq!(gone.code, "PR0207", "{gone}");
    assert!(gone.to_string().contains("--accept-loss t"), "{gone}");
    let (_, at) = gone
        .to_string()
        .split_once("--accept-loss t@")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("the epoch is named");
    let at: u64 = at
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let other = format!("t@{}", at + 1);
    let still = run(folder, "", &[&other]).expect_err("that was another loss");
    assert_eq!(still.code, "PR0207", "{still}");
    run(folder, "", &[&format!("t@{at}")]).expect("the loss is accepted");
    // What the first run took for the end is read to it; what came since is the next run's.
    assert_eq!(ids(folder), [1]);
    input(folder, "d.jsonl", "{\"id\":4}\n");
    run(folder, "", &[]).expect("once accepted, always accepted");
    assert_eq!(ids(folder), [1, 3, 4]);
    let losses = records(folder)
        .into_iter()
        .filter(|kind| matches!(kind, Kind::LossAccepted(_)));
    assert_eq!(losses.count(), 1);
}

/// Objects of a kind in the log of the only job, in order of their names.
fn objects(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let below = std::fs::read_dir(folder.join("log/default/restored")).expect("a job's logs");
    let mut below = below.map(|entry| entry.expect("an entry").path());
    let log = below.find(|path| path.join("log").is_dir()).expect("a log");
    let mut files = vec![];
    let mut folders = vec![log.join(kind)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// A job that has state, in its log alone.
fn with_state(folder: &Path) -> String {
    let distinct = JOB.replace("SELECT id", "SELECT DISTINCT id");
    let distinct = format!("{distinct}  sqlOptions: {{allowUnboundedState: true}}\n");
    input(folder, "a.jsonl", "{\"id\":1}\n{\"id\":2}\n");
    run_as(&distinct, folder, &[]).expect("it begins");
    std::fs::remove_dir_all(folder.join("volume")).expect("the volume is lost");
    input(folder, "b.jsonl", "{\"id\":1}\n{\"id\":3}\n");
    distinct
}

#[test]
fn what_the_log_names_and_has_not_is_final_and_so_is_what_is_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let distinct = with_state(folder);
    let packs: Vec<(PathBuf, Vec<u8>)> = objects(folder, "pack")
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).expect("read")))
        .collect();
    assert!(!packs.is_empty());
    for (path, bytes) in &packs {
        let damaged: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
        std::fs::write(path, damaged).expect("written");
    }
    let error = run_as(&distinct, folder, &[]).expect_err("damaged");
    assert_eq!(
        (error.code, error.kind),
        ("PR0404", ErrorKind::Invalid),
        "{error}"
    );
    packs
        .iter()
        .for_each(|(path, _)| std::fs::remove_file(path).expect("removed"));
    let error = run_as(&distinct, folder, &[]).expect_err("gone");
    assert_eq!(
        (error.code, error.kind),
        ("PR0405", ErrorKind::Invalid),
        "{error}"
    );
    for (path, bytes) in &packs {
        std::fs::write(path, bytes).expect("put back");
    }
    run_as(&distinct, folder, &[]).expect("a person has mended it");
    assert_eq!(ids(folder), [1, 2, 3]);
}

#[test]
fn a_log_of_a_newer_version_is_refused_by_its_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    input(folder, "a.jsonl", "{\"id\":1}\n");
    run(folder, "", &[]).expect("it begins");
    // The first name is the newest record's.
    let newest = objects(folder, "log").remove(0);
    let text = std::fs::read_to_string(&newest).expect("text");
    let (body, _) = text.split_once('\n').expect("a line and its checksum");
    let mut record: serde_json::Value = serde_json::from_str(body).expect("a record");
    record["min_reader"] = 99.into();
    let body = record.to_string();
    let sealed = format!("{body}\ncrc32c:{:08x}\n", crc32c::crc32c(body.as_bytes()));
    std::fs::write(&newest, sealed).expect("written");
    let error = run(folder, "", &[]).expect_err("it is newer");
    assert_eq!(
        (error.code, error.kind),
        ("PR0406", ErrorKind::Invalid),
        "{error}"
    );
    assert!(error.to_string().contains("reader 99"), "{error}");
}

fn records(folder: &Path) -> Vec<Kind> {
    let text = JOB.replace("FOLDER", &folder.display().to_string());
    let (spec, _) = job(&text);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let store = whole::open_store(&spec, None).expect("a store");
        let logs = store.logs().await.expect("listed");
        let of = store.below(&logs[0].to_string());
        let records = penstock_checkpoint::log::read_all(&of).await.expect("read");
        records.into_iter().map(|r| r.kind).collect()
    })
}
