//! Barrier alignment and watermark minimum over the input channels of one operator. Pure: what arrived goes in, what the
//! operator is to see comes out. Nothing else knows of alignment.

use crate::message::{Barrier, EventTime, Message, Progressed};
use crate::planted::{Bug, planted};

/// What the operator is to see next.
#[derive(Debug)]
pub enum Step {
    Batch(usize, crate::message::Batch),
    /// The minimum over all channels that count rose.
    Watermark(EventTime),
    /// Every channel is idle now.
    Idle,
    /// Every channel has delivered this barrier.
    Barrier(Barrier),
    /// Every channel has ended.
    End,
}

#[derive(Debug, Clone)]
struct Channel {
    port: usize,
    watermark: EventTime,
    idle: bool,
    ended: bool,
    /// Delivered the barrier that the others still owe: nothing is taken from it.
    held: bool,
}

/// State of alignment of one operator.
#[derive(Debug)]
pub struct Align {
    channels: Vec<Channel>,
    watermark: EventTime,
    all_idle: bool,
    barrier: Option<Barrier>,
    end_said: bool,
    pending_end: bool,
}

impl Align {
    /// `ports[c]` is the port that channel `c` feeds; `watermark` is the restored one, which never goes back.
    pub fn new(ports: &[usize], watermark: EventTime) -> Self {
        let channels = ports
            .iter()
            .map(|&port| Channel {
                port,
                watermark,
                idle: false,
                ended: false,
                held: false,
            })
            .collect();
        Self {
            channels,
            watermark,
            all_idle: false,
            barrier: None,
            end_said: false,
            pending_end: false,
        }
    }

    pub fn progressed(&self) -> Progressed {
        Progressed {
            to: self.watermark,
            idle: self.channels.iter().all(|c| c.idle),
        }
    }

    /// Whether a barrier has come that some channel owes.
    pub fn waits(&self) -> bool {
        self.barrier.is_some()
    }

    /// Whether a message may be taken from this channel now.
    pub fn open(&self, channel: usize) -> bool {
        let c = &self.channels[channel];
        !c.held && !c.ended
    }

    /// Takes a message of a channel that is open. A second step may follow from the same message: ask `next`.
    pub fn take(&mut self, channel: usize, message: Message) -> Option<Step> {
        match message {
            Message::Batch(batch) => {
                self.channels[channel].idle = false;
                self.all_idle = false;
                Some(Step::Batch(self.channels[channel].port, batch))
            }
            Message::Watermark(t) => {
                let c = &mut self.channels[channel];
                c.watermark = c.watermark.max(t);
                c.idle = false;
                self.all_idle = false;
                self.advance()
            }
            Message::Idle => {
                self.channels[channel].idle = true;
                self.advance()
            }
            Message::Barrier(barrier) => {
                self.channels[channel].held = true;
                self.barrier = Some(barrier);
                self.aligned()
            }
            Message::End => {
                let c = &mut self.channels[channel];
                c.ended = true;
                c.watermark = EventTime::MAX;
                self.pending_end = self.channels.iter().all(|c| c.ended);
                self.advance().or_else(|| self.aligned())
            }
        }
    }

    /// What else became true by the last message; call until `None`.
    pub fn next(&mut self) -> Option<Step> {
        if let Some(step) = self.aligned() {
            return Some(step);
        }
        if self.pending_end && self.barrier.is_none() && !self.end_said {
            self.end_said = true;
            return Some(Step::End);
        }
        None
    }

    fn aligned(&mut self) -> Option<Step> {
        self.barrier?;
        let owing = self.channels.iter().filter(|c| !c.held && !c.ended).count();
        if owing > usize::from(planted(Bug::SkipsChannel)) {
            return None;
        }
        for c in &mut self.channels {
            c.held = false;
        }
        self.barrier.take().map(Step::Barrier)
    }

    fn advance(&mut self) -> Option<Step> {
        let active = self.channels.iter().filter(|c| !c.idle);
        if let Some(least) = active.map(|c| c.watermark).min() {
            self.all_idle = false;
            if least > self.watermark {
                self.watermark = least;
                return Some(Step::Watermark(least));
            }
            return None;
        }
        // All idle: the greatest watermark seen, and it stays.
        let greatest = self.channels.iter().map(|c| c.watermark).max()?;
        if greatest > self.watermark {
            self.watermark = greatest;
            self.all_idle = false;
            return Some(Step::Watermark(greatest));
        }
        if self.all_idle {
            return None;
        }
        self.all_idle = true;
        Some(Step::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::BarrierKind;

    fn barrier(epoch: u64) -> Message {
        Message::Barrier(Barrier {
            epoch,
            generation: 1,
            kind: BarrierKind::Checkpoint,
            now_ms: 0,
        })
    }
    fn mark(us: i64) -> Message {
        Message::Watermark(EventTime::from_micros(us))
    }
    fn at(step: Option<Step>) -> Option<i64> {
        match step {
            Some(Step::Watermark(t)) => Some(t.micros()),
            _ => None,
        }
    }

    #[test]
    fn the_watermark_is_the_least_of_the_channels_that_count() {
        let mut a = Align::new(&[0, 0], EventTime::MIN);
        assert!(a.take(0, mark(10)).is_none());
        assert_eq!(at(a.take(1, mark(5))), Some(5));
        assert_eq!(at(a.take(1, Message::Idle)), Some(10));
        assert!(
            a.take(1, mark(7)).is_none(),
            "a restored or forwarded watermark never goes back"
        );
        assert_eq!(at(a.take(1, mark(20))), None);
        assert_eq!(at(a.take(0, mark(30))), Some(20));
    }

    #[test]
    fn all_idle_goes_to_the_greatest_and_says_idle_once() {
        let mut a = Align::new(&[0, 1], EventTime::MIN);
        a.take(0, mark(10));
        assert_eq!(at(a.take(1, mark(4))), Some(4));
        assert_eq!(at(a.take(1, Message::Idle)), Some(10));
        assert!(matches!(a.take(0, Message::Idle), Some(Step::Idle)));
        assert!(a.take(0, Message::Idle).is_none());
    }

    #[test]
    fn a_barrier_passes_when_every_channel_has_delivered_it() {
        let mut a = Align::new(&[0, 0, 1], EventTime::MIN);
        assert!(a.take(0, barrier(1)).is_none());
        assert!(!a.open(0) && a.open(1));
        assert!(a.take(1, barrier(1)).is_none());
        assert!(matches!(a.take(2, barrier(1)), Some(Step::Barrier(b)) if b.epoch == 1));
        assert!(a.open(0) && a.open(1) && a.open(2));
    }

    #[test]
    fn an_ended_channel_counts_as_aligned_and_as_infinity() {
        let mut a = Align::new(&[0, 0], EventTime::MIN);
        a.take(0, mark(3));
        assert_eq!(at(a.take(1, Message::End)), Some(3));
        assert!(matches!(a.take(0, barrier(2)), Some(Step::Barrier(_))));
        assert_eq!(at(a.take(0, Message::End)), Some(i64::MAX));
        assert!(matches!(a.next(), Some(Step::End)));
        assert!(a.next().is_none());
    }

    #[test]
    fn an_end_while_a_barrier_waits_completes_it() {
        let mut a = Align::new(&[0, 0], EventTime::MIN);
        assert!(a.take(0, barrier(7)).is_none());
        let first = a.take(1, Message::End);
        assert!(
            matches!(first, Some(Step::Barrier(_))) || matches!(a.next(), Some(Step::Barrier(_)))
        );
    }
}
