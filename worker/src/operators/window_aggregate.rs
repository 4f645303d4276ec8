//! Aggregation per key and window, phases Single and Final, and deduplication per key and window, which is the same with
//! another accumulator. State per (pane, key) in hot tables; a window is merged from its panes when it closes.
//!
//! State tables: `panes` (pane, key -> accumulators), `live` (pane -> nothing, per key group: which panes hold anything),
//! `closed` (per key group, of overlapping windows: the watermark up to which windows were emitted) and `emitted` (window, key
//! -> the row that consumers have, of EMIT ON UPDATE).

mod close;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use penstock_plan::graph::Emit;

use super::groups::key_columns;
use super::hot::{Hot, Place, Shape};
use super::panes::{Span, Windows, in_time, runs};
use super::rows::{RowCodec, from_sortable, sortable, split, take_rows};
use super::{Context, Operator, Progress, Switches};
use crate::error::Result;
use crate::keys::hash_columns;
use crate::message::{Barrier, Batch, EventTime, Lane, RowKind};
use crate::state::TableId;

use close::Closing;

/// How batches of the main lane look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Rows,
    /// Keys, pane, pane end where `ends`, partial states.
    Partials {
        keys: usize,
        ends: bool,
    },
}

/// What an output row is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Keys, window start, end, time, aggregates.
    KeysAndWindow,
    /// The accumulator's own: a whole row.
    Row,
}

/// What is done when the queue of windows has been worked off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Behind {
    /// Its windows closed; each was forgotten.
    #[default]
    Close,
    /// Consumers were told of what changed in open windows.
    Dry,
    /// As `Dry`, and everything is written.
    Barrier,
}

/// The parts of a node that the operator is made of.
pub struct Plan {
    pub uid: String,
    pub shape: Shape,
    pub windows: Windows,
    pub keys: Vec<usize>,
    pub input: Input,
    pub columns: Columns,
    pub emit: Emit,
    /// The input may take rows back.
    pub retract: bool,
    pub output: SchemaRef,
}

struct Tables {
    panes: TableId,
    live: TableId,
    closed: TableId,
    emitted: TableId,
}

pub struct WindowAggregate {
    plan: Plan,
    switches: Switches,
    tables: Tables,
    panes: BTreeMap<Span, Hot>,
    /// Windows that end at or before it were emitted.
    closed_to: i64,
    /// What `closed` in state says, per own key group.
    closed_written: Vec<i64>,
    /// No window closes before it.
    next_close: i64,
    opened: bool,
    queue: VecDeque<Span>,
    closing: Option<Closing>,
    /// What waits behind the queue.
    behind: Behind,
    codec: RowCodec,
    /// Partial groups that came after their last window: their rows cannot be told apart any more.
    late_partials: u64,
}

impl WindowAggregate {
    pub fn new(plan: Plan, switches: Switches) -> Result<Self> {
        let table = |name: &str| TableId::of(&plan.uid, name);
        Ok(Self {
            tables: Tables {
                panes: table("panes"),
                live: table("live"),
                closed: table("closed"),
                emitted: table("emitted"),
            },
            codec: RowCodec::of(&plan.output)?,
            plan,
            switches,
            panes: BTreeMap::new(),
            closed_to: i64::MIN,
            closed_written: Vec::new(),
            next_close: i64::MAX,
            opened: false,
            queue: VecDeque::new(),
            closing: None,
            behind: Behind::Close,
            late_partials: 0,
        })
    }

    /// Partial groups dropped as late; they can only come from a sender that was idle while the others went on.
    pub fn late_partials(&self) -> u64 {
        self.late_partials
    }

    fn place(&self, pane: Span) -> Place {
        Place {
            table: self.tables.panes,
            prefix: pane.prefix(),
        }
    }

    /// Learns what state holds; the tables themselves are read when they are needed.
    fn open(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        for table in [
            self.tables.panes,
            self.tables.live,
            self.tables.closed,
            self.tables.emitted,
        ] {
            cx.state.register(table, None);
        }
        let own = cx.state.key_groups();
        self.closed_written = vec![i64::MIN; own.len()];
        for group in own.clone() {
            let live = cx
                .state
                .scan(self.tables.live, group, &[], None, usize::MAX, cx.now_ms)?;
            for (key, _) in live {
                let mut bytes = &key[..];
                let end = from_sortable(&mut bytes)?;
                let start = from_sortable(&mut bytes)?;
                let pane = Span { end, start };
                if !self.panes.contains_key(&pane) {
                    let mut hot = Hot::new(&self.plan.shape, cx.state, false)?;
                    hot.persisted.fill(false);
                    self.panes.insert(pane, hot);
                }
                if let Some(hot) = self.panes.get_mut(&pane) {
                    hot.persisted[usize::from(group - own.start)] = true;
                }
            }
            let closed = cx
                .state
                .get_many(self.tables.closed, &[(group, &[])], cx.now_ms)?;
            if let Some(Some(value)) = closed.first() {
                let t = from_sortable(&mut &value[..])?;
                self.closed_written[usize::from(group - own.start)] = t;
                self.closed_to = self.closed_to.max(t);
            }
        }
        self.find_next_close();
        Ok(())
    }

    fn find_next_close(&mut self) {
        let (windows, closed) = (self.plan.windows, self.closed_to);
        self.next_close = self
            .panes
            .keys()
            .filter_map(|p| windows.next_end(*p, closed))
            .min()
            .unwrap_or(i64::MAX);
    }

    fn hot(&mut self, pane: Span, cx: &Context<'_>) -> Result<&mut Hot> {
        if !self.panes.contains_key(&pane) {
            if let Some(end) = self.plan.windows.next_end(pane, self.closed_to) {
                self.next_close = self.next_close.min(end);
            }
            let hot = Hot::new(&self.plan.shape, cx.state, true)?;
            self.panes.insert(pane, hot);
        }
        Ok(self.panes.get_mut(&pane).expect("it was just put there"))
    }

    fn take_rows(&mut self, batch: Batch, cx: &mut Context<'_>) -> Result<()> {
        let panes = self.plan.windows.panes(&batch.rows)?;
        let (batch, panes) = match in_time(&panes, &self.plan.windows, self.closed_to) {
            None => (batch, panes.into_iter().flatten().collect::<Vec<_>>()),
            Some(mask) => {
                let (good, late) = split(batch, &mask)?;
                cx.output.late(late.rows);
                let kept = panes
                    .into_iter()
                    .enumerate()
                    .filter(|(i, _)| mask.value(*i))
                    .filter_map(|(_, p)| p)
                    .collect();
                (good, kept)
            }
        };
        for (pane, indices) in runs(&panes) {
            let part = match &indices {
                None => batch.clone(),
                Some(indices) => Batch {
                    rows: take_rows(&batch.rows, indices)?,
                    kinds: batch
                        .kinds
                        .as_ref()
                        .map(|k| indices.iter().map(|i| k[*i as usize]).collect()),
                    lane: batch.lane,
                },
            };
            let columns = key_columns(&part.rows, &self.plan.keys);
            let hashes = hash_columns(&columns, part.num_rows());
            let groups = self.intern(pane, &columns, &hashes, cx)?;
            let hot = self.panes.get_mut(&pane).expect("interned above");
            self.plan.shape.update(&mut hot.table, &part, &groups)?;
            hot.table.mark(&groups);
        }
        Ok(())
    }

    fn take_partials(
        &mut self,
        rows: &RecordBatch,
        keys: usize,
        ends: bool,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let starts = rows.column(keys).as_primitive::<Int64Type>();
        let end_column = ends.then(|| rows.column(keys + 1).as_primitive::<Int64Type>());
        let panes: Vec<Span> = (0..rows.num_rows())
            .map(|i| {
                let end = end_column.map(|e| e.value(i));
                self.plan.windows.pane(starts.value(i), end)
            })
            .collect();
        let states = keys + 1 + usize::from(ends);
        for (pane, indices) in runs(&panes) {
            let part = match &indices {
                None => rows.clone(),
                Some(indices) => take_rows(rows, indices)?,
            };
            if self.plan.windows.last_end(pane) <= self.closed_to {
                self.late_partials += part.num_rows() as u64;
                tracing::warn!(
                    operator = self.plan.uid,
                    groups = part.num_rows(),
                    "pre-aggregated rows came after their last window"
                );
                continue;
            }
            let columns: Vec<ArrayRef> = part.columns()[..keys].to_vec();
            let hashes = hash_columns(&columns, part.num_rows());
            let groups = self.intern(pane, &columns, &hashes, cx)?;
            let hot = self.panes.get_mut(&pane).expect("interned above");
            self.plan
                .shape
                .merge_partial(&mut hot.table, &part.columns()[states..], &groups)?;
            hot.table.mark(&groups);
        }
        Ok(())
    }

    fn intern(
        &mut self,
        pane: Span,
        columns: &[ArrayRef],
        hashes: &[u64],
        cx: &mut Context<'_>,
    ) -> Result<Vec<u32>> {
        let place = self.place(pane);
        self.hot(pane, cx)?;
        let hot = self.panes.get_mut(&pane).expect("made above");
        hot.intern(
            &self.plan.shape,
            &place,
            columns,
            hashes,
            cx.state,
            cx.now_ms,
        )
    }

    /// Works off the queue of windows, then what waits behind it.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        loop {
            if let Some(mut closing) = self.closing.take() {
                if self.step(&mut closing, cx)? == Progress::More {
                    self.closing = Some(closing);
                    return Ok(Progress::More);
                }
                if self.behind == Behind::Close {
                    self.forget(closing.window, cx)?;
                }
                continue;
            }
            let Some(window) = self.queue.pop_front() else {
                break;
            };
            self.closing = Some(self.begin(window)?);
        }
        match std::mem::take(&mut self.behind) {
            Behind::Close => self.find_next_close(),
            Behind::Dry => self.told(),
            Behind::Barrier => {
                self.told();
                self.persist(cx)?;
            }
        }
        Ok(Progress::Idle)
    }

    /// Drops the panes that no open window needs, after `window` was emitted.
    fn forget(&mut self, window: Span, cx: &mut Context<'_>) -> Result<()> {
        let gone: Vec<Span> = self
            .plan
            .windows
            .panes_of(window)
            .into_iter()
            .filter(|p| self.plan.windows.last_end(*p) <= window.end)
            .collect();
        let first = cx.state.key_groups().start;
        for pane in gone {
            let Some(hot) = self.panes.remove(&pane) else {
                continue;
            };
            let prefix = pane.prefix();
            for (i, persisted) in hot.persisted.iter().enumerate() {
                if *persisted {
                    let group = first + i as u16;
                    cx.state.delete_prefix(self.tables.panes, group, &prefix);
                    cx.state.delete(self.tables.live, group, &prefix);
                }
            }
        }
        if self.plan.emit == Emit::OnUpdate {
            let prefix = window.prefix();
            for group in cx.state.key_groups() {
                if !cx.state.is_empty_below(self.tables.emitted, group, &prefix) {
                    cx.state.delete_prefix(self.tables.emitted, group, &prefix);
                }
            }
        }
        Ok(())
    }

    /// Writes what changed, and makes room.
    fn persist(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let own = cx.state.key_groups();
        let table = self.tables.panes;
        let mut any = vec![false; own.len()];
        for (pane, hot) in &mut self.panes {
            let place = Place {
                table,
                prefix: pane.prefix(),
            };
            let before = hot.persisted.clone();
            hot.persist(&self.plan.shape, &place, cx.state, cx.now_ms)?;
            for (i, (was, is)) in before.iter().zip(&hot.persisted).enumerate() {
                if !was && *is {
                    let group = own.start + i as u16;
                    cx.state
                        .put(self.tables.live, group, &place.prefix, &[], cx.now_ms);
                }
                any[i] |= is;
            }
        }
        if self.plan.windows.overlaps() {
            for (i, written) in self.closed_written.iter_mut().enumerate() {
                if any[i] && *written != self.closed_to {
                    let group = own.start + i as u16;
                    let value = sortable(self.closed_to);
                    cx.state
                        .put(self.tables.closed, group, &[], &value, cx.now_ms);
                    *written = self.closed_to;
                }
            }
        }
        // The panes that close last go first: they are read again latest.
        let mut held: usize = self.memory_bytes();
        for hot in self.panes.values_mut().rev() {
            if held <= self.switches.hot_bytes {
                break;
            }
            held = held.saturating_sub(hot.table.memory_bytes());
            hot.evict(&self.plan.shape)?;
        }
        Ok(())
    }

    fn told(&mut self) {
        self.panes.values_mut().for_each(|hot| hot.table.told());
    }

    /// Open windows with changes that consumers have not been told of.
    fn touched(&self) -> BTreeSet<Span> {
        self.panes
            .iter()
            .filter(|(_, hot)| !hot.table.untold().is_empty())
            .flat_map(|(pane, _)| self.plan.windows.windows_of(*pane))
            .filter(|w| w.end > self.closed_to)
            .collect()
    }
}

impl Operator for WindowAggregate {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        match (batch.lane, self.plan.input) {
            (Lane::Main, Input::Partials { keys, ends }) => {
                self.take_partials(&batch.rows, keys, ends, cx)?;
            }
            (Lane::Main, Input::Rows) | (Lane::Late, _) => self.take_rows(batch, cx)?,
        }
        Ok(Progress::Idle)
    }

    fn on_dry(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        if self.plan.emit == Emit::OnClose {
            return Ok(Progress::Idle);
        }
        self.open(cx)?;
        self.behind = Behind::Dry;
        self.queue.extend(self.touched());
        self.pump(cx)
    }

    fn on_watermark(&mut self, t: EventTime, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        let t = t.micros();
        if t <= self.closed_to {
            return Ok(Progress::Idle);
        }
        let from = std::mem::replace(&mut self.closed_to, t);
        if t < self.next_close {
            return Ok(Progress::Idle);
        }
        let windows = self
            .plan
            .windows
            .closing(self.panes.keys().copied(), from, t);
        self.queue.extend(windows);
        self.pump(cx)
    }

    fn on_barrier(&mut self, _barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        self.behind = Behind::Barrier;
        if self.plan.emit == Emit::OnUpdate {
            self.queue.extend(self.touched());
        }
        self.pump(cx)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.pump(cx)
    }

    fn memory_bytes(&self) -> usize {
        self.panes.values().map(|h| h.table.memory_bytes()).sum()
    }

    fn state_keys(&self) -> usize {
        self.panes.values().map(|h| h.table.index.len()).sum()
    }

    fn tables(&self) -> Vec<TableId> {
        vec![self.tables.panes]
    }
}

/// Kinds of a batch of rows that are not all `+I`.
fn kinds(kinds: Vec<RowKind>) -> Option<std::sync::Arc<[RowKind]>> {
    kinds
        .iter()
        .any(|k| *k != RowKind::Insert)
        .then(|| kinds.into())
}
