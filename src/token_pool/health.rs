//! Health of the tokens for readiness.

use std::{sync::Arc, time::Instant};

/// A token's phase, including the breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its host cannot be reached, or fails; retried automatically.
    Down,
    /// Its host is up and its canary signs; one real request at a time until one verifies.
    HalfOpen,
    /// Its PIN is wrong or locked; it is not tried again until the PIN file changes.
    PinRefused,
    /// It failed a request or signed wrongly and is probed with the canary key.
    Probing,
    /// It signs.
    Serving,
    /// Its host is being started or connected to.
    Starting,
}

impl Phase {
    /// The name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::HalfOpen => "half_open",
            Self::PinRefused => "pin_refused",
            Self::Probing => "probing",
            Self::Serving => "serving",
            Self::Starting => "starting",
        }
    }

    /// The description for users.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::HalfOpen => "on trial: one request at a time until one verifies",
            Self::PinRefused => "its PIN was refused",
            Self::Probing => "being probed after a fault",
            Self::Serving => "signs",
            Self::Starting => "starting",
        }
    }

    /// Whether real requests reach the token: all of them, or the one that a half-open breaker lets through.
    #[must_use]
    pub fn is_ready(self) -> bool {
        match self {
            Self::HalfOpen | Self::Serving => true,
            Self::Down | Self::PinRefused | Self::Probing | Self::Starting => false,
        }
    }
}

/// One token's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHealth {
    /// The token.
    pub token: Arc<str>,
    /// Its phase.
    pub phase: Phase,
    /// The reason; empty while it serves.
    pub reason: String,
    /// Start of the phase.
    pub since: Instant,
    /// Number of CA keys found in it.
    pub keys: usize,
    /// How each was found.
    pub found: Vec<String>,
    /// Whether it signs checkpoints only.
    pub log_only: bool,
    /// Whether it counts as able to sign: it serves, or it is half-open and waits for a first request in vain.
    pub ready: bool,
}

/// The tokens' health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHealth {
    /// Each token's, in the order of the configuration.
    pub tokens: Vec<TokenHealth>,
    /// Whether one of them has a log key; `None` before that is known.
    pub log_key: Option<bool>,
}

impl PoolHealth {
    /// Whether at least one token signs. Half-open may count ([`TokenHealth::ready`]): only a request can close the
    /// breaker, and a daemon that is not ready gets no requests.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.tokens.iter().any(|token| token.ready)
    }

    /// Why no token signs.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut text = String::new();
        let ca_tokens = self.tokens.iter().filter(|token| !token.log_only);
        for token in ca_tokens.filter(|token| token.phase != Phase::Serving || token.keys == 0) {
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(&token.token);
            text.push_str(": ");
            text.push_str(match (token.reason.as_str(), token.phase) {
                ("", phase) => phase.as_str(),
                (reason, _) => reason,
            });
        }
        text
    }
}
