//! A certificate authority for Istio whose signing key lives in a PKCS#11 token.
//!
//! Every certificate goes through one pipeline, in one function ([`issue`]), whether a workload, an operator or the
//! daemon itself requests it:
//!
//! ```text
//! bytes                         -auth->        Caller         who asks
//! bytes                         -pki::csr->    VerifiedCsr    holds the private key
//! Caller + VerifiedCsr          -policy->      Grant          may have these names, for this long
//! Grant + Issuer + serial       -pki::tbs->    Tbs            the bytes to sign, linted
//! Tbs                           -log->         Recorded<Tbs>  the intent is durable
//! Recorded<Tbs>                 -signer->      signature      the only step that reaches the token
//! certificate + Issuer + Grant  -pki::verify-> Issued         re-parsed, signature checked
//! Issued                                       -> reply
//! ```
//!
//! Each type has private fields and one place that can make it, so that no step can be skipped.

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
pub mod signer;
pub mod telemetry;
pub mod token_pool;
