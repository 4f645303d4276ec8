//! Time, handed in. The only place of this crate that asks the system for it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ids::Micros;

/// Wall clock and a clock that counts suspended time too (CLOCK_BOOTTIME).
pub trait Clock: Send + Sync {
    fn now(&self) -> Micros;
    fn boottime(&self) -> Duration;
}

#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    fn now(&self) -> Micros {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Micros::new(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn boottime(&self) -> Duration {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = rustix::time::ClockId::Boottime;
        // Elsewhere the monotonic clock counts suspended time already, or nothing does.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = rustix::time::ClockId::Monotonic;
        let t = rustix::time::clock_gettime(id);
        Duration::new(
            u64::try_from(t.tv_sec).unwrap_or(0),
            u32::try_from(t.tv_nsec).unwrap_or(0),
        )
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub struct ManualClock {
    micros: AtomicI64,
    boot_nanos: AtomicU64,
}

impl ManualClock {
    pub fn at(now: Micros) -> Self {
        Self {
            micros: AtomicI64::new(now.get()),
            boot_nanos: AtomicU64::new(0),
        }
    }

    pub fn advance(&self, by: Duration) {
        self.micros.fetch_add(
            i64::try_from(by.as_micros()).unwrap_or(i64::MAX),
            Ordering::SeqCst,
        );
        self.boot_nanos.fetch_add(
            u64::try_from(by.as_nanos()).unwrap_or(u64::MAX),
            Ordering::SeqCst,
        );
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        Micros::new(self.micros.load(Ordering::SeqCst))
    }

    fn boottime(&self) -> Duration {
        Duration::from_nanos(self.boot_nanos.load(Ordering::SeqCst))
    }
}
