//! Garbage collection at work: reads closures once, asks `gc`, says `Drop`, deletes. Only the current generation does, since
//! only it can append the `Drop`.

use std::collections::BTreeMap;

use crate::closure::Closure;
use crate::gc::{self, Named, Retention};
use crate::ids::{Generation, Seq};
use crate::log::{JobLog, LogError, record_path};
use crate::record::{Drop, Kind};

/// Files that one `Drop` record names.
const FILES_PER_RECORD: usize = 10_000;

/// Records that must be free to go before the log is looked through for them.
const TRIM_EVERY: u64 = 100;

/// Remembers what each closure names, so that every closure is read once per process.
#[derive(Debug, Default)]
pub struct Collector {
    named: BTreeMap<Seq, Named>,
    /// Where the log was last trimmed: looking at all of it costs a request per thousand records.
    trimmed: Seq,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub files: usize,
    pub records: usize,
}

impl Collector {
    pub fn new() -> Self {
        Self::default()
    }

    async fn learn(&mut self, log: &JobLog) -> Result<(), LogError> {
        self.named
            .retain(|seq, _| log.fold().closures().iter().any(|c| c.seq == *seq));
        for c in log.fold().closures() {
            if self.named.contains_key(&c.seq) {
                continue;
            }
            // A damaged closure stops collection, not the job: nobody knows what it names.
            if let Some(bytes) = log.store().get(&c.record.path).await?
                && let Ok(closure) = Closure::decode(&bytes, &c.record, log.fold().log())
            {
                self.named.insert(c.seq, Named::of(&closure));
            }
        }
        Ok(())
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
