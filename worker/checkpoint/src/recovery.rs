//! Which closure a restore starts from and what it comes to. Pure; by ancestors, never by number: after going back, an
//! epoch with a lower number may lie on a branch that was left.

use std::collections::BTreeMap;

use crate::closure::EpochState;
use crate::fold::{ClosureEntry, Fold};
use crate::ids::{Epoch, Generation};
use crate::record::Commit;

/// What a generation begins with.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RestorePlan {
    /// Offsets, watermarks, seen files; per key group its base and segments, in order.
    pub state: EpochState,
    /// Epochs of `pub` that are not known to be published, in order: compare with the markers, send what is after them.
    pub to_publish: Vec<(Epoch, Generation)>,
    /// What was found damaged on the way and made good from another copy.
    pub repaired: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("epoch {epoch} was never committed in this log")]
    Unknown { epoch: Epoch },
    #[error("the commit of epoch {epoch}, which {target} stands on, cannot be read")]
    Gap { epoch: Epoch, target: Epoch },
    #[error("the commit of epoch {epoch} does not follow: {why}")]
    Broken { epoch: Epoch, why: String },
}

/// Closures that a restore of `target` may start from, the nearest first; after them the empty state.
pub fn closures_for(fold: &Fold, target: Epoch) -> Vec<&ClosureEntry> {
    let mut fit: Vec<&ClosureEntry> = if fold.switches().closure_number() {
        fold.closures()
            .iter()
            .filter(|c| c.record.epoch <= target)
            .collect()
    } else {
        fold.closures()
            .iter()
            .filter(|c| fold.is_ancestor(c.record.epoch, target))
            .collect()
    };
    // On one chain the greater epoch is the nearer; of two closures of one epoch the newer is.
    fit.sort_by_key(|c| std::cmp::Reverse((c.record.epoch, c.seq)));
    fit
}

/// The commits between `from` (exclusive) and `target`, oldest first.
pub fn chain(fold: &Fold, from: Epoch, target: Epoch) -> Result<Vec<Epoch>, RestoreError> {
    if fold.switches().closure_number() && !fold.is_ancestor(from, target) {
        return Ok((from.get() + 1..=target.get())
            .map(Epoch::new)
            .filter(|&e| fold.parent(e).is_some())
            .collect());
    }
    if !fold.is_ancestor(from, target) {
        return Err(RestoreError::Unknown { epoch: target });
    }
    let mut epochs: Vec<Epoch> = fold.ancestors(target).take_while(|&e| e != from).collect();
    epochs.reverse();
    Ok(epochs)
}

/// The state at `target`, from the state of one of its ancestors and the commits between.
pub fn plan_restore(
    fold: &Fold,
    from: EpochState,
    commits: &BTreeMap<Epoch, Commit>,
    target: Epoch,
) -> Result<RestorePlan, RestoreError> {
    let mut state = from;
    for epoch in chain(fold, state.epoch, target)? {
        let commit = commits
            .get(&epoch)
            .ok_or(RestoreError::Gap { epoch, target })?;
        if fold.switches().closure_number() {
            state.epoch = commit.parent;
        }
        state
            .advance(commit)
            .map_err(|why| RestoreError::Broken { epoch, why })?;
    }
    Ok(RestorePlan {
        state,
        to_publish: fold.to_publish().collect(),
        repaired: Vec::new(),
    })
}
