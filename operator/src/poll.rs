//! Asks jobs that have nothing to be done how far they are: one question each 15 s, spread over that time. Numbers go into the
//! status, at most once a minute; anything else that the answer changes wakes the job, which is then looked at as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::channel::mpsc::UnboundedSender;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::{Counts, JobStatus, Rates, StateSize};
use tokio::time::Instant;

use crate::apply::Writer;
use crate::autoscale;
use crate::clock::turn;
use crate::decide::POLL;
use crate::facts::Facts;
use crate::guarded::Guarded;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::status::{health_changes, news};

/// How often it is looked who is due.
const TICK: Duration = Duration::from_millis(100);
/// How often what is kept of jobs that are gone is thrown away.
const SWEEP: Duration = Duration::from_secs(60);
/// When who was due and found nothing left to write by is asked again: at another moment of the round than before, or the same ones
/// would always come last.
const AGAIN: Duration = Duration::from_millis(7_300);
/// Questions at a time.
const AT_ONCE: usize = 8;
/// Writes a second that numbers alone may lead to, of all jobs together: what is too much is left to the next question. Of so many
/// in store the half is for conditions that change.
const WRITES: f64 = 18.0;
/// Jobs that are woken at a time because numbers changed their health. A broker that is away changes that of all of them at once, and
/// somebody's edit must not stand in a queue behind them.
const WOKEN: usize = 2;

/// Namespace and name of a job.
pub type Key = (String, String);

/// A job that is asked.
#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    /// What it said when it was looked at, without the numbers.
    shape: u64,
}

pub struct Poll {
    observer: Arc<Observer>,
    writer: Arc<Writer>,
    jobs: Store<Guarded>,
    /// Whoever is to be looked at as a whole.
    wake: UnboundedSender<ObjectRef<Guarded>>,
    metrics: Arc<Metrics>,
    /// Jobs that go on by themselves, and when each is asked.
    settled: Mutex<BTreeMap<Key, Option<Due>>>,
    /// Jobs whose health changed, until they were looked at.
    woken: Mutex<BTreeSet<Key>>,
    allowance: Mutex<Allowance>,
}

/// What may be written now, and what there was at an earlier moment.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    /// Takes one, if so many stay in store.
    fn take(&mut self, now: Instant, stay: f64) -> bool {
        let since = now.duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + since * WRITES).min(WRITES), now);
        let may = self.left >= 1.0 + stay;
        self.left -= f64::from(u8::from(may));
        may
    }
}

impl Poll {
    pub fn new(
        observer: Arc<Observer>,
        writer: Arc<Writer>,
        jobs: Store<Guarded>,
        wake: UnboundedSender<ObjectRef<Guarded>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            observer,
            writer,
            jobs,
            wake,
            metrics,
            settled: Mutex::default(),
            woken: Mutex::default(),
            allowance: Mutex::new(Allowance {
                left: WRITES,
                at: Instant::now(),
            }),
        }
    }

    /// From now on the job is only asked. One that says nothing is left alone: watches tell of every change.
    pub fn settle(&self, facts: &Facts) {
        let due = facts.status().map(|told| Due {
            at: Instant::now() + POLL.mul_f64(turn(facts.job.metadata.uid.as_deref())),
            shape: shape(told),
        });
        if self.settled.lock().insert(key(&facts.job), due).is_none() {
            self.metrics.settled(1);
        }
    }

    /// It is being looked at as a whole.
    pub fn unsettle(&self, job: &StreamingJob) {
        self.drop(&key(job));
    }

    /// It was looked at, whatever came of that.
    pub fn looked(&self, job: &impl ResourceExt) {
        self.woken.lock().remove(&key(job));
    }

    fn drop(&self, key: &Key) {
        if self.settled.lock().remove(key).is_some() {
            self.metrics.settled(-1);
        }
    }

    /// Asks until the process ends. `forget` drops what else is kept of jobs than those of these uids.
    pub async fn run(&self, forget: impl Fn(&BTreeSet<&str>)) {
        let mut sweep = Instant::now() + SWEEP;
        loop {
            tokio::time::sleep(TICK).await;
            futures::stream::iter(self.due(Instant::now()))
                .for_each_concurrent(AT_ONCE, |(key, due)| self.ask(key, due))
                .await;
            if Instant::now() >= sweep {
                sweep = Instant::now() + SWEEP;
                self.forget(&forget);
            }
        }
    }

    /// Whose turn it is; the next one is `POLL` later.
    fn due(&self, now: Instant) -> Vec<(Key, Due)> {
        let mut settled = self.settled.lock();
        let asked = settled
            .iter_mut()
            .filter_map(|(key, due)| Some((key, due.as_mut()?)));
        let due = asked.filter(|(_, due)| due.at <= now);
        due.map(|(key, due)| {
            due.at = now + POLL;
            (key.clone(), *due)
        })
        .collect()
    }

    async fn ask(&self, key: Key, due: Due) {
        let of = ObjectRef::new(&key.1).within(&key.0);
        let kept = self.jobs.get(&of);
        let Some(job) = kept.as_ref().and_then(|kept| kept.0.as_ref().ok()) else {
            self.drop(&key);
            return;
        };
        let now = crate::clock::now();
        let said = self.observer.ask(job, now).await;
        let may_write = |stay| self.allowance.lock().take(Instant::now(), stay);
        let told = said.now(now).filter(|told| shape(told) == due.shape);
        match told {
            Some(told) if health_changes(job, told, now) || self.scales(job, now) => {
                if self.woken.lock().len() >= WOKEN || !may_write(0.0) {
                    return self.again(&key);
                }
                self.woken.lock().insert(key.clone());
            }
            Some(told) => {
                let Some(status) = news(job, told).filter(|_| !self.writer.is_recent(job, now))
                else {
                    return;
                };
                if !may_write(WRITES / 2.0) {
                    return self.again(&key);
                }
                if let Err(error) = self.writer.numbers(job, &status, now).await {
                    // Those of the next minute will do.
                    tracing::debug!(%error, job = %key.1, "numbers were not written");
                }
                return;
            }
            None => {}
        }
        self.drop(&key);
        // The receiver is gone when the process ends.
        let _ = self.wake.unbounded_send(of);
    }

    /// Whether the autoscaler says something else than the status.
    fn scales(&self, job: &StreamingJob, now: DateTime<Utc>) -> bool {
        if !autoscale::is_asked_for(job) {
            return false;
        }
        let status = job.status.as_ref();
        let is = status.and_then(|s| u32::try_from(s.desired_replicas?).ok());
        let load = self.observer.load(job);
        let Some(decision) = autoscale::of(job, &load, is, now) else {
            return false;
        };
        let before = status.and_then(|s| s.autoscaling.as_ref());
        let says = autoscale::shown(decision, is.unwrap_or(decision.workers), before, now);
        before != Some(&says)
    }

    /// Nothing is left to write by.
    fn again(&self, key: &Key) {
        if let Some(Some(due)) = self.settled.lock().get_mut(key) {
            due.at = Instant::now() + AGAIN;
        }
    }

    /// Drops what is kept of jobs that are gone.
    fn forget(&self, others: impl Fn(&BTreeSet<&str>)) {
        let jobs = self.jobs.state();
        let keys: BTreeSet<Key> = jobs.iter().map(|j| key(&**j)).collect();
        let uids: BTreeSet<&str> = jobs
            .iter()
            .filter_map(|j| j.meta().uid.as_deref())
            .collect();
        let mut heard = self.observer.heard.lock();
        heard.retain(|uid, _| uids.contains(uid.as_str()));
        drop(heard);
        let mut loads = self.observer.loads.lock();
        loads.retain(|uid, _| uids.contains(uid.as_str()));
        drop(loads);
        let gone: Vec<Key> = {
            let settled = self.settled.lock();
            settled
                .keys()
                .filter(|k| !keys.contains(k))
                .cloned()
                .collect()
        };
        gone.iter().for_each(|key| self.drop(key));
        self.woken.lock().retain(|key| keys.contains(key));
        self.writer.forget(&uids);
        others(&uids);
    }
}

fn key(job: &impl ResourceExt) -> Key {
    (job.namespace().unwrap_or_default(), job.name_any())
}

/// All that an answer says but for measurements. What is added to the answer counts, unless it is left out here.
fn shape(said: &JobStatus) -> u64 {
    let mut bare = said.clone();
    bare.epoch = None;
    bare.watermark = None;
    bare.lag = None;
    bare.rates = Rates::default();
    bare.state = StateSize::default();
    bare.counts = Counts::default();
    bare.held_back_by = None;
    if let Some(failure) = &mut bare.last_failure {
        // The same one once more.
        failure.at = DateTime::UNIX_EPOCH.into();
    }
    for source in &mut bare.sources {
        source.splits = 0;
        source.rows = 0;
        source.lag_records = None;
        source.idle = false;
    }
    for sink in &mut bare.sinks {
        sink.done_through = 0;
        sink.rows = 0;
    }
    let text = serde_json::to_vec(&bare).expect("an answer that was read can be written");
    xxhash_rust::xxh3::xxh3_64(&text)
}

#[cfg(test)]
mod tests {
    use super::{Allowance, WRITES, shape};
    use penstock_crds::rpc::{JobStatus, Lag};
    use serde_json::json;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn numbers_are_written_no_faster_than_is_allowed_and_leave_room_for_conditions() {
        let began = Instant::now();
        let mut allowance = Allowance {
            left: WRITES,
            at: began,
        };
        let mut taken = |after: u64, stay: f64| {
            let now = began + Duration::from_millis(after);
            (0..100).filter(|_| allowance.take(now, stay)).count()
        };
        assert_eq!(taken(0, WRITES / 2.0), 9);
        assert_eq!(taken(0, 0.0), 9);
        assert_eq!(taken(0, 0.0), 0);
        assert_eq!(taken(500, 0.0), 9);
        assert_eq!(taken(60_000, 0.0), 18, "what was not taken does not add up");
    }

    #[test]
    fn moving_numbers_wake_nobody_and_anything_else_does() {
        let said: JobStatus = serde_json::from_value(json!({
            "job": "a", "namespace": "b", "log_id": "c", "generation": 1, "phase": "Running", "engine": "0.1.0",
            "version": "v", "rates": {"in": 1.0, "out": 1.0}, "counts": {"late": 0, "dead_letters": 0, "restarts": 0},
            "sources": [{"name": "s", "splits": 1, "rows": 7}], "sinks": [],
        }))
        .unwrap();
        let mut moved = said.clone();
        moved.lag = Some(Lag {
            records: 5,
            seconds: 1.0,
        });
        moved.counts.rows_in = 9;
        moved.sources[0].rows = 9;
        assert_eq!(shape(&said), shape(&moved));
        let failed = |at: &str, code: &str| -> JobStatus {
            let failure = json!({"at": at, "code": code, "message": "no broker"});
            let failure = serde_json::from_value(failure).unwrap();
            JobStatus {
                last_failure: Some(failure),
                ..said.clone()
            }
        };
        let first = failed("2026-01-01T00:00:00Z", "PR0208");
        let again = failed("2026-01-01T00:00:10Z", "PR0208");
        assert_eq!(shape(&first), shape(&again), "the same one once more");
        assert_ne!(shape(&first), shape(&said));
        assert_ne!(
            shape(&first),
            shape(&failed("2026-01-01T00:00:00Z", "PR0209"))
        );
        let mut other = said.clone();
        other.on_trial = true;
        assert_ne!(shape(&said), shape(&other));
        let mut other = said.clone();
        other.generation = 2;
        assert_ne!(shape(&said), shape(&other));
    }
}
