//! Names and labels of what the controller makes. A job's name has at most 40 characters, so every name here fits a label.

use std::collections::BTreeMap;

/// Who writes: the field manager of every apply, and the value of `managed-by`.
pub const MANAGER: &str = "penstock-operator";
/// The field manager of finalizers alone: with another name than of the status, so that applying one takes nothing from the other.
pub const HOLDER: &str = "penstock-operator-finalizer";
/// The label that names the job.
pub const JOB: &str = "penstock.dev/job";
/// The label by which a service account's owner lends it to jobs.
pub const ALLOW_JOBS: &str = "penstock.dev/allow-jobs";
/// The annotation that names a version, on pods and on the StatefulSet's template.
pub const VERSION: &str = "penstock.dev/version";
/// The annotation with the hash of what was applied last.
pub const APPLIED: &str = "penstock.dev/applied";
/// The annotation by which the StatefulSet remembers versions: accepted, on its way, failed, ended.
pub const MEMORY: &str = "penstock.dev/memory";
/// The annotation with the generation of the job that the StatefulSet was written for.
pub const GENERATION: &str = "penstock.dev/generation";
/// The annotation of pods with the moment at which their certificate ends.
pub const CERTIFICATE_UNTIL: &str = "penstock.dev/certificate-until";

/// The annotation of pods that were started by a person's word, with these words.
pub const ORDERS: &str = "penstock.dev/orders";
/// The finalizer of jobs and savepoints that leave something in their checkpoint storage.
pub const FINALIZER: &str = "penstock.dev/checkpoint";
/// The label that names the savepoint of a step's pod.
pub const SAVEPOINT: &str = "penstock.dev/savepoint";
/// What a person may annotate a job with: to go on without input that is gone, `SOURCE@EPOCH`, several by commas.
pub const ACCEPT_LOSS: &str = "penstock.dev/accept-loss";
/// To go back to an earlier epoch, `EPOCH@REQUEST`.
pub const GO_BACK: &str = "penstock.dev/go-back";
/// To let a job or a savepoint go without its clean-up: `true`.
pub const SKIP_CLEANUP: &str = "penstock.dev/skip-cleanup";

/// The StatefulSet, its headless Service, its disruption budget, its network policy and its service account.
pub fn workers(job: &str) -> String {
    format!("{job}-worker")
}

/// The pod of an ordinal.
pub fn pod(job: &str, ordinal: u32) -> String {
    format!("{}-{ordinal}", workers(job))
}

/// The claim of a pod, by the pod's name.
pub fn claim(pod: &str) -> String {
    format!("{CLAIM}-{pod}")
}

/// The claim template.
pub const CLAIM: &str = "state";

/// The ConfigMap of one version.
pub fn version(job: &str, version: &str) -> String {
    format!("{job}-v-{version}")
}

/// The Secret with a certificate of the workers, by the hash of what it is of (`issue`).
pub fn certificate(job: &str, issue: &str) -> String {
    format!("{job}-c-{issue}")
}

/// The volume of a pod's certificate.
pub const CERTIFICATE: &str = "certificate";

/// The savepoint that a job leaves when it is deleted: of this job, and of no later one of its name.
pub fn farewell(job: &str, uid: &str) -> String {
    format!("{job}-{}", uid.get(..8).unwrap_or(uid))
}

/// The pod of a step on the log of a job, and the ConfigMap that it reads where the job is gone.
pub fn step(of: &str, step: &str) -> String {
    format!("{of}-{step}")
}

/// The component of pods that run a job; a step's pods have another.
pub const WORKER: &str = "worker";

/// What picks the pods of a job.
pub fn selector(job: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "penstock".to_owned()),
        (JOB.to_owned(), job.to_owned()),
    ])
}

/// The recommended labels of every child.
pub fn labels(job: &str) -> BTreeMap<String, String> {
    let mut labels = selector(job);
    for (name, value) in [
        ("app.kubernetes.io/instance", job),
        ("app.kubernetes.io/component", WORKER),
        ("app.kubernetes.io/part-of", "penstock"),
        ("app.kubernetes.io/managed-by", MANAGER),
    ] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
}

/// A selector as text, for the scale subresource.
pub fn selector_text(job: &str) -> String {
    let pairs = selector(job).into_iter().map(|(k, v)| format!("{k}={v}"));
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_longest_job_has_names_that_fit_a_label() {
        let job = "j".repeat(penstock_crds::validate::MAX_JOB_NAME);
        for name in [
            super::workers(&job),
            super::pod(&job, 1023),
            super::claim(&super::pod(&job, 1023)),
            super::version(&job, "0123456789abcdef"),
            super::certificate(&job, "0123456789abcdef"),
        ] {
            assert!(name.len() <= 63, "{name}");
        }
    }
}
