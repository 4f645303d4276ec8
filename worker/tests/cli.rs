//! `penstock lint --against`: what a person and a machine are told of an edit.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

const JOB: &str = r#"apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: flights}
spec:
  sources:
    - name: flights
      kafka: {bootstrapServers: "kafka:9092", topics: [flights]}
      format: {json: {}}
      columns: [{name: origin, type: STRING}, {name: delay, type: INT}, {name: ts, type: TIMESTAMP(3)}]
      watermark: {column: ts, maxOutOfOrderness: 5s}
  sql: |
    INSERT INTO out SELECT origin, MAX(delay) AS d, window_end
    FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end
  sinks:
    - name: out
      print: {}
    - name: more
      print: {}
"#;

struct Told {
    status: Option<i32>,
    out: String,
    errors: String,
}

fn lint(words: &[&str], folder: &Path, input: &str) -> Told {
    let mut child = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("it reads");
    drop(pipe);
    let output = child.wait_with_output().expect("it ends");
    Told {
        status: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// An edit told to a machine: the status, and the lines.
fn edit(new: &str, old: &str) -> (Option<i32>, Vec<Value>) {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [
        "--output",
        "json",
        "lint",
        "--bounded",
        "-",
        "--against",
        "-",
    ];
    let told = lint(&words, folder.path(), &format!("{new}---\n{old}"));
    let lines = told.out.lines();
    let lines = lines.map(|line| serde_json::from_str(line).expect("JSON"));
    (told.status, lines.collect())
}

#[test]
fn a_machine_is_told_the_verdict_last_and_why() {
    let least = JOB.replace("MAX(delay)", "MIN(delay)");
    let (status, lines) = edit(&least, JOB);
    assert_eq!(status, Some(1), "{lines:?}");
    let faults: Vec<&Value> = lines.iter().filter(|l| l["severity"] == "error").collect();
    assert_eq!(faults.len(), 1, "{lines:?}");
    assert_eq!(faults[0]["code"], "PR0410");
    assert_eq!(lines.last().expect("a line")["verdict"], "refused");

    let stateless = least.clone() + "  upgrade: {strategy: Stateless}\n";
    let (status, lines) = edit(&stateless, JOB);
    assert_eq!(status, Some(0), "{lines:?}");
    assert!(lines.iter().any(|l| l["code"] == "PS0081"), "{lines:?}");
    assert_eq!(lines.last().expect("a line")["verdict"], "starts empty");

    let (status, lines) = edit(&JOB.replace("delay) AS d", "delay) AS most"), JOB);
    assert_eq!(status, Some(0), "{lines:?}");
    assert_eq!(lines.last().expect("a line")["verdict"], "restores");
    assert!(lines.iter().any(|l| l["state"] == "restores"), "{lines:?}");
}

#[test]
fn of_an_old_version_that_cannot_be_planned_nothing_is_said() {
    let (status, lines) = edit(JOB, &JOB.replace("MAX(delay)", "MAX(nothing)"));
    assert_eq!(status, Some(0), "{lines:?}");
    assert_eq!(lines.last().expect("a line")["verdict"], "unknown");
    let (status, lines) = edit(JOB, "neither: a manifest\n");
    assert_eq!((status, lines.len()), (Some(0), 1), "{lines:?}");
    // And where the new one cannot, its faults.
    let (status, lines) = edit(&JOB.replace("MAX(delay)", "MAX(nothing)"), JOB);
    assert_eq!(status, Some(2), "{lines:?}");
    assert!(lines.iter().all(|l| l["verdict"].is_null()), "{lines:?}");
}

#[test]
fn a_person_is_told_the_verdict_and_the_ways_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    write("old.yaml", JOB);
    write("new.yaml", &JOB.replace("'1' HOUR", "'2' HOUR"));
    let told = lint(
        &["lint", "new.yaml", "--against", "old.yaml"],
        folder.path(),
        "",
    );
    assert_eq!(told.status, Some(1), "{}", told.errors);
    assert_eq!(
        told.out,
        "new.yaml: 0 errors, 0 warnings\nnew.yaml: state: refused\n"
    );
    for words in [
        "has another shape now",
        "upgrade.strategy: Stateless",
        "PR0410",
        "is refused",
    ] {
        assert!(told.errors.contains(words), "{words}: {}", told.errors);
    }
    // A plan as a log keeps it does too.
    let plan = lint(&["--output", "json", "plan", "old.yaml"], folder.path(), "");
    let plan = plan
        .out
        .lines()
        .find(|l| l.contains("\"nodes\""))
        .expect("a plan")
        .to_owned();
    write("plan.json", &plan);
    let told = lint(
        &["lint", "new.yaml", "--against", "plan.json"],
        folder.path(),
        "",
    );
    assert_eq!(told.status, Some(1), "{}", told.errors);
    let told = lint(
        &["lint", "old.yaml", "--against", "plan.json"],
        folder.path(),
        "",
    );
    assert_eq!(told.status, Some(0), "{}", told.errors);
    assert!(
        told.out.ends_with("old.yaml: state: restores\n"),
        "{}",
        told.out
    );
    let told = lint(
        &["lint", "old.yaml", "new.yaml", "--against", "old.yaml"],
        folder.path(),
        "",
    );
    assert_eq!(told.status, Some(2), "{}", told.out);
}
