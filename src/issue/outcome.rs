//! The outcome of a request in metrics and on the status page, recorded once by the front end that received it.

use std::{sync::Arc, time::Instant};

use super::IssueError;
use crate::telemetry::{
    metrics,
    recent::{Certificate, Recent, Refusal},
};
use pki::Issued;
use process::clock;

/// A verified certificate and the name of the token that signed it.
pub type IssuedBy = (Issued, Arc<str>);

/// Facts about a request when it ends.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// The request ID.
    pub id: Arc<str>,
    /// The caller's identity; empty before authentication.
    pub caller: String,
    /// The authentication method; `none` before authentication.
    pub method: &'static str,
    /// When the request arrived.
    pub arrived: Instant,
}

impl RequestInfo {
    /// Records that a certificate was issued.
    pub fn issued(&self, recent: &Recent, (issued, token): &IssuedBy) {
        let latency = self.arrived.elapsed();
        metrics::answered("issued", self.method, latency);
        recent.issued(Certificate {
            time: clock::now(),
            caller: self.caller.clone(),
            method: self.method,
            names: issued.names().iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            serial: issued.serial().to_hex(),
            not_after: issued.not_after(),
            token: token.to_string(),
            latency,
        });
    }

    /// Records that a request was rejected or failed. `label` is one of a closed set.
    pub fn refused(&self, recent: &Recent, label: &'static str, detail: String) {
        metrics::answered(label, self.method, self.arrived.elapsed());
        recent.refused(Refusal {
            time: clock::now(),
            request_id: self.id.to_string(),
            reason: label,
            caller: self.caller.clone(),
            detail,
        });
    }

    pub(super) fn record(&self, recent: &Recent, result: &Result<IssuedBy, IssueError>) {
        match result {
            Ok(issued) => self.issued(recent, issued),
            Err(error) => {
                metrics::sign_error(error.istio_kind());
                self.refused(recent, error.label(), error.to_string());
            }
        }
    }
}
