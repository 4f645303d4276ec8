//! Why a record did not decode: its code and its text, made only when there is a fault.

use super::super::code;

/// Longest excerpt of a record in a text.
const EXCERPT: usize = 40;

/// A fault of one record.
#[derive(Debug)]
pub(super) struct Fault {
    pub code: &'static str,
    what: String,
    /// Names from the faulty value outwards.
    path: Vec<String>,
}

impl Fault {
    fn boxed(code: &'static str, what: String) -> Box<Self> {
        Box::new(Self {
            code,
            what,
            path: Vec::new(),
        })
    }

    pub fn syntax(bytes: &[u8], at: usize, expected: &str) -> Box<Self> {
        let found = match bytes.get(at) {
            None => "the record ends".to_owned(),
            Some(_) => format!("found {}", excerpt(&bytes[at..])),
        };
        Self::boxed(
            code::BODY,
            format!("expected {expected} at byte {at}, {found}"),
        )
    }

    pub fn not_object(bytes: &[u8]) -> Box<Self> {
        let what = if bytes.is_empty() {
            "the record has no body".to_owned()
        } else {
            format!("expected an object, found {}", excerpt(bytes))
        };
        Self::boxed(code::BODY, what)
    }

    pub fn utf8(at: usize) -> Box<Self> {
        Self::boxed(code::BODY, format!("invalid UTF-8 at byte {at}"))
    }

    pub fn surrogate() -> Box<Self> {
        Self::boxed(
            code::BODY,
            "half of a surrogate pair in a string".to_owned(),
        )
    }

    pub fn depth(at: usize) -> Box<Self> {
        Self::boxed(code::BODY, format!("nested too deep at byte {at}"))
    }

    pub fn wrong_type(data_type: &str, found: &[u8]) -> Box<Self> {
        Self::boxed(
            code::FIELD,
            format!("expected {data_type}, found {}", excerpt(found)),
        )
    }

    pub fn null() -> Box<Self> {
        Self::boxed(code::NULL, "null in a column that may not be".to_owned())
    }

    pub fn missing() -> Box<Self> {
        Self::boxed(code::NULL, "missing, and may not be null".to_owned())
    }

    pub fn size(size: usize, bound: usize) -> Box<Self> {
        Self::boxed(
            code::BODY_SIZE,
            format!("the body has {size} bytes, more than {bound}"),
        )
    }

    /// Gives a DECIMAL its digits.
    #[must_use]
    pub fn typed(mut self: Box<Self>, precision: u8, scale: u8) -> Box<Self> {
        let full = format!("expected DECIMAL({precision},{scale})");
        self.what = self.what.replacen("expected DECIMAL", &full, 1);
        self
    }

    #[must_use]
    pub fn inside(mut self: Box<Self>, name: &str) -> Box<Self> {
        self.path.push(name.to_owned());
        self
    }

    pub fn text(&self) -> String {
        if self.path.is_empty() {
            return self.what.clone();
        }
        let names: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        format!("{}: {}", names.join("."), self.what)
    }
}

fn excerpt(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(EXCERPT)];
    let text: String = String::from_utf8_lossy(cut)
        .chars()
        .flat_map(char::escape_debug)
        .collect();
    let more = if bytes.len() > EXCERPT { "…" } else { "" };
    format!("`{text}{more}`")
}
