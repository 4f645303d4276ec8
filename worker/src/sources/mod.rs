//! Sources: where rows come from. One reader per subtask that owns splits; one enumerator per source, in the coordinator.
//! The rest of the engine knows sources by these traits alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

pub mod contract;
pub mod decode;
pub mod files;
pub mod generator;
pub mod kafka;
pub mod memory;
pub mod ranges;

/// A split's name within its source: `topic/partition`, a file's path, `0`. Stable for the job's life.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct SplitId(pub Arc<str>);

/// The next row to read in a split: a Kafka offset, a line of a file, a row number of a generator.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub i64);

impl Position {
    /// Of files: read to the end, whatever it is.
    pub const END: Self = Self(i64::MAX);
}

/// A range to read: `from` inclusive, `until` exclusive; `None`: without end.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SplitRange {
    pub split: SplitId,
    pub from: Position,
    pub until: Option<Position>,
}

/// A record that could not become a row.
#[derive(Debug, Clone)]
pub struct BadRecord {
    /// Index into [`SourceBatch::splits`]' id table.
    pub split: u16,
    pub offset: i64,
    pub code: &'static str,
    pub text: String,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
}

/// Rows of one poll, in the order they were read; within a split offsets ascend.
#[derive(Debug)]
pub struct SourceBatch {
    /// The decode schema of the source's plan (physical and transport columns; computed ones come later).
    pub rows: RecordBatch,
    /// Per row: index into `split_ids`.
    pub splits: Vec<u16>,
    /// Per row: offset in its split.
    pub offsets: Vec<i64>,
    /// Ids that `splits` and `bad` refer to; the same order for a reader's life, growing at its end.
    pub split_ids: Arc<[SplitId]>,
    /// The records' own key and value bytes per row, if the reader was asked to keep them.
    pub raw: Option<RawRecords>,
    pub bad: Vec<BadRecord>,
    /// Bytes read from the transport.
    pub bytes: usize,
}

#[derive(Debug)]
pub struct RawRecords {
    pub keys: arrow::array::BinaryArray,
    pub values: arrow::array::BinaryArray,
}

/// Answer of a poll.
#[derive(Debug)]
pub enum Polled {
    Rows(Box<SourceBatch>),
    /// Nothing now; the waker is notified when a poll may bring more.
    Empty,
    /// Every assigned range has been read to its `until`.
    Done,
}

/// One subtask's reader. Never blocks for longer than a local disk read.
pub trait SourceReader: Send {
    /// Adds ranges, or moves the end of assigned ones (same split, same or later `until`).
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()>;
    /// Up to `max_rows` rows. Flushes what it has when the transport is empty.
    fn poll(&mut self, max_rows: usize) -> Result<Polled>;
    /// Per assigned split the next position after everything `poll` has returned. For Kafka past control records at a range's end.
    fn positions(&self) -> BTreeMap<SplitId, Position>;
    /// Splits whose position equals the end that the transport last confirmed: nothing to read there now.
    fn caught_up(&self) -> Vec<SplitId>;
    /// Splits whose `until` is reached.
    fn finished(&self) -> Vec<SplitId>;
    /// Notified when `Empty` may have changed.
    fn set_waker(&mut self, waker: Arc<tokio::sync::Notify>);
}

/// A split as discovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    pub split: SplitId,
    /// Where to start if the log knows no position (after `startFrom`; a partition that appeared later: earliest).
    pub start: Position,
}

/// The coordinator's view of a source.
#[async_trait]
pub trait SourceEnumerator: Send {
    /// Splits not in `known`, in a stable order. `first`: the job's first epoch, where `startFrom` counts.
    async fn discover(
        &mut self,
        known: &BTreeMap<SplitId, Position>,
        first: bool,
    ) -> Result<Vec<Discovered>>;
    /// Current ends as the broker confirms them (last stable offsets), `stopAt` applied. A file's end is [`Position::END`].
    async fn ends(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>>;
    /// Lowest readable positions, for `DataLossRisk`; a split that is not there any more is absent.
    async fn starts(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>>;
    /// The source ends some day by itself: `stopAt`, a generator with `rows`.
    fn bounded(&self) -> bool;
    /// Shows positions to people's lag tools; failures are only logged.
    async fn show_positions(&mut self, positions: &BTreeMap<SplitId, Position>);
}

/// Makes readers and the enumerator of one source.
pub trait Source: Send + Sync {
    fn reader(&self) -> Result<Box<dyn SourceReader>>;
    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>>;
}
