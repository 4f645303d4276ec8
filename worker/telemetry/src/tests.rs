//! Spans as a collector gets them.

use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

#[test]
fn spans_are_sent_where_a_collector_is_named_and_nobody_said_no() {
    let asked = |set: &[(&str, &str)]| {
        names_a_collector(|name| {
            let found = set.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    };
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    assert!(!asked(&[]));
    assert!(!asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
    assert!(asked(&[endpoint]));
    assert!(asked(&[(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "http://collector:4318/v1/traces"
    )]));
    assert!(!asked(&[endpoint, ("OTEL_SDK_DISABLED", "true")]));
    assert!(asked(&[endpoint, ("OTEL_SDK_DISABLED", "false")]));
    assert!(!asked(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
}

/// A collector, by its address, and what it got.
fn collector() -> (
    String,
    mpsc::Receiver<(HeaderMap, ExportTraceServiceRequest)>,
) {
    let (tell, told) = mpsc::channel();
    let (bound, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async move {
            let take = post(move |headers: HeaderMap, body: bytes::Bytes| async move {
                let request = ExportTraceServiceRequest::decode(body).unwrap();
                tell.send((headers, request)).unwrap();
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, Router::new().route("/v1/traces", take))
                .await
                .unwrap();
        });
    });
    (format!("http://{}", address.recv().unwrap()), told)
}

/// A process that sends its spans there.
fn process(url: &str) -> SdkTracerProvider {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{url}/v1/traces"))
        .with_http_client(post::Post::new().unwrap())
        .build()
        .unwrap();
    SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .build()
}

/// What one process sent at its end, by name.
fn sent(told: &mpsc::Receiver<(HeaderMap, ExportTraceServiceRequest)>) -> (HeaderMap, Vec<Span>) {
    let (headers, request) = told.recv_timeout(Duration::from_secs(10)).unwrap();
    let scopes = request
        .resource_spans
        .into_iter()
        .flat_map(|r| r.scope_spans);
    let mut sent: Vec<_> = scopes.flat_map(|s| s.spans).collect();
    sent.sort_by(|a, b| a.name.cmp(&b.name));
    (headers, sent)
}

#[test]
fn a_collector_gets_our_spans_with_their_fields_and_parents_and_nobody_elses() {
    let (url, told) = collector();
    let provider = process(&url);
    let subscriber = tracing_subscriber::registry().with(spans(&provider));
    tracing::subscriber::with_default(subscriber, || {
        let epoch = tracing::info_span!(target: "penstock_worker::coordinator", "epoch", epoch = 7, job = "payments");
        let _in = epoch.enter();
        drop(tracing::debug_span!(target: "penstock_worker::member", "publish", sink = "large"));
        drop(tracing::trace_span!(target: "penstock_worker::task", "batch"));
        drop(tracing::error_span!(target: "kube_client", "HTTP"));
    });
    drop(Spans(Some(provider)));
    let (headers, sent) = sent(&told);
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let names: Vec<&str> = sent.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["epoch", "publish"]);
    assert_eq!(sent[1].parent_span_id, sent[0].span_id);
    let has = |key: &str, text: &str| {
        let of = sent[0].attributes.iter().find(|a| a.key == key);
        format!("{:?}", of.unwrap().value).contains(text)
    };
    assert!(
        has("epoch", "IntValue(7)") && has("job", "payments"),
        "{:?}",
        sent[0].attributes
    );
}

#[test]
fn an_epoch_of_one_process_is_the_parent_of_what_others_do_for_it() {
    let (url, told) = collector();
    let coordinator = process(&url);
    let subscriber = tracing_subscriber::registry().with(spans(&coordinator));
    let said = tracing::subscriber::with_default(subscriber, || {
        let epoch = tracing::info_span!(target: "penstock_worker::coordinator", "epoch", epoch = 7);
        traceparent(&epoch)
    });
    drop(Spans(Some(coordinator)));
    let (_, of_coordinator) = sent(&told);
    let said = said.expect("spans are sent");
    for worker in [1, 2] {
        let member = process(&url);
        let subscriber = tracing_subscriber::registry().with(spans(&member));
        tracing::subscriber::with_default(subscriber, || {
            let snapshot = tracing::info_span!(target: "penstock_worker::member", parent: None, "snapshot", worker);
            child_of(&snapshot, &said);
            drop(
                tracing::info_span!(target: "penstock_worker::member", parent: &snapshot, "upload"),
            );
        });
        drop(Spans(Some(member)));
        let (_, of_member) = sent(&told);
        let [snapshot, upload] = &of_member[..] else {
            panic!("{of_member:?}");
        };
        assert_eq!(
            (snapshot.name.as_str(), upload.name.as_str()),
            ("snapshot", "upload")
        );
        let epoch = &of_coordinator[0];
        assert_eq!(snapshot.parent_span_id, epoch.span_id);
        assert_eq!(upload.parent_span_id, snapshot.span_id);
        assert_eq!(
            (&snapshot.trace_id, &upload.trace_id),
            (&epoch.trace_id, &epoch.trace_id)
        );
    }
}

#[test]
fn without_a_collector_nothing_is_said_of_spans() {
    let subscriber = tracing_subscriber::registry();
    tracing::subscriber::with_default(subscriber, || {
        let epoch = tracing::info_span!(target: "penstock_worker::coordinator", "epoch");
        assert_eq!(traceparent(&epoch), None);
    });
}
