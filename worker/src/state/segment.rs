//! The changelog segment: the changes of one key group and epoch as self-contained bytes.
//!
//! ```text
//! "PSEG" | version u8 | key group u16 | epoch u64 | tables... | crc32c u32       (integers little endian)
//! table: 1u8 | id u64 | prefixes varint, each: length varint, bytes | entries...| 0u8
//! entry: 1u8 put or 2u8 delete | shared varint | rest varint, bytes | put: length varint, stored value
//! end:   0u8 in the place of a table
//! ```
//! Keys ascend strictly; `shared` counts the bytes in common with the key before. Varints are LEB128.

use bytes::Bytes;

use crate::error::{EngineError, Result};

use super::layer::{ChangeSink, Changes};
use super::{Change, TableId, stored};

const MAGIC: &[u8; 4] = b"PSEG";
const VERSION: u8 = 1;
const HEADER: usize = 4 + 1 + 2 + 8;
const END: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const TABLE: u8 = 1;

fn corrupt(what: &str) -> EngineError {
    EngineError::fail("PR0501", "changelog segment", format!("corrupt: {what}"))
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

struct Writer {
    out: Vec<u8>,
    prefixes: Vec<Bytes>,
    in_entries: bool,
    in_table: bool,
    last: Vec<u8>,
}

impl Writer {
    fn end_prefixes(&mut self) {
        if self.in_entries {
            return;
        }
        self.in_entries = true;
        put_varint(&mut self.out, self.prefixes.len() as u64);
        for p in self.prefixes.drain(..) {
            put_varint(&mut self.out, p.len() as u64);
            self.out.extend_from_slice(&p);
        }
    }

    fn end_table(&mut self) {
        if self.in_table {
            self.end_prefixes();
            self.out.push(END);
        }
        self.in_table = false;
    }

    fn entry(&mut self, tag: u8, key: &[u8]) {
        self.end_prefixes();
        let shared = self
            .last
            .iter()
            .zip(key)
            .take_while(|(a, b)| a == b)
            .count();
        self.out.push(tag);
        put_varint(&mut self.out, shared as u64);
        put_varint(&mut self.out, (key.len() - shared) as u64);
        self.out.extend_from_slice(&key[shared..]);
        self.last.truncate(shared);
        self.last.extend_from_slice(&key[shared..]);
    }
}

impl ChangeSink for Writer {
    fn table(&mut self, table: TableId) -> Result<()> {
        self.end_table();
        self.in_table = true;
        self.in_entries = false;
        self.last.clear();
        self.out.push(TABLE);
        self.out.extend_from_slice(&table.get().to_le_bytes());
        Ok(())
    }
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<()> {
        self.prefixes.push(Bytes::copy_from_slice(prefix));
        Ok(())
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.entry(PUT, key);
        put_varint(&mut self.out, value.len() as u64);
        self.out.extend_from_slice(value);
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.entry(DELETE, key);
        Ok(())
    }
}

/// Encodes the changes of one key group.
pub(super) fn encode(group: u16, epoch: u64, changes: &dyn Changes) -> Result<Vec<u8>> {
    let mut w = Writer {
        out: Vec::with_capacity(4096),
        prefixes: Vec::new(),
        in_entries: false,
        in_table: false,
        last: Vec::new(),
    };
    w.out.extend_from_slice(MAGIC);
    w.out.push(VERSION);
    w.out.extend_from_slice(&group.to_le_bytes());
    w.out.extend_from_slice(&epoch.to_le_bytes());
    changes.replay(&mut w)?;
    w.end_table();
    w.out.push(END);
    let crc = crc32c::crc32c(&w.out);
    w.out.extend_from_slice(&crc.to_le_bytes());
    Ok(w.out)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| corrupt("it ends early"))?;
        self.rest = rest;
        Ok(head)
    }
    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?
            .try_into()
            .map_err(|_| corrupt("it ends early"))
    }
    fn length(&mut self) -> Result<usize> {
        let mut v = 0u64;
        for shift in (0..63).step_by(7) {
            let b = self.byte()?;
            v |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return usize::try_from(v).map_err(|_| corrupt("a length is out of range"));
            }
        }
        Err(corrupt("a length is out of range"))
    }
    fn counted(&mut self) -> Result<&'a [u8]> {
        let n = self.length()?;
        self.take(n)
    }
}

/// A changelog segment whose checksum and shape were found right.
#[derive(Debug, Clone)]
pub struct Segment {
    group: u16,
    epoch: u64,
    bytes: Bytes,
}

impl Segment {
    /// Refuses corrupt bytes: checksum, bounds, order of keys, form of values.
    pub fn parse(bytes: Bytes) -> Result<Self> {
        let body = bytes
            .len()
            .checked_sub(4)
            .filter(|n| *n > HEADER)
            .ok_or_else(|| corrupt("it ends early"))?;
        let mut crc = Reader {
            rest: &bytes[body..],
        };
        if u32::from_le_bytes(crc.array()?) != crc32c::crc32c(&bytes[..body]) {
            return Err(corrupt("its checksum does not match"));
        }
        let mut r = Reader {
            rest: &bytes[..body],
        };
        if r.take(4)? != MAGIC {
            return Err(corrupt("it is no segment"));
        }
        let version = r.byte()?;
        if version != VERSION {
            return Err(EngineError::fail(
                "PR0502",
                "changelog segment",
                format!("format {version} is unknown to this version, which reads {VERSION}"),
            ));
        }
        let segment = Self {
            group: u16::from_le_bytes(r.array()?),
            epoch: u64::from_le_bytes(r.array()?),
            bytes: bytes.slice(..body),
        };
        segment.replay(&mut Check)?;
        Ok(segment)
    }

    pub fn key_group(&self) -> u16 {
        self.group
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Changes for Segment {
    fn replay(&self, sink: &mut dyn ChangeSink) -> Result<()> {
        let mut r = Reader {
            rest: &self.bytes[HEADER..],
        };
        let mut key = Vec::new();
        loop {
            match r.byte()? {
                END => break,
                TABLE => {}
                _ => return Err(corrupt("a table is expected")),
            }
            sink.table(TableId::from_raw(u64::from_le_bytes(r.array()?)))?;
            for _ in 0..r.length()? {
                sink.delete_prefix(r.counted()?)?;
            }
            key.clear();
            let mut first = true;
            loop {
                let tag = r.byte()?;
                if tag == END {
                    break;
                }
                let shared = r.length()?;
                if shared > key.len() {
                    return Err(corrupt("a key shares more than there is"));
                }
                let rest = r.counted()?;
                let ascends = first || rest > &key[shared..];
                if !ascends {
                    return Err(corrupt("keys do not ascend"));
                }
                first = false;
                key.truncate(shared);
                key.extend_from_slice(rest);
                match tag {
                    PUT => sink.put(&key, r.counted()?)?,
                    DELETE => sink.delete(&key)?,
                    _ => return Err(corrupt("an entry is expected")),
                }
            }
        }
        if r.rest.is_empty() {
            Ok(())
        } else {
            Err(corrupt("bytes follow its end"))
        }
    }
}

/// Looks at each stored value, so that no later reader has to.
struct Check;

impl ChangeSink for Check {
    fn table(&mut self, _: TableId) -> Result<()> {
        Ok(())
    }
    fn delete_prefix(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn put(&mut self, _: &[u8], value: &[u8]) -> Result<()> {
        match stored::split(value) {
            Some(_) => Ok(()),
            None => Err(corrupt("a value has no header")),
        }
    }
    fn delete(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

struct Collect {
    table: TableId,
    out: Vec<Change>,
}

impl ChangeSink for Collect {
    fn table(&mut self, table: TableId) -> Result<()> {
        self.table = table;
        Ok(())
    }
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<()> {
        self.out.push(Change::DeletePrefix {
            table: self.table,
            prefix: Bytes::copy_from_slice(prefix),
        });
        Ok(())
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (at, _) = stored::split(value).ok_or_else(|| corrupt("a value has no header"))?;
        self.out.push(Change::Put {
            table: self.table,
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(&value[at..]),
        });
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.out.push(Change::Delete {
            table: self.table,
            key: Bytes::copy_from_slice(key),
        });
        Ok(())
    }
}

/// Decodes a changelog segment, for `penstock state`: values as the operator wrote them, in the order they apply (per
/// table prefix deletes first). Refuses corrupt bytes. To restore, hand the bytes to [`Segment::parse`] instead, which
/// keeps the times that TTLs need.
pub fn decode_segment(bytes: &[u8]) -> Result<Vec<Change>> {
    let segment = Segment::parse(Bytes::copy_from_slice(bytes))?;
    let mut collect = Collect {
        table: TableId::from_raw(0),
        out: Vec::new(),
    };
    segment.replay(&mut collect)?;
    Ok(collect.out)
}
