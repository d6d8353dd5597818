//! The credentials of a request, unverified.
//!
//! Headers are parsed as in Istio's server (`pkg/security/security.go`, `pilot/.../kube_jwt.go`).

use std::{fmt, net::IpAddr, sync::Arc};

use rustls_pki_types::CertificateDer;

use crate::limits::Client;

/// The scheme of an `authorization` value, case-sensitive as in Istio's server.
const BEARER: &str = "Bearer ";
/// Maximum length of a cluster name in bytes: that of an RFC 1123 subdomain, the usual form in Istio.
const CLUSTER_MAX: usize = 253;

/// All credentials of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The JWT of the `authorization` header, without its scheme; see [`bearer`].
    pub bearer: Option<BearerToken<'a>>,
    /// The cluster sent by the caller.
    pub cluster_id: ClusterId<'a>,
    /// The certificates of the TLS handshake, leaf first; the handshake only verified possession of the leaf's key
    /// ([`super::AcceptAny`]).
    pub client_chain: Option<&'a [CertificateDer<'a>]>,
    /// Source address of the connection.
    pub peer: Option<IpAddr>,
    /// The same as limits count it.
    pub client: Option<Client>,
}

/// A JWT as sent by the client. Its `Debug` shows only its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BearerToken<'a>(&'a str);

impl<'a> BearerToken<'a> {
    /// Wraps a JWT without its scheme.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The JWT, which is a secret.
    #[must_use]
    pub fn expose(self) -> &'a str {
        self.0
    }
}

impl fmt::Debug for BearerToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken({} bytes)", self.0.len())
    }
}

/// The JWT of a request's `authorization` values: the first one with the scheme `Bearer `.
#[must_use]
pub fn bearer<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<BearerToken<'a>> {
    values.into_iter().find_map(|value| value.strip_prefix(BEARER)).map(BearerToken)
}

/// The cluster in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterId<'a> {
    /// No, an empty, or more than one value: the default cluster.
    #[default]
    Default,
    /// Exactly one value.
    Named(&'a str),
}

impl<'a> ClusterId<'a> {
    /// Parses the values of the `clusterid` header.
    #[must_use]
    pub fn from_values(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (Some(name), None) if !name.is_empty() => Self::Named(name),
            (Some(_) | None, _) => Self::Default,
        }
    }

    /// The name of the cluster, given the default one.
    #[must_use]
    pub fn or(self, default: &'a ClusterName) -> &'a str {
        match self {
            Self::Default => default.as_str(),
            Self::Named(name) => name,
        }
    }
}

/// Name of a configured cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct ClusterName(Arc<str>);

/// Not a valid cluster name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster's name has 1 to 253 visible ASCII characters")]
pub struct ClusterNameError;

impl ClusterName {
    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClusterName {
    /// Istio's default cluster ID (`pkg/config/constants/constants.go`).
    fn default() -> Self {
        Self("Kubernetes".into())
    }
}

impl TryFrom<String> for ClusterName {
    type Error = ClusterNameError;

    fn try_from(text: String) -> Result<Self, ClusterNameError> {
        if !text.is_empty() && text.len() <= CLUSTER_MAX && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(ClusterNameError)
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bearer_value_counts() {
        let cases: &[(&[&str], Option<&str>)] = &[
            (&[], None),
            (&["Bearer a"], Some("a")),
            (&["bearer a"], None),
            (&["BEARER a"], None),
            (&["Basic x", "Bearer a", "Bearer b"], Some("a")),
            (&["Istio a"], None),
            (&["Bearer"], None),
            (&["Bearer "], Some("")),
            (&[" Bearer a"], None),
        ];
        for (values, expected) in cases {
            assert_eq!(bearer(values.iter().copied()).map(BearerToken::expose), *expected, "{values:?}");
        }
    }

    #[test]
    fn one_cluster_id_or_the_default() {
        let cases: &[(&[&str], &str)] = &[
            (&[], "Kubernetes"),
            (&[""], "Kubernetes"),
            (&["a"], "a"),
            (&["a", "b"], "Kubernetes"),
            (&["a", "a"], "Kubernetes"),
            (&["", "a"], "Kubernetes"),
        ];
        let default = ClusterName::default();
        for (values, expected) in cases {
            assert_eq!(ClusterId::from_values(values.iter().copied()).or(&default), *expected, "{values:?}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        assert_eq!(format!("{:?}", BearerToken::new("secret")), "BearerToken(6 bytes)");
    }
}
