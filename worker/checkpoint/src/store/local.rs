//! A folder as a store. An object is written under a temporary name, synced, linked to its own name (which fails if that
//! exists: create-if-absent, whole or not at all) and the folder is synced. Folders list in no order, so listings sort.
//! `object_store`'s local store syncs nothing, hence this one.

use std::fs::{self, File};
use std::io::{self, ErrorKind as Io, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Create, ErrorKind, Listed, Objects, StoreError};
use crate::ids::{Entropy, Micros, Nonce, SystemEntropy};

const TEMPORARY: &str = ".tmp-";

#[derive(Clone, Debug)]
pub struct LocalFolder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    sync: bool,
    /// Tells the temporary files of two processes apart.
    unique: Nonce,
    counter: AtomicU64,
}

impl LocalFolder {
    /// Makes the folder when it is missing.
    ///
    /// # Errors
    /// Of kind `Fail`, naming the folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::with_sync(root.into(), true)
    }

    /// Without syncing: for tests, where nothing is to survive a power cut.
    pub fn open_unsynced(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::with_sync(root.into(), false)
    }

    fn with_sync(root: PathBuf, sync: bool) -> Result<Self, StoreError> {
        make_folder(&root, sync)
            .map_err(|e| failed("make folder", &root.display().to_string(), e))?;
        let inner = Inner {
            root,
            sync,
            unique: Nonce::from_bytes(SystemEntropy.bytes16()),
            counter: AtomicU64::new(0),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&Inner, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, owned) = (self.inner.clone(), key.to_owned());
        tokio::task::spawn_blocking(move || {
            let full = inner.root.join(&owned).display().to_string();
            work(&inner, &owned).map_err(|e| failed(operation, &full, e))
        })
        .await
        .map_err(|e| StoreError::new(ErrorKind::Fail, operation, key, e))?
    }
}

/// A full disk or a read-only folder does not mend itself by trying again; an interrupted call does.
fn failed(operation: &'static str, object: &str, e: io::Error) -> StoreError {
    let kind = match e.kind() {
        Io::Interrupted | Io::TimedOut | Io::WouldBlock => ErrorKind::Retry,
        Io::InvalidInput => ErrorKind::Invalid,
        _ => ErrorKind::Fail,
    };
    StoreError::new(kind, operation, object, e)
}

fn make_folder(folder: &Path, sync: bool) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    make_folder(parent, sync)?;
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(e) if e.kind() == Io::AlreadyExists && folder.is_dir() => {}
        Err(e) => return Err(e),
    }
    if sync {
        File::open(parent)?.sync_all()
    } else {
        Ok(())
    }
}

impl Inner {
    fn path(&self, key: &str) -> io::Result<PathBuf> {
        let odd = key.is_empty()
            || key
                .split('/')
                .any(|part| part.is_empty() || part == "." || part == "..");
        if odd {
            return Err(io::Error::new(Io::InvalidInput, "not a key"));
        }
        Ok(self.root.join(key))
    }

    fn write(&self, key: &str, body: &[u8], over: bool) -> io::Result<Create> {
        let path = self.path(key)?;
        let folder = path.parent().unwrap_or(&self.root);
        make_folder(folder, self.sync)?;
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!("{TEMPORARY}{}-{n}", self.unique));
        let written = (|| {
            let mut file = File::create_new(&temporary)?;
            file.write_all(body)?;
            if self.sync {
                file.sync_all()?;
            }
            if over {
                fs::rename(&temporary, &path)?;
                return Ok(Create::Created);
            }
            match fs::hard_link(&temporary, &path) {
                Ok(()) => Ok(Create::Created),
                Err(e) if e.kind() == Io::AlreadyExists => Ok(Create::Exists),
                Err(e) => Err(e),
            }
        })();
        if !(over && written.is_ok()) {
            // Left over at worst: listings do not show it.
            let _ = fs::remove_file(&temporary);
        }
        if self.sync && written.is_ok() {
            File::open(folder)?.sync_all()?;
        }
        written
    }

    fn walk(&self, folder: &Path, key: &str, found: &mut Vec<Listed>) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), Io::NotFound | Io::NotADirectory) => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(TEMPORARY) {
                continue;
            }
            let below = if key.is_empty() {
                name
            } else {
                format!("{key}/{name}")
            };
            if entry.file_type()?.is_dir() {
                self.walk(&entry.path(), &below, found)?;
                continue;
            }
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == Io::NotFound => continue,
                Err(e) => return Err(e),
            };
            let modified = meta
                .modified()?
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let modified = Micros::new(i64::try_from(modified.as_micros()).unwrap_or(i64::MAX));
            found.push(Listed {
                key: below,
                length: meta.len(),
                modified,
            });
        }
        Ok(())
    }

    /// The least name of a folder without looking at each file: a log has a hundred thousand of them.
    fn least(&self, folder: &Path) -> io::Result<Option<(String, bool)>> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), Io::NotFound | Io::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut least: Option<(String, bool)> = None;
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !name.starts_with(TEMPORARY) && least.as_ref().is_none_or(|(l, _)| name < *l) {
                least = Some((name, entry.file_type()?.is_dir()));
            }
        }
        Ok(least)
    }
}

#[async_trait]
impl Objects for LocalFolder {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        self.run("create", key, move |inner, key| {
            inner.write(key, &body, false)
        })
        .await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.run("write", key, move |inner, key| {
            inner.write(key, &body, true).map(|_| ())
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.run("read", key, |inner, key| match fs::read(inner.path(key)?) {
            Ok(body) => Ok(Some(Bytes::from(body))),
            Err(e) if e.kind() == Io::NotFound => Ok(None),
            Err(e) => Err(e),
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.run("read", key, move |inner, key| {
            let mut file = match File::open(inner.path(key)?) {
                Ok(file) => file,
                Err(e) if e.kind() == Io::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            file.seek(SeekFrom::Start(range.start))?;
            let mut body = Vec::new();
            file.take(range.end.saturating_sub(range.start))
                .read_to_end(&mut body)?;
            Ok(Some(Bytes::from(body)))
        })
        .await
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.run("list", folder, |inner, folder| {
            let mut found = Vec::new();
            inner.walk(&inner.root.join(folder), folder, &mut found)?;
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        let least = self
            .run("list", folder, |inner, folder| {
                inner.least(&inner.root.join(folder))
            })
            .await?;
        match least {
            Some((name, false)) => {
                let key = if folder.is_empty() {
                    name
                } else {
                    format!("{folder}/{name}")
                };
                Ok(Some(Listed {
                    key,
                    length: 0,
                    modified: Micros::default(),
                }))
            }
            // Folders within: the plain way.
            Some((_, true)) => Ok(self.list(folder).await?.into_iter().next()),
            None => Ok(None),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.run("delete", key, |inner, key| {
            let path = inner.path(key)?;
            // Folders stay: removing an empty one would race with a create in it.
            match fs::remove_file(&path) {
                Err(e) if e.kind() == Io::NotFound => Ok(()),
                other => other,
            }
        })
        .await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        let Some(body) = self.get(from).await? else {
            return Ok(false);
        };
        self.put(to, body).await.map(|()| true)
    }
}
