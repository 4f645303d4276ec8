//! One RocksDB instance per key group. The write-ahead log is off: an epoch is one write batch in one column family, so
//! after a kill an instance stands at some committed epoch, whose identity lies in the same batch. All instances of a
//! process share one block cache, one write-buffer budget and the background threads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIterator, Env, LogLevel, Options, Range, ReadOptions, WriteBatch, WriteBufferManager,
    WriteOptions, compaction_filter::Decision,
};

use crate::error::{EngineError, Result};

use super::TableId;
use super::backend::{Backend, Base, BaseFile, Identity, Presence};
use super::layer::{ChangeSink, Changes, Cursor, pack_bytes, prefix_end};
use super::stored::TtlClock;

/// The identity's key: shorter than a table's name, so no key of a table equals it and it sorts apart.
const IDENTITY: &[u8] = &[0];
const TABLE: usize = 8;
const CF: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
/// What names the files of this instance for bases; made anew with each instance.
const INCARNATION: &str = "INCARNATION";
/// Names, in bases, of the files that this instance was restored from.
const INHERITED: &str = "INHERITED.json";

fn failed(group: u16, what: &str) -> impl FnOnce(rocksdb::Error) -> EngineError {
    let object = format!("state of key group {group}");
    let message = what.to_owned();
    move |e| EngineError::fail("PR0510", object, message).caused_by(e)
}

fn io_failed(path: &Path, what: &str) -> impl FnOnce(std::io::Error) -> EngineError {
    let object = format!("state folder {}", path.display());
    let message = what.to_owned();
    move |e| EngineError::fail("PR0409", object, message).caused_by(e)
}

/// What all instances of a process share.
#[derive(Clone)]
pub(super) struct Shared {
    env: Env,
    cache: Cache,
    buffers: WriteBufferManager,
    clock: Arc<TtlClock>,
    open_files: i32,
    buffer_bytes: usize,
}

impl Shared {
    /// `memory`: bytes of block cache and write buffers of all instances together.
    pub(super) fn new(memory: usize, instances: usize, clock: Arc<TtlClock>) -> Result<Self> {
        let cache = Cache::new_lru_cache(memory);
        // Write buffers are charged to the cache: one limit holds for both.
        let buffer_bytes = (memory / 3).max(8 << 20);
        let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            buffer_bytes,
            false,
            cache.clone(),
        );
        let mut env = Env::new().map_err(failed(0, "cannot set up background threads"))?;
        env.set_background_threads(2);
        env.set_high_priority_background_threads(1);
        Ok(Self {
            env,
            cache,
            buffers,
            clock,
            open_files: open_files(instances),
            buffer_bytes,
        })
    }

    fn options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_bloom_filter(10.0, false);
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_metadata_block_size(4096);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_top_level_index_and_filter(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_format_version(6);

        let mut o = Options::default();
        o.create_if_missing(true);
        o.set_env(&self.env);
        o.set_block_based_table_factory(&table);
        o.set_write_buffer_manager(&self.buffers);
        // One instance alone may fill what all may hold together; beyond it the manager asks for a flush.
        o.set_write_buffer_size((self.buffer_bytes / 2).clamp(4 << 20, 32 << 20));
        o.set_max_write_buffer_number(4);
        // 64 instances each hold at least one arena block.
        o.set_arena_block_size(64 << 10);
        o.set_compression_type(DBCompressionType::Lz4);
        o.set_target_file_size_base(16 << 20);
        o.set_max_bytes_for_level_base(64 << 20);
        o.set_max_background_jobs(3);
        o.set_max_open_files(self.open_files);
        o.set_max_file_opening_threads(1);
        o.set_skip_stats_update_on_db_open(true);
        o.set_bytes_per_sync(1 << 20);
        o.set_keep_log_file_num(2);
        o.set_max_log_file_size(1 << 20);
        o.set_log_level(LogLevel::Warn);
        o.set_stats_dump_period_sec(0);
        let clock = Arc::clone(&self.clock);
        o.set_compaction_filter(
            c"penstock-ttl",
            move |_, key: &[u8], value: &[u8]| match key.first_chunk::<TABLE>() {
                Some(t) if clock.is_garbage(TableId::from_raw(u64::from_be_bytes(*t)), value) => {
                    Decision::Remove
                }
                _ => Decision::Keep,
            },
        );
        o
    }

    /// Bytes of blocks and write buffers in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.cache.get_usage()
    }
}

/// Open files per instance, from the process's limit, which is raised as far as it may.
fn open_files(instances: usize) -> i32 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(1 << 16).min(1 << 16);
    if limit.current.is_some_and(|c| c < wanted) {
        // Refused is no harm: the limit below is then the old one.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            },
        );
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    let each = now * 3 / 4 / (instances.max(1) as u64);
    each.clamp(16, 512) as i32
}

/// The instance of one key group.
pub struct RocksBackend {
    group: u16,
    dir: PathBuf,
    db: DB,
    write: WriteOptions,
    presence: RwLock<Presence>,
    sizes: RwLock<BTreeMap<TableId, u64>>,
    reads: AtomicU64,
    incarnation: String,
    inherited: BTreeMap<String, String>,
    /// Held by a write and by the making of a base: a base shows one epoch.
    writing: Mutex<u64>,
}

impl std::fmt::Debug for RocksBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksBackend")
            .field("group", &self.group)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl RocksBackend {
    /// Opens the instance in `dir`, or makes an empty one. `incarnation` is unique among all instances ever made for the
    /// job; it is kept when the instance exists.
    pub(super) fn open(shared: &Shared, group: u16, dir: &Path, incarnation: &str) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io_failed(dir, "cannot make it"))?;
        let mark = dir.join(INCARNATION);
        let incarnation = match fs::read_to_string(&mark) {
            Ok(kept) if !kept.is_empty() => kept,
            _ => {
                fs::write(&mark, incarnation).map_err(io_failed(dir, "cannot write to it"))?;
                incarnation.to_owned()
            }
        };
        let inherited = match fs::read(dir.join(INHERITED)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                EngineError::fail(
                    "PR0409",
                    format!("state folder {}", dir.display()),
                    "corrupt list of files",
                )
                .caused_by(e)
            })?,
            Err(_) => BTreeMap::new(),
        };
        let options = shared.options();
        let cf = ColumnFamilyDescriptor::new(CF, options.clone());
        let db = DB::open_cf_descriptors(&options, dir, [cf])
            .map_err(failed(group, "cannot open it"))?;
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        let presence = look_around(&db).map_err(failed(group, "cannot read it"))?;
        Ok(Self {
            group,
            dir: dir.to_owned(),
            db,
            write,
            presence: RwLock::new(presence),
            sizes: RwLock::default(),
            reads: AtomicU64::new(0),
            incarnation,
            inherited,
            writing: Mutex::new(0),
        })
    }

    /// Makes `dir` an instance out of a base's files, unless the process dies before the end; then `dir` is absent.
    pub(super) fn unpack(dir: &Path, files: &[BaseFile]) -> Result<()> {
        let building = dir.with_extension("building");
        remove(&building)?;
        remove(dir)?;
        fs::create_dir_all(&building).map_err(io_failed(&building, "cannot make it"))?;
        let mut inherited = BTreeMap::new();
        for f in files {
            let to = building.join(&f.name);
            let immutable = f.name.ends_with(".sst");
            if immutable {
                inherited.insert(f.name.clone(), f.unique.clone());
            }
            // Tables never change: a link saves the copy. The rest is appended to.
            if !(immutable && fs::hard_link(&f.path, &to).is_ok()) {
                fs::copy(&f.path, &to).map_err(io_failed(&f.path, "cannot copy it"))?;
            }
        }
        let list = serde_json::to_vec(&inherited).expect("a map of strings is JSON");
        fs::write(building.join(INHERITED), list)
            .map_err(io_failed(&building, "cannot write to it"))?;
        fs::rename(&building, dir).map_err(io_failed(dir, "cannot make it"))
    }

    fn cf(&self) -> &rocksdb::ColumnFamily {
        self.db
            .cf_handle(CF)
            .expect("the instance was opened with it")
    }

    fn property(&self, name: &str) -> u64 {
        self.db.property_int_value(name).ok().flatten().unwrap_or(0)
    }
}

/// Removes an instance that must not be used.
pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io_failed(dir, "cannot remove it")(e))
        }
        _ => Ok(()),
    }
}

/// Finds which tables and beginnings of keys there are, by a bounded number of seeks.
fn look_around(db: &DB) -> std::result::Result<Presence, rocksdb::Error> {
    let mut presence = Presence::default();
    let mut it = db.raw_iterator();
    it.seek([0u8; TABLE]);
    while let Some(full) = it.key() {
        let Some((table, key)) = full.split_first_chunk::<TABLE>() else {
            it.next();
            continue;
        };
        let id = TableId::from_raw(u64::from_be_bytes(*table));
        presence.insert(id, key);
        let seen = if presence.is_many(id) {
            TABLE
        } else {
            TABLE + 8
        };
        match prefix_end(&full[..seen]) {
            Some(next) => it.seek(next),
            None => break,
        }
    }
    it.status()?;
    Ok(presence)
}

fn full_key(table: TableId, key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&table.get().to_be_bytes());
    out.extend_from_slice(key);
}

struct Walk<'a> {
    group: u16,
    it: DBRawIterator<'a>,
}

impl Cursor for Walk<'_> {
    fn key(&self) -> Option<&[u8]> {
        self.it.key().map(|k| &k[TABLE..])
    }
    fn value(&self) -> Option<&[u8]> {
        self.it.value()
    }
    fn advance(&mut self) -> Result<()> {
        self.it.next();
        self.it
            .status()
            .map_err(failed(self.group, "cannot read it"))
    }
}

/// Builds the write batch of one epoch, and what becomes of the presence.
struct Batch<'a> {
    presence: &'a RwLock<Presence>,
    batch: WriteBatch,
    table: TableId,
    many: bool,
    key: Vec<u8>,
    bytes: u64,
    removed: Vec<(TableId, Bytes)>,
    /// Beginnings that this batch puts, `None` for any; they outlive its own prefix deletes.
    put: Vec<(TableId, Option<[u8; 8]>)>,
}

impl Batch<'_> {
    fn range_delete(&mut self, prefix: &[u8]) {
        self.key.clear();
        full_key(self.table, prefix, &mut self.key);
        match prefix_end(&self.key) {
            Some(end) => self.batch.delete_range(&self.key[..], &end[..]),
            // Only the last table's all-ones prefix: nothing follows it but longer ones.
            None => self.batch.delete_range(&self.key[..], &[u8::MAX; 1024][..]),
        }
    }
}

impl ChangeSink for Batch<'_> {
    fn table(&mut self, table: TableId) -> Result<()> {
        self.table = table;
        self.many = self.presence.read().is_many(table);
        if self.many {
            self.put.push((table, None));
        }
        Ok(())
    }
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<()> {
        // What never came here needs no mark that it is gone.
        if self.presence.read().is_empty(self.table, prefix) {
            return Ok(());
        }
        self.removed
            .push((self.table, Bytes::copy_from_slice(prefix)));
        self.range_delete(prefix);
        Ok(())
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if !self.many {
            let mut presence = self.presence.write();
            presence.insert(self.table, key);
            self.many = presence.is_many(self.table);
            let begins = key.first_chunk::<8>().filter(|_| !self.many).copied();
            if self.put.last() != Some(&(self.table, begins)) {
                self.put.push((self.table, begins));
            }
        }
        self.key.clear();
        full_key(self.table, key, &mut self.key);
        self.bytes += (self.key.len() + value.len()) as u64;
        self.batch.put(&self.key, value);
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<()> {
        if !self.many && self.presence.read().is_empty(self.table, key) {
            return Ok(());
        }
        self.key.clear();
        full_key(self.table, key, &mut self.key);
        self.batch.delete(&self.key);
        Ok(())
    }
}

impl Backend for RocksBackend {
    fn get_many(&self, table: TableId, keys: &[&[u8]], out: &mut Vec<Option<Bytes>>) -> Result<()> {
        self.reads.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let mut all = Vec::with_capacity(keys.iter().map(|k| k.len() + TABLE).sum());
        let mut ends = Vec::with_capacity(keys.len());
        for key in keys {
            full_key(table, key, &mut all);
            ends.push(all.len());
        }
        let full: Vec<&[u8]> = ends
            .iter()
            .scan(0, |from, end| {
                let key = &all[*from..*end];
                *from = *end;
                Some(key)
            })
            .collect();
        let mut pinned = Vec::with_capacity(keys.len());
        for got in self.db.batched_multi_get_cf(self.cf(), full, true) {
            pinned.push(got.map_err(failed(self.group, "cannot read it"))?);
        }
        let slices: Vec<Option<&[u8]>> = pinned.iter().map(|v| v.as_deref()).collect();
        out.extend(pack_bytes(&slices));
        Ok(())
    }

    fn cursor<'a>(
        &'a self,
        table: TableId,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        let mut from = Vec::new();
        full_key(table, prefix, &mut from);
        let mut read = ReadOptions::default();
        if let Some(end) = prefix_end(&from) {
            read.set_iterate_upper_bound(end);
        }
        if let Some(a) = after.filter(|a| *a >= prefix) {
            from.clear();
            full_key(table, a, &mut from);
            from.push(0);
        }
        let mut it = self.db.raw_iterator_opt(read);
        it.seek(&from);
        it.status().map_err(failed(self.group, "cannot read it"))?;
        Ok(Box::new(Walk {
            group: self.group,
            it,
        }))
    }

    fn apply(&self, changes: &dyn Changes, identity: &Identity) -> Result<()> {
        let mut unflushed = self.writing.lock();
        let mut b = Batch {
            presence: &self.presence,
            batch: WriteBatch::default(),
            table: TableId::from_raw(0),
            many: false,
            key: Vec::new(),
            bytes: 0,
            removed: Vec::new(),
            put: Vec::new(),
        };
        changes.replay(&mut b)?;
        let identity = serde_json::to_vec(identity).expect("an identity is JSON");
        b.batch.put(IDENTITY, identity);
        self.db
            .write_opt(b.batch, &self.write)
            .map_err(failed(self.group, "cannot write to it"))?;
        *unflushed += b.bytes;
        if !b.removed.is_empty() {
            let mut presence = self.presence.write();
            for (table, prefix) in b.removed {
                presence.remove(table, &prefix);
            }
            for (table, begins) in b.put {
                presence.insert(table, begins.as_ref().map_or(&[], |b| &b[..]));
            }
        }
        Ok(())
    }

    fn identity(&self) -> Result<Option<Identity>> {
        let bytes = self
            .db
            .get(IDENTITY)
            .map_err(failed(self.group, "cannot read it"))?;
        bytes
            .map(|b| {
                serde_json::from_slice(&b).map_err(|e| {
                    EngineError::fail(
                        "PR0512",
                        format!("state of key group {}", self.group),
                        "its identity is unreadable",
                    )
                    .caused_by(e)
                })
            })
            .transpose()
    }

    fn is_empty(&self, table: TableId, key: &[u8]) -> bool {
        self.presence.read().is_empty(table, key)
    }

    fn tables(&self) -> Vec<TableId> {
        self.presence.read().tables()
    }

    fn live_bytes(&self) -> u64 {
        self.property("rocksdb.estimate-live-data-size")
            + self.property("rocksdb.cur-size-all-mem-tables")
    }

    fn on_disk(&self, table: TableId) -> u64 {
        self.sizes.read().get(&table).copied().unwrap_or(0)
    }

    fn measure(&self) {
        let tables = self.presence.read().tables();
        let bounds: Vec<([u8; TABLE], Vec<u8>)> = tables
            .iter()
            .map(|t| {
                let from = t.get().to_be_bytes();
                (
                    from,
                    prefix_end(&from).unwrap_or_else(|| vec![u8::MAX; TABLE + 1]),
                )
            })
            .collect();
        let ranges: Vec<Range<'_>> = bounds
            .iter()
            .map(|(from, to)| Range::new(from, to))
            .collect();
        let bytes = self.db.get_approximate_sizes_cf(self.cf(), &ranges);
        *self.sizes.write() = tables.into_iter().zip(bytes).collect();
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn unflushed_bytes(&self) -> u64 {
        *self.writing.lock()
    }

    fn flush(&self) -> Result<()> {
        *self.writing.lock() = 0;
        self.db
            .flush()
            .map_err(failed(self.group, "cannot flush it"))
    }

    fn checkpoint(&self, dir: &Path, base: &str) -> Result<Base> {
        let mut unflushed = self.writing.lock();
        let identity = self.identity()?.ok_or_else(|| {
            EngineError::fail(
                "PR0513",
                format!("state of key group {}", self.group),
                "no epoch was applied, so there is no base to make",
            )
        })?;
        remove(dir)?;
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(io_failed(parent, "cannot make it"))?;
        }
        Checkpoint::new(&self.db)
            .and_then(|c| c.create_checkpoint(dir))
            .map_err(failed(self.group, "cannot make a base of it"))?;
        *unflushed = 0;
        drop(unflushed);
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_failed(dir, "cannot list it"))? {
            let entry = entry.map_err(io_failed(dir, "cannot list it"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let length = entry
                .metadata()
                .map_err(io_failed(dir, "cannot list it"))?
                .len();
            let shared = name.ends_with(".sst");
            let unique = match self.inherited.get(&name) {
                Some(unique) if shared => unique.clone(),
                _ if shared => format!("{}-{name}", self.incarnation),
                // Two bases, of one epoch too, differ in these.
                _ => format!("{base}-{name}"),
            };
            files.push(BaseFile {
                path: entry.path(),
                name,
                unique,
                length,
                shared,
            });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Base { identity, files })
    }
}
