//! Rows of all inputs, as they come. Stateless: aligning the inputs' marks is the task's.

use super::{Context, Operator, Progress};
use crate::error::Result;
use crate::message::{Barrier, Batch, EventTime};

pub struct Union {
    schema: arrow::datatypes::SchemaRef,
}

impl Union {
    pub fn new(schema: arrow::datatypes::SchemaRef) -> Self {
        Self { schema }
    }
}

impl Operator for Union {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        // The inputs may name or null their columns differently; consumers see one schema.
        let rows = super::rows::conform(batch.rows, &self.schema)?;
        cx.output.emit(Batch { rows, ..batch });
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
