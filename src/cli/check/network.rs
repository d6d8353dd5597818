//! Addresses, the serving certificate, and authentication.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::finding::{Finding, Findings};
use crate::{
    auth::{self, Authenticator},
    config::Config,
    daemon::preparation::{AddressError, Endpoint, EndpointError, StatusPage},
    grpc::serving,
};
use tokio::net::TcpListener;

/// How long the JWT issuers may take to respond with their keys.
const ISSUERS: Duration = Duration::from_secs(5);

/// The TLS versions of the endpoint: right as they are, but which agents they exclude is good to know.
pub(super) fn tls(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("tls");
    if config.listen.tls.allow_tls12 {
        found.ok("TLS 1.2 and 1.3");
    } else if !config.listen.plaintext {
        found.ok("TLS 1.3 only; agents under COMPLIANCE_POLICY=fips-140-2 have TLS 1.2 only and need [listen.tls] \
             allow_tls12 = true");
    }
    found.into_vec()
}

/// The addresses and the socket, all open at once.
pub(super) fn addresses(
    config: &Config,
    endpoint: &Result<Endpoint, EndpointError>,
    admin: &Result<Option<TcpListener>, AddressError>,
    status_page: &Result<StatusPage, AddressError>,
    operator_socket: &Result<(), AddressError>,
) -> Vec<Finding> {
    const OTHERWISE: &str = "configure another address";
    let mut found = Findings::about("addresses");
    match endpoint {
        Ok(_) if config.listen.address.port() == 0 => found.warning(
            format!("[listen] address {} has no fixed port: each start takes another one", config.listen.address),
            "write the port that agents connect to, such as 15012; the log line \"listening\" has the one in use",
        ),
        Ok(_) => found.ok(format!("[listen] address {} is free", config.listen.address)),
        Err(error) => found.failed(error, OTHERWISE),
    }
    match (admin, config.admin.address) {
        (Ok(_), Some(address)) => found.ok(format!("[admin] address {address} is free")),
        (Ok(_), None) => {}
        (Err(error), _) => found.failed(error, OTHERWISE),
    }
    match status_page {
        Ok(StatusPage::Open(socket)) => {
            let address = socket.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
            found.ok(format!("[admin] status_address {address} is free"));
        }
        Ok(StatusPage::Off) => {}
        // Nobody asked for this address: the daemon runs without the page.
        Ok(StatusPage::Unavailable(error)) => found.warning(
            process::error::Report::from(error).problem,
            "set [admin] status_address, or status_page = false; without, the daemon runs with no page",
        ),
        Err(error) => found.failed(error, OTHERWISE),
    }
    match (operator_socket, &config.admin.socket) {
        (Ok(()), Some(socket)) => found.ok(format!("[admin] socket {} can be opened", socket.display())),
        (Ok(()), None) => {}
        (Err(error), _) => found.failed(error, "configure another path"),
    }
    found.into_vec()
}

/// The serving certificate's files, if configured.
pub(super) fn serving(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("serving");
    match serving::files(&config.serving) {
        Ok(_) if config.listen.plaintext => found.ok("plaintext; there is no serving certificate"),
        Ok(None) => found.ok("the CA issues the serving certificate itself"),
        Ok(Some(files)) => match files.read().and_then(|content| files.parse(&content, process::clock::now())) {
            Ok(_) => found.ok(format!("{} and its key serve every configured name", files.certificate.display())),
            Err(error) => {
                found.failed(&error, "put a PEM certificate chain and its key there, readable for the daemon")
            }
        },
        Err(error) => found.failed(&error, "set both files or neither"),
    }
    found.into_vec()
}

/// Issuers of tokens, denylist, previous CAs.
pub(super) fn callers(
    config: &Config,
    authenticator: Result<Authenticator, Vec<auth::SetupError>>,
    runtime: &Runtime,
) -> Vec<Finding> {
    let mut found = Findings::about("auth");
    let _inside = runtime.enter();
    let authenticator = match authenticator {
        Ok(authenticator) => authenticator,
        Err(errors) => {
            for error in errors {
                found.failed(&error, "fix it in [auth]");
            }
            return found.into_vec();
        }
    };
    let reviewed = config.kubernetes.iter().flat_map(|settings| &settings.clusters);
    let reviewed = reviewed.filter(|cluster| cluster.token_review.is_some()).count();
    if config.auth.jwt.is_empty() && reviewed > 0 {
        return found.into_vec();
    }
    if config.auth.jwt.is_empty() {
        found.warning(
            "no issuer of tokens is configured: a new workload cannot prove who it is",
            "add [[auth.jwt]], unless every caller comes with a client certificate",
        );
        return found.into_vec();
    }
    authenticator.start();
    let deadline = Instant::now() + ISSUERS;
    while !authenticator.not_ready().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let missing = authenticator.not_ready();
    for issuer in &missing {
        let remedy = issuer.failure.remedy.as_deref().unwrap_or("make its keys reachable from here");
        found.warning(
            format!("issuer {issuer}"),
            format!("{remedy}; until then its tokens are refused, and `serve` keeps trying"),
        );
    }
    if missing.is_empty() {
        found.ok(format!("the keys of {} issuers of tokens are there", config.auth.jwt.len()));
    }
    found.into_vec()
}
