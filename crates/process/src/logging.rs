//! Tracing to standard error, as text or JSON, with the ID that connects a client's error with its log lines.
//!
//! Lines of libraries below `INFO` that can contain parts of a request are never logged: an authorization header is a
//! secret. `main` sets up logging before anything else.

pub mod lines;
mod repeats;

use std::fmt;

use repeats::{Aggregated, Repeats};
use serde::Deserialize;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Libraries whose lines below `INFO` can contain headers or bodies of requests; suppressed regardless of the filter.
const GUARDED: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "jsonwebtoken",
    "kube",
    "kube_client",
    "reqwest",
    "rustls",
    "tonic",
    "tower",
    "tower_http",
];

/// Libraries that warn of what any client may send, once for each frame: of these there are only errors.
const AT_CLIENTS_WILL: &[&str] = &["h2", "rustls"];

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line, for log collectors.
    Json,
    /// Human-readable text.
    #[default]
    Text,
}

impl Format {
    /// Its name in the configuration and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Selects log lines: a level, or directives such as `info,istio_hsm_ca::grpc=debug`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(String);

impl Filter {
    /// The filter as written by the user.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Filter {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        parse(text).map(|_| Self(text.to_owned()))
    }
}

impl TryFrom<String> for Filter {
    type Error = TelemetryError;

    fn try_from(text: String) -> Result<Self, TelemetryError> {
        text.parse()
    }
}

/// Logging settings of the daemon and the commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Text or JSON.
    pub format: Format,
    /// Selects the lines.
    pub filter: Filter,
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The thread that writes lines cannot be started.
    #[error("the thread that writes log lines cannot be started; raise the limit of processes")]
    Thread(#[source] std::io::Error),
    /// Logging was already set up in this process.
    #[error("BUG: logging is set up twice")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
    /// A word in the filter is not a log level.
    #[error(
        "the log filter {text:?} has {word:?}, which is not a level; write error, warn, info, debug, trace or target=level"
    )]
    Level {
        /// The filter as configured.
        text: String,
        /// The word.
        word: String,
    },
    /// The filter is malformed.
    #[error("the log filter {text:?} is not a level or a list of target=level; write for example \"info\"")]
    Filter {
        /// The filter as configured.
        text: String,
        /// The parser's error.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Sets up logging for the whole process; each line is written synchronously.
///
/// # Errors
/// If the filter is malformed, or logging was set up before.
pub fn init(settings: &Settings) -> Result<(), TelemetryError> {
    set(settings, std::io::stderr)
}

/// Like [`init`], but for the daemon: a separate thread writes the lines, so that no request waits for them
/// ([`lines`]). Keep the guard until the process ends.
///
/// # Errors
/// Those of [`init`], and if no thread can be started.
pub fn init_in_background(settings: &Settings) -> Result<lines::Flushed, TelemetryError> {
    let (lines, flushed) = lines::Lines::start(std::io::stderr()).map_err(TelemetryError::Thread)?;
    set(settings, lines)?;
    Ok(flushed)
}

fn set<W>(settings: &Settings, writer: W) -> Result<(), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The hint keeps the filter's own maximum level, so that disabled spans of libraries cost nothing.
    let allowed = filter_fn(is_allowed).with_max_level_hint(LevelFilter::TRACE);
    let repeats = Repeats::default();
    let filter = parse(&settings.filter.0)?.and(allowed);
    let registry = tracing_subscriber::registry();
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let set = match settings.format {
        Format::Json => {
            let layer = Aggregated { layer: lines.json().flatten_event(true), repeats: repeats.clone() };
            registry.with(layer.with_filter(filter)).try_init()
        }
        Format::Text => {
            let layer = Aggregated { layer: lines.with_ansi(false), repeats: repeats.clone() };
            registry.with(layer.with_filter(filter)).try_init()
        }
    };
    set.map_err(TelemetryError::AlreadySet)?;
    repeats.start().map_err(TelemetryError::Thread)
}

fn parse(text: &str) -> Result<EnvFilter, TelemetryError> {
    if let Some(word) = text.split(',').map(str::trim).find(|part| !part.is_empty() && !is_directive(part)) {
        return Err(TelemetryError::Level { text: text.to_owned(), word: word.to_owned() });
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::ERROR.into())
        .parse(text)
        .map_err(|source| TelemetryError::Filter { text: text.to_owned(), source })
}

/// Whether a part of a filter is a level or names a target. A mistyped level would otherwise be accepted as the name of
/// an unknown target and suppress all lines.
fn is_directive(part: &str) -> bool {
    part.contains(['=', ':', '[']) || part.starts_with("istio_hsm_ca") || part.parse::<LevelFilter>().is_ok()
}

fn is_allowed(line: &Metadata<'_>) -> bool {
    let library = line.target().split("::").next().unwrap_or_default();
    let most = if AT_CLIENTS_WILL.contains(&library) { Level::ERROR } else { Level::INFO };
    *line.level() <= most || !GUARDED.contains(&library)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn filters() {
        for (text, good) in
            [("info", true), ("warn,istio_hsm_ca=debug", true), ("istio_hsm_ca=loud", false), ("a=b=c", false)]
        {
            assert_eq!(text.parse::<Filter>().is_ok(), good, "{text}");
        }
        for good in ["DEBUG", "off", "", "warn, istio_hsm_ca::grpc", "info,h2=warn", "[issue]=debug"] {
            good.parse::<Filter>().unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for mistyped in ["inof", "info,debg", "h2,info", "7"] {
            let error = mistyped.parse::<Filter>().unwrap_err();
            assert!(matches!(error, TelemetryError::Level { .. }), "{error}");
        }
    }

    #[test]
    fn a_library_never_logs_headers_nor_what_clients_send_at_will() {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let sink = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || sink.clone());
        let filter = parse("trace,h2::codec=trace").unwrap().and(filter_fn(is_allowed));
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "h2::codec", "authorization: Bearer secret");
            tracing::debug!(target: "hyper_util::server", "authorization: Bearer secret");
            tracing::info!(target: "hyper_util::server", "harmless");
            tracing::warn!(target: "h2::proto::ping_pong", "again and again");
            tracing::trace!(target: "istio_hsm_ca::grpc", "ours");
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("harmless") && text.contains("ours"), "{text}");
        assert!(!text.contains("again and again"), "{text}");
    }
}
