//! The plan as text for people and as JSON for the job's history.

use arrow::datatypes::SchemaRef;
use serde_json::{Value, json};

use crate::finish::{Plan, kind_name};
use crate::graph::{
    Aggregate, Distribution, Edge, EdgeKind, JoinSide, Op, Phase, SortKey, Window, WindowBy,
};
use crate::ir::{function_name, schema_text};

fn names(schema: &SchemaRef, columns: &[usize]) -> String {
    columns
        .iter()
        .map(|&c| schema.field(c).name().as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Microseconds as people write them.
fn span(micros: i64) -> String {
    const UNITS: [(i64, &str); 6] = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
        (1, "us"),
    ];
    let (size, unit) = UNITS
        .into_iter()
        .find(|(size, _)| micros % size == 0 && micros != 0)
        .unwrap_or((1, "us"));
    format!("{}{unit}", micros / size)
}

fn window(window: &Window) -> String {
    let shift = |offset: i64| {
        if offset == 0 {
            String::new()
        } else {
            format!(" offset {}", span(offset))
        }
    };
    match *window {
        Window::Tumble { size, offset } => format!("tumble {}{}", span(size), shift(offset)),
        Window::Hop {
            slide,
            size,
            offset,
        } => format!("hop {} every {}{}", span(size), span(slide), shift(offset)),
    }
}

fn by(by: &WindowBy, schema: &SchemaRef) -> String {
    match by {
        WindowBy::Time { column, window: w } => {
            format!("{} of {}", window(w), schema.field(*column).name())
        }
        WindowBy::Attached { start, end } => format!("window [{}]", names(schema, &[*start, *end])),
    }
}

fn aggregates(aggregates: &[Aggregate], schema: &SchemaRef) -> String {
    let texts: Vec<String> = aggregates
        .iter()
        .map(|a| {
            let args = if a.args.is_empty() {
                "*".to_owned()
            } else {
                names(schema, &a.args)
            };
            let filter = a
                .filter
                .map(|f| format!(" where {}", schema.field(f).name()))
                .unwrap_or_default();
            format!(
                "{}({}{args}){filter}",
                function_name(&a.function),
                if a.distinct { "distinct " } else { "" }
            )
        })
        .collect();
    texts.join(", ")
}

fn order(keys: &[SortKey], schema: &SchemaRef) -> String {
    keys.iter()
        .map(|k| {
            format!(
                "{}{}",
                schema.field(k.column).name(),
                if k.descending { " desc" } else { "" }
            )
        })
        .collect::<Vec<_>>()
        .join(", ")
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Single => "",
        Phase::Partial => "partial ",
        Phase::Final => "final ",
    }
}

/// One line for people.
pub(crate) fn describe(op: &Op, inputs: &[&SchemaRef], output: &SchemaRef) -> String {
    let input = inputs.first().copied().unwrap_or(output);
    match op {
        Op::Source { name, columns } => format!("source {name} [{}]", columns.join(", ")),
        Op::Calc { filter, exprs } => {
            let columns: Vec<String> = exprs
                .iter()
                .zip(output.fields())
                .map(|(e, f)| {
                    let text = e.to_string();
                    if text == *f.name() {
                        text
                    } else {
                        format!("{text} AS {}", f.name())
                    }
                })
                .collect();
            let filter = filter
                .as_ref()
                .map(|f| format!(" where {f}"))
                .unwrap_or_default();
            format!("calc [{}]{filter}", columns.join(", "))
        }
        Op::WindowAssign { column, window: w } => {
            format!("window {} of {}", window(w), input.field(*column).name())
        }
        Op::WindowAggregate {
            phase: p,
            by: b,
            keys,
            aggregates: a,
            emit,
        } => {
            format!(
                "{}window aggregate [{}] by [{}], {}, {}",
                phase(*p),
                aggregates(a, input),
                names(input, keys),
                by(b, input),
                match emit {
                    crate::graph::Emit::OnClose => "on close",
                    crate::graph::Emit::OnUpdate => "on update",
                }
            )
        }
        Op::Aggregate {
            keys,
            aggregates: a,
            ttl_ms,
        } => {
            let ttl = ttl_ms
                .map(|t| {
                    format!(
                        ", ttl {}",
                        span(i64::try_from(t).unwrap_or(i64::MAX / 1000) * 1000)
                    )
                })
                .unwrap_or_default();
            if a.is_empty() {
                format!("distinct [{}]{ttl}", names(input, keys))
            } else {
                format!(
                    "aggregate [{}] by [{}]{ttl}",
                    aggregates(a, input),
                    names(input, keys)
                )
            }
        }
        Op::Deduplicate {
            phase: p,
            keys,
            window: w,
            order: o,
            keep,
            ttl_ms,
        } => {
            let w = w
                .as_ref()
                .map(|w| format!(", {}", by(w, input)))
                .unwrap_or_default();
            let ttl = ttl_ms
                .map(|t| {
                    format!(
                        ", ttl {}",
                        span(i64::try_from(t).unwrap_or(i64::MAX / 1000) * 1000)
                    )
                })
                .unwrap_or_default();
            format!(
                "{}deduplicate by [{}]{w}, keep {keep:?} of [{}]{ttl}",
                phase(*p),
                names(input, keys),
                order(o, input)
            )
        }
        Op::WindowJoin {
            left,
            right,
            filter,
        } => {
            let side = |s: &JoinSide, schema: &SchemaRef| {
                format!("[{}] {}", names(schema, &s.keys), by(&s.window, schema))
            };
            let filter = filter
                .as_ref()
                .map(|f| format!(" where {f}"))
                .unwrap_or_default();
            format!(
                "window join {} = {}{filter}",
                side(left, input),
                side(right, inputs.get(1).copied().unwrap_or(input))
            )
        }
        Op::Union => "union".to_owned(),
        Op::Materialize { key, max_rows } => format!(
            "materialize by [{}], at most {max_rows} rows",
            names(input, key)
        ),
        Op::Sink { name, mode, key } => {
            let key = key
                .as_ref()
                .map(|k| format!(" key [{}]", names(input, k)))
                .unwrap_or_default();
            format!("sink {name} {}{key}", format!("{mode:?}").to_lowercase())
        }
    }
}

fn edge(edge: &Edge, plan: &Plan) -> String {
    let from = &plan.graph.nodes[edge.from.0];
    let kind = kind(&edge.kind, &from.schema);
    match &edge.distribution {
        Distribution::Forward => format!("<- {} {kind}", from.uid.0),
        Distribution::Hash(columns) if columns.is_empty() => {
            format!("<= {} {kind}, all to one", from.uid.0)
        }
        Distribution::Hash(columns) => format!(
            "<= {} {kind}, hash [{}]",
            from.uid.0,
            names(&from.schema, columns)
        ),
    }
}

fn kind(kind: &EdgeKind, schema: &SchemaRef) -> String {
    match kind {
        EdgeKind::Append => "append".to_owned(),
        EdgeKind::Retract => "retract".to_owned(),
        EdgeKind::Upsert(key) => format!("upsert [{}]", names(schema, key)),
    }
}

/// The graph as text: stages, operators with uids, edges (`<-` in the stage, `<=` an exchange) with their kinds.
pub fn explain(plan: &Plan) -> String {
    let mut text = String::new();
    for (i, stage) in plan.graph.stages.iter().enumerate() {
        text.push_str(&format!("stage {i}\n"));
        for id in stage {
            let node = &plan.graph.nodes[id.0];
            text.push_str(&format!("  {}: {}\n", node.uid.0, node.describe));
            for e in plan.graph.edges.iter().filter(|e| e.to == *id) {
                text.push_str(&format!("    {}\n", edge(e, plan)));
            }
        }
    }
    for source in plan.sources.values() {
        text.push_str(&format!(
            "source {}: decode [{}]\n",
            source.name,
            schema_text(&source.decode)
        ));
        for column in &source.metadata {
            text.push_str(&format!(
                "  {} from {:?}\n",
                column.field.name(),
                column.from
            ));
        }
        for column in &source.computed {
            text.push_str(&format!("  {} as {}\n", column.name, column.expr));
        }
        if let Some(watermark) = &source.watermark {
            text.push_str(&format!(
                "  watermark {} - {}ms\n",
                watermark.column, watermark.max_out_of_orderness_ms
            ));
        }
    }
    for sink in plan.sinks.values() {
        text.push_str(&format!(
            "sink {}: [{}]\n",
            sink.name,
            schema_text(&sink.schema)
        ));
    }
    for warning in &plan.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

/// What is kept of a plan: `plan/<hash>.json`.
pub fn plan_json(plan: &Plan) -> Value {
    let nodes: Vec<Value> = plan
        .graph
        .nodes
        .iter()
        .map(|node| {
            let columns: Vec<Value> = node.schema.fields().iter().map(|f| json!({"name": f.name(), "type": f.data_type().to_string(), "nullable": f.is_nullable()})).collect();
            json!({
                "uid": node.uid,
                "kind": kind_name(&node.op),
                "describe": node.describe,
                "fingerprint": node.fingerprint.map(|f| format!("{:016x}", f.0)),
                "schema": columns,
            })
        })
        .collect();
    let edges: Vec<Value> = plan
        .graph
        .edges
        .iter()
        .map(|e| {
            json!({
                "from": plan.graph.nodes[e.from.0].uid,
                "to": plan.graph.nodes[e.to.0].uid,
                "port": e.port,
                "distribution": e.distribution,
                "kind": e.kind,
            })
        })
        .collect();
    json!({"format": 1, "hash": plan.plan_hash, "sql": plan.sql, "nodes": nodes, "edges": edges})
}
