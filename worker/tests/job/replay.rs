//! A planned epoch is in the log before it runs; when it runs again, after a crash anywhere before its commit, it stages the
//! same rows, with one slot the same bytes. And a folder that grows is read once, run after run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use penstock_checkpoint::pack::PackIndex;
use penstock_checkpoint::record::{Kind, PackRef, Record};
use penstock_checkpoint::store::{CheckpointStore, Create, Listed, Memory, Objects, StoreError};
use penstock_worker::clock::{Clock, Millis, StandingClock};
use penstock_worker::coordinator::Outcome;
use penstock_worker::coordinator::progress::Progress;
use penstock_worker::job::memory::{Crash, MemoryJob};
use penstock_worker::job::{self as whole, RunOptions};
use penstock_worker::sinks::staged;
use tokio::sync::watch;

use super::{job, row};

/// A store that ends the engine at the commit of an epoch, the first time: the pack is durable then, the record is not.
#[derive(Debug)]
struct Breaking {
    inner: Memory,
    state: Mutex<Broken>,
}

#[derive(Debug, Default)]
struct Broken {
    crash: Option<(Crash, Arc<StandingClock>)>,
    /// Number of commits with rows to let through first.
    after: usize,
    refused: Option<Refused>,
    committed: BTreeMap<u64, PackRef>,
}

/// The commit that never came to be: epoch, what it planned next to itself, its pack.
#[derive(Debug, Clone)]
struct Refused {
    epoch: u64,
    pack: PackRef,
}

#[async_trait]
impl Objects for Breaking {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        if let Some(commit) = commit_of(key, &body) {
            let crash = {
                let mut state = self.state.lock();
                if state.refused.is_none() && state.after == 0 {
                    state.refused = Some(commit.clone());
                    state.crash.take()
                } else {
                    state.after = state.after.saturating_sub(1);
                    state.committed.insert(commit.epoch, commit.pack.clone());
                    None
                }
            };
            if let Some((crash, clock)) = crash {
                // An hour passes: the epoch that runs again must not see it.
                clock.set(Millis::new(clock.now().get() + 3_600_000));
                crash.now();
                std::future::pending::<()>().await;
            }
        }
        self.inner.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.inner.put(key, body).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_range(key, range).await
    }
    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(folder).await
    }
    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        self.inner.first(folder).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.inner.copy(from, to).await
    }
}

/// The epoch and pack that a record commits, if it is a commit with a pack.
fn commit_of(key: &str, body: &[u8]) -> Option<Refused> {
    if !key.contains("/log/") {
        return None;
    }
    let record = Record::decode(body).expect("the engine writes sound records");
    let Kind::Epoch(epoch) = record.kind else {
        return None;
    };
    let commit = epoch.commit?;
    Some(Refused {
        epoch: commit.epoch.get(),
        pack: commit.packs.first()?.clone(),
    })
}

/// Sections of a pack by name; a state segment and an output chunk each.
async fn sections(store: &CheckpointStore, pack: &PackRef) -> BTreeMap<String, Vec<u8>> {
    let body = store
        .get(&pack.path)
        .await
        .expect("read")
        .expect("it is there");
    let log = store.prefix().parse().expect("the prefix is the log's id");
    let index = PackIndex::of_whole(pack, log, &body).expect("sound");
    let mut all = BTreeMap::new();
    for (name, section) in index.sections() {
        let body = match section.out {
            None => body.clone(),
            Some(n) => {
                let path = pack.out_path(n as usize);
                store.get(&path).await.expect("read").expect("it is there")
            }
        };
        let range = section.range();
        let from = usize::try_from(range.start).expect("small");
        let to = usize::try_from(range.end).expect("small");
        let bytes = section.check(&body[from..to]).expect("whole");
        all.insert(format!("{name:?}"), bytes.to_vec());
    }
    all
}

/// Rows of all output chunks, sorted.
fn rows(sections: &BTreeMap<String, Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let mut rows = Vec::new();
    for (name, bytes) in sections
        .iter()
        .filter(|(name, _)| name.starts_with("Output"))
    {
        let shard = name.split(", chunk").next().unwrap_or(name);
        for record in staged::records(bytes) {
            let value = record.expect("whole").value.unwrap_or_default();
            rows.push((shard.to_owned(), value.to_vec()));
        }
    }
    rows.sort();
    rows
}

/// Fails with the rows that differ, as text.
fn same(left: &[(String, Vec<u8>)], right: &[(String, Vec<u8>)], what: &str) {
    let text = |rows: &[(String, Vec<u8>)], others: &[(String, Vec<u8>)]| {
        let mut left: Vec<_> = others.to_vec();
        let mut only = Vec::new();
        for row in rows {
            match left.binary_search(row) {
                Ok(at) => drop(left.remove(at)),
                Err(_) => only.push(format!("{} {}", row.0, String::from_utf8_lossy(&row.1))),
            }
        }
        only
    };
    let (missing, extra) = (text(right, left), text(left, right));
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}: missing {missing:#?}, extra {extra:#?}"
    );
}

const MANIFEST: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: replay}
spec:
  sources:
    - name: t
      kafka: {bootstrapServers: "localhost:9092", topics: [t]}
      format: {json: {}}
      columns:
        - {name: id, type: BIGINT, nullable: false}
        - {name: k, type: STRING}
        - {name: ts, type: TIMESTAMP(3), nullable: false}
        - {name: asked, type: TIMESTAMP_LTZ(3), as: "now()"}
      watermark: {column: ts, maxOutOfOrderness: 10s}
      onError: DeadLetter
      onLate: DeadLetter
      deadLetters: letters
      limits: {maxRowsPerEpoch: 400}
  sql: |
    INSERT INTO passed SELECT id, k, asked, now() AS at FROM t WHERE id % 3 <> 0;
    INSERT INTO counted
    SELECT k, window_start, COUNT(*) AS n, SUM(id) AS total, COUNT(DISTINCT id) AS ids
    FROM HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '20' SECOND, INTERVAL '1' MINUTE) GROUP BY k, window_start, window_end;
    INSERT INTO latest SELECT k, id FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS rn FROM t) WHERE rn = 1;
    INSERT INTO firsts SELECT DISTINCT k FROM t;
    CREATE VIEW evens AS SELECT id, k, ts FROM t WHERE id % 2 = 0;
    CREATE VIEW odds AS SELECT id, k, ts FROM t WHERE id % 2 = 1;
    CREATE VIEW even AS SELECT * FROM TUMBLE(TABLE evens, DESCRIPTOR(ts), INTERVAL '10' SECOND);
    CREATE VIEW odd AS SELECT * FROM TUMBLE(TABLE odds, DESCRIPTOR(ts), INTERVAL '10' SECOND);
    INSERT INTO joined
    SELECT a.k, a.id, b.id AS other FROM even a JOIN odd b
    ON a.window_start = b.window_start AND a.window_end = b.window_end AND a.k = b.k;
    INSERT INTO per_window
    SELECT k, id FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end, k ORDER BY id) AS rn FROM even) WHERE rn = 1;
  sinks:
    - {name: passed, print: {}}
    - {name: counted, print: {}}
    - {name: latest, print: {}, outputMode: Update}
    - {name: firsts, print: {}}
    - {name: joined, print: {}}
    - {name: per_window, print: {}}
    - {name: letters, kafka: {bootstrapServers: "localhost:9092", topic: letters}, format: {raw: {}}}
  state: {ttl: 24h}
"#;

/// Rows out of order, some bad, some late by the third epoch.
fn given() -> Vec<penstock_worker::sources::memory::MemoryRecord> {
    (0u64..2000)
        .map(|i| {
            let second = i / 10 + (i * 7919) % 17;
            let second = if i % 97 == 0 { second / 4 } else { second };
            let (minute, second) = (second / 60, second % 60);
            if i % 101 == 0 {
                return row(format!("{{\"id\":{i}"));
            }
            row(format!(
                r#"{{"id":{i},"k":"k-{}","ts":"2026-01-01T00:{minute:02}:{second:02}"}}"#,
                (i * 31) % 23
            ))
        })
        .collect()
}

/// Runs with a crash before the commit of the n-th epoch that has a pack; answers that epoch's pack twice, and the whole output.
fn crash_at(
    slots: usize,
    after: usize,
) -> (
    BTreeMap<String, Vec<u8>>,
    BTreeMap<String, Vec<u8>>,
    Vec<(String, Vec<u8>)>,
) {
    let (spec, plan) = job(MANIFEST);
    let inner = Memory::new();
    let state = Mutex::new(Broken {
        after,
        ..Broken::default()
    });
    let breaking = Arc::new(Breaking { inner, state });
    let store = CheckpointStore::new(breaking.clone(), "");
    let mut job = MemoryJob::new(spec, plan, slots, Some(store));
    breaking.state.lock().crash = Some((job.crash(), job.clock()));
    job.push("t", given());
    let drained = job.run(true).expect("it ends");
    assert!(matches!(drained, Outcome::Drained { .. }));
    assert_eq!(job.crashes(), 1);
    let state = breaking.state.lock();
    let refused = state.refused.clone().expect("a commit was refused");
    let again = &state.committed[&refused.epoch];
    assert_ne!(refused.pack.path, again.path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let first = runtime.block_on(sections(&job.store(), &refused.pack));
    let second = runtime.block_on(sections(&job.store(), again));
    (first, second, published(&job))
}

fn published(job: &MemoryJob) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for sink in [
        "passed",
        "counted",
        "latest",
        "firsts",
        "joined",
        "per_window",
        "letters",
    ] {
        for (_, record) in job.published(sink, 0) {
            let mut body = record.value.unwrap_or_default().to_vec();
            // The clock of later epochs is another after a crash.
            if let Some(at) = body.windows(8).position(|w| w == b",\"asked\"") {
                body.truncate(at);
            }
            all.push((sink.to_owned(), body));
        }
    }
    all.sort();
    all
}

#[test]
fn a_planned_epoch_that_runs_again_stages_the_same_rows_and_with_one_slot_the_same_bytes() {
    let (spec, plan) = job(MANIFEST);
    let mut whole = MemoryJob::new(spec, plan, 1, None);
    whole.push("t", given());
    whole.run(true).expect("it ends");
    let whole = published(&whole);
    assert!(whole.len() > 1000, "{} rows", whole.len());
    assert!(whole.iter().filter(|(sink, _)| sink == "letters").count() > 20);
    for after in 0..6 {
        for slots in [1, 2, 4] {
            let (first, second, output) = crash_at(slots, after);
            assert!(!rows(&first).is_empty());
            same(
                &rows(&first),
                &rows(&second),
                &format!("epoch {after}, {slots} slots, staged"),
            );
            if slots == 1 {
                assert_eq!(
                    first, second,
                    "epoch {after}: the same bytes, state included"
                );
            }
            // `latest` says how often a row changed on the way, which depends on nothing but the epochs: the same too.
            same(
                &output,
                &whole,
                &format!("epoch {after}, {slots} slots, published"),
            );
        }
    }
}

const GROWING: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: growing}
spec:
  sources:
    - name: t
      files: {url: "file://FOLDER/in/", pattern: "*.jsonl"}
      format: {json: {}}
      columns:
        - {name: id, type: BIGINT, nullable: false}
        - {name: ts, type: TIMESTAMP(3), nullable: false}
      watermark: {column: ts, maxOutOfOrderness: 0s}
  sql: |
    INSERT INTO out SELECT id FROM t;
    INSERT INTO minutes
    SELECT window_start, MIN(id) AS id FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start, window_end;
  sinks:
    - name: out
      files: {url: "file://FOLDER/out/"}
      format: {json: {}}
    - name: minutes
      files: {url: "file://FOLDER/minutes/"}
      format: {json: {}}
  trigger: {availableNow: {drain: false}}
  checkpoint: {storage: {local: {path: FOLDER/log}}}
  workers: {slots: 2}
"#;

fn ids(folder: &Path) -> Vec<i64> {
    let mut ids = Vec::new();
    let mut open = vec![folder.to_owned()];
    open.retain(|folder| folder.exists());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("the output is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            for line in std::fs::read_to_string(path).expect("text").lines() {
                let row: serde_json::Value = serde_json::from_str(line).expect("an object");
                ids.push(row["id"].as_i64().expect("a number"));
            }
        }
    }
    ids.sort_unstable();
    ids
}

#[test]
fn available_now_over_a_growing_folder_reads_each_row_once_whatever_became_of_the_volume() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    std::fs::create_dir_all(path.join("in")).expect("made");
    let manifest = GROWING.replace("FOLDER", &path.display().to_string());
    let (spec, plan) = job(&manifest);
    let options = RunOptions {
        memory: 64 << 20,
        state: Some(path.join("volume")),
        ..RunOptions::default()
    };
    let file = |name: &str, ids: Range<i64>| {
        let text: String = ids
            .map(|i| {
                format!(
                    "{{\"id\":{i},\"ts\":\"2026-01-01 00:{:02}:{:02}\"}}\n",
                    i / 60,
                    i % 60
                )
            })
            .collect();
        std::fs::write(path.join("in").join(name), text).expect("written");
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (_stop, stopping) = watch::channel(false);
        let progress = Arc::new(Progress::default());
        let ended = runtime.block_on(whole::run(
            &spec,
            plan.clone(),
            &options,
            progress,
            stopping,
        ));
        assert!(matches!(ended, Ok(Outcome::Completed { .. })), "{ended:?}");
    };
    file("a.jsonl", 0..300);
    file("b.jsonl", 300..301);
    run();
    assert_eq!(ids(&path.join("out")), (0..301).collect::<Vec<_>>());
    assert_eq!(
        ids(&path.join("minutes")),
        [0, 60, 120, 180, 240],
        "the sixth is open"
    );
    run();
    assert_eq!(
        ids(&path.join("out")),
        (0..301).collect::<Vec<_>>(),
        "nothing was new"
    );
    file("0-sorts-first.jsonl", 301..500);
    std::fs::remove_dir_all(path.join("volume")).expect("the volume is lost");
    run();
    assert_eq!(ids(&path.join("out")), (0..500).collect::<Vec<_>>());
    assert_eq!(
        ids(&path.join("minutes")),
        [0, 60, 120, 180, 240, 300, 360, 420]
    );
}
