//! SQL, sources and sinks to a [`graph::StreamGraph`], without execution.
pub mod codes;
mod dialect;
pub mod fault;
pub mod graph;
mod parse;
mod functions;
mod refuse;
mod rewrite;
mod catalog;
mod expression;
mod ir;
mod lower;
mod window;
