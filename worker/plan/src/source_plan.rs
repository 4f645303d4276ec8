//! What the engine needs of a source and of a sink beyond the graph: which columns to decode, which to compute, which key.

use arrow::datatypes::{DataType, Field, FieldRef, Fields, SchemaRef};
use datafusion_expr::Expr;
use penstock_crds::source::TransportField;
use std::sync::Arc;

use crate::graph::{EdgeKind, OutputMode};

/// How a source makes its rows: decode, add transport columns, compute, take what [`SourcePlan::output`] names.
#[derive(Debug, Clone)]
pub struct SourcePlan {
    pub name: String,
    /// What the decoder produces from a body: only columns that are needed, that may not be null, or that the watermark
    /// needs; of ROW columns only the fields that are read.
    pub decode: SchemaRef,
    /// Columns of the transport, in the order of their declaration.
    pub metadata: Vec<MetadataColumn>,
    /// Computed columns over `decode` and `metadata`, by unqualified name.
    pub computed: Vec<ComputedColumn>,
    /// Over `decode`, `metadata` and `computed`, before the projection to `output`.
    pub watermark: Option<WatermarkPlan>,
    /// Schema of the Source node: the columns that are read, then hidden ones.
    pub output: SchemaRef,
}

#[derive(Debug, Clone)]
pub struct MetadataColumn {
    pub from: TransportField,
    pub field: FieldRef,
}

#[derive(Debug, Clone)]
pub struct ComputedColumn {
    pub name: String,
    pub expr: Expr,
    pub field: FieldRef,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatermarkPlan {
    pub column: String,
    pub max_out_of_orderness_ms: u64,
    pub idle_timeout_ms: Option<u64>,
}

/// What arrives at a sink.
#[derive(Debug, Clone)]
pub struct SinkPlan {
    pub name: String,
    pub schema: SchemaRef,
    pub mode: OutputMode,
    /// Of the edge into the sink.
    pub kind: EdgeKind,
    /// Columns that identify a row, in Update and Complete mode.
    pub key: Option<Vec<usize>>,
    /// Columns of the Kafka record's key: `keyColumns`, else `key`.
    pub record_key: Option<Vec<usize>>,
    /// Columns that become folders.
    pub partition_by: Vec<usize>,
}

/// Which fields of a ROW are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// The value as a whole.
    whole: bool,
    fields: std::collections::BTreeMap<String, Uses>,
}

impl Uses {
    pub fn add(&mut self, path: &[&str]) {
        match path.split_first() {
            None => self.whole = true,
            Some((first, rest)) => self
                .fields
                .entry((*first).to_owned())
                .or_default()
                .add(rest),
        }
    }

    /// The field with only what is read of it.
    pub fn prune(&self, field: &Field) -> Field {
        match field.data_type() {
            DataType::Struct(fields) if !self.whole && !self.fields.is_empty() => {
                let kept: Fields = fields
                    .iter()
                    .filter_map(|f| {
                        self.fields
                            .get(f.name())
                            .map(|uses| Arc::new(uses.prune(f)))
                    })
                    .collect();
                field.clone().with_data_type(DataType::Struct(kept))
            }
            _ => field.clone(),
        }
    }
}
