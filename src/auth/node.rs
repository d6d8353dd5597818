//! Node impersonation: ztunnel requests certificates for the workloads on its own node.
//!
//! The rules are Istio's (security/pkg/server/ca/node_auth.go) with stricter checks: the trust domain is compared, the
//! requested identity is parsed strictly, and the caller's JWT must be bound to a pod. `kubernetes` provides the pods
//! as [`Pods`]. Runs after the caller is authenticated; `policy` still decides what a certificate may contain.

use std::sync::Arc;

use super::{
    Caller, ClusterName, Identity,
    token_review::{BoxFuture, Unanswered},
};
use pki::identity::{NameError, Namespace, ServiceAccount, SpiffeId, TrustDomain};

/// The relevant fields of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// `spec.nodeName`; empty while it has no node.
    pub node: String,
}

/// A cluster's pods that have not failed. An implementation may cache them, but must query the API server once before
/// it reports a pod as missing.
pub trait Pods: std::fmt::Debug + Send + Sync {
    /// The pod with a name, preferably with this UID.
    fn pod<'a>(
        &'a self,
        namespace: &'a Namespace,
        name: &'a str,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<Pod>, Unanswered>>;

    /// Whether a node runs a pod of a service account.
    fn runs<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a Namespace,
        account: &'a ServiceAccount,
    ) -> BoxFuture<'a, Result<bool, Unanswered>>;
}

/// A caller may not impersonate another identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    /// The caller's pod differs from the JWT.
    #[error("the caller's pod {0} is not found with the UID and service account of its token")]
    CallerPod(String),
    /// The caller's cluster has no node impersonation.
    #[error("impersonation is not enabled for the caller's cluster")]
    Cluster,
    /// The requested identity is not a workload's SPIFFE ID.
    #[error(transparent)]
    Identity(#[from] NameError),
    /// The caller's pod is not assigned to a node yet.
    #[error("the caller's pod {0} is not on a node")]
    NoNode(String),
    /// No pod of the requested workload is on the caller's node.
    #[error("no pod of {namespace}/{account} is on node {node}, where the caller is")]
    NotOnNode {
        /// The namespace.
        namespace: Namespace,
        /// The service account.
        account: ServiceAccount,
        /// The node.
        node: String,
    },
    /// The caller is not one of the trusted accounts.
    #[error("the caller's service account may not impersonate other identities")]
    NotTrusted,
    /// The JWT is not bound to a pod.
    #[error("the caller's token is not bound to a pod")]
    NotBound,
    /// The requested identity is in another trust domain than the caller.
    #[error("the trust domain {0} is not the caller's")]
    TrustDomain(TrustDomain),
    /// The API server is unreachable, and the pod is not cached.
    #[error("the pods of cluster {cluster} cannot be looked up: {source}")]
    Unanswered {
        /// The cluster.
        cluster: ClusterName,
        /// The error.
        source: Unanswered,
    },
}

impl ImpersonationError {
    /// The label in metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CallerPod(_) => "impersonation_caller_pod",
            Self::Cluster => "impersonation_cluster",
            Self::Identity(_) => "impersonation_identity",
            Self::NoNode(_) => "impersonation_no_node",
            Self::NotBound => "impersonation_not_bound",
            Self::NotOnNode { .. } => "impersonation_not_on_node",
            Self::NotTrusted => "impersonation_not_trusted",
            Self::TrustDomain(_) => "impersonation_trust_domain",
            Self::Unanswered { .. } => "impersonation_unanswered",
        }
    }
}

/// A cluster with node impersonation.
#[derive(Debug)]
pub struct NodeCluster {
    /// The cluster.
    pub cluster: ClusterName,
    /// The accounts that may impersonate workloads on their node.
    pub trusted: Vec<(Namespace, ServiceAccount)>,
    /// The cluster's pods.
    pub pods: Arc<dyn Pods>,
}

/// All clusters with node impersonation.
#[derive(Debug, Default)]
pub struct Nodes(Vec<NodeCluster>);

impl Nodes {
    /// Combines the clusters.
    #[must_use]
    pub fn new(clusters: Vec<NodeCluster>) -> Self {
        Self(clusters)
    }

    /// Whether there are no clusters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks whether a caller may impersonate an identity, and parses it. Returns the caller's node as well.
    ///
    /// # Errors
    /// The first violated rule, or that the pods cannot be determined now.
    pub async fn authorize(&self, caller: &Caller, asked: &str) -> Result<(SpiffeId, String), ImpersonationError> {
        let Identity::Workload(own) = caller.identity() else { return Err(ImpersonationError::NotTrusted) };
        let cluster = self.0.iter().find(|one| caller.cluster() == Some(one.cluster.as_str()));
        let NodeCluster { cluster, trusted, pods } = cluster.ok_or(ImpersonationError::Cluster)?;
        if !trusted.iter().any(|(ns, account)| ns == own.namespace() && account == own.service_account()) {
            return Err(ImpersonationError::NotTrusted);
        }
        let bound = caller.pod().ok_or(ImpersonationError::NotBound)?;
        let asked: SpiffeId = asked.parse()?;
        if asked.trust_domain() != own.trust_domain() {
            return Err(ImpersonationError::TrustDomain(asked.trust_domain().clone()));
        }
        let unanswered = |source| ImpersonationError::Unanswered { cluster: cluster.clone(), source };
        let name = || format!("{}/{}", own.namespace(), bound.name);
        let pod = pods.pod(own.namespace(), &bound.name, &bound.uid).await.map_err(unanswered)?;
        let pod = pod.filter(|pod| pod.uid == bound.uid && pod.service_account == own.service_account().as_str());
        let pod = pod.ok_or_else(|| ImpersonationError::CallerPod(name()))?;
        if pod.node.is_empty() {
            return Err(ImpersonationError::NoNode(name()));
        }
        let (namespace, account) = (asked.namespace(), asked.service_account());
        if pods.runs(&pod.node, namespace, account).await.map_err(unanswered)? {
            Ok((asked, pod.node))
        } else {
            Err(ImpersonationError::NotOnNode {
                namespace: namespace.clone(),
                account: account.clone(),
                node: pod.node,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{BoundPod, Method};

    const CALLER: &str = "spiffe://td/ns/istio-system/sa/ztunnel";
    const WORKLOAD: &str = "spiffe://td/ns/shop/sa/web";

    /// A ztunnel pod on a node, and the workloads on that node.
    #[derive(Debug)]
    struct Fixed {
        caller: Result<Option<Pod>, Unanswered>,
        on: &'static str,
    }

    impl Pods for Fixed {
        fn pod<'a>(
            &'a self,
            _: &'a Namespace,
            _: &'a str,
            _: &'a str,
        ) -> BoxFuture<'a, Result<Option<Pod>, Unanswered>> {
            Box::pin(std::future::ready(self.caller.clone()))
        }

        fn runs<'a>(
            &'a self,
            node: &'a str,
            namespace: &'a Namespace,
            account: &'a ServiceAccount,
        ) -> BoxFuture<'a, Result<bool, Unanswered>> {
            Box::pin(std::future::ready(Ok(format!("{node} {namespace}/{account}") == self.on)))
        }
    }

    fn ztunnel() -> Pod {
        Pod { uid: "u1".into(), service_account: "ztunnel".into(), node: "n1".into() }
    }

    fn caller(change: impl FnOnce(&mut Caller)) -> Caller {
        let mut caller = Caller::workload(CALLER.parse().unwrap(), Method::TokenReview);
        caller.cluster = Some(ClusterName::default());
        caller.pod = Some(Arc::new(BoundPod { name: "ztunnel-1".into(), uid: "u1".into() }));
        change(&mut caller);
        caller
    }

    async fn reason(caller: &Caller, pod: Result<Option<Pod>, Unanswered>, asked: &str) -> &'static str {
        let nodes = Nodes::new(vec![NodeCluster {
            cluster: ClusterName::default(),
            trusted: vec![("istio-system".parse().unwrap(), "ztunnel".parse().unwrap())],
            pods: Arc::new(Fixed { caller: pod, on: "n1 shop/web" }),
        }]);
        match nodes.authorize(caller, asked).await {
            Ok((id, node)) => {
                assert_eq!((id.to_string().as_str(), node.as_str()), (asked, "n1"));
                "may"
            }
            Err(error) => error.reason(),
        }
    }

    #[tokio::test]
    async fn every_gap_is_closed() {
        let good = || caller(|_| ());
        let pod = |change: fn(&mut Pod)| {
            let mut pod = ztunnel();
            change(&mut pod);
            Ok(Some(pod))
        };
        let same = || pod(|_| ());
        let other = |id: &str| {
            let id = id.parse().unwrap();
            caller(|caller| caller.identity = Identity::Workload(id))
        };
        let cases = [
            (good(), same(), WORKLOAD, "may"),
            (good(), same(), "spiffe://td/ns/shop/sa/other", "impersonation_not_on_node"),
            (good(), same(), "spiffe://td/ns/other/sa/web", "impersonation_not_on_node"),
            (good(), same(), "spiffe://other/ns/shop/sa/web", "impersonation_trust_domain"),
            (good(), same(), "spiffe://td/ns//sa/web", "impersonation_identity"),
            (good(), same(), "spiffe://td/ns/shop/sa/", "impersonation_identity"),
            (good(), same(), "spiffe:///ns/shop/sa/web", "impersonation_identity"),
            (good(), same(), "spiffe://td/ns/shop/sa/web/", "impersonation_identity"),
            (good(), same(), "spiffe://td/ns/shop/sa/web,spiffe://td/ns/a/sa/b", "impersonation_identity"),
            (good(), pod(|pod| pod.uid = "u2".into()), WORKLOAD, "impersonation_caller_pod"),
            (good(), pod(|pod| pod.service_account = "other".into()), WORKLOAD, "impersonation_caller_pod"),
            (good(), Ok(None), WORKLOAD, "impersonation_caller_pod"),
            (good(), pod(|pod| pod.node = "n2".into()), WORKLOAD, "impersonation_not_on_node"),
            (good(), pod(|pod| pod.node.clear()), WORKLOAD, "impersonation_no_node"),
            (good(), Err(Unanswered("away".into())), WORKLOAD, "impersonation_unanswered"),
            (caller(|caller| caller.pod = None), same(), WORKLOAD, "impersonation_not_bound"),
            (caller(|caller| caller.cluster = None), same(), WORKLOAD, "impersonation_cluster"),
            (
                caller(|caller| caller.cluster = Some("west".to_owned().try_into().unwrap())),
                same(),
                WORKLOAD,
                "impersonation_cluster",
            ),
            (other("spiffe://td/ns/istio-system/sa/other"), same(), WORKLOAD, "impersonation_not_trusted"),
            (other("spiffe://td/ns/other/sa/ztunnel"), same(), WORKLOAD, "impersonation_not_trusted"),
            (Caller::operator(0), same(), WORKLOAD, "impersonation_not_trusted"),
        ];
        for (caller, pod, asked, expected) in cases {
            assert_eq!(reason(&caller, pod.clone(), asked).await, expected, "{caller:?} {pod:?} {asked}");
        }
    }
}
