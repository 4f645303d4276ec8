//! Reads what is known of a job: pods and claims from the watches' caches, everything else as it is now, and what its coordinator
//! says. It costs a handful of reads, so it is done when something has changed or is under way, not to see how a job goes (`poll`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, PodStatus};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use kube::{Client, runtime::reflector::Store};
use parking_lot::Mutex;
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::JobStatus;
use tokio::sync::{OnceCell, Semaphore};

use crate::build::CONTROL_PORT;
use crate::facts::{Facts, Said, job_of};
use crate::kind::Kind;
use crate::lint::Linter;
use crate::names;
use crate::version::name_of;

/// What watches keep up to date.
#[derive(Clone)]
pub struct Caches {
    pub pods: Store<Pod>,
    pub claims: Store<PersistentVolumeClaim>,
}

impl Caches {
    /// Waits until each was listed once: what is not in them is not in the cluster. For one waiter: a store wakes only the last
    /// that asked.
    async fn filled(&self) {
        // A writer that is gone is the end of the process.
        let _ = self.pods.wait_until_ready().await;
        let _ = self.claims.wait_until_ready().await;
    }
}

/// What coordinators said, by namespace and job.
pub type Heard = Arc<Mutex<BTreeMap<(String, String), Said>>>;

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
    pub linter: Linter,
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
        self.filled.get_or_init(|| self.caches.filled()).await;
        let pods: Vec<Pod> = of(&self.caches.pods, |p| mine(p.labels(), p.namespace()));
        let claims = of(&self.caches.claims, |c| mine(c.labels(), c.namespace()));
        let now = crate::clock::now();
        let ask = async {
            if pods.is_empty() {
                return None;
            }
            Some(self.ask(&namespace, &name, now).await)
        };
        // As they are now: what a StatefulSet remembers, and which versions were made, must not be a moment old. All at once, since a
        // change waits for it.
        let (said, objects) = futures::join!(ask, self.objects(&job));
        let objects = objects?;
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
        // What was made once was planned then.
        let sql_faults = if versions.contains_key(&name_of(&job)) {
            Vec::new()
        } else {
            let planned = self.linter.faults(&job).await;
            planned.unwrap_or_else(|error| {
                vec![format!(
                    "spec.sql: it could not be planned: {error} [PS0075]"
                )]
            })
        };
        Ok(Facts {
            now,
            stateful_set: set,
            objects,
            job,
            pods,
            claims,
            versions,
            said,
            sql_faults,
        })
    }

    /// Every object that has a child's name.
    async fn objects(
        &self,
        job: &StreamingJob,
    ) -> Result<BTreeMap<(Kind, String), serde_json::Value>, kube::Error> {
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        // It cannot be closed: it lives as long as this.
        let _turn = self.turns.acquire().await;
        let (namespace, name) = (&namespace, &name);
        let each = Kind::ALL.into_iter().map(|kind| async move {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), namespace, &kind.resource());
            if kind == Kind::ConfigMap {
                let labels = format!("{}={name}", names::JOB);
                let list = api.list(&ListParams::default().labels(&labels)).await?;
                return Ok((kind, list.items));
            }
            let object = api.get_opt(&names::workers(name)).await?;
            Ok::<_, kube::Error>((kind, object.into_iter().collect::<Vec<_>>()))
        });
        let mut objects = BTreeMap::new();
        for (kind, found) in try_join_all(each).await? {
            for object in found {
                let value = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
                objects.insert((kind, object.name_any()), value);
            }
        }
        Ok(objects)
    }

    /// Asks the coordinator; what it said before stays where it does not answer.
    pub async fn ask(&self, namespace: &str, name: &str, now: DateTime<Utc>) -> Said {
        const PATIENCE: Duration = Duration::from_secs(2);
        let host = format!(
            "{}.{}.{namespace}.svc:{CONTROL_PORT}",
            names::pod(name, 0),
            names::workers(name)
        );
        let answer = async {
            let request = self.http.get(format!("https://{host}/status"));
            let answer = request.timeout(PATIENCE).send().await?;
            answer.error_for_status()?.json::<JobStatus>().await
        };
        let status = answer.await.map_err(|e| e.to_string());
        let key = (namespace.to_owned(), name.to_owned());
        let mut heard = self.heard.lock();
        match (status, heard.get(&key)) {
            (Err(_), Some(before)) if before.status.is_ok() => before.clone(),
            (status, _) => {
                let said = Said { at: now, status };
                heard.insert(key, said.clone());
                said
            }
        }
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
