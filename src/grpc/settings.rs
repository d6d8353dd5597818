//! Settings of the gRPC endpoint, each default with its reason.
//!
//! Values only; they are checked where they are used.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU8,
    path::PathBuf,
    time::Duration,
};

use pki::identity::DnsName;
use serde::Deserialize;

/// Settings of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on. The default is istiod's port for certificates, on every address.
    pub address: SocketAddr,
    /// Serve without TLS; refused unless `address` is a loopback address. For a sidecar that terminates TLS.
    pub plaintext: bool,
    /// Enable reflection, with which `grpcurl` finds the service's description. It exposes only public information, but what
    /// its streams hold in memory is not limited in total.
    pub reflection: bool,
    /// How long requests in flight may take to finish after SIGTERM. Kubernetes kills after 30 s.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Threads that serve requests; by default one per core (of the container, if limited). The token hosts and the
    /// issuance log's writer have their own threads. Maximum 255.
    pub threads: Option<NonZeroU8>,
    /// What connections and requests may use up.
    pub limits: Limits,
    /// TLS versions.
    pub tls: Tls,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15012),
            plaintext: false,
            reflection: false,
            drain: Duration::from_secs(20),
            threads: None,
            limits: Limits::default(),
            tls: Tls::default(),
        }
    }
}

/// What connections and requests may use up. docs/LIMITS.md explains how they work together.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in all. A cluster of 8,000 pods with sidecars holds one each, through a roll-out two; 25 KiB each. One
    /// address (IPv6: one /64) may hold three times what is still free, so that ten thousand agents may come from one.
    /// The daemon takes fewer where the system's limit of open files (RLIMIT_NOFILE) is lower, and says so.
    pub connections: usize,
    /// Connections of one address where a fixed number is wanted.
    pub connections_per_address: Option<usize>,
    /// Connections whose handshake has begun and on which no certificate has been issued. Each may hold 180 KiB. Agents
    /// ask at once, so that at 1,500 handshakes a second each has more than a second for its first request.
    pub unauthenticated_connections: usize,
    /// How many bytes a client may send before a certificate is issued to it: 40 requests. Ends floods of frames.
    pub unauthenticated_bytes: usize,
    /// How many bytes a client may send in its handshake: its ClientHello with a session ticket, and its certificates.
    pub handshake_bytes: usize,
    /// Handshakes that are computed at once: they are the most expensive operation of an unauthenticated client. More wait for their turn, and
    /// requests in progress for no more than these, at 0.3 ms each.
    pub handshakes: usize,
    /// How long a connection may wait for a slot. Ten thousand agents at once take some ten seconds of one core, and
    /// gRPC's clients wait for 20 s.
    #[serde(with = "humantime_serde")]
    pub handshake_wait: Duration,
    /// How long a client may take for its ClientHello, for the rest of its handshake, and for the first bytes of HTTP/2.
    /// Istio's agents allow 5 s to connect.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// What streams may hold in memory in all: headers, bodies, and 4 KiB each until the response is sent.
    pub request_memory: usize,
    /// Complete requests in progress in all; more are refused at once. At 4,000 certificates a second it is a second's
    /// work.
    pub requests: usize,
    /// Timeout of a request from its headers to the reply; a caller's own shorter deadline takes precedence.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Concurrent streams per connection. ztunnel uses 8.
    pub streams: u32,
    /// Maximum size of a request message in bytes. A CSR has at most 16 KiB.
    pub message_bytes: usize,
    /// Maximum size of the header list in bytes. A service account's JWT has 1 to 2 KiB.
    pub header_bytes: u32,
    /// Number of reset streams not yet processed after which the connection is closed (CVE-2023-44487).
    pub pending_resets: usize,
    /// How long a client may leave 16 KiB unread before its connection ends.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// How often a silent connection is pinged, so that half-open ones end.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// Timeout of a ping.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
    /// Age at which a connection is asked to end, so that clients are redistributed over replicas; none by default.
    #[serde(with = "humantime_serde")]
    pub connection_age: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_address: None,
            unauthenticated_connections: 4096,
            unauthenticated_bytes: 128 * 1024,
            handshake_bytes: 16 * 1024,
            handshakes: 256,
            handshake_wait: Duration::from_secs(15),
            handshake_timeout: Duration::from_secs(5),
            request_memory: 64 * 1024 * 1024,
            requests: 4096,
            request_timeout: Duration::from_secs(10),
            streams: 128,
            message_bytes: 64 * 1024,
            header_bytes: 16 * 1024,
            pending_resets: 20,
            write_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
            connection_age: None,
        }
    }
}

/// TLS versions. ztunnel uses 1.3; Istio's agents support both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Accept TLS 1.2 as well, for clients that do not support 1.3.
    pub allow_tls12: bool,
}

/// `[serving]`, the endpoint's own certificate: from files if both are set, otherwise issued by this CA.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serving {
    /// Its DNS names: those that clients use to reach the endpoint.
    pub dns_names: Vec<DnsName>,
    /// Its IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Its lifetime; it is renewed at half of it.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// PEM certificate chain from another CA, the leaf first; requires `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// PEM private key of that leaf.
    pub key_file: Option<PathBuf>,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            ttl: Duration::from_secs(24 * 3600),
            certificate_file: None,
            key_file: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_and_defaults_stand() {
        let settings: Settings =
            toml::from_str("[limits]\nhandshake_timeout = \"1s\"\nconnection_age = \"1h\"").unwrap();
        assert_eq!(settings.limits.handshake_timeout, Duration::from_secs(1));
        assert_eq!(settings.limits.connection_age, Some(Duration::from_secs(3600)));
        assert_eq!(settings.limits.streams, 128);
        assert_eq!(settings.threads, None);
        for text in [
            "portt = 1",
            "[limits]\nstreamz = 1",
            "[tls]\nallow_tls11 = true",
            "[serving]\ncertificate_file = \"a\"",
            "threads = 0",
            "threads = 256",
        ] {
            assert!(toml::from_str::<Settings>(text).is_err(), "{text}");
        }
    }
}
