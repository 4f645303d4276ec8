//! Decisions on savepoints by table.

use penstock_crds::savepoint::{JobRef, SavepointSpec};
use serde_json::json;

use super::*;
use crate::build::tests::{job, settings};

const LOG: &str = "0f3c0000111122223333444455556666";

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn version() -> ConfigMap {
    let made = crate::build::make_version(&job(), &settings(), None);
    let data = json!({MANIFEST: made.manifest, TEMPLATE: made.template.to_string()});
    serde_json::from_value(json!({"data": data})).unwrap()
}

/// A savepoint that was seen once.
fn facts() -> SavepointFacts {
    let job_ref = JobRef {
        name: "payments".to_owned(),
    };
    let mut savepoint = Savepoint::new("before", SavepointSpec { job_ref });
    savepoint.metadata.namespace = Some("risk".to_owned());
    savepoint.metadata.uid = Some("s".to_owned());
    savepoint.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    SavepointFacts {
        now: now(),
        savepoint,
        job: Some(job()),
        workers: 1,
        said: None,
        version: None,
        kept: Some(version()),
        steps: Vec::new(),
    }
}

fn said(savepoints: Value, on_trial: bool) -> Option<JobStatus> {
    let said = json!({
        "job": "payments", "namespace": "risk", "log_id": LOG, "generation": 1, "phase": "Running", "engine": "0.1.0",
        "on_trial": on_trial, "savepoints": savepoints, "rates": {"in": 1.0, "out": 1.0},
        "counts": {"late": 0, "dead_letters": 0, "restarts": 0}, "sources": [], "sinks": [],
    });
    Some(serde_json::from_value(said).unwrap())
}

fn suspended(mut facts: SavepointFacts) -> SavepointFacts {
    facts.workers = 0;
    let status = json!({"phase": "Suspended", "logId": LOG});
    facts.job.as_mut().unwrap().status = Some(serde_json::from_value(status).unwrap());
    facts
}

fn deleted(mut facts: SavepointFacts, seconds_ago: i64) -> SavepointFacts {
    let at = time(now() - chrono::TimeDelta::seconds(seconds_ago));
    facts.savepoint.metadata.deletion_timestamp = Some(at);
    facts
}

fn ended(name: &str, exit_code: i32, message: &Value) -> Pod {
    let state = json!({"terminated": {"exitCode": exit_code, "message": message.to_string()}});
    let container = json!({
        "name": "step", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
    });
    let pod = json!({"metadata": {"name": name}, "status": {"containerStatuses": [container]}});
    serde_json::from_value(pod).unwrap()
}

fn reason(decision: &SavepointDecision) -> &str {
    let conditions = &decision.status.conditions;
    &conditions
        .iter()
        .find(|c| c.type_ == "Ready")
        .unwrap()
        .reason
}

#[test]
fn a_new_one_is_held_and_keeps_what_it_needs_before_anything_is_pinned() {
    let mut new = facts();
    new.savepoint.metadata.finalizers = None;
    new.kept = None;
    new.version = Some(version());
    new.said = said(json!([]), false);
    let decision = decide(&new, &settings());
    assert_eq!(decision.hold, Some(true));
    let keep = decision.keep.unwrap();
    assert_eq!(keep["metadata"]["name"], "before-savepoint");
    assert_eq!(keep["metadata"]["ownerReferences"][0]["kind"], "Savepoint");
    assert_eq!(decision.ask, Some(Ask::Pin));
}

#[test]
fn a_running_job_is_asked_until_it_says_that_everything_is_published() {
    let settings = settings();
    let mut facts = facts();
    let decision = decide(&facts, &settings);
    assert_eq!((reason(&decision), &decision.ask), ("JobNotReady", &None));
    facts.said = said(json!([]), true);
    let decision = decide(&facts, &settings);
    assert_eq!(reason(&decision), "OnTrial");
    assert_eq!(decision.ask, Some(Ask::Pin));
    facts.said = said(json!([]), false);
    assert_eq!(reason(&decide(&facts, &settings)), "Requested");
    let pinned = |completed: bool| {
        said(
            json!([{"name": "before", "epoch": 7, "completed": completed, "bytes": 5}]),
            false,
        )
    };
    facts.said = pinned(false);
    let decision = decide(&facts, &settings);
    assert_eq!((reason(&decision), &decision.ask), ("Publishing", &None));
    facts.said = pinned(true);
    let decision = decide(&facts, &settings);
    let status = decision.status.clone();
    assert_eq!(status.phase, Some(SavepointPhase::Completed));
    assert_eq!((status.epoch, status.bytes), (Some(7), Some(5)));
    let at = format!("s3://streams/risk/payments/{LOG}");
    assert_eq!(status.location, Some(at));
    // From then on nothing is asked and nothing is written.
    facts.savepoint.status = Some(status.clone());
    let decision = decide(&facts, &settings);
    assert_eq!((decision.status, decision.ask), (status, None));
    assert_eq!(decision.events, []);
}

#[test]
fn a_job_that_does_not_run_is_pinned_by_a_step_where_it_ended() {
    let mut facts = suspended(facts());
    let decision = decide(&facts, &settings());
    let step = decision.step.unwrap();
    assert_eq!(step["metadata"]["name"], "before-savepoint-pin");
    let container = &step["spec"]["containers"][0];
    assert_eq!(
        container["args"],
        json!([
            "--output",
            "json",
            "step",
            "/etc/penstock/job/job.yaml",
            "--log-id",
            LOG,
            "--secrets",
            "/etc/penstock/secrets",
            "savepoint",
            "before"
        ])
    );
    let mounted: Vec<&str> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        mounted,
        ["job", "scratch", "secret-kafka-client", "secret-s3"]
    );
    let _: Pod = serde_json::from_value(step).unwrap();

    let failed = json!({"code": "PR0402", "message": "storage away"});
    facts.steps = vec![ended("before-savepoint-pin", 1, &failed)];
    let decision = decide(&facts, &settings());
    assert_eq!((reason(&decision), &decision.step), ("StepFailing", &None));
    facts.steps = vec![ended("before-savepoint-pin", 0, &json!({"nothing": true}))];
    let decision = decide(&facts, &settings());
    assert_eq!(reason(&decision), "NothingToKeep");
    assert!(is_of_nothing(&decision.status));
    let answer = json!({"epoch": 9, "completed": false, "bytes": 1});
    facts.steps = vec![ended("before-savepoint-pin", 0, &answer)];
    assert_eq!(reason(&decide(&facts, &settings())), "Publishing");
    let answer = json!({"epoch": 9, "completed": true, "bytes": 1});
    facts.steps = vec![ended("before-savepoint-pin", 0, &answer)];
    let decision = decide(&facts, &settings());
    assert_eq!(
        (reason(&decision), decision.status.epoch),
        ("Completed", Some(9))
    );
    facts.savepoint.status = Some(decision.status);
    let sweep = decide(&facts, &settings()).sweep;
    assert_eq!(sweep.as_deref(), Some("before-savepoint-pin"));
}

#[test]
fn without_a_job_it_fails_and_says_so() {
    let mut facts = facts();
    facts.job = None;
    facts.workers = 0;
    let decision = decide(&facts, &settings());
    assert_eq!(reason(&decision), "JobNotFound");
    assert_eq!(decision.status.phase, Some(SavepointPhase::Failed));
    facts.savepoint.metadata.name = Some("x".repeat(64));
    facts.savepoint.metadata.finalizers = None;
    (facts.kept, facts.version) = (None, Some(version()));
    let decision = decide(&facts, &settings());
    assert_eq!(reason(&decision), "NameTooLong");
    assert_eq!((decision.keep, decision.hold), (None, None));
}

#[test]
fn the_longest_job_may_leave_a_savepoint() {
    let job = "j".repeat(penstock_crds::validate::MAX_JOB_NAME);
    assert!(names::farewell(&job, "0f3c0000-1111").len() <= LONGEST);
}

#[test]
fn a_later_job_of_the_name_neither_pins_nor_unpins_for_it() {
    let mut facts = facts();
    facts.job.as_mut().unwrap().metadata.uid = Some("ffffffff-1111-2222-3333-444455556666".into());
    let another = |log: &str, savepoints: Value| {
        let mut said = said(savepoints, false).unwrap();
        said.log_id = log.to_owned();
        Some(said)
    };
    facts.said = another("ffffffff111122223333444455556666", json!([]));
    let decision = decide(&facts, &settings());
    assert_eq!((reason(&decision), &decision.ask), ("JobNotFound", &None));
    // Its own log keeps the epoch still: a step unpins it there.
    let mut gone = deleted(facts.clone(), 1);
    let decision = decide(&gone, &settings());
    assert_eq!((decision.hold, decision.ask), (None, None));
    let words = &decision.step.unwrap()["spec"]["containers"][0]["args"];
    assert!(words.as_array().unwrap().contains(&json!(LOG)), "{words}");
    // As long as it has not said whose log it has, no step writes beside it.
    gone.said = None;
    let decision = decide(&gone, &settings());
    assert_eq!((decision.hold, decision.step), (None, None));
    // A job that adopted the log has the epoch.
    let pinned = json!([{"name": "before", "epoch": 7, "completed": true, "bytes": 5}]);
    gone.said = another(LOG, pinned);
    assert_eq!(decide(&gone, &settings()).ask, Some(Ask::Unpin));
}

#[test]
fn a_step_that_ended_without_an_answer_is_made_anew() {
    let mut facts = suspended(facts());
    let mut pod = ended("before-savepoint-pin", 1, &json!("out of time"));
    pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    facts.steps = vec![pod];
    let decision = decide(&facts, &settings());
    assert_eq!(decision.sweep.as_deref(), Some("before-savepoint-pin"));
    assert_eq!(decision.status.phase, Some(SavepointPhase::Pending));
    facts.steps[0].metadata.name = Some("before-savepoint-unpin".to_owned());
    let decision = decide(&deleted(facts, 1), &settings());
    assert_eq!(decision.sweep.as_deref(), Some("before-savepoint-unpin"));
    assert_eq!((decision.hold, decision.step), (None, None));
}

#[test]
fn one_that_is_deleted_is_unpinned_first_by_whoever_can() {
    let mut facts = deleted(facts(), 1);
    facts.said = said(
        json!([{"name": "before", "epoch": 7, "completed": true, "bytes": 5}]),
        false,
    );
    let decision = decide(&facts, &settings());
    assert_eq!((decision.ask, decision.hold), (Some(Ask::Unpin), None));
    facts.said = said(json!([]), false);
    assert_eq!(decide(&facts, &settings()).hold, Some(false));

    // Of a job that is gone: its account is gone too, and what the savepoint kept is read.
    facts.said = None;
    facts.workers = 0;
    facts.job = None;
    let decision = decide(&facts, &settings());
    let step = decision.step.unwrap();
    assert_eq!(step["metadata"]["name"], "before-savepoint-unpin");
    assert_eq!(step["metadata"]["labels"][names::SAVEPOINT], "before");
    assert_eq!(step["spec"]["serviceAccountName"], "default");
    assert_eq!(step["spec"]["automountServiceAccountToken"], false);
    assert_eq!(
        step["spec"]["volumes"][0]["configMap"]["name"],
        "before-savepoint"
    );
    assert_eq!(decision.hold, None);
    facts.steps = vec![ended(
        "before-savepoint-unpin",
        0,
        &json!({"unpinned": true}),
    )];
    assert_eq!(decide(&facts, &settings()).hold, Some(false));
}

#[test]
fn nobody_waits_for_ever_for_an_unpinning() {
    let mut facts = deleted(facts(), 601);
    let decision = decide(&facts, &settings());
    assert_eq!(
        (decision.hold, decision.events[0].reason),
        (Some(false), "CleanupGivenUp")
    );
    facts = deleted(facts, 1);
    assert_eq!(decide(&facts, &settings()).hold, None);
    let skip = (names::SKIP_CLEANUP.to_owned(), "true".to_owned());
    facts.savepoint.metadata.annotations = Some([skip].into());
    let decision = decide(&facts, &settings());
    assert_eq!(
        (decision.hold, decision.events[0].reason),
        (Some(false), "CleanupSkipped")
    );
}
