//! CRLs through the pipeline: recorded, signed, verified.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{CertificateAuthority, IssueError, StageTimer};
use crate::{
    auth::{Caller, InternalCaller},
    signer::{Context, Priority, ToBeSigned},
};
use audit_log::CrlIntent;
use pki::{CrlTbs, SignedCrl};

impl CertificateAuthority {
    /// Signs one CRL. `now` is the time at which it was built.
    ///
    /// # Errors
    /// Of the first step that fails; no CRL is released then.
    pub async fn sign_crl(
        &self,
        id: Arc<str>,
        tbs: Arc<CrlTbs>,
        now: SystemTime,
        deadline: Instant,
    ) -> Result<SignedCrl, IssueError> {
        let caller = Caller::internal(InternalCaller::Crl);
        let intent =
            CrlIntent { request_id: id.to_string(), time: now, caller: (&caller).into(), tbs: Arc::clone(&tbs) };
        let message = ToBeSigned::Crl(self.log.record_crl(intent).await?);
        let context = Context { request_id: id, deadline, priority: Priority::High, avoid: Vec::new() };
        let signed = self
            .sign(&message, context, StageTimer::start(), |signature| SignedCrl::assemble(Arc::clone(&tbs), signature));
        signed.await.map(|(crl, _token)| crl)
    }
}
