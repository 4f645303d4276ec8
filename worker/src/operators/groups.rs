//! Key columns to dense group numbers, vectorised. Owns the hot index and its key storage; what belongs to a group is the
//! caller's, in vectors indexed by group number.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Float32Array, Float64Array, Int64Array, RecordBatch,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::rows::{RowCodec, internal};
use crate::error::Result;

/// What a lookup answers for a key that is not there.
pub const NO_GROUP: u32 = u32::MAX;

/// The columns of a key, with -0.0 as 0.0 and one NaN, so that equal hashes and equal bytes mean equal keys.
pub fn key_columns(rows: &RecordBatch, columns: &[usize]) -> Vec<ArrayRef> {
    columns.iter().map(|c| normalise(rows.column(*c))).collect()
}

fn normalise(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float64 => {
            let a: Float64Array = column.as_primitive::<Float64Type>().unary(|v| {
                if v == 0.0 {
                    0.0
                } else if v.is_nan() {
                    f64::NAN
                } else {
                    v
                }
            });
            Arc::new(a)
        }
        DataType::Float32 => {
            let a: Float32Array = column.as_primitive::<Float32Type>().unary(|v| {
                if v == 0.0 {
                    0.0
                } else if v.is_nan() {
                    f32::NAN
                } else {
                    v
                }
            });
            Arc::new(a)
        }
        _ => Arc::clone(column),
    }
}

/// Keys of the groups, by group number.
enum Keys {
    /// No key columns: at most one group (per tag).
    None { groups: usize },
    /// One column of integers or times.
    Int { values: Vec<i64>, null: Vec<bool> },
    /// One column of strings or bytes.
    Bytes {
        data: Vec<u8>,
        ends: Vec<usize>,
        null: Vec<bool>,
    },
    /// Anything else, as arrow-row bytes.
    Rows { data: Vec<u8>, ends: Vec<usize> },
}

/// Distinct keys, each with a dense number in order of arrival. A key may carry a tag (a pane, a group), which is part of
/// its identity.
pub struct GroupIndex {
    types: Vec<DataType>,
    codec: Arc<RowCodec>,
    /// (bucket hash, group): the hash beside the number saves a miss in `keys` for nearly every other key.
    table: HashTable<(u64, u32)>,
    hashes: Vec<u64>,
    tags: Vec<i64>,
    tagged: bool,
    keys: Keys,
}

fn is_int(t: &DataType) -> bool {
    matches!(
        t,
        DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Date32
            | DataType::Timestamp(_, _)
    )
}

fn is_bytes(t: &DataType) -> bool {
    matches!(
        t,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary
    )
}

/// Low bits pick the bucket. The high half of a hash is the key group's, nearly constant within a slot, so the halves change
/// places: hashbrown takes its seven tag bits from the top.
fn bucket_hash(hash: u64, tag: i64) -> u64 {
    hash.rotate_left(32)
        .wrapping_add((tag as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl GroupIndex {
    pub fn new(types: &[DataType], tagged: bool) -> Result<Self> {
        let codec = Arc::new(RowCodec::new(types.iter().cloned())?);
        Ok(Self::with_codec(types, codec, tagged))
    }

    fn with_codec(types: &[DataType], codec: Arc<RowCodec>, tagged: bool) -> Self {
        let keys = match types {
            [] => Keys::None { groups: 0 },
            [t] if is_int(t) => Keys::Int {
                values: Vec::new(),
                null: Vec::new(),
            },
            [t] if is_bytes(t) => Keys::Bytes {
                data: Vec::new(),
                ends: Vec::new(),
                null: Vec::new(),
            },
            _ => Keys::Rows {
                data: Vec::new(),
                ends: Vec::new(),
            },
        };
        Self {
            types: types.to_vec(),
            codec,
            table: HashTable::new(),
            hashes: Vec::new(),
            tags: Vec::new(),
            tagged,
            keys,
        }
    }

    /// An empty index of the same shape.
    pub fn fresh(&self) -> Self {
        Self::with_codec(&self.types, Arc::clone(&self.codec), self.tagged)
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The key's own hash (`keys::hash_columns`), without the tag.
    pub fn hash(&self, group: u32) -> u64 {
        self.hashes[group as usize]
    }

    pub fn tag(&self, group: u32) -> i64 {
        self.tags[group as usize]
    }

    /// The codec of state keys.
    pub fn codec(&self) -> &RowCodec {
        &self.codec
    }

    pub fn memory_bytes(&self) -> usize {
        let keys = match &self.keys {
            Keys::None { .. } => 0,
            Keys::Int { values, null } => values.capacity() * 8 + null.capacity(),
            Keys::Bytes { data, ends, null } => {
                data.capacity() + ends.capacity() * 8 + null.capacity()
            }
            Keys::Rows { data, ends } => data.capacity() + ends.capacity() * 8,
        };
        keys + self.table.capacity() * 17 + (self.hashes.capacity() + self.tags.capacity()) * 8
    }

    /// Group of each row, new groups at the end. `hashes` are `keys::hash_columns` of `columns`; `tags` one per row in a
    /// tagged index, else empty.
    pub fn intern(
        &mut self,
        columns: &[ArrayRef],
        hashes: &[u64],
        tags: &[i64],
    ) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(hashes.len());
        let Self {
            table,
            hashes: known,
            tags: known_tags,
            tagged,
            keys,
            codec,
            ..
        } = self;
        let tagged = *tagged;
        macro_rules! each {
            ($row:ident, $group:ident, $equal:expr, $push:expr) => {
                for $row in 0..hashes.len() {
                    let tag = if tagged { tags[$row] } else { 0 };
                    let h = bucket_hash(hashes[$row], tag);
                    let entry = table.entry(
                        h,
                        |&(eh, g)| {
                            let $group = g as usize;
                            eh == h && (!tagged || known_tags[$group] == tag) && $equal
                        },
                        |e| e.0,
                    );
                    out.push(match entry {
                        Entry::Occupied(e) => e.get().1,
                        Entry::Vacant(e) => {
                            let g = known.len() as u32;
                            e.insert((h, g));
                            known.push(hashes[$row]);
                            if tagged {
                                known_tags.push(tag);
                            }
                            $push;
                            g
                        }
                    });
                }
            };
        }
        match keys {
            Keys::None { groups } => each!(
                i,
                _g,
                {
                    let _ = i;
                    true
                },
                *groups += 1
            ),
            Keys::Int { values, null } => {
                let column = as_ints(&columns[0])?;
                if column.null_count() == 0 {
                    let input = column.values();
                    each!(i, g, values[g] == input[i] && !null[g], {
                        values.push(input[i]);
                        null.push(false);
                    });
                } else {
                    each!(
                        i,
                        g,
                        null[g] == column.is_null(i) && (null[g] || values[g] == column.value(i)),
                        {
                            let is_null = column.is_null(i);
                            values.push(if is_null { 0 } else { column.value(i) });
                            null.push(is_null);
                        }
                    );
                }
            }
            Keys::Bytes { data, ends, null } => {
                let column = as_binary(&columns[0])?;
                each!(
                    i,
                    g,
                    null[g] == column.is_null(i)
                        && (null[g] || slice(data, ends, g) == column.value(i)),
                    {
                        let is_null = column.is_null(i);
                        if !is_null {
                            data.extend_from_slice(column.value(i));
                        }
                        ends.push(data.len());
                        null.push(is_null);
                    }
                );
            }
            Keys::Rows { data, ends } => {
                let rows = codec.encode(columns)?;
                each!(i, g, slice(data, ends, g) == rows.row(i).data(), {
                    data.extend_from_slice(rows.row(i).data());
                    ends.push(data.len());
                });
            }
        }
        Ok(out)
    }

    /// Group of each row, or `NO_GROUP`.
    pub fn lookup(&self, columns: &[ArrayRef], hashes: &[u64], tags: &[i64]) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(hashes.len());
        macro_rules! each {
            ($row:ident, $group:ident, $equal:expr) => {
                for $row in 0..hashes.len() {
                    let tag = if self.tagged { tags[$row] } else { 0 };
                    let h = bucket_hash(hashes[$row], tag);
                    let found = self.table.find(h, |&(eh, g)| {
                        let $group = g as usize;
                        eh == h && (!self.tagged || self.tags[$group] == tag) && $equal
                    });
                    out.push(found.map_or(NO_GROUP, |e| e.1));
                }
            };
        }
        match &self.keys {
            Keys::None { .. } => each!(i, _g, true),
            Keys::Int { values, null } => {
                let column = as_ints(&columns[0])?;
                each!(
                    i,
                    g,
                    null[g] == column.is_null(i) && (null[g] || values[g] == column.value(i))
                );
            }
            Keys::Bytes { data, ends, null } => {
                let column = as_binary(&columns[0])?;
                each!(
                    i,
                    g,
                    null[g] == column.is_null(i)
                        && (null[g] || slice(data, ends, g) == column.value(i))
                );
            }
            Keys::Rows { data, ends } => {
                let rows = self.codec.encode(columns)?;
                each!(i, g, slice(data, ends, g) == rows.row(i).data());
            }
        }
        Ok(out)
    }

    /// Key columns of the given groups.
    pub fn columns(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        match &self.keys {
            Keys::None { .. } => Ok(Vec::new()),
            Keys::Int { values, null } => {
                let nulls = nulls(null, groups);
                let ints: ScalarBuffer<i64> = groups.iter().map(|g| values[*g as usize]).collect();
                let ints: ArrayRef = Arc::new(Int64Array::new(ints, nulls));
                Ok(vec![from_ints(ints, &self.types[0])?])
            }
            Keys::Bytes { data, ends, null } => {
                let nulls = nulls(null, groups);
                let lengths = groups.iter().map(|g| slice(data, ends, *g as usize).len());
                let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
                let mut bytes = Vec::with_capacity(offsets.last().map_or(0, |l| *l as usize));
                for g in groups {
                    bytes.extend_from_slice(slice(data, ends, *g as usize));
                }
                let array: ArrayRef =
                    Arc::new(BinaryArray::new(offsets, Buffer::from_vec(bytes), nulls));
                if self.types[0] == DataType::Binary {
                    return Ok(vec![array]);
                }
                let text = cast(&array, &self.types[0]).map_err(|e| internal("a key", e))?;
                Ok(vec![text])
            }
            Keys::Rows { data, ends } => self
                .codec
                .decode(groups.iter().map(|g| slice(data, ends, *g as usize))),
        }
    }
}

fn nulls(null: &[bool], groups: &[u32]) -> Option<NullBuffer> {
    groups
        .iter()
        .any(|g| null[*g as usize])
        .then(|| groups.iter().map(|g| !null[*g as usize]).collect())
}

fn slice<'a>(data: &'a [u8], ends: &[usize], g: usize) -> &'a [u8] {
    let start = if g == 0 { 0 } else { ends[g - 1] };
    &data[start..ends[g]]
}

fn as_ints(column: &ArrayRef) -> Result<Int64Array> {
    let ints = match column.data_type() {
        DataType::Int64 => return Ok(column.as_primitive::<Int64Type>().clone()),
        DataType::Date32 => cast(column, &DataType::Int32).and_then(|c| cast(&c, &DataType::Int64)),
        _ => cast(column, &DataType::Int64),
    };
    let ints = ints.map_err(|e| internal("a key", e))?;
    Ok(ints.as_primitive::<Int64Type>().clone())
}

fn from_ints(ints: ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let back = match to {
        DataType::Int64 => return Ok(ints),
        DataType::Date32 => cast(&ints, &DataType::Int32).and_then(|c| cast(&c, &DataType::Date32)),
        _ => cast(&ints, to),
    };
    back.map_err(|e| internal("a key", e))
}

fn as_binary(column: &ArrayRef) -> Result<BinaryArray> {
    if column.data_type() == &DataType::Binary {
        return Ok(column.as_binary::<i32>().clone());
    }
    let column = cast(column, &DataType::Binary).map_err(|e| internal("a key", e))?;
    Ok(column.as_binary::<i32>().clone())
}
