//! Bringing key groups to the epoch that a generation restores: what the volume holds is used if its identity allows, a base
//! replaces what is too old, and the changes after it are read from packs, each pack once, several at a time, and applied in
//! the order of epochs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use penstock_checkpoint::base;
use penstock_checkpoint::ids::{Epoch, KeyGroup, LogId};
use penstock_checkpoint::record::{BaseFile as BaseRefFile, BaseRef, PackRef};
use penstock_checkpoint::recovery::RestorePlan;
use penstock_checkpoint::store::CheckpointStore;
use penstock_checkpoint::transfer;

use super::protocol::Start;
use super::{Member, checksum, storage};
use crate::error::{EngineError, Result};
use crate::planted::{Bug, planted};
use crate::process;
use crate::state::{BaseFile, Instances, Segment};

/// Packs that are read at once. Those read whole are small, so this bounds memory too.
const PACKS: usize = 16;
/// Files of a base that are read at once.
const FILES: usize = 4;

impl Member {
    /// Loads what the volume does not hold.
    pub(super) async fn restore(&self, start: &Start) -> Result<()> {
        let groups: Vec<u16> = self.seat.own_groups(self.key_groups).collect();
        let loader = Loader {
            store: self.store.clone(),
            log: self.log,
            instances: self.state.instances().clone(),
        };
        let own = groups.clone();
        loader
            .load(groups, &start.restore, &start.ancestors)
            .await?;
        self.state.instances().retain(&own).await;
        Ok(())
    }
}

/// Brings instances to an epoch.
pub struct Loader {
    pub store: CheckpointStore,
    pub log: LogId,
    pub instances: Instances,
}

impl Loader {
    /// All of these key groups. What blocks is done where it may, so that others go on meanwhile.
    ///
    /// # Errors
    /// `PR0402` to `PR0406` of the storage, `PR0409` of the disk; what is loaded by then may stay.
    pub async fn load(
        &self,
        groups: Vec<u16>,
        restore: &RestorePlan,
        ancestors: &[(u64, u64)],
    ) -> Result<()> {
        let log = self.log;
        let state = &restore.state;
        let target = state.epoch.get();
        let ancestors = ancestors.to_vec();
        let opened = self
            .instances
            .off(move |instances| {
                instances.open_groups(&groups, &|epoch, sum| {
                    let stands = ancestors
                        .iter()
                        .any(|(from, to)| (*from..=*to).contains(&epoch));
                    sum == checksum(log, epoch) && stands
                })
            })
            .await?;
        // By epoch, then pack: who needs it.
        let mut wanted: BTreeMap<Epoch, BTreeMap<&str, (&PackRef, Vec<KeyGroup>)>> =
            BTreeMap::new();
        for &(group, at) in &opened {
            let Some(chain) = state.chains.get(&KeyGroup::new(group)) else {
                continue;
            };
            if at.is_some() && planted(Bug::HandoverEarly) {
                continue;
            }
            let mut at = at;
            if let Some(base) = &chain.base
                && at.is_none_or(|at| at < base.epoch.get())
            {
                self.fetch_base(group, base).await?;
                at = Some(base.epoch.get());
            }
            for segment in &chain.segments {
                if at.is_some_and(|at| segment.epoch.get() <= at) {
                    continue;
                }
                let pack = state.pack(*segment).ok_or_else(|| {
                    let text = format!("the closure names no pack for epoch {}", segment.epoch);
                    EngineError::invalid("PR0405", format!("key group {group}"), text)
                })?;
                let of = wanted.entry(segment.epoch).or_default();
                of.entry(&pack.path)
                    .or_insert((pack, Vec::new()))
                    .1
                    .push(KeyGroup::new(group));
            }
        }
        let packs: usize = wanted.values().map(BTreeMap::len).sum();
        tracing::debug!(target, packs, groups = opened.len(), "restoring key groups");
        let mut reads = Vec::with_capacity(packs);
        for (epoch, packs) in wanted {
            for (pack, groups) in packs.into_values() {
                reads.push(read(
                    self.store.clone(),
                    log,
                    epoch.get(),
                    pack.clone(),
                    groups,
                ));
            }
        }
        let mut reads = stream::iter(reads).buffered(PACKS);
        while let Some((epoch, segments)) = reads.try_next().await? {
            self.instances
                .off(move |instances| {
                    for (group, bytes) in segments {
                        let segment = Segment::parse(bytes)?;
                        let sum = checksum(log, epoch);
                        instances.load_segments(group.get(), &[segment], epoch, sum)?;
                    }
                    Ok(())
                })
                .await?;
        }
        self.instances
            .off(move |instances| {
                for (group, _) in opened {
                    instances.load_segments(group, &[], target, checksum(log, target))?;
                }
                Ok(())
            })
            .await
    }

    /// Downloads a base's files beside the volume and puts them in the place of the key group's instance.
    async fn fetch_base(&self, group: u16, base: &BaseRef) -> Result<()> {
        // The instance has links to them. It goes also where nobody waits for it any more.
        let folder = Incoming(self.instances.incoming_base(group));
        self.fetch_into(&folder.0, group, base).await
    }

    async fn fetch_into(&self, folder: &Path, group: u16, base: &BaseRef) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| disk(folder, e))?;
        let mut reads = Vec::with_capacity(base.files.len());
        for file in &base.files {
            reads.push(fetch(
                self.store.clone(),
                file.clone(),
                folder.join(&file.name),
            ));
        }
        let files: Vec<BaseFile> = stream::iter(reads).buffered(FILES).try_collect().await?;
        let epoch = base.epoch.get();
        let sum = checksum(self.log, epoch);
        let take = move |instances: &Instances| instances.restore_base(group, &files, epoch, sum);
        self.instances.off(take).await
    }
}

/// A folder of files on their way.
struct Incoming(PathBuf);

impl Drop for Incoming {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(error = %e, folder = %self.0.display(), "it stays on the volume");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// What one pack has of these key groups, with its epoch.
async fn read(
    store: CheckpointStore,
    log: LogId,
    epoch: u64,
    pack: PackRef,
    groups: Vec<KeyGroup>,
) -> Result<(u64, Vec<(KeyGroup, Bytes)>)> {
    let segments = transfer::read_segments(&store, log, &pack, &groups).await;
    Ok((epoch, segments.map_err(storage)?))
}

async fn fetch(store: CheckpointStore, file: BaseRefFile, path: PathBuf) -> Result<BaseFile> {
    let body = store.get(&file.path).await.map_err(|e| storage(e.into()))?;
    let body = body.ok_or_else(|| {
        EngineError::invalid(
            "PR0405",
            store.key(&file.path),
            "the log names it and it is gone",
        )
    })?;
    base::check_file(&file, &body)
        .map_err(|e| EngineError::invalid("PR0404", store.key(&file.path), e.to_string()))?;
    let to = path.clone();
    let written = process::blocking(move || std::fs::write(to, body)).await;
    let written = written.map_err(std::io::Error::other).flatten();
    written.map_err(|e| disk(&path, e))?;
    Ok(BaseFile {
        name: file.name,
        unique: file.id,
        path,
        length: file.length,
        shared: true,
    })
}

fn disk(path: &Path, cause: std::io::Error) -> EngineError {
    EngineError::fail("PR0409", path.display().to_string(), cause.to_string()).caused_by(cause)
}
