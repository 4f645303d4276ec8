//! `failAbove`: the share of wrong rows over a window of the clock. Pure.

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailAbove {
    pub percent: f64,
    pub window_ms: i64,
    pub min_rows: u64,
}

/// Parts of the window that are counted apart, so that it slides.
const PARTS: i64 = 10;

/// Counts of the running window.
#[derive(Debug)]
pub struct FailRate {
    rule: FailAbove,
    /// (number of the part, rows, wrong rows), oldest first.
    parts: std::collections::VecDeque<(i64, u64, u64)>,
}

impl FailRate {
    pub fn new(rule: FailAbove) -> Self {
        Self { rule, parts: std::collections::VecDeque::new() }
    }

    pub fn add(&mut self, now_ms: i64, rows: u64, wrong: u64) {
        let part = now_ms.div_euclid((self.rule.window_ms / PARTS).max(1));
        match self.parts.back_mut() {
            Some(last) if last.0 == part => {
                last.1 += rows;
                last.2 += wrong;
            }
            _ => self.parts.push_back((part, rows, wrong)),
        }
        while self.parts.front().is_some_and(|p| p.0 <= part - PARTS) {
            self.parts.pop_front();
        }
    }

    /// What to tell the person, when the share is above the limit.
    pub fn verdict(&self) -> Option<String> {
        let rows: u64 = self.parts.iter().map(|p| p.1).sum();
        let wrong: u64 = self.parts.iter().map(|p| p.2).sum();
        if rows < self.rule.min_rows || rows == 0 {
            return None;
        }
        let percent = wrong as f64 * 100.0 / rows as f64;
        (percent > self.rule.percent)
            .then(|| format!("{wrong} of the last {rows} rows are wrong ({percent:.1} %), failAbove allows {} %", self.rule.percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_enough_rows_and_forgets_old_ones() {
        let mut r = FailRate::new(FailAbove { percent: 5.0, window_ms: 1000, min_rows: 100 });
        r.add(0, 50, 50);
        assert_eq!(r.verdict(), None);
        r.add(100, 50, 0);
        assert!(r.verdict().is_some());
        r.add(1100, 200, 10);
        assert_eq!(r.verdict(), None, "5 % is allowed, and the first rows are forgotten");
        r.add(1200, 0, 3);
        assert!(r.verdict().is_some());
    }
}
