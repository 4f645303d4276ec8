//! Names and labels of what the controller makes. A job's name has at most 40 characters, so every name here fits a label.

use std::collections::BTreeMap;

/// Who writes: the field manager of every apply, and the value of `managed-by`.
pub const MANAGER: &str = "penstock-operator";
/// The label that names the job.
pub const JOB: &str = "penstock.dev/job";
/// The annotation that names a version, on pods and on the StatefulSet's template.
pub const VERSION: &str = "penstock.dev/version";
/// The annotation with the hash of what was applied last.
pub const APPLIED: &str = "penstock.dev/applied";
/// The annotation by which the StatefulSet remembers versions: accepted, on its way, failed, ended.
pub const MEMORY: &str = "penstock.dev/memory";
/// The annotation with the generation of the job that the StatefulSet was written for.
pub const GENERATION: &str = "penstock.dev/generation";

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

/// The Secret with the workers' certificate of one version.
pub fn certificate(job: &str, version: &str) -> String {
    format!("{job}-c-{version}")
}

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
        ("app.kubernetes.io/component", "worker"),
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
