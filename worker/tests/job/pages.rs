//! Which pages of a job everybody may read.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use penstock_worker::coordinator::progress::Progress;
use penstock_worker::job::http;

use super::{ask, job};

const JOB: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: shown}
spec:
  sources:
    - name: ticks
      generator: {rows: 1}
      columns: [{name: n, type: BIGINT, generate: {sequence: {}}}]
  sql: INSERT INTO out SELECT n FROM ticks
  sinks: [{name: out, print: {}}]
"#;

/// The status line of an answer.
fn status(address: SocketAddr, page: &str) -> String {
    let (head, _) = ask(address, page);
    head.lines().next().expect("a line").to_owned()
}

/// An address of this machine as others see it; `None` without a network. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

#[test]
fn what_a_job_does_is_shown_to_its_own_machine_and_metrics_to_all() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (spec, plan) = job(JOB);
    let shown = http::Shown {
        job: spec,
        plan,
        progress: Arc::new(Progress::default()),
    };
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let bound = runtime
        .block_on(http::serve(everywhere, shown))
        .expect("it listens");
    let here = SocketAddr::from(([127, 0, 0, 1], bound.port()));
    for page in ["/status", "/epochs", "/metrics", "/healthz"] {
        assert_eq!(status(here, page), "HTTP/1.1 200 OK", "{page}");
    }
    let own = own_address().expect("an address that is not loopback: the refusal needs one");
    let there = SocketAddr::from((own, bound.port()));
    for page in ["/status", "/epochs"] {
        assert_eq!(status(there, page), "HTTP/1.1 403 Forbidden", "{page}");
    }
    for page in ["/metrics", "/healthz"] {
        assert_eq!(status(there, page), "HTTP/1.1 200 OK", "{page}");
    }
    // It does not run yet, and says so to everybody.
    assert_eq!(status(there, "/readyz"), "HTTP/1.1 503 Service Unavailable");
}
