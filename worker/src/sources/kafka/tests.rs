//! Against a real broker, named by PENSTOCK_TEST_KAFKA; skipped by name without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use penstock_crds::source::{StartFrom, TransportField};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::time::Instant;

use super::*;
use crate::error::Result;
use crate::formats::DecodeError;
use crate::sources::{Polled, Position, SourceReader, SplitRange};

/// A body is a number in text; anything else is bad.
struct Numbers {
    schema: SchemaRef,
    rows: Vec<i64>,
    errors: Vec<DecodeError>,
}

impl Decoder for Numbers {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn feed(&mut self, record: &[u8]) -> bool {
        let number = std::str::from_utf8(record)
            .ok()
            .and_then(|t| t.parse().ok());
        match number {
            Some(n) => self.rows.push(n),
            None => self.errors.push(DecodeError {
                record: self.pending(),
                code: "PR0201",
                text: "no number".to_owned(),
            }),
        }
        number.is_some()
    }
    fn pending(&self) -> usize {
        self.rows.len() + self.errors.len()
    }
    fn finish(&mut self) -> Result<(RecordBatch, Vec<DecodeError>)> {
        let rows = Int64Array::from(std::mem::take(&mut self.rows));
        let batch = RecordBatch::try_new(self.schema(), vec![Arc::new(rows)]).unwrap();
        Ok((batch, std::mem::take(&mut self.errors)))
    }
}

fn broker(test: &str) -> Option<String> {
    let broker = std::env::var("PENSTOCK_TEST_KAFKA").ok();
    if broker.is_none() {
        println!("skipped without PENSTOCK_TEST_KAFKA: {test}");
    }
    broker
}

fn client(broker: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker);
    config
}

async fn topic(broker: &str, partitions: i32) -> String {
    static N: AtomicU32 = AtomicU32::new(0);
    let n = N.fetch_add(1, Ordering::Relaxed);
    let name = format!("src-{}-{n}-{:x}", std::process::id(), {
        use std::hash::{BuildHasher, Hasher};
        std::hash::RandomState::new().build_hasher().finish()
    });
    let admin: AdminClient<DefaultClientContext> = client(broker).create().unwrap();
    // Some records here are of 1970: retention would take them within seconds.
    let new =
        NewTopic::new(&name, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let made = admin
        .create_topics([&new], &AdminOptions::new())
        .await
        .unwrap();
    assert!(made[0].is_ok(), "{made:?}");
    name
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, numbers: std::ops::Range<i64>) {
    for n in numbers {
        let (value, key) = (n.to_string(), format!("k{n}"));
        let record = BaseRecord::to(topic)
            .partition(partition)
            .payload(&value)
            .key(&key);
        while producer.send(record.clone_ref()).is_err() {
            producer.poll(Duration::from_millis(1));
        }
    }
}

trait CloneRef {
    fn clone_ref(&self) -> Self;
}
impl CloneRef for BaseRecord<'_, String, String> {
    fn clone_ref(&self) -> Self {
        let mut copy = BaseRecord::to(self.topic);
        copy.partition = self.partition;
        copy.payload = self.payload;
        copy.key = self.key;
        copy
    }
}

fn plain(broker: &str, topic: &str, partition: i32, numbers: std::ops::Range<i64>) {
    let producer: BaseProducer = client(broker).create().unwrap();
    send(&producer, topic, partition, numbers);
    producer.flush(Duration::from_secs(20)).unwrap();
}

fn transactional(broker: &str, id: &str) -> BaseProducer {
    let producer: BaseProducer = client(broker)
        .set("transactional.id", id)
        .set("retry.backoff.ms", "15")
        .create()
        .unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer
}

fn source(broker: &str, topics: Topics) -> KafkaSource {
    let body: SchemaRef = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let schema = Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
        Field::new("p", DataType::Int32, true),
        Field::new("o", DataType::Int64, true),
    ]));
    let config = KafkaSourceConfig {
        name: "numbers".to_owned(),
        client: client_properties(broker, &BTreeMap::new(), &BTreeMap::new()).unwrap(),
        topics,
        start_from: StartFrom::default(),
        stop_at_ms: None,
        group_id: "penstock.test.numbers".to_owned(),
        schema,
        transport: vec![
            (0, TransportField::Key),
            (2, TransportField::Partition),
            (3, TransportField::Offset),
        ],
        keep_raw: true,
    };
    let decoder: DecoderFactory = Box::new(move || {
        Ok(Box::new(Numbers {
            schema: Arc::clone(&body),
            rows: Vec::new(),
            errors: Vec::new(),
        }))
    });
    KafkaSource::new(config, decoder)
}

fn one(topic: &str) -> Topics {
    Topics::Named(vec![topic.to_owned()])
}

fn range(topic: &str, partition: i32, from: i64, until: Option<i64>) -> SplitRange {
    SplitRange {
        split: split_id(topic, partition),
        from: Position(from),
        until: until.map(Position),
    }
}

/// Polls until `enough`; the numbers read, and the offsets of bad records.
fn read(
    reader: &mut dyn SourceReader,
    enough: impl Fn(&[i64], &dyn SourceReader) -> bool,
) -> (Vec<i64>, Vec<i64>) {
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !enough(&rows, reader) {
        assert!(
            Instant::now() < deadline,
            "only {} rows: {:?}",
            rows.len(),
            reader.positions()
        );
        match reader.poll(700).unwrap() {
            Polled::Rows(batch) => {
                let numbers = batch.rows.column(1).as_primitive::<Int64Type>();
                let raw = batch.raw.unwrap();
                for i in 0..batch.rows.num_rows() {
                    let n = numbers.value(i);
                    assert_eq!(
                        batch.rows.column(0).as_string::<i32>().value(i),
                        format!("k{n}")
                    );
                    assert_eq!(raw.values.value(i), n.to_string().as_bytes());
                    let p = batch.rows.column(2).as_primitive::<Int32Type>().value(i);
                    let id = &batch.split_ids[usize::from(batch.splits[i])];
                    assert!(id.0.ends_with(&format!("/{p}")));
                    assert_eq!(
                        batch.rows.column(3).as_primitive::<Int64Type>().value(i),
                        batch.offsets[i]
                    );
                    rows.push(n);
                }
                bad.extend(batch.bad.iter().map(|b| b.offset));
            }
            Polled::Empty => std::thread::sleep(Duration::from_millis(2)),
            Polled::Done => {
                assert!(enough(&rows, reader), "done after {} rows", rows.len());
            }
        }
    }
    (rows, bad)
}

fn is_done(_: &[i64], reader: &dyn SourceReader) -> bool {
    reader.finished().len() == reader.positions().len()
}

#[tokio::test]
async fn every_row_comes_once_over_partitions_and_a_resume() {
    let Some(broker) = broker("every_row_comes_once_over_partitions_and_a_resume") else {
        return;
    };
    let topic = topic(&broker, 3).await;
    for p in 0..3 {
        plain(
            &broker,
            &topic,
            p,
            i64::from(p) * 10_000..i64::from(p) * 10_000 + 5000,
        );
    }
    let source = source(&broker, one(&topic));
    let mut enumerator = source.enumerator().unwrap();
    let found = enumerator.discover(&BTreeMap::new(), true).await.unwrap();
    assert_eq!(found.len(), 3);
    let ids: Vec<_> = found.iter().map(|d| d.split.clone()).collect();
    assert_eq!(
        enumerator.ends(&ids).await.unwrap()[&ids[1]],
        Position(5000)
    );
    assert_eq!(enumerator.starts(&ids).await.unwrap()[&ids[1]], Position(0));

    let mut reader = source.reader().unwrap();
    let woken = Arc::new(tokio::sync::Notify::new());
    reader.set_waker(Arc::clone(&woken));
    let start = |d: &crate::sources::Discovered| SplitRange {
        split: d.split.clone(),
        from: d.start,
        until: None,
    };
    reader.assign(found.iter().map(start).collect()).unwrap();
    let (mut rows, _) = read(&mut *reader, |rows, _| rows.len() > 4000);
    let positions = reader.positions();
    drop(reader);
    tokio::time::timeout(Duration::from_secs(5), woken.notified())
        .await
        .unwrap();

    let mut reader = source.reader().unwrap();
    let resume = positions.iter().map(|(s, p)| SplitRange {
        split: s.clone(),
        from: *p,
        until: None,
    });
    reader.assign(resume.collect()).unwrap();
    rows.extend(read(&mut *reader, |_, r| r.caught_up().len() == 3).0);
    assert_eq!(rows.len(), 15_000);
    assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), 15_000);
    enumerator.show_positions(&reader.positions()).await;

    // A partition that appears later, by pattern; and more rows than were there, which end being caught up.
    plain(&broker, &topic, 0, 90_000..90_010);
    let (late, _) = read(&mut *reader, |rows, r| {
        rows.len() == 10 && r.caught_up().len() == 3
    });
    assert_eq!(late, (90_000..90_010).collect::<Vec<_>>());
    let by_pattern = super::KafkaSource::enumerator(&source_of_pattern(&broker, &topic)).unwrap();
    let mut by_pattern = by_pattern;
    let known = BTreeMap::from([(ids[0].clone(), Position(0))]);
    assert_eq!(by_pattern.discover(&known, false).await.unwrap().len(), 2);
}

fn source_of_pattern(broker: &str, topic: &str) -> KafkaSource {
    source(
        broker,
        Topics::Pattern(format!("{}.*", &topic[..topic.len() - 2])),
    )
}

/// A commit is answered before its control records are written: the stable end follows a little later.
async fn end_comes_to(enumerator: &mut dyn SourceEnumerator, split: &SplitId, end: i64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = enumerator.ends(std::slice::from_ref(split)).await.unwrap()[split];
        if found == Position(end) {
            return;
        }
        assert!(
            found < Position(end) && Instant::now() < deadline,
            "{found:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn ranges_of_a_transactional_topic_end_past_control_records_and_move_on() {
    let Some(broker) =
        broker("ranges_of_a_transactional_topic_end_past_control_records_and_move_on")
    else {
        return;
    };
    let topic = topic(&broker, 1).await;
    let producer = transactional(&broker, &topic);
    let second = Duration::from_secs(20);
    for (numbers, commit) in [(0..10, true), (1000..1010, false), (10..20, true)] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, 0, numbers);
        producer.flush(second).unwrap();
        if commit {
            producer.commit_transaction(second).unwrap();
        } else {
            producer.abort_transaction(second).unwrap();
        }
    }
    let source = source(&broker, one(&topic));
    let mut enumerator = source.enumerator().unwrap();
    let split = split_id(&topic, 0);
    // 30 records and 3 control records.
    end_comes_to(&mut *enumerator, &split, 33).await;
    // An open transaction does not move the end.
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, 20..30);
    producer.flush(second).unwrap();
    end_comes_to(&mut *enumerator, &split, 33).await;

    let mut reader = source.reader().unwrap();
    reader.assign(vec![range(&topic, 0, 0, Some(5))]).unwrap();
    let (rows, _) = read(&mut *reader, is_done);
    assert_eq!(rows, (0..5).collect::<Vec<_>>());
    assert_eq!(reader.positions()[&split], Position(5));
    assert!(matches!(reader.poll(10).unwrap(), Polled::Done));
    // The end moves: what was held comes, then the rest; the last control record counts as read.
    reader.assign(vec![range(&topic, 0, 5, Some(7))]).unwrap();
    assert_eq!(read(&mut *reader, is_done).0, vec![5, 6]);
    reader.assign(vec![range(&topic, 0, 7, Some(33))]).unwrap();
    let (rows, _) = read(&mut *reader, is_done);
    assert_eq!(rows, (7..20).collect::<Vec<_>>());
    assert_eq!(reader.positions()[&split], Position(33));

    producer.commit_transaction(second).unwrap();
    end_comes_to(&mut *enumerator, &split, 44).await;
    reader.assign(vec![range(&topic, 0, 33, Some(44))]).unwrap();
    assert_eq!(read(&mut *reader, is_done).0, (20..30).collect::<Vec<_>>());
    reader.assign(vec![range(&topic, 0, 44, None)]).unwrap();
    plain(&broker, &topic, 0, 30..40);
    let (rows, _) = read(&mut *reader, |rows, r| {
        rows.len() == 10 && r.caught_up().len() == 1
    });
    assert_eq!(rows, (30..40).collect::<Vec<_>>());

    // Between two control records alone: nothing to read, yet done.
    let mut reader = source.reader().unwrap();
    reader.assign(vec![range(&topic, 0, 10, Some(22))]).unwrap();
    assert_eq!(read(&mut *reader, is_done).0, Vec::<i64>::new());
}

#[tokio::test]
async fn an_offset_that_is_gone_is_data_loss() {
    let Some(broker) = broker("an_offset_that_is_gone_is_data_loss") else {
        return;
    };
    let topic = topic(&broker, 1).await;
    plain(&broker, &topic, 0, 0..10);
    let mut reader = source(&broker, one(&topic)).reader().unwrap();
    reader.assign(vec![range(&topic, 0, 500, None)]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let failure = loop {
        assert!(Instant::now() < deadline);
        match reader.poll(10) {
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => break e,
        }
    };
    assert_eq!(failure.code, "PR0207");
}

#[tokio::test]
async fn bad_records_keep_their_bytes_and_timestamps_find_starts_and_ends() {
    let Some(broker) = broker("bad_records_keep_their_bytes_and_timestamps_find_starts_and_ends")
    else {
        return;
    };
    let topic = topic(&broker, 1).await;
    let producer: BaseProducer = client(&broker).create().unwrap();
    for (n, value) in ["0", "x", "2", "3"].into_iter().enumerate() {
        let key = format!("k{n}");
        let record = BaseRecord::to(&topic).partition(0).payload(value).key(&key);
        producer
            .send(record.timestamp(1_000_000 + n as i64 * 1000))
            .unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    let mut source = source(&broker, one(&topic));
    let mut reader = source.reader().unwrap();
    reader.assign(vec![range(&topic, 0, 0, Some(4))]).unwrap();
    assert_eq!(read(&mut *reader, is_done), (vec![0, 2, 3], vec![1]));

    let split = split_id(&topic, 0);
    let config = Arc::make_mut(&mut source.config);
    config.stop_at_ms = Some(1_002_500);
    config.start_from = StartFrom {
        earliest: None,
        timestamp: penstock_crds::units::Timestamp::from_epoch_millis(1_000_500),
        ..StartFrom::default()
    };
    let mut enumerator = source.enumerator().unwrap();
    assert!(enumerator.bounded());
    assert_eq!(
        enumerator.discover(&BTreeMap::new(), true).await.unwrap()[0].start,
        Position(1)
    );
    assert_eq!(
        enumerator.discover(&BTreeMap::new(), false).await.unwrap()[0].start,
        Position(0)
    );
    assert_eq!(
        enumerator.ends(std::slice::from_ref(&split)).await.unwrap()[&split],
        Position(3)
    );
}

#[test]
fn a_property_that_the_engine_owns_is_refused() {
    let owned = BTreeMap::from([("isolation.level".to_owned(), "read_uncommitted".to_owned())]);
    assert!(client_properties("b:9092", &BTreeMap::new(), &owned).is_err());
    let secret = BTreeMap::from([("sasl.password".to_owned(), "p\n".to_owned())]);
    let client = client_properties("b:9092", &BTreeMap::new(), &secret).unwrap();
    assert_eq!(client["sasl.password"], "p");
}

#[test]
fn checks_of_brokers_cannot_be_turned_off_and_mechanisms_are_those_that_work() {
    let with = |name: &str, value: &str| {
        let secret = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        client_properties("b:9092", &BTreeMap::new(), &secret)
    };
    assert!(with("enable.ssl.certificate.verification", "false").is_err());
    assert!(with("ssl.endpoint.identification.algorithm", "none").is_err());
    assert!(with("sasl.mechanism", "SCRAM-SHA-512\n").is_ok());
    let refused = with("sasl.mechanisms", "GSSAPI").unwrap_err();
    assert_eq!(
        refused.message,
        "sasl.mechanism GSSAPI is not in this version; there are SCRAM-SHA-512, SCRAM-SHA-256, PLAIN"
    );
}

#[tokio::test]
#[ignore = "measures"]
async fn throughput_of_consuming() {
    let Some(broker) = broker("throughput_of_consuming") else {
        return;
    };
    let topic = topic(&broker, 4).await;
    let rows = 2_000_000;
    for p in 0..4 {
        let from = i64::from(p) * 1_000_000_000_000;
        plain(&broker, &topic, p, from..from + rows / 4);
    }
    let mut source = source(&broker, one(&topic));
    let config = Arc::make_mut(&mut source.config);
    config.keep_raw = false;
    config.transport.clear();
    let mut reader = source.reader().unwrap();
    let started = Instant::now();
    reader
        .assign(
            (0..4)
                .map(|p| range(&topic, p, 0, Some(rows / 4)))
                .collect(),
        )
        .unwrap();
    let mut n = 0;
    loop {
        match reader.poll(8192).unwrap() {
            Polled::Rows(batch) => n += batch.rows.num_rows(),
            Polled::Empty => std::thread::sleep(Duration::from_micros(200)),
            Polled::Done => break,
        }
    }
    assert_eq!(n as i64, rows);
    println!(
        "consumed {:.0} rows/s",
        n as f64 / started.elapsed().as_secs_f64()
    );
}
