//! The host's settings: in TOML if supervised, in JSON from the daemon to its child.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use process::{files::open_input, renamed_keys};
use serde::{Deserialize, Serialize};

use super::{
    HostError,
    policy::{CaCertificate, Policy, ReservedKeys},
};
use crate::protocol::{Kind, Sign};
use pki::{
    Issuer,
    identity::{DnsName, TrustDomain},
};

/// Settings of a host. They contain no secrets: the PIN is referenced by the path of its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The token: `pkcs11:token=...?module-path=...&pin-source=file:...`.
    pub uri: String,
    /// The PIN file, if the URI names none. A token that requires no login needs neither.
    #[serde(default)]
    pub pin_file: Option<PathBuf>,
    /// Operators hand over the PIN after each start of the host, and no file holds it. Only for supervised hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<ActivationSettings>,
    /// The file that records a rejected PIN; one per token, in a directory that is kept over restarts.
    pub pin_marker: PathBuf,
    /// Directory of the public bundle, whose `ca-cert.pem` or `tls.crt` determines the key and the issuer.
    pub bundle: PathBuf,
    /// Further CA certificates whose keys may be used: PEM files.
    #[serde(default)]
    pub ca_certificates: Vec<PathBuf>,
    /// Number of sessions, each with a thread: one suits P-256, one per core RSA, as many as it has cores a remote HSM.
    #[serde(default = "one")]
    pub sessions: u32,
    /// Timeout of one PKCS#11 call; the host exits when it is exceeded.
    #[serde(default = "call_timeout", with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Maximum validity of signed certificates, without the two minutes of clock skew before it.
    #[serde(with = "humantime_serde")]
    pub max_validity: Duration,
    /// The trust domains of the workloads' SPIFFE IDs.
    #[serde(with = "texts")]
    pub trust_domains: Vec<TrustDomain>,
    /// The permitted DNS names in certificates.
    #[serde(default, with = "texts")]
    pub dns_names: Vec<DnsName>,
    /// The permitted IP addresses in certificates.
    #[serde(default)]
    pub ip_addresses: Vec<IpAddr>,
    /// Whether intermediate CAs may be signed.
    #[serde(default)]
    pub allow_intermediate: bool,
    /// Maximum time from now to nextUpdate of signed CRLs; none are signed without it.
    #[serde(default, with = "humantime_serde")]
    pub max_crl_lifetime: Option<Duration>,
    /// Maximum number of certificates per hour, which is also the burst after an hour without any.
    #[serde(default)]
    pub max_certificates_per_hour: Option<NonZeroU32>,
    /// Maximum number of certificates during the lifetime of the host's process.
    #[serde(default)]
    pub max_certificates: Option<NonZeroU64>,
    /// Origins of the logs whose checkpoints may be signed: one for each daemon that may connect.
    #[serde(default = "log_origins")]
    pub log_origins: Vec<String>,
    /// The file that stores the last signed checkpoint of each log over restarts; by default it is known only until the
    /// host ends. Three lines for each log: origin, size, root hash.
    #[serde(default)]
    pub checkpoint_file: Option<PathBuf>,
}

/// `[activation]`: where operators hand over the PIN (`istio-hsm-ca activate`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationSettings {
    /// The Unix socket to listen on; an existing one is replaced.
    pub socket: PathBuf,
    /// User IDs of the operators, in addition to root and the host's own user. Not the daemon's: anyone who can connect can
    /// use up the attempts that the token allows.
    #[serde(default)]
    pub uids: Vec<u32>,
}

/// Default timeout of one PKCS#11 call: network HSMs take seconds to fail over.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of sessions; more than any token allows, and each is a thread.
const SESSIONS_MOST: u32 = 256;

fn one() -> u32 {
    1
}

fn log_origins() -> Vec<String> {
    vec![process::default_log_origin()]
}

fn call_timeout() -> Duration {
    DEFAULT_CALL_TIMEOUT
}

impl Settings {
    /// Settings with defaults where there are any.
    #[must_use]
    pub fn new(uri: String, pin_marker: PathBuf, bundle: PathBuf, max_validity: Duration) -> Self {
        Self {
            uri,
            pin_file: None,
            activation: None,
            pin_marker,
            bundle,
            ca_certificates: Vec::new(),
            sessions: one(),
            call_timeout: call_timeout(),
            max_validity,
            trust_domains: Vec::new(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            allow_intermediate: false,
            max_crl_lifetime: None,
            max_certificates_per_hour: None,
            max_certificates: None,
            log_origins: log_origins(),
            checkpoint_file: None,
        }
    }

    /// Reads a supervised host's configuration, a TOML file.
    ///
    /// # Errors
    /// If it cannot be read, or has an unknown key or an invalid value.
    pub fn read(path: &Path) -> Result<Self, HostError> {
        let wrong = |reason: String| HostError::Settings { path: path.to_owned(), reason };
        let text = open_input(path).and_then(std::io::read_to_string).map_err(|error| wrong(error.to_string()))?;
        toml::from_str(&text).map_err(|error| {
            let at = error.span().filter(|_| error.message().starts_with("unknown field"));
            let key = at.and_then(|span| text.get(span.start..)).unwrap_or_default();
            let old = key.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            wrong(renamed_keys::message(key).map_or_else(|| error.to_string(), |message| format!("{old} {message}")))
        })
    }

    /// Why a host with these settings would not sign a leaf, before it is asked to. `None` if it would.
    #[must_use]
    pub fn refuses_leaf(&self, tbs: &[u8], issuer: &Issuer, now: SystemTime) -> Option<String> {
        let key = issuer.public_key().fingerprint();
        let sign = Sign { kind: Kind::Leaf, key, request_id: "", deadline_ms: 0, message: tbs };
        let ca = CaCertificate::read(issuer.certificate().to_vec());
        let admitted = ca.and_then(|ca| Policy::new(self).admit(&sign, &[ca], &ReservedKeys::default(), now));
        admitted.err().map(|refusal| refusal.to_string())
    }

    /// How many sessions, within bounds.
    pub(super) fn session_count(&self) -> usize {
        usize::try_from(self.sessions.clamp(1, SESSIONS_MOST)).unwrap_or(1)
    }

    /// Number of threads that call the module: one per session, and the main one.
    pub(super) fn threads(&self) -> usize {
        self.session_count() + 1
    }
}

/// (De)serializes names as strings.
mod texts {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, T: Display>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr,
        T::Err: Display,
    {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        uri = "pkcs11:token=a?module-path=/usr/lib/p11.so&pin-source=file:/run/pin"
        pin_marker = "/var/lib/ca/a.pin-refused"
        bundle = "/etc/ca"
        max_validity = "24h"
        max_crl_lifetime = "720h"
        trust_domains = ["cluster.local"]
        dns_names = ["istiod.istio-system.svc"]
        ip_addresses = ["127.0.0.1"]
        log_origins = ["ca.example/log"]
        max_certificates_per_hour = 1000
        checkpoint_file = "/var/lib/ca/signed-checkpoints"
    "#;

    #[test]
    fn toml_and_json_say_the_same() {
        let settings: Settings = toml::from_str(TOML).unwrap();
        assert_eq!((settings.sessions, settings.allow_intermediate), (1, false));
        assert_eq!(settings.max_validity, Duration::from_secs(86_400));
        assert_eq!(settings.call_timeout, Duration::from_secs(10));
        assert_eq!(settings.max_crl_lifetime, Some(Duration::from_secs(720 * 3600)));
        let json = serde_json::to_vec(&settings).unwrap();
        assert_eq!(serde_json::from_slice::<Settings>(&json).unwrap(), settings);
    }

    #[test]
    fn renamed_keys_are_refused_with_the_line_to_write() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (from, to, expected) in [
            ("max_validity = \"24h\"", "max_validity_seconds = 86400", "max_validity = \"86400s\"`"),
            ("bundle", "call_timeout_ms = 5000\n        bundle", "call_timeout = \"5000ms\"`"),
        ] {
            std::fs::write(file.path(), TOML.replace(from, to)).unwrap();
            let error = Settings::read(file.path()).unwrap_err().to_string();
            assert!(error.contains("was renamed") && error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_names_are_refused() {
        for (from, to) in [
            ("bundle =", "bundel ="),
            ("cluster.local", "Cluster Local"),
            ("istiod.istio-system.svc", "-a"),
            ("\"24h\"", "-1"),
            ("\"24h\"", "86400"),
            ("127.0.0.1", "127.0.0"),
            ("hour = 1000", "hour = 0"),
            ("log_origins = [", "origins = ["),
        ] {
            assert!(toml::from_str::<Settings>(&TOML.replace(from, to)).is_err(), "{to}");
        }
    }
}
