//! A new token for a rehearsal, in a library whose slots offer a blank one (SoftHSM).

use cryptoki::session::UserType;
use secrecy::SecretString;

use super::{Module, Pkcs11Error, Token, TokenUri, module::TokenError};

/// No token was made.
#[derive(Debug, thiserror::Error)]
pub enum NewTokenError {
    /// No slot has a token that is not initialised.
    #[error("the library has no blank token")]
    NoBlankToken,
    /// A call failed.
    #[error("the token cannot {step}")]
    Call {
        /// What the call was to do.
        step: &'static str,
        /// The call's error.
        #[source]
        source: Pkcs11Error,
    },
    /// The new token cannot be found.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Initialises the library's blank token (C_InitToken) with the label in `uri` and sets its user PIN, which is also the
/// security officer's.
///
/// # Errors
/// If the library has no blank token, or a call fails.
pub fn new_token(module: &Module, uri: &TokenUri, pin: &SecretString) -> Result<Token, NewTokenError> {
    let failed = |step| move |error: cryptoki::error::Error| NewTokenError::Call { step, source: error.into() };
    let pkcs11 = module.pkcs11();
    let slots = pkcs11.get_slots_with_token().map_err(failed("be listed"))?;
    let is_blank =
        |slot: &cryptoki::slot::Slot| pkcs11.get_token_info(*slot).is_ok_and(|info| !info.token_initialized());
    let blank = slots.into_iter().find(is_blank).ok_or(NewTokenError::NoBlankToken)?;
    pkcs11.init_token(blank, pin, uri.label().unwrap_or_default()).map_err(failed("be initialised"))?;
    let session = pkcs11.open_rw_session(blank).map_err(failed("open a session"))?;
    session.login(UserType::So, Some(pin)).map_err(failed("log its security officer in"))?;
    session.init_pin(pin).map_err(failed("set its PIN"))?;
    session.logout().map_err(failed("log out"))?;
    drop(session);
    Ok(module.find_token(uri)?)
}
