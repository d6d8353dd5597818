//! Error messages for users: an error with its causes on one line, and a remedy.

use std::{borrow::Cow, error::Error, fmt};

/// An error followed by its causes, separated by colons. A cause whose text is already part of the line is skipped:
/// some libraries repeat their source in their own message.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// An error with a remedy for the operator.
///
/// Its `Display` ends with the remedy: `#[error("the file {0} is empty{}", Advice(self))]`.
pub trait Remedy: Error {
    /// The remedy, as an instruction. `None` where it depends on what the program was doing.
    fn remedy(&self) -> Option<Cow<'static, str>>;
}

/// The remedy of an error as the end of its message, separated by a semicolon.
#[derive(Clone, Copy, Debug)]
pub struct Advice<'a, E>(pub &'a E);

impl<E: Remedy> fmt::Display for Advice<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.remedy().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

/// An error for a reader who gets problem and remedy separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The error without its remedy, followed by its causes.
    pub problem: String,
    /// The remedy for the operator.
    pub remedy: Option<Cow<'static, str>>,
}

impl<E: Remedy> From<&E> for Report {
    fn from(error: &E) -> Self {
        // The chain first: a cause that the error repeats, with the cause's own remedy, is part of the error's text.
        let remedy = Advice(error).to_string();
        Self { problem: chain(error).replacen(&remedy, "", 1), remedy: error.remedy() }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file is bad; it is empty{}", Advice(self))]
    struct Outer(#[source] io::Error);

    impl Remedy for Outer {
        fn remedy(&self) -> Option<Cow<'static, str>> {
            Some("write it again".into())
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the log cannot be read: /x: no such file")]
    struct Repeating(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("/x: no such file")]
    struct Middle(#[source] io::Error);

    #[test]
    fn chain_appends_causes_and_skips_repeated_ones() {
        let error = Outer(io::Error::other("disk gone"));
        assert_eq!(chain(&error), "the file is bad; it is empty; write it again: disk gone");
        let error = Repeating(Middle(io::Error::other("no such file")));
        assert_eq!(chain(&error), "the log cannot be read: /x: no such file");
    }

    /// Repeats its cause, and has the remedy of its cause.
    #[derive(Debug, thiserror::Error)]
    #[error("the log: {0}")]
    struct Delegating(#[source] Outer);

    impl Remedy for Delegating {
        fn remedy(&self) -> Option<Cow<'static, str>> {
            self.0.remedy()
        }
    }

    #[test]
    fn report_has_a_repeated_cause_once() {
        let report = Report::from(&Delegating(Outer(io::Error::other("disk gone"))));
        assert_eq!(report.problem, "the log: the file is bad; it is empty: disk gone");
        assert_eq!(report.remedy.as_deref(), Some("write it again"));
    }

    #[test]
    fn report_separates_the_remedy_from_the_problem_and_its_causes() {
        let report = Report::from(&Outer(io::Error::other("disk gone")));
        assert_eq!(report.problem, "the file is bad; it is empty: disk gone");
        assert_eq!(report.remedy.as_deref(), Some("write it again"));
    }
}
