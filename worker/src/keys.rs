//! Keys to key groups to subtasks. The hash is part of the state format: it is the same for ever, on every machine, so it
//! is written here and does not come from a library's default hasher.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use xxhash_rust::xxh3::xxh3_64;

/// Stable hash of a split id `source/split`: the value of the hidden column `$split`.
pub fn split_hash(source: &str, split: &str) -> u64 {
    let mut id = Vec::with_capacity(source.len() + split.len() + 1);
    id.extend_from_slice(source.as_bytes());
    id.push(b'/');
    id.extend_from_slice(split.as_bytes());
    xxh3_64(&id)
}

/// splitmix64's finalizer: every input bit reaches every output bit.
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const NULL: u64 = 0x9e37_79b9_7f4a_7c15;

/// One hash per row over the given columns, in their order. No columns: all rows hash to 0. Floats: -0.0 equals 0.0, all
/// NaNs are equal. Nested types go through their arrow-row bytes.
pub fn hash_columns(columns: &[ArrayRef], rows: usize) -> Vec<u64> {
    let mut out = vec![0u64; rows];
    for column in columns {
        hash_column(column, &mut out);
    }
    out
}

/// Key group of a hash. `groups` > 0.
pub const fn key_group(hash: u64, groups: u16) -> u16 {
    // The high bits: the low ones pick buckets in hash tables.
    (((hash >> 32) * groups as u64) >> 32) as u16
}

/// Subtask that owns a key group: contiguous ranges, `group * subtasks / groups`.
pub const fn owner(group: u16, groups: u16, subtasks: usize) -> usize {
    group as usize * subtasks / groups as usize
}

/// Shard of a key group: `group / (groups / shards)`; `shards` divides `groups`.
pub const fn shard_of_group(group: u16, groups: u16, shards: u16) -> u16 {
    group / (groups / shards)
}

fn hash_column(column: &ArrayRef, out: &mut [u64]) {
    macro_rules! fixed {
        ($ty:ty, $bits:expr) => {{
            let a = column.as_primitive::<$ty>();
            let bits: fn(<$ty as arrow::datatypes::ArrowPrimitiveType>::Native) -> u64 = $bits;
            if a.null_count() == 0 {
                for (h, v) in out.iter_mut().zip(a.values().iter()) {
                    *h = mix(h.rotate_left(23) ^ bits(*v));
                }
            } else {
                for (i, h) in out.iter_mut().enumerate() {
                    let v = if a.is_null(i) { NULL } else { bits(a.value(i)) };
                    *h = mix(h.rotate_left(23) ^ v);
                }
            }
        }};
    }
    macro_rules! bytes {
        ($a:expr, $as_bytes:expr) => {{
            let a = $a;
            for (i, h) in out.iter_mut().enumerate() {
                let v = if a.is_null(i) {
                    NULL
                } else {
                    xxh3_64($as_bytes(a.value(i)))
                };
                *h = mix(h.rotate_left(23) ^ v);
            }
        }};
    }
    use arrow::datatypes as t;
    match column.data_type() {
        DataType::Int8 => fixed!(t::Int8Type, |v| v as i64 as u64),
        DataType::Int16 => fixed!(t::Int16Type, |v| v as i64 as u64),
        DataType::Int32 => fixed!(t::Int32Type, |v| v as i64 as u64),
        DataType::Int64 => fixed!(t::Int64Type, |v| v as u64),
        DataType::UInt8 => fixed!(t::UInt8Type, |v| u64::from(v)),
        DataType::UInt16 => fixed!(t::UInt16Type, |v| u64::from(v)),
        DataType::UInt32 => fixed!(t::UInt32Type, |v| u64::from(v)),
        DataType::UInt64 => fixed!(t::UInt64Type, |v| v),
        DataType::Date32 => fixed!(t::Date32Type, |v| v as i64 as u64),
        DataType::Timestamp(t::TimeUnit::Second, _) => fixed!(t::TimestampSecondType, |v| v as u64),
        DataType::Timestamp(t::TimeUnit::Millisecond, _) => {
            fixed!(t::TimestampMillisecondType, |v| v as u64)
        }
        DataType::Timestamp(t::TimeUnit::Microsecond, _) => {
            fixed!(t::TimestampMicrosecondType, |v| v as u64)
        }
        DataType::Timestamp(t::TimeUnit::Nanosecond, _) => {
            fixed!(t::TimestampNanosecondType, |v| v as u64)
        }
        DataType::Decimal128(_, _) => {
            fixed!(t::Decimal128Type, |v| mix(v as u64) ^ (v >> 64) as u64)
        }
        DataType::Float32 => fixed!(Float32Type, |v| float_bits(f64::from(v))),
        DataType::Float64 => fixed!(Float64Type, |v| float_bits(v)),
        DataType::Utf8 => bytes!(column.as_string::<i32>(), str::as_bytes),
        DataType::LargeUtf8 => bytes!(column.as_string::<i64>(), str::as_bytes),
        DataType::Utf8View => bytes!(column.as_string_view(), str::as_bytes),
        DataType::Binary => bytes!(column.as_binary::<i32>(), |v| v),
        DataType::LargeBinary => bytes!(column.as_binary::<i64>(), |v| v),
        DataType::Boolean => {
            let a = column.as_boolean();
            for (i, h) in out.iter_mut().enumerate() {
                let v = if a.is_null(i) {
                    NULL
                } else {
                    u64::from(a.value(i))
                };
                *h = mix(h.rotate_left(23) ^ v);
            }
        }
        _ => hash_nested(column, out),
    }
}

fn float_bits(v: f64) -> u64 {
    if v == 0.0 {
        0
    } else if v.is_nan() {
        f64::NAN.to_bits()
    } else {
        v.to_bits()
    }
}

fn hash_nested(column: &ArrayRef, out: &mut [u64]) {
    let converter =
        arrow_row::RowConverter::new(vec![arrow_row::SortField::new(column.data_type().clone())])
            .expect("the planner refuses key types that have no row format");
    let rows = converter
        .convert_columns(std::slice::from_ref(column))
        .expect("the column has the type the converter was made for");
    for (h, row) in out.iter_mut().zip(rows.iter()) {
        *h = mix(h.rotate_left(23) ^ xxh3_64(row.as_ref()));
    }
}
