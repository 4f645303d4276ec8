//! Sends at once, for `delivery: AtLeastOnce`: an idempotent producer without transactions. What was not acknowledged at a
//! barrier fails the flush, and the epoch with it.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use tokio::time::Instant;

use super::ffi::{RowProducer, Topic};
use super::publisher::{drain, not_taken, wait};
use super::{CODE, KafkaSinkConfig};
use crate::error::{EngineError, Result};
use crate::kafka::{self, Logged};
use crate::sinks::{DirectSender, StagedRecords};

const CALL: Duration = Duration::from_secs(60);

pub(super) struct KafkaDirect {
    object: String,
    /// `None` only while dropping.
    rows: Option<RowProducer>,
}

impl KafkaDirect {
    pub(super) fn new(config: &KafkaSinkConfig) -> Result<Self> {
        let object = config.object();
        let mut settings = config.producer(&[]);
        // Milliseconds count here; a busy client makes its batches while earlier ones are under way.
        if !config.client.contains_key("linger.ms") {
            settings.set("linger.ms", "1");
        }
        let producer: BaseProducer<Logged> = settings
            .create_with_context(Logged::new(&object))
            .map_err(|e| kafka::error(CODE, &object, "making a producer", e))?;
        let rows = RowProducer::new(producer, &[config.topic.as_str()])
            .ok_or_else(|| EngineError::fail(CODE, &object, "the topic's name is no name"))?;
        Ok(Self {
            object,
            rows: Some(rows),
        })
    }

    fn rows(&self) -> &RowProducer {
        self.rows.as_ref().expect("there until dropped")
    }

    fn error(&self, cause: KafkaError) -> EngineError {
        kafka::error(CODE, &self.object, "producing", cause)
    }

    /// A record that the client gave up; its row is lost unless the epoch is read again.
    fn undelivered(&self) -> Result<()> {
        match self.rows().producer.context().undelivered.lock().take() {
            Some(e) => Err(self.error(e)),
            None => Ok(()),
        }
    }
}

impl DirectSender for KafkaDirect {
    fn send(&mut self, records: &StagedRecords) -> Result<()> {
        let deadline = Instant::now() + CALL;
        let rows = self.rows();
        rows.put_copies(Topic(0), &records.data, || wait(rows, deadline))
            .map_err(|refused| not_taken(&self.object, refused))?;
        self.undelivered()
    }

    fn flush(&mut self) -> Result<()> {
        let deadline = Instant::now() + CALL;
        drain(self.rows(), deadline).map_err(|e| self.error(e))?;
        self.undelivered()
    }
}

impl Drop for KafkaDirect {
    fn drop(&mut self) {
        if let Some(rows) = self.rows.take() {
            kafka::abandon(rows);
        }
    }
}
