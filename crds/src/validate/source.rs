//! Rules of a source: connector, format, columns, event time, and what becomes of bad rows.

use std::collections::BTreeMap;

use super::kafka::{Property, allowed, property};
use super::{Place, is_sql_name, one_of, sql_name, within};
use crate::data_type::DataType;
use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::format::{Format, FormatKind};
use crate::job::StreamingJobSpec;
use crate::source::{
    Column, FilesSource, Generate, GenerateKind, KafkaSource, OnError, OnLate, Scalar, Source, SourceKind, StartFrom, StartFromKind, TransportField,
    WatermarkSpec,
};
use crate::units::{Duration, Timestamp};

pub(super) fn validate(source: &Source, path: &str, spec: &StreamingJobSpec, place: Place, faults: &mut Vec<Diagnostic>) {
    let members = [("kafka", source.kafka.is_some()), ("files", source.files.is_some()), ("generator", source.generator.is_some())];
    one_of(path, &members, true, faults);
    let kind = source.kind();
    match kind {
        Some(SourceKind::Kafka(kafka)) => self::kafka(kafka, &format!("{path}.kafka"), faults),
        Some(SourceKind::Files(files)) => self::files(files, &format!("{path}.files"), place, faults),
        Some(SourceKind::Generator(_)) | None => {}
    }
    format(source, path, faults);
    columns(source, path, faults);
    if let Some(watermark) = &source.watermark {
        event_time(watermark, &source.columns, path, faults);
    }
    dead_letters(source, path, spec, faults);
    if let Some(fail_above) = &source.fail_above {
        within(fail_above.window, Duration::from_secs(1), Duration::from_secs(86_400), &format!("{path}.failAbove.window"), faults);
    }
}

/// A list of brokers: host:port, separated by commas.
pub(super) fn brokers(servers: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    for server in servers.split(',').map(str::trim) {
        let sound = server
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0));
        if !sound {
            let message = format!("{server:?} is not host:port");
            faults.push(Diagnostic::error(Code::BROKERS, format!("{path}.bootstrapServers"), message).with_help("write kafka:9092"));
        }
    }
}

/// Properties against the allow-list.
pub(super) fn properties(properties: &BTreeMap<String, String>, path: &str, faults: &mut Vec<Diagnostic>) {
    for name in properties.keys() {
        let at = format!("{path}.properties[{name:?}]");
        match property(name) {
            Property::Allowed => {}
            Property::Secret => {
                let fault = Diagnostic::error(Code::PROPERTY_REFUSED, at, "it belongs into a Secret");
                faults.push(fault.with_help("give it by secretRef"));
            }
            Property::Refused(why) => faults.push(Diagnostic::error(Code::PROPERTY_REFUSED, at, format!("refused: {why}"))),
            Property::Unknown => {
                let fault = Diagnostic::error(Code::PROPERTY_UNKNOWN, at, "not on the allow-list of librdkafka properties");
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
        (None, true) => faults.push(Diagnostic::error(Code::TOPICS, path, "neither topics nor topicPattern is given")),
        (Some(_), false) => faults.push(Diagnostic::error(Code::TOPICS, path, "topics and topicPattern are given, one is allowed")),
        (Some(pattern), true) => {
            if let Err(error) = regex::Regex::new(pattern) {
                let why = error.to_string();
                let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                faults.push(Diagnostic::error(Code::TOPICS, format!("{path}.topicPattern"), format!("not a regular expression: {why}")));
            }
        }
        (None, false) => {}
    }
    for (i, topic) in kafka.topics.iter().enumerate() {
        super::sink::topic(topic, &format!("{path}.topics[{i}]"), faults);
    }
    let StartFrom { earliest, latest, timestamp, offsets, group } = &kafka.start_from;
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
                faults.push(Diagnostic::error(Code::WINDOW_OF_TIME, format!("{path}.stopAt.timestamp"), message));
            }
            (StartFromKind::Offsets(offsets), _) => {
                for (i, offset) in offsets.iter().enumerate() {
                    let same = |other: &&crate::source::TopicOffset| other.topic == offset.topic && other.partition == offset.partition;
                    if offsets[..i].iter().any(|other| same(&other)) {
                        let message = format!("partition {} of {:?} is given twice", offset.partition, offset.topic);
                        faults.push(Diagnostic::error(Code::DUPLICATE_NAME, format!("{path}.startFrom.offsets[{i}]"), message));
                    }
                }
            }
            _ => {}
        }
    }
    properties(&kafka.properties, path, faults);
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
        "s3" if rest.split('/').next().is_some_and(str::is_empty) => faults.push(Diagnostic::error(Code::URL, at, "the bucket is missing")),
        "s3" => {}
        "file" if place == Place::Cluster => {
            faults.push(Diagnostic::error(Code::LOCAL_IN_CLUSTER, at, "a local folder is refused in a cluster").with_help("use s3://"));
        }
        "file" if rest.starts_with('/') || rest.starts_with("./") => {}
        "file" => {
            let fault = Diagnostic::error(Code::URL, at, format!("{url:?} names a host"));
            faults.push(fault.with_help("write file:///absolute/path/ or file://./relative/path/"));
        }
        other => {
            let fault = Diagnostic::error(Code::URL, at, format!("the scheme {other:?} is not known"));
            faults.push(fault.with_help("write s3://bucket/prefix/ or file:///path/"));
        }
    }
}

fn files(files: &FilesSource, path: &str, place: Place, faults: &mut Vec<Diagnostic>) {
    folder(&files.url, path, place, faults);
    within(files.discover_interval, Duration::from_millis(100), Duration::from_secs(86_400), &format!("{path}.discoverInterval"), faults);
}

/// Exactly one format.
pub(super) fn one_format(format: &Format, path: &str, faults: &mut Vec<Diagnostic>) -> bool {
    let Format { json, csv, raw, parquet } = format;
    let members = [("json", json.is_some()), ("csv", csv.is_some()), ("raw", raw.is_some()), ("parquet", parquet.is_some())];
    if let Some(csv) = csv.as_ref().filter(|csv| !csv.delimiter.is_ascii()) {
        faults.push(Diagnostic::error(Code::PATTERN, format!("{path}.format.csv.delimiter"), format!("{:?} is not ASCII", csv.delimiter)));
    }
    one_of(&format!("{path}.format"), &members, true, faults)
}

fn format(source: &Source, path: &str, faults: &mut Vec<Diagnostic>) {
    let Some(kind) = source.kind() else { return };
    let Some(format) = &source.format else {
        if !matches!(kind, SourceKind::Generator(_)) {
            faults.push(Diagnostic::error(Code::FORMAT, path, "a format is needed").with_help("write format: {json: {}}"));
        }
        return;
    };
    if matches!(kind, SourceKind::Generator(_)) {
        faults.push(Diagnostic::error(Code::FORMAT, format!("{path}.format"), "a generator has no format"));
        return;
    }
    one_format(format, path, faults);
    match format.kind() {
        Some(FormatKind::Parquet(_)) if matches!(kind, SourceKind::Kafka(_)) => {
            faults.push(Diagnostic::error(Code::FORMAT, format!("{path}.format.parquet"), "parquet is for files"));
        }
        Some(FormatKind::Raw(_)) => {
            let body = source.columns.iter().filter(|column| column.computed.is_none() && column.from.is_none()).collect::<Vec<_>>();
            let fits = matches!(body.as_slice(), [column] if matches!(column.data_type, DataType::String | DataType::Binary));
            if !fits {
                let message = format!("raw needs exactly one STRING or BINARY column for the body, {} are given", describe(&body));
                faults.push(Diagnostic::error(Code::RAW_COLUMNS, format!("{path}.columns"), message));
            }
        }
        _ => {}
    }
}

fn describe(columns: &[&Column]) -> String {
    if columns.is_empty() {
        return "none".to_owned();
    }
    columns.iter().map(|column| format!("{} {}", column.name, column.data_type)).collect::<Vec<_>>().join(", ")
}

fn columns(source: &Source, path: &str, faults: &mut Vec<Diagnostic>) {
    let kind = source.kind();
    for (i, column) in source.columns.iter().enumerate() {
        let at = format!("{path}.columns[{i}]");
        sql_name(&column.name, &format!("{at}.name"), faults);
        if let Some(first) = source.columns[..i].iter().position(|other| other.name.eq_ignore_ascii_case(&column.name)) {
            let message = format!("the column {:?} is given by columns[{first}]", column.name);
            faults.push(Diagnostic::error(Code::DUPLICATE_NAME, format!("{at}.name"), message));
        }
        let origins = [("as", column.computed.is_some()), ("from", column.from.is_some()), ("generate", column.generate.is_some())];
        let given = origins.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect::<Vec<_>>();
        if given.len() > 1 {
            let message = format!("{} are given, at most one is allowed", given.join(" and "));
            faults.push(Diagnostic::error(Code::COLUMN_ORIGIN, at.clone(), message));
        }
        if let (Some(field), Some(kind)) = (column.from, kind) {
            transport(field, &column.data_type, kind, &at, faults);
        }
        match (&column.generate, kind) {
            (Some(generate), Some(SourceKind::Generator(_))) => self::generate(generate, &column.data_type, &at, faults),
            (Some(_), Some(_)) => {
                faults.push(Diagnostic::error(Code::GENERATE, format!("{at}.generate"), "only a generator's columns are generated"));
            }
            (None, Some(SourceKind::Generator(_))) if given.is_empty() => {
                let fault = Diagnostic::error(Code::GENERATE, at, format!("the column {:?} of a generator needs generate", column.name));
                faults.push(fault.with_help("write generate: {sequence: {}}"));
            }
            _ => {}
        }
    }
}

fn transport(field: TransportField, data_type: &DataType, kind: SourceKind<'_>, path: &str, faults: &mut Vec<Diagnostic>) {
    let known = match kind {
        SourceKind::Kafka(_) => field != TransportField::Path,
        SourceKind::Files(_) => matches!(field, TransportField::Path | TransportField::Offset | TransportField::Timestamp),
        SourceKind::Generator(_) => field == TransportField::Offset,
    };
    if !known {
        faults.push(Diagnostic::error(Code::TRANSPORT, format!("{path}.from"), format!("this source has no {field:?}")));
        return;
    }
    let headers = |value: &DataType| matches!(value, DataType::String | DataType::Binary);
    let (fits, types) = match field {
        TransportField::Key => (matches!(data_type, DataType::String | DataType::Binary), "STRING or BINARY"),
        TransportField::Timestamp => (data_type.is_timestamp(), "TIMESTAMP or TIMESTAMP_LTZ"),
        TransportField::Partition => (matches!(data_type, DataType::Int | DataType::BigInt), "INT or BIGINT"),
        TransportField::Offset => (*data_type == DataType::BigInt, "BIGINT"),
        TransportField::Topic | TransportField::Path => (*data_type == DataType::String, "STRING"),
        TransportField::Headers => {
            (matches!(data_type, DataType::Map(key, value) if **key == DataType::String && headers(value)), "MAP<STRING, BINARY> or MAP<STRING, STRING>")
        }
    };
    if !fits {
        let message = format!("{field:?} is {types}, not {data_type}");
        faults.push(Diagnostic::error(Code::TRANSPORT, format!("{path}.type"), message));
    }
}

fn generate(generate: &Generate, data_type: &DataType, path: &str, faults: &mut Vec<Diagnostic>) {
    let path = format!("{path}.generate");
    let Generate { sequence, random, choice, text, constant, now } = generate;
    let members = [
        ("sequence", sequence.is_some()),
        ("random", random.is_some()),
        ("choice", choice.is_some()),
        ("text", text.is_some()),
        ("constant", constant.is_some()),
        ("now", now.is_some()),
    ];
    if !one_of(&path, &members, true, faults) {
        return;
    }
    let mut wrong = |at: String, message: String| faults.push(Diagnostic::error(Code::GENERATE, at, message));
    let advances = data_type.is_numeric() || data_type.is_timestamp() || *data_type == DataType::Date;
    let value = |scalar: &Option<Scalar>, name: &str, wrong: &mut dyn FnMut(String, String)| {
        if let Some(scalar) = scalar.as_ref().filter(|scalar| !fits(scalar, data_type)) {
            wrong(format!("{path}.{name}"), format!("{} is not a {data_type}", show(scalar)));
        }
    };
    match generate.kind() {
        Some(GenerateKind::Sequence(sequence)) => {
            if !advances && *data_type != DataType::String {
                wrong(format!("{path}.sequence"), format!("a sequence cannot make {data_type}"));
            } else if *data_type == DataType::String {
                let number = |scalar: &Option<Scalar>| scalar.as_ref().is_none_or(|scalar| matches!(scalar, Scalar::Int(_)));
                if !number(&sequence.start) || !number(&sequence.step) {
                    wrong(format!("{path}.sequence"), "start and step of a STRING are whole numbers, text before them is prefix".to_owned());
                }
            } else {
                value(&sequence.start, "sequence.start", &mut wrong);
                let step = sequence.step.as_ref().is_none_or(|step| match step {
                    Scalar::String(text) if data_type.is_timestamp() => text.trim_start_matches('-').parse::<Duration>().is_ok(),
                    step if *data_type == DataType::Date => matches!(step, Scalar::Int(_)),
                    step => !data_type.is_timestamp() && fits(step, data_type),
                });
                if !step {
                    let expected = if data_type.is_timestamp() { "a duration" } else { "a number" };
                    wrong(format!("{path}.sequence.step"), format!("the step of {data_type} is {expected}"));
                }
                if !sequence.prefix.is_empty() {
                    wrong(format!("{path}.sequence.prefix"), format!("prefix is for STRING, not {data_type}"));
                }
            }
        }
        Some(GenerateKind::Random(random)) => {
            if *data_type == DataType::Boolean {
                if random.min.is_some() || random.max.is_some() {
                    wrong(format!("{path}.random"), "BOOLEAN has no bounds".to_owned());
                }
            } else if !advances {
                wrong(format!("{path}.random"), format!("random cannot make {data_type}"));
            } else {
                value(&random.min, "random.min", &mut wrong);
                value(&random.max, "random.max", &mut wrong);
                if random.max.is_none() && !matches!(data_type, DataType::Float | DataType::Double) {
                    wrong(format!("{path}.random"), format!("random of {data_type} needs max"));
                }
                if let (Some(min), Some(max)) = (random.min.as_ref().and_then(order), random.max.as_ref().and_then(order))
                    && min > max
                {
                    wrong(format!("{path}.random.max"), "max is below min".to_owned());
                }
            }
        }
        Some(GenerateKind::Choice(choice)) => {
            for (i, scalar) in choice.values.iter().enumerate().filter(|(_, scalar)| !fits(scalar, data_type)) {
                wrong(format!("{path}.choice.values[{i}]"), format!("{} is not a {data_type}", show(scalar)));
            }
        }
        Some(GenerateKind::Text(_)) if !matches!(data_type, DataType::String | DataType::Binary) => {
            wrong(format!("{path}.text"), format!("text cannot make {data_type}"));
        }
        Some(GenerateKind::Constant(constant)) if !fits(&constant.value, data_type) => {
            wrong(format!("{path}.constant.value"), format!("{} is not a {data_type}", show(&constant.value)));
        }
        Some(GenerateKind::Now) if !data_type.is_timestamp() => wrong(format!("{path}.now"), format!("now cannot make {data_type}")),
        _ => {}
    }
}

/// The order of a number or an instant.
fn order(scalar: &Scalar) -> Option<f64> {
    match scalar {
        Scalar::Int(number) => Some(*number as f64),
        Scalar::Float(number) => Some(*number),
        Scalar::String(text) => text.parse::<Timestamp>().ok().map(|instant| instant.epoch_millis() as f64).or_else(|| text.parse().ok()),
        Scalar::Bool(_) => None,
    }
}

fn show(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Int(value) => value.to_string(),
        Scalar::Float(value) => value.to_string(),
        Scalar::String(value) => format!("{value:?}"),
    }
}

/// Whether a value of YAML is a value of the type.
fn fits(scalar: &Scalar, data_type: &DataType) -> bool {
    let between = |number: i64, least: i64, most: i64| (least..=most).contains(&number);
    match (scalar, data_type) {
        (Scalar::Bool(_), DataType::Boolean) | (Scalar::Int(_), DataType::BigInt) => true,
        (Scalar::Int(n), DataType::TinyInt) => between(*n, i8::MIN.into(), i8::MAX.into()),
        (Scalar::Int(n), DataType::SmallInt) => between(*n, i16::MIN.into(), i16::MAX.into()),
        (Scalar::Int(n), DataType::Int) => between(*n, i32::MIN.into(), i32::MAX.into()),
        (Scalar::Int(_) | Scalar::Float(_), DataType::Float | DataType::Double | DataType::Decimal { .. }) => true,
        (Scalar::String(text), DataType::Decimal { .. }) => text.parse::<f64>().is_ok_and(f64::is_finite),
        (Scalar::String(_), DataType::String | DataType::Binary) => true,
        (Scalar::String(text), DataType::Timestamp(_) | DataType::TimestampLtz(_)) => text.parse::<Timestamp>().is_ok(),
        (Scalar::String(text), DataType::Date) => chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok(),
        (Scalar::String(text), DataType::Time) => chrono::NaiveTime::parse_from_str(text, "%H:%M:%S%.f").is_ok(),
        _ => false,
    }
}

fn event_time(watermark: &WatermarkSpec, columns: &[Column], path: &str, faults: &mut Vec<Diagnostic>) {
    let at = format!("{path}.watermark.column");
    match columns.iter().find(|column| column.name == watermark.column) {
        None => {
            let fault = Diagnostic::error(Code::WATERMARK, at, format!("the source has no column {:?}", watermark.column));
            let names = columns.iter().map(|column| column.name.as_str());
            faults.push(match nearest(&watermark.column, names).filter(|name| is_sql_name(name)) {
                Some(near) => fault.with_help(format!("did you mean {near:?}?")),
                None => fault,
            });
        }
        Some(column) if !column.data_type.is_timestamp() => {
            let message = format!("{:?} is {}, event time is TIMESTAMP or TIMESTAMP_LTZ", column.name, column.data_type);
            faults.push(Diagnostic::error(Code::WATERMARK, at, message));
        }
        Some(_) => {}
    }
    let most = Duration::from_secs(31 * 86_400);
    within(watermark.max_out_of_orderness, Duration::from_millis(0), most, &format!("{path}.watermark.maxOutOfOrderness"), faults);
    if let Some(idle) = watermark.idle_timeout {
        within(idle, Duration::from_millis(100), most, &format!("{path}.watermark.idleTimeout"), faults);
    }
}

fn dead_letters(source: &Source, path: &str, spec: &StreamingJobSpec, faults: &mut Vec<Diagnostic>) {
    if source.on_late == OnLate::DeadLetter && source.watermark.is_none() {
        faults.push(Diagnostic::error(Code::LATE_WITHOUT_WATERMARK, format!("{path}.onLate"), "no row is late without a watermark"));
    }
    let wanted = [("onError", source.on_error == OnError::DeadLetter), ("onLate", source.on_late == OnLate::DeadLetter)];
    let wanted = wanted.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect::<Vec<_>>();
    let Some(name) = &source.dead_letters else {
        if let Some(first) = wanted.first() {
            let fault = Diagnostic::error(Code::DEAD_LETTERS_MISSING, format!("{path}.{first}"), "DeadLetter needs deadLetters");
            faults.push(fault.with_help("name the sink that takes them"));
        }
        return;
    };
    let at = format!("{path}.deadLetters");
    if wanted.is_empty() {
        faults.push(Diagnostic::warning(Code::UNUSED_FIELD, at.clone(), "neither onError nor onLate is DeadLetter"));
    }
    let Some(sink) = spec.sinks.iter().find(|sink| sink.name == *name) else {
        let fault = Diagnostic::error(Code::DEAD_LETTERS_SINK, at, format!("no sink is named {name:?}"));
        faults.push(match nearest(name, spec.sinks.iter().map(|sink| sink.name.as_str())) {
            Some(near) => fault.with_help(format!("did you mean {near:?}?")),
            None => fault,
        });
        return;
    };
    if let Some(kind) = sink.format.as_ref().and_then(Format::kind)
        && !matches!(kind, FormatKind::Raw(_) | FormatKind::Json(_))
    {
        let message = format!("the sink {name:?} has format {}, dead letters need raw or json", kind.name());
        faults.push(Diagnostic::error(Code::DEAD_LETTERS_SINK, at, message));
    }
}
