//! The record of a gRPC request: a log line, metrics and the status page. Also written if the client disconnects.
//!
//! Holds names and numbers, never a token or a key. Lines that any client can cause have a `kind`, by which
//! [`process::logging`] aggregates them.

use std::{net::SocketAddr, time::Instant};

use tonic::Code;

use crate::{
    auth::Caller,
    grpc::status::{Refusal, code_name},
    issue::outcome::{IssuedBy, RequestInfo},
    telemetry::{RequestId, metrics, recent::Recent},
};
use process::error::chain;

/// A request in progress.
#[derive(Debug)]
pub struct RequestLog {
    id: RequestId,
    peer: Option<SocketAddr>,
    info: RequestInfo,
    is_recorded: bool,
}

impl RequestLog {
    /// Starts the record of a request.
    #[must_use]
    pub fn start(peer: Option<SocketAddr>, arrived: Instant) -> Self {
        metrics::request();
        let id = RequestId::random();
        let info = RequestInfo { id: id.clone().into(), caller: String::new(), method: "none", arrived };
        Self { id, peer, info, is_recorded: false }
    }

    /// The request ID.
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// When the request arrived.
    #[must_use]
    pub fn arrived(&self) -> Instant {
        self.info.arrived
    }

    /// Sets the authenticated caller.
    pub fn authenticated(&mut self, caller: &Caller) {
        self.info.caller = caller.identity().to_string();
        self.info.method = caller.method().as_str();
    }

    /// Records that a certificate was issued.
    pub fn issued(mut self, issued_by: &IssuedBy, recent: &Recent) {
        let tbs = issued_by.0.tbs();
        let names: Vec<_> = tbs.template().names.iter().map(ToString::to_string).collect();
        tracing::info!(
            request_id = %self.id,
            peer = self.peer.map(tracing::field::display),
            identity = self.identity(),
            method = self.info.method,
            names = names.join(","),
            serial = tbs.serial().to_hex(),
            ms = self.milliseconds(),
            "issued"
        );
        self.info.issued(recent, issued_by);
        self.is_recorded = true;
    }

    /// Records an error.
    pub fn refused(mut self, refusal: &Refusal, code: Code, recent: &Recent) {
        let reason = chain(refusal);
        tracing::warn!(
            request_id = %self.id,
            peer = self.peer.map(tracing::field::display),
            identity = self.identity(),
            method = self.info.method,
            code = code_name(code),
            kind = refusal.label(),
            reason,
            ms = self.milliseconds(),
            "refused"
        );
        match refusal {
            Refusal::Auth(_) | Refusal::Impersonation(_) => metrics::unauthenticated(),
            Refusal::Issue(error) => metrics::sign_error(error.istio_kind()),
            Refusal::Deadline | Refusal::Metadata { .. } | Refusal::Overload => {}
        }
        self.info.refused(recent, refusal.label(), reason);
        self.is_recorded = true;
    }

    fn identity(&self) -> Option<&str> {
        Some(self.info.caller.as_str()).filter(|caller| !caller.is_empty())
    }

    fn milliseconds(&self) -> f64 {
        (self.info.arrived.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.is_recorded {
            tracing::info!(
                request_id = %self.id,
                peer = self.peer.map(tracing::field::display),
                identity = self.identity(),
                method = self.info.method,
                kind = "caller_gone",
                ms = self.milliseconds(),
                "the client disconnected"
            );
            metrics::answered("caller_gone", self.info.method, self.info.arrived.elapsed());
        }
    }
}
