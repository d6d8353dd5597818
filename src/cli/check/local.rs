//! The bundle, the issuance log and the clock.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc};

use nix::unistd::{AccessFlags, eaccess, geteuid};

use super::finding::{Finding, Findings};
use crate::{
    config::Config,
    daemon::{
        preparation::{self, Unissuable},
        setup::SetupError,
    },
};
use audit_log::Log;
use pki::{Bundle, bundle::Problem};
use process::clock::{Clock, Known};

/// The bundle as `serve` takes it.
pub(super) fn bundle(config: &Config, bundle: &Result<Bundle, SetupError>) -> Vec<Finding> {
    let mut found = Findings::about("bundle");
    match bundle {
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
                let remedy =
                    remedy.clone().unwrap_or_else(|| "write the bundle again with `import` or `install`".to_owned());
                found.error(format!("{file}: {reason}"), remedy);
            }
        }
        Err(error @ SetupError::RootDropped { .. }) => found.failed(error, "add the root again"),
        Err(error @ (SetupError::Log(_) | SetupError::Pool(_))) => found.failed(error, "see the message"),
    }
    found.into_vec()
}

/// Certificates that policy or the token hosts' limits would refuse.
pub(super) fn rehearsal(config: &Config, bundle: &Bundle) -> Vec<Finding> {
    let mut found = Findings::about("limits");
    for Unissuable { what, reason } in preparation::rehearse(config, bundle, process::clock::now()) {
        found.error(format!("{what} would not be issued: {reason}"), "correct [serving], [ca] or [token_host]");
    }
    found.into_vec()
}

/// The issuance log, looked at without being opened; and what it says of the time.
pub(super) fn log(config: &Config, lock: Result<(), SetupError>) -> (Vec<Finding>, Known) {
    let mut found = Findings::about("log");
    let settings = &config.log;
    let directory = settings.directory.as_path();
    let mut known = Known::default();
    match lock.and_then(|()| Ok(Log::examine(settings)?)) {
        Ok(Some(examined)) => {
            known = examined.clock;
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
    let origin = &settings.origin;
    let host = origin.split('/').next().unwrap_or_default();
    if !config.has_log_origin && is_generated(host) {
        found.warning(
            format!(
                "[log] origin is not set and follows from the host name {host:?}, which looks generated: under another name the log would not open"
            ),
            format!("write `origin = {origin:?}` in [log], or a name that this replica keeps, before the log is made"),
        );
    }
    writable(directory, "the log's directory", &mut found);
    owner(directory, &mut found);
    (found.into_vec(), known)
}

/// The clock against what the log's directory says about the time.
pub(super) fn clock(config: &Config, known: Known) -> Vec<Finding> {
    let mut found = Findings::about("clock");
    match Clock::start(known, Arc::clone(&config.confirm_clock)).now() {
        Ok(now) => found.ok(audit_log::timestamp::format(now)),
        Err(error) => found.failed(&error, "set the clock right"),
    }
    found.into_vec()
}

/// Whether this user can create files in a directory, or create the directory; reports it if not.
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

/// Whether a host name looks like one that the next instance will not have: of a container, a pod or a cloud's machine.
fn is_generated(host: &str) -> bool {
    let name = host.split('.').next().unwrap_or_default();
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_mixed =
        |part: &str| part.bytes().any(|b| b.is_ascii_digit()) && part.bytes().any(|b| b.is_ascii_lowercase());
    // k8s.io/apimachinery/pkg/util/rand: no vowels and no digits that look like letters.
    let is_suffix = |part: &str| {
        part.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
            && part.bytes().any(|b| b.is_ascii_lowercase())
    };
    let parts: Vec<&str> = name.split('-').collect();
    match parts.as_slice() {
        // Docker and Podman: the first digits of the container's id, or all of them.
        [id] => matches!(id.len(), 12 | 64) && is_hex(id) && is_mixed(id),
        // Amazon EC2: ip-10-0-0-1 and i-0123456789abcdef0.
        ["ip", octets @ ..] if octets.len() == 4 => octets.iter().all(|octet| octet.parse::<u8>().is_ok()),
        ["i", id] => id.len() == 17 && is_hex(id),
        // UUIDs.
        [a, b, c, d, e] if [a, b, c, d, e].map(|part| part.len()) == [8, 4, 4, 4, 12] => {
            parts.iter().all(|part| is_hex(part))
        }
        // Azure scale sets: aks-pool-12345678-vmss00000a.
        [.., last] if last.starts_with("vmss") && last.len() > 4 => true,
        // Google Kubernetes Engine and instance groups: ...-0123abcd-x1y2.
        [.., group, last] if group.len() == 8 && is_hex(group) && last.len() == 4 => true,
        // Pods of Deployments, DaemonSets and Jobs; those of StatefulSets (name-0) keep their names.
        [_, .., last] => last.len() == 5 && is_suffix(last),
        [] => false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_host_names_are_recognized() {
        for generated in [
            "3f2a91bc04de",
            "istio-hsm-ca-7d4b9c6f58-x2k9q",
            "istio-hsm-ca-x2k9q",
            "ip-10-0-12-255",
            "ip-10-0-12-255.eu-central-1.compute.internal",
            "i-0123456789abcdef0",
            "aks-nodepool1-12345678-vmss00000a",
            "gke-prod-default-pool-1a2b3c4d-x7k2",
            "9f1c2d3e-0000-4000-8000-0123456789ab",
        ] {
            assert!(is_generated(generated), "{generated}");
        }
        for kept in [
            "ca-0",
            "istio-hsm-ca-0",
            "istio-hsm-ca-12",
            "ca.example.com",
            "localhost",
            "mesh-ca-prod",
            "hsm-ca-berlin",
            "db01",
            "ca-10-0-0-1",
            "node-25678",
            "pki-proxy",
            "deadbeefcafe",
            "",
        ] {
            assert!(!is_generated(kept), "{kept}");
        }
    }
}
