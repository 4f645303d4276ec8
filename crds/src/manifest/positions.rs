//! Where the members of a document stand, by path, and where lines of its SQL text do.

use std::collections::BTreeMap;

use super::tree::{Node, Value};
use super::{member, relative};
use crate::diagnostic::{Diagnostic, Position};

/// Where each member of a document stands in its file.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    file: String,
    values: BTreeMap<String, Position>,
    sql: Option<Sql>,
}

/// Where the SQL text stands.
#[derive(Debug, Clone, Copy)]
enum Sql {
    /// A literal block: its lines are the file's, indented.
    Block { first_line: usize, indent: usize },
    /// On one line; the column of its first character.
    Line(Position),
    /// Folded or escaped: only its beginning is known.
    Somewhere(Position),
}

impl Positions {
    pub(super) fn new(document: &Node, text: &str, file: &str) -> Self {
        let mut positions = Self {
            file: file.to_owned(),
            values: BTreeMap::new(),
            sql: None,
        };
        positions.walk(document, "", text);
        positions
    }

    fn walk(&mut self, node: &Node, path: &str, text: &str) {
        self.values.insert(relative(path).to_owned(), node.position);
        match &node.value {
            Value::Scalar { .. } => {}
            Value::Sequence(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.walk(item, &format!("{path}[{i}]"), text);
                }
            }
            Value::Mapping(entries) => {
                for (key, value) in entries {
                    let at = member(path, &key.name);
                    self.walk(value, &at, text);
                    if let (Value::Scalar { text: sql, .. }, "spec.sql") =
                        (&value.value, at.as_str())
                    {
                        self.sql = Some(locate_sql(key.position, value.position, sql, text));
                    }
                    // A block collection begins below its key, where nobody looks for it.
                    if !matches!(value.value, Value::Scalar { .. })
                        && value.position.line > key.position.line
                    {
                        self.values.insert(relative(&at).to_owned(), key.position);
                    }
                }
            }
        }
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where a member stands, or the nearest one above it that does: `sinks[0].kafka.topic`, with or without `spec.`.
    pub fn of(&self, path: &str) -> Option<Position> {
        let mut path = relative(path);
        loop {
            if let Some(position) = self.values.get(path) {
                return Some(*position);
            }
            let cut = path.rfind(['.', '['])?;
            path = &path[..cut];
        }
    }

    /// Where a line and column of the SQL text, both from 1, stand in the file.
    pub fn of_sql(&self, line: usize, column: usize) -> Option<Position> {
        Some(match self.sql? {
            Sql::Block { first_line, indent } => Position {
                line: first_line + line.max(1) - 1,
                column: indent + column.max(1),
            },
            Sql::Line(start) if line <= 1 => Position {
                line: start.line,
                column: start.column + column.max(1) - 1,
            },
            Sql::Line(start) | Sql::Somewhere(start) => start,
        })
    }

    /// Gives a fault its file and place, and its path the form that people see.
    pub fn place(&self, fault: &mut Diagnostic) {
        fault.path = relative(&fault.path).to_owned();
        fault.file = Some(self.file.clone());
        if fault.position.is_none() {
            fault.position = match fault.sql_position {
                Some(Position { line, column }) => self.of_sql(line, column),
                None => self.of(&fault.path),
            };
        }
    }
}

/// Where the SQL text stands, by its key's place and its own.
fn locate_sql(key: Position, position: Position, value: &str, text: &str) -> Sql {
    let lines = text.lines().collect::<Vec<_>>();
    let line = |number: usize| {
        lines
            .get(number.wrapping_sub(1))
            .copied()
            .unwrap_or_default()
    };
    let after_key = line(key.line)
        .split_once(':')
        .map_or("", |(_, rest)| rest.trim_start());
    if after_key.starts_with('|') {
        // Readers differ in where they say that a block begins; its lines follow its indicator.
        let first_line = key.line + 1;
        let content = value
            .lines()
            .enumerate()
            .find(|(_, line)| !line.trim().is_empty());
        let indent = content.map_or(0, |(i, content)| {
            line(first_line + i)
                .chars()
                .count()
                .saturating_sub(content.chars().count())
        });
        return Sql::Block { first_line, indent };
    }
    if !line(position.line).contains(value) {
        return Sql::Somewhere(position);
    }
    let quoted = line(position.line)
        .chars()
        .nth(position.column - 1)
        .is_some_and(|c| matches!(c, '"' | '\''));
    Sql::Line(Position {
        line: position.line,
        column: position.column + usize::from(quoted),
    })
}
