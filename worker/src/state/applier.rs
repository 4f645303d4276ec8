//! Brings committed epochs into the backends, on a thread of its own. It may lag, and then merges the epochs that wait;
//! what they overwrote or dropped among themselves is never written. An applied layer stays as clean cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{EngineError, Result};

use super::backend::{Backend, Identity, Nothing};
use super::budget::{Budget, Share};
use super::layer::{FrozenLayer, LayersOfGroup, Part};
use super::planted::Planted;
use super::slot::{Published, SlotShared};
use super::stored::TtlClock;
use super::table::{Arena, Tables};

/// One committed epoch: its layers (of every slot that changed anything), its commit record's checksum and clock.
#[derive(Debug, Clone)]
pub struct Commit {
    pub epoch: u64,
    pub checksum: u32,
    pub now_ms: i64,
    pub layers: Vec<Arc<FrozenLayer>>,
}

/// Whose backends the applier writes, and what it writes into their identities.
pub(super) struct Target {
    pub(super) log_id: String,
    pub(super) schema_fingerprint: String,
    pub(super) backends: Arc<Mutex<BTreeMap<u16, Arc<dyn Backend>>>>,
    pub(super) clock: Arc<TtlClock>,
    pub(super) budget: Arc<Budget>,
    pub(super) slots: Arc<AtomicUsize>,
    pub(super) planted: Planted,
}

#[derive(Debug, Default)]
struct Progress {
    /// Newest epoch asked for, and newest applied.
    asked: u64,
    applied: u64,
    failed: Option<String>,
    /// Per key group the epoch its identity names.
    stands_at: BTreeMap<u16, u64>,
    flushed_at: BTreeMap<u16, u64>,
}

#[derive(Debug, Default)]
struct State {
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// The applier's thread. Dropping it lets the epochs that wait be applied first.
#[derive(Debug)]
pub(super) struct Applier {
    commits: Option<Sender<Commit>>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    #[cfg(test)]
    inline: Option<Inline>,
}

/// Whether a commit waits for the next one.
#[cfg(test)]
pub(crate) type Lag = Box<dyn FnMut() -> bool + Send + Sync>;

/// In the place of the thread: applies in the caller's.
#[cfg(test)]
struct Inline {
    target: Target,
    waiting: Mutex<(Vec<Commit>, Lag)>,
}

#[cfg(test)]
impl std::fmt::Debug for Inline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inline").finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Applier {
    pub(super) fn inline(target: Target, lag: Lag) -> Self {
        Self {
            commits: None,
            state: Arc::new(State::default()),
            thread: None,
            inline: Some(Inline {
                target,
                waiting: Mutex::new((Vec::new(), lag)),
            }),
        }
    }

    fn apply_inline(&self, inline: &Inline, commit: Option<Commit>) {
        let mut waiting = inline.waiting.lock();
        let (commits, lag) = &mut *waiting;
        let waits = commit.is_some() && commits.len() + 1 < MERGED_EPOCHS && lag();
        commits.extend(commit);
        if !waits && !commits.is_empty() {
            settle(&inline.target, &self.state, std::mem::take(commits));
        }
    }
}

impl Applier {
    pub(super) fn start(target: Target) -> Result<Self> {
        let (commits, waiting) = channel();
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("state-apply".into())
            .spawn(move || run(&target, &of_thread, &waiting))
            .map_err(|e| {
                EngineError::fail("PR0514", "state", "cannot start a thread").caused_by(e)
            })?;
        Ok(Self {
            commits: Some(commits),
            state,
            thread: Some(thread),
            #[cfg(test)]
            inline: None,
        })
    }

    /// Hands a committed epoch over; returns at once. Epochs come in order, each once.
    pub(super) fn apply(&self, commit: Commit) {
        self.state.progress.lock().asked = commit.epoch;
        #[cfg(test)]
        if let Some(inline) = &self.inline {
            return self.apply_inline(inline, Some(commit));
        }
        if let Some(commits) = &self.commits {
            // A closed channel means the thread has failed; `check` says why.
            let _ = commits.send(commit);
        }
    }

    /// The newest epoch applied since the start.
    pub(super) fn applied(&self) -> u64 {
        self.state.progress.lock().applied
    }

    /// Why applying has stopped, if it has.
    pub(super) fn check(&self) -> Result<()> {
        check(&self.state.progress.lock())
    }

    /// Blocks until every epoch handed over is applied.
    pub(super) fn wait(&self) -> Result<()> {
        #[cfg(test)]
        if let Some(inline) = &self.inline {
            self.apply_inline(inline, None);
        }
        let mut progress = self.state.progress.lock();
        while progress.failed.is_none() && progress.applied < progress.asked {
            self.state.changed.wait(&mut progress);
        }
        check(&progress)
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.commits = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there; nothing is lost, the packs hold the epochs.
            let _ = thread.join();
        }
    }
}

fn check(progress: &Progress) -> Result<()> {
    match &progress.failed {
        None => Ok(()),
        Some(why) => Err(EngineError::fail(
            "PR0514",
            "state",
            format!("applying stopped: {why}"),
        )),
    }
}

/// Merging more at once would cost more per key than it saves, and write batches must fit into memory.
const MERGED_EPOCHS: usize = 8;
const MERGED_BYTES: usize = 128 << 20;

fn bytes_of(commit: &Commit) -> usize {
    commit.layers.iter().map(|l| l.bytes()).sum()
}

fn run(target: &Target, state: &State, waiting: &Receiver<Commit>) {
    let mut held: Option<Commit> = None;
    let mut measured: Option<i64> = None;
    while let Some(first) = held.take().or_else(|| waiting.recv().ok()) {
        let mut bytes = bytes_of(&first);
        let mut commits = vec![first];
        for next in waiting.try_iter() {
            bytes += bytes_of(&next);
            if commits.len() == MERGED_EPOCHS || bytes > MERGED_BYTES {
                held = Some(next);
                break;
            }
            commits.push(next);
        }
        let now_ms = commits.last().map_or(0, |c| c.now_ms);
        if measured.is_none_or(|at| now_ms - at >= MEASURE_EVERY_MS) {
            let backends = target.backends.lock().clone();
            backends.values().for_each(|b| b.measure());
            measured = Some(now_ms);
        }
        if !settle(target, state, commits) {
            return;
        }
    }
}

/// Applies commits and says so; whether it went well.
fn settle(target: &Target, state: &State, commits: Vec<Commit>) -> bool {
    let newest = commits.last().map_or(0, |c| c.epoch);
    let result = apply_all(target, state, commits);
    let mut progress = state.progress.lock();
    match result {
        Ok(()) => progress.applied = newest,
        Err(e) => {
            let mut why = e.to_string();
            if let Some(source) = &e.source {
                why = format!("{why}: {source}");
            }
            progress.failed = Some(why);
        }
    }
    let failed = progress.failed.is_some();
    drop(progress);
    state.changed.notify_all();
    !failed
}

/// An instance whose identity is older than this many epochs is moved on though nothing changed in it, and one that was
/// not flushed for as long is flushed: recovery reads a bounded chain.
const IDENTITY_EPOCHS: u64 = 50;
const FLUSH_EPOCHS: u64 = 200;
/// How often what tables take on disk is looked at, on the applier's thread.
const MEASURE_EVERY_MS: i64 = 10_000;

fn apply_all(target: &Target, state: &State, commits: Vec<Commit>) -> Result<()> {
    let Some(last) = commits.last() else {
        return Ok(());
    };
    let (epoch, checksum) = (last.epoch, last.checksum);
    target.clock.advance(last.now_ms);
    let newest_first: Vec<Arc<FrozenLayer>> =
        commits.into_iter().rev().flat_map(|c| c.layers).collect();
    let layers: Vec<&FrozenLayer> = newest_first.iter().map(|l| &**l).collect();
    let mut changed: Vec<u16> = layers.iter().flat_map(|l| l.key_groups()).collect();
    changed.sort_unstable();
    changed.dedup();
    let backends = target.backends.lock().clone();
    for (group, backend) in &backends {
        let touched = changed.binary_search(group).is_ok();
        let stood_at = state.progress.lock().stands_at.get(group).copied();
        // Spread over epochs, so that not all instances flush at once.
        let (stood_at, flushed_at) = match stood_at {
            Some(at) => (
                at,
                state
                    .progress
                    .lock()
                    .flushed_at
                    .get(group)
                    .copied()
                    .unwrap_or(at),
            ),
            None => (
                epoch,
                epoch.saturating_sub(u64::from(*group) * FLUSH_EPOCHS / 64 % FLUSH_EPOCHS),
            ),
        };
        let moves = touched || epoch - stood_at >= IDENTITY_EPOCHS;
        if moves {
            let identity = Identity {
                log_id: target.log_id.clone(),
                key_group: *group,
                schema_fingerprint: target.schema_fingerprint.clone(),
                epoch,
                commit_checksum: checksum,
            };
            if touched {
                let changes = LayersOfGroup::new(&layers, *group);
                target.planted.apply(&**backend, &changes, &identity)?;
            } else {
                backend.apply(&Nothing, &identity)?;
            }
        }
        let flush = epoch - flushed_at >= FLUSH_EPOCHS;
        if flush {
            backend.flush()?;
        }
        let mut progress = state.progress.lock();
        progress
            .stands_at
            .insert(*group, if moves { epoch } else { stood_at });
        progress
            .flushed_at
            .insert(*group, if flush { epoch } else { flushed_at });
    }
    if let Some(orphan) = changed.iter().find(|g| !backends.contains_key(g)) {
        return Err(EngineError::fail(
            "PR0514",
            format!("key group {orphan}"),
            "an epoch changed it but its state is not open here",
        ));
    }
    let slots = target.slots.load(Ordering::Relaxed).max(1);
    publish(newest_first, target.budget.limit(Share::Clean) / slots);
    Ok(())
}

/// Tells each slot that its layers are applied, and what of them stays readable. `newest_first` within each slot.
fn publish(newest_first: Vec<Arc<FrozenLayer>>, limit: usize) {
    let mut by_slot: Vec<(Arc<SlotShared>, Vec<Arc<FrozenLayer>>)> = Vec::new();
    for layer in newest_first {
        let Some(slot) = layer.slot() else { continue };
        layer.charge_to(Share::Clean);
        match by_slot.iter_mut().find(|(s, _)| Arc::ptr_eq(s, &slot)) {
            Some((_, layers)) => layers.push(layer),
            None => by_slot.push((slot, vec![layer])),
        }
    }
    for (slot, layers) in by_slot {
        let applied = layers.first().map_or(0, |l| l.epoch());
        let mut clean = layers;
        clean.extend(slot.published().clean.iter().cloned());
        slot.publish(Published {
            applied,
            clean: Arc::new(keep(clean, limit)),
        });
    }
}

/// The clean cache: newest first, within `limit` bytes, in few layers. Layers of like size are merged, so that a lookup
/// passes a logarithmic number of them; none grows beyond a quarter of the limit, since they go one at a time.
fn keep(newest_first: Vec<Arc<FrozenLayer>>, limit: usize) -> Vec<Arc<FrozenLayer>> {
    let mut kept: Vec<Arc<FrozenLayer>> = Vec::new();
    let mut bytes = 0;
    for layer in newest_first {
        bytes += layer.memory_bytes();
        // A part on a scratch file is no cache, and nothing older may show through the gap.
        let whole = layer.parts().iter().all(|p| matches!(p, Part::Memory(_)));
        if bytes > limit || !whole {
            break;
        }
        kept.push(layer);
    }
    // From the newest on: a layer at least half as large as the next older one joins it.
    let mut at = 0;
    while at + 1 < kept.len() {
        let (newer, older) = (&kept[at], &kept[at + 1]);
        let together = newer.memory_bytes() + older.memory_bytes();
        if newer.memory_bytes() * 2 >= older.memory_bytes() && together <= limit / 4 {
            let oldest = at + 2 == kept.len();
            let merged = Arc::new(merged(newer, older, oldest));
            kept.splice(at..at + 2, [merged]);
            at = 0;
        } else {
            at += 1;
        }
    }
    kept
}

fn merged(newer: &FrozenLayer, older: &FrozenLayer, oldest: bool) -> FrozenLayer {
    let groups = newer.groups();
    let mut arena = Arena::default();
    let mut out = Tables::new(groups.start, groups.len());
    for part in newer.parts().iter().chain(older.parts()) {
        let Part::Memory(tables) = part else { continue };
        for (id, group, table) in tables.iter() {
            out.get_mut(id, group).absorb_older(&mut arena, table);
        }
    }
    let mut bytes = 0;
    for table in out.iter_mut() {
        if oldest {
            // Below lies only the backend, which has applied them.
            table.forget_prefixes();
        }
        bytes += table.bytes();
    }
    newer.clean_of(Part::Memory(out), bytes)
}
