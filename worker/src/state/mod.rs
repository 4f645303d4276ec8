//! Keyed state of one slot: tables over dirty -> frozen layers -> clean cache -> the key group's durable instance.
//!
//! Owned by one slot's thread. Key groups of a slot are a contiguous range. Everything above sees [`SlotState`]; where
//! committed state rests is a [`Backend`] per key group (RocksDB, or memory), which never holds anything newer than the
//! last committed epoch.
//!
//! ```text
//! put/delete -> dirty (slot.rs, table.rs) --spill--> runs on scratch files (spill.rs)
//!                 | freeze                              |
//!                 v                                     v
//!            FrozenLayer (layer.rs) --segment--> changelog bytes (segment.rs), in the pack
//!                 | after Commit(N): applier.rs, its own thread
//!                 v
//!            Backend (backend.rs; rocks.rs), the layer stays as clean cache within the budget (budget.rs)
//! ```

mod applier;
mod backend;
mod budget;
mod instances;
mod layer;
#[cfg(test)]
mod measure;
mod planted;
mod rocks;
mod segment;
#[cfg(test)]
pub(crate) mod simulated;
mod slot;
mod spill;
mod stored;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use bytes::Bytes;

pub use applier::Commit;
pub use backend::{Backend, Base, BaseFile, Identity, MemoryBackend};
pub use budget::{Budget, Share};
pub use instances::Instances;
pub use layer::{ChangeSink, Changes, Cursor, FrozenLayer};
pub use planted::Planted;
pub use rocks::RocksBackend;
pub use segment::{Segment, decode_segment};
pub use slot::SlotState;
pub use worker::{StateOptions, StateStats, StateWorker};

/// A table's name in keys: the first 8 bytes, big endian, of every key. Five say whose it is, three which: stable hashes of the
/// operator's uid and of the table's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(u64);

/// Bits of a [`TableId`] that tell one operator's tables apart.
const WHICH: u32 = 24;

impl TableId {
    pub fn of(uid: &str, table: &str) -> Self {
        let which = xxhash_rust::xxh3::xxh3_64(table.as_bytes()) >> (u64::BITS - WHICH);
        Self(owner(uid) << WHICH | which)
    }
    /// Whose it is: what [`owner`] says of the operator's uid.
    const fn owner(self) -> u64 {
        self.0 >> WHICH
    }
    pub const fn get(self) -> u64 {
        self.0
    }
    /// From the number that a segment or an instance's key holds.
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

/// An operator as its tables name it.
fn owner(uid: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(uid.as_bytes()) >> WHICH
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
