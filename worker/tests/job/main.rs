//! Whole jobs on the real engine, on lists in memory: every SQL feature, every policy, every example, with 1, 2 and 4 slots, with
//! 2, 3 and 7 workers, and with crashes; what a planned epoch does when it is run again; and workers as processes.

mod cases;
mod files;
mod metrics;
mod pages;
mod policies;
mod replay;
mod restore;
mod savepoint;
mod traces;
mod workers;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_crds::job::StreamingJob;
use penstock_plan::Plan;
use penstock_worker::sources::memory::MemoryRecord;
use penstock_worker::testing::{self, TestFile};

/// What a job answers to who asks for a page: its head and its body.
fn ask(address: SocketAddr, page: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(
        stream,
        "GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    (head.to_owned(), body.to_owned())
}

/// A file of this repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The job of a manifest's text, planned.
fn job(manifest: &str) -> (Arc<StreamingJob>, Arc<Plan>) {
    let folder = tempfile::tempdir().expect("a folder");
    let test = load(
        folder.path(),
        manifest,
        "job: job.yaml\ncases: [{name: none, expect: {}}]\n",
    );
    (test.job, test.plan)
}

/// A test file in a folder of its own.
fn load(folder: &Path, manifest: &str, test: &str) -> TestFile {
    std::fs::write(folder.join("job.yaml"), manifest).expect("written");
    std::fs::write(folder.join("test.yaml"), test).expect("written");
    testing::load(&folder.join("test.yaml")).expect("a sound test file")
}

fn row(body: impl Into<bytes::Bytes>) -> MemoryRecord {
    MemoryRecord {
        value: Some(body.into()),
        ..MemoryRecord::default()
    }
}
