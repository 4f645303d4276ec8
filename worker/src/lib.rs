//! The engine of Penstock: one job's sources, operators, state, epochs and sinks.
//!
//! Layers, each importing only below itself (a test refuses upward imports):
//!
//! ```text
//! 5  main, cli   testing (rows in, rows out: `penstock test`)
//! 4  job (the only module that names concrete connectors)
//! 3  task (source, chain, sink, align, output)      coordinator (epochs, membership, recovery)
//! 2  operators (expression, window, aggregate, join, dedup, ...)
//! 1  state   sources   sinks   formats   network    (peers, no cross imports)
//! 0  message, keys, clock, cpu, fault, folder, kafka (client), process, planted, metrics, error     (graph is the plan crate's)
//! ```
//!
//! Two flows run through them. **Rows**: a source subtask decodes into Arrow, runs the operators of its stage, and hands
//! batches to exchanges; the last stage stages final records for the sinks. **Epochs**: the coordinator sends a barrier
//! into the sources; each subtask freezes its state where the barrier passes and stages what it changed; the worker
//! uploads one pack; the coordinator appends one commit record; then state goes to RocksDB and outputs are published.

pub mod cli;
pub mod clock;
pub mod coordinator;
mod cpu;
pub mod error;
pub mod fault;
pub mod folder;
pub mod formats;
pub mod job;
pub mod kafka;
pub mod keys;
pub mod member;
pub mod message;
pub mod metrics;
pub mod network;
pub mod operators;
pub mod planted;
pub mod process;
#[cfg(test)]
mod simulation;
pub mod sinks;
pub mod sources;
pub mod state;
pub mod task;
pub mod testing;
