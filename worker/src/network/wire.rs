//! A message of the exchange as a frame of Arrow Flight, and back. A frame names its channel, so that many share a stream.
//!
//! ```text
//! app_metadata = from u16 | to u16 | what u8 | …          data_header, data_body = Arrow IPC, of a batch or a schema
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::FlightData;
use arrow_flight::utils::flight_data_to_arrow_batch;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use arrow_ipc::{CompressionType, convert};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{EngineError, Result};
use crate::message::{Barrier, BarrierKind, Batch, EventTime, Lane, Message, RowKind};

/// A channel within the stream of an exchange between two workers.
pub(super) type Pair = (u16, u16);

const BATCH: u8 = 0;
const SCHEMA: u8 = 1;
const WATERMARK: u8 = 2;
const IDLE: u8 = 3;
const BARRIER: u8 = 4;
const END: u8 = 5;

/// Of one channel: what the other end knows already.
pub(super) struct Encoder {
    pair: Pair,
    /// Of the main lane and the late one.
    schemas: [Option<SchemaRef>; 2],
    ipc: IpcDataGenerator,
    options: IpcWriteOptions,
}

impl Encoder {
    /// `compress`: with LZ4, which pays between machines.
    pub(super) fn new(pair: Pair, compress: bool) -> Result<Self> {
        let compression = compress.then_some(CompressionType::LZ4_FRAME);
        let options = IpcWriteOptions::default().try_with_compression(compression);
        Ok(Self {
            pair,
            schemas: [None, None],
            ipc: IpcDataGenerator::default(),
            options: options.map_err(|e| defect("options of the exchange", e))?,
        })
    }

    /// The frames of a message, the last of which takes credit of so many bytes.
    pub(super) fn frames(&mut self, message: &Message) -> Result<(Vec<FlightData>, usize)> {
        let mut frames = Vec::new();
        let mut tag = self.tag(match message {
            Message::Batch(_) => BATCH,
            Message::Watermark(_) => WATERMARK,
            Message::Idle => IDLE,
            Message::Barrier(_) => BARRIER,
            Message::End => END,
        });
        let mut body = FlightData::default();
        match message {
            Message::Batch(batch) => {
                let lane = lane_number(batch.lane);
                self.schema(lane, batch.rows.schema(), &mut frames);
                let mut tracker = DictionaryTracker::new(false);
                let encoded = self
                    .ipc
                    .encode(
                        &batch.rows,
                        &mut tracker,
                        &self.options,
                        &mut Default::default(),
                    )
                    .map_err(|e| defect("a batch for another worker", e))?;
                if !encoded.0.is_empty() {
                    let text = "a batch with dictionaries cannot go to another worker";
                    return Err(EngineError::fail("PR0304", "exchange", text));
                }
                body = encoded.1.into();
                tag.put_u8(lane);
                tag.put_u8(u8::from(batch.kinds.is_some()));
                for kind in batch.kinds.iter().flat_map(|kinds| kinds.iter()) {
                    tag.put_u8(*kind as u8);
                }
            }
            Message::Watermark(t) => tag.put_i64(t.micros()),
            Message::Barrier(barrier) => {
                tag.put_u64(barrier.epoch);
                tag.put_u64(barrier.generation);
                tag.put_u8(barrier_number(barrier.kind));
                tag.put_i64(barrier.now_ms);
            }
            Message::Idle | Message::End => {}
        }
        body.app_metadata = tag.freeze();
        let bytes = credit(&body);
        frames.push(body);
        Ok((frames, bytes))
    }

    fn tag(&self, what: u8) -> BytesMut {
        let mut tag = BytesMut::with_capacity(32);
        tag.put_u16(self.pair.0);
        tag.put_u16(self.pair.1);
        tag.put_u8(what);
        tag
    }

    fn schema(&mut self, lane: u8, schema: SchemaRef, frames: &mut Vec<FlightData>) {
        let known = &mut self.schemas[usize::from(lane)];
        if known
            .as_ref()
            .is_some_and(|k| Arc::ptr_eq(k, &schema) || *k == schema)
        {
            return;
        }
        let mut tracker = DictionaryTracker::new(false);
        let encoded =
            self.ipc
                .schema_to_bytes_with_dictionary_tracker(&schema, &mut tracker, &self.options);
        *known = Some(schema);
        let mut frame: FlightData = encoded.into();
        let mut tag = self.tag(SCHEMA);
        tag.put_u8(lane);
        frame.app_metadata = tag.freeze();
        frames.push(frame);
    }
}

/// What a frame takes of its channel's credit; marks take none.
pub(super) fn credit(frame: &FlightData) -> usize {
    match frame.data_body.len() {
        0 => 0,
        body => body + frame.data_header.len() + frame.app_metadata.len(),
    }
}

/// Reads the frames of one stream.
#[derive(Default)]
pub(super) struct Decoder {
    schemas: HashMap<(Pair, u8), SchemaRef>,
}

impl Decoder {
    /// The message of a frame and its channel; `None` for a schema, which the decoder keeps.
    pub(super) fn message(&mut self, frame: &FlightData) -> Result<(Pair, Option<Message>)> {
        let mut tag = Tag(frame.app_metadata.clone());
        let pair = (tag.take(2, Bytes::get_u16)?, tag.take(2, Bytes::get_u16)?);
        let message = match tag.take(1, Bytes::get_u8)? {
            SCHEMA => {
                let lane = tag.take(1, Bytes::get_u8)?;
                let schema = schema_of(frame)?;
                self.schemas.insert((pair, lane), Arc::new(schema));
                return Ok((pair, None));
            }
            BATCH => {
                let lane = tag.take(1, Bytes::get_u8)?;
                let schema = self.schemas.get(&(pair, lane));
                let schema = schema.ok_or_else(|| broken("a batch came before its schema"))?;
                let rows = flight_data_to_arrow_batch(frame, schema.clone(), &HashMap::new())
                    .map_err(|e| broken("a batch cannot be read").caused_by(e))?;
                let kinds = match tag.take(1, Bytes::get_u8)? {
                    0 => None,
                    _ => Some(tag.kinds(rows.num_rows())?),
                };
                Message::Batch(Batch {
                    rows,
                    kinds,
                    lane: if lane == 0 { Lane::Main } else { Lane::Late },
                })
            }
            WATERMARK => Message::Watermark(EventTime::from_micros(tag.take(8, Bytes::get_i64)?)),
            IDLE => Message::Idle,
            BARRIER => Message::Barrier(Barrier {
                epoch: tag.take(8, Bytes::get_u64)?,
                generation: tag.take(8, Bytes::get_u64)?,
                kind: barrier_kind(tag.take(1, Bytes::get_u8)?)?,
                now_ms: tag.take(8, Bytes::get_i64)?,
            }),
            END => Message::End,
            _ => return Err(broken("a frame is of no known kind")),
        };
        Ok((pair, Some(message)))
    }
}

fn schema_of(frame: &FlightData) -> Result<Schema> {
    let message = arrow_ipc::root_as_message(&frame.data_header)
        .map_err(|e| broken(&format!("a schema cannot be read: {e}")))?;
    let schema = message.header_as_schema();
    schema
        .map(convert::fb_to_schema)
        .ok_or_else(|| broken("a frame should hold a schema"))
}

struct Tag(Bytes);

impl Tag {
    fn take<T>(&mut self, bytes: usize, get: impl Fn(&mut Bytes) -> T) -> Result<T> {
        if self.0.remaining() < bytes {
            return Err(broken("a frame is cut short"));
        }
        Ok(get(&mut self.0))
    }

    fn kinds(&mut self, rows: usize) -> Result<Arc<[RowKind]>> {
        if self.0.remaining() != rows {
            return Err(broken("a batch has not one kind for each row"));
        }
        let kind = |n: &u8| match n {
            0 => Ok(RowKind::Insert),
            1 => Ok(RowKind::UpdateBefore),
            2 => Ok(RowKind::UpdateAfter),
            3 => Ok(RowKind::Delete),
            _ => Err(broken("a row is of no known kind")),
        };
        self.0.iter().map(kind).collect()
    }
}

const fn lane_number(lane: Lane) -> u8 {
    match lane {
        Lane::Main => 0,
        Lane::Late => 1,
    }
}

const fn barrier_number(kind: BarrierKind) -> u8 {
    match kind {
        BarrierKind::Checkpoint => 0,
        BarrierKind::Savepoint => 1,
        BarrierKind::Stop => 2,
        BarrierKind::Handover => 3,
        BarrierKind::Begin => 4,
    }
}

fn barrier_kind(number: u8) -> Result<BarrierKind> {
    Ok(match number {
        0 => BarrierKind::Checkpoint,
        1 => BarrierKind::Savepoint,
        2 => BarrierKind::Stop,
        3 => BarrierKind::Handover,
        4 => BarrierKind::Begin,
        _ => return Err(broken("a barrier is of no known kind")),
    })
}

fn defect(what: &str, e: arrow::error::ArrowError) -> EngineError {
    EngineError::fail("PR0304", what, "it cannot be encoded").caused_by(e)
}

/// Two versions of the engine in one job, or a defect: the generation ends and its members are told.
fn broken(text: &str) -> EngineError {
    EngineError::retry("PR0320", "exchange", text)
}
