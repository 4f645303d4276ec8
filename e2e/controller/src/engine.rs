//! Coordinators that are simulated: they answer `/status` by mutual TLS under the names of the fake pods, with the certificates
//! that the controller made, and remember as a job's log would: which version was accepted, and every start of a worker. Their lag,
//! epochs and counts move by a clock that can be made to stand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use penstock_crds::rpc::{CONTROLLER, JobStatus};
use penstock_operator::names::{CERTIFICATE, JOB, VERSION};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a changed job runs on trial.
const TRIAL: Duration = Duration::from_millis(500);

/// Unread records of a job, and how many come to them each second that it moves.
const LAG: u64 = 1000;
const LAG_EACH: u64 = 7;

/// Namespace and name.
type Key = (String, String);

/// A worker that was started.
#[derive(Debug, Clone)]
struct Worker {
    uid: String,
    version: String,
    /// The Secret that its pod mounts.
    certificate: String,
    fails: bool,
    since: Instant,
}

/// What a job's log would know.
#[derive(Debug, Default)]
struct Log {
    accepted: Option<String>,
    generation: u64,
    /// Names of savepoints.
    savepoints: BTreeSet<String>,
    /// Starts of each worker, as `version`, or `version+rollback`.
    starts: BTreeMap<String, Vec<String>>,
}

#[derive(Default)]
struct Known {
    workers: BTreeMap<Key, Worker>,
    logs: BTreeMap<Key, Log>,
    certificates: BTreeMap<Key, Arc<ServerConfig>>,
}

/// What lag, epochs and counts are made of: seconds, which stand still with the jobs.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Instant,
    /// The time of day then.
    at: Timestamp,
    stands: Option<Instant>,
    /// How long it has stood before.
    stood: Duration,
}

impl Clock {
    /// Seconds that it shows.
    fn shown(&self) -> u64 {
        let now = self.stands.unwrap_or_else(Instant::now);
        (now.duration_since(self.began) - self.stood).as_secs()
    }

    /// The epoch that was committed last, one a second; none before the first.
    fn epoch(&self, number: u64) -> Option<Value> {
        let committed = self.at + SignedDuration::from_secs(number.cast_signed());
        (number > 0).then(|| {
            json!({
                "number": number, "committed_at": committed.to_string(),
                "duration_ms": 200, "bytes": 1000, "rows_in": 1000, "rows_out": 10,
            })
        })
    }
}

pub struct Engine {
    known: Mutex<Known>,
    clock: Mutex<Clock>,
    /// Jobs that commit an epoch each second though nothing comes.
    restless: Mutex<BTreeSet<String>>,
    /// All jobs are far behind.
    behind: AtomicBool,
}

impl Engine {
    /// Answers at this address from now on. Nothing moves yet.
    pub async fn start(admin: &Client, address: &str) -> Result<Arc<Self>> {
        let now = Instant::now();
        let this = Arc::new(Self {
            known: Mutex::default(),
            clock: Mutex::new(Clock {
                began: now,
                at: Timestamp::now(),
                stands: Some(now),
                stood: Duration::ZERO,
            }),
            restless: Mutex::default(),
            behind: AtomicBool::new(false),
        });
        let port = penstock_operator::build::CONTROL_PORT;
        let listener = TcpListener::bind((address, port))
            .await
            .with_context(|| format!("the coordinators cannot listen on {address}:{port}"))?;
        let (accepted, streams) = mpsc::channel(64);
        tokio::spawn(Arc::clone(&this).accept(listener, accepted));
        let app = Router::new()
            .route("/status", get(status))
            .route("/savepoints/{name}", put(pin).delete(unpin))
            .with_state(Arc::clone(&this));
        tokio::spawn(async move {
            let served = axum::serve(Streams(streams), app).await;
            eprintln!("the coordinators have ended: {served:?}");
        });
        tokio::spawn(Arc::clone(&this).watch_pods(admin.clone()));
        tokio::spawn(Arc::clone(&this).watch_secrets(admin.clone()));
        Ok(this)
    }

    /// Lag, epochs and counts move from now on, or stand where they are.
    pub fn moves(&self, moves: bool) {
        let mut clock = self.clock.lock();
        match (moves, clock.stands) {
            (true, Some(since)) => {
                clock.stood += since.elapsed();
                clock.stands = None;
            }
            (false, None) => clock.stands = Some(Instant::now()),
            (true, None) | (false, Some(_)) => {}
        }
    }

    /// These commit an epoch each second even while nothing moves, as a continuous job may.
    pub fn restless(&self, jobs: impl IntoIterator<Item = String>) {
        self.restless.lock().extend(jobs);
    }

    /// From now on all jobs are far behind, as when their broker was away.
    pub fn fall_behind(&self) {
        self.behind.store(true, Ordering::Relaxed);
    }

    /// For how many seconds jobs have moved that show so many unread records; none where no job ever shows so many.
    pub fn moved_at(records: u64) -> Option<u64> {
        let more = records.checked_sub(LAG)?;
        more.is_multiple_of(LAG_EACH).then_some(more / LAG_EACH)
    }

    /// For how many seconds jobs have moved.
    pub fn moved(&self) -> u64 {
        self.clock.lock().shown()
    }

    /// Starts of a job's workers so far, by pod.
    pub fn starts(&self, namespace: &str, job: &str) -> BTreeMap<String, Vec<String>> {
        let known = self.known.lock();
        let log = known.logs.get(&(namespace.to_owned(), job.to_owned()));
        log.map(|l| l.starts.clone()).unwrap_or_default()
    }

    async fn watch_pods(self: Arc<Self>, admin: Client) {
        let all: Api<Pod> = Api::all(admin);
        let mut events = watcher(all, watcher::Config::default().labels(JOB))
            .default_backoff()
            .boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => self.saw(&pod),
                Ok(watcher::Event::Delete(pod)) => {
                    let key = (pod.namespace().unwrap_or_default(), pod.name_any());
                    let mut known = self.known.lock();
                    if known.workers.get(&key).map(|w| &w.uid) == pod.metadata.uid.as_ref() {
                        known.workers.remove(&key);
                    }
                }
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                Err(error) => eprintln!("pods: {error}"),
            }
        }
    }

    /// A pod with an address has started.
    fn saw(&self, pod: &Pod) {
        let started = pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        let (Some(job), Some(uid)) = (pod.labels().get(JOB), pod.uid()) else {
            return;
        };
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let version = pod.annotations().get(VERSION).cloned().unwrap_or_default();
        let mut known = self.known.lock();
        let key = (namespace.clone(), name.clone());
        if !started || known.workers.get(&key).is_some_and(|w| w.uid == uid) {
            return;
        }
        let args = pod.spec.iter().flat_map(|s| &s.containers);
        let back = args
            .flat_map(|c| c.args.iter().flatten())
            .any(|a| a == "--rollback");
        let log = known.logs.entry((namespace, job.clone())).or_default();
        log.generation += 1;
        let start = if back {
            format!("{version}+rollback")
        } else {
            version.clone()
        };
        log.starts.entry(name).or_default().push(start);
        let worker = Worker {
            uid,
            version,
            certificate: certificate(pod).unwrap_or_default(),
            fails: pod.labels().contains_key("penstock.test/fate"),
            since: Instant::now(),
        };
        known.workers.insert(key, worker);
    }

    async fn watch_secrets(self: Arc<Self>, admin: Client) {
        let all: Api<Secret> = Api::all(admin);
        let mut secrets = watcher(all, watcher::Config::default().labels(JOB))
            .default_backoff()
            .applied_objects()
            .boxed();
        while let Some(secret) = secrets.next().await {
            let Ok(secret) = secret else { continue };
            let key = (secret.namespace().unwrap_or_default(), secret.name_any());
            match config(&secret) {
                Ok(config) => {
                    self.known.lock().certificates.insert(key, config);
                }
                Err(error) => eprintln!("secret {}/{}: {error}", key.0, key.1),
            }
        }
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        to: mpsc::Sender<TlsStream<TcpStream>>,
    ) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            // As the workers' own listener.
            let _ = stream.set_nodelay(true);
            let (this, to) = (Arc::clone(&self), to.clone());
            tokio::spawn(async move {
                // A handshake that fails is the asker's to tell.
                if let Ok(stream) = this.shake(stream).await {
                    let _ = to.send(stream).await;
                }
            });
        }
    }

    /// The certificate is the one that the pod of this name mounts; only the controller is let in.
    async fn shake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let name = start.client_hello().server_name().map(str::to_owned);
        let (namespace, pod) = pod_of(name.as_deref().context("no name")?).context("no pod")?;
        let config = {
            let known = self.known.lock();
            let worker = known.workers.get(&(namespace.clone(), pod.clone()));
            let secret = worker.context("no worker")?.certificate.clone();
            let config = known.certificates.get(&(namespace, secret));
            Arc::clone(config.context("no certificate")?)
        };
        let stream = start.into_stream(config).await?;
        let peer = stream.get_ref().1.peer_certificates();
        let leaf = peer.and_then(|p| p.first()).context("no certificate")?;
        let leaf = webpki::EndEntityCert::try_from(leaf)?;
        leaf.verify_is_valid_for_subject_name(&CONTROLLER.try_into()?)?;
        Ok(stream)
    }

    /// What the coordinator of a pod says; nothing when its worker does not run.
    fn answer(&self, namespace: &str, pod: &str) -> Option<JobStatus> {
        let job = pod.strip_suffix("-worker-0")?;
        let mut known = self.known.lock();
        let worker = known
            .workers
            .get(&(namespace.to_owned(), pod.to_owned()))
            .filter(|w| !w.fails)?
            .clone();
        let log = known
            .logs
            .get_mut(&(namespace.to_owned(), job.to_owned()))?;
        let tried = worker.since.elapsed() >= TRIAL;
        if log.accepted.is_none() || tried {
            log.accepted = Some(worker.version.clone());
        }
        let on_trial = log.accepted.as_ref() != Some(&worker.version);
        let clock = *self.clock.lock();
        let moved = clock.shown();
        let restless = self.restless.lock().contains(job);
        let committed = match restless {
            true => clock.began.elapsed().as_secs(),
            false => moved,
        };
        // Each up and down over what counts as kept up with, in a quarter of an hour.
        let seconds = match self.behind.load(Ordering::Relaxed) {
            true => 1000.0,
            false => 1.0 + ((moved + phase(job)) % 900) as f64 / 10.0,
        };
        let savepoints = log.savepoints.iter();
        let savepoints = savepoints
            .map(|name| json!({"name": name, "epoch": 7, "completed": true, "bytes": 10}))
            .collect::<Vec<_>>();
        let status = json!({
            "job": job,
            "savepoints": savepoints,
            "namespace": namespace,
            "log_id": "simulated",
            "coordinator": 0,
            "generation": log.generation,
            "phase": "Running",
            "engine": "simulated",
            "version": worker.version,
            "on_trial": on_trial,
            "epoch": clock.epoch(committed),
            "lag": {"records": LAG + moved * LAG_EACH, "seconds": seconds},
            "rates": {"in": 1000.0, "out": 10.0},
            "counts": {"rows_in": moved * 1000, "rows_out": moved * 10, "late": moved, "dead_letters": 0, "restarts": 0},
            "sources": [{"name": "payments", "splits": 4, "rows": moved * 1000, "lag_records": LAG + moved * LAG_EACH}],
            "sinks": [{"name": "large", "guarantee": "ExactlyOnce", "done_through": moved, "rows": moved * 10}],
        });
        serde_json::from_value(status).ok()
    }
}

/// Where a job is in its quarter of an hour, in seconds: they are spread over it.
fn phase(job: &str) -> u64 {
    let number = job.rsplit('-').next().and_then(|n| n.parse::<u64>().ok());
    number.unwrap_or(0) * 7 % 900
}

async fn status(State(engine): State<Arc<Engine>>, headers: HeaderMap) -> Response {
    let host = headers.get("host").and_then(|h| h.to_str().ok());
    let pod = host.and_then(|h| pod_of(h.split(':').next().unwrap_or_default()));
    match pod.and_then(|(namespace, pod)| engine.answer(&namespace, &pod)) {
        Some(status) => axum::Json(status).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Keeps a savepoint of the job in mind, or not any more.
fn keep(engine: &Engine, headers: &HeaderMap, name: String, keep: bool) -> StatusCode {
    let host = headers.get("host").and_then(|h| h.to_str().ok());
    let pod = host.and_then(|h| pod_of(h.split(':').next().unwrap_or_default()));
    let mut known = engine.known.lock();
    let log = pod.and_then(|(namespace, pod)| {
        let job = pod.strip_suffix("-worker-0")?.to_owned();
        known.logs.get_mut(&(namespace, job))
    });
    match (log, keep) {
        (None, _) => return StatusCode::SERVICE_UNAVAILABLE,
        (Some(log), true) => log.savepoints.insert(name),
        (Some(log), false) => log.savepoints.remove(&name),
    };
    StatusCode::ACCEPTED
}

async fn pin(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    keep(&engine, &headers, name, true)
}

async fn unpin(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    keep(&engine, &headers, name, false)
}

/// Namespace and pod of `pod.service.namespace.svc`.
fn pod_of(host: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = host.split('.').collect();
    let [pod, _, namespace, "svc"] = parts.as_slice() else {
        return None;
    };
    Some(((*namespace).to_owned(), (*pod).to_owned()))
}

/// The Secret that a pod has its certificate from.
fn certificate(pod: &Pod) -> Option<String> {
    let mut volumes = pod.spec.as_ref()?.volumes.iter().flatten();
    let volume = volumes.find(|v| v.name == CERTIFICATE)?;
    volume.secret.as_ref()?.secret_name.clone()
}

/// What a worker that mounts this Secret shows, and whom it believes.
fn config(secret: &Secret) -> Result<Arc<ServerConfig>> {
    let data = secret.data.as_ref().context("it is empty")?;
    let part = |name: &str| data.get(name).with_context(|| format!("it has no {name}"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&part("ca.crt")?.0)?)?;
    let chain = vec![CertificateDer::from_pem_slice(&part("tls.crt")?.0)?];
    let key = PrivateKeyDer::from_pem_slice(&part("tls.key")?.0)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Streams whose handshake is done, for axum.
struct Streams(mpsc::Receiver<TlsStream<TcpStream>>);

impl axum::serve::Listener for Streams {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.recv().await {
            Some(stream) => {
                let address = stream.get_ref().0.peer_addr();
                let address = address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
                (stream, address)
            }
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}
