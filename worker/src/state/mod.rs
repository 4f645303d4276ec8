//! Keyed state of one slot: tables over dirty -> frozen layers -> clean cache -> the key group's durable instance.
//!
//! Owned by one slot's thread. Key groups of a slot are a contiguous range. Everything above sees [`SlotState`]; where
//! committed state rests is a [`Backend`] per key group (RocksDB, or memory), which never holds anything newer than the
//! last committed epoch.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;

/// A table's name in keys: the first 8 bytes, big endian, of every key. Stable hash of `<operator uid>/<table>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(u64);

impl TableId {
    pub fn of(uid: &str, table: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(
            format!("{uid}/{table}").as_bytes(),
        ))
    }
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// One change of state within a key group. `key` excludes the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put {
        table: TableId,
        key: Bytes,
        value: Bytes,
    },
    Delete {
        table: TableId,
        key: Bytes,
    },
    /// Every key of the table that starts with `prefix`.
    DeletePrefix {
        table: TableId,
        prefix: Bytes,
    },
}

/// The changes of one epoch in one slot: immutable, shared between readers, the pack's writer and the applier.
#[derive(Debug)]
pub struct FrozenLayer {
    // private: per key group the prefix deletes (applied first), then a hash map of puts and deletes
}

impl FrozenLayer {
    pub fn epoch(&self) -> u64 {
        unimplemented!()
    }
    pub fn key_groups(&self) -> Vec<u16> {
        unimplemented!()
    }
    pub fn bytes(&self) -> usize {
        unimplemented!()
    }
    /// The key group's changelog segment: sorted, self-contained bytes. Off the hot path.
    pub fn segment(&self, _group: u16) -> Vec<u8> {
        unimplemented!()
    }
}

/// Decodes a changelog segment, for restore and `penstock state`. Refuses corrupt bytes.
pub fn decode_segment(_bytes: &[u8]) -> Result<Vec<Change>> {
    unimplemented!()
}

/// State of one slot.
pub struct SlotState {
    // private
}

impl SlotState {
    /// Key groups this slot owns.
    pub fn key_groups(&self) -> Range<u16> {
        unimplemented!()
    }
    /// Number of key groups of the job.
    pub fn total_groups(&self) -> u16 {
        unimplemented!()
    }
    /// Declares a table before its first use. `ttl_ms`: values older than this, by the epochs' clock, read as absent.
    pub fn register(&mut self, _table: TableId, _ttl_ms: Option<u64>) {
        unimplemented!()
    }
    /// Values of keys (group, key), in order; one multi-get per key group below the memory tiers.
    pub fn get_many(
        &mut self,
        _table: TableId,
        _keys: &[(u16, &[u8])],
        _now_ms: i64,
    ) -> Result<Vec<Option<Bytes>>> {
        unimplemented!()
    }
    pub fn put(&mut self, _table: TableId, _group: u16, _key: &[u8], _value: &[u8], _now_ms: i64) {
        unimplemented!()
    }
    pub fn delete(&mut self, _table: TableId, _group: u16, _key: &[u8]) {
        unimplemented!()
    }
    /// Deletes every key that starts with `prefix`, also those still dirty.
    pub fn delete_prefix(&mut self, _table: TableId, _group: u16, _prefix: &[u8]) {
        unimplemented!()
    }
    /// Up to `limit` (key, value) pairs of keys that start with `prefix` and are greater than `after`, in key order, all tiers merged.
    pub fn scan(
        &self,
        _table: TableId,
        _group: u16,
        _prefix: &[u8],
        _after: Option<&[u8]>,
        _limit: usize,
        _now_ms: i64,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        unimplemented!()
    }
    /// Ends the epoch: the dirty part becomes a layer (O(1) on the hot path); `None` when nothing changed.
    pub fn freeze(&mut self, _epoch: u64) -> Option<Arc<FrozenLayer>> {
        unimplemented!()
    }
    /// Bytes of the dirty part.
    pub fn dirty_bytes(&self) -> usize {
        unimplemented!()
    }
}
