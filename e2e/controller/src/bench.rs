//! Many jobs at once: what the controller takes in memory, what it writes while lag moves and while it stands still, how soon it acts
//! on a change, and how soon it is steady again after a crash. Times and writes are those of the API server's audit log; a write
//! counts however it was answered.
//!
//! Every other job is continuous, and commits epochs though nothing comes; the others plan their epochs, and commit none then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::api::{Api, Patch, PatchParams};
use penstock_crds::job::StreamingJob;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use crate::audit::{Audit, Written};
use crate::engine::Engine;
use crate::life::{manifest, planner};
use crate::operator::How;
use crate::plane::{Parts, Plane, apply};

/// The namespace of the jobs.
const NAMESPACE: &str = "many";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How many jobs.
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// How long it is looked at while lag moves, in seconds.
    #[arg(long, default_value_t = 120)]
    steady: u64,
    /// The program that plans SQL, for edits of it; without it they are planned by nothing.
    #[arg(long)]
    planner: Option<PathBuf>,
}

/// A figure against its aim.
struct Figure {
    what: &'static str,
    is: f64,
    aim: Aim,
    unit: &'static str,
}

enum Aim {
    Most(f64),
    Least(f64),
    /// None: the figure is told. One that could not be had is missed all the same.
    Told,
}
use Aim::{Least, Most, Told};

pub async fn run(parts: &Parts<'_>, program: &Path, args: &Args) -> Result<bool> {
    let plane = Plane::start(parts).await?;
    let engine = Engine::start(&plane.admin, &plane.address).await?;
    engine.moves(true);
    engine.restless((0..args.jobs).filter(|n| is_continuous(*n)).map(name));
    plane.namespace(NAMESPACE, false).await?;
    plane.namespace("own", true).await?;
    let metrics = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let mut how = How {
        program: program.to_owned(),
        kubeconfig: plane.kubeconfig("own.kubeconfig", &plane.server)?,
        folder: plane.folder.clone(),
        own: "own".to_owned(),
        name: "own".to_owned(),
        namespaces: Vec::new(),
        planner: planner(&plane.folder)?,
        metrics,
    };
    let mut controller = how.start()?;
    let mut audit = Audit::new(plane.folder.join("audit.jsonl"));
    let mut figures = Vec::new();

    let began = Instant::now();
    create(&plane, args.jobs).await?;
    steady(metrics, args.jobs, Duration::from_secs(600)).await?;
    let took = began.elapsed();
    let writes = mine(&mut audit)?.len();
    println!(
        "{} jobs are created and run after {:.0} s: {writes} writes of the controller, peak of memory {:.1} MiB",
        args.jobs,
        took.as_secs_f64(),
        memory(&controller, "VmHWM")?
    );

    // While lag moves.
    sleep(Duration::from_secs(70)).await;
    audit.since()?;
    let (before, reads) = (cpu(&controller)?, Instant::now());
    let most = sampled(&controller, args.steady).await?;
    let writes = mine(&mut audit)?;
    let seconds = reads.elapsed().as_secs_f64();
    let stored = writes.iter().filter(|w| w.accepted && w.is_status());
    let stored = stored.count() as f64 / seconds;
    println!(
        "while lag moves: {:.2} of a core, {} writes in {seconds:.0} s, {} of them refused: {}",
        (cpu(&controller)? - before) / seconds,
        writes.len(),
        writes.iter().filter(|w| !w.accepted).count(),
        by_resource(&writes)
    );
    let age = age_of_numbers(&plane, &engine, args.jobs).await?;
    figures.push(Figure {
        what: "memory while lag moves",
        is: most,
        aim: Most(64.0),
        unit: "MiB",
    });
    figures.push(Figure {
        what: "writes while lag moves",
        is: writes.len() as f64 / seconds,
        aim: Most(20.0),
        unit: "writes/s",
    });
    figures.push(Figure {
        what: "status writes while lag moves, half of the jobs a minute",
        is: stored,
        aim: Least(args.jobs as f64 / 120.0),
        unit: "writes/s",
    });
    figures.push(Figure {
        what: "age of the lag that statuses show while it moves, the oldest of some",
        is: age,
        // Not one is left from before it was looked at.
        aim: Most(70.0 + args.steady as f64),
        unit: "s",
    });
    figures.push(Figure {
        what: "most writes in a second of it",
        is: busiest(&writes) as f64,
        aim: Told,
        unit: "writes/s",
    });

    // While nothing moves: what is known by now is written once more, all of it within the time that writes may take, then nothing.
    engine.moves(false);
    sleep(Duration::from_secs(150)).await;
    audit.since()?;
    sleep(Duration::from_secs(60)).await;
    let (leases, writes): (Vec<_>, Vec<_>) = mine(&mut audit)?
        .into_iter()
        .partition(|w| w.resource == "leases");
    let restless: BTreeSet<String> = (0..args.jobs)
        .filter(|n| is_continuous(*n))
        .map(name)
        .collect();
    let (epochs, writes): (Vec<_>, Vec<_>) = writes
        .into_iter()
        .partition(|w| w.is_status() && restless.contains(&w.name));
    println!(
        "while nothing moves: {} jobs commit nothing, {} continuous ones commit epochs without rows; besides the statuses of these: {}",
        args.jobs - restless.len(),
        restless.len(),
        by_resource(&writes)
    );
    figures.push(Figure {
        what: "writes in an idle minute, but for statuses of jobs that commit",
        is: writes.len() as f64,
        aim: Most(0.0),
        unit: "",
    });
    figures.push(Figure {
        what: "writes in an idle minute, statuses of jobs that commit, once a minute each",
        is: epochs.len() as f64,
        aim: Told,
        unit: "",
    });
    figures.push(Figure {
        what: "renewals of the lease in that minute",
        is: leases.iter().filter(|w| w.accepted).count() as f64,
        aim: Least(10.0),
        unit: "",
    });
    figures.push(Figure {
        what: "peak of memory before the crash",
        is: memory(&controller, "VmHWM")?,
        aim: Most(64.0),
        unit: "MiB",
    });

    // A crash.
    engine.moves(true);
    controller.kill().await?;
    if let Some(planner) = &args.planner {
        how.planner = planner.canonicalize()?;
    }
    audit.since()?;
    let began = Instant::now();
    controller = how.start()?;
    steady(metrics, args.jobs, Duration::from_secs(120)).await?;
    figures.push(Figure {
        what: "restart to steady",
        is: began.elapsed().as_secs_f64(),
        aim: Most(10.0),
        unit: "s",
    });
    let writes = mine(&mut audit)?;
    println!(
        "restart: {} writes until steady ({}), peak of memory {:.1} MiB",
        writes.len(),
        by_resource(&writes),
        memory(&controller, "VmHWM")?
    );

    // Changes.
    let suspended = json!({"spec": {"suspend": true}});
    let second = Duration::from_secs(1);
    let soon = Duration::from_millis(150);
    let changed = changes(&plane, &mut audit, 0..args.jobs / 10, &suspended, second).await?;
    figures.push(Figure {
        what: "change to first write, p99 of suspensions, one a second",
        is: changed,
        aim: Most(50.0),
        unit: "ms",
    });
    // Of each of which the API server, the StatefulSets' controller and kwok make some forty requests, on the same machine.
    let changed = changes(
        &plane,
        &mut audit,
        args.jobs / 10..args.jobs / 5,
        &suspended,
        soon,
    )
    .await?;
    figures.push(Figure {
        what: "change to first write, p99 of suspensions, one each 150 ms",
        is: changed,
        aim: Told,
        unit: "ms",
    });
    let edited = manifest(NAMESPACE, "x", 77)["spec"]["sql"].clone();
    let edited = json!({"spec": {"sql": edited}});
    // One text is planned at a time.
    let (to, pause) = match &args.planner {
        Some(_) => (args.jobs * 23 / 100, second),
        None => (args.jobs * 3 / 10, soon),
    };
    let changed = changes(&plane, &mut audit, args.jobs / 5..to, &edited, pause).await?;
    figures.push(Figure {
        what: if args.planner.is_some() {
            "change to first write, p99 of edits of the SQL, with planning"
        } else {
            "change to first write, p99 of edits of the SQL, without planning"
        },
        is: changed,
        // Planning is another program's time.
        aim: match args.planner {
            Some(_) => Told,
            None => Most(50.0),
        },
        unit: "ms",
    });
    // All of them fall behind at once: each is to be told so, and nobody's change waits for that.
    engine.fall_behind();
    sleep(Duration::from_secs(20)).await;
    let more = to..to + args.jobs * 3 / 100;
    let changed = changes(&plane, &mut audit, more, &suspended, soon).await?;
    figures.push(Figure {
        what: "change to first write, p99 while all jobs have fallen behind at once",
        is: changed,
        aim: Most(1000.0),
        unit: "ms",
    });
    figures.push(Figure {
        what: "peak of memory since the restart",
        is: memory(&controller, "VmHWM")?,
        aim: Most(64.0),
        unit: "MiB",
    });

    // Another one in its place, which may not lead before the lease has ended.
    controller.kill().await?;
    how.name = "another".to_owned();
    let began = Instant::now();
    let mut controller = how.start()?;
    steady(metrics, args.jobs, Duration::from_secs(120)).await?;
    figures.push(Figure {
        what: "restart under another name to steady, with the end of the lease",
        is: began.elapsed().as_secs_f64(),
        aim: Told,
        unit: "s",
    });
    controller.kill().await?;
    plane.stop().await;
    Ok(verdict(args.jobs, &figures))
}

fn verdict(jobs: usize, figures: &[Figure]) -> bool {
    let mut missed = 0;
    for figure in figures {
        let Figure {
            what,
            is,
            aim,
            unit,
        } = figure;
        let (is_met, bound) = match aim {
            Most(most) => (is <= most, format!(", at most {most}")),
            Least(least) => (is >= least, format!(", at least {least:.1}")),
            Told => (true, String::new()),
        };
        let is_met = is_met && is.is_finite();
        missed += usize::from(!is_met);
        let word = match (is_met, aim) {
            (false, _) => "MISSED",
            (true, Told) => "told",
            (true, Most(_) | Least(_)) => "met",
        };
        println!("{what}: {is:.1} {unit} ({word}{bound})");
    }
    let word = if missed == 0 { "PASS" } else { "FAIL" };
    println!("{word} bench controller: {jobs} jobs, {missed} aims missed");
    missed == 0
}

fn name(number: usize) -> String {
    format!("job-{number:04}")
}

/// Whether the job of this number is continuous. Of one that plans its epochs nobody expects any while nothing comes.
fn is_continuous(number: usize) -> bool {
    number % 2 == 1
}

async fn create(plane: &Plane, jobs: usize) -> Result<()> {
    let made = futures::stream::iter(0..jobs).map(|number| async move {
        let mut job = manifest(NAMESPACE, &name(number), 10);
        job["spec"]["trigger"] = match is_continuous(number) {
            true => json!({"continuous": {}}),
            false => json!({"processingTime": {"interval": "1s"}}),
        };
        apply(&plane.admin, &job).await
    });
    let results: Vec<Result<()>> = made.buffer_unordered(8).collect().await;
    results.into_iter().collect()
}

/// Waits until all jobs go on by themselves, as the controller's own page says.
async fn steady(metrics: u16, jobs: usize, patience: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        let settled = gauge(metrics, "penstock_controller_settled_jobs").await;
        if settled == Some(jobs as f64) {
            return Ok(());
        }
        if began.elapsed() > patience {
            bail!("only {settled:?} of {jobs} jobs go on by themselves after {patience:?}");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn gauge(port: u16, name: &str) -> Option<f64> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .ok()?;
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await.ok()?;
    let line = page.lines().find(|l| l.starts_with(&format!("{name} ")))?;
    line.split(' ').nth(1)?.trim().parse().ok()
}

/// How many seconds ago, at most, the lag that the statuses of some jobs show was what their coordinators said; infinite where one
/// shows what none ever said.
async fn age_of_numbers(plane: &Plane, engine: &Engine, jobs: usize) -> Result<f64> {
    let api: Api<StreamingJob> = Api::namespaced(plane.admin.clone(), NAMESPACE);
    let mut oldest: f64 = 0.0;
    for number in (0..jobs).step_by((jobs / 50).max(1)) {
        let job = api.get_status(&name(number)).await?;
        let lag = job.status.and_then(|s| s.lag).map(|l| l.records);
        let age = lag
            .and_then(Engine::moved_at)
            .and_then(|at| engine.moved().checked_sub(at));
        if age.is_none() {
            println!("{} shows a lag of {lag:?}", name(number));
        }
        oldest = oldest.max(age.map_or(f64::INFINITY, |age| age as f64));
    }
    Ok(oldest)
}

/// Writes of the controller since the last look at the log.
fn mine(audit: &mut Audit) -> Result<Vec<Written>> {
    let mut all = audit.since()?;
    all.retain(|w| w.by_controller);
    Ok(all)
}

fn by_resource(writes: &[Written]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for write in writes {
        *counts
            .entry(format!("{} {}", write.verb, write.resource))
            .or_default() += 1;
    }
    let each: Vec<String> = counts
        .iter()
        .map(|(what, n)| format!("{what} {n}"))
        .collect();
    each.join(", ")
}

fn busiest(writes: &[Written]) -> usize {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for write in writes {
        *counts.entry(write.done / 1_000_000).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

/// Changes one job after another; milliseconds from the end of the change to the arrival of the first write for that job, p99.
async fn changes(
    plane: &Plane,
    audit: &mut Audit,
    jobs: std::ops::Range<usize>,
    change: &Value,
    pause: Duration,
) -> Result<f64> {
    audit.since()?;
    let api: Api<StreamingJob> = Api::namespaced(plane.admin.clone(), NAMESPACE);
    let count = jobs.len();
    for number in jobs.clone() {
        api.patch(
            &name(number),
            &PatchParams::default(),
            &Patch::Merge(change),
        )
        .await?;
        sleep(pause).await;
    }
    sleep(Duration::from_secs(5)).await;
    let writes = audit.since()?;
    let mut waits = Vec::new();
    for job in jobs.map(name) {
        let about: Vec<&Written> = writes.iter().filter(|w| w.name.starts_with(&job)).collect();
        let changed = about
            .iter()
            .find(|w| !w.by_controller && w.resource == "streamingjobs" && w.verb == "patch")
            .context("a change is not in the log")?;
        // Numbers may be written at any time: the first write of a change is that of something else.
        let first = about.iter().find(|w| {
            w.by_controller && w.resource != "streamingjobs" && w.received >= changed.received
        });
        waits.push(first.map(|w| (w.received - changed.done) as f64 / 1000.0));
    }
    let acted: Vec<f64> = waits.iter().filter_map(|w| *w).collect();
    if acted.len() < count {
        println!("{} of {count} changes led to no write", count - acted.len());
        return Ok(f64::INFINITY);
    }
    let mut sorted = acted;
    sorted.sort_by(f64::total_cmp);
    println!(
        "changes: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms of {count}",
        sorted[count / 2],
        sorted[(count * 99).div_ceil(100).saturating_sub(1)],
        sorted[count - 1]
    );
    Ok(sorted[(count * 99).div_ceil(100).saturating_sub(1)])
}

/// The most memory of so many seconds, in MiB.
async fn sampled(controller: &Child, seconds: u64) -> Result<f64> {
    let mut most: f64 = 0.0;
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        most = most.max(memory(controller, "VmRSS")?);
    }
    Ok(most)
}

/// A line of /proc/PID/status, in MiB.
fn memory(controller: &Child, line: &str) -> Result<f64> {
    let pid = controller.id().context("the controller has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|l| l.strip_prefix(line));
    let text = found
        .context("no such line")?
        .trim_start_matches(':')
        .trim();
    let kib: f64 = text.trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Seconds of a core that it took so far.
fn cpu(controller: &Child) -> Result<f64> {
    let pid = controller.id().context("the controller has ended")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let ticks: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse().ok())
        .collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
