//! Sinks: where results go, with what guarantee and in what mode.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::format::Format;
use crate::source::SecretRef;
use crate::units::{Duration, Quantity};

/// Where results go: the target of an INSERT, or of dead letters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("sink", &["kafka", "files", "print"])]))]
pub struct Sink {
    /// Name in SQL; letters, digits and underscores, not starting with a digit; at most 40 characters.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// A topic of a Kafka cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSink>,
    /// Files in a local folder or an object store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesSink>,
    /// Standard output, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub print: Option<PrintSink>,
    /// How bodies are written; required for kafka and files, json for print.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// ExactlyOnce or AtLeastOnce (rows leave at once, milliseconds of latency). Absent: the most that the sink can give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// Append (default): final rows. Update: changed rows, once per epoch, or with delivery AtLeastOnce as soon as the input has run dry. Complete: the whole result per epoch.
    #[serde(default)]
    pub output_mode: OutputMode,
    /// Key of the result, for Update and Complete where the plan cannot infer it. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    pub primary_key: Vec<String>,
    /// Complete is refused above so many rows. Default 100000.
    #[serde(default = "default_max_complete_rows")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_complete_rows: u64,
    /// Fixed logical writers, whatever the number of workers; divides keyGroups; fixed for the job's life. Default 8.
    #[serde(default = "default_shards")]
    #[schemars(range(min = 1, max = 1024))]
    pub shards: u32,
}

fn default_max_complete_rows() -> u64 {
    100_000
}

fn default_shards() -> u32 {
    8
}

/// The one connector of a sink that is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SinkKind<'a> {
    /// `kafka`.
    Kafka(&'a KafkaSink),
    /// `files`.
    Files(&'a FilesSink),
    /// `print`.
    Print(&'a PrintSink),
}

impl SinkKind<'_> {
    /// The most that this kind of sink can give.
    pub fn strongest_delivery(&self) -> Delivery {
        match self {
            Self::Kafka(_) | Self::Files(_) => Delivery::ExactlyOnce,
            Self::Print(_) => Delivery::AtLeastOnce,
        }
    }
}

impl Sink {
    /// The given connector; the first in the order of the schema if a manifest that was not validated gives several.
    pub fn kind(&self) -> Option<SinkKind<'_>> {
        self.kafka
            .as_ref()
            .map(SinkKind::Kafka)
            .or(self.files.as_ref().map(SinkKind::Files))
            .or(self.print.as_ref().map(SinkKind::Print))
    }

    /// The guarantee in force: what is asked for, else the most that the sink can give.
    pub fn effective_delivery(&self) -> Delivery {
        let strongest = self
            .kind()
            .map_or(Delivery::AtLeastOnce, |kind| kind.strongest_delivery());
        self.delivery.unwrap_or(strongest)
    }
}

/// A topic of a Kafka cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSink {
    /// Comma-separated host:port of brokers to ask first.
    #[schemars(length(min = 1, max = 2048))]
    pub bootstrap_servers: String,
    /// The topic.
    #[schemars(length(min = 1, max = 249))]
    pub topic: String,
    /// Columns of which the record's key is made: a JSON object of them. Default none: no key (Append), primaryKey (Update, Complete).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    pub key_columns: Vec<String>,
    /// Key (default): the partition that Java clients' murmur2 gives the key. RoundRobin: in turn.
    #[serde(default)]
    pub partition_by: PartitionBy,
    /// lz4 (default), zstd, snappy, gzip or none.
    #[serde(default)]
    pub compression: KafkaCompression,
    /// Secret whose keys are librdkafka property names of the allow-list, mounted as files. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// librdkafka properties of the allow-list that are no secrets. Default none.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 100), schema_with = "crate::crd::string_map")]
    pub properties: BTreeMap<String, String>,
    /// Compacted topic of the exactly-once markers. Default penstock.markers.LOGID, made by the job.
    #[serde(default)]
    #[schemars(length(max = 249))]
    pub marker_topic: String,
}

/// How rows are spread over partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PartitionBy {
    #[default]
    Key,
    RoundRobin,
}

/// Compression of record batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KafkaCompression {
    #[default]
    Lz4,
    Zstd,
    Snappy,
    Gzip,
    None,
}

impl KafkaCompression {
    /// The value of librdkafka's `compression.codec`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

/// Files in a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesSink {
    /// Folder: s3://bucket/prefix/ or file:///path/ (file:// is refused in a cluster; a relative file://./path is taken from where penstock runs).
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Columns whose values become folders column=value, outermost first. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    pub partition_by: Vec<String>,
    /// A file is complete at this size. Default 128Mi.
    #[serde(default = "default_roll_size")]
    pub roll_size: Quantity,
    /// A file is complete at this age, at the next epoch's end. Default 10m.
    #[serde(default = "default_roll_interval")]
    pub roll_interval: Duration,
    /// Secret whose keys are object-store option names of the allow-list. Absent: the environment's credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

fn default_roll_size() -> Quantity {
    Quantity::from_mebibytes(128)
}

fn default_roll_interval() -> Duration {
    Duration::from_secs(600)
}

/// Standard output; no options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PrintSink {}

/// The guarantee of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Delivery {
    ExactlyOnce,
    AtLeastOnce,
}

/// Which rows of a result leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OutputMode {
    #[default]
    Append,
    Update,
    Complete,
}
