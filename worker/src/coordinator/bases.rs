//! When a key group gets a base. A chain of changes that recovery would have to read is bounded: in epochs, and in bytes
//! against the size of what they change. Bases are made a few at a time, so that not all key groups are written at once.

use std::collections::{BTreeMap, BTreeSet};

use penstock_checkpoint::base;
use penstock_checkpoint::closure::{Chain, EpochState};
use penstock_checkpoint::ids::{Epoch, KeyGroup};
use penstock_checkpoint::record::{BaseFile, BaseRef};

/// A chain that spans as many epochs asks for a base, if nothing else is said.
pub const EPOCHS: u64 = 200;
/// A chain of as many bytes does too, however large the key group is.
const MOST_BYTES: u64 = 64 << 20;
/// Below as many bytes only its epochs count.
const LEAST_BYTES: u64 = 1 << 20;
/// Made at once.
const AT_ONCE: usize = 2;

/// Bases under way and those that wait for a commit to name them.
#[derive(Debug)]
pub(super) struct Bases {
    /// A chain that spans as many epochs asks for a base.
    epochs: u64,
    making: BTreeSet<KeyGroup>,
    ready: Vec<BaseRef>,
    /// After a failure: no base before this epoch.
    not_before: u64,
}

/// A base to be made.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub group: KeyGroup,
    /// Files that it may name again.
    pub reuse: Vec<BaseFile>,
}

impl Bases {
    pub(super) fn new(epochs: u64) -> Self {
        Self {
            epochs,
            making: BTreeSet::new(),
            ready: Vec::new(),
            not_before: 0,
        }
    }

    /// The bases to begin now, by the state at the newest commit.
    pub(super) fn begin(&mut self, state: &EpochState) -> Vec<Wanted> {
        let now = state.epoch.get();
        if now < self.not_before || self.making.len() >= AT_ONCE {
            return Vec::new();
        }
        let waits = |group: &KeyGroup| self.ready.iter().any(|b| b.key_group == *group);
        let mut due: Vec<(u64, KeyGroup)> = state
            .chains
            .iter()
            .filter(|(group, _)| !self.making.contains(group) && !waits(group))
            .filter(|(_, chain)| is_due(state, chain, self.epochs))
            .map(|(group, chain)| (oldest(chain), *group))
            .collect();
        // The oldest first: they keep the most packs alive.
        due.sort_unstable();
        due.truncate(AT_ONCE - self.making.len());
        due.into_iter()
            .map(|(_, group)| {
                self.making.insert(group);
                let reuse = base::reusable(state, group)
                    .into_values()
                    .cloned()
                    .collect();
                Wanted { group, reuse }
            })
            .collect()
    }

    /// A base of an instance to which nothing has been applied yet holds nothing: the next commit asks again.
    pub(super) fn made(&mut self, base: BaseRef) {
        self.making.remove(&base.key_group);
        if base.epoch > Epoch::ZERO {
            self.ready.push(base);
        }
    }

    /// Nothing is lost but time: the chain stays as long as it is, and is looked at again some epochs later.
    pub(super) fn failed(&mut self, group: KeyGroup, now: Epoch) {
        self.making.remove(&group);
        self.not_before = now.get() + 20;
    }

    /// Those that the next commit names.
    pub(super) fn take(&mut self) -> Vec<BaseRef> {
        std::mem::take(&mut self.ready)
    }
}

/// The epoch from which on a chain's changes are read.
fn oldest(chain: &Chain) -> u64 {
    chain.segments.first().map_or(u64::MAX, |s| s.epoch.get())
}

fn is_due(state: &EpochState, chain: &Chain, epochs: u64) -> bool {
    if chain.segments.is_empty() {
        return false;
    }
    if state.epoch.get().saturating_sub(oldest(chain)) >= epochs {
        return true;
    }
    // What a pack holds of one of its key groups is about its share; outputs in it make this too much, never too little.
    let bytes: u64 = chain
        .segments
        .iter()
        .filter_map(|s| state.pack(*s))
        .map(|pack| pack.length / pack.key_groups.len().max(1) as u64)
        .sum();
    let whole: BTreeMap<&str, u64> = chain
        .base
        .iter()
        .flat_map(|b| &b.files)
        .map(|f| (f.id.as_str(), f.length))
        .collect();
    let size: u64 = whole.values().sum();
    bytes >= (size / 2).clamp(LEAST_BYTES, MOST_BYTES)
}

#[cfg(test)]
mod tests {
    use penstock_checkpoint::closure::Segment;
    use penstock_checkpoint::record::PackRef;

    use super::*;

    /// Key groups 0 to `groups`, each changed in each of the epochs by `bytes`.
    fn state(groups: u16, epochs: std::ops::RangeInclusive<u64>, bytes: u64) -> EpochState {
        let all: Vec<KeyGroup> = (0..groups).map(KeyGroup::new).collect();
        let mut state = EpochState::empty(Epoch::new(*epochs.end()));
        for epoch in epochs {
            let epoch = Epoch::new(epoch);
            let pack = PackRef {
                path: format!("pack/{epoch}"),
                length: bytes * u64::from(groups),
                index_length: 0,
                crc: 0,
                key_groups: all.clone(),
                outputs: BTreeMap::new(),
                outs: Vec::new(),
                of: None,
            };
            state.packs.insert(epoch, vec![pack]);
            for group in &all {
                let chain = state.chains.entry(*group).or_default();
                chain.segments.push(Segment { epoch, pack: 0 });
            }
        }
        state
    }

    fn base(group: u16, epoch: u64, length: u64) -> BaseRef {
        let file = BaseFile {
            name: "1.sst".to_owned(),
            id: "a-1.sst".to_owned(),
            path: "base/1.sst".to_owned(),
            length,
            crc: 0,
        };
        BaseRef {
            key_group: KeyGroup::new(group),
            epoch: Epoch::new(epoch),
            path: "base/manifest".to_owned(),
            length: 10,
            crc: 0,
            files: vec![file],
            of: None,
        }
    }

    #[test]
    fn a_chain_asks_for_a_base_by_its_epochs_or_its_bytes() {
        let due = |state: &EpochState| is_due(state, &state.chains[&KeyGroup::new(0)], EPOCHS);
        assert!(!due(&state(1, 1..=200, 100)));
        assert!(due(&state(1, 1..=201, 100)));
        assert!(!due(&state(1, 1..=10, 100 << 10)));
        assert!(due(&state(1, 1..=11, 100 << 10)));
        // Against 100 MiB of state, 11 epochs of 100 KiB are little; 64 MiB never are.
        let mut large = state(1, 1..=11, 100 << 10);
        large.chains.get_mut(&KeyGroup::new(0)).unwrap().base = Some(base(0, 0, 100 << 20));
        assert!(!due(&large));
        let mut much = state(1, 1..=16, 4 << 20);
        much.chains.get_mut(&KeyGroup::new(0)).unwrap().base = Some(base(0, 0, 1 << 40));
        assert!(due(&much));
    }

    #[test]
    fn few_are_made_at_once_and_a_commit_names_each_once() {
        let mut bases = Bases::new(EPOCHS);
        let state = state(5, 1..=300, 10);
        let first: Vec<u16> = bases.begin(&state).iter().map(|w| w.group.get()).collect();
        assert_eq!(first, [0, 1]);
        assert_eq!(bases.begin(&state), []);
        bases.made(base(0, 299, 1));
        // Group 0 is still due by the log: its base waits for a commit.
        let next: Vec<u16> = bases.begin(&state).iter().map(|w| w.group.get()).collect();
        assert_eq!(next, [2]);
        assert_eq!(bases.take(), [base(0, 299, 1)]);
        assert_eq!(bases.take(), []);
        bases.made(base(1, 0, 1));
        assert_eq!(bases.take(), [], "it stands before the first epoch");
        bases.failed(KeyGroup::new(1), state.epoch);
        assert_eq!(bases.begin(&state), [], "a failure is followed by a pause");
    }

    #[test]
    fn files_of_the_newest_commit_are_named_again() {
        let mut state = state(1, 1..=300, 10);
        state.chains.get_mut(&KeyGroup::new(0)).unwrap().base = Some(base(0, 0, 7));
        let wanted = Bases::new(EPOCHS).begin(&state);
        assert_eq!(wanted[0].reuse, base(0, 0, 7).files);
    }
}
