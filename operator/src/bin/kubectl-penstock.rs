//! `kubectl penstock`: what a person asks of a job and tells it, with the rights of that person and nothing else.

use std::fmt::Write as _;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand, ValueEnum};
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use penstock_crds::codes;
use penstock_crds::job::StreamingJob;
use penstock_operator::clock;
use serde_json::json;

/// Looks after StreamingJobs from the command line.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl penstock",
    bin_name = "kubectl penstock",
    version,
    about
)]
struct Args {
    /// Namespace of the job; by default that of the kubeconfig's context
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    context: Option<String>,
    /// How to answer
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a job does, where it is, and what holds it back
    Status { job: String },
    /// What a job has not read yet
    Lag { job: String },
    /// Stops a job at a barrier; its state stays
    Suspend { job: String },
    /// Lets a suspended job go on
    Resume { job: String },
    /// What the worker logs
    Logs {
        job: String,
        /// Goes on
        #[arg(short, long)]
        follow: bool,
    },
    /// What an error code means and what to do about it
    Explain { code: String },
}

/// What a person reads when it did not work.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(
        "this cluster does not know StreamingJobs: install the chart (helm install penstock charts/penstock)"
    )]
    NoType,
    #[error(
        "there is no StreamingJob {0} in namespace {1}; `kubectl get streamingjobs --all-namespaces` lists them"
    )]
    NoJob(String, String),
    #[error("you have no right to do this: {0}")]
    NoRight(String),
    #[error("there is no code {0}; codes look like PS0102")]
    NoCode(String),
    #[error("no cluster: {0}")]
    NoCluster(String),
    #[error("{0}")]
    Other(String),
}

fn trouble(error: kube::Error, job: &str, namespace: &str) -> Trouble {
    let kube::Error::Api(status) = error else {
        return Trouble::NoCluster(error.to_string());
    };
    match status.code {
        // For a path that it does not serve the API server has no object to name.
        404 if !status.message.contains("streamingjobs") => Trouble::NoType,
        404 => Trouble::NoJob(job.to_owned(), namespace.to_owned()),
        403 => Trouble::NoRight(status.message.clone()),
        _ => Trouble::Other(status.message.clone()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(trouble) => {
            eprintln!("error: {trouble}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<String, Trouble> {
    if let Command::Explain { code } = &args.command {
        let entry = codes::explain(code).ok_or_else(|| Trouble::NoCode(code.clone()))?;
        return Ok(format!(
            "{}: {}\n\n{}\n",
            entry.code, entry.title, entry.text
        ));
    }
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let no_cluster = |e: &dyn std::fmt::Display| Trouble::NoCluster(e.to_string());
    let file = Kubeconfig::read().map_err(|e| no_cluster(&e))?;
    let config = Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(|e| no_cluster(&e))?;
    let namespace = args
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|e| no_cluster(&e))?;
    let jobs: Api<StreamingJob> = Api::namespaced(client, &namespace);
    let get = async |name: &str| {
        jobs.get(name)
            .await
            .map_err(|e| trouble(e, name, &namespace))
    };
    match &args.command {
        Command::Status { job } => answer(args.output, &get(job).await?, status),
        Command::Lag { job } => answer(args.output, &get(job).await?, lag),
        Command::Suspend { job } => suspend(&jobs, job, &namespace, true).await,
        Command::Resume { job } => suspend(&jobs, job, &namespace, false).await,
        Command::Logs { job, follow } => {
            get(job).await?;
            logs(args, &namespace, job, *follow)
        }
        Command::Explain { code } => Err(Trouble::NoCode(code.clone())),
    }
}

fn answer(
    output: Output,
    job: &StreamingJob,
    text: fn(&StreamingJob, DateTime<Utc>) -> String,
) -> Result<String, Trouble> {
    match output {
        Output::Text => Ok(text(job, clock::now())),
        Output::Json => serde_json::to_string_pretty(&job.status)
            .map(|text| text + "\n")
            .map_err(|e| Trouble::Other(e.to_string())),
    }
}

async fn suspend(
    jobs: &Api<StreamingJob>,
    job: &str,
    namespace: &str,
    wanted: bool,
) -> Result<String, Trouble> {
    let patch = Patch::Merge(json!({"spec": {"suspend": wanted}}));
    jobs.patch(job, &PatchParams::default(), &patch)
        .await
        .map_err(|e| trouble(e, job, namespace))?;
    Ok(match wanted {
        true => {
            format!("{job} stops at a barrier; `kubectl penstock status {job}` says when it has\n")
        }
        false => format!("{job} goes on from where it stopped\n"),
    })
}

/// `kubectl logs`, which knows how to follow.
fn logs(args: &Args, namespace: &str, job: &str, follow: bool) -> Result<String, Trouble> {
    let mut command = std::process::Command::new("kubectl");
    let selector = format!("penstock.dev/job={job}");
    command.args([
        "logs",
        "--namespace",
        namespace,
        "-l",
        &selector,
        "-c",
        "worker",
    ]);
    command.arg("--tail=200");
    if follow {
        command.arg("--follow");
    }
    if let Some(context) = &args.context {
        command.args(["--context", context]);
    }
    let status = command
        .status()
        .map_err(|e| Trouble::Other(format!("cannot run kubectl: {e}")))?;
    match status.success() {
        true => Ok(String::new()),
        false => Err(Trouble::Other(format!("kubectl {status}"))),
    }
}

/// One screen: what it does, where it is, what holds it back.
fn status(job: &StreamingJob, now: DateTime<Utc>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<12} {text}");
    };
    let namespace = job.namespace().unwrap_or_default();
    line("Job", format!("{namespace}/{}", job.name_any()));
    let Some(s) = &job.status else {
        line(
            "Phase",
            "nobody has looked at it: is the controller there?".to_owned(),
        );
        return out;
    };
    if let Some(phase) = s.phase {
        line("Phase", format!("{phase:?}"));
    }
    if let Some(ready) = s.conditions.iter().find(|c| c.type_ == "Ready") {
        line(
            "Ready",
            format!("{}, {}: {}", ready.status, ready.reason, ready.message),
        );
    }
    let others: Vec<&str> = s
        .conditions
        .iter()
        .filter(|c| c.type_ != "Ready" && c.status == "True")
        .map(|c| c.type_.as_str())
        .collect();
    if !others.is_empty() {
        line("Conditions", others.join(", "));
    }
    if s.observed_generation != job.metadata.generation {
        line("Spec", "the newest edit was not looked at yet".to_owned());
    }
    if let (Some(ready), Some(wanted)) = (s.ready_replicas, s.desired_replicas) {
        line("Workers", format!("{ready} of {wanted} ready"));
    }
    if let Some(e) = &s.epoch {
        let ago = ago(e.committed_at.epoch_millis(), now);
        line(
            "Epoch",
            format!(
                "{}, {ago}; took {}, {} rows in, {} out",
                e.number, e.duration, e.rows_in, e.rows_out
            ),
        );
    }
    if let Some(w) = &s.watermark {
        let held = w.held_back_by.as_ref();
        let held = held.map_or_else(String::new, |by| format!(", held back by {by}"));
        line("Watermark", format!("{}{held}", w.time));
    }
    if let Some(l) = &s.lag {
        line("Lag", format!("{} records, {} s", l.records, l.seconds));
    }
    if let Some(r) = &s.rates {
        line("Rows/s", format!("{} in, {} out", r.rows_in, r.rows_out));
    }
    if let Some(c) = &s.counts {
        line(
            "Counts",
            format!(
                "{} late, {} dead letters, {} restarts",
                c.late, c.dead_letters, c.restarts
            ),
        );
    }
    if let Some(f) = &s.last_failure {
        let ago = ago(f.at.epoch_millis(), now);
        line("Failure", format!("{ago}: {} [{}]", f.message, f.code));
    }
    out
}

fn lag(job: &StreamingJob, _: DateTime<Utc>) -> String {
    match job.status.as_ref().and_then(|s| s.lag.as_ref()) {
        Some(l) => format!("{} records, {} s\n", l.records, l.seconds),
        None => {
            "not known: no source of the job has an end, or no worker has told yet\n".to_owned()
        }
    }
}

/// How long ago, for people.
fn ago(at_ms: i64, now: DateTime<Utc>) -> String {
    let seconds = (now.timestamp_millis() - at_ms).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> StreamingJob {
        serde_json::from_value(json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "StreamingJob",
            "metadata": {"name": "payments", "namespace": "risk", "generation": 3},
            "spec": {
                "sources": [{"name": "a", "generator": {}, "columns": [{"name": "n", "type": "BIGINT"}]}],
                "sql": "INSERT INTO out SELECT n FROM a", "sinks": [{"name": "out", "print": {}}],
            },
            "status": {
                "observedGeneration": 2, "phase": "Running",
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Running", "message": "the job runs and commits", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "Available", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ],
                "desiredReplicas": 1, "readyReplicas": 1,
                "epoch": {"number": 7, "committedAt": "2026-01-01T00:00:00Z", "duration": "120ms", "bytes": 1, "rowsIn": 10, "rowsOut": 2},
                "lag": {"records": 5, "seconds": 1},
            },
        }))
        .unwrap()
    }

    #[test]
    fn one_screen_says_what_it_does_and_where_it_is() {
        let now = "2026-01-01T00:03:00Z".parse().unwrap();
        assert_eq!(
            status(&job(), now),
            "Job          risk/payments\n\
             Phase        Running\n\
             Ready        True, Running: the job runs and commits\n\
             Conditions   Available\n\
             Spec         the newest edit was not looked at yet\n\
             Workers      1 of 1 ready\n\
             Epoch        7, 3 min ago; took 120ms, 10 rows in, 2 out\n\
             Lag          5 records, 1 s\n"
        );
        assert_eq!(lag(&job(), now), "5 records, 1 s\n");
    }

    #[test]
    fn a_job_nobody_has_looked_at_says_so() {
        let mut job = job();
        job.status = None;
        assert!(status(&job, clock::now()).contains("is the controller there?"));
    }
}
