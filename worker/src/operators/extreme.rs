//! MIN and MAX on append edges: one value per group. Floats in IEEE total order, as DataFusion's; strings and bytes by their
//! bytes; other types by their arrow-row bytes.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, PrimitiveArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{self as t, ArrowNativeTypeOp, DataType, TimeUnit, ToByteSlice};

use super::accumulate::{Accumulator, Selection};
use super::rows::{RowCodec, corrupt, get_bytes, get_fixed, internal, put_bytes};
use crate::error::Result;

pub(super) fn make(data_type: &DataType, max: bool) -> Result<Box<dyn Accumulator>> {
    macro_rules! primitive {
        ($ty:ty) => {
            Ok(Box::new(Primitive::<$ty> {
                values: Vec::new(),
                set: Vec::new(),
                data_type: data_type.clone(),
                max,
            }))
        };
    }
    let bytes = |codec| -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Bytes {
            values: Vec::new(),
            held: 0,
            data_type: data_type.clone(),
            codec,
            max,
        }))
    };
    match data_type {
        DataType::Int8 => primitive!(t::Int8Type),
        DataType::Int16 => primitive!(t::Int16Type),
        DataType::Int32 => primitive!(t::Int32Type),
        DataType::Int64 => primitive!(t::Int64Type),
        DataType::UInt8 => primitive!(t::UInt8Type),
        DataType::UInt16 => primitive!(t::UInt16Type),
        DataType::UInt32 => primitive!(t::UInt32Type),
        DataType::UInt64 => primitive!(t::UInt64Type),
        DataType::Float32 => primitive!(t::Float32Type),
        DataType::Float64 => primitive!(t::Float64Type),
        DataType::Decimal128(_, _) => primitive!(t::Decimal128Type),
        DataType::Date32 => primitive!(t::Date32Type),
        DataType::Timestamp(TimeUnit::Second, _) => primitive!(t::TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => primitive!(t::TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive!(t::TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => primitive!(t::TimestampNanosecondType),
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary => bytes(None),
        other => bytes(Some(RowCodec::new([other.clone()])?)),
    }
}

struct Primitive<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    set: Vec<bool>,
    data_type: DataType,
    max: bool,
}

impl<T: ArrowPrimitiveType> Primitive<T> {
    fn offer(&mut self, g: usize, v: T::Native) {
        let better = if self.max {
            v.is_gt(self.values[g])
        } else {
            v.is_lt(self.values[g])
        };
        if better || !self.set[g] {
            self.values[g] = v;
            self.set[g] = true;
        }
    }

    fn array(&self, groups: &[u32]) -> ArrayRef {
        let nulls: Option<NullBuffer> = groups
            .iter()
            .any(|g| !self.set[*g as usize])
            .then(|| groups.iter().map(|g| self.set[*g as usize]).collect());
        let values = groups.iter().map(|g| self.values[*g as usize]).collect();
        Arc::new(PrimitiveArray::<T>::new(values, nulls).with_data_type(self.data_type.clone()))
    }
}

impl<T: ArrowPrimitiveType> Accumulator for Primitive<T> {
    fn grow(&mut self, groups: usize) {
        self.values.resize(groups, T::Native::default());
        self.set.resize(groups, false);
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let a = args[0].as_primitive::<T>();
        if a.null_count() == 0 && rows.filter.is_none() {
            for (g, v) in rows.groups.iter().zip(a.values().iter()) {
                self.offer(*g as usize, *v);
            }
            return Ok(());
        }
        for (i, g) in rows.groups.iter().enumerate() {
            if a.is_valid(i) && rows.takes(i) {
                self.offer(*g as usize, a.value(i));
            }
        }
        Ok(())
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.array(groups)])
    }
    fn partial(&self, groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        Ok(Some(vec![self.array(groups)]))
    }
    fn merge(&mut self, states: &[ArrayRef], groups: &[u32]) -> Result<()> {
        self.update(
            states,
            Selection {
                groups,
                adds: None,
                filter: None,
            },
        )
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        let g = group as usize;
        out.push(u8::from(self.set[g]));
        if self.set[g] {
            out.extend_from_slice(self.values[g].to_byte_slice());
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        if get_fixed(bytes, 1)? == [0] {
            return Ok(());
        }
        let raw = get_fixed(bytes, size_of::<T::Native>())?;
        let mut v = [T::Native::default()];
        // Through arrow's own buffer, which aligns it.
        let buffer = arrow::buffer::Buffer::from_slice_ref(raw);
        let typed = buffer.typed_data::<T::Native>();
        v.copy_from_slice(typed.get(..1).ok_or_else(|| corrupt("short value"))?);
        self.offer(group as usize, v[0]);
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>() + self.set.capacity()
    }
}

struct Bytes {
    values: Vec<Option<Box<[u8]>>>,
    held: usize,
    data_type: DataType,
    /// For types without bytes of their own.
    codec: Option<RowCodec>,
    max: bool,
}

impl Bytes {
    fn offer(&mut self, g: usize, v: &[u8]) {
        let slot = &mut self.values[g];
        let better = slot
            .as_deref()
            .is_none_or(|old| if self.max { v > old } else { v < old });
        if better {
            self.held = self.held + v.len() - slot.as_ref().map_or(0, |o| o.len());
            *slot = Some(v.into());
        }
    }

    fn array(&self, groups: &[u32]) -> Result<ArrayRef> {
        if let Some(codec) = &self.codec {
            let null = codec.encode(&[arrow::array::new_null_array(&self.data_type, 1)])?;
            let rows = groups.iter().map(|g| {
                self.values[*g as usize]
                    .as_deref()
                    .unwrap_or(null.row(0).data())
            });
            return Ok(codec.decode(rows)?.remove(0));
        }
        let raw: BinaryArray = groups
            .iter()
            .map(|g| self.values[*g as usize].as_deref())
            .collect();
        let raw: ArrayRef = Arc::new(raw);
        cast(&raw, &self.data_type).map_err(|e| internal("min or max", e))
    }
}

impl Accumulator for Bytes {
    fn grow(&mut self, groups: usize) {
        self.values.resize(groups, None);
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let nulls = args[0].logical_nulls();
        let valid = |i: usize| nulls.as_ref().is_none_or(|n| n.is_valid(i));
        if let Some(codec) = &self.codec {
            let encoded = codec.encode(&args[..1])?;
            for (i, g) in rows.groups.iter().enumerate() {
                if valid(i) && rows.takes(i) {
                    self.offer(*g as usize, encoded.row(i).data());
                }
            }
            return Ok(());
        }
        let raw = cast(&args[0], &DataType::Binary).map_err(|e| internal("min or max", e))?;
        let raw = raw.as_binary::<i32>();
        for (i, g) in rows.groups.iter().enumerate() {
            if valid(i) && rows.takes(i) {
                self.offer(*g as usize, raw.value(i));
            }
        }
        Ok(())
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.array(groups)?])
    }
    fn partial(&self, groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        Ok(Some(vec![self.array(groups)?]))
    }
    fn merge(&mut self, states: &[ArrayRef], groups: &[u32]) -> Result<()> {
        self.update(
            states,
            Selection {
                groups,
                adds: None,
                filter: None,
            },
        )
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        match &self.values[group as usize] {
            None => out.push(0),
            Some(v) => {
                out.push(1);
                put_bytes(out, v);
            }
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        if get_fixed(bytes, 1)? == [1] {
            let v = get_bytes(bytes)?;
            self.offer(group as usize, v);
        }
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.values.capacity() * 16 + self.held
    }
}
