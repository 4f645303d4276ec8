//! Who has what of a job, among its members: a pure function of how many there are, the same on every machine and after every restart.

use crate::keys;

/// A member's place among those of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seat {
    pub member: usize,
    pub members: usize,
    /// Slots of each member.
    pub slots: usize,
}

impl Seat {
    pub const fn alone(slots: usize) -> Self {
        Self {
            member: 0,
            members: 1,
            slots,
        }
    }

    /// Slots of the job.
    pub const fn all_slots(self) -> usize {
        self.members * self.slots
    }

    /// Number, among the job's slots, of the member's own one.
    pub const fn slot(self, own: usize) -> usize {
        self.member * self.slots + own
    }

    /// Whose slot it is, and which of that member's.
    pub const fn of_slot(self, slot: usize) -> (usize, usize) {
        (slot / self.slots, slot % self.slots)
    }

    /// The member that has a key group.
    pub const fn of_group(self, group: u16, groups: u16) -> usize {
        self.of_slot(keys::owner(group, groups, self.all_slots())).0
    }

    /// Key groups of one of the job's slots.
    pub fn groups(self, slot: usize, groups: u16) -> std::ops::Range<u16> {
        let first = |slot: usize| {
            (0..groups)
                .find(|g| keys::owner(*g, groups, self.all_slots()) >= slot)
                .unwrap_or(groups)
        };
        first(slot)..first(slot + 1)
    }

    /// Key groups of the member.
    pub fn own_groups(self, groups: u16) -> std::ops::Range<u16> {
        let first = self.groups(self.slot(0), groups).start;
        first..self.groups(self.slot(self.slots - 1), groups).end
    }

    /// The member that publishes a shard. Shards are ranges of key groups, so most rows of a shard are where it is published.
    pub const fn of_shard(self, shard: u16, shards: u16) -> usize {
        keys::owner(shard, shards, self.members)
    }

    /// The slot that reads a split. Partitions `topic/0…` go round the slots; other names by hash.
    pub fn of_split(self, split: &str) -> usize {
        let number = split
            .rsplit_once('/')
            .and_then(|(_, n)| n.parse::<usize>().ok());
        let hash = || usize::try_from(keys::split_hash("", split) >> 1).unwrap_or(0);
        number.unwrap_or_else(hash) % self.all_slots()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(members: usize, slots: usize) -> impl Iterator<Item = Seat> {
        (0..members).map(move |member| Seat {
            member,
            members,
            slots,
        })
    }

    #[test]
    fn every_key_group_shard_and_split_has_one_member() {
        for (members, slots) in [(1, 1), (1, 4), (2, 1), (3, 2), (7, 1), (64, 2)] {
            for groups in [128, 1024] {
                let mut next = 0;
                for seat in seats(members, slots) {
                    let own = seat.own_groups(groups);
                    assert_eq!(own.start, next, "they follow each other");
                    next = own.end;
                    for slot in (0..slots).map(|own| seat.slot(own)) {
                        assert_eq!(seat.of_slot(slot).0, seat.member);
                    }
                    for group in own {
                        assert_eq!(seat.of_group(group, groups), seat.member);
                    }
                }
                assert_eq!(next, groups);
            }
            let any = seats(members, slots).next().unwrap();
            for shards in [1, 4, 16] {
                let owners: Vec<usize> = (0..shards).map(|s| any.of_shard(s, shards)).collect();
                assert!(owners.is_sorted() && owners.iter().all(|o| *o < members));
            }
            let mut read: Vec<usize> = (0..any.all_slots())
                .map(|n| any.of_split(&format!("orders/{n}")))
                .collect();
            read.sort_unstable();
            assert_eq!(read, (0..any.all_slots()).collect::<Vec<_>>());
        }
    }
}
