//! What the controller counts of itself, for Prometheus, and that it lives.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    pub result: &'static str,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    writes: Family<ByKind, Counter>,
    reconciles: Family<ByResult, Counter>,
    seconds: Histogram,
    leading: Gauge,
    settled: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("penstock_operator"),
            writes: Family::default(),
            reconciles: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            leading: Gauge::default(),
            settled: Gauge::default(),
        };
        let r = &mut this.registry;
        r.register(
            "writes",
            "Writes to the API server, by kind of object",
            this.writes.clone(),
        );
        r.register(
            "reconciles",
            "Times that a job was looked at: ok or error",
            this.reconciles.clone(),
        );
        r.register(
            "reconcile_seconds",
            "How long it took",
            this.seconds.clone(),
        );
        r.register("leading", "Whether this replica acts", this.leading.clone());
        r.register(
            "settled_jobs",
            "Jobs that go on by themselves: nothing of them is on its way",
            this.settled.clone(),
        );
        this
    }
}

impl Metrics {
    pub fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&ByKind { kind }).inc();
    }

    pub fn looked(&self, ok: bool, took: std::time::Duration) {
        let result = if ok { "ok" } else { "error" };
        self.reconciles.get_or_create(&ByResult { result }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub fn leads(&self, leads: bool) {
        self.leading.set(leads.into());
    }

    /// So many jobs more go on by themselves.
    pub fn settled(&self, more: i64) {
        self.settled.inc_by(more);
    }

    fn page(&self) -> String {
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Serves /metrics and /healthz until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<()> {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let app = Router::new()
        .route(
            "/metrics",
            get(|State(m): State<Arc<Metrics>>| async move { ([(CONTENT_TYPE, TYPE)], m.page()) }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(metrics);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, app).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_on_the_page() {
        let metrics = Metrics::default();
        metrics.wrote("StatefulSet");
        metrics.looked(true, std::time::Duration::from_millis(3));
        metrics.leads(true);
        let page = metrics.page();
        for line in [
            "penstock_operator_writes_total{kind=\"StatefulSet\"} 1",
            "penstock_operator_reconciles_total{result=\"ok\"} 1",
            "penstock_operator_leading 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}:\n{page}");
        }
    }
}
