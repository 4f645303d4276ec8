//! Joins: inner joins of two windowed inputs within equal windows.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion_expr::utils::{conjunction, split_conjunction_owned};
use datafusion_expr::{Expr, Join, JoinType, Operator};

use super::{Lower, Rel, Scope};
use crate::codes;
use crate::expression::{as_column, df_schema, simplify};
use crate::fault::{Fault, Result};
use crate::graph::{Distribution, EdgeKind, JoinSide, Op, Window, WindowBy};
use crate::ir::{Attr, Idx, Input, IrNode, IrOp, Names, WindowPart};

impl Lower<'_> {
    pub(super) fn join(&mut self, join: &Join, scope: &Scope) -> Result<Rel> {
        let at = scope
            .tokens
            .locate("JOIN")
            .or_else(|| scope.tokens.locate_or_start("FROM"));
        match join.join_type {
            JoinType::Inner => {}
            JoinType::Left | JoinType::Right | JoinType::Full => {
                return Err(Fault::new(
                    codes::OUTER_JOIN,
                    format!(
                        "{} JOIN is not supported, only inner joins are",
                        join.join_type
                    ),
                )
                .at(at));
            }
            _ => {
                return Err(Fault::new(
                    codes::SEMI_JOIN,
                    format!("{} JOIN is not supported", join.join_type),
                )
                .at(at));
            }
        }
        let left = self.plan(&join.left, scope)?;
        let right = self.plan(&join.right, scope)?;
        for rel in [&left, &right] {
            if self.ir.nodes[rel.node].kind != EdgeKind::Append {
                return Err(self.needs_append("a join", scope).at(at));
            }
        }
        // Conditions: equalities of one side with the other, and the rest.
        let mut pairs = vec![];
        for (l, r) in &join.on {
            pairs.push((
                self.expr(l, &left, join.left.schema(), scope)?,
                self.expr(r, &right, join.right.schema(), scope)?,
            ));
        }
        let mut rest = vec![];
        let conditions = join
            .filter
            .clone()
            .map(split_conjunction_owned)
            .unwrap_or_default();
        for condition in conditions {
            let sided = |e: &Expr, schema: &datafusion_common::DFSchema| {
                !e.column_refs().is_empty()
                    && e.column_refs()
                        .iter()
                        .all(|c| schema.index_of_column(c).is_ok())
            };
            let (ls, rs) = (join.left.schema(), join.right.schema());
            match &condition {
                Expr::BinaryExpr(b)
                    if b.op == Operator::Eq && sided(&b.left, ls) && sided(&b.right, rs) =>
                {
                    pairs.push((
                        self.expr(&b.left, &left, ls, scope)?,
                        self.expr(&b.right, &right, rs, scope)?,
                    ));
                }
                Expr::BinaryExpr(b)
                    if b.op == Operator::Eq && sided(&b.right, ls) && sided(&b.left, rs) =>
                {
                    pairs.push((
                        self.expr(&b.right, &left, ls, scope)?,
                        self.expr(&b.left, &right, rs, scope)?,
                    ));
                }
                _ => rest.push(condition),
            }
        }
        let (window, keys) = self
            .window_of_join(&left, &right, pairs, &rest, join, scope)
            .map_err(|f| f.at(at))?;
        let (left_keys, right_keys): (Vec<Expr>, Vec<Expr>) = keys.into_iter().unzip();
        let (left_node, left_side) = self.side(&left, left_keys, window, scope)?;
        let (right_node, right_side) = self.side(&right, right_keys, window, scope)?;

        let (l, r) = (&self.ir.nodes[left_node], &self.ir.nodes[right_node]);
        let mut names = Names::default();
        let mut fields: Vec<FieldRef> = vec![];
        let mut attrs: Vec<Attr> = vec![];
        for node in [l, r] {
            for i in 0..node.visible() {
                let field = node.schema.field(i);
                fields.push(Arc::new(Field::new(
                    names.fresh(field.name()),
                    field.data_type().clone(),
                    field.is_nullable(),
                )));
                let attr = node.attrs[i];
                attrs.push(Attr {
                    event_time: attr.event_time && attr.window.is_some(),
                    window: attr.window,
                });
            }
        }
        let shift = l.visible();
        let schema = Arc::new(Schema::new(fields));
        let columns: Vec<usize> = left
            .columns
            .iter()
            .copied()
            .chain(right.columns.iter().map(|c| c + shift))
            .collect();
        let distributed = Some(left_side.keys.clone());
        // The condition over the output: by the join's own schema, whose fields are those columns.
        let draft = IrNode {
            op: IrOp::Graph(Op::WindowJoin {
                left: left_side.clone(),
                right: right_side.clone(),
                filter: None,
            }),
            inputs: vec![
                Input {
                    node: left_node,
                    distribution: Distribution::Hash(left_side.keys.clone()),
                },
                Input {
                    node: right_node,
                    distribution: Distribution::Hash(right_side.keys.clone()),
                },
            ],
            schema: Arc::clone(&schema),
            attrs,
            scope: scope.name.clone(),
            kind: EdgeKind::Append,
            distributed,
        };
        let filter = match conjunction(rest) {
            Some(condition) => {
                let mapped = crate::expression::rename(condition, &|c| match join
                    .schema
                    .index_of_column(c)
                {
                    Ok(i) => crate::expression::column(schema.field(columns[i]).name()),
                    Err(_) => Expr::Column(c.clone()),
                });
                let df = df_schema(&schema).map_err(|e| self.catalog.fault_of(e, &scope.tokens))?;
                Some(simplify(
                    crate::expression::strip_aliases(mapped),
                    &df,
                    &self.catalog.options,
                ))
            }
            None => None,
        };
        let op = IrOp::Graph(Op::WindowJoin {
            left: left_side,
            right: right_side,
            filter,
        });
        let node = self.ir.add(IrNode { op, ..draft });
        Ok(Rel { node, columns })
    }

    /// The window that both sides share, and the equalities that are not about it.
    #[allow(clippy::type_complexity)]
    fn window_of_join(
        &self,
        left: &Rel,
        right: &Rel,
        pairs: Vec<(Expr, Expr)>,
        rest: &[Expr],
        join: &Join,
        scope: &Scope,
    ) -> Result<(Window, Vec<(Expr, Expr)>)> {
        let attr = |rel: &Rel, e: &Expr| -> Attr {
            let node = &self.ir.nodes[rel.node];
            as_column(e)
                .and_then(|n| node.schema.index_of(n).ok())
                .map(|i| node.attrs[i])
                .unwrap_or_default()
        };
        let mut window = None;
        let mut keys = vec![];
        for (l, r) in pairs {
            match (attr(left, &l).window, attr(right, &r).window) {
                (Some((lp, lw)), Some((rp, rw))) if lp == rp => {
                    if lw != rw {
                        return Err(Fault::new(
                            codes::REGULAR_JOIN,
                            "the windows of the two sides differ",
                        )
                        .help("both sides need windows of the same size, slide and offset"));
                    }
                    window = Some(lw);
                }
                _ => keys.push((l, r)),
            }
        }
        if let Some(window) = window {
            return Ok((window, keys));
        }
        let times = |rel: &Rel, schema: &datafusion_common::DFSchema, e: &Expr| {
            let node = &self.ir.nodes[rel.node];
            e.column_refs().iter().any(|c| {
                schema.index_of_column(c).is_ok_and(|i| {
                    node.attrs[rel.columns[i]].event_time
                        || node.attrs[rel.columns[i]].window.is_some()
                })
            })
        };
        let ranged = rest
            .iter()
            .any(|e| times(left, join.left.schema(), e) || times(right, join.right.schema(), e));
        let _ = scope;
        Err(if ranged {
            Fault::new(
                codes::INTERVAL_JOIN,
                "an interval join (a range of time in the condition) is not supported",
            )
            .help("join two windowed results by equal window_start and window_end")
        } else {
            Fault::new(codes::REGULAR_JOIN, "a join without a window is not supported").help("take both sides from TUMBLE or HOP of the same size and compare window_start and window_end in ON")
        })
    }

    /// One input of the join: its columns, computed keys after them.
    fn side(
        &mut self,
        rel: &Rel,
        keys: Vec<Expr>,
        window: Window,
        scope: &Scope,
    ) -> Result<(Idx, JoinSide)> {
        let mut columns = self.identity(rel.node);
        let before = columns.len();
        let mut names = Names::of(&self.ir.nodes[rel.node].schema);
        let mut indexes = vec![];
        for key in keys {
            let at = match columns.iter().position(|(e, _)| *e == key) {
                Some(i) => i,
                None => {
                    let name = names.fresh("key");
                    columns.push(self.named(key, &name, rel.node, scope)?);
                    columns.len() - 1
                }
            };
            indexes.push(at);
        }
        let node = if columns.len() == before {
            rel.node
        } else {
            self.calc(rel.node, None, columns, scope).node
        };
        let ir = &self.ir.nodes[node];
        let find = |part| ir.find(|a| a.window == Some((part, window)));
        let (Some(start), Some(end)) = (find(WindowPart::Start), find(WindowPart::End)) else {
            return Err(Fault::new(
                codes::REGULAR_JOIN,
                "each side of a window join needs both window_start and window_end",
            )
            .at(scope.tokens.locate_or_start("JOIN")));
        };
        Ok((
            node,
            JoinSide {
                window: WindowBy::Attached { start, end },
                keys: indexes,
            },
        ))
    }
}
