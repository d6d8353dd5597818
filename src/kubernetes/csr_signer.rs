//! Kubernetes CertificateSigningRequests (certificates.k8s.io/v1) for the configured signer names: the way of istiod as
//! a registration authority (ISTIO: security/pkg/pki/ra/k8s_ra.go), and of whoever else is listed.
//!
//! Signed is what is approved, neither denied nor failed, has no certificate yet, asks for our usages alone, and whose
//! requester the list allows just these names. What can never be signed becomes a Failed condition with the reason;
//! what fails for now (a token that is away) is tried again. Writes name UID and resourceVersion of what was read.
//! Approving is not done here. Called by `daemon` while this replica leads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
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
        controller::{Action, Config, Controller, Error as RunError},
        reflector,
        watcher::{self, Event},
    },
};

use super::{
    Cluster,
    board::Board,
    cluster::chain,
    controller::is_conflict,
    settings::CsrSigner,
    watched::{Seen, watched},
};
use crate::{
    auth::Caller,
    issue::{CertificateAuthority, IssueError, Request},
    policy::{Asked, Kind},
    telemetry::RequestId,
};
use pki::Issued;
use process::clock;

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

/// Signs requests for every signer name until dropped.
pub async fn run(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, signers: Vec<CsrSigner>) {
    let all = signers.into_iter().map(|signer| sign_for(Arc::clone(&cluster), Arc::clone(&ca), signer));
    futures_util::future::join_all(all).await;
}

async fn sign_for(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, signer: CsrSigner) {
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let ours = watcher::Config::default().fields(&format!("spec.signerName={}", signer.name));
    let board = Mutex::new(Board::new(NAME, &cluster));
    let watch = format!("the watch of CertificateSigningRequests for {}", signer.name);
    let seen = watched(requests.clone(), ours);
    let context = Arc::new(Signer { cluster, ca, signer, requests, board, unwritten: Mutex::default() });
    let (store, mut writer) = reflector::store();
    let told = Arc::clone(&context);
    let mut listed = Vec::new();
    let changed = seen.flat_map(move |seen| {
        if let Seen::Event(event) = &seen {
            writer.apply_watcher_event(event);
        }
        let requests = match seen {
            Seen::Event(Event::Apply(request)) => vec![request],
            Seen::Event(Event::Init) => {
                listed.clear();
                Vec::new()
            }
            // The cache shows a list when it is complete, and not before.
            Seen::Event(Event::InitApply(request)) => {
                listed.push(request);
                Vec::new()
            }
            Seen::Event(Event::InitDone) => {
                told.board().count("unchanged");
                std::mem::take(&mut listed)
            }
            Seen::Event(Event::Delete(request)) => {
                told.forget(request.metadata.name.as_deref().unwrap_or_default());
                Vec::new()
            }
            Seen::Trouble(reason) => {
                told.board().watch(&watch, Some(reason));
                Vec::new()
            }
            Seen::Holds => {
                told.board().watch(&watch, None);
                Vec::new()
            }
        };
        stream::iter(requests.into_iter().map(Ok))
    });
    let told = Arc::clone(&context);
    Controller::for_stream(changed, store)
        .with_config(Config::default().concurrency(AT_ONCE))
        .run(|request, context| async move { context.look(&request).await }, again, context)
        .for_each(|result| {
            // What else fails is told by [`again`], and by the watch.
            if let Err(RunError::ObjectNotFound(request)) = result {
                told.forget(&request.name);
            }
            std::future::ready(())
        })
        .await;
}

fn again(request: Arc<CertificateSigningRequest>, error: &SignerError, context: Arc<Signer>) -> Action {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let mut board = context.board();
    board.object(name, Some(error.to_string()));
    board.count("error");
    Action::requeue(PAUSE)
}

struct Signer {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    signer: CsrSigner,
    requests: Api<CertificateSigningRequest>,
    board: Mutex<Board>,
    /// What was issued and not yet written, by the request's name, with its UID: an API server that is away or refuses
    /// must not cost a certificate at each attempt.
    unwritten: Mutex<HashMap<String, (Option<String>, Issued)>>,
}

impl Signer {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, (Option<String>, Issued)>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request needs nothing more, or is gone.
    fn forget(&self, name: &str) {
        self.unwritten().remove(name);
        self.board().object(name, None);
    }

    async fn look(&self, request: &CertificateSigningRequest) -> Result<Action, SignerError> {
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
                tracing::info!(request = name, username, serial = issued.serial().to_hex(), "signed")
            }
            (Ok(_), Err(refusal)) => tracing::warn!(request = name, username, refusal, "refused"),
            (Err(_), Ok(issued)) => {
                self.unwritten().insert(name.to_owned(), (request.metadata.uid.clone(), issued));
            }
            (Err(_), Err(_)) => {}
        }
        match result {
            Ok(_) => {
                self.forget(name);
                self.board().count("changed");
                Ok(Action::await_change())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.forget(name);
                Ok(Action::await_change())
            }
            // It is another by now, which the watch shows; and if that was missed, another look does.
            Err(error) if is_conflict(&error) => Ok(Action::requeue(PAUSE)),
            Err(error) => Err(error.into()),
        }
    }

    /// A certificate, or why there will never be one.
    async fn decide(&self, request: &CertificateSigningRequest) -> Result<Result<Issued, String>, SignerError> {
        let spec = &request.spec;
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

fn fail(request: &mut CertificateSigningRequest, message: &str) {
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
        fail(&mut failed, &"ü".repeat(1000));
        assert!(!is_open(&failed));
    }
}
