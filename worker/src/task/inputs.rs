//! The input channels of one task: picks what the task sees next, channels in turn so that none starves another, and says
//! when they have run dry. What marks mean is `align`'s.

use crate::message::{BarrierKind, EventTime, Progressed};
use crate::network::Inlet;

use super::align::{Align, Step};

/// What a task is given.
#[derive(Debug)]
pub enum Given {
    Step(Step),
    /// Nothing waits, for the first time since a batch was given: what those batches caused may leave.
    Dry,
    Nothing,
}

pub struct Inputs {
    inlets: Vec<Box<dyn Inlet>>,
    align: Align,
    /// The channel that is looked at next, modulo their number.
    turn: usize,
    /// Given before anything else: the restored watermark, so that an operator judges lateness as it did.
    first: Option<Step>,
    /// Batches were given since the last barrier or `Dry`.
    fed: bool,
}

impl Inputs {
    /// `ports[i]` is the port that `inlets[i]` feeds; `watermark` is the restored one.
    pub fn new(inlets: Vec<Box<dyn Inlet>>, ports: &[usize], watermark: EventTime) -> Self {
        Self {
            inlets,
            align: Align::new(ports, watermark),
            turn: 0,
            first: (watermark > EventTime::MIN).then_some(Step::Watermark(watermark)),
            fed: false,
        }
    }

    pub fn progressed(&self) -> Progressed {
        self.align.progressed()
    }

    /// Whether a channel has delivered a barrier that another one owes.
    pub fn aligning(&self) -> bool {
        self.align.waits()
    }

    /// Messages and bytes that wait, by channel.
    pub fn queued(&self) -> impl Iterator<Item = (usize, usize)> {
        self.inlets.iter().map(|inlet| inlet.queued())
    }

    /// What comes next. A channel that waits for the others' barrier counts as dry: what it holds is the next epoch's.
    pub fn take(&mut self) -> Given {
        match self.step() {
            Some(step) => {
                match &step {
                    Step::Batch(..) => self.fed = true,
                    // Everything that the epoch caused leaves with its barrier.
                    Step::Barrier(b) if b.kind != BarrierKind::Begin => self.fed = false,
                    Step::Barrier(_) | Step::Watermark(_) | Step::Idle | Step::End => {}
                }
                Given::Step(step)
            }
            None if std::mem::take(&mut self.fed) => Given::Dry,
            None => Given::Nothing,
        }
    }

    fn step(&mut self) -> Option<Step> {
        if let Some(step) = self.first.take() {
            return Some(step);
        }
        if let Some(step) = self.align.next() {
            return Some(step);
        }
        let channels = self.inlets.len();
        for _ in 0..channels {
            let c = self.turn % channels;
            self.turn += 1;
            while self.align.open(c) {
                let Some(message) = self.inlets[c].receive() else {
                    break;
                };
                if let Some(step) = self.align.take(c, message) {
                    return Some(step);
                }
            }
            if let Some(step) = self.align.next() {
                return Some(step);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};
    use tokio::sync::Notify;

    use super::*;
    use crate::message::{Barrier, Batch, Message};
    use crate::network::{LocalOutlet, Outlet, local};

    fn wired(channels: usize) -> (Vec<LocalOutlet>, Inputs) {
        let notify = Arc::new(Notify::new());
        let mut outlets = Vec::new();
        let mut inlets: Vec<Box<dyn Inlet>> = Vec::new();
        for _ in 0..channels {
            let (outlet, inlet) = local(notify.clone(), notify.clone());
            outlets.push(outlet);
            inlets.push(Box::new(inlet));
        }
        let inputs = Inputs::new(inlets, &vec![0; channels], EventTime::MIN);
        (outlets, inputs)
    }

    fn batch(v: i64) -> Message {
        let column: arrow::array::ArrayRef = Arc::new(Int64Array::from(vec![v]));
        Message::Batch(Batch::inserts(
            RecordBatch::try_from_iter([("v", column)]).unwrap(),
        ))
    }

    fn barrier(epoch: u64) -> Message {
        Message::Barrier(Barrier {
            epoch,
            generation: 1,
            kind: BarrierKind::Checkpoint,
            now_ms: 0,
        })
    }

    fn said(inputs: &mut Inputs) -> &'static str {
        match inputs.take() {
            Given::Step(Step::Batch(..)) => "batch",
            Given::Step(Step::Barrier(_)) => "barrier",
            Given::Step(Step::Watermark(_)) => "watermark",
            Given::Step(Step::Idle | Step::End) => "end",
            Given::Dry => "dry",
            Given::Nothing => "nothing",
        }
    }

    #[test]
    fn dry_is_said_once_after_the_last_batch_that_waits() {
        let (mut out, mut inputs) = wired(2);
        assert_eq!(said(&mut inputs), "nothing");
        out[0].send(batch(1));
        out[1].send(batch(2));
        assert_eq!(said(&mut inputs), "batch");
        assert_eq!(said(&mut inputs), "batch");
        assert_eq!(said(&mut inputs), "dry");
        assert_eq!(said(&mut inputs), "nothing");
    }

    #[test]
    fn a_channel_that_waits_for_a_barrier_is_dry_and_the_barrier_leaves_nothing_behind() {
        let (mut out, mut inputs) = wired(2);
        out[0].send(batch(1));
        out[0].send(barrier(1));
        out[0].send(batch(2));
        assert_eq!(said(&mut inputs), "batch");
        assert_eq!(said(&mut inputs), "dry");
        out[1].send(batch(3));
        out[1].send(barrier(1));
        assert_eq!(said(&mut inputs), "batch");
        assert_eq!(said(&mut inputs), "barrier");
        assert_eq!(said(&mut inputs), "batch");
        assert_eq!(said(&mut inputs), "dry");
    }

    #[test]
    fn channels_are_taken_in_turn() {
        let (mut out, mut inputs) = wired(2);
        for v in 0..3 {
            out[0].send(batch(v));
        }
        out[1].send(batch(9));
        let mut seen = Vec::new();
        while let Given::Step(Step::Batch(_, b)) = inputs.take() {
            use arrow::array::AsArray;
            seen.push(
                b.rows
                    .column(0)
                    .as_primitive::<arrow::datatypes::Int64Type>()
                    .value(0),
            );
        }
        assert_eq!(seen, [0, 9, 1, 2]);
    }

    #[test]
    fn a_restored_watermark_comes_first() {
        let notify = Arc::new(Notify::new());
        let (_, inlet) = local(notify.clone(), notify);
        let mut inputs = Inputs::new(vec![Box::new(inlet)], &[0], EventTime::from_micros(5));
        assert_eq!(said(&mut inputs), "watermark");
        assert_eq!(said(&mut inputs), "nothing");
    }
}
