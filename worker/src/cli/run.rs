//! `penstock run`: a job in the foreground. Says what it does, where its status is, how it ended and where it goes on.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use penstock_checkpoint::ids::MemberId;
use penstock_crds::units::Quantity;
use penstock_crds::validate::cluster_only_fields;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Output, check, team, tell, until_ended};
use crate::clock::{Clock, SystemClock};
use crate::coordinator::progress::Progress;
use crate::coordinator::{AcceptLoss, Outcome};
use crate::error::{EngineError, Result};
use crate::job::{self, Place, RunOptions, http};
use crate::network::flight::Directory;

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
    /// Worker processes that share the job, each with the slots of the manifest and its part of the memory.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Which of them this is: one worker starts all others with it.
    #[arg(long, hide = true, requires = "sockets")]
    worker: Option<u32>,
    /// Where workers meet.
    #[arg(long, hide = true)]
    sockets: Option<PathBuf>,
}

impl RunArgs {
    fn options(&self, place: Option<Place>) -> RunOptions {
        let memory_state = self
            .state
            .as_ref()
            .is_some_and(|s| s.as_os_str() == "memory");
        let memory = self.memory.as_bytes() / u64::from(self.workers);
        RunOptions {
            secrets: self.secrets.clone(),
            memory: usize::try_from(memory).unwrap_or(usize::MAX),
            state: self.state.clone().filter(|_| !memory_state),
            memory_state,
            drop_state: self.drop_state.clone(),
            accept_loss: self.accept_loss.clone(),
            place,
            ..RunOptions::default()
        }
    }

    /// Which of several workers this process is.
    fn place(&self) -> Option<Place> {
        let (me, folder) = (self.worker?, self.sockets.as_ref()?);
        Some(Place {
            me: MemberId::new(me),
            workers: self.workers,
            directory: Directory::Folder(folder.clone()),
            leads: Arc::new(watch::channel(false).0),
        })
    }
}

fn accept_loss(text: &str) -> std::result::Result<AcceptLoss, String> {
    AcceptLoss::parse(text, "penstock run --accept-loss")
}

pub fn run(args: RunArgs, output: Output) -> ExitCode {
    let checked = match check::check(&args.file, output) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    if args.worker.is_some() {
        team::end_with_parent();
    } else {
        tell::diagnostics(&checked.warnings, &checked.text, Output::Text);
        let ignored = cluster_only_fields(&checked.job);
        if !ignored.is_empty() {
            eprintln!("note: only a cluster acts on {}", ignored.join(", "));
        }
    }
    let place = args.place();
    let options = args.options(place.clone());
    if place.is_none()
        && let Err(error) = until_ended(judge(&checked, &options, output))
    {
        tell::failure(&error, output);
        return ExitCode::FAILURE;
    }
    if place.is_none() && args.workers > 1 {
        return team::run(args.workers);
    }
    // One of several speaks for all: whoever coordinates.
    let leads = place.map(|p| Leads {
        worker: p.me,
        now: p.leads.subscribe(),
    });
    let speaks = || leads.as_ref().is_none_or(|leads| *leads.now.borrow());
    match until_ended(serve(&args, checked, options, leads.clone(), output)) {
        Ok(outcome) => {
            let code = match speaks() {
                true => say_end(&outcome, output),
                false => ExitCode::SUCCESS,
            };
            match outcome {
                // Whether all of them stop knows who started them.
                Outcome::Stopped { pending, .. }
                    if leads.is_some() && (pending.is_none() || !speaks()) =>
                {
                    ExitCode::from(team::LEFT)
                }
                _ => code,
            }
        }
        Err(error) => {
            if speaks() {
                tell::failure(&error, output);
            }
            ExitCode::FAILURE
        }
    }
}

/// Whether the job may begin, with what is asked for and with the state that the last run left.
async fn judge(checked: &check::Checked, options: &RunOptions, output: Output) -> Result<()> {
    for AcceptLoss { source: name, .. } in &options.accept_loss {
        if !checked.job.spec.sources.iter().any(|s| s.name == *name) {
            let text = format!("--accept-loss {name}: the job has no source of this name");
            return Err(EngineError::invalid("PR0207", "command line", text));
        }
    }
    if let Some(verdict) = job::state_verdict(&checked.job, &checked.plan, options).await? {
        check::tell_verdict(&verdict, output);
        if let Some(why) = verdict.refusal() {
            let text = format!(
                "{why}; name those that are gone with --drop-state; one of another shape needs another name of its view or sink"
            );
            return Err(EngineError::fail("PR0410", "state", text));
        }
    }
    Ok(())
}

/// Runs the job, or this worker's part of it. `leads`: of several, whether this one coordinates.
async fn serve(
    args: &RunArgs,
    checked: check::Checked,
    options: RunOptions,
    leads: Option<Leads>,
    output: Output,
) -> Result<Outcome> {
    let job = Arc::new(checked.job);
    let progress = Arc::new(Progress::default());
    let plan = Arc::new(checked.plan);
    let shown = http::Shown {
        job: job.clone(),
        plan: plan.clone(),
        progress: progress.clone(),
    };
    let alone = leads.is_none();
    let telling = tell_of(args.listen, shown, leads, output);
    let line = match alone {
        true => telling.await?,
        false => tokio::spawn(async move {
            match telling.await {
                // Until it is aborted.
                Ok(line) => drop(line.await),
                Err(error) => tell::failure(&error, output),
            }
        }),
    };
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(interrupts(stop, alone));
    let outcome = job::run(&job, plan, &options, progress.clone(), stopping).await;
    line.abort();
    if let (Output::Text, Some((epochs, half, most))) = (output, progress.now().percentiles()) {
        eprintln!("{epochs} epochs: p50 {half} ms, p99 {most} ms to the commit");
    }
    outcome
}

/// Shows the job's status, and a line of it now and then; of several workers the one that coordinates does.
async fn tell_of(
    address: SocketAddr,
    shown: http::Shown,
    leads: Option<Leads>,
    output: Output,
) -> Result<JoinHandle<()>> {
    let progress = shown.progress.clone();
    let serve = async |shown| {
        http::serve(address, shown).await.map_err(|e| {
            EngineError::fail(
                "PR0304",
                format!("address {address}"),
                format!("cannot listen: {e}; name another with --listen"),
            )
        })
    };
    let Some(Leads { worker, mut now }) = leads else {
        let bound = serve(shown).await?;
        eprintln!("status: http://{bound}/status");
        return Ok(tokio::spawn(progress_line(progress, None, output)));
    };
    let line = tokio::spawn(progress_line(progress, Some(now.clone()), output));
    let mut bound = None;
    // The sender lives as long as the worker.
    while now.wait_for(|leads| *leads).await.is_ok() {
        let at = match bound {
            Some(at) => at,
            None => *bound.insert(serve(shown.clone()).await?),
        };
        eprintln!("worker {worker} coordinates, status: http://{at}/status");
        let _ = now.wait_for(|leads| !*leads).await;
    }
    Ok(line)
}

/// Of several workers: which this one is, and whether it coordinates now.
#[derive(Clone)]
struct Leads {
    worker: MemberId,
    now: watch::Receiver<bool>,
}

/// Ctrl-C (or SIGTERM) stops at a barrier; a second one ends the process at once, which loses nothing. `aloud`: a person is told.
pub(super) async fn interrupts(stop: watch::Sender<bool>, aloud: bool) {
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
            if aloud {
                eprintln!("ended at once; the next run goes on from the last committed epoch");
            }
            std::process::exit(130);
        }
        asked = true;
        if aloud {
            eprintln!("stopping at the next barrier (Ctrl-C again ends at once)");
        }
        if stop.send(true).is_err() {
            return;
        }
    }
}

async fn progress_line(
    progress: Arc<Progress>,
    leads: Option<watch::Receiver<bool>>,
    output: Output,
) {
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
        if leads.as_ref().is_some_and(|leads| !*leads.borrow()) {
            continue;
        }
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
