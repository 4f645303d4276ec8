use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes as t;
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, SchemaRef, TimeUnit};
use proptest::prelude::*;

use super::*;
use crate::formats::Encoder as _;

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

fn decoder(fields: Vec<Field>) -> JsonDecoder {
    JsonDecoder::new(schema(fields), JsonConfig::default()).unwrap()
}

fn decode_one(
    data_type: DataType,
    mode: Timestamps,
    value: &str,
) -> Result<RecordBatch, DecodeError> {
    let config = JsonConfig {
        timestamps: mode,
        ..JsonConfig::default()
    };
    let mut d = JsonDecoder::new(schema(vec![Field::new("v", data_type, true)]), config).unwrap();
    d.feed(format!("{{\"v\":{value}}}").as_bytes());
    let (rows, mut errors) = d.finish().unwrap();
    match errors.pop() {
        Some(error) => {
            assert_eq!(rows.num_rows(), 0);
            Err(error)
        }
        None => Ok(rows),
    }
}

fn code_of(data_type: DataType, value: &str) -> &'static str {
    decode_one(data_type, Timestamps::Iso8601, value).map_or_else(|e| e.code, |_| "ok")
}

fn encoded(rows: &RecordBatch, row: usize) -> String {
    let mut encoder = JsonEncoder::new(Timestamps::Iso8601);
    encoder.bind(rows).unwrap();
    let mut out = Vec::new();
    encoder.encode(row, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What a value becomes when it is read as `data_type` and written again.
fn through(data_type: DataType, value: &str) -> String {
    match decode_one(data_type, Timestamps::Iso8601, value) {
        Ok(rows) => {
            let text = encoded(&rows, 0);
            text["{\"v\":".len()..text.len() - 1].to_owned()
        }
        Err(e) => e.code.to_owned(),
    }
}

#[test]
fn whole_numbers_come_as_numbers_or_strings_like_in_flink() {
    for (value, expected) in [
        ("123", "123"),
        ("\"123\"", "123"),
        ("\" -7 \"", "-7"),
        ("-0", "0"),
        ("1.0", "1"),
        ("1e3", "1000"),
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775808", "PR0202"),
        ("1.5", "PR0202"),
        ("\"12x\"", "PR0202"),
        ("\"\"", "PR0202"),
        ("true", "PR0202"),
        ("{}", "PR0202"),
        ("01", "PR0201"),
        ("1.", "PR0201"),
        ("+1", "PR0201"),
        ("-", "PR0201"),
    ] {
        assert_eq!(through(DataType::Int64, value), expected, "{value}");
    }
    assert_eq!(through(DataType::Int8, "128"), "PR0202");
    assert_eq!(through(DataType::Int32, "-2147483648"), "-2147483648");
    assert_eq!(code_of(DataType::Int64, &"9".repeat(100_000)), "PR0202");
    assert_eq!(code_of(DataType::Int64, "1e999999999"), "PR0202");
}

#[test]
fn decimals_round_half_up_and_refuse_what_does_not_fit() {
    let decimal = DataType::Decimal128(12, 2);
    for (value, expected) in [
        ("1", "1.00"),
        ("1.005", "1.01"),
        ("-1.005", "-1.01"),
        ("1.004", "1.00"),
        ("\"12.5\"", "12.50"),
        ("1e2", "100.00"),
        ("1E-2", "0.01"),
        ("0.0000001", "0.00"),
        ("-0.01", "-0.01"),
        ("9999999999.99", "9999999999.99"),
        ("9999999999.999", "PR0202"),
        ("1e400", "PR0202"),
        ("0e2147483647", "0.00"),
        ("1e-2147483648", "0.00"),
        ("\"x\"", "PR0202"),
        ("\".\"", "PR0202"),
    ] {
        assert_eq!(through(decimal.clone(), value), expected, "{value}");
    }
    let wide = DataType::Decimal128(38, 0);
    let nines = "9".repeat(38);
    assert_eq!(through(wide, &nines), nines);
}

#[test]
fn floats_are_exact_and_finite() {
    for (value, expected) in [
        ("1", "1.0"),
        ("0.1", "0.1"),
        ("1e300", "1e300"),
        ("\"NaN\"", "\"NaN\""),
        ("\"-Infinity\"", "\"-Infinity\""),
        ("1e999", "PR0202"),
        ("\"inf\"", "PR0202"),
        ("NaN", "PR0201"),
    ] {
        assert_eq!(through(DataType::Float64, value), expected, "{value}");
    }
    assert_eq!(code_of(DataType::Float32, "1e39"), "PR0202");
}

#[test]
fn strings_take_any_text_and_resolve_escapes() {
    for (value, expected) in [
        (r#""a\nb\u00e9\ud83d\ude00\/""#, "\"a\\nbé😀/\""),
        (r#""\u0000""#, "\"\\u0000\""),
        ("12.50", "\"12.50\""),
        ("true", "\"true\""),
        (r#"{"a": [1, 2]}"#, r#""{\"a\": [1, 2]}""#),
        (r#""\ud83d""#, "PR0201"),
        (r#""\ud83dx""#, "PR0201"),
        (r#""\x""#, "PR0201"),
        (r#""\u12g4""#, "PR0201"),
        ("\"a\nb\"", "PR0201"),
        ("\"a\0b\"", "PR0201"),
    ] {
        assert_eq!(through(DataType::Utf8, value), expected, "{value}");
    }
    assert_eq!(through(DataType::Binary, "\"aGVsbG8=\""), "\"aGVsbG8=\"");
    assert_eq!(code_of(DataType::Binary, "\"a\""), "PR0202");
    assert_eq!(through(DataType::Boolean, "\"true\""), "true");
    assert_eq!(code_of(DataType::Boolean, "1"), "PR0202");
}

#[test]
fn times_are_read_in_all_their_forms_and_written_in_one() {
    let millis = DataType::Timestamp(TimeUnit::Millisecond, None);
    let expected = "\"2026-01-02T03:04:05.678\"";
    for value in [
        "\"2026-01-02T03:04:05.678\"",
        "\"2026-01-02 03:04:05.678\"",
        "\"2026-01-02 03:04:05.678999\"",
        "\"2026-01-02T03:04:05.678Z\"",
        "\"2026-01-02T05:04:05.678+02:00\"",
        "\"2026-01-01T22:34:05.678-0430\"",
    ] {
        assert_eq!(through(millis.clone(), value), expected, "{value}");
    }
    for value in [
        "\"2026-02-29T00:00:00\"",
        "\"2026-13-01T00:00:00\"",
        "\"2026-01-01T24:00:00\"",
        "\"2026-01-01T00:00:00.\"",
        "\"99999-01-01T00:00:00\"",
        "\"9999-12-31T23:59:59-01:00\"",
        "\"yesterday\"",
        "\"\"",
        "\"é026-01-02T03:04:05\"",
        "1767323045678",
    ] {
        assert_eq!(code_of(millis.clone(), value), "PR0202", "{value}");
    }
    let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    assert_eq!(
        through(instant, "\"1969-12-31 23:59:59.999999\""),
        "\"1969-12-31T23:59:59.999999Z\""
    );
    let nanos = DataType::Timestamp(TimeUnit::Nanosecond, None);
    assert_eq!(code_of(nanos, "\"9000-01-01T00:00:00\""), "PR0202");
    assert_eq!(
        through(DataType::Date32, "\"2000-02-29\""),
        "\"2000-02-29\""
    );
    assert_eq!(
        through(DataType::Time64(TimeUnit::Microsecond), "\"23:59:59.5\""),
        "\"23:59:59.500000\""
    );
    for (mode, value) in [
        (Timestamps::EpochMillis, "1767323045678"),
        (Timestamps::EpochMicros, "1767323045678999"),
        (Timestamps::EpochMillis, "\"1767323045678\""),
    ] {
        let rows = decode_one(millis.clone(), mode, value).unwrap();
        assert_eq!(encoded(&rows, 0), format!("{{\"v\":{expected}}}"));
    }
    for value in [
        "9223372036854775807",
        "-9223372036854775808",
        "1.5",
        "\"2026\\u002d\"",
    ] {
        let e = decode_one(millis.clone(), Timestamps::EpochMillis, value).unwrap_err();
        assert_eq!(e.code, "PR0202", "{value}");
    }
}

#[test]
fn every_day_of_ten_thousand_years_comes_back() {
    let mut text = Vec::new();
    for day in time::MIN_DAY..=time::MAX_DAY {
        text.clear();
        time::write_date(day, &mut text);
        assert_eq!(time::parse_date(&text), Some(day));
    }
}

#[test]
fn only_the_bad_record_is_reported_whatever_is_wrong_with_it() {
    let inner = Fields::from(vec![
        Field::new("x", DataType::Int64, true),
        Field::new("l", DataType::new_list(DataType::Utf8, true), true),
    ]);
    let mut d = decoder(vec![
        Field::new("a", DataType::Int64, false),
        Field::new("s", DataType::Struct(inner), true),
        Field::new("t", DataType::Utf8, true),
    ]);
    let deep = format!(
        "{{\"a\":1,\"z\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let large = format!("{{\"a\":1,\"t\":\"{}\"}}", "x".repeat(20 << 20));
    let bad: Vec<(&[u8], &str)> = vec![
        (b"", "PR0201"),
        (b"   ", "PR0201"),
        (b"null", "PR0201"),
        (b"[1]", "PR0201"),
        (b"\"a\"", "PR0201"),
        (b"{", "PR0201"),
        (b"{\"a\":1", "PR0201"),
        (b"{\"a\":1,}", "PR0201"),
        (b"{,\"a\":1}", "PR0201"),
        (b"{\"a\" 1}", "PR0201"),
        (b"{\"a\":1}{\"a\":2}", "PR0201"),
        (b"{\"a\":1} x", "PR0201"),
        (b"{\"a\":1}\0", "PR0201"),
        (b"\0\0\0", "PR0201"),
        (b"{\"a\":1,\"t\":\"\xff\"}", "PR0201"),
        (b"{\"a\":1,\"unread\":tru}", "PR0201"),
        (b"{\"a\":1,\"unread\":[1,,2]}", "PR0201"),
        (
            b"{\"a\":1,\"s\":{\"x\":2,\"l\":[\"q\",\"r\"],\"x\":{}}}",
            "PR0202",
        ),
        (b"{\"a\":1,\"s\":{\"x\":2,\"l\":[\"q\",\"r\"", "PR0201"),
        (b"{\"a\":1,\"s\":[]}", "PR0202"),
        (b"{\"t\":\"x\"}", "PR0203"),
        (b"{\"a\":null}", "PR0203"),
        (deep.as_bytes(), "PR0201"),
        (large.as_bytes(), "PR0204"),
    ];
    for (i, (record, _)) in bad.iter().enumerate() {
        d.feed(record);
        d.feed(format!("{{\"t\":\"t{i}\",\"a\":{i},\"s\":{{\"l\":[\"l{i}\",null]}}}}").as_bytes());
    }
    assert_eq!(d.pending(), 2 * bad.len());
    let (rows, errors) = d.finish().unwrap();
    assert_eq!(rows.num_rows(), bad.len());
    for i in 0..bad.len() {
        let expected =
            format!("{{\"a\":{i},\"s\":{{\"x\":null,\"l\":[\"l{i}\",null]}},\"t\":\"t{i}\"}}");
        assert_eq!(encoded(&rows, i), expected);
    }
    let got: Vec<_> = errors.iter().map(|e| (e.record, e.code)).collect();
    let expected: Vec<_> = bad
        .iter()
        .enumerate()
        .map(|(i, (_, code))| (2 * i, *code))
        .collect();
    assert_eq!(got, expected);
    assert_eq!(d.pending(), 0);
}

#[test]
fn faults_name_the_field_and_show_the_value() {
    let inner = Fields::from(vec![Field::new("x", DataType::Decimal128(5, 2), true)]);
    let mut d = decoder(vec![Field::new("s", DataType::Struct(inner), true)]);
    d.feed(br#"{"s":{"x":"abc"}}"#);
    let (_, errors) = d.finish().unwrap();
    assert_eq!(
        errors[0].text,
        "s.x: expected DECIMAL(5,2), found `\\\"abc\\\"`"
    );
}

#[test]
fn the_last_of_a_repeated_name_counts_and_missing_is_null() {
    let mut d = decoder(vec![
        Field::new("a", DataType::new_list(DataType::Int64, true), true),
        Field::new("b", DataType::Utf8, true),
    ]);
    for record in [
        r#"{"a":[1,2],"b":"x","a":[3],"b":null}"#,
        r#"{"b":"1"}"#,
        r#" {"c":{"a":[9]},"\u0061":[4]} "#,
        "{}",
    ] {
        d.feed(record.as_bytes());
    }
    let (rows, errors) = d.finish().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    let got: Vec<_> = (0..4).map(|i| encoded(&rows, i)).collect();
    assert_eq!(
        got,
        [
            r#"{"a":[3],"b":null}"#,
            r#"{"a":null,"b":"1"}"#,
            r#"{"a":[4],"b":null}"#,
            r#"{"a":null,"b":null}"#
        ]
    );
}

/// Members are guessed from the records before: no order, gap or change of it may change what is read.
#[test]
fn members_are_read_in_every_order_with_and_without_the_others() {
    let names = ["a", "bb", "a name of more than sixteen bytes", "d"];
    let fields = names.map(|n| Field::new(n, DataType::Int64, true)).to_vec();
    let mut d = decoder(fields);
    let mut expected: Vec<[Option<i64>; 4]> = Vec::new();
    for turn in 0..200i64 {
        let mut row = [None; 4];
        let mut members = Vec::new();
        for k in 0..4 {
            // Another order, and another member left out, each time.
            let i = usize::try_from((k * 3 + turn) % 4).unwrap();
            if (turn * 7 + k) % 5 != 0 {
                row[i] = Some(turn * 10 + k);
                let space = if turn % 3 == 0 { " " } else { "" };
                members.push(format!("\"{}\"{space}:{space}{}", names[i], turn * 10 + k));
            }
            if (turn + k) % 2 == 0 {
                members.push(format!(r#""unread {}":{{"a":[1,"\u0041"]}}"#, turn % 7));
            }
        }
        assert!(d.feed(format!("{{{}}}", members.join(",")).as_bytes()));
        expected.push(row);
    }
    let (rows, _) = d.finish().unwrap();
    for (i, column) in rows.columns().iter().enumerate() {
        let read: Vec<Option<i64>> = column.as_primitive::<Int64Type>().iter().collect();
        let wanted: Vec<Option<i64>> = expected.iter().map(|row| row[i]).collect();
        assert_eq!(read, wanted, "{}", names[i]);
    }
}

#[test]
fn an_object_of_a_thousand_names_is_read_as_one_of_few() {
    let mut d = decoder(vec![
        Field::new("m0", DataType::Int64, true),
        Field::new("m999", DataType::Int64, true),
    ]);
    for turn in 0..3 {
        let members = (0..1000).map(|i| format!("\"m{i}\":{}", i + turn));
        let record = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
        assert!(d.feed(record.as_bytes()));
    }
    let (rows, _) = d.finish().unwrap();
    let column = |i: usize| rows.column(i).as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(
        (column(0), column(1)),
        (vec![0, 1, 2], vec![999, 1000, 1001])
    );
}

#[test]
fn bytes_that_are_no_text_are_refused_wherever_they_stand() {
    let long = "x".repeat(40);
    for (record, good) in [
        ("{\"v\":\"\u{e9}\"}".as_bytes().to_vec(), true),
        (
            format!("{{\"unread\":\"{long}\u{1f600}{long}\"}}").into_bytes(),
            true,
        ),
        (b"{\"v\":\"\xff\"}".to_vec(), false),
        (b"{\"unread\":\"0123456789abcdef\xc3\"}".to_vec(), false),
        (b"{\"unread\":{\"\xc3\x28\":1}}".to_vec(), false),
        (b"{\"\xe9\":1}".to_vec(), false),
        (b"{\"v\":\xff}".to_vec(), false),
        (b"\xff{}".to_vec(), false),
        (b"{}\xff".to_vec(), false),
    ] {
        let mut d = decoder(vec![Field::new("v", DataType::Utf8, true)]);
        let text = String::from_utf8_lossy(&record);
        assert_eq!(d.feed(&record), good, "{text}");
        // Whatever was learned from a bad record must not let it through the next time.
        assert_eq!(d.feed(&record), good, "{text}");
        assert_eq!(d.finish().unwrap().0.num_rows(), if good { 2 } else { 0 });
    }
}

#[test]
fn maps_and_nothing_at_all_are_read() {
    let entries = Fields::from(vec![
        Field::new("keys", DataType::Int64, false),
        Field::new("values", DataType::Utf8, true),
    ]);
    let map = DataType::Map(
        Arc::new(Field::new("entries", DataType::Struct(entries), false)),
        false,
    );
    assert_eq!(
        through(map.clone(), r#"{"1":"a","2":null}"#),
        r#"{"1":"a","2":null}"#
    );
    assert_eq!(code_of(map, r#"{"x":"a"}"#), "PR0202");
    let mut d = decoder(vec![]);
    d.feed(b"{\"x\":1}");
    d.feed(b"{");
    let (rows, errors) = d.finish().unwrap();
    assert_eq!((rows.num_rows(), errors.len()), (1, 1));
}

#[test]
fn batches_follow_each_other() {
    let mut d = decoder(vec![Field::new("a", DataType::Int64, true)]);
    for batch in 0..3 {
        for i in 0..10 {
            d.feed(format!("{{\"a\":{}}}", batch * 10 + i).as_bytes());
        }
        let (rows, _) = d.finish().unwrap();
        let a = rows.column(0).as_primitive::<Int64Type>();
        assert_eq!(
            a.values(),
            &(batch * 10..batch * 10 + 10).collect::<Vec<i64>>()[..]
        );
    }
}

/// A wide schema for random records.
fn random_schema() -> SchemaRef {
    let inner = Fields::from(vec![
        Field::new("i", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("l", DataType::new_list(DataType::Int64, true), true),
    ]);
    schema(vec![
        Field::new("b", DataType::Boolean, true),
        Field::new("i", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("o", DataType::Struct(inner.clone()), true),
        Field::new(
            "os",
            DataType::new_list(DataType::Struct(inner), true),
            true,
        ),
        Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ])
}

fn random_record() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    fn maybe<S: Strategy<Value = Value>>(s: S) -> impl Strategy<Value = Option<Value>> {
        prop_oneof![1 => Just(None), 1 => Just(Some(Value::Null)), 6 => s.prop_map(Some)]
    }
    fn object(members: Vec<(&str, Option<Value>)>) -> Value {
        let members = members
            .into_iter()
            .filter_map(|(n, v)| Some((n.to_owned(), v?)));
        Value::Object(members.collect())
    }
    fn inner() -> impl Strategy<Value = Value> {
        (
            maybe(any::<i64>().prop_map(|v| json!(v))),
            maybe(any::<String>().prop_map(|v| json!(v))),
            maybe(prop::collection::vec(any::<Option<i64>>(), 0..4).prop_map(|v| json!(v))),
            maybe(any::<String>().prop_map(|v| json!({"deeper": [v, {}]}))),
        )
            .prop_map(|(i, s, l, u)| object(vec![("i", i), ("u", u), ("s", s), ("l", l)]))
    }
    let time = (0i64..4_000_000_000_000).prop_map(|ms| {
        let mut text = Vec::new();
        time::write_timestamp(ms, TimeUnit::Millisecond, &mut text);
        json!(String::from_utf8(text).expect("digits"))
    });
    (
        maybe(any::<bool>().prop_map(|v| json!(v))),
        maybe(any::<i64>().prop_map(|v| json!(v))),
        maybe((-1e15..1e15f64).prop_map(|v| json!(v))),
        maybe(any::<String>().prop_map(|v| json!(v))),
        maybe(inner()),
        maybe(prop::collection::vec(inner(), 0..3).prop_map(|v| json!(v))),
        maybe(time),
    )
        .prop_map(|(b, i, f, s, o, os, t)| {
            object(vec![
                ("o", o),
                ("b", b),
                ("i", i),
                ("f", f),
                ("s", s),
                ("os", os),
                ("t", t),
            ])
        })
}

fn arrow_decode(records: &[String]) -> RecordBatch {
    let mut decoder = arrow_json::ReaderBuilder::new(random_schema())
        .with_batch_size(1 << 20)
        .build_decoder()
        .unwrap();
    for record in records {
        assert_eq!(decoder.decode(record.as_bytes()).unwrap(), record.len());
    }
    decoder.flush().unwrap().unwrap()
}

proptest! {
    #[test]
    fn good_records_decode_as_arrow_json_decodes_them(records in prop::collection::vec(random_record(), 1..20)) {
        let records: Vec<String> = records.iter().map(ToString::to_string).collect();
        let mut d = JsonDecoder::new(random_schema(), JsonConfig::default()).unwrap();
        for record in &records {
            d.feed(record.as_bytes());
        }
        let (rows, errors) = d.finish().unwrap();
        prop_assert!(errors.is_empty(), "{errors:?}");
        prop_assert_eq!(&rows, &arrow_decode(&records));
        // What the encoder writes is JSON that decodes to the same rows.
        for i in 0..rows.num_rows() {
            let text = encoded(&rows, i);
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
            d.feed(text.as_bytes());
        }
        let (again, errors) = d.finish().unwrap();
        prop_assert!(errors.is_empty(), "{errors:?}");
        prop_assert_eq!(rows, again);
    }

    #[test]
    fn damaged_records_never_panic_and_never_touch_their_neighbours(
        record in random_record(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let good = record.to_string();
        let mut bytes = good.clone().into_bytes();
        let i = at.index(bytes.len());
        if cut { bytes.truncate(i) } else { bytes[i] = byte }
        let mut d = JsonDecoder::new(random_schema(), JsonConfig::default()).unwrap();
        d.feed(good.as_bytes());
        d.feed(&bytes);
        d.feed(good.as_bytes());
        let (rows, errors) = d.finish().unwrap();
        prop_assert_eq!(rows.num_rows() + errors.len(), 3);
        prop_assert!(errors.iter().all(|e| e.record == 1));
        let expected = arrow_decode(std::slice::from_ref(&good));
        prop_assert_eq!(rows.slice(0, 1), expected.clone());
        prop_assert_eq!(rows.slice(rows.num_rows() - 1, 1), expected);
        // What the grammar refuses, we refuse.
        if !cut && errors.is_empty() {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
        }
    }

    #[test]
    fn any_bytes_are_a_row_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut d = JsonDecoder::new(random_schema(), JsonConfig::default()).unwrap();
        d.feed(&bytes);
        let (rows, errors) = d.finish().unwrap();
        prop_assert_eq!(rows.num_rows() + errors.len(), 1);
    }
}

#[test]
fn integers_of_all_lengths_are_written() {
    let values: Vec<i64> = (0..63)
        .flat_map(|s| [1i64 << s, -(1i64 << s), (1i64 << s) - 1])
        .collect();
    let rows = RecordBatch::try_from_iter([(
        "v",
        Arc::new(arrow::array::PrimitiveArray::<t::Int64Type>::from(
            values.clone(),
        )) as _,
    )])
    .unwrap();
    for (i, v) in values.iter().enumerate() {
        assert_eq!(encoded(&rows, i), format!("{{\"v\":{v}}}"));
    }
    assert!(rows.column(0).is_valid(0));
}
