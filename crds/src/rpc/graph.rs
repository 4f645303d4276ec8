//! The plan at work: what each operator does in each slot, and what each worker has of the job. Only a worker's own page shows it,
//! to who is in its pod; the controller does not ask for it.

use serde::{Deserialize, Serialize};

use super::Rates;

/// What the parts of a job do, as of the newest commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Rates and shares are of so many seconds before it.
    pub seconds: f64,
    /// In an order in which rows go only downward.
    pub operators: Vec<Operator>,
    /// By their places among the workers of the generation.
    pub workers: Vec<Worker>,
}

/// A source, an operator or a sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// As in metrics and in `penstock plan`.
    pub uid: String,
    /// What it is: `source`, `calc`, `window-aggregate`, …, `sink`.
    pub kind: String,
    /// Operators of one stage hand rows on within a slot.
    pub stage: u32,
    /// Where its rows come from, by port.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inputs: Vec<Input>,
    /// One in each slot, in their order.
    pub subtasks: Vec<Subtask>,
    /// The key group that has most of its rows; absent where they do not come by key, or too few came to tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hottest_group: Option<HottestGroup>,
    /// The key that has most of its rows; absent where none has a twentieth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hottest_key: Option<HottestKey>,
}

/// A key group that has many rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HottestGroup {
    /// Its number.
    pub group: u16,
    /// Share of the operator's rows, 0 to 1, at the least.
    pub share: f64,
}

/// A key that has many rows. Data of the job's user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HottestKey {
    /// On one line, of 64 characters at most.
    pub key: String,
    /// See [`HottestGroup::share`].
    pub share: f64,
}

/// An edge of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Of the operator that sends.
    pub uid: String,
    /// Rows go to the slot that has their key group; otherwise they stay in theirs.
    #[serde(default)]
    pub keyed: bool,
}

/// An operator in one slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subtask {
    /// Number of the slot among those of the job.
    pub slot: u32,
    /// Number of its worker.
    pub worker: u32,
    /// Rows since the generation began.
    pub rows_in: u64,
    /// See `rows_in`.
    pub rows_out: u64,
    /// Rows each second.
    pub rates: Rates,
    /// Share of the time that it ran, 0 to 1.
    pub busy: f64,
    /// Share of the time that what it sends to was full.
    pub backpressured: f64,
    /// The rest: it had no input, or waited for its turn on the slot's thread.
    pub idle: f64,
    /// Between the first of its channels' barriers and the last, in the newest epoch; absent for a source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub alignment_ms: Option<f64>,
    /// What waited in its channels; absent for a source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queued: Option<Queued>,
}

/// What waited in channels, in the mean of the looks of the last seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Queued {
    /// Batches and marks.
    pub messages: f64,
    /// Their bytes; of what came from another worker as it was sent, which may be compressed.
    pub bytes: f64,
}

/// A worker of the generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its number.
    pub worker: u32,
    /// Its slots.
    pub slots: u32,
    /// Key groups whose state it has.
    pub key_groups: u32,
    /// Which ones.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ranges: Vec<KeyGroups>,
    /// What waited in its slots for operators whose rows come by key.
    pub queued: Queued,
}

/// Key groups that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyGroups {
    /// The first.
    pub first: u16,
    /// The last, which is one of them.
    pub last: u16,
}
