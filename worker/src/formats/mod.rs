//! Formats: bytes to columns and back. JSON and raw in this version; the rest behind the same seam.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::error::Result;

pub mod json;
pub mod raw;

/// Codes of bad records, registered in `penstock-crds`.
pub mod code {
    /// The body is not of the format: cut off, nested too deep, not UTF-8.
    pub const BODY: &str = "PR0201";
    /// A member does not have the column's type, or is out of its range.
    pub const FIELD: &str = "PR0202";
    /// Null or missing where the column may not be null.
    pub const NULL: &str = "PR0203";
    /// Larger than the reader's bound.
    pub const BODY_SIZE: &str = "PR0204";
}

/// A record that did not decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Index of the record among those fed since the last `finish`.
    pub record: usize,
    pub code: &'static str,
    pub text: String,
}

/// Decodes records into columns. Never panics, whatever the bytes.
pub trait Decoder: Send {
    /// The columns that `finish` makes.
    fn schema(&self) -> SchemaRef;
    /// Feeds the next record's bytes. Borrowed for the call only. `false`: the record is bad, and `finish` will say why; so
    /// that a caller keeps the bytes of bad records alone.
    fn feed(&mut self, record: &[u8]) -> bool;
    /// Records fed since the last `finish`.
    fn pending(&self) -> usize;
    /// Rows of the good records in order, and the bad ones by index. `rows.num_rows() + errors.len()` equals `pending`.
    fn finish(&mut self) -> Result<(RecordBatch, Vec<DecodeError>)>;
}

/// Encodes rows of one schema, one record per row.
pub trait Encoder: Send {
    /// Binds a batch; must precede `encode`.
    fn bind(&mut self, rows: &RecordBatch) -> Result<()>;
    /// Appends row `row` of the bound batch to `out`.
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) -> Result<()>;
}
