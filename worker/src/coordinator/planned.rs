//! The planned triggers: each epoch's input is in the log before a row of it is read.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_checkpoint::ids::{Micros, SourceName, SplitId as LogSplit};
use penstock_checkpoint::record::{
    EpochRecord, Kind, Plan, Position as LogPosition, Range, SplitState, StopReason,
};
use penstock_telemetry::traceparent;
use tokio::time::Instant;
use tracing::Instrument;

use super::ranges::{Bounds, Span};
use super::stop::Waited;
use super::{Coordinator, Outcome, Trigger, assignment_of, log_position, ranges};
use crate::error::Result;
use crate::fault;
use crate::member::protocol::ToMember;
use crate::member::storage;
use crate::message::{Barrier, BarrierKind, EventTime};
use crate::sources::{Position, SplitId};
use crate::task::Assignment;

impl Coordinator {
    pub(super) async fn run_planned(&mut self, mut replan: Option<Plan>) -> Result<Outcome> {
        let trigger = self.settings.trigger;
        let bounded = matches!(trigger, Trigger::AvailableNow { .. } | Trigger::Once { .. });
        let mut epochs = 0u64;
        let mut next = Instant::now();
        loop {
            self.keep_pins().await?;
            if *self.stop.borrow() {
                return self.stop_with(StopReason::Suspended).await;
            }
            if self.wait_for_sink(|c, _| c.may_commit()).await? == Waited::GaveUp {
                continue;
            }
            let plan = match replan.take() {
                Some(plan) => Some(plan),
                None => self.next_plan(bounded, trigger, epochs).await?,
            };
            let Some(plan) = plan else {
                if bounded {
                    return self
                        .stop_with(if trigger.drains() {
                            StopReason::Drained
                        } else {
                            StopReason::Completed
                        })
                        .await;
                }
                self.wait(Some(Instant::now() + Duration::from_millis(100)))
                    .await?;
                continue;
            };
            let began = Instant::now();
            let span = tracing::info_span!(
                "epoch",
                job = self.settings.job,
                generation = self.generation.get(),
                epoch = plan.epoch.get()
            );
            self.run_plan(plan, began).instrument(span).await?;
            epochs += 1;
            if let Some((source, text)) = self.failing.take() {
                return self.fail_above(&source, &text).await;
            }
            self.closure_and_garbage().await?;
            if let Trigger::ProcessingTime { interval } = trigger {
                next = (next + interval).max(Instant::now());
                while Instant::now() < next && !*self.stop.borrow() {
                    self.wait(Some(next)).await?;
                    self.keep_pins().await?;
                }
            }
        }
    }

    /// Decides the next epoch's input and appends it to the log, before a row of it is read. `None`: nothing to do.
    pub(super) async fn next_plan(
        &mut self,
        bounded: bool,
        trigger: Trigger,
        epochs: u64,
    ) -> Result<Option<Plan>> {
        // A run that drains is the last: what came since an interrupted one fixed its end would never be read.
        let again = trigger.drains() && !self.end_fixed;
        let fixed = self.log.fold().end().filter(|_| !again).cloned();
        if fixed.is_none() || !bounded {
            self.discover(false).await?;
        }
        let mut ends: BTreeMap<usize, BTreeMap<SplitId, Position>> = BTreeMap::new();
        for (i, source) in self.sources.iter_mut().enumerate() {
            let name = SourceName::new(source.name.clone());
            let of = match fixed
                .as_ref()
                .filter(|_| bounded)
                .and_then(|f| f.get(&name))
            {
                Some(of) => of
                    .iter()
                    .map(|(id, p)| (SplitId(id.as_str().into()), log_position(p)))
                    .collect(),
                None if fixed.is_some() && bounded => BTreeMap::new(),
                None => {
                    let ids: Vec<SplitId> = self
                        .splits
                        .get(&i)
                        .into_iter()
                        .flatten()
                        .filter(|(_, s)| !s.done)
                        .map(|(id, _)| id.clone())
                        .collect();
                    source.enumerator.ends(&ids).await?
                }
            };
            ends.insert(i, of);
        }
        let once = matches!(trigger, Trigger::Once { .. });
        let mut plan_ranges: BTreeMap<usize, BTreeMap<SplitId, Span>> = BTreeMap::new();
        let mut watermarks: BTreeMap<usize, EventTime> = BTreeMap::new();
        let mut advanced = false;
        for (i, source) in self.sources.iter().enumerate() {
            let none = BTreeMap::new();
            let splits = self.splits.get(&i).unwrap_or(&none);
            let rows = source.max_rows_per_epoch.unwrap_or(self.planned_rows);
            let bounds = if once {
                Bounds {
                    rows: u64::MAX,
                    files: usize::MAX,
                }
            } else {
                Bounds {
                    rows,
                    files: source.max_files_per_epoch,
                }
            };
            if !(once && epochs > 0) {
                plan_ranges.insert(i, ranges::next_ranges(splits, &ends[&i], bounds));
            }
            let floor = self.floor.get(&i).copied().unwrap_or(EventTime::MIN);
            if let Some(ooo) = source.out_of_orderness {
                let t = ranges::watermark(splits, &ends[&i], ooo).map_or(floor, |t| t.max(floor));
                advanced |= t > floor;
                watermarks.insert(i, t);
            }
        }
        let empty = plan_ranges.values().all(BTreeMap::is_empty);
        if empty {
            let drained = self.floor.values().all(|t| *t == EventTime::MAX);
            if trigger.drains() && !drained {
                watermarks = (0..self.sources.len())
                    .map(|i| (i, EventTime::MAX))
                    .collect();
            } else if !advanced || drained {
                return Ok(None);
            }
        }
        let plan = self.plan_record(&plan_ranges, &watermarks, fixed.is_none() && bounded, &ends);
        fault::point("plan.before");
        let record = EpochRecord {
            commit: None,
            plan: Some(plan.clone()),
            done_through: self.done_through(),
        };
        self.log
            .append(self.generation, Kind::Epoch(record))
            .await
            .map_err(storage)?;
        self.end_fixed |= plan.end.is_some();
        fault::point("plan.after");
        Ok(Some(plan))
    }

    pub(super) fn plan_record(
        &self,
        ranges: &BTreeMap<usize, BTreeMap<SplitId, Span>>,
        watermarks: &BTreeMap<usize, EventTime>,
        fix_end: bool,
        ends: &BTreeMap<usize, BTreeMap<SplitId, Position>>,
    ) -> Plan {
        let name = |i: &usize| SourceName::new(self.sources[*i].name.clone());
        let split = |id: &SplitId| LogSplit::new(id.0.to_string());
        let offset = |p: Position| LogPosition::Offset(p.0);
        let of = |spans: &BTreeMap<SplitId, Span>| {
            spans
                .iter()
                .map(|(id, s)| {
                    (
                        split(id),
                        Range {
                            from: offset(s.from),
                            to: offset(s.to),
                        },
                    )
                })
                .collect()
        };
        let end = fix_end.then(|| {
            ends.iter()
                .map(|(i, e)| {
                    (
                        name(i),
                        e.iter().map(|(id, p)| (split(id), offset(*p))).collect(),
                    )
                })
                .collect()
        });
        Plan {
            epoch: self.log.fold().next_epoch(),
            ranges: ranges
                .iter()
                .map(|(i, spans)| (name(i), of(spans)))
                .collect(),
            end,
            watermark: watermarks
                .iter()
                .map(|(i, t)| (name(i), Micros::new(t.micros())))
                .collect(),
            now: Micros::from_millis(self.now_ms()),
        }
    }

    /// Runs what the log says, whether this generation planned it or an earlier one.
    pub(super) async fn run_plan(&mut self, plan: Plan, began: Instant) -> Result<()> {
        let mut assignments: BTreeMap<usize, Vec<Assignment>> = BTreeMap::new();
        let mut watermarks = BTreeMap::new();
        let mut rows = 0u64;
        for (i, source) in self.sources.iter().enumerate() {
            let name = SourceName::new(source.name.clone());
            let of = plan.ranges.get(&name).into_iter().flatten();
            let splits = self.splits.entry(i).or_default();
            let mut share = Vec::new();
            for (id, range) in of {
                let id = SplitId(id.as_str().into());
                let from = log_position(&range.from);
                let to = log_position(&range.to);
                if to != Position::END {
                    rows += u64::try_from(to.0 - from.0).unwrap_or(0);
                }
                let state = splits.entry(id.clone()).or_insert_with(|| SplitState {
                    position: range.from.clone(),
                    max_event_time: None,
                    idle: false,
                    done: false,
                });
                // Behind its range only where a loss was accepted since it was planned.
                if ranges::position(state) < to {
                    share.push(assignment_of(&id, state, Some(to)));
                }
            }
            assignments.insert(i, share);
            if let Some(t) = plan.watermark.get(&name) {
                watermarks.insert(i, EventTime::from_micros(t.get()));
            }
        }
        let now_ms = plan.now.get().div_euclid(1000);
        let barrier = Barrier {
            epoch: plan.epoch.get(),
            generation: self.generation.get(),
            kind: BarrierKind::Checkpoint,
            now_ms,
        };
        let trace = traceparent(&tracing::Span::current());
        self.tell(ToMember::Plan(
            assignments,
            watermarks.clone(),
            barrier,
            trace,
        ));
        let snapshot = self.snapshot(barrier.epoch).await?;
        for (i, t) in watermarks {
            let floor = self.floor.entry(i).or_insert(EventTime::MIN);
            *floor = (*floor).max(t);
        }
        let bytes = snapshot.bytes;
        self.commit_snapshot(snapshot, barrier, began).await?;
        self.accept_when_due().await?;
        // The next epoch should take about the interval, and write no more than its share of memory; what was measured is in no decision but its size, which is logged.
        let took = began.elapsed().as_secs_f64().max(0.001);
        if rows > 0 {
            let by_time = self.settings.interval.as_secs_f64() / took;
            let by_bytes = self.settings.epoch_bytes as f64 / bytes.max(1) as f64;
            let fit = (rows as f64 * by_time.min(by_bytes)) as u64;
            self.planned_rows = fit
                .clamp(self.planned_rows / 2, self.planned_rows.saturating_mul(4))
                .clamp(10_000, 5_000_000);
        }
        Ok(())
    }
}
