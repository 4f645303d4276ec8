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

/// The volumes of a machine's members. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryVolume {
    /// By member and key group.
    instances: Arc<Mutex<BTreeMap<(usize, u16), History>>>,
    member: usize,
}

/// How many unflushed states of an instance are told apart.
const UNFLUSHED: usize = 4;

impl MemoryVolume {
    /// A volume with the same content, of its own.
    pub(crate) fn copy(&self) -> Self {
        Self {
            instances: Arc::new(Mutex::new(self.instances.lock().clone())),
            member: self.member,
        }
    }

    /// That of one member.
    pub(crate) fn of(&self, member: usize) -> Self {
        Self {
            instances: self.instances.clone(),
            member,
        }
    }

    /// After a kill: each instance stands where `survives(n)` says, of `n` states.
    pub(crate) fn lose(&self, mut survives: impl FnMut(usize) -> usize) {
        for history in self.instances.lock().values_mut() {
            let kept = survives(history.len()).clamp(1, history.len());
            history.truncate(kept);
            *history = history.split_off(kept - 1);
        }
    }

    /// Epochs that the instances stand at, for people.
    pub(crate) fn epochs(&self) -> Vec<u64> {
        let of = |h: &History| h.last().and_then(Memory::epoch).unwrap_or(0);
        self.instances.lock().values().map(of).collect()
    }

    pub(super) fn identity(&self, group: u16) -> Option<Identity> {
        self.instances
            .lock()
            .get(&(self.member, group))?
            .last()?
            .identity()
    }

    pub(super) fn remove(&self, group: u16) {
        if !is_dead() {
            self.instances.lock().remove(&(self.member, group));
        }
    }

    pub(super) fn open(&self, group: u16) -> VolumeBackend {
        let instances = self.instances.lock();
        let kept = instances.get(&(self.member, group));
        let kept = kept.and_then(|h| h.last().cloned());
        drop(instances);
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
            let mut instances = self.volume.instances.lock();
            let place = (self.volume.member, self.group);
            let history = instances.entry(place).or_default();
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
        let place = (self.volume.member, self.group);
        if !is_dead()
            && let Some(history) = self.volume.instances.lock().get_mut(&place)
        {
            *history = history.split_off(history.len().saturating_sub(1));
        }
        Ok(())
    }

    fn checkpoint(&self, dir: &Path, name: &str) -> Result<Base> {
        self.inner.checkpoint(dir, name)
    }
}
