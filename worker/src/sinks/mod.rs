//! Sinks: where results go. A subtask *stages* final records, encoded once; after the commit the shard's *publisher* puts
//! them out, exactly once if the sink can. The rest of the engine knows sinks by these traits alone.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::message::Batch;

pub mod contract;
pub mod files;
pub mod kafka;
pub mod memory;
pub mod print;
pub mod rows;
pub mod staged;

/// What a sink can promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    ExactlyOnce,
    AtLeastOnce,
}

/// Final records of one epoch for one shard, in order. Layout of `data`, repeated: u32 LE length of what follows; then
/// i64 LE timestamp in ms (i64::MIN: none); i32 LE partition (-1: the publisher's choice); u32 LE key length (u32::MAX: null); u32 LE value
/// length (u32::MAX: null); u16 LE number of headers; key; value; headers as (u16 LE name length, name, u32 LE value length, value).
#[derive(Debug, Clone, Default)]
pub struct StagedRecords {
    pub data: Vec<u8>,
    /// Ends (exclusive byte offsets into `data`) of the chunks; each chunk is one transaction. Cut here, never again.
    pub chunk_ends: Vec<usize>,
    pub rows: u64,
}

/// Encodes one subtask's rows of one sink.
pub trait SinkEncoder: Send {
    /// Appends the batch's records to the shards' stages. `split`: stable hash of the rows' origin, for rows without a key
    /// (`hash % shards`). `out[shard]` exists for every shard.
    fn encode(&mut self, batch: &Batch, split: u64, out: &mut [StagedRecords]) -> Result<()>;
}

/// A dead letter, or another record made outside SQL.
#[derive(Debug, Clone)]
pub struct Record {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Bytes)>,
    pub timestamp_ms: Option<i64>,
}

/// What a shard's target says of itself after `open`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    pub epoch: u64,
    /// Last chunk of `epoch` that is out; [`Marker::ALL`]: all of it.
    pub chunk: u32,
    pub nonce: u64,
}

impl Marker {
    pub const ALL: u32 = u32::MAX;
}

/// What the log knows of a shard when its publisher opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Born {
    /// Marker partition allotted in the log.
    pub partition: i32,
    pub nonce: u64,
}

/// Publishes one shard of an exactly-once sink. One owner at a time; any error in doubt is answered by `open` again.
#[async_trait]
pub trait ShardPublisher: Send {
    /// Fences older publishers of the shard, then reads the marker. `None`: no marker there.
    async fn open(&mut self) -> Result<Option<Marker>>;
    /// Writes the initial marker of a new shard: after `open` answered `None` and no `SinkBorn` is logged.
    async fn init_marker(&mut self, marker: Marker) -> Result<()>;
    /// One chunk and its marker, atomically. An error leaves it in doubt: `open` again and compare.
    async fn publish(&mut self, records: Bytes, marker: Marker) -> Result<()>;
    /// How it lets go of what it holds back. `None`: rows are visible as soon as they are published.
    fn rolling(&mut self) -> Option<&mut dyn Rolling>;
    /// Whether `open` makes every call of an older publisher fail: such a one may be used on in the next generation.
    fn fences(&self) -> bool {
        false
    }
}

/// An epoch of the log, as those need it that hold rows back: when they let go must follow from the log alone, or a
/// superseded publisher would let go of other rows than its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Turn {
    pub epoch: u64,
    /// That committed the epoch.
    pub generation: u64,
    /// The epoch's time; never less than that of an epoch before it.
    pub now_ms: i64,
}

/// A publisher that holds published rows back, durably, until there are enough of them for a file. Called when it is open; may
/// be called again after an error.
#[async_trait]
pub trait Rolling: Send {
    /// Before an epoch's chunks are published, and for an epoch that has none for this shard; also once where a
    /// generation begins, behind what older ones left to publish.
    async fn turn(&mut self, turn: Turn) -> Result<()>;
    /// The log says that the generation has stopped: everything becomes visible.
    async fn close(&mut self) -> Result<()>;
}

/// Sends at once; for `delivery: AtLeastOnce`.
pub trait DirectSender: Send {
    /// Queues a chunk of staged records. Blocks only when the client's queue is full (backpressure).
    fn send(&mut self, records: &StagedRecords) -> Result<()>;
    /// The epoch ends here: what was sent since the last seal is owed to it. Never waits. The epoch before has settled.
    fn seal(&mut self) -> Result<()>;
    /// Whether everything that the sealed epoch is owed has been acknowledged. Never waits; an error when something was given
    /// up, or the sink's own deadline has passed. True where nothing is sealed.
    fn settled(&mut self) -> Result<bool>;
}

/// One sink of the job.
#[async_trait]
pub trait Sink: Send + Sync {
    fn guarantee(&self) -> Guarantee;
    /// Number of shards, fixed for life.
    fn shards(&self) -> u16;
    /// Prepares the target (topic exists, marker topic made, folder writable). Once per generation, before any shard opens.
    async fn prepare(&self) -> Result<()>;
    fn encoder(&self) -> Result<Box<dyn SinkEncoder>>;
    /// Encodes a record made outside SQL (a dead letter) into a shard's stage.
    fn stage_record(&self, record: &Record, out: &mut StagedRecords) {
        staged::stage(record, -1, out);
    }
    fn publisher(&self, shard: u16, partition: i32) -> Result<Box<dyn ShardPublisher>>;
    /// What tells its publishers from those of a sink with other settings: a Secret that has changed, for one.
    fn settings(&self) -> u64 {
        0
    }
    fn direct(&self) -> Result<Box<dyn DirectSender>>;
}

pub type SinkRef = Arc<dyn Sink>;
