//! Starts one token's host, probes it, watches it and replaces it.

mod questions;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use questions::open_key;
pub(super) use questions::{canaries, prove};
use tokio::net::UnixStream;

use super::{
    HostEndpoint, TokenSettings,
    breaker::{Backoff, Event},
    child::{Running, Spawner},
    connection::HostConnection,
    counters::count,
    router::Router,
    token::Token,
};
use pki::PublicKey;
use token_host::{
    canary_message,
    protocol::{Kind, Recovery, Reply, Request, Sign, VERSION},
};

/// Added to the timeout of one call before a host counts as hung, so that its own watchdog acts first.
const WATCHDOG_GRACE: Duration = Duration::from_millis(500);
/// The timeout of a host's start as a multiple of one call's: it loads the module, logs in and looks up keys.
const STARTING_CALLS: u32 = 3;
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Interval of looking for missing keys; an import into the token causes no event.
const KEY_LOOKUP_INTERVAL: Duration = Duration::from_secs(1);

/// How a probe has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// A signature by the canary key verified.
    Canary,
    /// The session answered, and the CA's key is there if it was found before.
    Session,
}

/// What a canary key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Canary {
    /// It alone fails.
    Failed,
    Verified,
    /// Its signature does not verify.
    Wrong,
}

/// Why a host is given up.
struct End {
    event: Event,
    reason: String,
    hung: bool,
}

impl End {
    fn down(reason: impl Into<String>) -> Self {
        Self { event: Event::Disconnected, reason: reason.into(), hung: false }
    }
}

struct Supervisor {
    router: Arc<Router>,
    token: Arc<Token>,
    settings: TokenSettings,
    spawner: Spawner,
}

/// Supervises a token until the pool ends.
pub(super) async fn run(router: Arc<Router>, token: Arc<Token>, settings: TokenSettings, spawner: Spawner) {
    let ending = router.ending.clone();
    let supervisor = Supervisor { router, token, settings, spawner };
    let mut backoff = Backoff::new(Instant::now());
    while !ending.is_cancelled() {
        let before = supervisor.served();
        let end = supervisor.one_host().await;
        if ending.is_cancelled() {
            return;
        }
        tracing::warn!(token = &*supervisor.settings.name, reason = end.reason, "the token's host has ended");
        // A host that has signed is replaced at once.
        if supervisor.served() > before {
            backoff = Backoff::new(Instant::now());
        } else {
            backoff.failed(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.delay()) => {}
            () = ending.cancelled() => return,
        }
    }
}

impl Supervisor {
    fn served(&self) -> u64 {
        self.token.counters.signed.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Runs one host from its start to its end.
    async fn one_host(&self) -> End {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = self.router.ending.cancelled() => return End::down("the daemon is ending"),
        };
        let (child, stream) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                let end = End::down(reason);
                self.router.disconnected(&self.token, end.event, &end.reason);
                return end;
            }
        };
        let host = self.router.connected(&self.token);
        count(&self.token.counters.hosts);
        let started =
            stream.into_std().and_then(|stream| HostConnection::start(&self.router, &self.token, host, stream));
        let mut end = match started {
            Ok(mut connection) => tokio::select! {
                // A host that cannot start reports the reason and closes: report the reason, not the end of the
                // connection.
                biased;
                end = self.watch(host) => end,
                error = connection.ended() => End::down(error.to_string()),
                () = self.router.ending.cancelled() => End::down("the daemon is ending"),
            },
            Err(error) => End::down(format!("the connection to its host cannot be used: {error}")),
        };
        // The requests are released before the process is awaited.
        self.router.disconnected(&self.token, end.event, &end.reason);
        if end.hung {
            count(&self.token.counters.hung);
        }
        if let Some(child) = child {
            let status = child.end(end.hung).await;
            end.reason = format!("{} ({status})", end.reason);
        }
        end
    }

    async fn open(&self) -> Result<(Option<Running>, UnixStream), String> {
        match &self.settings.endpoint {
            HostEndpoint::Child { program, environment, .. } => {
                let spawned = self.spawner.spawn(&self.settings.name, program.clone(), environment).await;
                let (child, stream) = spawned.map_err(|error| format!("its host cannot be started: {error}"))?;
                Ok((Some(child), stream))
            }
            HostEndpoint::Socket { path, uid } => {
                let failed = |error| format!("nobody answers at {}: {error}", path.display());
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                let peer = stream.peer_cred().map_err(failed)?.uid();
                match uid {
                    Some(uid) if *uid != peer => {
                        Err(format!("{} is served by user {peer}, not by user {uid}", path.display()))
                    }
                    _ => Ok((None, stream)),
                }
            }
        }
    }

    /// Greets a host, then probes and watches it for as long as it answers.
    async fn watch(&self, host: u64) -> End {
        if let Err(end) = self.hello(host).await {
            return end;
        }
        self.open_missing(host).await;
        let mut looked_up = Instant::now();
        let mut pinged = Instant::now();
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (replace, probe, silence, idle) = {
                let state = self.token.lock();
                let breaker = &state.breaker;
                let replace = breaker.needs_new_host().then(|| breaker.reason().to_owned());
                let probe = breaker.probe_is_due(Instant::now());
                (replace, probe, state.last_reply_at.elapsed(), state.outstanding.is_empty())
            };
            if let Some(reason) = replace {
                return End::down(reason);
            }
            if !idle && silence > self.settings.call_timeout + WATCHDOG_GRACE {
                let reason = format!("its host has not answered for {silence:?}");
                return End { event: Event::Disconnected, reason, hung: true };
            }
            if probe {
                match self.probe(host).await {
                    Ok(passed) => self.router.probed(&self.token, Some(passed)),
                    Err(end) if end.hung || end.event == Event::PinRefused => return end,
                    Err(_) => self.router.probed(&self.token, None),
                }
                continue;
            }
            if looked_up.elapsed() >= KEY_LOOKUP_INTERVAL {
                self.open_missing(host).await;
                looked_up = Instant::now();
            }
            if pinged.elapsed() >= self.settings.keep_alive {
                // One session may be busy while the others are idle. The reply counts as a sign of life and its absence
                // as a hang; behind other work it is not awaited.
                if !idle {
                    drop(self.token.lock().call(host, &Request::Ping));
                } else if let Err(end) = self.ping(host).await {
                    return end;
                }
                pinged = Instant::now();
            }
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.token.supervisor.notified() => {}
            }
        }
    }

    async fn hello(&self, host: u64) -> Result<(), End> {
        let settings = match &self.settings.endpoint {
            HostEndpoint::Child { settings, .. } => {
                serde_json::to_vec(settings).map_err(|error| End::down(format!("BUG: its settings: {error}")))?
            }
            HostEndpoint::Socket { .. } => Vec::new(),
        };
        let limit = self.settings.call_timeout * STARTING_CALLS + WATCHDOG_GRACE;
        let hello = Request::Hello { version: VERSION, settings: &settings };
        match self.ask(host, &hello, limit).await? {
            Reply::Status(status) if status.version == VERSION => {
                self.router.reported(&self.token, *status);
                Ok(())
            }
            Reply::Status(status) => Err(End::down(format!(
                "its host speaks version {} of the protocol, not {VERSION}; run the same release on both sides",
                status.version
            ))),
            other => Err(unexpected(other)),
        }
    }

    async fn ping(&self, host: u64) -> Result<(), End> {
        match self.ask(host, &Request::Ping, self.settings.call_timeout + WATCHDOG_GRACE).await? {
            Reply::Status(status) => {
                self.router.reported(&self.token, *status);
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    async fn open_missing(&self, host: u64) {
        for key in self.router.missing_keys(&self.token) {
            if let Err(error) =
                open_key(&self.router, &self.token, host, key, self.settings.call_timeout + WATCHDOG_GRACE).await
            {
                tracing::warn!(token = &*self.settings.name, %error, "the token lacks a CA key");
            }
        }
    }

    /// Verifies a signature by the canary key. Where the token has none, or where it fails while the token works, the
    /// host exercises the session, the login and the CA's key instead. A canary key that made right signatures before and
    /// makes wrong ones now is a sign of a broken token.
    async fn probe(&self, host: u64) -> Result<Probe, End> {
        let key = self.token.lock().status.canary_key.clone();
        if !key.is_empty() {
            count(&self.token.counters.canaries);
            let canary = self.canary(host, &key).await;
            if !matches!(canary, Ok(Canary::Verified)) {
                count(&self.token.counters.canaries_failed);
            }
            match canary? {
                Canary::Verified => {
                    self.token.lock().verified_canary = key;
                    return Ok(Probe::Canary);
                }
                Canary::Wrong if self.token.lock().verified_canary == key => {
                    return Err(End::down("its canary key makes signatures that do not verify"));
                }
                Canary::Wrong | Canary::Failed => {}
            }
        }
        self.ping(host).await.map(|()| Probe::Session)
    }

    /// What the canary key does; an error if the token fails.
    async fn canary(&self, host: u64, key: &[u8]) -> Result<Canary, End> {
        let limit = self.settings.call_timeout + WATCHDOG_GRACE;
        let message = canary_message();
        let sign = Request::Sign(Sign {
            kind: Kind::Canary,
            key: super::OWN_KEY,
            request_id: "canary",
            deadline_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            message: &message,
        });
        match self.ask(host, &sign, limit).await? {
            Reply::Signed { signature, .. } => {
                let key =
                    PublicKey::from_spki_der(key).map_err(|error| End::down(format!("its canary key: {error}")))?;
                let verified = key.verify(key.signature_algorithm(), &message, &signature);
                Ok(if verified.is_ok() { Canary::Verified } else { Canary::Wrong })
            }
            Reply::Fault(fault) if fault.recovery == Recovery::RejectRequest => Ok(Canary::Failed),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&self, host: u64, request: &Request<'_>, limit: Duration) -> Result<Reply, End> {
        let gone = || End::down("its host is gone");
        let answer = self.token.lock().call(host, request).ok_or_else(gone)?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(End {
                event: Event::Disconnected,
                reason: format!("its host has not answered for {limit:?}"),
                hung: true,
            }),
        }
    }
}

/// The end of a host whose reply is not the expected one.
fn unexpected(reply: Reply) -> End {
    match reply {
        Reply::Fault(fault) => End {
            event: if fault.recovery == Recovery::FixPin { Event::PinRefused } else { Event::Disconnected },
            reason: fault.text,
            hung: false,
        },
        Reply::Refused { reason, .. } => End::down(reason),
        Reply::Expired | Reply::Opened { .. } | Reply::Signed { .. } | Reply::Status(_) => {
            End::down("its host gave an unexpected answer")
        }
    }
}
