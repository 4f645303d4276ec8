//! Single values of a manifest: units, stand-ins, and trees as JSON.

use std::str::FromStr;

use serde_json::{Number, Value as Json};

use super::tree::{Node, Value, as_bool, as_integer, as_number, is_null};
use crate::data_type::DataType;
use crate::diagnostic::Code;
use crate::units::{Duration, Quantity, Timestamp, UnitError};

/// A type whose texts are parsed: its schema's pattern, its code, its parser, a sound text.
pub(super) type Unit = (
    &'static str,
    Code,
    fn(&str) -> Option<UnitError>,
    &'static str,
);

fn parse_error<T: FromStr<Err = UnitError>>(text: &str) -> Option<UnitError> {
    text.parse::<T>().err()
}

pub(super) const UNITS: [Unit; 4] = [
    (
        Duration::PATTERN,
        Code::DURATION,
        parse_error::<Duration>,
        "1s",
    ),
    (
        Quantity::PATTERN,
        Code::SIZE,
        parse_error::<Quantity>,
        "1Gi",
    ),
    (
        Timestamp::PATTERN,
        Code::INSTANT,
        parse_error::<Timestamp>,
        "2026-01-01T00:00:00Z",
    ),
    (
        DataType::PATTERN,
        Code::COLUMN_TYPE,
        parse_error::<DataType>,
        "STRING",
    ),
];

pub(super) fn is_null_node(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, plain: true } if is_null(text))
}

/// A sound value of a schema, for one that is not given.
pub(super) fn stand_in(schema: &Json) -> Json {
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Json::as_str);
            Json::Object(
                required
                    .map(|name| (name.to_owned(), stand_in(&schema["properties"][name])))
                    .collect(),
            )
        }
        Some("array") => Json::Array(Vec::new()),
        Some("integer" | "number") => {
            if schema["minimum"].is_null() {
                0.into()
            } else {
                schema["minimum"].clone()
            }
        }
        Some("boolean") => Json::Bool(false),
        _ => {
            let unit = UNITS
                .iter()
                .find(|(pattern, ..)| schema["pattern"] == *pattern);
            let word = schema["enum"].as_array().and_then(|words| words.first());
            word.cloned()
                .unwrap_or_else(|| Json::from(unit.map_or("x", |(.., sample)| sample)))
        }
    }
}

pub(super) fn shortened(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

pub(super) fn describe(node: &Node) -> String {
    match &node.value {
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Scalar { text, plain: true } if as_bool(text).is_some() => {
            format!("the boolean {text}")
        }
        Value::Scalar { text, plain: true } if as_number(text).is_some() => {
            format!("the number {text}")
        }
        Value::Scalar { text, .. } if text.chars().count() > 40 => "a string".to_owned(),
        Value::Scalar { text, .. } => format!("the string {text:?}"),
    }
}

/// The node as JSON, whatever it is.
pub(super) fn free(node: &Node) -> Json {
    match &node.value {
        Value::Mapping(entries) => Json::Object(
            entries
                .iter()
                .map(|(key, node)| (key.name.clone(), free(node)))
                .collect(),
        ),
        Value::Sequence(items) => Json::Array(items.iter().map(free).collect()),
        Value::Scalar { text, plain: false } => Json::String(text.clone()),
        Value::Scalar { text, plain: true } => {
            if is_null(text) {
                Json::Null
            } else if let Some(value) = as_bool(text) {
                Json::Bool(value)
            } else if let Some(number) = as_integer(text) {
                Json::Number(number.into())
            } else if let Some(number) = as_number(text)
                .filter(|_| !text.starts_with('0') || text.contains('.'))
                .and_then(Number::from_f64)
            {
                Json::Number(number)
            } else {
                Json::String(text.clone())
            }
        }
    }
}
