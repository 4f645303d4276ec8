//! One generated column: how its value of row `i` follows from (seed, column name, i).

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Float64Array, PrimitiveArray,
    StringArray,
};
use arrow::compute::cast;
use arrow::datatypes as t;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, FieldRef, Schema, TimeUnit};
use penstock_crds::source::{Generate, GenerateKind, Scalar, Sequence};
use penstock_crds::units;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::clock::Millis;
use crate::formats::Decoder;
use crate::formats::json::{JsonConfig, JsonDecoder};

/// Values of a type that is written as a number: whole numbers, decimals, dates and times in their own units; or floats.
#[derive(Debug)]
enum How<T> {
    Sequence { start: T, step: T, cycle: u64 },
    Random { min: T, max: T },
    Choice(Vec<T>),
    Now,
}

#[derive(Debug)]
enum Kind {
    Whole(How<i128>),
    Float(How<f64>),
    Bool(Vec<bool>),
    Choice(Vec<String>),
    Numbered(String, How<i128>),
    Text(u32),
}

/// Makes one column.
#[derive(Debug)]
pub(super) struct Maker {
    data_type: DataType,
    name_hash: u64,
    kind: Kind,
}

type Made<T> = Result<T, String>;

/// A scalar as the column's type, through the reader that the column's type has for JSON.
fn convert(scalar: &Scalar, data_type: &DataType) -> Made<ArrayRef> {
    let text = match scalar {
        Scalar::Bool(v) => serde_json::json!({ "v": v }),
        Scalar::Int(v) => serde_json::json!({ "v": v }),
        Scalar::Float(v) => serde_json::json!({ "v": v }),
        Scalar::String(v) => serde_json::json!({ "v": v }),
    }
    .to_string();
    let schema = Arc::new(Schema::new(vec![Field::new("v", data_type.clone(), true)]));
    let mut decoder = JsonDecoder::new(schema, JsonConfig::default()).map_err(|e| e.message)?;
    decoder.feed(text.as_bytes());
    let (rows, errors) = decoder.finish().map_err(|e| e.to_string())?;
    match errors.first() {
        Some(error) => Err(error.text.clone()),
        None => Ok(Arc::clone(rows.column(0))),
    }
}

fn whole(scalar: &Scalar, data_type: &DataType) -> Made<i128> {
    let value = convert(scalar, data_type)?;
    let plain = match data_type {
        DataType::Decimal128(_, _) => return Ok(value.as_primitive::<t::Decimal128Type>().value(0)),
        DataType::Date32 => cast(&value, &DataType::Int32).and_then(|v| cast(&v, &DataType::Int64)),
        _ => cast(&value, &DataType::Int64),
    };
    let plain = plain.map_err(|e| e.to_string())?;
    Ok(i128::from(plain.as_primitive::<t::Int64Type>().value(0)))
}

fn float(scalar: &Scalar) -> Made<f64> {
    Ok(convert(scalar, &DataType::Float64)?.as_primitive::<t::Float64Type>().value(0))
}

fn text(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Bool(v) => v.to_string(),
        Scalar::Int(v) => v.to_string(),
        Scalar::Float(v) => v.to_string(),
        Scalar::String(v) => v.clone(),
    }
}

const fn per_milli(unit: TimeUnit) -> (i128, i128) {
    match unit {
        TimeUnit::Second => (1, 1_000),
        TimeUnit::Millisecond => (1, 1),
        TimeUnit::Microsecond => (1_000, 1),
        TimeUnit::Nanosecond => (1_000_000, 1),
    }
}

fn millis_as(ms: i64, unit: TimeUnit) -> i128 {
    let (times, over) = per_milli(unit);
    (i128::from(ms) * times).div_euclid(over)
}

/// What each row adds.
fn step(scalar: Option<&Scalar>, data_type: &DataType) -> Made<i128> {
    match (data_type, scalar) {
        (DataType::Timestamp(unit, _) | DataType::Time64(unit), scalar) => match scalar {
            None => Ok(millis_as(1_000, *unit)),
            Some(Scalar::String(text)) => {
                let step: units::Duration = text.parse().map_err(|e: units::UnitError| e.to_string())?;
                let ms = i64::try_from(step.as_millis()).map_err(|e| e.to_string())?;
                Ok(millis_as(ms, *unit))
            }
            Some(_) => Err("the step of a timestamp is a duration, such as 1s".to_owned()),
        },
        (DataType::Date32, Some(Scalar::Int(days))) => Ok(i128::from(*days)),
        (DataType::Date32, Some(_)) => Err("the step of a date is a number of days".to_owned()),
        (DataType::Date32, None) => Ok(1),
        (_, None) => whole(&Scalar::Int(1), data_type),
        (_, Some(scalar)) => whole(scalar, data_type),
    }
}

fn whole_sequence(sequence: &Sequence, data_type: &DataType) -> Made<How<i128>> {
    let start = sequence.start.as_ref().map_or(Ok(0), |s| whole(s, data_type))?;
    Ok(How::Sequence {
        start,
        step: step(sequence.step.as_ref(), data_type)?,
        cycle: sequence.cycle.unwrap_or(u64::MAX),
    })
}

impl Maker {
    pub fn new(field: &FieldRef, generate: &Generate) -> Made<Self> {
        let data_type = field.data_type();
        let how = generate.kind().ok_or("needs `generate`")?;
        let is_text = matches!(data_type, DataType::Utf8 | DataType::Binary);
        let is_float = matches!(data_type, DataType::Float32 | DataType::Float64);
        let kind = if is_text {
            match how {
                GenerateKind::Sequence(sequence) => Kind::Numbered(
                    sequence.prefix.clone(),
                    whole_sequence(sequence, &DataType::Int64)?,
                ),
                GenerateKind::Choice(choice) => Kind::Choice(choice.values.iter().map(text).collect()),
                GenerateKind::Constant(constant) => Kind::Choice(vec![text(&constant.value)]),
                GenerateKind::Text(random) => Kind::Text(random.length),
                GenerateKind::Random(_) | GenerateKind::Now => return Err(unfit(data_type)),
            }
        } else if *data_type == DataType::Boolean {
            let given = match how {
                GenerateKind::Random(_) => vec![Scalar::Bool(false), Scalar::Bool(true)],
                GenerateKind::Choice(choice) => choice.values.clone(),
                GenerateKind::Constant(constant) => vec![constant.value.clone()],
                GenerateKind::Sequence(_) | GenerateKind::Text(_) | GenerateKind::Now => {
                    return Err(unfit(data_type));
                }
            };
            let values = given.iter().map(|scalar| {
                Ok(convert(scalar, data_type)?.as_boolean().value(0))
            });
            Kind::Bool(values.collect::<Made<_>>()?)
        } else if is_float {
            let or = |scalar: &Option<Scalar>, default| scalar.as_ref().map_or(Ok(default), float);
            Kind::Float(match how {
                GenerateKind::Sequence(sequence) => How::Sequence {
                    start: or(&sequence.start, 0.0)?,
                    step: or(&sequence.step, 1.0)?,
                    cycle: sequence.cycle.unwrap_or(u64::MAX),
                },
                GenerateKind::Random(random) => How::Random {
                    min: or(&random.min, 0.0)?,
                    max: or(&random.max, 1.0)?,
                },
                GenerateKind::Choice(choice) => {
                    How::Choice(choice.values.iter().map(float).collect::<Made<_>>()?)
                }
                GenerateKind::Constant(constant) => How::Choice(vec![float(&constant.value)?]),
                GenerateKind::Text(_) | GenerateKind::Now => return Err(unfit(data_type)),
            })
        } else {
            let value = |scalar: &Scalar| whole(scalar, data_type);
            Kind::Whole(match how {
                GenerateKind::Sequence(sequence) => whole_sequence(sequence, data_type)?,
                GenerateKind::Random(random) => {
                    let min = random.min.as_ref().map_or(Ok(0), value)?;
                    let max = random.max.as_ref().ok_or("random needs max")?;
                    let max = value(max)?;
                    if max < min {
                        return Err("random needs min <= max".to_owned());
                    }
                    How::Random { min, max }
                }
                GenerateKind::Choice(choice) => {
                    How::Choice(choice.values.iter().map(value).collect::<Made<_>>()?)
                }
                GenerateKind::Constant(constant) => How::Choice(vec![value(&constant.value)?]),
                GenerateKind::Now if matches!(data_type, DataType::Timestamp(_, _)) => How::Now,
                GenerateKind::Now | GenerateKind::Text(_) => return Err(unfit(data_type)),
            })
        };
        if let Kind::Choice(v) = &kind
            && v.is_empty()
        {
            return Err("choice needs a value".to_owned());
        }
        let maker = Self {
            data_type: data_type.clone(),
            name_hash: xxh3_64(field.name().as_bytes()),
            kind,
        };
        if !maker.can_make() {
            return Err(unfit(data_type));
        }
        Ok(maker)
    }

    fn can_make(&self) -> bool {
        use DataType as D;
        matches!(
            &self.data_type,
            D::Boolean | D::Utf8 | D::Binary | D::Float32 | D::Float64 | D::Date32
                | D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::Decimal128(_, _)
                | D::Timestamp(_, _) | D::Time64(TimeUnit::Microsecond)
        )
    }

    fn bits(&self, seed: u64, row: u64) -> u64 {
        xxh3_64_with_seed(&row.to_le_bytes(), seed ^ self.name_hash)
    }

    /// One of `n`, each as likely (up to 2^-64).
    fn pick(&self, seed: u64, row: u64, n: u128) -> u128 {
        if n > u128::from(u64::MAX) {
            return u128::from(self.bits(seed, row)) % n;
        }
        (u128::from(self.bits(seed, row)) * n) >> 64
    }

    fn whole(&self, how: &How<i128>, seed: u64, row: u64, now: Millis) -> i128 {
        match how {
            How::Sequence { start, step, cycle } => {
                start.saturating_add(step.saturating_mul(i128::from(row % cycle)))
            }
            How::Random { min, max } => min + self.pick(seed, row, (max - min) as u128 + 1) as i128,
            How::Choice(values) => values[self.pick(seed, row, values.len() as u128) as usize],
            How::Now => match self.data_type {
                DataType::Timestamp(unit, _) => millis_as(now.get(), unit),
                _ => 0,
            },
        }
    }

    fn float(&self, how: &How<f64>, seed: u64, row: u64) -> f64 {
        match how {
            How::Sequence { start, step, cycle } => start + step * (row % cycle) as f64,
            How::Random { min, max } => {
                // 53 bits: every double of [0, 1) that is a multiple of 2^-53.
                let unit = (self.bits(seed, row) >> 11) as f64 / (1u64 << 53) as f64;
                min + (max - min) * unit
            }
            How::Choice(values) => values[self.pick(seed, row, values.len() as u128) as usize],
            How::Now => 0.0,
        }
    }

    /// The values of these rows.
    pub fn make(&self, seed: u64, rows: &[u64], now: Millis) -> ArrayRef {
        match &self.kind {
            Kind::Whole(how) => self.wholes(how, seed, rows, now),
            Kind::Float(how) => {
                let values = rows.iter().map(|row| self.float(how, seed, *row));
                match self.data_type {
                    DataType::Float32 => {
                        Arc::new(Float32Array::from_iter_values(values.map(|v| v as f32)))
                    }
                    _ => Arc::new(Float64Array::from_iter_values(values)),
                }
            }
            Kind::Bool(values) => {
                let n = values.len() as u128;
                let picked = rows.iter().map(|row| Some(values[self.pick(seed, *row, n) as usize]));
                Arc::new(BooleanArray::from_iter(picked))
            }
            Kind::Choice(values) => {
                let n = values.len() as u128;
                self.texts(rows.iter().map(|row| &values[self.pick(seed, *row, n) as usize]))
            }
            Kind::Numbered(prefix, how) => {
                let number = |row: &u64| self.whole(how, seed, *row, now);
                self.texts(rows.iter().map(|row| format!("{prefix}{}", number(row))))
            }
            Kind::Text(length) => self.texts(rows.iter().map(|row| self.letters(seed, *row, *length))),
        }
    }

    fn letters(&self, seed: u64, row: u64, length: u32) -> String {
        const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut out = String::with_capacity(length as usize);
        let mut bits = self.bits(seed, row);
        for i in 0..length {
            out.push(LETTERS[(bits % 36) as usize] as char);
            bits /= 36;
            if i % 8 == 7 {
                bits = self.bits(seed ^ u64::from(i + 1), row);
            }
        }
        out
    }

    fn texts<S: AsRef<str>>(&self, values: impl Iterator<Item = S>) -> ArrayRef {
        match self.data_type {
            DataType::Binary => {
                let values: Vec<S> = values.collect();
                let bytes = values.iter().map(|v| v.as_ref().as_bytes());
                Arc::new(BinaryArray::from_iter_values(bytes))
            }
            _ => Arc::new(StringArray::from_iter_values(values)),
        }
    }

    fn wholes(&self, how: &How<i128>, seed: u64, rows: &[u64], now: Millis) -> ArrayRef {
        let values = rows.iter().map(|row| self.whole(how, seed, *row, now));
        // A sequence that leaves its type's range starts over there, as integers in SQL engines without checks do.
        match &self.data_type {
            DataType::Int8 => primitive::<t::Int8Type>(values.map(|v| v as i8), &self.data_type),
            DataType::Int16 => primitive::<t::Int16Type>(values.map(|v| v as i16), &self.data_type),
            DataType::Int32 => primitive::<t::Int32Type>(values.map(|v| v as i32), &self.data_type),
            DataType::Date32 => primitive::<t::Date32Type>(values.map(|v| v as i32), &self.data_type),
            DataType::Decimal128(_, _) => primitive::<t::Decimal128Type>(values, &self.data_type),
            other => {
                let values = values.map(|v| v as i64);
                match other {
                    DataType::Timestamp(TimeUnit::Second, _) => {
                        primitive::<t::TimestampSecondType>(values, other)
                    }
                    DataType::Timestamp(TimeUnit::Millisecond, _) => {
                        primitive::<t::TimestampMillisecondType>(values, other)
                    }
                    DataType::Timestamp(TimeUnit::Microsecond, _) => {
                        primitive::<t::TimestampMicrosecondType>(values, other)
                    }
                    DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                        primitive::<t::TimestampNanosecondType>(values, other)
                    }
                    DataType::Time64(_) => primitive::<t::Time64MicrosecondType>(values, other),
                    _ => primitive::<t::Int64Type>(values, other),
                }
            }
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(
    values: impl Iterator<Item = T::Native>,
    data_type: &DataType,
) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_iter_values(values).with_data_type(data_type.clone()))
}

fn unfit(data_type: &DataType) -> String {
    format!("`generate` of this kind cannot make {data_type}")
}
