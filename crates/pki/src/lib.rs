//! Pure PKI code: parses bytes and returns checked values. No I/O, no clock, no token.

mod algorithm;
pub mod bundle;
pub mod crl;
pub mod csr;
pub mod existing;
pub mod found;
pub mod identity;
pub mod key;
pub mod lint;
mod name;
pub mod pem;
pub mod private_key;
pub mod profile;
pub mod request;
mod structure;
pub mod tbs;
#[cfg(any(test, feature = "testing"))]
#[allow(
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "for tests"
)]
pub mod testing;
pub mod verify;

pub use algorithm::SignatureAlgorithm;
pub use bundle::{Bundle, Issuer};
pub use crl::{CrlTbs, SignedCrl};
pub use csr::VerifiedCsr;
pub use key::{KeyAlgorithm, PublicKey};
pub use profile::{CaProfile, Profile, Template};
pub use structure::CertificateFields;
pub use tbs::Tbs;
pub use verify::Issued;
