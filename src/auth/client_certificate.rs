//! client certificate
