//! Aggregation without a window, and deduplication by the last or best row, which is the same with another accumulator.
//! Takes retractions; emits the groups that changed at every barrier, or as soon as the input has run dry. State table `groups` (key -> accumulators).
//!
//! `SELECT DISTINCT` on an append edge is the exception: a key is emitted when it is first seen, and only that is kept.

use std::collections::VecDeque;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::SchemaRef;

use super::changes::{Versions, changes};
use super::groups::key_columns;
use super::hot::{Hot, Place, Shape};
use super::rows::{RowCodec, assemble};
use super::window_aggregate::Columns;
use super::{Context, Operator, Progress, Switches};
use crate::error::Result;
use crate::keys::hash_columns;
use crate::message::{Barrier, Batch, EventTime};
use crate::state::TableId;

/// When rows leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// Changed groups, several changes of one as one.
    Changed,
    /// New keys with their first row; append only.
    New,
}

/// The parts of a node that the operator is made of. The shape counts rows.
pub struct Plan {
    pub uid: String,
    pub shape: Shape,
    pub keys: Vec<usize>,
    pub columns: Columns,
    pub leaves: Leaves,
    pub ttl_ms: Option<u64>,
    pub output: SchemaRef,
}

/// What consumers have of groups that changed since the last emission.
struct Before {
    groups: Vec<u32>,
    existed: Vec<bool>,
    rows: Vec<ArrayRef>,
}

pub struct GroupAggregate {
    plan: Plan,
    switches: Switches,
    place: Place,
    hot: Option<Hot>,
    before: VecDeque<Before>,
    barrier: bool,
    codec: RowCodec,
}

impl GroupAggregate {
    pub fn new(plan: Plan, switches: Switches) -> Result<Self> {
        Ok(Self {
            place: Place {
                table: TableId::of(&plan.uid, "groups"),
                prefix: Vec::new(),
            },
            codec: RowCodec::of(&plan.output)?,
            plan,
            switches,
            hot: None,
            before: VecDeque::new(),
            barrier: false,
        })
    }

    fn open(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.hot.is_some() {
            return Ok(());
        }
        cx.state.register(self.place.table, self.plan.ttl_ms);
        let mut hot = Hot::new(&self.plan.shape, cx.state, true)?;
        for (i, group) in cx.state.key_groups().enumerate() {
            hot.persisted[i] = !cx.state.is_empty_below(self.place.table, group, &[]);
            hot.complete &= !hot.persisted[i];
        }
        self.hot = Some(hot);
        Ok(())
    }

    /// Output columns of groups as they stand.
    fn rows(plan: &Plan, hot: &mut Hot, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let results = hot.table.results(groups)?;
        Ok(match plan.columns {
            Columns::Row => results,
            Columns::KeysAndWindow => {
                let mut columns = hot.table.index.columns(groups)?;
                columns.extend(results);
                columns
            }
        })
    }

    fn emit_new(plan: &Plan, hot: &mut Hot, groups: &[u32], cx: &mut Context<'_>) -> Result<()> {
        let mut new = Vec::new();
        for g in groups {
            if hot.table.rows(*g) == 0 {
                hot.table.set_rows(*g, 1);
                new.push(*g);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        hot.table.mark(&new);
        let columns = Self::rows(plan, hot, &new)?;
        cx.output
            .emit(Batch::inserts(assemble(&plan.output, columns, new.len())?));
        Ok(())
    }

    fn pump(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        let Some(hot) = &mut self.hot else {
            return Ok(Progress::Idle);
        };
        while let Some(before) = self.before.pop_front() {
            let is: Vec<bool> = before
                .groups
                .iter()
                .map(|g| hot.table.rows(*g) > 0)
                .collect();
            let versions = Versions {
                old: before.rows,
                was: &before.existed,
                new: Self::rows(&self.plan, hot, &before.groups)?,
                is: &is,
            };
            if let Some(batch) = changes(&self.plan.output, &self.codec, versions)? {
                cx.output.emit(batch);
            }
            if cx.output.is_full() && !self.before.is_empty() {
                return Ok(Progress::More);
            }
        }
        hot.table.told();
        if std::mem::take(&mut self.barrier) {
            hot.persist(&self.plan.shape, &self.place, cx.state, cx.now_ms)?;
            // State knows which values have expired, a hot table does not: with a TTL it lives for one epoch.
            let full = hot.table.memory_bytes() > self.switches.hot_bytes;
            if full || self.plan.ttl_ms.is_some() {
                hot.evict(&self.plan.shape)?;
            }
        }
        Ok(Progress::Idle)
    }
}

impl Operator for GroupAggregate {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        let Some(hot) = &mut self.hot else {
            return Ok(Progress::Idle);
        };
        if batch.num_rows() == 0 {
            return Ok(Progress::Idle);
        }
        let columns = key_columns(&batch.rows, &self.plan.keys);
        let hashes = hash_columns(&columns, batch.num_rows());
        let groups = hot.intern(
            &self.plan.shape,
            &self.place,
            &columns,
            &hashes,
            cx.state,
            cx.now_ms,
        )?;
        if self.plan.leaves == Leaves::New {
            Self::emit_new(&self.plan, hot, &groups, cx)?;
            return Ok(Progress::Idle);
        }
        let fresh = hot.table.mark(&groups);
        if !fresh.is_empty() {
            let existed: Vec<bool> = fresh.iter().map(|g| hot.table.rows(*g) > 0).collect();
            self.before.push_back(Before {
                rows: Self::rows(&self.plan, hot, &fresh)?,
                existed,
                groups: fresh,
            });
        }
        self.plan.shape.update(&mut hot.table, &batch, &groups)?;
        if self.switches.at_once && hot.table.untold().len() >= self.switches.partial_groups {
            return self.pump(cx);
        }
        Ok(Progress::Idle)
    }

    fn on_dry(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.pump(cx)
    }

    fn on_watermark(&mut self, _t: EventTime, _cx: &mut Context<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }

    fn on_barrier(&mut self, _barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress> {
        self.barrier = true;
        self.pump(cx)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.pump(cx)
    }

    fn memory_bytes(&self) -> usize {
        let before: usize = self
            .before
            .iter()
            .map(|b| {
                let rows: usize = b.rows.iter().map(|r| r.get_array_memory_size()).sum();
                rows + b.groups.len() * 5
            })
            .sum();
        before + self.hot.as_ref().map_or(0, |h| h.table.memory_bytes())
    }

    fn state_keys(&self) -> usize {
        self.hot.as_ref().map_or(0, |h| h.table.index.len())
    }

    fn tables(&self) -> Vec<TableId> {
        vec![self.place.table]
    }
}
