//! Builds a TBSCertList (RFC 5280, section 5.1.2) with x509-cert's types, and lints it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use der::{Decode, Encode, asn1::OctetString};
use x509_cert::{
    Version,
    crl::{RevokedCert, TbsCertList},
    ext::{
        Extension,
        pkix::{AuthorityKeyIdentifier, CrlNumber, CrlReason, KeyUsage},
    },
    name::Name,
    serial_number::SerialNumber as DerSerial,
    spki::AlgorithmIdentifierOwned,
};

use super::{Reason, RevokedEntry, SerialNumber, TBS_MAX};
use crate::{
    PublicKey, algorithm,
    key::KeyError,
    lint::{self, Ca, CrlFacts, Finding, OwnedCa},
    structure::CertificateFields,
    tbs::{extension, time},
};
use const_oid::AssociatedOid;

/// Bytes by which the length fields of a full list are longer than those of an empty one.
const LENGTHS: usize = 16;

/// The CA that signs a CRL.
#[derive(Clone, Debug)]
pub struct CrlIssuer {
    ca: OwnedCa,
    public_key: PublicKey,
}

/// Content of a CRL apart from its issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlContent {
    /// The CRL number, greater than that of every earlier list of the CA.
    pub number: u64,
    /// thisUpdate, in whole seconds.
    pub this_update: SystemTime,
    /// nextUpdate, in whole seconds: when the list expires.
    pub next_update: SystemTime,
    /// The revoked certificates, in any order. Of several entries for one serial number the first revocation counts.
    pub entries: Vec<RevokedEntry>,
}

/// A TBSCertList that has passed the lint.
#[derive(Clone, Debug)]
pub struct CrlTbs {
    der: Vec<u8>,
    issuer: CrlIssuer,
    number: u64,
    this_update: SystemTime,
    next_update: SystemTime,
    entries: usize,
}

/// No CRL can be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// The CA certificate cannot be read.
    #[error("the CA certificate cannot be read: {0}")]
    Certificate(&'static str),
    /// Its key is not of a type that this CA uses.
    #[error("the CA certificate's key: {0}")]
    Key(#[from] KeyError),
    /// keyUsage of the CA certificate has no cRLSign.
    #[error(
        "the CA certificate's keyUsage does not include cRLSign, and every verifier rejects a CRL that it signs; renew the \
         CA certificate with keyUsage keyCertSign and cRLSign"
    )]
    KeyUsage,
    /// A value could not be encoded.
    #[error("BUG: {0} cannot be encoded")]
    Encoding(&'static str),
    /// The lint found a violation.
    #[error("the CRL to be signed breaks a rule: {0}")]
    Lint(#[from] Finding),
    /// The list is larger than [`TBS_MAX`].
    #[error(
        "the CRL would have {bytes} bytes with its {entries} entries; about {fit} of them fit into the {max} bytes that \
         can be published",
        max = TBS_MAX
    )]
    TooLarge {
        /// Size of the list.
        bytes: usize,
        /// Number of entries.
        entries: usize,
        /// Number of such entries that fit.
        fit: usize,
    },
}

impl CrlIssuer {
    /// Reads a CA certificate.
    ///
    /// # Errors
    /// If it is malformed, its key is not supported, or its key usage does not permit CRLs.
    pub fn from_certificate(der: &[u8]) -> Result<Self, CrlError> {
        let ca = OwnedCa::from_certificate(der).map_err(|finding| CrlError::Certificate(finding.0))?;
        let fields =
            CertificateFields::parse(der).map_err(|_error| CrlError::Certificate("it is not a DER certificate"))?;
        // RFC 5280, section 4.2.1.3: without the extension every usage is permitted.
        if let Some(usage) = fields.extensions.iter().find(|extension| extension.extn_id == KeyUsage::OID) {
            let usage = KeyUsage::from_der(usage.extn_value.as_bytes())
                .map_err(|_error| CrlError::Certificate("its keyUsage is malformed"))?;
            if !usage.crl_sign() {
                return Err(CrlError::KeyUsage);
            }
        }
        let public_key = PublicKey::from_spki_der(ca.as_ca().spki)?;
        Ok(Self { ca, public_key })
    }

    /// The public key in the CA certificate.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The CA for the lint's rules.
    #[must_use]
    pub fn as_ca(&self) -> Ca<'_> {
        self.ca.as_ca()
    }
}

impl CrlTbs {
    /// Builds and lints the TBSCertList.
    ///
    /// # Errors
    /// If the list is too large, a value cannot be encoded, or the result violates one of our own rules.
    pub fn build(issuer: CrlIssuer, content: CrlContent) -> Result<Self, CrlError> {
        let CrlContent { number, this_update, next_update, entries } = content;
        // Sorted by serial number.
        let mut by_serial: BTreeMap<SerialNumber, RevokedEntry> = BTreeMap::new();
        for entry in entries {
            match by_serial.get(&entry.serial) {
                Some(earlier) if earlier.revoked_at <= entry.revoked_at => {}
                Some(_) | None => {
                    by_serial.insert(entry.serial.clone(), entry);
                }
            }
        }
        let entries = by_serial.len();
        let encode = |entries: &BTreeMap<SerialNumber, RevokedEntry>| -> Result<Vec<u8>, CrlError> {
            let ca = issuer.as_ca();
            let revoked = entries.values().map(|entry| revoked(entry, this_update)).collect::<Result<Vec<_>, _>>()?;
            let list: TbsCertList = TbsCertList {
                version: Version::V2,
                signature: AlgorithmIdentifierOwned::from_der(algorithm::identifier(ca.signature_algorithm))
                    .map_err(unencodable("the signature algorithm"))?,
                issuer: Name::from_der(ca.subject).map_err(unencodable("the issuer"))?,
                this_update: time(this_update).map_err(|_error| CrlError::Encoding("thisUpdate"))?,
                next_update: Some(time(next_update).map_err(|_error| CrlError::Encoding("nextUpdate"))?),
                // An empty SEQUENCE is not permitted (RFC 5280, section 5.1.2.6).
                revoked_certificates: (!revoked.is_empty()).then_some(revoked),
                crl_extensions: Some(extensions(&ca, number).map_err(unencodable("the CRL's extensions"))?),
            };
            list.to_der().map_err(unencodable("the CRL"))
        };
        let der = encode(&by_serial)?;
        if der.len() > TBS_MAX {
            let fixed = encode(&BTreeMap::new())?.len();
            // Proportionally; the lists' own lengths differ by a few bytes.
            let fit = TBS_MAX.saturating_sub(fixed + LENGTHS) * entries / der.len().saturating_sub(fixed).max(1);
            return Err(CrlError::TooLarge { bytes: der.len(), entries, fit });
        }
        let tbs = Self { der, issuer, number, this_update, next_update, entries };
        lint::crl(&CrlFacts::parse(&tbs.der)?, &tbs.issuer.as_ca(), tbs.lifetime())?;
        Ok(tbs)
    }

    /// The DER TBSCertList.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The CA that signs it.
    #[must_use]
    pub fn issuer(&self) -> &CrlIssuer {
        &self.issuer
    }

    /// The CRL number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// thisUpdate.
    #[must_use]
    pub fn this_update(&self) -> SystemTime {
        self.this_update
    }

    /// nextUpdate.
    #[must_use]
    pub fn next_update(&self) -> SystemTime {
        self.next_update
    }

    /// The time from thisUpdate to nextUpdate.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.next_update.duration_since(self.this_update).unwrap_or_default()
    }

    /// Number of entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }
}

fn unencodable<E>(what: &'static str) -> impl Fn(E) -> CrlError {
    move |_error| CrlError::Encoding(what)
}

/// An entry. A revocation by a machine with a fast clock is not dated after the list itself.
fn revoked(entry: &RevokedEntry, this_update: SystemTime) -> Result<RevokedCert, CrlError> {
    let date = time(entry.revoked_at.min(this_update)).map_err(|_error| CrlError::Encoding("a revocation date"))?;
    Ok(RevokedCert {
        serial_number: DerSerial::new(entry.serial.as_bytes()).map_err(unencodable("a serial number"))?,
        revocation_date: date,
        crl_entry_extensions: reason(entry.reason)
            .map(|reason| extension(false, &reason).map(|reason| vec![reason]))
            .transpose()
            .map_err(unencodable("a reason code"))?,
    })
}

/// The reason code; unspecified is stated by its absence (RFC 5280, section 5.3.1).
fn reason(reason: Reason) -> Option<CrlReason> {
    Some(match reason {
        Reason::Unspecified => return None,
        Reason::KeyCompromise => CrlReason::KeyCompromise,
        Reason::CaCompromise => CrlReason::CaCompromise,
        Reason::AffiliationChanged => CrlReason::AffiliationChanged,
        Reason::Superseded => CrlReason::Superseded,
        Reason::CessationOfOperation => CrlReason::CessationOfOperation,
        Reason::CertificateHold => CrlReason::CertificateHold,
        Reason::PrivilegeWithdrawn => CrlReason::PrivilegeWithdrawn,
    })
}

/// Authority key identifier and CRL number, neither critical (RFC 5280, sections 5.2.1 and 5.2.3).
fn extensions(ca: &Ca<'_>, number: u64) -> der::Result<Vec<Extension>> {
    let mut extensions = Vec::new();
    if let Some(id) = ca.subject_key_id {
        let key_identifier = Some(OctetString::new(id)?);
        extensions.push(extension(false, &AuthorityKeyIdentifier { key_identifier, ..Default::default() })?);
    }
    extensions.push(extension(false, &CrlNumber::try_from(number)?)?);
    Ok(extensions)
}
