//! A job on lists in memory: its own plan on the real engine, with log, state, sources and sinks in memory, planned epochs,
//! and a clock that stands still. What `penstock test` runs. A crash drops every task where it stands, as `kill -9` would;
//! what was in the log, and published, stays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use parking_lot::Mutex;
use penstock_checkpoint::clock::ManualClock;
use penstock_checkpoint::ids::{Entropy, LogId, Micros, SystemEntropy};
use penstock_checkpoint::log::{JobLog, LogError, Options as LogOptions};
use penstock_checkpoint::record::Created;
use penstock_checkpoint::store::{CheckpointStore, Memory};
use penstock_crds::job::StreamingJob;
use penstock_crds::source::TransportField;
use penstock_plan::Plan;
use penstock_plan::graph::OutputMode;
use tokio::sync::{Notify, watch};

use super::assembly::{Setup, Team, serve};
use super::connectors::{Connected, body_format, decode_plan, rules, scan_columns, source_info};
use super::slots::{SlotThreads, SourceParts};
use super::{full_name, write_plan};
use crate::clock::{Clock, StandingClock};
use crate::coordinator::progress::Progress;
use crate::coordinator::{Asked, Outcome, Trigger};
use crate::error::{EngineError, Result};
use crate::formats::json::{JsonConfig, Timestamps};
use crate::member::storage;
use crate::sinks::memory::MemorySink;
use crate::sinks::rows::{KeyKind, RowPlan, ValueFormat};
use crate::sinks::{Guarantee, Record, SinkRef};
use crate::sources::decode::{BodyFormat, DecodePlan};
use crate::sources::memory::{MemoryRecord, MemorySource};
use crate::sources::{
    Polled, Position, Source, SourceEnumerator, SourceReader, SplitId, SplitRange,
};

#[cfg(test)]
mod tests;

/// The one split of every source.
const SPLIT: &str = "test/0";
/// Bytes for state, staging and exchange.
const MEMORY: usize = 256 << 20;
/// Polls of a source after its last row before the crash: the engine has taken the row in by then, and committed nothing.
const POLLS: u32 = 3;

/// Ends the engine at once. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Crash {
    fired: Arc<Notify>,
}

impl Crash {
    /// Everything that runs is dropped at its next point of waiting.
    pub fn now(&self) {
        self.fired.notify_one();
    }
}

/// The last row that is read before a crash.
#[derive(Debug)]
struct LastRow {
    offset: i64,
    crash: Crash,
    polls: AtomicU32,
}

/// A job on lists.
pub struct MemoryJob {
    job: Arc<StreamingJob>,
    plan: Arc<Plan>,
    members: usize,
    slots: usize,
    store: CheckpointStore,
    log: LogId,
    clock: Arc<StandingClock>,
    sources: BTreeMap<String, ListSource>,
    sinks: Vec<(String, MemorySink)>,
    crash: Crash,
    crashes: u32,
    /// Sinks publish at once, and sources are read so many rows at a time.
    poll_rows: Option<usize>,
    progress: Arc<Progress>,
}

impl MemoryJob {
    /// A job that has not run yet, with its log in `store`, or in memory.
    pub fn new(
        job: Arc<StreamingJob>,
        plan: Arc<Plan>,
        slots: usize,
        store: Option<CheckpointStore>,
    ) -> Self {
        let sources = job.spec.sources.iter().filter_map(|spec| {
            let scan = plan.sources.get(&spec.name)?;
            let json = BodyFormat::Json(JsonConfig::default());
            let format = body_format(spec).unwrap_or(json);
            let source = ListSource::new(decode_plan(spec, scan, format));
            Some((spec.name.clone(), source))
        });
        let sinks = job.spec.sinks.iter().map(|spec| {
            let planned = plan.sinks.get(&spec.name);
            let mode = planned.map_or(OutputMode::Append, |p| p.mode);
            // Whatever the sink's own format is: what is compared are typed columns.
            let rows = RowPlan {
                name: spec.name.clone(),
                format: ValueFormat::Json(Timestamps::Iso8601),
                key: KeyKind::None,
                changes: RowPlan::changes_of(mode, false),
                shard_by: planned
                    .and_then(|p| p.record_key.clone())
                    .unwrap_or_default(),
                key_groups: u16::try_from(job.spec.key_groups).unwrap_or(u16::MAX),
                shards: u16::try_from(spec.shards).unwrap_or(1),
                round_robin: None,
            };
            (spec.name.clone(), MemorySink::new(rows))
        });
        Self {
            sources: sources.collect(),
            sinks: sinks.collect(),
            members: 1,
            slots,
            store: store.unwrap_or_else(|| CheckpointStore::new(Arc::new(Memory::new()), "")),
            log: LogId::from_bytes(SystemEntropy.bytes16()),
            clock: Arc::default(),
            crash: Crash::default(),
            crashes: 0,
            poll_rows: None,
            progress: Arc::default(),
            job,
            plan,
        }
    }

    /// With so many members, each of which has the slots of the job.
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// As many members from its next run on.
    pub fn change_members(&mut self, members: usize) {
        self.members = members;
    }

    /// Rows leave at once, changes as soon as the input has run dry, and sources are read so many rows at a time.
    pub fn at_once(mut self, poll_rows: usize) -> Self {
        self.poll_rows = Some(poll_rows);
        self
    }

    /// Where the job's log lies.
    pub fn store(&self) -> CheckpointStore {
        self.store.below(&self.log.to_string())
    }

    /// The switch that ends the engine while it runs.
    pub fn crash(&self) -> Crash {
        self.crash.clone()
    }

    /// How often it was ended.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// What it does, and has done.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What `now()` answers and TTL is measured by.
    pub fn clock(&self) -> Arc<StandingClock> {
        self.clock.clone()
    }

    /// Gives a source more rows. A source that the SQL does not read takes none.
    pub fn push(&self, source: &str, records: impl IntoIterator<Item = MemoryRecord>) {
        if let Some(source) = self.sources.get(source) {
            source.list.push(SPLIT, records);
        }
    }

    /// Ends the engine once, when the row at `offset` of the source has been read and no row after it. It starts again by
    /// itself.
    pub fn crash_after(&self, source: &str, offset: i64) {
        if let Some(source) = self.sources.get(source) {
            *source.last.lock() = Some(Arc::new(LastRow {
                offset,
                crash: self.crash.clone(),
                polls: AtomicU32::new(0),
            }));
        }
    }

    /// What the sink got after its first `from` records, in order, each with its epoch.
    pub fn published(&self, sink: &str, from: usize) -> Vec<(u64, Record)> {
        let sink = self.sinks.iter().find(|(name, _)| name == sink);
        sink.map(|(_, sink)| sink.published(from))
            .unwrap_or_default()
    }

    /// One run of `availableNow` over what was given and not read yet; starts again after a crash. Not to be called from
    /// within a runtime.
    ///
    /// # Errors
    /// Those of the engine: what would stop the job.
    pub fn run(&mut self, drain: bool) -> Result<Outcome> {
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .map_err(|e| EngineError::fail("PR0304", "runtime", e.to_string()))?;
            let crash = self.crash.clone();
            let ended = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = crash.fired.notified() => None,
                    ended = self.generation(drain) => Some(ended),
                }
            });
            // Every task goes where it stands.
            drop(runtime);
            match ended {
                Some(ended) => return ended,
                None => {
                    self.crashes += 1;
                    for source in self.sources.values() {
                        source
                            .last
                            .lock()
                            .take_if(|l| l.polls.load(Ordering::SeqCst) >= POLLS);
                    }
                }
            }
        }
    }

    async fn generation(&self, drain: bool) -> Result<Outcome> {
        let setup = self.setup(drain).await?;
        let (_never, stop) = watch::channel(false);
        let (team, progress) = (Team::Here(self.members), self.progress.clone());
        let served = serve(&self.job, &self.plan, setup, team, stop, progress).await;
        served.map(|(outcome, _)| outcome)
    }

    async fn setup(&self, drain: bool) -> Result<Setup> {
        let options = || LogOptions {
            clock: Arc::new(ManualClock::at(Micros::from_millis(self.clock.now().get()))),
            ..LogOptions::default()
        };
        let store = self.store();
        let log = match JobLog::open(store.clone(), options())
            .await
            .map_err(storage)?
        {
            Some(log) => log,
            None => {
                let (namespace, name) = full_name(&self.job);
                let created = Created {
                    name: format!("{namespace}/{name}"),
                    key_groups: u16::try_from(self.job.spec.key_groups).unwrap_or(u16::MAX),
                    parent: None,
                };
                let created = JobLog::create(store, self.log, created, options()).await;
                created.map_err(|e: LogError| storage(e))?
            }
        };
        write_plan(&log, &self.plan).await?;
        Ok(Setup {
            log,
            connected: self.connect()?,
            clock: self.clock.clone(),
            state: None,
            memory: MEMORY,
            slots: self.slots,
            threads: SlotThreads::Shared,
            at_once: self.poll_rows.is_some(),
            trigger: Trigger::AvailableNow { drain },
            accept_loss: Vec::new(),
            release: None,
            adopts: None,
            go_back: None,
            asked: Asked::nothing(),
        })
    }

    fn connect(&self) -> Result<Connected> {
        let mut connected = Connected {
            sources: Vec::new(),
            infos: Vec::new(),
            sinks: Vec::new(),
        };
        for (name, sink) in &self.sinks {
            // Of whole results the last epoch's counts, which only staged records know.
            let whole = self
                .plan
                .sinks
                .get(name)
                .is_none_or(|p| p.mode == OutputMode::Complete);
            let guarantee = if self.poll_rows.is_some() && !whole {
                Guarantee::AtLeastOnce
            } else {
                Guarantee::ExactlyOnce
            };
            let sink: SinkRef = Arc::new(sink.clone());
            connected.sinks.push((name.clone(), sink, guarantee));
        }
        for spec in &self.job.spec.sources {
            let (Some(scan), Some(source)) = (
                self.plan.sources.get(&spec.name),
                self.sources.get(&spec.name),
            ) else {
                continue;
            };
            let mut info = source_info(spec, scan, source)?;
            // Offsets of a list, not files.
            info.forget_finished = false;
            connected.infos.push(info);
            let mut rules = rules(&self.job, spec, scan, connected.sources.len())?;
            // The clock stands still: an allowance per second would never be filled again.
            rules.rows_per_second = 0;
            connected.sources.push(SourceParts {
                rules: Arc::new(rules),
                source: Arc::new(source.polled(self.poll_rows)),
                columns: scan_columns(scan)?,
            });
        }
        Ok(connected)
    }
}

/// A list as a source. Knows nothing of a transport but offset, key and timestamp.
#[derive(Clone)]
struct ListSource {
    list: MemorySource,
    /// Columns that a list has no value for.
    unknown: Arc<[usize]>,
    last: Arc<Mutex<Option<Arc<LastRow>>>>,
    /// Rows of one poll at most.
    poll_rows: usize,
}

impl ListSource {
    fn new(plan: DecodePlan) -> Self {
        use TransportField as F;
        let fields = plan.schema.fields().iter().zip(&plan.from).enumerate();
        let unknown = fields.filter(|(_, (field, from))| {
            let known = match from {
                None | Some(F::Key | F::Offset | F::Timestamp) => true,
                Some(F::Topic | F::Partition | F::Path | F::Headers) => false,
            };
            !known && field.is_nullable()
        });
        let unknown = unknown.map(|(i, _)| i).collect();
        let list = MemorySource::new(plan);
        list.push(SPLIT, []);
        Self {
            list,
            unknown,
            last: Arc::default(),
            poll_rows: usize::MAX,
        }
    }

    fn polled(&self, rows: Option<usize>) -> Self {
        Self {
            poll_rows: rows.unwrap_or(usize::MAX),
            ..self.clone()
        }
    }
}

impl Source for ListSource {
    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(ListReader {
            reader: self.list.reader()?,
            unknown: self.unknown.clone(),
            last: self.last.lock().clone(),
            poll_rows: self.poll_rows,
        }))
    }

    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>> {
        self.list.enumerator()
    }
}

struct ListReader {
    reader: Box<dyn SourceReader>,
    unknown: Arc<[usize]>,
    last: Option<Arc<LastRow>>,
    poll_rows: usize,
}

impl ListReader {
    /// Rows that may still be read: none after the last one before a crash.
    fn allowance(&self) -> Option<usize> {
        let last = self.last.as_ref()?;
        let next = self.reader.positions().values().next().copied()?;
        Some(usize::try_from(last.offset + 1 - next.0).unwrap_or(0))
    }
}

impl SourceReader for ListReader {
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        self.reader.assign(ranges)
    }

    fn poll(&mut self, max_rows: usize) -> Result<Polled> {
        let allowed = self.allowance();
        if let (Some(0), Some(last)) = (allowed, &self.last) {
            // Once only: a second word would end the engine again after its start.
            if last.polls.fetch_add(1, Ordering::SeqCst) + 1 == POLLS {
                last.crash.now();
            }
            return Ok(Polled::Empty);
        }
        let polled = self.reader.poll(
            allowed
                .unwrap_or(max_rows)
                .min(max_rows)
                .min(self.poll_rows),
        )?;
        let Polled::Rows(mut batch) = polled else {
            return Ok(polled);
        };
        if !self.unknown.is_empty() {
            batch.rows = without(&batch.rows, &self.unknown)?;
        }
        Ok(Polled::Rows(batch))
    }

    fn positions(&self) -> BTreeMap<SplitId, Position> {
        self.reader.positions()
    }

    fn caught_up(&self) -> Vec<SplitId> {
        self.reader.caught_up()
    }

    fn finished(&self) -> Vec<SplitId> {
        self.reader.finished()
    }

    fn set_waker(&mut self, waker: Arc<Notify>) {
        self.reader.set_waker(waker);
    }
}

/// The rows with null in these columns.
fn without(rows: &RecordBatch, unknown: &[usize]) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    for &i in unknown {
        columns[i] = new_null_array(columns[i].data_type(), rows.num_rows());
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns, &options)
        .map_err(|e| EngineError::fail("PR0304", "list", "columns do not fit").caused_by(e))
}
