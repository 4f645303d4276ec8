//! The layout of staged records: writing them, cutting them into chunks, reading them back. The layout itself is described at
//! [`StagedRecords`]; it is what packs hold, so it changes only with the format of the log.

use super::{Record, StagedRecords};
use crate::error::{EngineError, Result};

/// A chunk ends before it would grow beyond so many bytes; a larger record is a chunk of its own. One chunk is one
/// transaction: well below what a broker takes within its timeout.
pub const CHUNK_BYTES: usize = 8 << 20;
const NONE: u32 = u32::MAX;
/// Length, timestamp, partition, key length, value length, number of headers.
const HEAD: usize = 4 + 8 + 4 + 4 + 4 + 2;

/// A staged record, borrowed from its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagedRecord<'a> {
    pub timestamp_ms: Option<i64>,
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    headers: (u16, &'a [u8]),
}

/// A record that is being written; its head is filled in at the end.
#[derive(Debug)]
pub(super) struct Open {
    start: usize,
    key: u32,
    value: u32,
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes)
        .ok()
        .filter(|n| *n < NONE / 2)
        .ok_or_else(|| {
            EngineError::fail(
                "PR0209",
                "sink",
                format!("a record of {bytes} bytes cannot be staged"),
            )
        })
}

impl StagedRecords {
    /// Begins a record: the key is written to `data` next, if it has one.
    pub(super) fn begin(&mut self) -> Open {
        let start = self.data.len();
        self.data.resize(start + HEAD, 0);
        Open {
            start,
            key: NONE,
            value: NONE,
        }
    }

    /// What was written since `begin` is the key.
    pub(super) fn key_written(&mut self, open: &mut Open) -> Result<()> {
        open.key = length(self.data.len() - open.start - HEAD)?;
        Ok(())
    }

    /// What was written since the key is the value.
    pub(super) fn value_written(&mut self, open: &mut Open) -> Result<()> {
        let key = if open.key == NONE {
            0
        } else {
            open.key as usize
        };
        open.value = length(self.data.len() - open.start - HEAD - key)?;
        Ok(())
    }

    /// Fills the head in and cuts the chunk if it is full. `partition`: -1 leaves it to the publisher.
    pub(super) fn end(
        &mut self,
        open: &Open,
        timestamp_ms: i64,
        partition: i32,
        headers: u16,
    ) -> Result<()> {
        let len = length(self.data.len() - open.start - 4)?;
        let head = &mut self.data[open.start..open.start + HEAD];
        head[0..4].copy_from_slice(&len.to_le_bytes());
        head[4..12].copy_from_slice(&timestamp_ms.to_le_bytes());
        head[12..16].copy_from_slice(&partition.to_le_bytes());
        head[16..20].copy_from_slice(&open.key.to_le_bytes());
        head[20..24].copy_from_slice(&open.value.to_le_bytes());
        head[24..26].copy_from_slice(&headers.to_le_bytes());
        self.rows += 1;
        // The last end is always the data's: the open chunk grows until the next record would not fit.
        let end = self.data.len();
        let chunk_start = match self.chunk_ends.as_slice() {
            [.., before, _] => *before,
            _ => 0,
        };
        match self.chunk_ends.last_mut() {
            Some(last) if end - chunk_start <= CHUNK_BYTES => *last = end,
            _ => self.chunk_ends.push(end),
        }
        Ok(())
    }

    /// Forgets all records and keeps their memory.
    pub fn clear(&mut self) {
        self.data.clear();
        self.chunk_ends.clear();
        self.rows = 0;
    }

    /// Takes back what was written since `begin`.
    pub(super) fn abandon(&mut self, open: &Open) {
        self.data.truncate(open.start);
    }

    /// Appends a record made outside SQL. `partition`: -1 leaves it to the publisher.
    pub fn push(&mut self, record: &Record, partition: i32) -> Result<()> {
        let mut open = self.begin();
        let written = self.write(record, partition, &mut open);
        if written.is_err() {
            self.abandon(&open);
        }
        written
    }

    fn write(&mut self, record: &Record, partition: i32, open: &mut Open) -> Result<()> {
        if let Some(key) = &record.key {
            self.data.extend_from_slice(key);
            self.key_written(open)?;
        }
        if let Some(value) = &record.value {
            self.data.extend_from_slice(value);
            self.value_written(open)?;
        }
        // No more headers, and no longer names, than their lengths can say.
        let headers = &record.headers[..record.headers.len().min(usize::from(u16::MAX))];
        for (name, value) in headers {
            let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
            self.data
                .extend_from_slice(&(name.len() as u16).to_le_bytes());
            self.data.extend_from_slice(name);
            self.data
                .extend_from_slice(&length(value.len())?.to_le_bytes());
            self.data.extend_from_slice(value);
        }
        let timestamp = record.timestamp_ms.unwrap_or(i64::MIN);
        self.end(open, timestamp, partition, headers.len() as u16)
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.chunk_ends.iter().copied());
        starts
            .zip(&self.chunk_ends)
            .map(|(from, to)| &self.data[from..*to])
    }
}

/// Appends a record made outside SQL. One that cannot be staged is beyond 2 GiB, which no source reads: it is left out.
pub(super) fn stage(record: &Record, partition: i32, out: &mut StagedRecords) {
    if let Err(error) = out.push(record, partition) {
        tracing::warn!(%error, "a record was not staged");
    }
}

/// The records of a chunk. Bytes that are no records end it with an error.
pub fn records(chunk: &[u8]) -> impl Iterator<Item = Result<StagedRecord<'_>>> {
    let mut rest = chunk;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match split(rest) {
            Some((record, behind)) => {
                rest = behind;
                Some(Ok(record))
            }
            None => {
                rest = &[];
                Some(Err(broken()))
            }
        }
    })
}

fn broken() -> EngineError {
    EngineError::invalid("PR0404", "staged records", "the bytes are no records")
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

fn u32_of(bytes: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))
}

fn optional<'a>(bytes: &mut &'a [u8], len: u32) -> Option<Option<&'a [u8]>> {
    if len == NONE {
        Some(None)
    } else {
        take(bytes, len as usize).map(Some)
    }
}

fn split(mut bytes: &[u8]) -> Option<(StagedRecord<'_>, &[u8])> {
    let len = u32_of(&mut bytes)? as usize;
    let mut body = take(&mut bytes, len)?;
    let timestamp = i64::from_le_bytes(take(&mut body, 8)?.try_into().ok()?);
    let partition = i32::from_le_bytes(take(&mut body, 4)?.try_into().ok()?);
    let (key, value) = (u32_of(&mut body)?, u32_of(&mut body)?);
    let headers = u16::from_le_bytes(take(&mut body, 2)?.try_into().ok()?);
    let key = optional(&mut body, key)?;
    let value = optional(&mut body, value)?;
    let record = StagedRecord {
        timestamp_ms: (timestamp != i64::MIN).then_some(timestamp),
        partition: (partition >= 0).then_some(partition),
        key,
        value,
        headers: (headers, body),
    };
    // A record whose headers are cut off is found here, not when it is sent.
    (record.headers().count() == usize::from(headers)).then_some((record, bytes))
}

impl<'a> StagedRecord<'a> {
    /// A record that was never staged: without headers, at the time of its sending.
    pub(super) fn plain(partition: i32, key: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            timestamp_ms: None,
            partition: Some(partition),
            key: Some(key),
            value: Some(value),
            headers: (0, &[]),
        }
    }

    /// Names and values.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let (count, mut rest) = self.headers;
        (0..count).map_while(move |_| {
            let name = u16::from_le_bytes(take(&mut rest, 2)?.try_into().ok()?);
            let name = take(&mut rest, usize::from(name))?;
            let len = u32_of(&mut rest)?;
            let value = take(&mut rest, len as usize)?;
            Some((std::str::from_utf8(name).unwrap_or("?"), value))
        })
    }

    pub fn has_headers(&self) -> bool {
        self.headers.0 > 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_staged(
            given in prop::collection::vec((prop::option::of(bytes()), prop::option::of(bytes()),
                prop::collection::vec(("[a-z]{0,9}", bytes()), 0..3), prop::option::of(0i64..)), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut staged = StagedRecords::default();
            for (key, value, headers, timestamp_ms) in &given {
                let record = Record { key: key.clone(), value: value.clone(), headers: headers.clone(), timestamp_ms: *timestamp_ms };
                staged.push(&record, -1).unwrap();
            }
            prop_assert_eq!(staged.rows as usize, given.len());
            prop_assert_eq!(staged.chunk_ends.last().copied().unwrap_or(0), staged.data.len());
            let got: Vec<_> = staged.chunks().flat_map(records).map(Result::unwrap).collect();
            prop_assert_eq!(got.len(), given.len());
            for (got, (key, value, headers, timestamp_ms)) in got.iter().zip(&given) {
                prop_assert_eq!(got.key, key.as_deref());
                prop_assert_eq!(got.value, value.as_deref());
                prop_assert_eq!(got.timestamp_ms, *timestamp_ms);
                let expected: Vec<(&str, &[u8])> = headers.iter().map(|(n, v)| (n.as_str(), v.as_ref())).collect();
                prop_assert_eq!(got.headers().collect::<Vec<_>>(), expected);
            }
            // Cut bytes are fewer records, or an error, never a panic.
            let cut = &staged.data[..cut.index(staged.data.len() + 1)];
            prop_assert!(records(cut).filter(Result::is_ok).count() <= given.len());
        }
    }

    #[test]
    fn full_chunks_are_cut() {
        let mut staged = StagedRecords::default();
        let record = Record {
            key: None,
            value: Some(Bytes::from(vec![7; CHUNK_BYTES / 3])),
            headers: vec![],
            timestamp_ms: None,
        };
        for _ in 0..8 {
            staged.push(&record, -1).unwrap();
        }
        let rows: Vec<usize> = staged
            .chunks()
            .map(|chunk| records(chunk).count())
            .collect();
        // Three heads of records are more than what a third leaves.
        assert_eq!(rows, [2, 2, 2, 2]);
    }
}
