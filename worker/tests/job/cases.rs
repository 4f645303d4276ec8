//! The cases of `tests/sql` and of the examples. Each runs as it is written, and then with every number of slots and workers and with a
//! crash after its first, its middle and its last row, and while workers come and go at random barriers, which must change nothing.

use std::path::{Path, PathBuf};

use penstock_worker::testing;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::repository;

fn test_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let job = name == "job.yaml" || name.ends_with(".job.yaml");
        if name.ends_with(".yaml") && !job {
            into.push(path);
        }
    }
    into.sort();
}

fn run_all(files: &[PathBuf]) -> usize {
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in files {
        let test = testing::load(file).unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
        for case in &test.cases {
            let rows = case.rows();
            let mut crashes = vec![None, case.crash_after_row];
            crashes.extend([1, rows.div_ceil(2), rows].map(|n| Some(n).filter(|n| *n > 0)));
            crashes.sort();
            crashes.dedup();
            let mut slots = vec![1, 2, 4];
            slots.extend(&case.slots);
            slots.sort_unstable();
            slots.dedup();
            let alone = slots.into_iter().map(|slots| (1, slots));
            for (workers, slots) in alone.chain([(2, 1), (3, 1), (7, 1)]) {
                for &crash in &crashes {
                    count += 1;
                    let verdict = match workers {
                        1 => testing::run(&test, case, slots, crash),
                        _ => testing::run_with_workers(&test, case, workers, crash),
                    };
                    let crashed = verdict.crashes == u32::from(crash.is_some());
                    if !verdict.passed() || !crashed {
                        wrong.push(format!(
                            "{}: {}, {workers} workers with {slots} slots, crash after {crash:?}: {verdict:#?}",
                            file.display(),
                            case.name
                        ));
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} runs:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    count
}

#[test]
fn sql_means_the_same_with_any_number_of_slots_and_workers_and_any_crash() {
    let mut files = Vec::new();
    test_files(&repository("worker/tests/sql"), &mut files);
    assert!(files.len() >= 7, "the files are found: {files:?}");
    assert!(run_all(&files) > 200);
}

/// So many rescales of one run, and so many runs of each case.
const CHANGES: usize = 3;
const RUNS: u64 = 4;

fn rescale_all(files: &[PathBuf]) -> usize {
    let (mut wrong, mut count, mut as_written) = (Vec::new(), 0, 0);
    for file in files {
        let test = testing::load(file).unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
        for case in &test.cases {
            for seed in 0..RUNS {
                let mut rng = StdRng::seed_from_u64(seed);
                let mut workers = || [1, 2, 3, 7][rng.random_range(0..4)];
                let (first, then) = (workers(), [(); CHANGES].map(|()| workers()));
                let mut rows = [(); CHANGES].map(|()| rng.random_range(0..case.rows()) + 1);
                rows.sort_unstable();
                let changes: Vec<_> = rows.into_iter().zip(then).collect();
                // Where epochs end decides what is late and what an update says: so one worker ends them there too.
                let alone = changes.iter().map(|(row, _)| (*row, 1)).collect::<Vec<_>>();
                let [alone, verdict] = [(1, &alone), (first, &changes)].map(|(first, changes)| {
                    let mut verdict = testing::run_with_changes(&test, case, first, changes);
                    for (_, difference) in &mut verdict.differences {
                        difference.missing.sort();
                        difference.unexpected.sort();
                    }
                    verdict
                });
                count += verdict.changes;
                as_written += usize::from(verdict.passed());
                let same = verdict.stopped.is_none() && verdict.differences == alone.differences;
                if !same || verdict.changes != CHANGES {
                    wrong.push(format!(
                        "{}: {}, {first} workers, then after rows {changes:?}: {verdict:#?}, alone {alone:#?}",
                        file.display(),
                        case.name
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} runs:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Most cases do not look at where epochs end.
    assert!(as_written * CHANGES > count * 3 / 4);
    count
}

#[test]
fn sql_means_the_same_while_workers_come_and_go_at_random_barriers() {
    let mut files = Vec::new();
    test_files(&repository("worker/tests/sql"), &mut files);
    assert!(rescale_all(&files) > 200);
}

#[test]
fn changes_that_leave_at_once_come_to_the_same() {
    let mut files = Vec::new();
    test_files(&repository("worker/tests/sql"), &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let test = testing::load(file).unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
        for case in &test.cases {
            for (slots, poll_rows) in [(1, 1), (1, 3), (2, 1), (2, 2), (4, 1), (4, 5)] {
                let verdict = testing::run_at_once(&test, case, slots, poll_rows);
                if !verdict.passed() {
                    wrong.push(format!(
                        "{}: {}, {slots} slots, {poll_rows} rows a poll: {verdict:#?}",
                        file.display(),
                        case.name
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} runs:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn examples() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(repository("examples")).expect("the examples are there") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir() {
            continue;
        }
        let file = folder.join("test.yaml");
        assert!(
            file.exists(),
            "every example has a test file: {}",
            file.display()
        );
        files.push(file);
    }
    files
}

#[test]
fn examples_pass_with_any_number_of_slots_and_workers_and_any_crash() {
    assert!(run_all(&examples()) > 100);
}

#[test]
fn examples_pass_while_workers_come_and_go_at_random_barriers() {
    assert!(rescale_all(&examples()) > 50);
}
