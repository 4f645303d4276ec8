//! What may be deleted, as a pure decision (rules 6 and 7): closures that no retained, pinned or unfinished epoch restores
//! from, what only those name, log keys oldest first. `collect` says so in the log and then deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::closure::{Closure, objects_of};
use crate::fold::Fold;
use crate::ids::{Epoch, Micros, Seq};
use crate::store::Listed;

/// Neither a log key nor what was never named goes before.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Both hold: an epoch among the newest `epochs`, or younger than `duration`, is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub epochs: u64,
    pub duration: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            epochs: 10,
            duration: DAY,
        }
    }
}

/// The objects that one closure stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// What restoring it needs.
    pub state: BTreeSet<String>,
    /// What commits between the closure before it and it named besides.
    pub passing: BTreeSet<String>,
}

impl Named {
    pub fn of(closure: &Closure) -> Self {
        Self {
            state: closure.state.objects(),
            passing: closure.passing.clone(),
        }
    }
}

/// What may go now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// For a `Drop` record, then for deletion: at once.
    pub files: Vec<String>,
    /// Log records below this one may go, oldest first.
    pub log_below: Option<Seq>,
}

fn before(now: Micros, age: Duration) -> Micros {
    now.plus(-i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
}

/// Why a closure is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// For the epoch that it is of.
    Itself,
    /// Also for epochs between it and the closure that follows: what their commits name is needed too.
    AndAfter,
}

/// The closures to keep, by seq.
pub fn kept(fold: &Fold, retention: Retention, now: Micros) -> BTreeMap<Seq, Kept> {
    let closures = fold.closures();
    let young = before(now, retention.duration);
    let mut keep: BTreeMap<Seq, Kept> = BTreeMap::new();
    let mut add = |seq: Seq, why: Kept| {
        let was = keep.entry(seq).or_insert(why);
        *was = why.max(*was);
    };
    // By age: what it restores is not older than the closure that follows it.
    for (i, c) in closures.iter().enumerate() {
        if closures.get(i + 1).is_none_or(|next| next.time >= young) {
            add(c.seq, Kept::AndAfter);
        }
    }
    // By number, on the branch that the job is on; by pin; unfinished: what a trial may go back to, what is not published.
    let count = usize::try_from(retention.epochs.max(1)).unwrap_or(usize::MAX);
    let mut needed: BTreeSet<Epoch> = fold.ancestors(fold.head()).take(count).collect();
    needed.extend(fold.pins().values().copied());
    needed.insert(fold.head());
    needed.extend(fold.trial().map(|t| t.base));
    needed.extend(fold.to_publish().next().map(|(e, _)| e));
    for epoch in needed {
        let ancestors = closures
            .iter()
            .filter(|c| fold.is_ancestor(c.record.epoch, epoch));
        if let Some(c) = ancestors.max_by_key(|c| (c.record.epoch, c.seq)) {
            add(
                c.seq,
                if c.record.epoch == epoch {
                    Kept::Itself
                } else {
                    Kept::AndAfter
                },
            );
        }
    }
    // The closure that follows says what passed by meanwhile: as long as that is needed, so is it.
    for pair in closures.windows(2) {
        if keep.get(&pair[0].seq) == Some(&Kept::AndAfter) {
            keep.entry(pair[1].seq).or_insert(Kept::Itself);
        }
    }
    keep
}

/// What no kept closure and no commit in memory needs. `named` holds every closure of the log; one that is missing there
/// could not be read, and then nothing goes.
pub fn garbage(
    fold: &Fold,
    named: &BTreeMap<Seq, Named>,
    retention: Retention,
    now: Micros,
) -> Garbage {
    let keep = kept(fold, retention, now);
    let closures = fold.closures();
    if closures.iter().any(|c| !named.contains_key(&c.seq)) {
        return Garbage::default();
    }
    let live = live(fold, named, &keep);
    let mut files: BTreeSet<&String> = BTreeSet::new();
    for c in closures {
        let Named { state, passing } = &named[&c.seq];
        files.extend(state.iter().chain(passing).filter(|o| !live.contains(*o)));
        if !keep.contains_key(&c.seq) {
            files.insert(&c.record.path);
        }
    }
    // A kept closure is found by its record, and replayed from where it ends.
    let oldest = closures
        .iter()
        .filter(|c| keep.contains_key(&c.seq))
        .map(|c| c.seq.min(c.record.through.next()))
        .min();
    Garbage {
        files: files.into_iter().cloned().collect(),
        log_below: oldest,
    }
}

fn live(fold: &Fold, named: &BTreeMap<Seq, Named>, keep: &BTreeMap<Seq, Kept>) -> BTreeSet<String> {
    let mut live: BTreeSet<String> = BTreeSet::new();
    let closures = fold.closures();
    for (i, c) in closures.iter().enumerate() {
        let Some(why) = keep.get(&c.seq) else {
            continue;
        };
        live.insert(c.record.path.clone());
        live.extend(named[&c.seq].state.iter().cloned());
        if let (Kept::AndAfter, Some(next)) = (why, closures.get(i + 1)) {
            live.extend(named[&next.seq].passing.iter().cloned());
        }
    }
    for entry in fold.commits() {
        live.extend(objects_of(&entry.commit));
    }
    live
}

/// What a listing shows that nobody ever named: after a day, since until then it may be on its way into a commit.
pub fn never_named(
    fold: &Fold,
    named: &BTreeMap<Seq, Named>,
    listing: &[Listed],
    now: Micros,
) -> Vec<String> {
    let closures = fold.closures();
    if closures.iter().any(|c| !named.contains_key(&c.seq)) {
        return Vec::new();
    }
    let mut known: BTreeSet<&str> = closures.iter().map(|c| c.record.path.as_str()).collect();
    for n in named.values() {
        known.extend(n.state.iter().chain(&n.passing).map(String::as_str));
    }
    let recent: BTreeSet<String> = fold.commits().flat_map(|e| objects_of(&e.commit)).collect();
    let old = before(now, DAY);
    let ours = |key: &str| {
        ["pack/", "base/", "closure/"]
            .iter()
            .any(|folder| key.starts_with(folder))
    };
    listing
        .iter()
        .filter(|l| {
            ours(&l.key)
                && l.modified < old
                && !known.contains(l.key.as_str())
                && !recent.contains(&l.key)
        })
        .map(|l| l.key.clone())
        .collect()
}

/// The log keys to delete, oldest first, never the last, never one younger than a day by the store's own clock.
pub fn log_keys(listing: &[Listed], below: Seq, now: Micros) -> Vec<Seq> {
    let old = before(now, DAY);
    let mut seqs: Vec<(Seq, Micros)> = listing
        .iter()
        .filter_map(|l| crate::log::record_seq(&l.key).map(|s| (s, l.modified)))
        .collect();
    seqs.sort();
    seqs.pop();
    // Stops at the first that must stay: what is left is always an unbroken end of the log.
    seqs.into_iter()
        .take_while(|(s, modified)| *s < below && *modified < old)
        .map(|(s, _)| s)
        .collect()
}
