//! Authentication by a client certificate that this CA issued.
//!
//! The handshake only verifies possession of the key ([`accept_any`]); everything about the certificate is checked here
//! at every request: issuer, validity, age, denylist. Only the result of the signature check is cached. An invalid
//! certificate does not reject the caller: its JWT is checked next.

pub mod accept_any;
pub mod denylist;
pub mod leaf;
pub mod previous;
pub mod refusal;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;

use self::{
    denylist::Denylist,
    leaf::Leaf,
    previous::PreviousCa,
    refusal::{CertificateRefusal, Context},
};
use crate::revocation::Revocations;

use super::{
    SetupError,
    authenticator::{read_file, recognized},
    credential_cache::{CredentialCache, sha256},
    positive_duration,
};
use pki::{
    Issuer, PublicKey,
    found::Wanted,
    identity::{Name, SpiffeId, TrustDomain},
};

/// Maximum number of cached signature checks, some hundred bytes each.
const REMEMBERED: usize = 16_384;

/// `[auth.client_certificate]`.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Client certificates are ignored; every request needs a JWT.
    pub disabled: bool,
    /// PEM files with certificates of previous CAs, whose leaves can still be renewed.
    pub previous_ca_certificates: Vec<PathBuf>,
    /// Accepted trust domains of certificates, in addition to our own.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The file that names identities and keys that get no certificate ([`Denylist`]).
    pub denylist: Option<PathBuf>,
    /// What the denylist refuses.
    pub denylist_scope: DenylistScope,
    /// The greatest age of a certificate, counted from its notBefore; an older one needs a JWT again.
    #[serde(deserialize_with = "positive_duration")]
    pub max_age: Option<Duration>,
}

/// Which requests the denylist refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenylistScope {
    /// Those with a denied client certificate alone: the caller may authenticate by a JWT and get a new one.
    ClientCertificates,
    /// Every request of a denied identity, for one, or with a denied key, whatever proves the caller.
    #[default]
    EveryMethod,
}

impl Settings {
    /// The files that are read at start and when they change.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.previous_ca_certificates.iter().chain(&self.denylist).cloned().collect()
    }
}

/// A client certificate is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is a CA certificate, not a leaf.
    #[error("the certificate is a CA certificate")]
    Ca,
    /// Its identity or key is on the denylist.
    #[error("the certificate's identity or key is on the denylist")]
    Denied,
    /// Client certificates are disabled in the configuration.
    #[error("client certificate authentication is disabled")]
    Disabled,
    /// The handshake's chain is empty.
    #[error("the client sent no certificate")]
    Empty,
    /// Its notAfter, or its issuer's, has passed.
    #[error("the certificate, or its issuer's, has expired")]
    Expired,
    /// Its extendedKeyUsage lacks clientAuth, or its keyUsage lacks digitalSignature.
    #[error("the certificate does not allow client authentication")]
    KeyUsage,
    /// It is not a certificate, or has an unknown critical extension.
    #[error("the certificate is malformed")]
    Malformed,
    /// Its subject alternative names are not a single URI with a workload's SPIFFE ID.
    #[error("the certificate does not have exactly one workload SPIFFE ID as its name")]
    Names,
    /// Its notBefore is in the future.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// The operator has revoked it.
    #[error("the certificate is revoked")]
    Revoked,
    /// The issuer's name matches, but the signature does not verify.
    #[error("the certificate's signature does not verify with its issuer's key")]
    Signature,
    /// It is older than the configured maximum age.
    #[error("the certificate is older than the configured age; authenticate with a JWT")]
    TooOld,
    /// Its SPIFFE ID is in a foreign trust domain.
    #[error("the certificate's trust domain is not one of this CA's")]
    TrustDomain,
    /// It was issued neither by this CA nor by a configured previous one.
    #[error("the certificate was not issued by this CA")]
    UnknownIssuer,
    /// It is not X.509 version 3.
    #[error("the certificate is not of version 3")]
    Version,
}

impl CertificateError {
    /// The label in metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ca => "certificate_ca",
            Self::Denied => "certificate_denied",
            Self::Disabled => "certificate_disabled",
            Self::Empty => "certificate_none",
            Self::Expired => "certificate_expired",
            Self::KeyUsage => "certificate_key_usage",
            Self::Malformed => "certificate_malformed",
            Self::Names => "certificate_names",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::Revoked => "certificate_revoked",
            Self::Signature => "certificate_signature",
            Self::TooOld => "certificate_too_old",
            Self::TrustDomain => "certificate_trust_domain",
            Self::UnknownIssuer => "certificate_unknown_issuer",
            Self::Version => "certificate_version",
        }
    }
}

/// Verifies client certificates.
#[derive(Debug)]
pub struct ClientCertificates {
    settings: Settings,
    trust_domains: Vec<TrustDomain>,
    files: ArcSwap<Files>,
    revocations: Revocations,
    proven: CredentialCache<Proven>,
}

/// Content of files that a reload replaces as a whole.
#[derive(Debug)]
struct Files {
    previous: Vec<PreviousCa>,
    denylist: Denylist,
}

/// A leaf whose signature verified with this key.
#[derive(Debug)]
struct Proven {
    key: PublicKey,
    leaf: Leaf,
}

/// A CA whose leaves are accepted.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'a> {
    /// DER Name of its subject, byte for byte.
    pub subject: &'a [u8],
    /// Its public key.
    pub key: &'a PublicKey,
    /// Its notAfter, which also limits its leaves.
    pub not_after: SystemTime,
}

impl<'a> From<&'a Issuer> for Accepted<'a> {
    fn from(issuer: &'a Issuer) -> Self {
        Self { subject: issuer.subject(), key: issuer.public_key(), not_after: issuer.not_after() }
    }
}

impl ClientCertificates {
    /// Reads the files in the settings.
    ///
    /// # Errors
    /// All files that cannot be read or are malformed.
    pub fn load(settings: Settings, own: &[TrustDomain]) -> Result<Self, Vec<SetupError>> {
        let files = Files::read(&settings)?;
        let trust_domains = own.iter().chain(&settings.trust_domain_aliases).cloned().collect();
        Ok(Self {
            settings,
            trust_domains,
            files: ArcSwap::from_pointee(files),
            revocations: Revocations::default(),
            proven: CredentialCache::new(REMEMBERED),
        })
    }

    /// The same, refusing revoked certificates.
    #[must_use]
    pub fn with_revocations(self, revocations: Revocations) -> Self {
        Self { revocations, ..self }
    }

    /// Reads the files again; replaces all or none.
    ///
    /// # Errors
    /// All files that cannot be read or are malformed; the previous content stays in use.
    pub fn reload(&self) -> Result<(), Vec<SetupError>> {
        self.files.store(Arc::new(Files::read(&self.settings)?));
        Ok(())
    }

    /// Returns the workload that a chain authenticates at a time; `current` is the issuing CA.
    ///
    /// # Errors
    /// If the certificate is not accepted.
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        current: Accepted<'_>,
        now: SystemTime,
    ) -> Result<SpiffeId, CertificateRefusal> {
        let files = self.files.load();
        let accepted: Vec<Accepted<'_>> =
            std::iter::once(current).chain(files.previous.iter().map(PreviousCa::accepted)).collect();
        self.identity(chain, &accepted, &files.denylist, now).map_err(|error| {
            let (trust_domains, settings) = (self.trust_domains.as_slice(), &self.settings);
            CertificateRefusal::new(
                error,
                chain.first(),
                &Context { accepted: &accepted, trust_domains, settings, now },
            )
        })
    }

    fn identity(
        &self,
        chain: &[CertificateDer<'_>],
        accepted: &[Accepted<'_>],
        denylist: &Denylist,
        now: SystemTime,
    ) -> Result<SpiffeId, CertificateError> {
        if self.settings.disabled {
            return Err(CertificateError::Disabled);
        }
        let der = chain.first().ok_or(CertificateError::Empty)?;
        let (proven, issuer_ends) = self.prove(der, accepted)?;
        let serial = proven.leaf.serial.as_ref();
        if serial.is_some_and(|serial| self.revocations.is_revoked(proven.key.fingerprint(), serial)) {
            return Err(CertificateError::Revoked);
        }
        self.judge(&proven.leaf, issuer_ends, denylist, now)?;
        Ok(proven.leaf.identity.clone())
    }

    /// The entry of the denylist that forbids a certificate, as text: the caller's identity, a name or the key of the
    /// certificate. Never one where the denylist is for client certificates alone.
    pub(super) fn denied(&self, caller: Option<&SpiffeId>, names: &[Name], key: &PublicKey) -> Option<String> {
        match self.settings.denylist_scope {
            DenylistScope::ClientCertificates => None,
            DenylistScope::EveryMethod => self.files.load().denylist.entry(caller, names, key),
        }
    }

    /// The leaf, its signature verified with the key of an accepted CA, and when that CA ends.
    fn prove(&self, der: &[u8], accepted: &[Accepted<'_>]) -> Result<(Arc<Proven>, SystemTime), CertificateError> {
        let hash = sha256(der);
        if let Some(proven) = self.proven.get(&hash)
            && let Some(ca) = accepted.iter().find(|ca| *ca.key == proven.key && ca.subject == proven.leaf.issuer)
        {
            return Ok((proven, ca.not_after));
        }
        let unsigned = leaf::Unproven::parse(der)?;
        let mut named = accepted.iter().filter(|ca| ca.subject == unsigned.issuer()).peekable();
        if named.peek().is_none() {
            return Err(CertificateError::UnknownIssuer);
        }
        let ca = named.find(|ca| unsigned.signed_by(ca.key)).ok_or(CertificateError::Signature)?;
        let proven = Arc::new(Proven { key: ca.key.clone(), leaf: unsigned.lint()? });
        self.proven.insert(hash, Arc::clone(&proven));
        Ok((proven, ca.not_after))
    }

    /// Checks that may change between two requests of one connection.
    fn judge(
        &self,
        leaf: &Leaf,
        issuer_ends: SystemTime,
        denylist: &Denylist,
        now: SystemTime,
    ) -> Result<(), CertificateError> {
        if now < leaf.not_before {
            return Err(CertificateError::NotYetValid);
        }
        if now > leaf.not_after || now > issuer_ends {
            return Err(CertificateError::Expired);
        }
        if !self.trust_domains.contains(leaf.identity.trust_domain()) {
            return Err(CertificateError::TrustDomain);
        }
        if denylist.names(&leaf.identity, &leaf.key) {
            return Err(CertificateError::Denied);
        }
        let age = now.duration_since(leaf.not_before).unwrap_or_default();
        match self.settings.max_age {
            Some(most) if age > most => Err(CertificateError::TooOld),
            Some(_) | None => Ok(()),
        }
    }
}

impl Files {
    fn read(settings: &Settings) -> Result<Self, Vec<SetupError>> {
        let mut errors = Vec::new();
        let mut files = Self { previous: Vec::new(), denylist: Denylist::default() };
        for path in &settings.previous_ca_certificates {
            match read_file(path).and_then(|bytes| {
                PreviousCa::parse_all(&bytes).map_err(|source| {
                    recognized(path, &bytes, Wanted::Certificates)
                        .unwrap_or_else(|| SetupError::PreviousCa { file: path.clone(), source })
                })
            }) {
                Ok(cas) => files.previous.extend(cas),
                Err(error) => errors.push(error),
            }
        }
        if let Some(path) = &settings.denylist {
            let read = read_file(path).and_then(|bytes| match recognized(path, &bytes, Wanted::Text) {
                Some(error) => Err(error),
                None => Ok(Denylist::parse(&String::from_utf8_lossy(&bytes))),
            });
            match read {
                Ok(Ok(denylist)) => files.denylist = denylist,
                Ok(Err(lines)) => {
                    errors.extend(lines.into_iter().map(|source| SetupError::Denylist { file: path.clone(), source }))
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(files) } else { Err(errors) }
    }
}
