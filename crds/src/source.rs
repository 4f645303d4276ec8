//! Sources: where rows come from, their event time, and what becomes of bad and late rows.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::column::{
    Choice, Column, Constant, Generate, GenerateKind, Random, RandomText, Scalar, Sequence,
    TransportField,
};
use crate::format::{Empty, Format};
use crate::units::{Duration, Timestamp};

/// Where rows come from: one table of the SQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("source", &["kafka", "files", "generator"])]))]
pub struct Source {
    /// Name of the table in SQL; letters, digits and underscores, not starting with a digit; at most 40 characters.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// Topics of a Kafka cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSource>,
    /// Files of a local folder or an object store, each read once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesSource>,
    /// Rows made from a seed, for trying and testing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorSource>,
    /// How bodies are read; required for kafka and files, refused for generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The columns of the table, in their order; at least one.
    #[schemars(length(min = 1, max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub columns: Vec<Column>,
    /// Which column is event time and how far out of order it may be. Absent: no event time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark: Option<WatermarkSpec>,
    /// What becomes of a row that cannot be read: Fail (default) stops the job, Skip counts it, DeadLetter keeps it in the sink of `deadLetters`.
    #[serde(default)]
    pub on_error: OnError,
    /// What becomes of a row behind the watermark: Drop (default) counts it, DeadLetter keeps it in the sink of `deadLetters`.
    #[serde(default)]
    pub on_late: OnLate,
    /// Name of the sink that takes dead letters, with format raw or json; required by the two DeadLetter values.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub dead_letters: Option<String>,
    /// Stops the job when more than this share of rows is wrong. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_above: Option<FailAbove>,
    /// Bounds of what an epoch may read. Absent: unbounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// The one connector of a source that is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SourceKind<'a> {
    /// `kafka`.
    Kafka(&'a KafkaSource),
    /// `files`.
    Files(&'a FilesSource),
    /// `generator`.
    Generator(&'a GeneratorSource),
}

impl Source {
    /// The given connector; the first in the order of the schema if a manifest that was not validated gives several.
    pub fn kind(&self) -> Option<SourceKind<'_>> {
        self.kafka
            .as_ref()
            .map(SourceKind::Kafka)
            .or(self.files.as_ref().map(SourceKind::Files))
            .or(self.generator.as_ref().map(SourceKind::Generator))
    }
}

/// Topics of a Kafka cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSource {
    /// Comma-separated host:port of brokers to ask first.
    #[schemars(length(min = 1, max = 2048))]
    pub bootstrap_servers: String,
    /// Topics by name; exactly one of topics and topicPattern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 249)), extend("x-kubernetes-list-type" = "set"))]
    pub topics: Vec<String>,
    /// A regular expression that whole topic names match; topics that appear later are read too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub topic_pattern: Option<String>,
    /// Where partitions start of which the job's log knows no position. Default {earliest: {}}.
    #[serde(default)]
    pub start_from: StartFrom,
    /// Ends the source there, for a backfill of a range. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<StopAt>,
    /// Consumer group under which offsets are shown to people's lag tools, never read. Default penstock.NAMESPACE.NAME.
    #[serde(default)]
    #[schemars(length(max = 249))]
    pub group_id: String,
    /// Secret whose keys are librdkafka property names of the allow-list, mounted as files. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// librdkafka properties of the allow-list that are no secrets. Default none.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 100), schema_with = "crate::crd::string_map")]
    pub properties: BTreeMap<String, String>,
}

/// Where a partition starts of which the log knows no position; exactly one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("startFrom", &["earliest", "latest", "timestamp", "offsets", "group"])]))]
pub struct StartFrom {
    /// The earliest record that the topic holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earliest: Option<Empty>,
    /// The end of the topic at the job's first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest: Option<Empty>,
    /// The first record at or after this instant (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// These offsets; partitions that are not named start at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10000), extend("x-kubernetes-list-type" = "atomic"))]
    pub offsets: Option<Vec<TopicOffset>>,
    /// The committed offsets of this consumer group, read once; partitions without one start at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub group: Option<String>,
}

impl Default for StartFrom {
    fn default() -> Self {
        Self {
            earliest: Some(Empty {}),
            latest: None,
            timestamp: None,
            offsets: None,
            group: None,
        }
    }
}

/// The one member of `StartFrom` that is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StartFromKind<'a> {
    /// `earliest`.
    Earliest,
    /// `latest`.
    Latest,
    /// `timestamp`.
    Timestamp(Timestamp),
    /// `offsets`.
    Offsets(&'a [TopicOffset]),
    /// `group`.
    Group(&'a str),
}

impl StartFrom {
    /// The given member; `Earliest` if none is.
    pub fn kind(&self) -> StartFromKind<'_> {
        let Self {
            earliest: _,
            latest,
            timestamp,
            offsets,
            group,
        } = self;
        if latest.is_some() {
            StartFromKind::Latest
        } else if let Some(instant) = timestamp {
            StartFromKind::Timestamp(*instant)
        } else if let Some(offsets) = offsets {
            StartFromKind::Offsets(offsets)
        } else if let Some(group) = group {
            StartFromKind::Group(group)
        } else {
            StartFromKind::Earliest
        }
    }
}

/// A position in a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopicOffset {
    /// The topic.
    #[schemars(length(min = 1, max = 249))]
    pub topic: String,
    /// The partition, from 0.
    #[schemars(range(min = 0))]
    pub partition: i32,
    /// The offset of the first record to read, from 0.
    #[schemars(range(min = 0))]
    pub offset: i64,
}

/// Where a source ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StopAt {
    /// Before the first record at or after this instant (RFC 3339).
    pub timestamp: Timestamp,
}

/// A Secret of the job's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Files of a folder, each read once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesSource {
    /// Folder: s3://bucket/prefix/ or file:///path/ (file:// is refused in a cluster; a relative file://./path is taken from where penstock runs).
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Glob that names of files below the folder match; compression (.gz, .zst) goes by suffix. Default "*".
    #[serde(default = "any_file")]
    #[schemars(length(min = 1, max = 1024))]
    pub pattern: String,
    /// How often the folder is listed for new files. Default 10s.
    #[serde(default = "ten_seconds")]
    pub discover_interval: Duration,
    /// Secret whose keys are object-store option names of the allow-list. Absent: the environment's credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

fn any_file() -> String {
    "*".to_owned()
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

/// Rows made from a seed; columns say how by `generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GeneratorSource {
    /// Rows made each second; 0 means as fast as possible. Default 1000.
    pub rows_per_second: u64,
    /// Ends after so many rows. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The same seed makes the same rows. Default 1.
    pub seed: u64,
}

impl Default for GeneratorSource {
    fn default() -> Self {
        Self {
            rows_per_second: 1000,
            rows: None,
            seed: 1,
        }
    }
}

/// Which column is event time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatermarkSpec {
    /// A column of type TIMESTAMP or TIMESTAMP_LTZ.
    #[schemars(length(min = 1, max = 128))]
    pub column: String,
    /// How far behind the greatest event time a row may be. Required; 0s means in order.
    pub max_out_of_orderness: Duration,
    /// A split that had no row for so long, its end reached, does not hold the watermark back. Absent: it always does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
}

/// What becomes of a row that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnError {
    #[default]
    Fail,
    Skip,
    DeadLetter,
}

/// What becomes of a row behind the watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnLate {
    #[default]
    Drop,
    DeadLetter,
}

/// Stops the job when too many rows are wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailAbove {
    /// The share of wrong rows that is still borne, in percent: 0 to 100.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// Over which time. Default 5m.
    #[serde(default = "five_minutes")]
    pub window: Duration,
    /// Judged from so many rows in the window on. Default 1000.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1))]
    pub min_rows: u64,
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn thousand() -> u64 {
    1000
}

/// Bounds of what an epoch may read; 0 means unbounded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Rows of a planned epoch. Default 0.
    pub max_rows_per_epoch: u64,
    /// Files of a planned epoch. Default 0.
    pub max_files_per_epoch: u64,
    /// Rows each second, of any epoch. Default 0.
    pub max_rows_per_second: u64,
}
