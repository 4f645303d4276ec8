//! Which certificate the workers of a version start with, and until when it holds: pure. Pods that start in a later period get a
//! newer one; a pod that runs keeps its own, so a certificate lives much longer than any pod should.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::apps::v1::StatefulSet;
use penstock_crds::job::StreamingJob;

use crate::names;

/// Pods that start within the same so many days have one certificate.
const PERIOD: i64 = 90;
/// Days that a certificate holds, from the first of its period.
const LIFETIME: i64 = 1095;

/// A certificate of a job's workers. Its Secret's name says all of it, so that one is never taken for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// The version of the job.
    pub version: String,
    /// The Secret that holds it.
    pub secret: String,
    pub from: DateTime<Utc>,
    pub until: DateTime<Utc>,
}

/// The one that pods get which start now. `authority`: the identity of who signs it.
pub fn of(job: &StreamingJob, version: &str, authority: &str, now: DateTime<Utc>) -> Issue {
    const DAY: i64 = 86_400;
    let first = now.timestamp().div_euclid(PERIOD * DAY) * PERIOD * DAY;
    let first = DateTime::from_timestamp(first, 0).unwrap_or(now);
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    // Since workers connect to each other: one of before does not let them.
    let text = format!("{uid} {version} {authority} {} peers", first.timestamp());
    let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    let name = job.metadata.name.as_deref().unwrap_or_default();
    Issue {
        version: version.to_owned(),
        secret: names::certificate(name, &hash),
        // Clocks differ.
        from: first - TimeDelta::days(1),
        until: first + TimeDelta::days(LIFETIME),
    }
}

/// The Secret that pods of this StatefulSet get their certificate from. It is made before the StatefulSet says so.
pub fn named_by(set: &StatefulSet) -> Option<&str> {
    let pod = set.spec.as_ref()?.template.spec.as_ref()?;
    let mut volumes = pod.volumes.iter().flatten();
    let volume = volumes.find(|v| v.name == names::CERTIFICATE)?;
    volume.secret.as_ref()?.secret_name.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::job;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_later_pod_gets_a_newer_certificate_and_each_outlives_its_pods() {
        let now = at("2026-11-22T12:00:00Z");
        let first = of(&job(), "v", "a", now);
        assert_eq!(of(&job(), "v", "a", now + TimeDelta::hours(1)), first);
        let next = of(&job(), "v", "a", now + TimeDelta::days(PERIOD));
        assert_ne!(next.secret, first.secret);
        assert_eq!(next.from - first.from, TimeDelta::days(PERIOD));
        assert!(first.from < now);
        // Even one that starts at the end of the period.
        assert!(first.until - next.from > TimeDelta::days(1000));
    }

    #[test]
    fn no_two_jobs_versions_or_authorities_share_one() {
        let now = at("2026-11-22T12:00:00Z");
        let one = of(&job(), "v", "a", now).secret;
        let mut later = job();
        later.metadata.uid = Some("another".to_owned());
        assert_ne!(of(&later, "v", "a", now).secret, one);
        assert_ne!(of(&job(), "w", "a", now).secret, one);
        assert_ne!(of(&job(), "v", "b", now).secret, one);
    }
}
