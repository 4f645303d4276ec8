//! From the text of a test file to cases that are bound to their job: every name, column and value is checked here, all faults
//! at once, each at its line and column.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use penstock_crds::diagnostic::{Code, Diagnostic, Position, nearest};
use penstock_crds::format::FormatKind;
use penstock_crds::job::StreamingJob;
use penstock_crds::manifest::tree::{Key, Node, Value, as_bool, as_integer, is_null};
use penstock_crds::manifest::{self, ResourceKind};
use penstock_crds::source::Source as SourceSpec;
use penstock_crds::units::Timestamp;
use penstock_plan::Plan;

use super::compare::{Expected, Letter};
use super::rows::{Typed, json, member};
use super::{Case, DEFAULT_CLOCK, Run, TestFile, Unusable};
use crate::clock::Millis;
use crate::job::plan_of;
use crate::sources::memory::MemoryRecord;

const FILE: &[&str] = &["job", "cases"];
const CASE: &[&str] = &[
    "name",
    "slots",
    "crashAfterRow",
    "clock",
    "input",
    "expect",
    "drain",
    "runs",
];
const RUN: &[&str] = &["clock", "input", "drain", "expect"];
const LETTER: &[&str] = &["$source", "$offset", "$code", "$error", "$key", "$raw"];
/// Most slots of a case: a slot is a thread in earnest.
const MOST_SLOTS: usize = 64;

type Entries = [(Key, Node)];

/// See [`super::load`].
pub fn load(path: &Path) -> Result<TestFile, Unusable> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|e| Unusable::Unread(path.to_owned(), e))
    };
    let text = read(path)?;
    let file = path.display().to_string();
    let refused = |mut faults: Vec<Diagnostic>| {
        for fault in &mut faults {
            fault.file = Some(file.clone());
        }
        faults.sort_by_key(|f| f.position);
        Unusable::Refused {
            text: text.clone(),
            faults,
        }
    };
    let documents = manifest::documents(&text, &file).map_err(refused)?;
    let [document] = documents.as_slice() else {
        let text = "a test file is one document with job and cases";
        return Err(refused(vec![Diagnostic::error(Code::EMPTY, "", text)]));
    };
    let mut faults = Faults::default();
    let entries = faults.mapping(document, "").unwrap_or_default();
    faults.known(entries, FILE, "");
    let named = faults.required(entries, "job", "", document.position);
    let named = named.and_then(|node| faults.text(node, "job").map(|t| (t, node.position)));
    let Some((name, position)) = named else {
        return Err(refused(faults.0));
    };
    let manifest = path.parent().unwrap_or(Path::new("")).join(name);
    let manifest_text = std::fs::read_to_string(&manifest).map_err(|e| {
        let text = format!("{} cannot be read: {e}", manifest.display());
        refused(vec![
            Diagnostic::error(Code::TEST_JOB, "job", text).at(position),
        ])
    })?;
    let (job, plan) = match planned(&manifest_text, &manifest) {
        Ok(Some(found)) => found,
        Ok(None) => {
            let text = "the file does not hold exactly one StreamingJob";
            let fault = Diagnostic::error(Code::TEST_JOB, "job", text).at(position);
            return Err(refused(vec![fault]));
        }
        Err(faults) => {
            return Err(Unusable::Refused {
                text: manifest_text,
                faults,
            });
        }
    };
    let mut binder = Binder {
        job: &job,
        plan: &plan,
        faults,
    };
    let cases = binder.cases(entries, document.position);
    let faults = binder.faults;
    if !faults.0.is_empty() {
        return Err(refused(faults.0));
    }
    Ok(TestFile {
        job: Arc::new(job),
        plan: Arc::new(plan),
        cases,
    })
}

/// The one job of a manifest, and its plan.
fn planned(text: &str, file: &Path) -> Result<Option<(StreamingJob, Plan)>, Vec<Diagnostic>> {
    let resources = manifest::load(text, &file.display().to_string())?;
    let mut jobs = resources.into_iter().filter(|r| r.job().is_some());
    let (Some(resource), None) = (jobs.next(), jobs.next()) else {
        return Ok(None);
    };
    let ResourceKind::StreamingJob(job) = resource.kind else {
        return Ok(None);
    };
    let plan = plan_of(&job, &resource.positions)?;
    Ok(Some((*job, plan)))
}

/// What is wrong so far.
#[derive(Default)]
struct Faults(Vec<Diagnostic>);

impl Faults {
    fn add(&mut self, code: Code, path: &str, message: impl Into<String>, at: Position) {
        self.0.push(Diagnostic::error(code, path, message).at(at));
    }

    fn helped(&mut self, fault: Diagnostic, help: Option<String>, at: Position) {
        let fault = match help {
            Some(help) => fault.with_help(help),
            None => fault,
        };
        self.0.push(fault.at(at));
    }

    fn mapping<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n Entries> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            Value::Scalar { .. } | Value::Sequence(_) => {
                self.add(Code::TYPE, path, "must be a mapping", node.position);
                None
            }
        }
    }

    /// Items of a list; null is an empty one.
    fn list<'n>(&mut self, node: &'n Node, path: &str) -> &'n [Node] {
        match &node.value {
            Value::Sequence(items) => items,
            Value::Scalar { text, plain: true } if is_null(text) => &[],
            Value::Scalar { .. } | Value::Mapping(_) => {
                self.add(Code::TYPE, path, "must be a list", node.position);
                &[]
            }
        }
    }

    fn text<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, plain } if !(*plain && is_null(text)) => Some(text),
            Value::Scalar { .. } | Value::Mapping(_) | Value::Sequence(_) => {
                self.add(Code::TYPE, path, "must be a text", node.position);
                None
            }
        }
    }

    fn number(&mut self, node: &Node, path: &str) -> Option<u64> {
        let number = match &node.value {
            Value::Scalar { text, plain: true } => as_integer(text),
            Value::Scalar { .. } | Value::Mapping(_) | Value::Sequence(_) => None,
        };
        let number = number.and_then(|n| u64::try_from(n).ok());
        if number.is_none() {
            let text = "must be a whole number that is not negative";
            self.add(Code::TYPE, path, text, node.position);
        }
        number
    }

    fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        let value = match &node.value {
            Value::Scalar { text, plain: true } => as_bool(text),
            Value::Scalar { .. } | Value::Mapping(_) | Value::Sequence(_) => None,
        };
        if value.is_none() {
            self.add(Code::TYPE, path, "must be true or false", node.position);
        }
        value
    }

    /// Reports fields that are none.
    fn known(&mut self, entries: &Entries, fields: &[&str], path: &str) {
        for (key, _) in entries {
            if fields.contains(&key.name.as_str()) {
                continue;
            }
            let fault =
                Diagnostic::error(Code::UNKNOWN_FIELD, below(path, &key.name), "unknown field");
            let near = nearest(&key.name, fields.iter().copied());
            let help = near.map(|n| format!("did you mean \"{n}\"?"));
            let help = help.or_else(|| Some(format!("the fields are {}", fields.join(", "))));
            self.helped(fault, help, key.position);
        }
    }

    fn required<'n>(
        &mut self,
        entries: &'n Entries,
        field: &str,
        path: &str,
        at: Position,
    ) -> Option<&'n Node> {
        let found = get(entries, field);
        if found.is_none() {
            self.add(
                Code::MISSING,
                path,
                format!("missing field \"{field}\""),
                at,
            );
        }
        found
    }
}

fn get<'n>(entries: &'n Entries, field: &str) -> Option<&'n Node> {
    let found = entries.iter().find(|(key, _)| key.name == field);
    found.map(|(_, node)| node)
}

fn key<'n>(entries: &'n Entries, field: &str) -> Option<&'n Key> {
    let found = entries.iter().find(|(key, _)| key.name == field);
    found.map(|(key, _)| key)
}

fn below(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

/// Reads cases with the job at hand.
struct Binder<'a> {
    job: &'a StreamingJob,
    plan: &'a Plan,
    faults: Faults,
}

impl Binder<'_> {
    fn cases(&mut self, entries: &Entries, at: Position) -> Vec<Case> {
        let Some(list) = self.faults.required(entries, "cases", "", at) else {
            return Vec::new();
        };
        let items = self.faults.list(list, "cases");
        if items.is_empty() {
            self.faults.add(
                Code::LENGTH,
                "cases",
                "needs at least one case",
                list.position,
            );
        }
        let mut names = BTreeSet::new();
        let mut cases = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let path = format!("cases[{i}]");
            let Some(case) = self.case(item, &path) else {
                continue;
            };
            if !names.insert(case.name.clone()) {
                let text = format!("another case is called \"{}\" too", case.name);
                self.faults
                    .add(Code::TEST_CASE, &below(&path, "name"), text, item.position);
            }
            cases.push(case);
        }
        cases
    }

    fn case(&mut self, node: &Node, path: &str) -> Option<Case> {
        let entries = self.faults.mapping(node, path)?;
        self.faults.known(entries, CASE, path);
        let name = self
            .faults
            .required(entries, "name", path, node.position)
            .and_then(|n| self.faults.text(n, &below(path, "name")))
            .unwrap_or_default()
            .to_owned();
        let slots = self.slots(entries, path);
        let runs = match get(entries, "runs") {
            Some(runs) => {
                let clock = self.clock(entries, path).unwrap_or(DEFAULT_CLOCK);
                for field in ["input", "expect", "drain"] {
                    if let Some(key) = key(entries, field) {
                        let text =
                            format!("a case has either runs, or {field}: move it into a run");
                        self.faults
                            .add(Code::TEST_CASE, &below(path, field), text, key.position);
                    }
                }
                self.runs(runs, &below(path, "runs"), clock)
            }
            None => {
                if get(entries, "expect").is_none() {
                    let text = "a case needs expect, or runs";
                    self.faults.add(Code::TEST_CASE, path, text, node.position);
                }
                vec![self.run(entries, path, DEFAULT_CLOCK, true)]
            }
        };
        let crash_after_row = self.crash(entries, path, &runs);
        Some(Case {
            name,
            slots,
            crash_after_row,
            runs,
        })
    }

    fn clock(&mut self, entries: &Entries, path: &str) -> Option<Millis> {
        let path = below(path, "clock");
        let node = get(entries, "clock")?;
        let text = self.faults.text(node, &path)?;
        match text.parse::<Timestamp>() {
            Ok(at) => Some(Millis::new(at.epoch_millis())),
            Err(error) => {
                self.faults
                    .add(Code::INSTANT, &path, error.to_string(), node.position);
                None
            }
        }
    }

    fn slots(&mut self, entries: &Entries, path: &str) -> Vec<usize> {
        let path = below(path, "slots");
        let Some(node) = get(entries, "slots") else {
            let own = usize::try_from(self.job.spec.workers.slots).unwrap_or(1);
            return vec![own.max(1)];
        };
        let most = MOST_SLOTS.min(usize::try_from(self.job.spec.key_groups).unwrap_or(usize::MAX));
        let mut slots = Vec::new();
        let items = self.faults.list(node, &path);
        if items.is_empty() {
            let text = "needs at least one number of slots";
            self.faults.add(Code::LENGTH, &path, text, node.position);
        }
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(number) = self.faults.number(item, &path) else {
                continue;
            };
            match usize::try_from(number)
                .ok()
                .filter(|n| (1..=most).contains(n))
            {
                Some(number) => slots.push(number),
                None => {
                    let text =
                        format!("must lie between 1 and {most}, the job's key groups at most");
                    self.faults.add(Code::RANGE, &path, text, item.position);
                }
            }
        }
        slots
    }

    fn crash(&mut self, entries: &Entries, path: &str, runs: &[Run]) -> Option<u64> {
        let path = below(path, "crashAfterRow");
        let node = get(entries, "crashAfterRow")?;
        let row = self.faults.number(node, &path)?;
        let rows = runs.iter().flat_map(|r| &r.input);
        let rows: usize = rows.map(|(_, rows)| rows.len()).sum();
        if row == 0 || row > rows as u64 {
            let text = format!("must be at least 1 and at most {rows}, the rows of input");
            self.faults.add(Code::TEST_CASE, &path, text, node.position);
        }
        Some(row)
    }

    fn runs(&mut self, node: &Node, path: &str, clock: Millis) -> Vec<Run> {
        let items = self.faults.list(node, path);
        if items.is_empty() {
            let text = "needs at least one run";
            self.faults.add(Code::LENGTH, path, text, node.position);
        }
        let mut clock = clock;
        let mut runs = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(entries) = self.faults.mapping(item, &path) else {
                continue;
            };
            self.faults.known(entries, RUN, &path);
            let run = self.run(entries, &path, clock, false);
            clock = run.clock;
            if let (true, true, Some(key)) = (run.drain, i + 1 < items.len(), key(entries, "drain"))
            {
                let text = "after drain the job is final: only the last run may have it";
                self.faults
                    .add(Code::TEST_CASE, &below(&path, "drain"), text, key.position);
            }
            runs.push(run);
        }
        runs
    }

    fn run(&mut self, entries: &Entries, path: &str, clock: Millis, drain: bool) -> Run {
        let mut run = Run {
            clock: self.clock(entries, path).unwrap_or(clock),
            input: Vec::new(),
            drain,
            expect: Vec::new(),
        };
        if let Some(node) = get(entries, "drain") {
            run.drain = self
                .faults
                .boolean(node, &below(path, "drain"))
                .unwrap_or(drain);
        }
        for (field, of) in [("input", true), ("expect", false)] {
            let path = below(path, field);
            let Some(node) = get(entries, field) else {
                continue;
            };
            if matches!(&node.value, Value::Scalar { text, plain: true } if is_null(text)) {
                continue;
            }
            for (name, list) in self.faults.mapping(node, &path).unwrap_or_default() {
                let path = below(&path, &name.name);
                let items = self.faults.list(list, &path);
                if of {
                    if let Some(rows) = self.input(name, items, &path) {
                        run.input.push((name.name.clone(), rows));
                    }
                } else if let Some(expected) = self.expected(name, items, &path) {
                    run.expect.push((name.name.clone(), expected));
                }
            }
        }
        run
    }

    // ---- input -------------------------------------------------------------------------------------------------------

    fn input(&mut self, name: &Key, items: &[Node], path: &str) -> Option<Vec<MemoryRecord>> {
        let sources = &self.job.spec.sources;
        let Some(source) = sources.iter().find(|s| s.name == name.name) else {
            let known: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
            self.no_such("source", name, path, &known);
            return None;
        };
        if !self.plan.sources.contains_key(&name.name) {
            let text = format!("the SQL does not read the source \"{}\"", name.name);
            self.faults.add(Code::TEST_NAME, path, text, name.position);
            return None;
        }
        let rows = items.iter().enumerate();
        let rows =
            rows.filter_map(|(i, item)| self.input_row(source, item, &format!("{path}[{i}]")));
        Some(rows.collect())
    }

    fn no_such(&mut self, what: &str, name: &Key, path: &str, known: &[&str]) {
        let text = format!("the manifest has no {what} \"{}\"", name.name);
        let near = nearest(&name.name, known.iter().copied());
        let help = match near {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it has {}", known.join(", ")),
        };
        let fault = Diagnostic::error(Code::TEST_NAME, path, text);
        self.faults.helped(fault, Some(help), name.position);
    }

    fn input_row(&mut self, source: &SourceSpec, item: &Node, path: &str) -> Option<MemoryRecord> {
        let entries = self.faults.mapping(item, path)?;
        let raw = get(entries, "$raw");
        let mut record = MemoryRecord::default();
        let mut body: Vec<&(Key, Node)> = Vec::new();
        for entry in entries {
            let (key, value) = entry;
            match key.name.as_str() {
                "$raw" => record.value = self.bytes(value, &below(path, "$raw")),
                "$key" => record.key = self.bytes(value, &below(path, "$key")),
                _ if raw.is_some() => {
                    let text = "$raw is the whole body: no column stands beside it";
                    self.faults.add(
                        Code::TEST_COLUMN,
                        &below(path, &key.name),
                        text,
                        key.position,
                    );
                }
                _ => {
                    self.input_column(source, key, path);
                    body.push(entry);
                }
            }
        }
        if raw.is_none() {
            record.value = Some(self.body(source, &body));
        }
        Some(record)
    }

    fn input_column(&mut self, source: &SourceSpec, key: &Key, path: &str) {
        let path = below(path, &key.name);
        let Some(column) = source.columns.iter().find(|c| c.name == key.name) else {
            let known = source.columns.iter();
            let known = known.filter(|c| c.computed.is_none() && c.from.is_none());
            let names = known.map(|c| c.name.as_str()).chain(["$raw", "$key"]);
            let near = nearest(&key.name, names).map(|n| format!("did you mean \"{n}\"?"));
            let text = format!("source {} has no column \"{}\"", source.name, key.name);
            let fault = Diagnostic::error(Code::TEST_COLUMN, path, text);
            self.faults.helped(fault, near, key.position);
            return;
        };
        let why = match (&column.computed, &column.from) {
            (Some(_), _) => "is computed: leave it out",
            (None, Some(_)) => "comes from the transport: leave it out",
            (None, None) => return,
        };
        let text = format!("column \"{}\" {why}", key.name);
        self.faults
            .add(Code::TEST_COLUMN, &path, text, key.position);
    }

    /// The body of a record: an object, or, for a source of format raw, the one value's text.
    fn body(&self, source: &SourceSpec, entries: &[&(Key, Node)]) -> Bytes {
        let raw = source.format.as_ref().and_then(|f| f.kind());
        if let (Some(FormatKind::Raw(_)), [(_, node)]) = (raw, entries) {
            return match &node.value {
                Value::Scalar { text, .. } => Bytes::from(text.clone()),
                Value::Sequence(_) | Value::Mapping(_) => {
                    let mut text = String::new();
                    json(node, &mut text);
                    text.into()
                }
            };
        }
        let mut text = String::from("{");
        for (i, (key, node)) in entries.iter().enumerate() {
            member(i == 0, &key.name, node, &mut text);
        }
        text.push('}');
        text.into()
    }

    /// A text's bytes; null is none.
    fn bytes(&mut self, node: &Node, path: &str) -> Option<Bytes> {
        match &node.value {
            Value::Scalar { text, plain: true } if is_null(text) => None,
            Value::Scalar { text, .. } => Some(Bytes::from(text.clone())),
            Value::Sequence(_) | Value::Mapping(_) => {
                let text = "must be a text: write it in quotes";
                self.faults.add(Code::TYPE, path, text, node.position);
                None
            }
        }
    }

    // ---- expected ----------------------------------------------------------------------------------------------------

    fn expected(&mut self, name: &Key, items: &[Node], path: &str) -> Option<Expected> {
        let sinks = &self.job.spec.sinks;
        if !sinks.iter().any(|s| s.name == name.name) {
            let known: Vec<&str> = sinks.iter().map(|s| s.name.as_str()).collect();
            self.no_such("sink", name, path, &known);
            return None;
        }
        let sources = &self.job.spec.sources;
        let letters = sources
            .iter()
            .any(|s| s.dead_letters.as_ref() == Some(&name.name));
        let mut typed = match self.plan.sinks.get(&name.name) {
            None => None,
            Some(plan) => match Typed::new(&plan.schema) {
                Ok(typed) => Some(typed),
                Err(error) => {
                    self.faults
                        .add(Code::TEST_VALUE, path, error.to_string(), name.position);
                    return None;
                }
            },
        };
        let mut expected = Expected::default();
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(entries) = self.faults.mapping(item, &path) else {
                continue;
            };
            let described = entries.iter().any(|(k, _)| k.name.starts_with('$'));
            if described && letters || typed.is_none() {
                expected.letters.extend(self.letter(entries, &path));
            } else if let Some(typed) = &mut typed {
                expected
                    .rows
                    .extend(self.row(typed, &name.name, item, entries, &path));
            }
        }
        Some(expected)
    }

    fn letter(&mut self, entries: &Entries, path: &str) -> Option<Letter> {
        for (key, _) in entries {
            if LETTER.contains(&key.name.as_str()) {
                continue;
            }
            let text = format!("a dead letter has no column \"{}\"", key.name);
            let near = nearest(&key.name, LETTER.iter().copied())
                .map_or_else(|| LETTER.join(", "), str::to_owned);
            let fault = Diagnostic::error(Code::TEST_COLUMN, below(path, &key.name), text);
            self.faults
                .helped(fault, Some(format!("did you mean {near}?")), key.position);
        }
        let mut text = |field: &str| {
            let node = get(entries, field)?;
            self.faults
                .text(node, &below(path, field))
                .map(str::to_owned)
        };
        let mut letter = Letter {
            source: text("$source"),
            offset: text("$offset"),
            code: text("$code"),
            error: text("$error"),
            key: None,
            raw: None,
        };
        let mut bytes = |field: &str| {
            let node = get(entries, field)?;
            Some(self.bytes(node, &below(path, field)).map(|b| b.to_vec()))
        };
        letter.key = bytes("$key");
        letter.raw = bytes("$raw");
        Some(letter)
    }

    fn row(
        &mut self,
        typed: &mut Typed,
        sink: &str,
        item: &Node,
        entries: &Entries,
        path: &str,
    ) -> Option<String> {
        let before = self.faults.0.len();
        for (key, _) in entries.iter().filter(|(k, _)| !typed.has(&k.name)) {
            let text = format!("sink {sink} has no column \"{}\"", key.name);
            let help = nearest(&key.name, typed.columns()).map_or_else(
                || format!("it has {}", typed.columns().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean \"{near}\"?"),
            );
            let fault = Diagnostic::error(Code::TEST_COLUMN, below(path, &key.name), text);
            self.faults.helped(fault, Some(help), key.position);
        }
        if self.faults.0.len() > before {
            return None;
        }
        let mut object = String::new();
        json(item, &mut object);
        let read = typed
            .read([object.as_bytes()])
            .and_then(|(rows, wrong)| Ok((Typed::texts(&rows)?, wrong)));
        let why = match read {
            Ok((texts, wrong)) => match wrong.first() {
                None => return texts.into_iter().next(),
                Some(wrong) => wrong.text.clone(),
            },
            Err(error) => error.to_string(),
        };
        let cell = entries
            .iter()
            .find(|(k, _)| why.starts_with(&format!("{}:", k.name)));
        let at = cell.map_or(item.position, |(_, node)| node.position);
        self.faults.add(Code::TEST_VALUE, path, why, at);
        None
    }
}
