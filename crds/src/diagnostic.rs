//! What is wrong with a manifest, as people and machines read it: a stable code, a path, a message, a place in the file.
//!
//! The table of codes is `codes`; who finds the faults is `manifest`, `validate`, and the planner.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::codes::{CODES, Code, Entry, explain};

/// Whether a manifest is refused for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The manifest is refused.
    Error,
    /// The manifest is accepted; a person should look.
    Warning,
}

/// A place in a text: both count from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
}

/// One fault of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The stable code.
    pub code: Code,
    /// Whether the manifest is refused for it.
    pub severity: Severity,
    /// The member that it is about, without the leading `spec.`: `sinks[0].kafka.topc`; empty for the whole document.
    pub path: String,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to write instead, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The place within the SQL text, for faults of `spec.sql`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql_position: Option<Position>,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The place in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(code: Code, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            path: path.into(),
            message: message.into(),
            help: None,
            sql_position: None,
            file: None,
            position: None,
        }
    }

    /// A warning without a place.
    pub fn warning(code: Code, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, path, message)
        }
    }

    /// An error in the SQL text at a line and column of that text, both from 1.
    pub fn sql(code: Code, line: usize, column: usize, message: impl Into<String>) -> Self {
        Self {
            sql_position: Some(Position { line, column }),
            ..Self::error(code, "spec.sql", message)
        }
    }

    /// The same with what to write instead.
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same at a place of the file.
    pub fn at(mut self, position: Position) -> Self {
        self.position = Some(position);
        self
    }

    /// Whether the manifest is refused for it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        if let Some(Position { line, column }) = self.sql_position {
            write!(f, "{line}:{column} ")?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, ", {help}")?;
        }
        write!(f, " [{}]", self.code)?;
        match (&self.file, self.position) {
            (Some(file), Some(Position { line, column })) => {
                write!(f, " at {file}:{line}:{column}")
            }
            (None, Some(Position { line, column })) => write!(f, " at {line}:{column}"),
            (Some(file), None) => write!(f, " in {file}"),
            (None, None) => Ok(()),
        }
    }
}

/// The name of `known` that was most likely meant by `given`, if any is near.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = given.to_lowercase();
    known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| *distance <= (name.len().max(given.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
