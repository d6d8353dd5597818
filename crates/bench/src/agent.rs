//! The client side: how an Istio agent obtains a certificate.
//!
//! Creates workload keys and CSRs, mints JWTs of a test issuer, connects and sends requests. Used by `bench endpoint`,
//! the demo and the tests; the daemon never uses it or trusts anything in it.

mod connection;
mod key;
mod token;

pub use connection::{AgentError, Reply, Tls, connect, connect_from, create_certificate};
pub use key::{KeyKind, RequestError, WorkloadKey};
pub use token::{TokenIssuer, TokenIssuerError, Workload};
