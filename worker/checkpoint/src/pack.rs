//! The pack: one object that a worker writes per epoch with state changes, staged outputs and sink tokens, in named sections
//! that can be read one by one. Owns the bytes; what the keys and values are is the worker's.
//!
//! ```text
//! header   magic 8, format u16, min_reader u16, log 16, epoch u64, generation u64, nonce 16, crc u32      (64 bytes)
//! sections each as the index says
//! index    count u32, then per section: kind u8, name length u16, name, number u16 (key group or shard), chunk u32,
//!          object u32 (0: this one, n: <pack>-out-<n-1>), offset u64, length u64, items u32, crc u32
//! trailer  index length u32, index crc u32, magic 8                                                      (16 bytes)
//! ```
//! All integers are little endian. A commit names a pack with the checksum of its index, which binds header and sections.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::envelope::DecodeError;
use crate::ids::{Epoch, Generation, KeyGroup, LogId, MemberId, Nonce, ShardId, SinkName};
use crate::record::PackRef;

mod output;
mod segment;
#[cfg(test)]
mod tests;

pub use output::{Chunk, ChunkBuilder, OutputRecord, Outputs};
pub use segment::{Change, Changes, RangeDelete, Segment, SegmentBuilder};

const MAGIC: &[u8; 8] = b"PSTKPACK";
const OUT_MAGIC: &[u8; 8] = b"PSTKOUTS";
const FORMAT: u16 = 1;
const READER: u16 = 1;
const HEADER: usize = 64;
const TRAILER: usize = 16;
/// Outputs above this many bytes go to objects of their own, so that reading state does not read them.
pub const INLINE_OUTPUTS: usize = 256 << 10;
/// About this many bytes go into one object of outputs.
pub const OUT_OBJECT: usize = 32 << 20;

/// Whose pack it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackId {
    pub log: LogId,
    pub epoch: Epoch,
    pub generation: Generation,
    pub nonce: Nonce,
}

impl PackId {
    pub fn path(&self, worker: MemberId) -> String {
        format!(
            "pack/{:020}/{}-{worker}-{}",
            self.epoch, self.generation, self.nonce
        )
    }

    fn header(&self, magic: &[u8; 8]) -> [u8; HEADER] {
        let mut h = [0; HEADER];
        h[..8].copy_from_slice(magic);
        h[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        h[10..12].copy_from_slice(&FORMAT.to_le_bytes());
        h[12..28].copy_from_slice(self.log.as_bytes());
        h[28..36].copy_from_slice(&self.epoch.get().to_le_bytes());
        h[36..44].copy_from_slice(&self.generation.get().to_le_bytes());
        h[44..60].copy_from_slice(self.nonce.as_bytes());
        let crc = crc32c::crc32c(&h[..60]);
        h[60..].copy_from_slice(&crc.to_le_bytes());
        h
    }
}

/// What a section is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SectionName {
    /// Changes of one key group.
    State(KeyGroup),
    /// One chunk of what a sink's shard publishes. Chunks are counted from 0 within a pack.
    Output {
        sink: SinkName,
        shard: ShardId,
        chunk: u32,
    },
    /// What a sink keeps to finish its work after the commit (an upload's parts, its unsent tail).
    Token { sink: SinkName, shard: ShardId },
}

/// Where a section lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// `None`: in the pack; `Some(n)`: in `<pack>-out-<n>`.
    pub out: Option<u32>,
    pub offset: u64,
    pub length: u64,
    pub items: u32,
    pub crc: u32,
}

/// An object to be written, and then named.
#[derive(Clone, Debug)]
pub struct PackObject {
    pub path: String,
    pub body: Bytes,
}

/// Puts a pack together. Sections are copied once, into the object's bytes.
#[derive(Debug)]
pub struct PackWriter {
    id: PackId,
    path: String,
    body: Vec<u8>,
    outs: Vec<Vec<u8>>,
    index: Vec<(SectionName, Section)>,
    inline_outputs: usize,
}

impl PackWriter {
    pub fn new(id: PackId, worker: MemberId) -> Self {
        let body = id.header(MAGIC).to_vec();
        Self {
            id,
            path: id.path(worker),
            body,
            outs: Vec::new(),
            index: Vec::new(),
            inline_outputs: 0,
        }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes so far, for budgets.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.outs.iter().map(Vec::len).sum::<usize>()
    }

    /// The changes of one key group; at most one segment for each.
    pub fn segment(&mut self, key_group: KeyGroup, segment: &SegmentBuilder) {
        if segment.is_empty() {
            return;
        }
        let (head, body) = segment.parts();
        self.section(
            SectionName::State(key_group),
            segment.items(),
            &[&head, body],
        );
    }

    /// As `segment`, of changes that the caller has put together and checks itself; empty ones are left out.
    pub fn segment_bytes(&mut self, key_group: KeyGroup, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.section(SectionName::State(key_group), 1, &[bytes]);
        }
    }

    /// As `chunk`, of records whose layout is the caller's.
    pub fn chunk_bytes(&mut self, sink: &SinkName, shard: ShardId, bytes: &[u8]) {
        let n = self.index.iter().filter(|(name, _)| {
            matches!(name, SectionName::Output { sink: s, shard: h, .. } if s == sink && *h == shard)
        });
        let chunk = u32::try_from(n.count()).unwrap_or(u32::MAX);
        self.section(
            SectionName::Output {
                sink: sink.clone(),
                shard,
                chunk,
            },
            1,
            &[bytes],
        );
    }

    /// A chunk as it was cut when it was staged. Call in the order of chunks; the number is given here.
    pub fn chunk(&mut self, sink: &SinkName, shard: ShardId, chunk: &Chunk) {
        let n = self.index.iter().filter(|(name, _)| {
            matches!(name, SectionName::Output { sink: s, shard: h, .. } if s == sink && *h == shard)
        });
        let number = u32::try_from(n.count()).unwrap_or(u32::MAX);
        let name = SectionName::Output {
            sink: sink.clone(),
            shard,
            chunk: number,
        };
        self.section(name, chunk.records(), &[chunk.bytes()]);
    }

    pub fn token(&mut self, sink: &SinkName, shard: ShardId, token: &[u8]) {
        self.section(
            SectionName::Token {
                sink: sink.clone(),
                shard,
            },
            1,
            &[token],
        );
    }

    fn section(&mut self, name: SectionName, items: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        let output = matches!(name, SectionName::Output { .. });
        // Outputs stay inline up to the limit, then go beside: what is inline already stays where it is.
        let beside = output && (self.inline_outputs + length > INLINE_OUTPUTS);
        let (out, target) = if beside {
            if self
                .outs
                .last()
                .is_none_or(|o| o.len() + length > OUT_OBJECT && o.len() > HEADER)
            {
                self.outs.push(self.id.header(OUT_MAGIC).to_vec());
            }
            let n = self.outs.len() - 1;
            (
                Some(u32::try_from(n).unwrap_or(u32::MAX)),
                &mut self.outs[n],
            )
        } else {
            if output {
                self.inline_outputs += length;
            }
            (None, &mut self.body)
        };
        let offset = target.len() as u64;
        let mut crc = 0;
        for part in parts {
            crc = crc32c::crc32c_append(crc, part);
            target.extend_from_slice(part);
        }
        self.index.push((
            name,
            Section {
                out,
                offset,
                length: length as u64,
                items,
                crc,
            },
        ));
    }

    /// The objects to write, the pack last, and what a commit says of them. Nothing to write when there is no section.
    pub fn finish(mut self) -> (Vec<PackObject>, Option<PackRef>) {
        if self.index.is_empty() {
            return (Vec::new(), None);
        }
        let from = self.body.len();
        self.body
            .extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        let mut key_groups = Vec::new();
        let mut outputs: BTreeMap<SinkName, BTreeMap<ShardId, u32>> = BTreeMap::new();
        for (name, section) in &self.index {
            let (kind, text, number, chunk) = match name {
                SectionName::State(kg) => {
                    key_groups.push(*kg);
                    (0u8, "", kg.get(), 0)
                }
                SectionName::Output { sink, shard, chunk } => {
                    *outputs
                        .entry(sink.clone())
                        .or_default()
                        .entry(*shard)
                        .or_default() += 1;
                    (1, sink.as_str(), shard.get(), *chunk)
                }
                SectionName::Token { sink, shard } => (2, sink.as_str(), shard.get(), 0),
            };
            let b = &mut self.body;
            b.push(kind);
            // Names of sinks are bounded by the manifest's schema, far below this.
            b.extend_from_slice(&(text.len() as u16).to_le_bytes());
            b.extend_from_slice(text.as_bytes());
            b.extend_from_slice(&number.to_le_bytes());
            b.extend_from_slice(&chunk.to_le_bytes());
            b.extend_from_slice(&section.out.map_or(0, |n| n + 1).to_le_bytes());
            b.extend_from_slice(&section.offset.to_le_bytes());
            b.extend_from_slice(&section.length.to_le_bytes());
            b.extend_from_slice(&section.items.to_le_bytes());
            b.extend_from_slice(&section.crc.to_le_bytes());
        }
        // The checksum covers the header too, so that an index under another's header is found.
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.body[..HEADER]), &self.body[from..]);
        let index = self.body.len() - from;
        self.body.extend_from_slice(&(index as u32).to_le_bytes());
        self.body.extend_from_slice(&crc.to_le_bytes());
        self.body.extend_from_slice(MAGIC);
        let pack = PackRef {
            path: self.path.clone(),
            length: self.body.len() as u64,
            index_length: (index + TRAILER) as u32,
            crc,
            key_groups,
            outputs,
            outs: self.outs.iter().map(|o| o.len() as u64).collect(),
            of: None,
        };
        let mut objects: Vec<PackObject> = self
            .outs
            .into_iter()
            .enumerate()
            .map(|(n, body)| PackObject {
                path: pack.out_path(n),
                body: body.into(),
            })
            .collect();
        objects.push(PackObject {
            path: self.path,
            body: self.body.into(),
        });
        (objects, Some(pack))
    }
}

/// The index of a pack: where each section lies.
#[derive(Clone, Debug, PartialEq)]
pub struct PackIndex {
    sections: BTreeMap<SectionName, Section>,
}

fn damaged(why: &str) -> DecodeError {
    DecodeError::damaged(why)
}

impl PackIndex {
    /// The ranges of the pack to read for `open`: header and index.
    pub fn ranges(pack: &PackRef) -> (std::ops::Range<u64>, std::ops::Range<u64>) {
        (
            0..HEADER as u64,
            pack.length.saturating_sub(u64::from(pack.index_length))..pack.length,
        )
    }

    /// Reads header and index, as `ranges` names them, of the pack that a commit of `log` names.
    ///
    /// # Errors
    /// `Damaged` when they are not what the commit says, `TooNew` when another reader is asked for.
    pub fn open(
        pack: &PackRef,
        log: LogId,
        header: &[u8],
        tail: &[u8],
    ) -> Result<PackIndex, DecodeError> {
        check_header(header, MAGIC, pack.of.unwrap_or(log))?;
        if tail.len() != pack.index_length as usize || tail.len() < TRAILER + 4 {
            return Err(damaged("its index is cut short"));
        }
        let (index, trailer) = tail.split_at(tail.len() - TRAILER);
        let mut r = Reader(trailer);
        let (length, crc) = (r.u32()?, r.u32()?);
        if r.0 != MAGIC || length as usize != index.len() {
            return Err(damaged("its trailer is not one"));
        }
        if crc != pack.crc || crc32c::crc32c_append(crc32c::crc32c(header), index) != crc {
            return Err(damaged("its index has another checksum"));
        }
        let mut r = Reader(index);
        let count = r.u32()?;
        let mut sections = BTreeMap::new();
        for _ in 0..count {
            let kind = r.take(1)?[0];
            let n = r.u16()?;
            let text = std::str::from_utf8(r.take(usize::from(n))?)
                .map_err(|_| damaged("a name is not text"))?;
            let (number, chunk, object) = (r.u16()?, r.u32()?, r.u32()?);
            let section = Section {
                out: object.checked_sub(1),
                offset: r.u64()?,
                length: r.u64()?,
                items: r.u32()?,
                crc: r.u32()?,
            };
            let whole = match section.out {
                None => pack.length.saturating_sub(u64::from(pack.index_length)),
                Some(n) => *pack
                    .outs
                    .get(n as usize)
                    .ok_or_else(|| damaged("it names an object that the commit does not"))?,
            };
            let end = section.offset.checked_add(section.length);
            if section.offset < HEADER as u64 || end.is_none_or(|end| end > whole) {
                return Err(damaged("a section lies outside"));
            }
            let name = match kind {
                0 => SectionName::State(KeyGroup::new(number)),
                1 => SectionName::Output {
                    sink: SinkName::new(text),
                    shard: ShardId::new(number),
                    chunk,
                },
                2 => SectionName::Token {
                    sink: SinkName::new(text),
                    shard: ShardId::new(number),
                },
                _ => return Err(damaged("a section of no known kind")),
            };
            if sections.insert(name, section).is_some() {
                return Err(damaged("a section stands twice"));
            }
        }
        if !r.0.is_empty() {
            return Err(damaged("bytes after the index"));
        }
        Ok(PackIndex { sections })
    }

    /// As `open`, of a pack that is in memory whole.
    pub fn of_whole(pack: &PackRef, log: LogId, body: &[u8]) -> Result<PackIndex, DecodeError> {
        if body.len() as u64 != pack.length || body.len() < HEADER + TRAILER {
            return Err(damaged("its length is another"));
        }
        let (header, tail) = Self::ranges(pack);
        Self::open(
            pack,
            log,
            &body[header.start as usize..header.end as usize],
            &body[tail.start as usize..],
        )
    }

    pub fn section(&self, name: &SectionName) -> Option<Section> {
        self.sections.get(name).copied()
    }

    /// In order of name: key groups, then outputs by sink, shard and chunk, then tokens.
    pub fn sections(&self) -> impl Iterator<Item = (&SectionName, &Section)> {
        self.sections.iter()
    }

    /// The chunks of one shard, in order.
    pub fn chunks<'a>(
        &'a self,
        sink: &'a SinkName,
        shard: ShardId,
    ) -> impl Iterator<Item = (u32, Section)> + 'a {
        let at = |chunk| SectionName::Output {
            sink: sink.clone(),
            shard,
            chunk,
        };
        self.sections
            .range(at(0)..=at(u32::MAX))
            .filter_map(|(name, s)| match name {
                SectionName::Output { chunk, .. } => Some((*chunk, *s)),
                _ => None,
            })
    }
}

fn check_header(header: &[u8], magic: &[u8; 8], log: LogId) -> Result<(), DecodeError> {
    if header.len() != HEADER || &header[..8] != magic {
        return Err(damaged("it does not begin as one"));
    }
    let mut r = Reader(&header[60..]);
    if crc32c::crc32c(&header[..60]) != r.u32()? {
        return Err(damaged("its header has another checksum"));
    }
    let asks = Reader(&header[10..]).u16()?;
    if asks > READER {
        return Err(DecodeError::TooNew {
            asks,
            reader: READER,
        });
    }
    if header[12..28] != log.as_bytes()[..] {
        return Err(damaged("it belongs to another log"));
    }
    Ok(())
}

impl Section {
    /// The range to read in its object.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.offset..self.offset + self.length
    }

    /// `bytes` if they are this section's.
    pub fn check<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        if bytes.len() as u64 != self.length {
            return Err(damaged("a section is cut short"));
        }
        if crc32c::crc32c(bytes) != self.crc {
            return Err(damaged("a section has another checksum"));
        }
        Ok(bytes)
    }
}

/// Reads from the front and never past the end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| damaged("it is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| damaged("it is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }
}
