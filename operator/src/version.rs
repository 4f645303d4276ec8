//! A version of a job: everything that makes a worker what it is, under one name. It is made once, when the spec asks for it for
//! the first time, and kept in a ConfigMap: a controller that was upgraded, or has other settings, goes on with what was made.
//! What only the controller acts on (suspend, autoscaling, deletion) is not part of it.

use k8s_openapi::api::core::v1::ConfigMap;
use penstock_crds::job::{StreamingJob, StreamingJobSpec};
use serde_json::Value;

use crate::settings::Settings;

/// The data of the ConfigMap: what the workers read, and the template of their pods.
pub const MANIFEST: &str = "job.yaml";
pub const TEMPLATE: &str = "template.json";

/// A version as it was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// Sixteen hex digits.
    pub name: String,
    /// The job as the workers read it.
    pub manifest: String,
    /// A PodTemplateSpec.
    pub template: Value,
}

impl Version {
    /// The job as it was when the version was made; `None` where a newer controller wrote what this one cannot read.
    pub fn job(&self) -> Option<StreamingJob> {
        serde_yaml::from_str(&self.manifest).ok()
    }

    /// Out of its ConfigMap; `None` where somebody else wrote it.
    pub fn read(of: &ConfigMap, name: &str) -> Option<Self> {
        let data = of.data.as_ref()?;
        Some(Self {
            name: name.to_owned(),
            manifest: data.get(MANIFEST)?.clone(),
            template: serde_json::from_str(data.get(TEMPLATE)?).ok()?,
        })
    }
}

/// The name of the version that a spec asks for.
pub fn name_of(job: &StreamingJob) -> String {
    let spec = StreamingJobSpec {
        workers: penstock_crds::workers::Workers {
            replicas: None,
            ..job.spec.workers.clone()
        },
        ..of_the_run(job.spec.clone())
    };
    let text = serde_json::to_vec(&spec).expect("a spec that was read can be written");
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&text))
}

/// The job as its workers read it.
pub fn manifest(job: &StreamingJob, settings: &Settings) -> String {
    let mut spec = StreamingJobSpec {
        upgrade: job.spec.upgrade.clone(),
        ..of_the_run(job.spec.clone())
    };
    if spec.checkpoint.storage.is_none() {
        spec.checkpoint.storage.clone_from(&settings.storage);
    }
    spec.workers = penstock_crds::workers::Workers {
        slots: job.spec.workers.slots,
        ..Default::default()
    };
    let mut bare = StreamingJob::new(job.metadata.name.as_deref().unwrap_or_default(), spec);
    bare.metadata.namespace.clone_from(&job.metadata.namespace);
    serde_yaml::to_string(&bare).expect("a job that was read can be written")
}

/// The spec without what only the controller acts on.
fn of_the_run(spec: StreamingJobSpec) -> StreamingJobSpec {
    StreamingJobSpec {
        suspend: false,
        autoscaling: None,
        deletion_policy: Default::default(),
        upgrade: Default::default(),
        state: penstock_crds::job::StateSpec {
            volume: None,
            ..spec.state
        },
        ..spec
    }
}

/// The identity of the log that the pods of a template are told.
pub fn log_id_in(template: &Value) -> Option<String> {
    let args = template["spec"]["containers"][0]["args"].as_array()?;
    let at = args.iter().position(|a| a == "--log-id")?;
    args.get(at + 1)?.as_str().map(str::to_owned)
}

/// The identity of a job's log: its uid, so that whoever reads both knows them to be one.
pub fn log_id(job: &StreamingJob) -> Option<String> {
    let uid = job.metadata.uid.as_ref()?;
    let hex: String = uid.chars().filter(char::is_ascii_hexdigit).collect();
    (hex.len() == 32).then(|| hex.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::name_of;
    use crate::build::tests::job;

    /// A controller that is upgraded goes on with the versions that are there: it gives a spec that did not change the name that it
    /// had. A new member of the spec is left out of the text when it has its default (`skip_serializing_if`); then this stays.
    #[test]
    fn the_name_of_a_version_outlives_the_controller_that_gave_it() {
        assert_eq!(name_of(&job()), "a1db63380deec6c8");
    }
}
