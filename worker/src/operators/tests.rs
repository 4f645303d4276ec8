//! Every operator against a plain model, with random batches, watermarks, barriers, restarts and full outputs. A failing
//! seed names itself.

mod accumulators;
mod harness;
mod speed;
mod unwindowed;
mod windowed;
