//! Workers that all answer the coordinator while one of them does not reach another: a network that is broken between two nodes. Each
//! generation with both would end as the one before, so the next goes without one of them, which is asked again later and later.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::EngineError;
use crate::network::Peer;

/// Two generations that end so within this time are no coincidence.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a worker is gone without at first, and at most.
const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);

/// Of one coordinator. A process that was started again is another one, and nothing is held against it.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    last: Option<Instant>,
    without: BTreeMap<Peer, Without>,
}

#[derive(Debug, Clone, Copy)]
struct Without {
    until: Instant,
    span: Duration,
}

impl Doubts {
    /// A generation of these members has ended by an error. Answers whom the next ones are to go without, if that is new.
    pub(super) fn ended<'a>(
        &mut self,
        by: &EngineError,
        mut members: impl Iterator<Item = &'a Peer>,
        now: Instant,
    ) -> Option<Peer> {
        let named = |peer: &&Peer| by.object == format!("worker {}", peer.id);
        let unreached = *members.find(named).filter(|_| by.code == "PR0320")?;
        self.without.retain(|_, w| now < w.until + MOST);
        let tried = |w: &Without| now >= w.until && now < w.until + AGAIN;
        let again = self.last.is_some_and(|at| now < at + AGAIN);
        let again = again || self.without.values().any(tried);
        self.last = Some(now);
        if !again {
            return None;
        }
        let before = self.without.values().map(|w| w.span).max();
        let span = before.map_or(FIRST, |span| (span * 2).min(MOST));
        let until = now + span;
        self.without.insert(unreached, Without { until, span });
        Some(unreached)
    }

    /// Whether a generation that begins now goes without this one.
    pub(super) fn excludes(&self, worker: Peer, now: Instant) -> bool {
        self.without.get(&worker).is_some_and(|w| now < w.until)
    }
}

#[cfg(test)]
mod tests {
    use penstock_checkpoint::ids::MemberId;

    use super::*;

    fn peer(id: u32) -> Peer {
        Peer {
            id: MemberId::new(id),
            process: 7,
        }
    }

    fn unreached(id: u32) -> EngineError {
        EngineError::retry("PR0320", format!("worker {id}"), "no answer in time")
    }

    #[test]
    fn a_worker_that_another_never_reaches_is_gone_without_for_longer_each_time() {
        let members = [peer(0), peer(1), peer(2)];
        let (mut doubts, began) = (Doubts::default(), Instant::now());
        let at = |s: u64| began + Duration::from_secs(s);
        let mut end = |by, s| doubts.ended(&by, members.iter(), at(s));
        assert_eq!(end(unreached(2), 0), None, "once is no proof");
        assert_eq!(end(unreached(2), 3), Some(peer(2)));
        assert_eq!(end(unreached(1), 15), Some(peer(1)), "it came back at 13");
        assert!(!doubts.excludes(peer(2), at(16)), "one is enough");
        assert!(doubts.excludes(peer(1), at(34)), "twice as long");
        assert!(!doubts.excludes(peer(1), at(35)));
        assert!(!doubts.excludes(peer(0), at(4)));
    }

    #[test]
    fn what_ends_otherwise_or_seldom_excludes_nobody() {
        let members = [peer(0), peer(1)];
        let (mut doubts, began) = (Doubts::default(), Instant::now());
        let at = |s: u64| began + Duration::from_secs(s);
        let mut end = |by, s| doubts.ended(&by, members.iter(), at(s));
        let other = || EngineError::retry("PR0209", "sink visits", "it is away");
        assert_eq!(end(other(), 0), None);
        assert_eq!(end(other(), 1), None);
        assert_eq!(end(unreached(1), 2), None);
        assert_eq!(
            end(unreached(1), 13),
            None,
            "a network may fail twice a day"
        );
        assert_eq!(end(unreached(5), 14), None, "it is no member");
    }
}
