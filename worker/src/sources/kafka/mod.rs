//! Kafka as a source: its configuration and the making of readers and the enumerator. Reading is `reader`'s, partitions and
//! ends are `enumerator`'s, the native calls that rdkafka does not wrap are `ffi`'s.

mod enumerator;
mod ffi;
mod reader;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use penstock_crds::source::{StartFrom, TransportField};

pub use crate::kafka::client_properties;

use super::{Source, SourceEnumerator, SourceReader, SplitId};
use crate::error::Result;
use crate::formats::Decoder;

/// Makes a decoder of the body columns: the decode schema without the transport columns, in its order.
pub type DecoderFactory = Box<dyn Fn() -> Result<Box<dyn Decoder>> + Send + Sync>;

/// Which topics are read.
#[derive(Debug, Clone)]
pub enum Topics {
    Named(Vec<String>),
    /// Names that match as a whole; topics whose name starts with `__` are Kafka's own and never match.
    Pattern(String),
}

/// Everything that a Kafka source needs to know.
#[derive(Debug, Clone)]
pub struct KafkaSourceConfig {
    /// The source's name, for errors and logs.
    pub name: String,
    /// Of [`client_properties`].
    pub client: BTreeMap<String, String>,
    pub topics: Topics,
    pub start_from: StartFrom,
    /// Ends before the first record at or after this instant.
    pub stop_at_ms: Option<i64>,
    /// Never empty: `penstock.<namespace>.<name>` where the manifest gives none.
    pub group_id: String,
    /// The decode schema: body columns and transport columns.
    pub schema: SchemaRef,
    /// Column of `schema` and what it takes from the transport; ascending by column.
    pub transport: Vec<(usize, TransportField)>,
    /// Batches carry the records' own bytes.
    pub keep_raw: bool,
}

/// A Kafka source.
pub struct KafkaSource {
    config: Arc<KafkaSourceConfig>,
    decoder: DecoderFactory,
}

impl KafkaSource {
    pub fn new(config: KafkaSourceConfig, decoder: DecoderFactory) -> Self {
        Self {
            config: Arc::new(config),
            decoder,
        }
    }
}

impl Source for KafkaSource {
    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        let decoder = (self.decoder)()?;
        let config = Arc::clone(&self.config);
        Ok(Box::new(reader::KafkaReader::new(config, decoder)?))
    }

    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>> {
        let config = Arc::clone(&self.config);
        Ok(Box::new(enumerator::KafkaEnumerator::new(config)?))
    }
}

impl KafkaSourceConfig {
    fn object(&self) -> String {
        format!("source {}", self.name)
    }

    /// `owned` of every consumer of the source: committed rows only, nothing behind our back.
    fn consumer(&self, group: &str, eof: bool) -> rdkafka::ClientConfig {
        crate::kafka::client_config(
            &[
                ("queued.max.messages.kbytes", "32768"),
                ("queued.min.messages", "50000"),
                ("fetch.wait.max.ms", "100"),
                ("fetch.message.max.bytes", "1048576"),
                ("fetch.queue.backoff.ms", "10"),
                ("fetch.error.backoff.ms", "100"),
                ("check.crcs", "true"),
            ],
            &self.client,
            &[
                ("group.id", group),
                ("isolation.level", "read_committed"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("auto.offset.reset", "error"),
                ("enable.partition.eof", if eof { "true" } else { "false" }),
                ("allow.auto.create.topics", "false"),
            ],
        )
    }
}

/// `topic/partition`. A topic's name has no slash.
pub(crate) fn split_id(topic: &str, partition: i32) -> SplitId {
    SplitId(format!("{topic}/{partition}").into())
}

/// The other way; `None` for what is no Kafka split.
pub(crate) fn parse_split(split: &SplitId) -> Option<(&str, i32)> {
    let (topic, partition) = split.0.rsplit_once('/')?;
    Some((topic, partition.parse().ok()?))
}
