//! After garbage was collected, every epoch that is retained or pinned restores to the byte, and the rest is gone.

mod world;

use std::sync::Arc;
use std::time::Duration;

use penstock_checkpoint::collect::Collector;
use penstock_checkpoint::decide::Wish;
use penstock_checkpoint::gc::Retention;
use penstock_checkpoint::ids::Epoch;
use penstock_checkpoint::record::{Kind, Pin, Unpin};
use penstock_checkpoint::store::{CheckpointStore, Memory};
use world::{Builder, options, read};

#[tokio::test]
async fn what_is_retained_restores_and_the_rest_goes() {
    let memory = Arc::new(Memory::new());
    let store = CheckpointStore::new(memory.clone(), "x");
    let mut b = Builder::new(store.clone()).await;
    let mut collector = Collector::new();
    let retention = Retention {
        epochs: 5,
        duration: Duration::from_secs(600),
    };
    let mut dropped = 0;
    for n in 0u64..400 {
        b.clock.advance(Duration::from_secs(600));
        memory.set_now(b.log.clock().now());
        let e = b.epoch().await;
        if n == 17 {
            b.log.write_closure(b.generation).await.unwrap();
            b.log
                .append(
                    b.generation,
                    Kind::Pin(Pin {
                        epoch: e,
                        name: "kept".into(),
                    }),
                )
                .await
                .unwrap();
        }
        if n == 120 {
            b.claim(Wish::GoBack {
                to: Epoch::new(e.get() - 3),
            })
            .await;
        }
        if n == 200 {
            b.claim(Wish::Recover).await;
        }
        if n % 10 == 9 {
            b.log.write_closure(b.generation).await.unwrap();
            dropped += collector
                .collect(&mut b.log, b.generation, retention)
                .await
                .unwrap()
                .files;
            let head = b.log.fold().head();
            let retained: Vec<Epoch> = b.log.fold().ancestors(head).take(5).collect();
            for target in retained
                .into_iter()
                .chain((n > 17).then_some(Epoch::new(18)))
            {
                let w = read(&store, options(n, &b.clock), Some(target))
                    .await
                    .unwrap_or_else(|e| panic!("{target}: {e}"));
                assert_eq!(w.table, b.worlds[&target], "epoch {target} after {n}");
            }
        }
    }
    let objects = store.list("").await.unwrap();
    let count = |f: &str| objects.iter().filter(|l| l.key.starts_with(f)).count();
    println!(
        "dropped {dropped}; left: {} packs, {} closures, {} records",
        count("pack/"),
        count("closure/"),
        count("log/")
    );
    assert!(dropped > 200 && count("pack/") < 150 && count("closure/") < 20);
    // The pin holds closures back, and with them the log; without it both go.
    b.log
        .append(
            b.generation,
            Kind::Unpin(Unpin {
                name: "kept".into(),
            }),
        )
        .await
        .unwrap();
    let more = collector
        .collect(&mut b.log, b.generation, retention)
        .await
        .unwrap();
    assert!(more.records > 100, "{more:?}");
    let head = b.log.fold().head();
    assert_eq!(
        read(&store, options(1, &b.clock), None)
            .await
            .unwrap()
            .table,
        b.worlds[&head]
    );

    // What nobody named goes after a day, and not before.
    store
        .put("pack/00000000000000000001/9-9-x", "stray".into())
        .await
        .unwrap();
    assert_eq!(
        collector
            .sweep(&mut b.log, b.generation)
            .await
            .unwrap()
            .files,
        0
    );
    b.clock.advance(Duration::from_secs(25 * 3600));
    let swept = collector.sweep(&mut b.log, b.generation).await.unwrap();
    assert!(swept.files >= 1);
    assert_eq!(
        store.get("pack/00000000000000000001/9-9-x").await.unwrap(),
        None
    );
    assert_eq!(
        read(&store, options(1, &b.clock), None)
            .await
            .unwrap()
            .table,
        b.worlds[&head]
    );
}
