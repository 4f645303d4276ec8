//! Single values: what a JSON value means to a column's type. As Flink reads them: a number or boolean may stand in a
//! string, a string column takes any value's text. Stricter than Flink where it would lose digits silently: a fraction for a
//! whole-number column and a number beyond a DECIMAL's precision are faults.

use arrow::datatypes::TimeUnit;

use super::Timestamps;
use super::fault::Fault;
use super::scan::{Cursor, RawString, unescape};
use super::time;

type Parsed<T> = Result<T, Box<Fault>>;

/// A scalar's text, quotes taken off.
enum Scalar<'a> {
    Number { text: &'a str, whole: bool },
    Text(std::borrow::Cow<'a, str>),
}

/// The fault of a value that is none of the type's; a syntax fault if it is no value at all.
#[cold]
pub(super) fn wrong(cursor: &mut Cursor<'_>, depth: usize, data_type: &str) -> Box<Fault> {
    let start = cursor.position();
    match cursor.skip(depth) {
        Ok(()) => Fault::wrong_type(data_type, cursor.slice_from(start)),
        Err(fault) => fault,
    }
}

fn unquote(raw: RawString<'_>) -> Parsed<std::borrow::Cow<'_, str>> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Fault::utf8(0));
    if raw.escaped {
        let mut out = Vec::with_capacity(raw.bytes.len());
        unescape(raw.bytes, &mut out)?;
        Ok(String::from_utf8(out).map_err(|_| Fault::utf8(0))?.into())
    } else {
        Ok(text(raw.bytes)?.into())
    }
}

fn scalar<'a>(cursor: &mut Cursor<'a>, depth: usize, data_type: &str) -> Parsed<Scalar<'a>> {
    match cursor.peek() {
        Some(b'"') => {
            cursor.advance();
            Ok(Scalar::Text(unquote(cursor.string()?)?))
        }
        Some(b'-' | b'0'..=b'9') => {
            let number = cursor.number()?;
            Ok(Scalar::Number {
                text: number.text,
                whole: number.whole,
            })
        }
        _ => Err(wrong(cursor, depth, data_type)),
    }
}

/// Parses a scalar's text, or names it in a fault.
fn parse<T>(
    cursor: &mut Cursor<'_>,
    depth: usize,
    data_type: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Parsed<T> {
    let start = cursor.position();
    let parsed = match scalar(cursor, depth, data_type)? {
        Scalar::Number { text, .. } => parse(text),
        Scalar::Text(text) => parse(text.trim()),
    };
    parsed.ok_or_else(|| Fault::wrong_type(data_type, cursor.slice_from(start)))
}

#[inline]
pub(super) fn integer(cursor: &mut Cursor<'_>, depth: usize, data_type: &str) -> Parsed<i64> {
    if let Some(value) = cursor.short_integer() {
        return Ok(value);
    }
    slow_integer(cursor, depth, data_type)
}

#[cold]
fn slow_integer(cursor: &mut Cursor<'_>, depth: usize, data_type: &str) -> Parsed<i64> {
    let start = cursor.position();
    let parsed = match scalar(cursor, depth, data_type)? {
        Scalar::Number { text, whole: true } => text.parse().ok(),
        // 1.0 and 1e3 are whole; their digits say so exactly.
        Scalar::Number { text, whole: false } => exact_integer(text),
        Scalar::Text(text) => text.trim().parse().ok(),
    };
    parsed.ok_or_else(|| Fault::wrong_type(data_type, cursor.slice_from(start)))
}

fn exact_integer(text: &str) -> Option<i64> {
    let (value, lost) = digits(text, 0)?;
    if lost {
        None
    } else {
        i64::try_from(value).ok()
    }
}

pub(super) fn narrow<T: TryFrom<i64>>(
    cursor: &mut Cursor<'_>,
    depth: usize,
    data_type: &str,
) -> Parsed<T> {
    let start = cursor.position();
    let value = integer(cursor, depth, data_type)?;
    T::try_from(value).map_err(|_| Fault::wrong_type(data_type, cursor.slice_from(start)))
}

fn float(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => {
            let numeric =
                |b: u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
            let value: f64 = text.bytes().all(numeric).then(|| text.parse().ok())??;
            value.is_finite().then_some(value)
        }
    }
}

pub(super) fn float64(cursor: &mut Cursor<'_>, depth: usize) -> Parsed<f64> {
    parse(cursor, depth, "DOUBLE", float)
}

pub(super) fn float32(cursor: &mut Cursor<'_>, depth: usize) -> Parsed<f32> {
    parse(cursor, depth, "FLOAT", |text| {
        let wide = float(text)?;
        // From the text, not from the double: rounding twice may differ.
        let value: f32 = if wide.is_finite() {
            text.parse().ok()?
        } else {
            wide as f32
        };
        (value.is_finite() || !wide.is_finite()).then_some(value)
    })
}

pub(super) fn boolean(cursor: &mut Cursor<'_>, depth: usize) -> Parsed<bool> {
    match cursor.peek() {
        Some(b't') => cursor.literal("true").map(|()| true),
        Some(b'f') => cursor.literal("false").map(|()| false),
        Some(b'"') => parse(cursor, depth, "BOOLEAN", |text| match text {
            "true" | "TRUE" | "True" => Some(true),
            "false" | "FALSE" | "False" => Some(false),
            _ => None,
        }),
        _ => Err(wrong(cursor, depth, "BOOLEAN")),
    }
}

/// A string, or the text of whatever stands there.
#[inline]
pub(super) fn text(cursor: &mut Cursor<'_>, depth: usize, out: &mut Vec<u8>) -> Parsed<()> {
    if cursor.peek() == Some(b'"') {
        cursor.advance();
        let raw = cursor.string()?;
        if raw.escaped {
            return unescape(raw.bytes, out);
        }
        out.extend_from_slice(raw.bytes);
        return Ok(());
    }
    let start = cursor.position();
    cursor.skip(depth)?;
    out.extend_from_slice(cursor.slice_from(start));
    Ok(())
}

/// Base64, as Flink has it.
pub(super) fn binary(cursor: &mut Cursor<'_>, depth: usize, out: &mut Vec<u8>) -> Parsed<()> {
    let start = cursor.position();
    if cursor.peek() != Some(b'"') {
        return Err(wrong(cursor, depth, "BINARY (base64)"));
    }
    let Scalar::Text(text) = scalar(cursor, depth, "BINARY (base64)")? else {
        unreachable!("the value opens with a quote");
    };
    super::base64::decode(text.as_bytes(), out)
        .ok_or_else(|| Fault::wrong_type("BINARY (base64)", cursor.slice_from(start)))
}

/// The digits of a number's text at `scale` places, rounded half up, and whether digits were lost. `None`: beyond 38 digits,
/// or no number.
fn digits(text: &str, scale: u8) -> Option<(i128, bool)> {
    let (negative, text) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(e) => (&text[..e], text[e + 1..].parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // The number is (whole fraction) * 10^-places; `keep` of its digits stay.
    let places = i64::try_from(fraction.len()).ok()? - i64::from(exponent);
    let total = (whole.len() + fraction.len()) as i64;
    let keep = total - places + i64::from(scale);
    let mut value: i128 = 0;
    let mut lost = false;
    let mut round_up = false;
    for (i, b) in (0i64..).zip(whole.bytes().chain(fraction.bytes())) {
        if !b.is_ascii_digit() {
            return None;
        }
        if i < keep {
            value = value.checked_mul(10)?.checked_add(i128::from(b - b'0'))?;
        } else {
            lost |= b != b'0';
            round_up |= i == keep && b >= b'5';
        }
    }
    if value != 0 {
        for _ in total..keep {
            value = value.checked_mul(10)?;
        }
    }
    value += i128::from(round_up);
    Some((if negative { -value } else { value }, lost))
}

pub(super) fn decimal(
    cursor: &mut Cursor<'_>,
    depth: usize,
    precision: u8,
    scale: u8,
) -> Parsed<i128> {
    let bound = 10i128.pow(u32::from(precision));
    parse(cursor, depth, "DECIMAL", |text| {
        let (value, _) = digits(text, scale)?;
        (value.abs() < bound).then_some(value)
    })
    .map_err(|fault| fault.typed(precision, scale))
}

pub(super) fn date(cursor: &mut Cursor<'_>, depth: usize) -> Parsed<i32> {
    string(cursor, depth, "DATE (YYYY-MM-DD)", |text| {
        i32::try_from(time::parse_date(text)?).ok()
    })
}

pub(super) fn time(cursor: &mut Cursor<'_>, depth: usize, unit: TimeUnit) -> Parsed<i64> {
    string(
        cursor,
        depth,
        "TIME (HH:MM:SS)",
        |text| match time::parse_time(text, unit)? {
            (units, [] | [b'Z']) => Some(units),
            _ => None,
        },
    )
}

/// A value that must be a string, of ASCII if it is right.
#[inline]
fn string<T>(
    cursor: &mut Cursor<'_>,
    depth: usize,
    data_type: &str,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> Parsed<T> {
    let start = cursor.position();
    if cursor.peek() != Some(b'"') {
        return Err(wrong(cursor, depth, data_type));
    }
    cursor.advance();
    let raw = cursor.string()?;
    let parsed = if raw.escaped {
        parse(unquote(raw)?.as_bytes())
    } else {
        parse(raw.bytes)
    };
    parsed.ok_or_else(|| Fault::wrong_type(data_type, cursor.slice_from(start)))
}

#[inline]
pub(super) fn timestamp(
    cursor: &mut Cursor<'_>,
    depth: usize,
    unit: TimeUnit,
    mode: Timestamps,
    day: &mut time::LastDay,
) -> Parsed<i64> {
    let per_second = match mode {
        Timestamps::Iso8601 => {
            return string(cursor, depth, "TIMESTAMP (ISO 8601)", |text| {
                time::parse_timestamp(text, unit, day)
            });
        }
        Timestamps::EpochMillis => 1_000,
        Timestamps::EpochMicros => 1_000_000,
    };
    let start = cursor.position();
    let value = integer(cursor, depth, "TIMESTAMP (whole number)")?;
    let own = time::per_second(unit);
    let converted = if own >= per_second {
        value.checked_mul(own / per_second)
    } else {
        Some(value.div_euclid(per_second / own))
    };
    converted
        .filter(|_| time::in_range(value.div_euclid(per_second)))
        .ok_or_else(|| {
            Fault::wrong_type(
                "TIMESTAMP of the years 0000 to 9999",
                cursor.slice_from(start),
            )
        })
}
