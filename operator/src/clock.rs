//! The one place that reads the clock; decisions are told the time. And whose turn is when.

use chrono::{DateTime, Utc};

#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the controller's edge: the only one that reads it"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Where in an interval a job's turn is, from 0 to 1, by its uid: what is done to all jobs at the same interval is spread over it.
pub fn turn(uid: Option<&str>) -> f64 {
    let hash = xxhash_rust::xxh3::xxh3_64(uid.unwrap_or_default().as_bytes());
    f64::from(hash as u32) / f64::from(u32::MAX)
}
