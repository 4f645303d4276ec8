//! A store in memory, for tests and simulation. Deterministic: it asks no clock, `modified` is what `set_now` last said.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Create, Listed, Objects, StoreError};
use crate::ids::Micros;

#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, Micros)>,
    now: Micros,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    /// The time that objects written from now on carry.
    pub fn set_now(&self, now: Micros) {
        self.state().now = now;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self, folder: &str, limit: usize) -> Vec<Listed> {
        let from = if folder.is_empty() {
            String::new()
        } else {
            format!("{folder}/")
        };
        self.state()
            .objects
            .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(&from))
            .take(limit)
            .map(|(k, (b, t))| Listed {
                key: k.clone(),
                length: b.len() as u64,
                modified: *t,
            })
            .collect()
    }
}

#[async_trait]
impl Objects for Memory {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        let mut state = self.state();
        let now = state.now;
        if state.objects.contains_key(key) {
            return Ok(Create::Exists);
        }
        state.objects.insert(key.to_owned(), (body, now));
        Ok(Create::Created)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let mut state = self.state();
        let now = state.now;
        state.objects.insert(key.to_owned(), (body, now));
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state().objects.get(key).map(|(b, _)| b.clone()))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state().objects.get(key).map(|(b, _)| {
            let len = b.len() as u64;
            let (from, to) = (range.start.min(len), range.end.min(len));
            b.slice(from as usize..to.max(from) as usize)
        }))
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        Ok(self.listed(folder, usize::MAX))
    }

    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        Ok(self.listed(folder, 1).pop())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.state().objects.remove(key);
        Ok(())
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        let Some(body) = self.get(from).await? else {
            return Ok(false);
        };
        self.put(to, body).await.map(|()| true)
    }
}
