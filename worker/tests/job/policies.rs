//! What stops a job, and rows that no test file would hold: each case says what was published when the job stopped.

use penstock_worker::error::ErrorKind;
use penstock_worker::job::memory::MemoryJob;
use penstock_worker::sources::memory::MemoryRecord;

use super::{job, row};

/// `policy`: lines of the source.
fn manifest(policy: &str) -> String {
    format!(
        r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: policies}}
spec:
  sources:
    - name: t
      kafka: {{bootstrapServers: "localhost:9092", topics: [t]}}
      format: {{json: {{}}}}
      columns:
        - {{name: id, type: BIGINT, nullable: false}}
        - {{name: text, type: STRING}}
{policy}
  sql: INSERT INTO out SELECT id, char_length(text) AS letters FROM t
  sinks:
    - {{name: out, print: {{}}}}
    - name: letters
      kafka: {{bootstrapServers: "localhost:9092", topic: letters}}
      format: {{raw: {{}}}}
"#
    )
}

fn good(id: usize) -> MemoryRecord {
    row(format!(r#"{{"id":{id},"text":"ok"}}"#))
}

#[test]
fn on_error_fail_stops_at_the_row_publishes_nothing_of_its_epoch_and_stops_again() {
    let (spec, plan) = job(&manifest("").replace("    - name: letters\n      kafka: {bootstrapServers: \"localhost:9092\", topic: letters}\n      format: {raw: {}}\n", ""));
    for slots in [1, 2, 4] {
        let mut job = MemoryJob::new(spec.clone(), plan.clone(), slots, None);
        job.push("t", [good(1), good(2)]);
        job.run(false).expect("two good rows");
        job.push("t", [good(3), row(&b"{\"id\":\"x\"}"[..]), good(4)]);
        for _ in 0..2 {
            let error = job.run(false).expect_err("the wrong row stops it");
            assert_eq!((error.code, error.kind), ("PR0202", ErrorKind::Invalid));
            assert!(
                error.object.contains("source t") && error.object.ends_with("at 3"),
                "{error}"
            );
            assert_eq!(job.published("out", 0).len(), 2, "only what was before");
        }
    }
}

#[test]
fn fail_above_commits_the_dead_letters_that_explain_the_stop() {
    let (spec, plan) = job(&manifest(
        "      onError: DeadLetter\n      deadLetters: letters\n      failAbove: {percent: 10, window: 1m, minRows: 10}",
    ));
    for slots in [1, 2, 4] {
        let mut job = MemoryJob::new(spec.clone(), plan.clone(), slots, None);
        job.push("t", (0..50).map(good));
        job.push("t", (0..5).map(|_| row(&b"{"[..])));
        job.run(false).expect("a tenth is allowed");
        job.push("t", (0..20).map(|_| row(&b"{"[..])));
        let error = job.run(false).expect_err("too many");
        // Final: a supervisor that started it again would have it count from nothing.
        assert_eq!((error.code, error.kind), ("PR0206", ErrorKind::Invalid));
        assert_eq!(job.published("letters", 0).len(), 25);
        assert_eq!(job.published("out", 0).len(), 50);
    }
}

#[test]
fn rows_of_five_and_of_twenty_megabytes() {
    let (spec, plan) = job(&manifest(
        "      onError: DeadLetter\n      deadLetters: letters",
    ));
    let large = |bytes: usize| row(format!(r#"{{"id":7,"text":"{}"}}"#, "x".repeat(bytes)));
    for (slots, crash) in [(1, false), (2, true), (4, false)] {
        let mut job = MemoryJob::new(spec.clone(), plan.clone(), slots, None);
        // Three rows of 5 MB fill more than one batch; one of 20 MB is beyond the reader's bound.
        job.push(
            "t",
            [good(1), large(5 << 20), large(5 << 20), large(5 << 20)],
        );
        job.push("t", [large(20 << 20), good(2)]);
        if crash {
            job.crash_after("t", 3);
        }
        job.run(true).expect("large rows do not stop it");
        assert_eq!(job.crashes(), u32::from(crash));
        let mut texts: Vec<String> = job
            .published("out", 0)
            .into_iter()
            .map(|(_, r)| String::from_utf8(r.value.expect("a body").to_vec()).expect("text"))
            .collect();
        texts.sort();
        let seven = format!(r#"{{"id":7,"letters":{}}}"#, 5 << 20);
        let expected = [r#"{"id":1,"letters":2}"#, r#"{"id":2,"letters":2}"#];
        assert_eq!(texts[..2], expected);
        assert_eq!(texts[2..], [seven.clone(), seven.clone(), seven]);
        let letters = job.published("letters", 0);
        assert_eq!(letters.len(), 1);
        let code = letters[0]
            .1
            .headers
            .iter()
            .find(|(n, _)| n == "penstock.code");
        assert_eq!(code.map(|(_, v)| &v[..]), Some(&b"PR0204"[..]));
        assert_eq!(
            letters[0].1.value.as_ref().map(|v| v.len()),
            Some((20 << 20) + 18)
        );
    }
}
