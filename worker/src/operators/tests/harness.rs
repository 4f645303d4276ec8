//! Drives one operator as its task would: resumes it, restarts it from state, splits rows among slots.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use penstock_plan::graph::{Aggregate, AggregateFunction, EdgeKind, Node, NodeId, Op, Uid};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::rows::take_rows;
use super::super::{Context, Operator, Output, Progress, Switches, build};
use crate::keys::{hash_columns, key_group};
use crate::message::{Barrier, BarrierKind, Batch, EventTime, RowKind};
use crate::state::SlotState;

pub const GROUPS: u16 = 16;

/// Takes everything; full at random.
pub struct Sink {
    pub batches: Vec<Batch>,
    pub late: Vec<RecordBatch>,
    rng: ChaCha8Rng,
    full: bool,
}

impl Output for Sink {
    fn emit(&mut self, batch: Batch) {
        self.batches.push(batch);
        self.full = self.rng.random_bool(0.3);
    }
    fn is_full(&self) -> bool {
        self.full
    }
    fn late(&mut self, rows: RecordBatch) {
        self.late.push(rows);
    }
}

/// One subtask: an operator over its own state.
pub struct Subtask {
    node: Node,
    inputs: Vec<SchemaRef>,
    late: Option<SchemaRef>,
    kinds: Vec<EdgeKind>,
    switches: Switches,
    operator: Box<dyn Operator>,
    state: SlotState,
    pub sink: Sink,
    epoch: u64,
    watermark: EventTime,
}

impl Subtask {
    pub fn new(
        node: &Node,
        inputs: &[SchemaRef],
        late: Option<SchemaRef>,
        kinds: &[EdgeKind],
        switches: Switches,
        groups: Range<u16>,
        seed: u64,
    ) -> Self {
        Self {
            operator: build(node, inputs, late.clone(), kinds, switches).unwrap(),
            node: node.clone(),
            inputs: inputs.to_vec(),
            late,
            kinds: kinds.to_vec(),
            switches,
            state: SlotState::in_memory(groups, GROUPS),
            sink: Sink {
                batches: Vec::new(),
                late: Vec::new(),
                rng: ChaCha8Rng::seed_from_u64(seed),
                full: false,
            },
            epoch: 0,
            watermark: EventTime::MIN,
        }
    }

    fn call(&mut self, f: impl FnOnce(&mut dyn Operator, &mut Context<'_>) -> Progress) {
        let mut cx = Context {
            output: &mut self.sink,
            state: &mut self.state,
            now_ms: 1_000 * self.epoch as i64,
        };
        let mut progress = f(&mut *self.operator, &mut cx);
        while progress == Progress::More {
            progress = self.operator.resume(&mut cx).unwrap();
        }
    }

    /// Takes a batch; the input may have run dry after it.
    pub fn process(&mut self, port: usize, batch: Batch) {
        self.feed(port, batch);
        if self.sink.rng.random_bool(0.3) {
            self.dry();
        }
    }

    /// Takes a batch that others wait behind.
    pub fn feed(&mut self, port: usize, batch: Batch) {
        self.call(|o, cx| o.process(port, batch, cx).unwrap());
    }

    /// Whether changes leave when the input has run dry.
    pub fn at_once(&self) -> bool {
        self.switches.at_once
    }

    /// The input has run dry, if that is said to such an operator at all.
    pub fn dry(&mut self) {
        if self.at_once() {
            self.call(|o, cx| o.on_dry(cx).unwrap());
        }
    }

    pub fn watermark(&mut self, t: i64) {
        self.watermark = EventTime::from_micros(t);
        let t = self.watermark;
        self.call(|o, cx| o.on_watermark(t, cx).unwrap());
    }

    pub fn barrier(&mut self) {
        self.try_barrier().unwrap();
    }

    pub fn try_barrier(&mut self) -> crate::error::Result<()> {
        self.epoch += 1;
        let barrier = Barrier {
            epoch: self.epoch,
            generation: 1,
            kind: BarrierKind::Checkpoint,
            now_ms: 1_000 * self.epoch as i64,
        };
        let mut failed = None;
        self.call(|o, cx| {
            o.on_barrier(&barrier, cx).unwrap_or_else(|e| {
                failed = Some(e);
                Progress::Idle
            })
        });
        self.state.freeze(self.epoch);
        failed.map_or(Ok(()), Err)
    }

    /// The operator is lost; its state stays. Only right after a barrier.
    pub fn restart(&mut self) {
        self.operator = build(
            &self.node,
            &self.inputs,
            self.late.clone(),
            &self.kinds,
            self.switches,
        )
        .unwrap();
        let t = self.watermark;
        if t > EventTime::MIN {
            self.call(|o, cx| o.on_watermark(t, cx).unwrap());
        }
    }
}

/// Slots of equal shares of the key groups.
pub fn shares(slots: usize) -> Vec<Range<u16>> {
    let per = GROUPS / slots as u16;
    (0..slots as u16).map(|s| s * per..(s + 1) * per).collect()
}

/// Rows of a batch by the slot that owns their keys.
pub fn route(batch: &Batch, keys: &[usize], slots: usize) -> Vec<(usize, Batch)> {
    let columns: Vec<ArrayRef> = keys.iter().map(|k| batch.rows.column(*k).clone()).collect();
    let hashes = hash_columns(&columns, batch.num_rows());
    let per = GROUPS / slots as u16;
    let mut by: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for (i, h) in hashes.iter().enumerate() {
        by.entry(usize::from(key_group(*h, GROUPS) / per))
            .or_default()
            .push(i as u32);
    }
    by.into_iter()
        .map(|(slot, indices)| {
            let part = Batch {
                rows: take_rows(&batch.rows, &indices).unwrap(),
                kinds: batch
                    .kinds
                    .as_ref()
                    .map(|k| indices.iter().map(|i| k[*i as usize]).collect()),
                lane: batch.lane,
            };
            (slot, part)
        })
        .collect()
}

pub fn text(rows: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<ArrayFormatter<'_>> = rows
        .columns()
        .iter()
        .map(|c| ArrayFormatter::try_new(c, &options).unwrap())
        .collect();
    (0..rows.num_rows())
        .map(|i| {
            let cells: Vec<String> = columns.iter().map(|c| c.value(i).to_string()).collect();
            cells.join("|")
        })
        .collect()
}

/// The multiset that a changelog amounts to. Panics when it takes back what is not there.
pub fn settle(batches: &[Batch], into: &mut BTreeMap<String, i64>) {
    for batch in batches {
        for (i, row) in text(&batch.rows).into_iter().enumerate() {
            let count = into.entry(row.clone()).or_insert(0);
            *count += if batch.kind(i).adds() { 1 } else { -1 };
            assert!(*count >= 0, "took back a row that was not there: {row}");
            if *count == 0 {
                into.remove(&row);
            }
        }
    }
}

pub fn sorted(rows: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut rows: Vec<String> = rows.into_iter().collect();
    rows.sort();
    rows
}

pub fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// k Int64, ts, v Int64 nullable, $split, $offset.
pub fn input_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("ts", time(), false),
        Field::new("v", DataType::Int64, true),
        Field::new("$split", DataType::UInt64, false),
        Field::new("$offset", DataType::Int64, false),
    ]))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub k: Option<i64>,
    pub t: i64,
    pub v: Option<i64>,
    pub offset: i64,
}

pub fn batch(rows: &[Row], kinds: Option<Vec<RowKind>>) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| r.k).collect::<Int64Array>()),
        Arc::new(TimestampMicrosecondArray::from_iter_values(
            rows.iter().map(|r| r.t),
        )),
        Arc::new(rows.iter().map(|r| r.v).collect::<Int64Array>()),
        Arc::new(arrow::array::UInt64Array::from(vec![7; rows.len()])),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.offset))),
    ];
    Batch {
        kinds: kinds.map(Into::into),
        ..Batch::inserts(RecordBatch::try_new(input_schema(), columns).unwrap())
    }
}

pub fn node(op: Op, schema: SchemaRef) -> Node {
    Node {
        id: NodeId(0),
        uid: Uid("view/op-0".into()),
        op,
        schema,
        fingerprint: None,
        describe: String::new(),
    }
}

pub fn aggregate(
    function: AggregateFunction,
    args: &[usize],
    distinct: bool,
    t: DataType,
) -> Aggregate {
    Aggregate {
        function,
        args: args.to_vec(),
        filter: None,
        distinct,
        output: Arc::new(Field::new("a", t, true)),
    }
}

/// Count(*), sum, min, max, avg of `v`.
pub fn simple_aggregates() -> Vec<Aggregate> {
    use AggregateFunction as F;
    vec![
        aggregate(F::Count, &[], false, DataType::Int64),
        aggregate(F::Sum, &[2], false, DataType::Int64),
        aggregate(F::Min, &[2], false, DataType::Int64),
        aggregate(F::Max, &[2], false, DataType::Int64),
        aggregate(F::Avg, &[2], false, DataType::Float64),
    ]
}

/// What `simple_aggregates` and, with `distinct`, COUNT(DISTINCT v) make of values.
pub fn model(values: &[Option<i64>], distinct: bool) -> String {
    let some: Vec<i64> = values.iter().flatten().copied().collect();
    let null = || "null".to_string();
    let sum: i64 = some.iter().sum();
    let or = |v: Option<String>| v.unwrap_or_else(null);
    let mut cells = vec![
        values.len().to_string(),
        or((!some.is_empty()).then(|| sum.to_string())),
        or(some.iter().min().map(i64::to_string)),
        or(some.iter().max().map(i64::to_string)),
        or((!some.is_empty()).then(|| format!("{:?}", sum as f64 / some.len() as f64))),
    ];
    if distinct {
        let set: std::collections::BTreeSet<i64> = some.into_iter().collect();
        cells.push(set.len().to_string());
    }
    cells.join("|")
}

pub fn window_fields(mut fields: Vec<Field>, aggregates: &[Aggregate]) -> SchemaRef {
    for name in ["window_start", "window_end", "window_time"] {
        fields.push(Field::new(name, DataType::Int64, true));
    }
    fields.extend(
        aggregates
            .iter()
            .enumerate()
            .map(|(i, a)| Field::new(format!("a{i}"), a.output.data_type().clone(), true)),
    );
    Arc::new(Schema::new(fields))
}

pub fn random_switches(rng: &mut ChaCha8Rng) -> Switches {
    Switches {
        hot_bytes: if rng.random_bool(0.5) { 0 } else { 1 << 20 },
        partial_groups: rng.random_range(1..40),
        emit_rows: rng.random_range(1..20),
        at_once: rng.random_bool(0.5),
    }
}
