//! The CA data needed by the rules.

use std::time::SystemTime;

use const_oid::db::rfc5280;
use der::Tag;

use super::{Finding, extensions::own_id, facts::time, key};
use crate::{
    Issuer, KeyAlgorithm, SignatureAlgorithm,
    lint::reader::{DerReader, Malformed, context},
};

/// The signing CA, borrowed from its certificate or its [`Issuer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ca<'a> {
    /// DER Name.
    pub subject: &'a [u8],
    /// DER SubjectPublicKeyInfo.
    pub spki: &'a [u8],
    /// The algorithm with which the CA's key signs.
    pub signature_algorithm: SignatureAlgorithm,
    /// The subject key identifier, if the CA certificate has one.
    pub subject_key_id: Option<&'a [u8]>,
    /// pathLenConstraint, if there is one.
    pub path_len: Option<u8>,
    /// Earliest permitted notBefore.
    pub not_before: SystemTime,
    /// Latest permitted notAfter.
    pub not_after: SystemTime,
}

impl<'a> From<&'a Issuer> for Ca<'a> {
    fn from(issuer: &'a Issuer) -> Self {
        Self {
            subject: issuer.subject(),
            spki: issuer.public_key().spki_der(),
            signature_algorithm: issuer.public_key().signature_algorithm(),
            subject_key_id: issuer.subject_key_id(),
            path_len: issuer.path_len(),
            not_before: issuer.not_before(),
            not_after: issuer.not_after(),
        }
    }
}

/// The content of the subjectPublicKey BIT STRING of a certificate, also of a root whose key this CA would not certify.
///
/// # Errors
/// If it is not a DER certificate.
pub fn subject_public_key(certificate: &[u8]) -> Result<&[u8], Finding> {
    let read = || -> Result<&[u8], Malformed> {
        let mut fields = DerReader::inside(certificate, Tag::Sequence)?.enter(Tag::Sequence)?;
        fields.optional(context(0, true))?;
        fields.content(Tag::Integer)?;
        for _signature_issuer_validity_subject in 0..4 {
            fields.content(Tag::Sequence)?;
        }
        fields.whole(Tag::Sequence)
    };
    key::bits(read().map_err(|Malformed| Finding("the certificate is malformed"))?)
}

impl<'a> Ca<'a> {
    /// Parses a CA certificate. Its own signature, and whether it may be a CA at all, is checked by
    /// [`Bundle::check`](crate::Bundle::check).
    ///
    /// # Errors
    /// If it is not a DER certificate, or has a key that is not supported.
    pub fn from_certificate(der: &'a [u8]) -> Result<Self, Finding> {
        let read = || -> Result<_, Malformed> {
            let mut certificate = DerReader::inside(der, Tag::Sequence)?;
            let mut fields = certificate.enter(Tag::Sequence)?;
            fields.optional(context(0, true))?;
            fields.content(Tag::Integer)?;
            fields.content(Tag::Sequence)?;
            fields.content(Tag::Sequence)?;
            let validity = fields.enter(Tag::Sequence)?;
            let subject = fields.whole(Tag::Sequence)?;
            let spki = fields.whole(Tag::Sequence)?;
            fields.optional(context(1, false))?;
            fields.optional(context(2, false))?;
            let extensions = match fields.optional(context(3, true))? {
                Some(list) => DerReader::inside(list, Tag::Sequence)?,
                None => DerReader::over(&[])?,
            };
            fields.finish()?;
            let (subject_key_id, path_len) = constraints(extensions)?;
            Ok((validity, subject, spki, subject_key_id, path_len))
        };
        let (mut validity, subject, spki, subject_key_id, path_len) =
            read().map_err(|Malformed| Finding("the CA's certificate is malformed"))?;
        let signature_algorithm = match key::algorithm(spki)? {
            KeyAlgorithm::Ed25519 => SignatureAlgorithm::Ed25519,
            KeyAlgorithm::P256 => SignatureAlgorithm::EcdsaSha256,
            KeyAlgorithm::P384 => SignatureAlgorithm::EcdsaSha384,
            KeyAlgorithm::Rsa { .. } => SignatureAlgorithm::RsaSha256,
        };
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        Ok(Self { subject, spki, signature_algorithm, subject_key_id, path_len, not_before, not_after })
    }
}

/// A [`Ca`] with owned data: parsed once, used for many certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedCa {
    subject: Vec<u8>,
    spki: Vec<u8>,
    signature_algorithm: SignatureAlgorithm,
    subject_key_id: Option<Vec<u8>>,
    path_len: Option<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl OwnedCa {
    /// Parses a CA certificate.
    ///
    /// # Errors
    /// Those of [`Ca::from_certificate`].
    pub fn from_certificate(der: &[u8]) -> Result<Self, Finding> {
        let Ca { subject, spki, signature_algorithm, subject_key_id, path_len, not_before, not_after } =
            Ca::from_certificate(der)?;
        let (subject, spki) = (subject.to_vec(), spki.to_vec());
        let subject_key_id = subject_key_id.map(<[u8]>::to_vec);
        Ok(Self { subject, spki, signature_algorithm, subject_key_id, path_len, not_before, not_after })
    }

    /// The CA for the rules.
    #[must_use]
    pub fn as_ca(&self) -> Ca<'_> {
        Ca {
            subject: &self.subject,
            spki: &self.spki,
            signature_algorithm: self.signature_algorithm,
            subject_key_id: self.subject_key_id.as_deref(),
            path_len: self.path_len,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

/// subjectKeyIdentifier and pathLenConstraint of a certificate.
fn constraints<'a>(mut extensions: DerReader<'a>) -> Result<(Option<&'a [u8]>, Option<u8>), Malformed> {
    let (mut subject_key_id, mut path_len) = (None, None);
    while !extensions.at_end() {
        let mut extension = extensions.enter(Tag::Sequence)?;
        let oid = extension.content(Tag::ObjectIdentifier)?;
        extension.optional(Tag::Boolean)?;
        let value = extension.content(Tag::OctetString)?;
        extension.finish()?;
        if oid == rfc5280::ID_CE_SUBJECT_KEY_IDENTIFIER.as_bytes() {
            subject_key_id = Some(own_id(value)?);
        } else if oid == rfc5280::ID_CE_BASIC_CONSTRAINTS.as_bytes() {
            let mut fields = DerReader::inside(value, Tag::Sequence)?;
            fields.optional(Tag::Boolean)?;
            path_len = match fields.optional(Tag::Integer)? {
                None => None,
                Some([length @ 0..=0x7f]) => Some(*length),
                // No path is longer, so this is equivalent to 127.
                Some([0, ..]) | Some([1..=0x7f, _, ..]) => Some(0x7f),
                Some(_) => return Err(Malformed),
            };
        }
    }
    Ok((subject_key_id, path_len))
}
