//! The controller as a process of its own, killed and started again as a kubelet would.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

/// What a controller is started with.
#[derive(Debug, Clone)]
pub struct How {
    pub program: PathBuf,
    pub kubeconfig: PathBuf,
    /// Where its settings and its log are kept.
    pub folder: PathBuf,
    /// Its own namespace.
    pub own: String,
    /// Its name, under which it holds the lease.
    pub name: String,
    /// The namespaces that it looks after; empty: all.
    pub namespaces: Vec<String>,
    /// The program that plans SQL.
    pub planner: PathBuf,
    /// The port of /metrics.
    pub metrics: u16,
}

impl How {
    fn settings(&self) -> Result<PathBuf> {
        let settings = json!({
            "image": "penstock:test",
            "namespaces": self.namespaces,
            "ownNamespace": self.own,
            "planner": self.planner,
        });
        let path = self.folder.join(format!("{}.yaml", self.own));
        std::fs::write(&path, settings.to_string())?;
        Ok(path)
    }

    pub fn start(&self) -> Result<Child> {
        let settings = self.settings()?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.log", self.name)))?;
        Command::new(&self.program)
            .arg("--settings")
            .arg(settings)
            .args(["--name", &self.name])
            .args(["--metrics", &format!("127.0.0.1:{}", self.metrics)])
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start", self.program.display()))
    }
}

/// A controller that comes back when it ends.
#[derive(Clone)]
pub struct Operator {
    orders: mpsc::Sender<oneshot::Sender<()>>,
    fell: Arc<AtomicU32>,
    task: tokio::task::AbortHandle,
}

impl Operator {
    pub fn start(how: How) -> Result<Self> {
        let (orders, mut ordered) = mpsc::channel::<oneshot::Sender<()>>(4);
        let fell = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&fell);
        let mut child = how.start()?;
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    done = ordered.recv() => {
                        // It may have ended by itself just now.
                        let _ = child.kill().await;
                        match done {
                            // Who asked may be gone.
                            Some(done) => { let _ = done.send(()); }
                            None => return,
                        }
                    }
                    _ = child.wait() => {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                match how.start() {
                    Ok(again) => child = again,
                    Err(error) => {
                        eprintln!("{error:#}");
                        return;
                    }
                }
            }
        });
        Ok(Self {
            orders,
            fell,
            task: task.abort_handle(),
        })
    }

    /// Times that it ended unasked.
    pub fn fell(&self) -> u32 {
        self.fell.load(Ordering::Relaxed)
    }

    /// Ends it for good.
    pub fn end(&self) {
        self.task.abort();
    }

    /// Kills it; it is dead when this returns, and comes back by itself.
    pub async fn kill(&self) {
        let (done, dead) = oneshot::channel();
        if self.orders.send(done).await.is_ok() {
            // It ends with the test.
            let _ = dead.await;
        }
    }
}
