//! `ROW_NUMBER() OVER (PARTITION BY … ORDER BY …)` bounded by `= 1`: deduplication.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion_common::ScalarValue;
use datafusion_expr::utils::conjunction;
use datafusion_expr::{Expr, Operator, Window, WindowFunctionDefinition};

use super::{Lower, Rel, Scope};
use crate::codes;
use crate::expression::{as_column, df_schema, strip_aliases, substitute};
use crate::fault::{Fault, Result};
use crate::graph::{Distribution, EdgeKind, Keep, Op, Phase, SortKey, WindowBy, hidden};
use crate::ir::{Attr, Idx, Input, IrNode, IrOp, Names, Rank, WindowPart};

/// What a condition says of a row number.
enum Bound {
    First,
    Other(String),
}

impl Lower<'_> {
    pub(super) fn rank(&mut self, window: &Window, scope: &Scope) -> Result<Rel> {
        let at = scope.tokens.locate_or_start("ROW_NUMBER");
        let input = self.plan(&window.input, scope)?;
        let schema = window.input.schema();
        let [expr] = window.window_expr.as_slice() else {
            return Err(Fault::new(
                codes::OVER,
                "several OVER windows in one query are not supported",
            )
            .at(at));
        };
        let Expr::WindowFunction(function) = strip_aliases(expr.clone()) else {
            return Err(Fault::new(codes::OVER, "this OVER window is not supported").at(at));
        };
        if !matches!(&function.fun, WindowFunctionDefinition::WindowUDF(f) if f.name() == "row_number")
        {
            return Err(Fault::new(
                codes::OVER,
                format!(
                    "{}(…) OVER is not supported",
                    function.fun.name().to_uppercase()
                ),
            )
            .at(scope.tokens.locate_or_start(function.fun.name())));
        }
        // The Calc before: the input's columns, and what the keys and the order compute.
        let mut columns = self.identity(input.node);
        let mut names = Names::of(&self.ir.nodes[input.node].schema);
        let mut add = |lower: &mut Self, expr: &Expr| -> Result<usize> {
            let expr = lower.expr(expr, &input, schema, scope)?;
            if let Some(i) = columns.iter().position(|(e, _)| *e == expr) {
                return Ok(i);
            }
            let name = names.fresh("order");
            columns.push(lower.named(expr, &name, input.node, scope)?);
            Ok(columns.len() - 1)
        };
        let partition = function
            .params
            .partition_by
            .iter()
            .map(|e| add(self, e))
            .collect::<Result<Vec<_>>>()?;
        let order = function
            .params
            .order_by
            .iter()
            .map(|s| {
                Ok(SortKey {
                    column: add(self, &s.expr)?,
                    descending: !s.asc,
                    nulls_first: s.nulls_first,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if order.is_empty() {
            return Err(
                Fault::new(codes::OVER, "ROW_NUMBER() without ORDER BY picks any row")
                    .help("say which row comes first: ORDER BY …")
                    .at(at),
            );
        }
        let plain = columns.len() == self.ir.nodes[input.node].visible();
        let before = if plain {
            input.node
        } else {
            self.calc(input.node, None, columns, scope).node
        };
        let from = &self.ir.nodes[before];
        let visible = from.visible();
        let mut fields: Vec<FieldRef> =
            from.schema.fields().iter().take(visible).cloned().collect();
        let mut attrs = from.attrs[..visible].to_vec();
        fields.push(Arc::new(Field::new(
            Names::of(&from.schema).fresh("row_number"),
            DataType::UInt64,
            false,
        )));
        attrs.push(Attr::default());
        fields.extend(from.schema.fields().iter().skip(visible).cloned());
        attrs.extend_from_slice(&from.attrs[visible..]);
        let kind = from.kind.clone();
        let node = self.ir.add(IrNode {
            op: IrOp::Rank(Rank { partition, order }),
            inputs: vec![Input {
                node: before,
                distribution: Distribution::Forward,
            }],
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: scope.name.clone(),
            kind,
            distributed: None,
        });
        Ok(Rel {
            node,
            columns: input.columns.into_iter().chain([visible]).collect(),
        })
    }

    /// A filter over a row number, however deep below projections: deduplication, then the rest of the filter.
    pub(super) fn bounded_rank(
        &mut self,
        input: &Rel,
        predicates: &[Expr],
        scope: &Scope,
    ) -> Result<Option<Rel>> {
        let outputs = self.identity(input.node);
        let exprs = predicates
            .iter()
            .cloned()
            .chain(outputs.iter().map(|(e, _)| e.clone()))
            .collect();
        let (base, between, exprs) = self.ir.through(input.node, exprs);
        let IrOp::Rank(rank) = self.ir.nodes[base].op.clone() else {
            return Ok(None);
        };
        let below = self.ir.nodes[base].inputs[0].node;
        let number = self.ir.nodes[base]
            .name(self.ir.nodes[below].visible())
            .to_owned();
        let (predicates, outputs_over) = exprs.split_at(predicates.len());
        let mut rest = vec![];
        let mut first = false;
        for predicate in predicates {
            match bound(predicate, &number) {
                Some(Bound::First) => first = true,
                Some(Bound::Other(text)) => {
                    let fault = Fault::new(
                        codes::TOP_N,
                        format!(
                            "ROW_NUMBER() {text} is not supported (Top-N), only = 1 and <= 1 are"
                        ),
                    );
                    return Err(fault.at(scope.tokens.locate_or_start("ROW_NUMBER")));
                }
                None => rest.push(predicate.clone()),
            }
        }
        if !first {
            return Ok(None);
        }
        let node = self.deduplicate(below, &rank, scope)?;
        let one = HashMap::from([(number, Expr::Literal(ScalarValue::UInt64(Some(1)), None))]);
        let rest: Vec<Expr> = between
            .into_iter()
            .chain(rest)
            .map(|e| substitute(e, &one))
            .collect();
        let columns = outputs_over
            .iter()
            .zip(&outputs)
            .map(|(e, (_, f))| (substitute(e.clone(), &one), Arc::clone(f)))
            .collect();
        let filter = match conjunction(rest) {
            Some(filter) => {
                let schema = df_schema(&self.ir.nodes[node].schema)
                    .map_err(|e| self.catalog.fault_of(e, &scope.tokens))?;
                Some(crate::expression::simplify(
                    filter,
                    &schema,
                    &self.catalog.options,
                ))
            }
            None => None,
        };
        let rel = self.calc(node, filter, columns, scope);
        Ok(Some(Rel {
            node: rel.node,
            columns: input.columns.clone(),
        }))
    }

    fn deduplicate(&mut self, input: Idx, rank: &Rank, scope: &Scope) -> Result<Idx> {
        let from = &self.ir.nodes[input];
        if from.kind != EdgeKind::Append {
            return Err(self
                .needs_append("deduplication by ROW_NUMBER()", scope)
                .at(scope.tokens.locate_or_start("ROW_NUMBER")));
        }
        let part = |wanted| {
            rank.partition
                .iter()
                .copied()
                .find(|&c| matches!(from.attrs[c].window, Some((p, _)) if p == wanted))
        };
        let keys: Vec<usize> = rank
            .partition
            .iter()
            .copied()
            .filter(|&c| from.attrs[c].window.is_none())
            .collect();
        let windowed = rank
            .partition
            .iter()
            .find_map(|&c| from.attrs[c].window.map(|(_, w)| w));
        let window = match windowed {
            Some(window) => {
                let find = |wanted| {
                    part(wanted).or_else(|| from.find(|a| a.window == Some((wanted, window))))
                };
                match (find(WindowPart::Start), find(WindowPart::End)) {
                    (Some(start), Some(end)) => Some(WindowBy::Attached { start, end }),
                    _ => return Err(Fault::new(codes::INVALID, "PARTITION BY over a windowed result needs both window_start and window_end").at(scope.tokens.locate_or_start("PARTITION"))),
                }
            }
            None => None,
        };
        let mut order = rank.order.clone();
        let keep = match (order.as_slice(), &window) {
            ([key], None) if from.attrs[key.column].event_time => {
                if key.descending {
                    Keep::LastByTime
                } else {
                    Keep::FirstByTime
                }
            }
            _ => Keep::Best,
        };
        if from.schema.index_of(hidden::OFFSET).is_err() {
            // Rows without an origin: the rest of their columns decides between equals.
            for c in 0..from.visible() {
                if !order.iter().any(|k| k.column == c)
                    && !rank.partition.contains(&c)
                    && !from.schema.field(c).data_type().is_nested()
                {
                    order.push(SortKey {
                        column: c,
                        descending: false,
                        nulls_first: false,
                    });
                }
            }
        }
        let kind = match (&window, keep.clone()) {
            (Some(_), _) | (None, Keep::FirstByTime) => EdgeKind::Append,
            (None, Keep::LastByTime | Keep::Best) => EdgeKind::Upsert(keys.clone()),
        };
        let mut attrs = from.attrs.clone();
        let schema = Arc::clone(&from.schema);
        if window.is_some() {
            // Rows leave at the window's close: only its own time is ahead of the watermark then.
            attrs
                .iter_mut()
                .filter(|a| a.window.is_none())
                .for_each(|a| a.event_time = false);
        } else {
            self.bounded("deduplication without a window", scope, "ROW_NUMBER")?;
        }
        Ok(self.ir.add(IrNode {
            op: IrOp::Graph(Op::Deduplicate {
                phase: Phase::Single,
                keys: keys.clone(),
                window,
                order,
                keep,
                ttl_ms: self.limits.ttl_ms,
            }),
            inputs: vec![Input {
                node: input,
                distribution: Distribution::Hash(keys.clone()),
            }],
            schema,
            attrs,
            scope: scope.name.clone(),
            kind,
            distributed: Some(keys),
        }))
    }
}

/// Reads `rn = 1`, `rn <= 1`, `rn < 2` and their mirrors; anything else that compares the number is another bound.
fn bound(predicate: &Expr, number: &str) -> Option<Bound> {
    if !predicate.column_refs().iter().any(|c| c.name == number) {
        return None;
    }
    let Expr::BinaryExpr(binary) = predicate else {
        return Some(Bound::Other("in this condition".into()));
    };
    let (op, value) = match (plain(&binary.left), plain(&binary.right)) {
        (e, Expr::Literal(v, _)) if as_column(e) == Some(number) => (binary.op, v),
        (Expr::Literal(v, _), e) if as_column(e) == Some(number) => {
            (binary.op.swap().unwrap_or(binary.op), v)
        }
        _ => return Some(Bound::Other("in this condition".into())),
    };
    let value = value.cast_to(&DataType::Int64).ok().and_then(|v| {
        if let ScalarValue::Int64(v) = v {
            v
        } else {
            None
        }
    });
    match (op, value) {
        (Operator::Eq | Operator::LtEq, Some(1)) | (Operator::Lt, Some(2)) => Some(Bound::First),
        (op, Some(value)) => Some(Bound::Other(format!("{op} {value}"))),
        (op, None) => Some(Bound::Other(format!("{op} …"))),
    }
}

/// Without the casts that type coercion put around.
fn plain(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(cast) => plain(&cast.expr),
        Expr::TryCast(cast) => plain(&cast.expr),
        other => other,
    }
}
