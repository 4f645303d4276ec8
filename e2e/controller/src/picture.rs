//! What a namespace holds, so that two lives of the same job can be compared: without what differs from life to life (identities,
//! times, names of namespaces) and with the starts of workers, which must not differ.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use penstock_operator::names::{APPLIED, MEMORY, VERSION};
use serde_json::{Value, json};

use crate::engine::Engine;

/// By kind and name.
pub type Picture = BTreeMap<String, Value>;

/// What is said of an object whose owner is gone: the garbage collector comes for it.
const GARBAGE: &str = ", without its owner";

/// Whether the garbage collector has something to do.
pub fn has_garbage(picture: &Picture) -> bool {
    picture.keys().any(|at| at.ends_with(GARBAGE))
}

/// Everything that the controller makes, and what Kubernetes makes of it.
const KINDS: [(&str, &str, &str, &str); 11] = [
    ("penstock.dev", "v1alpha1", "StreamingJob", "streamingjobs"),
    ("penstock.dev", "v1alpha1", "Savepoint", "savepoints"),
    ("apps", "v1", "StatefulSet", "statefulsets"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "Service", "services"),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("", "v1", "Pod", "pods"),
    (
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
    ),
    (
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
    ),
];

/// The picture of a namespace with one job, whose uid is empty before it was made; `own`: the namespace of its controller.
pub async fn take(
    admin: &Client,
    (namespace, own): (&str, &str),
    (job, uid): (&str, &str),
    engine: &Engine,
) -> Result<Picture> {
    let mut picture = Picture::new();
    // Name, version, and what it is called here.
    let mut certificates: Vec<(String, String, String)> = Vec::new();
    let mut uids = BTreeSet::new();
    let mut owned: Vec<(String, String)> = Vec::new();
    for (group, version, kind, plural) in KINDS {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let api: Api<DynamicObject> = Api::namespaced_with(admin.clone(), namespace, &resource);
        let mut objects = api.list(&ListParams::default()).await?.items;
        // Those of one version are told apart by which came first.
        objects.sort_by_key(revision);
        for object in objects {
            uids.extend(object.metadata.uid.clone());
            let owners = object.metadata.owner_references.iter().flatten();
            let owners: Vec<String> = owners.map(|o| o.uid.clone()).collect();
            let object = serde_json::to_value(&object)?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if kind == "Secret" {
                // Named by the hash of what it is of, identities among it.
                let version = object["metadata"]["annotations"][VERSION].as_str();
                let version = version.unwrap_or_default().to_owned();
                let before = certificates.iter().filter(|(_, v, _)| *v == version);
                let of = match before.count() {
                    0 => format!("certificate-of-{version}"),
                    n => format!("certificate-of-{version}#{}", n + 1),
                };
                certificates.push((name.to_owned(), version, of));
            }
            let name = nameless(name, uid);
            let at = format!("{kind} {name}");
            owned.extend(owners.into_iter().map(|owner| (at.clone(), owner)));
            picture.insert(at, bare(kind, object.clone()));
        }
    }
    for (at, _) in owned.iter().filter(|(_, owner)| !uids.contains(owner)) {
        if let Some(object) = picture.remove(at) {
            picture.insert(format!("{at}{GARBAGE}"), object);
        }
    }
    let starts = engine.starts(namespace, job);
    picture.insert("starts of workers".to_owned(), json!(starts));
    let named = |text: &str| {
        let each = certificates.iter();
        each.fold(text.to_owned(), |text, (name, _, of)| {
            text.replace(name, of)
        })
    };
    picture = picture
        .into_iter()
        .map(|(at, value)| (named(&at), value))
        .collect();
    for value in picture.values_mut() {
        let text = nameless(&named(&value.to_string()), uid);
        *value = serde_json::from_str(&text.replace(namespace, "NAMESPACE").replace(own, "OWN"))?;
    }
    Ok(picture)
}

/// Of when it was written last.
fn revision(object: &DynamicObject) -> u64 {
    let version = object.metadata.resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Without what a job's uid makes of names.
fn nameless(text: &str, uid: &str) -> String {
    let Some((first, _)) = uid.split_once('-') else {
        return text.to_owned();
    };
    text.replace(uid, "UID")
        .replace(&uid.replace('-', ""), "LOG")
        .replace(&format!("-{first}"), "-FIRST")
}

/// Whether an event of this reason was told in the namespace, once more or for the first time, since then.
pub async fn is_told(
    admin: &Client,
    namespace: &str,
    reason: &str,
    since: Timestamp,
) -> Result<bool> {
    let api: Api<Event> = Api::namespaced(admin.clone(), namespace);
    let events = api.list(&ListParams::default()).await?;
    Ok(events.iter().any(|e| {
        let again = e.series.as_ref().map(|s| s.last_observed_time.0);
        let told = again.max(e.event_time.as_ref().map(|t| t.0));
        e.reason.as_deref() == Some(reason) && told.is_some_and(|at| at >= since)
    }))
}

/// What differs, a line for each.
pub fn differences(is: &Picture, was: &Picture) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in was {
        match is.get(name) {
            None => found.push(format!("{name} is missing")),
            Some(other) => differ(name, other, value, &mut found),
        }
    }
    for name in is.keys().filter(|n| !was.contains_key(*n)) {
        found.push(format!("{name} is too much"));
    }
    found
}

fn differ(at: &str, is: &Value, was: &Value, found: &mut Vec<String>) {
    match (is, was) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let (a, b) = (a.get(key), b.get(key));
                differ(
                    &format!("{at}.{key}"),
                    a.unwrap_or(&Value::Null),
                    b.unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        _ if is == was => {}
        _ => {
            let short = |v: &Value| v.to_string().chars().take(150).collect::<String>();
            found.push(format!("{at}: {} and not {}", short(is), short(was)));
        }
    }
}

fn bare(kind: &str, mut object: Value) -> Value {
    let owners: Vec<Value> = object["metadata"]["ownerReferences"]
        .as_array()
        .map(|all| {
            let named = all.iter().map(|o| json!([o["kind"], o["name"]]));
            named.collect()
        })
        .unwrap_or_default();
    let status = object["status"].take();
    let mut annotations = object["metadata"]["annotations"].take();
    if let Some(all) = annotations.as_object_mut() {
        // Of the whole child, identities and all.
        all.remove(APPLIED);
        if let Some(memory) = all.get(MEMORY).and_then(|m| m.as_str()) {
            let mut memory: Value = serde_json::from_str(memory).unwrap_or_default();
            if memory["trial"].is_object() {
                memory["trial"]["since"] = json!("then");
            }
            all.insert(MEMORY.to_owned(), memory);
        }
    }
    let mut labels = object["metadata"]["labels"].take();
    if let Some(all) = labels.as_object_mut() {
        // Of the template with its identities.
        all.remove("controller-revision-hash");
    }
    let mut bare = json!({
        "owners": owners,
        "annotations": annotations,
        "labels": labels,
        "finalizers": object["metadata"]["finalizers"],
        "going": object["metadata"]["deletionTimestamp"].is_string(),
    });
    match kind {
        "Secret" => {
            let keys = object["data"]
                .as_object()
                .map(|d| d.keys().collect::<Vec<_>>());
            bare["data"] = json!(keys);
        }
        "Pod" => {
            let conditions = status["conditions"].as_array();
            let ready = conditions.and_then(|c| c.iter().find(|c| c["type"] == "Ready"));
            bare["ready"] = ready.map_or(Value::Null, |c| c["status"].clone());
            bare["args"] = object["spec"]["containers"][0]["args"].take();
        }
        "PersistentVolumeClaim" => bare["spec"] = object["spec"]["resources"].take(),
        "ConfigMap" => bare["data"] = object["data"].take(),
        "Savepoint" => {
            bare["spec"] = object["spec"].take();
            bare["phase"] = status["phase"].clone();
            bare["epoch"] = status["epoch"].clone();
        }
        "StreamingJob" => {
            bare["spec"] = object["spec"].take();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let conditions = conditions
                .iter()
                .map(|c| json!([c["type"], c["status"], c["reason"]]));
            bare["conditions"] = conditions.collect();
            for name in [
                "observedGeneration",
                "phase",
                "version",
                "replicas",
                "desiredReplicas",
                "readyReplicas",
            ] {
                bare[name] = status[name].clone();
            }
        }
        _ => bare["spec"] = object["spec"].take(),
    }
    bare
}
