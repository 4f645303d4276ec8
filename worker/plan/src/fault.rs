//! Faults of a SQL text: code, message, position. It owns how faults are collected; what a code means is `codes`'.

use datafusion_sql::sqlparser::tokenizer::{Location, Span, TokenWithSpan};

/// Line and column of the SQL text, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

impl Position {
    pub(crate) fn of(location: Location) -> Option<Self> {
        (location.line > 0).then(|| Self {
            line: u32::try_from(location.line).unwrap_or(u32::MAX),
            column: u32::try_from(location.column).unwrap_or(u32::MAX),
        })
    }

    pub(crate) fn of_span(span: Span) -> Option<Self> {
        Self::of(span.start)
    }
}

/// What is wrong with the SQL, or (as a warning) what a person should know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message} [{code}]", self.prefix())]
pub struct Fault {
    /// Stable code, `PS01xx`.
    pub code: &'static str,
    /// Lower case, without a full stop.
    pub message: String,
    /// The way out, where there is one.
    pub help: Option<String>,
    pub position: Option<Position>,
    /// Path of the field that it is about, when that is not `spec.sql`.
    pub path: Option<String>,
}

impl Fault {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
            position: None,
            path: None,
        }
    }

    pub fn at(mut self, position: Option<Position>) -> Self {
        self.position = self.position.or(position);
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    fn prefix(&self) -> String {
        let path = self.path.as_deref().unwrap_or("spec.sql");
        match self.position {
            Some(Position { line, column }) => format!("{path}: {line}:{column} "),
            None => format!("{path}: "),
        }
    }
}

pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

/// `, did you mean "x"?` if one of the candidates is close to the word.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    let lower = word.to_lowercase();
    let best = candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .min_by(|a, b| a.0.cmp(&b.0).then(a.1.cmp(b.1)));
    match best {
        Some((distance, candidate)) if distance <= (word.chars().count() / 3).max(1) => {
            format!(", did you mean \"{candidate}\"?")
        }
        _ => String::new(),
    }
}

/// Tokens of one statement: finds where a word stands, for faults whose cause has lost its position.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens(pub Vec<TokenWithSpan>);

impl Tokens {
    pub fn start(&self) -> Option<Position> {
        self.0.first().and_then(|t| Position::of_span(t.span))
    }

    /// Position of the first token that is this word, whatever its case.
    pub fn locate(&self, word: &str) -> Option<Position> {
        use datafusion_sql::sqlparser::tokenizer::Token;
        self.0
            .iter()
            .find(|t| matches!(&t.token, Token::Word(w) if w.value == word))
            .or_else(|| {
                self.0.iter().find(
                    |t| matches!(&t.token, Token::Word(w) if w.value.eq_ignore_ascii_case(word)),
                )
            })
            .and_then(|t| Position::of_span(t.span))
    }

    pub fn locate_or_start(&self, word: &str) -> Option<Position> {
        self.locate(word).or_else(|| self.start())
    }
}
