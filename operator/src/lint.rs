//! Plans a job's SQL in a child process of bounded time and memory: one tenant's text cannot take the controller down.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::job::StreamingJob;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

/// How long a child may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The program that plans. Clones share one turn: a child may take 1 GiB, so there is never more than one of them, and the
/// container of the controller has room for it (`resources` of the chart).
#[derive(Debug, Clone)]
pub struct Linter {
    program: PathBuf,
    turn: Arc<Semaphore>,
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
        let manifest = serde_yaml::to_string(&bare(job)).map_err(std::io::Error::other)?;
        let given_up = || {
            vec![format!(
                "spec.sql: planning it was given up after {} s or 1 GiB [PS0075]",
                PATIENCE.as_secs()
            )]
        };
        let (status, output) = match self.run(manifest).await {
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Ok(given_up()),
            answer => answer?,
        };
        let lines = String::from_utf8_lossy(&output);
        let faults: Vec<String> = lines.lines().filter_map(fault).collect();
        if faults.is_empty() && !status.success() {
            return Ok(given_up());
        }
        Ok(faults)
    }

    async fn run(&self, manifest: String) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
        let _turn = self.turn.acquire().await.map_err(std::io::Error::other)?;
        let mut child = tokio::process::Command::new(&self.program)
            .args(["--output", "json", "lint", "--bounded", "-"])
            .env_clear()
            // What the program itself needs; nothing of the controller's.
            .envs(std::env::vars().filter(|(name, _)| name == "PATH" || name == "LD_LIBRARY_PATH"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(manifest.as_bytes()).await?;
        }
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        Ok((output.status, output.stdout))
    }
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
fn fault(line: &str) -> Option<String> {
    let fault: Value = serde_json::from_str(line).ok()?;
    if fault["severity"] != "error" {
        return None;
    }
    let text = |name: &str| fault[name].as_str().unwrap_or_default();
    let place = match (
        fault["sql_position"]["line"].as_u64(),
        fault["sql_position"]["column"].as_u64(),
    ) {
        (Some(line), Some(column)) => format!("{line}:{column} "),
        _ => String::new(),
    };
    let help = match text("help") {
        "" => String::new(),
        help => format!(", {help}"),
    };
    Some(format!(
        "{}: {place}{}{help} [{}]",
        text("path"),
        text("message"),
        text("code")
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_fault_is_told_as_lint_tells_it() {
        let line = r#"{"code":"PS0102","severity":"error","path":"spec.sql","message":"unknown column \"mercant_id\"","help":"did you mean \"merchant_id\"?","sql_position":{"line":6,"column":12}}"#;
        assert_eq!(
            super::fault(line).unwrap(),
            "spec.sql: 6:12 unknown column \"mercant_id\", did you mean \"merchant_id\"? [PS0102]"
        );
        assert_eq!(
            super::fault(r#"{"severity":"warning","message":"x"}"#),
            None
        );
    }
}
