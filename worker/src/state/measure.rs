//! Measurements, not tests: they assert results, never times. Run by name with `--ignored --nocapture`.

#![allow(
    clippy::disallowed_methods,
    reason = "measures or waits by the clock, and decides nothing"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::*;

/// A number of the environment, so that the same code serves a quick look and the full size.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib >> 10
}

fn disk_mib(dir: &std::path::Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            sum += disk_mib(&entry.path()) << 20;
        } else {
            sum += meta.len();
        }
    }
    sum >> 20
}

fn mix(n: u64) -> u64 {
    let x = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn group_of(n: u64, groups: u16) -> u16 {
    (mix(n) >> 32) as u16 % groups
}

fn value_of(n: u64, version: u64) -> [u8; 150] {
    // Compresses about as little as ids and amounts do.
    std::array::from_fn(|i| (mix(n ^ version << 40 ^ (i as u64 / 8) << 52) >> (i % 8 * 8)) as u8)
}

fn options(dir: Option<PathBuf>, budget: u64) -> StateOptions {
    StateOptions {
        dir,
        total_groups: 64,
        log_id: "measure".into(),
        schema_fingerprint: "measure".into(),
        nonce: 1,
        budget: Budget::new((budget << 20) as usize),
        stateful: true,
        planted: Planted::default(),
    }
}

/// Loads `PENSTOCK_KEYS` keys, then reads and rewrites uniformly, under `PENSTOCK_BUDGET_MIB`; then opens the volume again.
#[test]
#[ignore = "a measurement"]
fn uniform_access() {
    const BATCH: u64 = 4096;
    let keys = setting("PENSTOCK_KEYS", 1_000_000);
    let accesses = setting("PENSTOCK_ACCESSES", keys / 4);
    let budget = setting("PENSTOCK_BUDGET_MIB", 1024);
    let epoch_batches = setting("PENSTOCK_EPOCH_BATCHES", 50);
    let root = tempfile::tempdir().unwrap();
    let dir = (setting("PENSTOCK_MEMORY", 0) == 0).then(|| root.path().join("state"));
    let o = options(dir.clone(), budget);
    let groups: Vec<u16> = (0..64).collect();
    let worker = StateWorker::open(o).unwrap();
    worker
        .instances()
        .open_groups(&groups, &|_, _| true)
        .unwrap();
    let t = TableId::of("measure", "rows");
    let mut slot = worker.slot(0..64).unwrap();
    let (mut epoch, mut batches, mut peak) = (0u64, 0u64, 0u64);
    let mut end_batch = |slot: &mut SlotState| {
        batches += 1;
        if batches % epoch_batches == 0 || slot.wants_barrier() {
            epoch += 1;
            let layers: Vec<Arc<FrozenLayer>> = slot.freeze(epoch).into_iter().collect();
            worker.commit(Commit {
                epoch,
                checksum: 1,
                now_ms: 0,
                layers,
            });
            worker.check().unwrap();
            peak = peak.max(rss_mib());
        }
        (epoch, peak)
    };
    let start = Instant::now();
    for from in (0..keys).step_by(BATCH as usize) {
        for n in from..(from + BATCH).min(keys) {
            slot.put(t, group_of(n, 64), &n.to_be_bytes(), &value_of(n, 0), 0);
        }
        end_batch(&mut slot);
    }
    let put = start.elapsed();
    worker.wait_applied().unwrap();
    println!(
        "put: {keys} keys, {:.2} M/s on the hot path, {:.1} s until applied, rss {} MiB",
        keys as f64 / put.as_secs_f64() / 1e6,
        start.elapsed().as_secs_f64(),
        rss_mib()
    );
    let start = Instant::now();
    let mut done = 0;
    while done < accesses {
        let ns: Vec<u64> = (done..done + BATCH).map(|i| mix(i) % keys).collect();
        let bytes: Vec<[u8; 8]> = ns.iter().map(|n| n.to_be_bytes()).collect();
        let asked: Vec<(u16, &[u8])> = ns
            .iter()
            .zip(&bytes)
            .map(|(n, k)| (group_of(*n, 64), &k[..]))
            .collect();
        let got = slot.get_many(t, &asked, 0).unwrap();
        for (n, v) in ns.iter().zip(&got) {
            assert_eq!(v.as_ref().map(|v| v.len()), Some(150), "key {n}");
        }
        for n in &ns {
            slot.put(
                t,
                group_of(*n, 64),
                &n.to_be_bytes(),
                &value_of(*n, done),
                0,
            );
        }
        done += BATCH;
        end_batch(&mut slot);
    }
    println!(
        "read-modify-write, uniform: {:.3} M/s",
        done as f64 / start.elapsed().as_secs_f64() / 1e6
    );
    let (last, peak) = end_batch(&mut slot);
    worker.wait_applied().unwrap();
    println!(
        "epochs {last}, rss now {} MiB, peak {peak} MiB, {:?}",
        rss_mib(),
        worker.stats()
    );
    drop(slot);
    let Some(dir) = dir else { return };
    println!("on disk: {} MiB", disk_mib(&dir));
    let start = Instant::now();
    worker.flush().unwrap();
    let flushed = start.elapsed();
    drop(worker);
    println!(
        "flushed in {:.2} s, closed in {:.2} s",
        flushed.as_secs_f64(),
        (start.elapsed() - flushed).as_secs_f64()
    );
    let start = Instant::now();
    let worker = StateWorker::open(options(Some(dir), budget)).unwrap();
    let stands = worker
        .instances()
        .open_groups(&groups, &|_, _| true)
        .unwrap();
    println!(
        "opened {} instances in {:.2} s",
        stands.iter().filter(|(_, at)| at.is_some()).count(),
        start.elapsed().as_secs_f64()
    );
}
