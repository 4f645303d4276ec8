//! The implementations that the contract is checked for.

use std::io::Write;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;

use super::{Subject, check};
use crate::folder::Folder;
use crate::formats::json::Timestamps;
use crate::sinks::files::{FilesSink, FilesSinkConfig, Rules};
use crate::sinks::memory::MemorySink;
use crate::sinks::print::PrintSink;
use crate::sinks::rows::{Changes, KeyKind, RowPlan, ValueFormat};

pub(crate) fn plan(shards: u16) -> RowPlan {
    RowPlan {
        name: "s".to_owned(),
        format: ValueFormat::Json(Timestamps::Iso8601),
        key: KeyKind::None,
        changes: Changes::AppendOnly,
        shard_by: vec![0],
        key_groups: 64,
        shards,
        round_robin: None,
    }
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let sink = MemorySink::new(plan(4));
    let target = sink.clone();
    check(Subject {
        sink: Arc::new(sink),
        read: Box::new(move || {
            let values = target.records().into_iter().filter_map(|r| r.value);
            let values = values
                .map(|v| String::from_utf8(v.to_vec()).unwrap())
                .collect();
            async move { values }.boxed()
        }),
        fences: true,
        marks: true,
    })
    .await;
}

#[derive(Default)]
struct Buffer(Vec<u8>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn print_keeps_the_contract() {
    let out = Arc::new(Mutex::new(Buffer::default()));
    let printed = Arc::clone(&out);
    check(Subject {
        sink: Arc::new(PrintSink::new(plan(4), out)),
        read: Box::new(move || {
            let text = String::from_utf8(printed.lock().0.clone()).unwrap();
            async move { text.lines().map(str::to_owned).collect() }.boxed()
        }),
        fences: false,
        marks: false,
    })
    .await;
}

fn lines_below(dir: &std::path::Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with('_') {
            continue;
        }
        if path.is_dir() {
            lines_below(&path, into);
        } else {
            into.extend(
                std::fs::read_to_string(path)
                    .unwrap()
                    .lines()
                    .map(str::to_owned),
            );
        }
    }
}

async fn files(rules: Rules) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("made/by/prepare");
    let folder =
        Folder::open(&format!("file://{}", target.display()), &Default::default()).unwrap();
    let config = FilesSinkConfig {
        rows: plan(4),
        folder,
        log_id: "0f3c".to_owned(),
        rules,
    };
    check(Subject {
        sink: Arc::new(FilesSink::new(config)),
        read: Box::new(move || {
            let mut lines = vec![];
            lines_below(&target, &mut lines);
            async move { lines }.boxed()
        }),
        fences: false,
        marks: true,
    })
    .await;
}

#[tokio::test]
async fn files_keep_the_contract() {
    let interval_ms = 600_000;
    for size in [1, 100, 128 << 20] {
        files(Rules { size, interval_ms }).await;
    }
}
