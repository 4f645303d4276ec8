//! `penstock run`: a job in the foreground. Says what it does, where its status is, how it ended and where it goes on.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use penstock_crds::units::Quantity;
use penstock_crds::validate::cluster_only_fields;
use serde_json::json;
use tokio::sync::watch;

use super::{Output, check, tell, until_ended};
use crate::clock::{Clock, SystemClock};
use crate::coordinator::progress::Progress;
use crate::coordinator::{AcceptLoss, Outcome};
use crate::error::{EngineError, Result};
use crate::job::{self, RunOptions, http};

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The job's manifest.
    file: PathBuf,
    /// Memory for state, staging and exchange.
    #[arg(long, default_value = "1Gi")]
    memory: Quantity,
    /// Address of /status, /metrics and /healthz. Other machines are not shown /status.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where secrets are: DIR/<secret>/<key>.
    #[arg(long)]
    secrets: Option<PathBuf>,
    /// The volume, or `memory`. Default: .penstock/volumes/<namespace>/<name>.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Operators (by uid) whose state may be dropped when the manifest has changed.
    #[arg(long = "drop-state")]
    drop_state: Vec<String>,
    /// Sources whose input is gone in part (DataLossRisk) and that go on all the same; SOURCE@EPOCH: only at that epoch. The log
    /// keeps what was given up.
    #[arg(long = "accept-loss", value_name = "SOURCE", value_parser = accept_loss)]
    accept_loss: Vec<AcceptLoss>,
}

fn accept_loss(text: &str) -> std::result::Result<AcceptLoss, String> {
    AcceptLoss::parse(text, "penstock run --accept-loss")
}

pub fn run(args: RunArgs, output: Output) -> ExitCode {
    let checked = match check::check(&args.file, output) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    tell::diagnostics(&checked.warnings, &checked.text, Output::Text);
    let ignored = cluster_only_fields(&checked.job);
    if !ignored.is_empty() {
        eprintln!("note: only a cluster acts on {}", ignored.join(", "));
    }
    match until_ended(serve(&args, checked, output)) {
        Ok(outcome) => say_end(&outcome, output),
        Err(error) => {
            tell::failure(&error, output);
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &RunArgs, checked: check::Checked, output: Output) -> Result<Outcome> {
    let memory_state = args
        .state
        .as_ref()
        .is_some_and(|s| s.as_os_str() == "memory");
    let options = RunOptions {
        secrets: args.secrets.clone(),
        memory: usize::try_from(args.memory.as_bytes()).unwrap_or(usize::MAX),
        state: args.state.clone().filter(|_| !memory_state),
        memory_state,
        drop_state: args.drop_state.clone(),
        accept_loss: args.accept_loss.clone(),
        ..RunOptions::default()
    };
    let job = Arc::new(checked.job);
    for AcceptLoss { source: name, .. } in &options.accept_loss {
        if !job.spec.sources.iter().any(|s| s.name == *name) {
            let text = format!("--accept-loss {name}: the job has no source of this name");
            return Err(EngineError::invalid("PR0207", "command line", text));
        }
    }
    let plan = Arc::new(checked.plan);
    if let Some(verdict) = job::state_verdict(&job, &plan, &options).await? {
        check::tell_verdict(&verdict, output);
        if let Some(why) = verdict.refusal() {
            let text = format!(
                "{why}; name those that are gone with --drop-state; one of another shape needs another name of its view or sink"
            );
            return Err(EngineError::fail("PR0410", "state", text));
        }
    }
    let progress = Arc::new(Progress::default());
    let shown = http::Shown {
        job: job.clone(),
        progress: progress.clone(),
    };
    let address = http::serve(args.listen, shown).await.map_err(|e| {
        EngineError::fail(
            "PR0304",
            format!("address {}", args.listen),
            format!("cannot listen: {e}; name another with --listen"),
        )
    })?;
    eprintln!("status: http://{address}/status");
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(interrupts(stop));
    let line = tokio::spawn(progress_line(progress.clone(), output));
    let outcome = job::run(&job, plan, &options, progress.clone(), stopping).await;
    line.abort();
    if let (Output::Text, Some((epochs, half, most))) = (output, progress.now().percentiles()) {
        eprintln!("{epochs} epochs: p50 {half} ms, p99 {most} ms to the commit");
    }
    outcome
}

/// Ctrl-C (or SIGTERM) stops at a barrier; a second one ends the process at once, which loses nothing.
pub(super) async fn interrupts(stop: watch::Sender<bool>) {
    let mut term = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(term) => term,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be heard");
            return;
        }
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        if asked {
            eprintln!("ended at once; the next run goes on from the last committed epoch");
            std::process::exit(130);
        }
        asked = true;
        eprintln!("stopping at the next barrier (Ctrl-C again ends at once)");
        if stop.send(true).is_err() {
            return;
        }
    }
}

async fn progress_line(progress: Arc<Progress>, output: Output) {
    let terminal = std::io::stderr().is_terminal() && output == Output::Text;
    let bar =
        terminal.then(|| ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner()));
    let every = if terminal {
        Duration::from_millis(500)
    } else {
        Duration::from_secs(10)
    };
    loop {
        tokio::time::sleep(every).await;
        let line = http::line(&progress.now(), SystemClock.now().get());
        match &bar {
            Some(bar) => bar.set_message(line),
            None if output == Output::Text => eprintln!("{line}"),
            None => {}
        }
    }
}

fn say_end(outcome: &Outcome, output: Output) -> ExitCode {
    let mut behind = None;
    let (name, epoch, text) = match outcome {
        Outcome::Stopped {
            epoch,
            pending: None,
        } => (
            "Stopped",
            epoch,
            format!("stopped at epoch {epoch}; the next run goes on from there"),
        ),
        Outcome::Stopped {
            epoch,
            pending: Some(published),
        } => {
            behind = Some(published);
            let text = format!(
                "stopped at epoch {epoch}; a sink did not answer: the results are published up to epoch {published}, those after it are committed and the next run publishes them"
            );
            ("Stopped", epoch, text)
        }
        Outcome::Completed { epoch } => (
            "Completed",
            epoch,
            format!(
                "completed at epoch {epoch}: everything available was read; the next run goes on from there"
            ),
        ),
        Outcome::Drained { epoch } => (
            "Drained",
            epoch,
            format!("finished at epoch {epoch}: the input ended and every window is closed"),
        ),
    };
    match output {
        Output::Text => eprintln!("{text}"),
        Output::Json => {
            let mut said = json!({"outcome": name, "epoch": epoch});
            if let Some(published) = behind {
                said["publishedThrough"] = json!(published);
            }
            println!("{said}");
        }
    }
    match behind {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    }
}
