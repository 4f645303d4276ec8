//! Files of a folder, each read once: a split is a file's path below the folder, a position is a line, and a file that was read
//! to its end stands at [`Position::END`] for ever. New files are found by listing; a file is read as it is when it is opened.
//!
//! Reading and decompressing happen on a thread of the reader's own (`lines`), which sends blocks of whole lines through
//! a bounded channel; `poll` decodes them.

mod lines;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use penstock_crds::source::FilesSource as Spec;
use tokio::sync::Notify;

use self::lines::{Block, LineStream};
use super::decode::{BatchAssembler, BodyFormat, DecodePlan, Record};
use super::ranges::Ranges;
use super::{
    Discovered, Polled, Position, Source, SourceEnumerator, SourceReader, SplitId, SplitRange,
};
use crate::error::{EngineError, Result};
use crate::folder::Folder;
use crate::formats::code;

/// What to read.
#[derive(Debug, Clone)]
pub struct FilesConfig {
    /// Name of the source, for messages.
    pub name: String,
    pub folder: Folder,
    /// Glob of names below the folder: `*` and `?` within a part, `**` across parts, `[a-z]`, `{a,b}`. Without a slash it is
    /// matched with the last part.
    pub pattern: String,
    pub plan: DecodePlan,
}

impl FilesConfig {
    /// `options`: what the source's secret holds.
    pub fn from_spec(
        name: &str,
        spec: &Spec,
        plan: DecodePlan,
        options: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            folder: Folder::open(&spec.url, options)?,
            pattern: spec.pattern.clone(),
            plan,
        })
    }
}

/// A source of files.
#[derive(Debug)]
pub struct FilesSource {
    config: Arc<FilesConfig>,
    pattern: regex::Regex,
}

impl FilesSource {
    /// Fails when the pattern is none.
    pub fn new(config: FilesConfig) -> Result<Self> {
        let pattern = glob(&config.pattern).ok_or_else(|| {
            let name = format!("source {}", config.name);
            EngineError::invalid("PS0021", name, format!("`{}` is not a glob", config.pattern))
        })?;
        Ok(Self {
            config: Arc::new(config),
            pattern,
        })
    }
}

impl Source for FilesSource {
    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(Reader {
            assembler: BatchAssembler::new(self.config.plan.clone())?,
            max_line: match self.config.plan.format {
                BodyFormat::Json(json) => json.max_record_bytes,
                BodyFormat::Raw { max_record_bytes } => max_record_bytes,
            },
            blank_is_row: matches!(self.config.plan.format, BodyFormat::Raw { .. }),
            config: Arc::clone(&self.config),
            ranges: Ranges::default(),
            queue: VecDeque::new(),
            current: None,
            waker: Arc::default(),
        }))
    }

    fn enumerator(&self) -> Result<Box<dyn SourceEnumerator>> {
        Ok(Box::new(Enumerator {
            config: Arc::clone(&self.config),
            pattern: self.pattern.clone(),
        }))
    }
}

/// A glob as a regular expression over names below the folder.
fn glob(pattern: &str) -> Option<regex::Regex> {
    let mut text = String::from(if pattern.contains('/') { "^" } else { "(^|/)" });
    let mut chars = pattern.chars().peekable();
    let mut braces = 0;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                if chars.peek() == Some(&'/') {
                    chars.next();
                    text.push_str("(.*/)?");
                } else {
                    text.push_str(".*");
                }
            }
            '*' => text.push_str("[^/]*"),
            '?' => text.push_str("[^/]"),
            '[' => {
                text.push('[');
                if let Some('!' | '^') = chars.peek() {
                    chars.next();
                    text.push('^');
                }
                loop {
                    match chars.next()? {
                        ']' => break,
                        c @ ('\\' | '[' | '&' | '~') => text.extend(['\\', c]),
                        c => text.push(c),
                    }
                }
                text.push(']');
            }
            '{' => {
                braces += 1;
                text.push_str("(?:");
            }
            '}' if braces > 0 => {
                braces -= 1;
                text.push(')');
            }
            ',' if braces > 0 => text.push('|'),
            c => text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    text.push('$');
    (braces == 0).then(|| regex::Regex::new(&text).ok())?
}

/// What others write beside their data: markers, and files that are still being written.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('_') || part.starts_with('.') || part.contains('#'))
}

/// The file being read, and what is left of its last block.
struct Current {
    index: u16,
    stream: LineStream,
    block: Vec<u8>,
    at: usize,
    modified_ms: i64,
}

struct Reader {
    config: Arc<FilesConfig>,
    assembler: BatchAssembler,
    max_line: usize,
    blank_is_row: bool,
    ranges: Ranges,
    /// Files to read, in order.
    queue: VecDeque<u16>,
    current: Option<Current>,
    waker: Arc<Notify>,
}

impl Reader {
    fn failed(&self, index: u16, error: lines::ReadError) -> EngineError {
        let path = self.ranges.iter().nth(usize::from(index)).map(|r| r.split.0.to_string());
        let object = format!("source {} file {}", self.config.name, path.unwrap_or_default());
        match error {
            lines::ReadError::Gone(e) => {
                EngineError::fail("PR0207", object, "the file is not there any more").caused_by(e)
            }
            lines::ReadError::Store(e) => {
                EngineError::retry("PR0208", object, "cannot be read").caused_by(e)
            }
            lines::ReadError::Corrupt(e) => {
                EngineError::fail("PR0208", object, "cannot be decompressed").caused_by(e)
            }
        }
    }

    /// Opens the next file if none is open; false if there is none.
    fn open(&mut self) -> bool {
        while self.current.is_none() {
            let Some(index) = self.queue.front().copied() else {
                return false;
            };
            let range = self.ranges.at(index);
            if range.done() || range.next == Position::END {
                self.queue.pop_front();
                continue;
            }
            let skip = u64::try_from(range.next.0).unwrap_or(0);
            let path = self.config.folder.object(&range.split.0);
            let store = Arc::clone(&self.config.folder.store);
            let waker = Arc::clone(&self.waker);
            self.current = Some(Current {
                index,
                stream: LineStream::open(store, path, skip, self.max_line, waker),
                block: Vec::new(),
                at: 0,
                modified_ms: 0,
            });
        }
        true
    }

    /// Takes lines of the current block; true if there may be more at once.
    fn take_lines(&mut self, max_rows: usize) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        let range = self.ranges.at(current.index);
        while current.at < current.block.len()
            && self.assembler.len() < max_rows
            && !self.assembler.is_full()
            && !range.done()
        {
            let rest = &current.block[current.at..];
            let end = lines::find_newline(rest);
            current.at += (end + 1).min(rest.len());
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            let offset = range.next.0;
            range.next.0 += 1;
            if line.iter().all(u8::is_ascii_whitespace) && !(self.blank_is_row) {
                continue;
            }
            self.assembler.push(&Record {
                split: current.index,
                offset,
                place: &range.split.0,
                partition: 0,
                timestamp_ms: Some(current.modified_ms),
                key: None,
                value: Some(line),
                headers: &[],
            });
        }
        if range.done() {
            self.current = None;
            self.queue.pop_front();
        }
        self.assembler.len() < max_rows && !self.assembler.is_full()
    }

    /// The next block of the current file; false if it is not there yet.
    fn next_block(&mut self) -> Result<bool> {
        let Some(current) = &mut self.current else {
            return Ok(true);
        };
        let index = current.index;
        match current.stream.next() {
            None => return Ok(false),
            Some(Ok(Block::Opened { modified_ms })) => current.modified_ms = modified_ms,
            Some(Ok(Block::Lines(lines))) => {
                current.block = lines;
                current.at = 0;
            }
            Some(Ok(Block::TooLong { bytes })) => {
                let range = self.ranges.at(index);
                let record = Record {
                    split: index,
                    offset: range.next.0,
                    place: &range.split.0,
                    partition: 0,
                    timestamp_ms: None,
                    key: None,
                    value: None,
                    headers: &[],
                };
                let text = format!("the line has {bytes} bytes, more than {}", self.max_line);
                self.assembler.reject(&record, code::BODY_SIZE, text);
                range.next.0 += 1;
            }
            Some(Ok(Block::End)) => {
                self.ranges.at(index).next = Position::END;
                self.current = None;
                self.queue.pop_front();
            }
            Some(Err(error)) => {
                // Opened again from its position by the next poll.
                self.current = None;
                return Err(self.failed(index, error));
            }
        }
        Ok(true)
    }
}

impl SourceReader for Reader {
    fn assign(&mut self, ranges: Vec<SplitRange>) -> Result<()> {
        let before = self.ranges.iter().count();
        let splits: Vec<SplitId> = ranges.iter().map(|r| r.split.clone()).collect();
        self.ranges.assign(ranges)?;
        for split in splits {
            // New ones, and those whose end moved after they were done.
            let queued = |queue: &VecDeque<u16>, index| queue.contains(&index);
            if let Some(range) = self.ranges.get_mut(&split) {
                let new = usize::from(range.index) >= before;
                if new || (!range.done() && !queued(&self.queue, range.index)) {
                    self.queue.push_back(range.index);
                }
            }
        }
        Ok(())
    }

    fn poll(&mut self, max_rows: usize) -> Result<Polled> {
        while self.open() {
            if !self.take_lines(max_rows) {
                break;
            }
            if self.current.as_ref().is_some_and(|c| c.at < c.block.len()) {
                continue;
            }
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => break,
                // Rows that were read before the failure go out first; it comes up again.
                Err(_) if !self.assembler.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        if !self.assembler.is_empty() {
            let batch = self.assembler.finish(self.ranges.ids())?;
            return Ok(Polled::Rows(Box::new(batch)));
        }
        Ok(self.ranges.idle())
    }

    fn positions(&self) -> BTreeMap<SplitId, Position> {
        self.ranges.positions()
    }

    fn caught_up(&self) -> Vec<SplitId> {
        self.finished()
    }

    fn finished(&self) -> Vec<SplitId> {
        // A file that ended before its range's end has ended.
        let done = self.ranges.iter().filter(|r| r.done() || r.next == Position::END);
        done.map(|r| r.split.clone()).collect()
    }

    fn set_waker(&mut self, waker: Arc<Notify>) {
        // Streams that are open keep the old one; there are none before the first poll.
        self.waker = waker;
    }
}

struct Enumerator {
    config: Arc<FilesConfig>,
    pattern: regex::Regex,
}

impl Enumerator {
    fn failed(&self, e: object_store::Error) -> EngineError {
        let object = format!("source {}", self.config.name);
        let message = format!("{} cannot be listed", self.config.folder.url);
        EngineError::retry("PR0208", object, message).caused_by(e)
    }
}

#[async_trait]
impl SourceEnumerator for Enumerator {
    async fn discover(
        &mut self,
        known: &BTreeMap<SplitId, Position>,
        _first: bool,
    ) -> Result<Vec<Discovered>> {
        let folder = &self.config.folder;
        if let Some(local) = &folder.local
            && !local.is_dir()
        {
            let object = format!("source {}", self.config.name);
            let message = format!("{} is not a folder", folder.url);
            return Err(EngineError::fail("PR0208", object, message));
        }
        let mut found = Vec::new();
        let mut list = folder.store.list(Some(&folder.prefix));
        while let Some(object) = list.try_next().await.map_err(|e| self.failed(e))? {
            let Some(name) = folder.name(&object.location) else {
                continue;
            };
            let split = SplitId(name.as_str().into());
            if !is_hidden(&name) && self.pattern.is_match(&name) && !known.contains_key(&split) {
                found.push(Discovered {
                    split,
                    start: Position(0),
                });
            }
        }
        found.sort_by(|a, b| a.split.cmp(&b.split));
        Ok(found)
    }

    async fn ends(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        Ok(splits.iter().map(|id| (id.clone(), Position::END)).collect())
    }

    async fn starts(&mut self, splits: &[SplitId]) -> Result<BTreeMap<SplitId, Position>> {
        let mut starts = BTreeMap::new();
        for split in splits {
            match self.config.folder.store.head(&self.config.folder.object(&split.0)).await {
                Ok(_) => {
                    starts.insert(split.clone(), Position(0));
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(starts)
    }

    fn bounded(&self) -> bool {
        false
    }

    async fn show_positions(&mut self, _positions: &BTreeMap<SplitId, Position>) {}
}

#[cfg(test)]
mod tests;
