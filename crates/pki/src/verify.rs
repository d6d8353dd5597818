//! The token's output is never trusted: the certificate is parsed again and compared with the intended content.
//!
//! The only constructor of [`Issued`], and thus the only way to release a certificate. Signatures are verified with the
//! key in the CA certificate, never with a key reported by the token.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use der::{
    AnyRef, Decode, Encode, Sequence,
    asn1::{BitStringRef, UintRef},
};

use super::{
    KeyAlgorithm, PublicKey, SignatureAlgorithm, Tbs, algorithm,
    lint::{Facts, Finding},
    pem,
    structure::Signed,
    tbs::Serial,
};
use crate::identity::Name;

/// A certificate that may be released.
#[derive(Clone, Debug)]
pub struct Issued {
    der: Vec<u8>,
    tbs: Arc<Tbs>,
}

/// A signed certificate is not released. Each one raises an alarm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A field of the certificate differs from what was granted.
    #[error("BUG: the certificate's {0} differs from what was granted")]
    Field(&'static str),
    /// The encoded certificate violates a rule that its TBSCertificate did not.
    #[error("BUG: the signed certificate breaks a rule: {0}")]
    Lint(#[from] Finding),
    /// The token's signature does not verify with the key in ca-cert.pem.
    #[error("the token's signature does not verify with the CA certificate's key")]
    Signature,
}

impl Issued {
    /// Assembles the certificate with its signature, and verifies the result. `signature` is the content of
    /// signatureValue (for ECDSA: DER ECDSA-Sig-Value).
    ///
    /// # Errors
    /// If the signature does not verify, or a field differs.
    pub fn assemble(tbs: Arc<Tbs>, signature: &[u8]) -> Result<Self, VerifyError> {
        let issuer_key = tbs.issuer().public_key();
        let der = signed(tbs.der(), issuer_key, signature, |content| compare(&Facts::parse(content)?, &tbs))?;
        Ok(Self { der, tbs })
    }

    /// The DER certificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The signed content.
    #[must_use]
    pub fn tbs(&self) -> &Tbs {
        &self.tbs
    }

    /// The serial number.
    #[must_use]
    pub fn serial(&self) -> Serial {
        self.tbs.serial()
    }

    /// notBefore.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.tbs.template().not_before
    }

    /// notAfter, inclusive.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.tbs.template().not_after
    }

    /// The subject alternative names.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        &self.tbs.template().names
    }

    /// The certificate in PEM, with a final newline.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }

    /// The reply to a client: the leaf, the path from the CA certificate up to (not including) a root, one certificate
    /// per element, and the roots last, unchanged. At least two elements, since Istio's agents treat a single one as an
    /// error; every element except the roots ends with a newline.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        let issuer = self.tbs.issuer();
        let own = self.to_pem();
        // A root that was just generated is its own root file.
        let roots = if issuer.roots_pem().is_empty() { Cow::Owned(own.clone()) } else { issuer.roots_pem().into() };
        let mut chain = Vec::with_capacity(issuer.path_pem().len() + 2);
        chain.push(own);
        chain.extend(issuer.path_pem().iter().map(|pem| match pem.ends_with('\n') {
            true => pem.clone(),
            false => format!("{pem}\n"),
        }));
        chain.push(roots.into_owned());
        chain
    }
}

/// A certificate of a rehearsal: signed with a stand-in for the CA's key, and never released. Everything but its signature
/// value is checked as [`Issued::assemble`] does.
///
/// # Errors
/// If the signature does not verify with the stand-in, or a field differs.
pub fn rehearsed(tbs: &Tbs, stand_in: &PublicKey, signature: &[u8]) -> Result<Vec<u8>, VerifyError> {
    signed(tbs.der(), stand_in, signature, |content| compare(&Facts::parse(content)?, tbs))
}

/// Assembles the DER of a signed message with its signature, parses it again and verifies it; `check` compares the parsed
/// content with the intended one.
pub(crate) fn signed(
    tbs: &[u8],
    key: &PublicKey,
    signature: &[u8],
    check: impl FnOnce(&[u8]) -> Result<(), VerifyError>,
) -> Result<Vec<u8>, VerifyError> {
    let algorithm = key.signature_algorithm();
    let der = encode(tbs, algorithm, signature).map_err(|_error| VerifyError::Field("encoding"))?;

    // From here on only the encoded message is used.
    let signed = Signed::from_der(&der).map_err(|_error| VerifyError::Field("form"))?;
    let content = signed.content.to_der().map_err(|_error| VerifyError::Field("form"))?;
    if content != tbs {
        return Err(VerifyError::Field("signed part"));
    }
    if signed.algorithm.to_der().ok().as_deref() != Some(algorithm::identifier(algorithm)) {
        return Err(VerifyError::Field("signature algorithm"));
    }
    check(&content)?;
    let signature = signed.signature.as_bytes().ok_or(VerifyError::Field("form"))?;
    check_form(key.algorithm(), signature)?;
    key.verify(algorithm, &content, signature).map_err(|_| VerifyError::Signature)?;
    Ok(der)
}

/// The DER of a signed message from its parts.
fn encode(tbs: &[u8], algorithm: SignatureAlgorithm, signature: &[u8]) -> der::Result<Vec<u8>> {
    let (content, algorithm) = (AnyRef::from_der(tbs)?, AnyRef::from_der(algorithm::identifier(algorithm))?);
    Signed { content, algorithm, signature: BitStringRef::from_bytes(signature)? }.to_der()
}

/// Compares every field with the intended template, issuer and serial number. Usages, constraints and criticality
/// belong to the profile, which [`Facts`] only recognizes if all of them match.
fn compare(facts: &Facts<'_>, tbs: &Tbs) -> Result<(), VerifyError> {
    let (template, issuer) = (tbs.template(), tbs.issuer());
    let same = |same: bool, field| if same { Ok(()) } else { Err(VerifyError::Field(field)) };
    same(facts.serial.strip_prefix(&[0]) == Some(tbs.serial().as_bytes()), "serial number")?;
    same(facts.signature_algorithm == issuer.public_key().signature_algorithm(), "signature algorithm")?;
    same(facts.issuer == issuer.subject(), "issuer")?;
    same(facts.not_before == template.not_before, "notBefore")?;
    same(facts.not_after == template.not_after, "notAfter")?;
    same(facts.spki == template.public_key.spki_der(), "public key")?;
    same(facts.profile == template.profile, "profile")?;
    same(facts.names == template.names, "subject alternative name")?;
    same(
        facts.authority_key_id.is_none() || facts.authority_key_id == issuer.subject_key_id(),
        "authority key identifier",
    )
}

/// ECDSA-Sig-Value (RFC 3279, section 2.2.3).
#[derive(Sequence)]
struct EcdsaSignature<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// Checks the encoding of a signature value, in addition to its validity: an ECDSA-Sig-Value is strict DER with
/// positive numbers no longer than the curve's order. Verifiers differ in what else they accept.
fn check_form(algorithm: KeyAlgorithm, signature: &[u8]) -> Result<(), VerifyError> {
    let order_bytes = match algorithm {
        KeyAlgorithm::P256 => 32,
        KeyAlgorithm::P384 => 48,
        KeyAlgorithm::Ed25519 | KeyAlgorithm::Rsa { .. } => return Ok(()),
    };
    let EcdsaSignature { r, s } = EcdsaSignature::from_der(signature).map_err(|_error| VerifyError::Signature)?;
    let fits = |number: UintRef<'_>| number.as_bytes().len() <= order_bytes && number.as_bytes() != [0];
    if fits(r) && fits(s) { Ok(()) } else { Err(VerifyError::Signature) }
}

#[cfg(test)]
mod tests;
