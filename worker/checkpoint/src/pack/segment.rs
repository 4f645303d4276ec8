//! The changes of one key group in one epoch: range deletes, which apply first, then puts and deletes in order of keys.
//! Owns the bytes and their checks; keys carry table and namespace in the worker's own encoding.
//!
//! `ranges u32, changes u32`, then per range `from length u32, to length u32, from, to`, then per change
//! `key length u32, value length u32 (all ones: a delete), key, value`.

use super::{Reader, damaged};
use crate::envelope::DecodeError;

const DELETED: u32 = u32::MAX;

/// Collects a segment: all range deletes before the first change, changes in strictly rising order of keys.
#[derive(Clone, Debug, Default)]
pub struct SegmentBuilder {
    ranges: u32,
    changes: u32,
    body: Vec<u8>,
}

impl SegmentBuilder {
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            ranges: 0,
            changes: 0,
            body: Vec::with_capacity(bytes),
        }
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.ranges = 0;
        self.changes = 0;
        self.body.clear();
    }

    /// Deletes `from` (inclusive) to `to` (exclusive), before any change of this segment.
    ///
    /// # Panics
    /// In builds with debug assertions, after a change.
    pub fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        debug_assert_eq!(self.changes, 0, "range deletes come first");
        self.ranges += 1;
        self.body
            .extend_from_slice(&(from.len() as u32).to_le_bytes());
        self.body
            .extend_from_slice(&(to.len() as u32).to_le_bytes());
        self.body.extend_from_slice(from);
        self.body.extend_from_slice(to);
    }

    /// Keys rise strictly over `put` and `delete`.
    #[inline]
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.change(key, value.len() as u32, value);
    }

    #[inline]
    pub fn delete(&mut self, key: &[u8]) {
        self.change(key, DELETED, &[]);
    }

    #[inline]
    fn change(&mut self, key: &[u8], length: u32, value: &[u8]) {
        self.changes += 1;
        self.body.reserve(8 + key.len() + value.len());
        self.body
            .extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.body.extend_from_slice(&length.to_le_bytes());
        self.body.extend_from_slice(key);
        self.body.extend_from_slice(value);
    }

    pub fn is_empty(&self) -> bool {
        self.items() == 0
    }

    pub fn bytes(&self) -> usize {
        self.body.len() + 8
    }

    pub(super) fn items(&self) -> u32 {
        self.ranges + self.changes
    }

    pub(super) fn parts(&self) -> ([u8; 8], &[u8]) {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&self.ranges.to_le_bytes());
        head[4..].copy_from_slice(&self.changes.to_le_bytes());
        (head, &self.body)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeDelete<'a> {
    pub from: &'a [u8],
    pub to: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    pub key: &'a [u8],
    /// `None`: the key is deleted.
    pub value: Option<&'a [u8]>,
}

/// A segment that was checked from end to end; borrowing, so that reading it copies nothing.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    ranges: Vec<RangeDelete<'a>>,
    changes: u32,
    body: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Walks the whole segment: every length, and the order of keys.
    pub fn open(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader(bytes);
        let (ranges, changes) = (r.u32()?, r.u32()?);
        let mut all = Vec::new();
        for _ in 0..ranges {
            let (from, to) = (r.u32()?, r.u32()?);
            all.push(RangeDelete {
                from: r.take(from as usize)?,
                to: r.take(to as usize)?,
            });
        }
        let body = r.0;
        let mut before: Option<&[u8]> = None;
        for _ in 0..changes {
            let change = next_change(&mut r)?;
            if before.is_some_and(|b| b >= change.key) {
                return Err(damaged("its keys are out of order"));
            }
            before = Some(change.key);
        }
        if !r.0.is_empty() {
            return Err(damaged("bytes after the last change"));
        }
        Ok(Self {
            ranges: all,
            changes,
            body,
        })
    }

    /// To be applied before `changes`.
    pub fn range_deletes(&self) -> &[RangeDelete<'a>] {
        &self.ranges
    }

    /// In order of keys.
    pub fn changes(&self) -> Changes<'a> {
        Changes {
            left: self.changes,
            reader: Reader(self.body),
        }
    }
}

fn next_change<'a>(r: &mut Reader<'a>) -> Result<Change<'a>, DecodeError> {
    let (key, value) = (r.u32()?, r.u32()?);
    let key = r.take(key as usize)?;
    let value = if value == DELETED {
        None
    } else {
        Some(r.take(value as usize)?)
    };
    Ok(Change { key, value })
}

pub struct Changes<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Iterator for Changes<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        self.left = self.left.checked_sub(1)?;
        // `open` has walked the same bytes.
        next_change(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}
