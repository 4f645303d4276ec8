//! Owns one run of the `penstock` program as a child process: how it is called, where it says its status is, and every way
//! in which a suite ends it. Dropping it kills it, so that a failed suite leaves nothing behind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bed::{S3_ACCESS, S3_SECRET};

/// How to call `penstock run`.
#[derive(Clone)]
pub struct Launch {
    pub program: PathBuf,
    pub manifest: PathBuf,
    /// `--state`: the volume; another folder is another node's volume.
    pub state: PathBuf,
    /// `--secrets`.
    pub secrets: Option<PathBuf>,
    pub memory: Option<String>,
    /// Standard output and standard error go here, appended.
    pub log: PathBuf,
    /// `PENSTOCK_FAULT_POINT`, `name` or `name:count`: the engine kills itself there.
    pub fault: Option<String>,
    /// A base after so few epochs, for runs that are short and shall meet bases.
    pub base_epochs: Option<u64>,
    /// `--workers`.
    pub workers: u32,
    /// Each of them in a network of its own.
    pub apart: bool,
}

/// A running, or ended, engine.
pub struct Engine {
    child: Child,
    log: PathBuf,
    log_from: u64,
    status: Option<String>,
    workers: u32,
}

/// What `/status` says, as far as suites need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The newest committed epoch.
    pub epoch: u64,
    /// The watermark as the engine writes it: an ISO timestamp, comparable as text up to its seconds.
    pub watermark: Option<String>,
    /// Records not yet read; absent until the engine knows.
    pub lag: Option<u64>,
    /// Rows read since it was started.
    pub rows: u64,
    /// Rows that left in epochs, since it was started; on trial they are not published.
    pub rows_out: u64,
    /// The version that runs is on trial.
    pub on_trial: bool,
    /// Every slot has its state and its volume and reads.
    pub running: bool,
    /// Generations that ended before the job, since it was started.
    pub restarts: u64,
    /// Code and words of what ended the last of them.
    pub failure: Option<String>,
}

/// A job whose status can be asked for, wherever it runs.
pub trait Watched {
    /// The status, or none while it cannot be asked. A job that has ended is an error.
    fn status(&mut self) -> Result<Option<Status>>;

    /// What it said last, for error messages.
    fn tail(&self) -> String;

    /// Polls the status until `enough` says so.
    fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut enough: impl FnMut(&Status) -> bool,
    ) -> Result<Status>
    where
        Self: Sized,
    {
        let until = Instant::now() + patience;
        let mut last = None;
        loop {
            if let Some(status) = self.status()? {
                if enough(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            if Instant::now() > until {
                bail!(
                    "waited {patience:?} in vain until {what}; the last status was {last:?}{}",
                    self.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Status {
    pub fn of(body: &Value) -> Self {
        Self {
            epoch: body
                .pointer("/epoch/number")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            watermark: body
                .pointer("/watermark/time")
                .and_then(Value::as_str)
                .map(|time| time.replacen('T', " ", 1).trim_end_matches('Z').to_owned()),
            lag: body.pointer("/lag/records").and_then(Value::as_u64),
            rows: body
                .pointer("/counts/rows_in")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            rows_out: body
                .pointer("/counts/rows_out")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            on_trial: body.get("on_trial").and_then(Value::as_bool) == Some(true),
            running: body.get("phase").and_then(Value::as_str) == Some("Running"),
            restarts: body
                .pointer("/counts/restarts")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            failure: body.get("last_failure").and_then(|f| {
                let text = |name: &str| f.get(name).and_then(Value::as_str);
                Some(format!("{} {}", text("code")?, text("message")?))
            }),
        }
    }
}

impl Engine {
    /// Starts the engine and does not wait for anything.
    pub fn start(launch: &Launch) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log)?;
        let log_from = log.metadata()?.len();
        let mut command = match launch.apart {
            true => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["apart", "--penstock"]).arg(&launch.program);
                command.arg(&launch.manifest);
                command
            }
            false => {
                let mut command = Command::new(&launch.program);
                command.arg("run").arg(&launch.manifest);
                command.args(["--listen", "127.0.0.1:0"]);
                command
            }
        };
        command
            .arg("--state")
            .arg(&launch.state)
            .env("AWS_ACCESS_KEY_ID", S3_ACCESS)
            .env("AWS_SECRET_ACCESS_KEY", S3_SECRET)
            .env("AWS_ALLOW_HTTP", "true")
            .env_remove("PENSTOCK_FAULT_POINT")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(secrets) = &launch.secrets {
            command.arg("--secrets").arg(secrets);
        }
        if let Some(memory) = &launch.memory {
            command.args(["--memory", memory]);
        }
        if launch.workers > 1 {
            command.args(["--workers", &launch.workers.to_string()]);
        }
        if let Some(epochs) = launch.base_epochs {
            command.env("PENSTOCK_BASE_EPOCHS", epochs.to_string());
        }
        if let Some(fault) = &launch.fault {
            command.env("PENSTOCK_FAULT_POINT", fault);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", launch.program.display()))?;
        Ok(Self {
            child,
            log: launch.log.clone(),
            log_from,
            status: None,
            workers: launch.workers,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, when it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < until,
                "the engine did not end within {patience:?}{}",
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a process id")?;
        kill_process(pid, signal).context("cannot signal the engine")
    }

    /// `kill -9`. Answers whether it was alive until then.
    pub fn kill9(&mut self) -> Result<bool> {
        let alive = self.ended()?.is_none();
        if alive {
            self.signal(Signal::KILL)?;
            self.child.wait()?;
        }
        Ok(alive)
    }

    /// Asks it to stop at a barrier, as Ctrl-C does.
    pub fn ask_to_stop(&self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Asks it to stop at a barrier and waits until it has.
    pub fn interrupt(&mut self, patience: Duration) -> Result<()> {
        self.ask_to_stop()?;
        let status = self.wait(patience)?;
        ensure!(
            status.success(),
            "the engine ended with {status} after Ctrl-C{}",
            self.tail()
        );
        Ok(())
    }

    /// SIGSTOP: it looks dead to everybody and is not.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: the zombie wakes.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Its workers that are alive, by their numbers.
    pub fn workers(&self) -> Result<BTreeMap<u32, Pid>> {
        let parent = self.child.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let mut workers = BTreeMap::new();
        for child in children.split_whitespace() {
            // It may end while it is looked at.
            let given = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let given: Vec<&[u8]> = given.split(|b| *b == 0).collect();
            // In a network of its own it is a pod, whose name ends with its number.
            let number = given
                .iter()
                .position(|a| matches!(*a, b"--worker" | b"--pod"));
            let number = number.and_then(|at| std::str::from_utf8(given.get(at + 1)?).ok());
            let number = number.and_then(|n| n.rsplit('-').next()?.parse().ok());
            if let (Some(number), Some(pid)) = (number, Pid::from_raw(child.parse()?)) {
                workers.insert(number, pid);
            }
        }
        Ok(workers)
    }

    /// The worker that said last that it coordinates.
    pub fn coordinator(&self) -> Result<Option<u32>> {
        let text = self.said()?;
        let mut said = text.lines().filter_map(|line| {
            let (number, rest) = line.strip_prefix("worker ")?.split_once(' ')?;
            rest.starts_with("coordinates")
                .then(|| number.parse().ok())?
        });
        Ok(said.next_back())
    }

    /// Where it serves `/status` and `/metrics`, once a status has been read.
    pub fn address(&self) -> Option<String> {
        self.status.clone()
    }

    /// Everything that it said since it was started.
    pub fn said(&self) -> Result<String> {
        let bytes = fs::read(&self.log)?;
        let from = usize::try_from(self.log_from)?.min(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
    }
}

impl Watched for Engine {
    fn status(&mut self) -> Result<Option<Status>> {
        if let Some(status) = self.ended()? {
            bail!("the engine ended with {status}{}", self.tail());
        }
        // Of several workers whoever coordinates says so.
        if self.status.is_none() || self.workers > 1 {
            let text = self.said()?;
            self.status = text
                .lines()
                .filter_map(|line| line.split_once("status: http://"))
                // A line is written in pieces: only a whole one counts.
                .filter_map(|(_, rest)| Some(rest.split_once("/status")?.0.to_owned()))
                .next_back();
        }
        let Some(address) = &self.status else {
            return Ok(None);
        };
        Ok(get(address, "/status")
            .ok()
            .and_then(|body| serde_json::from_slice::<Value>(&body).ok())
            .map(|v| Status::of(&v)))
    }

    fn tail(&self) -> String {
        let text = self.said().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(12);
        format!(
            "; it said (see {}):\n{}",
            self.log.display(),
            lines[from..].join("\n")
        )
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // They may be frozen: SIGKILL works on a stopped process too.
        for pid in self.workers().unwrap_or_default().into_values() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// GET of a small document from this machine, HTTP/1.1 without a library: the answer's body.
pub fn get(address: &str, path: &str) -> Result<Vec<u8>> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address.parse()?, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    // What stands between may keep the connection when the answer is whole.
    let (mut answer, mut piece) = (Vec::new(), [0; 16 << 10]);
    let mut whole = None;
    while whole.is_none_or(|whole| answer.len() < whole) {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        whole = whole.or_else(|| length(&answer));
    }
    let head = head(&answer).context("an answer without a head")?;
    ensure!(
        answer.starts_with(b"HTTP/1.") && answer.get(9..12) == Some(b"200"),
        "{path} was refused"
    );
    Ok(answer.split_off(head + 4))
}

/// Where the head of an answer ends.
fn head(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|w| w == b"\r\n\r\n")
}

/// The length of the whole answer, as soon as its head is there and says so.
fn length(answer: &[u8]) -> Option<usize> {
    let head = head(answer)?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let mut lines = text.lines().map(str::to_ascii_lowercase);
    let length = lines.find_map(|l| l.strip_prefix("content-length:").map(str::to_owned))?;
    Some(head + 4 + length.trim().parse::<usize>().ok()?)
}

/// The names of all fault points, from the engine itself.
pub fn fault_points(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).arg("fault-points").output()?;
    ensure!(
        output.status.success(),
        "`penstock fault-points` ended with {}",
        output.status
    );
    let names: Vec<String> = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    ensure!(!names.is_empty(), "`penstock fault-points` lists none");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_leniently_and_its_watermark_compares_with_the_data() {
        let body = serde_json::json!({
            "epoch": {"number": 7}, "watermark": {"time": "2001-01-03T10:44:00Z"}, "lag": {"records": 0}, "more": 1,
        });
        let status = Status::of(&body);
        assert_eq!(status.epoch, 7);
        assert_eq!(status.lag, Some(0));
        assert!(status.watermark.as_deref() > Some("2001-01-02 10:44:00"));
        assert_eq!(Status::of(&Value::Null), Status::default());
    }
}
