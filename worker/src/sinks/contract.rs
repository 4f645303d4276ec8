//! What every sink must do: one suite, run for each implementation by a [`Subject`] that knows how to read its target.

#![cfg(test)]

pub(crate) mod subjects;

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use bytes::Bytes;

use super::{Guarantee, Marker, Record, ShardPublisher, Sink, StagedRecords, Turn};
use crate::message::Batch;

/// Reads the published values, in any order.
pub(crate) type ReadBack = Box<dyn Fn() -> futures::future::BoxFuture<'static, Vec<String>> + Send>;

/// An implementation under test. Its rows have columns `k` (BIGINT) and `v` (STRING); rows go to shards by `k`.
pub(crate) struct Subject {
    pub sink: Arc<dyn Sink>,
    pub read: ReadBack,
    /// An older publisher's chunk is refused; if not, publishing it must change nothing.
    pub fences: bool,
    /// It has a marker to read.
    pub marks: bool,
}

fn batch(from: i64, rows: i64) -> Batch {
    let k: Int64Array = (from..from + rows).collect();
    let v = StringArray::from_iter_values((from..from + rows).map(|i| format!("v{i}")));
    let columns: Vec<(&str, arrow::array::ArrayRef)> = vec![("k", Arc::new(k)), ("v", Arc::new(v))];
    Batch::inserts(RecordBatch::try_from_iter(columns).unwrap())
}

fn lines(from: i64, rows: i64) -> Vec<String> {
    (from..from + rows)
        .map(|i| format!("{{\"k\":{i},\"v\":\"v{i}\"}}"))
        .collect()
}

fn stage(sink: &dyn Sink, from: i64, rows: i64) -> Vec<StagedRecords> {
    let mut out = vec![StagedRecords::default(); usize::from(sink.shards())];
    let mut encoder = sink.encoder().unwrap();
    encoder.encode(&batch(from, rows / 2), 1, &mut out).unwrap();
    encoder
        .encode(&batch(from + rows / 2, rows - rows / 2), 2, &mut out)
        .unwrap();
    assert_eq!(out.iter().map(|s| s.rows).sum::<u64>(), rows as u64);
    for staged in &out {
        assert_eq!(
            staged.chunk_ends.last().copied().unwrap_or(0),
            staged.data.len()
        );
    }
    out
}

fn at(epoch: u64, chunk: u32, nonce: u64) -> Marker {
    Marker {
        epoch,
        chunk,
        nonce,
    }
}

async fn read(subject: &Subject) -> Vec<String> {
    let mut got = (subject.read)().await;
    got.sort();
    got
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

pub(crate) async fn check(subject: Subject) {
    let sink = Arc::clone(&subject.sink);
    sink.prepare().await.unwrap();
    sink.prepare().await.unwrap();
    keys_stay_in_their_shard(sink.as_ref());
    if sink.guarantee() == Guarantee::AtLeastOnce {
        rows_sent_directly_are_out_when_their_epoch_has_settled(&subject).await;
        return;
    }
    assert!(read(&subject).await.is_empty());
    let mut expected = published_rows_appear_once(&subject).await;
    a_new_publisher_finds_the_marker_and_replaces_the_old(&subject, &mut expected).await;
    records_made_outside_sql_are_published(&subject, &mut expected).await;
}

fn keys_stay_in_their_shard(sink: &dyn Sink) {
    let sizes =
        |staged: Vec<StagedRecords>| staged.iter().map(|s| s.data.clone()).collect::<Vec<_>>();
    assert_eq!(sizes(stage(sink, 0, 64)), sizes(stage(sink, 0, 64)));
    let used = stage(sink, 0, 64).iter().filter(|s| s.rows > 0).count();
    assert!(used > 1 || sink.shards() == 1, "rows spread over shards");
}

async fn open_all(subject: &Subject) -> Vec<Box<dyn ShardPublisher>> {
    let mut all = vec![];
    for shard in 0..subject.sink.shards() {
        let mut publisher = subject.sink.publisher(shard, i32::from(shard)).unwrap();
        assert_eq!(
            publisher.open().await.unwrap(),
            None,
            "shard {shard} is new"
        );
        publisher
            .init_marker(at(0, Marker::ALL, 7 + u64::from(shard)))
            .await
            .unwrap();
        all.push(publisher);
    }
    all
}

/// As the engine does before it publishes an epoch, each by a generation of its own.
async fn turn(publisher: &mut Box<dyn ShardPublisher>, epoch: u64) {
    if let Some(rolling) = publisher.rolling() {
        let turn = Turn {
            epoch,
            generation: epoch,
            now_ms: 0,
        };
        rolling.turn(turn).await.unwrap();
    }
}

/// As the engine does when the job has stopped; twice, since it may have died in between.
async fn close(publisher: &mut Box<dyn ShardPublisher>) {
    for _ in 0..2 {
        if let Some(rolling) = publisher.rolling() {
            rolling.close().await.unwrap();
        }
    }
}

async fn published_rows_appear_once(subject: &Subject) -> Vec<String> {
    let mut publishers = open_all(subject).await;
    let staged = stage(subject.sink.as_ref(), 0, 100);
    assert!(read(subject).await.is_empty(), "what is staged is not out");
    for (shard, staged) in staged.into_iter().enumerate() {
        if staged.rows > 0 {
            let marker = at(1, Marker::ALL, 7 + shard as u64);
            turn(&mut publishers[shard], 1).await;
            publishers[shard]
                .publish(Bytes::from(staged.data), marker)
                .await
                .unwrap();
            close(&mut publishers[shard]).await;
        }
    }
    let expected = sorted(lines(0, 100));
    assert_eq!(read(subject).await, expected);
    expected
}

async fn a_new_publisher_finds_the_marker_and_replaces_the_old(
    subject: &Subject,
    expected: &mut Vec<String>,
) {
    let staged = stage(subject.sink.as_ref(), 100, 100);
    let (shard, staged) = staged
        .into_iter()
        .enumerate()
        .find(|(_, s)| s.rows > 0)
        .unwrap();
    let chunk = Bytes::from(staged.data);
    let open = async |marker: Option<Marker>| {
        let mut publisher = subject.sink.publisher(shard as u16, shard as i32).unwrap();
        let found = publisher.open().await.unwrap();
        if subject.marks {
            assert_eq!(found, marker);
        }
        publisher
    };
    let nonce = 7 + shard as u64;
    // Two chunks of one epoch; between them another publisher takes over.
    let mut old = open(Some(at(1, Marker::ALL, nonce))).await;
    assert_eq!(old.fences(), subject.fences);
    turn(&mut old, 2).await;
    old.publish(chunk.clone(), at(2, 0, nonce)).await.unwrap();
    let text: Vec<String> = super::staged::records(&chunk)
        .map(|r| String::from_utf8(r.unwrap().value.unwrap().to_vec()).unwrap())
        .collect();
    expected.extend(text);
    *expected = sorted(std::mem::take(expected));
    let mut new = open(Some(at(2, 0, nonce))).await;
    turn(&mut new, 2).await;
    // The old one wakes up and publishes what it was about to, which the new one publishes too.
    let next = stage(subject.sink.as_ref(), 200, 100).swap_remove(shard);
    let chunk = Bytes::from(next.data);
    let zombie = old.publish(chunk.clone(), at(2, Marker::ALL, nonce)).await;
    assert_eq!(zombie.is_err(), subject.fences, "{zombie:?}");
    new.publish(chunk.clone(), at(2, Marker::ALL, nonce))
        .await
        .unwrap();
    let zombie = old.publish(chunk.clone(), at(2, Marker::ALL, nonce)).await;
    assert_eq!(zombie.is_err(), subject.fences, "{zombie:?}");
    close(&mut new).await;
    if !subject.fences {
        close(&mut old).await;
    }
    let text = super::staged::records(&chunk)
        .map(|r| String::from_utf8(r.unwrap().value.unwrap().to_vec()).unwrap());
    expected.extend(text);
    *expected = sorted(std::mem::take(expected));
    assert_eq!(&read(subject).await, expected);
    open(Some(at(2, Marker::ALL, nonce))).await;
}

async fn records_made_outside_sql_are_published(subject: &Subject, expected: &mut Vec<String>) {
    let record = Record {
        key: Some(Bytes::from_static(b"\xff\0")),
        value: Some(Bytes::from_static(b"not json")),
        headers: vec![
            ("code".to_owned(), Bytes::from_static(b"PR0201")),
            ("empty".to_owned(), Bytes::new()),
        ],
        timestamp_ms: Some(1_700_000_000_000),
    };
    let mut staged = StagedRecords::default();
    subject.sink.stage_record(&record, &mut staged);
    assert_eq!(staged.rows, 1);
    let mut publisher = subject.sink.publisher(0, 0).unwrap();
    publisher.open().await.unwrap();
    turn(&mut publisher, 3).await;
    publisher
        .publish(Bytes::from(staged.data), at(3, Marker::ALL, 7))
        .await
        .unwrap();
    close(&mut publisher).await;
    expected.push("not json".to_owned());
    *expected = sorted(std::mem::take(expected));
    assert_eq!(&read(subject).await, expected);
}

async fn rows_sent_directly_are_out_when_their_epoch_has_settled(subject: &Subject) {
    let staged = stage(subject.sink.as_ref(), 0, 100);
    let mut direct = subject.sink.direct().unwrap();
    for staged in &staged {
        direct.send(staged).unwrap();
    }
    direct.seal().unwrap();
    while !direct.settled().unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(read(subject).await, sorted(lines(0, 100)));
}
