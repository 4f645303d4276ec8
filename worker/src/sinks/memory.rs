//! A sink in memory: what `penstock test` compares with, and the plainest implementation of the seam. It fences as a broker
//! does: opening a shard's publisher makes the older ones fail.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::rows::RowPlan;
use super::staged::records;
use super::{
    DirectSender, Guarantee, Marker, Record, ShardPublisher, Sink, SinkEncoder, StagedRecords,
};
use crate::error::{EngineError, ErrorKind, Result};

#[derive(Default)]
struct Shard {
    /// Opens so far; the newest publisher has this number.
    opened: u64,
    marker: Option<Marker>,
}

#[derive(Default)]
struct Target {
    shards: BTreeMap<u16, Shard>,
    /// With the epoch that each was published in; 0 for what was sent at once.
    records: Vec<(u64, Record)>,
}

/// A sink in memory. Clones share the target.
#[derive(Clone)]
pub struct MemorySink {
    rows: RowPlan,
    target: Arc<Mutex<Target>>,
}

impl MemorySink {
    pub fn new(rows: RowPlan) -> Self {
        Self {
            rows,
            target: Arc::default(),
        }
    }

    /// What was published or sent, in order.
    pub fn records(&self) -> Vec<Record> {
        let target = self.target.lock();
        target.records.iter().map(|(_, r)| r.clone()).collect()
    }

    /// What was published after the first `from` records, in order, each with its epoch.
    pub fn published(&self, from: usize) -> Vec<(u64, Record)> {
        let target = self.target.lock();
        target.records.iter().skip(from).cloned().collect()
    }
}

fn copy(chunk: &[u8], epoch: u64, into: &mut Vec<(u64, Record)>) -> Result<()> {
    for record in records(chunk) {
        let record = record?;
        let record = Record {
            key: record.key.map(Bytes::copy_from_slice),
            value: record.value.map(Bytes::copy_from_slice),
            headers: record
                .headers()
                .map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value)))
                .collect(),
            timestamp_ms: record.timestamp_ms,
        };
        into.push((epoch, record));
    }
    Ok(())
}

#[async_trait]
impl Sink for MemorySink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn shards(&self) -> u16 {
        self.rows.shards
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    fn encoder(&self) -> Result<Box<dyn SinkEncoder>> {
        Ok(Box::new(self.rows.encoder()))
    }

    fn publisher(&self, shard: u16, _partition: i32) -> Result<Box<dyn ShardPublisher>> {
        Ok(Box::new(Publisher {
            sink: self.clone(),
            shard,
            opened: 0,
        }))
    }

    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        Ok(Box::new(self.clone()))
    }
}

struct Publisher {
    sink: MemorySink,
    shard: u16,
    opened: u64,
}

impl Publisher {
    fn own(&self, opened: u64) -> Result<()> {
        if opened == self.opened && opened > 0 {
            return Ok(());
        }
        let object = format!("sink {} shard {}", self.sink.rows.name, self.shard);
        Err(EngineError::new(
            ErrorKind::Fenced,
            "PR0401",
            object,
            "a newer publisher was opened",
        ))
    }
}

#[async_trait]
impl ShardPublisher for Publisher {
    async fn open(&mut self) -> Result<Option<Marker>> {
        let mut target = self.sink.target.lock();
        let shard = target.shards.entry(self.shard).or_default();
        shard.opened += 1;
        self.opened = shard.opened;
        Ok(shard.marker)
    }

    async fn init_marker(&mut self, marker: Marker) -> Result<()> {
        let mut target = self.sink.target.lock();
        let shard = target.shards.entry(self.shard).or_default();
        self.own(shard.opened)?;
        shard.marker = Some(marker);
        Ok(())
    }

    async fn publish(&mut self, records: Bytes, marker: Marker) -> Result<()> {
        let mut new = Vec::new();
        copy(&records, marker.epoch, &mut new)?;
        let mut target = self.sink.target.lock();
        let shard = target.shards.entry(self.shard).or_default();
        self.own(shard.opened)?;
        shard.marker = Some(marker);
        target.records.extend(new);
        Ok(())
    }

    fn rolling(&mut self) -> Option<&mut dyn crate::sinks::Rolling> {
        None
    }

    fn fences(&self) -> bool {
        true
    }
}

impl DirectSender for MemorySink {
    fn send(&mut self, records: &StagedRecords) -> Result<()> {
        copy(&records.data, 0, &mut self.target.lock().records)
    }

    fn seal(&mut self) -> Result<()> {
        Ok(())
    }

    fn settled(&mut self) -> Result<bool> {
        Ok(true)
    }
}
