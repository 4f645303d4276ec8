//! Carries a decision out: the only place that writes. Server-side apply under one name; what would change nothing is not sent.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event as Published, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use penstock_crds::job::{StreamingJob, StreamingJobStatus};
use penstock_crds::savepoint::Savepoint;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build::Child;
use crate::certificates::Authority;
use crate::decide::{Decision, Event};
use crate::facts::Facts;
use crate::kind::Kind;
use crate::metrics::Metrics;
use crate::names::{APPLIED, FINALIZER, HOLDER, MANAGER};
use crate::same::covers;
use crate::status::bounded;

/// Numbers alone are written so often.
const NUMBERS_EVERY: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

pub struct Writer {
    pub client: Client,
    pub authority: Arc<Authority>,
    pub events: Recorder,
    pub metrics: Arc<Metrics>,
    /// When the status of a job was written last, by its uid.
    pub written: Mutex<BTreeMap<String, DateTime<Utc>>>,
}

impl Writer {
    /// # Errors
    /// When the API server refuses a write; what was written stays, and the next decision goes on from there.
    pub async fn carry_out(&self, facts: &Facts, decision: &Decision) -> Result<(), kube::Error> {
        let namespace = facts.job.namespace().unwrap_or_default();
        if let Some(version) = &decision.certificate {
            self.certificate(facts, &namespace, version).await?;
        }
        if let Some(hold) = decision.hold {
            self.hold(&facts.job, hold).await?;
        }
        for child in &decision.apply {
            self.child(facts, &namespace, child).await?;
        }
        let mut made = true;
        for step in &decision.steps {
            made &= self.create::<Pod>(&namespace, step).await?;
        }
        if let Some(savepoint) = &decision.savepoint {
            made &= self.create::<Savepoint>(&namespace, savepoint).await?;
        }
        if !made {
            // Nothing can be started in a namespace that goes: its log stays in the checkpoint storage.
            tracing::warn!(job = facts.name(), "the namespace is deleted: no clean-up");
            return self.hold(&facts.job, false).await;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        for claim in &decision.abandon {
            // Gone when its pod is.
            self.metrics.wrote("PersistentVolumeClaim");
            gone(claims.delete(claim, &DeleteParams::default()).await)?;
        }
        for (claim, size) in &decision.grow {
            self.metrics.wrote("PersistentVolumeClaim");
            let patch = json!({"spec": {"resources": {"requests": {"storage": size.to_string()}}}});
            let params = PatchParams::default();
            match claims.patch(claim, &params, &Patch::Merge(&patch)).await {
                // A class that cannot is no reason to leave everything else.
                Err(kube::Error::Api(e)) if e.code == 403 || e.code == 422 => {
                    let note = format!("claim {claim} cannot grow to {size}: {}", e.message);
                    let reason = "VolumeNotGrown";
                    let event = Event {
                        warning: true,
                        reason,
                        note,
                    };
                    self.tell(&facts.job, &event).await;
                }
                grown => {
                    grown?;
                }
            }
        }
        for pod in decision.replace.iter().chain(&decision.force) {
            let params = DeleteParams {
                grace_period_seconds: pod.grace,
                preconditions: Some(Preconditions {
                    uid: Some(pod.uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            self.metrics.wrote("Pod");
            gone(pods.delete(&pod.name, &params).await)?;
        }
        for (kind, name) in &decision.remove {
            let api = self.api(&namespace, *kind);
            self.metrics.wrote(kind.api().2);
            gone(api.delete(name, &DeleteParams::default()).await)?;
        }
        self.tell_all(facts, decision).await
    }

    /// Status and events alone.
    ///
    /// # Errors
    /// When the API server refuses the status.
    pub async fn tell_all(&self, facts: &Facts, decision: &Decision) -> Result<(), kube::Error> {
        if decision.hold != Some(false) {
            self.status(facts, &decision.status).await?;
        }
        for event in &decision.events {
            self.tell(&facts.job, event).await;
        }
        Ok(())
    }

    /// Created and never read: one that is there already was made for the same version.
    async fn certificate(
        &self,
        facts: &Facts,
        namespace: &str,
        version: &str,
    ) -> Result<(), kube::Error> {
        let made = self.authority.for_workers(&facts.job, version);
        let secret = made.map_err(|e| kube::Error::Service(e.into()))?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        self.metrics.wrote("Secret");
        match secrets.create(&PostParams::default(), &secret).await {
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Ok(()),
        }
    }

    /// Holds an object when it is deleted, or lets it go. What others hold it by is theirs.
    pub async fn hold<K>(&self, object: &K, hold: bool) -> Result<(), kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let kind = K::DynamicType::default();
        let ours: &[&str] = if hold { &[FINALIZER] } else { &[] };
        let body = json!({
            "apiVersion": K::api_version(&kind),
            "kind": K::kind(&kind),
            // Of this object, and of no later one of its name.
            "metadata": {"uid": object.uid(), "finalizers": ours},
        });
        let params = PatchParams::apply(HOLDER).force();
        self.metrics.wrote("Finalizer");
        gone(
            api.patch(&object.name_any(), &params, &Patch::Apply(&body))
                .await,
        )
    }

    /// Made once: one that is there already is the same. False: the namespace is being deleted and takes nothing new.
    pub async fn create<K>(&self, namespace: &str, body: &Value) -> Result<bool, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let object: K = serde_json::from_value(body.clone()).map_err(kube::Error::SerdeError)?;
        self.metrics.wrote("Step");
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 403 && e.message.contains("being terminated") => {
                Ok(false)
            }
            Err(e) => Err(e),
            Ok(_) => Ok(true),
        }
    }

    fn api(&self, namespace: &str, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    async fn child(
        &self,
        facts: &Facts,
        namespace: &str,
        child: &Child,
    ) -> Result<(), kube::Error> {
        let live = facts.objects.get(&(child.kind, child.name.clone()));
        let body = stamped(child);
        if live.is_some_and(|live| covers(live, &body)) {
            return Ok(());
        }
        // A version is made once.
        if live.is_some() && child.kind == Kind::ConfigMap {
            return Ok(());
        }
        let params = PatchParams::apply(MANAGER).force();
        let api = self.api(namespace, child.kind);
        self.metrics.wrote(child.kind.api().2);
        api.patch(&child.name, &params, &Patch::Apply(&body))
            .await?;
        tracing::info!(job = facts.name(), kind = child.kind.api().2, name = %child.name, "applied");
        Ok(())
    }

    async fn status(&self, facts: &Facts, status: &StreamingJobStatus) -> Result<(), kube::Error> {
        let before = facts.job.status.clone().unwrap_or_default();
        let uid = facts.job.uid().unwrap_or_default();
        let recent = self
            .written
            .lock()
            .get(&uid)
            .is_some_and(|at| facts.now - *at < NUMBERS_EVERY);
        if before == *status || (recent && same_but_numbers(&before, status)) {
            return Ok(());
        }
        let api: Api<StreamingJob> = Api::namespaced(
            self.client.clone(),
            &facts.job.namespace().unwrap_or_default(),
        );
        let body = json!({
            "apiVersion": StreamingJob::api_version(&()),
            "kind": StreamingJob::kind(&()),
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        self.metrics.wrote("StreamingJob");
        api.patch_status(facts.name(), &params, &Patch::Apply(&body))
            .await?;
        self.written.lock().insert(uid, facts.now);
        Ok(())
    }

    /// An event that cannot be written is no reason to do anything again.
    pub async fn tell<K>(&self, object: &K, event: &Event)
    where
        K: Resource,
        K::DynamicType: Default,
    {
        let of: ObjectReference = object.object_ref(&K::DynamicType::default());
        let published = Published {
            type_: if event.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: event.reason.to_owned(),
            note: Some(bounded(&event.note)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        self.metrics.wrote("Event");
        if let Err(error) = self.events.publish(&published, &of).await {
            tracing::warn!(%error, "an event was not written");
        }
    }
}

/// With the hash of itself: a member that is wanted no more shows by it.
fn stamped(child: &Child) -> Value {
    let hash = xxhash_rust::xxh3::xxh3_64(child.body.to_string().as_bytes());
    let mut body = child.body.clone();
    body["metadata"]["annotations"][APPLIED] = json!(format!("{hash:016x}"));
    body
}

/// Gone already is gone, and so is one that another has taken the name of.
fn gone<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Ok(()),
    }
}

/// Whether two statuses differ in measurements only.
fn same_but_numbers(a: &StreamingJobStatus, b: &StreamingJobStatus) -> bool {
    let bare = |s: &StreamingJobStatus| StreamingJobStatus {
        epoch: None,
        watermark: None,
        lag: None,
        rates: None,
        counts: None,
        ..s.clone()
    };
    bare(a) == bare(b)
}
