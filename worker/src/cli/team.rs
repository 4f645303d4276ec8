//! `penstock run --workers N`: N processes of one machine that run one job. Starts them, starts one again that was killed, hands
//! them the word to stop, and ends as the job does. The workers find each other by sockets in a folder of their own, which only
//! this user may enter.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::run::interrupts;

/// A worker that ended so soon was not killed by chance; after so many of these in a row, of one worker, the job ends.
const SOON: Duration = Duration::from_secs(1);
const RESTARTS: u32 = 5;
/// Exit code of a worker that was told to stop while the others were not.
pub const LEFT: u8 = 3;
/// Pause before a worker that was killed, or left, is started again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long workers may take to end once one of them has said that the job has.
const GRACE: Duration = Duration::from_secs(60);

/// Runs the workers to the job's end.
pub fn run(workers: u32) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.and_then(|runtime| runtime.block_on(watch_over(workers))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: the workers cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn watch_over(workers: u32) -> std::io::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("penstock-").tempdir()?;
    let (exits, mut exited) = mpsc::unbounded_channel();
    let start = |number| start(number, folder.path(), exits.clone());
    let mut pids = (0..workers)
        .map(start)
        .collect::<std::io::Result<Vec<_>>>()?;
    let (stop, mut stopping) = watch::channel(false);
    tokio::spawn(interrupts(stop, true));
    let mut began = vec![Instant::now(); pids.len()];
    let mut soon = vec![0; pids.len()];
    let mut running = workers;
    let mut code = None;
    let mut by = None;
    while running > 0 {
        let out = async {
            match by {
                Some(by) => tokio::time::sleep_until(by).await,
                None => std::future::pending().await,
            }
        };
        let asked = *stopping.borrow();
        tokio::select! {
            Some((number, status)) = exited.recv() => {
                let number: u32 = number;
                let status: ExitStatus = status;
                running -= 1;
                pids[number as usize] = None;
                let ended = status.code().and_then(|code| u8::try_from(code).ok());
                if code.is_none() && matches!(ended, None | Some(LEFT)) && !asked {
                    match status.signal() {
                        Some(signal) => eprintln!("worker {number} was ended by signal {signal}, starting it again"),
                        None => eprintln!("worker {number} was told to stop, starting it again: to stop the job tell the process that started it"),
                    }
                    let ran = began[number as usize].elapsed();
                    let soon = &mut soon[number as usize];
                    *soon = if ran < SOON { *soon + 1 } else { 0 };
                    if *soon <= RESTARTS {
                        tokio::time::sleep(PAUSE).await;
                        pids[number as usize] = start(number)?;
                        began[number as usize] = Instant::now();
                        running += 1;
                        continue;
                    }
                    eprintln!("error: worker {number} is killed as soon as it is started, {soon} times in a row");
                }
                let ended = match ended {
                    Some(LEFT) => 0,
                    Some(code) => code,
                    None => 1,
                };
                // What the first says: the others are told the same, and one that fails is told of.
                if code.is_none_or(|c| c == 0) {
                    code = Some(ended);
                }
                by.get_or_insert(Instant::now() + GRACE);
                if ended != 0 {
                    tell(&pids, Signal::TERM);
                }
            }
            changed = stopping.changed(), if !asked => {
                if changed.is_ok() {
                    tell(&pids, Signal::TERM);
                }
            }
            () = out => {
                tell(&pids, Signal::KILL);
                by = Some(Instant::now() + GRACE);
            }
        }
    }
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Ends this process, one of several workers, when the one that started it is gone.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        // Nothing is ever written.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(130);
    });
}

/// Starts this program again, as one of the workers. Of a group of its own: Ctrl-C is told to it, not typed at it.
fn start(
    number: u32,
    folder: &Path,
    exits: mpsc::UnboundedSender<(u32, ExitStatus)>,
) -> std::io::Result<Option<Pid>> {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command
        .args(given)
        .arg("--worker")
        .arg(number.to_string())
        .arg("--sockets")
        .arg(folder)
        .stdin(Stdio::piped())
        .process_group(0);
    let mut child: Child = Command::from(command).spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    tokio::spawn(async move {
        // A worker ends when nobody holds the other end any more: it does not outlive who started it.
        let _held = child.stdin.take();
        if let Ok(status) = child.wait().await {
            let _ = exits.send((number, status));
        }
    });
    Ok(pid.and_then(Pid::from_raw))
}

fn tell(pids: &[Option<Pid>], signal: Signal) {
    for pid in pids.iter().flatten() {
        // It may just have ended.
        let _ = kill_process(*pid, signal);
    }
}
