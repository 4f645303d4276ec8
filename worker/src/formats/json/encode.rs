//! Rows to JSON objects, one per row, without allocation per row. Nulls are written, timestamps as `Timestamps` says, decimals
//! as numbers without exponent, binary as base64; NaN and infinities, which JSON has not, as strings.

use std::io::Write as _;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, LargeStringArray, ListArray, MapArray,
    PrimitiveArray, RecordBatch, StringArray, StringViewArray, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes as t;
use arrow::datatypes::{DataType, TimeUnit};

use super::{Timestamps, base64, time};
use crate::error::{EngineError, Result};
use crate::formats::{Encoder, code};

/// Encodes rows as objects.
pub struct JsonEncoder {
    timestamps: Timestamps,
    columns: Vec<(Box<[u8]>, Column)>,
}

impl JsonEncoder {
    pub fn new(timestamps: Timestamps) -> Self {
        Self {
            timestamps,
            columns: Vec::new(),
        }
    }
}

impl Encoder for JsonEncoder {
    fn bind(&mut self, rows: &RecordBatch) -> Result<()> {
        self.columns.clear();
        let schema = rows.schema();
        for (i, (field, array)) in schema.fields().iter().zip(rows.columns()).enumerate() {
            let column = Column::new(array, self.timestamps)?;
            self.columns.push((prefix(i, field.name()), column));
        }
        Ok(())
    }

    fn encode(&mut self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        write_object(&self.columns, row, out);
        Ok(())
    }
}

fn write_object(columns: &[(Box<[u8]>, Column)], row: usize, out: &mut Vec<u8>) {
    if columns.is_empty() {
        out.push(b'{');
    }
    for (prefix, column) in columns {
        out.extend_from_slice(prefix);
        column.write(row, out);
    }
    out.push(b'}');
}

/// `{"name":` or `,"name":`.
fn prefix(index: usize, name: &str) -> Box<[u8]> {
    let mut text = vec![if index == 0 { b'{' } else { b',' }];
    write_string(name.as_bytes(), &mut text);
    text.push(b':');
    text.into()
}

/// A bound column.
struct Column {
    nulls: Option<arrow::buffer::NullBuffer>,
    values: Values,
}

enum Values {
    Null,
    Boolean(BooleanArray),
    Int8(PrimitiveArray<t::Int8Type>),
    Int16(PrimitiveArray<t::Int16Type>),
    Int32(PrimitiveArray<t::Int32Type>),
    Int64(PrimitiveArray<t::Int64Type>),
    UInt64(PrimitiveArray<t::UInt64Type>),
    Float32(PrimitiveArray<t::Float32Type>),
    Float64(PrimitiveArray<t::Float64Type>),
    Decimal(PrimitiveArray<t::Decimal128Type>, usize),
    Text(StringArray),
    LargeText(LargeStringArray),
    TextView(StringViewArray),
    Binary(BinaryArray),
    Date(PrimitiveArray<t::Date32Type>),
    Time(PrimitiveArray<t::Int64Type>, TimeUnit),
    Timestamp {
        values: PrimitiveArray<t::Int64Type>,
        unit: TimeUnit,
        /// An instant: written with `Z`.
        zoned: bool,
        mode: Timestamps,
    },
    List(ListArray, Box<Column>),
    Map(MapArray, Box<Column>, Box<Column>),
    Struct(Vec<(Box<[u8]>, Column)>),
}

/// The same bits as i64: no copy.
fn as_i64(array: &ArrayRef) -> Result<PrimitiveArray<t::Int64Type>> {
    let data = array.to_data().into_builder().data_type(DataType::Int64);
    let data = data.build().map_err(|e| {
        EngineError::fail(code::FIELD, "format json", "a 64-bit column is none").caused_by(e)
    })?;
    Ok(data.into())
}

fn converted(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    cast(array, to).map_err(|e| {
        let from = array.data_type();
        EngineError::invalid(
            code::FIELD,
            "format json",
            format!("columns of type {from} cannot be written"),
        )
        .caused_by(e)
    })
}

impl Column {
    fn new(array: &ArrayRef, mode: Timestamps) -> Result<Self> {
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(array.as_boolean().clone()),
            DataType::Int8 => Values::Int8(array.as_primitive().clone()),
            DataType::Int16 => Values::Int16(array.as_primitive().clone()),
            DataType::Int32 => Values::Int32(array.as_primitive().clone()),
            DataType::Int64 => Values::Int64(array.as_primitive().clone()),
            DataType::UInt64 => Values::UInt64(array.as_primitive().clone()),
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => {
                Values::Int64(converted(array, &DataType::Int64)?.as_primitive().clone())
            }
            DataType::Float32 => Values::Float32(array.as_primitive().clone()),
            DataType::Float64 => Values::Float64(array.as_primitive().clone()),
            DataType::Decimal128(_, scale) if *scale >= 0 => {
                Values::Decimal(array.as_primitive().clone(), *scale as usize)
            }
            DataType::Utf8 => Values::Text(array.as_string().clone()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string().clone()),
            DataType::Utf8View => Values::TextView(array.as_string_view().clone()),
            DataType::Binary => Values::Binary(array.as_binary().clone()),
            DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Values::Binary(converted(array, &DataType::Binary)?.as_binary().clone())
            }
            DataType::Date32 => Values::Date(array.as_primitive().clone()),
            DataType::Time64(unit) => Values::Time(as_i64(array)?, *unit),
            DataType::Timestamp(unit, zone) => Values::Timestamp {
                values: as_i64(array)?,
                unit: *unit,
                zoned: zone.is_some(),
                mode,
            },
            DataType::List(_) => {
                let list = array.as_list::<i32>().clone();
                let items = Self::new(list.values(), mode)?;
                Values::List(list, Box::new(items))
            }
            DataType::Map(_, _) => {
                let map = array.as_map().clone();
                let key = Self::new(map.keys(), mode)?;
                let value = Self::new(map.values(), mode)?;
                Values::Map(map, Box::new(key), Box::new(value))
            }
            DataType::Struct(fields) => {
                let columns: &StructArray = array.as_struct();
                let columns = fields
                    .iter()
                    .zip(columns.columns())
                    .enumerate()
                    .map(|(i, (f, array))| Ok((prefix(i, f.name()), Self::new(array, mode)?)))
                    .collect::<Result<_>>()?;
                Values::Struct(columns)
            }
            DataType::Dictionary(_, value) => {
                let plain = converted(array, value)?;
                return Self::new(&plain, mode);
            }
            // Whatever has a text: intervals, durations and the like.
            _ => Values::Text(converted(array, &DataType::Utf8)?.as_string().clone()),
        };
        Ok(Self {
            nulls: array.logical_nulls().filter(|n| n.null_count() > 0),
            values,
        })
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            out.extend_from_slice(b"null");
            return;
        }
        match &self.values {
            Values::Null => out.extend_from_slice(b"null"),
            Values::Boolean(a) => {
                out.extend_from_slice(if a.value(row) { b"true" } else { b"false" });
            }
            Values::Int8(a) => write_integer(i64::from(a.value(row)), out),
            Values::Int16(a) => write_integer(i64::from(a.value(row)), out),
            Values::Int32(a) => write_integer(i64::from(a.value(row)), out),
            Values::Int64(a) => write_integer(a.value(row), out),
            Values::UInt64(a) => write_digits(a.value(row), out),
            Values::Float32(a) => {
                let v = a.value(row);
                if v.is_finite() {
                    write!(out, "{v:?}").expect("writing to memory does not fail");
                } else {
                    write_special(f64::from(v), out);
                }
            }
            Values::Float64(a) => {
                let v = a.value(row);
                if v.is_finite() {
                    write!(out, "{v:?}").expect("writing to memory does not fail");
                } else {
                    write_special(v, out);
                }
            }
            Values::Decimal(a, scale) => write_decimal(a.value(row), *scale, out),
            Values::Text(a) => write_string(a.value(row).as_bytes(), out),
            Values::LargeText(a) => write_string(a.value(row).as_bytes(), out),
            Values::TextView(a) => write_string(a.value(row).as_bytes(), out),
            Values::Binary(a) => {
                out.push(b'"');
                base64::encode(a.value(row), out);
                out.push(b'"');
            }
            Values::Date(a) => {
                out.push(b'"');
                time::write_date(i64::from(a.value(row)), out);
                out.push(b'"');
            }
            Values::Time(a, unit) => {
                out.push(b'"');
                time::write_time(a.value(row), *unit, out);
                out.push(b'"');
            }
            Values::Timestamp {
                values,
                unit,
                zoned,
                mode,
            } => write_timestamp(values.value(row), *unit, *zoned, *mode, out),
            Values::List(list, items) => {
                let ends = list.value_offsets();
                out.push(b'[');
                for (n, i) in (ends[row]..ends[row + 1]).enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    items.write(i as usize, out);
                }
                out.push(b']');
            }
            Values::Map(map, keys, values) => {
                let ends = map.value_offsets();
                out.push(b'{');
                for (n, i) in (ends[row]..ends[row + 1]).enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    keys.write_name(i as usize, out);
                    out.push(b':');
                    values.write(i as usize, out);
                }
                out.push(b'}');
            }
            Values::Struct(columns) => write_object(columns, row, out),
        }
    }

    /// As a member's name: in quotes, whatever the type.
    fn write_name(&self, row: usize, out: &mut Vec<u8>) {
        let start = out.len();
        self.write(row, out);
        if out.get(start) != Some(&b'"') {
            let bare = out.split_off(start);
            write_string(&bare, out);
        }
    }
}

fn write_special(v: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(match v {
        v if v.is_nan() => b"\"NaN\"",
        v if v > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    });
}

fn write_timestamp(v: i64, unit: TimeUnit, zoned: bool, mode: Timestamps, out: &mut Vec<u8>) {
    let wanted = match mode {
        Timestamps::Iso8601 => {
            out.push(b'"');
            time::write_timestamp(v, unit, out);
            if zoned {
                out.push(b'Z');
            }
            out.push(b'"');
            return;
        }
        Timestamps::EpochMillis => 1_000,
        Timestamps::EpochMicros => 1_000_000,
    };
    let own = time::per_second(unit);
    let number = if own >= wanted {
        i128::from(v).div_euclid(i128::from(own / wanted))
    } else {
        i128::from(v) * i128::from(wanted / own)
    };
    write_decimal(number, 0, out);
}

const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
2021222324252627282930313233343536373839\
4041424344454647484950515253545556575859\
6061626364656667686970717273747576777879\
8081828384858687888990919293949596979899";

fn write_digits(mut v: u64, out: &mut Vec<u8>) {
    let mut text = [0; 20];
    let mut at = text.len();
    while v >= 100 {
        let pair = (v % 100) as usize * 2;
        v /= 100;
        at -= 2;
        text[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    if v >= 10 {
        let pair = v as usize * 2;
        at -= 2;
        text[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    } else {
        at -= 1;
        text[at] = b'0' + v as u8;
    }
    out.extend_from_slice(&text[at..]);
}

fn write_integer(v: i64, out: &mut Vec<u8>) {
    if v < 0 {
        out.push(b'-');
    }
    write_digits(v.unsigned_abs(), out);
}

fn write_decimal(v: i128, scale: usize, out: &mut Vec<u8>) {
    if v < 0 {
        out.push(b'-');
    }
    let magnitude = v.unsigned_abs();
    let start = out.len();
    match u64::try_from(magnitude) {
        Ok(small) => write_digits(small, out),
        Err(_) => write!(out, "{magnitude}").expect("writing to memory does not fail"),
    }
    if scale > 0 {
        let digits = out.len() - start;
        if digits <= scale {
            let zeros = scale + 1 - digits;
            out.resize(out.len() + zeros, b'0');
            out[start..].rotate_right(zeros);
        }
        let point = out.len() - scale;
        out.push(0);
        out.copy_within(point..point + scale, point + 1);
        out[point] = b'.';
    }
}

fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut done = 0;
    loop {
        let (at, _) = super::scan::find_special(text, done);
        out.extend_from_slice(&text[done..at]);
        let Some(b) = text.get(at) else { break };
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            control => write!(out, "\\u{control:04x}").expect("writing to memory does not fail"),
        }
        done = at + 1;
    }
    out.push(b'"');
}
