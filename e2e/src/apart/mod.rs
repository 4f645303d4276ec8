//! Workers that each have a machine's network of their own, so that it can be cut between any two of them, and between one and a
//! server: what `penstock run --workers` starts is one machine's, and cannot be cut.
//!
//! ```text
//! namespaces    the networks and the cuts in them, by `ip` and `iptables`
//! team          the process that starts the workers as a cluster does (`penstock worker`, mutual TLS), starts again what was killed,
//!               and says who coordinates: for the suites it is what `penstock run --workers` is
//! ```

mod namespaces;
pub mod team;

pub use namespaces::{Cut, HOST, Namespaces, heal};
