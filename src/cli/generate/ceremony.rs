//! Signatures of a ceremony, made by an admin command in its own process: a self-signed root that the log has recorded,
//! and the CSR for a new CA key.
//!
//! Only typed values are signed, never bytes: a root's certificate as recorded by the log, and a CSR as built by `pki`.
//! The caller verifies the signature when it assembles the result.

use std::sync::Arc;

use token::Session;

use audit_log::Recorded;
use pki::{Profile, PublicKey, Tbs, request::CaRequest};
use token::{
    key::{self, KeyError},
    mechanism::{self, SignError},
};

/// A ceremony has no signature.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// The key does not exist, or is not suitable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is not of a kind that a ceremony signs.
    #[error("BUG: a ceremony signs self-signed roots only, not a certificate of kind {0}")]
    NotARoot(&'static str),
    /// The token failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Signs a self-signed root with its own key. Returns the content of signatureValue.
///
/// # Errors
/// If the certificate is not a self-signed root, the key is not found, or the token fails.
pub fn sign_root(session: &Session, root: &Recorded<Arc<Tbs>>) -> Result<Vec<u8>, CeremonyError> {
    let tbs = root.value();
    match &tbs.template().profile {
        Profile::SelfSignedRoot { .. } => sign(session, tbs.issuer().public_key(), tbs.der()),
        other @ (Profile::Ca(_) | Profile::Intermediate { .. } | Profile::Leaf) => {
            Err(CeremonyError::NotARoot(other.as_str()))
        }
    }
}

/// Signs a CA's CSR with its own key. Returns the content of signatureValue.
///
/// # Errors
/// If the key is not found, or the token fails.
pub fn sign_request(session: &Session, request: &CaRequest) -> Result<Vec<u8>, CeremonyError> {
    sign(session, request.public_key(), request.der())
}

/// The key is looked up by its public key, so that no other key can sign.
fn sign(session: &Session, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, CeremonyError> {
    let handle = key::find_private_key(session, key)?;
    Ok(mechanism::sign(session, handle, key, message)?)
}
