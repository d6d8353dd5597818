//! Everything that knows PKCS#11. The token holds keys and signs; everything else is done in software.
//!
//! `serve` uses it only in the token host's process, admin commands in their own. It never deletes an object that it
//! did not create itself or recognize as the leftover of an interrupted import; [`retire`] alone destroys a key, by name.

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
pub mod rehearsal;
pub mod retire;
pub mod uri;

pub use cryptoki::{error::RvError, session::Session};
pub use error::{CallError, Pkcs11Error, Recovery, advice};
pub use module::{Module, Token};
pub use uri::TokenUri;
