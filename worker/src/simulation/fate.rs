//! What befalls a world: rows that arrive, processes that are killed, stalled, woken, started beside each other, stores and
//! brokers that go away; then peace, in which a healthy process must come to the end of the data.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use penstock_checkpoint::decide::Wish;
use penstock_checkpoint::ids::{Epoch, LogId, MemberId};
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::record::{Assignment, Claim, StopReason};
use penstock_checkpoint::store;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use super::broker::Broker;
use super::check::{Came, check};
use super::job::{self, Query, Row};
use super::net::Board;
use super::trace::Trace;
use super::wire;
use super::world::{Bugs, Mode, Running, VirtualClock, World};
use crate::coordinator::Outcome;
use crate::error::{EngineError, ErrorKind};
use crate::job::connectors;
use crate::process::simulated::{Death, take_deaths};
use crate::sources::memory::{MemoryRecord, MemorySource};
use crate::state::simulated::MemoryVolume;

/// Everything in peace must be over by then.
const PATIENCE: Duration = Duration::from_secs(300);

/// A seed's world at its end.
#[derive(Debug)]
pub(super) struct Told {
    pub verdict: Result<Came, String>,
    pub hash: u64,
    pub notes: u64,
    pub lines: Vec<String>,
    pub about: String,
    /// Fault points at which processes died.
    pub deaths: BTreeSet<&'static str>,
}

/// Runs the world of a seed, on this thread, in virtual time.
pub(super) fn run(seed: u64, bugs: Bugs, told: bool) -> Told {
    crate::planted::switch::PLANTED.set(bugs.engine);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers");
    let result = runtime.block_on(async {
        let mut fate = Fate::new(seed, bugs, told);
        let verdict = fate.run().await;
        Told {
            verdict,
            hash: fate.world.trace.hash(),
            notes: fate.world.trace.notes(),
            lines: fate.world.trace.lines(),
            about: fate.about(),
            deaths: take_deaths(),
        }
    });
    drop(runtime);
    crate::planted::switch::PLANTED.set(None);
    result
}

struct Fate {
    seed: u64,
    rng: StdRng,
    world: Arc<World>,
    query: Query,
    goes_back: bool,
    input: Vec<Row>,
    running: Vec<Running>,
    started: u64,
    free: Vec<MemoryVolume>,
    copies: Vec<MemoryVolume>,
    store_faults: store::Faults,
}

impl Fate {
    fn new(seed: u64, bugs: Bugs, told: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let query = Query::ALL[rng.random_range(0..Query::ALL.len())];
        let mode = match rng.random_range(0..6) {
            0 => Mode::Available,
            1 => Mode::Periodic,
            _ => Mode::Continuous,
        };
        let goes_back = rng.random_ratio(1, 5);
        let slots = rng.random_range(1..=2);
        let most_members = rng.random_range(1..=3);
        let workers = rng.random_ratio(1, 3).then(|| rng.random_range(2..=3));
        let splits = rng.random_range(1..=3);
        let input = job::rows(&mut rng, splits);
        let job = job::job(query, mode != Mode::Continuous);
        let spec = &job.spec.spec.sources[0];
        let format = connectors::body_format(spec).expect("the manifest's format is known");
        let decode = connectors::decode_plan(spec, &job.plan.sources[&spec.name], format);
        crate::planted::switch::REWRITES.set(rng.random_ratio(1, 4));
        let rough = rng.random_range(0.0..1.0);
        let milliseconds = |rng: &mut StdRng, n: u64| Duration::from_millis(rng.random_range(1..n));
        let store_faults = store::Faults {
            before: 0.04 * rough,
            after: 0.04 * rough,
            late: 0.02 * rough,
            delay: milliseconds(&mut rng, 40),
        };
        let wire = wire::Faults {
            before: 0.04 * rough,
            after: 0.04 * rough,
            late: 0.04 * rough,
            delay: milliseconds(&mut rng, 20),
            away: false,
        };
        let mut broker = Broker::default();
        broker.lapse = bugs.broker;
        let world = World {
            job,
            mode,
            slots,
            most_members,
            workers,
            board: Board::new(seed ^ 7, Duration::from_millis(rng.random_range(1..30))),
            interval: Duration::from_millis(rng.random_range(30..400)),
            bugs,
            trace: Trace::new(told),
            objects: Arc::new(store::Memory::new()),
            archive: Arc::new(store::Memory::new()),
            closure_every: rng.random_range(4..60),
            base_epochs: rng.random_range(1..40),
            broker: Arc::new(Mutex::new(broker)),
            wire: Arc::new(Mutex::new(wire)),
            source: MemorySource::new(decode),
            log_id: LogId::from_bytes([7; 16]),
            clock: VirtualClock::now(),
            closed: Arc::default(),
        };
        Self {
            seed,
            rng,
            world: Arc::new(world),
            query,
            goes_back,
            input,
            running: Vec::new(),
            started: 0,
            free: Vec::new(),
            copies: Vec::new(),
            store_faults,
        }
    }

    fn about(&self) -> String {
        format!(
            "seed {}: {:?}, {:?}, {} with {} slots, interval {:?}, {} rows{}",
            self.seed,
            self.query,
            self.world.mode,
            match self.world.workers {
                Some(n) => format!("{n} workers"),
                None => format!("up to {} members", self.world.most_members),
            },
            self.world.slots,
            self.world.interval,
            self.input.len(),
            if self.goes_back { ", goes back" } else { "" },
        )
    }

    async fn run(&mut self) -> Result<Came, String> {
        self.world.create_log().await;
        self.let_rows_arrive();
        self.start_missing();
        let blows = if self.goes_back { 6..20 } else { 3..12 };
        for _ in 0..self.rng.random_range(blows) {
            let pause = self.rng.random_range(5..500);
            sleep(Duration::from_millis(pause)).await;
            if self.over()? {
                break;
            }
            self.strike().await;
            if self.world.bugs.markers_lost && self.rng.random_ratio(1, 4) {
                self.world.broker.lock().lose_markers();
            }
        }
        self.make_peace();
        let began = Instant::now();
        while !self.over()? {
            if began.elapsed() > PATIENCE {
                return Err("stuck: the job does not come to its end in peace".to_owned());
            }
            self.start_missing();
            if self.world.mode == Mode::Periodic && *self.world.closed.lock() {
                self.stop_what_never_ends();
            }
            sleep(Duration::from_millis(100)).await;
        }
        // Every zombie wakes once more; nothing that it does may change anything.
        self.running.iter().for_each(|r| r.process.wake());
        sleep(Duration::from_secs(3)).await;
        self.running.iter().for_each(|r| r.process.kill());
        sleep(Duration::from_secs(12)).await;
        self.world.broker.lock().expire();
        check(&self.world, self.query, &self.input).await
    }

    fn let_rows_arrive(&mut self) {
        let splits = self.input.iter().map(|r| r.split).max().unwrap_or(0) + 1;
        let span = self.rng.random_range(100..4000);
        let mut times: Vec<u64> = self
            .input
            .iter()
            .map(|_| self.rng.random_range(0..span))
            .collect();
        times.sort_unstable();
        times[..splits].fill(0);
        // At first there may be nothing at all.
        if self.rng.random_ratio(1, 10) {
            let later = self.rng.random_range(50..600);
            times.iter_mut().for_each(|at| *at += later);
        }
        // Where no row can be late, the last split may appear later than the others.
        let appears = (splits > 1 && !self.query.windows() && self.rng.random_ratio(1, 2))
            .then(|| self.rng.random_range(0..span));
        let mut arrivals: Vec<(u64, Row)> = times.into_iter().zip(self.input.clone()).collect();
        for (at, row) in &mut arrivals {
            if row.split + 1 == splits {
                *at = (*at).max(appears.unwrap_or(0));
            }
        }
        arrivals.sort_by_key(|(at, _)| *at);
        let there = splits - usize::from(appears.is_some());
        for split in 0..there {
            self.world.source.push(&format!("rows/{split}"), []);
        }
        let (world, began) = (self.world.clone(), Instant::now());
        tokio::spawn(async move {
            for (at, row) in arrivals {
                tokio::time::sleep_until(began + Duration::from_millis(at)).await;
                let record = MemoryRecord {
                    value: Some(row.body().into()),
                    ..MemoryRecord::default()
                };
                world.source.push(&format!("rows/{}", row.split), [record]);
            }
            world.source.close();
            *world.closed.lock() = true;
        });
    }

    // ---- processes ---------------------------------------------------------------------------------------------------

    /// A volume for a new process: one that is there, an older copy in its place, or an empty one.
    fn volume(&mut self) -> MemoryVolume {
        let free = (!self.free.is_empty()).then(|| self.rng.random_range(0..self.free.len()));
        match (self.rng.random_range(0..10), free) {
            (0..=5, Some(i)) => self.free.swap_remove(i),
            (6..=7, _) if !self.copies.is_empty() => {
                if let Some(i) = free {
                    self.free.swap_remove(i);
                }
                let i = self.rng.random_range(0..self.copies.len());
                self.copies[i].copy()
            }
            _ => MemoryVolume::default(),
        }
    }

    fn start(&mut self) {
        self.started += 1;
        let volume = self.volume();
        let member = self.missing().first().copied();
        // All are there: another process of one of them, as when a node is taken for lost.
        let any = self.world.workers.map(|n| self.rng.random_range(0..n));
        let member = member.unwrap_or(MemberId::new(any.unwrap_or(0)));
        let seed = self.rng.random();
        let running = self
            .world
            .start(self.started, member, seed, volume, self.store_faults);
        self.running.push(running);
    }

    /// Workers whose newest process is not at work: it is what is found at their address.
    fn missing(&self) -> Vec<MemberId> {
        let all = (0..self.world.workers.unwrap_or(0)).map(MemberId::new);
        all.filter(|id| !self.world.board.is_at_work(*id)).collect()
    }

    /// A process at least; all of them where several run the job together.
    fn start_missing(&mut self) {
        let missing = match self.world.workers {
            Some(_) => self.missing().len(),
            None => usize::from(!self.running.iter().any(|r| r.process.is_running())),
        };
        (0..missing).for_each(|_| self.start());
    }

    /// Takes away processes that ended or died by themselves; whether the job has come to its end.
    fn over(&mut self) -> Result<bool, String> {
        let mut over = false;
        let mut again = 0;
        for at in (0..self.running.len()).rev() {
            let ended = self.running[at].ended.lock().take();
            match ended {
                None if self.running[at].process.is_mad() => {
                    return Err(format!(
                        "process {} turns without end",
                        self.running[at].number
                    ));
                }
                None if self.running[at].process.is_dead() => self.bury(at),
                None => {}
                Some(Ok(Outcome::Drained { .. })) => {
                    over = true;
                    self.bury(at);
                }
                Some(Ok(Outcome::Stopped { .. } | Outcome::Completed { .. })) => {
                    again += 1;
                    self.bury(at);
                }
                Some(Err(e)) if too_late(&e) => self.bury(at),
                // A person is asked, as it should be; nothing more is published.
                Some(Err(e))
                    if self.world.bugs.markers_lost
                        && (e.code, e.kind) == ("PR0210", ErrorKind::Invalid) =>
                {
                    over = true;
                    self.bury(at);
                }
                Some(Err(e))
                    if *self.running[at].stop.borrow()
                        && matches!(
                            e.kind,
                            ErrorKind::Fenced | ErrorKind::Retry | ErrorKind::Refused
                        ) =>
                {
                    again += 1;
                    self.bury(at);
                }
                Some(Err(e)) => {
                    return Err(format!(
                        "process {} failed: {}",
                        self.running[at].number,
                        told(&e)
                    ));
                }
            }
        }
        if again > 0 && !over {
            match self.world.workers {
                Some(_) => self.start_missing(),
                None => self.start(),
            }
        }
        Ok(over)
    }

    /// Processes that began before the last row came are stopped, so that the next one drains.
    fn stop_what_never_ends(&mut self) {
        for running in self.running.iter().filter(|r| !r.drains) {
            let _ = running.stop.send(true);
        }
    }

    fn bury(&mut self, at: usize) {
        let gone = self.running.swap_remove(at);
        gone.process.kill();
        let rng = &mut self.rng;
        gone.volume.lose(|n| rng.random_range(1..=n));
        self.world.trace.note(
            gone.number,
            "gone",
            &format!("{:?}", gone.volume.epochs()),
            "",
        );
        self.free.push(gone.volume);
    }

    fn pick(&mut self, running: bool) -> Option<usize> {
        let of: Vec<usize> = (0..self.running.len())
            .filter(|i| self.running[*i].process.is_running() == running)
            .collect();
        (!of.is_empty()).then(|| of[self.rng.random_range(0..of.len())])
    }

    // ---- blows -------------------------------------------------------------------------------------------------------

    async fn strike(&mut self) {
        if let Some(volume) = self.running.first().map(|r| r.volume.copy())
            && self.rng.random_ratio(1, 3)
        {
            self.copies.push(volume);
        }
        if self.goes_back && self.rng.random_ratio(1, 3) {
            self.go_back().await;
        }
        let blow = self.rng.random_range(0..100);
        self.world.trace.note(0, "blow", &blow.to_string(), "");
        match blow {
            0..20 => {
                if let Some(at) = self.pick(true) {
                    self.bury(at);
                }
            }
            20..38 => {
                if let Some(at) = self.pick(true) {
                    let polls = self.rng.random_range(1..150);
                    self.running[at].process.die(Death::Polls(polls));
                }
            }
            38..56 => {
                if let Some(at) = self.pick(true) {
                    let points = self.rng.random_range(1..12);
                    self.running[at].process.die(Death::Points(points));
                }
            }
            56..74 => {
                if let Some(at) = self.pick(true) {
                    self.running[at].process.stall();
                }
            }
            74..80 => {
                if let Some(at) = self.pick(false) {
                    self.running[at].process.wake();
                }
            }
            80..84 => {
                if self.running.len() < 4 {
                    self.start();
                }
            }
            84..88 => {
                if let Some(at) = self.pick(true) {
                    let _ = self.running[at].stop.send(true);
                }
            }
            88..92 => {
                let by = Duration::from_millis(self.rng.random_range(50..1500));
                let stores: Vec<_> = self.running.iter().map(|r| r.store.clone()).collect();
                stores.iter().for_each(|s| s.set_away(true));
                tokio::spawn(async move {
                    sleep(by).await;
                    stores.iter().for_each(|s| s.set_away(false));
                });
            }
            92..94 if self.world.workers.is_some() => {
                let by = Duration::from_millis(self.rng.random_range(50..4000));
                let all = self.world.workers.unwrap_or(2);
                let a = self.rng.random_range(0..all);
                let b = (a + self.rng.random_range(1..all)) % all;
                let board = self.world.board.clone();
                board.cut(MemberId::new(a), MemberId::new(b));
                tokio::spawn(async move {
                    sleep(by).await;
                    board.mend();
                });
            }
            _ => {
                let by = Duration::from_millis(self.rng.random_range(50..1500));
                let wire = self.world.wire.clone();
                wire.lock().away = true;
                tokio::spawn(async move {
                    sleep(by).await;
                    wire.lock().away = false;
                });
            }
        }
        let fewer = match self.world.workers {
            Some(_) => !self.missing().is_empty() && self.rng.random_ratio(2, 3),
            None => self.pick(true).is_none(),
        };
        if fewer && self.running.len() < 5 {
            let pause = self.rng.random_range(0..200);
            sleep(Duration::from_millis(pause)).await;
            self.start();
        }
    }

    /// A person goes back to an earlier epoch.
    async fn go_back(&mut self) {
        let options = self.world.log_options(self.rng.random());
        let Ok(Some(mut log)) = JobLog::open(self.world.store(), options).await else {
            return;
        };
        let drained = log
            .fold()
            .stopped()
            .is_some_and(|s| s.why == StopReason::Drained);
        let epochs: Vec<Epoch> = log
            .fold()
            .ancestors(log.fold().head())
            .filter(|e| log.fold().is_publishable(*e))
            .take(3)
            .collect();
        if drained || epochs.is_empty() {
            return;
        }
        let to = epochs[self.rng.random_range(0..epochs.len())];
        self.world.trace.note(0, "go back", &to.to_string(), "");
        let claimed = log
            .claim(Wish::GoBack { to }, |fold, point| Claim {
                kind: point.kind,
                restore_epoch: point.restore_epoch,
                handover_from: point.handover_from,
                plan_hash: fold
                    .claim()
                    .map(|c| c.plan_hash.clone())
                    .unwrap_or_default(),
                members: vec![MemberId::ZERO],
                assignment: Assignment::default(),
                by: None,
                version: None,
                request: None,
            })
            .await;
        if let Ok(claimed) = claimed
            && self.rng.random_ratio(1, 2)
        {
            // Whoever claims next is there first, or this closure is.
            let _ = log.write_closure(claimed.generation).await;
        }
    }

    /// No fault from here on; who is stalled stays so, but for some.
    fn make_peace(&mut self) {
        self.world.trace.note(0, "peace", "", "");
        let calm = store::Faults {
            delay: Duration::from_millis(3),
            ..store::Faults::default()
        };
        *self.world.wire.lock() = wire::Faults {
            delay: Duration::from_millis(3),
            ..wire::Faults::default()
        };
        self.store_faults = calm;
        self.world.board.mend();
        for at in (0..self.running.len()).rev() {
            self.running[at].store.set_faults(calm);
            self.running[at].store.set_away(false);
            let process = &self.running[at].process;
            process.die(Death::Polls(u64::MAX));
            if !process.is_running() && self.rng.random_ratio(1, 3) {
                process.wake();
            } else if process.is_running() && self.rng.random_ratio(1, 2) {
                self.bury(at);
            }
        }
    }
}

/// A process that comes when the job has drained is told so by the log.
fn too_late(e: &EngineError) -> bool {
    e.kind == ErrorKind::Fail && told(e).contains("drained")
}

fn told(e: &EngineError) -> String {
    let mut text = e.to_string();
    let mut next = std::error::Error::source(e);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
