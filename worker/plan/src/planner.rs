//! The way from a job to its plan: statements, views, logical plans, nodes, sinks. What each step does is in its own file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef};
use datafusion_common::{Column, TableReference};
use datafusion_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion_optimizer::push_down_filter::PushDownFilter;
use datafusion_optimizer::{Analyzer, Optimizer, OptimizerContext};
use datafusion_sql::planner::SqlToRel;
use datafusion_sql::sqlparser::ast::{Ident, Query, Statement as Ast, TableFactor, Visit, Visitor};
use penstock_crds::sink::{OutputMode as SinkMode, Sink, SinkKind};

use crate::catalog::Catalog;
use crate::codes;
use crate::expression::column;
use crate::fault::{Fault, Position, Result, Tokens, did_you_mean};
use crate::finish::{self, Plan};
use crate::graph::{Distribution, EdgeKind, Emit, Op, OutputMode};
use crate::input::PlanInput;
use crate::ir::{Attr, Idx, Input, IrNode, IrOp};
use crate::lower::{Limits, Lower, Rel, Scope, View};
use crate::parse::{Statement, StatementKind, parse};
use crate::refuse::refuse;
use crate::rewrite::rewrite;
use crate::source_plan::SinkPlan;

/// Plans a job. Pure: the same job gives the same plan.
pub fn plan_input(input: PlanInput<'_>) -> Result<Plan, Vec<Fault>> {
    let statements = parse(input.sql)?;
    let mut catalog = Catalog::new(input.time_zone);
    let mut faults = vec![];
    for (i, source) in input.sources.iter().enumerate() {
        if let Err(found) = catalog.add_source(source, i) {
            faults.extend(found);
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let Logical { views, inserts } = logical(&statements, &mut catalog)?;
    let limits = Limits {
        ttl_ms: input.ttl_ms,
        allow_unbounded: input.allow_unbounded_state,
    };
    let mut lower = Lower {
        catalog: &catalog,
        ir: Default::default(),
        views,
        limits,
        warnings: vec![],
    };
    let mut arrivals: BTreeMap<String, Vec<Arrival>> = BTreeMap::new();
    for insert in inserts {
        match insert.lower(&mut lower, input.sinks) {
            Ok(arrival) => arrivals
                .entry(insert.sink.name.clone())
                .or_default()
                .push(arrival),
            Err(fault) => faults.push(fault),
        }
    }
    let mut sinks = BTreeMap::new();
    let mut roots = vec![];
    for (name, arrivals) in arrivals {
        let Some((index, sink)) = input.sinks.iter().enumerate().find(|(_, s)| s.name == name)
        else {
            continue;
        };
        match write(&mut lower, sink, index, arrivals) {
            Ok((root, plan)) => {
                roots.push(root);
                sinks.insert(name, plan);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        faults.dedup();
        return Err(faults);
    }
    let mut warnings = std::mem::take(&mut lower.warnings);
    for (name, view) in &lower.views {
        if view.lowered.is_none() {
            warnings.push(
                Fault::new(codes::UNUSED_VIEW, format!("view \"{name}\" is not used"))
                    .at(view.tokens.locate_or_start(name)),
            );
        }
    }
    finish::finish(&lower.ir, &roots, &catalog, input, sinks, warnings).map_err(|f| vec![f])
}

/// An INSERT with its logical plan.
struct Insert {
    sink: Scope,
    columns: Vec<Ident>,
    plan: LogicalPlan,
    /// Where the sink is named.
    position: Option<Position>,
    emit_position: Option<Position>,
}

/// All statements as logical plans.
struct Logical {
    views: BTreeMap<String, View>,
    inserts: Vec<Insert>,
}

/// A query's rows on their way into a sink.
struct Arrival {
    rel: Rel,
    names: Vec<String>,
    tokens: Tokens,
    position: Option<Position>,
}

fn logical(statements: &[Statement], catalog: &mut Catalog) -> Result<Logical, Vec<Fault>> {
    let mut faults = vec![];
    let mut views = BTreeMap::new();
    let mut inserts = vec![];
    for statement in statements {
        let found = refuse(&statement.query, &statement.tokens, &catalog.functions);
        let refused = !found.is_empty();
        faults.extend(found);
        let emit = statement.emit.as_ref().map_or(Emit::OnClose, |(e, _)| *e);
        match &statement.kind {
            StatementKind::View { name, columns } => {
                let at = Position::of_span(name.span);
                if catalog.views.contains_key(&name.value)
                    || catalog.sources.contains_key(&name.value)
                {
                    let what = if catalog.sources.contains_key(&name.value) {
                        "a source"
                    } else {
                        "a view"
                    };
                    faults.push(
                        Fault::new(
                            codes::DUPLICATE_VIEW,
                            format!("\"{}\" is already the name of {what}", name.value),
                        )
                        .at(at),
                    );
                    continue;
                }
                if refused {
                    // Later statements would only say that the view is unknown.
                    return Err(faults);
                }
                let planned = plan_query(catalog, &statement.query, &statement.tokens)
                    .and_then(|plan| renamed(plan, columns, name));
                match planned {
                    Ok(plan) => {
                        catalog.add_view(&name.value, &plan);
                        views.insert(
                            name.value.clone(),
                            View {
                                plan,
                                emit,
                                tokens: statement.tokens.clone(),
                                lowered: None,
                            },
                        );
                    }
                    Err(fault) => {
                        faults.push(fault);
                        return Err(faults);
                    }
                }
            }
            StatementKind::Insert { sink, columns } => {
                if refused {
                    continue;
                }
                match plan_query(catalog, &statement.query, &statement.tokens) {
                    Ok(plan) => inserts.push(Insert {
                        sink: Scope {
                            name: sink.value.clone(),
                            emit,
                            tokens: statement.tokens.clone(),
                        },
                        columns: columns.clone(),
                        plan,
                        position: Position::of_span(sink.span),
                        emit_position: statement.emit.as_ref().and_then(|(_, p)| *p),
                    }),
                    Err(fault) => faults.push(fault),
                }
            }
        }
    }
    if faults.is_empty() {
        Ok(Logical { views, inserts })
    } else {
        Err(faults)
    }
}

/// Columns of `CREATE VIEW v (a, b)`; two of one name cannot be told apart.
fn renamed(plan: LogicalPlan, columns: &[Ident], view: &Ident) -> Result<LogicalPlan> {
    let at = Position::of_span(view.span);
    let fields: Vec<(Option<TableReference>, Arc<Field>)> = plan
        .schema()
        .iter()
        .map(|(q, f)| (q.cloned(), Arc::clone(f)))
        .collect();
    if !columns.is_empty() && columns.len() != fields.len() {
        return Err(Fault::new(
            codes::INSERT_COLUMNS,
            format!(
                "view \"{}\" names {} columns, its query has {}",
                view.value,
                columns.len(),
                fields.len()
            ),
        )
        .at(at));
    }
    let names: Vec<String> = if columns.is_empty() {
        fields.iter().map(|(_, f)| f.name().clone()).collect()
    } else {
        columns.iter().map(|c| c.value.clone()).collect()
    };
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
        return Err(Fault::new(
            codes::AMBIGUOUS_COLUMN,
            format!("view \"{}\" has two columns \"{twice}\"", view.value),
        )
        .help("give one of them a name by AS")
        .at(at));
    }
    let exprs: Vec<Expr> = fields
        .iter()
        .zip(&names)
        .map(|((q, f), name)| {
            let own = Expr::Column(Column::new(q.clone(), f.name().clone()));
            if f.name() == name {
                own
            } else {
                own.alias(name)
            }
        })
        .collect();
    LogicalPlanBuilder::from(plan)
        .project(exprs)
        .and_then(|b| b.build())
        .map_err(|e| crate::expression::fault_of_datafusion(e, &Tokens::default()).at(at))
}

/// From a checked query to a logical plan with types coerced and filters pushed down.
fn plan_query(catalog: &Catalog, query: &Query, tokens: &Tokens) -> Result<LogicalPlan> {
    let mut query = Box::new(query.clone());
    tables_exist(catalog, &query, tokens)?;
    rewrite(&mut query)?;
    let planner = SqlToRel::new_with_options(catalog, Catalog::parser_options());
    let fault = |e| catalog.fault_of(e, tokens);
    let plan = planner
        .sql_statement_to_plan(Ast::Query(query))
        .map_err(fault)?;
    let plan = Analyzer::new()
        .execute_and_check(plan, &catalog.options, |_, _| {})
        .map_err(fault)?;
    let config = OptimizerContext::new_with_config_options(Arc::clone(&catalog.options))
        .without_query_execution_start_time()
        .with_max_passes(3);
    Optimizer::with_rules(vec![Arc::new(PushDownFilter::new())])
        .optimize(plan, &config, |_, _| {})
        .map_err(fault)
}

/// Unknown tables, found with their positions before the planner words it its own way.
fn tables_exist(catalog: &Catalog, query: &Query, tokens: &Tokens) -> Result<()> {
    struct Tables<'a> {
        catalog: &'a Catalog,
        ctes: BTreeSet<String>,
        fault: Option<Fault>,
    }
    impl Visitor for Tables<'_> {
        type Break = ();
        fn pre_visit_query(&mut self, query: &Query) -> std::ops::ControlFlow<()> {
            if let Some(with) = &query.with {
                self.ctes
                    .extend(with.cte_tables.iter().map(|c| c.alias.name.value.clone()));
            }
            std::ops::ControlFlow::Continue(())
        }
        fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> std::ops::ControlFlow<()> {
            use datafusion_sql::sqlparser::ast::Spanned;
            if let TableFactor::Table {
                name, args: None, ..
            } = factor
            {
                let known = match name.0.as_slice() {
                    [part] => part.as_ident().is_some_and(|i| {
                        self.ctes.contains(&i.value)
                            || self.catalog.sources.contains_key(&i.value)
                            || self.catalog.views.contains_key(&i.value)
                    }),
                    _ => false,
                };
                if !known {
                    let text = name.to_string().replace(['`', '"'], "");
                    let hint = did_you_mean(
                        &text,
                        self.catalog
                            .table_names()
                            .chain(self.ctes.iter().map(String::as_str)),
                    );
                    self.fault.get_or_insert(
                        Fault::new(
                            codes::UNKNOWN_TABLE,
                            format!("unknown table \"{text}\"{hint}"),
                        )
                        .at(Position::of_span(name.span())),
                    );
                }
            }
            std::ops::ControlFlow::Continue(())
        }
    }
    let mut tables = Tables {
        catalog,
        ctes: BTreeSet::new(),
        fault: None,
    };
    let _ = query.visit(&mut tables);
    match tables.fault {
        Some(fault) => Err(fault.at(tokens.start())),
        None => Ok(()),
    }
}

impl Insert {
    fn lower(&self, lower: &mut Lower<'_>, sinks: &[Sink]) -> Result<Arrival> {
        if !sinks.iter().any(|s| s.name == self.sink.name) {
            let hint = did_you_mean(&self.sink.name, sinks.iter().map(|s| s.name.as_str()));
            return Err(Fault::new(
                codes::UNKNOWN_TABLE,
                format!("unknown sink \"{}\"{hint}", self.sink.name),
            )
            .at(self.position));
        }
        let rel = lower.plan(&self.plan, &self.sink)?;
        if let Some(at) = self.emit_position {
            self.emits(lower, rel.node).map_err(|f| f.at(Some(at)))?;
        }
        let fields = self.plan.schema().fields();
        if !self.columns.is_empty() && self.columns.len() != fields.len() {
            let at = self.columns.first().and_then(|c| Position::of_span(c.span));
            return Err(Fault::new(
                codes::INSERT_COLUMNS,
                format!(
                    "INSERT names {} columns, its query has {}",
                    self.columns.len(),
                    fields.len()
                ),
            )
            .at(at));
        }
        let names: Vec<String> = if self.columns.is_empty() {
            fields.iter().map(|f| f.name().clone()).collect()
        } else {
            self.columns.iter().map(|c| c.value.clone()).collect()
        };
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
            return Err(Fault::new(
                codes::INSERT_COLUMNS,
                format!(
                    "two columns \"{twice}\" go into sink \"{}\"",
                    self.sink.name
                ),
            )
            .help("give one of them a name by AS")
            .at(self.sink.tokens.locate_or_start(twice)));
        }
        let schema = lower.ir.nodes[rel.node].schema.clone();
        if let Some(i) = rel
            .columns
            .iter()
            .position(|&c| schema.field(c).data_type().is_null())
        {
            return Err(
                Fault::new(codes::TYPE, format!("column \"{}\" has no type", names[i]))
                    .help("write CAST(NULL AS <type>)")
                    .at(self.sink.tokens.locate_or_start("NULL")),
            );
        }
        refuse_ranks(lower, rel.node, &self.sink.tokens)?;
        Ok(Arrival {
            rel,
            names,
            tokens: self.sink.tokens.clone(),
            position: self.position,
        })
    }
}

impl Insert {
    /// `EMIT …` that no window of this statement heeds must not be passed over.
    fn emits(&self, lower: &Lower<'_>, node: Idx) -> Result<()> {
        let mut open = vec![node];
        let mut windows = false;
        while let Some(index) = open.pop() {
            let node = &lower.ir.nodes[index];
            match &node.op {
                IrOp::Graph(Op::WindowAggregate { emit, .. }) => {
                    windows = true;
                    if *emit == self.sink.emit {
                        return Ok(());
                    }
                }
                IrOp::Graph(
                    Op::WindowJoin { .. }
                    | Op::Deduplicate {
                        window: Some(_), ..
                    },
                ) if self.sink.emit == Emit::OnClose => return Ok(()),
                _ => {}
            }
            open.extend(node.inputs.iter().map(|i| i.node));
        }
        Err(if windows {
            Fault::new(
                codes::INVALID,
                "EMIT here does not reach the window, which is in a view",
            )
            .help("write EMIT at the end of the view")
        } else {
            Fault::new(
                codes::INVALID,
                "EMIT needs a windowed aggregate in this statement",
            )
        })
    }
}

/// A row number that nothing bounded is an OVER window.
fn refuse_ranks(lower: &Lower<'_>, node: Idx, tokens: &Tokens) -> Result<()> {
    let mut open = vec![node];
    while let Some(index) = open.pop() {
        let node = &lower.ir.nodes[index];
        if let IrOp::Rank(_) = node.op {
            let view = lower
                .views
                .get(&node.scope)
                .map(|v| &v.tokens)
                .unwrap_or(tokens);
            let fault = Fault::new(
                codes::OVER,
                "ROW_NUMBER() OVER without a condition = 1 or <= 1 on it is not supported",
            );
            return Err(fault.at(view.locate_or_start("ROW_NUMBER")));
        }
        open.extend(node.inputs.iter().map(|i| i.node));
    }
    Ok(())
}

/// The end of the graph for one sink.
fn write(
    lower: &mut Lower<'_>,
    sink: &Sink,
    index: usize,
    arrivals: Vec<Arrival>,
) -> Result<(Idx, SinkPlan)> {
    let scope = Scope {
        name: sink.name.clone(),
        emit: Emit::OnClose,
        tokens: arrivals[0].tokens.clone(),
    };
    let position = arrivals[0].position;
    let names = arrivals[0].names.clone();
    let mut rels = vec![];
    for arrival in &arrivals {
        if arrival.names != names {
            let fault = Fault::new(
                codes::INSERT_COLUMNS,
                format!(
                    "the INSERTs into sink \"{}\" have different columns",
                    sink.name
                ),
            );
            return Err(fault
                .help(format!("all need ({})", names.join(", ")))
                .at(arrival.position));
        }
        let node = &lower.ir.nodes[arrival.rel.node];
        let columns: Vec<(Expr, FieldRef)> = arrival
            .rel
            .columns
            .iter()
            .zip(&names)
            .map(|(&c, name)| {
                let field = node.schema.field(c);
                (
                    column(node.name(c)),
                    Arc::new(Field::new(
                        name,
                        field.data_type().clone(),
                        field.is_nullable(),
                    )) as FieldRef,
                )
            })
            .collect();
        rels.push(lower.calc(arrival.rel.node, None, columns, &scope));
    }
    let rel = if rels.len() == 1 {
        rels.remove(0)
    } else {
        let node = &lower.ir.nodes[rels[0].node];
        let fields: Vec<Field> = (0..names.len())
            .map(|i| node.schema.field(i).clone())
            .collect();
        let schema = datafusion_common::DFSchema::try_from(arrow::datatypes::Schema::new(fields))
            .map_err(|e| lower.catalog.fault_of(e, &scope.tokens))?;
        lower.union(rels, &schema, &scope).map_err(|f| Fault {
            code: codes::INSERT_COLUMNS,
            ..f
        })?
    };
    // Hidden columns end here.
    let node = drop_hidden(lower, rel.node, &scope);
    let from = &lower.ir.nodes[node];
    let index_of = |field: &str, names: &[String]| -> Result<Vec<usize>> {
        names
            .iter()
            .map(|n| {
                from.schema.index_of(n).map_err(|_| {
                    let hint =
                        did_you_mean(n, from.schema.fields().iter().map(|f| f.name().as_str()));
                    Fault::new(
                        codes::SINK_COLUMN,
                        format!(
                            "\"{n}\" is no column of the rows inserted into \"{}\"{hint}",
                            sink.name
                        ),
                    )
                    .path(format!("sinks[{index}].{field}"))
                })
            })
            .collect()
    };
    let primary_key = index_of("primaryKey", &sink.primary_key)?;
    let (key_columns, partition_by) = match sink.kind() {
        Some(SinkKind::Kafka(kafka)) => (index_of("kafka.keyColumns", &kafka.key_columns)?, vec![]),
        Some(SinkKind::Files(files)) => {
            (vec![], index_of("files.partitionBy", &files.partition_by)?)
        }
        Some(SinkKind::Print(_)) | None => (vec![], vec![]),
    };
    let mode = match sink.output_mode {
        SinkMode::Append => OutputMode::Append,
        SinkMode::Update => OutputMode::Update,
        SinkMode::Complete => OutputMode::Complete,
    };
    let kind = from.kind.clone();
    let inferred = match &kind {
        EdgeKind::Upsert(key) => Some(key.clone()),
        EdgeKind::Append | EdgeKind::Retract => None,
    };
    let key = if primary_key.is_empty() {
        inferred
    } else {
        Some(primary_key)
    };
    let schema = Arc::clone(&from.schema);
    let sink_node = |lower: &mut Lower<'_>,
                     input: Idx,
                     distribution: Distribution,
                     kind: EdgeKind,
                     key: Option<Vec<usize>>| {
        lower.ir.add(IrNode {
            op: IrOp::Graph(Op::Sink {
                name: sink.name.clone(),
                mode,
                key,
            }),
            inputs: vec![Input {
                node: input,
                distribution,
            }],
            schema: Arc::clone(&schema),
            attrs: vec![Attr::default(); schema.fields().len()],
            scope: sink.name.clone(),
            kind,
            distributed: None,
        })
    };
    let (root, kind, key) = match mode {
        OutputMode::Append => {
            if kind != EdgeKind::Append {
                let fault = Fault::new(
                    codes::RETRACT,
                    format!(
                        "the rows for sink \"{}\" change later, and it is in outputMode Append",
                        sink.name
                    ),
                );
                return Err(fault.help("set its outputMode: Update, or take a windowed result with EMIT ON WINDOW CLOSE").at(position));
            }
            (
                sink_node(lower, node, Distribution::Forward, kind.clone(), None),
                kind,
                None,
            )
        }
        OutputMode::Update => {
            let Some(key) = key else {
                let fault = Fault::new(
                    codes::SINK_KEY,
                    format!(
                        "which columns identify a row of sink \"{}\" cannot be told from the query, and outputMode Update needs to know",
                        sink.name
                    ),
                );
                return Err(fault.help("give the sink a primaryKey").at(position));
            };
            let together = from
                .distributed
                .as_ref()
                .is_some_and(|d| d.iter().all(|c| key.contains(c)));
            let distribution = if together {
                Distribution::Forward
            } else {
                Distribution::Hash(key.clone())
            };
            (
                sink_node(lower, node, distribution, kind.clone(), Some(key.clone())),
                kind,
                Some(key),
            )
        }
        OutputMode::Complete => {
            let key = key.unwrap_or_default();
            let from = &lower.ir.nodes[node];
            let (schema, attrs) = (Arc::clone(&from.schema), from.attrs.clone());
            let all = lower.ir.add(IrNode {
                op: IrOp::Graph(Op::Materialize {
                    key: key.clone(),
                    max_rows: usize::try_from(sink.max_complete_rows).unwrap_or(usize::MAX),
                }),
                inputs: vec![Input {
                    node,
                    distribution: Distribution::Hash(vec![]),
                }],
                schema,
                attrs,
                scope: sink.name.clone(),
                kind: EdgeKind::Append,
                distributed: Some(vec![]),
            });
            let key = (!key.is_empty()).then_some(key);
            (
                sink_node(
                    lower,
                    all,
                    Distribution::Forward,
                    EdgeKind::Append,
                    key.clone(),
                ),
                EdgeKind::Append,
                key,
            )
        }
    };
    let record_key = if key_columns.is_empty() {
        key.clone()
    } else {
        Some(key_columns)
    };
    Ok((
        root,
        SinkPlan {
            name: sink.name.clone(),
            schema: Arc::clone(&lower.ir.nodes[root].schema),
            mode,
            kind,
            key,
            record_key,
            partition_by,
        },
    ))
}

fn drop_hidden(lower: &mut Lower<'_>, node: Idx, scope: &Scope) -> Idx {
    let from = &lower.ir.nodes[node];
    let visible = from.visible();
    if visible == from.schema.fields().len() {
        return node;
    }
    let schema = Arc::new(arrow::datatypes::Schema::new(
        from.schema
            .fields()
            .iter()
            .take(visible)
            .cloned()
            .collect::<Vec<_>>(),
    ));
    let exprs = (0..visible).map(|i| column(from.name(i))).collect();
    let keep = |c: &[usize]| c.iter().all(|&i| i < visible).then(|| c.to_vec());
    let calc = IrNode {
        op: IrOp::Graph(Op::Calc {
            filter: None,
            exprs,
        }),
        inputs: vec![Input {
            node,
            distribution: Distribution::Forward,
        }],
        schema,
        attrs: from.attrs[..visible].to_vec(),
        scope: scope.name.clone(),
        kind: from.kind.clone(),
        distributed: from.distributed.as_deref().and_then(keep),
    };
    lower.ir.add(calc)
}
