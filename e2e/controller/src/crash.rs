//! Crash at each write. A life without faults says which writes there are and what each step ends with; then, for every write of
//! every step, another life in which something bad happens at it. Each must end every step with the same objects, and with the same
//! starts of workers: no version is started twice, none is lost, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::life::{Life, Step};
use crate::picture::{Picture, differences};
use crate::plane::{Parts, Plane};
use crate::proxy::{Fault, Write};

/// Lives at a time: each waits more than it works.
const AT_ONCE: usize = 8;

/// So many failures are enough to look at.
const MOST: usize = 10;

/// What a life without faults does.
struct Clean {
    writes: BTreeMap<Step, Vec<Write>>,
    ends: BTreeMap<Step, Picture>,
}

/// Faults that are still to be tried, by step.
type Plan = BTreeMap<Step, VecDeque<(Write, Fault)>>;

/// Lives in which a fault is tried before it counts as not met.
const TRIES: u32 = 3;

#[derive(Default)]
struct Count {
    met: BTreeMap<(Step, Fault), usize>,
    /// How often a fault was not met.
    tries: BTreeMap<(Step, Write, Fault), u32>,
    /// Faults at writes that every life does, in lives that did not.
    unmet: Vec<String>,
    /// The same of writes that come by chance.
    left_out: Vec<String>,
    failed: Vec<String>,
    lives: usize,
    /// Times that a controller ended unasked.
    fell: u32,
}

pub async fn run(
    parts: &Parts<'_>,
    program: &Path,
    full: bool,
    only: Option<&str>,
) -> Result<bool> {
    let began = Instant::now();
    let plane = Plane::start(parts).await?;
    let engine = Engine::start(&plane.admin, &plane.address).await?;
    println!(
        "the control plane stands after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let (clean, again) = tokio::try_join!(
        clean(&plane, &engine, program, 0),
        clean(&plane, &engine, program, 1)
    )?;
    agree(&clean, &again)?;
    let found: usize = clean.writes.values().map(Vec::len).sum();
    for (step, writes) in &clean.writes {
        let all: Vec<String> = writes.iter().map(ToString::to_string).collect();
        println!(
            "{:15} {:2} writes: {}",
            step.name(),
            writes.len(),
            all.join(", ")
        );
    }
    println!(
        "two lives without faults agree, after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let plan = Mutex::new(plan(&clean, full, only));
    let count = Mutex::new(Count::default());
    let number = AtomicUsize::new(2);
    let workers = (0..AT_ONCE).map(|_| async {
        while count.lock().failed.len() < MOST
            && let Some(faults) = next(&plan)
        {
            let number = number.fetch_add(1, Ordering::Relaxed);
            let life = live(
                &plane, &engine, program, number, &clean, faults, &plan, &count,
            );
            if let Err(error) = life.await {
                count
                    .lock()
                    .failed
                    .push(format!("life {number}: {error:#}"));
            }
            count.lock().lives += 1;
        }
    });
    futures::future::join_all(workers).await;
    plane.stop().await;
    let count = count.into_inner();
    Ok(verdict(&count, found, began.elapsed()))
}

fn verdict(count: &Count, found: usize, took: Duration) -> bool {
    let mut by_fault: BTreeMap<Fault, usize> = BTreeMap::new();
    for ((_, fault), n) in &count.met {
        *by_fault.entry(*fault).or_default() += n;
    }
    let faults: Vec<String> = by_fault.iter().map(|(f, n)| format!("{f:?} {n}")).collect();
    println!("faults: {}", faults.join(", "));
    for line in &count.left_out {
        println!("left out (what was written once more in one life, and in none of three): {line}");
    }
    for line in &count.unmet {
        println!("NOT MET (the write occurred in none of three lives): {line}");
    }
    for line in &count.failed {
        println!("FAILED {line}");
    }
    let met: usize = count.met.values().sum();
    if count.fell > 0 {
        println!("a controller ended by itself {} times", count.fell);
    }
    // Chance leaves out a few.
    let few = count.left_out.len() * 10 <= met;
    let ok = count.failed.is_empty() && count.unmet.is_empty() && count.fell == 0 && met > 0 && few;
    println!(
        "{} e2e controller: {found} writes in {} steps, {met} faults at them in {} lives, {} left out, {} not met, {} failed, {:.0} s",
        if ok { "PASS" } else { "FAIL" },
        Step::ALL.len(),
        count.lives,
        count.left_out.len(),
        count.unmet.len(),
        count.failed.len(),
        took.as_secs_f64(),
    );
    ok
}

/// A life without faults.
async fn clean(plane: &Plane, engine: &Engine, program: &Path, number: usize) -> Result<Clean> {
    let life = Life::begin(plane, engine, program, number).await?;
    let mut clean = Clean {
        writes: BTreeMap::new(),
        ends: BTreeMap::new(),
    };
    for step in Step::ALL {
        life.act(step, None).await?;
        let end = life.settled(step).await?;
        if !life.is_told(step).await? {
            bail!("{}: no event tells of its end", step.name());
        }
        clean.writes.insert(step, life.proxy.writes());
        clean.ends.insert(step, end);
    }
    if life.operator.fell() > 0 {
        bail!("a controller ended by itself in a life without faults");
    }
    Ok(clean)
}

/// Two lives that nothing happened to must be the same, else the comparison means nothing.
fn agree(a: &Clean, b: &Clean) -> Result<()> {
    for step in Step::ALL {
        let found = differences(&b.ends[&step], &a.ends[&step]);
        if !found.is_empty() {
            bail!("{}: two lives differ: {}", step.name(), found.join("; "));
        }
        // Not their order: jobs and savepoints are looked after side by side. Nor how often the same is written.
        let (a, b) = (lasting(&a.writes[&step]), lasting(&b.writes[&step]));
        let one: Vec<String> = a.symmetric_difference(&b).map(|w| w.to_string()).collect();
        if !one.is_empty() {
            bail!("{}: one life alone does {}", step.name(), one.join(", "));
        }
    }
    Ok(())
}

/// Writes that every life does.
fn lasting(writes: &[Write]) -> BTreeSet<&Write> {
    writes.iter().filter(|w| !w.is_by_chance()).collect()
}

/// Every write with both ways to be killed and one of the other faults in turn, or with all of them.
fn plan(clean: &Clean, full: bool, only: Option<&str>) -> Plan {
    let mut plan = Plan::new();
    let mut turn = 0;
    for (step, writes) in &clean.writes {
        if only.is_some_and(|o| o != step.name()) {
            continue;
        }
        let queue = plan.entry(*step).or_default();
        let known: BTreeSet<&Write> = writes.iter().collect();
        for write in known {
            for fault in Fault::KILLS {
                queue.push_back((write.clone(), fault));
            }
            let others = if full { Fault::OTHERS.len() } else { 1 };
            for _ in 0..others {
                queue.push_back((write.clone(), Fault::OTHERS[turn % Fault::OTHERS.len()]));
                turn += 1;
            }
            if full {
                turn += 1;
            }
        }
    }
    plan
}

/// One fault for each step of a life; `None` when there is none left.
fn next(plan: &Mutex<Plan>) -> Option<BTreeMap<Step, (Write, Fault)>> {
    let mut plan = plan.lock();
    let each = plan
        .iter_mut()
        .filter_map(|(step, queue)| Some((*step, queue.pop_front()?)));
    let faults: BTreeMap<_, _> = each.collect();
    (!faults.is_empty()).then_some(faults)
}

#[expect(
    clippy::too_many_arguments,
    reason = "what all lives share, and what is this one's"
)]
async fn live(
    plane: &Plane,
    engine: &Engine,
    program: &Path,
    number: usize,
    clean: &Clean,
    mut faults: BTreeMap<Step, (Write, Fault)>,
    plan: &Mutex<Plan>,
    count: &Mutex<Count>,
) -> Result<()> {
    let life = Life::begin(plane, engine, program, number).await?;
    for step in Step::ALL {
        let fault = faults.remove(&step);
        life.act(step, fault.clone()).await?;
        let mut wrong = life.converges(&clean.ends[&step]).await?;
        let named = fault.as_ref().map_or_else(
            || format!("life {number}, {}", step.name()),
            |(write, fault)| format!("life {number}, {}, {fault:?} at {write}", step.name()),
        );
        // An event that cannot be written is not written again; one is lost by nothing else.
        let refused = fault
            .as_ref()
            .is_some_and(|(w, f)| w.what.starts_with("event ") && !f.kills());
        let untold = refused || step.ends_as_it_began();
        if wrong.is_empty() && !untold && !life.is_told(step).await? {
            wrong.push("no event tells of its end".to_owned());
        }
        if let Some((write, fault)) = fault {
            let mut count = count.lock();
            if life.proxy.is_met() {
                *count.met.entry((step, fault)).or_default() += 1;
            } else {
                let chance = write.is_by_chance();
                let tries = count.tries.entry((step, write.clone(), fault)).or_default();
                *tries += 1;
                // A life may be slow at a moment, and go from one state to the next but one.
                if *tries < TRIES {
                    plan.lock()
                        .entry(step)
                        .or_default()
                        .push_back((write, fault));
                } else if chance {
                    count.left_out.push(named.clone());
                } else {
                    count.unmet.push(named.clone());
                }
            }
        }
        if !wrong.is_empty() {
            wrong.truncate(8);
            let line = format!("{named}: {}", wrong.join("; "));
            println!("FAILED {line}");
            let mut count = count.lock();
            count.fell += life.operator.fell();
            count.failed.push(line);
            // What this life has not tried is another one's.
            let mut plan = plan.lock();
            for (step, fault) in faults {
                plan.entry(step).or_default().push_front(fault);
            }
            return Ok(());
        }
        if faults.is_empty() {
            break;
        }
    }
    // The end of its process would be a crash of another kind, or a lease that it thought lost.
    count.lock().fell += life.operator.fell();
    Ok(())
}
