//! A job of several workers, each a process with its own volume. One of them coordinates, the others are its members: who does is
//! decided here, by what workers see of each other; who owns the job, by the log alone.
//!
//! ```text
//! look ─▶ may_lead ─▶ claim ─▶ generation ─▶ the end, told to all
//!   ▲                              │ a worker is lost, or comes
//!   └──────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use penstock_checkpoint::ids::{Generation, LogId, MemberId};
use penstock_checkpoint::log::JobLog;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::connectors::LogFacts;
use super::{Held, Team};
use crate::coordinator::progress::Progress;
use crate::coordinator::{Adopts, Outcome};
use crate::error::{EngineError, ErrorKind, Result};
use crate::member::protocol::FromMember;
use crate::member::remote::{self, Answer, LEASE, LOST, decode, encode};
use crate::member::team::Line;
use crate::network::{Exchange, Net, Peer, Talk};
use crate::planted::{Bug, planted};
use crate::process;

/// How long a first coordinator waits for the others to come up, and a later one for a worker that is started again.
const GATHER: Duration = Duration::from_secs(5);
const GATHER_AGAIN: Duration = LEASE;
/// How often a coordinator looks for workers that it goes without.
const LOOK: Duration = Duration::from_secs(1);
/// How long another worker may take to say what it sees.
const ASK: Duration = Duration::from_millis(300);

/// What a worker stands on: the job with its log and its volume, on a machine or in a simulation.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// Of the plan that it runs.
    fn plan_hash(&self) -> &str;
    /// What members must know of a log.
    fn facts(&self, log: &JobLog) -> LogFacts;
    /// The job's log, as it is now.
    async fn log(&self) -> Result<(JobLog, Option<Adopts>)>;
    /// Runs a generation as its coordinator, and as one of its members.
    async fn lead(&self, log: JobLog, adopts: Option<Adopts>, team: Team) -> Result<Outcome>;
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
    pub all: Vec<MemberId>,
    pub net: Arc<dyn Net>,
    /// Conversations that others begin.
    pub talks: mpsc::UnboundedReceiver<Talk>,
    /// True while this worker coordinates.
    pub leads: Arc<watch::Sender<bool>>,
}

/// What a conversation between workers is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum About {
    /// Whether there is a coordinator.
    Look,
    /// Who begins it coordinates, and the other is to be a member.
    Membership(Membership),
    /// The job has come to its end.
    End(Ended),
}

/// What a member must know before its first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    from: Peer,
    /// To whom it is said; another process that is this worker now refuses.
    to: Peer,
    generation: Generation,
    log: LogId,
    /// Of the coordinator; a worker that has another one does not take part.
    plan_hash: String,
    /// Partitions of the sinks' marker topics.
    markers: i32,
}

/// How the job came to its end: its outcome, or kind, code, object and words of what nobody here mends.
type Ended = std::result::Result<Outcome, (ErrorKind, String, String, String)>;

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    who: Peer,
    /// Of whom it has heard as the coordinator within three leases.
    coordinator: Option<Peer>,
}

/// What the others say of who coordinates, those that answer.
type Others = BTreeMap<Peer, Option<Peer>>;

/// Whether a worker may claim the job: no worker hears of a coordinator but of this one, and of the members of the last claim a
/// majority says so, itself counted, or none of them answers and it is silent for three leases.
fn may_lead(me: Peer, last: &[MemberId], others: &Others, silent: Duration) -> bool {
    if !others.values().all(|c| c.is_none_or(|c| c == me)) {
        return false;
    }
    let answers = |m: &MemberId| others.keys().any(|o| o.id == *m);
    let say = last.iter().filter(|m| **m == me.id || answers(m)).count();
    let any = last.iter().any(|m| *m != me.id && answers(m));
    2 * say > last.len() || last.is_empty() || !any && silent >= LEASE * LOST
}

/// A worker, until the job ends, it is told to stop, or it cannot go on.
pub(crate) struct Worker {
    me: Peer,
    all: Vec<MemberId>,
    net: Arc<dyn Net>,
    ground: Arc<dyn Ground>,
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
    began: Instant,
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
    heard: Mutex<Option<Heard>>,
    leads: Arc<watch::Sender<bool>>,
    /// The highest generation that was coordinated here or elsewhere, as far as this worker knows.
    newest: Mutex<Generation>,
    /// Another worker coordinates a newer generation than this one does.
    superseded: watch::Sender<Generation>,
    ended: watch::Sender<Option<Ended>>,
    /// Held by whoever has the volume open.
    volume: Arc<AsyncMutex<()>>,
}

impl Shared {
    fn hear(&self, from: Peer) {
        let (at, over) = (Instant::now(), false);
        *self.heard.lock() = Some(Heard { from, at, over });
    }

    fn seen(&self, me: Peer) -> Seen {
        let heard = *self.heard.lock();
        let recent = heard.filter(|h| !h.over && h.at.elapsed() < LEASE * LOST);
        let leading = self.leads.borrow().then_some(me);
        Seen {
            who: me,
            coordinator: leading.or(recent.map(|h| h.from)),
        }
    }
}

/// What became of an attempt to coordinate.
enum Led {
    Ended(Outcome),
    /// Another one does, or it is not time.
    Not,
    /// A worker came that the generation went without.
    Joined,
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
            all,
            net,
            talks,
            leads,
        } = post;
        let me = net.me();
        let shared = Arc::new(Shared {
            me,
            heard: Mutex::default(),
            leads,
            newest: Mutex::new(Generation::ZERO),
            superseded: watch::channel(Generation::ZERO).0,
            ended: watch::channel(None).0,
            volume: Arc::default(),
        });
        let host = Arc::new(Host {
            me,
            net: net.clone(),
            ground: ground.clone(),
            shared: shared.clone(),
        });
        process::spawn(host.run(talks));
        Self {
            me,
            all,
            net,
            ground,
            shared,
            progress,
            stop,
            began: Instant::now(),
        }
    }

    /// Whether it has taken part in a generation of another one.
    pub(crate) fn was_member(&self) -> bool {
        self.shared.heard.lock().is_some()
    }

    /// Until the job has ended, here or elsewhere; an error that passes is for the caller to come again after.
    pub(crate) async fn run(&self) -> Result<Outcome> {
        let mut ended = self.shared.ended.subscribe();
        let mut stop = self.stop.clone();
        loop {
            // It did, and that is over.
            self.shared.leads.send_if_modified(std::mem::take);
            let seen = self.shared.seen(self.me);
            if seen.coordinator.is_none_or(|c| c == self.me) {
                let led = tokio::select! {
                    led = self.lead() => led,
                    over = over(&mut ended) => return over,
                };
                match led? {
                    Led::Ended(outcome) => return Ok(outcome),
                    Led::Joined => continue,
                    Led::Not => {}
                }
            }
            tokio::select! {
                over = over(&mut ended) => return over,
                () = tokio::time::sleep(LEASE / 4) => {}
            }
            let coordinated = self.shared.seen(self.me).coordinator.is_some();
            if *stop.borrow_and_update() && !coordinated {
                return Ok(super::cut_short(&self.progress));
            }
        }
    }

    /// Tells every worker how the job ended, unless one of them has said so. Who does not hear of it coordinates next, and comes to
    /// the same end.
    pub(crate) async fn tell_end(&self, ended: &Result<Outcome>) {
        if self.shared.ended.borrow().is_some() {
            return;
        }
        let ended: Ended = match ended {
            Ok(outcome) => Ok(outcome.clone()),
            Err(e) => Err((
                e.kind,
                e.code.to_owned(),
                e.object.clone(),
                e.message.clone(),
            )),
        };
        let tell = self.others().map(|other| {
            let about = encode(&About::End(ended.clone()));
            async move {
                if let Ok(mut talk) = self.net.talk(other, about?).await {
                    // It closes when it has heard.
                    let _ = tokio::time::timeout(ASK, talk.from.recv()).await;
                }
                Ok::<(), EngineError>(())
            }
        });
        join_all(tell).await;
    }

    fn others(&self) -> impl Iterator<Item = MemberId> {
        let me = self.me.id;
        self.all.iter().copied().filter(move |other| *other != me)
    }

    /// What the others see, those that answer; `None` where this worker is not what is found at its own address: a newer process
    /// is, or nobody gets there.
    async fn look(&self) -> Option<Others> {
        let asked = self.all.iter().map(|other| async move {
            let seen = tokio::time::timeout(ASK, ask(&*self.net, *other)).await;
            seen.ok()?.ok()
        });
        let seen = join_all(asked).await.into_iter().flatten();
        let mut seen: Others = seen.map(|s| (s.who, s.coordinator)).collect();
        let here = seen.remove(&self.me).is_some();
        (here || planted(Bug::AnyProcess)).then_some(seen)
    }

    /// One generation with this worker as its coordinator, where it may be.
    async fn lead(&self) -> Result<Led> {
        let mut superseded = self.shared.superseded.subscribe();
        let Some(others) = self.is_its_turn().await else {
            return Ok(Led::Not);
        };
        let coordinated = AtomicBool::new(false);
        tokio::select! {
            led = self.coordinate(&others, &coordinated) => led,
            _ = superseded.changed() => {
                if !coordinated.load(Ordering::Relaxed) {
                    return Ok(Led::Not);
                }
                let object = self.me.to_string();
                let text = "another worker coordinates a newer generation";
                Err(EngineError::new(ErrorKind::Fenced, "PR0401", object, text))
            }
        }
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
            let first = |other: &&Peer| other.id < self.me.id || Some(**other) == before;
            let rank = others.keys().filter(first).count();
            let turn = LEASE * u32::try_from(rank).unwrap_or(u32::MAX);
            rank == 0 || self.silent() >= LEASE * LOST + turn
        };
        let until = (self.began + GATHER).max(Instant::now() + GATHER_AGAIN);
        loop {
            let others = self.look().await?;
            if !late(&others) {
                return None;
            }
            if others.len() + 1 >= self.all.len() || Instant::now() >= until {
                return Some(others);
            }
            tokio::time::sleep(LEASE / 8).await;
        }
    }

    async fn coordinate(&self, others: &Others, coordinated: &AtomicBool) -> Result<Led> {
        let me = self.me;
        let (log, adopts) = self.ground.log().await?;
        let last = log.fold().claim().map(|c| c.members.clone());
        if !may_lead(me, &last.unwrap_or_default(), others, self.silent()) {
            return Ok(Led::Not);
        }
        self.shared.leads.send_replace(true);
        let held = Arc::new(self.shared.volume.clone().lock_owned().await);
        let facts = self.ground.facts(&log);
        let lines = others.keys().map(|o| (*o, self.line(*o, facts)));
        let lines: BTreeMap<Peer, Line> = lines.collect();
        let answers = |id: &MemberId| others.keys().any(|o| o.id == *id);
        let absent: Vec<MemberId> = self.others().filter(|o| !answers(o)).collect();
        let team = Team::Workers {
            me,
            lines,
            exchange: self.net.clone(),
            held: Some(held),
        };
        tracing::info!(workers = others.len() + 1, "coordinating");
        coordinated.store(true, Ordering::Relaxed);
        tokio::select! {
            ended = self.ground.lead(log, adopts, team) => ended.map(Led::Ended),
            () = self.come(&absent) => Ok(Led::Joined),
        }
    }

    /// Until one of these answers.
    async fn come(&self, absent: &[MemberId]) {
        if absent.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let asked = absent.iter().map(|other| ask(&*self.net, *other));
            if join_all(asked).await.iter().any(Result::is_ok) {
                tracing::info!("a worker has come");
                return;
            }
        }
    }

    fn line(&self, to: Peer, facts: LogFacts) -> Line {
        let (net, shared) = (self.net.clone(), self.shared.clone());
        let plan_hash = self.ground.plan_hash().to_owned();
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
                plan_hash,
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
    match told.ok().and_then(|told| told.clone()) {
        Some(Ok(outcome)) => Ok(outcome),
        Some(Err((kind, code, object, message))) => {
            let known = penstock_crds::codes::explain(&code).map(|entry| entry.code.as_str());
            Err(EngineError::new(
                kind,
                known.unwrap_or("PR0304"),
                object,
                message,
            ))
        }
        // The host lives as long as the process.
        None => std::future::pending().await,
    }
}

/// The half of a worker that answers the others.
struct Host {
    me: Peer,
    net: Arc<dyn Net>,
    ground: Arc<dyn Ground>,
    shared: Arc<Shared>,
}

impl Host {
    async fn run(self: Arc<Self>, mut talks: mpsc::UnboundedReceiver<Talk>) {
        // Ends the membership that runs.
        let mut running: Option<oneshot::Sender<()>> = None;
        while let Some(talk) = talks.recv().await {
            match decode::<About>(&talk.about) {
                Ok(About::Look) => {
                    let seen = encode(&self.shared.seen(self.me)).unwrap_or_default();
                    let _ = talk.to.send(seen);
                }
                Ok(About::End(ended)) => {
                    self.shared.ended.send_replace(Some(ended));
                    let _ = talk.to.send(Bytes::new());
                }
                Ok(About::Membership(membership)) => {
                    if membership.to != self.me || !self.accepts(membership.generation) {
                        continue;
                    }
                    self.shared.hear(membership.from);
                    let (end, ending) = oneshot::channel();
                    // The one before, if it still runs, is over.
                    drop(running.replace(end));
                    process::spawn(self.clone().attend(talk, membership, ending));
                }
                Err(error) => tracing::warn!(%error, with = %talk.with, "not understood"),
            }
        }
    }

    /// A lower generation is refused; a higher one ends what runs here.
    fn accepts(&self, generation: Generation) -> bool {
        let mut newest = self.shared.newest.lock();
        if generation < *newest {
            return false;
        }
        *newest = generation;
        self.shared.superseded.send_replace(generation);
        true
    }

    async fn attend(
        self: Arc<Self>,
        mut talk: Talk,
        membership: Membership,
        ending: oneshot::Receiver<()>,
    ) {
        let (generation, from) = (membership.generation, membership.from);
        let attended = tokio::select! {
            attended = self.member(&mut talk, membership) => attended,
            // Of one that is newer more has been heard by now.
            _ = ending => return,
        };
        if let Some(heard) = &mut *self.shared.heard.lock() {
            heard.over |= heard.from == from;
        }
        if let Err(error) = attended {
            tracing::warn!(%error, %generation, "this worker's part of the generation has ended");
            if let Ok(words) = encode(&Answer::Say(FromMember::Failed(error))) {
                let _ = talk.to.send(words);
            }
        }
    }

    async fn member(&self, talk: &mut Talk, membership: Membership) -> Result<()> {
        if membership.plan_hash != self.ground.plan_hash() {
            let object = self.me.to_string();
            let text = "it has another plan than the coordinator: the workers were started with different manifests";
            return Err(EngineError::retry("PR0320", object, text));
        }
        // Of the generation before, if that still ends.
        let held = Arc::new(self.shared.volume.clone().lock_owned().await);
        let facts = LogFacts {
            id: membership.log,
            markers: membership.markers,
        };
        let exchange: Arc<dyn Exchange> = self.net.clone();
        let line = self
            .ground
            .member(self.me.id, facts, exchange, Some(held))?;
        let Line { to, mut from } = line;
        let with = membership.from;
        let beat = || self.shared.hear(with);
        remote::attend(talk, &to, &mut from, beat).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> MemberId {
        MemberId::new(n)
    }

    fn peer(n: u32) -> Peer {
        Peer {
            id: id(n),
            process: 7,
        }
    }

    fn others(answers: &[(u32, Option<u32>)]) -> Others {
        let one = |(n, coordinator): &(u32, Option<u32>)| (peer(*n), coordinator.map(peer));
        answers.iter().map(one).collect()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn with_no_claim_yet_any_worker_may_lead() {
        assert!(may_lead(peer(2), &[], &others(&[]), Duration::ZERO));
        assert!(may_lead(
            peer(2),
            &[],
            &others(&[(0, None)]),
            Duration::ZERO
        ));
    }

    #[test]
    fn nobody_leads_while_another_hears_of_a_coordinator() {
        let last = [0, 1, 2].map(id);
        assert!(!may_lead(peer(1), &last, &others(&[(2, Some(0))]), LONG));
        assert!(!may_lead(peer(1), &[], &others(&[(2, Some(0))]), LONG));
        let of_me = others(&[(2, Some(1)), (0, None)]);
        let before = Peer {
            process: 6,
            ..peer(1)
        };
        assert!(
            may_lead(peer(1), &last, &of_me, Duration::ZERO),
            "it coordinated itself"
        );
        assert!(
            !may_lead(before, &last, &of_me, LONG),
            "a newer process of its does"
        );
    }

    #[test]
    fn a_majority_of_the_last_claims_members_must_miss_the_coordinator() {
        let last = [0, 1, 2].map(id);
        assert!(may_lead(
            peer(1),
            &last,
            &others(&[(2, None)]),
            Duration::ZERO
        ));
        assert!(!may_lead(peer(1), &last, &others(&[]), Duration::ZERO));
        assert!(
            !may_lead(peer(7), &last, &others(&[(2, None)]), LONG),
            "one of three"
        );
        let two = others(&[(1, None), (2, None)]);
        assert!(may_lead(peer(7), &last, &two, Duration::ZERO));
    }

    #[test]
    fn where_no_member_answers_three_leases_are_enough() {
        let last = [0, 1, 2].map(id);
        assert!(may_lead(peer(1), &last, &others(&[]), LEASE * LOST));
        assert!(may_lead(peer(7), &last, &others(&[]), LEASE * LOST));
        assert!(!may_lead(peer(7), &last, &others(&[]), LEASE));
    }
}
