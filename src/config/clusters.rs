//! The rules of policy, and the token hosts' limits that follow from `[kubernetes]`.

use std::time::Duration;

use super::Config;
use crate::policy::{ClusterRules, ProfileRules, Rules};
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
            clusters: self.cluster_rules().collect(),
        }
    }

    fn cluster_rules(&self) -> impl Iterator<Item = ClusterRules> {
        let clusters = self.kubernetes.iter().flat_map(|settings| &settings.clusters);
        clusters
            .zip(std::iter::repeat(self.ca.trust_domains.first()))
            .filter_map(|(cluster, ca)| Some(cluster.rules(ca?)))
    }

    /// The server names in certificates of clusters.
    pub(super) fn cluster_names(&self) -> Vec<Name> {
        self.cluster_rules().flat_map(|rules| rules.server_names()).collect()
    }

    /// Maximum lifetime of certificates for controllers, and of CA certificates for requesters.
    pub(super) fn cluster_ttl(&self) -> Duration {
        let longest = |rules: ClusterRules| {
            let of_profiles = rules.profiles.iter().map(ProfileRules::longest_ca);
            rules.controllers.iter().map(|rules| rules.ttl).chain(of_profiles).max()
        };
        self.cluster_rules().filter_map(longest).max().unwrap_or_default()
    }
}

/// Splits names into DNS names and IP addresses.
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
