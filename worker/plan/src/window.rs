//! The table functions `TUMBLE` and `HOP`: from their call to a node of the logical plan. Which column is event time is
//! `lower`'s to check.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, RwLock};

use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion_common::{
    Column, DFSchema, DFSchemaRef, DataFusionError, Result as DfResult, ScalarValue, TableReference,
};
use datafusion_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion_sql::sqlparser::ast::{
    Expr as Ast, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName,
    Spanned, TableFactor,
};

use crate::catalog::SourceTable;
use crate::codes;
use crate::dialect::TABLE_ARGUMENT;
use crate::fault::{Fault, Position, Result};
use crate::graph::Window;
use crate::refuse::function_name;
use crate::rewrite::{SPARK_HOP, plain_args};

/// Names of the columns that a window function adds.
pub(crate) const WINDOW_COLUMNS: [&str; 3] = ["window_start", "window_end", "window_time"];

/// Rows of the input with the columns of their windows.
#[derive(Debug, Clone)]
pub(crate) struct WindowNode {
    pub input: LogicalPlan,
    /// Index of the named time column; none: whichever column is event time.
    pub column: Option<usize>,
    pub window: Window,
    pub position: Option<Position>,
    schema: DFSchemaRef,
}

impl WindowNode {
    fn new(
        input: LogicalPlan,
        column: Option<usize>,
        window: Window,
        position: Option<Position>,
    ) -> DfResult<Self> {
        let time = match column {
            Some(i) => input.schema().field(i).data_type().clone(),
            None => time_type(&input),
        };
        let mut fields: Vec<(Option<TableReference>, Arc<Field>)> = input
            .schema()
            .iter()
            .map(|(q, f)| (q.cloned(), Arc::clone(f)))
            .collect();
        for name in WINDOW_COLUMNS {
            fields.push((None, Arc::new(Field::new(name, time.clone(), false))));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, Default::default())?);
        Ok(Self {
            input,
            column,
            window,
            position,
            schema,
        })
    }
}

/// Type of the event time that is not named: of the scanned source's, if it is still there.
fn time_type(input: &LogicalPlan) -> DataType {
    let mut name = None;
    let mut open = vec![input];
    while let Some(plan) = open.pop() {
        if let LogicalPlan::TableScan(scan) = plan
            && let Some(table) = (*scan.source).downcast_ref::<SourceTable>()
        {
            name = table
                .event_time
                .map(|i| table.schema.field(i).name().clone());
        }
        open.extend(plan.inputs());
    }
    let fields = input.schema().fields();
    let named = fields.iter().find(|f| Some(f.name()) == name.as_ref());
    let first = || {
        fields
            .iter()
            .find(|f| matches!(f.data_type(), DataType::Timestamp(..)))
    };
    named
        .or_else(first)
        .map_or(DataType::Timestamp(TimeUnit::Millisecond, None), |f| {
            f.data_type().clone()
        })
}

impl PartialEq for WindowNode {
    fn eq(&self, other: &Self) -> bool {
        self.input == other.input && self.column == other.column && self.window == other.window
    }
}

impl Eq for WindowNode {}

impl PartialOrd for WindowNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.input.partial_cmp(&other.input)
    }
}

impl Hash for WindowNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.column.hash(state);
        self.window.hash(state);
    }
}

impl UserDefinedLogicalNodeCore for WindowNode {
    fn name(&self) -> &str {
        "Window"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn prevent_predicate_push_down_columns(&self) -> std::collections::HashSet<String> {
        WINDOW_COLUMNS.iter().map(|c| (*c).to_owned()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Window: {:?}", self.window)
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let input = inputs
            .pop()
            .ok_or_else(|| DataFusionError::Internal("a window has one input".into()))?;
        Self::new(input, self.column, self.window, self.position)
    }
}

/// Plans calls of window functions in FROM.
#[derive(Debug)]
pub(crate) struct WindowFunctions {
    pub fault: Arc<RwLock<Option<Fault>>>,
}

/// A call with its name and arguments, however it was written.
struct Call {
    name: String,
    args: Vec<(Option<Ident>, Ast)>,
    position: Option<Position>,
}

impl RelationPlanner for WindowFunctions {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> DfResult<RelationPlanning> {
        let (call, alias) = match &relation {
            TableFactor::Table {
                name,
                args: Some(args),
                alias,
                ..
            } => (call(name, &args.args), alias.clone()),
            TableFactor::TableFunction {
                expr:
                    Ast::Function(Function {
                        name,
                        args: FunctionArguments::List(list),
                        ..
                    }),
                alias,
            } => (call(name, &list.args), alias.clone()),
            _ => return Ok(RelationPlanning::Original(Box::new(relation))),
        };
        match plan(call, context) {
            Ok(plan) => Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(
                plan, alias,
            )))),
            Err(Failure::Fault(fault)) => {
                let message = fault.message.clone();
                if let Ok(mut slot) = self.fault.write() {
                    *slot = Some(fault);
                }
                Err(DataFusionError::Plan(message))
            }
            Err(Failure::Planner(error)) => Err(error),
        }
    }
}

enum Failure {
    Fault(Fault),
    Planner(DataFusionError),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        Self::Planner(error)
    }
}

fn call(name: &ObjectName, args: &[FunctionArg]) -> Call {
    let args = args
        .iter()
        .filter_map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some((None, e.clone())),
            FunctionArg::Named {
                name,
                arg: FunctionArgExpr::Expr(e),
                ..
            } => Some((Some(name.clone()), e.clone())),
            _ => None,
        })
        .collect();
    Call {
        name: function_name(name),
        args,
        position: Position::of_span(name.span()),
    }
}

fn plan(call: Call, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan, Failure> {
    let at = call.position;
    let spark = call.name == SPARK_HOP;
    let shown = if spark { "window" } else { call.name.as_str() }.to_uppercase();
    let order: &[&str] = match call.name.as_str() {
        "tumble" => &["DATA", "TIMECOL", "SIZE", "OFFSET"],
        SPARK_HOP => &["DATA", "TIMECOL", "SIZE", "SLIDE", "OFFSET"],
        _ => &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"],
    };
    let bad = |message: String| Fault::new(codes::WINDOW_ARGUMENTS, message).at(at);
    let mut by_name: std::collections::BTreeMap<&str, Ast> = Default::default();
    for (i, (name, arg)) in call.args.into_iter().enumerate() {
        let key = match &name {
            None => *order
                .get(i)
                .ok_or_else(|| bad(format!("{shown} has too many arguments")))?,
            Some(name) => {
                let upper = name.value.to_uppercase();
                *order.iter().find(|o| **o == upper).ok_or_else(|| {
                    bad(format!(
                        "{shown} has no argument \"{}\"; it takes {}",
                        name.value,
                        order.join(", ")
                    ))
                    .at(Position::of_span(name.span))
                })?
            }
        };
        if by_name.insert(key, arg).is_some() {
            return Err(bad(format!("argument {key} of {shown} is given twice")).into());
        }
    }
    let mut take = |key: &str| {
        by_name
            .remove(key)
            .ok_or_else(|| bad(format!("{shown} lacks its argument {key}")))
    };
    let data = take("DATA")?;
    let timecol = take("TIMECOL")?;
    let size = take("SIZE")?;
    let slide = if order.contains(&"SLIDE") {
        Some(take("SLIDE")?)
    } else {
        None
    };
    let offset = by_name.remove("OFFSET");

    let input = plan_data(data, &shown, at, context)?;
    let column = descriptor(timecol, &shown, at, &input)?;
    let mut length = |ast: Ast, what: &str| -> Result<i64, Failure> {
        let position = Position::of_span(ast.span()).or(at);
        let expr = context.sql_to_expr(ast, &DFSchema::empty())?;
        Ok(micros(&expr).map_err(|why| {
            Fault::new(codes::WINDOW_SIZE, format!("{what} of {shown} {why}")).at(position)
        })?)
    };
    let size = length(size, "size")?;
    let slide = slide.map(|s| length(s, "slide")).transpose()?;
    let offset = offset
        .map(|o| length(o, "offset"))
        .transpose()?
        .unwrap_or(0);
    let positive = |value: i64, what: &str| {
        if value > 0 {
            Ok(())
        } else {
            Err(Fault::new(
                codes::WINDOW_SIZE,
                format!("{what} of {shown} is not above zero"),
            )
            .at(at))
        }
    };
    positive(size, "size")?;
    let window = match slide {
        None => Window::Tumble {
            size,
            offset: offset.rem_euclid(size),
        },
        Some(slide) => {
            positive(slide, "slide")?;
            if slide > size {
                let help = if spark {
                    "the order here is (ts, size, slide), as in Spark; HOP takes (slide, size)"
                } else {
                    "the order here is (slide, size), as in Flink; Spark's window() takes (size, slide)"
                };
                return Err(Fault::new(codes::WINDOW_SIZE, format!("slide of {shown} is greater than its size, so rows would fall between windows")).help(help).at(at).into());
            }
            Window::Hop {
                slide,
                size,
                offset: offset.rem_euclid(slide),
            }
        }
    };
    if let Some(taken) = WINDOW_COLUMNS
        .iter()
        .find(|name| input.schema().has_column_with_unqualified_name(name))
    {
        return Err(Fault::new(
            codes::AMBIGUOUS_COLUMN,
            format!("the input of {shown} already has a column \"{taken}\""),
        )
        .help("give it another name by AS")
        .at(at)
        .into());
    }
    let node = WindowNode::new(input, column, window, at)?;
    Ok(LogicalPlan::Extension(Extension {
        node: Arc::new(node),
    }))
}

fn plan_data(
    data: Ast,
    shown: &str,
    at: Option<Position>,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan, Failure> {
    match data {
        Ast::Function(f) if function_name(&f.name) == TABLE_ARGUMENT => {
            let args = plain_args(&f);
            if args.len() > 1 {
                return Err(Fault::new(
                    codes::WINDOW_ARGUMENTS,
                    format!("PARTITION BY in {shown} is not supported"),
                )
                .help("put the columns into GROUP BY")
                .at(at)
                .into());
            }
            let idents = match args.into_iter().next() {
                Some(Ast::Identifier(ident)) => vec![ident],
                Some(Ast::CompoundIdentifier(idents)) => idents,
                _ => vec![],
            };
            let factor = TableFactor::Table {
                name: ObjectName::from(idents),
                alias: None,
                args: None,
                with_hints: vec![],
                version: None,
                with_ordinality: false,
                partitions: vec![],
                json_path: None,
                sample: None,
                index_hints: vec![],
            };
            Ok(context.plan(factor)?)
        }
        Ast::Subquery(subquery) => Ok(context.plan(TableFactor::Derived {
            lateral: false,
            subquery,
            alias: None,
            sample: None,
        })?),
        other => Err(Fault::new(
            codes::WINDOW_ARGUMENTS,
            format!("the first argument of {shown} is TABLE <name>, not {other}"),
        )
        .at(Position::of_span(other.span()))
        .at(at)
        .into()),
    }
}

fn descriptor(
    ast: Ast,
    shown: &str,
    at: Option<Position>,
    input: &LogicalPlan,
) -> Result<Option<usize>, Failure> {
    let wrong = || {
        Fault::new(
            codes::WINDOW_ARGUMENTS,
            format!("the time column of {shown} is written DESCRIPTOR(<column>)"),
        )
        .at(at)
    };
    let ident = match &ast {
        Ast::Function(f) if function_name(&f.name) == "descriptor" => {
            match plain_args(f).as_slice() {
                [] => return Ok(None),
                [Ast::Identifier(ident)] => ident.clone(),
                [Ast::CompoundIdentifier(idents)] if idents.len() == 2 => idents[1].clone(),
                _ => return Err(wrong().into()),
            }
        }
        _ => return Err(wrong().into()),
    };
    match input.schema().index_of_column_by_name(None, &ident.value) {
        Some(index) => Ok(Some(index)),
        None => {
            let names: Vec<&str> = input
                .schema()
                .fields()
                .iter()
                .map(|f| f.name().as_str())
                .collect();
            let column = Column::new_unqualified(ident.value.clone());
            let tokens = crate::fault::Tokens::default();
            Err(
                crate::expression::unknown_column(&column, names.into_iter(), &tokens)
                    .at(Position::of_span(ident.span))
                    .at(at)
                    .into(),
            )
        }
    }
}

/// A constant interval in microseconds, or why it is none.
fn micros(expr: &Expr) -> Result<i64, &'static str> {
    let (months, days, nanos) = match expr {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(v)), _) => {
            (v.months, v.days, v.nanoseconds)
        }
        Expr::Literal(ScalarValue::IntervalDayTime(Some(v)), _) => {
            (0, v.days, i64::from(v.milliseconds) * 1_000_000)
        }
        Expr::Literal(ScalarValue::Utf8(Some(text)), _) => {
            let value = arrow::compute::kernels::cast_utils::parse_interval_month_day_nano(text)
                .map_err(|_| "is not an interval")?;
            (value.months, value.days, value.nanoseconds)
        }
        Expr::Negative(inner) => return micros(inner).map(|v| -v),
        _ => return Err("is not a constant interval"),
    };
    if months != 0 {
        return Err("has months or years, whose length varies");
    }
    if nanos % 1_000 != 0 {
        return Err("is finer than a microsecond");
    }
    i64::from(days)
        .checked_mul(86_400_000_000)
        .and_then(|d| d.checked_add(nanos / 1_000))
        .ok_or("is too long")
}
