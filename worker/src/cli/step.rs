//! `penstock step`: one step on the log of a job that does not run, in a pod of its own with the job's identity. The controller
//! touches no bucket; it starts this, and reads what it left.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use penstock_checkpoint::ids::LogId;
use penstock_checkpoint::log::{JobLog, LogError, Options};
use penstock_checkpoint::record::{Kind, Pin, Unpin};
use penstock_checkpoint::removal::{self, Removed};
use penstock_checkpoint::store::ErrorKind as StoreKind;
use serde_json::{Value, json};

use super::{Output, check, tell, until_ended};
use crate::error::Result;
use crate::job::{self, given};
use crate::member::storage;

#[derive(Debug, Args)]
pub struct StepArgs {
    /// The job as the controller wrote it.
    file: PathBuf,
    /// The identity of the job's log: its uid.
    #[arg(long)]
    log_id: LogId,
    /// Where secrets are mounted: DIR/<secret>/<key>.
    #[arg(long)]
    secrets: PathBuf,
    /// Where the answer is left.
    #[arg(long, default_value = "/dev/termination-log")]
    last_words: PathBuf,
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Pins the epoch where the job ended.
    Savepoint { name: String },
    /// Gives a savepoint up. A log that was kept for its savepoints alone goes with the last of them.
    Unpin { name: String },
    /// Removes the log, but for what savepoints pin.
    Remove,
}

pub fn step(args: &StepArgs, output: Output) -> ExitCode {
    let checked = match check::check(&args.file, output) {
        Ok(checked) => checked,
        Err(code) => {
            let text = "the rendered job is refused by this version of the engine";
            leave(args, &json!({"code": "PR0410", "message": text}));
            return code;
        }
    };
    match until_ended(carry_out(args, &checked.job)) {
        Ok(answer) => {
            println!("{answer}");
            leave(args, &answer);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let said = json!({"code": error.code, "message": error.to_string()});
            leave(args, &said);
            tell::failure(&error, output);
            ExitCode::FAILURE
        }
    }
}

fn leave(args: &StepArgs, answer: &Value) {
    if let Err(error) = std::fs::write(&args.last_words, answer.to_string()) {
        tracing::warn!(%error, path = %args.last_words.display(), "cannot leave the answer");
    }
}

async fn carry_out(args: &StepArgs, job: &penstock_crds::job::StreamingJob) -> Result<Value> {
    let root = job::open_root(job, Some(&args.secrets))?;
    let place = given::Place {
        job,
        id: args.log_id,
        root: &root,
        savepoint: None,
    };
    let mut log = match place.find().await? {
        given::Found::Own(log) | given::Found::Adopted(log) => log,
        given::Found::Others(_) => return Ok(none(&args.step)),
    };
    match &args.step {
        Step::Savepoint { name } => pin(&mut log, name).await,
        Step::Unpin { name } => unpin(&mut log, name).await,
        Step::Remove => {
            let removed = removal::remove(log.store(), Options::default()).await;
            Ok(match removed.map_err(storage)? {
                Removed::Everything => json!({"removed": true}),
                Removed::Pinned(pins) => json!({"removed": false, "pinned": pins}),
            })
        }
    }
}

/// A job that has no log.
fn none(step: &Step) -> Value {
    match step {
        Step::Savepoint { .. } => json!({"nothing": true}),
        Step::Unpin { .. } => json!({"unpinned": true}),
        Step::Remove => json!({"removed": true}),
    }
}

/// Appends in the name of the generation that ended. Whoever claims in between is found out, and the step is tried again.
async fn append(log: &mut JobLog, kind: Kind) -> Result<()> {
    loop {
        let generation = log.fold().generation();
        match log.append(generation, kind.clone()).await {
            Ok(_) => return Ok(()),
            Err(LogError::Fenced { .. }) => {
                log.follow().await.map_err(storage)?;
            }
            Err(e) => return Err(storage(e)),
        }
    }
}

async fn pin(log: &mut JobLog, name: &str) -> Result<Value> {
    if !log.fold().pins().contains_key(name) {
        // What a trial committed is not published, and may never be.
        let epoch = log.fold().trial().map_or(log.fold().head(), |t| t.base);
        if epoch == log.fold().root() && log.fold().parent_log().is_none() {
            return Ok(none(&Step::Savepoint {
                name: name.to_owned(),
            }));
        }
        let name = name.to_owned();
        append(log, Kind::Pin(Pin { epoch, name })).await?;
    }
    let epoch = log.fold().pins()[name];
    let bytes = match log.restore(epoch).await {
        Ok(plan) => plan.state.bytes(),
        Err(e) if matches!(e.kind(), StoreKind::Retry | StoreKind::Refused) => {
            return Err(storage(e));
        }
        Err(_) => 0,
    };
    let completed = epoch <= log.fold().done_through();
    Ok(json!({"epoch": epoch.get(), "completed": completed, "bytes": bytes}))
}

async fn unpin(log: &mut JobLog, name: &str) -> Result<Value> {
    if log.fold().pins().contains_key(name) {
        let name = name.to_owned();
        append(log, Kind::Unpin(Unpin { name })).await?;
    }
    if removal::is_condemned(log) && log.fold().pins().is_empty() {
        let removed = removal::remove(log.store(), Options::default()).await;
        removed.map_err(storage)?;
    }
    Ok(json!({"unpinned": true}))
}
