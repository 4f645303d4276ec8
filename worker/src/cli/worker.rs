//! `penstock worker`: a job in a pod. The same engine as `penstock run`, told by its supervisor what to run; nobody watches its
//! terminal, so it logs, and what ended it is written to a file. When the job has ended it stays until it is told to go, so that
//! its status can be asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use penstock_checkpoint::ids::{Epoch, LogId, MemberId};
use penstock_crds::job::UpgradeStrategy;
use penstock_crds::units::Quantity;
use penstock_plan::WAYS_OUT;
use serde_json::json;
use tokio::sync::watch;

use super::{Output, check, tell, until_ended};
use crate::coordinator::progress::Progress;
use crate::coordinator::{AcceptLoss, Asked, GoBack, Outcome, Release};
use crate::error::{EngineError, ErrorKind, Result};
use crate::job::{self, Place, RunOptions, http};
use crate::network::flight::Directory;

#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The job as the controller wrote it.
    file: PathBuf,
    /// The identity of the job's log: its uid.
    #[arg(long)]
    log_id: LogId,
    /// The version's name: another one than ran last is on trial first.
    #[arg(long)]
    version: Option<String>,
    /// This version comes back; the one on trial has failed.
    #[arg(long)]
    rollback: bool,
    /// `<job>/<logId>` of the savepoint that the job begins with.
    #[arg(long)]
    savepoint: Option<String>,
    /// As of `penstock run`, by a person's word: SOURCE@EPOCH.
    #[arg(long = "accept-loss", value_parser = accept_loss)]
    accept_loss: Vec<AcceptLoss>,
    /// An epoch to go back to, by a person's word: EPOCH@REQUEST.
    #[arg(long = "go-back", value_parser = go_back)]
    go_back: Option<GoBack>,
    /// Memory for state, staging and exchange.
    #[arg(long)]
    memory: Quantity,
    /// The volume.
    #[arg(long)]
    state: PathBuf,
    /// Where secrets are mounted: DIR/<secret>/<key>.
    #[arg(long)]
    secrets: PathBuf,
    /// Address of /metrics, /healthz and /readyz, and for who is in the pod of /status and /epochs.
    #[arg(long)]
    listen: SocketAddr,
    /// Address of /status and of the controller's requests, by mutual TLS.
    #[arg(long, requires = "certificate")]
    control: Option<SocketAddr>,
    /// A folder with ca.crt, tls.crt and tls.key.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Address where the job's other workers reach this one, by mutual TLS.
    #[arg(long, requires_all = ["certificate", "peers", "pod"])]
    exchange: Option<SocketAddr>,
    /// Host of each worker, with {} where its number stands.
    #[arg(long)]
    peers: Option<String>,
    /// This pod: its name ends with the worker's number.
    #[arg(long)]
    pod: Option<String>,
    /// Workers that the job has now. Others may come, and these may go.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Where to write why the job cannot go on.
    #[arg(long)]
    failure: Option<PathBuf>,
}

fn accept_loss(text: &str) -> std::result::Result<AcceptLoss, String> {
    AcceptLoss::parse(text, "kubectl penstock accept-loss")
}

fn go_back(text: &str) -> std::result::Result<GoBack, String> {
    let (epoch, request) = text.split_once('@').ok_or("EPOCH@REQUEST")?;
    let to = epoch.parse().map_err(|_| format!("{epoch} is no epoch"))?;
    Ok(GoBack {
        to: Epoch::new(to),
        request: request.to_owned(),
    })
}

impl WorkerArgs {
    /// Which of the job's workers this is; `None`: the only one.
    fn place(&self) -> Result<Option<Place>> {
        let (Some(exchange), Some(peers), Some(pod), Some(certificate)) =
            (self.exchange, &self.peers, &self.pod, &self.certificate)
        else {
            return Ok(None);
        };
        let number = pod.rsplit_once('-').and_then(|(_, n)| n.parse().ok());
        let number = number.ok_or_else(|| {
            let text = format!("--pod {pod}: its name does not end with a worker's number");
            EngineError::fail("PR0320", "command line", text)
        })?;
        Ok(Some(Place {
            me: MemberId::new(number),
            workers: self.workers,
            directory: Directory::Hosts {
                host: peers.clone(),
                port: exchange.port(),
                listen: exchange.ip(),
                certificate: certificate.clone(),
            },
            leads: Arc::new(watch::channel(false).0),
        }))
    }
}

pub fn worker(args: &WorkerArgs, output: Output) -> ExitCode {
    let checked = match check::check(&args.file, output) {
        Ok(checked) => checked,
        Err(code) => {
            let text = "the rendered job is refused by this version of the engine";
            write_failure(args, "PR0410", text);
            return code;
        }
    };
    match until_ended(serve(args, checked)) {
        Ok(outcome) => {
            tracing::info!(?outcome, "the worker has ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let error = without_rows(error);
            write_failure(args, error.code, &error.to_string());
            tell::failure(&error, output);
            match error.kind {
                // What is wrong with a row or a manifest is so at the next try too.
                ErrorKind::Invalid => ExitCode::from(super::supervise::REFUSED),
                ErrorKind::Retry | ErrorKind::Refused | ErrorKind::Fail | ErrorKind::Fenced => {
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// The error as a cluster may keep it: logs, status and Events hold nothing of a row. What the engine quotes from one stands in
/// backquotes; a library that judged it quotes as it likes. `penstock run` shows both, to the person whose rows they are.
fn without_rows(error: EngineError) -> EngineError {
    const OF_A_ROW: [&str; 7] = [
        "PR0201", "PR0202", "PR0203", "PR0204", "PR0205", "PR0206", "PR0302",
    ];
    if !OF_A_ROW.contains(&error.code) {
        return error;
    }
    let parts = error.message.split('`').enumerate();
    let shown = parts.map(|(i, part)| if i % 2 == 0 { part } else { "`…`" });
    EngineError {
        message: shown.collect(),
        source: None,
        ..error
    }
}

/// For the supervisor, which tells the controller.
fn write_failure(args: &WorkerArgs, code: &str, message: &str) {
    let Some(path) = &args.failure else { return };
    let text = json!({"code": code, "message": message}).to_string();
    if let Err(error) = std::fs::write(path, text) {
        tracing::warn!(%error, path = %path.display(), "cannot write why the job failed");
    }
}

async fn serve(args: &WorkerArgs, checked: check::Checked) -> Result<Outcome> {
    let asking = Arc::new(watch::channel(Asked::default()).0);
    let options = RunOptions {
        secrets: Some(args.secrets.clone()),
        memory: usize::try_from(args.memory.as_bytes()).unwrap_or(usize::MAX),
        state: Some(args.state.clone()),
        memory_state: false,
        drop_state: checked.job.spec.upgrade.drop_state.clone(),
        accept_loss: args.accept_loss.clone(),
        log_id: Some(args.log_id),
        savepoint: args.savepoint.clone(),
        go_back: args.go_back.clone(),
        asked: Some(asking.subscribe()),
        place: args.place()?,
        release: args.version.clone().map(|version| Release {
            version,
            rollback: args.rollback,
            accept_after: checked.job.spec.upgrade.accept_after.into(),
            stateless: checked.job.spec.upgrade.strategy == UpgradeStrategy::Stateless,
        }),
    };
    if let Some(place) = &options.place {
        let (mut leads, asking) = (place.leads.subscribe(), asking.clone());
        tokio::spawn(async move {
            while leads.changed().await.is_ok() {
                if !*leads.borrow_and_update() {
                    // Whoever coordinates next is asked anew.
                    asking.send_replace(Asked::default());
                }
            }
        });
    }
    let job = Arc::new(checked.job);
    let progress = Arc::new(Progress::default());
    let plan = Arc::new(checked.plan);
    let shown = http::Shown {
        job: job.clone(),
        plan: plan.clone(),
        progress: progress.clone(),
    };
    let cannot = |address: SocketAddr| {
        move |e: std::io::Error| {
            let object = format!("address {address}");
            EngineError::fail("PR0304", object, format!("cannot listen: {e}"))
        }
    };
    http::serve(args.listen, shown.clone())
        .await
        .map_err(cannot(args.listen))?;
    if let (Some(address), Some(folder)) = (args.control, &args.certificate) {
        http::serve_controller(address, folder, shown, asking.clone())
            .await
            .map_err(cannot(address))?;
    }
    let (stop, mut stopping) = watch::channel(false);
    tokio::spawn(super::run::interrupts(stop, true));
    let judged = match args.rollback {
        true => None,
        false => job::state_verdict_in_time(&job, &plan, &options, &progress, &stopping).await?,
    };
    if let Some(verdict) = judged
        && let Some(why) = verdict.refusal()
    {
        check::tell_verdict(&verdict, Output::Json);
        // As the webhook says it, which was away.
        let text = format!("{why}, {WAYS_OUT}");
        return Err(EngineError::invalid("PR0410", "state", text));
    }
    let outcome = job::run(&job, plan, &options, progress, stopping.clone()).await?;
    if !matches!(outcome, Outcome::Stopped { .. }) {
        tracing::info!(?outcome, "the job has ended; its status stays");
        // The sender lives as long as the process.
        let _ = stopping.wait_for(|asked| *asked).await;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_keeps_of_an_error_holds_nothing_of_the_row() {
        let text = "n: expected BIGINT, found `\"4111 1111\"`; onError is Fail";
        let library = std::io::Error::other("Cannot cast string '4111 1111'");
        let of_a_row = EngineError::invalid("PR0202", "source rows", text).caused_by(library);
        let told = without_rows(of_a_row);
        assert_eq!(
            told.message,
            "n: expected BIGINT, found `…`; onError is Fail"
        );
        assert!(told.source.is_none());
        let other = EngineError::fail("PR0207", "source rows", "say `--accept-loss`");
        assert_eq!(without_rows(other).message, "say `--accept-loss`");
    }
}
