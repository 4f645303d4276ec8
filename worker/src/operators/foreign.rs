//! DataFusion's other aggregates, one of its row-wise `Accumulator`s per group. Append edges and one phase only.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion_common::{DataFusionError, ScalarValue};
use datafusion_expr::AggregateUDF;
use datafusion_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::Column;

use super::accumulate::{Accumulator, Selection};
use super::rows::{RowCodec, get_bytes, internal, put_bytes};
use crate::error::Result;

type Inner = Box<dyn datafusion_expr::Accumulator>;

pub(super) struct Foreign {
    udf: Arc<AggregateUDF>,
    args: Vec<FieldRef>,
    schema: Schema,
    output: FieldRef,
    distinct: bool,
    codec: RowCodec,
    groups: Vec<Option<Inner>>,
}

fn failed(e: DataFusionError) -> crate::error::EngineError {
    internal("an aggregate of DataFusion failed", e)
}

impl Foreign {
    pub(super) fn new(
        udf: Arc<AggregateUDF>,
        args: &[FieldRef],
        output: FieldRef,
        distinct: bool,
    ) -> Result<Self> {
        let fields = udf
            .state_fields(StateFieldsArgs {
                name: udf.name(),
                input_fields: args,
                return_field: Arc::clone(&output),
                ordering_fields: &[],
                is_distinct: distinct,
            })
            .map_err(failed)?;
        let types: Vec<DataType> = fields.iter().map(|f| f.data_type().clone()).collect();
        Ok(Self {
            args: args.to_vec(),
            schema: Schema::new(args.to_vec()),
            output,
            distinct,
            codec: RowCodec::new(types)?,
            udf,
            groups: Vec::new(),
        })
    }

    fn fresh(&self) -> Result<Inner> {
        let exprs: Vec<Arc<dyn PhysicalExpr>> = self
            .args
            .iter()
            .enumerate()
            .map(|(i, f)| Arc::new(Column::new(f.name(), i)) as Arc<dyn PhysicalExpr>)
            .collect();
        self.udf
            .accumulator(AccumulatorArgs {
                return_field: Arc::clone(&self.output),
                schema: &self.schema,
                ignore_nulls: false,
                order_bys: &[],
                is_reversed: false,
                name: self.output.name(),
                is_distinct: self.distinct,
                exprs: &exprs,
                expr_fields: &self.args,
            })
            .map_err(failed)
    }

    /// The group's state, which reading consumes: an equal accumulator takes its place.
    fn state(&mut self, group: usize) -> Result<Option<Vec<ArrayRef>>> {
        let Some(inner) = &mut self.groups[group] else {
            return Ok(None);
        };
        let values = inner.state().map_err(failed)?;
        let arrays = values
            .iter()
            .map(ScalarValue::to_array)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(failed)?;
        let mut again = self.fresh()?;
        again.merge_batch(&arrays).map_err(failed)?;
        self.groups[group] = Some(again);
        Ok(Some(arrays))
    }

    fn inner(&mut self, group: usize) -> Result<&mut Inner> {
        if self.groups[group].is_none() {
            self.groups[group] = Some(self.fresh()?);
        }
        Ok(self.groups[group].as_mut().expect("it was just made"))
    }
}

impl Accumulator for Foreign {
    fn grow(&mut self, groups: usize) {
        self.groups.resize_with(groups, || None);
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let mut order: Vec<u32> = (0..rows.groups.len() as u32)
            .filter(|i| rows.takes(*i as usize))
            .collect();
        // Stable: rows of a group keep their order.
        order.sort_by_key(|i| rows.groups[*i as usize]);
        let indices = UInt32Array::from(order.clone());
        let args = args
            .iter()
            .map(|a| take(a, &indices, None).map_err(|e| internal("take", e)))
            .collect::<Result<Vec<_>>>()?;
        let mut start = 0;
        for run in order.chunk_by(|a, b| rows.groups[*a as usize] == rows.groups[*b as usize]) {
            let part: Vec<ArrayRef> = args.iter().map(|a| a.slice(start, run.len())).collect();
            let group = rows.groups[run[0] as usize] as usize;
            self.inner(group)?.update_batch(&part).map_err(failed)?;
            start += run.len();
        }
        Ok(())
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut values = Vec::with_capacity(groups.len());
        for g in groups {
            let state = self.state(*g as usize)?;
            let mut reader = self.fresh()?;
            if let Some(state) = state {
                reader.merge_batch(&state).map_err(failed)?;
            }
            values.push(reader.evaluate().map_err(failed)?);
        }
        if values.is_empty() {
            return Ok(vec![arrow::array::new_empty_array(self.output.data_type())]);
        }
        Ok(vec![ScalarValue::iter_to_array(values).map_err(failed)?])
    }
    fn partial(&self, _groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        Ok(None)
    }
    fn merge(&mut self, _states: &[ArrayRef], _groups: &[u32]) -> Result<()> {
        Err(super::accumulate::unsupported(
            "this aggregate in two phases",
        ))
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        match self.state(group as usize)? {
            None => put_bytes(out, &[]),
            Some(state) => put_bytes(out, self.codec.encode(&state)?.row(0).data()),
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        let raw = get_bytes(bytes)?;
        if raw.is_empty() {
            return Ok(());
        }
        let state = self.codec.decode([raw])?;
        self.inner(group as usize)?
            .merge_batch(&state)
            .map_err(failed)
    }
    fn memory_bytes(&self) -> usize {
        self.groups
            .iter()
            .map(|g| 16 + g.as_ref().map_or(0, |g| g.size()))
            .sum()
    }
}
