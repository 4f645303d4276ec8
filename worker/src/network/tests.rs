//! What every way between two members must do; the way within a process and the one between processes pass the same suite.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use penstock_checkpoint::ids::MemberId;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::{Notify, mpsc};

use super::flight::{Directory, Flight, Manner};
use super::hub::Hub;
use super::{Channel, Exchange, Inlet, Net, Outlet, Peer, Talk};
use crate::error::{EngineError, ErrorKind};
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

    async fn between(manner: Manner) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let sockets = Directory::Folder(folder.path().to_owned());
        let listen = |me| Flight::listen(me, &sockets, manner);
        let (from, _) = listen(FROM).await.expect("listens");
        let (to, _) = listen(TO).await.expect("listens");
        Self {
            from: Arc::new(from),
            to: Arc::new(to),
            _folder: Some(folder),
        }
    }

    /// By mutual TLS, over addresses of this machine.
    async fn secure(manner: Manner) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        certify(&authority(), folder.path(), &["127.0.1.0", "127.0.1.1"]);
        let port = free_port();
        let (from, _) = secured(FROM, port, folder.path(), manner).await;
        let (to, _) = secured(TO, port, folder.path(), manner).await;
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

type Listening = (Arc<Flight>, mpsc::UnboundedReceiver<Talk>);

async fn secured(me: Peer, port: u16, certificate: &Path, manner: Manner) -> Listening {
    let directory = Directory::Hosts {
        host: "127.0.1.{}".to_owned(),
        port,
        listen: format!("127.0.1.{}", me.id).parse().expect("an address"),
        certificate: certificate.to_owned(),
    };
    let listening = Flight::listen(me, &directory, manner).await;
    listening.expect("listens")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.1.0:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("signed")
}

/// What workers of these names show, and whom they believe.
fn certify(authority: &CertifiedIssuer<'_, KeyPair>, folder: &Path, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let params = CertificateParams::new(names).expect("names");
    let key = KeyPair::generate().expect("a key");
    let signed = params.signed_by(&key, authority).expect("signed");
    let files = [
        ("ca.crt", authority.pem()),
        ("tls.crt", signed.pem()),
        ("tls.key", key.serialize_pem()),
    ];
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("written");
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
        messages_arrive_as_they_were_and_in_order(Way::between(manner).await).await;
        let way = Way::between(manner).await;
        a_full_channel_has_no_room_until_it_is_taken_from_and_marks_pass(way).await;
        a_channel_that_is_held_holds_no_other_up(Way::between(manner).await).await;
    }
}

#[tokio::test]
async fn between_machines() {
    let narrow = Manner {
        window: Some(64 << 10),
        compress: true,
    };
    messages_arrive_as_they_were_and_in_order(Way::secure(narrow).await).await;
    let way = Way::secure(narrow).await;
    a_full_channel_has_no_room_until_it_is_taken_from_and_marks_pass(way).await;
    a_channel_that_is_held_holds_no_other_up(Way::secure(narrow).await).await;
}

#[tokio::test]
async fn who_is_no_worker_of_the_job_is_not_spoken_to() {
    let own = tempfile::tempdir().expect("a folder");
    let signer = authority();
    certify(&signer, own.path(), &["127.0.1.0", "127.0.1.1"]);
    let port = free_port();
    let (_to, mut talks) = secured(TO, port, own.path(), Manner::default()).await;
    let about = || Bytes::from_static(b"x");
    // Of another job, whose authority is the same; and of another authority.
    let other = authority();
    for (id, signer, name) in [(2, &signer, "127.0.2.0"), (3, &other, "127.0.1.3")] {
        let from = Peer::here(MemberId::new(id));
        let foreign = tempfile::tempdir().expect("a folder");
        certify(signer, foreign.path(), &[name]);
        let (from, _) = secured(from, port, foreign.path(), Manner::default()).await;
        let refused = from.talk(TO.id, about()).await.map(|_| ());
        assert_eq!(refused.expect_err("refused").code, "PR0320");
        assert!(talks.try_recv().is_err(), "nothing was heard");
    }
    let (from, _) = secured(FROM, port, own.path(), Manner::default()).await;
    let _talk = from.talk(TO.id, about()).await.expect("of the job");
    assert_eq!(talks.recv().await.expect("a talk").with, FROM.id);
}

/// A worker that has begun a generation, and what it is told of its end.
async fn begun(
    folder: &Path,
    generation: u64,
) -> (Arc<Flight>, mpsc::UnboundedReceiver<EngineError>) {
    let sockets = Directory::Folder(folder.to_owned());
    let listening = Flight::listen(FROM, &sockets, Manner::default()).await;
    let (from, _) = listening.expect("listens");
    let (told, failures) = mpsc::unbounded_channel();
    from.begin(generation, Box::new(move |e| drop(told.send(e))));
    (from, failures)
}

fn channel(generation: u64) -> Channel {
    Channel {
        generation,
        edge: 0,
        from: 0,
        to: 1,
    }
}

async fn told(failures: &mut mpsc::UnboundedReceiver<EngineError>) -> EngineError {
    let told = tokio::time::timeout(Duration::from_secs(20), failures.recv()).await;
    told.expect("it is told").expect("of an error")
}

#[tokio::test]
async fn a_member_that_is_gone_breaks_the_generation_that_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, mut failures) = begun(folder.path(), 3).await;
    let outlet = |generation| from.outlet(channel(generation), TO, Arc::default());
    // Nobody listens at the other end; of a generation that is over nobody wants to know.
    let _old = outlet(2).expect("an outlet");
    let _new = outlet(3).expect("an outlet");
    let error = told(&mut failures).await;
    assert_eq!(error.code, "PR0320");
    assert_eq!(error.kind, ErrorKind::Retry);
    assert!(failures.try_recv().is_err(), "once");
}

#[tokio::test]
async fn rows_for_a_process_that_was_replaced_reach_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, mut failures) = begun(folder.path(), 1).await;
    let newer = Peer { process: 9, ..TO };
    let sockets = Directory::Folder(folder.path().to_owned());
    let _to = Flight::listen(newer, &sockets, Manner::default())
        .await
        .expect("listens");
    let _outlet = from
        .outlet(channel(1), TO, Arc::default())
        .expect("an outlet");
    let error = told(&mut failures).await;
    assert!(error.message.contains("another process"), "{error}");
}
