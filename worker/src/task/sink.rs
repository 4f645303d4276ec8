//! The end of a stream in one slot: rows are encoded once into the stage of their shard (exactly once), or sent at once (at
//! least once). Owns the stage of each sink and, for Update mode, the folding of an epoch's changes to one per key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::{concat_batches, take_record_batch};
use arrow_row::{RowConverter, SortField};
use penstock_plan::graph::OutputMode;

use crate::error::{EngineError, Result};
use crate::message::{Barrier, BarrierKind, Batch, RowKind};
use crate::sinks::{DirectSender, Record, SinkEncoder, SinkRef, StagedRecords};

use super::align::Step;
use super::inputs::{Given, Inputs};
use super::operator::Turn;
use super::times::{Alignment, Meter, Queued, TaskFlow};

/// What one slot has staged for one sink in the running epoch. Shared by the sink's task and by dead letters.
pub struct SinkStage {
    pub name: String,
    sink: SinkRef,
    encoder: Option<Box<dyn SinkEncoder>>,
    shards: Vec<StagedRecords>,
    direct: Option<Box<dyn DirectSender>>,
    /// Shard of rows that have no key.
    keyless: u64,
    pub rows: u64,
}

impl SinkStage {
    /// `encoder`: absent for a sink that only takes dead letters. `direct`: present for `AtLeastOnce`.
    pub fn new(
        name: String,
        sink: SinkRef,
        encoder: Option<Box<dyn SinkEncoder>>,
        direct: Option<Box<dyn DirectSender>>,
        keyless: u64,
    ) -> Self {
        let shards = vec![StagedRecords::default(); usize::from(sink.shards())];
        Self {
            name,
            sink,
            encoder,
            shards,
            direct,
            keyless,
            rows: 0,
        }
    }

    fn encode(&mut self, batch: &Batch) -> Result<()> {
        let encoder = self
            .encoder
            .as_mut()
            .expect("a sink that an INSERT names has an encoder");
        encoder.encode(batch, self.keyless, &mut self.shards)?;
        self.rows += batch.num_rows() as u64;
        self.send()
    }

    /// Stages a dead letter.
    pub fn record(&mut self, record: &Record, split: u64) -> Result<()> {
        let shard =
            usize::try_from(split % self.shards.len() as u64).expect("fewer than 2^16 shards");
        self.sink.stage_record(record, &mut self.shards[shard]);
        self.rows += 1;
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        if let Some(direct) = &mut self.direct {
            for staged in self.shards.iter_mut().filter(|s| s.rows > 0) {
                direct.send(staged)?;
                staged.clear();
            }
        }
        Ok(())
    }

    pub fn staged_bytes(&self) -> usize {
        self.shards.iter().map(|s| s.data.len()).sum()
    }

    /// Whether everything that was sent in the epoch that `finish` ended has been acknowledged.
    pub fn settled(&mut self) -> Result<bool> {
        self.direct.as_mut().map_or(Ok(true), |d| d.settled())
    }

    /// Ends the epoch: everything staged is handed over, by shard; what was sent is owed to it until it has `settled`.
    pub fn finish(&mut self) -> Result<Vec<(u16, StagedRecords)>> {
        if let Some(direct) = &mut self.direct {
            direct.seal()?;
        }
        let staged = self
            .shards
            .iter_mut()
            .enumerate()
            .filter(|(_, s)| s.rows > 0);
        Ok(staged
            .map(|(i, s)| {
                let mut whole = std::mem::take(s);
                // The next epoch is about as large; what it does not touch costs nothing.
                s.data.reserve(whole.data.len());
                whole.data.shrink_to_fit();
                (u16::try_from(i).expect("fewer than 2^16 shards"), whole)
            })
            .collect())
    }
}

/// The sink node of one slot.
pub struct SinkTask {
    pub uid: String,
    /// Index of its [`SinkStage`].
    pub stage: usize,
    inputs: Inputs,
    fold: Option<ChangeFold>,
    /// Folded changes leave when the input has run dry.
    at_once: bool,
    passed: Option<Barrier>,
    pub meter: Meter,
    rows_in: u64,
    rows_out: u64,
    alignment: Alignment,
    queued: Queued,
}

/// Batches a sink takes in one turn.
const TURN: usize = 16;

impl SinkTask {
    /// `at_once`: changes are folded until the input has run dry, not until the barrier.
    pub fn new(
        uid: String,
        stage: usize,
        inputs: Inputs,
        mode: OutputMode,
        key: Option<Vec<usize>>,
        at_once: bool,
    ) -> Self {
        let fold = match (mode, key) {
            (OutputMode::Update, Some(key)) => Some(ChangeFold {
                key,
                pending: Vec::new(),
            }),
            (OutputMode::Append | OutputMode::Complete | OutputMode::Update, _) => None,
        };
        Self {
            uid,
            stage,
            inputs,
            fold,
            at_once,
            passed: None,
            meter: Meter::default(),
            rows_in: 0,
            rows_out: 0,
            alignment: Alignment::default(),
            queued: Queued::default(),
        }
    }

    /// A turn ended.
    pub fn measure(&mut self, began: Duration, ended: Duration, turn: Turn) -> Duration {
        self.alignment.turn(ended, self.inputs.aligning());
        self.meter.turn(began, ended, turn)
    }

    /// Looks at what waits in its channels.
    pub fn look(&mut self) {
        self.queued.look(self.inputs.queued());
    }

    /// Of the epoch that ends. Dead letters are not among its rows.
    pub fn flow(&mut self) -> TaskFlow {
        TaskFlow {
            rows_in: self.rows_in,
            rows_out: self.rows_out,
            alignment: self.alignment.take(),
            queued: self.queued,
        }
    }

    pub fn progressed(&self) -> crate::message::Progressed {
        self.inputs.progressed()
    }

    pub fn passed(&self) -> Option<Barrier> {
        self.passed
    }

    pub fn go_on(&mut self) {
        self.passed = None;
    }

    pub fn run(&mut self, stages: &mut [SinkStage]) -> Result<Turn> {
        let stage = &mut stages[self.stage];
        for n in 0..TURN {
            if self.passed.is_some() {
                return Ok(Turn::Starved);
            }
            match self.inputs.take() {
                Given::Step(Step::Batch(_, batch)) => {
                    self.rows_in += batch.num_rows() as u64;
                    match &mut self.fold {
                        Some(fold) => fold.pending.push(batch),
                        None => {
                            self.rows_out += batch.num_rows() as u64;
                            stage.encode(&batch)?;
                        }
                    }
                }
                Given::Step(Step::Barrier(b)) if b.kind == BarrierKind::Begin => {}
                Given::Step(Step::Barrier(barrier)) => {
                    self.unfold(stage)?;
                    self.passed = Some(barrier);
                }
                Given::Step(Step::Watermark(_) | Step::Idle | Step::End) => {}
                Given::Dry if self.at_once => self.unfold(stage)?,
                Given::Dry | Given::Nothing => {
                    return Ok(if n == 0 { Turn::Starved } else { Turn::Busy });
                }
            }
        }
        Ok(Turn::Busy)
    }

    /// Sends on what was folded.
    fn unfold(&mut self, stage: &mut SinkStage) -> Result<()> {
        if let Some(fold) = &mut self.fold
            && let Some(batch) = fold.take()?
        {
            self.rows_out += batch.num_rows() as u64;
            stage.encode(&batch)?;
        }
        Ok(())
    }
}

/// Folds changes to the last one per key: `+U` the row, or `-D`.
struct ChangeFold {
    key: Vec<usize>,
    pending: Vec<Batch>,
}

impl ChangeFold {
    fn take(&mut self) -> Result<Option<Batch>> {
        let pending = std::mem::take(&mut self.pending);
        let Some(first) = pending.first() else {
            return Ok(None);
        };
        let failed = |e| {
            EngineError::fail(
                "PR0304",
                "sink",
                "an epoch's changes cannot be put together",
            )
            .caused_by(e)
        };
        let rows = concat_batches(&first.rows.schema(), pending.iter().map(|b| &b.rows))
            .map_err(failed)?;
        let kinds: Vec<RowKind> = pending
            .iter()
            .flat_map(|b| (0..b.num_rows()).map(|i| b.kind(i)))
            .collect();
        let last = self.last_by_key(&rows, &kinds).map_err(failed)?;
        let picks = arrow::array::UInt32Array::from_iter_values(last.iter().map(|(row, _)| *row));
        let rows = take_record_batch(&rows, &picks).map_err(failed)?;
        let kinds: Arc<[RowKind]> = last.iter().map(|(_, kind)| *kind).collect();
        Ok(Some(Batch {
            rows,
            kinds: Some(kinds),
            lane: crate::message::Lane::Main,
        }))
    }

    /// Row and kind per key, in the order in which the keys first changed. A key that came and went within the epoch is a
    /// delete: harmless where it was never seen.
    fn last_by_key(
        &self,
        rows: &RecordBatch,
        kinds: &[RowKind],
    ) -> std::result::Result<Vec<(u32, RowKind)>, arrow::error::ArrowError> {
        let columns: Vec<_> = self.key.iter().map(|&c| rows.column(c).clone()).collect();
        let fields = columns
            .iter()
            .map(|c| SortField::new(c.data_type().clone()))
            .collect();
        let keys = RowConverter::new(fields)?.convert_columns(&columns)?;
        let mut at: HashMap<&[u8], usize> = HashMap::new();
        let mut last: Vec<(u32, RowKind)> = Vec::new();
        for (i, kind) in kinds.iter().enumerate() {
            let row = u32::try_from(i).expect("an epoch's changes are fewer than 2^32");
            let change = if kind.adds() {
                RowKind::UpdateAfter
            } else {
                RowKind::Delete
            };
            match at.entry(keys.row(i).data()) {
                std::collections::hash_map::Entry::Occupied(e) => last[*e.get()] = (row, change),
                std::collections::hash_map::Entry::Vacant(e) => {
                    e.insert(last.len());
                    last.push((row, change));
                }
            }
        }
        Ok(last)
    }
}
