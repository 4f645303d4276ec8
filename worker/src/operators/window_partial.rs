//! The first phase of a windowed aggregate or deduplication, before the exchange: groups per (pane, key) in one table, handed
//! on when a watermark closes something, at a barrier, or when they are many. Keeps nothing across a barrier.

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::SchemaRef;

use super::groups::key_columns;
use super::hot::{Shape, Table};
use super::panes::{Windows, in_time};
use super::rows::{assemble, split};
use super::window_aggregate::Columns;
use super::{Context, Operator, Progress, Switches};
use crate::error::Result;
use crate::keys::hash_columns;
use crate::message::{Barrier, Batch, EventTime, Lane};

pub struct WindowPartial {
    shape: Shape,
    windows: Windows,
    keys: Vec<usize>,
    columns: Columns,
    output: SchemaRef,
    switches: Switches,
    table: Table,
    watermark: i64,
    /// No window of the table's panes closes before it.
    next_close: i64,
    /// Groups below it were handed on; `None`: no flush is running.
    flushed: Option<u32>,
}

impl WindowPartial {
    /// Of windows attached as columns, `keys` of the shape has the window's end as its last column.
    pub fn new(
        shape: Shape,
        windows: Windows,
        keys: Vec<usize>,
        columns: Columns,
        output: SchemaRef,
        switches: Switches,
    ) -> Result<Self> {
        Ok(Self {
            table: shape.table(true)?,
            shape,
            windows,
            keys,
            columns,
            output,
            switches,
            watermark: i64::MIN,
            next_close: i64::MAX,
            flushed: None,
        })
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        let len = self.table.index.len() as u32;
        let mut next = self.flushed.take().unwrap_or(0);
        while next < len {
            let to = len.min(next + self.switches.emit_rows as u32);
            let groups: Vec<u32> = (next..to).collect();
            let states = self.table.partials(&groups)?;
            let columns = match self.columns {
                Columns::Row => states,
                Columns::KeysAndWindow => {
                    let mut columns = self.table.index.columns(&groups)?;
                    let end = matches!(self.windows, Windows::Attached { .. })
                        .then(|| columns.pop())
                        .flatten();
                    let panes: Int64Array =
                        groups.iter().map(|g| self.table.index.tag(*g)).collect();
                    columns.push(std::sync::Arc::new(panes) as ArrayRef);
                    columns.extend(end);
                    columns.extend(states);
                    columns
                }
            };
            cx.output.emit(Batch::inserts(assemble(
                &self.output,
                columns,
                groups.len(),
            )?));
            next = to;
            if next < len && cx.output.is_full() {
                self.flushed = Some(next);
                return Ok(Progress::More);
            }
        }
        if len > 0 {
            self.table = self.shape.table(true)?;
            self.next_close = i64::MAX;
        }
        Ok(Progress::Idle)
    }
}

impl Operator for WindowPartial {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        let panes = self.windows.panes(&batch.rows)?;
        let (batch, panes) = match in_time(&panes, &self.windows, self.watermark) {
            None => (batch, panes),
            Some(mask) => {
                let (good, late) = split(batch, &mask)?;
                cx.output.emit(Batch {
                    lane: Lane::Late,
                    ..late
                });
                let kept = panes
                    .into_iter()
                    .enumerate()
                    .filter(|(i, _)| mask.value(*i))
                    .map(|(_, p)| p)
                    .collect();
                (good, kept)
            }
        };
        let Some(first) = panes.iter().flatten().min().copied() else {
            return Ok(Progress::Idle);
        };
        if let Some(end) = self.windows.next_end(first, self.watermark) {
            self.next_close = self.next_close.min(end);
        }
        let mut columns = key_columns(&batch.rows, &self.keys);
        if matches!(self.windows, Windows::Attached { .. }) {
            let ends: Int64Array = panes.iter().flatten().map(|p| p.end).collect();
            columns.push(std::sync::Arc::new(ends));
        }
        let tags: Vec<i64> = panes.iter().flatten().map(|p| p.start).collect();
        let hashes = hash_columns(&columns, batch.num_rows());
        let groups = self.table.index.intern(&columns, &hashes, &tags)?;
        self.shape.update(&mut self.table, &batch, &groups)?;
        if self.table.index.len() >= self.switches.partial_groups {
            return self.flush(cx);
        }
        Ok(Progress::Idle)
    }

    fn on_dry(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.flush(cx)
    }

    fn on_watermark(&mut self, t: EventTime, cx: &mut Context<'_>) -> Result<Progress> {
        self.watermark = self.watermark.max(t.micros());
        if self.watermark < self.next_close {
            return Ok(Progress::Idle);
        }
        self.flush(cx)
    }

    fn on_barrier(&mut self, _barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress> {
        self.flush(cx)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.flush(cx)
    }

    fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    fn state_keys(&self) -> usize {
        self.table.index.len()
    }
}
