//! The seam to object storage: few methods, create-if-absent first among them. Owns where a job's objects lie and the proof
//! that a store keeps its word; the implementations are `local`, `memory` and `remote`, and `faulty` wraps any of them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ids::{Entropy, LogId, Micros};

mod faulty;
mod local;
mod memory;
mod remote;
#[cfg(test)]
mod tests;

pub use faulty::{Counting, Faults, Faulty, Requests, Slow};
pub use local::LocalFolder;
pub use memory::Memory;
pub use remote::{Remote, S3Options};

/// What can be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Trying again may help; whether it took effect is unknown.
    Retry,
    /// The store does not let us in. Trying again with the same credentials does not help; others may come.
    Refused,
    /// Trying again does not help.
    Fail,
    /// A newer owner exists.
    Fenced,
    /// What was read, or asked for, is wrong.
    Invalid,
}

/// An operation on an object that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {object}")]
pub struct StoreError {
    pub kind: ErrorKind,
    pub operation: &'static str,
    pub object: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        object: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            operation,
            object: object.into(),
            source: source.into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    Created,
    /// Something stands there already: perhaps an earlier attempt of one's own.
    Exists,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub length: u64,
    pub modified: Micros,
}

/// A store of objects by key. Keys are `/`-separated; no key is a prefix of another at a `/`. Every call may be dropped at
/// any await: a write may then land or not.
#[async_trait]
pub trait Objects: Send + Sync + fmt::Debug {
    /// Writes only if nothing is there. Durable when it returns.
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError>;
    /// Writes, over what is there. Durable when it returns.
    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError>;
    /// `None` when there is no such object.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError>;
    /// The bytes of that range, fewer when the object is shorter; `None` when there is no such object.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError>;
    /// Every object whose key begins with `folder` and a `/`, in order of keys.
    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError>;
    /// The first of `list`, at the cost of one request where the store lists in order.
    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError>;
    /// Succeeds when nothing is there.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// Writes what is at `from` to `to`, over what is there; the bytes do not pass through here where the store can do it by
    /// itself. Durable when it returns; whether there was anything at `from`.
    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError>;
}

/// A store and the prefix below which everything of one job, or one log, lies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    objects: Arc<dyn Objects>,
    prefix: String,
}

impl CheckpointStore {
    /// `prefix` without a `/` at either end; it may be empty.
    pub fn new(objects: Arc<dyn Objects>, prefix: impl Into<String>) -> Self {
        let prefix: String = prefix.into();
        Self {
            objects,
            prefix: prefix.trim_matches('/').to_owned(),
        }
    }

    /// The same store, further down.
    pub fn below(&self, folder: &str) -> Self {
        Self {
            objects: self.objects.clone(),
            prefix: self.key(folder),
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.objects
    }

    /// The whole key of a path below the prefix.
    pub fn key(&self, path: &str) -> String {
        match (self.prefix.is_empty(), path.is_empty()) {
            (true, _) => path.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}/{path}", self.prefix),
        }
    }

    fn relative(&self, mut listed: Listed) -> Listed {
        if !self.prefix.is_empty() {
            listed.key = listed
                .key
                .strip_prefix(&self.prefix)
                .unwrap_or(&listed.key)
                .trim_start_matches('/')
                .to_owned();
        }
        listed
    }

    pub async fn create(&self, path: &str, body: Bytes) -> Result<Create, StoreError> {
        self.objects.create(&self.key(path), body).await
    }

    pub async fn put(&self, path: &str, body: Bytes) -> Result<(), StoreError> {
        self.objects.put(&self.key(path), body).await
    }

    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        self.objects.get(&self.key(path)).await
    }

    pub async fn get_range(
        &self,
        path: &str,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        self.objects.get_range(&self.key(path), range).await
    }

    /// Keys come relative to the prefix.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let all = self.objects.list(&self.key(folder)).await?;
        Ok(all.into_iter().map(|l| self.relative(l)).collect())
    }

    pub async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        Ok(self
            .objects
            .first(&self.key(folder))
            .await?
            .map(|l| self.relative(l)))
    }

    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.objects.delete(&self.key(path)).await
    }

    /// Takes over the object of this path from another prefix of the same store; whether it was there.
    pub async fn copy_from(&self, other: &Self, path: &str) -> Result<bool, StoreError> {
        self.objects.copy(&other.key(path), &self.key(path)).await
    }

    /// Rule 1: shows that the store refuses a second create of one key and keeps the first. Some parse the header that asks
    /// for it and ignore it. Four requests; once per process.
    ///
    /// # Errors
    /// Of kind `Invalid` when the store does not keep its word; others as they come.
    pub async fn prove_create_if_absent(
        &self,
        entropy: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        let path = format!("probe/{}", LogId::from_bytes(entropy.bytes16()));
        let (first, second) = (
            Bytes::from_static(b"first\n"),
            Bytes::from_static(b"second\n"),
        );
        let refuse = |why: &str| {
            StoreError::new(
                ErrorKind::Invalid,
                "rely on create-if-absent at",
                self.key(&path),
                why.to_owned(),
            )
        };
        self.create(&path, first.clone()).await?;
        let again = self.create(&path, second).await;
        let kept = self.get(&path).await?;
        self.delete(&path).await?;
        if kept.as_ref() != Some(&first) {
            return Err(refuse(
                "the store let a second create (If-None-Match: *) write over the first, so two owners could both commit; use another store",
            ));
        }
        match again? {
            Create::Exists => Ok(()),
            Create::Created => Err(refuse(
                "the store answered success to a second create (If-None-Match: *) of one key; use another store",
            )),
        }
    }

    /// The ids of the logs below this prefix (a job's `<namespace>/<name>`), in order.
    pub async fn logs(&self) -> Result<Vec<LogId>, StoreError> {
        let mut ids: Vec<LogId> = Vec::new();
        for listed in self.list("").await? {
            if let Some(id) = listed.key.split('/').next().and_then(|s| s.parse().ok())
                && ids.last() != Some(&id)
            {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}
