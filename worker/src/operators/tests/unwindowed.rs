//! Operators without windows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion_expr::{cast, col, lit};
use penstock_plan::graph::{
    Aggregate, AggregateFunction, EdgeKind, Keep, Node, Op, Phase, SortKey,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::Switches;
use super::super::calc::Calc;
use super::harness::*;
use crate::message::{Batch, RowKind};

fn tasks(n: &Node, kind: &EdgeKind, slots: usize, rng: &mut ChaCha8Rng) -> Vec<Subtask> {
    let switches = random_switches(rng);
    shares(slots)
        .into_iter()
        .map(|g| {
            let kinds = std::slice::from_ref(kind);
            Subtask::new(n, &[input_schema()], None, kinds, switches, g, rng.random())
        })
        .collect()
}

/// Drives epochs of random changes; after each, and where changes leave at once whenever the input has run dry, `check` sees
/// the rows alive and the settled output.
fn epochs(n: &Node, retract: bool, seed: u64, check: impl Fn(&BTreeSet<Row>) -> Vec<String>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let slots = [1, 2, 4][seed as usize % 3];
    let kind = if retract {
        EdgeKind::Retract
    } else {
        EdgeKind::Append
    };
    let mut tasks = tasks(n, &kind, slots, &mut rng);
    let mut alive: BTreeSet<Row> = BTreeSet::new();
    let mut settled = BTreeMap::new();
    let mut offset = 0;
    for epoch in 0..rng.random_range(3..12) {
        for _ in 0..rng.random_range(0..6) {
            let mut rows = Vec::new();
            let mut kinds = Vec::new();
            for _ in 0..rng.random_range(1..20) {
                if retract && rng.random_bool(0.4) && !alive.is_empty() {
                    let i = rng.random_range(0..alive.len());
                    let gone = *alive.iter().nth(i).unwrap();
                    alive.remove(&gone);
                    rows.push(gone);
                    kinds.push(RowKind::Delete);
                    continue;
                }
                offset += 1;
                let row = Row {
                    k: rng.random_bool(0.9).then(|| rng.random_range(0..12)),
                    t: rng.random_range(0..50),
                    v: rng.random_bool(0.9).then(|| rng.random_range(-9..9)),
                    offset,
                };
                alive.insert(row);
                rows.push(row);
                kinds.push(RowKind::Insert);
            }
            let kinds = retract.then_some(kinds);
            for (slot, part) in route(&batch(&rows, kinds), &[0], slots) {
                tasks[slot].process(0, part);
            }
            if tasks[0].at_once() && rng.random_bool(0.5) {
                for task in &mut tasks {
                    task.dry();
                    settle(&std::mem::take(&mut task.sink.batches), &mut settled);
                }
                let shown = rows_of(&settled);
                assert_eq!(shown, sorted(check(&alive)), "seed {seed} in {epoch}");
            }
        }
        let restart = rng.random_bool(0.4);
        for task in &mut tasks {
            task.barrier();
            settle(&std::mem::take(&mut task.sink.batches), &mut settled);
            if restart {
                task.restart();
            }
        }
        let shown = rows_of(&settled);
        assert_eq!(shown, sorted(check(&alive)), "seed {seed} epoch {epoch}");
    }
}

/// The rows of a settled changelog.
fn rows_of(settled: &BTreeMap<String, i64>) -> Vec<String> {
    let repeated = |(row, n): (&String, &i64)| std::iter::repeat_n(row.clone(), *n as usize);
    sorted(settled.iter().flat_map(repeated))
}

fn by_key(rows: &BTreeSet<Row>) -> BTreeMap<Option<i64>, Vec<Row>> {
    let mut keys: BTreeMap<_, Vec<Row>> = BTreeMap::new();
    for r in rows {
        keys.entry(r.k).or_default().push(*r);
    }
    keys
}

fn aggregate_node(aggregates: Vec<Aggregate>) -> Node {
    let mut fields = vec![Field::new("k", DataType::Int64, true)];
    for (i, a) in aggregates.iter().enumerate() {
        fields.push(Field::new(
            format!("a{i}"),
            a.output.data_type().clone(),
            true,
        ));
    }
    let op = Op::Aggregate {
        keys: vec![0],
        aggregates,
        ttl_ms: None,
    };
    node(op, Arc::new(Schema::new(fields)))
}

#[test]
fn an_aggregate_settles_to_the_model_after_every_epoch() {
    for seed in 0..300 {
        let mut aggregates = simple_aggregates();
        aggregates.push(aggregate(
            AggregateFunction::Count,
            &[2],
            true,
            DataType::Int64,
        ));
        let n = aggregate_node(aggregates);
        epochs(&n, seed % 2 == 0, seed, |alive| {
            by_key(alive)
                .into_iter()
                .map(|(k, rows)| {
                    let values: Vec<_> = rows.iter().map(|r| r.v).collect();
                    let k = k.map_or("null".into(), |k| k.to_string());
                    format!("{k}|{}", model(&values, true))
                })
                .collect()
        });
    }
}

#[test]
fn many_changed_keys_leave_before_the_input_has_run_dry() {
    let n = aggregate_node(simple_aggregates());
    let mut task = Subtask::new(
        &n,
        &[input_schema()],
        None,
        &[EdgeKind::Append],
        Switches {
            partial_groups: 10,
            at_once: true,
            ..Switches::default()
        },
        0..GROUPS,
        1,
    );
    let rows: Vec<Row> = (0..10)
        .map(|k| Row {
            k: Some(k),
            t: 0,
            v: Some(1),
            offset: k,
        })
        .collect();
    task.feed(0, batch(&rows[..9], None));
    assert!(task.sink.batches.is_empty());
    task.feed(0, batch(&rows[9..], None));
    let told: usize = task.sink.batches.iter().map(Batch::num_rows).sum();
    assert_eq!(told, 10);
    // Told once: neither the dry input nor the barrier says it again.
    task.dry();
    task.barrier();
    let told: usize = task.sink.batches.iter().map(Batch::num_rows).sum();
    assert_eq!(told, 10);
}

#[test]
fn changes_wait_for_the_barrier_unless_they_leave_at_once() {
    let n = aggregate_node(simple_aggregates());
    let row = |v| Row {
        k: Some(1),
        t: 0,
        v: Some(v),
        offset: v,
    };
    for at_once in [false, true] {
        let switches = Switches {
            at_once,
            ..Switches::default()
        };
        let append = [EdgeKind::Append];
        let mut task = Subtask::new(&n, &[input_schema()], None, &append, switches, 0..GROUPS, 1);
        let mut kinds = Vec::new();
        for v in 1..=3 {
            task.feed(0, batch(&[row(v)], None));
            task.dry();
        }
        task.barrier();
        for b in &task.sink.batches {
            kinds.extend((0..b.num_rows()).map(|i| b.kind(i)));
        }
        use RowKind::*;
        let expected = if at_once {
            vec![Insert, UpdateBefore, UpdateAfter, UpdateBefore, UpdateAfter]
        } else {
            vec![Insert]
        };
        assert_eq!(kinds, expected);
    }
}

#[test]
fn select_distinct_emits_each_key_once() {
    for seed in 0..100 {
        epochs(&aggregate_node(vec![]), seed % 2 == 0, seed, |alive| {
            let keys = by_key(alive).into_keys();
            keys.map(|k| k.map_or("null".into(), |k| k.to_string()))
                .collect()
        });
    }
}

fn dedup(keep: Keep, column: usize, descending: bool) -> Node {
    let op = Op::Deduplicate {
        phase: Phase::Single,
        keys: vec![0],
        window: None,
        order: vec![SortKey {
            column,
            descending,
            nulls_first: false,
        }],
        keep,
        ttl_ms: None,
    };
    node(op, input_schema())
}

#[test]
fn the_last_and_the_best_row_of_a_key_settle_to_the_model() {
    for seed in 0..200 {
        let rank = |r: &Row| (r.v.is_none(), r.v, r.offset);
        epochs(&dedup(Keep::Best, 2, false), seed % 2 == 0, seed, |alive| {
            let best = by_key(alive).into_values();
            let best: Vec<Row> = best
                .map(|rows| *rows.iter().min_by_key(|r| rank(r)).unwrap())
                .collect();
            text(&batch(&best, None).rows)
        });
        let rank = |r: &Row| std::cmp::Reverse((r.t, r.offset));
        epochs(
            &dedup(Keep::LastByTime, 1, true),
            seed % 2 == 0,
            seed,
            |alive| {
                let last = by_key(alive).into_values();
                let last: Vec<Row> = last
                    .map(|rows| *rows.iter().min_by_key(|r| rank(r)).unwrap())
                    .collect();
                text(&batch(&last, None).rows)
            },
        );
    }
}

#[test]
fn the_first_row_of_a_key_is_emitted_once_when_the_watermark_has_passed_it() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let slots = [1, 2, 4][seed as usize % 3];
        let n = dedup(Keep::FirstByTime, 1, false);
        let mut tasks = tasks(&n, &EdgeKind::Append, slots, &mut rng);
        let (mut wm, mut now, mut offset) = (i64::MIN, 0, 0);
        let mut first: BTreeMap<Option<i64>, Row> = BTreeMap::new();
        let mut late = Vec::new();
        for step in 0..60 {
            match rng.random_range(0..10) {
                0..=5 => {
                    now += rng.random_range(0..5);
                    let mut rows = Vec::new();
                    for _ in 0..rng.random_range(1..20) {
                        offset += 1;
                        let t = now - rng.random_range(0..10);
                        let row = Row {
                            k: Some(rng.random_range(0..40)),
                            t,
                            v: None,
                            offset,
                        };
                        rows.push(row);
                        if t < wm {
                            late.push(row);
                            continue;
                        }
                        let held = first.entry(row.k).or_insert(row);
                        if held.t >= wm && (t, offset) < (held.t, held.offset) {
                            *held = row;
                        }
                    }
                    for (slot, part) in route(&batch(&rows, None), &[0], slots) {
                        tasks[slot].process(0, part);
                    }
                }
                6 | 7 => {
                    wm = wm.max(now - rng.random_range(0..8));
                    tasks.iter_mut().for_each(|t| t.watermark(wm));
                }
                _ => {
                    let restart = rng.random_bool(0.5);
                    for t in &mut tasks {
                        t.barrier();
                        if restart {
                            t.restart();
                        }
                    }
                }
            }
            let passed: Vec<Row> = first.values().filter(|r| r.t < wm).copied().collect();
            let out = tasks
                .iter()
                .flat_map(|t| &t.sink.batches)
                .flat_map(|b| text(&b.rows));
            assert_eq!(
                sorted(out),
                sorted(text(&batch(&passed, None).rows)),
                "seed {seed} step {step}"
            );
        }
        let out = tasks.iter().flat_map(|t| &t.sink.late).flat_map(text);
        assert_eq!(
            sorted(out),
            sorted(text(&batch(&late, None).rows)),
            "seed {seed}"
        );
    }
}

#[test]
fn complete_mode_shows_the_whole_result_per_epoch_and_refuses_too_many_rows() {
    let n = node(
        Op::Materialize {
            key: vec![0],
            max_rows: 2,
        },
        input_schema(),
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut task = tasks(&n, &EdgeKind::Upsert(vec![0]), 1, &mut rng).remove(0);
    let row = |k, v| Row {
        k: Some(k),
        t: 0,
        v: Some(v),
        offset: 0,
    };
    let all = |task: &mut Subtask, rows: &[Row], kinds: Vec<RowKind>| {
        task.process(0, batch(rows, Some(kinds)));
        task.barrier();
        task.restart();
        let mut changes = Vec::new();
        for b in std::mem::take(&mut task.sink.batches) {
            for (i, t) in text(&b.rows).into_iter().enumerate() {
                changes.push(format!("{:?} {t}", b.kind(i)));
            }
        }
        sorted(changes)
    };
    use RowKind::*;
    let show = |kind: RowKind, r: Row| format!("{kind:?} {}", text(&batch(&[r], None).rows)[0]);
    assert_eq!(
        all(&mut task, &[row(1, 1), row(2, 2)], vec![Insert, Insert]),
        [show(Insert, row(1, 1)), show(Insert, row(2, 2))]
    );
    assert_eq!(
        all(
            &mut task,
            &[row(1, 1), row(2, 2), row(2, 3)],
            vec![Delete, UpdateBefore, UpdateAfter]
        ),
        [show(Delete, row(1, 1)), show(Insert, row(2, 3))]
    );
    assert_eq!(all(&mut task, &[], vec![]), Vec::<String>::new());
    let more = [row(4, 4), row(5, 5)];
    task.process(0, batch(&more, Some(vec![Insert, Insert])));
    let refused = task.try_barrier().unwrap_err();
    assert_eq!(refused.code, "PR0303");
}

#[test]
fn rows_that_cannot_be_evaluated_are_set_apart() {
    let schema = input_schema();
    let output = Arc::new(Schema::new(vec![Field::new("q", DataType::Int64, true)]));
    let expr = lit(100i64) / cast(col("v"), DataType::Int64);
    let mut calc = Calc::new(Some(&col("k").gt(lit(0i64))), &[expr], &schema, &output).unwrap();
    let rows: Vec<Row> = (0..50)
        .map(|i| Row {
            k: Some(i % 5),
            t: i,
            v: Some(i % 7),
            offset: i,
        })
        .collect();
    assert!(calc.apply(&batch(&rows, None), 0).is_err());
    let (good, bad) = calc.isolate(&batch(&rows, None), 0).unwrap();
    let wrong: Vec<usize> = (0..50).filter(|i| i % 7 == 0 && i % 5 > 0).collect();
    assert_eq!(bad.iter().map(|b| b.row).collect::<Vec<_>>(), wrong);
    assert!(
        bad[0].text.to_lowercase().contains("divide by zero"),
        "{}",
        bad[0].text
    );
    let fine: Vec<String> = (0..50)
        .filter(|i| i % 7 != 0 && i % 5 > 0)
        .map(|i| (100 / (i % 7)).to_string())
        .collect();
    assert_eq!(text(&good.unwrap().rows), fine);
}

#[test]
fn a_group_that_expired_starts_again() {
    let n = Node {
        op: Op::Aggregate {
            keys: vec![0],
            aggregates: vec![aggregate(
                AggregateFunction::Count,
                &[],
                false,
                DataType::Int64,
            )],
            ttl_ms: Some(1_500),
        },
        ..aggregate_node(vec![aggregate(
            AggregateFunction::Count,
            &[],
            false,
            DataType::Int64,
        )])
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut task = tasks(&n, &EdgeKind::Append, 1, &mut rng).remove(0);
    let one = [Row {
        k: Some(1),
        t: 0,
        v: None,
        offset: 0,
    }];
    // An epoch is a second.
    let mut epoch = |rows: &[Row]| {
        if !rows.is_empty() {
            task.process(0, batch(rows, None));
        }
        task.barrier();
        let out = std::mem::take(&mut task.sink.batches);
        out.iter().flat_map(|b| text(&b.rows)).collect::<Vec<_>>()
    };
    assert_eq!(epoch(&one), ["1|1"]);
    assert_eq!(epoch(&one), ["1|1", "1|2"]);
    assert!(epoch(&[]).is_empty());
    assert!(epoch(&[]).is_empty());
    assert_eq!(epoch(&one), ["1|1"]);
}
