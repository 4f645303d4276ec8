//! Aggregates: per window, without a window, and `SELECT DISTINCT`. Two phases are `finish`'s.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion_expr::{Aggregate as Plan, Expr, LogicalPlan};

use super::{Lower, Rel, Scope, window_attr};
use crate::codes;
use crate::expression::{as_column, column, strip_aliases};
use crate::fault::{Fault, Result};
use crate::graph::{
    Aggregate, AggregateFunction, Distribution, EdgeKind, Emit, Op, Phase, Window, WindowBy,
};
use crate::ir::{Attr, Idx, Input, IrNode, IrOp, Names, WindowPart};

/// One aggregate call over the columns of the input.
struct Call {
    function: AggregateFunction,
    args: Vec<Expr>,
    filter: Option<Expr>,
    distinct: bool,
    output: FieldRef,
}

/// The columns of the Calc before an aggregate, without repeats.
#[derive(Default)]
struct Prepared {
    columns: Vec<(Expr, FieldRef)>,
    names: Names,
}

impl Prepared {
    fn add(
        &mut self,
        lower: &mut Lower<'_>,
        expr: Expr,
        fallback: &str,
        node: Idx,
        scope: &Scope,
    ) -> Result<usize> {
        let name = as_column(&expr).unwrap_or(fallback).to_owned();
        let (expr, field) = lower.named(expr, &name, node, scope)?;
        if let Some(i) = self.columns.iter().position(|(e, _)| *e == expr) {
            return Ok(i);
        }
        let field = Arc::new(Field::new(
            self.names.fresh(&name),
            field.data_type().clone(),
            field.is_nullable(),
        ));
        self.columns.push((expr, field));
        Ok(self.columns.len() - 1)
    }
}

impl Lower<'_> {
    pub(super) fn aggregate(&mut self, plan: &Plan, scope: &Scope) -> Result<Rel> {
        let input = self.plan(&plan.input, scope)?;
        let schema = plan.input.schema();
        let groups = plan
            .group_expr
            .iter()
            .map(|g| self.expr(g, &input, schema, scope))
            .collect::<Result<Vec<_>>>()?;
        let calls = plan
            .aggr_expr
            .iter()
            .zip(plan.schema.fields().iter().skip(groups.len()))
            .map(|(e, f)| self.call(e, f, &input, schema, scope))
            .collect::<Result<Vec<_>>>()?;

        let node = &self.ir.nodes[input.node];
        let parts: Vec<Option<(WindowPart, Window)>> = groups
            .iter()
            .map(|g| {
                as_column(g)
                    .and_then(|n| node.schema.index_of(n).ok())
                    .and_then(|i| node.attrs[i].window)
            })
            .collect();
        let windows: Vec<Window> = parts.iter().flatten().map(|(_, w)| *w).collect();
        let Some(&window) = windows.first() else {
            return self.unwindowed(&input, &groups, calls, scope);
        };
        if windows.iter().any(|w| *w != window) {
            return Err(Fault::new(
                codes::INVALID,
                "GROUP BY mixes columns of different windows",
            )
            .at(scope.tokens.locate_or_start("GROUP")));
        }
        if node.kind != EdgeKind::Append {
            return Err(self
                .needs_append("a windowed aggregate", scope)
                .at(scope.tokens.locate_or_start("GROUP")));
        }
        self.windowed(&input, &groups, &parts, window, calls, scope)
    }

    fn call(
        &mut self,
        expr: &Expr,
        field: &Field,
        input: &Rel,
        schema: &datafusion_common::DFSchema,
        scope: &Scope,
    ) -> Result<Call> {
        let Expr::AggregateFunction(call) = strip_aliases(expr.clone()) else {
            return Err(
                Fault::new(codes::AGGREGATE, format!("{expr} is not an aggregate"))
                    .at(scope.tokens.start()),
            );
        };
        let name = call.func.name().to_owned();
        let at = scope.tokens.locate_or_start(&name);
        let params = call.params;
        if !params.order_by.is_empty() || params.null_treatment.is_some() {
            return Err(Fault::new(
                codes::AGGREGATE,
                format!("ORDER BY inside {name}(…) is not supported"),
            )
            .at(at));
        }
        let mut args = params
            .args
            .iter()
            .map(|a| self.expr(a, input, schema, scope))
            .collect::<Result<Vec<_>>>()?;
        let filter = params
            .filter
            .as_ref()
            .map(|f| self.expr(f, input, schema, scope))
            .transpose()?;
        let function = match name.as_str() {
            "count" => {
                if matches!(args.as_slice(), [Expr::Literal(v, _)] if !v.is_null())
                    && !params.distinct
                {
                    args.clear();
                }
                if args.len() > 1 {
                    return Err(Fault::new(
                        codes::AGGREGATE,
                        "COUNT of several columns is not supported",
                    )
                    .at(at));
                }
                AggregateFunction::Count
            }
            "sum" => AggregateFunction::Sum,
            "min" => AggregateFunction::Min,
            "max" => AggregateFunction::Max,
            "avg" => AggregateFunction::Avg,
            _ => AggregateFunction::Other(Arc::clone(&call.func)),
        };
        if matches!(function, AggregateFunction::Avg)
            && let [Expr::Cast(cast)] = args.as_slice()
            && *cast.field.data_type() == DataType::Float64
            && self
                .named(cast.expr.as_ref().clone(), "avg", input.node, scope)?
                .1
                .data_type()
                .is_integer()
        {
            // The sum of whole numbers is exact; only the quotient is a float.
            args = vec![cast.expr.as_ref().clone()];
        }
        match &function {
            AggregateFunction::Sum if field.data_type().is_floating() => {
                let warning = Fault::new(
                    codes::FLOAT_SUM,
                    "a sum of floating-point numbers may differ in its last digits from run to run",
                );
                self.warn(warning.help("DECIMAL is exact").at(at));
            }
            AggregateFunction::Other(f)
                if matches!(
                    f.name(),
                    "array_agg" | "string_agg" | "first_value" | "last_value" | "nth_value"
                ) =>
            {
                let warning = Fault::new(
                    codes::ARRAY_AGG,
                    format!(
                        "{name} takes values as they arrive, an order that may differ from run to run"
                    ),
                );
                self.warn(warning.at(at));
            }
            _ => {}
        }
        let distinct =
            params.distinct && !matches!(function, AggregateFunction::Min | AggregateFunction::Max);
        Ok(Call {
            function,
            args,
            filter,
            distinct,
            output: Arc::new(field.clone()),
        })
    }

    /// Columns of the Calc before: keys first, then extra ones, then arguments. Answers (keys, extra, aggregates).
    #[allow(clippy::type_complexity)]
    fn prepare(
        &mut self,
        node: Idx,
        keys: Vec<Expr>,
        extra: Vec<Expr>,
        calls: Vec<Call>,
        scope: &Scope,
    ) -> Result<(Prepared, Vec<usize>, Vec<usize>, Vec<Aggregate>)> {
        let mut prepared = Prepared::default();
        let keys = keys
            .into_iter()
            .map(|e| prepared.add(self, e, "key", node, scope))
            .collect::<Result<_>>()?;
        let extra = extra
            .into_iter()
            .map(|e| prepared.add(self, e, "extra", node, scope))
            .collect::<Result<_>>()?;
        let mut aggregates = vec![];
        for call in calls {
            let args = call
                .args
                .into_iter()
                .map(|e| prepared.add(self, e, "arg", node, scope))
                .collect::<Result<_>>()?;
            let filter = call
                .filter
                .map(|e| prepared.add(self, e, "filter", node, scope))
                .transpose()?;
            aggregates.push(Aggregate {
                function: call.function,
                args,
                filter,
                distinct: call.distinct,
                output: call.output,
            });
        }
        Ok((prepared, keys, extra, aggregates))
    }

    fn windowed(
        &mut self,
        input: &Rel,
        groups: &[Expr],
        parts: &[Option<(WindowPart, Window)>],
        window: Window,
        calls: Vec<Call>,
        scope: &Scope,
    ) -> Result<Rel> {
        let keys: Vec<Expr> = groups
            .iter()
            .zip(parts)
            .filter(|(_, p)| p.is_none())
            .map(|(g, _)| g.clone())
            .collect();
        // Look below: if the window's columns are only grouped by, the aggregate assigns the windows itself.
        let mut all: Vec<Expr> = keys.clone();
        for call in &calls {
            all.extend(call.args.iter().cloned());
            all.extend(call.filter.iter().cloned());
        }
        let (base, filters, inlined) = self.ir.through(input.node, all);
        let fused = match &self.ir.nodes[base].op {
            IrOp::Graph(Op::WindowAssign {
                column,
                window: assigned,
            }) if *assigned == window => {
                let node = &self.ir.nodes[base];
                let start = node.visible() - 3;
                let added: Vec<&str> = (start..start + 3).map(|i| node.name(i)).collect();
                let untouched = inlined.iter().chain(&filters).all(|e| {
                    e.column_refs()
                        .iter()
                        .all(|c| !added.contains(&c.name.as_str()))
                });
                untouched.then_some(*column)
            }
            _ => None,
        };
        let (before, by, keys, aggregates) = match fused {
            Some(time) => {
                let below = self.ir.nodes[base].inputs[0].node;
                let mut inlined = inlined.into_iter();
                let keys: Vec<Expr> = inlined.by_ref().take(keys.len()).collect();
                let calls = calls
                    .into_iter()
                    .map(|call| {
                        let args = inlined.by_ref().take(call.args.len()).collect();
                        let filter = if call.filter.is_some() {
                            inlined.next()
                        } else {
                            None
                        };
                        Call {
                            args,
                            filter,
                            ..call
                        }
                    })
                    .collect();
                let time = column(self.ir.nodes[below].name(time));
                let (prepared, keys, extra, aggregates) =
                    self.prepare(below, keys, vec![time], calls, scope)?;
                let filter = datafusion_expr::utils::conjunction(filters);
                let before = self.calc(below, filter, prepared.columns, scope).node;
                (
                    before,
                    WindowBy::Time {
                        column: extra[0],
                        window,
                    },
                    keys,
                    aggregates,
                )
            }
            None => {
                let node = &self.ir.nodes[input.node];
                let find = |part| {
                    node.find(|a| a.window == Some((part, window)))
                        .map(|i| column(node.name(i)))
                };
                let (Some(start), Some(end)) = (find(WindowPart::Start), find(WindowPart::End))
                else {
                    let fault = Fault::new(
                        codes::INVALID,
                        "GROUP BY over a windowed result needs both window_start and window_end",
                    )
                    .at(scope.tokens.locate_or_start("GROUP"));
                    return Err(fault);
                };
                let (prepared, keys, extra, aggregates) =
                    self.prepare(input.node, keys, vec![start, end], calls, scope)?;
                let before = self.calc(input.node, None, prepared.columns, scope).node;
                (
                    before,
                    WindowBy::Attached {
                        start: extra[0],
                        end: extra[1],
                    },
                    keys,
                    aggregates,
                )
            }
        };
        let from = &self.ir.nodes[before];
        let time_type = match &by {
            WindowBy::Time { column, .. } => from.schema.field(*column).data_type().clone(),
            WindowBy::Attached { start, .. } => from.schema.field(*start).data_type().clone(),
        };
        let mut names = Names::default();
        let (mut fields, mut attrs) = key_fields(&from.schema, &keys, &mut names);
        for (name, part) in crate::window::WINDOW_COLUMNS.iter().zip([
            WindowPart::Start,
            WindowPart::End,
            WindowPart::Time,
        ]) {
            fields.push(Arc::new(Field::new(
                names.fresh(name),
                time_type.clone(),
                false,
            )));
            attrs.push(window_attr(part, window));
        }
        let aggregates = self::outputs(aggregates, &mut names, &mut fields, &mut attrs);
        let count = keys.len();
        let (kind, emit) = match scope.emit {
            Emit::OnClose => (EdgeKind::Append, Emit::OnClose),
            Emit::OnUpdate => (EdgeKind::Upsert((0..count + 2).collect()), Emit::OnUpdate),
        };
        let node = self.ir.add(IrNode {
            op: IrOp::Graph(Op::WindowAggregate {
                phase: Phase::Single,
                by,
                keys: keys.clone(),
                aggregates,
                emit,
            }),
            inputs: vec![Input {
                node: before,
                distribution: Distribution::Hash(keys),
            }],
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: scope.name.clone(),
            kind,
            distributed: Some((0..count).collect()),
        });
        let mut key = 0..count;
        let mut columns: Vec<usize> = parts
            .iter()
            .map(|part| match part {
                None => key.next().unwrap_or(0),
                Some((WindowPart::Start, _)) => count,
                Some((WindowPart::End, _)) => count + 1,
                Some((WindowPart::Time, _)) => count + 2,
            })
            .collect();
        let total = self.ir.nodes[node].schema.fields().len();
        columns.extend(count + 3..total);
        Ok(Rel { node, columns })
    }

    fn unwindowed(
        &mut self,
        input: &Rel,
        groups: &[Expr],
        calls: Vec<Call>,
        scope: &Scope,
    ) -> Result<Rel> {
        let append = self.ir.nodes[input.node].kind == EdgeKind::Append;
        let small = calls.iter().all(|c| {
            !c.distinct
                && match c.function {
                    AggregateFunction::Count | AggregateFunction::Sum | AggregateFunction::Avg => {
                        true
                    }
                    AggregateFunction::Min | AggregateFunction::Max => append,
                    AggregateFunction::Other(_) => false,
                }
        });
        if !groups.is_empty() || !small {
            self.bounded(
                if groups.is_empty() {
                    "an aggregate without a window"
                } else {
                    "GROUP BY without a window"
                },
                scope,
                "GROUP",
            )?;
        }
        if !append
            && let Some(other) = calls
                .iter()
                .find(|c| matches!(c.function, AggregateFunction::Other(_)))
        {
            let name = crate::ir::function_name(&other.function).to_owned();
            return Err(Fault::new(
                codes::RETRACT,
                format!("{name} cannot take rows that change later"),
            )
            .help("over changing rows use COUNT, SUM, AVG, MIN or MAX")
            .at(scope.tokens.locate_or_start(&name)));
        }
        let (prepared, keys, _, aggregates) =
            self.prepare(input.node, groups.to_vec(), vec![], calls, scope)?;
        let before = self.calc(input.node, None, prepared.columns, scope).node;
        let from = &self.ir.nodes[before];
        let mut names = Names::default();
        let (mut fields, mut attrs) = key_fields(&from.schema, &keys, &mut names);
        let aggregates = self::outputs(aggregates, &mut names, &mut fields, &mut attrs);
        let count = keys.len();
        // A set of keys only grows on append input.
        let kind = if append && aggregates.is_empty() {
            EdgeKind::Append
        } else {
            EdgeKind::Upsert((0..count).collect())
        };
        let node = self.ir.add(IrNode {
            op: IrOp::Graph(Op::Aggregate {
                keys: keys.clone(),
                aggregates,
                ttl_ms: self.limits.ttl_ms,
            }),
            inputs: vec![Input {
                node: before,
                distribution: Distribution::Hash(keys),
            }],
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: scope.name.clone(),
            kind,
            distributed: Some((0..count).collect()),
        });
        let total = self.ir.nodes[node].schema.fields().len();
        Ok(Rel {
            node,
            columns: (0..total).collect(),
        })
    }

    pub(super) fn distinct(&mut self, plan: &LogicalPlan, scope: &Scope) -> Result<Rel> {
        let input = self.plan(plan, scope)?;
        let node = &self.ir.nodes[input.node];
        let groups: Vec<Expr> = input
            .columns
            .iter()
            .map(|&c| column(node.name(c)))
            .collect();
        let parts: Vec<_> = input
            .columns
            .iter()
            .map(|&c| node.attrs[c].window)
            .collect();
        let has = |part| parts.iter().flatten().any(|(p, _)| *p == part);
        // Within a window, distinct rows are complete at its close.
        let window = parts.iter().flatten().map(|(_, w)| *w).next();
        if let Some(window) = window
            && has(WindowPart::Start)
            && has(WindowPart::End)
            && parts.iter().flatten().all(|(_, w)| *w == window)
            && node.kind == EdgeKind::Append
        {
            return self.windowed(&input, &groups, &parts, window, vec![], scope);
        }
        if !self.limits.allow_unbounded && self.limits.ttl_ms.is_none() {
            self.bounded("SELECT DISTINCT", scope, "DISTINCT")?;
        }
        self.unwindowed(&input, &groups, vec![], scope)
    }
}

/// The columns of the keys, as an aggregate's output begins.
fn key_fields(schema: &Schema, keys: &[usize], names: &mut Names) -> (Vec<FieldRef>, Vec<Attr>) {
    let field = |key: &usize| {
        let field = schema.field(*key);
        Arc::new(Field::new(
            names.fresh(field.name()),
            field.data_type().clone(),
            field.is_nullable(),
        ))
    };
    let fields = keys.iter().map(field).collect();
    (fields, vec![Attr::default(); keys.len()])
}

fn outputs(
    aggregates: Vec<Aggregate>,
    names: &mut Names,
    fields: &mut Vec<FieldRef>,
    attrs: &mut Vec<Attr>,
) -> Vec<Aggregate> {
    aggregates
        .into_iter()
        .map(|a| {
            let output = Arc::new(Field::new(
                names.fresh(a.output.name()),
                a.output.data_type().clone(),
                a.output.is_nullable(),
            ));
            fields.push(Arc::clone(&output));
            attrs.push(Attr::default());
            Aggregate { output, ..a }
        })
        .collect()
}
