//! What Kafka's source and sink share: the client's properties, its log lines, and what its errors allow. Reading is
//! `sources::kafka`'s, writing `sinks::kafka`'s, and why brokers refuse a client is `refusal`'s.

mod refusal;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use penstock_crds::validate::{Property, property};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode;

use tokio::time::Instant;

use crate::error::{EngineError, ErrorKind, Result};

use refusal::{Identity, Refusal};

/// What the client is built with, and can use as it is: Kerberos is not built in, and nobody gives OAUTHBEARER its token.
const MECHANISMS: &[&str] = &["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"];

/// Properties of a client: `bootstrap.servers`, then the manifest's, then the Secret's (file contents, whose last line end
/// is dropped). A property that is not on the allow-list is refused here too, since a Secret is never seen by the validator.
pub fn client_properties(
    bootstrap: &str,
    properties: &BTreeMap<String, String>,
    secret: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap.to_owned())]);
    for (name, value) in properties.iter().chain(secret) {
        match property(name) {
            Property::Allowed | Property::Secret => {
                let value = value.trim_end_matches(['\r', '\n']);
                out.insert(name.clone(), value.to_owned());
            }
            Property::Refused(why) => {
                let text = format!("property {name} is refused: {why}");
                return Err(EngineError::invalid("PR0208", "kafka client", text));
            }
            Property::Unknown => {
                let text = format!("property {name} is not on the allow-list");
                return Err(EngineError::invalid("PR0208", "kafka client", text));
            }
        }
    }
    let asked = ["sasl.mechanism", "sasl.mechanisms"].map(|name| out.get(name));
    for mechanism in asked.into_iter().flatten() {
        if !MECHANISMS.contains(&mechanism.as_str()) {
            let there = MECHANISMS.join(", ");
            let text =
                format!("sasl.mechanism {mechanism} is not in this version; there are {there}");
            return Err(EngineError::invalid("PR0208", "kafka client", text));
        }
    }
    Ok(out)
}

/// A config of `defaults`, over them `client`, over them `owned`, which nobody may change.
pub(crate) fn client_config(
    defaults: &[(&str, &str)],
    client: &BTreeMap<String, String>,
    owned: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in defaults {
        config.set(*name, *value);
    }
    for (name, value) in client {
        config.set(name, value);
    }
    for (name, value) in owned {
        config.set(*name, *value);
    }
    config.set_log_level(RDKafkaLogLevel::Warning);
    config
}

/// Puts a client's own words into the log, and remembers those that say why brokers do not let it in.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    /// `source payments`, `sink alerts shard 3`.
    pub object: String,
    /// Delivery reports that failed since the last look; only errors are reported.
    pub undelivered: Arc<Mutex<Option<KafkaError>>>,
    /// Since the last call that went well.
    refusal: Arc<Mutex<Option<Refusal>>>,
    identity: Arc<Identity>,
}

impl Logged {
    /// `client`: its properties, of [`client_properties`].
    pub(crate) fn new(object: impl Into<String>, client: &BTreeMap<String, String>) -> Self {
        Self {
            object: object.into(),
            undelivered: Arc::default(),
            refusal: Arc::default(),
            identity: Arc::new(Identity::of(client)),
        }
    }

    /// An error of a call: that the brokers refuse the client, if it has said so since the last call that went well. May
    /// then block for some seconds.
    pub(crate) fn failed(&self, code: &'static str, doing: &str, cause: KafkaError) -> EngineError {
        let refusal = self.refusal.lock().take();
        match refusal.or_else(|| Refusal::of(native(&cause)?, &cause.to_string())) {
            // Of the call itself there is no more to say than that it had no connection.
            Some(refusal) => refusal.error(&self.object, &self.identity),
            None => error(code, &self.object, doing, cause),
        }
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refusal.lock().is_some()
    }

    /// Whether a broker that holds what the client needs refuses it.
    pub(crate) fn is_shut_out(&self) -> bool {
        self.refusal.lock().as_ref().is_some_and(Refusal::by_needed)
    }

    /// That a broker that holds what the client needs refuses it, where an event says so.
    pub(crate) fn refused(&self, code: RDKafkaErrorCode, reason: &str) -> Option<EngineError> {
        let refusal = Refusal::of(code, reason).filter(Refusal::by_needed)?;
        Some(refusal.error(&self.object, &self.identity))
    }

    /// Calls `call`, in slices of the time it may take. Between them the client's events are looked at by `look`, so that one
    /// that is refused says so at once; the client itself would try on in silence.
    pub(crate) fn ask<T>(
        &self,
        time: Duration,
        look: impl Fn(),
        call: impl Fn(Duration) -> KafkaResult<T>,
    ) -> KafkaResult<T> {
        let until = Instant::now() + time;
        loop {
            let began = Instant::now();
            let slice = until.saturating_duration_since(began).min(SLICE);
            match call(slice.max(Duration::from_millis(1))) {
                Ok(answer) => {
                    *self.refusal.lock() = None;
                    return Ok(answer);
                }
                Err(e) => {
                    look();
                    // An answer that came before its time is one.
                    let waited = began.elapsed() + Duration::from_millis(100) >= slice;
                    if !waited || self.is_refused() || Instant::now() >= until {
                        return Err(e);
                    }
                }
            }
        }
    }
}

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::warn!(object = %self.object, facility, text, "kafka client");
            }
            RDKafkaLogLevel::Warning
            | RDKafkaLogLevel::Notice
            | RDKafkaLogLevel::Info
            | RDKafkaLogLevel::Debug => {
                tracing::debug!(object = %self.object, facility, text, "kafka client");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Asked for, by whoever reads to a partition's end.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(object = %self.object, %error, reason, "kafka client");
        if let Some(refusal) = native(&error).and_then(|code| Refusal::of(code, reason)) {
            *self.refusal.lock() = Some(refusal);
        }
    }
}

/// As long as a connection and a login take with brokers that are well, and more.
const SLICE: Duration = Duration::from_secs(3);
/// Events of a client that are looked at in one go; each is a line of its log.
const EVENTS: usize = 256;

/// Has a consumer that reads nothing tell its events.
pub(crate) fn listen(consumer: &BaseConsumer<Logged>) {
    for _ in 0..EVENTS {
        let _ = consumer.poll(Duration::ZERO);
    }
}

/// As long as brokers that are well need to answer, and a slot may wait.
const MEET: Duration = Duration::from_millis(500);

/// Waits a moment until a consumer knows who leads a topic: of partitions that are assigned before, it looks for the leaders once a
/// second. Brokers that do not answer are met later: false.
pub(crate) fn meet(consumer: &BaseConsumer<Logged>, topic: &str) -> bool {
    let met = consumer.fetch_metadata(Some(topic), MEET);
    if let Err(error) = &met {
        tracing::debug!(object = %consumer.context().object, %error, "the client tries on");
    }
    met.is_ok()
}

/// Has a producer tell its events.
pub(crate) fn hear(producer: &BaseProducer<Logged>) {
    for _ in 0..EVENTS {
        producer.poll(Duration::ZERO);
    }
}

/// The client's code of an error, where it has one.
fn native(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(e) => Some(e.code()),
        other => other.rdkafka_error_code(),
    }
}

impl ConsumerContext for Logged {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(object = %self.object, %error, "offsets could not be shown");
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Logged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.undelivered.lock().get_or_insert(error.clone());
        }
    }
}

/// Whether asking again cannot help: the broker refuses this client, or the request is wrong.
pub(crate) fn refused(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as C;
    matches!(
        code,
        C::TopicAuthorizationFailed
            | C::GroupAuthorizationFailed
            | C::ClusterAuthorizationFailed
            | C::TransactionalIdAuthorizationFailed
            | C::InvalidTopic
            | C::PolicyViolation
            | C::InvalidReplicationFactor
            | C::InvalidPartitions
            | C::MessageSizeTooLarge
    )
}

/// An error of the client as the engine's: `Fail` where asking again cannot help, `Refused` where another Secret may, else
/// `Retry`.
pub(crate) fn error(
    code: &'static str,
    object: &str,
    doing: &str,
    cause: KafkaError,
) -> EngineError {
    let native = native(&cause);
    // A mechanism that the client has not, a certificate that is none: mostly of a Secret, which can be mended.
    if let KafkaError::ClientCreation(why) = &cause {
        let text = format!("{doing} failed: {why}");
        return EngineError::new(ErrorKind::Refused, code, object, text);
    }
    let text = format!("{doing} failed");
    if native.is_some_and(refused) || matches!(cause, KafkaError::ClientConfig(..)) {
        EngineError::fail(code, object, text).caused_by(cause)
    } else {
        EngineError::retry(code, object, text).caused_by(cause)
    }
}

/// Ends a client on a thread of its own: closing waits for brokers that may not answer.
pub(crate) fn abandon<T: Send + 'static>(client: T) {
    // If no thread can be made, the closure and with it the client is dropped here.
    let _ = std::thread::Builder::new()
        .name("kafka-close".to_owned())
        .spawn(move || drop(client));
}
