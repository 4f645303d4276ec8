//! One operator of one slot as a task: aligned input, synchronous calls, output to its routes. Waits by returning.

use std::time::Duration;

use crate::error::Result;
use crate::message::{Barrier, BarrierKind, Batch, EventTime, Message, Progressed};
use crate::operators::{Context, Operator, Output, Progress};
use crate::state::{SlotState, TableId};

use super::align::Step;
use super::inputs::{Given, Inputs};
use super::late::LateRows;
use super::route::Route;
use super::skew::{KeySampler, Skew};
use super::times::{Alignment, Meter, Queued, TaskFlow};

/// Batches an operator may take before the slot looks at the others.
const TURN: usize = 16;

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Did something, and may have more to do.
    Busy,
    /// Nothing to take.
    Starved,
    /// The consumers are full.
    Blocked,
}

/// A mark that is forwarded once the operator has emitted what it caused.
#[derive(Debug)]
enum Mark {
    Watermark(EventTime),
    Barrier(Barrier),
}

/// What an operator has done since its slot's start, and what its state takes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OperatorCounts {
    pub rows_in: u64,
    pub rows_out: u64,
    /// Keys or rows that are ready in memory; estimated, as are the sizes.
    pub state_keys: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// Keys that were looked up on disk.
    pub lookups: u64,
}

impl OperatorCounts {
    pub fn add(&mut self, other: Self) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.state_keys += other.state_keys;
        self.memory_bytes += other.memory_bytes;
        self.disk_bytes += other.disk_bytes;
        self.lookups += other.lookups;
    }

    /// What a new generation begins with: what was counted, without what was held.
    pub fn rest(&mut self) {
        *self = Self {
            rows_in: self.rows_in,
            rows_out: self.rows_out,
            lookups: self.lookups,
            ..Self::default()
        };
    }
}

pub struct OperatorTask {
    pub uid: String,
    operator: Box<dyn Operator>,
    inputs: Inputs,
    outputs: Outputs,
    /// The operator said `More`; after `Idle` this mark goes on.
    resuming: Option<Option<Mark>>,
    /// Changes leave when the input has run dry.
    at_once: bool,
    /// Passed this barrier; takes nothing before the slot has frozen its state.
    passed: Option<Barrier>,
    ended: bool,
    tables: Vec<TableId>,
    pub rows_in: u64,
    pub rows_out: u64,
    pub meter: Meter,
    alignment: Alignment,
    queued: Queued,
    /// Of an operator with keys.
    sampler: Option<KeySampler>,
}

/// Fan-out of one task, and what came too late.
#[derive(Default)]
pub struct Outputs {
    routes: Vec<Route>,
    late: LateRows,
    rows: u64,
    error: Option<crate::error::EngineError>,
}

impl Outputs {
    pub fn new(routes: Vec<Route>) -> Self {
        Self {
            routes,
            ..Self::default()
        }
    }

    pub fn mark(&mut self, message: &Message) {
        for route in &mut self.routes {
            route.mark(message);
        }
    }

    pub fn has_room(&self) -> bool {
        self.routes.iter().all(Route::has_room)
    }

    /// Sent so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn send(&mut self, batch: Batch) {
        self.rows += batch.num_rows() as u64;
        let Some((last, others)) = self.routes.split_last_mut() else {
            return;
        };
        let sent = others
            .iter_mut()
            .try_for_each(|route| route.batch(batch.clone()))
            .and_then(|()| last.batch(batch));
        if let Err(e) = sent {
            self.error.get_or_insert(e);
        }
    }

    /// The first error of `send`, which cannot return one.
    pub fn check(&mut self) -> Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }
}

impl Output for Outputs {
    fn emit(&mut self, batch: Batch) {
        self.send(batch);
    }

    fn is_full(&self) -> bool {
        !self.has_room()
    }

    fn late(&mut self, rows: arrow::array::RecordBatch) {
        self.late.push(rows);
    }
}

impl OperatorTask {
    /// `at_once`: what changed leaves when the input has run dry, and not only at the barrier.
    pub fn new(
        uid: String,
        operator: Box<dyn Operator>,
        inputs: Inputs,
        routes: Vec<Route>,
        at_once: bool,
        sampler: Option<KeySampler>,
    ) -> Self {
        let tables = operator.tables();
        Self {
            uid,
            operator,
            inputs,
            outputs: Outputs::new(routes),
            resuming: None,
            at_once,
            passed: None,
            ended: false,
            tables,
            rows_in: 0,
            rows_out: 0,
            meter: Meter::default(),
            alignment: Alignment::default(),
            queued: Queued::default(),
            sampler,
        }
    }

    pub fn progressed(&self) -> Progressed {
        self.inputs.progressed()
    }

    pub fn passed(&self) -> Option<Barrier> {
        self.passed
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    pub fn memory_bytes(&self) -> usize {
        self.operator.memory_bytes()
    }

    pub fn counts(&self, state: &SlotState) -> OperatorCounts {
        OperatorCounts {
            rows_in: self.rows_in,
            rows_out: self.rows_out,
            state_keys: self.operator.state_keys() as u64,
            memory_bytes: self.operator.memory_bytes() as u64,
            disk_bytes: state.on_disk(&self.tables),
            lookups: state.lookups(&self.tables),
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

    /// What its keys are like; `None` where it has none.
    pub fn skew(&self) -> Option<Skew> {
        self.sampler.as_ref().map(KeySampler::skew)
    }

    /// What was seen of its keys counts half from now on.
    pub fn halve_skew(&mut self) {
        if let Some(sampler) = &mut self.sampler {
            sampler.halve();
        }
    }

    /// Of the epoch that ends.
    pub fn flow(&mut self) -> TaskFlow {
        TaskFlow {
            rows_in: self.rows_in,
            rows_out: self.outputs.rows(),
            alignment: self.alignment.take(),
            queued: self.queued,
        }
    }

    /// The slot has frozen its state: the next epoch may begin.
    pub fn go_on(&mut self) {
        self.passed = None;
    }

    pub fn take_late(&mut self) -> LateRows {
        std::mem::take(&mut self.outputs.late)
    }

    /// Works until there is nothing to take, the consumers are full, or the turn is over.
    pub fn run(&mut self, state: &mut SlotState, now_ms: i64) -> Result<Turn> {
        for n in 0..TURN {
            if self.passed.is_some() || self.ended {
                return Ok(Turn::Starved);
            }
            if !self.outputs.has_room() {
                return Ok(Turn::Blocked);
            }
            if let Some(mark) = self.resuming.take() {
                let mut cx = Context {
                    output: &mut self.outputs,
                    state,
                    now_ms,
                };
                match self.operator.resume(&mut cx)? {
                    Progress::More => self.resuming = Some(mark),
                    Progress::Idle => self.forward(mark),
                }
                self.outputs.check()?;
                continue;
            }
            match self.inputs.take() {
                Given::Step(step) => self.step(step, state, now_ms)?,
                Given::Dry if self.at_once => {
                    let mut cx = Context {
                        output: &mut self.outputs,
                        state,
                        now_ms,
                    };
                    if self.operator.on_dry(&mut cx)? == Progress::More {
                        self.resuming = Some(None);
                    }
                }
                Given::Dry | Given::Nothing => {
                    return Ok(if n == 0 { Turn::Starved } else { Turn::Busy });
                }
            }
            self.rows_out = self.outputs.rows;
            self.outputs.check()?;
        }
        Ok(Turn::Busy)
    }

    fn step(&mut self, step: Step, state: &mut SlotState, now_ms: i64) -> Result<()> {
        let mut cx = Context {
            output: &mut self.outputs,
            state,
            now_ms,
        };
        let (progress, mark) = match step {
            Step::Batch(port, batch) => {
                self.rows_in += batch.num_rows() as u64;
                if let Some(sampler) = &mut self.sampler {
                    sampler.look(port, &batch);
                }
                (self.operator.process(port, batch, &mut cx)?, None)
            }
            Step::Watermark(t) => (
                self.operator.on_watermark(t, &mut cx)?,
                Some(Mark::Watermark(t)),
            ),
            Step::Barrier(b) if b.kind == BarrierKind::Begin => {
                self.outputs.mark(&Message::Barrier(b));
                return Ok(());
            }
            Step::Barrier(b) => (
                self.operator.on_barrier(&b, &mut cx)?,
                Some(Mark::Barrier(b)),
            ),
            Step::Idle => {
                self.outputs.mark(&Message::Idle);
                return Ok(());
            }
            Step::End => {
                self.outputs.mark(&Message::End);
                self.ended = true;
                return Ok(());
            }
        };
        match progress {
            Progress::More => self.resuming = Some(mark),
            Progress::Idle => self.forward(mark),
        }
        Ok(())
    }

    fn forward(&mut self, mark: Option<Mark>) {
        match mark {
            Some(Mark::Watermark(t)) => self.outputs.mark(&Message::Watermark(t)),
            Some(Mark::Barrier(b)) => {
                self.outputs.mark(&Message::Barrier(b));
                self.passed = Some(b);
            }
            None => {}
        }
    }
}
