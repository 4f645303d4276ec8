//! Decisions by table: what the facts show, and what follows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use penstock_crds::job::{StreamingJob, TriggerSpec};
use penstock_crds::rpc::JobStatus;
use serde_json::json;

use super::*;
use crate::build::tests::{job, settings};
use crate::facts::Said;
use crate::names::VERSION;

pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn facts(job: StreamingJob) -> Facts {
    Facts {
        authority: "an authority".to_owned(),
        ..Facts::of(job, now())
    }
}

fn pod(version: &str, ready: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "payments-worker-0", "uid": version, "annotations": {VERSION: version}},
        "status": {"conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
    }))
    .unwrap()
}

fn gave_up_pod(version: &str, code: &str, message: &str) -> Pod {
    let words = json!({"code": code, "message": message}).to_string();
    serde_json::from_value(json!({
        "metadata": {"name": "payments-worker-0", "uid": version, "annotations": {VERSION: version}},
        "status": {"containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "lastState": {"terminated": {"exitCode": 1, "message": words}},
        }]},
    }))
    .unwrap()
}

fn said(phase: &str, version: &str, on_trial: bool) -> Option<Said> {
    let status: JobStatus = serde_json::from_value(json!({
        "job": "payments", "namespace": "risk", "log_id": "x", "generation": 1, "phase": phase, "engine": "0.1.0",
        "version": version, "on_trial": on_trial,
        "rates": {"in": 12345.0, "out": 1.0},
        "counts": {"late": 0, "dead_letters": 0, "restarts": 0},
        "sources": [], "sinks": [],
    }))
    .unwrap();
    Some(Said {
        at: now(),
        status: Ok(status),
    })
}

/// The ConfigMap of a version.
fn kept(made: &Version) -> ConfigMap {
    serde_json::from_value(json!({
        "data": {crate::version::MANIFEST: made.manifest, crate::version::TEMPLATE: made.template.to_string()},
    }))
    .unwrap()
}

/// The cluster does what was decided: the StatefulSet is as it was applied, its pods are of its version and told nothing yet.
fn carried_out(facts: &mut Facts, decision: &Decision) {
    let set = decision.apply.last().unwrap().body.clone();
    let set: StatefulSet = serde_json::from_value(set).unwrap();
    facts.stateful_set = Some(set);
    for child in &decision.apply {
        if child.kind == Kind::ConfigMap {
            let name = child.name.rsplit('-').next().unwrap().to_owned();
            let map = serde_json::from_value(child.body.clone()).unwrap();
            facts.versions.insert(name, map);
        }
    }
    for (_, name) in &decision.remove {
        facts.versions.remove(name.rsplit('-').next().unwrap());
    }
    if !decision.replace.is_empty() {
        let version = facts.running_version().unwrap().to_owned();
        facts.pods = vec![pod(&version, false)];
        facts.said = None;
    }
    facts.job.status = Some(decision.status.clone());
}

/// As the cluster looks when the job runs.
pub(crate) fn running() -> Facts {
    let job = job();
    let version = name_of(&job);
    let made = build::make_version(&job, &settings(), None);
    let map = kept(&made);
    let memory = Memory {
        accepted: Some(version.clone()),
        ..Memory::default()
    };
    let issue = issue::of(&job, &version, "an authority", now());
    let state = &job.spec.state;
    let set = build::stateful_set(&job, &made, Size(1), &memory, state, &issue).body;
    Facts {
        pods: vec![pod(&version, true)],
        said: said("Running", &version, false),
        stateful_set: Some(serde_json::from_value(set).unwrap()),
        versions: BTreeMap::from([(version, map)]),
        ..facts(job)
    }
}

fn ready(decision: &Decision) -> (String, String) {
    let conditions = &decision.status.conditions;
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    (ready.status.clone(), ready.reason.clone())
}

fn has(decision: &Decision, condition: &str) -> bool {
    let conditions = &decision.status.conditions;
    conditions
        .iter()
        .any(|c| c.type_ == condition && c.status == "True")
}

fn replicas(decision: &Decision) -> Option<u64> {
    let set = decision
        .apply
        .iter()
        .find(|c| c.kind == Kind::StatefulSet)?;
    set.body["spec"]["replicas"].as_u64()
}

#[test]
fn a_new_job_gets_every_child_and_is_starting() {
    let decision = decide(&facts(job()), &settings());
    assert_eq!(decision.apply.len(), Kind::ALL.len());
    assert_eq!(replicas(&decision), Some(1));
    assert_eq!(ready(&decision), ("False".into(), "Starting".into()));
    assert!(has(&decision, "Reconciling") && !has(&decision, "Stalled"));
    assert_eq!(decision.status.phase, Some(Phase::Pending));
}

#[test]
fn a_certificate_is_made_for_pods_of_a_version_that_is_new_or_of_a_later_period() {
    let made = |facts: &Facts| decide(facts, &settings()).certificate;
    let of = |facts: &Facts| issue::of(&facts.job, &name_of(&facts.job), "an authority", facts.now);
    let mut facts = facts(job());
    assert_eq!(made(&facts), Some(of(&facts)));
    facts = running();
    assert_eq!(made(&facts), None);
    facts.now += chrono::TimeDelta::days(90);
    facts.said.as_mut().unwrap().at = facts.now;
    let decision = decide(&facts, &settings());
    assert_eq!(decision.certificate, Some(of(&facts)));
    assert_eq!(
        decision.replace,
        Vec::new(),
        "the pod goes on with its own certificate"
    );
    carried_out(&mut facts, &decision);
    assert_eq!(made(&facts), None);
    facts.authority = "another".to_owned();
    assert!(made(&facts).is_some());
}

#[test]
fn a_child_that_the_api_server_does_not_take_is_told() {
    let decision = not_taken(&facts(job()), "exceeded quota: pods");
    assert_eq!(ready(&decision), ("False".into(), "ChildRefused".into()));
    assert!(has(&decision, "Reconciling") && !has(&decision, "Stalled"));
    assert!(decision.events[0].note.ends_with("exceeded quota: pods"));
}

fn with_account(labels: Option<serde_json::Value>) -> Facts {
    let mut facts = facts(job());
    facts.job.spec.workers.service_account_name = "loader".to_owned();
    facts.account = labels.map(|labels| {
        serde_json::from_value(json!({"metadata": {"name": "loader", "labels": labels}})).unwrap()
    });
    facts
}

#[test]
fn an_account_is_taken_only_when_its_owner_lent_it() {
    for labels in [
        None,
        Some(json!({})),
        Some(json!({"penstock.dev/allow-jobs": "false"})),
    ] {
        let decision = decide(&with_account(labels), &settings());
        assert_eq!(ready(&decision), ("False".into(), "Invalid".into()));
        assert!(decision.apply.is_empty());
    }
    let lent = with_account(Some(json!({"penstock.dev/allow-jobs": "true"})));
    let decision = decide(&lent, &settings());
    let set = decision.apply.last().unwrap();
    let pod = &set.body["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "loader");
}

#[test]
fn a_job_that_runs_is_ready_and_nothing_is_replaced() {
    let decision = decide(&running(), &settings());
    assert_eq!(ready(&decision), ("True".into(), "Running".into()));
    assert!(has(&decision, "Available") && !has(&decision, "Reconciling"));
    assert!(decision.replace.is_empty() && decision.remove.is_empty());
    assert_eq!(decision.status.rates.unwrap().rows_in, 12000.0);
}

#[test]
fn the_same_facts_with_the_decided_status_change_nothing_more() {
    let mut facts = running();
    let first = decide(&facts, &settings());
    facts.job.status = Some(first.status.clone());
    let second = decide(&facts, &settings());
    assert_eq!(second.status, first.status);
    assert!(second.events.is_empty());
}

#[test]
fn what_was_made_is_kept_when_the_controller_has_other_settings() {
    let facts = running();
    let mut later = settings();
    later.image = "penstock:9.9.9".to_owned();
    let decision = decide(&facts, &later);
    let set = decision.apply.last().unwrap();
    let image = &set.body["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "penstock:0.1.0");
}

/// A job that ran, with another SQL, and its pod of the new version that is not ready yet. The names of both versions.
fn upgrading() -> (Facts, String, String) {
    let mut facts = running();
    let old = name_of(&facts.job);
    facts.job.spec.sql.push_str(" AND amount < 100");
    let decision = decide(&facts, &settings());
    assert_eq!(decision.replace.len(), 1);
    assert!(decision.remove.is_empty(), "it may come back");
    carried_out(&mut facts, &decision);
    let new = name_of(&facts.job);
    assert_eq!(facts.running_version(), Some(new.as_str()));
    (facts, old, new)
}

fn args(facts: &Facts) -> Vec<String> {
    let set = serde_json::to_value(facts.stateful_set.as_ref().unwrap()).unwrap();
    let args = set["spec"]["template"]["spec"]["containers"][0]["args"].clone();
    serde_json::from_value(args).unwrap()
}

#[test]
fn a_job_that_names_no_storage_keeps_its_own_when_the_charts_moves() {
    let in_bucket = |bucket: &str| {
        let storage = json!({"s3": {"bucket": bucket, "region": "us-east-1"}});
        Settings {
            storage: serde_json::from_value(storage).ok(),
            ..settings()
        }
    };
    let mut job = job();
    job.spec.checkpoint.storage = None;
    let mut facts = facts(job);
    let decision = decide(&facts, &in_bucket("first"));
    carried_out(&mut facts, &decision);
    facts.job.spec.sql.push_str(" AND amount < 100");
    let decision = decide(&facts, &in_bucket("second"));
    let map = decision.apply.iter().find(|c| c.kind == Kind::ConfigMap);
    let manifest = map.unwrap().body["data"][crate::version::MANIFEST].to_string();
    assert!(
        manifest.contains("first") && !manifest.contains("second"),
        "{manifest}"
    );
}

#[test]
fn a_change_of_the_sql_is_on_trial_and_then_accepted() {
    let (mut facts, old, new) = upgrading();
    facts.pods = vec![pod(&new, true)];
    facts.said = said("Running", &new, true);
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("False".into(), "Upgrading".into()));
    assert!(has(&decision, "Available") && has(&decision, "Reconciling"));
    assert!(decision.remove.is_empty());
    carried_out(&mut facts, &decision);
    facts.said = said("Running", &new, false);
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("True".into(), "Running".into()));
    assert_eq!(
        decision.remove,
        [(Kind::ConfigMap, names::version("payments", &old))]
    );
}

#[test]
fn a_version_that_gives_up_is_rolled_back_once_and_another_edit_is_tried() {
    let (mut facts, old, new) = upgrading();
    facts.pods = vec![gave_up_pod(&new, "PR0202", "source payments: bad row")];
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("False".into(), "RolledBack".into()));
    assert!(has(&decision, "Stalled") && has(&decision, "RolledBack"));
    assert_eq!(decision.replace.len(), 1);
    carried_out(&mut facts, &decision);
    assert_eq!(facts.running_version(), Some(old.as_str()));
    assert!(args(&facts).contains(&"--rollback".to_owned()));
    facts.pods = vec![pod(&old, true)];
    facts.said = said("Running", &old, false);
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("False".into(), "RolledBack".into()));
    assert!(has(&decision, "Available") && decision.replace.is_empty());
    assert_eq!(decision.status.phase, Some(Phase::RolledBack));
    carried_out(&mut facts, &decision);
    assert_eq!(facts.running_version(), Some(old.as_str()), "no second try");
    // Back to what it was: nothing has to be replaced.
    let failed = facts.job.clone();
    facts.job = job();
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("True".into(), "Running".into()));
    assert!(decision.replace.is_empty());
    // Another edit is another try.
    facts.job = failed;
    facts.job.spec.sql.push_str(" AND amount < 50");
    let decision = decide(&facts, &settings());
    carried_out(&mut facts, &decision);
    assert_eq!(facts.running_version(), Some(name_of(&facts.job).as_str()));
    assert!(!args(&facts).contains(&"--rollback".to_owned()));
}

#[test]
fn a_version_that_does_not_run_by_its_deadline_is_rolled_back() {
    let (mut facts, old, _) = upgrading();
    facts.now += chrono::TimeDelta::seconds(599);
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "Starting");
    facts.now += chrono::TimeDelta::seconds(2);
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "RolledBack");
    let ready = decision
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "Ready");
    let message = &ready.unwrap().message;
    assert!(message.contains("[PR0414]"), "{message}");
    carried_out(&mut facts, &decision);
    assert_eq!(facts.running_version(), Some(old.as_str()));
}

#[test]
fn a_version_that_ran_in_time_is_not_rolled_back_for_a_silence() {
    let (mut facts, _, new) = upgrading();
    facts.pods = vec![pod(&new, true)];
    facts.now += chrono::TimeDelta::seconds(1000);
    // Nobody was here to hear it run, and at this moment it does not answer.
    facts.said = None;
    assert_eq!(ready(&decide(&facts, &settings())).1, "Starting");
    facts.said = said("Running", &new, true);
    facts.said.as_mut().unwrap().at = facts.now;
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "Upgrading");
    carried_out(&mut facts, &decision);
    // Then its node is lost.
    facts.pods = vec![pod(&new, false)];
    facts.said = None;
    facts.now += chrono::TimeDelta::seconds(1000);
    assert_ne!(ready(&decide(&facts, &settings())).1, "RolledBack");
}

#[test]
fn a_failed_upgrade_stays_stopped_when_that_was_asked_for() {
    let (mut facts, _, new) = upgrading();
    facts.job.spec.upgrade.on_failure = penstock_crds::job::OnUpgradeFailure::Stop;
    facts.pods = vec![gave_up_pod(&new, "PR0202", "source payments: bad row")];
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "Failed");
    assert_eq!(replicas(&decision), Some(0));
}

#[test]
fn a_version_that_was_accepted_behind_the_controllers_back_goes_on() {
    let (mut facts, old, new) = upgrading();
    facts.pods = vec![gave_up_pod(&new, "PR0301", "out of disk")];
    let decision = decide(&facts, &settings());
    carried_out(&mut facts, &decision);
    facts.pods = vec![gave_up_pod(&old, "PR0413", "it cannot come back")];
    let decision = decide(&facts, &settings());
    carried_out(&mut facts, &decision);
    assert_eq!(facts.running_version(), Some(new.as_str()));
    assert_eq!(facts.memory().accepted.as_deref(), Some(new.as_str()));
}

#[test]
fn suspend_scales_to_nothing_and_is_ready_when_the_pods_are_gone() {
    let mut facts = running();
    facts.job.spec.suspend = true;
    let decision = decide(&facts, &settings());
    assert_eq!(replicas(&decision), Some(0));
    assert_eq!(ready(&decision).1, "Suspending");
    facts.pods.clear();
    facts.said = None;
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("True".into(), "Suspended".into()));
}

/// As [`running`], for a job that ends when everything available is read.
fn running_to_an_end() -> Facts {
    let mut facts = running();
    facts.job.spec.trigger = TriggerSpec {
        continuous: None,
        available_now: Some(Default::default()),
        ..TriggerSpec::default()
    };
    facts
}

#[test]
fn a_bounded_job_that_completed_is_remembered_when_its_pods_are_gone() {
    let mut facts = running_to_an_end();
    let version = name_of(&facts.job);
    facts.pods = vec![pod(&version, true)];
    facts.said = said("Completed", &version, false);
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("True".into(), "Completed".into()));
    assert_eq!(replicas(&decision), Some(0));
    let set = decision.apply.last().unwrap().body.clone();
    facts.stateful_set = Some(serde_json::from_value(set).unwrap());
    facts.pods.clear();
    facts.said = None;
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("True".into(), "Completed".into()));
    // Another SQL is another run.
    facts.job.spec.sql.push_str(" AND amount < 100");
    let decision = decide(&facts, &settings());
    assert_eq!(replicas(&decision), Some(1));
}

#[test]
fn a_bounded_job_completes_by_the_word_of_its_own_pods() {
    let mut facts = running_to_an_end();
    let version = name_of(&facts.job);
    let completes = |facts: &Facts| replicas(&decide(facts, &settings())) == Some(0);
    // Pods of the run before are on their way out, and what they said is not old yet.
    facts.pods = vec![pod("another", true)];
    facts.said = said("Completed", &version, false);
    assert!(!completes(&facts));
    facts.pods = vec![pod(&version, false)];
    facts.said = said("Completed", "another", false);
    assert!(!completes(&facts));
    // One that is younger than the answer did not give it.
    facts.said = said("Completed", &version, false);
    let after = now() + chrono::TimeDelta::seconds(5);
    facts.pods[0].metadata.creation_timestamp = Some(status::time(after));
    assert!(!completes(&facts));
    facts.pods[0].metadata.creation_timestamp = Some(status::time(now()));
    assert!(completes(&facts));
}

#[test]
fn a_worker_that_gave_up_fails_the_job_until_the_spec_changes() {
    let mut facts = running();
    let version = name_of(&facts.job);
    facts.pods = vec![gave_up_pod(&version, "PR0202", "source payments: bad row")];
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision), ("False".into(), "Failed".into()));
    assert!(has(&decision, "Stalled"));
    assert_eq!(replicas(&decision), Some(0));
    let message = &decision.status.conditions[0].message;
    assert_eq!(message, "source payments: bad row [PR0202]");
    assert!(decision.events[0].warning);
}

#[test]
fn a_log_of_an_earlier_job_stalls_until_the_spec_says_what_becomes_of_it() {
    let mut facts = running();
    let version = name_of(&facts.job);
    facts.pods = vec![gave_up_pod(&version, "PR0407", "log 00 of an earlier job")];
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "PriorLogFound");
    assert_eq!(replicas(&decision), Some(0));
    carried_out(&mut facts, &decision);
    facts.pods.clear();
    facts.job.spec.start_fresh = true;
    let decision = decide(&facts, &settings());
    assert_eq!(replicas(&decision), Some(1));
    assert_ne!(name_of(&facts.job), version, "its workers must read it");
}

#[test]
fn a_pod_of_a_lost_node_is_not_waited_for() {
    let mut facts = running();
    let evicted = |reason: &str, overdue: i64| {
        let at = now() - chrono::TimeDelta::seconds(overdue);
        let at = at.to_rfc3339();
        serde_json::from_value::<Pod>(json!({
            "metadata": {"name": "payments-worker-0", "uid": "u", "deletionTimestamp": at},
            "status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]},
        }))
        .unwrap()
    };
    for (pod, forced) in [
        (evicted("DeletionByTaintManager", -60), 1),
        (evicted("EvictionByEvictionAPI", -60), 0),
        (evicted("EvictionByEvictionAPI", 14), 0),
        (evicted("EvictionByEvictionAPI", 15), 1),
    ] {
        facts.pods = vec![pod];
        let decision = decide(&facts, &settings());
        assert_eq!(decision.force.len(), forced, "{:?}", facts.pods);
        assert!(decision.abandon.is_empty());
        // Whatever else is wrong with the job, and while it goes.
        let refused = Facts {
            sql_faults: vec!["spec.sql: 1:1 no such table [PS0102]".to_owned()],
            ..facts.clone()
        };
        let decision = decide(&refused, &settings());
        assert_eq!((decision.force.len(), decision.apply.len()), (forced, 0));
        let going = deleted(facts.clone(), DeletionPolicy::Delete, 1);
        assert_eq!(decide(&going, &settings()).force.len(), forced);
    }
}

#[test]
fn a_volume_on_a_node_that_is_gone_is_given_up() {
    let mut facts = running();
    let version = name_of(&facts.job);
    let waiting = |message: &str, seconds: i64| {
        let at = now() - chrono::TimeDelta::seconds(seconds);
        let at = at.to_rfc3339();
        serde_json::from_value::<Pod>(json!({
            "metadata": {"name": "payments-worker-0", "uid": "u", "annotations": {VERSION: version}},
            "status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message, "lastTransitionTime": at,
            }]},
        }))
        .unwrap()
    };
    let conflict = "0/3 nodes are available: 1 node(s) had volume node affinity conflict";
    facts.pods = vec![waiting(conflict, 29)];
    assert!(decide(&facts, &settings()).abandon.is_empty());
    facts.pods = vec![waiting("0/3 nodes are available: 3 Insufficient cpu", 3600)];
    assert!(decide(&facts, &settings()).abandon.is_empty());
    let newer = "0/3 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) had untolerated taint";
    for message in [conflict, newer] {
        facts.pods = vec![waiting(message, 30)];
        let decision = decide(&facts, &settings());
        assert_eq!(decision.abandon, ["state-payments-worker-0"], "{message}");
        assert_eq!(decision.force.len(), 1);
        let going = deleted(facts.clone(), DeletionPolicy::Savepoint, 1);
        let decision = decide(&going, &settings());
        assert!(decision.abandon.is_empty(), "volumes go by the policy");
    }
}

fn claim(size: &str) -> k8s_openapi::api::core::v1::PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": "state-payments-worker-0"},
        "spec": {"resources": {"requests": {"storage": size}}},
    }))
    .unwrap()
}

#[test]
fn volumes_grow_and_do_not_shrink_also_when_the_webhook_was_away() {
    let mut facts = running();
    facts.claims = vec![claim("20Gi")];
    assert!(decide(&facts, &settings()).grow.is_empty());
    let volume = penstock_crds::checkpoint::Volume {
        size: Quantity::from_gibibytes(30),
        ..Default::default()
    };
    facts.job.spec.state.volume = Some(volume);
    let decision = decide(&facts, &settings());
    assert_eq!(
        decision.grow,
        [(
            "state-payments-worker-0".to_owned(),
            Quantity::from_gibibytes(30)
        )]
    );
    assert!(decision.replace.is_empty(), "that is no other version");
    // The StatefulSet cannot change it.
    let set = &decision.apply.last().unwrap().body;
    let storage =
        &set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
    assert_eq!(storage, "20Gi");
    facts.claims = vec![claim("40Gi")];
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "Invalid");
    let message = &decision.status.conditions[0].message;
    assert!(message.contains("it was 40Gi and is 30Gi"), "{message}");
}

#[test]
fn what_the_history_stands_on_is_refused_also_when_the_webhook_was_away() {
    let mut facts = running();
    facts.job.spec.key_groups = 128;
    let decision = decide(&facts, &settings());
    assert_eq!(ready(&decision).1, "Invalid");
    let message = &decision.status.conditions[0].message;
    assert!(message.contains("[PS0076]"), "{message}");
    assert!(decision.apply.is_empty());
}

#[test]
fn a_wrong_spec_touches_nothing_and_says_what_lint_says() {
    let mut facts = running();
    facts.job.spec.workers.replicas = Some(65);
    let decision = decide(&facts, &settings());
    assert!(decision.apply.is_empty() && decision.replace.is_empty());
    assert_eq!(ready(&decision), ("False".into(), "Invalid".into()));
    assert!(has(&decision, "Stalled") && has(&decision, "Available"));
    let message = &decision.status.conditions[0].message;
    assert!(message.contains("[PS0044]"), "{message}");
}

#[test]
fn an_object_of_somebody_else_is_not_taken_over() {
    let mut facts = facts(job());
    facts.objects.insert(
        (Kind::Service, "payments-worker".to_owned()),
        json!({"metadata": {"name": "payments-worker"}}),
    );
    let decision = decide(&facts, &settings());
    assert!(decision.apply.is_empty());
    assert_eq!(ready(&decision).1, "ForeignObject");
    let message = &decision.status.conditions[0].message;
    assert!(message.contains("Service payments-worker"), "{message}");
}

// ---- deletion ---------------------------------------------------------------------------------------------------------

fn deleted(mut facts: Facts, policy: DeletionPolicy, seconds_ago: i64) -> Facts {
    facts.job.spec.deletion_policy = policy;
    facts.job.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    let at = now() - chrono::TimeDelta::seconds(seconds_ago);
    facts.job.metadata.deletion_timestamp = Some(status::time(at));
    facts
}

/// The StatefulSet was scaled to nothing, and its pods are gone.
fn stopped(facts: &mut Facts) {
    facts.pods.clear();
    let set = facts.stateful_set.as_mut().unwrap();
    set.spec.as_mut().unwrap().replicas = Some(0);
}

fn step(exit_code: i32, message: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "payments-remove"},
        "status": {"containerStatuses": [{
            "name": "step", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": exit_code, "message": message}},
        }]},
    }))
    .unwrap()
}

#[test]
fn a_job_is_held_when_it_is_to_be_cleaned_up_after_and_not_otherwise() {
    let mut facts = running();
    assert_eq!(decide(&facts, &settings()).hold, None);
    facts.job.spec.deletion_policy = DeletionPolicy::Delete;
    assert_eq!(decide(&facts, &settings()).hold, Some(true));
    facts.job.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    assert_eq!(decide(&facts, &settings()).hold, None);
    facts.job.spec.deletion_policy = DeletionPolicy::Retain;
    assert_eq!(decide(&facts, &settings()).hold, Some(false));
}

#[test]
fn delete_stops_the_workers_then_removes_the_log_then_lets_go() {
    let mut facts = deleted(running(), DeletionPolicy::Delete, 1);
    let decision = decide(&facts, &settings());
    assert_eq!((replicas(&decision), decision.hold), (Some(0), None));
    assert_eq!(decision.steps, Vec::<Value>::new());
    facts.pods.clear();
    let decision = decide(&facts, &settings());
    let seen = (replicas(&decision), decision.steps.len());
    assert_eq!(
        seen,
        (Some(0), 0),
        "a pod may come that nobody has seen yet"
    );
    stopped(&mut facts);
    let status = json!({"replicas": 1});
    facts.stateful_set.as_mut().unwrap().status = serde_json::from_value(status).ok();
    let decision = decide(&facts, &settings());
    assert_eq!(decision.steps.len(), 0, "a pod is still there");
    facts.stateful_set.as_mut().unwrap().status = None;
    let decision = decide(&facts, &settings());
    assert_eq!(decision.steps[0]["metadata"]["name"], "payments-remove");
    let words = &decision.steps[0]["spec"]["containers"][0]["args"];
    assert_eq!(words.as_array().unwrap().last(), Some(&json!("remove")));
    assert_eq!(decision.hold, None);
    facts.steps = vec![step(1, r#"{"code": "PR0402", "message": "storage away"}"#)];
    let decision = decide(&facts, &settings());
    assert_eq!((decision.hold, decision.steps.len()), (None, 0));
    assert!(
        decision.status.conditions[0]
            .message
            .contains("storage away [PR0402]")
    );
    let mut over = step(1, "");
    over.metadata.uid = Some("s".to_owned());
    over.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    facts.steps = vec![over];
    let decision = decide(&facts, &settings());
    assert_eq!(decision.replace.len(), 1, "another pod tries");
    facts.steps = vec![step(0, r#"{"removed": true}"#)];
    let decision = decide(&facts, &settings());
    assert_eq!(
        (decision.hold, decision.events[0].reason),
        (Some(false), "CheckpointRemoved")
    );
}

#[test]
fn a_job_whose_children_go_first_is_cleaned_up_after_all_the_same() {
    for policy in [DeletionPolicy::Delete, DeletionPolicy::Savepoint] {
        let mut facts = deleted(running(), policy, 1);
        let finalizers = facts.job.metadata.finalizers.as_mut().unwrap();
        finalizers.push("foregroundDeletion".to_owned());
        let decision = decide(&facts, &settings());
        assert_eq!((decision.hold, decision.apply.len()), (None, 0));
        let version = facts.running_version().unwrap().to_owned();
        facts.job.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
        let all = facts.versions.clone();
        facts.versions.clear();
        facts.pods.clear();
        (facts.stateful_set, facts.objects) = (None, BTreeMap::new());
        let refused = Facts {
            sql_faults: vec!["spec.sql: 1:1 no such table [PS0102]".to_owned()],
            ..facts.clone()
        };
        let decision = decide(&refused, &settings());
        assert_eq!(
            (decision.hold, decision.steps.len()),
            (Some(false), 0),
            "it cannot have run"
        );
        let decision = decide(&facts, &settings());
        assert_eq!(decision.hold, None, "it may have run, and was not asked");
        assert!(!decision.apply.is_empty());
        let ran = json!({"version": {"spec": 1, "planHash": version, "engine": "0.1.0"}});
        facts.job.status = Some(serde_json::from_value(ran).unwrap());
        let decision = decide(&facts, &settings());
        assert_eq!(decision.hold, None);
        let made: Vec<Kind> = decision.apply.iter().map(|c| c.kind).collect();
        assert!(
            made.contains(&Kind::ConfigMap) && made.contains(&Kind::ServiceAccount),
            "{made:?}"
        );
        assert!(!made.contains(&Kind::StatefulSet), "no worker starts again");
        facts.versions = all;
        let decision = decide(&facts, &settings());
        assert_eq!(decision.hold, None);
        assert_eq!(
            decision.steps.len() + usize::from(decision.savepoint.is_some()),
            1
        );
    }
}

#[test]
fn savepoint_stops_the_workers_then_keeps_where_they_ended() {
    let mut facts = deleted(running(), DeletionPolicy::Savepoint, 1);
    stopped(&mut facts);
    let decision = decide(&facts, &settings());
    let savepoint = decision.savepoint.unwrap();
    assert_eq!(savepoint["metadata"]["name"], "payments-0f3c0000");
    assert_eq!(decision.hold, None);
    facts.farewell = Some(serde_json::from_value(savepoint.clone()).unwrap());
    let decision = decide(&facts, &settings());
    assert_eq!((decision.savepoint, decision.hold), (None, None));
    let mut done = savepoint;
    done["status"] = json!({"phase": "Completed", "epoch": 12});
    facts.farewell = Some(serde_json::from_value(done).unwrap());
    let decision = decide(&facts, &settings());
    assert_eq!(
        (decision.hold, decision.events[0].reason),
        (Some(false), "SavepointKept")
    );
}

#[test]
fn a_cleanup_has_a_bounded_time_and_can_be_skipped() {
    for policy in [DeletionPolicy::Savepoint, DeletionPolicy::Delete] {
        let facts = deleted(running(), policy, 601);
        let decision = decide(&facts, &settings());
        assert_eq!(
            (decision.hold, decision.events[0].reason),
            (Some(false), "CleanupGivenUp")
        );
        let mut facts = deleted(running(), policy, 1);
        let skip = (names::SKIP_CLEANUP.to_owned(), "true".to_owned());
        facts.job.metadata.annotations = Some([skip].into());
        let decision = decide(&facts, &settings());
        assert_eq!(
            (decision.hold, decision.events[0].reason),
            (Some(false), "CleanupSkipped")
        );
    }
}

// ---- what a job begins with, and orders ---------------------------------------------------------------------------------

fn restoring(status: Value) -> Facts {
    let mut job = job();
    let restore = json!({"savepoint": {"name": "before"}});
    job.spec.restore_from = Some(serde_json::from_value(restore).unwrap());
    let mut facts = facts(job);
    facts.restores_from = Some(
        serde_json::from_value(json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "Savepoint", "metadata": {"name": "before"},
            "spec": {"jobRef": {"name": "other"}}, "status": status,
        }))
        .unwrap(),
    );
    facts
}

#[test]
fn a_job_begins_with_a_savepoint_that_is_whole_and_in_its_own_storage() {
    let good = json!({"phase": "Completed", "location": "s3://streams/risk/other/abc"});
    let decision = decide(&restoring(good.clone()), &settings());
    let set = &decision.apply.last().unwrap().body;
    let args = set["spec"]["template"]["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap();
    let told = [json!("--savepoint"), json!("other/abc")];
    assert!(args.windows(2).any(|two| two == told), "{args:?}");

    let decision = decide(&restoring(json!({"phase": "Pending"})), &settings());
    assert_eq!(ready(&decision).1, "SavepointNotReady");
    assert_eq!(decision.apply, []);
    for place in [
        "s3://streams/secret/other/abc",
        "s3://elsewhere/risk/other/abc",
        "s3://streams/risk/../secret/other/abc",
    ] {
        let status = json!({"phase": "Completed", "location": place});
        let decision = decide(&restoring(status), &settings());
        assert_eq!(ready(&decision).1, "Invalid", "{place}");
        assert_eq!(decision.apply, [], "{place}");
    }
    let mut gone = restoring(good);
    gone.restores_from = None;
    assert_eq!(ready(&decide(&gone, &settings())).1, "SavepointNotReady");
}

fn ordered(mut facts: Facts, name: &str, value: &str) -> Facts {
    let order = (name.to_owned(), value.to_owned());
    facts
        .job
        .metadata
        .annotations
        .get_or_insert_default()
        .extend([order]);
    facts
}

#[test]
fn a_job_that_lost_input_waits_for_a_word_and_goes_on_with_it() {
    let mut facts = running();
    let version = name_of(&facts.job);
    facts.pods = vec![gave_up_pod(
        &version,
        "PR0207",
        "source flights: rows were deleted",
    )];
    facts.said = None;
    let decision = decide(&facts, &settings());
    assert_eq!(
        (ready(&decision).1.as_str(), replicas(&decision)),
        ("DataLossRisk", Some(0))
    );
    assert!(has(&decision, "DataLossRisk") && has(&decision, "Stalled"));
    carried_out(&mut facts, &decision);
    facts.pods.clear();
    assert_eq!(replicas(&decide(&facts, &settings())), Some(0));
    let facts = ordered(facts, names::ACCEPT_LOSS, "flights@7");
    let decision = decide(&facts, &settings());
    assert_eq!(replicas(&decision), Some(1));
    let set = &decision.apply.last().unwrap().body;
    let args = set["spec"]["template"]["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap();
    assert!(
        args.ends_with(&[json!("--accept-loss"), json!("flights@7")]),
        "{args:?}"
    );
}

#[test]
fn an_order_reaches_a_running_job_once_and_taking_it_back_disturbs_nobody() {
    let facts = ordered(running(), names::GO_BACK, "12@a");
    let decision = decide(&facts, &settings());
    assert_eq!(decision.replace.len(), 1);
    let mut told = facts;
    let orders = (names::ORDERS.to_owned(), "--go-back 12@a".to_owned());
    told.pods[0]
        .metadata
        .annotations
        .get_or_insert_default()
        .extend([orders]);
    assert_eq!(decide(&told, &settings()).replace, []);
    told.job.metadata.annotations = None;
    assert_eq!(decide(&told, &settings()).replace, []);
}

#[test]
fn an_order_that_cannot_be_read_is_refused_and_reaches_nobody() {
    for (name, value) in [
        (names::ACCEPT_LOSS, "flights"),
        (names::ACCEPT_LOSS, "flights@7 --memory 1"),
        (names::GO_BACK, "12"),
        (names::GO_BACK, "12@a b"),
        (names::GO_BACK, "-1@a"),
    ] {
        let decision = decide(&ordered(running(), name, value), &settings());
        assert_eq!(ready(&decision).1, "Invalid", "{value}");
        assert_eq!(decision.apply, [], "{value}");
        assert!(decision.status.conditions[0].message.contains("[PS0077]"));
    }
}

#[test]
fn an_upgrade_from_the_last_checkpoint_does_not_wait_for_the_running_version() {
    let mut facts = running();
    facts.job.spec.upgrade.strategy = UpgradeStrategy::LastCheckpoint;
    facts.job.spec.sql.push(' ');
    assert_eq!(decide(&facts, &settings()).replace[0].grace, Some(1));
    facts.job.spec.upgrade.strategy = UpgradeStrategy::Savepoint;
    assert_eq!(decide(&facts, &settings()).replace[0].grace, None);
}

// ---- autoscaling ------------------------------------------------------------------------------------------------------

/// A job of one worker of which so much was heard for two minutes: a worker can do 1,000 rows a second.
fn loaded(mode: &str, came: f64) -> Facts {
    let mut facts = running();
    let spec = json!({"mode": mode, "minReplicas": 1, "maxReplicas": 8});
    facts.job.spec.autoscaling = Some(serde_json::from_value(spec).unwrap());
    for poll in (0..8).rev() {
        facts.load.add(crate::autoscale::Sample {
            at: now() - chrono::TimeDelta::seconds(15 * poll),
            workers: 1,
            read: came.min(1000.0),
            came,
            lag: 0.0,
            lag_seconds: 0.0,
            busiest: came.min(1000.0) / 1000.0,
            busy: came.min(1000.0) / 1000.0,
            parts: 64,
            sink_bound: false,
            healthy: true,
        });
    }
    facts
}

fn scaling(decision: &Decision) -> (String, String) {
    let said = decision.status.autoscaling.clone().unwrap();
    (said.decision, said.reason)
}

#[test]
fn an_active_autoscaler_changes_the_number_of_workers_and_says_why() {
    let facts = loaded("Active", 2_000.0);
    let decision = decide(&facts, &settings());
    assert_eq!(replicas(&decision), Some(3));
    assert_eq!(scaling(&decision), ("Up".into(), "Load".into()));
    let told = decision.events.iter().find(|e| e.reason == "Scaled");
    assert_eq!(told.unwrap().note, "from 1 to 3 workers: Load");
    // The spec is the person's.
    assert_eq!(facts.job.spec.workers.replicas, None);
}

#[test]
fn while_workers_come_and_go_the_number_stays() {
    let mut facts = loaded("Active", 2_000.0);
    facts
        .stateful_set
        .as_mut()
        .unwrap()
        .spec
        .as_mut()
        .unwrap()
        .replicas = Some(3);
    let decision = decide(&facts, &settings());
    assert_eq!(replicas(&decision), Some(3));
    assert_eq!(scaling(&decision), ("Hold".into(), "Learning".into()));
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let decision = decide(&loaded("DryRun", 2_000.0), &settings());
    assert_eq!(replicas(&decision), Some(1));
    assert_eq!(scaling(&decision), ("Up".into(), "Load".into()));
    assert!(decision.events.iter().all(|e| e.reason != "Scaled"));
}

#[test]
fn a_decision_keeps_its_time_until_it_is_another_one() {
    let mut facts = loaded("Active", 500.0);
    let decision = decide(&facts, &settings());
    assert_eq!(scaling(&decision), ("Hold".into(), "WithinTarget".into()));
    let since = decision.status.autoscaling.clone().unwrap().at;
    facts.job.status = Some(decision.status);
    facts.now = now() + chrono::TimeDelta::seconds(20);
    let later = decide(&facts, &settings());
    assert_eq!(later.status.autoscaling.unwrap().at, since);
}

#[test]
fn nobody_who_has_not_asked_for_it_is_scaled() {
    let decision = decide(&loaded("Disabled", 2_000.0), &settings());
    assert_eq!(replicas(&decision), Some(1));
    assert_eq!(decision.status.autoscaling, None);
}
