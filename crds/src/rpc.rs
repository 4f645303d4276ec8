//! What a running job answers on `/status`: JSON, read by the controller, `penstock run` and people. Additive only.

use serde::{Deserialize, Serialize};

use crate::sink::Delivery;
use crate::status::Phase;
use crate::units::Timestamp;

mod graph;

pub use graph::{
    Graph, HottestGroup, HottestKey, Input, KeyGroups, Operator, Queued, Subtask, Worker,
};

/// The name that the controller's certificate is made out to: workers take requests from nobody else.
pub const CONTROLLER: &str = "controller.penstock.dev";

/// A running job, as its coordinator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job's name.
    pub job: String,
    /// Its namespace.
    pub namespace: String,
    /// The identity of its log.
    pub log_id: String,
    /// The incarnation that runs.
    pub generation: u64,
    /// The worker that coordinates, of several: what another one says is what it last knew.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub coordinator: Option<u32>,
    /// Workers that take part.
    #[serde(default)]
    pub workers: u32,
    /// What it does.
    pub phase: Phase,
    /// Version of the engine.
    pub engine: String,
    /// The version of the job that runs; empty outside a cluster.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// The version is on trial: what it commits is staged and not published.
    #[serde(default)]
    pub on_trial: bool,
    /// Savepoints of its log.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub savepoints: Vec<Savepoint>,
    /// The newest committed epoch; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub epoch: Option<Epoch>,
    /// Event time; absent without watermarks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub watermark: Option<Watermark>,
    /// What is not read yet; absent where no source has an end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag: Option<Lag>,
    /// Rows each second, since the epoch before the newest.
    pub rates: Rates,
    /// How loaded it is; absent for the first seconds of a generation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load: Option<Load>,
    /// What its parts do. Only on the page of the worker that coordinates, from the first commit of a generation on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub graph: Option<Graph>,
    /// What the operators hold.
    #[serde(default)]
    pub state: StateSize,
    /// Counts since the process started.
    pub counts: Counts,
    /// Every source.
    pub sources: Vec<SourceStatus>,
    /// Every sink.
    pub sinks: Vec<SinkStatus>,
    /// The sink that holds publication back, when one does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_back_by: Option<String>,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_failure: Option<Failure>,
}

/// An epoch that is pinned in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Savepoint {
    /// Its name.
    pub name: String,
    /// The epoch.
    pub epoch: u64,
    /// Every row up to it is published.
    pub completed: bool,
    /// Bytes that restoring it reads; 0 where unknown.
    pub bytes: u64,
}

/// A committed epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number.
    pub number: u64,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// From its barrier to its commit, in milliseconds.
    pub duration_ms: u64,
    /// Bytes that it wrote.
    pub bytes: u64,
    /// Rows read in it.
    pub rows_in: u64,
    /// Rows that left in it.
    pub rows_out: u64,
}

/// Event time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watermark {
    /// No earlier row is expected.
    pub time: Timestamp,
    /// The split that is furthest behind: source/split.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_back_by: Option<String>,
}

/// What is not read yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Records.
    pub records: u64,
    /// Seconds that they took to arrive.
    pub seconds: f64,
}

/// Rows each second.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Read.
    #[serde(rename = "in")]
    pub rows_in: f64,
    /// Written.
    #[serde(rename = "out")]
    pub rows_out: f64,
}

/// How loaded a job is, over the last seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Workers that take part.
    pub workers: u32,
    /// Rows read, and rows that came, each second.
    pub read: f64,
    /// See `read`.
    pub came: f64,
    /// Share of its time that the busiest slot worked, or that its worker used of its CPU quota, whichever is more; 0 to 1.
    pub busiest: f64,
    /// The mean of all slots.
    pub busy: f64,
    /// Into how many parts the work can be divided: key groups, or splits of a job without state.
    pub parts: u32,
}

/// What the operators' state takes, estimated. What is in memory may be on disk too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StateSize {
    /// Keys or rows that are ready in memory.
    pub keys: u64,
    /// What operators hold ready in memory.
    pub memory_bytes: u64,
    /// Tables' files.
    pub disk_bytes: u64,
}

/// Counts since the log began.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Rows read.
    #[serde(default)]
    pub rows_in: u64,
    /// Rows that left.
    #[serde(default)]
    pub rows_out: u64,
    /// Rows behind the watermark.
    pub late: u64,
    /// Rows in dead letters.
    pub dead_letters: u64,
    /// Rows that could not be read and were skipped.
    #[serde(default)]
    pub skipped: u64,
    /// Restarts.
    pub restarts: u64,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Splits that are known.
    pub splits: u64,
    /// Rows read since the log began.
    pub rows: u64,
    /// Records not read yet; absent where unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_records: Option<u64>,
    /// Whether all its splits are idle.
    #[serde(default)]
    pub idle: bool,
}

/// A sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// The guarantee in force.
    pub guarantee: Delivery,
    /// Every row up to this epoch is published.
    pub done_through: u64,
    /// Rows written since the log began.
    #[serde(default)]
    pub rows: u64,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// Its code.
    pub code: String,
    /// What happened.
    pub message: String,
}
