//! The few calls to librdkafka that its safe binding lacks: consuming a batch from the consumer's queue without a future or an
//! allocation per message.

// The binding polls one message a call; a batch of them, decoded from librdkafka's own buffers, needs its C interface.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaRespErr;
use rdkafka_sys as sys;

/// A message, borrowed from librdkafka for one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// `RD_KAFKA_RESP_ERR_NO_ERROR`, or an event: the end of a partition, an offset out of range.
    pub error: RDKafkaRespErr,
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    raw: &'a sys::rd_kafka_message_t,
}

impl<'a> Message<'a> {
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives as long as `self`.
        let ms = unsafe { sys::rd_kafka_message_timestamp(self.raw, &mut kind) };
        let none = kind == sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        (!none && ms >= 0).then_some(ms)
    }

    pub fn headers(&self, out: &mut Vec<(&'a str, Option<&'a [u8]>)>) {
        out.clear();
        let mut headers = ptr::null_mut();
        // SAFETY: headers belong to the message, names end with a zero, values have the length given; all live as long as it.
        unsafe {
            if sys::rd_kafka_message_headers(self.raw, &mut headers)
                != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                return;
            }
            for i in 0.. {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                let got = sys::rd_kafka_header_get_all(headers, i, &mut name, &mut value, &mut size);
                if got != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return;
                }
                out.push((CStr::from_ptr(name).to_str().unwrap_or("?"), bytes(value, size)));
            }
        }
    }
}

/// SAFETY: `at` is null or points to `len` bytes that live for `'a`.
unsafe fn bytes<'a>(at: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by the caller.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast(), len) })
}

/// A consumer and its queue.
pub(super) struct BatchConsumer {
    queue: *mut sys::rd_kafka_queue_t,
    messages: Vec<*mut sys::rd_kafka_message_t>,
    consumer: BaseConsumer,
}

// SAFETY: librdkafka's handles may be used from any thread; `messages` is empty between calls.
unsafe impl Send for BatchConsumer {}

impl BatchConsumer {
    /// The consumer must have a `group.id`, or it has no queue.
    pub fn new(consumer: BaseConsumer) -> Option<Self> {
        // SAFETY: the client lives as long as `consumer`.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        (!queue.is_null()).then(|| Self {
            queue,
            messages: Vec::new(),
            consumer,
        })
    }

    pub fn consumer(&self) -> &BaseConsumer {
        &self.consumer
    }

    pub fn consumer_mut(&mut self) -> &mut BaseConsumer {
        &mut self.consumer
    }

    /// Gives up to `max` messages that are there now to `each`, in order; how many there were.
    pub fn consume(&mut self, max: usize, mut each: impl FnMut(Message<'_>)) -> usize {
        self.messages.clear();
        self.messages.reserve(max);
        // SAFETY: there is room for `max` pointers, of which the call fills as many as it says; each is ours to destroy,
        // once, and is not used afterwards.
        unsafe {
            let room = self.messages.as_mut_ptr();
            let n = sys::rd_kafka_consume_batch_queue(self.queue, 0, room, max);
            let n = usize::try_from(n).unwrap_or(0);
            self.messages.set_len(n);
            for message in self.messages.drain(..) {
                each(borrow(&*message));
                sys::rd_kafka_message_destroy(message);
            }
            n
        }
    }
}

/// SAFETY: a message of librdkafka that is not destroyed within `'a`.
unsafe fn borrow(raw: &sys::rd_kafka_message_t) -> Message<'_> {
    // SAFETY: by the caller; payload and key are null or have their lengths, a topic's name ends with a zero.
    unsafe {
        let topic = if raw.rkt.is_null() {
            ""
        } else {
            CStr::from_ptr(sys::rd_kafka_topic_name(raw.rkt)).to_str().unwrap_or("")
        };
        Message {
            error: raw.err,
            topic,
            partition: raw.partition,
            offset: raw.offset,
            key: bytes(raw.key, raw.key_len),
            value: bytes(raw.payload, raw.len),
            raw,
        }
    }
}

impl Drop for BatchConsumer {
    fn drop(&mut self) {
        // SAFETY: the queue is a reference of ours; the client is destroyed after it.
        unsafe { sys::rd_kafka_queue_destroy(self.queue) };
    }
}
