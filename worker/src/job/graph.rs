//! The plan at work, as `/status` shows it: the shape is the plan's, the figures are the coordinator's, who has which key groups is
//! the seats'.

use penstock_crds::rpc;
use penstock_plan::graph::{Distribution, Node, Op, StreamGraph};
use penstock_plan::kind_name;

use crate::coordinator::graph::{GraphNow, Layout, SubtaskNow};
use crate::member::seat::Seat;

/// Puts the figures to the operators of the plan.
pub fn shown(graph: &StreamGraph, now: &GraphNow) -> rpc::Graph {
    let operators: Vec<rpc::Operator> = graph
        .nodes
        .iter()
        .map(|node| operator(graph, node, now))
        .collect();
    let workers = (0..now.layout.workers.len())
        .map(|member| worker(&now.layout, member, &operators))
        .collect();
    rpc::Graph {
        seconds: rounded(now.seconds, 1),
        operators,
        workers,
    }
}

fn operator(graph: &StreamGraph, node: &Node, now: &GraphNow) -> rpc::Operator {
    let mut edges: Vec<_> = graph.edges.iter().filter(|e| e.to == node.id).collect();
    edges.sort_by_key(|e| e.port);
    let input = |edge: &&penstock_plan::graph::Edge| rpc::Input {
        uid: graph.nodes[edge.from.0].uid.0.clone(),
        keyed: matches!(edge.distribution, Distribution::Hash(_)),
    };
    let reads = matches!(node.op, Op::Source { .. });
    let measured = now.tasks.iter().find(|task| task.uid == node.uid.0);
    let subtasks = measured.into_iter().flat_map(|task| &task.subtasks);
    let skew = measured.map(|task| task.skew.clone()).unwrap_or_default();
    let stage = graph.stages.iter().position(|s| s.contains(&node.id));
    rpc::Operator {
        uid: node.uid.0.clone(),
        kind: kind_name(&node.op).to_owned(),
        stage: number(stage.unwrap_or_default()),
        inputs: edges.iter().map(input).collect(),
        subtasks: subtasks
            .enumerate()
            .map(|(slot, subtask)| self::subtask(&now.layout, slot, subtask, reads))
            .collect(),
        hottest_group: skew.group.map(|(group, share)| rpc::HottestGroup {
            group,
            share: rounded(share, 3),
        }),
        hottest_key: skew.key.map(|(key, share)| rpc::HottestKey {
            key,
            share: rounded(share, 3),
        }),
    }
}

/// `reads`: it has no channels.
fn subtask(layout: &Layout, slot: usize, of: &SubtaskNow, reads: bool) -> rpc::Subtask {
    let worker = layout.workers.get(slot / layout.slots.max(1));
    rpc::Subtask {
        slot: number(slot),
        worker: worker.copied().unwrap_or_default(),
        rows_in: of.rows_in,
        rows_out: of.rows_out,
        rates: rpc::Rates {
            rows_in: rounded(of.rate_in, 1),
            rows_out: rounded(of.rate_out, 1),
        },
        busy: rounded(of.busy, 3),
        backpressured: rounded(of.backpressured, 3),
        idle: rounded(of.idle, 3),
        alignment_ms: (!reads).then(|| rounded(of.alignment.as_secs_f64() * 1000.0, 1)),
        queued: (!reads).then(|| rpc::Queued {
            messages: rounded(of.queued_messages, 1),
            bytes: rounded(of.queued_bytes, 0),
        }),
    }
}

fn worker(layout: &Layout, member: usize, operators: &[rpc::Operator]) -> rpc::Worker {
    let seat = Seat {
        member,
        members: layout.workers.len(),
        slots: layout.slots,
    };
    let groups = seat.own_groups(layout.key_groups);
    let number = layout.workers[member];
    let exchanged = operators
        .iter()
        .filter(|o| o.inputs.iter().any(|i| i.keyed));
    let subtasks = exchanged.flat_map(|o| &o.subtasks);
    let waiting = subtasks
        .filter(|s| s.worker == number)
        .filter_map(|s| s.queued);
    rpc::Worker {
        worker: number,
        slots: self::number(layout.slots),
        key_groups: self::number(groups.len()),
        ranges: (!groups.is_empty())
            .then(|| rpc::KeyGroups {
                first: groups.start,
                last: groups.end - 1,
            })
            .into_iter()
            .collect(),
        queued: waiting.fold(rpc::Queued::default(), |all, of| rpc::Queued {
            messages: all.messages + of.messages,
            bytes: all.bytes + of.bytes,
        }),
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// With so many digits after the point: nobody measures more, and nobody reads more.
fn rounded(x: f64, digits: i32) -> f64 {
    let one = 10f64.powi(digits);
    (x * one).round() / one
}
