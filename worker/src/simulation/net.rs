//! The way between simulated workers. Words and rows take their time and keep their order; what goes to a process that is dead
//! breaks the stream, what goes to one that is stalled, or over a way that is cut, waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use penstock_checkpoint::ids::MemberId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use crate::error::{EngineError, Result};
use crate::job::workers::Post;
use crate::message::Message;
use crate::network::hub::Hub;
use crate::network::{Channel, Exchange, Failing, Inlet, Net, Outlet, Peer, Talk, local};
use crate::planted::{Bug, planted};
use crate::process::simulated::Process;

/// How often who waits looks whether the other is still there.
const LOOK: Duration = Duration::from_millis(20);
/// How long a worker is tried that is not reached.
const PATIENCE: Duration = Duration::from_secs(2);

/// All ways of a world. Clones are the same.
#[derive(Clone)]
pub(super) struct Board(Arc<Mutex<State>>);

struct State {
    rng: StdRng,
    most: Duration,
    /// The newest process of each worker.
    doors: BTreeMap<MemberId, Door>,
    cut: BTreeSet<(MemberId, MemberId)>,
    joined: u64,
}

#[derive(Clone)]
struct Door {
    peer: Peer,
    process: Process,
    talks: mpsc::UnboundedSender<Talk>,
    inbox: Arc<Hub>,
    failing: Arc<Mutex<Option<(u64, Failing)>>>,
}

impl Door {
    fn broke(&self, generation: u64, with: MemberId) {
        if let Some((of, failing)) = &*self.failing.lock()
            && *of == generation
        {
            failing(away(with));
        }
    }
}

impl Board {
    pub(super) fn new(seed: u64, most: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            most,
            doors: BTreeMap::new(),
            cut: BTreeSet::new(),
            joined: 0,
        })))
    }

    /// Nothing goes between these until the way is mended.
    pub(super) fn cut(&self, a: MemberId, b: MemberId) {
        let mut state = self.0.lock();
        state.cut.insert((a, b));
        state.cut.insert((b, a));
    }

    pub(super) fn mend(&self) {
        self.0.lock().cut.clear();
    }

    /// A process that is this worker from now on.
    pub(super) fn join(&self, me: MemberId, all: u32, process: &Process) -> Post {
        let (to, talks) = mpsc::unbounded_channel();
        let mut state = self.0.lock();
        state.joined += 1;
        let peer = Peer {
            id: me,
            process: state.joined,
        };
        let door = Door {
            peer,
            process: process.clone(),
            talks: to,
            inbox: Arc::default(),
            failing: Arc::default(),
        };
        state.doors.insert(me, door.clone());
        Post {
            known: (0..all).map(MemberId::new).collect(),
            net: Arc::new(Way {
                board: self.clone(),
                me,
                door,
            }),
            talks,
            leads: Arc::new(watch::channel(false).0),
        }
    }

    /// Whether the worker's newest process is at work.
    pub(super) fn is_at_work(&self, worker: MemberId) -> bool {
        let state = self.0.lock();
        let door = state.doors.get(&worker);
        door.is_some_and(|door| door.process.is_running())
    }

    fn door(&self, of: MemberId) -> Option<Door> {
        let state = self.0.lock();
        let door = state.doors.get(&of)?;
        (!door.process.is_dead()).then(|| door.clone())
    }

    fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.0.lock().cut.contains(&(from, to))
    }

    async fn pass(&self, from: MemberId, to: MemberId) {
        let delay = {
            let mut state = self.0.lock();
            let most = state.most.as_micros() as u64;
            Duration::from_micros(state.rng.random_range(0..=most))
        };
        sleep(delay).await;
        while self.is_cut(from, to) {
            sleep(LOOK).await;
        }
    }

    /// Words of one side, until a side is gone.
    async fn carry(
        self,
        (from, of): (MemberId, Process),
        (to, at): (MemberId, Process),
        mut words: mpsc::UnboundedReceiver<Bytes>,
        out: mpsc::UnboundedSender<Bytes>,
    ) {
        loop {
            let word = tokio::time::timeout(LOOK, words.recv()).await;
            if of.is_dead() || at.is_dead() || out.is_closed() {
                return;
            }
            match word {
                Err(_) => {}
                Ok(None) => return self.pass(from, to).await,
                Ok(Some(word)) => {
                    self.pass(from, to).await;
                    let _ = out.send(word);
                }
            }
        }
    }
}

/// One process's way to the others.
struct Way {
    board: Board,
    me: MemberId,
    door: Door,
}

#[async_trait]
impl Net for Way {
    fn me(&self) -> Peer {
        self.door.peer
    }

    async fn talk(&self, with: MemberId, about: Bytes) -> Result<Talk> {
        if self.board.is_cut(self.me, with) {
            sleep(PATIENCE).await;
        }
        let there = self.board.door(with);
        let there = there.filter(|_| !self.board.is_cut(self.me, with));
        let there = there.ok_or_else(|| away(with))?;
        let (to, mine) = mpsc::unbounded_channel();
        let (their_end, from) = mpsc::unbounded_channel();
        let (answer, theirs) = mpsc::unbounded_channel();
        let (my_end, said) = mpsc::unbounded_channel();
        let (here, other) = (
            (self.me, self.door.process.clone()),
            (with, there.process.clone()),
        );
        let board = self.board.clone();
        let talk = Talk {
            with: self.me,
            about: about.clone(),
            to: answer,
            from,
        };
        let me = self.me;
        tokio::spawn(async move {
            board.pass(me, with).await;
            let _ = there.talks.send(talk);
            let there = board
                .clone()
                .carry(here.clone(), other.clone(), mine, their_end);
            let back = board.clone().carry(other, here, theirs, my_end);
            tokio::join!(there, back);
        });
        Ok(Talk {
            with,
            about,
            to,
            from: said,
        })
    }
}

impl Exchange for Way {
    fn begin(&self, generation: u64, failing: Failing) {
        *self.door.failing.lock() = Some((generation, failing));
    }

    fn outlet(&self, channel: Channel, to: Peer, slot: Arc<Notify>) -> Result<Box<dyn Outlet>> {
        let due = Arc::new(Notify::new());
        let (outlet, inlet) = local(slot, due.clone());
        let there = self
            .board
            .door(to.id)
            .filter(|door| door.peer == to || planted(Bug::AnyProcess));
        let there = there.ok_or_else(|| away(to.id))?;
        let room = Arc::new(Notify::new());
        let out = there.inbox.outlet(channel, self.door.peer, room)?;
        let stream = Stream {
            board: self.board.clone(),
            channel,
            from: (self.me, self.door.clone()),
            to: (to.id, there),
        };
        tokio::spawn(stream.carry(inlet, due, out));
        Ok(Box::new(outlet))
    }

    fn inlet(&self, channel: Channel, from: Peer, slot: Arc<Notify>) -> Result<Box<dyn Inlet>> {
        self.door.inbox.inlet(channel, from, slot)
    }
}

struct Stream {
    board: Board,
    channel: Channel,
    from: (MemberId, Door),
    to: (MemberId, Door),
}

impl Stream {
    async fn carry(self, mut inlet: impl Inlet, due: Arc<Notify>, mut out: Box<dyn Outlet>) {
        let generation = self.channel.generation;
        let (from, to) = (&self.from, &self.to);
        let over = || {
            let newer = |door: &Door| {
                let running = door.failing.lock();
                running.as_ref().is_some_and(|(of, _)| *of > generation)
            };
            newer(&from.1) || newer(&to.1)
        };
        loop {
            let _ = tokio::time::timeout(LOOK, due.notified()).await;
            while let Some(message) = inlet.receive() {
                self.board.pass(from.0, to.0).await;
                while matches!(message, Message::Batch(_)) && !out.has_room() && !over() {
                    sleep(LOOK).await;
                }
                out.send(message);
            }
            if over() {
                return;
            }
            if to.1.process.is_dead() {
                return from.1.broke(generation, to.0);
            }
            if from.1.process.is_dead() {
                return to.1.broke(generation, from.0);
            }
        }
    }
}

fn away(with: MemberId) -> EngineError {
    EngineError::retry("PR0320", format!("worker {with}"), "it cannot be reached")
}
