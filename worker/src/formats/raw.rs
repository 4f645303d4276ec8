//! Raw bodies: the record's bytes are the one column, BINARY or STRING, and back.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, RecordBatch, RecordBatchOptions, StringBuilder,
};
use arrow::datatypes::{DataType, SchemaRef};

use super::{DecodeError, Decoder, Encoder, code};
use crate::error::{EngineError, Result};

enum Body {
    /// The column is not read.
    None,
    Text(StringBuilder),
    Binary(BinaryBuilder),
}

/// Decodes each record into one value.
pub struct RawDecoder {
    schema: SchemaRef,
    body: Body,
    max_record_bytes: usize,
    rows: usize,
    errors: Vec<DecodeError>,
}

impl RawDecoder {
    /// `schema` has at most one column, of type Utf8 or Binary.
    pub fn new(schema: SchemaRef, max_record_bytes: usize) -> Result<Self> {
        let body = match schema.fields().as_ref() {
            [] => Body::None,
            [field] if *field.data_type() == DataType::Utf8 => Body::Text(StringBuilder::new()),
            [field] if *field.data_type() == DataType::Binary => Body::Binary(BinaryBuilder::new()),
            _ => return Err(one_column()),
        };
        Ok(Self {
            schema,
            body,
            max_record_bytes,
            rows: 0,
            errors: Vec::new(),
        })
    }
}

fn one_column() -> EngineError {
    EngineError::invalid(
        code::FIELD,
        "format raw",
        "takes one column of type STRING or BINARY",
    )
}

impl Decoder for RawDecoder {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn feed(&mut self, record: &[u8]) -> bool {
        // A batch of bodies stays well below the 2 GiB that its offsets can address: readers bound a batch's bytes.
        let fault = if record.len() > self.max_record_bytes {
            let size = record.len();
            Some((
                code::BODY_SIZE,
                format!(
                    "the body has {size} bytes, more than {}",
                    self.max_record_bytes
                ),
            ))
        } else {
            match &mut self.body {
                Body::None => None,
                Body::Binary(builder) => {
                    builder.append_value(record);
                    None
                }
                Body::Text(builder) => match std::str::from_utf8(record) {
                    Ok(text) => {
                        builder.append_value(text);
                        None
                    }
                    Err(e) => Some((
                        code::BODY,
                        format!("invalid UTF-8 at byte {}", e.valid_up_to()),
                    )),
                },
            }
        };
        let good = fault.is_none();
        match fault {
            None => self.rows += 1,
            Some((code, text)) => self.errors.push(DecodeError {
                record: self.pending(),
                code,
                text,
            }),
        }
        good
    }

    fn pending(&self) -> usize {
        self.rows + self.errors.len()
    }

    fn finish(&mut self) -> Result<(RecordBatch, Vec<DecodeError>)> {
        let rows = std::mem::take(&mut self.rows);
        let columns: Vec<ArrayRef> = match &mut self.body {
            Body::None => vec![],
            Body::Text(builder) => vec![Arc::new(builder.finish())],
            Body::Binary(builder) => vec![Arc::new(builder.finish())],
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch =
            RecordBatch::try_new_with_options(self.schema(), columns, &options).map_err(|e| {
                EngineError::fail(code::BODY, "format raw", "columns do not fit").caused_by(e)
            })?;
        Ok((batch, std::mem::take(&mut self.errors)))
    }
}

/// Writes the one column's bytes; a null as no bytes.
#[derive(Default)]
pub struct RawEncoder {
    column: Option<ArrayRef>,
}

impl Encoder for RawEncoder {
    fn bind(&mut self, rows: &RecordBatch) -> Result<()> {
        match rows.columns() {
            [column] if matches!(column.data_type(), DataType::Utf8 | DataType::Binary) => {
                self.column = Some(Arc::clone(column));
                Ok(())
            }
            _ => Err(one_column()),
        }
    }

    fn encode(&mut self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        let column = self.column.as_ref().ok_or_else(one_column)?;
        if column.is_valid(row) {
            out.extend_from_slice(match column.data_type() {
                DataType::Utf8 => column.as_string::<i32>().value(row).as_bytes(),
                _ => column.as_binary::<i32>().value(row),
            });
        }
        Ok(())
    }
}
