//! CRLs of any issuer, read from PEM as strictly as the strictest of Istio's clients reads them.
//!
//! Only complete CRLs are accepted: delta CRLs, indirect CRLs and CRLs of one distribution point are refused, because
//! Envoy (BoringSSL) rejects every certificate of their issuers.

use std::time::SystemTime;

use const_oid::{
    AssociatedOid, ObjectIdentifier,
    db::rfc5280::{
        ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_CERTIFICATE_ISSUER, ID_CE_DELTA_CRL_INDICATOR,
        ID_CE_ISSUING_DISTRIBUTION_POINT,
    },
};
use der::{AnyRef, Decode, Encode, Sequence};
use x509_cert::{
    crl::RevokedCert,
    ext::{Extension, Extensions, pkix::CrlNumber},
    time::Time,
};

use super::LABEL;
use crate::{
    bundle::{
        Input, Problem,
        certificate::{Authority, Signature},
    },
    name, pem,
    structure::Signed,
};

/// RFC 5280, section 5.2.3; rustls-webpki refuses longer ones.
const NUMBER_MAX: usize = 20;

/// TBSCertList (RFC 5280, section 5.1). Version 1 has no version, and x509-cert's type refuses it without saying so.
#[derive(Sequence)]
struct TbsCertList<'a> {
    version: Option<u8>,
    algorithm: AnyRef<'a>,
    issuer: AnyRef<'a>,
    this_update: Time,
    next_update: Option<Time>,
    revoked: Option<Vec<RevokedCert>>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Extensions>,
}

/// A complete CRL. Its signature is not verified: see [`super::judge()`].
#[derive(Clone, Debug)]
pub struct Crl {
    file: String,
    line: usize,
    der: Vec<u8>,
    pub(super) tbs: Vec<u8>,
    pub(super) signature: Signature,
    pub(super) issuer: Vec<u8>,
    pub(super) authority: Authority,
    this_update: SystemTime,
    next_update: SystemTime,
    number: Option<Vec<u8>>,
    entries: usize,
}

/// Why a CRL is refused: a predicate of it, and the remedy.
type Refusal = (String, &'static str);

const COPY: &str = "copy the file again";
const COMPLETE: &str = "have the CA issue a complete CRL of version 2: `openssl ca -gencrl` with crl_extensions that have \
                        authorityKeyIdentifier=keyid";

/// Reads all CRLs of a PEM file.
///
/// # Errors
/// Every reason why the file cannot be published: content that is not a CRL, malformed CRLs, CRLs that
/// Istio's clients do not support, or no CRL at all.
pub fn read(input: &Input) -> Result<Vec<Crl>, Vec<Problem>> {
    let problem = |reason: String, remedy: &str| Problem::with_remedy(&input.name, reason, remedy);
    let blocks = pem::blocks(&input.bytes)
        .map_err(|error| vec![problem(error.to_string(), "correct that line, or copy the file again")])?;
    if blocks.is_empty() {
        let remedy = "convert a DER file: openssl crl -inform DER -in FILE; a CRL without entries is not an empty file";
        return Err(vec![problem(format!("has no `{LABEL}` block"), remedy)]);
    }
    let mut problems = Vec::new();
    let mut crls = Vec::new();
    for block in &blocks {
        if block.label != LABEL {
            let reason = format!("line {}: has a block with the label {:?}", block.line, block.label);
            problems.push(problem(reason, "leave nothing but CRLs in this public file"));
            continue;
        }
        match Crl::parse(&input.name, block.line, &block.der) {
            Ok(crl) => crls.push(crl),
            Err((reason, remedy)) => {
                problems.push(problem(format!("line {}: the CRL {reason}", block.line), remedy));
            }
        }
    }
    if problems.is_empty() { Ok(crls) } else { Err(problems) }
}

impl Crl {
    fn parse(file: &str, line: usize, der: &[u8]) -> Result<Self, Refusal> {
        let malformed = |_error: der::Error| ("is malformed".to_owned(), COPY);
        let outer = Signed::from_der(der).map_err(malformed)?;
        let tbs = outer.content.to_der().map_err(malformed)?;
        let content = TbsCertList::from_der(&tbs).map_err(malformed)?;
        if content.algorithm != outer.algorithm {
            return Err(("names two different signature algorithms".to_owned(), COPY));
        }
        match content.version {
            Some(1) => {}
            None => return Err(("is of version 1".to_owned(), COMPLETE)),
            Some(_) => return Err(("is of an unknown version".to_owned(), COMPLETE)),
        }
        let Some(next_update) = content.next_update else {
            return Err(("has no nextUpdate".to_owned(), COMPLETE));
        };
        let issuer = name::parse(content.issuer).map_err(|reason| (format!("has an issuer that {reason}"), COPY))?;
        let bits = outer.signature.as_bytes().ok_or(("is malformed".to_owned(), COPY))?.to_vec();
        let mut read = Self {
            file: file.to_owned(),
            line,
            der: der.to_vec(),
            signature: Signature { algorithm: outer.algorithm.value().to_vec(), bits },
            issuer,
            authority: Authority::default(),
            this_update: content.this_update.to_system_time(),
            next_update: next_update.to_system_time(),
            number: None,
            entries: content.revoked.as_ref().map_or(0, Vec::len),
            tbs: Vec::new(),
        };
        for extension in content.extensions.iter().flatten() {
            read.extension(extension)?;
        }
        let of_entries = content.revoked.iter().flatten().filter_map(|entry| entry.crl_entry_extensions.as_ref());
        of_entries.flatten().try_for_each(entry_extension)?;
        read.tbs = tbs;
        Ok(read)
    }

    fn extension(&mut self, extension: &Extension) -> Result<(), Refusal> {
        let value = extension.extn_value.as_bytes();
        match extension.extn_id {
            ID_CE_AUTHORITY_KEY_IDENTIFIER => {
                self.authority =
                    Authority::parse(value).ok_or(("has a malformed authorityKeyIdentifier".to_owned(), COPY))?;
            }
            CrlNumber::OID => {
                let number =
                    CrlNumber::from_der(value).map_err(|_error| ("has a malformed cRLNumber".to_owned(), COPY))?;
                let number = number.0.as_bytes().to_vec();
                if number.len() > NUMBER_MAX {
                    return Err((format!("has a cRLNumber of more than {NUMBER_MAX} octets"), COMPLETE));
                }
                self.number = Some(number);
            }
            ID_CE_DELTA_CRL_INDICATOR => return Err(("is a delta CRL".to_owned(), COMPLETE)),
            ID_CE_ISSUING_DISTRIBUTION_POINT => {
                let what = "has an issuingDistributionPoint, and so is indirect or covers a part of the certificates only; \
                            Envoy rejects all certificates of its issuer";
                return Err((what.to_owned(), COMPLETE));
            }
            unknown if extension.critical => return Err(unknown_critical(unknown)),
            _ => {}
        }
        Ok(())
    }

    /// The file's name and the line of the CRL in it, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{} line {}", self.file, self.line)
    }

    /// The CRL in PEM, with a final newline.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(LABEL, &self.der)
    }

    /// The issuer for people (RFC 4514).
    #[must_use]
    pub fn issuer_text(&self) -> String {
        name::shown(&self.issuer)
    }

    /// thisUpdate.
    #[must_use]
    pub fn this_update(&self) -> SystemTime {
        self.this_update
    }

    /// nextUpdate: Istio's clients reject all certificates of the issuer from then on.
    #[must_use]
    pub fn next_update(&self) -> SystemTime {
        self.next_update
    }

    /// The cRLNumber, most significant byte first, without leading zeros; `None` without the extension.
    #[must_use]
    pub fn number(&self) -> Option<&[u8]> {
        self.number.as_deref()
    }

    /// The cRLNumber in hexadecimal digits, as OpenSSL prints it; `None` without the extension.
    #[must_use]
    pub fn number_text(&self) -> Option<String> {
        let digits: String = self.number.as_ref()?.iter().map(|byte| format!("{byte:02X}")).collect();
        let shown = digits.trim_start_matches('0');
        Some(if shown.is_empty() { "0".to_owned() } else { shown.to_owned() })
    }

    /// How many certificates it revokes.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }
}

/// An entry is of the CRL's own issuer and has nothing critical.
fn entry_extension(extension: &Extension) -> Result<(), Refusal> {
    match extension.extn_id {
        ID_CE_CERTIFICATE_ISSUER => Err(("is an indirect CRL: an entry names its own issuer".to_owned(), COMPLETE)),
        unknown if extension.critical => Err(unknown_critical(unknown)),
        _ => Ok(()),
    }
}

fn unknown_critical(oid: ObjectIdentifier) -> Refusal {
    (format!("has the unknown critical extension {oid}; Envoy rejects all certificates of its issuer"), COMPLETE)
}
