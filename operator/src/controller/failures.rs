//! How long an object is left alone that could not be brought forward: twice as long each time, from half a second to five minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;

/// Failures in a row, by uid.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<String, u32>>);

impl Failures {
    /// It failed once more: how long it is left alone.
    pub fn pause(&self, uid: &str) -> Duration {
        let mut all = self.0.lock();
        let count = all.entry(uid.to_owned()).or_default();
        let pause = Duration::from_millis(500 << (*count).min(10)).min(Duration::from_secs(300));
        *count += 1;
        pause
    }

    /// It did not fail, or is gone.
    pub fn end(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// Drops what is kept of others than these.
    pub fn forget(&self, uids: &BTreeSet<&str>) {
        self.0.lock().retain(|uid, _| uids.contains(uid.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_again_and_again_is_left_alone_longer_and_longer() {
        let failures = Failures::default();
        let pauses: Vec<f32> = (0..12).map(|_| failures.pause("a").as_secs_f32()).collect();
        let grows = [
            0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0,
        ];
        assert_eq!(pauses, grows);
        assert_eq!(failures.pause("b").as_secs_f32(), 0.5);
        failures.end("a");
        assert_eq!(failures.pause("a").as_secs_f32(), 0.5);
        failures.forget(&BTreeSet::from(["b"]));
        assert_eq!(failures.0.lock().keys().collect::<Vec<_>>(), ["b"]);
    }
}
