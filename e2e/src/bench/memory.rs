//! Workers with little memory and much state, for as long as one likes: each in a control group that the kernel kills beyond its
//! bound, under kills and rescales. None may be killed for memory, and every row must be counted once.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::elasticity::fleet::{Fleet, Penstock, Place, Share};
use super::elasticity::traffic::{Load, NEXT_TO_NOTHING, Watch};
use super::elasticity::{PATIENCE, settled};
use super::percentile;
use crate::bed::Server;
use crate::groups::{self, Bounds};
use crate::suite::Work;

#[derive(Args, Clone)]
pub struct Options {
    /// The program under test
    #[arg(long, default_value = "penstock")]
    penstock: PathBuf,
    /// Keys; each has a payload of 150 bytes
    #[arg(long, default_value_t = 20_000_000)]
    keys: usize,
    /// Memory of each worker, as the limit of a pod
    #[arg(long, default_value = "512Mi")]
    memory: String,
    /// How long workers are killed, added and told to go, in minutes
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Or until so many have been
    #[arg(long)]
    faults: Option<usize>,
    /// Rows per second meanwhile
    #[arg(long, default_value_t = 2_000)]
    rate: usize,
    /// Each row is joined to one of another topic first
    #[arg(long)]
    joins: bool,
    /// Seed of what happens
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 29392)]
    kafka_port: u16,
    #[arg(long, default_value_t = 29200)]
    s3_port: u16,
}

/// `workers.memory` where nothing is said: percent of a container's limit for state, staging and exchange.
const BUDGET: u64 = 70;
/// Workers at the beginning, and the fewest and the most after a change.
const WORKERS: u32 = 3;
const FEWEST: u32 = 2;
const MOST: u32 = 4;
const REST: Duration = Duration::from_secs(3);

/// What happens to the workers.
enum Fault {
    Member,
    Coordinator,
    Two,
    More,
    Fewer,
}

impl Fault {
    fn random(rng: &mut StdRng, workers: u32) -> Self {
        match rng.random_range(0..6) {
            0 | 1 => Self::Member,
            2 => Self::Coordinator,
            3 => Self::Two,
            _ if workers == MOST => Self::Fewer,
            _ if workers == FEWEST => Self::More,
            4 => Self::More,
            _ => Self::Fewer,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Member => "a member killed",
            Self::Coordinator => "the coordinator killed",
            Self::Two => "two killed",
            Self::More => "one more",
            Self::Fewer => "one fewer",
        }
    }
}

pub fn run(options: &Options) -> Result<String> {
    let limit = groups::bytes(&options.memory)?;
    let share = Share {
        budget: limit / 100 * BUDGET,
        bounds: Some(Bounds {
            memory: Some(limit),
            cpus: None,
        }),
    };
    let server = Server::kafka(options.kafka_port)?;
    let store = Server::s3(options.s3_port)?;
    store.bucket("streams")?;
    let work = Work::new("memory")?;
    let brokers = server.address();
    let place = Place::new(&brokers, store.url(), &work.folder, "memory", options.joins)?;
    let load = Load::new(&place, options.keys)?;
    let watch = Watch::new(&brokers, &place.output, load.sent())?;
    let mut fleet = Penstock::new(&options.penstock, place, share)?;
    fleet.begin(WORKERS)?;
    let began = Instant::now();
    load.every_key()?;
    // Windows of the last rows close with those after them.
    load.rate(options.rate);
    while watch.behind()? > NEXT_TO_NOTHING {
        alive(&mut fleet)?;
        sleep(Duration::from_millis(200));
    }
    println!(
        "memory: {} keys in the state after {:.0} s: {}",
        options.keys,
        began.elapsed().as_secs_f64(),
        fleet.state()?
    );
    let (faults, mut gaps) = disturbed(options, &watch, &mut fleet)?;
    load.stop()?;
    watch.caught_up(PATIENCE)?;
    let state = fleet.state()?;
    let memory = fleet.memory()?;
    fleet.stop()?;
    gaps.sort_unstable();
    let (kills, most): (Vec<u64>, Vec<u64>) = memory.into_iter().unzip();
    let most = most.into_iter().max().context("no worker had bounds")?;
    let line = format!(
        "{} keys, seed {}: {faults} faults, longest time without output p50 {} p99 {} max {} ms, each of {} rows counted once; killed for memory {} times, the most that one of {} had (with the kernel's cache) {} MiB; {state}",
        options.keys,
        options.seed,
        percentile(&gaps, 0.5),
        percentile(&gaps, 0.99),
        percentile(&gaps, 1.0),
        watch.rows(),
        kills.iter().sum::<u64>(),
        options.memory,
        most >> 20,
    );
    ensure!(kills.iter().all(|kills| *kills == 0), "{line}");
    work.done()?;
    Ok(line)
}

/// Whoever ends by itself was killed, and the kernel's count says whether for memory.
fn alive(fleet: &mut Penstock) -> Result<()> {
    let there = fleet.there().map(drop);
    there.or_else(|error| {
        let (kills, most): (Vec<u64>, Vec<u64>) = fleet.memory()?.into_iter().unzip();
        bail!("{error:#}; killed for memory, by worker: {kills:?}; the most that each had, in bytes: {most:?}")
    })
}

/// Until the time is over: how many faults there were, and how long nothing came out in each, in milliseconds.
fn disturbed(options: &Options, watch: &Watch, fleet: &mut Penstock) -> Result<(usize, Vec<i64>)> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (mut workers, mut gaps) = (WORKERS, Vec::new());
    sleep(REST);
    let until = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let enough = |done: usize| match options.faults {
        Some(faults) => done >= faults,
        None => Instant::now() >= until,
    };
    while !enough(gaps.len()) {
        let fault = Fault::random(&mut rng, workers);
        let at = Instant::now();
        let leads = fleet.coordinator()?.context("nobody coordinates")?;
        let member = (leads + rng.random_range(1..workers)) % workers;
        match fault {
            Fault::Member => fleet.kill(member)?,
            Fault::Coordinator => fleet.kill(leads)?,
            Fault::Two => {
                fleet.kill(member)?;
                fleet.kill(leads)?;
            }
            Fault::More => {
                fleet.add()?;
                workers += 1;
            }
            Fault::Fewer => {
                fleet.remove()?;
                workers -= 1;
            }
        }
        fleet.until(workers, PATIENCE)?;
        settled(watch)?;
        let gap = watch.longest_since(at)?.length;
        println!(
            "memory: {}: {}, {workers} workers: nothing came for {} ms",
            gaps.len() + 1,
            fault.name(),
            gap.as_millis()
        );
        gaps.push(i64::try_from(gap.as_millis())?);
    }
    Ok((gaps.len(), gaps))
}
