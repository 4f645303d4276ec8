//! From what a source's reader decodes to the columns of its scan: projection and computed columns, compiled per slot.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion_expr::Expr;

use crate::error::Result;
use crate::message::Batch;
use crate::operators::calc::Calc;

/// What to compute, the same in every slot.
#[derive(Debug, Clone)]
pub struct ScanColumns {
    /// What the reader makes: decoded columns, then those of the transport.
    pub input: SchemaRef,
    /// One per field of `output`, over `input`.
    pub exprs: Vec<Expr>,
    /// The scan's visible columns, then the event time where it is not among them.
    pub output: SchemaRef,
    /// Event time in `output`.
    pub event_time: Option<usize>,
    /// Number of visible columns.
    pub visible: usize,
}

/// Compiled [`ScanColumns`].
pub struct Scan {
    calc: Calc,
    pub event_time: Option<usize>,
    pub visible: usize,
}

impl Scan {
    pub fn new(columns: &ScanColumns) -> Result<Self> {
        let calc = Calc::new(None, &columns.exprs, &columns.input, &columns.output)?;
        Ok(Self { calc, event_time: columns.event_time, visible: columns.visible })
    }

    /// Columns of the rows that could be evaluated, and the others by index, ascending, with what is wrong.
    pub fn evaluate(&mut self, rows: &RecordBatch, now_ms: i64) -> Result<(Vec<ArrayRef>, Vec<(usize, String)>)> {
        let batch = Batch::inserts(rows.clone());
        let (batch, bad) = match self.calc.apply(&batch, now_ms) {
            Ok(batch) => (batch, Vec::new()),
            Err(_) => self.calc.isolate(&batch, now_ms)?,
        };
        let columns = batch.map_or_else(Vec::new, |b| b.rows.columns().to_vec());
        Ok((columns, bad.into_iter().map(|b| (b.row, b.text)).collect()))
    }
}
