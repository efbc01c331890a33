//! Every exit code and what it tells systemd, which prints these by name (`status=75/TEMPFAIL`), after sysexits.h.

use std::process::ExitCode;

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Done, or nothing to do.
    Ok = 0,
    /// Tried and failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The cluster gives no answer.
    Unavailable = 69,
    /// The operating system refused something.
    OsErr = 71,
    /// Another program holds the lock.
    TempFail = 75,
    /// Needs root.
    NoPerm = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Code {
    /// Of the outcomes of several clusters the one that matters most: a failure is not hidden by another cluster's lock.
    pub fn worst(codes: impl Iterator<Item = Code>) -> Code {
        let weight = |code: &Code| match code {
            Code::Ok => 0,
            Code::TempFail => 1,
            Code::Unavailable => 2,
            _ => 3,
        };
        codes.max_by_key(weight).unwrap_or(Code::Ok)
    }
}

/// Prints the error of a run, in the one place where errors are printed, and turns it into an exit code.
pub fn with(outcome: Result<Code>) -> ExitCode {
    let code = match outcome {
        Ok(code) => code,
        Err(error) => report(&error),
    };
    ExitCode::from(code as u8)
}

/// Prints one error with its HINT.
pub fn report(error: &Error) -> Code {
    log::error!("{}", error.message);
    if let Some(hint) = &error.hint {
        log::error!("HINT: {hint}");
    }
    error.code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_outweighs_a_lock_that_somebody_else_holds() {
        assert_eq!(Code::worst([Code::Failed, Code::TempFail, Code::Ok].into_iter()), Code::Failed);
        assert_eq!(Code::worst([Code::Ok, Code::TempFail].into_iter()), Code::TempFail);
        assert_eq!(Code::worst(std::iter::empty()), Code::Ok);
    }
}
