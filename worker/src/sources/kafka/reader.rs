//! One subtask's reader: assigns partitions by hand, takes batches of records and feeds their bytes to the decoder where
//! they lie. Keeps each split's position, past control records too; which ranges to read is the coordinator's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{ArrayRef, BinaryBuilder, RecordBatch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use penstock_crds::source::TransportField;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

use super::ffi::{BatchConsumer, Native};
use super::{KafkaSourceConfig, parse_split, transport};
use crate::error::{EngineError, Result};
use crate::formats::Decoder;
use crate::kafka::{self, Logged};
use crate::sources::{
    BadRecord, Polled, Position, RawRecords, SourceBatch, SourceReader, SplitId, SplitRange,
};

const CODE: &str = "PR0208";

/// Where a split stands. `read_to` may lie behind `until`: a record behind the end says that all before it has been read.
struct Split {
    id: SplitId,
    until: Option<i64>,
    /// Every offset below is read, or will never hold a record that counts.
    read_to: i64,
    /// The end as the broker last confirmed it.
    eof: Option<i64>,
    /// Records behind its end, in order: they belong to later ranges, and are there when those come.
    held: VecDeque<Native>,
    /// What they cost, about.
    held_bytes: usize,
    /// Much is held, and the client fetches no more.
    paused: bool,
}

/// A split of which as many bytes are held is paused; not sooner, since the client throws away what it has fetched of a
/// paused partition.
const HELD: usize = 8 << 20;

/// What a held record costs, about.
fn weight(message: &Native) -> usize {
    message.payload().map_or(0, <[u8]>::len) + 200
}

impl Split {
    fn position(&self) -> i64 {
        self.until.map_or(self.read_to, |u| self.read_to.min(u))
    }
    fn finished(&self) -> bool {
        self.until.is_some_and(|u| self.read_to >= u)
    }
    /// What is held first stands behind the end: everything before it has been read, though the last offsets may hold no
    /// record that counts.
    fn note_held(&mut self) {
        let beyond = self.held.front().map(Native::offset);
        if let Some(at) = beyond.filter(|at| self.until.is_some_and(|u| *at >= u)) {
            self.read_to = self.read_to.max(at);
        }
    }
}

pub(super) struct KafkaReader {
    config: Arc<KafkaSourceConfig>,
    object: String,
    decoder: Box<dyn Decoder>,
    splits: Vec<Split>,
    ids: Arc<[SplitId]>,
    index: AHashMap<SplitId, usize>,
    /// (topic handle, partition) of the native client to index.
    by_handle: AHashMap<(usize, i32), usize>,
    /// Of the poll under way; kept for its memory.
    taken: Vec<Native>,
    /// Said by the poll after the one that returns the rows before it.
    failure: Option<EngineError>,
    key_is_text: bool,
    /// Last, so that messages go before it; `None` only while dropping.
    client: Option<BatchConsumer>,
}

impl KafkaReader {
    pub(super) fn new(config: Arc<KafkaSourceConfig>, decoder: Box<dyn Decoder>) -> Result<Self> {
        let object = config.object();
        let consumer: BaseConsumer<Logged> = config
            .consumer(&config.group_id, true)
            .create_with_context(Logged::new(&object, &config.client))
            .map_err(|e| kafka::error(CODE, &object, "making a consumer", e))?;
        let client = BatchConsumer::new(consumer)
            .ok_or_else(|| EngineError::fail(CODE, &object, "the client has no queue"))?;
        let key_is_text = config.transport.iter().any(|(column, what)| {
            *what == TransportField::Key
                && matches!(
                    config.schema.field(*column).data_type(),
                    DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
                )
        });
        Ok(Self {
            config,
            object,
            decoder,
            splits: Vec::new(),
            ids: Arc::from([]),
            index: AHashMap::new(),
            by_handle: AHashMap::new(),
            taken: Vec::new(),
            failure: None,
            key_is_text,
            client: Some(client),
        })
    }

    fn consumer(&self) -> &BaseConsumer<Logged> {
        &self.client.as_ref().expect("there until dropped").consumer
    }

    fn partition_list(&self, splits: &[usize]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for i in splits {
            if let Some((topic, partition)) = parse_split(&self.splits[*i].id) {
                list.add_partition(topic, partition);
            }
        }
        list
    }

    /// Fetching goes on for splits whose held records are all within their range now.
    fn resume(&mut self, splits: &[usize]) -> Result<()> {
        if splits.is_empty() {
            return Ok(());
        }
        let list = self.partition_list(splits);
        self.consumer()
            .resume(&list)
            .map_err(|e| kafka::error(CODE, &self.object, "resuming partitions", e))?;
        splits.iter().for_each(|i| self.splits[*i].paused = false);
        Ok(())
    }

    fn split_of(&mut self, message: &Native) -> Option<usize> {
        let handle = (message.topic_handle(), message.partition());
        if let Some(i) = self.by_handle.get(&handle) {
            return Some(*i);
        }
        let id = super::split_id(message.topic()?, message.partition());
        let i = *self.index.get(&id)?;
        self.by_handle.insert(handle, i);
        Some(i)
    }

    /// Notes an event of the client. Those without a partition pass by themselves; the client tries on.
    fn event(&mut self, split: Option<usize>, code: RDKafkaErrorCode, message: &Native) {
        use RDKafkaErrorCode as C;
        let text = message.error_text();
        // The client would try on with what it has; the next generation reads the Secret again.
        if let Some(refused) = self.consumer().context().refused(code, &text) {
            self.failure = Some(refused);
            return;
        }
        let Some(i) = split else {
            tracing::warn!(object = %self.object, ?code, text, "kafka consumer");
            return;
        };
        let split = &mut self.splits[i];
        match code {
            C::PartitionEOF => {
                split.read_to = split.read_to.max(message.offset());
                split.eof = Some(split.read_to);
            }
            C::AutoOffsetReset | C::OffsetOutOfRange => {
                let text = format!(
                    "{} has no record at offset {} any more: {text}",
                    split.id.0,
                    split.position()
                );
                self.failure = Some(EngineError::fail("PR0207", &self.object, text));
            }
            code if kafka::refused(code) => {
                let text = format!("{}: {text}", split.id.0);
                self.failure = Some(EngineError::fail(CODE, &self.object, text));
            }
            C::UnknownTopicOrPartition | C::UnknownTopic | C::UnknownPartition => {
                let text = format!("{}: {text}", split.id.0);
                self.failure = Some(EngineError::retry(CODE, &self.object, text));
            }
            _ => {
                tracing::warn!(object = %self.object, split = %split.id.0, ?code, text, "kafka consumer")
            }
        }
    }

    /// The batch's messages within their ranges, moved to `keep`; positions move on. Stops for nothing.
    fn take(&mut self, max: usize) -> Result<Vec<(usize, Native)>> {
        let mut keep = Vec::with_capacity(max.min(4096));
        for i in 0..self.splits.len() {
            let until = self.splits[i].until;
            // The end of the partition counts whenever it is its turn: everything before it has been read.
            let within = |m: &Native| m.error().is_some() || until.is_none_or(|u| m.offset() < u);
            while keep.len() < max
                && let Some(message) = self.splits[i].held.pop_front_if(|m| within(m))
            {
                let split = &mut self.splits[i];
                split.held_bytes = split.held_bytes.saturating_sub(weight(&message));
                self.admit(i, message, &mut keep);
            }
            self.splits[i].note_held();
        }
        // The client goes on fetching when what it fetched before is nearly used up.
        let ready: Vec<usize> = (0..self.splits.len())
            .filter(|i| self.splits[*i].paused && self.splits[*i].held_bytes < HELD / 4)
            .collect();
        self.resume(&ready)?;

        if keep.len() < max {
            let mut taken = std::mem::take(&mut self.taken);
            let client = self.client.as_mut().expect("there until dropped");
            client.take(max - keep.len(), &mut taken);
            let mut pause = Vec::new();
            for message in taken.drain(..) {
                let split = self.split_of(&message);
                let Some(i) = split else {
                    // Without an error: of a partition that is not assigned any more.
                    if let Some(code) = message.error() {
                        self.event(None, code, &message);
                    }
                    continue;
                };
                let split = &mut self.splits[i];
                let beyond = split.until.is_some_and(|u| message.offset() >= u);
                let in_order =
                    matches!(message.error(), None | Some(RDKafkaErrorCode::PartitionEOF));
                if !in_order || (split.held.is_empty() && (!beyond || message.error().is_some())) {
                    self.admit(i, message, &mut keep);
                    continue;
                }
                split.held_bytes += weight(&message);
                split.held.push_back(message);
                split.note_held();
                if !split.paused && split.held_bytes > HELD {
                    split.paused = true;
                    pause.push(i);
                }
            }
            self.taken = taken;
            if !pause.is_empty() {
                let list = self.partition_list(&pause);
                self.consumer()
                    .pause(&list)
                    .map_err(|e| kafka::error(CODE, &self.object, "pausing partitions", e))?;
            }
        }
        Ok(keep)
    }

    fn admit(&mut self, i: usize, message: Native, keep: &mut Vec<(usize, Native)>) {
        if let Some(code) = message.error() {
            return self.event(Some(i), code, &message);
        }
        let split = &mut self.splits[i];
        // A fetch that is asked again may begin before the position.
        if message.offset() >= split.read_to {
            split.read_to = message.offset() + 1;
            split.eof = None;
            keep.push((i, message));
        }
    }

    fn decode(&mut self, records: Vec<(usize, Native)>) -> Result<SourceBatch> {
        let mut bad = Vec::new();
        let mut bytes = 0;
        let mut fed: Vec<&(usize, Native)> = Vec::with_capacity(records.len());
        for record in &records {
            let (i, message) = record;
            let key = message.key();
            let body = message.payload();
            bytes += key.map_or(0, <[u8]>::len) + body.map_or(0, <[u8]>::len);
            if self.key_is_text && key.is_some_and(|k| std::str::from_utf8(k).is_err()) {
                bad.push(bad_record(
                    *i,
                    message,
                    "PR0202",
                    "the key is not UTF-8".to_owned(),
                ));
                continue;
            }
            self.decoder.feed(body.unwrap_or_default());
            fed.push(record);
        }
        let (body, errors) = self.decoder.finish()?;
        let mut errors = errors.into_iter().peekable();
        let mut good = Vec::with_capacity(body.num_rows());
        for (n, record) in fed.into_iter().enumerate() {
            match errors.next_if(|e| e.record == n) {
                Some(e) => bad.push(bad_record(record.0, &record.1, e.code, e.text)),
                None => good.push(record),
            }
        }
        if good.len() != body.num_rows() {
            let text = "the decoder lost count of its records";
            return Err(EngineError::fail(CODE, &self.object, text));
        }
        let splits = good.iter().map(|(i, _)| *i as u16).collect();
        let offsets = good.iter().map(|(_, m)| m.offset()).collect();
        let messages: Vec<&Native> = good.iter().map(|(_, m)| m).collect();
        Ok(SourceBatch {
            rows: self.assemble(body, &messages)?,
            splits,
            offsets,
            split_ids: Arc::clone(&self.ids),
            raw: self.config.keep_raw.then(|| raw(&messages)),
            bad,
            bytes,
        })
    }

    /// Body and transport columns in the order of the decode schema.
    fn assemble(&self, body: RecordBatch, messages: &[&Native]) -> Result<RecordBatch> {
        let config = &self.config;
        if config.transport.is_empty() {
            return Ok(body);
        }
        let mut from_body = body.columns().iter();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(config.schema.fields().len());
        for (n, field) in config.schema.fields().iter().enumerate() {
            let what = config.transport.iter().find(|(column, _)| *column == n);
            match (what, from_body.as_slice()) {
                (Some((_, what)), _) => columns.push(transport::column(*what, field, messages)?),
                (None, [first, ..]) => {
                    columns.push(Arc::clone(first));
                    from_body.next();
                }
                (None, []) => {
                    let text = format!("the decoder makes no column {}", field.name());
                    return Err(EngineError::fail(CODE, &self.object, text));
                }
            }
        }
        RecordBatch::try_new(Arc::clone(&config.schema), columns).map_err(|e| {
            EngineError::fail(CODE, &self.object, "columns do not fit the schema").caused_by(e)
        })
    }
}

fn bad_record(split: usize, message: &Native, code: &'static str, text: String) -> BadRecord {
    BadRecord {
        split: split as u16,
        offset: message.offset(),
        code,
        text,
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
    }
}

fn raw(messages: &[&Native]) -> RawRecords {
    let mut keys = BinaryBuilder::new();
    let mut values = BinaryBuilder::new();
    for message in messages {
        keys.append_option(message.key());
        values.append_option(message.payload());
    }
    RawRecords {
        keys: keys.finish(),
        values: values.finish(),
    }
}

impl SourceReader for KafkaReader {
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for SplitRange { split, from, until } in ranges {
            let until = until.map(|u| u.0);
            if let Some(i) = self.index.get(&split) {
                self.splits[*i].until = until;
                continue;
            }
            let Some((topic, partition)) = parse_split(&split) else {
                let text = format!("{} is no partition of a topic", split.0);
                return Err(EngineError::fail(CODE, &self.object, text));
            };
            if self.splits.len() > usize::from(u16::MAX) {
                return Err(EngineError::fail(CODE, &self.object, "too many partitions"));
            }
            list.add_partition_offset(topic, partition, Offset::Offset(from.0))
                .map_err(|e| kafka::error(CODE, &self.object, "assigning partitions", e))?;
            self.index.insert(split.clone(), self.splits.len());
            self.splits.push(Split {
                id: split,
                until,
                read_to: from.0,
                eof: None,
                held: VecDeque::new(),
                held_bytes: 0,
                paused: false,
            });
        }
        self.ids = self.splits.iter().map(|s| s.id.clone()).collect();
        if list.count() == 0 {
            return Ok(());
        }
        let elements = list.elements();
        let topics: BTreeSet<&str> = elements.iter().map(|e| e.topic()).collect();
        // A slot waits for one that does not answer, and for no more.
        let _ = topics
            .into_iter()
            .all(|topic| kafka::meet(self.consumer(), topic));
        self.consumer()
            .incremental_assign(&list)
            .map_err(|e| kafka::error(CODE, &self.object, "assigning partitions", e))
    }

    fn poll(&mut self, max_rows: usize) -> Result<Polled> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let records = self.take(max_rows.max(1))?;
        if !records.is_empty() {
            return Ok(Polled::Rows(Box::new(self.decode(records)?)));
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let done = self.splits.iter().all(Split::finished);
        Ok(if done { Polled::Done } else { Polled::Empty })
    }

    fn positions(&self) -> BTreeMap<SplitId, Position> {
        let position = |s: &Split| (s.id.clone(), Position(s.position()));
        self.splits.iter().map(position).collect()
    }

    fn finished(&self) -> Vec<SplitId> {
        let done = self.splits.iter().filter(|s| s.finished());
        done.map(|s| s.id.clone()).collect()
    }

    fn caught_up(&self) -> Vec<SplitId> {
        let at_end = self.splits.iter().filter(|s| s.eof == Some(s.position()));
        at_end.map(|s| s.id.clone()).collect()
    }

    fn set_waker(&mut self, waker: Arc<Notify>) {
        if let Some(client) = &mut self.client {
            client
                .consumer
                .set_nonempty_callback(move || waker.notify_one());
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // Messages first: they are parts of the client.
        self.splits.clear();
        self.taken.clear();
        if let Some(client) = self.client.take() {
            kafka::abandon(client);
        }
    }
}
