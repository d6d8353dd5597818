//! The one log line of a request, and its count; written also when the caller goes away in between.
//!
//! Holds names and numbers, never a token or a key.

use std::{net::SocketAddr, time::Instant};

use tonic::Code;

use crate::{
    auth::Caller,
    grpc::status::Refusal,
    telemetry::{
        RequestId, metrics,
        recent::{self, Recent},
    },
};
use pki::Issued;
use process::error::chain;

/// A request that is being answered.
#[derive(Debug)]
pub struct Line {
    id: RequestId,
    peer: Option<SocketAddr>,
    started: Instant,
    /// Who asks, once known.
    identity: Option<String>,
    method: &'static str,
    ended: bool,
}

impl Line {
    /// Begins.
    #[must_use]
    pub fn start(id: RequestId, peer: Option<SocketAddr>, started: Instant) -> Self {
        metrics::request();
        Self { id, peer, started, identity: None, method: "none", ended: false }
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// When the request arrived.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Notes who asks.
    pub fn caller(&mut self, caller: &Caller) {
        self.identity = Some(caller.identity().to_string());
        self.method = caller.method().as_str();
    }

    /// Ends with a certificate.
    pub fn issued(mut self, issued: &Issued) {
        let tbs = issued.tbs();
        let names: Vec<_> = tbs.template().names.iter().map(ToString::to_string).collect();
        tracing::info!(
            request_id = %self.id,
            peer = self.peer.map(tracing::field::display),
            identity = self.identity.as_deref(),
            method = self.method,
            names = names.join(","),
            serial = tbs.serial().to_hex(),
            ms = self.milliseconds(),
            "issued"
        );
        self.ended = true;
    }

    /// Ends with an error.
    pub fn refused(mut self, refusal: &Refusal, code: Code, recent: &Recent) {
        let code = name(code);
        let reason = chain(refusal);
        tracing::warn!(
            request_id = %self.id,
            peer = self.peer.map(tracing::field::display),
            identity = self.identity.as_deref(),
            method = self.method,
            code,
            reason,
            ms = self.milliseconds(),
            "refused"
        );
        self.ended = true;
        // What reached the path was counted there.
        if let Some(label) = refusal.label_before_the_path() {
            metrics::answered(label, self.method, self.started.elapsed());
            let (time, request_id) = (process::clock::now(), self.id.to_string());
            let caller = self.identity.take().unwrap_or_default();
            recent.refused(recent::Refusal { time, request_id, reason: label, caller, detail: reason });
        }
        if matches!(refusal, Refusal::Auth(_) | Refusal::Impersonation(_)) {
            metrics::unauthenticated();
        }
    }

    fn milliseconds(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.ended {
            tracing::info!(
                request_id = %self.id,
                peer = self.peer.map(tracing::field::display),
                identity = self.identity.as_deref(),
                method = self.method,
                ms = self.milliseconds(),
                "the caller went away"
            );
            metrics::answered("caller_gone", self.method, self.started.elapsed());
        }
    }
}

/// The code's name in the gRPC specification.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
