//! Reads what is known of a job: pods and claims from the watches' caches, everything else as it is now, and what its coordinator
//! says. It costs a handful of reads, so it is done when something has changed or is under way, not to see how a job goes (`poll`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Pod, PodStatus, ServiceAccount,
};
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use kube::runtime::reflector::{ObjectRef, Store};
use parking_lot::Mutex;
use penstock_crds::job::{RestoreKind, StreamingJob};
use penstock_crds::rpc::JobStatus;
use penstock_crds::savepoint::Savepoint;
use tokio::sync::{OnceCell, Semaphore};

use crate::autoscale::{self, History, Sample};
use crate::build::{CONTROL_PORT, is_worker};
use crate::clock::in_time;
use crate::coordinator::{self, Unanswered};
use crate::decide::savepoint::{Ask, SavepointFacts};
use crate::facts::{Facts, Said, job_of, versions_of};
use crate::kind::Kind;
use crate::names;
use crate::version::name_of;

/// What watches keep up to date.
#[derive(Clone)]
pub struct Caches {
    pub pods: Store<Pod>,
    pub claims: Store<PersistentVolumeClaim>,
    pub savepoints: Store<Savepoint>,
}

impl Caches {
    /// Waits until each was listed once: what is not in them is not in the cluster. For one waiter: a store wakes only the last
    /// that asked.
    async fn filled(&self) {
        // A writer that is gone is the end of the process.
        let _ = self.pods.wait_until_ready().await;
        let _ = self.claims.wait_until_ready().await;
        let _ = self.savepoints.wait_until_ready().await;
    }
}

/// How long the API server may take to answer a read as a whole: an object, or the handful of a job.
const READ: Duration = Duration::from_secs(20);

/// Where a job's coordinator answers the controller.
fn host(namespace: &str, job: &str, worker: u32) -> String {
    format!(
        "{}.{}.{namespace}.svc:{CONTROL_PORT}",
        names::pod(job, worker),
        names::workers(job)
    )
}

/// What coordinators said, by the uid of their job: what an earlier one of its name said means nothing.
pub type Heard = Arc<Mutex<BTreeMap<String, Said>>>;

/// Of a pod only what decisions read is kept: a thousand of them must fit a small container.
pub fn trim_pod(pod: &mut Pod) {
    pod.spec = None;
    pod.metadata.managed_fields = None;
    pod.metadata.owner_references = None;
    if let Some(status) = &mut pod.status {
        *status = PodStatus {
            conditions: status.conditions.take(),
            container_statuses: status.container_statuses.take(),
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            reason: status.reason.take(),
            ..PodStatus::default()
        };
    }
}

/// Of a claim and of a job: what nobody here reads.
pub fn trim<K: ResourceExt>(object: &mut K) {
    object.managed_fields_mut().clear();
    // What `kubectl apply` notes for itself: the whole manifest once more.
    object
        .annotations_mut()
        .remove("kubectl.kubernetes.io/last-applied-configuration");
}

pub struct Observer {
    pub client: Client,
    pub caches: Caches,
    /// Whether the caches were filled.
    pub filled: OnceCell<()>,
    /// Jobs whose objects are read at the same time. A thousand that all change must not stand in the API server's queue before the
    /// renewal of the lease.
    pub turns: Semaphore,
    pub http: reqwest::Client,
    pub heard: Heard,
    /// What was heard of jobs whose number of workers follows their load, by uid.
    pub loads: Mutex<BTreeMap<String, History>>,
    /// The identity of the authority that signs certificates.
    pub authority: String,
}

impl Observer {
    /// The facts of a job as of now.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn facts(&self, job: StreamingJob) -> Result<Facts, kube::Error> {
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        let mine = |labels: &BTreeMap<String, String>, of: Option<String>| {
            of.as_deref() == Some(&namespace) && job_of(Some(labels)) == Some(&name)
        };
        self.filled().await;
        let all: Vec<Pod> = of(&self.caches.pods, |p| mine(p.labels(), p.namespace()));
        let (pods, steps): (Vec<Pod>, Vec<Pod>) = all.into_iter().partition(|p| {
            let component = p.labels().get("app.kubernetes.io/component");
            is_worker(component)
        });
        let claims = of(&self.caches.claims, |c| mine(c.labels(), c.namespace()));
        let uid = job.uid().unwrap_or_default();
        let restores = job.spec.restore_from.as_ref().and_then(|r| r.kind());
        let restores = match restores {
            Some(RestoreKind::Savepoint(of)) => Some(of),
            Some(RestoreKind::Latest | RestoreKind::Epoch(_)) | None => None,
        };
        let now = crate::clock::now();
        let ask = async {
            if pods.is_empty() {
                // Who comes next has said nothing yet.
                self.heard.lock().remove(&uid);
                self.loads.lock().remove(&uid);
                return None;
            }
            Some(self.ask(&job, now).await)
        };
        // As they are now: what a StatefulSet remembers, and which versions were made, must not be a moment old. All at once, since a
        // change waits for it.
        let account = self.account(&job, &namespace);
        let (said, objects, account) = futures::join!(ask, self.objects(&job), account);
        let objects = objects?;
        let restores_from = restores.and_then(|of| self.savepoint(&namespace, of));
        let set = objects.get(&(Kind::StatefulSet, names::workers(&name)));
        let set = set.and_then(|s| serde_json::from_value(s.clone()).ok());
        let prefix = names::version(&name, "");
        let versions: BTreeMap<String, ConfigMap> = objects
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::ConfigMap)
            .filter_map(|((_, map), value)| {
                let version = map.strip_prefix(&prefix)?.to_owned();
                Some((version, serde_json::from_value(value.clone()).ok()?))
            })
            .collect();
        let load = self.load(&job);
        Ok(Facts {
            now,
            stateful_set: set,
            objects,
            job,
            pods,
            // Those of savepoints are theirs.
            steps: steps
                .into_iter()
                .filter(|p| !p.labels().contains_key(names::SAVEPOINT))
                .collect(),
            restores_from,
            farewell: self.savepoint(&namespace, &names::farewell(&name, &uid)),
            claims,
            versions,
            said,
            load,
            account: account?,
            authority: self.authority.clone(),
            // Asked for where it makes a difference.
            sql_faults: Vec::new(),
        })
    }

    /// Waits until the caches were filled once.
    async fn filled(&self) {
        self.filled.get_or_init(|| self.caches.filled()).await;
    }

    /// The account that the spec names.
    async fn account(
        &self,
        job: &StreamingJob,
        namespace: &str,
    ) -> Result<Option<ServiceAccount>, kube::Error> {
        let name = &job.spec.workers.service_account_name;
        // What is no name is refused by what it is, and asks the API server for something else.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if name.is_empty() || !name.chars().all(plain) {
            return Ok(None);
        }
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        in_time(READ, api.get_opt(name)).await
    }

    fn savepoint(&self, namespace: &str, name: &str) -> Option<Savepoint> {
        let at = ObjectRef::new(name).within(namespace);
        self.caches.savepoints.get(&at).map(|s| (*s).clone())
    }

    /// Pods of steps of a savepoint.
    pub async fn steps(&self, savepoint: &Savepoint) -> Vec<Pod> {
        let (namespace, name) = (savepoint.namespace(), savepoint.name_any());
        self.filled().await;
        of(&self.caches.pods, |p| {
            p.namespace() == namespace && p.labels().get(names::SAVEPOINT) == Some(&name)
        })
    }

    /// The job of a savepoint, if there is one.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn job_of(&self, savepoint: &Savepoint) -> Result<Option<StreamingJob>, kube::Error> {
        let namespace = savepoint.namespace().unwrap_or_default();
        let jobs: Api<StreamingJob> = Api::namespaced(self.client.clone(), &namespace);
        let name = &savepoint.spec.job_ref.name;
        // What is no name asks the API server for something else.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        match name.chars().all(plain) {
            true => in_time(READ, jobs.get_opt(name)).await,
            false => Ok(None),
        }
    }

    /// The savepoint as it is now; `None`: it is gone, and one that has its name by now is another.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn same(&self, savepoint: &Savepoint) -> Result<Option<Savepoint>, kube::Error> {
        let namespace = savepoint.namespace().unwrap_or_default();
        let api: Api<Savepoint> = Api::namespaced(self.client.clone(), &namespace);
        let name = savepoint.name_any();
        let found = in_time(READ, api.get_opt(&name)).await?;
        Ok(found.filter(|now| now.uid() == savepoint.uid()))
    }

    /// The facts of a savepoint as of now.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn savepoint_facts(
        &self,
        savepoint: Savepoint,
        job: Option<StreamingJob>,
    ) -> Result<SavepointFacts, kube::Error> {
        let namespace = savepoint.namespace().unwrap_or_default();
        let (name, of_job) = (savepoint.name_any(), savepoint.spec.job_ref.name.clone());
        self.filled().await;
        let workers = of(&self.caches.pods, |p| {
            p.namespace().as_deref() == Some(&namespace)
                && job_of(Some(p.labels())) == Some(&of_job)
                && is_worker(p.labels().get("app.kubernetes.io/component"))
        });
        let steps = self.steps(&savepoint).await;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
        let at = names::step(&name, "savepoint");
        let kept = in_time(READ, maps.get_opt(&at)).await?;
        let kept = kept.filter(|map| {
            let owners = map.metadata.owner_references.as_ref();
            owners.is_some_and(|o| {
                o.iter()
                    .any(|o| Some(&o.uid) == savepoint.metadata.uid.as_ref())
            })
        });
        let now = crate::clock::now();
        let said = match &job {
            Some(job) if !workers.is_empty() => self.ask(job, now).await.now(now).cloned(),
            Some(_) | None => None,
        };
        let version = match (&kept, &job) {
            (None, Some(job)) => {
                let sets: Api<DynamicObject> = Api::namespaced_with(
                    self.client.clone(),
                    &namespace,
                    &Kind::StatefulSet.resource(),
                );
                let at = names::workers(&of_job);
                let set = in_time(READ, sets.get_opt(&at)).await?;
                let runs = set.and_then(|s| {
                    let at = "/spec/template/metadata/annotations/penstock.dev~1version";
                    s.data.pointer(at)?.as_str().map(str::to_owned)
                });
                let wanted = runs.unwrap_or_else(|| name_of(job));
                let at = names::version(&of_job, &wanted);
                in_time(READ, maps.get_opt(&at)).await?
            }
            _ => None,
        };
        Ok(SavepointFacts {
            now,
            savepoint,
            job,
            workers: workers.len(),
            said,
            version,
            kept,
            steps,
        })
    }

    /// Asks a running job for something, by the worker that coordinates it; whether it has heard. `/status` shows what has become of it.
    pub async fn demand(
        &self,
        savepoint: &Savepoint,
        ask: &Ask,
        worker: u32,
    ) -> Result<(), Unanswered> {
        let namespace = savepoint.namespace().unwrap_or_default();
        let of_job = &savepoint.spec.job_ref.name;
        let host = host(&namespace, of_job, worker);
        let url = format!("https://{host}/savepoints/{}", savepoint.name_any());
        let request = match ask {
            Ask::Pin => self.http.put(url),
            Ask::Unpin => self.http.delete(url),
        };
        coordinator::send(request).await.map(drop)
    }

    /// Every object that has a child's name.
    async fn objects(
        &self,
        job: &StreamingJob,
    ) -> Result<BTreeMap<(Kind, String), serde_json::Value>, kube::Error> {
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        // It cannot be closed: it lives as long as this. Who has it gives it back in time.
        let _turn = self.turns.acquire().await;
        let (namespace, name) = (&namespace, &name);
        let each = Kind::ALL.into_iter().map(|kind| async move {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), namespace, &kind.resource());
            if kind == Kind::ConfigMap {
                let labels = format!("{}={name}", names::JOB);
                // As the API server has them at hand: a list of what is there at this moment waits for up to 100 ms, until etcd has
                // told it that nothing is newer. Those that matter are asked for below, if they are missing.
                let at_hand = ListParams::default().labels(&labels).match_any();
                return Ok((kind, api.list(&at_hand).await?.items));
            }
            let object = api.get_opt(&names::workers(name)).await?;
            Ok::<_, kube::Error>((kind, object.into_iter().collect::<Vec<_>>()))
        });
        let mut objects = BTreeMap::new();
        for (kind, found) in in_time(READ, try_join_all(each)).await? {
            for object in found {
                let value = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
                objects.insert((kind, object.name_any()), value);
            }
        }
        let set = objects.get(&(Kind::StatefulSet, names::workers(name)));
        let set: Option<StatefulSet> = set.and_then(|s| serde_json::from_value(s.clone()).ok());
        let mut versions = set.as_ref().map(versions_of).unwrap_or_default();
        versions.insert(name_of(job));
        let missing = versions
            .iter()
            .map(|version| names::version(name, version))
            .filter(|at| !objects.contains_key(&(Kind::ConfigMap, at.clone())));
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let reads = missing.map(async |at| Ok((api.get_opt(&at).await?, at)));
        let found = in_time(READ, try_join_all(reads)).await?;
        for (map, at) in found {
            if let Some(map) = map.filter(|map| job_of(Some(map.labels())) == Some(name)) {
                let value = serde_json::to_value(&map).map_err(kube::Error::SerdeError)?;
                objects.insert((Kind::ConfigMap, at), value);
            }
        }
        Ok(objects)
    }

    /// What the coordinator says. Every worker knows which one it is: the first that is asked is as good as any.
    async fn asked(&self, job: &StreamingJob, first: u32) -> Result<JobStatus, String> {
        /// Workers that are asked at most: each that is away takes its time.
        const MOST: u32 = 4;
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        let workers = job.spec.workers.replicas.unwrap_or(1);
        let mut others = (0..workers).filter(|w| *w != first);
        let mut worker = first;
        for _ in 0..MOST {
            let host = host(&namespace, &name, worker);
            let answer = coordinator::status(&self.http, format!("https://{host}/status")).await;
            let answer = answer.map_err(|e| e.to_string());
            match next(worker, &answer, &mut others) {
                Some(other) => worker = other,
                None if workers > 1 && answer.as_ref().is_ok_and(|s| s.coordinator.is_none()) => {
                    return Err("no worker coordinates the job at this moment".to_owned());
                }
                None => return answer,
            }
        }
        Err("the job's coordinator is not found among its workers".to_owned())
    }

    /// What was heard of a job's load.
    pub fn load(&self, job: &StreamingJob) -> History {
        let loads = self.loads.lock();
        loads
            .get(&job.uid().unwrap_or_default())
            .cloned()
            .unwrap_or_default()
    }

    /// Asks the coordinator; what it said before stays where it does not answer.
    pub async fn ask(&self, job: &StreamingJob, now: DateTime<Utc>) -> Said {
        let key = job.uid().unwrap_or_default();
        let first = self.heard.lock().get(&key).map_or(0, Said::coordinator);
        let status = self.asked(job, first).await;
        let mut heard = self.heard.lock();
        match (status, heard.get(&key)) {
            (Err(_), Some(before)) if before.status.is_ok() => before.clone(),
            (status, _) => {
                if let Ok(told) = &status
                    && autoscale::is_asked_for(job)
                    && let Some(sample) = Sample::of(told, now)
                {
                    self.loads
                        .lock()
                        .entry(key.clone())
                        .or_default()
                        .add(sample);
                }
                let said = Said { at: now, status };
                heard.insert(key, said.clone());
                said
            }
        }
    }
}

/// Which worker is asked after one has answered, or has not; `None`: it has said what there is to be said. `others` are asked in turn
/// where one does not answer.
fn next(
    asked: u32,
    answer: &Result<JobStatus, String>,
    others: &mut impl Iterator<Item = u32>,
) -> Option<u32> {
    match answer {
        Ok(said) => said.coordinator.filter(|c| *c != asked),
        Err(_) => others.next(),
    }
}

fn of<K>(store: &Store<K>, mine: impl Fn(&K) -> bool) -> Vec<K>
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()> + Clone + 'static,
{
    let all = store.state();
    all.iter()
        .filter(|o| mine(o))
        .map(|o| (**o).clone())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
