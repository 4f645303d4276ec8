//! Plans a job's SQL in a child process of bounded time and memory: one tenant's text cannot take the controller down.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::diagnostic::Code;
use penstock_crds::job::StreamingJob;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// How long a child may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one may take that also compares: the answer on the new version is there before the API server gives the webhook up.
const PATIENCE_FOR_TWO: Duration = Duration::from_secs(4);

/// The program that plans. Clones share one turn: a child may take 1 GiB, so there is never more than one of them, and the
/// container of the controller has room for it (`resources` of the chart).
#[derive(Debug, Clone)]
pub struct Linter {
    program: PathBuf,
    turn: Arc<Semaphore>,
}

/// What is said of an edit.
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
    /// It ended by itself, and found nothing wrong.
    well: bool,
}

impl Linter {
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// What `penstock lint` says against the job; empty when nothing.
    ///
    /// # Errors
    /// When the child does not answer: nothing is known then.
    pub async fn faults(&self, job: &StreamingJob) -> std::io::Result<Vec<String>> {
        let answer = self.run(&["-"], text(job)?, PATIENCE).await?;
        Ok(judged(&answer, PATIENCE).faults)
    }

    /// What `penstock lint --against` says of an edit, in one child of the same bounds. An old version that cannot be planned
    /// within them leaves the state without a verdict.
    ///
    /// # Errors
    /// When the child does not answer: nothing is known then.
    pub async fn edit(&self, old: &StreamingJob, new: &StreamingJob) -> std::io::Result<Said> {
        let both = format!("{}---\n{}", text(new)?, text(old)?);
        let answer = self.run(&["-", "--against", "-"], both, PATIENCE_FOR_TWO);
        Ok(judged(&answer.await?, PATIENCE_FOR_TWO))
    }

    async fn run(
        &self,
        args: &[&str],
        input: String,
        patience: Duration,
    ) -> std::io::Result<Answer> {
        let _turn = self.turn.acquire().await.map_err(std::io::Error::other)?;
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
        let (mut into, mut from) = pipes.ok_or_else(|| std::io::Error::other("no pipes"))?;
        let mut written = Vec::new();
        let ended = tokio::time::timeout(patience, async {
            into.write_all(input.as_bytes()).await?;
            drop(into);
            while from.read_buf(&mut written).await? > 0 {}
            child.wait().await
        });
        // What it wrote before its time was up counts.
        let well = match ended.await {
            Ok(status) => status?.success(),
            Err(_) => false,
        };
        Ok(Answer {
            lines: String::from_utf8_lossy(&written).into_owned(),
            well,
        })
    }
}

/// What an answer means. Without a fault the child has ended well, or has come as far as the new version's plan; else it broke a
/// bound.
fn judged(answer: &Answer, patience: Duration) -> Said {
    let lines: Vec<Value> = answer
        .lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let mut said = Said {
        faults: lines.iter().filter_map(fault).collect(),
        warnings: lines.iter().filter_map(empty).collect(),
    };
    let planned = lines.iter().any(|line| line["verdict"].is_string());
    if said.faults.is_empty() && !answer.well && !planned {
        said.faults.push(format!(
            "spec.sql: planning it was given up after {} s or 1 GiB [PS0075]",
            patience.as_secs()
        ));
    }
    said
}

/// The job as text.
fn text(job: &StreamingJob) -> std::io::Result<String> {
    serde_yaml::to_string(&bare(job)).map_err(std::io::Error::other)
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
mod tests {
    use super::*;

    const FAULT: &str = r#"{"code":"PS0102","severity":"error","path":"spec.sql","message":"unknown column \"mercant_id\"","help":"did you mean \"merchant_id\"?","sql_position":{"line":6,"column":12}}"#;
    const OTHER: &str = r#"{"code":"PS0110","severity":"warning","path":"x","message":"x"}"#;
    const EMPTY: &str =
        r#"{"code":"PS0081","severity":"warning","path":"spec.sql","message":"starts empty: a"}"#;
    const PLANNED: &str = r#"{"verdict":"unknown"}"#;

    fn of(lines: &[&str], well: bool) -> Said {
        let lines = lines.join("\n");
        judged(&Answer { lines, well }, PATIENCE)
    }

    #[test]
    fn a_fault_is_told_as_lint_tells_it() {
        let fault =
            "spec.sql: 6:12 unknown column \"mercant_id\", did you mean \"merchant_id\"? [PS0102]";
        let said = of(&[OTHER, FAULT], false);
        assert_eq!(
            (said.faults, said.warnings),
            (vec![fault.to_owned()], vec![])
        );
    }

    #[test]
    fn of_the_warnings_only_those_on_the_state_are_passed_on() {
        let said = of(&[OTHER, PLANNED, EMPTY], true);
        let empty = "spec.sql: starts empty: a [PS0081]";
        assert_eq!(
            (said.faults, said.warnings),
            (vec![], vec![empty.to_owned()])
        );
    }

    #[test]
    fn a_child_that_broke_its_bounds_refuses_the_new_version_and_never_for_the_old_one() {
        assert_eq!(of(&[OTHER, PLANNED], false), Said::default());
        let given_up = "spec.sql: planning it was given up after 5 s or 1 GiB [PS0075]";
        assert_eq!(of(&[OTHER], false).faults, [given_up]);
        assert_eq!(of(&[], true), Said::default());
    }
}
