//! Time as the engine sees it: injected, so that a simulation owns it. Decisions never read a clock; they get `now`.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Wall-clock milliseconds since the epoch, UTC: what records and statuses carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(i64);

impl Millis {
    pub const fn new(ms: i64) -> Self {
        Self(ms)
    }
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// The two clocks the engine needs. Cheap to call; never blocks.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Wall clock.
    fn now(&self) -> Millis;
    /// Since an arbitrary start, suspended time included (CLOCK_BOOTTIME).
    fn boot(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> Millis {
        Millis(chrono::Utc::now().timestamp_millis())
    }

    fn boot(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            t.tv_sec.unsigned_abs(),
            u32::try_from(t.tv_nsec).unwrap_or(0),
        )
    }
}

/// A clock that stands still until it is set: tests own the time.
#[derive(Debug, Default)]
pub struct StandingClock(AtomicI64);

impl StandingClock {
    pub const fn at(now: Millis) -> Self {
        Self(AtomicI64::new(now.0))
    }

    pub fn set(&self, now: Millis) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for StandingClock {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }

    fn boot(&self) -> Duration {
        Duration::ZERO
    }
}
