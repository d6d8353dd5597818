//! Keeps one token's host alive: starts it, has it prove itself, watches it, replaces it.

mod questions;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use questions::open_key;
pub(super) use questions::{canaries, prove};
use tokio::net::UnixStream;

use super::{
    Link as Way, TokenSettings,
    child::{Running, Spawner},
    counters::count,
    health::Phase,
    link::Link,
    state::Shared,
};
use pki::PublicKey;
use token_host::{
    canary_message,
    protocol::{FaultClass, Kind, Reply, Request, Sign, VERSION},
};

/// How long after the first failure a probe is tried again; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// The longest time between two probes.
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// What a host is granted beyond the limit of one call, before it counts as hung: its own watchdog comes first.
const GRACE: Duration = Duration::from_millis(500);
/// How many calls a host makes before it is ready: load, initialise, list, open, log in, look up; each has its limit.
const STARTING_CALLS: u32 = 3;
/// How often a supervisor looks after its host.
const TICK: Duration = Duration::from_millis(100);
/// How often keys that a token lacks are looked for again: an import raises no event.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Failed probes in a row after which a host is replaced.
const PROBES: u32 = 3;

/// Why a host's time is over.
struct End {
    phase: Phase,
    reason: String,
    hung: bool,
}

impl End {
    fn down(reason: impl Into<String>) -> Self {
        Self { phase: Phase::Down, reason: reason.into(), hung: false }
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    at: usize,
    settings: TokenSettings,
    spawner: Spawner,
}

/// Looks after a token until the pool ends.
pub(super) async fn run(shared: Arc<Shared>, at: usize, settings: TokenSettings, spawner: Spawner) {
    let ending = shared.ending.clone();
    let supervisor = Supervisor { shared, at, settings, spawner };
    let mut backoff = Duration::ZERO;
    while !ending.is_cancelled() {
        let before = supervisor.served();
        let end = supervisor.one_host().await;
        if ending.is_cancelled() {
            return;
        }
        tracing::warn!(token = &*supervisor.settings.name, reason = end.reason, "the token's host has ended");
        // One that signed is replaced at once; one that did not is given time.
        backoff = if supervisor.served() > before { Duration::ZERO } else { next(backoff) };
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = ending.cancelled() => return,
        }
    }
}

fn next(backoff: Duration) -> Duration {
    (backoff * 2).clamp(BACKOFF_FIRST, BACKOFF_MOST)
}

impl Supervisor {
    fn served(&self) -> u64 {
        let fixed = self.shared.fixed.get(self.at);
        fixed.map_or(0, |fixed| fixed.counters.signed.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// A host from its start to its end.
    async fn one_host(&self) -> End {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = self.shared.ending.cancelled() => return End::down("the daemon is ending"),
        };
        let (child, stream) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                let end = End::down(reason);
                self.shared.link_down(self.at, end.phase, &end.reason);
                return end;
            }
        };
        let host = self.shared.link_up(self.at);
        if let Some(fixed) = self.shared.fixed.get(self.at) {
            count(&fixed.counters.hosts);
        }
        let started = stream.into_std().and_then(|stream| Link::start(&self.shared, self.at, host, stream));
        let mut end = match started {
            Ok(mut link) => tokio::select! {
                error = link.ended() => End::down(error.to_string()),
                end = self.watch(host) => end,
                () = self.shared.ending.cancelled() => End::down("the daemon is ending"),
            },
            Err(error) => End::down(format!("the connection to its host cannot be used: {error}")),
        };
        // First of all the requests are freed, before the process is waited for.
        self.shared.link_down(self.at, end.phase, &end.reason);
        if end.hung
            && let Some(fixed) = self.shared.fixed.get(self.at)
        {
            count(&fixed.counters.hung);
        }
        if let Some(child) = child {
            let status = child.end(end.hung).await;
            end.reason = format!("{} ({status})", end.reason);
        }
        end
    }

    async fn open(&self) -> Result<(Option<Running>, UnixStream), String> {
        match &self.settings.link {
            Way::Child { program, environment, .. } => {
                let spawned = self.spawner.spawn(&self.settings.name, program.clone(), environment).await;
                let (child, stream) = spawned.map_err(|error| format!("its host cannot be started: {error}"))?;
                Ok((Some(child), stream))
            }
            Way::Socket { path, uid } => {
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

    /// Has a host prove itself, and then watches it for as long as it answers.
    async fn watch(&self, host: u64) -> End {
        if let Err(end) = self.hello(host).await {
            return end;
        }
        self.open_missing(host).await;
        let Some(fixed) = self.shared.fixed.get(self.at) else { return End::down("no such token") };
        let mut probing = Probing::new();
        let mut before = Phase::Starting;
        let mut looked = Instant::now();
        let mut asked = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let view = self.shared.view(self.at, |token| {
                (token.phase, token.replace, token.reason.clone(), token.progress, token.outstanding.is_empty())
            });
            let Some((phase, replace, reason, progress, idle)) = view else { return End::down("no such token") };
            if replace {
                return End::down(reason);
            }
            if !idle && progress.elapsed() > self.settings.call_timeout + GRACE {
                let reason = format!("its host has answered nothing for {:?}", progress.elapsed());
                return End { phase: Phase::Down, reason, hung: true };
            }
            match (before, phase) {
                (_, Phase::Serving) => probing = Probing::new(),
                // The canary signed and the real request did not: that is a failed probe too.
                (Phase::HalfOpen, Phase::Probing) => probing.failed(),
                _ => {}
            }
            before = phase;
            if probing.failures >= PROBES {
                return End::down(reason);
            }
            if !phase.is_ready() && Instant::now() >= probing.at {
                match self.probe(host).await {
                    Ok(()) => self.shared.half_open(self.at),
                    Err(end) => {
                        probing.failed();
                        if end.hung || end.phase == Phase::PinRefused {
                            return end;
                        }
                    }
                }
                continue;
            }
            if looked.elapsed() >= LOOK_AGAIN {
                self.open_missing(host).await;
                looked = Instant::now();
            }
            if asked.elapsed() >= self.settings.keep_alive {
                // One session may be busy while the others fall idle. The answer counts as progress, its absence as
                // a hang; behind other work nobody waits for it.
                if !idle {
                    drop(self.shared.call(self.at, host, &Request::Ping));
                } else if let Err(end) = self.ping(host).await {
                    return end;
                }
                asked = Instant::now();
            }
            tokio::select! {
                _ = ticks.tick() => {}
                () = fixed.supervisor.notified() => {}
            }
        }
    }

    async fn hello(&self, host: u64) -> Result<(), End> {
        let settings = match &self.settings.link {
            Way::Child { settings, .. } => {
                serde_json::to_vec(settings).map_err(|error| End::down(format!("BUG: its settings: {error}")))?
            }
            Way::Socket { .. } => Vec::new(),
        };
        let limit = self.settings.call_timeout * STARTING_CALLS + GRACE;
        let hello = Request::Hello { version: VERSION, settings: &settings };
        match self.ask(host, &hello, limit).await? {
            Reply::Status(status) if status.version == VERSION => {
                self.shared.ready(self.at, *status);
                Ok(())
            }
            Reply::Status(status) => Err(End::down(format!(
                "its host speaks version {} of the protocol, not {VERSION}; run the same release on both sides",
                status.version
            ))),
            other => Err(unwilling(other)),
        }
    }

    async fn ping(&self, host: u64) -> Result<(), End> {
        match self.ask(host, &Request::Ping, self.settings.call_timeout + GRACE).await? {
            Reply::Status(status) => {
                self.shared.ready(self.at, *status);
                Ok(())
            }
            other => Err(unwilling(other)),
        }
    }

    async fn open_missing(&self, host: u64) {
        for key in self.shared.missing_keys(self.at) {
            if let Err(error) = open_key(&self.shared, self.at, host, key, self.settings.call_timeout + GRACE).await {
                tracing::warn!(token = &*self.settings.name, %error, "the token lacks a CA key");
            }
        }
    }

    /// Has the canary key sign, and verifies it; where a token has none, its session must answer.
    async fn probe(&self, host: u64) -> Result<(), End> {
        let key = self.shared.view(self.at, |token| token.status.canary_key.clone()).unwrap_or_default();
        if key.is_empty() {
            return self.ping(host).await;
        }
        let Some(fixed) = self.shared.fixed.get(self.at) else { return Err(End::down("no such token")) };
        count(&fixed.counters.canaries);
        let result = self.canary(host, &key).await;
        if result.is_err() {
            count(&fixed.counters.canaries_failed);
        }
        result
    }

    async fn canary(&self, host: u64, key: &[u8]) -> Result<(), End> {
        let limit = self.settings.call_timeout + GRACE;
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
                verified.map_err(|_| End::down("its canary key makes signatures that do not verify"))
            }
            other => Err(unwilling(other)),
        }
    }

    async fn ask(&self, host: u64, request: &Request<'_>, limit: Duration) -> Result<Reply, End> {
        let gone = || End::down("its host is gone");
        let answer = self.shared.call(self.at, host, request).ok_or_else(gone)?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                Err(End { phase: Phase::Down, reason: format!("its host has not answered for {limit:?}"), hung: true })
            }
        }
    }
}

/// The rhythm of the probes while the breaker is open.
struct Probing {
    at: Instant,
    backoff: Duration,
    failures: u32,
}

impl Probing {
    fn new() -> Self {
        Self { at: Instant::now(), backoff: Duration::ZERO, failures: 0 }
    }

    fn failed(&mut self) {
        self.failures += 1;
        self.backoff = next(self.backoff);
        self.at = Instant::now() + self.backoff;
    }
}

fn unwilling(reply: Reply) -> End {
    match reply {
        Reply::Fault(fault) => End {
            phase: if fault.class == FaultClass::Pin { Phase::PinRefused } else { Phase::Down },
            reason: fault.text,
            hung: false,
        },
        Reply::Refused { reason } => End::down(reason),
        Reply::Expired | Reply::Opened | Reply::Signed { .. } | Reply::Status(_) => {
            End::down("its host answers something else than was asked")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_and_new_hosts_come_ever_later_and_once_a_second_at_least() {
        let mut backoff = Duration::ZERO;
        let all = std::iter::from_fn(|| {
            backoff = next(backoff);
            Some(backoff.as_millis())
        });
        assert_eq!(all.take(8).collect::<Vec<_>>(), [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        let mut probing = Probing::new();
        assert!(probing.at <= Instant::now(), "the first one at once");
        (0..10).for_each(|_| probing.failed());
        let wait = probing.at.saturating_duration_since(Instant::now());
        assert!((Duration::from_millis(900)..=Duration::from_secs(1)).contains(&wait), "{wait:?}");
    }
}
