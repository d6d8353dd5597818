//! Authentication: turns credentials into a [`Caller`].
//!
//! The order is Istio's (`pilot/pkg/bootstrap/server.go`): client certificate, then JWT, which is verified with its
//! issuer's published keys or by the API server of its issuer's cluster. Without a valid credential, the request is
//! rejected. An authenticated caller may impersonate another identity if `node` permits it.
//!
//! This module never decides what a caller may obtain (`policy` does), and never reads a clock. The admin socket and
//! the daemon create their callers with [`Caller::operator`] and [`Caller::internal`].

pub mod authenticator;
pub mod client_certificate;
pub mod credential_cache;
pub mod credentials;
pub mod jwt;
pub mod node;
pub mod received;
pub mod token_review;

use std::{net::IpAddr, sync::Arc, time::Duration};

pub use authenticator::{AuthError, Authenticator, NotReady, Refusals, Settings, SetupError};
pub use client_certificate::accept_any::AcceptAny;
pub use credentials::{ClusterId, ClusterName, Credentials, bearer};

use audit_log::record::CallerField;
use pki::{Template, identity::SpiffeId};

/// The denylist for the issuance pipeline, which refuses what it names whatever proved the caller; by default, nothing is
/// denied. Clones share it, and see its reloads.
#[derive(Clone, Debug, Default)]
pub struct DenylistCheck(Option<Arc<client_certificate::ClientCertificates>>);

impl DenylistCheck {
    /// The entry that forbids a certificate to a caller, as text.
    #[must_use]
    pub fn denied(&self, caller: &Caller, certificate: &Template) -> Option<String> {
        let own = match caller.identity() {
            Identity::Workload(id) => Some(id),
            Identity::Controller { .. }
            | Identity::Internal(_)
            | Identity::Operator { .. }
            | Identity::Requester { .. }
            | Identity::CertificateRequester(_) => None,
            Identity::Pod { account, .. } => Some(account),
        };
        self.0.as_ref()?.denied(own, &certificate.names, &certificate.public_key)
    }
}

/// How a caller was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A CertificateRequest of cert-manager: its namespace, and `spec.username`, which cert-manager's webhook sets.
    CertificateRequest,
    /// `spec.username` of a Kubernetes CertificateSigningRequest, which is set by the API server.
    CertificateSigningRequest,
    /// An X.509 leaf of this CA, by mutual TLS.
    ClientCertificate,
    /// The daemon itself (serving certificate, controllers).
    Internal,
    /// A JWT verified with its issuer's published keys.
    Jwt,
    /// The operator, by the admin socket or by a command without the daemon.
    Operator,
    /// The spec of a Kubernetes PodCertificateRequest, which the API server has verified.
    PodCertificateRequest,
    /// A Kubernetes JWT, verified by the API server.
    TokenReview,
}

impl Method {
    /// The name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CertificateRequest => "certificate_request",
            Self::CertificateSigningRequest => "certificate_signing_request",
            Self::ClientCertificate => "client_certificate",
            Self::Internal => "internal",
            Self::Jwt => "jwt",
            Self::Operator => "operator",
            Self::PodCertificateRequest => "pod_certificate_request",
            Self::TokenReview => "token_review",
        }
    }
}

/// A part of the daemon as a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InternalCaller {
    /// The CRL.
    Crl,
    /// The endpoint's own TLS certificate.
    ServingCertificate,
}

/// The identity of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A controller in a cluster.
    Controller {
        /// The cluster.
        cluster: ClusterName,
        /// The controller's name.
        name: &'static str,
        /// The service account in the certificate, if it is for one.
        subject: Option<SpiffeId>,
    },
    /// A part of the daemon.
    Internal(InternalCaller),
    /// The operator, identified by the user ID of the admin socket's peer or of the command.
    Operator {
        /// The Unix user ID.
        uid: u32,
    },
    /// The requester of a Kubernetes CertificateSigningRequest.
    Requester {
        /// The cluster.
        cluster: ClusterName,
        /// `spec.signerName`.
        signer: Arc<str>,
        /// `spec.username`.
        username: Arc<str>,
    },
    /// A workload.
    Workload(SpiffeId),
    /// A pod with a Kubernetes PodCertificateRequest.
    Pod {
        /// The cluster.
        cluster: ClusterName,
        /// `spec.signerName`.
        signer: Arc<str>,
        /// The pod's service account.
        account: SpiffeId,
        /// The pod's name.
        name: Arc<str>,
        /// The Services in its namespace that select it.
        services: Arc<[String]>,
    },
    /// The requester of a CertificateRequest of cert-manager.
    CertificateRequester(Arc<CertificateRequester>),
}

/// The requester of a CertificateRequest of cert-manager.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateRequester {
    /// The cluster.
    pub cluster: ClusterName,
    /// The profile that the issuer selects.
    pub profile: String,
    /// The CertificateRequest's namespace.
    pub namespace: String,
    /// `spec.username`.
    pub username: String,
    /// `spec.groups`.
    pub groups: Vec<String>,
    /// `spec.isCA`.
    pub is_ca: bool,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Controller { cluster, name, subject } => {
                write!(f, "controller:{name}:cluster={cluster}")?;
                subject.iter().try_for_each(|id| write!(f, ":{id}"))
            }
            Self::Requester { cluster, signer, username } => {
                write!(f, "requester:cluster={cluster}:signer={signer}:username={}", username.escape_debug())
            }
            Self::Internal(InternalCaller::Crl) => f.write_str("internal:crl"),
            Self::Internal(InternalCaller::ServingCertificate) => f.write_str("internal:serving-certificate"),
            Self::Operator { uid } => write!(f, "operator:uid={uid}"),
            Self::Pod { cluster, signer, account, name, services: _ } => {
                write!(f, "pod:cluster={cluster}:signer={signer}:pod={}:{account}", name.escape_debug())
            }
            Self::Workload(id) => id.fmt(f),
            Self::CertificateRequester(requester) => {
                let CertificateRequester { cluster, profile, namespace, username, groups: _, is_ca } = &**requester;
                let kind = if *is_ca { "ca" } else { "leaf" };
                let username = username.escape_debug();
                write!(
                    f,
                    "cert-manager:cluster={cluster}:profile={profile}:{kind}:namespace={namespace}:username={username}"
                )
            }
        }
    }
}

/// The pod that a Kubernetes JWT is bound to, or that a PodCertificateRequest is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
}

/// An authenticated caller. Only this module constructs it.
#[derive(Clone, Debug)]
pub struct Caller {
    method: Method,
    identity: Identity,
    cluster: Option<ClusterName>,
    pod: Option<Arc<BoundPod>>,
    peer: Option<IpAddr>,
    node: Option<Arc<str>>,
    acts_for: Option<SpiffeId>,
}

impl From<&Caller> for CallerField {
    fn from(caller: &Caller) -> Self {
        Self {
            method: caller.method().as_str().to_owned(),
            identity: caller.identity().to_string(),
            peer: caller.peer(),
            node: caller.node().map(str::to_owned),
        }
    }
}

impl Caller {
    /// The operator of this machine; the user ID comes from the kernel (SO_PEERCRED or getuid).
    #[must_use]
    pub fn operator(uid: u32) -> Self {
        Self::plain(Method::Operator, Identity::Operator { uid })
    }

    /// A part of the daemon.
    #[must_use]
    pub fn internal(who: InternalCaller) -> Self {
        Self::plain(Method::Internal, Identity::Internal(who))
    }

    /// A controller of the daemon. `subject` is the service account in the certificate, if it is for one.
    #[must_use]
    pub fn controller(cluster: ClusterName, name: &'static str, subject: Option<SpiffeId>) -> Self {
        let identity = Identity::Controller { cluster: cluster.clone(), name, subject };
        Self { cluster: Some(cluster), ..Self::plain(Method::Internal, identity) }
    }

    /// The requester of a CertificateSigningRequest; `username` is set by the API server.
    #[must_use]
    pub fn requester(cluster: ClusterName, signer: &str, username: &str) -> Self {
        let identity =
            Identity::Requester { cluster: cluster.clone(), signer: signer.into(), username: username.into() };
        Self { cluster: Some(cluster), ..Self::plain(Method::CertificateSigningRequest, identity) }
    }

    /// A pod with a PodCertificateRequest; the API server has verified all of it but `services`, the Services in the
    /// pod's namespace that select it.
    #[must_use]
    pub fn pod_request(
        cluster: ClusterName,
        signer: &str,
        account: SpiffeId,
        pod: BoundPod,
        services: Vec<String>,
    ) -> Self {
        let identity = Identity::Pod {
            cluster: cluster.clone(),
            signer: signer.into(),
            account,
            name: pod.name.as_str().into(),
            services: services.into(),
        };
        let plain = Self::plain(Method::PodCertificateRequest, identity);
        Self { cluster: Some(cluster), pod: Some(Arc::new(pod)), ..plain }
    }

    /// The requester of a CertificateRequest of cert-manager.
    #[must_use]
    pub fn certificate_requester(requester: CertificateRequester) -> Self {
        let cluster = Some(requester.cluster.clone());
        let identity = Identity::CertificateRequester(Arc::new(requester));
        Self { cluster, ..Self::plain(Method::CertificateRequest, identity) }
    }

    /// A workload, for unit tests of modules that use callers.
    #[cfg(test)]
    pub(crate) fn workload(id: SpiffeId, method: Method) -> Self {
        Self::plain(method, Identity::Workload(id))
    }

    /// The same caller, permitted to impersonate another identity on its node.
    #[must_use]
    pub(crate) fn acting_for(self, id: SpiffeId, node: &str) -> Self {
        Self { acts_for: Some(id), node: Some(node.into()), ..self }
    }

    fn plain(method: Method, identity: Identity) -> Self {
        Self { method, identity, cluster: None, pod: None, peer: None, node: None, acts_for: None }
    }

    /// How the caller was authenticated.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Identity of the caller.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The caller's cluster, if its authentication method determines one.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_ref().map(ClusterName::as_str)
    }

    /// The pod that the caller's JWT is bound to or that a PodCertificateRequest is for, if any.
    #[must_use]
    pub fn pod(&self) -> Option<&BoundPod> {
        self.pod.as_deref()
    }

    /// The workload that the caller impersonates, if any.
    #[must_use]
    pub fn acts_for(&self) -> Option<&SpiffeId> {
        self.acts_for.as_ref()
    }

    /// The workload the request is for: the impersonated one, otherwise the caller.
    #[must_use]
    pub fn for_whom(&self) -> Option<&SpiffeId> {
        match (&self.acts_for, &self.identity) {
            (Some(id), _) | (None, Identity::Workload(id) | Identity::Pod { account: id, .. }) => Some(id),
            (
                None,
                Identity::Controller { .. }
                | Identity::Internal(_)
                | Identity::Operator { .. }
                | Identity::Requester { .. }
                | Identity::CertificateRequester(_),
            ) => None,
        }
    }

    /// The Kubernetes node of the caller's pod, if the authentication has established it: of ztunnel, by the watched pods.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Source address of the caller's connection.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

/// Reads an optional duration between one nanosecond and `u32::MAX` seconds, beyond which clock arithmetic overflows.
fn positive_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let duration: Option<Duration> = humantime_serde::deserialize(deserializer)?;
    match duration {
        Some(duration) if duration.is_zero() || duration > Duration::from_secs(u32::MAX.into()) => {
            Err(serde::de::Error::custom("must be longer than \"0s\" and at most 136 years; write for example \"24h\""))
        }
        duration => Ok(duration),
    }
}
