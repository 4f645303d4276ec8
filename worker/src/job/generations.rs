//! Generations of a job until it ends: after a fence, or a failure that passes, the process joins again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use penstock_checkpoint::ids::SystemEntropy;
use penstock_checkpoint::log::LogError;
use penstock_checkpoint::store::CheckpointStore;
use penstock_crds::job::StreamingJob;
use penstock_plan::{Plan, Verdict};
use tokio::sync::watch;

use super::machine::Machine;
use super::workers::Worker;
use super::{RunOptions, state_verdict};
use crate::clock::{Clock, SystemClock};
use crate::coordinator::Outcome;
use crate::coordinator::progress::{LastFailure, Phase, Progress, Restart};
use crate::error::{EngineError, ErrorKind, Result};
use crate::member::storage;

/// Runs a job until it ends, is stopped by `stop`, or fails. Begins a new generation after a fence or a passing failure.
pub async fn run(
    job: &StreamingJob,
    plan: Arc<Plan>,
    options: &RunOptions,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Outcome> {
    let outcome = generations(job, plan, options, progress.clone(), stop).await;
    progress.phase(if outcome.is_ok() {
        Phase::Completed
    } else {
        Phase::Failed
    });
    outcome
}

async fn generations(
    job: &StreamingJob,
    plan: Arc<Plan>,
    options: &RunOptions,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Outcome> {
    let worked = AtomicBool::new(false);
    let looked = AtomicBool::new(false);
    let cluster = options.log_id.is_some();
    let machine = Machine {
        job: job.clone(),
        plan,
        options: options.clone(),
        // Who started several workers has asked the storage before: they wait for it.
        proven: Proven::new(cluster || options.place.is_some()),
        progress: progress.clone(),
        stop: stop.clone(),
    };
    let machine = Arc::new(machine);
    let worker = match options.place.clone() {
        None => None,
        Some(place) => {
            let (ground, progress) = (machine.clone(), progress.clone());
            Some(Worker::new(
                place.listen().await?,
                ground,
                progress,
                stop.clone(),
            ))
        }
    };
    let ended = one_after_another(&stop, &progress, || async {
        let ended = match &worker {
            Some(worker) => worker.run().await,
            None => machine.alone().await,
        };
        let member = worker.as_ref().is_some_and(Worker::was_member);
        worked.fetch_or(progress.is(Phase::Running) || member, Ordering::Relaxed);
        let ended = ended.map_err(|e| at_the_start(e, cluster, worked.load(Ordering::Relaxed)));
        ended.map_err(|e| looked_again(e, &looked))
    });
    let ended = ended.await;
    let ended = ended.map(|ended| ended.unwrap_or_else(|| cut_short(&progress)));
    if let Some(worker) = &worker {
        worker.tell_end(&ended).await;
        worker.close().await;
    }
    ended
}

/// Whether the store has been found to keep what it must.
pub(super) struct Proven {
    /// Storage that has not answered yet is waited for.
    patient: bool,
    done: AtomicBool,
}

impl Proven {
    fn new(patient: bool) -> Self {
        Self {
            patient,
            done: AtomicBool::new(false),
        }
    }

    /// Once.
    pub async fn prove(&self, store: &CheckpointStore) -> Result<()> {
        if !self.done.load(Ordering::Relaxed) {
            prove(store).await.map_err(|e| unproven(e, self.patient))?;
            self.done.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A login that never worked is told to the person who starts the job. One that did is tried on with, until the Secret has been
/// changed too; and so it is on a cluster, where Secrets come to their places later than pods do.
fn at_the_start(error: EngineError, cluster: bool, worked: bool) -> EngineError {
    let kind = match error.kind {
        ErrorKind::Refused if !cluster && !worked => ErrorKind::Fail,
        kind => kind,
    };
    EngineError { kind, ..error }
}

/// Storage that has not answered yet: a person who starts the job is told so, a pod waits for it.
fn unproven(error: EngineError, patient: bool) -> EngineError {
    let kind = match error.kind {
        ErrorKind::Retry if !patient => ErrorKind::Fail,
        kind => kind,
    };
    EngineError { kind, ..error }
}

/// An object that is damaged or gone stays so, and only a person mends it. But who slept may look for what the job's next owner
/// has collected: so the job is joined again, once, and the log says who owns it.
fn looked_again(error: EngineError, looked: &AtomicBool) -> EngineError {
    let lost = matches!(error.code, "PR0404" | "PR0405");
    let before = looked.swap(lost, Ordering::Relaxed);
    let kind = match error.kind {
        ErrorKind::Invalid if lost && !before => ErrorKind::Retry,
        kind => kind,
    };
    EngineError { kind, ..error }
}

/// The store refuses a second create of one key, or the job does not begin.
async fn prove(store: &CheckpointStore) -> Result<()> {
    let proven = store.prove_create_if_absent(&mut SystemEntropy).await;
    proven.map_err(|e| {
        let careless = e.kind == penstock_checkpoint::store::ErrorKind::Invalid;
        let error = storage(LogError::from(e));
        EngineError {
            code: if careless { "PR0403" } else { error.code },
            ..error
        }
    })
}

/// Before a generation that follows one that got somewhere.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Generations until one ends the job: after a fence or a passing failure the process joins again. `None`: a stop was asked for
/// between two.
pub(crate) async fn one_after_another<T, F: Future<Output = Result<T>>>(
    stop: &watch::Receiver<bool>,
    progress: &Progress,
    mut generation: impl FnMut() -> F,
) -> Result<Option<T>> {
    let mut stop = stop.clone();
    let mut pause = FIRST_PAUSE;
    loop {
        let before = progress.now().epoch.number;
        let ended = generation().await;
        if let Err(e) = &ended {
            progress.failed(LastFailure {
                at_ms: SystemClock.now().get(),
                code: e.code,
                message: e.to_string(),
            });
        }
        match ended {
            Err(e)
                if matches!(
                    e.kind,
                    ErrorKind::Fenced | ErrorKind::Retry | ErrorKind::Refused
                ) =>
            {
                // Who asked for a stop has it: what is committed is safe, and the log's next owner goes on with it.
                if *stop.borrow() {
                    tracing::warn!(error = %e, "stopped by the generation's end");
                    return Ok(None);
                }
                tracing::warn!(error = %e, "the generation is over, joining again");
                progress.restarted(match e.kind {
                    ErrorKind::Fenced => Restart::Fenced,
                    ErrorKind::Retry
                    | ErrorKind::Refused
                    | ErrorKind::Fail
                    | ErrorKind::Invalid => Restart::Retry,
                });
                // The delay grows with each generation that no commit followed.
                if progress.now().epoch.number > before {
                    pause = FIRST_PAUSE;
                }
                if asked_within(&mut stop, pause).await {
                    return Ok(None);
                }
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            other => return other.map(Some),
        }
    }
}

/// Stopped without a word in the log: at the newest commit that this process knows of.
pub(crate) fn cut_short(progress: &Progress) -> Outcome {
    let now = progress.now();
    let epoch = now.epoch.number;
    Outcome::Stopped {
        epoch,
        pending: (now.published < epoch).then_some(now.published),
    }
}

/// Whether a stop is asked for within the pause.
async fn asked_within(stop: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    let asked = async {
        // Nobody can ask any more once the sender is gone.
        if stop.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::time::timeout(pause, asked).await.is_ok()
}

/// As [`state_verdict`], for a job that nobody watches: waits for storage that does not answer, as its generations do. `None` also
/// where a stop was asked for meanwhile.
pub async fn state_verdict_in_time(
    job: &StreamingJob,
    plan: &Plan,
    options: &RunOptions,
    progress: &Progress,
    stop: &watch::Receiver<bool>,
) -> Result<Option<Verdict>> {
    let looked = AtomicBool::new(false);
    let verdict = one_after_another(stop, progress, || async {
        let verdict = state_verdict(job, plan, options).await;
        verdict.map_err(|e| looked_again(e, &looked))
    });
    Ok(verdict.await?.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_ends_a_job_that_a_person_has_just_started_and_no_other() {
        let refused = || EngineError::new(ErrorKind::Refused, "PR0211", "source a", "no");
        assert_eq!(at_the_start(refused(), false, false).kind, ErrorKind::Fail);
        assert_eq!(
            at_the_start(refused(), false, true).kind,
            ErrorKind::Refused
        );
        assert_eq!(
            at_the_start(refused(), true, false).kind,
            ErrorKind::Refused
        );
        let passing = EngineError::retry("PR0208", "source a", "no");
        assert_eq!(at_the_start(passing, false, false).kind, ErrorKind::Retry);
    }

    #[test]
    fn storage_that_does_not_answer_ends_a_job_that_a_person_has_just_started_and_no_other() {
        let away = || EngineError::retry("PR0402", "checkpoint storage", "no");
        assert_eq!(unproven(away(), false).kind, ErrorKind::Fail);
        assert_eq!(unproven(away(), true).kind, ErrorKind::Retry);
    }

    #[test]
    fn an_object_that_is_gone_is_looked_for_once_more() {
        let looked = AtomicBool::new(false);
        let kind = |code| looked_again(EngineError::invalid(code, "pack", "gone"), &looked).kind;
        assert_eq!(kind("PR0405"), ErrorKind::Retry);
        assert_eq!(kind("PR0404"), ErrorKind::Invalid);
        assert_eq!(kind("PR0207"), ErrorKind::Invalid);
        assert_eq!(
            kind("PR0405"),
            ErrorKind::Retry,
            "the look before was another"
        );
    }
}
