//! Emitting one window: merging its panes part by part, so that a window of many keys streams out. Rows leave in the order of
//! their keys' hashes, whether state was in memory or was read back: an epoch that runs again writes the same bytes.

use arrow::array::{ArrayRef, RecordBatch};
use bytes::Bytes;
use penstock_plan::graph::Emit;

use super::super::groups::{GroupIndex, NO_GROUP};
use super::super::hot::{Place, StateKeys, Table, found, read_page};
use super::super::panes::Span;
use super::super::rows::{assemble, take_rows};
use super::super::window::{WINDOW_TIME_GAP, from_micros};
use super::super::{Context, Progress};
use super::{Columns, WindowAggregate, kinds};
use crate::error::Result;
use crate::keys::key_group;
use crate::message::{Batch, Lane, RowKind};

/// Below so many groups a window is merged at once.
const AT_ONCE: usize = 1 << 16;

/// A window that is being emitted.
pub(super) struct Closing {
    pub window: Span,
    part: Option<Part>,
    /// The next key group to merge, counted from the slot's first.
    next_group: usize,
    /// All groups in one part.
    at_once: bool,
    /// That part is the pane's own table: a window of one pane needs no merging.
    direct: bool,
    /// Per pane of the window its groups by key group; empty when merged at once.
    buckets: Vec<(Span, Vec<Vec<u32>>)>,
}

/// Groups that wait to be emitted.
enum Part {
    /// Of the pane's own table.
    Pane { order: Vec<u32>, next: usize },
    Merged {
        table: Box<Table>,
        order: Vec<u32>,
        next: usize,
    },
}

/// All groups by key group and hash. Where hashes are equal the older group comes first.
fn by_hash(index: &GroupIndex, total_groups: u16) -> Vec<u32> {
    let mut order: Vec<u32> = (0..index.len() as u32).collect();
    order.sort_unstable_by_key(|&g| {
        let hash = index.hash(g);
        (key_group(hash, total_groups), hash, g)
    });
    order
}

impl WindowAggregate {
    pub(super) fn begin(&self, window: Span) -> Result<Closing> {
        let panes: Vec<Span> = self
            .plan
            .windows
            .panes_of(window)
            .into_iter()
            .filter(|p| self.panes.contains_key(p))
            .collect();
        let complete = panes.iter().all(|p| self.panes[p].complete);
        let groups: usize = panes.iter().map(|p| self.panes[p].table.index.len()).sum();
        let updates = self.plan.emit == Emit::OnUpdate;
        let direct = !updates && complete && panes == [window];
        Ok(Closing {
            window,
            part: None,
            next_group: 0,
            direct,
            at_once: updates || (complete && groups <= AT_ONCE),
            buckets: panes.into_iter().map(|p| (p, Vec::new())).collect(),
        })
    }

    /// Emits until the output is full or the window is done.
    pub(super) fn step(&mut self, closing: &mut Closing, cx: &mut Context<'_>) -> Result<Progress> {
        loop {
            match closing.part.take() {
                None => {
                    if !self.next_part(closing, cx)? {
                        return Ok(Progress::Idle);
                    }
                }
                Some(Part::Pane { order, next }) => {
                    let mut hot = self
                        .panes
                        .remove(&closing.window)
                        .expect("a direct window's pane stays until it was emitted");
                    let left = self.emit_some(&mut hot.table, &order, next, closing.window, cx);
                    self.panes.insert(closing.window, hot);
                    match left? {
                        None => return Ok(Progress::Idle),
                        Some(next) => closing.part = Some(Part::Pane { order, next }),
                    }
                    if cx.output.is_full() {
                        return Ok(Progress::More);
                    }
                }
                Some(Part::Merged {
                    mut table,
                    order,
                    next,
                }) => {
                    let left = self.emit_some(&mut table, &order, next, closing.window, cx)?;
                    if let Some(next) = left {
                        closing.part = Some(Part::Merged { table, order, next });
                    }
                    if cx.output.is_full() {
                        return Ok(Progress::More);
                    }
                }
            }
        }
    }

    /// Merges the next part; false: there is none.
    fn next_part(&mut self, closing: &mut Closing, cx: &mut Context<'_>) -> Result<bool> {
        let own = cx.state.key_groups();
        if closing.next_group >= own.len() {
            return Ok(false);
        }
        let total = cx.state.total_groups();
        if closing.direct {
            closing.next_group = own.len();
            let order = by_hash(&self.panes[&closing.window].table.index, total);
            closing.part = Some(Part::Pane { order, next: 0 });
            return Ok(true);
        }
        let mut merged = self.plan.shape.table(false)?;
        if closing.at_once {
            closing.next_group = own.len();
            if self.plan.emit == penstock_plan::graph::Emit::OnUpdate {
                self.merge_changed(closing, &mut merged, cx)?;
            } else {
                for (pane, _) in &closing.buckets {
                    let groups: Vec<u32> = (0..self.panes[pane].table.index.len() as u32).collect();
                    self.merge_hot(*pane, &groups, &mut merged)?;
                }
            }
        } else {
            self.fill_buckets(closing, cx);
            while closing.next_group < own.len() && merged.index.len() < self.switches.emit_rows {
                let at = closing.next_group;
                closing.next_group += 1;
                for i in 0..closing.buckets.len() {
                    let pane = closing.buckets[i].0;
                    let groups = std::mem::take(&mut closing.buckets[i].1[at]);
                    self.merge_hot(pane, &groups, &mut merged)?;
                    if !self.panes[&pane].complete && self.panes[&pane].persisted[at] {
                        self.merge_cold(pane, own.start + at as u16, &mut merged, cx)?;
                    }
                }
            }
        }
        closing.part = Some(Part::Merged {
            order: by_hash(&merged.index, total),
            table: Box::new(merged),
            next: 0,
        });
        Ok(true)
    }

    fn fill_buckets(&self, closing: &mut Closing, cx: &Context<'_>) {
        let own = cx.state.key_groups();
        let total = cx.state.total_groups();
        for (pane, buckets) in &mut closing.buckets {
            if !buckets.is_empty() {
                continue;
            }
            buckets.resize(own.len(), Vec::new());
            let index = &self.panes[pane].table.index;
            for g in 0..index.len() as u32 {
                // Groups of other slots were refused when they came.
                let at = key_group(index.hash(g), total).saturating_sub(own.start);
                if let Some(bucket) = buckets.get_mut(usize::from(at)) {
                    bucket.push(g);
                }
            }
        }
    }

    fn merge_hot(&mut self, pane: Span, groups: &[u32], merged: &mut Table) -> Result<()> {
        let hot = self
            .panes
            .get_mut(&pane)
            .expect("the window's panes live until it is emitted");
        for groups in groups.chunks(4096) {
            let columns = hot.table.index.columns(groups)?;
            let hashes: Vec<u64> = groups.iter().map(|g| hot.table.index.hash(*g)).collect();
            let to = merged.index.intern(&columns, &hashes, &[])?;
            self.plan
                .shape
                .merge_groups(&mut hot.table, groups, merged, &to)?;
        }
        Ok(())
    }

    /// Merges what state holds of a pane and memory does not.
    fn merge_cold(
        &mut self,
        pane: Span,
        group: u16,
        merged: &mut Table,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let place = self.place(pane);
        let mut after: Option<Bytes> = None;
        loop {
            let hot = &self.panes[&pane];
            let page = read_page(
                &hot.table.index,
                &place,
                group,
                after.as_deref(),
                cx.state,
                cx.now_ms,
            )?;
            let in_memory = hot.table.index.lookup(&page.columns, &page.hashes, &[])?;
            let to = merged.index.intern(&page.columns, &page.hashes, &[])?;
            for ((value, to), in_memory) in page.values.iter().zip(to).zip(in_memory) {
                if in_memory == NO_GROUP {
                    self.plan.shape.merge_value(merged, to, value)?;
                }
            }
            after = page.after;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Merges all panes' states of the keys that changed in any of them since consumers were told.
    fn merge_changed(
        &mut self,
        closing: &Closing,
        merged: &mut Table,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        for (pane, _) in &closing.buckets {
            let table = &self.panes[pane].table;
            let columns = table.index.columns(table.untold())?;
            let hashes: Vec<u64> = table
                .untold()
                .iter()
                .map(|g| table.index.hash(*g))
                .collect();
            merged.index.intern(&columns, &hashes, &[])?;
        }
        let all: Vec<u32> = (0..merged.index.len() as u32).collect();
        for part in all.chunks(4096) {
            let columns = merged.index.columns(part)?;
            let hashes: Vec<u64> = part.iter().map(|g| merged.index.hash(*g)).collect();
            for (pane, _) in &closing.buckets {
                let place = self.place(*pane);
                let hot = self
                    .panes
                    .get_mut(pane)
                    .expect("the window's panes live until it is emitted");
                let groups = if hot.complete {
                    hot.table.index.lookup(&columns, &hashes, &[])?
                } else {
                    hot.intern(
                        &self.plan.shape,
                        &place,
                        &columns,
                        &hashes,
                        cx.state,
                        cx.now_ms,
                    )?
                };
                let (positions, from) = found(&groups);
                let to: Vec<u32> = positions.iter().map(|p| part[*p as usize]).collect();
                self.plan
                    .shape
                    .merge_groups(&mut hot.table, &from, merged, &to)?;
            }
        }
        Ok(())
    }

    /// Emits groups of `order` from its place `next` on; the next place, or `None` after the last.
    fn emit_some(
        &mut self,
        table: &mut Table,
        order: &[u32],
        next: usize,
        window: Span,
        cx: &mut Context<'_>,
    ) -> Result<Option<usize>> {
        let to = order.len().min(next + self.switches.emit_rows);
        let groups = order[next..to].to_vec();
        if self.plan.emit == Emit::OnUpdate {
            self.emit_changes(table, &groups, window, cx)?;
        } else {
            let groups: Vec<u32> = if self.plan.retract {
                groups.into_iter().filter(|g| table.rows(*g) > 0).collect()
            } else {
                groups
            };
            if !groups.is_empty() {
                let rows = self.output_rows(table, &groups, window)?;
                cx.output.emit(Batch::inserts(rows));
            }
        }
        Ok((to < order.len()).then_some(to))
    }

    fn output_rows(&self, table: &mut Table, groups: &[u32], window: Span) -> Result<RecordBatch> {
        let schema = &self.plan.output;
        let results = table.results(groups)?;
        let columns = match self.plan.columns {
            Columns::Row => results,
            Columns::KeysAndWindow => {
                let mut columns: Vec<ArrayRef> = table.index.columns(groups)?;
                let times = [
                    window.start,
                    window.end,
                    window.end.saturating_sub(WINDOW_TIME_GAP),
                ];
                for t in times {
                    let to = schema.field(columns.len()).data_type();
                    columns.push(from_micros(vec![t; groups.len()], to)?);
                }
                columns.extend(results);
                columns
            }
        };
        assemble(schema, columns, groups.len())
    }

    /// Emits what changed against what consumers have.
    fn emit_changes(
        &mut self,
        table: &mut Table,
        groups: &[u32],
        window: Span,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let place = Place {
            table: self.tables.emitted,
            prefix: window.prefix(),
        };
        let keys = StateKeys::new(&table.index, groups, &place, cx.state)?;
        let keys = keys.pairs();
        let old = cx.state.get_many(place.table, &keys, cx.now_ms)?;
        let rows = self.output_rows(table, groups, window)?;
        let encoded = self.codec.encode(rows.columns())?;
        let mut changes = Vec::new();
        let mut olds: Vec<&[u8]> = Vec::new();
        // Rows of the output by position: new rows first, then old ones.
        let mut order: Vec<u32> = Vec::new();
        let old_at = |olds: &mut Vec<_>, row| {
            olds.push(row);
            (groups.len() + olds.len() - 1) as u32
        };
        for (i, (key_group, key)) in keys.iter().enumerate() {
            let new = encoded.row(i).data();
            let present = !self.plan.retract || table.rows(groups[i]) > 0;
            match (&old[i], present) {
                (None, false) => continue,
                (None, true) => {
                    changes.push(RowKind::Insert);
                    order.push(i as u32);
                }
                (Some(old), true) if old[..] == *new => continue,
                (Some(old), true) => {
                    changes.push(RowKind::UpdateBefore);
                    order.push(old_at(&mut olds, &old[..]));
                    changes.push(RowKind::UpdateAfter);
                    order.push(i as u32);
                }
                (Some(old), false) => {
                    changes.push(RowKind::Delete);
                    order.push(old_at(&mut olds, &old[..]));
                }
            }
            if present {
                cx.state.put(place.table, *key_group, key, new, cx.now_ms);
            } else {
                cx.state.delete(place.table, *key_group, key);
            }
        }
        if order.is_empty() {
            return Ok(());
        }
        let mut both = vec![rows];
        if !olds.is_empty() {
            let columns = self.codec.decode(olds.iter().copied())?;
            both.push(assemble(&self.plan.output, columns, olds.len())?);
        }
        let all = arrow::compute::concat_batches(&self.plan.output, &both)
            .map_err(|e| super::super::rows::internal("changes", e))?;
        cx.output.emit(Batch {
            rows: take_rows(&all, &order)?,
            kinds: kinds(changes),
            lane: Lane::Main,
        });
        Ok(())
    }
}
