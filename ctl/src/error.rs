//! What a user is told when a command fails: what failed, why, and what to do.

use thiserror::Error;

/// The result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A command that failed.
#[derive(Debug, Error)]
#[error("{what}")]
pub(crate) struct Failure {
    /// One sentence: what failed and why.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// The program's exit code: 1 failed, 2 wrong usage.
    pub(crate) code: u8,
}

impl Failure {
    /// Exit code 1.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code: 1 }
    }

    /// Exit code 2: the command line is wrong.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code: 2 }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Says what was being done when something failed.
pub(crate) trait Context<T> {
    /// `what` names the object: "cannot read /etc/x".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::new(format!("{}: {error}", what())))
    }
}
