//! Input that is gone: positions that a source does not have any more stop the job (`DataLossRisk`), until a person accepts the
//! loss. What was accepted is in the log before anything is read behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_checkpoint::ids::{SourceName, SplitId as LogSplit};
use penstock_checkpoint::record::{Kind, LossAccepted, Position as LogPosition, SplitState};

use super::{Coordinator, ranges};
use crate::error::{EngineError, Result};
use crate::member::storage;
use crate::sources::{Position, SplitId};

/// A source whose lost input a person gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptLoss {
    pub source: String,
    /// Only while the job stands at this epoch: the word is about one loss, and not about those that follow.
    pub at: Option<u64>,
    /// Who said so.
    pub by: &'static str,
}

impl AcceptLoss {
    /// Reads `SOURCE` or `SOURCE@EPOCH`.
    ///
    /// # Errors
    /// When what follows the `@` is no number.
    pub fn parse(text: &str, by: &'static str) -> std::result::Result<Self, String> {
        let (source, at) = match text.split_once('@') {
            Some((source, epoch)) => {
                let at = epoch.parse();
                (
                    source,
                    Some(at.map_err(|_| {
                        format!("{text}: after the @ comes the number of an epoch")
                    })?),
                )
            }
            None => (text, None),
        };
        let source = source.to_owned();
        Ok(Self { source, at, by })
    }
}

/// How long a gap must last to be one: a broker that has just started may not know all yet.
const SURE: Duration = Duration::from_secs(2);

/// What is wrong with the place where a split stands.
#[derive(Debug, PartialEq)]
enum Gap {
    /// The oldest that is still there comes later.
    Deleted {
        oldest: Position,
    },
    /// The source ends before it: it was made anew.
    Renewed {
        oldest: Position,
        end: Position,
    },
    Gone,
}

impl Gap {
    /// `start`, `end`: what the source has of the split.
    fn observe(at: Position, start: Option<Position>, end: Option<Position>) -> Option<Self> {
        match (start, end) {
            (None, _) => Some(Self::Gone),
            (Some(oldest), _) if oldest > at => Some(Self::Deleted { oldest }),
            (Some(oldest), Some(end)) if end < at => Some(Self::Renewed { oldest, end }),
            (Some(_), _) => None,
        }
    }

    fn text(&self, at: Position) -> String {
        match self {
            Self::Deleted { oldest } => format!(
                "the job is at {}, the oldest that is still there is {}: rows were deleted before they were read",
                at.0, oldest.0
            ),
            Self::Renewed { end, .. } => format!(
                "the job is at {}, and it ends at {}: it was made anew",
                at.0, end.0
            ),
            Self::Gone => "it is not there any more, and it was not read to its end".to_owned(),
        }
    }

    /// Where reading goes on.
    fn to(&self) -> Position {
        match self {
            Self::Deleted { oldest } | Self::Renewed { oldest, .. } => *oldest,
            Self::Gone => Position::END,
        }
    }
}

impl Coordinator {
    /// Who accepts the loss of a source's input at the epoch where the job stands, if somebody does.
    fn accepts(&self, source: &str) -> Option<&'static str> {
        let head = self.log.fold().head().get();
        let of = self.settings.accept_loss.iter();
        let mut of = of.filter(|a| a.source == source && a.at.is_none_or(|at| at == head));
        of.next().map(|a| a.by)
    }

    /// Every split stands where its source can go on, or the job stops.
    pub(super) async fn check_starts(&mut self, i: usize) -> Result<()> {
        let accepted = self.accepts(&self.sources[i].name).is_some();
        let source = &mut self.sources[i];
        let splits = self.splits.entry(i).or_default();
        let open: Vec<(SplitId, Position)> = splits
            .iter()
            .filter(|(_, s)| !s.done)
            .map(|(id, s)| (id.clone(), ranges::position(s)))
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        let ids: Vec<SplitId> = open.iter().map(|(id, _)| id.clone()).collect();
        let mut starts = source.enumerator.starts(&ids).await?;
        let gap = |starts: &BTreeMap<SplitId, Position>| {
            let mut of = open.iter();
            of.any(|(id, at)| Gap::observe(*at, starts.get(id).copied(), None).is_some())
        };
        if gap(&starts) {
            tokio::time::sleep(SURE).await;
            starts = source.enumerator.starts(&ids).await?;
        }
        // An end may be behind for a moment, where a broker has just started: only a person's word makes it count.
        let mut ends = BTreeMap::new();
        if accepted {
            let there: Vec<SplitId> = starts.keys().cloned().collect();
            ends = source.enumerator.ends(&there).await?;
        }
        for (id, at) in open {
            let start = starts.get(&id).copied();
            if let Some(gap) = Gap::observe(at, start, ends.get(&id).copied()) {
                self.meet(i, &id, at, &gap).await?;
            }
        }
        Ok(())
    }

    /// Goes on past a gap that a person has accepted, now or in an earlier run that the log tells of.
    async fn meet(&mut self, i: usize, id: &SplitId, at: Position, gap: &Gap) -> Result<()> {
        let name = self.sources[i].name.clone();
        let (source, split) = (
            SourceName::new(name.clone()),
            LogSplit::new(id.0.to_string()),
        );
        let from = LogPosition::Offset(at.0);
        let known = self
            .log
            .fold()
            .losses()
            .iter()
            .any(|l| l.source == source && l.split == split && l.from == from);
        let accepted = self.accepts(&name);
        if !known && accepted.is_none() {
            let text = format!(
                "DataLossRisk: {}; --accept-loss {name}@{} goes on without them",
                gap.text(at),
                self.log.fold().head()
            );
            let object = format!("source {name}, {}", id.0);
            // Only a person's word changes it.
            return Err(EngineError::invalid("PR0207", object, text));
        }
        let to = LogPosition::Offset(gap.to().0);
        if !known {
            tracing::warn!(source = name, split = %id.0, from = at.0, "a loss is accepted: {}", gap.text(at));
            let accepted = LossAccepted {
                source,
                split,
                from,
                to: to.clone(),
                by: accepted.unwrap_or_default().to_owned(),
            };
            let record = Kind::LossAccepted(accepted);
            self.log
                .append(self.generation, record)
                .await
                .map_err(storage)?;
        }
        let splits = self.splits.entry(i).or_default();
        if let Some(state) = splits.get_mut(id) {
            *state = SplitState {
                position: to,
                done: *gap == Gap::Gone,
                ..state.clone()
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_told_by_what_the_source_still_has() {
        let at = |at, start: Option<i64>, end: Option<i64>| {
            Gap::observe(Position(at), start.map(Position), end.map(Position))
        };
        assert_eq!(at(5, Some(0), Some(5)), None);
        assert_eq!(at(5, Some(5), None), None);
        assert_eq!(at(0, Some(0), Some(i64::MAX)), None);
        let oldest = Position(7);
        assert_eq!(at(5, Some(7), Some(9)), Some(Gap::Deleted { oldest }));
        let (oldest, end) = (Position(0), Position(4));
        assert_eq!(at(5, Some(0), Some(4)), Some(Gap::Renewed { oldest, end }));
        assert_eq!(at(5, None, Some(4)), Some(Gap::Gone));
    }
}
