//! Names of workloads and servers: newtypes that are constructed only by parsing.
//!
//! Every name in a certificate is of these types, so that separators, empty segments and invalid characters are
//! rejected at the boundary. Pure.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

/// Maximum length of a SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
const SPIFFE_ID_MAX: usize = 2048;
/// Maximum length of a trust domain name in bytes (SPIFFE-ID, section 2.1).
const TRUST_DOMAIN_MAX: usize = 255;
/// Maximum length of an RFC 1123 label in bytes: a Kubernetes namespace.
const LABEL_MAX: usize = 63;
/// Maximum length of an RFC 1123 subdomain in bytes: a Kubernetes ServiceAccount, a DNS name.
const SUBDOMAIN_MAX: usize = 253;

/// Not a valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is not an RFC 1123 subdomain, optionally after `*.`.
    #[error("{0:?} is not a DNS name (letters, digits, '-' and '.', 253 bytes at most)")]
    DnsName(String),
    /// The text is not an RFC 1123 label.
    #[error("{0:?} is not a namespace name (lower-case letters, digits and '-', 63 bytes at most)")]
    Namespace(String),
    /// The text is not an RFC 1123 subdomain.
    #[error("{0:?} is not a service account name (lower-case letters, digits, '-' and '.', 253 bytes at most)")]
    ServiceAccount(String),
    /// The text is not of the form `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    #[error("{0:?} is not a workload's SPIFFE ID (spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT)")]
    SpiffeId(String),
    /// The text is not a SPIFFE trust domain.
    #[error("{0:?} is not a trust domain (lower-case letters, digits, '.', '-' and '_', 255 bytes at most)")]
    TrustDomain(String),
}

/// Shortens untrusted text for an error message.
fn excerpt(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= LABEL_MAX
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_label)
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as a string.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError::$name(excerpt(text)))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }
    };
}

text_newtype!(
    /// A SPIFFE trust domain, such as `cluster.local` (SPIFFE-ID, section 2.1).
    TrustDomain,
    |text| {
        !text.is_empty()
            && text.len() <= TRUST_DOMAIN_MAX
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
    }
);

text_newtype!(
    /// A Kubernetes namespace: an RFC 1123 label.
    Namespace,
    is_label
);

text_newtype!(
    /// A Kubernetes ServiceAccount: an RFC 1123 subdomain.
    ServiceAccount,
    is_subdomain
);

text_newtype!(
    /// A DNS name in lower case, as in a dNSName (RFC 5280, section 4.2.1.6); may begin with `*.`.
    DnsName,
    |text| is_subdomain(text.strip_prefix("*.").unwrap_or(text))
);

/// A workload's SPIFFE ID in Istio's form: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`
/// (`istio/pkg/spiffe/spiffe.go`). Unlike Istio's own parser, this one rejects empty segments.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Namespace,
    service_account: ServiceAccount,
}

impl SpiffeId {
    /// Combines parsed parts.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, namespace: Namespace, service_account: ServiceAccount) -> Self {
        Self { trust_domain, namespace, service_account }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The Kubernetes ServiceAccount.
    #[must_use]
    pub fn service_account(&self) -> &ServiceAccount {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::SpiffeId(excerpt(text));
        if text.len() > SPIFFE_ID_MAX {
            return Err(wrong());
        }
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(wrong)?.split('/');
        let mut next = || parts.next().ok_or_else(wrong);
        let (trust_domain, ns, namespace, sa, service_account) = (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            trust_domain: trust_domain.parse()?,
            namespace: namespace.parse()?,
            service_account: service_account.parse()?,
        })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

/// A subject alternative name in our certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// A dNSName.
    Dns(DnsName),
    /// An iPAddress.
    Ip(IpAddr),
    /// A uniformResourceIdentifier: a workload's SPIFFE ID.
    Spiffe(SpiffeId),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Ip(address) => write!(f, "IP:{address}"),
            Self::Spiffe(id) => write!(f, "URI:{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spiffe_ids() {
        let long = format!("spiffe://td/ns/{}/sa/a", "n".repeat(64));
        let cases: &[(&str, bool)] = &[
            ("spiffe://cluster.local/ns/default/sa/default", true),
            ("spiffe://td/ns/n/sa/a.b-c", true),
            ("spiffe://td_1/ns/n/sa/a", true),
            ("spiffe:///ns//sa/", false),
            ("spiffe:///ns/n/sa/a", false),
            ("spiffe://td/ns//sa/a", false),
            ("spiffe://td/ns/n/sa/", false),
            ("spiffe://td/ns/n/sa/a/", false),
            ("spiffe://td/ns/n/sa/a/b", false),
            ("spiffe://td/sa/n/ns/a", false),
            ("spiffe://TD/ns/n/sa/a", false),
            ("spiffe://td/ns/N/sa/a", false),
            ("spiffe://td/ns/n/sa/a,DNS:x", false),
            ("spiffe://td/ns/n/sa/a b", false),
            ("spiffe://td/ns/n/sa/a%2f", false),
            ("spiffe://td@x/ns/n/sa/a", false),
            ("spiffe://td:80/ns/n/sa/a", false),
            ("SPIFFE://td/ns/n/sa/a", false),
            ("spiffe://td/ns/n/sa/a\0", false),
            (&long, false),
            ("", false),
        ];
        for (text, good) in cases {
            let parsed = text.parse::<SpiffeId>();
            assert_eq!(parsed.is_ok(), *good, "{text}");
            if let Ok(id) = parsed {
                assert_eq!(id.to_string(), *text);
            }
        }
    }

    #[test]
    fn dns_names() {
        let cases: &[(&str, bool)] = &[
            ("istiod.istio-system.svc", true),
            ("*.example.com", true),
            ("localhost", true),
            ("a..b", false),
            (".a", false),
            ("a.", false),
            ("*", false),
            ("a.*.b", false),
            ("-a", false),
            ("A.b", false),
            ("a_b", false),
            ("", false),
        ];
        for (text, good) in cases {
            assert_eq!(text.parse::<DnsName>().is_ok(), *good, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_comes_back_as_it_was(text in "(spiffe://)?[a-zA-Z0-9/._:@%\\-\u{e9} ]{0,60}|\\PC{0,80}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text.as_str());
            }
            if let Ok(name) = text.parse::<DnsName>() {
                prop_assert_eq!(name.to_string(), text.as_str());
            }
        }

        #[test]
        fn good_parts_make_an_id(domain in "[a-z0-9][a-z0-9.]{0,20}[a-z0-9]", namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", account in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?") {
            prop_assume!(!domain.contains(".."));
            let text = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            prop_assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text.as_str());
            // With one part more or less it is a different ID.
            let (longer, shorter) = (format!("{text}/x"), format!("spiffe://{domain}/ns/{namespace}"));
            prop_assert!(longer.parse::<SpiffeId>().is_err());
            prop_assert!(shorter.parse::<SpiffeId>().is_err());
        }
    }

    #[test]
    fn an_error_never_carries_a_whole_hostile_text() {
        let text = "é".repeat(10_000);
        let error = text.parse::<SpiffeId>().unwrap_err().to_string();
        assert!(error.len() < 400, "{}", error.len());
    }
}
