//! Sources and views as tables: declared types as Arrow types, columns in their order, and what the SQL planner looks up.
//! It owns names and types; which columns a job reads is `source_plan`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use arrow::datatypes::{DataType as Arrow, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DFSchema, DataFusionError, Result as DfResult, TableReference};
use datafusion_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF,
};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use penstock_crds::data_type::DataType;
use penstock_crds::source::{OnLate, Source, TransportField};

use crate::codes;
use crate::expression::UNKNOWN_TABLE_MARK;
use crate::fault::{Fault, Result, did_you_mean};
use crate::functions::Functions;
use crate::graph::hidden;
use crate::parse::parse_expression;
use crate::refuse;
use crate::rewrite;
use crate::window::WindowFunctions;

/// The Arrow type of a declared type.
pub fn arrow_type(declared: &DataType) -> Arrow {
    let unit = |digits: u8| match digits {
        0..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        _ => TimeUnit::Nanosecond,
    };
    match declared {
        DataType::Boolean => Arrow::Boolean,
        DataType::TinyInt => Arrow::Int8,
        DataType::SmallInt => Arrow::Int16,
        DataType::Int => Arrow::Int32,
        DataType::BigInt => Arrow::Int64,
        DataType::Float => Arrow::Float32,
        DataType::Double => Arrow::Float64,
        DataType::Decimal { precision, scale } => {
            Arrow::Decimal128(*precision, i8::try_from(*scale).unwrap_or(i8::MAX))
        }
        DataType::String => Arrow::Utf8,
        DataType::Binary => Arrow::Binary,
        DataType::Date => Arrow::Date32,
        DataType::Time => Arrow::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(digits) => Arrow::Timestamp(unit(*digits), None),
        DataType::TimestampLtz(digits) => Arrow::Timestamp(unit(*digits), Some("+00:00".into())),
        DataType::Array(item) => {
            Arrow::List(Arc::new(Field::new_list_field(arrow_type(item), true)))
        }
        DataType::Map(key, value) => {
            let entries = Fields::from(vec![
                Field::new("key", arrow_type(key), false),
                Field::new("value", arrow_type(value), true),
            ]);
            Arrow::Map(
                Arc::new(Field::new("entries", Arrow::Struct(entries), false)),
                false,
            )
        }
        DataType::Row(fields) => Arrow::Struct(
            fields
                .iter()
                .map(|(name, t)| Field::new(name, arrow_type(t), true))
                .collect(),
        ),
    }
}

/// A column of a source, and where its values come from.
#[derive(Debug, Clone)]
pub(crate) struct SourceColumn {
    pub field: FieldRef,
    pub origin: Origin,
}

#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Body,
    Transport(TransportField),
    /// Over the source's other columns, by unqualified name.
    Computed(Expr),
}

/// A source as a table.
#[derive(Debug)]
pub(crate) struct SourceTable {
    pub name: String,
    pub columns: Vec<SourceColumn>,
    /// The declared columns, in their order.
    pub schema: SchemaRef,
    /// Index of the event-time column.
    pub event_time: Option<usize>,
    pub dead_letters_late: bool,
}

impl TableSource for SourceTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl SourceTable {
    /// Hidden columns that the source can give.
    pub fn hidden_fields(&self) -> Vec<Field> {
        let mut fields = vec![
            Field::new(hidden::SPLIT, Arrow::UInt64, false),
            Field::new(hidden::OFFSET, Arrow::Int64, false),
        ];
        if self.dead_letters_late {
            fields.push(Field::new(hidden::RAW_KEY, Arrow::Binary, true));
            fields.push(Field::new(hidden::RAW_VALUE, Arrow::Binary, true));
        }
        fields
    }
}

/// A view as a table: a name whose plan is lowered once, or, where it numbers rows, in its place.
#[derive(Debug)]
pub(crate) struct ViewTable {
    pub name: String,
    pub schema: SchemaRef,
}

impl TableSource for ViewTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// What the SQL planner looks names up in.
pub(crate) struct Catalog {
    pub functions: Functions,
    pub options: Arc<ConfigOptions>,
    pub sources: BTreeMap<String, Arc<SourceTable>>,
    pub views: BTreeMap<String, Arc<ViewTable>>,
    relation_planners: Vec<Arc<dyn RelationPlanner>>,
    /// What a callback of the planner found: its own error type has no place for a code.
    pub fault: Arc<RwLock<Option<Fault>>>,
}

impl Catalog {
    pub fn new(time_zone: &str) -> Self {
        let mut options = ConfigOptions::new();
        options.execution.time_zone = Some(time_zone.to_owned()).filter(|z| !z.is_empty());
        let fault = Arc::new(RwLock::new(None));
        Self {
            functions: Functions::new(),
            options: Arc::new(options),
            sources: BTreeMap::new(),
            views: BTreeMap::new(),
            relation_planners: vec![Arc::new(WindowFunctions {
                fault: Arc::clone(&fault),
            })],
            fault,
        }
    }

    pub fn parser_options() -> ParserOptions {
        ParserOptions {
            parse_float_as_decimal: true,
            enable_ident_normalization: false,
            collect_spans: true,
            map_string_types_to_utf8view: false,
            ..ParserOptions::new()
        }
    }

    pub fn take_fault(&self) -> Option<Fault> {
        self.fault.write().ok().and_then(|mut f| f.take())
    }

    pub fn table_names(&self) -> impl Iterator<Item = &str> {
        self.sources
            .keys()
            .chain(self.views.keys())
            .map(String::as_str)
    }

    /// Adds a source; computed columns are planned here.
    pub fn add_source(&mut self, source: &Source, index: usize) -> Result<(), Vec<Fault>> {
        let base = |i: usize| format!("sources[{index}].columns[{i}]");
        let fields: Vec<Field> = source
            .columns
            .iter()
            .map(|c| Field::new(&c.name, arrow_type(&c.data_type), c.nullable))
            .collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let mut faults = vec![];
        let mut columns = vec![];
        for (i, column) in source.columns.iter().enumerate() {
            let origin = match (&column.computed, &column.from) {
                (Some(text), _) => match self.computed(text, &column.name, &schema, source) {
                    Ok(expr) => Origin::Computed(expr),
                    Err(fault) => {
                        faults.push(fault.path(format!("{}.as", base(i))));
                        continue;
                    }
                },
                (None, Some(field)) => Origin::Transport(*field),
                (None, None) => Origin::Body,
            };
            columns.push(SourceColumn {
                field: Arc::new(schema.field(i).clone()),
                origin,
            });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let event_time = source
            .watermark
            .as_ref()
            .and_then(|w| schema.index_of(&w.column).ok());
        let table = SourceTable {
            name: source.name.clone(),
            columns,
            schema,
            event_time,
            dead_letters_late: matches!(source.on_late, OnLate::DeadLetter),
        };
        self.sources.insert(source.name.clone(), Arc::new(table));
        Ok(())
    }

    /// Plans a computed column over the columns that are not computed, cast to its declared type.
    fn computed(
        &self,
        text: &str,
        name: &str,
        schema: &SchemaRef,
        source: &Source,
    ) -> Result<Expr> {
        let ast = parse_expression(text)?;
        let tokens = crate::fault::Tokens::default();
        let mut query = select_expression(ast);
        if let Some(fault) = refuse::refuse(&query, &tokens, &self.functions)
            .into_iter()
            .find(|f| f.code != codes::NO_FROM)
        {
            return Err(fault);
        }
        rewrite::rewrite(&mut query)?;
        let ast = expression_of(query)
            .ok_or_else(|| Fault::new(codes::INVALID, "a computed column is one expression"))?;
        let plain: Vec<Field> = source
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| c.computed.is_none())
            .map(|(i, _)| schema.field(i).clone())
            .collect();
        let df = DFSchema::try_from(Schema::new(plain.clone()))
            .map_err(|e| self.fault_of(e, &tokens))?;
        let planner = SqlToRel::new_with_options(self, Self::parser_options());
        let expr = planner
            .sql_to_expr(ast, &df, &mut PlannerContext::new())
            .map_err(|e| self.fault_of(e, &tokens))?;
        if let Some(column) = expr
            .column_refs()
            .into_iter()
            .find(|c| df.index_of_column(c).is_err())
        {
            let hint = did_you_mean(&column.name, plain.iter().map(|f| f.name().as_str()));
            let computed = source
                .columns
                .iter()
                .any(|c| c.name == column.name && c.computed.is_some());
            return Err(if computed {
                Fault::new(
                    codes::UNKNOWN_COLUMN,
                    format!(
                        "computed column \"{name}\" uses \"{}\", which is computed too",
                        column.name
                    ),
                )
            } else {
                Fault::new(
                    codes::UNKNOWN_COLUMN,
                    format!("unknown column \"{}\"{hint}", column.name),
                )
            });
        }
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(df.clone()))
            .with_config_options(Arc::clone(&self.options))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let expr = simplifier
            .coerce(crate::expression::strip_aliases(expr), &df)
            .map_err(|e| self.fault_of(e, &tokens))?;
        let target = schema
            .field_with_name(name)
            .map_err(|e| self.fault_of(e.into(), &tokens))?;
        let cast = datafusion_expr::ExprSchemable::cast_to(expr, target.data_type(), &df).map_err(
            |e| {
                let fault = self.fault_of(e, &tokens);
                Fault {
                    code: codes::COLUMN_TYPE,
                    ..fault
                }
            },
        )?;
        Ok(crate::expression::strip_spans(crate::expression::simplify(
            cast,
            &Arc::new(df),
            &self.options,
        )))
    }

    /// A fault out of an error of DataFusion: code by its kind, position by its span or by the word it names.
    pub fn fault_of(&self, error: DataFusionError, tokens: &crate::fault::Tokens) -> Fault {
        if let Some(fault) = self.take_fault() {
            return fault.at(tokens.start());
        }
        crate::expression::fault_of_datafusion(error, tokens)
    }

    pub fn add_view(&mut self, name: &str, plan: &LogicalPlan) {
        let view = ViewTable {
            name: name.to_owned(),
            schema: Arc::clone(plan.schema().inner()),
        };
        self.views.insert(name.to_owned(), Arc::new(view));
    }
}

fn select_expression(
    expr: datafusion_sql::sqlparser::ast::Expr,
) -> datafusion_sql::sqlparser::ast::Query {
    use datafusion_sql::sqlparser::ast::{Query, SetExpr, Values};
    Query {
        with: None,
        body: Box::new(SetExpr::Values(Values {
            explicit_row: false,
            value_keyword: false,
            rows: vec![datafusion_sql::sqlparser::ast::Parens::with_empty_span(
                vec![expr],
            )],
        })),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: vec![],
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: vec![],
    }
}

fn expression_of(
    query: datafusion_sql::sqlparser::ast::Query,
) -> Option<datafusion_sql::sqlparser::ast::Expr> {
    match *query.body {
        datafusion_sql::sqlparser::ast::SetExpr::Values(mut values) => values
            .rows
            .pop()
            .and_then(|row| row.content.into_iter().next()),
        _ => None,
    }
}

impl ContextProvider for Catalog {
    fn get_table_source(&self, name: TableReference) -> DfResult<Arc<dyn TableSource>> {
        let table = name.table();
        if name.schema().is_none() {
            if let Some(view) = self.views.get(table) {
                return Ok(Arc::clone(view) as Arc<dyn TableSource>);
            }
            if let Some(source) = self.sources.get(table) {
                return Ok(Arc::clone(source) as Arc<dyn TableSource>);
            }
        }
        let hint = did_you_mean(table, self.table_names());
        Err(DataFusionError::Plan(format!(
            "{UNKNOWN_TABLE_MARK}{table}\"{hint}"
        )))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.functions.planners
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.relation_planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.scalar.get(&name.to_lowercase()).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.functions
            .higher_order
            .get(&name.to_lowercase())
            .cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.functions.aggregate.get(&name.to_lowercase()).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.functions.window.get(&name.to_lowercase()).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<Arrow> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.functions.scalar.keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.functions.higher_order.keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.functions.aggregate.keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.functions.window.keys().cloned().collect()
    }
}
