//! What a sink got against what it should have got: rows as multisets, changes as the table they make, dead letters by what
//! is said of them. Pure.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use penstock_plan::graph::OutputMode;
use penstock_plan::source_plan::SinkPlan;
use serde_json::{Map, Value as Json};

use super::rows::Typed;
use crate::error::{EngineError, Result};
use crate::sinks::Record;

/// Header that only a dead letter has.
const CODE: &str = "penstock.code";
/// How a deletion begins, as the sink in memory writes it.
const DELETED: &[u8] = b"{\"$op\":\"-D\"";

/// What a sink must get in a run.
#[derive(Debug, Default)]
pub struct Expected {
    /// Canonical texts.
    pub rows: Vec<String>,
    pub letters: Vec<Letter>,
}

/// What is said of a dead letter; what is not said is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Letter {
    pub source: Option<String>,
    pub offset: Option<String>,
    pub code: Option<String>,
    /// Contained in the text.
    pub error: Option<String>,
    /// `Some(None)`: a record without a key.
    pub key: Option<Option<Vec<u8>>>,
    pub raw: Option<Option<Vec<u8>>>,
}

/// Rows of a sink that differ, as texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub sink: String,
    pub missing: Vec<String>,
    pub unexpected: Vec<String>,
}

/// Compares what a sink got with what it should. `all`: everything that it got in this case, with epochs; the run's begins at
/// `from`. `None`: the same.
pub fn differences(
    sink: &str,
    plan: Option<&SinkPlan>,
    expected: &Expected,
    all: &[(u64, Record)],
    from: usize,
) -> Result<Option<Difference>> {
    let is_letter = |r: &Record| r.headers.iter().any(|(name, _)| name == CODE);
    let letters: Vec<Letter> = all
        .iter()
        .skip(from)
        .filter(|(_, r)| is_letter(r))
        .map(|(_, r)| Letter::of(r))
        .collect();
    let (mut missing, mut unexpected) = match_letters(&expected.letters, &letters);
    let actual = match plan {
        None => Vec::new(),
        Some(plan) => {
            let rows: Vec<(usize, u64, &[u8])> = all
                .iter()
                .enumerate()
                .filter(|(_, (_, r))| !is_letter(r))
                .map(|(i, (epoch, r))| (i, *epoch, r.value.as_deref().unwrap_or_default()))
                .collect();
            result(plan, &rows, from)?
        }
    };
    let (less, more) = multiset(&expected.rows, &actual);
    missing.extend(less);
    unexpected.extend(more);
    if missing.is_empty() && unexpected.is_empty() {
        return Ok(None);
    }
    Ok(Some(Difference {
        sink: sink.to_owned(),
        missing,
        unexpected,
    }))
}

/// What the sink's reader has after the run: index, epoch and body of each record to texts.
fn result(plan: &SinkPlan, rows: &[(usize, u64, &[u8])], from: usize) -> Result<Vec<String>> {
    let last = rows.iter().map(|(_, epoch, _)| *epoch).max();
    let read: Vec<&[u8]> = rows
        .iter()
        .filter(|(i, epoch, body)| match plan.mode {
            OutputMode::Append => *i >= from,
            OutputMode::Update => true,
            OutputMode::Complete => Some(*epoch) == last && !body.starts_with(DELETED),
        })
        .map(|(.., body)| *body)
        .collect();
    let (batch, wrong) = Typed::new(&plan.schema)?.read(read.iter().copied())?;
    if let Some(wrong) = wrong.first() {
        let text = format!(
            "a row that was published cannot be read again: {}",
            wrong.text
        );
        return Err(EngineError::fail(
            "PR0304",
            format!("sink {}", plan.name),
            text,
        ));
    }
    let texts = Typed::texts(&batch)?;
    match (plan.mode, &plan.key) {
        (OutputMode::Update, Some(key)) => table(&batch, key, texts, &read),
        (OutputMode::Append | OutputMode::Update | OutputMode::Complete, _) => Ok(texts),
    }
}

/// The table that remains when the changes are applied by key.
fn table(
    batch: &RecordBatch,
    key: &[usize],
    texts: Vec<String>,
    bodies: &[&[u8]],
) -> Result<Vec<String>> {
    let keys = batch.project(key).map_err(|e| {
        EngineError::fail("PR0304", "sink", "the rows lack a column of the key").caused_by(e)
    })?;
    let mut table: BTreeMap<String, String> = BTreeMap::new();
    for ((key, text), body) in Typed::texts(&keys)?.into_iter().zip(texts).zip(bodies) {
        if body.starts_with(DELETED) {
            table.remove(&key);
        } else {
            table.insert(key, text);
        }
    }
    Ok(table.into_values().collect())
}

/// What of `expected` is missing, and what of `actual` is too much; each in its own order.
fn multiset(expected: &[String], actual: &[String]) -> (Vec<String>, Vec<String>) {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for text in actual {
        *left.entry(text).or_default() += 1;
    }
    let mut missing = Vec::new();
    for text in expected {
        match left.get_mut(text.as_str()) {
            Some(n) if *n > 0 => *n -= 1,
            _ => missing.push(text.clone()),
        }
    }
    // The last ones of equal rows are the ones too much.
    let mut unexpected: Vec<String> = Vec::new();
    for text in actual.iter().rev() {
        if let Some(n) = left.get_mut(text.as_str()).filter(|n| **n > 0) {
            *n -= 1;
            unexpected.push(text.clone());
        }
    }
    unexpected.reverse();
    (missing, unexpected)
}

/// Pairs descriptions with letters, each used once; as many as can be paired are.
fn match_letters(expected: &[Letter], actual: &[Letter]) -> (Vec<String>, Vec<String>) {
    // Per letter the description that it is paired with. Descriptions may overlap, so pairs are changed along augmenting
    // paths (Kuhn's algorithm).
    let mut pairs: Vec<Option<usize>> = vec![None; actual.len()];
    let mut missing = Vec::new();
    for (i, letter) in expected.iter().enumerate() {
        let mut tried = vec![false; actual.len()];
        if !pair(i, expected, actual, &mut pairs, &mut tried) {
            missing.push(letter.text());
        }
    }
    let unpaired = actual.iter().zip(&pairs).filter(|(_, p)| p.is_none());
    (missing, unpaired.map(|(letter, _)| letter.text()).collect())
}

fn pair(
    i: usize,
    expected: &[Letter],
    actual: &[Letter],
    pairs: &mut [Option<usize>],
    tried: &mut [bool],
) -> bool {
    for j in 0..actual.len() {
        if tried[j] || !expected[i].describes(&actual[j]) {
            continue;
        }
        tried[j] = true;
        let free = match pairs[j] {
            None => true,
            Some(other) => pair(other, expected, actual, pairs, tried),
        };
        if free {
            pairs[j] = Some(i);
            return true;
        }
    }
    false
}

impl Letter {
    fn of(record: &Record) -> Self {
        let header = |name: &str| {
            let found = record.headers.iter().find(|(n, _)| n == name);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        Self {
            source: header("penstock.source"),
            offset: header("penstock.offset"),
            code: header(CODE),
            error: header("penstock.error"),
            key: Some(record.key.as_ref().map(|b| b.to_vec())),
            raw: Some(record.value.as_ref().map(|b| b.to_vec())),
        }
    }

    fn describes(&self, other: &Letter) -> bool {
        let same = |mine: &Option<String>, its: &Option<String>| mine.is_none() || mine == its;
        let error = self.error.as_deref().unwrap_or_default();
        same(&self.source, &other.source)
            && same(&self.offset, &other.offset)
            && same(&self.code, &other.code)
            && other.error.as_deref().unwrap_or_default().contains(error)
            && (self.key.is_none() || self.key == other.key)
            && (self.raw.is_none() || self.raw == other.raw)
    }

    /// For reports; long bodies are cut.
    fn text(&self) -> String {
        let mut object = Map::new();
        let texts = [
            ("$source", &self.source),
            ("$offset", &self.offset),
            ("$code", &self.code),
            ("$error", &self.error),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                let number = (name == "$offset")
                    .then(|| value.parse::<i64>().ok())
                    .flatten();
                let value = number.map_or_else(|| Json::from(value.as_str()), Json::from);
                object.insert(name.to_owned(), value);
            }
        }
        for (name, value) in [("$key", &self.key), ("$raw", &self.raw)] {
            if let Some(value) = value {
                let shown = value
                    .as_ref()
                    .map_or(Json::Null, |bytes| excerpt(bytes).into());
                if name == "$raw" || !shown.is_null() {
                    object.insert(name.to_owned(), shown);
                }
            }
        }
        Json::Object(object).to_string()
    }
}

/// Longest body that a report shows, in characters.
const EXCERPT: usize = 400;

fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(EXCERPT) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], bytes.len()),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_and_not_only_found() {
        let texts = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let (missing, unexpected) =
            multiset(&texts(&["a", "a", "b"]), &texts(&["a", "b", "b", "c"]));
        assert_eq!(missing, texts(&["a"]));
        assert_eq!(unexpected, texts(&["b", "c"]));
    }

    #[test]
    fn a_wide_description_leaves_the_letter_that_a_narrow_one_needs() {
        let letter = |offset: Option<&str>, code: &str| Letter {
            offset: offset.map(str::to_owned),
            code: Some(code.to_owned()),
            ..Letter::default()
        };
        let actual = [letter(Some("1"), "PR0201"), letter(Some("2"), "PR0201")];
        let expected = [letter(None, "PR0201"), letter(Some("1"), "PR0201")];
        assert_eq!(match_letters(&expected, &actual), (vec![], vec![]));
        let expected = [letter(None, "PR0201"), letter(None, "PR0202")];
        let (missing, unexpected) = match_letters(&expected, &actual);
        assert_eq!(missing, [r#"{"$code":"PR0202"}"#]);
        assert_eq!(unexpected, [r#"{"$offset":2,"$code":"PR0201"}"#]);
    }
}
