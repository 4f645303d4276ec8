//! State far larger than memory: the last row of each of twenty million keys with a payload of 150 bytes, under a budget of 1 GiB.
//! Keys come in strides over their whole range, each as often as any other and none again before all others: what no cache helps.
//! Measures the process and its volume; then kills it and measures how soon it runs and commits again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::engine::{Engine, Launch, Watched, get};
use crate::suite::Work;

#[derive(Args, Clone)]
pub struct Options {
    /// The program under test
    #[arg(long, default_value = "penstock")]
    penstock: PathBuf,
    /// Keys
    #[arg(long, default_value_t = 20_000_000)]
    keys: u64,
    #[arg(long, default_value = "1Gi")]
    memory: String,
    /// The least that the volume must hold, in MiB
    #[arg(long, default_value_t = 3_072)]
    least_disk: u64,
    /// The most that the process may take, in MiB
    #[arg(long, default_value_t = 1_280)]
    most_memory: u64,
    /// Give up after so many minutes
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// Bytes of all files below a folder.
fn disk(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// A number of /proc/PID/status in MiB: VmRSS is what it takes now, VmHWM the most it ever took.
fn memory(pid: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .context("the engine has no /proc entry")?;
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .context("no such field in /proc")?;
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(1)
        .context("an empty field in /proc")?
        .parse()?;
    Ok(kilobytes / 1024)
}

pub fn run(options: &Options) -> Result<String> {
    let work = Work::new("size")?;
    let state = work.path("state");
    let manifest = work.path("job.yaml");
    fs::write(&manifest, job(options, &work.folder))?;
    let launch = Launch {
        program: options.penstock.clone(),
        manifest,
        state: state.clone(),
        secrets: None,
        memory: Some(options.memory.clone()),
        log: work.path("engine.log"),
        fault: None,
        base_epochs: None,
        workers: 1,
        apart: false,
    };
    let mut engine = Engine::start(&launch)?;
    let began = Instant::now();
    let (mut peak, mut bytes, mut epoch, mut rows) = (0, 0, 0, 0);
    let mut told = Instant::now();
    // All keys and a tenth of them a second time.
    while rows < options.keys + options.keys / 10 || bytes < options.least_disk << 20 {
        if let Some(status) = engine.status()? {
            (epoch, rows) = (status.epoch, status.rows);
        }
        peak = peak.max(memory(engine.pid(), "VmHWM")?);
        bytes = disk(&state);
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!(
                "size: {:.0} s, epoch {epoch}, {rows} rows, {} MiB on disk, peak {peak} MiB",
                began.elapsed().as_secs_f64(),
                bytes >> 20
            );
        }
        ensure!(
            began.elapsed() < Duration::from_secs(options.minutes * 60),
            "the volume holds {} MiB after {} minutes",
            bytes >> 20,
            options.minutes
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    for line in state_metrics(&mut engine) {
        println!("size: {line}");
    }

    ensure!(engine.kill9()?, "the job ended before it could be killed");
    let killed = Instant::now();
    let mut engine = Engine::start(&launch)?;
    let patience = Duration::from_secs(120);
    engine.until("it runs again", patience, |status| status.running)?;
    let running = killed.elapsed();
    let before = epoch;
    engine.until("it commits again", patience, |status| status.epoch > before)?;
    let commits = killed.elapsed();
    peak = peak.max(memory(engine.pid(), "VmHWM")?);
    let line = format!(
        "{} MiB on disk, peak memory {peak} MiB (most {}), after kill -9 runs again in {:.2} s (most 5) and commits in {:.2} s (most 5 and an epoch of 5)",
        bytes >> 20,
        options.most_memory,
        running.as_secs_f64(),
        commits.as_secs_f64()
    );
    ensure!(
        peak <= options.most_memory
            && running <= Duration::from_secs(5)
            && commits <= Duration::from_secs(10),
        "{line}"
    );
    drop(engine);
    work.done()?;
    Ok(line)
}

/// The job: rows of a key (the strides are of a prime length) with a payload that hardly compresses, the last row of each key kept.
/// Only rows of a rare payload leave, which the state must know whole to say so: what is measured is the state and not a sink.
fn job(options: &Options, folder: &Path) -> String {
    let (keys, folder) = (options.keys, folder.display());
    format!(
        "apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: size}}
spec:
  sources:
    - name: rows_in
      generator: {{rowsPerSecond: 0, seed: 1}}
      columns:
        - {{name: number, type: BIGINT, generate: {{sequence: {{start: 0}}}}}}
        - {{name: payload, type: STRING, generate: {{text: {{length: 150}}}}}}
  sql: |
    INSERT INTO out
    SELECT k, number, payload FROM (
      SELECT *, ROW_NUMBER() OVER (PARTITION BY k ORDER BY number DESC) AS rn
      FROM (SELECT number * 15485863 % {keys} AS k, number, payload FROM rows_in))
    WHERE rn = 1 AND payload LIKE 'zzzz%'
  sinks:
    - name: out
      print: {{}}
      outputMode: Update
      primaryKey: [k]
  checkpoint: {{interval: 5s, storage: {{local: {{path: '{folder}/checkpoint'}}}}}}
  state: {{ttl: 24h}}
  workers: {{slots: 2}}
"
    )
}

/// The series about state of /metrics, as they are.
fn state_metrics(engine: &mut Engine) -> Vec<String> {
    let Some(address) = engine.address() else {
        return Vec::new();
    };
    let text = get(&address, "/metrics").unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter(|l| l.starts_with("penstock_state_"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_a_valid_manifest() {
        let options = Options {
            penstock: PathBuf::new(),
            keys: 20_000_000,
            memory: "1Gi".to_owned(),
            least_disk: 0,
            most_memory: 0,
            minutes: 1,
        };
        crate::manifest::assert_valid(&job(&options, Path::new("/tmp/size")));
    }
}
