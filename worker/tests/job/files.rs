//! `penstock test` as a person meets it: what it says of a wrong expectation and of a wrong file, and its exit status.

use std::process::Command;

const JOB: &str = include_str!("../../../examples/dead-letters/job.yaml");

/// Status, standard output and standard error, with the folder's name left out.
fn penstock(test: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("job.yaml"), JOB).expect("written");
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, test).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(arguments)
        .arg("test")
        .arg(&file)
        .output()
        .expect("it starts");
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.replace(&format!("{}/", folder.path().display()), "")
    };
    let status = output.status.code().expect("it ended by itself");
    (status, text(&output.stdout), text(&output.stderr))
}

const WRONG: &str = r#"
job: job.yaml
cases:
  - name: this one holds
    slots: [1, 2]
    input: {readings: [{sensor: a, celsius: 1, event_time: "2026-01-01T00:00:00"}]}
    expect: {rejected: [], per_minute: [{sensor: a, window_start: "2026-01-01T00:00:00", readings: 1, low: 1.0, high: 1}]}
  - name: this one does not
    slots: [1, 2]
    runs:
      - input: {readings: [{sensor: a, celsius: 1, event_time: "2026-01-01T00:00:00"}, {$raw: '{'}]}
        expect: {per_minute: []}
      - drain: true
        expect:
          per_minute:
            - {sensor: a, window_start: "2026-01-01T00:00:00", readings: 2, low: 1.0, high: 1}
            - {sensor: b, window_start: "2026-01-01T00:00:00", readings: 1}
          rejected:
            - {$offset: 1, $code: PR0201}
"#;

#[test]
fn a_wrong_expectation_is_told_by_run_and_sink_missing_and_unexpected_rows_apart() {
    let (status, out, err) = penstock(WRONG, &[]);
    assert_eq!(err, "");
    let row = |sensor: &str, readings: u8, celsius: &str| {
        format!(
            r#"{{"sensor":"{sensor}","window_start":"2026-01-01T00:00:00.000","readings":{readings},"low":{celsius},"high":{celsius}}}"#
        )
    };
    let failed = |slots: u8| {
        format!(
            "  FAILED  this one does not (slots {slots})
    run 2, sink per_minute: 2 missing, 1 that should not be there
      missing     {}
      missing     {}
      unexpected  {}
    run 2, sink rejected: 1 missing, 0 that should not be there
      missing     {{\"$offset\":1,\"$code\":\"PR0201\"}}
",
            row("a", 2, "1.0"),
            row("b", 1, "null"),
            row("a", 1, "1.0"),
        )
    };
    let expected = format!(
        "test.yaml\n  ok      this one holds (slots 1, 2)\n{}{}2 cases, 1 failed\n",
        failed(1),
        failed(2)
    );
    assert_eq!(out, expected);
    assert_eq!(status, 1);
}

#[test]
fn machines_get_a_line_per_case_and_number_of_slots() {
    let (status, out, _) = penstock(WRONG, &["--output", "json"]);
    assert_eq!(status, 1);
    let lines: Vec<serde_json::Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["passed"], true);
    assert_eq!(lines[2]["passed"], false);
    assert_eq!(lines[2]["differences"][0]["run"], 2);
    assert_eq!(lines[2]["differences"][0]["missing"][0]["readings"], 2);
    assert_eq!(lines[2]["differences"][1]["sink"], "rejected");
    assert_eq!(lines[4]["cases"], 2);
    assert_eq!(lines[4]["failed"], 1);
}

#[test]
fn a_job_that_stops_fails_its_case_with_the_code() {
    let strict = JOB.replace("onError: DeadLetter", "onError: Fail");
    let folder = tempfile::tempdir().expect("a folder");
    let test = "job: job.yaml\ncases:\n  - {name: stops, input: {readings: [{$raw: x}]}, expect: {per_minute: []}}\n";
    let test = super::load(folder.path(), &strict, test);
    let verdict = penstock_worker::testing::run(&test, &test.cases[0], 1, None);
    let (run, error) = verdict.stopped.expect("it stops");
    assert_eq!((run, error.code), (0, "PR0201"));
}

/// The faults of a test file, a line each.
fn faults(test: &str) -> Vec<String> {
    let (status, out, _) = penstock(test, &["--output", "json"]);
    assert_eq!(status, 2, "{out}");
    let mut faults = Vec::new();
    for line in out.lines() {
        let fault: serde_json::Value = serde_json::from_str(line).expect("an object");
        if fault["code"].is_null() {
            continue;
        }
        let text = |field: &str| fault[field].as_str().unwrap_or_default().to_owned();
        let at = &fault["position"];
        faults.push(format!(
            "{}:{} {} {}: {} ({})",
            at["line"],
            at["column"],
            text("code"),
            text("path"),
            text("message"),
            text("help")
        ));
    }
    faults
}

#[test]
fn what_is_wrong_with_a_test_file_is_told_at_its_place_all_at_once() {
    let test = r#"job: job.yaml
casse: 1
cases:
  - name: a
    slots: [0, x]
    crashAfterRow: 9
    clock: yesterday
    drian: true
    input:
      raedings: []
      readings:
        - {sensr: 1, $rw: x}
        - {$raw: a, sensor: x}
        - 5
    expect:
      per_minut: []
      per_minute:
        - {sensor: 1, readins: 4}
        - {sensor: 1, readings: x}
      rejected:
        - {$cod: PR0201}
  - name: a
    runs:
      - drain: true
        input: {}
      - {}
    expect: {}
  - name: nothing is said
"#;
    let expected = r#"2:1 PS0007 casse: unknown field (did you mean "cases"?)
5:13 PS0015 cases[0].slots[0]: must lie between 1 and 64, the job's key groups at most ()
5:16 PS0008 cases[0].slots[1]: must be a whole number that is not negative ()
6:20 PS0073 cases[0].crashAfterRow: must be at least 1 and at most 2, the rows of input ()
7:12 PS0012 cases[0].clock: "yesterday" is not an instant ()
8:5 PS0007 cases[0].drian: unknown field (did you mean "drain"?)
10:7 PS0070 cases[0].input.raedings: the manifest has no source "raedings" (did you mean "readings"?)
12:12 PS0071 cases[0].input.readings[0].sensr: source readings has no column "sensr" (did you mean "sensor"?)
12:22 PS0071 cases[0].input.readings[0].$rw: source readings has no column "$rw" (did you mean "$raw"?)
13:21 PS0071 cases[0].input.readings[1].sensor: $raw is the whole body: no column stands beside it ()
14:11 PS0008 cases[0].input.readings[2]: must be a mapping ()
16:7 PS0070 cases[0].expect.per_minut: the manifest has no sink "per_minut" (did you mean "per_minute"?)
18:23 PS0071 cases[0].expect.per_minute[0].readins: sink per_minute has no column "readins" (did you mean "readings"?)
19:33 PS0072 cases[0].expect.per_minute[1]: readings: expected BIGINT, found `\"x\"` ()
21:12 PS0071 cases[0].expect.rejected[0].$cod: a dead letter has no column "$cod" (did you mean $code?)
22:5 PS0073 cases[1].name: another case is called "a" too ()
24:9 PS0073 cases[1].runs[0].drain: after drain the job is final: only the last run may have it ()
27:5 PS0073 cases[1].expect: a case has either runs, or expect: move it into a run ()
28:5 PS0073 cases[2]: a case needs expect, or runs ()"#;
    assert_eq!(faults(test).join("\n"), expected);
}

#[test]
fn files_that_are_no_test_files() {
    assert_eq!(
        faults(""),
        ["null:null PS0020 : a test file is one document with job and cases ()"]
    );
    assert_eq!(
        faults("cases: []\n"),
        ["1:1 PS0006 : missing field \"job\" ()"]
    );
    assert_eq!(
        faults("job: job.yaml\ncases: []\n"),
        ["2:8 PS0016 cases: needs at least one case ()"]
    );
    let missing = faults("job: other.yaml\ncases: []\n");
    assert!(
        missing[0].starts_with("1:6 PS0074 job: other.yaml cannot be read: "),
        "{missing:?}"
    );
    assert!(faults("job: [\n")[0].contains("PS0001"));
}
