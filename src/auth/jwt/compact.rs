//! The compact serialization of a JWS (RFC 7515, section 7.1), parsed within limits.
//!
//! Pure. Nothing is verified here.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::de::IgnoredAny;

use crate::auth::received::Received;

/// The longest token in bytes. Kubernetes' have 1 to 2 KiB; tonic's default for all headers is 16 KiB.
const MOST: usize = 16 * 1024;
/// Maximum length of a decoded header in bytes.
const MOST_HEADER: usize = 4 * 1024;
/// Maximum length of a signature in base64url: that of RSA-8192.
const MOST_SIGNATURE: usize = 1366;

/// The text is not a valid JWT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// The header has critical parameters (RFC 7515, section 4.1.11), of which none is supported.
    #[error("the token's header names critical parameters")]
    Critical,
    /// The header is not a JSON object with `alg`.
    #[error("the token's header is malformed")]
    Header,
    /// There are not exactly three parts in base64url.
    #[error("the token is not a compact JWS")]
    Malformed,
    /// It is longer than 16 KiB.
    #[error("the token is longer than 16 KiB")]
    TooLong,
}

impl CompactError {
    /// The label in metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Critical => "jwt_critical",
            Self::Header => "jwt_header",
            Self::Malformed => "jwt_malformed",
            Self::TooLong => "jwt_too_long",
        }
    }
}

/// The header parameters in use (RFC 7515, section 4.1).
#[derive(Debug, serde::Deserialize)]
pub struct Header {
    /// The algorithm's name.
    pub alg: String,
    /// The key's ID.
    #[serde(default)]
    pub kid: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// A JWT split into its parts.
#[derive(Debug)]
pub struct Compact<'a> {
    /// The header.
    pub header: Header,
    /// The payload, decoded.
    pub payload: Vec<u8>,
    /// The signed part.
    pub signed: &'a str,
    /// The signature in base64url.
    pub signature: &'a str,
}

/// Checks the length before anything else.
///
/// # Errors
/// If it is longer than 16 KiB.
pub fn within_limit(text: &str) -> Result<&str, CompactError> {
    if text.len() > MOST { Err(CompactError::TooLong) } else { Ok(text) }
}

impl<'a> Compact<'a> {
    /// The key ID, for messages.
    #[must_use]
    pub fn kid(&self) -> Received {
        Received::or_none(self.header.kid.as_deref())
    }

    /// Takes a token apart.
    ///
    /// # Errors
    /// If it is malformed, or has critical header parameters.
    pub fn parse(text: &'a str) -> Result<Self, CompactError> {
        let text = within_limit(text)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(CompactError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(CompactError::Malformed)?;
        if payload.contains('.') || signature.is_empty() || signature.len() > MOST_SIGNATURE {
            return Err(CompactError::Malformed);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| CompactError::Malformed);
        let header = decode(header)?;
        if header.len() > MOST_HEADER {
            return Err(CompactError::Header);
        }
        let header: Header = serde_json::from_slice(&header).map_err(|_| CompactError::Header)?;
        // `null` counts as absent; RFC 7515 has no such `crit`, and it has no effect.
        if header.crit.is_some() {
            return Err(CompactError::Critical);
        }
        Ok(Self { header, payload: decode(payload)?, signed, signature })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn forms() {
        let deep = token(&format!(r#"{{"alg":"RS256","x":{}}}"#, "[".repeat(2000)), "{}");
        let long_header = token(&format!(r#"{{"alg":"RS256","x":"{}"}}"#, "a".repeat(5000)), "{}");
        let long_signature = format!("{}.e30.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#), "a".repeat(1400));
        let cases: &[(&str, Result<(), CompactError>)] = &[
            (&token(r#"{"alg":"RS256"}"#, "{}"), Ok(())),
            (&token(r#"{"alg":"RS256","kid":"a","typ":"JWT"}"#, "{}"), Ok(())),
            ("", Err(CompactError::Malformed)),
            (".", Err(CompactError::Malformed)),
            ("..", Err(CompactError::Malformed)),
            ("a.b", Err(CompactError::Malformed)),
            ("e30.e30.", Err(CompactError::Malformed)),
            ("e30.e30.c2ln", Err(CompactError::Header)),
            ("e30.e30.e30.c2ln", Err(CompactError::Malformed)),
            ("e30.e30.e30.e30.e30", Err(CompactError::Malformed)),
            ("é.e30.c2ln", Err(CompactError::Malformed)),
            ("e30=.e30.c2ln", Err(CompactError::Malformed)),
            (&token("[]", "{}"), Err(CompactError::Header)),
            (&token("null", "{}"), Err(CompactError::Header)),
            (&token(r#"{"alg":null}"#, "{}"), Err(CompactError::Header)),
            (&token(r#"{"alg":["RS256"]}"#, "{}"), Err(CompactError::Header)),
            (&token(r#"{"alg":"RS256","alg":"none"}"#, "{}"), Err(CompactError::Header)),
            (&token(r#"{"alg":"RS256","kid":1}"#, "{}"), Err(CompactError::Header)),
            (&token(r#"{"alg":"RS256"} x"#, "{}"), Err(CompactError::Header)),
            (&token(r#"{"alg":"RS256","crit":["b64"],"b64":false}"#, "{}"), Err(CompactError::Critical)),
            (&token(r#"{"alg":"RS256","crit":[]}"#, "{}"), Err(CompactError::Critical)),
            (&token(r#"{"alg":"RS256","crit":7}"#, "{}"), Err(CompactError::Critical)),
            (&deep, Err(CompactError::Header)),
            (&long_header, Err(CompactError::Header)),
            (&long_signature, Err(CompactError::Malformed)),
            (&"a".repeat(MOST + 1), Err(CompactError::TooLong)),
        ];
        for (text, expected) in cases {
            assert_eq!(Compact::parse(text).map(drop), *expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,400}") {
            let _ = Compact::parse(&text);
        }

        #[test]
        fn no_header_or_payload_panics(header in ".{0,200}", payload in ".{0,200}") {
            if let Ok(compact) = Compact::parse(&token(&header, &payload)) {
                let _ = super::super::claims::Claims::parse(&compact.payload);
            }
        }

        #[test]
        fn mutated_tokens_do_not_panic(at in 0usize..80, byte in any::<u8>()) {
            let good = token(r#"{"alg":"RS256","kid":"a"}"#, r#"{"iss":"i","sub":"s","exp":1}"#);
            let mut bytes = good.into_bytes();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = Compact::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
