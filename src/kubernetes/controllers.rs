//! The controllers. Each module has everything about one controller: its section of the configuration with its defaults
//! and checks, the permissions it needs, the certificates it may obtain, and its reconcile function.
//!
//! To add a controller: write its module, add its section to [`super::settings::Cluster`] with its entry in
//! [`super::settings::Cluster::controllers`], and describe it in docs/KUBERNETES.md and the chart.

pub mod certificate_requests;
mod certificate_signer;
pub mod checkpoints;
pub mod cluster_trust_bundle;
mod corrections;
pub mod crl_configmap;
pub mod csr_signer;
mod in_every_namespace;
pub mod intermediate;
pub mod istiod_certificate;
pub mod pod_certificates;
mod request_loop;
mod request_signer;
pub mod root_configmap;
pub mod workload_secrets;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use pki::{
    Issuer,
    identity::{Namespace, ServiceAccount, TrustDomain},
};

use super::{Cluster, permissions::Permission, served::Interface};
use crate::{
    issue::CertificateAuthority,
    policy::{ControllerRules, PodSignerRules, ProfileRules, SignerRules},
};

/// A configured controller. It runs in the leader only.
pub trait Controller: Send + Sync {
    /// The name in logs, metrics and readiness.
    fn name(&self) -> &'static str;

    /// The mistakes in its section of the configuration.
    fn check(&self, limits: &Limits<'_>) -> Vec<Mistake>;

    /// Why the controller cannot work with the CA in use; `None` if it can.
    fn issuer_problem(&self, _issuer: &Issuer) -> Option<IssuerProblem> {
        None
    }

    /// The interface that not every API server serves, if it needs one.
    fn interface(&self) -> Option<Interface> {
        None
    }

    /// The permissions it needs in its cluster.
    fn permissions(&self) -> Vec<Permission>;

    /// The certificates that policy grants.
    fn grants(&self) -> Grants;

    /// Runs it until dropped.
    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()>;
}

/// The certificates that a controller may obtain.
#[derive(Debug)]
pub enum Grants {
    /// None.
    Nothing,
    /// Certificates for itself.
    Controller(ControllerRules),
    /// Certificates for the requesters of CertificateSigningRequests.
    Requesters(Vec<SignerRules>),
    /// Certificates for the pods of PodCertificateRequests.
    Pods(Vec<PodSignerRules>),
    /// Certificates for the requesters of cert-manager's CertificateRequests.
    Profiles(Vec<ProfileRules>),
}

/// Settings of other sections that limit what a controller may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// `[ca] trust_domains`.
    pub trust_domains: &'a [TrustDomain],
    /// `[ca] max_ttl`.
    pub max_ttl: Duration,
    /// `[token_host] allow_intermediate`.
    pub allow_intermediate: bool,
}

/// A mistake in a section of the configuration.
#[derive(Debug)]
pub struct Mistake {
    /// The section, with the key if one is wrong.
    pub place: String,
    /// What is wrong and how to fix it.
    pub problem: String,
}

/// Why a controller cannot work with the CA in use.
#[derive(Debug)]
pub struct IssuerProblem {
    /// The cause.
    pub cause: &'static str,
    /// How to fix it.
    pub remedy: &'static str,
}

impl IssuerProblem {
    /// The CA's certificate permits no CA below it.
    const PATH_LENGTH: Self = Self {
        cause: "the path length of the CA's certificate, or of one above it, forbids a CA below it, as in the \
                certificates of Istio's own tools",
        remedy: "have a certificate issued with a path length of 1 or more, or none; or leave the section out",
    };
}

/// Collects the mistakes in one section.
struct Mistakes(Vec<Mistake>);

impl Mistakes {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Mistake { place: place.into(), problem: problem.into() });
    }

    /// Checks the name of a Secret or a ConfigMap: an RFC 1123 subdomain, as a service account's is.
    fn check_object_name(&mut self, place: &str, name: &str) {
        if name.parse::<ServiceAccount>().is_err() {
            self.add(place, format!("{name:?} is not a valid object name"));
        }
    }

    fn check_ttl(&mut self, place: &str, ttl: Duration) {
        if ttl < Duration::from_secs(3600) {
            self.add(place, "is shorter than an hour; certificates are renewed at half of it");
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// istiod's namespace by default.
#[expect(clippy::expect_used, reason = "a constant, which the tests parse")]
fn istio_system() -> Namespace {
    "istio-system".parse().expect("BUG: a namespace")
}

/// The problem of a trust domain in which the CA does not issue.
pub(crate) fn foreign_trust_domain(domain: &TrustDomain) -> String {
    format!("{domain} is not in [ca] trust_domains; add it there, since this CA issues in no other")
}
