//! SQL, sources and sinks to a [`graph::StreamGraph`], without execution.

pub mod graph;
