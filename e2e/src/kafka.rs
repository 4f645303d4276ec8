//! Owns the tools' own talk to Kafka: topics, fast loading of given partitions, reading what is committed. Nothing of
//! the engine's Kafka code is used here, so that one mistake cannot hide in both.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

/// How long any single request to the broker may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A client configuration with the broker's address and nothing else.
pub fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("log_level", "3");
    config
}

/// Creates a topic with settings such as `message.timestamp.type=LogAppendTime`. One that stands already is an error.
/// Right after a broker's start its controller may not answer yet, hence the retries.
pub fn create_topic(
    brokers: &str,
    name: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(brokers).create()?;
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let answer =
            block_on(admin.create_topics([&topic], &options)).map(|mut answers| answers.pop());
        match answer {
            Ok(Some(Ok(_))) => return Ok(()),
            Ok(Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))) => {
                bail!("topic {name} exists already")
            }
            other if Instant::now() > until => bail!("topic {name} cannot be created: {other:?}"),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Deletes a topic; one that does not exist is fine.
pub fn delete_topic(brokers: &str, name: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(brokers).create()?;
    let answers = block_on(admin.delete_topics(
        &[name],
        &AdminOptions::new().operation_timeout(Some(PATIENCE)),
    ))?;
    for answer in answers {
        match answer {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((topic, code)) => bail!("topic {topic} cannot be deleted: {code}"),
        }
    }
    Ok(())
}

/// Writes lines to given partitions of a topic, in order within a partition and once each (idempotent producer).
pub struct Loader {
    producer: BaseProducer,
    topic: String,
    sent: u64,
}

impl Loader {
    pub fn new(brokers: &str, topic: &str) -> Result<Self> {
        let producer = config(brokers)
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("batch.num.messages", "20000")
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", "262144")
            .create()?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
            sent: 0,
        })
    }

    /// Queues one record. A full queue is waited out.
    pub fn put(&mut self, partition: i32, value: &[u8]) -> Result<()> {
        loop {
            let record = BaseRecord::<(), [u8]>::to(&self.topic)
                .partition(partition)
                .payload(value);
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => {
                    return Err(error).context(format!("cannot write to topic {}", self.topic));
                }
            }
        }
        self.sent += 1;
        if self.sent.is_multiple_of(10_000) {
            self.producer.poll(Duration::ZERO);
        }
        Ok(())
    }

    /// Lets the library tell what it has to, which it does in nobody else's time.
    pub fn poll(&self) {
        self.producer.poll(Duration::ZERO);
    }

    /// Waits until the broker has everything.
    pub fn flush(&mut self) -> Result<()> {
        self.producer
            .flush(Duration::from_secs(120))
            .context("the broker did not take all records")?;
        ensure!(
            self.producer.in_flight_count() == 0,
            "records are left in the queue"
        );
        Ok(())
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }
}

/// The lines of a file, as bytes without the line's end: a poison row need not be UTF-8.
pub fn read_lines(path: &Path) -> Result<Vec<Vec<u8>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    BufReader::with_capacity(1 << 20, file)
        .split(b'\n')
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("cannot read {}", path.display()))
}

/// What a reader saw.
pub enum Seen {
    Record(Record),
    /// Every partition has been read to its end (its last stable offset) at least once.
    End,
    /// Nothing came in the time given.
    Quiet,
}

/// A committed record, owned.
pub struct Record {
    /// Milliseconds since 1970, by the topic's own rule (create or append time).
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message
                .headers()
                .map(|headers| {
                    headers
                        .iter()
                        .map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()))
                        .collect()
                })
                .unwrap_or_default(),
        }
    }
}

/// Reads the committed records of a topic from a place on. It joins no group and leaves no trace on the broker.
pub struct Reader {
    consumer: BaseConsumer,
    pending: HashSet<i32>,
    told_end: bool,
}

/// Where a reader begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    Beginning,
    End,
}

/// How a reader asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Has each record as soon as it may be read.
    Prompt,
    /// Asks four times a second, and costs the broker little.
    Leisurely,
}

impl Reader {
    pub fn new(brokers: &str, topic: &str, from: From) -> Result<Self> {
        Self::with_pace(brokers, topic, from, Pace::Prompt)
    }

    pub fn with_pace(brokers: &str, topic: &str, from: From, pace: Pace) -> Result<Self> {
        let (wait, bytes) = match pace {
            Pace::Prompt => ("5", "1"),
            Pace::Leisurely => ("250", "1000000"),
        };
        let consumer: BaseConsumer = config(brokers)
            .set("group.id", "penstock-e2e-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", wait)
            .set("fetch.min.bytes", bytes)
            .set("fetch.message.max.bytes", "8388608")
            .set("queued.min.messages", "200000")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
        let partitions: Vec<i32> = metadata
            .topics()
            .iter()
            .flat_map(|t| t.partitions())
            .map(|partition| partition.id())
            .collect();
        ensure!(!partitions.is_empty(), "topic {topic} does not exist");
        let mut list = TopicPartitionList::new();
        for &partition in &partitions {
            let place = match from {
                From::Beginning => Offset::Beginning,
                From::End => {
                    let (_, high) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
                    Offset::Offset(high)
                }
            };
            list.add_partition_offset(topic, partition, place)?;
        }
        consumer.assign(&list)?;
        Ok(Self {
            consumer,
            pending: partitions.into_iter().collect(),
            told_end: false,
        })
    }

    /// The next record; `End` comes once, after the last record that stood in the topic when its end was reached. The end is
    /// librdkafka's own end-of-partition event and not an offset: a transaction's last offset is a mark that no reader gets.
    pub fn next(&mut self, wait: Duration) -> Result<Seen> {
        let until = Instant::now() + wait;
        loop {
            match self
                .consumer
                .poll(until.saturating_duration_since(Instant::now()))
            {
                None => return Ok(Seen::Quiet),
                Some(Ok(message)) => return Ok(Seen::Record(Record::of(&message))),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.pending.remove(&partition);
                    if self.pending.is_empty() && !self.told_end {
                        self.told_end = true;
                        return Ok(Seen::End);
                    }
                }
                // The broker may be away for a while in tests that kill it.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                ))) => {}
                Some(Err(error)) => return Err(error).context("cannot read"),
            }
        }
    }

    /// Hands every record up to the topic's end to `take`.
    pub fn drain(mut self, mut take: impl FnMut(Record) -> Result<()>) -> Result<()> {
        let mut heard = Instant::now();
        loop {
            match self.next(Duration::from_secs(1))? {
                Seen::Record(record) => {
                    heard = Instant::now();
                    take(record)?;
                }
                Seen::End => return Ok(()),
                Seen::Quiet => ensure!(
                    heard.elapsed() < Duration::from_secs(60),
                    "the end of partitions {:?} was not reached, is a transaction left open?",
                    self.pending
                ),
            }
        }
    }
}

/// Told for each record when the broker has appended it: the caller's number and the append time in milliseconds.
pub trait Appended: Send + Sync + 'static {
    fn appended(&self, number: usize, at: i64);
}

struct Acks<A>(A);

impl<A: Appended> ClientContext for Acks<A> {}

impl<A: Appended> ProducerContext for Acks<A> {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Ok(message) = result
            && let Some(at) = message.timestamp().to_millis()
        {
            self.0.appended(number, at);
        }
    }
}

/// Sends each record within a millisecond and learns when it was appended: for measuring latency, not for loading. Without that
/// millisecond every record is a request of its own, and the broker is what is measured.
pub struct Prompt<A: Appended> {
    producer: ThreadedProducer<Acks<A>>,
    topic: String,
}

impl<A: Appended> Prompt<A> {
    pub fn new(brokers: &str, topic: &str, acks: A) -> Result<Self> {
        let producer: ThreadedProducer<Acks<A>> = config(brokers)
            .set("linger.ms", "1")
            .set("acks", "all")
            .create_with_context(Acks(acks))?;
        // Connected before the first record is due.
        producer
            .client()
            .fetch_metadata(Some(topic), PATIENCE)
            .with_context(|| format!("topic {topic} cannot be asked for"))?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
        })
    }

    pub fn send(&self, number: usize, partition: i32, value: &[u8]) -> Result<()> {
        let record = BaseRecord::<(), [u8], usize>::with_opaque_to(&self.topic, number)
            .partition(partition)
            .payload(value);
        self.producer
            .send(record)
            .map_err(|(error, _)| error)
            .context("cannot send")
    }

    pub fn flush(&self) -> Result<()> {
        self.producer
            .flush(PATIENCE)
            .context("the broker did not take all records")
    }
}
