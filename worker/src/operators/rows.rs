//! Rows as bytes in state and as slices of batches: the codec for whole rows, selection, and conforming to a schema.
//! Knows nothing of operators.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, filter_record_batch, take};
use arrow::datatypes::{DataType, SchemaRef};
use arrow_row::{RowConverter, Rows, SortField};

use crate::error::{EngineError, Result};
use crate::message::{Batch, RowKind};

/// Version of every value that an operator writes into state; the first byte.
pub const STATE_VERSION: u8 = 1;

pub(super) fn internal(
    what: &'static str,
    e: impl std::error::Error + Send + Sync + 'static,
) -> EngineError {
    EngineError::fail("PR0313", "operator", what).caused_by(e)
}

pub(super) fn corrupt(what: &str) -> EngineError {
    EngineError::fail(
        "PR0314",
        "operator state",
        format!("cannot be read: {what}"),
    )
}

/// Whole rows to bytes and back. The bytes order and delimit themselves (arrow-row).
pub struct RowCodec {
    converter: RowConverter,
    columns: usize,
}

impl RowCodec {
    pub fn new(types: impl IntoIterator<Item = DataType>) -> Result<Self> {
        let fields: Vec<SortField> = types.into_iter().map(SortField::new).collect();
        let columns = fields.len();
        let converter = RowConverter::new(fields)
            .map_err(|e| internal("a column type cannot be kept in state", e))?;
        Ok(Self { converter, columns })
    }

    pub fn of(schema: &SchemaRef) -> Result<Self> {
        Self::new(schema.fields().iter().map(|f| f.data_type().clone()))
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Rows> {
        self.converter
            .convert_columns(columns)
            .map_err(|e| internal("rows cannot be encoded", e))
    }

    /// Rows to columns. Bytes come from `encode` of an equal codec, checked by the state's checksums.
    pub fn decode<'a>(&self, rows: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        if self.columns == 0 {
            return Ok(Vec::new());
        }
        let parser = self.converter.parser();
        let parsed: Vec<_> = rows.into_iter().map(|r| parser.parse(r)).collect();
        self.converter
            .convert_rows(parsed)
            .map_err(|e| internal("rows cannot be decoded", e))
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub fn get_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or_else(|| corrupt("short varint"))?;
        *bytes = rest;
        v |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(v);
        }
    }
    Err(corrupt("long varint"))
}

pub fn put_signed(out: &mut Vec<u8>, v: i64) {
    put_varint(out, ((v << 1) ^ (v >> 63)) as u64);
}

pub fn get_signed(bytes: &mut &[u8]) -> Result<i64> {
    let v = get_varint(bytes)?;
    Ok((v >> 1) as i64 ^ -((v & 1) as i64))
}

pub fn put_bytes(out: &mut Vec<u8>, v: &[u8]) {
    put_varint(out, v.len() as u64);
    out.extend_from_slice(v);
}

pub fn get_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let len = get_varint(bytes)? as usize;
    get_fixed(bytes, len)
}

pub fn get_fixed<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    if bytes.len() < len {
        return Err(corrupt("short value"));
    }
    let (head, rest) = bytes.split_at(len);
    *bytes = rest;
    Ok(head)
}

/// Big endian with the sign flipped: byte order is number order.
pub fn sortable(v: i64) -> [u8; 8] {
    ((v as u64) ^ (1 << 63)).to_be_bytes()
}

pub fn from_sortable(bytes: &mut &[u8]) -> Result<i64> {
    let head = get_fixed(bytes, 8)?;
    let raw = u64::from_be_bytes(head.try_into().map_err(|e| internal("eight bytes", e))?);
    Ok((raw ^ (1 << 63)) as i64)
}

/// A batch of `schema` from columns; types that differ are cast, names and nullability are the schema's.
pub fn assemble(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let columns = columns
        .into_iter()
        .zip(schema.fields())
        .map(|(c, f)| {
            if c.data_type() == f.data_type() {
                Ok(c)
            } else {
                cast(&c, f.data_type())
                    .map_err(|e| internal("a result has another type than the plan says", e))
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| internal("a result does not fit the plan's schema", e))
}

/// The same columns under another schema.
pub fn conform(rows: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if rows.schema_ref() == schema {
        return Ok(rows);
    }
    let n = rows.num_rows();
    assemble(schema, rows.columns().to_vec(), n)
}

pub fn take_rows(rows: &RecordBatch, indices: &[u32]) -> Result<RecordBatch> {
    let indices = UInt32Array::from(indices.to_vec());
    let columns = rows
        .columns()
        .iter()
        .map(|c| take(c, &indices, None).map_err(|e| internal("take", e)))
        .collect::<Result<Vec<_>>>()?;
    assemble(&rows.schema(), columns, indices.len())
}

/// Splits a batch by a mask without nulls: (true rows, false rows).
pub fn split(batch: Batch, mask: &BooleanArray) -> Result<(Batch, Batch)> {
    let not = arrow::compute::not(mask).map_err(|e| internal("not", e))?;
    let part = |mask: &BooleanArray| -> Result<Batch> {
        Ok(Batch {
            rows: filter_record_batch(&batch.rows, mask).map_err(|e| internal("filter", e))?,
            kinds: batch.kinds.as_ref().map(|k| super::calc::keep(k, mask)),
            lane: batch.lane,
        })
    };
    Ok((part(mask)?, part(&not)?))
}

/// Whether each row adds, where some row does not.
pub fn adds(kinds: Option<&Arc<[RowKind]>>) -> Option<Vec<bool>> {
    let kinds = kinds?;
    if kinds.iter().all(|k| k.adds()) {
        return None;
    }
    Some(kinds.iter().map(|k| k.adds()).collect())
}
