//! A member of a job: one process with its slots. Restores its key groups, runs its slots, uploads one pack per epoch, and
//! after the commit applies state and publishes its shards. Decides nothing about epochs: that is the coordinator's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use penstock_checkpoint::DecodeError;
use penstock_checkpoint::ids::{Epoch, Generation, KeyGroup, LogId, MemberId, Nonce, SinkName};
use penstock_checkpoint::log::LogError;
use penstock_checkpoint::pack::{PackId, PackWriter};
use penstock_checkpoint::record::{BaseFile, PackRef};
use penstock_checkpoint::store::CheckpointStore;
use penstock_checkpoint::transfer;
use penstock_telemetry::child_of;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

use crate::error::{EngineError, ErrorKind, Result};
use crate::fault;
use crate::keys;
use crate::message::Barrier;
use crate::planted::{Bug, planted};
use crate::process;
use crate::sinks::{DirectSender, Guarantee, SinkRef, Turn};
use crate::sources::SourceReader;
use crate::state::{Commit, FrozenLayer, StateWorker};
use crate::task::{Assignment, DeadLetter, SlotCommand, SlotEvent, SlotReport, SplitNames};

mod bases;
pub mod protocol;
pub mod publish;
pub mod remote;
pub mod restore;
pub mod seat;
mod snapshot;
pub mod team;

use protocol::{FromMember, Shard, Snapshot, Start, ToMember};
use publish::{Open, Publishers, ShardNews, ShardTask, ShardWork};
use seat::Seat;
use snapshot::{cut, merge, settle, stage_late, upload};

/// Makes the slots of a generation; `job` knows the graph and the connectors.
pub trait SlotFactory: Send + Sync {
    /// Of so many slots. They find their brokers while the state is restored.
    fn readers(&self, slots: usize) -> Result<Vec<Readers>>;
    /// Starts the slots' threads (or tasks, in a simulation). Events of all slots go to `events`; `names` are those of all splits.
    fn start(
        &self,
        start: &Start,
        readers: Vec<Readers>,
        state: &mut StateWorker,
        events: mpsc::UnboundedSender<SlotEvent>,
        names: &SplitNames,
    ) -> Result<Vec<SlotHandle>>;
}

/// A slot's, by source.
pub type Readers = BTreeMap<String, Box<dyn SourceReader>>;

/// A running slot.
pub struct SlotHandle {
    pub commands: mpsc::UnboundedSender<SlotCommand>,
    /// Ends when the slot has ended.
    pub ended: Box<dyn FnOnce() + Send>,
}

/// What a member is made of.
pub struct Member {
    pub id: MemberId,
    pub log: LogId,
    pub store: CheckpointStore,
    pub key_groups: u16,
    /// Its place in the generation that runs.
    pub seat: Seat,
    pub state: StateWorker,
    pub slots: Arc<dyn SlotFactory>,
    /// Several operators judge late rows that go to dead letters: members tell each other of them.
    pub shares_late: bool,
    /// By index; the guarantee is what the job asks of the sink.
    pub sinks: Vec<(String, SinkRef, Guarantee)>,
    /// Names of the sources, by index.
    pub sources: Vec<String>,
    pub nonces: Box<dyn FnMut() -> Nonce + Send + Sync>,
    /// That the generation before left.
    pub publishers: Publishers,
    pub inbox: mpsc::UnboundedReceiver<ToMember>,
    pub outbox: mpsc::UnboundedSender<FromMember>,
}

/// What an epoch staged for one shard.
type Chunks = Vec<Bytes>;

/// A part of an epoch whose pack is durable, and whose commit is awaited.
struct Pending {
    layers: Vec<Arc<FrozenLayer>>,
    outputs: BTreeMap<Shard, Chunks>,
    /// The pack's path.
    path: String,
}

/// A generation at work.
struct Running {
    generation: Generation,
    slots: Vec<SlotHandle>,
    /// Of all splits, also those that others read: their rows may be judged here.
    names: SplitNames,
    /// Reports of the epoch in the making.
    reports: Vec<SlotReport>,
    /// Those of an ended epoch whose late rows are being told.
    telling: Vec<SlotReport>,
    /// Of the epoch in the making.
    span: Span,
    pending: BTreeMap<Epoch, Pending>,
    shards: BTreeMap<Shard, mpsc::UnboundedSender<ShardWork>>,
    /// Shards that hold published rows back, and those of them that still have to let go, once they are asked to.
    rolling: BTreeSet<Shard>,
    closing: Option<BTreeSet<Shard>>,
    news: mpsc::UnboundedSender<ShardNews>,
    newest: Epoch,
    /// Epochs handed to publication, oldest first, with the shards that still owe them.
    unpublished: VecDeque<(Epoch, BTreeSet<Shard>)>,
    sources_done: BTreeSet<usize>,
    /// Assignments handed on so far: a slot that says done may not have seen the newest.
    assigned: u64,
}

impl Running {
    fn new(generation: Generation, newest: Epoch, news: &mpsc::UnboundedSender<ShardNews>) -> Self {
        Self {
            generation,
            slots: Vec::new(),
            names: SplitNames::default(),
            reports: Vec::new(),
            telling: Vec::new(),
            span: Span::none(),
            pending: BTreeMap::new(),
            shards: BTreeMap::new(),
            rolling: BTreeSet::new(),
            closing: None,
            news: news.clone(),
            newest,
            unpublished: VecDeque::new(),
            sources_done: BTreeSet::new(),
            assigned: 0,
        }
    }

    /// Tells the shards that hold rows back of an epoch, but for those that get its rows.
    fn turn(&self, turn: Turn, but: &BTreeSet<Shard>) {
        for shard in self.rolling.difference(but) {
            let _ = self.shards[shard].send(ShardWork::Turn(turn));
        }
    }
}

impl Member {
    /// Serves until `Halt` or until the coordinator is gone. Gives its state back.
    pub async fn run(mut self) -> StateWorker {
        let (slot_tx, mut slot_rx) = mpsc::unbounded_channel();
        let (news_tx, mut news_rx) = mpsc::unbounded_channel();
        let (upload_tx, mut upload_rx) = mpsc::unbounded_channel::<Result<Box<Snapshot>>>();
        let mut running: Option<Running> = None;
        loop {
            let outcome = tokio::select! {
                biased;
                message = self.inbox.recv() => match message {
                    None | Some(ToMember::Halt) => break,
                    Some(ToMember::Start(start)) => match self.start(*start, &slot_tx, &news_tx).await {
                        Ok(r) => { running = Some(r); self.say(FromMember::Started) }
                        Err(e) => Err(e),
                    },
                    Some(ToMember::Close { born, newest }) => {
                        let r = running.get_or_insert_with(|| Running::new(Generation::ZERO, newest, &news_tx));
                        self.close(r, &born)
                    }
                    Some(ToMember::Late { letters, .. }) => match running.as_mut() {
                        Some(r) => self.late(r, letters, &upload_tx),
                        None => Ok(()),
                    },
                    Some(message) => match running.as_mut() {
                        Some(r) => self.told(r, message).await,
                        None => Ok(()),
                    },
                },
                Some(news) = news_rx.recv() => match running.as_mut() {
                    Some(r) => self.news(r, news),
                    None => Ok(()),
                },
                Some(event) = slot_rx.recv() => match running.as_mut() {
                    Some(r) => self.slot_event(r, event, &upload_tx),
                    None => Ok(()),
                },
                Some(uploaded) = upload_rx.recv() => match uploaded {
                    Ok(snapshot) => self.say(FromMember::Snapshot(snapshot)),
                    Err(e) => Err(e),
                },
            };
            if let Err(error) = outcome {
                let _ = self.outbox.send(FromMember::Failed(error));
            }
        }
        if let Some(running) = running {
            for slot in &running.slots {
                let _ = slot.commands.send(SlotCommand::Halt);
            }
            for slot in running.slots {
                (slot.ended)();
            }
        }
        self.state
    }

    /// The coordinator may be gone; then nobody needs the answer.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "every arm of the loop answers with a Result"
    )]
    fn say(&self, message: FromMember) -> Result<()> {
        let _ = self.outbox.send(message);
        Ok(())
    }

    async fn start(
        &mut self,
        start: Start,
        slot_tx: &mpsc::UnboundedSender<SlotEvent>,
        news_tx: &mpsc::UnboundedSender<ShardNews>,
    ) -> Result<Running> {
        let span = tracing::info_span!(
            "restore",
            generation = start.generation.get(),
            epoch = start.restore.state.epoch.get()
        );
        self.seat = start.seat;
        let mut running = Running::new(start.generation, start.newest, news_tx);
        let readers = self.slots.readers(start.seat.slots)?;
        if start.restore.state.chains.is_empty() {
            self.state.nothing_to_restore();
        }
        let opened = async {
            try_join_all(self.sinks.iter().map(|(_, sink, _)| sink.prepare())).await?;
            self.know(&mut running, &start.born)
        };
        tokio::try_join!(self.restore(&start).instrument(span), opened)?;
        fault::point("restore.after");
        let names = &running.names;
        let slots = self
            .slots
            .start(&start, readers, &mut self.state, slot_tx.clone(), names)?;
        running.slots = slots;
        for (turn, packs) in &start.backlog {
            let outputs = self.read_outputs(packs).await?;
            self.publish(&mut running, *turn, outputs)?;
        }
        let first = Turn {
            epoch: start.first_epoch.get(),
            generation: start.generation.get(),
            now_ms: start.now_ms,
        };
        running.turn(first, &BTreeSet::new());
        Ok(running)
    }

    /// Whether it publishes this shard.
    fn has(&self, shard: Shard) -> bool {
        let shards = self.sinks[shard.0].1.shards();
        self.seat.of_shard(shard.1, shards) == self.seat.member
    }

    /// Shards that the log knows.
    fn know(&self, r: &mut Running, born: &BTreeMap<Shard, protocol::BornMarker>) -> Result<()> {
        let mut left = self.publishers.begin(r.generation);
        for (shard, born) in born.iter().filter(|(s, _)| self.has(**s)) {
            if !r.shards.contains_key(shard) {
                let settings = self.sinks[shard.0].1.settings();
                let open = left.remove(&(*shard, born.partition));
                let open = open.filter(|open| open.serves(*born, settings));
                self.shard(r, *shard, born.partition, open)?;
                let _ = r.shards[shard].send(ShardWork::Born(*born));
            }
        }
        Ok(())
    }

    fn close(&self, r: &mut Running, born: &BTreeMap<Shard, protocol::BornMarker>) -> Result<()> {
        self.know(r, born)?;
        for shard in &r.rolling {
            let _ = r.shards[shard].send(ShardWork::Close);
        }
        r.closing = Some(r.rolling.clone());
        self.tell_closed(r)
    }

    fn tell_closed(&self, r: &mut Running) -> Result<()> {
        if r.closing.as_ref().is_some_and(BTreeSet::is_empty) {
            r.closing = None;
            return self.say(FromMember::Closed);
        }
        Ok(())
    }

    /// Rows of the member's shards, in the order of packs; those of its own pack are in `own`.
    async fn outputs(&self, packs: &[PackRef], own: Pending) -> Result<BTreeMap<Shard, Chunks>> {
        let mut outputs: BTreeMap<Shard, Chunks> = BTreeMap::new();
        let mut mine = Some(own.outputs);
        for pack in packs {
            let of = match mine.take_if(|_| pack.path == own.path) {
                Some(mine) => mine,
                None => self.read_outputs(std::slice::from_ref(pack)).await?,
            };
            for (shard, chunks) in of.into_iter().filter(|(s, _)| self.has(*s)) {
                outputs.entry(shard).or_default().extend(chunks);
            }
        }
        Ok(outputs)
    }

    async fn read_outputs(&self, packs: &[PackRef]) -> Result<BTreeMap<Shard, Chunks>> {
        let mut outputs: BTreeMap<Shard, Chunks> = BTreeMap::new();
        let mine = |pack: &&PackRef| {
            let sinks = self.sinks.iter().enumerate();
            let mut shards = sinks.filter_map(|(i, (name, ..))| {
                let of = pack.outputs.get(&SinkName::new(name.clone()))?;
                Some(of.keys().any(|s| self.has((i, s.get()))))
            });
            shards.any(|some| some)
        };
        for pack in packs.iter().filter(mine) {
            let index = transfer::read_index(&self.store, self.log, pack)
                .await
                .map_err(storage)?;
            for (i, (name, _, _)) in self.sinks.iter().enumerate() {
                let sink = SinkName::new(name.clone());
                let Some(shards) = pack.outputs.get(&sink) else {
                    continue;
                };
                for shard in shards.keys().filter(|s| self.has((i, s.get()))) {
                    for (_, section) in index.chunks(&sink, *shard) {
                        let bytes = transfer::read_section(&self.store, pack, section)
                            .await
                            .map_err(storage)?;
                        outputs.entry((i, shard.get())).or_default().push(bytes);
                    }
                }
            }
        }
        Ok(outputs)
    }

    async fn told(&mut self, r: &mut Running, message: ToMember) -> Result<()> {
        match message {
            ToMember::Assign { source, splits } => {
                r.sources_done.clear();
                r.assigned += 1;
                let mut shares = self.by_slot(r, source, splits);
                // Slots without a split are told so: only then may they call themselves idle.
                for (n, slot) in r.slots.iter().enumerate() {
                    send(
                        slot,
                        SlotCommand::Assign {
                            source,
                            splits: shares.remove(&n).unwrap_or_default(),
                        },
                    );
                }
            }
            ToMember::Inject(barrier, trace) => {
                fault::point("barrier.injected");
                r.span = self.span(barrier, trace.as_deref());
                for slot in &r.slots {
                    send(slot, SlotCommand::Inject(barrier));
                }
            }
            ToMember::Plan(ranges, watermarks, barrier, trace) => {
                r.span = self.span(barrier, trace.as_deref());
                let mut plans = vec![BTreeMap::new(); r.slots.len()];
                for (source, splits) in ranges {
                    let watermark = watermarks.get(&source).copied();
                    let mut shares = self.by_slot(r, source, splits);
                    for (slot, plan) in plans.iter_mut().enumerate() {
                        let share = shares.remove(&slot).unwrap_or_default();
                        plan.insert(source, protocol::planned(share, watermark, barrier));
                    }
                }
                for (slot, plan) in r.slots.iter().zip(plans) {
                    send(slot, SlotCommand::Plan(plan));
                }
            }
            ToMember::Drain => r.slots.iter().for_each(|s| send(s, SlotCommand::Drain)),
            ToMember::Bear {
                shard,
                partition,
                epoch,
                nonce,
            } => {
                self.shard(r, shard, partition, None)?;
                let marker = protocol::BornMarker { partition, nonce };
                let _ = r.shards[&shard].send(ShardWork::Bear { marker, epoch });
            }
            ToMember::Committed {
                epoch,
                publish,
                now_ms,
                packs,
            } => {
                let Some(mut pending) = r.pending.remove(&epoch) else {
                    return Ok(());
                };
                fault::point("apply.before");
                let checksum = checksum(self.log, epoch.get());
                self.state.check()?;
                if !planted(Bug::ApplyBeforeCommit) {
                    self.state.commit(Commit {
                        epoch: epoch.get(),
                        checksum,
                        now_ms,
                        layers: std::mem::take(&mut pending.layers),
                    });
                }
                fault::point("apply.after");
                if publish {
                    let turn = Turn {
                        epoch: epoch.get(),
                        generation: r.generation.get(),
                        now_ms,
                    };
                    let outputs = self.outputs(&packs, pending).await?;
                    self.publish(r, turn, outputs)?;
                }
            }
            ToMember::Publish(backlog) => {
                for (turn, packs) in backlog {
                    let outputs = self.read_outputs(&packs).await?;
                    self.publish(r, turn, outputs)?;
                }
            }
            ToMember::MakeBase { group, reuse } => self.make_base(r, group, reuse),
            ToMember::Start(_)
            | ToMember::Late { .. }
            | ToMember::Close { .. }
            | ToMember::Halt => {}
        }
        Ok(())
    }

    /// From the barrier, or the plan, until this member's part of the epoch is durable.
    fn span(&self, barrier: Barrier, trace: Option<&str>) -> Span {
        let span = tracing::info_span!(
            parent: None,
            "snapshot",
            worker = self.id.get(),
            generation = barrier.generation,
            epoch = barrier.epoch
        );
        if let Some(trace) = trace {
            child_of(&span, trace);
        }
        span
    }

    /// In the background: a base that fails costs recovery time, never the job.
    fn make_base(&mut self, r: &Running, group: KeyGroup, reuse: Vec<BaseFile>) {
        let upload = bases::Upload {
            store: self.store.clone(),
            log: self.log,
            generation: r.generation,
            nonce: (self.nonces)(),
            group,
            reuse,
        };
        let make = self.state.base_maker(group.get());
        let outbox = self.outbox.clone();
        process::spawn(async move {
            let base = match make {
                Ok(make) => upload.run(make).await,
                Err(e) => Err(e),
            };
            let base = base
                .inspect_err(|error| tracing::warn!(%error, %group, "a base could not be made"))
                .ok()
                .map(Box::new);
            let _ = outbox.send(FromMember::Base { group, base });
        });
    }

    /// Its splits by slot: each the same after every restart with as many slots.
    fn by_slot(
        &self,
        r: &Running,
        source: usize,
        mut splits: Vec<Assignment>,
    ) -> BTreeMap<usize, Vec<Assignment>> {
        let mut shares: BTreeMap<usize, Vec<Assignment>> = BTreeMap::new();
        splits.sort_by(|a, b| a.range.split.cmp(&b.range.split));
        for a in splits {
            let split = &a.range.split;
            let hash = keys::split_hash(&self.sources[source], &split.0);
            r.names.learn(hash, source, split);
            let (member, own) = self.seat.of_slot(self.seat.of_split(&split.0));
            if member == self.seat.member {
                shares.entry(own).or_default().push(a);
            }
        }
        shares
    }

    /// The publisher of a shard: open already, or made now.
    fn shard(
        &self,
        r: &mut Running,
        shard: Shard,
        partition: i32,
        open: Option<Open>,
    ) -> Result<()> {
        if r.shards.contains_key(&shard) {
            return Ok(());
        }
        let (name, sink, _) = &self.sinks[shard.0];
        let (work_tx, work) = mpsc::unbounded_channel();
        let stands = open.as_ref().map(Open::stands);
        let mut publisher = match open {
            Some(open) => open.publisher,
            None => sink.publisher(shard.1, partition)?,
        };
        if publisher.rolling().is_some() {
            r.rolling.insert(shard);
        }
        let task = ShardTask {
            shard,
            name: format!("sink {name} shard {}", shard.1),
            publisher,
            settings: sink.settings(),
            stands,
            newest: r.newest,
            work,
            news: r.news.clone(),
        };
        process::spawn(task.run(r.generation, self.publishers.clone()));
        r.shards.insert(shard, work_tx);
        Ok(())
    }

    fn publish(&self, r: &mut Running, turn: Turn, outputs: BTreeMap<Shard, Chunks>) -> Result<()> {
        let owed: BTreeSet<Shard> = outputs.keys().copied().collect();
        r.turn(turn, &owed);
        for (shard, chunks) in outputs {
            let work = r.shards.get(&shard).ok_or_else(|| {
                EngineError::fail(
                    "PR0210",
                    format!("sink {} shard {}", self.sinks[shard.0].0, shard.1),
                    "the shard has no marker",
                )
            })?;
            let _ = work.send(ShardWork::Publish { turn, chunks });
        }
        r.unpublished.push_back((Epoch::new(turn.epoch), owed));
        self.tell_done(r)
    }

    /// Says how far publication has come, when the oldest epochs are out.
    fn tell_done(&self, r: &mut Running) -> Result<()> {
        let mut through = None;
        while r
            .unpublished
            .front()
            .is_some_and(|(_, owed)| owed.is_empty())
        {
            through = r.unpublished.pop_front().map(|(epoch, _)| epoch);
        }
        through.map_or(Ok(()), |through| {
            fault::point("done.before");
            self.say(FromMember::Done { through })
        })
    }

    fn news(&self, r: &mut Running, news: ShardNews) -> Result<()> {
        match news {
            ShardNews::Born(shard, nonce) => self.say(FromMember::Born { shard, nonce }),
            ShardNews::Held(shard, text) => self.say(FromMember::Held {
                sink: shard.0,
                text,
            }),
            ShardNews::Failed(error) => Err(error),
            ShardNews::Closed(shard) => {
                if let Some(closing) = &mut r.closing {
                    closing.remove(&shard);
                }
                self.tell_closed(r)
            }
            ShardNews::Published(shard, epoch) => {
                for (e, owed) in &mut r.unpublished {
                    if *e == epoch {
                        owed.remove(&shard);
                    }
                }
                self.tell_done(r)
            }
        }
    }

    fn slot_event(
        &mut self,
        r: &mut Running,
        event: SlotEvent,
        uploads: &mpsc::UnboundedSender<Result<Box<Snapshot>>>,
    ) -> Result<()> {
        match event {
            SlotEvent::WantsBarrier => self.say(FromMember::WantsBarrier),
            SlotEvent::Failing { source, text } => self.say(FromMember::Failing { source, text }),
            SlotEvent::Failed { slot: _, error } => Err(error),
            SlotEvent::SourcesDone { slot, assigned } => {
                if assigned < r.assigned && !planted(Bug::StaleDone) {
                    return Ok(());
                }
                r.sources_done.insert(slot);
                if r.sources_done.len() == r.slots.len() {
                    self.say(FromMember::SourcesDone { assigned })?;
                }
                Ok(())
            }
            SlotEvent::Passed(report) => {
                r.reports.push(*report);
                if r.reports.len() < r.slots.len() {
                    return Ok(());
                }
                let mut reports = std::mem::take(&mut r.reports);
                reports.sort_by_key(|report| report.slot);
                fault::point("slot.frozen");
                if !self.shares_late || self.seat.members == 1 {
                    return self.snapshot(r, reports, uploads);
                }
                let epoch = reports[0].barrier.epoch;
                let letters = reports.iter_mut().flat_map(|r| r.late.drain(..));
                let letters = letters.collect();
                r.telling = reports;
                self.say(FromMember::Late { epoch, letters })
            }
        }
    }

    /// Every member has told its late rows; these are of the splits that this one reads.
    fn late(
        &mut self,
        r: &mut Running,
        letters: Vec<DeadLetter>,
        uploads: &mpsc::UnboundedSender<Result<Box<Snapshot>>>,
    ) -> Result<()> {
        let mut reports = std::mem::take(&mut r.telling);
        match reports.first_mut() {
            Some(first) => first.late = letters,
            None => return Ok(()),
        }
        self.snapshot(r, reports, uploads)
    }

    /// Packs what the slots froze and staged, and uploads it off the member's loop.
    fn snapshot(
        &mut self,
        r: &mut Running,
        mut reports: Vec<SlotReport>,
        uploads: &mpsc::UnboundedSender<Result<Box<Snapshot>>>,
    ) -> Result<()> {
        let barrier: Barrier = reports[0].barrier;
        let epoch = Epoch::new(barrier.epoch);
        let layers: Vec<Arc<FrozenLayer>> =
            reports.iter().filter_map(|s| s.layer.clone()).collect();
        let mut outputs: BTreeMap<Shard, Chunks> = BTreeMap::new();
        let mut rows_out = 0;
        for report in &mut reports {
            for (sink, shard, staged) in report.staged.drain(..) {
                rows_out += staged.rows;
                if self.sinks[sink].2 == Guarantee::ExactlyOnce {
                    outputs
                        .entry((sink, shard))
                        .or_default()
                        .extend(cut(staged.data, &staged.chunk_ends));
                }
            }
        }
        let (late, direct) = stage_late(&self.sources, &self.sinks, &mut reports, barrier.epoch);
        rows_out += late;
        let mut owing: Vec<Box<dyn DirectSender>> = Vec::new();
        for (sink, shard, staged) in direct {
            if self.sinks[sink].2 == Guarantee::ExactlyOnce {
                outputs
                    .entry((sink, shard))
                    .or_default()
                    .extend(cut(staged.data, &staged.chunk_ends));
            } else {
                let mut sender = self.sinks[sink].1.direct()?;
                sender.send(&staged)?;
                sender.seal()?;
                owing.push(sender);
            }
        }
        let id = PackId {
            log: self.log,
            epoch,
            generation: r.generation,
            nonce: (self.nonces)(),
        };
        let mut snapshot = Box::new(merge(barrier, reports));
        snapshot.rows_out = rows_out;
        r.pending.insert(
            epoch,
            Pending {
                layers: layers.clone(),
                outputs: outputs.clone(),
                path: id.path(self.id),
            },
        );
        if planted(Bug::ApplyBeforeCommit) {
            self.state.commit(Commit {
                epoch: epoch.get(),
                checksum: checksum(self.log, epoch.get()),
                now_ms: barrier.now_ms,
                layers: layers.clone(),
            });
        }
        if planted(Bug::PublishFirst) && outputs.keys().all(|s| r.shards.contains_key(s)) {
            let turn = Turn {
                epoch: barrier.epoch,
                generation: barrier.generation,
                now_ms: barrier.now_ms,
            };
            self.publish(r, turn, outputs.clone())?;
        }
        let (store, member, uploads) = (self.store.clone(), self.id, uploads.clone());
        let names: Vec<SinkName> = self
            .sinks
            .iter()
            .map(|s| SinkName::new(s.0.clone()))
            .collect();
        let span = std::mem::replace(&mut r.span, Span::none());
        let upload_span = tracing::info_span!(parent: &span, "upload");
        process::spawn(async move {
            let written = async {
                settle(owing).await?;
                let writer = PackWriter::new(id, member);
                upload(&store, writer, &layers, &outputs, &names).await
            }
            .instrument(upload_span)
            .await;
            drop(span);
            let _ = uploads.send(written.map(|(pack, bytes)| {
                snapshot.packs = pack.into_iter().collect();
                snapshot.bytes = bytes;
                snapshot
            }));
        });
        Ok(())
    }
}

fn send(slot: &SlotHandle, command: SlotCommand) {
    // A slot that has ended has said why.
    let _ = slot.commands.send(command);
}

/// A failure of the checkpoint store, as the engine's error. What is damaged, gone or of a newer version stays so, however often
/// it is read.
pub fn storage(e: LogError) -> EngineError {
    use penstock_checkpoint::store::ErrorKind as K;
    let kind = match e.kind() {
        K::Retry => ErrorKind::Retry,
        K::Refused => ErrorKind::Refused,
        K::Fail => ErrorKind::Fail,
        K::Fenced => ErrorKind::Fenced,
        K::Invalid => ErrorKind::Invalid,
    };
    let (kind, code) = match &e {
        LogError::Unreadable { object, source } => {
            let code = match source {
                DecodeError::Damaged { .. } => "PR0404",
                DecodeError::TooNew { .. } => "PR0406",
                DecodeError::TooLarge { .. } => "PR0402",
            };
            return EngineError::new(kind, code, object, source.to_string());
        }
        LogError::Missing { .. } => (ErrorKind::Invalid, "PR0405"),
        _ if kind == ErrorKind::Fenced => (kind, "PR0401"),
        _ => (kind, "PR0402"),
    };
    EngineError::new(kind, code, "checkpoint storage", e.to_string()).caused_by(e)
}

/// Names a commit to the volume. Epoch numbers are never reused, so log and number say which commit it was.
fn checksum(log: LogId, epoch: u64) -> u32 {
    let mut bytes = log.as_bytes().to_vec();
    bytes.extend_from_slice(&epoch.to_le_bytes());
    crc32c::crc32c(&bytes)
}
