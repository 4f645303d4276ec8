//! The seeds, the planted bugs, and that both can be trusted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use parking_lot::Mutex;
use penstock_checkpoint::Switches;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::broker::{Broker, Lapse, Topic};
use super::fate::{Told, run};
use super::trace::Trace;
use super::wire::{Faults, Wire};
use super::world::Bugs;
use crate::fault::POINTS;
use crate::planted::Bug;
use crate::sinks::contract::{Subject, check, subjects::plan};
use crate::state::Planted;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs seeds on all cores, in no order, until `enough` says so of one.
fn run_all(from: u64, count: u64, bugs: Bugs, enough: impl Fn(u64, &Told) -> bool + Sync) {
    let next = AtomicU64::new(from);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= from + count {
                        return;
                    }
                    if enough(seed, &survive(seed, bugs)) {
                        next.store(from + count, Ordering::SeqCst);
                    }
                }
            });
        }
    });
}

/// As `run`; a panic of a process is its verdict.
fn survive(seed: u64, bugs: Bugs) -> Told {
    std::panic::catch_unwind(|| run(seed, bugs, false)).unwrap_or_else(|_| Told {
        verdict: Err("it panicked".to_owned()),
        hash: 0,
        notes: 0,
        lines: Vec::new(),
        about: format!("seed {seed}"),
        deaths: BTreeSet::new(),
    })
}

fn tell(told: &Told) -> String {
    let what = match &told.verdict {
        Ok(came) => format!("well: {came:?}"),
        Err(why) => why.clone(),
    };
    format!("{}\n  {what}", told.about)
}

#[test]
fn every_seed_ends_with_each_row_once() {
    if let Some(seed) = number("PENSTOCK_SEED") {
        let told = run(seed, Bugs::default(), true);
        for line in &told.lines {
            println!("{line}");
        }
        println!("{}\n  trace {:016x}", tell(&told), told.hash);
        assert!(told.verdict.is_ok(), "{}", tell(&told));
        return;
    }
    let count = number("PENSTOCK_SEEDS").unwrap_or(2000);
    let wrong = Mutex::new(Vec::new());
    let (epochs, generations) = (AtomicU64::new(0), AtomicU64::new(0));
    run_all(0, count, Bugs::default(), |seed, told| {
        match &told.verdict {
            Ok(came) => {
                epochs.fetch_add(came.epochs, Ordering::Relaxed);
                generations.fetch_add(came.generations, Ordering::Relaxed);
            }
            Err(_) => wrong.lock().push((seed, tell(told))),
        }
        false
    });
    let mut wrong = wrong.into_inner();
    wrong.sort();
    println!(
        "{count} seeds, {} generations, {} epochs, {} wrong",
        generations.into_inner(),
        epochs.into_inner(),
        wrong.len()
    );
    let some: Vec<String> = wrong
        .iter()
        .take(10)
        .map(|(seed, text)| {
            format!("{text}\n  replay: PENSTOCK_SEED={seed} cargo test --release -p penstock-worker every_seed -- --nocapture")
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {count} seeds:\n{}",
        wrong.len(),
        some.join("\n")
    );
}

/// So many seeds are given to a planted bug.
const BOUND: u64 = 20_000;

/// What the simulation must notice, by the models' names where they have one.
fn planted() -> Vec<(String, Bugs)> {
    let log = [
        "no_fence",
        "no_readback",
        "branch_marker",
        "reuse",
        "no_finish",
        "restore_newest",
        "restore_dropped",
        "closure_number",
    ];
    let log = log.into_iter().map(|name| {
        let switches = Switches::named(name).expect("the log has this switch");
        (
            name.to_owned(),
            Bugs {
                log: switches,
                ..Bugs::default()
            },
        )
    });
    let engine = [
        Bug::CommitBeforeUpload,
        Bug::ApplyBeforeCommit,
        Bug::PublishFirst,
        Bug::NoPoison,
        Bug::Republish,
        Bug::NoChunk,
        Bug::BornBlind,
        Bug::BornAhead,
        Bug::BornFirst,
        Bug::NoWait,
        Bug::StaleDone,
        Bug::SkipsChannel,
        Bug::AnyProcess,
        Bug::HandoverEarly,
        Bug::TwoOwners,
    ];
    let engine = engine.into_iter().map(|bug| {
        (
            format!("{bug:?}"),
            Bugs {
                engine: Some(bug),
                ..Bugs::default()
            },
        )
    });
    let broker = [
        Lapse::NoFencing,
        Lapse::ReadBeforeInit,
        Lapse::MarkerOutside,
    ];
    let broker = broker.into_iter().map(|lapse| {
        (
            format!("{lapse:?}"),
            Bugs {
                broker: Some(lapse),
                ..Bugs::default()
            },
        )
    });
    let off = Planted::default();
    let state = [
        (
            "range_delete_after_put",
            Planted {
                range_delete_after_put: true,
                ..off
            },
        ),
        (
            "volume_without_identity",
            Planted {
                volume_without_identity: true,
                ..off
            },
        ),
    ];
    let state = state.into_iter().map(|(name, state)| {
        (
            name.to_owned(),
            Bugs {
                state,
                ..Bugs::default()
            },
        )
    });
    let lost = Bugs {
        engine: Some(Bug::MissingResend),
        markers_lost: true,
        ..Bugs::default()
    };
    let state = state.chain([("MissingResend".to_owned(), lost)]);
    log.chain(engine).chain(broker).chain(state).collect()
}

#[test]
fn every_planted_bug_is_noticed() {
    let only = std::env::var("PENSTOCK_PLANTED").ok();
    let bound = number("PENSTOCK_SEEDS").unwrap_or(BOUND);
    let mut unnoticed = Vec::new();
    for (name, bugs) in planted() {
        if only.as_ref().is_some_and(|o| *o != name) {
            continue;
        }
        if let (Some(seed), Some(_)) = (number("PENSTOCK_SEED"), &only) {
            let told = run(seed, bugs, true);
            told.lines.iter().for_each(|line| println!("{line}"));
            println!("{}", tell(&told));
            continue;
        }
        let first = Mutex::new(None);
        let count = AtomicU64::new(0);
        run_all(0, bound, bugs, |_, told| {
            count.fetch_add(1, Ordering::Relaxed);
            let noticed = told.verdict.is_err();
            if noticed {
                first.lock().get_or_insert(tell(told));
            }
            noticed
        });
        let count = count.into_inner();
        match first.into_inner() {
            Some(text) => println!("{name}: noticed within {count} seeds, by {text}"),
            None => unnoticed.push(format!("{name} ({count} seeds)")),
        }
    }
    assert!(
        unnoticed.is_empty(),
        "not noticed: {}",
        unnoticed.join(", ")
    );
}

#[test]
fn a_missing_marker_asks_a_person() {
    let bugs = Bugs {
        markers_lost: true,
        ..Bugs::default()
    };
    let wrong = Mutex::new(Vec::new());
    run_all(0, 300, bugs, |_, told| {
        if told.verdict.is_err() {
            wrong.lock().push(tell(told));
        }
        false
    });
    let wrong = wrong.into_inner();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What never happens in a simulation is not shown by it.
#[test]
fn processes_die_at_every_point_and_everything_happens() {
    let deaths: Mutex<BTreeSet<&str>> = Mutex::default();
    let (dropped, back) = (AtomicU64::new(0), AtomicU64::new(0));
    run_all(0, BOUND, Bugs::default(), |_, told| {
        let mut deaths = deaths.lock();
        deaths.extend(&told.deaths);
        if let Ok(came) = &told.verdict {
            dropped.fetch_add(came.dropped as u64, Ordering::Relaxed);
            back.fetch_add(came.back as u64, Ordering::Relaxed);
        }
        deaths.len() == POINTS.len()
            && dropped.load(Ordering::Relaxed) > 100
            && back.load(Ordering::Relaxed) > 100
    });
    let deaths = deaths.into_inner();
    let (dropped, back) = (dropped.into_inner(), back.into_inner());
    println!("{dropped} files dropped, gone back {back} times");
    let alive: Vec<_> = POINTS.iter().filter(|p| !deaths.contains(*p)).collect();
    assert!(alive.is_empty(), "nobody died at {alive:?}");
    assert!(dropped > 100 && back > 100);
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    for seed in 0..12 {
        let (one, two) = (
            run(seed, Bugs::default(), true),
            run(seed, Bugs::default(), true),
        );
        let apart = one.lines.iter().zip(&two.lines).find(|(a, b)| a != b);
        assert_eq!(apart, None, "seed {seed}");
        assert_eq!((one.hash, one.notes), (two.hash, two.notes), "seed {seed}");
        assert!(one.notes > 20);
    }
}

#[tokio::test]
async fn the_broker_keeps_the_contract_of_sinks() {
    let broker: Arc<Mutex<Broker>> = Arc::default();
    let wire = Wire {
        broker: broker.clone(),
        faults: Arc::new(Mutex::new(Faults::default())),
        rng: Arc::new(Mutex::new(StdRng::seed_from_u64(1))),
        trace: Trace::new(false),
        process: 0,
    };
    check(Subject {
        sink: super::sink::plain(plan(4), wire),
        read: Box::new(move || {
            let broker = broker.lock();
            let values: Vec<String> = broker
                .partitions(Topic::Rows(0))
                .into_iter()
                .flat_map(|p| broker.committed((Topic::Rows(0), p)))
                .filter_map(|m| String::from_utf8(m.value.as_ref()?.to_vec()).ok())
                .collect();
            async move { values }.boxed()
        }),
        fences: true,
        marks: true,
    })
    .await;
}
