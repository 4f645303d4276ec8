//! Plans a job's SQL in a child process of bounded time and memory: one tenant's text cannot take the controller down.

use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::diagnostic::Code;
use penstock_crds::job::StreamingJob;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

mod verdicts;

pub use verdicts::Verdicts;

/// How long a child may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a review may take in all: it is there before the API server gives the webhook up.
const PATIENCE_FOR_REVIEW: Duration = Duration::from_secs(4);
/// How much of it may go by until it is its turn.
const WAIT_FOR_REVIEW: Duration = Duration::from_secs(2);

/// The program that plans. Clones share one turn: a child may take 1 GiB. The controller has one of these and the webhook another, so
/// that neither waits for the other, and their container has room for a child of each (`resources` of the chart).
#[derive(Debug, Clone)]
pub struct Linter {
    program: PathBuf,
    turn: Arc<Semaphore>,
}

/// What is said of a manifest or an edit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Why it is refused; empty when it is not.
    pub faults: Vec<String>,
    /// What becomes of the state, where a person should know.
    pub warnings: Vec<String>,
}

/// What a child wrote until it ended or was ended.
struct Answer {
    lines: String,
    end: End,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself; it found nothing wrong.
    Well,
    Badly,
    /// Its time was up.
    Late,
}

impl Linter {
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// What `penstock lint` says against the job, as an edit of the one whose state it takes, if there is one; empty when nothing.
    /// It waits for its turn as long as that takes.
    ///
    /// # Errors
    /// When the child does not answer: nothing is known then.
    pub async fn faults(
        &self,
        old: Option<&StreamingJob>,
        job: &StreamingJob,
    ) -> Result<Vec<String>> {
        let _turn = self.turn.acquire().await.map_err(Error::other)?;
        let (args, input) = asked(old, job)?;
        let answer = self.run(args, input, PATIENCE).await?;
        Ok(judged(&answer).unwrap_or_else(given_up).faults)
    }

    /// What `penstock lint` says of a manifest, and `penstock lint --against` of an edit, in one child of the same memory. An old
    /// version that cannot be planned within the bounds leaves the state without a verdict.
    ///
    /// # Errors
    /// When the child does not answer, or when there is no time for it: nothing is known then.
    pub async fn review(&self, old: Option<&StreamingJob>, new: &StreamingJob) -> Result<Said> {
        let late = || Error::new(ErrorKind::TimedOut, "there was no time for it");
        let until = Instant::now() + PATIENCE_FOR_REVIEW;
        let turn = timeout(WAIT_FOR_REVIEW, self.turn.acquire()).await;
        let _turn = turn.map_err(|_| late())?.map_err(Error::other)?;
        let (args, input) = asked(old, new)?;
        let answer = self.run(args, input, until - Instant::now()).await?;
        match judged(&answer) {
            Some(said) => Ok(said),
            // The controller gives it more.
            None if answer.end == End::Late => Err(late()),
            None => Ok(given_up()),
        }
    }

    async fn run(&self, args: &[&str], input: String, patience: Duration) -> Result<Answer> {
        let mut child = tokio::process::Command::new(&self.program)
            .args(["--output", "json", "lint", "--bounded"])
            .args(args)
            .env_clear()
            // What the program itself needs; nothing of the controller's.
            .envs(std::env::vars().filter(|(name, _)| name == "PATH" || name == "LD_LIBRARY_PATH"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (mut into, mut from) = pipes.ok_or_else(|| Error::other("no pipes"))?;
        let mut written = Vec::new();
        let ended = timeout(patience, async {
            into.write_all(input.as_bytes()).await?;
            drop(into);
            while from.read_buf(&mut written).await? > 0 {}
            child.wait().await
        });
        // What it wrote before its time was up counts.
        let end = match ended.await {
            Err(_) => End::Late,
            Ok(status) => match status?.success() {
                true => End::Well,
                false => End::Badly,
            },
        };
        Ok(Answer {
            lines: String::from_utf8_lossy(&written).into_owned(),
            end,
        })
    }
}

/// The words for the planner, and what it reads.
fn asked(
    old: Option<&StreamingJob>,
    new: &StreamingJob,
) -> Result<(&'static [&'static str], String)> {
    Ok(match old {
        Some(old) => (
            &["-", "--against", "-"],
            format!("{}---\n{}", text(new)?, text(old)?),
        ),
        None => (&["-"], text(new)?),
    })
}

/// What an answer means. `None`: the child broke a bound. It broke none that matters where it has found a fault, has ended well, or has
/// come as far as the new version's plan.
fn judged(answer: &Answer) -> Option<Said> {
    let lines: Vec<Value> = answer
        .lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let said = Said {
        faults: lines.iter().filter_map(fault).collect(),
        warnings: lines.iter().filter_map(empty).collect(),
    };
    let planned = lines.iter().any(|line| line["verdict"].is_string());
    (!said.faults.is_empty() || answer.end == End::Well || planned).then_some(said)
}

/// What is said where a bound was broken.
fn given_up() -> Said {
    let fault = format!(
        "spec.sql: planning it was given up after {} s or 1 GiB [{}]",
        PATIENCE.as_secs(),
        Code::PLANNING
    );
    Said {
        faults: vec![fault],
        warnings: Vec::new(),
    }
}

/// The job as text.
fn text(job: &StreamingJob) -> Result<String> {
    serde_yaml::to_string(&bare(job)).map_err(Error::other)
}

/// The job as a person would write it.
fn bare(job: &StreamingJob) -> StreamingJob {
    let mut bare = StreamingJob::new(
        job.metadata.name.as_deref().unwrap_or_default(),
        job.spec.clone(),
    );
    bare.metadata.namespace.clone_from(&job.metadata.namespace);
    bare
}

/// One line of the answer, if it is an error, as people read it.
fn fault(line: &Value) -> Option<String> {
    (line["severity"] == "error").then(|| told(line))
}

/// One line of the answer, if it says that operators start empty.
fn empty(line: &Value) -> Option<String> {
    (line["code"] == Code::STARTS_EMPTY.as_str()).then(|| told(line))
}

fn told(diagnostic: &Value) -> String {
    let text = |name: &str| diagnostic[name].as_str().unwrap_or_default();
    let place = match (
        diagnostic["sql_position"]["line"].as_u64(),
        diagnostic["sql_position"]["column"].as_u64(),
    ) {
        (Some(line), Some(column)) => format!("{line}:{column} "),
        _ => String::new(),
    };
    let help = match text("help") {
        "" => String::new(),
        help => format!(", {help}"),
    };
    format!(
        "{}: {place}{}{help} [{}]",
        text("path"),
        text("message"),
        text("code")
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const FAULT: &str = r#"{"code":"PS0102","severity":"error","path":"spec.sql","message":"unknown column \"mercant_id\"","help":"did you mean \"merchant_id\"?","sql_position":{"line":6,"column":12}}"#;
    const OTHER: &str = r#"{"code":"PS0110","severity":"warning","path":"x","message":"x"}"#;
    const EMPTY: &str =
        r#"{"code":"PS0081","severity":"warning","path":"spec.sql","message":"starts empty: a"}"#;
    const PLANNED: &str = r#"{"verdict":"unknown"}"#;

    fn of(lines: &[&str], end: End) -> Option<Said> {
        let lines = lines.join("\n");
        judged(&Answer { lines, end })
    }

    #[test]
    fn a_fault_is_told_as_lint_tells_it() {
        let fault =
            "spec.sql: 6:12 unknown column \"mercant_id\", did you mean \"merchant_id\"? [PS0102]";
        for end in [End::Badly, End::Late] {
            let said = of(&[OTHER, FAULT], end).unwrap();
            assert_eq!(
                (said.faults, said.warnings),
                (vec![fault.to_owned()], vec![])
            );
        }
    }

    #[test]
    fn of_the_warnings_only_those_on_the_state_are_passed_on() {
        let said = of(&[OTHER, PLANNED, EMPTY], End::Well).unwrap();
        let empty = "spec.sql: starts empty: a [PS0081]";
        assert_eq!(
            (said.faults, said.warnings),
            (vec![], vec![empty.to_owned()])
        );
    }

    #[test]
    fn a_child_that_broke_its_bounds_refuses_the_new_version_and_never_for_the_old_one() {
        for end in [End::Badly, End::Late] {
            assert_eq!(of(&[OTHER, PLANNED], end), Some(Said::default()));
            assert_eq!(of(&[OTHER], end), None);
        }
        let words = "spec.sql: planning it was given up after 5 s or 1 GiB [PS0075]";
        assert_eq!(given_up().faults, [words]);
        assert_eq!(of(&[], End::Well), Some(Said::default()));
    }

    /// A planner that does this.
    pub(crate) fn planner(folder: &std::path::Path, does: &str) -> Linter {
        let path = folder.join("planner");
        // Written by another process: what this one writes, a child that another test starts just now may hold open, and it cannot
        // be started then.
        let mut write = std::process::Command::new("/bin/sh");
        write.args([
            "-c",
            r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#,
        ]);
        assert!(write.arg(&path).arg(does).status().unwrap().success());
        Linter::new(path)
    }

    #[tokio::test(start_paused = true)]
    async fn a_review_is_over_before_the_api_server_gives_it_up() {
        let folder = tempfile::tempdir().unwrap();
        let linter = planner(folder.path(), "exec sleep 60");
        let job = crate::build::tests::job();
        let began = Instant::now();
        let told = linter.review(None, &job).await.unwrap_err();
        assert_eq!(told.kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() <= Duration::from_secs(4));
        // The same text has its own time where nobody waits for the answer.
        assert_eq!(linter.faults(None, &job).await.unwrap(), given_up().faults);
    }

    #[tokio::test(start_paused = true)]
    async fn a_review_waits_for_its_turn_only_as_long_as_it_has_time() {
        let folder = tempfile::tempdir().unwrap();
        let linter = planner(folder.path(), "exec sleep 60");
        let job = crate::build::tests::job();
        let began = Instant::now();
        let review = async { (linter.review(None, &job).await, began.elapsed()) };
        let (first, (second, took)) = tokio::join!(linter.faults(None, &job), review);
        assert_eq!(first.unwrap(), given_up().faults);
        assert_eq!(second.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(took <= WAIT_FOR_REVIEW + Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_child_that_ends_badly_is_refused_in_a_review_too() {
        let folder = tempfile::tempdir().unwrap();
        let linter = planner(folder.path(), "cat > /dev/null; exit 137");
        let job = crate::build::tests::job();
        assert_eq!(linter.review(Some(&job), &job).await.unwrap(), given_up());
    }
}
