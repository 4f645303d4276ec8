//! The pods of a job in a cluster: their number, resources, template and autoscaling. `penstock run` reads only `slots`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Duration;

/// The pods that do the work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Workers {
    /// Number of workers; the starting count with autoscaling. Absent: 1, or what an autoscaler wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub replicas: Option<u32>,
    /// Threads of processing per worker. Default 1.
    #[schemars(range(min = 1, max = 256))]
    pub slots: u32,
    /// Percent of the container's memory limit for state, staging and exchange; 10 to 90. Default 70.
    #[schemars(range(min = 10, max = 90))]
    pub memory: u32,
    /// Image of the worker. Default "": the controller's own version.
    #[schemars(length(max = 512))]
    pub image: String,
    /// Service account of this namespace, labelled penstock.dev/allow-jobs=true. Default "": one without rights or token is made.
    #[schemars(length(max = 253))]
    pub service_account_name: String,
    /// A worker on a node that is gone for so long is given up. Default 2m.
    pub node_loss_timeout: Duration,
    /// CPU and memory of the container. Absent: the chart's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Additions to the pods, of an allow-list. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            replicas: None,
            slots: 1,
            memory: 70,
            image: String::new(),
            service_account_name: String::new(),
            node_loss_timeout: Duration::from_secs(120),
            resources: None,
            pod_template: None,
        }
    }
}

/// CPU and memory of a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What is reserved: cpu, memory, ephemeral-storage.
    pub requests: ResourceList,
    /// What may not be passed: cpu, memory, ephemeral-storage.
    pub limits: ResourceList,
}

/// Kubernetes quantities of resources.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceList {
    /// Cores: "1", "500m". Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::crd::kubernetes_quantity")]
    pub cpu: Option<IntOrText>,
    /// Bytes: 2Gi. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::crd::kubernetes_quantity")]
    pub memory: Option<IntOrText>,
    /// Bytes of scratch space: 10Gi. Absent: none.
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::crd::kubernetes_quantity")]
    pub ephemeral_storage: Option<IntOrText>,
}

/// A Kubernetes quantity as it was written: a whole number or a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrText {
    /// `2`.
    Int(i64),
    /// `500m`.
    Text(String),
}

/// Additions to the pods: an allow-list.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTemplate {
    /// Labels and annotations.
    pub metadata: PodMetadata,
    /// Where the pods run and what they mount.
    pub spec: PodSpec,
}

/// Labels and annotations of the pods; those of penstock.dev are refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMetadata {
    /// Labels. Default none.
    #[schemars(extend("maxProperties" = 64), schema_with = "crate::crd::string_map")]
    pub labels: BTreeMap<String, String>,
    /// Annotations. Default none.
    #[schemars(extend("maxProperties" = 64), schema_with = "crate::crd::string_map")]
    pub annotations: BTreeMap<String, String>,
}

/// Where the pods run and what they mount, in the words of a pod's spec.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Labels that a node must have. Default none.
    #[schemars(extend("maxProperties" = 64), schema_with = "crate::crd::string_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are borne. Default none.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<core::Toleration>,
    /// Affinity to nodes and pods. Default none.
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true), schema_with = "crate::crd::opaque_object")]
    pub affinity: core::Affinity,
    /// How pods spread over zones and nodes. Default none.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub topology_spread_constraints: Vec<core::TopologySpreadConstraint>,
    /// Priority class. Default "".
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
    /// Secrets for pulling the image. Default none.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub image_pull_secrets: Vec<core::LocalObjectReference>,
    /// Environment; LD_*, PENSTOCK_* and cloud credentials are refused. Default none.
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub env: Vec<core::EnvVar>,
    /// Volumes; configMap, secret, emptyDir, projected and persistentVolumeClaim only. Default none.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub volumes: Vec<PodVolume>,
    /// Where the volumes are mounted. Default none.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub volume_mounts: Vec<core::VolumeMount>,
}

/// A volume of the allow-list.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodVolume {
    /// Name, for volumeMounts.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// A ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<core::ConfigMapVolumeSource>,
    /// A Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<core::SecretVolumeSource>,
    /// An empty folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<core::EmptyDirVolumeSource>,
    /// Several of them in one folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<core::ProjectedVolumeSource>,
    /// A claim of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<core::PersistentVolumeClaimVolumeSource>,
}

/// Whether the number of workers follows the lag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Autoscaling {
    /// Disabled (default). DryRun: decisions are written to status and metrics only. Active: they are carried out.
    pub mode: AutoscalingMode,
    /// Never fewer workers. Default 1.
    #[schemars(range(min = 1, max = 1024))]
    pub min_replicas: u32,
    /// Never more workers; required unless Disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_replicas: Option<u32>,
    /// Lag that counts as caught up. Default 30s.
    pub target_lag: Duration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            mode: AutoscalingMode::Disabled,
            min_replicas: 1,
            max_replicas: None,
            target_lag: Duration::from_secs(30),
        }
    }
}

/// What the autoscaler may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum AutoscalingMode {
    #[default]
    Disabled,
    DryRun,
    Active,
}
