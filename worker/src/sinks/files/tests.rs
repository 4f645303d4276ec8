//! Files over several epochs: what is visible when, and that a crash at any write changes neither names nor contents.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::{FilesSink, FilesSinkConfig, Rules};
use crate::folder::Folder;
use crate::sinks::contract::subjects::plan;
use crate::sinks::{Marker, Record, ShardPublisher, Sink, StagedRecords, Turn};

fn sink(folder: Folder, rules: Rules) -> FilesSink {
    FilesSink::new(FilesSinkConfig {
        rows: plan(1),
        folder,
        log_id: "0f3c".to_owned(),
        rules,
    })
}

fn local(dir: &Path) -> Folder {
    Folder::open(&format!("file://{}", dir.display()), &BTreeMap::new()).unwrap()
}

fn marker(epoch: u64) -> Marker {
    Marker {
        epoch,
        chunk: Marker::ALL,
        nonce: 7,
    }
}

/// Rows of an epoch in two folders.
fn chunk(epoch: u64, rows: u64, wide: usize) -> Bytes {
    let mut staged = StagedRecords::default();
    for row in 0..rows {
        let folder = format!("day={}", row % 2);
        let record = Record {
            key: Some(Bytes::from(folder)),
            value: Some(Bytes::from(format!("{epoch:03} {row:04} {:wide$}", "."))),
            headers: vec![],
            timestamp_ms: None,
        };
        staged.push(&record, -1).unwrap();
    }
    Bytes::from(staged.data)
}

/// Visible files by name; those that are held back apart.
fn below(dir: &Path) -> (BTreeMap<String, String>, usize) {
    let (mut visible, mut held) = (BTreeMap::new(), 0);
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with("_penstock") {
                held += 1;
            } else {
                visible.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    (visible, held)
}

/// Epochs 1 to 12: one a second, a new generation from the seventh on, epochs 4 and 9 without rows, a stop at the end.
async fn step(
    publisher: &mut Box<dyn ShardPublisher>,
    epoch: u64,
    at: Marker,
) -> crate::error::Result<()> {
    let turn = Turn {
        epoch,
        generation: 1 + epoch / 7,
        now_ms: i64::try_from(epoch).unwrap() * 1000,
    };
    publisher.rolling().unwrap().turn(turn).await?;
    if !matches!(epoch, 4 | 9) && at.epoch < epoch {
        publisher
            .publish(chunk(epoch, 20 * epoch, 10), marker(epoch))
            .await?;
    }
    if epoch == 12 {
        publisher.rolling().unwrap().close().await?;
    }
    Ok(())
}

const RULES: Rules = Rules {
    size: 2000,
    interval_ms: 3000,
};

async fn without_faults(dir: &Path) -> BTreeMap<String, String> {
    let mut publisher = sink(local(dir), RULES).publisher(0, 0).unwrap();
    assert_eq!(publisher.open().await.unwrap(), None);
    publisher.init_marker(marker(0)).await.unwrap();
    for epoch in 1..=12 {
        step(&mut publisher, epoch, marker(0)).await.unwrap();
    }
    let (visible, held) = below(dir);
    assert_eq!(held, 1, "the marker is all that is left");
    visible
}

#[tokio::test]
async fn files_grow_over_epochs_until_they_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut publisher = sink(local(dir.path()), RULES).publisher(0, 0).unwrap();
    publisher.open().await.unwrap();
    publisher.init_marker(marker(0)).await.unwrap();
    // 10, 20 and 30 lines of 20 bytes a folder: neither the size nor the time is reached.
    for epoch in 1..=3 {
        step(&mut publisher, epoch, marker(0)).await.unwrap();
        assert_eq!(below(dir.path()).0.len(), 0, "epoch {epoch}");
    }
    // The fourth has no rows, and is three seconds after the first.
    step(&mut publisher, 4, marker(0)).await.unwrap();
    let (visible, held) = below(dir.path());
    let names: Vec<&str> = visible.keys().map(String::as_str).collect();
    let name = |day: u8| format!("day={day}/s-0f3c-00000-00000000000000000001-last.json");
    assert_eq!(names, [name(0), name(1)]);
    assert_eq!(visible[&name(0)].lines().count(), 10 + 20 + 30);
    assert_eq!(held, 1);
    // 50 lines, then 60: the size is reached within the second epoch.
    step(&mut publisher, 5, marker(0)).await.unwrap();
    step(&mut publisher, 6, marker(0)).await.unwrap();
    let (visible, _) = below(dir.path());
    assert_eq!(visible.len(), 4);
    let by_size = format!("day=0/s-0f3c-00000-{:020}-last.json", 5);
    assert!((2000..2020).contains(&visible[&by_size].len()));
}

#[tokio::test]
async fn a_crash_at_any_write_changes_neither_names_nor_contents() {
    let calm = tempfile::tempdir().unwrap();
    let expected = without_faults(calm.path()).await;
    assert!(expected.len() > 10);
    let rows: usize = expected.values().map(|t| t.lines().count()).sum();
    assert_eq!(
        rows,
        (1..=12)
            .filter(|e| !matches!(e, 4 | 9))
            .map(|e| 20 * e)
            .sum::<usize>()
    );
    for dies_after in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let faulty = Faulty::new(dies_after);
        let mut folder = local(dir.path());
        folder.store = Arc::new(faulty);
        let broken = sink(folder, RULES);
        let mut publisher = broken.publisher(0, 0).unwrap();
        let mut reached = 0;
        let started = async {
            publisher.open().await?;
            publisher.init_marker(marker(0)).await
        };
        let mut died = started.await.is_err();
        while !died && reached < 12 {
            reached += 1;
            died = step(&mut publisher, reached, marker(0)).await.is_err();
        }
        if !died {
            assert!(dies_after > 30, "only {dies_after} writes");
            break;
        }
        drop(publisher);
        let mut publisher = sink(local(dir.path()), RULES).publisher(0, 0).unwrap();
        let at = match publisher.open().await.unwrap() {
            Some(at) => at,
            None => {
                publisher.init_marker(marker(0)).await.unwrap();
                marker(0)
            }
        };
        // The log's Done lags behind the marker: epochs come again.
        for epoch in reached.saturating_sub(3).max(1)..=12 {
            step(&mut publisher, epoch, at).await.unwrap();
        }
        let (visible, held) = below(dir.path());
        assert_eq!(visible, expected, "after {dies_after} writes");
        assert_eq!(held, 1, "after {dies_after} writes");
    }
}

#[tokio::test]
async fn large_files_are_made_in_parts_of_local_folders_and_of_stores() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(InMemory::new());
    let rules = Rules {
        size: 30 << 20,
        interval_ms: 1000,
    };
    for folder in [local(dir.path()), Folder::of(store.clone(), "lake")] {
        let here = sink(folder, rules);
        let mut publisher = here.publisher(0, 0).unwrap();
        publisher.open().await.unwrap();
        publisher.init_marker(marker(0)).await.unwrap();
        for epoch in 1..=5 {
            let turn = Turn {
                epoch,
                generation: 1,
                now_ms: 0,
            };
            publisher.rolling().unwrap().turn(turn).await.unwrap();
            publisher
                .publish(chunk(epoch, 15_000, 1000), marker(epoch))
                .await
                .unwrap();
        }
    }
    let (visible, _) = below(dir.path());
    let name = format!("day=0/s-0f3c-00000-{:020}-last.json", 1);
    assert_eq!(visible.len(), 2);
    assert!(visible[&name].len() >= 30 << 20);
    let object = ObjectPath::from(format!("lake/{name}"));
    let same = store.get(&object).await.unwrap().bytes().await.unwrap();
    assert!(same == visible[&name].as_bytes(), "the same bytes in both");
}

#[tokio::test]
async fn a_file_of_very_many_epochs_keeps_its_lines_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules {
        size: 1 << 30,
        interval_ms: 1 << 40,
    };
    let mut publisher = sink(local(dir.path()), rules).publisher(0, 0).unwrap();
    publisher.open().await.unwrap();
    publisher.init_marker(marker(0)).await.unwrap();
    for epoch in 1..=200 {
        publisher
            .publish(chunk(epoch, 4, 10), marker(epoch))
            .await
            .unwrap();
        if epoch % 37 == 0 {
            publisher.open().await.unwrap();
        }
    }
    let (_, held) = below(dir.path());
    assert!(held < 70, "{held} objects");
    publisher.rolling().unwrap().close().await.unwrap();
    let (visible, held) = below(dir.path());
    assert_eq!((visible.len(), held), (2, 1));
    for text in visible.values() {
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 400);
        assert!(lines.is_sorted());
    }
}

/// A local store that writes so many times and then no more: what a crash between two writes leaves.
#[derive(Debug)]
struct Faulty {
    inner: object_store::local::LocalFileSystem,
    left: std::sync::atomic::AtomicI64,
}

impl Faulty {
    fn new(writes: i64) -> Self {
        Self {
            inner: object_store::local::LocalFileSystem::new(),
            left: writes.into(),
        }
    }

    fn write(&self) -> object_store::Result<()> {
        match self.left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) {
            1.. => Ok(()),
            _ => Err(object_store::Error::Generic {
                store: "faulty",
                source: "it is dead".into(),
            }),
        }
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.write()?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.write()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(
        &self,
        location: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        match self.write() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(e) => futures::stream::iter([Err(e)]).boxed(),
        }
    }

    fn list(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.write()?;
        self.inner.copy_opts(from, to, options).await
    }
}
