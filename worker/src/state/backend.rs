//! Where a key group's committed state rests: the seam, and the one in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::error::{EngineError, Result};

use super::TableId;
use super::layer::{ChangeSink, Changes, Cursor, prefix_end};
use super::segment;

/// Whose state an instance holds and up to where; written in the same batch as the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub log_id: String,
    pub key_group: u16,
    /// Of the schemas of all tables.
    pub schema_fingerprint: String,
    /// The newest committed epoch that it holds whole.
    pub epoch: u64,
    /// Of that epoch's commit record: tells an epoch from its namesake on a branch that was left.
    pub commit_checksum: u32,
}

/// Committed state of one key group. Shared by the slot's thread, which reads, and the applier's, which writes.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Appends one stored value, or `None`, per key; keys ascend.
    fn get_many(&self, table: TableId, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) -> Result<()>;
    /// The keys that start with `prefix` and are greater than `after`.
    fn cursor<'a>(
        &'a self,
        table: TableId,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>>;
    /// Writes all changes and the identity, or nothing.
    fn apply(&self, changes: &dyn Changes, identity: &Identity) -> Result<()>;
    /// What was written last; `None` for a new instance.
    fn identity(&self) -> Result<Option<Identity>>;
    /// True when no key of the table that starts with `key` (a key or a prefix) can be here; false is no promise.
    fn is_empty(&self, table: TableId, key: &[u8]) -> bool;
    /// The tables that may hold a key.
    fn tables(&self) -> Vec<TableId>;
    /// Bytes of live data, estimated.
    fn live_bytes(&self) -> u64;
    /// Bytes of a table's files, estimated, as of the last [`Self::measure`].
    fn on_disk(&self, table: TableId) -> u64;
    /// Looks anew at what its tables take on disk; costs a look at the index of each file.
    fn measure(&self);
    /// Keys asked of it since it was opened.
    fn reads(&self) -> u64;
    /// Bytes applied since the last flush, estimated.
    fn unflushed_bytes(&self) -> u64;
    /// Makes what was applied survive a kill.
    fn flush(&self) -> Result<()>;
    /// A base: files in `dir`, which is made, that hold the state of the newest applied epoch. The caller removes them.
    /// `name` is unique among all bases of the job.
    fn checkpoint(&self, dir: &Path, name: &str) -> Result<Base>;
}

/// A snapshot of one key group at a committed epoch, as files.
#[derive(Debug, Clone)]
pub struct Base {
    pub identity: Identity,
    pub files: Vec<BaseFile>,
}

/// One file of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseFile {
    /// Its name in the folder it is restored to.
    pub name: String,
    /// Its name among all files of all bases of the job: equal names are equal bytes, so it is uploaded once.
    pub unique: String,
    /// Where it lies now.
    pub path: PathBuf,
    pub length: u64,
    /// Whether later bases may name it again.
    pub shared: bool,
}

/// The one file of a base that a memory backend makes: a segment of everything.
pub(super) const SNAPSHOT: &str = "snapshot.segment";

#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    tables: BTreeMap<TableId, BTreeMap<Bytes, Bytes>>,
    identity: Option<Identity>,
    bytes: u64,
}

/// A backend that lives as long as its process; for benches and tests.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    inner: RwLock<Memory>,
    reads: AtomicU64,
}

impl MemoryBackend {
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(super) fn of(content: Memory) -> Self {
        Self {
            inner: RwLock::new(content),
            reads: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn snapshot(&self) -> Memory {
        self.inner.read().clone()
    }
}

#[cfg(test)]
impl Memory {
    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.clone()
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        self.identity.as_ref().map(|i| i.epoch)
    }
}

/// A page of the map: a cursor cannot hold the lock while the caller works.
struct Page<'a> {
    backend: &'a MemoryBackend,
    table: TableId,
    prefix: Vec<u8>,
    page: Vec<(Bytes, Bytes)>,
    at: usize,
}

const PAGE: usize = 256;

impl Page<'_> {
    fn load(&mut self, from: Bound<&[u8]>) {
        let inner = self.backend.inner.read();
        self.at = 0;
        self.page.clear();
        if let Some(t) = inner.tables.get(&self.table) {
            self.page.extend(
                t.range::<[u8], _>((from, Bound::Unbounded))
                    .take_while(|(k, _)| k.starts_with(&self.prefix))
                    .take(PAGE)
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
        }
    }
}

impl Cursor for Page<'_> {
    fn key(&self) -> Option<&[u8]> {
        self.page.get(self.at).map(|(k, _)| &k[..])
    }
    fn value(&self) -> Option<&[u8]> {
        self.page.get(self.at).map(|(_, v)| &v[..])
    }
    fn advance(&mut self) -> Result<()> {
        self.at += 1;
        if self.at == self.page.len()
            && let Some((last, _)) = self.page.last().cloned()
        {
            self.load(Bound::Excluded(&last[..]));
        }
        Ok(())
    }
}

impl Backend for MemoryBackend {
    fn get_many(&self, table: TableId, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) -> Result<()> {
        self.reads.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let inner = self.inner.read();
        match inner.tables.get(&table) {
            Some(t) => out.extend(keys.iter().map(|k| t.get(*k).cloned())),
            None => out.extend(keys.iter().map(|_| None)),
        }
        Ok(())
    }

    fn cursor<'a>(
        &'a self,
        table: TableId,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        let mut page = Page {
            backend: self,
            table,
            prefix: prefix.to_vec(),
            page: Vec::new(),
            at: 0,
        };
        match after {
            Some(a) if a >= prefix => page.load(Bound::Excluded(a)),
            _ => page.load(Bound::Included(prefix)),
        }
        Ok(Box::new(page))
    }

    fn apply(&self, changes: &dyn Changes, identity: &Identity) -> Result<()> {
        // Collected first: nothing is written when the changes cannot be read to their end.
        let mut batch = Batch::default();
        changes.replay(&mut batch)?;
        let mut inner = self.inner.write();
        let Memory {
            tables,
            identity: id,
            bytes,
        } = &mut *inner;
        for write in batch.writes {
            match write {
                Write::Prefix(table, prefix) => {
                    if let Some(t) = tables.get_mut(&table) {
                        let tail = t.split_off(&prefix);
                        let mut gone = tail;
                        if let Some(end) = prefix_end(&prefix) {
                            let mut keep = gone.split_off(&end[..]);
                            t.append(&mut keep);
                        }
                        *bytes -= gone.iter().map(|(k, v)| cost(k, v)).sum::<u64>();
                    }
                }
                Write::Put(table, key, value) => {
                    *bytes += cost(&key, &value);
                    if let Some(old) = tables.entry(table).or_default().insert(key.clone(), value) {
                        *bytes -= cost(&key, &old);
                    }
                }
                Write::Delete(table, key) => {
                    if let Some(old) = tables.get_mut(&table).and_then(|t| t.remove(&key)) {
                        *bytes -= cost(&key, &old);
                    }
                }
            }
        }
        *id = Some(identity.clone());
        Ok(())
    }

    fn identity(&self) -> Result<Option<Identity>> {
        Ok(self.inner.read().identity.clone())
    }

    fn is_empty(&self, table: TableId, key: &[u8]) -> bool {
        let inner = self.inner.read();
        inner.tables.get(&table).is_none_or(|t| {
            t.range::<[u8], _>((Bound::Included(key), Bound::Unbounded))
                .next()
                .is_none_or(|(k, _)| !k.starts_with(key))
        })
    }

    fn tables(&self) -> Vec<TableId> {
        let inner = self.inner.read();
        let held = inner.tables.iter().filter(|(_, rows)| !rows.is_empty());
        held.map(|(table, _)| *table).collect()
    }

    fn live_bytes(&self) -> u64 {
        self.inner.read().bytes
    }

    fn on_disk(&self, _: TableId) -> u64 {
        0
    }

    fn measure(&self) {}

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn unflushed_bytes(&self) -> u64 {
        0
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn checkpoint(&self, dir: &Path, name: &str) -> Result<Base> {
        let inner = self.inner.read();
        let identity = inner.identity.clone().ok_or_else(|| {
            EngineError::fail(
                "PR0513",
                "state in memory",
                "no epoch was applied, so there is no base to make",
            )
        })?;
        let bytes = segment::encode(identity.key_group, identity.epoch, &*inner)?;
        drop(inner);
        let path = dir.join(SNAPSHOT);
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&path, &bytes))
            .map_err(|e| {
                EngineError::fail(
                    "PR0409",
                    format!("state folder {}", dir.display()),
                    "cannot write to it",
                )
                .caused_by(e)
            })?;
        Ok(Base {
            files: vec![BaseFile {
                name: SNAPSHOT.to_owned(),
                unique: format!("{name}-{SNAPSHOT}"),
                path,
                length: bytes.len() as u64,
                shared: false,
            }],
            identity,
        })
    }
}

impl Changes for Memory {
    fn replay(&self, sink: &mut dyn ChangeSink) -> Result<()> {
        for (table, rows) in &self.tables {
            sink.table(*table)?;
            for (key, value) in rows {
                sink.put(key, value)?;
            }
        }
        Ok(())
    }
}

/// No changes: moves an instance to an epoch that changed nothing in it.
pub(super) struct Nothing;

impl Changes for Nothing {
    fn replay(&self, _: &mut dyn ChangeSink) -> Result<()> {
        Ok(())
    }
}

fn cost(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

enum Write {
    Prefix(TableId, Bytes),
    Put(TableId, Bytes, Bytes),
    Delete(TableId, Bytes),
}

#[derive(Default)]
struct Batch {
    table: Option<TableId>,
    writes: Vec<Write>,
}

impl Batch {
    fn at(&self) -> TableId {
        self.table.expect("a table is named before its changes")
    }
}

impl ChangeSink for Batch {
    fn table(&mut self, table: TableId) -> Result<()> {
        self.table = Some(table);
        Ok(())
    }
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<()> {
        let at = self.at();
        self.writes
            .push(Write::Prefix(at, Bytes::copy_from_slice(prefix)));
        Ok(())
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let at = self.at();
        self.writes.push(Write::Put(
            at,
            Bytes::copy_from_slice(key),
            Bytes::copy_from_slice(value),
        ));
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<()> {
        let at = self.at();
        self.writes
            .push(Write::Delete(at, Bytes::copy_from_slice(key)));
        Ok(())
    }
}

/// How many first-eight-byte prefixes of a table are told apart.
const PRESENCE: usize = 64;

/// Which tables, and for tables of few distinct beginnings (windows) which beginnings, an instance may hold keys of.
#[derive(Debug, Default)]
pub(super) struct Presence {
    tables: BTreeMap<TableId, Beginnings>,
}

#[derive(Debug)]
enum Beginnings {
    Few(BTreeSet<[u8; 8]>),
    Many,
}

impl Presence {
    pub(super) fn insert(&mut self, table: TableId, key: &[u8]) {
        let begins = self
            .tables
            .entry(table)
            .or_insert_with(|| Beginnings::Few(BTreeSet::new()));
        let Beginnings::Few(few) = begins else { return };
        match key.first_chunk::<8>() {
            Some(b) if few.contains(b) || few.len() < PRESENCE => {
                few.insert(*b);
            }
            _ => *begins = Beginnings::Many,
        }
    }

    /// The instance holds nothing that starts with the prefix any more.
    pub(super) fn remove(&mut self, table: TableId, prefix: &[u8]) {
        if prefix.is_empty() {
            self.tables.remove(&table);
        } else if let Some(Beginnings::Few(few)) = self.tables.get_mut(&table) {
            few.retain(|b| !b.starts_with(prefix));
        }
    }

    pub(super) fn is_empty(&self, table: TableId, key: &[u8]) -> bool {
        match self.tables.get(&table) {
            None => true,
            Some(Beginnings::Many) => false,
            Some(Beginnings::Few(few)) => match key.first_chunk::<8>() {
                Some(b) => !few.contains(b),
                None => !few.iter().any(|b| b.starts_with(key)),
            },
        }
    }

    pub(super) fn tables(&self) -> Vec<TableId> {
        self.tables.keys().copied().collect()
    }

    pub(super) fn is_many(&self, table: TableId) -> bool {
        matches!(self.tables.get(&table), Some(Beginnings::Many))
    }
}
