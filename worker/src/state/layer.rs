//! Layers: the changes of one epoch, immutable, and the merge that reads parts one over the other. A part is prefix
//! deletes, applied first and masking every older part, then puts and deletes.

use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::error::Result;

use super::TableId;
use super::budget::{Charge, Share};
use super::segment;
use super::slot::SlotShared;
use super::spill::Run;
use super::table::{Found, MemTable, Prefixes, Tables};

/// A sorted walk over one tier's keys of one table and key group.
pub trait Cursor {
    /// The key it stands at, without the table; `None` at the end.
    fn key(&self) -> Option<&[u8]>;
    /// The value, in stored form; `None` for a delete. Only while `key` is `Some`.
    fn value(&self) -> Option<&[u8]>;
    fn advance(&mut self) -> Result<()>;
}

/// Takes the changes of one key group: per table its prefix deletes, then puts and deletes in key order.
pub trait ChangeSink {
    fn table(&mut self, table: TableId) -> Result<()>;
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<()>;
    /// `value` in stored form.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    fn delete(&mut self, key: &[u8]) -> Result<()>;
}

/// Changes of one key group that can be told, any number of times.
pub trait Changes {
    fn replay(&self, sink: &mut dyn ChangeSink) -> Result<()>;
}

/// One tier in a merge, with what it masks of older tiers.
pub(super) struct Tier<'a> {
    pub(super) cursor: Box<dyn Cursor + 'a>,
    pub(super) masks: &'a Prefixes,
}

/// Takes a key and its value, `None` for a delete; answers whether to go on.
type Visit<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<bool> + 'a;

/// Walks tiers, newest first, as one: each key once, by its newest tier, unless a newer tier's prefix delete masks it.
pub(super) fn merge(mut tiers: Vec<Tier<'_>>, visit: &mut Visit<'_>) -> Result<()> {
    let mut key = Vec::new();
    loop {
        let mut newest: Option<usize> = None;
        for (i, tier) in tiers.iter().enumerate() {
            let Some(k) = tier.cursor.key() else { continue };
            match newest.and_then(|n| tiers[n].cursor.key()) {
                Some(least) if least <= k => {}
                _ => newest = Some(i),
            }
        }
        let Some(newest) = newest else { return Ok(()) };
        key.clear();
        key.extend_from_slice(tiers[newest].cursor.key().unwrap_or_default());
        let masked = tiers[..newest].iter().any(|t| t.masks.covers(&key));
        if !masked && !visit(&key, tiers[newest].cursor.value())? {
            return Ok(());
        }
        for tier in &mut tiers[newest..] {
            if tier.cursor.key() == Some(&key[..]) {
                tier.cursor.advance()?;
            }
        }
    }
}

pub(super) fn mem_tier<'a>(table: &'a MemTable, prefix: &[u8], after: Option<&[u8]>) -> Tier<'a> {
    Tier {
        cursor: Box::new(MemCursor::new(table, prefix, after)),
        masks: table.prefixes(),
    }
}

/// Cursor over a [`MemTable`].
pub(super) struct MemCursor<'a> {
    table: &'a MemTable,
    order: Arc<Vec<u32>>,
    at: usize,
    prefix: Vec<u8>,
}

impl<'a> MemCursor<'a> {
    pub(super) fn new(table: &'a MemTable, prefix: &[u8], after: Option<&[u8]>) -> Self {
        let order = table.order();
        let at = order.partition_point(|i| {
            let key = table.entries()[*i as usize].key();
            key < prefix || after.is_some_and(|a| key <= a)
        });
        Self {
            table,
            order,
            at,
            prefix: prefix.to_vec(),
        }
    }

    pub(super) fn step(&mut self) {
        self.at += 1;
    }
}

impl Cursor for MemCursor<'_> {
    fn key(&self) -> Option<&[u8]> {
        let i = *self.order.get(self.at)?;
        let key = self.table.entries()[i as usize].key();
        key.starts_with(&self.prefix).then_some(key)
    }
    fn value(&self) -> Option<&[u8]> {
        let i = *self.order.get(self.at)?;
        self.table.entries()[i as usize].value()
    }
    fn advance(&mut self) -> Result<()> {
        self.step();
        Ok(())
    }
}

/// One part of a layer; parts of one epoch lie newest first.
#[derive(Debug)]
pub(super) enum Part {
    Memory(Tables),
    Spilled(Run),
}

impl Part {
    pub(super) fn get(&self, table: TableId, group: u16, hash: u64, key: &[u8]) -> Result<Found> {
        match self {
            Self::Memory(t) => Ok(t
                .get(table, group)
                .map_or(Found::Unknown, |t| t.get(hash, key))),
            Self::Spilled(run) => run.get(table, group, hash, key),
        }
    }

    pub(super) fn tier(
        &self,
        table: TableId,
        group: u16,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Option<Tier<'_>>> {
        match self {
            Self::Memory(t) => Ok(t.get(table, group).map(|t| mem_tier(t, prefix, after))),
            Self::Spilled(run) => run.tier(table, group, prefix, after),
        }
    }

    pub(super) fn has(&self, table: TableId) -> bool {
        match self {
            Self::Memory(t) => t.ids().contains(&table),
            Self::Spilled(run) => run.sections().any(|(id, _, _)| id == table),
        }
    }

    pub(super) fn has_keys(&self, table: TableId, group: u16) -> bool {
        match self {
            Self::Memory(t) => t.get(table, group).is_some_and(|t| !t.entries().is_empty()),
            Self::Spilled(run) => run
                .sections()
                .any(|(id, g, keys)| id == table && g == group && keys),
        }
    }

    fn visit_sections(&self, visit: &mut dyn FnMut(TableId, u16)) {
        match self {
            Self::Memory(t) => {
                for (id, group, table) in t.iter() {
                    if !table.is_empty() {
                        visit(id, group);
                    }
                }
            }
            Self::Spilled(run) => run.sections().for_each(|(id, group, _)| visit(id, group)),
        }
    }
}

/// The changes of one epoch in one slot: immutable, shared between readers, the pack's writer and the applier.
#[derive(Debug)]
pub struct FrozenLayer {
    epoch: u64,
    groups: Range<u16>,
    parts: Vec<Part>,
    bytes: usize,
    memory_bytes: usize,
    charge: Option<Charge>,
    /// The slot that is told when the layer was applied.
    slot: Weak<SlotShared>,
}

impl FrozenLayer {
    pub(super) fn new(
        epoch: u64,
        groups: Range<u16>,
        parts: Vec<Part>,
        bytes: usize,
        memory_bytes: usize,
        charge: Option<Charge>,
        slot: Weak<SlotShared>,
    ) -> Self {
        Self {
            epoch,
            groups,
            parts,
            bytes,
            memory_bytes,
            charge,
            slot,
        }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Key groups with any change, ascending.
    pub fn key_groups(&self) -> Vec<u16> {
        let mut out = vec![false; self.groups.len()];
        for part in &self.parts {
            part.visit_sections(&mut |_, group| {
                out[usize::from(group - self.groups.start)] = true;
            });
        }
        self.groups
            .clone()
            .zip(out)
            .filter_map(|(g, changed)| changed.then_some(g))
            .collect()
    }

    /// Bytes of the changes, spilled ones included, estimated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory it holds, estimated.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The key group's changelog segment: sorted, self-contained bytes. Off the hot path. Fails only where a spilled
    /// part cannot be read.
    pub fn segment(&self, group: u16) -> Result<Vec<u8>> {
        segment::encode(group, self.epoch, &LayersOfGroup::new(&[self], group))
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn slot(&self) -> Option<Arc<SlotShared>> {
        self.slot.upgrade()
    }

    pub(super) fn charge_to(&self, share: Share) {
        if let Some(charge) = &self.charge {
            charge.move_to(share);
        }
    }

    /// A layer of the clean cache in this one's place.
    pub(super) fn clean_of(&self, part: Part, bytes: usize) -> Self {
        let charge = self
            .charge
            .as_ref()
            .map(|c| Charge::new(Arc::clone(c.budget()), Share::Clean, bytes));
        Self::new(
            self.epoch,
            self.groups.clone(),
            vec![part],
            bytes,
            bytes,
            charge,
            Weak::clone(&self.slot),
        )
    }

    pub(super) fn groups(&self) -> Range<u16> {
        self.groups.clone()
    }
}

/// The merged changes of one key group in layers given newest first.
pub(super) struct LayersOfGroup<'a> {
    parts: Vec<&'a Part>,
    group: u16,
}

impl<'a> LayersOfGroup<'a> {
    pub(super) fn new(newest_first: &[&'a FrozenLayer], group: u16) -> Self {
        Self {
            parts: newest_first
                .iter()
                .filter(|l| l.groups.contains(&group))
                .flat_map(|l| &l.parts)
                .collect(),
            group,
        }
    }

    fn tables(&self) -> Vec<TableId> {
        let mut out = Vec::new();
        for part in &self.parts {
            part.visit_sections(&mut |id, group| {
                if group == self.group {
                    out.push(id);
                }
            });
        }
        out.sort_unstable();
        out.dedup();
        out
    }
}

impl Changes for LayersOfGroup<'_> {
    fn replay(&self, sink: &mut dyn ChangeSink) -> Result<()> {
        for table in self.tables() {
            let mut tiers = Vec::with_capacity(self.parts.len());
            let mut prefixes = Prefixes::default();
            for part in &self.parts {
                if let Some(tier) = part.tier(table, self.group, &[], None)? {
                    for p in tier.masks.iter() {
                        prefixes.insert(p);
                    }
                    tiers.push(tier);
                }
            }
            sink.table(table)?;
            for p in prefixes.iter() {
                sink.delete_prefix(p)?;
            }
            merge(tiers, &mut |key, value| {
                match value {
                    Some(v) => sink.put(key, v)?,
                    None => sink.delete(key)?,
                }
                Ok(true)
            })?;
        }
        Ok(())
    }
}

/// The smallest byte string above every string that starts with `prefix`; `None` when there is none.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Copies into one buffer what would otherwise be one allocation each.
pub(super) fn pack_bytes(slices: &[Option<&[u8]>]) -> Vec<Option<Bytes>> {
    let total = slices.iter().flatten().map(|s| s.len()).sum();
    let mut all = Vec::with_capacity(total);
    for s in slices.iter().flatten() {
        all.extend_from_slice(s);
    }
    let all = Bytes::from(all);
    let mut at = 0;
    slices
        .iter()
        .map(|s| {
            s.map(|s| {
                let from = at;
                at += s.len();
                all.slice(from..at)
            })
        })
        .collect()
}
