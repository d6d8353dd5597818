//! Parses a TOML document section by section and reports all mistakes at once, each with its line.

mod explain;

use process::renamed_keys;
use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue, ValueDeserializer},
};

/// The span of values that are not from the file.
const NOWHERE: std::ops::Range<usize> = 0..0;

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line of the file, counted from 1; `None` for missing keys and for flags.
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

/// A document whose sections are taken one by one; those left at the end are unknown.
#[derive(Debug)]
pub struct Document<'i> {
    text: &'i str,
    table: DeTable<'i>,
    problems: Vec<Problem>,
}

impl<'i> Document<'i> {
    /// Parses a text as TOML; all syntax errors are reported at the end.
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

    /// Merges another document into this one, as for flags: tables are merged, other values replaced.
    pub fn overlay(&mut self, text: &'i str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.problem(None, "the flags", error.message());
        }
        merge(&mut self.table, table.into_inner());
    }

    /// Takes a required section.
    pub fn section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        match self.take(name) {
            Some(value) => self.read(&format!("[{name}]"), value),
            None => {
                self.problem(None, &format!("[{name}]"), "the section is missing; write it");
                None
            }
        }
    }

    /// Takes an optional section; if absent, it has its defaults.
    pub fn section_or_default<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.take(name) {
            Some(value) => self.read(&format!("[{name}]"), value),
            None => Some(T::default()),
        }
    }

    /// Takes an optional section.
    pub fn optional_section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        self.take(name).and_then(|value| self.read(&format!("[{name}]"), value))
    }

    /// Takes all elements of an array of tables; `None` for an unusable element.
    pub fn sections<T: DeserializeOwned>(&mut self, name: &str) -> Vec<Option<T>> {
        let Some(value) = self.take(name) else { return Vec::new() };
        let start = value.span().start;
        let DeValue::Array(array) = value.into_inner() else {
            let line = self.line(start);
            self.problem(Some(line), &format!("[[{name}]]"), "must be an array of tables; write two brackets");
            return Vec::new();
        };
        let elements = array.into_iter().enumerate();
        elements.map(|(i, value)| self.read(&format!("[[{name}]] {}", i + 1), value)).collect()
    }

    /// Whether there is such a section or array that has not been taken.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.table.keys().any(|key| key.as_ref() == name)
    }

    /// Whether a section that nobody has taken has a key.
    #[must_use]
    pub fn has_key(&self, section: &str, key: &str) -> bool {
        let section = self.table.iter().find(|(name, _)| name.as_ref() == section);
        section.is_some_and(|(_, value)| match value.get_ref() {
            DeValue::Table(table) => table.keys().any(|name| name.as_ref() == key),
            _ => false,
        })
    }

    /// Notes a mistake that only several values together make; not where a single value is wrong, since this may
    /// only follow from it.
    pub fn refuse(&mut self, place: &str, reason: impl Into<String>) {
        let within = |rest: &str| rest.is_empty() || rest.starts_with([' ', '.']);
        let wrong_itself =
            |problem: &Problem| problem.line.is_some() && problem.place.strip_prefix(place).is_some_and(within);
        if !self.problems.iter().any(wrong_itself) {
            self.problem(None, place, reason.into());
        }
    }

    /// All mistakes, including one for each section that was not taken.
    #[must_use]
    pub fn finish(mut self) -> Vec<Problem> {
        let unknown: Vec<_> = self.table.keys().map(|key| (key.span().start, key.as_ref().to_string())).collect();
        for (start, name) in unknown {
            let line = self.line(start);
            self.problem(Some(line), &format!("[{name}]"), "no such section; correct its name, or remove it");
        }
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }

    fn take(&mut self, name: &str) -> Option<Spanned<DeValue<'i>>> {
        self.table.remove(&Spanned::new(0..0, std::borrow::Cow::Owned(name.to_owned())))
    }

    /// Parses one section. After an error, the key that caused it, at any depth, is removed and the rest is parsed
    /// again, so that one mistake does not hide the next. The result is used for further checks only.
    fn read<T: DeserializeOwned>(&mut self, place: &str, mut value: Spanned<DeValue<'i>>) -> Option<T> {
        let mut aside: Vec<String> = Vec::new();
        loop {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let span = error.span().filter(|span| *span != value.span());
            let (path, wrong) = span.as_ref().and_then(|span| set_aside(value.get_mut(), span.start)).unzip();
            if !follows(error.message(), path.as_deref(), &aside) {
                let at = span.as_ref().unwrap_or(&value.span()).clone();
                let line = (at.end > 0).then(|| self.line(at.start));
                let place = path.as_ref().map_or_else(|| place.to_owned(), |path| format!("{place} {path}"));
                let renamed =
                    span.as_ref().and_then(|span| self.text.get(span.start..)).and_then(renamed_keys::message);
                let renamed = renamed.filter(|_| error.message().starts_with("unknown field"));
                // A URI may hold a PIN, which belongs into no message.
                let secret = path.as_deref().is_some_and(|path| path == "uri" || path.ends_with(".uri"));
                let reason = renamed.unwrap_or_else(|| match &wrong {
                    Some(wrong) if !secret => explain::explain(error.message(), wrong),
                    Some(_) | None => error.message().trim().replace('\n', "; "),
                });
                self.problem(line, &place, reason);
            }
            aside.push(path?);
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn problem(&mut self, line: Option<usize>, place: &str, reason: impl Into<String>) {
        self.problems.push(Problem { line, place: place.to_owned(), reason: reason.into() });
    }
}

/// Whether a mistake is only a consequence of a removed value: its field is missing, or its parent is empty.
fn follows(message: &str, path: Option<&str>, aside: &[String]) -> bool {
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split_once('`'));
    aside.iter().any(|gone| {
        let key = gone.rsplit('.').next().unwrap_or(gone);
        let below = path.and_then(|path| gone.strip_prefix(path)).is_some_and(|rest| rest.starts_with('.'));
        below || missing.is_some_and(|(name, _)| name == key)
    })
}

/// Removes the smallest thing that stands at a place of the text; returns the way to it, such as `limits.streams`, and its
/// value.
fn set_aside<'i>(value: &mut DeValue<'i>, at: usize) -> Option<(String, DeValue<'i>)> {
    match value {
        DeValue::Array(items) => {
            let mut found = None;
            for (index, item) in items.iter_mut().enumerate() {
                if let Some(aside) = set_aside(item.get_mut(), at) {
                    return Some(aside);
                }
                if item.span().contains(&at) {
                    found = Some(index);
                    break;
                }
            }
            let index = found?;
            let mut all: Vec<_> = std::mem::replace(items, DeArray::new()).into_iter().collect();
            let wrong = all.remove(index);
            *items = all.into_iter().collect();
            Some((String::new(), wrong.into_inner()))
        }
        DeValue::Table(table) => {
            let mut found = None;
            for (key, item) in table.iter_mut() {
                match set_aside(item.get_mut(), at) {
                    Some((path, wrong)) if path.is_empty() => return Some((key.as_ref().to_string(), wrong)),
                    Some((path, wrong)) => return Some((format!("{}.{path}", key.as_ref()), wrong)),
                    None if key.span().contains(&at) || item.span().contains(&at) => {
                        found = Some(key.clone());
                        break;
                    }
                    None => {}
                }
            }
            let key = found?;
            let wrong = table.remove(&key)?;
            Some((key.as_ref().to_string(), wrong.into_inner()))
        }
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Float(_) | DeValue::Integer(_) | DeValue::String(_) => {
            None
        }
    }
}

/// Merges tables; values of flags have an empty span, since they are not in the file.
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
    fn every_mistake_is_reported_with_its_line() {
        let text = "[a]\nnumber = 300\ntext = 1\nmistyped = 2\n\n[[b]]\nnumber = 1\n[[b]]\nlist = 3\n[c]\n";
        let mut document = Document::parse(text);
        assert!(document.section::<Section>("a").is_some(), "for what else is to be checked");
        assert_eq!(document.sections::<Section>("b").len(), 2);
        assert!(document.section::<Section>("d").is_none());
        document.refuse("[a] number", "only follows from the mistake in it");
        document.refuse("[a]", "only follows from the mistakes in it");
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
    fn mistakes_in_tables_of_tables_do_not_hide_each_other() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read")]
        struct Inner {
            name: String,
            number: u8,
        }
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Outer {
            limits: Section,
            many: Vec<Inner>,
            inline: Option<Inner>,
        }
        let text = "[a]\ninline = { name = 1, number = 2 }\n[a.limits]\nnumber = -1\nlist = [1, \"x\", \"y\"]\nmistyped = 1\n\
                    [[a.many]]\nname = 7\nnumber = 8\n[[a.many]]\nnumber = 9\nmore = 1\n";
        let mut document = Document::parse(text);
        let _partly: Option<Outer> = document.section("a");
        let problems: Vec<String> = document.finish().iter().map(ToString::to_string).collect();
        let expected = [
            "line 2: [a] inline.name: invalid type",
            "line 4: [a] limits.number: invalid value",
            "line 5: [a] limits.list: invalid type: string \"x\"",
            "line 5: [a] limits.list: invalid type: string \"y\"",
            "line 6: [a] limits.mistyped: unknown field",
            "line 8: [a] many.name: invalid type",
            "line 12: [a] many.more: unknown field",
        ];
        for expected in expected {
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:#?}");
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    }

    /// The type of a key, its wrong value, and what the message says.
    #[test]
    fn wrong_value_is_shown_with_its_expected_form_and_an_example() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read")]
        struct Kinds {
            #[serde(default)]
            address: Option<std::net::SocketAddr>,
            #[serde(default)]
            boolean: bool,
            #[serde(default, with = "humantime_serde")]
            duration: Option<std::time::Duration>,
            #[serde(default)]
            ip: Option<std::net::IpAddr>,
            #[serde(default)]
            issuer: Option<crate::auth::jwt::settings::IssuerName>,
            #[serde(default)]
            keys: Option<crate::auth::jwt::settings::KeySource>,
            #[serde(default)]
            list: Vec<String>,
            #[serde(default)]
            names: Vec<pki::identity::DnsName>,
            #[serde(default)]
            number: Option<std::num::NonZeroU32>,
            #[serde(default)]
            path: Option<std::path::PathBuf>,
            #[serde(default)]
            size: Option<usize>,
            #[serde(default)]
            table: Option<Section>,
            #[serde(default)]
            text: Option<String>,
            #[serde(default)]
            trust_domain: Option<pki::identity::TrustDomain>,
            #[serde(default)]
            uri: Option<token::TokenUri>,
            #[serde(default)]
            url: Option<crate::auth::jwt::settings::FetchUrl>,
        }
        let cases = [
            (
                "address = ':15012'",
                r#"":15012" is not an IP address with a port; write "[::]:15012" for all addresses, or "127.0.0.1:15012" for this machine alone"#,
            ),
            ("address = '*:15012'", r#"write "[::]:15012" for all addresses"#),
            ("address = '15012'", r#""15012" is not an IP address with a port; write "[::]:15012" for all addresses"#),
            ("address = 'tcp://0.0.0.0:15012'", r#"write "0.0.0.0:15012""#),
            ("address = ' 127.0.0.1: 15012'", r#"write "127.0.0.1:15012""#),
            ("address = 15012", r#"15012 is not an IP address with a port; write "[::]:15012" for all addresses"#),
            (
                "address = 'localhost:15012'",
                r#""localhost:15012" is not an IP address with a port; write "127.0.0.1:15012"; names are not resolved"#,
            ),
            ("address = 'ca.example.com:1'", r#"such as "192.0.2.1:1" or "[::]:1"; names are not resolved"#),
            ("address = '0.0.0.0'", r#""0.0.0.0" is not an IP address with a port; write "0.0.0.0:15012""#),
            ("address = '::1'", r#"write "[::1]:15012""#),
            ("address = '127.0.0.1:99999'", "write a port from 1 to 65535"),
            ("address = ['127.0.0.1:1']", "the list is not an IP address with a port"),
            ("boolean = 'true'", r#"invalid type: string "true", expected a boolean; write it without quotes: true"#),
            ("boolean = 1", "write true or false"),
            (
                "duration = 86400",
                r#"invalid type: integer `86400`, expected a duration; write a number with its unit: "86400s", "24h" or "90d""#,
            ),
            ("duration = '86400'", r#"string "86400", expected a duration; write a number with its unit: "86400s""#),
            (
                "duration = 'a day'",
                r#"string "a day", expected a duration; write a number with its unit, such as "30s""#,
            ),
            ("duration = -5", "expected a duration; write a number with its unit, such as"),
            ("ip = '127.0.0.1/8'", r#""127.0.0.1/8" is not an IP address; write "127.0.0.1""#),
            ("ip = '[::1]:15012'", r#"write "::1""#),
            ("ip = 'localhost'", r#""localhost" is not an IP address; write for example "192.0.2.1""#),
            ("ip = 1", "1 is not an IP address"),
            ("issuer = 'a b'", r#""a b": an issuer is the exact text of iss"#),
            (
                "list = 'ca.example.com'",
                r#"string "ca.example.com", expected a sequence; write a list: ["ca.example.com"]"#,
            ),
            ("keys = '/jwks.json'", r#"; write keys = { url = { url = "https://..." } }, keys = { file = "#),
            ("keys = { file = '/jwks.json' }", "; write keys = { url = {"),
            ("keys = {}", "one source of keys belongs here; write keys = {"),
            ("list = 'a, b'", r#"write a list: ["a", "b"]"#),
            ("list = {}", r#"write a list: ["..."]"#),
            ("list = [1]", r#"expected a string; write it in quotes: "1""#),
            ("names = ['a b']", r#""a b" is not a DNS name"#),
            (
                "names = ['https://CA.example:15012/']",
                r#"is not a DNS name (letters, digits, '-' and '.', 253 bytes at most); write "ca.example""#,
            ),
            ("trust_domain = 'spiffe://Cluster.Local/'", r#"write "cluster.local""#),
            ("trust_domain = ''", r#""" is not a trust domain"#),
            ("issuer = ''", r#""": an issuer is the exact text of iss"#),
            ("number = '4'", r#"string "4", expected a nonzero u32; write it without quotes: 4"#),
            ("number = 0", "integer `0`, expected a nonzero u32; write a whole number from 1 to 4294967295"),
            ("number = 1.5", "expected a nonzero u32; write a whole number without quotes, such as 4"),
            ("path = ['/a']", r#"expected path string; write it without brackets: "/a""#),
            ("path = 1", r#"expected path string; write it in quotes: "1""#),
            ("size = -1", "integer `-1`, expected usize; write a whole number that is not negative"),
            ("size = 'many'", "write a whole number without quotes, such as 4"),
            ("table = 'x'", "write a table: { key = value }"),
            ("text = 1", r#"integer `1`, expected a string; write it in quotes: "1""#),
            ("text = ['a']", r#"expected a string; write it without brackets: "a""#),
            ("url = 'http://keys.example'", r#""http://keys.example": a key URL starts with https://"#),
        ];
        let mut wrong = Vec::new();
        for (line, expected) in cases {
            let text = format!("[a]\n{line}\n");
            let mut document = Document::parse(&text);
            let _: Option<Kinds> = document.section("a");
            let problems: Vec<String> = document.finish().iter().map(ToString::to_string).collect();
            if problems.len() != 1 || !problems[0].contains(expected) {
                wrong.push((line, expected, problems));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        let mut document = Document::parse("[a]\nuri = 'pkcs11:token=a?pin-value=123456'\n");
        let _: Option<Kinds> = document.section("a");
        assert!(!format!("{:?}", document.finish()).contains("123456"), "a PIN is not repeated");
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
    fn syntax_error_is_reported() {
        let document = Document::parse("[a\nnumber = = 3\n");
        assert!(!document.finish().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]a-c=\"'0-9.\n {}]{0,200}") {
            let mut document = Document::parse(&text);
            let _: Option<Section> = document.section("a");
            let _: Vec<Option<Section>> = document.sections("b");
            let _ = document.finish();
        }
    }
}
