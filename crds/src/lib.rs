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
//! 4  docs (reference pages)
//! 3  manifest (text → resources)
//! 2  validate (rules across fields), crd (CRDs from the types)
//! 1  job, savepoint, source, sink, format, rpc (the types)
//! 0  units, data_type, diagnostic
//! ```
//!
//! Nothing here runs a job, plans SQL or speaks to a cluster.

// The derive of kube repeats attribute names for each printer column.
#![allow(clippy::duplicated_attributes)]

pub mod crd;
pub mod data_type;
pub mod format;
pub mod job;
pub mod rpc;
pub mod savepoint;
pub mod sink;
pub mod source;
pub mod units;
pub mod workers;
