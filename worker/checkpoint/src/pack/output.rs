//! Staged outputs: the final records of a sink, encoded once, cut into chunks of bounded bytes when they are staged and never
//! again. Each chunk becomes one transaction.
//!
//! Per record: `flags u8` (1 key, 2 value, 4 timestamp, 8 partition, 16 headers), then what the flags say:
//! `key length u32`, `value length u32`, `timestamp i64`, `partition i32`, `headers u16`; then key, value, and per header
//! `name length u16, value length u32, name, value`.

use super::{Reader, damaged};
use crate::envelope::DecodeError;

const KEY: u8 = 1;
const VALUE: u8 = 2;
const TIMESTAMP: u8 = 4;
const PARTITION: u8 = 8;
const HEADERS: u8 = 16;

/// A record as the sink will send it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputRecord<'a> {
    pub key: Option<&'a [u8]>,
    /// `None`: a null value (a tombstone), other than an empty one.
    pub value: Option<&'a [u8]>,
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Milliseconds, as Kafka has them.
    pub timestamp: Option<i64>,
    pub partition: Option<i32>,
}

/// Records of one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    bytes: Vec<u8>,
    records: u32,
}

impl Chunk {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn records(&self) -> u32 {
        self.records
    }

    /// The records; `bytes` were checked or written by this process.
    pub fn outputs(&self) -> Outputs<'_> {
        Outputs::new(&self.bytes, self.records)
    }
}

/// Stages records of one shard and cuts chunks.
#[derive(Clone, Debug)]
pub struct ChunkBuilder {
    limit: usize,
    full: Vec<Chunk>,
    open: Chunk,
    bytes: usize,
}

impl ChunkBuilder {
    /// A chunk ends before it would pass `limit` bytes; a record above it is a chunk of its own.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            full: Vec::new(),
            open: Chunk::default(),
            bytes: 0,
        }
    }

    pub fn push(&mut self, r: &OutputRecord<'_>) {
        let OutputRecord {
            key,
            value,
            headers,
            timestamp,
            partition,
        } = r;
        let headers_size: usize = headers.iter().map(|(n, v)| 6 + n.len() + v.len()).sum();
        let size = 1
            + key.map_or(0, |k| 4 + k.len())
            + value.map_or(0, |v| 4 + v.len())
            + timestamp.map_or(0, |_| 8)
            + partition.map_or(0, |_| 4)
            + if headers.is_empty() {
                0
            } else {
                2 + headers_size
            };
        if self.open.records > 0 && self.open.bytes.len() + size > self.limit {
            self.full.push(std::mem::take(&mut self.open));
        }
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let b = &mut self.open.bytes;
        b.reserve(size);
        b.push(
            flag(key.is_some(), KEY)
                | flag(value.is_some(), VALUE)
                | flag(timestamp.is_some(), TIMESTAMP)
                | flag(partition.is_some(), PARTITION)
                | flag(!headers.is_empty(), HEADERS),
        );
        if let Some(k) = key {
            b.extend_from_slice(&(k.len() as u32).to_le_bytes());
        }
        if let Some(v) = value {
            b.extend_from_slice(&(v.len() as u32).to_le_bytes());
        }
        if let Some(t) = timestamp {
            b.extend_from_slice(&t.to_le_bytes());
        }
        if let Some(p) = partition {
            b.extend_from_slice(&p.to_le_bytes());
        }
        if !headers.is_empty() {
            b.extend_from_slice(&(headers.len() as u16).to_le_bytes());
        }
        b.extend_from_slice(key.unwrap_or_default());
        b.extend_from_slice(value.unwrap_or_default());
        for (name, value) in headers {
            b.extend_from_slice(&(name.len() as u16).to_le_bytes());
            b.extend_from_slice(&(value.len() as u32).to_le_bytes());
            b.extend_from_slice(name.as_bytes());
            b.extend_from_slice(value);
        }
        self.open.records += 1;
        self.bytes += size;
    }

    /// Bytes staged so far, for budgets.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The chunks of this epoch; the builder is empty again.
    pub fn take(&mut self) -> Vec<Chunk> {
        if self.open.records > 0 {
            self.full.push(std::mem::take(&mut self.open));
        }
        self.bytes = 0;
        std::mem::take(&mut self.full)
    }
}

/// Reads a chunk's records; ends after the first error.
pub struct Outputs<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Outputs<'a> {
    /// `records` as the section's `items` says.
    pub fn new(bytes: &'a [u8], records: u32) -> Self {
        Self {
            reader: Reader(bytes),
            left: records,
        }
    }

    fn read(&mut self) -> Result<OutputRecord<'a>, DecodeError> {
        let r = &mut self.reader;
        let flags = r.take(1)?[0];
        if flags >= HEADERS << 1 {
            return Err(damaged("a record with unknown flags"));
        }
        let has = |bit| flags & bit != 0;
        let key = if has(KEY) {
            Some(r.u32()? as usize)
        } else {
            None
        };
        let value = if has(VALUE) {
            Some(r.u32()? as usize)
        } else {
            None
        };
        let timestamp = if has(TIMESTAMP) {
            Some(r.u64()? as i64)
        } else {
            None
        };
        let partition = if has(PARTITION) {
            Some(r.u32()? as i32)
        } else {
            None
        };
        let headers = if has(HEADERS) { r.u16()? } else { 0 };
        let key = key.map(|n| r.take(n)).transpose()?;
        let value = value.map(|n| r.take(n)).transpose()?;
        let mut all = Vec::new();
        for _ in 0..headers {
            let (n, v) = (r.u16()?, r.u32()?);
            let name = std::str::from_utf8(r.take(usize::from(n))?)
                .map_err(|_| damaged("a header's name is not text"))?;
            all.push((name, r.take(v as usize)?));
        }
        Ok(OutputRecord {
            key,
            value,
            headers: all,
            timestamp,
            partition,
        })
    }
}

impl<'a> Iterator for Outputs<'a> {
    type Item = Result<OutputRecord<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.reader.0.is_empty() {
                return None;
            }
            self.reader.0 = &[];
            return Some(Err(damaged("bytes after the last record")));
        }
        self.left -= 1;
        let next = self.read();
        if next.is_err() {
            self.left = 0;
            self.reader.0 = &[];
        }
        Some(next)
    }
}
