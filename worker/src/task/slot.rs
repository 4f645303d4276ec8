//! One slot: a thread that runs one subtask of every operator, cooperatively, consumers before producers. Owns the end of
//! an epoch within the slot: when every task has passed the barrier, state is frozen and staged outputs are handed over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::clock::Clock;
use crate::cpu;
use crate::error::{EngineError, Result};
use crate::message::{Barrier, Progressed};
use crate::sinks::StagedRecords;
use crate::sources::SplitId;
use crate::state::{FrozenLayer, SlotState};

use super::late::{self, LateRows, SplitNames};
use super::operator::{OperatorCounts, OperatorTask, Turn};
use super::sink::{SinkStage, SinkTask};
use super::skew::Skew;
use super::source::{
    Assignment, DeadLetter, PlannedEpoch, Policy, SourceCounts, SourceRules, SourceTask,
    SplitProgress,
};
use super::times::{TaskFlow, TaskTimes};

/// How long a slot without work sleeps before it looks at its clocks (idle splits, rate limits).
const LOOK: Duration = Duration::from_millis(20);
/// The same while an ended epoch waits for acknowledgements.
const LOOK_SETTLED: Duration = Duration::from_millis(1);
/// Milliseconds after which what was seen of keys counts half: in all slots at the same barrier.
const HALVE_SKEW: i64 = 5000;
/// How often it looks at what waits in channels.
const LOOK_QUEUES: Duration = Duration::from_millis(50);

/// What the member tells a slot.
#[derive(Debug)]
pub enum SlotCommand {
    /// Splits for the source with that index.
    Assign {
        source: usize,
        splits: Vec<Assignment>,
    },
    /// Continuous: the epoch ends here.
    Inject(Barrier),
    /// Planned: one epoch, per source by index.
    Plan(BTreeMap<usize, PlannedEpoch>),
    /// The input counts as ended.
    Drain,
    /// Ends the slot's thread.
    Halt,
}

/// What a slot tells its member.
#[derive(Debug)]
pub enum SlotEvent {
    /// Every task has passed the barrier.
    Passed(Box<SlotReport>),
    /// Half of the dirty or staging share is used.
    WantsBarrier,
    /// All splits of all sources are read to their end, of so many assignments.
    SourcesDone {
        slot: usize,
        assigned: u64,
    },
    /// `failAbove` was passed.
    Failing {
        source: String,
        text: String,
    },
    Failed {
        slot: usize,
        error: EngineError,
    },
}

/// A slot's part of an epoch.
#[derive(Debug)]
pub struct SlotReport {
    pub slot: usize,
    pub barrier: Barrier,
    pub layer: Option<Arc<FrozenLayer>>,
    /// (sink, shard, records), in the order of shards.
    pub staged: Vec<(usize, u16, StagedRecords)>,
    /// Source index to splits.
    pub splits: BTreeMap<usize, Vec<(SplitId, SplitProgress)>>,
    pub watermarks: Vec<(String, Progressed)>,
    pub counts: SlotCounts,
    /// Late rows for dead letters: a row may be judged in several slots, so the member stages them, each once.
    pub late: Vec<DeadLetter>,
}

/// Counters since the slot's start.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct SlotCounts {
    pub sources: Vec<SourceCounts>,
    /// Late rows by source index; rows without an origin count for source 0.
    pub late: Vec<u64>,
    /// By uid.
    pub operators: Vec<(String, OperatorCounts)>,
    /// Of every task, by uid.
    pub times: Vec<(String, TaskTimes)>,
    /// What the slot's process has used of the CPU that it may: [`cpu::used`].
    pub process: Duration,
    /// As `times`: sources, operators, sinks, in the same order in every slot.
    pub flows: Vec<TaskFlow>,
    /// Of operators with keys, by uid.
    pub skews: Vec<(String, Skew)>,
    pub sink_rows: Vec<u64>,
    pub held_back_by: Vec<Option<SplitId>>,
}

pub struct Slot {
    pub index: usize,
    pub sources: Vec<SourceTask>,
    /// In topological order.
    pub operators: Vec<OperatorTask>,
    pub sinks: Vec<SinkTask>,
    pub stages: Vec<SinkStage>,
    pub state: SlotState,
    pub rules: Vec<Arc<SourceRules>>,
    pub names: SplitNames,
    pub clock: Arc<dyn Clock>,
    pub notify: Arc<Notify>,
    pub commands: mpsc::UnboundedReceiver<SlotCommand>,
    pub events: mpsc::UnboundedSender<SlotEvent>,
    /// Bytes staged or dirty above which the slot asks for an early barrier.
    pub early_bytes: usize,
    /// What operators held after the last barrier.
    pub kept_bytes: usize,
    /// Clock of the running epoch.
    pub now_ms: i64,
    /// Number that the running epoch will have.
    pub epoch: u64,
    pub late_counts: Vec<u64>,
    pub late_letters: Vec<DeadLetter>,
    /// Of the epoch that ended last, while what it sent is not acknowledged. The next one runs meanwhile.
    pub owed: Option<Box<SlotReport>>,
    pub asked: bool,
    /// Assignments taken in so far.
    pub assigned: u64,
    pub said_done: bool,
    pub said_failing: bool,
    /// When it looked at what waits in channels.
    pub looked: Option<Duration>,
    /// Of the last barrier, in units of [`HALVE_SKEW`].
    pub skew_age: Option<i64>,
}

impl Slot {
    /// Runs until `Halt`, or until an error, which is sent as an event.
    pub async fn run(mut self) {
        for source in &mut self.sources {
            source.set_waker(self.notify.clone());
        }
        loop {
            match self.step() {
                Ok(Step::Busy) => tokio::task::yield_now().await,
                Ok(Step::Idle) => {
                    let look = if self.owed.is_some() {
                        LOOK_SETTLED
                    } else {
                        LOOK
                    };
                    tokio::select! {
                        biased;
                        () = self.notify.notified() => {}
                        command = self.commands.recv() => match command {
                            Some(command) => if self.command_or_report(command) { return },
                            None => return,
                        },
                        () = tokio::time::sleep(look) => self.trace_waiting(),
                    }
                }
                Ok(Step::Halt) => return,
                Err(error) => {
                    // Nobody listens when the generation is over already.
                    let _ = self.events.send(SlotEvent::Failed {
                        slot: self.index,
                        error,
                    });
                    return;
                }
            }
        }
    }

    /// For people who ask why an epoch does not end: the tasks that owe the barrier.
    fn trace_waiting(&self) {
        if !tracing::enabled!(tracing::Level::TRACE) {
            return;
        }
        let sources = self.sources.iter().map(|s| (s.uid.as_str(), s.passed()));
        let operators = self.operators.iter().map(|o| (o.uid.as_str(), o.passed()));
        let sinks = self.sinks.iter().map(|s| (s.uid.as_str(), s.passed()));
        let owing: Vec<&str> = sources
            .chain(operators)
            .chain(sinks)
            .filter(|(_, passed)| passed.is_none())
            .map(|(uid, _)| uid)
            .collect();
        tracing::trace!(slot = self.index, ?owing, "waiting");
    }

    fn command_or_report(&mut self, command: SlotCommand) -> bool {
        match self.command(command) {
            Ok(halt) => halt,
            Err(error) => {
                let _ = self.events.send(SlotEvent::Failed {
                    slot: self.index,
                    error,
                });
                true
            }
        }
    }

    /// One turn of every task.
    fn step(&mut self) -> Result<Step> {
        while let Ok(command) = self.commands.try_recv() {
            if self.command(command)? {
                return Ok(Step::Halt);
            }
        }
        let mut busy = false;
        let mut at = self.clock.boot();
        self.look_at_queues(at);
        for sink in &mut self.sinks {
            let turn = sink.run(&mut self.stages)?;
            busy |= turn == Turn::Busy;
            at = sink.measure(at, self.clock.boot(), turn);
        }
        for i in (0..self.operators.len()).rev() {
            let operator = &mut self.operators[i];
            let turn = operator.run(&mut self.state, self.now_ms)?;
            busy |= turn == Turn::Busy;
            at = operator.measure(at, self.clock.boot(), turn);
            let late = operator.take_late();
            if !late.is_empty() {
                self.judge_late(late);
            }
        }
        // The sources' clocks (idleness, rates) are the wall's: they never decide what a row means.
        let now = self.clock.now().get();
        // Everything may wait for a sink that does not answer; memory may not grow meanwhile. The barrier still passes.
        let full = self.in_epoch_bytes() > 2 * self.early_bytes || self.state.must_wait();
        for i in 0..self.sources.len() {
            let source = &mut self.sources[i];
            let turn = source.run(full, now, self.now_ms)?;
            busy |= turn == Turn::Busy;
            at = source.meter.turn(at, self.clock.boot(), turn);
            let letters = source.take_letters();
            for letter in letters {
                self.dead_letter(&letter)?;
            }
        }
        self.ask_and_tell();
        if self.end_epoch()? {
            busy = true;
        }
        Ok(if busy { Step::Busy } else { Step::Idle })
    }

    fn look_at_queues(&mut self, at: Duration) {
        let fresh = |looked: Duration| at.saturating_sub(looked) < LOOK_QUEUES;
        if self.looked.is_some_and(fresh) {
            return;
        }
        self.looked = Some(at);
        self.operators.iter_mut().for_each(OperatorTask::look);
        self.sinks.iter_mut().for_each(SinkTask::look);
    }

    fn command(&mut self, command: SlotCommand) -> Result<bool> {
        match command {
            SlotCommand::Assign { source, splits } => {
                self.said_done = false;
                self.assigned += 1;
                self.sources[source].assign(splits)?;
            }
            SlotCommand::Inject(barrier) => {
                self.now_ms = barrier.now_ms;
                for source in &mut self.sources {
                    source.inject(barrier);
                }
            }
            SlotCommand::Plan(epochs) => {
                for (source, epoch) in epochs {
                    self.now_ms = epoch.barrier.now_ms;
                    self.sources[source].plan(epoch);
                }
            }
            SlotCommand::Drain => {
                for source in &mut self.sources {
                    source.drain();
                }
            }
            SlotCommand::Halt => return Ok(true),
        }
        Ok(false)
    }

    /// Bytes that the running epoch has changed and staged; operators write at the barrier what they have changed.
    fn in_epoch_bytes(&self) -> usize {
        let staged: usize = self.stages.iter().map(SinkStage::staged_bytes).sum();
        let grown = self.operator_bytes().saturating_sub(self.kept_bytes);
        staged + self.state.dirty_bytes() + grown
    }

    fn operator_bytes(&self) -> usize {
        self.operators.iter().map(OperatorTask::memory_bytes).sum()
    }

    fn ask_and_tell(&mut self) {
        let much = self.in_epoch_bytes() > self.early_bytes || self.state.wants_barrier();
        if !self.asked && much {
            self.asked = true;
            let _ = self.events.send(SlotEvent::WantsBarrier);
        }
        if !self.said_done && !self.sources.is_empty() && self.sources.iter().all(SourceTask::done)
        {
            self.said_done = true;
            let _ = self.events.send(SlotEvent::SourcesDone {
                slot: self.index,
                assigned: self.assigned,
            });
        }
        if !self.said_failing
            && let Some((source, text)) = self
                .sources
                .iter()
                .find_map(|s| s.failing().map(|t| (s.rules().name.clone(), t)))
        {
            self.said_failing = true;
            let _ = self.events.send(SlotEvent::Failing { source, text });
        }
    }

    /// Tells the member of the ended epoch once what it sent is acknowledged; whether none waits any more.
    fn hand_over(&mut self) -> Result<bool> {
        if self.owed.is_none() {
            return Ok(true);
        }
        for stage in &mut self.stages {
            if !stage.settled()? {
                return Ok(false);
            }
        }
        if let Some(report) = self.owed.take() {
            let _ = self.events.send(SlotEvent::Passed(report));
        }
        Ok(true)
    }

    /// When every task has passed the barrier: freeze, hand over, go on. The slot never waits for acknowledgements: rows of
    /// the next epoch would wait with it.
    fn end_epoch(&mut self) -> Result<bool> {
        if !self.hand_over()? {
            return Ok(false);
        }
        let passed = self
            .sources
            .iter()
            .map(SourceTask::passed)
            .chain(self.operators.iter().map(OperatorTask::passed))
            .chain(self.sinks.iter().map(SinkTask::passed))
            .collect::<Option<Vec<Barrier>>>();
        let Some(barrier) = passed.and_then(|p| p.first().copied()) else {
            return Ok(false);
        };
        let mut staged = Vec::new();
        for (i, stage) in self.stages.iter_mut().enumerate() {
            staged.extend(
                stage
                    .finish()?
                    .into_iter()
                    .map(|(shard, records)| (i, shard, records)),
            );
        }
        let report = SlotReport {
            slot: self.index,
            barrier,
            layer: self.state.freeze(barrier.epoch),
            staged,
            splits: self
                .sources
                .iter()
                .map(|s| (s.rules().index, s.progress()))
                .collect(),
            watermarks: self.watermarks(),
            counts: self.counts(),
            late: std::mem::take(&mut self.late_letters),
        };
        self.owed = Some(Box::new(report));
        self.hand_over()?;
        self.asked = false;
        self.kept_bytes = self.operator_bytes();
        self.halve_skews(barrier.now_ms);
        self.epoch = barrier.epoch + 1;
        self.sources.iter_mut().for_each(SourceTask::go_on);
        self.operators.iter_mut().for_each(OperatorTask::go_on);
        self.sinks.iter_mut().for_each(SinkTask::go_on);
        Ok(true)
    }

    fn halve_skews(&mut self, now_ms: i64) {
        let age = now_ms.div_euclid(HALVE_SKEW);
        if self
            .skew_age
            .replace(age)
            .is_some_and(|before| before < age)
        {
            self.operators.iter_mut().for_each(OperatorTask::halve_skew);
        }
    }

    fn watermarks(&self) -> Vec<(String, Progressed)> {
        let sources = self.sources.iter().map(|s| (&s.uid, s.progressed()));
        let operators = self.operators.iter().map(|o| (&o.uid, o.progressed()));
        let sinks = self.sinks.iter().map(|s| (&s.uid, s.progressed()));
        let all = sources.chain(operators).chain(sinks);
        all.map(|(uid, at)| (uid.clone(), at)).collect()
    }

    fn times(&self) -> Vec<(String, TaskTimes)> {
        let sources = self.sources.iter().map(|s| (&s.uid, &s.meter));
        let operators = self.operators.iter().map(|o| (&o.uid, &o.meter));
        let sinks = self.sinks.iter().map(|s| (&s.uid, &s.meter));
        sources
            .chain(operators)
            .chain(sinks)
            .map(|(uid, meter)| (uid.clone(), meter.times()))
            .collect()
    }

    fn flows(&mut self) -> Vec<TaskFlow> {
        let sources = self.sources.iter().map(SourceTask::flow);
        let operators = self.operators.iter_mut().map(OperatorTask::flow);
        let sinks = self.sinks.iter_mut().map(SinkTask::flow);
        sources.chain(operators).chain(sinks).collect()
    }

    fn counts(&mut self) -> SlotCounts {
        SlotCounts {
            sources: self.sources.iter().map(|s| s.counts).collect(),
            late: self.late_counts.clone(),
            operators: self
                .operators
                .iter()
                .map(|o| (o.uid.clone(), o.counts(&self.state)))
                .collect(),
            times: self.times(),
            process: cpu::used(),
            flows: self.flows(),
            skews: self
                .operators
                .iter()
                .filter_map(|o| Some((o.uid.clone(), o.skew()?)))
                .collect(),
            sink_rows: self.stages.iter().map(|s| s.rows).collect(),
            held_back_by: self.sources.iter().map(SourceTask::held_back_by).collect(),
        }
    }

    /// Applies `onLate` to rows that an operator judged late.
    fn judge_late(&mut self, late: LateRows) {
        for batch in late.into_batches() {
            for origin in late::origins(&batch) {
                let at = origin.split.and_then(|hash| self.names.get(hash));
                let (source, split) = at.unwrap_or_else(|| (0, SplitId("".into())));
                self.late_counts[source] += 1;
                let Policy::DeadLetter(sink) = self.rules[source].on_late else {
                    continue;
                };
                self.late_letters.push(DeadLetter {
                    sink,
                    source,
                    split,
                    offset: origin.offset,
                    code: "PR0205".into(),
                    text: "late: every window of the row has closed".to_owned(),
                    key: origin.key,
                    value: origin.value,
                });
            }
        }
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<()> {
        let source = &self.rules[letter.source].name;
        let record = letter.record(source, self.epoch);
        let split = crate::keys::split_hash(source, &letter.split.0);
        self.stages[letter.sink].record(&record, split)
    }
}

/// What a slot's turn came to.
enum Step {
    Busy,
    Idle,
    Halt,
}

#[cfg(test)]
mod tests;
