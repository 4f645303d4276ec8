//! Aggregates over groups, columnar: one accumulator holds one aggregate of all groups of a table. Its state can be read
//! without being consumed, merged, taken back (retracted) and kept as bytes. Result types are DataFusion's.
//!
//! Float sums are double-double (Dekker 1971, Knuth TAOCP 4.2.2): 106 bits, so that the order of additions does not show in
//! the rounded result, short of cancellation by more than 2^50. An infinity or NaN that was added cannot be taken back.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float64Type, Int64Type};
use penstock_plan::graph::{Aggregate, AggregateFunction};

use super::distinct::{Distinct, Multiset};
use super::extreme;
use super::foreign::Foreign;
use super::rows::{get_fixed, get_signed, get_varint, internal, put_signed, put_varint};
use crate::error::{EngineError, Result};

/// Which rows go to which groups.
#[derive(Clone, Copy)]
pub struct Selection<'a> {
    /// Group of each row.
    pub groups: &'a [u32],
    /// Whether each row adds or takes away; `None`: all add.
    pub adds: Option<&'a [bool]>,
    /// Rows where it is not true do not count.
    pub filter: Option<&'a BooleanArray>,
}

impl Selection<'_> {
    pub fn takes(&self, row: usize) -> bool {
        self.filter.is_none_or(|f| f.is_valid(row) && f.value(row))
    }
    pub fn sign(&self, row: usize) -> i64 {
        if self.adds.is_none_or(|a| a[row]) {
            1
        } else {
            -1
        }
    }
    /// Whether a loop may skip all tests.
    fn plain(&self) -> bool {
        self.adds.is_none() && self.filter.is_none()
    }
}

/// One aggregate of all groups.
pub trait Accumulator: Send {
    /// Makes room for groups up to `groups`; new ones are empty.
    fn grow(&mut self, groups: usize);
    /// Takes rows; `args` have one value per row.
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()>;
    /// Result columns of the given groups.
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>>;
    /// Partial state of the given groups as columns; `None`: this aggregate has bytes only and cannot be split in two phases.
    fn partial(&self, groups: &[u32]) -> Result<Option<Vec<ArrayRef>>>;
    /// Merges partial states into groups.
    fn merge(&mut self, states: &[ArrayRef], groups: &[u32]) -> Result<()>;
    /// Appends a group's state; the bytes end themselves.
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()>;
    /// Merges an encoded state into a group and moves `bytes` past it.
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()>;
    /// Bytes held, estimated.
    fn memory_bytes(&self) -> usize;
}

/// How to make an accumulator, and what it reads.
#[derive(Clone)]
pub struct Spec {
    pub aggregate: Aggregate,
    arg_types: Vec<DataType>,
    arg_fields: Vec<FieldRef>,
    retract: bool,
}

impl Spec {
    /// `input`: schema of the aggregate's arguments. `retract`: the input edge may take rows back.
    pub fn new(aggregate: &Aggregate, input: &arrow::datatypes::SchemaRef, retract: bool) -> Self {
        let arg_fields: Vec<FieldRef> = aggregate
            .args
            .iter()
            .map(|a| Arc::clone(&input.fields()[*a]))
            .collect();
        Self {
            aggregate: aggregate.clone(),
            arg_types: arg_fields.iter().map(|f| f.data_type().clone()).collect(),
            arg_fields,
            retract,
        }
    }

    pub fn make(&self) -> Result<Box<dyn Accumulator>> {
        let a = &self.aggregate;
        let output = a.output.data_type();
        let one = |what: &str| {
            self.arg_types
                .first()
                .cloned()
                .ok_or_else(|| unsupported(&format!("{what} without an argument")))
        };
        let extreme_of = |max: bool| -> Result<Box<dyn Accumulator>> {
            let t = one("min or max")?;
            if self.retract {
                Ok(Box::new(Multiset::new(&t, max)?))
            } else {
                extreme::make(&t, max)
            }
        };
        let inner: Box<dyn Accumulator> = match &a.function {
            AggregateFunction::Count => Box::new(Count::default()),
            AggregateFunction::Sum => Box::new(Sum::new(output, None)?),
            AggregateFunction::Avg => Box::new(Sum::new(output, Some(&one("avg")?))?),
            // DISTINCT changes nothing here.
            AggregateFunction::Min => return extreme_of(false),
            AggregateFunction::Max => return extreme_of(true),
            AggregateFunction::Other(udf) => {
                if self.retract {
                    return Err(unsupported(&format!(
                        "{}() on an input with retractions",
                        udf.name()
                    )));
                }
                return Ok(Box::new(Foreign::new(
                    Arc::clone(udf),
                    &self.arg_fields,
                    Arc::clone(&a.output),
                    a.distinct,
                )?));
            }
        };
        if a.distinct {
            return Ok(Box::new(Distinct::new(&self.arg_types, inner)?));
        }
        Ok(inner)
    }

    /// Number and types of the partial state's columns.
    pub fn partial_types(&self) -> Result<Vec<DataType>> {
        let states = self.make()?.partial(&[])?;
        let states = states.ok_or_else(|| unsupported("this aggregate in two phases"))?;
        Ok(states.iter().map(|s| s.data_type().clone()).collect())
    }
}

pub(super) fn unsupported(what: &str) -> EngineError {
    EngineError::invalid("PR0315", "operator", format!("{what} is not supported"))
}

/// COUNT. Partial state: Int64.
#[derive(Default)]
struct Count {
    counts: Vec<i64>,
}

impl Accumulator for Count {
    fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
    }
    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let nulls: Vec<NullBuffer> = args.iter().filter_map(|a| a.logical_nulls()).collect();
        if nulls.iter().all(|n| n.null_count() == 0) && rows.plain() {
            for g in rows.groups {
                self.counts[*g as usize] += 1;
            }
            return Ok(());
        }
        for (i, g) in rows.groups.iter().enumerate() {
            if rows.takes(i) && nulls.iter().all(|n| n.is_valid(i)) {
                self.counts[*g as usize] += rows.sign(i);
            }
        }
        Ok(())
    }
    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let counts: Int64Array = groups.iter().map(|g| self.counts[*g as usize]).collect();
        Ok(vec![Arc::new(counts)])
    }
    fn partial(&self, groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        let counts: Int64Array = groups.iter().map(|g| self.counts[*g as usize]).collect();
        Ok(Some(vec![Arc::new(counts)]))
    }
    fn merge(&mut self, states: &[ArrayRef], groups: &[u32]) -> Result<()> {
        let counts = states[0].as_primitive::<Int64Type>();
        for (g, c) in groups.iter().zip(counts.values()) {
            self.counts[*g as usize] += c;
        }
        Ok(())
    }
    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        put_signed(out, self.counts[group as usize]);
        Ok(())
    }
    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        self.counts[group as usize] += get_signed(bytes)?;
        Ok(())
    }
    fn memory_bytes(&self) -> usize {
        self.counts.capacity() * 8
    }
}

/// Sums by their exact width.
enum Total {
    /// Wraps, as DataFusion's. Unsigned sums are the same bits.
    Int(Vec<i64>),
    /// Decimals, and integers under an average: these do not wrap in practice.
    Wide(Vec<i128>),
    Float {
        hi: Vec<f64>,
        lo: Vec<f64>,
    },
}

/// What is made of a sum.
enum Made {
    Sum,
    /// Scale of the sum, for decimals.
    Average {
        sum_scale: i8,
    },
}

/// SUM and AVG. Partial state of a sum: the output type, and the low part for floats; of an average: Decimal128(38, s), or
/// high and low part, then the count.
struct Sum {
    total: Total,
    /// Values that are in the sum (or partial sums): 0 means NULL.
    counts: Vec<i64>,
    made: Made,
    /// What arguments are cast to.
    input: DataType,
    output: DataType,
}

impl Sum {
    /// `average_of`: the argument's type, for an average.
    fn new(output: &DataType, average_of: Option<&DataType>) -> Result<Self> {
        let summed = average_of.unwrap_or(output);
        let (total, input) = match (summed, average_of.is_some()) {
            (DataType::Float16 | DataType::Float32 | DataType::Float64, _) => (
                Total::Float {
                    hi: Vec::new(),
                    lo: Vec::new(),
                },
                DataType::Float64,
            ),
            (DataType::Decimal128(_, s), _) => {
                (Total::Wide(Vec::new()), DataType::Decimal128(38, *s))
            }
            (t, true) if t.is_integer() => (Total::Wide(Vec::new()), DataType::Decimal128(38, 0)),
            (DataType::Int64 | DataType::UInt64, false) => (Total::Int(Vec::new()), summed.clone()),
            (t, _) => return Err(unsupported(&format!("sum or avg of {t}"))),
        };
        let made = match &input {
            _ if average_of.is_none() => Made::Sum,
            DataType::Decimal128(_, s) => Made::Average { sum_scale: *s },
            _ => Made::Average { sum_scale: 0 },
        };
        Ok(Self {
            total,
            counts: Vec::new(),
            made,
            input,
            output: output.clone(),
        })
    }

    fn argument(&self, arg: &ArrayRef) -> Result<ArrayRef> {
        if arg.data_type() == &self.input {
            return Ok(Arc::clone(arg));
        }
        // Decimals of one scale differ in precision only, which the sum does not check.
        cast(arg, &self.input).map_err(|e| internal("an argument of sum or avg", e))
    }

    fn nulls(&self, groups: &[u32]) -> Option<NullBuffer> {
        groups
            .iter()
            .any(|g| self.counts[*g as usize] == 0)
            .then(|| {
                groups
                    .iter()
                    .map(|g| self.counts[*g as usize] != 0)
                    .collect()
            })
    }

    /// The sums as they are.
    fn totals(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let nulls = self.nulls(groups);
        Ok(match &self.total {
            Total::Int(sums) => {
                let sums = groups.iter().map(|g| sums[*g as usize]).collect();
                let ints = Int64Array::new(sums, nulls);
                if self.input == DataType::UInt64 {
                    let same: UInt64Array = ints.unary(|v| v as u64);
                    vec![Arc::new(same)]
                } else {
                    vec![Arc::new(ints)]
                }
            }
            Total::Wide(sums) => {
                let sums = groups.iter().map(|g| sums[*g as usize]).collect();
                let wide = Decimal128Array::new(sums, nulls);
                let to = match self.made {
                    Made::Sum => self.output.clone(),
                    Made::Average { .. } => self.input.clone(),
                };
                vec![Arc::new(wide.with_data_type(to))]
            }
            Total::Float { hi, lo } => {
                let hi = groups.iter().map(|g| hi[*g as usize]).collect();
                let lo = groups.iter().map(|g| lo[*g as usize]).collect();
                vec![
                    Arc::new(Float64Array::new(hi, nulls.clone())),
                    Arc::new(Float64Array::new(lo, nulls)),
                ]
            }
        })
    }

    fn averages(&self, groups: &[u32], sum_scale: i8) -> Result<ArrayRef> {
        let counts = |g: &u32| self.counts[*g as usize];
        match (&self.total, &self.output) {
            (Total::Float { hi, lo }, _) => {
                let values: Float64Array = groups
                    .iter()
                    .map(|g| {
                        let n = counts(g);
                        let sum = hi[*g as usize] + lo[*g as usize];
                        (n != 0).then(|| sum / n as f64)
                    })
                    .collect();
                Ok(Arc::new(values))
            }
            (Total::Wide(sums), DataType::Decimal128(precision, scale)) => {
                let up = 10i128
                    .checked_pow(u32::from((scale - sum_scale).unsigned_abs()))
                    .ok_or_else(overflow)?;
                let values: Decimal128Array = groups
                    .iter()
                    .map(|g| {
                        let n = i128::from(counts(g));
                        if n == 0 {
                            return Ok(None);
                        }
                        let sum = sums[*g as usize].checked_mul(up).ok_or_else(overflow)?;
                        Ok(Some(sum / n))
                    })
                    .collect::<Result<_>>()?;
                let values = values
                    .with_precision_and_scale(*precision, *scale)
                    .map_err(|e| internal("avg", e))?;
                Ok(Arc::new(values))
            }
            (Total::Wide(sums), _) => {
                let down = 10f64.powi(i32::from(sum_scale));
                let values: Float64Array = groups
                    .iter()
                    .map(|g| {
                        let n = counts(g);
                        (n != 0).then(|| sums[*g as usize] as f64 / down / n as f64)
                    })
                    .collect();
                Ok(Arc::new(values))
            }
            (Total::Int(_), _) => Err(unsupported("an average over a wrapping sum")),
        }
    }
}

fn overflow() -> EngineError {
    EngineError::invalid("PR0302", "aggregate avg", "decimal overflow")
}

/// (hi, lo) += v, exactly to 106 bits.
fn add_float(hi: &mut f64, lo: &mut f64, v: f64) {
    let s = *hi + v;
    if !s.is_finite() {
        (*hi, *lo) = (s, 0.0);
        return;
    }
    let b = s - *hi;
    let err = (*hi - (s - b)) + (v - b);
    let low = *lo + err;
    // Renormalise, so that hi is the rounded sum.
    let top = s + low;
    *lo = low - (top - s);
    *hi = top;
}

macro_rules! sum_loop {
    ($array:expr, $rows:expr, $counts:expr, |$g:ident, $v:ident, $sign:ident| $add:expr) => {{
        let a = $array;
        let values = a.values();
        if a.null_count() == 0 && $rows.plain() {
            let $sign = 1i64;
            for (g, v) in $rows.groups.iter().zip(values.iter()) {
                let ($g, $v) = (*g as usize, *v);
                $counts[$g] += 1;
                let _ = $sign;
                $add;
            }
        } else {
            for (i, g) in $rows.groups.iter().enumerate() {
                if a.is_valid(i) && $rows.takes(i) {
                    let ($g, $v, $sign) = (*g as usize, values[i], $rows.sign(i));
                    $counts[$g] += $sign;
                    $add;
                }
            }
        }
    }};
}

impl Accumulator for Sum {
    fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
        match &mut self.total {
            Total::Int(sums) => sums.resize(groups, 0),
            Total::Wide(sums) => sums.resize(groups, 0),
            Total::Float { hi, lo } => {
                hi.resize(groups, 0.0);
                lo.resize(groups, 0.0);
            }
        }
    }

    fn update(&mut self, args: &[ArrayRef], rows: Selection<'_>) -> Result<()> {
        let counts = &mut self.counts;
        // Integers under an average need no detour through decimals.
        if let (Total::Wide(sums), DataType::Int64) = (&mut self.total, args[0].data_type()) {
            let up = match self.input {
                DataType::Decimal128(_, 0) => 1,
                _ => return Err(unsupported("an average of this type")),
            };
            sum_loop!(
                args[0].as_primitive::<Int64Type>(),
                rows,
                counts,
                |g, v, sign| sums[g] += i128::from(v) * i128::from(sign) * up
            );
            return Ok(());
        }
        if let (Total::Wide(sums), DataType::Decimal128(_, s)) =
            (&mut self.total, args[0].data_type())
            && matches!(self.input, DataType::Decimal128(_, to) if to == *s)
        {
            sum_loop!(
                args[0].as_primitive::<Decimal128Type>(),
                rows,
                counts,
                |g, v, sign| sums[g] = sums[g].wrapping_add(v * i128::from(sign))
            );
            return Ok(());
        }
        let arg = self.argument(&args[0])?;
        let counts = &mut self.counts;
        match &mut self.total {
            Total::Int(sums) => {
                let arg = if self.input == DataType::UInt64 {
                    arg.as_primitive::<arrow::datatypes::UInt64Type>()
                        .unary(|v| v as i64)
                } else {
                    arg.as_primitive::<Int64Type>().clone()
                };
                sum_loop!(&arg, rows, counts, |g, v, sign| sums[g] =
                    sums[g].wrapping_add(v.wrapping_mul(sign)));
            }
            Total::Wide(sums) => {
                sum_loop!(
                    arg.as_primitive::<Decimal128Type>(),
                    rows,
                    counts,
                    |g, v, sign| { sums[g] = sums[g].wrapping_add(v * i128::from(sign)) }
                );
            }
            Total::Float { hi, lo } => {
                sum_loop!(
                    arg.as_primitive::<Float64Type>(),
                    rows,
                    counts,
                    |g, v, sign| {
                        add_float(&mut hi[g], &mut lo[g], v * sign as f64);
                        // What rounding left of an empty sum must not outlive it.
                        if counts[g] == 0 {
                            (hi[g], lo[g]) = (0.0, 0.0);
                        }
                    }
                );
            }
        }
        Ok(())
    }

    fn result(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let result = match self.made {
            Made::Average { sum_scale } => self.averages(groups, sum_scale)?,
            Made::Sum => match &self.total {
                Total::Float { hi, lo } => {
                    let sums: Float64Array = groups
                        .iter()
                        .map(|g| {
                            let g = *g as usize;
                            (self.counts[g] != 0).then(|| hi[g] + lo[g])
                        })
                        .collect();
                    Arc::new(sums)
                }
                _ => self.totals(groups)?.remove(0),
            },
        };
        if result.data_type() == &self.output {
            return Ok(vec![result]);
        }
        Ok(vec![
            cast(&result, &self.output).map_err(|e| internal("sum or avg", e))?,
        ])
    }

    fn partial(&self, groups: &[u32]) -> Result<Option<Vec<ArrayRef>>> {
        let mut states = self.totals(groups)?;
        if let Made::Average { .. } = self.made {
            let counts: Int64Array = groups.iter().map(|g| self.counts[*g as usize]).collect();
            states.push(Arc::new(counts));
        }
        Ok(Some(states))
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[u32]) -> Result<()> {
        // A sum's partial state tells NULL from not NULL only; an average's has the count.
        let counted = match self.made {
            Made::Sum => None,
            Made::Average { .. } => states.last().map(|s| s.as_primitive::<Int64Type>()),
        };
        for (i, g) in groups.iter().enumerate() {
            let g = *g as usize;
            if states[0].is_null(i) {
                continue;
            }
            self.counts[g] += counted.map_or(1, |c| c.value(i));
            match &mut self.total {
                Total::Int(sums) => {
                    let v = match self.input {
                        DataType::UInt64 => states[0]
                            .as_primitive::<arrow::datatypes::UInt64Type>()
                            .value(i) as i64,
                        _ => states[0].as_primitive::<Int64Type>().value(i),
                    };
                    sums[g] = sums[g].wrapping_add(v);
                }
                Total::Wide(sums) => {
                    let v = states[0].as_primitive::<Decimal128Type>().value(i);
                    sums[g] = sums[g].wrapping_add(v);
                }
                Total::Float { hi, lo } => {
                    let v = states[0].as_primitive::<Float64Type>().value(i);
                    add_float(&mut hi[g], &mut lo[g], v);
                    let v = states[1].as_primitive::<Float64Type>().value(i);
                    add_float(&mut hi[g], &mut lo[g], v);
                }
            }
        }
        Ok(())
    }

    fn encode(&mut self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        let g = group as usize;
        put_varint(out, self.counts[g] as u64);
        match &self.total {
            Total::Int(sums) => put_signed(out, sums[g]),
            Total::Wide(sums) => out.extend_from_slice(&sums[g].to_le_bytes()),
            Total::Float { hi, lo } => {
                out.extend_from_slice(&hi[g].to_le_bytes());
                out.extend_from_slice(&lo[g].to_le_bytes());
            }
        }
        Ok(())
    }

    fn merge_encoded(&mut self, group: u32, bytes: &mut &[u8]) -> Result<()> {
        let g = group as usize;
        self.counts[g] += get_varint(bytes)? as i64;
        match &mut self.total {
            Total::Int(sums) => sums[g] = sums[g].wrapping_add(get_signed(bytes)?),
            Total::Wide(sums) => {
                let mut raw = [0; 16];
                raw.copy_from_slice(get_fixed(bytes, 16)?);
                sums[g] = sums[g].wrapping_add(i128::from_le_bytes(raw));
            }
            Total::Float { hi, lo } => {
                for _ in 0..2 {
                    let mut raw = [0; 8];
                    raw.copy_from_slice(get_fixed(bytes, 8)?);
                    add_float(&mut hi[g], &mut lo[g], f64::from_le_bytes(raw));
                }
            }
        }
        Ok(())
    }

    fn memory_bytes(&self) -> usize {
        self.counts.capacity() * 8
            + match &self.total {
                Total::Int(sums) => sums.capacity() * 8,
                Total::Wide(sums) => sums.capacity() * 16,
                Total::Float { hi, lo } => (hi.capacity() + lo.capacity()) * 8,
            }
    }
}

/// The output field of an aggregate under test and of operators that make their own.
pub fn output_field(name: &str, data_type: DataType) -> FieldRef {
    Arc::new(Field::new(name, data_type, true))
}
