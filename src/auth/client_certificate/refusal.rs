//! Why a client certificate is not accepted, with what it says and what is configured, for the operator's log.

use std::{fmt, time::SystemTime};

use audit_log::timestamp;
use der::Decode;
use rustls_pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    ext::pkix::{SubjectAltName, name::GeneralName},
    name::Name,
};

use super::{Accepted, CertificateError, Settings};
use crate::auth::received::Received;
use pki::identity::TrustDomain;

/// A refused client certificate; its `Display` has values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRefusal {
    /// The reason.
    pub error: CertificateError,
    values: Box<str>,
}

/// What a certificate is compared with.
pub(super) struct Context<'a> {
    pub(super) accepted: &'a [Accepted<'a>],
    pub(super) trust_domains: &'a [TrustDomain],
    pub(super) settings: &'a Settings,
    pub(super) now: SystemTime,
}

impl fmt::Display for CertificateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { error, values } = self;
        if values.is_empty() { error.fmt(f) } else { write!(f, "{error} ({values})") }
    }
}

impl std::error::Error for CertificateRefusal {}

impl CertificateRefusal {
    pub(super) fn new(error: CertificateError, leaf: Option<&CertificateDer<'_>>, context: &Context<'_>) -> Self {
        let seen = leaf.and_then(|der| Certificate::from_der(der).ok());
        let values = seen.map(|seen| values(error, &seen, context)).unwrap_or_default();
        Self { error, values: values.into() }
    }
}

fn values(error: CertificateError, seen: &Certificate, context: &Context<'_>) -> String {
    let tbs = seen.tbs_certificate();
    let (starts, ends) = (tbs.validity().not_before.to_system_time(), tbs.validity().not_after.to_system_time());
    let now = timestamp::format(context.now);
    let issuer = tbs.issuer().to_string();
    let names = names(seen);
    match error {
        CertificateError::Ca
        | CertificateError::Denied
        | CertificateError::KeyUsage
        | CertificateError::Names
        | CertificateError::Revoked => {
            format!("it names {names}")
        }
        CertificateError::Disabled | CertificateError::Empty | CertificateError::Version => String::new(),
        CertificateError::Expired => {
            let cas = context.accepted.iter().filter(|ca| is_named(ca.subject, tbs.issuer())).map(|ca| ca.not_after);
            let of_issuer = cas.max().map(|end| format!(", its issuer's at {}", timestamp::format(end)));
            let end = timestamp::format(ends);
            format!("it names {names}; it ends at {end}{}, and it is {now}", of_issuer.unwrap_or_default())
        }
        CertificateError::NotYetValid => {
            format!("it names {names}; it begins at {}, and it is {now}", timestamp::format(starts))
        }
        CertificateError::TooOld => {
            let most = context.settings.max_age.map(humantime_serde::re::humantime::format_duration);
            let most = most.map(|most| format!("; [auth.client_certificate] max_age is {most}")).unwrap_or_default();
            format!("it names {names}; it began at {}, and it is {now}{most}", timestamp::format(starts))
        }
        CertificateError::TrustDomain => {
            let configured = Received::list(context.trust_domains.iter().map(TrustDomain::as_str));
            format!("it names {names}, and configured are {configured}")
        }
        CertificateError::Malformed | CertificateError::Signature => {
            format!("it names {names}, and its issuer {}", Received::new(&issuer))
        }
        CertificateError::UnknownIssuer => {
            let known: Vec<String> = context.accepted.iter().map(|ca| shown(ca.subject)).collect();
            let known = Received::list(known.iter().map(String::as_str));
            format!("it names {names}, and its issuer {}; accepted are certificates of {known}", Received::new(&issuer))
        }
    }
}

fn is_named(der: &[u8], name: &Name) -> bool {
    Name::from_der(der).is_ok_and(|other| other == *name)
}

fn shown(name: &[u8]) -> String {
    Name::from_der(name).map(|name| name.to_string()).unwrap_or_default()
}

/// The subject alternative names.
fn names(seen: &Certificate) -> Received {
    let found = seen.tbs_certificate().get_extension::<SubjectAltName>().ok().flatten();
    let texts = found.into_iter().flat_map(|(_, SubjectAltName(names))| names).map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => uri.as_str().to_owned(),
        GeneralName::DnsName(dns) => format!("DNS:{}", dns.as_str()),
        GeneralName::Rfc822Name(mail) => format!("email:{}", mail.as_str()),
        GeneralName::IpAddress(ip) => format!("IP:{:?}", ip.as_bytes()),
        _ => "another kind of name".to_owned(),
    });
    let texts: Vec<String> = texts.collect();
    Received::list(texts.iter().map(String::as_str))
}
