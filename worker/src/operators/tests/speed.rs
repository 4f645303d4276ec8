//! Rows per second of the hot paths, for people: `cargo test --release -p penstock-worker operators::tests::speed -- --ignored --nocapture`.

use std::time::Instant;

use penstock_plan::graph::{EdgeKind, Emit, Op, Phase, Window, WindowBy};

use super::super::Switches;
use super::harness::*;

#[test]
#[ignore = "prints figures; decides nothing"]
fn partial_count_and_sum_by_an_integer_key() {
    let w = Window::Tumble {
        size: 1_000_000,
        offset: 0,
    };
    let aggregates = simple_aggregates()[..2].to_vec();
    let partial = std::sync::Arc::new(arrow::datatypes::Schema::new(vec![
        arrow::datatypes::Field::new("k", arrow::datatypes::DataType::Int64, true),
        arrow::datatypes::Field::new("pane", arrow::datatypes::DataType::Int64, false),
        arrow::datatypes::Field::new("n", arrow::datatypes::DataType::Int64, false),
        arrow::datatypes::Field::new("s", arrow::datatypes::DataType::Int64, true),
    ]));
    for keys in [100i64, 10_000, 100_000] {
        let op = Op::WindowAggregate {
            phase: Phase::Partial,
            by: WindowBy::Time {
                column: 1,
                window: w,
            },
            keys: vec![0],
            aggregates: aggregates.clone(),
            emit: Emit::OnClose,
        };
        let n = node(op, partial.clone());
        let mut task = Subtask::new(
            &n,
            &[input_schema()],
            None,
            &[EdgeKind::Append],
            Switches::default(),
            0..GROUPS,
            1,
        );
        let batches: Vec<_> = (0..64i64)
            .map(|b| {
                let rows: Vec<Row> = (0..4096)
                    .map(|i| {
                        let n = b * 4096 + i;
                        let k = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15u64 as i64)).rem_euclid(keys);
                        Row {
                            k: Some(k),
                            t: n,
                            v: Some(i),
                            offset: n,
                        }
                    })
                    .collect();
                batch(&rows, None)
            })
            .collect();
        let start = Instant::now();
        let rounds = 40;
        for _ in 0..rounds {
            for b in &batches {
                task.process(0, b.clone());
            }
        }
        let rows = f64::from(rounds) * 64.0 * 4096.0;
        println!(
            "{keys} keys: {:.1} M rows/s",
            rows / start.elapsed().as_secs_f64() / 1e6
        );
    }
}
