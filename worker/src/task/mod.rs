//! Tasks: the parts of a slot. A source, operators and sinks of one slot run on one thread, consumers before producers;
//! all waiting is here, all deciding is in `align`, `watermark`, `failing` and the operators.

mod align;
mod columns;
mod failing;
mod inputs;
mod late;
mod operator;
mod route;
mod sink;
mod skew;
mod slot;
mod source;
mod times;
mod watermark;

pub use columns::{Scan, ScanColumns};
pub use failing::FailAbove;
pub use inputs::Inputs;
pub use late::SplitNames;
pub use operator::{OperatorCounts, OperatorTask};
pub use route::{HashBy, Route};
pub use sink::{SinkStage, SinkTask};
pub use skew::{KeySampler, Skew};
pub use slot::{Slot, SlotCommand, SlotCounts, SlotEvent, SlotReport};
pub use source::{
    Assignment, DeadLetter, PlannedEpoch, Policy, SourceCounts, SourceRules, SourceTask,
    SplitProgress,
};
pub use times::{Queued, TaskFlow, TaskTimes};
pub use watermark::WatermarkRule;
