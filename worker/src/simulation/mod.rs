//! The seeded simulation: the real coordinator, member, slots and publisher under one thread and virtual time, over a faulty
//! object store and a broker's model, with processes that are killed, stalled, woken and started beside each other.
//!
//! ```text
//! tests ── fate (what befalls a world) ── world (how a process is put together) ── job (SQL, rows, the answer)
//!                    │                            │
//!                  check (what must hold)        sink ── wire ── broker         store        trace
//! ```
//!
//! `PENSTOCK_SEED=n` runs that seed alone and tells what happened; `PENSTOCK_SEEDS=n` runs so many (default 2,000).
//! A seed's world is the same each time: chance comes from the seed, time from tokio's paused clock, and no thread but one.

mod broker;
mod check;
mod fate;
mod job;
mod net;
mod sink;
mod store;
#[cfg(test)]
mod tests;
mod trace;
mod wire;
mod world;
