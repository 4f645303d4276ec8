//! The tail of a log of 100,000 records is found, and its job opened, with at most ten requests and one for each record after
//! the newest closure. `PENSTOCK_TEST_S3=endpoint,bucket,access,secret` runs it on an S3 server too.

#[expect(dead_code, reason = "the other suites use the rest")]
mod world;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, stream};
use penstock_checkpoint::clock::ManualClock;
use penstock_checkpoint::closure::Closure;
use penstock_checkpoint::fold::Fold;
use penstock_checkpoint::ids::*;
use penstock_checkpoint::log::{JobLog, record_path};
use penstock_checkpoint::record::*;
use penstock_checkpoint::store::{
    CheckpointStore, Counting, LocalFolder, Memory, Objects, Remote, S3Options,
};
use penstock_checkpoint::{Switches, closure::EpochState};
use world::options;

/// The objects of a log of `records` records with a closure every hundred.
fn long_log(records: u64) -> Vec<(String, Bytes)> {
    let mut objects = Vec::new();
    let mut fold: Option<Fold> = None;
    let mut state = EpochState::empty(Epoch::ZERO);
    let log = LogId::from_bytes([6; 16]);
    for n in 1..=records {
        let kind = match (n, &fold) {
            (1, _) | (_, None) => Kind::Created(Created {
                name: "ns/long".into(),
                key_groups: 64,
                parent: None,
            }),
            (2, Some(f)) => {
                let point = penstock_checkpoint::decide::decide_claim(
                    f,
                    penstock_checkpoint::decide::Wish::Recover,
                );
                Kind::Claim(world::claim(f, point.unwrap()))
            }
            (_, Some(f)) if n % 100 == 3 => {
                let closure = Closure::new(
                    state.clone(),
                    f.clone(),
                    Nonce::from_bytes([(n % 251) as u8; 16]),
                );
                let (bytes, record) = closure.encode().unwrap();
                objects.push((record.path.clone(), bytes.into()));
                Kind::Closure(record)
            }
            (_, Some(f)) => {
                let split = SplitState {
                    position: Position::Offset(n as i64),
                    max_event_time: None,
                    idle: false,
                    done: false,
                };
                let commit = Commit {
                    epoch: f.next_epoch(),
                    parent: f.head(),
                    now: Micros::new(n as i64),
                    offsets: [("in".into(), [("t/0".into(), split)].into())].into(),
                    ..Commit::default()
                };
                state.advance(&commit).unwrap();
                let done = f.newest().prev().unwrap_or_default();
                Kind::Epoch(EpochRecord {
                    commit: Some(commit),
                    plan: None,
                    done_through: done,
                })
            }
        };
        let record = Record {
            format: FORMAT,
            min_reader: FORMAT,
            log,
            seq: Seq::new(n),
            generation: Generation::new(u64::from(n > 1)),
            nonce: Nonce::from_bytes([n as u8; 16]),
            time: Micros::new(n as i64),
            closure_seq: fold.as_ref().map_or(Seq::ZERO, Fold::closure_seq),
            kind,
        };
        match &mut fold {
            None => fold = Some(Fold::begin(&record, Switches::default()).unwrap()),
            Some(f) => f.apply(&record).unwrap(),
        }
        objects.push((record_path(Seq::new(n)), record.encode().unwrap().into()));
    }
    objects
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time is printed, nothing is decided by it"
)]
async fn open_counted(name: &str, objects: Arc<dyn Objects>, records: u64) {
    let counting = Arc::new(Counting::new(objects));
    let store = CheckpointStore::new(counting.clone(), "ns/long/log");
    let clock = Arc::new(ManualClock::default());
    let start = Instant::now();
    store
        .prove_create_if_absent(&mut SystemEntropy)
        .await
        .unwrap();
    let proof = counting.requests().total();
    let mut log = JobLog::open(store, options(1, &clock))
        .await
        .unwrap()
        .unwrap();
    let plan = log.restore(log.fold().restore_epoch()).await.unwrap();
    let took = start.elapsed();
    assert_eq!(log.fold().seq(), Seq::new(records));
    let last = plan
        .state
        .offsets
        .values()
        .flat_map(|s| s.values())
        .next()
        .unwrap();
    assert_eq!(last.position, Position::Offset(records as i64));
    let after = records - log.fold().closure_seq().get();
    let total = counting.requests().total();
    println!(
        "{name}: tail of {records} records found and job opened in {took:?}: {total} requests, of them {proof} to prove \
         the store and {after} for the records after the newest closure"
    );
    assert!(
        total <= 10 + after,
        "{name}: {total} requests, {after} records after the newest closure"
    );
}

const RECORDS: u64 = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_opens_with_few_requests() {
    let objects = long_log(RECORDS);
    let memory = Memory::new();
    for (path, body) in &objects {
        memory
            .put(&format!("ns/long/log/{path}"), body.clone())
            .await
            .unwrap();
    }
    open_counted("memory", Arc::new(memory), RECORDS).await;

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ns/long/log");
    std::fs::create_dir_all(root.join("log")).unwrap();
    std::fs::create_dir_all(root.join("closure")).unwrap();
    // Only the newest closures are read; the records must all be there.
    let from = objects.len() - 2_000;
    for (i, (path, body)) in objects.iter().enumerate() {
        if path.starts_with("log/") || i > from {
            std::fs::write(root.join(path), body).unwrap();
        }
    }
    open_counted(
        "local folder",
        Arc::new(LocalFolder::open(folder.path()).unwrap()),
        RECORDS,
    )
    .await;

    let Ok(s3) = std::env::var("PENSTOCK_TEST_S3") else {
        println!("s3: skipped, PENSTOCK_TEST_S3 is not set (endpoint,bucket,access,secret)");
        return;
    };
    let [endpoint, bucket, access, secret] = s3.split(',').collect::<Vec<_>>()[..] else {
        panic!("PENSTOCK_TEST_S3 must be endpoint,bucket,access,secret");
    };
    let options = S3Options {
        bucket: bucket.into(),
        region: "us-east-1".into(),
        endpoint: endpoint.into(),
        path_style: true,
        access_key: Some(access.into()),
        secret_key: Some(secret.into()),
        session_token: None,
    };
    let remote: Arc<dyn Objects> = Arc::new(Remote::s3(&options).unwrap());
    stream::iter(
        objects
            .iter()
            .enumerate()
            .filter(|(i, (path, _))| path.starts_with("log/") || *i > from),
    )
    .for_each_concurrent(32, |(_, (path, body))| {
        let remote = remote.clone();
        async move {
            remote
                .put(&format!("ns/long/log/{path}"), body.clone())
                .await
                .unwrap()
        }
    })
    .await;
    open_counted("s3", remote, RECORDS).await;
}
