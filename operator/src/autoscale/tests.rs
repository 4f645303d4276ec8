//! Traces through a model of a job: what comes, what its workers can do, what a change costs. Each prints how long it was behind its
//! target, its worker-hours against the least fixed number that would have kept the target, and its decisions.

use super::*;

/// A job as the autoscaler sees it.
struct Model {
    /// Rows that come in the second of this time.
    load: fn(f64) -> f64,
    /// Rows a second of one worker.
    rate: f64,
    parts: u32,
    /// Seconds without reading at a change.
    change: f64,
    /// Rows a second that the sinks take.
    sink: f64,
    /// Share of all rows that are one key's.
    hot: f64,
    /// Share of its time that a worker which reads next to nothing works.
    idle: f64,
    /// Seconds in which nothing is heard.
    deaf: std::ops::Range<f64>,
    /// Rows that wait at the beginning.
    backlog: f64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            load: |_| 0.0,
            rate: 1_000.0,
            parts: 64,
            change: 3.0,
            sink: f64::INFINITY,
            hot: 0.0,
            idle: 0.0,
            deaf: 0.0..0.0,
            backlog: 0.0,
        }
    }
}

const POLL: f64 = 15.0;
const LIMITS: Limits = Limits {
    least: 1,
    most: 16,
    target_lag: Duration::from_secs(30),
    parts: 64,
    change_takes: Duration::from_secs(3),
};

/// What became of a trace.
#[derive(Debug, Default)]
struct Ran {
    /// Seconds in which the lag was above the target.
    behind: f64,
    worker_hours: f64,
    steps: Vec<(f64, u32, Reason)>,
    reasons: Vec<Reason>,
    workers: u32,
    lag_seconds: f64,
}

impl Ran {
    fn said(&self, reason: Reason) -> bool {
        self.reasons.contains(&reason)
    }
}

fn at(seconds: f64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis((seconds * 1e3) as i64).unwrap()
}

impl Model {
    /// Share of all rows that the hottest of so many workers has.
    fn share(&self, workers: u32) -> f64 {
        let even = f64::from(self.parts.div_ceil(workers)) / f64::from(self.parts);
        self.hot + (1.0 - self.hot) * even
    }

    /// What so many workers do in a second.
    fn capacity(&self, workers: u32) -> f64 {
        (self.rate / self.share(workers)).min(self.sink)
    }

    /// `fixed`: so many workers all the time.
    fn run(&self, hours: f64, start: u32, fixed: bool) -> Ran {
        let (mut ran, mut samples, mut steps) = (Ran::default(), Vec::new(), Vec::new());
        let mut workers = start;
        let (mut lag, mut read, mut came) = (self.backlog, 0.0, 0.0);
        let mut stands_until = 0.0;
        let mut second = 0.0;
        while second < hours * 3600.0 {
            let new = (self.load)(second).max(0.0);
            lag += new;
            came += new;
            let can = match second < stands_until {
                true => 0.0,
                false => self.capacity(workers),
            };
            let done = lag.min(can);
            lag -= done;
            read += done;
            let lag_seconds = lag / new.max(1.0);
            ran.behind += f64::from(u8::from(lag_seconds > LIMITS.target_lag.as_secs_f64()));
            ran.worker_hours += f64::from(workers) / 3600.0;
            ran.lag_seconds = lag_seconds;
            second += 1.0;
            if second % POLL != 0.0 {
                continue;
            }
            let of_one = |share: f64| {
                let worked = read / POLL * share / self.rate;
                worked + self.idle * (1.0 - worked)
            };
            if !self.deaf.contains(&second) {
                samples.push(Sample {
                    at: at(second),
                    workers,
                    read: read / POLL,
                    came: came / POLL,
                    lag,
                    lag_seconds,
                    busiest: of_one(self.share(workers)),
                    busy: of_one(1.0 / f64::from(workers)),
                    parts: self.parts,
                    sink_bound: self.sink.is_finite() && done >= self.sink,
                    healthy: second >= stands_until,
                });
            }
            let before = read / POLL;
            (read, came) = (0.0, 0.0);
            if fixed {
                continue;
            }
            let limits = Limits {
                parts: self.parts,
                change_takes: Duration::from_secs_f64(self.change),
                ..LIMITS
            };
            let decision = decide(&samples, &steps, &limits, at(second));
            if ran.reasons.last() != Some(&decision.reason) {
                ran.reasons.push(decision.reason);
            }
            if decision.workers != workers && !samples.is_empty() {
                ran.steps.push((second, decision.workers, decision.reason));
                steps.push(Step {
                    at: at(second),
                    from: workers,
                    to: decision.workers,
                    read: before,
                });
                workers = decision.workers;
                stands_until = second + self.change;
            }
        }
        ran.workers = workers;
        ran
    }

    /// The trace, with what the best fixed number costs.
    fn trace(&self, name: &str, hours: f64) -> Ran {
        let ran = self.run(hours, 1, false);
        let fixed = (1..=LIMITS.most).map(|n| (n, self.run(hours, n, true)));
        let best = fixed
            .filter(|(_, f)| f.behind <= ran.behind)
            .map(|(n, f)| (n, f.worker_hours))
            .next();
        println!(
            "{name}: {:.0} s behind the target in {hours} h, {:.1} worker-hours, {}; steps {:?}",
            ran.behind,
            ran.worker_hours,
            match best {
                Some((n, hours)) => format!("{hours:.1} with {n} fixed workers"),
                None => "no fixed number does as well".to_owned(),
            },
            ran.steps
        );
        ran
    }
}

#[test]
fn a_job_that_keeps_up_is_left_alone() {
    let model = Model {
        load: |_| 600.0,
        ..Model::default()
    };
    let ran = model.trace("low and even", 2.0);
    assert_eq!((ran.steps.len(), ran.behind), (0, 0.0));
}

#[test]
fn a_step_to_three_times_the_load_is_one_decision_within_ninety_seconds() {
    let load = |s: f64| if s < 1800.0 { 700.0 } else { 2_100.0 };
    let ran = Model {
        load,
        ..Model::default()
    }
    .trace("a step to 3x", 2.0);
    let [(when, workers, _)] = ran.steps[..] else {
        panic!("{:?}", ran.steps)
    };
    assert!(when - 1800.0 <= 90.0, "{when}");
    // The least that holds λ/ρ and catches up.
    assert!((3..=4).contains(&workers), "{workers}");
    assert!(ran.lag_seconds < 1.0);
}

#[test]
fn what_workers_can_do_is_learned_from_when_they_work_hardest() {
    let load = |s: f64| if s < 1800.0 { 450.0 } else { 1_350.0 };
    let ran = Model {
        load,
        idle: 0.4,
        ..Model::default()
    }
    .trace(
        "a step to 3x, and workers with little to do that are busy all the same",
        2.0,
    );
    let [(_, workers, _)] = ran.steps[..] else {
        panic!("{:?}", ran.steps)
    };
    assert_eq!(workers, 2);
}

#[test]
fn a_step_there_and_back_goes_down_once_it_is_over() {
    let load = |s: f64| {
        if (1800.0..5400.0).contains(&s) {
            2_800.0
        } else {
            700.0
        }
    };
    let ran = Model {
        load,
        ..Model::default()
    }
    .trace("4x and back", 3.0);
    assert_eq!(ran.workers, 1);
    assert!(ran.steps.len() <= 4, "{:?}", ran.steps);
    assert!(ran.said(Reason::Spare));
}

#[test]
fn a_day_is_followed_with_fewer_hours_than_its_peak_takes() {
    let load = |s: f64| 3_000.0 + 2_500.0 * (s / 86_400.0 * std::f64::consts::TAU).sin();
    let ran = Model {
        load,
        ..Model::default()
    }
    .trace("a day", 24.0);
    let peak = Model {
        load,
        ..Model::default()
    }
    .run(24.0, 8, true);
    assert!(ran.behind <= 300.0, "{}", ran.behind);
    assert!(ran.worker_hours < peak.worker_hours * 0.85);
    assert!(ran.steps.len() <= 24, "{:?}", ran.steps);
}

#[test]
fn a_spike_of_half_a_minute_leads_to_no_more_than_one_step_up() {
    let load = |s: f64| {
        if (1800.0..1830.0).contains(&s) {
            5_000.0
        } else {
            500.0
        }
    };
    let ran = Model {
        load,
        ..Model::default()
    }
    .trace("a spike", 2.0);
    let ups = ran.steps.windows(2).filter(|w| w[1].1 > w[0].1).count();
    assert!(ran.steps.len() <= 3 && ups <= 1, "{:?}", ran.steps);
    assert_eq!(ran.workers, 1);
}

#[test]
fn spikes_again_and_again_do_not_make_it_go_up_and_down_with_each() {
    let load = |s: f64| if s % 600.0 < 60.0 { 3_000.0 } else { 500.0 };
    let ran = Model {
        load,
        ..Model::default()
    }
    .trace("a spike each ten minutes", 4.0);
    assert!(ran.steps.len() <= 24, "{:?}", ran.steps);
}

#[test]
fn a_slow_ramp_is_followed_in_few_steps() {
    let load = |s: f64| 500.0 + s / 3.0;
    let ran = Model {
        load,
        ..Model::default()
    }
    .trace("a ramp", 4.0);
    assert!(ran.behind <= 60.0, "{}", ran.behind);
    assert!(ran.steps.len() <= 8, "{:?}", ran.steps);
}

#[test]
fn a_backlog_is_worked_off_in_five_minutes_and_then_given_back() {
    let model = Model {
        load: |_| 500.0,
        backlog: 900_000.0,
        ..Model::default()
    };
    let ran = model.trace("a backlog", 2.0);
    assert!(ran.said(Reason::CatchingUp));
    assert!(ran.behind <= 600.0, "{}", ran.behind);
    assert_eq!(ran.workers, 1);
}

#[test]
fn a_slow_sink_is_named_and_gets_no_workers() {
    let model = Model {
        load: |_| 900.0,
        sink: 600.0,
        ..Model::default()
    };
    let ran = model.trace("a slow sink", 1.0);
    assert_eq!(ran.steps, []);
    assert!(ran.said(Reason::SinkBound), "{:?}", ran.reasons);
}

#[test]
fn a_hot_key_is_named_and_gets_few_workers() {
    let model = Model {
        load: |_| 2_500.0,
        hot: 0.6,
        ..Model::default()
    };
    let ran = model.trace("a hot key", 2.0);
    assert!(
        ran.said(Reason::HotKey) || ran.said(Reason::NoGain),
        "{:?}",
        ran.reasons
    );
    assert!(ran.workers <= 8, "{:?}", ran.steps);
}

#[test]
fn a_job_of_four_parts_is_not_given_a_fifth_worker() {
    let model = Model {
        load: |_| 9_000.0,
        parts: 4,
        ..Model::default()
    };
    let ran = model.trace("four splits", 1.0);
    assert_eq!(ran.workers, 4);
    assert!(ran.said(Reason::AtMaximum), "{:?}", ran.reasons);
}

#[test]
fn while_nothing_is_heard_nothing_is_changed() {
    let load = |s: f64| if s < 1800.0 { 700.0 } else { 2_100.0 };
    let model = Model {
        load,
        deaf: 1700.0..3000.0,
        ..Model::default()
    };
    let ran = model.trace("deaf at a step", 2.0);
    assert!(ran.said(Reason::MetricsMissing));
    assert!(
        ran.steps.iter().all(|(when, ..)| *when >= 3000.0),
        "{:?}",
        ran.steps
    );
    assert!(ran.lag_seconds < 1.0);
}

#[test]
fn changes_that_cost_a_minute_are_paid_for_and_not_repeated() {
    let load = |s: f64| if s < 1800.0 { 700.0 } else { 2_100.0 };
    let ran = Model {
        load,
        change: 60.0,
        ..Model::default()
    }
    .trace("dear changes", 2.0);
    assert!(ran.steps.len() <= 3, "{:?}", ran.steps);
    assert!(ran.lag_seconds < 1.0);
}

#[test]
fn more_than_it_may_is_said() {
    let model = Model {
        load: |_| 20_000.0,
        ..Model::default()
    };
    let ran = model.trace("too much", 1.0);
    assert_eq!(ran.workers, LIMITS.most);
    assert!(ran.said(Reason::AtMaximum), "{:?}", ran.reasons);
}
