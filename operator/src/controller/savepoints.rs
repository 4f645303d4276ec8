//! The loop of savepoints: each is observed, decided on and carried out, woken by itself, by its steps and by its job.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use penstock_crds::savepoint::{Savepoint, SavepointPhase};
use serde_json::json;
use tracing::Instrument;

use super::{BEHIND, ReconcileError, Scope, Shared, is_behind, unbroken};
use crate::decide::savepoint::{SavepointDecision, SavepointFacts, decide};
use crate::names::MANAGER;

/// Looks after every savepoint of the scope until `stop` resolves.
pub async fn look_after(
    scope: &Scope,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let (kept, writer) = reflector::store::<Savepoint>();
    let made = watcher(scope.api::<Savepoint>(), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects();
    let labelled = watcher::Config::default().labels(crate::names::SAVEPOINT);
    let steps = watcher(scope.api::<PartialObjectMeta<Pod>>(), labelled)
        .default_backoff()
        .touched_objects();
    Controller::for_stream(unbroken(made), kept)
        .with_config(
            ControllerConfig::default()
                .debounce(Duration::from_millis(50))
                .concurrency(16),
        )
        .watches_stream(unbroken(steps), |pod| {
            let of = pod.labels().get(crate::names::SAVEPOINT)?;
            Some(ObjectRef::new(of).within(&pod.namespace()?))
        })
        .graceful_shutdown_on(stop)
        .run(reconcile, back_off, shared)
        .for_each(|done| async move {
            if let Err(error) = done {
                tracing::debug!(%error, "savepoint not reconciled");
            }
        })
        .await;
}

async fn reconcile(
    savepoint: Arc<Savepoint>,
    shared: Arc<Shared>,
) -> Result<Action, ReconcileError> {
    let began = tokio::time::Instant::now();
    let [namespace, name] = [
        savepoint.namespace().unwrap_or_default(),
        savepoint.name_any(),
    ];
    let span = tracing::info_span!("reconcile", namespace, savepoint = name);
    let done = look_at(&savepoint, &shared).instrument(span).await;
    let failed = done.as_ref().err().map(|e| &e.0);
    shared.metrics.looked(failed, began.elapsed());
    if done.is_ok() {
        let uid = savepoint.uid().unwrap_or_default();
        shared.savepoint_failures.end(&uid);
    }
    done
}

/// Whether nothing is to be done any more until somebody deletes it. Its steps' pods are swept apart.
fn rests(savepoint: &Savepoint) -> bool {
    let phase = savepoint.status.as_ref().and_then(|s| s.phase);
    savepoint.metadata.deletion_timestamp.is_none() && phase == Some(SavepointPhase::Completed)
}

pub(super) async fn look_at(
    savepoint: &Savepoint,
    shared: &Shared,
) -> Result<Action, ReconcileError> {
    if rests(savepoint) && shared.observer.steps(savepoint).await.is_empty() {
        // There are more and more of these: they cost nothing.
        return Ok(Action::await_change());
    }
    let job = shared.observer.job_of(savepoint).await?;
    // After its job, which may have waited for it to be completed: the watch may lag behind both.
    let Some(savepoint) = shared.observer.same(savepoint).await? else {
        return Ok(Action::await_change());
    };
    let facts = shared.observer.savepoint_facts(savepoint, job).await?;
    let decision = decide(&facts, &shared.settings);
    carry_out(&facts, &decision, shared).await?;
    Ok(Action::requeue(match decision.hold {
        // Then the rest of it.
        Some(true) => BEHIND,
        _ => decision.again,
    }))
}

async fn carry_out(
    facts: &SavepointFacts,
    decision: &SavepointDecision,
    shared: &Shared,
) -> Result<(), kube::Error> {
    let savepoint = &facts.savepoint;
    let namespace = savepoint.namespace().unwrap_or_default();
    let writer = &shared.writer;
    if let Some(keep) = &decision.keep {
        writer.create::<ConfigMap>(&namespace, keep).await?;
    }
    if decision.hold == Some(true) {
        return writer.hold(savepoint, true).await;
    }
    for event in &decision.events {
        writer.tell(savepoint, event).await;
    }
    if decision.hold == Some(false) {
        return writer.hold(savepoint, false).await;
    }
    let coordinator = facts.said.as_ref().and_then(|s| s.coordinator);
    if let Some(ask) = &decision.ask
        && let Err(error) = shared
            .observer
            .demand(savepoint, ask, coordinator.unwrap_or(0))
            .await
    {
        // It is asked again.
        tracing::warn!(savepoint = %savepoint.name_any(), %error, "the job was not asked");
    }
    if let Some(step) = &decision.step
        && !writer.create::<Pod>(&namespace, step).await?
    {
        tracing::warn!(savepoint = %savepoint.name_any(), "the namespace is deleted: its epoch stays pinned");
        return writer.hold(savepoint, false).await;
    }
    if let Some(pod) = &decision.sweep {
        let pods: Api<Pod> = Api::namespaced(writer.client.clone(), &namespace);
        match pods.delete(pod, &DeleteParams::default()).await {
            Err(kube::Error::Api(e)) if e.code == 404 => {}
            done => drop(done?),
        }
    }
    if savepoint.status.as_ref() != Some(&decision.status) {
        let api: Api<Savepoint> = Api::namespaced(writer.client.clone(), &namespace);
        let body = json!({
            "apiVersion": Savepoint::api_version(&()),
            "kind": Savepoint::kind(&()),
            // Only over the status that it was made from.
            "metadata": {"uid": savepoint.uid(), "resourceVersion": savepoint.resource_version()},
            "status": decision.status,
        });
        let params = PatchParams::apply(MANAGER).force();
        shared.metrics.wrote("Savepoint");
        let name = savepoint.name_any();
        api.patch_status(&name, &params, &Patch::Apply(&body))
            .await?;
    }
    Ok(())
}

fn back_off(savepoint: Arc<Savepoint>, error: &ReconcileError, shared: Arc<Shared>) -> Action {
    if is_behind(error) {
        return Action::requeue(BEHIND);
    }
    let uid = savepoint.uid().unwrap_or_default();
    let pause = shared.savepoint_failures.pause(&uid);
    tracing::warn!(savepoint = %savepoint.name_any(), %error, ?pause, "will try again");
    Action::requeue(pause)
}
