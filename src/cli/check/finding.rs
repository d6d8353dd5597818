//! What `check` found.

use std::error::Error;

use serde::{Deserialize, Serialize};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finding {
    /// The part of the configuration: `bundle`, `token NAME`, `log`, ...
    pub(super) part: String,
    pub(super) level: Level,
    pub(super) text: String,
    /// What to do.
    pub(super) remedy: Option<String>,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// `serve` would not start, or issue nothing.
    Error,
    /// As it should be.
    Ok,
    /// `serve` works, but something is worth a look.
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

/// The findings about one part.
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

    /// An error of another module, in whose words what is to be done follows a semicolon; `otherwise` where it does
    /// not say.
    pub(super) fn failed(&mut self, error: &dyn Error, otherwise: &str) {
        let (text, remedy) = told(error);
        self.error(text, remedy.unwrap_or_else(|| otherwise.to_owned()));
    }

    /// The same for what is no obstacle.
    pub(super) fn doubt(&mut self, error: &dyn Error, otherwise: &str) {
        let (text, remedy) = told(error);
        self.warning(text, remedy.unwrap_or_else(|| otherwise.to_owned()));
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

/// What is wrong, with its causes, and what to do.
fn told(error: &dyn Error) -> (String, Option<String>) {
    let whole = error.to_string();
    let (text, remedy) = match whole.split_once("; ") {
        Some((text, remedy)) => (text.to_owned(), Some(remedy.to_owned())),
        None => (whole, None),
    };
    let mut text = text;
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    (text, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file is bad; mend it")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_remedy_stands_behind_the_semicolon() {
        let error = Outer(std::io::Error::other("disk gone"));
        assert_eq!(told(&error), ("the file is bad: disk gone".to_owned(), Some("mend it".to_owned())));
        assert_eq!(told(&std::io::Error::other("x")), ("x".to_owned(), None));
    }
}
