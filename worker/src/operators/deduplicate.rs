//! The first row of a key by event time, emitted once, when the watermark has passed it, so that no earlier one can come.
//! (The last and the best row are `aggregate`'s, rows per window `window_aggregate`'s, with another accumulator.)
//!
//! A row whose time lies below the watermark is late, whether its key was emitted or not. State tables: `first` (key -> 0 and
//! the candidate's order and row, or 1: emitted) and `timers` (time, key -> nothing: candidates that wait). Rows rest in
//! state; memory holds the keys and times of waiting candidates only.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use arrow::array::BooleanArray;
use arrow::datatypes::SchemaRef;
use arrow_row::RowConverter;
use bytes::Bytes;

use super::best::RowOrder;
use super::groups::{GroupIndex, NO_GROUP, key_columns};
use super::hot::{Place, StateKeys};
use super::rows::{
    RowCodec, STATE_VERSION, assemble, corrupt, from_sortable, get_bytes, get_fixed, get_signed,
    internal, put_bytes, put_signed, sortable, split, take_rows,
};
use super::window::{time_at, to_micros};
use super::{Context, Operator, Progress, Switches};
use crate::error::Result;
use crate::keys::hash_columns;
use crate::message::{Barrier, Batch, EventTime};
use crate::state::TableId;

/// The parts of a node that the operator is made of.
pub struct Plan {
    pub uid: String,
    pub keys: Vec<usize>,
    /// The event-time column: the first of the order.
    pub time: usize,
    pub order: RowOrder,
    pub ttl_ms: Option<u64>,
    pub schema: SchemaRef,
}

/// Waiting keys of one time, with whether state has the timer.
type Waiting = BTreeMap<(u16, Bytes), bool>;

pub struct FirstByTime {
    plan: Plan,
    switches: Switches,
    first: Place,
    timers: TableId,
    rank: RowConverter,
    codec: RowCodec,
    waiting: BTreeMap<i64, Waiting>,
    count: usize,
    key_bytes: usize,
    watermark: i64,
    opened: bool,
}

const WAITS: u8 = 0;
const EMITTED: u8 = 1;

/// What state says of a key.
enum Held<'a> {
    Waits {
        time: i64,
        order: &'a [u8],
        row: &'a [u8],
    },
    Emitted,
}

fn read(mut value: &[u8]) -> Result<Held<'_>> {
    match get_fixed(&mut value, 2)? {
        [STATE_VERSION, EMITTED] => Ok(Held::Emitted),
        [STATE_VERSION, WAITS] => Ok(Held::Waits {
            time: get_signed(&mut value)?,
            order: get_bytes(&mut value)?,
            row: get_bytes(&mut value)?,
        }),
        _ => Err(corrupt("another version")),
    }
}

impl FirstByTime {
    pub fn new(plan: Plan, switches: Switches) -> Result<Self> {
        Ok(Self {
            first: Place {
                table: TableId::of(&plan.uid, "first"),
                prefix: Vec::new(),
            },
            timers: TableId::of(&plan.uid, "timers"),
            rank: plan.order.converter()?,
            codec: RowCodec::of(&plan.schema)?,
            plan,
            switches,
            waiting: BTreeMap::new(),
            count: 0,
            key_bytes: 0,
            watermark: i64::MIN,
            opened: false,
        })
    }

    fn open(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        cx.state.register(self.first.table, self.plan.ttl_ms);
        cx.state.register(self.timers, None);
        for group in cx.state.key_groups() {
            let mut after: Option<Bytes> = None;
            loop {
                let page =
                    cx.state
                        .scan(self.timers, group, &[], after.as_deref(), 4096, cx.now_ms)?;
                for (key, _) in &page {
                    let time = from_sortable(&mut &key[..])?;
                    self.wait(time, group, &key[8..], true);
                }
                if page.len() < 4096 {
                    break;
                }
                after = page.last().map(|(k, _)| k.clone());
            }
        }
        Ok(())
    }

    fn wait(&mut self, time: i64, group: u16, key: &[u8], persisted: bool) {
        let keys = self.waiting.entry(time).or_default();
        if let Entry::Vacant(e) = keys.entry((group, Bytes::copy_from_slice(key))) {
            e.insert(persisted);
            self.count += 1;
            self.key_bytes += key.len();
        }
    }

    fn take(&mut self, batch: Batch, cx: &mut Context<'_>) -> Result<()> {
        let times = to_micros(batch.rows.column(self.plan.time))?;
        let late = |i: usize| time_at(&times, i).is_none_or(|t| t < self.watermark);
        let mask: Vec<bool> = (0..batch.num_rows()).map(|i| !late(i)).collect();
        let batch = if mask.contains(&false) {
            let (good, late) = split(batch, &BooleanArray::from(mask))?;
            cx.output.late(late.rows);
            good
        } else {
            batch
        };
        if batch.num_rows() == 0 {
            return Ok(());
        }
        // The best row of each key of the batch.
        let columns = key_columns(&batch.rows, &self.plan.keys);
        let types: Vec<_> = columns.iter().map(|c| c.data_type().clone()).collect();
        let hashes = hash_columns(&columns, batch.num_rows());
        let mut index = GroupIndex::new(&types, false)?;
        let groups = index.intern(&columns, &hashes, &[])?;
        let all = batch.rows.columns();
        let ranks = self
            .rank
            .convert_columns(&self.plan.order.columns(all))
            .map_err(|e| internal("an order", e))?;
        let mut best = vec![NO_GROUP; index.len()];
        for (i, g) in groups.iter().enumerate() {
            let slot = &mut best[*g as usize];
            if *slot == NO_GROUP || ranks.row(i) < ranks.row(*slot as usize) {
                *slot = i as u32;
            }
        }
        let rows = self
            .codec
            .encode(take_rows(&batch.rows, &best)?.columns())?;
        let times = to_micros(batch.rows.column(self.plan.time))?;
        let ids: Vec<u32> = (0..index.len() as u32).collect();
        let keys = StateKeys::new(&index, &ids, &self.first, cx.state)?;
        let pairs = keys.pairs();
        let held = cx.state.get_many(self.first.table, &pairs, cx.now_ms)?;
        let mut value = Vec::new();
        for (i, ((group, key), held)) in pairs.iter().zip(held).enumerate() {
            let row = best[i] as usize;
            let (rank, bytes, time) = (ranks.row(row).data(), rows.row(i).data(), times.value(row));
            if let Some(held) = &held {
                match read(held)? {
                    Held::Emitted => continue,
                    Held::Waits { order, row, .. } if (order, row) <= (rank, bytes) => continue,
                    Held::Waits { time: old, .. } if old != time => {
                        self.unwait(old, *group, key, cx)
                    }
                    Held::Waits { .. } => {}
                }
            }
            value.clear();
            value.extend_from_slice(&[STATE_VERSION, WAITS]);
            put_signed(&mut value, time);
            put_bytes(&mut value, rank);
            put_bytes(&mut value, bytes);
            cx.state
                .put(self.first.table, *group, key, &value, cx.now_ms);
            self.wait(time, *group, key, false);
        }
        Ok(())
    }

    fn unwait(&mut self, time: i64, group: u16, key: &[u8], cx: &mut Context<'_>) {
        let Entry::Occupied(mut keys) = self.waiting.entry(time) else {
            return;
        };
        let Some(persisted) = keys.get_mut().remove(&(group, Bytes::copy_from_slice(key))) else {
            return;
        };
        if keys.get().is_empty() {
            keys.remove();
        }
        self.count -= 1;
        self.key_bytes -= key.len();
        if persisted {
            cx.state
                .delete(self.timers, group, &[&sortable(time), key].concat());
        }
    }

    /// Emits candidates below the watermark.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        loop {
            let mut due: Vec<(i64, u16, Bytes)> = Vec::new();
            for (time, keys) in self.waiting.range(..self.watermark) {
                let room = self.switches.emit_rows.max(1) - due.len();
                due.extend(keys.keys().take(room).map(|(g, k)| (*time, *g, k.clone())));
                if due.len() >= self.switches.emit_rows.max(1) {
                    break;
                }
            }
            if due.is_empty() {
                return Ok(Progress::Idle);
            }
            let keys: Vec<(u16, &[u8])> = due.iter().map(|(_, g, k)| (*g, &k[..])).collect();
            let held = cx.state.get_many(self.first.table, &keys, cx.now_ms)?;
            let mut rows = Vec::new();
            for held in held.iter().flatten() {
                if let Held::Waits { row, .. } = read(held)? {
                    rows.push(row);
                }
            }
            let n = rows.len();
            if n > 0 {
                let columns = self.codec.decode(rows)?;
                cx.output
                    .emit(Batch::inserts(assemble(&self.plan.schema, columns, n)?));
            }
            for (time, group, key) in &due {
                cx.state.put(
                    self.first.table,
                    *group,
                    key,
                    &[STATE_VERSION, EMITTED],
                    cx.now_ms,
                );
                self.unwait(*time, *group, key, cx);
            }
            if cx.output.is_full() {
                return Ok(Progress::More);
            }
        }
    }
}

impl Operator for FirstByTime {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        self.take(batch, cx)?;
        Ok(Progress::Idle)
    }

    fn on_dry(&mut self, _cx: &mut Context<'_>) -> Result<Progress> {
        // A first row waits for the watermark.
        Ok(Progress::Idle)
    }

    fn on_watermark(&mut self, t: EventTime, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        self.watermark = self.watermark.max(t.micros());
        self.pump(cx)
    }

    fn on_barrier(&mut self, _barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress> {
        for (time, keys) in &mut self.waiting {
            for ((group, key), persisted) in keys {
                if !*persisted {
                    *persisted = true;
                    let timer = [&sortable(*time)[..], key].concat();
                    cx.state.put(self.timers, *group, &timer, &[], cx.now_ms);
                }
            }
        }
        Ok(Progress::Idle)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.pump(cx)
    }

    fn memory_bytes(&self) -> usize {
        self.count * 96 + self.key_bytes
    }

    fn state_keys(&self) -> usize {
        self.count
    }

    fn tables(&self) -> Vec<TableId> {
        vec![self.first.table]
    }
}
