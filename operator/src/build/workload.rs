//! The StatefulSet: one pod for each worker, whose first process is the supervisor, of Pod Security "restricted".

use chrono::SecondsFormat;
use penstock_crds::job::{DeletionPolicy, StateSpec, StreamingJob};
use penstock_crds::validate::quantity;
use penstock_crds::workers::{PodTemplate, Resources};
use serde_json::{Map, Value, json};

use super::{CONTROL_PORT, Child, EXCHANGE_PORT, HEALTH_PORT, Kind, PUBLIC_PORT, child};
use crate::facts::Memory;
use crate::issue::Issue;
use crate::names::{
    self, ACCEPT_LOSS, CERTIFICATE_UNTIL, CLAIM, GO_BACK, MEMORY, ORDERS, VERSION, selector,
    workers,
};
use crate::settings::Settings;
use crate::version::{MANIFEST, Version, log_id};

/// How many workers there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u32);

/// Where things are in the pod.
const RENDERED: &str = "/etc/penstock/job";
const SECRETS: &str = "/etc/penstock/secrets";
const STATE: &str = "/var/lib/penstock";
const SCRATCH: &str = "/tmp";
const CERTIFICATE: &str = "/etc/penstock/certificate";

/// Time to end at a barrier: the checkpoint's own timeout, bounded, and a little to say goodbye.
fn grace(job: &StreamingJob) -> u64 {
    let timeout = std::time::Duration::from(job.spec.checkpoint.timeout).as_secs();
    timeout.clamp(30, 300) + 30
}

/// The user and group of the image.
const USER: i64 = 10_001;

/// `state`: the volumes that its pods get. `memory`: what is to be remembered of versions; a version that comes back is told so, and
/// what a person ordered is handed on. `issue`: the certificate that pods start with.
pub fn stateful_set(
    job: &StreamingJob,
    version: &Version,
    size: Size,
    memory: &Memory,
    state: &StateSpec,
    issue: &Issue,
) -> Child {
    let of = job.metadata.name.as_deref().unwrap_or_default();
    let mut template = version.template.clone();
    certify(&mut template, issue);
    let mut size = size;
    if let Some(args) = template["spec"]["containers"][0]["args"].as_array_mut() {
        match args.iter().any(|a| a == "--exchange") {
            // None of the version's either: workers that run learn of those that come and go.
            true => args.extend([json!("--workers"), json!(size.0.max(1).to_string())]),
            // A version of before: its workers would not know of each other.
            false => size = Size(size.0.min(1)),
        }
    }
    if memory.rolled_back.is_some()
        && let Some(args) = template["spec"]["containers"][0]["args"].as_array_mut()
    {
        args.push(json!("--rollback"));
    }
    let orders = orders(job);
    if !orders.is_empty()
        && let Some(args) = template["spec"]["containers"][0]["args"].as_array_mut()
    {
        args.extend(orders.iter().map(|w| json!(w)));
        template["metadata"]["annotations"][ORDERS] = json!(orders.join(" "));
    }
    let mut spec = json!({
        "replicas": size.0,
        "serviceName": workers(of),
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": selector(of)},
        "template": template,
    });
    if let Some(claim) = claim(job, state) {
        spec["volumeClaimTemplates"] = json!([claim]);
        let after = match job.spec.deletion_policy {
            DeletionPolicy::Retain | DeletionPolicy::Savepoint => "Retain",
            DeletionPolicy::Delete => "Delete",
        };
        spec["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenDeleted": after, "whenScaled": "Retain"});
    }
    let mut set = child(job, Kind::StatefulSet, workers(of), json!({"spec": spec}));
    if *memory != Memory::default() {
        set.body["metadata"]["annotations"] = json!({MEMORY: json!(memory).to_string()});
    }
    set
}

/// What a person orders by annotation, as the workers are told. Each word is about one moment of the log, and means nothing after it.
pub fn orders(job: &StreamingJob) -> Vec<String> {
    let annotations = job.metadata.annotations.as_ref();
    let said = |name: &str| annotations.and_then(|a| a.get(name)).map(String::as_str);
    let mut words = Vec::new();
    for loss in said(ACCEPT_LOSS).into_iter().flat_map(|l| l.split(',')) {
        words.extend(["--accept-loss".to_owned(), loss.trim().to_owned()]);
    }
    if let Some(back) = said(GO_BACK) {
        words.extend(["--go-back".to_owned(), back.to_owned()]);
    }
    words
}

/// The certificate is none of the version's: it is renewed while the version stays.
fn certify(template: &mut Value, issue: &Issue) {
    if let Some(volumes) = template["spec"]["volumes"].as_array_mut() {
        volumes.retain(|v| v["name"] != names::CERTIFICATE);
        volumes.push(json!({"name": names::CERTIFICATE, "secret": {"secretName": issue.secret}}));
    }
    let until = issue.until.to_rfc3339_opts(SecondsFormat::Secs, true);
    template["metadata"]["annotations"][CERTIFICATE_UNTIL] = json!(until);
}

fn claim(job: &StreamingJob, state: &StateSpec) -> Option<Value> {
    if state.ephemeral.is_some() {
        return None;
    }
    let volume = state.volume.clone().unwrap_or_default();
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": volume.size.to_string()}},
    });
    if !volume.storage_class_name.is_empty() {
        spec["storageClassName"] = json!(volume.storage_class_name);
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "labels": names::labels(job.metadata.name.as_deref().unwrap_or_default())},
        "spec": spec,
    }))
}

/// The pods of a version.
pub fn template(
    job: &StreamingJob,
    version: &str,
    settings: &Settings,
    savepoint: Option<&str>,
) -> Value {
    let of = job.metadata.name.as_deref().unwrap_or_default();
    let added = job.spec.workers.pod_template.clone().unwrap_or_default();
    let mut labels = added.metadata.labels.clone();
    labels.extend(names::labels(of));
    let mut annotations = added.metadata.annotations.clone();
    annotations.insert(VERSION.to_owned(), version.to_owned());
    let mut template = json!({
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": pod(job, version, settings, &added),
    });
    if let (Some(at), Some(args)) = (
        savepoint,
        template["spec"]["containers"][0]["args"].as_array_mut(),
    ) {
        args.extend([json!("--savepoint"), json!(at)]);
    }
    template
}

fn pod(job: &StreamingJob, version: &str, settings: &Settings, added: &PodTemplate) -> Value {
    let of = job.metadata.name.as_deref().unwrap_or_default();
    let account = match job.spec.workers.service_account_name.as_str() {
        "" => workers(of),
        named => named.to_owned(),
    };
    let mut mounts = vec![
        json!({"name": "job", "mountPath": RENDERED, "readOnly": true}),
        json!({"name": CLAIM, "mountPath": STATE}),
        json!({"name": "scratch", "mountPath": SCRATCH}),
        json!({"name": names::CERTIFICATE, "mountPath": CERTIFICATE, "readOnly": true}),
    ];
    let mut volumes = vec![
        json!({"name": "job", "configMap": {
            "name": names::version(of, version),
            "items": [{"key": MANIFEST, "path": MANIFEST}],
        }}),
        json!({"name": "scratch", "emptyDir": {}}),
    ];
    for secret in secrets(job, settings) {
        let name = volume_name(&secret);
        mounts.push(
            json!({"name": name, "mountPath": format!("{SECRETS}/{secret}"), "readOnly": true}),
        );
        volumes.push(json!({"name": name, "secret": {"secretName": secret}}));
    }
    if let Some(ephemeral) = &job.spec.state.ephemeral {
        volumes.push(json!({"name": CLAIM, "emptyDir": {"sizeLimit": ephemeral.size.to_string()}}));
    }
    mounts.extend(added.spec.volume_mounts.iter().map(|m| json!(m)));
    volumes.extend(added.spec.volumes.iter().map(|v| json!(v)));
    let mut spec = json!({
        "serviceAccountName": account,
        // What a person's own account may do is the person's affair; the job itself asks nothing of the API server.
        "automountServiceAccountToken": !job.spec.workers.service_account_name.is_empty(),
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": grace(job),
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(job, version, settings, mounts, added)],
        "volumes": volumes,
        "topologySpreadConstraints": spread(of, added),
        "tolerations": tolerations(job, added),
    });
    if let Value::Object(spec) = &mut spec {
        place(spec, added);
    }
    spec
}

/// A volume's name is a label, a Secret's may be longer and have dots.
fn volume_name(secret: &str) -> String {
    let name = format!("secret-{secret}");
    if name.len() <= 63 && !name.contains('.') {
        return name;
    }
    format!(
        "secret-{:016x}",
        xxhash_rust::xxh3::xxh3_64(secret.as_bytes())
    )
}

/// Over nodes, unless the person says how.
fn spread(job: &str, added: &PodTemplate) -> Value {
    if !added.spec.topology_spread_constraints.is_empty() {
        return json!(added.spec.topology_spread_constraints);
    }
    json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(job)},
    }])
}

/// A node that does not answer for `nodeLossTimeout` loses its pods, unless the person says otherwise.
fn tolerations(job: &StreamingJob, added: &PodTemplate) -> Value {
    let mut all: Vec<Value> = added.spec.tolerations.iter().map(|t| json!(t)).collect();
    let timeout = std::time::Duration::from(job.spec.workers.node_loss_timeout).as_secs();
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        if !all.iter().any(|t| t["key"] == key) {
            all.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": timeout,
            }));
        }
    }
    json!(all)
}

/// What a person may say of where the pods run.
fn place(spec: &mut Map<String, Value>, added: &PodTemplate) {
    let wanted = &added.spec;
    if !wanted.node_selector.is_empty() {
        spec.insert("nodeSelector".to_owned(), json!(wanted.node_selector));
    }
    if wanted.affinity != Default::default() {
        spec.insert("affinity".to_owned(), json!(wanted.affinity));
    }
    if !wanted.priority_class_name.is_empty() {
        spec.insert(
            "priorityClassName".to_owned(),
            json!(wanted.priority_class_name),
        );
    }
    if !wanted.image_pull_secrets.is_empty() {
        spec.insert(
            "imagePullSecrets".to_owned(),
            json!(wanted.image_pull_secrets),
        );
    }
}

fn container(
    job: &StreamingJob,
    version: &str,
    settings: &Settings,
    mounts: Vec<Value>,
    added: &PodTemplate,
) -> Value {
    let resources = job.spec.workers.resources.as_ref();
    let resources = resources.unwrap_or(&settings.resources);
    let restart = &job.spec.restart;
    let image = match job.spec.workers.image.as_str() {
        "" => &settings.image,
        named => named,
    };
    let probe = |path: &str, port: u16, rest: Value| {
        let mut probe = json!({"httpGet": {"path": path, "port": port}});
        if let (Value::Object(probe), Value::Object(rest)) = (&mut probe, rest) {
            probe.extend(rest);
        }
        probe
    };
    let of = job.metadata.name.as_deref().unwrap_or_default();
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let mut env: Vec<Value> = added.spec.env.iter().map(|e| json!(e)).collect();
    env.push(
        json!({"name": "PENSTOCK_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
    );
    json!({
        "name": "worker",
        "image": image,
        "command": ["penstock"],
        "args": [
            "--output", "json", "supervise",
            "--health", format!("0.0.0.0:{HEALTH_PORT}"),
            "--engine", format!("127.0.0.1:{PUBLIC_PORT}"),
            "--first-pause", restart.backoff.initial.to_string(),
            "--longest-pause", restart.backoff.max.to_string(),
            "--restarts-per-hour", restart.max_per_hour.to_string(),
            "--",
            format!("{RENDERED}/{MANIFEST}"),
            "--log-id", log_id(job).unwrap_or_default(),
            "--version", version,
            "--memory", memory(job, resources).to_string(),
            "--state", STATE,
            "--secrets", SECRETS,
            "--listen", format!("0.0.0.0:{PUBLIC_PORT}"),
            "--control", format!("0.0.0.0:{CONTROL_PORT}"),
            "--certificate", CERTIFICATE,
            "--exchange", format!("0.0.0.0:{EXCHANGE_PORT}"),
            "--peers", format!("{}-{{}}.{}.{namespace}.svc", workers(of), workers(of)),
            "--pod", "$(PENSTOCK_POD)",
        ],
        "env": env,
        "ports": [
            {"name": "public", "containerPort": PUBLIC_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
            {"name": "control", "containerPort": CONTROL_PORT, "protocol": "TCP"},
            {"name": "exchange", "containerPort": EXCHANGE_PORT, "protocol": "TCP"},
        ],
        // The supervisor answers at once; a worker that restores is alive.
        "startupProbe": probe("/healthz", HEALTH_PORT, json!({"periodSeconds": 1, "failureThreshold": 60})),
        "livenessProbe": probe("/healthz", HEALTH_PORT, json!({"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6})),
        "readinessProbe": probe("/readyz", PUBLIC_PORT, json!({"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3})),
        "resources": {"requests": list(&resources.requests), "limits": list(&resources.limits)},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    })
}

fn list(of: &penstock_crds::workers::ResourceList) -> Value {
    json!(of)
}

/// Bytes for state, staging and exchange: a share of the container's limit.
fn memory(job: &StreamingJob, resources: &Resources) -> u64 {
    const UNLIMITED: u64 = 2 << 30;
    let limit = match &resources.limits.memory {
        Some(limit) => quantity(limit).map(|bytes| bytes as u64),
        None => None,
    };
    limit.unwrap_or(UNLIMITED) / 100 * u64::from(job.spec.workers.memory)
}

/// Every Secret that the job names, each once.
fn secrets(job: &StreamingJob, settings: &Settings) -> Vec<String> {
    let spec = &job.spec;
    let sources = spec.sources.iter().filter_map(|s| {
        let kafka = s.kafka.as_ref().and_then(|k| k.secret_ref.as_ref());
        kafka.or_else(|| s.files.as_ref().and_then(|f| f.secret_ref.as_ref()))
    });
    let sinks = spec.sinks.iter().filter_map(|s| {
        let kafka = s.kafka.as_ref().and_then(|k| k.secret_ref.as_ref());
        kafka.or_else(|| s.files.as_ref().and_then(|f| f.secret_ref.as_ref()))
    });
    let storage = spec.checkpoint.storage.as_ref();
    let storage = storage.or(settings.storage.as_ref()).into_iter();
    let storage = storage.filter_map(|s| s.secret_ref.as_ref());
    let mut names: Vec<String> = sources
        .chain(sinks)
        .chain(storage)
        .map(|r| r.name.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}
