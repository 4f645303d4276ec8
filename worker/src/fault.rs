//! Fault points: named steps of the protocol at which a test makes the process die as `kill -9` would. Each name stands in
//! [`POINTS`], so that a suite can tell a point that was never hit. Costs one atomic load where none is armed. What else a test
//! may set in a process that it starts stands here too.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Every named step, in the order of an epoch's life.
pub const POINTS: &[&str] = &[
    "claim.before",
    "claim.after",
    "restore.after",
    "start.committed",
    "plan.before",
    "plan.after",
    "barrier.injected",
    "slot.frozen",
    "pack.before",
    "pack.after",
    "born.marker",
    "born.logged",
    "commit.before",
    "commit.after",
    "apply.before",
    "apply.after",
    "publish.before",
    "publish.chunk",
    "publish.after",
    "done.before",
    "closure.before",
    "closure.after",
    "base.before",
    "base.after",
    "stop.before",
    "stop.after",
];

struct Armed {
    name: String,
    left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads `PENSTOCK_FAULT_POINT` (`name` or `name:count`, the count-th time it is passed).
fn armed() -> Option<&'static Armed> {
    ARMED
        .get_or_init(|| {
            let text = std::env::var("PENSTOCK_FAULT_POINT").ok()?;
            let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Armed {
                name: name.to_owned(),
                left: AtomicU64::new(count.parse().unwrap_or(1)),
            })
        })
        .as_ref()
}

/// `PENSTOCK_BASE_EPOCHS`: how many epochs of changes ask for a base, so that a short test meets bases.
pub fn base_epochs() -> Option<u64> {
    std::env::var("PENSTOCK_BASE_EPOCHS").ok()?.parse().ok()
}

/// `PENSTOCK_PUT_DELAY_MS`: how much longer each write to the checkpoint storage takes, to measure what a distant one costs.
pub fn put_delay() -> Option<Duration> {
    let text = std::env::var("PENSTOCK_PUT_DELAY_MS").ok()?;
    text.parse().ok().map(Duration::from_millis)
}

/// Passes a fault point: the process ends here, without a word, when it is armed.
pub fn point(name: &'static str) {
    debug_assert!(POINTS.contains(&name));
    #[cfg(test)]
    crate::process::simulated::passed(name);
    let Some(armed) = armed().filter(|a| a.name == name) else {
        return;
    };
    if armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        // SIGKILL: no destructor, no flush, as a crash would.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
