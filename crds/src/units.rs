//! Units as people write them in a manifest: durations (`10s`), byte sizes (`128Mi`) and instants (RFC 3339).
//!
//! Each type parses, prints and describes itself in the schema; bounds of a particular field belong to `validate`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a unit's value; says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnitError {
    message: String,
    help: Option<String>,
}

impl UnitError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// What to write instead, where that is known.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// Serde through `Display` and `FromStr`, for types that are strings in YAML.
macro_rules! string_serde {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use string_serde;

/// A span of time, whole milliseconds, written as one number and one unit: `500ms`, `10s`, `5m`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(u64);

impl Duration {
    /// The schema's pattern of a duration.
    pub const PATTERN: &'static str = "^[0-9]{1,12}(ms|s|m|h)$";

    /// A duration of that many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// A duration of that many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000)
    }

    /// The duration in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The duration as the standard library's type.
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.as_std()
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const FORMS: &str = "a duration is a number and one unit: 500ms, 10s, 5m or 2h";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if unit == "d" && digits > 0 {
            // A day is not always 24 hours; a person who means 24 hours can say so.
            let hours = number
                .parse::<u64>()
                .ok()
                .and_then(|days| days.checked_mul(24));
            let instead = hours.map_or_else(|| "24h".to_owned(), |hours| format!("{hours}h"));
            return Err(UnitError::with_help(
                format!("\"{text}\" is not a duration: days are not a unit"),
                format!("write \"{instead}\""),
            ));
        }
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => {
                return Err(UnitError::with_help(
                    format!("\"{text}\" is not a duration"),
                    FORMS,
                ));
            }
        };
        if digits == 0 {
            return Err(UnitError::with_help(
                format!("\"{text}\" is not a duration"),
                FORMS,
            ));
        }
        number
            .parse::<u64>()
            .ok()
            .filter(|_| digits <= 12)
            .and_then(|number| number.checked_mul(factor))
            .filter(|millis| *millis <= i64::MAX as u64)
            .map(Self)
            .ok_or_else(|| UnitError::new(format!("\"{text}\" is too long a duration")))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0s"),
            n if n % 3_600_000 == 0 => write!(f, "{}h", n / 3_600_000),
            n if n % 60_000 == 0 => write!(f, "{}m", n / 60_000),
            n if n % 1_000 == 0 => write!(f, "{}s", n / 1_000),
            n => write!(f, "{n}ms"),
        }
    }
}

string_serde!(Duration);

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "penstock::Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 14, "pattern": Self::PATTERN})
    }
}

/// A number of bytes, written as a Kubernetes quantity: `128Mi`, `20Gi`, `500M`, `1024`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Quantity(u64);

impl Quantity {
    /// The schema's pattern of a size.
    pub const PATTERN: &'static str = "^[0-9]{1,19}([KMGTPE]i|[kMGTPE])?$";

    /// A size of that many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of that many mebibytes.
    pub const fn from_mebibytes(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }

    /// A size of that many gibibytes.
    pub const fn from_gibibytes(gibibytes: u64) -> Self {
        Self(gibibytes << 30)
    }

    /// The size in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

const BINARY_SUFFIXES: [(&str, u64); 6] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
];
const DECIMAL_SUFFIXES: [(&str, u64); 6] = [
    ("E", 1_000_000_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for Quantity {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const FORMS: &str =
            "a size is a whole number with one of Ki, Mi, Gi, Ti or k, M, G, T: 128Mi, 20Gi";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        if digits == 0 {
            return Err(UnitError::with_help(
                format!("\"{text}\" is not a size"),
                FORMS,
            ));
        }
        let factor = if suffix.is_empty() {
            1
        } else {
            let known = BINARY_SUFFIXES
                .iter()
                .chain(&DECIMAL_SUFFIXES)
                .find(|(name, _)| *name == suffix);
            match known {
                Some((_, factor)) => *factor,
                None => {
                    let meant = ["Ki", "Mi", "Gi", "Ti"].into_iter().find(|unit| {
                        suffix.len() > 1
                            && suffix.as_bytes()[0].eq_ignore_ascii_case(&unit.as_bytes()[0])
                    });
                    let help = meant.map_or_else(
                        || FORMS.to_owned(),
                        |unit| format!("write \"{number}{unit}\""),
                    );
                    return Err(UnitError::with_help(
                        format!("\"{text}\" is not a size"),
                        help,
                    ));
                }
            }
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .map(Self)
            .ok_or_else(|| UnitError::new(format!("\"{text}\" is too large a size")))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = BINARY_SUFFIXES
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match fitting {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

string_serde!(Quantity);

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "penstock::Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 21, "pattern": Self::PATTERN})
    }
}

/// An instant, written in RFC 3339: `2026-01-02T00:00:00Z`; microseconds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// The schema's pattern of an instant.
    pub const PATTERN: &'static str =
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(Z|[+-][0-9]{2}:[0-9]{2})$";

    /// The instant that many milliseconds after 1970-01-01T00:00:00Z; `None` outside chrono's range.
    pub fn from_epoch_millis(millis: i64) -> Option<Self> {
        DateTime::from_timestamp_millis(millis).map(Self)
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn epoch_millis(self) -> i64 {
        self.0.timestamp_millis()
    }

    /// The instant as chrono's type.
    pub fn as_datetime(self) -> DateTime<Utc> {
        self.0
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(instant: DateTime<Utc>) -> Self {
        Self(instant)
    }
}

impl FromStr for Timestamp {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        DateTime::parse_from_rfc3339(text)
            .map(|instant| Self(instant.with_timezone(&Utc)))
            .map_err(|_| {
                UnitError::with_help(
                    format!("\"{text}\" is not an instant"),
                    "an instant is written in RFC 3339 with a zone: 2026-01-02T00:00:00Z",
                )
            })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

string_serde!(Timestamp);

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "penstock::Timestamp".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 40, "pattern": Self::PATTERN})
    }
}
