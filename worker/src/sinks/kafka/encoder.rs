//! Rows to staged records: value, key, partition, shard. Putting them out is the publisher's.

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
use crate::sinks::{SinkEncoder, StagedRecords};

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
            let mut open = stage.begin();
            if let Some(key) = key {
                stage.data.extend_from_slice(key);
                stage.key_written(&mut open)?;
            }
            if !(keyed && kind == RowKind::Delete) {
                self.value.encode(row, &mut stage.data)?;
                stage.value_written(&mut open)?;
            }
            stage.end(&open, i64::MIN, to, 0)?;
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
