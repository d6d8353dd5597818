//! One token: library, token, PIN, keys, mechanisms, sessions. Runs in a separate process.

use std::{
    fs::DirBuilder,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::Path,
};

use super::{
    finding::{Finding, Findings},
    local,
};
use crate::{
    config::{self, Config},
    daemon::setup,
};
use pki::PublicKey;
use process::error::{Report, chain};
use token::{
    Module, Session, Token, TokenUri,
    key::{self, Accepted, CANARY_KEY_LABEL, FoundBy, Hints, KeyError, LOG_KEY_LABEL, Search, proof},
    mechanism::signing_mechanism,
    module::{LoginError, PinState},
    pin,
    pin_marker::{MarkerError, PinMarker, state_of},
};

/// Sessions in addition to those that sign: the host's own, which keeps the login.
const OTHER_SESSIONS: u64 = 1;

/// All findings about one configured token.
pub(super) fn findings(config: &Config, configured: &config::Token) -> Vec<Finding> {
    let mut found = Findings::about(format!("token {}", configured.name));
    if let Some(uri) = &configured.uri {
        look(config, configured, uri, &mut found);
    }
    found.into_vec()
}

fn look(config: &Config, configured: &config::Token, uri: &TokenUri, found: &mut Findings) {
    let Some(path) = uri.module_path() else { return };
    let module = match Module::load_with(path, uri.library_parameters()) {
        Ok(module) => module,
        Err(error) => return found.failed(&error, "check module-path and the library's own configuration"),
    };
    let token = match module.find_token(uri) {
        Ok(token) => token,
        Err(error) => return found.failed(&error, "run `istio-hsm-ca inspect --module` to see its tokens"),
    };
    let info = token.info();
    found.ok(format!("{} (serial {}, {} {}) is there", info.label, info.serial, info.manufacturer, info.model));
    let wanted = u64::from(configured.sessions.get()) + OTHER_SESSIONS;
    match info.max_sessions {
        // The host signs with the session that keeps the login.
        Some(1) if configured.sessions.get() == 1 => {}
        Some(most) if most < wanted => found.error(
            format!("it allows {most} sessions, and {wanted} are wanted: those configured and one for the login"),
            "lower sessions in [[token]]",
        ),
        Some(_) | None => {}
    }
    // An invalid bundle is reported separately.
    let ca = setup::bundle(config).ok().map(|bundle| bundle.issuer().public_key().clone());
    let log_only = config.log.token.as_deref() == Some(&*configured.name);
    if let Some(ca) = ca.as_ref().filter(|_| !log_only) {
        mechanism(&token, ca, found);
    }
    let session = match uri.pin_source() {
        Some(pin_file) if !token.skips_login(true) => login(&token, pin_file, &config.pin_marker(configured), found),
        Some(_) | None => without_pin(&token, found),
    };
    let Some(session) = session else { return };
    if let Some(ca) = ca.as_ref().filter(|_| !log_only) {
        let accepted = Accepted::in_bundle(&config.ca.bundle, &ca.fingerprint(), &token.info().serial);
        ca_key(&session, ca, (uri, &accepted), found);
    }
    if log_only || config.log.token.is_none() {
        let make = if log_only {
            "run `istio-hsm-ca generate --log-key` on it"
        } else {
            "name another token that can have one by [log] token; or run `import`, `adopt` or `install` again, which makes \
             the key if the token can"
        };
        service_key(
            &session,
            LOG_KEY_LABEL,
            "log key (Ed25519)",
            "no checkpoints of the issuance log are signed",
            make,
            found,
        );
    }
    let make = "run `import`, `adopt` or `install` again, which makes it if the token can";
    let without = "an idle token is probed by its session and the CA's key, not by a signature";
    service_key(&session, CANARY_KEY_LABEL, "canary key", without, make, found);
}

fn mechanism(token: &Token, ca: &PublicKey, found: &mut Findings) {
    match token.mechanisms() {
        Ok(mechanisms) if signing_mechanism(ca.algorithm(), &mechanisms).is_none() => found.error(
            format!("it lacks the mechanism to sign with a {} key", ca.algorithm()),
            "use a token that has it, or a CA key of another type",
        ),
        Ok(_) => {}
        Err(error) => found.failed(&error, "see whether the token works, by the vendor's tool"),
    }
}

/// A session of a token that requires no login.
fn without_pin(token: &Token, found: &mut Findings) -> Option<Session> {
    let opened = token.open_session(false).map_err(|error| chain(&error)).and_then(|session| {
        token.login(&session, None).map_err(|error| Report::from(&error).problem)?;
        Ok(session)
    });
    match opened {
        Ok(session) => {
            found.ok("it requires no login");
            Some(session)
        }
        Err(problem) => {
            found.error(problem, "add pin-source=file:/path/to/pin to the token's uri");
            None
        }
    }
}

/// Logs in with the PIN in the file, tried once; not at all if it was rejected before.
fn login(token: &Token, pin_file: &Path, marker_path: &Path, found: &mut Findings) -> Option<Session> {
    let remedy = "write the right PIN into its file, readable for the daemon's user alone";
    let state = state_of(pin_file);
    let pin = match pin::read(pin_file) {
        Ok(pin) => pin,
        Err(error) => {
            found.failed(&error, remedy);
            return None;
        }
    };
    if std::fs::metadata(pin_file).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        found.warning(format!("the PIN file {} can be read by everybody", pin_file.display()), "chmod o-r it");
    }
    let marker = PinMarker::new(marker_path.to_owned());
    if let Err(error) = marker.check(pin_file) {
        found.failed(&error, remedy);
        return None;
    }
    if token.info().pin == PinState::CountLow {
        found.warning("a wrong PIN was tried since the last good one", "find out who tried it");
    }
    if !can_remember(&marker, marker_path, found) {
        return None;
    }
    let session = match token.open_session(false) {
        Ok(session) => session,
        Err(error) => {
            found.failed(&error, "end other applications' sessions, or raise the token's limit");
            return None;
        }
    };
    match token.login(&session, &pin) {
        Ok(()) => {
            found.ok("the PIN is taken");
            Some(session)
        }
        Err(error) => {
            found.failed(&error, remedy);
            if let (LoginError::WrongPin { .. } | LoginError::Locked(_) | LoginError::FinalTry(_), Ok(state)) =
                (&error, &state)
                && let Err(error) = remember(&marker, marker_path, state, &error.to_string())
            {
                found.failed(&error, "correct the PIN file before anybody tries it again");
            }
            None
        }
    }
}

/// Whether a rejection can be recorded; otherwise the PIN would be tried again and again, so it is not tried at all.
fn can_remember(marker: &PinMarker, path: &Path, found: &mut Findings) -> bool {
    let directory = path.parent().unwrap_or(Path::new("."));
    if directory.is_dir() {
        let ready = marker.ready();
        if let Err(error) = &ready {
            found.failed(error, "make its directory writable for the daemon's user");
        }
        return ready.is_ok();
    }
    local::writable(directory, "the mark of a refused PIN in", found)
}

/// Writes the marker that `serve` would write, with the owner of the directory, which is created if it does not exist.
fn remember(marker: &PinMarker, path: &Path, state: &str, reason: &str) -> Result<(), MarkerError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let owned = directory.ancestors().find(|path| path.is_dir());
    let owner = owned.and_then(|path| std::fs::metadata(path).ok());
    let missing = directory.ancestors().take_while(|path| Some(*path) != owned);
    let made: Vec<&Path> = missing.chain(std::iter::once(path)).collect();
    if Some(directory) != owned {
        let made = DirBuilder::new().recursive(true).mode(0o750).create(directory);
        made.map_err(|source| MarkerError::Io { path: path.to_owned(), source })?;
    }
    marker.mark(state, reason)?;
    if let Some(owner) = owner {
        for path in made {
            // Relevant only if root runs the check for another user.
            let _ = chown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }
    Ok(())
}

fn ca_key(session: &Session, ca: &PublicKey, (uri, accepted): (&TokenUri, &Accepted), found: &mut Findings) {
    let hints = Hints::from(uri);
    let key = match Search::new(hints.clone()).find_all(session, ca) {
        Ok(key) => key,
        Err(error) => return found.failed(&error, "import the key, or name the token that holds it"),
    };
    if let Err(error) = key::fit(&key.flags, &key.locator, accepted) {
        return found.failed(&error, "import the key into a fresh token");
    }
    if !hints.is_empty() && key.by != FoundBy::Uri {
        found.warning("id= or object= in the token URI does not lead to the CA's key", "correct it, or leave it out");
    }
    for copy in &key.copies {
        found.warning(
            format!("the token holds a copy of the CA's key, with {copy}; one of them is used"),
            "delete the copies with the vendor's tool if nothing else needs them",
        );
    }
    let (weak, known): (Vec<_>, Vec<_>) =
        key.flags.weaknesses().into_iter().partition(|weakness| !accepted.allows(*weakness));
    for weakness in known {
        found.warning(
            format!("the CA's key {}; that was accepted with {}", weakness.in_words(), weakness.flag()),
            "replace it by a key without this weakness when you can",
        );
    }
    for weakness in weak {
        found.warning(
            format!("the CA's key {}", weakness.in_words()),
            format!(
                "replace it by a key without this weakness, or accept it with `istio-hsm-ca adopt {}`",
                weakness.flag()
            ),
        );
    }
    for attribute in proof::surplus(&key.flags, true).into_iter().filter(|name| ALSO_SURPLUS.contains(name)) {
        found.warning(
            format!("the CA's key allows more than it needs ({attribute})"),
            "import it into a fresh token by `import`, which writes every attribute out",
        );
    }
    found.ok(format!(
        "the CA's {} key is there, and its signature verifies with ca-cert.pem; found {}",
        ca.algorithm(),
        key.by.in_words()
    ));
}

/// The attributes that allow too much and are no [`Weakness`](token::key::Weakness).
const ALSO_SURPLUS: [&str; 3] = ["CKA_MODIFIABLE", "CKA_PRIVATE", "CKA_SIGN_RECOVER"];

/// A key that certificates do not need: nothing about it is an error, nor to be taken for the CA's key.
fn service_key(session: &Session, label: &str, name: &str, without: &str, make: &str, found: &mut Findings) {
    let reason = match key::find_by_label(session, label) {
        Ok(own) => match proof::signs(session, own.handle, &own.public_key) {
            Ok(()) => return,
            Err(error) => chain(&error),
        },
        Err(KeyError::NotFound(_)) => {
            return found.warning(format!("there is no {name}: {without}; certificates do not need it"), make);
        }
        Err(error) => Report::from(&error).problem,
    };
    found.warning(
        format!("the {name} cannot be used: {without}; certificates do not need it ({reason})"),
        format!("delete the objects with the label `{label}` and no others, with the vendor's tool; then {make}"),
    );
}
