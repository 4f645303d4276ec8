//! Sends at once, for `delivery: AtLeastOnce`: an idempotent producer without transactions. A record that was given up fails
//! its epoch. Owns which epoch a record is owed to, and until when.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use tokio::time::Instant;

use super::ffi::{RowProducer, Topic};
use super::publisher::not_taken;
use super::{CODE, KafkaSinkConfig};
use crate::error::{EngineError, Result};
use crate::kafka::{self, Logged};
use crate::sinks::{DirectSender, StagedRecords};

const CALL: Duration = Duration::from_secs(60);

/// Records of one epoch.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    sent: u64,
    acknowledged: u64,
}

pub(super) struct KafkaDirect {
    object: String,
    /// Of the running epoch and the sealed one, which take turns. A record carries the number of its epoch's place; counting
    /// all records together would not do, since partitions overtake each other.
    tallies: [Tally; 2],
    running: usize,
    /// An epoch is sealed and has until then to settle.
    sealed: Option<Instant>,
    /// The first record that the client gave up; its row is lost unless the epoch is read again.
    undelivered: Option<RDKafkaErrorCode>,
    /// `None` only while dropping.
    rows: Option<RowProducer>,
}

impl KafkaDirect {
    pub(super) fn new(config: &KafkaSinkConfig) -> Result<Self> {
        let object = config.object();
        // Without a report per record nobody knows which epoch a record that is still under way belongs to.
        let mut settings = config.producer(&[("delivery.report.only.error", "false")]);
        // Milliseconds count here; a busy client makes its batches while earlier ones are under way.
        if !config.client.contains_key("linger.ms") {
            settings.set("linger.ms", "1");
        }
        let producer: BaseProducer<Logged> = settings
            .create_with_context(Logged::new(&object, &config.client))
            .map_err(|e| kafka::error(CODE, &object, "making a producer", e))?;
        let rows = RowProducer::new(producer, &[config.topic.as_str()])
            .ok_or_else(|| EngineError::fail(CODE, &object, "the topic's name is no name"))?;
        Ok(Self {
            object,
            tallies: [Tally::default(); 2],
            running: 0,
            sealed: None,
            undelivered: None,
            rows: Some(rows),
        })
    }

    fn error(&self, code: RDKafkaErrorCode) -> EngineError {
        let cause = KafkaError::MessageProduction(code);
        let rows = self.rows.as_ref().expect("there until dropped");
        rows.producer.context().failed(CODE, "producing", cause)
    }

    /// Takes in the reports that are there.
    fn look(&mut self) {
        let rows = self.rows.as_ref().expect("there until dropped");
        take_in(rows, &mut self.tallies, &mut self.undelivered);
    }

    fn undelivered(&self) -> Result<()> {
        let rows = self.rows.as_ref().expect("there until dropped");
        if rows.producer.context().is_shut_out() {
            return Err(self.error(RDKafkaErrorCode::AllBrokersDown));
        }
        self.undelivered
            .map_or(Ok(()), |code| Err(self.error(code)))
    }
}

/// Counts the reports that are there.
fn take_in(
    rows: &RowProducer,
    tallies: &mut [Tally; 2],
    undelivered: &mut Option<RDKafkaErrorCode>,
) {
    rows.reports(|epoch, became| match became {
        Ok(()) => tallies[epoch % 2].acknowledged += 1,
        Err(code) => {
            undelivered.get_or_insert(code);
        }
    });
}

impl DirectSender for KafkaDirect {
    fn send(&mut self, records: &StagedRecords) -> Result<()> {
        let deadline = Instant::now() + CALL;
        let Self {
            tallies,
            undelivered,
            rows,
            running,
            object,
            ..
        } = self;
        let rows = rows.as_ref().expect("there until dropped");
        tallies[*running].sent += records.rows;
        rows.put_copies(Topic(0), &records.data, *running, || {
            std::thread::sleep(Duration::from_millis(1));
            take_in(rows, tallies, undelivered);
            Instant::now() < deadline
        })
        .map_err(|refused| not_taken(object, refused))?;
        // Records are kept until their reports are taken.
        self.look();
        self.undelivered()
    }

    fn seal(&mut self) -> Result<()> {
        debug_assert!(self.sealed.is_none(), "one epoch is owed at a time");
        self.running = 1 - self.running;
        self.tallies[self.running] = Tally::default();
        self.sealed = Some(Instant::now() + CALL);
        self.undelivered()
    }

    fn settled(&mut self) -> Result<bool> {
        let Some(deadline) = self.sealed else {
            return Ok(true);
        };
        self.look();
        self.undelivered()?;
        let Tally { sent, acknowledged } = self.tallies[1 - self.running];
        if acknowledged < sent {
            return if Instant::now() < deadline {
                Ok(false)
            } else {
                Err(self.error(RDKafkaErrorCode::OperationTimedOut))
            };
        }
        self.sealed = None;
        Ok(true)
    }
}

impl Drop for KafkaDirect {
    fn drop(&mut self) {
        if let Some(rows) = self.rows.take() {
            kafka::abandon(rows);
        }
    }
}
