//! The marker of an exactly-once shard: a record in a partition of its own, committed with the rows it speaks of. Owns its
//! bytes and the reading of the partition's end; what a marker decides is the caller's.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{EngineError, Result};
use crate::kafka::{self, Logged};
use crate::sinks::Marker;

const CODE: &str = "PR0210";
const ASK: Duration = Duration::from_secs(10);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Key<'a> {
    log_id: &'a str,
    sink: &'a str,
    shard: u16,
}

#[derive(Serialize, Deserialize)]
struct Value {
    epoch: u64,
    chunk: u32,
    nonce: u64,
}

pub(super) fn key(log_id: &str, sink: &str, shard: u16) -> Vec<u8> {
    serde_json::to_vec(&Key {
        log_id,
        sink,
        shard,
    })
    .expect("text and a number are JSON")
}

pub(super) fn value(marker: Marker) -> Vec<u8> {
    let Marker {
        epoch,
        chunk,
        nonce,
    } = marker;
    serde_json::to_vec(&Value {
        epoch,
        chunk,
        nonce,
    })
    .expect("numbers are JSON")
}

/// The newest marker with this key, from the partition's end backwards in doubling steps: the end holds little else.
/// Blocks; gives up at `deadline`. Right only after `init_transactions` of the shard's producer.
pub(super) fn read(
    consumer: &BaseConsumer<Logged>,
    object: &str,
    (topic, partition): (&str, i32),
    key: &[u8],
    deadline: Instant,
) -> Result<Option<Marker>> {
    let failed = |e| consumer.context().failed("PR0209", "reading the marker", e);
    let (low, end) = consumer
        .fetch_watermarks(topic, partition, ASK)
        .inspect_err(|_| kafka::listen(consumer))
        .map_err(failed)?;
    kafka::meet(consumer, topic);
    let mut step = 16;
    let mut before = end;
    while before > low {
        let from = low.max(end - step);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))
            .map_err(failed)?;
        consumer.assign(&list).map_err(failed)?;
        let found = newest(consumer, key, before, deadline).map_err(failed)?;
        if let Some(bytes) = found {
            let Value {
                epoch,
                chunk,
                nonce,
            } = serde_json::from_slice(&bytes).map_err(|e| {
                let text = format!("the marker in {topic}/{partition} cannot be read");
                EngineError::invalid(CODE, object, text).caused_by(e)
            })?;
            return Ok(Some(Marker {
                epoch,
                chunk,
                nonce,
            }));
        }
        before = from;
        step *= 2;
    }
    Ok(None)
}

/// The last value with this key in front of offset `before`, from where the consumer is assigned.
fn newest(
    consumer: &BaseConsumer<Logged>,
    key: &[u8],
    before: i64,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, KafkaError> {
    let mut found = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(KafkaError::MessageConsumption(
                rdkafka::types::RDKafkaErrorCode::OperationTimedOut,
            ));
        }
        match consumer.poll(left.min(Duration::from_millis(100))) {
            None => {}
            Some(Ok(message)) if message.offset() >= before => return Ok(found),
            Some(Ok(message)) if message.key() == Some(key) => {
                found = message.payload().map(<[u8]>::to_vec);
            }
            // Another shard's or another job's.
            Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(found),
            Some(Err(e)) => match e.rdkafka_error_code() {
                // Of a broker that comes back; the client tries on.
                Some(code)
                    if !kafka::refused(code)
                        && code != rdkafka::types::RDKafkaErrorCode::AutoOffsetReset => {}
                _ => return Err(e),
            },
        }
    }
}
