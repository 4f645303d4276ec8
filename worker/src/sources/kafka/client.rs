//! Clients of librdkafka as sources need them: what the engine sets itself.

use rdkafka::consumer::BaseConsumer;

use super::KafkaSourceConfig;
use crate::error::{EngineError, Result};
use crate::kafka::base;

/// The consumer of a reader or an enumerator. It never joins its group: the id serves for showing offsets alone.
pub(super) fn consumer(source: &KafkaSourceConfig) -> Result<BaseConsumer> {
    let object = source.object();
    let mut config = base(&object, &source.bootstrap_servers, &source.properties)?;
    for (name, value) in [
        ("group.id", source.group_id.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("isolation.level", "read_committed"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("check.crcs", "true"),
        // Bounded prefetch over all partitions, and no second of waiting when the bound is reached.
        ("queued.max.messages.kbytes", "49152"),
        ("fetch.queue.backoff.ms", "5"),
    ] {
        config.set(name, value);
    }
    config.create().map_err(|e| {
        EngineError::invalid("PR0208", object, "the client cannot be made").caused_by(e)
    })
}
