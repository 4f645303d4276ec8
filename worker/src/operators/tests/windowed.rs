//! Windowed operators.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use penstock_plan::graph::{
    Aggregate, AggregateFunction, EdgeKind, Emit, JoinSide, Keep, Op, Phase, SortKey, Window,
    WindowBy,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::harness::*;
use crate::message::{Batch, Lane, RowKind};

const WINDOWS: [Window; 4] = [
    Window::Tumble {
        size: 10,
        offset: 0,
    },
    Window::Hop {
        slide: 5,
        size: 15,
        offset: 0,
    },
    Window::Hop {
        slide: 4,
        size: 10,
        offset: 3,
    },
    Window::Tumble { size: 7, offset: 2 },
];

/// Starts of the windows that hold `t`, by trying all.
fn starts(w: Window, t: i64) -> Vec<i64> {
    let (size, slide, offset) = match w {
        Window::Tumble { size, offset } => (size, size, offset),
        Window::Hop {
            slide,
            size,
            offset,
        } => (size, slide, offset),
    };
    (t - size + 1..=t)
        .filter(|s| (s - offset).rem_euclid(slide) == 0)
        .collect()
}

fn size(w: Window) -> i64 {
    match w {
        Window::Tumble { size, .. } | Window::Hop { size, .. } => size,
    }
}

/// A step of an input: what a source would send.
enum Step {
    Rows(Vec<Row>),
    Watermark(i64),
    Barrier { restart: bool },
}

fn script(rng: &mut ChaCha8Rng) -> Vec<Step> {
    let mut now = 0;
    let mut offset = 0;
    let mut wm = i64::MIN;
    let mut steps = Vec::new();
    for _ in 0..rng.random_range(10..60) {
        match rng.random_range(0..10) {
            0..=5 => {
                now += rng.random_range(0..6);
                let rows = (0..rng.random_range(1..30))
                    .map(|_| {
                        offset += 1;
                        Row {
                            k: rng.random_bool(0.9).then(|| rng.random_range(0..8)),
                            t: now - rng.random_range(-3..25),
                            v: rng.random_bool(0.9).then(|| rng.random_range(-50..50)),
                            offset,
                        }
                    })
                    .collect();
                steps.push(Step::Rows(rows));
            }
            6 | 7 => {
                wm = wm.max(now - rng.random_range(0..12));
                steps.push(Step::Watermark(wm));
            }
            _ => steps.push(Step::Barrier {
                restart: rng.random_bool(0.5),
            }),
        }
    }
    steps.push(Step::Watermark(i64::MAX));
    steps.push(Step::Barrier { restart: true });
    steps
}

/// Rows per (key, window) that are in time, and the late ones.
fn classify(steps: &[Step], w: Window) -> (BTreeMap<(Option<i64>, i64), Vec<Row>>, Vec<Row>) {
    let mut wm = i64::MIN;
    let mut held: BTreeMap<(Option<i64>, i64), Vec<Row>> = BTreeMap::new();
    let mut late = Vec::new();
    for step in steps {
        match step {
            Step::Watermark(t) => wm = *t,
            Step::Barrier { .. } => {}
            Step::Rows(rows) => {
                for row in rows {
                    let all = starts(w, row.t);
                    if all.last().is_none_or(|s| s + size(w) <= wm) {
                        late.push(*row);
                        continue;
                    }
                    for s in all.into_iter().filter(|s| s + size(w) > wm) {
                        held.entry((row.k, s)).or_default().push(*row);
                    }
                }
            }
        }
    }
    (held, late)
}

fn key(k: Option<i64>) -> String {
    k.map_or_else(|| "null".into(), |k| k.to_string())
}

fn expected(steps: &[Step], w: Window, distinct: bool) -> (Vec<String>, Vec<String>) {
    let (held, late) = classify(steps, w);
    let rows = held.into_iter().map(|((k, s), rows)| {
        let values: Vec<Option<i64>> = rows.iter().map(|r| r.v).collect();
        let e = s + size(w);
        format!(
            "{}|{s}|{e}|{}|{}",
            key(k),
            e - 1000,
            model(&values, distinct)
        )
    });
    (sorted(rows), sorted(text(&batch(&late, None).rows)))
}

fn by(w: Window) -> WindowBy {
    WindowBy::Time {
        column: 1,
        window: w,
    }
}

fn window_node(
    phase: Phase,
    w: Window,
    aggregates: &[Aggregate],
    emit: Emit,
) -> penstock_plan::graph::Node {
    let op = Op::WindowAggregate {
        phase,
        by: by(w),
        keys: vec![0],
        aggregates: aggregates.to_vec(),
        emit,
    };
    let k = Field::new("k", DataType::Int64, true);
    let schema = if phase == Phase::Partial {
        partial_schema()
    } else {
        window_fields(vec![k], aggregates)
    };
    node(op, schema)
}

fn partial_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("pane", DataType::Int64, false),
        Field::new("n", DataType::Int64, false),
        Field::new("s", DataType::Int64, true),
        Field::new("lo", DataType::Int64, true),
        Field::new("hi", DataType::Int64, true),
        Field::new("as", DataType::Decimal128(38, 0), true),
        Field::new("an", DataType::Int64, false),
    ]))
}

/// Runs a script through one stage in `slots` subtasks; the outputs and late rows.
fn run(steps: &[Step], mut tasks: Vec<Subtask>) -> (Vec<Batch>, Vec<String>) {
    let slots = tasks.len();
    for step in steps {
        match step {
            Step::Rows(rows) => {
                for (slot, part) in route(&batch(rows, None), &[0], slots) {
                    tasks[slot].process(0, part);
                }
            }
            Step::Watermark(t) => tasks.iter_mut().for_each(|o| o.watermark(*t)),
            Step::Barrier { restart } => {
                for o in &mut tasks {
                    o.barrier();
                    if *restart {
                        o.restart();
                    }
                }
            }
        }
    }
    let late = tasks
        .iter()
        .flat_map(|t| t.sink.late.iter().flat_map(text))
        .collect::<Vec<_>>();
    let out = tasks.into_iter().flat_map(|t| t.sink.batches).collect();
    (out, sorted(late))
}

fn appended(batches: &[Batch]) -> Vec<String> {
    assert!(batches.iter().all(|b| b.kinds.is_none()));
    sorted(batches.iter().flat_map(|b| text(&b.rows)))
}

fn single(n: &penstock_plan::graph::Node, slots: usize, rng: &mut ChaCha8Rng) -> Vec<Subtask> {
    let switches = random_switches(rng);
    shares(slots)
        .into_iter()
        .map(|groups| {
            let seed = rng.random();
            Subtask::new(
                n,
                &[input_schema()],
                None,
                &[EdgeKind::Append],
                switches,
                groups,
                seed,
            )
        })
        .collect()
}

#[test]
fn a_windowed_aggregate_equals_the_model_with_any_slots_restarts_and_full_outputs() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let steps = script(&mut rng);
        let w = WINDOWS[seed as usize % 4];
        let mut aggregates = simple_aggregates();
        aggregates.push(aggregate(
            AggregateFunction::Count,
            &[2],
            true,
            DataType::Int64,
        ));
        let n = window_node(Phase::Single, w, &aggregates, Emit::OnClose);
        let slots = [1, 2, 4][seed as usize % 3];
        let (out, late) = run(&steps, single(&n, slots, &mut rng));
        let (rows, late_rows) = expected(&steps, w, true);
        assert_eq!(appended(&out), rows, "seed {seed}");
        assert_eq!(late, late_rows, "seed {seed}");
    }
}

#[test]
fn two_phases_equal_one() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let steps = script(&mut rng);
        let w = WINDOWS[seed as usize % 4];
        let slots = [1, 2, 4][seed as usize % 3];
        let aggregates = simple_aggregates();
        let partial = window_node(Phase::Partial, w, &aggregates, Emit::OnClose);
        let last = window_node(Phase::Final, w, &aggregates, Emit::OnClose);
        let mut first: Vec<Subtask> = single(&partial, slots, &mut rng);
        let switches = random_switches(&mut rng);
        let mut finals: Vec<Subtask> = shares(slots)
            .into_iter()
            .map(|groups| {
                let late = Some(input_schema());
                Subtask::new(
                    &last,
                    &[partial_schema()],
                    late,
                    &[EdgeKind::Append],
                    switches,
                    groups,
                    rng.random(),
                )
            })
            .collect();
        let hand_on = |first: &mut Vec<Subtask>, finals: &mut Vec<Subtask>| {
            for task in first {
                for b in std::mem::take(&mut task.sink.batches) {
                    for (slot, part) in route(&b, &[0], slots) {
                        finals[slot].process(0, part);
                    }
                }
            }
        };
        for step in &steps {
            match step {
                Step::Rows(rows) => {
                    let to = rng.random_range(0..slots);
                    first[to].process(0, batch(rows, None));
                }
                Step::Watermark(t) => first.iter_mut().for_each(|o| o.watermark(*t)),
                Step::Barrier { .. } => first.iter_mut().for_each(Subtask::barrier),
            }
            hand_on(&mut first, &mut finals);
            match step {
                Step::Rows(_) => {}
                Step::Watermark(t) => finals.iter_mut().for_each(|o| o.watermark(*t)),
                Step::Barrier { restart } => {
                    for o in first.iter_mut().filter(|_| *restart) {
                        o.restart();
                    }
                    for o in &mut finals {
                        o.barrier();
                        if *restart {
                            o.restart();
                        }
                    }
                }
            }
        }
        let (rows, late_rows) = expected(&steps, w, false);
        let out: Vec<Batch> = finals.iter().flat_map(|t| t.sink.batches.clone()).collect();
        assert_eq!(appended(&out), rows, "seed {seed}");
        let late = sorted(
            finals
                .iter()
                .flat_map(|t| t.sink.late.iter().flat_map(text)),
        );
        assert_eq!(late, late_rows, "seed {seed}");
    }
}

#[test]
fn early_emission_settles_to_the_same_rows() {
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let steps = script(&mut rng);
        let w = WINDOWS[seed as usize % 4];
        let aggregates = simple_aggregates();
        let n = window_node(Phase::Single, w, &aggregates, Emit::OnUpdate);
        let (out, late) = run(&steps, single(&n, [1, 2, 4][seed as usize % 3], &mut rng));
        let mut settled = BTreeMap::new();
        settle(&out, &mut settled);
        assert!(settled.values().all(|c| *c == 1), "seed {seed}");
        let (rows, late_rows) = expected(&steps, w, false);
        assert_eq!(sorted(settled.into_keys()), rows, "seed {seed}");
        assert_eq!(late, late_rows, "seed {seed}");
    }
}

#[test]
fn open_windows_are_told_as_soon_as_the_input_has_run_dry() {
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let steps = script(&mut rng);
        let w = WINDOWS[seed as usize % 4];
        let n = window_node(Phase::Single, w, &simple_aggregates(), Emit::OnUpdate);
        let slots = [1, 2, 4][seed as usize % 3];
        let mut tasks = single(&n, slots, &mut rng);
        let at_once = tasks[0].at_once();
        let mut settled = BTreeMap::new();
        for (i, step) in steps.iter().enumerate() {
            match step {
                Step::Rows(rows) => {
                    for (slot, part) in route(&batch(rows, None), &[0], slots) {
                        tasks[slot].process(0, part);
                    }
                }
                Step::Watermark(t) => tasks.iter_mut().for_each(|o| o.watermark(*t)),
                Step::Barrier { restart } => {
                    for o in &mut tasks {
                        o.barrier();
                        if *restart {
                            o.restart();
                        }
                    }
                }
            }
            let dry = at_once && rng.random_bool(0.5);
            for o in &mut tasks {
                if dry {
                    o.dry();
                }
                settle(&std::mem::take(&mut o.sink.batches), &mut settled);
            }
            if dry || matches!(step, Step::Barrier { .. }) {
                let (rows, _) = expected(&steps[..=i], w, false);
                let told: Vec<String> = settled.keys().cloned().collect();
                assert_eq!(sorted(told), rows, "seed {seed} step {i}");
            }
        }
    }
}

fn dedup_node(phase: Phase, w: Window) -> penstock_plan::graph::Node {
    let op = Op::Deduplicate {
        phase,
        keys: vec![0],
        window: Some(by(w)),
        order: vec![SortKey {
            column: 2,
            descending: true,
            nulls_first: false,
        }],
        keep: Keep::Best,
        ttl_ms: None,
    };
    node(op, input_schema())
}

#[test]
fn the_best_row_of_a_window_is_the_models_in_one_phase_and_in_two() {
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let steps = script(&mut rng);
        let w = WINDOWS[seed as usize % 4];
        let (held, late_rows) = classify(&steps, w);
        let best: Vec<Row> = held
            .into_values()
            .map(|rows| {
                *rows
                    .iter()
                    .min_by_key(|r| (std::cmp::Reverse(r.v), r.offset))
                    .unwrap()
            })
            .collect();
        let rows = sorted(text(&batch(&best, None).rows));
        let slots = [1, 2, 4][seed as usize % 3];
        let (out, late) = run(
            &steps,
            single(&dedup_node(Phase::Single, w), slots, &mut rng),
        );
        assert_eq!(appended(&out), rows, "seed {seed}");
        assert_eq!(
            late,
            sorted(text(&batch(&late_rows, None).rows)),
            "seed {seed}"
        );
        // Two phases in one subtask each.
        let mut first = single(&dedup_node(Phase::Partial, w), 1, &mut rng).remove(0);
        let mut last = single(&dedup_node(Phase::Final, w), 1, &mut rng).remove(0);
        for step in &steps {
            match step {
                Step::Rows(rows) => first.process(0, batch(rows, None)),
                Step::Watermark(t) => first.watermark(*t),
                Step::Barrier { .. } => first.barrier(),
            }
            for b in std::mem::take(&mut first.sink.batches) {
                last.process(0, b);
            }
            match step {
                Step::Rows(_) => {}
                Step::Watermark(t) => last.watermark(*t),
                Step::Barrier { restart } => {
                    last.barrier();
                    if *restart {
                        last.restart();
                    }
                }
            }
        }
        assert_eq!(appended(&last.sink.batches), rows, "seed {seed}");
    }
}

#[test]
fn a_window_join_equals_nested_loops() {
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let steps = script(&mut rng);
        let w = WINDOWS[seed as usize % 4];
        let side = JoinSide {
            window: by(w),
            keys: vec![0],
        };
        let visible: Vec<Field> = ["k", "ts", "v"]
            .iter()
            .flat_map(|n| ["l", "r"].map(|s| format!("{s}{n}")))
            .map(|n| Field::new(n, DataType::Int64, true))
            .collect();
        let schema = Arc::new(Schema::new(vec![
            visible[0].clone(),
            Field::new("lts", time(), false),
            visible[4].clone(),
            visible[1].clone(),
            Field::new("rts", time(), false),
            visible[5].clone(),
        ]));
        let n = node(
            Op::WindowJoin {
                left: side.clone(),
                right: side,
                filter: None,
            },
            schema,
        );
        let slots = [1, 2, 4][seed as usize % 3];
        let switches = random_switches(&mut rng);
        let kinds = [EdgeKind::Append, EdgeKind::Append];
        let mut tasks: Vec<Subtask> = shares(slots)
            .into_iter()
            .map(|g| {
                Subtask::new(
                    &n,
                    &[input_schema(), input_schema()],
                    None,
                    &kinds,
                    switches,
                    g,
                    rng.random(),
                )
            })
            .collect();
        // Rows with an odd offset come from the left.
        for step in &steps {
            match step {
                Step::Rows(rows) => {
                    for port in 0..2 {
                        let part: Vec<Row> = rows
                            .iter()
                            .filter(|r| r.offset % 2 != port)
                            .copied()
                            .collect();
                        for (slot, b) in route(&batch(&part, None), &[0], slots) {
                            tasks[slot].process(port as usize, b);
                        }
                    }
                }
                Step::Watermark(t) => tasks.iter_mut().for_each(|o| o.watermark(*t)),
                Step::Barrier { restart } => {
                    for o in &mut tasks {
                        o.barrier();
                        if *restart {
                            o.restart();
                        }
                    }
                }
            }
        }
        let (held, _) = classify(&steps, w);
        let mut pairs = Vec::new();
        for ((k, _), rows) in held {
            if k.is_none() {
                continue;
            }
            for l in rows.iter().filter(|r| r.offset % 2 != 0) {
                for r in rows.iter().filter(|r| r.offset % 2 == 0) {
                    pairs.push((*l, *r));
                }
            }
        }
        let show = |r: &Row| {
            let row = text(&batch(&[*r], None).rows).remove(0);
            row.rsplitn(3, '|').nth(2).unwrap().to_string()
        };
        let rows = sorted(
            pairs
                .iter()
                .map(|(l, r)| format!("{}|{}", show(l), show(r))),
        );
        let out: Vec<Batch> = tasks.into_iter().flat_map(|t| t.sink.batches).collect();
        assert_eq!(appended(&out), rows, "seed {seed}");
    }
}

#[test]
fn rows_late_for_a_partial_travel_whole() {
    let w = Window::Tumble {
        size: 10,
        offset: 0,
    };
    let n = window_node(Phase::Partial, w, &simple_aggregates(), Emit::OnClose);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut task = single(&n, 1, &mut rng).remove(0);
    task.watermark(10);
    let row = |t| Row {
        k: Some(1),
        t,
        v: Some(1),
        offset: t,
    };
    task.process(0, batch(&[row(9), row(10)], None));
    assert_eq!(task.sink.batches.len(), 1);
    assert_eq!(task.sink.batches[0].lane, Lane::Late);
    assert_eq!(
        text(&task.sink.batches[0].rows),
        text(&batch(&[row(9)], None).rows)
    );
    assert_eq!(task.sink.batches[0].kind(0), RowKind::Insert);
}
