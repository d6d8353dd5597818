//! The bundle, the issuance log and the clock.

use std::{os::unix::fs::MetadataExt, path::Path, time::SystemTime};

use nix::unistd::{AccessFlags, eaccess, geteuid};

use super::finding::{Finding, Findings};
use crate::{
    config::Config,
    daemon::setup::{self, SetupError},
};
use audit_log::Log;
use pki::bundle::Problem;
use process::clock::Clock;

/// The bundle as `serve` takes it.
pub(super) fn bundle(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("bundle");
    match setup::bundle(config) {
        Ok(bundle) => {
            for warning in bundle.warnings() {
                found.warning(warning.to_string(), "replace the certificate in time, by `import` or `install`");
            }
            let issuer = bundle.issuer();
            let until = audit_log::timestamp::format(issuer.not_after());
            found.ok(format!(
                "{}: a CA with a {} key, until {until}",
                config.ca.bundle.display(),
                issuer.key_algorithm()
            ));
        }
        Err(SetupError::Bundle { problems, .. }) => {
            for Problem { file, reason, remedy } in problems {
                let remedy = remedy.unwrap_or_else(|| "write the bundle again with `import` or `install`".to_owned());
                found.error(format!("{file}: {reason}"), remedy);
            }
        }
        Err(error @ SetupError::RootDropped { .. }) => found.failed(&error, "add the root again"),
        Err(error @ (SetupError::Log(_) | SetupError::Pool(_))) => found.failed(&error, "see the message"),
    }
    found.into_vec()
}

/// The issuance log, looked at without being opened; and the time of its newest record.
pub(super) fn log(config: &Config) -> (Vec<Finding>, Option<SystemTime>) {
    let mut found = Findings::about("log");
    let settings = &config.log;
    let directory = settings.directory.as_path();
    let mut newest = None;
    match Log::examine(settings) {
        Ok(Some(examined)) => {
            newest = examined.newest_record;
            if examined.torn_bytes > 0 {
                found.warning(
                    format!(
                        "{}: ends in {} bytes of a line that a crash cut off",
                        directory.display(),
                        examined.torn_bytes
                    ),
                    "nothing; `serve` sets them aside in a file of their own",
                );
            }
            found.ok(format!(
                "{}: {} lines, {} certificates intended",
                directory.display(),
                examined.lines,
                examined.intents
            ));
        }
        Ok(None) => found.ok(format!("{}: there is no log yet; it will be made", directory.display())),
        Err(error) => found.failed(&error, "make the directory readable and writable for the daemon's user"),
    }
    writable(directory, "the log's directory", &mut found);
    owner(directory, &mut found);
    (found.into_vec(), newest)
}

/// The clock against the newest record.
pub(super) fn clock(newest: Option<SystemTime>) -> Vec<Finding> {
    let mut found = Findings::about("clock");
    match Clock::start(newest).now() {
        Ok(now) => found.ok(audit_log::timestamp::format(now)),
        Err(error) => found.failed(&error, "set the clock right"),
    }
    found.into_vec()
}

/// Whether this user may make files in a directory, or make the directory; says so where not.
pub(super) fn writable(directory: &Path, what: &str, found: &mut Findings) -> bool {
    let there = directory.ancestors().find(|path| path.exists() || path.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    if !there.is_dir() {
        found.error(
            format!("{what} {} cannot be: {} is not a directory", directory.display(), there.display()),
            "name another path",
        );
        return false;
    }
    if let Err(error) = eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        found.error(
            format!("{what}: {} cannot be written: {error}", there.display()),
            "make it writable for the daemon's user",
        );
        return false;
    }
    true
}

/// What this user may do is what the daemon may do only if they are the same.
fn owner(directory: &Path, found: &mut Findings) {
    let Ok(metadata) = std::fs::metadata(directory) else { return };
    let us = geteuid().as_raw();
    if metadata.uid() != us {
        found.warning(
            format!("{} belongs to user {}, and this check runs as user {us}", directory.display(), metadata.uid()),
            "run `check` as the daemon's user, whose permissions count",
        );
    }
}
