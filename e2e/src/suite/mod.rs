//! The suites, and what they share: the options of a run, the flights and their answers, the comparison with the oracle.

pub mod exactly_once;
pub mod flights;
pub mod kind;
pub mod secure;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::bed::{root, testbed};
use crate::engine::Watched;
use crate::kafka::{self, From, Loader, Reader, Seen, read_lines};
use crate::{canonical, dump};

/// Partitions of every topic of the suites.
pub const PARTITIONS: i32 = 4;

/// What every suite is told.
#[derive(Args, Clone)]
pub struct Options {
    /// The folder that e2e/data/flights.py made
    #[arg(long)]
    pub data: PathBuf,
    /// The program under test
    #[arg(long, default_value = "penstock")]
    pub penstock: PathBuf,
    /// A Python with duckdb, for compare.py
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    /// Port of the Kafka broker that the suite starts; the next one is taken too
    #[arg(long, default_value_t = 29292)]
    pub kafka_port: u16,
    /// Port of the S3 server that the suite starts
    #[arg(long, default_value_t = 29200)]
    pub s3_port: u16,
    /// How many flights the data has: for `./dev`, which makes them
    #[arg(long)]
    pub rows: Option<u64>,
}

/// A folder for one run of a suite: manifests, logs, volumes, dumps. It goes when the suite passes and stays when it fails.
pub struct Work {
    pub folder: PathBuf,
}

impl Work {
    pub fn new(suite: &str) -> Result<Self> {
        let folder = testbed()
            .join("work")
            .join(format!("{suite}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        eprintln!(
            "{suite}: manifests, logs and dumps are in {}",
            folder.display()
        );
        Ok(Self { folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn done(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder).context("cannot remove the work folder")
    }
}

/// A row of the input.
#[derive(Clone)]
pub struct Row {
    pub line: Vec<u8>,
    /// Whether it is one that no reader of JSON may forgive.
    pub poison: bool,
}

/// The input of the flights suites, in memory, and the facts about it.
pub struct Flights {
    folder: PathBuf,
    parts: Vec<Vec<Vec<u8>>>,
    late: Vec<Vec<u8>>,
    poison: Vec<(i32, i64)>,
    /// Event time of the first flight, as text.
    pub first: String,
    pub count: u64,
}

impl Flights {
    pub fn load(folder: &Path) -> Result<Self> {
        let facts: Value = serde_json::from_slice(
            &std::fs::read(folder.join("facts.json")).with_context(|| {
                format!(
                    "{} has no facts.json, make it by e2e/data/flights.py",
                    folder.display()
                )
            })?,
        )?;
        let parts = (0..PARTITIONS)
            .map(|partition| read_lines(&folder.join(format!("part-{partition}.jsonl"))))
            .collect::<Result<Vec<_>>>()?;
        let poison = read_lines(&folder.join("poison.txt"))?
            .iter()
            .map(|line| {
                let text = std::str::from_utf8(line)?;
                let mut words = text.split(' ');
                let mut number = || {
                    words
                        .next()
                        .context("a short line in poison.txt")?
                        .parse::<i64>()
                        .context("poison.txt")
                };
                Ok((i32::try_from(number()?)?, number()?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            parts,
            late: read_lines(&folder.join("late.jsonl"))?,
            poison,
            first: facts["first"]
                .as_str()
                .context("facts.json: first")?
                .to_owned(),
            count: facts["flights"].as_u64().context("facts.json: flights")?,
            folder: folder.to_owned(),
        })
    }

    /// Writes slice `number` of `of` of every partition, in order: all slices together are the whole input.
    /// The broker has it after a flush of the loader.
    pub fn put_slice(&self, loader: &mut Loader, number: usize, of: usize) -> Result<()> {
        ensure!(number < of, "there are only {of} slices");
        for (partition, lines) in (0..).zip(&self.parts) {
            for line in &lines[part(lines.len(), number, of)] {
                loader.put(partition, line)?;
            }
        }
        Ok(())
    }

    /// The same slice, by partition, for whoever writes it a row at a time.
    pub fn slice(&self, number: usize, of: usize) -> Vec<VecDeque<Row>> {
        let partitions = (0..).zip(&self.parts).map(|(partition, lines)| {
            let rows = part(lines.len(), number, of).map(|at| Row {
                line: lines[at].clone(),
                poison: self.poison.contains(&(partition, at as i64)),
            });
            rows.collect()
        });
        partitions.collect()
    }

    /// Writes the rows that are too late, and answers the place of each in the topic, given that all slices stand before them.
    pub fn put_late(&self, loader: &mut Loader) -> Result<Vec<(i32, i64)>> {
        let mut next: Vec<i64> = self.parts.iter().map(|lines| lines.len() as i64).collect();
        let mut places = Vec::with_capacity(self.late.len());
        for (partition, line) in (0..PARTITIONS).cycle().zip(&self.late) {
            loader.put(partition, line)?;
            places.push((partition, next[partition as usize]));
            next[partition as usize] += 1;
        }
        loader.flush()?;
        Ok(places)
    }

    /// Writes the first or second end markers, round robin.
    pub fn put_markers(&self, loader: &mut Loader, which: u8) -> Result<()> {
        for (partition, line) in (0..PARTITIONS).cycle().zip(read_lines(
            &self.folder.join(format!("markers-{which}.jsonl")),
        )?) {
            loader.put(partition, &line)?;
        }
        loader.flush()
    }

    /// Places and bodies of the rows that belong into the dead letters.
    pub fn rejects(&self, late: &[(i32, i64)]) -> Rejects {
        let poison = self.poison.iter().map(|&(partition, offset)| {
            let body = self.parts[partition as usize][offset as usize].clone();
            ((partition, offset), ("poison", body))
        });
        let late = late
            .iter()
            .zip(&self.late)
            .map(|(&place, line)| (place, ("late", line.clone())));
        Rejects(poison.chain(late).collect())
    }

    /// How many end markers the first set has: so many rows of theirs must come out of the hourly windows.
    pub fn markers(&self) -> Result<usize> {
        Ok(read_lines(&self.folder.join("markers-1.jsonl"))?.len())
    }

    /// Compares an output topic with the oracle, end markers left out. Prints what is missing and what is extra.
    pub fn compare(
        &self,
        options: &Options,
        brokers: &str,
        topic: &str,
        answer: &str,
        work: &Work,
    ) -> Result<bool> {
        let rows = work.path(&format!("{topic}.txt"));
        let summary = dump::dump(brokers, topic, false, Some(&rows))?;
        println!("{topic}: {summary}");
        let status = Command::new(&options.python)
            .arg(root().join("e2e/compare.py"))
            .args([
                "--name",
                topic,
                "--drop",
                "END-",
                "--drop",
                "LAST",
                "--expected",
            ])
            .arg(self.folder.join(format!("expected-{answer}.txt")))
            .arg("--actual")
            .arg(&rows)
            .status()
            .context("cannot run compare.py")?;
        Ok(status.success())
    }
}

/// Where slice `number` of `of` of so many lines is.
fn part(lines: usize, number: usize, of: usize) -> Range<usize> {
    lines * number / of..lines * (number + 1) / of
}

/// What the dead letters must hold: place in the input, kind and body of each row.
pub struct Rejects(BTreeMap<(i32, i64), (&'static str, Vec<u8>)>);

impl Rejects {
    /// Reads the dead letters and compares: each row once, with its own bytes. Prints what is missing, repeated and extra.
    pub fn compare(&self, brokers: &str, topic: &str) -> Result<bool> {
        let mut found: BTreeMap<(i32, i64), u64> = BTreeMap::new();
        let (mut altered, mut nameless) = (0u64, 0u64);
        Reader::new(brokers, topic, From::Beginning)?.drain(|record| {
            let number = |name: &str| {
                record
                    .headers
                    .iter()
                    .find(|(key, _)| key.rsplit(['.', '-', '_']).next() == Some(name))
                    .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse::<i64>().ok())
            };
            let Some((partition, offset)) = number("partition").zip(number("offset")) else {
                nameless += 1;
                return Ok(());
            };
            let place = (i32::try_from(partition)?, offset);
            *found.entry(place).or_default() += 1;
            if self
                .0
                .get(&place)
                .is_some_and(|(_, body)| record.value.as_ref() != Some(body))
            {
                altered += 1;
            }
            Ok(())
        })?;
        let mut good = altered == 0 && nameless == 0;
        for kind in ["poison", "late"] {
            let wanted: Vec<_> = self
                .0
                .iter()
                .filter(|(_, (k, _))| *k == kind)
                .map(|(place, _)| *place)
                .collect();
            let missing: Vec<_> = wanted
                .iter()
                .filter(|place| !found.contains_key(place))
                .collect();
            let repeated = wanted
                .iter()
                .filter(|place| found.get(place).is_some_and(|&n| n > 1))
                .count();
            println!(
                "{topic}: {} {kind} rows expected, {} missing, {repeated} more than once",
                wanted.len(),
                missing.len()
            );
            for place in missing.iter().take(5) {
                println!(
                    "  missing {kind} row at partition {} offset {}",
                    place.0, place.1
                );
            }
            good &= missing.is_empty() && repeated == 0;
        }
        let extra: Vec<_> = found
            .keys()
            .filter(|place| !self.0.contains_key(place))
            .collect();
        println!(
            "{topic}: {} extra, {altered} with another body, {nameless} without partition and offset headers",
            extra.len()
        );
        for place in extra.iter().take(5) {
            println!("  extra row of partition {} offset {}", place.0, place.1);
        }
        Ok(good && extra.is_empty())
    }
}

/// Reads a topic until so many rows of end markers (origins `END-…`) have been committed to it. Every writer publishes its
/// epochs in order, and there are markers enough for each to have some: what the flights gave stands before them.
pub fn await_markers(
    brokers: &str,
    topic: &str,
    wanted: usize,
    engine: &mut impl Watched,
    patience: Duration,
) -> Result<()> {
    let mut reader = Reader::new(brokers, topic, From::Beginning)?;
    let (began, mut seen) = (Instant::now(), 0);
    while seen < wanted {
        match reader.next(Duration::from_millis(200))? {
            Seen::Record(record) => {
                let row = canonical::row(&record.value.unwrap_or_default())?;
                seen += usize::from(row.split('|').any(|column| column.starts_with("END-")));
            }
            Seen::End | Seen::Quiet => {
                engine.status()?;
                if began.elapsed() > patience {
                    bail!("{topic}: {seen} of {wanted} rows of end markers after {patience:?}");
                }
            }
        }
    }
    Ok(())
}

/// Waits until everything in the input has been read and committed: no lag, and then one more commit or, since an epoch
/// without rows may not be committed at all, long enough for one.
pub fn await_caught_up(engine: &mut impl Watched, patience: Duration) -> Result<()> {
    let at = engine.until("the lag is 0", patience, |status| status.lag == Some(0))?;
    let since = Instant::now();
    engine.until("an epoch was committed after that", patience, |status| {
        status.epoch > at.epoch + 1 || since.elapsed() > Duration::from_secs(5)
    })?;
    Ok(())
}

/// Makes the topics of one flights job.
pub fn make_topics(brokers: &str, prefix: &str) -> Result<()> {
    for name in [
        "flights",
        "flights-hourly",
        "flights-six-hours",
        "flights-rejected",
    ] {
        kafka::create_topic(brokers, &format!("{prefix}{name}"), PARTITIONS, &[])?;
    }
    Ok(())
}
