//! The columns of a source: type, origin, and how a generator makes them.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::data_type::DataType;
use crate::format::Empty;

/// A column of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Name in SQL; at most 128 characters.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// SQL type: BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p,s), STRING, BINARY, DATE, TIME, TIMESTAMP(0-9),
    /// TIMESTAMP_LTZ(0-9), `ARRAY<T>`, `MAP<K, V>`, `ROW<name T, …>`.
    #[serde(rename = "type")]
    pub data_type: DataType,
    /// Whether it may be null; a null in a column that may not is an error of the row. Default true.
    #[serde(default = "yes")]
    pub nullable: bool,
    /// SQL expression over the other columns that computes it. Absent: read from the body.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub computed: Option<String>,
    /// Takes it from the transport and not from the body. Absent: read from the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<TransportField>,
    /// How a generator makes it; required there, refused elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate: Option<Generate>,
}

fn yes() -> bool {
    true
}

/// What the transport knows of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransportField {
    /// The record's key: STRING or BINARY.
    Key,
    /// The record's timestamp: TIMESTAMP or TIMESTAMP_LTZ.
    Timestamp,
    /// The partition: INT or BIGINT.
    Partition,
    /// The offset, or the line in a file: BIGINT.
    Offset,
    /// The topic: STRING.
    Topic,
    /// The record's headers: MAP<STRING, BINARY> or MAP<STRING, STRING>.
    Headers,
    /// The file's path: STRING.
    Path,
}

/// How a generator makes a column; exactly one member.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("generate", &["sequence", "random", "choice", "text", "constant", "now"])]))]
pub struct Generate {
    /// start, start + step, …: numbers, dates and timestamps; a STRING is the prefix and the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Sequence>,
    /// Uniform between two values, both included: numbers, dates and timestamps; BOOLEAN without bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<Random>,
    /// One of a list, each as likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// Random letters and digits: STRING and BINARY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<RandomText>,
    /// Always the same value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant: Option<Constant>,
    /// The time at which the row was made: TIMESTAMP and TIMESTAMP_LTZ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<Empty>,
}

/// The one member of `Generate` that is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GenerateKind<'a> {
    /// `sequence`.
    Sequence(&'a Sequence),
    /// `random`.
    Random(&'a Random),
    /// `choice`.
    Choice(&'a Choice),
    /// `text`.
    Text(&'a RandomText),
    /// `constant`.
    Constant(&'a Constant),
    /// `now`.
    Now,
}

impl Generate {
    /// The given member; the first in the order of the schema if a manifest that was not validated gives several.
    pub fn kind(&self) -> Option<GenerateKind<'_>> {
        let Self {
            sequence,
            random,
            choice,
            text,
            constant,
            now,
        } = self;
        sequence
            .as_ref()
            .map(GenerateKind::Sequence)
            .or(random.as_ref().map(GenerateKind::Random))
            .or(choice.as_ref().map(GenerateKind::Choice))
            .or(text.as_ref().map(GenerateKind::Text))
            .or(constant.as_ref().map(GenerateKind::Constant))
            .or(now.as_ref().map(|_| GenerateKind::Now))
    }
}

/// Values that advance from row to row.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sequence {
    /// First value: a number, or an instant (RFC 3339) for timestamps, or a date. Default 0, or 1970-01-01T00:00:00Z.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Scalar>,
    /// What each row adds: a number, or a duration for timestamps; days for dates. Default 1, or 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Scalar>,
    /// Starts over after so many rows. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub cycle: Option<u64>,
    /// Text before the number of a STRING column. Default "".
    #[schemars(length(max = 128))]
    pub prefix: String,
}

/// Uniform values between two bounds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Random {
    /// Least value. Default 0, or 1970-01-01T00:00:00Z.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Scalar>,
    /// Greatest value; required for all but BOOLEAN, FLOAT and DOUBLE (default 1 there).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Scalar>,
}

/// One of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// The values; at least one. One that is given twice is twice as likely.
    #[schemars(length(min = 1, max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<Scalar>,
}

/// Random letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RandomText {
    /// Number of characters. Default 16.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub length: u32,
}

impl Default for RandomText {
    fn default() -> Self {
        Self { length: 16 }
    }
}

/// One value for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Constant {
    /// The value.
    pub value: Scalar,
}

/// A single value of YAML: a boolean, a number or a string.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a point or an exponent.
    Float(f64),
    /// Text.
    String(String),
}

impl JsonSchema for Scalar {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scalar".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A structural schema has no union of types but int-or-string.
        json_schema!({"x-kubernetes-preserve-unknown-fields": true})
    }
}
