//! Requests to all tokens at once, for start, reload and health checks.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        OWN_KEY, Proof, ProveError,
        router::Router,
        token::{FoundKey, Handle, TokenId},
    },
    unexpected,
};
use pki::PublicKey;
use token_host::{
    canary_message,
    protocol::{Fingerprint, Kind, Reply, Request, Sign, VERSION},
};

/// Makes a host look for a CA key, and records the result.
pub(super) async fn open_key(
    router: &Router,
    id: TokenId,
    host: u64,
    key: Fingerprint,
    limit: Duration,
) -> Result<(), ProveError> {
    let gone = || ProveError::Unreachable("its host is gone".to_owned());
    let known = router.known(id, &key);
    let answer = router.call(id, host, &Request::Open { key, known: &known }).ok_or_else(gone)?;
    let reply = match tokio::time::timeout(limit, answer).await {
        Ok(reply) => reply.map_err(|_| gone())?,
        Err(_) => return Err(ProveError::Unreachable(format!("its host has not answered for {limit:?}"))),
    };
    match reply {
        Reply::Opened { known, found } => {
            router.opened(id, host, key, Some(FoundKey { known, how: found }));
            Ok(())
        }
        Reply::Fault(fault) => {
            router.opened(id, host, key, None);
            Err(ProveError::Refused(fault.text))
        }
        Reply::Refused { reason, .. } => {
            router.opened(id, host, key, None);
            Err(ProveError::Refused(reason))
        }
        Reply::Expired | Reply::Signed { .. } | Reply::Status(_) => {
            Err(ProveError::Unreachable("its host gave an unexpected answer".to_owned()))
        }
    }
}

/// Interval of checking a host that is not ready yet.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// As [`Pool::prove`](super::super::Pool::prove).
pub(in super::super) async fn prove(router: &Arc<Router>, key: Fingerprint, deadline: Instant) -> Vec<Proof> {
    router.want(key);
    let ca_tokens = router.handles().into_iter().filter(|handle| !handle.log_only);
    each(router, ca_tokens.collect(), move |router, handle| async move {
        loop {
            let (host, version, connected, reason) = router.view(&handle, |token| {
                (token.host, token.status.version, token.connected, token.breaker.reason().to_owned())
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProveError::Unreachable(reason));
            }
            if connected && version == VERSION {
                match open_key(&router, handle.id, host, key, left).await {
                    Err(ProveError::Unreachable(_)) => {}
                    result => return result,
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await
}

/// As [`Pool::canary`](super::super::Pool::canary).
pub(in super::super) async fn canaries(router: &Arc<Router>) -> Vec<Proof> {
    each(router, router.handles(), |router, handle| async move {
        let (host, key, reason) = router
            .view(&handle, |token| (token.host, token.status.canary_key.clone(), token.breaker.reason().to_owned()));
        let message = canary_message();
        let request = Request::Sign(Sign {
            kind: Kind::Canary,
            key: OWN_KEY,
            request_id: "canary",
            deadline_ms: u32::MAX,
            message: &message,
        });
        let answer = router.call(handle.id, host, &request).ok_or_else(|| ProveError::Unreachable(reason.clone()))?;
        let verified = |signature: &[u8]| {
            let key = PublicKey::from_spki_der(&key).ok();
            key.is_some_and(|key| key.verify(key.signature_algorithm(), &message, signature).is_ok())
        };
        match answer.await {
            Ok(Reply::Signed { signature, .. }) if verified(&signature) => Ok(()),
            Ok(Reply::Signed { .. }) => {
                Err(ProveError::Refused("its canary key makes signatures that do not verify".to_owned()))
            }
            Ok(other) => Err(ProveError::Refused(unexpected(other).reason)),
            Err(_) => Err(ProveError::Unreachable(reason)),
        }
    })
    .await
}

/// Asks tokens concurrently; the results are in their order.
async fn each<F>(
    router: &Arc<Router>,
    handles: Vec<Arc<Handle>>,
    ask: impl Fn(Arc<Router>, Arc<Handle>) -> F,
) -> Vec<Proof>
where
    F: Future<Output = Result<(), ProveError>> + Send + 'static,
{
    let asked = handles.into_iter().map(|handle| {
        let token = Arc::clone(&handle.name);
        (token, tokio::spawn(ask(Arc::clone(router), handle)))
    });
    let mut proofs = Vec::new();
    for (token, task) in asked.collect::<Vec<_>>() {
        let result = task.await.unwrap_or_else(|_| Err(ProveError::Unreachable("the daemon is ending".to_owned())));
        proofs.push(Proof { token, result });
    }
    proofs
}
