//! What a job begins with: the savepoint that its spec names must be there, be whole, and lie in the job's own storage.

use penstock_crds::job::{RestoreKind, Storage, StorageKind};
use penstock_crds::savepoint::SavepointPhase;

use crate::facts::Facts;
use crate::settings::Settings;
use crate::status::Reason;

/// URL of everything that the jobs of a namespace keep in a storage.
pub fn url(storage: &Storage, namespace: &str) -> Option<String> {
    let StorageKind::S3(s3) = storage.kind()? else {
        return None;
    };
    let prefix = s3.prefix.trim_matches('/');
    let below = if prefix.is_empty() { "" } else { "/" };
    Some(format!("s3://{}{below}{prefix}/{namespace}", s3.bucket))
}

/// `<job>/<logId>` of the savepoint that the spec restores from; `None`: from none.
///
/// # Errors
/// Why it cannot be restored from, yet or at all.
pub fn place(facts: &Facts, settings: &Settings) -> Result<Option<String>, (Reason, String)> {
    let spec = &facts.job.spec;
    let restore = spec.restore_from.as_ref().and_then(|r| r.kind());
    let Some(RestoreKind::Savepoint(name)) = restore else {
        return Ok(None);
    };
    let not_ready = |text: String| Err((Reason::SavepointNotReady, text));
    let Some(savepoint) = &facts.restores_from else {
        return not_ready(format!("savepoint {name} is not in this namespace"));
    };
    let status = savepoint.status.clone().unwrap_or_default();
    if status.phase != Some(SavepointPhase::Completed) {
        return not_ready(format!("savepoint {name} is not completed yet"));
    }
    let storage = spec
        .checkpoint
        .storage
        .as_ref()
        .or(settings.storage.as_ref());
    let namespace = facts.job.metadata.namespace.as_deref().unwrap_or_default();
    let own = storage.and_then(|s| url(s, namespace)).unwrap_or_default();
    let there = status.location.unwrap_or_default();
    match there.strip_prefix(&format!("{own}/")) {
        Some(place) if place.split('/').count() == 2 => Ok(Some(place.to_owned())),
        _ => Err((
            Reason::Invalid,
            format!(
                "spec.restoreFrom.savepoint: savepoint {name} is in {there}, and the job's storage is {own}: a job begins with savepoints of its own storage [PR0411]"
            ),
        )),
    }
}
