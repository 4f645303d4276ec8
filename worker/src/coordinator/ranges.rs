//! Which input a planned epoch reads. Pure: positions, ends and limits in; ranges and the watermark out.

use std::collections::BTreeMap;

use penstock_checkpoint::ids::Micros;
use penstock_checkpoint::record::{Position as LogPosition, SplitState};

use crate::message::EventTime;
use crate::sources::{Position, SplitId};

/// Bounds of one source's share of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows over all splits, where positions count rows.
    pub rows: u64,
    /// Splits that are read whole (files).
    pub files: usize,
}

/// A half-open range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Position,
    pub to: Position,
}

/// The next ranges of one source: what stands between the positions and `ends`, within the bounds. Splits without
/// anything to read are left out. Rows are shared out so that splits come to their ends together.
pub fn next_ranges(
    positions: &BTreeMap<SplitId, SplitState>,
    ends: &BTreeMap<SplitId, Position>,
    bounds: Bounds,
) -> BTreeMap<SplitId, Span> {
    let mut ranges = BTreeMap::new();
    let mut rows: Vec<(SplitId, Position, i64)> = Vec::new();
    let mut files = 0;
    for (split, state) in positions.iter().filter(|(_, s)| !s.done) {
        let from = position(state);
        let Some(end) = ends.get(split).copied().filter(|e| *e > from) else {
            continue;
        };
        if end == Position::END {
            if files < bounds.files {
                ranges.insert(split.clone(), Span { from, to: end });
                files += 1;
            }
        } else {
            rows.push((split.clone(), from, end.0 - from.0));
        }
    }
    let total: u128 = rows.iter().map(|r| r.2.unsigned_abs() as u128).sum();
    for (split, from, left) in rows {
        let share = if total <= u128::from(bounds.rows) {
            left
        } else {
            let share = (left.unsigned_abs() as u128 * u128::from(bounds.rows)).div_ceil(total);
            i64::try_from(share).unwrap_or(i64::MAX).max(1).min(left)
        };
        ranges.insert(
            split,
            Span {
                from,
                to: Position(from.0 + share),
            },
        );
    }
    ranges
}

/// The next position that a split's state names. A token has no place in this engine's sources.
pub fn position(state: &SplitState) -> Position {
    match &state.position {
        LogPosition::Offset(n) => Position(*n),
        LogPosition::Token(_) => Position(0),
    }
}

/// The watermark in force in the next planned epoch: the least over splits that have brought rows or still hold some.
/// A split that never had a row and has none to read does not count, nor does a file that is still to be read: its rows are late
/// when they lie behind those of the files before it.
pub fn watermark(
    splits: &BTreeMap<SplitId, SplitState>,
    ends: &BTreeMap<SplitId, Position>,
    out_of_orderness: i64,
) -> Option<EventTime> {
    let counts = splits.iter().filter(|(split, s)| {
        let end = ends.get(*split).copied();
        let empty = s.done || end.is_none_or(|end| end <= position(s));
        let to_read = !empty && end != Some(Position::END);
        to_read || (s.max_event_time.is_some() && !s.idle)
    });
    let mut least: Option<i64> = None;
    for (_, state) in counts {
        let t = state.max_event_time.map(Micros::get)?;
        least = Some(least.map_or(t, |l| l.min(t)));
    }
    least.map(|t| EventTime::from_micros(t.saturating_sub(out_of_orderness)))
}

/// Finished splits of which the name alone is remembered: all but the one that has seen the greatest event time, on which the
/// watermark stands until another has seen a greater one.
pub fn forgettable(splits: &BTreeMap<SplitId, SplitState>) -> Vec<SplitId> {
    let finished = || splits.iter().filter(|(_, s)| s.done);
    let greatest = finished()
        .filter(|(_, s)| s.max_event_time.is_some())
        .max_by_key(|(_, s)| s.max_event_time)
        .map(|(id, _)| id);
    finished()
        .map(|(id, _)| id)
        .filter(|id| Some(*id) != greatest)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(position: i64, max: Option<i64>) -> SplitState {
        let position = LogPosition::Offset(position);
        SplitState {
            position,
            max_event_time: max.map(Micros::new),
            idle: false,
            done: false,
        }
    }
    fn id(n: u32) -> SplitId {
        SplitId(format!("t/{n}").into())
    }

    #[test]
    fn rows_are_shared_out_by_what_is_left() {
        let positions = BTreeMap::from([
            (id(0), split(0, None)),
            (id(1), split(100, None)),
            (id(2), split(7, None)),
        ]);
        let ends = BTreeMap::from([
            (id(0), Position(300)),
            (id(1), Position(200)),
            (id(2), Position(7)),
        ]);
        let all = next_ranges(
            &positions,
            &ends,
            Bounds {
                rows: 1000,
                files: 1,
            },
        );
        assert_eq!(
            all[&id(0)],
            Span {
                from: Position(0),
                to: Position(300)
            }
        );
        assert_eq!(all.len(), 2);
        let some = next_ranges(
            &positions,
            &ends,
            Bounds {
                rows: 100,
                files: 1,
            },
        );
        assert_eq!(some[&id(0)].to, Position(75));
        assert_eq!(some[&id(1)].to, Position(125));
    }

    #[test]
    fn files_are_whole_and_bounded_in_number() {
        let positions = BTreeMap::from([(id(0), split(0, None)), (id(1), split(3, None))]);
        let ends = BTreeMap::from([(id(0), Position::END), (id(1), Position::END)]);
        let some = next_ranges(&positions, &ends, Bounds { rows: 10, files: 1 });
        assert_eq!(some.len(), 1);
        assert_eq!(some[&id(0)].to, Position::END);
    }

    #[test]
    fn a_split_with_rows_to_come_holds_the_watermark_back_and_an_empty_one_does_not() {
        let splits = BTreeMap::from([(id(0), split(10, Some(1000))), (id(1), split(0, None))]);
        let ends = BTreeMap::from([(id(0), Position(10)), (id(1), Position(0))]);
        assert_eq!(
            watermark(&splits, &ends, 100),
            Some(EventTime::from_micros(900))
        );
        let ends = BTreeMap::from([(id(0), Position(10)), (id(1), Position(5))]);
        assert_eq!(watermark(&splits, &ends, 100), None);
    }

    #[test]
    fn the_finished_file_with_the_greatest_time_is_kept_for_the_watermark_which_files_to_come_do_not_hold_back()
     {
        let done = |max: Option<i64>| SplitState {
            done: true,
            ..split(i64::MAX, max)
        };
        let mut splits = BTreeMap::from([
            (id(0), done(Some(1000))),
            (id(1), done(Some(3000))),
            (id(2), done(Some(2000))),
            (id(3), done(None)),
            (id(4), split(0, None)),
        ]);
        assert_eq!(forgettable(&splits), [id(0), id(2), id(3)]);
        let ends = BTreeMap::from([(id(4), Position::END)]);
        for id in forgettable(&splits) {
            splits.remove(&id);
        }
        assert_eq!(
            watermark(&splits, &ends, 100),
            Some(EventTime::from_micros(2900))
        );
        splits.insert(id(4), done(Some(500)));
        assert_eq!(
            forgettable(&splits),
            [id(4)],
            "an older file does not take it back"
        );
    }
}
