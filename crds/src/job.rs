//! The StreamingJob: the top of its spec, and how it runs. Sources, sinks, checkpoints, workers and status have modules of
//! their own.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::checkpoint::{
    AzureStorage, Checkpoint, Ephemeral, GcsStorage, LocalStorage, Retention, S3Storage, StateSpec,
    Storage, StorageKind, Volume,
};
use crate::format::Empty;
use crate::sink::Sink;
use crate::source::Source;
pub use crate::status::{Phase, StreamingJobStatus};
use crate::units::Duration;
use crate::workers::{Autoscaling, Workers};

/// What a streaming job reads, computes and writes, and how it runs.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "StreamingJob",
    plural = "streamingjobs",
    shortname = "sj",
    shortname = "sjob",
    category = "streaming",
    namespaced,
    status = "StreamingJobStatus",
    derive = "PartialEq",
    doc = "A streaming job: sources, one SQL text, sinks.",
    scale(
        spec_replicas_path = ".spec.workers.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch.number"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag.records"),
    printcolumn(
        name = "Workers",
        type_ = "integer",
        json_path = ".status.readyReplicas"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Lag-Seconds",
        type_ = "integer",
        json_path = ".status.lag.seconds",
        priority = 1
    ),
    printcolumn(
        name = "Rows-In",
        type_ = "number",
        json_path = ".status.rates.in",
        priority = 1
    ),
    printcolumn(
        name = "Rows-Out",
        type_ = "number",
        json_path = ".status.rates.out",
        priority = 1
    ),
    printcolumn(
        name = "Committed",
        type_ = "date",
        json_path = ".status.epoch.committedAt",
        priority = 1
    ),
    printcolumn(
        name = "Watermark",
        type_ = "string",
        json_path = ".status.watermark.time",
        priority = 1
    ),
    printcolumn(
        name = "Restarts",
        type_ = "integer",
        json_path = ".status.counts.restarts",
        priority = 1
    ),
    printcolumn(
        name = "Failure",
        type_ = "string",
        json_path = ".status.lastFailure.code",
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version.planHash",
        priority = 1
    ),
    printcolumn(
        name = "Engine",
        type_ = "string",
        json_path = ".status.version.engine",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct StreamingJobSpec {
    /// Where rows come from: 1 to 32 tables.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sources: Vec<Source>,
    /// One SQL text: views and INSERTs, separated by semicolons; at most 256 KiB.
    #[schemars(length(min = 1, max = 262_144))]
    pub sql: String,
    /// How the SQL is read.
    #[serde(default)]
    pub sql_options: SqlOptions,
    /// Where results go: 1 to 32.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sinks: Vec<Sink>,
    /// When epochs run. Default {continuous: {}}.
    #[serde(default)]
    pub trigger: TriggerSpec,
    /// Fixed shares of the key space, 1 to 32768; at least slots × workers; fixed for the job's life. Default 64.
    #[serde(default = "default_key_groups")]
    #[schemars(range(min = 1, max = 32768))]
    pub key_groups: u32,
    /// How and where epochs are made durable.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// How long and on what volume state is kept.
    #[serde(default)]
    pub state: StateSpec,
    /// The pods that do the work.
    #[serde(default)]
    pub workers: Workers,
    /// Whether the number of workers follows the lag. Absent: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// How a change of this spec takes over.
    #[serde(default)]
    pub upgrade: Upgrade,
    /// How a failed job is started again.
    #[serde(default)]
    pub restart: Restart,
    /// What a new job starts from; read before its first start only, harmless if left. Absent: from nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_from: Option<RestoreFrom>,
    /// True: ignore an older log of this name. Default false.
    #[serde(default)]
    pub start_fresh: bool,
    /// True: stop at a barrier and stay stopped. Default false.
    #[serde(default)]
    pub suspend: bool,
    /// What is left of a deleted job: Retain (default) keeps its log and state, Savepoint pins its last epoch first, Delete removes what no Savepoint pins.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn default_key_groups() -> u32 {
    64
}

/// How the SQL is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SqlOptions {
    /// Zone of conversions between TIMESTAMP_LTZ and texts, dates and windows: an IANA name. Default UTC.
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// Accepts a plan whose state grows without bound. Default false.
    pub allow_unbounded_state: bool,
}

impl Default for SqlOptions {
    fn default() -> Self {
        Self {
            time_zone: "UTC".to_owned(),
            allow_unbounded_state: false,
        }
    }
}

/// When epochs run; exactly one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("trigger", &["continuous", "processingTime", "availableNow", "once"])]))]
pub struct TriggerSpec {
    /// Rows flow at once; an epoch ends every checkpoint.interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuous: Option<Empty>,
    /// A planned epoch at every interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processing_time: Option<ProcessingTime>,
    /// Planned epochs over what is there now, then the job is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_now: Option<Bounded>,
    /// One planned epoch, then the job is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub once: Option<Bounded>,
}

impl Default for TriggerSpec {
    fn default() -> Self {
        Self {
            continuous: Some(Empty {}),
            processing_time: None,
            available_now: None,
            once: None,
        }
    }
}

/// Planned epochs at an interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessingTime {
    /// From the start of one epoch to that of the next; 100ms to 24h. Required.
    pub interval: Duration,
}

/// A run that ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Bounded {
    /// True: the input counts as ended, every window closes, and the job is final. Default false: open windows stay for the next run.
    pub drain: bool,
}

/// The trigger that is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Rows flow at once.
    Continuous,
    /// A planned epoch at every interval.
    ProcessingTime {
        /// From start to start.
        interval: Duration,
    },
    /// Planned epochs over what is there now.
    AvailableNow {
        /// Whether the input counts as ended.
        drain: bool,
    },
    /// One planned epoch.
    Once {
        /// Whether the input counts as ended.
        drain: bool,
    },
}

impl Trigger {
    /// Whether epochs are in the log before they run (all but continuous).
    pub fn is_planned(self) -> bool {
        self != Self::Continuous
    }
}

impl TriggerSpec {
    /// The given member; `Continuous` if none is.
    pub fn kind(&self) -> Trigger {
        let Self {
            continuous: _,
            processing_time,
            available_now,
            once,
        } = self;
        if let Some(planned) = processing_time {
            Trigger::ProcessingTime {
                interval: planned.interval,
            }
        } else if let Some(bounded) = available_now {
            Trigger::AvailableNow {
                drain: bounded.drain,
            }
        } else if let Some(bounded) = once {
            Trigger::Once {
                drain: bounded.drain,
            }
        } else {
            Trigger::Continuous
        }
    }
}

/// How a change of the spec takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Upgrade {
    /// Savepoint (default): stop at a barrier and pin it. LastCheckpoint: from the newest commit. Stateless: operators start empty.
    pub strategy: UpgradeStrategy,
    /// Exactly-once outputs of the new version stay staged until it has run so long and committed 3 epochs. Default 30s.
    pub accept_after: Duration,
    /// A version that is not ready and committing by then has failed. Default 10m.
    pub progress_deadline: Duration,
    /// Rollback (default): back to the version before. Stop: stay stopped.
    pub on_failure: OnUpgradeFailure,
    /// Uids of operators whose state this version may drop. Default none.
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub drop_state: Vec<String>,
}

impl Default for Upgrade {
    fn default() -> Self {
        Self {
            strategy: UpgradeStrategy::default(),
            accept_after: Duration::from_secs(30),
            progress_deadline: Duration::from_secs(600),
            on_failure: OnUpgradeFailure::default(),
            drop_state: Vec::new(),
        }
    }
}

/// What a new version starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpgradeStrategy {
    #[default]
    Savepoint,
    LastCheckpoint,
    Stateless,
}

/// What becomes of a failed upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnUpgradeFailure {
    #[default]
    Rollback,
    Stop,
}

/// How a failed job is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Restart {
    /// How long to wait between restarts.
    pub backoff: Backoff,
    /// Beyond it the job is Failed and waits for a change; 0: never started again. Default 20.
    #[schemars(range(min = 0, max = 3600))]
    pub max_per_hour: u32,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            max_per_hour: 20,
        }
    }
}

/// A wait that doubles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Backoff {
    /// Before the first restart. Default 1s.
    pub initial: Duration,
    /// At most. Default 5m.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
        }
    }
}

/// What a new job starts from; exactly one member.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("restoreFrom", &["savepoint", "latest", "epoch"])]))]
pub struct RestoreFrom {
    /// A Savepoint of this namespace: a new log that begins there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub savepoint: Option<SavepointRef>,
    /// The newest epoch of the older log of this name, which the job adopts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest: Option<Empty>,
    /// An epoch of the older log of this name, which the job adopts and goes back in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<EpochRef>,
}

/// The one member of `RestoreFrom` that is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreKind<'a> {
    /// `savepoint`: its name.
    Savepoint(&'a str),
    /// `latest`.
    Latest,
    /// `epoch`: its number.
    Epoch(u64),
}

impl RestoreFrom {
    /// The given member; the first in the order of the schema if a manifest that was not validated gives several.
    pub fn kind(&self) -> Option<RestoreKind<'_>> {
        let Self {
            savepoint,
            latest,
            epoch,
        } = self;
        savepoint
            .as_ref()
            .map(|savepoint| RestoreKind::Savepoint(&savepoint.name))
            .or(latest.map(|_| RestoreKind::Latest))
            .or(epoch.as_ref().map(|epoch| RestoreKind::Epoch(epoch.number)))
    }
}

/// A Savepoint of the job's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SavepointRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// An epoch of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EpochRef {
    /// Its number.
    pub number: u64,
}

/// What is left of a deleted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Savepoint,
    Delete,
}
