//! What every source must do: one suite, run for each implementation by a [`Subject`] that knows how to fill it.

#![cfg(test)]

mod subjects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::util::pretty::pretty_format_batches;

use super::{Polled, Position, Source, SourceReader, SplitId, SplitRange};

/// An implementation under test: a source that holds `rows` rows in each of `splits`.
pub(crate) struct Subject {
    pub source: Arc<dyn Source>,
    pub splits: Vec<SplitId>,
    pub rows: i64,
    /// Where a split that is read to its end stands.
    pub end: Position,
    /// Ranges may end anywhere, and not at a split's end alone.
    pub cuts: bool,
}

type Rows = BTreeMap<SplitId, Vec<(i64, String)>>;

/// Polls until `Done`, or until `most` rows; rows by split.
fn drain(reader: &mut dyn SourceReader, most: usize) -> Rows {
    let mut got = Rows::new();
    let (mut count, start) = (0, Instant::now());
    while count < most {
        assert!(start.elapsed() < Duration::from_secs(30), "the source does not end");
        match reader.poll(7.min(most - count)).unwrap() {
            Polled::Rows(batch) => {
                assert!(batch.bad.is_empty(), "{:?}", batch.bad);
                assert!(batch.rows.num_rows() > 0 && batch.rows.num_rows() <= 7);
                assert_eq!(batch.rows.num_rows(), batch.splits.len());
                assert_eq!(batch.rows.num_rows(), batch.offsets.len());
                for i in 0..batch.rows.num_rows() {
                    let split = &batch.split_ids[usize::from(batch.splits[i])];
                    let text = pretty_format_batches(&[batch.rows.slice(i, 1)]).unwrap().to_string();
                    got.entry(split.clone()).or_default().push((batch.offsets[i], text));
                    count += 1;
                }
            }
            Polled::Empty => std::thread::sleep(Duration::from_millis(2)),
            Polled::Done => break,
        }
    }
    for rows in got.values() {
        assert!(rows.windows(2).all(|w| w[0].0 < w[1].0), "offsets ascend within a split");
    }
    got
}

fn whole(subject: &Subject) -> Vec<SplitRange> {
    let all = subject.splits.iter().cloned();
    all.map(|split| SplitRange { split, from: Position(0), until: Some(subject.end) }).collect()
}

pub(crate) async fn check(subject: Subject) {
    splits_are_discovered_once_in_a_stable_order(&subject).await;
    each_row_is_read_once_and_the_end_is_told(&subject);
    reading_goes_on_from_positions(&subject);
    a_split_can_be_added_and_its_end_moved(&subject);
    if subject.cuts {
        ranges_are_kept(&subject);
    }
    a_finished_range_is_done_at_once(&subject);
}

async fn splits_are_discovered_once_in_a_stable_order(subject: &Subject) {
    let mut enumerator = subject.source.enumerator().unwrap();
    let mut known = BTreeMap::new();
    let found = enumerator.discover(&known, true).await.unwrap();
    let ids: Vec<_> = found.iter().map(|d| d.split.clone()).collect();
    assert_eq!(ids, subject.splits);
    let again = enumerator.discover(&known, true).await.unwrap();
    assert_eq!(found, again);
    known.insert(found[0].split.clone(), found[0].start);
    let rest = enumerator.discover(&known, false).await.unwrap();
    assert_eq!(rest, found[1..]);
    let ends = enumerator.ends(&ids).await.unwrap();
    assert!(ends.values().all(|end| *end == subject.end), "{ends:?}");
    let starts = enumerator.starts(&ids).await.unwrap();
    assert_eq!(starts.len(), ids.len());
    let gone = enumerator.starts(&[SplitId("no such split/99".into())]).await.unwrap();
    assert!(gone.len() <= 1);
}

fn each_row_is_read_once_and_the_end_is_told(subject: &Subject) {
    let mut reader = subject.source.reader().unwrap();
    reader.assign(whole(subject)).unwrap();
    let got = drain(reader.as_mut(), usize::MAX);
    assert_eq!(got.len(), subject.splits.len());
    for rows in got.values() {
        let offsets: Vec<i64> = rows.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (0..subject.rows).collect::<Vec<_>>());
    }
    assert_eq!(reader.finished().len(), subject.splits.len());
    assert!(reader.positions().values().all(|p| *p == subject.end));
    assert!(matches!(reader.poll(10).unwrap(), Polled::Done));
}

fn reading_goes_on_from_positions(subject: &Subject) {
    let mut reader = subject.source.reader().unwrap();
    reader.assign(whole(subject)).unwrap();
    let all = drain(reader.as_mut(), usize::MAX);
    for cut in [1, 5, 13] {
        let mut first = subject.source.reader().unwrap();
        first.assign(whole(subject)).unwrap();
        let mut got = drain(first.as_mut(), cut);
        let positions = first.positions();
        drop(first);
        let mut second = subject.source.reader().unwrap();
        let rest = whole(subject).into_iter().map(|mut range| {
            range.from = positions[&range.split];
            range
        });
        second.assign(rest.collect()).unwrap();
        for (split, rows) in drain(second.as_mut(), usize::MAX) {
            got.entry(split).or_default().extend(rows);
        }
        assert_eq!(got, all, "cut at {cut}");
    }
}

fn a_split_can_be_added_and_its_end_moved(subject: &Subject) {
    let mut reader = subject.source.reader().unwrap();
    let mut ranges = whole(subject);
    let last = ranges.pop().unwrap();
    reader.assign(ranges.clone()).unwrap();
    let before = drain(reader.as_mut(), usize::MAX);
    assert_eq!(before.len(), subject.splits.len() - 1);
    let open = SplitRange { until: None, ..last.clone() };
    reader.assign(vec![open]).unwrap();
    let after = drain(reader.as_mut(), subject.rows as usize);
    assert_eq!(after[&last.split].len(), subject.rows as usize);
    reader.assign(vec![last]).unwrap();
    assert!(drain(reader.as_mut(), usize::MAX).is_empty());
    assert_eq!(reader.finished().len(), subject.splits.len());
}

fn ranges_are_kept(subject: &Subject) {
    let mut reader = subject.source.reader().unwrap();
    let split = subject.splits[0].clone();
    let range = |from, until| SplitRange {
        split: split.clone(),
        from: Position(from),
        until: Some(Position(until)),
    };
    reader.assign(vec![range(3, 9)]).unwrap();
    let got = drain(reader.as_mut(), usize::MAX);
    let offsets: Vec<i64> = got[&split].iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (3..9).collect::<Vec<_>>());
    assert_eq!(reader.positions()[&split], Position(9));
    reader.assign(vec![range(3, 11)]).unwrap();
    assert!(reader.finished().is_empty());
    assert_eq!(drain(reader.as_mut(), usize::MAX)[&split].len(), 2);
    assert!(reader.assign(vec![range(3, 4)]).is_err(), "an end does not move backwards");
}

fn a_finished_range_is_done_at_once(subject: &Subject) {
    let mut reader = subject.source.reader().unwrap();
    assert!(matches!(reader.poll(10).unwrap(), Polled::Done), "nothing assigned");
    let ended = whole(subject).into_iter().map(|mut range| {
        range.from = subject.end;
        range
    });
    reader.assign(ended.collect()).unwrap();
    assert!(drain(reader.as_mut(), usize::MAX).is_empty());
}
