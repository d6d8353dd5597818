//! The host's own rules: checks each message against the host's configuration. Pure.
//!
//! The daemon has decided already; this is for the day on which the daemon is not ours any more.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::CANARY_PREFIX;
use crate::protocol::Kind;
use pki::{
    identity::{DnsName, Name, TrustDomain},
    lint::{self, Ca, Facts, Finding},
    profile::CLOCK_SKEW,
};

/// The longest canary message: its prefix and some random bytes.
const CANARY_MOST: usize = 64;

/// The longest tree head: a signed note's text of origin, size, hash and a few extension lines.
const CHECKPOINT_MOST: usize = 4096;

/// The limits that the host was configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) max_validity: Duration,
    pub(super) trust_domains: Vec<TrustDomain>,
    pub(super) dns_names: Vec<DnsName>,
    pub(super) ip_addresses: Vec<IpAddr>,
    pub(super) allow_intermediate: bool,
}

/// Why the host does not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the message is not a canary's")]
    Canary,
    #[error("the message is not a checkpoint")]
    Checkpoint,
    #[error("the host's configuration does not allow intermediates")]
    Intermediate,
    #[error("{0}")]
    Lint(#[from] Finding),
    #[error("the host's configuration does not list the name {0}")]
    Name(Name),
    #[error("the validity ends later than the host allows, counted from now")]
    TooLate,
}

impl Rules {
    /// Holds a certificate to the rules, under one CA certificate of the host's own.
    pub(super) fn certificate(&self, kind: Kind, tbs: &[u8], ca: &Ca<'_>, now: SystemTime) -> Result<(), Refusal> {
        let facts = Facts::parse(tbs)?;
        match kind {
            Kind::Leaf => lint::leaf(&facts, ca, self.max_validity)?,
            Kind::Intermediate if self.allow_intermediate => lint::intermediate(&facts, ca, self.max_validity)?,
            Kind::Intermediate => return Err(Refusal::Intermediate),
            Kind::Canary | Kind::Checkpoint => return Err(Finding("it is not a kind of certificate").into()),
        }
        // Without this a stolen daemon could stock up on leaves for the years to come.
        if facts.not_after.duration_since(now).unwrap_or_default() > self.max_validity.saturating_add(CLOCK_SKEW) {
            return Err(Refusal::TooLate);
        }
        for name in facts.names {
            let listed = match &name {
                Name::Dns(dns) => self.dns_names.contains(dns),
                Name::Ip(ip) => self.ip_addresses.contains(ip),
                Name::Spiffe(id) => self.trust_domains.contains(id.trust_domain()),
            };
            if !listed {
                return Err(Refusal::Name(name));
            }
        }
        Ok(())
    }
}

/// A canary's message is nothing that anybody could take for anything else.
pub(super) fn canary(message: &[u8]) -> Result<(), Refusal> {
    if message.starts_with(CANARY_PREFIX) && message.len() <= CANARY_MOST { Ok(()) } else { Err(Refusal::Canary) }
}

/// A tree head: the text of a signed note (C2SP tlog-checkpoint): origin, size and root hash, a line each.
pub(super) fn checkpoint(message: &[u8]) -> Result<(), Refusal> {
    let text = std::str::from_utf8(message).map_err(|_| Refusal::Checkpoint)?;
    let whole = text.len() <= CHECKPOINT_MOST && text.ends_with('\n') && !text.starts_with('\n');
    let mut lines = text.lines().skip(1);
    let size = lines.next().is_some_and(|size| size.parse::<u64>().is_ok());
    let hash = lines.next().is_some_and(|hash| hash.len() == 44);
    if whole && size && hash { Ok(()) } else { Err(Refusal::Checkpoint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_and_checkpoints_are_told_apart_from_all_else() {
        let hash = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let good = format!("example.org/log\n42\n{hash}\n");
        assert_eq!(checkpoint(good.as_bytes()), Ok(()));
        assert_eq!(canary(&super::super::canary_message()), Ok(()));
        let bad: [&[u8]; 8] = [
            b"",
            b"\x30\x03\x02\x01\x00",
            b"example.org/log\n",
            b"example.org/log\n42\nshort\n",
            b"example.org/log\n-1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            b"example.org/log\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            b"\xff\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            b"istio-hsm-ca canar",
        ];
        for message in bad {
            assert_eq!(checkpoint(message), Err(Refusal::Checkpoint), "{message:?}");
            assert_eq!(canary(message), Err(Refusal::Canary), "{message:?}");
        }
        assert_eq!(canary(&[CANARY_PREFIX, &[0; 100]].concat()), Err(Refusal::Canary));
    }
}
