//! What an edit may not change: the job's history stands on it. Said with the reason and the way out.

use crate::diagnostic::{Code, Diagnostic};
use crate::job::{StateSpec, Storage, StreamingJob};

/// Every fault of a change from `old` to `new`; both are valid by themselves.
pub fn transition(old: &StreamingJob, new: &StreamingJob) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let (before, after) = (&old.spec, &new.spec);
    if before.key_groups != after.key_groups {
        let text = format!(
            "it was {} and is {}: state is divided by it, so it is fixed for the job's life",
            before.key_groups, after.key_groups
        );
        faults.push(fixed(
            "keyGroups",
            text,
            "set it back, or give the job another name",
        ));
    }
    for (i, sink) in after.sinks.iter().enumerate() {
        let Some(was) = before.sinks.iter().find(|s| s.name == sink.name) else {
            continue;
        };
        if was.shards != sink.shards {
            let text = format!(
                "it was {} and is {}: each shard has its own marker, so their number is fixed for the sink's life",
                was.shards, sink.shards
            );
            let path = format!("sinks[{i}].shards");
            faults.push(fixed(
                &path,
                text,
                "set it back, or give the sink another name",
            ));
        }
    }
    let place = |storage: &Option<Storage>| {
        storage.clone().map(|s| Storage {
            secret_ref: None,
            ..s
        })
    };
    if place(&before.checkpoint.storage) != place(&after.checkpoint.storage) {
        let text = "the job's log lies where it was: elsewhere the job would begin anew";
        let help =
            "set it back; to move a job, take a Savepoint and start a job of another name from it";
        faults.push(fixed("checkpoint.storage", text.to_owned(), help));
    }
    faults.extend(volume(&before.state, &after.state));
    faults
}

/// What may not become of volumes that are there.
pub fn volume(old: &StateSpec, new: &StateSpec) -> Vec<Diagnostic> {
    const HELP: &str = "set it back, or give the job another name";
    if old.ephemeral.is_some() != new.ephemeral.is_some() {
        let text = "a job with volumes keeps them, and one without gets none: a StatefulSet cannot change between them";
        return vec![fixed("state.ephemeral", text.to_owned(), HELP)];
    }
    if old.ephemeral.is_some() {
        return Vec::new();
    }
    let was = old.volume.clone().unwrap_or_default();
    let is = new.volume.clone().unwrap_or_default();
    let mut faults = Vec::new();
    if is.size < was.size {
        let text = format!(
            "it was {} and is {}: volumes do not shrink",
            was.size, is.size
        );
        faults.push(fixed("state.volume.size", text, "leave it as it was"));
    }
    if is.storage_class_name != was.storage_class_name {
        let text = "the class of volumes that are there cannot change";
        faults.push(fixed(
            "state.volume.storageClassName",
            text.to_owned(),
            HELP,
        ));
    }
    faults
}

fn fixed(path: &str, message: String, help: &str) -> Diagnostic {
    Diagnostic::error(Code::FIXED, path, message).with_help(help)
}
