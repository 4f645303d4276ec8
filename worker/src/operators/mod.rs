//! Stream operators: synchronous, one per node of the graph that is neither a source nor a sink. An operator never waits;
//! all waiting is in tasks.

pub mod accumulate;
pub mod aggregate;
mod best;
pub mod build;
pub mod calc;
mod changes;
pub mod deduplicate;
mod distinct;
pub mod expression;
mod extreme;
mod foreign;
pub mod groups;
mod hot;
pub mod materialize;
mod panes;
mod rows;
#[cfg(test)]
mod tests;
pub mod union;
pub mod window;
pub mod window_aggregate;
pub mod window_assign;
pub mod window_join;
pub mod window_partial;

pub use build::build;

use crate::error::Result;
use crate::message::{Barrier, Batch, EventTime};
use crate::state::{SlotState, TableId};

/// Bounds that the task layer sets per operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switches {
    /// Hot tables above so many bytes are dropped after a barrier and read back from state when they are needed.
    pub hot_bytes: usize,
    /// An operator that hands on groups before the barrier does so when it holds so many.
    pub partial_groups: usize,
    /// Rows per emitted batch, about.
    pub emit_rows: usize,
    /// What changed leaves when the input has run dry, not only at the barrier.
    pub at_once: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            hot_bytes: 256 << 20,
            partial_groups: 1 << 17,
            emit_rows: 4096,
            at_once: false,
        }
    }
}

/// What a call left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All that the call caused has been emitted.
    Idle,
    /// The output is full: call `resume` when there is room; no mark passes this operator before `Idle`.
    More,
}

/// What an operator may use while it is called. Lives for one call.
pub struct Context<'a> {
    pub output: &'a mut dyn Output,
    pub state: &'a mut SlotState,
    /// Wall clock of the running epoch in milliseconds (of its plan, or of the last commit): TTL and `now()`.
    pub now_ms: i64,
}

/// Where an operator's rows go.
pub trait Output {
    /// To every consumer of this operator. Accepts always; `is_full` tells when to stop.
    fn emit(&mut self, batch: Batch);
    /// The consumers' queues are full: return `Progress::More` soon.
    fn is_full(&self) -> bool;
    /// Rows that came after their last window closed, whole, in the operator's (late-lane) input schema.
    fn late(&mut self, rows: arrow::array::RecordBatch);
}

/// One operator of one subtask.
///
/// Order of calls: any mix of `process`, `on_dry` and `on_watermark`, then `on_barrier`; after `More` only `resume` until `Idle`.
/// The task forwards a watermark or barrier to the consumers after `Idle`; an operator never does it itself.
pub trait Operator: Send {
    /// Takes a batch of input `port`.
    fn process(&mut self, port: usize, batch: Batch, cx: &mut Context<'_>) -> Result<Progress>;
    /// No batch waits in any input: emit what changed since the last emission. Asked of operators whose [`Switches`] say
    /// `at_once` only; kinds stay right whenever and however often it is asked.
    fn on_dry(&mut self, cx: &mut Context<'_>) -> Result<Progress>;
    /// The minimum over all inputs rose to `t`.
    fn on_watermark(&mut self, t: EventTime, cx: &mut Context<'_>) -> Result<Progress>;
    /// The epoch ends here: emit what is emitted per epoch, write every change of state to `cx.state`. The task freezes
    /// `cx.state` after all operators of the slot have seen the barrier.
    fn on_barrier(&mut self, barrier: &Barrier, cx: &mut Context<'_>) -> Result<Progress>;
    /// Goes on where `More` was answered.
    fn resume(&mut self, cx: &mut Context<'_>) -> Result<Progress>;
    /// Bytes of memory held outside `SlotState`, estimated.
    fn memory_bytes(&self) -> usize;
    /// Rows or keys of its state that are in memory, estimated; for metrics.
    fn state_keys(&self) -> usize;
    /// The tables that hold its rows or keys; for metrics.
    fn tables(&self) -> Vec<TableId> {
        Vec::new()
    }
}
