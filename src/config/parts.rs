//! Derives the settings of the daemon's parts from the configuration.

use std::{path::PathBuf, sync::Arc};

use super::{Config, Token, clusters};
use crate::token_pool;
use pki::identity::Name;

/// Keys of a host's settings that are derived from the daemon's configuration unless the host's own file has them.
const DERIVED: [&str; 11] = [
    "allow_intermediate",
    "bundle",
    "ca_certificates",
    "dns_names",
    "ip_addresses",
    "log_origins",
    "max_certificates",
    "max_certificates_per_hour",
    "max_crl_lifetime",
    "max_validity",
    "trust_domains",
];

impl Config {
    /// Settings of the token pool.
    #[must_use]
    pub fn pool_settings(&self) -> token_pool::Settings {
        let tokens = self.tokens.iter().map(|token| self.token_settings(token)).collect();
        let mut settings = token_pool::Settings::new(tokens);
        settings.queue = self.ca.queue.get();
        settings.logging = self.logging.clone();
        settings
    }

    fn token_settings(&self, token: &Token) -> token_pool::TokenSettings {
        let endpoint = match (&token.uri, &token.socket) {
            (Some(uri), _) => token_pool::HostEndpoint::Child {
                settings: Box::new(self.host_settings(token, uri.to_string())),
                program: None,
                environment: token.environment.clone(),
            },
            (None, socket) => {
                token_pool::HostEndpoint::Socket { path: socket.clone().unwrap_or_default(), uid: token.socket_uid }
            }
        };
        token_pool::TokenSettings {
            name: Arc::from(token.name.as_str()),
            endpoint,
            call_timeout: token.call_timeout,
            keep_alive: token.keep_alive,
            log_only: self.log.token.as_deref() == Some(&*token.name),
        }
    }

    /// Settings of a separately supervised host: its own configuration file, completed with the limits that follow from
    /// this configuration.
    ///
    /// # Errors
    /// If the host's file is not TOML, or has an unknown key or an invalid value.
    pub fn supervised_host(&self, own: &str) -> Result<token_host::Settings, toml::de::Error> {
        let mut settings = self.host_limits(String::new(), PathBuf::new());
        settings.ca_certificates.clone_from(&self.auth.client_certificate.previous_ca_certificates);
        let mut table: toml::Table = toml::from_str(own)?;
        let derived = toml::Table::try_from(settings).map_err(serde::de::Error::custom)?;
        for (key, value) in derived.into_iter().filter(|(key, _)| DERIVED.contains(&key.as_str())) {
            table.entry(key).or_insert(value);
        }
        table.try_into()
    }

    /// Settings of a host that the daemon starts.
    fn host_settings(&self, token: &Token, uri: String) -> token_host::Settings {
        let mut settings = self.host_limits(uri, self.pin_marker(token));
        settings.ca_certificates = vec![self.ca_in_use()];
        settings.checkpoint_file = Some(self.token_file("signed-checkpoints", token));
        settings.sessions = token.sessions.get();
        settings.call_timeout = token.call_timeout;
        settings
    }

    /// Limits of all hosts: `[token_host]`, with defaults from the other sections.
    fn host_limits(&self, uri: String, pin_marker: PathBuf) -> token_host::Settings {
        let limits = &self.token_host;
        let longest =
            limits.max_validity.unwrap_or_else(|| self.ca.max_ttl.max(self.serving.ttl).max(self.cluster_ttl()));
        let mut settings = token_host::Settings::new(uri, pin_marker, self.ca.bundle.clone(), longest);
        settings.trust_domains = limits.trust_domains.clone().unwrap_or_else(|| self.ca.trust_domains.clone());
        let serving = self.serving.dns_names.iter().cloned().map(Name::Dns);
        let serving = serving.chain(self.serving.ip_addresses.iter().copied().map(Name::Ip));
        let (dns_names, ip_addresses) = clusters::split(serving.chain(self.cluster_names()).collect());
        settings.dns_names = limits.dns_names.clone().unwrap_or(dns_names);
        settings.ip_addresses = limits.ip_addresses.clone().unwrap_or(ip_addresses);
        settings.allow_intermediate = limits.allow_intermediate;
        settings.max_crl_lifetime = self.revocation.as_ref().map(|revocation| revocation.lifetime);
        settings.max_certificates = limits.max_certificates;
        settings.max_certificates_per_hour = limits.max_certificates_per_hour;
        settings.log_origins = vec![self.log.origin.clone()];
        settings
    }

    /// Where the CA certificate in use is stored for the hosts that the daemon starts: next to the log.
    #[must_use]
    pub fn ca_in_use(&self) -> PathBuf {
        self.log.directory.join("ca-in-use.pem")
    }

    /// Where the roots in use are stored for the next start.
    #[must_use]
    pub fn roots_in_use(&self) -> PathBuf {
        self.log.directory.join("roots-in-use.pem")
    }

    /// The file that records a token's rejected PIN: next to the log, which is kept over restarts.
    #[must_use]
    pub fn pin_marker(&self, token: &Token) -> PathBuf {
        self.token_file("pin-refused", token)
    }

    /// A file of one token, in the log's directory.
    fn token_file(&self, what: &str, token: &Token) -> PathBuf {
        let name: String =
            token.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.log.directory.join(format!("{what}.{name}"))
    }
}
