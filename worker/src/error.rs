//! The engine's error: what it is about, what may be done about it, and a stable code. Owns nothing else; codes and their
//! explanations are registered in `penstock-crds`.

/// What the caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// Passing: the same call may succeed later.
    Retry,
    /// Somebody does not accept who we say we are, or is not who it should be. Trying again with the same Secrets is in vain:
    /// the generation ends, and the next one reads them anew.
    Refused,
    /// Nothing here mends it; the job stops.
    Fail,
    /// Somebody newer owns the job; this generation is over.
    Fenced,
    /// What a person wrote, or what a row holds, is wrong.
    Invalid,
}

/// An error of the engine. `Display` is `object: message`; the source is kept apart.
#[derive(Debug, thiserror::Error)]
#[error("{object}: {message}")]
pub struct EngineError {
    pub kind: ErrorKind,
    /// `PR0201` and its like.
    pub code: &'static str,
    /// What it is about: `source payments`, `sink alerts shard 3`, `operator alerts/window-0`.
    pub object: String,
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = EngineError> = std::result::Result<T, E>;

impl EngineError {
    pub fn new(
        kind: ErrorKind,
        code: &'static str,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            code,
            object: object.into(),
            message: message.into(),
            source: None,
        }
    }

    pub fn fail(code: &'static str, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fail, code, object, message)
    }

    pub fn invalid(
        code: &'static str,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Invalid, code, object, message)
    }

    pub fn retry(
        code: &'static str,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Retry, code, object, message)
    }

    /// The same without its cause, which the message tells: what may be told again, and elsewhere.
    #[must_use]
    pub fn in_words(&self) -> Self {
        let cause = self.source.as_ref().map(|s| format!(": {s}"));
        let message = format!("{}{}", self.message, cause.unwrap_or_default());
        Self::new(self.kind, self.code, self.object.clone(), message)
    }

    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}
