//! The controller of Penstock: makes pods of StreamingJobs and keeps them going.
//!
//! ```text
//! watches ─▶ observe (reads) ─▶ Facts ─▶ decide (pure) ─▶ Decision ─▶ apply (the only writer) ─▶ API server
//!              │                                                         │
//!              └─ coordinators' /status by mutual TLS                    └─ server-side apply; what would change nothing is not sent
//! ```
//!
//! Layers, each importing only below itself:
//!
//! ```text
//! 5  main, controller (watches, queue, backoff), poll (jobs that go on), election, admission (the webhook)
//! 4  observe, coordinator (its client), apply, lint, certificates, unreadable
//! 3  decide
//! 2  build (children), status (conditions), upgrade (which version)
//! 1  facts, version, issue
//! 0  settings, names, kind, same, guarded, metrics, clock, address, autoscale (pure)
//! ```
//!
//! It reads no Secret but its own, and speaks to no bucket and no broker: what a job's log says it learns from the job.

pub mod address;
pub mod admission;
pub mod apply;
pub mod autoscale;
pub mod build;
pub mod certificates;
pub mod clock;
pub mod controller;
pub mod coordinator;
pub mod decide;
pub mod election;
pub mod facts;
pub mod guarded;
pub mod issue;
pub mod kind;
pub mod lint;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod poll;
pub mod same;
pub mod settings;
pub mod status;
pub mod unreadable;
pub mod upgrade;
pub mod version;
