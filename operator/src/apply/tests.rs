//! Which writes a decision makes, and in which order: against an API server that takes all of them.

use http::{Request, Response};
use kube::client::Body;
use kube::runtime::events::Reporter;

use super::*;
use crate::decide::decide;
use crate::decide::tests::running;

/// Every write, as method, path and body, to an API server that takes all of them and gives each the uid `made`.
type Writes = Arc<Mutex<Vec<(String, String, Value)>>>;

fn writer(facts: &Facts) -> (Writer, Writes) {
    let job = json!(facts.job);
    let writes = Writes::default();
    let seen = Arc::clone(&writes);
    let server = tower::service_fn(move |request: Request<Body>| {
        let (seen, job) = (Arc::clone(&seen), job.clone());
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap();
            let mut body: Value = serde_yaml::from_slice(&bytes).unwrap_or_default();
            let path = parts.uri.path().to_owned();
            let write = (parts.method.to_string(), path, body.clone());
            seen.lock().push(write);
            if parts.uri.path().contains("/streamingjobs/") {
                // Of its status alone it cannot be read.
                body = job;
            }
            body["metadata"]["uid"] = json!("made");
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(
                body.to_string().into_bytes(),
            )))
        }
    });
    let client = Client::new(server, "risk");
    let writer = Writer {
        events: Recorder::new(client.clone(), Reporter::from(MANAGER)),
        client,
        authority: crate::certificates::tests::authority(),
        metrics: Arc::default(),
        written: Mutex::default(),
    };
    (writer, writes)
}

/// Where the first write to a path that ends so stands.
fn at(writes: &Writes, end: &str) -> Option<usize> {
    let writes = writes.lock();
    writes.iter().position(|(_, path, _)| path.ends_with(end))
}

#[tokio::test]
async fn a_certificate_belongs_to_the_version_and_is_there_before_the_pods() {
    let mut facts = running();
    facts.stateful_set = None;
    facts.versions.clear();
    facts.pods.clear();
    let decision = decide(&facts, &crate::build::tests::settings());
    let issue = decision.certificate.clone().unwrap();
    let (writer, writes) = writer(&facts);
    assert!(writer.carry_out(&facts, &decision).await.unwrap().objects);
    let version = names::version("payments", &issue.version);
    let map = at(&writes, &format!("/configmaps/{version}")).unwrap();
    let secret = at(&writes, "/secrets").unwrap();
    let set = at(&writes, "/statefulsets/payments-worker").unwrap();
    assert!(map < secret && secret < set, "{map} {secret} {set}");
    let (method, _, body) = writes.lock()[secret].clone();
    assert_eq!(method, "POST");
    assert_eq!(body["metadata"]["name"], json!(issue.secret));
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": version, "uid": "made"});
    assert_eq!(body["metadata"]["ownerReferences"], json!([owner]));
}

#[tokio::test]
async fn a_renewed_certificate_belongs_to_the_version_that_is_there() {
    let mut facts = running();
    let version = facts.running_version().unwrap().to_owned();
    let name = names::version("payments", &version);
    let owner = crate::build::owner(&facts.job);
    let map = json!({"metadata": {"uid": "there", "ownerReferences": [owner]}});
    facts.objects.insert((Kind::ConfigMap, name), map);
    facts.now += chrono::TimeDelta::days(90);
    let decision = decide(&facts, &crate::build::tests::settings());
    let (writer, writes) = writer(&facts);
    writer.carry_out(&facts, &decision).await.unwrap();
    let secret = at(&writes, "/secrets").unwrap();
    let (_, _, body) = writes.lock()[secret].clone();
    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "there");
    // No pod is touched, and no Secret but by making one.
    assert_eq!(at(&writes, "/pods/payments-worker-0"), None);
    let writes = writes.lock();
    let mut secrets = writes
        .iter()
        .filter(|(_, path, _)| path.contains("/secrets"));
    assert!(secrets.all(|(method, path, _)| method == "POST" && path.ends_with("/secrets")));
}
