//! What one connection, one network address and all together may occupy, before and after authentication.
//!
//! Two rules, used for every limited resource (docs/LIMITS.md has the table):
//!
//! - [`Shares`] refuses at once: an address may hold three times what is still free. A single address, such as that of a
//!   NAT gateway, can therefore have three quarters of a resource that no other address needs.
//! - [`Turns`] queues: turns are granted to addresses in turn, and within an address to its connections in turn.
//!
//! Neither evicts or decides anything; they only count. Both cost one uncontended lock.

mod shares;
mod turns;

use std::net::{IpAddr, Ipv6Addr};

pub use shares::{Full, Held, Shares};
pub use turns::{Turn, Turns};

/// What counts as one address: an IPv4 address, or the /64 network of an IPv6 address, all of which one host may use
/// (RFC 4291, section 2.5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Who takes part in a limit: one connection of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its network.
    pub network: Network,
    /// The number of its connection, unique in this process.
    pub connection: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_and_a_mapped_ipv4_address_count_as_one() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
    }
}
