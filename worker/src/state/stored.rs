//! How a value rests: a flag byte, with a TTL the time of its last write, then the user's bytes. Every tier below the
//! operators, segments included, holds values in this form.

use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;

use super::TableId;

/// The user's bytes follow at once.
const PLAIN: u8 = 0;
/// 8 bytes, big endian, of the last write in milliseconds of the epochs' clock come first.
const TIMED: u8 = 1;

/// Length of the longest header.
pub(super) const MAX_HEADER: usize = 9;

/// The header of a value written now.
pub(super) fn header(ttl_ms: Option<u64>, now_ms: i64, out: &mut [u8; MAX_HEADER]) -> &[u8] {
    match ttl_ms {
        None => {
            out[0] = PLAIN;
            &out[..1]
        }
        Some(_) => {
            out[0] = TIMED;
            out[1..].copy_from_slice(&now_ms.to_be_bytes());
            &out[..]
        }
    }
}

/// Where the user's bytes begin and when they were written; `None` when these are not a stored value.
pub(super) fn split(stored: &[u8]) -> Option<(usize, Option<i64>)> {
    match *stored.first()? {
        PLAIN => Some((1, None)),
        TIMED => {
            let at: [u8; 8] = stored.get(1..MAX_HEADER)?.try_into().ok()?;
            Some((MAX_HEADER, Some(i64::from_be_bytes(at))))
        }
        _ => None,
    }
}

/// A value is expired when its age exceeds the table's TTL. Values written without a time (before the table had a TTL)
/// do not expire until they are written again.
pub(super) fn expired(written: Option<i64>, ttl_ms: Option<u64>, now_ms: i64) -> bool {
    match (written, ttl_ms) {
        (Some(at), Some(ttl)) => i128::from(now_ms) - i128::from(at) > i128::from(ttl),
        _ => false,
    }
}

/// Offset of the user's bytes if the value is to be seen at `now_ms`.
pub(super) fn visible(stored: &[u8], ttl_ms: Option<u64>, now_ms: i64) -> Option<usize> {
    let (at, written) = split(stored)?;
    (!expired(written, ttl_ms, now_ms)).then_some(at)
}

/// The epochs' clock and the tables' TTLs, as compaction sees them: it runs on threads of its own, and may only drop
/// what every later read would treat as absent.
#[derive(Debug, Default)]
pub struct TtlClock {
    now_ms: AtomicI64,
    tables: RwLock<Vec<(TableId, u64)>>,
}

impl TtlClock {
    /// The clock of a committed epoch; never goes back.
    pub fn advance(&self, now_ms: i64) {
        self.now_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    pub(super) fn set(&self, table: TableId, ttl_ms: Option<u64>) {
        let mut tables = self.tables.write();
        tables.retain(|(t, _)| *t != table);
        if let Some(ttl) = ttl_ms {
            tables.push((table, ttl));
        }
    }

    /// Whether compaction may drop the value for good.
    pub(super) fn is_garbage(&self, table: TableId, stored: &[u8]) -> bool {
        let Some((_, Some(written))) = split(stored) else {
            return false;
        };
        let tables = self.tables.read();
        let ttl = tables.iter().find(|(t, _)| *t == table).map(|(_, ms)| *ms);
        expired(Some(written), ttl, self.now_ms.load(Ordering::Relaxed))
    }
}
