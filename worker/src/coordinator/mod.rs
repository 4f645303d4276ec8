//! The coordinator of a job: claims the log, restores, starts the members, and makes epochs. One loop per generation;
//! every decision on the log is `penstock-checkpoint`'s, every decision on ranges is `ranges`'.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use penstock_checkpoint::collect::Learnt;
use penstock_checkpoint::decide::Wish;
use penstock_checkpoint::gc::Retention;
use penstock_checkpoint::ids::{Epoch, Generation, OperatorUid, SinkName, SourceName};
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::record::{
    Assignment as LogAssignment, Claim, ClaimKind, Position as LogPosition, SplitState, StopReason,
    Stopped,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::{EngineError, ErrorKind, Result};
use crate::fault;
use crate::member::protocol::{FromMember, Start, ToMember};
use crate::member::seat::Seat;
use crate::member::storage;
use crate::message::EventTime;
use crate::network::Peer;
use crate::planted::{Bug, planted};
use crate::process;
use crate::sources::{Position, SourceEnumerator, SplitId, SplitRange};
use crate::task::Assignment;

pub mod bases;
mod continuous;
mod epochs;
pub mod graph;
mod lag;
pub mod load;
mod loss;
mod markers;
mod pins;
mod planned;
pub mod progress;
mod ranges;
mod stop;
mod trial;

use bases::Bases;
use graph::Layout;
use lag::LagMeter;
pub use loss::AcceptLoss;
pub use markers::marker_partitions;
pub use pins::Asked;
use progress::{Phase, Progress};
use stop::Waited;
pub use trial::{Adopts, GoBack, Release};

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
    /// Name of the job, for those who watch it.
    pub job: String,
    pub trigger: Trigger,
    pub interval: Duration,
    pub retention: Retention,
    pub plan_hash: String,
    /// Who takes part, by their places.
    pub members: Vec<Peer>,
    /// This process has just ended the generation before: splits are read on from where that one left them, unlooked at.
    pub goes_on: bool,
    /// Slots of each.
    pub slots: usize,
    /// By index.
    pub sinks: Vec<(String, u16)>,
    pub key_groups: u16,
    /// A chain of changes that spans as many epochs gets a base.
    pub base_epochs: u64,
    /// Bytes that an epoch should write at most: planned epochs are sized by it, and no commit comes while twice as much waits
    /// for publication.
    pub epoch_bytes: u64,
    /// Sources whose lost input a person gives up.
    pub accept_loss: Vec<AcceptLoss>,
    /// In a cluster: which version this is.
    pub release: Option<Release>,
    /// The log is that of an earlier job of this name.
    pub adopts: Option<Adopts>,
    /// A person goes back to an earlier epoch.
    pub go_back: Option<GoBack>,
    /// What is asked for while the job runs.
    pub asked: watch::Receiver<Asked>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// Stopped at a barrier; a later run goes on from here. `pending`: not everything that is committed is visible in the
    /// sinks; up to this epoch it is, and the next run sees to the rest.
    Stopped { epoch: u64, pending: Option<u64> },
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
    /// What closures name that this process has not read: for collection, which waits for it.
    learning: Option<oneshot::Receiver<Learnt>>,
    bases: Bases,
    planned_rows: u64,
    /// Epochs that were given for publication, with their bytes.
    unpublished: VecDeque<(Epoch, u64)>,
    /// This generation has fixed where a bounded run ends.
    end_fixed: bool,
    lag_at: Option<Instant>,
    /// When the lag is measured though no commit came.
    lag_due: Instant,
    lags: LagMeter,
    /// Commits that are not published yet.
    awaited: VecDeque<Awaited>,
    /// Time of the newest epoch.
    newest_now: i64,
    /// Until when a stop that was asked for waits for sinks.
    stop_by: Option<Instant>,
    /// It waited in vain, and gave up the epoch in the making.
    gave_up: bool,
    /// Of the trial that runs: since when in this process, and what it has staged.
    trial_began: Option<Instant>,
    staged_bytes: u64,
    /// The next commit says that operators began empty.
    forgets_state: bool,
}

/// A commit that is not published yet.
struct Awaited {
    epoch: Epoch,
    began: Instant,
    committed: Instant,
    /// Greatest event time read so far, in milliseconds.
    newest_row: Option<i64>,
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
        let lag_due = Instant::now() + lag::look_every(&settings);
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
            learning: None,
            bases,
            planned_rows: FIRST_PLANNED_ROWS,
            unpublished: VecDeque::new(),
            end_fixed: false,
            lag_at: None,
            lag_due,
            lags: LagMeter::default(),
            awaited: VecDeque::new(),
            newest_now: i64::MIN,
            stop_by: None,
            gave_up: false,
            trial_began: None,
            staged_bytes: 0,
            forgets_state: false,
        }
    }

    /// One generation: claim, restore, run until it ends. An error of kind `Fenced` or `Retry` may be followed by another
    /// generation; `Fail` and `Invalid` end the job.
    pub async fn run(&mut self) -> Result<Outcome> {
        let result = self.generation().await;
        let _ = self.member.send(ToMember::Halt);
        result
    }

    /// When the generation has ended.
    pub fn into_log(self) -> JobLog {
        self.log
    }

    async fn generation(&mut self) -> Result<Outcome> {
        self.progress.generation();
        if let Some(Stopped {
            epoch,
            why: StopReason::Drained,
        }) = self.log.fold().stopped()
        {
            return self.finished(epoch.get()).await;
        }
        if let Err(error) = self.claim().await {
            // Another run drained it between our look at the log and our claim.
            return match self.log.fold().stopped() {
                Some(Stopped {
                    epoch,
                    why: StopReason::Drained,
                }) => self.finished(epoch.get()).await,
                _ => Err(error),
            };
        }
        let mut restore = self
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
        if self.forget_state().await? {
            let head = self.log.fold().head();
            restore = self.log.restore(head).await.map_err(storage)?;
        }
        let replan = self.log.fold().planned().cloned();
        let known = self.settings.goes_on && self.log.fold().losses().is_empty();
        if !known {
            self.resolve_splits().await?;
        }
        // The epoch of the start positions, which has just been committed, is among them: somebody must say that it is done.
        let backlog = self.backlog();
        let start = Start {
            // The team says which.
            seat: Seat::alone(1),
            members: self.settings.members.clone(),
            generation: self.generation,
            ancestors: Arc::new(ancestors(self.log.fold())),
            planned_mode: self.settings.trigger.planned(),
            backlog,
            born: self.born(),
            newest: self.log.fold().marker_bound(),
            first_epoch: self.log.fold().next_epoch(),
            now_ms: self.now_ms(),
            restore: Arc::new(restore),
        };
        tracing::debug!(backlog = start.backlog.len(), "starting the members");
        self.tell(ToMember::Start(Box::new(start)));
        self.closure().await?;
        let started =
            |_: &Self, message: Option<&FromMember>| matches!(message, Some(FromMember::Started));
        if self.wait_for_sink(started).await? == Waited::GaveUp {
            return self.stop_with(StopReason::Suspended).await;
        }
        tracing::info!(epoch = self.log.fold().head().get(), "running");
        let (learnt, learning) = oneshot::channel();
        let reads = self.log.learning();
        process::spawn(async move {
            // Nobody asks when the generation is over.
            let _ = learnt.send(reads.await);
        });
        self.learning = Some(learning);
        self.progress.phase(Phase::Running);
        self.progress
            .began(layout(&self.settings), self.clock.now().get());
        self.progress.restored(self.log.fold().head().get());
        let ended = if self.settings.trigger.planned() {
            self.run_planned(replan).await
        } else {
            self.run_continuous().await
        };
        match ended {
            Err(error) if self.gave_up => {
                tracing::warn!(%error, "stopping at the newest commit");
                self.stop_with(StopReason::Suspended).await
            }
            ended => ended,
        }
    }

    /// The job is final. The run that drained it may have died before its sinks let go of everything.
    async fn finished(&mut self, epoch: u64) -> Result<Outcome> {
        Ok(match self.close_sinks().await? {
            Waited::Came => Outcome::Drained { epoch },
            Waited::GaveUp => Outcome::Stopped {
                epoch,
                pending: Some(epoch),
            },
        })
    }

    async fn claim(&mut self) -> Result<()> {
        fault::point("claim.before");
        let settings = &self.settings;
        let wish = trial::wish(self.log.fold(), settings)?;
        if let Wish::GoBack { to } = wish {
            self.can_be_had_back(to).await?;
        }
        let settings = &self.settings;
        let record = self
            .log
            .claim(wish, |fold, _| Claim {
                kind: ClaimKind::Recovery,
                restore_epoch: Epoch::ZERO,
                handover_from: None,
                plan_hash: settings.plan_hash.clone(),
                members: settings.members.iter().map(|p| p.id).collect(),
                assignment: assignment(settings),
                // An adopted log says so in each of its claims: it is known by the last one.
                by: settings
                    .adopts
                    .as_ref()
                    .map(|a| a.by.clone())
                    .or_else(|| fold.claim()?.by.clone()),
                version: settings.release.as_ref().map(|r| r.version.clone()),
                request: settings.go_back.as_ref().map(|g| g.request.clone()),
            })
            .await
            .map_err(storage)?;
        fault::point("claim.after");
        self.generation = record.generation;
        self.done = self.log.fold().done_through();
        self.progress.published(self.done.get());
        self.show_release();
        self.show_pins();
        tracing::info!(
            generation = self.generation.get(),
            epoch = self.log.fold().head().get(),
            "claimed the job"
        );
        Ok(())
    }

    fn take_state(&mut self, state: &penstock_checkpoint::closure::EpochState) {
        self.newest_now = state.now.get().div_euclid(1000);
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
            self.commit(None, self.now_ms()).await?;
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
            for new in patiently(&mut *source.enumerator, &known, first, &self.stop).await? {
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

    /// The time of an epoch that begins now: the clock's, but never before the newest epoch's, or what epochs decide by it
    /// would depend on who looks when.
    fn now_ms(&self) -> i64 {
        self.clock.now().get().max(self.newest_now)
    }

    // ---- the member --------------------------------------------------------------------------------------------------

    fn tell(&self, message: ToMember) {
        // A member that is gone has said why, and `hear` answers it.
        let _ = self.member.send(message);
    }

    /// The next message that the loop has to act on; the others are taken in here.
    async fn hear(&mut self) -> Result<FromMember> {
        let message = loop {
            tokio::select! {
                biased;
                message = self.inbox.recv() => break message,
                () = tokio::time::sleep_until(self.lag_due) => self.measure_lag().await,
            }
        };
        let gone = || EngineError::fail("PR0304", "coordinator", "the member is gone");
        self.take_in(message.ok_or_else(gone)?)
    }

    fn take_in(&mut self, message: FromMember) -> Result<FromMember> {
        match &message {
            FromMember::Done { through } => {
                self.done = self.done.max(*through);
                self.unpublished.retain(|(epoch, _)| *epoch > *through);
                self.progress.published(self.done.get());
                self.time_publication();
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
            FromMember::Started
            | FromMember::Snapshot(_)
            | FromMember::Born { .. }
            | FromMember::Late { .. }
            | FromMember::Closed => {}
        }
        Ok(message)
    }

    /// Takes in messages until one came, the time is there, or a stop is asked for.
    async fn wait(&mut self, until: Option<Instant>) -> Result<()> {
        self.next_message(until).await.map(|_| ())
    }

    /// As `wait`; answers the message.
    async fn next_message(&mut self, until: Option<Instant>) -> Result<Option<FromMember>> {
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
            () = tokio::time::sleep_until(self.lag_due) => {
                self.measure_lag().await;
                None
            }
            () = pins::changed(&mut self.settings.asked) => {
                self.wants_barrier |= self.owes_pins();
                None
            }
            () = async { match until { Some(t) => tokio::time::sleep_until(t).await, None => std::future::pending().await } } => None,
        };
        match message {
            Some(Some(message)) => self.take_in(message).map(Some),
            Some(None) => Err(EngineError::fail(
                "PR0304",
                "coordinator",
                "the member is gone",
            )),
            None => Ok(None),
        }
    }
}

/// Discovery that waits while the source does not answer.
async fn patiently(
    enumerator: &mut dyn SourceEnumerator,
    known: &BTreeMap<SplitId, Position>,
    first: bool,
    stop: &watch::Receiver<bool>,
) -> Result<Vec<crate::sources::Discovered>> {
    let mut pause = Duration::from_millis(100);
    loop {
        match enumerator.discover(known, first).await {
            Err(e) if e.kind == ErrorKind::Retry && !*stop.borrow() => {
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

fn layout(settings: &Settings) -> Layout {
    let workers = settings.members.iter().map(|peer| peer.id.get());
    Layout {
        workers: workers.collect(),
        slots: settings.slots,
        key_groups: settings.key_groups,
    }
}

fn assignment(settings: &Settings) -> LogAssignment {
    let seat = Seat {
        member: 0,
        members: settings.members.len(),
        slots: settings.slots,
    };
    let group = |group| settings.members[seat.of_group(group, settings.key_groups)].id;
    LogAssignment {
        key_groups: (0..settings.key_groups).map(group).collect(),
        splits: BTreeMap::new(),
        shards: settings
            .sinks
            .iter()
            .map(|(name, shards)| {
                (
                    SinkName::new(name.clone()),
                    (0..*shards)
                        .map(|shard| settings.members[seat.of_shard(shard, *shards)].id)
                        .collect(),
                )
            })
            .collect(),
    }
}

/// The epochs that `head` stands on, itself included, as ranges; back to where operators began empty.
pub(crate) fn ancestors(fold: &penstock_checkpoint::Fold) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let since = fold.forgotten_at(fold.head()).unwrap_or_default();
    let all = fold.ancestors(fold.head()).take_while(|e| *e >= since);
    for epoch in all.map(Epoch::get) {
        match ranges.last_mut() {
            Some(last) if last.0 == epoch + 1 => last.0 = epoch,
            _ => ranges.push((epoch, epoch)),
        }
    }
    ranges
}
