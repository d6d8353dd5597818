//! Output of commands: results on standard output, as text or JSON; errors on standard error.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use serde::Serialize;

use crate::error::chain;

/// Format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// One JSON document on standard output; errors as a JSON document on standard error.
    Json,
    /// Human-readable text.
    Text,
}

/// An operation that was refused for one or more reasons.
#[derive(Debug, thiserror::Error)]
pub struct Refused {
    /// What was refused.
    pub what: String,
    /// The reasons, one sentence each, with remedies.
    pub reasons: Vec<String>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.what)?;
        for reason in &self.reasons {
            write!(f, "\n  - {reason}")?;
        }
        Ok(())
    }
}

impl Output {
    /// Prints a result: the value as JSON, or the lines.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Json => {
                serde_json::to_writer_pretty(&mut out, value)?;
                writeln!(out)?;
            }
            Self::Text => write!(out, "{}", text(value))?,
        }
        out.flush()?;
        Ok(())
    }

    /// Prints a progress message to standard error; it is not part of the result.
    pub fn note(self, text: &str) {
        if self == Self::Text {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Prints a warning to standard error.
    pub fn warn(self, text: &str) {
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }

    /// Prints an error with its causes, and returns the exit status.
    #[must_use]
    pub fn fail(self, error: &anyhow::Error) -> ExitCode {
        self.fail_with(error, None)
    }

    /// As [`Self::fail`], with what to do about it where the error itself does not say.
    #[must_use]
    pub fn fail_with(self, error: &anyhow::Error, remedy: Option<&str>) -> ExitCode {
        let mut text = chain(error.as_ref());
        if let Some(remedy) = remedy {
            text.push_str("; ");
            text.push_str(remedy);
        }
        let mut err = std::io::stderr().lock();
        let _ = match self {
            Self::Text => writeln!(err, "error: {text}"),
            Self::Json => {
                let reasons = error.downcast_ref::<Refused>().map(|refused| refused.reasons.clone());
                writeln!(err, "{}", serde_json::json!({ "error": text, "reasons": reasons }))
            }
        };
        ExitCode::FAILURE
    }
}

/// Whether a user at a terminal can be prompted.
#[must_use]
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_cause_is_printed_once() {
        let error = anyhow::anyhow!("no such file").context("/x: no such file").context("the log cannot be read");
        assert_eq!(chain(error.as_ref()), "the log cannot be read: /x: no such file");
    }

    #[test]
    fn refused_lists_every_reason() {
        let refused = Refused { what: "not imported".into(), reasons: vec!["one".into(), "two".into()] };
        assert_eq!(refused.to_string(), "not imported\n  - one\n  - two");
    }
}
