//! What travels between operators: batches with row kinds, watermarks, barriers. Owns the shapes; who sends what when is
//! the tasks'.

use std::sync::Arc;

use arrow::array::RecordBatch;

/// Microseconds since the epoch, UTC. As a watermark: event time below which no further rows are expected, so that a window
/// closes when the watermark is at or above its end, and a row is late when its last window has closed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct EventTime(i64);

impl EventTime {
    /// Before every row: no watermark yet.
    pub const MIN: Self = Self(i64::MIN);
    /// After every row: the input ended.
    pub const MAX: Self = Self(i64::MAX);

    pub const fn from_micros(us: i64) -> Self {
        Self(us)
    }
    pub const fn micros(self) -> i64 {
        self.0
    }
}

/// How far subtasks of one task are in event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progressed {
    pub to: EventTime,
    /// They have nothing to read from: others go on without them.
    pub idle: bool,
}

impl Progressed {
    /// The least of those that are not idle; the greatest of those that are, when all are.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        match (self.idle, other.idle) {
            (false, true) => self,
            (true, false) => other,
            (false, false) if other.to < self.to => other,
            (true, true) if other.to > self.to => other,
            (false, false) | (true, true) => self,
        }
    }
}

/// What one row of a changelog means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowKind {
    Insert = 0,
    UpdateBefore = 1,
    UpdateAfter = 2,
    Delete = 3,
}

impl RowKind {
    /// `+I` and `+U` add the row; `-U` and `-D` take it away.
    pub const fn adds(self) -> bool {
        matches!(self, Self::Insert | Self::UpdateAfter)
    }
}

/// Which input of an exchange's receiver a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    Main,
    /// Rows that were late for a partial operator, whole, in the schema of its input: the final one judges them.
    Late,
}

/// Rows with their kinds.
#[derive(Debug, Clone)]
pub struct Batch {
    pub rows: RecordBatch,
    /// One per row; `None`: all `+I`.
    pub kinds: Option<Arc<[RowKind]>>,
    pub lane: Lane,
}

impl Batch {
    pub fn inserts(rows: RecordBatch) -> Self {
        Self {
            rows,
            kinds: None,
            lane: Lane::Main,
        }
    }

    pub fn kind(&self, row: usize) -> RowKind {
        self.kinds.as_ref().map_or(RowKind::Insert, |k| k[row])
    }

    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum BarrierKind {
    Checkpoint,
    Savepoint,
    /// The job goes on later from here.
    Stop,
    /// Sources stop; other owners go on.
    Handover,
    /// Ends nothing: a planned epoch begins. What came before it, the epoch's watermark above all, is taken in by every
    /// subtask before a row of the epoch, so that lateness does not depend on which channel is faster.
    Begin,
}

/// The mark that ends an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Barrier {
    pub epoch: u64,
    pub generation: u64,
    pub kind: BarrierKind,
    /// Wall clock of the epoch in milliseconds, as the log will record it: what TTL and `now()` use.
    pub now_ms: i64,
}

#[derive(Debug, Clone)]
pub enum Message {
    Batch(Batch),
    Watermark(EventTime),
    /// The sender has no active splits; it does not count in its receivers' minimum until it sends again.
    Idle,
    Barrier(Barrier),
    /// No further message; counts as aligned and as `EventTime::MAX`.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_idle_holds_nobody_back() {
        let at = |to, idle| Progressed {
            to: EventTime::from_micros(to),
            idle,
        };
        assert_eq!(at(3, false).with(at(1, true)), at(3, false));
        assert_eq!(at(1, true).with(at(3, false)), at(3, false));
        assert_eq!(at(3, false).with(at(5, false)), at(3, false));
        assert_eq!(at(3, true).with(at(5, true)), at(5, true));
    }
}
