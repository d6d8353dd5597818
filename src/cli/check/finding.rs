//! Findings of `check`.

use serde::{Deserialize, Serialize};

use process::error::{Remedy, Report};

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finding {
    /// The part of the configuration: `bundle`, `token NAME`, `log`, ...
    pub(super) part: String,
    pub(super) level: Level,
    pub(super) text: String,
    /// The remedy.
    pub(super) remedy: Option<String>,
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// `serve` would not start, or would not issue certificates.
    Error,
    /// No problem.
    Ok,
    /// `serve` works, but the operator should look into it.
    Warning,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Ok => "ok",
            Self::Warning => "warning",
        }
    }
}

/// Findings about one part.
#[derive(Debug)]
pub(super) struct Findings {
    part: String,
    found: Vec<Finding>,
}

impl Findings {
    pub(super) fn about(part: impl Into<String>) -> Self {
        Self { part: part.into(), found: Vec::new() }
    }

    pub(super) fn ok(&mut self, text: impl Into<String>) {
        self.add(Level::Ok, text.into(), None);
    }

    pub(super) fn warning(&mut self, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Warning, text.into(), Some(remedy.into()));
    }

    pub(super) fn error(&mut self, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Error, text.into(), Some(remedy.into()));
    }

    /// Adds an error with its own remedy, that of the PKCS#11 call that it comes from, or `otherwise`.
    pub(super) fn failed<E: Remedy + 'static>(&mut self, error: &E, otherwise: &'static str) {
        let Report { problem, remedy } = error.into();
        self.error(problem, remedy.unwrap_or_else(|| ::token::advice(error).unwrap_or(otherwise).into()));
    }

    pub(super) fn extend(&mut self, others: Vec<Finding>) {
        self.found.extend(others);
    }

    pub(super) fn into_vec(self) -> Vec<Finding> {
        self.found
    }

    fn add(&mut self, level: Level, text: String, remedy: Option<String>) {
        self.found.push(Finding { part: self.part.clone(), level, text, remedy });
    }
}
