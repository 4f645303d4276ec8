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
