//! Decisions on the log that need nothing but what was read: what a claim restores, who may claim and when, whether the
//! next epoch may commit. Pure; `log` and the coordinator carry them out.

use std::time::Duration;

use crate::fold::Fold;
use crate::ids::{Epoch, Generation, MemberId};
use crate::record::{ClaimKind, StopReason};

/// Why somebody wants to own the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Recover,
    /// The running coordinator, after the handover barrier; `done` is what its publishers have reached.
    HandOver {
        done: Epoch,
    },
    Upgrade,
    Rollback,
    GoBack {
        to: Epoch,
    },
}

/// What a Claim must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimPoint {
    pub kind: ClaimKind,
    pub generation: Generation,
    pub restore_epoch: Epoch,
    pub handover_from: Option<Generation>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the job is drained and never goes on")]
    Drained,
    #[error("the new version is accepted, there is nothing to roll back")]
    NoTrial,
    #[error("epoch {0} is not one that may be published, so the job cannot go back to it")]
    NotPublishable(Epoch),
    #[error("epoch {0} is not published everywhere yet")]
    NotDone(Epoch),
}

/// What the Claim says that fulfils `wish` after this log. Decided anew after every lost race for the tail.
pub fn decide_claim(fold: &Fold, wish: Wish) -> Result<ClaimPoint, Refusal> {
    if fold.stopped().is_some_and(|s| s.why == StopReason::Drained) {
        return Err(Refusal::Drained);
    }
    let switches = fold.switches();
    let mut handover_from = None;
    let (kind, restore_epoch) = match wish {
        Wish::Recover => (ClaimKind::Recovery, fold.restore_epoch()),
        Wish::HandOver { done } => {
            let wanted = if switches.ho_trial() {
                Some(fold.head())
            } else {
                fold.last_publishable()
            };
            if let Some(wanted) = wanted.filter(|&w| w > done.max(fold.done_through()))
                && !switches.ho_no_done()
            {
                return Err(Refusal::NotDone(wanted));
            }
            handover_from = Some(fold.generation());
            (ClaimKind::Handover, fold.restore_epoch())
        }
        Wish::Upgrade => (
            ClaimKind::Upgrade,
            fold.trial().map_or(fold.head(), |t| t.base),
        ),
        Wish::Rollback => match fold.trial() {
            Some(t) => (ClaimKind::Rollback, t.base),
            None if switches.skip_check() => (ClaimKind::Rollback, fold.head()),
            None => return Err(Refusal::NoTrial),
        },
        Wish::GoBack { to } => {
            if !fold.is_publishable(to) {
                return Err(Refusal::NotPublishable(to));
            }
            (ClaimKind::GoBack, to)
        }
    };
    Ok(ClaimPoint {
        kind,
        generation: fold.generation().next(),
        restore_epoch,
        handover_from,
    })
}

/// Whether the next epoch may commit: `Commit(N+1)` waits for `Done(N-k)`, but not in a trial, whose epochs are staged.
/// `done` is what the publishers have reached.
pub fn may_commit(fold: &Fold, done: Epoch, k: u64) -> bool {
    let reached = done.max(fold.done_through());
    // Numbers are skipped where plans were left behind: what counts are epochs that somebody has to publish.
    let must_be_done = fold.next_epoch().get().saturating_sub(k.saturating_add(1));
    let awaited = |(e, _): (Epoch, Generation)| e > reached && e.get() <= must_be_done;
    if fold.trial().is_some() {
        return !fold.switches().wait_kept() || !fold.staged().any(awaited);
    }
    !fold.to_publish().any(awaited)
}

/// What a member knows of the others when the coordinator falls silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    pub me: MemberId,
    /// Members of the last Claim; empty when nobody has claimed.
    pub members: Vec<MemberId>,
    /// Members that answered and report the coordinator lost; `me` need not be among them.
    pub report_lost: Vec<MemberId>,
    /// Whether any other member answered within the time of silence.
    pub any_answered: bool,
    /// How long the coordinator has been silent.
    pub silent: Duration,
    pub lease: Duration,
    pub claims_since_commit: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayClaim {
    Now,
    /// Not before this much more silence.
    After(Duration),
    /// Others still see a coordinator.
    No,
}

/// Liveness only: the log's fence keeps any answer safe.
pub fn may_claim(s: &Silence) -> MayClaim {
    let wait = |needed: Duration| {
        // Doubles with each Claim that no commit followed, up to 64 times.
        let needed = needed * (1u32 << s.claims_since_commit.saturating_sub(1).min(6));
        match needed.checked_sub(s.silent) {
            None | Some(Duration::ZERO) => MayClaim::Now,
            Some(left) => MayClaim::After(left),
        }
    };
    let alone = s.members.is_empty() || (s.members.len() == 1 && s.members[0] == s.me);
    if alone {
        return if s.claims_since_commit <= 1 {
            MayClaim::Now
        } else {
            wait(s.lease)
        };
    }
    let lost = s
        .members
        .iter()
        .filter(|m| **m == s.me || s.report_lost.contains(m))
        .count();
    if lost * 2 > s.members.len() {
        return wait(s.lease);
    }
    if s.any_answered {
        MayClaim::No
    } else {
        wait(s.lease * 3)
    }
}
