//! Sets of values per group: DISTINCT aggregates, and MIN and MAX where rows can be taken back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;

use super::accumulate::{Accumulator, Selection};
use super::groups::GroupIndex;
use super::rows::{
    RowCodec, get_bytes, get_signed, get_varint, internal, put_bytes, put_signed, put_varint,
};
use crate::error::Result;
use crate::keys::hash_columns;

/// DISTINCT around another aggregate: one typed set of (group, value), with counts; the inner aggregate sees a value when it
/// appears and when its last copy goes.
pub(super) struct Distinct {
    values: GroupIndex,
    /// Copies of each value.
    counts: Vec<i64>,
    /// Per value the one before it in its group, plus one; 0 ends the list.
    next: Vec<u32>,
    /// Per group its newest value, plus one.
    head: Vec<u32>,
    inner: Box<dyn Accumulator>,
}

impl Distinct {
    pub(super) fn new(types: &[DataType], inner: Box<dyn Accumulator>) -> Result<Self> {
        Ok(Self {
            values: GroupIndex::new(types, true)?,
            counts: Vec::new(),
            next: Vec::new(),
            head: Vec::new(),
            inner,
        })
    }

    /// Adds `signs[i]` copies of row i's value to its group.
    fn add(&mut self, args: &[ArrayRef], groups: &[u32], signs: &[i64]) -> Result<()> {
        let hashes = hash_columns(args, groups.len());
        let tags: Vec<i64> = groups.iter().map(|g| i64::from(*g)).collect();
        let ids = self.values.intern(args, &hashes, &tags)?;
        let mut changed = Vec::new();
        let mut adds = Vec::new();
        for (i, id) in ids.iter().enumerate() {
            let v = *id as usize;
            if v == self.counts.len() {
                self.counts.push(0);
                let g = groups[i] as usize;
                self.next.push(self.head[g]);
                self.head[g] = id + 1;
            }
            let before = self.counts[v] > 0;
            self.counts[v] += signs[i];
            let after = self.counts[v] > 0;
            if before != after {
                changed.push(i as u32);
                adds.push(after);
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let groups: Vec<u32> = changed.iter().map(|i| groups[*i as usize]).collect();
        let indices = UInt32Array::from(changed);
        let args = args
            .iter()
            .map(|a| take(a, &indices, None).map_err(|e| internal("distinct", e)))
            .collect::<Result<Vec<_>>>()?;
        let adds = adds.iter().any(|a| !a).then_some(adds);
        self.inner.update(
            &args,
            Selection {
                groups: &groups,
                adds: adds.as_deref(),
                filter: None,
            },
        )
    }

    fn values_of(&self, group: u32) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut at = self.head[group as usize];
        while at != 0 {
            if self.counts[at as usize - 1] != 0 {
                ids.push(at - 1);
            }
            at = self.next[at as usize - 1];
        }
        // By arrival, so that the bytes do not depend on the list's direction.
        ids.reverse();
        ids
    }
}

impl Accumulator for Distinct {
    fn grow(&mut self, groups: usize) {
        self.head.resize(groups, 0);
        self.inner.grow(groups);
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let nulls: Vec<_> = args.iter().filter_map(|a| a.logical_nulls()).collect();
        let counts = |i: usize| rows.takes(i) && nulls.iter().all(|n| n.is_valid(i));
        let n = rows.groups.len();
        let mask: BooleanArray = (0..n).map(|i| Some(counts(i))).collect();
        let signs: Vec<i64> = (0..n)
            .filter(|i| counts(*i))
            .map(|i| rows.sign(i))
            .collect();
        if signs.len() == n {
            return self.add(args, rows.groups, &signs);
        }
        let groups: Vec<u32> = (0..n)
            .filter(|i| counts(*i))
            .map(|i| rows.groups[i])
            .collect();
        let args = args
            .iter()
            .map(|a| arrow::compute::filter(a, &mask).map_err(|e| internal("distinct", e)))
            .collect::<Result<Vec<_>>>()?;
        self.add(&args, &groups, &signs)
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.inner.result(groups)
    }
    fn partial(&self, _groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        Ok(None)
    }
    fn merge(&mut self, _states: &[ArrayRef], _groups: &[u32]) -> Result<()> {
        Err(super::accumulate::unsupported("DISTINCT in two phases"))
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        let ids = self.values_of(group);
        put_varint(out, ids.len() as u64);
        let rows = self.values.codec().encode(&self.values.columns(&ids)?)?;
        for (i, id) in ids.iter().enumerate() {
            put_signed(out, self.counts[*id as usize]);
            put_bytes(out, rows.row(i).data());
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        let n = get_varint(bytes)? as usize;
        let mut signs = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..n {
            signs.push(get_signed(bytes)?);
            rows.push(get_bytes(bytes)?);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let args = self.values.codec().decode(rows)?;
        self.add(&args, &vec![group; n], &signs)
    }
    fn memory_bytes(&self) -> usize {
        self.values.memory_bytes()
            + self.counts.capacity() * 8
            + (self.next.capacity() + self.head.capacity()) * 4
            + self.inner.memory_bytes()
    }
}

/// MIN or MAX over rows that can be taken back: all values, counted, in order.
pub(super) struct Multiset {
    groups: Vec<BTreeMap<Arc<[u8]>, i64>>,
    codec: RowCodec,
    data_type: DataType,
    max: bool,
    held: usize,
}

impl Multiset {
    pub(super) fn new(t: &DataType, max: bool) -> Result<Self> {
        Ok(Self {
            groups: Vec::new(),
            codec: RowCodec::new([t.clone()])?,
            data_type: t.clone(),
            max,
            held: 0,
        })
    }

    fn add(&mut self, group: usize, value: &[u8], by: i64) {
        let values = &mut self.groups[group];
        if let Some(count) = values.get_mut(value) {
            *count += by;
            if *count == 0 {
                values.remove(value);
                self.held -= value.len() + 48;
            }
        } else {
            values.insert(value.into(), by);
            self.held += value.len() + 48;
        }
    }
}

impl Accumulator for Multiset {
    fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, BTreeMap::new());
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let nulls = args[0].logical_nulls();
        let encoded = self.codec.encode(&args[..1])?;
        for (i, g) in rows.groups.iter().enumerate() {
            if rows.takes(i) && nulls.as_ref().is_none_or(|n| n.is_valid(i)) {
                self.add(*g as usize, encoded.row(i).data(), rows.sign(i));
            }
        }
        Ok(())
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let null = self
            .codec
            .encode(&[arrow::array::new_null_array(&self.data_type, 1)])?;
        // A count below zero is a row taken back before it came.
        let best = |g: &u32| {
            let mut present = self.groups[*g as usize].iter().filter(|(_, c)| **c > 0);
            let found = if self.max {
                present.next_back()
            } else {
                present.next()
            };
            found.map_or(null.row(0).data(), |(v, _)| v)
        };
        self.codec.decode(groups.iter().map(best))
    }
    fn partial(&self, _groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        Ok(None)
    }
    fn merge(&mut self, _states: &[ArrayRef], _groups: &[u32]) -> Result<()> {
        Err(super::accumulate::unsupported(
            "MIN or MAX with retractions in two phases",
        ))
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        let values = &self.groups[group as usize];
        put_varint(out, values.len() as u64);
        for (value, count) in values {
            put_signed(out, *count);
            put_bytes(out, value);
        }
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        for _ in 0..get_varint(bytes)? {
            let count = get_signed(bytes)?;
            let value = get_bytes(bytes)?;
            self.add(group as usize, value, count);
        }
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.held + self.groups.capacity() * 24
    }
}
