//! Nodes that are gone, and volumes that are gone with them. Nodes are not read: what Kubernetes says of the pods is enough.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Doomed;
use crate::facts::Facts;
use crate::names::claim;

/// A pod that is to be gone by now may still say goodbye for so long.
const GOODBYE: Duration = Duration::from_secs(15);
/// A pod that no node takes, because of its volume, has waited long enough.
const WAITED: Duration = Duration::from_secs(30);

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether a moment is so long ago.
fn since(facts: &Facts, at: Option<&Time>, long: Duration) -> bool {
    at.is_some_and(|at| facts.now.timestamp() - at.0.as_second() >= long.as_secs() as i64)
}

/// What brings back what was on a node that is gone: pods that go at once, and claims that go with them. Nothing of it depends on
/// what else is wrong with the job.
pub fn repairs(facts: &Facts) -> (Vec<Doomed>, Vec<String>) {
    let (claims, stranded): (Vec<String>, Vec<Doomed>) = stranded(facts).into_iter().unzip();
    let force = lost(facts).into_iter().chain(stranded);
    (force.collect(), claims)
}

/// Pods on their way out that nobody sees to it: evicted from a node that does not answer, which happens after
/// `workers.nodeLossTimeout`, or beyond the time that they were given.
fn lost(facts: &Facts) -> Vec<Doomed> {
    let pods = facts.pods.iter().chain(&facts.steps).filter(|pod| {
        let Some(deadline) = &pod.metadata.deletion_timestamp else {
            return false;
        };
        let evicted = condition(pod, "DisruptionTarget").is_some_and(|c| {
            c.status == "True" && c.reason.as_deref() == Some("DeletionByTaintManager")
        });
        evicted || since(facts, Some(deadline), GOODBYE)
    });
    pods.filter_map(at_once).collect()
}

fn at_once(pod: &Pod) -> Option<Doomed> {
    let doomed = Doomed::of(pod)?;
    let grace = Some(0);
    Some(Doomed { grace, ..doomed })
}

/// In the words of schedulers: "had volume node affinity conflict", and in Kubernetes 1.34 "didn't match PersistentVolume's node
/// affinity".
fn is_about_the_volume(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("volume") && message.contains("node affinity")
}

/// Pods that no node takes, because the volume of their claim is on one that is gone, each with its claim.
fn stranded(facts: &Facts) -> Vec<(String, Doomed)> {
    let pods = facts.pods.iter().filter(|pod| {
        condition(pod, "PodScheduled").is_some_and(|c| {
            let message = c.message.as_deref().unwrap_or_default();
            c.status == "False"
                && is_about_the_volume(message)
                && since(facts, c.last_transition_time.as_ref(), WAITED)
        })
    });
    pods.filter_map(|pod| {
        let doomed = at_once(pod)?;
        Some((claim(&doomed.name), doomed))
    })
    .collect()
}
