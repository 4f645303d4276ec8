//! Which keys, and which key groups, have most of a keyed operator's rows. About one row in 64 is looked at, by chance, so that what
//! is regular in the input cannot hide or feign a key. Feeds metrics and status alone.

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::util::display::array_value_to_string;

use crate::keys;
use crate::message::{Batch, Lane};

/// Rows between two that are looked at: evenly from 1 to so many, 64 in the mean.
const GAPS: u64 = 127;
/// Keys that are counted at a time.
const COUNTED: usize = 32;
/// Of a key that came so often people may want the text.
const OFTEN: u64 = 4;
/// Characters of a key's text.
const TEXT: usize = 64;
/// Keys, and key groups, that are told.
const TOLD: usize = 8;

/// The items that came most often, at a fixed cost: SpaceSaving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and
/// Top-k Elements in Data Streams, 2005). An item that came in more than one case of [`COUNTED`] is among them.
#[derive(Debug, Default)]
struct Frequent {
    /// Apart from the items: for each row that is looked at they are searched.
    hashes: Vec<u64>,
    items: Vec<Item>,
    /// All that came.
    total: u64,
    /// No item came less often, and where the search for one that came no more often goes on: so it is short in the mean.
    floor: u64,
    next: usize,
}

#[derive(Debug, Default)]
struct Item {
    count: u64,
    /// By how much the count may be too high.
    over: u64,
    text: Option<String>,
}

impl Item {
    fn least(&self) -> u64 {
        self.count - self.over
    }
}

impl Frequent {
    /// `text` is asked for at most once while the item is counted.
    fn add(&mut self, hash: u64, text: impl FnOnce() -> String) {
        self.total += 1;
        if let Some(at) = self.hashes.iter().position(|h| *h == hash) {
            let item = &mut self.items[at];
            item.count += 1;
            if item.text.is_none() && item.least() >= OFTEN {
                item.text = Some(text());
            }
            return;
        }
        if self.items.len() < COUNTED {
            self.hashes.push(hash);
            self.items.push(Item {
                count: 1,
                ..Item::default()
            });
            self.floor = 0;
            return;
        }
        let at = self.rarest();
        let over = self.items[at].count;
        self.hashes[at] = hash;
        // The new one may have come as often before, unseen.
        self.items[at] = Item {
            count: over + 1,
            over,
            text: None,
        };
    }

    fn rarest(&mut self) -> usize {
        loop {
            for _ in 0..self.items.len() {
                let at = self.next;
                self.next = (at + 1) % self.items.len();
                if self.items[at].count <= self.floor {
                    return at;
                }
            }
            let counts = self.items.iter().map(|item| item.count);
            self.floor = counts.min().unwrap_or_default();
        }
    }

    /// What came until now counts half from now on.
    fn halve(&mut self) {
        self.total /= 2;
        let hashes = std::mem::take(&mut self.hashes).into_iter();
        let items = std::mem::take(&mut self.items).into_iter();
        for (hash, item) in hashes.zip(items).filter(|(_, item)| item.count > 1) {
            self.hashes.push(hash);
            self.items.push(Item {
                count: item.count / 2,
                over: item.over / 2,
                text: item.text,
            });
        }
        (self.floor, self.next) = (0, 0);
    }

    /// Those that came most often, with their hashes.
    fn most(&self) -> impl Iterator<Item = (u64, &Item)> {
        let all = self.hashes.iter().copied().zip(&self.items);
        let mut items: Vec<(u64, &Item)> = all.filter(|(_, i)| i.least() > 0).collect();
        items.sort_by_key(|(hash, item)| (std::cmp::Reverse(item.least()), *hash));
        items.into_iter().take(TOLD)
    }
}

/// What was seen of an operator's keys in one slot; the older the less it counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Skew {
    /// Rows that were looked at.
    pub rows: u64,
    /// Hash, rows at the least, and text.
    pub keys: Vec<(u64, u64, String)>,
    /// Key group, and rows; none where rows did not come by key.
    pub groups: Vec<(u16, u64)>,
}

/// Looks at the rows of one operator.
#[derive(Debug)]
pub struct KeySampler {
    /// By port: the key's columns; empty where it has none.
    columns: Vec<Vec<usize>>,
    /// Rows that pass before the next one is looked at.
    skip: usize,
    /// State of the generator of gaps (xorshift).
    chance: u64,
    keys: Frequent,
    /// Rows by key group; none where they do not come by key.
    groups: Vec<u32>,
}

impl KeySampler {
    /// `key_groups`: of the job, where rows come by key. `seed`: another one for each operator and slot.
    pub fn new(columns: Vec<Vec<usize>>, key_groups: Option<u16>, seed: u64) -> Self {
        let mut sampler = Self {
            columns,
            skip: 0,
            chance: seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            keys: Frequent::default(),
            groups: vec![0; usize::from(key_groups.unwrap_or_default())],
        };
        sampler.skip = sampler.gap() - 1;
        sampler
    }

    fn gap(&mut self) -> usize {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        1 + usize::try_from((self.chance >> 32) % GAPS).expect("it is small")
    }

    /// A batch of input `port`.
    pub fn look(&mut self, port: usize, batch: &Batch) {
        let rows = batch.num_rows();
        if batch.lane == Lane::Late || self.columns.get(port).is_none_or(Vec::is_empty) {
            return;
        }
        if self.skip >= rows {
            self.skip -= rows;
            return;
        }
        let mut picks = Vec::with_capacity(2 * rows / 64 + 1);
        let mut at = self.skip;
        while at < rows {
            picks.push(u32::try_from(at).expect("a batch has fewer than 2^32 rows"));
            at += self.gap();
        }
        self.skip = at - rows;
        let rows = picks.len();
        let picks = UInt32Array::from(picks);
        let picked = |column: &usize| take(batch.rows.column(*column), &picks, None);
        // What cannot be picked the operator will say.
        let Ok(columns) = self.columns[port]
            .iter()
            .map(picked)
            .collect::<Result<Vec<_>, _>>()
        else {
            return;
        };
        let groups =
            u16::try_from(self.groups.len()).expect("a job has fewer than 2^16 key groups");
        for (row, hash) in keys::hash_columns(&columns, rows).into_iter().enumerate() {
            self.keys.add(hash, || text(&columns, row));
            if !self.groups.is_empty() {
                self.groups[usize::from(keys::key_group(hash, groups))] += 1;
            }
        }
    }

    /// What was seen until now counts half from now on.
    pub fn halve(&mut self) {
        self.keys.halve();
        self.groups.iter_mut().for_each(|rows| *rows /= 2);
    }

    pub fn skew(&self) -> Skew {
        let named = |(hash, item): (u64, &Item)| Some((hash, item.least(), item.text.clone()?));
        let groups = (0u16..).zip(self.groups.iter().map(|rows| u64::from(*rows)));
        let mut groups: Vec<(u16, u64)> = groups.filter(|(_, rows)| *rows > 0).collect();
        groups.sort_by_key(|(group, rows)| (std::cmp::Reverse(*rows), *group));
        groups.truncate(TOLD);
        Skew {
            rows: self.keys.total,
            keys: self.keys.most().filter_map(named).collect(),
            groups,
        }
    }
}

/// A key as people read it: on one line, and not too long.
fn text(columns: &[ArrayRef], row: usize) -> String {
    let value = |column: &ArrayRef| match column.is_null(row) {
        true => "NULL".to_owned(),
        false => array_value_to_string(column, row).unwrap_or_default(),
    };
    let whole = columns.iter().map(value).collect::<Vec<_>>().join(", ");
    let mut chars = whole.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut text: String = chars.by_ref().take(TEXT).collect();
    if chars.next().is_some() {
        text.pop();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch, StringArray};

    use super::*;

    const GROUPS: u16 = 64;

    fn batch(keys: impl Iterator<Item = i64>) -> Batch {
        let column: ArrayRef = Arc::new(keys.collect::<Int64Array>());
        Batch::inserts(RecordBatch::try_from_iter([("k", column)]).unwrap())
    }

    fn sampled(key: impl Fn(i64) -> i64, rows: i64, batch_rows: i64) -> Skew {
        let mut sampler = KeySampler::new(vec![vec![0]], Some(GROUPS), 7);
        for first in (0..rows).step_by(usize::try_from(batch_rows).unwrap()) {
            sampler.look(0, &batch((first..first + batch_rows).map(&key)));
        }
        sampler.skew()
    }

    fn share(rows: u64, skew: &Skew) -> f64 {
        rows as f64 / skew.rows as f64
    }

    #[test]
    fn about_one_row_in_64_is_looked_at_whatever_the_batches_are() {
        for batch_rows in [1, 10, 4096] {
            let skew = sampled(|n| n, 409_600, batch_rows);
            assert!((6000..6800).contains(&skew.rows), "{}", skew.rows);
        }
    }

    #[test]
    fn a_key_with_half_of_the_rows_is_found_with_its_share_and_its_group() {
        let skew = sampled(|n| if n % 2 == 0 { -1 } else { n }, 409_600, 4096);
        let (hash, rows, text) = &skew.keys[0];
        assert_eq!(text, "-1");
        assert!((share(*rows, &skew) - 0.5).abs() < 0.05, "{skew:?}");
        let (group, rows) = skew.groups[0];
        assert_eq!(group, keys::key_group(*hash, GROUPS));
        assert!((share(rows, &skew) - 0.5).abs() < 0.06, "{skew:?}");
    }

    #[test]
    fn even_keys_have_no_share_worth_a_name_however_regular_they_come() {
        for keys in [64, 128, 1000, 409_600] {
            let skew = sampled(|n| n % keys, 409_600, 4096);
            let most = skew.keys.first().map_or(0, |(_, rows, _)| *rows);
            assert!(share(most, &skew) < 0.04, "{keys} keys: {skew:?}");
        }
    }

    /// Beside what an exchange does with each row anyhow, for people: `cargo test --release -p penstock-worker task::skew -- --ignored
    /// --nocapture`.
    #[test]
    #[ignore = "prints figures; decides nothing"]
    #[allow(
        clippy::disallowed_methods,
        reason = "measures by the clock, and decides nothing"
    )]
    fn what_looking_at_keys_costs() {
        use std::time::Instant;

        for keys in [10i64, 1000, 1_000_000] {
            let batches: Vec<Batch> = (0..64)
                .map(|b| batch((b * 4096..(b + 1) * 4096).map(|n| n * 7919 % keys)))
                .collect();
            let rows = 40.0 * 64.0 * 4096.0;
            let mut sampler = KeySampler::new(vec![vec![0]], Some(GROUPS), 7);
            let began = Instant::now();
            for batch in std::iter::repeat_n(&batches, 40).flatten() {
                sampler.look(0, batch);
            }
            let looked = began.elapsed().as_secs_f64() / rows * 1e9;
            let began = Instant::now();
            let mut sum = 0;
            for batch in std::iter::repeat_n(&batches, 40).flatten() {
                let columns = [batch.rows.column(0).clone()];
                sum ^= keys::hash_columns(&columns, batch.num_rows())[0];
            }
            let hashed = began.elapsed().as_secs_f64() / rows * 1e9;
            println!("{keys} keys: {looked:.2} ns a row to look, {hashed:.2} ns to hash ({sum:x})");
        }
    }

    #[test]
    fn what_is_over_loses_half_of_its_weight() {
        let mut frequent = Frequent::default();
        for hash in [1, 1, 1, 1, 2] {
            frequent.add(hash, String::new);
        }
        frequent.halve();
        let left: Vec<(u64, u64)> = frequent.most().map(|(hash, i)| (hash, i.least())).collect();
        assert_eq!((left, frequent.total), (vec![(1, 2)], 2));
    }

    #[test]
    fn an_item_is_never_said_to_have_come_more_often_than_it_did() {
        let mut frequent = Frequent::default();
        // Each of many once, one of them every tenth time.
        for n in 0..10_000u64 {
            frequent.add(if n % 10 == 0 { 0 } else { n }, String::new);
        }
        let items: Vec<(u64, u64)> = frequent.most().map(|(hash, i)| (hash, i.least())).collect();
        assert_eq!(items[0].0, 0);
        assert!((800..=1000).contains(&items[0].1), "{items:?}");
        assert!(items[1..].iter().all(|(_, rows)| *rows <= 1), "{items:?}");
    }

    #[test]
    fn a_key_is_one_line_of_64_characters_at_most() {
        let word = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        let none: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
        let number: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        assert_eq!(
            text(&[word("a\n\u{1b}[2Jb"), none, number], 0),
            "a  [2Jb, NULL, 7"
        );
        let long = text(&[word(&"é".repeat(200))], 0);
        assert_eq!(long.chars().count(), 64);
        assert!(long.ends_with("é…"));
    }
}
