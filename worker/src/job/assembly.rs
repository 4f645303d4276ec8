//! A generation, put together: the members of this process with their slots, the lines to those elsewhere, and the coordinator.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use penstock_checkpoint::gc::Retention;
use penstock_checkpoint::ids::{Entropy, LogId, MemberId, Nonce, SystemEntropy};
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::store::CheckpointStore;
use penstock_crds::job::StreamingJob;
use penstock_plan::Plan;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc, watch};
use tokio::task::JoinHandle;

use super::connectors::Connected;
use super::slots::{GraphSlots, SlotThreads, SourceParts};
use crate::clock::Clock;
use crate::coordinator::progress::Progress;
use crate::coordinator::{
    AcceptLoss, Adopts, Asked, Coordinator, GoBack, Outcome, Parts, Release, Settings, SourceInfo,
    Trigger, bases,
};
use crate::error::{EngineError, Result};
use crate::fault;
use crate::member::Member;
use crate::member::publish::Publishers;
use crate::member::seat::Seat;
use crate::member::team::{self, Line};
use crate::network::hub::Hub;
use crate::network::{Exchange, Peer};
use crate::process;
use crate::state::{Budget, Instances, Planted, StateOptions, StateWorker};
use crate::task::Policy;

/// What a worker has that one generation uses at a time: its volume, and open publishers.
#[derive(Clone, Default)]
pub(crate) struct Kept {
    /// What the generation before left open.
    state: Arc<AsyncMutex<Option<StateWorker>>>,
    lent: Arc<Mutex<Option<Lent>>>,
    publishers: Publishers,
}

/// What may be loaded ahead while a generation has the volume.
#[derive(Clone)]
pub(crate) struct Lent {
    log: LogId,
    /// That it has.
    running: Instances,
    pub ahead: Instances,
}

impl Lent {
    fn of(state: &StateWorker, log: LogId) -> Self {
        Self {
            log,
            running: state.instances().clone(),
            ahead: state.ahead(),
        }
    }

    /// Those of the key groups that are not at work here: what is at work is brought on by the commits.
    pub(crate) fn lacks(&self, groups: impl Iterator<Item = u16>) -> Vec<u16> {
        let running = self.running.groups();
        groups.filter(|g| !running.contains(g)).collect()
    }
}

impl Kept {
    /// Once the generation before has let go of it, and nobody loads ahead any more.
    pub(crate) async fn hold(&self) -> Held {
        let state = self.state.clone().lock_owned().await;
        let ahead = self.lent.lock().take();
        if let Some(lent) = &ahead {
            lent.ahead.settled().await;
        }
        Some(Arc::new(Hold {
            state: Mutex::new(state),
            ahead: Mutex::new(ahead),
            lent: self.lent.clone(),
            publishers: self.publishers.clone(),
        }))
    }

    /// What may be loaded ahead for a log: beside the generation that runs, or beside nothing, on a volume that `open` opens.
    pub(crate) fn lent(
        &self,
        log: LogId,
        open: impl FnOnce() -> Result<StateWorker>,
    ) -> Result<Lent> {
        let lent = self.lent.lock().clone();
        if let Some(lent) = lent.filter(|l| l.log == log) {
            return Ok(lent);
        }
        let mut state = self.state.try_lock().map_err(|_| {
            let text = "a generation begins or ends here";
            EngineError::retry("PR0320", "volume", text)
        })?;
        let kept = state.take().filter(|s| s.serves_again(&log.to_string()));
        let opened = kept.map_or_else(open, Ok)?;
        let lent = Lent::of(&opened, log);
        *state = Some(opened);
        *self.lent.lock() = Some(lent.clone());
        Ok(lent)
    }

    /// Makes what is committed survive the end of the process.
    pub(crate) async fn close(&self) {
        if let Some(state) = &*self.state.lock().await {
            flush(state);
        }
    }
}

/// The right to use it; whoever has the volume open keeps a part of it.
pub(crate) struct Hold {
    state: Mutex<OwnedMutexGuard<Option<StateWorker>>>,
    ahead: Mutex<Option<Lent>>,
    /// For who loads ahead from now on.
    lent: Arc<Mutex<Option<Lent>>>,
    publishers: Publishers,
}

pub(crate) type Held = Option<Arc<Hold>>;

impl Hold {
    /// What the generation before left and what was loaded ahead, if it can go on with this log, or else what `open` opens.
    fn take(&self, log: LogId, open: impl FnOnce() -> Result<StateWorker>) -> Result<StateWorker> {
        let kept = self.state.lock().take();
        let ahead = self.ahead.lock().take().filter(|l| l.log == log);
        let kept = kept.filter(|state| state.serves_again(&log.to_string()));
        let state = match kept {
            Some(state) => {
                if let Some(lent) = ahead {
                    state.adopt(&lent.ahead);
                }
                state
            }
            None => {
                // Closed before it is opened anew.
                drop(ahead);
                open()?
            }
        };
        *self.lent.lock() = Some(Lent::of(&state, log));
        Ok(state)
    }

    fn keep(&self, state: StateWorker) {
        **self.state.lock() = Some(state);
    }
}

/// The volume's state for a generation: what was kept of it, or what `open` opens.
pub(crate) fn state(
    held: Option<&Hold>,
    log: LogId,
    open: impl FnOnce() -> Result<StateWorker>,
) -> Result<StateWorker> {
    match held {
        Some(held) => held.take(log, open),
        None => open(),
    }
}

/// Makes what is committed survive a kill: the next start of the process replays nothing.
pub(crate) fn flush(state: &StateWorker) {
    if let Err(error) = state.flush() {
        tracing::warn!(%error, "the volume was not flushed; the next start replays");
    }
}

/// Who takes part in a generation.
pub(crate) enum Team {
    /// So many members, all in this process.
    Here(usize),
    /// One in each worker.
    Workers {
        me: Peer,
        /// To the others.
        lines: BTreeMap<Peer, Line>,
        exchange: Arc<dyn Exchange>,
        held: Held,
        /// This worker has just ended the generation before.
        goes_on: bool,
    },
}

impl Team {
    /// By their places.
    pub(crate) fn members(&self) -> Vec<Peer> {
        let number = |n| Peer::here(MemberId::new(u32::try_from(n).unwrap_or(u32::MAX)));
        match self {
            Self::Here(members) => (0..*members).map(number).collect(),
            Self::Workers { me, lines, .. } => {
                let mut ids: Vec<Peer> = lines.keys().copied().collect();
                ids.push(*me);
                ids.sort_unstable();
                ids
            }
        }
    }

    /// Those of this process.
    fn own(&self) -> Vec<Peer> {
        match self {
            Self::Here(_) => self.members(),
            Self::Workers { me, .. } => vec![*me],
        }
    }

    pub(crate) fn held(&self) -> Option<&Hold> {
        match self {
            Self::Here(_) => None,
            Self::Workers { held, .. } => held.as_deref(),
        }
    }

    pub(crate) fn goes_on(&self) -> bool {
        matches!(self, Self::Workers { goes_on: true, .. })
    }

    /// Channels between members, the lines to those elsewhere, and the right to the volume.
    pub(crate) fn ways(self) -> (Arc<dyn Exchange>, BTreeMap<Peer, Line>, Held) {
        match self {
            Self::Here(_) => (Arc::new(Hub::default()), BTreeMap::new(), None),
            Self::Workers {
                exchange,
                lines,
                held,
                ..
            } => (exchange, lines, held),
        }
    }
}

/// What a generation runs on, once its log is open.
pub(super) struct Setup {
    pub log: JobLog,
    pub connected: Connected,
    pub clock: Arc<dyn Clock>,
    /// Folder of the state; `None`: in memory.
    pub state: Option<PathBuf>,
    /// Of this process.
    pub memory: usize,
    /// Of each member.
    pub slots: usize,
    pub threads: SlotThreads,
    pub at_once: bool,
    pub trigger: Trigger,
    pub accept_loss: Vec<AcceptLoss>,
    pub release: Option<Release>,
    pub adopts: Option<Adopts>,
    pub go_back: Option<GoBack>,
    pub asked: watch::Receiver<Asked>,
}

/// One generation: members with their slots, and the coordinator. May be dropped at any time, as a crash would.
/// Gives the log back.
pub(super) async fn serve(
    job: &StreamingJob,
    plan: &Plan,
    setup: Setup,
    team: Team,
    stop: watch::Receiver<bool>,
    progress: Arc<Progress>,
) -> Result<(Outcome, JobLog)> {
    let Setup {
        log,
        connected,
        clock,
        state: dir,
        memory,
        slots,
        threads,
        at_once,
        trigger,
        accept_loss,
        release,
        adopts,
        go_back,
        asked,
    } = setup;
    let key_groups = log.fold().key_groups();
    let sinks: Vec<(String, u16)> = connected
        .sinks
        .iter()
        .map(|(name, sink, _)| (name.clone(), sink.shards()))
        .collect();
    let own = team.own();
    let memory_of_each = memory / own.len();
    let volume = |peer: &Peer| {
        let options = Volume {
            id: peer.id,
            dir: dir.as_deref(),
            key_groups,
            log: log.fold().log(),
            memory: memory_of_each,
        };
        let state = state(team.held(), options.log, || options.open(plan))?;
        Ok((*peer, state))
    };
    let states = own.iter().map(volume).collect::<Result<Vec<_>>>()?;
    let spec = &job.spec.checkpoint;
    let settings = Settings {
        job: job.metadata.name.clone().unwrap_or_default(),
        trigger,
        interval: spec.interval.into(),
        retention: Retention {
            epochs: u64::from(spec.retention.epochs),
            duration: spec.retention.duration.into(),
        },
        plan_hash: plan.plan_hash.clone(),
        members: team.members(),
        goes_on: team.goes_on(),
        slots,
        sinks,
        key_groups,
        base_epochs: fault::base_epochs().unwrap_or(bases::EPOCHS),
        epoch_bytes: memory as u64 / 16,
        accept_loss,
        release,
        adopts,
        go_back,
        asked,
    };
    let (exchange, lines, held) = team.ways();
    assemble(Assembly {
        works: Works {
            log: log.fold().log(),
            store: log.store().clone(),
            slots,
            held,
            factory: Arc::new(GraphSlots {
                graph: Arc::new(plan.graph.clone()),
                key_groups,
                exchange,
                sources: connected.sources,
                sinks: connected.sinks,
                clock,
                early_bytes: early_bytes(memory_of_each, slots),
                at_once,
                threads,
            }),
        },
        settings,
        log,
        sources: connected.infos,
        states,
        lines,
        nonces: Box::new(|| Box::new(|| Nonce::from_bytes(SystemEntropy.bytes16()))),
        stop,
        progress,
    })
    .await
}

/// Bytes of state and staged outputs at which one of a member's slots asks for an early barrier.
pub(super) const fn early_bytes(memory: usize, slots: usize) -> usize {
    memory / 8 / slots
}

/// Where a member has its state.
pub(super) struct Volume<'a> {
    pub id: MemberId,
    /// `None`: in memory.
    pub dir: Option<&'a Path>,
    pub key_groups: u16,
    pub log: LogId,
    /// Bytes.
    pub memory: usize,
}

impl Volume<'_> {
    pub fn open(&self, plan: &Plan) -> Result<StateWorker> {
        StateWorker::open(StateOptions {
            // That of the first is where that of the only one is.
            dir: self.dir.map(|dir| match self.id.get() {
                0 => dir.to_owned(),
                number => dir.with_extension(number.to_string()),
            }),
            total_groups: self.key_groups,
            log_id: self.log.to_string(),
            schema_fingerprint: state_fingerprint(plan),
            nonce: SystemEntropy.number(),
            budget: Budget::new(self.memory),
            stateful: plan.graph.nodes.iter().any(|n| n.fingerprint.is_some()),
            planted: Planted::default(),
        })
    }
}

/// Draws the nonces of a member.
pub(crate) type Nonces = Box<dyn FnMut() -> Nonce + Send + Sync>;

/// What a generation is put together from: on a machine by `serve`, in a simulation by its world.
pub(crate) struct Assembly {
    pub settings: Settings,
    pub log: JobLog,
    pub sources: Vec<SourceInfo>,
    pub works: Works,
    /// Of each member in this process.
    pub states: Vec<(Peer, StateWorker)>,
    /// To the members elsewhere.
    pub lines: BTreeMap<Peer, Line>,
    /// Makes each member's.
    pub nonces: Box<dyn FnMut() -> Nonces + Send + Sync>,
    pub stop: watch::Receiver<bool>,
    pub progress: Arc<Progress>,
}

/// One generation of its members and their coordinator, to its end.
pub(crate) async fn assemble(assembly: Assembly) -> Result<(Outcome, JobLog)> {
    let Assembly {
        settings,
        log,
        sources,
        works,
        states,
        mut lines,
        mut nonces,
        stop,
        progress,
    } = assembly;
    let mut members = Vec::new();
    for (peer, state) in states {
        let (line, member) = works.member(peer.id, state, nonces());
        lines.insert(peer, line);
        members.push(member);
    }
    let clock = works.factory.clock.clone();
    let (to_team, team_inbox) = mpsc::unbounded_channel();
    let (to_coordinator, inbox) = mpsc::unbounded_channel();
    let shards = settings.sinks.iter().map(|(_, shards)| *shards).collect();
    let pure = team::Team::new(lines.len(), settings.slots, settings.key_groups, shards);
    // In the order of their places.
    let lines = lines.into_values().collect();
    process::spawn(team::carry(pure, team_inbox, to_coordinator, lines));
    let mut coordinator = Coordinator::new(Parts {
        settings,
        log,
        sources,
        member: to_team,
        inbox,
        clock,
        stop,
        progress,
    });
    let outcome = coordinator.run().await;
    // The members end when nobody speaks to them any more.
    let log = coordinator.into_log();
    tracing::debug!("the generation has ended");
    // A member ends its slots; a slot that hangs in a connector would hang the process, so that has a bound.
    let ended = futures::future::join_all(members);
    if tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .is_err()
    {
        tracing::warn!("a member did not end within 20 s");
    }
    Ok((outcome?, log))
}

/// What the members of a process are made of.
pub(crate) struct Works {
    pub log: LogId,
    pub store: CheckpointStore,
    /// Of each member.
    pub slots: usize,
    pub held: Held,
    pub factory: Arc<GraphSlots>,
}

impl Works {
    /// Begins a member; it ends when its line is dropped.
    pub(crate) fn member(
        &self,
        id: MemberId,
        state: StateWorker,
        nonces: Nonces,
    ) -> (Line, JoinHandle<()>) {
        let (to, inbox) = mpsc::unbounded_channel();
        let (outbox, from) = mpsc::unbounded_channel();
        let GraphSlots {
            graph,
            sources,
            sinks,
            key_groups,
            ..
        } = &*self.factory;
        let stateful = graph.nodes.iter().filter(|n| n.fingerprint.is_some());
        let lettered = |s: &SourceParts| matches!(s.rules.on_late, Policy::DeadLetter(_));
        let held = self.held.as_ref();
        let member = Member {
            id,
            log: self.log,
            store: self.store.clone(),
            key_groups: *key_groups,
            seat: Seat::alone(self.slots),
            state,
            shares_late: stateful.count() > 1 && sources.iter().any(lettered),
            sinks: sinks.clone(),
            sources: sources.iter().map(|s| s.rules.name.clone()).collect(),
            slots: self.factory.clone(),
            nonces,
            publishers: held.map(|h| h.publishers.clone()).unwrap_or_default(),
            inbox,
            outbox,
        };
        let held = self.held.clone();
        let running = process::spawn(async move {
            let state = member.run().await;
            match held {
                Some(held) => held.keep(state),
                None => flush(&state),
            }
        });
        (Line { to, from }, running)
    }
}

/// Of everything that the bytes of state depend on: an instance written under another one is not used.
pub(crate) fn state_fingerprint(plan: &Plan) -> String {
    let of = plan
        .graph
        .nodes
        .iter()
        .filter_map(|n| Some(format!("{}={:016x}", n.uid.0, n.fingerprint?.0)));
    let text = of.collect::<Vec<_>>().join(";");
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}
