//! What a lost worker and a changed number of workers cost a job with large state: how long nothing comes out, seen by a reader of
//! committed rows. Every row counts its key on, so a row that is lost or counted twice is seen at once.
//!
//! ```text
//! traffic   rows of random keys at a steady rate; what comes out of each, and when nothing does
//! fleet     the workers of one engine, which are killed, added and told to go
//! ```

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use clap::Args;

use super::percentile;
use crate::bed::Server;
use crate::suite::Work;

pub mod fleet;
pub mod traffic;

use fleet::{Fleet, Flink, Penstock, Place, Share};
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
    /// How often a worker is killed and its volume lost with it; not with Flink
    #[arg(long, default_value_t = 3)]
    lost: usize,
    /// How often the number of workers goes from 2 to 1 to 2 to 3 and back
    #[arg(long, default_value_t = 10)]
    rescales: usize,
    /// As often with Flink, which takes much longer; 0: without it
    #[arg(long, default_value_t = 3)]
    flink: usize,
    /// `checkpoint.interval`
    #[arg(long, default_value = "100ms")]
    interval: String,
    /// Milliseconds more for each write to the storage of checkpoints; not with Flink
    #[arg(long, default_value_t = 0)]
    put_delay: u64,
    #[arg(long, default_value_t = 29392)]
    kafka_port: u16,
    #[arg(long, default_value_t = 29200)]
    s3_port: u16,
}

pub const PARTITIONS: i32 = 8;
/// After a disturbance, until the next one.
const REST: Duration = Duration::from_secs(3);
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The most, at the 99th percentile: from a kill until output comes again, and without output when a worker comes.
const KILLED: i64 = 3_000;
const PAUSE: i64 = 200;
/// And from when the others know of a kill until output comes again, with the volume.
const MENDED: i64 = 1_000;

/// What one kind of disturbance cost, each time, in milliseconds.
struct Costs {
    name: String,
    /// The longest time without output.
    gaps: Vec<i64>,
    /// From its beginning until output came again, or the new number of workers took part.
    wholes: Vec<i64>,
    /// From its beginning until the others knew of it, where they say so.
    noticed: Vec<i64>,
    /// From there until output came again.
    mended: Vec<i64>,
    /// The most of the one and of the other.
    most_gap: Option<i64>,
    most_whole: Option<i64>,
}

impl Costs {
    fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            most_gap: None,
            most_whole: None,
            gaps: Vec::new(),
            wholes: Vec::new(),
            noticed: Vec::new(),
            mended: Vec::new(),
        }
    }

    /// Of a kill: when the others knew, as they say.
    fn add_noticed(&mut self, noticed: Duration, whole: Duration) {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        self.noticed.push(ms(noticed));
        self.mended.push(ms(whole.saturating_sub(noticed)));
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

    /// Of whom nothing is asked.
    fn aimless(self) -> Self {
        Self {
            most_gap: None,
            most_whole: None,
            ..self
        }
    }

    /// For people, and whether it is as good as it is to be.
    fn line(mut self) -> (String, bool) {
        self.gaps.sort_unstable();
        self.wholes.sort_unstable();
        self.noticed.sort_unstable();
        self.mended.sort_unstable();
        let each = |values: &[i64], most: Option<i64>| {
            let at = |share| percentile(values, share);
            let aim = most.map_or(String::new(), |most| format!(" (at most {most})"));
            let text = format!("p50 {} p99 {}{aim} max {} ms", at(0.5), at(0.99), at(1.0));
            (text, most.is_none_or(|most| at(0.99) <= most))
        };
        let (gaps, short) = each(&self.gaps, self.most_gap);
        let (wholes, soon) = each(&self.wholes, self.most_whole);
        let times = self.gaps.len();
        let mut text = format!(
            "{} ({times} times): longest gap {gaps}, in all {wholes}",
            self.name
        );
        let mut prompt = true;
        if !self.noticed.is_empty() {
            let ((noticed, _), (mended, in_time)) =
                (each(&self.noticed, None), each(&self.mended, Some(MENDED)));
            text += &format!(", noticed after {noticed}, from there to output {mended}");
            prompt = in_time;
        }
        (text, short && soon && prompt)
    }
}

pub fn run(options: &Options) -> Result<String> {
    let server = Server::kafka(options.kafka_port)?;
    let store = Server::s3(options.s3_port)?;
    store.bucket("streams")?;
    let brokers = server.address();
    let work = Work::new("elasticity")?;
    let place = |engine: &str| -> Result<Place> {
        let mut place = Place::new(&brokers, store.url(), &work.folder, engine, false)?;
        place.interval.clone_from(&options.interval);
        place.put_delay = options.put_delay;
        Ok(place)
    };
    let ours = place("penstock")?;
    let traffic = Traffic::new(&ours, options)?;
    let share = Share {
        budget: 170 << 20,
        bounds: None,
    };
    let mut fleet = Penstock::new(&options.penstock, ours, share)?;
    let times = Times {
        kills: options.kills,
        lost: options.lost,
        rescales: options.rescales,
    };
    let mut costs = measure("Penstock", times, &traffic, &mut fleet)?;
    fleet.stop()?;
    drop((traffic, fleet));
    if options.flink > 0 {
        let theirs = place("flink")?;
        let traffic = Traffic::new(&theirs, options)?;
        let mut fleet = Flink::new(theirs);
        let times = Times {
            kills: options.flink,
            lost: 0,
            rescales: options.flink,
        };
        costs.extend(
            measure("Flink", times, &traffic, &mut fleet)?
                .into_iter()
                .map(Costs::aimless),
        );
        fleet.stop()?;
    }
    work.done()?;
    let delay = options.put_delay;
    println!(
        "elasticity: {} keys with 150 bytes each; S3 on this machine, {delay} ms added to each write of Penstock",
        options.keys
    );
    let (lines, good): (Vec<String>, Vec<bool>) = costs.into_iter().map(Costs::line).unzip();
    for line in &lines {
        println!("elasticity: {line}");
    }
    let line = lines.join("; ");
    ensure!(good.iter().all(|good| *good), "{line}");
    Ok(line)
}

/// How often each is done.
struct Times {
    kills: usize,
    lost: usize,
    rescales: usize,
}

/// What comes to the job and out of it.
struct Traffic {
    load: Load,
    watch: Watch,
    keys: usize,
    rate: usize,
}

impl Traffic {
    fn new(place: &Place, options: &Options) -> Result<Self> {
        let load = Load::new(place, options.keys)?;
        Ok(Self {
            watch: Watch::new(&place.brokers, &place.output, load.sent())?,
            load,
            keys: options.keys,
            rate: options.rate,
        })
    }
}

fn measure(
    engine: &str,
    times: Times,
    traffic: &Traffic,
    fleet: &mut dyn Fleet,
) -> Result<Vec<Costs>> {
    let Traffic { load, watch, .. } = traffic;
    fleet.begin(3)?;
    let began = Instant::now();
    load.every_key()?;
    watch.caught_up(Duration::from_secs(1800))?;
    println!(
        "elasticity: {engine}: {} keys in the state after {:.0} s: {}",
        traffic.keys,
        began.elapsed().as_secs_f64(),
        fleet.state()?
    );
    load.rate(traffic.rate);
    sleep(REST);
    let steady = Instant::now();
    sleep(REST);
    let steady = watch.longest_since(steady)?.length.as_millis();
    println!("elasticity: {engine}: undisturbed, the longest gap is {steady} ms");
    let mut costs = killed(times.kills, watch, fleet)?;
    costs.push(lost(times.lost, watch, fleet)?);
    if times.rescales > 0 {
        costs.extend(rescaled(times.rescales, watch, fleet)?);
    }
    load.stop()?;
    watch.caught_up(PATIENCE)?;
    ensure!(watch.rows() > 0, "no row came out");
    println!(
        "elasticity: {engine}: each of {} rows was counted once",
        watch.rows()
    );
    costs.retain(|c| !c.gaps.is_empty());
    for cost in &mut costs {
        cost.name = format!("{engine}: {}", cost.name);
    }
    Ok(costs)
}

/// Of three workers, each in its turn.
fn killed(times: usize, watch: &Watch, fleet: &mut dyn Fleet) -> Result<Vec<Costs>> {
    let mut member = Costs::of("a member is killed");
    let mut coordinator = Costs::of("the coordinator is killed");
    member.most_whole = Some(KILLED);
    coordinator.most_whole = Some(KILLED);
    for n in 0..times {
        let leads = fleet.coordinator()?;
        let which = (leads.unwrap_or(0) + n as u32 % 3) % 3;
        let costs = match leads == Some(which) {
            true => &mut coordinator,
            false => &mut member,
        };
        let (at, time) = (Instant::now(), SystemTime::now());
        fleet.kill(which)?;
        fleet.until(3, PATIENCE)?;
        settled(watch)?;
        let worst = watch.longest_since(at)?;
        costs.add(worst.length, worst.ended - at);
        if let Some(noticed) = fleet.noticed(time)? {
            costs.add_noticed(noticed, worst.ended - at);
        }
    }
    Ok(vec![member, coordinator])
}

/// A member at a time, with its volume. What it had is read from the storage of checkpoints.
fn lost(times: usize, watch: &Watch, fleet: &mut dyn Fleet) -> Result<Costs> {
    let mut costs = Costs::of("a member is killed and its volume lost");
    for n in 0..times {
        let leads = fleet.coordinator()?.unwrap_or(0);
        let at = Instant::now();
        let bytes = fleet.lose((leads + 1 + n as u32 % 2) % 3)?;
        fleet.until(3, PATIENCE)?;
        settled(watch)?;
        let worst = watch.longest_since(at)?;
        let megabytes = bytes as f64 / 1e6;
        println!(
            "elasticity: {megabytes:.0} MB were on the volume: {:.0} MB/s while nothing came",
            megabytes / worst.length.as_secs_f64()
        );
        costs.add(worst.length, worst.ended - at);
    }
    Ok(costs)
}

fn rescaled(times: usize, watch: &Watch, fleet: &mut dyn Fleet) -> Result<Vec<Costs>> {
    fleet.remove()?;
    fleet.until(2, PATIENCE)?;
    settled(watch)?;
    let steps = [(2, 1), (1, 2), (2, 3), (3, 2)];
    let mut costs = steps.map(|(from, to)| Costs {
        most_gap: (to > from).then_some(PAUSE),
        ..Costs::of(format!("{from} to {to} workers"))
    });
    for _ in 0..times {
        for ((from, to), costs) in steps.into_iter().zip(&mut costs) {
            let at = Instant::now();
            match to > from {
                true => fleet.add()?,
                false => fleet.remove()?,
            }
            let there = fleet.until(to, PATIENCE)?;
            settled(watch)?;
            costs.add(watch.longest_since(at)?.length, there - at);
        }
    }
    Ok(costs.into())
}

/// Nothing is in arrears any more, and has not been for a while.
pub fn settled(watch: &Watch) -> Result<()> {
    sleep(REST);
    watch.keeps_up(PATIENCE)?;
    sleep(REST);
    Ok(())
}
