//! A hash join of two batches, a piece at a time. Pairs leave by key group, within one in the order of the left rows: the same
//! whether a window was in memory or is read back one key group at a time.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;

use super::super::groups::{GroupIndex, NO_GROUP, key_columns};
use super::super::rows::{assemble, internal};
use crate::error::Result;
use crate::keys::{hash_columns, key_group};

pub(super) struct Matching {
    left: RecordBatch,
    right: RecordBatch,
    /// Per left row the key's group on the right.
    groups: Vec<u32>,
    /// Rows of a group on the right: `rows[starts[g]..starts[g + 1]]`.
    starts: Vec<u32>,
    rows: Vec<u32>,
    /// Left rows in the order in which they are matched.
    order: Vec<u32>,
    /// The next pair: a place in `order`.
    at: usize,
    within: u32,
}

impl Matching {
    pub(super) fn new(
        left: RecordBatch,
        left_keys: &[usize],
        right: RecordBatch,
        right_keys: &[usize],
        total_groups: u16,
    ) -> Result<Self> {
        let columns = key_columns(&right, right_keys);
        let types: Vec<_> = columns.iter().map(|c| c.data_type().clone()).collect();
        let hashes = hash_columns(&columns, right.num_rows());
        let mut index = GroupIndex::new(&types, false)?;
        let of = index.intern(&columns, &hashes, &[])?;
        let mut starts = vec![0u32; index.len() + 1];
        for g in &of {
            starts[*g as usize + 1] += 1;
        }
        for g in 1..starts.len() {
            starts[g] += starts[g - 1];
        }
        let mut fill = starts.clone();
        let mut rows = vec![0u32; of.len()];
        for (i, g) in of.iter().enumerate() {
            let at = &mut fill[*g as usize];
            rows[*at as usize] = i as u32;
            *at += 1;
        }
        let columns = key_columns(&left, left_keys);
        let hashes = hash_columns(&columns, left.num_rows());
        let mut order: Vec<u32> = (0..left.num_rows() as u32).collect();
        order.sort_by_key(|&i| key_group(hashes[i as usize], total_groups));
        Ok(Self {
            groups: index.lookup(&columns, &hashes, &[])?,
            left,
            right,
            starts,
            rows,
            order,
            at: 0,
            within: 0,
        })
    }

    /// The next pairs, at most `limit`; `None` after the last. Hidden columns of both sides are left out.
    pub(super) fn next(&mut self, output: &SchemaRef, limit: usize) -> Result<Option<RecordBatch>> {
        let mut left: Vec<u32> = Vec::new();
        let mut right: Vec<u32> = Vec::new();
        while left.len() < limit && self.at < self.order.len() {
            let row_of_left = self.order[self.at];
            let g = self.groups[row_of_left as usize];
            let (from, to) = if g == NO_GROUP {
                (0, 0)
            } else {
                (self.starts[g as usize], self.starts[g as usize + 1])
            };
            let rows = &self.rows[from as usize..to as usize];
            for row in rows
                .iter()
                .skip(self.within as usize)
                .take(limit - left.len())
            {
                left.push(row_of_left);
                right.push(*row);
                self.within += 1;
            }
            if self.within as usize >= rows.len() {
                self.at += 1;
                self.within = 0;
            }
        }
        if left.is_empty() {
            return Ok(None);
        }
        let n = left.len();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (rows, indices) in [(&self.left, left), (&self.right, right)] {
            let indices = UInt32Array::from(indices);
            for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
                if !field.name().starts_with('$') {
                    columns.push(take(column, &indices, None).map_err(|e| internal("join", e))?);
                }
            }
        }
        Ok(Some(assemble(output, columns, n)?))
    }
}
