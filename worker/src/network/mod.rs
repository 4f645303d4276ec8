//! The exchange's seam: a channel from one sending subtask to one receiving subtask. In a process it is a bounded queue, between
//! processes a stream of Arrow Flight (`flight`). Marks always fit, or alignment could deadlock; batches only while there is credit.

pub mod flight;
pub mod hub;
#[cfg(test)]
mod tests;
pub mod tls;
mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use penstock_checkpoint::ids::MemberId;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use crate::error::{EngineError, Result};
use crate::message::Message;

/// Credit of one channel in bytes of Arrow buffers.
pub const CHANNEL_BYTES: usize = 4 << 20;
/// Credit of one channel in messages.
const CHANNEL_BATCHES: usize = 64;

/// The sending end.
pub trait Outlet: Send {
    /// Queues a message. Never refuses: ask `has_room` before more batches.
    fn send(&mut self, message: Message);
    /// Whether another batch fits.
    fn has_room(&self) -> bool;
}

/// A worker of a job, as a process: one that is started again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    pub id: MemberId,
    /// Drawn when it starts.
    pub process: u64,
}

impl Peer {
    /// Of members that share a process.
    pub const fn here(id: MemberId) -> Self {
        Self { id, process: 0 }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.id)
    }
}

/// A channel between subtasks of two members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Channel {
    pub generation: u64,
    /// Index of the graph's edge.
    pub edge: usize,
    /// Slots of the job.
    pub from: usize,
    pub to: usize,
}

/// Tells whoever runs a generation that it cannot go on.
pub type Failing = Box<dyn Fn(EngineError) + Send + Sync>;

/// Channels to and from other members, whichever way they go. `slot` is woken when there is something to do.
pub trait Exchange: Send + Sync {
    /// A generation begins here; `failing` is called when one of its channels breaks.
    fn begin(&self, generation: u64, failing: Failing);
    /// # Errors
    /// When the other member cannot be reached.
    fn outlet(&self, channel: Channel, to: Peer, slot: Arc<Notify>) -> Result<Box<dyn Outlet>>;
    /// # Errors
    /// When the other member cannot be reached.
    fn inlet(&self, channel: Channel, from: Peer, slot: Arc<Notify>) -> Result<Box<dyn Inlet>>;
}

/// A conversation of two workers: words in both directions, until one side drops its end.
pub struct Talk {
    /// Who began it; to that one, whom it asked for.
    pub with: MemberId,
    /// What the one who began it says it is about.
    pub about: Bytes,
    pub to: mpsc::UnboundedSender<Bytes>,
    pub from: mpsc::UnboundedReceiver<Bytes>,
}

/// The way from one worker to the others.
#[async_trait]
pub trait Net: Exchange {
    /// This worker.
    fn me(&self) -> Peer;
    /// Begins a conversation with whichever process is that worker now.
    ///
    /// # Errors
    /// Of kind `Retry`, when the worker cannot be reached.
    async fn talk(&self, with: MemberId, about: Bytes) -> Result<Talk>;
}

/// The receiving end.
pub trait Inlet: Send {
    fn receive(&mut self) -> Option<Message>;
    /// Messages and bytes that wait; for status.
    fn queued(&self) -> (usize, usize);
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<(Message, usize)>,
    bytes: usize,
    /// The sender saw no room: it is woken when there is.
    starved: bool,
    /// Bytes and batches that were taken out since a sender elsewhere was told.
    taken: (usize, usize),
}

impl Queue {
    /// Messages and bytes.
    fn waiting(&self) -> (usize, usize) {
        (self.messages.len(), self.bytes)
    }
}

/// Wakes the two slots that share a channel, once each is there: a slot looks at its channels when it begins.
#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    sender: OnceLock<Arc<Notify>>,
    receiver: OnceLock<Arc<Notify>>,
}

fn wake(slot: &OnceLock<Arc<Notify>>) {
    if let Some(slot) = slot.get() {
        slot.notify_one();
    }
}

/// A bounded queue within the process.
pub fn local(sender: Arc<Notify>, receiver: Arc<Notify>) -> (LocalOutlet, LocalInlet) {
    let shared = Arc::new(Shared {
        queue: Mutex::default(),
        sender: OnceLock::from(sender),
        receiver: OnceLock::from(receiver),
    });
    (LocalOutlet(shared.clone()), LocalInlet(shared))
}

#[derive(Debug)]
pub struct LocalOutlet(Arc<Shared>);

#[derive(Debug)]
pub struct LocalInlet(Arc<Shared>);

impl Outlet for LocalOutlet {
    fn send(&mut self, message: Message) {
        let bytes = match &message {
            Message::Batch(b) => b.rows.get_array_memory_size(),
            Message::Watermark(_) | Message::Idle | Message::Barrier(_) | Message::End => 0,
        };
        let mut queue = self.0.queue.lock();
        queue.messages.push_back((message, bytes));
        queue.bytes += bytes;
        drop(queue);
        wake(&self.0.receiver);
    }

    fn has_room(&self) -> bool {
        let mut queue = self.0.queue.lock();
        let room = queue.bytes < CHANNEL_BYTES && queue.messages.len() < CHANNEL_BATCHES;
        queue.starved |= !room;
        room
    }
}

impl Inlet for LocalInlet {
    fn receive(&mut self) -> Option<Message> {
        let mut queue = self.0.queue.lock();
        let (message, bytes) = queue.messages.pop_front()?;
        queue.bytes -= bytes;
        let starved = queue.starved
            && queue.bytes < CHANNEL_BYTES / 2
            && queue.messages.len() < CHANNEL_BATCHES / 2;
        if starved {
            queue.starved = false;
        }
        drop(queue);
        if starved {
            wake(&self.0.sender);
        }
        Some(message)
    }

    fn queued(&self) -> (usize, usize) {
        self.0.queue.lock().waiting()
    }
}
