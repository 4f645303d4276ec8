//! Inner join of two inputs within equal windows, at the windows' close. Rows wait in memory, columnar, and since the last
//! barrier in state: tables `left` and `right` (window, epoch, part -> rows of one key group) and `live` (window -> nothing).
//! Memory may be dropped after a barrier; a window is then read back one key group at a time when it closes.

mod matching;

use std::collections::{BTreeMap, VecDeque};

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use datafusion_expr::Expr;
use penstock_plan::graph::JoinSide;

use super::expression::Expression;
use super::groups::key_columns;
use super::hot::owned;
use super::panes::{Span, Windows, in_time, runs};
use super::rows::{
    RowCodec, STATE_VERSION, assemble, corrupt, from_sortable, get_bytes, get_fixed, internal,
    put_bytes, split, take_rows,
};
use super::{Context, Operator, Progress, Switches};
use crate::error::Result;
use crate::keys::{hash_columns, key_group};
use crate::message::{Barrier, Batch, EventTime};
use crate::state::TableId;

use matching::Matching;

struct Side {
    windows: Windows,
    keys: Vec<usize>,
    schema: SchemaRef,
    codec: RowCodec,
    table: TableId,
}

impl Side {
    fn new(uid: &str, name: &str, side: &JoinSide, schema: &SchemaRef) -> Result<Self> {
        Ok(Self {
            windows: Windows::new(&side.window),
            keys: side.keys.clone(),
            schema: SchemaRef::clone(schema),
            codec: RowCodec::of(schema)?,
            table: TableId::of(uid, name),
        })
    }
}

/// Rows of one side of one window.
#[derive(Default)]
struct Buffer {
    /// With the key hash of every row, and whether state has them.
    parts: Vec<(RecordBatch, Vec<u64>, bool)>,
    bytes: usize,
}

/// One window's rows.
struct Waiting {
    sides: [Buffer; 2],
    /// Per own key group, whether state may hold rows.
    persisted: Vec<bool>,
    /// State holds rows that memory does not.
    cold: bool,
}

struct Closing {
    window: Span,
    matching: Option<Matching>,
    /// The next key group of a cold window, counted from the slot's first.
    next_group: usize,
}

pub struct WindowJoin {
    sides: [Side; 2],
    live: TableId,
    filter: Option<Expression>,
    output: SchemaRef,
    switches: Switches,
    waiting: BTreeMap<Span, Waiting>,
    closed_to: i64,
    queue: VecDeque<Span>,
    closing: Option<Closing>,
    opened: bool,
}

impl WindowJoin {
    pub fn new(
        uid: &str,
        sides: [&JoinSide; 2],
        inputs: [&SchemaRef; 2],
        filter: Option<&Expr>,
        output: SchemaRef,
        switches: Switches,
    ) -> Result<Self> {
        Ok(Self {
            sides: [
                Side::new(uid, "left", sides[0], inputs[0])?,
                Side::new(uid, "right", sides[1], inputs[1])?,
            ],
            live: TableId::of(uid, "live"),
            filter: filter
                .map(|f| Expression::new(f, &output, DataType::Boolean))
                .transpose()?,
            output,
            switches,
            waiting: BTreeMap::new(),
            closed_to: i64::MIN,
            queue: VecDeque::new(),
            closing: None,
            opened: false,
        })
    }

    fn open(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        for table in [self.sides[0].table, self.sides[1].table, self.live] {
            cx.state.register(table, None);
        }
        let own = cx.state.key_groups();
        for group in own.clone() {
            for (key, _) in cx
                .state
                .scan(self.live, group, &[], None, usize::MAX, cx.now_ms)?
            {
                let mut bytes = &key[..];
                let end = from_sortable(&mut bytes)?;
                let start = from_sortable(&mut bytes)?;
                let waiting = self
                    .waiting
                    .entry(Span { end, start })
                    .or_insert_with(|| Waiting::new(own.len()));
                waiting.cold = true;
                waiting.persisted[usize::from(group - own.start)] = true;
            }
        }
        Ok(())
    }

    fn take(&mut self, port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<()> {
        let side = &self.sides[port];
        let panes = side.windows.panes(&batch.rows)?;
        let (batch, panes): (Batch, Vec<Span>) =
            match in_time(&panes, &side.windows, self.closed_to) {
                None => (batch, panes.into_iter().flatten().collect()),
                Some(mask) => {
                    let (good, late) = split(batch, &mask)?;
                    cx.output.late(late.rows);
                    let kept = panes.into_iter().enumerate();
                    let kept = kept.filter(|(i, _)| mask.value(*i)).filter_map(|(_, p)| p);
                    (good, kept.collect())
                }
            };
        let groups = cx.state.key_groups().len();
        for (pane, indices) in runs(&panes) {
            // A null key equals nothing: such rows join with none.
            let mut indices = indices.unwrap_or_else(|| (0..batch.num_rows() as u32).collect());
            for key in &side.keys {
                let column = batch.rows.column(*key);
                if column.logical_null_count() > 0 {
                    let nulls = column.logical_nulls();
                    indices.retain(|i| nulls.as_ref().is_none_or(|n| n.is_valid(*i as usize)));
                }
            }
            if indices.is_empty() {
                continue;
            }
            let part = if indices.len() == batch.num_rows() {
                batch.rows.clone()
            } else {
                take_rows(&batch.rows, &indices)?
            };
            let hashes = hash_columns(&key_columns(&part, &side.keys), part.num_rows());
            for window in side.windows.windows_of(pane) {
                if window.end <= self.closed_to {
                    continue;
                }
                let waiting = self
                    .waiting
                    .entry(window)
                    .or_insert_with(|| Waiting::new(groups));
                let buffer = &mut waiting.sides[port];
                buffer.bytes += part.get_array_memory_size() + hashes.len() * 8;
                buffer.parts.push((part.clone(), hashes.clone(), false));
            }
        }
        Ok(())
    }

    fn pump(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        loop {
            if let Some(mut closing) = self.closing.take() {
                if self.step(&mut closing, cx)? == Progress::More {
                    self.closing = Some(closing);
                    return Ok(Progress::More);
                }
                self.forget(closing.window, cx);
                continue;
            }
            let Some(window) = self.queue.pop_front() else {
                return Ok(Progress::Idle);
            };
            self.closing = Some(Closing {
                window,
                matching: None,
                next_group: 0,
            });
        }
    }

    fn step(&mut self, closing: &mut Closing, cx: &mut Context<'_>) -> Result<Progress> {
        let groups = cx.state.key_groups().len();
        loop {
            let Some(matching) = &mut closing.matching else {
                if closing.next_group >= groups {
                    return Ok(Progress::Idle);
                }
                closing.matching = self.load(closing, cx)?;
                continue;
            };
            let Some(rows) = matching.next(&self.output, self.switches.emit_rows.max(1))? else {
                closing.matching = None;
                continue;
            };
            let rows = match &mut self.filter {
                None => Some(rows),
                Some(filter) => {
                    let mask = filter.evaluate(&rows, cx.now_ms).map_err(|e| {
                        crate::error::EngineError::invalid(
                            "PR0302",
                            "join filter",
                            "a row cannot be evaluated",
                        )
                        .caused_by(e)
                    })?;
                    let mask = arrow::array::AsArray::as_boolean(&mask);
                    let kept = arrow::compute::filter_record_batch(&rows, mask)
                        .map_err(|e| internal("filter", e))?;
                    (kept.num_rows() > 0).then_some(kept)
                }
            };
            if let Some(rows) = rows {
                cx.output.emit(Batch::inserts(rows));
            }
            if cx.output.is_full() {
                return Ok(Progress::More);
            }
        }
    }

    /// The next rows to match: the whole window when it is in memory, else the next key group.
    fn load(&self, closing: &mut Closing, cx: &Context<'_>) -> Result<Option<Matching>> {
        let own = cx.state.key_groups();
        let total = cx.state.total_groups();
        let waiting = &self.waiting[&closing.window];
        let at = closing.next_group;
        closing.next_group = if waiting.cold { at + 1 } else { own.len() };
        let mut both = Vec::with_capacity(2);
        for (side, buffer) in self.sides.iter().zip(&waiting.sides) {
            let mut parts: Vec<RecordBatch> = Vec::new();
            if waiting.cold {
                let group = own.start + at as u16;
                if waiting.persisted[at] {
                    self.read(side, closing.window, group, &mut parts, cx)?;
                }
                for (rows, hashes, persisted) in &buffer.parts {
                    let mine: Vec<u32> = (0..hashes.len() as u32)
                        .filter(|i| key_group(hashes[*i as usize], total) == group)
                        .collect();
                    if !persisted && !mine.is_empty() {
                        parts.push(take_rows(rows, &mine)?);
                    }
                }
            } else {
                parts.extend(buffer.parts.iter().map(|(rows, _, _)| rows.clone()));
            }
            let rows = arrow::compute::concat_batches(&side.schema, &parts)
                .map_err(|e| internal("join", e))?;
            if rows.num_rows() == 0 {
                return Ok(None);
            }
            both.push(rows);
        }
        let [left, right] = [&self.sides[0], &self.sides[1]];
        Matching::new(
            both.remove(0),
            &left.keys,
            both.remove(0),
            &right.keys,
            total,
        )
        .map(Some)
    }

    fn read(
        &self,
        side: &Side,
        window: Span,
        group: u16,
        parts: &mut Vec<RecordBatch>,
        cx: &Context<'_>,
    ) -> Result<()> {
        let mut after: Option<Bytes> = None;
        let prefix = window.prefix();
        loop {
            let page =
                cx.state
                    .scan(side.table, group, &prefix, after.as_deref(), 64, cx.now_ms)?;
            for (_, value) in &page {
                let mut bytes = &value[..];
                if get_fixed(&mut bytes, 1)? != [STATE_VERSION] {
                    return Err(corrupt("another version"));
                }
                let mut rows = Vec::new();
                while !bytes.is_empty() {
                    rows.push(get_bytes(&mut bytes)?);
                }
                let n = rows.len();
                parts.push(assemble(&side.schema, side.codec.decode(rows)?, n)?);
            }
            if page.len() < 64 {
                return Ok(());
            }
            after = page.last().map(|(k, _)| k.clone());
        }
    }

    fn forget(&mut self, window: Span, cx: &mut Context<'_>) {
        let Some(waiting) = self.waiting.remove(&window) else {
            return;
        };
        let prefix = window.prefix();
        let own = cx.state.key_groups();
        for (group, persisted) in own.zip(waiting.persisted) {
            if persisted {
                for side in &self.sides {
                    cx.state.delete_prefix(side.table, group, &prefix);
                }
                cx.state.delete(self.live, group, &prefix);
            }
        }
    }

    fn persist(&mut self, epoch: u64, cx: &mut Context<'_>) -> Result<()> {
        let own = cx.state.key_groups();
        let total = cx.state.total_groups();
        for (window, waiting) in &mut self.waiting {
            let prefix = window.prefix();
            for (side, buffer) in self.sides.iter().zip(&mut waiting.sides) {
                let mut values: Vec<Vec<u8>> = vec![Vec::new(); own.len()];
                for (rows, hashes, persisted) in &mut buffer.parts {
                    if std::mem::replace(persisted, true) {
                        continue;
                    }
                    let encoded = side.codec.encode(rows.columns())?;
                    for (i, hash) in hashes.iter().enumerate() {
                        let group = key_group(*hash, total);
                        owned(cx.state, group)?;
                        let value = &mut values[usize::from(group - own.start)];
                        if value.is_empty() {
                            value.push(STATE_VERSION);
                        }
                        put_bytes(value, encoded.row(i).data());
                    }
                }
                for (i, value) in values.iter().enumerate().filter(|(_, v)| !v.is_empty()) {
                    let group = own.start + i as u16;
                    // One value per epoch: the epoch makes the key new.
                    let key = [&prefix[..], &epoch.to_be_bytes()].concat();
                    cx.state.put(side.table, group, &key, value, cx.now_ms);
                    if !std::mem::replace(&mut waiting.persisted[i], true) {
                        cx.state.put(self.live, group, &prefix, &[], cx.now_ms);
                    }
                }
            }
        }
        let mut held = self.memory_bytes();
        for waiting in self.waiting.values_mut().rev() {
            if held <= self.switches.hot_bytes {
                break;
            }
            held = held.saturating_sub(waiting.sides.iter().map(|s| s.bytes).sum());
            waiting.sides = Default::default();
            waiting.cold = true;
        }
        Ok(())
    }
}

impl Waiting {
    fn new(groups: usize) -> Self {
        Self {
            sides: Default::default(),
            persisted: vec![false; groups],
            cold: false,
        }
    }
}

impl Operator for WindowJoin {
    fn process(&mut self, port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        self.take(port, batch, cx)?;
        Ok(Progress::Idle)
    }

    fn on_dry(&mut self, _cx: &mut Context<'_>) -> Result<Progress> {
        // Pairs are told at their window's close.
        Ok(Progress::Idle)
    }

    fn on_watermark(&mut self, t: EventTime, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        if t.micros() <= self.closed_to {
            return Ok(Progress::Idle);
        }
        self.closed_to = t.micros();
        let due = self.waiting.keys().take_while(|w| w.end <= self.closed_to);
        self.queue.extend(due.copied());
        self.pump(cx)
    }

    fn on_barrier(&mut self, barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        self.persist(barrier.epoch, cx)?;
        Ok(Progress::Idle)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.pump(cx)
    }

    fn memory_bytes(&self) -> usize {
        let sides = self.waiting.values().flat_map(|w| &w.sides);
        sides.map(|s| s.bytes).sum()
    }

    fn state_keys(&self) -> usize {
        let sides = self.waiting.values().flat_map(|w| &w.sides);
        sides
            .flat_map(|s| &s.parts)
            .map(|(r, _, _)| r.num_rows())
            .sum()
    }

    fn tables(&self) -> Vec<TableId> {
        self.sides.iter().map(|s| s.table).collect()
    }
}
