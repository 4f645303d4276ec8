//! What the schema has and this version of `penstock run` does not do: refused by name, or named in one line.

use crate::diagnostic::{Code, Diagnostic};
use crate::format::{Format, FormatKind};
use crate::job::{DeletionPolicy, Restart, StorageKind, StreamingJob, StreamingJobSpec, Upgrade};
use crate::workers::Workers;

/// What a manifest asks for that comes later. An error each, with a code of its own.
pub fn unsupported(spec: &StreamingJobSpec) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let sources = spec
        .sources
        .iter()
        .enumerate()
        .map(|(i, source)| (format!("sources[{i}].format"), &source.format));
    let sinks = spec
        .sinks
        .iter()
        .enumerate()
        .map(|(i, sink)| (format!("sinks[{i}].format"), &sink.format));
    for (path, format) in sources.chain(sinks) {
        match format.as_ref().and_then(Format::kind) {
            Some(FormatKind::Csv(_)) => {
                let fault = Diagnostic::error(
                    Code::CSV,
                    format!("{path}.csv"),
                    "CSV comes in a later version",
                );
                faults.push(fault.with_help("use json or raw"));
            }
            Some(FormatKind::Parquet(_)) => {
                let fault = Diagnostic::error(
                    Code::PARQUET,
                    format!("{path}.parquet"),
                    "Parquet comes in a later version",
                );
                faults.push(fault.with_help("use json"));
            }
            Some(FormatKind::Json(_) | FormatKind::Raw(_)) | None => {}
        }
    }
    match spec
        .checkpoint
        .storage
        .as_ref()
        .and_then(|storage| storage.kind())
    {
        Some(StorageKind::Gcs(_)) => {
            let fault = Diagnostic::error(
                Code::GCS,
                "checkpoint.storage.gcs",
                "Google Cloud Storage comes in a later version",
            );
            faults.push(fault.with_help("use s3 or local"));
        }
        Some(StorageKind::Azure(_)) => {
            let fault = Diagnostic::error(
                Code::AZURE,
                "checkpoint.storage.azure",
                "Azure Blob Storage comes in a later version",
            );
            faults.push(fault.with_help("use s3 or local"));
        }
        Some(StorageKind::S3(_) | StorageKind::Local(_)) | None => {}
    }
    faults
}

/// Workers of a job.
const WORKERS: u32 = 64;

/// What a manifest asks of a cluster that comes later.
pub fn unsupported_in_cluster(spec: &StreamingJobSpec) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    if let Some(many) = spec.workers.replicas.filter(|n| *n > WORKERS) {
        let fault = Diagnostic::error(
            Code::MANY_WORKERS,
            "workers.replicas",
            format!("{many} workers: this version runs {WORKERS} at most"),
        );
        faults.push(fault.with_help("use workers.slots for more threads in each"));
    }
    let grown = spec.autoscaling.as_ref().and_then(|a| a.max_replicas);
    if let Some(many) = grown.filter(|n| *n > WORKERS) {
        let fault = Diagnostic::error(
            Code::MANY_WORKERS,
            "autoscaling.maxReplicas",
            format!("{many} workers: this version runs {WORKERS} at most"),
        );
        faults.push(fault.with_help("use workers.slots for more threads in each"));
    }
    faults
}

/// Fields that a manifest sets, other than to their defaults, and that only a cluster acts on.
pub fn cluster_only_fields(job: &StreamingJob) -> Vec<&'static str> {
    let spec = &job.spec;
    let standard = Workers::default();
    let Workers {
        replicas,
        slots: _,
        memory,
        image,
        service_account_name,
        node_loss_timeout,
        resources,
        pod_template,
    } = &spec.workers;
    let set = [
        ("state.volume", spec.state.volume.is_some()),
        ("state.ephemeral", spec.state.ephemeral.is_some()),
        (
            "workers.replicas",
            replicas.is_some_and(|replicas| replicas != 1),
        ),
        ("workers.memory", *memory != standard.memory),
        ("workers.image", !image.is_empty()),
        (
            "workers.serviceAccountName",
            !service_account_name.is_empty(),
        ),
        (
            "workers.nodeLossTimeout",
            *node_loss_timeout != standard.node_loss_timeout,
        ),
        ("workers.resources", resources.is_some()),
        ("workers.podTemplate", pod_template.is_some()),
        ("autoscaling", spec.autoscaling.is_some()),
        ("upgrade", spec.upgrade != Upgrade::default()),
        ("restart", spec.restart != Restart::default()),
        ("restoreFrom", spec.restore_from.is_some()),
        ("startFresh", spec.start_fresh),
        ("suspend", spec.suspend),
        (
            "deletionPolicy",
            spec.deletion_policy != DeletionPolicy::default(),
        ),
    ];
    set.into_iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| name)
        .collect()
}
