//! What a lost worker and a changed number of workers cost a job with large state: how long nothing comes out, seen by a reader of
//! committed rows. Every row counts its key on, so a row that is lost or counted twice is seen at once.
//!
//! ```text
//! traffic   rows of random keys at a steady rate; what comes out of each, and when nothing does
//! fleet     the workers of one engine, which are killed, added and told to go
//! ```

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::percentile;
use crate::bed::Server;
use crate::kafka;
use crate::suite::Work;

mod fleet;
mod traffic;

use fleet::{Fleet, Penstock, Place};
use traffic::{Load, Watch};

#[derive(Args, Clone)]
pub struct Options {
    /// The program under test
    #[arg(long, default_value = "penstock")]
    penstock: PathBuf,
    /// Keys; each has a payload of 150 bytes
    #[arg(long, default_value_t = 6_000_000)]
    keys: usize,
    /// Rows per second while it is measured
    #[arg(long, default_value_t = 2_000)]
    rate: usize,
    /// How often a worker is killed
    #[arg(long, default_value_t = 30)]
    kills: usize,
    /// How often the number of workers goes from 2 to 1 to 2 to 3 and back
    #[arg(long, default_value_t = 10)]
    rescales: usize,
    /// `checkpoint.interval`
    #[arg(long, default_value = "100ms")]
    interval: String,
    #[arg(long, default_value_t = 29392)]
    kafka_port: u16,
    #[arg(long, default_value_t = 29200)]
    s3_port: u16,
}

const IN: &str = "elasticity-in";
const OUT: &str = "elasticity-out";
const PARTITIONS: i32 = 8;
/// After a disturbance, until the next one.
const REST: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// What one kind of disturbance cost, each time, in milliseconds.
struct Costs {
    name: String,
    /// The longest time without output.
    gaps: Vec<i64>,
    /// From its beginning until output came again, or the new number of workers took part.
    wholes: Vec<i64>,
}

impl Costs {
    fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            gaps: Vec::new(),
            wholes: Vec::new(),
        }
    }

    fn add(&mut self, gap: Duration, whole: Duration) {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        self.gaps.push(ms(gap));
        self.wholes.push(ms(whole));
        println!(
            "elasticity: {}: nothing came for {} ms, over after {} ms",
            self.name,
            gap.as_millis(),
            whole.as_millis()
        );
    }

    fn line(mut self) -> String {
        let each = |values: &mut Vec<i64>| {
            values.sort_unstable();
            let at = |share| percentile(values, share);
            format!("p50 {} p99 {} max {} ms", at(0.5), at(0.99), at(1.0))
        };
        let (gaps, wholes) = (each(&mut self.gaps), each(&mut self.wholes));
        let times = self.gaps.len();
        format!(
            "{} ({times} times): longest gap {gaps}, in all {wholes}",
            self.name
        )
    }
}

pub fn run(options: &Options) -> Result<String> {
    let server = Server::kafka(options.kafka_port)?;
    let store = Server::s3(options.s3_port)?;
    store.bucket("streams")?;
    let brokers = server.address();
    let work = Work::new("elasticity")?;
    for topic in [IN, OUT] {
        kafka::create_topic(&brokers, topic, PARTITIONS, &[])?;
    }
    let place = Place {
        brokers: brokers.clone(),
        s3: store.url(),
        folder: work.folder.clone(),
        interval: options.interval.clone(),
    };
    let load = Load::new(&brokers, options.keys)?;
    let watch = Watch::new(&brokers, load.sent())?;
    let mut fleet = Penstock::new(&options.penstock, place)?;
    let costs = measure(options, &load, &watch, &mut fleet)?;
    fleet.stop()?;
    work.done()?;
    let lines: Vec<String> = costs.into_iter().map(Costs::line).collect();
    for line in &lines {
        println!("elasticity: {line}");
    }
    Ok(lines.join("; "))
}

fn measure(
    options: &Options,
    load: &Load,
    watch: &Watch,
    fleet: &mut dyn Fleet,
) -> Result<Vec<Costs>> {
    for worker in 0..3 {
        fleet.add(worker)?;
    }
    let began = Instant::now();
    load.every_key()?;
    watch.caught_up(Duration::from_secs(1800))?;
    println!(
        "elasticity: {} keys in the state after {:.0} s: {}",
        options.keys,
        began.elapsed().as_secs_f64(),
        fleet.state()?
    );
    load.rate(options.rate);
    sleep(REST);
    let steady = Instant::now();
    sleep(REST);
    let steady = watch.longest_since(steady)?.length.as_millis();
    println!("elasticity: undisturbed, the longest gap is {steady} ms");

    let mut costs = Vec::new();
    if options.kills > 0 {
        costs.extend(kills(options.kills, watch, fleet)?);
    }
    if options.rescales > 0 {
        costs.extend(rescales(options.rescales, watch, fleet)?);
    }
    load.stop()?;
    watch.caught_up(PATIENCE)?;
    ensure!(watch.rows() > 0, "no row came out");
    println!("elasticity: each of {} rows was counted once", watch.rows());
    Ok(costs)
}

/// Of three workers, each in its turn.
fn kills(times: usize, watch: &Watch, fleet: &mut dyn Fleet) -> Result<Vec<Costs>> {
    let mut member = Costs::of("a member is killed");
    let mut coordinator = Costs::of("the coordinator is killed");
    for n in 0..times {
        let leads = fleet.coordinator()?;
        let which = (leads + n as u32 % 3) % 3;
        let costs = match which == leads {
            true => &mut coordinator,
            false => &mut member,
        };
        let at = Instant::now();
        fleet.kill(which)?;
        fleet.until(3, PATIENCE)?;
        sleep(REST);
        let worst = watch.longest_since(at)?;
        costs.add(worst.length, worst.ended - at);
    }
    Ok(vec![member, coordinator])
}

fn rescales(times: usize, watch: &Watch, fleet: &mut dyn Fleet) -> Result<Vec<Costs>> {
    fleet.remove(2)?;
    fleet.until(2, PATIENCE)?;
    sleep(REST);
    let steps = [(2, 1), (1, 2), (2, 3), (3, 2)];
    let mut costs = steps.map(|(from, to)| Costs::of(format!("{from} to {to} workers")));
    for _ in 0..times {
        for ((from, to), costs) in steps.into_iter().zip(&mut costs) {
            let at = Instant::now();
            match to > from {
                true => fleet.add(from)?,
                false => fleet.remove(to)?,
            }
            let there = fleet.until(to, PATIENCE)?;
            sleep(REST);
            costs.add(watch.longest_since(at)?.length, there - at);
        }
    }
    Ok(costs.into())
}
