//! Sections of the configuration that belong to no other module, and their checks.
//!
//! Values and their comparison only; no file is opened here.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use super::document::Document;
use crate::{grpc::settings::Serving, token_pool};
use pki::identity::{DnsName, SpiffeId, TrustDomain};
use token::TokenUri;
use token_host::SOCKET_PATH_MAX;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// `[ca]`: the plug-in CA and what it issues.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ca {
    /// The directory of ca-cert.pem, root-cert.pem and cert-chain.pem, as `import` wrote it.
    pub bundle: PathBuf,
    /// The trust domains in which this CA issues; the first is the mesh's.
    #[serde(default = "Ca::cluster_local")]
    pub trust_domains: Vec<TrustDomain>,
    /// Default lifetime of a certificate. Istio: DEFAULT_WORKLOAD_CERT_TTL, 24 h.
    #[serde(default = "Ca::default_ttl", with = "humantime_serde")]
    pub default_ttl: Duration,
    /// Maximum lifetime of a certificate. Istio: MAX_WORKLOAD_CERT_TTL, 90 d.
    #[serde(default = "Ca::max_ttl", with = "humantime_serde")]
    pub max_ttl: Duration,
    /// Accepted values of `CertSigner` in a request; all others are rejected.
    #[serde(default)]
    pub cert_signers: Vec<String>,
    /// Identities whose requests have high priority: istiod's and the gateways'.
    #[serde(default)]
    pub first_class: Vec<SpiffeId>,
    /// Maximum number of requests of each priority that wait for a token; further ones fail with RESOURCE_EXHAUSTED.
    #[serde(default = "Ca::queue")]
    pub queue: NonZeroUsize,
    /// Accept a new bundle even if it drops a root. Workloads that trust only that root then fail.
    #[serde(default)]
    pub allow_root_removal: bool,
}

impl Ca {
    fn cluster_local() -> Vec<TrustDomain> {
        "cluster.local".parse().into_iter().collect()
    }

    fn default_ttl() -> Duration {
        DAY
    }

    fn queue() -> NonZeroUsize {
        NonZeroUsize::new(token_pool::Settings::QUEUE).unwrap_or(NonZeroUsize::MIN)
    }

    fn max_ttl() -> Duration {
        90 * DAY
    }
}

/// `[[token]]`: a token with the CA key, by its URI, or by the socket of a separately started host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The name in logs and metrics.
    pub name: String,
    /// The token, for a host that the daemon starts; its pin-source is the PIN file, unless the token requires no login.
    #[serde(default)]
    pub uri: Option<TokenUri>,
    /// The socket of a separately started host.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// The user ID that the host behind `socket` must have.
    #[serde(default)]
    pub socket_uid: Option<u32>,
    /// Number of concurrent sessions: 1 suits P-256 on SoftHSM, one per core RSA, otherwise as many as the HSM has
    /// cores.
    #[serde(default = "Token::one")]
    pub sessions: NonZeroU32,
    /// Timeout of one PKCS#11 call, after which the host counts as hung and is replaced.
    #[serde(default = "Token::call_timeout", with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Interval of exercising an idle token, so that connections and sessions stay open. A session that was used since
    /// the last time is skipped until the next time: set at most half of what token or firewall allow.
    #[serde(default = "Token::keep_alive", with = "humantime_serde")]
    pub keep_alive: Duration,
    /// Environment variables of the vendor's module, such as SOFTHSM2_CONF. Never secrets: the PIN is not read from
    /// here.
    #[serde(default)]
    pub environment: std::collections::BTreeMap<String, String>,
}

impl Token {
    fn one() -> NonZeroU32 {
        NonZeroU32::MIN
    }

    fn call_timeout() -> Duration {
        token_host::DEFAULT_CALL_TIMEOUT
    }

    fn keep_alive() -> Duration {
        Duration::from_secs(10)
    }
}

/// `[token_host]`: limits of the token hosts, whatever the daemon requests. Defaults follow from `[ca]` and
/// `[serving]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostLimits {
    /// Maximum validity of a leaf.
    #[serde(with = "humantime_serde")]
    pub max_validity: Option<Duration>,
    /// The trust domains of workloads.
    pub trust_domains: Option<Vec<TrustDomain>>,
    /// The permitted DNS names of servers.
    pub dns_names: Option<Vec<DnsName>>,
    /// The permitted IP addresses of servers.
    pub ip_addresses: Option<Vec<IpAddr>>,
    /// Whether intermediates (path length 0) may be signed.
    pub allow_intermediate: bool,
    /// Maximum number of certificates per hour that each host signs, which is also the burst after an hour without any.
    pub max_certificates_per_hour: Option<NonZeroU32>,
    /// Maximum number of certificates that each host signs during the lifetime of its process.
    pub max_certificates: Option<NonZeroU64>,
}

/// `[admin]`: probes, metrics, the operator's socket, the status page.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address of `/livez`, `/readyz` and `/metrics`.
    pub address: Option<SocketAddr>,
    /// Whether to serve the status page.
    pub status_page: bool,
    /// Address of the status page, which shows identities. Default: [`Admin::STATUS`] if that is free.
    pub status_address: Option<SocketAddr>,
    /// Host names that requests may name, in addition to `localhost` and IP addresses.
    pub hosts: Vec<DnsName>,
    /// The Unix socket for `istio-hsm-ca issue`.
    pub socket: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: Some((Ipv4Addr::LOCALHOST, 15014).into()),
            status_page: true,
            status_address: None,
            hosts: Vec::new(),
            socket: None,
        }
    }
}

impl Admin {
    /// Default address of the status page: reachable from this machine only.
    pub const STATUS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15016);
}

impl Ca {
    /// Reports mistakes in the section.
    pub(super) fn check(&self, document: &mut Document<'_>) {
        if self.trust_domains.is_empty() {
            document.refuse("[ca] trust_domains", "names no trust domain; write for example [\"cluster.local\"]");
        }
        if self.default_ttl > self.max_ttl {
            document.refuse("[ca] default_ttl", "is longer than max_ttl");
        }
        if self.default_ttl < Duration::from_secs(60) {
            document.refuse("[ca] default_ttl", "is shorter than a minute; agents would renew without pause");
        }
        if self.cert_signers.iter().any(String::is_empty) {
            document.refuse("[ca] cert_signers", "holds an empty name; an absent signer needs no entry");
        }
    }
}

/// Reports mistakes in `[serving]`.
pub(super) fn check_serving(serving: &Serving, plaintext: bool, document: &mut Document<'_>) {
    if serving.certificate_file.is_some() != serving.key_file.is_some() {
        document.refuse("[serving]", "certificate_file and key_file go together; set both or neither");
    }
    let nameless = serving.dns_names.is_empty() && serving.ip_addresses.is_empty();
    if nameless && serving.certificate_file.is_none() && !plaintext {
        document.refuse(
            "[serving] dns_names",
            "is missing; name what clients call the endpoint, for example [\"istio-hsm-ca.istio-system.svc\"]",
        );
    }
    for address in serving.dns_names.iter().filter(|name| name.as_str().parse::<std::net::IpAddr>().is_ok()) {
        let reason = format!(
            "{:?} is an IP address, which no client looks for among DNS names; write ip_addresses = [{:?}]",
            address.as_str(),
            address.as_str()
        );
        document.refuse("[serving] dns_names", &reason);
    }
    if serving.ttl < HOUR {
        document.refuse("[serving] ttl", "is shorter than an hour; it is renewed at half of it");
    }
}

/// What is wrong with audiences that no JWT has.
pub(super) fn mistake_in_audiences(audiences: &[String]) -> Option<&'static str> {
    if audiences.is_empty() {
        return Some("is empty; the default is [\"istio-ca\"]");
    }
    let reason = "holds an empty audience, which no JWT has; Istio's agents request \"istio-ca\"";
    audiences.iter().any(String::is_empty).then_some(reason)
}

/// Reports a token of the log that is not one, or that leaves none for the CA's key.
pub(super) fn check_log_token(name: &str, tokens: &[Option<Token>], document: &mut Document<'_>) {
    let same = |token: &Option<Token>| token.as_ref().is_none_or(|token| token.name == name);
    if !tokens.iter().any(same) {
        document.refuse("[log] token", "no [[token]] has this name; name one, or leave it out");
    } else if tokens.iter().all(same) {
        document.refuse(
            "[log] token",
            "is the only token, and it would sign checkpoints only; add a [[token]] for the CA's key, or leave it out",
        );
    }
}

/// Tells what is wrong within the sections of tokens.
///
/// `configured` is whether there are any, valid or not.
pub(super) fn check_tokens(tokens: &[Option<Token>], configured: bool, document: &mut Document<'_>) {
    if !configured {
        document.refuse("[[token]]", "no token is configured; add one with name and uri");
    }
    for (index, token) in tokens.iter().enumerate() {
        let Some(token) = token else { continue };
        let place = format!("[[token]] {}", index + 1);
        if token.name.is_empty() || token.name.len() > 64 || token.name.chars().any(char::is_control) {
            document.refuse(&format!("{place} name"), "must have 1 to 64 characters, none of them a control character");
        }
        if tokens.iter().take(index).flatten().any(|other| other.name == token.name) {
            document.refuse(&format!("{place} name"), "is that of another token; give each its own");
        }
        match (&token.uri, &token.socket) {
            (Some(uri), None) => {
                if uri.module_path().is_none() {
                    document.refuse(&format!("{place} uri"), "names no module; add ?module-path=/path/to/module.so");
                }
            }
            (None, Some(_)) => {}
            (Some(_), Some(_)) => document.refuse(&place, "has both uri and socket; a host is ours or somebody else's"),
            (None, None) => document.refuse(&place, "has neither uri nor socket; name the token"),
        }
        let length = token.socket.as_ref().map_or(0, |socket| socket.as_os_str().len());
        if length > SOCKET_PATH_MAX {
            document.refuse(
                &format!("{place} socket"),
                format!(
                    "has {length} bytes, and a socket's path has at most {SOCKET_PATH_MAX}; configure a shorter path"
                ),
            );
        }
        if token.call_timeout < Duration::from_millis(100) {
            document
                .refuse(&format!("{place} call_timeout"), "is shorter than 100 ms; a token under load would be killed");
        }
    }
}
