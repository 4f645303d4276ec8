//! The status of a StreamingJob, which the controller writes: timestamps, never ages; no list per partition.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Duration, Timestamp};

/// What the controller has seen of the job; at most 8 KiB.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamingJobStatus {
    /// The metadata.generation that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people: Pending, Restoring, Running, Suspended, Completed, RolledBack or Failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Ready, Available, Reconciling, Stalled, CheckpointHealthy, CaughtUp, ScalingLimited, RolledBack, Completed, DataLossRisk, StatePressure.
    #[serde(default)]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The identity of the job's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_id: Option<String>,
    /// What runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<RunningVersion>,
    /// Workers that exist; of the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the workers; of the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Workers that there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// Workers that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// The newest committed epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<EpochStatus>,
    /// Event time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark: Option<WatermarkStatus>,
    /// What is not read yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<LagStatus>,
    /// Rows each second, since the epoch before the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<RateStatus>,
    /// Counts since the worker's process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<CountStatus>,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<FailureStatus>,
    /// The autoscaler's last decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingStatus>,
}

/// What a job does, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    Pending,
    Restoring,
    Running,
    Suspended,
    Completed,
    RolledBack,
    Failed,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningVersion {
    /// The metadata.generation of the spec that runs.
    pub spec: i64,
    /// Hash of its plan.
    pub plan_hash: String,
    /// Version of the engine.
    pub engine: String,
}

/// The newest committed epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EpochStatus {
    /// Its number.
    pub number: u64,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// From its barrier to its commit.
    pub duration: Duration,
    /// Bytes that it wrote.
    pub bytes: u64,
    /// Rows read in it.
    pub rows_in: u64,
    /// Rows that left in it.
    pub rows_out: u64,
}

/// Event time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatermarkStatus {
    /// No earlier row is expected.
    pub time: Timestamp,
    /// The split that is furthest behind: source/split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back_by: Option<String>,
}

/// What is not read yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LagStatus {
    /// Records.
    pub records: u64,
    /// Seconds that they took to arrive.
    pub seconds: u64,
}

/// Rows each second, since the epoch before the newest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateStatus {
    /// Read.
    #[serde(rename = "in")]
    pub rows_in: f64,
    /// Written.
    #[serde(rename = "out")]
    pub rows_out: f64,
}

/// Counts since the worker's process started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountStatus {
    /// Rows behind the watermark.
    pub late: u64,
    /// Rows in dead letters.
    pub dead_letters: u64,
    /// Generations that ended before the job did.
    pub restarts: u64,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// When.
    pub at: Timestamp,
    /// Its code.
    pub code: String,
    /// What happened.
    pub message: String,
}

/// A decision of the autoscaler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingStatus {
    /// Up, Down or Hold.
    pub decision: String,
    /// Why, in one word.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}
