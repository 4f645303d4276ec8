//! The end of a log: everything below its prefix goes, but for what savepoints pin. Needs no healthy job.
//!
//! A key that is freed could be created again by a zombie that knows an older tail (rule 6), so log records go only when nobody
//! who may append without looking is left: the newest claim is older than [`ZOMBIE`], and its owner said that it stopped, or the
//! claim is this module's own.

use std::time::Duration;

use crate::collect::Collector;
use crate::decide::Wish;
use crate::gc::Retention;
use crate::ids::Epoch;
use crate::log::{JobLog, LogError, Options, find_tail, need_record, record_path, record_seq};
use crate::record::{Assignment, Claim, ClaimKind, Kind, StopReason, Stopped};
use crate::store::CheckpointStore;

/// An owner that has not looked for longer proves that its tail still stands before it believes in an append.
const ZOMBIE: Duration = Duration::from_secs(61);

/// Why a log stopped whose objects are going.
const REMOVED: &str = "REMOVED";
/// Why a log stopped that is to go as soon as no savepoint pins it.
const PINNED: &str = "PINNED";

/// What is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// Nothing.
    Everything,
    /// What these savepoints need.
    Pinned(Vec<String>),
}

/// Whether the log waits for its last savepoint to go.
pub fn is_condemned(log: &JobLog) -> bool {
    let why = log.fold().stopped().map(|s| &s.why);
    matches!(why, Some(StopReason::Failed { code }) if code == PINNED)
}

/// Removes the log of `store`. Nobody runs the job any more, as far as anybody knows. May be called again after any crash.
///
/// # Errors
/// Of the store; and where the log cannot be read: what its savepoints need is not known then, so nothing goes.
pub async fn remove(store: &CheckpointStore, options: Options) -> Result<Removed, LogError> {
    let newest = match find_tail(store).await? {
        Some(tail) => Some(need_record(store, tail).await?),
        None => None,
    };
    let going = |kind: &Kind| matches!(kind, Kind::Stopped(Stopped { why: StopReason::Failed { code }, .. }) if code == REMOVED);
    if newest.is_some_and(|r| !going(&r.kind))
        && let Some(mut log) = JobLog::open(store.clone(), options).await?
    {
        let pins: Vec<String> = log.fold().pins().keys().cloned().collect();
        if !pins.is_empty() {
            keep_pinned(&mut log).await?;
            return Ok(Removed::Pinned(pins));
        }
        fence(&mut log).await?;
        stop(&mut log, REMOVED).await?;
    }
    wipe(store).await?;
    Ok(Removed::Everything)
}

/// Returns when no owner of the log can append any more.
async fn fence(log: &mut JobLog) -> Result<(), LogError> {
    if log.fold().claim().is_none() {
        // Nobody has ever owned it, and who is about to looks first.
        return Ok(());
    }
    let mut wait = ZOMBIE;
    if log.fold().stopped().is_some() {
        let age = log.clock().now().get() - log.fold().claimed().get();
        let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
        wait = ZOMBIE.saturating_sub(age);
    } else {
        own(log).await?;
    }
    tokio::time::sleep(wait).await;
    Ok(())
}

/// Claims the log, so that whoever runs the job is fenced. A drained one has no owner.
async fn own(log: &mut JobLog) -> Result<(), LogError> {
    let claimed = log
        .claim(Wish::Recover, |fold, _| Claim {
            kind: ClaimKind::Recovery,
            restore_epoch: Epoch::ZERO,
            handover_from: None,
            plan_hash: fold
                .claim()
                .map(|c| c.plan_hash.clone())
                .unwrap_or_default(),
            members: Vec::new(),
            assignment: Assignment::default(),
            by: Some("removal".to_owned()),
            version: None,
            request: None,
        })
        .await;
    match claimed {
        Ok(_) | Err(LogError::Refused(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Claims the log and collects everything but what is pinned and the newest epoch.
async fn keep_pinned(log: &mut JobLog) -> Result<(), LogError> {
    own(log).await?;
    let generation = log.fold().generation();
    log.write_closure(generation).await?;
    let retention = Retention {
        epochs: 1,
        duration: Duration::ZERO,
    };
    Collector::new().collect(log, generation, retention).await?;
    stop(log, PINNED).await
}

async fn stop(log: &mut JobLog, code: &str) -> Result<(), LogError> {
    let stopped = Stopped {
        epoch: log.fold().head(),
        why: StopReason::Failed {
            code: code.to_owned(),
        },
    };
    let generation = log.fold().generation();
    log.append(generation, Kind::Stopped(stopped)).await?;
    Ok(())
}

/// Every object; records last and the newest of them at the very end: until then the log can be seen to be this one.
async fn wipe(store: &CheckpointStore) -> Result<(), LogError> {
    let (mut records, mut others) = (Vec::new(), Vec::new());
    for listed in store.list("").await? {
        match record_seq(&listed.key) {
            Some(seq) => records.push(seq),
            None => others.push(listed.key),
        }
    }
    for key in others {
        store.delete(&key).await?;
    }
    records.sort();
    for seq in records {
        store.delete(&record_path(seq)).await?;
    }
    Ok(())
}
