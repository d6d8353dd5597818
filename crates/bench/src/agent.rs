//! The other side of the wire: what an Istio agent does to obtain a certificate.
//!
//! Makes workload keys and requests, mints the tokens of a test issuer, connects and calls. `bench endpoint`, the demo
//! and the tests call it; the daemon never does, and nothing here is trusted by it.

mod connection;
mod key;
mod token;

pub use connection::{AgentError, Reply, Tls, connect, connect_from, create_certificate};
pub use key::{KeyKind, RequestError, WorkloadKey};
pub use token::{TokenIssuer, TokenIssuerError, Workload};
