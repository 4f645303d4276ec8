//! Types, durations, sizes and instants: what is printed is read as the same.

use penstock_crds::data_type::DataType;
use penstock_crds::units::{Duration, Quantity, Timestamp};
use proptest::prelude::*;

fn data_type() -> impl Strategy<Value = DataType> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            DataType::Boolean,
            DataType::TinyInt,
            DataType::SmallInt,
            DataType::Int,
            DataType::BigInt,
            DataType::Float,
            DataType::Double,
            DataType::String,
            DataType::Binary,
            DataType::Date,
            DataType::Time,
        ]),
        (1u8..=38).prop_flat_map(|precision| (0..=precision)
            .prop_map(move |scale| DataType::Decimal { precision, scale })),
        (0u8..=9).prop_map(DataType::Timestamp),
        (0u8..=9).prop_map(DataType::TimestampLtz),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|item| DataType::Array(Box::new(item))),
            (inner.clone(), inner.clone())
                .prop_map(|(key, value)| DataType::Map(Box::new(key), Box::new(value))),
            prop::collection::btree_map("[a-zA-Z_ ][a-zA-Z0-9_ ]{0,6}", inner, 1..4)
                .prop_map(|fields| DataType::Row(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_printed_type_is_read_as_the_same(data_type in data_type()) {
        prop_assert_eq!(data_type.to_string().parse::<DataType>().unwrap(), data_type);
    }

    #[test]
    fn a_printed_duration_is_read_as_the_same(millis in 0u64..1 << 39) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
    }

    #[test]
    fn a_printed_size_is_read_as_the_same(bytes in 0u64..=i64::MAX as u64) {
        let size = Quantity::from_bytes(bytes);
        prop_assert_eq!(size.to_string().parse::<Quantity>().unwrap(), size);
    }

    #[test]
    fn a_printed_instant_is_read_as_the_same(millis in -60_000_000_000_000i64..250_000_000_000_000) {
        let instant = Timestamp::from_epoch_millis(millis).unwrap();
        prop_assert_eq!(instant.to_string().parse::<Timestamp>().unwrap(), instant);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC{0,40}") {
        let _ = text.parse::<DataType>();
        let _ = text.parse::<Duration>();
        let _ = text.parse::<Quantity>();
        let _ = text.parse::<Timestamp>();
        let _ = penstock_crds::manifest::load(&text, "job.yaml");
    }
}

#[test]
fn aliases_and_cases_of_types_are_one() {
    for (text, expected) in [
        ("integer", "INT"),
        ("varchar", "STRING"),
        ("decimal", "DECIMAL(10,0)"),
        ("DECIMAL( 12 , 2 )", "DECIMAL(12,2)"),
        ("timestamp", "TIMESTAMP(3)"),
        (
            "Row<a int, `b c` array<string>>",
            "ROW<a INT, `b c` ARRAY<STRING>>",
        ),
        ("map<string,bigint>", "MAP<STRING, BIGINT>"),
    ] {
        assert_eq!(text.parse::<DataType>().unwrap().to_string(), expected);
    }
}
