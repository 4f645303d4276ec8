//! The `continuous` trigger: barriers by the clock, until the job is stopped or its sources end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use penstock_checkpoint::decide::may_commit;
use penstock_checkpoint::record::StopReason;
use penstock_telemetry::traceparent;
use tokio::time::Instant;
use tracing::Instrument;

use super::stop::Waited;
use super::{Coordinator, K, Outcome, assignment_of};
use crate::error::Result;
use crate::member::protocol::ToMember;
use crate::message::BarrierKind;
use crate::planted::{Bug, planted};
use crate::sources::SplitId;
use crate::task::Assignment;

/// Short epochs at the start, at most: readers find their brokers meanwhile.
const SHORT: u32 = 4;

impl Coordinator {
    pub(super) async fn run_continuous(&mut self) -> Result<Outcome> {
        for i in 0..self.sources.len() {
            self.assign(i, None);
        }
        // What goes on has not looked yet.
        let mut looked = (!self.settings.goes_on).then(Instant::now);
        // Rows have waited for this generation: its epochs are short ones until the first of them are committed.
        let mut short = SHORT;
        let mut due = Instant::now() + self.settings.interval / 4;
        loop {
            if self.wait_for_barrier(due).await? == Waited::GaveUp {
                return self.stop_with(StopReason::Suspended).await;
            }
            let stop = *self.stop.borrow() || self.failing.is_some();
            let drained = self.sources_done && self.sources.iter().all(|s| s.enumerator.bounded());
            if drained && !stop && self.adopt().await? {
                // A split that appeared since is read before the input counts as ended.
                continue;
            }
            if drained {
                self.tell(ToMember::Drain);
            }
            let kind = if stop || drained {
                BarrierKind::Stop
            } else {
                BarrierKind::Checkpoint
            };
            let began = Instant::now();
            let barrier = self.barrier(kind);
            if stop {
                tracing::debug!(epoch = barrier.epoch, "stopping at a barrier");
            }
            let span = tracing::info_span!(
                "epoch",
                job = self.settings.job,
                generation = barrier.generation,
                epoch = barrier.epoch
            );
            self.tell(ToMember::Inject(barrier, traceparent(&span)));
            let epoch = async {
                let snapshot = self.snapshot(barrier.epoch).await?;
                let empty = snapshot.rows_out == 0;
                self.commit_snapshot(snapshot, barrier, began).await?;
                Ok(empty)
            };
            let empty = epoch.instrument(span).await?;
            short = if empty { short.saturating_sub(1) } else { 0 };
            let interval = self.settings.interval;
            due = began + if short > 0 { interval / 4 } else { interval };
            self.accept_when_due().await?;
            self.keep_pins().await?;
            if let Some(ended) = self.ended(stop, drained).await? {
                return Ok(ended);
            }
            let every = self
                .sources
                .iter()
                .map(|s| s.discover_every)
                .min()
                .unwrap_or(Duration::MAX);
            if looked.is_none_or(|looked| looked.elapsed() >= every) {
                looked = Some(Instant::now());
                self.adopt().await?;
            }
            self.closure_and_garbage().await?;
        }
    }

    /// Waits until one is due, for an early barrier, for a stop; and until `Commit` may follow (rule 3).
    pub(super) async fn wait_for_barrier(&mut self, due: Instant) -> Result<Waited> {
        loop {
            if !self.may_commit()
                && self.wait_for_sink(|c, _| c.may_commit()).await? == Waited::GaveUp
            {
                return Ok(Waited::GaveUp);
            }
            let now = *self.stop.borrow()
                || self.failing.is_some()
                || self.wants_barrier
                || self.sources_done;
            if now || Instant::now() >= due {
                self.wants_barrier = false;
                return Ok(Waited::Came);
            }
            self.wait(Some(due)).await?;
        }
    }

    /// Rule 3, and the budget: what waits for publication is in memory.
    pub(super) fn may_commit(&self) -> bool {
        let waiting: u64 = self.unpublished.iter().map(|(_, bytes)| bytes).sum();
        let room = waiting <= 2 * self.settings.epoch_bytes;
        room && may_commit(self.log.fold(), self.done, K) || planted(Bug::NoWait)
    }

    /// Splits that appeared since: committed with the next epoch, assigned now. Whether there were any.
    pub(super) async fn adopt(&mut self) -> Result<bool> {
        let before: BTreeMap<usize, BTreeSet<SplitId>> = self
            .splits
            .iter()
            .map(|(i, s)| (*i, s.keys().cloned().collect()))
            .collect();
        let found = self.discover(false).await?;
        if found {
            for i in 0..self.sources.len() {
                self.assign(i, before.get(&i));
            }
        }
        Ok(found)
    }

    /// Assigns all splits of a source but those in `except`.
    pub(super) fn assign(&mut self, source: usize, except: Option<&BTreeSet<SplitId>>) {
        let splits = self.splits.get(&source).into_iter().flatten();
        let splits: Vec<Assignment> = splits
            .filter(|(id, s)| !s.done && except.is_none_or(|e| !e.contains(*id)))
            .map(|(id, s)| assignment_of(id, s, None))
            .collect();
        if !splits.is_empty() || except.is_none() {
            self.assigned += 1;
            self.sources_done = false;
            self.tell(ToMember::Assign { source, splits });
        }
    }
}
