//! What all clients of Kafka share: which properties a person may set, and what every client is told.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;

use crate::error::{EngineError, Result};

/// Families of properties that a manifest or a secret may set.
const ALLOWED: [&str; 14] = [
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "ssl.",
    "socket.",
    "fetch.",
    "message.max.bytes",
    "compression.level",
    "metadata.max.age.ms",
    "client.id",
    "client.rack",
    "broker.address.family",
];
/// What runs or loads something, or reads a file of the machine, whatever its family.
const REFUSED: [&str; 4] = ["location", "engine", "callback", "providers"];

fn may_set(name: &str) -> bool {
    ALLOWED.iter().any(|family| match family.strip_suffix('.') {
        Some(_) => name.starts_with(family),
        None => name == *family,
    }) && !REFUSED.iter().any(|part| name.contains(part))
}

/// A client's configuration from what a person gave; what the engine owns is set after it.
pub fn base(object: &str, brokers: &str, given: &BTreeMap<String, String>) -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    for (name, value) in given {
        if !may_set(name) {
            let message = format!("property {name} may not be set");
            return Err(EngineError::invalid("PS0040", object, message));
        }
        config.set(name, value.trim_end_matches(['\n', '\r']));
    }
    config.set("bootstrap.servers", brokers);
    config.set("statistics.interval.ms", "0");
    config.set("allow.auto.create.topics", "false");
    Ok(config)
}
