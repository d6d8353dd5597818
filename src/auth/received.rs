//! Values of a caller's credentials as log lines may repeat them: cut, and escaped, since they are an attacker's words.

use std::fmt;

/// The longest value in characters: a service account's subject or an issuer's URL fits.
const MOST: usize = 128;
/// How many values of a list are shown.
const MOST_VALUES: usize = 4;

/// One value, or a list of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Received(Box<str>);

impl Received {
    /// A value; its `Display` is quoted and has no control characters.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(quoted(text).into())
    }

    /// A value that may be absent.
    #[must_use]
    pub fn or_none(text: Option<&str>) -> Self {
        text.map_or_else(|| Self("none".into()), Self::new)
    }

    /// The first values of a list.
    pub fn list<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut values = values.into_iter();
        let mut shown: Vec<String> = values.by_ref().take(MOST_VALUES).map(quoted).collect();
        match values.count() {
            0 if shown.is_empty() => return Self::or_none(None),
            0 => {}
            more => shown.push(format!("and {more} more")),
        }
        Self(shown.join(", ").into())
    }
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_quoted_escaped_and_cut() {
        for (text, expected) in [
            ("istio-ca", "\"istio-ca\""),
            ("", "\"\""),
            ("a\nlevel=ERROR \u{1b}[31m\u{202e}", "\"a\\nlevel=ERROR \\u{1b}[31m\\u{202e}\""),
        ] {
            assert_eq!(Received::new(text).to_string(), expected);
        }
        assert_eq!(Received::new(&"ä".repeat(500)).to_string(), format!("\"{}\"...", "ä".repeat(MOST)));
        // Each character of the longest value as its longest escape.
        assert!(Received::new(&"\u{10ffff}".repeat(500)).to_string().len() < 11 * MOST);
    }

    #[test]
    fn list_is_bounded() {
        assert_eq!(Received::list([]).to_string(), "none");
        assert_eq!(Received::list(["a", "b"]).to_string(), "\"a\", \"b\"");
        assert_eq!(Received::list(["a"; 64]).to_string(), "\"a\", \"a\", \"a\", \"a\", and 60 more");
    }
}
