//! Wrappers of a store: `Faulty` errs before or after the deed, delays, lets writes land late, or is away, by a seed and on
//! tokio's clock (so that a paused one makes it a simulation); `Counting` counts requests.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Create, ErrorKind, Listed, Objects, StoreError};

/// How often what goes wrong; each a share of the calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// An error, and nothing has happened.
    pub before: f64,
    /// An error, though it has happened.
    pub after: f64,
    /// An error at once, and the write lands up to `delay` later.
    pub late: f64,
    /// The longest that a call takes.
    pub delay: Duration,
}

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Objects>,
    faults: Mutex<Faults>,
    away: AtomicBool,
    rng: Mutex<StdRng>,
}

enum Fate {
    Well,
    Before,
    After,
    Late(Duration),
}

impl Faulty {
    pub fn new(inner: Arc<dyn Objects>, seed: u64, faults: Faults) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self {
            inner,
            faults: Mutex::new(faults),
            away: AtomicBool::new(false),
            rng,
        }
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// While away every call errs and nothing happens.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    async fn fate(&self, write: bool) -> Fate {
        let Faults {
            before,
            after,
            late,
            delay,
        } = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let (wait, roll, lateness) = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            (
                delay.mul_f64(rng.random::<f64>()),
                rng.random::<f64>(),
                delay.mul_f64(rng.random::<f64>()),
            )
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if self.away.load(Ordering::SeqCst) || roll < before {
            Fate::Before
        } else if roll < before + after {
            Fate::After
        } else if write && roll < before + after + late {
            Fate::Late(lateness)
        } else {
            Fate::Well
        }
    }
}

fn error(operation: &'static str, key: &str) -> StoreError {
    StoreError::new(ErrorKind::Retry, operation, key, "the store did not answer")
}

macro_rules! read {
    ($self:ident, $op:literal, $key:ident, $call:expr) => {
        match $self.fate(false).await {
            Fate::Well | Fate::Late(_) => $call.await,
            Fate::Before | Fate::After => Err(error($op, $key)),
        }
    };
}

macro_rules! write {
    ($self:ident, $op:literal, $key:ident, |$inner:ident, $k:ident| $call:expr) => {{
        match $self.fate(true).await {
            Fate::Well => {
                let ($inner, $k) = (&$self.inner, $key);
                $call.await
            }
            Fate::Before => Err(error($op, $key)),
            Fate::After => {
                let ($inner, $k) = (&$self.inner, $key);
                let _ = $call.await;
                Err(error($op, $key))
            }
            Fate::Late(by) => {
                let ($inner, owned) = ($self.inner.clone(), $key.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    let $k = owned.as_str();
                    let _ = $call.await;
                });
                Err(error($op, $key))
            }
        }
    }};
}

#[async_trait]
impl Objects for Faulty {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        write!(self, "create", key, |inner, k| inner.create(k, body))
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        write!(self, "write", key, |inner, k| inner.put(k, body))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        read!(self, "read", key, self.inner.get(key))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        read!(self, "read", key, self.inner.get_range(key, range))
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        read!(self, "list", folder, self.inner.list(folder))
    }

    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        read!(self, "list", folder, self.inner.first(folder))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        write!(self, "delete", key, |inner, k| inner.delete(k))
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        let from = from.to_owned();
        write!(self, "copy", to, |inner, k| inner.copy(&from, k))
    }
}

/// A store whose writes take longer: for measuring what a distant one costs.
#[derive(Debug)]
pub struct Slow {
    inner: Arc<dyn Objects>,
    delay: Duration,
}

impl Slow {
    /// Every write takes `delay` more.
    pub fn new(inner: Arc<dyn Objects>, delay: Duration) -> Self {
        Self { inner, delay }
    }
}

#[async_trait]
impl Objects for Slow {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        tokio::time::sleep(self.delay).await;
        self.inner.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        tokio::time::sleep(self.delay).await;
        self.inner.put(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(folder).await
    }

    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        self.inner.first(folder).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        tokio::time::sleep(self.delay).await;
        self.inner.copy(from, to).await
    }
}

/// Requests made so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub writes: u64,
    pub gets: u64,
    pub lists: u64,
}

impl Requests {
    pub fn total(self) -> u64 {
        self.writes + self.gets + self.lists
    }
}

#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn Objects>,
    writes: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
}

impl Counting {
    pub fn new(inner: Arc<dyn Objects>) -> Self {
        Self {
            inner,
            writes: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            lists: AtomicU64::new(0),
        }
    }

    pub fn requests(&self) -> Requests {
        let read = |n: &AtomicU64| n.load(Ordering::SeqCst);
        Requests {
            writes: read(&self.writes),
            gets: read(&self.gets),
            lists: read(&self.lists),
        }
    }
}

#[async_trait]
impl Objects for Counting {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.put(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.inner.get_range(key, range).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        // A page of a listing has a thousand keys.
        let all = self.inner.list(folder).await?;
        self.lists
            .fetch_add(1 + all.len() as u64 / 1000, Ordering::SeqCst);
        Ok(all)
    }

    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.inner.first(folder).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.delete(key).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.inner.copy(from, to).await
    }
}
