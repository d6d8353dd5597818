//! Addresses, the serving certificate, and those who prove who calls.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use super::{
    finding::{Finding, Findings},
    local::writable,
};
use crate::{
    auth::Authenticator,
    config::{Admin, Config},
    grpc,
};

/// How long the issuers of tokens have to publish their keys.
const ISSUERS: Duration = Duration::from_secs(5);

/// The key that says where the status page is served.
const STATUS: &str = "[admin] status_address";

/// Whether every address can be listened on, all at once.
pub(super) fn addresses(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("addresses");
    let wanted = [
        ("[listen] address", Some(config.listen.address)),
        ("[admin] address", config.admin.address),
        (STATUS, config.admin.status_page.then(|| config.admin.status_address.unwrap_or(Admin::STATUS))),
    ];
    let mut held = Vec::new();
    for (what, address) in wanted {
        let Some(address) = address else { continue };
        match TcpListener::bind(address) {
            Ok(listener) => held.push((what, address, listener)),
            // Nobody asked for this address: the daemon goes on without the page.
            Err(error) if what == STATUS && config.admin.status_address.is_none() => found.warning(
                format!("the status page: {address}: {error}"),
                "set [admin] status_address, or status_page = false; without, the daemon runs with no page",
            ),
            Err(error) => found.error(format!("{what} {address}: {error}"), remedy(address, error.kind())),
        }
    }
    for (what, address, _listener) in &held {
        found.ok(format!("{what} {address} is free"));
    }
    if let Some(socket) = &config.admin.socket {
        let shown = socket.display();
        match std::fs::symlink_metadata(socket) {
            Ok(_) if UnixStream::connect(socket).is_ok() => found.error(
                format!("[admin] socket {shown}: another daemon answers there"),
                "stop it, or give this one a socket of its own",
            ),
            Ok(metadata) if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
                found.error(format!("[admin] socket {shown}: something that is no socket stands there"), "remove it");
            }
            Ok(_) | Err(_) => match socket.parent() {
                Some(parent) if parent.is_dir() || parent.as_os_str().is_empty() => {
                    writable(socket, "the directory of [admin] socket", &mut found);
                }
                _ => found.error(format!("[admin] socket {shown}: its directory does not exist"), "make the directory"),
            },
        }
    }
    found.into_vec()
}

fn remedy(address: SocketAddr, kind: std::io::ErrorKind) -> String {
    match kind {
        std::io::ErrorKind::AddrInUse => {
            "stop what listens there (a daemon that runs already?), or choose another port".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("choose a port above 1023, or grant CAP_NET_BIND_SERVICE for {}", address.port())
        }
        _ => "choose an address of this machine".to_owned(),
    }
}

/// The serving certificate's files, where they are configured.
pub(super) fn serving(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("serving");
    match grpc::serving::files(&config.serving) {
        Ok(None) if config.listen.plaintext => found.ok("plaintext; there is no serving certificate"),
        Ok(None) => found.ok("the CA issues the serving certificate itself"),
        Ok(Some(files)) => match files.read().and_then(|content| files.parse(&content)) {
            Ok(_) => found.ok(format!("{} and its key belong together", files.certificate.display())),
            Err(error) => {
                found.failed(&error, "put a PEM certificate chain and its key there, readable for the daemon")
            }
        },
        Err(error) => found.failed(&error, "set both files or neither"),
    }
    found.into_vec()
}

/// Issuers of tokens, denylist, previous CAs.
pub(super) fn callers(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let mut found = Findings::about("auth");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter();
    let authenticator = match Authenticator::new(&config.auth, &config.ca.trust_domains) {
        Ok(authenticator) => authenticator,
        Err(errors) => {
            for error in errors {
                found.failed(&error, "fix it in [auth]");
            }
            return Ok(found.into_vec());
        }
    };
    let reviewed = config.kubernetes.iter().flat_map(|settings| &settings.clusters);
    let reviewed = reviewed.filter(|cluster| cluster.token_review.is_some()).count();
    if config.auth.jwt.is_empty() && reviewed > 0 {
        return Ok(found.into_vec());
    }
    if config.auth.jwt.is_empty() {
        found.warning(
            "no issuer of tokens is configured: a new workload cannot prove who it is",
            "add [[auth.jwt]], unless every caller comes with a client certificate",
        );
        return Ok(found.into_vec());
    }
    authenticator.start();
    let deadline = Instant::now() + ISSUERS;
    while !authenticator.not_ready().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let missing = authenticator.not_ready();
    for issuer in &missing {
        found.warning(
            format!("issuer {issuer}"),
            "make its keys reachable from here; until then its tokens are refused, and `serve` keeps trying",
        );
    }
    if missing.is_empty() {
        found.ok(format!("the keys of {} issuers of tokens are there", config.auth.jwt.len()));
    }
    drop(authenticator);
    drop(_inside);
    runtime.shutdown_background();
    Ok(found.into_vec())
}
