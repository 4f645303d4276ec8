//! Writes the windows of a row beside it; hopping windows repeat the row. Stateless but for the watermark, by which it tells
//! rows whose last window has closed.

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use penstock_plan::graph::Window;

use super::rows::{assemble, take_rows};
use super::window::{Assigner, WINDOW_TIME_GAP, from_micros, time_at, to_micros};
use super::{Context, Operator, Progress};
use crate::error::Result;
use crate::message::{Barrier, Batch, EventTime};

pub struct WindowAssign {
    column: usize,
    assigner: Assigner,
    /// Input columns before the hidden ones, which stay last.
    visible: usize,
    output: SchemaRef,
    watermark: i64,
}

impl WindowAssign {
    pub fn new(column: usize, window: Window, input: &SchemaRef, output: SchemaRef) -> Self {
        let visible = input
            .fields()
            .iter()
            .take_while(|f| !f.name().starts_with('$'))
            .count();
        Self {
            column,
            assigner: Assigner::new(window),
            visible,
            output,
            watermark: i64::MIN,
        }
    }
}

impl Operator for WindowAssign {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        let times = to_micros(batch.rows.column(self.column))?;
        let mut rows: Vec<u32> = Vec::with_capacity(batch.num_rows());
        let mut starts: Vec<i64> = Vec::with_capacity(batch.num_rows());
        let mut late: Vec<u32> = Vec::new();
        for i in 0..batch.num_rows() {
            let Some(t) = time_at(&times, i) else {
                late.push(i as u32);
                continue;
            };
            if self.assigner.last_end(t) <= self.watermark {
                late.push(i as u32);
                continue;
            }
            for start in self.assigner.starts(t) {
                // Earlier windows of the row may have closed already.
                if start.saturating_add(self.assigner.size()) > self.watermark {
                    rows.push(i as u32);
                    starts.push(start);
                }
            }
        }
        if !late.is_empty() {
            cx.output.late(take_rows(&batch.rows, &late)?);
        }
        if rows.is_empty() {
            return Ok(Progress::Idle);
        }
        let taken = if rows.len() == batch.num_rows() && !self.assigner.overlaps() {
            batch.rows.clone()
        } else {
            take_rows(&batch.rows, &rows)?
        };
        let mut columns: Vec<ArrayRef> = taken.columns()[..self.visible].to_vec();
        let size = self.assigner.size();
        let ends: Vec<i64> = starts.iter().map(|s| s.saturating_add(size)).collect();
        let last: Vec<i64> = ends
            .iter()
            .map(|e| e.saturating_sub(WINDOW_TIME_GAP))
            .collect();
        for values in [starts, ends, last] {
            let to = self.output.field(columns.len()).data_type();
            columns.push(from_micros(values, to)?);
        }
        columns.extend_from_slice(&taken.columns()[self.visible..]);
        cx.output.emit(Batch {
            rows: assemble(&self.output, columns, rows.len())?,
            kinds: batch
                .kinds
                .as_ref()
                .map(|k| rows.iter().map(|i| k[*i as usize]).collect()),
            lane: batch.lane,
        });
        Ok(Progress::Idle)
    }
    fn on_dry(&mut self, _cx: &mut Context<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }
    fn on_watermark(&mut self, t: EventTime, _cx: &mut Context<'_>) -> Result<Progress> {
        self.watermark = self.watermark.max(t.micros());
        Ok(Progress::Idle)
    }
    fn on_barrier(&mut self, _barrier: &Barrier, _cx: &mut Context<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }
    fn resume(&mut self, _cx: &mut Context<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }
    fn memory_bytes(&self) -> usize {
        0
    }
    fn state_keys(&self) -> usize {
        0
    }
}
