//! Reads a topic to its end and does nothing with it: what the client library alone costs, which no engine on it can go below.
#![allow(unsafe_code)]

use std::ptr;

use anyhow::{Context, Result, ensure};
use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka;

/// Records taken by one call.
const BATCH: usize = 4096;

/// Reads every record of `topic` once; answers how many there were and how many bytes of values.
pub fn drain(brokers: &str, topic: &str) -> Result<(u64, u64)> {
    let consumer: BaseConsumer = kafka::config(brokers)
        .set("group.id", "drain")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        // As the engine sets them.
        .set("queued.min.messages", "50000")
        .set("queued.max.messages.kbytes", "32768")
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.queue.backoff.ms", "10")
        .set("check.crcs", "true")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), kafka::PATIENCE)?;
    let partitions = metadata.topics().first().context("no such topic")?;
    let mut list = TopicPartitionList::new();
    for partition in partitions.partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut open, mut records, mut bytes) = (list.count(), 0, 0);
    ensure!(open > 0, "the topic has no partitions");
    let mut taken = [ptr::null_mut(); BATCH];
    // SAFETY: the client outlives the queue; `taken` has room for as many messages, each of which is destroyed once.
    unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr());
        ensure!(!queue.is_null(), "the consumer has no queue");
        while open > 0 {
            let n = sys::rd_kafka_consume_batch_queue(queue, 100, taken.as_mut_ptr(), BATCH);
            for message in &taken[..usize::try_from(n).unwrap_or(0)] {
                match (**message).err {
                    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        records += 1;
                        bytes += (**message).len as u64;
                    }
                    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => open -= 1,
                    _ => {}
                }
                sys::rd_kafka_message_destroy(*message);
            }
        }
        sys::rd_kafka_queue_destroy(queue);
    }
    Ok((records, bytes))
}
