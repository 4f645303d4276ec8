//! Publication of one shard of an exactly-once sink: committed epochs in order, chunk by chunk, each with its marker. After
//! any doubt the shard is opened again and the marker decides. Owns nothing durable: what to publish can always be had again.
//! A publisher that fences outlives its generation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_checkpoint::ids::{Epoch, Generation, Nonce};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::error::{EngineError, ErrorKind, Result};
use crate::fault;
use crate::planted::{Bug, planted};
use crate::sinks::{Marker, ShardPublisher, Turn};

use super::protocol::{BornMarker, Shard};

/// Between two tries of a shard that is in doubt.
const PAUSE: Duration = Duration::from_millis(200);

/// What a shard is asked to do, in order.
#[derive(Debug)]
pub enum ShardWork {
    /// Write the initial marker, or find it written by this very attempt.
    Bear {
        marker: BornMarker,
        epoch: Epoch,
    },
    /// Known from the log.
    Born(BornMarker),
    Publish {
        turn: Turn,
        chunks: Vec<Bytes>,
    },
    /// An epoch without rows for this shard, for those that hold rows back.
    Turn(Turn),
    /// The generation has stopped, as the log says: nothing is held back any more.
    Close,
}

/// What a shard answers.
#[derive(Debug)]
pub enum ShardNews {
    Born(Shard, Nonce),
    Published(Shard, Epoch),
    Closed(Shard),
    Held(Shard, String),
    Failed(EngineError),
}

/// An open publisher, and the marker that it found or wrote last.
pub struct Open {
    pub publisher: Box<dyn ShardPublisher>,
    /// Of its sink.
    settings: u64,
    born: BornMarker,
    at: Marker,
}

/// By shard and the partition of its marker.
type OpenShards = BTreeMap<(Shard, i32), Open>;

/// Publishers that a generation of this process has left open for the next one. Clones are the same.
#[derive(Clone, Default)]
pub struct Publishers(Arc<Mutex<(Generation, OpenShards)>>);

impl Open {
    /// Whether it is of this birth of the shard, and of a sink with these settings.
    pub fn serves(&self, born: BornMarker, settings: u64) -> bool {
        self.born == born && self.settings == settings
    }

    pub const fn stands(&self) -> (BornMarker, Marker) {
        (self.born, self.at)
    }
}

impl Publishers {
    /// Those of the generation before; from now on others are those of this one.
    pub fn begin(&self, generation: Generation) -> OpenShards {
        let mut left = self.0.lock();
        let (of, shards) = std::mem::replace(&mut *left, (generation, OpenShards::new()));
        if of.get() + 1 == generation.get() {
            return shards;
        }
        // In between others have opened them.
        OpenShards::new()
    }

    /// Too late when the next generation has begun: it has opened the shard itself.
    fn leave(&self, generation: Generation, shard: Shard, open: Open) {
        let mut left = self.0.lock();
        if left.0 == generation {
            left.1.insert((shard, open.born.partition), open);
        }
    }
}

/// One shard at work. `newest` is H of rule 10 when the generation began; every epoch handed over later raises it.
pub struct ShardTask {
    pub shard: Shard,
    pub name: String,
    pub publisher: Box<dyn ShardPublisher>,
    /// Of its sink.
    pub settings: u64,
    /// Where it is open already: the marker, and that of its birth.
    pub stands: Option<(BornMarker, Marker)>,
    pub newest: Epoch,
    pub work: mpsc::UnboundedReceiver<ShardWork>,
    pub news: mpsc::UnboundedSender<ShardNews>,
}

impl ShardTask {
    /// Until there is no more work; then leaves its publisher to the next generation.
    pub async fn run(mut self, generation: Generation, left: Publishers) {
        match self.serve().await {
            Ok(Some((born, at))) if self.publisher.fences() => {
                let publisher = self.publisher;
                let open = Open {
                    publisher,
                    settings: self.settings,
                    born,
                    at,
                };
                left.leave(generation, self.shard, open);
            }
            Ok(_) => {}
            // The member may be gone already.
            Err(error) => drop(self.news.send(ShardNews::Failed(error))),
        }
    }

    async fn serve(&mut self) -> Result<Option<(BornMarker, Marker)>> {
        let (mut born, mut at) = self.stands.unzip();
        while let Some(work) = self.work.recv().await {
            match work {
                ShardWork::Born(marker) => {
                    born = Some(marker);
                    // Now, and not when there are rows to wait for it.
                    if at.is_none() {
                        at = Some(self.open(marker).await?);
                    }
                }
                ShardWork::Bear { marker, epoch } => {
                    // The newest commit, which may be later than the generation's beginning: this attempt's own marker,
                    // found again after doubt, is not ahead of the log.
                    self.newest = self.newest.max(epoch);
                    let stands = self.bear(marker, epoch).await?;
                    at = Some(stands);
                    let nonce = widen(stands.nonce);
                    born = Some(BornMarker { nonce, ..marker });
                    fault::point("born.marker");
                    let _ = self.news.send(ShardNews::Born(self.shard, nonce));
                }
                ShardWork::Publish { turn, chunks } => {
                    let born = born.ok_or_else(|| self.unborn())?;
                    let epoch = Epoch::new(turn.epoch);
                    self.newest = self.newest.max(epoch);
                    let mut marker = match at {
                        Some(marker) => marker,
                        None => self.open(born).await?,
                    };
                    marker = self.let_go(Some(turn), born, marker).await?;
                    let span = tracing::debug_span!(
                        "publish",
                        sink = self.name,
                        epoch = turn.epoch,
                        chunks = chunks.len()
                    );
                    let published = self.publish(epoch, &chunks, born, marker);
                    marker = published.instrument(span).await?;
                    at = Some(marker);
                    let _ = self.news.send(ShardNews::Published(self.shard, epoch));
                }
                ShardWork::Turn(turn) => at = self.pass(Some(turn), born, at).await?,
                ShardWork::Close => {
                    at = self.pass(None, born, at).await?;
                    let _ = self.news.send(ShardNews::Closed(self.shard));
                }
            }
        }
        Ok(born.zip(at))
    }

    fn unborn(&self) -> EngineError {
        EngineError::fail(
            "PR0210",
            self.name.clone(),
            "rows are to be published before the shard has a marker",
        )
    }

    fn marker(&self, born: BornMarker, epoch: Epoch, chunk: u32) -> Marker {
        Marker {
            epoch: epoch.get(),
            chunk,
            nonce: nonce(born),
        }
    }

    /// Opens until the target answers.
    async fn open_raw(&mut self) -> Result<Option<Marker>> {
        loop {
            match self.publisher.open().await {
                // Without anybody who gives it work the next generation sees to the rest.
                Err(e) if e.kind == ErrorKind::Retry && !self.work.is_closed() => {
                    let _ = self.news.send(ShardNews::Held(self.shard, told(&e)));
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Opens, and compares what is there with what the log says. Where the two differ a person decides: it is so at the next try too.
    async fn open(&mut self, born: BornMarker) -> Result<Marker> {
        let found = self.open_raw().await?;
        if found.is_none() && planted(Bug::MissingResend) {
            return Ok(self.marker(born, Epoch::ZERO, Marker::ALL));
        }
        let Some(marker) = found else {
            return Err(EngineError::invalid(
                "PR0210",
                self.name.clone(),
                "the log says that the shard has a marker, and it is missing: rows may have been published that nobody knows of",
            ));
        };
        if marker.nonce != nonce(born) {
            return Err(EngineError::invalid(
                "PR0210",
                self.name.clone(),
                "the marker was written by another history of this job",
            ));
        }
        if planted(Bug::Republish) {
            return Ok(self.marker(born, Epoch::ZERO, Marker::ALL));
        }
        if marker.epoch > self.newest.get() {
            return Err(EngineError::new(
                ErrorKind::Fenced,
                "PR0401",
                self.name.clone(),
                format!(
                    "the marker stands at epoch {}, after everything this process knows of",
                    marker.epoch
                ),
            ));
        }
        Ok(marker)
    }

    async fn bear(&mut self, born: BornMarker, epoch: Epoch) -> Result<Marker> {
        let initial = self.marker(born, epoch, Marker::ALL);
        loop {
            if let Some(marker) = self.open_raw().await?
                && !planted(Bug::BornBlind)
            {
                // An earlier attempt wrote it and died before the log said so: nothing was published since.
                if marker.epoch <= self.newest.get() {
                    return Ok(marker);
                }
                // Markers are keyed by log: only a successor's can be there. This process slept and joins again.
                return Err(EngineError::new(
                    ErrorKind::Fenced,
                    "PR0401",
                    self.name.clone(),
                    format!(
                        "a marker stands at epoch {}, where this process knows of none, after everything it knows of",
                        marker.epoch
                    ),
                ));
            }
            match self.publisher.init_marker(initial).await {
                Ok(()) => return Ok(initial),
                Err(e) if e.kind == ErrorKind::Retry => tokio::time::sleep(PAUSE).await,
                Err(e) => return Err(e),
            }
        }
    }

    /// An epoch without rows of this shard, or the end.
    async fn pass(
        &mut self,
        turn: Option<Turn>,
        born: Option<BornMarker>,
        at: Option<Marker>,
    ) -> Result<Option<Marker>> {
        let Some(born) = born else { return Ok(at) };
        let marker = match at {
            Some(marker) => marker,
            None => self.open(born).await?,
        };
        self.let_go(turn, born, marker).await.map(Some)
    }

    /// Has the publisher let go of what it holds back and what is due; `None`: of everything. Answers the marker that stands.
    async fn let_go(
        &mut self,
        turn: Option<Turn>,
        born: BornMarker,
        mut at: Marker,
    ) -> Result<Marker> {
        loop {
            let Some(rolling) = self.publisher.rolling() else {
                return Ok(at);
            };
            let done = match turn {
                Some(turn) => rolling.turn(turn).await,
                None => rolling.close().await,
            };
            match done {
                Err(e) if e.kind == ErrorKind::Retry => {
                    let _ = self.news.send(ShardNews::Held(self.shard, told(&e)));
                    tokio::time::sleep(PAUSE).await;
                    at = self.open(born).await?;
                }
                other => return other.map(|()| at),
            }
        }
    }

    /// Publishes what of the epoch is not out yet; answers the marker that stands then.
    async fn publish(
        &mut self,
        epoch: Epoch,
        chunks: &[Bytes],
        born: BornMarker,
        mut at: Marker,
    ) -> Result<Marker> {
        fault::point("publish.before");
        loop {
            let next = match at.epoch.cmp(&epoch.get()) {
                std::cmp::Ordering::Greater => return Ok(at),
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal if at.chunk == Marker::ALL => return Ok(at),
                std::cmp::Ordering::Equal => at.chunk as usize + 1,
            };
            let Some(chunk) = chunks.get(next) else {
                return Ok(at);
            };
            let last = next + 1 == chunks.len();
            let number = if last {
                Marker::ALL
            } else {
                u32::try_from(next).unwrap_or(Marker::ALL - 1)
            };
            let marker = self.marker(born, epoch, number);
            let mut written = marker;
            if planted(Bug::NoChunk) {
                written.chunk = Marker::ALL;
            }
            match self.publisher.publish(chunk.clone(), written).await {
                Ok(()) => {
                    fault::point("publish.chunk");
                    at = marker;
                }
                Err(e) if e.kind == ErrorKind::Retry => {
                    tracing::warn!(sink = self.name, epoch = epoch.get(), error = %e, "publication in doubt, the marker decides");
                    let _ = self.news.send(ShardNews::Held(self.shard, told(&e)));
                    tokio::time::sleep(PAUSE).await;
                    if planted(Bug::NoPoison) {
                        continue;
                    }
                    at = self.open(born).await?;
                }
                Err(e) => return Err(e),
            }
            if last && at.chunk == Marker::ALL && at.epoch == epoch.get() {
                fault::point("publish.after");
            }
        }
    }
}

/// The marker's short form of the log's nonce.
fn nonce(born: BornMarker) -> u64 {
    let bytes = born.nonce.as_bytes();
    u64::from_le_bytes(bytes[..8].try_into().expect("a nonce has 16 bytes"))
}

/// A marker's nonce as the log writes it.
fn widen(short: u64) -> Nonce {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&short.to_le_bytes());
    Nonce::from_bytes(bytes)
}

/// An error with its causes, for status.
fn told(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
