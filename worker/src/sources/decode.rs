//! From records of a transport to a [`SourceBatch`]: bodies through the format's decoder, transport columns beside them.
//! Sources bring bytes and what they know of a record; which columns exist and what is kept is decided here, once.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, MapBuilder, PrimitiveArray, RecordBatch,
    RecordBatchOptions, StringBuilder,
};
use arrow::datatypes as t;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use penstock_crds::format::{FormatKind, JsonTimestamps};
use penstock_crds::source::TransportField;

use super::{BadRecord, RawRecords, SourceBatch, SplitId};
use crate::error::{EngineError, Result};
use crate::formats::json::{JsonConfig, JsonDecoder, Timestamps};
use crate::formats::raw::RawDecoder;
use crate::formats::{Decoder, code};

/// Most bytes of bodies in one batch, so that offsets and memory stay bounded whatever the records' size.
pub const MAX_BATCH_BYTES: usize = 16 << 20;
/// Rows that a full batch has.
pub const BATCH_ROWS: usize = 4096;

/// How bodies are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    Json(JsonConfig),
    Raw { max_record_bytes: usize },
}

impl BodyFormat {
    /// The format that a manifest names; `None` for those that come later.
    pub fn from_spec(format: FormatKind<'_>) -> Option<Self> {
        let defaults = JsonConfig::default();
        match format {
            FormatKind::Json(json) => Some(Self::Json(JsonConfig {
                timestamps: match json.timestamps {
                    JsonTimestamps::Iso8601 => Timestamps::Iso8601,
                    JsonTimestamps::EpochMillis => Timestamps::EpochMillis,
                    JsonTimestamps::EpochMicros => Timestamps::EpochMicros,
                },
                ..defaults
            })),
            FormatKind::Raw(_) => Some(Self::Raw {
                max_record_bytes: defaults.max_record_bytes,
            }),
            FormatKind::Csv(_) | FormatKind::Parquet(_) => None,
        }
    }
}

/// What a source makes of its records.
#[derive(Debug, Clone)]
pub struct DecodePlan {
    /// Columns in the order of the batches.
    pub schema: SchemaRef,
    /// Per column: taken from the transport, or (`None`) read from the body by its name.
    pub from: Vec<Option<TransportField>>,
    pub format: BodyFormat,
    /// Keep each row's own key and value bytes (`onLate: DeadLetter`).
    pub keep_raw: bool,
}

/// What a transport knows of a record. Borrowed for one call.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Index into the reader's table of split ids.
    pub split: u16,
    pub offset: i64,
    /// A topic, or a file's path.
    pub place: &'a str,
    pub partition: i32,
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

enum Transport {
    Text(StringBuilder),
    Binary(BinaryBuilder),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Timestamp(Vec<Option<i64>>, TimeUnit),
    HeaderText(MapBuilder<StringBuilder, StringBuilder>),
    HeaderBinary(MapBuilder<StringBuilder, BinaryBuilder>),
}

struct TransportColumn {
    what: TransportField,
    field: FieldRef,
    values: Transport,
}

/// Gathers records into a batch.
pub struct BatchAssembler {
    plan: DecodePlan,
    decoder: Box<dyn Decoder>,
    transports: Vec<TransportColumn>,
    splits: Vec<u16>,
    offsets: Vec<i64>,
    raw: Option<(BinaryBuilder, BinaryBuilder)>,
    /// Bad records without code and text where the decoder has them.
    bad: Vec<BadRecord>,
    undecoded: Vec<usize>,
    bytes: usize,
}

impl BatchAssembler {
    pub fn new(plan: DecodePlan) -> Result<Self> {
        let body: Vec<FieldRef> = plan
            .schema
            .fields()
            .iter()
            .zip(&plan.from)
            .filter(|(_, from)| from.is_none())
            .map(|(field, _)| Arc::clone(field))
            .collect();
        let body = Arc::new(Schema::new(body));
        let decoder: Box<dyn Decoder> = match plan.format {
            BodyFormat::Json(config) => Box::new(JsonDecoder::new(body, config)?),
            BodyFormat::Raw { max_record_bytes } => {
                Box::new(RawDecoder::new(body, max_record_bytes)?)
            }
        };
        let transports = plan
            .schema
            .fields()
            .iter()
            .zip(&plan.from)
            .filter_map(|(field, from)| from.map(|from| TransportColumn::new(from, field)))
            .collect::<Result<_>>()?;
        let raw = plan
            .keep_raw
            .then(|| (BinaryBuilder::new(), BinaryBuilder::new()));
        Ok(Self {
            plan,
            decoder,
            transports,
            splits: Vec::with_capacity(BATCH_ROWS),
            offsets: Vec::with_capacity(BATCH_ROWS),
            raw,
            bad: Vec::new(),
            undecoded: Vec::new(),
            bytes: 0,
        })
    }

    /// Good and bad records since the last `finish`.
    pub fn len(&self) -> usize {
        self.splits.len() + self.bad.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batch has as many bytes as one may have.
    pub fn is_full(&self) -> bool {
        self.bytes >= MAX_BATCH_BYTES
    }

    #[inline]
    pub fn push(&mut self, record: &Record<'_>) {
        self.bytes += record.value.map_or(0, <[u8]>::len) + record.key.map_or(0, <[u8]>::len);
        if let Some((code, text)) = self.transports.iter().find_map(|c| c.refuses(record)) {
            self.reject(record, code, text);
            return;
        }
        if !self.decoder.feed(record.value.unwrap_or_default()) {
            self.undecoded.push(self.bad.len());
            self.reject(record, code::BODY, String::new());
            return;
        }
        self.splits.push(record.split);
        self.offsets.push(record.offset);
        for column in &mut self.transports {
            column.push(record);
        }
        if let Some((keys, values)) = &mut self.raw {
            keys.append_option(record.key);
            values.append_option(record.value);
        }
    }

    /// Reports a record that is no row; `push` does it for those that do not decode.
    pub fn reject(&mut self, record: &Record<'_>, code: &'static str, text: String) {
        self.bad.push(BadRecord {
            split: record.split,
            offset: record.offset,
            code,
            text,
            key: record.key.map(Bytes::copy_from_slice),
            value: record.value.map(Bytes::copy_from_slice),
        });
    }

    /// What was pushed, as a batch; empty afterwards.
    pub fn finish(&mut self, split_ids: Arc<[SplitId]>) -> Result<SourceBatch> {
        let (body, errors) = self.decoder.finish()?;
        for (bad, error) in self.undecoded.drain(..).zip(errors) {
            self.bad[bad].code = error.code;
            self.bad[bad].text = error.text;
        }
        let rows = self.splits.len();
        let mut bodies = body.columns().iter();
        let mut transports = self.transports.iter_mut();
        let columns = self
            .plan
            .from
            .iter()
            .map(|from| match from {
                None => bodies.next().cloned(),
                Some(_) => transports.next().map(TransportColumn::finish),
            })
            .collect::<Option<Vec<ArrayRef>>>()
            .ok_or_else(|| misfit("a column has no values"))?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::clone(&self.plan.schema);
        let rows = RecordBatch::try_new_with_options(schema, columns, &options)
            .map_err(|e| misfit("columns do not fit").caused_by(e))?;
        let fresh = || Vec::with_capacity(BATCH_ROWS);
        Ok(SourceBatch {
            rows,
            splits: std::mem::replace(&mut self.splits, fresh()),
            offsets: std::mem::replace(&mut self.offsets, Vec::with_capacity(BATCH_ROWS)),
            split_ids,
            raw: self.raw.as_mut().map(|(keys, values)| RawRecords {
                keys: keys.finish(),
                values: values.finish(),
            }),
            bad: std::mem::take(&mut self.bad),
            bytes: std::mem::take(&mut self.bytes),
        })
    }
}

fn misfit(why: &str) -> EngineError {
    EngineError::fail(code::FIELD, "source columns", why)
}

impl TransportColumn {
    fn new(what: TransportField, field: &FieldRef) -> Result<Self> {
        use TransportField as F;
        let values = match (what, field.data_type()) {
            (F::Key, DataType::Binary) => Transport::Binary(BinaryBuilder::new()),
            (F::Key | F::Topic | F::Path, DataType::Utf8) => Transport::Text(StringBuilder::new()),
            (F::Partition, DataType::Int32) => Transport::Int32(Vec::new()),
            (F::Partition | F::Offset, DataType::Int64) => Transport::Int64(Vec::new()),
            (F::Timestamp, DataType::Timestamp(unit, _)) => Transport::Timestamp(Vec::new(), *unit),
            (F::Headers, DataType::Map(entries, _)) => match entries.data_type() {
                DataType::Struct(kv) if *kv[1].data_type() == DataType::Utf8 => {
                    Transport::HeaderText(header_map(kv, StringBuilder::new()))
                }
                DataType::Struct(kv) if *kv[1].data_type() == DataType::Binary => {
                    Transport::HeaderBinary(header_map(kv, BinaryBuilder::new()))
                }
                _ => return Err(misfit("headers are of another type")),
            },
            (_, other) => {
                let name = field.name();
                return Err(misfit(&format!("column {name} cannot be of type {other}")));
            }
        };
        Ok(Self {
            what,
            field: Arc::clone(field),
            values,
        })
    }

    /// Why the record has no value for the column, if it has none.
    fn refuses(&self, record: &Record<'_>) -> Option<(&'static str, String)> {
        let name = self.field.name();
        match self.what {
            TransportField::Key => match (record.key, &self.values) {
                (None, _) => (!self.field.is_nullable())
                    .then(|| (code::NULL, format!("{name}: the record has no key"))),
                (Some(key), Transport::Text(_)) => std::str::from_utf8(key)
                    .is_err()
                    .then(|| (code::FIELD, format!("{name}: the key is not UTF-8"))),
                _ => None,
            },
            TransportField::Timestamp => (record.timestamp_ms.is_none()
                && !self.field.is_nullable())
            .then(|| (code::NULL, format!("{name}: the record has no timestamp"))),
            _ => None,
        }
    }

    fn push(&mut self, record: &Record<'_>) {
        match (&mut self.values, self.what) {
            (Transport::Text(b), TransportField::Key) => {
                b.append_option(record.key.and_then(|key| std::str::from_utf8(key).ok()));
            }
            (Transport::Text(b), _) => b.append_value(record.place),
            (Transport::Binary(b), _) => b.append_option(record.key),
            (Transport::Int32(v), _) => v.push(record.partition),
            (Transport::Int64(v), TransportField::Partition) => v.push(i64::from(record.partition)),
            (Transport::Int64(v), _) => v.push(record.offset),
            (Transport::Timestamp(v, unit), _) => {
                v.push(record.timestamp_ms.and_then(|ms| from_millis(ms, *unit)));
            }
            (Transport::HeaderText(map), _) => {
                for (name, value) in record.headers {
                    map.keys().append_value(name);
                    let text = value.and_then(|v| std::str::from_utf8(v).ok());
                    map.values().append_option(text);
                }
                map.append(true).expect("each header has a name and a value");
            }
            (Transport::HeaderBinary(map), _) => {
                for (name, value) in record.headers {
                    map.keys().append_value(name);
                    map.values().append_option(*value);
                }
                map.append(true).expect("each header has a name and a value");
            }
        }
    }

    fn finish(&mut self) -> ArrayRef {
        let data_type = self.field.data_type().clone();
        match &mut self.values {
            Transport::Text(b) => Arc::new(b.finish()),
            Transport::Binary(b) => Arc::new(b.finish()),
            Transport::Int32(v) => Arc::new(Int32Array::from(std::mem::take(v))),
            Transport::Int64(v) => Arc::new(Int64Array::from(std::mem::take(v))),
            Transport::Timestamp(v, unit) => {
                let v = std::mem::take(v);
                macro_rules! array {
                    ($ty:ty) => {
                        Arc::new(PrimitiveArray::<$ty>::from(v).with_data_type(data_type))
                    };
                }
                match unit {
                    TimeUnit::Second => array!(t::TimestampSecondType),
                    TimeUnit::Millisecond => array!(t::TimestampMillisecondType),
                    TimeUnit::Microsecond => array!(t::TimestampMicrosecondType),
                    TimeUnit::Nanosecond => array!(t::TimestampNanosecondType),
                }
            }
            Transport::HeaderText(b) => Arc::new(b.finish()),
            Transport::HeaderBinary(b) => Arc::new(b.finish()),
        }
    }
}

fn header_map<V: arrow::array::ArrayBuilder>(
    entry: &arrow::datatypes::Fields,
    values: V,
) -> MapBuilder<StringBuilder, V> {
    let names = arrow::array::MapFieldNames {
        entry: "entries".to_owned(),
        key: entry[0].name().clone(),
        value: entry[1].name().clone(),
    };
    MapBuilder::new(Some(names), StringBuilder::new(), values)
        .with_keys_field(Arc::clone(&entry[0]))
        .with_values_field(Arc::clone(&entry[1]))
}

fn from_millis(ms: i64, unit: TimeUnit) -> Option<i64> {
    match unit {
        TimeUnit::Second => Some(ms.div_euclid(1_000)),
        TimeUnit::Millisecond => Some(ms),
        TimeUnit::Microsecond => ms.checked_mul(1_000),
        TimeUnit::Nanosecond => ms.checked_mul(1_000_000),
    }
}

/// What tests of several sources need.
#[cfg(test)]
pub(super) mod tests_support {
    use super::*;
    use arrow::datatypes::{Field, Fields};

    /// A column `MAP<STRING, BINARY>` as the planner makes it.
    pub fn headers_field(name: &str) -> Field {
        let entries = Fields::from(vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("value", DataType::Binary, true),
        ]);
        let entries = Field::new("entries", DataType::Struct(entries), false);
        Field::new(name, DataType::Map(Arc::new(entries), false), true)
    }
}
