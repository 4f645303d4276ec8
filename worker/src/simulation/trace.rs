//! What happened in a world, as a hash that two runs of one seed must share, and as lines for people.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

struct Inner {
    began: Instant,
    hash: u64,
    notes: u64,
    lines: Option<Vec<String>>,
}

/// Clones write the same one.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<Inner>>);

impl Trace {
    /// `told`: lines are kept.
    pub(super) fn new(told: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            began: Instant::now(),
            hash: 0,
            notes: 0,
            lines: told.then(Vec::new),
        })))
    }

    pub(super) fn note(&self, process: u64, what: &str, object: &str, outcome: &str) {
        let mut inner = self.0.lock();
        let at = inner.began.elapsed().as_millis();
        let mut hash = inner.hash;
        for text in [what, object, outcome] {
            hash = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), hash);
        }
        inner.hash = hash ^ (at as u64).rotate_left(17) ^ process;
        inner.notes += 1;
        if let Some(lines) = &mut inner.lines {
            lines.push(format!(
                "{at:>7} ms  process {process}  {what} {object}: {outcome}"
            ));
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.lock().hash
    }

    pub(super) fn notes(&self) -> u64 {
        self.0.lock().notes
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().lines.clone().unwrap_or_default()
    }
}
