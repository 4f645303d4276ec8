//! Rules of a source: connector, format, event time, and what becomes of bad rows.

use std::collections::BTreeMap;

use super::host::{self, Refusal, is_port};
use super::kafka::{Property, allowed, property};
use super::{Place, is_sql_name, one_of, within};
use crate::data_type::DataType;
use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::format::{Format, FormatKind};
use crate::job::StreamingJobSpec;
use crate::source::{
    Column, FilesSource, KafkaSource, OnError, OnLate, SecretRef, Source, SourceKind, StartFrom,
    StartFromKind, TopicOffset, WatermarkSpec,
};
use crate::units::Duration;

pub(super) fn validate(
    source: &Source,
    path: &str,
    spec: &StreamingJobSpec,
    place: Place,
    faults: &mut Vec<Diagnostic>,
) {
    let members = [
        ("kafka", source.kafka.is_some()),
        ("files", source.files.is_some()),
        ("generator", source.generator.is_some()),
    ];
    one_of(path, &members, true, faults);
    let kind = source.kind();
    match kind {
        Some(SourceKind::Kafka(kafka)) => self::kafka(kafka, &format!("{path}.kafka"), faults),
        Some(SourceKind::Files(files)) => {
            self::files(files, &format!("{path}.files"), place, faults)
        }
        Some(SourceKind::Generator(_)) | None => {}
    }
    format(source, path, faults);
    super::column::columns(source, path, faults);
    if let Some(watermark) = &source.watermark {
        event_time(watermark, &source.columns, path, faults);
    }
    dead_letters(source, path, spec, faults);
    if let Some(fail_above) = &source.fail_above {
        within(
            fail_above.window,
            Duration::from_secs(1),
            Duration::from_secs(86_400),
            &format!("{path}.failAbove.window"),
            faults,
        );
    }
}

/// A list of brokers: host:port, separated by commas.
pub(super) fn brokers(servers: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    for server in servers.split(',').map(str::trim) {
        let parts = server.rsplit_once(':').filter(|(_, port)| is_port(port));
        let refusal = parts.map_or(Some(Refusal::Malformed), |(host, _)| host::refusal(host));
        if refusal == Some(Refusal::Metadata) {
            faults.push(host::metadata(&format!("{path}.bootstrapServers")));
        } else if refusal.is_some() {
            let message = format!("{server:?} is not host:port");
            faults.push(
                Diagnostic::error(Code::BROKERS, format!("{path}.bootstrapServers"), message)
                    .with_help("write kafka:9092"),
            );
        }
    }
}

/// Properties against the allow-list.
pub(super) fn properties(
    properties: &BTreeMap<String, String>,
    path: &str,
    faults: &mut Vec<Diagnostic>,
) {
    for name in properties.keys() {
        let at = format!("{path}.properties[{name:?}]");
        match property(name) {
            Property::Allowed => {}
            Property::Secret => {
                let fault =
                    Diagnostic::error(Code::PROPERTY_REFUSED, at, "it belongs into a Secret");
                faults.push(fault.with_help("give it by secretRef"));
            }
            Property::Refused(why) => faults.push(Diagnostic::error(
                Code::PROPERTY_REFUSED,
                at,
                format!("refused: {why}"),
            )),
            Property::Unknown => {
                let fault = Diagnostic::error(
                    Code::PROPERTY_UNKNOWN,
                    at,
                    "not on the allow-list of librdkafka properties",
                );
                faults.push(match nearest(name, allowed()) {
                    Some(near) => fault.with_help(format!("did you mean {near:?}?")),
                    None => fault,
                });
            }
        }
    }
}

fn kafka(kafka: &KafkaSource, path: &str, faults: &mut Vec<Diagnostic>) {
    brokers(&kafka.bootstrap_servers, path, faults);
    match (&kafka.topic_pattern, kafka.topics.is_empty()) {
        (None, true) => faults.push(Diagnostic::error(
            Code::TOPICS,
            path,
            "neither topics nor topicPattern is given",
        )),
        (Some(_), false) => faults.push(Diagnostic::error(
            Code::TOPICS,
            path,
            "topics and topicPattern are given, one is allowed",
        )),
        (Some(pattern), true) => {
            if let Err(error) = regex::Regex::new(pattern) {
                let why = error.to_string();
                let why = why
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned();
                faults.push(Diagnostic::error(
                    Code::TOPICS,
                    format!("{path}.topicPattern"),
                    format!("not a regular expression: {why}"),
                ));
            }
        }
        (None, false) => {}
    }
    for (i, topic) in kafka.topics.iter().enumerate() {
        super::sink::topic(topic, &format!("{path}.topics[{i}]"), faults);
    }
    let StartFrom {
        earliest,
        latest,
        timestamp,
        offsets,
        group,
    } = &kafka.start_from;
    let members = [
        ("earliest", earliest.is_some()),
        ("latest", latest.is_some()),
        ("timestamp", timestamp.is_some()),
        ("offsets", offsets.is_some()),
        ("group", group.is_some()),
    ];
    if one_of(&format!("{path}.startFrom"), &members, true, faults) {
        match (kafka.start_from.kind(), &kafka.stop_at) {
            (StartFromKind::Timestamp(start), Some(stop)) if stop.timestamp <= start => {
                let message = format!("{} is not after startFrom ({start})", stop.timestamp);
                faults.push(Diagnostic::error(
                    Code::WINDOW_OF_TIME,
                    format!("{path}.stopAt.timestamp"),
                    message,
                ));
            }
            (StartFromKind::Offsets(offsets), _) => {
                for (i, offset) in offsets.iter().enumerate() {
                    let same = |other: &&TopicOffset| {
                        other.topic == offset.topic && other.partition == offset.partition
                    };
                    if offsets[..i].iter().any(|other| same(&other)) {
                        let message = format!(
                            "partition {} of {:?} is given twice",
                            offset.partition, offset.topic
                        );
                        faults.push(Diagnostic::error(
                            Code::DUPLICATE_NAME,
                            format!("{path}.startFrom.offsets[{i}]"),
                            message,
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    properties(&kafka.properties, path, faults);
    secret(kafka.secret_ref.as_ref(), path, faults);
}

/// The Secret of a connector.
pub(super) fn secret(of: Option<&SecretRef>, path: &str, faults: &mut Vec<Diagnostic>) {
    if let Some(secret) = of {
        super::kubernetes::secret(&secret.name, &format!("{path}.secretRef.name"), faults);
    }
}

/// A folder's URL.
pub(super) fn folder(url: &str, path: &str, place: Place, faults: &mut Vec<Diagnostic>) {
    let at = format!("{path}.url");
    let Some((scheme, rest)) = url.split_once("://") else {
        let fault = Diagnostic::error(Code::URL, at, format!("{url:?} is not a URL"));
        faults.push(fault.with_help("write s3://bucket/prefix/ or file:///path/"));
        return;
    };
    match scheme {
        "s3" if rest.split('/').next().is_some_and(str::is_empty) => {
            faults.push(Diagnostic::error(Code::URL, at, "the bucket is missing"))
        }
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if !super::is_bucket(bucket) || !super::is_path_of_a_bucket(prefix) {
                let message = format!("{url:?} is not a path below a bucket");
                faults.push(Diagnostic::error(Code::URL, at, message));
            }
        }
        "file" if place == Place::Cluster => {
            faults.push(
                Diagnostic::error(
                    Code::LOCAL_IN_CLUSTER,
                    at,
                    "a local folder is refused in a cluster",
                )
                .with_help("use s3://"),
            );
        }
        "file" if rest.starts_with('/') || rest.starts_with("./") => {}
        "file" => {
            let fault = Diagnostic::error(Code::URL, at, format!("{url:?} names a host"));
            faults.push(fault.with_help("write file:///absolute/path/ or file://./relative/path/"));
        }
        other => {
            let fault =
                Diagnostic::error(Code::URL, at, format!("the scheme {other:?} is not known"));
            faults.push(fault.with_help("write s3://bucket/prefix/ or file:///path/"));
        }
    }
}

fn files(files: &FilesSource, path: &str, place: Place, faults: &mut Vec<Diagnostic>) {
    folder(&files.url, path, place, faults);
    within(
        files.discover_interval,
        Duration::from_millis(100),
        Duration::from_secs(86_400),
        &format!("{path}.discoverInterval"),
        faults,
    );
    secret(files.secret_ref.as_ref(), path, faults);
}

/// Exactly one format.
pub(super) fn one_format(format: &Format, path: &str, faults: &mut Vec<Diagnostic>) -> bool {
    let Format {
        json,
        csv,
        raw,
        parquet,
    } = format;
    let members = [
        ("json", json.is_some()),
        ("csv", csv.is_some()),
        ("raw", raw.is_some()),
        ("parquet", parquet.is_some()),
    ];
    if let Some(csv) = csv.as_ref().filter(|csv| !csv.delimiter.is_ascii()) {
        faults.push(Diagnostic::error(
            Code::PATTERN,
            format!("{path}.format.csv.delimiter"),
            format!("{:?} is not ASCII", csv.delimiter),
        ));
    }
    one_of(&format!("{path}.format"), &members, true, faults)
}

fn format(source: &Source, path: &str, faults: &mut Vec<Diagnostic>) {
    let Some(kind) = source.kind() else { return };
    let Some(format) = &source.format else {
        if !matches!(kind, SourceKind::Generator(_)) {
            faults.push(
                Diagnostic::error(Code::FORMAT, path, "a format is needed")
                    .with_help("write format: {json: {}}"),
            );
        }
        return;
    };
    if matches!(kind, SourceKind::Generator(_)) {
        faults.push(Diagnostic::error(
            Code::FORMAT,
            format!("{path}.format"),
            "a generator has no format",
        ));
        return;
    }
    one_format(format, path, faults);
    match format.kind() {
        Some(FormatKind::Parquet(_)) if matches!(kind, SourceKind::Kafka(_)) => {
            faults.push(Diagnostic::error(
                Code::FORMAT,
                format!("{path}.format.parquet"),
                "parquet is for files",
            ));
        }
        Some(FormatKind::Raw(_)) => {
            let body = source
                .columns
                .iter()
                .filter(|column| column.computed.is_none() && column.from.is_none())
                .collect::<Vec<_>>();
            let fits = matches!(body.as_slice(), [column] if matches!(column.data_type, DataType::String | DataType::Binary));
            if !fits {
                let message = format!(
                    "raw needs exactly one STRING or BINARY column for the body, {} are given",
                    describe(&body)
                );
                faults.push(Diagnostic::error(
                    Code::RAW_COLUMNS,
                    format!("{path}.columns"),
                    message,
                ));
            }
        }
        _ => {}
    }
}

fn describe(columns: &[&Column]) -> String {
    if columns.is_empty() {
        return "none".to_owned();
    }
    columns
        .iter()
        .map(|column| format!("{} {}", column.name, column.data_type))
        .collect::<Vec<_>>()
        .join(", ")
}

fn event_time(
    watermark: &WatermarkSpec,
    columns: &[Column],
    path: &str,
    faults: &mut Vec<Diagnostic>,
) {
    let at = format!("{path}.watermark.column");
    match columns
        .iter()
        .find(|column| column.name == watermark.column)
    {
        None => {
            let fault = Diagnostic::error(
                Code::WATERMARK,
                at,
                format!("the source has no column {:?}", watermark.column),
            );
            let names = columns.iter().map(|column| column.name.as_str());
            faults.push(
                match nearest(&watermark.column, names).filter(|name| is_sql_name(name)) {
                    Some(near) => fault.with_help(format!("did you mean {near:?}?")),
                    None => fault,
                },
            );
        }
        Some(column) if !column.data_type.is_timestamp() => {
            let message = format!(
                "{:?} is {}, event time is TIMESTAMP or TIMESTAMP_LTZ",
                column.name, column.data_type
            );
            faults.push(Diagnostic::error(Code::WATERMARK, at, message));
        }
        Some(_) => {}
    }
    let most = Duration::from_secs(31 * 86_400);
    within(
        watermark.max_out_of_orderness,
        Duration::from_millis(0),
        most,
        &format!("{path}.watermark.maxOutOfOrderness"),
        faults,
    );
    if let Some(idle) = watermark.idle_timeout {
        within(
            idle,
            Duration::from_millis(100),
            most,
            &format!("{path}.watermark.idleTimeout"),
            faults,
        );
    }
}

fn dead_letters(
    source: &Source,
    path: &str,
    spec: &StreamingJobSpec,
    faults: &mut Vec<Diagnostic>,
) {
    if source.on_late == OnLate::DeadLetter && source.watermark.is_none() {
        faults.push(Diagnostic::error(
            Code::LATE_WITHOUT_WATERMARK,
            format!("{path}.onLate"),
            "no row is late without a watermark",
        ));
    }
    let wanted = [
        ("onError", source.on_error == OnError::DeadLetter),
        ("onLate", source.on_late == OnLate::DeadLetter),
    ];
    let wanted = wanted
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(name, _)| *name)
        .collect::<Vec<_>>();
    let Some(name) = &source.dead_letters else {
        if let Some(first) = wanted.first() {
            let fault = Diagnostic::error(
                Code::DEAD_LETTERS_MISSING,
                format!("{path}.{first}"),
                "DeadLetter needs deadLetters",
            );
            faults.push(fault.with_help("name the sink that takes them"));
        }
        return;
    };
    let at = format!("{path}.deadLetters");
    if wanted.is_empty() {
        faults.push(Diagnostic::warning(
            Code::UNUSED_FIELD,
            at.clone(),
            "neither onError nor onLate is DeadLetter",
        ));
    }
    let Some(sink) = spec.sinks.iter().find(|sink| sink.name == *name) else {
        let fault = Diagnostic::error(
            Code::DEAD_LETTERS_SINK,
            at,
            format!("no sink is named {name:?}"),
        );
        faults.push(
            match nearest(name, spec.sinks.iter().map(|sink| sink.name.as_str())) {
                Some(near) => fault.with_help(format!("did you mean {near:?}?")),
                None => fault,
            },
        );
        return;
    };
    if let Some(kind) = sink.format.as_ref().and_then(Format::kind)
        && !matches!(kind, FormatKind::Raw(_) | FormatKind::Json(_))
    {
        let message = format!(
            "the sink {name:?} has format {}, dead letters need raw or json",
            kind.name()
        );
        faults.push(Diagnostic::error(Code::DEAD_LETTERS_SINK, at, message));
    }
}
