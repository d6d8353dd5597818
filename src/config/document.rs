//! A TOML document read section by section, so that every mistake in it is told at once, each with its line.

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

/// The place of what did not come from the file.
const NOWHERE: std::ops::Range<usize> = 0..0;

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line of the file, counted from 1; none for what is missing, or came by a flag.
    pub line: Option<usize>,
    /// The section or key, such as `[listen]` or `[[token]] 2`.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// A document being taken apart; what is left at the end is unknown.
#[derive(Debug)]
pub struct Document<'i> {
    text: &'i str,
    table: DeTable<'i>,
    problems: Vec<Problem>,
}

impl<'i> Document<'i> {
    /// Parses a text as TOML; syntax errors are all kept for the end.
    #[must_use]
    pub fn parse(text: &'i str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Self { text, table: table.into_inner(), problems: Vec::new() };
        for error in errors {
            let line = error.span().map(|span| document.line(span.start));
            document.problem(line, "syntax", error.message());
        }
        document
    }

    /// Lays another document over this one, as the flags do: its tables are merged, its other values replace.
    pub fn overlay(&mut self, text: &'i str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.problem(None, "the flags", error.message());
        }
        merge(&mut self.table, table.into_inner());
    }

    /// Takes a section that must be there.
    pub fn section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        match self.take(name) {
            Some(value) => self.read(&format!("[{name}]"), value),
            None => {
                self.problem(None, &format!("[{name}]"), "the section is missing");
                None
            }
        }
    }

    /// Takes a section that may be absent; it then has its defaults.
    pub fn section_or_default<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.take(name) {
            Some(value) => self.read(&format!("[{name}]"), value),
            None => Some(T::default()),
        }
    }

    /// Takes a section that may be absent.
    pub fn optional_section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        self.take(name).and_then(|value| self.read(&format!("[{name}]"), value))
    }

    /// Takes every element of an array of tables.
    pub fn sections<T: DeserializeOwned>(&mut self, name: &str) -> Vec<T> {
        let Some(value) = self.take(name) else { return Vec::new() };
        let start = value.span().start;
        let DeValue::Array(array) = value.into_inner() else {
            let line = self.line(start);
            self.problem(Some(line), &format!("[[{name}]]"), "must be an array of tables; write two brackets");
            return Vec::new();
        };
        let elements = array.into_iter().enumerate();
        elements.filter_map(|(i, value)| self.read(&format!("[[{name}]] {}", i + 1), value)).collect()
    }

    /// Whether there is such a section or array that nobody has taken.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.table.keys().any(|key| key.as_ref() == name)
    }

    /// Notes a mistake that only several values together make.
    pub fn refuse(&mut self, place: &str, reason: impl Into<String>) {
        self.problem(None, place, reason.into());
    }

    /// Every mistake, with one for each section that nobody took.
    #[must_use]
    pub fn finish(mut self) -> Vec<Problem> {
        let unknown: Vec<_> = self.table.keys().map(|key| (key.span().start, key.as_ref().to_string())).collect();
        for (start, name) in unknown {
            let line = self.line(start);
            self.problem(Some(line), &format!("[{name}]"), "no such section");
        }
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }

    fn take(&mut self, name: &str) -> Option<Spanned<DeValue<'i>>> {
        self.table.remove(&Spanned::new(0..0, std::borrow::Cow::Owned(name.to_owned())))
    }

    /// Reads one section. After an error the key that caused it is set aside and the rest is read again, so that
    /// one mistake does not hide the next.
    fn read<T: DeserializeOwned>(&mut self, place: &str, mut value: Spanned<DeValue<'i>>) -> Option<T> {
        let mut whole = true;
        loop {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(read) => return whole.then_some(read),
                Err(error) => error,
            };
            let span = error.span().filter(|span| *span != value.span());
            let set_aside = match (&span, value.get_mut()) {
                (Some(span), DeValue::Table(table)) => {
                    let key = table
                        .iter()
                        .find(|(key, value)| key.span().contains(&span.start) || value.span().contains(&span.start))
                        .map(|(key, _)| key.clone());
                    key.and_then(|key| table.remove(&key).map(|_| key.as_ref().to_string()))
                }
                _ => None,
            };
            let missing = error.message().starts_with("missing field");
            if whole || !missing {
                let line = span.as_ref().unwrap_or(&value.span()).start;
                let line = (value.span().end > 0).then(|| self.line(line));
                let place = match &set_aside {
                    Some(key) => format!("{place} {key}"),
                    None => place.to_owned(),
                };
                self.problem(line, &place, error.message().trim().replace('\n', "; "));
            }
            whole = false;
            set_aside?;
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn problem(&mut self, line: Option<usize>, place: &str, reason: impl Into<String>) {
        self.problems.push(Problem { line, place: place.to_owned(), reason: reason.into() });
    }
}

/// Merges tables; what comes by a flag has no place in the file, so that its span is empty.
fn merge<'i>(below: &mut DeTable<'i>, above: DeTable<'i>) {
    for (key, value) in above {
        let key = Spanned::new(NOWHERE, key.into_inner());
        match (below.get_mut(&key).map(Spanned::get_mut), value.into_inner()) {
            (Some(DeValue::Table(below)), DeValue::Table(above)) => merge(below, above),
            (_, value) => {
                below.remove(&key);
                below.insert(key, nowhere(value));
            }
        }
    }
}

fn nowhere(value: DeValue<'_>) -> Spanned<DeValue<'_>> {
    let value = match value {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| nowhere(item.into_inner())).collect()),
        DeValue::Table(table) => {
            let entries = table.into_iter();
            DeValue::Table(
                entries
                    .map(|(key, value)| (Spanned::new(NOWHERE, key.into_inner()), nowhere(value.into_inner())))
                    .collect(),
            )
        }
        other => other,
    };
    Spanned::new(NOWHERE, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Section {
        number: u8,
        text: String,
        list: Vec<u8>,
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let text = "[a]\nnumber = 300\ntext = 1\nmistyped = 2\n\n[[b]]\nnumber = 1\n[[b]]\nlist = 3\n[c]\n";
        let mut document = Document::parse(text);
        assert!(document.section::<Section>("a").is_none());
        assert_eq!(document.sections::<Section>("b").len(), 1);
        assert!(document.section::<Section>("d").is_none());
        let problems: Vec<String> = document.finish().iter().map(ToString::to_string).collect();
        let expected = [
            "[d]: the section is missing",
            "line 2: [a] number: ",
            "line 3: [a] text: ",
            "line 4: [a] mistyped: unknown field `mistyped`",
            "line 9: [[b]] 2 list: ",
            "line 10: [c]: no such section",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem} / {expected}");
        }
    }

    #[test]
    fn flags_lie_over_the_file() {
        let mut document = Document::parse("[a]\nnumber = 300\ntext = \"file\"\n");
        document.overlay("a.number = 7\nb.list = [1, 2]");
        let a: Section = document.section("a").unwrap();
        let b: Section = document.section("b").unwrap();
        assert_eq!((a.number, a.text.as_str(), b.list), (7, "file", vec![1, 2]));
        assert_eq!(document.finish(), []);
    }

    #[test]
    fn broken_syntax_is_told() {
        let document = Document::parse("[a\nnumber = = 3\n");
        assert!(!document.finish().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]a-c=\"'0-9.\n {}]{0,200}") {
            let mut document = Document::parse(&text);
            let _: Option<Section> = document.section("a");
            let _: Vec<Section> = document.sections("b");
            let _ = document.finish();
        }
    }
}
