//! Test files: rows that are given, rows that must come out, and the job's own plan on the real engine between them. Owns what
//! a case means and what its result is; reading the file is `file`'s, comparing is `compare`'s, the engine on lists is
//! `job::memory`'s, and telling people is the command line's.
//!
//! ```text
//! text ─ file ─▶ TestFile{job, plan, cases} ─ run ─▶ rows published ─ compare ─▶ Verdict{missing, unexpected}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::StreamingJob;
use penstock_plan::Plan;

use crate::clock::Millis;
use crate::error::EngineError;
use crate::job::memory::MemoryJob;
use crate::sources::memory::MemoryRecord;

mod compare;
mod file;
mod rows;

pub use compare::Difference;
use compare::{Expected, differences};

/// What `now()` answers where nothing is said: 2026-01-01T00:00:00Z.
const DEFAULT_CLOCK: Millis = Millis::new(1_767_225_600_000);

/// A test file with its job, sound and bound to each other.
#[derive(Debug)]
pub struct TestFile {
    pub job: Arc<StreamingJob>,
    pub plan: Arc<Plan>,
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    /// It must pass with each of these numbers of slots.
    pub slots: Vec<usize>,
    /// Rows after which the engine is ended once.
    pub crash_after_row: Option<u64>,
    runs: Vec<Run>,
}

/// One run of the job.
#[derive(Debug)]
struct Run {
    clock: Millis,
    /// By source, in the order given.
    input: Vec<(String, Vec<MemoryRecord>)>,
    drain: bool,
    /// By sink, in the order given.
    expect: Vec<(String, Expected)>,
}

/// Why a test file cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// A file could not be read.
    Unread(PathBuf, std::io::Error),
    /// A file is wrong: the test file itself, or its manifest. With its text, for reports.
    Refused {
        text: String,
        faults: Vec<Diagnostic>,
    },
}

/// What became of a case with one number of slots.
#[derive(Debug, Default)]
pub struct Verdict {
    /// How often the engine was ended and started again.
    pub crashes: u32,
    /// How often it had other workers after a barrier.
    pub changes: usize,
    /// By run (from 1; 0 where the case has one run only) and sink, what differs.
    pub differences: Vec<(usize, Difference)>,
    /// What stopped the job, with the run.
    pub stopped: Option<(usize, EngineError)>,
}

impl Verdict {
    pub fn passed(&self) -> bool {
        self.differences.is_empty() && self.stopped.is_none()
    }
}

/// Reads a test file and its manifest. All faults of the first file that has some.
pub fn load(path: &Path) -> Result<TestFile, Unusable> {
    file::load(path)
}

/// Runs a case with so many slots, and ends the engine once after so many rows. Not to be called from within a runtime.
pub fn run(test: &TestFile, case: &Case, slots: usize, crash_after_row: Option<u64>) -> Verdict {
    let job = MemoryJob::new(test.job.clone(), test.plan.clone(), slots, None);
    run_on(job, test, case, crash_after_row, &[])
}

/// As [`run`], with so many workers of one slot each.
pub fn run_with_workers(
    test: &TestFile,
    case: &Case,
    workers: usize,
    crash_after_row: Option<u64>,
) -> Verdict {
    let job = MemoryJob::new(test.job.clone(), test.plan.clone(), 1, None);
    run_on(job.members(workers), test, case, crash_after_row, &[])
}

/// As [`run`], with so many workers of one slot each, and after so many rows with others: a barrier lies between. The rows in
/// ascending order.
pub fn run_with_changes(
    test: &TestFile,
    case: &Case,
    workers: usize,
    changes: &[(u64, usize)],
) -> Verdict {
    let job = MemoryJob::new(test.job.clone(), test.plan.clone(), 1, None).members(workers);
    run_on(job, test, case, None, changes)
}

/// As [`run`], with sinks that publish at once, changes that leave as soon as the input has run dry, and sources that are
/// read so many rows at a time. What remains of the changes is the same.
pub fn run_at_once(test: &TestFile, case: &Case, slots: usize, poll_rows: usize) -> Verdict {
    let job = MemoryJob::new(test.job.clone(), test.plan.clone(), slots, None);
    run_on(job.at_once(poll_rows), test, case, None, &[])
}

fn run_on(
    mut job: MemoryJob,
    test: &TestFile,
    case: &Case,
    crash_after_row: Option<u64>,
    changes: &[(u64, usize)],
) -> Verdict {
    if let Some((source, offset)) = crash_after_row.and_then(|n| case.row(n)) {
        job.crash_after(source, offset);
    }
    let mut verdict = Verdict::default();
    let (mut given, mut changes) = (0, changes.iter().peekable());
    for (i, run) in case.runs.iter().enumerate() {
        let number = if case.runs.len() == 1 { 0 } else { i + 1 };
        job.clock().set(run.clock);
        let before: BTreeMap<&str, usize> = test
            .job
            .spec
            .sinks
            .iter()
            .map(|s| (s.name.as_str(), job.published(&s.name, 0).len()))
            .collect();
        let timestamp_ms = Some(run.clock.get());
        let rows = run.input.iter();
        let rows = rows.flat_map(|(source, rows)| rows.iter().cloned().map(move |r| (source, r)));
        let mut ended = Ok(());
        for (source, row) in rows {
            let row = MemoryRecord {
                timestamp_ms,
                ..row
            };
            job.push(source, [row]);
            given += 1;
            while let Some((_, workers)) = changes.next_if(|(row, _)| *row <= given) {
                ended = ended.and_then(|()| job.run(false).map(drop));
                job.change_members(*workers);
                verdict.changes += 1;
            }
        }
        let ended = ended.and_then(|()| job.run(run.drain));
        verdict.crashes = job.crashes();
        if let Err(error) = ended {
            verdict.stopped = Some((number, error));
            return verdict;
        }
        for (sink, expected) in &run.expect {
            let all = job.published(sink, 0);
            let from = before.get(sink.as_str()).copied().unwrap_or_default();
            match differences(sink, test.plan.sinks.get(sink), expected, &all, from) {
                Ok(None) => {}
                Ok(Some(difference)) => verdict.differences.push((number, difference)),
                Err(error) => {
                    verdict.stopped = Some((number, error));
                    return verdict;
                }
            }
        }
    }
    verdict
}

impl Case {
    /// Rows that are given, over all sources and runs.
    pub fn rows(&self) -> u64 {
        let given = self.runs.iter().flat_map(|r| &r.input);
        given.map(|(_, rows)| rows.len() as u64).sum()
    }

    /// Where the n-th row stands, in the order in which rows are given: source and offset.
    fn row(&self, n: u64) -> Option<(&str, i64)> {
        let mut offsets: BTreeMap<&str, i64> = BTreeMap::new();
        let mut left = n;
        for (source, rows) in self.runs.iter().flat_map(|r| &r.input) {
            let offset = offsets.entry(source).or_default();
            let count = rows.len() as u64;
            if left <= count {
                let at = *offset + i64::try_from(left).ok()? - 1;
                return Some((source, at));
            }
            left -= count;
            *offset += i64::try_from(count).ok()?;
        }
        None
    }
}
