//! The part `[kubernetes]` of the configuration.

mod defaults;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    auth::{ClusterName, jwt::settings::IssuerName},
    policy::Scope,
};
use pki::identity::{DnsName, Name, Namespace, ServiceAccount, TrustDomain};

/// `[kubernetes]`: absent, no API server is asked anything.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The daemon's own namespace, for its Lease. Left out, that of the pod's service account.
    #[serde(default)]
    pub namespace: Option<Namespace>,
    /// The name by which this replica holds the Lease. Left out, the host name, which is the pod's name.
    #[serde(default)]
    pub identity: Option<String>,
    /// The Lease by which one replica's controllers lead. It stands in the first cluster.
    #[serde(default = "Settings::lease")]
    pub lease: String,
    /// `[[kubernetes.cluster]]`: the clusters.
    #[serde(default, rename = "cluster")]
    pub clusters: Vec<Cluster>,
    /// `[kubernetes.checkpoints]`: copies of the issuance log's checkpoints, in the first cluster.
    #[serde(default)]
    pub checkpoints: Option<Checkpoints>,
}

/// `[[kubernetes.cluster]]`: one API server, and what is done there. What is left out is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster ID: the `clusterid` that its callers name.
    #[serde(default)]
    pub name: ClusterName,
    /// How the API server is reached. Left out, by the pod's own service account.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The trust domain of its workloads. Left out, the first of `[ca] trust_domains`.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// Workloads are authenticated by the API server.
    #[serde(default)]
    pub token_review: Option<TokenReview>,
    /// ztunnel may ask for the workloads of its own node.
    #[serde(default)]
    pub node_impersonation: Option<NodeImpersonation>,
    /// The roots are written into every namespace.
    #[serde(default)]
    pub root_configmap: Option<RootConfigMap>,
    /// istiod's serving certificate is written as a Secret.
    #[serde(default)]
    pub istiod_certificate: Option<IstiodCertificate>,
    /// `[[kubernetes.cluster.signer]]`: CertificateSigningRequests are signed.
    #[serde(default, rename = "signer")]
    pub signers: Vec<CsrSigner>,
    /// istiod gets a short-lived CA of its own.
    #[serde(default)]
    pub intermediate: Option<Intermediate>,
    /// Each service account gets a Secret with key and certificate.
    #[serde(default)]
    pub workload_secrets: Option<WorkloadSecrets>,
}

/// `[kubernetes.cluster.token_review]` (ISTIO: security/pkg/k8s/tokenreview/k8sauthn.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReview {
    /// The issuers (`iss`) whose tokens this API server judges, and which no other gets to see.
    pub issuers: Vec<IssuerName>,
    /// The audiences of which a token must have one. Istio: TOKEN_AUDIENCES, `istio-ca`.
    #[serde(default = "TokenReview::audiences")]
    pub audiences: Vec<String>,
    /// The namespaces whose workloads may have certificates; empty means all.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// How long an answer is believed; never past the token's own end.
    #[serde(default = "TokenReview::cache", with = "humantime_serde")]
    pub cache: Duration,
    /// How long the API server may take to answer.
    #[serde(default = "TokenReview::timeout", with = "humantime_serde")]
    pub timeout: Duration,
}

/// `[kubernetes.cluster.node_impersonation]` (ISTIO: security/pkg/server/ca/node_auth.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeImpersonation {
    /// The accounts that may, as `namespace/service-account`. Istio: CA_TRUSTED_NODE_ACCOUNTS, `istio-system/ztunnel`.
    #[serde(default = "NodeImpersonation::trusted_accounts")]
    pub trusted_accounts: Vec<Account>,
}

/// A service account with its namespace, written `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Account {
    /// The namespace.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ServiceAccount,
}

/// `[kubernetes.cluster.root_configmap]` (ISTIO: pilot/pkg/bootstrap/namespacecontroller.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RootConfigMap {
    /// The ConfigMap's name; its key is `root-cert.pem`, its label `istio.io/config: "true"`.
    pub name: String,
    /// A label selector of the namespaces that get it; empty means all.
    pub namespace_selector: String,
    /// Namespaces that never get it. Istio leaves out the same ones.
    pub ignored_namespaces: Vec<Namespace>,
}

/// `[kubernetes.cluster.istiod_certificate]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IstiodCertificate {
    /// The Secret: tls.crt, tls.key, ca.crt.
    pub secret: String,
    /// istiod's namespace. Left out, istio-system.
    pub namespace: Option<Namespace>,
    /// istiod's revisions; `default` is the one without a name.
    pub revisions: Vec<String>,
    /// Further DNS names.
    pub dns_names: Vec<DnsName>,
    /// Further addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Its lifetime; it is renewed at half of it.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

/// `[[kubernetes.cluster.signer]]`: a signer of certificates.k8s.io/v1.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsrSigner {
    /// The `signerName`, `domain/path`.
    pub name: String,
    /// Who may ask; nobody by default.
    #[serde(default, rename = "requester")]
    pub requesters: Vec<Requester>,
    /// Whether the root stands at the end of `status.certificate`, where istiod looks for it unless
    /// `meshConfig.caCertificates` names it (ISTIO: security/pkg/pki/ra/k8s_ra.go).
    #[serde(default = "CsrSigner::yes")]
    pub include_root: bool,
}

/// `[[kubernetes.cluster.signer.requester]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requester {
    /// `spec.username`, which the API server stamps.
    pub username: String,
    /// What it may ask for.
    pub may: Scope,
}

/// `[kubernetes.cluster.intermediate]`: istiod stays the CA, with a key that lives for days.
///
/// Such a CA can speak for the whole trust domain; it carries no name constraint, since rustls-webpki refuses every
/// URI name under one, which breaks ztunnel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Intermediate {
    /// istiod's namespace. Left out, istio-system.
    pub namespace: Option<Namespace>,
    /// The Secret, in Istio's form: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem.
    pub secret: String,
    /// The subject's organization.
    pub organization: String,
    /// Its lifetime; it is renewed at half of it.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

/// `[kubernetes.cluster.workload_secrets]`: as Istio did it until 1.5. Puts private keys into Secrets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSecrets {
    /// The namespaces: none by default, and never all.
    pub namespaces: Vec<Namespace>,
    /// The certificates' lifetime; renewed at half of it.
    #[serde(default = "WorkloadSecrets::ttl", with = "humantime_serde")]
    pub ttl: Duration,
}

/// `[kubernetes.checkpoints]`: the newest checkpoint of each replica, in a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// The ConfigMap's name, in the daemon's namespace; each replica has a key of its own in it.
    pub configmap: String,
    /// Labels for it.
    pub labels: BTreeMap<String, String>,
}

impl Settings {
    /// Whether anything is configured that one replica does for all.
    #[must_use]
    pub fn needs_leader(&self) -> bool {
        self.clusters.iter().any(|cluster| {
            cluster.root_configmap.is_some()
                || cluster.istiod_certificate.is_some()
                || !cluster.signers.is_empty()
                || cluster.intermediate.is_some()
                || cluster.workload_secrets.is_some()
        })
    }
}

impl TryFrom<String> for Account {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no account; write namespace/service-account");
        let (namespace, service_account) = text.split_once('/').ok_or_else(wrong)?;
        Ok(Self {
            namespace: namespace.parse().map_err(|_| wrong())?,
            service_account: service_account.parse().map_err(|_| wrong())?,
        })
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

impl IstiodCertificate {
    /// istiod's namespace.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        self.namespace.clone().unwrap_or_else(istio_system)
    }

    /// The names by which proxies, webhooks and other clusters call istiod (ISTIO: pilot/pkg/bootstrap/server.go,
    /// getDNSNames), each once.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        let namespace = self.namespace();
        let services = self.revisions.iter().map(|revision| match revision.as_str() {
            "" | "default" => "istiod".to_owned(),
            revision => format!("istiod-{revision}"),
        });
        let services = services.chain(["istiod-remote".to_owned(), "istio-pilot".to_owned()]);
        let dns = services.filter_map(|service| format!("{service}.{namespace}.svc").parse().ok());
        let all = dns.chain(self.dns_names.iter().cloned()).map(Name::Dns);
        let mut names = Vec::new();
        for name in all.chain(self.ip_addresses.iter().copied().map(Name::Ip)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl Intermediate {
    /// istiod's namespace.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        self.namespace.clone().unwrap_or_else(istio_system)
    }
}

/// Where istiod is by default.
#[expect(clippy::expect_used, reason = "a constant, which the tests parse")]
fn istio_system() -> Namespace {
    "istio-system".parse().expect("BUG: a namespace")
}
