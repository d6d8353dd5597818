//! Sources of an issuer's keys: a file, a URL, or the issuer's discovery document.
//!
//! Fetches once, within limits of time and size; [`super::keys`] decides when. Redirects are not followed and no proxy
//! is used: keys come only from the configured location.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Client, header::AUTHORIZATION};

use super::{
    jwks::{self, Jwk, JwksError},
    settings::{FetchUrl, IssuerName, KeySource, SettingError},
};
use crate::auth::received::Received;
use process::error::{Advice, Remedy, Report};

/// Maximum size of a document in bytes: 64 RSA-8192 keys with certificates are smaller.
const MOST: usize = 512 * 1024;
/// Maximum size of a bearer token file in bytes.
const MOST_TOKEN: usize = 16 * 1024;
/// Timeout of a fetch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Path of a discovery document below its issuer (OpenID Connect Discovery 1.0, section 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Keys were not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The roots for https cannot be used.
    #[error("{0}: the PEM roots cannot be used{advice}", advice = Advice(self))]
    CaFile(PathBuf, #[source] reqwest::Error),
    /// The discovery document is not one.
    #[error("the discovery document is not JSON with issuer and jwks_uri{advice}", advice = Advice(self))]
    Discovery,
    /// A file cannot be read.
    #[error("{0} cannot be read{advice}", advice = Advice(self))]
    File(PathBuf, #[source] io::Error),
    /// A file is not a usable key set.
    #[error("{0}{advice}", advice = Advice(self))]
    KeyFile(PathBuf, #[source] JwksError),
    /// The request failed.
    #[error("the request failed{advice}", advice = Advice(self))]
    Http(#[source] reqwest::Error),
    /// The discovery document speaks for somebody else.
    #[error("the discovery document names the issuer {found}, and {configured} is configured{advice}", advice = Advice(self))]
    Issuer {
        /// `issuer`, exactly.
        found: Box<str>,
        /// The configured issuer.
        configured: Box<str>,
    },
    /// The document is no usable key set.
    #[error(transparent)]
    Jwks(#[from] JwksError),
    /// A document at a URL cannot be had or used.
    #[error("{url}: {}{}", reason.problem, Advice(self))]
    Remote {
        /// The URL.
        url: Box<str>,
        /// Why not.
        reason: Box<Report>,
    },
    /// The server answered with something else than 200.
    #[error("the server answered with status {0}{advice}", advice = Advice(self))]
    Status(u16),
    /// The bearer token is not one line of visible characters.
    #[error("{0} does not contain a bearer token{advice}", advice = Advice(self))]
    Token(PathBuf),
    /// The document is larger than any issuer publishes.
    #[error("the document is longer than {MOST} bytes")]
    TooLong,
    /// The URL is not permitted for fetching keys.
    #[error(transparent)]
    Url(#[from] SettingError),
}

impl Remedy for FetchError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        const KEY_SET: &str = "publish a JSON Web Key Set (RFC 7517) there with a public key for RS256, ES256 or ES384";
        match self {
            Self::CaFile(..) => Some("give a file with CERTIFICATE blocks".into()),
            Self::Discovery => {
                Some("check that issuer is the URL of its discovery document, or name the key set: keys = { url = { url = \"https://...\" } }".into())
            }
            Self::File(..) => Some("name a readable file".into()),
            Self::Http(_) => Some("make the URL reachable from this host, and its certificate verifiable (ca_file)".into()),
            // Differs by a slash: the issuer's own spelling is what its tokens say (OpenID Connect Core 1.0, section 2).
            Self::Issuer { found, configured } if found.trim_end_matches('/') == configured.trim_end_matches('/') => {
                Some(format!("write `issuer = \"{found}\"` in [[auth.jwt]], exactly as the issuer spells it").into())
            }
            Self::Issuer { .. } => Some(
                "write the `iss` of its tokens as issuer; where the keys are published elsewhere, name the key set: keys = { url = { url = \"https://...\" } }".into(),
            ),
            Self::Jwks(_) | Self::KeyFile(..) => Some(KEY_SET.into()),
            Self::Remote { reason, .. } => reason.remedy.clone(),
            Self::Status(401 | 403) => Some(
                "name a bearer token by token_file, such as a Kubernetes service account's, or let anonymous clients read it".into(),
            ),
            Self::Status(300..=399) => Some("name the URL that it redirects to; redirects are not followed".into()),
            Self::Status(404) => Some("check the URL".into()),
            Self::Status(_) => Some("see the server's own log; the keys are fetched again".into()),
            Self::Token(_) => Some("write the token alone on one line".into()),
            Self::TooLong | Self::Url(_) => None,
        }
    }
}

impl FetchError {
    fn at(self, url: &FetchUrl) -> Self {
        Self::Remote { url: url.url().as_str().into(), reason: Box::new(Report::from(&self)) }
    }
}

/// A source of keys.
#[derive(Debug)]
pub enum Source {
    /// A discovery document, then the key set that it points to.
    Discovery {
        /// The HTTP client.
        web: Web,
        /// URL of the document.
        url: FetchUrl,
        /// The expected issuer.
        issuer: IssuerName,
    },
    /// A key set in a file.
    File(PathBuf),
    /// A key set at a URL.
    Url {
        /// The HTTP client.
        web: Web,
        /// URL of the key set.
        url: FetchUrl,
    },
}

/// An HTTP client with its credentials.
#[derive(Debug)]
pub struct Web {
    client: Client,
    token_file: Option<PathBuf>,
}

#[derive(serde::Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    /// Creates a source without fetching anything.
    ///
    /// # Errors
    /// If a file of roots cannot be used, or the issuer's name is not a URL with a discovery document.
    pub fn new(issuer: &IssuerName, settings: &KeySource) -> Result<Self, FetchError> {
        Ok(match settings {
            KeySource::Discovery { ca_file, token_file } => Self::Discovery {
                web: Web::new(ca_file.as_deref(), token_file.clone())?,
                url: FetchUrl::try_from(format!("{}{WELL_KNOWN}", issuer.as_str().trim_end_matches('/')))?,
                issuer: issuer.clone(),
            },
            KeySource::File { path } => Self::File(path.clone()),
            KeySource::Url { url, ca_file, token_file } => {
                Self::Url { web: Web::new(ca_file.as_deref(), token_file.clone())?, url: url.clone() }
            }
        })
    }

    /// Reads the keys if that needs no network.
    #[must_use]
    pub fn read_now(&self) -> Option<Result<Vec<Jwk>, FetchError>> {
        match self {
            Self::Discovery { .. } | Self::Url { .. } => None,
            Self::File(path) => Some(read_set(path)),
        }
    }

    /// Fetches the keys.
    ///
    /// # Errors
    /// If they cannot be fetched, or cannot be used.
    pub async fn fetch(&self) -> Result<Vec<Jwk>, FetchError> {
        match self {
            Self::Discovery { web, url, issuer } => {
                let document = web.get(url, true).await?;
                let document = discovered(&document, issuer).map_err(|error| error.at(url))?;
                let keys = FetchUrl::try_from(document.jwks_uri).map_err(|error| FetchError::from(error).at(url))?;
                // The token is for the issuer; who else it points to does not get it.
                let same_origin = keys.url().origin() == url.url().origin();
                let bytes = web.get(&keys, same_origin).await?;
                jwks::parse(&bytes).map_err(|error| FetchError::from(error).at(&keys))
            }
            Self::File(path) => {
                let path = path.clone();
                let name = path.clone();
                tokio::task::spawn_blocking(move || read_set(&path))
                    .await
                    .map_err(|_| FetchError::File(name, io::ErrorKind::Interrupted.into()))?
            }
            Self::Url { web, url } => {
                let bytes = web.get(url, true).await?;
                jwks::parse(&bytes).map_err(|error| FetchError::from(error).at(url))
            }
        }
    }
}

/// A discovery document that speaks for this issuer.
fn discovered(document: &[u8], issuer: &IssuerName) -> Result<Document, FetchError> {
    let document: Document = serde_json::from_slice(document).map_err(|_| FetchError::Discovery)?;
    if document.issuer == issuer.as_str() {
        return Ok(document);
    }
    let same = document.issuer.trim_end_matches('/') == issuer.as_str().trim_end_matches('/');
    // Another one is somebody else's text.
    let found = if same { document.issuer } else { Received::new(&document.issuer).to_string() };
    Err(FetchError::Issuer { found: found.into(), configured: issuer.as_str().into() })
}

/// Reads a file with a key set.
fn read_set(path: &Path) -> Result<Vec<Jwk>, FetchError> {
    jwks::parse(&read(path, MOST)?).map_err(|source| FetchError::KeyFile(path.to_owned(), source))
}

impl Web {
    fn new(ca_file: Option<&Path>, token_file: Option<PathBuf>) -> Result<Self, FetchError> {
        let mut builder = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(0)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = ca_file {
            let unusable = |source| FetchError::CaFile(path.to_owned(), source);
            let pem = read(path, MOST)?;
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).map_err(unusable)?);
        }
        Ok(Self { client: builder.build().map_err(FetchError::Http)?, token_file })
    }

    async fn get(&self, url: &FetchUrl, with_token: bool) -> Result<Vec<u8>, FetchError> {
        self.try_get(url, with_token).await.map_err(|error| error.at(url))
    }

    async fn try_get(&self, url: &FetchUrl, with_token: bool) -> Result<Vec<u8>, FetchError> {
        let mut request = self.client.get(url.url().clone());
        if let Some(path) = self.token_file.as_ref().filter(|_| with_token) {
            request = request.header(AUTHORIZATION, bearer(path)?);
        }
        let mut response = request.send().await.map_err(without_url)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            if body.len() + chunk.len() > MOST {
                return Err(FetchError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// The URL is named once, by [`FetchError::Remote`].
fn without_url(error: reqwest::Error) -> FetchError {
    FetchError::Http(error.without_url())
}

/// Reads the bearer token each time: Kubernetes replaces the file every hour.
fn bearer(path: &Path) -> Result<reqwest::header::HeaderValue, FetchError> {
    let wrong = || FetchError::Token(path.to_owned());
    let bytes = zeroize::Zeroizing::new(read(path, MOST_TOKEN)?);
    let token = std::str::from_utf8(&bytes).map_err(|_| wrong())?.trim();
    if token.is_empty() {
        return Err(wrong());
    }
    let text = zeroize::Zeroizing::new(format!("Bearer {token}"));
    let mut value = reqwest::header::HeaderValue::from_str(&text).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Reads a file up to a maximum size.
fn read(path: &Path, most: usize) -> Result<Vec<u8>, FetchError> {
    let wrong = |source| FetchError::File(path.to_owned(), source);
    let bytes = process::files::read_input(path, most).map_err(wrong)?;
    if bytes.len() > most { Err(FetchError::TooLong) } else { Ok(bytes) }
}
