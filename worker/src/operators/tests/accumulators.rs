//! Accumulators by themselves: types, states, merging, taking back.

use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use penstock_plan::graph::{Aggregate, AggregateFunction};

use super::super::accumulate::{Accumulator, Selection, Spec};

fn spec(
    function: AggregateFunction,
    arg: DataType,
    out: DataType,
    distinct: bool,
    retract: bool,
) -> Spec {
    let schema = Arc::new(Schema::new(vec![Field::new("x", arg, true)]));
    let aggregate = Aggregate {
        function,
        args: vec![0],
        filter: None,
        distinct,
        output: Arc::new(Field::new("a", out, true)),
    };
    Spec::new(&aggregate, &schema, retract)
}

fn rows<'a>(groups: &'a [u32], adds: Option<&'a [bool]>) -> Selection<'a> {
    Selection {
        groups,
        adds,
        filter: None,
    }
}

/// Half of the rows go through bytes, the other half through columns where there are any.
fn through_states(spec: &Spec, values: &ArrayRef) -> ArrayRef {
    let half = values.len() / 2;
    let part = |from: usize, len: usize| -> Box<dyn Accumulator> {
        let mut a = spec.make().unwrap();
        a.grow(1);
        a.update(&[values.slice(from, len)], rows(&vec![0; len], None))
            .unwrap();
        a
    };
    let mut whole = spec.make().unwrap();
    whole.grow(1);
    let mut bytes = Vec::new();
    part(0, half).encode(0, &mut bytes).unwrap();
    let mut left = &bytes[..];
    whole.merge_encoded(0, &mut left).unwrap();
    assert!(left.is_empty());
    let mut rest = part(half, values.len() - half);
    match rest.partial(&[0]).unwrap() {
        Some(states) => whole.merge(&states, &[0]).unwrap(),
        None => {
            let mut bytes = Vec::new();
            rest.encode(0, &mut bytes).unwrap();
            whole.merge_encoded(0, &mut &bytes[..]).unwrap();
        }
    }
    // Reading consumes nothing.
    let first = whole.result(&[0]).unwrap().remove(0);
    assert_eq!(&first, &whole.result(&[0]).unwrap().remove(0));
    first
}

#[test]
fn results_survive_states_and_have_datafusions_types() {
    use AggregateFunction as F;
    let ints: ArrayRef = Arc::new(Int64Array::from(vec![
        Some(3),
        None,
        Some(3),
        Some(-5),
        Some(9),
    ]));
    let decimal = Decimal128Array::from(vec![Some(125), Some(250), None, Some(301)]);
    let decimals: ArrayRef = Arc::new(decimal.with_precision_and_scale(12, 2).unwrap());
    let texts: ArrayRef = Arc::new(StringArray::from(vec![
        Some("pear"),
        None,
        Some("apple"),
        Some("fig"),
    ]));
    let long = |v: i64| Arc::new(Int64Array::from(vec![v])) as ArrayRef;
    let wide = |v: i128, p, s| {
        Arc::new(
            Decimal128Array::from(vec![v])
                .with_precision_and_scale(p, s)
                .unwrap(),
        ) as ArrayRef
    };
    let text = |v: &str| Arc::new(StringArray::from(vec![v])) as ArrayRef;
    let double = |v: f64| Arc::new(Float64Array::from(vec![v])) as ArrayRef;
    let stddev = F::Other(datafusion_functions_aggregate::stddev::stddev_pop_udaf());
    let cases: Vec<(F, &ArrayRef, bool, ArrayRef)> = vec![
        (F::Count, &ints, false, long(4)),
        (F::Count, &ints, true, long(3)),
        (F::Sum, &ints, true, long(7)),
        (F::Avg, &ints, false, double(2.5)),
        (F::Sum, &decimals, false, wide(676, 22, 2)),
        (F::Avg, &decimals, false, wide(2_253_333, 16, 6)),
        (F::Max, &decimals, false, wide(301, 12, 2)),
        (F::Min, &texts, false, text("apple")),
        (F::Max, &texts, false, text("pear")),
        (F::Count, &texts, true, long(3)),
        (stddev, &decimals, false, double(0.0)),
    ];
    for (function, values, distinct, expected) in cases {
        let other = matches!(function, F::Other(_));
        let values: ArrayRef = if other {
            Arc::new(Float64Array::from(vec![2.0, 2.0, 2.0]))
        } else {
            Arc::clone(values)
        };
        let s = spec(
            function.clone(),
            values.data_type().clone(),
            expected.data_type().clone(),
            distinct,
            false,
        );
        assert_eq!(
            &through_states(&s, &values),
            &expected,
            "{function:?} distinct {distinct}"
        );
    }
}

#[test]
fn the_order_of_float_additions_does_not_show() {
    let mut values: Vec<f64> = (0..1000)
        .map(|i| f64::from(i) * 0.1 + 1e9 / f64::from(i + 1))
        .collect();
    let s = spec(
        AggregateFunction::Sum,
        DataType::Float64,
        DataType::Float64,
        false,
        false,
    );
    let sum = |values: &[f64]| {
        through_states(
            &s,
            &(Arc::new(Float64Array::from(values.to_vec())) as ArrayRef),
        )
    };
    let forward = sum(&values);
    values.reverse();
    assert_eq!(&forward, &sum(&values));
    values.sort_by(|a, b| (a * 7.0 % 1.0).total_cmp(&(b * 7.0 % 1.0)));
    assert_eq!(&forward, &sum(&values));
}

#[test]
fn what_was_added_can_be_taken_back() {
    use AggregateFunction as F;
    for (function, distinct, before) in [
        (F::Count, false, 1),
        (F::Count, true, 1),
        (F::Sum, true, 4),
        (F::Min, false, 4),
        (F::Max, false, 4),
    ] {
        let s = spec(
            function.clone(),
            DataType::Int64,
            DataType::Int64,
            distinct,
            true,
        );
        let mut a = s.make().unwrap();
        a.grow(1);
        let values: ArrayRef = Arc::new(Int64Array::from(vec![7, 4, 4, 1, 7, 4, 1]));
        let adds = [true, true, true, true, false, false, false];
        a.update(&[values], rows(&[0; 7], Some(&adds))).unwrap();
        let left = a.result(&[0]).unwrap().remove(0);
        assert_eq!(
            left.as_ref(),
            &Int64Array::from(vec![before]),
            "{function:?} distinct {distinct}"
        );
    }
}
