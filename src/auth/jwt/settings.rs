//! `[[auth.jwt]]`: a JWT issuer and the source of its keys.

use std::{fmt, path::PathBuf, time::Duration};

use humantime_serde::Serde;

use super::keys::Pace;
use crate::auth::{ClusterName, positive_duration};
use pki::identity::{Namespace, TrustDomain};

/// Maximum length of an issuer and a URL in bytes.
const MOST: usize = 2048;

/// A JWT issuer.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `iss` of its JWTs, compared byte by byte.
    pub issuer: IssuerName,
    /// Source of its keys.
    pub keys: KeySource,
    /// A JWT must be for one of these audiences. Istio's agents request `istio-ca`.
    #[serde(default = "istio_ca")]
    pub audiences: Vec<String>,
    /// The trust domain of its workloads. Default: the first of our own.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// The cluster of its JWTs. Default: the default cluster.
    #[serde(default)]
    pub cluster: Option<ClusterName>,
    /// The namespaces of its workloads; empty means all.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// The accepted algorithms.
    #[serde(default = "Algorithm::all")]
    pub algorithms: Vec<Algorithm>,
    /// Tolerated difference between its clock and ours.
    #[serde(default)]
    pub leeway: Leeway,
    /// Interval of fetching its keys; by default 5 minutes from the network and 10 seconds from a file.
    #[serde(default, deserialize_with = "positive_duration")]
    pub refresh: Option<Duration>,
    /// Minimum time between two fetches, regardless of unknown key IDs in JWTs.
    #[serde(default, deserialize_with = "positive_duration")]
    pub pause: Option<Duration>,
}

impl Settings {
    /// Timing of fetches.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let (interval, pause) = match self.keys {
            KeySource::File { .. } => (10, 1),
            KeySource::Discovery { .. } | KeySource::Url { .. } => (300, 10),
        };
        let pause = self.pause.unwrap_or(Duration::from_secs(pause));
        Pace { interval: self.refresh.unwrap_or(Duration::from_secs(interval)).max(pause), pause }
    }
}

fn istio_ca() -> Vec<String> {
    vec!["istio-ca".to_owned()]
}

/// Source of an issuer's keys.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeySource {
    /// The issuer's own discovery document (OpenID Connect Discovery 1.0, section 4).
    Discovery {
        /// PEM roots for the server's certificate. Default: the system's.
        #[serde(default)]
        ca_file: Option<PathBuf>,
        /// A file with a bearer token for the issuer: Kubernetes' API server requires one.
        #[serde(default)]
        token_file: Option<PathBuf>,
    },
    /// A file with a JSON Web Key Set.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// A URL of a JSON Web Key Set.
    Url {
        /// The URL.
        url: FetchUrl,
        /// PEM roots for the server's certificate. Default: the system's.
        #[serde(default)]
        ca_file: Option<PathBuf>,
        /// A file with a bearer token for the server.
        #[serde(default)]
        token_file: Option<PathBuf>,
    },
}

/// Signature algorithms of JWTs (RFC 7518, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA on P-384 with SHA-384.
    #[serde(rename = "ES384")]
    Es384,
    /// RSA PKCS #1 v1.5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    /// Every algorithm.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![Self::Es256, Self::Es384, Self::Rs256]
    }

    /// The name in JWT headers and keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
        }
    }
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Es256 => Self::ES256,
            Algorithm::Es384 => Self::ES384,
            Algorithm::Rs256 => Self::RS256,
        }
    }
}

/// An invalid setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// An issuer is empty, too long, or has white space or control characters.
    #[error("an issuer is the exact text of iss, 1 to 2048 bytes without white space; copy it from a token")]
    Issuer,
    /// A leeway is more than five minutes.
    #[error("a leeway is a duration from \"0s\" to \"300s\"; write for example \"60s\"")]
    Leeway,
    /// A URL is neither https nor http on this machine.
    #[error(
        "a key URL starts with https:// (http:// only on loopback) and carries no user name; write for example https://issuer.example/jwks"
    )]
    Url,
}

/// An issuer's name as in its JWTs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct IssuerName(String);

impl IssuerName {
    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IssuerName {
    type Error = SettingError;

    fn try_from(text: String) -> Result<Self, SettingError> {
        let plain = !text.is_empty() && text.len() <= MOST;
        if plain && !text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            Ok(Self(text))
        } else {
            Err(SettingError::Issuer)
        }
    }
}

impl fmt::Display for IssuerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tolerated clock difference: 60 seconds by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Serde<Duration>")]
pub struct Leeway(Duration);

impl Default for Leeway {
    fn default() -> Self {
        Self(Duration::from_secs(60))
    }
}

impl TryFrom<Serde<Duration>> for Leeway {
    type Error = SettingError;

    fn try_from(duration: Serde<Duration>) -> Result<Self, SettingError> {
        let duration = duration.into_inner();
        if duration <= Duration::from_secs(300) { Ok(Self(duration)) } else { Err(SettingError::Leeway) }
    }
}

impl From<Leeway> for Duration {
    fn from(leeway: Leeway) -> Self {
        leeway.0
    }
}

/// A URL from which keys can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct FetchUrl(reqwest::Url);

impl FetchUrl {
    /// The URL.
    #[must_use]
    pub fn url(&self) -> &reqwest::Url {
        &self.0
    }
}

impl TryFrom<String> for FetchUrl {
    type Error = SettingError;

    fn try_from(text: String) -> Result<Self, SettingError> {
        let url = if text.len() <= MOST { reqwest::Url::parse(&text).ok() } else { None };
        let url = url.ok_or(SettingError::Url)?;
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        let safe = match url.scheme() {
            "https" => !host.is_empty(),
            "http" => loopback,
            _ => false,
        };
        if safe && url.username().is_empty() && url.password().is_none() {
            Ok(Self(url))
        } else {
            Err(SettingError::Url)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let cases: &[(&str, bool)] = &[
            ("https://a.example/jwks", true),
            ("https://[2001:db8::1]:6443/openid/v1/jwks", true),
            ("http://127.0.0.1:8080/jwks", true),
            ("http://127.9.9.9/jwks", true),
            ("http://[::1]:8080/jwks", true),
            ("http://localhost/jwks", true),
            ("http://a.example/jwks", false),
            ("http://localhost.a.example/jwks", false),
            ("http://127.0.0.1.a.example/jwks", false),
            ("http://10.0.0.1/jwks", false),
            ("http://127.0.0.1@a.example/jwks", false),
            ("https://user:secret@a.example/jwks", false),
            ("file:///etc/passwd", false),
            ("ftp://127.0.0.1/", false),
            ("a.example/jwks", false),
            ("", false),
        ];
        for (text, good) in cases {
            assert_eq!(FetchUrl::try_from((*text).to_owned()).is_ok(), *good, "{text}");
        }
    }

    #[test]
    fn an_issuer_in_toml() {
        let settings: Settings = toml::from_str(
            "issuer = 'https://a.example'\nkeys = { url = { url = 'https://a.example/jwks' } }\nnamespaces = ['a']\n",
        )
        .unwrap();
        assert_eq!(settings.audiences, ["istio-ca"]);
        assert_eq!(settings.algorithms, Algorithm::all());
        assert_eq!(Duration::from(settings.leeway), Duration::from_secs(60));
        let discovery: Settings = toml::from_str("issuer = 'i'\nkeys.discovery = {}\n").unwrap();
        assert!(matches!(discovery.keys, KeySource::Discovery { .. }));
        for bad in [
            "issuer = 'i'",
            "issuer = ''\nkeys.file.path = 'x'",
            "issuer = 'i'\nkeys.file.path = 'x'\nkeyz = 1",
            "issuer = 'i'\nkeys.file.path = 'x'\nkeys.file.url = 'x'",
            "issuer = 'i'\nkeys.url.url = 'http://a.example'",
            "issuer = 'i'\nkeys.file.path = 'x'\nalgorithms = ['HS256']",
            "issuer = 'i'\nkeys.file.path = 'x'\nalgorithms = ['none']",
            "issuer = 'i'\nkeys.file.path = 'x'\nleeway = '301s'",
            "issuer = 'i'\nkeys.file.path = 'x'\nleeway = 60",
            "issuer = 'i'\nkeys.file.path = 'x'\npause = '0s'",
            "issuer = 'i'\nkeys.file.path = 'x'\nrefresh = '0s'",
            "issuer = 'i'\nkeys.file.path = 'x'\nrefresh = '1000years'",
            "issuer = 'i'\nkeys.file.path = 'x'\nnamespaces = ['A']",
            "issuer = 'i'\nkeys.file.path = 'x'\ncluster = ''",
        ] {
            assert!(toml::from_str::<Settings>(bad).is_err(), "{bad}");
        }
    }
}
