//! `istio.v1.auth.IstioCertificateService`: converts a message to a request of the pipeline and back; writes one log
//! line.
//!
//! Handles the protocol's fields only, not certificates.

mod metadata;
pub(super) mod request_log;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status, metadata::MetadataMap};

use self::request_log::RequestLog;
use super::{
    connection::Peer,
    settings::Limits,
    status::{Refusal, status},
};
use crate::{
    auth::{Authenticator, ClusterId, Credentials, bearer},
    issue::{self, CertificateAuthority, IssueError, outcome::IssuedBy},
    policy::Asked,
    telemetry::metrics::{self, Step},
};
use istio_api::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};

/// The certificate service. Clones share their state.
#[derive(Clone, Debug)]
pub struct CertificateService {
    ca: Arc<CertificateAuthority>,
    authenticator: Arc<Authenticator>,
    timeout: Duration,
}

impl CertificateService {
    /// Creates the service in front of the issuance pipeline.
    #[must_use]
    pub fn new(ca: Arc<CertificateAuthority>, authenticator: Arc<Authenticator>, limits: &Limits) -> Self {
        Self { ca, authenticator, timeout: limits.request_timeout }
    }

    async fn issue(
        &self,
        headers: &MetadataMap,
        peer: Option<&Peer>,
        message: IstioCertificateRequest,
        deadline: Instant,
        log: &mut RequestLog,
    ) -> Result<IssuedBy, Refusal> {
        let now = self.ca.now().map_err(IssueError::from)?;
        let issuer = self.ca.issuer();
        let caller = self.authenticator.authenticate(&credentials(headers, peer), &issuer, now).await?;
        metrics::step(Step::Authenticate, log.arrived().elapsed());
        log.authenticated(&caller);
        let asked = Asked {
            validity_seconds: message.validity_duration,
            cert_signer: metadata::text(message.metadata.as_ref(), metadata::CERT_SIGNER)?,
            impersonated_identity: metadata::text(message.metadata.as_ref(), metadata::IMPERSONATED_IDENTITY)?,
            operator_names: Vec::new(),
        };
        let caller = match &asked.impersonated_identity {
            Some(id) => self.authenticator.impersonate(caller, id).await?,
            None => caller,
        };
        let request = issue::Request {
            id: log.id().clone().into(),
            caller,
            csr: message.csr,
            asked,
            issuer: Some(issuer),
            arrived: log.arrived(),
            deadline: Some(deadline),
        };
        Ok(self.ca.perform(request).await?)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (headers, extensions, message) = request.into_parts();
        let peer = extensions.get::<Peer>();
        let started = Instant::now();
        let mut log = RequestLog::start(peer.map(|peer| peer.address), started);
        let limit = metadata::timeout(&headers).map_or(self.timeout, |asked| asked.min(self.timeout));
        let deadline = started + limit;
        let issuing = self.issue(&headers, peer, message, deadline, &mut log);
        let result = match tokio::time::timeout_at(deadline.into(), issuing).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::Deadline),
        };
        match result {
            Ok(issued) => {
                if let Some(peer) = peer {
                    peer.standing.authenticate();
                }
                log.issued(&issued, self.ca.recent());
                Ok(Response::new(IstioCertificateResponse { cert_chain: issued.0.chain() }))
            }
            Err(refusal) => {
                let status = status(&refusal, log.id());
                log.refused(&refusal, status.code(), self.ca.recent());
                Err(status)
            }
        }
    }
}

/// The credentials of a request. Values that are not text count as absent, as in Istio's server.
fn credentials<'a>(headers: &'a MetadataMap, peer: Option<&'a Peer>) -> Credentials<'a> {
    let values = |name: &'static str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    Credentials {
        bearer: bearer(values("authorization")),
        cluster_id: ClusterId::from_values(values("clusterid")),
        client_chain: peer.map(|peer| &*peer.certificates).filter(|chain| !chain.is_empty()),
        peer: peer.map(|peer| peer.address.ip()),
        client: peer.map(|peer| peer.standing.client()),
    }
}
