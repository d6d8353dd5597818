//! Rules for cert-manager's CertificateRequests: which requester in which namespace may obtain what.

use std::time::Duration;

use serde::Deserialize;

use super::{Allowed, Asked, Denied, Rules, Scope, Ttl, clusters::ClusterRules, shortened, some_names, ttl_within};
use crate::auth::CertificateRequester;
use pki::{
    Issuer, Profile, VerifiedCsr,
    csr::RequestedName,
    identity::{DnsName, Name, TrustDomain},
};

/// A profile, which an issuer selects.
#[derive(Clone, Debug)]
pub struct ProfileRules {
    /// The name.
    pub name: String,
    /// The rules. A certificate is issued if a single one of them allows all of it.
    pub rules: Vec<CertificateRules>,
}

/// `[[kubernetes.cluster.cert_manager.profile.rule]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRules {
    /// The namespaces of the CertificateRequests; `*` is all.
    pub namespaces: Vec<String>,
    /// `spec.username`, which cert-manager's webhook sets; any if absent.
    #[serde(default)]
    pub username: Option<String>,
    /// One of `spec.groups`, which cert-manager's webhook sets; any if absent.
    #[serde(default)]
    pub group: Option<String>,
    /// What the requester may obtain.
    pub may: CertificateScope,
    /// Maximum lifetime. Default: `[ca] max_ttl`; for CA certificates it is required.
    #[serde(default, with = "humantime_serde")]
    pub max_ttl: Option<Duration>,
}

/// What a requester may obtain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CertificateScope {
    /// The identity of the service account in its user name.
    Itself,
    /// The identity of any service account in the CertificateRequest's namespace.
    NamespaceWorkloads,
    /// Any workload of one trust domain, which makes the requester as powerful as the CA.
    AnyWorkload {
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// These DNS names.
    DnsNames(Vec<DnsName>),
    /// A CA certificate of path length 0, which makes the requester as powerful as the CA.
    Ca {
        /// The organization in the subject.
        organization: String,
        /// The DNS names that it may have.
        #[serde(default)]
        dns_names: Vec<DnsName>,
        /// URIs that a request may contain. The certificate does not contain them.
        #[serde(default)]
        ignored_uris: Vec<String>,
    },
}

impl CertificateScope {
    /// Whether it is for CA certificates.
    #[must_use]
    pub fn is_ca(&self) -> bool {
        matches!(self, Self::Ca { .. })
    }
}

impl ProfileRules {
    /// The names of servers and CAs that may be in certificates.
    pub(super) fn server_names(&self) -> Vec<Name> {
        let names = self.rules.iter().flat_map(|rule| match &rule.may {
            CertificateScope::DnsNames(names) | CertificateScope::Ca { dns_names: names, .. } => names.as_slice(),
            CertificateScope::Itself | CertificateScope::NamespaceWorkloads | CertificateScope::AnyWorkload { .. } => {
                &[]
            }
        });
        names.cloned().map(Name::Dns).collect()
    }

    /// Maximum lifetime of a CA certificate; zero if no rule allows one.
    #[must_use]
    pub fn longest_ca(&self) -> Duration {
        let of_cas = self.rules.iter().filter(|rule| rule.may.is_ca());
        of_cas.filter_map(|rule| rule.max_ttl).max().unwrap_or_default()
    }
}

impl CertificateRules {
    fn is_for(&self, requester: &CertificateRequester) -> bool {
        self.may.is_ca() == requester.is_ca
            && self.namespaces.iter().any(|namespace| namespace == "*" || *namespace == requester.namespace)
            && self.username.as_ref().is_none_or(|username| *username == requester.username)
            && self.group.as_ref().is_none_or(|group| requester.groups.contains(group))
    }
}

impl Rules {
    /// What the requester of a CertificateRequest may obtain: the names requested, if a single rule allows all of them.
    pub(super) fn certificate_request(
        &self,
        requester: &CertificateRequester,
        csr: &VerifiedCsr,
        asked: &Asked,
        issuer: &Issuer,
    ) -> Result<Allowed, Denied> {
        let cluster = self.cluster(&requester.cluster)?;
        let profile = cluster.profiles.iter().find(|profile| profile.name == requester.profile);
        let profile = profile.ok_or(Denied::NotConfigured("the profile"))?;
        let mut refusal = None;
        for rule in profile.rules.iter().filter(|rule| rule.is_for(requester)) {
            match self.allowed_by(rule, cluster, requester, csr, asked, issuer) {
                Ok(allowed) => return Ok(allowed),
                // A rule that allows the names says more about the request than one for other names.
                Err(denied @ Denied::TtlTooLong { .. }) => refusal = Some(denied),
                Err(denied) => refusal = refusal.or(Some(denied)),
            }
        }
        Err(refusal.unwrap_or_else(|| Denied::CertificateRequest {
            profile: requester.profile.clone(),
            namespace: requester.namespace.clone(),
            username: shortened(&requester.username),
            what: if requester.is_ca { "a CA certificate (isCA)" } else { "a certificate" },
        }))
    }

    fn allowed_by(
        &self,
        rule: &CertificateRules,
        cluster: &ClusterRules,
        requester: &CertificateRequester,
        csr: &VerifiedCsr,
        asked: &Asked,
        issuer: &Issuer,
    ) -> Result<Allowed, Denied> {
        let names = |scope| self.names_in(&scope, cluster, &requester.username, csr);
        let names = match &rule.may {
            CertificateScope::Itself => names(Scope::Itself)?,
            CertificateScope::AnyWorkload { trust_domain } => {
                names(Scope::AnyWorkload { trust_domain: trust_domain.clone() })?
            }
            CertificateScope::DnsNames(listed) => names(Scope::DnsNames(listed.clone()))?,
            CertificateScope::NamespaceWorkloads => {
                let names = names(Scope::AnyWorkload { trust_domain: cluster.trust_domain.clone() })?;
                let is_foreign =
                    |name: &&Name| !matches!(name, Name::Spiffe(id) if id.namespace().as_str() == requester.namespace);
                if let Some(foreign) = names.iter().find(is_foreign) {
                    return Err(Denied::ForeignName(foreign.to_string()));
                }
                names
            }
            CertificateScope::Ca { organization, dns_names, ignored_uris } => {
                if !issuer.has_room_for_intermediate() {
                    return Err(Denied::IntermediatePath);
                }
                if issuer.is_organization(organization) {
                    return Err(Denied::IntermediateName(organization.clone()));
                }
                let names = ca_names(csr, dns_names, ignored_uris)?;
                // Without a maximum, which the configuration requires, nothing is allowed.
                let longest = rule.max_ttl.unwrap_or_default();
                let ttl = ttl_within(longest, longest, asked)?;
                return Ok(Allowed {
                    profile: Profile::Intermediate { organization: organization.clone() },
                    names,
                    ttl: Ttl::FromNow(ttl),
                });
            }
        };
        let longest = self.max_ttl.min(Profile::Leaf.max_lifetime()).min(rule.max_ttl.unwrap_or(Duration::MAX));
        Ok(Allowed::leaf(names, ttl_within(longest, self.default_ttl, asked)?))
    }
}

/// The names of a CA certificate: the DNS names requested, if all are listed.
fn ca_names(csr: &VerifiedCsr, dns_names: &[DnsName], ignored_uris: &[String]) -> Result<Vec<Name>, Denied> {
    let mut names = Vec::new();
    for asked in csr.names() {
        let foreign = || Denied::ForeignName(asked.to_string());
        match asked {
            RequestedName::Uri(uri) if ignored_uris.contains(uri) => {}
            RequestedName::Dns(_) => {
                let listed = dns_names.iter().cloned().map(Name::Dns).find(|listed| super::is(listed, asked));
                names.push(listed.ok_or_else(foreign)?);
            }
            RequestedName::Ip(_) | RequestedName::Uri(_) | RequestedName::Other(_) => return Err(foreign()),
        }
    }
    if names.is_empty() { Ok(names) } else { some_names(names.into_iter(), Denied::NoNames) }
}
