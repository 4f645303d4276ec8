//! One table of one key group in memory: a hash map of puts and deletes over a set of prefix deletes that come first.
//! Entries are dense, keys and values lie together in arena chunks; the sorted order is made when first asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hashbrown::HashTable;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::TableId;

/// The hash by which every memory tier and spilled run looks a key up; taken once per access.
pub(super) fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// Estimated bytes an entry costs beside its record: itself, its index slot, its share of the growth.
pub(super) const ENTRY_COST: usize = 72;

/// What one tier knows of a key.
#[derive(Debug)]
pub(super) enum Found {
    /// In stored form.
    Value(Bytes),
    /// This tier says absent: older tiers must not be asked.
    Absent,
    /// This tier says nothing.
    Unknown,
}

/// Prefix deletes of one table.
#[derive(Debug, Default, Clone)]
pub(super) struct Prefixes {
    lengths: Vec<usize>,
    set: BTreeSet<Bytes>,
}

impl Prefixes {
    pub(super) const NONE: Self = Self {
        lengths: Vec::new(),
        set: BTreeSet::new(),
    };

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    pub(super) fn covers(&self, key: &[u8]) -> bool {
        self.lengths
            .iter()
            .any(|len| *len <= key.len() && self.set.contains(&key[..*len]))
    }

    /// Whether a new prefix was noted; one that is covered already is not.
    pub(super) fn insert(&mut self, prefix: &[u8]) -> bool {
        if self.covers(prefix) {
            return false;
        }
        self.set.insert(Bytes::copy_from_slice(prefix));
        if let Err(at) = self.lengths.binary_search(&prefix.len()) {
            self.lengths.insert(at, prefix.len());
        }
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.set.iter()
    }
}

/// Where records (key, then stored value) are written: chunks that the records share by reference count.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunk: BytesMut,
}

/// A chunk stays alive while any of its records does, so it is small.
const CHUNK: usize = 64 << 10;

impl Arena {
    fn record(&mut self, key: &[u8], head: &[u8], value: &[u8]) -> Bytes {
        let len = key.len() + head.len() + value.len();
        if len > CHUNK / 4 {
            let mut own = BytesMut::with_capacity(len);
            own.extend_from_slice(key);
            own.extend_from_slice(head);
            own.extend_from_slice(value);
            return own.freeze();
        }
        if self.chunk.capacity() < len {
            self.chunk = BytesMut::with_capacity(CHUNK);
        }
        self.chunk.extend_from_slice(key);
        self.chunk.extend_from_slice(head);
        self.chunk.extend_from_slice(value);
        self.chunk.split().freeze()
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    hash: u64,
    record: Bytes,
    key_len: u32,
    live: bool,
}

impl Entry {
    pub(super) fn key(&self) -> &[u8] {
        &self.record[..self.key_len as usize]
    }
    /// Stored form; `None` for a delete.
    pub(super) fn value(&self) -> Option<&[u8]> {
        self.live.then(|| &self.record[self.key_len as usize..])
    }
    fn cost(&self) -> usize {
        self.record.len() + ENTRY_COST
    }
}

/// What a write did to the memory in use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Grown {
    pub(super) bytes: isize,
    /// Bytes of arena that no entry points to any more.
    pub(super) garbage: usize,
}

#[derive(Debug, Default)]
pub(super) struct MemTable {
    index: HashTable<u32>,
    entries: Vec<Entry>,
    prefixes: Prefixes,
    /// Indices of `entries` by key; covers a prefix of `entries` until asked for again.
    order: Mutex<Arc<Vec<u32>>>,
}

impl MemTable {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.prefixes.is_empty()
    }

    pub(super) fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Found {
        let at = self.index.find(hash, |i| {
            let e = &self.entries[*i as usize];
            e.hash == hash && e.key() == key
        });
        match at.map(|i| &self.entries[*i as usize]) {
            Some(e) if e.live => Found::Value(e.record.slice(e.key_len as usize..)),
            Some(_) => Found::Absent,
            None if self.prefixes.covers(key) => Found::Absent,
            None => Found::Unknown,
        }
    }

    /// `value`: header and user's bytes; `None` deletes.
    pub(super) fn set(
        &mut self,
        arena: &mut Arena,
        key: &[u8],
        value: Option<(&[u8], &[u8])>,
    ) -> Grown {
        let hash = hash(key);
        let (head, body) = value.unwrap_or((&[], &[]));
        let entries = &mut self.entries;
        if let Some(i) = self.index.find(hash, |i| {
            let e = &entries[*i as usize];
            e.hash == hash && e.key() == key
        }) {
            let e = &mut entries[*i as usize];
            if value.is_none() && !e.live {
                return Grown::default();
            }
            let old = e.record.len();
            e.record = arena.record(key, head, body);
            e.live = value.is_some();
            return Grown {
                bytes: e.record.len() as isize - old as isize,
                garbage: old,
            };
        }
        let at = u32::try_from(entries.len())
            .expect("a table's part of one epoch has fewer than 2^32 keys");
        let entry = Entry {
            hash,
            record: arena.record(key, head, body),
            key_len: u32::try_from(key.len()).expect("keys are shorter than 4 GiB"),
            live: value.is_some(),
        };
        let bytes = entry.cost() as isize;
        entries.push(entry);
        self.index
            .insert_unique(hash, at, |i| entries[*i as usize].hash);
        Grown { bytes, garbage: 0 }
    }

    pub(super) fn delete_prefix(&mut self, prefix: &[u8]) -> Grown {
        let mut grown = Grown::default();
        if self.prefixes.insert(prefix) {
            grown.bytes += (prefix.len() + ENTRY_COST) as isize;
        }
        let before = self.entries.len();
        self.entries.retain(|e| {
            let keep = !e.key().starts_with(prefix);
            if !keep {
                grown.bytes -= e.cost() as isize;
                grown.garbage += e.record.len();
            }
            keep
        });
        if self.entries.len() != before {
            self.reindex();
        }
        grown
    }

    /// Copies the records into fresh chunks, so that the old ones can go.
    pub(super) fn move_to(&mut self, arena: &mut Arena) {
        for e in &mut self.entries {
            e.record = arena.record(&e.record, &[], &[]);
        }
    }

    fn reindex(&mut self) {
        let entries = &self.entries;
        self.index.clear();
        for (i, e) in entries.iter().enumerate() {
            self.index
                .insert_unique(e.hash, i as u32, |i| entries[*i as usize].hash);
        }
        *self.order.get_mut() = Arc::default();
    }

    /// Entry indices by key. Only keys that are new since the last call are sorted in.
    pub(super) fn order(&self) -> Arc<Vec<u32>> {
        let mut order = self.order.lock();
        if order.len() < self.entries.len() {
            let mut next = std::mem::take(&mut *order);
            let list = Arc::make_mut(&mut next);
            list.extend(list.len() as u32..self.entries.len() as u32);
            // Stable and adaptive: the sorted run before the new ones costs one merge.
            list.sort_by(|a, b| {
                self.entries[*a as usize]
                    .key()
                    .cmp(self.entries[*b as usize].key())
            });
            *order = next;
        }
        Arc::clone(&order)
    }

    /// Adds what an older part knew and this one does not mask: the union is the two read one over the other.
    pub(super) fn absorb_older(&mut self, arena: &mut Arena, older: &Self) {
        for e in &older.entries {
            if matches!(self.get(e.hash, e.key()), Found::Unknown) {
                let value = e.value().map(|v| (v, &[][..]));
                self.set(arena, e.key(), value);
            }
        }
        for p in older.prefixes.iter() {
            self.prefixes.insert(p);
        }
    }

    pub(super) fn forget_prefixes(&mut self) {
        self.prefixes = Prefixes::default();
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(Entry::cost).sum()
    }
}

/// The tables of a slot's key groups in memory: by table (few), then by key group.
#[derive(Debug)]
pub(super) struct Tables {
    first: u16,
    groups: usize,
    ids: Vec<TableId>,
    parts: Vec<Vec<Option<Box<MemTable>>>>,
}

impl Tables {
    pub(super) fn new(first: u16, groups: usize) -> Self {
        Self {
            first,
            groups,
            ids: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// The same shape without contents.
    pub(super) fn fresh(&self) -> Self {
        Self::new(self.first, self.groups)
    }

    pub(super) fn table(&self, id: TableId) -> Option<&[Option<Box<MemTable>>]> {
        let at = self.ids.iter().position(|t| *t == id)?;
        Some(&self.parts[at])
    }

    pub(super) fn get(&self, id: TableId, group: u16) -> Option<&MemTable> {
        self.table(id)?[usize::from(group - self.first)].as_deref()
    }

    pub(super) fn get_mut(&mut self, id: TableId, group: u16) -> &mut MemTable {
        let at = match self.ids.iter().position(|t| *t == id) {
            Some(at) => at,
            None => {
                self.ids.push(id);
                let mut parts = Vec::new();
                parts.resize_with(self.groups, || None);
                self.parts.push(parts);
                self.ids.len() - 1
            }
        };
        self.parts[at][usize::from(group - self.first)].get_or_insert_default()
    }

    pub(super) fn ids(&self) -> &[TableId] {
        &self.ids
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().all(|(_, _, t)| t.is_empty())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TableId, u16, &MemTable)> {
        self.ids.iter().zip(&self.parts).flat_map(|(id, parts)| {
            parts.iter().enumerate().filter_map(|(i, t)| {
                let t = t.as_deref()?;
                Some((*id, self.first + i as u16, t))
            })
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut MemTable> {
        self.parts
            .iter_mut()
            .flatten()
            .filter_map(|t| t.as_deref_mut())
    }
}
