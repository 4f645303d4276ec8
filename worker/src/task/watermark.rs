//! The watermark of one source subtask: the least over its active splits. Pure: rows' times and the clock come in.

use std::collections::BTreeMap;

use crate::message::{EventTime, Progressed};
use crate::sources::SplitId;

/// A source's rule, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatermarkRule {
    pub out_of_orderness: i64,
    /// `None`: a silent split holds the watermark back for ever.
    pub idle_timeout_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Split {
    greatest: Option<i64>,
    idle: bool,
    /// Since when it is at its end, by the task's clock.
    silent_since: Option<i64>,
}

/// Splits of one subtask and what they have brought.
#[derive(Debug)]
pub struct SourceWatermark {
    rule: WatermarkRule,
    splits: BTreeMap<SplitId, Split>,
    said: EventTime,
    said_idle: bool,
}

/// What to tell the consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Nothing,
    Watermark(EventTime),
    Idle,
}

impl SourceWatermark {
    pub fn new(rule: WatermarkRule, restored: EventTime) -> Self {
        Self {
            rule,
            splits: BTreeMap::new(),
            said: restored,
            said_idle: false,
        }
    }

    pub fn adopt(&mut self, split: SplitId, greatest: Option<EventTime>, idle: bool) {
        let state = Split {
            greatest: greatest.map(EventTime::micros),
            idle,
            silent_since: None,
        };
        self.splits.entry(split).or_insert(state);
    }

    /// A split brought rows up to `t`.
    pub fn rows(&mut self, split: &SplitId, t: i64) {
        if let Some(s) = self.splits.get_mut(split) {
            s.greatest = Some(s.greatest.map_or(t, |g| g.max(t)));
            s.idle = false;
            s.silent_since = None;
        }
    }

    /// The task looked: `at_end` are the splits whose position equals their confirmed end. To be called only while the task
    /// is neither blocked nor catching up; `pause` otherwise.
    pub fn look(&mut self, at_end: &[SplitId], now_ms: i64) {
        let Some(timeout) = self.rule.idle_timeout_ms else {
            return;
        };
        for (id, s) in &mut self.splits {
            if !at_end.contains(id) {
                s.silent_since = None;
                continue;
            }
            let since = *s.silent_since.get_or_insert(now_ms);
            s.idle |= now_ms - since >= timeout;
        }
    }

    /// The clock stands still: blocked, or the broker does not answer.
    pub fn pause(&mut self) {
        for s in self.splits.values_mut() {
            s.silent_since = None;
        }
    }

    pub fn state(&self, split: &SplitId) -> (Option<EventTime>, bool) {
        self.splits.get(split).map_or((None, false), |s| {
            (s.greatest.map(EventTime::from_micros), s.idle)
        })
    }

    pub fn progressed(&self) -> Progressed {
        Progressed {
            to: self.said,
            idle: self.said_idle,
        }
    }

    /// The split that holds the watermark back.
    pub fn held_back_by(&self) -> Option<&SplitId> {
        let active = self.splits.iter().filter(|(_, s)| !s.idle);
        active
            .min_by_key(|(_, s)| s.greatest.unwrap_or(i64::MIN))
            .map(|(id, _)| id)
    }

    /// Continuous mode: what changed.
    pub fn say(&mut self) -> Say {
        let active: Vec<&Split> = self.splits.values().filter(|s| !s.idle).collect();
        let below = |g: i64| g.saturating_sub(self.rule.out_of_orderness);
        let (t, idle) = if active.is_empty() {
            (self.splits.values().filter_map(|s| s.greatest).max(), true)
        } else {
            (active.iter().map(|s| s.greatest).min().flatten(), false)
        };
        if let Some(t) = t
            .map(below)
            .map(EventTime::from_micros)
            .filter(|t| *t > self.said)
        {
            self.said = t;
            self.said_idle = false;
            return Say::Watermark(t);
        }
        if idle && !self.said_idle {
            self.said_idle = true;
            return Say::Idle;
        }
        if !idle && self.said_idle {
            // Active again: repeat the watermark, so that receivers count this sender once more.
            self.said_idle = false;
            return Say::Watermark(self.said);
        }
        Say::Nothing
    }

    /// Planned mode: the plan's watermark is in force.
    pub fn force(&mut self, t: EventTime) -> Say {
        if t > self.said {
            self.said = t;
            return Say::Watermark(t);
        }
        Say::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(s: &str) -> SplitId {
        SplitId(s.into())
    }
    fn fresh(idle: Option<i64>) -> SourceWatermark {
        let mut w = SourceWatermark::new(
            WatermarkRule {
                out_of_orderness: 10,
                idle_timeout_ms: idle,
            },
            EventTime::MIN,
        );
        w.adopt(id("a"), None, false);
        w.adopt(id("b"), None, false);
        w
    }
    fn t(us: i64) -> Say {
        Say::Watermark(EventTime::from_micros(us))
    }

    #[test]
    fn a_split_that_has_brought_nothing_holds_it_back() {
        let mut w = fresh(None);
        w.rows(&id("a"), 100);
        assert_eq!(w.say(), Say::Nothing);
        w.rows(&id("b"), 50);
        assert_eq!(w.say(), t(40));
        assert_eq!(w.held_back_by(), Some(&id("b")));
    }

    #[test]
    fn an_idle_split_does_not_count_and_the_clock_stands_still_in_a_pause() {
        let mut w = fresh(Some(1000));
        w.rows(&id("a"), 100);
        w.look(&[id("b")], 0);
        w.pause();
        w.look(&[id("b")], 5000);
        assert_eq!(w.say(), Say::Nothing);
        w.look(&[id("b")], 6000);
        assert_eq!(w.say(), t(90));
    }

    #[test]
    fn all_idle_goes_to_the_greatest_and_stays() {
        let mut w = fresh(Some(1000));
        w.rows(&id("a"), 100);
        w.rows(&id("b"), 50);
        assert_eq!(w.say(), t(40));
        w.look(&[id("a"), id("b")], 0);
        w.look(&[id("a"), id("b")], 1000);
        assert_eq!(w.say(), t(90));
        assert_eq!(w.say(), Say::Idle);
        assert_eq!(w.say(), Say::Nothing);
        w.rows(&id("b"), 60);
        assert_eq!(w.say(), t(90), "active again, and never back");
    }

    #[test]
    fn a_subtask_without_splits_says_idle() {
        let mut w = SourceWatermark::new(
            WatermarkRule {
                out_of_orderness: 0,
                idle_timeout_ms: None,
            },
            EventTime::MIN,
        );
        assert_eq!(w.say(), Say::Idle);
    }
}
