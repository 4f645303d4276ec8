//! Kafka as a sink: its configuration, the target's preparation, and the making of encoders and publishers. Records are laid
//! out by `encoder`, put out exactly once by `publisher` with the marker of `marker`, or at once by `direct`; the native
//! call that rdkafka makes costly is `ffi`'s.

mod direct;
mod encoder;
mod ffi;
mod marker;
mod publisher;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use penstock_crds::sink::{KafkaCompression, OutputMode, PartitionBy};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};

pub use crate::kafka::client_properties;

use super::{
    DirectSender, Guarantee, Record, ShardPublisher, Sink, SinkEncoder, StagedRecords, staged,
};
use crate::error::{EngineError, Result};
use crate::formats::Encoder;
use crate::kafka::{self, Logged};

const CODE: &str = "PR0209";
const ASK: Duration = Duration::from_secs(15);
/// How long a topic just made may take until brokers tell of it.
const APPEAR: Duration = Duration::from_secs(30);

/// Makes an encoder; it is bound to batches of the sink's schema (values) or of the key columns alone (keys).
pub type EncoderFactory = Box<dyn Fn() -> Result<Box<dyn Encoder>> + Send + Sync>;

/// Everything that a Kafka sink needs to know.
#[derive(Debug, Clone)]
pub struct KafkaSinkConfig {
    /// The sink's name, for errors and logs, the marker's key and the transactional id.
    pub name: String,
    pub log_id: String,
    /// Of [`client_properties`].
    pub client: BTreeMap<String, String>,
    pub topic: String,
    pub guarantee: Guarantee,
    pub mode: OutputMode,
    /// Columns of the sink's rows of which the record's key is made: keyColumns (Append) or primaryKey (Update, Complete).
    pub key_columns: Vec<usize>,
    /// Columns that choose the shard; empty: the rows' origin does. Rows that are equal in them keep their order.
    pub shard_columns: Vec<usize>,
    pub partition_by: PartitionBy,
    pub compression: KafkaCompression,
    /// Number of shards; divides `key_groups`.
    pub shards: u16,
    pub key_groups: u16,
    /// Empty: `penstock.markers.<logId>`.
    pub marker_topic: String,
    /// Partitions that the marker topic must have: every one allotted in the log.
    pub marker_partitions: i32,
}

/// A Kafka sink.
pub struct KafkaSink {
    config: Arc<KafkaSinkConfig>,
    value: EncoderFactory,
    key: EncoderFactory,
    /// Partitions of the target, once `prepare` has asked; 0 before.
    partitions: Arc<AtomicI32>,
}

impl KafkaSink {
    /// `value` writes bodies; `key` writes the JSON object of the key columns.
    pub fn new(mut config: KafkaSinkConfig, value: EncoderFactory, key: EncoderFactory) -> Self {
        if config.marker_topic.is_empty() {
            config.marker_topic = format!("penstock.markers.{}", config.log_id);
        }
        Self {
            config: Arc::new(config),
            value,
            key,
            partitions: Arc::default(),
        }
    }
}

impl KafkaSinkConfig {
    fn object(&self) -> String {
        format!("sink {}", self.name)
    }

    fn producer(&self, owned: &[(&str, &str)]) -> ClientConfig {
        let mut all = vec![
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("compression.codec", self.compression.as_str()),
            ("partitioner", "murmur2_random"),
            // Failures alone are reported: a report per record would be the most costly part of producing.
            ("delivery.report.only.error", "true"),
            ("allow.auto.create.topics", "false"),
        ];
        all.extend_from_slice(owned);
        kafka::client_config(
            &[
                ("linger.ms", "5"),
                ("batch.size", "1000000"),
                ("batch.num.messages", "100000"),
                ("queue.buffering.max.messages", "0"),
                ("queue.buffering.max.kbytes", "131072"),
                ("message.max.bytes", "10485760"),
                // Back-to-back transactions wait this out.
                ("retry.backoff.ms", "15"),
                ("retry.backoff.max.ms", "500"),
            ],
            &self.client,
            &all,
        )
    }

    /// A consumer of committed records, for the marker.
    fn consumer(&self) -> ClientConfig {
        let mut client = self.client.clone();
        // What a producer may be told, and a consumer does not know.
        client.retain(|name, _| !PRODUCER_ONLY.contains(&name.as_str()));
        kafka::client_config(
            &[
                ("fetch.wait.max.ms", "50"),
                ("queued.max.messages.kbytes", "4096"),
            ],
            &client,
            &[
                // Never joined and nothing is committed to it; the client wants a name to assign partitions at all.
                ("group.id", &format!("penstock.markers.{}", self.log_id)),
                ("isolation.level", "read_committed"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("auto.offset.reset", "error"),
                ("enable.partition.eof", "true"),
                ("allow.auto.create.topics", "false"),
            ],
        )
    }
}

const PRODUCER_ONLY: &[&str] = &[
    "linger.ms",
    "queue.buffering.max.ms",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "batch.size",
    "batch.num.messages",
    "compression.level",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "request.timeout.ms",
    "retries",
    "message.send.max.retries",
    "sticky.partitioning.linger.ms",
];

#[async_trait]
impl Sink for KafkaSink {
    fn guarantee(&self) -> Guarantee {
        self.config.guarantee
    }

    fn shards(&self) -> u16 {
        self.config.shards
    }

    async fn prepare(&self) -> Result<()> {
        let object = self.config.object();
        // A producer and not an admin client, which tells nobody why it has no connection.
        let asker: BaseProducer<Logged> = self
            .config
            .producer(&[])
            .create_with_context(Logged::new(&object, &self.config.client))
            .map_err(|e| kafka::error(CODE, &object, "making a client", e))?;
        let asker = Arc::new(asker);
        let outcome = self.prepare_with(&asker).await;
        kafka::abandon(asker);
        outcome
    }

    fn encoder(&self) -> Result<Box<dyn SinkEncoder>> {
        let key = if self.config.key_columns.is_empty() {
            None
        } else {
            Some((self.key)()?)
        };
        Ok(Box::new(encoder::KafkaEncoder::new(
            Arc::clone(&self.config),
            (self.value)()?,
            key,
            Arc::clone(&self.partitions),
        )))
    }

    fn stage_record(&self, record: &Record, out: &mut StagedRecords) {
        let partitions = self.partitions.load(Ordering::Relaxed);
        let to = encoder::partition(&self.config, record.key.as_deref(), partitions);
        staged::stage(record, to, out);
    }

    fn publisher(&self, shard: u16, partition: i32) -> Result<Box<dyn ShardPublisher>> {
        let config = Arc::clone(&self.config);
        Ok(Box::new(publisher::KafkaPublisher::new(
            config, shard, partition,
        )))
    }

    fn settings(&self) -> u64 {
        let mut text = Vec::new();
        for (name, value) in &self.config.client {
            text.extend_from_slice(name.as_bytes());
            text.push(0);
            text.extend_from_slice(value.as_bytes());
            text.push(0);
        }
        xxhash_rust::xxh3::xxh3_64(&text)
    }

    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        Ok(Box::new(direct::KafkaDirect::new(&self.config)?))
    }
}

impl KafkaSink {
    async fn prepare_with(&self, asker: &Arc<BaseProducer<Logged>>) -> Result<()> {
        let Self { config, .. } = self;
        let object = config.object();
        match count(asker, &object, &config.topic).await? {
            Some(n) => self.partitions.store(n, Ordering::Relaxed),
            None => {
                let text = format!("topic {} does not exist", config.topic);
                return Err(EngineError::fail(CODE, object, text));
            }
        }
        if config.guarantee == Guarantee::AtLeastOnce {
            return Ok(());
        }
        let topic = config.marker_topic.as_str();
        let wanted = config.marker_partitions.max(1);
        let options = AdminOptions::new()
            .request_timeout(Some(ASK))
            .operation_timeout(Some(ASK));
        let found = count(asker, &object, topic).await?;
        if found.is_some_and(|n| n >= wanted) {
            return Ok(());
        }
        let admin: AdminClient<Logged> = config
            .producer(&[])
            .create_with_context(Logged::new(&object, &config.client))
            .map_err(|e| kafka::error(CODE, &object, "making a client", e))?;
        let answers = match found {
            None => {
                // -1: the brokers' own default.
                let new = NewTopic::new(topic, wanted, TopicReplication::Fixed(-1))
                    .set("cleanup.policy", "compact");
                admin.create_topics([&new], &options).await
            }
            Some(_) => {
                let more = NewPartitions::new(topic, wanted as usize);
                admin.create_partitions([&more], &options).await
            }
        };
        kafka::abandon(admin);
        let doing = format!("making the marker topic {topic}");
        for answer in answers.map_err(|e| kafka::error(CODE, &object, &doing, e))? {
            match answer {
                // Of two at once, one is told that it came late; who asks for more partitions than another, likewise.
                Ok(_)
                | Err((
                    _,
                    RDKafkaErrorCode::TopicAlreadyExists | RDKafkaErrorCode::InvalidPartitions,
                )) => {}
                Err((_, code)) => {
                    return Err(kafka::error(
                        CODE,
                        &object,
                        &doing,
                        KafkaError::AdminOp(code),
                    ));
                }
            }
        }
        let appeared = async {
            while count(asker, &object, topic)
                .await?
                .is_none_or(|n| n < wanted)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(APPEAR, appeared).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let text =
                    format!("the marker topic {topic} does not come to have {wanted} partitions");
                Err(EngineError::retry(CODE, &object, text))
            }
        }
    }
}

/// Number of a topic's partitions; `None`: there is no such topic.
async fn count(
    asker: &Arc<BaseProducer<Logged>>,
    object: &str,
    topic: &str,
) -> Result<Option<i32>> {
    let (asker, name) = (Arc::clone(asker), topic.to_owned());
    let doing = format!("asking for topic {topic}");
    let said = doing.clone();
    let asked = tokio::task::spawn_blocking(move || {
        ask_count(&asker, &name).map_err(|e| asker.context().failed(CODE, &said, e))
    });
    match tokio::time::timeout(ASK * 2, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            Err(EngineError::retry(CODE, object, format!("{doing} ended early")).caused_by(e))
        }
        Err(_) => Err(EngineError::retry(
            CODE,
            object,
            format!("{doing} took too long"),
        )),
    }
}

fn ask_count(asker: &BaseProducer<Logged>, name: &str) -> Result<Option<i32>, KafkaError> {
    let metadata = asker.context().ask(
        ASK,
        || kafka::hear(asker),
        |time| asker.client().fetch_metadata(Some(name), time),
    )?;
    let Some(topic) = metadata.topics().iter().find(|t| t.name() == name) else {
        return Ok(None);
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        None => Ok(i32::try_from(topic.partitions().len()).ok()),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Ok(None)
        }
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}
