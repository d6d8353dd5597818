//! A thread's session, and its escalation when the token fails: a new session with the objects looked up again, a new
//! login, and then a new process.

use std::{
    collections::HashMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use cryptoki::{object::ObjectHandle, session::Session};

use super::{LoginContext, call_fault, fault_of, key_fault, lock, sign_fault};
use crate::{
    canary_message,
    protocol::{Fault, Fingerprint, Kind, Recovery},
};
use pki::PublicKey;
use token::{
    calls,
    key::{self, Accepted, CANARY_KEY_LABEL, CaKey, Known, LOG_KEY_LABEL, Search},
    mechanism,
};

/// Delay before a token that has no session left is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// The part of a call's limit that one search for the CA's key may take until its last trial signature begins: a host
/// that does not answer for longer than one call is replaced.
const SEARCH_SHARE: u32 = 2;

/// A signature and the session that made it.
pub(in super::super) struct Signature {
    pub(in super::super) session: u32,
    pub(in super::super) bytes: Vec<u8>,
}

/// A CA key in the token, for the daemon.
pub(in super::super) struct Found {
    /// What a later host needs to know ([`Known`]).
    pub(in super::super) known: Vec<u8>,
    pub(in super::super) how: String,
}

struct Open {
    session: Session,
    number: u32,
    handles: HashMap<Fingerprint, ObjectHandle>,
}

/// A thread's part of the login.
pub(in super::super) struct Worker<'a> {
    login: &'a LoginContext,
    thread: usize,
    open: Option<Open>,
    /// Whether the session was used since this was last queried.
    used: bool,
}

impl<'a> Worker<'a> {
    pub(in super::super) fn new(login: &'a LoginContext, thread: usize) -> Self {
        Self { login, thread, open: None, used: false }
    }

    /// Whether it has a session, after an attempt to open one.
    pub(in super::super) fn has_session(&mut self) -> bool {
        self.ensure().is_ok()
    }

    /// Signs with a key; after a failure, recovers and tries once more if the deadline allows.
    pub(in super::super) fn sign(
        &mut self,
        kind: Kind,
        key: &PublicKey,
        fingerprint: Fingerprint,
        message: &[u8],
        deadline: Instant,
    ) -> Result<Signature, Fault> {
        let login = self.login.login_number();
        let mut first = match self.attempt(kind, key, fingerprint, message) {
            Ok(signature) => return Ok(signature),
            Err(fault) => fault,
        };
        // The session shows whether it is the login that is lost, or an optional key that wants another one.
        if first.recovery == Recovery::Relogin && matches!(kind, Kind::Canary | Kind::Checkpoint) {
            first.recovery = Recovery::NewSession;
        }
        let (thread, Fault { code, function, text: reason, .. }) = (self.thread, &first);
        tracing::warn!(thread, message_kind = ?kind, code, function, reason, "signing failed; dropping the session");
        self.drop_session();
        self.escalate(&first, login, deadline)?;
        let second = self.attempt(kind, key, fingerprint, message);
        if let Err(Fault { code, text: reason, .. }) = &second {
            tracing::warn!(thread, message_kind = ?kind, code, reason, "signing failed again; dropping the session");
            self.drop_session();
        }
        second
    }

    /// Performs the recovery before the second attempt; fails if there is none.
    fn escalate(&mut self, fault: &Fault, login: u64, deadline: Instant) -> Result<(), Fault> {
        if Instant::now() >= deadline {
            return Err(fault.clone());
        }
        match fault.recovery {
            // A key that was imported again has another handle, which the new session finds. Tokens also hide private
            // objects without a login, so a lost login may look like a lost key.
            Recovery::FixKey | Recovery::Ignore | Recovery::NewSession | Recovery::RejectRequest => {
                match self.session_info() {
                    Err(lost) if lost.recovery == Recovery::Relogin => self.login.login(self.thread, login),
                    Ok(()) | Err(_) => Ok(()),
                }
            }
            Recovery::Relogin => self.login.login(self.thread, login),
            Recovery::Retry => {
                std::thread::sleep(BUSY_PAUSE.min(deadline.saturating_duration_since(Instant::now())));
                Ok(())
            }
            Recovery::NewProcess | Recovery::FixPin | Recovery::FixConfiguration => Err(fault.clone()),
        }
    }

    fn attempt(
        &mut self,
        kind: Kind,
        key: &PublicKey,
        fingerprint: Fingerprint,
        message: &[u8],
    ) -> Result<Signature, Fault> {
        let handle = self.handle(kind, key, fingerprint)?;
        let (login, thread) = (self.login, self.thread);
        let open = self.ensure()?;
        let _call = login.watchdog.call(thread);
        match mechanism::sign(&open.session, handle, key, message) {
            Ok(bytes) => {
                let session = open.number;
                self.used = true;
                Ok(Signature { session, bytes })
            }
            Err(error) => Err(sign_fault(&error)),
        }
    }

    /// Signs with a key of the host's own, the log key or the canary key. The token has failed only if its session, its
    /// login or the CA's key fails as well; otherwise the fault's recovery is [`Recovery::RejectRequest`].
    pub(in super::super) fn sign_own(
        &mut self,
        kind: Kind,
        key: &PublicKey,
        message: &[u8],
        deadline: Instant,
    ) -> Result<Signature, Fault> {
        if let Some(fault) = self.login.own_key_pauses(kind) {
            return Err(fault);
        }
        let fault = match self.sign(kind, key, key.fingerprint(), message, deadline) {
            Ok(signature) => {
                self.login.own_key_signs(kind);
                return Ok(signature);
            }
            Err(fault) => fault,
        };
        self.touch()?;
        self.cas_still_there()?;
        let name = if kind == Kind::Canary { "canary key" } else { "log key" };
        let text = format!("the {name} does not sign, and certificates do not need it: {}", fault.text);
        let fault = Fault { recovery: Recovery::RejectRequest, text, ..fault };
        self.login.own_key_failed(kind, &fault);
        Err(fault)
    }

    /// Looks the CA keys up that were found before.
    fn cas_still_there(&mut self) -> Result<(), Fault> {
        for ca in self.login.certificates().iter() {
            self.still_there(&ca.key)?;
        }
        Ok(())
    }

    /// Looks a CA key up that was found before.
    fn still_there(&mut self, key: &PublicKey) -> Result<(), Fault> {
        let known = lock(&self.login.searches).get(&key.fingerprint()).is_some_and(Search::has_found);
        if known { self.find_ca_key(key).map(|_| ()) } else { Ok(()) }
    }

    /// Whether a CA key is in the token, fit to sign, and the one of its certificate. `known` is what an earlier host
    /// has found.
    pub(in super::super) fn look_up(&mut self, key: &PublicKey, known: &[u8]) -> Result<Found, Fault> {
        if let Ok(known) = serde_json::from_slice::<Known>(known) {
            let mut searches = lock(&self.login.searches);
            let search = searches.entry(key.fingerprint()).or_insert_with(|| Search::new(self.login.hints.clone()));
            search.suggest(known);
        }
        let found = self.search_ca_key(key)?;
        let mut how = format!("found {}", found.by.in_words());
        for copy in &found.copies {
            how.push_str(&format!("; the token holds a copy with {copy}"));
        }
        Ok(Found { known: serde_json::to_vec(&Known::from(&found)).unwrap_or_default(), how })
    }

    fn search_ca_key(&mut self, key: &PublicKey) -> Result<CaKey, Fault> {
        let login = self.login.login_number();
        let result = self.find_ca_key(key);
        match result {
            Err(fault) if matches!(fault.recovery, Recovery::NewSession | Recovery::Relogin | Recovery::Retry) => {
                self.drop_session();
                let soon = Instant::now() + BUSY_PAUSE * 2;
                self.escalate(&fault, login, soon)?;
                self.find_ca_key(key).inspect_err(|_| self.drop_session())
            }
            // This is repeated each second while a key is missing, so the session is kept.
            Err(fault) if fault.recovery == Recovery::FixKey => match self.session_info() {
                Err(lost) if lost.recovery == Recovery::Relogin => {
                    self.login.login(self.thread, login)?;
                    self.find_ca_key(key)
                }
                Ok(()) | Err(_) => Err(fault),
            },
            other => other,
        }
    }

    fn find_ca_key(&mut self, key: &PublicKey) -> Result<CaKey, Fault> {
        let (login, thread) = (self.login, self.thread);
        let open = self.ensure()?;
        // One thread searches, the others then find what it has found.
        let mut searches = lock(&login.searches);
        let search = searches.entry(key.fingerprint()).or_insert_with(|| Search::new(login.hints.clone()));
        let _call = login.watchdog.call(thread);
        let until = Instant::now() + login.settings.call_timeout / SEARCH_SHARE;
        let found = search.find(&open.session, key, until).map_err(|error| key_fault(&error))?;
        let accepted = || Accepted::in_bundle(&login.settings.bundle, &key.fingerprint(), &login.token.info().serial);
        if key::fit(&found.flags, &found.locator, &Accepted::default()).is_err() {
            key::fit(&found.flags, &found.locator, &accepted()).map_err(|error| key_fault(&error))?;
        }
        open.handles.insert(key.fingerprint(), found.handle);
        Ok(found)
    }

    /// Whether the session has signed since this was last queried.
    pub(in super::super) fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// Signs with the canary key, which keeps token and firewall from closing the session as idle: many libraries answer
    /// C_GetSessionInfo without contacting the token. Without a canary key that signs, C_GetSessionInfo and a search for
    /// the CA's key must do.
    pub(in super::super) fn exercise(&mut self) -> Result<(), Fault> {
        self.touch()?;
        let paused = self.login.own_key_pauses(Kind::Canary).is_some();
        let Some(key) = self.login.canary_key().filter(|_| !paused).cloned() else { return self.cas_still_there() };
        match self.sign_own(Kind::Canary, &key, &canary_message(), Instant::now() + BUSY_PAUSE * 2) {
            Ok(_) => self.login.count_signed(key.fingerprint(), Kind::Canary),
            // The session was exercised without it.
            Err(fault) if fault.recovery == Recovery::RejectRequest => {}
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// Queries the session from the token, and recovers it if it is lost.
    pub(in super::super) fn touch(&mut self) -> Result<(), Fault> {
        let login = self.login.login_number();
        let Err(fault) = self.session_info() else { return Ok(()) };
        self.drop_session();
        self.escalate(&fault, login, Instant::now() + BUSY_PAUSE * 2)?;
        self.session_info().inspect_err(|_| self.drop_session())
    }

    fn session_info(&mut self) -> Result<(), Fault> {
        use cryptoki::session::SessionState;
        let (login, thread) = (self.login, self.thread);
        let open = self.ensure()?;
        let _call = login.watchdog.call(thread);
        let info = calls::call(calls::Function::GetSessionInfo, || open.session.get_session_info())
            .map_err(|error| call_fault(&error.into(), "C_GetSessionInfo"))?;
        match info.session_state() {
            SessionState::RoUser | SessionState::RwUser => Ok(()),
            SessionState::RoPublic | SessionState::RwPublic if login.skips_login() => Ok(()),
            _ => Err(fault_of(Recovery::Relogin, "the token has ended the login")),
        }
    }

    fn handle(&mut self, kind: Kind, key: &PublicKey, fingerprint: Fingerprint) -> Result<ObjectHandle, Fault> {
        let (login, thread) = (self.login, self.thread);
        let open = self.ensure()?;
        if let Some(handle) = open.handles.get(&fingerprint) {
            return Ok(*handle);
        }
        let label = match kind {
            Kind::Crl | Kind::Intermediate | Kind::Leaf => return self.find_ca_key(key).map(|found| found.handle),
            Kind::Canary => CANARY_KEY_LABEL,
            Kind::Checkpoint => LOG_KEY_LABEL,
        };
        let _call = login.watchdog.call(thread);
        let handle = key::find_by_label(&open.session, label).map_err(|error| key_fault(&error))?.handle;
        open.handles.insert(fingerprint, handle);
        Ok(handle)
    }

    fn ensure(&mut self) -> Result<&mut Open, Fault> {
        if self.open.as_ref().is_some_and(|open| self.login.is_discarded(open.number)) {
            tracing::warn!(thread = self.thread, "a session that made a wrong signature is dropped");
            self.drop_session();
        }
        match &mut self.open {
            Some(open) => Ok(open),
            empty @ None => {
                let (session, number) = self.login.session(self.thread)?;
                self.login.live.fetch_add(1, Ordering::Relaxed);
                Ok(empty.insert(Open { session, number, handles: HashMap::new() }))
            }
        }
    }

    fn drop_session(&mut self) {
        if let Some(open) = self.open.take() {
            self.login.live.fetch_sub(1, Ordering::Relaxed);
            self.login.counters.reopened.fetch_add(1, Ordering::Relaxed);
            let _call = self.login.watchdog.call(self.thread);
            close(open);
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.login.live.fetch_sub(1, Ordering::Relaxed);
            let _call = self.login.watchdog.call(self.thread);
            close(open);
        }
    }
}

/// Closes the session; a lost one needs no closing.
fn close(open: Open) {
    let closed = calls::call(calls::Function::CloseSession, || open.session.close());
    if let Err(error) = closed {
        tracing::debug!(error = %token::Pkcs11Error::from(error), "a session does not close well");
    }
}
