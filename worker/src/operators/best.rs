//! The first row per group in an order: the accumulator behind deduplication. Its arguments are all columns of the input,
//! its result is a whole row.
//!
//! Order: the sort keys, then `$split` and `$offset` where the input has them, then the row's own bytes, so that the answer
//! never depends on arrival. Of rows with equal sort keys the first one read is first; where the last row by time is asked
//! for, the last one read.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, DynComparator, RecordBatch, make_comparator};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use arrow_row::{RowConverter, SortField};
use penstock_plan::graph::{SortKey, hidden};

use super::accumulate::{Accumulator, Selection};
use super::groups::NO_GROUP;
use super::rows::{
    RowCodec, corrupt, get_bytes, get_signed, get_varint, internal, put_bytes, put_signed,
    put_varint, take_rows,
};
use crate::error::Result;

/// The order of rows, as columns and directions.
#[derive(Clone)]
pub struct RowOrder {
    schema: SchemaRef,
    columns: Vec<(usize, SortOptions)>,
}

impl RowOrder {
    /// `last_wins`: among equals the later one in its split comes first.
    pub fn new(schema: &SchemaRef, order: &[SortKey], last_wins: bool) -> Self {
        let mut columns: Vec<(usize, SortOptions)> = order
            .iter()
            .map(|k| {
                let options = SortOptions {
                    descending: k.descending,
                    nulls_first: k.nulls_first,
                };
                (k.column, options)
            })
            .collect();
        for name in [hidden::SPLIT, hidden::OFFSET] {
            if let Ok(i) = schema.index_of(name) {
                let options = SortOptions {
                    descending: last_wins,
                    nulls_first: true,
                };
                columns.push((i, options));
            }
        }
        if columns.is_empty() {
            columns = (0..schema.fields().len())
                .map(|i| (i, SortOptions::default()))
                .collect();
        }
        Self {
            schema: SchemaRef::clone(schema),
            columns,
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn converter(&self) -> Result<RowConverter> {
        let fields = self
            .columns
            .iter()
            .map(|(c, o)| {
                SortField::new_with_options(self.schema.field(*c).data_type().clone(), *o)
            })
            .collect();
        RowConverter::new(fields).map_err(|e| internal("an order's type", e))
    }

    pub fn columns(&self, all: &[ArrayRef]) -> Vec<ArrayRef> {
        self.columns
            .iter()
            .map(|(c, _)| ArrayRef::clone(&all[*c]))
            .collect()
    }

    /// Compares rows of one batch; without the last tie-breaker.
    pub fn comparators(&self, all: &[ArrayRef]) -> Result<Vec<DynComparator>> {
        self.columns
            .iter()
            .map(|(c, o)| {
                make_comparator(&all[*c], &all[*c], *o).map_err(|e| internal("an order's type", e))
            })
            .collect()
    }
}

/// A row with its place in the order.
struct Ranked {
    /// Order bytes, then row bytes: arrow-row's delimit themselves, so that this sorts by order, then by row.
    bytes: Box<[u8]>,
    order: u32,
}

impl Ranked {
    fn new(order: &[u8], row: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(order.len() + row.len());
        bytes.extend_from_slice(order);
        bytes.extend_from_slice(row);
        Self {
            bytes: bytes.into(),
            order: order.len() as u32,
        }
    }
    fn row(&self) -> &[u8] {
        &self.bytes[self.order as usize..]
    }
}

/// Append edges: one row per group.
pub struct Best {
    order: RowOrder,
    rank: RowConverter,
    codec: RowCodec,
    rows: Vec<Option<Ranked>>,
    held: usize,
    /// Per group the best row of the running batch; all `NO_GROUP` between batches.
    scratch: Vec<u32>,
}

impl Best {
    pub fn new(order: RowOrder) -> Result<Self> {
        Ok(Self {
            rank: order.converter()?,
            codec: RowCodec::of(order.schema())?,
            order,
            rows: Vec::new(),
            held: 0,
            scratch: Vec::new(),
        })
    }

    fn offer(&mut self, group: usize, order: &[u8], row: &[u8]) {
        let slot = &mut self.rows[group];
        let better = slot.as_ref().is_none_or(|old| {
            let old_order = &old.bytes[..old.order as usize];
            order
                .cmp(old_order)
                .then_with(|| row.cmp(old.row()))
                .is_lt()
        });
        if better {
            self.held = self.held + order.len() + row.len() + 16
                - slot.as_ref().map_or(0, |o| o.bytes.len() + 16);
            *slot = Some(Ranked::new(order, row));
        }
    }
}

fn rows_of(
    codec: &RowCodec,
    schema: &SchemaRef,
    rows: Vec<Option<&[u8]>>,
) -> Result<Vec<ArrayRef>> {
    if rows.iter().all(Option::is_some) {
        return codec.decode(rows.into_iter().flatten());
    }
    // A group without rows is never emitted; nulls stand in for it.
    let nulls: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|f| arrow::array::new_null_array(f.data_type(), 1))
        .collect();
    let null = codec.encode(&nulls)?;
    codec.decode(rows.into_iter().map(|r| r.unwrap_or(null.row(0).data())))
}

impl Accumulator for Best {
    fn grow(&mut self, groups: usize) {
        self.rows.resize_with(groups, || None);
        self.scratch.resize(groups, NO_GROUP);
    }

    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let compare = self.order.comparators(args)?;
        let mut touched: Vec<u32> = Vec::new();
        for (i, g) in rows.groups.iter().enumerate() {
            let best = &mut self.scratch[*g as usize];
            if *best == NO_GROUP {
                *best = i as u32;
                touched.push(*g);
                continue;
            }
            let ordering = compare
                .iter()
                .map(|c| c(i, *best as usize))
                .find(|o| o.is_ne());
            match ordering {
                Some(std::cmp::Ordering::Less) => *best = i as u32,
                Some(_) => {}
                None => {
                    // Equal so far: the row's own bytes decide.
                    let pair: Vec<ArrayRef> = args.to_vec();
                    let (a, b) = (
                        self.codec.encode(&slice_all(&pair, i))?,
                        self.codec.encode(&slice_all(&pair, *best as usize))?,
                    );
                    if a.row(0) < b.row(0) {
                        *best = i as u32;
                    }
                }
            }
        }
        let chosen: Vec<u32> = touched.iter().map(|g| self.scratch[*g as usize]).collect();
        for g in &touched {
            self.scratch[*g as usize] = NO_GROUP;
        }
        let batch = RecordBatch::try_new(SchemaRef::clone(self.order.schema()), args.to_vec())
            .map_err(|e| internal("rows of another schema", e))?;
        let chosen = if chosen.len() == batch.num_rows() {
            // Every row its own group: they stand in arrival order already.
            batch
        } else {
            take_rows(&batch, &chosen)?
        };
        let ranks = self
            .rank
            .convert_columns(&self.order.columns(chosen.columns()))
            .map_err(|e| internal("an order", e))?;
        let encoded = self.codec.encode(chosen.columns())?;
        for (i, g) in touched.iter().enumerate() {
            self.offer(*g as usize, ranks.row(i).data(), encoded.row(i).data());
        }
        Ok(())
    }

    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let rows = groups
            .iter()
            .map(|g| self.rows[*g as usize].as_ref().map(Ranked::row))
            .collect();
        rows_of(&self.codec, self.order.schema(), rows)
    }
    fn partial(&self, groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        let rows = groups
            .iter()
            .map(|g| self.rows[*g as usize].as_ref().map(Ranked::row))
            .collect();
        Ok(Some(rows_of(&self.codec, self.order.schema(), rows)?))
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
        match &self.rows[group as usize] {
            None => out.push(0),
            Some(ranked) => {
                put_varint(out, u64::from(ranked.order) + 1);
                put_bytes(out, &ranked.bytes);
            }
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        let order = get_varint(bytes)? as usize;
        if order == 0 {
            return Ok(());
        }
        let (order, row) = get_bytes(bytes)?
            .split_at_checked(order - 1)
            .ok_or_else(|| corrupt("short row"))?;
        self.offer(group as usize, order, row);
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.held + self.rows.capacity() * 24 + self.scratch.capacity() * 4
    }
}

fn slice_all(columns: &[ArrayRef], row: usize) -> Vec<ArrayRef> {
    columns.iter().map(|c| c.slice(row, 1)).collect()
}

/// Order and row bytes -> length of the order bytes, copies.
type RankedRows = BTreeMap<Box<[u8]>, (u32, i64)>;

/// Edges with retractions: all rows of a group, counted, in order.
pub struct BestOfAll {
    order: RowOrder,
    rank: RowConverter,
    codec: RowCodec,
    groups: Vec<RankedRows>,
    held: usize,
}

impl BestOfAll {
    pub fn new(order: RowOrder) -> Result<Self> {
        Ok(Self {
            rank: order.converter()?,
            codec: RowCodec::of(order.schema())?,
            order,
            groups: Vec::new(),
            held: 0,
        })
    }

    fn add(&mut self, group: usize, ranked: Ranked, by: i64) {
        let rows = &mut self.groups[group];
        let len = ranked.bytes.len() + 64;
        let (_, count) = rows
            .entry(ranked.bytes.clone())
            .or_insert((ranked.order, 0));
        if *count == 0 {
            self.held += len;
        }
        *count += by;
        if *count == 0 {
            rows.remove(&ranked.bytes);
            self.held -= len;
        }
    }
}

impl Accumulator for BestOfAll {
    fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, BTreeMap::new());
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let ranks = self
            .rank
            .convert_columns(&self.order.columns(args))
            .map_err(|e| internal("an order", e))?;
        let encoded = self.codec.encode(args)?;
        for (i, g) in rows.groups.iter().enumerate() {
            let ranked = Ranked::new(ranks.row(i).data(), encoded.row(i).data());
            self.add(*g as usize, ranked, rows.sign(i));
        }
        Ok(())
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let rows = groups
            .iter()
            .map(|g| {
                let mut present = self.groups[*g as usize].iter().filter(|(_, (_, c))| *c > 0);
                present
                    .next()
                    .map(|(bytes, (order, _))| &bytes[*order as usize..])
            })
            .collect();
        rows_of(&self.codec, self.order.schema(), rows)
    }
    fn partial(&self, _groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        Ok(None)
    }
    fn merge(&mut self, _states: &[ArrayRef], _groups: &[u32]) -> Result<()> {
        Err(super::accumulate::unsupported(
            "deduplication with retractions in two phases",
        ))
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        let rows = &self.groups[group as usize];
        put_varint(out, rows.len() as u64);
        for (bytes, (order, count)) in rows {
            put_signed(out, *count);
            put_varint(out, u64::from(*order));
            put_bytes(out, bytes);
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        for _ in 0..get_varint(bytes)? {
            let count = get_signed(bytes)?;
            let order = get_varint(bytes)? as u32;
            let ranked = Ranked {
                bytes: get_bytes(bytes)?.into(),
                order,
            };
            if order as usize > ranked.bytes.len() {
                return Err(corrupt("short row"));
            }
            self.add(group as usize, ranked, count);
        }
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.held + self.groups.capacity() * 24
    }
}
