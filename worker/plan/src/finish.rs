//! From nodes to the graph: passes, two-phase operators, stages, uids, sources.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::{Catalog, Origin, SourceTable};
use crate::codes;
use crate::explain::describe;
use crate::expression::{df_schema, field_of};
use crate::fault::{Fault, Result};
use crate::fingerprint::{Columns, STATE_FORMAT, fingerprint, meanings};
use crate::graph::{
    Aggregate, AggregateFunction, Distribution, Edge, EdgeKind, Node, NodeId, Op, Phase,
    StreamGraph, Uid, WindowBy,
};
use crate::input::PlanInput;
use crate::ir::{Idx, Input, Ir, IrNode, IrOp, Names, canonical, schema_text};
use crate::prune::{add_uses, merge, prune, set_fields, uses_of};
use crate::source_plan::{ComputedColumn, MetadataColumn, SinkPlan, SourcePlan, WatermarkPlan};

/// What a job computes, and what the engine needs of its sources and sinks.
#[derive(Debug, Clone)]
pub struct Plan {
    pub graph: StreamGraph,
    /// The sources that are read.
    pub sources: BTreeMap<String, SourcePlan>,
    /// The sinks that rows are inserted into; those of dead letters alone are not among them.
    pub sinks: BTreeMap<String, SinkPlan>,
    pub(crate) warnings: Vec<Fault>,
    /// The text that was planned.
    pub sql: String,
    /// Hash of graph, sources and sinks: equal hash, equal computation.
    pub plan_hash: String,
}

pub(crate) fn finish(
    ir: &Ir,
    roots: &[Idx],
    catalog: &Catalog,
    input: PlanInput<'_>,
    mut sinks: BTreeMap<String, SinkPlan>,
    mut warnings: Vec<Fault>,
) -> Result<Plan> {
    let mut ir = prune(ir, roots);
    loop {
        let merged = merge(&ir);
        let done = merged.nodes.len() == ir.nodes.len();
        ir = merged;
        if done {
            break;
        }
    }
    shrink_rows(&mut ir, catalog)?;
    let ir = break_cycles(split_phases(ir));
    for node in &ir.nodes {
        if let IrOp::Graph(Op::Sink { name, .. }) = &node.op
            && let Some(sink) = sinks.get_mut(name)
        {
            sink.kind = ir.nodes[node.inputs[0].node].kind.clone();
            sink.schema = Arc::clone(&node.schema);
        }
    }
    let mut sources = BTreeMap::new();
    for node in &ir.nodes {
        if let IrOp::Graph(Op::Source { name, .. }) = &node.op
            && let Some(table) = catalog.sources.get(name)
        {
            let watermark = input
                .sources
                .iter()
                .find(|s| s.name == *name)
                .and_then(|s| s.watermark.as_ref())
                .map(|w| WatermarkPlan {
                    column: w.column.clone(),
                    max_out_of_orderness_ms: w.max_out_of_orderness.as_millis(),
                    idle_timeout_ms: w.idle_timeout.map(|t| t.as_millis()),
                });
            sources.insert(name.clone(), source_plan(&ir, node, table, watermark));
        }
    }
    for (i, source) in input.sources.iter().enumerate() {
        if !sources.contains_key(&source.name) {
            let warning = Fault::new(
                codes::UNREAD_SOURCE,
                format!("source \"{}\" is not read", source.name),
            );
            warnings.push(warning.path(format!("sources[{i}]")));
        }
    }
    warnings.sort_by(|a, b| {
        a.position
            .cmp(&b.position)
            .then_with(|| a.message.cmp(&b.message))
    });
    let graph = graph(&ir, catalog)?;
    let plan_hash = hash(&graph, &sources, &sinks);
    Ok(Plan {
        graph,
        sources,
        sinks,
        warnings,
        sql: input.sql.to_owned(),
        plan_hash,
    })
}

/// Columns of a source that anything uses: by its readers, its computed columns that are read, its watermark.
fn source_uses(
    ir: &Ir,
    index: Idx,
    table: &SourceTable,
) -> (BTreeMap<String, crate::source_plan::Uses>, BTreeSet<String>) {
    let mut uses = uses_of(ir, index);
    if let Some(i) = table.event_time {
        uses.entry(table.schema.field(i).name().clone())
            .or_default()
            .add(&[]);
    }
    let mut computed = BTreeSet::new();
    for column in &table.columns {
        if let Origin::Computed(expr) = &column.origin
            && uses.contains_key(column.field.name())
        {
            computed.insert(column.field.name().clone());
            add_uses(expr, &mut uses);
        }
    }
    (uses, computed)
}

/// ROW columns shrink to the fields that are read; expressions name fields, so only the source's schema changes.
fn shrink_rows(ir: &mut Ir, catalog: &Catalog) -> Result<()> {
    for index in 0..ir.nodes.len() {
        let IrOp::Graph(Op::Source { name, .. }) = &ir.nodes[index].op else {
            continue;
        };
        let Some(table) = catalog.sources.get(name) else {
            continue;
        };
        let (uses, _) = source_uses(ir, index, table);
        set_fields(&mut ir.nodes[index], &uses);
    }
    // A ROW that rides through whole was not shrunk, so every Calc keeps its types; make sure.
    for node in &ir.nodes {
        if let IrOp::Graph(Op::Calc { exprs, .. }) = &node.op {
            let from = df_schema(&ir.nodes[node.inputs[0].node].schema)
                .map_err(|e| crate::expression::fault_of_datafusion(e, &Default::default()))?;
            for (expr, field) in exprs.iter().zip(node.schema.fields()) {
                let now: FieldRef = field_of(expr, field.name(), &from)
                    .map_err(|e| crate::expression::fault_of_datafusion(e, &Default::default()))?;
                debug_assert_eq!(now.data_type(), field.data_type(), "{expr}");
            }
        }
    }
    Ok(())
}

fn source_plan(
    ir: &Ir,
    node: &IrNode,
    table: &SourceTable,
    watermark: Option<WatermarkPlan>,
) -> SourcePlan {
    let index = ir
        .nodes
        .iter()
        .position(|n| std::ptr::eq(n, node))
        .unwrap_or_default();
    let (uses, computed) = source_uses(ir, index, table);
    let mut decode: Vec<Field> = vec![];
    let mut metadata = vec![];
    let mut computed_columns = vec![];
    for column in &table.columns {
        let name = column.field.name();
        let used = uses.get(name);
        match &column.origin {
            Origin::Body => match used {
                Some(uses) => decode.push(uses.prune(&column.field)),
                // Declared not null: a body without it is an error of the row, whether or not it is read.
                None if !column.field.is_nullable() => decode.push(column.field.as_ref().clone()),
                None => {}
            },
            Origin::Transport(from) if used.is_some() => metadata.push(MetadataColumn {
                from: *from,
                field: Arc::clone(&column.field),
            }),
            Origin::Computed(expr) if computed.contains(name) => {
                computed_columns.push(ComputedColumn {
                    name: name.clone(),
                    expr: expr.clone(),
                    field: Arc::clone(&column.field),
                });
            }
            Origin::Transport(_) | Origin::Computed(_) => {}
        }
    }
    SourcePlan {
        name: table.name.clone(),
        decode: Arc::new(Schema::new(decode)),
        metadata,
        computed: computed_columns,
        watermark,
        output: Arc::clone(&node.schema),
    }
}

fn is_two_phase(aggregates: &[Aggregate]) -> bool {
    aggregates
        .iter()
        .all(|a| !a.distinct && !matches!(a.function, AggregateFunction::Other(_)))
}

/// Windowed aggregates and windowed Top-1 work before the exchange too.
fn split_phases(ir: Ir) -> Ir {
    let mut new = Ir::default();
    let mut places: Vec<Idx> = vec![];
    for node in ir.nodes {
        let mut node = node;
        for input in &mut node.inputs {
            input.node = places[input.node];
        }
        let forward = |input: &Input| Input {
            node: input.node,
            distribution: Distribution::Forward,
        };
        let place = match &node.op {
            IrOp::Graph(Op::WindowAggregate {
                phase: Phase::Single,
                by: by @ WindowBy::Time { .. },
                keys,
                aggregates,
                emit,
            }) if is_two_phase(aggregates) => {
                let from = &new.nodes[node.inputs[0].node];
                let schema = partial_schema(&from.schema, keys, aggregates);
                let op = |phase| Op::WindowAggregate {
                    phase,
                    by: by.clone(),
                    keys: keys.clone(),
                    aggregates: aggregates.clone(),
                    emit: *emit,
                };
                let exchange = Distribution::Hash((0..keys.len()).collect());
                let partial = IrNode {
                    op: IrOp::Graph(op(Phase::Partial)),
                    inputs: vec![forward(&node.inputs[0])],
                    attrs: vec![Default::default(); schema.fields().len()],
                    schema,
                    scope: node.scope.clone(),
                    kind: EdgeKind::Append,
                    distributed: None,
                };
                let op = IrOp::Graph(op(Phase::Final));
                let partial = new.add(partial);
                new.add(IrNode {
                    op,
                    inputs: vec![Input {
                        node: partial,
                        distribution: exchange,
                    }],
                    ..node
                })
            }
            IrOp::Graph(Op::Deduplicate {
                phase: Phase::Single,
                keys,
                window: Some(window),
                order,
                keep,
                ttl_ms,
            }) => {
                let op = |phase| Op::Deduplicate {
                    phase,
                    keys: keys.clone(),
                    window: Some(window.clone()),
                    order: order.clone(),
                    keep: keep.clone(),
                    ttl_ms: *ttl_ms,
                };
                let from = &new.nodes[node.inputs[0].node];
                let partial = IrNode {
                    op: IrOp::Graph(op(Phase::Partial)),
                    inputs: vec![forward(&node.inputs[0])],
                    schema: Arc::clone(&from.schema),
                    attrs: from.attrs.clone(),
                    scope: node.scope.clone(),
                    kind: EdgeKind::Append,
                    distributed: None,
                };
                let exchange = Distribution::Hash(keys.clone());
                let op = IrOp::Graph(op(Phase::Final));
                let partial = new.add(partial);
                new.add(IrNode {
                    op,
                    inputs: vec![Input {
                        node: partial,
                        distribution: exchange,
                    }],
                    ..node
                })
            }
            _ => new.add(node),
        };
        places.push(place);
    }
    new
}

/// Keys, pane, and the partial states of each aggregate.
fn partial_schema(from: &SchemaRef, keys: &[usize], aggregates: &[Aggregate]) -> SchemaRef {
    let mut names = Names::default();
    let mut fields: Vec<Field> = keys
        .iter()
        .map(|&k| {
            let field = from.field(k);
            Field::new(
                names.fresh(field.name()),
                field.data_type().clone(),
                field.is_nullable(),
            )
        })
        .collect();
    fields.push(Field::new(names.fresh("pane"), DataType::Int64, false));
    for aggregate in aggregates {
        let name = aggregate.output.name().clone();
        let arg = aggregate
            .args
            .first()
            .map(|&a| from.field(a).data_type().clone());
        let output = aggregate.output.data_type().clone();
        let mut state = |suffix: &str, data_type: DataType, nullable: bool| {
            fields.push(Field::new(
                names.fresh(&format!("{name}{suffix}")),
                data_type,
                nullable,
            ))
        };
        match &aggregate.function {
            AggregateFunction::Count => state("", DataType::Int64, false),
            AggregateFunction::Sum => {
                let float = output.is_floating();
                state("", output, true);
                if float {
                    state("#low", DataType::Float64, true);
                }
            }
            AggregateFunction::Min | AggregateFunction::Max => {
                state("", arg.unwrap_or(output), true)
            }
            AggregateFunction::Avg => {
                match arg {
                    Some(DataType::Decimal128(_, scale)) => {
                        state("#sum", DataType::Decimal128(38, scale), true)
                    }
                    Some(t) if t.is_integer() => state("#sum", DataType::Decimal128(38, 0), true),
                    _ => {
                        state("#sum", DataType::Float64, true);
                        state("#low", DataType::Float64, true);
                    }
                }
                state("#count", DataType::Int64, false);
            }
            AggregateFunction::Other(_) => {}
        }
    }
    Arc::new(Schema::new(fields))
}

/// The stage of each node: nodes that Forward edges join.
fn stages(ir: &Ir) -> Vec<usize> {
    let mut stage: Vec<usize> = (0..ir.nodes.len()).collect();
    fn root(stage: &[usize], mut i: usize) -> usize {
        while stage[i] != i {
            i = stage[i];
        }
        i
    }
    for (index, node) in ir.nodes.iter().enumerate() {
        for input in node
            .inputs
            .iter()
            .filter(|i| i.distribution == Distribution::Forward)
        {
            let (a, b) = (root(&stage, input.node), root(&stage, index));
            stage[a.max(b)] = a.min(b);
        }
    }
    (0..ir.nodes.len()).map(|i| root(&stage, i)).collect()
}

/// Stages in an order in which every exchange goes forward; none if there is no such order.
fn order_of_stages(ir: &Ir, stage: &[usize]) -> Option<Vec<usize>> {
    let mut after: BTreeMap<usize, BTreeSet<usize>> =
        stage.iter().map(|&s| (s, BTreeSet::new())).collect();
    for (index, node) in ir.nodes.iter().enumerate() {
        for input in node
            .inputs
            .iter()
            .filter(|i| i.distribution != Distribution::Forward)
        {
            if stage[input.node] == stage[index] {
                return None;
            }
            after
                .entry(stage[index])
                .or_default()
                .insert(stage[input.node]);
        }
    }
    let mut order = vec![];
    while !after.is_empty() {
        let next = *after
            .iter()
            .find(|(_, needs)| needs.iter().all(|n| order.contains(n)))?
            .0;
        after.remove(&next);
        order.push(next);
    }
    Some(order)
}

/// A Union that would put both ends of an exchange into one stage takes its inputs through exchanges of its own.
fn break_cycles(mut ir: Ir) -> Ir {
    let unions: Vec<Idx> = (0..ir.nodes.len())
        .filter(|&i| matches!(ir.nodes[i].op, IrOp::Graph(Op::Union)))
        .collect();
    for union in unions {
        if order_of_stages(&ir, &stages(&ir)).is_some() {
            break;
        }
        for port in 0..ir.nodes[union].inputs.len() {
            let from = &ir.nodes[ir.nodes[union].inputs[port].node];
            // Rows of one key must stay in order, so they go where the key goes.
            let columns = from
                .distributed
                .clone()
                .filter(|c| !c.is_empty())
                .unwrap_or_else(|| (0..from.visible()).collect());
            ir.nodes[union].inputs[port].distribution = Distribution::Hash(columns);
        }
    }
    ir
}

fn graph(ir: &Ir, catalog: &Catalog) -> Result<StreamGraph> {
    let stage = stages(ir);
    let Some(order) = order_of_stages(ir, &stage) else {
        return Err(Fault::new(
            codes::INVALID,
            "this combination of joins over one stream cannot be laid out in stages",
        )
        .help("write the shared part as two views"));
    };
    let mut nodes = vec![];
    let mut edges = vec![];
    let mut ordinals: HashMap<String, usize> = HashMap::new();
    let mut means: Vec<Vec<String>> = vec![];
    for (index, node) in ir.nodes.iter().enumerate() {
        let IrOp::Graph(op) = &node.op else {
            return Err(Fault::new(
                codes::OVER,
                "ROW_NUMBER() OVER without a condition = 1 or <= 1 on it is not supported",
            ));
        };
        let base = match op {
            Op::Source { name, .. } => format!("{name}/source"),
            _ => format!("{}/{}", node.scope, kind_name(op)),
        };
        let ordinal = ordinals.entry(base.clone()).or_default();
        let uid = Uid(format!("{base}-{ordinal}"));
        *ordinal += 1;
        // A final operator speaks of its partial's input.
        let inputs: Vec<Columns<'_>> = node
            .inputs
            .iter()
            .map(|i| terms_of(ir, op, i.node))
            .map(|i| Columns {
                node: &ir.nodes[i],
                means: &means[i],
            })
            .collect();
        nodes.push(Node {
            id: NodeId(index),
            uid,
            op: op.clone(),
            schema: Arc::clone(&node.schema),
            fingerprint: fingerprint(op, &inputs),
            describe: describe(
                op,
                &inputs.iter().map(|i| &i.node.schema).collect::<Vec<_>>(),
                &node.schema,
            ),
        });
        let own = meanings(op, &node.schema, &inputs, catalog);
        means.push(own);
        for (port, input) in node.inputs.iter().enumerate() {
            edges.push(Edge {
                from: NodeId(input.node),
                to: NodeId(index),
                port,
                distribution: input.distribution.clone(),
                kind: ir.nodes[input.node].kind.clone(),
            });
        }
    }
    let stages = order
        .iter()
        .map(|s| {
            (0..ir.nodes.len())
                .filter(|&i| stage[i] == *s)
                .map(NodeId)
                .collect()
        })
        .collect();
    Ok(StreamGraph {
        nodes,
        edges,
        stages,
    })
}

/// The node whose columns the operator's indexes mean.
fn terms_of(ir: &Ir, op: &Op, input: Idx) -> Idx {
    match op {
        Op::WindowAggregate {
            phase: Phase::Final,
            ..
        }
        | Op::Deduplicate {
            phase: Phase::Final,
            ..
        } => ir.nodes[input].inputs[0].node,
        _ => input,
    }
}

/// What an operator is, as `penstock plan` and `/status` name it.
pub fn kind_name(op: &Op) -> &'static str {
    match op {
        Op::Source { .. } => "source",
        Op::Calc { .. } => "calc",
        Op::WindowAssign { .. } => "window-assign",
        Op::WindowAggregate {
            phase: Phase::Partial,
            ..
        } => "window-aggregate-partial",
        Op::WindowAggregate { .. } => "window-aggregate",
        Op::Aggregate { aggregates, .. } if aggregates.is_empty() => "distinct",
        Op::Aggregate { .. } => "aggregate",
        Op::Deduplicate {
            phase: Phase::Partial,
            ..
        } => "deduplicate-partial",
        Op::Deduplicate { .. } => "deduplicate",
        Op::WindowJoin { .. } => "window-join",
        Op::Union => "union",
        Op::Materialize { .. } => "materialize",
        Op::Sink { .. } => "sink",
    }
}

fn hash(
    graph: &StreamGraph,
    sources: &BTreeMap<String, SourcePlan>,
    sinks: &BTreeMap<String, SinkPlan>,
) -> String {
    let mut text = format!("v{STATE_FORMAT}\n");
    for node in &graph.nodes {
        text.push_str(&format!(
            "{} {} {}\n",
            node.uid.0,
            canonical(&IrOp::Graph(node.op.clone())),
            schema_text(&node.schema)
        ));
    }
    for edge in &graph.edges {
        text.push_str(&format!("{edge:?}\n"));
    }
    for source in sources.values() {
        let computed: Vec<String> = source
            .computed
            .iter()
            .map(|c| format!("{}={}", c.name, c.expr))
            .collect();
        text.push_str(&format!(
            "{} {} {computed:?} {:?} {:?}\n",
            source.name,
            schema_text(&source.decode),
            source.metadata,
            source.watermark
        ));
    }
    for sink in sinks.values() {
        text.push_str(&format!(
            "{} {} {:?} {:?} {:?}\n",
            sink.name,
            schema_text(&sink.schema),
            sink.mode,
            sink.key,
            sink.record_key
        ));
    }
    format!("{:016x}", xxh3_64(text.as_bytes()))
}
