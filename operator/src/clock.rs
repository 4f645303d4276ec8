//! The one place that reads the clock; decisions are told the time.

use chrono::{DateTime, Utc};

#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the controller's edge: the only one that reads it"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
