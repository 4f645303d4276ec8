//! The first process of a pod: it starts the engine again, ends when it is told to, and leaves its last words when it gives up.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{LOG_ID, ended, free_port, get, signal, terminate, until};

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: ticks, namespace: default}
spec:
  sources:
    - name: ticks
      generator: {rowsPerSecond: 100}
      columns: [{name: n, type: BIGINT, generate: {sequence: {start: 0}}}]
  sql: INSERT INTO out SELECT n FROM ticks
  sinks: [{name: out, print: {}}]
  checkpoint: {interval: 100ms, storage: {local: {path: CHECKPOINT}}}
"#;

struct Supervisor {
    child: Child,
    health: u16,
    engine: u16,
}

impl Supervisor {
    fn start(folder: &Path, job: &str, more: &[&str]) -> Self {
        let file = folder.join("job.yaml");
        let checkpoint = folder.join("checkpoint").display().to_string();
        std::fs::write(&file, job.replace("CHECKPOINT", &checkpoint)).unwrap();
        let (health, engine) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["supervise", "--first-pause", "100ms"])
            .args(["--health", &format!("127.0.0.1:{health}")])
            .args(["--engine", &format!("127.0.0.1:{engine}")])
            .arg("--last-words")
            .arg(folder.join("words"))
            .args(more)
            .arg("--")
            .arg(file)
            .args(["--log-id", LOG_ID])
            .args(["--memory", "256Mi", "--secrets", "/nonexistent"])
            .arg("--state")
            .arg(folder.join("state"))
            .args(["--listen", &format!("127.0.0.1:{engine}")])
            .envs([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            health,
            engine,
        }
    }

    fn engine_pid(&self) -> Option<i32> {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// The number of the newest epoch, when the engine answers.
    fn epoch(&self) -> Option<u64> {
        let body = get(self.engine, "/status")?;
        let status: serde_json::Value = serde_json::from_str(&body).ok()?;
        status["epoch"]["number"].as_u64()
    }

    fn wait(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        until(what, || enough(self).then_some(()));
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(pid) = self.engine_pid().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_engine_that_is_killed_starts_again_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = Supervisor::start(folder.path(), JOB, &[]);
    s.wait("the first epoch", |s| s.epoch().is_some());
    assert_eq!(get(s.health, "/healthz").as_deref(), Some("ok\n"));
    s.wait("readiness", |s| get(s.engine, "/readyz").is_some());
    let before = s.epoch().unwrap();
    let first = s.engine_pid().unwrap();
    signal(first, Signal::KILL);
    assert_eq!(get(s.health, "/healthz").as_deref(), Some("ok\n"));
    s.wait("a later epoch", |s| s.epoch().is_some_and(|e| e > before));
    assert_ne!(s.engine_pid(), Some(first));
    terminate(&s.child);
    assert_eq!(ended(&mut s.child), Some(0));
}

#[test]
fn a_job_that_is_refused_ends_the_container_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = JOB.replace("SELECT n FROM", "SELECT m FROM");
    let mut s = Supervisor::start(folder.path(), &wrong, &[]);
    assert_eq!(ended(&mut s.child), Some(2));
    let words = std::fs::read_to_string(folder.path().join("words")).unwrap();
    assert!(words.contains("PR0410"), "{words}");
}

#[test]
fn an_engine_that_starts_while_storage_refuses_it_waits_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let storage = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let s3 = format!(
        "s3: {{bucket: b, endpoint: \"http://{}\", pathStyle: true}}",
        storage.local_addr().unwrap()
    );
    let refuse = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    std::thread::spawn(move || {
        for mut asked in storage.incoming().flatten() {
            let _ = asked.read(&mut [0; 4096]);
            let _ = asked.write_all(refuse.as_bytes());
        }
    });
    let job = JOB.replace("local: {path: CHECKPOINT}", &s3);
    let mut s = Supervisor::start(folder.path(), &job, &["--restarts-per-hour", "0"]);
    s.wait("it says why it waits", |s| {
        let body = get(s.engine, "/status").unwrap_or_default();
        body.contains("\"PR0402\"")
    });
    assert!(s.engine_pid().is_some());
    terminate(&s.child);
    assert_eq!(ended(&mut s.child), Some(0));
    assert!(!folder.path().join("words").exists());
}

#[test]
fn a_job_that_fails_again_and_again_is_given_up_with_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    // The place of the log is a file.
    std::fs::write(folder.path().join("checkpoint"), "").unwrap();
    let mut s = Supervisor::start(folder.path(), JOB, &["--restarts-per-hour", "2"]);
    assert_eq!(ended(&mut s.child), Some(1));
    let words = std::fs::read_to_string(folder.path().join("words")).unwrap();
    assert!(words.contains("\"code\""), "{words}");
}
