//! Hot tables: groups with their accumulators in memory, over the slot's state. Owns loading what is missing, writing what
//! changed, and eviction; when any of it happens is the operators'.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use penstock_plan::graph::Aggregate;

use super::accumulate::{Accumulator, Selection, Spec};
use super::best::{Best, BestOfAll, RowOrder};
use super::groups::{GroupIndex, NO_GROUP};
use super::rows::{STATE_VERSION, adds, corrupt, get_fixed, get_signed, put_signed};
use crate::error::{EngineError, Result};
use crate::keys::{hash_columns, key_group};
use crate::message::Batch;
use crate::state::{SlotState, TableId};

/// What a table accumulates per group.
pub struct Shape {
    key_types: Vec<DataType>,
    specs: Vec<Made>,
    /// Net number of rows per group is kept: with retractions, and where a group's birth and end matter.
    counts_rows: bool,
    /// Changes are told more often than they are written: tables keep apart what was not told yet.
    at_once: bool,
}

enum Made {
    Sql(Spec),
    Best { order: RowOrder, retract: bool },
}

impl Shape {
    pub fn of_aggregates(
        key_types: Vec<DataType>,
        aggregates: &[Aggregate],
        input: &SchemaRef,
        retract: bool,
        counts_rows: bool,
    ) -> Self {
        let specs = aggregates
            .iter()
            .map(|a| Made::Sql(Spec::new(a, input, retract)))
            .collect();
        Self {
            key_types,
            specs,
            counts_rows,
            at_once: false,
        }
    }

    pub fn of_best(
        key_types: Vec<DataType>,
        order: RowOrder,
        retract: bool,
        counts_rows: bool,
    ) -> Self {
        Self {
            key_types,
            specs: vec![Made::Best { order, retract }],
            counts_rows,
            at_once: false,
        }
    }

    /// Consumers may be told of changes before they are written.
    pub fn told_at_once(self, at_once: bool) -> Self {
        Self { at_once, ..self }
    }

    pub fn table(&self, tagged: bool) -> Result<Table> {
        Ok(Table {
            index: GroupIndex::new(&self.key_types, tagged)?,
            accumulators: self.make()?,
            rows: Vec::new(),
            changed: Marks::default(),
            untold: self.at_once.then(Marks::default),
        })
    }

    fn make(&self) -> Result<Vec<Box<dyn Accumulator>>> {
        self.specs
            .iter()
            .map(|s| match s {
                Made::Sql(spec) => spec.make(),
                Made::Best { order, retract } => {
                    let order = order.clone();
                    Ok(if *retract {
                        Box::new(BestOfAll::new(order)?) as Box<dyn Accumulator>
                    } else {
                        Box::new(Best::new(order)?)
                    })
                }
            })
            .collect()
    }

    /// Columns that each aggregate's partial state takes.
    pub fn partial_widths(&self) -> Result<Vec<usize>> {
        self.specs
            .iter()
            .map(|s| match s {
                Made::Sql(spec) => Ok(spec.partial_types()?.len()),
                Made::Best { order, .. } => Ok(order.schema().fields().len()),
            })
            .collect()
    }

    /// Takes rows into groups, which have been interned.
    pub fn update(&self, table: &mut Table, batch: &Batch, groups: &[u32]) -> Result<()> {
        table.grow();
        let adds = adds(batch.kinds.as_ref());
        for (made, accumulator) in self.specs.iter().zip(&mut table.accumulators) {
            let (args, filter): (Vec<ArrayRef>, _) = match made {
                Made::Sql(spec) => (
                    spec.aggregate
                        .args
                        .iter()
                        .map(|a| Arc::clone(batch.rows.column(*a)))
                        .collect(),
                    spec.aggregate.filter,
                ),
                Made::Best { .. } => (batch.rows.columns().to_vec(), None),
            };
            let selection = Selection {
                groups,
                adds: adds.as_deref(),
                filter: filter.map(|f| batch.rows.column(f).as_boolean()),
            };
            accumulator.update(&args, selection)?;
        }
        if self.counts_rows {
            for (i, g) in groups.iter().enumerate() {
                let add = adds.as_ref().is_none_or(|a| a[i]);
                table.rows[*g as usize] += if add { 1 } else { -1 };
            }
        }
        Ok(())
    }

    /// Merges partial states, the aggregates' columns one after another.
    pub fn merge_partial(
        &self,
        table: &mut Table,
        states: &[ArrayRef],
        groups: &[u32],
    ) -> Result<()> {
        table.grow();
        let mut rest = states;
        for (width, accumulator) in self
            .partial_widths()?
            .into_iter()
            .zip(&mut table.accumulators)
        {
            let (head, tail) = rest
                .split_at_checked(width)
                .ok_or_else(|| corrupt("too few columns of partial state"))?;
            accumulator.merge(head, groups)?;
            rest = tail;
        }
        if self.counts_rows {
            for g in groups {
                table.rows[*g as usize] += 1;
            }
        }
        Ok(())
    }

    /// Merges groups of one table into groups of another.
    pub fn merge_groups(
        &self,
        from: &mut Table,
        from_groups: &[u32],
        to: &mut Table,
        to_groups: &[u32],
    ) -> Result<()> {
        to.grow();
        let mut buffer = Vec::new();
        for (a, b) in from.accumulators.iter_mut().zip(&mut to.accumulators) {
            if let Some(states) = a.partial(from_groups)? {
                b.merge(&states, to_groups)?;
                continue;
            }
            for (x, y) in from_groups.iter().zip(to_groups) {
                buffer.clear();
                a.encode(*x, &mut buffer)?;
                b.merge_encoded(*y, &mut &buffer[..])?;
            }
        }
        if self.counts_rows {
            for (x, y) in from_groups.iter().zip(to_groups) {
                to.rows[*y as usize] += from.rows[*x as usize];
            }
        }
        Ok(())
    }

    fn encode(&self, table: &mut Table, group: u32, out: &mut Vec<u8>) -> Result<()> {
        out.push(STATE_VERSION);
        if self.counts_rows {
            put_signed(out, table.rows[group as usize]);
        }
        for a in &mut table.accumulators {
            a.encode(group, out)?;
        }
        Ok(())
    }

    /// Merges a value of state into a group.
    pub fn merge_value(&self, table: &mut Table, group: u32, mut value: &[u8]) -> Result<()> {
        table.grow();
        if get_fixed(&mut value, 1)? != [STATE_VERSION] {
            return Err(corrupt("another version"));
        }
        if self.counts_rows {
            table.rows[group as usize] += get_signed(&mut value)?;
        }
        for a in &mut table.accumulators {
            a.merge_encoded(group, &mut value)?;
        }
        if value.is_empty() {
            Ok(())
        } else {
            Err(corrupt("bytes after the last aggregate"))
        }
    }
}

/// Groups, each once, in the order in which they were marked.
#[derive(Default)]
struct Marks {
    set: Vec<bool>,
    list: Vec<u32>,
}

impl Marks {
    /// Those of `groups` that were not marked yet. `total`: groups there are.
    fn mark(&mut self, groups: &[u32], total: usize) -> Vec<u32> {
        if self.set.len() < total {
            self.set.resize(total, false);
        }
        let before = self.list.len();
        for g in groups {
            if !self.set[*g as usize] {
                self.set[*g as usize] = true;
                self.list.push(*g);
            }
        }
        self.list[before..].to_vec()
    }

    fn clear(&mut self) {
        for g in self.list.drain(..) {
            self.set[g as usize] = false;
        }
    }

    fn memory_bytes(&self) -> usize {
        self.set.capacity() + self.list.capacity() * 4
    }
}

/// Groups in memory.
pub struct Table {
    pub index: GroupIndex,
    accumulators: Vec<Box<dyn Accumulator>>,
    rows: Vec<i64>,
    /// Since the last barrier: to be written.
    changed: Marks,
    /// Changed since consumers were told last, where that is not at the barrier alone.
    untold: Option<Marks>,
}

impl Table {
    fn grow(&mut self) {
        let groups = self.index.len();
        if self.rows.len() == groups {
            return;
        }
        for a in &mut self.accumulators {
            a.grow(groups);
        }
        self.rows.resize(groups, 0);
    }

    /// Marks groups as changed; answers those of which consumers still have the state before the call: not marked since the
    /// last barrier, or since [`Self::told`] where changes leave at once.
    pub fn mark(&mut self, groups: &[u32]) -> Vec<u32> {
        self.grow();
        let total = self.index.len();
        let fresh = self.changed.mark(groups, total);
        match &mut self.untold {
            Some(untold) => untold.mark(groups, total),
            None => fresh,
        }
    }

    /// Groups whose changes consumers have not been told of.
    pub fn untold(&self) -> &[u32] {
        &self.untold.as_ref().unwrap_or(&self.changed).list
    }

    /// Consumers have been told of all changes.
    pub fn told(&mut self) {
        if let Some(untold) = &mut self.untold {
            untold.clear();
        }
    }

    /// Net rows of a group; of tables that count them.
    pub fn rows(&self, group: u32) -> i64 {
        self.rows.get(group as usize).copied().unwrap_or(0)
    }

    pub fn set_rows(&mut self, group: u32, rows: i64) {
        self.grow();
        self.rows[group as usize] = rows;
    }

    pub fn results(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.grow();
        let mut out = Vec::new();
        for a in &mut self.accumulators {
            out.extend(a.result(groups)?);
        }
        Ok(out)
    }

    pub fn partials(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut out = Vec::new();
        for a in &self.accumulators {
            let states = a.partial(groups)?;
            out.extend(
                states.ok_or_else(|| {
                    super::accumulate::unsupported("this aggregate in two phases")
                })?,
            );
        }
        Ok(out)
    }

    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
            + self.rows.capacity() * 8
            + self.changed.memory_bytes()
            + self.untold.as_ref().map_or(0, Marks::memory_bytes)
            + self
                .accumulators
                .iter()
                .map(|a| a.memory_bytes())
                .sum::<usize>()
    }
}

/// Where a hot table rests in the slot's state: keys are `prefix` and the key's row bytes.
#[derive(Debug, Clone)]
pub struct Place {
    pub table: TableId,
    pub prefix: Vec<u8>,
}

/// A table over state.
pub struct Hot {
    pub table: Table,
    /// Every key that state holds is in memory: a miss is a miss.
    pub complete: bool,
    /// Per own key group, whether state may hold keys below the prefix.
    pub persisted: Vec<bool>,
}

impl Hot {
    /// `complete`: state holds nothing at its place.
    pub fn new(shape: &Shape, state: &SlotState, complete: bool) -> Result<Self> {
        Ok(Self {
            table: shape.table(false)?,
            complete,
            persisted: vec![!complete; state.key_groups().len()],
        })
    }

    /// Groups of keys, new ones at the end, read from state where they were not in memory.
    pub fn intern(
        &mut self,
        shape: &Shape,
        place: &Place,
        columns: &[ArrayRef],
        hashes: &[u64],
        state: &mut SlotState,
        now_ms: i64,
    ) -> Result<Vec<u32>> {
        let before = self.table.index.len();
        let groups = self.table.index.intern(columns, hashes, &[])?;
        self.table.grow();
        let after = self.table.index.len();
        if self.complete || before == after {
            return Ok(groups);
        }
        let new: Vec<u32> = (before as u32..after as u32).collect();
        let keys = StateKeys::new(&self.table.index, &new, place, state)?;
        let values = state.get_many(place.table, &keys.pairs(), now_ms)?;
        for (g, value) in new.iter().zip(values) {
            if let Some(value) = value {
                shape.merge_value(&mut self.table, *g, &value)?;
            }
        }
        Ok(groups)
    }

    /// Writes what changed since the last barrier.
    pub fn persist(
        &mut self,
        shape: &Shape,
        place: &Place,
        state: &mut SlotState,
        now_ms: i64,
    ) -> Result<()> {
        let first = state.key_groups().start;
        #[cfg(test)]
        if self.complete && crate::planted::switch::REWRITES.get() {
            self.rewrite(place, state);
        }
        let changed = std::mem::take(&mut self.table.changed.list);
        let mut value = Vec::new();
        for part in changed.chunks(4096) {
            let keys = StateKeys::new(&self.table.index, part, place, state)?;
            for (g, (group, key)) in part.iter().zip(keys.pairs()) {
                self.table.changed.set[*g as usize] = false;
                let slot = usize::from(group - first);
                if shape.counts_rows && self.table.rows[*g as usize] == 0 {
                    if self.persisted[slot] {
                        state.delete(place.table, group, key);
                    }
                    continue;
                }
                value.clear();
                shape.encode(&mut self.table, *g, &mut value)?;
                state.put(place.table, group, key, &value, now_ms);
                self.persisted[slot] = true;
            }
        }
        Ok(())
    }

    /// Deletes the place by its prefix and has everything written anew: the same state, by deletes that puts follow.
    #[cfg(test)]
    fn rewrite(&mut self, place: &Place, state: &mut SlotState) {
        let first = state.key_groups().start;
        for (group, persisted) in (first..).zip(&mut self.persisted) {
            if std::mem::take(persisted) {
                state.delete_prefix(place.table, group, &place.prefix);
            }
        }
        let all: Vec<u32> = (0..self.table.index.len() as u32).collect();
        self.table.changed.mark(&all, all.len());
    }

    /// Forgets what is in memory; nothing may be unwritten.
    pub fn evict(&mut self, shape: &Shape) -> Result<()> {
        debug_assert!(self.table.changed.list.is_empty() && self.table.untold().is_empty());
        self.complete = !self.persisted.contains(&true);
        self.table = shape.table(false)?;
        Ok(())
    }
}

/// State keys of groups, in one buffer.
pub struct StateKeys {
    data: Vec<u8>,
    ends: Vec<(u16, usize)>,
}

impl StateKeys {
    pub fn new(
        index: &GroupIndex,
        groups: &[u32],
        place: &Place,
        state: &SlotState,
    ) -> Result<Self> {
        let rows = index.codec().encode(&index.columns(groups)?)?;
        let total = state.total_groups();
        let mut data = Vec::new();
        let mut ends = Vec::with_capacity(groups.len());
        for (i, g) in groups.iter().enumerate() {
            data.extend_from_slice(&place.prefix);
            // Without key columns there are no rows to encode.
            if i < rows.num_rows() {
                data.extend_from_slice(rows.row(i).data());
            }
            let group = key_group(index.hash(*g), total);
            owned(state, group)?;
            ends.push((group, data.len()));
        }
        Ok(Self { data, ends })
    }

    pub fn pairs(&self) -> Vec<(u16, &[u8])> {
        let mut start = 0;
        self.ends
            .iter()
            .map(|(group, end)| {
                let key = &self.data[start..*end];
                start = *end;
                (*group, key)
            })
            .collect()
    }
}

/// A row of a key group that this slot does not own came by an edge that is not hashed by exactly the operator's keys.
pub fn owned(state: &SlotState, group: u16) -> Result<()> {
    if state.key_groups().contains(&group) {
        return Ok(());
    }
    Err(EngineError::fail(
        "PR0316",
        "operator",
        format!(
            "key group {group} is not of this slot: the edge into it is not hashed by its keys"
        ),
    ))
}

/// Keys below a prefix and their values, a page at a time, as columns.
pub struct Page {
    pub columns: Vec<ArrayRef>,
    pub hashes: Vec<u64>,
    pub values: Vec<Bytes>,
    /// Where the next page begins; `None` after the last.
    pub after: Option<Bytes>,
}

/// Reads the next page of one key group.
pub fn read_page(
    index: &GroupIndex,
    place: &Place,
    group: u16,
    after: Option<&[u8]>,
    state: &SlotState,
    now_ms: i64,
) -> Result<Page> {
    const PAGE: usize = 4096;
    let found = state.scan(place.table, group, &place.prefix, after, PAGE, now_ms)?;
    let columns = index
        .codec()
        .decode(found.iter().map(|(k, _)| &k[place.prefix.len()..]))?;
    let hashes = hash_columns(&columns, found.len());
    let after = (found.len() == PAGE).then(|| found[PAGE - 1].0.clone());
    Ok(Page {
        columns,
        hashes,
        values: found.into_iter().map(|(_, v)| v).collect(),
        after,
    })
}

/// Those of `groups` that a lookup found, with their positions.
pub fn found(groups: &[u32]) -> (Vec<u32>, Vec<u32>) {
    groups
        .iter()
        .enumerate()
        .filter(|(_, g)| **g != NO_GROUP)
        .map(|(i, g)| (i as u32, *g))
        .unzip()
}
