//! The loop: watches wake jobs, each job is observed, decided on and written, one at a time; failures back off by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use futures::future::try_join_all;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Predicate, PredicateConfig, WatchStreamExt, predicates, watcher};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use penstock_crds::job::StreamingJob;
use penstock_crds::savepoint::Savepoint;
use serde_json::json;
use tokio::sync::{OnceCell, Semaphore};
use tracing::Instrument;

use crate::apply::Writer;
use crate::certificates::Authority;
use crate::clock::{in_time, turn};
use crate::coordinator;
use crate::decide::{Decision, POLL, decide, not_taken, predecessor};
use crate::facts::{Facts, is_ready, job_of};
use crate::guarded::Guarded;
use crate::lint::{Linter, Verdicts};
use crate::metrics::Metrics;
use crate::names::{FINALIZER, MANAGER};
use crate::observe::{Caches, Observer, trim, trim_pod};
use crate::poll::Poll;
use crate::settings::Settings;
use crate::unreadable;
use crate::version::name_of;

mod failures;
mod savepoints;

use failures::Failures;

/// What a job's watches tell within so long is one change.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Objects of one page of a first list: what is not kept of them is thrown away page by page.
const PAGE: u32 = 100;
/// A job that nothing happens to is looked at as a whole after one to two of these, in case a watch was silent.
const RESYNC: Duration = Duration::from_secs(600);
/// Jobs whose objects are read at the same time, six reads each.
const READS: usize = 4;
/// When what was read is older than what is there.
const BEHIND: Duration = Duration::from_millis(250);
/// How often it is seen to that the API server believes the webhook.
const TRUST: Duration = Duration::from_secs(60);

struct Shared {
    observer: Arc<Observer>,
    writer: Arc<Writer>,
    poll: Arc<Poll>,
    settings: Settings,
    metrics: Arc<Metrics>,
    verdicts: Arc<Verdicts>,
    /// Whoever is to be looked at.
    wake: UnboundedSender<ObjectRef<Guarded>>,
    /// Of jobs, and of savepoints.
    failures: Failures,
    savepoint_failures: Failures,
    /// Looks in a row at a job on its way that found nothing to do, by uid.
    waits: Mutex<BTreeMap<String, u32>>,
}

impl Shared {
    /// What is wrong with a job's SQL; where it is not known yet, the job is looked at again when it is.
    async fn sql_faults(&self, facts: &Facts) -> Option<Vec<String>> {
        let job = &facts.job;
        let of = ObjectRef::new(&job.name_any()).within(&job.namespace().unwrap_or_default());
        let wake = self.wake.clone();
        // The receiver is gone when the process ends.
        let wake = move || drop(wake.unbounded_send(of));
        self.verdicts.of(predecessor(facts), job, wake).await
    }

    /// Drops what is kept of jobs other than these, and of savepoints that are gone.
    fn forget(&self, jobs: &BTreeSet<&str>) {
        let mut waits = self.waits.lock();
        waits.retain(|uid, _| jobs.contains(uid.as_str()));
        self.failures.forget(jobs);
        self.verdicts.forget(jobs);
        let savepoints = self.observer.caches.savepoints.state();
        let uids = savepoints.iter().filter_map(|s| s.metadata.uid.as_deref());
        self.savepoint_failures.forget(&uids.collect());
    }

    /// When a job that is on its way is looked at again: later each time that there was nothing to do, so that a thousand jobs which
    /// wait for their pods leave time for the others. A watch wakes it at once.
    fn pause(&self, job: &StreamingJob, wrote: bool, again: Duration) -> Duration {
        let mut waits = self.waits.lock();
        let count = waits.entry(job.uid().unwrap_or_default()).or_default();
        *count = if wrote { 0 } else { (*count + 1).min(3) };
        // From two seconds to eight.
        again.max(again.saturating_mul(1 << count.saturating_sub(1)).min(POLL))
    }
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
    let believed = keep_trusted(&client, &settings.webhook_configuration, authority.pem());
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
    tokio::select! {
        done = try_join_all(each) => done.map(|_| ()),
        never = believed => match never {},
    }
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
    let (jobs, jobs_writer) = reflector::store::<Guarded>();
    let (pods, pods_writer) = reflector::store::<Pod>();
    let (claims, claims_writer) = reflector::store::<PersistentVolumeClaim>();
    let (kept, kept_writer) = reflector::store::<Savepoint>();
    let (wake, woken) = futures::channel::mpsc::unbounded();
    let observer = Arc::new(Observer {
        client: client.clone(),
        http: coordinator::client(authority.client()?, pods.clone())?,
        caches: Caches {
            pods,
            claims,
            savepoints: kept,
        },
        filled: OnceCell::new(),
        authority: authority.identity(),
        turns: Semaphore::new(READS),
        heard: Arc::default(),
        loads: Mutex::default(),
    });
    let writer = Arc::new(Writer {
        events: Recorder::new(client.clone(), Reporter::from(MANAGER)),
        client: client.clone(),
        authority,
        metrics: Arc::clone(&metrics),
        written: Mutex::default(),
        refusals: Mutex::default(),
    });
    let poll = Poll::new(
        Arc::clone(&observer),
        Arc::clone(&writer),
        jobs.clone(),
        wake.clone(),
        Arc::clone(&metrics),
    );
    let shared = Arc::new(Shared {
        observer,
        writer,
        poll: Arc::new(poll),
        metrics,
        settings,
        verdicts: Arc::new(Verdicts::new(linter)),
        wake,
        failures: Failures::default(),
        savepoint_failures: Failures::default(),
        waits: Mutex::default(),
    });
    let all = watcher::Config::default().page_size(PAGE);
    let ours = all
        .clone()
        .labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    // The status is written here and nowhere else: it wakes nobody.
    let of_people = predicates::generation
        .combine(predicates::labels)
        .combine(predicates::annotations)
        .combine(predicates::finalizers);
    let edited = watcher(scope.api::<Guarded>(), all.clone())
        .default_backoff()
        .modify(trim)
        .reflect(jobs_writer)
        .applied_objects()
        .predicate_filter(of_people, PredicateConfig::default());
    // Of most children it is enough to hear that something happened to them.
    macro_rules! touched {
        ($kind:ty) => {
            unbroken(
                watcher(scope.api::<PartialObjectMeta<$kind>>(), ours.clone())
                    .default_backoff()
                    .touched_objects(),
            )
        };
        ($kind:ty, $kept:expr, $trim:expr) => {
            unbroken(
                watcher(scope.api::<$kind>(), ours.clone())
                    .default_backoff()
                    .modify($trim)
                    .reflect($kept)
                    .touched_objects(),
            )
        };
    }
    let made_of = watcher(scope.api::<Savepoint>(), all)
        .default_backoff()
        .reflect(kept_writer)
        .touched_objects();
    let savepoints = savepoints::look_after(&scope, Arc::clone(&shared), stop.clone());
    shared.metrics.show(jobs.clone());
    shared
        .metrics
        .show_pods(shared.observer.caches.pods.clone());
    let controller = Controller::for_stream(unbroken(edited), jobs)
        .with_config(
            ControllerConfig::default()
                .debounce(DEBOUNCE)
                .concurrency(16),
        )
        .reconcile_on(woken)
        .watches_stream(touched!(Pod, pods_writer, trim_pod), |o| owner(&o))
        .watches_stream(touched!(PersistentVolumeClaim, claims_writer, trim), |o| {
            owner(&o)
        })
        .watches_stream(touched!(StatefulSet), |o| owner(&o))
        .watches_stream(touched!(ConfigMap), |o| owner(&o))
        .watches_stream(touched!(Service), |o| owner(&o))
        .watches_stream(touched!(ServiceAccount), |o| owner(&o))
        .watches_stream(touched!(NetworkPolicy), |o| owner(&o))
        .watches_stream(touched!(PodDisruptionBudget), |o| owner(&o))
        // A job that is deleted may wait for one.
        .watches_stream(unbroken(made_of), |s| {
            let job = ObjectRef::new(&s.spec.job_ref.name);
            Some(job.within(&s.namespace()?))
        })
        .graceful_shutdown_on(stop)
        .run(reconcile, back_off, Arc::clone(&shared))
        .for_each(|done| async move {
            if let Err(error) = done {
                tracing::debug!(%error, "not reconciled");
            }
        });
    tokio::select! {
        _ = futures::future::join(controller, savepoints) => {}
        () = shared.poll.run(|jobs| shared.forget(jobs)) => {}
    }
    Ok(())
}

/// Without its errors. A watch that breaks begins again by itself after a pause of its own; the `Controller` would answer each error
/// with a longer and longer silence of all watches, which an API server's restart makes into minutes.
fn unbroken<K: Send + 'static>(
    watch: impl Stream<Item = watcher::Result<K>> + Send + 'static,
) -> impl Stream<Item = watcher::Result<K>> + Send + 'static {
    watch.filter(|item| {
        if let Err(error) = item {
            tracing::warn!(%error, "a watch has broken and begins again");
        }
        std::future::ready(item.is_ok())
    })
}

/// Sees to it that the API server believes the webhook: whoever writes its configuration anew takes that away. `name`: of the
/// configuration; empty: somebody else sees to it.
async fn keep_trusted(client: &Client, name: &str, authority: &str) -> Infallible {
    if name.is_empty() {
        return std::future::pending().await;
    }
    loop {
        if let Err(error) = in_time(TRUST, trust(client, name, authority)).await {
            // Manifests pass then, and are judged here.
            tracing::warn!(%error, "the webhook is not trusted yet");
        }
        tokio::time::sleep(TRUST).await;
    }
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

async fn reconcile(job: Arc<Guarded>, shared: Arc<Shared>) -> Result<Action, ReconcileError> {
    let done = bring_forward(&job, &shared).await;
    shared.poll.looked(&*job);
    done
}

async fn bring_forward(job: &Guarded, shared: &Shared) -> Result<Action, ReconcileError> {
    let job = match &job.0 {
        Ok(job) => job,
        Err(unread) => {
            let of = &unread.metadata;
            let [namespace, name] =
                [&of.namespace, &of.name].map(|n| n.as_deref().unwrap_or_default());
            let again = unreadable::tell(&shared.observer.client, namespace, name).await?;
            return Ok(again.map_or_else(Action::await_change, Action::requeue));
        }
    };
    shared.poll.unsettle(job);
    let held = |f: &Vec<String>| f.iter().any(|f| f == FINALIZER);
    if job.metadata.deletion_timestamp.is_some()
        && !job.metadata.finalizers.as_ref().is_some_and(held)
    {
        let uid = job.uid().unwrap_or_default();
        shared.waits.lock().remove(&uid);
        shared.failures.end(&uid);
        // Children go with their owner.
        return Ok(Action::await_change());
    }
    let began = tokio::time::Instant::now();
    let span = tracing::info_span!(
        "reconcile",
        namespace = job.namespace(),
        job = job.name_any()
    );
    let done = look_at(job, shared).instrument(span).await;
    let failed = done.as_ref().err().map(|e| &e.0);
    shared.metrics.looked(failed, began.elapsed());
    let again = done?;
    shared.failures.end(&job.uid().unwrap_or_default());
    Ok(Action::requeue(again))
}

/// Observes, decides and carries out; when to look again.
async fn look_at(job: &StreamingJob, shared: &Shared) -> Result<Duration, ReconcileError> {
    let job = shared.writer.with_own_status(job);
    let mut facts = shared.observer.facts(job).await?;
    if facts.is_behind() {
        return Ok(BEHIND);
    }
    if asks_the_planner(&facts, &shared.settings) {
        match shared.sql_faults(&facts).await {
            Some(faults) => facts.sql_faults = faults,
            None => return Ok(POLL),
        }
    }
    let decision = decide(&facts, &shared.settings);
    let before = facts
        .job
        .status
        .as_ref()
        .and_then(|s| s.autoscaling.as_ref());
    if let Some(now) = decision
        .status
        .autoscaling
        .as_ref()
        .filter(|d| Some(*d) != before)
    {
        shared.metrics.decided(now);
    }
    let done = shared.writer.carry_out(&facts, &decision).await;
    if let Err(kube::Error::Api(refusal)) = &done
        && matches!(refusal.code, 400 | 403 | 422)
    {
        let told = not_taken(&facts, &refusal.message);
        shared.writer.tell_all(&facts, &told).await?;
    }
    let wrote = done?;
    if wrote.objects || !goes_on(&facts, &decision) {
        let wrote = wrote.objects || wrote.status;
        return Ok(shared.pause(&facts.job, wrote, decision.again));
    }
    shared
        .waits
        .lock()
        .remove(&facts.job.uid().unwrap_or_default());
    shared.poll.settle(&facts);
    Ok(RESYNC + RESYNC.mul_f64(turn(facts.job.metadata.uid.as_deref())))
}

/// Whether it makes a difference what the planner says: a version is to be made, and nothing cheaper refuses it.
fn asks_the_planner(facts: &Facts, settings: &Settings) -> bool {
    if facts.versions.contains_key(&name_of(&facts.job)) {
        // It was planned then.
        return false;
    }
    let mut refused = facts.clone();
    refused.sql_faults = vec![String::new()];
    decide(&refused, settings) != decide(facts, settings)
}

/// Whether a job goes on by itself: nothing of it is on its way, so that every change comes by a watch or by what the coordinator
/// says. What waits for a time to pass says so by an earlier `again`.
fn goes_on(facts: &Facts, decision: &Decision) -> bool {
    let answers = facts.pods.is_empty() || facts.status().is_some();
    // What is refused may be refused because of an object that nobody watches.
    let accepted = !decision.apply.is_empty();
    accepted && answers && decision.again >= POLL && facts.pods.iter().all(is_ready)
}

/// Whether somebody wrote meanwhile: it is looked at as it is now.
fn is_behind(error: &ReconcileError) -> bool {
    matches!(&error.0, kube::Error::Api(e) if e.code == 409)
}

fn back_off(job: Arc<Guarded>, error: &ReconcileError, shared: Arc<Shared>) -> Action {
    if is_behind(error) {
        return Action::requeue(BEHIND);
    }
    let pause = shared.failures.pause(&job.uid().unwrap_or_default());
    tracing::warn!(job = %job.name_any(), %error, ?pause, "will try again");
    Action::requeue(pause)
}

#[cfg(test)]
mod tests;
