//! The one place that reads the clock; decisions are told the time. And whose turn is when, and how long a read may take.

use std::time::Duration;

use chrono::{DateTime, Utc};

#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the controller's edge: the only one that reads it"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// What is read from the API server, if it is there in time: an answer that has begun may never end.
///
/// # Errors
/// As the read's, and when it takes longer.
pub async fn in_time<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    match tokio::time::timeout(limit, read).await {
        Ok(done) => done,
        Err(late) => Err(kube::Error::Service(late.into())),
    }
}

/// Where in an interval a job's turn is, from 0 to 1, by its uid: what is done to all jobs at the same interval is spread over it.
pub fn turn(uid: Option<&str>) -> f64 {
    let hash = xxhash_rust::xxh3::xxh3_64(uid.unwrap_or_default().as_bytes());
    f64::from(hash as u32) / f64::from(u32::MAX)
}
