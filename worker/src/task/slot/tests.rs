//! The end of an epoch in a slot whose sink sends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use penstock_plan::graph::OutputMode;
use tokio::sync::{Notify, mpsc};

use super::super::inputs::Inputs;
use super::*;
use crate::clock::StandingClock;
use crate::formats::json::Timestamps;
use crate::message::{BarrierKind, Batch, EventTime, Message};
use crate::network::{LocalOutlet, Outlet, local};
use crate::sinks::DirectSender;
use crate::sinks::memory::MemorySink;
use crate::sinks::rows::{KeyKind, RowPlan, ValueFormat};

/// Acknowledges what it was given when it is told to.
struct Slow(Arc<AtomicBool>);

impl DirectSender for Slow {
    fn send(&mut self, _: &StagedRecords) -> Result<()> {
        Ok(())
    }
    fn seal(&mut self) -> Result<()> {
        self.0.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn settled(&mut self) -> Result<bool> {
        Ok(self.0.load(Ordering::SeqCst))
    }
}

fn slot(direct: Box<dyn DirectSender>) -> (Slot, LocalOutlet, mpsc::UnboundedReceiver<SlotEvent>) {
    let notify = Arc::new(Notify::new());
    let (outlet, inlet) = local(notify.clone(), notify.clone());
    let sink = MemorySink::new(RowPlan {
        name: "out".to_owned(),
        format: ValueFormat::Json(Timestamps::Iso8601),
        key: KeyKind::None,
        changes: RowPlan::changes_of(OutputMode::Append, false),
        shard_by: Vec::new(),
        key_groups: 1,
        shards: 1,
        round_robin: None,
    });
    let sink: crate::sinks::SinkRef = Arc::new(sink);
    let encoder = Some(sink.encoder().unwrap());
    let inputs = Inputs::new(vec![Box::new(inlet)], &[0], EventTime::MIN);
    let task = SinkTask::new("out".to_owned(), 0, inputs, OutputMode::Append, None, true);
    let (_, commands) = mpsc::unbounded_channel();
    let (events, heard) = mpsc::unbounded_channel();
    let slot = Slot {
        index: 0,
        sources: Vec::new(),
        operators: Vec::new(),
        sinks: vec![task],
        stages: vec![SinkStage::new(
            "out".to_owned(),
            sink,
            encoder,
            Some(direct),
            0,
        )],
        state: SlotState::in_memory(0..1, 1),
        rules: Vec::new(),
        names: SplitNames::default(),
        clock: Arc::new(StandingClock::default()),
        notify,
        commands,
        events,
        early_bytes: 1 << 20,
        kept_bytes: 0,
        now_ms: 0,
        epoch: 1,
        late_counts: vec![0],
        late_letters: Vec::new(),
        owed: None,
        asked: false,
        assigned: 0,
        said_done: false,
        said_failing: false,
        looked: None,
        skew_age: None,
    };
    (slot, outlet, heard)
}

fn row(v: i64) -> Message {
    let column: ArrayRef = Arc::new(Int64Array::from(vec![v]));
    let rows = RecordBatch::try_from_iter([("v", column)]).unwrap();
    Message::Batch(Batch::inserts(rows))
}

fn barrier(epoch: u64) -> Message {
    Message::Barrier(Barrier {
        epoch,
        generation: 1,
        kind: BarrierKind::Checkpoint,
        now_ms: 0,
    })
}

/// Steps until the slot has nothing to do; the epochs that it told of.
fn rest(slot: &mut Slot, heard: &mut mpsc::UnboundedReceiver<SlotEvent>) -> Vec<u64> {
    while matches!(slot.step().unwrap(), Step::Busy) {}
    let mut epochs = Vec::new();
    while let Ok(event) = heard.try_recv() {
        if let SlotEvent::Passed(report) = event {
            epochs.push(report.barrier.epoch);
        }
    }
    epochs
}

#[test]
fn rows_of_the_next_epoch_do_not_wait_for_the_last_ones_acknowledgements() {
    let acknowledged = Arc::new(AtomicBool::new(false));
    let (mut slot, mut outlet, mut heard) = slot(Box::new(Slow(acknowledged.clone())));
    outlet.send(row(1));
    outlet.send(barrier(1));
    outlet.send(row(2));
    assert_eq!(rest(&mut slot, &mut heard), [0; 0]);
    assert_eq!(slot.stages[0].rows, 2, "the next epoch's row has left");
    acknowledged.store(true, Ordering::SeqCst);
    assert_eq!(rest(&mut slot, &mut heard), [1]);
}

#[test]
fn an_epoch_ends_only_when_the_one_before_has_settled() {
    let acknowledged = Arc::new(AtomicBool::new(false));
    let (mut slot, mut outlet, mut heard) = slot(Box::new(Slow(acknowledged.clone())));
    for epoch in 1..=2 {
        outlet.send(row(1));
        outlet.send(barrier(epoch));
    }
    assert_eq!(rest(&mut slot, &mut heard), [0; 0]);
    acknowledged.store(true, Ordering::SeqCst);
    // The seal of the second epoch takes the acknowledgement back.
    assert_eq!(rest(&mut slot, &mut heard), [1]);
    acknowledged.store(true, Ordering::SeqCst);
    assert_eq!(rest(&mut slot, &mut heard), [2]);
}
