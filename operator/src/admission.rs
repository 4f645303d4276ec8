//! The validating webhook: judges a manifest before it is stored, in the words of `penstock lint`, and an edit by what becomes of the
//! job's state. Nothing depends on it: where it is away the controller refuses the same manifests with the same words in the job's
//! status, and the engine an edit that the state does not fit, which is then rolled back.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::StreamingJob;
use penstock_crds::validate::{self, Bounds, Place};
use serde_json::{Value, json};

use crate::lint::Linter;
use crate::unreadable::read;
use crate::version::name_of;

/// What is said of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
}

/// Everything but the SQL: the rules of one manifest, what this version cannot do, the namespace's bounds, and what an edit may not
/// change.
pub fn judge(old: Option<&StreamingJob>, new: &StreamingJob, bounds: &Bounds) -> Verdict {
    let mut faults = validate::validate(new, Place::Cluster);
    if !faults.iter().any(Diagnostic::is_error) {
        faults.extend(validate::unsupported(&new.spec));
        faults.extend(validate::unsupported_in_cluster(&new.spec));
        faults.extend(validate::bounds(new, bounds));
        faults.extend(validate::orders(new));
        if let Some(old) = old {
            faults.extend(validate::transition(old, new));
        }
    }
    let (errors, warnings): (Vec<_>, Vec<_>) = faults.into_iter().partition(Diagnostic::is_error);
    let text = |all: Vec<Diagnostic>| all.iter().map(ToString::to_string).collect();
    Verdict {
        errors: text(errors),
        warnings: text(warnings),
    }
}

/// What the webhook judges by.
#[derive(Debug, Clone)]
pub struct Judge {
    pub linter: Linter,
    pub bounds: Bounds,
}

/// Whether nothing that runs differs: an edit of metadata, or a finalizer that goes.
fn same_spec(old: Option<&StreamingJob>, new: &StreamingJob) -> bool {
    old.is_some_and(|old| old.spec == new.spec)
}

/// Whether an edit makes a new version that takes the state of this one: this one runs, or ran last, and is accepted. Where it is on
/// trial, was rolled back or never ran, the state is another version's, and only the engine knows whose.
fn has_the_state(old: &StreamingJob, new: &StreamingJob) -> bool {
    let Some(status) = &old.status else {
        return false;
    };
    let generation = old.metadata.generation;
    let ready = status.conditions.iter();
    let ready = ready.filter(|c| c.type_ == "Ready" && c.status == "True");
    generation.is_some()
        && status.observed_generation == generation
        && status.version.as_ref().map(|v| v.spec) == generation
        && ready.count() > 0
        && name_of(old) != name_of(new)
}

/// Answers an AdmissionReview.
async fn review(State(judge): State<Arc<Judge>>, Json(review): Json<Value>) -> Json<Value> {
    let request = &review["request"];
    let verdict = verdict(&judge, request).await;
    let mut response = json!({
        "uid": request["uid"],
        "allowed": verdict.errors.is_empty(),
    });
    if !verdict.errors.is_empty() {
        response["status"] =
            json!({"code": 422, "reason": "Invalid", "message": verdict.errors.join("; ")});
    }
    if !verdict.warnings.is_empty() {
        response["warnings"] = json!(verdict.warnings);
    }
    Json(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": response,
    }))
}

/// What is said of an AdmissionRequest.
pub async fn verdict(of: &Judge, request: &Value) -> Verdict {
    let new = match read(&request["object"]) {
        Ok(new) => new,
        Err(why) => {
            return Verdict {
                errors: vec![why],
                ..Verdict::default()
            };
        }
    };
    // One that was stored by another version and cannot be read is no old one.
    let old = read(&request["oldObject"]).ok();
    if same_spec(old.as_ref(), &new) && new.metadata.deletion_timestamp.is_none() {
        // Orders are annotations.
        let faults = validate::orders(&new);
        let errors = faults.iter().map(ToString::to_string).collect();
        let warnings = Vec::new();
        return Verdict { errors, warnings };
    }
    if new.metadata.deletion_timestamp.is_some() {
        return Verdict::default();
    }
    let mut verdict = judge(old.as_ref(), &new, &of.bounds);
    if verdict.errors.is_empty() {
        let old = old.filter(|old| has_the_state(old, &new));
        match of.linter.review(old.as_ref(), &new).await {
            Ok(said) => {
                verdict.errors = said.faults;
                verdict.warnings.extend(said.warnings);
            }
            // The controller plans again before it makes anything.
            Err(error) => verdict
                .warnings
                .push(format!("spec.sql: it was not planned: {error}")),
        }
    }
    verdict
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    judge: Judge,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/validate", post(review))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(Arc::new(judge));
    let config = RustlsConfig::from_config(tls);
    let acceptor = RustlsAcceptor::new(config).acceptor(NoDelayAcceptor::new());
    axum_server::bind(address)
        .acceptor(acceptor)
        .serve(app.into_make_service())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{job, settings};
    use crate::decide::decide;
    use crate::decide::tests::running;

    #[test]
    fn an_edit_may_not_change_what_the_history_stands_on() {
        let old = job();
        let mut new = job();
        new.spec.key_groups = 128;
        new.spec.sinks[0].shards += 8;
        new.spec
            .checkpoint
            .storage
            .as_mut()
            .unwrap()
            .s3
            .as_mut()
            .unwrap()
            .prefix = "x".into();
        let verdict = judge(Some(&old), &new, &Bounds::default());
        assert_eq!(verdict.errors.len(), 3, "{verdict:?}");
        assert!(verdict.errors.iter().all(|e| e.ends_with("[PS0076]")));
        assert!(verdict.errors[0].starts_with("keyGroups: it was 64 and is 128"));
        assert_eq!(
            judge(None, &new, &Bounds::default()).errors,
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_job_out_of_bounds_is_refused_in_the_words_of_the_controller() {
        let mut settings = settings();
        let bounds = "namespaces: {risk: {storage: ['s3://archive'], volume: 1Gi, images: []}}";
        settings.bounds = serde_yaml::from_str(bounds).unwrap();
        let mut new = job();
        new.spec.workers.image = "elsewhere/penstock".to_owned();
        let verdict = judge(None, &new, &settings.bounds);
        assert_eq!(verdict.errors.len(), 3, "{verdict:?}");
        assert!(verdict.errors.iter().all(|e| e.ends_with("[PS0080]")));
        let mut facts = running();
        facts.job = new;
        let decision = decide(&facts, &settings);
        let conditions = &decision.status.conditions;
        let stalled = conditions.iter().find(|c| c.type_ == "Stalled").unwrap();
        assert_eq!(stalled.reason, "Invalid");
        assert_eq!(stalled.message, verdict.errors.join("; "));
        // What runs goes on as it is.
        assert!(decision.apply.is_empty() && decision.replace.is_empty());
    }

    /// `old` as it is when its version runs and is accepted, and an edit of it.
    fn edited() -> (StreamingJob, StreamingJob) {
        let mut old = job();
        old.metadata.generation = Some(7);
        old.status = serde_json::from_value(json!({
            "observedGeneration": 7,
            "version": {"spec": 7, "planHash": "x", "engine": "0.1.0"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": "",
                "lastTransitionTime": "2027-01-15T08:00:00Z"}],
        }))
        .unwrap();
        let mut new = job();
        new.spec.sql.push(' ');
        (old, new)
    }

    #[test]
    fn an_edit_is_judged_by_the_state_only_where_the_state_is_the_old_specs() {
        let (old, new) = edited();
        assert!(has_the_state(&old, &new));
        let other = |change: fn(&mut StreamingJob)| {
            let (mut old, _) = edited();
            change(&mut old);
            has_the_state(&old, &new)
        };
        fn status(job: &mut StreamingJob) -> &mut penstock_crds::status::StreamingJobStatus {
            job.status.as_mut().unwrap()
        }
        assert!(!other(|old| old.status = None), "never seen");
        assert!(!other(|old| status(old).version = None), "never ran");
        assert!(
            !other(|old| status(old).version.as_mut().unwrap().spec = 6),
            "suspended before it ran"
        );
        assert!(
            !other(|old| status(old).observed_generation = Some(6)),
            "not seen yet"
        );
        assert!(
            !other(|old| status(old).conditions[0].status = "False".to_owned()),
            "on trial, rolled back, or failed"
        );
        assert!(
            !other(|old| old.spec.sql.push(' ')),
            "the same version: suspended, or other replicas"
        );
    }

    #[test]
    fn a_secret_may_be_another_one() {
        let old = job();
        let mut new = job();
        let storage = new.spec.checkpoint.storage.as_mut().unwrap();
        storage.secret_ref.as_mut().unwrap().name = "rotated".to_owned();
        let verdict = judge(Some(&old), &new, &Bounds::default());
        assert_eq!(verdict, Verdict::default());
    }
}
