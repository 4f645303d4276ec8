//! Rows as a person writes them: YAML nodes to JSON, and JSON to one canonical text by the types of columns, so that rows
//! that mean the same are the same text.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use penstock_crds::manifest::tree::{Node, Value, as_bool, is_null};

use crate::error::Result;
use crate::formats::json::{JsonConfig, JsonDecoder, JsonEncoder, Timestamps};
use crate::formats::{DecodeError, Decoder, Encoder};

/// Appends the node as JSON. Numbers keep their digits; a plain text that JSON has no number for is a text.
pub fn json(node: &Node, out: &mut String) {
    match &node.value {
        Value::Scalar { text, plain } => out.push_str(&scalar(text, *plain)),
        Value::Sequence(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                json(item, out);
            }
            out.push(']');
        }
        Value::Mapping(entries) => {
            out.push('{');
            for (i, (key, value)) in entries.iter().enumerate() {
                member(i == 0, &key.name, value, out);
            }
            out.push('}');
        }
    }
}

/// Appends one member of an object.
pub fn member(first: bool, name: &str, value: &Node, out: &mut String) {
    if !first {
        out.push(',');
    }
    out.push_str(&quoted(name));
    out.push(':');
    json(value, out);
}

fn scalar(text: &str, plain: bool) -> String {
    if !plain {
        return quoted(text);
    }
    if is_null(text) {
        return "null".to_owned();
    }
    match as_bool(text) {
        Some(value) => value.to_string(),
        None if is_json_number(text) => text.to_owned(),
        None => quoted(text),
    }
}

fn is_json_number(text: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(text).is_ok()
}

/// A JSON text.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Reads rows of a sink, and shows them.
pub struct Typed {
    schema: SchemaRef,
    decoder: JsonDecoder,
}

impl Typed {
    /// By the columns of the rows that a sink gets; all may be null.
    pub fn new(schema: &Schema) -> Result<Self> {
        let fields: Vec<FieldRef> = schema
            .fields()
            .iter()
            .map(|f| Arc::new(Field::new(f.name(), readable(f.data_type()), true)))
            .collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(Self {
            decoder: JsonDecoder::new(schema.clone(), JsonConfig::default())?,
            schema,
        })
    }

    pub fn has(&self, column: &str) -> bool {
        self.schema.field_with_name(column).is_ok()
    }

    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.schema.fields().iter().map(|f| f.name().as_str())
    }

    /// The rows of these objects; what cannot be read is answered apart.
    pub fn read<'a>(
        &mut self,
        objects: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(RecordBatch, Vec<DecodeError>)> {
        for object in objects {
            self.decoder.feed(object);
        }
        self.decoder.finish()
    }

    /// One canonical text per row.
    pub fn texts(rows: &RecordBatch) -> Result<Vec<String>> {
        let mut encoder = JsonEncoder::new(Timestamps::Iso8601);
        encoder.bind(rows)?;
        (0..rows.num_rows())
            .map(|row| {
                let mut out = Vec::new();
                encoder.encode(row, &mut out)?;
                Ok(String::from_utf8_lossy(&out).into_owned())
            })
            .collect()
    }
}

/// The type by which values of a type are compared: itself where JSON is read into it, else one that holds its values.
fn readable(data_type: &DataType) -> DataType {
    let item = |f: &FieldRef| Arc::new(f.as_ref().clone().with_data_type(readable(f.data_type())));
    match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Time64(_)
        | DataType::Timestamp(..) => data_type.clone(),
        DataType::Decimal128(_, scale) if *scale >= 0 => data_type.clone(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) => DataType::Time64(TimeUnit::Nanosecond),
        DataType::List(f) | DataType::LargeList(f) => DataType::List(item(f)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(item).collect()),
        DataType::Map(entries, sorted) => match entries.data_type() {
            DataType::Struct(fields) => {
                let fields = DataType::Struct(fields.iter().map(item).collect());
                let entries = entries.as_ref().clone().with_data_type(fields);
                DataType::Map(Arc::new(entries), *sorted)
            }
            _ => DataType::Utf8,
        },
        // A text column takes any value's text.
        _ => DataType::Utf8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_what_they_look_like_and_keep_their_digits() {
        let shown = |text| scalar(text, true);
        assert_eq!(shown("12.50"), "12.50");
        assert_eq!(shown("-3"), "-3");
        assert_eq!(shown("007"), "\"007\"");
        assert_eq!(shown("~"), "null");
        assert_eq!(shown("true"), "true");
        assert_eq!(shown("yes"), "\"yes\"");
        assert_eq!(shown("2026-01-02T10:00:00"), "\"2026-01-02T10:00:00\"");
        assert_eq!(scalar("12", false), "\"12\"");
    }

    #[test]
    fn rows_that_mean_the_same_are_the_same_text() {
        let schema = Schema::new(vec![
            Field::new("d", DataType::Decimal128(12, 2), false),
            Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), true),
            Field::new("n", DataType::UInt64, true),
        ]);
        let mut typed = Typed::new(&schema).unwrap();
        let objects: [&[u8]; 2] = [
            br#"{"d":12.5,"t":"2026-01-02 10:00:00.000","n":18446744073709551615}"#,
            br#"{"n":"18446744073709551615","d":12.50,"t":"2026-01-02T10:00:00"}"#,
        ];
        let (rows, wrong) = typed.read(objects).unwrap();
        assert_eq!(wrong, []);
        let texts = Typed::texts(&rows).unwrap();
        assert_eq!(texts[0], texts[1]);
    }
}
