//! The functions that SQL can call: DataFusion's, by lower-case name and alias.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion_common::{Result, TableReference};
use datafusion_expr::planner::{ExprPlanner, PlannerResult};
use datafusion_expr::{AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, WindowUDF};

/// `bid.price` is a column named `price`, as in Flink and Spark; DataFusion would call it `bid[price]`.
#[derive(Debug)]
struct FieldNames;

impl ExprPlanner for FieldNames {
    fn plan_compound_identifier(
        &self,
        field: &Field,
        qualifier: Option<&TableReference>,
        nested_names: &[String],
    ) -> Result<PlannerResult<Vec<Expr>>> {
        let planner = datafusion_functions::core::planner::CoreFunctionPlanner::default();
        let planned = planner.plan_compound_identifier(field, qualifier, nested_names)?;
        Ok(match (planned, nested_names.last()) {
            (PlannerResult::Planned(expr), Some(name)) => PlannerResult::Planned(expr.alias(name)),
            (other, _) => other,
        })
    }
}

/// All built-in functions.
pub(crate) struct Functions {
    pub scalar: BTreeMap<String, Arc<ScalarUDF>>,
    pub aggregate: BTreeMap<String, Arc<AggregateUDF>>,
    pub window: BTreeMap<String, Arc<WindowUDF>>,
    pub higher_order: HashMap<String, Arc<HigherOrderUDF>>,
    pub planners: Vec<Arc<dyn ExprPlanner>>,
}

impl Functions {
    pub fn new() -> Self {
        let mut scalar = BTreeMap::new();
        for f in datafusion_functions::all_default_functions()
            .into_iter()
            .chain(datafusion_functions_nested::all_default_nested_functions())
        {
            for name in f.aliases().iter().map(String::as_str).chain([f.name()]) {
                scalar.insert(name.to_lowercase(), Arc::clone(&f));
            }
        }
        let mut aggregate = BTreeMap::new();
        for f in datafusion_functions_aggregate::all_default_aggregate_functions() {
            for name in f.aliases().iter().map(String::as_str).chain([f.name()]) {
                aggregate.insert(name.to_lowercase(), Arc::clone(&f));
            }
        }
        let row_number = datafusion_functions_window::row_number::row_number_udwf();
        let planners: Vec<Arc<dyn ExprPlanner>> = vec![
            Arc::new(FieldNames),
            Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
            Arc::new(datafusion_functions_nested::planner::NestedFunctionPlanner),
            Arc::new(datafusion_functions_nested::planner::FieldAccessPlanner),
            Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
            Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
            Arc::new(datafusion_functions_aggregate::planner::AggregateFunctionPlanner),
            Arc::new(datafusion_functions_window::planner::WindowFunctionPlanner),
        ];
        let higher_order = datafusion_functions_nested::all_default_higher_order_functions()
            .into_iter()
            .map(|f| (f.name().to_lowercase(), f))
            .collect();
        Self {
            scalar,
            aggregate,
            window: BTreeMap::from([("row_number".to_owned(), row_number)]),
            higher_order,
            planners,
        }
    }

    /// Whether a call by this lower-case name can be planned. Some are syntax and no function of the registry.
    pub fn knows(&self, name: &str) -> bool {
        self.scalar.contains_key(name)
            || self.aggregate.contains_key(name)
            || self.window.contains_key(name)
            || self.higher_order.contains_key(name)
            || matches!(
                name,
                "struct" | "named_struct" | "map" | "make_map" | "grouping"
            )
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.scalar
            .keys()
            .chain(self.aggregate.keys())
            .chain(self.window.keys())
            .map(String::as_str)
    }
}
