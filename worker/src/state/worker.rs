//! State of one process: its key groups' instances, of which it hands slots out, to which it applies commits, and of which it
//! makes bases.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::error::{EngineError, Result};

use super::applier::{Applier, Commit, Target};
use super::backend::Base;
use super::budget::{Budget, Share};
use super::instances::Instances;
use super::planted::Planted;
use super::rocks::{self, Shared};
#[cfg(test)]
use super::simulated::MemoryVolume;
use super::slot::{Memory, SlotState};
use super::stored::TtlClock;

/// What a process's state is opened with.
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// The state folder, of this process alone; `None`: committed state rests in memory (`--state memory`).
    pub dir: Option<PathBuf>,
    pub total_groups: u16,
    pub log_id: String,
    /// Of the schemas of all tables; an instance with another one is not used.
    pub schema_fingerprint: String,
    /// Random, drawn for this start of the process: names files of bases.
    pub nonce: u64,
    pub budget: Arc<Budget>,
    /// Whether any operator keeps state.
    pub stateful: bool,
    #[doc(hidden)]
    pub planted: Planted,
}

/// Bytes per tier, of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateStats {
    pub dirty_bytes: u64,
    pub frozen_bytes: u64,
    pub clean_bytes: u64,
    /// Live data in the backends, estimated.
    pub backend_bytes: u64,
    /// Block cache and write buffers in memory.
    pub backend_memory_bytes: u64,
    /// Keys asked of the backends.
    pub backend_reads: u64,
}

/// One per process; a generation may take it over from the one before. Dropping it applies the commits that wait; it does not flush.
pub struct StateWorker {
    instances: Instances,
    clock: Arc<TtlClock>,
    slots: Arc<AtomicUsize>,
    applier: Applier,
}

fn temporary() -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("penstock-bases-").tempdir();
    made.map_err(|e| {
        let object = format!("folder {}", std::env::temp_dir().display());
        EngineError::fail("PR0409", object, "cannot write to it").caused_by(e)
    })
}

impl StateWorker {
    /// Removes scratch files that a predecessor left. Opens no key group yet.
    pub fn open(options: StateOptions) -> Result<Self> {
        Self::open_by(options, Applier::start)
    }

    /// On a volume of a simulation, without a thread of its own; `lag` says for each commit whether it waits.
    #[cfg(test)]
    pub(crate) fn simulated(
        options: StateOptions,
        volume: MemoryVolume,
        lag: super::applier::Lag,
    ) -> Result<Self> {
        let mut this = Self::open_by(options, |target| Ok(Applier::inline(target, lag)))?;
        this.instances.volume = Some(volume);
        Ok(this)
    }

    fn open_by(
        options: StateOptions,
        applier: impl FnOnce(Target) -> Result<Applier>,
    ) -> Result<Self> {
        let clock = Arc::new(TtlClock::default());
        let (bases, temporary) = match &options.dir {
            Some(dir) => (bases_dir(dir), None),
            None => {
                let made = temporary()?;
                (made.path().to_owned(), Some(made))
            }
        };
        let shared = match &options.dir {
            Some(dir) => {
                let scratch = scratch_dir(dir);
                rocks::remove(&scratch)?;
                rocks::remove(&bases_dir(dir))?;
                fs::create_dir_all(&scratch).map_err(|e| {
                    EngineError::fail(
                        "PR0409",
                        format!("state folder {}", dir.display()),
                        "cannot write to it",
                    )
                    .caused_by(e)
                })?;
                Some(Shared::new(
                    options.budget.backend_limit(),
                    options.total_groups.into(),
                    Arc::clone(&clock),
                )?)
            }
            None => None,
        };
        let instances = Instances::new(options, shared, bases, temporary);
        let options = &instances.options;
        let slots = Arc::new(AtomicUsize::new(0));
        let applier = applier(Target {
            log_id: options.log_id.clone(),
            schema_fingerprint: options.schema_fingerprint.clone(),
            backends: Arc::clone(&instances.backends),
            clock: Arc::clone(&clock),
            budget: Arc::clone(&options.budget),
            slots: Arc::clone(&slots),
            planted: options.planted,
        })?;
        Ok(Self {
            instances,
            clock,
            slots,
            applier,
        })
    }

    /// Those that are open, to which commits are applied.
    pub const fn instances(&self) -> &Instances {
        &self.instances
    }

    /// Others on the same volume, to be loaded while these are at work: for key groups that are to come. [`Self::adopt`] takes them.
    pub fn ahead(&self) -> Instances {
        self.instances.beside()
    }

    /// Takes over what was loaded ahead.
    pub fn adopt(&self, ahead: &Instances) {
        self.instances.adopt(ahead);
    }

    /// Whether it can serve the next generation of its process as if it had just been opened: it is of that log, and everything that
    /// was committed is applied. Key groups stay open, and are used where their identity allows.
    pub fn serves_again(&self, log_id: &str) -> bool {
        self.slots.store(0, Ordering::Relaxed);
        self.instances.options.log_id == log_id && self.applier.wait().is_ok()
    }

    /// To be said before a key group is opened, when the history holds no state: a job without any needs no instances.
    pub fn nothing_to_restore(&mut self) {
        if !self.instances.options.stateful {
            self.instances.shared = None;
        }
    }

    /// The state of a slot over opened key groups.
    pub fn slot(&self, groups: Range<u16>) -> Result<SlotState> {
        let backends = groups
            .clone()
            .map(|g| self.instances.backend(g))
            .collect::<Result<Vec<_>>>()?;
        self.slots.fetch_add(1, Ordering::Relaxed);
        let memory = Memory {
            budget: Arc::clone(&self.instances.options.budget),
            scratch: self.instances.options.dir.as_deref().map(scratch_dir),
            slots: Arc::clone(&self.slots),
        };
        Ok(SlotState::new(
            groups,
            self.instances.options.total_groups,
            backends,
            Arc::clone(&self.clock),
            Some(memory),
        ))
    }

    /// After `Commit(N)`: hands its layers to the applier; returns at once. In epoch order, empty epochs too.
    pub fn commit(&self, commit: Commit) {
        self.applier.apply(commit);
    }

    /// The newest epoch applied since the start; 0 before.
    pub fn applied(&self) -> u64 {
        self.applier.applied()
    }

    /// Why commits are no longer applied, if so. Ask at each epoch.
    pub fn check(&self) -> Result<()> {
        self.applier.check()
    }

    /// Blocks until every commit handed over is applied.
    pub fn wait_applied(&self) -> Result<()> {
        self.applier.wait()
    }

    /// Applies what waits and makes it survive a kill: before a stop, so that the next start replays nothing.
    pub fn flush(&self) -> Result<()> {
        self.applier.wait()?;
        for backend in self.instances.all() {
            backend.flush()?;
        }
        Ok(())
    }

    /// What makes a base of the key group at the newest applied epoch, which its identity names; to be called off the hot
    /// path. The files lie in a folder of their own; [`Self::forget_base`] removes it when they are uploaded.
    pub fn base_maker(&self, group: u16) -> Result<impl FnOnce() -> Result<Base> + Send + 'static> {
        let name = self.instances.unique_name(group);
        let dir = self.instances.bases.join(&name);
        let backend = self.instances.backend(group)?;
        Ok(move || backend.checkpoint(&dir, &name))
    }

    /// Removes the files of a base that was uploaded, restored or given up.
    pub fn forget_base(base: &Base) -> Result<()> {
        match base.files.first().and_then(|f| f.path.parent()) {
            Some(dir) => rocks::remove(dir),
            None => Ok(()),
        }
    }

    pub fn stats(&self) -> StateStats {
        let budget = &self.instances.options.budget;
        let backends = self.instances.all();
        StateStats {
            dirty_bytes: budget.used(Share::Dirty) as u64,
            frozen_bytes: budget.used(Share::Frozen) as u64,
            clean_bytes: budget.used(Share::Clean) as u64,
            backend_bytes: backends.iter().map(|b| b.live_bytes()).sum(),
            backend_memory_bytes: self
                .instances
                .shared
                .as_ref()
                .map_or(0, |s| s.memory_bytes() as u64),
            backend_reads: backends.iter().map(|b| b.reads()).sum(),
        }
    }

    /// Bytes on disk of one key group's live data, for deciding when its changelog asks for a base.
    pub fn group_bytes(&self, group: u16) -> Result<u64> {
        Ok(self.instances.backend(group)?.live_bytes())
    }
}

fn scratch_dir(dir: &Path) -> PathBuf {
    dir.join("scratch")
}

fn bases_dir(dir: &Path) -> PathBuf {
    dir.join("bases")
}
