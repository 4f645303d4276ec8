//! How loaded a job is: what came and what was read each second, and for what share of their time slots worked, over the last seconds.
//! Over a single epoch of a fraction of a second these would say nothing.

use std::collections::VecDeque;
use std::time::Duration;

/// Milliseconds over which is measured, and below which nothing is told.
pub(super) const WINDOW: i64 = 15_000;
const LEAST: i64 = 5_000;

/// A commit.
#[derive(Debug, Clone)]
pub struct Point {
    pub at_ms: i64,
    pub generation: u64,
    /// Rows read by then, and those that were not, where that is known.
    pub rows: u64,
    pub lag: Option<u64>,
    /// Of each slot.
    pub worked: Vec<Worked>,
}

/// How long a slot has worked in this generation, and its process by what it may use of the CPU: where a quota is less than its slots
/// could use, it comes to its end before they do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Worked {
    pub slot: Duration,
    pub process: Duration,
}

impl Worked {
    /// The greater of the two.
    fn since(self, before: Self) -> Duration {
        let slot = self.slot.saturating_sub(before.slot);
        slot.max(self.process.saturating_sub(before.process))
    }
}

/// Commits of one generation.
#[derive(Debug, Clone, Default)]
pub struct LoadMeter(VecDeque<Point>);

/// Over the last seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Rows each second.
    pub read: f64,
    pub came: f64,
    /// Shares of the time.
    pub busiest: f64,
    pub busy: f64,
    pub slots: usize,
}

impl LoadMeter {
    pub fn add(&mut self, point: Point) {
        let Self(points) = self;
        let other =
            |p: &Point| p.generation != point.generation || p.worked.len() != point.worked.len();
        if points.back().is_some_and(other) {
            points.clear();
        }
        // The newest that is old enough stays as the first.
        while points
            .get(1)
            .is_some_and(|p| point.at_ms - p.at_ms >= WINDOW)
        {
            points.pop_front();
        }
        points.push_back(point);
    }

    /// `None`: the generation is too young.
    pub fn load(&self) -> Option<Load> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let ms = last.at_ms - first.at_ms;
        if ms < LEAST {
            return None;
        }
        let seconds = ms as f64 / 1000.0;
        let read = last.rows.saturating_sub(first.rows) as f64 / seconds;
        let grown = last.lag.unwrap_or(0) as f64 - first.lag.unwrap_or(0) as f64;
        let shares = first.worked.iter().zip(&last.worked);
        let shares = shares.map(|(a, b)| (b.since(*a).as_secs_f64() / seconds).min(1.0));
        let shares: Vec<f64> = shares.collect();
        Some(Load {
            read,
            came: (read + grown / seconds).max(0.0),
            busiest: shares.iter().copied().fold(0.0, f64::max),
            busy: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
            slots: shares.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worked(seconds: u64) -> Worked {
        Worked {
            slot: Duration::from_secs(seconds),
            process: Duration::ZERO,
        }
    }

    fn point(at_s: i64, rows: u64, lag: u64, busy: [u64; 2]) -> Point {
        Point {
            at_ms: at_s * 1000,
            generation: 1,
            rows,
            lag: Some(lag),
            worked: busy.map(worked).to_vec(),
        }
    }

    #[test]
    fn what_came_is_what_was_read_and_what_the_lag_grew_by() {
        let mut meter = LoadMeter::default();
        meter.add(point(0, 0, 500, [0, 0]));
        meter.add(point(3, 300, 500, [1, 0]));
        assert_eq!(meter.load(), None, "too young");
        meter.add(point(10, 1000, 1500, [10, 4]));
        let load = meter.load().expect("a load");
        assert_eq!((load.read, load.came), (100.0, 200.0));
        assert_eq!((load.busiest, load.busy), (1.0, 0.7));
    }

    #[test]
    fn a_process_at_the_end_of_its_quota_counts_as_busy() {
        let mut meter = LoadMeter::default();
        let process = |s| Worked {
            slot: Duration::from_secs(s / 4),
            process: Duration::from_secs(s),
        };
        for s in [0, 10] {
            meter.add(Point {
                worked: vec![process(s), worked(s / 2)],
                ..point(s as i64, 100 * s, 0, [0, 0])
            });
        }
        let load = meter.load().expect("a load");
        assert_eq!((load.busiest, load.busy), (1.0, 0.75));
    }

    #[test]
    fn only_the_last_seconds_of_one_generation_count() {
        let mut meter = LoadMeter::default();
        for s in 0..100 {
            meter.add(point(
                s,
                if s < 50 { 0 } else { 1000 * s as u64 },
                0,
                [0, 0],
            ));
        }
        assert_eq!(meter.load().expect("a load").read, 1000.0);
        meter.add(Point {
            generation: 2,
            ..point(100, 0, 0, [0, 0])
        });
        assert_eq!(meter.load(), None);
    }
}
