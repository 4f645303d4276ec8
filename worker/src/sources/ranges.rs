//! The ranges that a reader was assigned and how far it is in each: pure bookkeeping that all readers share.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Polled, Position, SplitId, SplitRange};
use crate::error::{EngineError, Result};

/// One assigned split.
#[derive(Debug)]
pub struct Range {
    pub split: SplitId,
    /// Index into [`Ranges::ids`].
    pub index: u16,
    /// The next row to read.
    pub next: Position,
    pub until: Option<Position>,
}

impl Range {
    /// Read to its end.
    pub fn done(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }
}

/// All assigned splits of a reader, in the order in which they were assigned.
#[derive(Debug, Default)]
pub struct Ranges {
    ranges: Vec<Range>,
    by_split: BTreeMap<SplitId, usize>,
    ids: Option<Arc<[SplitId]>>,
}

impl Ranges {
    /// Adds ranges; of a split that is assigned already only the end may move, forwards.
    pub fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        for SplitRange { split, from, until } in ranges {
            if let Some(i) = self.by_split.get(&split) {
                let known = &mut self.ranges[*i];
                let backwards = match (known.until, until) {
                    (Some(old), Some(new)) => new < old,
                    (None, Some(new)) => new < known.next,
                    (_, None) => false,
                };
                if backwards {
                    return Err(EngineError::fail(
                        "PR0208",
                        format!("split {}", split.0),
                        "the end of its range moved backwards",
                    ));
                }
                known.until = until;
                continue;
            }
            let index = u16::try_from(self.ranges.len()).map_err(|_| {
                EngineError::retry(
                    "PR0208",
                    format!("split {}", split.0),
                    "a reader takes at most 65,536 splits in its life",
                )
            })?;
            self.by_split.insert(split.clone(), self.ranges.len());
            self.ranges.push(Range {
                split,
                index,
                next: from,
                until,
            });
            self.ids = None;
        }
        Ok(())
    }

    pub fn get_mut(&mut self, split: &SplitId) -> Option<&mut Range> {
        self.by_split.get(split).map(|i| &mut self.ranges[*i])
    }

    pub fn at(&mut self, index: u16) -> &mut Range {
        &mut self.ranges[usize::from(index)]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Range> {
        self.ranges.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Range> {
        self.ranges.iter_mut()
    }

    /// Ids in the order of `index`.
    pub fn ids(&mut self) -> Arc<[SplitId]> {
        let ranges = &self.ranges;
        let make = || ranges.iter().map(|r| r.split.clone()).collect();
        Arc::clone(self.ids.get_or_insert_with(make))
    }

    pub fn positions(&self) -> BTreeMap<SplitId, Position> {
        let all = self.ranges.iter();
        all.map(|r| (r.split.clone(), r.next)).collect()
    }

    pub fn finished(&self) -> Vec<SplitId> {
        let done = self.ranges.iter().filter(|r| r.done());
        done.map(|r| r.split.clone()).collect()
    }

    /// The answer of a poll that found no row.
    pub fn idle(&self) -> Polled {
        if self.ranges.iter().all(Range::done) {
            Polled::Done
        } else {
            Polled::Empty
        }
    }
}
