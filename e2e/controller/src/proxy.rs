//! Stands between one controller and the API server: counts the writes of a step and does something bad at one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use penstock_operator::names::VERSION;

use crate::operator::Operator;

/// What is done at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The controller is killed; the API server never sees the write.
    KilledBefore,
    /// The controller is killed when the write is done, before it hears of it.
    KilledAfter,
    /// 409 of the reason Conflict; nothing is written.
    Conflict,
    /// 429 with Retry-After.
    TooManyRequests,
    /// 500; nothing is written.
    InternalError,
    /// No answer, and nothing is written.
    Silence,
    /// Written, and no answer.
    SilenceAfter,
    /// Written; all watches break and stay away for a while.
    WatchGap,
    /// Written, then killed; the next controller's lists are from before the step for a while, and its watches stand still.
    StaleLists,
    /// The same, and what it reads by name is from before the step as well.
    StaleReads,
}

impl Fault {
    pub const KILLS: [Self; 2] = [Self::KilledBefore, Self::KilledAfter];
    pub const OTHERS: [Self; 8] = [
        Self::Conflict,
        Self::TooManyRequests,
        Self::InternalError,
        Self::Silence,
        Self::SilenceAfter,
        Self::WatchGap,
        Self::StaleLists,
        Self::StaleReads,
    ];

    pub fn kills(self) -> bool {
        matches!(
            self,
            Self::KilledBefore | Self::KilledAfter | Self::StaleLists | Self::StaleReads
        )
    }
}

/// A write of a step: what, and which of several alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    pub what: String,
    pub nth: u32,
}

impl Write {
    /// Whether one life does it and another one does not, by how fast pods come and go: the same once more, because a number in it
    /// has changed, or because the cache did not show yet that it was done.
    pub fn is_by_chance(&self) -> bool {
        self.nth > 1
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.what, self.nth)
    }
}

/// How long watches stay away, and how long reads are old.
const AWAY: Duration = Duration::from_secs(3);

struct Step {
    counts: BTreeMap<String, u32>,
    writes: Vec<Write>,
    fault: Option<(Write, Fault)>,
    last: Instant,
    /// Answers to reads as they were when the step began.
    old: BTreeMap<String, (StatusCode, Bytes)>,
    old_until: Option<Instant>,
    old_by_name: bool,
}

struct Inner {
    upstream: Client,
    step: Mutex<Step>,
    /// Reads that were asked for: path and query, and how the answer is to look.
    reads: Mutex<BTreeSet<(String, String)>>,
    /// Until when watches are away.
    gap: watch::Sender<Option<Instant>>,
    operator: OnceLock<Operator>,
}

pub struct Proxy {
    inner: Arc<Inner>,
    /// Where the controller finds it.
    pub url: String,
    served: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl Proxy {
    pub async fn start(upstream: Client) -> Result<Self> {
        let inner = Arc::new(Inner {
            upstream,
            step: Mutex::new(Step {
                counts: BTreeMap::new(),
                writes: Vec::new(),
                fault: None,
                last: Instant::now(),
                old: BTreeMap::new(),
                old_until: None,
                old_by_name: false,
            }),
            reads: Mutex::default(),
            gap: watch::Sender::new(None),
            operator: OnceLock::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = Router::new()
            .fallback(handle)
            .with_state(Arc::clone(&inner));
        let served = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the proxy has ended: {error}");
            }
        });
        Ok(Self { inner, url, served })
    }

    /// The controller behind it.
    pub fn kills(&self, operator: Operator) {
        // Set once, by the life that made both.
        let _ = self.inner.operator.set(operator);
    }

    /// A step begins, with a fault at one of its writes.
    pub async fn begin(&self, fault: Option<(Write, Fault)>) -> Result<()> {
        let old = match &fault {
            Some((_, Fault::StaleLists | Fault::StaleReads)) => self.inner.read_all().await?,
            _ => BTreeMap::new(),
        };
        let mut step = self.inner.step.lock();
        step.counts.clear();
        step.writes.clear();
        step.fault = fault;
        step.last = Instant::now();
        step.old = old;
        step.old_until = None;
        Ok(())
    }

    /// The writes of the step so far.
    pub fn writes(&self) -> Vec<Write> {
        self.inner.step.lock().writes.clone()
    }

    /// Whether the fault of the step was met.
    pub fn is_met(&self) -> bool {
        self.inner.step.lock().fault.is_none()
    }

    /// Since the last write of the step, or its begin.
    pub fn quiet(&self) -> Duration {
        self.inner.step.lock().last.elapsed()
    }
}

impl Inner {
    async fn read_all(&self) -> Result<BTreeMap<String, (StatusCode, Bytes)>> {
        let reads = self.reads.lock().clone();
        let mut old = BTreeMap::new();
        for (url, accept) in reads {
            let mut request = axum::http::Request::get(&url);
            request = request.header(header::ACCEPT, &accept);
            let answer = self
                .upstream
                .send(request.body(kube::client::Body::empty())?)
                .await?;
            let status = answer.status();
            let body = answer.into_body().collect_bytes().await?;
            old.insert(read_key(&url, &accept), (status, body));
        }
        Ok(old)
    }

    async fn forward(&self, parts: &Parts, body: Bytes) -> Response {
        let mut request = axum::http::Request::builder()
            .method(parts.method.clone())
            .uri(url(parts));
        for name in [header::ACCEPT, header::CONTENT_TYPE] {
            if let Some(value) = parts.headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let sent = match request.body(kube::client::Body::from(body.to_vec())) {
            Ok(request) => self.upstream.send(request).await,
            Err(error) => return problem(StatusCode::BAD_GATEWAY, &error.to_string()),
        };
        match sent {
            Ok(answer) => {
                let (parts, body) = answer.into_parts();
                Response::from_parts(parts, Body::new(body))
            }
            Err(error) => problem(StatusCode::BAD_GATEWAY, &error.to_string()),
        }
    }

    async fn kill(&self) {
        if let Some(operator) = self.operator.get() {
            operator.kill().await;
        }
    }

    async fn read(&self, parts: &Parts) -> Response {
        let (url, accept) = (url(parts), accept(parts));
        self.reads.lock().insert((url.clone(), accept.clone()));
        let old = {
            let step = self.step.lock();
            let is_old = step.old_until.is_some_and(|t| Instant::now() < t);
            let is_list = parts.uri.query().is_some_and(|q| q.contains("limit="));
            let old = step.old.get(&read_key(&url, &accept)).cloned();
            // An object that was not there by name is a read of the store itself, which is never old.
            old.filter(|(status, _)| is_old && (is_list || step.old_by_name && status.is_success()))
        };
        match old {
            Some((status, body)) => {
                (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
            }
            None => self.forward(parts, Bytes::new()).await,
        }
    }

    async fn watch(&self, parts: &Parts) -> Response {
        let until = self.step.lock().old_until;
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
        let mut gap = self.gap.subscribe();
        if gap.borrow().is_some_and(|until| Instant::now() < until) {
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "no watches now");
        }
        let answer = self.forward(parts, Bytes::new()).await;
        let (head, body) = answer.into_parts();
        let broken = async move {
            // The sender lives as long as this handler's state.
            let _ = gap.changed().await;
        };
        let body = body.into_data_stream().take_until(Box::pin(broken));
        Response::from_parts(head, Body::from_stream(body))
    }

    async fn write(&self, parts: &Parts, body: Bytes) -> Response {
        let Some(what) = describe(&parts.method, parts.uri.path(), &body) else {
            return self.forward(parts, body).await;
        };
        let fault = {
            let mut step = self.step.lock();
            step.last = Instant::now();
            let count = step.counts.entry(what.clone()).or_default();
            *count += 1;
            let write = Write { what, nth: *count };
            step.writes.push(write.clone());
            let met = step.fault.take_if(|(at, _)| *at == write);
            met.map(|(_, fault)| fault)
        };
        match fault {
            None => self.forward(parts, body).await,
            Some(Fault::KilledBefore) => {
                self.kill().await;
                problem(StatusCode::BAD_GATEWAY, "nobody hears this")
            }
            Some(Fault::KilledAfter) => {
                let answer = self.forward(parts, body).await;
                self.kill().await;
                answer
            }
            Some(Fault::Conflict) => problem(StatusCode::CONFLICT, "somebody else wrote"),
            Some(Fault::TooManyRequests) => {
                let mut answer = problem(StatusCode::TOO_MANY_REQUESTS, "too many requests");
                answer
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                answer
            }
            Some(Fault::InternalError) => {
                problem(StatusCode::INTERNAL_SERVER_ERROR, "etcd has no leader")
            }
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::SilenceAfter) => {
                self.forward(parts, body).await;
                std::future::pending().await
            }
            Some(Fault::WatchGap) => {
                self.gap.send_replace(Some(Instant::now() + AWAY));
                self.forward(parts, body).await
            }
            Some(fault @ (Fault::StaleLists | Fault::StaleReads)) => {
                let answer = self.forward(parts, body).await;
                {
                    let mut step = self.step.lock();
                    step.old_until = Some(Instant::now() + AWAY);
                    step.old_by_name = fault == Fault::StaleReads;
                }
                self.kill().await;
                answer
            }
        }
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.method == Method::GET {
        let query = parts.uri.query().unwrap_or_default();
        return if query.contains("watch=true") || query.contains("watch=1") {
            inner.watch(&parts).await
        } else {
            inner.read(&parts).await
        };
    }
    match to_bytes(body, 8 << 20).await {
        Ok(body) => inner.write(&parts, body).await,
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn url(parts: &Parts) -> String {
    let whole = parts.uri.path_and_query();
    whole.map_or_else(|| "/".to_owned(), |p| p.as_str().to_owned())
}

fn accept(parts: &Parts) -> String {
    let value = parts.headers.get(header::ACCEPT);
    let value = value.and_then(|v| v.to_str().ok());
    value.unwrap_or("application/json").to_owned()
}

fn read_key(url: &str, accept: &str) -> String {
    format!("{accept} {url}")
}

/// A Status, as the API server answers what it refuses.
fn problem(code: StatusCode, message: &str) -> Response {
    let reason = match code {
        StatusCode::CONFLICT => "Conflict",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        _ => "InternalError",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, axum::Json(body)).into_response()
}

/// A savepoint that a job leaves is called by the first eight characters of its uid, and so is what is made for it.
fn alike(name: &str) -> String {
    let (job, rest) = name.split_once('-').unwrap_or((name, ""));
    let (of, rest) = rest.split_at_checked(8).unwrap_or((rest, ""));
    let hex = of.len() == 8 && of.chars().all(|c| c.is_ascii_hexdigit());
    match hex && (rest.is_empty() || rest.starts_with("-savepoint")) {
        true => format!("{job}-FIRST{rest}"),
        false => name.to_owned(),
    }
}

/// A write in words that are the same in every life; `None` for the renewal of the lease, which comes when it comes.
fn describe(method: &Method, path: &str, body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let (_, rest) = path.split_once("/namespaces/")?;
    let mut parts = rest.split('/').skip(1);
    let resource = parts.next()?;
    let name = parts.next().or(body["metadata"]["name"].as_str());
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "replace",
        Method::PATCH => "apply",
        Method::DELETE => "delete",
        _ => return None,
    };
    match (resource, parts.next()) {
        // Named by the hash of what it is of, identities among it.
        ("secrets", _) => {
            let version = body["metadata"]["annotations"][VERSION].as_str();
            Some(format!(
                "{verb} secrets {}",
                version.or(name).unwrap_or_default()
            ))
        }
        ("leases", _) => (verb == "create").then(|| "create lease".to_owned()),
        // Created, or one more of a series, by what this controller has told before.
        ("events", _) => Some(format!(
            "event {}",
            body["reason"].as_str().unwrap_or_default()
        )),
        (_, Some("status")) => {
            let conditions = body["status"]["conditions"].as_array();
            let ready = conditions.and_then(|c| c.iter().find(|c| c["type"] == "Ready"));
            let reason = ready.and_then(|c| c["reason"].as_str());
            let of = if resource == "savepoints" {
                " of a savepoint"
            } else {
                ""
            };
            Some(format!("status{of} {}", reason.unwrap_or_default()))
        }
        (resource, _) => Some(format!(
            "{verb} {resource} {}",
            alike(name.unwrap_or_default())
        )),
    }
}
