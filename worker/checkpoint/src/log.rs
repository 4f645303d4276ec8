//! The job log at work: open it, follow it, append to it, claim it, restore from it. Owns rule 1 (read back after any
//! doubt), rule 6 (a slow append) and the order of requests; what the records mean is `fold`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use crate::clock::{Clock, SystemClock};
use crate::closure::{Closure, EpochState};
use crate::collect::{Collected, Collector, Learnt};
use crate::decide::{ClaimPoint, Refusal, Wish, decide_claim};
use crate::envelope::DecodeError;
use crate::fold::{Fold, Illegal};
use crate::gc::Retention;
use crate::ids::{Entropy, Epoch, Generation, LogId, Nonce, Seq, SystemEntropy};
use crate::record::{Claim, ClosureRecord, Commit, Created, FORMAT, Kind, Record};
use crate::recovery::{self, RestoreError, RestorePlan};
use crate::store::{CheckpointStore, Create, ErrorKind, StoreError};
use crate::switches::Switches;

#[cfg(test)]
mod tests;

/// Records between two closures, unless a test says otherwise.
pub const CLOSURE_EVERY: u64 = 100;
/// After this long without looking, a key at the tail may have been freed and made again (rule 6).
const SLOW: Duration = Duration::from_secs(60);
/// GETs in flight while records are read.
const PARALLEL: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Tries of a read before its error is given up to the caller.
const PATIENCE: u32 = 10;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{object} cannot be used")]
    Unreadable {
        object: String,
        #[source]
        source: DecodeError,
    },
    #[error("{object} is missing, though the log names it")]
    Missing { object: String },
    #[error(transparent)]
    Illegal(#[from] Illegal),
    #[error("fenced at record {seq}: generation {by} wrote it")]
    Fenced { seq: Seq, by: Generation },
    #[error("the log of {name} exists already")]
    Exists { name: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl LogError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            LogError::Store(e) => e.kind,
            LogError::Fenced { .. } => ErrorKind::Fenced,
            LogError::Missing { .. } | LogError::Refused(_) | LogError::Exists { .. } => {
                ErrorKind::Fail
            }
            LogError::Unreadable { .. } | LogError::Illegal(_) | LogError::Restore(_) => {
                ErrorKind::Invalid
            }
        }
    }
}

/// Where a log's time and randomness come from.
pub struct Options {
    pub clock: Arc<dyn Clock>,
    pub entropy: Box<dyn Entropy>,
    pub switches: Switches,
    /// Records between two closures.
    pub closure_every: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Box::new(SystemEntropy),
            switches: Switches::default(),
            closure_every: CLOSURE_EVERY,
        }
    }
}

/// One log, as far as this process has read it.
pub struct JobLog {
    store: CheckpointStore,
    options: Options,
    fold: Fold,
    /// The state at some epoch, carried along by every commit that follows it.
    state: Option<EpochState>,
    /// A record that was sent and whose fate is not known, when a call was dropped or failed.
    in_doubt: Option<Record>,
    /// When the tail was last seen, by the clock that counts suspended time.
    seen: Duration,
    /// What is remembered of what may be deleted.
    collector: Collector,
}

/// The name of a record: the newest comes first in a listing.
pub fn record_path(seq: Seq) -> String {
    format!("log/{:020}", u64::MAX - seq.get())
}

/// The other way round.
pub fn record_seq(path: &str) -> Option<Seq> {
    let digits = path.strip_prefix("log/").filter(|d| d.len() == 20)?;
    Some(Seq::new(u64::MAX - digits.parse::<u64>().ok()?))
}

async fn pause(attempt: u32) {
    tokio::time::sleep((FIRST_PAUSE * (1 << attempt.min(10))).min(LONGEST_PAUSE)).await;
}

/// A read that is tried again while its error says that this may help.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut attempt = 0;
    loop {
        match call().await {
            Err(e) if e.kind == ErrorKind::Retry && attempt + 1 < PATIENCE => {
                tracing::debug!(
                    object = e.object,
                    operation = e.operation,
                    "storage did not answer, trying again"
                );
                pause(attempt).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn get_record(store: &CheckpointStore, seq: Seq) -> Result<Option<Record>, LogError> {
    let path = record_path(seq);
    let Some(bytes) = patiently(|| store.get(&path)).await? else {
        return Ok(None);
    };
    let unreadable = |source| LogError::Unreadable {
        object: store.key(&path),
        source,
    };
    let record = Record::decode(&bytes).map_err(unreadable)?;
    if record.seq != seq {
        return Err(unreadable(DecodeError::damaged(format!(
            "it is record {}",
            record.seq
        ))));
    }
    Ok(Some(record))
}

pub(crate) async fn need_record(store: &CheckpointStore, seq: Seq) -> Result<Record, LogError> {
    let missing = || LogError::Missing {
        object: store.key(&record_path(seq)),
    };
    get_record(store, seq).await?.ok_or_else(missing)
}

async fn get_closure(
    store: &CheckpointStore,
    record: &ClosureRecord,
    log: LogId,
) -> Result<Closure, LogError> {
    let object = || store.key(&record.path);
    let bytes = patiently(|| store.get(&record.path))
        .await?
        .ok_or_else(|| LogError::Missing { object: object() })?;
    Closure::decode(&bytes, record, log).map_err(|source| LogError::Unreadable {
        object: object(),
        source,
    })
}

/// Records `from..=to`, in order, read in parallel.
async fn get_records(store: &CheckpointStore, from: Seq, to: Seq) -> Result<Vec<Record>, LogError> {
    stream::iter((from.get()..=to.get()).map(Seq::new))
        .map(|seq| need_record(store, seq))
        .buffered(PARALLEL)
        .try_collect()
        .await
}

/// Seq of the newest record, by one request; `None` when there is no log.
pub async fn find_tail(store: &CheckpointStore) -> Result<Option<Seq>, LogError> {
    let Some(first) = patiently(|| store.first("log")).await? else {
        return Ok(None);
    };
    let source = || DecodeError::damaged("its name is not that of a record");
    let seq = record_seq(&first.key).ok_or_else(|| LogError::Unreadable {
        object: store.key(&first.key),
        source: source(),
    })?;
    Ok(Some(seq))
}

/// Every record that is still in the log, oldest first: for people.
pub async fn read_all(store: &CheckpointStore) -> Result<Vec<Record>, LogError> {
    let keys = patiently(|| store.list("log")).await?;
    let mut seqs: Vec<Seq> = keys.iter().filter_map(|l| record_seq(&l.key)).collect();
    seqs.sort();
    stream::iter(seqs)
        .map(|seq| need_record(store, seq))
        .buffered(PARALLEL)
        .try_collect()
        .await
}

impl JobLog {
    /// Writes the first record of a new log into the (empty) prefix of `store`.
    ///
    /// # Errors
    /// `Exists` when another process was first.
    pub async fn create(
        store: CheckpointStore,
        log: LogId,
        created: Created,
        mut options: Options,
    ) -> Result<JobLog, LogError> {
        let name = created.name.clone();
        let record = Record {
            format: FORMAT,
            min_reader: FORMAT,
            log,
            seq: Seq::new(1),
            generation: Generation::ZERO,
            nonce: Nonce::from_bytes(options.entropy.bytes16()),
            time: options.clock.now(),
            closure_seq: Seq::ZERO,
            kind: Kind::Created(created),
        };
        let fold = Fold::begin(&record, options.switches)?;
        let seen = options.clock.boottime();
        let state = beginning(&fold);
        let mut this = JobLog {
            store,
            options,
            fold,
            state,
            in_doubt: None,
            seen,
            collector: Collector::new(),
        };
        match this.settle(&record).await? {
            Landed::Mine => Ok(this),
            Landed::Other(_) => Err(LogError::Exists { name }),
        }
    }

    /// Finds the tail, the newest closure and what came after it; `None` when there is no log. A closure that is damaged or
    /// missing is made good by an older one and a longer replay.
    pub async fn open(
        store: CheckpointStore,
        options: Options,
    ) -> Result<Option<JobLog>, LogError> {
        let seen = options.clock.boottime();
        let Some(tail) = find_tail(&store).await? else {
            return Ok(None);
        };
        let newest = need_record(&store, tail).await?;
        let mut from = if matches!(newest.kind, Kind::Closure(_)) {
            tail
        } else {
            newest.closure_seq
        };
        let mut known = BTreeMap::from([(tail, newest.clone())]);
        let mut trouble: Option<LogError> = None;
        let (fold, state) = loop {
            if from == Seq::ZERO {
                // No closure can be used: from the beginning, if it is still there.
                let first = match known.remove(&Seq::new(1)) {
                    Some(first) => Some(first),
                    None => get_record(&store, Seq::new(1)).await?,
                };
                let Some(first) = first else {
                    let object = store.key(&record_path(Seq::new(1)));
                    return Err(trouble.unwrap_or(LogError::Missing { object }));
                };
                let fold = Fold::begin(&first, options.switches)?;
                if let (Some(_), Some(trouble)) = (fold.parent_log(), trouble) {
                    // What it began with is in its first closure alone.
                    return Err(trouble);
                }
                let state = beginning(&fold);
                break (fold, state);
            }
            let record = match known.get(&from) {
                Some(r) => r.clone(),
                None => match get_record(&store, from).await? {
                    Some(r) => r,
                    None => {
                        let object = store.key(&record_path(from));
                        return Err(trouble.unwrap_or(LogError::Missing { object }));
                    }
                },
            };
            known.insert(from, record.clone());
            let Kind::Closure(named) = &record.kind else {
                let source = DecodeError::damaged(format!(
                    "record {tail} says it is a closure, it is {}",
                    record.kind.name()
                ));
                return Err(LogError::Unreadable {
                    object: store.key(&record_path(from)),
                    source,
                });
            };
            match get_closure(&store, named, newest.log).await {
                Ok(Closure { state, fold, .. }) => {
                    break (fold.with_switches(options.switches), Some(state));
                }
                Err(e @ (LogError::Unreadable { .. } | LogError::Missing { .. })) => {
                    tracing::warn!(object = named.path, error = %e, "closure cannot be used, going back to an older one");
                    from = record.closure_seq;
                    trouble.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        };
        let mut this = JobLog {
            store,
            options,
            fold,
            state,
            in_doubt: None,
            seen,
            collector: Collector::new(),
        };
        let after: Vec<Seq> = (this.fold.seq().get() + 1..=tail.get())
            .map(Seq::new)
            .collect();
        let (store, known) = (&this.store, &known);
        let records: Vec<Record> = stream::iter(after)
            .map(|seq| async move {
                match known.get(&seq) {
                    Some(r) => Ok(r.clone()),
                    None => need_record(store, seq).await,
                }
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        for record in &records {
            this.take_in(record)?;
        }
        this.seen = seen;
        Ok(Some(this))
    }

    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    pub fn store(&self) -> &CheckpointStore {
        &self.store
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.options.clock
    }

    /// As of `Collector::learning`.
    pub fn learning(&self) -> impl Future<Output = Learnt> + Send + 'static {
        self.collector.learning(self)
    }

    /// # Errors
    /// As of `Collector::take`.
    pub fn take(&mut self, learnt: Learnt) -> Result<(), LogError> {
        Ok(self.collector.take(learnt)?)
    }

    /// As of `Collector::collect`. When it is dropped, everything is learnt again.
    ///
    /// # Errors
    /// When the store does not answer, or another generation owns the log.
    pub async fn collect(
        &mut self,
        generation: Generation,
        retention: Retention,
    ) -> Result<Collected, LogError> {
        let mut collector = std::mem::take(&mut self.collector);
        let collected = collector.collect(self, generation, retention).await;
        self.collector = collector;
        collected
    }

    /// A fresh random number, for the name of a pack, a marker, a base.
    pub fn nonce(&mut self) -> Nonce {
        Nonce::from_bytes(self.options.entropy.bytes16())
    }

    fn take_in(&mut self, record: &Record) -> Result<(), LogError> {
        self.fold.apply(record)?;
        match &record.kind {
            Kind::Epoch(e) => {
                if let (Some(commit), Some(state)) = (&e.commit, &mut self.state)
                    && state.advance(commit).is_err()
                {
                    self.state = None;
                }
            }
            Kind::Claim(c)
                if self
                    .state
                    .as_ref()
                    .is_some_and(|s| s.epoch != c.restore_epoch) =>
            {
                self.state = None
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes in what others appended since; one request when there is nothing.
    pub async fn follow(&mut self) -> Result<Vec<Record>, LogError> {
        let mut news = Vec::new();
        loop {
            let seen = self.options.clock.boottime();
            match get_record(&self.store, self.fold.seq().next()).await? {
                Some(record) => {
                    self.take_in(&record)?;
                    if self.in_doubt.as_ref().is_some_and(|d| d.seq <= record.seq) {
                        self.in_doubt = None;
                    }
                    news.push(record);
                }
                None => {
                    // A reader that slept so long may stand before a part of the log that is gone.
                    if seen.saturating_sub(self.seen) > SLOW && !self.tail_holds().await? {
                        let seq = self.fold.seq();
                        return Err(LogError::Missing {
                            object: self.store.key(&record_path(seq)),
                        });
                    }
                    self.seen = seen;
                    return Ok(news);
                }
            }
        }
    }

    /// Whether the newest record that is known still stands.
    async fn tail_holds(&self) -> Result<bool, LogError> {
        Ok(get_record(&self.store, self.fold.seq()).await?.is_some())
    }

    /// Appends in the name of `generation`, at the tail as this process knows it. Waits as long as the store is away. When
    /// it is dropped, or fails, the record may or may not stand; the next call finds out first.
    ///
    /// # Errors
    /// `Fenced` when another was there, or `generation` is not the newest: nothing was written. `Illegal` before writing
    /// when the log's rules do not allow the record.
    pub async fn append(&mut self, generation: Generation, kind: Kind) -> Result<Record, LogError> {
        if self.options.switches.no_fence() && !matches!(kind, Kind::Claim(_)) {
            return self.append_unfenced(generation, kind).await;
        }
        self.append_once(generation, kind).await
    }

    /// The planted bug: whoever was there first, the record goes to where the tail is now.
    async fn append_unfenced(
        &mut self,
        generation: Generation,
        kind: Kind,
    ) -> Result<Record, LogError> {
        loop {
            match self.append_once(generation, kind.clone()).await {
                Err(LogError::Fenced { .. }) => self.follow().await?,
                other => return other,
            };
        }
    }

    async fn append_once(
        &mut self,
        generation: Generation,
        kind: Kind,
    ) -> Result<Record, LogError> {
        self.resolve_doubt().await?;
        if generation != self.fold.generation()
            && !matches!(kind, Kind::Claim(_))
            && !self.options.switches.no_fence()
        {
            return Err(LogError::Fenced {
                seq: self.fold.seq(),
                by: self.fold.generation(),
            });
        }
        let record = Record {
            format: FORMAT,
            min_reader: FORMAT,
            log: self.fold.log(),
            seq: self.fold.seq().next(),
            generation,
            nonce: self.nonce(),
            time: self.options.clock.now().max(self.fold.time()),
            closure_seq: self.fold.closure_seq(),
            kind,
        };
        if !self.options.switches.no_fence() {
            self.fold.allows(&record)?;
        }
        self.in_doubt = Some(record.clone());
        let landed = self.settle(&record).await?;
        self.in_doubt = None;
        match landed {
            Landed::Mine => {
                self.take_in(&record)?;
                Ok(record)
            }
            Landed::Other(by) => Err(LogError::Fenced {
                seq: record.seq,
                by: by.generation,
            }),
        }
    }

    /// What became of a record that an earlier call left in the air.
    async fn resolve_doubt(&mut self) -> Result<(), LogError> {
        let Some(record) = self.in_doubt.clone() else {
            return Ok(());
        };
        // It may still land: only making it land, or finding another in its place, ends the doubt.
        let landed = self.settle(&record).await?;
        self.in_doubt = None;
        match landed {
            Landed::Mine => self.take_in(&record),
            Landed::Other(by) => Err(LogError::Fenced {
                seq: record.seq,
                by: by.generation,
            }),
        }
    }

    /// Rule 1: create; after anything but a plain success read the key back. Rule 6: after a minute, a success counts only
    /// if the record before it still stands.
    async fn settle(&mut self, record: &Record) -> Result<Landed, LogError> {
        let path = record_path(record.seq);
        let object = || self.store.key(&path);
        let body = record.encode().map_err(|source| LogError::Unreadable {
            object: object(),
            source,
        })?;
        let body = Bytes::from(body);
        let mut attempt = 0;
        let landed = loop {
            match self.store.create(&path, body.clone()).await {
                Ok(Create::Created) => break Landed::Mine,
                Ok(Create::Exists) => {}
                Err(e) if e.kind == ErrorKind::Retry => {
                    tracing::debug!(object = e.object, "append in doubt, reading back");
                    if self.options.switches.no_readback() {
                        let mut again = record.clone();
                        again.seq = record.seq.next();
                        let body = again.encode().map_err(|source| LogError::Unreadable {
                            object: object(),
                            source,
                        })?;
                        self.store
                            .create(&record_path(again.seq), body.into())
                            .await?;
                        break Landed::Mine;
                    }
                }
                Err(e) => return Err(e.into()),
            }
            match self.store.get(&path).await {
                Ok(Some(bytes)) => {
                    let unreadable = |source| LogError::Unreadable {
                        object: object(),
                        source,
                    };
                    let there = Record::decode(&bytes).map_err(unreadable)?;
                    if there.nonce == record.nonce {
                        break Landed::Mine;
                    }
                    break Landed::Other(Box::new(there));
                }
                // Nobody's: send it again. Whichever attempt lands, it is this record.
                Ok(None) => {}
                Err(e) if e.kind == ErrorKind::Retry => {}
                Err(e) => return Err(e.into()),
            }
            pause(attempt).await;
            attempt = attempt.saturating_add(1);
        };
        let now = self.options.clock.boottime();
        if matches!(landed, Landed::Mine)
            && now.saturating_sub(self.seen) > SLOW
            && let Some(before) = record.seq.prev().filter(|&s| s > Seq::ZERO)
            && get_record(&self.store, before).await?.is_none()
        {
            return Err(LogError::Fenced {
                seq: record.seq,
                by: record.generation,
            });
        }
        self.seen = now;
        Ok(landed)
    }

    /// Claims the job: decides by the whole log, appends, and after a lost race reads on and decides anew. `build` fills in
    /// plan, members and assignment; it may be called more than once. A closure follows the claim.
    ///
    /// # Errors
    /// `Refused` when the log does not allow what is wished.
    pub async fn claim(
        &mut self,
        wish: Wish,
        mut build: impl FnMut(&Fold, ClaimPoint) -> Claim,
    ) -> Result<Record, LogError> {
        loop {
            match self.resolve_doubt().await {
                Err(LogError::Fenced { .. }) | Ok(()) => {}
                Err(e) => return Err(e),
            }
            self.follow().await?;
            let point = decide_claim(&self.fold, wish)?;
            let claim = Claim {
                kind: point.kind,
                restore_epoch: point.restore_epoch,
                handover_from: point.handover_from,
                ..build(&self.fold, point)
            };
            match self.append(point.generation, Kind::Claim(claim)).await {
                Err(LogError::Fenced { seq, by }) => {
                    tracing::info!(
                        seq = seq.get(),
                        by = by.get(),
                        "lost the race for the tail, reading on"
                    );
                    // A handover is the running coordinator's; whoever was first has fenced it.
                    if matches!(wish, Wish::HandOver { .. }) {
                        return Err(LogError::Fenced { seq, by });
                    }
                }
                other => return other,
            }
        }
    }

    /// Whether it is time for a closure: so many records since the last one.
    pub fn closure_due(&self) -> bool {
        self.fold.seq().get() - self.fold.closure_seq().get() >= self.options.closure_every
    }

    /// Writes the closure of the head and appends the record that names it. After a Claim, at Pin and Stopped, and when
    /// `closure_due`.
    pub async fn write_closure(&mut self, generation: Generation) -> Result<Record, LogError> {
        self.resolve_doubt().await?;
        let head = self.fold.head();
        let state = match self.state.take() {
            Some(state) if state.epoch == head => state,
            _ => self.restore(head).await?.state,
        };
        let nonce = self.nonce();
        let closure = Closure::new(state, self.fold.clone(), nonce);
        let path = closure.path();
        let unreadable = |source| LogError::Unreadable {
            object: self.store.key(&path),
            source,
        };
        let (bytes, record) = closure.encode().map_err(unreadable)?;
        self.state = Some(closure.state);
        let bytes = Bytes::from(bytes);
        patiently(|| self.store.put(&path, bytes.clone())).await?;
        self.append(generation, Kind::Closure(record)).await
    }

    /// Writes the closure with which a log begins that has a parent: its state at the root, whose objects are this log's own
    /// by now. Nothing else may stand after `Created`.
    pub async fn begin_with(&mut self, state: EpochState) -> Result<Record, LogError> {
        self.state = Some(state);
        self.write_closure(Generation::ZERO).await
    }

    /// The state at the head, if the log carries it.
    pub fn state(&self) -> Option<&EpochState> {
        self.state.as_ref().filter(|s| s.epoch == self.fold.head())
    }

    /// What restoring `target` needs: the newest closure that is `target` or an ancestor of it, and the commits from there.
    pub async fn restore(&mut self, target: Epoch) -> Result<RestorePlan, LogError> {
        if let Some(state) = self.state.as_ref().filter(|s| s.epoch == target) {
            let to_publish = self.fold.to_publish().collect();
            return Ok(RestorePlan {
                state: state.clone(),
                to_publish,
                repaired: Vec::new(),
            });
        }
        let mut repaired = Vec::new();
        let mut trouble = None;
        let candidates: Vec<_> = recovery::closures_for(&self.fold, target)
            .into_iter()
            .cloned()
            .map(Some)
            .collect();
        for entry in candidates.into_iter().chain([None]) {
            let (state, after) = match &entry {
                Some(entry) => match get_closure(&self.store, &entry.record, self.fold.log()).await
                {
                    Ok(closure) => (closure.state, entry.record.through),
                    Err(e @ (LogError::Unreadable { .. } | LogError::Missing { .. })) => {
                        tracing::warn!(error = %e, "closure cannot be used, going back to an older one");
                        repaired.push(e.to_string());
                        trouble.get_or_insert(e);
                        continue;
                    }
                    Err(e) => return Err(e),
                },
                None if self.fold.parent_log().is_some() => {
                    // It did not begin empty, and what it began with is in closures alone.
                    let object = "the closure with which the log begins".to_owned();
                    return Err(trouble.unwrap_or(LogError::Missing { object }));
                }
                None => (EpochState::empty(self.fold.root()), Seq::ZERO),
            };
            match self.restore_from(state, after, target).await {
                Ok(mut plan) => {
                    plan.repaired = repaired;
                    return Ok(plan);
                }
                // The first trouble tells more than what came of going round it.
                Err(e) => return Err(trouble.unwrap_or(e)),
            }
        }
        Err(RestoreError::Unknown { epoch: target }.into())
    }

    async fn restore_from(
        &self,
        state: EpochState,
        after: Seq,
        target: Epoch,
    ) -> Result<RestorePlan, LogError> {
        let epochs = recovery::chain(&self.fold, state.epoch, target)?;
        let mut commits: BTreeMap<Epoch, Commit> = epochs
            .iter()
            .filter_map(|e| self.fold.commit(*e).map(|c| (*e, c.commit.clone())))
            .collect();
        if commits.len() < epochs.len() {
            for record in get_records(&self.store, after.next(), self.fold.seq()).await? {
                if record.log != self.fold.log() {
                    let source = DecodeError::damaged(format!("it belongs to log {}", record.log));
                    return Err(LogError::Unreadable {
                        object: self.store.key(&record_path(record.seq)),
                        source,
                    });
                }
                if let Kind::Epoch(e) = record.kind
                    && let Some(commit) = e.commit
                {
                    commits.insert(commit.epoch, commit);
                }
            }
        }
        Ok(recovery::plan_restore(&self.fold, state, &commits, target)?)
    }
}

/// The state at the root of a log that begins empty. What another one begins with is in its closures alone.
fn beginning(fold: &Fold) -> Option<EpochState> {
    fold.parent_log()
        .is_none()
        .then(|| EpochState::empty(fold.root()))
}

enum Landed {
    Mine,
    Other(Box<Record>),
}
