//! The job log of Penstock and what it names: records, packs, bases, closures, the decisions of recovery and of garbage
//! collection. Knows nothing of Kubernetes, SQL, the state store or Kafka.
//!
//! Layers, each importing only below itself:
//!
//! ```text
//! 5  print
//! 4  fork (a log that begins with a savepoint)   removal (of a whole log)
//! 3  log (append, open, follow, claim)   transfer (packs to and from the store)   collect (garbage: says Drop, deletes)
//! 2  recovery   gc   decide                   pure decisions
//! 1  fold   closure   base   pack             pure state and formats      store (the seam to objects)
//! 0  ids   record   envelope   switches   clock
//! ```
//!
//! Two flows go through them. *Commit*: a worker writes a pack (`pack`), the coordinator names it in a `Commit` and appends
//! (`log`), which takes it into the `Fold`. *Recovery*: `log` finds the tail and the newest closure, folds what comes
//! after, and `recovery` says what each key group loads and which epochs are still to be published.

pub mod base;
pub mod clock;
pub mod closure;
pub mod collect;
pub mod decide;
mod envelope;
pub mod fold;
pub mod fork;
pub mod gc;
pub mod ids;
pub mod log;
pub mod pack;
pub mod print;
pub mod record;
pub mod recovery;
pub mod removal;
pub mod store;
pub mod switches;
pub mod transfer;

pub use envelope::DecodeError;
pub use fold::Fold;
pub use log::{JobLog, LogError};
pub use record::{Commit, Kind, Record};
pub use switches::Switches;
