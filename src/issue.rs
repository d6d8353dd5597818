//! THE path from a caller and a request to a certificate; the only owner of a signer.
//!
//! Called by `grpc`, `kubernetes`, the admin socket and the daemon itself. What is refused here says why in one
//! closed enum, which each front end turns into its own words in one exhaustive match.

pub mod limits;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    auth::Caller,
    clock::{Clock, ClockError},
    log::{Intent, Log, LogError, Outcome, Recorded},
    pki::{Issued, Issuer, Tbs, VerifiedCsr, csr::CsrError, tbs::Serial, tbs::TbsError, verify::VerifyError},
    policy::{Asked, Denied, Rules},
    signer::{Class, Context, SignError, Signer},
};
use limits::{Limited, Limits};

/// How many wrong signatures one request bears before it is given up: one from each of two tokens.
const WRONG_SIGNATURES: usize = 2;

/// A request from somebody whose identity is proven.
#[derive(Debug)]
pub struct Request {
    /// The id that stands in the logs, in the issuance log and in the client's error.
    pub id: Arc<str>,
    /// Who asks.
    pub caller: Caller,
    /// The PEM certificate request.
    pub csr: String,
    /// What is asked for besides.
    pub asked: Asked,
    /// When the caller stops waiting; `None` takes the daemon's default.
    pub deadline: Option<Instant>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The clock cannot be believed.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The request itself is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The caller may not have this.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A rate limit.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// The intent could not be made durable.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The token did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Nothing that may be signed could be built.
    #[error(transparent)]
    Tbs(#[from] TbsError),
    /// What the token gave is not the certificate that was meant.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// The parts of the path that live as long as the daemon.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: ArcSwap<Issuer>,
    rules: Rules,
    limits: Limits,
    first_class: Vec<crate::identity::SpiffeId>,
    default_deadline: Duration,
    clock: Clock,
    log: Log,
    signer: Arc<dyn Signer>,
}

/// What [`CertificateAuthority`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The plugged-in CA.
    pub issuer: Arc<Issuer>,
    /// The rules of policy.
    pub rules: Rules,
    /// Rate limits.
    pub limits: Limits,
    /// Identities whose requests go first: istiod's, gateways'.
    pub first_class: Vec<crate::identity::SpiffeId>,
    /// How long a request may take whose caller sets no deadline.
    pub default_deadline: Duration,
    /// The daemon's clock.
    pub clock: Clock,
    /// The issuance log.
    pub log: Log,
    /// The tokens.
    pub signer: Arc<dyn Signer>,
}

impl CertificateAuthority {
    /// Puts the path together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { issuer, rules, limits, first_class, default_deadline, clock, log, signer } = parts;
        Self { issuer: ArcSwap::new(issuer), rules, limits, first_class, default_deadline, clock, log, signer }
    }

    /// The issuer with which new requests start.
    #[must_use]
    pub fn issuer(&self) -> Arc<Issuer> {
        self.issuer.load_full()
    }

    /// Takes another issuer, proven on every token before; requests under way end with the one they started with.
    pub fn replace_issuer(&self, issuer: Arc<Issuer>) {
        self.issuer.store(issuer);
    }

    /// The time of day, if it can be believed.
    ///
    /// # Errors
    /// As [`Clock::now`].
    pub fn now(&self) -> Result<std::time::SystemTime, ClockError> {
        self.clock.now()
    }

    /// Issues one certificate.
    ///
    /// # Errors
    /// The first step that refuses or fails; nothing is released then.
    pub async fn issue(&self, request: Request) -> Result<Issued, IssueError> {
        let Request { id, caller, csr, asked, deadline } = request;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + self.default_deadline);
        let issuer = self.issuer();
        let now = self.clock.now()?;
        self.limits.admit(&caller)?;
        let csr = VerifiedCsr::from_pem(&csr)?;
        let grant = self.rules.decide(&caller, &csr, &asked, &issuer, now)?;
        self.limits.admit_names(&caller, grant.template())?;
        let tbs = Arc::new(Tbs::build(grant.template().clone(), issuer, Serial::random())?);
        let class = self.class(&caller);
        let intent = Intent { request_id: id.to_string(), time: now, caller, grant: Some(grant), tbs };
        let recorded = self.log.record(intent).await?;
        let context = Context { request_id: id, deadline, class, avoid: Vec::new() };
        self.sign(recorded, context).await
    }

    /// Has a recorded certificate signed and verifies it; another token is asked when one signs wrongly.
    async fn sign(&self, recorded: Recorded<Arc<Tbs>>, mut context: Context) -> Result<Issued, IssueError> {
        let mut fate = Fate { log: &self.log, index: recorded.index(), outcome: None };
        loop {
            let signed = match self.signer.sign(&recorded, &context).await {
                Ok(signed) => signed,
                Err(error) => return Err(fate.failed(error.into())),
            };
            let issued = Issued::assemble(Arc::clone(recorded.value()), &signed.signature);
            self.signer.verdict(&signed.source, issued.is_ok());
            match issued {
                Ok(issued) => {
                    fate.outcome = Some(Outcome::Issued { token: signed.source.token.to_string() });
                    return Ok(issued);
                }
                Err(error) => {
                    tracing::error!(
                        request_id = &*context.request_id, token = &*signed.source.token, %error,
                        "ALARM: what the token signed is not released"
                    );
                    context.avoid.push(signed.source.token);
                    if context.avoid.len() >= WRONG_SIGNATURES {
                        return Err(fate.failed(error.into()));
                    }
                }
            }
        }
    }

    fn class(&self, caller: &Caller) -> Class {
        match caller.identity() {
            crate::auth::Identity::Workload(id) if !self.first_class.contains(id) => Class::Bulk,
            _ => Class::First,
        }
    }
}

/// Tells the log what became of an intent, also when the caller went away in between.
struct Fate<'a> {
    log: &'a Log,
    index: u64,
    outcome: Option<Outcome>,
}

impl Fate<'_> {
    fn failed(&mut self, error: IssueError) -> IssueError {
        self.outcome = Some(Outcome::Failed { reason: error.to_string() });
        error
    }
}

impl Drop for Fate<'_> {
    fn drop(&mut self) {
        let gone = || Outcome::Failed { reason: "the caller went away".to_owned() };
        self.log.outcome(self.index, self.outcome.take().unwrap_or_else(gone));
    }
}
