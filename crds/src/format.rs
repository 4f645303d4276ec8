//! The formats of bodies: JSON, CSV, raw and Parquet. Which connector takes which is `validate`'s.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An object without members, where its presence alone says something: `raw: {}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// How bodies are read or written; exactly one member.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [crate::crd::one_of("format", &["json", "csv", "raw", "parquet"])]))]
pub struct Format {
    /// JSON, one object per record or line; column names are members of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<JsonFormat>,
    /// CSV, one row per line, fields in the order of the columns or by the header. Refused by name in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csv: Option<CsvFormat>,
    /// The body itself, into (or from) exactly one STRING or BINARY column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<RawFormat>,
    /// Parquet; files only. Refused by name in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parquet: Option<ParquetFormat>,
}

/// The one member of `Format` that is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FormatKind<'a> {
    /// `json`.
    Json(&'a JsonFormat),
    /// `csv`.
    Csv(&'a CsvFormat),
    /// `raw`.
    Raw(&'a RawFormat),
    /// `parquet`.
    Parquet(&'a ParquetFormat),
}

impl FormatKind<'_> {
    /// The member's name in the manifest.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::Csv(_) => "csv",
            Self::Raw(_) => "raw",
            Self::Parquet(_) => "parquet",
        }
    }
}

impl Format {
    /// The given member; the first in the order of the schema if a manifest that was not validated gives several.
    pub fn kind(&self) -> Option<FormatKind<'_>> {
        let Self {
            json,
            csv,
            raw,
            parquet,
        } = self;
        json.as_ref()
            .map(FormatKind::Json)
            .or(csv.as_ref().map(FormatKind::Csv))
            .or(raw.as_ref().map(FormatKind::Raw))
            .or(parquet.as_ref().map(FormatKind::Parquet))
    }
}

/// Options of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JsonFormat {
    /// How timestamps are written: ISO8601 text (default), or whole numbers EpochMillis or EpochMicros.
    pub timestamps: JsonTimestamps,
}

/// How JSON writes timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum JsonTimestamps {
    #[default]
    #[serde(rename = "ISO8601")]
    Iso8601,
    EpochMillis,
    EpochMicros,
}

/// Options of CSV.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CsvFormat {
    /// Whether the first line names the columns. Default false.
    pub header: bool,
    /// One ASCII character between fields. Default ",".
    #[schemars(length(min = 1, max = 1))]
    pub delimiter: String,
}

impl Default for CsvFormat {
    fn default() -> Self {
        Self {
            header: false,
            delimiter: ",".to_owned(),
        }
    }
}

/// Options of raw bodies: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RawFormat {}

/// Options of Parquet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ParquetFormat {
    /// Compression of pages when written: zstd (default), snappy, gzip, lz4 or uncompressed. Reading takes what the file says.
    pub compression: ParquetCompression,
}

/// Compression of Parquet pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParquetCompression {
    #[default]
    Zstd,
    Snappy,
    Gzip,
    Lz4,
    Uncompressed,
}
