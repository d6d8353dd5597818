//! Signs Kubernetes CertificateSigningRequests (certificates.k8s.io/v1) for the configured signer names, for istiod as a
//! registration authority (ISTIO: security/pkg/pki/ra/k8s_ra.go) and other listed requesters.
//!
//! A request is signed if it is approved, neither denied nor failed, has no certificate yet, asks only for usages that
//! our certificates have, and its requester may obtain these names. A request that can never be signed gets a Failed
//! condition with the reason; after a temporary failure, such as an unavailable token, it is retried. Writes carry the
//! UID and resourceVersion that were read. This controller approves no requests.

use std::{sync::Arc, time::Instant};

use futures_util::future::{self, BoxFuture};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::Api;
use pki::Issued;
use process::clock;
use serde::Deserialize;

use super::{
    Controller, Grants, Limits, Mistake, Mistakes,
    request_loop::{RequestObject, SignerError},
    request_signer::{self, Refusal, RequestKind, chain_pem, check_signer_name, is_final},
};
use crate::{
    auth::Caller,
    issue::{CertificateAuthority, Request},
    kubernetes::{
        Cluster,
        permissions::{self, Permission},
    },
    policy::{Asked, RequesterRules, Scope, SignerRules},
    telemetry::RequestId,
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "csr_signer";
/// The usages of our certificates (ISTIO: security/pkg/k8s/chiron/utils.go); requests for others are rejected.
const USAGES: [&str; 4] = ["client auth", "digital signature", "key encipherment", "server auth"];

/// `[[kubernetes.cluster.signer]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsrSigner {
    /// The `signerName`, `domain/path`.
    pub name: String,
    /// The permitted requesters; none by default.
    #[serde(default, rename = "requester")]
    pub requesters: Vec<RequesterRules>,
    /// Whether the root is appended to `status.certificate`, where istiod looks for it unless `meshConfig.caCertificates`
    /// has it (ISTIO: security/pkg/pki/ra/k8s_ra.go).
    #[serde(default = "default_include_root")]
    pub include_root: bool,
}

fn default_include_root() -> bool {
    true
}

/// All signers of a cluster are one controller.
impl Controller for Vec<CsrSigner> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        for (index, signer) in self.iter().enumerate() {
            signer.check(limits, &mut mistakes);
            if self.iter().take(index).any(|other| other.name == signer.name) {
                mistakes.add(format!("signer {}", signer.name), "is configured twice; merge the requesters");
            }
        }
        mistakes.0
    }

    fn permissions(&self) -> Vec<Permission> {
        let group = "certificates.k8s.io";
        let mut needed = permissions::verbs(group, "certificatesigningrequests", &["list", "watch"], None, None);
        needed.extend(permissions::verbs(group, "certificatesigningrequests/status", &["update"], None, None));
        for signer in self {
            needed.extend(permissions::verbs(group, "signers", &["sign"], None, Some(&signer.name)));
        }
        needed
    }

    fn grants(&self) -> Grants {
        let rules =
            |signer: &CsrSigner| SignerRules { name: signer.name.clone(), requesters: signer.requesters.clone() };
        Grants::Requesters(self.iter().map(rules).collect())
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let signers = self.clone().into_iter();
        let all = signers.map(move |signer| request_signer::run(Arc::clone(&cluster), Arc::clone(&ca), signer));
        Box::pin(async move { drop(future::join_all(all).await) })
    }
}

impl CsrSigner {
    fn check(&self, limits: &Limits<'_>, mistakes: &mut Mistakes) {
        check_signer_name("signer", &self.name, mistakes);
        let place = format!("signer {}", self.name);
        for requester in &self.requesters {
            if requester.username.is_empty() {
                mistakes.add(&place, "has a requester without username");
            }
            let place = format!("{place} requester {}", requester.username);
            match &requester.may {
                Scope::AnyWorkload { trust_domain } if !limits.trust_domains.contains(trust_domain) => {
                    mistakes.add(place, super::foreign_trust_domain(trust_domain));
                }
                Scope::DnsNames(names) if names.is_empty() => {
                    mistakes.add(place, "has an empty list of DNS names; list some");
                }
                Scope::AnyWorkload { .. } | Scope::DnsNames(_) | Scope::Itself => {}
            }
        }
    }
}

impl RequestObject for CertificateSigningRequest {}

impl RequestKind for CsrSigner {
    type Object = CertificateSigningRequest;
    const CONTROLLER: &'static str = NAME;
    const KIND: &'static str = "CertificateSigningRequest";
    const LOG_KIND: &'static str = "csr";

    fn signer(&self) -> &str {
        &self.name
    }

    fn dynamic_type(&self) {}

    fn api(&self, cluster: &Cluster, _namespace: Option<&str>) -> Api<CertificateSigningRequest> {
        Api::all(cluster.client())
    }

    fn is_open(&self, request: &CertificateSigningRequest) -> bool {
        request.spec.signer_name == self.name && is_open(request)
    }

    fn requester(&self, request: &CertificateSigningRequest) -> String {
        request.spec.username.clone().unwrap_or_default()
    }

    async fn decide(
        &self,
        cluster: &Cluster,
        ca: &CertificateAuthority,
        request: &CertificateSigningRequest,
    ) -> Result<Result<Issued, Refusal>, SignerError> {
        let spec = &request.spec;
        if let Some(usage) = spec.usages.iter().flatten().find(|usage| !USAGES.contains(&usage.as_str())) {
            let permitted = USAGES.join(", ");
            return Ok(Err(Refusal::new(format!("the usage {usage:?} is not granted; permitted usages: {permitted}"))));
        }
        let Ok(csr) = String::from_utf8(spec.request.0.clone()) else {
            return Ok(Err(Refusal::new("spec.request is not PEM")));
        };
        let username = spec.username.as_deref().unwrap_or_default();
        let request = Request {
            id: RequestId::random().into(),
            caller: Caller::requester(cluster.name().clone(), &self.name, username),
            csr,
            asked: Asked { validity_seconds: spec.expiration_seconds.map_or(0, i64::from), ..Asked::default() },
            issuer: None,
            arrived: Instant::now(),
            deadline: None,
        };
        match ca.issue(request).await {
            Ok(issued) => Ok(Ok(issued)),
            Err(error) if is_final(&error) => Ok(Err(Refusal::new(error.to_string()))),
            Err(error) => Err(error.into()),
        }
    }

    fn grant(&self, request: &mut CertificateSigningRequest, issued: &Issued) {
        let status = request.status.get_or_insert_default();
        status.certificate = Some(ByteString(chain_pem(issued, self.include_root).into_bytes()));
    }

    fn refuse(&self, request: &mut CertificateSigningRequest, refusal: &Refusal) {
        let now = Timestamp::try_from(clock::now()).ok().map(Time);
        let condition = CertificateSigningRequestCondition {
            type_: "Failed".to_owned(),
            status: "True".to_owned(),
            reason: Some(refusal.reason.to_owned()),
            message: Some(refusal.short_message()),
            last_transition_time: now.clone(),
            last_update_time: now,
        };
        request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    }
}

/// Whether a request is approved and not denied, failed or signed.
fn is_open(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else { return false };
    let has = |kind: &str| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
    };
    let signed = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
    request.metadata.deletion_timestamp.is_none() && !signed && has("Approved") && !has("Denied") && !has("Failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_approved_requests_without_an_outcome_are_open() {
        let request = |conditions: &[(&str, &str)], certificate: Option<&str>| {
            let conditions: Vec<_> =
                conditions.iter().map(|(kind, status)| serde_json::json!({"type": kind, "status": status})).collect();
            let value = serde_json::json!({
                "metadata": {"name": "a"},
                "spec": {"request": "", "signerName": "a.b/c"},
                "status": {"conditions": conditions, "certificate": certificate},
            });
            serde_json::from_value::<CertificateSigningRequest>(value).unwrap()
        };
        for (conditions, certificate, open) in [
            (vec![], None, false),
            (vec![("Approved", "True")], None, true),
            (vec![("Approved", "True")], Some("YQ=="), false),
            (vec![("Approved", "False")], None, false),
            (vec![("Approved", "True"), ("Denied", "True")], None, false),
            (vec![("Approved", "True"), ("Failed", "True")], None, false),
        ] {
            assert_eq!(is_open(&request(&conditions, certificate)), open, "{conditions:?}");
        }
        let mut failed = request(&[("Approved", "True")], None);
        let signer = CsrSigner { name: "a.b/c".to_owned(), requesters: Vec::new(), include_root: true };
        signer.refuse(&mut failed, &Refusal::new("ü".repeat(1000)));
        assert!(!is_open(&failed));
    }
}
