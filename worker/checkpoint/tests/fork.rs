//! A log that begins with another one's savepoint, and the end of a log: what is left of either for the other.

use std::sync::Arc;
use std::time::Duration;

use penstock_checkpoint::decide::Wish;
use penstock_checkpoint::fork::{self, Fork, ForkError};
use penstock_checkpoint::ids::*;
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::record::*;
use penstock_checkpoint::removal::{self, Removed};
use penstock_checkpoint::store::{CheckpointStore, Faults, Faulty, Memory, Objects};

mod world;
use world::{Builder, GROUPS, options, read};

const CHILD: [u8; 16] = [9; 16];

async fn pin(parent: &mut Builder, name: &str) -> Epoch {
    let epoch = parent.log.fold().head();
    let pin = Kind::Pin(Pin {
        epoch,
        name: name.to_owned(),
    });
    parent.log.append(parent.generation, pin).await.unwrap();
    parent.log.write_closure(parent.generation).await.unwrap();
    epoch
}

fn child<'a>(parent: &'a mut JobLog, objects: &Arc<dyn Objects>, pin: &'a str) -> Fork<'a> {
    Fork {
        parent,
        pin,
        store: CheckpointStore::new(objects.clone(), "ns/other/child"),
        log: LogId::from_bytes(CHILD),
        name: "ns/other".to_owned(),
        key_groups: GROUPS,
    }
}

/// A parent with a savepoint in the middle of its history.
async fn parent(objects: &Arc<dyn Objects>) -> (Builder, Epoch) {
    let mut parent = Builder::new(CheckpointStore::new(objects.clone(), "ns/job/parent")).await;
    for _ in 0..23 {
        parent.epoch().await;
    }
    let pinned = pin(&mut parent, "before").await;
    for _ in 0..9 {
        parent.epoch().await;
    }
    (parent, pinned)
}

#[tokio::test(start_paused = true)]
async fn a_log_begins_with_a_savepoint_and_stands_by_itself_when_the_parent_is_gone() {
    let objects: Arc<dyn Objects> = Arc::new(Memory::new());
    let (mut parent, pinned) = parent(&objects).await;
    let clock = parent.clock.clone();
    let wanted = read(parent.log.store(), options(2, &clock), Some(pinned))
        .await
        .unwrap();
    let fork = child(&mut parent.log, &objects, "before");
    let mut log = fork.begin(options(3, &clock)).await.unwrap();
    assert!(!fork::is_half(&log));
    assert_eq!((log.fold().head(), log.fold().root()), (pinned, pinned));
    let of = log.fold().parent_log().unwrap();
    assert_eq!((of.log, of.epoch), (parent.log.fold().log(), pinned));

    // The parent ends; its savepoint is not needed any more.
    let unpin = Kind::Unpin(Unpin {
        name: "before".to_owned(),
    });
    parent.log.append(parent.generation, unpin).await.unwrap();
    let removed = removal::remove(parent.log.store(), options(4, &clock)).await;
    assert_eq!(removed.unwrap(), Removed::Everything);
    assert_eq!(parent.log.store().list("").await.unwrap(), []);

    let found = read(log.store(), options(5, &clock), None).await.unwrap();
    assert_eq!((found.head, &found.offset), (pinned, &wanted.offset));
    assert_eq!(found.table, wanted.table);
    assert_eq!(
        found.outputs,
        [],
        "what the savepoint stands on is published"
    );

    // It goes on with numbers of its own after the savepoint's.
    let generation = log.claim(Wish::Recover, world::claim).await.unwrap();
    assert_eq!(generation.generation, Generation::new(1));
    assert_eq!(log.fold().next_epoch(), pinned.next());
}

#[tokio::test(start_paused = true)]
async fn a_fork_that_was_cut_short_is_finished_by_the_next_call() {
    let objects: Arc<dyn Objects> = Arc::new(Memory::new());
    let (mut parent, pinned) = parent(&objects).await;
    let clock = parent.clock.clone();
    let wanted = read(parent.log.store(), options(2, &clock), Some(pinned))
        .await
        .unwrap();
    // The log was begun, and its first closure was not written.
    let created = Created {
        name: "ns/other".to_owned(),
        key_groups: GROUPS,
        parent: Some(Parent {
            location: "ns/job/parent".to_owned(),
            log: parent.log.fold().log(),
            epoch: pinned,
        }),
    };
    let store = CheckpointStore::new(objects.clone(), "ns/other/child");
    let id = LogId::from_bytes(CHILD);
    JobLog::create(store.clone(), id, created, options(3, &clock))
        .await
        .unwrap();
    let mut half = JobLog::open(store.clone(), options(4, &clock))
        .await
        .unwrap()
        .unwrap();
    assert!(fork::is_half(&half));
    assert!(
        half.restore(pinned).await.is_err(),
        "it must not be taken for a log that begins empty"
    );
    let fork = child(&mut parent.log, &objects, "before");
    fork.begin(options(5, &clock)).await.unwrap();
    let found = read(&store, options(6, &clock), None).await.unwrap();
    assert_eq!((found.head, found.table), (pinned, wanted.table));
}

#[tokio::test(start_paused = true)]
async fn a_fork_through_a_store_that_errs_is_the_same() {
    for seed in 0..20 {
        let memory: Arc<dyn Objects> = Arc::new(Memory::new());
        let (mut parent, pinned) = parent(&memory).await;
        let clock = parent.clock.clone();
        let wanted = read(parent.log.store(), options(2, &clock), Some(pinned))
            .await
            .unwrap();
        let faults = Faults {
            before: 0.1,
            after: 0.1,
            late: 0.05,
            delay: Duration::from_millis(5),
        };
        let faulty: Arc<dyn Objects> = Arc::new(Faulty::new(memory, seed, faults));
        let fork = child(&mut parent.log, &faulty, "before");
        fork.begin(options(3 + seed, &clock)).await.unwrap();
        let store = CheckpointStore::new(faulty, "ns/other/child");
        let found = read_patiently(&store, &clock).await;
        assert_eq!(
            (found.head, found.table),
            (pinned, wanted.table),
            "seed {seed}"
        );
    }
}

async fn read_patiently(
    store: &CheckpointStore,
    clock: &Arc<penstock_checkpoint::clock::ManualClock>,
) -> world::World {
    for _ in 0..1000 {
        if let Ok(world) = read(store, options(9, clock), None).await {
            return world;
        }
    }
    panic!("it was never read");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_forked_is_said_by_name() {
    let objects: Arc<dyn Objects> = Arc::new(Memory::new());
    let (mut parent, _) = parent(&objects).await;
    let error = child(&mut parent.log, &objects, "after")
        .epoch()
        .unwrap_err();
    assert!(matches!(&error, ForkError::NoSuchPin { known, .. } if known == "before"));
    let fork = Fork {
        key_groups: 2 * GROUPS,
        ..child(&mut parent.log, &objects, "before")
    };
    assert!(matches!(fork.epoch(), Err(ForkError::KeyGroups { .. })));
}

#[tokio::test(start_paused = true)]
async fn removal_keeps_what_a_savepoint_pins_and_ends_when_it_is_unpinned() {
    let objects: Arc<dyn Objects> = Arc::new(Memory::new());
    let (mut parent, pinned) = parent(&objects).await;
    let clock = parent.clock.clone();
    let store = parent.log.store().clone();
    let wanted = read(&store, options(2, &clock), Some(pinned))
        .await
        .unwrap();
    let before = store.list("pack").await.unwrap().len();
    for _ in 0..2 {
        clock.advance(Duration::from_secs(1));
        let removed = removal::remove(&store, options(3, &clock)).await.unwrap();
        assert_eq!(removed, Removed::Pinned(vec!["before".to_owned()]));
    }
    assert!(store.list("pack").await.unwrap().len() < before);
    let found = read(&store, options(4, &clock), Some(pinned))
        .await
        .unwrap();
    assert_eq!(found.table, wanted.table);
    // Who ran the job is fenced.
    let stale = Kind::Unpin(Unpin {
        name: "x".to_owned(),
    });
    assert!(parent.log.append(parent.generation, stale).await.is_err());

    let mut log = JobLog::open(store.clone(), options(5, &clock))
        .await
        .unwrap()
        .unwrap();
    assert!(removal::is_condemned(&log));
    let unpin = Kind::Unpin(Unpin {
        name: "before".to_owned(),
    });
    let generation = log.fold().generation();
    log.append(generation, unpin).await.unwrap();
    let removed = removal::remove(&store, options(6, &clock)).await.unwrap();
    assert_eq!(removed, Removed::Everything);
    assert_eq!(store.list("").await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_is_cut_short_anywhere_is_finished_by_the_next() {
    let objects: Arc<dyn Objects> = Arc::new(Memory::new());
    let (parent, _) = parent(&objects).await;
    let clock = parent.clock.clone();
    let store = parent.log.store().clone();
    let mut log = parent.log;
    let unpin = Kind::Unpin(Unpin {
        name: "before".to_owned(),
    });
    log.append(parent.generation, unpin).await.unwrap();
    let mut rounds = 0;
    loop {
        // Each call is dropped a little later than the one before.
        let bound = Duration::from_millis(rounds * 700);
        let call = removal::remove(&store, options(7 + rounds, &clock));
        let slow = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            call.await
        };
        rounds += 1;
        if let Ok(done) = tokio::time::timeout(bound, slow).await {
            assert_eq!(done.unwrap(), Removed::Everything);
            break;
        }
    }
    assert!(rounds > 10, "it was cut short: {rounds}");
    assert_eq!(store.list("").await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_slept_through_the_removal_cannot_begin_the_log_again() {
    let objects: Arc<dyn Objects> = Arc::new(Memory::new());
    let (mut parent, _) = parent(&objects).await;
    let clock = parent.clock.clone();
    let store = parent.log.store().clone();
    let mut other = JobLog::open(store.clone(), options(3, &clock))
        .await
        .unwrap()
        .unwrap();
    let unpin = Kind::Unpin(Unpin {
        name: "before".to_owned(),
    });
    other.append(parent.generation, unpin).await.unwrap();
    let (began, sleeper) = (tokio::time::Instant::now(), clock.clone());
    removal::remove(&store, options(4, &clock)).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(60));
    // The machine of the owner had no time at all, and its clock says so.
    sleeper.advance(began.elapsed());
    let stale = Kind::Unpin(Unpin {
        name: "x".to_owned(),
    });
    assert!(parent.log.append(parent.generation, stale).await.is_err());
}
