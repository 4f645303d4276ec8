//! The autoscaler on a real job with real rows: workers with a share of a CPU each, what 1 to 4 of them can do, and then a load that is
//! three times as high from one moment to the next. The decisions are those of the controller's own function, from what the job's own
//! status says, asked as often as the controller asks; who carries them out is this program, as it starts and stops the workers.
//!
//! Where what workers can do is not in proportion to their number the machine is too small for them, and nothing is judged.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use clap::Args;
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::JobStatus;
use penstock_operator::autoscale::{self, Decision, History, Reason, Sample};

use super::elasticity::PATIENCE;
use super::elasticity::fleet::{Fleet, Penstock, Place, Share};
use super::elasticity::traffic::Load;
use crate::bed::Server;
use crate::groups::Bounds;
use crate::kafka;
use crate::suite::Work;

#[derive(Args, Clone)]
pub struct Options {
    /// The program under test
    #[arg(long, default_value = "penstock")]
    penstock: PathBuf,
    /// CPUs of each worker
    #[arg(long, default_value_t = 0.35)]
    cpus: f64,
    /// Share of what one worker can do that comes before the step
    #[arg(long, default_value_t = 0.45)]
    load: f64,
    /// How long what so many workers can do is measured, in seconds
    #[arg(long, default_value_t = 25)]
    measured: u64,
    #[arg(long, default_value_t = 29392)]
    kafka_port: u16,
    #[arg(long, default_value_t = 29200)]
    s3_port: u16,
}

const MOST: u32 = 4;
/// Whatever the number of workers, each has as many.
const SPLITS: i32 = 12;
const KEYS: usize = 1_000;
/// By how much what N workers can do may differ from N times what one can.
const LINEAR: f64 = 0.15;
const STEP: f64 = 3.0;
/// As the controller asks.
const POLL: Duration = Duration::from_secs(10);
/// The most from the step to the decision: a poll and a full window.
const DECIDES: Duration = Duration::from_secs(90);
/// How long no other decision may be made after that.
const WATCHED: Duration = Duration::from_secs(150);
/// As `autoscale` has them: the share of its capacity that a job is to use, and in how many seconds it is to catch up.
const RHO: f64 = 0.75;
const CATCH_UP: f64 = 300.0;

/// A row costs some twenty microseconds: little enough comes then that broker and sender are no bound.
fn job(place: &Place, prefix: &str) -> String {
    let Place {
        brokers,
        s3,
        input,
        output,
        ..
    } = place;
    format!(
        "apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: autoscale}}
spec:
  sources:
    - name: rows_in
      kafka: {{bootstrapServers: '{brokers}', topics: [{input}], startFrom: {{earliest: {{}}}}}}
      format: {{json: {{timestamps: EpochMillis}}}}
      columns:
        - {{name: k, type: BIGINT, nullable: false}}
        - {{name: t, type: TIMESTAMP(3), nullable: false}}
        - {{name: v, type: STRING, nullable: false}}
      watermark: {{column: t, maxOutOfOrderness: 1s}}
  sql: |
    INSERT INTO out SELECT window_start, k, COUNT(*) AS n, MAX(levenshtein(v, reverse(v))) AS far
    FROM TABLE(TUMBLE(TABLE rows_in, DESCRIPTOR(t), INTERVAL '10' SECOND)) GROUP BY window_start, window_end, k
  sinks:
    - name: out
      kafka: {{bootstrapServers: '{brokers}', topic: {output}}}
      format: {{json: {{}}}}
      delivery: ExactlyOnce
  checkpoint:
    interval: 1s
    storage: {{s3: {{bucket: streams, prefix: {prefix}, region: us-east-1, endpoint: '{s3}', pathStyle: true}}}}
  workers: {{slots: 1}}
  autoscaling: {{mode: Active, minReplicas: 1, maxReplicas: {MOST}, targetLag: 30s}}
"
    )
}

pub fn run(options: &Options) -> Result<String> {
    let server = Server::kafka(options.kafka_port)?;
    let store = Server::s3(options.s3_port)?;
    store.bucket("streams")?;
    let work = Work::new("autoscale")?;
    let brokers = server.address();
    let place = |name: &str| -> Result<Place> {
        let topic = |end: &str| format!("autoscale-{name}-{end}");
        for end in ["in", "out"] {
            kafka::create_topic(&brokers, &topic(end), SPLITS, &[])?;
        }
        let folder = work.path(name);
        Ok(Place::at(
            &brokers,
            store.url(),
            &folder,
            topic("in"),
            topic("out"),
        ))
    };
    let measured = capacities(options, &place)?;
    let one = measured[0];
    let mut text = String::new();
    let mut linear = true;
    for (workers, rate) in (1..).zip(&measured) {
        let of_linear = rate / (one * f64::from(workers));
        linear &= (of_linear - 1.0).abs() <= LINEAR;
        text += &format!("{workers}: {rate:.0} ({of_linear:.2} of linear) ");
    }
    println!(
        "autoscale: rows per second by workers with {} CPUs each: {text}",
        options.cpus
    );
    ensure!(
        linear,
        "not judged: what workers can do is not within {LINEAR} of linear on this machine: {text}"
    );
    let step = step(options, &place("step")?, &measured)?;
    work.done()?;
    Ok(format!("{text}rows per second; {step}"))
}

fn share(options: &Options) -> Share {
    Share {
        budget: 256 << 20,
        bounds: Some(Bounds {
            memory: None,
            cpus: Some(options.cpus),
        }),
    }
}

/// Rows per second of 1, 2, 3 and 4 workers that have more to read than they can.
fn capacities(options: &Options, place: &dyn Fn(&str) -> Result<Place>) -> Result<Vec<f64>> {
    let source = place("capacity")?;
    let load = Load::spread(&source, KEYS, SPLITS)?;
    let mut rates = Vec::new();
    let mut needed = 0.0;
    for workers in 1..=MOST {
        // What the first could read tells how much the others need.
        let rows = match rates.first() {
            None => 2_000_000.0,
            Some(one) => needed_by(*one, workers, options),
        };
        needed = f64::max(needed, rows);
        load.rate(300_000);
        while (load.rows() as f64) < needed {
            sleep(Duration::from_millis(100));
        }
        load.rate(0);
        let own = format!("capacity-{workers}");
        let at = Place {
            folder: source.folder.join(&own),
            ..source.clone()
        };
        let manifest = job(&at, &own);
        let mut fleet = Penstock::of(&options.penstock, at, share(options), &manifest)?;
        fleet.begin(workers)?;
        fleet.until(workers, PATIENCE)?;
        // Not what the beginning costs.
        sleep(Duration::from_secs(10));
        let (began, before) = (Instant::now(), read(&fleet)?);
        sleep(Duration::from_secs(options.measured));
        let rows = read(&fleet)? - before;
        let rate = rows as f64 / began.elapsed().as_secs_f64();
        let lag = status(&fleet)?.lag.context("no lag")?.records;
        ensure!(
            lag > 0,
            "{workers} workers have read everything: nothing was measured"
        );
        println!("autoscale: {workers} workers read {rate:.0} rows per second");
        fleet.stop()?;
        rates.push(rate);
    }
    load.stop()?;
    Ok(rates)
}

fn needed_by(one: f64, workers: u32, options: &Options) -> f64 {
    let seconds = options.measured as f64 + 25.0;
    one * f64::from(workers) * 1.2 * seconds
}

fn status(fleet: &Penstock) -> Result<JobStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some((_, said)) = fleet.status() {
            return serde_json::from_value(said).context("the status is not that of a job");
        }
        ensure!(Instant::now() < until, "nobody coordinates");
        sleep(Duration::from_millis(100));
    }
}

/// Rows read, by the lag alone: what is counted begins anew with each coordinator.
fn read(fleet: &Penstock) -> Result<u64> {
    let (_, said) = fleet.status().context("nobody coordinates")?;
    said.pointer("/counts/rows_in")
        .and_then(serde_json::Value::as_u64)
        .context("no count of rows")
}

/// The load triples: which decisions are made, and when.
fn step(options: &Options, place: &Place, measured: &[f64]) -> Result<String> {
    let text = job(place, "step");
    let spec: StreamingJob = serde_yaml::from_str(&text)?;
    let load = Load::spread(place, KEYS, SPLITS)?;
    let mut fleet = Penstock::of(&options.penstock, place.clone(), share(options), &text)?;
    fleet.begin(1)?;
    fleet.until(1, PATIENCE)?;
    let before = measured[0] * options.load;
    load.rate(before as usize);
    let mut asks = Asks {
        spec,
        history: History::default(),
        workers: 1,
    };
    // Until it knows what it may do, and wants nothing.
    let began = Instant::now();
    loop {
        let decision = asks.ask(&fleet)?;
        ensure!(
            decision.workers == 1,
            "{decision:?} under {before:.0} rows per second"
        );
        if decision.reason == Reason::WithinTarget && began.elapsed() > Duration::from_secs(60) {
            break;
        }
        ensure!(
            began.elapsed() < PATIENCE * 2,
            "it does not settle: {decision:?}"
        );
        sleep(POLL);
    }
    let after = before * STEP;
    load.rate(after as usize);
    let at = Instant::now();
    let mut decisions = Vec::new();
    let mut most_lag = 0.0_f64;
    let mut until = at + DECIDES * 2;
    while Instant::now() < until {
        sleep(POLL);
        let decision = asks.ask(&fleet)?;
        let lag = status(&fleet)?.lag.context("no lag")?;
        most_lag = most_lag.max(lag.seconds);
        println!(
            "autoscale: {:.0} s after the step: {} workers, lag {} rows, {:.0} s: {decision:?}",
            at.elapsed().as_secs_f64(),
            asks.workers,
            lag.records,
            lag.seconds
        );
        if decision.workers != asks.workers {
            if decisions.is_empty() {
                let wanted = least(measured, after, lag.records as f64);
                decisions.push((at.elapsed(), decision, wanted));
                until = Instant::now() + WATCHED;
            } else {
                decisions.push((at.elapsed(), decision, decision.workers));
            }
            asks.carry_out(&mut fleet, decision)?;
        }
    }
    load.stop()?;
    let lag = status(&fleet)?.lag.context("no lag")?.seconds;
    fleet.stop()?;
    let Some((took, first, least)) = decisions.first() else {
        bail!("no decision after a step from {before:.0} to {after:.0} rows per second");
    };
    let line = format!(
        "a step from {before:.0} to {after:.0}: {} decision(s), the first after {:.0} s (at most {:.0}): {} workers for {:?}, of whom {least} are needed; the most lag {most_lag:.0} s, at the end {lag:.0} s",
        decisions.len(),
        took.as_secs_f64(),
        DECIDES.as_secs_f64(),
        first.workers,
        first.reason,
    );
    let good = decisions.len() == 1 && *took <= DECIDES && first.workers == *least;
    ensure!(good, "{line}");
    Ok(line)
}

/// The fewest that, by what was measured, can do the load at the share that they are to work at, and catch up in time.
fn least(measured: &[f64], load: f64, lag: f64) -> u32 {
    // A change takes as long as it does in a cluster: `autoscale` reckons with it.
    let required = f64::max(load / RHO, load + (lag + load * 15.0) / CATCH_UP);
    let mut enough = (1..).zip(measured).filter(|(_, rate)| **rate >= required);
    enough.next().map_or(MOST, |(workers, _)| workers)
}

/// The controller's side.
struct Asks {
    spec: StreamingJob,
    history: History,
    workers: u32,
}

impl Asks {
    fn ask(&mut self, fleet: &Penstock) -> Result<Decision> {
        let now = Utc::now();
        if let Some(sample) = Sample::of(&status(fleet)?, now) {
            println!(
                "autoscale: {} workers: {:.0} rows per second came, {:.0} were read, the busiest slot works {:.0} % of its time",
                sample.workers,
                sample.came,
                sample.read,
                sample.busiest * 100.0
            );
            self.history.add(sample);
        }
        autoscale::of(&self.spec, &self.history, Some(self.workers), now)
            .context("nobody has asked for autoscaling")
    }

    fn carry_out(&mut self, fleet: &mut Penstock, decision: Decision) -> Result<()> {
        for _ in self.workers..decision.workers {
            fleet.add()?;
        }
        for _ in decision.workers..self.workers {
            fleet.remove()?;
        }
        self.workers = decision.workers;
        fleet.until(self.workers, PATIENCE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_a_valid_manifest() {
        let place = Place::at(
            "127.0.0.1:9092",
            "http://127.0.0.1:9000".to_owned(),
            &PathBuf::new(),
            "in".to_owned(),
            "out".to_owned(),
        );
        crate::manifest::assert_valid(&job(&place, "job"));
    }

    #[test]
    fn the_least_number_of_workers_holds_the_load_and_catches_up() {
        let measured = [100.0, 200.0, 300.0, 400.0];
        assert_eq!(least(&measured, 60.0, 0.0), 1);
        assert_eq!(
            least(&measured, 80.0, 0.0),
            2,
            "at most three quarters of the time"
        );
        assert_eq!(least(&measured, 180.0, 0.0), 3);
        assert_eq!(
            least(&measured, 180.0, 40_000.0),
            4,
            "what is behind counts"
        );
        assert_eq!(least(&measured, 900.0, 0.0), 4, "no more than there may be");
    }
}
