//! The types of columns as SQL writes them: parsing and printing. What Arrow type each becomes is the engine's concern.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::{UnitError, string_serde};

/// Deepest nesting of ARRAY, MAP and ROW.
const MAX_DEPTH: usize = 16;

/// The type of a column, as SQL writes it: `STRING`, `DECIMAL(12,2)`, `ARRAY<ROW<a INT, b STRING>>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataType {
    /// `BOOLEAN`.
    Boolean,
    /// `TINYINT`: 8 bits, signed.
    TinyInt,
    /// `SMALLINT`: 16 bits, signed.
    SmallInt,
    /// `INT` (alias `INTEGER`): 32 bits, signed.
    Int,
    /// `BIGINT`: 64 bits, signed.
    BigInt,
    /// `FLOAT` (alias `REAL`): 32 bits.
    Float,
    /// `DOUBLE`: 64 bits.
    Double,
    /// `DECIMAL(precision, scale)`; precision 1 to 38 (default 10), scale 0 to precision (default 0).
    Decimal {
        /// All digits.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// `STRING` (alias `VARCHAR`, `TEXT`): UTF-8.
    String,
    /// `BINARY` (alias `BYTES`, `VARBINARY`).
    Binary,
    /// `DATE`.
    Date,
    /// `TIME`: time of day, microseconds.
    Time,
    /// `TIMESTAMP(p)`: date and time without zone, p digits of the second, 0 to 9 (default 3).
    Timestamp(u8),
    /// `TIMESTAMP_LTZ(p)`: an instant, p digits of the second, 0 to 9 (default 3).
    TimestampLtz(u8),
    /// `ARRAY<T>`.
    Array(Box<DataType>),
    /// `MAP<K, V>`.
    Map(Box<DataType>, Box<DataType>),
    /// `ROW<name TYPE, …>`: fields in their order.
    Row(Vec<(String, DataType)>),
}

impl DataType {
    /// The schema's pattern of a type: characters only, the parser says the rest.
    pub const PATTERN: &'static str = "^[A-Za-z][A-Za-z0-9_ ,()<>`]*$";

    /// Whether event time can be read from it: `TIMESTAMP` and `TIMESTAMP_LTZ`.
    pub fn is_timestamp(&self) -> bool {
        matches!(self, Self::Timestamp(_) | Self::TimestampLtz(_))
    }

    /// Whether it is one of the whole-number types.
    pub fn is_integer(&self) -> bool {
        matches!(
            self,
            Self::TinyInt | Self::SmallInt | Self::Int | Self::BigInt
        )
    }

    /// Whether it is a number: whole, decimal or floating.
    pub fn is_numeric(&self) -> bool {
        self.is_integer() || matches!(self, Self::Float | Self::Double | Self::Decimal { .. })
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::TinyInt => f.write_str("TINYINT"),
            Self::SmallInt => f.write_str("SMALLINT"),
            Self::Int => f.write_str("INT"),
            Self::BigInt => f.write_str("BIGINT"),
            Self::Float => f.write_str("FLOAT"),
            Self::Double => f.write_str("DOUBLE"),
            Self::Decimal { precision, scale } => write!(f, "DECIMAL({precision},{scale})"),
            Self::String => f.write_str("STRING"),
            Self::Binary => f.write_str("BINARY"),
            Self::Date => f.write_str("DATE"),
            Self::Time => f.write_str("TIME"),
            Self::Timestamp(digits) => write!(f, "TIMESTAMP({digits})"),
            Self::TimestampLtz(digits) => write!(f, "TIMESTAMP_LTZ({digits})"),
            Self::Array(item) => write!(f, "ARRAY<{item}>"),
            Self::Map(key, value) => write!(f, "MAP<{key}, {value}>"),
            Self::Row(fields) => {
                f.write_str("ROW<")?;
                for (i, (name, data_type)) in fields.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    if is_bare(name) {
                        write!(f, "{comma}{name} {data_type}")?;
                    } else {
                        write!(f, "{comma}`{name}` {data_type}")?;
                    }
                }
                f.write_str(">")
            }
        }
    }
}

fn is_bare(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl FromStr for DataType {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let mut parser = Parser { text, at: 0 };
        let data_type = parser.data_type(0)?;
        parser.spaces();
        if parser.at < text.len() {
            return Err(parser.error(format!(
                "unexpected \"{}\" after the type",
                &text[parser.at..]
            )));
        }
        Ok(data_type)
    }
}

const NAMES: [&str; 17] = [
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INT",
    "BIGINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "STRING",
    "BINARY",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMP_LTZ",
    "ARRAY",
    "MAP",
    "ROW",
];

/// Types that people know from elsewhere, and what to write here.
const MEANT: [(&str, &str); 14] = [
    ("BOOL", "BOOLEAN"),
    ("LONG", "BIGINT"),
    ("INT64", "BIGINT"),
    ("INT32", "INT"),
    ("SHORT", "SMALLINT"),
    ("BYTE", "TINYINT"),
    ("FLOAT32", "FLOAT"),
    ("FLOAT64", "DOUBLE"),
    ("NUMERIC", "DECIMAL"),
    ("DATETIME", "TIMESTAMP(3)"),
    ("TIMESTAMPTZ", "TIMESTAMP_LTZ(3)"),
    ("TIMESTAMP_NTZ", "TIMESTAMP(3)"),
    ("STRUCT", "ROW<…>"),
    ("BLOB", "BINARY"),
];

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self, why: impl fmt::Display) -> UnitError {
        UnitError::new(format!("\"{}\" is not a type: {why}", self.text))
    }

    fn spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn eat(&mut self, token: char) -> bool {
        self.spaces();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len_utf8();
        }
        found
    }

    fn expect(&mut self, token: char) -> Result<(), UnitError> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(self.error(format_args!(
                "expected \"{token}\" at column {}",
                self.at + 1
            )))
        }
    }

    fn word(&mut self) -> &str {
        self.spaces();
        let rest = &self.text[self.at..];
        let length = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn number(&mut self) -> Result<u8, UnitError> {
        let word = self.word().to_owned();
        word.parse()
            .map_err(|_| self.error(format_args!("expected a number, found \"{word}\"")))
    }

    fn digits(&mut self) -> Result<u8, UnitError> {
        if !self.eat('(') {
            return Ok(3);
        }
        let digits = self.number()?;
        self.expect(')')?;
        if digits > 9 {
            return Err(self.error("a timestamp has 0 to 9 digits of the second"));
        }
        Ok(digits)
    }

    fn data_type(&mut self, depth: usize) -> Result<DataType, UnitError> {
        if depth > MAX_DEPTH {
            return Err(UnitError::new(format!(
                "the type is nested deeper than {MAX_DEPTH}"
            )));
        }
        let name = self.word().to_ascii_uppercase();
        Ok(match name.as_str() {
            "BOOLEAN" => DataType::Boolean,
            "TINYINT" => DataType::TinyInt,
            "SMALLINT" => DataType::SmallInt,
            "INT" | "INTEGER" => DataType::Int,
            "BIGINT" => DataType::BigInt,
            "FLOAT" | "REAL" => DataType::Float,
            "DOUBLE" => DataType::Double,
            "DECIMAL" => self.decimal()?,
            "STRING" | "VARCHAR" | "TEXT" => DataType::String,
            "BINARY" | "BYTES" | "VARBINARY" => DataType::Binary,
            "DATE" => DataType::Date,
            "TIME" => DataType::Time,
            "TIMESTAMP" => DataType::Timestamp(self.digits()?),
            "TIMESTAMP_LTZ" => DataType::TimestampLtz(self.digits()?),
            "ARRAY" => {
                self.expect('<')?;
                let item = self.data_type(depth + 1)?;
                self.expect('>')?;
                DataType::Array(Box::new(item))
            }
            "MAP" => {
                self.expect('<')?;
                let key = self.data_type(depth + 1)?;
                self.expect(',')?;
                let value = self.data_type(depth + 1)?;
                self.expect('>')?;
                DataType::Map(Box::new(key), Box::new(value))
            }
            "ROW" => self.row(depth)?,
            "" => return Err(self.error(format_args!("expected a type at column {}", self.at + 1))),
            other => return Err(self.unknown(other)),
        })
    }

    fn decimal(&mut self) -> Result<DataType, UnitError> {
        let (mut precision, mut scale) = (10, 0);
        if self.eat('(') {
            precision = self.number()?;
            if self.eat(',') {
                scale = self.number()?;
            }
            self.expect(')')?;
        }
        if !(1..=38).contains(&precision) {
            return Err(self.error("the precision of a DECIMAL is 1 to 38"));
        }
        if scale > precision {
            return Err(self.error("the scale of a DECIMAL is at most its precision"));
        }
        Ok(DataType::Decimal { precision, scale })
    }

    fn row(&mut self, depth: usize) -> Result<DataType, UnitError> {
        self.expect('<')?;
        let mut fields: Vec<(String, DataType)> = Vec::new();
        loop {
            let name = self.field_name()?;
            if fields.iter().any(|(other, _)| *other == name) {
                return Err(self.error(format_args!("the field \"{name}\" appears twice")));
            }
            let data_type = self.data_type(depth + 1)?;
            fields.push((name, data_type));
            if !self.eat(',') {
                break;
            }
        }
        self.expect('>')?;
        Ok(DataType::Row(fields))
    }

    fn field_name(&mut self) -> Result<String, UnitError> {
        if self.eat('`') {
            let rest = &self.text[self.at..];
            let end = rest
                .find('`')
                .ok_or_else(|| self.error("a quoted name has no end"))?;
            let name = rest[..end].to_owned();
            self.at += end + 1;
            if name.is_empty() {
                return Err(self.error("a field of a ROW needs a name"));
            }
            return Ok(name);
        }
        let name = self.word().to_owned();
        if name.is_empty() {
            return Err(self.error(format_args!(
                "expected a field name at column {}",
                self.at + 1
            )));
        }
        Ok(name)
    }

    fn unknown(&self, name: &str) -> UnitError {
        let message = format!("unknown type \"{name}\"");
        let known = MEANT
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, meant)| *meant);
        let near = || {
            NAMES
                .into_iter()
                .map(|known| (strsim::damerau_levenshtein(known, name), known))
                .filter(|(distance, _)| *distance <= 2)
                .min()
                .map(|(_, known)| known)
        };
        match known.or_else(near) {
            Some(meant) => UnitError::with_help(message, format!("did you mean \"{meant}\"?")),
            None => UnitError::with_help(message, format!("types are {}", NAMES.join(", "))),
        }
    }
}

string_serde!(DataType);

impl JsonSchema for DataType {
    fn schema_name() -> Cow<'static, str> {
        "DataType".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "penstock::DataType".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 4096, "pattern": Self::PATTERN})
    }
}
