//! What the loops ask of the API server, and what they keep.

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use kube::core::Status;
use kube::runtime::events::Recorder;
use penstock_crds::savepoint::SavepointPhase;
use serde_json::Value;

use super::*;
use crate::build::tests::{job, settings};
use crate::decide::tests::running;
use crate::observe::tests::observer;

/// What was asked: the method, and of a write what was written.
type Asked = Arc<Mutex<Vec<(Method, Value)>>>;

/// An API server that has one object of each of these kinds.
fn server<const N: usize>(objects: [(&'static str, Value); N]) -> (Client, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let server = tower::service_fn(move |request: Request<Body>| {
        let (seen, objects) = (Arc::clone(&seen), objects.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_yaml::from_slice(&body).unwrap_or_default();
            seen.lock().push((parts.method, body));
            let path = parts.uri.path();
            let found = objects.into_iter().find(|(kind, _)| path.contains(kind));
            let (code, answer) = match found {
                Some((_, object)) => (StatusCode::OK, object),
                None => {
                    let none = Status::failure("", "NotFound").with_code(404);
                    (StatusCode::NOT_FOUND, json!(none))
                }
            };
            let mut answer = Response::new(Body::from(answer.to_string().into_bytes()));
            *answer.status_mut() = code;
            Ok::<_, Infallible>(answer)
        }
    });
    (Client::new(server, "risk"), asked)
}

/// All that the loops work with, against this API server.
fn shared(client: Client) -> Arc<Shared> {
    let (wake, _) = futures::channel::mpsc::unbounded();
    let observer = Arc::new(observer(client.clone()));
    let metrics = Arc::new(Metrics::default());
    let writer = Arc::new(Writer {
        events: Recorder::new(client.clone(), Reporter::from(MANAGER)),
        client,
        authority: crate::certificates::tests::authority(),
        metrics: Arc::clone(&metrics),
        written: Mutex::default(),
        refusals: Mutex::default(),
    });
    let jobs = reflector::store().0;
    let poll = Poll::new(
        Arc::clone(&observer),
        Arc::clone(&writer),
        jobs,
        wake.clone(),
        Arc::clone(&metrics),
    );
    Arc::new(Shared {
        observer,
        writer,
        poll: Arc::new(poll),
        settings: settings(),
        metrics,
        verdicts: Arc::new(Verdicts::new(Linter::new("penstock".into()))),
        wake,
        failures: Failures::default(),
        savepoint_failures: Failures::default(),
        waits: Mutex::default(),
    })
}

fn completed() -> Savepoint {
    serde_json::from_value(json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "Savepoint",
        "metadata": {"name": "before", "namespace": "risk", "uid": "s", "resourceVersion": "5", "finalizers": [FINALIZER]},
        "spec": {"jobRef": {"name": "payments"}},
        "status": {"phase": SavepointPhase::Completed},
    }))
    .unwrap()
}

#[tokio::test]
async fn a_savepoint_that_is_completed_asks_nothing_of_anybody() {
    let (client, asked) = server([]);
    let shared = shared(client);
    let savepoint = completed();
    let done = savepoints::look_at(&savepoint, &shared).await.unwrap();
    assert_eq!(done, Action::await_change());
    assert_eq!(asked.lock().len(), 0);
}

#[tokio::test]
async fn the_pod_of_its_step_goes_first_and_one_that_is_deleted_is_looked_at() {
    let (client, asked) = server([
        ("/streamingjobs/", json!(job())),
        ("/savepoints/", json!(completed())),
    ]);
    let (pods, mut watch) = reflector::store::<Pod>();
    let mut shared = shared(client);
    let all = Arc::get_mut(&mut shared).unwrap();
    all.observer = Arc::new(Observer {
        caches: Caches {
            pods,
            ..all.observer.caches.clone()
        },
        ..observer(all.writer.client.clone())
    });
    let labels = json!({crate::names::SAVEPOINT: "before", "app.kubernetes.io/component": "step"});
    let pod = json!({"metadata": {"name": "before-savepoint-pin", "namespace": "risk", "labels": labels}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    watch.apply_watcher_event(&watcher::Event::Apply(pod.clone()));
    let mut savepoint = completed();
    let done = savepoints::look_at(&savepoint, &shared).await.unwrap();
    assert_eq!(done, Action::requeue(POLL));
    let swept = |asked: &Asked| asked.lock().iter().any(|(m, _)| *m == Method::DELETE);
    assert!(swept(&asked));
    watch.apply_watcher_event(&watcher::Event::Delete(pod));
    let done = savepoints::look_at(&savepoint, &shared).await.unwrap();
    assert_eq!(done, Action::await_change());
    savepoint.metadata.deletion_timestamp = Some(crate::status::time(crate::clock::now()));
    let done = savepoints::look_at(&savepoint, &shared).await.unwrap();
    assert_ne!(done, Action::await_change());
}

#[tokio::test]
async fn a_savepoint_that_the_watch_shows_late_does_not_fail_for_want_of_its_job() {
    // The job waited for it, and went.
    let (client, asked) = server([("/savepoints/", json!(completed()))]);
    let shared = shared(client);
    let mut seen = completed();
    seen.status.as_mut().unwrap().phase = Some(SavepointPhase::Pending);
    savepoints::look_at(&seen, &shared).await.unwrap();
    let written = |asked: &Asked| asked.lock().iter().any(|(m, _)| *m != Method::GET);
    assert!(!written(&asked), "{:?}", asked.lock());
    // Where it is as it was seen, that is what is wrong with it; and only this one of its name.
    let (client, asked) = server([("/savepoints/", json!(seen))]);
    let shared = self::shared(client);
    savepoints::look_at(&seen, &shared).await.unwrap();
    let last = asked.lock().pop().unwrap();
    seen.metadata.uid = Some("another".to_owned());
    savepoints::look_at(&seen, &shared).await.unwrap();
    assert_eq!(asked.lock().pop().unwrap().0, Method::GET);
    let (method, body) = last;
    assert_eq!(
        (method, &body["status"]["phase"]),
        (Method::PATCH, &json!("Failed"))
    );
    assert_eq!(
        body["metadata"],
        json!({"uid": "s", "resourceVersion": "5"})
    );
}

#[tokio::test(start_paused = true)]
async fn of_objects_that_are_gone_nothing_is_kept() {
    let shared = shared(server([]).0);
    shared.pause(&job(), false, POLL);
    shared.failures.pause("a");
    shared.savepoint_failures.pause("b");
    let sweeps = shared.poll.run(|jobs| shared.forget(jobs));
    // It never ends by itself.
    let _ = tokio::time::timeout(Duration::from_secs(70), sweeps).await;
    assert!(shared.waits.lock().is_empty());
    let first = Duration::from_millis(500);
    assert_eq!(shared.failures.pause("a"), first);
    assert_eq!(shared.savepoint_failures.pause("b"), first);
}

#[test]
fn the_planner_is_asked_only_where_nothing_else_decides() {
    let settings = settings();
    let mut facts = running();
    assert!(!asks_the_planner(&facts, &settings), "it was made");
    facts.versions.clear();
    assert!(asks_the_planner(&facts, &settings));
    facts.job.spec.workers.service_account_name = "somebody".to_owned();
    assert!(!asks_the_planner(&facts, &settings), "it is refused anyway");
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_told_again_whom_to_believe_where_somebody_took_that_away() {
    let name = "streamingjobs.penstock.dev";
    let configuration = |client: Value| {
        let webhook = json!({
            "name": name, "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        });
        json!({"metadata": {"name": "penstock-operator"}, "webhooks": [webhook]})
    };
    let minutes = async |object: Value| {
        let (client, asked) = server([("/validatingwebhookconfigurations/", object)]);
        let kept = keep_trusted(&client, "penstock-operator", "an authority");
        let _ = tokio::time::timeout(TRUST * 2 + TRUST / 2, kept).await;
        asked.lock().clone()
    };
    let authority = json!(ByteString(b"an authority".to_vec()));
    let asked = minutes(configuration(json!({"caBundle": authority}))).await;
    let methods: Vec<&Method> = asked.iter().map(|(method, _)| method).collect();
    assert_eq!(methods, [Method::GET; 3].iter().collect::<Vec<_>>());
    let asked = minutes(configuration(json!({}))).await;
    let methods: Vec<&str> = asked.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["GET", "PATCH", "GET", "PATCH", "GET", "PATCH"]);
    let told = &asked[5].1["webhooks"][0];
    assert_eq!(told["clientConfig"]["caBundle"], authority);
}
