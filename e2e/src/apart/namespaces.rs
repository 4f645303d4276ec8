//! Network namespaces, a worker in each, and a switch between them in one of its own, where no rule of the machine's firewall is. The
//! servers are on the machine's address on it.

use std::io::Read;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Of the machine: where servers listen.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
/// Namespace and bridge; the machine's own link to it.
const SWITCH: &str = "penstock-e2e-sw";
const UPLINK: &str = "penstock-e2e";
/// Workers' addresses follow from this one.
const FIRST: u8 = 100;

fn name(worker: u32) -> String {
    format!("penstock-e2e-{worker}")
}

pub fn address(worker: u32) -> Result<Ipv4Addr> {
    let last = FIRST
        .checked_add(u8::try_from(worker)?)
        .context("too many workers")?;
    Ok(Ipv4Addr::new(10, 93, 0, last))
}

/// The address of each worker, with `{}` where its number stands: 10.93.0.10{}.
pub const PEERS: &str = "10.93.0.10{}";
/// As many as `PEERS` has numbers of one digit for.
pub const MOST: u32 = 10;

/// Runs a command of the system's network tools.
fn run(program: &str, words: &[&str]) -> Result<()> {
    let made = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("no {program}: network namespaces need iproute2 and iptables, and root")
        })?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(
        made.status.success(),
        "{program} {}: {}",
        words.join(" "),
        said.trim()
    );
    Ok(())
}

/// The networks of so many workers, until they are dropped. One set at a time on a machine.
pub struct Namespaces(u32);

impl Namespaces {
    pub fn new(workers: u32) -> Result<Self> {
        ensure!(workers <= MOST, "at most {MOST} workers are apart");
        // Of a run that was killed.
        remove(MOST);
        let made = Self(workers);
        let ip = |words: &str| run("ip", &words.split(' ').collect::<Vec<_>>());
        ip(&format!("netns add {SWITCH}"))?;
        ip(&format!("-n {SWITCH} link add bridge type bridge"))?;
        ip(&format!("-n {SWITCH} link set bridge up"))?;
        ip(&format!(
            "link add {UPLINK} type veth peer name up netns {SWITCH}"
        ))?;
        ip(&format!("addr add {HOST}/24 dev {UPLINK}"))?;
        ip(&format!("link set {UPLINK} up"))?;
        ip(&format!("-n {SWITCH} link set dev up master bridge up"))?;
        for worker in 0..workers {
            let (space, at) = (name(worker), address(worker)?);
            ip(&format!("netns add {space}"))?;
            ip(&format!(
                "-n {SWITCH} link add to{worker} type veth peer name eth0 netns {space}"
            ))?;
            ip(&format!(
                "-n {SWITCH} link set dev to{worker} master bridge up"
            ))?;
            ip(&format!("-n {space} addr add {at}/24 dev eth0"))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(made)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(workers: u32) {
    for worker in 0..workers {
        // It may not be there.
        let _ = run("ip", &["netns", "del", &name(worker)]);
    }
    let _ = run("ip", &["link", "del", UPLINK]);
    let _ = run("ip", &["netns", "del", SWITCH]);
}

/// A command within a worker's network. Its process is that of the command: `ip` becomes it.
pub fn within(worker: u32) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &name(worker)]);
    command
}

/// A body by HTTP from loopback within a worker's network.
pub fn get(worker: u32, port: u16, path: &str) -> Result<String> {
    let mut asked = within(worker)
        .args(["curl", "-sf", "-m", "1"])
        .arg(format!("http://127.0.0.1:{port}{path}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut body = String::new();
    if let Some(out) = &mut asked.stdout {
        out.read_to_string(&mut body)?;
    }
    ensure!(asked.wait()?.success(), "worker {worker} does not answer");
    Ok(body)
}

/// Between whom nothing passes, in both directions and without a word: packets go nowhere, as on a network that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Pair(u32, u32),
    /// A worker and one server of `HOST`, by its port.
    Server(u32, u16),
}

impl Cut {
    pub fn make(self) -> Result<()> {
        let rule = |worker: u32, words: &[&str]| {
            let space = name(worker);
            let head = ["netns", "exec", &space, "iptables", "-w", "-A"];
            run("ip", &[&head[..], words, &["-j", "DROP"]].concat())
        };
        match self {
            Self::Pair(one, other) => {
                let other = address(other)?.to_string();
                rule(one, &["INPUT", "-s", &other])?;
                rule(one, &["OUTPUT", "-d", &other])
            }
            Self::Server(worker, port) => {
                let (host, port) = (HOST.to_string(), port.to_string());
                rule(
                    worker,
                    &["INPUT", "-s", &host, "-p", "tcp", "--sport", &port],
                )?;
                rule(
                    worker,
                    &["OUTPUT", "-d", &host, "-p", "tcp", "--dport", &port],
                )
            }
        }
    }
}

/// Ends every cut of these workers.
pub fn heal(workers: u32) -> Result<()> {
    for worker in 0..workers {
        run(
            "ip",
            &["netns", "exec", &name(worker), "iptables", "-w", "-F"],
        )?;
    }
    Ok(())
}
