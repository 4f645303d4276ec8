//! Carries a decision out: the only place that writes. Server-side apply under one name; what would change nothing is not sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{NamespaceResourceScope, Status};
use kube::runtime::events::{Event as Published, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use penstock_crds::job::{StreamingJob, StreamingJobStatus};
use penstock_crds::savepoint::Savepoint;
use penstock_crds::units::Quantity;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build::Child;
use crate::certificates::Authority;
use crate::clock::turn;
use crate::decide::{Decision, Doomed, Event};
use crate::facts::Facts;
use crate::issue::Issue;
use crate::kind::Kind;
use crate::metrics::Metrics;
use crate::names::{self, APPLIED, FINALIZER, GENERATION, HOLDER, MANAGER};
use crate::same::covers;
use crate::status::{bounded, same_but_numbers};

/// Numbers alone are written so often.
const NUMBERS_EVERY: Duration = Duration::from_secs(60);
/// A claim that could not be made larger is tried again after so long: its class may allow it by then.
const GROW_AGAIN: Duration = Duration::from_secs(600);

pub struct Writer {
    pub client: Client,
    pub authority: Arc<Authority>,
    pub events: Recorder,
    pub metrics: Arc<Metrics>,
    /// What is known of the status of a job, by its uid.
    pub written: Mutex<BTreeMap<String, Written>>,
    /// Claims that could not be made larger, by the uid of their job and their own.
    pub refusals: Mutex<BTreeMap<String, BTreeMap<String, Refusal>>>,
}

/// How a claim could not be made larger.
#[derive(Debug, Clone)]
pub struct Refusal {
    size: Quantity,
    at: DateTime<Utc>,
    note: String,
}

/// The status that was written last.
#[derive(Debug, Clone)]
pub struct Written {
    at: DateTime<Utc>,
    /// As long as the watch does not show it: the resource version that it made, and the status.
    ahead: Option<(u64, StreamingJobStatus)>,
}

/// What carrying a decision out has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrote {
    /// Something else than the status: more may follow from it.
    pub objects: bool,
    pub status: bool,
}

impl Writer {
    /// The job with the status that was written last, where the watch is behind it: nothing is told or written twice.
    pub fn with_own_status(&self, job: &StreamingJob) -> StreamingJob {
        let mut job = job.clone();
        let mut written = self.written.lock();
        let Some(written) = written.get_mut(job.metadata.uid.as_deref().unwrap_or_default()) else {
            return job;
        };
        match &written.ahead {
            Some((made, status)) if revision(&job) < *made => job.status = Some(status.clone()),
            _ => written.ahead = None,
        }
        job
    }

    /// Drops what is kept of jobs other than these.
    pub fn forget(&self, uids: &BTreeSet<&str>) {
        self.written
            .lock()
            .retain(|uid, _| uids.contains(uid.as_str()));
        self.refusals
            .lock()
            .retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// What was written.
    ///
    /// # Errors
    /// When the API server refuses a write; what was written stays, and the next decision goes on from there.
    pub async fn carry_out(
        &self,
        facts: &Facts,
        decision: &Decision,
    ) -> Result<Wrote, kube::Error> {
        let namespace = facts.job.namespace().unwrap_or_default();
        let mut wrote = false;
        if let Some(hold) = decision.hold {
            self.hold(&facts.job, hold).await?;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        // First what is lost: a child that is refused must not keep it from coming back.
        for claim in &decision.abandon {
            // Gone when its pod is. The one that was seen, and not its successor of the same name.
            let params = DeleteParams {
                preconditions: uid_of(facts, claim).map(|uid| Preconditions {
                    uid: Some(uid),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            self.metrics.wrote("PersistentVolumeClaim");
            gone(claims.delete(claim, &params).await)?;
        }
        for pod in &decision.force {
            self.end(&pods, pod).await?;
        }
        let mut versions = BTreeMap::new();
        let mut made = true;
        for child in &decision.apply {
            if child.kind == Kind::StatefulSet
                && let Some(issue) = &decision.certificate
            {
                let owner = self.version(facts, &versions, issue);
                self.certificate(facts, &namespace, issue, owner).await?;
                wrote = true;
            }
            match self.child(facts, &namespace, child).await {
                Err(kube::Error::Api(e)) if is_going(&e) && is_deleted(&facts.job) => made = false,
                Err(e) => return Err(e),
                Ok(None) => {}
                Ok(Some(written)) => {
                    wrote = true;
                    if child.kind == Kind::ConfigMap {
                        versions.insert(child.name.as_str(), written.uid().unwrap_or_default());
                    }
                }
            }
        }
        for step in &decision.steps {
            made &= self.create::<Pod>(&namespace, step).await?;
        }
        if let Some(savepoint) = &decision.savepoint {
            made &= self.create::<Savepoint>(&namespace, savepoint).await?;
        }
        if !made {
            // Nothing can be started in a namespace that goes: its log stays in the checkpoint storage.
            tracing::warn!(job = facts.name(), "the namespace is deleted: no clean-up");
            self.hold(&facts.job, false).await?;
            return Ok(Wrote {
                objects: true,
                status: false,
            });
        }
        wrote |= decision.hold.is_some()
            || !decision.steps.is_empty()
            || decision.savepoint.is_some()
            || !decision.abandon.is_empty()
            || !decision.replace.is_empty()
            || !decision.force.is_empty()
            || !decision.remove.is_empty();
        for (claim, size) in &decision.grow {
            wrote |= self.grow(facts, &claims, claim, *size).await?;
        }
        for pod in &decision.replace {
            self.end(&pods, pod).await?;
        }
        for (kind, name) in &decision.remove {
            let api = self.api(&namespace, *kind);
            self.metrics.wrote(kind.api().2);
            gone(api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(Wrote {
            objects: wrote,
            status: self
                .tell_with(facts, decision, &self.shown(facts, decision))
                .await?,
        })
    }

    /// Ends this pod, and not its successor of the same name.
    async fn end(&self, pods: &Api<Pod>, pod: &Doomed) -> Result<(), kube::Error> {
        let params = DeleteParams {
            grace_period_seconds: pod.grace,
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.metrics.wrote("Pod");
        gone(pods.delete(&pod.name, &params).await)
    }

    /// Makes a claim larger; false where its class cannot. That is told once, and is no reason to leave everything else.
    async fn grow(
        &self,
        facts: &Facts,
        claims: &Api<PersistentVolumeClaim>,
        claim: &str,
        size: Quantity,
    ) -> Result<bool, kube::Error> {
        let job = facts.job.uid().unwrap_or_default();
        let uid = uid_of(facts, claim).unwrap_or_default();
        let before = self.refusal(&job, &uid, size);
        let age = before
            .as_ref()
            .map(|r| (facts.now - r.at).to_std().unwrap_or_default());
        if age.is_some_and(|age| age < GROW_AGAIN) {
            return Ok(false);
        }
        self.metrics.wrote("PersistentVolumeClaim");
        let patch = json!({"spec": {"resources": {"requests": {"storage": size.to_string()}}}});
        let params = PatchParams::default();
        match claims.patch(claim, &params, &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(e)) if e.code == 403 || e.code == 422 => {
                let note = format!("claim {claim} cannot grow to {size}: {}", e.message);
                let refusal = Refusal {
                    size,
                    at: facts.now,
                    note: note.clone(),
                };
                self.refused(job, uid, refusal);
                if before.is_none() {
                    let event = Event {
                        warning: true,
                        reason: "VolumeNotGrown",
                        note,
                    };
                    self.tell(&facts.job, &event).await;
                }
                Ok(false)
            }
            grown => {
                grown?;
                if let Some(refusals) = self.refusals.lock().get_mut(&job) {
                    refusals.remove(&uid);
                }
                Ok(true)
            }
        }
    }

    fn refused(&self, job: String, claim: String, refusal: Refusal) {
        let mut refusals = self.refusals.lock();
        refusals.entry(job).or_default().insert(claim, refusal);
    }

    /// How a claim could not be made so large.
    fn refusal(&self, job: &str, claim: &str, size: Quantity) -> Option<Refusal> {
        let refusals = self.refusals.lock();
        let refusal = refusals.get(job)?.get(claim)?;
        (refusal.size == size).then(|| refusal.clone())
    }

    /// The status that was decided on, with what was found out since: Ready says which claims could not be made larger.
    fn shown(&self, facts: &Facts, decision: &Decision) -> StreamingJobStatus {
        let job = facts.job.uid().unwrap_or_default();
        let mut status = decision.status.clone();
        let ready = status.conditions.iter_mut().find(|c| c.type_ == "Ready");
        let Some(ready) = ready else {
            return status;
        };
        for (claim, size) in &decision.grow {
            let uid = uid_of(facts, claim).unwrap_or_default();
            if let Some(refusal) = self.refusal(&job, &uid, *size) {
                ready.message = bounded(&format!("{}; {}", ready.message, refusal.note));
            }
        }
        status
    }

    /// Events and status alone; whether the status was written.
    ///
    /// # Errors
    /// When the API server refuses the status.
    pub async fn tell_all(&self, facts: &Facts, decision: &Decision) -> Result<bool, kube::Error> {
        self.tell_with(facts, decision, &decision.status).await
    }

    async fn tell_with(
        &self,
        facts: &Facts,
        decision: &Decision,
        status: &StreamingJobStatus,
    ) -> Result<bool, kube::Error> {
        // Before the status, which is what says that it was told: it is told twice rather than never.
        for event in &decision.events {
            self.tell(&facts.job, event).await;
        }
        // That of a job which was let go is gone with it.
        Ok(decision.hold != Some(false) && self.status(facts, status).await?)
    }

    /// The ConfigMap of a certificate's version, as its owner: both go together. `written`: uids of those that were made just now.
    fn version(
        &self,
        facts: &Facts,
        written: &BTreeMap<&str, String>,
        issue: &Issue,
    ) -> OwnerReference {
        let name = names::version(facts.name(), &issue.version);
        let there = facts.objects.get(&(Kind::ConfigMap, name.clone()));
        let there = there.and_then(|v| v["metadata"]["uid"].as_str());
        let uid = written.get(name.as_str()).map(String::as_str).or(there);
        OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            uid: uid.unwrap_or_default().to_owned(),
            name,
            ..OwnerReference::default()
        }
    }

    /// Created and never read: one that is there already is the same, whose StatefulSet was not written any more.
    async fn certificate(
        &self,
        facts: &Facts,
        namespace: &str,
        issue: &Issue,
        owner: OwnerReference,
    ) -> Result<(), kube::Error> {
        let made = self.authority.for_workers(&facts.job, issue, owner);
        let secret = made.map_err(|e| kube::Error::Service(e.into()))?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        self.metrics.wrote("Secret");
        match secrets.create(&PostParams::default(), &secret).await {
            Err(kube::Error::Api(e)) if is_there(&e) => Ok(()),
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
            Err(kube::Error::Api(e)) if is_there(&e) => Ok(true),
            Err(kube::Error::Api(e)) if is_going(&e) => Ok(false),
            Err(e) => Err(e),
            Ok(_) => Ok(true),
        }
    }

    fn api(&self, namespace: &str, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    /// The object as it is now, if it was written.
    async fn child(
        &self,
        facts: &Facts,
        namespace: &str,
        child: &Child,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        let live = facts.objects.get(&(child.kind, child.name.clone()));
        let mut body = stamped(child);
        if child.kind == Kind::StatefulSet {
            let generation = facts.job.metadata.generation.unwrap_or_default();
            body["metadata"]["annotations"][GENERATION] = json!(generation.to_string());
        }
        if live.is_some_and(|live| covers(live, &body)) {
            return Ok(None);
        }
        // A version is made once.
        if live.is_some() && child.kind == Kind::ConfigMap {
            return Ok(None);
        }
        if let Some(live) = live
            && child.kind == Kind::StatefulSet
        {
            // It remembers versions: written as it was read or not at all, so that nothing which another wrote since is lost.
            body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
            body["metadata"]["uid"] = live["metadata"]["uid"].clone();
        }
        let before = facts.job.status.as_ref();
        if let Some(before) = before.filter(|s| s.version.is_some())
            && live.is_none()
            && child.kind == Kind::StatefulSet
        {
            // It ran, and was it deleted since, which a cache that lags behind does not show? To write over what is known of it is
            // refused then, and no worker starts.
            let over = facts.job.resource_version();
            self.write_status(&facts.job, before, over, facts.now)
                .await?;
        }
        let params = PatchParams::apply(MANAGER).force();
        let api = self.api(namespace, child.kind);
        self.metrics.wrote(child.kind.api().2);
        let written = api
            .patch(&child.name, &params, &Patch::Apply(&body))
            .await?;
        tracing::info!(job = facts.name(), kind = child.kind.api().2, name = %child.name, "applied");
        Ok(Some(written))
    }

    async fn status(
        &self,
        facts: &Facts,
        status: &StreamingJobStatus,
    ) -> Result<bool, kube::Error> {
        let before = facts.job.status.clone().unwrap_or_default();
        if before == *status
            || (self.is_recent(&facts.job, facts.now) && same_but_numbers(&before, status))
        {
            return Ok(false);
        }
        self.write_status(&facts.job, status, None, facts.now).await
    }

    /// Writes a status in which nothing but numbers is new.
    ///
    /// # Errors
    /// When the API server refuses, also because somebody wrote the job meanwhile.
    pub async fn numbers(
        &self,
        job: &StreamingJob,
        status: &StreamingJobStatus,
        now: DateTime<Utc>,
    ) -> Result<bool, kube::Error> {
        // Only over the status that it was made from.
        let over = job.resource_version();
        self.write_status(job, status, over, now).await
    }

    async fn write_status(
        &self,
        job: &StreamingJob,
        status: &StreamingJobStatus,
        over: Option<String>,
        now: DateTime<Utc>,
    ) -> Result<bool, kube::Error> {
        let namespace = job.namespace().unwrap_or_default();
        let api: Api<StreamingJob> = Api::namespaced(self.client.clone(), &namespace);
        // That of a job which was deleted meanwhile is not made anew.
        let mut body = json!({
            "apiVersion": StreamingJob::api_version(&()),
            "kind": StreamingJob::kind(&()),
            "metadata": {"uid": job.metadata.uid},
            "status": status,
        });
        if let Some(over) = over {
            body["metadata"]["resourceVersion"] = json!(over);
        }
        let params = PatchParams::apply(MANAGER).force();
        self.metrics.wrote("StreamingJob");
        let answer = api
            .patch_status(&job.name_any(), &params, &Patch::Apply(&body))
            .await?;
        let written = Written {
            at: now,
            ahead: Some((revision(&answer), status.clone())),
        };
        self.written
            .lock()
            .insert(job.uid().unwrap_or_default(), written);
        Ok(true)
    }

    /// Whether numbers were written less than a minute ago. Jobs that this process did not write to yet take their turns over the
    /// first minute.
    pub fn is_recent(&self, job: &StreamingJob, now: DateTime<Utc>) -> bool {
        let mut written = self.written.lock();
        let entry = written.entry(job.uid().unwrap_or_default());
        let written = entry.or_insert_with(|| Written {
            at: now - NUMBERS_EVERY.mul_f64(turn(job.metadata.uid.as_deref())),
            ahead: None,
        });
        (now - written.at).to_std().unwrap_or_default() < NUMBERS_EVERY
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

/// The uid of a claim, if the watch has shown it.
fn uid_of(facts: &Facts, claim: &str) -> Option<String> {
    let named = |c: &&PersistentVolumeClaim| c.metadata.name.as_deref() == Some(claim);
    facts.claims.iter().find(named)?.uid()
}

/// Whether something could not be made because it is there. A 409 of another reason is a quota that was being counted.
fn is_there(refusal: &Status) -> bool {
    refusal.code == 409 && refusal.reason == "AlreadyExists"
}

/// Whether it is refused because the namespace is being deleted and takes nothing new.
fn is_going(refusal: &Status) -> bool {
    refusal.code == 403 && refusal.message.contains("being terminated")
}

fn is_deleted(job: &StreamingJob) -> bool {
    job.metadata.deletion_timestamp.is_some()
}

/// Gone already is gone, and so is one that another has taken the name of.
fn gone<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Ok(()),
    }
}

/// The resource version as the number that it is; 0 where it is none.
fn revision(of: &StreamingJob) -> u64 {
    let version = of.metadata.resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
