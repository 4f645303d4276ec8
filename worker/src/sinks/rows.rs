//! Rows to staged records, once: value, key, shard. All sinks share it; they differ in what the key is.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use penstock_crds::format::{FormatKind, JsonTimestamps};
use penstock_plan::graph::OutputMode;

use super::{SinkEncoder, StagedRecords};
use crate::error::{EngineError, Result};
use crate::formats::Encoder;
use crate::formats::json::{JsonEncoder, Timestamps};
use crate::formats::raw::RawEncoder;
use crate::keys;
use crate::message::{Batch, RowKind};

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFormat {
    Json(Timestamps),
    Raw,
}

impl ValueFormat {
    /// The format that a manifest names; `None` for those that come later.
    pub fn from_spec(format: FormatKind<'_>) -> Option<Self> {
        match format {
            FormatKind::Json(json) => Some(Self::Json(match json.timestamps {
                JsonTimestamps::Iso8601 => Timestamps::Iso8601,
                JsonTimestamps::EpochMillis => Timestamps::EpochMillis,
                JsonTimestamps::EpochMicros => Timestamps::EpochMicros,
            })),
            FormatKind::Raw(_) => Some(Self::Raw),
            FormatKind::Csv(_) | FormatKind::Parquet(_) => None,
        }
    }

    fn encoder(self) -> Box<dyn Encoder> {
        match self {
            Self::Json(timestamps) => Box::new(JsonEncoder::new(timestamps)),
            Self::Raw => Box::new(RawEncoder::default()),
        }
    }

    fn timestamps(self) -> Timestamps {
        match self {
            Self::Json(timestamps) => timestamps,
            Self::Raw => Timestamps::default(),
        }
    }
}

/// What a record's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyKind {
    None,
    /// A JSON object of these columns.
    Columns(Vec<usize>),
    /// A folder `column=value/…` of these columns, which the value then lacks: for sinks of files.
    Folder(Vec<usize>),
}

/// What becomes of row kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// `+I` alone may come.
    AppendOnly,
    /// `+I` and `+U` are written, `-D` is a null value, `-U` nothing.
    Tombstones,
    /// `+I`, `+U` and `-D` are written with a first member `$op`, `-U` is not: for people, and where there is no null value.
    Marked,
}

/// How rows of one sink become records.
#[derive(Debug, Clone)]
pub struct RowPlan {
    /// Name of the sink, for messages.
    pub name: String,
    pub format: ValueFormat,
    pub key: KeyKind,
    pub changes: Changes,
    /// Columns whose key group gives the shard; empty: the split's hash does.
    pub shard_by: Vec<usize>,
    pub key_groups: u16,
    /// Divides `key_groups`.
    pub shards: u16,
    /// Rows go to this many partitions in turn; `None`: the publisher chooses by key.
    pub round_robin: Option<u32>,
}

impl RowPlan {
    /// `key`: the primary key, in Update and Complete mode. `tombstones`: the sink has null values.
    pub fn changes_of(mode: OutputMode, tombstones: bool) -> Changes {
        match (mode, tombstones) {
            (OutputMode::Append, _) => Changes::AppendOnly,
            (OutputMode::Update | OutputMode::Complete, true) => Changes::Tombstones,
            (OutputMode::Update | OutputMode::Complete, false) => Changes::Marked,
        }
    }

    pub fn encoder(&self) -> RowEncoder {
        RowEncoder {
            value: self.format.encoder(),
            key: JsonEncoder::new(self.format.timestamps()),
            turn: 0,
            plan: self.clone(),
        }
    }
}

/// Encodes rows by a [`RowPlan`].
pub struct RowEncoder {
    plan: RowPlan,
    value: Box<dyn Encoder>,
    key: JsonEncoder,
    turn: u32,
}

impl RowEncoder {
    fn project(&self, rows: &RecordBatch, columns: &[usize]) -> Result<RecordBatch> {
        rows.project(columns).map_err(|e| {
            let name = format!("sink {}", self.plan.name);
            EngineError::fail("PR0209", name, "the rows lack a column of the key").caused_by(e)
        })
    }

    fn shards(&self, rows: &RecordBatch, split: u64) -> Result<Vec<u16>> {
        let (groups, shards) = (self.plan.key_groups, self.plan.shards);
        if self.plan.shard_by.is_empty() {
            let shard = (split % u64::from(shards)) as u16;
            return Ok(vec![shard; rows.num_rows()]);
        }
        let columns: Vec<ArrayRef> = self.project(rows, &self.plan.shard_by)?.columns().to_vec();
        let hashes = keys::hash_columns(&columns, rows.num_rows());
        let shard = |hash| keys::shard_of_group(keys::key_group(hash, groups), groups, shards);
        Ok(hashes.into_iter().map(shard).collect())
    }

    fn partition(&mut self) -> i32 {
        match self.plan.round_robin {
            Some(count) if count > 0 => {
                self.turn = (self.turn + 1) % count;
                self.turn as i32
            }
            _ => -1,
        }
    }
}

impl SinkEncoder for RowEncoder {
    fn encode(&mut self, batch: &Batch, split: u64, out: &mut [StagedRecords]) -> Result<()> {
        let rows = &batch.rows;
        let shards = self.shards(rows, split)?;
        let mut folders = None;
        match &self.plan.key {
            KeyKind::None => self.value.bind(rows)?,
            KeyKind::Columns(columns) => {
                let keys = self.project(rows, columns)?;
                self.key.bind(&keys)?;
                self.value.bind(rows)?;
            }
            KeyKind::Folder(columns) => {
                let kept: Vec<usize> = (0..rows.num_columns()).filter(|c| !columns.contains(c)).collect();
                folders = Some(Folders::new(&self.project(rows, columns)?));
                let values = self.project(rows, &kept)?;
                self.value.bind(&values)?;
            }
        }
        for (row, shard) in shards.into_iter().enumerate() {
            let kind = batch.kind(row);
            let (write, op) = match (self.plan.changes, kind) {
                (_, RowKind::UpdateBefore) if self.plan.changes != Changes::AppendOnly => continue,
                (Changes::AppendOnly, RowKind::Insert) => (true, None),
                (Changes::AppendOnly, _) => {
                    let name = format!("sink {}", self.plan.name);
                    return Err(EngineError::fail("PR0209", name, "a changed row came in Append mode"));
                }
                (Changes::Tombstones, RowKind::Delete) => (false, None),
                (Changes::Tombstones, _) => (true, None),
                (Changes::Marked, kind) => (true, Some(op(kind))),
            };
            let partition = self.partition();
            let staged = &mut out[usize::from(shard)];
            let mut open = staged.begin();
            match &folders {
                Some(folders) => {
                    folders.write(row, &mut staged.data);
                    staged.key_written(&mut open)?;
                }
                None if self.plan.key != KeyKind::None => {
                    self.key.encode(row, &mut staged.data)?;
                    staged.key_written(&mut open)?;
                }
                None => {}
            }
            if write {
                let start = staged.data.len();
                self.value.encode(row, &mut staged.data)?;
                if let Some(op) = op {
                    mark(&mut staged.data, start, op);
                }
                staged.value_written(&mut open)?;
            }
            staged.end(&open, i64::MIN, partition, 0)?;
        }
        Ok(())
    }
}

fn op(kind: RowKind) -> &'static [u8] {
    match kind {
        RowKind::Insert => b"{\"$op\":\"+I\"",
        RowKind::UpdateBefore => b"{\"$op\":\"-U\"",
        RowKind::UpdateAfter => b"{\"$op\":\"+U\"",
        RowKind::Delete => b"{\"$op\":\"-D\"",
    }
}

/// Puts `$op` first into the object that starts at `start`.
fn mark(data: &mut Vec<u8>, start: usize, op: &[u8]) {
    if data.get(start) == Some(&b'{') {
        let more = data.get(start + 1) != Some(&b'}');
        let comma = if more { b",".as_slice() } else { b"" };
        data.splice(start..=start, op.iter().chain(comma).copied());
    }
}

/// Folder names of a batch's rows.
struct Folders {
    columns: Vec<(String, ArrayRef)>,
}

impl Folders {
    fn new(keys: &RecordBatch) -> Self {
        let schema = keys.schema();
        let names = schema.fields().iter().map(|f| f.name().clone());
        Self {
            columns: names.zip(keys.columns().iter().cloned()).collect(),
        }
    }

    /// `a=1/b=x`; null is Hive's `__HIVE_DEFAULT_PARTITION__`, and what a path cannot hold is percent-encoded.
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        let options = FormatOptions::default();
        for (i, (name, column)) in self.columns.iter().enumerate() {
            if i > 0 {
                out.push(b'/');
            }
            escape(name, out);
            out.push(b'=');
            if column.is_null(row) {
                out.extend_from_slice(b"__HIVE_DEFAULT_PARTITION__");
                continue;
            }
            let text = ArrayFormatter::try_new(column.as_ref(), &options)
                .and_then(|f| f.value(row).try_to_string())
                .unwrap_or_default();
            escape(&text, out);
        }
    }
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b' ' | b'+') {
            out.push(b);
        } else {
            out.extend_from_slice(format!("%{b:02X}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
