//! The whole result, once per epoch in which it changed (output mode Complete). State table `rows` (key -> row, copies), all of it in
//! the key group of rows that have no key: whichever subtask owns that has the whole result, however many there are.
//!
//! With a key, rows that went since the last emission come first, as `-D`, so that a keyed sink forgets them; then every row
//! as `+I`, in the order of its key's bytes.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;

use super::groups::key_columns;
use super::rows::{
    RowCodec, STATE_VERSION, assemble, corrupt, get_bytes, get_fixed, get_signed, put_bytes,
    put_signed,
};
use super::{Context, Operator, Progress, Switches};
use crate::error::{EngineError, Result};
use crate::keys::{hash_columns, key_group};
use crate::message::{Barrier, Batch, EventTime, Lane, RowKind};
use crate::state::TableId;

type Key = Box<[u8]>;

pub struct Materialize {
    uid: String,
    key: Vec<usize>,
    keyed: bool,
    max_rows: usize,
    schema: SchemaRef,
    switches: Switches,
    keys: RowCodec,
    codec: RowCodec,
    table: TableId,
    /// Key -> row, copies.
    rows: BTreeMap<Key, (Box<[u8]>, i64)>,
    /// Keys that changed in this epoch, with the row consumers have.
    changed: BTreeMap<Key, Option<Box<[u8]>>>,
    pending: Vec<(RowKind, Box<[u8]>)>,
    next: usize,
    opened: bool,
}

impl Materialize {
    pub fn new(
        uid: String,
        key: &[usize],
        max_rows: usize,
        schema: SchemaRef,
        switches: Switches,
    ) -> Result<Self> {
        let keyed = !key.is_empty();
        let key: Vec<usize> = if keyed {
            key.to_vec()
        } else {
            (0..schema.fields().len()).collect()
        };
        Ok(Self {
            table: TableId::of(&uid, "rows"),
            uid,
            keys: RowCodec::new(key.iter().map(|k| schema.field(*k).data_type().clone()))?,
            codec: RowCodec::of(&schema)?,
            key,
            keyed,
            max_rows,
            schema,
            switches,
            rows: BTreeMap::new(),
            changed: BTreeMap::new(),
            pending: Vec::new(),
            next: 0,
            opened: false,
        })
    }

    fn open(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        cx.state.register(self.table, None);
        let home = home(cx);
        if !cx.state.key_groups().contains(&home) {
            return Ok(());
        }
        for group in cx.state.key_groups() {
            for (key, value) in
                cx.state
                    .scan(self.table, group, &[], None, usize::MAX, cx.now_ms)?
            {
                if group != home {
                    // As earlier versions left it: in groups that went to others when workers came.
                    cx.state.delete(self.table, group, &key);
                    cx.state.put(self.table, home, &key, &value, cx.now_ms);
                }
                let mut value = &value[..];
                if get_fixed(&mut value, 1)? != [STATE_VERSION] {
                    return Err(corrupt("another version"));
                }
                let count = get_signed(&mut value)?;
                let row = get_bytes(&mut value)?;
                self.rows.insert(key[..].into(), (row.into(), count));
            }
        }
        Ok(())
    }

    fn pump(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        while self.next < self.pending.len() {
            let to = self
                .pending
                .len()
                .min(self.next + self.switches.emit_rows.max(1));
            let part = &self.pending[self.next..to];
            self.next = to;
            let columns = self.codec.decode(part.iter().map(|(_, row)| &row[..]))?;
            let rows = assemble(&self.schema, columns, part.len())?;
            let kinds: Vec<RowKind> = part.iter().map(|(kind, _)| *kind).collect();
            cx.output.emit(Batch {
                rows,
                kinds: kinds.iter().any(|k| !k.adds()).then_some(kinds.into()),
                lane: Lane::Main,
            });
            if self.next < self.pending.len() && cx.output.is_full() {
                return Ok(Progress::More);
            }
        }
        self.pending = Vec::new();
        self.next = 0;
        Ok(Progress::Idle)
    }
}

/// Where rows without a key go.
fn home(cx: &Context<'_>) -> u16 {
    let hash = hash_columns(&[], 1)[0];
    key_group(hash, cx.state.total_groups())
}

impl Operator for Materialize {
    fn process(&mut self, _port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        let columns = key_columns(&batch.rows, &self.key);
        let keys = self.keys.encode(&columns)?;
        let rows = self.codec.encode(batch.rows.columns())?;
        for i in 0..batch.num_rows() {
            let key: Key = keys.row(i).data().into();
            let row = rows.row(i).data();
            let entry = self.rows.get(&key);
            self.changed
                .entry(key.clone())
                .or_insert_with(|| entry.filter(|(_, c)| *c > 0).map(|(row, _)| row.clone()));
            let adds = batch.kind(i).adds();
            if self.keyed {
                if adds {
                    self.rows.insert(key, (row.into(), 1));
                } else if entry.is_some_and(|(held, _)| **held == *row) {
                    // A -U after its +U, from another sender, must not take the newer row.
                    self.rows.remove(&key);
                }
            } else {
                let count = entry.map_or(0, |(_, c)| *c) + if adds { 1 } else { -1 };
                if count == 0 {
                    self.rows.remove(&key);
                } else {
                    self.rows.insert(key, (row.into(), count));
                }
            }
        }
        Ok(Progress::Idle)
    }

    fn on_dry(&mut self, _cx: &mut Context<'_>) -> Result<Progress> {
        // The whole result is told once per epoch.
        Ok(Progress::Idle)
    }

    fn on_watermark(&mut self, _t: EventTime, _cx: &mut Context<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }

    fn on_barrier(&mut self, _barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress> {
        self.open(cx)?;
        if self.changed.is_empty() {
            return Ok(Progress::Idle);
        }
        let total: usize = self.rows.values().map(|(_, c)| (*c).max(0) as usize).sum();
        if total > self.max_rows {
            return Err(EngineError::invalid(
                "PR0303",
                format!("operator {}", self.uid),
                format!(
                    "output mode Complete: the result has {total} rows, above maxCompleteRows {}",
                    self.max_rows
                ),
            ));
        }
        let mut value = Vec::new();
        let home = home(cx);
        for (key, old) in std::mem::take(&mut self.changed) {
            match self.rows.get(&key) {
                Some((row, count)) => {
                    value.clear();
                    value.push(STATE_VERSION);
                    put_signed(&mut value, *count);
                    put_bytes(&mut value, row);
                    cx.state.put(self.table, home, &key, &value, cx.now_ms);
                }
                None => {
                    cx.state.delete(self.table, home, &key);
                    if let (true, Some(old)) = (self.keyed, old) {
                        self.pending.push((RowKind::Delete, old));
                    }
                }
            }
        }
        for (row, count) in self.rows.values() {
            for _ in 0..*count {
                self.pending.push((RowKind::Insert, row.clone()));
            }
        }
        self.pump(cx)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress> {
        self.pump(cx)
    }

    fn memory_bytes(&self) -> usize {
        let rows: usize = self
            .rows
            .iter()
            .map(|(k, (r, _))| k.len() + r.len() + 64)
            .sum();
        rows + self.pending.len() * 24
    }

    fn state_keys(&self) -> usize {
        self.rows.len()
    }

    fn tables(&self) -> Vec<TableId> {
        vec![self.table]
    }
}
