//! How far reading is behind: records, and the time in which they arrived. Pure; ends and positions come in once per epoch at most,
//! and by the clock while no epoch is committed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Settings, Trigger};
use crate::sources::SplitId;

/// Ends of one split that are remembered.
const SAMPLES: usize = 64;

/// One split's lag.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitLag {
    pub source: usize,
    pub split: String,
    pub records: u64,
    /// Age of the oldest record that is not read, at most; estimated where it came before anybody looked.
    pub seconds: f64,
}

/// How long a figure is good for: longer than epochs take that are well, since positions are those of the newest commit.
pub(super) fn look_every(settings: &Settings) -> Duration {
    let interval = match settings.trigger {
        Trigger::ProcessingTime { interval } => interval.max(settings.interval),
        Trigger::Continuous | Trigger::AvailableNow { .. } | Trigger::Once { .. } => {
            settings.interval
        }
    };
    2 * interval + Duration::from_secs(10)
}

/// Remembers when ends were where.
#[derive(Debug, Default)]
pub(super) struct LagMeter {
    ends: BTreeMap<(usize, SplitId), VecDeque<(i64, i64)>>,
}

impl LagMeter {
    /// `position`: the next record to read; `end`: one behind the last that is there.
    pub(super) fn observe(
        &mut self,
        (source, split): (usize, &SplitId),
        now_ms: i64,
        end: i64,
        position: i64,
    ) -> SplitLag {
        let of = self.ends.entry((source, split.clone())).or_default();
        of.push_back((now_ms, end));
        if of.len() > SAMPLES {
            // Half as many reach as far back.
            let mut n = 0;
            of.retain(|_| {
                n += 1;
                n % 2 == 0
            });
        }
        let records = u64::try_from(end.saturating_sub(position)).unwrap_or(0);
        SplitLag {
            source,
            split: split.0.to_string(),
            records,
            seconds: if records == 0 {
                0.0
            } else {
                age_ms(of, now_ms, end, position) / 1000.0
            },
        }
    }
}

fn age_ms(ends: &VecDeque<(i64, i64)>, now_ms: i64, end: i64, position: i64) -> f64 {
    // At that time everything that is unread was still to come.
    if let Some((t, _)) = ends.iter().rev().find(|(_, e)| *e <= position) {
        return (now_ms - t).max(0) as f64;
    }
    let Some((t, first)) = ends.front() else {
        return 0.0;
    };
    let since = (now_ms - t).max(0) as f64;
    let came = (end - first).max(0) as f64;
    if came == 0.0 {
        return since;
    }
    // As fast as what came since somebody looks.
    since.max((end - position) as f64 * since / came)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_the_time_in_which_the_unread_records_came() {
        let split = SplitId("t/0".into());
        let mut meter = LagMeter::default();
        let mut at = |now_ms, end, position| {
            let lag = meter.observe((0, &split), now_ms, end, position);
            (lag.records, lag.seconds)
        };
        assert_eq!(at(0, 100, 100), (0, 0.0));
        assert_eq!(at(1000, 200, 100), (100, 1.0));
        assert_eq!(at(2000, 300, 100), (200, 2.0));
        assert_eq!(at(3000, 400, 250), (150, 2.0));
        assert_eq!(at(4000, 500, 500), (0, 0.0));
    }

    #[test]
    fn what_came_before_anybody_looked_is_estimated_by_what_came_since() {
        let split = SplitId("t/0".into());
        let mut meter = LagMeter::default();
        assert_eq!(meter.observe((0, &split), 0, 1000, 0).seconds, 0.0);
        // 100 a second: 1,100 took 11.
        assert_eq!(meter.observe((0, &split), 1000, 1100, 0).seconds, 11.0);
        for n in 0..1000 {
            meter.observe((0, &split), 2000 + n, 1100, 0);
        }
        assert!(meter.ends[&(0, split)].len() <= SAMPLES);
    }
}
