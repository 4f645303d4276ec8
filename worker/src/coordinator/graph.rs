//! What every task of the job does, slot by slot, over the last seconds. Feeds status alone. Pure: counts of commits go in, what
//! changed between two of them comes out.

use std::collections::VecDeque;
use std::time::Duration;

use super::load::WINDOW;
use crate::task::{Queued, SlotCounts, TaskFlow, TaskTimes};

/// Commits that are closer together than so many milliseconds count as one.
const APART: i64 = 1000;

/// Who takes part in a generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Numbers of the workers, by their places.
    pub workers: Vec<u32>,
    /// Slots of each.
    pub slots: usize,
    pub key_groups: u16,
}

/// What a task had done by a commit.
#[derive(Debug, Clone, Copy, Default)]
struct Task {
    times: TaskTimes,
    flow: TaskFlow,
}

#[derive(Debug, Clone, Default)]
struct Point {
    at_ms: i64,
    /// By slot, then in the order of the slot's tasks. Nothing at all where a generation begins.
    slots: Vec<Vec<Task>>,
}

impl Point {
    fn task(&self, slot: usize, task: usize) -> Task {
        let of = self.slots.get(slot).and_then(|tasks| tasks.get(task));
        of.copied().unwrap_or_default()
    }
}

/// Commits of one generation.
#[derive(Debug, Clone, Default)]
pub struct GraphMeter {
    layout: Layout,
    /// In the order of a slot's tasks.
    uids: Vec<String>,
    points: VecDeque<Point>,
}

/// What the tasks did over the last seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphNow {
    pub seconds: f64,
    pub layout: Layout,
    pub tasks: Vec<TaskNow>,
}

/// A task by its uid.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskNow {
    pub uid: String,
    /// By slot.
    pub subtasks: Vec<SubtaskNow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SubtaskNow {
    /// Since the generation began.
    pub rows_in: u64,
    pub rows_out: u64,
    /// Each second.
    pub rate_in: f64,
    pub rate_out: f64,
    /// Shares of the time, which add up to 1, or to 0 where none has passed.
    pub busy: f64,
    pub backpressured: f64,
    pub idle: f64,
    /// In the newest epoch.
    pub alignment: Duration,
    /// In the mean of all looks.
    pub queued_messages: f64,
    pub queued_bytes: f64,
}

impl GraphMeter {
    /// The slots of a generation have begun.
    pub fn begin(&mut self, layout: Layout, at_ms: i64) {
        *self = Self {
            layout,
            uids: Vec::new(),
            points: VecDeque::from([Point {
                at_ms,
                slots: Vec::new(),
            }]),
        };
    }

    /// Adds a commit; `counts` by slot.
    pub fn add(&mut self, at_ms: i64, counts: &[SlotCounts]) {
        let slot = |counts: &SlotCounts| {
            let tasks = counts.times.iter().zip(&counts.flows);
            tasks
                .map(|((_, times), flow)| Task {
                    times: *times,
                    flow: *flow,
                })
                .collect()
        };
        if let Some(first) = counts.first().filter(|_| self.uids.is_empty()) {
            self.uids = first.times.iter().map(|(uid, _)| uid.clone()).collect();
        }
        let Self { points, .. } = self;
        // The newest stays exact, and those before it are as far apart as they should be.
        let last_two = points
            .len()
            .checked_sub(2)
            .map(|n| points[n + 1].at_ms - points[n].at_ms);
        if last_two.is_some_and(|apart| apart < APART) {
            points.pop_back();
        }
        while points.get(1).is_some_and(|p| at_ms - p.at_ms >= WINDOW) {
            points.pop_front();
        }
        points.push_back(Point {
            at_ms,
            slots: counts.iter().map(slot).collect(),
        });
    }

    /// `None` before the first commit.
    pub fn read(&self) -> Option<GraphNow> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        if last.slots.is_empty() {
            return None;
        }
        let seconds = (last.at_ms - first.at_ms).max(0) as f64 / 1000.0;
        let subtask = |slot: usize, task: usize| {
            between(first.task(slot, task), last.task(slot, task), seconds)
        };
        let task = |(task, uid): (usize, &String)| TaskNow {
            uid: uid.clone(),
            subtasks: (0..last.slots.len())
                .map(|slot| subtask(slot, task))
                .collect(),
        };
        Some(GraphNow {
            seconds,
            layout: self.layout.clone(),
            tasks: self.uids.iter().enumerate().map(task).collect(),
        })
    }
}

/// What a task did from one commit to another.
fn between(first: Task, last: Task, seconds: f64) -> SubtaskNow {
    let rate = |rows: fn(&TaskFlow) -> u64| match seconds > 0.0 {
        true => rows(&last.flow).saturating_sub(rows(&first.flow)) as f64 / seconds,
        false => 0.0,
    };
    let spent = |of: fn(&TaskTimes) -> Duration| {
        of(&last.times)
            .saturating_sub(of(&first.times))
            .as_secs_f64()
    };
    let [busy, backpressured, idle] = [
        spent(|t| t.busy),
        spent(|t| t.backpressured),
        spent(|t| t.idle),
    ];
    let all = busy + backpressured + idle;
    let share = |time: f64| if all > 0.0 { time / all } else { 0.0 };
    let looks = last
        .flow
        .queued
        .looks
        .saturating_sub(first.flow.queued.looks);
    let mean = |of: fn(&Queued) -> u64| {
        of(&last.flow.queued).saturating_sub(of(&first.flow.queued)) as f64 / looks.max(1) as f64
    };
    SubtaskNow {
        rows_in: last.flow.rows_in,
        rows_out: last.flow.rows_out,
        rate_in: rate(|f| f.rows_in),
        rate_out: rate(|f| f.rows_out),
        busy: share(busy),
        backpressured: share(backpressured),
        idle: share(idle),
        alignment: last.flow.alignment,
        queued_messages: mean(|q| q.messages),
        queued_bytes: mean(|q| q.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Counts of a slot with one task, that has had so many rows in as many seconds of which it worked a quarter.
    fn slot(rows: u64) -> SlotCounts {
        let rows32 = u32::try_from(rows).expect("few");
        SlotCounts {
            times: vec![(
                "out/sink-0".to_owned(),
                TaskTimes {
                    busy: S * rows32 / 4,
                    backpressured: S * rows32 / 2,
                    idle: S * rows32 / 4,
                },
            )],
            flows: vec![TaskFlow {
                rows_in: rows,
                rows_out: 2 * rows,
                alignment: Duration::from_millis(rows),
                queued: Queued {
                    looks: rows,
                    messages: 3 * rows,
                    bytes: 100 * rows,
                },
            }],
            ..SlotCounts::default()
        }
    }

    fn layout() -> Layout {
        Layout {
            workers: vec![0, 1],
            slots: 1,
            key_groups: 8,
        }
    }

    #[test]
    fn rates_and_shares_are_of_what_happened_between_two_commits() {
        let mut meter = GraphMeter::default();
        assert_eq!(meter.read(), None);
        meter.begin(layout(), 0);
        assert_eq!(meter.read(), None, "no commit yet");
        meter.add(10_000, &[slot(20), slot(0)]);
        let now = meter.read().expect("a commit");
        assert_eq!((now.seconds, now.tasks.len()), (10.0, 1));
        let [first, second] = now.tasks[0].subtasks[..] else {
            panic!("two slots: {now:?}");
        };
        let expected = SubtaskNow {
            rows_in: 20,
            rows_out: 40,
            rate_in: 2.0,
            rate_out: 4.0,
            busy: 0.25,
            backpressured: 0.5,
            idle: 0.25,
            alignment: Duration::from_millis(20),
            queued_messages: 3.0,
            queued_bytes: 100.0,
        };
        assert_eq!(first, expected);
        assert_eq!(second, SubtaskNow::default());
    }

    #[test]
    fn only_the_last_seconds_count_and_few_commits_are_kept() {
        let mut meter = GraphMeter::default();
        meter.begin(layout(), 0);
        for ms in (100..=60_000).step_by(100) {
            // It begins to read after half a minute.
            let rows = u64::try_from(ms).expect("positive").saturating_sub(30_000) / 100;
            meter.add(ms, &[slot(rows)]);
        }
        let now = meter.read().expect("commits");
        assert_eq!(now.tasks[0].subtasks[0].rate_in, 10.0);
        assert!((15.0..17.0).contains(&now.seconds), "{}", now.seconds);
        assert!(meter.points.len() < 20, "{} points", meter.points.len());
        meter.begin(layout(), 60_000);
        assert_eq!(meter.read(), None, "another generation");
    }
}
