//! `penstock test`: runs the cases of test files and tells what differs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::{Output, tell};
use crate::testing::{self, Case, Difference, TestFile, Unusable, Verdict};

/// Cases of all files.
#[derive(Default)]
struct Count {
    cases: usize,
    failed: usize,
    unusable: usize,
}

pub fn test(files: &[PathBuf], output: Output) -> ExitCode {
    let mut count = Count::default();
    for file in files {
        match testing::load(file) {
            Ok(test) => run_file(file, &test, &mut count, output),
            Err(Unusable::Unread(path, error)) => {
                count.unusable += 1;
                eprintln!("error: {}: {error}", path.display());
            }
            Err(Unusable::Refused { text, faults }) => {
                count.unusable += 1;
                tell::diagnostics(&faults, &text, output);
            }
        }
    }
    let Count {
        cases,
        failed,
        unusable,
    } = count;
    match output {
        Output::Json => {
            println!(
                "{}",
                json!({"cases": cases, "failed": failed, "unusableFiles": unusable})
            );
        }
        Output::Text => {
            let of = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            let unusable = match unusable {
                0 => String::new(),
                n => format!(", {} could not be used", of(n, "file")),
            };
            println!("{}, {failed} failed{unusable}", of(cases, "case"));
        }
    }
    if unusable > 0 {
        tell::wrong_input()
    } else if failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run_file(file: &Path, test: &TestFile, count: &mut Count, output: Output) {
    if output == Output::Text {
        println!("{}", file.display());
    }
    for case in &test.cases {
        count.cases += 1;
        let verdicts: Vec<(usize, Verdict)> = case
            .slots
            .iter()
            .map(|slots| {
                (
                    *slots,
                    testing::run(test, case, *slots, case.crash_after_row),
                )
            })
            .collect();
        let passed = verdicts.iter().all(|(_, v)| v.passed());
        count.failed += usize::from(!passed);
        match output {
            Output::Json => verdicts
                .iter()
                .for_each(|(slots, v)| println!("{}", line(file, case, *slots, v))),
            Output::Text => tell_case(case, &verdicts),
        }
    }
}

fn tell_case(case: &Case, verdicts: &[(usize, Verdict)]) {
    let good: Vec<String> = verdicts
        .iter()
        .filter(|(_, v)| v.passed())
        .map(|(slots, _)| slots.to_string())
        .collect();
    if !good.is_empty() {
        println!("  ok      {} (slots {})", case.name, good.join(", "));
    }
    for (slots, verdict) in verdicts.iter().filter(|(_, v)| !v.passed()) {
        println!("  FAILED  {} (slots {slots})", case.name);
        if let Some((run, error)) = &verdict.stopped {
            println!(
                "    {}the job stopped: {error} [{}]",
                in_run(*run),
                error.code
            );
        }
        for (run, difference) in &verdict.differences {
            let Difference {
                sink,
                missing,
                unexpected,
            } = difference;
            println!(
                "    {}sink {sink}: {} missing, {} that should not be there",
                in_run(*run),
                missing.len(),
                unexpected.len()
            );
            missing
                .iter()
                .for_each(|row| println!("      missing     {row}"));
            unexpected
                .iter()
                .for_each(|row| println!("      unexpected  {row}"));
        }
    }
}

fn in_run(run: usize) -> String {
    match run {
        0 => String::new(),
        n => format!("run {n}, "),
    }
}

/// A case for machines. Rows are JSON already: as they stand, decimals keep their digits.
fn line(file: &Path, case: &Case, slots: usize, verdict: &Verdict) -> String {
    let head = json!({
        "file": file.display().to_string(),
        "case": case.name,
        "slots": slots,
        "passed": verdict.passed(),
        "error": verdict.stopped.as_ref().map(|(run, e)| {
            json!({"run": run.max(&1), "code": e.code, "object": e.object, "message": e.message})
        }),
    })
    .to_string();
    let differences: Vec<String> = verdict
        .differences
        .iter()
        .map(|(run, d)| {
            format!(
                r#"{{"run":{},"sink":{},"missing":[{}],"unexpected":[{}]}}"#,
                run.max(&1),
                json!(d.sink),
                d.missing.join(","),
                d.unexpected.join(",")
            )
        })
        .collect();
    let head = head.strip_suffix('}').unwrap_or(&head);
    format!(r#"{head},"differences":[{}]}}"#, differences.join(","))
}
