//! The fold against a port of the job log model's `fold`, on random legal logs; the planted bugs; refusals.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::decide::{Wish, decide_claim, may_commit};
use crate::record::{Accepted, Assignment, SinkBorn};

/// A record of the model: `C(restore, kind, gen)`, `E(epoch, parent, done, gen)`, `B(shard)`, `A`.
#[derive(Clone, Debug)]
enum M {
    C(u64, char, u64),
    E(u64, u64, u64, u64),
    B(u16),
    A,
}

#[derive(Debug, Default, PartialEq)]
struct Model {
    publishable: Vec<(u64, u64)>,
    staged: Vec<(u64, u64)>,
    trial: bool,
    head: u64,
    newest: u64,
    done: u64,
    gens: u64,
    base: u64,
    born: BTreeSet<u16>,
    odd: Option<String>,
}

/// Line by line as in the model.
fn model_fold(log: &[M]) -> Model {
    let mut v = Model::default();
    let (mut due, mut base_len) = (0, 0);
    for r in log {
        match *r {
            M::C(restore, kind, gens) => {
                v.head = restore;
                v.gens = gens;
                due = match kind {
                    'b' | 'r' => v.head,
                    'u' if v.trial => v.base,
                    _ => due,
                };
                match kind {
                    'u' => {
                        v.trial = true;
                        v.base = v.head;
                        base_len = v.publishable.len();
                        v.staged.clear();
                    }
                    'r' => {
                        v.publishable.truncate(base_len);
                        v.trial = false;
                        v.staged.clear();
                    }
                    'b' if v.trial => {
                        v.trial = false;
                        v.staged.clear();
                    }
                    'h' => v.done = v.done.max(v.publishable.last().map_or(0, |x| x.0)),
                    _ => {}
                }
            }
            M::E(e, parent, d, g) => {
                if e <= v.newest {
                    v.odd = Some(format!("epoch {e} is in the log twice"));
                } else if parent != due {
                    v.odd = Some(format!(
                        "epoch {e} goes on from {parent}, it should from {due}"
                    ));
                }
                v.head = e;
                due = e;
                v.newest = v.newest.max(e);
                v.done = v.done.max(d);
                if v.trial {
                    v.staged.push((e, g))
                } else {
                    v.publishable.push((e, g))
                }
            }
            M::B(s) => {
                v.born.insert(s);
            }
            M::A => {
                v.publishable.append(&mut v.staged);
                v.trial = false;
            }
        }
    }
    v
}

fn record(fold: &Fold, generation: u64, kind: Kind) -> Record {
    Record {
        format: 1,
        min_reader: 1,
        log: fold.log(),
        seq: fold.seq().next(),
        generation: Generation::new(generation),
        nonce: Nonce::from_bytes([0; 16]),
        time: Micros::new(fold.seq().get() as i64),
        closure_seq: fold.closure_seq(),
        kind,
    }
}

fn begin(switches: Switches) -> Fold {
    let created = Created {
        name: "a/b".into(),
        key_groups: 4,
        parent: None,
    };
    let first = Record {
        format: 1,
        min_reader: 1,
        log: LogId::from_bytes([9; 16]),
        seq: Seq::new(1),
        generation: Generation::ZERO,
        nonce: Nonce::from_bytes([0; 16]),
        time: Micros::new(0),
        closure_seq: Seq::ZERO,
        kind: Kind::Created(created),
    };
    Fold::begin(&first, switches).unwrap()
}

fn claim(point: crate::decide::ClaimPoint) -> Kind {
    Kind::Claim(Claim {
        kind: point.kind,
        restore_epoch: point.restore_epoch,
        handover_from: point.handover_from,
        plan_hash: String::new(),
        members: Vec::new(),
        assignment: Assignment::default(),
        by: None,
        version: None,
        request: None,
    })
}

fn commit(epoch: Epoch, parent: Epoch, done: Epoch) -> Kind {
    let commit = Commit {
        epoch,
        parent,
        ..Commit::default()
    };
    Kind::Epoch(EpochRecord {
        commit: Some(commit),
        plan: None,
        done_through: done,
    })
}

const K: u64 = 2;

/// A random step that `fold` itself takes to be legal, and the model's word for it.
fn step(fold: &Fold, rng: &mut StdRng) -> Option<(Record, M)> {
    let g = fold.generation().get();
    let published: Vec<Epoch> = fold.to_publish().map(|(e, _)| e).collect();
    // Somebody published some of what may be published.
    let first_left = published
        .get(rng.random_range(0..=published.len()))
        .copied();
    let done = fold.done_before(first_left);
    let wish = match rng.random_range(0..40) {
        _ if g == 0 => Some(Wish::Recover),
        0..=2 => Some(Wish::Recover),
        3 | 4 => Some(Wish::HandOver { done }),
        5 | 6 if fold.head() > Epoch::ZERO => Some(Wish::Upgrade),
        7 | 8 => Some(Wish::Rollback),
        9 | 10 => {
            let all: Vec<Epoch> = (1..=fold.newest().get())
                .map(Epoch::new)
                .filter(|&e| fold.is_publishable(e))
                .collect();
            all.choose(rng).map(|&to| Wish::GoBack { to })
        }
        _ => None,
    };
    if let Some(wish) = wish {
        let point = decide_claim(fold, wish).ok()?;
        let letter = match point.kind {
            ClaimKind::Recovery => 'n',
            ClaimKind::Handover => 'h',
            ClaimKind::Upgrade => 'u',
            ClaimKind::Rollback => 'r',
            ClaimKind::GoBack => 'b',
        };
        let m = M::C(point.restore_epoch.get(), letter, point.generation.get());
        return Some((record(fold, g + 1, claim(point)), m));
    }
    match rng.random_range(0..10) {
        0 if fold.trial().is_some() => {
            let a = Accepted {
                generation: fold.generation(),
                epoch: fold.head(),
            };
            Some((record(fold, g, Kind::Accepted(a)), M::A))
        }
        1 => {
            let (sink, shard) = (SinkName::new("s"), ShardId::new(rng.random_range(0..3)));
            if fold.shard(&sink, shard).is_some() {
                return None;
            }
            let partition = fold.free_partition(&sink);
            let nonce = Nonce::from_bytes([3; 16]);
            let b = SinkBorn {
                sink,
                shard,
                partition,
                epoch: fold.newest(),
                nonce,
            };
            Some((record(fold, g, Kind::SinkBorn(b)), M::B(shard.get())))
        }
        2 if fold.head() > Epoch::ZERO => {
            let c = ClosureRecord {
                epoch: fold.head(),
                path: format!("{}", fold.seq()),
                length: 0,
                crc: 0,
                through: fold.seq(),
            };
            Some((record(fold, g, Kind::Closure(c)), M::B(99)))
        }
        _ if may_commit(fold, done, K) => {
            let (e, parent) = (fold.next_epoch(), fold.head());
            Some((
                record(fold, g, commit(e, parent, done)),
                M::E(e.get(), parent.get(), done.get(), g),
            ))
        }
        _ => None,
    }
}

fn compare(fold: &Fold, log: &[M]) {
    let want = model_fold(log);
    assert_eq!(want.odd, None, "{log:?}");
    let raw = |runs: &[Run]| -> Vec<u64> { expand(runs).map(|(e, _)| e.get()).collect() };
    let epochs = |v: &[(u64, u64)]| -> Vec<u64> { v.iter().map(|x| x.0).collect() };
    assert_eq!(
        raw(&fold.published),
        epochs(&want.publishable),
        "pub {log:?}"
    );
    let undone: Vec<(u64, u64)> = want
        .publishable
        .iter()
        .copied()
        .filter(|x| x.0 > want.done)
        .collect();
    let mine: Vec<(u64, u64)> = fold.to_publish().map(|(e, g)| (e.get(), g.get())).collect();
    assert_eq!(mine, undone, "undone {log:?}");
    let staged: Vec<(u64, u64)> = fold.staged().map(|(e, g)| (e.get(), g.get())).collect();
    assert_eq!(staged, want.staged, "staged {log:?}");
    assert_eq!(
        fold.trial().map(|t| t.base.get()),
        want.trial.then_some(want.base),
        "trial {log:?}"
    );
    assert_eq!(
        (
            fold.head().get(),
            fold.newest().get(),
            fold.done_through().get(),
            fold.generation().get()
        ),
        (want.head, want.newest, want.done, want.gens),
        "{log:?}"
    );
    let born: BTreeSet<u16> = fold
        .shards()
        .values()
        .flatten()
        .map(|(s, _)| s.get())
        .collect();
    assert_eq!(
        born,
        want.born.into_iter().filter(|s| *s != 99).collect(),
        "born {log:?}"
    );
    // What is still to be published is still in memory; parents are those of the log.
    for (e, _) in fold.to_publish().chain(fold.staged()) {
        assert!(
            fold.commit(e).is_some(),
            "commit {e} was forgotten: {log:?}"
        );
    }
    let parent: BTreeMap<u64, u64> = log
        .iter()
        .filter_map(|m| {
            if let M::E(e, p, ..) = m {
                Some((*e, *p))
            } else {
                None
            }
        })
        .collect();
    for (&e, &p) in &parent {
        assert_eq!(fold.parent(Epoch::new(e)).map(Epoch::get), Some(p));
        let mut chain = vec![e];
        while let Some(&p) = parent.get(chain.last().unwrap()) {
            chain.push(p);
        }
        for a in 0..=want.newest {
            assert_eq!(
                fold.is_ancestor(Epoch::new(a), Epoch::new(e)),
                chain.contains(&a),
                "{a} of {e}: {log:?}"
            );
        }
    }
}

#[test]
fn the_fold_is_the_models_on_random_legal_logs() {
    let mut records = 0;
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut fold, mut log) = (begin(Switches::default()), Vec::new());
        for _ in 0..60 {
            let Some((record, m)) = step(&fold, &mut rng) else {
                continue;
            };
            fold.apply(&record)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}: {log:?}"));
            log.push(m);
            records += 1;
            compare(&fold, &log);
        }
        // A closure carries it whole.
        let again: Fold = serde_json::from_slice(&serde_json::to_vec(&fold).unwrap()).unwrap();
        assert_eq!(again, fold);
    }
    assert!(records > 10_000, "{records}");
}

#[test]
fn what_breaks_a_rule_is_refused_and_changes_nothing() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut fold = begin(Switches::default());
        for _ in 0..40 {
            if let Some((record, _)) = step(&fold, &mut rng) {
                fold.apply(&record).unwrap();
            }
        }
        let g = fold.generation().get();
        let (next, head) = (fold.next_epoch(), fold.head());
        let done = fold.done_through();
        let mut other_log = record(&fold, g, commit(next, head, done));
        other_log.log = LogId::from_bytes([8; 16]);
        let mut gap = record(&fold, g, commit(next, head, done));
        gap.seq = gap.seq.next();
        let bad = [
            other_log,
            gap,
            record(&fold, g - 1, commit(next, head, done)),
            record(&fold, g, commit(fold.newest(), head, done)),
            record(&fold, g, commit(next.next(), head, done)),
            record(&fold, g, commit(next, head.next(), done)),
            record(&fold, g, commit(next, head, next.next())),
            record(
                &fold,
                g,
                Kind::Pin(crate::record::Pin {
                    epoch: next,
                    name: "x".into(),
                }),
            ),
        ];
        let before = fold.clone();
        for r in bad {
            let refused = fold.apply(&r);
            assert!(refused.is_err(), "seed {seed}: {r:?}");
            assert_eq!(fold, before);
        }
    }
}

/// Whether an honest reader notices: a record refused, another list of what is to be published, or a standstill.
fn noticed(switches: Switches, seed: u64) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut honest, mut planted) = (begin(Switches::default()), begin(switches));
    for _ in 0..60 {
        if let Some(done) = planted
            .to_publish()
            .next()
            .map(|(e, _)| planted.done_before(Some(e)))
            && may_commit(&honest, done, K) != may_commit(&planted, done, K)
        {
            return true;
        }
        let at_handover = Wish::HandOver {
            done: planted.last_publishable().unwrap_or_default(),
        };
        if planted.marker_bound() != honest.marker_bound()
            || decide_claim(&honest, at_handover).is_ok()
                != decide_claim(&planted, at_handover).is_ok()
        {
            return true;
        }
        let Some((record, _)) = step(&planted, &mut rng) else {
            continue;
        };
        if let Kind::Claim(Claim {
            kind: ClaimKind::Handover,
            ..
        }) = &record.kind
            && honest.to_publish().next().is_some()
            && switches.ho_no_done
        {
            return true;
        }
        if honest.apply(&record).is_err() || planted.apply(&record).is_err() {
            return true;
        }
        if !honest.to_publish().eq(planted.to_publish()) || honest.published != planted.published {
            return true;
        }
        let target = honest.head();
        if crate::recovery::closures_for(&honest, target)
            != crate::recovery::closures_for(&planted, target)
        {
            return true;
        }
    }
    false
}

#[test]
fn planted_bugs_of_the_fold_are_noticed() {
    for name in Switches::NAMES
        .iter()
        .filter(|n| !["no_fence", "no_readback"].contains(n))
    {
        let switches = Switches::named(name).unwrap();
        assert!(
            (0..200).any(|seed| noticed(switches, seed)),
            "{name} was not noticed"
        );
    }
    assert!(!(0..200).any(|seed| noticed(Switches::default(), seed)));
}

#[test]
fn nobody_claims_a_drained_job() {
    let mut fold = begin(Switches::default());
    let point = decide_claim(&fold, Wish::Recover).unwrap();
    fold.apply(&record(&fold, 1, claim(point))).unwrap();
    fold.apply(&record(
        &fold,
        1,
        commit(Epoch::new(1), Epoch::ZERO, Epoch::ZERO),
    ))
    .unwrap();
    let stopped = Stopped {
        epoch: Epoch::new(1),
        why: StopReason::Drained,
    };
    fold.apply(&record(&fold, 1, Kind::Stopped(stopped)))
        .unwrap();
    assert_eq!(
        decide_claim(&fold, Wish::Recover),
        Err(crate::decide::Refusal::Drained)
    );
    assert!(fold.apply(&record(&fold, 2, claim(point))).is_err());
    assert!(
        fold.apply(&record(
            &fold,
            1,
            commit(Epoch::new(2), Epoch::new(1), Epoch::ZERO)
        ))
        .is_err()
    );
}

#[test]
fn a_plan_outlives_a_recovery_and_not_going_back() {
    let mut fold = begin(Switches::default());
    let apply = |fold: &mut Fold, g, kind| {
        let r = record(fold, g, kind);
        fold.apply(&r)
    };
    let recover = |fold: &Fold| claim(decide_claim(fold, Wish::Recover).unwrap());
    let first = recover(&fold);
    apply(&mut fold, 1, first).unwrap();
    apply(
        &mut fold,
        1,
        commit(Epoch::new(1), Epoch::ZERO, Epoch::ZERO),
    )
    .unwrap();
    let plan = |n| {
        let plan = Plan {
            epoch: Epoch::new(n),
            end: Some(BTreeMap::new()),
            ..Plan::default()
        };
        Kind::Epoch(EpochRecord {
            commit: None,
            plan: Some(plan),
            done_through: Epoch::ZERO,
        })
    };
    assert!(apply(&mut fold, 1, plan(3)).is_err());
    apply(&mut fold, 1, plan(2)).unwrap();
    assert!(
        apply(&mut fold, 1, plan(2)).is_err(),
        "a second plan for one epoch"
    );
    let again = recover(&fold);
    apply(&mut fold, 2, again).unwrap();
    assert_eq!(fold.planned().map(|p| p.epoch), Some(Epoch::new(2)));
    assert!(fold.end().is_some());
    let back = claim(decide_claim(&fold, Wish::GoBack { to: Epoch::new(1) }).unwrap());
    apply(&mut fold, 3, back).unwrap();
    assert_eq!(fold.planned(), None);
    assert_eq!(
        fold.next_epoch(),
        Epoch::new(3),
        "the number of a plan that was given up is not used again"
    );
    apply(
        &mut fold,
        3,
        commit(Epoch::new(3), Epoch::new(1), Epoch::ZERO),
    )
    .unwrap();
    assert!(
        fold.is_ancestor(Epoch::new(1), Epoch::new(3))
            && !fold.is_ancestor(Epoch::new(2), Epoch::new(3))
    );
}
