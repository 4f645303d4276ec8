//! The coordinator of a job: claims the log, restores, starts the members, and makes epochs. One loop per generation;
//! every decision on the log is `penstock-checkpoint`'s, every decision on ranges is `ranges`'.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use penstock_checkpoint::collect::Collector;
use penstock_checkpoint::decide::{Wish, may_commit};
use penstock_checkpoint::gc::Retention;
use penstock_checkpoint::ids::{
    Epoch, Generation, MemberId, Micros, Nonce, OperatorUid, ShardId, SinkName, SourceName,
    SplitId as LogSplit,
};
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::record::{
    Assignment as LogAssignment, Claim, ClaimKind, Commit, EpochRecord, Kind, Plan,
    Position as LogPosition, Range, SinkBorn, SplitState, StopReason, Stopped,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::{EngineError, ErrorKind, Result};
use crate::fault;
use crate::member::protocol::{BornMarker, FromMember, Shard, Snapshot, Start, ToMember};
use crate::member::storage;
use crate::message::{Barrier, BarrierKind, EventTime};
use crate::planted::{Bug, planted};
use crate::sources::{Position, SourceEnumerator, SplitId, SplitRange};
use crate::task::Assignment;

pub mod bases;
pub mod progress;
mod ranges;

use bases::Bases;
use progress::{Phase, Progress};
use ranges::{Bounds, Span};

/// Commits ahead of publication (rule 3).
pub(crate) const K: u64 = 4;
/// Rows of the first planned epoch when no limit is given; later ones are sized by what the last one took.
const FIRST_PLANNED_ROWS: u64 = 200_000;

/// When epochs end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Continuous,
    ProcessingTime { interval: Duration },
    AvailableNow { drain: bool },
    Once { drain: bool },
}

impl Trigger {
    pub fn planned(self) -> bool {
        !matches!(self, Self::Continuous)
    }

    /// After the end of what is available the input counts as ended.
    pub fn drains(self) -> bool {
        matches!(
            self,
            Self::AvailableNow { drain: true } | Self::Once { drain: true }
        )
    }
}

/// A source as the coordinator sees it.
pub struct SourceInfo {
    pub name: String,
    pub enumerator: Box<dyn SourceEnumerator>,
    /// `None`: no watermark.
    pub out_of_orderness: Option<i64>,
    pub max_rows_per_epoch: Option<u64>,
    pub max_files_per_epoch: usize,
    /// How often to look for new splits.
    pub discover_every: Duration,
    /// Finished splits are remembered by name alone (files).
    pub forget_finished: bool,
}

/// What the person asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    pub trigger: Trigger,
    pub interval: Duration,
    pub retention: Retention,
    pub plan_hash: String,
    /// By index.
    pub sinks: Vec<(String, u16)>,
    pub key_groups: u16,
    /// A chain of changes that spans as many epochs gets a base.
    pub base_epochs: u64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Stopped at a barrier; a later run goes on from here.
    Stopped { epoch: u64 },
    /// Everything that was available has been read.
    Completed { epoch: u64 },
    /// The input counts as ended; the job never goes on.
    Drained { epoch: u64 },
}

pub struct Coordinator {
    pub settings: Settings,
    pub log: JobLog,
    pub sources: Vec<SourceInfo>,
    pub member: mpsc::UnboundedSender<ToMember>,
    pub inbox: mpsc::UnboundedReceiver<FromMember>,
    pub clock: Arc<dyn Clock>,
    /// True: stop at the next barrier.
    pub stop: watch::Receiver<bool>,
    pub progress: Arc<Progress>,
    generation: Generation,
    done: Epoch,
    /// Per source: where splits stand.
    splits: BTreeMap<usize, BTreeMap<SplitId, SplitState>>,
    seen: BTreeMap<usize, BTreeSet<String>>,
    /// Planned mode: greatest watermark by source so far.
    floor: BTreeMap<usize, EventTime>,
    wants_barrier: bool,
    sources_done: bool,
    /// Assignments told so far.
    assigned: u64,
    failing: Option<(String, String)>,
    collector: Collector,
    bases: Bases,
    planned_rows: u64,
    /// This generation has fixed where a bounded run ends.
    end_fixed: bool,
    lag_at: Option<Instant>,
}

/// What the caller hands over; the rest begins empty.
pub struct Parts {
    pub settings: Settings,
    pub log: JobLog,
    pub sources: Vec<SourceInfo>,
    pub member: mpsc::UnboundedSender<ToMember>,
    pub inbox: mpsc::UnboundedReceiver<FromMember>,
    pub clock: Arc<dyn Clock>,
    pub stop: watch::Receiver<bool>,
    pub progress: Arc<Progress>,
}

impl Coordinator {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            settings,
            log,
            sources,
            member,
            inbox,
            clock,
            stop,
            progress,
        } = parts;
        let bases = Bases::new(settings.base_epochs);
        Self {
            settings,
            log,
            sources,
            member,
            inbox,
            clock,
            stop,
            progress,
            generation: Generation::ZERO,
            done: Epoch::ZERO,
            splits: BTreeMap::new(),
            seen: BTreeMap::new(),
            floor: BTreeMap::new(),
            wants_barrier: false,
            sources_done: false,
            assigned: 0,
            failing: None,
            collector: Collector::new(),
            bases,
            planned_rows: FIRST_PLANNED_ROWS,
            end_fixed: false,
            lag_at: None,
        }
    }

    /// One generation: claim, restore, run until it ends. An error of kind `Fenced` or `Retry` may be followed by another
    /// generation; `Fail` and `Invalid` end the job.
    pub async fn run(&mut self) -> Result<Outcome> {
        let result = self.generation().await;
        let _ = self.member.send(ToMember::Halt);
        result
    }

    async fn generation(&mut self) -> Result<Outcome> {
        self.progress.phase(Phase::Restoring);
        if let Some(Stopped {
            epoch,
            why: StopReason::Drained,
        }) = self.log.fold().stopped()
        {
            return Ok(Outcome::Drained { epoch: epoch.get() });
        }
        self.claim().await?;
        let restore = self
            .log
            .restore(self.log.fold().head())
            .await
            .map_err(storage)?;
        for text in &restore.repaired {
            tracing::warn!(
                object = text,
                "checkpoint object was damaged, another copy is used"
            );
        }
        self.take_state(&restore.state);
        self.closure().await?;
        let replan = self.log.fold().planned().cloned();
        self.resolve_splits().await?;
        // The epoch of the start positions, which has just been committed, is among them: somebody must say that it is done.
        let backlog = self
            .log
            .fold()
            .to_publish()
            .filter_map(|(e, _)| Some((e, self.log.fold().commit(e)?.commit.packs.clone())))
            .collect();
        let start = Start {
            generation: self.generation,
            ancestors: Arc::new(ancestors(self.log.fold())),
            planned_mode: self.settings.trigger.planned(),
            backlog,
            born: self.born(),
            newest: self.log.fold().marker_bound(),
            first_epoch: self.log.fold().next_epoch(),
            now_ms: self.clock.now().get(),
            restore: Arc::new(restore),
        };
        tracing::debug!(backlog = start.backlog.len(), "starting the members");
        self.tell(ToMember::Start(Box::new(start)));
        while !matches!(self.hear().await?, FromMember::Started) {}
        tracing::info!(epoch = self.log.fold().head().get(), "running");
        self.progress.phase(Phase::Running);
        self.progress.restored(self.log.fold().head().get());
        if self.settings.trigger.planned() {
            self.run_planned(replan).await
        } else {
            self.run_continuous().await
        }
    }

    async fn claim(&mut self) -> Result<()> {
        fault::point("claim.before");
        let settings = &self.settings;
        let record = self
            .log
            .claim(Wish::Recover, |_, _| Claim {
                kind: ClaimKind::Recovery,
                restore_epoch: Epoch::ZERO,
                handover_from: None,
                plan_hash: settings.plan_hash.clone(),
                members: vec![MemberId::ZERO],
                assignment: assignment(settings),
                by: None,
            })
            .await
            .map_err(storage)?;
        fault::point("claim.after");
        self.generation = record.generation;
        self.done = self.log.fold().done_through();
        tracing::info!(
            generation = self.generation.get(),
            epoch = self.log.fold().head().get(),
            "claimed the job"
        );
        Ok(())
    }

    fn take_state(&mut self, state: &penstock_checkpoint::closure::EpochState) {
        for (i, source) in self.sources.iter().enumerate() {
            let name = SourceName::new(source.name.clone());
            let splits = state.offsets.get(&name).into_iter().flatten();
            let splits = splits
                .map(|(id, s)| (SplitId(id.as_str().into()), s.clone()))
                .collect();
            self.splits.insert(i, splits);
            self.seen
                .insert(i, state.seen_files.get(&name).cloned().unwrap_or_default());
            let uid = OperatorUid::new(format!("source:{}", source.name));
            let at = state
                .watermarks
                .get(&uid)
                .map_or(EventTime::MIN, |t| EventTime::from_micros(t.get()));
            self.floor.insert(i, at);
        }
    }

    /// Start positions are committed as an epoch of their own before a row flows; positions that are gone stop the job.
    async fn resolve_splits(&mut self) -> Result<()> {
        let first = self.log.fold().head() == self.log.fold().root();
        let found = self.discover(first).await?;
        for i in 0..self.sources.len() {
            self.check_starts(i).await?;
        }
        if found && first {
            self.commit(None, self.clock.now().get()).await?;
            fault::point("start.committed");
        }
        Ok(())
    }

    /// Adopts splits that are new; whether there were any.
    async fn discover(&mut self, first: bool) -> Result<bool> {
        let mut found = false;
        for (i, source) in self.sources.iter_mut().enumerate() {
            let splits = self.splits.entry(i).or_default();
            let mut known: BTreeMap<SplitId, Position> = splits
                .iter()
                .map(|(id, s)| (id.clone(), ranges::position(s)))
                .collect();
            let seen = self.seen.get(&i).into_iter().flatten();
            known.extend(seen.map(|file| (SplitId(file.as_str().into()), Position::END)));
            for new in patiently(&mut *source.enumerator, &known, first).await? {
                tracing::info!(source = source.name, split = %new.split.0, start = new.start.0, "adopted a split");
                let position = LogPosition::Offset(new.start.0);
                let state = SplitState {
                    position,
                    max_event_time: None,
                    idle: false,
                    done: false,
                };
                splits.insert(new.split, state);
                found = true;
            }
        }
        Ok(found)
    }

    async fn check_starts(&mut self, i: usize) -> Result<()> {
        let source = &mut self.sources[i];
        let splits = self.splits.entry(i).or_default();
        let ids: Vec<SplitId> = splits
            .iter()
            .filter(|(_, s)| !s.done)
            .map(|(id, _)| id.clone())
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let starts = source.enumerator.starts(&ids).await?;
        for id in ids {
            let at = ranges::position(&splits[&id]);
            let object = format!("source {}, {}", source.name, id.0);
            match starts.get(&id) {
                Some(start) if *start > at => {
                    let text = format!(
                        "DataLossRisk: the job is at {}, the oldest that is still there is {}: rows were deleted before they were read",
                        at.0, start.0
                    );
                    return Err(EngineError::fail("PR0207", object, text));
                }
                Some(_) => {}
                None => {
                    let text =
                        "DataLossRisk: it is not there any more, and it was not read to its end";
                    return Err(EngineError::fail("PR0207", object, text));
                }
            }
        }
        Ok(())
    }

    fn born(&self) -> BTreeMap<Shard, BornMarker> {
        let shards = self.log.fold().shards();
        let sinks = self.settings.sinks.iter().enumerate();
        sinks
            .filter_map(|(i, (name, _))| Some((i, shards.get(&SinkName::new(name.clone()))?)))
            .flat_map(|(i, of)| {
                of.iter().map(move |(s, b)| {
                    (
                        (i, s.get()),
                        BornMarker {
                            partition: b.partition,
                            nonce: b.nonce,
                        },
                    )
                })
            })
            .collect()
    }

    // ---- continuous --------------------------------------------------------------------------------------------------

    async fn run_continuous(&mut self) -> Result<Outcome> {
        for i in 0..self.sources.len() {
            self.assign(i, None);
        }
        let mut looked = Instant::now();
        let mut last = Instant::now();
        loop {
            self.wait_for_barrier(last).await?;
            let stop = *self.stop.borrow() || self.failing.is_some();
            let drained = self.sources_done && self.sources.iter().all(|s| s.enumerator.bounded());
            if drained && !stop && self.adopt().await? {
                // A split that appeared since is read before the input counts as ended.
                continue;
            }
            if drained {
                self.tell(ToMember::Drain);
            }
            let kind = if stop || drained {
                BarrierKind::Stop
            } else {
                BarrierKind::Checkpoint
            };
            last = Instant::now();
            let barrier = self.barrier(kind);
            self.tell(ToMember::Inject(barrier));
            let snapshot = self.snapshot(barrier.epoch).await?;
            self.commit_snapshot(snapshot, barrier, last).await?;
            if let Some(ended) = self.ended(stop, drained).await? {
                return Ok(ended);
            }
            let every = self
                .sources
                .iter()
                .map(|s| s.discover_every)
                .min()
                .unwrap_or(Duration::MAX);
            if looked.elapsed() >= every {
                looked = Instant::now();
                self.adopt().await?;
            }
            self.closure_and_garbage().await?;
        }
    }

    /// Waits for the interval, for an early barrier, for a stop; and until `Commit` may follow (rule 3).
    async fn wait_for_barrier(&mut self, last: Instant) -> Result<()> {
        let due = last + self.settings.interval;
        loop {
            let allowed = self.may_commit();
            let now = *self.stop.borrow()
                || self.failing.is_some()
                || self.wants_barrier
                || self.sources_done;
            if allowed && (now || Instant::now() >= due) {
                self.wants_barrier = false;
                return Ok(());
            }
            self.wait(if allowed { Some(due) } else { None }).await?;
        }
    }

    fn may_commit(&self) -> bool {
        may_commit(self.log.fold(), self.done, K) || planted(Bug::NoWait)
    }

    /// Splits that appeared since: committed with the next epoch, assigned now. Whether there were any.
    async fn adopt(&mut self) -> Result<bool> {
        let before: BTreeMap<usize, BTreeSet<SplitId>> = self
            .splits
            .iter()
            .map(|(i, s)| (*i, s.keys().cloned().collect()))
            .collect();
        let found = self.discover(false).await?;
        if found {
            for i in 0..self.sources.len() {
                self.assign(i, before.get(&i));
            }
        }
        Ok(found)
    }

    /// Assigns all splits of a source but those in `except`.
    fn assign(&mut self, source: usize, except: Option<&BTreeSet<SplitId>>) {
        let splits = self.splits.get(&source).into_iter().flatten();
        let splits: Vec<Assignment> = splits
            .filter(|(id, s)| !s.done && except.is_none_or(|e| !e.contains(*id)))
            .map(|(id, s)| assignment_of(id, s, None))
            .collect();
        if !splits.is_empty() || except.is_none() {
            self.assigned += 1;
            self.sources_done = false;
            self.tell(ToMember::Assign { source, splits });
        }
    }

    // ---- planned -----------------------------------------------------------------------------------------------------

    async fn run_planned(&mut self, mut replan: Option<Plan>) -> Result<Outcome> {
        let trigger = self.settings.trigger;
        let bounded = matches!(trigger, Trigger::AvailableNow { .. } | Trigger::Once { .. });
        let mut epochs = 0u64;
        let mut next = Instant::now();
        loop {
            if *self.stop.borrow() {
                return self.stop_with(StopReason::Suspended).await;
            }
            while !self.may_commit() {
                self.wait(None).await?;
            }
            let plan = match replan.take() {
                Some(plan) => Some(plan),
                None => self.next_plan(bounded, trigger, epochs).await?,
            };
            let Some(plan) = plan else {
                if bounded {
                    return self
                        .stop_with(if trigger.drains() {
                            StopReason::Drained
                        } else {
                            StopReason::Completed
                        })
                        .await;
                }
                self.wait(Some(Instant::now() + Duration::from_millis(100)))
                    .await?;
                continue;
            };
            let began = Instant::now();
            self.run_plan(plan, began).await?;
            epochs += 1;
            if let Some((source, text)) = self.failing.take() {
                return self.fail_above(&source, &text).await;
            }
            self.closure_and_garbage().await?;
            if let Trigger::ProcessingTime { interval } = trigger {
                next = (next + interval).max(Instant::now());
                while Instant::now() < next && !*self.stop.borrow() {
                    self.wait(Some(next)).await?;
                }
            }
        }
    }

    /// Decides the next epoch's input and appends it to the log, before a row of it is read. `None`: nothing to do.
    async fn next_plan(
        &mut self,
        bounded: bool,
        trigger: Trigger,
        epochs: u64,
    ) -> Result<Option<Plan>> {
        // A run that drains is the last: what came since an interrupted one fixed its end would never be read.
        let again = trigger.drains() && !self.end_fixed;
        let fixed = self.log.fold().end().filter(|_| !again).cloned();
        if fixed.is_none() || !bounded {
            self.discover(false).await?;
        }
        let mut ends: BTreeMap<usize, BTreeMap<SplitId, Position>> = BTreeMap::new();
        for (i, source) in self.sources.iter_mut().enumerate() {
            let name = SourceName::new(source.name.clone());
            let of = match fixed
                .as_ref()
                .filter(|_| bounded)
                .and_then(|f| f.get(&name))
            {
                Some(of) => of
                    .iter()
                    .map(|(id, p)| (SplitId(id.as_str().into()), log_position(p)))
                    .collect(),
                None if fixed.is_some() && bounded => BTreeMap::new(),
                None => {
                    let ids: Vec<SplitId> = self
                        .splits
                        .get(&i)
                        .into_iter()
                        .flatten()
                        .map(|(id, _)| id.clone())
                        .collect();
                    source.enumerator.ends(&ids).await?
                }
            };
            ends.insert(i, of);
        }
        let once = matches!(trigger, Trigger::Once { .. });
        let mut plan_ranges: BTreeMap<usize, BTreeMap<SplitId, Span>> = BTreeMap::new();
        let mut watermarks: BTreeMap<usize, EventTime> = BTreeMap::new();
        let mut advanced = false;
        for (i, source) in self.sources.iter().enumerate() {
            let none = BTreeMap::new();
            let splits = self.splits.get(&i).unwrap_or(&none);
            let rows = source.max_rows_per_epoch.unwrap_or(self.planned_rows);
            let bounds = if once {
                Bounds {
                    rows: u64::MAX,
                    files: usize::MAX,
                }
            } else {
                Bounds {
                    rows,
                    files: source.max_files_per_epoch,
                }
            };
            if !(once && epochs > 0) {
                plan_ranges.insert(i, ranges::next_ranges(splits, &ends[&i], bounds));
            }
            let floor = self.floor.get(&i).copied().unwrap_or(EventTime::MIN);
            if let Some(ooo) = source.out_of_orderness {
                let t = ranges::watermark(splits, &ends[&i], ooo).map_or(floor, |t| t.max(floor));
                advanced |= t > floor;
                watermarks.insert(i, t);
            }
        }
        let empty = plan_ranges.values().all(BTreeMap::is_empty);
        if empty {
            let drained = self.floor.values().all(|t| *t == EventTime::MAX);
            if trigger.drains() && !drained {
                watermarks = (0..self.sources.len())
                    .map(|i| (i, EventTime::MAX))
                    .collect();
            } else if !advanced || drained {
                return Ok(None);
            }
        }
        let plan = self.plan_record(&plan_ranges, &watermarks, fixed.is_none() && bounded, &ends);
        fault::point("plan.before");
        let record = EpochRecord {
            commit: None,
            plan: Some(plan.clone()),
            done_through: self.done_through(),
        };
        self.log
            .append(self.generation, Kind::Epoch(record))
            .await
            .map_err(storage)?;
        self.end_fixed |= plan.end.is_some();
        fault::point("plan.after");
        Ok(Some(plan))
    }

    fn plan_record(
        &self,
        ranges: &BTreeMap<usize, BTreeMap<SplitId, Span>>,
        watermarks: &BTreeMap<usize, EventTime>,
        fix_end: bool,
        ends: &BTreeMap<usize, BTreeMap<SplitId, Position>>,
    ) -> Plan {
        let name = |i: &usize| SourceName::new(self.sources[*i].name.clone());
        let split = |id: &SplitId| LogSplit::new(id.0.to_string());
        let offset = |p: Position| LogPosition::Offset(p.0);
        let of = |spans: &BTreeMap<SplitId, Span>| {
            spans
                .iter()
                .map(|(id, s)| {
                    (
                        split(id),
                        Range {
                            from: offset(s.from),
                            to: offset(s.to),
                        },
                    )
                })
                .collect()
        };
        let end = fix_end.then(|| {
            ends.iter()
                .map(|(i, e)| {
                    (
                        name(i),
                        e.iter().map(|(id, p)| (split(id), offset(*p))).collect(),
                    )
                })
                .collect()
        });
        Plan {
            epoch: self.log.fold().next_epoch(),
            ranges: ranges
                .iter()
                .map(|(i, spans)| (name(i), of(spans)))
                .collect(),
            end,
            watermark: watermarks
                .iter()
                .map(|(i, t)| (name(i), Micros::new(t.micros())))
                .collect(),
            now: Micros::from_millis(self.clock.now().get()),
        }
    }

    /// Runs what the log says, whether this generation planned it or an earlier one.
    async fn run_plan(&mut self, plan: Plan, began: Instant) -> Result<()> {
        let mut assignments: BTreeMap<usize, Vec<Assignment>> = BTreeMap::new();
        let mut watermarks = BTreeMap::new();
        let mut rows = 0u64;
        for (i, source) in self.sources.iter().enumerate() {
            let name = SourceName::new(source.name.clone());
            let of = plan.ranges.get(&name).into_iter().flatten();
            let splits = self.splits.entry(i).or_default();
            let mut share = Vec::new();
            for (id, range) in of {
                let id = SplitId(id.as_str().into());
                let from = log_position(&range.from);
                let to = log_position(&range.to);
                if to != Position::END {
                    rows += u64::try_from(to.0 - from.0).unwrap_or(0);
                }
                let state = splits.entry(id.clone()).or_insert_with(|| SplitState {
                    position: range.from.clone(),
                    max_event_time: None,
                    idle: false,
                    done: false,
                });
                share.push(assignment_of(&id, state, Some(to)));
            }
            assignments.insert(i, share);
            if let Some(t) = plan.watermark.get(&name) {
                watermarks.insert(i, EventTime::from_micros(t.get()));
            }
        }
        let now_ms = plan.now.get().div_euclid(1000);
        let barrier = Barrier {
            epoch: plan.epoch.get(),
            generation: self.generation.get(),
            kind: BarrierKind::Checkpoint,
            now_ms,
        };
        self.tell(ToMember::Plan(assignments, watermarks.clone(), barrier));
        let snapshot = self.snapshot(barrier.epoch).await?;
        for (i, t) in watermarks {
            let floor = self.floor.entry(i).or_insert(EventTime::MIN);
            *floor = (*floor).max(t);
        }
        self.commit_snapshot(snapshot, barrier, began).await?;
        // The next epoch should take about the interval; what was measured is in no decision but its size, which is logged.
        let took = began.elapsed().as_secs_f64().max(0.001);
        if rows > 0 {
            let fit = (rows as f64 * self.settings.interval.as_secs_f64() / took) as u64;
            self.planned_rows = fit
                .clamp(self.planned_rows / 2, self.planned_rows.saturating_mul(4))
                .clamp(10_000, 5_000_000);
        }
        Ok(())
    }

    // ---- epochs ------------------------------------------------------------------------------------------------------

    fn barrier(&self, kind: BarrierKind) -> Barrier {
        let epoch = self.log.fold().next_epoch().get();
        Barrier {
            epoch,
            generation: self.generation.get(),
            kind,
            now_ms: self.clock.now().get(),
        }
    }

    async fn snapshot(&mut self, epoch: u64) -> Result<Box<Snapshot>> {
        loop {
            match self.hear().await? {
                FromMember::Snapshot(s) if s.barrier.epoch == epoch => return Ok(s),
                FromMember::Snapshot(s) => {
                    let text = format!(
                        "a member answered for epoch {}, epoch {epoch} is in the making",
                        s.barrier.epoch
                    );
                    return Err(EngineError::fail("PR0304", "coordinator", text));
                }
                _ => {}
            }
        }
    }

    async fn commit_snapshot(
        &mut self,
        snapshot: Box<Snapshot>,
        barrier: Barrier,
        began: Instant,
    ) -> Result<()> {
        self.bear_shards(&snapshot).await?;
        for (i, splits) in &snapshot.splits {
            let (Some(mine), forget) = (self.splits.get_mut(i), self.sources[*i].forget_finished)
            else {
                continue;
            };
            for (id, p) in splits {
                let state = SplitState {
                    position: LogPosition::Offset(p.position.0),
                    max_event_time: p.greatest.map(|t| Micros::new(t.micros())),
                    idle: p.idle,
                    done: p.done && (forget || !self.settings.trigger.planned()),
                };
                mine.insert(id.clone(), state);
            }
        }
        let mut watermarks: BTreeMap<OperatorUid, Micros> = snapshot
            .watermarks
            .iter()
            .map(|(uid, t)| (OperatorUid::new(uid.clone()), Micros::new(t.micros())))
            .collect();
        for (i, t) in &self.floor {
            let uid = OperatorUid::new(format!("source:{}", self.sources[*i].name));
            watermarks
                .entry(uid)
                .and_modify(|w| *w = (*w).max(Micros::new(t.micros())))
                .or_insert(Micros::new(t.micros()));
        }
        self.commit(Some((&snapshot, watermarks)), barrier.now_ms)
            .await?;
        let publish = self.log.fold().is_publishable(Epoch::new(barrier.epoch));
        self.tell(ToMember::Committed {
            epoch: Epoch::new(barrier.epoch),
            publish,
            now_ms: barrier.now_ms,
        });
        self.progress
            .committed(barrier, &snapshot, began.elapsed(), self.clock.now().get());
        self.show_positions().await;
        self.measure_lag().await;
        Ok(())
    }

    /// New shards get their initial marker, and the log says so, before their first epoch commits.
    async fn bear_shards(&mut self, snapshot: &Snapshot) -> Result<()> {
        let Some(pack) = &snapshot.pack else {
            return Ok(());
        };
        for (sink, shards) in pack.outputs.clone() {
            let index = self
                .settings
                .sinks
                .iter()
                .position(|(name, _)| *name == sink.as_str());
            let Some(index) = index else { continue };
            for shard in shards.keys() {
                if self.log.fold().shard(&sink, *shard).is_some() {
                    continue;
                }
                let mut epoch = self.log.fold().newest();
                if planted(Bug::BornAhead) {
                    epoch = self.log.fold().next_epoch();
                }
                let partition = self.partition(index, *shard);
                let nonce = self.log.nonce();
                if planted(Bug::BornFirst) {
                    let born = SinkBorn {
                        sink: sink.clone(),
                        shard: *shard,
                        partition,
                        epoch,
                        nonce,
                    };
                    let record = Kind::SinkBorn(born);
                    let appended = self.log.append(self.generation, record).await;
                    appended.map_err(storage)?;
                    self.bear((index, shard.get()), partition, epoch, nonce)
                        .await?;
                    continue;
                }
                let nonce = self
                    .bear((index, shard.get()), partition, epoch, nonce)
                    .await?;
                let born = SinkBorn {
                    sink: sink.clone(),
                    shard: *shard,
                    partition,
                    epoch,
                    nonce,
                };
                self.log
                    .append(self.generation, Kind::SinkBorn(born))
                    .await
                    .map_err(storage)?;
                fault::point("born.logged");
            }
        }
        Ok(())
    }

    /// The partition of the marker topic for a shard. Each sink has a range of its own: where its first shard was logged, else
    /// its place in the order of the manifest, else, where that is taken, after every range that the log knows. Never reused.
    fn partition(&self, sink: usize, shard: ShardId) -> i32 {
        let own = i32::from(shard.get());
        let ranges = marker_ranges(self.log.fold());
        let (name, width) = &self.settings.sinks[sink];
        if let Some((_, base, _)) = ranges.iter().find(|(n, ..)| n == name) {
            return base + own;
        }
        let place: i32 = self.settings.sinks[..sink]
            .iter()
            .map(|(_, w)| i32::from(*w))
            .sum();
        let end = place + i32::from(*width);
        let free = ranges
            .iter()
            .all(|(_, base, last)| end <= *base || *last < place);
        let after = ranges
            .iter()
            .map(|(_, _, last)| last + 1)
            .max()
            .unwrap_or(0);
        let whole: i32 = self.settings.sinks.iter().map(|(_, w)| i32::from(*w)).sum();
        own + if free {
            place
        } else {
            after.max(whole) + place
        }
    }

    /// Has the shard's marker written, or found; answers the nonce that it carries.
    async fn bear(
        &mut self,
        shard: Shard,
        partition: i32,
        epoch: Epoch,
        nonce: Nonce,
    ) -> Result<Nonce> {
        self.tell(ToMember::Bear {
            shard,
            partition,
            epoch,
            nonce,
        });
        loop {
            if let FromMember::Born { shard: s, nonce } = self.hear().await?
                && s == shard
            {
                return Ok(nonce);
            }
        }
    }

    async fn commit(
        &mut self,
        snapshot: Option<(&Snapshot, BTreeMap<OperatorUid, Micros>)>,
        now_ms: i64,
    ) -> Result<()> {
        let mut commit = Commit {
            epoch: self.log.fold().next_epoch(),
            parent: self.log.fold().head(),
            now: Micros::from_millis(now_ms),
            ..Commit::default()
        };
        for (i, source) in self.sources.iter().enumerate() {
            let name = SourceName::new(source.name.clone());
            let Some(splits) = self.splits.get_mut(&i) else {
                continue;
            };
            if source.forget_finished {
                let finished = ranges::forgettable(splits);
                for id in finished {
                    splits.remove(&id);
                    self.seen.entry(i).or_default().insert(id.0.to_string());
                    commit
                        .forgotten
                        .entry(name.clone())
                        .or_default()
                        .insert(LogSplit::new(id.0.to_string()));
                    commit
                        .seen_files
                        .entry(name.clone())
                        .or_default()
                        .insert(id.0.to_string());
                }
            }
            let states = splits
                .iter()
                .map(|(id, s)| (LogSplit::new(id.0.to_string()), s.clone()))
                .collect();
            commit.offsets.insert(name, states);
        }
        if let Some((snapshot, watermarks)) = snapshot {
            commit.packs = snapshot.pack.clone().into_iter().collect();
            commit.watermarks = watermarks;
            commit
                .counts
                .insert("rowsOut".to_owned(), snapshot.rows_out);
            commit.counts.insert("bytes".to_owned(), snapshot.bytes);
        }
        commit.bases = self.bases.take();
        fault::point("commit.before");
        let record = EpochRecord {
            commit: Some(commit),
            plan: None,
            done_through: self.done_through(),
        };
        self.log
            .append(self.generation, Kind::Epoch(record))
            .await
            .map_err(storage)?;
        fault::point("commit.after");
        Ok(())
    }

    fn done_through(&self) -> Epoch {
        self.done.max(self.log.fold().done_through())
    }

    /// Records between the committed positions and the ends, at most once a second; a source that does not answer leaves
    /// the figure as it is.
    async fn measure_lag(&mut self) {
        if self
            .lag_at
            .is_some_and(|at| at.elapsed() < Duration::from_secs(1))
        {
            return;
        }
        self.lag_at = Some(Instant::now());
        let mut lag = 0u64;
        for (i, source) in self.sources.iter_mut().enumerate() {
            let Some(splits) = self.splits.get(&i) else {
                continue;
            };
            let open: Vec<SplitId> = splits
                .iter()
                .filter(|(_, s)| !s.done)
                .map(|(id, _)| id.clone())
                .collect();
            let ends =
                match tokio::time::timeout(Duration::from_secs(2), source.enumerator.ends(&open))
                    .await
                {
                    Ok(Ok(ends)) => ends,
                    Ok(Err(_)) | Err(_) => return,
                };
            let behind = open.iter().filter_map(|id| {
                let end = ends.get(id).filter(|end| **end != Position::END)?;
                u64::try_from(end.0 - ranges::position(&splits[id]).0).ok()
            });
            lag += behind.sum::<u64>();
        }
        self.progress.lag(lag);
    }

    async fn show_positions(&mut self) {
        for (i, source) in self.sources.iter_mut().enumerate() {
            let positions = self.splits.get(&i).into_iter().flatten();
            let positions = positions
                .map(|(id, s)| (id.clone(), ranges::position(s)))
                .collect();
            source.enumerator.show_positions(&positions).await;
        }
    }

    async fn closure_and_garbage(&mut self) -> Result<()> {
        if let Some(state) = self.log.state() {
            for wanted in self.bases.begin(state) {
                self.tell(ToMember::MakeBase {
                    group: wanted.group,
                    reuse: wanted.reuse,
                });
            }
        }
        if !self.log.closure_due() {
            return Ok(());
        }
        self.closure().await?;
        let retention = self.settings.retention;
        self.collector
            .collect(&mut self.log, self.generation, retention)
            .await
            .map_err(storage)?;
        Ok(())
    }

    async fn closure(&mut self) -> Result<()> {
        fault::point("closure.before");
        self.log
            .write_closure(self.generation)
            .await
            .map_err(storage)?;
        fault::point("closure.after");
        Ok(())
    }

    // ---- ends --------------------------------------------------------------------------------------------------------

    async fn ended(&mut self, stop: bool, drained: bool) -> Result<Option<Outcome>> {
        if let Some((source, text)) = self.failing.take() {
            return self.fail_above(&source, &text).await.map(Some);
        }
        if drained {
            return self.stop_with(StopReason::Drained).await.map(Some);
        }
        if stop {
            return self.stop_with(StopReason::Suspended).await.map(Some);
        }
        Ok(None)
    }

    /// The wrong rows are committed; then the job stops.
    async fn fail_above(&mut self, source: &str, text: &str) -> Result<Outcome> {
        self.stop_with(StopReason::Failed {
            code: "PR0206".to_owned(),
        })
        .await?;
        Err(EngineError::fail(
            "PR0206",
            format!("source {source}"),
            text,
        ))
    }

    /// Waits until everything that may be published is out, then says that the job has stopped.
    async fn stop_with(&mut self, why: StopReason) -> Result<Outcome> {
        while self
            .log
            .fold()
            .last_publishable()
            .is_some_and(|last| last > self.done_through())
        {
            self.wait(None).await?;
        }
        fault::point("stop.before");
        let head = self.log.fold().head();
        let epoch = head.get();
        if self.log.fold().done_through() < self.done {
            let record = EpochRecord {
                commit: None,
                plan: None,
                done_through: self.done_through(),
            };
            self.log
                .append(self.generation, Kind::Epoch(record))
                .await
                .map_err(storage)?;
        }
        self.log
            .append(
                self.generation,
                Kind::Stopped(Stopped {
                    epoch: head,
                    why: why.clone(),
                }),
            )
            .await
            .map_err(storage)?;
        self.closure().await?;
        fault::point("stop.after");
        Ok(match why {
            StopReason::Suspended | StopReason::Failed { .. } => Outcome::Stopped { epoch },
            StopReason::Completed => Outcome::Completed { epoch },
            StopReason::Drained => Outcome::Drained { epoch },
        })
    }

    // ---- the member --------------------------------------------------------------------------------------------------

    fn tell(&self, message: ToMember) {
        // A member that is gone has said why, and `hear` answers it.
        let _ = self.member.send(message);
    }

    /// The next message that the loop has to act on; the others are taken in here.
    async fn hear(&mut self) -> Result<FromMember> {
        let message = self
            .inbox
            .recv()
            .await
            .ok_or_else(|| EngineError::fail("PR0304", "coordinator", "the member is gone"))?;
        self.take_in(message)
    }

    fn take_in(&mut self, message: FromMember) -> Result<FromMember> {
        match &message {
            FromMember::Done { through } => {
                self.done = self.done.max(*through);
                self.progress.published(self.done.get());
            }
            FromMember::WantsBarrier => self.wants_barrier = true,
            // One that was on its way when a split was assigned says nothing of that split.
            FromMember::SourcesDone { assigned } => {
                self.sources_done = *assigned == self.assigned || planted(Bug::StaleDone);
            }
            FromMember::Failing { source, text } => {
                self.failing = Some((source.clone(), text.clone()))
            }
            FromMember::Held { sink, text } => {
                self.progress.held(&self.settings.sinks[*sink].0, text)
            }
            FromMember::Base { group, base: None } => {
                self.bases.failed(*group, self.log.fold().head());
            }
            FromMember::Base {
                base: Some(base), ..
            } => self.bases.made((**base).clone()),
            FromMember::Failed(_) => {
                if let FromMember::Failed(error) = message {
                    return Err(error);
                }
            }
            FromMember::Started | FromMember::Snapshot(_) | FromMember::Born { .. } => {}
        }
        Ok(message)
    }

    /// Takes in messages until one came, the time is there, or a stop is asked for.
    async fn wait(&mut self, until: Option<Instant>) -> Result<()> {
        let stopping = *self.stop.borrow();
        let message = tokio::select! {
            biased;
            message = self.inbox.recv() => Some(message),
            changed = self.stop.changed(), if !stopping => {
                if changed.is_err() {
                    // Nobody can ask any more: only the clock and the member are left to wait for.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                None
            }
            () = async { match until { Some(t) => tokio::time::sleep_until(t).await, None => std::future::pending().await } } => None,
        };
        match message {
            Some(Some(message)) => self.take_in(message).map(|_| ()),
            Some(None) => Err(EngineError::fail(
                "PR0304",
                "coordinator",
                "the member is gone",
            )),
            None => Ok(()),
        }
    }
}

/// Discovery that waits while the source does not answer.
async fn patiently(
    enumerator: &mut dyn SourceEnumerator,
    known: &BTreeMap<SplitId, Position>,
    first: bool,
) -> Result<Vec<crate::sources::Discovered>> {
    let mut pause = Duration::from_millis(100);
    loop {
        match enumerator.discover(known, first).await {
            Err(e) if e.kind == ErrorKind::Retry => {
                tracing::warn!(error = %e, "the source does not answer, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            other => return other,
        }
    }
}

fn assignment_of(id: &SplitId, state: &SplitState, until: Option<Position>) -> Assignment {
    Assignment {
        range: SplitRange {
            split: id.clone(),
            from: ranges::position(state),
            until,
        },
        greatest: state
            .max_event_time
            .map(|t| EventTime::from_micros(t.get())),
        idle: state.idle,
    }
}

fn log_position(p: &LogPosition) -> Position {
    match p {
        LogPosition::Offset(n) => Position(*n),
        LogPosition::Token(_) => Position(0),
    }
}

fn assignment(settings: &Settings) -> LogAssignment {
    LogAssignment {
        key_groups: vec![MemberId::ZERO; usize::from(settings.key_groups)],
        splits: BTreeMap::new(),
        shards: settings
            .sinks
            .iter()
            .map(|(name, shards)| {
                (
                    SinkName::new(name.clone()),
                    vec![MemberId::ZERO; usize::from(*shards)],
                )
            })
            .collect(),
    }
}

/// The epochs that `head` stands on, itself included, as ranges.
fn ancestors(fold: &penstock_checkpoint::Fold) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for epoch in fold.ancestors(fold.head()).map(Epoch::get) {
        match ranges.last_mut() {
            Some(last) if last.0 == epoch + 1 => last.0 = epoch,
            _ => ranges.push((epoch, epoch)),
        }
    }
    ranges
}

/// Per sink that has shards in the log: its name, the partition of its shard 0, and the last one that it may use.
fn marker_ranges(fold: &penstock_checkpoint::Fold) -> Vec<(String, i32, i32)> {
    let of = |(name, shards): (
        &SinkName,
        &BTreeMap<ShardId, penstock_checkpoint::fold::BornShard>,
    )| {
        let (shard, born) = shards.iter().next()?;
        let base = born.partition - i32::from(shard.get());
        let last = shards.values().map(|b| b.partition).max().unwrap_or(base);
        Some((name.as_str().to_owned(), base, last))
    };
    fold.shards().iter().filter_map(of).collect()
}

/// Partitions that the marker topic needs for sinks of these many shards in all.
pub fn marker_partitions(fold: &penstock_checkpoint::Fold, shards: i32) -> i32 {
    let after = marker_ranges(fold)
        .iter()
        .map(|(_, _, last)| last + 1)
        .max()
        .unwrap_or(0);
    if after > shards {
        after.max(shards) + shards
    } else {
        shards
    }
}
