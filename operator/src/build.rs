//! The children of a job as objects of Kubernetes: pure functions of the job, its version and the settings.

mod step;
mod workload;

use penstock_crds::job::StreamingJob;
use serde_json::{Value, json};

use crate::kind::Kind;
use crate::names::{self, selector, version, workers};
use crate::settings::Settings;
use crate::version::{MANIFEST, TEMPLATE, Version};

pub use step::{For, Step, is_worker, step_pod};
pub use workload::{Size, orders, stateful_set, template};

/// A child as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    pub kind: Kind,
    pub name: String,
    /// The whole object, as it is applied.
    pub body: Value,
}

/// Port of /healthz, which the supervisor answers.
pub const HEALTH_PORT: u16 = 8081;
/// Port of /readyz and /metrics, which the engine answers. It shows /status and /epochs to who is in the pod alone.
pub const PUBLIC_PORT: u16 = 8080;
/// Port of /status and of requests, by mutual TLS.
pub const CONTROL_PORT: u16 = 8443;
/// Port of the rows and words between the workers of a job, by mutual TLS.
pub const EXCHANGE_PORT: u16 = 8444;

fn child(job: &StreamingJob, kind: Kind, name: String, content: Value) -> Child {
    let of = job.metadata.name.clone().unwrap_or_default();
    let mut body = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.api().2,
        "metadata": {
            "name": name,
            "namespace": job.metadata.namespace,
            "labels": names::labels(&of),
            "ownerReferences": [owner(job)],
        },
    });
    if let (Value::Object(body), Value::Object(content)) = (&mut body, content) {
        body.extend(content);
    }
    Child { kind, name, body }
}

/// What makes an object a child of the job.
pub fn owner(job: &StreamingJob) -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "StreamingJob",
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The version that the spec asks for, made anew. `savepoint`: `<job>/<logId>` of the one that it begins with.
pub fn make_version(job: &StreamingJob, settings: &Settings, savepoint: Option<&str>) -> Version {
    let name = crate::version::name_of(job);
    Version {
        manifest: crate::version::manifest(job, settings),
        template: template(job, &name, settings, savepoint),
        name,
    }
}

/// Everything but the StatefulSet.
pub fn surroundings(job: &StreamingJob, made: &Version, settings: &Settings) -> Vec<Child> {
    let of = job.metadata.name.as_deref().unwrap_or_default();
    let mut children = Vec::new();
    if job.spec.workers.service_account_name.is_empty() {
        let account = json!({"automountServiceAccountToken": false});
        children.push(child(job, Kind::ServiceAccount, workers(of), account));
    }
    children.push(child(
        job,
        Kind::ConfigMap,
        version(of, &made.name),
        json!({"immutable": true, "data": {MANIFEST: made.manifest, TEMPLATE: made.template.to_string()}}),
    ));
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
    children.push(child(
        job,
        Kind::Service,
        workers(of),
        json!({"spec": {
            "clusterIP": "None",
            // The controller asks a worker how far it is before the worker is ready.
            "publishNotReadyAddresses": true,
            "selector": selector(of),
            "ports": [
                port("public", PUBLIC_PORT),
                port("control", CONTROL_PORT),
                port("exchange", EXCHANGE_PORT),
            ],
        }}),
    ));
    let from_own = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.own_namespace}}});
    children.push(child(
        job,
        Kind::NetworkPolicy,
        workers(of),
        json!({"spec": {
            "podSelector": {"matchLabels": selector(of)},
            "policyTypes": ["Ingress"],
            "ingress": [
                // Metrics and probes, from anywhere.
                {"ports": [{"port": PUBLIC_PORT, "protocol": "TCP"}, {"port": HEALTH_PORT, "protocol": "TCP"}]},
                {"ports": [{"port": CONTROL_PORT, "protocol": "TCP"}], "from": [from_own]},
                {"ports": [{"port": EXCHANGE_PORT, "protocol": "TCP"}],
                 "from": [{"podSelector": {"matchLabels": selector(of)}}]},
            ],
        }}),
    ));
    children.push(child(
        job,
        Kind::PodDisruptionBudget,
        workers(of),
        json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(of)}}}),
    ));
    children
}

#[cfg(test)]
pub(crate) mod tests;
