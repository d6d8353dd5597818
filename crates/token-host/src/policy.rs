//! The host's limits: checks each message against the host's configuration and against what it has signed before.
//! SECURITY.md has the rules as a table, and `tests/token_host/forged.rs` a forged message for each of them.
//!
//! The daemon has checked it already; this protects against a compromised daemon.

mod checkpoint;
mod crl;
mod limit;
mod serials;
mod signed;

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{CANARY_PREFIX, Settings};
use crate::protocol::{Fingerprint, Kind, Sign};
use checkpoint::KeptHead;
use crl::SignedCrls;
use limit::Limit;
use pki::{
    PublicKey,
    identity::{DnsName, Name, TrustDomain},
    key::KeyError,
    lint::{self, Ca, CrlFacts, Facts, Finding, OwnedCa},
    profile::CLOCK_SKEW,
};
use process::error::{Advice, Remedy};
use signed::{KeptHeads, SignedCertificates};

/// Maximum length of a canary message: its prefix and some random bytes.
const CANARY_MOST: usize = 64;

/// A CA certificate in the host's own configuration.
#[derive(Clone, Debug)]
pub(super) struct CaCertificate {
    pub(super) der: Vec<u8>,
    pub(super) key: PublicKey,
    pub(super) fingerprint: Fingerprint,
    /// Its data for the rules.
    ca: OwnedCa,
}

impl CaCertificate {
    pub(super) fn read(der: Vec<u8>) -> Result<Self, Refusal> {
        let ca = OwnedCa::from_certificate(&der)?;
        let key = PublicKey::from_spki_der(ca.as_ca().spki)?;
        let fingerprint = key.fingerprint();
        Ok(Self { der, key, fingerprint, ca })
    }
}

/// Keys that are never the subject's in a certificate, besides those of the host's [`CaCertificate`]s: as subjectPublicKey
/// bits, since the same key may have several algorithm identifiers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReservedKeys<'a> {
    /// Of the roots and intermediates in the bundle.
    pub(super) cas: &'a [Vec<u8>],
    /// The host's log key and canary key.
    pub(super) own: [Option<&'a PublicKey>; 2],
}

impl ReservedKeys<'_> {
    fn check(&self, key: &[u8]) -> Result<(), Refusal> {
        if self.cas.iter().any(|ca| ca == key) {
            return Err(Refusal::CaKey);
        }
        if self.own.iter().flatten().any(|own| own.subject_public_key() == key) {
            return Err(Refusal::OwnKey);
        }
        Ok(())
    }
}

/// The rules, and what was signed as far as they need it.
#[derive(Debug)]
pub(super) struct Policy {
    rules: Rules,
    certificates: Mutex<SignedCertificates>,
    heads: Mutex<KeptHeads>,
    crls: Mutex<SignedCrls>,
}

impl Policy {
    pub(super) fn new(settings: &Settings) -> Self {
        let limit = Limit::new(settings.max_certificates_per_hour, settings.max_certificates);
        Self {
            rules: Rules {
                max_validity: settings.max_validity,
                trust_domains: settings.trust_domains.clone(),
                dns_names: settings.dns_names.clone(),
                ip_addresses: settings.ip_addresses.clone(),
                allow_intermediate: settings.allow_intermediate,
                max_crl_lifetime: settings.max_crl_lifetime,
                log_origins: settings.log_origins.clone(),
            },
            certificates: Mutex::new(SignedCertificates::new(limit)),
            heads: Mutex::new(KeptHeads::new(settings.checkpoint_file.clone())),
            crls: Mutex::default(),
        }
    }

    /// Checks a message that is about to be signed. `cas` are all CA certificates of the host. A permitted message
    /// counts as signed, and is permitted again.
    pub(super) fn admit(
        &self,
        sign: &Sign<'_>,
        cas: &[CaCertificate],
        reserved: &ReservedKeys<'_>,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        match sign.kind {
            Kind::Canary => canary(sign.message),
            Kind::Checkpoint => {
                let checkpoint = self.rules.checkpoint(sign.message)?;
                self.heads.lock().unwrap_or_else(PoisonError::into_inner).admit(&checkpoint)
            }
            Kind::Crl => {
                let facts = CrlFacts::parse(sign.message)?;
                self.rules.crl(sign, &facts, cas, now)?;
                self.crls.lock().unwrap_or_else(PoisonError::into_inner).admit(sign.key, facts.number, sign.message)
            }
            Kind::Intermediate | Kind::Leaf => {
                let facts = Facts::parse(sign.message)?;
                self.rules.certificate(sign, &facts, cas, reserved, now)?;
                let mut signed = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
                signed.admit(facts.serial, sign.message, Instant::now())
            }
        }
    }
}

/// The limits that the host is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules {
    max_validity: Duration,
    trust_domains: Vec<TrustDomain>,
    dns_names: Vec<DnsName>,
    ip_addresses: Vec<IpAddr>,
    allow_intermediate: bool,
    max_crl_lifetime: Option<Duration>,
    log_origins: Vec<String>,
}

/// Why the host refuses to sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the message is not a canary's")]
    Canary,
    #[error("the message is not a checkpoint: origin, size and root hash, a line each")]
    Checkpoint,
    #[error("the checkpoint is of the log {found:?}{}", Advice(self))]
    Origin { found: String, listed: String },
    #[error("the first checkpoint of {origin} has {size} lines; {most} are signed at most")]
    First { origin: String, size: u64, most: u64 },
    #[error(
        "the checkpoint of {} has {size} lines, more than {most} above the last signed one of {signed} lines{}",
        kept.origin, Advice(self)
    )]
    Growth { kept: KeptHead, size: u64, signed: u64, most: u64 },
    #[error("the checkpoint of {} has {size} lines, after one of {signed} lines was signed{}", kept.origin, Advice(self))]
    Smaller { kept: KeptHead, size: u64, signed: u64 },
    #[error(
        "the checkpoint of {} has another root than the one of {size} lines that was signed{}",
        kept.origin, Advice(self)
    )]
    OtherRoot { kept: KeptHead, size: u64 },
    #[error("the last signed checkpoint cannot be kept: {0}")]
    State(String),
    #[error("the host's bundle has no CA certificate with this key")]
    Issuer,
    #[error("the subject has the key of a CA")]
    CaKey,
    #[error("the host's configuration does not allow CRLs{}", Advice(self))]
    Crl,
    #[error("the CRL's number is {number}, and a CRL with the number {signed} was signed")]
    CrlNumber { number: u64, signed: u64 },
    #[error("another CRL with the number {0} was signed")]
    CrlNumberTwice(u64),
    #[error("the CRL has {bytes} bytes; {most} are signed at most")]
    CrlSize { bytes: usize, most: usize },
    #[error("thisUpdate of the CRL is in the future")]
    CrlNotYet,
    #[error("thisUpdate of the CRL is long before now, or nextUpdate has passed")]
    CrlPast,
    #[error("nextUpdate of the CRL is later than the host allows, counted from now{}", Advice(self))]
    CrlTooLate,
    #[error("the host's configuration does not allow intermediates")]
    Intermediate,
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("the limit of {most} certificates {span} is reached{}", Advice(self))]
    Limit { most: u64, span: &'static str },
    #[error("{0}")]
    Lint(#[from] Finding),
    #[error("the host's configuration does not list the name {0}")]
    Name(Name),
    #[error("the token has no {0}")]
    NoKey(&'static str),
    #[error("the subject has the host's log key or canary key")]
    OwnKey,
    #[error("the validity begins in the future")]
    NotYet,
    #[error("the validity is in the past, or begins long before now")]
    Past,
    #[error("the serial number is that of another certificate that was signed")]
    Serial,
    #[error("the validity ends later than the host allows, counted from now")]
    TooLate,
}

impl Remedy for Refusal {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Origin { found, listed } => Some(
                format!(
                    "the host's log_origins are {listed}: if the daemon's log was moved to this origin on purpose, list \
                     {found:?} there and restart the host"
                )
                .into(),
            ),
            Self::Growth { kept, .. } => Some(
                format!(
                    "no log grows so fast: find out whether the daemon is compromised; if its log passes `istio-hsm-ca \
                     log verify` and has so many lines, {} (docs/ISSUANCE-LOG.md, False checkpoints)",
                    kept.remedy()
                )
                .into(),
            ),
            Self::Smaller { kept, .. } | Self::OtherRoot { kept, .. } => Some(
                format!(
                    "a log only grows: restore it if it was cut or rolled back; if it was started again on purpose, give \
                     it another [log] origin, and list that in the log_origins of a host with a configuration of its own; \
                     if it never had the signed checkpoint, a compromised daemon obtained it: investigate, then {} \
                     (docs/ISSUANCE-LOG.md, False checkpoints)",
                    kept.remedy()
                )
                .into(),
            ),
            Self::Crl => Some(
                "set [revocation] in the daemon's configuration, or max_crl_lifetime in that of a separate host, and \
                 restart the host"
                    .into(),
            ),
            Self::CrlTooLate => Some(
                "lower [revocation] lifetime in the daemon's configuration, or raise max_crl_lifetime in that of a \
                 separate host and restart it"
                    .into(),
            ),
            Self::Limit { .. } => Some(
                "if so many certificates are needed, raise max_certificates or max_certificates_per_hour in the host's \
                 configuration; if not, find out who obtained them"
                    .into(),
            ),
            Self::CaKey
            | Self::Canary
            | Self::Checkpoint
            | Self::CrlNotYet
            | Self::CrlNumber { .. }
            | Self::CrlNumberTwice(_)
            | Self::CrlPast
            | Self::CrlSize { .. }
            | Self::First { .. }
            | Self::Intermediate
            | Self::Issuer
            | Self::Key(_)
            | Self::Lint(_)
            | Self::Name(_)
            | Self::NoKey(_)
            | Self::NotYet
            | Self::OwnKey
            | Self::Past
            | Self::Serial
            | Self::State(_)
            | Self::TooLate => None,
        }
    }
}

impl Rules {
    /// Checks a certificate against the rules, for one of the CA certificates with the issuer's key: a renewed one has
    /// the same key as the old one.
    fn certificate(
        &self,
        sign: &Sign<'_>,
        facts: &Facts<'_>,
        cas: &[CaCertificate],
        reserved: &ReservedKeys<'_>,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let mut last = Err(Refusal::Issuer);
        for ca in cas.iter().filter(|ca| ca.fingerprint == sign.key) {
            last = self.lint(sign.kind, facts, &ca.ca.as_ca());
            if last.is_ok() {
                break;
            }
        }
        last?;
        self.validity(facts, now)?;
        self.names(facts)?;
        if cas.iter().any(|ca| ca.key.spki_der() == facts.spki) {
            return Err(Refusal::CaKey);
        }
        reserved.check(facts.subject_public_key()?)?;
        // Last, since it takes the longest time.
        facts.public_key()?;
        Ok(())
    }

    fn lint(&self, kind: Kind, facts: &Facts<'_>, ca: &Ca<'_>) -> Result<(), Refusal> {
        match kind {
            Kind::Leaf => lint::leaf(facts, ca, self.max_validity)?,
            Kind::Intermediate if self.allow_intermediate => lint::intermediate(facts, ca, self.max_validity)?,
            Kind::Intermediate => return Err(Refusal::Intermediate),
            Kind::Canary | Kind::Checkpoint | Kind::Crl => {
                return Err(Finding("it is not a kind of certificate").into());
            }
        }
        Ok(())
    }

    /// A compromised daemon must not obtain certificates for years in advance, or certificates that look older than
    /// they are. The validity begins [`CLOCK_SKEW`] before the request; the request may take as long to arrive here,
    /// and the two clocks may differ by as much.
    fn validity(&self, facts: &Facts<'_>, now: SystemTime) -> Result<(), Refusal> {
        let before = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
        if facts.not_after <= now || before(facts.not_before, now) > CLOCK_SKEW * 2 {
            return Err(Refusal::Past);
        }
        if before(now, facts.not_before) > CLOCK_SKEW {
            return Err(Refusal::NotYet);
        }
        if before(now, facts.not_after) > self.max_validity.saturating_add(CLOCK_SKEW) {
            return Err(Refusal::TooLate);
        }
        Ok(())
    }

    fn names(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        let unlisted = facts.names.iter().find(|name| match name {
            Name::Dns(dns) => !self.dns_names.contains(dns),
            Name::Ip(ip) => !self.ip_addresses.contains(ip),
            Name::Spiffe(id) => !self.trust_domains.contains(id.trust_domain()),
        });
        unlisted.map_or(Ok(()), |name| Err(Refusal::Name(name.clone())))
    }
}

/// A canary message must not be valid as anything else.
fn canary(message: &[u8]) -> Result<(), Refusal> {
    if message.starts_with(CANARY_PREFIX) && message.len() <= CANARY_MOST { Ok(()) } else { Err(Refusal::Canary) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canary_begins_with_its_prefix_and_is_short() {
        assert_eq!(canary(&super::super::canary_message()), Ok(()));
        let long = [CANARY_PREFIX, &[0; 100]].concat();
        for message in [b"".as_slice(), b"istio-hsm-ca canar", b"example.org/log\n1\n", b"\x30\x00", &long] {
            assert_eq!(canary(message), Err(Refusal::Canary), "{message:?}");
        }
    }
}
