//! A job as a watch keeps it: one manifest that cannot be read must not end the watch of all. Who and where it is, and what its status
//! says, is known of that one too.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use penstock_crds::job::StreamingJob;
use serde::de::{Deserialize, Deserializer, Error};
use serde_json::Value;

/// A job, or what can be read of one.
#[derive(Debug, Clone)]
pub struct Guarded(pub Result<StreamingJob, Unread>);

/// What can be read of a job that cannot.
#[derive(Debug, Clone)]
pub struct Unread {
    pub metadata: ObjectMeta,
    pub conditions: Vec<Condition>,
}

impl Guarded {
    /// The conditions in its status.
    pub fn conditions(&self) -> &[Condition] {
        match &self.0 {
            Ok(job) => job.status.as_ref().map_or(&[], |s| &s.conditions),
            Err(unread) => &unread.conditions,
        }
    }
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(from)?;
        if let Ok(job) = StreamingJob::deserialize(&object) {
            return Ok(Self(Ok(job)));
        }
        let metadata =
            serde_json::from_value(object["metadata"].take()).map_err(D::Error::custom)?;
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let conditions = conditions.into_iter().flatten();
        let conditions = conditions.filter_map(|c| Condition::deserialize(c).ok());
        Ok(Self(Err(Unread {
            metadata,
            conditions: conditions.collect(),
        })))
    }
}

impl Resource for Guarded {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        StreamingJob::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        StreamingJob::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        StreamingJob::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        StreamingJob::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(job) => job.meta(),
            Err(unread) => &unread.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(job) => job.meta_mut(),
            Err(unread) => &mut unread.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_a_job_that_cannot_be_read_the_name_and_the_status_are_known() {
        let condition = json!({
            "type": "Stalled", "status": "True", "reason": "Invalid", "message": "the manifest cannot be read",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let mut object = json!({
            "metadata": {"name": "payments", "namespace": "risk"},
            "spec": {"keyGroups": "many"},
            "status": {"phase": 7, "conditions": [condition, "strange"]},
        });
        let read = |object: &Value| serde_json::from_value::<Guarded>(object.clone());
        let unread = read(&object).unwrap();
        assert!(unread.0.is_err());
        assert_eq!(unread.meta().name.as_deref(), Some("payments"));
        let types: Vec<&str> = unread
            .conditions()
            .iter()
            .map(|c| c.type_.as_str())
            .collect();
        assert_eq!(types, ["Stalled"]);
        object["metadata"] = json!("nowhere");
        assert!(read(&object).is_err());
        let job = read(&json!(crate::build::tests::job())).unwrap();
        assert!(job.0.is_ok() && job.conditions().is_empty());
    }
}
