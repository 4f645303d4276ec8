//! The StreamGraph: what a job computes, as stages of operators joined by exchanges. It owns the shapes that the planner
//! writes and the engine reads; how SQL becomes a graph is `lower`'s, how a graph runs is the worker's.
//!
//! Conventions every node keeps:
//! - `schema` is the node's output. Field names inside a graph are unique per schema; expressions refer to columns of
//!   their node's input by those names, unqualified.
//! - Hidden columns start with `$` ([`hidden`]) and come last. They ride along from the source to the first judge of late
//!   rows or to the operator that breaks ties by origin; sinks never see them.
//! - Changing results leave by *emissions*: at every barrier, and where `emission` says so whenever the input has run
//!   dry. Each tells what changed since the last one.
//! - Event time inside the engine is microseconds since the epoch, UTC; columns keep their declared Arrow type.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion_expr::{AggregateUDF, Expr};
use serde::{Deserialize, Serialize};

/// Names of the hidden columns.
pub mod hidden {
    /// UInt64, never null: stable hash of the row's split id (`source/split`), see `keys::split_hash` of the worker.
    pub const SPLIT: &str = "$split";
    /// Int64, never null: offset of the row in its split.
    pub const OFFSET: &str = "$offset";
    /// Binary, nullable: the source record's own key. Only where a source says `onLate: DeadLetter`.
    pub const RAW_KEY: &str = "$key";
    /// Binary, nullable: the source record's own value. Only where a source says `onLate: DeadLetter`.
    pub const RAW_VALUE: &str = "$value";
}

/// Index of a node in [`StreamGraph::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub usize);

/// Stable identity of an operator, derived from its place in the SQL: `<view or sink>/<kind>-<ordinal>`. Upgrades match state by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(pub String);

/// Hash of everything that the bytes of an operator's state depend on, and of what they mean: kind, types and origins of keys and
/// values, aggregate kinds, edge kinds, window, state format version. Equal fingerprint: the state restores as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub u64);

/// What a job computes.
#[derive(Debug, Clone)]
pub struct StreamGraph {
    /// In topological order: every edge goes from a lower to a higher index.
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
    /// Nodes joined by [`Distribution::Forward`] edges, in topological order; each stage has one subtask in every slot.
    pub stages: Vec<Vec<NodeId>>,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub id: NodeId,
    pub uid: Uid,
    pub op: Op,
    /// Output columns, hidden ones last.
    pub schema: SchemaRef,
    /// Only for nodes that keep state.
    pub fingerprint: Option<Fingerprint>,
    /// One line for people: what `penstock plan` prints.
    pub describe: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    pub from: NodeId,
    pub to: NodeId,
    /// Input of `to`: 0, or 0 and 1 for a join (left, right).
    pub port: usize,
    pub distribution: Distribution,
    pub kind: EdgeKind,
}

/// How rows travel along an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// To the next operator of the same subtask.
    Forward,
    /// To the owner of the key group of these columns of `from`'s output; no columns: everything to key group 0.
    Hash(Vec<usize>),
}

/// Which row kinds an edge carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeKind {
    /// `+I` only.
    Append,
    /// `+I -U +U -D`; every `-U` and `-D` carries the whole old row.
    Retract,
    /// As `Retract`, and these columns (of `from`'s output) identify a row.
    Upsert(Vec<usize>),
}

/// A window of event time. Sizes in microseconds, all greater than 0; windows are aligned to the epoch plus `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Window {
    Tumble {
        size: i64,
        offset: i64,
    },
    /// `slide <= size`.
    Hop {
        slide: i64,
        size: i64,
        offset: i64,
    },
}

/// Where a windowed operator finds the window of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowBy {
    /// From the event-time column of the input: the operator assigns it.
    Time { column: usize, window: Window },
    /// From columns that a windowed operator upstream wrote.
    Attached { start: usize, end: usize },
}

/// When a windowed aggregate emits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Emit {
    /// Once, when the watermark passes the window's end: append.
    OnClose,
    /// At every emission the windows that changed, and at the close: upsert by keys and window.
    OnUpdate,
}

#[derive(Debug, Clone)]
pub enum AggregateFunction {
    /// `COUNT(*)` has no args, `COUNT(x)` one.
    Count,
    Sum,
    Min,
    Max,
    Avg,
    /// Any other of DataFusion's aggregates: kept row by row through its `Accumulator`, append edges only.
    Other(Arc<AggregateUDF>),
}

/// One aggregate. Arguments and filter are columns of the operator's input: a `Calc` before it computed them.
#[derive(Debug, Clone)]
pub struct Aggregate {
    pub function: AggregateFunction,
    pub args: Vec<usize>,
    /// A boolean column; rows where it is not true do not count.
    pub filter: Option<usize>,
    pub distinct: bool,
    /// Name and type of the result.
    pub output: arrow::datatypes::FieldRef,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortKey {
    pub column: usize,
    pub descending: bool,
    pub nulls_first: bool,
}

/// Which row of a key a deduplication keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// `ORDER BY <event time> ASC`: emitted once, when the watermark has passed the row: append.
    FirstByTime,
    /// `ORDER BY <event time> DESC`: upsert, changed keys at every emission.
    LastByTime,
    /// Any other order (Top-1): upsert, changed keys at every emission. Per window: append, at the window's close.
    Best,
}

/// Two-phase operators run before and after the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    Single,
    Partial,
    Final,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputMode {
    Append,
    Update,
    Complete,
}

#[derive(Debug, Clone)]
pub enum Op {
    /// Scan of `spec.sources[name]`. `columns` names what is read (projection), computed and `from` columns included, in
    /// the order of `schema`. The source evaluates computed columns and keeps the watermark.
    Source { name: String, columns: Vec<String> },
    /// Filter, then projection: one expression per output column.
    Calc {
        filter: Option<Expr>,
        exprs: Vec<Expr>,
    },
    /// Rows get `window_start`, `window_end`, `window_time` (appended before the hidden columns); HOP repeats rows.
    /// A row whose last window has closed is late.
    WindowAssign { column: usize, window: Window },
    /// Aggregation per key and window.
    ///
    /// Output of `Single` and `Final`: keys, `window_start`, `window_end`, `window_time`, aggregates.
    /// Output of `Partial`: keys, `pane` (Int64, start of the pane in microseconds), the partial states of each aggregate
    /// (Count: Int64; Sum: output type, plus for floats the low part Float64; Min, Max: arg type; Avg: sum as Decimal128(38,s) for integers and
    /// decimals or Float64 hi+lo, then Int64 count); on the late lane the rows as they came.
    /// `Final` has `keys`, `by`, `aggregates` in terms of the *partial's input*, which is also the schema of late-lane rows.
    WindowAggregate {
        phase: Phase,
        by: WindowBy,
        keys: Vec<usize>,
        aggregates: Vec<Aggregate>,
        emit: Emit,
    },
    /// Aggregation without a window. Output: keys, aggregates. Emits changed groups at every emission. No aggregates:
    /// `SELECT DISTINCT`, which on append input emits at once and is append.
    Aggregate {
        keys: Vec<usize>,
        aggregates: Vec<Aggregate>,
        ttl_ms: Option<u64>,
    },
    /// The first row per key (and window) in the given order; ties broken by `$split`, `$offset`. Output: the input's columns.
    /// `Partial` keeps the best row of each (key, window) until the next watermark or barrier.
    Deduplicate {
        phase: Phase,
        keys: Vec<usize>,
        window: Option<WindowBy>,
        order: Vec<SortKey>,
        keep: Keep,
        ttl_ms: Option<u64>,
    },
    /// Inner join of two inputs within equal windows, at the windows' close. Output: left columns, right columns (hidden
    /// columns of both dropped), filtered by `filter` over that output.
    WindowJoin {
        left: JoinSide,
        right: JoinSide,
        filter: Option<Expr>,
    },
    /// Rows of all inputs (port = ordinal), equal schemas.
    Union,
    /// The whole result, once per epoch (output mode Complete): keeps rows by `key` (all columns when empty: a multiset).
    Materialize { key: Vec<usize>, max_rows: usize },
    /// `spec.sinks[name]`. `key`: of Update and Complete mode. Never has hidden columns in its input.
    Sink {
        name: String,
        mode: OutputMode,
        key: Option<Vec<usize>>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSide {
    pub window: WindowBy,
    pub keys: Vec<usize>,
}
