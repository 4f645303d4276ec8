//! How the tasks of one slot spend its thread's time, what goes through them, and what they wait for. Feeds metrics and status alone:
//! no decision of the slot reads it.

use std::time::Duration;

use super::operator::Turn;

/// Time since the slot began, by what a task did with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct TaskTimes {
    /// It ran.
    pub busy: Duration,
    /// It had nothing to take, or waited for its turn on the thread.
    pub idle: Duration,
    /// What it sends to was full.
    pub backpressured: Duration,
}

impl TaskTimes {
    pub fn add(&mut self, other: Self) {
        self.busy += other.busy;
        self.idle += other.idle;
        self.backpressured += other.backpressured;
    }
}

/// What went through a task since the slot began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct TaskFlow {
    pub rows_in: u64,
    pub rows_out: u64,
    /// Between the first of its channels' barriers and the last, in the epoch that ended.
    pub alignment: Duration,
    pub queued: Queued,
}

/// What waited in the channels of a task, summed up over so many looks: a mean is a difference by a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Queued {
    pub looks: u64,
    pub messages: u64,
    /// As they came: what another worker sent may be compressed.
    pub bytes: u64,
}

impl Queued {
    /// A look at all channels of a task.
    pub fn look(&mut self, channels: impl Iterator<Item = (usize, usize)>) {
        self.looks += 1;
        for (messages, bytes) in channels {
            self.messages += messages as u64;
            self.bytes += bytes as u64;
        }
    }
}

/// Measures how long a task's channels wait for the slowest one's barrier, to a turn of the slot.
#[derive(Debug, Default)]
pub struct Alignment {
    since: Option<Duration>,
    took: Duration,
}

impl Alignment {
    /// After a turn that ended at `ended`. `waiting`: a channel has delivered a barrier that another one owes.
    pub fn turn(&mut self, ended: Duration, waiting: bool) {
        match (self.since, waiting) {
            (None, true) => self.since = Some(ended),
            (Some(since), false) => {
                self.took += ended.saturating_sub(since);
                self.since = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Of the epoch that ends. A planned one has two barriers.
    pub fn take(&mut self) -> Duration {
        std::mem::take(&mut self.took)
    }
}

/// Measures one task.
#[derive(Debug, Default)]
pub struct Meter {
    /// End of the last turn, on the clock since boot.
    last: Option<Duration>,
    blocked: bool,
    times: TaskTimes,
}

impl Meter {
    /// A turn from `began` to `ended` came to `turn`. Answers `ended`: the next task begins there.
    pub fn turn(&mut self, began: Duration, ended: Duration, turn: Turn) -> Duration {
        let between = began.saturating_sub(self.last.unwrap_or(began));
        if self.blocked {
            self.times.backpressured += between;
        } else {
            self.times.idle += between;
        }
        self.times.busy += ended.saturating_sub(began);
        self.last = Some(ended);
        self.blocked = turn == Turn::Blocked;
        ended
    }

    pub fn times(&self) -> TaskTimes {
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_between_turns_goes_by_how_the_last_one_ended() {
        let ms = Duration::from_millis;
        let mut meter = Meter::default();
        meter.turn(ms(5), ms(7), Turn::Busy);
        meter.turn(ms(10), ms(11), Turn::Blocked);
        meter.turn(ms(31), ms(31), Turn::Starved);
        assert_eq!(
            meter.turn(ms(35), ms(40), Turn::Busy),
            ms(40),
            "the next task begins where this one ended"
        );
        let expected = TaskTimes {
            busy: ms(2 + 1 + 5),
            idle: ms(3 + 4),
            backpressured: ms(20),
        };
        assert_eq!(meter.times(), expected);
    }

    #[test]
    fn alignment_is_from_the_first_barrier_to_the_last() {
        let ms = Duration::from_millis;
        let mut alignment = Alignment::default();
        alignment.turn(ms(1), false);
        alignment.turn(ms(2), true);
        alignment.turn(ms(5), true);
        alignment.turn(ms(9), false);
        assert_eq!(alignment.take(), ms(7));
        alignment.turn(ms(12), false);
        assert_eq!(
            alignment.take(),
            Duration::ZERO,
            "all barriers came in one turn"
        );
    }

    #[test]
    fn what_waits_is_summed_over_the_channels_of_a_look() {
        let mut queued = Queued::default();
        queued.look([(2, 100), (1, 50)].into_iter());
        queued.look(std::iter::empty());
        let expected = Queued {
            looks: 2,
            messages: 3,
            bytes: 150,
        };
        assert_eq!(queued, expected);
    }
}
