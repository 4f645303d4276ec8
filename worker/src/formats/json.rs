//! JSON: one object per record. A single pass over a record's bytes fills the columns that the schema names and checks and
//! skips the rest; an error touches its own record only. Owns the decoder and the encoder; submodules own grammar, values,
//! columns and times.
//!
//! What a record may be: exactly one object, UTF-8, strict RFC 8259, nested at most 128 deep. Of a name given twice the last
//! value counts. Numbers and booleans may come as strings, and string columns take any value's text, as in Flink.

mod base64;
mod columns;
mod encode;
mod fault;
mod scan;
mod time;
mod value;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;

use self::columns::Object;
use self::fault::Fault;
use self::scan::Cursor;
use super::{DecodeError, Decoder, code};
use crate::error::{EngineError, Result};

pub use self::encode::JsonEncoder;

/// How timestamps are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timestamps {
    /// `2026-01-02T03:04:05.678`, also with a space; with or without an offset. Written with `T`, and `Z` for instants.
    #[default]
    Iso8601,
    /// A whole number.
    EpochMillis,
    /// A whole number.
    EpochMicros,
}

/// Options of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonConfig {
    pub timestamps: Timestamps,
    /// Larger records are bad ones.
    pub max_record_bytes: usize,
}

impl Default for JsonConfig {
    fn default() -> Self {
        Self {
            timestamps: Timestamps::Iso8601,
            max_record_bytes: 16 << 20,
        }
    }
}

/// Decodes records into the columns of a schema: each column is the member of its name.
pub struct JsonDecoder {
    schema: SchemaRef,
    root: Object,
    max_record_bytes: usize,
    /// Good records since the last `finish`.
    rows: usize,
    errors: Vec<DecodeError>,
}

impl JsonDecoder {
    /// Fails on a column type that JSON has no reading of.
    pub fn new(schema: SchemaRef, config: JsonConfig) -> Result<Self> {
        let root = Object::new(schema.fields(), config.timestamps, 4096)?;
        Ok(Self {
            schema,
            root,
            max_record_bytes: config.max_record_bytes,
            rows: 0,
            errors: Vec::new(),
        })
    }

    fn read(&mut self, record: &[u8]) -> std::result::Result<(), Box<Fault>> {
        if record.len() > self.max_record_bytes {
            return Err(Fault::size(record.len(), self.max_record_bytes));
        }
        let mut cursor = Cursor::new(record);
        cursor.whitespace();
        if cursor.peek() != Some(b'{') {
            return Err(Fault::not_object(record));
        }
        self.root.read(&mut cursor, self.rows, 0)?;
        cursor.end()
    }
}

impl Decoder for JsonDecoder {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn feed(&mut self, record: &[u8]) -> bool {
        match self.read(record) {
            Ok(()) => {
                self.rows += 1;
                true
            }
            Err(fault) => {
                self.root.truncate(self.rows);
                self.errors.push(DecodeError {
                    record: self.pending(),
                    code: fault.code,
                    text: fault.text(),
                });
                false
            }
        }
    }

    fn pending(&self) -> usize {
        self.rows + self.errors.len()
    }

    fn finish(&mut self) -> Result<(RecordBatch, Vec<DecodeError>)> {
        let rows = std::mem::take(&mut self.rows);
        let errors = std::mem::take(&mut self.errors);
        let columns = self.root.finish(rows)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch =
            RecordBatch::try_new_with_options(self.schema(), columns, &options).map_err(|e| {
                EngineError::fail(code::BODY, "format json", "columns do not fit").caused_by(e)
            })?;
        Ok((batch, errors))
    }
}
