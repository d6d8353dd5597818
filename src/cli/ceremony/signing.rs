//! Signatures that an admin command makes in its own process: certificates and CRLs that the log has recorded, and the CSR
//! for a new CA key.
//!
//! Only typed values are signed, never bytes: a CA's certificate or CRL as recorded by the log, and a CSR as built by `pki`. The
//! caller verifies the signature when it assembles the result.

use std::sync::Arc;

use token::Session;

use audit_log::Recorded;
use pki::{CrlTbs, Profile, PublicKey, Tbs, request::CaRequest};
use token::{
    key::{self, KeyError},
    mechanism::{self, SignError},
};

/// A ceremony has no signature.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum CeremonyError {
    /// The key does not exist, or is not suitable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is not of a kind that a ceremony signs.
    #[error("BUG: a ceremony signs a root's or another CA's certificate, not one of kind {0}")]
    NotACa(&'static str),
    /// The token failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Signs a CA's certificate with the key of its issuer. Returns the content of signatureValue.
///
/// # Errors
/// If the certificate is not of a ceremony, the key is not found, or the token fails.
pub(in crate::cli) fn sign_certificate(
    session: &Session,
    certificate: &Recorded<Arc<Tbs>>,
) -> Result<Vec<u8>, CeremonyError> {
    rehearse_certificate(session, certificate, certificate.value().issuer().public_key())
}

/// Signs a CA's certificate with a key that stands in for that of its issuer.
///
/// # Errors
/// As [`sign_certificate`].
pub(in crate::cli) fn rehearse_certificate(
    session: &Session,
    certificate: &Recorded<Arc<Tbs>>,
    stand_in: &PublicKey,
) -> Result<Vec<u8>, CeremonyError> {
    let tbs = certificate.value();
    match &tbs.template().profile {
        Profile::Ca(_) | Profile::SelfSignedRoot { .. } => sign(session, stand_in, tbs.der()),
        other @ (Profile::Intermediate { .. } | Profile::Leaf) => Err(CeremonyError::NotACa(other.as_str())),
    }
}

/// Signs a CRL with the key of its issuer. Returns the content of signatureValue.
///
/// # Errors
/// If the key is not found, or the token fails.
pub(in crate::cli) fn sign_crl(session: &Session, crl: &Recorded<Arc<CrlTbs>>) -> Result<Vec<u8>, CeremonyError> {
    rehearse_crl(session, crl, crl.value().issuer().public_key())
}

/// Signs a CRL with a key that stands in for that of its issuer.
///
/// # Errors
/// As [`sign_crl`].
pub(in crate::cli) fn rehearse_crl(
    session: &Session,
    crl: &Recorded<Arc<CrlTbs>>,
    stand_in: &PublicKey,
) -> Result<Vec<u8>, CeremonyError> {
    sign(session, stand_in, crl.value().der())
}

/// Signs a CA's CSR with its own key. Returns the content of signatureValue.
///
/// # Errors
/// If the key is not found, or the token fails.
pub(in crate::cli) fn sign_request(session: &Session, request: &CaRequest) -> Result<Vec<u8>, CeremonyError> {
    sign(session, request.public_key(), request.der())
}

/// The key is looked up by its public key, so that no other key can sign.
fn sign(session: &Session, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, CeremonyError> {
    let handle = key::find_private_key(session, key)?;
    Ok(mechanism::sign(session, handle, key, message)?)
}
