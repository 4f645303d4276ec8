//! What an operator's state holds: types, and where the values come from. A column is known by its origin, not by its name or its
//! place: a renamed result and a source column that is read for the first time keep the state, another column of the same type
//! does not, though its bytes would fit. What becomes of the state is `verdict`'s.

use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion_common::DataFusionError;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_expr::Expr;
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::{Catalog, Origin, SourceTable};
use crate::expression::column;
use crate::graph::{Aggregate, EdgeKind, Fingerprint, Op, Phase, SortKey, WindowBy};
use crate::ir::{IrNode, function_name};
use crate::window::WINDOW_COLUMNS;

/// Part of every fingerprint: a change of how operators keep their state changes it.
pub const STATE_FORMAT: u32 = 2;

/// An input of an operator: its node, and what each of the node's columns means.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub node: &'a IrNode,
    pub means: &'a [String],
}

impl Columns<'_> {
    /// Type and meaning of one.
    fn of(&self, index: usize) -> String {
        let data_type = self.node.schema.field(index).data_type();
        format!("{data_type} {}", self.means[index])
    }

    fn some(&self, columns: &[usize]) -> String {
        let texts: Vec<String> = columns.iter().map(|&c| self.of(c)).collect();
        texts.join(",")
    }

    fn all(&self) -> String {
        self.some(&(0..self.means.len()).collect::<Vec<_>>())
    }

    fn by(&self, by: &WindowBy) -> String {
        match by {
            WindowBy::Time { column, window } => format!("time {} {window:?}", self.of(*column)),
            WindowBy::Attached { start, .. } => format!("attached {}", self.of(*start)),
        }
    }

    fn order(&self, keys: &[SortKey]) -> String {
        let text =
            |k: &SortKey| format!("{} {} {}", self.of(k.column), k.descending, k.nulls_first);
        keys.iter().map(text).collect::<Vec<_>>().join(",")
    }

    fn aggregate(&self, aggregate: &Aggregate) -> String {
        let Aggregate {
            function,
            args,
            filter,
            distinct,
            output,
        } = aggregate;
        format!(
            "{}{}({}) where {}->{}",
            function_name(function),
            if *distinct { " distinct" } else { "" },
            self.some(args),
            filter.map_or_else(String::new, |f| self.of(f)),
            output.data_type()
        )
    }

    fn aggregates(&self, aggregates: &[Aggregate]) -> String {
        let texts: Vec<String> = aggregates.iter().map(|a| self.aggregate(a)).collect();
        texts.join(";")
    }
}

/// Where the values of each output column come from. Of a final operator's inputs those of its partial.
pub(crate) fn meanings(
    op: &Op,
    schema: &SchemaRef,
    inputs: &[Columns<'_>],
    catalog: &Catalog,
) -> Vec<String> {
    let (first, node) = match inputs.first() {
        Some(input) => (input.means, Some(input.node)),
        None => (&[][..], None),
    };
    let keys = |keys: &[usize]| keys.iter().map(|&k| first[k].clone()).collect::<Vec<_>>();
    let aggregates = |of: &[Aggregate]| {
        let input = inputs.iter().take(1);
        let texts = input.flat_map(|input| of.iter().map(|a| short(&input.aggregate(a))));
        texts.collect::<Vec<_>>()
    };
    match op {
        Op::Source { name, .. } => {
            let table = catalog.sources.get(name);
            let of = |f: &FieldRef| source_column(name, table.map(AsRef::as_ref), f.name());
            schema.fields().iter().map(of).collect()
        }
        Op::Calc { exprs, .. } => {
            let of = |name: &str| {
                let index = node.and_then(|n| n.schema.index_of(name).ok());
                index.map_or_else(|| name.to_owned(), |i| first[i].clone())
            };
            exprs.iter().map(|e| expression(e, &of)).collect()
        }
        Op::WindowAssign { column, window } => {
            let visible = node.map_or(0, IrNode::visible);
            let parts = WINDOW_COLUMNS
                .iter()
                .map(|part| short(&format!("{part} {window:?} of {}", first[*column])));
            let (shown, hidden) = first.split_at(visible);
            let shown = shown.iter().cloned().chain(parts);
            shown.chain(hidden.iter().cloned()).collect()
        }
        // Its columns are read by its final alone, which speaks of the partial's input.
        Op::WindowAggregate {
            phase: Phase::Partial,
            ..
        } => vec![],
        Op::WindowAggregate {
            by,
            keys: k,
            aggregates: a,
            ..
        } => {
            let parts = WINDOW_COLUMNS.iter().map(|part| match by {
                WindowBy::Time { column, window } => {
                    short(&format!("{part} {window:?} of {}", first[*column]))
                }
                WindowBy::Attached { start, .. } => short(&format!("{part} of {}", first[*start])),
            });
            keys(k)
                .into_iter()
                .chain(parts)
                .chain(aggregates(a))
                .collect()
        }
        Op::Aggregate {
            keys: k,
            aggregates: a,
            ..
        } => keys(k).into_iter().chain(aggregates(a)).collect(),
        Op::WindowJoin { .. } => {
            let visible = |i: &Columns<'_>| i.means[..i.node.visible()].to_vec();
            inputs.iter().flat_map(visible).collect()
        }
        Op::Union => {
            let of = |c: usize| {
                let each: Vec<&str> = inputs.iter().map(|i| i.means[c].as_str()).collect();
                short(&each.join("|"))
            };
            (0..schema.fields().len()).map(of).collect()
        }
        Op::Deduplicate { .. } | Op::Materialize { .. } | Op::Sink { .. } => first.to_vec(),
    }
}

fn source_column(source: &str, table: Option<&SourceTable>, name: &str) -> String {
    let origin = |name: &str| {
        let mut columns = table.iter().flat_map(|t| &t.columns);
        columns.find(|c| c.field.name() == name).map(|c| &c.origin)
    };
    let own = |name: &str| match origin(name) {
        Some(Origin::Transport(from)) => format!("{source}:{from:?}"),
        Some(Origin::Body | Origin::Computed(_)) | None => format!("{source}.{name}"),
    };
    match origin(name) {
        Some(Origin::Computed(expr)) => expression(expr, &own),
        Some(Origin::Body | Origin::Transport(_)) | None => own(name),
    }
}

/// An expression over columns that mean this, part by part: the same whether a view's Calc was merged into its reader's or, as
/// others read it too, was not.
fn expression(expr: &Expr, of: &dyn Fn(&str) -> String) -> String {
    let part = |e: Expr| match e {
        Expr::Column(c) => of(&c.name),
        // Its parts are columns by now.
        Expr::Alias(a) => a.expr.to_string(),
        other => short(&other.to_string()),
    };
    let whole = expr
        .clone()
        .transform_up(|e| Ok(Transformed::yes(column(&part(e)))));
    whole
        .map(|t| t.data.to_string())
        .unwrap_or_else(|_: DataFusionError| unreachable!("the closure never fails"))
}

/// Of one length, however many views stand on each other.
fn short(text: &str) -> String {
    format!("#{:016x}", xxh3_64(text.as_bytes()))
}

/// Only for operators whose state outlives a barrier.
pub(crate) fn fingerprint(op: &Op, inputs: &[Columns<'_>]) -> Option<Fingerprint> {
    let kinds: Vec<String> = inputs
        .iter()
        .map(|i| format!("{:?}", i.node.kind == EdgeKind::Append))
        .collect();
    let input = inputs.first();
    let text = match (op, input) {
        (
            Op::WindowAggregate {
                phase: Phase::Partial,
                ..
            }
            | Op::Deduplicate {
                phase: Phase::Partial,
                ..
            },
            _,
        ) => return None,
        (
            Op::WindowAggregate {
                by,
                keys,
                aggregates,
                emit,
                ..
            },
            Some(input),
        ) => format!(
            "window-aggregate|{}|{}|{}|{emit:?}",
            input.by(by),
            input.some(keys),
            input.aggregates(aggregates)
        ),
        (
            Op::Aggregate {
                keys, aggregates, ..
            },
            Some(input),
        ) => format!(
            "aggregate|{}|{}",
            input.some(keys),
            input.aggregates(aggregates)
        ),
        (
            Op::Deduplicate {
                keys,
                window,
                order,
                keep,
                ..
            },
            Some(input),
        ) => format!(
            "deduplicate|{:?}|{}|{}|{keep:?}|{}",
            window.as_ref().map(|w| input.by(w)),
            input.some(keys),
            input.order(order),
            input.all()
        ),
        (Op::WindowJoin { left, right, .. }, Some(input)) => {
            let other = inputs.get(1).unwrap_or(input);
            format!(
                "window-join|{}|{}|{}|{}|{}|{}",
                input.by(&left.window),
                input.some(&left.keys),
                input.all(),
                other.by(&right.window),
                other.some(&right.keys),
                other.all()
            )
        }
        (Op::Materialize { key, .. }, Some(input)) => {
            format!("materialize|{}|{}", input.some(key), input.all())
        }
        _ => return None,
    };
    Some(Fingerprint(xxh3_64(
        format!("v{STATE_FORMAT}|append {}|{text}", kinds.join(",")).as_bytes(),
    )))
}
