//! Logs of a job's name and what becomes of them (rule 11), with the programs as they run in pods: a job begins with the savepoint
//! of another, goes on with the log of an earlier one of its name, goes back; a deleted job's log goes, but for what is pinned.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{ended, free_port, get, terminate, until};

const FIRST: &str = "0f3c0000111122223333444455556666";
const SECOND: &str = "1f3c0000111122223333444455556666";

/// Each number leaves once: that it was there before is state.
const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: NAME, namespace: default}
spec:
  sources:
    - name: numbers
      files: {url: "file://FOLDER/in/", pattern: "*.jsonl", discoverInterval: 1s}
      format: {json: {}}
      columns: [{name: n, type: BIGINT}]
  sql: INSERT INTO out SELECT DISTINCT n FROM numbers
  sqlOptions: {allowUnboundedState: true}
  sinks: [{name: out, files: {url: "file://FOLDER/NAME/", rollInterval: 1s}, format: {json: {}}}]
  trigger: {continuous: {}}
  checkpoint: {interval: 100ms, storage: {local: {path: FOLDER/checkpoint}}}
  MORE
"#;

/// A place for jobs, their input and what they publish.
struct Place(tempfile::TempDir);

struct Worker {
    child: Child,
    port: u16,
}

impl Place {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(this.path().join("in")).unwrap();
        this
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn put(&self, name: &str, numbers: std::ops::Range<u64>) {
        let rows: String = numbers.map(|n| format!("{{\"n\": {n}}}\n")).collect();
        std::fs::write(self.path().join("new"), rows).unwrap();
        std::fs::rename(self.path().join("new"), self.path().join("in").join(name)).unwrap();
    }

    fn manifest(&self, name: &str, more: &str) -> std::path::PathBuf {
        let file = self.path().join(format!("{name}.yaml"));
        let text = JOB
            .replace("NAME", name)
            .replace("FOLDER", &self.path().display().to_string())
            .replace("MORE", more);
        std::fs::write(&file, text).unwrap();
        file
    }

    fn worker(&self, name: &str, log_id: &str, spec: &str, more: &[&str]) -> Worker {
        self.version("v", name, log_id, spec, more)
    }

    fn version(
        &self,
        version: &str,
        name: &str,
        log_id: &str,
        spec: &str,
        more: &[&str],
    ) -> Worker {
        let port = free_port();
        let child = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["--output", "json", "worker"])
            .arg(self.manifest(name, spec))
            .args(["--log-id", log_id, "--version", version])
            .args(["--memory", "256Mi", "--secrets", "/nonexistent"])
            .arg("--state")
            .arg(self.path().join(format!("state-{log_id}")))
            .arg("--failure")
            .arg(self.path().join("failure"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Worker { child, port }
    }

    /// What a step on the log answers, or why it does not succeed.
    fn step(&self, name: &str, log_id: &str, words: &[&str]) -> Result<Value, String> {
        let left = self.path().join("answer");
        let output = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["--output", "json", "step"])
            .arg(self.manifest(name, ""))
            .args(["--log-id", log_id, "--secrets", "/nonexistent"])
            .arg("--last-words")
            .arg(&left)
            .args(words)
            .output()
            .unwrap();
        let answer = std::fs::read_to_string(&left).unwrap();
        if output.status.success() {
            Ok(serde_json::from_str(&answer).unwrap())
        } else {
            Err(answer)
        }
    }

    /// What a job has published, sorted.
    fn published(&self, name: &str) -> Vec<u64> {
        let mut rows = Vec::new();
        for entry in std::fs::read_dir(self.path().join(name))
            .into_iter()
            .flatten()
        {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            for line in std::fs::read_to_string(path).unwrap().lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                rows.push(row["n"].as_u64().unwrap());
            }
        }
        rows.sort_unstable();
        rows
    }

    fn until_published(&self, name: &str, rows: impl Iterator<Item = u64>) {
        let rows: Vec<u64> = rows.collect();
        until("as many rows are published", || {
            (self.published(name).len() >= rows.len()).then_some(())
        });
        assert_eq!(self.published(name), rows);
    }

    /// Runs until these rows are published, then stops at a barrier.
    fn run(&self, worker: Worker, name: &str, rows: impl Iterator<Item = u64>) -> u64 {
        self.until_published(name, rows);
        worker.stop()
    }

    /// Objects below a job's log.
    fn objects(&self, name: &str, log_id: &str) -> usize {
        fn count(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).into_iter().flatten();
            entries
                .map(|e| e.unwrap().path())
                .map(|p| if p.is_dir() { count(&p) } else { 1 })
                .sum()
        }
        let folder = format!("checkpoint/default/{name}/{log_id}");
        count(&self.path().join(folder))
    }
}

impl Worker {
    fn status(&self) -> Option<Value> {
        serde_json::from_str(&get(self.port, "/status")?).ok()
    }

    /// The newest epoch by then.
    fn stop(mut self) -> u64 {
        let newest = || self.status()?["epoch"]["number"].as_u64();
        let epoch = until("it has committed", newest);
        terminate(&self.child);
        assert_eq!(ended(&mut self.child), Some(0));
        epoch
    }

    fn refused(mut self, place: &Place) -> String {
        assert_eq!(ended(&mut self.child), Some(2));
        std::fs::read_to_string(place.path().join("failure")).unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_job_begins_with_the_savepoint_of_another_and_outlives_it() {
    let place = Place::new();
    place.put("1.jsonl", 0..10);
    let begun = || place.worker("copies", FIRST, "", &[]);
    place.run(begun(), "copies", 0..10);
    let answer = place
        .step("copies", FIRST, &["savepoint", "before"])
        .unwrap();
    assert_eq!(answer["completed"], true, "{answer}");
    assert!(answer["bytes"].as_u64() > Some(0), "{answer}");
    place.put("2.jsonl", 5..20);
    place.run(begun(), "copies", 0..20);
    // Saying it again is saying it once: the epoch is that of the first time.
    let again = place
        .step("copies", FIRST, &["savepoint", "before"])
        .unwrap();
    assert_eq!(again["epoch"], answer["epoch"]);

    let restore = "restoreFrom: {savepoint: {name: before}}";
    let parent = format!("copies/{FIRST}");
    let with = ["--savepoint", parent.as_str()];
    let other = || place.worker("others", SECOND, restore, &with);
    // The second file is read again; what the first one had is in the state.
    let epoch = place.run(other(), "others", 10..20);
    assert!(Some(epoch) > answer["epoch"].as_u64());

    let removed = place.step("copies", FIRST, &["remove"]).unwrap();
    assert_eq!(removed["pinned"], serde_json::json!(["before"]));
    assert!(place.objects("copies", FIRST) > 0);
    place.step("copies", FIRST, &["unpin", "before"]).unwrap();
    assert_eq!(place.objects("copies", FIRST), 0);

    place.put("3.jsonl", 15..30);
    place.run(other(), "others", 10..30);
}

#[test]
fn a_savepoint_that_is_not_there_is_refused_and_nothing_is_begun() {
    let place = Place::new();
    place.put("1.jsonl", 0..10);
    let begun = place.worker("copies", FIRST, "", &[]);
    place.run(begun, "copies", 0..10);
    let restore = "restoreFrom: {savepoint: {name: before}}";
    for (parent, said) in [
        (
            format!("copies/{FIRST}"),
            "has no savepoint before; it has none",
        ),
        (format!("copies/{SECOND}"), "is not in"),
    ] {
        let other = place.worker("others", SECOND, restore, &["--savepoint", &parent]);
        let words = other.refused(&place);
        assert!(words.contains("PR0411") && words.contains(said), "{words}");
    }
    assert_eq!(place.objects("others", SECOND), 0);
    let none = place.step("others", SECOND, &["savepoint", "x"]).unwrap();
    assert_eq!(none["nothing"], true, "{none}");
}

#[test]
fn a_job_that_is_applied_again_goes_on_with_the_log_of_the_earlier_one_when_it_is_told_to() {
    let place = Place::new();
    place.put("1.jsonl", 0..10);
    let first = place.worker("copies", FIRST, "", &[]);
    place.run(first, "copies", 0..10);
    place.put("2.jsonl", 5..20);
    let refused = place.worker("copies", SECOND, "", &[]).refused(&place);
    assert!(refused.contains("PR0407"), "{refused}");
    let latest = "restoreFrom: {latest: {}}";
    let again = place.worker("copies", SECOND, latest, &[]);
    place.run(again, "copies", 0..20);
    assert_eq!(
        place.objects("copies", SECOND),
        0,
        "it has no log of its own"
    );
    // It finds the log again by itself, and the one whose log it was does not any more.
    place.put("3.jsonl", 15..30);
    let again = place.worker("copies", SECOND, "", &[]);
    place.run(again, "copies", 0..30);
    let removed = place.step("copies", SECOND, &["remove"]).unwrap();
    assert_eq!(removed["removed"], true);
    assert_eq!(place.objects("copies", FIRST), 0);
}

#[test]
fn a_job_goes_back_to_an_earlier_epoch_once_for_each_time_that_it_is_told_to() {
    let place = Place::new();
    place.put("1.jsonl", 0..10);
    let first = place.worker("copies", FIRST, "", &[]);
    let back = place.run(first, "copies", 0..10);
    place.put("2.jsonl", 5..20);
    let first = place.worker("copies", FIRST, "", &[]);
    place.run(first, "copies", 0..20);
    // Rows after the epoch leave again: that is what going back means.
    let order = format!("{back}@a");
    let twice = || (0..10).chain((10..20).flat_map(|n| [n, n]));
    let told = || place.worker("copies", FIRST, "", &["--go-back", &order]);
    place.run(told(), "copies", twice());
    // The pod starts again with the same words.
    place.put("3.jsonl", 20..30);
    place.run(told(), "copies", twice().chain(20..30));
    let unknown = place.worker("copies", FIRST, "", &["--go-back", "9999@b"]);
    let words = unknown.refused(&place);
    assert!(words.contains("PR0411"), "{words}");
    // A deleted job that is applied again may do the same.
    let epoch = format!("restoreFrom: {{epoch: {{number: {back}}}}}");
    let again = place.worker("copies", SECOND, &epoch, &[]);
    let thrice = (0..10).chain((10..20).flat_map(|n| [n, n, n]));
    place.run(again, "copies", thrice.chain((20..30).flat_map(|n| [n, n])));
}

#[test]
fn a_stateless_version_begins_empty_where_the_one_before_stopped_and_that_one_still_has_its_state()
{
    let place = Place::new();
    let savepoint = |version: &str, more: &[&str]| {
        let spec = "upgrade: {acceptAfter: 9m}";
        place.version(version, "copies", FIRST, spec, more)
    };
    place.put("1.jsonl", 0..10);
    place.run(savepoint("a", &[]), "copies", 0..10);
    // On trial, with a crash: it reads what is new, and nothing of what the operators held.
    place.put("2.jsonl", 5..15);
    let stateless = |accept: &str| {
        let spec = format!("upgrade: {{strategy: Stateless, acceptAfter: {accept}}}");
        place.version("b", "copies", FIRST, &spec, &[])
    };
    let read = |w: &Worker| {
        until("it has read", || {
            let s = w.status()?;
            (s["on_trial"] == true && s["counts"]["rows_out"].as_u64() >= Some(10)).then_some(())
        })
    };
    let b = stateless("9m");
    read(&b);
    drop(b);
    stateless("9m").stop();
    assert_eq!(place.published("copies"), (0..10).collect::<Vec<_>>());
    // It is given up: the one before knows what it has had.
    place.run(savepoint("a", &["--rollback"]), "copies", 0..15);
    place.put("3.jsonl", 10..20);
    // Accepted: rows of the third file are new to it, also those that had left before.
    let twice = (0..10).chain((10..15).flat_map(|n| [n, n])).chain(15..20);
    place.run(stateless("1s"), "copies", twice.clone());
    // From then on it holds what it has read, also from nothing but the checkpoint storage.
    std::fs::remove_dir_all(place.path().join(format!("state-{FIRST}"))).unwrap();
    place.put("4.jsonl", 15..25);
    place.run(stateless("1s"), "copies", twice.chain(20..25));
}
