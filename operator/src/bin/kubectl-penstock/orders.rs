//! What a person asks for besides the spec: a savepoint, an earlier epoch, to go on without what is gone.

use std::time::Duration;

use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::{Epoch, JobStatus};
use penstock_crds::savepoint::{JobRef, Savepoint, SavepointPhase, SavepointSpec};
use penstock_crds::validate;
use penstock_operator::{clock, names};
use serde_json::json;

use super::{Output, Trouble, pod, show, top, trouble};

/// Creates a Savepoint; waits until it is completed, or has failed.
pub async fn savepoint(
    client: &Client,
    namespace: &str,
    job: &str,
    name: Option<&str>,
    wait: u64,
) -> Result<String, Trouble> {
    let api: Api<Savepoint> = Api::namespaced(client.clone(), namespace);
    let made = || format!("{job}-{}", clock::now().format("%m%d-%H%M%S"));
    let name = name.map_or_else(made, str::to_owned);
    let job_ref = JobRef {
        name: job.to_owned(),
    };
    let new = Savepoint::new(&name, SavepointSpec { job_ref });
    let created = api.create(&PostParams::default(), &new).await;
    created.map_err(|e| trouble(e, job, namespace))?;
    if wait == 0 {
        return Ok(format!("savepoint {name} is asked for\n"));
    }
    let mut said = String::new();
    for _ in 0..wait.saturating_mul(2) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = api
            .get(&name)
            .await
            .map_err(|e| trouble(e, job, namespace))?;
        let status = now.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        if let Some(ready) = ready.filter(|r| r.message != said) {
            said.clone_from(&ready.message);
            eprintln!("{}: {said}", ready.reason);
        }
        match status.phase {
            Some(SavepointPhase::Completed) => {
                let (epoch, place) = (
                    status.epoch.unwrap_or(0),
                    status.location.unwrap_or_default(),
                );
                return Ok(format!("savepoint {name}: epoch {epoch} in {place}\n"));
            }
            Some(SavepointPhase::Failed) => {
                return Err(Trouble::Other(format!("savepoint {name}: {said}")));
            }
            Some(SavepointPhase::Pending) | None => {}
        }
    }
    Err(Trouble::Other(format!(
        "savepoint {name} is not completed after {wait} s ({said}); it goes on: kubectl get savepoint {name}"
    )))
}

/// Goes back to an epoch, when the person has been told what that means.
pub async fn rollback(
    jobs: &Api<StreamingJob>,
    job: &StreamingJob,
    to: u64,
    yes: bool,
) -> Result<String, Trouble> {
    let name = job.name_any();
    let sinks: Vec<&str> = job.spec.sinks.iter().map(|s| s.name.as_str()).collect();
    let newest = job.status.as_ref().and_then(|s| s.epoch.as_ref());
    let newest = newest.map_or_else(|| "the newest".to_owned(), |e| e.number.to_string());
    let text = format!(
        "{name} goes back to epoch {to}. What it published in epochs {} to {newest} stays published in {}, and is published again.",
        to.saturating_add(1),
        sinks.join(", ")
    );
    if !yes {
        return Err(Trouble::Other(format!("{text} Say so with --yes")));
    }
    // A request is carried out once: a later one is another one.
    let order = format!("{to}@{}", clock::now().format("%Y%m%dT%H%M%S"));
    order_by(jobs, job, names::GO_BACK, &order).await?;
    Ok(format!("{text}\n"))
}

/// Accepts that input is gone.
pub async fn accept_loss(
    jobs: &Api<StreamingJob>,
    job: &StreamingJob,
    loss: &str,
) -> Result<String, Trouble> {
    order_by(jobs, job, names::ACCEPT_LOSS, loss).await?;
    Ok(format!(
        "{} goes on without what {loss} has lost; its log keeps what that was\n",
        job.name_any()
    ))
}

/// Writes an order down, if it is one.
async fn order_by(
    jobs: &Api<StreamingJob>,
    job: &StreamingJob,
    annotation: &str,
    order: &str,
) -> Result<(), Trouble> {
    let name = job.name_any();
    let mut ordered = job.clone();
    let all = ordered.metadata.annotations.get_or_insert_default();
    all.insert(annotation.to_owned(), order.to_owned());
    let faults = validate::orders(&ordered);
    if let Some(fault) = faults.iter().find(|f| Diagnostic::is_error(f)) {
        return Err(Trouble::Other(fault.to_string()));
    }
    let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: order}}}));
    let namespace = job.namespace().unwrap_or_default();
    let patched = jobs.patch(&name, &PatchParams::default(), &patch).await;
    patched.map(drop).map_err(|e| trouble(e, &name, &namespace))
}

/// What the job's operators and workers do, as the worker that coordinates tells it.
pub async fn top(
    namespace: &str,
    context: Option<&str>,
    job: &str,
    output: Output,
) -> Result<String, Trouble> {
    let scope = scope(namespace, context);
    let parsed = |text: &str| -> Result<JobStatus, Trouble> {
        serde_json::from_str(text).map_err(|e| Trouble::Other(e.to_string()))
    };
    let mut text = status(&scope, job).await?;
    if let Some(other) = parsed(&text)?.coordinator.filter(|worker| *worker > 0) {
        text = pod::page("kubectl", &scope, &names::pod(job, other), "/status").await?;
    }
    match output {
        Output::Json => Ok(text + "\n"),
        Output::Text => Ok(top::top(&parsed(&text)?, clock::now())),
    }
}

/// Arguments of kubectl.
fn scope<'a>(namespace: &'a str, context: Option<&'a str>) -> Vec<&'a str> {
    let mut scope = vec!["--namespace", namespace];
    if let Some(context) = context {
        scope.extend(["--context", context]);
    }
    scope
}

/// The status page of the first worker: any of them knows which one coordinates.
async fn status(scope: &[&str], job: &str) -> Result<String, Trouble> {
    pod::page("kubectl", scope, &names::pod(job, 0), "/status").await
}

/// The newest epochs, as the worker tells them.
pub async fn epochs(
    client: &Client,
    namespace: &str,
    context: Option<&str>,
    job: &str,
    output: Output,
) -> Result<String, Trouble> {
    let other = |e: &dyn std::fmt::Display| Trouble::Other(e.to_string());
    let scope = scope(namespace, context);
    let status: JobStatus =
        serde_json::from_str(&status(&scope, job).await?).map_err(|e| other(&e))?;
    let pod = names::pod(job, status.coordinator.unwrap_or(0));
    let text = pod::page("kubectl", &scope, &pod, "/epochs").await?;
    if output == Output::Json {
        return Ok(text + "\n");
    }
    let all: Vec<Epoch> = serde_json::from_str(&text).map_err(|e| other(&e))?;
    let api: Api<Savepoint> = Api::namespaced(client.clone(), namespace);
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(|e| trouble(e, job, namespace))?.items;
    let of_job = listed.into_iter().filter(|s| s.spec.job_ref.name == job);
    let savepoints: Vec<Savepoint> = of_job.collect();
    Ok(show::epochs(&all, &savepoints, clock::now()))
}
