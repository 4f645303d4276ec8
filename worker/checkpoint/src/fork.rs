//! A log that begins with a savepoint of another one (rule 11). Everything that restoring the pinned epoch needs is copied below
//! the new log first, by the store itself where it can; then the log begins, and its first closure says what it begins with. So
//! neither log stands on the other's objects: each collects its own garbage, and the savepoint may go at any time afterwards.
//!
//! A crash in between leaves copies without a name, or a log without its first closure: calling again goes on from there.

use futures::{StreamExt, TryStreamExt, stream};

use crate::closure::EpochState;
use crate::ids::{Epoch, LogId};
use crate::log::{JobLog, LogError, Options, patiently};
use crate::record::{Created, Parent};
use crate::store::CheckpointStore;

/// Copies in flight.
const PARALLEL: usize = 16;

/// Why a log cannot begin with a savepoint.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("log {log} has no savepoint {name}; it has {known}")]
    NoSuchPin {
        log: LogId,
        name: String,
        known: String,
    },
    #[error(
        "savepoint {name} is of {theirs} key groups, the job has {ours}: they are fixed for the life of the state"
    )]
    KeyGroups {
        name: String,
        theirs: u16,
        ours: u16,
    },
}

/// What a log is to begin with.
pub struct Fork<'a> {
    /// The log that has the savepoint.
    pub parent: &'a mut JobLog,
    pub pin: &'a str,
    /// The place of the new log, of the same objects as the parent's.
    pub store: CheckpointStore,
    pub log: LogId,
    /// `<namespace>/<name>` of the new job.
    pub name: String,
    pub key_groups: u16,
}

impl Fork<'_> {
    /// The epoch of the savepoint.
    ///
    /// # Errors
    /// When the parent has none of this name, or state of another number of key groups.
    pub fn epoch(&self) -> Result<Epoch, ForkError> {
        let fold = self.parent.fold();
        let name = self.pin.to_owned();
        if fold.key_groups() != self.key_groups {
            return Err(ForkError::KeyGroups {
                name,
                theirs: fold.key_groups(),
                ours: self.key_groups,
            });
        }
        fold.pins().get(self.pin).copied().ok_or_else(|| {
            let known: Vec<&str> = fold.pins().keys().map(String::as_str).collect();
            let known = match known.as_slice() {
                [] => "none".to_owned(),
                some => some.join(", "),
            };
            ForkError::NoSuchPin {
                log: fold.log(),
                name,
                known,
            }
        })
    }

    /// Copies, and begins the log, or finishes what an earlier call began.
    ///
    /// # Errors
    /// Of `epoch`, and of the store.
    pub async fn begin(self, options: Options) -> Result<JobLog, ForkError> {
        let epoch = self.epoch()?;
        let mut state = self.parent.restore(epoch).await?.state;
        let from = self.parent.store();
        copy(from, &self.store, &state).await?;
        let of = self.parent.fold().log();
        adopt(&mut state, of);
        let begun = JobLog::open(self.store.clone(), Options::default()).await?;
        let mut log = match begun {
            Some(log) => log,
            None => {
                let created = Created {
                    name: self.name,
                    key_groups: self.key_groups,
                    parent: Some(Parent {
                        location: from.prefix().to_owned(),
                        log: of,
                        epoch,
                    }),
                };
                JobLog::create(self.store, self.log, created, options).await?
            }
        };
        log.begin_with(state).await?;
        Ok(log)
    }
}

/// Whether a log was begun and not finished: its first closure is missing.
pub fn is_half(log: &JobLog) -> bool {
    log.fold().parent_log().is_some() && log.fold().closure_seq() == crate::ids::Seq::ZERO
}

/// Staged outputs are left behind: they are published, and no restore reads them.
async fn copy(
    from: &CheckpointStore,
    to: &CheckpointStore,
    state: &EpochState,
) -> Result<(), LogError> {
    let packs = state.packs.values().flatten().map(|p| p.path.clone());
    let bases = state.chains.values().filter_map(|c| c.base.as_ref());
    let bases = bases.flat_map(|b| {
        std::iter::once(b.path.clone()).chain(b.files.iter().map(|f| f.path.clone()))
    });
    let mut all: Vec<String> = packs.chain(bases).collect();
    all.sort();
    all.dedup();
    stream::iter(all)
        .map(|path| async move {
            let there = patiently(|| to.copy_from(from, &path)).await?;
            if there {
                Ok(())
            } else {
                let object = from.key(&path);
                Err(LogError::Missing { object })
            }
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// Objects say of which log they are, and copies say so still.
fn adopt(state: &mut EpochState, of: LogId) {
    for pack in state.packs.values_mut().flatten() {
        pack.of.get_or_insert(of);
    }
    for base in state.chains.values_mut().filter_map(|c| c.base.as_mut()) {
        base.of.get_or_insert(of);
    }
}
