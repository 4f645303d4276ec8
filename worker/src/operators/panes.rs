//! Where a row's window is, for every windowed operator: panes of rows, and which windows a rising watermark closes. Pure.

use std::collections::BTreeSet;

use arrow::array::{Array, BooleanArray, Int64Array, RecordBatch};
use penstock_plan::graph::WindowBy;

use super::rows::sortable;
use super::window::{Assigner, to_micros};
use crate::error::Result;

/// A span of event time: a window, or a pane. Ordered by its end, so that what closes first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub end: i64,
    pub start: i64,
}

impl Span {
    /// The key prefix of the span in state.
    pub fn prefix(self) -> Vec<u8> {
        [sortable(self.end), sortable(self.start)].concat()
    }
}

/// How rows find their window.
#[derive(Debug, Clone, Copy)]
pub enum Windows {
    Time { column: usize, assigner: Assigner },
    Attached { start: usize, end: usize },
}

impl Windows {
    pub fn new(by: &WindowBy) -> Self {
        match by {
            WindowBy::Time { column, window } => Self::Time {
                column: *column,
                assigner: Assigner::new(*window),
            },
            WindowBy::Attached { start, end } => Self::Attached {
                start: *start,
                end: *end,
            },
        }
    }

    /// Whether a pane outlives the first window that holds it.
    pub fn overlaps(&self) -> bool {
        matches!(self, Self::Time { assigner, .. } if assigner.overlaps())
    }

    /// Pane of every row; `None` where a time is null.
    pub fn panes(&self, rows: &RecordBatch) -> Result<Vec<Option<Span>>> {
        match self {
            Self::Time { column, assigner } => {
                let times = to_micros(rows.column(*column))?;
                let size = assigner.pane_size();
                Ok(map_times(&times, |t| {
                    let start = assigner.pane_of(t);
                    Span {
                        start,
                        end: start.saturating_add(size),
                    }
                }))
            }
            Self::Attached { start, end } => {
                let starts = to_micros(rows.column(*start))?;
                let ends = to_micros(rows.column(*end))?;
                Ok((0..rows.num_rows())
                    .map(|i| {
                        (starts.is_valid(i) && ends.is_valid(i)).then(|| Span {
                            start: starts.value(i),
                            end: ends.value(i),
                        })
                    })
                    .collect())
            }
        }
    }

    /// A pane by its start, as a partial operator names it; `end` where it is carried.
    pub fn pane(&self, start: i64, end: Option<i64>) -> Span {
        let end = match self {
            Self::Time { assigner, .. } => start.saturating_add(assigner.pane_size()),
            Self::Attached { .. } => end.unwrap_or(start),
        };
        Span { end, start }
    }

    /// End of the last window that holds a pane: at this watermark its rows are late.
    pub fn last_end(&self, pane: Span) -> i64 {
        match self {
            Self::Time { assigner, .. } => assigner.last_end(pane.start),
            Self::Attached { .. } => pane.end,
        }
    }

    /// The windows that hold a pane, ascending.
    pub fn windows_of(&self, pane: Span) -> Vec<Span> {
        match self {
            Self::Time { assigner, .. } => assigner
                .starts(pane.start)
                .map(|start| Span {
                    end: start.saturating_add(assigner.size()),
                    start,
                })
                .collect(),
            Self::Attached { .. } => vec![pane],
        }
    }

    /// End of the first window that holds a pane and is open at `watermark`.
    pub fn next_end(&self, pane: Span, watermark: i64) -> Option<i64> {
        match self {
            Self::Time { assigner, .. } => assigner.next_end(pane.start, watermark),
            Self::Attached { .. } => (pane.end > watermark).then_some(pane.end),
        }
    }

    /// The panes of a window.
    pub fn panes_of(&self, window: Span) -> Vec<Span> {
        match self {
            Self::Time { assigner, .. } => assigner
                .panes(window.start)
                .map(|start| self.pane(start, None))
                .collect(),
            Self::Attached { .. } => vec![window],
        }
    }

    /// Windows with rows whose end lies in (`from`, `to`], in the order of their ends. `live`: the panes that hold rows.
    pub fn closing(&self, live: impl Iterator<Item = Span>, from: i64, to: i64) -> BTreeSet<Span> {
        let mut due = BTreeSet::new();
        for pane in live {
            let mut next = self.next_end(pane, from);
            while let Some(end) = next.filter(|end| *end <= to) {
                let start = match self {
                    Self::Time { assigner, .. } => end.saturating_sub(assigner.size()),
                    Self::Attached { .. } => pane.start,
                };
                due.insert(Span { end, start });
                next = self.next_end(pane, end);
            }
        }
        due
    }
}

fn map_times(times: &Int64Array, pane: impl Fn(i64) -> Span) -> Vec<Option<Span>> {
    let mut last: Option<(Span, Span)> = None;
    (0..times.len())
        .map(|i| {
            if times.is_null(i) {
                return None;
            }
            let t = times.value(i);
            // Neighbours mostly share a pane: a comparison instead of a division.
            if let Some((span, _)) = last
                && span.start <= t
                && t < span.end
            {
                return Some(span);
            }
            let span = pane(t);
            last = Some((span, span));
            Some(span)
        })
        .collect()
}

/// Rows that are in time, as a mask; `None`: all are. A null time counts as late: it can be in no window.
pub fn in_time(panes: &[Option<Span>], windows: &Windows, watermark: i64) -> Option<BooleanArray> {
    let mut last: Option<(Span, bool)> = None;
    let mut ok = |pane: &Option<Span>| {
        let Some(pane) = pane else { return false };
        match last {
            Some((p, answer)) if p == *pane => answer,
            _ => {
                let answer = windows.last_end(*pane) > watermark;
                last = Some((*pane, answer));
                answer
            }
        }
    };
    let mask: Vec<bool> = panes.iter().map(&mut ok).collect();
    mask.contains(&false).then(|| BooleanArray::from(mask))
}

/// Rows by pane, panes ascending, rows of a pane in their order. One pane: no indices are needed.
pub fn runs(panes: &[Span]) -> Vec<(Span, Option<Vec<u32>>)> {
    let Some(first) = panes.first() else {
        return Vec::new();
    };
    if panes.iter().all(|p| p == first) {
        return vec![(*first, None)];
    }
    let mut order: Vec<u32> = (0..panes.len() as u32).collect();
    order.sort_by_key(|i| panes[*i as usize]);
    order
        .chunk_by(|a, b| panes[*a as usize] == panes[*b as usize])
        .map(|run| (panes[run[0] as usize], Some(run.to_vec())))
        .collect()
}
