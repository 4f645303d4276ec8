//! What is measured by time and cannot be summed up from counters: spreads of durations. Observed once per epoch, never per row;
//! `job` renders them with everything else.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct BySink {
    pub sink: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ByPhase {
    pub phase: &'static str,
}

/// Parts of an epoch's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From the barrier (planned: from the plan) until the pack is durable.
    Snapshot,
    /// Until the commit is in the log.
    Commit,
    /// Until every sink has published it.
    Publish,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Snapshot, Self::Commit, Self::Publish];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Commit => "commit",
            Self::Publish => "publish",
        }
    }
}

type Spread<L> = Family<L, Histogram, fn() -> Histogram>;

/// Seconds, as histograms. Clones share them.
#[derive(Debug, Clone)]
pub struct Timings {
    pub checkpoint: Spread<ByPhase>,
    pub processing: Spread<BySink>,
    pub e2e: Spread<BySink>,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            checkpoint: Family::new_with_constructor(seconds),
            processing: Family::new_with_constructor(seconds),
            e2e: Family::new_with_constructor(seconds),
        }
    }
}

fn seconds() -> Histogram {
    Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
}
