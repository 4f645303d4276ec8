//! What the controller counts of itself, what the status of every job says, for Prometheus, and that it lives. All of it stands
//! here and in the book's reference.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::Store;
use parking_lot::Mutex;
use penstock_crds::status::AutoscalingStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::guarded::Guarded;
use crate::names::{CERTIFICATE_UNTIL, JOB};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    pub result: &'static str,
}

/// Words of fixed lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByDecision {
    pub direction: String,
    pub reason: String,
}

/// A word of Kubernetes' list of reasons.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    pub reason: String,
}

/// A condition in a job's status. Its reason is a word of a fixed list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCondition {
    namespace: String,
    streamingjob: String,
    r#type: String,
    status: String,
    reason: String,
}

/// A certificate of the controller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Authority,
    Webhook,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShown {
    of: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct ByJob {
    namespace: String,
    streamingjob: String,
}

/// The jobs that this replica looks after, as the API server knows them. Read at each scrape, so that a job that is gone, or a
/// condition that is over, has no series.
#[derive(Clone, Default)]
struct Jobs(Arc<Mutex<Vec<Store<Guarded>>>>);

/// Their pods: each says when its certificate ends.
#[derive(Clone, Default)]
struct Pods(Arc<Mutex<Vec<Store<Pod>>>>);

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pods")
    }
}

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut first: BTreeMap<ByJob, i64> = BTreeMap::new();
        for pods in self.0.lock().iter() {
            for (job, end) in pods.state().iter().filter_map(|pod| expiry(pod)) {
                let known = first.entry(job).or_insert(end);
                *known = end.min(*known);
            }
        }
        let help = "When the certificate of a job's worker ends, the earliest of its pods";
        let name = "job_certificate_expiry_timestamp_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (job, end) in &first {
            family.encode_family(job)?.encode_gauge(end)?;
        }
        Ok(())
    }
}

/// When the certificate of a pod ends.
fn expiry(pod: &Pod) -> Option<(ByJob, i64)> {
    let until = pod.annotations().get(CERTIFICATE_UNTIL)?;
    let until = DateTime::parse_from_rfc3339(until).ok()?.timestamp();
    let job = ByJob {
        namespace: pod.namespace()?,
        streamingjob: pod.labels().get(JOB)?.clone(),
    };
    Some((job, until))
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jobs")
    }
}

impl Collector for Jobs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Conditions in the status of jobs, each 1";
        let mut family =
            encoder.encode_descriptor("job_condition", help, None, MetricType::Gauge)?;
        for jobs in self.0.lock().iter() {
            for job in &jobs.state() {
                for of in conditions(job) {
                    family.encode_family(&of)?.encode_gauge(&1i64)?;
                }
            }
        }
        Ok(())
    }
}

fn conditions(job: &Guarded) -> Vec<ByCondition> {
    let conditions = job.conditions().iter();
    conditions
        .map(|c| ByCondition {
            namespace: job.namespace().unwrap_or_default(),
            streamingjob: job.name_any(),
            r#type: c.type_.clone(),
            status: c.status.clone(),
            reason: c.reason.clone(),
        })
        .collect()
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    jobs: Jobs,
    pods: Pods,
    expiry: Family<OfShown, Gauge>,
    writes: Family<ByKind, Counter>,
    decisions: Family<ByDecision, Counter>,
    errors: Family<ByReason, Counter>,
    seconds: Family<ByResult, Histogram>,
    leading: Gauge,
    settled: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("penstock"),
            jobs: Jobs::default(),
            pods: Pods::default(),
            expiry: Family::default(),
            writes: Family::default(),
            decisions: Family::default(),
            errors: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 14))
            }),
            leading: Gauge::default(),
            settled: Gauge::default(),
        };
        let r = &mut this.registry;
        r.register(
            "autoscaler_decisions",
            "Decisions about the number of workers that differ from the one before",
            this.decisions.clone(),
        );
        r.register(
            "controller_writes",
            "Writes to the API server, by kind of object",
            this.writes.clone(),
        );
        r.register(
            "reconcile_errors",
            "What the API server answered when a job could not be brought forward",
            this.errors.clone(),
        );
        r.register(
            "reconcile_duration_seconds",
            "How long it took to look at a job and to do what was to be done",
            this.seconds.clone(),
        );
        r.register(
            "controller_leading",
            "Whether this replica acts",
            this.leading.clone(),
        );
        r.register(
            "controller_settled_jobs",
            "Jobs that go on by themselves: nothing of them is on its way",
            this.settled.clone(),
        );
        r.register(
            "certificate_expiry_timestamp_seconds",
            "When a certificate of the controller ends",
            this.expiry.clone(),
        );
        r.register_collector(Box::new(this.jobs.clone()));
        r.register_collector(Box::new(this.pods.clone()));
        this
    }
}

impl Metrics {
    pub fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&ByKind { kind }).inc();
    }

    /// The autoscaler has decided something else than before.
    pub fn decided(&self, decision: &AutoscalingStatus) {
        let of = ByDecision {
            direction: decision.decision.to_lowercase(),
            reason: decision.reason.clone(),
        };
        self.decisions.get_or_create(&of).inc();
    }

    /// A job was looked at, for so long; what kept it from being brought forward.
    pub fn looked(&self, failed: Option<&kube::Error>, took: std::time::Duration) {
        let result = if failed.is_none() { "ok" } else { "error" };
        let seconds = self.seconds.get_or_create(&ByResult { result });
        seconds.observe(took.as_secs_f64());
        if let Some(error) = failed {
            let reason = match error {
                kube::Error::Api(refusal) if !refusal.reason.is_empty() => refusal.reason.clone(),
                kube::Error::Api(refusal) => refusal.code.to_string(),
                _ => "NoAnswer".to_owned(),
            };
            self.errors.get_or_create(&ByReason { reason }).inc();
        }
    }

    pub fn leads(&self, leads: bool) {
        self.leading.set(leads.into());
    }

    /// So many jobs more go on by themselves.
    pub fn settled(&self, more: i64) {
        self.settled.inc_by(more);
    }

    /// Jobs whose conditions are to be on the page: a watch's cache.
    pub fn show(&self, jobs: Store<Guarded>) {
        self.jobs.0.lock().push(jobs);
    }

    /// Pods of workers, whose certificates are to be on the page: a watch's cache.
    pub fn show_pods(&self, pods: Store<Pod>) {
        self.pods.0.lock().push(pods);
    }

    /// A certificate is shown from now on that ends then.
    pub fn expires(&self, of: Shown, at: DateTime<Utc>) {
        let of = match of {
            Shown::Authority => "authority",
            Shown::Webhook => "webhook",
        };
        let gauge = self.expiry.get_or_create(&OfShown { of });
        gauge.set(at.timestamp());
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
    use std::collections::BTreeSet;

    use kube::runtime::{reflector, watcher};
    use serde_json::json;

    use super::*;

    fn job() -> Guarded {
        let mut job = crate::build::tests::job();
        let condition = json!({
            "type": "Stalled", "status": "True", "reason": "Failed", "message": "no rows [PR0207]",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        job.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
        Guarded(Ok(job))
    }

    #[test]
    fn what_was_counted_is_on_the_page() {
        let metrics = Metrics::default();
        metrics.wrote("StatefulSet");
        let conflict = kube::core::Status::failure("somebody wrote", "Conflict").with_code(409);
        metrics.looked(None, std::time::Duration::from_millis(3));
        metrics.looked(
            Some(&kube::Error::Api(Box::new(conflict))),
            std::time::Duration::ZERO,
        );
        metrics.leads(true);
        let page = metrics.page();
        for line in [
            "penstock_controller_writes_total{kind=\"StatefulSet\"} 1",
            "penstock_reconcile_duration_seconds_count{result=\"ok\"} 1",
            "penstock_controller_leading 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}:\n{page}");
        }
    }

    #[test]
    fn conditions_of_jobs_are_on_the_page_as_long_as_the_jobs_are_there() {
        let metrics = Metrics::default();
        let (jobs, mut watch) = reflector::store::<Guarded>();
        metrics.show(jobs);
        let line = "penstock_job_condition{namespace=\"risk\",streamingjob=\"payments\",\
                    type=\"Stalled\",status=\"True\",reason=\"Failed\"} 1";
        let shown = || metrics.page().lines().any(|l| l == line);
        assert!(!shown(), "nobody has listed the job yet");
        watch.apply_watcher_event(&watcher::Event::Apply(job()));
        assert!(shown(), "{}", metrics.page());
        let mut unread = json!(job().0.unwrap());
        unread["spec"]["keyGroups"] = json!("many");
        let unread: Guarded = serde_json::from_value(unread).unwrap();
        assert!(unread.0.is_err());
        watch.apply_watcher_event(&watcher::Event::Apply(unread));
        assert!(shown(), "one that cannot be read: {}", metrics.page());
        watch.apply_watcher_event(&watcher::Event::Delete(job()));
        assert!(!shown(), "{}", metrics.page());
    }

    fn pod(name: &str, until: &str) -> Pod {
        let labels = json!({JOB: "payments"});
        let annotations = json!({CERTIFICATE_UNTIL: until});
        let metadata = json!({"name": name, "namespace": "risk", "labels": labels, "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_job_shows_the_earliest_end_of_its_pods_certificates() {
        let metrics = Metrics::default();
        let (pods, mut watch) = reflector::store::<Pod>();
        metrics.show_pods(pods);
        for (name, until) in [("a", "2029-01-02T00:00:00Z"), ("b", "2029-01-01T00:00:00Z")] {
            watch.apply_watcher_event(&watcher::Event::Apply(pod(name, until)));
        }
        let mut strange = pod("c", "soon");
        strange.metadata.labels = None;
        watch.apply_watcher_event(&watcher::Event::Apply(strange));
        let line = "penstock_job_certificate_expiry_timestamp_seconds{namespace=\"risk\",\
                    streamingjob=\"payments\"} 1861920000";
        let page = metrics.page();
        assert!(page.lines().any(|l| l == line), "{page}");
    }

    #[test]
    fn every_documented_metric_has_a_sample_and_no_other_is_there() {
        let metrics = Metrics::default();
        metrics.wrote("Pod");
        metrics.decided(&AutoscalingStatus {
            decision: "Up".to_owned(),
            reason: "Load".to_owned(),
            at: penstock_crds::units::Timestamp::from(DateTime::UNIX_EPOCH),
        });
        metrics.looked(
            Some(&kube::Error::LinesCodecMaxLineLengthExceeded),
            std::time::Duration::ZERO,
        );
        let (jobs, mut watch) = reflector::store::<Guarded>();
        metrics.show(jobs);
        watch.apply_watcher_event(&watcher::Event::Apply(job()));
        metrics.expires(Shown::Authority, DateTime::UNIX_EPOCH);
        let (pods, mut watch) = reflector::store::<Pod>();
        metrics.show_pods(pods);
        watch.apply_watcher_event(&watcher::Event::Apply(pod("a", "2029-01-01T00:00:00Z")));
        let page = metrics.page();
        let found: BTreeSet<&str> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(['{', ' ']).next().unwrap_or_default())
            .map(|name| name.strip_prefix("penstock_").expect("the prefix"))
            .map(
                |name| match name.strip_prefix("reconcile_duration_seconds_") {
                    Some("bucket" | "sum" | "count") => "reconcile_duration_seconds",
                    _ => name,
                },
            )
            .collect();
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/src/reference/controller-metrics.md"
        );
        let text = std::fs::read_to_string(file).expect("the page of the book");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: BTreeSet<&str> = rows
            .filter_map(|row| Some(row.split_once('`')?.0))
            .collect();
        assert_eq!(found, documented);
    }
}
