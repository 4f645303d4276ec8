//! The sink over the broker's model: it does with its requests what the Kafka sink does with the client's, shard by shard.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::broker::{Broker, Lapse, Message, Topic};
use super::wire::Wire;
use crate::error::{EngineError, Result};
use crate::message::Batch;
use crate::planted::{Bug, planted};
use crate::sinks::rows::{RowEncoder, RowPlan};
use crate::sinks::staged::records;
use crate::sinks::{
    DirectSender, Guarantee, Marker, ShardPublisher, Sink, SinkEncoder, StagedRecords,
};

/// Records of a chunk: few, so that epochs have several.
const CHUNK: usize = 3;

#[derive(Clone)]
pub(super) struct BrokerSink {
    pub rows: RowPlan,
    /// Its index among the job's sinks.
    pub sink: usize,
    pub log_id: String,
    pub wire: Wire,
}

#[async_trait]
impl Sink for BrokerSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn shards(&self) -> u16 {
        self.rows.shards
    }

    async fn prepare(&self) -> Result<()> {
        let object = format!("sink {}", self.rows.name);
        self.wire.request(&object, "prepare", |_| Ok(())).await
    }

    fn encoder(&self) -> Result<Box<dyn SinkEncoder>> {
        Ok(Box::new(Chunked {
            inner: self.rows.encoder(),
            whole: Vec::new(),
            open: vec![0; usize::from(self.rows.shards)],
        }))
    }

    fn publisher(&self, shard: u16, partition: i32) -> Result<Box<dyn ShardPublisher>> {
        Ok(Box::new(Publisher {
            id: format!("penstock.{}.{}.{shard}", self.log_id, self.rows.name),
            object: format!("{}/{shard}", self.rows.name),
            rows: (Topic::Rows(self.sink), i32::from(shard)),
            markers: (Topic::Markers, partition),
            wire: self.wire.clone(),
            epoch: None,
        }))
    }

    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        Err(EngineError::fail(
            "PR0209",
            "sink",
            "it sends nothing at once",
        ))
    }
}

/// Cuts what the encoder stages into small chunks.
struct Chunked {
    inner: RowEncoder,
    whole: Vec<StagedRecords>,
    /// Records in the chunk that is open, by shard.
    open: Vec<usize>,
}

impl SinkEncoder for Chunked {
    fn encode(&mut self, batch: &Batch, split: u64, out: &mut [StagedRecords]) -> Result<()> {
        self.whole.clear();
        self.whole.resize(out.len(), StagedRecords::default());
        self.inner.encode(batch, split, &mut self.whole)?;
        for (shard, (whole, out)) in self.whole.iter().zip(out).enumerate() {
            if out.chunk_ends.is_empty() {
                self.open[shard] = 0;
            }
            let open = &mut self.open[shard];
            let mut at = 0;
            while at < whole.data.len() {
                let length = &whole.data[at..at + 4];
                let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
                let end = at + 4 + length as usize;
                out.data.extend_from_slice(&whole.data[at..end]);
                if open.is_multiple_of(CHUNK) {
                    out.chunk_ends.push(out.data.len());
                } else if let Some(last) = out.chunk_ends.last_mut() {
                    *last = out.data.len();
                }
                *open += 1;
                at = end;
            }
            out.rows += whole.rows;
        }
        Ok(())
    }
}

struct Publisher {
    id: String,
    object: String,
    rows: (Topic, i32),
    markers: (Topic, i32),
    wire: Wire,
    /// Of the producer; `None`: closed, or abandoned in doubt.
    epoch: Option<u32>,
}

fn text(marker: Marker) -> Bytes {
    let Marker {
        epoch,
        chunk,
        nonce,
    } = marker;
    Bytes::from(format!("{epoch} {chunk} {nonce}"))
}

fn parse(value: &Bytes) -> Option<Marker> {
    let mut parts = std::str::from_utf8(value).ok()?.split(' ');
    Some(Marker {
        epoch: parts.next()?.parse().ok()?,
        chunk: parts.next()?.parse().ok()?,
        nonce: parts.next()?.parse().ok()?,
    })
}

impl Publisher {
    async fn init(&self) -> Result<u32> {
        let id = self.id.clone();
        self.wire
            .request(&self.object, "init", move |b: &mut Broker| Ok(b.init(&id)))
            .await
    }

    async fn marker(&self) -> Result<Option<Marker>> {
        let (of, key) = (self.markers, self.id.clone());
        self.wire
            .request(&self.object, "read marker", move |b: &mut Broker| {
                let mut found = b
                    .committed(of)
                    .filter(|m| m.key.as_deref() == Some(key.as_bytes()));
                Ok(found.next_back().and_then(|m| parse(m.value.as_ref()?)))
            })
            .await
    }

    async fn produce(&self, epoch: u32, to: (Topic, i32), messages: Vec<Message>) -> Result<()> {
        let id = self.id.clone();
        self.wire
            .request(&self.object, "produce", move |b: &mut Broker| {
                b.produce(&id, epoch, to, messages)
            })
            .await
    }

    async fn commit(&self, epoch: u32) -> Result<()> {
        let id = self.id.clone();
        self.wire
            .request(&self.object, "commit transaction", move |b: &mut Broker| {
                b.commit(&id, epoch)
            })
            .await
    }

    async fn transact(&self, epoch: u32, chunk: &Bytes, marker: Marker) -> Result<()> {
        let mut messages = Vec::new();
        for record in records(chunk) {
            let record = record?;
            messages.push(Message {
                key: record.key.map(Bytes::copy_from_slice),
                value: record.value.map(Bytes::copy_from_slice),
            });
        }
        if !messages.is_empty() {
            self.produce(epoch, self.rows, messages).await?;
        }
        if self.wire.broker.lock().lapse == Some(Lapse::MarkerOutside) {
            self.commit(epoch).await?;
        }
        let message = Message {
            key: Some(Bytes::from(self.id.clone())),
            value: Some(text(marker)),
        };
        self.produce(epoch, self.markers, vec![message]).await?;
        self.commit(epoch).await
    }

    async fn transaction(&mut self, chunk: Bytes, marker: Marker) -> Result<()> {
        let Some(epoch) = self.epoch else {
            return Err(EngineError::retry(
                "PR0209",
                &self.object,
                "the publisher is not open",
            ));
        };
        let outcome = self.transact(epoch, &chunk, marker).await;
        if outcome.is_err() && !planted(Bug::NoPoison) {
            self.epoch = None;
        }
        outcome
    }
}

#[async_trait]
impl ShardPublisher for Publisher {
    async fn open(&mut self) -> Result<Option<Marker>> {
        self.epoch = None;
        if self.wire.broker.lock().lapse == Some(Lapse::ReadBeforeInit) {
            let marker = self.marker().await?;
            self.epoch = Some(self.init().await?);
            return Ok(marker);
        }
        let epoch = self.init().await?;
        let marker = self.marker().await?;
        self.epoch = Some(epoch);
        Ok(marker)
    }

    async fn init_marker(&mut self, marker: Marker) -> Result<()> {
        self.transaction(Bytes::new(), marker).await
    }

    async fn publish(&mut self, records: Bytes, marker: Marker) -> Result<()> {
        self.transaction(records, marker).await
    }

    fn rolling(&mut self) -> Option<&mut dyn crate::sinks::Rolling> {
        None
    }

    fn fences(&self) -> bool {
        true
    }
}

/// A sink without faults, for the contract of sinks.
#[cfg(test)]
pub(super) fn plain(rows: RowPlan, wire: Wire) -> Arc<dyn Sink> {
    Arc::new(BrokerSink {
        rows,
        sink: 0,
        log_id: "0f3c".to_owned(),
        wire,
    })
}
