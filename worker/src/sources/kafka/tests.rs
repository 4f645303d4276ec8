//! Against a real broker: `PENSTOCK_TEST_KAFKA=host:port`, else each test says that it was skipped.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use penstock_crds::source::TransportField;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::*;
use crate::formats::json::JsonConfig;
use crate::sources::contract::{Subject, check};
use crate::sources::decode::BodyFormat;
use crate::sources::{Discovered, Polled, Position, SplitRange};

const WAIT: Duration = Duration::from_secs(20);

/// The broker, or a line that says which test was skipped.
fn broker(test: &str) -> Option<String> {
    let broker = std::env::var("PENSTOCK_TEST_KAFKA").ok();
    if broker.is_none() {
        println!("skipped: {test}: PENSTOCK_TEST_KAFKA is not set");
    }
    broker
}

struct Bed {
    broker: String,
    topic: String,
}

impl Bed {
    async fn new(broker: String, partitions: i32) -> Self {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let bed = Self { broker, topic: format!("penstock-test-{nanos}") };
        let topic = NewTopic::new(&bed.topic, partitions, TopicReplication::Fixed(1));
        for made in bed.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        bed
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.broker);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    fn producer(&self, transactional: bool) -> BaseProducer {
        let mut config = self.client();
        if transactional {
            config.set("transactional.id", &self.topic).set("retry.backoff.ms", "20");
        }
        let producer: BaseProducer = config.create().unwrap();
        if transactional {
            producer.init_transactions(WAIT).unwrap();
        }
        producer
    }

    fn produce(&self, producer: &BaseProducer, partition: i32, rows: std::ops::Range<i64>) {
        for i in rows {
            let body = format!("{{\"n\":{i}}}");
            let record = BaseRecord::<[u8], str>::to(&self.topic).partition(partition).payload(&body);
            producer.send(record).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(WAIT).unwrap();
    }

    fn config(&self) -> KafkaSourceConfig {
        KafkaSourceConfig {
            name: "k".to_owned(),
            bootstrap_servers: self.broker.clone(),
            topics: Topics::Named(vec![self.topic.clone()]),
            start: StartAt::Earliest,
            stop_at_ms: None,
            group_id: format!("{}-group", self.topic),
            properties: BTreeMap::new(),
            plan: DecodePlan {
                schema: Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)])),
                from: vec![None],
                format: BodyFormat::Json(JsonConfig::default()),
                keep_raw: false,
            },
        }
    }

    fn split(&self, partition: i32) -> SplitId {
        join(&self.topic, partition)
    }

    fn range(&self, partition: i32, from: i64, until: Option<i64>) -> SplitRange {
        SplitRange { split: self.split(partition), from: Position(from), until: until.map(Position) }
    }
}

/// Reads to `Done`; column `n` with offsets.
fn read(reader: &mut dyn SourceReader) -> Result<Vec<(i64, i64)>> {
    let (mut rows, start) = (vec![], Instant::now());
    loop {
        assert!(start.elapsed() < WAIT, "{rows:?} {:?}", reader.positions());
        match reader.poll(4096)? {
            Polled::Rows(batch) => {
                let n = batch.rows.column(0).as_primitive::<Int64Type>();
                rows.extend((0..batch.rows.num_rows()).map(|i| (n.value(i), batch.offsets[i])));
            }
            Polled::Empty => std::thread::sleep(Duration::from_millis(5)),
            Polled::Done => return Ok(rows),
        }
    }
}

fn numbers(rows: &[(i64, i64)]) -> Vec<i64> {
    rows.iter().map(|(n, _)| *n).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_keeps_the_contract() {
    let Some(broker) = broker("kafka_keeps_the_contract") else { return };
    let bed = Bed::new(broker, 3).await;
    let producer = bed.producer(false);
    for partition in 0..3 {
        bed.produce(&producer, partition, 0..20);
    }
    check(Subject {
        source: Arc::new(KafkaSource::new(bed.config())),
        splits: (0..3).map(|p| bed.split(p)).collect(),
        rows: 20,
        end: Position(20),
        cuts: true,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_records_and_open_transactions_do_not_hold_a_range_up() {
    let Some(broker) = broker("control_records_and_open_transactions_do_not_hold_a_range_up") else { return };
    let bed = Bed::new(broker, 1).await;
    let producer = bed.producer(true);
    producer.begin_transaction().unwrap();
    bed.produce(&producer, 0, 0..5);
    producer.commit_transaction(WAIT).unwrap();
    producer.begin_transaction().unwrap();
    bed.produce(&producer, 0, 100..105);
    producer.abort_transaction(WAIT).unwrap();
    let source = KafkaSource::new(bed.config());
    let mut enumerator = source.enumerator().unwrap();
    let splits = [bed.split(0)];
    // 5 rows, a marker, 5 aborted rows, a marker.
    let end = enumerator.ends(&splits).await.unwrap()[&splits[0]];
    assert_eq!(end, Position(12));
    let mut reader = source.reader().unwrap();
    reader.assign(vec![bed.range(0, 0, Some(end.0))]).unwrap();
    assert_eq!(numbers(&read(reader.as_mut()).unwrap()), [0, 1, 2, 3, 4]);
    assert_eq!(reader.positions()[&splits[0]], end);
    // An open transaction: the end is the last stable offset.
    producer.begin_transaction().unwrap();
    bed.produce(&producer, 0, 200..205);
    assert_eq!(enumerator.ends(&splits).await.unwrap()[&splits[0]], Position(12));
    producer.commit_transaction(WAIT).unwrap();
    let end = enumerator.ends(&splits).await.unwrap()[&splits[0]];
    assert_eq!(end, Position(18));
    reader.assign(vec![bed.range(0, 0, Some(14))]).unwrap();
    assert_eq!(numbers(&read(reader.as_mut()).unwrap()), [200, 201]);
    reader.assign(vec![bed.range(0, 0, Some(18))]).unwrap();
    assert_eq!(numbers(&read(reader.as_mut()).unwrap()), [202, 203, 204]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_gone_is_a_loss_of_data() {
    let Some(broker) = broker("an_offset_that_is_gone_is_a_loss_of_data") else { return };
    let bed = Bed::new(broker, 1).await;
    bed.produce(&bed.producer(false), 0, 0..20);
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(&bed.topic, 0, rdkafka::Offset::Offset(10)).unwrap();
    bed.admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    let source = KafkaSource::new(bed.config());
    let starts = source.enumerator().unwrap().starts(&[bed.split(0)]).await.unwrap();
    assert_eq!(starts[&bed.split(0)], Position(10));
    for from in [3, 500] {
        let mut reader = source.reader().unwrap();
        reader.assign(vec![bed.range(0, from, None)]).unwrap();
        let error = read(reader.as_mut()).unwrap_err();
        assert_eq!((error.code, error.kind), ("PR0207", crate::error::ErrorKind::Fail));
        assert!(error.message.contains(&format!("offset {from} of {}/0", bed.topic)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_of_the_first_epoch_follow_start_from() {
    let Some(broker) = broker("positions_of_the_first_epoch_follow_start_from") else { return };
    let bed = Bed::new(broker, 1).await;
    let producer = bed.producer(false);
    for (i, at) in [1_000, 2_000, 3_000, 4_000].into_iter().enumerate() {
        let record = BaseRecord::<[u8], str>::to(&bed.topic).partition(0).payload("{}").timestamp(at + i as i64);
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(WAIT).unwrap();
    let known = BTreeMap::new();
    let group = "penstock-test-elsewhere".to_owned() + &bed.topic;
    let mut shown = KafkaSource::new(KafkaSourceConfig { group_id: group.clone(), ..bed.config() }).enumerator().unwrap();
    shown.show_positions(&[(bed.split(0), Position(2))].into()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let offsets = [((bed.topic.clone(), 0), 1)].into();
    for (start, expected) in [
        (StartAt::Earliest, 0),
        (StartAt::Latest, 4),
        (StartAt::Time(2_500), 2),
        (StartAt::Time(9_000), 4),
        (StartAt::Offsets(offsets), 1),
        (StartAt::Offsets(BTreeMap::new()), 0),
        (StartAt::Group(group), 2),
        (StartAt::Group(format!("nobody-{}", bed.topic)), 0),
    ] {
        let source = KafkaSource::new(KafkaSourceConfig { start: start.clone(), ..bed.config() });
        let mut enumerator = source.enumerator().unwrap();
        let found = enumerator.discover(&known, true).await.unwrap();
        let expected = Discovered { split: bed.split(0), start: Position(expected) };
        assert_eq!(found, [expected], "{start:?}");
        assert_eq!(enumerator.discover(&known, false).await.unwrap()[0].start, Position(0));
    }
    let bounded = KafkaSource::new(KafkaSourceConfig { stop_at_ms: Some(3_000), ..bed.config() });
    let mut enumerator = bounded.enumerator().unwrap();
    assert!(enumerator.bounded());
    assert_eq!(enumerator.ends(&[bed.split(0)]).await.unwrap()[&bed.split(0)], Position(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_topics_that_appear_are_found() {
    let Some(broker) = broker("partitions_and_topics_that_appear_are_found") else { return };
    let bed = Bed::new(broker, 1).await;
    let topics = Topics::Matching(regex::Regex::new(&format!("^(?:{}.*)$", bed.topic)).unwrap());
    let source = KafkaSource::new(KafkaSourceConfig { topics, start: StartAt::Latest, ..bed.config() });
    let mut enumerator = source.enumerator().unwrap();
    let mut known = BTreeMap::new();
    let found = enumerator.discover(&known, true).await.unwrap();
    known.extend(found.into_iter().map(|d| (d.split, d.start)));
    assert_eq!(known.len(), 1);
    bed.admin().create_partitions([&NewPartitions::new(&bed.topic, 2)], &AdminOptions::new()).await.unwrap();
    let other = format!("{}-other", bed.topic);
    let topic = NewTopic::new(&other, 1, TopicReplication::Fixed(1));
    bed.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    bed.produce(&bed.producer(false), 1, 0..3);
    let found = enumerator.discover(&known, false).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|d| (d.split, d.start.0)).collect();
    assert_eq!(found, [(bed.split(1), 0), (join(&other, 0), 0)]);
    let mut reader = source.reader().unwrap();
    reader.assign(vec![bed.range(0, 0, Some(0))]).unwrap();
    assert!(read(reader.as_mut()).unwrap().is_empty());
    reader.assign(vec![bed.range(1, 0, Some(3))]).unwrap();
    assert_eq!(numbers(&read(reader.as_mut()).unwrap()), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn transport_columns_tell_of_the_record_and_the_waker_of_its_coming() {
    let Some(broker) = broker("transport_columns_tell_of_the_record") else { return };
    let bed = Bed::new(broker, 1).await;
    let mut config = bed.config();
    let key = Field::new("key", DataType::Utf8, true);
    let headers = crate::sources::decode::tests_support::headers_field("headers");
    let at = DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, None);
    let fields = vec![
        key,
        Field::new("n", DataType::Int64, true),
        Field::new("p", DataType::Int32, false),
        Field::new("topic", DataType::Utf8, false),
        Field::new("at", at, false),
        headers,
    ];
    config.plan.schema = Arc::new(Schema::new(fields));
    config.plan.from = vec![
        Some(TransportField::Key),
        None,
        Some(TransportField::Partition),
        Some(TransportField::Topic),
        Some(TransportField::Timestamp),
        Some(TransportField::Headers),
    ];
    config.plan.keep_raw = true;
    let source = KafkaSource::new(config);
    let mut reader = source.reader().unwrap();
    let waker = Arc::new(tokio::sync::Notify::new());
    reader.set_waker(Arc::clone(&waker));
    reader.assign(vec![bed.range(0, 0, None)]).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    while let Polled::Rows(_) = reader.poll(10).unwrap() {}
    let producer = bed.producer(false);
    let headers = OwnedHeaders::new().insert(Header { key: "h", value: Some("x") });
    let record = BaseRecord::to(&bed.topic).key("id").payload("{\"n\":7}").timestamp(5).headers(headers);
    producer.send(record).map_err(|(e, _)| e).unwrap();
    producer.send(BaseRecord::to(&bed.topic).key("id").payload("bad")).map_err(|(e, _)| e).unwrap();
    producer.flush(WAIT).unwrap();
    let (mut lines, mut bad, start) = (vec![], vec![], Instant::now());
    while bad.is_empty() && start.elapsed() < WAIT {
        tokio::time::timeout(WAIT, waker.notified()).await.unwrap();
        if let Polled::Rows(batch) = reader.poll(10).unwrap() {
            let text = arrow::util::pretty::pretty_format_batches(std::slice::from_ref(&batch.rows)).unwrap();
            lines.extend(text.to_string().lines().skip(3).map(str::to_owned));
            bad.extend(batch.bad);
        }
    }
    let expected = format!("| id  | 7 | 0 | {} | 1970-01-01T00:00:00.005 | {{h: 78}} |", bed.topic);
    assert_eq!(lines[0], expected);
    assert_eq!((bad[0].offset, bad[0].key.as_deref()), (1, Some(b"id".as_slice())));
    assert_eq!(bad[0].value.as_deref(), Some(b"bad".as_slice()));
}

#[test]
fn properties_that_run_or_load_something_are_refused() {
    for name in ["plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.location", "ssl.ca.location",
        "isolation.level", "group.id", "enable.auto.commit", "bootstrap.servers", "ssl.providers"] {
        let given = [(name.to_owned(), "x".to_owned())].into();
        assert_eq!(crate::kafka::base("source k", "b:1", &given).unwrap_err().code, "PS0040", "{name}");
    }
    let given = [("sasl.password", "p\n"), ("ssl.ca.pem", "x"), ("security.protocol", "ssl")];
    let given = given.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    assert_eq!(crate::kafka::base("source k", "b:1", &given).unwrap().get("sasl.password"), Some("p"));
}
