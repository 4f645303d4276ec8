//! Rows that an operator judged late, on their way to the sources' policies. Owns finding a row's origin in the hidden
//! columns; what becomes of the rows is the slot's.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use bytes::Bytes;
use parking_lot::RwLock;
use penstock_plan::graph::hidden;

use crate::sources::SplitId;

/// Late rows of one operator since they were last taken.
#[derive(Debug, Default)]
pub struct LateRows(Vec<RecordBatch>);

impl LateRows {
    pub fn push(&mut self, rows: RecordBatch) {
        self.0.push(rows);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn into_batches(self) -> Vec<RecordBatch> {
        self.0
    }
}

/// Where the value of `$split` leads: shared by all slots, since a row is judged far from its source.
#[derive(Debug, Default, Clone)]
pub struct SplitNames(Arc<RwLock<BTreeMap<u64, (usize, SplitId)>>>);

impl SplitNames {
    /// Remembers a split of the source with that index.
    pub fn learn(&self, hash: u64, source: usize, split: &SplitId) {
        if !self.0.read().contains_key(&hash) {
            self.0.write().insert(hash, (source, split.clone()));
        }
    }

    pub fn get(&self, hash: u64) -> Option<(usize, SplitId)> {
        self.0.read().get(&hash).cloned()
    }
}

/// A late row's origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `None` where the planner left no origin: the row is only counted.
    pub split: Option<u64>,
    pub offset: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
}

/// One origin per row, from the hidden columns.
pub fn origins(rows: &RecordBatch) -> Vec<Origin> {
    let split = rows.column_by_name(hidden::SPLIT).map(|c| c.as_primitive::<UInt64Type>());
    let offset = rows.column_by_name(hidden::OFFSET).map(|c| c.as_primitive::<Int64Type>());
    let key = rows.column_by_name(hidden::RAW_KEY).map(|c| c.as_binary::<i32>());
    let value = rows.column_by_name(hidden::RAW_VALUE).map(|c| c.as_binary::<i32>());
    let bytes = |a: Option<&arrow::array::BinaryArray>, i: usize| {
        a.filter(|a| a.is_valid(i)).map(|a| Bytes::copy_from_slice(a.value(i)))
    };
    (0..rows.num_rows())
        .map(|i| Origin {
            split: split.filter(|a| a.is_valid(i)).map(|a| a.value(i)),
            offset: offset.map_or(-1, |a| a.value(i)),
            key: bytes(key, i),
            value: bytes(value, i),
        })
        .collect()
}
