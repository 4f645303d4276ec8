//! A new version on trial (rule 10), with the program as it runs in a pod: nothing of it is published before it is accepted, a
//! version that comes back reads again what the failed one had read, and one that was accepted cannot be undone.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{LOG_ID, ended, free_port, get, terminate, until};

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: copies, namespace: default}
spec:
  sources:
    - name: numbers
      files: {url: "file://FOLDER/in/", pattern: "*.jsonl", discoverInterval: 1s}
      format: {json: {}}
      columns: [{name: n, type: BIGINT}]
  sql: INSERT INTO out SELECT n, 'VERSION' AS v FROM numbers
  sinks: [{name: out, files: {url: "file://FOLDER/out/", rollInterval: 1s}, format: {json: {}}}]
  trigger: {continuous: {}}
  checkpoint: {interval: 100ms, storage: {local: {path: FOLDER/checkpoint}}}
  upgrade: {acceptAfter: ACCEPT}
"#;

struct Worker {
    child: Child,
    port: u16,
}

impl Worker {
    fn start(folder: &Path, version: &str, accept_after: &str, more: &[&str]) -> Self {
        let file = folder.join(format!("{version}.yaml"));
        let text = JOB
            .replace("FOLDER", &folder.display().to_string())
            .replace("VERSION", version)
            .replace("ACCEPT", accept_after);
        std::fs::write(&file, text).unwrap();
        let port = free_port();
        let child = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["--output", "json", "worker"])
            .arg(file)
            .args(["--log-id", LOG_ID, "--version", version])
            .args(["--memory", "256Mi", "--secrets", "/nonexistent"])
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--failure")
            .arg(folder.join("failure"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_str(&get(self.port, "/status")?).ok()
    }

    fn wait(&self, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
        until(what, || self.status().filter(&enough))
    }

    fn stop(mut self) {
        terminate(&self.child);
        assert_eq!(ended(&mut self.child), Some(0));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn put(folder: &Path, name: &str, numbers: std::ops::Range<u32>) {
    let rows: String = numbers.map(|n| format!("{{\"n\": {n}}}\n")).collect();
    // In one step: a file that is being written would be read in part.
    std::fs::write(folder.join("new"), rows).unwrap();
    std::fs::rename(folder.join("new"), folder.join("in").join(name)).unwrap();
}

/// What was published, sorted: number and version.
fn published(folder: &Path) -> Vec<(u64, String)> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(folder.join("out")).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            rows.push((
                row["n"].as_u64().unwrap(),
                row["v"].as_str().unwrap().to_owned(),
            ));
        }
    }
    rows.sort();
    rows
}

fn expected(parts: &[(std::ops::Range<u64>, &str)]) -> Vec<(u64, String)> {
    let rows = parts
        .iter()
        .flat_map(|(r, v)| r.clone().map(|n| (n, (*v).to_owned())));
    rows.collect()
}

fn until_published(folder: &Path, rows: &[(u64, String)]) {
    until("as many rows are published", || {
        (published(folder).len() >= rows.len()).then_some(())
    });
    assert_eq!(published(folder), rows);
}

fn on_trial(status: &Value) -> bool {
    status["on_trial"] == true
}

#[test]
fn nothing_of_a_trial_is_published_before_it_is_accepted_and_a_rollback_reads_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::create_dir(folder.join("in")).unwrap();
    put(folder, "1.jsonl", 0..10);
    let a = Worker::start(folder, "a", "9m", &[]);
    until_published(folder, &expected(&[(0..10, "a")]));
    let status = a.wait("version a runs", |s| s["version"] == "a");
    assert!(
        !on_trial(&status),
        "the first version is nobody's successor"
    );
    a.stop();

    // On trial, through a crash too: it reads and commits, and nothing leaves.
    put(folder, "2.jsonl", 10..20);
    let b = Worker::start(folder, "b", "9m", &[]);
    let read = |s: &Value| s["counts"]["rows_in"] == 10 && s["phase"] == "Running";
    let status = b.wait("b has read and committed", read);
    assert!(on_trial(&status), "{status}");
    drop(b);
    let b = Worker::start(folder, "b", "9m", &[]);
    let epoch = status["epoch"]["number"].as_u64();
    b.wait("it commits again", |s| {
        s["epoch"]["number"].as_u64() > epoch
    });
    assert!(on_trial(&b.status().unwrap()));
    assert_eq!(published(folder), expected(&[(0..10, "a")]));
    b.stop();

    // It is given up: the version before reads again what it had read.
    let a = Worker::start(folder, "a", "9m", &["--rollback"]);
    until_published(folder, &expected(&[(0..20, "a")]));
    assert!(!on_trial(&a.status().unwrap()));
    a.stop();
    // The way back may be walked twice: a pod starts again with the same words.
    let a = Worker::start(folder, "a", "9m", &["--rollback"]);
    a.wait("a runs again", |s| s["phase"] == "Running");
    a.stop();

    // Another try, which is accepted, and everything that was staged leaves.
    put(folder, "3.jsonl", 20..30);
    let b = Worker::start(folder, "b", "1s", &[]);
    until_published(folder, &expected(&[(0..20, "a"), (20..30, "b")]));
    b.wait("it is accepted", |s| !on_trial(s));
    put(folder, "4.jsonl", 30..40);
    until_published(folder, &expected(&[(0..20, "a"), (20..40, "b")]));
    b.stop();

    // What was published cannot be undone.
    let mut a = Worker::start(folder, "a", "9m", &["--rollback"]);
    assert_eq!(ended(&mut a.child), Some(2));
    let words = std::fs::read_to_string(folder.join("failure")).unwrap();
    assert!(words.contains("PR0413"), "{words}");
    assert_eq!(published(folder), expected(&[(0..20, "a"), (20..40, "b")]));
}
