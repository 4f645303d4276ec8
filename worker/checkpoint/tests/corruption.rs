//! Five thousand damages of log, packs, bases and closures: each is made good from another copy or refused by name; a
//! reader never gets other data.

mod world;

use std::sync::Arc;

use bytes::Bytes;
use penstock_checkpoint::decide::Wish;
use penstock_checkpoint::ids::Epoch;
use penstock_checkpoint::log::{LogError, record_seq};
use penstock_checkpoint::store::{CheckpointStore, ErrorKind, Memory};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use world::{Builder, options, read};

const DAMAGES: u64 = 5_000;

#[tokio::test]
async fn no_damage_is_read_as_data() {
    let store = CheckpointStore::new(Arc::new(Memory::new()), "ns/job/log");
    let mut b = Builder::new(store.clone()).await;
    for n in 0..40 {
        b.epoch().await;
        if n % 8 == 7 {
            b.log.write_closure(b.generation).await.unwrap();
        }
        if n == 25 {
            b.claim(Wish::GoBack { to: Epoch::new(20) }).await;
        }
    }
    let clock = b.clock.clone();
    let truth = read(&store, options(2, &clock), None).await.unwrap();
    assert_eq!(
        truth.table, b.worlds[&truth.head],
        "the state is that of the branch"
    );
    assert!(!truth.outputs.is_empty() && !truth.table.is_empty());

    let all: Vec<String> = store
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.key)
        .collect();
    let mut folders = std::collections::BTreeMap::<String, Vec<String>>::new();
    for key in all {
        folders
            .entry(key.split('/').next().unwrap().to_owned())
            .or_default()
            .push(key);
    }
    assert_eq!(
        folders.keys().map(String::as_str).collect::<Vec<_>>(),
        ["base", "closure", "log", "pack"]
    );
    let folders: Vec<Vec<String>> = folders.into_values().collect();
    let tail = folders[2][0].clone();

    // A log without its last record is a whole log: that of a moment earlier. Nothing in the store can tell; markers do.
    let last = store.get(&tail).await.unwrap().unwrap();
    store.delete(&tail).await.unwrap();
    let earlier = read(&store, options(2, &clock), None).await.unwrap();
    store.put(&tail, last).await.unwrap();

    let (mut same, mut refused) = (0, 0);
    for seed in 0..DAMAGES {
        let mut rng = StdRng::seed_from_u64(seed);
        let pick = |rng: &mut StdRng| {
            let f = &folders[rng.random_range(0..folders.len())];
            f[rng.random_range(0..f.len())].clone()
        };
        let (one, two) = (pick(&mut rng), pick(&mut rng));
        let (was, other) = (
            store.get(&one).await.unwrap().unwrap(),
            store.get(&two).await.unwrap().unwrap(),
        );
        let mut bytes = was.to_vec();
        let what = rng.random_range(0..4);
        match what {
            0 => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
                store.put(&one, bytes.into()).await.unwrap();
            }
            1 => {
                bytes.truncate(rng.random_range(0..bytes.len()));
                store.put(&one, bytes.into()).await.unwrap();
            }
            2 => {
                store.put(&one, other.clone()).await.unwrap();
                store.put(&two, was.clone()).await.unwrap();
            }
            _ => store.delete(&one).await.unwrap(),
        }
        match read(&store, options(seed, &clock), None).await {
            Ok(world) if what == 3 && one == tail => assert_eq!(world, earlier, "seed {seed}"),
            Ok(world) => {
                assert_eq!(
                    world, truth,
                    "seed {seed}: damage {what} of {one} (and {two}) was read as data"
                );
                same += 1;
            }
            Err(e) => {
                assert!(
                    matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Fail),
                    "seed {seed}: {e}"
                );
                let named = match &e {
                    LogError::Unreadable { object, .. } | LogError::Missing { object } => {
                        object.clone()
                    }
                    other => panic!(
                        "seed {seed}: damage {what} of {one} refused without a name: {other}"
                    ),
                };
                let hit = [&one, &two].into_iter().any(|k| named == store.key(k));
                assert!(
                    hit,
                    "seed {seed}: damage of {one} and {two} blamed on {named}"
                );
                refused += 1;
            }
        }
        store.put(&one, was).await.unwrap();
        store.put(&two, other).await.unwrap();
    }
    println!(
        "{DAMAGES} damages: {same} made good or not in the way, {refused} refused by name, 0 read as data"
    );
    assert!(same > 500 && refused > 500);
    assert_eq!(read(&store, options(2, &clock), None).await.unwrap(), truth);
    assert!(record_seq(&tail).is_some());
}

#[tokio::test]
async fn a_damaged_closure_is_made_good_by_an_older_one() {
    let store = CheckpointStore::new(Arc::new(Memory::new()), "x");
    let mut b = Builder::new(store.clone()).await;
    for n in 0..30 {
        b.epoch().await;
        if n % 10 == 9 {
            b.log.write_closure(b.generation).await.unwrap();
        }
    }
    let truth = read(&store, options(2, &b.clock), None).await.unwrap();
    // One after the other, newest first, until only the log is left.
    for c in b.log.fold().closures().iter().rev() {
        store
            .put(&c.record.path, Bytes::from_static(b"rubbish"))
            .await
            .unwrap();
        assert_eq!(
            read(&store, options(2, &b.clock), None).await.unwrap(),
            truth
        );
    }
}
