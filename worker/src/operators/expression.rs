//! Expressions of the plan made executable over Arrow batches. Owns the binding of `now()` and its like to the epoch's
//! clock; what an evaluation error means for a row is `calc`'s and the source task's.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, DataFusionError};
use datafusion_expr::Expr;
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};

use crate::error::{EngineError, Result};

/// An expression bound to an input schema. Columns are found by unqualified name. The expression must already be
/// type-coerced, as the planner leaves it.
pub struct Expression {
    logical: Expr,
    schema: DFSchema,
    /// Contains `now()` or its like, so that it is bound again when the epoch's clock moves.
    reads_clock: bool,
    bound_at_ms: i64,
    physical: Arc<dyn PhysicalExpr>,
    output: DataType,
}

impl Expression {
    /// `output`: the type that the plan promises; results of another type are cast.
    pub fn new(logical: &Expr, schema: &SchemaRef, output: DataType) -> Result<Self> {
        let not_executable = |e: DataFusionError| {
            EngineError::fail(
                "PR0311",
                format!("expression {logical}"),
                "cannot be executed",
            )
            .caused_by(e)
        };
        let df_schema = DFSchema::try_from(Arc::clone(schema)).map_err(not_executable)?;
        let reads_clock = reads_clock(logical).map_err(not_executable)?;
        let physical = bind(logical, &df_schema, reads_clock, 0).map_err(not_executable)?;
        Ok(Self {
            logical: logical.clone(),
            schema: df_schema,
            reads_clock,
            bound_at_ms: 0,
            physical,
            output,
        })
    }

    /// One value per row. An error is about some row's values (a cast, a division by zero) or, with `now()`, about the
    /// clock; it never names the row.
    pub fn evaluate(
        &mut self,
        rows: &RecordBatch,
        now_ms: i64,
    ) -> std::result::Result<ArrayRef, DataFusionError> {
        if self.reads_clock && self.bound_at_ms != now_ms {
            self.physical = bind(&self.logical, &self.schema, true, now_ms)?;
            self.bound_at_ms = now_ms;
        }
        let array = self.physical.evaluate(rows)?.into_array(rows.num_rows())?;
        if array.data_type() == &self.output {
            return Ok(array);
        }
        Ok(arrow::compute::cast(&array, &self.output)?)
    }
}

/// Names of the input columns an expression reads.
pub fn columns_of(expr: &Expr) -> Vec<String> {
    expr.column_refs().iter().map(|c| c.name.clone()).collect()
}

fn is_clock(name: &str) -> bool {
    matches!(name, "now" | "current_date" | "current_time")
}

fn reads_clock(expr: &Expr) -> std::result::Result<bool, DataFusionError> {
    let mut found = false;
    expr.apply(|e| {
        if let Expr::ScalarFunction(f) = e
            && is_clock(f.func.name())
        {
            found = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

fn bind(
    logical: &Expr,
    schema: &DFSchema,
    reads_clock: bool,
    now_ms: i64,
) -> std::result::Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let now = chrono::DateTime::from_timestamp_millis(now_ms);
    let mut props = ExecutionProps::new();
    props.query_execution_start_time = now;
    props.config_options = Some(Arc::new(ConfigOptions::default()));
    let expr = if reads_clock {
        let info = SimplifyContext::builder()
            .with_query_execution_start_time(now)
            .build();
        // These functions have no body of their own: DataFusion replaces them by literals while it plans.
        logical
            .clone()
            .transform(|e| match e {
                Expr::ScalarFunction(f) if is_clock(f.func.name()) => {
                    match f.func.simplify(f.args.clone(), &info)? {
                        ExprSimplifyResult::Simplified(literal) => Ok(Transformed::yes(literal)),
                        ExprSimplifyResult::Original(_) => {
                            Ok(Transformed::no(Expr::ScalarFunction(f)))
                        }
                    }
                }
                other => Ok(Transformed::no(other)),
            })?
            .data
    } else {
        logical.clone()
    };
    create_physical_expr(&expr, schema, &props, &PhysicalPlanningContext::default())
}
