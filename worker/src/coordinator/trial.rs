//! A new version on trial (rule 10): what it commits is staged, and published when it has run long enough. Until then the version
//! before it can be had back, and nothing was published twice.

use std::time::Duration;

use penstock_checkpoint::decide::Wish;
use penstock_checkpoint::fold::Fold;
use penstock_checkpoint::ids::Epoch;
use penstock_checkpoint::record::{Accepted, Kind, PackRef};
use penstock_checkpoint::store::ErrorKind as StoreKind;
use tokio::time::Instant;

use super::{Coordinator, Settings};
use crate::error::{EngineError, Result};
use crate::member::protocol::ToMember;
use crate::member::storage;
use crate::sinks::Turn;

/// Which version runs, in a cluster. `penstock run` has none: what it runs is never on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Another name than that of the last claim is another version.
    pub version: String,
    /// It comes back: the version on trial has failed.
    pub rollback: bool,
    /// How long a trial lasts at least.
    pub accept_after: Duration,
    /// Its operators begin empty.
    pub stateless: bool,
}

/// Commits that a trial needs, besides its time.
const COMMITS: u64 = 3;

/// The log of an earlier job of this name, which this one goes on with (rule 11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopts {
    /// The job that adopts it; each of its claims says so, by which it finds the log again.
    pub by: String,
    /// Where its first claim begins, if not where the earlier job ended.
    pub back_to: Option<Epoch>,
}

/// A person's wish to go back to an earlier epoch (rule 10), which is fulfilled once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoBack {
    pub to: Epoch,
    /// Its name, which the claim keeps.
    pub request: String,
}

/// How a version claims the job.
pub(super) fn wish(fold: &Fold, settings: &Settings) -> Result<Wish> {
    if let Some(Adopts { by, back_to }) = &settings.adopts
        && fold.claim().and_then(|c| c.by.as_ref()) != Some(by)
    {
        return Ok(match back_to {
            Some(to) => Wish::GoBack { to: *to },
            None => Wish::Recover,
        });
    }
    if let Some(GoBack { to, request }) = &settings.go_back
        && !fold.fulfilled(request)
    {
        return Ok(Wish::GoBack { to: *to });
    }
    let (Some(release), Some(last)) = (&settings.release, fold.claim()) else {
        return Ok(Wish::Recover);
    };
    if last.version.as_deref() == Some(&release.version) {
        return Ok(Wish::Recover);
    }
    match (release.rollback, fold.trial()) {
        (true, Some(_)) => Ok(Wish::Rollback),
        (true, None) => Err(EngineError::invalid(
            "PR0413",
            format!("version {}", release.version),
            "it cannot come back: the version after it is accepted, and its results are published",
        )),
        (false, _) => Ok(Wish::Upgrade),
    }
}

impl Coordinator {
    /// An epoch that is to be gone back to is published, or will be, and its state is still there: asked before anything is
    /// claimed.
    pub(super) async fn can_be_had_back(&mut self, to: Epoch) -> Result<()> {
        let object = format!("epoch {to}");
        if !self.log.fold().is_publishable(to) {
            let text = "it is none of the job's, or was never published, so the job cannot go back to it; `penstock log` lists epochs";
            return Err(EngineError::invalid("PR0411", object, text));
        }
        match self.log.restore(to).await {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.kind(), StoreKind::Retry | StoreKind::Refused) => Err(storage(e)),
            Err(e) => {
                let text = "its state is not kept any more: checkpoint.retention and savepoints say what is";
                Err(EngineError::invalid("PR0411", object, text).caused_by(e))
            }
        }
    }

    /// For /status: the controller goes by it.
    pub(super) fn show_release(&self) {
        if let Some(release) = &self.settings.release {
            let on_trial = self.log.fold().trial().is_some();
            self.progress.release(&release.version, on_trial);
        }
    }

    /// A version on trial whose operators begin empty says so in its first epoch, before a row is read: a crash before that changes
    /// nothing, and after it the log knows. The version before it still has its state.
    pub(super) async fn forget_state(&mut self) -> Result<bool> {
        let stateless = self.settings.release.as_ref().is_some_and(|r| r.stateless);
        let fold = self.log.fold();
        if !stateless || fold.trial().is_none() || fold.staged().next().is_some() {
            return Ok(false);
        }
        self.forgets_state = true;
        self.commit(None, self.now_ms()).await?;
        tracing::info!(
            epoch = self.log.fold().head().get(),
            "operators begin empty"
        );
        Ok(true)
    }

    /// Ends the trial when it has lasted long enough, committed often enough, or staged as much as fits.
    pub(super) async fn accept_when_due(&mut self) -> Result<()> {
        let (Some(release), Some(trial)) = (&self.settings.release, self.log.fold().trial()) else {
            return Ok(());
        };
        let began = *self.trial_began.get_or_insert_with(Instant::now);
        let commits = self.log.fold().staged().count() as u64;
        let long = began.elapsed() >= release.accept_after && commits >= COMMITS;
        let full = self.staged_bytes > self.settings.epoch_bytes * super::K;
        tracing::debug!(base = trial.base.get(), commits, long, full, "on trial");
        if long || full {
            self.accept().await?;
        }
        Ok(())
    }

    /// What was staged may be published from now on, in order.
    pub(super) async fn accept(&mut self) -> Result<()> {
        if self.log.fold().trial().is_none() {
            return Ok(());
        }
        let accepted = Accepted {
            generation: self.generation,
            epoch: self.log.fold().head(),
        };
        let staged: Vec<_> = self.log.fold().staged().map(|(e, _)| e).collect();
        self.log
            .append(self.generation, Kind::Accepted(accepted))
            .await
            .map_err(storage)?;
        tracing::info!(epochs = staged.len(), "the version is accepted");
        self.staged_bytes = 0;
        self.trial_began = None;
        self.show_release();
        let mut backlog = self.backlog();
        backlog.retain(|(turn, _)| staged.iter().any(|e| e.get() == turn.epoch));
        self.tell(ToMember::Publish(backlog));
        Ok(())
    }

    /// What may be published and is not known to be, oldest first, with the packs that hold it.
    pub(super) fn backlog(&self) -> Vec<(Turn, Vec<PackRef>)> {
        let fold = self.log.fold();
        fold.to_publish()
            .filter_map(|(e, generation)| {
                let commit = &fold.commit(e)?.commit;
                let turn = Turn {
                    epoch: e.get(),
                    generation: generation.get(),
                    now_ms: commit.now.get().div_euclid(1000),
                };
                Some((turn, commit.packs.clone()))
            })
            .collect()
    }
}
