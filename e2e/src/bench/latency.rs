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
use crate::engine::{Engine, Launch, Watched};
use crate::kafka::{self, Appended, From, Pace, Prompt, Reader, Seen};
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
    /// `checkpoint.interval` of the jobs
    #[arg(long, default_value = "100ms")]
    interval: String,
    /// Write the times of each row (number, appended to the input, arrived; ms since 1970) to <FILE>-<case>.csv: for who looks
    /// for the cause of a tail
    #[arg(long)]
    samples: Option<PathBuf>,
}

const WARM_UP_SECONDS: usize = 5;
/// Distinct values of `k`. The partitions divide it, so that a key's rows stand in one partition, in order.
const KEYS: usize = 1_000;

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

/// Which input rows an output row stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// The one with its `id`.
    Itself,
    /// Those of its key `k` that its count `n` counts and no output before it did; its `id` is the last one's.
    Counted,
}

/// When each input row arrived; what is not possible is refused.
struct Arrivals {
    /// By number; 0: not yet.
    at: Vec<i64>,
    missing: usize,
    /// Per key the rows that were counted.
    counted: Vec<usize>,
    /// Rows that came out only as part of a later one's count.
    folded: usize,
}

impl Arrivals {
    fn new(count: usize) -> Self {
        Self {
            at: vec![0; count],
            missing: count,
            counted: vec![0; KEYS],
            folded: 0,
        }
    }

    fn take(&mut self, row: &Value, shows: Shows, at: i64) -> Result<()> {
        let number = |name: &str| {
            let number = row[name]
                .as_u64()
                .with_context(|| format!("no {name} in {row}"))?;
            Ok::<_, anyhow::Error>(usize::try_from(number)?)
        };
        let id = number("id")?;
        match shows {
            Shows::Itself => self.arrive(id, at),
            Shows::Counted => {
                let (k, n) = (number("k")?, number("n")?);
                ensure!(
                    k < KEYS && n > self.counted[k] && id == (n - 1) * KEYS + k,
                    "{row} is not the state of key {k} after its row {n}, or comes after {} were counted",
                    self.counted.get(k).copied().unwrap_or_default()
                );
                let from = std::mem::replace(&mut self.counted[k], n);
                (from..n).try_for_each(|i| self.arrive(i * KEYS + k, at))?;
                self.folded += n - from - 1;
                Ok(())
            }
        }
    }

    fn arrive(&mut self, number: usize, at: i64) -> Result<()> {
        let slot = self
            .at
            .get_mut(number)
            .with_context(|| format!("row {number} was never sent"))?;
        ensure!(*slot == 0, "row {number} came twice");
        *slot = at;
        self.missing -= 1;
        Ok(())
    }
}

/// What a probe measured.
pub struct Samples {
    /// Milliseconds, sorted.
    sorted: Vec<i64>,
    /// Rows that came out only as part of a later one's count.
    folded: usize,
    /// How late the sender was with a row at most: what it makes up for comes as a burst, on a machine that is busy elsewhere.
    behind: Duration,
    /// Number, appended, arrived.
    rows: Vec<(usize, i64, i64)>,
}

/// Sends numbered rows `{"id": n, "k": n % 1000}` at a steady rate and reads back what shows them. Fails when a row is missing.
fn probe(
    brokers: &str,
    input: &str,
    output: &str,
    rate: usize,
    seconds: usize,
    (shows, arrival): (Shows, Arrival),
) -> Result<Samples> {
    let count = rate * (WARM_UP_SECONDS + seconds);
    let times = Times(Arc::new((0..count).map(|_| AtomicI64::new(0)).collect()));
    // Where the append time counts, a prompt reader would only keep the broker busy.
    let pace = match arrival {
        Arrival::Appended => Pace::Leisurely,
        Arrival::Read => Pace::Prompt,
    };
    let mut reader = Reader::with_pace(brokers, output, From::End, pace)?;
    let producer = Prompt::new(brokers, input, times.clone())?;
    let began = Instant::now();
    let sender = std::thread::spawn(move || -> Result<Duration> {
        let mut behind = Duration::ZERO;
        for number in 0..count {
            let due = began + Duration::from_secs_f64(number as f64 / rate as f64);
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            } else if number >= rate * WARM_UP_SECONDS {
                behind = behind.max(due.elapsed());
            }
            let row = format!("{{\"id\":{number},\"k\":{}}}", number % KEYS);
            producer.send(number, (number % 4) as i32, row.as_bytes())?;
        }
        producer.flush()?;
        Ok(behind)
    });

    let mut arrivals = Arrivals::new(count);
    let mut heard = Instant::now();
    while arrivals.missing > 0 {
        match reader.next(Duration::from_millis(100))? {
            Seen::Record(record) => {
                heard = Instant::now();
                let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
                let row: Value = serde_json::from_slice(&record.value.unwrap_or_default())?;
                let at = match arrival {
                    Arrival::Appended => record.timestamp.context("no append time")?,
                    Arrival::Read => now,
                };
                arrivals.take(&row, shows, at)?;
            }
            Seen::End | Seen::Quiet => {
                if heard.elapsed() > Duration::from_secs(20)
                    && began.elapsed() > Duration::from_secs(30)
                {
                    bail!("{} of {count} rows did not come out", arrivals.missing);
                }
            }
        }
    }
    let behind = sender
        .join()
        .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let rows: Vec<(usize, i64, i64)> = (rate * WARM_UP_SECONDS..count)
        .map(|n| (n, times.0[n].load(Ordering::Acquire), arrivals.at[n]))
        .collect();
    ensure!(
        rows.iter().all(|(_, sent, _)| *sent > 0),
        "the broker did not say when it took some rows"
    );
    let mut sorted: Vec<i64> = rows.iter().map(|(_, sent, at)| at - sent).collect();
    sorted.sort_unstable();
    Ok(Samples {
        sorted,
        folded: arrivals.folded,
        behind,
        rows,
    })
}

impl Samples {
    fn line(&self) -> String {
        let folded = match self.folded {
            0 => String::new(),
            n => format!(", {n} shown by a later row of their key"),
        };
        format!(
            "p50 {} ms, p99 {} ms, p99.9 {} ms, max {} ms over {} rows{folded}, the sender at most {} ms late",
            percentile(&self.sorted, 0.5),
            percentile(&self.sorted, 0.99),
            percentile(&self.sorted, 0.999),
            percentile(&self.sorted, 1.0),
            self.sorted.len(),
            self.behind.as_millis()
        )
    }

    fn write(&self, file: &Path) -> Result<()> {
        let lines = self
            .rows
            .iter()
            .map(|(n, sent, at)| format!("{n},{sent},{at}\n"));
        let text: String = std::iter::once("number,appended,arrived\n".to_owned())
            .chain(lines)
            .collect();
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
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
        (Shows::Itself, Arrival::Read),
    )?;
    Ok(samples.line())
}

struct Case {
    name: &'static str,
    sql: &'static str,
    delivery: &'static str,
    /// Further fields of the sink.
    sink: &'static str,
    shows: Shows,
    arrival: Arrival,
    aim_p99: i64,
}

const CASES: [Case; 3] = [
    Case {
        name: "stateless",
        sql: "INSERT INTO out SELECT id, k FROM rows_in",
        delivery: "AtLeastOnce",
        sink: "",
        shows: Shows::Itself,
        arrival: Arrival::Appended,
        aim_p99: 5,
    },
    // Every row changes its key's result behind an exchange, and the result says up to which row it counts.
    Case {
        name: "keyed",
        sql: "INSERT INTO out SELECT k, COUNT(*) AS n, MAX(id) AS id FROM rows_in GROUP BY k",
        delivery: "AtLeastOnce",
        sink: "\n      outputMode: Update",
        shows: Shows::Counted,
        arrival: Arrival::Appended,
        aim_p99: 8,
    },
    Case {
        name: "exactly-once",
        sql: "INSERT INTO out SELECT id, k FROM rows_in",
        delivery: "ExactlyOnce",
        sink: "",
        shows: Shows::Itself,
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
        if let Some(file) = &options.samples {
            samples.write(&PathBuf::from(format!(
                "{}-{}.csv",
                file.display(),
                case.name
            )))?;
        }
        let p99 = percentile(&samples.sorted, 0.99);
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
    std::fs::write(
        &manifest,
        job(case, brokers, (&input, &output), folder, &options.interval),
    )?;
    let mut engine = Engine::start(&Launch {
        program: options.penstock.clone(),
        manifest,
        state: folder.join(format!("{name}-state")),
        secrets: None,
        memory: None,
        log: folder.join(format!("{name}.log")),
        fault: None,
        base_epochs: None,
        workers: 1,
        apart: false,
    })?;
    engine.until("the engine answers", Duration::from_secs(30), |_| true)?;
    std::thread::sleep(Duration::from_secs(2));
    let samples = probe(
        brokers,
        &input,
        &output,
        options.rate,
        options.seconds,
        (case.shows, case.arrival),
    )?;
    engine.interrupt(Duration::from_secs(60))?;
    Ok(samples)
}

fn job(
    case: &Case,
    brokers: &str,
    (input, output): (&str, &str),
    folder: &Path,
    interval: &str,
) -> String {
    let (
        Case {
            name,
            sql,
            delivery,
            sink,
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
      delivery: {delivery}{sink}
  checkpoint: {{interval: {interval}, storage: {{local: {{path: '{folder}/{name}-checkpoint'}}}}}}
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
                ("in", "out"),
                Path::new("/tmp/latency"),
                "100ms",
            ));
        }
    }

    fn row(k: usize, n: usize, id: usize) -> Value {
        serde_json::json!({"k": k, "n": n, "id": id})
    }

    #[test]
    fn a_count_shows_every_row_up_to_it_and_no_row_twice() {
        let mut arrivals = Arrivals::new(3 * KEYS);
        let mut take = |row: &Value, at| arrivals.take(row, Shows::Counted, at);
        take(&row(7, 1, 7), 10).unwrap();
        take(&row(7, 3, 2 * KEYS + 7), 12).unwrap();
        assert!(take(&row(7, 3, 2 * KEYS + 7), 13).is_err(), "again");
        assert!(
            take(&row(8, 2, 8), 13).is_err(),
            "the newest row is missing"
        );
        assert!(take(&row(8, 4, 3 * KEYS + 8), 13).is_err(), "never sent");
        assert_eq!(arrivals.at[7], 10);
        assert_eq!((arrivals.at[KEYS + 7], arrivals.at[2 * KEYS + 7]), (12, 12));
        assert_eq!(arrivals.folded, 1);
    }
}
