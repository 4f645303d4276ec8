//! Latency from broker to broker at a steady rate: each row's append time in the input topic against its append time in the
//! output topic (both the broker's own clock, `LogAppendTime`), or, where rows only become visible with their transaction,
//! against the moment a `read_committed` reader on this machine has it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::percentile;
use crate::bed::Server;
use crate::engine::{Engine, Launch};
use crate::kafka::{self, Appended, From, Prompt, Reader, Seen};
use crate::suite::Work;

#[derive(Args, Clone)]
pub struct Options {
    /// The program under test
    #[arg(long, default_value = "penstock")]
    penstock: PathBuf,
    /// Rows per second
    #[arg(long, default_value_t = 5_000)]
    rate: usize,
    /// Length of the measurement, after five seconds that do not count
    #[arg(long, default_value_t = 30)]
    seconds: usize,
    #[arg(long, default_value_t = 29392)]
    kafka_port: u16,
    /// Which cases: stateless, keyed, exactly-once
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "stateless,keyed,exactly-once"
    )]
    cases: Vec<String>,
}

const WARM_UP_SECONDS: usize = 5;

/// Milliseconds since 1970 at which each row was appended to the input; 0 is not yet known.
#[derive(Clone)]
struct Times(Arc<Vec<AtomicI64>>);

impl Appended for Times {
    fn appended(&self, number: usize, at: i64) {
        self.0[number].store(at, Ordering::Release);
    }
}

/// Until when a row counts as arrived.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// The broker's append time of the output record.
    Appended,
    /// When a reader of committed records has it.
    Read,
}

/// What a probe measured, in milliseconds, sorted.
pub struct Samples(Vec<i64>);

/// Sends numbered rows `{"id": n, "k": n % 1000}` at a steady rate and reads them back from the output topic by their `id`.
fn probe(
    brokers: &str,
    input: &str,
    output: &str,
    rate: usize,
    seconds: usize,
    arrival: Arrival,
) -> Result<Samples> {
    let count = rate * (WARM_UP_SECONDS + seconds);
    let times = Times(Arc::new((0..count).map(|_| AtomicI64::new(0)).collect()));
    let mut reader = Reader::new(brokers, output, From::End)?;
    let producer = Prompt::new(brokers, input, times.clone())?;
    let began = Instant::now();
    let sender = std::thread::spawn(move || -> Result<()> {
        for number in 0..count {
            let due = began + Duration::from_secs_f64(number as f64 / rate as f64);
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            let row = format!("{{\"id\":{number},\"k\":{}}}", number % 1_000);
            producer.send(number, (number % 4) as i32, row.as_bytes())?;
        }
        producer.flush()
    });

    let mut arrived = vec![0i64; count];
    let mut missing = count;
    let mut heard = Instant::now();
    while missing > 0 {
        match reader.next(Duration::from_millis(100))? {
            Seen::Record(record) => {
                heard = Instant::now();
                let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
                let row: Value = serde_json::from_slice(&record.value.unwrap_or_default())?;
                let number =
                    usize::try_from(row["id"].as_u64().context("an output row without id")?)?;
                ensure!(
                    number < count && arrived[number] == 0,
                    "row {number} came twice, or was never sent"
                );
                arrived[number] = match arrival {
                    Arrival::Appended => record.timestamp.context("no append time")?,
                    Arrival::Read => now,
                };
                missing -= 1;
            }
            Seen::End | Seen::Quiet => {
                if heard.elapsed() > Duration::from_secs(20)
                    && began.elapsed() > Duration::from_secs(30)
                {
                    bail!("{missing} of {count} rows did not come out");
                }
            }
        }
    }
    sender
        .join()
        .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let mut samples: Vec<i64> = (rate * WARM_UP_SECONDS..count)
        .map(|number| arrived[number] - times.0[number].load(Ordering::Acquire))
        .collect();
    samples.sort_unstable();
    Ok(Samples(samples))
}

impl Samples {
    fn line(&self) -> String {
        format!(
            "p50 {} ms, p99 {} ms, p99.9 {} ms, max {} ms over {} rows",
            percentile(&self.0, 0.5),
            percentile(&self.0, 0.99),
            percentile(&self.0, 0.999),
            percentile(&self.0, 1.0),
            self.0.len()
        )
    }
}

/// The broker's own part: rows sent to a topic and read back from it, without an engine.
pub fn baseline(brokers: &str, rate: usize, seconds: usize) -> Result<String> {
    kafka::create_topic(
        brokers,
        "latency-baseline",
        4,
        &[("message.timestamp.type", "LogAppendTime")],
    )?;
    let samples = probe(
        brokers,
        "latency-baseline",
        "latency-baseline",
        rate,
        seconds,
        Arrival::Read,
    )?;
    Ok(samples.line())
}

struct Case {
    name: &'static str,
    sql: &'static str,
    delivery: &'static str,
    arrival: Arrival,
    aim_p99: i64,
}

const CASES: [Case; 3] = [
    Case {
        name: "stateless",
        sql: "INSERT INTO out SELECT id, k FROM rows_in",
        delivery: "AtLeastOnce",
        arrival: Arrival::Appended,
        aim_p99: 5,
    },
    // The first row of each id: every row meets keyed state behind an exchange and leaves at once.
    Case {
        name: "keyed",
        sql: "INSERT INTO out SELECT id, k FROM (SELECT id, k, ROW_NUMBER() OVER (PARTITION BY id ORDER BY at ASC) AS rn FROM rows_in) WHERE rn = 1",
        delivery: "AtLeastOnce",
        arrival: Arrival::Appended,
        aim_p99: 8,
    },
    Case {
        name: "exactly-once",
        sql: "INSERT INTO out SELECT id, k FROM rows_in",
        delivery: "ExactlyOnce",
        arrival: Arrival::Read,
        aim_p99: 150,
    },
];

pub fn run(options: &Options) -> Result<String> {
    let server = Server::kafka(options.kafka_port)?;
    let brokers = server.address();
    let work = Work::new("latency")?;
    println!(
        "latency: the broker alone: {}",
        baseline(&brokers, options.rate, 5)?
    );
    let (mut results, mut good) = (Vec::new(), true);
    for case in CASES
        .iter()
        .filter(|case| options.cases.iter().any(|name| name == case.name))
    {
        let samples = measure(options, case, &brokers, &work.folder)?;
        let p99 = percentile(&samples.0, 0.99);
        println!(
            "latency: {} ({}): {}; aim p99 ≤ {} ms",
            case.name,
            case.delivery,
            samples.line(),
            case.aim_p99
        );
        good &= p99 <= case.aim_p99;
        results.push(format!("{} p99 {p99} ms (aim {})", case.name, case.aim_p99));
    }
    ensure!(good, "{} at {} rows/s", results.join(", "), options.rate);
    work.done()?;
    Ok(format!("{} at {} rows/s", results.join(", "), options.rate))
}

fn measure(options: &Options, case: &Case, brokers: &str, folder: &Path) -> Result<Samples> {
    let (input, output) = (
        format!("latency-{}-in", case.name),
        format!("latency-{}-out", case.name),
    );
    kafka::create_topic(
        brokers,
        &input,
        4,
        &[("message.timestamp.type", "LogAppendTime")],
    )?;
    kafka::create_topic(
        brokers,
        &output,
        4,
        &[("message.timestamp.type", "LogAppendTime")],
    )?;
    let manifest = folder.join(format!("{}.yaml", case.name));
    let name = case.name;
    std::fs::write(&manifest, job(case, brokers, &input, &output, folder))?;
    let mut engine = Engine::start(&Launch {
        program: options.penstock.clone(),
        manifest,
        state: folder.join(format!("{name}-state")),
        memory: None,
        log: folder.join(format!("{name}.log")),
        fault: None,
        base_epochs: None,
    })?;
    engine.until("the engine answers", Duration::from_secs(30), |_| true)?;
    std::thread::sleep(Duration::from_secs(2));
    let samples = probe(
        brokers,
        &input,
        &output,
        options.rate,
        options.seconds,
        case.arrival,
    )?;
    engine.interrupt(Duration::from_secs(60))?;
    Ok(samples)
}

fn job(case: &Case, brokers: &str, input: &str, output: &str, folder: &Path) -> String {
    let (
        Case {
            name,
            sql,
            delivery,
            ..
        },
        folder,
    ) = (case, folder.display());
    format!(
        "apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: latency-{name}}}
spec:
  sources:
    - name: rows_in
      kafka: {{bootstrapServers: '{brokers}', topics: [{input}], startFrom: {{earliest: {{}}}}}}
      format: {{json: {{}}}}
      columns:
        - {{name: id, type: BIGINT, nullable: false}}
        - {{name: k, type: BIGINT}}
        - {{name: at, type: TIMESTAMP(3), from: Timestamp}}
      watermark: {{column: at, maxOutOfOrderness: 1s}}
  sql: |
    {sql}
  sinks:
    - name: out
      kafka: {{bootstrapServers: '{brokers}', topic: {output}}}
      format: {{json: {{}}}}
      delivery: {delivery}
  checkpoint: {{interval: 100ms, storage: {{local: {{path: '{folder}/{name}-checkpoint'}}}}}}
  state: {{ttl: 1h}}
  workers: {{slots: 2}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_are_valid_manifests() {
        for case in &CASES {
            crate::manifest::assert_valid(&job(
                case,
                "127.0.0.1:9092",
                "in",
                "out",
                Path::new("/tmp/latency"),
            ));
        }
    }
}
