//! Which writes a decision makes, and in which order: against an API server that takes them, or not.

use http::{Request, Response};
use kube::client::Body;
use kube::runtime::events::Reporter;

use super::*;
use crate::decide::decide;
use crate::decide::tests::running;

/// Every write, as method, path and body, to an API server that takes all of them and gives each the uid `made`.
type Writes = Arc<Mutex<Vec<(String, String, Value)>>>;

fn writer(facts: &Facts) -> (Writer, Writes) {
    writer_to(facts, None)
}

/// The same, where the API server takes no patch of this kind.
fn writer_to(facts: &Facts, refused: Option<&'static str>) -> (Writer, Writes) {
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
            if refused.is_some_and(|kind| parts.uri.path().contains(kind)) {
                let refusal = Status::failure("the class cannot", "Invalid").with_code(422);
                let answer = Body::from(json!(refusal).to_string().into_bytes());
                let answer = Response::builder().status(422).body(answer);
                return Ok::<_, std::convert::Infallible>(answer.unwrap());
            }
            if parts.uri.path().contains("/streamingjobs/") {
                // Of its status alone it cannot be read.
                body = job;
            }
            body["metadata"]["uid"] = json!("made");
            Ok(Response::new(Body::from(body.to_string().into_bytes())))
        }
    });
    let client = Client::new(server, "risk");
    let writer = Writer {
        events: Recorder::new(client.clone(), Reporter::from(MANAGER)),
        client,
        authority: crate::certificates::tests::authority(),
        metrics: Arc::default(),
        written: Mutex::default(),
        refusals: Mutex::default(),
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

/// A job that runs, with this claim of 10 GiB.
fn with_claim(uid: &str) -> Facts {
    let mut facts = running();
    let claim = json!({
        "metadata": {"name": "state-payments-worker-0", "namespace": "risk", "uid": uid},
        "spec": {"resources": {"requests": {"storage": "10Gi"}}},
    });
    facts.claims = vec![serde_json::from_value(claim).unwrap()];
    facts
}

fn patches(writes: &Writes, of: &str) -> usize {
    let writes = writes.lock();
    let patches = writes
        .iter()
        .filter(|(m, path, _)| m == "PATCH" && path.contains(of));
    patches.count()
}

fn events(writes: &Writes) -> usize {
    let writes = writes.lock();
    let events = writes
        .iter()
        .filter(|(_, path, _)| path.contains("/events"));
    events.count()
}

#[tokio::test]
async fn a_claim_that_cannot_grow_is_told_once_and_tried_again_much_later() {
    let mut facts = with_claim("c");
    facts.job.spec.state = serde_json::from_value(json!({"volume": {"size": "50Gi"}})).unwrap();
    let settings = crate::build::tests::settings();
    let mut decision = decide(&facts, &settings);
    assert_eq!(decision.grow.len(), 1);
    // What the watch shows of the children is no subject here.
    decision.apply.clear();
    decision.certificate = None;
    decision.hold = None;
    decision.events.clear();
    let (writer, writes) = writer_to(&facts, Some("/persistentvolumeclaims/"));
    let first = writer.carry_out(&facts, &decision).await.unwrap();
    assert!(!first.objects, "nothing was written but the status");
    assert_eq!(events(&writes), 1);
    let (_, _, body) = writes.lock().last().unwrap().clone();
    let ready = &body["status"]["conditions"][0];
    assert_eq!(ready["type"], "Ready");
    let message = ready["message"].as_str().unwrap();
    let note = "claim state-payments-worker-0 cannot grow to 50Gi: the class cannot";
    assert!(message.ends_with(note), "{message}");
    let again = |after: i64| {
        let mut facts = facts.clone();
        facts.now += chrono::TimeDelta::seconds(after);
        facts
    };
    writer.carry_out(&again(15), &decision).await.unwrap();
    assert_eq!(patches(&writes, "/persistentvolumeclaims/"), 1);
    writer.carry_out(&again(600), &decision).await.unwrap();
    assert_eq!(patches(&writes, "/persistentvolumeclaims/"), 2);
    assert_eq!(events(&writes), 1, "it was told");
    // Another size is another question, and so is another claim.
    decision.grow[0].1 = "60Gi".parse().unwrap();
    writer.carry_out(&again(600), &decision).await.unwrap();
    assert_eq!(patches(&writes, "/persistentvolumeclaims/"), 3);
    let mut other = again(600);
    other.claims = with_claim("d").claims;
    writer.carry_out(&other, &decision).await.unwrap();
    assert_eq!(patches(&writes, "/persistentvolumeclaims/"), 4);
    assert_eq!(events(&writes), 3);
    writer.forget(&BTreeSet::new());
    assert!(writer.refusals.lock().is_empty());
}

#[tokio::test]
async fn a_claim_is_abandoned_and_never_its_successor() {
    let facts = with_claim("c");
    let mut decision = decide(&facts, &crate::build::tests::settings());
    decision.abandon = vec!["state-payments-worker-0".to_owned()];
    let (writer, writes) = writer(&facts);
    writer.carry_out(&facts, &decision).await.unwrap();
    let claim = at(&writes, "/persistentvolumeclaims/state-payments-worker-0").unwrap();
    let (method, _, body) = writes.lock()[claim].clone();
    assert_eq!(method, "DELETE");
    assert_eq!(body["preconditions"], json!({"uid": "c"}));
}
