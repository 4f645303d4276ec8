//! Passes over the made graph: columns that nobody reads go, Calcs with one reader merge into it, ROW columns shrink to the
//! fields that are read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_expr::Expr;
use datafusion_expr::utils::conjunction;

use crate::expression::{field_path, may_fail, substitute};
use crate::graph::{Aggregate, Distribution, JoinSide, Op, SortKey, WindowBy, hidden};
use crate::ir::{Idx, Input, Ir, IrNode, IrOp, judges_late_rows, map_kind, visible};
use crate::source_plan::Uses;

/// Keeps what the roots (sinks) need. Answers the graph without the rest, in topological order.
pub(crate) fn prune(ir: &Ir, roots: &[Idx]) -> Ir {
    let needed = needs(ir, roots);
    rebuild(ir, &needed)
}

fn names_of<'a>(schema: &SchemaRef, exprs: impl Iterator<Item = &'a Expr>) -> BTreeSet<usize> {
    exprs
        .flat_map(|e| {
            e.column_refs()
                .into_iter()
                .map(|c| c.name.clone())
                .collect::<Vec<_>>()
        })
        .filter_map(|n| schema.index_of(&n).ok())
        .collect()
}

fn by_columns(by: &WindowBy) -> Vec<usize> {
    match by {
        WindowBy::Time { column, .. } => vec![*column],
        WindowBy::Attached { start, end } => vec![*start, *end],
    }
}

/// For each node the output columns that something reads; none: the node is dead.
fn needs(ir: &Ir, roots: &[Idx]) -> Vec<Option<BTreeSet<usize>>> {
    let mut needed: Vec<Option<BTreeSet<usize>>> = vec![None; ir.nodes.len()];
    for &root in roots {
        needed[root] = Some((0..ir.nodes[root].schema.fields().len()).collect());
    }
    for index in (0..ir.nodes.len()).rev() {
        let node = &ir.nodes[index];
        let Some(outputs) = &mut needed[index] else {
            continue;
        };
        if outputs.is_empty() && !node.schema.fields().is_empty() {
            // A batch without columns has no place for its rows: keep one.
            outputs.insert(node.find(|a| a.event_time).unwrap_or(0));
        }
        let outputs = outputs.clone();
        for (port, input) in node.inputs.iter().enumerate() {
            let from = &ir.nodes[input.node];
            let mut wants = wants(node, port, from, &outputs);
            if let Distribution::Hash(columns) = &input.distribution {
                wants.extend(columns);
            }
            if let IrOp::Graph(op) = &node.op {
                let raw = from.schema.index_of(hidden::RAW_KEY).is_ok();
                let judge = judges_late_rows(op) && raw;
                let ties = matches!(op, Op::Deduplicate { .. });
                for (name, wanted) in [
                    (hidden::SPLIT, judge || ties),
                    (hidden::OFFSET, judge || ties),
                    (hidden::RAW_KEY, judge),
                    (hidden::RAW_VALUE, judge),
                ] {
                    if wanted && let Ok(i) = from.schema.index_of(name) {
                        wants.insert(i);
                    }
                }
            }
            if let crate::graph::EdgeKind::Upsert(key) = &from.kind {
                wants.extend(key);
            }
            needed[input.node].get_or_insert_default().extend(wants);
        }
    }
    needed
}

/// Columns of `from` that the node reads through this port to give these outputs.
fn wants(node: &IrNode, port: usize, from: &IrNode, outputs: &BTreeSet<usize>) -> BTreeSet<usize> {
    let op = match &node.op {
        IrOp::Graph(op) => op,
        IrOp::Rank(rank) => {
            let number = from.visible();
            return outputs
                .iter()
                .filter(|&&o| o != number)
                .map(|&o| if o > number { o - 1 } else { o })
                .chain(rank.partition.iter().copied())
                .chain(rank.order.iter().map(|k| k.column))
                .collect();
        }
    };
    match op {
        Op::Source { .. } => BTreeSet::new(),
        Op::Calc { filter, exprs } => names_of(
            &from.schema,
            outputs.iter().map(|&o| &exprs[o]).chain(filter),
        ),
        Op::WindowAssign { column, .. } => {
            let visible = from.visible();
            let through = outputs.iter().filter_map(|&o| match o {
                o if o < visible => Some(o),
                o if o < visible + 3 => None,
                o => Some(o - 3),
            });
            through.chain([*column]).collect()
        }
        Op::WindowAggregate {
            by,
            keys,
            aggregates,
            ..
        } => {
            let first = keys.len() + 3;
            let mut wants: BTreeSet<usize> = keys.iter().copied().chain(by_columns(by)).collect();
            aggregate_inputs(aggregates, first, outputs, &mut wants);
            wants
        }
        Op::Aggregate {
            keys, aggregates, ..
        } => {
            let mut wants: BTreeSet<usize> = keys.iter().copied().collect();
            aggregate_inputs(aggregates, keys.len(), outputs, &mut wants);
            wants
        }
        Op::Deduplicate {
            keys,
            window,
            order,
            ..
        } => outputs
            .iter()
            .copied()
            .chain(keys.iter().copied())
            .chain(order.iter().map(|k| k.column))
            .chain(window.iter().flat_map(by_columns))
            .collect(),
        Op::WindowJoin {
            left,
            right,
            filter,
        } => {
            let side = if port == 0 { left } else { right };
            let mut all = outputs.clone();
            all.extend(names_of(&node.schema, filter.iter()));
            let width = if port == 0 {
                from.visible()
            } else {
                node.schema.fields().len() - from.visible()
            };
            let own = all.iter().filter_map(|&o| match (port, o < width) {
                (0, true) => Some(o),
                (1, false) => Some(o - width),
                _ => None,
            });
            own.chain(side.keys.iter().copied())
                .chain(by_columns(&side.window))
                .collect()
        }
        Op::Union => outputs.clone(),
        Op::Materialize { .. } | Op::Sink { .. } => (0..from.schema.fields().len()).collect(),
    }
}

fn aggregate_inputs(
    aggregates: &[Aggregate],
    first: usize,
    outputs: &BTreeSet<usize>,
    wants: &mut BTreeSet<usize>,
) {
    for (i, aggregate) in aggregates.iter().enumerate() {
        if outputs.contains(&(first + i)) {
            wants.extend(aggregate.args.iter().chain(&aggregate.filter));
        }
    }
}

/// Old output column to new one.
type Mapping = HashMap<usize, usize>;

fn at(mapping: &Mapping, old: usize) -> usize {
    *mapping.get(&old).expect("a column that is read was kept")
}

fn all(mapping: &Mapping, old: &[usize]) -> Vec<usize> {
    old.iter().map(|&o| at(mapping, o)).collect()
}

fn map_by(by: &WindowBy, mapping: &Mapping) -> WindowBy {
    match by {
        WindowBy::Time { column, window } => WindowBy::Time {
            column: at(mapping, *column),
            window: *window,
        },
        WindowBy::Attached { start, end } => WindowBy::Attached {
            start: at(mapping, *start),
            end: at(mapping, *end),
        },
    }
}

fn map_order(order: &[SortKey], mapping: &Mapping) -> Vec<SortKey> {
    order
        .iter()
        .map(|k| SortKey {
            column: at(mapping, k.column),
            ..*k
        })
        .collect()
}

fn map_aggregates(
    aggregates: &[Aggregate],
    first: usize,
    keep: &BTreeSet<usize>,
    mapping: &Mapping,
) -> Vec<Aggregate> {
    let kept = aggregates
        .iter()
        .enumerate()
        .filter(|(i, _)| keep.contains(&(first + i)));
    kept.map(|(_, a)| Aggregate {
        args: all(mapping, &a.args),
        filter: a.filter.map(|f| at(mapping, f)),
        ..a.clone()
    })
    .collect()
}

fn rebuild(ir: &Ir, needed: &[Option<BTreeSet<usize>>]) -> Ir {
    let mut new = Ir::default();
    let mut places: Vec<Option<(Idx, Mapping)>> = vec![None; ir.nodes.len()];
    for (index, node) in ir.nodes.iter().enumerate() {
        let Some(need) = &needed[index] else { continue };
        let mut inputs: Vec<(Idx, Mapping)> = node
            .inputs
            .iter()
            .map(|i| {
                places[i.node]
                    .clone()
                    .expect("an input of a live node is live")
            })
            .collect();
        let width = node.schema.fields().len();
        if matches!(node.op, IrOp::Graph(Op::Union)) {
            conform(ir, &mut new, node, &mut inputs, need);
        }
        // Operators that pass rows on give whatever their input has left.
        let keep: BTreeSet<usize> = match &node.op {
            IrOp::Graph(Op::Source { .. } | Op::Calc { .. }) => need.clone(),
            IrOp::Graph(Op::WindowAggregate { keys, .. }) => {
                (0..keys.len() + 3).chain(need.iter().copied()).collect()
            }
            IrOp::Graph(Op::Aggregate { keys, .. }) => {
                (0..keys.len()).chain(need.iter().copied()).collect()
            }
            IrOp::Graph(Op::WindowAssign { .. }) => {
                let visible = ir.nodes[node.inputs[0].node].visible();
                let kept = &inputs[0].1;
                (0..width)
                    .filter(|&o| {
                        if o < visible {
                            kept.contains_key(&o)
                        } else {
                            o < visible + 3 || kept.contains_key(&(o - 3))
                        }
                    })
                    .collect()
            }
            IrOp::Graph(Op::Deduplicate { .. }) => inputs[0].1.keys().copied().collect(),
            IrOp::Graph(Op::Union) => need.clone(),
            IrOp::Graph(Op::WindowJoin { .. }) => {
                let visible = ir.nodes[node.inputs[0].node].visible();
                (0..width)
                    .filter(|&o| {
                        if o < visible {
                            inputs[0].1.contains_key(&o)
                        } else {
                            inputs[1].1.contains_key(&(o - visible))
                        }
                    })
                    .collect()
            }
            IrOp::Graph(Op::Materialize { .. } | Op::Sink { .. }) | IrOp::Rank(_) => {
                (0..width).collect()
            }
        };
        let mapping: Mapping = keep
            .iter()
            .enumerate()
            .map(|(new, &old)| (old, new))
            .collect();
        let first = inputs.first().map(|(_, m)| m.clone()).unwrap_or_default();
        let op = match &node.op {
            IrOp::Rank(rank) => IrOp::Rank(crate::ir::Rank {
                partition: all(&first, &rank.partition),
                order: map_order(&rank.order, &first),
            }),
            IrOp::Graph(op) => IrOp::Graph(match op {
                Op::Source { name, columns } => Op::Source {
                    name: name.clone(),
                    columns: columns
                        .iter()
                        .enumerate()
                        .filter(|(i, _)| keep.contains(i))
                        .map(|(_, c)| c.clone())
                        .collect(),
                },
                Op::Calc { filter, exprs } => Op::Calc {
                    filter: filter.clone(),
                    exprs: keep.iter().map(|&i| exprs[i].clone()).collect(),
                },
                Op::WindowAssign { column, window } => Op::WindowAssign {
                    column: at(&first, *column),
                    window: *window,
                },
                Op::WindowAggregate {
                    phase,
                    by,
                    keys,
                    aggregates,
                    emit,
                } => Op::WindowAggregate {
                    phase: *phase,
                    by: map_by(by, &first),
                    keys: all(&first, keys),
                    aggregates: map_aggregates(aggregates, keys.len() + 3, &keep, &first),
                    emit: *emit,
                },
                Op::Aggregate {
                    keys,
                    aggregates,
                    ttl_ms,
                } => Op::Aggregate {
                    keys: all(&first, keys),
                    aggregates: map_aggregates(aggregates, keys.len(), &keep, &first),
                    ttl_ms: *ttl_ms,
                },
                Op::Deduplicate {
                    phase,
                    keys,
                    window,
                    order,
                    keep,
                    ttl_ms,
                } => Op::Deduplicate {
                    phase: *phase,
                    keys: all(&first, keys),
                    window: window.as_ref().map(|w| map_by(w, &first)),
                    order: map_order(order, &first),
                    keep: keep.clone(),
                    ttl_ms: *ttl_ms,
                },
                Op::WindowJoin {
                    left,
                    right,
                    filter,
                } => {
                    let side = |s: &JoinSide, m: &Mapping| JoinSide {
                        window: map_by(&s.window, m),
                        keys: all(m, &s.keys),
                    };
                    Op::WindowJoin {
                        left: side(left, &inputs[0].1),
                        right: side(right, &inputs[1].1),
                        filter: filter.clone(),
                    }
                }
                Op::Union => Op::Union,
                Op::Materialize { key, max_rows } => Op::Materialize {
                    key: key.clone(),
                    max_rows: *max_rows,
                },
                Op::Sink { name, mode, key } => Op::Sink {
                    name: name.clone(),
                    mode: *mode,
                    key: key.clone(),
                },
            }),
        };
        let to = |old: &[usize]| -> Option<Vec<usize>> {
            old.iter().map(|o| mapping.get(o).copied()).collect()
        };
        let new_inputs = node
            .inputs
            .iter()
            .zip(&inputs)
            .map(|(input, (place, m))| Input {
                node: *place,
                distribution: match &input.distribution {
                    Distribution::Forward => Distribution::Forward,
                    Distribution::Hash(columns) => Distribution::Hash(all(m, columns)),
                },
            })
            .collect();
        let place = new.add(IrNode {
            op,
            inputs: new_inputs,
            schema: Arc::new(Schema::new(
                keep.iter()
                    .map(|&i| Arc::clone(&node.schema.fields()[i]))
                    .collect::<Vec<FieldRef>>(),
            )),
            attrs: keep.iter().map(|&i| node.attrs[i]).collect(),
            scope: node.scope.clone(),
            kind: map_kind(&node.kind, to),
            distributed: node.distributed.as_deref().and_then(to),
        });
        places[index] = Some((place, mapping));
    }
    new
}

/// Inputs of a Union get equal columns, those that are needed.
fn conform(
    old: &Ir,
    new: &mut Ir,
    union: &IrNode,
    inputs: &mut [(Idx, Mapping)],
    need: &BTreeSet<usize>,
) {
    for ((place, mapping), input) in inputs.iter_mut().zip(&union.inputs) {
        let from = &old.nodes[input.node];
        let exact = mapping.len() == need.len()
            && need
                .iter()
                .enumerate()
                .all(|(n, o)| mapping.get(o) == Some(&n));
        let visible_need: Vec<usize> = need
            .iter()
            .copied()
            .filter(|&o| o < from.visible())
            .collect();
        if !exact {
            let columns = visible_need
                .iter()
                .map(|&o| {
                    (
                        crate::expression::column(from.name(o)),
                        Arc::clone(&from.schema.fields()[o]),
                    )
                })
                .collect();
            *place = new.calc(*place, None, columns, &union.scope);
        }
        *mapping = need.iter().enumerate().map(|(n, &o)| (o, n)).collect();
    }
}

/// Merges each Calc whose one reader is a Calc into it, and leaves out Calcs that do nothing.
pub(crate) fn merge(ir: &Ir) -> Ir {
    let mut readers: Vec<usize> = vec![0; ir.nodes.len()];
    for node in &ir.nodes {
        for input in &node.inputs {
            readers[input.node] += 1;
        }
    }
    let mut new = Ir::default();
    let mut places: Vec<Idx> = vec![];
    for node in &ir.nodes {
        let mut node = node.clone();
        if let IrOp::Graph(Op::Calc { filter, exprs }) = &mut node.op {
            let below = &ir.nodes[node.inputs[0].node];
            // `below` as it is now, after its own merge.
            let current = places[node.inputs[0].node];
            let merged = match &new.nodes[current].op {
                IrOp::Graph(Op::Calc {
                    filter: inner,
                    exprs: by,
                }) if readers[node.inputs[0].node] == 1
                    && matches!(below.op, IrOp::Graph(Op::Calc { .. }))
                    && cheap(
                        by,
                        &new.nodes[current].schema,
                        exprs.iter().chain(filter.iter()),
                    )
                    && (inner.is_none() || filter.as_ref().is_none_or(|f| !may_fail(f))) =>
                {
                    let map: HashMap<String, Expr> = new.nodes[current]
                        .schema
                        .fields()
                        .iter()
                        .map(|f| f.name().clone())
                        .zip(by.iter().cloned())
                        .collect();
                    let outer = filter.clone().map(|f| substitute(f, &map));
                    let condition = conjunction(inner.iter().cloned().chain(outer));
                    Some((
                        condition,
                        exprs
                            .iter()
                            .map(|e| substitute(e.clone(), &map))
                            .collect::<Vec<_>>(),
                    ))
                }
                _ => None,
            };
            if let Some((condition, merged)) = merged {
                *filter = condition;
                *exprs = merged;
                let input = new.nodes[current].inputs[0].clone();
                let index = new.add(IrNode {
                    inputs: vec![input],
                    ..node
                });
                places.push(index);
                continue;
            }
            let input = &new.nodes[current];
            let same = filter.is_none()
                && exprs.len() == input.schema.fields().len()
                && node.schema == input.schema
                && exprs
                    .iter()
                    .zip(input.schema.fields())
                    .all(|(e, f)| matches!(e, Expr::Column(c) if c.name == *f.name()));
            if same {
                places.push(current);
                continue;
            }
        }
        for input in &mut node.inputs {
            input.node = places[input.node];
        }
        places.push(new.add(node));
    }
    let roots: Vec<Idx> = (0..new.nodes.len())
        .filter(|&i| matches!(new.nodes[i].op, IrOp::Graph(Op::Sink { .. })))
        .collect();
    prune(&new, &roots)
}

/// Whether no costly expression of the inner Calc would be computed twice.
fn cheap<'a>(by: &[Expr], schema: &SchemaRef, outer: impl Iterator<Item = &'a Expr>) -> bool {
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for expr in outer {
        let _ = expr.apply(|e| {
            if let Expr::Column(c) = e {
                *uses.entry(c.name.clone()).or_default() += 1;
            }
            Ok(TreeNodeRecursion::Continue)
        });
    }
    by.iter().zip(schema.fields()).all(|(e, f)| {
        uses.get(f.name()).copied().unwrap_or(0) <= 1
            || matches!(e, Expr::Literal(..))
            || field_path(e).is_some()
    })
}

/// Which parts of a source's columns its readers and its computed columns use.
pub(crate) fn uses_of(ir: &Ir, source: Idx) -> BTreeMap<String, Uses> {
    let mut uses: BTreeMap<String, Uses> = BTreeMap::new();
    for node in &ir.nodes {
        for _ in node.inputs.iter().filter(|i| i.node == source) {
            match &node.op {
                IrOp::Graph(Op::Calc { filter, exprs }) => exprs
                    .iter()
                    .chain(filter)
                    .for_each(|e| add_uses(e, &mut uses)),
                _ => ir.nodes[source]
                    .schema
                    .fields()
                    .iter()
                    .for_each(|f| uses.entry(f.name().clone()).or_default().add(&[])),
            }
        }
    }
    uses
}

pub(crate) fn add_uses(expr: &Expr, uses: &mut BTreeMap<String, Uses>) {
    let _ = expr.apply(|e| {
        Ok(match field_path(e) {
            Some((column, path)) => {
                uses.entry(column.to_owned()).or_default().add(&path);
                TreeNodeRecursion::Jump
            }
            None => TreeNodeRecursion::Continue,
        })
    });
}

/// Gives a node other field types: of a source whose ROW columns shrank.
pub(crate) fn set_fields(node: &mut IrNode, uses: &BTreeMap<String, Uses>) {
    let shown = visible(&node.schema);
    let fields: Vec<Field> = node
        .schema
        .fields()
        .iter()
        .enumerate()
        .map(|(i, f)| match uses.get(f.name()) {
            Some(uses) if i < shown => uses.prune(f),
            _ => f.as_ref().clone(),
        })
        .collect();
    node.schema = Arc::new(Schema::new(fields));
}
