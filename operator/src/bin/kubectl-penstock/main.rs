//! `kubectl penstock`: what a person asks of a job and tells it, with the rights of that person and nothing else.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use penstock_crds::codes;
use penstock_crds::job::StreamingJob;
use penstock_operator::{clock, names};
use serde_json::json;

mod orders;
mod pod;
mod show;
mod top;

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
    /// What a job's operators and workers do now: rows, where time goes, what waits
    Top { job: String },
    /// Stops a job at a barrier; its state stays
    Suspend { job: String },
    /// Lets a suspended job go on
    Resume { job: String },
    /// The newest epochs of a job that runs, and the savepoints that keep some
    Epochs { job: String },
    /// Keeps an epoch for good: creates a Savepoint, and waits until everything up to it is published
    Savepoint {
        job: String,
        /// Its name; by default the job's and the time
        #[arg(long)]
        name: Option<String>,
        /// How long to wait, in seconds; 0: not at all
        #[arg(long, default_value_t = 300)]
        wait: u64,
    },
    /// Goes back to an earlier epoch. What was published after it stays published, and is published again
    Rollback {
        job: String,
        /// The epoch
        #[arg(long)]
        to_epoch: u64,
        /// Without being asked
        #[arg(short, long)]
        yes: bool,
    },
    /// Goes on without input that is gone (DataLossRisk); the job's log keeps what was given up
    AcceptLoss {
        job: String,
        /// SOURCE@EPOCH, as the job's message says
        loss: String,
    },
    /// What the worker logs
    Logs {
        job: String,
        /// Goes on
        #[arg(short, long)]
        follow: bool,
    },
    /// What an error code means and what to do about it
    Explain { code: String },
    /// Words for a shell that completes: save them as it reads them
    Completion { shell: clap_complete::Shell },
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
    if let Command::Completion { shell } = &args.command {
        let mut words = Vec::new();
        clap_complete::generate(*shell, &mut Args::command(), "kubectl-penstock", &mut words);
        return String::from_utf8(words).map_err(|e| Trouble::Other(e.to_string()));
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
    let jobs: Api<StreamingJob> = Api::namespaced(client.clone(), &namespace);
    let get = async |name: &str| {
        jobs.get(name)
            .await
            .map_err(|e| trouble(e, name, &namespace))
    };
    match &args.command {
        Command::Status { job } => answer(args.output, &get(job).await?, show::status),
        Command::Lag { job } => answer(args.output, &get(job).await?, show::lag),
        Command::Suspend { job } => suspend(&jobs, job, &namespace, true).await,
        Command::Resume { job } => suspend(&jobs, job, &namespace, false).await,
        Command::Logs { job, follow } => {
            get(job).await?;
            logs(args, &namespace, job, *follow)
        }
        Command::Epochs { job } => {
            get(job).await?;
            let context = args.context.as_deref();
            orders::epochs(&client, &namespace, context, job, args.output).await
        }
        Command::Top { job } => {
            get(job).await?;
            orders::top(&namespace, args.context.as_deref(), job, args.output).await
        }
        Command::Savepoint { job, name, wait } => {
            get(job).await?;
            orders::savepoint(&client, &namespace, job, name.as_deref(), *wait).await
        }
        Command::Rollback { job, to_epoch, yes } => {
            orders::rollback(&jobs, &get(job).await?, *to_epoch, *yes).await
        }
        Command::AcceptLoss { job, loss } => {
            orders::accept_loss(&jobs, &get(job).await?, loss).await
        }
        Command::Explain { .. } | Command::Completion { .. } => Ok(String::new()),
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

/// The selector of a job's workers. Pods of steps on its log bear its name too.
fn workers(job: &str) -> String {
    let component = "app.kubernetes.io/component";
    format!("{}={job},{component}={}", names::JOB, names::WORKER)
}

/// `kubectl logs`, which knows how to follow.
fn logs(args: &Args, namespace: &str, job: &str, follow: bool) -> Result<String, Trouble> {
    let mut command = std::process::Command::new("kubectl");
    let selector = workers(job);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn logs_are_those_of_workers_and_of_no_step() {
        let text = workers("payments");
        let pairs = text.split(',').map(|pair| pair.split_once('=').unwrap());
        let wanted: BTreeMap<&str, &str> = pairs.collect();
        let picks = |labels: &BTreeMap<String, String>| {
            wanted
                .iter()
                .all(|(name, value)| labels.get(*name).is_some_and(|v| v == value))
        };
        let mut labels = names::labels("payments");
        assert!(picks(&labels));
        labels.insert("app.kubernetes.io/component".to_owned(), "step".to_owned());
        assert!(!picks(&labels));
        assert!(!picks(&names::labels("other")));
    }
}
