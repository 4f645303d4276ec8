//! A node of the graph to its operator: the one entry of the task layer.

use arrow::datatypes::{DataType, SchemaRef};
use penstock_plan::graph::{EdgeKind, Emit, Keep, Node, Op, Phase, SortKey, WindowBy};

use super::accumulate::unsupported;
use super::aggregate::{self, GroupAggregate, Leaves};
use super::best::RowOrder;
use super::calc::Calc;
use super::deduplicate::{self, FirstByTime};
use super::hot::Shape;
use super::materialize::Materialize;
use super::panes::Windows;
use super::union::Union;
use super::window_aggregate::{self, Columns, Input, WindowAggregate};
use super::window_assign::WindowAssign;
use super::window_join::WindowJoin;
use super::window_partial::WindowPartial;
use super::{Operator, Switches};
use crate::error::Result;

/// The column after `pane` in a partial's output that carries the end of attached windows.
pub const PANE_END: &str = "pane_end";

/// The operator of a node. `inputs`: schemas of the ports' main lanes, in order; `late`: schema of late-lane rows, for the
/// final phase (for others it is the input's); `kinds`: of the edges into the ports. Sources and sinks are no operators.
pub fn build(
    node: &Node,
    inputs: &[SchemaRef],
    late: Option<SchemaRef>,
    kinds: &[EdgeKind],
    switches: Switches,
) -> Result<Box<dyn Operator>> {
    let input = |port: usize| {
        inputs
            .get(port)
            .ok_or_else(|| unsupported(&format!("node {} without input {port}", node.uid.0)))
    };
    let output = SchemaRef::clone(&node.schema);
    let retract = kinds.iter().any(|k| *k != EdgeKind::Append);
    let uid = node.uid.0.clone();
    Ok(match &node.op {
        Op::Source { .. } | Op::Sink { .. } => {
            return Err(unsupported("a source or sink as an operator"));
        }
        Op::Calc { filter, exprs } => {
            Box::new(Calc::new(filter.as_ref(), exprs, input(0)?, &output)?)
        }
        Op::Union => Box::new(Union::new(output)),
        Op::WindowAssign { column, window } => {
            Box::new(WindowAssign::new(*column, *window, input(0)?, output))
        }
        Op::WindowAggregate {
            phase,
            by,
            keys,
            aggregates,
            emit,
        } => {
            // Of a final phase everything is said in terms of the partial's input.
            let rows = match (phase, &late) {
                (Phase::Final, Some(late)) => late,
                _ => input(0)?,
            };
            let windows = Windows::new(by);
            let mut types = types(rows, keys);
            let ends = |schema: &SchemaRef| {
                schema
                    .fields()
                    .get(keys.len() + 1)
                    .is_some_and(|f| f.name() == PANE_END)
            };
            let attached = matches!(by, WindowBy::Attached { .. });
            if *phase != Phase::Single {
                if retract && *phase == Phase::Partial {
                    return Err(unsupported(
                        "a two-phase aggregate on an input with retractions",
                    ));
                }
                let partial = if *phase == Phase::Partial {
                    &output
                } else {
                    input(0)?
                };
                if attached && !ends(partial) {
                    return Err(unsupported(
                        "a two-phase aggregate by window columns without pane_end",
                    ));
                }
            }
            if *phase == Phase::Partial {
                if attached {
                    types.push(DataType::Int64);
                }
                let shape = Shape::of_aggregates(types, aggregates, rows, false, false);
                return Ok(Box::new(WindowPartial::new(
                    shape,
                    windows,
                    keys.clone(),
                    Columns::KeysAndWindow,
                    output,
                    switches,
                )?));
            }
            let retract = retract && *phase == Phase::Single;
            let shape = Shape::of_aggregates(types, aggregates, rows, retract, retract)
                .told_at_once(switches.at_once && *emit == Emit::OnUpdate);
            let plan = window_aggregate::Plan {
                uid,
                shape,
                windows,
                keys: keys.clone(),
                input: match phase {
                    Phase::Final => Input::Partials {
                        keys: keys.len(),
                        ends: attached,
                    },
                    _ => Input::Rows,
                },
                columns: Columns::KeysAndWindow,
                emit: *emit,
                retract,
                output,
            };
            Box::new(WindowAggregate::new(plan, switches)?)
        }
        Op::Aggregate {
            keys,
            aggregates,
            ttl_ms,
        } => {
            let rows = input(0)?;
            let leaves = if aggregates.is_empty() && !retract {
                Leaves::New
            } else {
                Leaves::Changed
            };
            let plan = aggregate::Plan {
                uid,
                shape: Shape::of_aggregates(types(rows, keys), aggregates, rows, retract, true)
                    .told_at_once(switches.at_once),
                keys: keys.clone(),
                columns: Columns::KeysAndWindow,
                leaves,
                ttl_ms: *ttl_ms,
                output,
            };
            Box::new(GroupAggregate::new(plan, switches)?)
        }
        Op::Deduplicate {
            phase,
            keys,
            window,
            order,
            keep,
            ttl_ms,
        } => {
            let rows = input(0)?;
            let parts = Deduplication {
                phase: *phase,
                keys,
                window: window.as_ref(),
                order,
                keep,
                ttl_ms: *ttl_ms,
                retract,
            };
            deduplication(uid, parts, rows, output, switches)?
        }
        Op::WindowJoin {
            left,
            right,
            filter,
        } => {
            if retract {
                return Err(unsupported("a window join on inputs with retractions"));
            }
            Box::new(WindowJoin::new(
                &uid,
                [left, right],
                [input(0)?, input(1)?],
                filter.as_ref(),
                output,
                switches,
            )?)
        }
        Op::Materialize { key, max_rows } => {
            Box::new(Materialize::new(uid, key, *max_rows, output, switches)?)
        }
    })
}

struct Deduplication<'a> {
    phase: Phase,
    keys: &'a [usize],
    window: Option<&'a WindowBy>,
    order: &'a [SortKey],
    keep: &'a Keep,
    ttl_ms: Option<u64>,
    retract: bool,
}

fn deduplication(
    uid: String,
    d: Deduplication<'_>,
    rows: &SchemaRef,
    output: SchemaRef,
    switches: Switches,
) -> Result<Box<dyn Operator>> {
    let order = RowOrder::new(rows, d.order, matches!(d.keep, Keep::LastByTime));
    let mut types = types(rows, d.keys);
    let keys = d.keys.to_vec();
    if d.phase == Phase::Partial {
        if d.retract {
            return Err(unsupported(
                "a two-phase deduplication on an input with retractions",
            ));
        }
        let Some(window) = d.window else {
            return Err(unsupported("a two-phase deduplication without a window"));
        };
        if matches!(window, WindowBy::Attached { .. }) {
            types.push(DataType::Int64);
        }
        let shape = Shape::of_best(types, order, false, false);
        return Ok(Box::new(WindowPartial::new(
            shape,
            Windows::new(window),
            keys,
            Columns::Row,
            output,
            switches,
        )?));
    }
    if let Some(window) = d.window {
        let plan = window_aggregate::Plan {
            uid,
            shape: Shape::of_best(types, order, d.retract, d.retract),
            windows: Windows::new(window),
            keys,
            input: Input::Rows,
            columns: Columns::Row,
            emit: Emit::OnClose,
            retract: d.retract,
            output,
        };
        return Ok(Box::new(WindowAggregate::new(plan, switches)?));
    }
    if *d.keep == Keep::FirstByTime {
        if d.retract {
            return Err(unsupported(
                "the first row by time of an input with retractions",
            ));
        }
        let Some(first) = d.order.first() else {
            return Err(unsupported("the first row by time without an order"));
        };
        let plan = deduplicate::Plan {
            uid,
            keys,
            time: first.column,
            order,
            ttl_ms: d.ttl_ms,
            schema: output,
        };
        return Ok(Box::new(FirstByTime::new(plan, switches)?));
    }
    let plan = aggregate::Plan {
        uid,
        shape: Shape::of_best(types, order, d.retract, true).told_at_once(switches.at_once),
        keys,
        columns: Columns::Row,
        leaves: Leaves::Changed,
        ttl_ms: d.ttl_ms,
        output,
    };
    Ok(Box::new(GroupAggregate::new(plan, switches)?))
}

fn types(schema: &SchemaRef, columns: &[usize]) -> Vec<DataType> {
    columns
        .iter()
        .map(|c| schema.field(*c).data_type().clone())
        .collect()
}
