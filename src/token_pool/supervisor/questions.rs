//! Questions to all tokens at once, for whoever starts, reloads or looks at the daemon.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{OWN_KEY, Proof, ProveError, state::Shared},
    TICK, unwilling,
};
use pki::PublicKey;
use token_host::{
    canary_message,
    protocol::{Fingerprint, Kind, Reply, Request, Sign, VERSION},
};

/// Has a host look for a key, and notes what it says.
pub(super) async fn open_key(
    shared: &Shared,
    at: usize,
    host: u64,
    key: Fingerprint,
    limit: Duration,
) -> Result<(), ProveError> {
    let gone = || ProveError::Unreachable("its host is gone".to_owned());
    let answer = shared.call(at, host, &Request::Open { key }).ok_or_else(gone)?;
    let reply = match tokio::time::timeout(limit, answer).await {
        Ok(reply) => reply.map_err(|_| gone())?,
        Err(_) => return Err(ProveError::Unreachable(format!("its host has not answered for {limit:?}"))),
    };
    match reply {
        Reply::Opened => {
            shared.opened(at, host, key, true);
            Ok(())
        }
        Reply::Fault(fault) => {
            shared.opened(at, host, key, false);
            Err(ProveError::Refused(fault.text))
        }
        Reply::Refused { reason } => {
            shared.opened(at, host, key, false);
            Err(ProveError::Refused(reason))
        }
        Reply::Expired | Reply::Signed { .. } | Reply::Status(_) => {
            Err(ProveError::Unreachable("its host answers something else than was asked".to_owned()))
        }
    }
}

/// As [`Pool::prove`](super::super::Pool::prove).
pub(in super::super) async fn prove(shared: &Arc<Shared>, key: Fingerprint, deadline: Instant) -> Vec<Proof> {
    shared.want(key);
    each(shared, move |shared, at| async move {
        loop {
            let view = shared.view(at, |token| (token.host, token.status.version, token.linked, token.reason.clone()));
            let Some((host, version, linked, reason)) = view else {
                return Err(ProveError::Unreachable("no such token".to_owned()));
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProveError::Unreachable(reason));
            }
            if linked && version == VERSION {
                match open_key(&shared, at, host, key, left).await {
                    Err(ProveError::Unreachable(_)) => {}
                    result => return result,
                }
            }
            tokio::time::sleep(TICK / 5).await;
        }
    })
    .await
}

/// As [`Pool::canary`](super::super::Pool::canary): the health of each token, after a probe where it is not known to sign.
pub(in super::super) async fn canaries(shared: &Arc<Shared>) -> Vec<Proof> {
    each(shared, |shared, at| async move {
        let view = shared.view(at, |token| (token.host, token.status.canary_key.clone(), token.reason.clone()));
        let Some((host, key, reason)) = view else {
            return Err(ProveError::Unreachable("no such token".to_owned()));
        };
        let message = canary_message();
        let request = Request::Sign(Sign {
            kind: Kind::Canary,
            key: OWN_KEY,
            request_id: "canary",
            deadline_ms: u32::MAX,
            message: &message,
        });
        let answer = shared.call(at, host, &request).ok_or_else(|| ProveError::Unreachable(reason.clone()))?;
        let verified = |signature: &[u8]| {
            let key = PublicKey::from_spki_der(&key).ok();
            key.is_some_and(|key| key.verify(key.signature_algorithm(), &message, signature).is_ok())
        };
        match answer.await {
            Ok(Reply::Signed { signature, .. }) if verified(&signature) => Ok(()),
            Ok(Reply::Signed { .. }) => {
                Err(ProveError::Refused("its canary key makes signatures that do not verify".to_owned()))
            }
            Ok(other) => Err(ProveError::Refused(unwilling(other).reason)),
            Err(_) => Err(ProveError::Unreachable(reason)),
        }
    })
    .await
}

/// Asks all tokens at once, and answers in the order of the configuration.
async fn each<F>(shared: &Arc<Shared>, ask: impl Fn(Arc<Shared>, usize) -> F) -> Vec<Proof>
where
    F: Future<Output = Result<(), ProveError>> + Send + 'static,
{
    let asked: Vec<_> = (0..shared.fixed.len()).map(|at| tokio::spawn(ask(Arc::clone(shared), at))).collect();
    let mut proofs = Vec::with_capacity(asked.len());
    for (asked, fixed) in asked.into_iter().zip(&shared.fixed) {
        let result = asked.await.unwrap_or_else(|_| Err(ProveError::Unreachable("the daemon is ending".to_owned())));
        proofs.push(Proof { token: Arc::clone(&fixed.name), result });
    }
    proofs
}
