//! Starts workers in the networks that are there for them, and keeps them: one that is killed is started again, the word to stop goes to all, and
//! whoever coordinates is named with an address where its status is. As of `penstock run --workers`.

use std::fs;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::namespaces::{self, PEERS, address};

#[derive(Args)]
pub struct Options {
    /// The program under test
    #[arg(long)]
    penstock: PathBuf,
    /// The job
    manifest: PathBuf,
    /// Volumes of the workers, and their certificates
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    workers: u32,
    /// Of each worker
    #[arg(long, default_value = "340Mi")]
    memory: String,
}

/// In each worker's network.
const STATUS: u16 = 8080;
const EXCHANGE: u16 = 8090;
/// The identity of the job's log.
const LOG: &str = "e2e00000111122223333444455556666";
/// Pause before a worker that was killed is started again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long workers may take to end when they are told to.
const GRACE: Duration = Duration::from_secs(60);

pub fn run(options: &Options) -> Result<String> {
    let certificates = options.state.join("certificates");
    certify(&certificates, options.workers)?;
    let told = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, told.clone())?;
    }
    let start = |worker| start(options, &certificates, worker);
    let mut children = (0..options.workers)
        .map(start)
        .collect::<Result<Vec<Child>>>()?;
    let doors = (0..options.workers).map(door).collect::<Result<Vec<_>>>()?;
    let mut leads = None;
    while !told.load(Ordering::Relaxed) {
        for (worker, child) in (0..).zip(&mut children) {
            if let Some(status) = child.try_wait()? {
                eprintln!("worker {worker} ended with {status}, starting it again");
                sleep(PAUSE);
                *child = start(worker)?;
            }
        }
        let now = (0..options.workers).find(|worker| coordinates(*worker));
        if now.is_some() && now != leads {
            leads = now;
            if let Some(worker) = now {
                let door = doors[worker as usize];
                eprintln!("worker {worker} coordinates, status: http://127.0.0.1:{door}/status");
            }
        }
        sleep(Duration::from_millis(200));
    }
    for child in &children {
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process id")?;
        // It may just have ended.
        let _ = kill_process(pid, Signal::TERM);
    }
    let by = Instant::now() + GRACE;
    for (worker, child) in (0..).zip(&mut children) {
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            let worker: u32 = worker;
            ensure!(Instant::now() < by, "worker {worker} does not end");
            sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "worker {worker} ended with {status}");
    }
    Ok("stopped".to_owned())
}

fn coordinates(worker: u32) -> bool {
    let status = namespaces::get(worker, STATUS, "/status").ok();
    let status = status.and_then(|body| serde_json::from_str::<Value>(&body).ok());
    status.is_some_and(|said| said["coordinator"].as_u64() == Some(u64::from(worker)))
}

/// As the controller starts a pod's. It does not outlive this process.
fn start(options: &Options, certificates: &Path, worker: u32) -> Result<Child> {
    namespaces::within(worker)
        .args(["setpriv", "--pdeathsig", "KILL"])
        .arg(&options.penstock)
        .arg("worker")
        .arg(&options.manifest)
        .args(["--log-id", LOG, "--memory", &options.memory])
        .args(["--secrets", "/nonexistent", "--state"])
        .arg(options.state.join(worker.to_string()))
        .args(["--listen", &format!("127.0.0.1:{STATUS}")])
        .args(["--exchange", &format!("0.0.0.0:{EXCHANGE}")])
        .args(["--peers", PEERS, "--pod", &format!("e2e-{worker}")])
        .args(["--workers", &options.workers.to_string()])
        .arg("--certificate")
        .arg(certificates)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", options.penstock.display()))
}

/// An authority, and a certificate of it that is made out to all workers.
fn certify(folder: &Path, workers: u32) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let hosts = (0..workers)
        .map(|worker| Ok(address(worker)?.to_string()))
        .collect::<Result<Vec<_>>>()?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(hosts)?.signed_by(&key, &issuer)?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    fs::write(folder.join("tls.crt"), certificate.pem())?;
    fs::write(folder.join("tls.key"), key.serialize_pem())?;
    Ok(())
}

/// A port of the machine behind which a worker's status is: the suite is in no worker's network.
fn door(worker: u32) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One answer is one connection; who asked tries again.
            let _ = answer(worker, stream);
        }
    });
    Ok(port)
}

fn answer(worker: u32, mut stream: TcpStream) -> Result<()> {
    let mut asked = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(&stream), &mut asked)?;
    let path = asked.split(' ').nth(1).context("no path")?;
    match namespaces::get(worker, STATUS, path) {
        Ok(body) => write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}")?,
        Err(_) => write!(stream, "HTTP/1.0 503 Service Unavailable\r\n\r\n")?,
    }
    stream.shutdown(Shutdown::Both)?;
    Ok(())
}
