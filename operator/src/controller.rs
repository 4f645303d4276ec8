//! The loop: watches wake jobs, each job is observed, decided on and written, one at a time; failures back off by themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use futures::{FutureExt, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use penstock_crds::job::StreamingJob;
use penstock_crds::savepoint::Savepoint;
use serde_json::json;

use crate::apply::Writer;
use crate::certificates::Authority;
use crate::decide::{decide, not_taken};
use crate::facts::job_of;
use crate::lint::Linter;
use crate::metrics::Metrics;
use crate::names::{FINALIZER, MANAGER};
use crate::observe::{Caches, Observer};
use crate::settings::Settings;
use crate::unreadable;

mod savepoints;

struct Shared {
    observer: Observer,
    writer: Writer,
    settings: Settings,
    metrics: Arc<Metrics>,
    /// Failures in a row, by uid.
    failures: Mutex<BTreeMap<String, u32>>,
}

/// Why a job was not brought forward; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("the API server: {0}")]
pub struct ReconcileError(#[from] kube::Error);

/// Looks after every job of the cluster, or of the namespaces of the settings, until `stop` resolves.
///
/// # Errors
/// When there is no HTTP client to be had.
pub async fn run(
    client: Client,
    settings: Settings,
    authority: Arc<Authority>,
    linter: Linter,
    metrics: &Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    if !settings.webhook_configuration.is_empty() {
        let name = &settings.webhook_configuration;
        if let Err(error) = trust(&client, name, authority.pem()).await {
            // Manifests pass then, and are judged here.
            tracing::warn!(%error, "the webhook is not trusted yet");
        }
    }
    let stop = stop.shared();
    let namespaces = match settings.namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().map(Some).collect(),
    };
    let each = namespaces.into_iter().map(|namespace| {
        let scope = Scope {
            client: client.clone(),
            namespace: namespace.cloned(),
        };
        let means = Means {
            authority: Arc::clone(&authority),
            linter: linter.clone(),
            metrics: Arc::clone(metrics),
        };
        look_after(scope, settings.clone(), means, stop.clone())
    });
    try_join_all(each).await.map(|_| ())
}

/// The whole cluster, or one namespace of it.
struct Scope {
    client: Client,
    namespace: Option<String>,
}

impl Scope {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// What every scope works with.
struct Means {
    authority: Arc<Authority>,
    linter: Linter,
    metrics: Arc<Metrics>,
}

async fn look_after(
    scope: Scope,
    settings: Settings,
    means: Means,
    stop: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let client = scope.client.clone();
    let Means {
        authority,
        linter,
        metrics,
    } = means;
    let (pods, pods_writer) = reflector::store::<Pod>();
    let (claims, claims_writer) = reflector::store::<PersistentVolumeClaim>();
    let (kept, kept_writer) = reflector::store::<Savepoint>();
    let ours =
        watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    macro_rules! touched {
        ($kind:ty $(, $kept:expr)?) => {
            watcher(scope.api::<$kind>(), ours.clone())
                .default_backoff()
                $(.reflect($kept))?
                .touched_objects()
        };
    }
    let shared = Arc::new(Shared {
        observer: Observer {
            client: client.clone(),
            caches: Caches {
                pods,
                claims,
                savepoints: kept,
            },
            http: reqwest::Client::builder()
                .use_preconfigured_tls(authority.client()?)
                .connect_timeout(Duration::from_secs(1))
                .build()?,
            heard: Arc::default(),
            linter,
        },
        writer: Writer {
            events: Recorder::new(client.clone(), Reporter::from(MANAGER)),
            client: client.clone(),
            authority,
            metrics: Arc::clone(&metrics),
            written: Mutex::default(),
        },
        metrics,
        settings,
        failures: Mutex::default(),
    });
    let savepoints = savepoints::look_after(&scope, Arc::clone(&shared), stop.clone());
    let made_of = watcher(scope.api::<Savepoint>(), watcher::Config::default())
        .default_backoff()
        .reflect(kept_writer)
        .touched_objects();
    let controller = Controller::new(scope.api::<Guarded>(), watcher::Config::default());
    shared.metrics.show(controller.store());
    let jobs = controller
        .with_config(
            ControllerConfig::default()
                .debounce(Duration::from_millis(50))
                .concurrency(16),
        )
        .watches_stream(touched!(StatefulSet), |o| owner(&o))
        .watches_stream(touched!(Pod, pods_writer), |o| owner(&o))
        .watches_stream(touched!(PersistentVolumeClaim, claims_writer), |o| {
            owner(&o)
        })
        .watches_stream(touched!(ConfigMap), |o| owner(&o))
        // A job that is deleted may wait for one.
        .watches_stream(made_of, |s| {
            let job = ObjectRef::new(&s.spec.job_ref.name);
            Some(job.within(&s.namespace()?))
        })
        .graceful_shutdown_on(stop)
        .run(reconcile, back_off, shared)
        .for_each(|done| async move {
            if let Err(error) = done {
                tracing::debug!(%error, "not reconciled");
            }
        });
    tokio::join!(jobs, savepoints);
    Ok(())
}

/// Tells the API server whom to believe when it calls the webhook.
async fn trust(client: &Client, name: &str, authority: &str) -> Result<(), kube::Error> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let body = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "streamingjobs.penstock.dev",
            "clientConfig": {"caBundle": ByteString(authority.as_bytes().to_vec())},
        }],
    });
    let live = api.get(name).await?;
    let known = live.webhooks.iter().flatten().any(|w| {
        w.client_config.ca_bundle.as_ref().map(|b| b.0.as_slice()) == Some(authority.as_bytes())
    });
    if !known {
        let params = PatchParams::apply(MANAGER).force();
        api.patch(name, &params, &Patch::Apply(&body)).await?;
    }
    Ok(())
}

/// The job that an object is a child of, by its label.
fn owner<K: ResourceExt>(object: &K) -> Option<ObjectRef<Guarded>> {
    let job = job_of(Some(object.labels()))?;
    Some(ObjectRef::new(job).within(&object.namespace()?))
}

/// One manifest that cannot be read must not end the watch of all.
type Guarded = DeserializeGuard<StreamingJob>;

async fn reconcile(job: Arc<Guarded>, shared: Arc<Shared>) -> Result<Action, ReconcileError> {
    let job = match &job.0 {
        Ok(job) => job,
        Err(unread) => {
            let of = &unread.metadata;
            let [namespace, name] =
                [&of.namespace, &of.name].map(|n| n.as_deref().unwrap_or_default());
            unreadable::tell(&shared.observer.client, namespace, name).await?;
            return Ok(Action::await_change());
        }
    };
    let held = |f: &Vec<String>| f.iter().any(|f| f == FINALIZER);
    if job.metadata.deletion_timestamp.is_some()
        && !job.metadata.finalizers.as_ref().is_some_and(held)
    {
        // Children go with their owner.
        return Ok(Action::await_change());
    }
    let began = tokio::time::Instant::now();
    let done = look_at(job, &shared).await;
    shared.metrics.looked(done.is_ok(), began.elapsed());
    let again = done?;
    shared
        .failures
        .lock()
        .remove(&job.uid().unwrap_or_default());
    Ok(Action::requeue(again))
}

/// Observes, decides and carries out; when to look again.
async fn look_at(job: &StreamingJob, shared: &Shared) -> Result<Duration, ReconcileError> {
    let facts = shared.observer.facts(job).await?;
    let decision = decide(&facts, &shared.settings);
    let done = shared.writer.carry_out(&facts, &decision).await;
    if let Err(kube::Error::Api(refusal)) = &done
        && matches!(refusal.code, 400 | 403 | 422)
    {
        let told = not_taken(&facts, &refusal.message);
        shared.writer.tell_all(&facts, &told).await?;
    }
    done?;
    Ok(decision.again)
}

/// Twice as long each time, from half a second to five minutes.
fn back_off(job: Arc<Guarded>, error: &ReconcileError, shared: Arc<Shared>) -> Action {
    let mut failures = shared.failures.lock();
    let count = failures.entry(job.uid().unwrap_or_default()).or_default();
    let pause = Duration::from_millis(500 << (*count).min(10)).min(Duration::from_secs(300));
    *count += 1;
    tracing::warn!(job = %job.name_any(), %error, ?pause, "will try again");
    Action::requeue(pause)
}
