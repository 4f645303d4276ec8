//! Which librdkafka properties a manifest or a Secret may set, and why others may not.

/// What becomes of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// It is passed on.
    Allowed,
    /// It is passed on, but belongs into a Secret.
    Secret,
    /// It is refused; why.
    Refused(&'static str),
    /// It is not on the allow-list.
    Unknown,
}

const LOADS: &str = "it runs or loads something";
const OWNED: &str = "the engine sets it";
const FILES: &str = "files come from the Secret's mount; give ssl.ca.pem and its like there";
const FIELD: &str = "a field of the manifest sets it";
const HOSTS: &str = "it leads to other hosts";

const REFUSED: &[(&str, &str)] = &[
    ("plugin.library.paths", LOADS),
    ("sasl.kerberos.kinit.cmd", LOADS),
    // librdkafka puts them into the line that a shell runs.
    ("sasl.kerberos.service.name", LOADS),
    ("sasl.kerberos.principal", LOADS),
    ("sasl.kerberos.keytab", LOADS),
    ("ssl.engine.location", LOADS),
    ("ssl.engine.id", LOADS),
    ("ssl.providers", LOADS),
    ("transactional.id", OWNED),
    ("transaction.timeout.ms", OWNED),
    ("enable.idempotence", OWNED),
    ("enable.gapless.guarantee", OWNED),
    ("isolation.level", OWNED),
    ("enable.auto.commit", OWNED),
    ("enable.auto.offset.store", OWNED),
    ("auto.commit.interval.ms", OWNED),
    ("auto.offset.reset", OWNED),
    ("enable.partition.eof", OWNED),
    ("group.instance.id", OWNED),
    ("group.protocol", OWNED),
    ("partition.assignment.strategy", OWNED),
    ("acks", OWNED),
    ("request.required.acks", OWNED),
    ("max.in.flight", OWNED),
    ("max.in.flight.requests.per.connection", OWNED),
    ("partitioner", OWNED),
    ("debug", OWNED),
    ("statistics.interval.ms", OWNED),
    ("allow.auto.create.topics", OWNED),
    ("bootstrap.servers", FIELD),
    ("metadata.broker.list", FIELD),
    ("group.id", FIELD),
    ("compression.codec", FIELD),
    ("compression.type", FIELD),
    ("sasl.oauthbearer.token.endpoint.url", HOSTS),
    ("sasl.oauthbearer.config", HOSTS),
    ("sasl.oauthbearer.method", HOSTS),
    ("https.proxy", HOSTS),
    ("https.ca.location", FILES),
];

const SECRET: &[&str] = &[
    "sasl.username",
    "sasl.password",
    "ssl.key.pem",
    "ssl.key.password",
    "ssl.keystore.password",
    "ssl.certificate.pem",
    "ssl.ca.pem",
];

const ALLOWED: &[&str] = &[
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
    "ssl.cipher.suites",
    "ssl.curves.list",
    "ssl.sigalgs.list",
    "client.id",
    "client.rack",
    "client.dns.lookup",
    "broker.address.family",
    "broker.address.ttl",
    "broker.version.fallback",
    "api.version.request",
    "socket.timeout.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.send.buffer.bytes",
    "socket.receive.buffer.bytes",
    "socket.max.fails",
    "connections.max.idle.ms",
    "reconnect.backoff.ms",
    "reconnect.backoff.max.ms",
    "metadata.max.age.ms",
    "topic.metadata.refresh.interval.ms",
    "topic.metadata.refresh.sparse",
    "topic.metadata.propagation.max.ms",
    "message.max.bytes",
    "receive.message.max.bytes",
    "request.timeout.ms",
    "retries",
    "message.send.max.retries",
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "fetch.error.backoff.ms",
    "fetch.queue.backoff.ms",
    "queued.min.messages",
    "queued.max.messages.kbytes",
    "check.crcs",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "linger.ms",
    "queue.buffering.max.ms",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "batch.size",
    "batch.num.messages",
    "compression.level",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "sticky.partitioning.linger.ms",
];

/// What becomes of a librdkafka property of this name.
pub fn property(name: &str) -> Property {
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        Property::Refused(why)
    } else if SECRET.contains(&name) {
        Property::Secret
    } else if ALLOWED.contains(&name) {
        Property::Allowed
    } else if name.ends_with(".location") || name.ends_with(".keytab") {
        Property::Refused(FILES)
    } else if name.ends_with("_cb") || name == "opaque" {
        Property::Refused(OWNED)
    } else {
        Property::Unknown
    }
}

/// Every name that is passed on.
pub(super) fn allowed() -> impl Iterator<Item = &'static str> + Clone {
    ALLOWED.iter().copied()
}
