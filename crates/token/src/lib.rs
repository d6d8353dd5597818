//! All that knows PKCS#11. The token holds keys and signs; everything else is software.
//!
//! `serve` uses it from the token host's process alone, admin commands from their own. Nothing in here deletes an
//! object that it has not made itself or recognised as the leftover of an interrupted import.

pub mod adopt;
pub mod call_metrics;
pub mod calls;
pub mod error;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod key;
pub mod mechanism;
pub mod module;
pub mod pin;
pub mod pin_marker;
pub mod uri;

pub use cryptoki::{error::RvError, session::Session};
pub use error::{CallError, Pkcs11Error, Recovery, advice};
pub use module::{Module, Token};
pub use uri::TokenUri;
