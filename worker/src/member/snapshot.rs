//! What an epoch leaves behind: the slots' reports become one snapshot, one pack, and chunks for the shards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use penstock_checkpoint::ids::{KeyGroup, ShardId, SinkName};
use penstock_checkpoint::pack::PackWriter;
use penstock_checkpoint::record::PackRef;
use penstock_checkpoint::store::CheckpointStore;
use penstock_checkpoint::transfer;

use super::protocol::{Shard, Snapshot};
use super::{Chunks, storage};
use crate::error::Result;
use crate::fault;
use crate::message::Barrier;
use crate::planted::{Bug, planted};
use crate::process;
use crate::sinks::{DirectSender, Guarantee, SinkRef, StagedRecords};
use crate::state::FrozenLayer;
use crate::task::SlotReport;

/// Stages late rows for the dead letters, each once: several operators, in several slots, may have judged the same row.
pub(super) fn stage_late(
    sources: &[String],
    sinks: &[(String, SinkRef, Guarantee)],
    reports: &mut [SlotReport],
    epoch: u64,
) -> (u64, Vec<(usize, u16, StagedRecords)>) {
    let mut seen = BTreeSet::new();
    let mut stages: BTreeMap<(usize, u16), StagedRecords> = BTreeMap::new();
    let mut rows = 0;
    for letter in reports.iter_mut().flat_map(|r| r.late.drain(..)) {
        if !seen.insert((letter.source, letter.split.clone(), letter.offset)) {
            continue;
        }
        let source = &sources[letter.source];
        let sink = &sinks[letter.sink].1;
        let hash = crate::keys::split_hash(source, &letter.split.0);
        let shard =
            u16::try_from(hash % u64::from(sink.shards())).expect("the remainder is below a u16");
        sink.stage_record(
            &letter.record(source, epoch),
            stages.entry((letter.sink, shard)).or_default(),
        );
        rows += 1;
    }
    (
        rows,
        stages
            .into_iter()
            .map(|((sink, shard), staged)| (sink, shard, staged))
            .collect(),
    )
}

/// Waits until everything that was sent at once has been acknowledged.
pub(super) async fn settle(mut owing: Vec<Box<dyn DirectSender>>) -> Result<()> {
    for sender in &mut owing {
        while !sender.settled()? {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

/// Writes a pack; answers what a commit says of it, and its size in bytes.
pub(super) async fn upload(
    store: &CheckpointStore,
    mut writer: PackWriter,
    layers: &[Arc<FrozenLayer>],
    outputs: &BTreeMap<Shard, Chunks>,
    sinks: &[SinkName],
) -> Result<(Option<PackRef>, u64)> {
    fault::point("pack.before");
    for layer in layers {
        for group in layer.key_groups() {
            writer.segment_bytes(KeyGroup::new(group), &layer.segment(group)?);
        }
    }
    for ((sink, shard), chunks) in outputs {
        for chunk in chunks {
            writer.chunk_bytes(&sinks[*sink], ShardId::new(*shard), chunk);
        }
    }
    let (objects, pack) = writer.finish();
    let bytes = objects.iter().map(|o| o.body.len() as u64).sum();
    if planted(Bug::CommitBeforeUpload) {
        let store = store.clone();
        process::spawn(async move { transfer::write_pack(&store, objects).await.is_ok() });
        return Ok((pack, bytes));
    }
    transfer::write_pack(store, objects)
        .await
        .map_err(storage)?;
    fault::point("pack.after");
    Ok((pack, bytes))
}

/// Staged bytes as their chunks, without a copy.
pub(super) fn cut(data: Vec<u8>, ends: &[usize]) -> Vec<Bytes> {
    let data = Bytes::from(data);
    let mut from = 0;
    let mut chunks: Vec<Bytes> = ends
        .iter()
        .map(|&end| {
            let chunk = data.slice(from..end);
            from = end;
            chunk
        })
        .collect();
    if from < data.len() {
        chunks.push(data.slice(from..));
    }
    chunks
}

/// The reports of all slots as one.
pub(super) fn merge(barrier: Barrier, reports: Vec<SlotReport>) -> Snapshot {
    let mut snapshot = Snapshot {
        barrier,
        packs: Vec::new(),
        bytes: 0,
        splits: BTreeMap::new(),
        watermarks: BTreeMap::new(),
        counts: Vec::new(),
        rows_out: 0,
    };
    for report in reports {
        for (source, splits) in report.splits {
            snapshot.splits.entry(source).or_default().extend(splits);
        }
        for (uid, at) in report.watermarks {
            let all = snapshot.watermarks.entry(uid).or_insert(at);
            *all = all.with(at);
        }
        snapshot.counts.push(report.counts);
    }
    snapshot
}
