//! One token: library, token, PIN, keys, mechanisms, sessions. Runs in a process of its own.

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
use token::{
    Module, Session, Token, TokenUri,
    key::{self, CANARY_KEY_LABEL, Flags, KeyError, LOG_KEY_LABEL, proof},
    mechanism::signing_mechanism,
    module::{LoginError, PinState},
    pin,
    pin_marker::{MarkerError, PinMarker, state_of},
};

/// Sessions beside those that sign: the host's own, which keeps the login.
const OTHER_SESSIONS: u64 = 1;

/// Everything about one token of the configuration.
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
        Some(most) if most < wanted => found.error(
            format!("it allows {most} sessions, and {wanted} are wanted: those configured and one for the login"),
            "lower sessions in [[token]]",
        ),
        Some(_) | None => {}
    }
    // A refused bundle is reported separately.
    let ca = setup::bundle(config).ok().map(|bundle| bundle.issuer().public_key().clone());
    if let Some(ca) = &ca {
        mechanism(&token, ca, found);
    }
    let Some(pin_file) = uri.pin_source() else { return };
    let marker = config.pin_marker(configured);
    let Some(session) = login(&token, pin_file, &marker, found) else { return };
    if let Some(ca) = &ca {
        ca_key(&session, ca, found);
    }
    service_key(&session, LOG_KEY_LABEL, "log key (Ed25519): checkpoints of the issuance log are off", found);
    service_key(&session, CANARY_KEY_LABEL, "canary key: an idle token is not probed by a signature", found);
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

/// Logs in with the PIN of the file, tried once; not at all when it was refused before.
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

/// Whether a refusal could be remembered; a PIN that would be tried again and again is not tried at all.
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

/// Leaves the mark that `serve` would leave, with the owner of the directory, which is created if it does not exist.
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
            // Matters only where root checks for another user.
            let _ = chown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }
    Ok(())
}

fn ca_key(session: &Session, ca: &PublicKey, found: &mut Findings) {
    let handle = match key::find_private_key(session, ca) {
        Ok(handle) => handle,
        Err(error) => return found.failed(&error, "import the key, or name the token that holds it"),
    };
    if let Err(error) = proof::signs(session, handle, ca) {
        return found.failed(&error, "delete the object by the vendor's tool and import the key again");
    }
    if let Ok(flags) = Flags::read(session, handle) {
        for attribute in proof::surplus(&flags, true) {
            found.warning(
                format!("the CA's key allows more than it needs ({attribute})"),
                "import it into a fresh token by `import`, which writes every attribute out",
            );
        }
    }
    found.ok(format!("the CA's {} key is there, and its signature verifies with ca-cert.pem", ca.algorithm()));
}

fn service_key(session: &Session, label: &str, without: &str, found: &mut Findings) {
    match key::find_by_label(session, label) {
        Ok(own) => {
            if let Err(error) = proof::signs(session, own.handle, &own.public_key) {
                found.doubt(&error, "delete it by the vendor's tool and import again, which makes another");
            }
        }
        Err(KeyError::NotFound(_)) => {
            found.warning(format!("there is no {without}"), "import again, which makes it where the token can");
        }
        Err(
            error @ (KeyError::Ambiguous { .. }
            | KeyError::Call { .. }
            | KeyError::Public { .. }
            | KeyError::Unfit { .. }),
        ) => found.failed(&error, "delete it by the vendor's tool and import again, which makes another"),
    }
}
