//! What settings are where nothing is said. docs/KUBERNETES.md names each; a test holds the two together.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Account, Checkpoints, CsrSigner, Intermediate, IstiodCertificate, NodeImpersonation, RootConfigMap, Settings,
    TokenReview, WorkloadSecrets,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Settings {
    pub(super) fn lease() -> String {
        "istio-hsm-ca".to_owned()
    }
}

impl TokenReview {
    pub(super) fn audiences() -> Vec<String> {
        vec!["istio-ca".to_owned()]
    }

    pub(super) fn cache() -> Duration {
        Duration::from_secs(60)
    }

    pub(super) fn timeout() -> Duration {
        Duration::from_secs(5)
    }
}

impl NodeImpersonation {
    pub(super) fn trusted_accounts() -> Vec<Account> {
        Account::try_from("istio-system/ztunnel".to_owned()).into_iter().collect()
    }
}

impl Default for RootConfigMap {
    fn default() -> Self {
        let ignored = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
        Self {
            name: "istio-ca-root-cert".to_owned(),
            namespace_selector: String::new(),
            ignored_namespaces: ignored.iter().filter_map(|name| name.parse().ok()).collect(),
        }
    }
}

impl Default for IstiodCertificate {
    fn default() -> Self {
        Self {
            secret: "istiod-tls".to_owned(),
            namespace: None,
            revisions: vec!["default".to_owned()],
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            ttl: DAY,
        }
    }
}

impl CsrSigner {
    pub(super) fn yes() -> bool {
        true
    }
}

impl Default for Intermediate {
    /// The organization is not the trust domain, which is the name of the root that Istio makes for itself, and of
    /// `generate --self-signed`: a CA cannot have its own issuer's name.
    fn default() -> Self {
        Self { namespace: None, secret: "cacerts".to_owned(), organization: "istiod".to_owned(), ttl: 7 * DAY }
    }
}

impl WorkloadSecrets {
    pub(super) fn ttl() -> Duration {
        DAY
    }
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { configmap: "istio-hsm-ca-checkpoints".to_owned(), labels: BTreeMap::new() }
    }
}
