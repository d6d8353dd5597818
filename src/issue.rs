//! The issuance pipeline, from a caller and a request to a certificate. Only this module has a signer.
//!
//! Each rejection is a variant of one closed enum. Each front end maps it to its own error in one exhaustive match.

mod crl;
mod label;
pub mod limits;
pub mod outcome;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    auth::{Caller, DenylistCheck, Identity},
    policy::{Asked, Denied, Rules},
    publication::Publication,
    revocation::{Revocations, Subject},
    signer::{Context, Priority, SignError, Signer, ToBeSigned},
    telemetry::{
        metrics::{self, Step},
        recent::Recent,
    },
};
use audit_log::{Intent, Log, LogError, Outcome};
use limits::{Limited, Limits};
use outcome::{IssuedBy, RequestInfo};
use pki::{
    Issued, Issuer, Tbs, VerifiedCsr,
    csr::CsrError,
    tbs::{Serial, TbsError},
    verify::VerifyError,
};
use process::clock::{Clock, ClockError};

/// Number of wrong signatures after which a request fails: one from each of two tokens.
const WRONG_SIGNATURES: usize = 2;

/// A request of an authenticated caller.
#[derive(Debug)]
pub struct Request {
    /// The request ID, as in the logs, in the issuance log and in the client's error.
    pub id: Arc<str>,
    /// The authenticated caller.
    pub caller: Caller,
    /// The PEM certificate request.
    pub csr: String,
    /// Requested content in addition to the CSR.
    pub asked: Asked,
    /// The issuer for this request; `None` uses the current one.
    pub issuer: Option<Arc<Issuer>>,
    /// When the request arrived.
    pub arrived: Instant,
    /// When the caller stops waiting; `None` uses the daemon's default.
    pub deadline: Option<Instant>,
}

/// Errors of the issuance pipeline.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The clock is not plausible.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The CSR is invalid.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// Policy does not permit it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A rate limit was exceeded.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// The intent could not be made durable.
    #[error(transparent)]
    Log(#[from] LogError),
    /// No token signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// No valid TBSCertificate could be built.
    #[error(transparent)]
    Tbs(#[from] TbsError),
    /// The signed certificate is not the intended one.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// The long-lived parts of the issuance pipeline.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: watch::Sender<Arc<Issuer>>,
    publication: watch::Sender<Arc<Publication>>,
    rules: Rules,
    denylist: DenylistCheck,
    revocations: Revocations,
    limits: Limits,
    first_class: Vec<pki::identity::SpiffeId>,
    default_deadline: Duration,
    clock: Clock,
    log: Log,
    signer: Arc<dyn Signer>,
    recent: Arc<Recent>,
}

/// Arguments of [`CertificateAuthority::new`].
#[derive(Debug)]
pub struct Parts {
    /// The issuing CA.
    pub issuer: Arc<Issuer>,
    /// The rules of policy.
    pub rules: Rules,
    /// Identities and keys that get no certificate.
    pub denylist: DenylistCheck,
    /// Revoked certificates, and whom no further ones are issued to.
    pub revocations: Revocations,
    /// Rate limits.
    pub limits: Limits,
    /// Identities whose requests have high priority: istiod's, gateways'.
    pub first_class: Vec<pki::identity::SpiffeId>,
    /// Deadline of requests whose callers set none.
    pub default_deadline: Duration,
    /// The daemon's clock.
    pub clock: Clock,
    /// The issuance log.
    pub log: Log,
    /// The tokens.
    pub signer: Arc<dyn Signer>,
    /// Activity of the last hour, for the status page.
    pub recent: Arc<Recent>,
}

impl CertificateAuthority {
    /// Assembles the pipeline.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            issuer,
            rules,
            denylist,
            revocations,
            limits,
            first_class,
            default_deadline,
            clock,
            log,
            signer,
            recent,
        } = parts;
        let (issuer, publication) = (watch::Sender::new(issuer), watch::Sender::default());
        Self {
            issuer,
            publication,
            rules,
            denylist,
            revocations,
            limits,
            first_class,
            default_deadline,
            clock,
            log,
            signer,
            recent,
        }
    }

    /// The issuer for new requests.
    #[must_use]
    pub fn issuer(&self) -> Arc<Issuer> {
        Arc::clone(&self.issuer.borrow())
    }

    /// Replaces the issuer, whose key every token must hold; requests in progress keep the one they started with.
    pub fn replace_issuer(&self, issuer: Arc<Issuer>) {
        self.issuer.send_replace(issuer);
    }

    /// The issuer of new requests, now and after each replacement.
    #[must_use]
    pub fn issuers(&self) -> watch::Receiver<Arc<Issuer>> {
        self.issuer.subscribe()
    }

    /// The CRLs of the bundle's CAs.
    #[must_use]
    pub fn publication(&self) -> Arc<Publication> {
        Arc::clone(&self.publication.borrow())
    }

    /// Replaces the CRLs; nothing happens if they are the same.
    pub fn replace_publication(&self, publication: Publication) {
        self.publication.send_if_modified(|current| {
            let is_another = **current != publication;
            if is_another {
                *current = Arc::new(publication);
            }
            is_another
        });
    }

    /// The CRLs, now and after each change.
    #[must_use]
    pub fn publications(&self) -> watch::Receiver<Arc<Publication>> {
        self.publication.subscribe()
    }

    /// The time of day, if it is plausible.
    ///
    /// # Errors
    /// Those of [`Clock::now`].
    pub fn now(&self) -> Result<std::time::SystemTime, ClockError> {
        self.clock.now()
    }

    /// The clock's trusted time ([`Clock::trusted`]).
    #[must_use]
    pub fn trusted_time(&self) -> Option<std::time::SystemTime> {
        self.clock.trusted()
    }

    /// Activity of the last hour.
    #[must_use]
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Issues one certificate and records the outcome; for front ends without a request log.
    ///
    /// # Errors
    /// Of the first step that rejects or fails; no certificate is released then.
    pub async fn issue(&self, request: Request) -> Result<Issued, IssueError> {
        let info = RequestInfo {
            id: Arc::clone(&request.id),
            caller: request.caller.identity().to_string(),
            method: request.caller.method().as_str(),
            arrived: request.arrived,
        };
        let result = self.perform(request).await;
        info.record(&self.recent, &result);
        result.map(|(issued, _)| issued)
    }

    /// Like [`Self::issue`], but the caller records the outcome.
    ///
    /// # Errors
    /// Those of [`Self::issue`].
    pub async fn perform(&self, request: Request) -> Result<IssuedBy, IssueError> {
        let Request { id, caller, csr, asked, issuer, arrived: _, deadline } = request;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + self.default_deadline);
        let issuer = issuer.unwrap_or_else(|| self.issuer());
        let now = self.clock.now()?;
        self.limits.admit(&caller)?;
        let mut timer = StageTimer::start();
        let csr = match caller.identity() {
            Identity::CertificateRequester(requester) if requester.is_ca => VerifiedCsr::for_ca_from_pem(&csr)?,
            _ => VerifiedCsr::from_pem(&csr)?,
        };
        timer.record(Step::Csr);
        let grant = self.rules.decide(&caller, &csr, &asked, &issuer, now)?;
        if let Some(entry) = self.denylist.denied(&caller, grant.template()) {
            return Err(Denied::Denylist(entry).into());
        }
        let subject = Subject {
            caller: caller.for_whom(),
            names: &grant.template().names,
            key: grant.template().public_key.fingerprint(),
            node: caller.node(),
        };
        if let Some(reason) = self.revocations.denied(&subject, now) {
            return Err(Denied::Revoked(reason).into());
        }
        self.limits.admit_names(&caller, grant.template())?;
        let tbs = Arc::new(Tbs::build(grant.template().clone(), issuer, Serial::random())?);
        timer.record(Step::Build);
        let priority = self.priority(&caller);
        let intent = Intent { request_id: id.to_string(), time: now, caller: (&caller).into(), tbs: Arc::clone(&tbs) };
        let message = ToBeSigned::Certificate(self.log.record(intent).await?);
        timer.record(Step::Log);
        let context = Context { request_id: id, deadline, priority, avoid: Vec::new() };
        self.sign(&message, context, timer, |signature| Issued::assemble(Arc::clone(&tbs), signature)).await
    }

    /// Requests the signature for a recorded message and verifies it with `assemble`. After a wrong signature, another
    /// token is used. Returns the signed object and the name of the token.
    async fn sign<T>(
        &self,
        message: &ToBeSigned,
        mut context: Context,
        mut timer: StageTimer,
        assemble: impl Fn(&[u8]) -> Result<T, VerifyError>,
    ) -> Result<(T, Arc<str>), IssueError> {
        let mut guard = OutcomeGuard { log: &self.log, index: message.index(), outcome: None };
        loop {
            let signed = match self.signer.sign(message, &context).await {
                Ok(signed) => signed,
                Err(error) => return Err(guard.failed(error.into())),
            };
            timer.record(Step::Sign);
            let issued = assemble(&signed.signature);
            timer.record(Step::Verify);
            self.signer.verdict(&signed.source, issued.is_ok());
            let token = signed.source.token;
            match issued {
                Ok(issued) => {
                    guard.outcome = Some(Outcome::Issued { token: token.to_string() });
                    return Ok((issued, token));
                }
                Err(error) => {
                    let request_id = &*context.request_id;
                    tracing::error!(request_id, token = &*token, %error, "ALARM: the token returned a wrong signature, which is not released");
                    metrics::wrong_signature(&token);
                    context.avoid.push(token);
                    if context.avoid.len() >= WRONG_SIGNATURES {
                        return Err(guard.failed(error.into()));
                    }
                }
            }
        }
    }

    fn priority(&self, caller: &Caller) -> Priority {
        match (caller.for_whom(), caller.identity()) {
            (Some(id), _) if !self.first_class.contains(id) => Priority::Normal,
            // istiod requests certificates of all workloads this way.
            (None, Identity::Requester { .. } | Identity::CertificateRequester(_)) => Priority::Normal,
            (Some(_) | None, _) => Priority::High,
        }
    }
}

/// Measures consecutive steps.
struct StageTimer(Instant);

impl StageTimer {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn record(&mut self, step: Step) {
        let now = Instant::now();
        metrics::step(step, now.saturating_duration_since(self.0));
        self.0 = now;
    }
}

/// Records the outcome of an intent in the log, even if the client disconnects.
struct OutcomeGuard<'a> {
    log: &'a Log,
    index: u64,
    outcome: Option<Outcome>,
}

impl OutcomeGuard<'_> {
    fn failed(&mut self, error: IssueError) -> IssueError {
        self.outcome = Some(Outcome::Failed { reason: error.to_string() });
        error
    }
}

impl Drop for OutcomeGuard<'_> {
    fn drop(&mut self) {
        let gone = || Outcome::Failed { reason: "the client disconnected".to_owned() };
        self.log.outcome(self.index, self.outcome.take().unwrap_or_else(gone));
    }
}
