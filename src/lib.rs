//! A certificate authority for Istio whose signing key lives in a PKCS#11 token.
//!
//! Every certificate goes through one pipeline, in one function ([`issue`]), whether a workload, an operator or the
//! daemon itself requests it:
//!
//! ```text
//! bytes                         -auth->        Caller         authenticated identity
//! bytes                         -pki::csr->    VerifiedCsr    proof of possession verified
//! Caller + VerifiedCsr          -policy->      Grant          names and lifetime allowed
//! Grant + Issuer + serial       -pki::tbs->    Tbs            the bytes to sign, linted
//! Tbs                           -log->         Recorded<Tbs>  the intent is durable
//! Recorded<Tbs>                 -signer->      signature      the only step that reaches the token
//! certificate + Issuer + Grant  -pki::verify-> Issued         parsed again, signature verified
//! Issued                                       -> reply
//! ```
//!
//! Each type has private fields and a single constructor, so no step can be skipped.

pub mod auth;
pub mod bundle_files;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod grpc;
pub mod issue;
pub mod kubernetes;
pub mod limits;
pub mod policy;
pub mod publication;
pub mod revocation;
pub mod signer;
pub mod telemetry;
pub mod token_pool;
