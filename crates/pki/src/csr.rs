//! Certificate requests (RFC 2986): parsed within limits, with their key and self-signature checked.
//!
//! Grants nothing: the names read here are only requested, and `policy` decides. The signature is verified over the
//! received bytes, not over a new encoding.

use std::{fmt, net::IpAddr};

use const_oid::{
    ObjectIdentifier,
    db::{rfc5280, rfc5912},
};
use der::{AnyRef, Decode, Encode, ErrorKind, Tag, Tagged};
use x509_cert::{
    attr::Attributes,
    ext::Extension,
    request::{CertReq, ExtensionReq},
};

use super::{
    PublicKey, algorithm,
    found::{self, Der, Found, Wanted},
    key::KeyError,
    pem::{self, PemError},
};

/// Maximum size of a CSR in PEM, in bytes: an RSA-4096 request with a long SAN is below 4 KiB.
pub const CSR_MAX: usize = 16 * 1024;

/// Maximum number of attributes: three are in use (extensions, challenge password, name).
const ATTRIBUTES_MAX: usize = 16;
/// Maximum number of requested extensions: RFC 5280 defines 17 for certificates.
const EXTENSIONS_MAX: usize = 32;
/// Maximum number of requested names: a server's certificate has a handful.
const NAMES_MAX: usize = 64;
/// Maximum length of a requested name in a message.
const SHOWN_MAX: usize = 128;

/// A CSR with proven possession of the private key, and its requested subject alternative names.
///
/// The subject is ignored, as in istiod (security/pkg/server/ca/server.go): a certificate's subject is empty, and names
/// come from the authenticated identity.
#[derive(Clone, Debug)]
pub struct VerifiedCsr {
    public_key: PublicKey,
    /// The requested subject alternative names, unparsed.
    names: Vec<RequestedName>,
}

/// A requested subject alternative name; not yet granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedName {
    /// A dNSName.
    Dns(String),
    /// An iPAddress, 4 or 16 bytes.
    Ip(IpAddr),
    /// A uniformResourceIdentifier.
    Uri(String),
    /// Any other type, which is never granted.
    Other(&'static str),
}

impl fmt::Display for RequestedName {
    /// At most 128 characters of the name, with control characters escaped, for messages and logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, text) = match self {
            Self::Dns(text) => ("DNS", text),
            Self::Ip(address) => return write!(f, "IP:{address}"),
            Self::Uri(text) => ("URI", text),
            Self::Other(kind) => return write!(f, "of kind {kind}"),
        };
        write!(f, "{kind}:")?;
        for shown in text.chars().take(SHOWN_MAX).flat_map(char::escape_debug) {
            write!(f, "{shown}")?;
        }
        if text.chars().nth(SHOWN_MAX).is_some() { f.write_str("...") } else { Ok(()) }
    }
}

/// The kind of certificate that a CSR is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Ca,
    EndEntity,
}

/// A CSR is rejected before its names are examined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It requests basicConstraints with CA:TRUE.
    #[error("the request asks for a CA certificate (basicConstraints CA:TRUE); ask for an end entity's")]
    CaRequested,
    /// It is for a CA certificate, and requests basicConstraints with CA:FALSE.
    #[error(
        "the request asks for an end entity's certificate (basicConstraints CA:FALSE); ask for a CA's, or leave it out"
    )]
    EndEntityRequested,
    /// This CA does not certify such a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is not a DER CertificationRequest; names the malformed part.
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    /// There is no PEM block.
    #[error("the request holds no PEM block; send one, such as CERTIFICATE REQUEST")]
    NoPem,
    /// Something that people take for a PEM request.
    #[error("the request {}; {}", .0.what, .0.remedy)]
    Unlike(Found),
    /// A damaged PEM block.
    #[error("the request's PEM is malformed: {0}; copy the request again")]
    Pem(#[from] PemError),
    /// The self-signature does not verify.
    #[error("the request's signature does not verify with its own key")]
    Signature,
    /// It is larger than [`CSR_MAX`].
    #[error("the request has {0} bytes; {CSR_MAX} are read at most")]
    TooLarge(usize),
    /// The signature algorithm is too weak or unknown.
    #[error(
        "the request's signature algorithm ({0}) is not supported \
         (RSA PKCS #1 v1.5 and ECDSA with SHA-256, SHA-384 or SHA-512, and Ed25519 are)"
    )]
    UnsupportedSignatureAlgorithm(&'static str),
}

/// Adds the name of the malformed part.
fn at<E>(part: &'static str) -> impl Fn(E) -> CsrError {
    move |_error| CsrError::Malformed(part)
}

impl VerifiedCsr {
    /// Parses and verifies the first PEM block of a CSR (with any label, as in istiod).
    ///
    /// # Errors
    /// If it is too large or malformed, its key is not accepted, or its self-signature does not verify.
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        Self::read_pem(text, Purpose::EndEntity)
    }

    /// Parses and verifies a CSR for a CA certificate: it may ask for CA:TRUE, which [`VerifiedCsr::from_pem`] rejects.
    ///
    /// # Errors
    /// Those of [`VerifiedCsr::from_pem`], and if it asks for CA:FALSE.
    pub fn for_ca_from_pem(text: &str) -> Result<Self, CsrError> {
        Self::read_pem(text, Purpose::Ca)
    }

    fn read_pem(text: &str, purpose: Purpose) -> Result<Self, CsrError> {
        if text.len() > CSR_MAX {
            return Err(CsrError::TooLarge(text.len()));
        }
        let blocks = pem::blocks(first_block(text).as_bytes());
        if let Ok([block, ..]) = blocks.as_deref() {
            return Self::read_der(&block.der, purpose).map_err(|error| match found::der(&block.der) {
                Some(kind) if matches!(error, CsrError::Malformed(_)) && kind != Der::Request => {
                    CsrError::Unlike(Found {
                        what: format!("is {kind}, under the label {}", block.label),
                        remedy: kind.to(Wanted::Request, "REQUEST"),
                    })
                }
                _ => error,
            });
        }
        match found::file(text.as_bytes(), "REQUEST", Wanted::Request) {
            Some(found) => Err(CsrError::Unlike(found)),
            None => Err(blocks.map_or_else(CsrError::Pem, |_none| CsrError::NoPem)),
        }
    }

    /// Parses and verifies a DER CertificationRequest.
    ///
    /// # Errors
    /// Those of [`VerifiedCsr::from_pem`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        Self::read_der(der, Purpose::EndEntity)
    }

    fn read_der(der: &[u8], purpose: Purpose) -> Result<Self, CsrError> {
        if der.len() > CSR_MAX {
            return Err(CsrError::TooLarge(der.len()));
        }
        // Clients do not always sort a SET as DER requires, and the `der` crate sorts one in quadratic time. Therefore
        // it is parsed with BER rules, which keep the order; everything else is DER, since its encoding must give the
        // same bytes.
        let request = CertReq::from_ber(der).map_err(|error| match error.kind() {
            ErrorKind::Value { tag: Tag::Integer } => CsrError::Malformed("the version is not 1"),
            _ => CsrError::Malformed("not a certification request"),
        })?;
        if request.to_der().ok().as_deref() != Some(der) {
            return Err(CsrError::Malformed("not a certification request in DER"));
        }
        let info = &request.info;
        let encoded = |value: der::Result<Vec<u8>>| value.map_err(at("not a certification request"));
        // The key's form and size are checked before any arithmetic with it.
        let public_key = PublicKey::from_spki_der(&encoded(info.public_key.to_der())?)?;
        let algorithm = algorithm::from_outside(&encoded(request.algorithm.to_der())?)
            .map_err(CsrError::UnsupportedSignatureAlgorithm)?;
        let signature = request.signature.as_bytes().ok_or(CsrError::Malformed("the signature"))?;
        let names = requested_names(&info.attributes, purpose)?;
        public_key.verify(algorithm, &encoded(info.to_der())?, signature).map_err(|_| CsrError::Signature)?;
        Ok(Self { public_key, names })
    }

    /// The subject's public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The requested names.
    #[must_use]
    pub fn names(&self) -> &[RequestedName] {
        &self.names
    }
}

/// The text up to the end of its first block; what follows is ignored, as in istiod.
fn first_block(text: &str) -> &str {
    let begin = text.find("-----BEGIN").unwrap_or_default();
    let end = text.get(begin..).and_then(|rest| rest.find("-----END")).map(|end| begin + end);
    let line_end = end.and_then(|end| text.get(end..)?.find('\n').map(|newline| end + newline + 1));
    line_end.and_then(|line_end| text.get(..line_end)).unwrap_or(text)
}

/// The names in the attribute extensionRequest (RFC 2985, section 5.4.2), if present. Other attributes are ignored, but
/// none may occur twice. Their order is not checked: DER defines one, but not every client follows it.
fn requested_names(attributes: &Attributes, purpose: Purpose) -> Result<Vec<RequestedName>, CsrError> {
    let oids = attributes.iter().map(|attribute| attribute.oid);
    check_unique(oids, ATTRIBUTES_MAX, "an attribute that comes twice", "too many attributes")?;
    let Some(request) = attributes.iter().find(|attribute| attribute.oid == rfc5912::ID_EXTENSION_REQ) else {
        return Ok(Vec::new());
    };
    let malformed = "the requested extensions";
    let [list] = request.values.as_slice() else { return Err(CsrError::Malformed(malformed)) };
    let ExtensionReq(extensions) = list.decode_as().map_err(at::<der::Error>(malformed))?;
    names_among(&extensions, purpose)
}

/// The names in the requested extensions. The SAN may be critical (Istio's agent) or not (older ztunnel); requested key
/// usages and the like are ignored, since the CA decides them.
fn names_among(extensions: &[Extension], purpose: Purpose) -> Result<Vec<RequestedName>, CsrError> {
    let oids = extensions.iter().map(|extension| extension.extn_id);
    check_unique(oids, EXTENSIONS_MAX, "a requested extension that comes twice", "too many extensions")?;
    let mut names = Vec::new();
    for extension in extensions {
        let value = extension.extn_value.as_bytes();
        match extension.extn_id {
            rfc5280::ID_CE_SUBJECT_ALT_NAME => names = general_names(value)?,
            rfc5280::ID_CE_BASIC_CONSTRAINTS => check_constraints(value, purpose)?,
            _ => {}
        }
    }
    Ok(names)
}

/// Checks that there are at most `most` object identifiers, without duplicates.
fn check_unique(
    oids: impl Iterator<Item = ObjectIdentifier>,
    most: usize,
    twice: &'static str,
    many: &'static str,
) -> Result<(), CsrError> {
    let mut seen = Vec::new();
    for oid in oids {
        if seen.contains(&oid) {
            return Err(CsrError::Malformed(twice));
        }
        if seen.len() == most {
            return Err(CsrError::Malformed(many));
        }
        seen.push(oid);
    }
    Ok(())
}

/// Rejects basicConstraints that ask for the other kind of certificate; a BOOLEAN other than FALSE counts as TRUE, even
/// if it is not DER.
fn check_constraints(value: &[u8], purpose: Purpose) -> Result<(), CsrError> {
    let fields: Vec<AnyRef<'_>> = Vec::from_der(value).map_err(at::<der::Error>("the requested basicConstraints"))?;
    let ca = fields.first().is_some_and(|first| first.tag() == Tag::Boolean && first.value() != [0]);
    match (purpose, ca) {
        (Purpose::EndEntity, true) => Err(CsrError::CaRequested),
        (Purpose::Ca, false) => Err(CsrError::EndEntityRequested),
        (Purpose::EndEntity, false) | (Purpose::Ca, true) => Ok(()),
    }
}

/// GeneralNames (RFC 5280, section 4.2.1.6). x509-cert's type does not support x400Address, and would not report which
/// type of name was rejected.
fn general_names(value: &[u8]) -> Result<Vec<RequestedName>, CsrError> {
    let malformed = "the subject alternative name";
    let names: Vec<AnyRef<'_>> = Vec::from_der(value).map_err(at::<der::Error>(malformed))?;
    if names.len() > NAMES_MAX {
        return Err(CsrError::Malformed("too many subject alternative names"));
    }
    if names.is_empty() {
        return Err(CsrError::Malformed("the subject alternative name is there but empty"));
    }
    let read = |name: &AnyRef<'_>| general_name(name.tag(), name.value()).ok_or(CsrError::Malformed(malformed));
    names.iter().map(read).collect()
}

fn general_name(tag: Tag, content: &[u8]) -> Option<RequestedName> {
    let Tag::ContextSpecific { number, constructed } = tag else { return None };
    Some(match (number.value(), constructed) {
        (0, true) => RequestedName::Other("otherName"),
        (1, false) => RequestedName::Other("rfc822Name (e-mail)"),
        (2, false) => RequestedName::Dns(ia5(content)?),
        (3, true) => RequestedName::Other("x400Address"),
        (4, true) => RequestedName::Other("directoryName"),
        (5, true) => RequestedName::Other("ediPartyName"),
        (6, false) => RequestedName::Uri(ia5(content)?),
        (7, false) => RequestedName::Ip(ip(content)?),
        (8, false) => RequestedName::Other("registeredID"),
        _ => return None,
    })
}

fn ia5(content: &[u8]) -> Option<String> {
    if content.is_ascii() { String::from_utf8(content.to_vec()).ok() } else { None }
}

/// An iPAddress: 4 or 16 bytes in network order.
fn ip(content: &[u8]) -> Option<IpAddr> {
    match content.len() {
        4 => <[u8; 4]>::try_from(content).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(content).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
