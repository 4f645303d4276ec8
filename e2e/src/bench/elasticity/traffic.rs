//! Rows that come to the job, and what comes out of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::PARTITIONS;
use super::fleet::Place;
use crate::kafka::{From, Loader, Pace, Reader, Seen};

/// How many rows of each key were sent.
type Sent = Arc<Vec<AtomicU32>>;

/// A time without output.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub ended: Instant,
    pub length: Duration,
}

/// Where rows go: those of the input, and those that are joined to them.
struct Pipes {
    rows: Loader,
    tags: Option<Loader>,
    sent: Sent,
    partitions: i32,
}

impl Pipes {
    fn new(place: &Place, sent: Sent, partitions: i32) -> Result<Self> {
        let tags = place.tags.as_ref();
        Ok(Self {
            rows: Loader::new(&place.brokers, &place.input)?,
            tags: tags.map(|t| Loader::new(&place.brokers, t)).transpose()?,
            sent,
            partitions,
        })
    }

    fn put(&mut self, key: usize, number: u64) -> Result<()> {
        // Counted first: what comes out may be no more than what was sent.
        let nth = self.sent[key].fetch_add(1, Ordering::Release);
        let to = (key % self.partitions as usize) as i32;
        self.send(to, key, nth, now_ms(), number)
    }

    fn send(&mut self, to: i32, key: usize, nth: u32, at: u128, number: u64) -> Result<()> {
        self.rows.put(to, row(key, nth, at, number).as_bytes())?;
        if let Some(tags) = &mut self.tags {
            let tag = format!("{{\"k\":{key},\"s\":{nth},\"t\":{at}}}");
            tags.put(to, tag.as_bytes())?;
        }
        Ok(())
    }

    /// Where windows are: a row in each partition that is later than all others: it closes their windows, and its own stays open.
    fn close(&mut self) -> Result<()> {
        const LATER: u128 = 60_000;
        let beyond = self.sent.len();
        (0..self.partitions).try_for_each(|to| self.send(to, beyond, 0, now_ms() + LATER, 0))
    }

    fn flush(&mut self) -> Result<()> {
        self.rows.flush()?;
        self.tags.as_mut().map_or(Ok(()), Loader::flush)
    }

    fn poll(&mut self) {
        self.rows.poll();
        if let Some(tags) = &mut self.tags {
            tags.poll();
        }
    }
}

/// Writes the rows.
pub struct Load {
    place: Place,
    sent: Sent,
    /// Rows per second; 0: none.
    rate: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

fn now_ms() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis())
}

/// A number that looks like chance, the same each run (splitmix64).
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `nth`: of its key.
fn row(key: usize, nth: u32, at: u128, number: u64) -> String {
    // Hardly compressible.
    let payload: String = (0..10)
        .map(|i| format!("{:015x}", mixed(number * 10 + i) >> 4))
        .collect();
    format!("{{\"k\":{key},\"s\":{nth},\"t\":{at},\"v\":\"{payload}\"}}")
}

impl Load {
    pub fn new(place: &Place, keys: usize) -> Result<Self> {
        Self::spread(place, keys, PARTITIONS)
    }

    /// Over so many partitions.
    pub fn spread(place: &Place, keys: usize, partitions: i32) -> Result<Self> {
        let sent: Sent = Arc::new((0..keys).map(|_| AtomicU32::new(0)).collect());
        let (rate, over) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let mut pipes = Pipes::new(place, sent.clone(), partitions)?;
        let (pace, ends) = (rate.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !ends.load(Ordering::Relaxed) {
                // A hundredth of a second's rows at once.
                let tick = Instant::now();
                for _ in 0..pace.load(Ordering::Relaxed) / 100 {
                    number += 1;
                    pipes.put(mixed(number) as usize % keys, number)?;
                }
                pipes.poll();
                sleep(Duration::from_millis(10).saturating_sub(tick.elapsed()));
            }
            if pipes.tags.is_some() {
                pipes.close()?;
            }
            pipes.flush()
        });
        Ok(Self {
            place: place.clone(),
            sent,
            rate,
            over,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub fn sent(&self) -> Sent {
        self.sent.clone()
    }

    /// Rows that were sent.
    pub fn rows(&self) -> u64 {
        total(&self.sent)
    }

    /// A row of each key, as fast as the broker takes them.
    pub fn every_key(&self) -> Result<()> {
        let mut pipes = Pipes::new(&self.place, self.sent.clone(), PARTITIONS)?;
        for key in 0..self.sent.len() {
            pipes.put(key, !(key as u64) >> 8)?;
        }
        pipes.flush()
    }

    pub fn rate(&self, rows: usize) {
        self.rate.store(rows, Ordering::Relaxed);
    }

    /// Until the broker has all of them.
    pub fn stop(&self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let thread = thread.context("it was stopped before")?;
        thread.join().map_err(|_| anyhow!("the sender panicked"))?
    }
}

fn total(of: &[AtomicU32]) -> u64 {
    of.iter()
        .map(|n| u64::from(n.load(Ordering::Acquire)))
        .sum()
}

/// Reads what comes out.
pub struct Watch(Arc<Shared>);

struct Shared {
    sent: Sent,
    counted: Vec<AtomicU32>,
    rows: AtomicU64,
    gaps: Mutex<Vec<Gap>>,
    failed: Mutex<Option<anyhow::Error>>,
}

/// Rows: a few epochs at the rate of a measurement.
pub const NEXT_TO_NOTHING: u64 = 10_000;
/// What counts as a time without output.
const SHORTEST: Duration = Duration::from_millis(20);

impl Watch {
    pub fn new(brokers: &str, topic: &str, sent: Sent) -> Result<Self> {
        let shared = Arc::new(Shared {
            counted: (0..sent.len()).map(|_| AtomicU32::new(0)).collect(),
            sent,
            rows: AtomicU64::new(0),
            gaps: Mutex::default(),
            failed: Mutex::default(),
        });
        let mut reader = Reader::with_pace(brokers, topic, From::Beginning, Pace::Prompt)?;
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            if let Err(error) = of_thread.read(&mut reader) {
                *of_thread
                    .failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        Ok(Self(shared))
    }

    fn check(&self) -> Result<()> {
        let failed = self
            .0
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        failed.map_or(Ok(()), Err)
    }

    /// Rows that were counted.
    pub fn rows(&self) -> u64 {
        self.0.rows.load(Ordering::Relaxed)
    }

    /// Until every row that was sent is counted.
    pub fn caught_up(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            self.check()?;
            let (counted, sent) = (total(&self.0.counted), total(&self.0.sent));
            if counted == sent {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("{counted} of {sent} rows are counted after {patience:?}");
            }
            sleep(Duration::from_millis(200));
        }
    }

    /// Rows that were sent and are not counted yet.
    pub fn behind(&self) -> Result<u64> {
        self.check()?;
        Ok(total(&self.0.sent).saturating_sub(total(&self.0.counted)))
    }

    /// Until next to nothing of what was sent is not counted yet.
    pub fn keeps_up(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            let behind = self.behind()?;
            if behind < NEXT_TO_NOTHING {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{behind} rows are not counted after {patience:?}"
            );
            sleep(Duration::from_millis(200));
        }
    }

    /// Of those that ended after `at`.
    pub fn longest_since(&self, at: Instant) -> Result<Gap> {
        self.check()?;
        let gaps = self.0.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        let since = gaps.iter().filter(|gap| gap.ended > at);
        let longest = since.max_by_key(|gap| gap.length);
        longest
            .copied()
            .context("output never paused, or has ended")
    }
}

impl Shared {
    fn read(&self, reader: &mut Reader) -> Result<()> {
        let mut last = Instant::now();
        loop {
            let Seen::Record(record) = reader.next(Duration::from_millis(500))? else {
                continue;
            };
            let ended = Instant::now();
            let length = ended - last;
            last = ended;
            if length >= SHORTEST {
                let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
                gaps.push(Gap { ended, length });
            }
            let value = record.value.context("a row was taken back")?;
            let row: Value = serde_json::from_slice(&value)?;
            let number = |name: &str| {
                row[name]
                    .as_u64()
                    .with_context(|| format!("no {name} in {row}"))
            };
            let (key, n) = (usize::try_from(number("k")?)?, u32::try_from(number("n")?)?);
            let before = self.counted[key].swap(n, Ordering::Release);
            let sent = self.sent[key].load(Ordering::Acquire);
            ensure!(
                n > before && n <= sent,
                "key {key} counts {n} rows after {before}, and {sent} were sent"
            );
            self.rows
                .fetch_add(u64::from(n - before), Ordering::Relaxed);
        }
    }
}
