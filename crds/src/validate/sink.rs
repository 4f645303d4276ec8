//! Rules of a sink: connector, format, guarantee, keys and shards.

use super::source::{brokers, folder, one_format, properties, secret};
use super::{Place, one_of, within};
use crate::diagnostic::{Code, Diagnostic};
use crate::format::FormatKind;
use crate::job::StreamingJobSpec;
use crate::sink::{Delivery, FilesSink, KafkaSink, OutputMode, Sink, SinkKind};
use crate::units::{Duration, Quantity};

pub(super) fn validate(
    sink: &Sink,
    path: &str,
    spec: &StreamingJobSpec,
    place: Place,
    faults: &mut Vec<Diagnostic>,
) {
    let members = [
        ("kafka", sink.kafka.is_some()),
        ("files", sink.files.is_some()),
        ("print", sink.print.is_some()),
    ];
    one_of(path, &members, true, faults);
    let Some(kind) = sink.kind() else { return };
    match kind {
        SinkKind::Kafka(kafka) => {
            let others = spec.sinks.iter().filter_map(|s| s.kafka.as_ref());
            let topics: Vec<&str> = others.map(|k| k.topic.as_str()).collect();
            self::kafka(kafka, sink, &topics, &format!("{path}.kafka"), faults);
        }
        SinkKind::Files(files) => self::files(files, &format!("{path}.files"), place, faults),
        SinkKind::Print(_) => {}
    }
    if sink.delivery == Some(Delivery::ExactlyOnce)
        && kind.strongest_delivery() != Delivery::ExactlyOnce
    {
        let fault = Diagnostic::error(
            Code::DELIVERY,
            format!("{path}.delivery"),
            "print cannot give ExactlyOnce",
        );
        faults.push(fault.with_help("write AtLeastOnce or leave it out"));
    }
    format(sink, kind, path, faults);
    if !spec.key_groups.is_multiple_of(sink.shards) {
        let message = format!(
            "{} does not divide keyGroups ({})",
            sink.shards, spec.key_groups
        );
        faults.push(Diagnostic::error(
            Code::SHARDS,
            format!("{path}.shards"),
            message,
        ));
    }
    repeated(&sink.primary_key, &format!("{path}.primaryKey"), faults);
    if sink.output_mode != OutputMode::Append && matches!(kind, SinkKind::Files(_)) {
        let message = format!(
            "files cannot take back rows, so outputMode {:?} is refused",
            sink.output_mode
        );
        faults.push(Diagnostic::error(
            Code::DELIVERY,
            format!("{path}.outputMode"),
            message,
        ));
    }
}

fn repeated(names: &[String], path: &str, faults: &mut Vec<Diagnostic>) {
    for (i, name) in names
        .iter()
        .enumerate()
        .filter(|(i, name)| names[..*i].contains(name))
    {
        faults.push(Diagnostic::error(
            Code::DUPLICATE_NAME,
            format!("{path}[{i}]"),
            format!("{name:?} is given twice"),
        ));
    }
}

/// A topic's name.
pub(super) fn topic(name: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    let fits = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if !fits || matches!(name, "." | "..") {
        let fault = Diagnostic::error(Code::PATTERN, path, format!("{name:?} is not a topic"));
        faults.push(fault.with_help("use letters, digits, dots, underscores and hyphens"));
    }
}

/// Topics that the brokers keep for themselves.
const INTERNAL_TOPICS: [&str; 4] = [
    "__consumer_offsets",
    "__transaction_state",
    "__share_group_state",
    "__cluster_metadata",
];

/// How the marker topics that jobs make for themselves begin.
const MARKERS: &str = "penstock.markers.";

fn not_to_be_written(topic: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    let message = if INTERNAL_TOPICS.contains(&topic) {
        "the brokers keep this topic for themselves"
    } else if topic.starts_with(MARKERS) {
        "it holds the markers of a job, by which that job knows what it published"
    } else {
        return;
    };
    faults.push(Diagnostic::error(Code::OTHERS, path, message).with_help("name another topic"));
}

fn kafka(
    kafka: &KafkaSink,
    sink: &Sink,
    spec_topics: &[&str],
    path: &str,
    faults: &mut Vec<Diagnostic>,
) {
    not_to_be_written(&kafka.topic, &format!("{path}.topic"), faults);
    not_to_be_written(&kafka.marker_topic, &format!("{path}.markerTopic"), faults);
    secret(kafka.secret_ref.as_ref(), path, faults);
    brokers(&kafka.bootstrap_servers, path, faults);
    topic(&kafka.topic, &format!("{path}.topic"), faults);
    if !kafka.marker_topic.is_empty() {
        topic(&kafka.marker_topic, &format!("{path}.markerTopic"), faults);
        if kafka.marker_topic == kafka.topic || spec_topics.contains(&kafka.marker_topic.as_str()) {
            let message = "markers need a topic of their own";
            faults.push(Diagnostic::error(
                Code::PATTERN,
                format!("{path}.markerTopic"),
                message,
            ));
        }
        if sink.delivery == Some(Delivery::AtLeastOnce) {
            let message = "AtLeastOnce writes no markers";
            faults.push(Diagnostic::warning(
                Code::UNUSED_FIELD,
                format!("{path}.markerTopic"),
                message,
            ));
        }
    }
    repeated(&kafka.key_columns, &format!("{path}.keyColumns"), faults);
    let differs = !kafka.key_columns.is_empty()
        && !sink.primary_key.is_empty()
        && kafka.key_columns != sink.primary_key;
    if sink.output_mode != OutputMode::Append && differs {
        let message = format!(
            "in {:?} mode the record's key is primaryKey",
            sink.output_mode
        );
        faults.push(
            Diagnostic::error(Code::KEY_COLUMNS, format!("{path}.keyColumns"), message)
                .with_help("leave keyColumns out"),
        );
    }
    properties(&kafka.properties, path, faults);
}

fn files(files: &FilesSink, path: &str, place: Place, faults: &mut Vec<Diagnostic>) {
    folder(&files.url, path, place, faults);
    secret(files.secret_ref.as_ref(), path, faults);
    repeated(&files.partition_by, &format!("{path}.partitionBy"), faults);
    within(
        files.roll_interval,
        Duration::from_secs(1),
        Duration::from_secs(7 * 86_400),
        &format!("{path}.rollInterval"),
        faults,
    );
    let (least, most) = (Quantity::from_bytes(1024), Quantity::from_gibibytes(16));
    if files.roll_size < least || files.roll_size > most {
        let message = format!("{} is out of bounds: {least} to {most}", files.roll_size);
        faults.push(Diagnostic::error(
            Code::RANGE,
            format!("{path}.rollSize"),
            message,
        ));
    }
}

fn format(sink: &Sink, kind: SinkKind<'_>, path: &str, faults: &mut Vec<Diagnostic>) {
    let Some(format) = &sink.format else {
        if !matches!(kind, SinkKind::Print(_)) {
            faults.push(
                Diagnostic::error(Code::FORMAT, path, "a format is needed")
                    .with_help("write format: {json: {}}"),
            );
        }
        return;
    };
    if one_format(format, path, faults)
        && let Some(FormatKind::Parquet(_)) = format.kind()
        && !matches!(kind, SinkKind::Files(_))
    {
        faults.push(Diagnostic::error(
            Code::FORMAT,
            format!("{path}.format.parquet"),
            "parquet is for files",
        ));
    }
}
