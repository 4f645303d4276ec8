//! Topics of a Kafka cluster. A split is `topic/partition`, a position is an offset. Offsets live in the job's log; the consumer
//! group only shows them. Isolation is `read_committed`; an offset that the broker no longer has is never replaced by another.

mod client;
mod enumerator;
mod ffi;
mod reader;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_crds::source::{KafkaSource as Spec, StartFromKind};

use super::decode::DecodePlan;
use super::{Source, SourceEnumerator, SourceReader, SplitId};
use crate::error::{EngineError, Result};

/// Which topics are read.
#[derive(Debug, Clone)]
pub enum Topics {
    Named(Vec<String>),
    /// Matches whole names.
    Matching(regex::Regex),
}

/// Where a partition starts in the job's first epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAt {
    Earliest,
    Latest,
    /// Milliseconds since the epoch.
    Time(i64),
    /// By topic and partition; others start at the earliest.
    Offsets(BTreeMap<(String, i32), i64>),
    /// The committed offsets of this group; partitions without one start at the earliest.
    Group(String),
}

/// What to read.
#[derive(Debug, Clone)]
pub struct KafkaSourceConfig {
    /// Name of the source, for messages.
    pub name: String,
    pub bootstrap_servers: String,
    pub topics: Topics,
    pub start: StartAt,
    pub stop_at_ms: Option<i64>,
    pub group_id: String,
    /// Of the allow-list; what the secret holds included.
    pub properties: BTreeMap<String, String>,
    pub plan: DecodePlan,
}

impl KafkaSourceConfig {
    /// `group_id`: taken where the manifest gives none. `secret`: names and values of the mounted secret.
    pub fn from_spec(
        name: &str,
        spec: &Spec,
        plan: DecodePlan,
        group_id: &str,
        secret: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let topics = match &spec.topic_pattern {
            Some(pattern) => {
                let whole = format!("^(?:{pattern})$");
                Topics::Matching(regex::Regex::new(&whole).map_err(|e| {
                    let object = format!("source {name}");
                    EngineError::invalid("PS0042", object, "topicPattern is no pattern").caused_by(e)
                })?)
            }
            None => Topics::Named(spec.topics.clone()),
        };
        let start = match spec.start_from.kind() {
            StartFromKind::Earliest => StartAt::Earliest,
            StartFromKind::Latest => StartAt::Latest,
            StartFromKind::Timestamp(at) => StartAt::Time(at.epoch_millis()),
            StartFromKind::Offsets(given) => StartAt::Offsets(
                given.iter().map(|o| ((o.topic.clone(), o.partition), o.offset)).collect(),
            ),
            StartFromKind::Group(group) => StartAt::Group(group.to_owned()),
        };
        let group_id = if spec.group_id.is_empty() { group_id } else { &spec.group_id };
        let mut properties = spec.properties.clone();
        properties.extend(secret.clone());
        Ok(Self {
            name: name.to_owned(),
            bootstrap_servers: spec.bootstrap_servers.clone(),
            topics,
            start,
            stop_at_ms: spec.stop_at.as_ref().map(|stop| stop.timestamp.epoch_millis()),
            group_id: group_id.to_owned(),
            properties,
            plan,
        })
    }

    fn object(&self) -> String {
        format!("source {}", self.name)
    }
}

/// A source of topics.
#[derive(Debug, Clone)]
pub struct KafkaSource {
    config: Arc<KafkaSourceConfig>,
}

impl KafkaSource {
    /// Speaks to no broker yet.
    pub fn new(config: KafkaSourceConfig) -> Self {
        Self {
            config: Arc::new(config),
        }
    }
}

impl Source for KafkaSource {
    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(reader::Reader::new(Arc::clone(&self.config))?))
    }

    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>> {
        Ok(Box::new(enumerator::Enumerator::new(Arc::clone(&self.config))?))
    }
}

fn join(topic: &str, partition: i32) -> SplitId {
    SplitId(format!("{topic}/{partition}").into())
}

/// Topic names have no slash.
fn split_of(split: &SplitId) -> Option<(&str, i32)> {
    let (topic, partition) = split.0.rsplit_once('/')?;
    Some((topic, partition.parse().ok()?))
}
