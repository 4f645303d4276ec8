//! Columns under construction: one node per field of the schema, filled in one pass over a record's bytes. A node may lag
//! behind its row count; missing values are padded when the next one comes, so a null object costs nothing per field.

use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, ListArray, MapArray, NullBufferBuilder, PrimitiveArray,
    StringArray, StructArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes as t;
use arrow::datatypes::{DataType, FieldRef, Fields, TimeUnit};

use super::Timestamps;
use super::fault::Fault;
use super::scan::{Cursor, unescape};
use super::time::LastDay;
use super::value;
use crate::error::{EngineError, Result};

type Parsed<T> = std::result::Result<T, Box<Fault>>;

/// How a column's own values are kept and read.
enum Values {
    Boolean(Vec<bool>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Text {
        ends: Vec<i32>,
        data: Vec<u8>,
    },
    Binary {
        ends: Vec<i32>,
        data: Vec<u8>,
    },
    Date(Vec<i32>),
    Time(Vec<i64>, TimeUnit),
    Timestamp {
        values: Vec<i64>,
        unit: TimeUnit,
        mode: Timestamps,
        day: LastDay,
    },
    List {
        ends: Vec<i32>,
        item: Box<Node>,
    },
    Map {
        ends: Vec<i32>,
        key: Box<Node>,
        value: Box<Node>,
    },
    Struct {
        len: usize,
        object: Object,
    },
}

/// A field under construction.
pub(super) struct Node {
    field: FieldRef,
    values: Values,
    nulls: NullBufferBuilder,
}

/// The fields of an object, found by name. Objects of one source mostly have the same members in the same order, so what comes
/// next is guessed from what came next before, wanted or not, and compared as a whole.
pub(super) struct Object {
    pub nodes: Vec<Node>,
    by_name: AHashMap<Box<[u8]>, usize>,
    required: Vec<usize>,
    /// Members that were met, in the order in which they were met first.
    members: Vec<Member>,
    /// The member that objects began with last.
    first: usize,
}

/// A name that was met, written without whitespace and escapes.
struct Member {
    /// `"name":`
    text: Box<[u8]>,
    /// The field of that name.
    node: Option<usize>,
    /// The member that followed it last.
    next: usize,
}

/// Members that are remembered of an object. Each name beyond them is compared with all of these, in every record.
const MEMBERS: usize = 256;

impl Object {
    pub fn new(fields: &Fields, mode: Timestamps, rows: usize) -> Result<Self> {
        let nodes = fields
            .iter()
            .map(|field| Node::new(field, mode, rows))
            .collect::<Result<Vec<_>>>()?;
        let names = fields.iter().enumerate();
        let by_name = names
            .map(|(i, f)| (f.name().as_bytes().into(), i))
            .collect();
        let required = fields
            .iter()
            .enumerate()
            .filter(|(_, f)| !f.is_nullable())
            .map(|(i, _)| i)
            .collect();
        Ok(Self {
            nodes,
            by_name,
            required,
            members: Vec::new(),
            first: 0,
        })
    }

    /// Takes the name that comes next, its colon and the whitespace after it: its field, and which member it is. `last`: the
    /// member before.
    #[inline]
    fn name(
        &mut self,
        cursor: &mut Cursor<'_>,
        last: Option<usize>,
    ) -> Parsed<(Option<usize>, Option<usize>)> {
        let guess = last.map_or(self.first, |last| self.members[last].next);
        if let Some(member) = self.members.get(guess)
            && cursor.eat(&member.text)
        {
            cursor.whitespace();
            return Ok((member.node, Some(guess)));
        }
        self.other_name(cursor, last)
    }

    /// Not the member that was guessed: what it is will be the next guess.
    fn other_name(
        &mut self,
        cursor: &mut Cursor<'_>,
        last: Option<usize>,
    ) -> Parsed<(Option<usize>, Option<usize>)> {
        cursor.expect(b'"', "a name")?;
        let name = cursor.string()?;
        cursor.colon()?;
        if name.escaped {
            let mut text = Vec::new();
            unescape(name.bytes, &mut text)?;
            return Ok((self.by_name.get(&text[..]).copied(), last));
        }
        let node = self.by_name.get(name.bytes).copied();
        let known = self
            .members
            .iter()
            .position(|m| m.text[1..m.text.len() - 2] == *name.bytes);
        let member = match known {
            Some(known) => known,
            None if self.members.len() < MEMBERS => {
                self.members.push(Member {
                    text: [b"\"", name.bytes, b"\":"].concat().into(),
                    node,
                    next: 0,
                });
                self.members.len() - 1
            }
            None => return Ok((node, last)),
        };
        match last {
            Some(last) => self.members[last].next = member,
            None => self.first = member,
        }
        Ok((node, Some(member)))
    }

    /// Reads an object whose opening brace was peeked into row `at` of the nodes.
    pub fn read(&mut self, cursor: &mut Cursor<'_>, at: usize, depth: usize) -> Parsed<()> {
        cursor.enter(depth)?;
        if !cursor.close(b'}') {
            let mut last = None;
            loop {
                let (field, member) = self.name(cursor, last)?;
                last = member;
                match field {
                    Some(i) => {
                        let node = &mut self.nodes[i];
                        node.read(cursor, at, depth + 1)
                            .map_err(|fault| fault.inside(node.field.name()))?;
                    }
                    None => cursor.skip(depth + 1)?,
                }
                if !cursor.more(b'}', "a comma or the end of an object")? {
                    break;
                }
            }
        }
        for i in &self.required {
            let node = &self.nodes[*i];
            if node.len() <= at {
                return Err(Fault::missing().inside(node.field.name()));
            }
        }
        Ok(())
    }

    pub fn truncate(&mut self, len: usize) {
        for node in &mut self.nodes {
            node.truncate(len);
        }
    }

    /// The columns, all `len` long; the object is empty afterwards.
    pub fn finish(&mut self, len: usize) -> Result<Vec<ArrayRef>> {
        self.nodes.iter_mut().map(|node| node.finish(len)).collect()
    }
}

/// `$body` with `$v` bound to the values, whatever vector holds one element per row.
macro_rules! each {
    ($values:expr, $v:ident => $fixed:expr, $ends:ident => $var:expr, $s:ident => $struct:expr) => {
        match $values {
            Values::Boolean($v) => $fixed,
            Values::Int8($v) => $fixed,
            Values::Int16($v) => $fixed,
            Values::Int32($v) | Values::Date($v) => $fixed,
            Values::Int64($v) | Values::Time($v, _) | Values::Timestamp { values: $v, .. } => {
                $fixed
            }
            Values::Float32($v) => $fixed,
            Values::Float64($v) => $fixed,
            Values::Decimal { values: $v, .. } => $fixed,
            Values::Text { ends: $ends, .. }
            | Values::Binary { ends: $ends, .. }
            | Values::List { ends: $ends, .. }
            | Values::Map { ends: $ends, .. } => $var,
            Values::Struct { len: $s, .. } => $struct,
        }
    };
}

impl Node {
    fn new(field: &FieldRef, mode: Timestamps, rows: usize) -> Result<Self> {
        let ends = || vec![0i32];
        let values = match field.data_type() {
            DataType::Boolean => Values::Boolean(Vec::with_capacity(rows)),
            DataType::Int8 => Values::Int8(Vec::with_capacity(rows)),
            DataType::Int16 => Values::Int16(Vec::with_capacity(rows)),
            DataType::Int32 => Values::Int32(Vec::with_capacity(rows)),
            DataType::Int64 => Values::Int64(Vec::with_capacity(rows)),
            DataType::Float32 => Values::Float32(Vec::with_capacity(rows)),
            DataType::Float64 => Values::Float64(Vec::with_capacity(rows)),
            DataType::Decimal128(precision, scale) if *scale >= 0 => Values::Decimal {
                values: Vec::with_capacity(rows),
                precision: *precision,
                scale: *scale,
            },
            DataType::Utf8 => Values::Text {
                ends: ends(),
                data: Vec::new(),
            },
            DataType::Binary => Values::Binary {
                ends: ends(),
                data: Vec::new(),
            },
            DataType::Date32 => Values::Date(Vec::with_capacity(rows)),
            DataType::Time64(unit) => Values::Time(Vec::with_capacity(rows), *unit),
            DataType::Timestamp(unit, _) => Values::Timestamp {
                values: Vec::with_capacity(rows),
                unit: *unit,
                mode,
                day: LastDay::default(),
            },
            DataType::List(item) => Values::List {
                ends: ends(),
                item: Box::new(Self::new(item, mode, 0)?),
            },
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(kv) if kv.len() == 2 => Values::Map {
                    ends: ends(),
                    key: Box::new(Self::new(&kv[0], mode, 0)?),
                    value: Box::new(Self::new(&kv[1], mode, 0)?),
                },
                other => return Err(unsupported(other)),
            },
            DataType::Struct(fields) => Values::Struct {
                len: 0,
                object: Object::new(fields, mode, rows)?,
            },
            other => return Err(unsupported(other)),
        };
        Ok(Self {
            field: Arc::clone(field),
            values,
            nulls: NullBufferBuilder::new(rows),
        })
    }

    fn len(&self) -> usize {
        each!(&self.values, v => v.len(), ends => ends.len() - 1, len => *len)
    }

    /// Pads with nulls up to `len`.
    fn pad(&mut self, len: usize) {
        let missing = len.saturating_sub(self.len());
        if missing == 0 {
            return;
        }
        self.nulls.append_n_nulls(missing);
        each!(&mut self.values, v => v.resize(len, Default::default()), ends => {
            let end = ends[ends.len() - 1];
            ends.resize(len + 1, end);
        }, l => *l = len);
    }

    /// Drops what lies at or behind `len`.
    fn truncate(&mut self, len: usize) {
        if self.len() <= len {
            return;
        }
        self.nulls.truncate(len);
        each!(&mut self.values, v => v.truncate(len), ends => ends.truncate(len + 1), l => *l = len);
        match &mut self.values {
            Values::Text { ends, data } | Values::Binary { ends, data } => {
                data.truncate(ends[len] as usize);
            }
            Values::List { ends, item } => item.truncate(ends[len] as usize),
            Values::Map { ends, key, value } => {
                key.truncate(ends[len] as usize);
                value.truncate(ends[len] as usize);
            }
            Values::Struct { object, .. } => object.truncate(len),
            _ => {}
        }
    }

    /// Undoes what a failed read of row `at` left in variable-length parts, whose ends were not moved.
    fn rewind_children(&mut self) {
        match &mut self.values {
            Values::Text { ends, data } | Values::Binary { ends, data } => {
                data.truncate(ends[ends.len() - 1] as usize);
            }
            Values::List { ends, item } => item.truncate(ends[ends.len() - 1] as usize),
            Values::Map { ends, key, value } => {
                let end = ends[ends.len() - 1] as usize;
                key.truncate(end);
                value.truncate(end);
            }
            Values::Struct { len, object } => object.truncate(*len),
            _ => {}
        }
    }

    /// Reads one value into row `at`. Of a name given twice the last value counts. A failure leaves no trace at or behind `at`.
    fn read(&mut self, cursor: &mut Cursor<'_>, at: usize, depth: usize) -> Parsed<()> {
        if self.len() != at {
            self.truncate(at);
            self.pad(at);
        }
        if cursor.peek() == Some(b'n') {
            cursor.literal("null")?;
            if !self.field.is_nullable() {
                return Err(Fault::null());
            }
            self.pad(at + 1);
            return Ok(());
        }
        match self.read_value(cursor, depth) {
            Ok(()) => {
                self.nulls.append_non_null();
                Ok(())
            }
            Err(fault) => {
                self.rewind_children();
                Err(fault)
            }
        }
    }

    #[inline]
    fn read_value(&mut self, cursor: &mut Cursor<'_>, depth: usize) -> Parsed<()> {
        match &mut self.values {
            Values::Int64(v) => v.push(value::integer(cursor, depth, "BIGINT")?),
            Values::Text { ends, data } => {
                value::text(cursor, depth, data)?;
                ends.push(end_of(data)?);
            }
            Values::Struct { len, object } => {
                if cursor.peek() != Some(b'{') {
                    return Err(value::wrong(cursor, depth, "an object"));
                }
                object.read(cursor, *len, depth)?;
                *len += 1;
            }
            Values::Timestamp {
                values,
                unit,
                mode,
                day,
            } => {
                values.push(value::timestamp(cursor, depth, *unit, *mode, day)?);
            }
            Values::Boolean(v) => v.push(value::boolean(cursor, depth)?),
            Values::Int8(v) => v.push(value::narrow(cursor, depth, "TINYINT")?),
            Values::Int16(v) => v.push(value::narrow(cursor, depth, "SMALLINT")?),
            Values::Int32(v) => v.push(value::narrow(cursor, depth, "INT")?),
            Values::Float32(v) => v.push(value::float32(cursor, depth)?),
            Values::Float64(v) => v.push(value::float64(cursor, depth)?),
            Values::Decimal {
                values,
                precision,
                scale,
            } => values.push(value::decimal(cursor, depth, *precision, *scale as u8)?),
            Values::Binary { ends, data } => {
                value::binary(cursor, depth, data)?;
                ends.push(end_of(data)?);
            }
            Values::Date(v) => v.push(value::date(cursor, depth)?),
            Values::Time(v, unit) => v.push(value::time(cursor, depth, *unit)?),
            Values::List { ends, item } => {
                let end = read_list(cursor, depth, ends[ends.len() - 1], item)?;
                ends.push(end);
            }
            Values::Map { ends, key, value } => {
                let end = read_map(cursor, depth, ends[ends.len() - 1], key, value)?;
                ends.push(end);
            }
        }
        Ok(())
    }

    /// The column, `len` long; the node is empty afterwards, with room for as many rows.
    fn finish(&mut self, len: usize) -> Result<ArrayRef> {
        self.pad(len);
        let nulls = self.nulls.finish();
        let object = || format!("column {}", self.field.name());
        let broken = |e: arrow::error::ArrowError| {
            EngineError::fail(super::super::code::BODY, object(), "columns do not fit").caused_by(e)
        };
        macro_rules! fixed {
            ($ty:ty, $v:expr) => {{
                let values = std::mem::replace($v, Vec::with_capacity(len));
                let array = PrimitiveArray::<$ty>::try_new(values.into(), nulls).map_err(broken)?;
                Arc::new(array.with_data_type(self.field.data_type().clone()))
            }};
        }
        let array: ArrayRef = match &mut self.values {
            Values::Boolean(v) => {
                let values = std::mem::replace(v, Vec::with_capacity(len));
                Arc::new(BooleanArray::new(values.into(), nulls))
            }
            Values::Int8(v) => fixed!(t::Int8Type, v),
            Values::Int16(v) => fixed!(t::Int16Type, v),
            Values::Int32(v) => fixed!(t::Int32Type, v),
            Values::Int64(v) => fixed!(t::Int64Type, v),
            Values::Float32(v) => fixed!(t::Float32Type, v),
            Values::Float64(v) => fixed!(t::Float64Type, v),
            Values::Decimal { values, .. } => fixed!(t::Decimal128Type, values),
            Values::Date(v) => fixed!(t::Date32Type, v),
            Values::Time(v, TimeUnit::Nanosecond) => fixed!(t::Time64NanosecondType, v),
            Values::Time(v, _) => fixed!(t::Time64MicrosecondType, v),
            Values::Timestamp { values, unit, .. } => match unit {
                TimeUnit::Second => fixed!(t::TimestampSecondType, values),
                TimeUnit::Millisecond => fixed!(t::TimestampMillisecondType, values),
                TimeUnit::Microsecond => fixed!(t::TimestampMicrosecondType, values),
                TimeUnit::Nanosecond => fixed!(t::TimestampNanosecondType, values),
            },
            Values::Text { ends, data } => {
                let (offsets, data) = (offsets(ends, len), bytes(data));
                Arc::new(StringArray::try_new(offsets, data, nulls).map_err(broken)?)
            }
            Values::Binary { ends, data } => {
                let (offsets, data) = (offsets(ends, len), bytes(data));
                Arc::new(BinaryArray::try_new(offsets, data, nulls).map_err(broken)?)
            }
            Values::List { ends, item } => {
                let items = item.finish(ends[ends.len() - 1] as usize)?;
                let offsets = offsets(ends, len);
                let field = Arc::clone(&item.field);
                Arc::new(ListArray::try_new(field, offsets, items, nulls).map_err(broken)?)
            }
            Values::Map { ends, key, value } => {
                let entries = ends[ends.len() - 1] as usize;
                let columns = vec![key.finish(entries)?, value.finish(entries)?];
                let DataType::Map(field, sorted) = self.field.data_type() else {
                    unreachable!("the node was made from a map");
                };
                let DataType::Struct(fields) = field.data_type() else {
                    unreachable!("the entries of a map are a struct");
                };
                let pairs =
                    StructArray::try_new_with_length(fields.clone(), columns, None, entries)
                        .map_err(broken)?;
                let offsets = offsets(ends, len);
                Arc::new(
                    MapArray::try_new(Arc::clone(field), offsets, pairs, nulls, *sorted)
                        .map_err(broken)?,
                )
            }
            Values::Struct { len: own, object } => {
                *own = 0;
                let columns = object.finish(len)?;
                let fields = object.nodes.iter().map(|n| Arc::clone(&n.field)).collect();
                Arc::new(
                    StructArray::try_new_with_length(fields, columns, nulls, len)
                        .map_err(broken)?,
                )
            }
        };
        Ok(array)
    }
}

fn read_list(cursor: &mut Cursor<'_>, depth: usize, from: i32, item: &mut Node) -> Parsed<i32> {
    if cursor.peek() != Some(b'[') {
        return Err(value::wrong(cursor, depth, "an array"));
    }
    cursor.enter(depth)?;
    let mut at = from as usize;
    if !cursor.close(b']') {
        loop {
            item.read(cursor, at, depth + 1)?;
            at += 1;
            if !cursor.more(b']', "a comma or the end of an array")? {
                break;
            }
        }
    }
    count(at)
}

fn read_map(
    cursor: &mut Cursor<'_>,
    depth: usize,
    from: i32,
    key: &mut Node,
    value: &mut Node,
) -> Parsed<i32> {
    if cursor.peek() != Some(b'{') {
        return Err(value::wrong(cursor, depth, "an object"));
    }
    cursor.enter(depth)?;
    let mut at = from as usize;
    if !cursor.close(b'}') {
        loop {
            // The key is a string in JSON, whatever its column's type; the readers of values take strings for all.
            if cursor.peek() != Some(b'"') {
                return Err(cursor.unexpected("a name"));
            }
            key.read(cursor, at, depth + 1)?;
            cursor.colon()?;
            value.read(cursor, at, depth + 1)?;
            at += 1;
            if !cursor.more(b'}', "a comma or the end of an object")? {
                break;
            }
        }
    }
    count(at)
}

fn count(at: usize) -> Parsed<i32> {
    i32::try_from(at).map_err(|_| Fault::size(at, i32::MAX as usize))
}

fn end_of(data: &[u8]) -> Parsed<i32> {
    count(data.len())
}

fn offsets(ends: &mut Vec<i32>, len: usize) -> OffsetBuffer<i32> {
    let mut fresh = Vec::with_capacity(len + 1);
    fresh.push(0);
    OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(ends, fresh)))
}

fn bytes(data: &mut Vec<u8>) -> Buffer {
    let fresh = Vec::with_capacity(data.len());
    Buffer::from_vec(std::mem::replace(data, fresh))
}

fn unsupported(data_type: &DataType) -> EngineError {
    EngineError::invalid(
        super::super::code::FIELD,
        "format json",
        format!("columns of type {data_type} cannot be read"),
    )
}
