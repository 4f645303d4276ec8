//! Appending under doubt, fencing, slow appends, and the planted bugs of appending.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::ManualClock;
use crate::ids::{Micros, SeededEntropy};
use crate::record::{Assignment, ClaimKind, EpochRecord};
use crate::store::{Faults, Faulty, Listed, Memory, Objects};

fn options(seed: u64, clock: &Arc<ManualClock>, switches: Switches) -> Options {
    Options {
        clock: clock.clone(),
        entropy: Box::new(SeededEntropy::new(seed)),
        switches,
        ..Options::default()
    }
}

fn claim(_: &Fold, point: ClaimPoint) -> Claim {
    Claim {
        kind: ClaimKind::Recovery,
        restore_epoch: point.restore_epoch,
        handover_from: None,
        plan_hash: "p".into(),
        members: Vec::new(),
        assignment: Assignment::default(),
        by: None,
        version: None,
        request: None,
    }
}

fn commit(fold: &Fold) -> Kind {
    let commit = Commit {
        epoch: fold.next_epoch(),
        parent: fold.head(),
        ..Commit::default()
    };
    Kind::Epoch(EpochRecord {
        commit: Some(commit),
        plan: None,
        done_through: Epoch::ZERO,
    })
}

async fn create(store: &CheckpointStore, clock: &Arc<ManualClock>) -> JobLog {
    let created = Created {
        name: "a/b".into(),
        key_groups: 4,
        parent: None,
    };
    let id = LogId::from_bytes([5; 16]);
    JobLog::create(
        store.clone(),
        id,
        created,
        options(0, clock, Switches::default()),
    )
    .await
    .unwrap()
}

async fn commits(store: &CheckpointStore) -> Vec<u64> {
    let all = read_all(store).await.unwrap();
    let seqs: Vec<u64> = all.iter().map(|r| r.seq.get()).collect();
    assert_eq!(
        seqs,
        (1..=all.len() as u64).collect::<Vec<_>>(),
        "the log has a hole"
    );
    all.iter()
        .filter_map(|r| {
            if let Kind::Epoch(e) = &r.kind {
                e.commit.as_ref().map(|c| c.epoch.get())
            } else {
                None
            }
        })
        .collect()
}

/// A writer and a rival on one faulty store. `Err` says what went wrong.
async fn contest(seed: u64, switches: Switches) -> Result<(), String> {
    let memory: Arc<dyn Objects> = Arc::new(Memory::new());
    let plain = CheckpointStore::new(memory.clone(), "job");
    let clock = Arc::new(ManualClock::at(Micros::new(1)));
    create(&plain, &clock).await;
    let faults = Faults {
        before: 0.1,
        after: 0.15,
        late: 0.15,
        delay: Duration::from_millis(50),
    };
    let task = |n: u64, switches| {
        let faulty: Arc<dyn Objects> = Arc::new(Faulty::new(memory.clone(), seed * 10 + n, faults));
        let (store, clock) = (CheckpointStore::new(faulty, "job"), clock.clone());
        tokio::spawn(async move {
            let mut log = JobLog::open(store, options(seed * 100 + n, &clock, switches))
                .await
                .map_err(|e| e.to_string())?
                .unwrap();
            let mut mine = Vec::new();
            for _ in 0..3 {
                let claimed = match log.claim(Wish::Recover, claim).await {
                    Ok(r) => r.generation,
                    Err(e) => return Err(format!("claim: {e}")),
                };
                for _ in 0..15 {
                    let kind = commit(log.fold());
                    match log.append(claimed, kind).await {
                        Ok(Record {
                            kind:
                                Kind::Epoch(EpochRecord {
                                    commit: Some(c), ..
                                }),
                            ..
                        }) => mine.push(c.epoch.get()),
                        Ok(_) => {}
                        Err(LogError::Fenced { .. }) => break,
                        Err(e) => return Err(format!("append: {e}")),
                    }
                    if log.closure_due() {
                        let _ = log.write_closure(claimed).await;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Ok(mine)
        })
    };
    let (a, b) = (task(1, switches), task(2, Switches::default()));
    let mut acknowledged = a.await.unwrap()?;
    acknowledged.extend(b.await.unwrap()?);
    acknowledged.sort_unstable();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let all = commits(&plain).await;
    if all != (1..=all.len() as u64).collect::<Vec<_>>() {
        return Err(format!("epochs {all:?}"));
    }
    if acknowledged.iter().any(|e| !all.contains(e)) {
        return Err("an acknowledged commit is not in the log".into());
    }
    let mut once = acknowledged.clone();
    once.dedup();
    if once != acknowledged {
        return Err("one epoch was acknowledged twice".into());
    }
    // Whoever reads it finds it legal.
    let log = JobLog::open(plain, options(3, &clock, Switches::default()))
        .await
        .map_err(|e| e.to_string())?
        .unwrap();
    if log.fold().newest().get() != all.len() as u64 {
        return Err("another newest".into());
    }
    Ok(())
}

fn simulate<F: Future>(f: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(f)
}

#[test]
fn two_writers_on_a_faulty_store_make_one_log() {
    for seed in 0..150 {
        let result = simulate(contest(seed, Switches::default()));
        assert_eq!(result, Ok(()), "seed {seed}");
    }
}

#[test]
fn a_missing_read_back_is_noticed() {
    let switches = Switches {
        no_readback: true,
        ..Switches::default()
    };
    let noticed = (0..30).any(|seed| {
        std::panic::catch_unwind(|| simulate(contest(seed, switches))).map_or(true, |r| r.is_err())
    });
    assert!(noticed);
}

#[test]
fn a_missing_fence_is_noticed() {
    simulate(async {
        let store = CheckpointStore::new(Arc::new(Memory::new()), "job");
        let clock = Arc::new(ManualClock::at(Micros::new(1)));
        create(&store, &clock).await;
        for (name, want_fence) in [("", true), ("no_fence", false)] {
            let switches = Switches::named(name).unwrap_or_default();
            let mut old = JobLog::open(store.clone(), options(1, &clock, switches))
                .await
                .unwrap()
                .unwrap();
            let g = old.claim(Wish::Recover, claim).await.unwrap().generation;
            let mut new = JobLog::open(store.clone(), options(2, &clock, Switches::default()))
                .await
                .unwrap()
                .unwrap();
            new.claim(Wish::Recover, claim).await.unwrap();
            old.follow().await.unwrap();
            let kind = commit(old.fold());
            let e = old.append(g, kind).await.unwrap_err();
            assert_eq!(matches!(e, LogError::Fenced { .. }), want_fence, "{e}");
            // Its record stands in the log now, and every reader refuses it.
            assert_eq!(new.follow().await.is_err(), !want_fence);
        }
    });
}

#[test]
fn an_append_that_was_dropped_is_settled_first() {
    simulate(async {
        let memory: Arc<dyn Objects> = Arc::new(Memory::new());
        let clock = Arc::new(ManualClock::at(Micros::new(1)));
        let faults = Faults {
            after: 1.0,
            delay: Duration::from_millis(100),
            ..Faults::default()
        };
        create(&CheckpointStore::new(memory.clone(), "job"), &clock).await;
        for wait in [10, 60, 110, 150, 210, 400] {
            let store = CheckpointStore::new(memory.clone(), "job");
            let mut log = JobLog::open(store, options(wait, &clock, Switches::default()))
                .await
                .unwrap()
                .unwrap();
            let g = log.claim(Wish::Recover, claim).await.unwrap().generation;
            let faulty: Arc<dyn Objects> = Arc::new(Faulty::new(memory.clone(), wait, faults));
            let well = std::mem::replace(&mut log.store, CheckpointStore::new(faulty, "job"));
            let kind = commit(log.fold());
            let _ = tokio::time::timeout(Duration::from_millis(wait), log.append(g, kind)).await;
            log.store = well;
            let kind = Kind::Unpin(crate::record::Unpin { name: "x".into() });
            log.append(g, kind).await.unwrap();
        }
        let store = CheckpointStore::new(memory, "job");
        assert_eq!(commits(&store).await.len(), 6);
    });
}

#[test]
fn after_a_minute_a_success_needs_the_record_before_it() {
    simulate(async {
        let store = CheckpointStore::new(Arc::new(Memory::new()), "job");
        let clock = Arc::new(ManualClock::at(Micros::new(1)));
        let mut sleeper = create(&store, &clock).await;
        let g = sleeper
            .claim(Wish::Recover, claim)
            .await
            .unwrap()
            .generation;
        // Slept, but nothing happened meanwhile: goes on.
        clock.advance(Duration::from_secs(3600));
        let kind = commit(sleeper.fold());
        sleeper.append(g, kind).await.unwrap();
        // Slept while others went on, collected the log, and freed the next key.
        let next = sleeper.fold().seq().next();
        let mut other = JobLog::open(store.clone(), options(1, &clock, Switches::default()))
            .await
            .unwrap()
            .unwrap();
        let h = other.claim(Wish::Recover, claim).await.unwrap().generation;
        let kind = commit(other.fold());
        other.append(h, kind).await.unwrap();
        for seq in 1..=next.get() {
            store.delete(&record_path(Seq::new(seq))).await.unwrap();
        }
        clock.advance(Duration::from_secs(61));
        let kind = commit(sleeper.fold());
        let e = sleeper.append(g, kind).await.unwrap_err();
        assert!(matches!(e, LogError::Fenced { .. }), "{e}");
    });
}

/// Refuses every write for good, as a full disk does.
#[derive(Debug)]
struct Full(Memory, AtomicBool);

#[async_trait::async_trait]
impl Objects for Full {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(StoreError::new(
                ErrorKind::Fail,
                "create",
                key,
                "no space left on device",
            ));
        }
        self.0.create(key, body).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.0.put(key, body).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key).await
    }
    async fn get_range(
        &self,
        key: &str,
        range: std::ops::Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        self.0.get_range(key, range).await
    }
    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.0.list(folder).await
    }
    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        self.0.first(folder).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.0.copy(from, to).await
    }
}

#[test]
fn a_full_disk_stops_with_a_sentence_and_loses_nothing() {
    simulate(async {
        let full = Arc::new(Full(Memory::new(), AtomicBool::new(false)));
        let store = CheckpointStore::new(full.clone(), "job");
        let clock = Arc::new(ManualClock::at(Micros::new(1)));
        let mut log = create(&store, &clock).await;
        let g = log.claim(Wish::Recover, claim).await.unwrap().generation;
        full.1.store(true, Ordering::SeqCst);
        let kind = commit(log.fold());
        let e = log.append(g, kind).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Fail);
        full.1.store(false, Ordering::SeqCst);
        let kind = Kind::Unpin(crate::record::Unpin { name: "x".into() });
        log.append(g, kind).await.unwrap();
        assert_eq!(
            commits(&store).await,
            [1],
            "what was in doubt was settled first"
        );
    });
}
