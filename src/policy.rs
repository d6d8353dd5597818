//! What a caller may have: a [`Grant`], or a reason why not. Pure.

use std::time::{Duration, SystemTime};

use crate::{
    auth::Caller,
    identity::{DnsName, TrustDomain},
    pki::{Issuer, Template, VerifiedCsr},
};

/// What a request asks for besides its CSR (ISTIO.md 1.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The lifetime in seconds as the client sent it; zero or less means the default.
    pub validity_seconds: i64,
    /// `CertSigner` of the metadata; the empty text counts as absent.
    pub cert_signer: Option<String>,
    /// `ImpersonatedIdentity` of the metadata; the empty text counts as absent.
    pub impersonated_identity: Option<String>,
    /// The names that the operator's own command asks for; refused from anybody else.
    pub operator_names: Vec<crate::identity::Name>,
}

/// The configured rules.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The lifetime when none is asked for. Istio: DEFAULT_WORKLOAD_CERT_TTL, 24 h.
    pub default_ttl: Duration,
    /// The longest lifetime that may be asked for; more is refused, not cut. Istio: MAX_WORKLOAD_CERT_TTL, 90 d.
    pub max_ttl: Duration,
    /// The trust domains in which this CA issues.
    pub trust_domains: Vec<TrustDomain>,
    /// The values of `CertSigner` that are served.
    pub cert_signers: Vec<String>,
    /// The names of the daemon's serving certificate.
    pub serving_dns_names: Vec<DnsName>,
    /// The addresses of the daemon's serving certificate.
    pub serving_ip_addresses: Vec<std::net::IpAddr>,
    /// The lifetime of the daemon's serving certificate.
    pub serving_ttl: Duration,
}

/// Leave to have a certificate. Only [`Rules::decide`] makes one.
#[derive(Clone, Debug)]
pub struct Grant {
    template: Template,
}

/// Why a caller may not have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The CSR names somebody else.
    #[error("the request asks for the name {0}, which is not the caller's")]
    ForeignName(String),
    // the builder of this module adds: Subject, CertSigner, Impersonation, TtlTooLong, TrustDomain, Expired issuer, ...
}

impl Grant {
    /// The content of the certificate that may be issued.
    #[must_use]
    pub fn template(&self) -> &Template {
        &self.template
    }
}

impl Rules {
    /// Decides on a request.
    ///
    /// # Errors
    /// The first rule that the request breaks.
    pub fn decide(
        &self,
        _caller: &Caller,
        _csr: &VerifiedCsr,
        _asked: &Asked,
        _issuer: &Issuer,
        _now: SystemTime,
    ) -> Result<Grant, Denied> {
        todo!()
    }
}
