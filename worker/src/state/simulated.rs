//! A volume of a simulation: instances in memory that outlive the process, lose what was not flushed when it is killed, and
//! can be copied and put back. With it a way to apply commits without a thread, late and merged as a seed says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::Result;
use crate::process::simulated::is_dead;

use super::TableId;
use super::backend::{Backend, Base, Identity, Memory, MemoryBackend};
use super::layer::{Changes, Cursor};

/// What an instance came to, oldest first: the first would survive any kill, the later ones perhaps.
type History = Vec<Memory>;

/// A volume. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryVolume(Arc<Mutex<BTreeMap<u16, History>>>);

/// How many unflushed states of an instance are told apart.
const UNFLUSHED: usize = 4;

impl MemoryVolume {
    /// A volume with the same content, of its own.
    pub(crate) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().clone())))
    }

    /// After a kill: each instance stands where `survives(n)` says, of `n` states.
    pub(crate) fn lose(&self, mut survives: impl FnMut(usize) -> usize) {
        for history in self.0.lock().values_mut() {
            let kept = survives(history.len()).clamp(1, history.len());
            history.truncate(kept);
            *history = history.split_off(kept - 1);
        }
    }

    /// Epochs that the instances stand at, for people.
    pub(crate) fn epochs(&self) -> Vec<u64> {
        let of = |h: &History| h.last().and_then(Memory::epoch).unwrap_or(0);
        self.0.lock().values().map(of).collect()
    }

    pub(super) fn identity(&self, group: u16) -> Option<Identity> {
        self.0.lock().get(&group)?.last()?.identity()
    }

    pub(super) fn remove(&self, group: u16) {
        if !is_dead() {
            self.0.lock().remove(&group);
        }
    }

    pub(super) fn open(&self, group: u16) -> VolumeBackend {
        let kept = self.0.lock().get(&group).and_then(|h| h.last().cloned());
        VolumeBackend {
            group,
            inner: MemoryBackend::of(kept.unwrap_or_default()),
            volume: self.clone(),
        }
    }
}

/// An instance on a volume.
#[derive(Debug)]
pub(super) struct VolumeBackend {
    group: u16,
    inner: MemoryBackend,
    volume: MemoryVolume,
}

impl Backend for VolumeBackend {
    fn get_many(&self, table: TableId, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) -> Result<()> {
        self.inner.get_many(table, keys, out)
    }

    fn cursor<'a>(
        &'a self,
        table: TableId,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        self.inner.cursor(table, prefix, after)
    }

    fn apply(&self, changes: &dyn Changes, identity: &Identity) -> Result<()> {
        self.inner.apply(changes, identity)?;
        if !is_dead() {
            let mut groups = self.volume.0.lock();
            let history = groups.entry(self.group).or_default();
            history.push(self.inner.snapshot());
            if history.len() > UNFLUSHED {
                history.remove(0);
            }
        }
        Ok(())
    }

    fn identity(&self) -> Result<Option<Identity>> {
        self.inner.identity()
    }

    fn is_empty(&self, table: TableId, key: &[u8]) -> bool {
        self.inner.is_empty(table, key)
    }

    fn tables(&self) -> Vec<TableId> {
        self.inner.tables()
    }

    fn live_bytes(&self) -> u64 {
        self.inner.live_bytes()
    }

    fn on_disk(&self, table: TableId) -> u64 {
        self.inner.on_disk(table)
    }

    fn measure(&self) {
        self.inner.measure();
    }

    fn reads(&self) -> u64 {
        self.inner.reads()
    }

    fn unflushed_bytes(&self) -> u64 {
        self.inner.unflushed_bytes()
    }

    fn flush(&self) -> Result<()> {
        if !is_dead()
            && let Some(history) = self.volume.0.lock().get_mut(&self.group)
        {
            *history = history.split_off(history.len().saturating_sub(1));
        }
        Ok(())
    }

    fn checkpoint(&self, dir: &Path, name: &str) -> Result<Base> {
        self.inner.checkpoint(dir, name)
    }
}
