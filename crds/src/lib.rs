//! The resource types of Penstock, their validation and the CRD generator.
//!
//! ```text
//! text ─ manifest ─▶ document tree with positions ─ manifest::check (against the schema) ─▶ StreamingJob | Savepoint
//!            │                                                                                   │
//!            └──────────── positions ◀── Diagnostic{code, path, message, help} ◀── validate ◀────┘
//! ```
//!
//! Layers, each importing only below itself:
//!
//! ```text
//! 4  reference (generated pages and files)
//! 3  manifest (text → resources)
//! 2  validate (rules across fields), crd (CRDs from the types)
//! 1  job, checkpoint, workers, savepoint, source, column, sink, format, status, rpc (the types)
//! 0  units, data_type, codes, diagnostic
//! ```
//!
//! Nothing here runs a job, plans SQL or speaks to a cluster.

// The derive of kube repeats attribute names for each printer column.
#![allow(clippy::duplicated_attributes)]

pub mod checkpoint;
pub mod codes;
pub mod column;
pub mod crd;
pub mod data_type;
pub mod diagnostic;
pub mod format;
pub mod job;
pub mod manifest;
pub mod reference;
pub mod rpc;
pub mod savepoint;
pub mod sink;
pub mod source;
pub mod status;
pub mod units;
pub mod validate;
pub mod workers;
