//! One memory budget per process. Who holds memory charges it to a share; the shares tell when to ask for an early
//! barrier and when to spill. Nothing here blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Changes since the last barrier.
    Dirty,
    /// Frozen layers that are not applied yet.
    Frozen,
    /// Applied layers kept for reading.
    Clean,
    /// Batches in channels and buffers of the exchange.
    Exchange,
    /// Outputs staged until the commit.
    Staging,
}

impl Share {
    const ALL: [Self; 5] = [
        Self::Dirty,
        Self::Frozen,
        Self::Clean,
        Self::Exchange,
        Self::Staging,
    ];
}

/// The budget: fixed limits, counted use.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    used: [AtomicUsize; Share::ALL.len()],
}

impl Budget {
    /// `total` in bytes: everything but code, stacks and what clients of brokers and stores hold.
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            used: Default::default(),
        })
    }

    fn percent(&self, n: usize) -> usize {
        self.total / 100 * n
    }

    /// Limit in bytes. `Dirty` and `Frozen` have one together. All shares make 92 percent: the rest is what allocators lose.
    pub fn limit(&self, share: Share) -> usize {
        match share {
            Share::Dirty | Share::Frozen => self.percent(25),
            Share::Clean => self.percent(12),
            Share::Exchange => self.percent(15),
            Share::Staging => self.percent(10),
        }
    }

    /// Block cache and write buffers of all instances together.
    pub fn backend_limit(&self) -> usize {
        self.percent(30)
    }

    pub fn used(&self, share: Share) -> usize {
        self.used[share as usize].load(Ordering::Relaxed)
    }

    pub fn add(&self, share: Share, bytes: usize) {
        self.used[share as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn sub(&self, share: Share, bytes: usize) {
        self.used[share as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    fn changes(&self) -> usize {
        self.used(Share::Dirty) + self.used(Share::Frozen)
    }

    /// Half of the share of changes or of staged outputs is in use, and a barrier would free some of it: what is frozen
    /// already waits for its commit, not for another barrier.
    pub fn wants_barrier(&self) -> bool {
        let limit = self.limit(Share::Dirty);
        (self.changes() > limit / 2 && self.used(Share::Dirty) > limit / 8)
            || self.used(Share::Staging) > self.limit(Share::Staging) / 2
    }

    /// The share of changes is used up, and some of it is frozen: it goes back without another row.
    pub fn must_wait(&self) -> bool {
        self.wants_spill() && self.used(Share::Frozen) > 0
    }

    /// The share of changes is used up: slots write their dirty parts to scratch files.
    pub fn wants_spill(&self) -> bool {
        self.changes() > self.limit(Share::Dirty)
    }
}

/// Bytes charged to a share for as long as this lives.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    // Both under one lock, so that a move and a drop never lose a byte.
    held: parking_lot::Mutex<(Share, usize)>,
}

impl Charge {
    pub(super) fn new(budget: Arc<Budget>, share: Share, bytes: usize) -> Self {
        budget.add(share, bytes);
        Self {
            budget,
            held: parking_lot::Mutex::new((share, bytes)),
        }
    }

    pub(super) fn set(&mut self, bytes: usize) {
        let (share, held) = self.held.get_mut();
        if bytes > *held {
            self.budget.add(*share, bytes - *held);
        } else {
            self.budget.sub(*share, *held - bytes);
        }
        *held = bytes;
    }

    pub(super) fn move_to(&self, share: Share) {
        let mut held = self.held.lock();
        self.budget.add(share, held.1);
        self.budget.sub(held.0, held.1);
        held.0 = share;
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let (share, bytes) = *self.held.get_mut();
        self.budget.sub(share, bytes);
    }
}
