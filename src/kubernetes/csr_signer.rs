//! Kubernetes CertificateSigningRequests (certificates.k8s.io/v1) for the configured signer names: the way of istiod as
//! a registration authority (ISTIO: security/pkg/pki/ra/k8s_ra.go), and of whoever else is listed.
//!
//! Signed is what is approved, neither denied nor failed, has no certificate yet, asks for our usages alone, and whose
//! requester the list allows just these names. What can never be signed becomes a Failed condition with the reason;
//! what fails for now (a token that is away) is tried again. Writes name UID and resourceVersion of what was read.
//! Approving is not done here. Called by `daemon` while this replica leads.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::PostParams,
    runtime::{
        controller::{Action, Config, Controller, Error as RunError},
        watcher,
    },
};

use super::{
    Cluster,
    cluster::chain,
    controller::{Board, is_conflict},
    settings::CsrSigner,
};
use crate::{
    auth::Caller,
    clock,
    issue::{CertificateAuthority, IssueError, Request},
    pki::Issued,
    policy::{Asked, Kind},
    telemetry::{RequestId, metrics},
};

/// The controller's name in logs and metrics.
pub const NAME: &str = "csr_signer";
/// The usages that our certificates have (ISTIO: security/pkg/k8s/chiron/utils.go); others are refused.
const USAGES: [&str; 4] = ["client auth", "digital signature", "key encipherment", "server auth"];
/// How many requests are worked on at once.
const AT_ONCE: u16 = 32;
/// The pause before a request is tried again; istiod waits for a minute.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest message of a condition in bytes.
const MESSAGE_MAX: usize = 1024;

/// Why a request is neither signed nor failed yet.
#[derive(Debug, thiserror::Error)]
enum SignerError {
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// Signs requests until dropped.
pub async fn run(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, signer: CsrSigner) {
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let ours = watcher::Config::default().fields(&format!("spec.signerName={}", signer.name));
    let board = Mutex::new(Board::new(NAME, cluster.name()));
    let context = Arc::new(Signer { cluster, ca, signer, requests: requests.clone(), board });
    let told = Arc::clone(&context);
    Controller::new(requests, ours)
        .with_config(Config::default().concurrency(AT_ONCE))
        .run(|request, context| async move { context.look(&request).await }, again, context)
        .for_each(|result| {
            match result {
                Ok(_) => told.tell("the watch", None),
                Err(RunError::QueueError(error)) => told.tell("the watch", Some(chain(&error))),
                // Told by [`again`].
                Err(RunError::ObjectNotFound(_) | RunError::ReconcilerFailed(..) | RunError::RunnerError(_)) => {}
            }
            std::future::ready(())
        })
        .await;
}

fn again(request: Arc<CertificateSigningRequest>, error: &SignerError, context: Arc<Signer>) -> Action {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    metrics::reconciled(NAME, context.cluster.name().as_str(), "error");
    context.tell(name, Some(error.to_string()));
    Action::requeue(PAUSE)
}

struct Signer {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    signer: CsrSigner,
    requests: Api<CertificateSigningRequest>,
    board: Mutex<Board>,
}

impl Signer {
    fn tell(&self, object: &str, reason: Option<String>) {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).tell_one(object, reason);
    }

    async fn look(&self, request: &CertificateSigningRequest) -> Result<Action, SignerError> {
        let name = request.metadata.name.as_deref().unwrap_or_default();
        if !is_open(request) || request.spec.signer_name != self.signer.name {
            self.tell(name, None);
            return Ok(Action::await_change());
        }
        let mut answered = request.clone();
        match self.decide(&request.spec).await? {
            Ok(issued) => {
                tracing::info!(
                    request = name,
                    username = request.spec.username,
                    serial = issued.serial().to_hex(),
                    "signed"
                );
                let status = answered.status.get_or_insert_default();
                status.certificate = Some(ByteString(chain_pem(&issued, self.signer.include_root).into_bytes()));
            }
            Err(refusal) => {
                tracing::warn!(request = name, username = request.spec.username, refusal, "refused");
                fail(&mut answered, refusal);
            }
        }
        match self.requests.replace_status(name, &PostParams::default(), &answered).await {
            Ok(_) => metrics::reconciled(NAME, self.cluster.name().as_str(), "changed"),
            // It has gone, or is another by now, which the watch shows.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
        self.tell(name, None);
        Ok(Action::await_change())
    }

    /// A certificate, or why there will never be one.
    async fn decide(&self, spec: &CertificateSigningRequestSpec) -> Result<Result<Issued, String>, SignerError> {
        if let Some(usage) = spec.usages.iter().flatten().find(|usage| !USAGES.contains(&usage.as_str())) {
            return Ok(Err(format!("the usage {usage:?} is not granted; ask for: {}", USAGES.join(", "))));
        }
        let Ok(csr) = String::from_utf8(spec.request.0.clone()) else {
            return Ok(Err("the request is no PEM text".to_owned()));
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

/// Whether a request waits for a certificate: approved, not denied, not failed, not signed.
fn is_open(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else { return false };
    let has = |kind: &str| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
    };
    let signed = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
    request.metadata.deletion_timestamp.is_none() && !signed && has("Approved") && !has("Denied") && !has("Failed")
}

/// Whether the same request can never be signed. What the operator can mend is no reason to fail it.
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

fn fail(request: &mut CertificateSigningRequest, message: String) {
    let now = Timestamp::try_from(clock::now()).ok().map(Time);
    let cut = message.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MESSAGE_MAX).last();
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
    fn only_what_is_approved_and_nothing_else_is_open() {
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
        fail(&mut failed, "ü".repeat(1000));
        assert!(!is_open(&failed));
    }
}
