//! The flights job under everything that may happen to it: `kill -9` at random moments and at each named step of the
//! protocol, zombies that wake, a broker and an object store that crash or are away, networks that are cut, volumes lost or swapped
//! for older ones.
//! Checkpoints are on S3. The output must be the oracle's, and nothing may become late by a fault.
//!
//! The input is fed in thousands of small slices while the blows fall, so that each falls into work, and between the first
//! commit and the last by construction: none before the first was seen, and slices are left after the last blow.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use clap::builder::ArgPredicate;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rustix::process::{Signal, kill_process};

use super::{Flights, Options, Work, await_caught_up, await_markers, make_topics};
use crate::apart::{self, Cut, Namespaces};
use crate::bed::{Server, root};
use crate::engine::{Engine, Launch, Watched, fault_points};
use crate::kafka::Loader;
use crate::manifest::Manifest;

const PATIENCE: Duration = Duration::from_secs(120);
const PREFIX: &str = "eo-";

/// What this suite is told besides.
#[derive(Args, Clone)]
pub struct Blows {
    /// How many times to `kill -9` at random moments
    #[arg(long, default_value_t = 24)]
    kills: usize,
    /// Seed of the random moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which kinds of blows: kills, points, zombies, broker, store, volume
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kills,points,zombies,broker,store,volume",
        default_value_ifs([
            ("apart", ArgPredicate::IsPresent, "kills,cuts"),
            ("workers", ArgPredicate::IsPresent, "kills,frozen,broker,store"),
        ])
    )]
    only: Vec<String>,
    /// Worker processes. With several, each kill falls on one of them, on the one that coordinates, on two at once or on all; the
    /// kinds of blows are then kills, frozen, points, broker, store, volume, and cuts with --apart
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Each worker in a network namespace of its own, over mutual TLS as in a cluster, so that it can be cut off
    #[arg(long, requires = "workers")]
    apart: bool,
    /// How many times to cut a network: between two workers, between one and the object store or the broker, or around one
    #[arg(long, default_value_t = 8)]
    cuts: usize,
    /// How long the object store stays away, in seconds
    #[arg(long, default_value_t = 30)]
    away: u64,
}

enum Blow {
    Kill,
    /// Of several workers.
    Workers(Whom),
    /// A worker looks dead for a while, and wakes.
    Frozen,
    /// Of the network of several workers.
    Cut(Between),
    Point(String),
    Zombie,
    Broker,
    Store,
    StoreAway,
    VolumeLost,
    VolumeOlder,
}

pub fn run(options: &Options, blows: &Blows) -> Result<String> {
    let flights = Flights::load(&options.data)?;
    let plan = plan(blows, &options.penstock)?;
    let work = Work::new("exactly-once")?;
    // Before the servers: they listen on its address.
    let _networks = match blows.apart {
        true => Some(Namespaces::new(blows.workers)?),
        false => None,
    };
    let (kafka, s3) = match blows.apart {
        true => (
            Server::kafka_at(apart::HOST, options.kafka_port)?,
            Server::s3_at(apart::HOST, options.s3_port)?,
        ),
        false => (
            Server::kafka(options.kafka_port)?,
            Server::s3(options.s3_port)?,
        ),
    };
    s3.bucket("streams")?;
    let brokers = kafka.address();
    make_topics(&brokers, PREFIX)?;

    let manifest = work.path("job.yaml");
    Manifest::load(&root().join("examples/flights/job.yaml"))?
        .rehome(&brokers, PREFIX)?
        .set(&["spec", "trigger"], "{continuous: {}}")?
        .set(&["spec", "checkpoint", "interval"], "300ms")?
        .set(
            &["spec", "checkpoint", "storage"],
            &format!("{{s3: {{bucket: streams, prefix: e2e, region: us-east-1, endpoint: '{}', pathStyle: true}}}}", s3.url()),
        )?
        .save(&manifest)?;
    let planned = work.path("planned.yaml");
    Manifest::load(&manifest)?
        .set(&["spec", "trigger"], "{processingTime: {interval: 300ms}}")?
        .save(&planned)?;
    let launch = Launch {
        program: options.penstock.clone(),
        manifest,
        state: work.path("state"),
        secrets: None,
        memory: None,
        log: work.path("engine.log"),
        fault: None,
        base_epochs: Some(10),
        workers: blows.workers,
        apart: blows.apart,
    };
    let slices = plan.iter().map(Blow::slices).sum::<usize>() + 1_000;
    let mut ring = Ring {
        loader: Loader::new(&brokers, &format!("{PREFIX}flights"))?,
        rng: StdRng::seed_from_u64(blows.seed),
        engine: Engine::start(&launch)?,
        older: work.path("state-older"),
        away: Duration::from_secs(blows.away),
        flights: &flights,
        planned,
        slices,
        fed: 0,
        volumes: 0,
        epoch: 0,
        launch,
        kafka: &kafka,
        s3: &s3,
        ports: (options.kafka_port, options.s3_port),
    };

    let (mut kills, mut never_hit) = (0, Vec::new());
    // What happens once in a log's life comes first: a point that was passed is not passed again.
    let (fresh, plan): (Vec<Blow>, Vec<Blow>) = plan.into_iter().partition(Blow::once);
    if fresh.is_empty() {
        ring.progress()?;
    }
    let plan: Vec<Blow> = fresh.into_iter().chain(plan).collect();
    for (number, blow) in plan.iter().enumerate() {
        let began = Instant::now();
        match blow {
            Blow::Kill => {
                ring.kill_at_random()?;
                kills += 1;
                // Many deaths in a row may leave no time for a commit; now and then one must come through.
                if kills % 4 == 0 {
                    ring.progress()?;
                }
            }
            Blow::Point(name) => {
                if !ring.die_at(name)? {
                    never_hit.push(name.clone());
                }
                if !blow.once() {
                    ring.progress()?;
                }
            }
            Blow::Workers(whom) => {
                ring.kill_workers(*whom)?;
                kills += 1;
            }
            Blow::Frozen => ring.freeze_worker()?,
            Blow::Cut(between) => ring.cut(*between)?,
            Blow::Zombie => ring.zombie()?,
            Blow::Broker => ring.broker_crash()?,
            Blow::Store => ring.store_crash(Duration::from_millis(500))?,
            Blow::StoreAway => ring.store_crash(ring.away)?,
            Blow::VolumeLost => ring.volume_lost()?,
            Blow::VolumeOlder => ring.volume_older()?,
        }
        println!(
            "exactly-once: {}/{} {} after {:.1} s, at epoch {}",
            number + 1,
            plan.len(),
            blow.name(),
            began.elapsed().as_secs_f64(),
            ring.epoch
        );
    }

    let last_blow = ring.epoch;
    ring.progress()?;
    ring.feed_rest()?;
    await_caught_up(&mut ring.engine, PATIENCE)?;
    flights.put_markers(&mut ring.loader, 1)?;
    await_caught_up(&mut ring.engine, PATIENCE)?;
    flights.put_markers(&mut ring.loader, 2)?;
    let (hourly, six_hours) = (
        format!("{PREFIX}flights-hourly"),
        format!("{PREFIX}flights-six-hours"),
    );
    await_markers(
        &brokers,
        &hourly,
        flights.markers()?,
        &mut ring.engine,
        PATIENCE,
    )?;
    await_markers(
        &brokers,
        &six_hours,
        flights.markers()? * 6,
        &mut ring.engine,
        PATIENCE,
    )?;
    ring.engine.interrupt(Duration::from_secs(60))?;

    let mut good = flights.compare(options, &brokers, &hourly, "hourly", &work)?;
    good &= flights.compare(options, &brokers, &six_hours, "six-hours", &work)?;
    good &= flights
        .rejects(&[])
        .compare(&brokers, &format!("{PREFIX}flights-rejected"))?;
    println!(
        "exactly-once: seed {}, {kills} kills, {last_blow} epochs after the last blow, {} at the end",
        blows.seed, ring.epoch
    );
    ensure!(
        good,
        "rows differ, see above; {} holds logs and dumps",
        work.folder.display()
    );
    ensure!(
        never_hit.is_empty(),
        "fault points that were never hit: {}",
        never_hit.join(", ")
    );
    drop(ring);
    work.done()?;
    let others = plan.len() - kills;
    Ok(format!(
        "{} flights, seed {}: {kills} kills and {others} other blows, the same rows as without",
        flights.count, blows.seed
    ))
}

/// Which of several workers are killed.
#[derive(Debug, Clone, Copy)]
enum Whom {
    One,
    Coordinator,
    Two,
    All,
}

/// Where a network of several workers is cut.
#[derive(Debug, Clone, Copy)]
enum Between {
    Members,
    /// And another member.
    Coordinator,
    MemberAndStore,
    CoordinatorAndStore,
    MemberAndBroker,
    CoordinatorAndBroker,
    /// And everybody.
    MemberAndAll,
    CoordinatorAndAll,
}

impl Between {
    const EACH: [Self; 8] = [
        Self::Members,
        Self::CoordinatorAndStore,
        Self::Coordinator,
        Self::MemberAndStore,
        Self::CoordinatorAndAll,
        Self::MemberAndBroker,
        Self::MemberAndAll,
        Self::CoordinatorAndBroker,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Members => "two members",
            Self::Coordinator => "the coordinator and a member",
            Self::MemberAndStore => "a member and the object store",
            Self::CoordinatorAndStore => "the coordinator and the object store",
            Self::MemberAndBroker => "a member and the broker",
            Self::CoordinatorAndBroker => "the coordinator and the broker",
            Self::MemberAndAll => "a member and everybody",
            Self::CoordinatorAndAll => "the coordinator and everybody",
        }
    }
}

/// How long a network stays cut, at most: then the job must go on within `PATIENCE`.
const CUT: Duration = Duration::from_secs(30);

/// The blows in their order: kinds are not mixed, so that a failure names its kind.
fn plan(blows: &Blows, program: &Path) -> Result<Vec<Blow>> {
    let mut plan = Vec::new();
    for kind in &blows.only {
        match kind.as_str() {
            "kills" if blows.workers > 1 => plan.extend((0..blows.kills).map(|n| {
                Blow::Workers(match n % 8 {
                    2 | 6 => Whom::Coordinator,
                    4 => Whom::Two,
                    7 => Whom::All,
                    _ => Whom::One,
                })
            })),
            "kills" => plan.extend((0..blows.kills).map(|_| Blow::Kill)),
            "cuts" => {
                ensure!(blows.apart, "networks are cut with --apart");
                let each = Between::EACH.into_iter().cycle();
                plan.extend(each.take(blows.cuts).map(Blow::Cut));
            }
            "frozen" => plan.extend((0..blows.kills.div_ceil(6)).map(|_| Blow::Frozen)),
            "points" => plan.extend(fault_points(program)?.into_iter().map(Blow::Point)),
            "zombies" => plan.extend((0..3).map(|_| Blow::Zombie)),
            "broker" => plan.extend((0..2).map(|_| Blow::Broker)),
            "store" => plan.extend([Blow::Store, Blow::StoreAway]),
            "volume" => plan.extend([Blow::VolumeLost, Blow::VolumeOlder]),
            other => bail!("no such kind of blow: {other}"),
        }
    }
    Ok(plan)
}

impl Blow {
    /// Whether it can fall only into the beginning of a log.
    fn once(&self) -> bool {
        matches!(self, Self::Point(name) if name.starts_with("start.") || name.starts_with("born."))
    }

    /// How many slices of the input to set aside for it.
    fn slices(&self) -> usize {
        match self {
            Self::Kill => 150,
            Self::Workers(_) => 400,
            Self::Frozen | Self::Cut(_) => 1_000,
            Self::StoreAway => 1_000,
            Self::Point(_)
            | Self::Zombie
            | Self::Broker
            | Self::Store
            | Self::VolumeLost
            | Self::VolumeOlder => 600,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Kill => "kill -9".to_owned(),
            Self::Workers(whom) => format!("kill -9 of {whom:?}").to_lowercase(),
            Self::Frozen => "worker frozen".to_owned(),
            Self::Cut(between) => format!("cut between {}", between.name()),
            Self::Point(name) => format!("death at {name}"),
            Self::Zombie => "zombie".to_owned(),
            Self::Broker => "broker kill -9".to_owned(),
            Self::Store => "store kill -9".to_owned(),
            Self::StoreAway => "store away".to_owned(),
            Self::VolumeLost => "volume deleted".to_owned(),
            Self::VolumeOlder => "volume replaced by an older copy".to_owned(),
        }
    }
}

/// The job, its servers and what was done to them.
struct Ring<'a> {
    flights: &'a Flights,
    kafka: &'a Server,
    s3: &'a Server,
    /// Of the broker and of the object store.
    ports: (u16, u16),
    loader: Loader,
    rng: StdRng,
    launch: Launch,
    /// The manifest with a trigger that plans its epochs.
    planned: PathBuf,
    engine: Engine,
    slices: usize,
    fed: usize,
    /// Volumes used so far: a zombie's successor gets another one.
    volumes: usize,
    /// The newest committed epoch seen.
    epoch: u64,
    older: PathBuf,
    away: Duration,
}

impl Ring<'_> {
    /// The next slice of the input.
    fn feed(&mut self) -> Result<()> {
        ensure!(
            self.fed < self.slices,
            "the input is used up before the last blow; take more --rows"
        );
        self.flights
            .put_slice(&mut self.loader, self.fed, self.slices)?;
        self.fed += 1;
        Ok(())
    }

    fn feed_rest(&mut self) -> Result<()> {
        while self.fed < self.slices {
            self.feed()?;
        }
        self.loader.flush()
    }

    /// Feeds for so long, or until `over` says so.
    fn feed_for(
        &mut self,
        time: Duration,
        mut over: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<bool> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.feed()?;
            if over(self)? {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    /// Feeds for a random time between these, in milliseconds.
    fn feed_a_while(&mut self, least: u64, most: u64) -> Result<()> {
        let time = Duration::from_millis(self.rng.random_range(least..most));
        self.feed_for(time, |_| Ok(false))?;
        Ok(())
    }

    /// Waits for the engine, feeds, and waits for a commit that is newer than all before.
    fn progress(&mut self) -> Result<()> {
        let now = self
            .engine
            .until("the engine answers", PATIENCE, |_| true)?
            .epoch;
        self.epoch = self.epoch.max(now);
        self.feed()?;
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.engine.status()?
                && status.epoch > self.epoch
            {
                self.epoch = status.epoch;
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "no commit after epoch {} for {PATIENCE:?}, see {}",
                self.epoch,
                self.launch.log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
            if self.fed + 500 < self.slices && self.fed.is_multiple_of(2) {
                self.feed()?;
            }
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.engine.kill9()?;
        self.engine = Engine::start(&self.launch)?;
        Ok(())
    }

    /// Some moments fall into recovery, more into work.
    fn kill_at_random(&mut self) -> Result<()> {
        let (least, most) = if self.rng.random_bool(0.4) {
            (0, 700)
        } else {
            (700, 2500)
        };
        self.feed_a_while(least, most)?;
        if let Ok(Some(status)) = self.engine.status() {
            self.epoch = self.epoch.max(status.epoch);
        }
        ensure!(
            self.engine.kill9()?,
            "the engine had ended by itself before a kill, see {}",
            self.launch.log.display()
        );
        self.restart()
    }

    /// Kills some of several workers, and waits until the job goes on.
    fn kill_workers(&mut self, whom: Whom) -> Result<()> {
        self.feed_a_while(500, 2500)?;
        let workers = self.engine.workers()?;
        let mut numbers: Vec<u32> = workers.keys().copied().collect();
        numbers.shuffle(&mut self.rng);
        let victims: Vec<u32> = match whom {
            Whom::One => numbers.into_iter().take(1).collect(),
            Whom::Two => numbers.into_iter().take(2).collect(),
            Whom::All => numbers,
            Whom::Coordinator => self.engine.coordinator()?.into_iter().collect(),
        };
        ensure!(!victims.is_empty(), "no worker is there to be killed");
        for victim in &victims {
            if let Some(pid) = workers.get(victim) {
                kill_process(*pid, Signal::KILL).context("cannot kill a worker")?;
            }
        }
        self.recover(&format!("{whom:?} {victims:?}"))
    }

    /// One of several workers looks dead, is gone without, and wakes when the others go on.
    fn freeze_worker(&mut self) -> Result<()> {
        self.feed_a_while(500, 2500)?;
        let workers = self.engine.workers()?;
        let numbers: Vec<u32> = workers.keys().copied().collect();
        let victim = numbers[self.rng.random_range(0..numbers.len())];
        kill_process(workers[&victim], Signal::STOP).context("cannot stop a worker")?;
        self.recover(&format!("frozen {victim}"))?;
        kill_process(workers[&victim], Signal::CONT).context("cannot wake a worker")?;
        self.feed_a_while(1000, 3000)?;
        self.recover(&format!("woken {victim}"))
    }

    /// Cuts the network somewhere. Says how long the job stood still, and whether it went on before the cut was mended.
    fn cut(&mut self, between: Between) -> Result<()> {
        self.feed_a_while(500, 2500)?;
        let mut workers: Vec<u32> = (0..self.launch.workers).collect();
        let leads = self.engine.coordinator()?.context("nobody coordinates")?;
        workers.retain(|worker| *worker != leads);
        workers.shuffle(&mut self.rng);
        let [one, other, ..] = workers[..] else {
            bail!("cuts need three workers");
        };
        let (broker, store) = self.ports;
        let servers = |worker| vec![Cut::Server(worker, store), Cut::Server(worker, broker)];
        let all = |worker| {
            let others = (0..self.launch.workers).filter(|other| *other != worker);
            let mut cuts = servers(worker);
            cuts.extend(others.map(|other| Cut::Pair(worker, other)));
            cuts
        };
        let cuts = match between {
            Between::Members => vec![Cut::Pair(one, other)],
            Between::Coordinator => vec![Cut::Pair(leads, one)],
            Between::MemberAndStore => vec![Cut::Server(one, store)],
            Between::CoordinatorAndStore => vec![Cut::Server(leads, store)],
            Between::MemberAndBroker => vec![Cut::Server(one, broker)],
            Between::CoordinatorAndBroker => vec![Cut::Server(leads, broker)],
            Between::MemberAndAll => all(one),
            Between::CoordinatorAndAll => all(leads),
        };
        cuts.iter().try_for_each(|cut| cut.make())?;
        let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let (first, mut commits) = (self.epoch, 0);
        // Commits that were under way come through; what counts is that more do.
        while began.elapsed() < CUT && (commits < 10 || began.elapsed() < CUT / 2) {
            self.feed()?;
            if let Some(status) = self.engine.status()?
                && status.epoch > self.epoch
            {
                self.epoch = status.epoch;
                commits += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let epochs = self.epoch - first;
        let still = last.elapsed().max(longest).as_secs_f64();
        apart::heal(self.launch.workers)?;
        println!(
            "exactly-once: cut between {} ({leads} leads, {one}, {other}): {epochs} epochs in {:.0} s, {still:.1} s without",
            between.name(),
            began.elapsed().as_secs_f64()
        );
        self.recover("mended")
    }

    /// Waits until the job goes on, and says how long it took: to the second commit, since the first may have been under way.
    fn recover(&mut self, what: &str) -> Result<()> {
        let began = Instant::now();
        self.progress()?;
        self.progress()?;
        println!(
            "exactly-once: {what}: two commits {:.2} s later",
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Runs until the engine kills itself at a named step. Answers whether it did; the engine runs on without it afterwards.
    fn die_at(&mut self, point: &str) -> Result<bool> {
        let mut faulty = Launch {
            fault: Some(point.to_owned()),
            ..self.launch.clone()
        };
        if point.starts_with("plan.") {
            faulty.manifest.clone_from(&self.planned);
        }
        self.engine.kill9()?;
        self.engine = Engine::start(&faulty)?;
        if point.starts_with("stop.") {
            self.progress()?;
            self.engine.ask_to_stop()?;
        }
        let hit = self.dies(point)?;
        self.restart()?;
        Ok(hit)
    }

    /// Feeds until the engine has died by SIGKILL, ten seconds at most; whether it has.
    fn dies(&mut self, point: &str) -> Result<bool> {
        let hit = self.feed_for(Duration::from_secs(10), |ring| {
            Ok(ring.engine.ended()?.is_some())
        })?;
        if let Some(status) = self.engine.ended()? {
            ensure!(
                status.signal() == Some(9),
                "at {point} the engine ended with {status}, not by SIGKILL, see {}",
                self.launch.log.display()
            );
        }
        Ok(hit)
    }

    /// Freezes the engine, lets a successor on another volume take over and commit, and wakes it. Its output is nobody's.
    fn zombie(&mut self) -> Result<()> {
        self.feed_a_while(200, 1500)?;
        self.engine.freeze()?;
        self.volumes += 1;
        self.launch.state = self
            .launch
            .state
            .with_file_name(format!("state-{}", self.volumes));
        let mut zombie = std::mem::replace(&mut self.engine, Engine::start(&self.launch)?);
        self.progress()?;
        zombie.thaw()?;
        // It may end, or rejoin and even take the job back: whoever leads, the job must go on.
        self.feed_for(Duration::from_secs(5), |_| Ok(zombie.ended()?.is_some()))?;
        if zombie.kill9()? {
            println!("exactly-once: the zombie was still there 5 s after it woke");
        }
        if self.engine.ended()?.is_some() {
            println!("exactly-once: the successor gave way to the zombie");
            self.restart()?;
        }
        self.progress()
    }

    fn broker_crash(&mut self) -> Result<()> {
        self.feed_a_while(0, 1000)?;
        self.kafka.kill9()?;
        std::thread::sleep(Duration::from_millis(self.rng.random_range(500..4000)));
        self.kafka.start()?;
        self.progress()
    }

    /// The store dies and is away while rows keep coming.
    fn store_crash(&mut self, away: Duration) -> Result<()> {
        self.feed_a_while(0, 1000)?;
        self.s3.kill9()?;
        let until = Instant::now() + away;
        while Instant::now() < until {
            self.feed()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.s3.start()?;
        self.progress()
    }

    fn volume_lost(&mut self) -> Result<()> {
        self.engine.kill9()?;
        std::fs::remove_dir_all(&self.launch.state).context("cannot remove the volume")?;
        self.restart()?;
        self.progress()
    }

    /// Copies the volume, goes on for some epochs, and puts the copy in its place.
    fn volume_older(&mut self) -> Result<()> {
        self.engine.kill9()?;
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&self.launch.state)
            .arg(&self.older)
            .status()?;
        ensure!(copied.success(), "cannot copy the volume");
        self.restart()?;
        for _ in 0..3 {
            self.progress()?;
        }
        self.engine.kill9()?;
        std::fs::remove_dir_all(&self.launch.state)?;
        std::fs::rename(&self.older, &self.launch.state)?;
        self.restart()?;
        self.progress()
    }
}
