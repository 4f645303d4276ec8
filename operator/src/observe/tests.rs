//! What is read, and for how long it is waited for.

use std::convert::Infallible;

use axum::body::{Body as Answer, Bytes};
use http::{Request, Response};
use kube::client::Body;
use kube::runtime::reflector;

use super::*;

/// With empty caches, and an HTTP client that is asked nothing.
pub(crate) fn observer(client: Client) -> Observer {
    let caches = Caches {
        pods: reflector::store().0,
        claims: reflector::store().0,
        savepoints: reflector::store().0,
    };
    let authority = crate::certificates::tests::authority();
    Observer {
        client,
        http: coordinator::client(authority.client().unwrap(), caches.pods.clone()).unwrap(),
        caches,
        filled: OnceCell::new_with(Some(())),
        authority: authority.identity(),
        turns: Semaphore::new(1),
        heard: Arc::default(),
        loads: Mutex::default(),
    }
}

/// An answer that begins and never ends.
pub(crate) fn stalled() -> Response<Answer> {
    let begun = futures::stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]);
    let rest = futures::stream::pending();
    Response::new(Answer::from_stream(futures::StreamExt::chain(begun, rest)))
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stalls_keeps_no_other_job_from_being_read() {
    let server = tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(stalled()) });
    let observer = observer(Client::new(server, "risk"));
    let mut job = crate::build::tests::job();
    job.spec.workers.service_account_name = "deployer".to_owned();
    let read = tokio::time::timeout(Duration::from_secs(60), observer.facts(job));
    let read = read.await.expect("it is given up");
    assert!(matches!(read, Err(kube::Error::Service(_))), "{read:?}");
    assert_eq!(observer.turns.available_permits(), 1);
}

#[tokio::test]
async fn a_version_that_is_not_at_hand_yet_is_asked_for_by_its_name() {
    let mut job = crate::build::tests::job();
    job.metadata.namespace = Some("risk".to_owned());
    let wanted = name_of(&job);
    let running = crate::decide::tests::running();
    let mut set = serde_json::to_value(running.stateful_set.unwrap()).unwrap();
    let memory = serde_json::json!({"accepted": "before"}).to_string();
    set["metadata"]["annotations"][names::MEMORY] = memory.into();
    set["spec"]["template"]["metadata"]["annotations"][names::VERSION] = "runs".into();
    let map = |version: &str| {
        let labels = serde_json::json!({names::JOB: job.name_any()});
        let name = names::version(&job.name_any(), version);
        serde_json::json!({"metadata": {"name": name, "namespace": "risk", "labels": labels}})
    };
    let list = serde_json::json!({"metadata": {}, "items": [map("runs")]});
    let (before, asked) = (map("before"), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&asked);
    let server = tower::service_fn(move |request: Request<Body>| {
        let uri = request.uri().to_string();
        let answer = match uri.rsplit('/').next().unwrap_or_default() {
            last if last.starts_with("configmaps?") => Some(list.clone()),
            last if last.ends_with("-v-before") => Some(before.clone()),
            _ if uri.contains("/statefulsets/") => Some(set.clone()),
            _ => None,
        };
        seen.lock().push(uri);
        async move {
            let none = kube::core::Status::failure("", "NotFound").with_code(404);
            let code = if answer.is_some() { 200 } else { 404 };
            let body = answer.unwrap_or_else(|| serde_json::json!(none));
            let mut answer = Response::new(Answer::from(body.to_string()));
            *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
            Ok::<_, Infallible>(answer)
        }
    });
    let observer = observer(Client::new(server, "risk"));
    let facts = observer.facts(job).await.unwrap();
    assert_eq!(
        facts.versions.keys().collect::<Vec<_>>(),
        ["before", "runs"]
    );
    let asked = asked.lock();
    let of = |end: &str| asked.iter().filter(|uri| uri.ends_with(end)).count();
    assert_eq!(
        (of("-v-before"), of("-v-runs"), of(&format!("-v-{wanted}"))),
        (1, 0, 1)
    );
    let list = asked
        .iter()
        .find(|uri| uri.contains("/configmaps?"))
        .unwrap();
    assert!(list.contains("resourceVersion=0"), "{list}");
}
