//! Garbage collection at work: reads closures once, asks `gc`, says `Drop`, deletes. Only the current generation does, since
//! only it can append the `Drop`.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};

use crate::closure::Closure;
use crate::gc::{self, Named, Retention};
use crate::ids::{Generation, Seq};
use crate::log::{JobLog, LogError, record_path};
use crate::record::{Drop, Kind};
use crate::store::StoreError;

/// Files that one `Drop` record names.
const FILES_PER_RECORD: usize = 10_000;

/// Records that must be free to go before the log is looked through for them.
const TRIM_EVERY: u64 = 100;

/// Closures that are read at a time.
const PARALLEL: usize = 16;

/// Remembers what each closure names, so that every closure is read once per process: it goes from generation to generation with
/// the log.
#[derive(Debug, Default)]
pub struct Collector {
    named: BTreeMap<Seq, Named>,
    /// Where the log was last trimmed: looking at all of it costs a request per thousand records.
    trimmed: Seq,
}

/// What closures name, of those that were read.
#[derive(Debug)]
pub struct Learnt(Vec<(Seq, Result<Named, StoreError>)>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub files: usize,
    pub records: usize,
}

impl Collector {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads what this process has not read yet of what closures name: many, when it has just taken the job over. For a task beside
    /// what commits; `take` takes in what it finds. What cannot be read is tried again by `collect`.
    pub fn learning(&self, log: &JobLog) -> impl Future<Output = Learnt> + Send + 'static {
        let (store, id) = (log.store().clone(), log.fold().log());
        let unknown = log.fold().closures().iter();
        let unknown: Vec<_> = unknown
            .filter(|c| !self.named.contains_key(&c.seq))
            .map(|c| (c.seq, c.record.clone()))
            .collect();
        async move {
            let read = stream::iter(unknown).map(|(seq, record)| {
                let store = store.clone();
                async move {
                    let bytes = store.get(&record.path).await;
                    (seq, record, bytes)
                }
            });
            let read: Vec<_> = read.buffered(PARALLEL).collect().await;
            let named = read.into_iter().filter_map(|(seq, record, bytes)| {
                let bytes = match bytes {
                    Ok(bytes) => bytes?,
                    Err(error) => return Some((seq, Err(error))),
                };
                // A damaged closure stops collection, not the job: nobody knows what it names.
                let closure = Closure::decode(&bytes, &record, id).ok()?;
                Some((seq, Ok(Named::of(&closure))))
            });
            Learnt(named.collect())
        }
    }

    /// # Errors
    /// When the store did not answer for some of them; the others are taken in.
    pub fn take(&mut self, Learnt(learnt): Learnt) -> Result<(), StoreError> {
        let mut failed = Ok(());
        for (seq, named) in learnt {
            match named {
                Ok(named) => {
                    self.named.insert(seq, named);
                }
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    async fn learn(&mut self, log: &JobLog) -> Result<(), LogError> {
        self.named
            .retain(|seq, _| log.fold().closures().iter().any(|c| c.seq == *seq));
        let learnt = self.learning(log).await;
        Ok(self.take(learnt)?)
    }

    /// Deletes what was named and is needed no more. Call after a closure was written.
    pub async fn collect(
        &mut self,
        log: &mut JobLog,
        generation: Generation,
        retention: Retention,
    ) -> Result<Collected, LogError> {
        self.learn(log).await?;
        let now = log.clock().now();
        let garbage = gc::garbage(log.fold(), &self.named, retention, now);
        let mut done = Collected::default();
        for files in garbage.files.chunks(FILES_PER_RECORD) {
            log.append(
                generation,
                Kind::Drop(Drop {
                    uids: Vec::new(),
                    files: files.to_vec(),
                }),
            )
            .await?;
            for file in files {
                log.store().delete(file).await?;
            }
            done.files += files.len();
            // Kept closures still list what passed by them: it is gone, and not to be said again.
            for named in self.named.values_mut() {
                for file in files {
                    named.state.remove(file);
                    named.passing.remove(file);
                }
            }
        }
        if let Some(below) = garbage
            .log_below
            .filter(|b| b.get() >= self.trimmed.get() + TRIM_EVERY)
        {
            self.trimmed = below;
            let listing = log.store().list("log").await?;
            for seq in gc::log_keys(&listing, below, now) {
                log.store().delete(&record_path(seq)).await?;
                done.records += 1;
            }
        }
        Ok(done)
    }

    /// Deletes what nobody ever named, a day after it was written. Lists everything: call once in hours.
    pub async fn sweep(
        &mut self,
        log: &mut JobLog,
        generation: Generation,
    ) -> Result<Collected, LogError> {
        self.learn(log).await?;
        let mut listing = Vec::new();
        for folder in ["pack", "base", "closure"] {
            listing.extend(log.store().list(folder).await?);
        }
        let files = gc::never_named(log.fold(), &self.named, &listing, log.clock().now());
        for some in files.chunks(FILES_PER_RECORD) {
            // The record is the proof that this generation still owns the job.
            log.append(
                generation,
                Kind::Drop(Drop {
                    uids: Vec::new(),
                    files: some.to_vec(),
                }),
            )
            .await?;
            for file in some {
                log.store().delete(file).await?;
            }
        }
        Ok(Collected {
            files: files.len(),
            records: 0,
        })
    }
}
