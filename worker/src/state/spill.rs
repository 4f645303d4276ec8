//! Sorted runs on scratch files: where the dirty part goes when the memory for changes is used up before the barrier.
//! A run is read as an overlay, like the memory part it came from, until its layer is applied. The file has no name, so
//! nothing is left of it when the process dies.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{EngineError, Result};

use super::TableId;
use super::layer::{Cursor, MemCursor, Tier};
use super::table::{Found, MemTable, Prefixes, Tables, hash};

/// A block is read whole for one key.
const BLOCK: usize = 4096;
const DELETE: u32 = u32::MAX;

#[derive(Debug)]
struct Section {
    table: TableId,
    group: u16,
    prefixes: Prefixes,
    /// First key and place of each block, in key order.
    blocks: Vec<(Bytes, u64, u32)>,
    filter: Filter,
}

/// One spilled dirty part: sections by (table, key group).
#[derive(Debug)]
pub(super) struct Run {
    dir: PathBuf,
    file: File,
    sections: Vec<Section>,
    bytes: usize,
}

/// A Bloom filter of 8 bits and 4 probes a key: about 2.5 % of absent keys cost a read.
#[derive(Debug)]
struct Filter {
    words: Vec<u64>,
}

impl Filter {
    fn new(keys: usize) -> Self {
        Self {
            words: vec![0; keys.div_ceil(8).next_power_of_two()],
        }
    }
    fn probes(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> {
        let mask = self.words.len() * 64 - 1;
        let step = (hash >> 32) | 1;
        (0..4u64).map(move |i| {
            let bit = hash.wrapping_add(i.wrapping_mul(step)) as usize & mask;
            (bit / 64, 1 << (bit % 64))
        })
    }
    fn insert(&mut self, hash: u64) {
        let probes: Vec<_> = self.probes(hash).collect();
        for (word, bit) in probes {
            self.words[word] |= bit;
        }
    }
    fn may_hold(&self, hash: u64) -> bool {
        self.probes(hash)
            .all(|(word, bit)| self.words[word] & bit != 0)
    }
}

fn failed(dir: &Path, what: &str) -> impl FnOnce(std::io::Error) -> EngineError {
    let object = format!("scratch file in {}", dir.display());
    let message = what.to_owned();
    move |e| EngineError::fail("PR0409", object, message).caused_by(e)
}

impl Run {
    /// Writes the tables out. They stay as they are, so a failure loses nothing.
    pub(super) fn write(dir: &Path, tables: &Tables) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(failed(dir, "cannot make it"))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let mut at = 0u64;
        let mut sections = Vec::new();
        for (id, group, table) in tables.iter() {
            if !table.is_empty() {
                sections.push(
                    write_section(&mut out, &mut at, id, group, table)
                        .map_err(failed(dir, "cannot write to it"))?,
                );
            }
        }
        let file = out
            .into_inner()
            .map_err(|e| failed(dir, "cannot write to it")(e.into_error()))?;
        sections.sort_by_key(|s| (s.table, s.group));
        Ok(Self {
            dir: dir.to_owned(),
            file,
            sections,
            bytes: at as usize,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory that its index and filters take.
    pub(super) fn memory_bytes(&self) -> usize {
        self.sections
            .iter()
            .map(|s| s.filter.words.len() * 8 + s.blocks.len() * 80)
            .sum()
    }

    fn section(&self, table: TableId, group: u16) -> Option<&Section> {
        let i = self
            .sections
            .binary_search_by_key(&(table, group), |s| (s.table, s.group))
            .ok()?;
        Some(&self.sections[i])
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = (TableId, u16, bool)> {
        self.sections
            .iter()
            .map(|s| (s.table, s.group, !s.blocks.is_empty()))
    }

    pub(super) fn get(&self, table: TableId, group: u16, hash: u64, key: &[u8]) -> Result<Found> {
        let Some(s) = self.section(table, group) else {
            return Ok(Found::Unknown);
        };
        if s.filter.may_hold(hash) {
            let i = s.blocks.partition_point(|(first, _, _)| &first[..] <= key);
            if i > 0 {
                let mut block = self.block(&s.blocks[i - 1])?;
                while let Some((k, v)) = block.entry() {
                    if k == key {
                        return Ok(
                            v.map_or(Found::Absent, |v| Found::Value(Bytes::copy_from_slice(v)))
                        );
                    }
                    block.next();
                }
            }
        }
        Ok(if s.prefixes.covers(key) {
            Found::Absent
        } else {
            Found::Unknown
        })
    }

    pub(super) fn tier(
        &self,
        table: TableId,
        group: u16,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Option<Tier<'_>>> {
        let Some(s) = self.section(table, group) else {
            return Ok(None);
        };
        let from = after.filter(|a| *a >= prefix).unwrap_or(prefix);
        let i = s.blocks.partition_point(|(first, _, _)| &first[..] <= from);
        let mut walk = RunCursor {
            run: self,
            section: s,
            next: i.saturating_sub(1),
            block: Block::default(),
            prefix: prefix.to_vec(),
        };
        walk.fill()?;
        while walk
            .block
            .entry()
            .is_some_and(|(k, _)| k < prefix || after.is_some_and(|a| k <= a))
        {
            walk.advance()?;
        }
        Ok(Some(Tier {
            cursor: Box::new(walk),
            masks: &s.prefixes,
        }))
    }

    fn block(&self, (_, at, len): &(Bytes, u64, u32)) -> Result<Block> {
        let mut bytes = vec![0; *len as usize];
        self.file
            .read_exact_at(&mut bytes, *at)
            .map_err(failed(&self.dir, "cannot read it"))?;
        Ok(Block { bytes, at: 0 })
    }
}

fn write_section(
    out: &mut impl Write,
    at: &mut u64,
    table: TableId,
    group: u16,
    from: &MemTable,
) -> std::io::Result<Section> {
    let mut section = Section {
        table,
        group,
        prefixes: from.prefixes().clone(),
        blocks: Vec::new(),
        filter: Filter::new(from.entries().len()),
    };
    let mut block = Vec::with_capacity(2 * BLOCK);
    let mut first = Bytes::new();
    let mut end_block = |block: &mut Vec<u8>, first: &Bytes| -> std::io::Result<()> {
        out.write_all(block)?;
        section
            .blocks
            .push((first.clone(), *at, block.len() as u32));
        *at += block.len() as u64;
        block.clear();
        Ok(())
    };
    let mut walk = MemCursor::new(from, &[], None);
    while let Some(key) = walk.key() {
        if block.is_empty() {
            first = Bytes::copy_from_slice(key);
        }
        section.filter.insert(hash(key));
        let value = walk.value();
        block.extend_from_slice(&(key.len() as u32).to_le_bytes());
        block.extend_from_slice(&value.map_or(DELETE, |v| v.len() as u32).to_le_bytes());
        block.extend_from_slice(key);
        block.extend_from_slice(value.unwrap_or_default());
        if block.len() >= BLOCK {
            end_block(&mut block, &first)?;
        }
        walk.step();
    }
    if !block.is_empty() {
        end_block(&mut block, &first)?;
    }
    Ok(section)
}

#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    at: usize,
}

impl Block {
    fn number(&self, at: usize) -> Option<u32> {
        let n = self.bytes.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*n))
    }
    fn entry(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let key = self.number(self.at)? as usize;
        let value = self.number(self.at + 4)?;
        let rest = self.bytes.get(self.at + 8..)?;
        let value = match value {
            DELETE => None,
            n => Some(rest.get(key..key + n as usize)?),
        };
        Some((rest.get(..key)?, value))
    }
    fn next(&mut self) {
        if let Some((k, v)) = self.entry() {
            self.at += 8 + k.len() + v.map_or(0, <[u8]>::len);
        }
    }
}

struct RunCursor<'a> {
    run: &'a Run,
    section: &'a Section,
    /// The block to read when this one ends.
    next: usize,
    block: Block,
    prefix: Vec<u8>,
}

impl RunCursor<'_> {
    fn fill(&mut self) -> Result<()> {
        if self.block.entry().is_none()
            && let Some(place) = self.section.blocks.get(self.next)
        {
            self.block = self.run.block(place)?;
            self.next += 1;
        }
        Ok(())
    }
}

impl Cursor for RunCursor<'_> {
    fn key(&self) -> Option<&[u8]> {
        let (key, _) = self.block.entry()?;
        // Blocks begin before the first key asked for; those are walked over before anybody looks.
        key.starts_with(&self.prefix).then_some(key)
    }
    fn value(&self) -> Option<&[u8]> {
        self.block.entry()?.1
    }
    fn advance(&mut self) -> Result<()> {
        self.block.next();
        self.fill()
    }
}
