//! The native calls that put records into a producer's queue and take their reports. `unsafe` is here alone, because rdkafka's own `send`
//! allocates a topic name and looks it up for every record.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;

use super::encoder::{Staged, header};
use crate::kafka::Logged;

/// A producer with handles of the topics it writes to. Dropped: handles first, then the producer.
pub(super) struct RowProducer {
    topics: Vec<*mut sys::rd_kafka_topic_t>,
    queue: *mut sys::rd_kafka_queue_t,
    pub(super) producer: BaseProducer<Logged>,
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
        // SAFETY: the producer is alive.
        let code = unsafe { sys::rd_kafka_flush(self.producer.client().native_ptr(), wait) };
        code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
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

    /// Copies the record into the queue; never waits. `QueueFull`: poll, then again. `mark` comes back in its report.
    pub(super) fn put(
        &self,
        topic: Topic,
        record: &Staged<'_>,
        mark: usize,
    ) -> Result<(), RDKafkaErrorCode> {
        use sys::rd_kafka_vtype_t as T;
        let rk = self.producer.client().native_ptr();
        let part = |bytes: Option<&[u8]>| bytes.map_or((ptr::null(), 0), |b| (b.as_ptr(), b.len()));
        let (value, value_len) = part(record.value);
        let (key, key_len) = part(record.key);
        let headers = native_headers(record)?;
        // SAFETY: every tag is followed by what librdkafka reads for it: pointer and size_t for value and key, an int32,
        // an int64, an int, pointers. All borrowed bytes are copied by the call.
        let code = unsafe {
            sys::rd_kafka_producev(
                rk,
                T::RD_KAFKA_VTYPE_RKT as c_int,
                self.topics[topic.0],
                T::RD_KAFKA_VTYPE_PARTITION as c_int,
                record.partition,
                T::RD_KAFKA_VTYPE_MSGFLAGS as c_int,
                sys::RD_KAFKA_MSG_F_COPY as c_int,
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
                mark as *mut c_void,
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

fn native_headers(record: &Staged<'_>) -> Result<*mut sys::rd_kafka_headers_t, RDKafkaErrorCode> {
    if record.headers == 0 {
        return Ok(ptr::null_mut());
    }
    // SAFETY: names and values are copied; the list is ours until a record takes it.
    unsafe {
        let list = sys::rd_kafka_headers_new(usize::from(record.headers));
        let mut bytes = record.header_bytes;
        for _ in 0..record.headers {
            let Some((name, value)) = header(&mut bytes) else {
                sys::rd_kafka_headers_destroy(list);
                return Err(RDKafkaErrorCode::InvalidArgument);
            };
            sys::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len() as isize,
                value.as_ptr().cast(),
                value.len() as isize,
            );
        }
        Ok(list)
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
