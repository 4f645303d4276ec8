//! What every way between two members must do; the way within a process and the one between processes pass the same suite.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use penstock_checkpoint::ids::MemberId;
use tokio::sync::Notify;

use super::flight::{Address, Flight, Manner};
use super::hub::Hub;
use super::{Channel, Exchange, Inlet, Outlet, Peer};
use crate::message::{Barrier, BarrierKind, Batch, EventTime, Lane, Message, RowKind};

const FROM: Peer = Peer::here(MemberId::new(0));
const TO: Peer = Peer::here(MemberId::new(1));

/// A way from one member to another.
struct Way {
    from: Arc<dyn Exchange>,
    to: Arc<dyn Exchange>,
    _folder: Option<tempfile::TempDir>,
}

struct Ends {
    outlet: Box<dyn Outlet>,
    sender: Arc<Notify>,
    inlet: Box<dyn Inlet>,
    receiver: Arc<Notify>,
}

impl Way {
    fn within() -> Self {
        let hub: Arc<dyn Exchange> = Arc::new(Hub::default());
        Self {
            from: hub.clone(),
            to: hub,
            _folder: None,
        }
    }

    fn between(manner: Manner) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| Address::Socket(folder.path().join(name));
        let listen = |me, name| Flight::listen(me, &at(name), manner).expect("listens").0;
        let (from, to) = (listen(FROM, "from"), listen(TO, "to"));
        from.know(BTreeMap::from([(TO.id, at("to"))]));
        Self {
            from: Arc::new(from),
            to: Arc::new(to),
            _folder: Some(folder),
        }
    }

    fn open(&self, to_slot: usize) -> Ends {
        let channel = Channel {
            generation: 1,
            edge: 0,
            from: 0,
            to: to_slot,
        };
        let (sender, receiver) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        Ends {
            outlet: self
                .from
                .outlet(channel, TO, sender.clone())
                .expect("an outlet"),
            inlet: self
                .to
                .inlet(channel, FROM, receiver.clone())
                .expect("an inlet"),
            sender,
            receiver,
        }
    }
}

impl Ends {
    async fn next(&mut self) -> Message {
        let arrives = async {
            loop {
                if let Some(message) = self.inlet.receive() {
                    return message;
                }
                self.receiver.notified().await;
            }
        };
        let arrived = tokio::time::timeout(Duration::from_secs(20), arrives).await;
        arrived.expect("a message arrives")
    }

    async fn room(&self) {
        let there = async {
            while !self.outlet.has_room() {
                self.sender.notified().await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(20), there).await;
        came.expect("the sender is woken when there is room");
    }

    /// Sends batches until there is no room; how many.
    fn fill(&mut self) -> usize {
        let mut sent = 0;
        while self.outlet.has_room() {
            self.outlet.send(Message::Batch(rows(sent as i64, 1000)));
            sent += 1;
            assert!(sent < 10_000, "a channel has a bound");
        }
        sent
    }
}

fn rows(from: i64, count: i64) -> Batch {
    let schema = Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]);
    let numbers = Int64Array::from_iter_values(from..from + count);
    let texts: StringArray = (from..from + count)
        .map(|n| (n % 3 != 0).then(|| format!("row {n} of a batch that takes its room")))
        .collect();
    let columns = vec![Arc::new(numbers) as _, Arc::new(texts) as _];
    Batch::inserts(RecordBatch::try_new(Arc::new(schema), columns).expect("columns fit"))
}

fn late(n: i64) -> Batch {
    let schema = Schema::new(vec![Field::new("other", DataType::Int64, true)]);
    let column = Arc::new(Int64Array::from(vec![Some(n), None]));
    Batch {
        rows: RecordBatch::try_new(Arc::new(schema), vec![column]).expect("columns fit"),
        kinds: None,
        lane: Lane::Late,
    }
}

fn barrier(kind: BarrierKind) -> Message {
    Message::Barrier(Barrier {
        epoch: u64::MAX - 1,
        generation: 7,
        kind,
        now_ms: -5,
    })
}

async fn messages_arrive_as_they_were_and_in_order(way: Way) {
    let mut ends = way.open(1);
    let kinds = [
        RowKind::Insert,
        RowKind::UpdateBefore,
        RowKind::UpdateAfter,
        RowKind::Delete,
    ];
    let changes = Batch {
        kinds: Some(kinds.into()),
        ..rows(50, 4)
    };
    // A slice of a larger batch, with nulls, goes alone.
    let slice = Batch::inserts(rows(0, 100).rows.slice(31, 9));
    let sent = vec![
        Message::Batch(rows(0, 10)),
        Message::Watermark(EventTime::MIN),
        Message::Batch(late(1)),
        Message::Batch(changes),
        Message::Batch(slice),
        Message::Idle,
        Message::Watermark(EventTime::from_micros(1_700_000_000_000_001)),
        Message::Watermark(EventTime::MAX),
        barrier(BarrierKind::Begin),
        barrier(BarrierKind::Checkpoint),
        barrier(BarrierKind::Savepoint),
        barrier(BarrierKind::Handover),
        barrier(BarrierKind::Stop),
        Message::Batch(late(2)),
        Message::End,
    ];
    for message in &sent {
        ends.outlet.send(message.clone());
    }
    for message in &sent {
        let arrived = ends.next().await;
        assert_eq!(format!("{arrived:?}"), format!("{message:?}"));
    }
    assert!(ends.inlet.receive().is_none());
}

async fn a_full_channel_has_no_room_until_it_is_taken_from_and_marks_pass(way: Way) {
    let mut ends = way.open(1);
    let sent = ends.fill();
    assert!(sent > 1);
    ends.outlet.send(barrier(BarrierKind::Checkpoint));
    // What was sent is under way, and nobody takes it: no credit comes of itself.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!ends.outlet.has_room());
    for n in 0..sent {
        let Message::Batch(batch) = ends.next().await else {
            panic!("batches come first")
        };
        assert_eq!(batch.rows, rows(n as i64, 1000).rows);
    }
    assert!(matches!(ends.next().await, Message::Barrier(_)));
    ends.room().await;
    assert!(ends.fill() > 1, "all of its room is there again");
}

async fn a_channel_that_is_held_holds_no_other_up(way: Way) {
    let (mut held, mut free) = (way.open(1), way.open(2));
    held.fill();
    for n in 0..200 {
        free.room().await;
        free.outlet.send(Message::Batch(rows(n, 1000)));
        free.outlet.send(barrier(BarrierKind::Checkpoint));
        let Message::Batch(batch) = free.next().await else {
            panic!("a batch comes first")
        };
        assert_eq!(batch.num_rows(), 1000);
        assert!(matches!(free.next().await, Message::Barrier(_)));
    }
}

#[tokio::test]
async fn within_a_process() {
    messages_arrive_as_they_were_and_in_order(Way::within()).await;
    a_full_channel_has_no_room_until_it_is_taken_from_and_marks_pass(Way::within()).await;
    a_channel_that_is_held_holds_no_other_up(Way::within()).await;
}

#[tokio::test]
async fn between_processes() {
    let narrow = Manner {
        window: Some(64 << 10),
        compress: false,
    };
    let compressed = Manner {
        window: None,
        compress: true,
    };
    for manner in [Manner::default(), narrow, compressed] {
        messages_arrive_as_they_were_and_in_order(Way::between(manner)).await;
        a_full_channel_has_no_room_until_it_is_taken_from_and_marks_pass(Way::between(manner))
            .await;
        a_channel_that_is_held_holds_no_other_up(Way::between(manner)).await;
    }
}

#[tokio::test]
async fn a_member_that_is_gone_breaks_the_generation_that_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| Address::Socket(folder.path().join(name));
    let (from, _talks) = Flight::listen(FROM, &at("from"), Manner::default()).expect("listens");
    from.know(BTreeMap::from([(TO.id, at("to"))]));
    let (told, mut failures) = tokio::sync::mpsc::unbounded_channel();
    from.begin(3, Box::new(move |e| drop(told.send(e))));
    let channel = |generation| Channel {
        generation,
        edge: 0,
        from: 0,
        to: 1,
    };
    // Nobody listens at the other end; of a generation that is over nobody wants to know.
    let _old = from
        .outlet(channel(2), TO, Arc::default())
        .expect("an outlet");
    let _new = from
        .outlet(channel(3), TO, Arc::default())
        .expect("an outlet");
    let told = tokio::time::timeout(Duration::from_secs(20), failures.recv()).await;
    let error = told.expect("it is told").expect("of an error");
    assert_eq!(error.code, "PR0320");
    assert_eq!(error.kind, crate::error::ErrorKind::Retry);
    assert!(failures.try_recv().is_err(), "once");
}

#[tokio::test]
async fn rows_for_a_process_that_was_replaced_reach_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| Address::Socket(folder.path().join(name));
    let (from, _) = Flight::listen(FROM, &at("from"), Manner::default()).expect("listens");
    let newer = Peer { process: 9, ..TO };
    let (_to, _) = Flight::listen(newer, &at("to"), Manner::default()).expect("listens");
    from.know(BTreeMap::from([(TO.id, at("to"))]));
    let (told, mut failures) = tokio::sync::mpsc::unbounded_channel();
    from.begin(1, Box::new(move |e| drop(told.send(e))));
    let channel = Channel {
        generation: 1,
        edge: 0,
        from: 0,
        to: 1,
    };
    let _outlet = from.outlet(channel, TO, Arc::default()).expect("an outlet");
    let told = tokio::time::timeout(Duration::from_secs(20), failures.recv()).await;
    let error = told.expect("it is told").expect("of an error");
    assert!(error.message.contains("another process"), "{error}");
}
