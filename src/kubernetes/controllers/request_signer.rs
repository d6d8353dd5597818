//! Answers requests for certificates that are Kubernetes objects, by writing the certificate or the reason for a refusal
//! into the request's status. What the kinds of requests have in common.
//!
//! A request that can never be granted is refused; after a temporary failure, such as an unavailable token, it is
//! retried. Writes carry the UID and resourceVersion that were read.

use std::{future::Future, sync::Arc};

use kube::{
    Api, Resource,
    api::{ListParams, PostParams},
    runtime::{controller::Action, watcher},
};
use pki::Issued;

use super::{
    Mistakes,
    request_loop::{self, Progress, Reconciler, RequestObject, SignerError, name_of},
};
use crate::{
    issue::{CertificateAuthority, IssueError},
    kubernetes::Cluster,
    policy::Kind,
};

/// Maximum length of a condition's message in bytes.
pub(super) const MAX_MESSAGE: usize = 1024;

/// A kind of request, and how one signer answers it.
pub(super) trait RequestKind: Send + Sync + 'static {
    /// The object.
    type Object: RequestObject;
    /// The controller's name in logs, metrics and readiness.
    const CONTROLLER: &'static str;
    /// The kind's name in messages.
    const KIND: &'static str;
    /// The `kind` of log lines about refusals.
    const LOG_KIND: &'static str;

    /// The `signerName` it signs for.
    fn signer(&self) -> &str;

    /// Kind and version of the object.
    fn dynamic_type(&self) -> <Self::Object as Resource>::DynamicType;

    /// The API of a namespace, or of all namespaces.
    fn api(&self, cluster: &Cluster, namespace: Option<&str>) -> Api<Self::Object>;

    /// Whether the request is for this signer and waits for its answer.
    fn is_open(&self, request: &Self::Object) -> bool;

    /// Who requests, for logs.
    fn requester(&self, request: &Self::Object) -> String;

    /// Issues the certificate, or returns why it can never be issued.
    fn decide(
        &self,
        cluster: &Cluster,
        ca: &CertificateAuthority,
        request: &Self::Object,
    ) -> impl Future<Output = Result<Result<Issued, Refusal>, SignerError>> + Send;

    /// Whether the API server still accepts this certificate as an answer.
    fn is_acceptable(&self, _issued: &Issued) -> bool {
        true
    }

    /// Sets the status of a granted request.
    fn grant(&self, request: &mut Self::Object, issued: &Issued);

    /// Sets the status of a refused request.
    fn refuse(&self, request: &mut Self::Object, refusal: &Refusal);
}

/// Why a request can never be granted.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The condition's reason.
    pub(super) reason: &'static str,
    /// The condition's message.
    pub(super) message: String,
}

impl Refusal {
    /// A refusal without a reason of its own.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { reason: "Refused", message: message.into() }
    }

    /// The message, short enough for a condition.
    pub(super) fn short_message(&self) -> String {
        shortened(&self.message)
    }
}

/// A message, cut to the length that a condition may have.
pub(super) fn shortened(message: &str) -> String {
    let ends = message.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_MESSAGE).last().unwrap_or_default();
    message.get(..end).unwrap_or_default().to_owned()
}

/// Checks the name of a signer (Kubernetes: pkg/apis/core/validation, ValidateSignerName). `section` is its section of
/// the configuration.
pub(super) fn check_signer_name(section: &str, name: &str, mistakes: &mut Mistakes) {
    let well_formed = name.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty());
    if !well_formed || name.starts_with("kubernetes.io/") {
        mistakes.add(
            section,
            format!("{name:?} is not a valid signer name; write domain/path, for example hsm.example.com/istio"),
        );
    }
}

/// Whether the same request can never be granted. Problems that the operator can fix are not final.
pub(super) fn is_final(error: &IssueError) -> bool {
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

/// The certificate with those between it and a root, and optionally the root.
pub(super) fn chain_pem(issued: &Issued, include_root: bool) -> String {
    let issuer = issued.tbs().issuer();
    let root = if include_root { issuer.root_pem() } else { "" };
    format!("{}{}{root}", issued.to_pem(), issuer.path_pem().concat())
}

/// Signs the requests for one signer name until dropped.
pub(super) async fn run<K: RequestKind>(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, kind: K) {
    let requests = kind.api(&cluster, None);
    let ours = watcher::Config::default().fields(&format!("spec.signerName={}", kind.signer()));
    let watch = format!("the watch of {}s for {}", K::KIND, kind.signer());
    let (dynamic_type, progress) = (kind.dynamic_type(), Progress::new(K::CONTROLLER, &cluster));
    request_loop::run(requests, ours, dynamic_type, watch, Signer { cluster, ca, kind, progress }).await;
}

struct Signer<K> {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    kind: K,
    /// A request's version is its UID.
    progress: Progress<Option<String>>,
}

impl<K: RequestKind> Reconciler for Signer<K> {
    type Object = K::Object;
    type Version = Option<String>;

    fn progress(&self) -> &Progress<Self::Version> {
        &self.progress
    }

    async fn reconcile(&self, request: &K::Object) -> Result<Action, SignerError> {
        let name = name_of(request);
        if !self.kind.is_open(request) {
            self.progress.forget(&name);
            return Ok(Action::await_change());
        }
        let api = self.kind.api(&self.cluster, request.meta().namespace.as_deref());
        let object_name = request.meta().name.as_deref().unwrap_or_default();
        let uid = &request.meta().uid;
        let decided = match self.progress.take_unwritten(&name, uid, &self.ca.issuer()) {
            Some(issued) if self.kind.is_acceptable(&issued) => Ok(issued),
            Some(issued) => {
                // The API server was away for long. It must answer before another certificate is issued, or each retry
                // would issue one.
                if let Err(error) = api.list(&named(object_name)).await {
                    self.progress.keep_unwritten(&name, uid.clone(), issued);
                    return Err(error.into());
                }
                self.kind.decide(&self.cluster, &self.ca, request).await?
            }
            None => self.kind.decide(&self.cluster, &self.ca, request).await?,
        };
        let mut answered = request.clone();
        match &decided {
            Ok(issued) => self.kind.grant(&mut answered, issued),
            Err(refusal) => self.kind.refuse(&mut answered, refusal),
        }
        let result = api.replace_status(object_name, &PostParams::default(), &answered).await;
        let requester = self.kind.requester(request);
        match (&result, decided) {
            (Ok(_), Ok(issued)) => {
                let serial = issued.serial().to_hex();
                tracing::info!(request = name, requester, serial, "signed a {}", K::KIND);
            }
            (Ok(_), Err(refusal)) => {
                let (refusal, kind) = (refusal.message, K::LOG_KIND);
                tracing::warn!(request = name, requester, refusal, kind, "refused a {}", K::KIND);
            }
            (Err(_), Ok(issued)) => self.progress.keep_unwritten(&name, uid.clone(), issued),
            (Err(_), Err(_)) => {}
        }
        self.progress.written(&name, result)
    }
}

/// The object with one name, of which the signer may not `get` a single one.
fn named(name: &str) -> ListParams {
    ListParams::default().fields(&format!("metadata.name={name}")).limit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_a_refusal_is_cut_between_characters() {
        let refusal = Refusal::new("a".to_owned() + &"ü".repeat(1000));
        assert_eq!(refusal.short_message().len(), MAX_MESSAGE - 1);
        assert_eq!(Refusal::new("ü").short_message(), "ü");
    }
}
