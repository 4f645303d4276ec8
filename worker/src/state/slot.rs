//! The state of one slot: reads through the tiers, writes to the dirty part, the freeze at the barrier.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::error::{EngineError, Result};

use super::backend::{Backend, Identity, MemoryBackend};
use super::budget::{Budget, Charge, Share};
use super::layer::{FrozenLayer, Part, Tier, merge};
use super::segment::Segment;
use super::spill::Run;
use super::stored::{self, MAX_HEADER, TtlClock};
use super::table::{Arena, Found, Grown, Prefixes, Tables, hash};
use super::{TableId, owner};

/// What the applier tells a slot: up to which epoch its backends stand, and which applied layers stay as clean cache.
#[derive(Debug, Default)]
pub(super) struct SlotShared {
    version: AtomicU64,
    published: Mutex<Published>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Published {
    /// Layers up to this epoch are in the backends.
    pub(super) applied: u64,
    /// Newest first; a suffix may go at any time, nothing else.
    pub(super) clean: Arc<Vec<Arc<FrozenLayer>>>,
}

impl SlotShared {
    pub(super) fn published(&self) -> Published {
        self.published.lock().clone()
    }

    pub(super) fn publish(&self, published: Published) {
        *self.published.lock() = published;
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// The process's memory as a slot sees it.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) budget: Arc<Budget>,
    /// Where spilled runs go; without it nothing is spilled.
    pub(super) scratch: Option<PathBuf>,
    /// Slots alive in the process: they share the budget evenly.
    pub(super) slots: Arc<AtomicUsize>,
}

static NO_PREFIXES: Prefixes = Prefixes::NONE;

/// State of one slot.
#[derive(Debug)]
pub struct SlotState {
    groups: Range<u16>,
    total: u16,
    ttls: Vec<(TableId, Option<u64>)>,
    /// Keys that were looked up in the backends.
    lookups: BTreeMap<TableId, u64>,
    clock: Arc<TtlClock>,
    arena: Arena,
    dirty: Tables,
    dirty_bytes: usize,
    garbage: usize,
    /// Spilled parts of this epoch, newest first; all older than `dirty`.
    runs: Vec<Part>,
    run_bytes: usize,
    /// Of the runs' indexes and filters.
    run_memory: usize,
    memory: Option<Memory>,
    charge: Option<Charge>,
    /// Bytes that the charge was last set to.
    charged: usize,
    /// Newest first; not known to be applied.
    frozen: VecDeque<Arc<FrozenLayer>>,
    /// Newest first; older than every frozen layer.
    clean: Arc<Vec<Arc<FrozenLayer>>>,
    seen: u64,
    shared: Arc<SlotShared>,
    backends: Vec<Arc<dyn Backend>>,
}

impl SlotState {
    /// A slot over the given backends, one per key group of `groups`.
    pub(super) fn new(
        groups: Range<u16>,
        total: u16,
        backends: Vec<Arc<dyn Backend>>,
        clock: Arc<TtlClock>,
        memory: Option<Memory>,
    ) -> Self {
        assert_eq!(groups.len(), backends.len(), "one backend per key group");
        Self {
            dirty: Tables::new(groups.start, groups.len()),
            groups,
            total,
            ttls: Vec::new(),
            lookups: BTreeMap::new(),
            clock,
            arena: Arena::default(),
            dirty_bytes: 0,
            garbage: 0,
            runs: Vec::new(),
            run_bytes: 0,
            run_memory: 0,
            charge: memory.as_ref().map(new_charge),
            memory,
            charged: 0,
            frozen: VecDeque::new(),
            clean: Arc::default(),
            seen: 0,
            shared: Arc::default(),
            backends,
        }
    }

    /// An empty slot whose committed state rests in memory; for tests of operators.
    pub fn in_memory(groups: Range<u16>, total: u16) -> Self {
        let backends = groups
            .clone()
            .map(|_| Arc::new(MemoryBackend::new()) as Arc<dyn Backend>)
            .collect();
        Self::new(groups, total, backends, Arc::default(), None)
    }

    /// Applies a changelog segment to the key group's backend, below everything this slot holds; to restore an operator
    /// in tests. The engine restores through its state worker.
    pub fn load_segment(&mut self, bytes: &[u8]) -> Result<()> {
        let segment = Segment::parse(Bytes::copy_from_slice(bytes))?;
        let group = segment.key_group();
        if !self.groups.contains(&group) {
            return Err(EngineError::fail(
                "PR0503",
                format!("key group {group}"),
                "the slot does not own it",
            ));
        }
        let identity = Identity {
            log_id: String::new(),
            key_group: group,
            schema_fingerprint: String::new(),
            epoch: segment.epoch(),
            commit_checksum: 0,
        };
        self.backend(group).apply(&segment, &identity)
    }

    /// Key groups this slot owns.
    pub fn key_groups(&self) -> Range<u16> {
        self.groups.clone()
    }

    /// Number of key groups of the job.
    pub fn total_groups(&self) -> u16 {
        self.total
    }

    /// Declares a table before its first use. `ttl_ms`: values older than this, by the epochs' clock, read as absent.
    pub fn register(&mut self, table: TableId, ttl_ms: Option<u64>) {
        self.ttls.retain(|(t, _)| *t != table);
        self.ttls.push((table, ttl_ms));
        self.clock.set(table, ttl_ms);
    }

    fn ttl(&self, table: TableId) -> Option<u64> {
        self.ttls.iter().find(|(t, _)| *t == table)?.1
    }

    /// Bytes of the tables' files, estimated; looked at anew by the applier, every few seconds.
    pub fn on_disk(&self, tables: &[TableId]) -> u64 {
        let of_group = |b: &Arc<dyn Backend>| tables.iter().map(|t| b.on_disk(*t)).sum::<u64>();
        self.backends.iter().map(of_group).sum()
    }

    /// Keys of the tables that were not in memory and were looked up in the backends since the start.
    pub fn lookups(&self, tables: &[TableId]) -> u64 {
        tables.iter().filter_map(|t| self.lookups.get(t)).sum()
    }

    fn backend(&self, group: u16) -> &Arc<dyn Backend> {
        &self.backends[usize::from(group - self.groups.start)]
    }

    fn layers(&self) -> impl Iterator<Item = &Arc<FrozenLayer>> {
        self.frozen.iter().chain(self.clean.iter())
    }

    /// Below the dirty tables: newest first.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.runs
            .iter()
            .chain(self.layers().flat_map(|l| l.parts()))
    }

    /// Learns what the applier has done since.
    fn refresh(&mut self) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version != self.seen {
            let Published { applied, clean } = self.shared.published();
            self.frozen.retain(|l| l.epoch() > applied);
            self.clean = clean;
            self.seen = version;
        }
    }

    /// Values of keys (group, key), in order; one multi-get per key group below the memory tiers. A value shares a chunk
    /// of up to 64 KiB with its neighbours: copy what is kept for long.
    pub fn get_many(
        &mut self,
        table: TableId,
        keys: &[(u16, &[u8])],
        now_ms: i64,
    ) -> Result<Vec<Option<Bytes>>> {
        self.refresh();
        let ttl = self.ttl(table);
        let parts: Vec<&Part> = self.parts().filter(|p| p.has(table)).collect();
        let dirty = self.dirty.table(table);
        let mut out = Vec::with_capacity(keys.len());
        let mut misses: Vec<(u16, u32)> = Vec::new();
        for (i, (group, key)) in keys.iter().enumerate() {
            let found = self.find_in_memory(table, dirty, &parts, *group, key)?;
            out.push(match found {
                Found::Value(v) => see(v, ttl, now_ms),
                Found::Absent => None,
                Found::Unknown => {
                    if !self.backend(*group).is_empty(table, key) {
                        misses.push((*group, i as u32));
                    }
                    None
                }
            });
        }
        if misses.is_empty() {
            return Ok(out);
        }
        misses
            .sort_unstable_by(|a, b| (a.0, keys[a.1 as usize].1).cmp(&(b.0, keys[b.1 as usize].1)));
        *self.lookups.entry(table).or_default() += misses.len() as u64;
        let mut asked: Vec<&[u8]> = Vec::with_capacity(misses.len());
        let mut values = Vec::with_capacity(misses.len());
        for run in misses.chunk_by(|a, b| a.0 == b.0) {
            asked.clear();
            asked.extend(run.iter().map(|(_, i)| keys[*i as usize].1));
            values.clear();
            self.backend(run[0].0)
                .get_many(table, &asked, &mut values)?;
            for ((_, i), value) in run.iter().zip(values.drain(..)) {
                out[*i as usize] = value.and_then(|v| see(v, ttl, now_ms));
            }
        }
        Ok(out)
    }

    fn find_in_memory(
        &self,
        table: TableId,
        dirty: Option<&[Option<Box<super::table::MemTable>>]>,
        parts: &[&Part],
        group: u16,
        key: &[u8],
    ) -> Result<Found> {
        debug_assert!(self.groups.contains(&group));
        let h = hash(key);
        if let Some(t) = dirty.and_then(|d| d[usize::from(group - self.groups.start)].as_deref()) {
            match t.get(h, key) {
                Found::Unknown => {}
                found => return Ok(found),
            }
        }
        for part in parts {
            match part.get(table, group, h, key)? {
                Found::Unknown => {}
                found => return Ok(found),
            }
        }
        Ok(Found::Unknown)
    }

    pub fn put(&mut self, table: TableId, group: u16, key: &[u8], value: &[u8], now_ms: i64) {
        let mut buffer = [0; MAX_HEADER];
        let head = stored::header(self.ttl(table), now_ms, &mut buffer);
        let grown = self
            .dirty
            .get_mut(table, group)
            .set(&mut self.arena, key, Some((head, value)));
        self.account(grown);
    }

    pub fn delete(&mut self, table: TableId, group: u16, key: &[u8]) {
        let grown = self
            .dirty
            .get_mut(table, group)
            .set(&mut self.arena, key, None);
        self.account(grown);
    }

    /// Deletes every key that starts with `prefix`, also those still dirty.
    pub fn delete_prefix(&mut self, table: TableId, group: u16, prefix: &[u8]) {
        let grown = self.dirty.get_mut(table, group).delete_prefix(prefix);
        self.account(grown);
    }

    /// Deletes the tables of all operators but these: what one that is gone left behind would be read as its own by one of the
    /// same uid that comes later. To be asked before the first row; it becomes durable with the slot's next changes.
    pub fn keep_only<'a>(&mut self, uids: impl IntoIterator<Item = &'a str>) {
        let owners: BTreeSet<u64> = uids.into_iter().map(owner).collect();
        for (group, backend) in self.groups.clone().zip(self.backends.clone()) {
            for table in backend.tables() {
                if !owners.contains(&table.owner()) {
                    self.delete_prefix(table, group, &[]);
                }
            }
        }
    }

    fn account(&mut self, grown: Grown) {
        self.dirty_bytes = self.dirty_bytes.saturating_add_signed(grown.bytes);
        self.garbage += grown.garbage;
        // Overwritten records keep their chunks alive: copy the rest out when most of the memory is theirs.
        if self.garbage > (self.dirty_bytes / 2).max(4 << 20) {
            let mut arena = Arena::default();
            for t in self.dirty.iter_mut() {
                t.move_to(&mut arena);
            }
            self.arena = arena;
            self.garbage = 0;
        }
        let held = self.dirty_bytes + self.garbage + self.run_memory;
        if held.abs_diff(self.charged) >= CHARGE_STEP {
            self.charge_dirty(held);
        }
    }

    fn charge_dirty(&mut self, held: usize) {
        let (Some(charge), Some(memory)) = (&mut self.charge, &self.memory) else {
            return;
        };
        charge.set(held);
        self.charged = held;
        if memory.budget.wants_spill() && self.dirty_bytes >= self.spill_at() {
            self.spill();
        }
    }

    /// A slot that holds little does not spill for the others.
    fn spill_at(&self) -> usize {
        self.memory.as_ref().map_or(usize::MAX, |m| {
            let slots = m.slots.load(Ordering::Relaxed).max(1);
            m.budget.limit(Share::Dirty) / slots / 8
        })
    }

    /// Writes the dirty part to a scratch file. When that fails it stays in memory: the job goes on beyond its budget
    /// rather than stop, and the next growth tries again.
    pub(super) fn spill(&mut self) {
        let Some(dir) = self.memory.as_ref().and_then(|m| m.scratch.clone()) else {
            return;
        };
        if self.dirty.is_empty() {
            return;
        }
        match Run::write(&dir, &self.dirty) {
            Ok(run) => {
                self.run_bytes += run.bytes();
                self.run_memory += run.memory_bytes();
                self.runs.insert(0, Part::Spilled(run));
                self.dirty = self.dirty.fresh();
                self.arena = Arena::default();
                self.dirty_bytes = 0;
                self.garbage = 0;
                self.charged = self.run_memory;
                if let Some(charge) = &mut self.charge {
                    charge.set(self.run_memory);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "state changes stay in memory beyond their budget")
            }
        }
    }

    /// Up to `limit` (key, value) pairs of keys that start with `prefix` and are greater than `after`, in key order, all tiers merged.
    pub fn scan(
        &self,
        table: TableId,
        group: u16,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        now_ms: i64,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let mut out = Vec::new();
        if limit == 0 {
            return Ok(out);
        }
        let ttl = self.ttl(table);
        let mut tiers = Vec::new();
        if let Some(t) = self.dirty.get(table, group) {
            tiers.push(super::layer::mem_tier(t, prefix, after));
        }
        for part in self.parts() {
            tiers.extend(part.tier(table, group, prefix, after)?);
        }
        if !self.backend(group).is_empty(table, prefix) {
            tiers.push(Tier {
                cursor: self.backend(group).cursor(table, prefix, after)?,
                masks: &NO_PREFIXES,
            });
        }
        merge(tiers, &mut |key, value| {
            if let Some(value) = value
                && let Some(at) = stored::visible(value, ttl, now_ms)
            {
                out.push((
                    Bytes::copy_from_slice(key),
                    Bytes::copy_from_slice(&value[at..]),
                ));
            }
            Ok(out.len() < limit)
        })?;
        Ok(out)
    }

    /// True when neither the backend nor any layer can hold a key of the table that starts with `prefix`: then a miss in
    /// the caller's own memory is a miss.
    pub fn is_empty_below(&self, table: TableId, group: u16, prefix: &[u8]) -> bool {
        self.dirty
            .get(table, group)
            .is_none_or(|t| t.entries().is_empty())
            && self.parts().all(|p| !p.has_keys(table, group))
            && self.backend(group).is_empty(table, prefix)
    }

    /// Ends the epoch: the dirty part becomes a layer (O(1) on the hot path, unless memory for changes is used up); `None` when nothing
    /// changed.
    pub fn freeze(&mut self, epoch: u64) -> Option<Arc<FrozenLayer>> {
        self.refresh();
        if self.dirty.is_empty() && self.runs.is_empty() {
            return None;
        }
        // Layers pile up when the applier lags: then this one goes to disk too, or their sum has no bound.
        if self.memory.as_ref().is_some_and(|m| m.budget.wants_spill()) {
            self.spill();
        }
        let fresh = self.dirty.fresh();
        let tables = std::mem::replace(&mut self.dirty, fresh);
        let dirty = std::mem::take(&mut self.dirty_bytes);
        let memory =
            dirty + std::mem::take(&mut self.garbage) + std::mem::take(&mut self.run_memory);
        let bytes = dirty + std::mem::take(&mut self.run_bytes);
        let mut parts = vec![Part::Memory(tables)];
        parts.append(&mut self.runs);
        let charge = self.charge.take().map(|mut c| {
            c.set(memory);
            c.move_to(Share::Frozen);
            c
        });
        self.charge = self.memory.as_ref().map(new_charge);
        self.charged = 0;
        let layer = Arc::new(FrozenLayer::new(
            epoch,
            self.groups.clone(),
            parts,
            bytes,
            memory,
            charge,
            Arc::downgrade(&self.shared),
        ));
        self.frozen.push_front(Arc::clone(&layer));
        Some(layer)
    }

    /// Bytes of the dirty part, in memory and spilled.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes + self.run_bytes
    }

    /// Whether the process's memory for changes is used up and some of it goes back by itself, when what is frozen has been
    /// committed and applied. Rows that come before that would be spilled.
    pub fn must_wait(&self) -> bool {
        self.memory.as_ref().is_some_and(|m| m.budget.must_wait())
    }

    /// Whether the barrier should come early: half of the process's memory for changes is in use.
    pub fn wants_barrier(&self) -> bool {
        self.memory
            .as_ref()
            .is_some_and(|m| m.budget.wants_barrier())
    }
}

impl Drop for SlotState {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory {
            memory.slots.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The shared counter is touched once per so many bytes.
const CHARGE_STEP: usize = 256 << 10;

fn new_charge(memory: &Memory) -> Charge {
    Charge::new(Arc::clone(&memory.budget), Share::Dirty, 0)
}

/// The user's bytes of a stored value, unless expired.
fn see(mut stored: Bytes, ttl: Option<u64>, now_ms: i64) -> Option<Bytes> {
    let at = stored::visible(&stored, ttl, now_ms)?;
    stored.advance(at);
    Some(stored)
}
