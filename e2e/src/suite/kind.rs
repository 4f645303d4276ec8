//! Jobs on a real cluster: the flights in a namespace of their own for each scenario, a disturbance while they come and are read,
//! and the same comparison as everywhere: rows equal DuckDB's, rejects once each. The cluster, its Kafka and its S3 are there
//! already (`./dev kind up`).
//!
//! ```text
//! scenarios     what is done to a job, by name
//! job   feed    a job in a namespace of its own, and the rows that come to it
//! cluster       kubectl, the controller and the servers
//! ```

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::{Flights, Options, Work, await_caught_up, await_markers, make_topics};
use crate::kafka::Loader;

/// Where the cluster finds its servers, and what is to be tried.
#[derive(Args, Clone)]
pub struct Place {
    /// Kafka, as pods reach it
    #[arg(long)]
    pub brokers: String,
    /// S3, as pods reach it; its bucket is `streams`
    #[arg(long)]
    pub s3: String,
    /// Scenarios to run, by name; by default the core
    #[arg(long, value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// All of them, which takes most of an hour
    #[arg(long)]
    pub all: bool,
}

const PATIENCE: Duration = Duration::from_secs(120);
/// Slices of the input: while each of them comes a scenario may do something.
const SLICES: usize = 8;

/// The user of the broker's listener with passwords over TLS, and what it is first called in by.
const USER: &str = "penstock";
const FIRST: &str = "canary-first";
/// Scenarios whose job reads and writes over that listener.
const SECURE: &[&str] = &["secret-rotated"];

/// Scenarios whose job has several workers.
const SEVERAL: &[(&str, u32)] = &[
    ("workers", 3),
    ("workers-lifecycle", 3),
    ("workers-node-drained", 3),
    ("workers-node-stopped", 3),
];

/// What a scenario does while a slice comes, and at the end, when the results were compared.
type Disturb = fn(&mut Job<'_>, When) -> Result<()>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    During(usize),
    Compared,
}
use When::{Compared, During};

mod cluster;
mod feed;
mod job;
mod scenarios;

use cluster::kubectl;
use job::Job;
use scenarios::{CORE, MORE};

/// The controller reads no Secret of anybody: in every namespace, asked of the API server.
fn rights() -> Result<()> {
    let account = "--as=system:serviceaccount:penstock:penstock-operator";
    let namespaces = kubectl(&["get", "namespaces", "-o", "name"])?;
    let may = |verb: &str, what: &str, namespace: &str| -> Result<bool> {
        // The answer is a word, and an exit status of 1 for "no".
        let output = Command::new("kubectl")
            .args([
                "auth",
                "can-i",
                verb,
                what,
                "--namespace",
                namespace,
                account,
            ])
            .output()?;
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => bail!(
                "kubectl auth can-i: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    };
    let mut asked = 0;
    for namespace in namespaces
        .lines()
        .filter_map(|n| n.strip_prefix("namespace/"))
    {
        for verb in ["get", "list", "watch"] {
            ensure!(
                !may(verb, "secrets", namespace)?,
                "the controller may {verb} secrets in {namespace}"
            );
            asked += 1;
        }
    }
    // The question means something: what it may do is answered with yes.
    ensure!(
        may("list", "pods", "default")?,
        "the controller may not list pods"
    );
    println!("kind: the controller may read no Secret: {asked} questions");
    Ok(())
}

fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == type_)
}

pub fn run(options: &Options, place: &Place) -> Result<String> {
    let flights = Flights::load(&options.data)?;
    let every: Vec<_> = CORE.iter().chain(&MORE).collect();
    let known: Vec<&str> = every.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = place.scenario.iter().find(|s| !known.contains(&s.as_str())) {
        bail!("no scenario {unknown}; there are {}", known.join(", "));
    }
    let chosen: Vec<_> = match (place.scenario.as_slice(), place.all) {
        (_, true) => every,
        ([], false) => CORE.iter().collect(),
        (named, false) => every
            .into_iter()
            .filter(|(name, _)| named.iter().any(|s| s == name))
            .collect(),
    };
    rights()?;
    let mut results = BTreeMap::new();
    for (name, disturb) in &chosen {
        let began = Instant::now();
        println!("kind: {name}");
        let result = scenario(options, place, &flights, name, *disturb);
        let took = began.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("kind: {name} passed after {took:.0} s"),
            Err(error) => println!("kind: {name} FAILED after {took:.0} s: {error:#}"),
        }
        results.insert(*name, result.is_ok());
    }
    let failed: Vec<&str> = results
        .iter()
        .filter(|(_, good)| !**good)
        .map(|(name, _)| *name)
        .collect();
    ensure!(failed.is_empty(), "{} failed", failed.join(", "));
    Ok(format!(
        "{} scenarios, each with {} flights: rows equal DuckDB's, dead letters complete",
        results.len(),
        flights.count
    ))
}

/// Output topics, their answers, and how many rows each end marker gives.
const OUTPUTS: [(&str, &str, usize); 2] = [
    ("flights-hourly", "hourly", 1),
    ("flights-six-hours", "six-hours", 6),
];

fn scenario(
    options: &Options,
    place: &Place,
    flights: &Flights,
    name: &str,
    disturb: Disturb,
) -> Result<()> {
    let work = Work::new(&format!("kind-{name}"))?;
    let mut job = Job::new(place, &work, name)?;
    let played = play(options, flights, &work, &mut job, disturb);
    // Whatever came of it, the next scenario is to find the cluster as this one did.
    let ended = job.end().context("when it was cleaned up after");
    if let (Err(_), Err(error)) = (&played, &ended) {
        eprintln!("kind: {error:#}");
    }
    played.and(ended)?;
    work.done()
}

fn play(
    options: &Options,
    flights: &Flights,
    work: &Work,
    job: &mut Job<'_>,
    disturb: Disturb,
) -> Result<()> {
    job.begin()?;
    let (brokers, prefix) = (job.place.brokers.as_str(), job.prefix.clone());
    make_topics(brokers, &prefix)?;
    job.apply()?;
    for slice in 0..SLICES {
        job.feed.begin(flights.slice(slice, SLICES));
        let began = Instant::now();
        disturb(job, During(slice)).with_context(|| format!("during slice {slice}"))?;
        let left = job.feed.rest()?;
        ensure!(
            left > 0,
            "no row of slice {slice} is left after {:.0} s: take more --rows",
            began.elapsed().as_secs_f64()
        );
    }
    job.wait_reason("Running")?;
    await_caught_up(job, PATIENCE)?;
    let first = flights.first.as_str();
    job.until_status("the watermark has passed the first flight", |s| {
        s.watermark.as_deref() > Some(first)
    })?;
    let mut loader = Loader::new(brokers, &format!("{prefix}flights"))?;
    let late = flights.put_late(&mut loader)?;
    await_caught_up(job, PATIENCE)?;
    for which in [1, 2] {
        flights.put_markers(&mut loader, which)?;
        await_caught_up(job, PATIENCE)?;
    }
    let markers = flights.markers()?;
    for (topic, _, times) in OUTPUTS {
        let topic = format!("{prefix}{topic}");
        await_markers(brokers, &topic, markers * times, job, PATIENCE)?;
    }
    let compare = || -> Result<()> {
        let mut good = true;
        for (topic, answer, _) in OUTPUTS {
            let topic = format!("{prefix}{topic}");
            good &= flights.compare(options, brokers, &topic, answer, work)?;
        }
        let rejects = flights.rejects(&late);
        good &= rejects.compare(brokers, &format!("{prefix}flights-rejected"))?;
        ensure!(good, "rows differ, see above and {}", work.folder.display());
        Ok(())
    };
    compare()?;
    disturb(job, Compared).context("after the comparison")?;
    // However the job ended, it has written nothing more and taken nothing back.
    compare().context("compared once more at the end")
}
