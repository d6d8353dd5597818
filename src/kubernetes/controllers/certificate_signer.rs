//! Signs cert-manager's CertificateRequests (cert-manager.io/v1) whose issuer is one of this CA, as an external issuer
//! (cert-manager: pkg/apis/certmanager/v1/types_certificaterequest.go).
//!
//! A request is signed when it is approved; this controller approves none. One that can never be signed gets Ready = False
//! with the reason Failed, and InvalidRequest; after a temporary failure, such as an unavailable token, it is Pending and
//! retried. Writes carry the resourceVersion that was read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::FutureExt;
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use pki::Issued;
use serde_json::{Value, json};

use super::{
    certificate_requests::{NAME, Served, now},
    request_loop::{self, Progress, RETRY_DELAY, Reconciler, RequestObject, SignerError, name_of},
    request_signer::{Refusal, chain_pem, is_final, shortened},
};
use crate::{
    auth::{Caller, CertificateRequester},
    issue::{CertificateAuthority, IssueError, Request},
    kubernetes::{
        Cluster,
        cert_manager::{
            CertificateRequest, CertificateRequestSpec, Condition, GROUP, HsmClusterIssuer, HsmIssuer, condition,
            set_condition,
        },
    },
    policy::Asked,
    telemetry::RequestId,
};

/// The usages of our leaf certificates; `signing` is cert-manager's other word for `digital signature`.
const LEAF_USAGES: [&str; 5] = ["client auth", "digital signature", "key encipherment", "server auth", "signing"];
/// The usages that a CA certificate may be requested with. It has the first four of them. cert-manager adds key
/// encipherment by default, and a CA certificate without extended key usages permits them all.
const CA_USAGES: [&str; 7] =
    ["cert sign", "crl sign", "digital signature", "signing", "client auth", "key encipherment", "server auth"];
/// Delay before a request is retried whose issuer is not ready.
const ISSUER_DELAY: Duration = Duration::from_secs(5);
/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing: it is not ours, not approved, or has its answer.
    Done,
    /// An approver has denied it.
    Denied,
    /// It is approved and has no answer.
    Open,
}

fn phase(request: &CertificateRequest) -> Phase {
    let status = &request.status;
    let has = |type_: &str| condition(&status.conditions, type_).is_some_and(|condition| condition.status == "True");
    let ended = condition(&status.conditions, "Ready")
        .is_some_and(|ready| ready.reason == "Failed" || ready.reason == "Denied");
    let signed = status.certificate.as_ref().is_some_and(|certificate| !certificate.is_empty());
    let is_ours = request.spec.issuer_ref.group == GROUP && request.metadata.deletion_timestamp.is_none();
    match () {
        () if !is_ours || ended || signed || status.failure_time.is_some() => Phase::Done,
        () if has("Denied") => Phase::Denied,
        () if has("Approved") => Phase::Open,
        () => Phase::Done,
    }
}

/// Signs requests until dropped.
pub(super) async fn run(signer: Signer) {
    let requests: Api<CertificateRequest> = Api::all(signer.cluster.client());
    let watch = "the watch of CertificateRequests".to_owned();
    request_loop::run(requests, watcher::Config::default(), (), watch, signer).await;
}

pub(super) struct Signer {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    served: Served,
    issuers: Store<HsmIssuer>,
    cluster_issuers: Store<HsmClusterIssuer>,
    progress: Progress<Version>,
}

/// UID and generation of a request. Without cert-manager's webhook, a spec can change.
type Version = (Option<String>, Option<i64>);

fn version(request: &CertificateRequest) -> Version {
    (request.metadata.uid.clone(), request.metadata.generation)
}

/// The issuer of a request.
enum Selected {
    Profile(String),
    /// It may become ready, for this reason it is not.
    NotReady(String),
    /// The issuers are not listed yet.
    Unknown,
    /// Another CA serves it.
    Foreign,
    Never(Refusal),
}

impl Signer {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        ca: Arc<CertificateAuthority>,
        served: Served,
        issuers: Store<HsmIssuer>,
        cluster_issuers: Store<HsmClusterIssuer>,
    ) -> Self {
        let progress = Progress::new(NAME, &cluster);
        Self { cluster, ca, served, issuers, cluster_issuers, progress }
    }
}

impl RequestObject for CertificateRequest {}

impl Reconciler for Signer {
    type Object = CertificateRequest;
    type Version = Version;

    fn progress(&self) -> &Progress<Version> {
        &self.progress
    }

    async fn reconcile(&self, request: &CertificateRequest) -> Result<Action, SignerError> {
        let name = name_of(request);
        match phase(request) {
            Phase::Done => {
                self.progress.forget(&name);
                return Ok(Action::await_change());
            }
            Phase::Denied => {
                let denied = "an approver has denied the CertificateRequest";
                return self.write(request, failed(request, "Denied", denied, None)).await;
            }
            Phase::Open => {}
        }
        let profile = match self.select(request) {
            Selected::Profile(profile) => profile,
            Selected::NotReady(reason) => {
                self.progress.forget(&name);
                self.set_pending(request, &reason).await?;
                return Ok(Action::requeue(ISSUER_DELAY));
            }
            Selected::Foreign => {
                self.progress.forget(&name);
                return Ok(Action::requeue(ISSUER_DELAY));
            }
            Selected::Unknown => return Ok(Action::requeue(RETRY_DELAY)),
            Selected::Never(refusal) => return self.refuse(request, &refusal).await,
        };
        let decided = match self.progress.take_unwritten(&name, &version(request), &self.ca.issuer()) {
            Some(issued) => Ok(issued),
            None => match self.decide(request, profile).await {
                Ok(decided) => decided,
                Err(error) => {
                    self.set_pending(request, &format!("the CA cannot sign now and will retry: {error}")).await?;
                    return Err(error.into());
                }
            },
        };
        let issued = match decided {
            Ok(issued) => issued,
            Err(refusal) => return self.refuse(request, &refusal).await,
        };
        let result = self.write(request, issued_status(request, &issued)).await;
        let serial = issued.serial().to_hex();
        match &result {
            Ok(action) if *action == Action::await_change() => {
                tracing::info!(request = name, username = request.spec.username, serial, "signed a CertificateRequest");
            }
            Ok(_) | Err(_) => self.progress.keep_unwritten(&name, version(request), issued),
        }
        result
    }
}

impl Signer {
    async fn refuse(&self, request: &CertificateRequest, refusal: &Refusal) -> Result<Action, SignerError> {
        let result = self.write(request, failed(request, "Failed", &refusal.message, Some(refusal.reason))).await;
        if result.is_ok() {
            let (request, username) = (name_of(request), &request.spec.username);
            let refusal = &refusal.message;
            tracing::warn!(request, username, refusal, kind = "certificate_request", "refused a CertificateRequest");
        }
        result
    }

    /// The profile that the request's issuer selects.
    fn select(&self, request: &CertificateRequest) -> Selected {
        let reference = &request.spec.issuer_ref;
        let (spec, listed) = match reference.kind.as_str() {
            "HsmIssuer" => {
                let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
                let issuer = self.issuers.get(&ObjectRef::new(&reference.name).within(namespace));
                (issuer.map(|issuer| issuer.spec.clone()), is_listed(&self.issuers))
            }
            "HsmClusterIssuer" => {
                let issuer = self.cluster_issuers.get(&ObjectRef::new(&reference.name));
                (issuer.map(|issuer| issuer.spec.clone()), is_listed(&self.cluster_issuers))
            }
            kind => {
                return Selected::Never(malformed(format!(
                    "spec.issuerRef.kind: {GROUP} has no {kind:?}; use HsmIssuer or HsmClusterIssuer"
                )));
            }
        };
        match spec {
            Some(spec) if *self.served.class != *spec.class => Selected::Foreign,
            Some(spec) => match self.served.problem(&spec) {
                None => Selected::Profile(spec.profile),
                Some(problem) => {
                    Selected::NotReady(format!("the {} {} is not ready: {problem}", reference.kind, reference.name))
                }
            },
            None if listed => {
                Selected::NotReady(format!("there is no {} {}; create it", reference.kind, reference.name))
            }
            None => Selected::Unknown,
        }
    }

    /// Issues the certificate, or returns why it can never be issued.
    async fn decide(
        &self,
        request: &CertificateRequest,
        profile: String,
    ) -> Result<Result<Issued, Refusal>, IssueError> {
        let (csr, validity_seconds) = match read(&request.spec) {
            Ok(read) => read,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let spec = &request.spec;
        let caller = Caller::certificate_requester(CertificateRequester {
            cluster: self.cluster.name().clone(),
            profile,
            namespace: request.metadata.namespace.clone().unwrap_or_default(),
            username: spec.username.clone(),
            groups: spec.groups.clone(),
            is_ca: spec.is_ca,
        });
        let asked = Asked { validity_seconds, ..Asked::default() };
        let (id, arrived) = (RequestId::random().into(), Instant::now());
        let request = Request { id, caller, csr, asked, issuer: None, arrived, deadline: None };
        match self.ca.issue(request).await {
            Ok(issued) => Ok(Ok(issued)),
            Err(error) => refusal(error).map(Err),
        }
    }

    /// Writes that the request is pending, once for each reason.
    async fn set_pending(&self, request: &CertificateRequest, reason: &str) -> Result<(), SignerError> {
        let message = shortened(reason);
        let known = condition(&request.status.conditions, "Ready");
        if known.is_some_and(|known| known.reason == "Pending" && known.message == message) {
            return Ok(());
        }
        let conditions = with(request, [ready("False", "Pending", message)]);
        self.write(request, json!({"conditions": conditions})).await.map(drop)
    }

    /// Writes the status. Waits for a change after success, and retries after a conflict.
    async fn write(&self, request: &CertificateRequest, status: Value) -> Result<Action, SignerError> {
        let metadata = &request.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<CertificateRequest> = Api::namespaced(self.cluster.client(), namespace);
        let patch = json!({"metadata": {"resourceVersion": metadata.resource_version}, "status": status});
        let name = metadata.name.as_deref().unwrap_or_default();
        let result = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        self.progress.written(&name_of(request), result)
    }
}

fn is_listed<K>(store: &Store<K>) -> bool
where
    K: kube::runtime::reflector::Lookup + Clone + 'static,
    K::DynamicType: std::hash::Hash + Eq + Clone,
{
    store.wait_until_ready().now_or_never().is_some()
}

/// The PEM request and the lifetime in seconds, 0 without one.
fn read(spec: &CertificateRequestSpec) -> Result<(String, i64), Refusal> {
    let usages: &[&str] = if spec.is_ca { &CA_USAGES } else { &LEAF_USAGES };
    if let Some(usage) = spec.usages.iter().find(|usage| !usages.contains(&usage.as_str())) {
        let usage: String = usage.chars().take(64).collect();
        let kind = if spec.is_ca { "a CA certificate" } else { "a certificate" };
        let message =
            format!("spec.usages: {usage:?} is not granted in {kind}; permitted usages: {}", usages.join(", "));
        return Err(malformed(message));
    }
    let seconds = match &spec.duration {
        None => 0,
        Some(duration) => {
            let parsed = duration.parse::<kube::core::Duration>().ok().filter(|duration| !duration.is_negative());
            let seconds = parsed.and_then(|duration| i64::try_from(Duration::from(duration).as_secs()).ok());
            seconds.filter(|seconds| *seconds > 0).ok_or_else(|| {
                let duration: String = duration.chars().take(64).collect();
                malformed(format!("spec.duration: {duration:?} is not a positive duration, such as 24h"))
            })?
        }
    };
    let decoded = STANDARD.decode(&spec.request).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok((decoded.ok_or_else(|| malformed("spec.request is not PEM in base64"))?, seconds))
}

/// The refusal, if the same request can never be signed.
fn refusal(error: IssueError) -> Result<Refusal, IssueError> {
    if !is_final(&error) {
        return Err(error);
    }
    Ok(match &error {
        IssueError::Csr(_) => malformed(format!("spec.request: {error}")),
        _ => Refusal { reason: "NotAllowed", message: error.to_string() },
    })
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal { reason: "Malformed", message: message.into() }
}

fn ready(status: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        last_transition_time: now(),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
    }
}

/// The request's conditions with these changes.
fn with<const N: usize>(request: &CertificateRequest, changes: [Condition; N]) -> Vec<Condition> {
    let mut conditions = request.status.conditions.clone();
    changes.into_iter().for_each(|change| set_condition(&mut conditions, change));
    conditions
}

/// The status of a request that failed. `invalid` is the reason of its condition InvalidRequest.
fn failed(request: &CertificateRequest, reason: &str, message: &str, invalid: Option<&str>) -> Value {
    let message = shortened(message);
    let ready = ready("False", reason, message.clone());
    let conditions = match invalid {
        None => with(request, [ready]),
        Some(invalid) => {
            let invalid = Condition {
                type_: "InvalidRequest".to_owned(),
                status: "True".to_owned(),
                reason: invalid.to_owned(),
                message,
                ..ready.clone()
            };
            with(request, [ready, invalid])
        }
    };
    json!({"conditions": conditions, "failureTime": now()})
}

/// The status of a signed request: the chain without the root, and the roots.
fn issued_status(request: &CertificateRequest, issued: &Issued) -> Value {
    let issuer = issued.tbs().issuer();
    let message = format!("the certificate has the serial number {}", issued.serial().to_hex());
    json!({
        "conditions": with(request, [ready("True", "Issued", message)]),
        "certificate": STANDARD.encode(chain_pem(issued, false)),
        "ca": STANDARD.encode(issuer.roots_pem()),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::request_signer::MAX_MESSAGE, *};

    fn request(status: Value) -> CertificateRequest {
        let value = json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"request": "", "issuerRef": {"group": GROUP, "kind": "HsmIssuer", "name": "i"}},
            "status": status,
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_approved_requests_without_an_answer_are_open() {
        let condition =
            |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason});
        let approved = condition("Approved", "True", "x");
        for (status, expected) in [
            (json!({}), Phase::Done),
            (json!({"conditions": [condition("Approved", "False", "x")]}), Phase::Done),
            (json!({"conditions": [approved]}), Phase::Open),
            (json!({"conditions": [approved, condition("Ready", "False", "Pending")]}), Phase::Open),
            (json!({"conditions": [approved, condition("Ready", "True", "Issued")]}), Phase::Open),
            (json!({"conditions": [approved, condition("Ready", "False", "Failed")]}), Phase::Done),
            (json!({"conditions": [approved, condition("Denied", "True", "x")]}), Phase::Denied),
            (json!({"conditions": [condition("Denied", "True", "x")]}), Phase::Denied),
            (
                json!({"conditions": [condition("Denied", "True", "x"), condition("Ready", "False", "Denied")]}),
                Phase::Done,
            ),
            (json!({"conditions": [approved], "certificate": "YQ=="}), Phase::Done),
            (json!({"conditions": [approved], "failureTime": "2026-01-01T00:00:00Z"}), Phase::Done),
        ] {
            assert_eq!(phase(&request(status.clone())), expected, "{status}");
        }
        let mut other = request(json!({"conditions": [approved]}));
        other.spec.issuer_ref.group = "cert-manager.io".to_owned();
        assert_eq!(phase(&other), Phase::Done);
    }

    #[test]
    fn failed_request_keeps_the_conditions_of_others() {
        let mut request = request(json!({"conditions": [{"type": "Approved", "status": "True"}]}));
        let status = failed(&request, "Failed", &"ü".repeat(1000), Some("Malformed"));
        request.status = serde_json::from_value(status).unwrap();
        let types: Vec<_> = request.status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types, ["Approved", "Ready", "InvalidRequest"]);
        assert_eq!(request.status.conditions[1].message.len(), MAX_MESSAGE);
        assert_eq!(phase(&request), Phase::Done);
    }

    #[test]
    fn malformed_specs_are_refused_with_the_field() {
        let spec = |change: Value| {
            let mut spec = json!({"request": "eA==", "usages": ["signing"], "duration": "2160h0m0s"});
            spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            read(&serde_json::from_value(spec).unwrap()).map_err(|refusal| refusal.message)
        };
        assert_eq!(spec(json!({})), Ok(("x".to_owned(), 2160 * 3600)));
        assert_eq!(spec(json!({"duration": null})), Ok(("x".to_owned(), 0)));
        for (change, field) in [
            (json!({"usages": ["cert sign"]}), "spec.usages: \"cert sign\""),
            (json!({"usages": ["code signing"], "isCA": true}), "spec.usages: \"code signing\""),
            (json!({"duration": "-1h"}), "spec.duration"),
            (json!({"duration": "0s"}), "spec.duration"),
            (json!({"duration": "a day"}), "spec.duration"),
            (json!({"request": "?"}), "spec.request"),
            (json!({"request": "/w=="}), "spec.request"),
        ] {
            let message = spec(change).unwrap_err();
            assert!(message.starts_with(field), "{message}");
        }
    }
}
