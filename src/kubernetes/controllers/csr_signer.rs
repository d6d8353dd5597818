//! Signs Kubernetes CertificateSigningRequests (certificates.k8s.io/v1) for the configured signer names, for istiod as a
//! registration authority (ISTIO: security/pkg/pki/ra/k8s_ra.go) and other listed requesters.
//!
//! A request is signed if it is approved, neither denied nor failed, has no certificate yet, asks only for usages that
//! our certificates have, and its requester may obtain these names. A request that can never be signed gets a Failed
//! condition with the reason; after a temporary failure, such as an unavailable token, it is retried. Writes carry the
//! UID and resourceVersion that were read. This controller approves no requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{self, BoxFuture},
    stream,
};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::PostParams,
    runtime::{
        controller::{self, Action, Config, Error as ControllerError},
        reflector,
        watcher::{self, Event},
    },
};
use pki::Issued;
use process::clock;
use serde::Deserialize;

use super::{Controller, Grants, Limits, Mistake, Mistakes};
use crate::{
    auth::Caller,
    issue::{CertificateAuthority, IssueError, Request},
    kubernetes::{
        Cluster,
        cluster::chain,
        permissions::{self, Permission},
        reconcile::is_conflict,
        status::StatusRecorder,
        watch_stream::{WatchItem, watch_stream},
    },
    policy::{Asked, Kind, RequesterRules, Scope, SignerRules},
    telemetry::RequestId,
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "csr_signer";
/// The usages of our certificates (ISTIO: security/pkg/k8s/chiron/utils.go); requests for others are rejected.
const USAGES: [&str; 4] = ["client auth", "digital signature", "key encipherment", "server auth"];
const CONCURRENT_REQUESTS: u16 = 32;
/// Delay before a request is retried; istiod waits for a minute.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// Maximum length of a condition's message in bytes.
const MAX_MESSAGE: usize = 1024;

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
        let all = signers.map(move |signer| sign_for(Arc::clone(&cluster), Arc::clone(&ca), signer));
        Box::pin(async move { drop(future::join_all(all).await) })
    }
}

impl CsrSigner {
    fn check(&self, limits: &Limits<'_>, mistakes: &mut Mistakes) {
        let well_formed =
            self.name.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty());
        if !well_formed || self.name.starts_with("kubernetes.io/") {
            let name = &self.name;
            mistakes.add(
                "signer",
                format!("{name:?} is not a valid signer name; write domain/path, for example hsm.example.com/istio"),
            );
        }
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

/// A request is neither signed nor failed yet.
#[derive(Debug, thiserror::Error)]
enum SignerError {
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// Signs the requests for one signer name until dropped. Requests are independent of each other and exist before they
/// are reconciled, so kube's `Controller` runs them concurrently.
async fn sign_for(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, signer: CsrSigner) {
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let ours = watcher::Config::default().fields(&format!("spec.signerName={}", signer.name));
    let status = Mutex::new(StatusRecorder::new(NAME, &cluster));
    let watch = format!("the watch of CertificateSigningRequests for {}", signer.name);
    let items = watch_stream(requests.clone(), ours);
    let context = Arc::new(Signer { cluster, ca, signer, requests, status, unwritten: Mutex::default() });
    let (store, mut writer) = reflector::store();
    let signer = Arc::clone(&context);
    let mut listed = Vec::new();
    let changed = items.flat_map(move |item| {
        if let WatchItem::Event(event) = &item {
            writer.apply_watcher_event(event);
        }
        let requests = match item {
            WatchItem::Event(Event::Apply(request)) => vec![request],
            WatchItem::Event(Event::Init) => {
                listed.clear();
                Vec::new()
            }
            // The store has the requests of a list only when the list is complete.
            WatchItem::Event(Event::InitApply(request)) => {
                listed.push(request);
                Vec::new()
            }
            WatchItem::Event(Event::InitDone) => {
                signer.status().count("unchanged");
                std::mem::take(&mut listed)
            }
            WatchItem::Event(Event::Delete(request)) => {
                signer.forget(request.metadata.name.as_deref().unwrap_or_default());
                Vec::new()
            }
            WatchItem::Failed(reason) => {
                signer.status().watch(&watch, Some(reason));
                Vec::new()
            }
            WatchItem::Recovered => {
                signer.status().watch(&watch, None);
                Vec::new()
            }
        };
        stream::iter(requests.into_iter().map(Ok))
    });
    let signer = Arc::clone(&context);
    controller::Controller::for_stream(changed, store)
        .with_config(Config::default().concurrency(CONCURRENT_REQUESTS))
        .run(|request, signer| async move { signer.reconcile(&request).await }, retry, context)
        .for_each(|result| {
            // `retry` and the watch report all other failures.
            if let Err(ControllerError::ObjectNotFound(request)) = result {
                signer.forget(&request.name);
            }
            future::ready(())
        })
        .await;
}

fn retry(request: Arc<CertificateSigningRequest>, error: &SignerError, signer: Arc<Signer>) -> Action {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let mut status = signer.status();
    status.object(name, Some(error.to_string()));
    status.count("error");
    Action::requeue(RETRY_DELAY)
}

struct Signer {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    signer: CsrSigner,
    requests: Api<CertificateSigningRequest>,
    status: Mutex<StatusRecorder>,
    /// Certificates that could not be written, with the request's UID, by the request's name: while the API server
    /// fails, retries must not issue a certificate each.
    unwritten: Mutex<HashMap<String, (Option<String>, Issued)>>,
}

impl Signer {
    fn status(&self) -> MutexGuard<'_, StatusRecorder> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, (Option<String>, Issued)>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the unwritten certificate of a request that is done or deleted.
    fn forget(&self, name: &str) {
        self.unwritten().remove(name);
        self.status().object(name, None);
    }

    async fn reconcile(&self, request: &CertificateSigningRequest) -> Result<Action, SignerError> {
        let name = request.metadata.name.as_deref().unwrap_or_default();
        if !is_open(request) || request.spec.signer_name != self.signer.name {
            self.forget(name);
            return Ok(Action::await_change());
        }
        let mut answered = request.clone();
        let issuer = self.ca.issuer();
        let unwritten = self
            .unwritten()
            .remove(name)
            .filter(|(uid, issued)| *uid == request.metadata.uid && Arc::ptr_eq(issued.tbs().issuer(), &issuer));
        let decided = match unwritten {
            Some((_, issued)) => Ok(issued),
            None => self.decide(request).await?,
        };
        match &decided {
            Ok(issued) => {
                let status = answered.status.get_or_insert_default();
                status.certificate = Some(ByteString(chain_pem(issued, self.signer.include_root).into_bytes()));
            }
            Err(refusal) => fail(&mut answered, refusal),
        }
        let username = request.spec.username.as_deref();
        let result = self.requests.replace_status(name, &PostParams::default(), &answered).await;
        match (&result, decided) {
            (Ok(_), Ok(issued)) => {
                tracing::info!(
                    request = name,
                    username,
                    serial = issued.serial().to_hex(),
                    "signed a CertificateSigningRequest"
                )
            }
            (Ok(_), Err(refusal)) => {
                tracing::warn!(request = name, username, refusal, kind = "csr", "refused a CertificateSigningRequest")
            }
            (Err(_), Ok(issued)) => {
                self.unwritten().insert(name.to_owned(), (request.metadata.uid.clone(), issued));
            }
            (Err(_), Err(_)) => {}
        }
        match result {
            Ok(_) => {
                self.forget(name);
                self.status().count("changed");
                Ok(Action::await_change())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.forget(name);
                Ok(Action::await_change())
            }
            // The request was changed meanwhile. The watch reports the change; the retry covers a missed event.
            Err(error) if is_conflict(&error) => Ok(Action::requeue(RETRY_DELAY)),
            Err(error) => Err(error.into()),
        }
    }

    /// Issues the certificate, or returns why it can never be issued.
    async fn decide(&self, request: &CertificateSigningRequest) -> Result<Result<Issued, String>, SignerError> {
        let spec = &request.spec;
        if let Some(usage) = spec.usages.iter().flatten().find(|usage| !USAGES.contains(&usage.as_str())) {
            return Ok(Err(format!("the usage {usage:?} is not granted; permitted usages: {}", USAGES.join(", "))));
        }
        let Ok(csr) = String::from_utf8(spec.request.0.clone()) else {
            return Ok(Err("spec.request is not PEM".to_owned()));
        };
        let username = spec.username.as_deref().unwrap_or_default();
        let request = Request {
            id: RequestId::random().into(),
            caller: Caller::requester(self.cluster.name().clone(), &self.signer.name, username),
            csr,
            asked: Asked { validity_seconds: spec.expiration_seconds.map_or(0, i64::from), ..Asked::default() },
            issuer: None,
            arrived: Instant::now(),
            deadline: None,
        };
        match self.ca.issue(request).await {
            Ok(issued) => Ok(Ok(issued)),
            Err(error) if is_final(&error) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
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

/// Whether the same request can never be signed. Problems that the operator can fix are not final.
fn is_final(error: &IssueError) -> bool {
    match error {
        IssueError::Csr(_) => true,
        IssueError::Denied(denied) => match denied.kind() {
            Kind::InvalidArgument | Kind::PermissionDenied => true,
            Kind::FailedPrecondition => false,
        },
        IssueError::Clock(_)
        | IssueError::Limited(_)
        | IssueError::Log(_)
        | IssueError::Sign(_)
        | IssueError::Tbs(_)
        | IssueError::Verify(_) => false,
    }
}

fn chain_pem(issued: &Issued, include_root: bool) -> String {
    let issuer = issued.tbs().issuer();
    let root = if include_root { issuer.root_pem() } else { "" };
    format!("{}{}{root}", issued.to_pem(), issuer.path_pem().concat())
}

fn fail(request: &mut CertificateSigningRequest, message: &str) {
    let now = Timestamp::try_from(clock::now()).ok().map(Time);
    let cut = message.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_MESSAGE).last();
    let condition = CertificateSigningRequestCondition {
        type_: "Failed".to_owned(),
        status: "True".to_owned(),
        reason: Some("Refused".to_owned()),
        message: Some(message.get(..cut.unwrap_or_default()).unwrap_or_default().to_owned()),
        last_transition_time: now.clone(),
        last_update_time: now,
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
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
        fail(&mut failed, &"ü".repeat(1000));
        assert!(!is_open(&failed));
    }
}
