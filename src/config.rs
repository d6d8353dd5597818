//! The configuration: one TOML file, and flags that override it.
//!
//! Unknown keys are rejected, and all mistakes are reported at once. Each module defines its own settings; here they
//! are combined and checked against each other.

mod clusters;
pub mod document;
mod kubernetes;
mod parts;
mod sections;

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{auth, grpc, issue::limits};
use document::{Document, Problem};
use pki::found::{self, Found, Wanted};
use process::{
    error::{Advice, Remedy},
    files::read_input,
    logging,
};
pub use sections::{Admin, Ca, HostLimits, Token};

/// Maximum size of the configuration file in bytes.
const FILE_MAX: usize = 1024 * 1024;

/// The complete configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[ca]`.
    pub ca: Ca,
    /// `[[token]]`: one or more tokens with the CA key.
    pub tokens: Vec<Token>,
    /// `[token_host]`: limits of the hosts that the daemon starts.
    pub token_host: HostLimits,
    /// `[listen]`.
    pub listen: grpc::settings::Settings,
    /// `[serving]`.
    pub serving: grpc::settings::Serving,
    /// `[auth]`.
    pub auth: auth::Settings,
    /// `[log]`.
    pub log: audit_log::Settings,
    /// Whether `[log]` has an origin, instead of the default that follows from the host's name.
    pub has_log_origin: bool,
    /// `[admin]`.
    pub admin: Admin,
    /// `[rate_limits]`.
    pub rate_limits: limits::Settings,
    /// `[revocation]`; without it, nothing is revoked.
    pub revocation: Option<crate::revocation::Settings>,
    /// `[kubernetes]`; without it, no API server is used.
    pub kubernetes: Option<crate::kubernetes::Settings>,
    /// `[logging]`.
    pub logging: logging::Settings,
    /// The command that confirms the clock for this configuration, for messages.
    pub confirm_clock: Arc<str>,
}

/// The configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: the file cannot be read{}", path.display(), Advice(self))]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is invalid.
    #[error("{}: {}", path.display(), list(problems))]
    Problems {
        /// Path of the file.
        path: PathBuf,
        /// All mistakes.
        problems: Vec<Problem>,
    },
    /// The file is something else than text.
    #[error("{}: {}{}", path.display(), found.what, Advice(self))]
    Unlike {
        /// Path of the file.
        path: PathBuf,
        /// What it is.
        found: Found,
    },
    /// The file is too large.
    #[error("{}: larger than 1 MiB, which is too large for a configuration{}", .0.display(), Advice(self))]
    TooLarge(PathBuf),
}

impl Remedy for ConfigError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::File { .. } => Some("name the configuration by --config and make it readable".into()),
            Self::TooLarge(_) => Some("name the configuration by --config".into()),
            Self::Unlike { found, .. } => Some(found.remedy.clone().into()),
            Self::Problems { .. } => None,
        }
    }
}

fn list(problems: &[Problem]) -> String {
    use std::fmt::Write;
    let mut text = format!("{} mistake{}", problems.len(), if problems.len() == 1 { "" } else { "s" });
    for problem in problems {
        let _ = write!(text, "\n  - {problem}");
    }
    text
}

impl Config {
    /// Reads a file and applies the flags, given as TOML.
    ///
    /// # Errors
    /// If the file cannot be read, or all mistakes in it.
    pub fn read(path: &Path, flags: &str) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::File { path: path.to_owned(), source };
        let bytes = read_input(path, FILE_MAX).map_err(failed)?;
        if bytes.len() > FILE_MAX {
            return Err(ConfigError::TooLarge(path.to_owned()));
        }
        if let Some(found) = found::file(&bytes, &path.display().to_string(), Wanted::Text) {
            return Err(ConfigError::Unlike { path: path.to_owned(), found });
        }
        let text =
            String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        Self::parse(&text, flags).map_err(|problems| ConfigError::Problems { path: path.to_owned(), problems })
    }

    /// Parses a text and applies the flags, given as TOML.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse(text: &str, flags: &str) -> Result<Self, Vec<Problem>> {
        let mut document = Document::parse(text);
        document.overlay(flags);
        let ca: Option<Ca> = document.section("ca");
        let any_token = document.has("token");
        let tokens: Vec<Option<Token>> = document.sections("token");
        let token_host: Option<HostLimits> = document.section_or_default("token_host");
        let listen: Option<grpc::settings::Settings> = document.section_or_default("listen");
        let serving: Option<grpc::settings::Serving> = document.section_or_default("serving");
        let auth: Option<auth::Settings> = document.section_or_default("auth");
        let has_log_origin = document.has_key("log", "origin");
        let log: Option<audit_log::Settings> = document.section("log");
        let admin: Option<Admin> = document.section_or_default("admin");
        let rate_limits: Option<limits::Settings> = document.section_or_default("rate_limits");
        let logging: Option<logging::Settings> = document.section_or_default("logging");
        let revocation: Option<crate::revocation::Settings> = document.optional_section("revocation");
        let mut kubernetes: Option<crate::kubernetes::Settings> = document.optional_section("kubernetes");
        if let Some(kubernetes) = &mut kubernetes {
            kubernetes.revocations =
                revocation.as_ref().and_then(|revocation| revocation.config_map().map(str::to_owned));
        }
        if let (Some(settings), Some(ca), Some(auth), Some(hosts)) = (&kubernetes, &ca, &auth, &token_host) {
            kubernetes::check(settings, ca, auth, hosts, &mut document);
        }
        ca.iter().for_each(|ca| ca.check(&mut document));
        for (key, mistake) in revocation.iter().flat_map(|revocation| revocation.mistakes()) {
            document.refuse(&format!("[revocation] {key}"), mistake);
        }
        if revocation.as_ref().is_some_and(|revocation| revocation.config_map().is_some()) && kubernetes.is_none() {
            let problem =
                "is a ConfigMap, and [kubernetes] is missing; add it with a cluster, or keep the state in a file";
            document.refuse("[revocation] store", problem);
        }
        let mut clusters = kubernetes.iter().flat_map(|kubernetes| &kubernetes.clusters);
        if revocation.as_ref().is_some_and(|revocation| revocation.enabled)
            && clusters.any(|cluster| cluster.intermediate.is_some())
        {
            let problem = "cannot be set with [kubernetes.cluster.intermediate]: proxies would reject every certificate below \
                           istiod's CA, of which there is no CRL; leave one of the two out";
            document.refuse("[revocation] enabled", problem);
        }
        for jwt in auth.iter().flat_map(|auth| &auth.jwt) {
            if let Some(mistake) = sections::mistake_in_audiences(&jwt.audiences) {
                document.refuse("[auth] jwt.audiences", format!("{mistake} (issuer {})", jwt.issuer));
            }
        }
        sections::check_tokens(&tokens, any_token, &mut document);
        if let Some(name) = log.as_ref().and_then(|log| log.token.as_deref()) {
            sections::check_log_token(name, &tokens, &mut document);
        }
        if let (Some(serving), Some(listen)) = (&serving, &listen) {
            sections::check_serving(serving, listen.plaintext, &mut document);
        }
        let tokens = tokens.into_iter().flatten().collect();
        let config = || {
            let (ca, token_host, listen, serving) = (ca?, token_host?, listen?, serving?);
            let (auth, log, admin, rate_limits, logging) = (auth?, log?, admin?, rate_limits?, logging?);
            Some(Self {
                ca,
                tokens,
                token_host,
                listen,
                serving,
                auth,
                log,
                has_log_origin,
                admin,
                rate_limits,
                revocation,
                kubernetes,
                logging,
                confirm_clock: Arc::from("istio-hsm-ca log confirm-clock"),
            })
        };
        match (config(), document.finish()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    const GOOD: &str = r#"
[ca]
bundle = "/etc/istio-hsm-ca/bundle"
[[token]]
name = "softhsm"
uri = "pkcs11:token=istio-ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/istio-hsm-ca/pin"
[serving]
dns_names = ["istio-hsm-ca.istio-system.svc"]
[log]
directory = "/var/lib/istio-hsm-ca/log"
"#;

    #[test]
    fn the_shortest_configuration_has_istios_defaults() {
        let config = Config::parse(GOOD, "").unwrap();
        assert_eq!(config.ca.default_ttl, DAY);
        assert_eq!(config.ca.max_ttl, 90 * DAY);
        assert_eq!(config.ca.trust_domains[0].as_str(), "cluster.local");
        assert_eq!(config.tokens[0].sessions.get(), 1);
        assert_eq!(config.listen.address.port(), 15012);
    }

    #[test]
    fn supervised_host_gets_derived_limits_unless_it_has_its_own() {
        let config = Config::parse(
            &GOOD.replace("[log]", "[token_host]\nip_addresses = ['192.0.2.1']\nmax_certificates_per_hour = 9\n[log]"),
            "",
        )
        .unwrap();
        let own = "uri = 'pkcs11:token=a'\npin_marker = '/m'\nsessions = 4\n";
        let host = config.supervised_host(own).unwrap();
        assert_eq!((host.uri.as_str(), host.sessions, host.max_validity), ("pkcs11:token=a", 4, 90 * DAY));
        assert_eq!(host.bundle, config.ca.bundle);
        assert_eq!(host.dns_names, config.serving.dns_names);
        assert_eq!(host.ip_addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(host.log_origins, std::slice::from_ref(&config.log.origin));
        assert_eq!(host.max_certificates_per_hour.map(std::num::NonZeroU32::get), Some(9));
        let host = config.supervised_host(&format!("{own}log_origins = ['a', 'b']")).unwrap();
        assert_eq!(host.log_origins, ["a", "b"]);
        let host = config.supervised_host(&format!("{own}max_validity = '1h'\ndns_names = []")).unwrap();
        assert_eq!((host.max_validity, host.dns_names), (Duration::from_secs(3600), Vec::new()));
        for wrong in ["uri = 'pkcs11:token=a'", &format!("{own}sessionz = 1")] {
            assert!(config.supervised_host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_win() {
        let config = Config::parse(GOOD, "listen.address = \"127.0.0.1:7\"\nca.bundle = \"/other\"").unwrap();
        assert_eq!(config.listen.address.port(), 7);
        assert_eq!(config.ca.bundle, Path::new("/other"));
    }

    /// Changes of the valid configuration, and the expected messages.
    #[test]
    fn mistakes_are_named() {
        let cases: &[(&str, &str, &str)] = &[
            ("[ca]", "[ac]", "[ca]: the section is missing"),
            ("[ca]", "[ca]\nunknown = 1", "line 3: [ca] unknown: unknown field"),
            ("[ca]", "[ca]\ntrust_domains = []", "[ca] trust_domains: names no trust domain"),
            ("[ca]", "[ca]\ntrust_domains = [\"a/b\"]", "[ca] trust_domains: "),
            ("[ca]", "[ca]\ndefault_ttl = \"100d\"", "[ca] default_ttl: is longer than max_ttl"),
            ("[ca]", "[ca]\nmax_ttl = \"long\"", "[ca] max_ttl: "),
            ("[ca]", "[ca]\nqueue = 0", "[ca] queue: "),
            ("pkcs11:token", "pkcs11:slot-id=1;token", "[[token]] 1 uri: "),
            ("?module-path=/usr/lib/softhsm/libsofthsm2.so&", "?", "[[token]] 1 uri: names no module"),
            ("&pin-source=file:/etc/istio-hsm-ca/pin", "&pin-value=1234", "[[token]] 1 uri: "),
            ("name = \"softhsm\"", "name = \"\"", "[[token]] 1 name: "),
            ("name = \"softhsm\"", "name = \"a\"\nsocket = \"/run/s\"", "has both uri and socket"),
            ("name = \"softhsm\"", "name = \"a\"\nsessions = 0", "[[token]] 1 sessions: "),
            ("dns_names = [\"istio-hsm-ca.istio-system.svc\"]", "", "[serving] dns_names: is missing"),
            ("[serving]", "[serving]\nkey_file = \"/k\"", "[serving]: certificate_file and key_file"),
            (
                "[log]",
                "[[auth.jwt]]\nissuer = \"i\"\nkeys = { file = { path = \"x\" } }\nleeway_seconds = 30\n[log]",
                "[auth] jwt.leeway_seconds: was renamed and is a duration; write `leeway = \"30s\"`",
            ),
            (
                "[log]",
                "[[auth.jwt]]\nissuer = \"i\"\nkeys = { file = { path = \"x\" } }\naudiences = []\n[log]",
                "[auth] jwt.audiences: is empty; the default is [\"istio-ca\"] (issuer i)",
            ),
            (
                "[log]",
                "[[auth.jwt]]\nissuer = \"i\"\nkeys = { file = { path = \"x\" } }\naudiences = [\"istio-ca\", \"\"]\n[log]",
                "[auth] jwt.audiences: holds an empty audience, which no JWT has; Istio's agents request \"istio-ca\" (issuer i)",
            ),
            (
                "[log]",
                "[auth.client_certificate]\nmax_age_seconds = 3_600\n[log]",
                "[auth] client_certificate.max_age_seconds: was renamed and is a duration; write `max_age = \"3600s\"`",
            ),
            (
                "[log]",
                "[auth]\nclient_certificate = { max_age = \"0s\" }\n[log]",
                "[auth] client_certificate.max_age: ",
            ),
            (
                "[log]",
                "[revocation]\nstore = { file = '/s' }\nenabled = true\n[token_host]\nallow_intermediate = true\n\
                 [kubernetes]\n[[kubernetes.cluster]]\nintermediate = {}\n[log]",
                "[revocation] enabled: cannot be set with [kubernetes.cluster.intermediate]",
            ),
            ("[log]", "[revocation]\n[log]", "[revocation]: missing field `store`"),
            (
                "[log]",
                "[revocation]\nstore = { file = '/s' }\nlifetime = '1h'\n[log]",
                "[revocation] lifetime: must be",
            ),
            ("[log]", "[revocation]\nstore = { config_map = 'a' }\n[log]", "[revocation] store: is a ConfigMap"),
            ("[log]", "[listen.serving]\n[log]", "[listen] serving: unknown field"),
            ("[log]", "[logs]", "[logs]: no such section"),
            ("[log]", "[log]\nsegment_bytes = 0", "[log] segment_bytes: "),
            ("[log]", "[log]\ntoken = \"hsm\"", "[log] token: no [[token]] has this name"),
            ("[log]", "[log]\ntoken = \"softhsm\"", "[log] token: is the only token"),
            ("[log]", "[log.ship]\n[log]", "[log] ship: missing field `program`"),
            ("[log]", "[rate_limits]\ntotal = -1\n[log]", "[rate_limits] total: "),
            ("[[token]]", "[[tokens]]", "[[token]]: no token is configured"),
            ("pkcs11:token", "pkcs11:tokn=a;token", "has the attribute `tokn`"),
        ];
        for (from, to, expected) in cases {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            let problems = Config::parse(&text, "").unwrap_err();
            assert!(problems.iter().any(|problem| problem.to_string().contains(expected)), "{expected}: {problems:#?}");
            assert!(!format!("{problems:?}").contains("1234"), "a PIN in the wrong place is not repeated");
            let none = problems.iter().any(|problem| problem.reason.contains("no token is configured"));
            assert_eq!(none, to.contains("tokens"), "a token with a mistake is one all the same: {problems:#?}");
        }
    }

    /// All mistakes together: none hides another, and consequences of a mistake are not reported.
    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = r#"
[ca]
bundle = "/b"
trust_domains = ["a/b"]
default_ttl = "100d"
[[token]]
name = 7
uri = "pkcs11:token=a"
[[token]]
name = "b"
uri = "pkcs11:token=a"
[listen.limits]
streams = -1
requests = "many"
[serving]
dns_names = ["a b"]
[log]
directory = "/l"
[[auth.jwt]]
issuer = ""
keys = { file = "x" }
[logging]
filter = "inof"
"#;
        let problems = Config::parse(text, "").unwrap_err();
        let found: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let expected = [
            "[ca] default_ttl: is longer than max_ttl",
            "[[token]] 2 uri: names no module",
            "line 4: [ca] trust_domains: ",
            "line 7: [[token]] 1 name: ",
            "line 13: [listen] limits.streams: ",
            "line 14: [listen] limits.requests: ",
            "line 16: [serving] dns_names: \"a b\"",
            "line 20: [auth] jwt.issuer: ",
            "line 21: [auth] jwt.keys.file: ",
            "line 23: [logging] filter: ",
        ];
        for expected in expected {
            assert!(found.iter().any(|problem| problem.starts_with(expected)), "{expected}: {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }
}
