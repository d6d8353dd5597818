//! What the token signs in a ceremony, by an admin command in its own process: a self-signed root that the log has
//! recorded, and the request for a certificate of a new CA key.
//!
//! Takes whole values of closed kinds, never bytes: a root's certificate comes as what the log recorded, and a request
//! as what `pki` built. Whether the signature verifies is the caller's to check, when it assembles the result. Called
//! by `generate`.

use std::sync::Arc;

use token::Session;

use audit_log::Recorded;
use pki::{Profile, PublicKey, Tbs, request::CaRequest};
use token::{
    key::{self, KeyError},
    mechanism::{self, SignError},
};

/// Why a ceremony has no signature.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// The key is not there, or unfit.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is of a kind that no ceremony signs.
    #[error("BUG: a ceremony signs self-signed roots only, not a certificate of kind {0}")]
    NotARoot(&'static str),
    /// The token failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Signs a self-signed root with its own key. Answers the content of signatureValue.
///
/// # Errors
/// When the certificate is not a self-signed root, the key is not found, or the token fails.
pub fn sign_root(session: &Session, root: &Recorded<Arc<Tbs>>) -> Result<Vec<u8>, CeremonyError> {
    let tbs = root.value();
    match &tbs.template().profile {
        Profile::SelfSignedRoot { .. } => sign(session, tbs.issuer().public_key(), tbs.der()),
        other @ (Profile::Intermediate { .. } | Profile::Leaf) => Err(CeremonyError::NotARoot(other.as_str())),
    }
}

/// Signs a CA's certificate request with the key that it is for. Answers the content of signatureValue.
///
/// # Errors
/// When the key is not found, or the token fails.
pub fn sign_request(session: &Session, request: &CaRequest) -> Result<Vec<u8>, CeremonyError> {
    sign(session, request.public_key(), request.der())
}

/// The key is looked up by its public half, so that no other one can sign.
fn sign(session: &Session, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, CeremonyError> {
    let handle = key::find_private_key(session, key)?;
    Ok(mechanism::sign(session, handle, key, message)?)
}
