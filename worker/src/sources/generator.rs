//! Rows made from a seed: row `i` is a function of (seed, i) and of nothing else, but for columns that say `now`. Splits
//! interleave: row `p` of split `s` of `k` is row `p * k + s`. Pacing needs a clock, which is injected.

mod column;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{FieldRef, SchemaRef};
use async_trait::async_trait;
use penstock_crds::source::{Generate, GeneratorSource as Spec};
use tokio::sync::Notify;

use self::column::Maker;
use super::ranges::Ranges;
use super::{
    Discovered, Polled, Position, Source, SourceBatch, SourceEnumerator, SourceReader, SplitId,
    SplitRange,
};
use crate::clock::Clock;
use crate::error::{EngineError, Result};

/// What to make.
#[derive(Debug, Clone)]
pub struct GeneratorConfig {
    /// Name of the source, for messages.
    pub name: String,
    /// Columns in the order of the batches.
    pub schema: SchemaRef,
    /// Per column.
    pub generate: Vec<Generate>,
    pub seed: u64,
    /// 0: as fast as possible.
    pub rows_per_second: u64,
    /// Over all splits; `None`: for ever.
    pub rows: Option<u64>,
    pub splits: u32,
    /// Readers keep to `rows_per_second`. False in planned epochs, where the enumerator's ends do.
    pub paced: bool,
}

impl GeneratorConfig {
    /// `columns`: of the projection, with how each is made.
    pub fn from_spec(
        name: &str,
        spec: &Spec,
        columns: &[(FieldRef, Generate)],
        paced: bool,
    ) -> Self {
        let fields: Vec<FieldRef> = columns.iter().map(|(f, _)| Arc::clone(f)).collect();
        Self {
            name: name.to_owned(),
            schema: Arc::new(arrow::datatypes::Schema::new(fields)),
            generate: columns.iter().map(|(_, g)| g.clone()).collect(),
            seed: spec.seed,
            rows_per_second: spec.rows_per_second,
            rows: spec.rows,
            splits: 1,
            paced,
        }
    }

    /// Rows of one split, `None` without end.
    fn rows_of(&self, split: u32) -> Option<i64> {
        let (rows, splits) = (self.rows?, u64::from(self.splits));
        let own = rows / splits + u64::from(u64::from(split) < rows % splits);
        Some(i64::try_from(own).unwrap_or(i64::MAX))
    }

    fn splits(&self) -> impl Iterator<Item = (u32, SplitId)> {
        (0..self.splits).map(|i| (i, SplitId(i.to_string().into())))
    }
}

/// A generator.
#[derive(Debug)]
pub struct GeneratorSource {
    config: Arc<GeneratorConfig>,
    makers: Arc<[Maker]>,
    clock: Arc<dyn Clock>,
}

impl GeneratorSource {
    /// Fails when a column cannot be made as it says.
    pub fn new(config: GeneratorConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        if config.splits == 0 || config.generate.len() != config.schema.fields().len() {
            return Err(EngineError::invalid(
                "PS0036",
                format!("source {}", config.name),
                "every column of a generator needs `generate`",
            ));
        }
        let makers = config
            .schema
            .fields()
            .iter()
            .zip(&config.generate)
            .map(|(field, generate)| {
                Maker::new(field, generate).map_err(|why| {
                    EngineError::invalid(
                        "PS0036",
                        format!("source {} column {}", config.name, field.name()),
                        why,
                    )
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config: Arc::new(config),
            makers,
            clock,
        })
    }
}

impl Source for GeneratorSource {
    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(Reader {
            config: Arc::clone(&self.config),
            makers: Arc::clone(&self.makers),
            clock: Arc::clone(&self.clock),
            ranges: Ranges::default(),
            pace: None,
            turn: 0,
            waker: None,
        }))
    }

    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>> {
        Ok(Box::new(Enumerator {
            config: Arc::clone(&self.config),
            clock: Arc::clone(&self.clock),
            since: self.clock.boot(),
            base: BTreeMap::new(),
        }))
    }
}

/// Rows that are due: `rate` per second since `since`, of which `made` are out.
#[derive(Debug, Clone, Copy)]
struct Pace {
    since: Duration,
    made: u64,
}

impl Pace {
    fn due(self, rate: u64, now: Duration) -> u64 {
        let elapsed = now.saturating_sub(self.since).as_nanos();
        let due = elapsed * u128::from(rate) / 1_000_000_000;
        u64::try_from(due)
            .unwrap_or(u64::MAX)
            .saturating_sub(self.made)
    }
}

struct Reader {
    config: Arc<GeneratorConfig>,
    makers: Arc<[Maker]>,
    clock: Arc<dyn Clock>,
    ranges: Ranges,
    pace: Option<Pace>,
    /// Which of the ranges comes first, so that a slow rate serves all.
    turn: usize,
    waker: Option<Arc<Notify>>,
}

impl Reader {
    /// This reader's share of the rate.
    fn rate(&self) -> u64 {
        let (splits, own) = (
            u64::from(self.config.splits),
            self.ranges.iter().count() as u64,
        );
        (self.config.rows_per_second * own / splits).max(1)
    }

    fn allowed(&mut self, max_rows: usize) -> usize {
        if !self.config.paced || self.config.rows_per_second == 0 {
            return max_rows;
        }
        let now = self.clock.boot();
        let rate = self.rate();
        let pace = self.pace.get_or_insert(Pace {
            since: now,
            made: 0,
        });
        let due = pace.due(rate, now);
        // After a standstill it does not catch up with more than a second's rows.
        pace.made += due.saturating_sub(rate);
        max_rows.min(usize::try_from(due.min(rate)).unwrap_or(usize::MAX))
    }

    /// Wakes the task when the next row is due.
    fn wake_later(&self) {
        let Some(waker) = self.waker.clone() else {
            return;
        };
        let wait = Duration::from_nanos(1_000_000_000 / self.rate());
        let wait = wait.clamp(Duration::from_millis(2), Duration::from_secs(1));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    tokio::time::sleep(wait).await;
                    waker.notify_one();
                });
            }
            Err(_) => {
                std::thread::spawn(move || {
                    std::thread::sleep(wait);
                    waker.notify_one();
                });
            }
        }
    }
}

impl SourceReader for Reader {
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        let bounded = ranges.into_iter().map(|mut range| {
            let rows = range
                .split
                .0
                .parse()
                .ok()
                .and_then(|i| self.config.rows_of(i));
            range.until = match (range.until, rows) {
                (Some(until), Some(rows)) => Some(until.min(Position(rows))),
                (until, rows) => until.or(rows.map(Position)),
            };
            range
        });
        let bounded = bounded.collect();
        self.ranges.assign(bounded)
    }

    fn poll(&mut self, max_rows: usize) -> Result<Polled> {
        let allowed = self.allowed(max_rows);
        let (count, turn) = (self.ranges.iter().count(), self.turn);
        let mut rows: Vec<u64> = Vec::with_capacity(allowed);
        let (mut splits, mut offsets) = (Vec::new(), Vec::new());
        for i in 0..count {
            let range = self.ranges.at(((turn + i) % count) as u16);
            let split: u64 = range.split.0.parse().unwrap_or(0);
            let left = range.until.map_or(i64::MAX, |until| until.0) - range.next.0;
            let n = left.clamp(0, (allowed - rows.len()) as i64);
            for offset in range.next.0..range.next.0 + n {
                rows.push(offset as u64 * u64::from(self.config.splits) + split);
                splits.push(range.index);
                offsets.push(offset);
            }
            range.next.0 += n;
        }
        self.turn = if count == 0 { 0 } else { (turn + 1) % count };
        if rows.is_empty() {
            let idle = self.ranges.idle();
            if matches!(idle, Polled::Empty) {
                self.wake_later();
            }
            return Ok(idle);
        }
        if let Some(pace) = &mut self.pace {
            pace.made += rows.len() as u64;
        }
        let now = self.clock.now();
        let columns = self.makers.iter();
        let columns = columns
            .map(|maker| maker.make(self.config.seed, &rows, now))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let schema = Arc::clone(&self.config.schema);
        let batch = RecordBatch::try_new_with_options(schema, columns, &options).map_err(|e| {
            let name = format!("source {}", self.config.name);
            EngineError::fail("PR0208", name, "the columns made do not fit").caused_by(e)
        })?;
        Ok(Polled::Rows(Box::new(SourceBatch {
            bytes: batch.get_array_memory_size(),
            rows: batch,
            splits,
            offsets,
            split_ids: self.ranges.ids(),
            raw: None,
            bad: Vec::new(),
        })))
    }

    fn positions(&self) -> BTreeMap<SplitId, Position> {
        self.ranges.positions()
    }

    fn caught_up(&self) -> Vec<SplitId> {
        self.finished()
    }

    fn finished(&self) -> Vec<SplitId> {
        self.ranges.finished()
    }

    fn set_waker(&mut self, waker: Arc<Notify>) {
        self.waker = Some(waker);
    }
}

struct Enumerator {
    config: Arc<GeneratorConfig>,
    clock: Arc<dyn Clock>,
    since: Duration,
    /// Where each split stood at `since`.
    base: BTreeMap<SplitId, Position>,
}

impl Enumerator {
    /// Rows of each split that the rate has made since the enumerator began.
    fn due(&self) -> i64 {
        let pace = Pace {
            since: self.since,
            made: 0,
        };
        let rate = self.config.rows_per_second / u64::from(self.config.splits);
        i64::try_from(pace.due(rate.max(1), self.clock.boot())).unwrap_or(i64::MAX)
    }
}

#[async_trait]
impl SourceEnumerator for Enumerator {
    async fn discover(
        &mut self,
        known: &BTreeMap<SplitId, Position>,
        _first: bool,
    ) -> Result<Vec<Discovered>> {
        // It may be asked for the first time long after it began.
        let due = self.due();
        for (split, position) in known {
            let base = Position(position.0.saturating_sub(due));
            self.base.entry(split.clone()).or_insert(base);
        }
        let new = self
            .config
            .splits()
            .filter(|(_, id)| !known.contains_key(id));
        Ok(new
            .map(|(_, split)| Discovered {
                split,
                start: Position(0),
            })
            .collect())
    }

    /// With `rows`: those. Else what the rate has made since the enumerator began.
    async fn ends(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let due = self.due();
        let end = |id: &SplitId| {
            let split = id.0.parse().ok().filter(|i| *i < self.config.splits)?;
            let base = self.base.get(id).map_or(0, |p| p.0);
            let end = match self.config.rows_of(split) {
                Some(rows) => rows,
                None if self.config.rows_per_second == 0 => i64::MAX - 1,
                None => base.saturating_add(due),
            };
            Some((id.clone(), Position(end)))
        };
        Ok(splits.iter().filter_map(end).collect())
    }

    async fn starts(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        Ok(splits.iter().map(|id| (id.clone(), Position(0))).collect())
    }

    fn bounded(&self) -> bool {
        self.config.rows.is_some()
    }

    async fn show_positions(&mut self, _positions: &BTreeMap<SplitId, Position>) {}
}

#[cfg(test)]
mod tests;
