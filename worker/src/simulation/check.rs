//! What must hold at a world's end: the log is one that a reader accepts; each shard's committed rows are those of `pub(log)`,
//! once and in order; the rows of the branch that the job ended on are a plain model's answer.

use std::collections::BTreeMap;

use bytes::Bytes;
use penstock_checkpoint::fold::Fold;
use penstock_checkpoint::ids::{Epoch, LogId, ShardId, SinkName};
use penstock_checkpoint::log::read_all;
use penstock_checkpoint::record::{ClaimKind, Commit, Kind, Record};
use penstock_checkpoint::store::CheckpointStore;
use penstock_checkpoint::{Switches, transfer};

use super::broker::{Message, Topic};
use super::job::{Query, Row, answer, canonical};
use super::world::World;
use crate::coordinator::K;
use crate::sinks::staged::records;

/// A sink's index and a shard's number.
type Shard = (usize, u16);
type Outputs = BTreeMap<Shard, Vec<Message>>;

/// What a world came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Came {
    pub epochs: u64,
    pub generations: u64,
    pub rows: usize,
    /// Files that garbage collection gave up.
    pub dropped: usize,
    /// Times that a person went back.
    pub back: usize,
}

pub(super) async fn check(world: &World, query: Query, input: &[Row]) -> Result<Came, String> {
    let (store, archive) = (world.store(), world.archive());
    let all = read_all(&store)
        .await
        .map_err(|e| format!("the log cannot be read: {e}"))?;
    let (fold, commits) = accepted(&all)?;
    let names: Vec<SinkName> = world
        .job
        .spec
        .spec
        .sinks
        .iter()
        .map(|s| SinkName::new(s.name.clone()))
        .collect();
    let mut outputs: BTreeMap<Epoch, Outputs> = BTreeMap::new();
    for (epoch, commit) in &commits {
        let of = read_outputs(&archive, world.log_id, commit, &names).await?;
        outputs.insert(*epoch, of);
    }
    published(world, &fold, &outputs)?;
    let mut branch: Vec<Epoch> = fold.ancestors(fold.head()).collect();
    branch.reverse();
    let mut rows: Outputs = BTreeMap::new();
    for epoch in branch {
        for (shard, messages) in outputs.get(&epoch).into_iter().flatten() {
            rows.entry(*shard)
                .or_default()
                .extend(messages.iter().cloned());
        }
    }
    let came = Came {
        epochs: fold.newest().get(),
        generations: fold.generation().get(),
        rows: rows.values().map(Vec::len).sum(),
        dropped: all
            .iter()
            .map(|r| match &r.kind {
                Kind::Drop(d) => d.files.len(),
                _ => 0,
            })
            .sum(),
        back: all.iter().filter(|r| goes_back(r)).count(),
    };
    if world.bugs.markers_lost {
        // The job may have stopped anywhere.
        return Ok(came);
    }
    let wanted = answer(query, input);
    for (i, name) in names.iter().enumerate() {
        let of = rows.iter().filter(|((sink, _), _)| *sink == i);
        let messages = of.flat_map(|(_, messages)| messages);
        let got = lines(messages, query.updates());
        let wanted = &wanted[name.as_str()];
        if got != *wanted {
            return Err(format!(
                "sink {name}: the committed rows are not the answer: {}",
                difference(&got, wanted)
            ));
        }
    }
    Ok(came)
}

fn accepted(all: &[Record]) -> Result<(Fold, BTreeMap<Epoch, Commit>), String> {
    let first = all.first().ok_or("the log is empty")?;
    let mut fold = Fold::begin(first, Switches::default()).map_err(|e| e.to_string())?;
    let mut commits = BTreeMap::new();
    let went_back = all.iter().any(goes_back);
    for record in &all[1..] {
        fold.apply(record).map_err(|e| e.to_string())?;
        if let Kind::Epoch(e) = &record.kind
            && let Some(commit) = &e.commit
        {
            let next = commit.epoch.get();
            // Numbers that were planned on a branch that was left are skipped.
            if next > e.done_through.get() + K + 1 && !went_back {
                return Err(format!(
                    "epoch {next} is committed, and only {} is published everywhere",
                    e.done_through
                ));
            }
            commits.insert(commit.epoch, commit.clone());
        }
    }
    Ok((fold, commits))
}

fn goes_back(record: &Record) -> bool {
    matches!(&record.kind, Kind::Claim(c) if c.kind == ClaimKind::GoBack)
}

async fn read_outputs(
    store: &CheckpointStore,
    log: LogId,
    commit: &Commit,
    names: &[SinkName],
) -> Result<Outputs, String> {
    let mut outputs = Outputs::new();
    for pack in commit.packs.iter().filter(|p| !p.outputs.is_empty()) {
        let failed = |e: penstock_checkpoint::log::LogError| {
            format!("the pack of epoch {}: {e}", commit.epoch)
        };
        let index = transfer::read_index(store, log, pack)
            .await
            .map_err(failed)?;
        for (i, name) in names.iter().enumerate() {
            let shards = pack.outputs.get(name).into_iter().flatten();
            for shard in shards.map(|(s, _)| *s).collect::<Vec<ShardId>>() {
                for (_, section) in index.chunks(name, shard) {
                    let bytes = transfer::read_section(store, pack, section)
                        .await
                        .map_err(failed)?;
                    let of = outputs.entry((i, shard.get())).or_default();
                    for record in records(&bytes) {
                        let record = record.map_err(|e| e.to_string())?;
                        of.push(Message {
                            key: record.key.map(Bytes::copy_from_slice),
                            value: record.value.map(Bytes::copy_from_slice),
                        });
                    }
                }
            }
        }
    }
    Ok(outputs)
}

/// Each shard's committed rows against `pub(log)`.
fn published(world: &World, fold: &Fold, outputs: &BTreeMap<Epoch, Outputs>) -> Result<(), String> {
    let mut wanted: Outputs = BTreeMap::new();
    for (_, of) in outputs.iter().filter(|(e, _)| fold.is_publishable(**e)) {
        for (shard, messages) in of {
            let all = wanted.entry(*shard).or_default();
            all.extend(messages.iter().cloned());
        }
    }
    let broker = world.broker.lock();
    for sink in 0..world.job.spec.spec.sinks.len() {
        for shard in broker.partitions(Topic::Rows(sink)) {
            wanted.entry((sink, shard as u16)).or_default();
        }
    }
    for ((sink, shard), wanted) in wanted {
        let of = (Topic::Rows(sink), i32::from(shard));
        let got: Vec<&Message> = broker.committed(of).collect();
        let whole = got.len() >= wanted.len() || !world.bugs.markers_lost;
        let wanted = &wanted[..if whole { wanted.len() } else { got.len() }];
        if got.iter().copied().eq(wanted) {
            continue;
        }
        let text = |m: &Message| format!("{:?}={:?}", m.key, m.value);
        let got: Vec<String> = got.into_iter().map(text).collect();
        let wanted: Vec<String> = wanted.iter().map(text).collect();
        return Err(format!(
            "sink {sink} shard {shard}: what is published is not what the log says: {}",
            difference(&got, &wanted)
        ));
    }
    if broker.open() > 0 {
        return Err("a transaction is open at the end".to_owned());
    }
    Ok(())
}

fn lines<'a>(messages: impl Iterator<Item = &'a Message>, updates: bool) -> Vec<String> {
    let line = |value: &Bytes| match serde_json::from_slice(value) {
        Ok(value) => canonical(&value),
        Err(e) => format!("not JSON ({e}): {value:?}"),
    };
    let mut lines: Vec<String> = if updates {
        let mut newest: BTreeMap<Option<Bytes>, Bytes> = BTreeMap::new();
        for m in messages {
            match &m.value {
                Some(value) => newest.insert(m.key.clone(), value.clone()),
                None => newest.remove(&m.key),
            };
        }
        newest.values().map(line).collect()
    } else {
        let values = messages.filter_map(|m| m.value.as_ref());
        values.map(line).collect()
    };
    lines.sort();
    lines
}

/// What is missing and what is too much, and otherwise the first place out of order.
fn difference(got: &[String], wanted: &[String]) -> String {
    let mut counts: BTreeMap<&String, i64> = BTreeMap::new();
    for line in wanted {
        *counts.entry(line).or_default() += 1;
    }
    for line in got {
        *counts.entry(line).or_default() -= 1;
    }
    let of = |sign: i64| {
        let lines = counts.iter().filter(|(_, n)| **n * sign > 0);
        lines.map(|(l, _)| (*l).clone()).collect::<Vec<_>>()
    };
    let (missing, extra) = (of(1), of(-1));
    if missing.is_empty() && extra.is_empty() {
        let at = got.iter().zip(wanted).position(|(g, w)| g != w);
        return format!("out of order at {at:?} of {}", wanted.len());
    }
    let some = |lines: &[String]| lines[..lines.len().min(4)].join(", ");
    format!(
        "{} missing ({}), {} too many ({})",
        missing.len(),
        some(&missing),
        extra.len(),
        some(&extra)
    )
}
