//! One subtask's reader: partitions are assigned by hand, records come in batches and are decoded where librdkafka has them.
//!
//! A range is done when the *position* reaches its end: by a record at or behind it, or by the end-of-partition event, whose
//! offset lies behind control records that never arrive. A partition whose range is done is paused, so that it
//! prefetches nothing; a later end seeks back to the position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Notify;

use super::ffi::BatchConsumer;
use super::{KafkaSourceConfig, client, join, split_of};
use crate::error::{EngineError, Result};
use crate::sources::decode::{BatchAssembler, Record};
use crate::sources::ranges::Ranges;
use crate::sources::{Polled, Position, SourceReader, SplitId, SplitRange};

/// How long a seek may take.
const SEEK: Duration = Duration::from_secs(10);

pub(super) struct Reader {
    config: Arc<KafkaSourceConfig>,
    consumer: BatchConsumer,
    assembler: BatchAssembler,
    ranges: Ranges,
    /// Topic and partition to the index in `ranges`.
    index: BTreeMap<String, BTreeMap<i32, u16>>,
    /// By index: the partition is paused.
    paused: Vec<bool>,
    wants_headers: bool,
}

fn list(topic: &str, partition: i32) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    list
}

impl Reader {
    pub fn new(config: Arc<KafkaSourceConfig>) -> Result<Self> {
        use penstock_crds::source::TransportField;
        let consumer = client::consumer(&config)?;
        let consumer = BatchConsumer::new(consumer).ok_or_else(|| {
            EngineError::fail("PR0208", config.object(), "the client has no queue")
        })?;
        Ok(Self {
            assembler: BatchAssembler::new(config.plan.clone())?,
            wants_headers: config.plan.from.contains(&Some(TransportField::Headers)),
            config,
            consumer,
            ranges: Ranges::default(),
            index: BTreeMap::new(),
            paused: Vec::new(),
        })
    }

    fn failed(&self, what: &str, e: rdkafka::error::KafkaError) -> EngineError {
        EngineError::retry("PR0208", self.config.object(), what.to_owned()).caused_by(e)
    }

    fn pause(&mut self, index: u16) -> Result<()> {
        if std::mem::replace(&mut self.paused[usize::from(index)], true) {
            return Ok(());
        }
        let (topic, partition) = self.place(index)?;
        let paused = self.consumer.consumer().pause(&list(&topic, partition));
        paused.map_err(|e| self.failed("a partition cannot be paused", e))
    }

    fn place(&mut self, index: u16) -> Result<(String, i32)> {
        let split = &self.ranges.at(index).split;
        let place = split_of(split).map(|(topic, partition)| (topic.to_owned(), partition));
        place.ok_or_else(|| {
            EngineError::fail("PR0208", self.config.object(), format!("{} is no split", split.0))
        })
    }

    /// Goes on with a partition that was paused.
    fn go_on(&mut self, index: u16) -> Result<()> {
        let (topic, partition) = self.place(index)?;
        let next = self.ranges.at(index).next.0;
        let consumer = self.consumer.consumer();
        consumer
            .seek(&topic, partition, Offset::Offset(next), SEEK)
            .and_then(|()| consumer.resume(&list(&topic, partition)))
            .map_err(|e| self.failed("a partition cannot be read on", e))?;
        self.paused[usize::from(index)] = false;
        Ok(())
    }

    fn start(&mut self, index: u16) -> Result<()> {
        let (topic, partition) = self.place(index)?;
        let next = self.ranges.at(index).next.0;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, partition, Offset::Offset(next))
            .and_then(|()| self.consumer.consumer().incremental_assign(&list))
            .map_err(|e| self.failed("a partition cannot be assigned", e))?;
        self.index.entry(topic).or_default().insert(partition, index);
        Ok(())
    }
}

impl SourceReader for Reader {
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        let splits: Vec<SplitId> = ranges.iter().map(|r| r.split.clone()).collect();
        let before = self.paused.len();
        self.ranges.assign(ranges)?;
        self.paused.resize(self.ranges.iter().count(), false);
        for split in splits {
            let Some(range) = self.ranges.get_mut(&split) else {
                continue;
            };
            let (index, done) = (range.index, range.done());
            if usize::from(index) >= before {
                self.start(index)?;
            }
            match (done, self.paused[usize::from(index)]) {
                (true, false) => self.pause(index)?,
                (false, true) => self.go_on(index)?,
                (true, true) | (false, false) => {}
            }
        }
        Ok(())
    }

    fn poll(&mut self, max_rows: usize) -> Result<Polled> {
        let mut lost = None;
        let mut broken = None;
        let mut done: Vec<u16> = Vec::new();
        while self.assembler.len() < max_rows && !self.assembler.is_full() {
            let room = max_rows - self.assembler.len();
            let Self { consumer, assembler, ranges, index, wants_headers, .. } = self;
            let mut headers = Vec::new();
            let n = consumer.consume(room, |message| {
                let known = index.get(message.topic).and_then(|t| t.get(&message.partition));
                let range = known.map(|i| ranges.at(*i));
                match (message.error, range) {
                    (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, Some(range)) => {
                        // What was fetched before a seek is older; what lies behind the end is read again when it moves.
                        if message.offset < range.next.0 {
                            return;
                        }
                        if range.until.is_some_and(|until| message.offset >= until.0) {
                            range.next = range.until.unwrap_or(range.next).max(range.next);
                            done.push(range.index);
                            return;
                        }
                        let mut names = Vec::new();
                        if *wants_headers {
                            message.headers(&mut names);
                        }
                        assembler.push(&Record {
                            split: range.index,
                            offset: message.offset,
                            place: message.topic,
                            partition: message.partition,
                            timestamp_ms: message.timestamp_ms(),
                            key: message.key,
                            value: message.value,
                            headers: &names,
                        });
                        range.next = Position(message.offset + 1);
                        if range.done() {
                            done.push(range.index);
                        }
                    }
                    (RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF, Some(range)) => {
                        let end = range.until.map_or(message.offset, |until| until.0.min(message.offset));
                        range.next = range.next.max(Position(end));
                        if range.done() {
                            done.push(range.index);
                        }
                    }
                    (
                        RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
                        | RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
                        _,
                    ) => lost = Some((message.topic.to_owned(), message.partition)),
                    (
                        RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
                        | RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                        | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
                        Some(_),
                    ) => lost = Some((message.topic.to_owned(), message.partition)),
                    (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, _) => {
                        broken = Some(format!("topic {} may not be read", message.topic));
                    }
                    // Brokers that go and come: librdkafka tries again by itself.
                    (error, _) => headers.push(error),
                }
            });
            for error in headers {
                tracing::debug!(source = %self.config.name, ?error, "event of the client");
            }
            for index in done.drain(..) {
                self.pause(index)?;
            }
            if n < room {
                break;
            }
        }
        if !self.assembler.is_empty() {
            let batch = self.assembler.finish(self.ranges.ids())?;
            // A failure that came along comes again: the position stands.
            return Ok(Polled::Rows(Box::new(batch)));
        }
        if let Some((topic, partition)) = lost {
            let position = self.ranges.get_mut(&join(&topic, partition)).map_or(-1, |r| r.next.0);
            return Err(EngineError::fail(
                "PR0207",
                self.config.object(),
                format!("offset {position} of {topic}/{partition} is not there any more"),
            ));
        }
        if let Some(message) = broken {
            return Err(EngineError::fail("PR0208", self.config.object(), message));
        }
        Ok(self.ranges.idle())
    }

    fn positions(&self) -> BTreeMap<SplitId, Position> {
        self.ranges.positions()
    }

    fn finished(&self) -> Vec<SplitId> {
        self.ranges.finished()
    }

    fn set_waker(&mut self, waker: Arc<Notify>) {
        self.consumer.consumer_mut().set_nonempty_callback(move || waker.notify_one());
    }
}
