//! The pages of a running job, and the line that shows its progress. Everybody may read `/metrics`, `/healthz` and `/readyz`; `/status`
//! and `/epochs` only who is on the same machine, which in a cluster is the pod, and the controller by its own port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRef, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use penstock_crds::job::{Phase as StatusPhase, StreamingJob, StreamingJobSpec};
use penstock_crds::rpc;
use penstock_crds::units::Timestamp;
use penstock_plan::Plan;
use tokio::sync::watch;

use crate::coordinator::Asked;
use crate::coordinator::progress::{LastEpoch, Now, Phase, Progress};
use crate::task::OperatorCounts;

use super::{graph, metrics};
use crate::clock::{Clock, SystemClock};
use crate::network::tls::TlsListener;

/// What the pages are made from.
#[derive(Clone)]
pub struct Shown {
    pub job: Arc<StreamingJob>,
    pub plan: Arc<Plan>,
    pub progress: Arc<Progress>,
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, shown: Shown) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let app = Router::new()
        .route(
            "/status",
            get(|State(s): State<Shown>| async move { Json(status_with_graph(&s)) }),
        )
        .route(
            "/epochs",
            get(|State(s): State<Shown>| async move { Json(epochs(&s)) }),
        )
        .route_layer(middleware::from_fn(local_only))
        .route(
            "/metrics",
            get(|State(s): State<Shown>| async move { metrics_page(&s) }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(|State(s): State<Shown>| async move { ready(&s) }),
        )
        .with_state(shown)
        .into_make_service_with_connect_info::<Ends>();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::warn!(%error, "the status page has ended");
        }
    });
    Ok(bound)
}

/// The ends of a connection.
#[derive(Debug, Clone, Copy)]
struct Ends {
    /// `None` where the connection is gone already.
    here: Option<IpAddr>,
    there: IpAddr,
}

impl Ends {
    /// Whether both are loopback: a person on the machine that runs the job, or `kubectl port-forward`, which enters the pod. The
    /// proxy of a mesh comes from loopback too, but asks for the pod's address.
    fn are_local(self) -> bool {
        let local = |ip: IpAddr| ip.to_canonical().is_loopback();
        local(self.there) && self.here.is_some_and(local)
    }
}

impl Connected<IncomingStream<'_, tokio::net::TcpListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, tokio::net::TcpListener>) -> Self {
        Self {
            here: stream.io().local_addr().ok().map(|a| a.ip()),
            there: stream.remote_addr().ip(),
        }
    }
}

/// Refuses who comes from elsewhere.
async fn local_only(
    ConnectInfo(ends): ConnectInfo<Ends>,
    request: Request,
    next: Next,
) -> Response {
    const ELSEWHERE: &str = "only from the machine itself; for a pod by kubectl port-forward\n";
    if ends.are_local() {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, ELSEWHERE).into_response()
    }
}

/// Serves the controller until the process ends: mutual TLS, and nobody else.
///
/// # Errors
/// When the address cannot be bound, or the certificate is not what it should be.
pub async fn serve_controller(
    address: SocketAddr,
    certificate: &std::path::Path,
    shown: Shown,
    asking: Arc<watch::Sender<Asked>>,
) -> std::io::Result<()> {
    let listener = TlsListener::bind(address, certificate, rpc::CONTROLLER).await?;
    let app = Router::new()
        .route(
            "/status",
            get(|State(s): State<Shown>| async move { Json(status(&s)) }),
        )
        .route("/savepoints/{name}", put(savepoint).delete(no_savepoint))
        .with_state(Controlled { shown, asking });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::warn!(%error, "the controller's page has ended");
        }
    });
    Ok(())
}

/// What the controller's page is made from.
#[derive(Clone)]
struct Controlled {
    shown: Shown,
    asking: Arc<watch::Sender<Asked>>,
}

impl Controlled {
    /// Of the worker that coordinates; another one would carry it out when it does, and then nobody wants it any more.
    fn ask(&self, what: impl FnOnce(&mut Asked)) -> StatusCode {
        if self.shown.progress.now().follows {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        self.asking.send_modify(what);
        StatusCode::ACCEPTED
    }
}

impl FromRef<Controlled> for Shown {
    fn from_ref(of: &Controlled) -> Self {
        of.shown.clone()
    }
}

/// Asks for a savepoint; `/status` shows it when it is there.
async fn savepoint(State(of): State<Controlled>, Path(name): Path<String>) -> StatusCode {
    of.ask(|asked| asked.pin(&name))
}

/// Gives a savepoint up; `/status` does not show it any more when it is gone.
async fn no_savepoint(State(of): State<Controlled>, Path(name): Path<String>) -> StatusCode {
    of.ask(|asked| asked.unpin(&name))
}

/// Ready is who runs, or has run to the end; who restores is alive and not ready.
fn ready(shown: &Shown) -> (StatusCode, &'static str) {
    match shown.progress.now().phase {
        Phase::Running | Phase::Completed => (StatusCode::OK, "ok\n"),
        Phase::Pending | Phase::Restoring | Phase::Failed => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the job does not run yet\n",
        ),
    }
}

fn metrics_page(shown: &Shown) -> impl IntoResponse + use<> {
    let content_type = [(
        axum::http::header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    (
        content_type,
        metrics::text(
            &shown.job,
            &shown.progress.now(),
            &shown.progress.timings,
            SystemClock.now().get(),
        ),
    )
}

/// The job's status for who is on the machine. The graph may be as large as the job, and names keys of its rows.
pub fn status_with_graph(shown: &Shown) -> rpc::JobStatus {
    let measured = shown.progress.graph();
    rpc::JobStatus {
        graph: measured.map(|now| graph::shown(&shown.plan.graph, &now)),
        ..status(shown)
    }
}

/// The job's status, as the controller reads it.
pub fn status(shown: &Shown) -> rpc::JobStatus {
    let now = shown.progress.now();
    let (namespace, job) = super::full_name(&shown.job);
    let spec = &shown.job.spec;
    let now_ms = SystemClock.now().get();
    let lags = now.lags.iter().map(|l| now.lag_seconds(l, now_ms));
    rpc::JobStatus {
        job,
        namespace,
        log_id: now.log.clone(),
        generation: now.generation,
        coordinator: now.coordinator,
        workers: u32::try_from(shown.progress.workers()).unwrap_or(u32::MAX),
        phase: phase(now.phase),
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        version: now.version.clone(),
        on_trial: now.on_trial,
        savepoints: now
            .pins
            .iter()
            .map(|(name, pin)| rpc::Savepoint {
                name: name.clone(),
                epoch: pin.epoch,
                completed: pin.epoch <= now.published,
                bytes: pin.bytes,
            })
            .collect(),
        epoch: epoch(&now.epoch),
        watermark: now
            .watermark
            .and_then(|us| Timestamp::from_epoch_millis(us.div_euclid(1000)))
            .map(|time| rpc::Watermark {
                time,
                held_back_by: now.held_back_by.clone(),
            }),
        lag: now.lag.map(|records| rpc::Lag {
            records,
            seconds: lags.fold(0.0, f64::max),
        }),
        rates: rates(&now),
        load: load(&now, spec),
        graph: None,
        state: state(&now),
        counts: rpc::Counts {
            rows_in: now.rows_in,
            rows_out: now.rows_out,
            late: now.late,
            dead_letters: now.dead_letters,
            skipped: now.bad.saturating_sub(now.dead_letters),
            restarts: now.restarts.values().sum(),
        },
        sources: spec
            .sources
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let n = now.by_source.get(i).cloned().unwrap_or_default();
                let known = now.lags.iter().filter(|l| l.source == i);
                let records = known.map(|l| l.records).reduce(|a, b| a + b);
                rpc::SourceStatus {
                    name: s.name.clone(),
                    splits: n.splits,
                    rows: n.rows,
                    lag_records: records,
                    idle: n.splits > 0 && n.idle == n.splits,
                }
            })
            .collect(),
        sinks: spec
            .sinks
            .iter()
            .enumerate()
            .map(|(i, s)| rpc::SinkStatus {
                name: s.name.clone(),
                guarantee: s.effective_delivery(),
                done_through: now.published,
                rows: now.sink_rows.get(i).copied().unwrap_or(0),
            })
            .collect(),
        held_back_by: now
            .held
            .iter()
            .next()
            .map(|(sink, text)| format!("sink {sink}: {text}")),
        last_failure: now.last_failure.as_ref().and_then(|f| {
            Some(rpc::Failure {
                at: Timestamp::from_epoch_millis(f.at_ms)?,
                code: f.code.to_owned(),
                message: f.message.clone(),
            })
        }),
    }
}

fn epoch(of: &LastEpoch) -> Option<rpc::Epoch> {
    let at = Timestamp::from_epoch_millis(of.committed_at_ms)?;
    (of.number > 0).then_some(rpc::Epoch {
        number: of.number,
        committed_at: at,
        duration_ms: of.duration_ms,
        bytes: of.bytes,
        rows_in: of.rows_in,
        rows_out: of.rows_out,
    })
}

/// The newest epochs, oldest first.
fn epochs(shown: &Shown) -> Vec<rpc::Epoch> {
    shown
        .progress
        .now()
        .epochs
        .iter()
        .filter_map(epoch)
        .collect()
}

/// What all operators hold.
fn state(now: &Now) -> rpc::StateSize {
    let of = |f: fn(&OperatorCounts) -> u64| now.operators.values().map(f).sum();
    rpc::StateSize {
        keys: of(|o| o.state_keys),
        memory_bytes: of(|o| o.memory_bytes),
        disk_bytes: of(|o| o.disk_bytes),
    }
}

fn load(now: &Now, spec: &StreamingJobSpec) -> Option<rpc::Load> {
    let load = now.load.load()?;
    let keeps = |o: &OperatorCounts| o.state_keys > 0 || o.disk_bytes > 0;
    let splits = now.by_source.iter().map(|s| s.splits).sum();
    let parts = match now.operators.values().any(keeps) {
        true => u64::from(spec.key_groups),
        false => splits,
    };
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Some(rpc::Load {
        workers: number(load.slots as u64 / u64::from(spec.workers.slots.max(1))),
        read: load.read,
        came: load.came,
        busiest: load.busiest,
        busy: load.busy,
        parts: number(parts).max(1),
    })
}

/// Rows per second between the last two commits.
pub fn rates(now: &Now) -> rpc::Rates {
    let seconds = (now.epoch.span_ms.max(1)) as f64 / 1000.0;
    rpc::Rates {
        rows_in: now.epoch.rows_in as f64 / seconds,
        rows_out: now.epoch.rows_out as f64 / seconds,
    }
}

fn phase(phase: Phase) -> StatusPhase {
    match phase {
        Phase::Pending => StatusPhase::Pending,
        Phase::Restoring => StatusPhase::Restoring,
        Phase::Running => StatusPhase::Running,
        Phase::Completed => StatusPhase::Completed,
        Phase::Failed => StatusPhase::Failed,
    }
}

/// One line for people: what it reads, what it writes, how far it is.
pub fn line(now: &Now, now_ms: i64) -> String {
    let rates = rates(now);
    let time = |us: i64| {
        let at = chrono::DateTime::from_timestamp_micros(us);
        at.map_or_else(
            || "end of input".to_owned(),
            |t| t.format("%Y-%m-%d %H:%M:%S").to_string(),
        )
    };
    let watermark = now.watermark.map_or_else(|| "none yet".to_owned(), time);
    // A restored epoch has a number before this process has committed one.
    let age = match now.epoch.committed_at_ms {
        0 => String::new(),
        at => format!(" ({:.1} s ago)", (now_ms - at).max(0) as f64 / 1000.0),
    };
    let lag = now
        .lag
        .map_or_else(|| "unknown".to_owned(), |l| l.to_string());
    format!(
        "{:.0} rows/s in, {:.0} out | lag {lag} | watermark {watermark} | epoch {}{age} | late {}, dead letters {}",
        rates.rows_in, rates.rows_out, now.epoch.number, now.late, now.dead_letters
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_that_stays_on_loopback_is_local() {
        let local = |there: &str, here: &str| {
            let ip = |text: &str| text.parse().expect("an address");
            let here = Some(ip(here));
            let there = ip(there);
            Ends { here, there }.are_local()
        };
        assert!(local("127.0.0.1", "127.0.0.1"));
        assert!(local("::1", "::1"));
        assert!(local("::ffff:127.0.0.1", "::ffff:127.0.0.1"));
        assert!(!local("10.1.2.3", "10.1.2.4"), "another pod");
        assert!(!local("10.1.2.4", "10.1.2.4"), "by the pod's own address");
        assert!(!local("127.0.0.6", "10.1.2.4"), "the proxy of a mesh");
        assert!(!local("10.1.2.3", "127.0.0.1"));
    }
}
