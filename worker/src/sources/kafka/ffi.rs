//! The native calls that rdkafka does not wrap: many records of the consumer's queue in one call, borrowed where they lie.
//! `unsafe` is here alone, because a record through rdkafka's own poll costs an event, an `Arc` and a lock each.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ptr;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaMessage};
use rdkafka_sys as sys;

use crate::kafka::Logged;

/// A consumer and its queue. Dropped: the queue first, then the consumer.
pub(super) struct BatchConsumer {
    queue: *mut sys::rd_kafka_queue_t,
    slots: Vec<*mut RDKafkaMessage>,
    pub(super) consumer: BaseConsumer<Logged>,
}

// SAFETY: librdkafka's handles may be used from any thread; `slots` holds nothing between calls.
unsafe impl Send for BatchConsumer {}

/// One record or event, owned; its memory goes back to librdkafka when it is dropped, before its consumer is.
pub(super) struct Native(*mut RDKafkaMessage);

// SAFETY: a message may be read and destroyed from any thread.
unsafe impl Send for Native {}

impl BatchConsumer {
    /// `None`: the client has no consumer queue (it has no `group.id`).
    pub(super) fn new(consumer: BaseConsumer<Logged>) -> Option<Self> {
        // SAFETY: the client lives as long as `self`; the reference to the queue is given back in `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        (!queue.is_null()).then_some(Self {
            queue,
            slots: Vec::new(),
            consumer,
        })
    }

    /// What the queue has now, at most `max`; never waits.
    pub(super) fn take(&mut self, max: usize, out: &mut Vec<Native>) {
        if self.slots.len() < max {
            self.slots.resize(max, ptr::null_mut());
        }
        // SAFETY: `slots` has room for `max` pointers; each that is filled is ours and is wrapped at once.
        let n = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue, 0, self.slots.as_mut_ptr(), max)
        };
        out.extend(
            self.slots[..usize::try_from(n).unwrap_or(0)]
                .iter()
                .map(|m| Native(*m)),
        );
    }
}

impl Drop for BatchConsumer {
    fn drop(&mut self) {
        // SAFETY: got in `new`, given back once.
        unsafe { sys::rd_kafka_queue_destroy(self.queue) };
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_message_destroy(self.0) };
    }
}

impl Native {
    fn message(&self) -> &RDKafkaMessage {
        // SAFETY: not null and alive until `drop`.
        unsafe { &*self.0 }
    }

    /// `None`: a record; else an event.
    pub(super) fn error(&self) -> Option<RDKafkaErrorCode> {
        let err = self.message().err;
        (err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| err.into())
    }

    /// The client's words about an event.
    pub(super) fn error_text(&self) -> String {
        // SAFETY: the string lives in the message, or is static.
        unsafe {
            let text = sys::rd_kafka_message_errstr(self.0);
            if text.is_null() {
                return String::new();
            }
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }

    /// The topic's handle as a number, equal for equal topics of one client while one of their partitions is assigned.
    pub(super) fn topic_handle(&self) -> usize {
        self.message().rkt as usize
    }

    pub(super) fn topic(&self) -> Option<&str> {
        let rkt = self.message().rkt;
        if rkt.is_null() {
            return None;
        }
        // SAFETY: the name lives as long as the topic, which the message holds.
        unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(rkt)) }
            .to_str()
            .ok()
    }

    pub(super) fn partition(&self) -> i32 {
        self.message().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.message().offset
    }

    pub(super) fn payload(&self) -> Option<&[u8]> {
        let m = self.message();
        // SAFETY: librdkafka says `len` bytes at `payload`, alive until `drop`.
        (!m.payload.is_null())
            .then(|| unsafe { std::slice::from_raw_parts(m.payload.cast::<u8>(), m.len) })
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        let m = self.message();
        // SAFETY: as `payload`.
        (!m.key.is_null())
            .then(|| unsafe { std::slice::from_raw_parts(m.key.cast::<u8>(), m.key_len) })
    }

    /// Milliseconds; `None` if the record has none.
    pub(super) fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: plain read of a live message.
        let ms = unsafe { sys::rd_kafka_message_timestamp(self.0, &mut kind) };
        (kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(ms)
    }

    /// Calls `each` with the name and the value of every header, in order.
    pub(super) fn headers(&self, mut each: impl FnMut(&CStr, Option<&[u8]>)) {
        let mut headers = ptr::null_mut();
        // SAFETY: the headers stay the message's; names and values live as long as it.
        unsafe {
            if sys::rd_kafka_message_headers(self.0, &mut headers)
                != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                return;
            }
            for i in 0.. {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                if sys::rd_kafka_header_get_all(headers, i, &mut name, &mut value, &mut size)
                    != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
                {
                    return;
                }
                let value = (!value.is_null())
                    .then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
                each(CStr::from_ptr(name), value);
            }
        }
    }
}
