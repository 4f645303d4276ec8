//! The key groups' instances that are open: opened from the volume, made from bases, brought on by segments, and closed. It leaves to
//! the coordinator which epoch is restored and whether an instance's epoch is an ancestor of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Mutex as AsyncMutex;

use crate::error::{EngineError, Result};
use crate::process;

use super::backend::{Backend, BaseFile, Identity, MemoryBackend, Nothing, SNAPSHOT};
use super::rocks::{self, RocksBackend, Shared};
use super::segment::Segment;
#[cfg(test)]
use super::simulated::MemoryVolume;
use super::worker::StateOptions;

/// By key group.
pub(super) type Backends = Arc<Mutex<BTreeMap<u16, Arc<dyn Backend>>>>;

/// Clones are the same.
#[derive(Clone)]
pub struct Instances {
    pub(super) options: StateOptions,
    /// `None`: in memory.
    pub(super) shared: Option<Shared>,
    pub(super) backends: Backends,
    pub(super) made: Arc<AtomicU64>,
    /// Where files of bases lie.
    pub(super) bases: PathBuf,
    /// Of the volume: whoever brings an instance on, or closes it, keeps it, so that nobody opens one that somebody still writes.
    busy: Arc<AsyncMutex<()>>,
    /// That folder while state is in memory: gone with the last clone.
    pub(super) _temporary: Option<Arc<TempDir>>,
    #[cfg(test)]
    pub(super) volume: Option<MemoryVolume>,
}

impl Instances {
    pub(super) fn new(
        options: StateOptions,
        shared: Option<Shared>,
        bases: PathBuf,
        temporary: Option<TempDir>,
    ) -> Self {
        Self {
            options,
            shared,
            backends: Backends::default(),
            made: Arc::default(),
            bases,
            busy: Arc::default(),
            _temporary: temporary.map(Arc::new),
            #[cfg(test)]
            volume: None,
        }
    }

    /// Others on the same volume, of which none is open yet.
    pub(super) fn beside(&self) -> Self {
        Self {
            backends: Backends::default(),
            ..self.clone()
        }
    }

    /// Does what blocks where it may, on these; one after another.
    ///
    /// # Errors
    /// Those of `work`; `PR0515` when the process is going.
    pub async fn off<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (this, busy) = (self.clone(), self.busy.clone().lock_owned().await);
        let done = process::blocking(move || {
            // Also when nobody waits for it any more.
            let _busy = busy;
            work(&this)
        });
        done.await.map_err(|e| {
            EngineError::retry("PR0515", "key groups", "what was done to them was given up")
                .caused_by(e)
        })?
    }

    /// Once nobody brings one of them on any more.
    pub async fn settled(&self) {
        drop(self.busy.lock().await);
    }

    /// Takes over what is open there and not here.
    pub(super) fn adopt(&self, from: &Self) {
        let mut mine = self.backends.lock();
        for (group, backend) in std::mem::take(&mut *from.backends.lock()) {
            mine.entry(group).or_insert(backend);
        }
    }

    /// Key groups that are open.
    pub fn groups(&self) -> Vec<u16> {
        self.backends.lock().keys().copied().collect()
    }

    /// Closes all key groups but these. That takes a while: who brings some of the volume on next, and who opens it, waits for it.
    pub async fn retain(&self, groups: &[u16]) {
        let busy = self.busy.clone().lock_owned().await;
        let closed: Vec<_> = {
            let mut open = self.backends.lock();
            open.extract_if(.., |group, _| !groups.contains(group))
                .collect()
        };
        process::spawn(process::blocking(move || {
            drop(closed);
            drop(busy);
        }));
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

    /// A folder, not made yet, for the files of a base that is to be restored: on the same disk as the instances.
    pub fn incoming_base(&self, group: u16) -> PathBuf {
        self.bases.join(self.unique_name(group))
    }

    pub(super) fn all(&self) -> Vec<Arc<dyn Backend>> {
        self.backends.lock().values().cloned().collect()
    }

    pub(super) fn backend(&self, group: u16) -> Result<Arc<dyn Backend>> {
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
    pub(super) fn unique_name(&self, group: u16) -> String {
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
