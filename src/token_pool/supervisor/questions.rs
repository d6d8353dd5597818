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
        token::{FoundKey, Token},
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
    token: &Token,
    host: u64,
    key: Fingerprint,
    limit: Duration,
) -> Result<(), ProveError> {
    let gone = || ProveError::Unreachable("its host is gone".to_owned());
    let known = token.lock().found.get(&key).map(|found| found.known.clone()).unwrap_or_default();
    let answer = token.lock().call(host, &Request::Open { key, known: &known }).ok_or_else(gone)?;
    let reply = match tokio::time::timeout(limit, answer).await {
        Ok(reply) => reply.map_err(|_| gone())?,
        Err(_) => return Err(ProveError::Unreachable(format!("its host has not answered for {limit:?}"))),
    };
    match reply {
        Reply::Opened { known, found } => {
            router.opened(token, host, key, Ok(FoundKey { known, how: found }));
            Ok(())
        }
        Reply::Fault(fault) => {
            router.opened(token, host, key, Err(fault.text.clone()));
            Err(ProveError::Refused(fault.text))
        }
        Reply::Refused { reason, .. } => {
            router.opened(token, host, key, Err(reason.clone()));
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
    let ca_tokens = router.tokens().iter().filter(|token| !token.log_only);
    each(router, ca_tokens, move |router, token| async move {
        loop {
            let (host, version, connected, reason) = {
                let state = token.lock();
                (state.host, state.status.version, state.connected, state.breaker.reason().to_owned())
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProveError::Unreachable(reason));
            }
            if connected && version == VERSION {
                match open_key(&router, &token, host, key, left).await {
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
    each(router, router.tokens().iter(), |_, token| async move {
        let (host, key, reason) = {
            let state = token.lock();
            (state.host, state.status.canary_key.clone(), state.breaker.reason().to_owned())
        };
        let message = canary_message();
        let request = Request::Sign(Sign {
            kind: Kind::Canary,
            key: OWN_KEY,
            request_id: "canary",
            deadline_ms: u32::MAX,
            message: &message,
        });
        let answer = token.lock().call(host, &request).ok_or_else(|| ProveError::Unreachable(reason.clone()))?;
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
async fn each<'a, F>(
    router: &Arc<Router>,
    tokens: impl Iterator<Item = &'a Arc<Token>>,
    ask: impl Fn(Arc<Router>, Arc<Token>) -> F,
) -> Vec<Proof>
where
    F: Future<Output = Result<(), ProveError>> + Send + 'static,
{
    let asked = tokens.map(|token| {
        let name = Arc::clone(&token.name);
        (name, tokio::spawn(ask(Arc::clone(router), Arc::clone(token))))
    });
    let mut proofs = Vec::new();
    for (token, task) in asked.collect::<Vec<_>>() {
        let result = task.await.unwrap_or_else(|_| Err(ProveError::Unreachable("the daemon is ending".to_owned())));
        proofs.push(Proof { token, result });
    }
    proofs
}
