//! What a wrong value should look like: the value, the expected form and a line to write. Pure.
//!
//! serde says what a type expects ("a duration", "a sequence"); from this and the value follows the advice.

use toml::de::DeValue;

/// How much of a value a message repeats, in characters.
const SHOWN: usize = 80;

/// The message of a value that could not be read, completed with advice where its form is known.
pub(super) fn explain(message: &str, value: &DeValue<'_>) -> String {
    let message = message.trim().replace('\n', "; ");
    match advice(&message, value) {
        Some(Advice { problem: Some(problem), write }) => format!("{problem}; {write}"),
        Some(Advice { problem: None, write }) => format!("{message}; {write}"),
        None => with_value(message, value),
    }
}

/// What to write; `problem` replaces a message that does not show the value.
struct Advice {
    problem: Option<String>,
    write: String,
}

fn write(text: impl Into<String>) -> Option<Advice> {
    Some(Advice { problem: None, write: format!("write {}", text.into()) })
}

fn advice(message: &str, value: &DeValue<'_>) -> Option<Advice> {
    let expected = message.rsplit_once("expected ").map(|(_, expected)| expected);
    if message.contains("socket address") {
        return Some(address(value));
    }
    if message.contains("IP address") {
        let problem = Some(format!("{} is not an IP address", shown(value)));
        let meant = text_of(value).and_then(|text| bare_host(text).parse::<std::net::IpAddr>().ok());
        let write = match meant {
            Some(ip) => format!("write \"{ip}\""),
            None => "write for example \"192.0.2.1\" or \"2001:db8::1\"".to_owned(),
        };
        return Some(Advice { problem, write });
    }
    if let Some(meant) = named(message, value).and_then(|text| name_meant(message, text)) {
        return write(format!("\"{meant}\""));
    }
    if message.contains("KeySource") || message.contains("`discovery`, `file`, `url`") || message.contains(ONE_KEY) {
        let problem = message.contains(ONE_KEY).then(|| "one source of keys belongs here".to_owned());
        let write = "write keys = { url = { url = \"https://...\" } }, keys = { file = { path = \"/...\" } } or keys = { \
                     discovery = {} }";
        return Some(Advice { problem, write: write.into() });
    }
    match (expected?, value) {
        ("a duration", DeValue::Integer(number)) if is_number(number.as_str()) => {
            write(format!("a number with its unit: \"{}s\", \"24h\" or \"90d\"", number.as_str()))
        }
        ("a duration", DeValue::String(text)) if is_number(text) => {
            write(format!("a number with its unit: \"{text}s\", \"24h\" or \"90d\""))
        }
        ("a duration", _) => write("a number with its unit, such as \"30s\", \"24h\" or \"90d\""),
        ("a sequence", DeValue::Table(table)) if table.is_empty() => write("a list: [\"...\"]"),
        ("a sequence", DeValue::Table(_)) => write("a list of tables, with two brackets around its name: [[...]]"),
        ("a sequence", DeValue::String(text)) if text.contains(',') => {
            let items: Vec<_> = text.split(',').map(|item| format!("{:?}", item.trim())).collect();
            write(format!("a list: [{}]", items.join(", ")))
        }
        ("a sequence", value) => write(format!("a list: [{}]", shown(value))),
        ("a string" | "path string" | "string", DeValue::Array(items)) => match items.first() {
            Some(first) if items.len() == 1 => write(format!("it without brackets: {}", shown(first.get_ref()))),
            Some(_) | None => write("one value in quotes, without brackets"),
        },
        (
            "a string" | "path string" | "string",
            value @ (DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)),
        ) => write(format!("it in quotes: \"{}\"", shown(value))),
        ("a boolean", DeValue::String(text)) if ["true", "false"].contains(&&**text) => {
            write(format!("it without quotes: {text}"))
        }
        ("a boolean", _) => write("true or false"),
        (number, value) if is_number_type(number) => write(match value {
            DeValue::String(text) if is_number(text) => format!("it without quotes: {text}"),
            DeValue::Integer(_) => match number_range(number) {
                Some(range) => format!("a whole number {range}"),
                None => "a smaller whole number".to_owned(),
            },
            _ => "a whole number without quotes, such as 4".to_owned(),
        }),
        (table, value)
            if (table.starts_with("struct") || table.contains("map"))
                && !matches!(value, DeValue::Table(_) | DeValue::Array(_)) =>
        {
            write("a table: { key = value }")
        }
        _ => None,
    }
}

/// An address with a port. Names are not resolved: which of a name's addresses would be meant is not known.
fn address(value: &DeValue<'_>) -> Advice {
    let problem = format!("{} is not an IP address with a port", shown(value));
    let text = match value {
        DeValue::String(text) if is_number(text) => format!(":{text}"),
        DeValue::String(text) => without_scheme(&text.replace(char::is_whitespace, "")).to_owned(),
        DeValue::Integer(number) => format!(":{}", number.as_str()),
        _ => String::new(),
    };
    let (host, port) = match text.rsplit_once(':').filter(|_| text.parse::<std::net::Ipv6Addr>().is_err()) {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => (host, port),
        _ => (&*text, "15012"),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let write = match (host, bare.parse::<std::net::IpAddr>(), port.parse::<u16>()) {
        (_, _, Err(_)) => "write a port from 1 to 65535, such as \"[::]:15012\"".to_owned(),
        ("" | "*", _, _) => {
            format!("write \"[::]:{port}\" for all addresses, or \"127.0.0.1:{port}\" for this machine alone")
        }
        ("localhost", _, _) => format!("write \"127.0.0.1:{port}\"; names are not resolved"),
        (_, Ok(std::net::IpAddr::V6(ip)), _) => format!("write \"[{ip}]:{port}\""),
        (_, Ok(std::net::IpAddr::V4(ip)), _) => format!("write \"{ip}:{port}\""),
        (_, Err(_), _) => format!(
            "write an address of this machine, such as \"192.0.2.1:{port}\" or \"[::]:{port}\"; names are not resolved"
        ),
    };
    Advice { problem: Some(problem), write }
}

/// What serde says of a key source with none or several of its kinds.
const ONE_KEY: &str = "wanted exactly 1 element";

fn text_of<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

/// The text that a message is about: the value, or the item of it that the message repeats.
fn named<'a>(message: &str, value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::Array(items) => {
            let mut texts = items.iter().filter_map(|item| text_of(item.get_ref()));
            texts.find(|text| message.contains(&format!("{text:?}")))
        }
        value => text_of(value),
    }
}

/// Without `https://` or the like, and without a path.
fn without_scheme(text: &str) -> &str {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// A host without scheme, port, brackets, and prefix length.
fn bare_host(text: &str) -> &str {
    let host = without_scheme(text.trim());
    let host = match host.rsplit_once(':') {
        Some((host, port)) if is_number(port) && (!host.contains(':') || host.ends_with(']')) => host,
        _ => host,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The name that was meant, where it stands in a URL, with a port, in capitals or with a dot at its end.
fn name_meant(message: &str, text: &str) -> Option<String> {
    let meant = bare_host(text).trim_end_matches('.').to_lowercase();
    let is_right = if message.contains("is not a trust domain") {
        meant.parse::<pki::identity::TrustDomain>().is_ok()
    } else if message.contains("is not a DNS name") {
        meant.parse::<pki::identity::DnsName>().is_ok()
    } else {
        false
    };
    is_right.then_some(meant)
}

/// Adds the value to a message that does not show it.
fn with_value(message: String, value: &DeValue<'_>) -> String {
    let is_shown = |text: &str| message.contains(text) && !text.is_empty() || message.contains(&format!("{text:?}"));
    match value {
        DeValue::String(text) if !is_shown(text) && !message.starts_with("unknown field") => {
            format!("{}: {message}", shown(value))
        }
        _ => message,
    }
}

/// A value as it is written in TOML, cut; lists and tables only by their kind.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
            None => format!("{text:?}"),
        },
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "the list".to_owned(),
        DeValue::Table(_) => "the table".to_owned(),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

fn is_number_type(expected: &str) -> bool {
    let kind = expected.strip_prefix("a nonzero ").unwrap_or(expected);
    ["u8", "u16", "u32", "u64", "usize", "i64"].contains(&kind)
}

fn number_range(expected: &str) -> Option<&'static str> {
    Some(match expected {
        "u8" => "from 0 to 255",
        "a nonzero u8" => "from 1 to 255",
        "u16" => "from 0 to 65535",
        "u32" => "from 0 to 4294967295",
        "a nonzero u32" => "from 1 to 4294967295",
        "u64" | "usize" => "that is not negative",
        "a nonzero u64" | "a nonzero usize" => "greater than 0",
        _ => return None,
    })
}
