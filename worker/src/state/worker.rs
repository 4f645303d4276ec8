//! State of one process: opens, restores and removes the key groups' instances, hands slots out, applies commits, makes
//! bases. It leaves to the coordinator which epoch is restored and whether an instance's epoch is an ancestor of it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::error::{EngineError, Result};

use super::applier::{Applier, Commit, Target};
use super::backend::{Backend, Base, BaseFile, Identity, MemoryBackend, Nothing, SNAPSHOT};
use super::budget::{Budget, Share};
use super::planted::Planted;
use super::rocks::{self, RocksBackend, Shared};
use super::segment::Segment;
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
    options: StateOptions,
    shared: Option<Shared>,
    clock: Arc<TtlClock>,
    backends: Arc<Mutex<BTreeMap<u16, Arc<dyn Backend>>>>,
    slots: Arc<AtomicUsize>,
    made: AtomicU64,
    applier: Applier,
    /// Where files of bases lie.
    bases: PathBuf,
    /// That folder while state is in memory: of this value alone, and gone with it.
    _temporary: Option<TempDir>,
    #[cfg(test)]
    volume: Option<MemoryVolume>,
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
        this.volume = Some(volume);
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
        let backends = Arc::new(Mutex::new(BTreeMap::new()));
        let slots = Arc::new(AtomicUsize::new(0));
        let applier = applier(Target {
            log_id: options.log_id.clone(),
            schema_fingerprint: options.schema_fingerprint.clone(),
            backends: Arc::clone(&backends),
            clock: Arc::clone(&clock),
            budget: Arc::clone(&options.budget),
            slots: Arc::clone(&slots),
            planted: options.planted,
        })?;
        Ok(Self {
            options,
            shared,
            clock,
            backends,
            slots,
            made: AtomicU64::new(0),
            applier,
            bases,
            _temporary: temporary,
            #[cfg(test)]
            volume: None,
        })
    }

    /// Whether it can serve the next generation of its process as if it had just been opened: it is of that log, and everything that
    /// was committed is applied. Key groups stay open, and are used where their identity allows.
    pub fn serves_again(&self, log_id: &str) -> bool {
        self.slots.store(0, Ordering::Relaxed);
        self.options.log_id == log_id && self.applier.wait().is_ok()
    }

    /// Closes all key groups but these.
    pub fn retain(&self, groups: &[u16]) {
        self.backends
            .lock()
            .retain(|group, _| groups.contains(group));
    }

    /// To be said before a key group is opened, when the history holds no state: a job without any needs no instances.
    pub fn nothing_to_restore(&mut self) {
        if !self.options.stateful {
            self.shared = None;
        }
    }

    /// Opens a key group and answers the epoch it stands at; `None`: it is empty. What is there is kept only if it is of
    /// this job, key group and schema, and `is_ancestor(epoch, commit checksum)` says that it belongs to the history of
    /// the epoch being restored; otherwise it is deleted.
    pub fn open_group(
        &self,
        group: u16,
        is_ancestor: &dyn Fn(u64, u32) -> bool,
    ) -> Result<Option<u64>> {
        let open = self.backends.lock().get(&group).cloned();
        if let Some(backend) = open {
            match backend.identity()? {
                None => return Ok(None),
                Some(id) if self.usable(&id, group, is_ancestor) => return Ok(Some(id.epoch)),
                Some(_) => self.close_group(group),
            }
        }
        #[cfg(test)]
        if let Some(volume) = &self.volume {
            let kept = volume
                .identity(group)
                .filter(|id| self.usable(id, group, is_ancestor));
            if kept.is_none() {
                volume.remove(group);
            }
            self.insert(group, Arc::new(volume.open(group)));
            return Ok(kept.map(|id| id.epoch));
        }
        let (Some(dir), Some(shared)) = (&self.options.dir, &self.shared) else {
            self.insert(group, Arc::new(MemoryBackend::new()));
            return Ok(None);
        };
        let path = group_dir(dir, group);
        if path.exists() {
            // An instance that cannot be read is a cache that is lost, no more.
            match RocksBackend::open(shared, group, &path, &self.unique_name(group))
                .and_then(|b| Ok((b.identity()?, b)))
            {
                Ok((Some(id), backend)) if self.usable(&id, group, is_ancestor) => {
                    self.insert(group, Arc::new(backend));
                    return Ok(Some(id.epoch));
                }
                Ok((found, backend)) => {
                    drop(backend);
                    if let Some(id) = found {
                        tracing::info!(
                            group,
                            epoch = id.epoch,
                            "deleting an instance of another history"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(group, %error, "deleting an instance that cannot be read")
                }
            }
            rocks::remove(&path)?;
        }
        let backend = RocksBackend::open(shared, group, &path, &self.unique_name(group))?;
        self.insert(group, Arc::new(backend));
        Ok(None)
    }

    /// [`Self::open_group`] of many at once, on threads of their own; in the order asked.
    pub fn open_groups(
        &self,
        groups: &[u16],
        is_ancestor: &(dyn Fn(u64, u32) -> bool + Sync),
    ) -> Result<Vec<(u16, Option<u64>)>> {
        const THREADS: usize = 8;
        if self.shared.is_none() {
            // Nothing is read from a disk.
            return groups
                .iter()
                .map(|g| Ok((*g, self.open_group(*g, is_ancestor)?)))
                .collect();
        }
        let each = groups.len().div_ceil(THREADS).max(1);
        std::thread::scope(|scope| {
            let threads: Vec<_> = groups
                .chunks(each)
                .map(|part| {
                    scope.spawn(move || {
                        part.iter()
                            .map(|g| Ok((*g, self.open_group(*g, is_ancestor)?)))
                            .collect::<Result<Vec<_>>>()
                    })
                })
                .collect();
            let mut out = Vec::with_capacity(groups.len());
            for thread in threads {
                match thread.join() {
                    Ok(part) => out.extend(part?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(out)
        })
    }

    /// Puts a base in the place of whatever the key group holds. `epoch` and `commit_checksum` are those the base was
    /// taken at; the files' checksums are the caller's to verify. Files may be linked, so they must not change later.
    pub fn restore_base(
        &self,
        group: u16,
        files: &[BaseFile],
        epoch: u64,
        commit_checksum: u32,
    ) -> Result<()> {
        self.close_group(group);
        let mine = self.identity_at(group, epoch, commit_checksum);
        if let [file] = files
            && file.name == SNAPSHOT
        {
            let bytes = fs::read(&file.path).map_err(|e| {
                EngineError::fail(
                    "PR0515",
                    format!("base of key group {group}"),
                    "cannot read it",
                )
                .caused_by(e)
            })?;
            let segment = Segment::parse(Bytes::from(bytes))?;
            same(group, "key group", segment.key_group(), group)?;
            same(group, "epoch", segment.epoch(), epoch)?;
            if let Some(dir) = &self.options.dir {
                rocks::remove(&group_dir(dir, group))?;
            }
            self.open_group(group, &|_, _| false)?;
            return self.backend(group)?.apply(&segment, &mine);
        }
        let (Some(dir), Some(shared)) = (&self.options.dir, &self.shared) else {
            return Err(EngineError::fail(
                "PR0515",
                format!("base of key group {group}"),
                "it is made of RocksDB files, which state in memory cannot take",
            ));
        };
        let path = group_dir(dir, group);
        RocksBackend::unpack(&path, files)?;
        let backend = RocksBackend::open(shared, group, &path, &self.unique_name(group))?;
        let found = backend.identity()?.ok_or_else(|| {
            EngineError::fail(
                "PR0515",
                format!("base of key group {group}"),
                "it names no epoch",
            )
        })?;
        same(group, "key group", found.key_group, group)?;
        same(group, "epoch", found.epoch, epoch)?;
        backend.apply(&Nothing, &mine)?;
        self.insert(group, Arc::new(backend));
        Ok(())
    }

    /// Applies the segments of one epoch (or none) to a key group, which then stands at that epoch. In epoch order.
    pub fn load_segments(
        &self,
        group: u16,
        segments: &[Segment],
        epoch: u64,
        commit_checksum: u32,
    ) -> Result<()> {
        let backend = self.backend(group)?;
        let mine = self.identity_at(group, epoch, commit_checksum);
        for segment in segments {
            same(group, "key group", segment.key_group(), group)?;
            same(group, "epoch", segment.epoch(), epoch)?;
        }
        match segments {
            [] => backend.apply(&Nothing, &mine),
            [one] => self.options.planted.apply(&*backend, one, &mine),
            _ => Err(EngineError::fail(
                "PR0516",
                format!("key group {group}"),
                format!(
                    "epoch {epoch} has {} segments of it, and one owner",
                    segments.len()
                ),
            )),
        }
    }

    /// Gives a key group up: its backend is closed when its slot is gone too.
    pub fn close_group(&self, group: u16) {
        self.backends.lock().remove(&group);
    }

    /// The state of a slot over opened key groups.
    pub fn slot(&self, groups: Range<u16>) -> Result<SlotState> {
        let backends = groups
            .clone()
            .map(|g| self.backend(g))
            .collect::<Result<Vec<_>>>()?;
        self.slots.fetch_add(1, Ordering::Relaxed);
        let memory = Memory {
            budget: Arc::clone(&self.options.budget),
            scratch: self.options.dir.as_deref().map(scratch_dir),
            slots: Arc::clone(&self.slots),
        };
        Ok(SlotState::new(
            groups,
            self.options.total_groups,
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
        for backend in self.all() {
            backend.flush()?;
        }
        Ok(())
    }

    /// What makes a base of the key group at the newest applied epoch, which its identity names; to be called off the hot
    /// path. The files lie in a folder of their own; [`Self::forget_base`] removes it when they are uploaded.
    pub fn base_maker(&self, group: u16) -> Result<impl FnOnce() -> Result<Base> + Send + 'static> {
        let name = self.unique_name(group);
        let dir = self.bases.join(&name);
        let backend = self.backend(group)?;
        Ok(move || backend.checkpoint(&dir, &name))
    }

    /// A folder, not made yet, for the files of a base that is to be restored: on the same disk as the instances.
    pub fn incoming_base(&self, group: u16) -> PathBuf {
        self.bases.join(self.unique_name(group))
    }

    /// Removes the files of a base that was uploaded, restored or given up.
    pub fn forget_base(base: &Base) -> Result<()> {
        match base.files.first().and_then(|f| f.path.parent()) {
            Some(dir) => rocks::remove(dir),
            None => Ok(()),
        }
    }

    pub fn stats(&self) -> StateStats {
        let budget = &self.options.budget;
        let backends = self.all();
        StateStats {
            dirty_bytes: budget.used(Share::Dirty) as u64,
            frozen_bytes: budget.used(Share::Frozen) as u64,
            clean_bytes: budget.used(Share::Clean) as u64,
            backend_bytes: backends.iter().map(|b| b.live_bytes()).sum(),
            backend_memory_bytes: self.shared.as_ref().map_or(0, |s| s.memory_bytes() as u64),
            backend_reads: backends.iter().map(|b| b.reads()).sum(),
        }
    }

    /// Bytes on disk of one key group's live data, for deciding when its changelog asks for a base.
    pub fn group_bytes(&self, group: u16) -> Result<u64> {
        Ok(self.backend(group)?.live_bytes())
    }

    fn all(&self) -> Vec<Arc<dyn Backend>> {
        self.backends.lock().values().cloned().collect()
    }

    fn backend(&self, group: u16) -> Result<Arc<dyn Backend>> {
        self.backends.lock().get(&group).cloned().ok_or_else(|| {
            EngineError::fail(
                "PR0517",
                format!("key group {group}"),
                "its state is not open here",
            )
        })
    }

    fn insert(&self, group: u16, backend: Arc<dyn Backend>) {
        self.backends.lock().insert(group, backend);
    }

    /// A name that nothing else of the job ever has.
    fn unique_name(&self, group: u16) -> String {
        let serial = self.made.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}-{group}-{serial}", self.options.nonce)
    }

    /// Whether an instance with this identity is a start for the epoch being restored.
    fn usable(&self, id: &Identity, group: u16, is_ancestor: &dyn Fn(u64, u32) -> bool) -> bool {
        (self.is_mine(id, group) && is_ancestor(id.epoch, id.commit_checksum))
            || self.options.planted.volume_without_identity
    }

    fn is_mine(&self, id: &Identity, group: u16) -> bool {
        let Identity {
            log_id,
            key_group,
            schema_fingerprint,
            epoch: _,
            commit_checksum: _,
        } = id;
        *log_id == self.options.log_id
            && *key_group == group
            && *schema_fingerprint == self.options.schema_fingerprint
    }

    fn identity_at(&self, group: u16, epoch: u64, commit_checksum: u32) -> Identity {
        Identity {
            log_id: self.options.log_id.clone(),
            key_group: group,
            schema_fingerprint: self.options.schema_fingerprint.clone(),
            epoch,
            commit_checksum,
        }
    }
}

fn same<T: PartialEq + std::fmt::Display>(
    group: u16,
    what: &str,
    found: T,
    wanted: T,
) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(EngineError::fail(
        "PR0516",
        format!("key group {group}"),
        format!("its base or segment is of {what} {found}, not {wanted}"),
    ))
}

fn group_dir(dir: &Path, group: u16) -> PathBuf {
    dir.join(format!("kg-{group:05}"))
}

fn scratch_dir(dir: &Path) -> PathBuf {
    dir.join("scratch")
}

fn bases_dir(dir: &Path) -> PathBuf {
    dir.join("bases")
}
