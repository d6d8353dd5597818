//! What `[kubernetes]` means for policy, and for what the token hosts sign.

use std::time::Duration;

use super::Config;
use crate::{
    kubernetes::settings::{Cluster, IstiodCertificate},
    policy::{ClusterRules, IntermediateRules, RequesterRules, Rules, Scope, ServerRules, SignerRules, WorkloadRules},
};
use pki::identity::{DnsName, Name};

impl Config {
    /// The rules of policy.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            default_ttl: self.ca.default_ttl,
            max_ttl: self.ca.max_ttl,
            trust_domains: self.ca.trust_domains.clone(),
            cert_signers: self.ca.cert_signers.clone(),
            serving_dns_names: self.serving.dns_names.clone(),
            serving_ip_addresses: self.serving.ip_addresses.clone(),
            serving_ttl: self.serving.ttl,
            clusters: self.clusters().filter_map(|cluster| self.cluster_rules(cluster)).collect(),
        }
    }

    /// None where no trust domain is known, which the check of the configuration refuses.
    fn cluster_rules(&self, cluster: &Cluster) -> Option<ClusterRules> {
        let istiod =
            cluster.istiod_certificate.as_ref().map(|istiod| ServerRules { names: istiod.names(), ttl: istiod.ttl });
        let intermediate = cluster
            .intermediate
            .as_ref()
            .map(|it| IntermediateRules { organization: it.organization.clone(), ttl: it.ttl });
        let workload_secrets = cluster
            .workload_secrets
            .as_ref()
            .map(|secrets| WorkloadRules { namespaces: secrets.namespaces.clone(), ttl: secrets.ttl });
        let signers = cluster.signers.iter().map(|signer| SignerRules {
            name: signer.name.clone(),
            requesters: signer
                .requesters
                .iter()
                .map(|it| RequesterRules { username: it.username.clone(), may: it.may.clone() })
                .collect(),
        });
        Some(ClusterRules {
            cluster: cluster.name.clone(),
            trust_domain: cluster.trust_domain.as_ref().or(self.ca.trust_domains.first())?.clone(),
            istiod,
            intermediate,
            workload_secrets,
            signers: signers.collect(),
        })
    }

    /// The names of servers that certificates for clusters carry.
    pub(super) fn cluster_names(&self) -> Vec<Name> {
        let istiod = self.clusters().filter_map(|cluster| cluster.istiod_certificate.as_ref());
        let listed = self.clusters().flat_map(|cluster| &cluster.signers).flat_map(|signer| &signer.requesters);
        let listed = listed.filter_map(|requester| match &requester.may {
            Scope::DnsNames(names) => Some(names.iter().cloned().map(Name::Dns)),
            Scope::AnyWorkload { .. } | Scope::Itself => None,
        });
        istiod.flat_map(IstiodCertificate::names).chain(listed.flatten()).collect()
    }

    /// The longest life of a certificate for a cluster.
    pub(super) fn cluster_ttl(&self) -> Duration {
        let ttls = self.clusters().flat_map(|cluster| {
            let istiod = cluster.istiod_certificate.as_ref().map(|it| it.ttl);
            let intermediate = cluster.intermediate.as_ref().map(|it| it.ttl);
            let secrets = cluster.workload_secrets.as_ref().map(|it| it.ttl);
            istiod.into_iter().chain(intermediate).chain(secrets)
        });
        ttls.max().unwrap_or_default()
    }

    fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.kubernetes.iter().flat_map(|settings| &settings.clusters)
    }
}

/// The DNS names of a list, and its addresses.
pub(super) fn split(names: Vec<Name>) -> (Vec<DnsName>, Vec<std::net::IpAddr>) {
    let (mut dns, mut ip) = (Vec::new(), Vec::new());
    for name in names {
        match name {
            Name::Dns(name) if !dns.contains(&name) => dns.push(name),
            Name::Ip(address) if !ip.contains(&address) => ip.push(address),
            Name::Dns(_) | Name::Ip(_) | Name::Spiffe(_) => {}
        }
    }
    (dns, ip)
}
