//! Filter and projection. Row kinds follow the filter. Stateless; evaluation errors fail the batch, and `isolate` says which
//! rows they belong to, so that a source task can set those apart.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion_common::DataFusionError;
use datafusion_expr::Expr;

use super::expression::{Expression, columns_of};
use super::{Context, Operator, Progress};
use crate::error::{EngineError, Result};
use crate::message::{Barrier, Batch, EventTime, RowKind};

/// The compiled form of `Op::Calc`.
pub struct Calc {
    filter: Option<Expression>,
    /// Columns that the projection reads: only these are filtered.
    needed: Vec<usize>,
    exprs: Vec<Expression>,
    output: SchemaRef,
}

/// A row that could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    pub row: usize,
    pub text: String,
}

impl Calc {
    pub fn new(
        filter: Option<&Expr>,
        exprs: &[Expr],
        input: &SchemaRef,
        output: &SchemaRef,
    ) -> Result<Self> {
        let read: Vec<String> = exprs.iter().flat_map(columns_of).collect();
        let needed: Vec<usize> = (0..input.fields().len())
            .filter(|i| read.iter().any(|name| name == input.field(*i).name()))
            .collect();
        let narrow = Arc::new(
            input
                .project(&needed)
                .expect("the indices were taken from this schema"),
        );
        let filter = filter
            .map(|f| Expression::new(f, input, arrow::datatypes::DataType::Boolean))
            .transpose()?;
        let exprs = exprs
            .iter()
            .zip(output.fields())
            .map(|(e, field)| Expression::new(e, &narrow, field.data_type().clone()))
            .collect::<Result<_>>()?;
        Ok(Self {
            filter,
            needed,
            exprs,
            output: Arc::clone(output),
        })
    }

    /// `None`: no row passed the filter.
    pub fn apply(&mut self, batch: &Batch, now_ms: i64) -> Result<Option<Batch>> {
        self.evaluate(batch, now_ms).map_err(|e| {
            EngineError::invalid("PR0302", "expression", "a row cannot be evaluated").caused_by(e)
        })
    }

    /// As `apply`, but rows that cannot be evaluated are set apart, by their index in `batch`, in ascending order. Costs a
    /// logarithmic number of evaluations per bad row.
    pub fn isolate(&mut self, batch: &Batch, now_ms: i64) -> Result<(Option<Batch>, Vec<BadRow>)> {
        let mut bad = Vec::new();
        self.find_bad(batch, 0, now_ms, &mut bad);
        if bad.is_empty() {
            return Ok((self.apply(batch, now_ms)?, bad));
        }
        let mut next = bad.iter().map(|b| b.row).peekable();
        let good: UInt32Array = (0..batch.num_rows())
            .filter(|i| next.next_if_eq(i).is_none())
            .map(|i| i as u32)
            .collect();
        let kept = Batch {
            rows: take_record_batch(&batch.rows, &good)
                .map_err(|e| EngineError::fail("PR0313", "expression", "take").caused_by(e))?,
            kinds: batch
                .kinds
                .as_ref()
                .map(|k| good.values().iter().map(|i| k[*i as usize]).collect()),
            lane: batch.lane,
        };
        Ok((self.apply(&kept, now_ms)?, bad))
    }

    fn find_bad(&mut self, batch: &Batch, from: usize, now_ms: i64, bad: &mut Vec<BadRow>) {
        let rows = batch.num_rows();
        let Err(error) = self.evaluate(batch, now_ms) else {
            return;
        };
        if rows <= 1 {
            bad.push(BadRow {
                row: from,
                text: error.strip_backtrace(),
            });
            return;
        }
        let half = rows / 2;
        for (start, len) in [(0, half), (half, rows - half)] {
            let part = Batch {
                rows: batch.rows.slice(start, len),
                kinds: None,
                lane: batch.lane,
            };
            self.find_bad(&part, from + start, now_ms, bad);
        }
    }

    fn evaluate(
        &mut self,
        batch: &Batch,
        now_ms: i64,
    ) -> std::result::Result<Option<Batch>, DataFusionError> {
        let mut kinds = batch.kinds.clone();
        let passed = match &mut self.filter {
            None => None,
            Some(filter) => {
                let mask = filter.evaluate(&batch.rows, now_ms)?;
                let mask = mask.as_boolean();
                let count = mask.true_count();
                if count == 0 {
                    return Ok(None);
                }
                (count < batch.num_rows()).then(|| mask.clone())
            }
        };
        let mut rows = batch.rows.project(&self.needed)?;
        if let Some(mask) = passed {
            rows = filter_record_batch(&rows, &mask)?;
            kinds = kinds.map(|k| keep(&k, &mask));
        }
        let columns = self
            .exprs
            .iter_mut()
            .map(|e| e.evaluate(&rows, now_ms))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options)?;
        Ok(Some(Batch {
            rows,
            kinds,
            lane: batch.lane,
        }))
    }
}

/// Kinds of the rows where `mask` is true; null counts as false.
pub(super) fn keep(kinds: &[RowKind], mask: &BooleanArray) -> Arc<[RowKind]> {
    (0..kinds.len())
        .filter(|i| mask.is_valid(*i) && mask.value(*i))
        .map(|i| kinds[i])
        .collect()
}

impl Operator for Calc {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        if let Some(out) = self.apply(&batch, cx.now_ms)? {
            cx.output.emit(out);
        }
        Ok(Progress::Idle)
    }
    fn on_dry(&mut self, _cx: &mut Context<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }
    fn on_watermark(&mut self, _t: EventTime, _cx: &mut Context<'_>) -> Result<Progress> {
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
