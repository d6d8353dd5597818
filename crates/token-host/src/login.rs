//! The login shared by the host's threads: the token, the CA certificates, the counters.
//!
//! Each thread has its own [`Worker`] with its own session, since sessions are not shared. The login belongs to the
//! process; it is made once and kept by a session that does nothing else.

mod faults;
mod own_keys;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use cryptoki::session::Session;
use faults::{
    call_fault, fault, fault_of, key_fault, login_fault, pin_fault, pin_file_fault, setting, sign_fault, token_fault,
};
use own_keys::OwnKeys;
use secrecy::SecretString;
pub(super) use worker::Worker;

use super::{
    Settings,
    activation::PinSource,
    chain,
    policy::{CaCertificate, Policy},
    watchdog::Watchdog,
};
use crate::protocol::{Fault, Fingerprint, KeyCount, Kind, Status, VERSION};
use pki::{PublicKey, lint, pem};
use process::error::Report;
use token::{
    Module, RvError, Token, TokenUri, calls,
    key::{Hints, Search, hex},
    module::LoginError,
    pin,
    pin_marker::{PinMarker, state_of},
};

#[derive(Debug, Default)]
pub(super) struct Counters {
    signed: Mutex<BTreeMap<(Fingerprint, Kind), u64>>,
    pub(super) refused: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) reopened: AtomicU64,
    logins: AtomicU64,
}

/// An open token with a login.
#[derive(Debug)]
pub(super) struct LoginContext {
    pub(super) policy: Policy,
    pub(super) watchdog: Arc<Watchdog>,
    pub(super) counters: Counters,
    /// Number of workers with an open session.
    pub(super) live: AtomicUsize,
    settings: Settings,
    pin_source: PinSource,
    module: Module,
    token: Token,
    certificates: RwLock<Arc<Vec<CaCertificate>>>,
    /// Keys of the other CA certificates in the bundle: roots and intermediates, as subjectPublicKey bits.
    other_ca_keys: RwLock<Arc<Vec<Vec<u8>>>>,
    /// The session that keeps the process logged in; locked during a login.
    anchor: Mutex<Option<Session>>,
    logins: AtomicU64,
    sessions: AtomicU32,
    discarded: Mutex<Vec<u32>>,
    own_keys: OwnKeys,
    /// What the search for each CA key has shown, for all threads.
    searches: Mutex<HashMap<Fingerprint, Search>>,
    hints: Hints,
}

/// The watchdog's slot of the thread that opens the login.
const MAIN_THREAD: usize = 0;

/// Maximum number of known CA certificates, including earlier ones, unless more are configured.
const CERTIFICATES_MOST: usize = 8;

/// Maximum number of keys of other CA certificates, including earlier ones, unless the bundle has more.
const OTHER_KEYS_MOST: usize = 1024;

/// Maximum number of remembered sessions to be dropped: more than a host ever has.
const DISCARDED_MOST: usize = 256;

impl LoginContext {
    /// Loads the module, finds the token, logs in and looks up the keys.
    pub(super) fn open(
        name: &str,
        settings: Settings,
        pin_source: PinSource,
        watchdog: &Arc<Watchdog>,
    ) -> Result<Self, Fault> {
        let uri: TokenUri = settings.uri.parse().map_err(|error: token::uri::UriError| setting(&error))?;
        let module_path =
            uri.module_path().ok_or_else(|| fault("the token URI names no module; add module-path=/path"))?;
        let certificates = read_certificates(&settings)?;
        let other_ca_keys = read_other_keys(&settings);
        // Before the library is loaded: a PIN known to be wrong is not tried.
        if let PinSource::File(pin_file) = &pin_source {
            let marker = PinMarker::new(settings.pin_marker.clone());
            marker.check(pin_file).map_err(|error| pin_fault(&chain(&error)))?;
        }

        let call = watchdog.call(MAIN_THREAD);
        let module = Module::load_with(module_path, uri.library_parameters()).map_err(|error| token_fault(&error))?;
        drop(call);
        let call = watchdog.call(MAIN_THREAD);
        let token = module.find_token(&uri).map_err(|error| token_fault(&error))?;
        drop(call);
        let login = Self {
            policy: Policy::new(&settings),
            watchdog: Arc::clone(watchdog),
            counters: Counters::default(),
            live: AtomicUsize::new(0),
            settings,
            pin_source,
            module,
            token,
            certificates: RwLock::new(Arc::new(certificates)),
            other_ca_keys: RwLock::new(Arc::new(other_ca_keys)),
            anchor: Mutex::new(None),
            logins: AtomicU64::new(0),
            sessions: AtomicU32::new(0),
            discarded: Mutex::new(Vec::new()),
            own_keys: OwnKeys::default(),
            searches: Mutex::new(HashMap::new()),
            hints: Hints::from(&uri),
        };
        login.login(MAIN_THREAD, 0)?;
        login.look_for_own_keys();
        let label = &login.token.info().label;
        if login.skips_login() {
            tracing::info!(name, token = label, "the token host uses the token, which requires no login");
        } else {
            tracing::info!(name, token = label, "the token host is logged in");
        }
        Ok(login)
    }

    /// Closes the library; there must be no workers any more.
    pub(super) fn close(self) {
        let Self { module, token, anchor, watchdog, .. } = self;
        let _call = watchdog.call(MAIN_THREAD);
        drop(anchor);
        drop(token);
        if let Err(error) = module.finalize() {
            tracing::warn!(%error, "the module does not end well");
        }
    }

    /// Whether the token is used without a login.
    fn skips_login(&self) -> bool {
        self.token.skips_login(!matches!(self.pin_source, PinSource::None))
    }

    pub(super) fn session_count(&self) -> usize {
        self.settings.session_count()
    }

    /// The CA certificates.
    pub(super) fn certificates(&self) -> Arc<Vec<CaCertificate>> {
        Arc::clone(&self.certificates.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys of the other CA certificates in the bundle.
    pub(super) fn other_ca_keys(&self) -> Arc<Vec<Vec<u8>>> {
        Arc::clone(&self.other_ca_keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the CA certificates again; they stay unchanged if that fails. Earlier ones stay known: requests that began
    /// with the old bundle end with it, and a daemon that rejects the new bundle continues with the old one.
    pub(super) fn reread(&self) -> Result<(), Fault> {
        let mut keys = read_other_keys(&self.settings);
        let mut held = self.other_ca_keys.write().unwrap_or_else(PoisonError::into_inner);
        for earlier in held.iter() {
            if keys.len() < OTHER_KEYS_MOST && !keys.contains(earlier) {
                keys.push(earlier.clone());
            }
        }
        *held = Arc::new(keys);
        drop(held);
        let mut certificates = read_certificates(&self.settings)?;
        let mut held = self.certificates.write().unwrap_or_else(PoisonError::into_inner);
        for earlier in held.iter() {
            if certificates.len() < CERTIFICATES_MOST && certificates.iter().all(|new| new.der != earlier.der) {
                certificates.push(earlier.clone());
            }
        }
        *held = Arc::new(certificates);
        Ok(())
    }

    /// Number of the current login, by which a thread identifies the login that it lost.
    pub(super) fn login_number(&self) -> u64 {
        self.logins.load(Ordering::Acquire)
    }

    /// Logs the process in, unless another thread has done so after the login with this number. A PIN that the token
    /// refused is not tried again: before its file has changed, or before operators hand over another one.
    pub(super) fn login(&self, thread: usize, lost: u64) -> Result<(), Fault> {
        let mut anchor = lock(&self.anchor);
        if self.login_number() != lost {
            return Ok(());
        }
        match &self.pin_source {
            PinSource::File(pin_file) if !self.skips_login() => {
                let marker = PinMarker::new(self.settings.pin_marker.clone());
                marker.check(pin_file).map_err(|error| pin_fault(&chain(&error)))?;
                let state = state_of(pin_file).map_err(|error| pin_file_fault(&chain(&error)))?;
                let pin = pin::read(pin_file).map_err(|error| pin_file_fault(&chain(&error)))?;
                marker.ready().map_err(|error| setting(&error))?;
                let result = self.try_pin(thread, &mut anchor, Some(&pin))?;
                drop(pin);
                if let Err(error) = result {
                    if is_refusal(&error)
                        && let Err(error) = marker.mark(&state, &chain(&error))
                    {
                        tracing::error!(error = chain(&error), "ALARM: a restart may try the refused PIN again");
                    }
                    return Err(login_fault(&error));
                }
                if let Err(error) = marker.clear() {
                    tracing::warn!(error = chain(&error), "the mark of an earlier refused PIN stays");
                }
            }
            PinSource::Operators(activation) if !self.skips_login() => {
                let pin = activation.pin().ok_or_else(|| activation.waiting())?;
                if let Err(error) = self.try_pin(thread, &mut anchor, Some(pin.pin()))? {
                    if is_refusal(&error) {
                        // Its remedy is about a PIN file.
                        activation.refuse(&Report::from(&error).problem);
                        return Err(activation.waiting());
                    }
                    return Err(login_fault(&error));
                }
                activation.accept();
            }
            PinSource::File(_) | PinSource::Operators(_) | PinSource::None => {
                self.try_pin(thread, &mut anchor, None)?.map_err(|error| login_fault(&error))?;
            }
        }
        self.logins.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Logs in with a PIN, which is tried once, or without one. The anchor holds the new session if the token accepts
    /// it, and none if it does not.
    fn try_pin(
        &self,
        thread: usize,
        anchor: &mut Option<Session>,
        pin: Option<&SecretString>,
    ) -> Result<Result<(), LoginError>, Fault> {
        let call = self.watchdog.call(thread);
        *anchor = None;
        let session = self.token.open_session(false).map_err(|error| call_fault(&error, "C_OpenSession"))?;
        let result = self.token.login(&session, pin);
        drop(call);
        self.counters.logins.fetch_add(u64::from(pin.is_some()), Ordering::Relaxed);
        Ok(result.map(|()| *anchor = Some(session)))
    }

    /// Opens a session for a worker and numbers it. A token that has no other session gives the one that keeps the login.
    pub(super) fn session(&self, thread: usize) -> Result<(Session, u32), Fault> {
        let _call = self.watchdog.call(thread);
        let session = match self.token.open_session(false) {
            Ok(session) => session,
            Err(error) if error.is(RvError::SessionCount) && self.live.load(Ordering::Relaxed) == 0 => {
                lock(&self.anchor).take().ok_or_else(|| call_fault(&error, "C_OpenSession"))?
            }
            Err(error) => return Err(call_fault(&error, "C_OpenSession")),
        };
        Ok((session, self.sessions.fetch_add(1, Ordering::Relaxed)))
    }

    /// Marks a session that made wrong signatures.
    pub(super) fn discard(&self, session: u32) {
        let mut discarded = lock(&self.discarded);
        if discarded.len() < DISCARDED_MOST {
            discarded.push(session);
        }
    }

    /// Whether a session is to be dropped; `true` only once.
    pub(super) fn is_discarded(&self, session: u32) -> bool {
        let mut discarded = lock(&self.discarded);
        let at = discarded.iter().position(|other| *other == session);
        at.map(|at| discarded.swap_remove(at)).is_some()
    }

    pub(super) fn count_signed(&self, key: Fingerprint, kind: Kind) {
        *lock(&self.counters.signed).entry((key, kind)).or_default() += 1;
    }

    pub(super) fn status(&self) -> Status {
        let spki = |key: Option<&PublicKey>| key.map(|key| key.spki_der().to_vec()).unwrap_or_default();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let info = self.token.info();
        let signed = lock(&self.counters.signed);
        Status {
            token: info.label.clone(),
            serial: info.serial.clone(),
            model: info.model.clone(),
            sessions: self.settings.sessions.max(1),
            ca_keys: self.certificates().iter().map(|ca| hex(&ca.fingerprint)).collect(),
            log_key: spki(self.log_key()),
            canary_key: spki(self.canary_key()),
            signed: signed
                .iter()
                .map(|((key, kind), count)| KeyCount { key: hex(key), kind: *kind, count: *count })
                .collect(),
            refused: load(&self.counters.refused),
            expired: load(&self.counters.expired),
            failed: load(&self.counters.failed),
            sessions_reopened: load(&self.counters.reopened),
            logins: load(&self.counters.logins),
            cancels: true,
            ..last_word()
        }
    }
}

/// The final status of a host that cannot serve: its call statistics.
pub(super) fn last_word() -> Status {
    let (calls, call_errors) = calls::snapshot();
    Status { version: VERSION, pid: std::process::id(), instance: instance(), calls, call_errors, ..Status::default() }
}

/// A number unique to this process ([`Status::instance`]).
fn instance() -> u64 {
    static INSTANCE: OnceLock<u64> = OnceLock::new();
    *INSTANCE.get_or_init(crate::unique)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the token refuses this PIN, or any.
fn is_refusal(error: &LoginError) -> bool {
    matches!(error, LoginError::WrongPin { .. } | LoginError::Locked(_) | LoginError::FinalTry(_))
}

/// The files in a bundle, of both of Istio's layouts.
const BUNDLE_FILES: [&str; 5] = ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "tls.crt", "ca.crt"];

/// The keys of all certificates in the bundle and in `ca_certificates`, as subjectPublicKey bits. What cannot be read is
/// reported and skipped: the daemon itself continues with an earlier bundle then.
fn read_other_keys(settings: &Settings) -> Vec<Vec<u8>> {
    let bundle = BUNDLE_FILES.map(|name| settings.bundle.join(name));
    let mut keys = Vec::new();
    for path in bundle.iter().chain(&settings.ca_certificates).filter(|path| path.exists()) {
        let skipped = |reason: &dyn std::fmt::Display| {
            let file = path.display();
            tracing::warn!(%file, %reason, "a CA certificate cannot be read; one for its key is not refused");
        };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                skipped(&error);
                continue;
            }
        };
        match pem::blocks(&text) {
            Ok(blocks) => {
                for block in blocks.iter().filter(|block| block.label == "CERTIFICATE") {
                    match lint::subject_public_key(&block.der) {
                        Ok(key) if keys.iter().any(|known| known == key) => {}
                        Ok(key) => keys.push(key.to_vec()),
                        Err(malformed) => skipped(&malformed),
                    }
                }
            }
            Err(error) => skipped(&error),
        }
    }
    keys
}

/// The readable certificates; an error only if there are none.
fn read_certificates(settings: &Settings) -> Result<Vec<CaCertificate>, Fault> {
    let names = ["ca-cert.pem", "tls.crt"].map(|name| settings.bundle.join(name));
    let bundle = names.iter().find(|path| path.exists()).unwrap_or(&names[0]);
    let paths = std::iter::once(bundle).chain(&settings.ca_certificates);
    let (mut certificates, mut first) = (Vec::<CaCertificate>::new(), None);
    for path in paths {
        match read_certificate(path) {
            Ok(ca) if certificates.iter().any(|other| other.der == ca.der) => {}
            Ok(ca) => certificates.push(ca),
            Err(fault) => {
                first.get_or_insert(fault);
            }
        }
    }
    match first {
        Some(fault) if certificates.is_empty() => Err(fault),
        Some(fault) => {
            tracing::warn!(reason = fault.text, "a CA certificate cannot be read; the others serve");
            Ok(certificates)
        }
        None => Ok(certificates),
    }
}

fn read_certificate(path: &Path) -> Result<CaCertificate, Fault> {
    let wrong = |reason: &dyn std::fmt::Display| fault(&format!("{}: {reason}", path.display()));
    let text = process::files::read_input(path, pem::TEXT_MAX).map_err(|error| wrong(&error))?;
    let blocks = pem::blocks(&text).map_err(|error| wrong(&error))?;
    let certificate = blocks.into_iter().find(|block| block.label == "CERTIFICATE");
    let der = certificate.ok_or_else(|| wrong(&"it holds no certificate"))?.der.to_vec();
    CaCertificate::read(der).map_err(|error| wrong(&error))
}
