//! The graph while it is being made: nodes that know their inputs, built bottom up with equal nodes shared. It owns column
//! attributes (event time, windows) and row kinds; the passes over it are `prune` and `finish`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion_expr::Expr;

use crate::expression::as_column;
use crate::graph::{
    Aggregate, AggregateFunction, Distribution, EdgeKind, Keep, Op, SortKey, Window, WindowBy,
};

/// Index into [`Ir::nodes`].
pub(crate) type Idx = usize;

/// What is known of a column beyond its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attr {
    /// Watermarks speak of this column.
    pub event_time: bool,
    pub window: Option<(WindowPart, Window)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowPart {
    Start,
    End,
    Time,
}

#[derive(Debug, Clone)]
pub(crate) enum IrOp {
    Graph(Op),
    /// `ROW_NUMBER()` that no condition has bounded yet: the input's visible columns and the number, then hidden ones.
    Rank(Rank),
}

#[derive(Debug, Clone)]
pub(crate) struct Rank {
    pub partition: Vec<usize>,
    pub order: Vec<SortKey>,
}

#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub node: Idx,
    pub distribution: Distribution,
}

#[derive(Debug, Clone)]
pub(crate) struct IrNode {
    pub op: IrOp,
    pub inputs: Vec<Input>,
    pub schema: SchemaRef,
    pub attrs: Vec<Attr>,
    /// Name of the view, source or sink that it belongs to.
    pub scope: String,
    pub kind: EdgeKind,
    /// Rows with equal values in these columns are on one subtask; none: not known.
    pub distributed: Option<Vec<usize>>,
}

impl IrNode {
    /// Number of columns that are not hidden.
    pub fn visible(&self) -> usize {
        visible(&self.schema)
    }

    pub fn name(&self, index: usize) -> &str {
        self.schema.field(index).name()
    }

    pub fn find(&self, test: impl Fn(&Attr) -> bool) -> Option<usize> {
        self.attrs.iter().position(test)
    }
}

pub(crate) fn visible(schema: &SchemaRef) -> usize {
    schema
        .fields()
        .iter()
        .take_while(|f| !f.name().starts_with('$'))
        .count()
}

/// Nodes in topological order.
#[derive(Debug, Default)]
pub(crate) struct Ir {
    pub nodes: Vec<IrNode>,
    shared: HashMap<String, Idx>,
}

impl Ir {
    /// Adds a node, or finds the one that does the same to the same inputs.
    pub fn add(&mut self, node: IrNode) -> Idx {
        let inputs: Vec<String> = node
            .inputs
            .iter()
            .map(|i| format!("{}/{:?}", i.node, i.distribution))
            .collect();
        let key = format!(
            "{} <- {} :: {}",
            canonical(&node.op),
            inputs.join(", "),
            schema_text(&node.schema)
        );
        if let Some(&index) = self.shared.get(&key) {
            return index;
        }
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.shared.insert(key, index);
        index
    }

    /// Filter and projection. Hidden columns of the input ride along.
    pub fn calc(
        &mut self,
        input: Idx,
        filter: Option<Expr>,
        columns: Vec<(Expr, FieldRef)>,
        scope: &str,
    ) -> Idx {
        let from = &self.nodes[input];
        let (mut exprs, mut fields): (Vec<Expr>, Vec<FieldRef>) = columns.into_iter().unzip();
        let mut names = Names::default();
        fields = fields
            .into_iter()
            .map(|f| {
                if names.is_new(f.name()) {
                    f
                } else {
                    Arc::new(Field::new(
                        names.fresh(f.name()),
                        f.data_type().clone(),
                        f.is_nullable(),
                    ))
                }
            })
            .collect();
        for i in from.visible()..from.schema.fields().len() {
            exprs.push(crate::expression::column(from.name(i)));
            fields.push(Arc::clone(&from.schema.fields()[i]));
        }
        let source_of: Vec<Option<usize>> = exprs
            .iter()
            .map(|e| as_column(e).and_then(|name| from.schema.index_of(name).ok()))
            .collect();
        let attrs = source_of
            .iter()
            .map(|s| s.map(|i| from.attrs[i]).unwrap_or_default())
            .collect();
        let to = |columns: &[usize]| -> Option<Vec<usize>> {
            columns
                .iter()
                .map(|c| source_of.iter().position(|s| s == &Some(*c)))
                .collect()
        };
        let kind = map_kind(&from.kind, to);
        let distributed = from.distributed.as_deref().and_then(to);
        let node = IrNode {
            op: IrOp::Graph(Op::Calc { filter, exprs }),
            inputs: vec![Input {
                node: input,
                distribution: Distribution::Forward,
            }],
            schema: Arc::new(Schema::new(fields)),
            attrs,
            scope: scope.to_owned(),
            kind,
            distributed,
        };
        self.add(node)
    }

    /// Expressions over a node, rewritten over the first node below it that is no Calc. Answers that node, the conditions on
    /// the way, and the expressions.
    pub fn through(&self, node: Idx, mut exprs: Vec<Expr>) -> (Idx, Vec<Expr>, Vec<Expr>) {
        let mut filters: Vec<Expr> = vec![];
        let mut at = node;
        while let IrOp::Graph(Op::Calc { filter, exprs: by }) = &self.nodes[at].op {
            let map: HashMap<String, Expr> = self.nodes[at]
                .schema
                .fields()
                .iter()
                .map(|f| f.name().clone())
                .zip(by.iter().cloned())
                .collect();
            exprs = exprs
                .into_iter()
                .map(|e| crate::expression::substitute(e, &map))
                .collect();
            filters = filters
                .into_iter()
                .map(|e| crate::expression::substitute(e, &map))
                .collect();
            filters.extend(filter.clone());
            at = self.nodes[at].inputs[0].node;
        }
        filters.reverse();
        (at, filters, exprs)
    }
}

pub(crate) fn map_kind(kind: &EdgeKind, to: impl Fn(&[usize]) -> Option<Vec<usize>>) -> EdgeKind {
    match kind {
        EdgeKind::Append => EdgeKind::Append,
        EdgeKind::Retract => EdgeKind::Retract,
        EdgeKind::Upsert(key) => to(key).map_or(EdgeKind::Retract, EdgeKind::Upsert),
    }
}

/// Names that are unique in a schema.
#[derive(Debug, Default)]
pub(crate) struct Names(std::collections::BTreeSet<String>);

impl Names {
    pub fn of(schema: &SchemaRef) -> Self {
        Self(schema.fields().iter().map(|f| f.name().clone()).collect())
    }

    pub fn is_new(&mut self, name: &str) -> bool {
        self.0.insert(name.to_owned())
    }

    pub fn fresh(&mut self, name: &str) -> String {
        let free = std::iter::once(name.to_owned())
            .chain((1..).map(|i| format!("{name}_{i}")))
            .find(|n| !self.0.contains(n));
        let free = free.expect("numbers do not end");
        self.0.insert(free.clone());
        free
    }
}

pub(crate) fn schema_text(schema: &SchemaRef) -> String {
    let fields: Vec<String> = schema
        .fields()
        .iter()
        .map(|f| {
            format!(
                "{} {}{}",
                f.name(),
                f.data_type(),
                if f.is_nullable() { "" } else { " NOT NULL" }
            )
        })
        .collect();
    fields.join(", ")
}

pub(crate) fn canonical(op: &IrOp) -> String {
    match op {
        IrOp::Graph(op) => op_text(op),
        IrOp::Rank(Rank { partition, order }) => format!("rank {partition:?} {order:?}"),
    }
}

fn exprs_text(exprs: &[Expr]) -> String {
    exprs
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

pub(crate) fn function_name(function: &AggregateFunction) -> &str {
    match function {
        AggregateFunction::Count => "count",
        AggregateFunction::Sum => "sum",
        AggregateFunction::Min => "min",
        AggregateFunction::Max => "max",
        AggregateFunction::Avg => "avg",
        AggregateFunction::Other(udaf) => udaf.name(),
    }
}

fn aggregates_text(aggregates: &[Aggregate]) -> String {
    let texts: Vec<String> = aggregates
        .iter()
        .map(
            |Aggregate {
                 function,
                 args,
                 filter,
                 distinct,
                 output,
             }| {
                format!(
                    "{}({}{args:?}) filter {filter:?} -> {} {}",
                    function_name(function),
                    if *distinct { "distinct " } else { "" },
                    output.name(),
                    output.data_type()
                )
            },
        )
        .collect();
    texts.join(", ")
}

/// What an operator does, in a text that is equal for equal operators.
pub(crate) fn op_text(op: &Op) -> String {
    match op {
        Op::Source { name, columns } => format!("source {name} {columns:?}"),
        Op::Calc { filter, exprs } => format!(
            "calc where {} select {}",
            filter
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            exprs_text(exprs)
        ),
        Op::WindowAssign { column, window } => format!("window-assign {column} {window:?}"),
        Op::WindowAggregate {
            phase,
            by,
            keys,
            aggregates,
            emit,
        } => format!(
            "window-aggregate {phase:?} {by:?} {keys:?} [{}] {emit:?}",
            aggregates_text(aggregates)
        ),
        Op::Aggregate {
            keys,
            aggregates,
            ttl_ms,
        } => format!(
            "aggregate {keys:?} [{}] ttl {ttl_ms:?}",
            aggregates_text(aggregates)
        ),
        Op::Deduplicate {
            phase,
            keys,
            window,
            order,
            keep,
            ttl_ms,
        } => format!("deduplicate {phase:?} {keys:?} {window:?} {order:?} {keep:?} ttl {ttl_ms:?}"),
        Op::WindowJoin {
            left,
            right,
            filter,
        } => format!(
            "window-join {left:?} {right:?} where {}",
            filter
                .as_ref()
                .map_or_else(String::new, ToString::to_string)
        ),
        Op::Union => "union".to_owned(),
        Op::Materialize { key, max_rows } => format!("materialize {key:?} {max_rows}"),
        Op::Sink { name, mode, key } => format!("sink {name} {mode:?} {key:?}"),
    }
}

/// Whether the operator tells late rows from others, so that what a dead letter needs must still be there.
pub(crate) fn judges_late_rows(op: &Op) -> bool {
    match op {
        Op::WindowAssign { .. } => true,
        Op::WindowAggregate { by, .. } => matches!(by, WindowBy::Time { .. }),
        Op::Deduplicate { window, keep, .. } => {
            matches!(window, Some(WindowBy::Time { .. })) || *keep == Keep::FirstByTime
        }
        Op::WindowJoin { left, right, .. } => [left, right]
            .iter()
            .any(|s| matches!(s.window, WindowBy::Time { .. })),
        Op::Source { .. }
        | Op::Calc { .. }
        | Op::Aggregate { .. }
        | Op::Union
        | Op::Materialize { .. }
        | Op::Sink { .. } => false,
    }
}
