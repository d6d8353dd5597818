//! One message on its way to a token.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::signer::{Class, Context, SignError, Signed};
use pki::Tbs;
use token_host::protocol::{Fingerprint, Kind, Sign};

/// How often one request is tried before it is given up: its own token, another, and both again after a recovery.
const ATTEMPTS: u32 = 4;

/// The bytes to be signed, shared and not copied while they wait.
#[derive(Debug)]
pub(super) enum Message {
    Bytes(Arc<[u8]>),
    Tbs(Arc<Tbs>),
}

impl Message {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Tbs(tbs) => tbs.der(),
        }
    }
}

/// A request, from the moment it is submitted to its one answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) key: Fingerprint,
    pub(super) class: Class,
    pub(super) deadline: Instant,
    /// Since when no token could take it; set by the queue's sweeper.
    pub(super) stranded: Option<Instant>,
    avoid: Vec<Arc<str>>,
    /// The token that failed last, not asked again while another can.
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
            class: context.class,
            deadline: context.deadline,
            stranded: None,
            avoid: context.avoid.clone(),
            failed_at: None,
            attempts: 0,
            message,
            request_id: Arc::clone(&context.request_id),
            reply,
        }
    }

    /// Whether nobody waits any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Whether the request was already signed wrongly by this token.
    pub(super) fn avoids(&self, token: &Arc<str>) -> bool {
        self.avoid.contains(token)
    }

    /// Whether another token had better take it.
    pub(super) fn failed_at(&self, token: &Arc<str>) -> bool {
        self.failed_at.as_ref() == Some(token)
    }

    /// The certificate that is to be signed; none for anything else.
    pub(super) fn tbs(&self) -> Option<&Arc<Tbs>> {
        match &self.message {
            Message::Bytes(_) => None,
            Message::Tbs(tbs) => Some(tbs),
        }
    }

    /// How long anybody waits for it.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }

    /// Whether it needs the CA's key.
    pub(super) fn is_real(&self) -> bool {
        match self.kind {
            Kind::Intermediate | Kind::Leaf => true,
            Kind::Canary | Kind::Checkpoint => false,
        }
    }

    /// Notes a failure; false when it has been tried often enough.
    pub(super) fn may_try_again(&mut self, failed_at: &Arc<str>) -> bool {
        self.attempts += 1;
        self.failed_at = Some(Arc::clone(failed_at));
        self.attempts < ATTEMPTS
    }

    /// The frame's content, with the time that is left.
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

    /// Whether less than a millisecond is left, which the wire cannot tell from none.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.left(now) < Duration::from_millis(1)
    }

    /// Answers it; false when nobody listens.
    pub(super) fn answer(self, result: Result<Signed, SignError>) -> bool {
        self.reply.send(result).is_ok()
    }
}
