//! Windows of event time as arithmetic: which windows and panes hold a row, when they close. Pure; microseconds.
//!
//! A *pane* is the largest slice of time that every window either holds whole or not at all: gcd(size, slide). Overlapping
//! windows share panes (Li et al., "No pane, no gain", SIGMOD Record 2005).

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use penstock_plan::graph::Window;

use crate::error::{EngineError, Result};

/// `window_time` lies this much before `window_end`: the last millisecond that belongs to the window, as in Flink.
pub const WINDOW_TIME_GAP: i64 = 1_000;

/// A window in its normal form: a tumbling window is a hopping one whose slide is its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigner {
    size: i64,
    slide: i64,
    offset: i64,
    pane: i64,
}

impl Assigner {
    pub fn new(window: Window) -> Self {
        let (size, slide, offset) = match window {
            Window::Tumble { size, offset } => (size, size, offset),
            Window::Hop {
                slide,
                size,
                offset,
            } => (size, slide, offset),
        };
        let (size, slide) = (size.max(1), slide.max(1));
        Self {
            size,
            slide,
            offset: offset.rem_euclid(slide),
            pane: gcd(size, slide),
        }
    }

    pub const fn size(self) -> i64 {
        self.size
    }

    /// Whether windows share rows.
    pub const fn overlaps(self) -> bool {
        self.slide < self.size
    }

    /// Start of the pane that holds `t`.
    pub const fn pane_of(self, t: i64) -> i64 {
        floor(t, self.pane, self.offset)
    }

    pub const fn pane_size(self) -> i64 {
        self.pane
    }

    /// Start of the last window that holds `t`.
    pub const fn last_start(self, t: i64) -> i64 {
        floor(t, self.slide, self.offset)
    }

    /// End of the last window that holds `t`: at this watermark a row of `t` is late.
    pub const fn last_end(self, t: i64) -> i64 {
        self.last_start(t).saturating_add(self.size)
    }

    /// Starts of the windows that hold `t`, ascending. With slide > size there may be none.
    pub fn starts(self, t: i64) -> impl Iterator<Item = i64> {
        let last = self.last_start(t);
        // Windows s = last - k * slide with s + size > t.
        let room = self.size.saturating_sub(t.saturating_sub(last)) - 1;
        let count = if room < 0 { 0 } else { room / self.slide + 1 };
        (0..count)
            .rev()
            .map(move |k| last.saturating_sub(k * self.slide))
    }

    /// End of the first window that holds `t` and ends after `watermark`.
    pub fn next_end(self, t: i64, watermark: i64) -> Option<i64> {
        let first = self.starts(t).next()?;
        let behind = i128::from(watermark) - i128::from(first) - i128::from(self.size) + 1;
        let steps = if behind <= 0 {
            0
        } else {
            (behind as u128).div_ceil(self.slide as u128) as i128
        };
        let start = i128::from(first) + steps * i128::from(self.slide);
        (start <= i128::from(self.last_start(t))).then(|| (start as i64).saturating_add(self.size))
    }

    /// Starts of the panes of the window that begins at `start`.
    pub fn panes(self, start: i64) -> impl Iterator<Item = i64> {
        (0..self.size / self.pane).map(move |k| start.saturating_add(k * self.pane))
    }
}

const fn floor(t: i64, step: i64, offset: i64) -> i64 {
    let since = t.saturating_sub(offset);
    since
        .saturating_sub(since.rem_euclid(step))
        .saturating_add(offset)
}

const fn gcd(mut a: i64, mut b: i64) -> i64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A time column as microseconds; nulls stay. Integers are taken as microseconds.
pub fn to_micros(column: &ArrayRef) -> Result<Int64Array> {
    let micros = match column.data_type() {
        DataType::Int64 => return Ok(column.as_primitive::<Int64Type>().clone()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => cast(column, &DataType::Int64),
        DataType::Timestamp(_, zone) => {
            let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
            cast(column, &micros).and_then(|c| cast(&c, &DataType::Int64))
        }
        _ => cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None))
            .and_then(|c| cast(&c, &DataType::Int64)),
    };
    let micros = micros.map_err(|e| {
        EngineError::fail(
            "PR0313",
            "event time",
            format!("a column of type {} is no time", column.data_type()),
        )
        .caused_by(e)
    })?;
    Ok(micros.as_primitive::<Int64Type>().clone())
}

/// Microseconds as a time column of the given type. Finer types overflow to null rather than to a wrong time.
pub fn from_micros(micros: Vec<i64>, to: &DataType) -> Result<ArrayRef> {
    let ints: ArrayRef = std::sync::Arc::new(Int64Array::from(micros));
    if to == &DataType::Int64 {
        return Ok(ints);
    }
    let zone = match to {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    cast(&ints, &DataType::Timestamp(TimeUnit::Microsecond, zone))
        .and_then(|c| cast(&c, to))
        .map_err(|e| {
            EngineError::fail("PR0313", "event time", format!("no time as {to}")).caused_by(e)
        })
}

/// The value, or `None` where it is null.
pub fn time_at(times: &Int64Array, row: usize) -> Option<i64> {
    times.is_valid(row).then(|| times.value(row))
}
