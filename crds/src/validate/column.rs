//! Rules of a source's columns: names, origins, what the transport knows, what a generator can make.

use super::{one_of, sql_name};
use crate::data_type::DataType;
use crate::diagnostic::{Code, Diagnostic};
use crate::source::{Generate, GenerateKind, Scalar, Source, SourceKind, TransportField};
use crate::units::{Duration, Timestamp};

pub(super) fn columns(source: &Source, path: &str, faults: &mut Vec<Diagnostic>) {
    let kind = source.kind();
    for (i, column) in source.columns.iter().enumerate() {
        let at = format!("{path}.columns[{i}]");
        sql_name(&column.name, &format!("{at}.name"), faults);
        if let Some(first) = source.columns[..i]
            .iter()
            .position(|other| other.name.eq_ignore_ascii_case(&column.name))
        {
            let message = format!("the column {:?} is given by columns[{first}]", column.name);
            faults.push(Diagnostic::error(
                Code::DUPLICATE_NAME,
                format!("{at}.name"),
                message,
            ));
        }
        let origins = [
            ("as", column.computed.is_some()),
            ("from", column.from.is_some()),
            ("generate", column.generate.is_some()),
        ];
        let given = origins
            .iter()
            .filter(|(_, given)| *given)
            .map(|(name, _)| *name)
            .collect::<Vec<_>>();
        if given.len() > 1 {
            let message = format!("{} are given, at most one is allowed", given.join(" and "));
            faults.push(Diagnostic::error(Code::COLUMN_ORIGIN, at.clone(), message));
        }
        if let (Some(field), Some(kind)) = (column.from, kind) {
            transport(field, &column.data_type, kind, &at, faults);
        }
        match (&column.generate, kind) {
            (Some(generate), Some(SourceKind::Generator(_))) => {
                self::generate(generate, &column.data_type, &at, faults)
            }
            (Some(_), Some(_)) => {
                faults.push(Diagnostic::error(
                    Code::GENERATE,
                    format!("{at}.generate"),
                    "only a generator's columns are generated",
                ));
            }
            (None, Some(SourceKind::Generator(_))) if given.is_empty() => {
                let fault = Diagnostic::error(
                    Code::GENERATE,
                    at,
                    format!("the column {:?} of a generator needs generate", column.name),
                );
                faults.push(fault.with_help("write generate: {sequence: {}}"));
            }
            _ => {}
        }
    }
}

fn transport(
    field: TransportField,
    data_type: &DataType,
    kind: SourceKind<'_>,
    path: &str,
    faults: &mut Vec<Diagnostic>,
) {
    let known = match kind {
        SourceKind::Kafka(_) => field != TransportField::Path,
        SourceKind::Files(_) => matches!(
            field,
            TransportField::Path | TransportField::Offset | TransportField::Timestamp
        ),
        SourceKind::Generator(_) => field == TransportField::Offset,
    };
    if !known {
        faults.push(Diagnostic::error(
            Code::TRANSPORT,
            format!("{path}.from"),
            format!("this source has no {field:?}"),
        ));
        return;
    }
    let headers = |value: &DataType| matches!(value, DataType::String | DataType::Binary);
    let (fits, types) = match field {
        TransportField::Key => (
            matches!(data_type, DataType::String | DataType::Binary),
            "STRING or BINARY",
        ),
        TransportField::Timestamp => (data_type.is_timestamp(), "TIMESTAMP or TIMESTAMP_LTZ"),
        TransportField::Partition => (
            matches!(data_type, DataType::Int | DataType::BigInt),
            "INT or BIGINT",
        ),
        TransportField::Offset => (*data_type == DataType::BigInt, "BIGINT"),
        TransportField::Topic | TransportField::Path => (*data_type == DataType::String, "STRING"),
        TransportField::Headers => (
            matches!(data_type, DataType::Map(key, value) if **key == DataType::String && headers(value)),
            "MAP<STRING, BINARY> or MAP<STRING, STRING>",
        ),
    };
    if !fits {
        let message = format!("{field:?} is {types}, not {data_type}");
        faults.push(Diagnostic::error(
            Code::TRANSPORT,
            format!("{path}.type"),
            message,
        ));
    }
}

fn generate(generate: &Generate, data_type: &DataType, path: &str, faults: &mut Vec<Diagnostic>) {
    let path = format!("{path}.generate");
    let Generate {
        sequence,
        random,
        choice,
        text,
        constant,
        now,
    } = generate;
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
    let mut wrong =
        |at: String, message: String| faults.push(Diagnostic::error(Code::GENERATE, at, message));
    let advances =
        data_type.is_numeric() || data_type.is_timestamp() || *data_type == DataType::Date;
    let value = |scalar: &Option<Scalar>, name: &str, wrong: &mut dyn FnMut(String, String)| {
        if let Some(scalar) = scalar.as_ref().filter(|scalar| !fits(scalar, data_type)) {
            wrong(
                format!("{path}.{name}"),
                format!("{} is not a {data_type}", show(scalar)),
            );
        }
    };
    match generate.kind() {
        Some(GenerateKind::Sequence(sequence)) => {
            if !advances && *data_type != DataType::String {
                wrong(
                    format!("{path}.sequence"),
                    format!("a sequence cannot make {data_type}"),
                );
            } else if *data_type == DataType::String {
                let number = |scalar: &Option<Scalar>| {
                    scalar
                        .as_ref()
                        .is_none_or(|scalar| matches!(scalar, Scalar::Int(_)))
                };
                if !number(&sequence.start) || !number(&sequence.step) {
                    wrong(
                        format!("{path}.sequence"),
                        "start and step of a STRING are whole numbers, text before them is prefix"
                            .to_owned(),
                    );
                }
            } else {
                value(&sequence.start, "sequence.start", &mut wrong);
                let step = sequence.step.as_ref().is_none_or(|step| match step {
                    Scalar::String(text) if data_type.is_timestamp() => {
                        text.trim_start_matches('-').parse::<Duration>().is_ok()
                    }
                    step if *data_type == DataType::Date => matches!(step, Scalar::Int(_)),
                    step => !data_type.is_timestamp() && fits(step, data_type),
                });
                if !step {
                    let expected = if data_type.is_timestamp() {
                        "a duration"
                    } else {
                        "a number"
                    };
                    wrong(
                        format!("{path}.sequence.step"),
                        format!("the step of {data_type} is {expected}"),
                    );
                }
                if !sequence.prefix.is_empty() {
                    wrong(
                        format!("{path}.sequence.prefix"),
                        format!("prefix is for STRING, not {data_type}"),
                    );
                }
            }
        }
        Some(GenerateKind::Random(random)) => {
            if *data_type == DataType::Boolean {
                if random.min.is_some() || random.max.is_some() {
                    wrong(format!("{path}.random"), "BOOLEAN has no bounds".to_owned());
                }
            } else if !advances {
                wrong(
                    format!("{path}.random"),
                    format!("random cannot make {data_type}"),
                );
            } else {
                value(&random.min, "random.min", &mut wrong);
                value(&random.max, "random.max", &mut wrong);
                if random.max.is_none() && !matches!(data_type, DataType::Float | DataType::Double)
                {
                    wrong(
                        format!("{path}.random"),
                        format!("random of {data_type} needs max"),
                    );
                }
                if let (Some(min), Some(max)) = (
                    random.min.as_ref().and_then(order),
                    random.max.as_ref().and_then(order),
                ) && min > max
                {
                    wrong(format!("{path}.random.max"), "max is below min".to_owned());
                }
            }
        }
        Some(GenerateKind::Choice(choice)) => {
            for (i, scalar) in choice
                .values
                .iter()
                .enumerate()
                .filter(|(_, scalar)| !fits(scalar, data_type))
            {
                wrong(
                    format!("{path}.choice.values[{i}]"),
                    format!("{} is not a {data_type}", show(scalar)),
                );
            }
        }
        Some(GenerateKind::Text(_))
            if !matches!(data_type, DataType::String | DataType::Binary) =>
        {
            wrong(
                format!("{path}.text"),
                format!("text cannot make {data_type}"),
            );
        }
        Some(GenerateKind::Constant(constant)) if !fits(&constant.value, data_type) => {
            wrong(
                format!("{path}.constant.value"),
                format!("{} is not a {data_type}", show(&constant.value)),
            );
        }
        Some(GenerateKind::Now) if !data_type.is_timestamp() => wrong(
            format!("{path}.now"),
            format!("now cannot make {data_type}"),
        ),
        _ => {}
    }
}

/// The order of a number or an instant.
fn order(scalar: &Scalar) -> Option<f64> {
    match scalar {
        Scalar::Int(number) => Some(*number as f64),
        Scalar::Float(number) => Some(*number),
        Scalar::String(text) => text
            .parse::<Timestamp>()
            .ok()
            .map(|instant| instant.epoch_millis() as f64)
            .or_else(|| text.parse().ok()),
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
        (
            Scalar::Int(_) | Scalar::Float(_),
            DataType::Float | DataType::Double | DataType::Decimal { .. },
        ) => true,
        (Scalar::String(text), DataType::Decimal { .. }) => {
            text.parse::<f64>().is_ok_and(f64::is_finite)
        }
        (Scalar::String(_), DataType::String | DataType::Binary) => true,
        (Scalar::String(text), DataType::Timestamp(_) | DataType::TimestampLtz(_)) => {
            text.parse::<Timestamp>().is_ok()
        }
        (Scalar::String(text), DataType::Date) => {
            chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok()
        }
        (Scalar::String(text), DataType::Time) => {
            chrono::NaiveTime::parse_from_str(text, "%H:%M:%S%.f").is_ok()
        }
        _ => false,
    }
}
