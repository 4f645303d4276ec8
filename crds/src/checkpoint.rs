//! Where a job's log and state are kept: epochs, their retention and storage, and the volumes of state.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::SecretRef;
use crate::units::{Duration, Quantity};

/// How and where epochs are made durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    /// Length of an epoch under the continuous trigger; 100ms to 1h. Default 10s.
    pub interval: Duration,
    /// After it the condition CheckpointHealthy turns False; the epoch goes on. Default 5m.
    pub timeout: Duration,
    /// Which epochs are kept to go back to.
    pub retention: Retention,
    /// Where the job's log is. Absent: the chart's default in a cluster, ./.penstock/NAMESPACE/NAME with penstock run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(300),
            retention: Retention::default(),
            storage: None,
        }
    }
}

/// Which epochs are kept; both hold: what is younger or newer than either is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// The newest so many. Default 10.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: u32,
    /// Those of the last so long. Default 24h.
    pub duration: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            epochs: 10,
            duration: Duration::from_secs(86_400),
        }
    }
}

/// Where the job's log is; exactly one of s3, gcs, azure and local.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("storage", &["s3", "gcs", "azure", "local"])]))]
pub struct Storage {
    /// S3 or what speaks its protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Storage>,
    /// Google Cloud Storage. Refused by name in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcs: Option<GcsStorage>,
    /// Azure Blob Storage. Refused by name in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub azure: Option<AzureStorage>,
    /// A folder of this machine; refused in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalStorage>,
    /// Secret whose keys are object-store option names of the allow-list. Absent: the identity of the service account, or the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// The one store that is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StorageKind<'a> {
    /// `s3`.
    S3(&'a S3Storage),
    /// `gcs`.
    Gcs(&'a GcsStorage),
    /// `azure`.
    Azure(&'a AzureStorage),
    /// `local`.
    Local(&'a LocalStorage),
}

impl Storage {
    /// The given store; the first in the order of the schema if a manifest that was not validated gives several.
    pub fn kind(&self) -> Option<StorageKind<'_>> {
        let Self {
            s3,
            gcs,
            azure,
            local,
            secret_ref: _,
        } = self;
        s3.as_ref()
            .map(StorageKind::S3)
            .or(gcs.as_ref().map(StorageKind::Gcs))
            .or(azure.as_ref().map(StorageKind::Azure))
            .or(local.as_ref().map(StorageKind::Local))
    }
}

/// A bucket of S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Storage {
    /// The bucket.
    #[schemars(length(min = 1, max = 255))]
    pub bucket: String,
    /// Path below the bucket. Default "".
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
    /// Region. Default "": what the environment says.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub region: String,
    /// URL of another server than Amazon's. Default "".
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub endpoint: String,
    /// Whether the bucket is part of the path and not of the host name. Default false.
    #[serde(default)]
    pub path_style: bool,
}

/// A bucket of Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GcsStorage {
    /// The bucket.
    #[schemars(length(min = 1, max = 255))]
    pub bucket: String,
    /// Path below the bucket. Default "".
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
}

/// A container of Azure Blob Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AzureStorage {
    /// The storage account.
    #[schemars(length(min = 1, max = 63))]
    pub account: String,
    /// The container.
    #[schemars(length(min = 1, max = 63))]
    pub container: String,
    /// Path below the container. Default "".
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
}

/// A folder of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalStorage {
    /// The folder, made if missing; relative to where penstock runs.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}

/// How long and on what volume state is kept; at most one of volume and ephemeral.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::at_most_one_of("state", &["volume", "ephemeral"])]))]
pub struct StateSpec {
    /// State that was not written for so long is dropped. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// A persistent volume for each worker. Absent (and no ephemeral): 20Gi of the cluster's default class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// A volume that lives as long as its pod. Absent: persistent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<Ephemeral>,
}

/// A persistent volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// Size; may grow, not shrink. Default 20Gi.
    pub size: Quantity,
    /// Storage class. Default "": the cluster's.
    #[schemars(length(max = 253))]
    pub storage_class_name: String,
}

impl Default for Volume {
    fn default() -> Self {
        Self {
            size: Quantity::from_gibibytes(20),
            storage_class_name: String::new(),
        }
    }
}

/// A volume that lives as long as its pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Ephemeral {
    /// Size. Default 20Gi.
    pub size: Quantity,
}

impl Default for Ephemeral {
    fn default() -> Self {
        Self {
            size: Quantity::from_gibibytes(20),
        }
    }
}
