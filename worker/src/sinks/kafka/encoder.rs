//! Rows to staged records: value, key, partition, shard. The layout is `StagedRecords`'; putting them out is the
//! publisher's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use penstock_crds::sink::{OutputMode, PartitionBy};

use super::KafkaSinkConfig;
use crate::error::{EngineError, Result};
use crate::formats::Encoder;
use crate::keys;
use crate::message::{Batch, RowKind};
use crate::sinks::{Record, SinkEncoder, StagedRecords};

/// A chunk ends before it would grow beyond this; a record larger than this is a chunk of its own.
const CHUNK: usize = 8 << 20;
/// Length, timestamp, partition, key length, value length, number of headers.
const FIXED: usize = 4 + 8 + 4 + 4 + 4 + 2;
const NULL: u32 = u32::MAX;

/// Writes a record's key thus: a single STRING or BINARY column in mode Append is its raw bytes (null: no key); everything
/// else is a JSON object of the key columns. In the modes Update and Complete a row that adds is its value, `-D` is the key
/// with a null value, and `-U` is nothing: the `+U` that follows it takes the same key.
pub(super) struct KafkaEncoder {
    config: Arc<KafkaSinkConfig>,
    value: Box<dyn Encoder>,
    /// `None`: records have no key.
    key: Option<Box<dyn Encoder>>,
    partitions: Arc<AtomicI32>,
    key_bytes: Vec<u8>,
}

impl KafkaEncoder {
    pub(super) fn new(
        config: Arc<KafkaSinkConfig>,
        value: Box<dyn Encoder>,
        key: Option<Box<dyn Encoder>>,
        partitions: Arc<AtomicI32>,
    ) -> Self {
        Self {
            config,
            value,
            key,
            partitions,
            key_bytes: Vec::new(),
        }
    }

    fn shards(&self, batch: &Batch, split: u64) -> Vec<u16> {
        let config = &self.config;
        let rows = batch.num_rows();
        if config.shard_columns.is_empty() {
            return vec![(split % u64::from(config.shards)) as u16; rows];
        }
        let columns: Vec<ArrayRef> = config
            .shard_columns
            .iter()
            .map(|c| Arc::clone(batch.rows.column(*c)))
            .collect();
        let shard = |hash: u64| {
            let group = keys::key_group(hash, config.key_groups);
            keys::shard_of_group(group, config.key_groups, config.shards)
        };
        keys::hash_columns(&columns, rows)
            .into_iter()
            .map(shard)
            .collect()
    }
}

impl SinkEncoder for KafkaEncoder {
    fn encode(&mut self, batch: &Batch, split: u64, out: &mut [StagedRecords]) -> Result<()> {
        let config = Arc::clone(&self.config);
        let shards = self.shards(batch, split);
        let partitions = self.partitions.load(Ordering::Relaxed);
        let keyed = config.mode != OutputMode::Append;
        self.value.bind(&batch.rows)?;
        let plain = match config.key_columns[..] {
            [column] if !keyed => RawKey::of(batch.rows.column(column)),
            _ => None,
        };
        if let (Some(key), None) = (&mut self.key, &plain) {
            let rows = batch.rows.project(&config.key_columns).map_err(|e| {
                let text = "the key columns are not among the rows'";
                EngineError::fail(super::CODE, config.object(), text).caused_by(e)
            })?;
            key.bind(&rows)?;
        }
        for (row, shard) in shards.into_iter().enumerate() {
            let kind = batch.kind(row);
            if keyed && kind == RowKind::UpdateBefore {
                continue;
            }
            self.key_bytes.clear();
            let key = match (&plain, &mut self.key) {
                (Some(plain), _) => plain.value(row),
                (None, Some(key)) => {
                    key.encode(row, &mut self.key_bytes)?;
                    Some(&self.key_bytes[..])
                }
                (None, None) => None,
            };
            let stage = out.get_mut(usize::from(shard)).ok_or_else(|| {
                EngineError::fail(super::CODE, config.object(), "a shard has no stage")
            })?;
            let to = partition(&config, key, partitions);
            let start = open(stage, i64::MIN, to, key, 0);
            if keyed && kind == RowKind::Delete {
                close(stage, start, key, None);
            } else {
                let before = stage.data.len();
                self.value.encode(row, &mut stage.data)?;
                let length = stage.data.len() - before;
                close(stage, start, key, Some(length));
            }
        }
        Ok(())
    }
}

/// A column whose values are keys as they are.
enum RawKey<'a> {
    Text(&'a arrow::array::StringArray),
    LargeText(&'a arrow::array::LargeStringArray),
    TextView(&'a arrow::array::StringViewArray),
    Binary(&'a arrow::array::BinaryArray),
    LargeBinary(&'a arrow::array::LargeBinaryArray),
}

impl<'a> RawKey<'a> {
    fn of(column: &'a ArrayRef) -> Option<Self> {
        match column.data_type() {
            DataType::Utf8 => Some(Self::Text(column.as_string())),
            DataType::LargeUtf8 => Some(Self::LargeText(column.as_string())),
            DataType::Utf8View => Some(Self::TextView(column.as_string_view())),
            DataType::Binary => Some(Self::Binary(column.as_binary())),
            DataType::LargeBinary => Some(Self::LargeBinary(column.as_binary())),
            _ => None,
        }
    }

    fn value(&self, row: usize) -> Option<&'a [u8]> {
        match self {
            Self::Text(a) => a.is_valid(row).then(|| a.value(row).as_bytes()),
            Self::LargeText(a) => a.is_valid(row).then(|| a.value(row).as_bytes()),
            Self::TextView(a) => a.is_valid(row).then(|| a.value(row).as_bytes()),
            Self::Binary(a) => a.is_valid(row).then(|| a.value(row)),
            Self::LargeBinary(a) => a.is_valid(row).then(|| a.value(row)),
        }
    }
}

/// The partition that Java clients would choose; -1, the publisher's choice, without a key or before the count is known.
pub(super) fn partition(config: &KafkaSinkConfig, key: Option<&[u8]>, partitions: i32) -> i32 {
    match (config.partition_by, key) {
        (PartitionBy::Key, Some(key)) if partitions > 0 => {
            (murmur2(key) & 0x7fff_ffff) as i32 % partitions
        }
        (PartitionBy::Key | PartitionBy::RoundRobin, _) => -1,
    }
}

/// Kafka's own `Utils.murmur2`.
pub(super) fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

/// Begins a record without headers, up to and with its key; the value is appended by the caller, then [`close`].
fn open(
    out: &mut StagedRecords,
    timestamp: i64,
    partition: i32,
    key: Option<&[u8]>,
    headers: u16,
) -> usize {
    let start = out.data.len();
    let data = &mut out.data;
    data.extend_from_slice(&[0; 4]);
    data.extend_from_slice(&timestamp.to_le_bytes());
    data.extend_from_slice(&partition.to_le_bytes());
    data.extend_from_slice(&key.map_or(NULL, |k| k.len() as u32).to_le_bytes());
    data.extend_from_slice(&NULL.to_le_bytes());
    data.extend_from_slice(&headers.to_le_bytes());
    data.extend_from_slice(key.unwrap_or_default());
    start
}

/// Ends the record that begins at `start`, whose value of `value` bytes is there, and gives it to a chunk.
fn close(out: &mut StagedRecords, start: usize, key: Option<&[u8]>, value: Option<usize>) {
    debug_assert!(out.data.len() >= start + FIXED + key.map_or(0, <[u8]>::len));
    let length = (out.data.len() - start - 4) as u32;
    out.data[start..start + 4].copy_from_slice(&length.to_le_bytes());
    if let Some(value) = value {
        out.data[start + 20..start + 24].copy_from_slice(&(value as u32).to_le_bytes());
    }
    out.rows += 1;
    let end = out.data.len();
    // The last chunk is open until it is full: its end always is the end of the data.
    let begin = match out.chunk_ends[..] {
        [.., begin, _] => begin,
        _ => 0,
    };
    match out.chunk_ends.last_mut() {
        Some(last) if end - begin <= CHUNK => *last = end,
        _ => out.chunk_ends.push(end),
    }
}

/// Stages a record made outside SQL.
pub(super) fn stage(record: &Record, partition: i32, out: &mut StagedRecords) {
    let Record {
        key,
        value,
        headers,
        timestamp_ms,
    } = record;
    let key = key.as_deref();
    let timestamp = timestamp_ms.unwrap_or(i64::MIN);
    let start = open(out, timestamp, partition, key, headers.len() as u16);
    out.data
        .extend_from_slice(value.as_deref().unwrap_or_default());
    for (name, value) in headers {
        out.data
            .extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.data.extend_from_slice(name.as_bytes());
        out.data
            .extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.data.extend_from_slice(value);
    }
    close(out, start, key, value.as_ref().map(bytes::Bytes::len));
}

/// A staged record, borrowed from its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Staged<'a> {
    pub(super) timestamp_ms: Option<i64>,
    pub(super) partition: i32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: u16,
    /// The headers as they lie; see [`header`].
    pub(super) header_bytes: &'a [u8],
}

/// Takes the first record off `data`; `None`: the bytes are not whole.
pub(super) fn first<'a>(data: &mut &'a [u8]) -> Option<Staged<'a>> {
    let length = u32::from_le_bytes(take(data, 4)?.try_into().ok()?) as usize;
    let mut record = take(data, length)?;
    let timestamp = i64::from_le_bytes(take(&mut record, 8)?.try_into().ok()?);
    let partition = i32::from_le_bytes(take(&mut record, 4)?.try_into().ok()?);
    let key = u32::from_le_bytes(take(&mut record, 4)?.try_into().ok()?);
    let value = u32::from_le_bytes(take(&mut record, 4)?.try_into().ok()?);
    let headers = u16::from_le_bytes(take(&mut record, 2)?.try_into().ok()?);
    let mut part = |length: u32| match length {
        NULL => Some(None),
        length => take(&mut record, length as usize).map(Some),
    };
    let (key, value) = (part(key)?, part(value)?);
    Some(Staged {
        timestamp_ms: (timestamp != i64::MIN).then_some(timestamp),
        partition,
        key,
        value,
        headers,
        header_bytes: record,
    })
}

/// Takes the first header off `data`.
pub(super) fn header<'a>(data: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let length = u16::from_le_bytes(take(data, 2)?.try_into().ok()?);
    let name = take(data, usize::from(length))?;
    let length = u32::from_le_bytes(take(data, 4)?.try_into().ok()?);
    Some((name, take(data, length as usize)?))
}

fn take<'a>(data: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = data.split_at_checked(n)?;
    *data = rest;
    Some(head)
}
