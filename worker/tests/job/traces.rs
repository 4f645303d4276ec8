//! Spans of several processes are one trace: what a collector gets of an epoch.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, mpsc};

use axum::Router;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustix::process::Signal;

use super::workers::{Bed, NUMBERS, errors, records};

/// A collector, by its address, and what it has got so far.
fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let got = Arc::new(Mutex::new(Vec::new()));
    let (bound, address) = mpsc::channel();
    let keep = got.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async move {
            let take = post(move |body: bytes::Bytes| async move {
                let request = ExportTraceServiceRequest::decode(body).expect("spans");
                let of = request.resource_spans.into_iter();
                let spans = of.flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
                keep.lock().expect("no panic").extend(spans);
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
            let listener = listener.expect("it listens");
            let address = listener.local_addr().expect("an address");
            bound.send(address).expect("somebody waits");
            let app = Router::new().route("/v1/traces", take);
            axum::serve(listener, app).await.expect("it serves");
        });
    });
    let address = address.recv().expect("it listens");
    (format!("http://{address}"), got)
}

fn number(span: &Span, key: &str) -> i64 {
    let of = span.attributes.iter().find(|a| a.key == key);
    match of.and_then(|a| a.value.as_ref()?.value.as_ref()) {
        // Numbers without a sign are sent as text.
        Some(Value::StringValue(text)) => text.parse().expect("a number"),
        other => panic!("{key} of {}: {other:?}", span.name),
    }
}

fn children<'a>(spans: &'a [Span], of: &Span, name: &str) -> Vec<&'a Span> {
    let named = spans.iter().filter(|s| s.name == name);
    named
        .filter(|s| s.parent_span_id == of.span_id && s.trace_id == of.trace_id)
        .collect()
}

#[test]
fn what_all_workers_do_for_an_epoch_is_one_trace() {
    let (url, got) = collector();
    let bed = Bed::new(NUMBERS);
    let mut run = bed.start_with(3, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    let folder = bed.folder.path();
    run.until("it commits", |_| records(folder, "numbers") > 10);
    run.tell(Signal::INT);
    let output = run.ended();
    assert!(output.status.success(), "{}", errors(&output));
    let spans = got.lock().expect("no panic");
    let epochs: Vec<&Span> = spans.iter().filter(|s| s.name == "epoch").collect();
    assert!(epochs.len() > 3, "{} epochs", epochs.len());
    for epoch in epochs {
        let snapshots = children(&spans, epoch, "snapshot");
        let workers: BTreeSet<i64> = snapshots.iter().map(|s| number(s, "worker")).collect();
        assert_eq!(workers, BTreeSet::from([0, 1, 2]), "{epoch:?}");
        assert_eq!(snapshots.len(), 3, "each worker takes part once");
        for snapshot in snapshots {
            assert_eq!(number(snapshot, "epoch"), number(epoch, "epoch"));
            assert_eq!(children(&spans, snapshot, "upload").len(), 1);
        }
    }
}
