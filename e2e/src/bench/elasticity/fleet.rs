//! The workers of an engine under measurement.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::PARTITIONS;
use crate::bed::{S3_ACCESS, S3_SECRET, root, testbed};
use crate::engine::get;
use crate::groups::{Bounds, Group};
use crate::kafka;

/// Where it finds what it needs.
#[derive(Clone)]
pub struct Place {
    pub brokers: String,
    pub s3: String,
    pub folder: PathBuf,
    pub interval: String,
    /// Milliseconds more for each write to the storage of checkpoints.
    pub put_delay: u64,
    /// Topics.
    pub input: String,
    pub output: String,
    /// Of rows that are joined to those of the input; `None`: there is no join.
    pub tags: Option<String>,
}

impl Place {
    /// With its topics made.
    pub fn new(
        brokers: &str,
        s3: String,
        folder: &Path,
        engine: &str,
        joins: bool,
    ) -> Result<Self> {
        let topic = |end: &str| -> Result<String> {
            let name = format!("elasticity-{engine}-{end}");
            kafka::create_topic(brokers, &name, PARTITIONS, &[])?;
            Ok(name)
        };
        Ok(Self {
            tags: joins.then(|| topic("tags")).transpose()?,
            ..Self::at(brokers, s3, folder, topic("in")?, topic("out")?)
        })
    }

    /// Of topics that are there.
    pub fn at(brokers: &str, s3: String, folder: &Path, input: String, output: String) -> Self {
        Self {
            brokers: brokers.to_owned(),
            s3,
            folder: folder.to_owned(),
            interval: "100ms".to_owned(),
            put_delay: 0,
            input,
            output,
            tags: None,
        }
    }
}

/// What each worker may have.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// Bytes for state, staging and exchange.
    pub budget: u64,
    /// Of its process; none, if there are none.
    pub bounds: Option<Bounds>,
}

pub trait Fleet {
    /// Starts so many workers.
    fn begin(&mut self, workers: u32) -> Result<()>;
    /// Starts one more.
    fn add(&mut self) -> Result<()>;
    /// Tells the newest to go for good.
    fn remove(&mut self) -> Result<()>;
    /// `kill -9`, and another process in its place at once, on the same volume.
    fn kill(&mut self, worker: u32) -> Result<()>;
    /// As `kill`, with another volume; how many bytes were on the one that is gone.
    fn lose(&mut self, worker: u32) -> Result<u64>;
    /// How many take part, if the job runs.
    fn there(&mut self) -> Result<Option<u64>>;
    /// Until so many take part; when that was.
    fn until(&mut self, workers: u32, patience: Duration) -> Result<Instant> {
        let until = Instant::now() + patience;
        loop {
            let there = self.there()?;
            if there == Some(u64::from(workers)) {
                return Ok(Instant::now());
            }
            ensure!(
                Instant::now() < until,
                "{there:?} workers take part and not {workers} after {patience:?}"
            );
            sleep(Duration::from_millis(20));
        }
    }
    /// How long after this moment the first of those that stayed began anew, as it says.
    fn noticed(&mut self, since: SystemTime) -> Result<Option<Duration>>;
    /// The worker that coordinates, if one does.
    fn coordinator(&mut self) -> Result<Option<u32>>;
    /// What it holds, for people.
    fn state(&mut self) -> Result<String>;
    /// All of them.
    fn stop(&mut self) -> Result<()>;
}

/// Workers as `penstock run --workers` starts them, each a process of this one.
pub struct Penstock {
    program: PathBuf,
    place: Place,
    manifest: PathBuf,
    sockets: TempDir,
    share: Share,
    groups: BTreeMap<u32, Group>,
    workers: BTreeMap<u32, Child>,
    /// Of workers that left.
    leaving: Vec<Child>,
}

/// As many as are said to be there, whatever comes and goes.
const KNOWN: u32 = 3;

impl Penstock {
    pub fn new(program: &Path, place: Place, share: Share) -> Result<Self> {
        let text = job(&place);
        Self::of(program, place, share, &text)
    }

    /// Of another job than that of the elasticity bench.
    pub fn of(program: &Path, place: Place, share: Share, job: &str) -> Result<Self> {
        fs::create_dir_all(&place.folder)?;
        let manifest = place.folder.join("job.yaml");
        fs::write(&manifest, job)?;
        Ok(Self {
            program: program.to_owned(),
            place,
            manifest,
            sockets: tempfile::Builder::new().prefix("penstock-").tempdir()?,
            share,
            groups: BTreeMap::new(),
            workers: BTreeMap::new(),
            leaving: Vec::new(),
        })
    }

    fn log(&self, worker: u32) -> PathBuf {
        self.place.folder.join(format!("worker-{worker}.log"))
    }

    fn pid(&self, worker: u32) -> Result<Pid> {
        let child = self.workers.get(&worker).context("no such worker")?;
        Pid::from_raw(i32::try_from(child.id())?).context("a process id")
    }

    /// What the coordinator says, and which it is, while the job runs.
    pub fn status(&self) -> Option<(u32, Value)> {
        let asked = self.workers.keys().find_map(|worker| {
            let text = fs::read_to_string(self.log(*worker)).ok()?;
            let mut said = text
                .lines()
                .filter_map(|line| line.split_once("coordinates, status: http://"));
            let address = said.next_back()?.1.trim_end_matches("/status").to_owned();
            let body = get(&address, "/status").ok()?;
            let said: Value = serde_json::from_slice(&body).ok()?;
            (said["coordinator"].as_u64() == Some(u64::from(*worker))).then_some((*worker, said))
        });
        asked.filter(|(_, said)| said["phase"] == "Running")
    }
}

impl Penstock {
    fn launch(&mut self, worker: u32) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(worker))?;
        let child = Command::new(&self.program)
            .arg("run")
            .arg(&self.manifest)
            .arg("--state")
            .arg(self.place.folder.join("volume"))
            .args(["--listen", "127.0.0.1:0"])
            // Of all of them together.
            .args([
                "--memory",
                &(self.share.budget * u64::from(KNOWN)).to_string(),
            ])
            .args(["--workers", &KNOWN.to_string()])
            .args(["--worker", &worker.to_string()])
            .arg("--sockets")
            .arg(self.sockets.path())
            .env("AWS_ACCESS_KEY_ID", S3_ACCESS)
            .env("AWS_SECRET_ACCESS_KEY", S3_SECRET)
            .env("AWS_ALLOW_HTTP", "true")
            // Who begins anew says so, with the time.
            .env("PENSTOCK_LOG", "penstock_worker=info,warn")
            .env("NO_COLOR", "1")
            .env("PENSTOCK_PUT_DELAY_MS", self.place.put_delay.to_string())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if let Some(bounds) = self.share.bounds {
            let group = match self.groups.entry(worker) {
                Entry::Occupied(group) => group.into_mut(),
                Entry::Vacant(none) => none.insert(Group::new(&worker.to_string(), bounds)?),
            };
            group.take(child.id())?;
        }
        self.workers.insert(worker, child);
        Ok(())
    }

    /// Of each worker that had bounds: how often the kernel killed it for memory, and the most bytes that it had.
    pub fn memory(&self) -> Result<Vec<(u64, u64)>> {
        self.groups.values().map(Group::memory).collect()
    }
}

impl Penstock {
    fn end(&mut self, worker: u32) -> Result<()> {
        kill_process(self.pid(worker)?, Signal::KILL)?;
        let child = self.workers.get_mut(&worker).context("no such worker")?;
        child.wait()?;
        Ok(())
    }
}

fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += match found.is_dir() {
            true => bytes_below(&entry.path())?,
            false => found.len(),
        };
    }
    Ok(bytes)
}

impl Fleet for Penstock {
    fn begin(&mut self, workers: u32) -> Result<()> {
        (0..workers).try_for_each(|worker| self.launch(worker))
    }

    fn add(&mut self) -> Result<()> {
        self.launch(u32::try_from(self.workers.len())?)
    }

    fn remove(&mut self) -> Result<()> {
        let worker = *self.workers.keys().last().context("no worker")?;
        kill_process(self.pid(worker)?, Signal::TERM)?;
        let child = self.workers.remove(&worker).context("no such worker")?;
        self.leaving.push(child);
        Ok(())
    }

    fn kill(&mut self, worker: u32) -> Result<()> {
        self.end(worker)?;
        self.launch(worker)
    }

    fn lose(&mut self, worker: u32) -> Result<u64> {
        self.end(worker)?;
        let volume = self.place.folder.join("volume");
        let state = match worker {
            0 => volume.join("state"),
            number => volume.join(format!("state.{number}")),
        };
        let bytes = bytes_below(&state)?;
        fs::remove_dir_all(&state)?;
        self.launch(worker)?;
        Ok(bytes)
    }

    fn there(&mut self) -> Result<Option<u64>> {
        for (worker, child) in &mut self.workers {
            if let Some(ended) = child.try_wait()? {
                let folder = self.place.folder.display();
                bail!("worker {worker} ended with {ended}, see {folder}");
            }
        }
        let status = self.status();
        Ok(status.and_then(|(_, said)| said["workers"].as_u64()))
    }

    fn noticed(&mut self, since: SystemTime) -> Result<Option<Duration>> {
        let mut soonest = None;
        for worker in self.workers.keys() {
            let text = fs::read_to_string(self.log(*worker))?;
            let begins = text.lines().filter(|line| line.contains(": coordinating "));
            for line in begins {
                let time = line.split_whitespace().next().unwrap_or_default();
                let time = chrono::DateTime::parse_from_rfc3339(time).context("a line's time")?;
                let after = SystemTime::from(time).duration_since(since).ok();
                soonest = soonest.into_iter().chain(after).min();
            }
        }
        Ok(soonest)
    }

    fn coordinator(&mut self) -> Result<Option<u32>> {
        let (worker, _) = self.status().context("no worker coordinates")?;
        Ok(Some(worker))
    }

    fn state(&mut self) -> Result<String> {
        let (_, said) = self.status().context("no worker coordinates")?;
        Ok(format!("state {}, epoch {}", said["state"], said["epoch"]))
    }

    fn stop(&mut self) -> Result<()> {
        for worker in self.workers.keys() {
            kill_process(self.pid(*worker)?, Signal::TERM)?;
        }
        for child in self.workers.values_mut().chain(&mut self.leaving) {
            child.wait()?;
        }
        self.workers.clear();
        Ok(())
    }
}

impl Drop for Penstock {
    fn drop(&mut self) {
        for child in self.workers.values_mut().chain(&mut self.leaving) {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A Flink of the same number of workers, driven by `e2e/bench/flink/elastic.py`.
pub struct Flink {
    script: PathBuf,
    folder: PathBuf,
    place: Place,
    /// Of Flink by ours: one that goes does not come back.
    workers: Vec<u64>,
    up: bool,
}

impl Flink {
    pub fn new(place: Place) -> Self {
        Self {
            script: root().join("e2e/bench/flink/elastic.py"),
            folder: place.folder.join("flink"),
            place,
            workers: Vec::new(),
            up: false,
        }
    }

    fn call(&self, words: &[&str]) -> Result<Value> {
        let (command, more) = words.split_first().context("no words")?;
        let output = Command::new("python3")
            .arg(&self.script)
            .arg(command)
            .arg("--dir")
            .arg(&self.folder)
            .args(more)
            .output()
            .context("cannot run python3")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command}: {}", said.trim());
        serde_json::from_slice(&output.stdout).context("elastic.py")
    }
}

impl Fleet for Flink {
    fn begin(&mut self, workers: u32) -> Result<()> {
        let testbed = testbed().display().to_string();
        let Place {
            brokers,
            input,
            output,
            ..
        } = &self.place;
        let words = [
            "up",
            "--testbed",
            &testbed,
            "--brokers",
            brokers,
            "--in",
            input,
            "--out",
            output,
        ];
        self.up = true;
        self.call(&[&words[..], &["--workers", &workers.to_string()]].concat())?;
        self.workers = (0..u64::from(workers)).collect();
        Ok(())
    }

    fn add(&mut self) -> Result<()> {
        let said = self.call(&["worker-add"])?;
        self.workers
            .push(said["index"].as_u64().context("no index")?);
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        let said = self.call(&["worker-remove"])?;
        let gone = said["index"].as_u64().context("no index")?;
        self.workers.retain(|w| *w != gone);
        Ok(())
    }

    fn kill(&mut self, worker: u32) -> Result<()> {
        let index = self
            .workers
            .get(worker as usize)
            .context("no such worker")?;
        self.call(&["worker-kill", "--index", &index.to_string()])
            .map(drop)
    }

    fn lose(&mut self, _: u32) -> Result<u64> {
        bail!("only its processes are killed")
    }

    fn there(&mut self) -> Result<Option<u64>> {
        let said = self.call(&["state"])?;
        let (wanted, running) = (said["parallelism"].as_u64(), said["running"].as_u64());
        Ok(running.filter(|_| running == wanted))
    }

    fn noticed(&mut self, _: SystemTime) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Its JobManager is no worker, and is not killed.
    fn coordinator(&mut self) -> Result<Option<u32>> {
        Ok(None)
    }

    fn state(&mut self) -> Result<String> {
        let said = self.call(&["state"])?;
        Ok(format!("checkpoint {}", said["checkpoint"]))
    }

    fn stop(&mut self) -> Result<()> {
        self.up = false;
        self.call(&["down"]).map(drop)
    }
}

impl Drop for Flink {
    fn drop(&mut self) {
        if self.up
            && let Err(error) = self.stop()
        {
            eprintln!("elasticity: {error:#}");
        }
    }
}

/// Each row changes what is known of its key.
pub fn job(place: &Place) -> String {
    let Place {
        brokers,
        s3,
        interval,
        input,
        output,
        tags,
        ..
    } = place;
    let source = |name: &str, topic: &str, columns: &[&str], more: &str| {
        let columns: String = columns
            .iter()
            .map(|c| format!("        - {{name: {c}, nullable: false}}\n"))
            .collect();
        format!(
            "    - name: {name}
      kafka: {{bootstrapServers: '{brokers}', topics: [{topic}], startFrom: {{earliest: {{}}}}}}
      format: {{json: {{timestamps: EpochMillis}}}}
      columns:
{columns}{more}"
        )
    };
    let [k, s, v] = ["k, type: BIGINT", "s, type: BIGINT", "v, type: STRING"];
    let (sources, sql) = match tags {
        None => (
            source("rows_in", input, &[k, "t, type: BIGINT", v], ""),
            "INSERT INTO out SELECT k, COUNT(*) AS n, MAX(t) AS t, MAX(v) AS v FROM rows_in GROUP BY k",
        ),
        Some(tags) => {
            let t = "t, type: TIMESTAMP(3)";
            let watermark = "      watermark: {column: t, maxOutOfOrderness: 500ms}\n";
            let rows = source("rows_in", input, &[k, s, t, v], watermark);
            (
                rows + &source("tags", tags, &[k, s, t], watermark),
                "CREATE VIEW r AS SELECT * FROM TUMBLE(TABLE rows_in, DESCRIPTOR(t), INTERVAL '1' SECOND);
    CREATE VIEW g AS SELECT * FROM TUMBLE(TABLE tags, DESCRIPTOR(t), INTERVAL '1' SECOND);
    CREATE VIEW tagged AS SELECT r.k, r.v FROM r JOIN g
      ON r.window_start = g.window_start AND r.window_end = g.window_end AND r.k = g.k AND r.s = g.s;
    INSERT INTO out SELECT k, COUNT(*) AS n, MAX(v) AS v FROM tagged GROUP BY k",
            )
        }
    };
    format!(
        "apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: elasticity}}
spec:
  sources:
{sources}  sql: |
    {sql}
  sinks:
    - name: out
      kafka: {{bootstrapServers: '{brokers}', topic: {output}}}
      format: {{json: {{}}}}
      delivery: ExactlyOnce
      outputMode: Update
      primaryKey: [k]
  checkpoint:
    interval: {interval}
    storage: {{s3: {{bucket: streams, prefix: elasticity, region: us-east-1, endpoint: '{s3}', pathStyle: true}}}}
  state: {{ttl: 24h}}
  workers: {{slots: 1}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_a_valid_manifest() {
        for tags in [None, Some("tags".to_owned())] {
            crate::manifest::assert_valid(&job(&Place {
                brokers: "127.0.0.1:9092".to_owned(),
                s3: "http://127.0.0.1:9000".to_owned(),
                folder: PathBuf::new(),
                interval: "100ms".to_owned(),
                put_delay: 0,
                input: "in".to_owned(),
                output: "out".to_owned(),
                tags,
            }));
        }
    }
}
