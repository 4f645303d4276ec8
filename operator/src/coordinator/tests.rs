//! The controller against workers that want more than to answer: servers on this machine with certificates of the authority.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::http::header::LOCATION;
use axum::{Json, Router};
use axum_server::tls_rustls::{RustlsConfig, from_tcp_rustls};
use kube::runtime::{reflector, watcher};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::*;
use crate::certificates::Authority;
use crate::certificates::tests::authority_of;

fn said() -> Value {
    json!({
        "job": "payments", "namespace": "risk", "log_id": "x", "generation": 1, "phase": "Running", "engine": "0.1.0",
        "rates": {"in": 1.0, "out": 1.0}, "counts": {"late": 0, "dead_letters": 0, "restarts": 0},
        "sources": [], "sinks": [],
    })
}

/// A worker of a job `payments` in this namespace, which answers so; where it is asked.
fn worker(authority: &Arc<Authority>, namespace: &str, answers: Router) -> String {
    let mut job = crate::build::tests::job();
    job.metadata.namespace = Some(namespace.to_owned());
    let issue = crate::issue::of(&job, "v", &authority.identity(), crate::clock::now());
    let secret = authority.for_workers(&job, &issue, Default::default());
    let data = secret.unwrap().data.unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&data["tls.crt"].0).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(&data["tls.key"].0).unwrap();
    let tls =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = RustlsConfig::from_config(Arc::new(tls));
    let server = from_tcp_rustls(listener, config).unwrap();
    tokio::spawn(server.serve(answers.into_make_service()));
    format!("https://payments-worker-0.payments-worker.{namespace}.svc:{port}/status")
}

/// The controller's client, where the workers of these namespaces are on this machine.
fn controller(authority: &Arc<Authority>, namespaces: &[&str]) -> Client {
    let (pods, mut watch) = reflector::store::<Pod>();
    for namespace in namespaces {
        let metadata = json!({"name": "payments-worker-0", "namespace": namespace});
        let pod = json!({"metadata": metadata, "status": {"podIP": "127.0.0.1"}});
        watch.apply_watcher_event(&watcher::Event::Apply(serde_json::from_value(pod).unwrap()));
    }
    client(authority.client().unwrap(), pods).unwrap()
}

#[tokio::test]
async fn a_worker_sends_the_controller_to_nobody_else() {
    let authority = authority_of(crate::clock::now());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let other = worker(
        &authority,
        "other",
        Router::new().fallback(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Json(said()) }
        }),
    );
    let to = other.clone();
    let sends_on = Router::new().fallback(move || {
        let to = to.clone();
        async move { (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]) }
    });
    let sly = worker(&authority, "risk", sends_on);
    let http = controller(&authority, &["risk", "other"]);
    for answer in [
        status(&http, sly.clone()).await.map(drop),
        send(http.put(sly)).await.map(drop),
    ] {
        let told = answer.unwrap_err();
        assert!(matches!(told, Unanswered::Status(s) if s == 307), "{told}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    // It would have been there.
    status(&http, other).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_worker_is_asked_by_tls_alone() {
    let authority = authority_of(crate::clock::now());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let http = controller(&authority, &["risk"]);
    let url = format!("http://payments-worker-0.payments-worker.risk.svc:{port}/status");
    assert!(status(&http, url).await.is_err());
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn an_answer_is_read_no_further_than_it_may_be() {
    let authority = authority_of(crate::clock::now());
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let endless = move || {
        let counted = Arc::clone(&counted);
        let spaces = std::iter::repeat_with(move || {
            counted.fetch_add(64 << 10, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 64 << 10]))
        });
        async move { Body::from_stream(futures::stream::iter(spaces)) }
    };
    let http = controller(&authority, &["risk"]);
    let url = worker(&authority, "risk", Router::new().fallback(endless));
    let told = status(&http, url).await.unwrap_err();
    assert!(matches!(told, Unanswered::TooLong), "{told}");
    // What lies between the two, in buffers, is not counted.
    assert!(sent.load(Ordering::Relaxed) < 32 << 20);
    let padded = |bytes: usize| {
        let text = format!("{}{}", said(), " ".repeat(bytes));
        worker(
            &authority,
            "risk",
            Router::new().fallback(move || async move { text }),
        )
    };
    assert_eq!(status(&http, padded(1 << 10)).await.unwrap().log_id, "x");
    assert!(status(&http, padded(MOST)).await.is_err());
}

#[test]
fn what_a_worker_says_fits_a_status() {
    let long = "\u{1b}[2J".repeat(1000);
    let mut said = said();
    said["log_id"] = json!(long);
    said["engine"] = json!(long);
    said["watermark"] = json!({"time": "2026-01-01T00:00:00Z", "held_back_by": long});
    said["last_failure"] = json!({"at": "2026-01-01T00:00:00Z", "code": long, "message": long});
    let said = within(serde_json::from_value(said).unwrap());
    let failure = said.last_failure.unwrap();
    let held = said.watermark.unwrap().held_back_by.unwrap();
    for text in [&said.log_id, &said.engine, &failure.code] {
        assert!(text.len() < 110 && !text.contains('\u{1b}'), "{text}");
    }
    for text in [&held, &failure.message] {
        assert!(text.len() < 1010 && !text.contains('\u{1b}'), "{text}");
    }
}
