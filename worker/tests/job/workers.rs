//! `penstock run --workers N`: the processes themselves. What they publish is what one would, whoever is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Twelve splits: each worker reads some.
const VISITS: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: visits}
spec:
  sources:
    - name: visits
      files: {url: "file://./in/", pattern: "*.jsonl"}
      format: {json: {timestamps: EpochMillis}}
      columns:
        - {name: page, type: STRING, nullable: false}
        - {name: n, type: BIGINT, nullable: false}
        - {name: ts, type: TIMESTAMP(3), nullable: false}
      watermark: {column: ts, maxOutOfOrderness: 100s}
  sql: |
    INSERT INTO out SELECT window_start, page, COUNT(*) AS visits, SUM(n) AS total
    FROM TABLE(TUMBLE(TABLE visits, DESCRIPTOR(ts), INTERVAL '10' SECOND))
    GROUP BY window_start, window_end, page
  sinks: [{name: out, print: {}}]
  workers: {slots: 2}
  trigger: {availableNow: {drain: true}}
"#;

pub const NUMBERS: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: numbers}
spec:
  sources:
    - name: ticks
      generator: {rowsPerSecond: 4000, rows: 80000}
      columns: [{name: n, type: BIGINT, generate: {sequence: {}}}]
  sql: INSERT INTO numbers SELECT DISTINCT n AS number FROM ticks
  sinks:
    - name: numbers
      files: {url: "file://./out/"}
      format: {json: {}}
  state: {ttl: 1h}
  trigger: {continuous: {}}
  checkpoint: {interval: 200ms}
"#;

/// A minute.
const LOOKS: u32 = 3000;
const LOOK: Duration = Duration::from_millis(20);

/// The program in a folder of its own.
pub struct Bed {
    pub folder: tempfile::TempDir,
}

impl Bed {
    pub fn new(manifest: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("job.yaml"), manifest).expect("written");
        Self { folder }
    }

    fn start(&self, workers: u32) -> Running {
        self.start_with(workers, &[])
    }

    /// With these variables besides.
    pub fn start_with(&self, workers: u32, variables: &[(&str, &str)]) -> Running {
        let child = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["run", "job.yaml", "--workers", &workers.to_string()])
            .current_dir(self.folder.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        Running(Some(child))
    }

    fn run(&self, workers: u32) -> Output {
        self.start(workers).ended()
    }

    fn forget(&self) {
        std::fs::remove_dir_all(self.folder.path().join(".penstock")).expect("it ran");
    }

    /// Numbers that were published, each with how often.
    fn numbers(&self) -> BTreeMap<i64, usize> {
        let mut numbers = BTreeMap::new();
        let Ok(files) = std::fs::read_dir(self.folder.path().join("out")) else {
            return numbers;
        };
        for file in files {
            let file = file.expect("an entry").path();
            // Beside them lies a folder of what is not whole yet.
            if file.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let text = std::fs::read_to_string(file);
            for line in text.expect("a file that is whole").lines() {
                let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
                *numbers
                    .entry(row["number"].as_i64().expect("a number"))
                    .or_default() += 1;
            }
        }
        numbers
    }
}

/// A run with its workers.
pub struct Running(Option<Child>);

impl Running {
    fn id(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    pub fn tell(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).expect("a process id"));
        kill_process(pid.expect("not zero"), signal).expect("told");
    }

    pub fn ended(mut self) -> Output {
        let child = self.0.take().expect("it runs");
        child.wait_with_output().expect("it ends")
    }

    /// For a minute at most.
    pub fn until(&mut self, what: &str, mut there: impl FnMut(&Self) -> bool) {
        for _ in 0..LOOKS {
            if there(self) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let mut child = self.0.take().expect("it runs");
        let before = child.try_wait();
        child.kill().expect("killed");
        let output = child.wait_with_output().expect("it ends");
        panic!(
            "waited in vain until {what} ({before:?}):\n{}",
            errors(&output)
        );
    }
}

/// The workers of a run, by their numbers.
fn workers(parent: u32) -> BTreeMap<u32, Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let mut workers = BTreeMap::new();
    for child in children.unwrap_or_default().split_whitespace() {
        let given = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        let given: Vec<&[u8]> = given.split(|b| *b == 0).collect();
        let Some(at) = given.iter().position(|word| *word == b"--worker") else {
            continue;
        };
        let number = std::str::from_utf8(given[at + 1]).expect("a number");
        let pid = Pid::from_raw(child.parse().expect("a process id")).expect("not zero");
        workers.insert(number.parse().expect("a number"), pid);
    }
    workers
}

/// Epochs that the log of the job has by now.
pub fn records(folder: &Path, name: &str) -> usize {
    let place = folder.join(format!(".penstock/default/{name}"));
    let logs = std::fs::read_dir(place).into_iter().flatten().flatten();
    let records = logs.filter_map(|log| std::fs::read_dir(log.path().join("log")).ok());
    records.flatten().count()
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn any_number_of_workers_gives_the_rows_of_one() {
    let bed = Bed::new(VISITS);
    let folder = bed.folder.path().join("in");
    std::fs::create_dir(&folder).expect("made");
    for file in 0..12 {
        let row = |n: i64| {
            let (page, ts) = ((n * 7 + file) % 11, 1_700_000_000_000 + n * 97);
            format!("{{\"page\": \"p{page}\", \"n\": {n}, \"ts\": {ts}}}\n")
        };
        let rows: String = (0..500).map(row).collect();
        std::fs::write(folder.join(format!("{file}.jsonl")), rows).expect("written");
    }
    let alone = bed.run(1);
    assert!(alone.status.success(), "{}", errors(&alone));
    let expected = lines(&alone);
    assert!(expected.len() > 50, "windows and pages: {}", expected.len());
    for workers in [2, 3, 7] {
        bed.forget();
        let several = bed.run(workers);
        assert!(several.status.success(), "{}", errors(&several));
        assert_eq!(lines(&several), expected, "{workers} workers");
        let told = errors(&several);
        assert_eq!(told.matches("finished at epoch").count(), 1, "{told}");
    }
}

#[test]
fn whichever_worker_is_killed_each_row_comes_once() {
    let bed = Bed::new(NUMBERS);
    let mut run = bed.start(3);
    let folder = bed.folder.path();
    for victims in [vec![2], vec![0], vec![1, 2], vec![0, 1, 2]] {
        let before = records(folder, "numbers");
        run.until("it commits", |_| records(folder, "numbers") > before + 1);
        let workers = workers(run.id());
        assert_eq!(workers.len(), 3, "all are there: {workers:?}");
        for victim in &victims {
            kill_process(workers[victim], Signal::KILL).expect("killed");
        }
        run.until("all are there again", |run| {
            let now = self::workers(run.id());
            now.len() == 3 && victims.iter().all(|v| now[v] != workers[v])
        });
    }
    let output = run.ended();
    assert!(output.status.success(), "{}", errors(&output));
    let numbers = bed.numbers();
    assert_eq!(numbers.len(), 80_000, "{}", errors(&output));
    assert!(numbers.values().all(|times| *times == 1));
}

#[test]
fn a_worker_that_alone_is_told_to_stop_leaves_the_job_to_the_others_and_comes_back() {
    let bed = Bed::new(NUMBERS);
    let tells = [
        ("PENSTOCK_LOG", "warn,penstock_worker::job::workers=info"),
        ("NO_COLOR", "1"),
    ];
    let mut run = bed.start_with(3, &tells);
    let folder = bed.folder.path();
    // One that coordinates is among them.
    for leaves in [2, 0, 1] {
        let before = records(folder, "numbers");
        run.until("it commits", |_| records(folder, "numbers") > before + 1);
        let workers = workers(run.id());
        assert_eq!(workers.len(), 3, "all are there: {workers:?}");
        kill_process(workers[&leaves], Signal::TERM).expect("told");
        run.until("it has left and another one is there", |run| {
            let now = self::workers(run.id());
            now.len() == 3 && now[&leaves] != workers[&leaves]
        });
    }
    let output = run.ended();
    let told = errors(&output);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("was told to stop").count(), 3, "{told}");
    // The others had loaded what they took over.
    assert!(told.contains("loaded ahead workers=2"), "{told}");
    assert!(!told.contains("not loaded ahead"), "{told}");
    // They went at barriers: nobody was lost.
    assert!(!told.contains("PR0320"), "{told}");
    let numbers = bed.numbers();
    assert_eq!(numbers.len(), 80_000, "{told}");
    assert!(numbers.values().all(|times| *times == 1));
}

#[test]
fn a_run_that_was_stopped_goes_on_with_another_number_of_workers() {
    let bed = Bed::new(NUMBERS);
    let folder = bed.folder.path();
    for workers in [3, 2] {
        let before = records(folder, "numbers");
        let mut run = bed.start(workers);
        run.until("it commits", |_| records(folder, "numbers") > before + 5);
        run.tell(Signal::INT);
        let output = run.ended();
        let told = errors(&output);
        assert!(output.status.success(), "{workers} workers: {told}");
        assert!(
            told.contains("stopped at epoch"),
            "{workers} workers: {told}"
        );
    }
    let output = bed.run(1);
    assert!(output.status.success(), "{}", errors(&output));
    let numbers = bed.numbers();
    assert_eq!(numbers.len(), 80_000);
    assert!(numbers.values().all(|times| *times == 1));
}

#[test]
fn what_stops_the_job_is_told_once_and_ends_all() {
    let bed = Bed::new(VISITS);
    std::fs::create_dir(bed.folder.path().join("in")).expect("made");
    std::fs::write(bed.folder.path().join("in/1.jsonl"), "not JSON\n").expect("written");
    let output = bed.run(3);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let told = errors(&output);
    assert_eq!(told.matches("[PR0201]").count(), 1, "{told}");
}

#[test]
fn workers_do_not_outlive_the_process_that_started_them() {
    let bed = Bed::new(NUMBERS);
    let mut run = bed.start(3);
    run.until("all are there", |run| workers(run.id()).len() == 3);
    let workers = workers(run.id());
    run.tell(Signal::KILL);
    run.until("they are gone", |_| {
        workers.values().all(|pid| test_kill_process(*pid).is_err())
    });
    run.ended();
}
