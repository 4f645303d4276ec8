//! `penstock supervise`: the first process of a pod. Starts the engine and starts it again when it ends, with a pause of its own:
//! the kubelet's, of up to five minutes, would decide how long a recovery takes. It ends itself only when it is told to, or when
//! starting again does not help; then it leaves the reason where Kubernetes shows it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use axum::{Router, routing::get};
use clap::Args;
use penstock_crds::units::Duration as Span;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// Address of /healthz of the pod, which answers while the engine restarts.
    #[arg(long)]
    health: SocketAddr,
    /// Where the engine answers /healthz. One that does not answer for a minute is killed.
    #[arg(long)]
    engine: SocketAddr,
    /// Pause before the first restart.
    #[arg(long, default_value = "1s")]
    first_pause: Span,
    /// Longest pause.
    #[arg(long, default_value = "5m")]
    longest_pause: Span,
    /// More restarts within an hour end the pod's container.
    #[arg(long, default_value_t = 20)]
    restarts_per_hour: u32,
    /// Where the reason is left when the container ends.
    #[arg(long, default_value = "/dev/termination-log")]
    last_words: PathBuf,
    /// What `penstock worker` is started with.
    #[arg(last = true, required = true)]
    worker: Vec<String>,
}

/// Whether to start again.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It ended as it was told to, or starting it again does not help.
    End(u8),
    Restart(Duration),
}

/// Restarts of the last hour. Pure: the caller brings the clock.
#[derive(Debug)]
struct Restarts {
    first: Duration,
    longest: Duration,
    per_hour: u32,
    recent: VecDeque<Instant>,
    pause: Duration,
}

/// An engine that ran so long was well: the next pause is short again.
const WELL: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3600);
/// Exit code of a worker whose manifest, or input, is wrong: nothing changes that but another manifest.
pub const REFUSED: u8 = 2;

impl Restarts {
    fn new(first: Duration, longest: Duration, per_hour: u32) -> Self {
        Self {
            first,
            longest,
            per_hour,
            recent: VecDeque::new(),
            pause: first,
        }
    }

    /// What follows the end of an engine that ran for so long. `code`: its exit code, `None` where a signal ended it.
    fn after(&mut self, code: Option<i32>, ran: Duration, stopping: bool, now: Instant) -> Next {
        match code {
            Some(0) => return Next::End(0),
            Some(code) if code == i32::from(REFUSED) => return Next::End(REFUSED),
            _ if stopping => return Next::End(0),
            Some(_) | None => {}
        }
        while self.recent.front().is_some_and(|at| now - *at >= HOUR) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.per_hour as usize {
            return Next::End(1);
        }
        self.recent.push_back(now);
        if ran >= WELL {
            self.pause = self.first;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest);
        Next::Restart(pause)
    }
}

pub fn supervise(args: &SuperviseArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime.and_then(|runtime| runtime.block_on(watch_over(args)));
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!(%error, "the supervisor cannot do its work");
            ExitCode::FAILURE
        }
    }
}

async fn watch_over(args: &SuperviseArgs) -> std::io::Result<u8> {
    let listener = tokio::net::TcpListener::bind(args.health).await?;
    let health = Router::new().route("/healthz", get(|| async { "ok\n" }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, health).await {
            tracing::error!(%error, "/healthz has ended");
        }
    });
    let mut term = signal(SignalKind::terminate())?;
    let mut restarts = Restarts::new(
        args.first_pause.into(),
        args.longest_pause.into(),
        args.restarts_per_hour,
    );
    let failure =
        std::env::temp_dir().join(format!("penstock-failure-{}.json", std::process::id()));
    loop {
        let _ = std::fs::remove_file(&failure);
        let began = Instant::now();
        let engine = start(args, &failure)?;
        let (status, stopping) = wait(engine, args.engine, &mut term).await?;
        let words = last_words(&failure, status);
        match restarts.after(status.code(), began.elapsed(), stopping, Instant::now()) {
            Next::End(0) => return Ok(0),
            Next::End(code) => {
                tracing::error!(%words, "the worker is given up");
                std::fs::write(&args.last_words, words.to_string())?;
                return Ok(code);
            }
            Next::Restart(pause) => {
                tracing::warn!(%words, ?pause, "the worker has ended and is started again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = term.recv() => return Ok(0),
                }
            }
        }
    }
}

fn start(args: &SuperviseArgs, failure: &Path) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["--output", "json", "worker"])
        .arg("--failure")
        .arg(failure)
        .args(&args.worker)
        .spawn()
}

/// Until the engine has ended: whether it was told to.
async fn wait(
    mut engine: Child,
    address: SocketAddr,
    term: &mut tokio::signal::unix::Signal,
) -> std::io::Result<(ExitStatus, bool)> {
    const LOOK: Duration = Duration::from_secs(10);
    const SILENT: u32 = 6;
    let pid = i32::try_from(engine.id()).ok().and_then(Pid::from_raw);
    let mut ended = tokio::task::spawn_blocking(move || engine.wait());
    let mut stopping = false;
    let mut silent = 0;
    loop {
        tokio::select! {
            status = &mut ended => return Ok((status.map_err(std::io::Error::other)??, stopping)),
            _ = term.recv() => {
                stopping = true;
                tell(pid, Signal::TERM);
            }
            () = tokio::time::sleep(LOOK) => {
                silent = if answers(address).await { 0 } else { silent + 1 };
                if silent == SILENT {
                    tracing::error!("the worker does not answer and is killed");
                    tell(pid, Signal::KILL);
                }
            }
        }
    }
}

fn tell(pid: Option<Pid>, signal: Signal) {
    // It may just have ended.
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
        tracing::debug!(%error, "the worker is gone");
    }
}

/// Whether the engine's /healthz says 200.
async fn answers(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /healthz HTTP/1.0\r\nHost: worker\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<bool, std::io::Error>(answer.split(' ').nth(1) == Some("200"))
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), ask).await;
    matches!(answer, Ok(Ok(true)))
}

/// Why the engine ended: its own words, else what the system says of it.
fn last_words(failure: &Path, status: ExitStatus) -> Value {
    let own = std::fs::read(failure).ok();
    let own = own.and_then(|text| serde_json::from_slice(&text).ok());
    own.unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt;
        match status.signal() {
            Some(9) => json!({"code": "PR0301", "message": "the worker was killed, as by its memory limit"}),
            Some(signal) => json!({"code": "PR0304", "message": format!("the worker was ended by signal {signal}")}),
            None => json!({"code": "PR0304", "message": format!("the worker ended: {status}")}),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_told_to_end_ends_and_what_was_killed_starts_again() {
        let now = Instant::now();
        let mut r = Restarts::new(SECOND, 4 * SECOND, 3);
        assert_eq!(r.after(Some(0), SECOND, true, now), Next::End(0));
        assert_eq!(r.after(Some(1), SECOND, true, now), Next::End(0));
        let refused = Some(i32::from(REFUSED));
        assert_eq!(r.after(refused, SECOND, false, now), Next::End(REFUSED));
        assert_eq!(r.after(None, SECOND, false, now), Next::Restart(SECOND));
    }

    #[test]
    fn pauses_grow_and_are_short_again_after_a_good_run() {
        let now = Instant::now();
        let mut r = Restarts::new(SECOND, 4 * SECOND, 100);
        let pauses: Vec<Next> = (0..4).map(|_| r.after(None, SECOND, false, now)).collect();
        assert_eq!(pauses, [1, 2, 4, 4].map(|s| Next::Restart(s * SECOND)));
        assert_eq!(r.after(None, WELL, false, now), Next::Restart(SECOND));
    }

    #[test]
    fn too_many_restarts_within_an_hour_give_up() {
        let now = Instant::now();
        let mut r = Restarts::new(SECOND, SECOND, 2);
        assert_eq!(r.after(Some(1), SECOND, false, now), Next::Restart(SECOND));
        assert_eq!(r.after(Some(1), SECOND, false, now), Next::Restart(SECOND));
        assert_eq!(r.after(Some(1), SECOND, false, now), Next::End(1));
        let later = now + HOUR;
        assert_eq!(
            r.after(Some(1), SECOND, false, later),
            Next::Restart(SECOND)
        );
    }
}
