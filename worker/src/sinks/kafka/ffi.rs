//! The native calls that put records into a producer's queue and take their reports. `unsafe` is here alone, because rdkafka's
//! own `send` allocates a topic name and looks it up for every record, takes the clock twice and copies the value.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;

use crate::error::EngineError;
use crate::kafka::Logged;
use crate::sinks::staged::{StagedRecord, records};

/// A producer with handles of the topics it writes to. Dropped: handles first, then the producer, then what it borrowed.
pub(super) struct RowProducer {
    topics: Vec<*mut sys::rd_kafka_topic_t>,
    queue: *mut sys::rd_kafka_queue_t,
    pub(super) producer: BaseProducer<Logged>,
    /// Chunks whose values may be in the queue.
    borrowed: Mutex<Vec<Bytes>>,
}

/// The client's partitioner chooses (`RD_KAFKA_PARTITION_UA`).
const UNASSIGNED: i32 = -1;
/// Records given to the client in one call.
const BATCH: usize = 1024;

/// Where records go, the client's flags, and what comes back in their reports.
#[derive(Clone, Copy)]
struct How {
    topic: Topic,
    flags: c_int,
    mark: usize,
}

/// A record that the client did not take, and all behind it.
#[derive(Debug)]
pub(super) enum Refused {
    /// Its queue is full, and who asked does not wait.
    Full,
    Client(RDKafkaErrorCode),
    /// The bytes are no records.
    Broken(EngineError),
}

// SAFETY: librdkafka's handles may be used from any thread, and by many at once.
unsafe impl Send for RowProducer {}
// SAFETY: as above; `topics` is not changed after `new`.
unsafe impl Sync for RowProducer {}

/// Index of a topic given to [`RowProducer::new`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Topic(pub(super) usize);

impl RowProducer {
    /// `None`: a name that no topic can have.
    pub(super) fn new(producer: BaseProducer<Logged>, names: &[&str]) -> Option<Self> {
        // SAFETY: the producer is alive and outlives the reference, which is given back in `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_main(producer.client().native_ptr()) };
        let mut made = Self {
            topics: Vec::new(),
            queue,
            producer,
            borrowed: Mutex::default(),
        };
        for name in names {
            let name = CString::new(*name).ok()?;
            let rk = made.producer.client().native_ptr();
            // SAFETY: the producer is alive; a null config means the default one.
            let topic = unsafe { sys::rd_kafka_topic_new(rk, name.as_ptr(), ptr::null_mut()) };
            if topic.is_null() {
                return None;
            }
            made.topics.push(topic);
        }
        Some(made)
    }

    /// Waits until every record is acknowledged or given up, for at most so long; whether that is so. Unlike rdkafka's own
    /// polls and flush, which spin within the last millisecond and look every 100 ms, this sleeps and wakes with the last
    /// acknowledgement. It also ends the linger time of what is queued.
    pub(super) fn flushed(&self, wait: Duration) -> bool {
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        let borrowed = std::mem::take(&mut *self.borrowed.lock());
        // SAFETY: the producer is alive.
        let code = unsafe { sys::rd_kafka_flush(self.producer.client().native_ptr(), wait) };
        let all = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        if !all {
            self.borrowed.lock().extend(borrowed);
        }
        all
    }

    /// Takes the delivery reports that are there: the mark that the record was put with, and what became of it. Never waits.
    pub(super) fn reports(&self, mut each: impl FnMut(usize, Result<(), RDKafkaErrorCode>)) {
        loop {
            // SAFETY: the queue is ours until `drop`; an event is owned until it is destroyed, and its messages with it.
            unsafe {
                let event = sys::rd_kafka_queue_poll(self.queue, 0);
                if event.is_null() {
                    return;
                }
                match sys::rd_kafka_event_type(event) {
                    sys::RD_KAFKA_EVENT_DR => loop {
                        let message = sys::rd_kafka_event_message_next(event);
                        if message.is_null() {
                            break;
                        }
                        let code = (*message).err;
                        let ok = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
                        let became = if ok { Ok(()) } else { Err(code.into()) };
                        each((*message)._private as usize, became);
                    },
                    sys::RD_KAFKA_EVENT_ERROR => {
                        let code: RDKafkaErrorCode = sys::rd_kafka_event_error(event).into();
                        let reason = CStr::from_ptr(sys::rd_kafka_event_error_string(event));
                        let context = self.producer.context();
                        context.error(KafkaError::Global(code), &reason.to_string_lossy());
                    }
                    _ => {}
                }
                sys::rd_kafka_event_destroy(event);
            }
        }
    }

    /// Queues the records of a chunk in order; their values are borrowed until [`Self::flushed`] says yes. `full` is asked
    /// whether to try again when the queue is full.
    pub(super) fn put_chunk(
        &self,
        topic: Topic,
        chunk: &Bytes,
        mut full: impl FnMut() -> bool,
    ) -> Result<(), Refused> {
        self.borrowed.lock().push(chunk.clone());
        let how = How {
            topic,
            flags: 0,
            mark: 0,
        };
        self.put_all(how, chunk, &mut full)
    }

    /// Queues copies of the records in `data`, as [`Self::put_chunk`]. `mark` comes back in their reports.
    pub(super) fn put_copies(
        &self,
        topic: Topic,
        data: &[u8],
        mark: usize,
        mut full: impl FnMut() -> bool,
    ) -> Result<(), Refused> {
        let flags = sys::RD_KAFKA_MSG_F_COPY as c_int;
        self.put_all(How { topic, flags, mark }, data, &mut full)
    }

    /// Queues a copy of one record.
    pub(super) fn put(
        &self,
        topic: Topic,
        record: &StagedRecord<'_>,
        mut full: impl FnMut() -> bool,
    ) -> Result<(), Refused> {
        let flags = sys::RD_KAFKA_MSG_F_COPY as c_int;
        let how = How {
            topic,
            flags,
            mark: 0,
        };
        self.put_one(how, record, &mut full)
    }

    /// Without `RD_KAFKA_MSG_F_COPY` the caller keeps `data` alive until all is acknowledged or given up.
    fn put_all(
        &self,
        how: How,
        data: &[u8],
        full: &mut impl FnMut() -> bool,
    ) -> Result<(), Refused> {
        let mut batch = Vec::with_capacity(BATCH);
        for record in records(data) {
            let record = record.map_err(Refused::Broken)?;
            // What a batch cannot carry.
            if record.has_headers() || record.timestamp_ms.is_some() {
                self.put_batch(how, &mut batch, full)?;
                self.put_one(how, &record, full)?;
                continue;
            }
            batch.push(native(&record, how.mark));
            if batch.len() == BATCH {
                self.put_batch(how, &mut batch, full)?;
            }
        }
        self.put_batch(how, &mut batch, full)
    }

    /// Queues the messages and empties `batch`.
    fn put_batch(
        &self,
        how: How,
        batch: &mut Vec<sys::rd_kafka_message_t>,
        full: &mut impl FnMut() -> bool,
    ) -> Result<(), Refused> {
        let mut left = &mut batch[..];
        while !left.is_empty() {
            // SAFETY: the topic is the producer's; `left` holds that many messages, whose bytes are alive; keys are copied
            // by the call, values too unless `put_all`'s caller keeps them.
            unsafe {
                sys::rd_kafka_produce_batch(
                    self.topics[how.topic.0],
                    UNASSIGNED,
                    how.flags | sys::RD_KAFKA_MSG_F_PARTITION as c_int,
                    left.as_mut_ptr(),
                    left.len() as c_int,
                )
            };
            let none = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
            let Some(first) = left.iter().position(|m| m.err != none) else {
                break;
            };
            // After the first for which the queue was full none was taken.
            match RDKafkaErrorCode::from(left[first].err) {
                RDKafkaErrorCode::QueueFull if full() => {}
                RDKafkaErrorCode::QueueFull => return Err(Refused::Full),
                code => return Err(Refused::Client(code)),
            }
            left = &mut left[first..];
        }
        batch.clear();
        Ok(())
    }

    /// Queues one record, which may have headers and a time.
    fn put_one(
        &self,
        how: How,
        record: &StagedRecord<'_>,
        full: &mut impl FnMut() -> bool,
    ) -> Result<(), Refused> {
        loop {
            match self.produce(how, record) {
                Ok(()) => return Ok(()),
                Err(RDKafkaErrorCode::QueueFull) if full() => {}
                Err(RDKafkaErrorCode::QueueFull) => return Err(Refused::Full),
                Err(code) => return Err(Refused::Client(code)),
            }
        }
    }

    fn produce(&self, how: How, record: &StagedRecord<'_>) -> Result<(), RDKafkaErrorCode> {
        use sys::rd_kafka_vtype_t as T;
        let rk = self.producer.client().native_ptr();
        let (value, value_len) = part(record.value);
        let (key, key_len) = part(record.key);
        let headers = native_headers(record);
        // SAFETY: every tag is followed by what librdkafka reads for it: pointer and size_t for value and key, an int32,
        // an int64, an int, pointers. Bytes are copied by the call, or kept by `put_all`'s caller.
        let code = unsafe {
            sys::rd_kafka_producev(
                rk,
                T::RD_KAFKA_VTYPE_RKT as c_int,
                self.topics[how.topic.0],
                T::RD_KAFKA_VTYPE_PARTITION as c_int,
                record.partition.unwrap_or(UNASSIGNED),
                T::RD_KAFKA_VTYPE_MSGFLAGS as c_int,
                how.flags,
                T::RD_KAFKA_VTYPE_VALUE as c_int,
                value,
                value_len,
                T::RD_KAFKA_VTYPE_KEY as c_int,
                key,
                key_len,
                T::RD_KAFKA_VTYPE_TIMESTAMP as c_int,
                record.timestamp_ms.unwrap_or(0),
                T::RD_KAFKA_VTYPE_HEADERS as c_int,
                headers,
                T::RD_KAFKA_VTYPE_OPAQUE as c_int,
                how.mark as *mut c_void,
                T::RD_KAFKA_VTYPE_END as c_int,
            )
        };
        if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        if !headers.is_null() {
            // SAFETY: the queue takes the headers only with the record.
            unsafe { sys::rd_kafka_headers_destroy(headers) };
        }
        Err(code.into())
    }
}

/// Pointer and length; a null pointer: there is none.
fn part(bytes: Option<&[u8]>) -> (*const u8, usize) {
    bytes.map_or((ptr::null(), 0), |b| (b.as_ptr(), b.len()))
}

fn native(record: &StagedRecord<'_>, mark: usize) -> sys::rd_kafka_message_t {
    let (value, value_len) = part(record.value);
    let (key, key_len) = part(record.key);
    sys::rd_kafka_message_t {
        err: sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: record.partition.unwrap_or(UNASSIGNED),
        payload: value.cast_mut().cast(),
        len: value_len,
        key: key.cast_mut().cast(),
        key_len,
        offset: 0,
        _private: mark as *mut c_void,
    }
}

/// Null without headers.
fn native_headers(record: &StagedRecord<'_>) -> *mut sys::rd_kafka_headers_t {
    if !record.has_headers() {
        return ptr::null_mut();
    }
    // SAFETY: names and values are copied; the list is the caller's until a record takes it.
    unsafe {
        let list = sys::rd_kafka_headers_new(4);
        for (name, value) in record.headers() {
            sys::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len() as isize,
                value.as_ptr().cast(),
                value.len() as isize,
            );
        }
        list
    }
}

impl Drop for RowProducer {
    fn drop(&mut self) {
        // SAFETY: got in `new`, given back once.
        unsafe { sys::rd_kafka_queue_destroy(self.queue) };
        for topic in self.topics.drain(..) {
            // SAFETY: made in `new`, given back once.
            unsafe { sys::rd_kafka_topic_destroy(topic) };
        }
    }
}
