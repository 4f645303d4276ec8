//! A source over records in memory: what `penstock test` reads, and the plainest implementation of the seam. Records are given
//! beforehand or pushed while it runs; each split is a list.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::decode::{BatchAssembler, DecodePlan, Record};
use super::ranges::Ranges;
use super::{
    Discovered, Polled, Position, Source, SourceEnumerator, SourceReader, SplitId, SplitRange,
};
use crate::error::Result;

/// A record of a split.
#[derive(Debug, Clone, Default)]
pub struct MemoryRecord {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub timestamp_ms: Option<i64>,
}

#[derive(Default)]
struct Shared {
    splits: BTreeMap<SplitId, Vec<MemoryRecord>>,
    closed: bool,
    wakers: Vec<Arc<Notify>>,
}

/// Records in memory. Clones share them.
#[derive(Clone)]
pub struct MemorySource {
    plan: DecodePlan,
    shared: Arc<Mutex<Shared>>,
}

impl MemorySource {
    pub fn new(plan: DecodePlan) -> Self {
        Self {
            plan,
            shared: Arc::default(),
        }
    }

    /// Appends records to a split, which exists from then on.
    pub fn push(&self, split: &str, records: impl IntoIterator<Item = MemoryRecord>) {
        let mut shared = self.shared.lock();
        let list = shared.splits.entry(SplitId(split.into())).or_default();
        list.extend(records);
        for waker in &shared.wakers {
            waker.notify_one();
        }
    }

    /// Nothing more will come: the source is bounded.
    pub fn close(&self) {
        let mut shared = self.shared.lock();
        shared.closed = true;
        for waker in &shared.wakers {
            waker.notify_one();
        }
    }
}

impl Source for MemorySource {
    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(MemoryReader {
            assembler: BatchAssembler::new(self.plan.clone())?,
            shared: Arc::clone(&self.shared),
            ranges: Ranges::default(),
        }))
    }

    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>> {
        Ok(Box::new(self.clone()))
    }
}

struct MemoryReader {
    assembler: BatchAssembler,
    shared: Arc<Mutex<Shared>>,
    ranges: Ranges,
}

impl SourceReader for MemoryReader {
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        self.ranges.assign(ranges)
    }

    fn poll(&mut self, max_rows: usize) -> Result<Polled> {
        let shared = self.shared.lock();
        for range in self.ranges.iter_mut() {
            let Some(records) = shared.splits.get(&range.split) else {
                continue;
            };
            while self.assembler.len() < max_rows && !self.assembler.is_full() && !range.done() {
                let Some(record) = usize::try_from(range.next.0)
                    .ok()
                    .and_then(|i| records.get(i))
                else {
                    break;
                };
                self.assembler.push(&Record {
                    split: range.index,
                    offset: range.next.0,
                    place: &range.split.0,
                    partition: 0,
                    timestamp_ms: record.timestamp_ms,
                    key: record.key.as_deref(),
                    value: record.value.as_deref(),
                    headers: &[],
                });
                range.next.0 += 1;
            }
        }
        let ended = shared.closed;
        drop(shared);
        if !self.assembler.is_empty() {
            let batch = self.assembler.finish(self.ranges.ids())?;
            return Ok(Polled::Rows(Box::new(batch)));
        }
        if ended {
            return Ok(Polled::Done);
        }
        Ok(self.ranges.idle())
    }

    fn positions(&self) -> BTreeMap<SplitId, Position> {
        self.ranges.positions()
    }

    fn caught_up(&self) -> Vec<SplitId> {
        let shared = self.shared.lock();
        let end = |split: &SplitId| shared.splits.get(split).map_or(0, |r| r.len() as i64);
        self.ranges
            .iter()
            .filter(|r| r.next.0 >= end(&r.split))
            .map(|r| r.split.clone())
            .collect()
    }

    fn finished(&self) -> Vec<SplitId> {
        self.ranges.finished()
    }

    fn set_waker(&mut self, waker: Arc<Notify>) {
        self.shared.lock().wakers.push(waker);
    }
}

#[async_trait]
impl SourceEnumerator for MemorySource {
    async fn discover(
        &mut self,
        known: &BTreeMap<SplitId, Position>,
        _first: bool,
    ) -> Result<Vec<Discovered>> {
        let shared = self.shared.lock();
        let new = shared.splits.keys().filter(|id| !known.contains_key(*id));
        Ok(new
            .map(|split| Discovered {
                split: split.clone(),
                start: Position(0),
            })
            .collect())
    }

    async fn ends(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let shared = self.shared.lock();
        let end = |id: &SplitId| {
            let records = shared.splits.get(id)?;
            Some((id.clone(), Position(records.len() as i64)))
        };
        Ok(splits.iter().filter_map(end).collect())
    }

    async fn starts(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let shared = self.shared.lock();
        let there = splits.iter().filter(|id| shared.splits.contains_key(*id));
        Ok(there.map(|id| (id.clone(), Position(0))).collect())
    }

    fn bounded(&self) -> bool {
        self.shared.lock().closed
    }

    async fn show_positions(&mut self, _positions: &BTreeMap<SplitId, Position>) {}
}
