//! What is granted in Kubernetes clusters: to the controllers, and to who asks by a CertificateSigningRequest.

use std::time::Duration;

use serde::Deserialize;

use super::{Allowed, Denied, Rules, shortened, some_names};
use crate::auth::{ClusterName, Controller};
use pki::{
    Issuer, Profile, VerifiedCsr,
    csr::RequestedName,
    identity::{DnsName, Name, Namespace, ServiceAccount, SpiffeId, TrustDomain},
};

/// What a service account's user name begins with (Kubernetes: apiserver, serviceaccount.MakeUsername).
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What is granted in one cluster. What is absent is granted to nobody.
#[derive(Clone, Debug)]
pub struct ClusterRules {
    /// The cluster.
    pub cluster: ClusterName,
    /// The trust domain of its service accounts.
    pub trust_domain: TrustDomain,
    /// istiod's serving certificate.
    pub istiod: Option<ServerRules>,
    /// istiod's short-lived CA.
    pub intermediate: Option<IntermediateRules>,
    /// Certificates for service accounts.
    pub workload_secrets: Option<WorkloadRules>,
    /// Who may ask by CertificateSigningRequests.
    pub signers: Vec<SignerRules>,
}

/// A server's certificate.
#[derive(Clone, Debug)]
pub struct ServerRules {
    /// Its names, none of them a workload's.
    pub names: Vec<Name>,
    /// Its lifetime.
    pub ttl: Duration,
}

/// An intermediate CA of path length 0.
#[derive(Clone, Debug)]
pub struct IntermediateRules {
    /// The subject's organization.
    pub organization: String,
    /// Its lifetime.
    pub ttl: Duration,
}

/// Certificates for service accounts, as Secrets.
#[derive(Clone, Debug)]
pub struct WorkloadRules {
    /// The service accounts' namespaces.
    pub namespaces: Vec<Namespace>,
    /// The lifetime.
    pub ttl: Duration,
}

/// One `signerName`.
#[derive(Clone, Debug)]
pub struct SignerRules {
    /// The name.
    pub name: String,
    /// Who may ask; the same user name may stand there more than once.
    pub requesters: Vec<RequesterRules>,
}

/// One who may ask a signer.
#[derive(Clone, Debug)]
pub struct RequesterRules {
    /// `spec.username`.
    pub username: String,
    /// For what.
    pub may: Scope,
}

/// What a requester may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scope {
    /// The identity of the service account that its user name says.
    Itself,
    /// Any workload of one trust domain: the requester is then as good as the CA.
    AnyWorkload {
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// These DNS names.
    DnsNames(Vec<DnsName>),
}

impl Rules {
    /// What a controller may have. Nothing of it comes from a request.
    pub(super) fn controller(
        &self,
        cluster: &ClusterName,
        controller: &Controller,
        issuer: &Issuer,
    ) -> Result<Allowed, Denied> {
        let rules = self.cluster(cluster)?;
        match controller {
            Controller::Intermediate => {
                let rules = rules.intermediate.as_ref().ok_or(Denied::NotConfigured("an intermediate"))?;
                if !issuer.has_room_for_intermediate() {
                    return Err(Denied::IntermediatePath);
                }
                if issuer.is_organization(&rules.organization) {
                    return Err(Denied::IntermediateName(rules.organization.clone()));
                }
                let profile = Profile::Intermediate { organization: rules.organization.clone() };
                Ok(Allowed { profile, names: Vec::new(), ttl: rules.ttl })
            }
            Controller::IstiodCertificate => {
                let rules = rules.istiod.as_ref().ok_or(Denied::NotConfigured("istiod's certificate"))?;
                let servers = rules.names.iter().filter(|name| !matches!(name, Name::Spiffe(_))).cloned();
                Ok(Allowed::leaf(some_names(servers, Denied::NoNames)?, rules.ttl))
            }
            Controller::WorkloadSecret(id) => {
                let secrets = rules.workload_secrets.as_ref().ok_or(Denied::NotConfigured("workload secrets"))?;
                if *id.trust_domain() != rules.trust_domain {
                    return Err(Denied::TrustDomain(id.trust_domain().clone()));
                }
                if !secrets.namespaces.contains(id.namespace()) {
                    return Err(Denied::Namespace(id.namespace().clone()));
                }
                let name = Name::Spiffe(id.clone());
                self.in_trust_domain(&name)?;
                Ok(Allowed::leaf(vec![name], secrets.ttl))
            }
        }
    }

    /// The names that somebody may have by a CertificateSigningRequest: those asked for, if one entry of the list
    /// allows all of them.
    pub(super) fn requested_names(
        &self,
        cluster: &ClusterName,
        signer: &str,
        username: &str,
        csr: &VerifiedCsr,
    ) -> Result<Vec<Name>, Denied> {
        let rules = self.cluster(cluster)?;
        let signer_rules =
            rules.signers.iter().find(|rules| rules.name == signer).ok_or(Denied::NotConfigured("the signer"))?;
        let stranger = || Denied::Requester { signer: signer.to_owned(), username: shortened(username) };
        let mut refusal = None;
        for requester in signer_rules.requesters.iter().filter(|requester| requester.username == username) {
            match self.names_in(&requester.may, rules, username, csr) {
                Ok(names) => return Ok(names),
                Err(denied) => refusal = refusal.or(Some(denied)),
            }
        }
        Err(refusal.unwrap_or_else(stranger))
    }

    fn names_in(
        &self,
        scope: &Scope,
        rules: &ClusterRules,
        username: &str,
        csr: &VerifiedCsr,
    ) -> Result<Vec<Name>, Denied> {
        match scope {
            Scope::Itself => {
                let own = service_account(username, &rules.trust_domain);
                let own = Name::Spiffe(own.ok_or_else(|| Denied::NotAServiceAccount(shortened(username)))?);
                self.in_trust_domain(&own)?;
                if let Some(foreign) = csr.names().iter().find(|asked| !super::is(&own, asked)) {
                    return Err(Denied::ForeignName(foreign.to_string()));
                }
                Ok(vec![own])
            }
            Scope::AnyWorkload { trust_domain } => {
                let names = csr.names().iter().map(|asked| match asked {
                    RequestedName::Uri(uri) => match uri.parse::<SpiffeId>() {
                        Ok(id) if id.trust_domain() == trust_domain => Ok(Name::Spiffe(id)),
                        Ok(_) | Err(_) => Err(Denied::ForeignName(asked.to_string())),
                    },
                    RequestedName::Dns(_) | RequestedName::Ip(_) | RequestedName::Other(_) => {
                        Err(Denied::ForeignName(asked.to_string()))
                    }
                });
                let names = names.collect::<Result<Vec<_>, _>>()?;
                names.iter().try_for_each(|name| self.in_trust_domain(name))?;
                some_names(names.into_iter(), Denied::NoNames)
            }
            Scope::DnsNames(listed) => {
                let names = csr.names().iter().map(|asked| {
                    let granted = listed.iter().cloned().map(Name::Dns).find(|listed| super::is(listed, asked));
                    granted.ok_or_else(|| Denied::ForeignName(asked.to_string()))
                });
                some_names(names.collect::<Result<Vec<_>, _>>()?.into_iter(), Denied::NoNames)
            }
        }
    }

    fn cluster(&self, name: &ClusterName) -> Result<&ClusterRules, Denied> {
        self.clusters.iter().find(|rules| rules.cluster == *name).ok_or(Denied::NotConfigured("anything"))
    }
}

/// The identity of a service account by its user name.
fn service_account(username: &str, trust_domain: &TrustDomain) -> Option<SpiffeId> {
    let (namespace, account) = username.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    let (namespace, account): (Namespace, ServiceAccount) = (namespace.parse().ok()?, account.parse().ok()?);
    Some(SpiffeId::new(trust_domain.clone(), namespace, account))
}
