//! The cluster of the scenarios as a whole: its tools, its controller, and the servers beside it.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::PATIENCE;
use crate::bed::testbed;
use crate::engine::get;

/// Asks twice a second until it is so. What cannot be asked is not so yet.
pub fn until(
    patience: Duration,
    what: &str,
    mut enough: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        let answer = enough();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > until {
            let waited = format!("waited {patience:?} in vain until {what}");
            return match answer {
                Ok(_) => Err(anyhow!(waited)),
                Err(error) => Err(error.context(waited)),
            };
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What a worker answers on loopback.
pub fn page_of_pod(namespace: &str, pod: &str, page: &str) -> Result<Vec<u8>> {
    let mut forward = Command::new("kubectl")
        .args(["port-forward", "--namespace", namespace])
        .args(["--address", "127.0.0.1"])
        .args([&format!("pod/{pod}"), ":8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run kubectl")?;
    let answer = forward
        .stdout
        .take()
        .context("no pipe")
        .and_then(|out| get(&way(out)?, page));
    forward.kill()?;
    forward.wait()?;
    answer
}

/// The address that a forwarding tells, within a moment; one that hangs tells none.
fn way(out: ChildStdout) -> Result<String> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let (mut out, mut line) = (BufReader::new(out), String::new());
        // Without a pod it ends, and so does the line.
        let _ = out.read_line(&mut line);
        let _ = tell.send(line);
        // It writes a line for each connection, and dies of a pipe that is closed.
        let _ = std::io::copy(&mut out, &mut std::io::sink());
    });
    let line = told.recv_timeout(Duration::from_secs(10));
    let line = line.context("no way into the pod in time")?;
    let from = line.strip_prefix("Forwarding from ");
    let address = from.and_then(|l| l.split(' ').next());
    Ok(address.context("no way into the pod")?.to_owned())
}

pub fn kubectl(words: &[&str]) -> Result<String> {
    told("kubectl", words)
}

/// Helm, on the release of the cluster.
pub fn helm(words: &[&str]) -> Result<String> {
    told("helm", &[&["--namespace", "penstock"], words].concat())
}

/// What a program answers.
fn told(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn docker(words: &[&str]) -> Result<()> {
    let status = Command::new("docker")
        .args(words)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "docker {}: {status}", words.join(" "));
    Ok(())
}

/// The controller's pods.
const LABEL: &str = "app.kubernetes.io/name=penstock-operator";

/// kubectl in the controller's namespace.
fn own(words: &[&str]) -> Result<String> {
    kubectl(&[&["--namespace", "penstock"], words].concat())
}

/// From now on there are so many controllers, and all of them are ready.
pub fn scale_controller(replicas: u32) -> Result<()> {
    let what = "deployment/penstock-operator";
    own(&["scale", what, &format!("--replicas={replicas}")])?;
    own(&["rollout", "status", what, "--timeout=120s"])?;
    if replicas > 0 {
        return Ok(());
    }
    until(PATIENCE, "no controller is left", || {
        let pods = own(&["get", "pods", "-l", LABEL, "-o", "name"])?;
        Ok(pods.trim().is_empty())
    })
}

/// The controller's pods that are not on their way out.
fn controllers() -> Result<Vec<Value>> {
    let text = own(&["get", "pods", "-l", LABEL, "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

/// Kills the controller's pods, of which one has started, without a goodbye.
pub fn kill_controller() -> Result<()> {
    until(PATIENCE, "a controller has started", || {
        Ok(controllers()?
            .iter()
            .any(|pod| !pod["status"]["containerStatuses"][0]["state"]["running"].is_null()))
    })?;
    let said = own(&["delete", "pod", "-l", LABEL, "--grace-period=0", "--force"])?;
    ensure!(said.contains("deleted"), "no controller was killed: {said}");
    Ok(())
}

/// Moves the controller away from a node, if it is there, so that the loss of the node is not its own.
pub fn controller_away_from(node: &str) -> Result<()> {
    let is_here = |pod: &Value| pod["spec"]["nodeName"] == node;
    if !controllers()?.iter().any(is_here) {
        return Ok(());
    }
    kubectl(&["cordon", node])?;
    let moved = kill_controller().and_then(|()| {
        until(PATIENCE, "the controller is elsewhere", || {
            let pods = controllers()?;
            let is_ready = |pod: &Value| {
                let of = pod["status"]["conditions"].as_array();
                of.is_some_and(|all| {
                    all.iter()
                        .any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
            };
            Ok(!pods.is_empty() && pods.iter().all(|pod| is_ready(pod) && !is_here(pod)))
        })
    });
    kubectl(&["uncordon", node])?;
    moved
}

/// Where the API server finds the webhook: at a port where nobody is, it is away.
pub fn webhook(port: u16) -> Result<()> {
    let path = "/webhooks/0/clientConfig/service/port";
    let patch = format!(r#"[{{"op": "replace", "path": "{path}", "value": {port}}}]"#);
    let what = ["validatingwebhookconfiguration", "penstock-operator"];
    kubectl(&["patch", what[0], what[1], "--type=json", "-p", &patch])?;
    // Until the API server has heard of it.
    std::thread::sleep(Duration::from_secs(3));
    Ok(())
}

/// Lets the lease vanish as soon as it is held, until it was held by another one twice: each time one leads who has not heard yet
/// that it does not.
pub fn change_hands() -> Result<()> {
    let mut holders: Vec<String> = Vec::new();
    until(PATIENCE, "the lease has changed hands twice", || {
        let holder = "jsonpath={.spec.holderIdentity}";
        let holder = own(&["get", "lease", "penstock-operator", "-o", holder])?;
        if !holder.is_empty() && holders.last() != Some(&holder) {
            holders.push(holder);
        }
        own(&["delete", "lease", "penstock-operator"])?;
        Ok(holders.len() > 2)
    })?;
    println!("kind: the lease was held by {}", holders.join(", then "));
    Ok(())
}

/// A server that is stopped, until this is dropped: it holds its connections and answers nobody.
pub struct Away(i32);

impl Away {
    pub fn kafka() -> Result<Self> {
        Self::of("kafka", 29792)
    }

    pub fn s3() -> Result<Self> {
        Self::of("s3", 29800)
    }

    fn of(server: &str, port: u16) -> Result<Self> {
        let file = testbed().join(format!("{server}/run-{port}/pid"));
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let this = Self(text.trim().parse()?);
        this.signal("-STOP")?;
        Ok(this)
    }

    fn signal(&self, which: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([which, &self.0.to_string()])
            .status()?;
        ensure!(status.success(), "kill {which} {}: {status}", self.0);
        Ok(())
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Err(error) = self.signal("-CONT") {
            eprintln!("kind: {error:#}");
        }
    }
}
