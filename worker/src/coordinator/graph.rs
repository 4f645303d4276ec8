//! What every task of the job does, slot by slot, over the last seconds, and which keys it has most rows of. Feeds metrics and status
//! alone. Pure: counts of commits go in, what changed between two of them comes out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::load::WINDOW;
use crate::task::{Queued, Skew, SlotCounts, TaskFlow, TaskTimes};

/// Commits that are closer together than so many milliseconds count as one.
const APART: i64 = 1000;

/// Below so many rows that were looked at nobody knows what is hot.
const ENOUGH: u64 = 200;
/// Share of an operator's rows from which on a key is named.
const NAMED: f64 = 0.05;

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
    /// As of the newest commit, by uid.
    skews: BTreeMap<String, SkewNow>,
}

/// What an operator has most rows of, each with its share of the rows of the last seconds, at the least.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SkewNow {
    pub key: Option<(String, f64)>,
    pub group: Option<(u16, f64)>,
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
    pub skew: SkewNow,
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
            skews: BTreeMap::new(),
        };
    }

    pub const fn workers(&self) -> usize {
        self.layout.workers.len()
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
        self.skews = skews(counts);
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

    /// The greatest share that one key has of an operator's rows; 0 where none is named.
    pub fn hot_key_share(&self) -> f64 {
        let keys = self.skews.values().filter_map(|s| s.key.as_ref());
        keys.map(|(_, share)| *share).fold(0.0, f64::max)
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
            skew: self.skews.get(uid).cloned().unwrap_or_default(),
        };
        Some(GraphNow {
            seconds,
            layout: self.layout.clone(),
            tasks: self.uids.iter().enumerate().map(task).collect(),
        })
    }
}

/// What each operator has most rows of, over all slots: a key may have come to several of them.
fn skews(counts: &[SlotCounts]) -> BTreeMap<String, SkewNow> {
    let mut by: BTreeMap<&str, Vec<&Skew>> = BTreeMap::new();
    for (uid, skew) in counts.iter().flat_map(|c| &c.skews) {
        by.entry(uid).or_default().push(skew);
    }
    by.into_iter()
        .map(|(uid, slots)| (uid.to_owned(), together(&slots)))
        .collect()
}

fn together(slots: &[&Skew]) -> SkewNow {
    let all: u64 = slots.iter().map(|s| s.rows).sum();
    if all < ENOUGH {
        return SkewNow::default();
    }
    let share = |rows: u64| (rows as f64 / all as f64).min(1.0);
    let mut keys: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    for (hash, rows, text) in slots.iter().flat_map(|s| &s.keys) {
        keys.entry(*hash).or_insert((0, text)).0 += rows;
    }
    let mut groups: BTreeMap<u16, u64> = BTreeMap::new();
    for (group, rows) in slots.iter().flat_map(|s| &s.groups) {
        *groups.entry(*group).or_default() += rows;
    }
    let key = keys.into_values().max_by_key(|(rows, _)| *rows);
    let group = groups.into_iter().max_by_key(|(_, rows)| *rows);
    SkewNow {
        key: key
            .map(|(rows, text)| (text.to_owned(), share(rows)))
            .filter(|(_, share)| *share >= NAMED),
        group: group.map(|(group, rows)| (group, share(rows))),
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

    /// Of an operator that has had so many rows looked at, in one slot.
    fn skew(rows: u64, keys: &[(u64, u64, &str)], groups: &[(u16, u64)]) -> SlotCounts {
        let keys = keys
            .iter()
            .map(|(hash, rows, text)| (*hash, *rows, (*text).to_owned()));
        let skew = Skew {
            rows,
            keys: keys.collect(),
            groups: groups.to_vec(),
        };
        SlotCounts {
            skews: vec![("v/aggregate-0".to_owned(), skew)],
            ..SlotCounts::default()
        }
    }

    #[test]
    fn a_key_that_several_slots_have_is_one_and_few_rows_say_nothing() {
        let slots = [
            skew(600, &[(1, 200, "a"), (2, 150, "b")], &[(4, 300)]),
            skew(400, &[(3, 180, "c"), (2, 100, "b")], &[(9, 350)]),
        ];
        let of = skews(&slots);
        let expected = SkewNow {
            key: Some(("b".to_owned(), 0.25)),
            group: Some((9, 0.35)),
        };
        assert_eq!(of["v/aggregate-0"], expected);
        let few = [skew(199, &[(1, 199, "a")], &[(4, 199)])];
        assert_eq!(skews(&few)["v/aggregate-0"], SkewNow::default());
        let even = [skew(1000, &[(1, 49, "a")], &[(4, 60)])];
        assert_eq!(skews(&even)["v/aggregate-0"].key, None);
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
