//! One process's way to the object store: through its own faults, on record in the trace, shut when the process is dead.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use penstock_checkpoint::clock::Clock;
use penstock_checkpoint::store::{Create, Faulty, Listed, Memory, Objects, StoreError};

use super::trace::Trace;
use super::world::VirtualClock;
use crate::process::simulated::is_dead;

pub(super) struct Traced {
    pub inner: Arc<Faulty>,
    /// Keeps what was written, for the check at the end: the job may delete it meanwhile.
    pub archive: Arc<Memory>,
    /// The store itself, which dates what it keeps by the world's clock.
    pub objects: Arc<Memory>,
    pub clock: VirtualClock,
    pub trace: Trace,
    pub process: u64,
}

impl std::fmt::Debug for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traced").finish_non_exhaustive()
    }
}

impl Traced {
    async fn on_record<T>(
        &self,
        what: &str,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if is_dead() {
            // Killed earlier in this very poll: nothing leaves the process any more.
            std::future::pending::<()>().await;
        }
        self.objects.set_now(Clock::now(&self.clock));
        let answer = call.await;
        let said = if answer.is_ok() { "done" } else { "in doubt" };
        self.trace.note(self.process, what, key, said);
        answer
    }
}

#[async_trait]
impl Objects for Traced {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        // Packs have names that nothing else ever has.
        if key.contains("/pack/") {
            self.archive.put(key, body.clone()).await?;
        }
        self.on_record("create", key, self.inner.create(key, body))
            .await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        if key.contains("/pack/") {
            self.archive.put(key, body.clone()).await?;
        }
        self.on_record("put", key, self.inner.put(key, body)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.on_record("get", key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.on_record("get range", key, self.inner.get_range(key, range))
            .await
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.on_record("list", folder, self.inner.list(folder))
            .await
    }

    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        self.on_record("first", folder, self.inner.first(folder))
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.on_record("delete", key, self.inner.delete(key)).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.on_record("copy", to, self.inner.copy(from, to)).await
    }
}
