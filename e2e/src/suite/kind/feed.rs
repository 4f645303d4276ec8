//! The flights of a scenario, a slice at a time. While it disturbs the job its rows come a few at a time, so that each fault falls
//! into a job that reads; what is left of the slice comes at once when the disturbance is over. Order within a partition is that of
//! the input.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kafka::Loader;
use crate::suite::Row;

/// Between two rows: eight a second, so that a slice of 2,500 lasts five minutes.
const PAUSE: Duration = Duration::from_millis(125);

pub struct Feed {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    loader: Loader,
    /// Rows of the slice that are not written yet, by partition.
    left: Vec<VecDeque<Row>>,
    /// The partition whose row comes next.
    turn: usize,
    paused: bool,
    /// Whether a poison row waits, with all that stands behind it.
    sparing: bool,
    over: bool,
    /// Between two rows.
    pause: Duration,
    failed: Option<anyhow::Error>,
}

impl Feed {
    pub fn new(brokers: &str, topic: &str) -> Result<Self> {
        let state = Arc::new(Mutex::new(State {
            loader: Loader::new(brokers, topic)?,
            left: Vec::new(),
            turn: 0,
            paused: false,
            sparing: false,
            over: false,
            pause: PAUSE,
            failed: None,
        }));
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            loop {
                let pause = lock(&shared).pause;
                std::thread::sleep(pause);
                let mut state = lock(&shared);
                if state.over {
                    return;
                }
                if let Err(error) = state.write_one() {
                    state.failed.get_or_insert(error);
                }
            }
        });
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    /// A slice begins to come.
    pub fn begin(&self, slice: Vec<VecDeque<Row>>) {
        let mut state = lock(&self.state);
        state.left = slice;
        state.paused = false;
        state.sparing = false;
    }

    /// No row comes until `resume`, and the broker has all that came.
    pub fn pause(&self) -> Result<()> {
        let mut state = lock(&self.state);
        state.paused = true;
        state.loader.flush()
    }

    /// So many rows come each second from now on.
    pub fn rate(&self, rows: f64) {
        lock(&self.state).pause = Duration::from_secs_f64(1.0 / rows);
    }

    /// Rows of the slice that have not come yet.
    pub fn left(&self) -> usize {
        lock(&self.state).left.iter().map(VecDeque::len).sum()
    }

    pub fn resume(&self) {
        lock(&self.state).paused = false;
    }

    /// Writes what is left of the slice at once, but for the longest run of good rows of one partition that a poison row ends, and
    /// what stands behind it: that run comes a few at a time, and the poison row with the rest of the slice.
    pub fn all_but_a_good_run(&self) -> Result<()> {
        let mut state = lock(&self.state);
        let (held, from) =
            longest_good_run(&state.left).context("no poison row is in this slice")?;
        for partition in 0..state.left.len() {
            let many = match partition == held {
                true => from,
                false => state.left[partition].len(),
            };
            state.write(partition, many)?;
        }
        state.sparing = true;
        state.loader.flush()
    }

    /// Writes what is left of the slice at once. Answers how many rows that were.
    pub fn rest(&self) -> Result<usize> {
        let mut state = lock(&self.state);
        if let Some(error) = state.failed.take() {
            return Err(error.context("rows could not be fed"));
        }
        let left = state.left.iter().map(VecDeque::len).sum();
        for partition in 0..state.left.len() {
            let many = state.left[partition].len();
            state.write(partition, many)?;
        }
        state.loader.flush()?;
        Ok(left)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        lock(&self.state).over = true;
        if let Some(thread) = self.thread.take() {
            // Nothing in it panics that has not been told.
            let _ = thread.join();
        }
    }
}

impl State {
    /// The next row of the partition whose turn it is, or of the next one that has a row to come.
    fn write_one(&mut self) -> Result<()> {
        let partitions = self.left.len();
        for _ in 0..partitions {
            let partition = self.turn % partitions;
            self.turn = partition + 1;
            let next = self.left[partition].front();
            if !self.paused && next.is_some_and(|row| !(self.sparing && row.poison)) {
                return self.write(partition, 1);
            }
        }
        Ok(())
    }

    fn write(&mut self, partition: usize, many: usize) -> Result<()> {
        for row in self.left[partition].drain(..many) {
            self.loader.put(i32::try_from(partition)?, &row.line)?;
        }
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Partition and beginning of the longest run of good rows that a poison row ends.
fn longest_good_run(left: &[VecDeque<Row>]) -> Option<(usize, usize)> {
    let mut longest = None;
    for (partition, rows) in left.iter().enumerate() {
        let mut from = 0;
        for (at, _) in rows.iter().enumerate().filter(|(_, row)| row.poison) {
            longest = longest.max(Some((at - from, partition, from)));
            from = at + 1;
        }
    }
    longest.map(|(_, partition, from)| (partition, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_that_is_held_back_is_the_longest_that_a_poison_row_ends() {
        let rows = |text: &str| -> VecDeque<Row> {
            let each = text.chars().map(|c| Row {
                line: vec![b'x'],
                poison: c == '!',
            });
            each.collect()
        };
        assert_eq!(longest_good_run(&[rows("..."), rows(".....")]), None);
        let left = [rows("..!....!."), rows("...!....."), rows("")];
        assert_eq!(longest_good_run(&left), Some((0, 3)));
    }
}
