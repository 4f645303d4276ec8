//! From DataFusion's logical plan to nodes of the graph: scans, projections, filters, unions, windows. Aggregates, joins and
//! row numbers have files of their own.

mod aggregate;
mod join;
mod rank;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, DFSchema};
use datafusion_expr::utils::{conjunction, split_conjunction_owned};
use datafusion_expr::{Distinct, Expr, LogicalPlan};

use crate::catalog::{Catalog, SourceTable, ViewTable};
use crate::codes;
use crate::expression::{column, df_schema, field_of, simplify, strip_aliases, volatile_functions};
use crate::fault::{Fault, Result, Tokens};
use crate::graph::{Distribution, EdgeKind, Emit, Op, Window};
use crate::ir::{Attr, Idx, Input, Ir, IrNode, IrOp, Names, WindowPart};
use crate::window::{WINDOW_COLUMNS, WindowNode};

/// What lowering knows of the job beyond the statement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub ttl_ms: Option<u64>,
    pub allow_unbounded: bool,
}

/// A planned query whose node is not made yet, or made once.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub plan: LogicalPlan,
    pub emit: Emit,
    pub tokens: Tokens,
    pub lowered: Option<Rel>,
}

/// Output of a lowered plan: for each field of the plan's schema, its column in the node.
#[derive(Debug, Clone)]
pub(crate) struct Rel {
    pub node: Idx,
    pub columns: Vec<usize>,
}

pub(crate) struct Lower<'a> {
    pub catalog: &'a Catalog,
    pub ir: Ir,
    pub views: BTreeMap<String, View>,
    pub limits: Limits,
    pub warnings: Vec<Fault>,
}

/// The statement being lowered.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// Name of the view or sink.
    pub name: String,
    pub emit: Emit,
    pub tokens: Tokens,
}

impl Lower<'_> {
    pub fn plan(&mut self, plan: &LogicalPlan, scope: &Scope) -> Result<Rel> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let source: &dyn datafusion_expr::TableSource = scan.source.as_ref();
                let rel = if let Some(view) = source.downcast_ref::<ViewTable>() {
                    self.view(&view.name)?
                } else if let Some(table) = source.downcast_ref::<SourceTable>() {
                    self.source(table)
                } else {
                    return Err(Fault::new(
                        codes::UNKNOWN_TABLE,
                        format!("unknown table \"{}\"", scan.table_name),
                    )
                    .at(scope.tokens.start()));
                };
                let columns = match &scan.projection {
                    Some(projection) => projection.iter().map(|&i| rel.columns[i]).collect(),
                    None => rel.columns,
                };
                Ok(Rel {
                    node: rel.node,
                    columns,
                })
            }
            LogicalPlan::SubqueryAlias(alias) => self.plan(&alias.input, scope),
            LogicalPlan::Projection(projection) => {
                let input = self.plan(&projection.input, scope)?;
                let columns = projection
                    .expr
                    .iter()
                    .zip(plan.schema().fields())
                    .map(|(e, f)| {
                        self.column(e, f.name(), &input, projection.input.schema(), scope)
                    })
                    .collect::<Result<Vec<_>>>()?;
                Ok(self.calc(input.node, None, columns, scope))
            }
            LogicalPlan::Filter(filter) => {
                let input = self.plan(&filter.input, scope)?;
                let predicate =
                    self.expr(&filter.predicate, &input, filter.input.schema(), scope)?;
                self.filter(input, predicate, scope)
            }
            LogicalPlan::Extension(extension) => {
                match extension.node.as_any().downcast_ref::<WindowNode>() {
                    Some(window) => self.window(window, scope),
                    None => Err(self.unsupported(plan, scope)),
                }
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, scope),
            LogicalPlan::Distinct(Distinct::All(input)) => self.distinct(input, scope),
            LogicalPlan::Union(union) => {
                let inputs = union
                    .inputs
                    .iter()
                    .map(|input| self.plan(input, scope))
                    .collect::<Result<Vec<_>>>()?;
                self.union(inputs, plan.schema(), scope)
            }
            LogicalPlan::Join(join) => self.join(join, scope),
            LogicalPlan::Window(window) => self.rank(window, scope),
            LogicalPlan::EmptyRelation(_) => {
                // A condition that is never true: the rest of the text was still checked.
                Err(Fault::new(
                    codes::INVALID,
                    "a condition of this statement is never true, so it has no rows",
                )
                .at(scope.tokens.locate_or_start("WHERE")))
            }
            _ => Err(self.unsupported(plan, scope)),
        }
    }

    fn unsupported(&self, plan: &LogicalPlan, scope: &Scope) -> Fault {
        Fault::new(
            codes::CLAUSE,
            format!(
                "{} is not supported",
                plan.display()
                    .to_string()
                    .split(':')
                    .next()
                    .unwrap_or_default()
            ),
        )
        .at(scope.tokens.start())
    }

    fn source(&mut self, table: &SourceTable) -> Rel {
        let mut fields: Vec<FieldRef> = table.schema.fields().iter().cloned().collect();
        let mut attrs = vec![Attr::default(); fields.len()];
        if let Some(i) = table.event_time {
            attrs[i].event_time = true;
        }
        let columns = fields.iter().map(|f| f.name().clone()).collect();
        for field in table.hidden_fields() {
            fields.push(Arc::new(field));
            attrs.push(Attr::default());
        }
        let node = self.ir.add(IrNode {
            op: IrOp::Graph(Op::Source {
                name: table.name.clone(),
                columns,
            }),
            inputs: vec![],
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: table.name.clone(),
            kind: EdgeKind::Append,
            distributed: None,
        });
        Rel {
            node,
            columns: (0..table.schema.fields().len()).collect(),
        }
    }

    /// A view is lowered once, where it is first read.
    fn view(&mut self, name: &str) -> Result<Rel> {
        let view =
            self.views.get(name).cloned().ok_or_else(|| {
                Fault::new(codes::UNKNOWN_TABLE, format!("unknown table \"{name}\""))
            })?;
        if let Some(rel) = view.lowered {
            return Ok(rel);
        }
        let scope = Scope {
            name: name.to_owned(),
            emit: view.emit,
            tokens: view.tokens.clone(),
        };
        let rel = self.plan(&view.plan, &scope)?;
        if let Some(view) = self.views.get_mut(name) {
            view.lowered = Some(rel.clone());
        }
        Ok(rel)
    }

    /// An expression of a logical plan over the columns of the node.
    pub fn expr(
        &mut self,
        expr: &Expr,
        input: &Rel,
        schema: &DFSchema,
        scope: &Scope,
    ) -> Result<Expr> {
        let mut fault = None;
        let _ = expr.apply(|e| {
            let message = match e {
                Expr::ScalarSubquery(_) | Expr::SetComparison(_) => Some((
                    codes::SUBQUERY,
                    "a subquery in an expression is not supported",
                )),
                Expr::Exists(_) | Expr::InSubquery(_) => Some((
                    codes::SEMI_JOIN,
                    "a subquery in a condition is not supported",
                )),
                Expr::OuterReferenceColumn(..) => {
                    Some((codes::SUBQUERY, "a correlated subquery is not supported"))
                }
                Expr::Unnest(_) => Some((codes::UNNEST, "UNNEST is not supported")),
                Expr::Placeholder(_) => Some((codes::INVALID, "parameters are not supported")),
                Expr::GroupingSet(_) => Some((
                    codes::GROUPING_SETS,
                    "GROUPING SETS, ROLLUP and CUBE are not supported",
                )),
                _ => None,
            };
            if let Some((code, message)) = message {
                fault = Some(Fault::new(code, message));
            }
            Ok(if fault.is_some() {
                TreeNodeRecursion::Stop
            } else {
                TreeNodeRecursion::Continue
            })
        });
        if let Some(fault) = fault {
            return Err(fault.at(scope.tokens.start()));
        }
        for name in volatile_functions(expr) {
            let warning = Fault::new(
                codes::VOLATILE,
                format!(
                    "{name}() gives another value each time, so replaying rows after a failure gives other results"
                ),
            );
            self.warn(warning.at(scope.tokens.locate_or_start(&name)));
        }
        let mut missing = None;
        let node = &self.ir.nodes[input.node];
        let mapped = crate::expression::rename(expr.clone(), &|c: &Column| match schema
            .index_of_column(c)
        {
            Ok(i) => column(node.name(input.columns[i])),
            Err(_) => Expr::Column(c.clone()),
        });
        for c in expr.column_refs() {
            if schema.index_of_column(c).is_err() {
                missing = Some(crate::expression::unknown_column(
                    c,
                    schema.fields().iter().map(|f| f.name().as_str()),
                    &scope.tokens,
                ));
            }
        }
        match missing {
            Some(fault) => Err(fault),
            None => Ok(strip_aliases(mapped)),
        }
    }

    /// An output column: expression, simplified, with its name and type.
    pub fn column(
        &mut self,
        expr: &Expr,
        name: &str,
        input: &Rel,
        schema: &DFSchema,
        scope: &Scope,
    ) -> Result<(Expr, FieldRef)> {
        let expr = self.expr(expr, input, schema, scope)?;
        self.named(expr, name, input.node, scope)
    }

    pub fn named(
        &mut self,
        expr: Expr,
        name: &str,
        node: Idx,
        scope: &Scope,
    ) -> Result<(Expr, FieldRef)> {
        let schema = df_schema(&self.ir.nodes[node].schema)
            .map_err(|e| self.catalog.fault_of(e, &scope.tokens))?;
        let expr = simplify(expr, &schema, &self.catalog.options);
        let field =
            field_of(&expr, name, &schema).map_err(|e| self.catalog.fault_of(e, &scope.tokens))?;
        Ok((expr, field))
    }

    pub fn calc(
        &mut self,
        node: Idx,
        filter: Option<Expr>,
        columns: Vec<(Expr, FieldRef)>,
        scope: &Scope,
    ) -> Rel {
        let count = columns.len();
        let node = self.ir.calc(node, filter, columns, &scope.name);
        Rel {
            node,
            columns: (0..count).collect(),
        }
    }

    /// The node's own columns, as they are.
    pub fn identity(&self, node: Idx) -> Vec<(Expr, FieldRef)> {
        let node = &self.ir.nodes[node];
        (0..node.visible())
            .map(|i| (column(node.name(i)), Arc::clone(&node.schema.fields()[i])))
            .collect()
    }

    fn filter(&mut self, input: Rel, predicate: Expr, scope: &Scope) -> Result<Rel> {
        let schema = df_schema(&self.ir.nodes[input.node].schema)
            .map_err(|e| self.catalog.fault_of(e, &scope.tokens))?;
        let predicates = split_conjunction_owned(predicate);
        if let Some(rel) = self.bounded_rank(&input, &predicates, scope)? {
            return Ok(rel);
        }
        let predicate =
            conjunction(predicates).map(|p| simplify(p, &schema, &self.catalog.options));
        let columns = self.identity(input.node);
        let rel = self.calc(input.node, predicate, columns, scope);
        Ok(Rel {
            node: rel.node,
            columns: input.columns,
        })
    }

    fn window(&mut self, window: &WindowNode, scope: &Scope) -> Result<Rel> {
        let input = self.plan(&window.input, scope)?;
        let node = &self.ir.nodes[input.node];
        let at = window.position.or(scope.tokens.start());
        let column = match window.column {
            Some(i) => {
                let column = input.columns[i];
                if !node.attrs[column].event_time {
                    let name = node.name(column);
                    let fault =
                        Fault::new(codes::EVENT_TIME, format!("\"{name}\" is not event time"))
                            .at(scope.tokens.locate(name))
                            .at(at);
                    let known: Vec<&str> = input
                        .columns
                        .iter()
                        .filter(|&&c| node.attrs[c].event_time)
                        .map(|&c| node.name(c))
                        .collect();
                    return Err(match known.as_slice() {
                        [] => fault.help("no column here is: give the source a watermark, and pass its column on unchanged"),
                        names => fault.help(format!("event time here is \"{}\"", names.join("\", \""))),
                    });
                }
                column
            }
            None => input
                .columns
                .iter()
                .copied()
                .find(|&c| node.attrs[c].event_time)
                .ok_or_else(|| {
                    Fault::new(codes::EVENT_TIME, "the table has no event time")
                        .help("give the source a watermark, and pass its column on unchanged")
                        .at(at)
                })?,
        };
        if node.kind != EdgeKind::Append {
            return Err(self.needs_append("a window", scope).at(at));
        }
        let visible = node.visible();
        let mut fields: Vec<FieldRef> =
            node.schema.fields().iter().take(visible).cloned().collect();
        let mut attrs = node.attrs[..visible].to_vec();
        let time = node.schema.field(column).data_type().clone();
        let mut names = Names::of(&node.schema);
        for (name, part) in
            WINDOW_COLUMNS
                .iter()
                .zip([WindowPart::Start, WindowPart::End, WindowPart::Time])
        {
            fields.push(Arc::new(Field::new(names.fresh(name), time.clone(), false)));
            attrs.push(window_attr(part, window.window));
        }
        fields.extend(node.schema.fields().iter().skip(visible).cloned());
        attrs.extend_from_slice(&node.attrs[visible..]);
        let distributed = node.distributed.clone();
        let index = self.ir.add(IrNode {
            op: IrOp::Graph(Op::WindowAssign {
                column,
                window: window.window,
            }),
            inputs: vec![Input {
                node: input.node,
                distribution: Distribution::Forward,
            }],
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: scope.name.clone(),
            kind: EdgeKind::Append,
            distributed,
        });
        Ok(Rel {
            node: index,
            columns: input
                .columns
                .into_iter()
                .chain(visible..visible + 3)
                .collect(),
        })
    }

    pub fn union(&mut self, inputs: Vec<Rel>, schema: &DFSchema, scope: &Scope) -> Result<Rel> {
        let mut nodes = vec![];
        for rel in &inputs {
            let from = &self.ir.nodes[rel.node];
            let columns: Vec<(Expr, FieldRef)> = rel
                .columns
                .iter()
                .zip(schema.fields())
                .map(|(&c, f)| {
                    (
                        column(from.name(c)),
                        Arc::new(Field::new(
                            f.name(),
                            from.schema.field(c).data_type().clone(),
                            f.is_nullable(),
                        )),
                    )
                })
                .collect();
            nodes.push(self.calc(rel.node, None, columns, scope).node);
        }
        // Where one input has no origin of its rows, none has.
        let hidden = nodes
            .iter()
            .map(|&n| self.ir.nodes[n].schema.fields().len() - self.ir.nodes[n].visible())
            .min()
            .unwrap_or(0);
        let visible = schema.fields().len();
        let first = &self.ir.nodes[nodes[0]];
        if let Some(other) = nodes.iter().map(|&n| &self.ir.nodes[n]).find(|n| {
            (0..visible).any(|i| n.schema.field(i).data_type() != first.schema.field(i).data_type())
        }) {
            let i = (0..visible)
                .find(|&i| other.schema.field(i).data_type() != first.schema.field(i).data_type())
                .unwrap_or(0);
            return Err(Fault::new(
                codes::TYPE,
                format!(
                    "column \"{}\" of a UNION has the types {} and {}",
                    first.name(i),
                    first.schema.field(i).data_type(),
                    other.schema.field(i).data_type()
                ),
            )
            .at(scope.tokens.locate_or_start("UNION")));
        }
        let mut fields: Vec<FieldRef> = (0..visible)
            .map(|i| {
                let nullable = nodes
                    .iter()
                    .any(|&n| self.ir.nodes[n].schema.field(i).is_nullable());
                Arc::new(Field::new(
                    first.name(i),
                    first.schema.field(i).data_type().clone(),
                    nullable,
                ))
            })
            .collect();
        fields.extend(
            first
                .schema
                .fields()
                .iter()
                .skip(visible)
                .take(hidden)
                .cloned(),
        );
        let attrs = (0..fields.len())
            .map(|i| {
                let all = |test: &dyn Fn(&Attr) -> bool| {
                    nodes.iter().all(|&n| test(&self.ir.nodes[n].attrs[i]))
                };
                let window = first.attrs[i]
                    .window
                    .filter(|w| all(&|a| a.window == Some(*w)));
                Attr {
                    event_time: all(&|a| a.event_time),
                    window,
                }
            })
            .collect();
        let kind = if nodes
            .iter()
            .all(|&n| self.ir.nodes[n].kind == EdgeKind::Append)
        {
            EdgeKind::Append
        } else {
            EdgeKind::Retract
        };
        let node = self.ir.add(IrNode {
            op: IrOp::Graph(Op::Union),
            inputs: nodes
                .into_iter()
                .map(|node| Input {
                    node,
                    distribution: Distribution::Forward,
                })
                .collect(),
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: scope.name.clone(),
            kind,
            distributed: None,
        });
        Ok(Rel {
            node,
            columns: (0..visible).collect(),
        })
    }

    pub fn needs_append(&self, what: &str, scope: &Scope) -> Fault {
        Fault::new(
            codes::RETRACT,
            format!("{what} cannot take rows that change later"),
        )
        .help("let its input be final: a windowed result with EMIT ON WINDOW CLOSE")
        .at(scope.tokens.start())
    }

    pub fn bounded(&self, what: &str, scope: &Scope, word: &str) -> Result<()> {
        if self.limits.allow_unbounded || self.limits.ttl_ms.is_some() {
            return Ok(());
        }
        let fault = Fault::new(
            codes::UNBOUNDED,
            format!("the state of {what} grows without bound"),
        );
        Err(fault
            .help("take it per window (TUMBLE or HOP), or set spec.state.ttl, or set spec.sqlOptions.allowUnboundedState: true")
            .at(scope.tokens.locate_or_start(word)))
    }

    pub fn warn(&mut self, warning: Fault) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

pub(crate) fn window_attr(part: WindowPart, window: Window) -> Attr {
    Attr {
        event_time: part == WindowPart::Time,
        window: Some((part, window)),
    }
}
