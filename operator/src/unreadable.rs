//! A StreamingJob that the schema let pass and that still cannot be read: an affinity of another shape, a size beyond all numbers. It
//! says so in its own status, in the words of the webhook, and keeps nobody from reading the others.

use chrono::{DateTime, Utc};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use penstock_crds::job::StreamingJob;
use serde_json::{Value, json};

use crate::names::MANAGER;
use crate::status::{Reason, bounded};

/// The job of an object.
///
/// # Errors
/// Why it is none.
pub fn read(object: &Value) -> Result<StreamingJob, String> {
    serde_json::from_value(object.clone()).map_err(|e| format!("the manifest cannot be read: {e}"))
}

/// The status of one that cannot be read; `None` where it says so already. What runs goes on, so its numbers stay.
pub fn status(live: &Value, why: &str, now: DateTime<Utc>) -> Option<Value> {
    const TOLD: [(&str, &str); 2] = [("Ready", "False"), ("Stalled", "True")];
    let generation = &live["metadata"]["generation"];
    let message = bounded(why);
    let reason = Reason::Invalid.name();
    let before = live["status"]["conditions"].as_array();
    let before = before.map(Vec::as_slice).unwrap_or_default();
    let old = |type_: &str| before.iter().find(|c| c["type"] == type_);
    let said = TOLD.iter().all(|(type_, status)| {
        old(type_).is_some_and(|c| {
            c["status"] == *status
                && c["reason"] == reason
                && c["message"] == message
                && c["observedGeneration"] == *generation
        })
    });
    if said {
        return None;
    }
    let kept = before.iter().filter(|c| {
        !["Ready", "Stalled", "Reconciling"]
            .iter()
            .any(|t| c["type"] == *t)
    });
    let told = TOLD.iter().map(|(type_, status)| {
        let same = old(type_).filter(|c| c["status"] == *status);
        let since = same.map_or_else(
            || json!(now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
            |c| c["lastTransitionTime"].clone(),
        );
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    });
    let conditions: Vec<Value> = kept.cloned().chain(told).collect();
    let mut status = live["status"].as_object().cloned().unwrap_or_default();
    status.insert("observedGeneration".to_owned(), generation.clone());
    status.insert("conditions".to_owned(), json!(conditions));
    Some(Value::Object(status))
}

/// Writes it, once for each generation.
///
/// # Errors
/// When the API server does not answer.
pub async fn tell(client: &Client, namespace: &str, name: &str) -> Result<(), kube::Error> {
    let resource = kube::core::ApiResource::erase::<StreamingJob>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let Some(live) = api.get_opt(name).await? else {
        return Ok(());
    };
    let name = live.name_any();
    let live = serde_json::to_value(&live).map_err(kube::Error::SerdeError)?;
    let Err(why) = read(&live) else {
        // It was mended meanwhile; the watch tells.
        return Ok(());
    };
    let Some(status) = status(&live, &why, crate::clock::now()) else {
        return Ok(());
    };
    let body = json!({
        "apiVersion": StreamingJob::api_version(&()),
        "kind": StreamingJob::kind(&()),
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    api.patch_status(&name, &params, &Patch::Apply(&body))
        .await?;
    tracing::warn!(namespace, job = name, why, "unreadable");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_and_what_runs_keeps_its_numbers() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut live = json!({
            "metadata": {"generation": 2},
            "status": {"epoch": {"number": 7}, "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Reconciling", "status": "True"},
                {"type": "Available", "status": "True"},
            ]},
        });
        let told = status(&live, "why", now).unwrap();
        assert_eq!(told["epoch"]["number"], 7);
        let types: Vec<&str> = told["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["Available", "Ready", "Stalled"]);
        live["status"] = told;
        assert_eq!(status(&live, "why", now), None);
        live["metadata"]["generation"] = json!(3);
        assert!(status(&live, "why", now).is_some(), "another edit");
    }
}
