//! Markers of exactly-once shards, as the log knows them: when a shard is born, and where its marker stands.

use std::collections::{BTreeMap, BTreeSet};

use penstock_checkpoint::ids::{Nonce, ShardId, SinkName};
use penstock_checkpoint::record::{Kind, SinkBorn};

use super::Coordinator;
use super::stop::Waited;
use crate::error::Result;
use crate::fault;
use crate::member::protocol::{BornMarker, FromMember, Shard, Snapshot, ToMember};
use crate::member::storage;
use crate::planted::{Bug, planted};

impl Coordinator {
    pub(super) fn born(&self) -> BTreeMap<Shard, BornMarker> {
        let shards = self.log.fold().shards();
        let sinks = self.settings.sinks.iter().enumerate();
        sinks
            .filter_map(|(i, (name, _))| Some((i, shards.get(&SinkName::new(name.clone()))?)))
            .flat_map(|(i, of)| {
                of.iter().map(move |(s, b)| {
                    (
                        (i, s.get()),
                        BornMarker {
                            partition: b.partition,
                            nonce: b.nonce,
                        },
                    )
                })
            })
            .collect()
    }

    /// New shards get their initial marker, and the log says so, before their first epoch commits. Markers are written at the
    /// same time, since each needs a producer of its own; the log tells of them in the order of sinks and shards.
    pub(super) async fn bear_shards(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut written: BTreeMap<&SinkName, BTreeSet<ShardId>> = BTreeMap::new();
        for (sink, shards) in snapshot.packs.iter().flat_map(|p| &p.outputs) {
            written.entry(sink).or_default().extend(shards.keys());
        }
        let mut unborn: Vec<(Shard, SinkBorn)> = Vec::new();
        for (sink, shards) in written {
            let names = &self.settings.sinks;
            let Some(index) = names.iter().position(|(name, _)| *name == sink.as_str()) else {
                continue;
            };
            for shard in shards {
                if self.log.fold().shard(sink, shard).is_some() {
                    continue;
                }
                let mut epoch = self.log.fold().newest();
                if planted(Bug::BornAhead) {
                    epoch = self.log.fold().next_epoch();
                }
                let born = SinkBorn {
                    sink: sink.clone(),
                    shard,
                    partition: self.partition(index, shard),
                    epoch,
                    nonce: self.log.nonce(),
                };
                unborn.push(((index, shard.get()), born));
            }
        }
        if planted(Bug::BornFirst) {
            for (_, born) in &unborn {
                self.log_birth(born.clone()).await?;
            }
        }
        let nonces = self.bear(&unborn).await?;
        if planted(Bug::BornFirst) {
            return Ok(());
        }
        for (shard, born) in unborn {
            let nonce = nonces[&shard];
            self.log_birth(SinkBorn { nonce, ..born }).await?;
            fault::point("born.logged");
        }
        Ok(())
    }

    async fn log_birth(&mut self, born: SinkBorn) -> Result<()> {
        let appended = self.log.append(self.generation, Kind::SinkBorn(born)).await;
        appended.map_err(storage)?;
        Ok(())
    }

    /// The partition of the marker topic for a shard. Each sink has a range of its own: where its first shard was logged, else
    /// its place in the order of the manifest, else, where that is taken, after every range that the log knows. Never reused.
    pub(super) fn partition(&self, sink: usize, shard: ShardId) -> i32 {
        let own = i32::from(shard.get());
        let ranges = marker_ranges(self.log.fold());
        let (name, width) = &self.settings.sinks[sink];
        if let Some((_, base, _)) = ranges.iter().find(|(n, ..)| n == name) {
            return base + own;
        }
        let place: i32 = self.settings.sinks[..sink]
            .iter()
            .map(|(_, w)| i32::from(*w))
            .sum();
        let end = place + i32::from(*width);
        let free = ranges
            .iter()
            .all(|(_, base, last)| end <= *base || *last < place);
        let after = ranges
            .iter()
            .map(|(_, _, last)| last + 1)
            .max()
            .unwrap_or(0);
        let whole: i32 = self.settings.sinks.iter().map(|(_, w)| i32::from(*w)).sum();
        own + if free {
            place
        } else {
            after.max(whole) + place
        }
    }

    /// Has the shards' markers written, or found; answers the nonces that they carry.
    async fn bear(&mut self, unborn: &[(Shard, SinkBorn)]) -> Result<BTreeMap<Shard, Nonce>> {
        for (shard, born) in unborn {
            self.tell(ToMember::Bear {
                shard: *shard,
                partition: born.partition,
                epoch: born.epoch,
                nonce: born.nonce,
            });
        }
        let mut nonces = BTreeMap::new();
        let waited = self
            .wait_for_sink(|_, message| {
                if let Some(FromMember::Born { shard, nonce }) = message {
                    nonces.insert(*shard, *nonce);
                }
                unborn.iter().all(|(shard, _)| nonces.contains_key(shard))
            })
            .await?;
        match waited {
            Waited::Came => Ok(nonces),
            Waited::GaveUp => Err(self.overdue()),
        }
    }
}

/// Per sink that has shards in the log: its name, the partition of its shard 0, and the last one that it may use.
fn marker_ranges(fold: &penstock_checkpoint::Fold) -> Vec<(String, i32, i32)> {
    let of = |(name, shards): (
        &SinkName,
        &BTreeMap<ShardId, penstock_checkpoint::fold::BornShard>,
    )| {
        let (shard, born) = shards.iter().next()?;
        let base = born.partition - i32::from(shard.get());
        let last = shards.values().map(|b| b.partition).max().unwrap_or(base);
        Some((name.as_str().to_owned(), base, last))
    };
    fold.shards().iter().filter_map(of).collect()
}

/// Partitions that the marker topic needs for sinks of these many shards in all.
pub fn marker_partitions(fold: &penstock_checkpoint::Fold, shards: i32) -> i32 {
    let after = marker_ranges(fold)
        .iter()
        .map(|(_, _, last)| last + 1)
        .max()
        .unwrap_or(0);
    if after > shards {
        after.max(shards) + shards
    } else {
        shards
    }
}
