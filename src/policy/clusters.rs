//! Rules for Kubernetes clusters: for the controllers, for requesters of CertificateSigningRequests, and for pods.

use std::time::Duration;

use serde::Deserialize;

use super::{Allowed, Asked, Denied, POD_LIFETIME_MIN, ProfileRules, Rules, Ttl, shortened, some_names};
use crate::auth::ClusterName;
use pki::{
    Issuer, Profile, VerifiedCsr,
    csr::RequestedName,
    identity::{DnsName, Name, Namespace, ServiceAccount, SpiffeId, TrustDomain},
};

/// The prefix of a service account's user name (Kubernetes: apiserver, serviceaccount.MakeUsername).
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What is granted in one cluster.
#[derive(Clone, Debug)]
pub struct ClusterRules {
    /// The cluster.
    pub cluster: ClusterName,
    /// The trust domain of its service accounts.
    pub trust_domain: TrustDomain,
    /// The controllers that may obtain certificates.
    pub controllers: Vec<ControllerRules>,
    /// The signers of CertificateSigningRequests.
    pub signers: Vec<SignerRules>,
    /// The signers of PodCertificateRequests.
    pub pod_signers: Vec<PodSignerRules>,
    /// The profiles of cert-manager's CertificateRequests.
    pub profiles: Vec<ProfileRules>,
}

/// What one controller may obtain.
#[derive(Clone, Debug)]
pub struct ControllerRules {
    /// The controller's name as a caller.
    pub controller: &'static str,
    /// The kind of certificate.
    pub grant: ControllerGrant,
    /// The lifetime.
    pub ttl: Duration,
}

/// The kind of certificate that a controller may obtain.
#[derive(Clone, Debug)]
pub enum ControllerGrant {
    /// A server certificate with these names. SPIFFE IDs among them are not granted.
    Server {
        /// DNS names and IP addresses.
        names: Vec<Name>,
    },
    /// An intermediate CA of path length 0.
    Intermediate {
        /// The organization in the subject.
        organization: String,
    },
    /// Certificates for service accounts.
    Workload {
        /// Their namespaces.
        namespaces: Vec<Namespace>,
    },
}

/// One `signerName`.
#[derive(Clone, Debug)]
pub struct SignerRules {
    /// The name.
    pub name: String,
    /// The permitted requesters. A user name can have several entries.
    pub requesters: Vec<RequesterRules>,
}

/// `[[kubernetes.cluster.signer.requester]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequesterRules {
    /// `spec.username`, which the API server sets.
    pub username: String,
    /// The names it may obtain.
    pub may: Scope,
}

/// One `signerName` of PodCertificateRequests.
#[derive(Clone, Debug)]
pub struct PodSignerRules {
    /// The name.
    pub name: String,
    /// Maximum lifetime.
    pub ttl: Duration,
    /// The namespaces whose pods are served; empty means all.
    pub namespaces: Vec<Namespace>,
    /// If empty, certificates have the SPIFFE ID of the pod's service account; otherwise the DNS names of Services.
    pub services: Vec<PodServiceRules>,
}

/// The Services whose DNS names the pods of one service account may obtain.
#[derive(Clone, Debug)]
pub struct PodServiceRules {
    /// Namespace of the service account and of the Services.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ServiceAccount,
    /// Each Service's name with its DNS names.
    pub names: Vec<(String, Vec<DnsName>)>,
}

impl ClusterRules {
    /// The names of servers that may be in certificates.
    pub fn server_names(&self) -> Vec<Name> {
        let of_controllers = self.controllers.iter().filter_map(|rules| match &rules.grant {
            ControllerGrant::Server { names } => Some(names.clone()),
            ControllerGrant::Intermediate { .. } | ControllerGrant::Workload { .. } => None,
        });
        let requesters = self.signers.iter().flat_map(|signer| &signer.requesters);
        let of_requesters = requesters.filter_map(|requester| match &requester.may {
            Scope::DnsNames(names) => Some(names.iter().cloned().map(Name::Dns).collect()),
            Scope::AnyWorkload { .. } | Scope::Itself => None,
        });
        let services = self.pod_signers.iter().flat_map(|signer| &signer.services).flat_map(|rules| &rules.names);
        let of_services = services.map(|(_, names)| names.iter().cloned().map(Name::Dns).collect());
        let of_profiles = self.profiles.iter().flat_map(ProfileRules::server_names);
        of_controllers.chain(of_requesters).chain(of_services).flatten().chain(of_profiles).collect()
    }
}

/// The names that a requester may obtain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scope {
    /// The identity of the service account in its user name.
    Itself,
    /// Any workload of one trust domain, which makes the requester as powerful as the CA.
    AnyWorkload {
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// These DNS names.
    DnsNames(Vec<DnsName>),
}

impl Rules {
    /// What a controller may obtain. Nothing of it comes from a request. `subject` is the service account that the
    /// certificate is for, if it is for one.
    pub(super) fn controller(
        &self,
        cluster: &ClusterName,
        controller: &'static str,
        subject: Option<&SpiffeId>,
        issuer: &Issuer,
    ) -> Result<Allowed, Denied> {
        let rules = self.cluster(cluster)?;
        let granted = rules.controllers.iter().find(|granted| granted.controller == controller);
        let ControllerRules { grant, ttl, .. } = granted.ok_or(Denied::NotConfigured(controller))?;
        match (grant, subject) {
            (ControllerGrant::Intermediate { organization }, None) => {
                if !issuer.has_room_for_intermediate() {
                    return Err(Denied::IntermediatePath);
                }
                if issuer.is_organization(organization) {
                    return Err(Denied::IntermediateName(organization.clone()));
                }
                let profile = Profile::Intermediate { organization: organization.clone() };
                Ok(Allowed { profile, names: Vec::new(), ttl: Ttl::FromNow(*ttl) })
            }
            (ControllerGrant::Server { names }, None) => {
                let servers = names.iter().filter(|name| !matches!(name, Name::Spiffe(_))).cloned();
                Ok(Allowed::leaf(some_names(servers, Denied::NoNames)?, *ttl))
            }
            (ControllerGrant::Workload { namespaces }, Some(id)) => {
                if *id.trust_domain() != rules.trust_domain {
                    return Err(Denied::TrustDomain(id.trust_domain().clone()));
                }
                if !namespaces.contains(id.namespace()) {
                    return Err(Denied::Namespace(id.namespace().clone()));
                }
                let name = Name::Spiffe(id.clone());
                self.in_trust_domain(&name)?;
                Ok(Allowed::leaf(vec![name], *ttl))
            }
            (ControllerGrant::Workload { .. }, None) => Err(Denied::NoNames),
            (ControllerGrant::Intermediate { .. } | ControllerGrant::Server { .. }, Some(id)) => {
                Err(Denied::ForeignName(Name::Spiffe(id.clone()).to_string()))
            }
        }
    }

    /// The names that a requester may obtain by a CertificateSigningRequest: those requested, if a single entry for it
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
        let unlisted = || Denied::Requester { signer: signer.to_owned(), username: shortened(username) };
        let mut refusal = None;
        for requester in signer_rules.requesters.iter().filter(|requester| requester.username == username) {
            match self.names_in(&requester.may, rules, username, csr) {
                Ok(names) => return Ok(names),
                Err(denied) => refusal = refusal.or(Some(denied)),
            }
        }
        Err(refusal.unwrap_or_else(unlisted))
    }

    /// What a pod may obtain by a PodCertificateRequest: the identity of its service account, or the DNS names of those
    /// Services that are listed for its service account and select it. `services` narrows the listed ones only, since
    /// the authors of pods and Services decide which Services select a pod.
    pub(super) fn pod(
        &self,
        cluster: &ClusterName,
        signer: &str,
        account: &SpiffeId,
        services: &[String],
        asked: &Asked,
    ) -> Result<Allowed, Denied> {
        let rules = self.cluster(cluster)?;
        let signer =
            rules.pod_signers.iter().find(|rules| rules.name == signer).ok_or(Denied::NotConfigured("the signer"))?;
        if !signer.namespaces.is_empty() && !signer.namespaces.contains(account.namespace()) {
            return Err(Denied::Namespace(account.namespace().clone()));
        }
        if *account.trust_domain() != rules.trust_domain {
            return Err(Denied::TrustDomain(account.trust_domain().clone()));
        }
        let longest = u64::try_from(asked.validity_seconds).map(Duration::from_secs).unwrap_or_default();
        if longest < POD_LIFETIME_MIN {
            return Err(Denied::PodLifetimeAsked(asked.validity_seconds));
        }
        let ttl = Ttl::Total(longest.min(signer.ttl).min(self.max_ttl).min(Profile::Leaf.max_lifetime()));
        let names = if signer.services.is_empty() {
            let name = Name::Spiffe(account.clone());
            self.in_trust_domain(&name)?;
            vec![name]
        } else {
            let is_theirs = |rules: &&PodServiceRules| {
                rules.namespace == *account.namespace() && rules.service_account == *account.service_account()
            };
            let listed: Vec<_> = signer.services.iter().filter(is_theirs).flat_map(|rules| &rules.names).collect();
            if listed.is_empty() {
                return Err(Denied::NoServices { signer: signer.name.clone(), account: account.clone() });
            }
            let selecting = listed.iter().filter(|(service, _)| services.contains(service));
            let names = selecting.flat_map(|(_, names)| names).cloned().map(Name::Dns);
            some_names(names, Denied::NotSelected(account.clone()))?
        };
        Ok(Allowed { profile: Profile::Leaf, names, ttl })
    }

    pub(super) fn names_in(
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

    pub(super) fn cluster(&self, name: &ClusterName) -> Result<&ClusterRules, Denied> {
        self.clusters.iter().find(|rules| rules.cluster == *name).ok_or(Denied::NotConfigured("anything"))
    }
}

/// The identity of the service account with this user name.
fn service_account(username: &str, trust_domain: &TrustDomain) -> Option<SpiffeId> {
    let (namespace, account) = username.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    let (namespace, account): (Namespace, ServiceAccount) = (namespace.parse().ok()?, account.parse().ok()?);
    Some(SpiffeId::new(trust_domain.clone(), namespace, account))
}
