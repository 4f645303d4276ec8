//! One source in one slot: polls its reader, computes columns, keeps the watermark, applies the policy for bad rows, and
//! sends batches. Owns where a split stands; which splits it owns is the coordinator's word.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use bytes::Bytes;
use penstock_plan::graph::hidden;

use crate::error::{EngineError, Result};
use crate::keys::split_hash;
use crate::message::{Barrier, BarrierKind, Batch, EventTime, Message, Progressed};
use crate::sinks::Record;
use crate::sources::{BadRecord, Polled, Position, SourceBatch, SourceReader, SplitId, SplitRange};

use super::columns::Scan;
use super::failing::{FailAbove, FailRate};
use super::late::SplitNames;
use super::operator::{Outputs, Turn};
use super::route::Route;
use super::times::{Meter, TaskFlow};
use super::watermark::{Say, SourceWatermark, WatermarkRule};

/// Rows of one poll: what a batch holds when it is full.
const POLL_ROWS: usize = 4096;
/// Batches a source reads in one turn.
const TURN: usize = 4;

/// What becomes of a bad or a late row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Fail,
    /// Counted.
    Skip,
    /// To the stage of that sink.
    DeadLetter(usize),
}

/// What a source task needs to know of its source, the same in every slot.
#[derive(Debug, Clone)]
pub struct SourceRules {
    /// Index among the job's sources.
    pub index: usize,
    pub name: String,
    /// Output columns, hidden ones included.
    pub schema: SchemaRef,
    pub watermark: Option<WatermarkRule>,
    pub on_error: Policy,
    pub on_late: Policy,
    pub fail_above: Option<FailAbove>,
    /// Rows per second for each subtask, 0: no limit.
    pub rows_per_second: u64,
}

/// A split as the coordinator hands it over.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Assignment {
    pub range: SplitRange,
    pub greatest: Option<EventTime>,
    pub idle: bool,
}

/// Where a split stands at a barrier.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SplitProgress {
    pub position: Position,
    pub greatest: Option<EventTime>,
    pub idle: bool,
    pub done: bool,
}

/// An epoch whose input is fixed.
#[derive(Debug, Clone)]
pub struct PlannedEpoch {
    pub ranges: Vec<Assignment>,
    pub watermark: Option<EventTime>,
    pub barrier: Barrier,
}

/// A row on its way to the dead letters.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct DeadLetter {
    pub sink: usize,
    pub source: usize,
    pub split: SplitId,
    pub offset: i64,
    pub code: Cow<'static, str>,
    pub text: String,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
}

impl DeadLetter {
    /// As it goes to the sink: the record's own bytes, its origin and fault in headers.
    pub fn record(&self, source: &str, epoch: u64) -> Record {
        let (topic, partition) = self.split.0.rsplit_once('/').unwrap_or((&self.split.0, ""));
        let text = |s: &str| Bytes::copy_from_slice(s.as_bytes());
        let headers = vec![
            ("penstock.source".to_owned(), text(source)),
            ("penstock.topic".to_owned(), text(topic)),
            ("penstock.partition".to_owned(), text(partition)),
            ("penstock.offset".to_owned(), text(&self.offset.to_string())),
            ("penstock.epoch".to_owned(), text(&epoch.to_string())),
            ("penstock.code".to_owned(), text(&self.code)),
            ("penstock.error".to_owned(), text(&self.text)),
        ];
        Record {
            key: self.key.clone(),
            value: self.value.clone(),
            headers,
            timestamp_ms: None,
        }
    }
}

/// Counters of one source in one slot, since its start.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct SourceCounts {
    pub rows: u64,
    pub bytes: u64,
    pub bad: u64,
    pub dead_letters: u64,
}

pub struct SourceTask {
    pub uid: String,
    rules: Arc<SourceRules>,
    reader: Box<dyn SourceReader>,
    scan: Scan,
    outputs: Outputs,
    watermark: Option<SourceWatermark>,
    names: SplitNames,
    hashes: BTreeMap<SplitId, u64>,
    planned: VecDeque<PlannedEpoch>,
    /// Ends the epoch as soon as no batch is in the making (continuous), or when its ranges are read (planned).
    barrier: Option<Barrier>,
    /// The barrier ends a planned epoch: only after all its ranges.
    wait_for_ranges: bool,
    /// Planned: nothing is read outside an epoch.
    planned_mode: bool,
    /// The coordinator has said which splits are this subtask's: before, nobody knows whether it is idle.
    assigned: bool,
    stopped: bool,
    passed: Option<Barrier>,
    done: bool,
    letters: Vec<DeadLetter>,
    fail_rate: Option<FailRate>,
    /// Sends were allowed until this time, for `maxRowsPerSecond`.
    credit: Option<(i64, u64)>,
    pub counts: SourceCounts,
    pub meter: Meter,
}

impl SourceTask {
    #[expect(
        clippy::too_many_arguments,
        reason = "one constructor that names every part"
    )]
    pub fn new(
        uid: String,
        rules: Arc<SourceRules>,
        reader: Box<dyn SourceReader>,
        scan: Scan,
        routes: Vec<Route>,
        restored: EventTime,
        names: SplitNames,
        planned_mode: bool,
    ) -> Self {
        let watermark = rules
            .watermark
            .map(|rule| SourceWatermark::new(rule, restored));
        let fail_rate = rules.fail_above.map(FailRate::new);
        Self {
            uid,
            reader,
            scan,
            outputs: Outputs::new(routes),
            watermark,
            names,
            hashes: BTreeMap::new(),
            planned: VecDeque::new(),
            barrier: None,
            wait_for_ranges: false,
            planned_mode,
            assigned: false,
            stopped: false,
            passed: None,
            done: false,
            letters: Vec::new(),
            fail_rate,
            credit: None,
            counts: SourceCounts::default(),
            rules,
            meter: Meter::default(),
        }
    }

    pub fn rules(&self) -> &Arc<SourceRules> {
        &self.rules
    }

    pub fn progressed(&self) -> Progressed {
        let none = Progressed {
            to: EventTime::MIN,
            idle: false,
        };
        self.watermark
            .as_ref()
            .map_or(none, SourceWatermark::progressed)
    }

    pub fn held_back_by(&self) -> Option<SplitId> {
        self.watermark
            .as_ref()
            .and_then(|w| w.held_back_by().cloned())
    }

    pub fn passed(&self) -> Option<Barrier> {
        self.passed
    }

    /// Every split is read to its end, in continuous mode.
    pub fn done(&self) -> bool {
        self.done
    }

    pub fn take_letters(&mut self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.letters)
    }

    /// The share of wrong rows passed `failAbove`.
    pub fn failing(&self) -> Option<String> {
        self.fail_rate.as_ref().and_then(FailRate::verdict)
    }

    pub fn set_waker(&mut self, waker: Arc<tokio::sync::Notify>) {
        self.reader.set_waker(waker);
    }

    pub fn assign(&mut self, splits: Vec<Assignment>) -> Result<()> {
        for a in &splits {
            let hash = split_hash(&self.rules.name, &a.range.split.0);
            self.names.learn(hash, self.rules.index, &a.range.split);
            self.hashes.insert(a.range.split.clone(), hash);
            if let Some(w) = &mut self.watermark {
                w.adopt(a.range.split.clone(), a.greatest, a.idle);
            }
        }
        self.done = false;
        self.assigned = true;
        self.reader
            .assign(splits.into_iter().map(|a| a.range).collect())
    }

    pub fn plan(&mut self, epoch: PlannedEpoch) {
        self.planned.push_back(epoch);
    }

    pub fn inject(&mut self, barrier: Barrier) {
        self.barrier = Some(barrier);
        self.wait_for_ranges = false;
    }

    /// The input counts as ended: every window closes.
    pub fn drain(&mut self) {
        self.outputs.mark(&Message::Watermark(EventTime::MAX));
        if let Some(w) = &mut self.watermark {
            w.force(EventTime::MAX);
        }
        self.stopped = true;
    }

    pub fn go_on(&mut self) {
        self.passed = None;
    }

    /// It has no channels to wait for.
    pub fn flow(&self) -> TaskFlow {
        TaskFlow {
            rows_in: self.counts.rows,
            rows_out: self.outputs.rows(),
            ..TaskFlow::default()
        }
    }

    pub fn progress(&self) -> Vec<(SplitId, SplitProgress)> {
        let finished = self.reader.finished();
        self.reader
            .positions()
            .into_iter()
            .map(|(split, position)| {
                let (greatest, idle) = self
                    .watermark
                    .as_ref()
                    .map_or((None, false), |w| w.state(&split));
                let done = finished.contains(&split);
                (
                    split,
                    SplitProgress {
                        position,
                        greatest,
                        idle,
                        done,
                    },
                )
            })
            .collect()
    }

    /// `now_ms`: the wall's clock, for rates and idleness. `epoch_ms`: the epoch's, which is what `now()` answers, so that an
    /// epoch that runs again computes the same.
    pub fn run(&mut self, full: bool, now_ms: i64, epoch_ms: i64) -> Result<Turn> {
        if self.passed.is_some() {
            return Ok(Turn::Starved);
        }
        if self.barrier.is_none()
            && let Some(epoch) = self.planned.pop_front()
        {
            self.begin(epoch)?;
        }
        let reading = !self.stopped && (!self.planned_mode || self.barrier.is_some());
        let mut read_all = !reading;
        let mut busy = false;
        if reading && (self.barrier.is_none() || self.wait_for_ranges) {
            for _ in 0..TURN {
                if !self.outputs.has_room() || (full && !self.planned_mode) {
                    if let Some(w) = &mut self.watermark {
                        w.pause();
                    }
                    return Ok(Turn::Blocked);
                }
                if !self.may_read(now_ms) {
                    break;
                }
                match self.reader.poll(POLL_ROWS)? {
                    Polled::Rows(batch) => {
                        busy = true;
                        self.take(*batch, now_ms, epoch_ms)?;
                    }
                    Polled::Empty => break,
                    Polled::Done => {
                        read_all = true;
                        self.done = !self.planned_mode && self.assigned;
                        break;
                    }
                }
            }
        }
        if !self.planned_mode && !self.stopped && self.assigned {
            self.tell_watermark(busy, now_ms);
        }
        if let Some(barrier) = self.barrier
            && (!self.wait_for_ranges || read_all)
        {
            self.outputs.mark(&Message::Barrier(barrier));
            self.passed = self.barrier.take();
            busy = true;
        }
        self.outputs.check()?;
        Ok(if busy { Turn::Busy } else { Turn::Starved })
    }

    fn begin(&mut self, epoch: PlannedEpoch) -> Result<()> {
        self.assign(epoch.ranges)?;
        if let (Some(w), Some(t)) = (&mut self.watermark, epoch.watermark)
            && let Say::Watermark(t) = w.force(t)
        {
            self.outputs.mark(&Message::Watermark(t));
        }
        self.outputs.mark(&Message::Barrier(Barrier {
            kind: BarrierKind::Begin,
            ..epoch.barrier
        }));
        self.barrier = Some(epoch.barrier);
        self.wait_for_ranges = true;
        Ok(())
    }

    fn tell_watermark(&mut self, busy: bool, now_ms: i64) {
        let Some(w) = &mut self.watermark else { return };
        if !busy {
            w.look(&self.reader.caught_up(), now_ms);
        }
        match w.say() {
            Say::Nothing => {}
            Say::Watermark(t) => self.outputs.mark(&Message::Watermark(t)),
            Say::Idle => self.outputs.mark(&Message::Idle),
        }
    }

    /// A simple allowance for `maxRowsPerSecond`: what a second allows is read at its beginning.
    fn may_read(&mut self, now_ms: i64) -> bool {
        if self.rules.rows_per_second == 0 {
            return true;
        }
        let second = now_ms.div_euclid(1000);
        match self.credit {
            Some((s, used)) if s == second => used < self.rules.rows_per_second,
            _ => {
                self.credit = Some((second, 0));
                true
            }
        }
    }

    fn take(&mut self, batch: SourceBatch, now_ms: i64, epoch_ms: i64) -> Result<()> {
        let read = (batch.rows.num_rows() + batch.bad.len()) as u64;
        let _span = tracing::trace_span!("batch", source = self.rules.name, rows = read).entered();
        let wrong_before = self.counts.bad;
        self.counts.bytes += batch.bytes as u64;
        self.counts.rows += read;
        if let Some((_, used)) = &mut self.credit {
            *used += read;
        }
        self.forward(batch, epoch_ms)?;
        if let Some(rate) = &mut self.fail_rate {
            rate.add(now_ms, read, self.counts.bad - wrong_before);
        }
        Ok(())
    }

    /// Judges the rows of a batch and sends the good ones on.
    fn forward(&mut self, batch: SourceBatch, epoch_ms: i64) -> Result<()> {
        let SourceBatch {
            rows,
            splits,
            offsets,
            split_ids,
            raw,
            bad,
            bytes: _,
        } = batch;
        for record in bad {
            self.wrong(&split_ids, record)?;
        }
        let raw = raw.map(|r| (r.keys, r.values));
        let mut good = Good {
            rows,
            splits,
            offsets,
            raw,
        };
        let (columns, failed) = self.scan.evaluate(&good.rows, epoch_ms)?;
        if !failed.is_empty() {
            self.isolate(&good, &failed, &split_ids)?;
            good = good.without(&failed)?;
        }
        let mut columns = columns;
        if good.splits.is_empty() {
            return Ok(());
        }
        if let Some(column) = self.scan.event_time {
            columns = self.check_event_time(column, columns, &mut good, &split_ids)?;
            self.note_event_time(&columns[column], &good, &split_ids)?;
        }
        if good.splits.is_empty() {
            return Ok(());
        }
        columns.truncate(self.scan.visible);
        self.add_hidden(&mut columns, &good, &split_ids);
        let rows = RecordBatch::try_new(self.rules.schema.clone(), columns).map_err(|e| {
            EngineError::fail(
                "PR0304",
                format!("source {}", self.rules.name),
                "a batch does not fit its plan",
            )
            .caused_by(e)
        })?;
        self.outputs.send(Batch::inserts(rows));
        Ok(())
    }

    /// Rows without an event time cannot be placed in any window: they are bad rows.
    fn check_event_time(
        &mut self,
        column: usize,
        columns: Vec<ArrayRef>,
        good: &mut Good,
        split_ids: &[SplitId],
    ) -> Result<Vec<ArrayRef>> {
        let times = &columns[column];
        if times.null_count() == 0 {
            return Ok(columns);
        }
        let failed: Vec<(usize, String)> = (0..times.len())
            .filter(|&i| times.is_null(i))
            .map(|i| (i, "the column of the event time is null".to_owned()))
            .collect();
        self.wrong_rows(good, &failed, split_ids, "PR0203")?;
        let keep = good.keep(&failed);
        *good = good.without(&failed)?;
        columns
            .iter()
            .map(|c| arrow::compute::take(c, &keep, None))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| {
                EngineError::fail(
                    "PR0304",
                    format!("source {}", self.rules.name),
                    "rows cannot be picked",
                )
                .caused_by(e)
            })
    }

    fn note_event_time(
        &mut self,
        times: &ArrayRef,
        good: &Good,
        split_ids: &[SplitId],
    ) -> Result<()> {
        let Some(w) = &mut self.watermark else {
            return Ok(());
        };
        let us = micros(times, &self.rules.name)?;
        let mut greatest = vec![i64::MIN; split_ids.len()];
        for (t, split) in us.iter().zip(&good.splits) {
            let g = &mut greatest[usize::from(*split)];
            *g = (*g).max(*t);
        }
        for (split, t) in split_ids.iter().zip(greatest) {
            if t != i64::MIN {
                w.rows(split, t);
            }
        }
        Ok(())
    }

    fn add_hidden(&self, columns: &mut Vec<ArrayRef>, good: &Good, split_ids: &[SplitId]) {
        for field in self.rules.schema.fields().iter().skip(columns.len()) {
            let column: ArrayRef = match field.name().as_str() {
                hidden::SPLIT => {
                    let by_index: Vec<u64> = split_ids
                        .iter()
                        .map(|s| self.hashes.get(s).copied().unwrap_or(0))
                        .collect();
                    Arc::new(UInt64Array::from_iter_values(
                        good.splits.iter().map(|s| by_index[usize::from(*s)]),
                    ))
                }
                hidden::OFFSET => Arc::new(Int64Array::from(good.offsets.clone())),
                hidden::RAW_KEY => good
                    .raw
                    .as_ref()
                    .map_or_else(|| nulls(good.splits.len()), |r| Arc::new(r.0.clone())),
                _ => good
                    .raw
                    .as_ref()
                    .map_or_else(|| nulls(good.splits.len()), |r| Arc::new(r.1.clone())),
            };
            columns.push(column);
        }
    }

    fn isolate(
        &mut self,
        good: &Good,
        failed: &[(usize, String)],
        split_ids: &[SplitId],
    ) -> Result<()> {
        self.wrong_rows(good, failed, split_ids, "PR0302")
    }

    fn wrong_rows(
        &mut self,
        good: &Good,
        failed: &[(usize, String)],
        split_ids: &[SplitId],
        code: &'static str,
    ) -> Result<()> {
        for (row, text) in failed {
            let bytes = |a: &BinaryArray| {
                a.is_valid(*row)
                    .then(|| Bytes::copy_from_slice(a.value(*row)))
            };
            let record = BadRecord {
                split: good.splits[*row],
                offset: good.offsets[*row],
                code,
                text: text.clone(),
                key: good.raw.as_ref().and_then(|r| bytes(&r.0)),
                value: good.raw.as_ref().and_then(|r| bytes(&r.1)),
            };
            self.wrong(split_ids, record)?;
        }
        Ok(())
    }

    /// Applies `onError` to one record.
    fn wrong(&mut self, split_ids: &[SplitId], record: BadRecord) -> Result<()> {
        self.counts.bad += 1;
        let split = split_ids[usize::from(record.split)].clone();
        match self.rules.on_error {
            Policy::Fail => {
                let object = format!(
                    "source {}, {} at {}",
                    self.rules.name, split.0, record.offset
                );
                Err(EngineError::invalid(
                    record.code,
                    object,
                    format!("{}; onError is Fail", record.text),
                ))
            }
            Policy::Skip => Ok(()),
            Policy::DeadLetter(sink) => {
                self.counts.dead_letters += 1;
                self.letters.push(DeadLetter {
                    sink,
                    source: self.rules.index,
                    split,
                    offset: record.offset,
                    code: record.code.into(),
                    text: record.text,
                    key: record.key,
                    value: record.value,
                });
                Ok(())
            }
        }
    }
}

/// Good rows of a poll and where they came from.
struct Good {
    rows: RecordBatch,
    splits: Vec<u16>,
    offsets: Vec<i64>,
    raw: Option<(BinaryArray, BinaryArray)>,
}

impl Good {
    fn keep(&self, failed: &[(usize, String)]) -> arrow::array::UInt32Array {
        let mut failed = failed.iter().map(|(i, _)| *i).peekable();
        let rows = (0..self.splits.len()).filter(|i| {
            if failed.peek() == Some(i) {
                failed.next();
                return false;
            }
            true
        });
        rows.map(|i| u32::try_from(i).expect("a batch has fewer than 2^32 rows"))
            .collect::<Vec<_>>()
            .into()
    }

    /// `failed` in ascending order of rows.
    fn without(&self, failed: &[(usize, String)]) -> Result<Good> {
        let keep = self.keep(failed);
        let rows = take_record_batch(&self.rows, &keep).map_err(|e| {
            EngineError::fail("PR0304", "source", "rows cannot be picked").caused_by(e)
        })?;
        let pick = |i: &u32| *i as usize;
        let raw = self.raw.as_ref().map(|(k, v)| {
            let take = |a: &BinaryArray| {
                BinaryArray::from_iter(
                    keep.values()
                        .iter()
                        .map(|i| a.is_valid(pick(i)).then(|| a.value(pick(i)))),
                )
            };
            (take(k), take(v))
        });
        Ok(Good {
            rows,
            splits: keep.values().iter().map(|i| self.splits[pick(i)]).collect(),
            offsets: keep
                .values()
                .iter()
                .map(|i| self.offsets[pick(i)])
                .collect(),
            raw,
        })
    }
}

fn nulls(rows: usize) -> ArrayRef {
    arrow::array::new_null_array(&DataType::Binary, rows)
}

/// Event times in microseconds.
fn micros(times: &ArrayRef, source: &str) -> Result<Vec<i64>> {
    use arrow::datatypes as t;
    let us = match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => times
            .as_primitive::<t::TimestampSecondType>()
            .values()
            .iter()
            .map(|v| v.saturating_mul(1_000_000))
            .collect(),
        DataType::Timestamp(TimeUnit::Millisecond, _) => times
            .as_primitive::<t::TimestampMillisecondType>()
            .values()
            .iter()
            .map(|v| v.saturating_mul(1000))
            .collect(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => times
            .as_primitive::<t::TimestampMicrosecondType>()
            .values()
            .to_vec(),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => times
            .as_primitive::<t::TimestampNanosecondType>()
            .values()
            .iter()
            .map(|v| v.div_euclid(1000))
            .collect(),
        other => {
            let text = format!("the event time has type {other}");
            return Err(EngineError::fail(
                "PR0304",
                format!("source {source}"),
                text,
            ));
        }
    };
    Ok(us)
}
