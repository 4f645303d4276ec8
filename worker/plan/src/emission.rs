//! When changing results leave: at the barrier, or as soon as the input has run dry. Pure: the graph and the sinks' word in, a
//! word for each node out. What an operator does with it is the worker's.

use crate::graph::{Emit, Keep, Node, Op, StreamGraph};

/// Per node, by index: whether its changes leave as soon as its input has run dry, and not only at the barrier.
///
/// That is so where every sink below publishes at once (`sink_at_once`, by name), and no operator on the way holds rows until
/// a watermark or a barrier: changes that would wait there anyway are cheaper told once. For a sink it is its own word. Where
/// several sinks differ nothing is hurried: an exactly-once sink takes rows at its epoch's end, and meanwhile each key's
/// changes are one.
pub fn at_once(graph: &StreamGraph, sink_at_once: impl Fn(&str) -> bool) -> Vec<bool> {
    let mut leaves = vec![false; graph.nodes.len()];
    // Consumers stand behind their producers.
    for node in graph.nodes.iter().rev() {
        leaves[node.id.0] = match &node.op {
            Op::Sink { name, .. } => sink_at_once(name),
            // Whole results, an epoch each.
            Op::Materialize { .. } => false,
            _ => graph
                .edges
                .iter()
                .filter(|edge| edge.from == node.id)
                .all(|edge| leaves[edge.to.0] && hands_on(&graph.nodes[edge.to.0])),
        };
    }
    leaves
}

/// Whether rows that come in between marks can go out between marks.
fn hands_on(node: &Node) -> bool {
    match &node.op {
        Op::WindowJoin { .. } | Op::Materialize { .. } => false,
        Op::WindowAggregate { emit, .. } => *emit == Emit::OnUpdate,
        Op::Deduplicate { window, keep, .. } => window.is_none() && *keep != Keep::FirstByTime,
        Op::Source { .. }
        | Op::Calc { .. }
        | Op::WindowAssign { .. }
        | Op::Aggregate { .. }
        | Op::Union
        | Op::Sink { .. } => true,
    }
}
