//! A job of several workers, each a process with its own volume. One of them coordinates, the others are its members: who does is
//! decided here, by what workers see of each other; who owns the job, by the log alone.
//!
//! ```text
//! look ─▶ may_lead ─▶ claim ─▶ generation ─▶ the end, told to all
//!   ▲                              │ a worker is lost: at once
//!   └──────────────────────────────┘ one comes, or goes: what moves is loaded ahead, then at a barrier
//! ```
//!
//! A worker that is told to stop, and no other is, leaves the job to them; when all are, the job stops.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use penstock_checkpoint::ids::{Generation, LogId, MemberId, Seq};
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::store::CheckpointStore;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::assembly::{Held, Kept, Team};
use super::connectors::LogFacts;
use super::generations::cut_short;
use crate::coordinator::progress::Progress;
use crate::coordinator::{Adopts, Outcome};
use crate::error::{EngineError, ErrorKind, Result};
use crate::member::remote::{self, LEASE, LOST, decode, encode};
use crate::member::team::Line;
use crate::network::{Channel, Exchange, Failing, Inlet, Net, Outlet, Peer, Talk};
use crate::planted::{Bug, planted};
use crate::process;
use crate::state::StateWorker;

mod ahead;
mod doubts;
mod host;

use ahead::{COMES, LEAVES, Prepare};
use doubts::Doubts;
use host::Host;

/// How long a first coordinator waits for the others to come up, and a later one for a worker that is started again.
const GATHER: Duration = Duration::from_secs(5);
const GATHER_AGAIN: Duration = LEASE;
/// Leases without a coordinator after which a minority of its members goes on.
const GONE: u32 = 10;
/// How long the log must stand still before a worker claims that is no member of the last claim and reaches none of them: so many
/// times the interval of its commits, within these bounds.
const STANDS: u32 = 3;
const STANDS_LEAST: Duration = Duration::from_secs(10);
const STANDS_MOST: Duration = Duration::from_secs(300);
/// How often a coordinator looks for workers that it goes without.
const LOOK: Duration = Duration::from_secs(1);
/// How long the generation before may take to let go of the volume.
const CLOSE: Duration = Duration::from_secs(20);
/// How long another worker may take to say what it sees.
const ASK: Duration = Duration::from_millis(300);

/// What a worker stands on: the job with its log and its volume, on a machine or in a simulation.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// What tells the job that it runs, its plan and its version, from another.
    fn runs(&self) -> u64;
    /// What members must know of a log.
    fn facts(&self, log: &JobLog) -> LogFacts;
    /// The job's log, as it is now.
    async fn log(&self) -> Result<(JobLog, Option<Adopts>)>;
    /// Runs a generation as its coordinator, and as one of its members, until its end or `stop`. Gives the log back as it is then.
    async fn lead(
        &self,
        log: JobLog,
        adopts: Option<Adopts>,
        team: Team,
        stop: watch::Receiver<bool>,
    ) -> Result<(Outcome, JobLog)>;
    /// Of each worker.
    fn slots(&self) -> usize;
    /// How often a job that has something to read commits.
    fn interval(&self) -> Duration;
    /// Opens the volume, with nothing open on it yet.
    fn volume_of(&self, me: MemberId, log: LogId) -> Result<StateWorker>;
    /// Where the log's packs and bases are.
    fn loads_from(&self, log: LogId) -> Result<CheckpointStore>;
    /// Begins a member; it ends with its line.
    fn member(
        &self,
        me: MemberId,
        log: LogFacts,
        exchange: Arc<dyn Exchange>,
        held: Held,
    ) -> Result<Line>;
}

/// Among which workers this one is, and how it reaches them.
pub(crate) struct Post {
    /// That are said to be there; others may come.
    pub known: BTreeSet<MemberId>,
    pub net: Arc<dyn Net>,
    /// Conversations that others begin.
    pub talks: mpsc::UnboundedReceiver<Talk>,
    /// True while this worker coordinates.
    pub leads: Arc<watch::Sender<bool>>,
}

/// What a conversation between workers is about.
#[derive(Debug, Serialize, Deserialize)]
enum About {
    /// Whether there is a coordinator.
    Look,
    /// Who begins it coordinates, and the other is to be a member.
    Membership(Membership),
    /// The other is to load what the next generation will want of it. It answers when it has, or cannot.
    Prepare(Box<Prepare>),
    /// This worker has been told to stop, and goes.
    Leave(Peer),
    /// The job has come to its end, or this worker, its coordinator, to its own.
    End(Peer, Ended),
}

/// What a member must know before its first message.
#[derive(Debug, Serialize, Deserialize)]
struct Membership {
    from: Peer,
    /// To whom it is said; another process that is this worker now refuses.
    to: Peer,
    generation: Generation,
    log: LogId,
    /// What the coordinator runs; a worker that runs something else does not take part.
    runs: u64,
    /// Partitions of the sinks' marker topics.
    markers: i32,
}

/// How the job came to its end.
#[derive(Debug, Serialize, Deserialize)]
enum Ended {
    With(Outcome),
    /// What nobody here mends.
    By(#[serde(with = "remote::error")] EngineError),
}

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    who: Peer,
    /// Of whom it has heard as the coordinator within three leases.
    coordinator: Option<Peer>,
    /// It has been told to stop.
    leaves: bool,
    runs: u64,
}

/// What the others say, those that answer.
type Others = BTreeMap<Peer, Seen>;

impl Seen {
    /// Whether it may be a member of those that run this.
    fn joins(&self, runs: u64) -> bool {
        !self.leaves && self.runs == runs
    }
}

/// Whether a worker may claim the job: no worker hears of a coordinator but of this one, and of the members of the last claim that
/// have not left since (`last`) a majority says so, itself counted; or it is silent for three leases and none of them answers, or for
/// ten: those that are missing may be gone for good. Where it is none of those members itself, and reaches none, the log must stand
/// still: else they go on, and something keeps them apart from this one.
fn may_lead(
    me: Peer,
    last: &[MemberId],
    others: &Others,
    silent: Duration,
    stands_still: bool,
) -> bool {
    let mut say = others.values().map(|o| o.coordinator);
    if !say.all(|c| c.is_none_or(|c| c == me)) {
        return false;
    }
    let answers = |m: &MemberId| others.keys().any(|o| o.id == *m);
    let say = last.iter().filter(|m| **m == me.id || answers(m)).count();
    let any = last.iter().any(|m| *m != me.id && answers(m));
    let patience = LEASE * if any { GONE } else { LOST };
    if say == 0 && !last.is_empty() && !stands_still {
        return false;
    }
    2 * say > last.len() || last.is_empty() || silent >= patience
}

/// A worker, until the job ends, it is told to stop, or it cannot go on.
pub(crate) struct Worker {
    net: Arc<dyn Net>,
    ground: Arc<dyn Ground>,
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    began: Instant,
    /// Whoever has the others load ahead: one change after another.
    preparing: AsyncMutex<()>,
    /// The end of the log when this worker looked at it last, and since when it is that.
    tail: Mutex<Option<(Seq, Instant)>>,
    doubts: Mutex<Doubts>,
}

/// The coordinator that this worker heard of last.
#[derive(Debug, Clone, Copy)]
struct Heard {
    from: Peer,
    at: Instant,
    /// Its conversation with this worker has ended.
    over: bool,
}

/// What a worker's two halves tell each other.
struct Shared {
    me: Peer,
    runs: u64,
    known: Mutex<BTreeSet<MemberId>>,
    heard: Mutex<Option<Heard>>,
    /// The newest generation of this process is, or was, its own; until it looks for a coordinator again.
    leads: Arc<watch::Sender<bool>>,
    /// It coordinates at this moment.
    leading: AtomicBool,
    stop: watch::Receiver<bool>,
    /// Who has said that it goes.
    left: watch::Sender<BTreeSet<Peer>>,
    /// The highest generation that was coordinated here or elsewhere, as far as this worker knows.
    newest: Mutex<Generation>,
    /// Another worker coordinates a newer generation than this one does.
    superseded: watch::Sender<Generation>,
    /// How the job ended, as another worker tells.
    ended: watch::Sender<Option<Ended>>,
    volume: Kept,
    /// Ends what loads ahead; whoever does has the other.
    loading: Mutex<Option<oneshot::Sender<()>>>,
    loads: AsyncMutex<()>,
}

impl Shared {
    fn hear(&self, from: Peer) {
        let (at, over) = (Instant::now(), false);
        *self.heard.lock() = Some(Heard { from, at, over });
    }

    /// It does not coordinate any more.
    fn over(&self, from: Peer) {
        if let Some(heard) = &mut *self.heard.lock() {
            heard.over |= heard.from == from;
        }
    }

    /// The volume, once the generation before has let go of it.
    async fn hold(&self) -> Result<Held> {
        drop(self.loading.lock().take());
        let held = async {
            let _loads = self.loads.lock().await;
            self.volume.hold().await
        };
        tokio::time::timeout(CLOSE, held).await.map_err(|_| {
            let text = "its part of the generation before does not end: a connector hangs";
            EngineError::fail("PR0304", self.me.to_string(), text)
        })
    }

    /// Whether this one has coordinated what this worker took part in last.
    fn is_of(&self, from: Peer) -> bool {
        let heard = *self.heard.lock();
        !self.leading.load(Ordering::Relaxed) && heard.is_some_and(|h| h.from == from)
    }

    fn leaves(&self, who: Peer) {
        self.known.lock().remove(&who.id);
        self.left.send_modify(|left| {
            left.insert(who);
        });
    }

    /// Whoever speaks is there: of one that has left, another process.
    fn comes(&self, id: MemberId) {
        self.known.lock().insert(id);
        self.left.send_if_modified(|left| {
            let before = left.len();
            left.retain(|l| l.id != id);
            left.len() < before
        });
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    fn others(&self) -> Vec<MemberId> {
        let known = self.known.lock();
        known
            .iter()
            .copied()
            .filter(|id| *id != self.me.id)
            .collect()
    }

    fn seen(&self) -> Seen {
        let heard = *self.heard.lock();
        let recent = heard.filter(|h| !h.over && h.at.elapsed() < LEASE * LOST);
        let leading = self.leading.load(Ordering::Relaxed).then_some(self.me);
        Seen {
            who: self.me,
            coordinator: leading.or(recent.map(|h| h.from)),
            leaves: self.is_stopping(),
            runs: self.runs,
        }
    }
}

/// For as long as a worker coordinates, whatever ends that.
struct Leading<'a>(&'a Shared);

impl<'a> Leading<'a> {
    fn begin(of: &'a Shared) -> Self {
        of.leads.send_replace(true);
        of.leading.store(true, Ordering::Relaxed);
        Self(of)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.leading.store(false, Ordering::Relaxed);
    }
}

/// The way to the others, which notes that a generation has begun here: a lower one that asks for this worker comes too late, for what
/// it sent is gone.
struct Noting {
    net: Arc<dyn Net>,
    shared: Arc<Shared>,
}

impl Exchange for Noting {
    fn begin(&self, generation: u64, failing: Failing) {
        let mut newest = self.shared.newest.lock();
        *newest = (*newest).max(Generation::new(generation));
        self.net.begin(generation, failing);
    }

    fn outlet(&self, channel: Channel, to: Peer, slot: Arc<Notify>) -> Result<Box<dyn Outlet>> {
        self.net.outlet(channel, to, slot)
    }

    fn inlet(&self, channel: Channel, from: Peer, slot: Arc<Notify>) -> Result<Box<dyn Inlet>> {
        self.net.inlet(channel, from, slot)
    }
}

/// What became of an attempt to coordinate.
enum Led {
    Ended(Outcome),
    /// Another one does, or it is not time.
    Not,
    /// The workers are others from now on. The log is as the generation left it.
    Changed(Box<JobLog>),
}

impl Worker {
    /// Serves whoever coordinates from now on.
    pub(crate) fn new(
        post: Post,
        ground: Arc<dyn Ground>,
        progress: Arc<Progress>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let Post {
            known,
            net,
            talks,
            leads,
        } = post;
        let me = net.me();
        let shared = Arc::new(Shared {
            me,
            runs: ground.runs(),
            known: Mutex::new(known),
            heard: Mutex::default(),
            leads,
            leading: AtomicBool::new(false),
            stop,
            left: watch::Sender::default(),
            newest: Mutex::new(Generation::ZERO),
            superseded: watch::channel(Generation::ZERO).0,
            ended: watch::channel(None).0,
            volume: Kept::default(),
            loading: Mutex::default(),
            loads: AsyncMutex::default(),
        });
        let host = Arc::new(Host {
            progress: progress.clone(),
            net: net.clone(),
            ground: ground.clone(),
            shared: shared.clone(),
        });
        process::spawn(host.run(talks));
        Self {
            net,
            ground,
            shared,
            progress,
            began: Instant::now(),
            preparing: AsyncMutex::default(),
            tail: Mutex::default(),
            doubts: Mutex::default(),
        }
    }

    /// Whether it has taken part in a generation of another one.
    pub(crate) fn was_member(&self) -> bool {
        self.shared.heard.lock().is_some()
    }

    /// Until the job has ended, here or elsewhere, or this worker has left it; an error that passes is for the caller to come again
    /// after.
    pub(crate) async fn run(&self) -> Result<Outcome> {
        let mut ended = self.shared.ended.subscribe();
        // When it is said that this worker leaves: whoever coordinates may have been told to stop too.
        let mut leaves = None;
        let mut log = None;
        loop {
            // It did, and that is over.
            self.shared.leads.send_if_modified(std::mem::take);
            let coordinator = self.shared.seen().coordinator;
            if coordinator.is_some() {
                *self.tail.lock() = None;
            }
            // The only worker of a job coordinates again in a moment, and shows what it last knew until then.
            if self.shared.known.lock().len() > 1 {
                let known = coordinator.map(|c| c.id.get());
                self.progress.coordinator(known, false);
            }
            match coordinator {
                None if self.shared.is_stopping() => return Ok(cut_short(&self.progress)),
                None => {
                    let led = tokio::select! {
                        led = self.lead(log.take()) => led,
                        over = over(&mut ended) => return over,
                    };
                    match led? {
                        Led::Ended(outcome) => return Ok(outcome),
                        Led::Changed(left) => {
                            log = Some(*left);
                            continue;
                        }
                        Led::Not => {}
                    }
                }
                Some(_) if self.shared.is_stopping() => {
                    let due = *leaves.get_or_insert(Instant::now() + LEASE);
                    if Instant::now() >= due {
                        leaves = Some(Instant::now() + LEASE);
                        // Not the coordinator alone: whoever comes after it must not wait for this one's word.
                        self.say_to_all(&About::Leave(self.shared.me)).await;
                    }
                }
                Some(_) => {}
            }
            tokio::select! {
                over = over(&mut ended) => return over,
                () = tokio::time::sleep(LEASE / 4) => {}
            }
        }
    }

    /// Tells every worker how the job ended, unless one of them has said so. Who does not hear of it coordinates next, and comes to
    /// the same end.
    pub(crate) async fn tell_end(&self, ended: &Result<Outcome>) {
        if self.shared.ended.borrow().is_some() {
            return;
        }
        let led = *self.shared.leads.borrow();
        match ended {
            Ok(Outcome::Stopped { .. }) if !led => {
                return self.say_to_all(&About::Leave(self.shared.me)).await;
            }
            // Of what it has not coordinated it knows nothing.
            _ if !led => return,
            _ => {}
        }
        let ended = match ended {
            Ok(outcome) => Ended::With(outcome.clone()),
            Err(error) => Ended::By(error.in_words()),
        };
        self.say_to_all(&About::End(self.shared.me, ended)).await;
    }

    /// Makes what is committed survive the end of this process, once nobody has the volume open.
    pub(crate) async fn close(&self) {
        // What hangs in a connector keeps no process from its end.
        let closed = tokio::time::timeout(CLOSE, self.shared.volume.close()).await;
        if closed.is_err() {
            tracing::warn!("the volume was not flushed; the next start replays");
        }
    }

    async fn say_to_all(&self, about: &About) {
        let others = self.shared.others();
        join_all(others.into_iter().map(|other| self.say(other, about))).await;
    }

    /// To one that may not be there.
    async fn say(&self, other: MemberId, about: &About) {
        let said = async {
            let mut talk = self.net.talk(other, encode(about)?).await?;
            // It closes when it has heard.
            talk.from.recv().await;
            Ok::<(), EngineError>(())
        };
        if !matches!(tokio::time::timeout(ASK, said).await, Ok(Ok(()))) {
            tracing::debug!(worker = %other, "it was not told");
        }
    }

    /// What the others see, those that answer; `None` where this worker is not what is found at its own address: a newer process
    /// is, or nobody gets there.
    async fn look(&self) -> Option<Others> {
        let all = self.shared.known.lock().clone();
        // Who knows of no other needs no way to itself: in a cluster its name may not be found yet.
        if all.len() == 1 {
            return Some(Others::new());
        }
        let asked = all.iter().map(|other| async move {
            let seen = tokio::time::timeout(ASK, ask(&*self.net, *other)).await;
            seen.ok()?.ok()
        });
        let seen = join_all(asked).await.into_iter().flatten();
        let mut seen: Others = seen.map(|s| (s.who, s)).collect();
        let here = seen.remove(&self.shared.me).is_some();
        (here || planted(Bug::AnyProcess)).then_some(seen)
    }

    /// One generation with this worker as its coordinator, where it may be. `log`: as the one before has left it, just now.
    async fn lead(&self, log: Option<JobLog>) -> Result<Led> {
        let mut superseded = self.shared.superseded.subscribe();
        let Some(others) = self.is_its_turn().await else {
            return Ok(Led::Not);
        };
        let coordinated = AtomicBool::new(false);
        tokio::select! {
            led = self.coordinate(&others, log, &coordinated) => led,
            _ = superseded.changed() => {
                if !coordinated.load(Ordering::Relaxed) {
                    return Ok(Led::Not);
                }
                let object = self.shared.me.to_string();
                let text = "another worker coordinates a newer generation";
                Err(EngineError::new(ErrorKind::Fenced, "PR0401", object, text))
            }
        }
    }

    fn takes(&self, other: &Seen) -> bool {
        let doubted = self.doubts.lock().excludes(other.who, Instant::now());
        other.joins(self.shared.runs) && !doubted
    }

    /// Those of the others that may be members with this one.
    fn joining(&self, others: &Others) -> impl Iterator<Item = Peer> {
        let joining = others.values().filter(|o| self.takes(o));
        joining.map(|o| o.who)
    }

    /// Whether the log has ended with this record for longer than a job that runs lets it.
    fn stands_still(&self, seq: Seq) -> bool {
        let mut tail = self.tail.lock();
        let (before, since) = *tail.get_or_insert((seq, Instant::now()));
        if before != seq {
            *tail = Some((seq, Instant::now()));
            return false;
        }
        let least = self.ground.interval().saturating_mul(STANDS);
        since.elapsed() >= least.clamp(STANDS_LEAST, STANDS_MOST)
    }

    /// How long no coordinator has been heard of.
    fn silent(&self) -> Duration {
        match *self.shared.heard.lock() {
            Some(heard) => heard.at.elapsed(),
            None => self.began.elapsed(),
        }
    }

    /// What the others see, unless one of them goes first: the first of those that are there. That two go is harmless, and costs a
    /// claim.
    async fn is_its_turn(&self) -> Option<Others> {
        let before = self.shared.heard.lock().map(|heard| heard.from);
        let late = |others: &Others| {
            // Whoever coordinated goes first, if it is there.
            let first = |other: &Peer| other.id < self.shared.me.id || Some(*other) == before;
            let rank = self.joining(others).filter(first).count();
            let turn = LEASE * u32::try_from(rank).unwrap_or(u32::MAX);
            rank == 0 || self.silent() >= LEASE * LOST + turn
        };
        let until = (self.began + GATHER).max(Instant::now() + GATHER_AGAIN);
        loop {
            let others = self.look().await?;
            if !late(&others) {
                return None;
            }
            let missed = self.shared.known.lock().len() > others.len() + 1;
            if !missed || Instant::now() >= until {
                return Some(others);
            }
            tokio::time::sleep(LEASE / 8).await;
        }
    }

    async fn coordinate(
        &self,
        others: &Others,
        log: Option<JobLog>,
        coordinated: &AtomicBool,
    ) -> Result<Led> {
        let me = self.shared.me;
        let mut named = others.values().filter_map(|o| o.coordinator);
        if named.any(|c| c != me) {
            return Ok(Led::Not);
        }
        // If another worker has written to it since, the claim says so.
        let goes_on = log.is_some();
        let (log, adopts) = match log {
            Some(log) => (log, None),
            None => self.ground.log().await?,
        };
        let left = self.shared.left.borrow().clone();
        let last = log.fold().claim().map(|c| c.members.clone());
        let mut last = last.unwrap_or_default();
        last.retain(|id| left.iter().all(|l| l.id != *id));
        let first = self.tail.lock().is_none();
        let stands_still = self.stands_still(log.fold().seq());
        if first && others.is_empty() && !last.is_empty() && !last.contains(&me.id) {
            tracing::warn!(
                "none of the job's workers answers this one, which waits until their log stands still: if they run, the port of their exchange is closed to it"
            );
        }
        if !may_lead(me, &last, others, self.silent(), stands_still) {
            return Ok(Led::Not);
        }
        let held = self.shared.hold().await?;
        *self.tail.lock() = None;
        let _leading = Leading::begin(&self.shared);
        self.progress.coordinator(Some(me.id.get()), true);
        let facts = self.ground.facts(&log);
        let lines = self.joining(others).map(|o| (o, self.line(o, facts)));
        let lines: BTreeMap<Peer, Line> = lines.collect();
        let members: BTreeSet<Peer> = lines.keys().copied().collect();
        let team = Team::Workers {
            me,
            lines,
            exchange: Arc::new(Noting {
                net: self.net.clone(),
                shared: self.shared.clone(),
            }),
            held,
            goes_on,
        };
        tracing::info!(workers = members.len() + 1, "coordinating");
        coordinated.store(true, Ordering::Relaxed);
        let mut told = self.shared.stop.clone();
        let (stop, stopping) = watch::channel(*told.borrow_and_update());
        let mut lead = pin!(self.ground.lead(log, adopts, team, stopping));
        loop {
            let unasked = !*stop.borrow();
            tokio::select! {
                ended = &mut lead => return match ended.inspect_err(|e| self.doubt(e, &members))? {
                    (Outcome::Stopped { .. }, log) if !self.shared.is_stopping() => {
                        Ok(Led::Changed(Box::new(log)))
                    }
                    (ended, _) => Ok(Led::Ended(ended)),
                },
                () = self.changed(&members), if unasked => {
                    stop.send_replace(true);
                }
                () = self.told(&mut told), if unasked => {
                    stop.send_replace(true);
                }
            }
        }
    }

    fn doubt(&self, ended: &EngineError, members: &BTreeSet<Peer>) {
        let without = self
            .doubts
            .lock()
            .ended(ended, members.iter(), Instant::now());
        if let Some(worker) = without {
            tracing::warn!(
                %worker,
                "another worker does not reach it, again: it is gone without for a while; the network between their nodes is broken"
            );
        }
    }

    /// Until the next generation is to have other members, and they have loaded what they can.
    async fn changed(&self, members: &BTreeSet<Peer>) {
        let within = self.change(members).await;
        // Who comes or goes together with it makes one generation with it.
        tokio::time::sleep(LEASE / 2).await;
        self.load_ahead(within).await;
    }

    /// Until this worker is told to stop and the others, if they are to go on, have loaded what they can.
    async fn told(&self, told: &mut watch::Receiver<bool>) {
        if told.wait_for(|stop| *stop).await.is_err() {
            // Nobody can say so any more.
            std::future::pending::<()>().await;
        }
        // When a job is suspended all are told, at about the same time.
        let by = Instant::now() + LEASE;
        while !self.next_team().await.is_empty() {
            if Instant::now() >= by {
                return self.load_ahead(LEAVES).await;
            }
            tokio::time::sleep(LEASE / 8).await;
        }
    }

    /// Who would take part if a generation began now.
    async fn next_team(&self) -> BTreeSet<Peer> {
        let others = self.look().await.unwrap_or_default();
        let me = (!self.shared.is_stopping()).then_some(self.shared.me);
        self.joining(&others).chain(me).collect()
    }

    /// Until one of the generation's members leaves, or another worker comes. Answers how long loading ahead may take then.
    async fn change(&self, members: &BTreeSet<Peer>) -> Duration {
        let mut left = self.shared.left.subscribe();
        let leaves = async {
            let goes = |left: &BTreeSet<Peer>| !left.is_disjoint(members);
            // The sender is the worker's own.
            if left.wait_for(goes).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let comes = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let others = self.shared.others().into_iter();
                let absent = others.filter(|id| members.iter().all(|m| m.id != *id));
                let asked = absent.map(|id| tokio::time::timeout(ASK, ask(&*self.net, id)));
                let asked: Vec<_> = asked.collect();
                let answers = join_all(asked).await.into_iter().flatten().flatten();
                if answers.into_iter().any(|seen| self.takes(&seen)) {
                    return;
                }
            }
        };
        tokio::select! {
            () = leaves => {
                tracing::info!("a worker leaves");
                LEAVES
            }
            () = comes => {
                tracing::info!("a worker has come");
                COMES
            }
        }
    }

    fn line(&self, to: Peer, facts: LogFacts) -> Line {
        let (net, shared) = (self.net.clone(), self.shared.clone());
        let runs = shared.runs;
        remote::line(to.id, move |generation| async move {
            {
                let mut newest = shared.newest.lock();
                *newest = (*newest).max(generation);
            }
            let from = shared.me;
            let about = About::Membership(Membership {
                from,
                to,
                generation,
                log: facts.id,
                runs,
                markers: facts.markers,
            });
            net.talk(to.id, encode(&about)?).await
        })
    }
}

async fn ask(net: &dyn Net, other: MemberId) -> Result<Seen> {
    let mut talk = net.talk(other, encode(&About::Look)?).await?;
    let answer = talk.from.recv().await;
    let silent = || EngineError::retry("PR0320", format!("worker {other}"), "it does not answer");
    decode(&answer.ok_or_else(silent)?)
}

/// The job's end, told by another worker.
async fn over(ended: &mut watch::Receiver<Option<Ended>>) -> Result<Outcome> {
    let told = ended.wait_for(Option::is_some).await;
    let told = told.ok().and_then(|told| match told.as_ref()? {
        Ended::With(outcome) => Some(Ok(outcome.clone())),
        Ended::By(error) => Some(Err(error.in_words())),
    });
    match told {
        Some(ended) => ended,
        // The host lives as long as the process.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
