//! Renamed configuration keys, for error messages with the replacement.

/// The old key, the new key, and the unit of the old key's number.
const RENAMED: [(&str, &str, &str); 6] = [
    ("call_timeout_ms", "call_timeout", "ms"),
    ("leeway_seconds", "leeway", "s"),
    ("max_age_seconds", "max_age", "s"),
    ("max_validity_seconds", "max_validity", "s"),
    ("pause_seconds", "pause", "s"),
    ("refresh_seconds", "refresh", "s"),
];

/// The error message for a renamed key; `None` for any other key. `text` starts at the key, such as
/// `leeway_seconds = 60`.
#[must_use]
pub fn message(text: &str) -> Option<String> {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let (key, rest) = text.split_at(text.find(word).unwrap_or(text.len()));
    let (_, new, unit) = RENAMED.iter().find(|(old, ..)| *old == key)?;
    let value = rest.trim_start().strip_prefix('=').unwrap_or_default().trim_start();
    let digits: String = value.split(word).next().unwrap_or_default().replace('_', "");
    let number = if digits.is_empty() { "60" } else { &digits };
    Some(format!("was renamed and is a duration; write `{new} = \"{number}{unit}\"`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_new_key_and_keeps_the_value() {
        for (text, expected) in [
            ("leeway_seconds = 60\nother = 1", Some("`leeway = \"60s\"`")),
            ("call_timeout_ms=5_000}", Some("`call_timeout = \"5000ms\"`")),
            ("max_age_seconds", Some("`max_age = \"60s\"`")),
            ("leeway = 60", None),
            ("", None),
        ] {
            let message = message(text);
            assert_eq!(message.is_some(), expected.is_some(), "{text}");
            assert!(message.is_none_or(|message| message.ends_with(expected.unwrap())), "{text}");
        }
    }
}
