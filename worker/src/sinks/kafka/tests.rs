//! Layout and partitions by themselves; the rest against a real broker, named by PENSTOCK_TEST_KAFKA, skipped by name
//! without.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::encoder::murmur2;
use super::*;
use crate::message::{Batch, Lane, RowKind};
use crate::sinks::staged::records;
use crate::sinks::{Marker, Record};

/// `{"c":v,...}` of text and numbers.
#[derive(Default)]
struct Json(Option<RecordBatch>);

impl Encoder for Json {
    fn bind(&mut self, rows: &RecordBatch) -> Result<()> {
        self.0 = Some(rows.clone());
        Ok(())
    }
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        let rows = self.0.as_ref().unwrap();
        let mut object = serde_json::Map::new();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            let value = match field.data_type() {
                DataType::Utf8 => column.as_string::<i32>().value(row).into(),
                _ => column.as_primitive::<Int64Type>().value(row).into(),
            };
            object.insert(field.name().clone(), value);
        }
        serde_json::to_writer(out, &object).unwrap();
        Ok(())
    }
}

fn broker(test: &str) -> Option<String> {
    let broker = std::env::var("PENSTOCK_TEST_KAFKA").ok();
    if broker.is_none() {
        println!("skipped without PENSTOCK_TEST_KAFKA: {test}");
    }
    broker
}

fn chance() -> String {
    let n = std::hash::RandomState::new().build_hasher().finish();
    format!("{n:016x}")
}

fn config(broker: &str, topic: &str) -> KafkaSinkConfig {
    KafkaSinkConfig {
        name: "out".to_owned(),
        log_id: chance(),
        client: client_properties(broker, &BTreeMap::new(), &BTreeMap::new()).unwrap(),
        topic: topic.to_owned(),
        guarantee: Guarantee::ExactlyOnce,
        mode: OutputMode::Append,
        key_columns: vec![0],
        shard_columns: vec![0],
        partition_by: PartitionBy::Key,
        compression: KafkaCompression::Lz4,
        shards: 4,
        key_groups: 128,
        marker_topic: String::new(),
        marker_partitions: 4,
    }
}

fn sink(config: KafkaSinkConfig) -> KafkaSink {
    let json = || -> EncoderFactory { Box::new(|| Ok(Box::new(Json::default()))) };
    KafkaSink::new(config, json(), json())
}

async fn target(broker: &str, partitions: i32) -> String {
    let topic = format!("dst-{}", chance());
    let admin: AdminClient<_> = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .create()
        .unwrap();
    // Some records here are of 1970: retention would take them within seconds.
    let new =
        NewTopic::new(&topic, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let made = admin
        .create_topics([&new], &AdminOptions::new())
        .await
        .unwrap();
    assert!(made[0].is_ok(), "{made:?}");
    topic
}

fn rows(numbers: std::ops::Range<i64>) -> Batch {
    let schema = Schema::new(vec![
        Field::new("k", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
    ]);
    let keys: StringArray = numbers.clone().map(|n| Some(format!("key-{n}"))).collect();
    let numbers: Int64Array = numbers.collect();
    Batch::inserts(
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(numbers)]).unwrap(),
    )
}

fn stages(sink: &KafkaSink) -> Vec<StagedRecords> {
    vec![StagedRecords::default(); usize::from(sink.shards())]
}

/// One shard's bytes for numbers that all are of its own.
fn chunk(sink: &KafkaSink, numbers: std::ops::Range<i64>) -> Bytes {
    let mut out = stages(sink);
    sink.encoder()
        .unwrap()
        .encode(&rows(numbers), 0, &mut out)
        .unwrap();
    let all: Vec<u8> = out.into_iter().flat_map(|s| s.data).collect();
    all.into()
}

const fn marker(epoch: u64, chunk: u32) -> Marker {
    Marker {
        epoch,
        chunk,
        nonce: 7,
    }
}

/// (partition, key, value, number of headers).
type Seen = (i32, Option<Vec<u8>>, Option<Vec<u8>>, usize);

/// Everything committed.
fn committed(broker: &str, topic: &str, partitions: i32) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("group.id", "look")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for p in 0..partitions {
        list.add_partition_offset(topic, p, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut out, mut ends) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ends < partitions {
        assert!(Instant::now() < deadline);
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(m)) => out.push((
                m.partition(),
                m.key().map(<[u8]>::to_vec),
                m.payload().map(<[u8]>::to_vec),
                m.headers().map_or(0, Headers::count),
            )),
            Some(Err(KafkaError::PartitionEOF(_))) => ends += 1,
            Some(Err(e)) => panic!("{e}"),
            None => {}
        }
    }
    out
}

fn numbers(broker: &str, topic: &str) -> Vec<i64> {
    let number = |value: Option<Vec<u8>>| {
        let value: serde_json::Value = serde_json::from_slice(&value.unwrap()).unwrap();
        value["n"].as_i64().unwrap()
    };
    let mut all: Vec<i64> = committed(broker, topic, 3)
        .into_iter()
        .map(|r| number(r.2))
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn murmur2_is_that_of_java_clients() {
    // Of Kafka's own UtilsTest.
    for (text, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
    }
}

#[test]
fn staged_records_read_back_and_keys_follow_the_mode() {
    let mut given = config("b:9092", "t");
    given.shards = 1;
    let plain = sink(given.clone());
    let mut out = stages(&plain);
    plain
        .encoder()
        .unwrap()
        .encode(&rows(0..2), 0, &mut out)
        .unwrap();
    let record = records(&out[0].data).next().unwrap().unwrap();
    assert_eq!(record.key, Some(&b"key-0"[..]));
    assert_eq!(record.value, Some(&br#"{"k":"key-0","n":0}"#[..]));
    assert_eq!((record.partition, record.timestamp_ms), (None, None));
    assert_eq!(
        (out[0].rows, &out[0].chunk_ends[..]),
        (2, &[out[0].data.len()][..])
    );

    given.mode = OutputMode::Update;
    let upsert = sink(given);
    let mut batch = rows(0..4);
    batch.kinds = Some(
        vec![
            RowKind::Insert,
            RowKind::UpdateBefore,
            RowKind::UpdateAfter,
            RowKind::Delete,
        ]
        .into(),
    );
    batch.lane = Lane::Main;
    let mut out = stages(&upsert);
    upsert
        .encoder()
        .unwrap()
        .encode(&batch, 0, &mut out)
        .unwrap();
    let seen: Vec<(Vec<u8>, bool)> = records(&out[0].data)
        .map(Result::unwrap)
        .map(|record| (record.key.unwrap().to_vec(), record.value.is_some()))
        .collect();
    let key = |n| format!("{{\"k\":\"key-{n}\"}}").into_bytes();
    assert_eq!(seen, [(key(0), true), (key(2), true), (key(3), false)]);
}

#[test]
fn chunks_are_cut_before_they_grow_beyond_their_bound() {
    let sink = sink(config("b:9092", "t"));
    let mut out = StagedRecords::default();
    let record = Record {
        key: None,
        value: Some(vec![1; 3 << 20].into()),
        headers: vec![("a".to_owned(), Bytes::from_static(b"b"))],
        timestamp_ms: Some(5),
    };
    for _ in 0..5 {
        sink.stage_record(&record, &mut out);
    }
    assert_eq!(out.chunk_ends.len(), 3);
    assert_eq!(out.chunk_ends.last(), Some(&out.data.len()));
    let one = out.chunks().nth(1).and_then(|c| records(c).next());
    let one = one.unwrap().unwrap();
    assert_eq!((one.timestamp_ms, one.key), (Some(5), None));
    assert_eq!(one.headers().collect::<Vec<_>>(), [("a", &b"b"[..])]);
    assert!(records(&out.data[..100]).next().unwrap().is_err());
}

#[tokio::test]
async fn rows_and_marker_come_out_together_and_survive_a_crash_between() {
    let Some(broker) = broker("rows_and_marker_come_out_together_and_survive_a_crash_between")
    else {
        return;
    };
    let topic = target(&broker, 3).await;
    let sink = sink(config(&broker, &topic));
    sink.prepare().await.unwrap();
    sink.prepare().await.unwrap();

    let mut publisher = sink.publisher(1, 2).unwrap();
    assert!(
        publisher.publish(Bytes::new(), marker(1, 0)).await.is_err(),
        "not open"
    );
    assert_eq!(publisher.open().await.unwrap(), None);
    publisher.init_marker(marker(3, Marker::ALL)).await.unwrap();
    publisher
        .publish(chunk(&sink, 0..100), marker(4, 0))
        .await
        .unwrap();
    publisher
        .publish(chunk(&sink, 100..150), marker(4, 1))
        .await
        .unwrap();
    // Gone without a word, then opened by another: what is out is known, and is not sent again.
    drop(publisher);
    let mut publisher = sink.publisher(1, 2).unwrap();
    assert_eq!(publisher.open().await.unwrap(), Some(marker(4, 1)));
    publisher
        .publish(chunk(&sink, 150..160), marker(5, Marker::ALL))
        .await
        .unwrap();
    // A commit is answered before its control records are written; whoever inits again waits for them.
    assert_eq!(
        publisher.open().await.unwrap(),
        Some(marker(5, Marker::ALL))
    );
    assert_eq!(numbers(&broker, &topic), (0..160).collect::<Vec<_>>());
    // Java's partition for every key.
    for (p, key, ..) in committed(&broker, &topic, 3) {
        assert_eq!((murmur2(&key.unwrap()) & 0x7fff_ffff) % 3, p as u32);
    }
    // Another key's marker in the same partition does not count.
    let mut other = sink.publisher(3, 2).unwrap();
    assert_eq!(other.open().await.unwrap(), None);
    for epoch in 1..40 {
        other.publish(Bytes::new(), marker(epoch, 0)).await.unwrap();
    }
    assert_eq!(
        publisher.open().await.unwrap(),
        Some(marker(5, Marker::ALL))
    );
}

#[tokio::test]
async fn the_newer_opener_fences_the_older_whose_open_transaction_is_lost() {
    let Some(broker) = broker("the_newer_opener_fences_the_older_whose_open_transaction_is_lost")
    else {
        return;
    };
    let topic = target(&broker, 3).await;
    let sink = sink(config(&broker, &topic));
    sink.prepare().await.unwrap();
    let mut zombie = sink.publisher(0, 0).unwrap();
    zombie.open().await.unwrap();
    zombie
        .publish(chunk(&sink, 0..10), marker(1, 0))
        .await
        .unwrap();
    let mut newer = sink.publisher(0, 0).unwrap();
    assert_eq!(newer.open().await.unwrap(), Some(marker(1, 0)));
    let fenced = zombie
        .publish(chunk(&sink, 10..20), marker(2, 0))
        .await
        .unwrap_err();
    assert_eq!(fenced.kind, crate::error::ErrorKind::Retry);
    newer
        .publish(chunk(&sink, 10..20), marker(2, 0))
        .await
        .unwrap();
    // The zombie opens again, learns that its epoch is out, and would fence the newer one in its turn.
    assert_eq!(zombie.open().await.unwrap(), Some(marker(2, 0)));
    assert!(
        newer
            .publish(chunk(&sink, 20..30), marker(3, 0))
            .await
            .is_err()
    );
    assert_eq!(numbers(&broker, &topic), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_missing_target_is_named() {
    let Some(broker) = broker("a_missing_target_is_named") else {
        return;
    };
    let missing = sink(config(&broker, "no-such-topic"))
        .prepare()
        .await
        .unwrap_err();
    assert_eq!(missing.code, "PR0209");
    assert!(missing.to_string().contains("no-such-topic"));
}

#[tokio::test]
async fn at_least_once_sends_rows_headers_and_null_values_at_once() {
    let Some(broker) = broker("at_least_once_sends_rows_headers_and_null_values_at_once") else {
        return;
    };
    let topic = target(&broker, 3).await;
    let mut given = config(&broker, &topic);
    given.guarantee = Guarantee::AtLeastOnce;
    let sink = sink(given);
    sink.prepare().await.unwrap();
    let mut direct = sink.direct().unwrap();
    let mut out = StagedRecords::default();
    let header = ("epoch".to_owned(), Bytes::from_static(b"5"));
    sink.stage_record(
        &Record {
            key: Some(Bytes::from_static(b"k")),
            value: None,
            headers: vec![header],
            timestamp_ms: Some(1),
        },
        &mut out,
    );
    sink.stage_record(
        &Record {
            key: None,
            value: Some(Bytes::new()),
            headers: vec![],
            timestamp_ms: None,
        },
        &mut out,
    );
    direct.send(&out).unwrap();
    direct.seal().unwrap();
    while !direct.settled().unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut seen = committed(&broker, &topic, 3);
    seen.sort_by_key(|r| r.1.is_none());
    assert_eq!(
        (&seen[0].1, &seen[0].2, seen[0].3),
        (&Some(b"k".to_vec()), &None, 1)
    );
    assert_eq!(
        (&seen[1].1, &seen[1].2, seen[1].3),
        (&None, &Some(Vec::new()), 0)
    );
}

#[tokio::test]
#[ignore = "measures"]
async fn throughput_of_producing_in_transactions() {
    let Some(broker) = broker("throughput_of_producing_in_transactions") else {
        return;
    };
    let topic = target(&broker, 3).await;
    let sink = sink(config(&broker, &topic));
    sink.prepare().await.unwrap();
    let mut publisher = sink.publisher(0, 0).unwrap();
    let started = Instant::now();
    publisher.open().await.unwrap();
    println!("opened in {:?}", started.elapsed());
    let chunk = chunk(&sink, 0..100_000);
    let started = Instant::now();
    for epoch in 0..10 {
        publisher
            .publish(chunk.clone(), marker(epoch, 0))
            .await
            .unwrap();
    }
    println!(
        "produced {:.0} rows/s",
        1e6 / started.elapsed().as_secs_f64()
    );
    let one = self::chunk(&sink, 0..1);
    let started = Instant::now();
    for epoch in 10..30 {
        publisher
            .publish(one.clone(), marker(epoch, 0))
            .await
            .unwrap();
    }
    println!("{:?} per transaction of one row", started.elapsed() / 20);
}
