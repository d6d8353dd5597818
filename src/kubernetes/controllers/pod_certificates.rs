//! Signs Kubernetes PodCertificateRequests (certificates.k8s.io/v1, or v1beta1 before Kubernetes 1.37) for the
//! configured signer names. A kubelet creates them for a pod's projected volumes of type podCertificate.
//!
//! Identity comes only from fields that the API server has compared with the pod: its namespace, service account, name
//! and UID (Kubernetes: plugin/pkg/admission/noderestriction). What the author of a pod writes freely, such as
//! `unverifiedUserAnnotations`, grants nothing, and a request with annotations is denied. Denied is final and stops a
//! starting pod, so it is only for what can never be granted. A request that cannot be granted now, such as while the
//! token is unavailable, gets no answer and is retried. Requests need no approval.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::{self, BoxFuture};
use k8s_openapi::{
    api::{
        certificates::v1::{PodCertificateRequestSpec, PodCertificateRequestStatus},
        core::v1::{Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Resource,
    api::ObjectMeta,
    core::{ApiResource, DynamicResourceScope, TypeMeta},
};
use pki::{
    Issued,
    csr::CsrError,
    identity::{DnsName, Namespace, SpiffeId},
    pem,
};
use process::clock;
use serde::{Deserialize, Serialize};

use super::{
    Controller, DAY, Grants, Limits, Mistake, Mistakes,
    request_loop::{RequestObject, SignerError},
    request_signer::{self, Refusal, RequestKind, chain_pem, check_signer_name, is_final},
};
use crate::{
    auth::{BoundPod, Caller},
    issue::{CertificateAuthority, IssueError, Request},
    kubernetes::{
        Cluster,
        permissions::{self, Permission},
        served::{GROUP, Interface},
        settings::Account,
    },
    policy::{Asked, PodServiceRules, PodSignerRules},
    telemetry::RequestId,
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "pod_certificates";
const INTERFACE: Interface = Interface { kind: "PodCertificateRequest", plural: "podcertificaterequests" };
/// The API server's default of `spec.maxExpirationSeconds`.
const DEFAULT_MAX_EXPIRATION: i32 = 24 * 3600;
/// Maximum age of a certificate's notBefore. The API server accepts five minutes.
const ACCEPTED_AGE: Duration = Duration::from_secs(4 * 60);

/// `[[kubernetes.cluster.pod_signer]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSigner {
    /// The `signerName`, `domain/path`.
    pub name: String,
    /// Maximum lifetime; a pod can ask for a shorter one.
    #[serde(default = "default_ttl", with = "humantime_serde")]
    pub ttl: Duration,
    /// Namespaces whose pods are served; empty means all.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// Services whose DNS names are issued instead of SPIFFE IDs; none by default.
    #[serde(default, rename = "service")]
    pub services: Vec<PodServices>,
    /// The cluster's DNS domain, for the names of Services.
    #[serde(default = "default_cluster_domain")]
    pub cluster_domain: String,
}

/// `[[kubernetes.cluster.pod_signer.service]]`: Services whose names the pods of one service account may obtain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodServices {
    /// The service account, as `namespace/service-account`.
    pub account: Account,
    /// The Services, in the same namespace. A pod obtains the names of those that select it.
    pub names: Vec<String>,
}

fn default_ttl() -> Duration {
    DAY
}

fn default_cluster_domain() -> String {
    "cluster.local".to_owned()
}

/// All signers of a cluster are one controller.
impl Controller for Vec<PodSigner> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        for (index, signer) in self.iter().enumerate() {
            signer.check(limits, &mut mistakes);
            if self.iter().take(index).any(|other| other.name == signer.name) {
                mistakes.add(format!("pod_signer {}", signer.name), "is configured twice; merge the two");
            }
        }
        mistakes.0
    }

    fn interface(&self) -> Option<Interface> {
        Some(INTERFACE)
    }

    fn permissions(&self) -> Vec<Permission> {
        let mut needed = permissions::verbs(GROUP, "podcertificaterequests", &["list", "watch"], None, None);
        needed.extend(permissions::verbs(GROUP, "podcertificaterequests/status", &["update"], None, None));
        for signer in self {
            needed.extend(permissions::verbs(GROUP, "signers", &["sign"], None, Some(&signer.name)));
        }
        let mut namespaces: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for services in self.iter().flat_map(|signer| &signer.services) {
            let names = namespaces.entry(services.account.namespace.as_str()).or_default();
            names.extend(
                services.names.iter().map(String::as_str).filter(|name| !names.contains(name)).collect::<Vec<_>>(),
            );
        }
        for (namespace, services) in namespaces {
            needed.extend(permissions::verbs("", "pods", &["get"], Some(namespace), None));
            for service in services {
                needed.extend(permissions::verbs("", "services", &["get"], Some(namespace), Some(service)));
            }
        }
        needed
    }

    fn grants(&self) -> Grants {
        Grants::Pods(self.iter().map(PodSigner::rules).collect())
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let signers = self.clone();
        Box::pin(async move {
            let run = |resource: ApiResource| {
                let signer = |signer: &PodSigner| {
                    let kind = ServedSigner { signer: signer.clone(), resource: resource.clone() };
                    request_signer::run(Arc::clone(&cluster), Arc::clone(&ca), kind)
                };
                let all = future::join_all(signers.iter().map(signer));
                async move { drop(all.await) }
            };
            INTERFACE.run(NAME, &cluster, run).await;
        })
    }
}

impl PodSigner {
    fn check(&self, limits: &Limits<'_>, mistakes: &mut Mistakes) {
        check_signer_name("pod_signer", &self.name, mistakes);
        let place = format!("pod_signer {}", self.name);
        if self.ttl < Duration::from_secs(3600) {
            mistakes.add(&place, "has a ttl below an hour, which the API server rejects");
        }
        if limits.max_ttl < Duration::from_secs(3600) {
            mistakes
                .add(&place, "needs a [ca] max_ttl of at least an hour; the API server rejects shorter certificates");
        }
        for services in &self.services {
            let place = format!("{place} service {}", services.account);
            if services.names.is_empty() {
                mistakes.add(&place, "has an empty list of Services; list some");
            }
            for name in &services.names {
                if name.contains('.') || self.dns_names(&services.account.namespace, name).is_none() {
                    mistakes.add(&place, format!("{name:?} in {} gives no DNS name; check both", self.cluster_domain));
                }
            }
        }
    }

    /// The DNS names of a Service (Kubernetes DNS-Based Service Discovery, section 2.3).
    fn dns_names(&self, namespace: &Namespace, service: &str) -> Option<Vec<DnsName>> {
        let short = format!("{service}.{namespace}.svc");
        let long = format!("{short}.{}", self.cluster_domain);
        Some(vec![short.parse().ok()?, long.parse().ok()?])
    }

    fn rules(&self) -> PodSignerRules {
        let service = |services: &PodServices| {
            let namespace = &services.account.namespace;
            let names = services.names.iter().filter_map(|name| Some((name.clone(), self.dns_names(namespace, name)?)));
            PodServiceRules {
                namespace: namespace.clone(),
                service_account: services.account.service_account.clone(),
                names: names.collect(),
            }
        };
        PodSignerRules {
            name: self.name.clone(),
            ttl: self.ttl,
            namespaces: self.namespaces.clone(),
            services: self.services.iter().map(service).collect(),
        }
    }
}

/// A PodCertificateRequest in any served version.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct PodCertificateRequest {
    #[serde(flatten)]
    types: Option<TypeMeta>,
    metadata: ObjectMeta,
    spec: PodCertificateRequestSpec,
    #[serde(default)]
    status: PodCertificateRequestStatus,
}

impl Resource for PodCertificateRequest {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A signer, with the version that the API server serves.
struct ServedSigner {
    signer: PodSigner,
    resource: ApiResource,
}

impl RequestObject for PodCertificateRequest {}

impl RequestKind for ServedSigner {
    type Object = PodCertificateRequest;
    const CONTROLLER: &'static str = NAME;
    const KIND: &'static str = INTERFACE.kind;
    const LOG_KIND: &'static str = "pod_certificate";

    fn signer(&self) -> &str {
        &self.signer.name
    }

    fn dynamic_type(&self) -> ApiResource {
        self.resource.clone()
    }

    fn api(&self, cluster: &Cluster, namespace: Option<&str>) -> Api<PodCertificateRequest> {
        match namespace {
            Some(namespace) => Api::namespaced_with(cluster.client(), namespace, &self.resource),
            None => Api::all_with(cluster.client(), &self.resource),
        }
    }

    fn is_open(&self, request: &PodCertificateRequest) -> bool {
        request.spec.signer_name == self.signer.name
            && request.metadata.deletion_timestamp.is_none()
            && request.status.conditions.iter().flatten().next().is_none()
    }

    fn requester(&self, request: &PodCertificateRequest) -> String {
        let (namespace, spec) = (request.metadata.namespace.as_deref().unwrap_or_default(), &request.spec);
        format!("pod {namespace}/{} of {} on {}", spec.pod_name, spec.service_account_name, spec.node_name)
    }

    async fn decide(
        &self,
        cluster: &Cluster,
        ca: &CertificateAuthority,
        request: &PodCertificateRequest,
    ) -> Result<Result<Issued, Refusal>, SignerError> {
        let spec = &request.spec;
        if let Some(refusal) = refusal_of(spec) {
            return Ok(Err(refusal));
        }
        let Some(account) = account(cluster, request) else {
            return Ok(Err(Refusal::new("namespace and service account give no SPIFFE ID")));
        };
        let services = match self.services(cluster, &account, spec).await? {
            Ok(services) => services,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let pod = BoundPod { name: spec.pod_name.clone(), uid: spec.pod_uid.clone() };
        let longest = spec.max_expiration_seconds.unwrap_or(DEFAULT_MAX_EXPIRATION);
        let request = Request {
            id: RequestId::random().into(),
            caller: Caller::pod_request(cluster.name().clone(), &self.signer.name, account, pod, services),
            // The pipeline verifies its signature, which proves possession of the key.
            csr: pem::encode("CERTIFICATE REQUEST", &spec.stub_pkc_s10_request.0),
            asked: Asked { validity_seconds: longest.into(), ..Asked::default() },
            issuer: None,
            arrived: Instant::now(),
            deadline: None,
        };
        match ca.issue(request).await {
            Ok(issued) => Ok(Ok(issued)),
            Err(error) if is_final(&error) => {
                let reason = match &error {
                    IssueError::Csr(CsrError::Key(_)) => "UnsupportedKeyType",
                    _ => "Refused",
                };
                Ok(Err(Refusal { reason, message: error.to_string() }))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_acceptable(&self, issued: &Issued) -> bool {
        clock::now().duration_since(issued.not_before()).is_ok_and(|age| age < ACCEPTED_AGE)
    }

    fn grant(&self, request: &mut PodCertificateRequest, issued: &Issued) {
        let (not_before, not_after) = (issued.not_before(), issued.not_after());
        let half = not_after.duration_since(not_before).unwrap_or_default() / 2;
        request.status = PodCertificateRequestStatus {
            certificate_chain: Some(chain_pem(issued, false)),
            not_before: time(not_before),
            not_after: time(not_after),
            begin_refresh_at: time(not_before + half),
            conditions: Some(vec![condition("Issued", "Issued", String::new())]),
        };
        request.types = Some(self.types());
    }

    fn refuse(&self, request: &mut PodCertificateRequest, refusal: &Refusal) {
        let denied = condition("Denied", refusal.reason, refusal.short_message());
        request.status = PodCertificateRequestStatus { conditions: Some(vec![denied]), ..Default::default() };
        request.types = Some(self.types());
    }
}

impl ServedSigner {
    fn types(&self) -> TypeMeta {
        TypeMeta { api_version: self.resource.api_version.clone(), kind: self.resource.kind.clone() }
    }

    /// Those of the Services listed for a service account that select the pod.
    async fn services(
        &self,
        cluster: &Cluster,
        account: &SpiffeId,
        spec: &PodCertificateRequestSpec,
    ) -> Result<Result<Vec<String>, Refusal>, kube::Error> {
        let namespace = account.namespace();
        let theirs = self.signer.services.iter().filter(|services| {
            services.account.namespace == *namespace && services.account.service_account == *account.service_account()
        });
        let listed: Vec<&String> = theirs.flat_map(|services| &services.names).collect();
        if listed.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let pods: Api<Pod> = Api::namespaced(cluster.client(), namespace.as_str());
        let pod = pods.get_opt(&spec.pod_name).await?;
        let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&spec.pod_uid)) else {
            return Ok(Err(Refusal::new("the pod does not exist any more")));
        };
        let labels = pod.metadata.labels.unwrap_or_default();
        let services: Api<Service> = Api::namespaced(cluster.client(), namespace.as_str());
        let mut selecting = Vec::new();
        for name in listed {
            if services.get_opt(name).await?.is_some_and(|service| selects(&service, &labels)) {
                selecting.push(name.clone());
            }
        }
        Ok(Ok(selecting))
    }
}

/// Why the request can be granted to no pod.
fn refusal_of(spec: &PodCertificateRequestSpec) -> Option<Refusal> {
    if let Some(key) = spec.unverified_user_annotations.iter().flatten().map(|(key, _)| key).next() {
        return Some(Refusal {
            reason: "InvalidUnverifiedUserAnnotations",
            message: format!("the key {key:?} of spec.unverifiedUserAnnotations is not known; this signer takes none"),
        });
    }
    if spec.stub_pkc_s10_request.0.is_empty() {
        return Some(Refusal::new("spec.stubPKCS10Request is empty; kubelets send it since Kubernetes 1.36"));
    }
    None
}

/// The SPIFFE ID of the pod's service account.
fn account(cluster: &Cluster, request: &PodCertificateRequest) -> Option<SpiffeId> {
    let namespace = request.metadata.namespace.as_deref()?.parse().ok()?;
    let service_account = request.spec.service_account_name.parse().ok()?;
    Some(SpiffeId::new(cluster.trust_domain().clone(), namespace, service_account))
}

/// Whether a Service selects pods with these labels. One without a selector, or of type ExternalName, selects none.
fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &service.spec else { return false };
    let selector = spec.selector.iter().flatten();
    spec.type_.as_deref() != Some("ExternalName")
        && selector.clone().next().is_some()
        && selector.into_iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn time(time: SystemTime) -> Option<Time> {
    Timestamp::try_from(time).ok().map(Time)
}

fn condition(kind: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Time(Timestamp::try_from(clock::now()).unwrap_or_default()),
        observed_generation: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_select_pods_by_all_labels_of_their_selector() {
        let labels = [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())].into();
        for (spec, expected) in [
            (json!({"selector": {"app": "web"}}), true),
            (json!({"selector": {"app": "web", "tier": "front"}}), true),
            (json!({"selector": {"app": "web", "tier": "back"}}), false),
            (json!({"selector": {"app": "web", "more": ""}}), false),
            (json!({"selector": {}}), false),
            (json!({}), false),
            (json!({"selector": {"app": "web"}, "type": "ExternalName"}), false),
        ] {
            let service: Service = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(selects(&service, &labels), expected, "{spec}");
        }
    }

    #[test]
    fn annotations_and_missing_requests_are_refused() {
        let refused = |spec| {
            let spec: PodCertificateRequestSpec = serde_json::from_value(spec).unwrap();
            refusal_of(&spec).map(|refusal| refusal.reason)
        };
        assert_eq!(refused(json!({"stubPKCS10Request": "YQ=="})), None);
        assert_eq!(refused(json!({"stubPKCS10Request": ""})), Some("Refused"));
        let annotated = json!({"stubPKCS10Request": "YQ==", "unverifiedUserAnnotations": {"a.b/c": ""}});
        assert_eq!(refused(annotated), Some("InvalidUnverifiedUserAnnotations"));
    }
}
