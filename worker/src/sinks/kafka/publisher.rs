//! One shard's publisher: rows and marker in one transaction. Any doubt ends the producer; `open` makes a new one with the
//! same transactional id, which closes what the old one left, and reads the marker, which says what is out.
//!
//! The client does not always keep its own time after a broker's crash, so every call runs on a thread of its own under a
//! deadline of ours.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use tokio::time::Instant;

use super::ffi::{Refused, RowProducer, Topic};
use super::{CODE, KafkaSinkConfig, marker};
use crate::error::{EngineError, ErrorKind, Result};
use crate::kafka::{self, Logged};
use crate::sinks::staged::StagedRecord;
use crate::sinks::{Marker, ShardPublisher};

const CALL: Duration = Duration::from_secs(30);
/// What the first try to begin a producer's transactions may take; each that follows takes half as long again. While the broker
/// completes the transaction before, the client asks again only after half a second: a new one asks at once.
const BEGIN: Duration = Duration::from_millis(120);
const ROWS: Topic = Topic(0);
const MARKERS: Topic = Topic(1);

/// What the blocking side needs, shared with its threads.
struct Shard {
    config: Arc<KafkaSinkConfig>,
    object: String,
    shard: u16,
    partition: i32,
    key: Vec<u8>,
}

pub(super) struct KafkaPublisher {
    shard: Arc<Shard>,
    /// `None`: closed, or abandoned in doubt.
    producer: Option<Arc<RowProducer>>,
}

impl KafkaPublisher {
    pub(super) fn new(config: Arc<KafkaSinkConfig>, shard: u16, partition: i32) -> Self {
        let object = format!("sink {} shard {shard}", config.name);
        let key = marker::key(&config.log_id, &config.name, shard);
        Self {
            shard: Arc::new(Shard {
                config,
                object,
                shard,
                partition,
                key,
            }),
            producer: None,
        }
    }

    fn abandon(&mut self) {
        if let Some(producer) = self.producer.take() {
            kafka::abandon(producer);
        }
    }

    async fn transaction(&mut self, records: Bytes, marker: Marker) -> Result<()> {
        let shard = Arc::clone(&self.shard);
        let Some(producer) = self.producer.clone() else {
            return Err(EngineError::retry(
                CODE,
                &shard.object,
                "the publisher is not open",
            ));
        };
        let outcome = blocking(&self.shard, "a transaction", move || {
            shard.transact(&producer, &records, marker)
        })
        .await;
        if outcome.is_err() {
            self.abandon();
        }
        outcome
    }
}

/// Runs `work` on a thread for blocking; an answer that comes too late is none.
async fn blocking<T: Send + 'static>(
    shard: &Arc<Shard>,
    doing: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let object = &shard.object;
    // The work's own deadlines end it first, if the client lets them.
    match tokio::time::timeout(
        CALL + Duration::from_secs(5),
        tokio::task::spawn_blocking(work),
    )
    .await
    {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => {
            Err(EngineError::retry(CODE, object, format!("{doing} ended early")).caused_by(e))
        }
        Err(_) => Err(EngineError::retry(
            CODE,
            object,
            format!("{doing} took too long"),
        )),
    }
}

impl Shard {
    /// All errors here are doubts, a fencing too: opening again and the marker decide. Only what a broker refuses for good
    /// is passed on as that.
    fn error(&self, doing: &str, cause: KafkaError) -> EngineError {
        kafka::error(CODE, &self.object, doing, cause)
    }

    fn open(&self) -> Result<(RowProducer, Option<Marker>)> {
        let deadline = Instant::now() + CALL;
        let reader: BaseConsumer<Logged> = self
            .config
            .consumer()
            .create_with_context(Logged::new(&self.object, &self.config.client))
            .map_err(|e| self.error("making a consumer", e))?;
        // It finds its way meanwhile.
        let opened = self.begin(deadline).and_then(|producer| {
            let at = (self.config.marker_topic.as_str(), self.partition);
            match marker::read(&reader, &self.object, at, &self.key, deadline) {
                Ok(marker) => Ok((producer, marker)),
                Err(error) => {
                    kafka::abandon(producer);
                    Err(error)
                }
            }
        });
        kafka::abandon(reader);
        opened
    }

    /// A producer whose predecessors are shut out.
    fn begin(&self, deadline: Instant) -> Result<RowProducer> {
        let mut time = BEGIN;
        loop {
            let producer = self.producer()?;
            // Asked for its transactions before it has a connection, the client looks for one half a second later.
            let topic = Some(self.config.marker_topic.as_str());
            let met = again(&producer, deadline, |left| {
                let client = producer.producer.client();
                client.fetch_metadata(topic, left).map(drop)
            });
            if let Err(error) = met {
                let error = told(&producer, "asking for the marker topic", error);
                kafka::abandon(producer);
                return Err(error);
            }
            let until = deadline.min(Instant::now() + time);
            let begun = again(&producer, until, |left| {
                producer.producer.init_transactions(left)
            });
            let Err(error) = begun else {
                return Ok(producer);
            };
            let late = Instant::now() >= until && until < deadline;
            let error = told(&producer, "init_transactions", error);
            kafka::abandon(producer);
            if !late || error.kind != ErrorKind::Retry {
                return Err(error);
            }
            time += time / 2;
        }
    }

    fn producer(&self) -> Result<RowProducer> {
        let config = &self.config;
        let id = format!("penstock.{}.{}.{}", config.log_id, config.name, self.shard);
        let producer: BaseProducer<Logged> = config
            .producer(&[
                ("transactional.id", &id),
                ("transaction.timeout.ms", "60000"),
            ])
            .create_with_context(Logged::new(&self.object, &config.client))
            .map_err(|e| self.error("making a producer", e))?;
        let topics = [config.topic.as_str(), config.marker_topic.as_str()];
        RowProducer::new(producer, &topics)
            .ok_or_else(|| EngineError::fail(CODE, &self.object, "a topic's name is no name"))
    }

    fn transact(&self, rows: &RowProducer, records: &Bytes, marker: Marker) -> Result<()> {
        let deadline = Instant::now() + CALL;
        let producer = &rows.producer;
        producer
            .begin_transaction()
            .map_err(|e| told(rows, "begin_transaction", e))?;
        rows.put_chunk(ROWS, records, || wait(rows, deadline))
            .map_err(|refused| not_taken(&self.object, refused))?;
        let value = marker::value(marker);
        let record = StagedRecord::plain(self.partition, &self.key, &value);
        rows.put(MARKERS, &record, || wait(rows, deadline))
            .map_err(|refused| not_taken(&self.object, refused))?;
        drain(rows, deadline).map_err(|e| told(rows, "producing", e))?;
        if let Some(e) = producer.context().undelivered.lock().take() {
            return Err(told(rows, "producing", e));
        }
        again(rows, deadline, |left| producer.commit_transaction(left))
            .map_err(|e| told(rows, "commit_transaction", e))
    }
}

/// Waits a little for room in the client's queue; false: no more.
pub(super) fn wait(rows: &RowProducer, deadline: Instant) -> bool {
    std::thread::sleep(Duration::from_millis(1));
    rows.producer.poll(Duration::ZERO);
    Instant::now() < deadline
}

/// What it means that the client did not take a record.
pub(super) fn not_taken(object: &str, refused: Refused) -> EngineError {
    let code = match refused {
        Refused::Broken(error) => return error,
        Refused::Full => RDKafkaErrorCode::QueueFull,
        Refused::Client(code) => code,
    };
    kafka::error(
        CODE,
        object,
        "producing",
        KafkaError::MessageProduction(code),
    )
}

/// Waits until everything is acknowledged or given up.
pub(super) fn drain(rows: &RowProducer, deadline: Instant) -> Result<(), KafkaError> {
    // A record that was given up counts as unacknowledged until its report is taken, so reports are looked for in between.
    while !rows.flushed(Duration::from_millis(100)) {
        if Instant::now() >= deadline || rows.producer.context().is_shut_out() {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        kafka::hear(&rows.producer);
    }
    rows.producer.poll(Duration::ZERO);
    Ok(())
}

/// An error of a producer's call, with what its client has to say to it.
fn told(rows: &RowProducer, doing: &str, cause: KafkaError) -> EngineError {
    kafka::hear(&rows.producer);
    rows.producer.context().failed(CODE, doing, cause)
}

/// Calls `call` again while it answers that it may be called again, unless the brokers refuse the client.
fn again(
    rows: &RowProducer,
    deadline: Instant,
    call: impl Fn(Duration) -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    let client = rows.producer.context();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = client.ask(left, || kafka::hear(&rows.producer), &call);
        match asked {
            Err(_) if client.is_refused() => return asked,
            Err(KafkaError::Transaction(e)) if e.is_retriable() && !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

#[async_trait]
impl ShardPublisher for KafkaPublisher {
    async fn open(&mut self) -> Result<Option<Marker>> {
        self.abandon();
        let shard = Arc::clone(&self.shard);
        let (producer, marker) = blocking(&self.shard, "opening", move || shard.open()).await?;
        self.producer = Some(Arc::new(producer));
        Ok(marker)
    }

    async fn init_marker(&mut self, marker: Marker) -> Result<()> {
        self.transaction(Bytes::new(), marker).await
    }

    async fn publish(&mut self, records: Bytes, marker: Marker) -> Result<()> {
        self.transaction(records, marker).await
    }

    fn rolling(&mut self) -> Option<&mut dyn crate::sinks::Rolling> {
        None
    }

    fn fences(&self) -> bool {
        true
    }
}

impl Drop for KafkaPublisher {
    fn drop(&mut self) {
        self.abandon();
    }
}
