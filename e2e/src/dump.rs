//! Owns the reading of an output topic as a whole: its rows in canonical text, and one line that says what they are.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::canonical;
use crate::kafka::{From, Reader};

/// What a topic holds, independent of order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    pub records: u64,
    pub bytes: u64,
    pub sum: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rows={} records={} bytes={} sum={:016x}",
            self.rows, self.records, self.bytes, self.sum
        )
    }
}

/// Reads the committed records of a topic to its end. With `upsert` the last value of each key counts and a null takes it
/// away; else each record is a row. Canonical rows go to `rows`, when given.
pub fn dump(brokers: &str, topic: &str, upsert: bool, rows: Option<&Path>) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut last: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    let mut out = match rows {
        Some(path) => {
            Some(BufWriter::new(File::create(path).with_context(|| {
                format!("cannot write {}", path.display())
            })?))
        }
        None => None,
    };
    let mut count = |summary: &mut Summary, row: &str| -> Result<()> {
        summary.rows += 1;
        summary.sum = summary.sum.wrapping_add(canonical::hash(row));
        if let Some(out) = &mut out {
            writeln!(out, "{row}")?;
        }
        Ok(())
    };
    Reader::new(brokers, topic, From::Beginning)?.drain(|record| {
        summary.records += 1;
        let Some(value) = record.value else {
            if upsert {
                last.remove(&record.key.unwrap_or_default());
            }
            return Ok(());
        };
        summary.bytes += value.len() as u64;
        let row = canonical::row(&value)?;
        if upsert {
            last.insert(record.key.unwrap_or_default(), row);
            return Ok(());
        }
        count(&mut summary, &row)
    })?;
    for row in last.values() {
        count(&mut summary, row)?;
    }
    if let Some(out) = &mut out {
        out.flush()?;
    }
    Ok(summary)
}
