use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::clock::Millis;

/// A clock that a test moves.
#[derive(Debug, Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Millis {
        Millis::new(self.0.load(Ordering::SeqCst) as i64)
    }
    fn boot(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn config(columns: &[(&str, DataType, &str)]) -> GeneratorConfig {
    let fields: Vec<Field> = columns.iter().map(|(n, t, _)| Field::new(*n, t.clone(), true)).collect();
    GeneratorConfig {
        name: "g".to_owned(),
        schema: Arc::new(Schema::new(fields)),
        generate: columns.iter().map(|(_, _, g)| serde_json::from_str(g).unwrap()).collect(),
        seed: 1,
        rows_per_second: 0,
        rows: None,
        splits: 1,
        paced: false,
    }
}

fn read(config: GeneratorConfig, from: i64, rows: usize) -> RecordBatch {
    let source = GeneratorSource::new(config, Arc::new(Hand::default())).unwrap();
    let mut reader = source.reader().unwrap();
    let range = SplitRange {
        split: SplitId("0".into()),
        from: Position(from),
        until: None,
    };
    reader.assign(vec![range]).unwrap();
    match reader.poll(rows).unwrap() {
        Polled::Rows(batch) => batch.rows,
        other => panic!("{other:?}"),
    }
}

fn all_kinds() -> GeneratorConfig {
    let ts = DataType::Timestamp(TimeUnit::Millisecond, None);
    config(&[
        ("n", DataType::Int64, r#"{"sequence":{"start":5,"step":-2}}"#),
        ("t", ts, r#"{"sequence":{"start":"2026-01-01T00:00:00Z","step":"250ms"}}"#),
        ("d", DataType::Date32, r#"{"sequence":{"start":"2026-02-27","step":1,"cycle":3}}"#),
        ("a", DataType::Decimal128(6, 2), r#"{"random":{"min":1.5,"max":20}}"#),
        ("k", DataType::Utf8, r#"{"choice":{"values":["x","y",3]}}"#),
        ("s", DataType::Utf8, r#"{"sequence":{"prefix":"id-","start":10}}"#),
        ("f", DataType::Float64, r#"{"random":{}}"#),
        ("b", DataType::Boolean, r#"{"random":{}}"#),
        ("x", DataType::Utf8, r#"{"text":{"length":12}}"#),
        ("c", DataType::Int8, r#"{"constant":{"value":7}}"#),
    ])
}

#[test]
fn a_row_is_a_function_of_seed_and_number() {
    let all = read(all_kinds(), 0, 1000);
    assert_eq!(read(all_kinds(), 990, 10), all.slice(990, 10));
    let mut other = all_kinds();
    other.seed = 2;
    assert_ne!(read(other, 0, 1000), all);
    // A projection does not change what a column holds.
    let one = config(&[("a", DataType::Decimal128(6, 2), r#"{"random":{"min":1.5,"max":20}}"#)]);
    assert_eq!(read(one, 0, 1000).column(0), all.column_by_name("a").unwrap());
    let text = pretty_format_batches(&[all.slice(0, 4).project(&[0, 1, 2, 5, 9]).unwrap()]).unwrap().to_string();
    let lines: Vec<&str> = text.lines().skip(3).take(4).collect();
    assert_eq!(
        lines,
        [
            "| 5  | 2026-01-01T00:00:00     | 2026-02-27 | id-10 | 7 |",
            "| 3  | 2026-01-01T00:00:00.250 | 2026-02-28 | id-11 | 7 |",
            "| 1  | 2026-01-01T00:00:00.500 | 2026-03-01 | id-12 | 7 |",
            "| -1 | 2026-01-01T00:00:00.750 | 2026-02-27 | id-13 | 7 |",
        ]
    );
    let a = all.column_by_name("a").unwrap();
    let a = a.as_primitive::<arrow::datatypes::Decimal128Type>();
    assert!(a.values().iter().all(|v| (150..=2000).contains(v)));
    let f = all.column_by_name("f").unwrap();
    let mean = f.as_primitive::<arrow::datatypes::Float64Type>().values().iter().sum::<f64>() / 1000.0;
    assert!((0.45..0.55).contains(&mean), "{mean}");
}

#[test]
fn what_cannot_be_made_is_refused() {
    for (data_type, generate) in [
        (DataType::Int64, r#"{"text":{"length":3}}"#),
        (DataType::Int64, r#"{"random":{"min":1}}"#),
        (DataType::Int64, r#"{"random":{"min":3,"max":1}}"#),
        (DataType::Int8, r#"{"constant":{"value":300}}"#),
        (DataType::Utf8, r#"{"now":{}}"#),
        (DataType::new_list(DataType::Int64, true), r#"{"constant":{"value":1}}"#),
        (DataType::Int64, "{}"),
    ] {
        let config = config(&[("n", data_type.clone(), generate)]);
        let made = GeneratorSource::new(config, Arc::new(Hand::default()));
        assert_eq!(made.unwrap_err().code, "PS0036", "{data_type} {generate}");
    }
}

#[tokio::test]
async fn the_rate_is_kept_by_the_injected_clock() {
    let clock = Arc::new(Hand::default());
    let mut config = config(&[("n", DataType::Int64, r#"{"sequence":{}}"#)]);
    config.rows_per_second = 100;
    config.paced = true;
    let source = GeneratorSource::new(config, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let mut reader = source.reader().unwrap();
    let waker = Arc::new(Notify::new());
    reader.set_waker(Arc::clone(&waker));
    let split = SplitId("0".into());
    let range = SplitRange {
        split: split.clone(),
        from: Position(7),
        until: None,
    };
    reader.assign(vec![range]).unwrap();
    assert!(matches!(reader.poll(1000).unwrap(), Polled::Empty));
    waker.notified().await;
    let mut next = |ms| {
        clock.0.store(ms, Ordering::SeqCst);
        match reader.poll(1000).unwrap() {
            Polled::Rows(batch) => batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec(),
            Polled::Empty => vec![],
            Polled::Done => panic!("it has no end"),
        }
    };
    assert_eq!(next(9), [0i64; 0]);
    assert_eq!(next(25), [7, 8]);
    assert_eq!(next(31), [9]);
    // No more than a second's rows after a standstill.
    assert_eq!(next(60_031).len(), 100);
    assert_eq!(next(60_041).len(), 1);
    let mut enumerator = source.enumerator().unwrap();
    enumerator.discover(&[(split.clone(), Position(50))].into(), false).await.unwrap();
    clock.0.store(61_041, Ordering::SeqCst);
    let ends = enumerator.ends(std::slice::from_ref(&split)).await.unwrap();
    assert_eq!(ends[&split], Position(150));
}
