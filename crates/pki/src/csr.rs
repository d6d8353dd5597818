//! Certificate requests (RFC 2986): parsed within limits, key policy and self-signature checked.
//!
//! Never grants anything: the names read here are what somebody asks for, and `policy` decides. The signature is
//! checked over the bytes as they came, not over an encoding of what was understood. Called by `issue`.

use std::{fmt, net::IpAddr};

use const_oid::db::{rfc5280, rfc5912};
use der::Tag;

use super::{
    PublicKey, algorithm,
    key::KeyError,
    pem::{self, PemError},
    walk::{Malformed, Walk, context},
};

/// The largest certificate request in PEM bytes that is read: an RSA-4096 request with a long SAN is below 4 KiB.
pub const CSR_MAX: usize = 16 * 1024;

/// The most attributes that a request may have: three are in use (extensions, challenge password, name).
const ATTRIBUTES_MAX: usize = 16;
/// The most extensions that a request may ask for: RFC 5280 knows 17 for certificates.
const EXTENSIONS_MAX: usize = 32;
/// The most names that a request may ask for: a server's certificate has a handful.
const NAMES_MAX: usize = 64;
/// How much of an asked-for name a message repeats.
const SHOWN_MAX: usize = 128;

/// The subjects that count as empty: no attribute at all (ztunnel), and a lone `O=""`, as PrintableString (Go,
/// so Istio's agent) or UTF8String.
const EMPTY_SUBJECTS: [&[u8]; 3] = [
    b"\x30\x00",
    b"\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x0a\x13\x00",
    b"\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x0a\x0c\x00",
];

/// A request whose signer holds the private key, and whose names have been read.
#[derive(Clone, Debug)]
pub struct VerifiedCsr {
    public_key: PublicKey,
    /// Whether the subject is empty or `O=""`, as Istio's agents send it.
    subject_is_empty: bool,
    /// The subject alternative names as asked for, unparsed.
    names: Vec<RequestedName>,
}

/// A subject alternative name as it stands in a request; not yet a name that anybody may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedName {
    /// A dNSName.
    Dns(String),
    /// An iPAddress, 4 or 16 bytes.
    Ip(IpAddr),
    /// A uniformResourceIdentifier.
    Uri(String),
    /// Any other kind, which is never granted.
    Other(&'static str),
}

impl fmt::Display for RequestedName {
    /// At most 128 characters of the name, control characters escaped: it goes into messages and logs.
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

/// Why a request is refused before its names are looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It asks for basicConstraints with CA:TRUE.
    #[error("the request asks for a CA certificate (basicConstraints CA:TRUE); ask for an end entity's")]
    CaRequested,
    /// The key is not one that this CA certifies.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not a DER CertificationRequest, at the part named.
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    /// No PEM block.
    #[error("the request holds no PEM block; send one, such as CERTIFICATE REQUEST")]
    NoPem,
    /// A damaged PEM block.
    #[error("the request's PEM is malformed: {0}")]
    Pem(#[from] PemError),
    /// The self-signature does not verify.
    #[error("the request's signature does not verify with its own key")]
    Signature,
    /// Longer than [`CSR_MAX`].
    #[error("the request has {0} bytes; {CSR_MAX} are read at most")]
    TooLarge(usize),
    /// A signature algorithm that proves too little, or is unknown.
    #[error(
        "the request's signature algorithm ({0}) is not supported \
         (RSA PKCS #1 v1.5 and ECDSA with SHA-256, SHA-384 or SHA-512, and Ed25519 are)"
    )]
    UnsupportedSignatureAlgorithm(&'static str),
}

/// Gives a malformed element its name.
fn at(what: &'static str) -> impl Fn(Malformed) -> CsrError {
    move |Malformed| CsrError::Malformed(what)
}

impl VerifiedCsr {
    /// Reads the first PEM block of a request (any label, as istiod does) and checks it.
    ///
    /// # Errors
    /// When it is too large, malformed, of a key that is not accepted, or not signed by its own key.
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        if text.len() > CSR_MAX {
            return Err(CsrError::TooLarge(text.len()));
        }
        let block = pem::blocks(first_block(text).as_bytes())?.into_iter().next().ok_or(CsrError::NoPem)?;
        Self::from_der(&block.der)
    }

    /// Checks a DER CertificationRequest.
    ///
    /// # Errors
    /// As [`VerifiedCsr::from_pem`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_MAX {
            return Err(CsrError::TooLarge(der.len()));
        }
        let malformed = at("not a certification request");
        let mut request = Walk::inside(der, Tag::Sequence).map_err(&malformed)?;
        let signed = request.whole(Tag::Sequence).map_err(&malformed)?;
        let algorithm = request.whole(Tag::Sequence).map_err(&malformed)?;
        let signature = request.bytes_in_bits().map_err(at("the signature"))?;
        request.finish().map_err(at("bytes after the signature"))?;

        let mut info = Walk::inside(signed, Tag::Sequence).map_err(&malformed)?;
        if info.content(Tag::Integer).map_err(at("the version"))? != [0] {
            return Err(CsrError::Malformed("the version is not 1"));
        }
        let subject = info.whole(Tag::Sequence).map_err(at("the subject"))?;
        let spki = info.whole(Tag::Sequence).map_err(at("the public key"))?;
        // The key's form and size are settled before any arithmetic on it.
        let public_key = PublicKey::from_spki_der(spki)?;
        let algorithm = algorithm::from_outside(algorithm).map_err(CsrError::UnsupportedSignatureAlgorithm)?;
        let attributes = info.enter(context(0, true)).map_err(at("the attributes"))?;
        info.finish().map_err(at("bytes after the attributes"))?;
        let names = names_of(attributes)?;
        public_key.verify(algorithm, signed, signature).map_err(|_| CsrError::Signature)?;
        Ok(Self { public_key, subject_is_empty: EMPTY_SUBJECTS.contains(&subject), names })
    }

    /// The subject's public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Whether the subject is an empty sequence or a lone `O=""`.
    #[must_use]
    pub fn subject_is_empty(&self) -> bool {
        self.subject_is_empty
    }

    /// The names asked for.
    #[must_use]
    pub fn names(&self) -> &[RequestedName] {
        &self.names
    }
}

/// The text up to the end of its first block: what follows is not looked at, as istiod does not.
fn first_block(text: &str) -> &str {
    let begin = text.find("-----BEGIN").unwrap_or_default();
    let end = text.get(begin..).and_then(|rest| rest.find("-----END")).map(|end| begin + end);
    let line_end = end.and_then(|end| text.get(end..)?.find('\n').map(|newline| end + newline + 1));
    line_end.and_then(|line_end| text.get(..line_end)).unwrap_or(text)
}

/// The names in the attribute extensionRequest (RFC 2985, section 5.4.2), if there is one. Other attributes are
/// passed over, but none may come twice. Their order is not checked: it is DER's, but not every client's.
fn names_of(mut attributes: Walk<'_>) -> Result<Vec<RequestedName>, CsrError> {
    let malformed = at("an attribute");
    let mut seen = Vec::new();
    let mut names = Vec::new();
    while !attributes.at_end() {
        let mut attribute = attributes.enter(Tag::Sequence).map_err(&malformed)?;
        let oid = attribute.content(Tag::ObjectIdentifier).map_err(&malformed)?;
        let mut values = attribute.enter(Tag::Set).map_err(&malformed)?;
        attribute.finish().map_err(&malformed)?;
        note(&mut seen, oid, ATTRIBUTES_MAX, "an attribute that comes twice", "too many attributes")?;
        if oid == rfc5912::ID_EXTENSION_REQ.as_bytes() {
            let extensions = values.enter(Tag::Sequence).map_err(at("the requested extensions"))?;
            values.finish().map_err(at("the requested extensions"))?;
            names = names_among(extensions)?;
        }
    }
    Ok(names)
}

/// The names among the requested extensions. The SAN counts whether critical (Istio's agent) or not (older
/// ztunnel); requested key usages and the like are the CA's business and passed over.
fn names_among(mut extensions: Walk<'_>) -> Result<Vec<RequestedName>, CsrError> {
    let malformed = at("a requested extension");
    let mut seen = Vec::new();
    let mut names = Vec::new();
    while !extensions.at_end() {
        let mut extension = extensions.enter(Tag::Sequence).map_err(&malformed)?;
        let oid = extension.content(Tag::ObjectIdentifier).map_err(&malformed)?;
        // An explicit FALSE is not DER, but a client's slip that says nothing else.
        match extension.optional(Tag::Boolean).map_err(&malformed)? {
            None | Some([0 | 0xff]) => {}
            Some(_) => return Err(CsrError::Malformed("a requested extension")),
        }
        let value = extension.content(Tag::OctetString).map_err(&malformed)?;
        extension.finish().map_err(&malformed)?;
        note(&mut seen, oid, EXTENSIONS_MAX, "a requested extension that comes twice", "too many extensions")?;
        if oid == rfc5280::ID_CE_SUBJECT_ALT_NAME.as_bytes() {
            names = general_names(value)?;
        } else if oid == rfc5280::ID_CE_BASIC_CONSTRAINTS.as_bytes() {
            refuse_ca(value)?;
        }
    }
    Ok(names)
}

/// Notes an object identifier, which must be new, within a limit.
fn note<'a>(
    seen: &mut Vec<&'a [u8]>,
    oid: &'a [u8],
    most: usize,
    twice: &'static str,
    many: &'static str,
) -> Result<(), CsrError> {
    if seen.contains(&oid) {
        return Err(CsrError::Malformed(twice));
    }
    if seen.len() == most {
        return Err(CsrError::Malformed(many));
    }
    seen.push(oid);
    Ok(())
}

fn refuse_ca(value: &[u8]) -> Result<(), CsrError> {
    let malformed = at("the requested basicConstraints");
    let mut constraints = Walk::inside(value, Tag::Sequence).map_err(&malformed)?;
    match constraints.optional(Tag::Boolean).map_err(&malformed)? {
        None | Some([0]) => Ok(()),
        Some(_) => Err(CsrError::CaRequested),
    }
}

/// GeneralNames (RFC 5280, section 4.2.1.6).
fn general_names(value: &[u8]) -> Result<Vec<RequestedName>, CsrError> {
    let malformed = at("the subject alternative name");
    let mut walk = Walk::inside(value, Tag::Sequence).map_err(&malformed)?;
    let mut names = Vec::new();
    while !walk.at_end() {
        if names.len() == NAMES_MAX {
            return Err(CsrError::Malformed("too many subject alternative names"));
        }
        let (tag, content) = walk.any().map_err(&malformed)?;
        names.push(general_name(tag, content).ok_or(CsrError::Malformed("the subject alternative name"))?);
    }
    if names.is_empty() {
        return Err(CsrError::Malformed("the subject alternative name is there but empty"));
    }
    Ok(names)
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
