//! How the tasks of one slot spend its thread's time. Feeds metrics alone: no decision of the slot reads it.

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
}
