//! One epoch: barrier, snapshot, commit, and what follows a commit: figures, closures, garbage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use penstock_checkpoint::ids::{Epoch, Micros, OperatorUid, SourceName, SplitId as LogSplit};
use penstock_checkpoint::record::{Commit, EpochRecord, Kind, Position as LogPosition, SplitState};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::progress::{PhaseOfEpoch as Phase, Published};
use super::{Awaited, Coordinator, lag, ranges};
use crate::error::{EngineError, Result};
use crate::fault;
use crate::member::protocol::{FromMember, Snapshot, ToMember};
use crate::member::storage;
use crate::message::{Barrier, BarrierKind};
use crate::sources::{Position, SplitId};

impl Coordinator {
    pub(super) fn barrier(&self, kind: BarrierKind) -> Barrier {
        let epoch = self.log.fold().next_epoch().get();
        Barrier {
            epoch,
            generation: self.generation.get(),
            kind,
            now_ms: self.now_ms(),
        }
    }

    pub(super) async fn snapshot(&mut self, epoch: u64) -> Result<Box<Snapshot>> {
        loop {
            match self.hear().await? {
                FromMember::Snapshot(s) if s.barrier.epoch == epoch => return Ok(s),
                FromMember::Snapshot(s) => {
                    let text = format!(
                        "a member answered for epoch {}, epoch {epoch} is in the making",
                        s.barrier.epoch
                    );
                    return Err(EngineError::fail("PR0304", "coordinator", text));
                }
                _ => {}
            }
        }
    }

    pub(super) async fn commit_snapshot(
        &mut self,
        snapshot: Box<Snapshot>,
        barrier: Barrier,
        began: Instant,
    ) -> Result<()> {
        let durable = Instant::now();
        self.progress
            .observe(Phase::Snapshot, durable.duration_since(began));
        self.bear_shards(&snapshot).await?;
        for (i, splits) in &snapshot.splits {
            let (Some(mine), forget) = (self.splits.get_mut(i), self.sources[*i].forget_finished)
            else {
                continue;
            };
            for (id, p) in splits {
                let state = SplitState {
                    position: LogPosition::Offset(p.position.0),
                    max_event_time: p.greatest.map(|t| Micros::new(t.micros())),
                    idle: p.idle,
                    done: p.done && (forget || !self.settings.trigger.planned()),
                };
                mine.insert(id.clone(), state);
            }
        }
        let mut watermarks: BTreeMap<OperatorUid, Micros> = snapshot
            .watermarks
            .iter()
            .map(|(uid, at)| (OperatorUid::new(uid.clone()), Micros::new(at.to.micros())))
            .collect();
        for (i, t) in &self.floor {
            let uid = OperatorUid::new(format!("source:{}", self.sources[*i].name));
            watermarks
                .entry(uid)
                .and_modify(|w| *w = (*w).max(Micros::new(t.micros())))
                .or_insert(Micros::new(t.micros()));
        }
        self.commit(Some((&snapshot, watermarks)), barrier.now_ms)
            .await?;
        let committed = Instant::now();
        self.progress
            .observe(Phase::Commit, committed.duration_since(durable));
        let publish = self.log.fold().is_publishable(Epoch::new(barrier.epoch));
        if publish {
            self.awaited.push_back(Awaited {
                epoch: Epoch::new(barrier.epoch),
                began,
                committed,
                newest_row: self.newest_row(),
            });
        }
        if !publish {
            self.staged_bytes += snapshot.bytes;
        }
        if publish && snapshot.rows_out > 0 {
            self.unpublished
                .push_back((Epoch::new(barrier.epoch), snapshot.bytes));
        }
        self.tell(ToMember::Committed {
            epoch: Epoch::new(barrier.epoch),
            publish,
            now_ms: barrier.now_ms,
            packs: Arc::new(snapshot.packs.clone()),
        });
        self.progress
            .committed(barrier, &snapshot, began.elapsed(), self.clock.now().get());
        self.show_positions().await;
        self.measure_lag().await;
        Ok(())
    }

    pub(super) async fn commit(
        &mut self,
        snapshot: Option<(&Snapshot, BTreeMap<OperatorUid, Micros>)>,
        now_ms: i64,
    ) -> Result<()> {
        let mut commit = Commit {
            epoch: self.log.fold().next_epoch(),
            parent: self.log.fold().head(),
            now: Micros::from_millis(now_ms),
            forgets_state: std::mem::take(&mut self.forgets_state),
            ..Commit::default()
        };
        for (i, source) in self.sources.iter().enumerate() {
            let name = SourceName::new(source.name.clone());
            let Some(splits) = self.splits.get_mut(&i) else {
                continue;
            };
            if source.forget_finished {
                let finished = ranges::forgettable(splits);
                for id in finished {
                    splits.remove(&id);
                    self.seen.entry(i).or_default().insert(id.0.to_string());
                    commit
                        .forgotten
                        .entry(name.clone())
                        .or_default()
                        .insert(LogSplit::new(id.0.to_string()));
                    commit
                        .seen_files
                        .entry(name.clone())
                        .or_default()
                        .insert(id.0.to_string());
                }
            }
            let states = splits
                .iter()
                .map(|(id, s)| (LogSplit::new(id.0.to_string()), s.clone()))
                .collect();
            commit.offsets.insert(name, states);
        }
        if let Some((snapshot, watermarks)) = snapshot {
            commit.packs = snapshot.packs.clone();
            commit.watermarks = watermarks;
            commit
                .counts
                .insert("rowsOut".to_owned(), snapshot.rows_out);
            commit.counts.insert("bytes".to_owned(), snapshot.bytes);
        }
        commit.bases = self.bases.take();
        self.newest_now = self.newest_now.max(now_ms);
        fault::point("commit.before");
        let record = EpochRecord {
            commit: Some(commit),
            plan: None,
            done_through: self.done_through(),
        };
        self.log
            .append(self.generation, Kind::Epoch(record))
            .await
            .map_err(storage)?;
        fault::point("commit.after");
        Ok(())
    }

    pub(super) fn done_through(&self) -> Epoch {
        self.done.max(self.log.fold().done_through())
    }

    /// Records between the committed positions and the ends, at most once a second; a source that does not answer leaves
    /// the figure as it is, and whoever shows it has its seconds grow.
    pub(super) async fn measure_lag(&mut self) {
        if self
            .lag_at
            .is_some_and(|at| at.elapsed() < Duration::from_secs(1))
        {
            return;
        }
        let every = lag::look_every(&self.settings);
        self.lag_at = Some(Instant::now());
        self.lag_due = Instant::now() + every;
        let now_ms = self.clock.now().get();
        let mut lags = Vec::new();
        for (i, source) in self.sources.iter_mut().enumerate() {
            let Some(splits) = self.splits.get(&i) else {
                continue;
            };
            let open: Vec<SplitId> = splits
                .iter()
                .filter(|(_, s)| !s.done)
                .map(|(id, _)| id.clone())
                .collect();
            let ends =
                match tokio::time::timeout(Duration::from_secs(2), source.enumerator.ends(&open))
                    .await
                {
                    Ok(Ok(ends)) => ends,
                    Ok(Err(_)) | Err(_) => return,
                };
            for id in &open {
                if let Some(end) = ends.get(id).filter(|end| **end != Position::END) {
                    let at = ranges::position(&splits[id]).0;
                    lags.push(self.lags.observe((i, id), now_ms, end.0, at));
                }
            }
        }
        self.progress.lag(lags, now_ms, every);
    }

    fn newest_row(&self) -> Option<i64> {
        let splits = self.splits.values().flat_map(BTreeMap::values);
        let newest = splits.filter_map(|s| s.max_event_time).max()?;
        Some(newest.get().div_euclid(1000))
    }

    /// Epochs that are out by now were published just now.
    pub(super) fn time_publication(&mut self) {
        while let Some(first) = self.awaited.front().filter(|a| a.epoch <= self.done) {
            let took = Published {
                since_barrier: first.began.elapsed(),
                since_commit: first.committed.elapsed(),
                age_ms: first.newest_row.map(|t| self.clock.now().get() - t),
            };
            self.progress.published_epoch(&self.settings.sinks, took);
            self.awaited.pop_front();
        }
    }

    pub(super) async fn show_positions(&mut self) {
        for (i, source) in self.sources.iter_mut().enumerate() {
            let positions = self.splits.get(&i).into_iter().flatten();
            let positions = positions
                .map(|(id, s)| (id.clone(), ranges::position(s)))
                .collect();
            source.enumerator.show_positions(&positions).await;
        }
    }

    pub(super) async fn closure_and_garbage(&mut self) -> Result<()> {
        if let Some(state) = self.log.state() {
            for wanted in self.bases.begin(state) {
                self.tell(ToMember::MakeBase {
                    group: wanted.group,
                    reuse: wanted.reuse,
                });
            }
        }
        if !self.log.closure_due() {
            return Ok(());
        }
        self.closure().await?;
        match self.learning.as_mut().map(oneshot::Receiver::try_recv) {
            // At the next closure: commits do not wait for it.
            Some(Err(TryRecvError::Empty)) => return Ok(()),
            Some(Ok(learnt)) => self.log.take(learnt).map_err(storage)?,
            Some(Err(TryRecvError::Closed)) | None => {}
        }
        self.learning = None;
        let retention = self.settings.retention;
        let collected = self.log.collect(self.generation, retention).await;
        collected.map_err(storage)?;
        Ok(())
    }

    pub(super) async fn closure(&mut self) -> Result<()> {
        fault::point("closure.before");
        self.log
            .write_closure(self.generation)
            .await
            .map_err(storage)?;
        fault::point("closure.after");
        Ok(())
    }
}
