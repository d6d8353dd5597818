//! Decides what a caller may obtain: a [`Grant`] or the reason for a denial. Pure.
//!
//! Names come from the authenticated identity or from the configuration; a request can narrow them but never add any.
//! No clock, network or state: the same input always gives the same result.

#[cfg(test)]
mod certificate_request_tests;
mod certificate_requests;
#[cfg(test)]
mod cluster_tests;
mod clusters;
mod denied;
#[cfg(test)]
mod pod_tests;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use certificate_requests::{CertificateRules, CertificateScope, ProfileRules};
pub use clusters::{
    ClusterRules, ControllerGrant, ControllerRules, PodServiceRules, PodSignerRules, RequesterRules, Scope, SignerRules,
};
pub use denied::{Denied, Kind};

use crate::auth::{Caller, Identity, InternalCaller};
use pki::{
    Issuer, Profile, Template, VerifiedCsr,
    csr::RequestedName,
    identity::{DnsName, Name, SpiffeId, TrustDomain},
    profile::{CLOCK_SKEW, NAMES_MAX},
};

/// Content of a request in addition to its CSR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The requested lifetime in seconds; zero or less means the default.
    pub validity_seconds: i64,
    /// `CertSigner` of the metadata; the empty string means absent.
    pub cert_signer: Option<String>,
    /// `ImpersonatedIdentity` of the metadata; the empty string means absent.
    pub impersonated_identity: Option<String>,
    /// The names requested by the operator's command; other callers are denied them.
    pub operator_names: Vec<Name>,
}

/// The configured rules.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Default lifetime. Istio: DEFAULT_WORKLOAD_CERT_TTL, 24 h.
    pub default_ttl: Duration,
    /// Maximum lifetime; longer requests are denied, not shortened. Istio: MAX_WORKLOAD_CERT_TTL, 90 d.
    pub max_ttl: Duration,
    /// The trust domains in which this CA issues.
    pub trust_domains: Vec<TrustDomain>,
    /// Accepted values of `CertSigner`.
    pub cert_signers: Vec<String>,
    /// The names of the daemon's serving certificate.
    pub serving_dns_names: Vec<DnsName>,
    /// The addresses of the daemon's serving certificate.
    pub serving_ip_addresses: Vec<std::net::IpAddr>,
    /// The lifetime of the daemon's serving certificate.
    pub serving_ttl: Duration,
    /// Rules of the Kubernetes clusters.
    pub clusters: Vec<ClusterRules>,
}

/// What an identity may obtain: certificate profile, names, lifetime.
struct Allowed {
    profile: Profile,
    names: Vec<Name>,
    ttl: Ttl,
}

impl Allowed {
    fn leaf(names: Vec<Name>, ttl: Duration) -> Self {
        Self { profile: Profile::Leaf, names, ttl: Ttl::FromNow(ttl) }
    }
}

/// How long a certificate is valid.
#[derive(Clone, Copy, Debug)]
enum Ttl {
    /// For this long from now.
    FromNow(Duration),
    /// For this long from its notBefore, and for at least [`POD_LIFETIME_MIN`].
    Total(Duration),
}

/// Minimum lifetime of a pod certificate, from notBefore to notAfter (Kubernetes:
/// pkg/apis/certificates/validation/validation.go).
pub const POD_LIFETIME_MIN: Duration = Duration::from_secs(3600);

/// Permission for a certificate. Only [`Rules::decide`] constructs it.
#[derive(Clone, Debug)]
pub struct Grant {
    template: Template,
}

impl Grant {
    /// The permitted content of the certificate.
    #[must_use]
    pub fn template(&self) -> &Template {
        &self.template
    }
}

impl Rules {
    /// Decides on a request.
    ///
    /// # Errors
    /// The first rule that the request violates.
    pub fn decide(
        &self,
        caller: &Caller,
        csr: &VerifiedCsr,
        asked: &Asked,
        issuer: &Issuer,
        now: SystemTime,
    ) -> Result<Grant, Denied> {
        // `auth` has verified the permission to impersonate; it must be for the identity requested here.
        let impersonated = match (named(asked.impersonated_identity.as_deref()), caller.acts_for()) {
            (None, None) => None,
            (Some(text), Some(id)) if id.to_string() == text => Some(Identity::Workload(id.clone())),
            (Some(_), Some(_) | None) | (None, Some(_)) => return Err(Denied::Impersonation),
        };
        self.grant(impersonated.as_ref().unwrap_or(caller.identity()), csr, asked, issuer, now)
    }

    /// [`Rules::decide`] for an authenticated identity.
    fn grant(
        &self,
        identity: &Identity,
        csr: &VerifiedCsr,
        asked: &Asked,
        issuer: &Issuer,
        now: SystemTime,
    ) -> Result<Grant, Denied> {
        if let Some(signer) = named(asked.cert_signer.as_deref())
            && !self.cert_signers.iter().any(|served| served == signer)
        {
            return Err(Denied::CertSigner(shortened(signer)));
        }
        if !matches!(identity, Identity::Operator { .. }) && !asked.operator_names.is_empty() {
            return Err(Denied::OperatorNames);
        }
        let Allowed { profile, names, ttl } = match identity {
            Identity::Controller { cluster, name, subject } => {
                self.controller(cluster, name, subject.as_ref(), issuer)?
            }
            // It obtains no certificate.
            Identity::Internal(InternalCaller::Crl) => return Err(Denied::NotConfigured("a certificate for the CRL")),
            Identity::Internal(InternalCaller::ServingCertificate) => {
                Allowed::leaf(self.serving_names()?, self.serving_ttl)
            }
            Identity::Operator { .. } => Allowed::leaf(self.operator_names(&asked.operator_names)?, self.ttl(asked)?),
            Identity::Requester { cluster, signer, username } => {
                Allowed::leaf(self.requested_names(cluster, signer, username, csr)?, self.ttl(asked)?)
            }
            Identity::Pod { cluster, signer, account, services, .. } => {
                self.pod(cluster, signer, account, services, asked)?
            }
            Identity::Workload(id) => {
                let name = Name::Spiffe(id.clone());
                self.in_trust_domain(&name)?;
                Allowed::leaf(vec![name], self.ttl(asked)?)
            }
            Identity::CertificateRequester(requester) => self.certificate_request(requester, csr, asked, issuer)?,
        };
        let is_own = |asked: &RequestedName| {
            names.iter().any(|name| is(name, asked))
                // The rule for a CA has compared all names already, and leaves some out.
                || profile != Profile::Leaf && matches!(identity, Identity::CertificateRequester(_))
                || matches!(identity, Identity::Workload(id) if self.is_former_name(id, asked))
        };
        if let Some(foreign) = csr.names().iter().find(|asked| !is_own(asked)) {
            return Err(Denied::ForeignName(foreign.to_string()));
        }
        let (not_before, not_after) = validity(ttl, issuer, now)?;
        let public_key = csr.public_key().clone();
        Ok(Grant { template: Template { profile, public_key, names, not_before, not_after } })
    }

    /// The names of the daemon's own endpoint, which never include a workload's.
    fn serving_names(&self) -> Result<Vec<Name>, Denied> {
        let dns = self.serving_dns_names.iter().cloned().map(Name::Dns);
        let names = dns.chain(self.serving_ip_addresses.iter().copied().map(Name::Ip));
        some_names(names, Denied::NoServingNames)
    }

    /// The names requested by the operator: workloads in our trust domains, and the configured serving names.
    fn operator_names(&self, asked: &[Name]) -> Result<Vec<Name>, Denied> {
        for name in asked {
            let served = match name {
                Name::Dns(name) => self.serving_dns_names.contains(name),
                Name::Ip(address) => self.serving_ip_addresses.contains(address),
                Name::Spiffe(_) => {
                    self.in_trust_domain(name)?;
                    true
                }
            };
            if !served {
                return Err(Denied::NotServed(name.clone()));
            }
        }
        some_names(asked.iter().cloned(), Denied::NoNames)
    }

    fn in_trust_domain(&self, name: &Name) -> Result<(), Denied> {
        match name {
            Name::Spiffe(id) if !self.trust_domains.contains(id.trust_domain()) => {
                Err(Denied::TrustDomain(id.trust_domain().clone()))
            }
            Name::Dns(_) | Name::Ip(_) | Name::Spiffe(_) => Ok(()),
        }
    }

    /// Whether a requested URI is the workload's own SPIFFE ID with another of this CA's trust domains, or without a
    /// service account. Pods that were injected before a change of the trust domain request the old name until they
    /// restart. The certificate contains the authenticated name.
    fn is_former_name(&self, id: &SpiffeId, asked: &RequestedName) -> bool {
        let RequestedName::Uri(uri) = asked else { return false };
        let Some((trust_domain, path)) = uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
            return false;
        };
        let is_ours = self.trust_domains.iter().any(|ours| ours.as_str() == trust_domain);
        let account = path.strip_prefix("ns/").and_then(|rest| rest.strip_prefix(id.namespace().as_str()));
        let account = account.and_then(|rest| rest.strip_prefix("/sa/"));
        is_ours && account.is_some_and(|account| account.is_empty() || account == id.service_account().as_str())
    }

    /// The lifetime that a request may have.
    fn ttl(&self, asked: &Asked) -> Result<Duration, Denied> {
        ttl_within(self.max_ttl.min(Profile::Leaf.max_lifetime()), self.default_ttl, asked)
    }
}

/// The requested lifetime, at most `longest`; without a request the default.
fn ttl_within(longest: Duration, default: Duration, asked: &Asked) -> Result<Duration, Denied> {
    let seconds = match u64::try_from(asked.validity_seconds) {
        Ok(0) | Err(_) => return Ok(default.min(longest)),
        Ok(seconds) => seconds,
    };
    let ttl = Duration::from_secs(seconds);
    if ttl > longest { Err(Denied::TtlTooLong { asked: seconds, longest: longest.as_secs() }) } else { Ok(ttl) }
}

/// A string of the metadata; pilot-agent sends an empty one for none (ISTIO: security/pkg/nodeagent/caclient).
fn named(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Shortens untrusted text for use in a message.
fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    text.chars().take(SHOWN_MAX).collect()
}

/// The names of a certificate without duplicates: at least one, and a SPIFFE ID only alone (SPIFFE X.509-SVID, section
/// 2).
fn some_names(names: impl Iterator<Item = Name>, none: Denied) -> Result<Vec<Name>, Denied> {
    let mut once = Vec::new();
    for name in names {
        if !once.contains(&name) {
            once.push(name);
        }
    }
    let identities = once.iter().filter(|name| matches!(name, Name::Spiffe(_))).count();
    match once.len() {
        0 => Err(none),
        _ if identities > 1 => Err(Denied::SeveralIdentities),
        count if identities == 1 && count > 1 => Err(Denied::MixedNames),
        count if count > NAMES_MAX => Err(Denied::TooManyNames(count)),
        _ => Ok(once),
    }
}

/// Whether a granted name is the requested one; DNS names are case-insensitive (RFC 5280, section 7.2).
fn is(granted: &Name, asked: &RequestedName) -> bool {
    match (granted, asked) {
        (Name::Dns(granted), RequestedName::Dns(asked)) => granted.as_str().eq_ignore_ascii_case(asked),
        (Name::Ip(granted), RequestedName::Ip(asked)) => granted == asked,
        (Name::Spiffe(granted), RequestedName::Uri(asked)) => granted.to_string() == *asked,
        (Name::Dns(_) | Name::Ip(_) | Name::Spiffe(_), _) => false,
    }
}

/// From two minutes ago (not before the CA certificate's notBefore) to the end of the lifetime (not after the earliest
/// notAfter in the CA's chain), in whole seconds. A certificate is valid through the second of its notAfter (RFC 5280,
/// section 4.1.2.5), including the CA's.
fn validity(ttl: Ttl, issuer: &Issuer, now: SystemTime) -> Result<(SystemTime, SystemTime), Denied> {
    let since = now.duration_since(UNIX_EPOCH).map_err(|_| Denied::IssuerNotYetValid)?;
    let now = UNIX_EPOCH + Duration::from_secs(since.as_secs());
    if now < issuer.not_before() {
        return Err(Denied::IssuerNotYetValid);
    }
    if now > issuer.not_after() {
        return Err(Denied::IssuerExpired);
    }
    let not_before = now.checked_sub(CLOCK_SKEW).map_or(issuer.not_before(), |early| early.max(issuer.not_before()));
    let (start, ttl, total) = match ttl {
        Ttl::FromNow(ttl) => (now, ttl, false),
        Ttl::Total(ttl) => (not_before, ttl, true),
    };
    let whole = Duration::from_secs(ttl.as_secs());
    let not_after = start.checked_add(whole).map_or(issuer.not_after(), |late| late.min(issuer.not_after()));
    // Only if the CA certificate begins and ends within this second.
    if not_after <= not_before {
        return Err(Denied::IssuerExpired);
    }
    if total && not_after.duration_since(not_before).is_ok_and(|lifetime| lifetime < POD_LIFETIME_MIN) {
        return Err(Denied::PodLifetime);
    }
    Ok((not_before, not_after))
}
