//! A request for one signature.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::signer::{Context, Priority, SignError, Signed, ToBeSigned};
use token_host::protocol::{Fingerprint, Kind, Sign};

/// The maximum number of attempts for one request: at its own token, at another, and at both again after a recovery.
const MAX_ATTEMPTS: u32 = 4;

/// The bytes to be signed; shared, so that queueing them costs no copy.
#[derive(Debug)]
pub(super) enum Message {
    Bytes(Arc<[u8]>),
    Recorded(ToBeSigned),
}

impl Message {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Recorded(message) => message.der(),
        }
    }
}

/// A request, from its submission to its only answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) key: Fingerprint,
    pub(super) priority: Priority,
    pub(super) deadline: Instant,
    /// Since when no token has served such requests; set by the queue's sweeper.
    pub(super) unroutable_since: Option<Instant>,
    avoid: Vec<Arc<str>>,
    /// The token that failed last; not used again while another can serve.
    failed_at: Option<Arc<str>>,
    attempts: u32,
    message: Message,
    request_id: Arc<str>,
    reply: oneshot::Sender<Result<Signed, SignError>>,
}

impl Job {
    pub(super) fn new(
        kind: Kind,
        key: Fingerprint,
        message: Message,
        context: &Context,
        reply: oneshot::Sender<Result<Signed, SignError>>,
    ) -> Self {
        Self {
            kind,
            key,
            priority: context.priority,
            deadline: context.deadline,
            unroutable_since: None,
            avoid: context.avoid.clone(),
            failed_at: None,
            attempts: 0,
            message,
            request_id: Arc::clone(&context.request_id),
            reply,
        }
    }

    /// Whether the caller is gone or its deadline has passed.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Whether this token has already signed the request wrongly.
    pub(super) fn avoids(&self, token: &Arc<str>) -> bool {
        self.avoid.contains(token)
    }

    /// Whether this token was the last to fail the request.
    pub(super) fn failed_at(&self, token: &Arc<str>) -> bool {
        self.failed_at.as_ref() == Some(token)
    }

    /// The certificate or CRL to be signed; `None` for any other message.
    pub(super) fn recorded(&self) -> Option<&ToBeSigned> {
        match &self.message {
            Message::Bytes(_) => None,
            Message::Recorded(message) => Some(message),
        }
    }

    /// The time until the deadline.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }

    /// Whether it needs the CA's key.
    pub(super) fn is_real(&self) -> bool {
        match self.kind {
            Kind::Crl | Kind::Intermediate | Kind::Leaf => true,
            Kind::Canary | Kind::Checkpoint => false,
        }
    }

    /// Records a failed attempt; `false` if no attempt is left.
    pub(super) fn may_try_again(&mut self, failed_at: &Arc<str>) -> bool {
        self.attempts += 1;
        self.failed_at = Some(Arc::clone(failed_at));
        self.attempts < MAX_ATTEMPTS
    }

    /// The wire form, with the time until the deadline.
    pub(super) fn sign(&self, now: Instant) -> Sign<'_> {
        let left = self.left(now);
        Sign {
            kind: self.kind,
            key: self.key,
            request_id: &self.request_id,
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            message: self.message.bytes(),
        }
    }

    /// Answers the caller; `false` when it is gone.
    pub(super) fn answer(self, result: Result<Signed, SignError>) -> bool {
        self.reply.send(result).is_ok()
    }
}
