//! Old rows and new rows to the changes between them. Pure.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};

use super::rows::{RowCodec, assemble, conform, internal, take_rows};
use crate::error::Result;
use crate::message::{Batch, Lane, RowKind};

/// Two versions of the same groups' output rows, each with whether it exists.
pub struct Versions<'a> {
    pub old: Vec<ArrayRef>,
    pub was: &'a [bool],
    pub new: Vec<ArrayRef>,
    pub is: &'a [bool],
}

/// `+I`, `-U +U`, `-D`, or nothing where a row stayed the same. `None`: no row changed.
pub fn changes(
    schema: &SchemaRef,
    codec: &RowCodec,
    versions: Versions<'_>,
) -> Result<Option<Batch>> {
    let n = versions.was.len();
    // A version that does not exist is all nulls, whatever the schema says of its columns.
    let nullable: SchemaRef = Arc::new(Schema::new(
        schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_nullable(true))
            .collect::<Vec<_>>(),
    ));
    let old = assemble(&nullable, versions.old, n)?;
    let new = assemble(&nullable, versions.new, n)?;
    let (a, b) = (codec.encode(old.columns())?, codec.encode(new.columns())?);
    let mut kinds = Vec::new();
    let mut order: Vec<u32> = Vec::new();
    for i in 0..n {
        let (before, after) = (i as u32, (n + i) as u32);
        match (versions.was[i], versions.is[i]) {
            (false, false) => {}
            (false, true) => {
                kinds.push(RowKind::Insert);
                order.push(after);
            }
            (true, false) => {
                kinds.push(RowKind::Delete);
                order.push(before);
            }
            (true, true) if codec.columns() == 0 || a.row(i) == b.row(i) => {}
            (true, true) => {
                kinds.extend([RowKind::UpdateBefore, RowKind::UpdateAfter]);
                order.extend([before, after]);
            }
        }
    }
    if order.is_empty() {
        return Ok(None);
    }
    let rows: RecordBatch = arrow::compute::concat_batches(&nullable, [&old, &new])
        .map_err(|e| internal("changes", e))?;
    Ok(Some(Batch {
        rows: conform(take_rows(&rows, &order)?, schema)?,
        kinds: not_only_inserts(&kinds).then_some(kinds.into()),
        lane: Lane::Main,
    }))
}

fn not_only_inserts(kinds: &[RowKind]) -> bool {
    kinds.iter().any(|k| *k != RowKind::Insert)
}
