//! What failed, on which object, why, and what to do next.

use std::fmt;

use crate::exit::Code;

/// An error as a person reads it: a message worded like PostgreSQL's own (lower case, no full stop), an optional
/// HINT (a whole sentence with the next command to type), and the exit code that systemd prints by name.
#[derive(Debug)]
pub struct Error {
    pub code: Code,
    pub message: String,
    pub hint: Option<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Tried and failed; may work later.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::with(Code::Failed, message)
    }

    pub fn with(code: Code, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), hint: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::with(Code::Usage, message)
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::with(Code::Config, message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Error::with(Code::OsErr, e.to_string())
    }
}

impl From<nix::Error> for Error {
    fn from(e: nix::Error) -> Self {
        Error::with(Code::OsErr, e.desc())
    }
}

impl From<lexopt::Error> for Error {
    fn from(e: lexopt::Error) -> Self {
        Error::usage(e.to_string()).hint("Try --help.")
    }
}
