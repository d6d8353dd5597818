//! CRLs: whose they may be, for how long, and which number may follow an earlier one.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    time::SystemTime,
};

use super::{CaCertificate, Refusal, Rules};
use crate::protocol::{Fingerprint, Sign};
use pki::{
    crl::TBS_MAX,
    lint::{self, CrlFacts},
    profile::CLOCK_SKEW,
};

/// The last CRL that this process has signed with each CA key: its number, and a hash of its content whose key is random
/// for each process.
#[derive(Debug, Default)]
pub(super) struct SignedCrls {
    hasher: RandomState,
    last: BTreeMap<Fingerprint, (u64, u64)>,
}

impl SignedCrls {
    /// Stores a CRL that is about to be signed. Its number is greater than the last one (RFC 5280, section 5.2.3), unless
    /// it is the same list, which a daemon requests again if it does not know that it was signed.
    pub(super) fn admit(&mut self, key: Fingerprint, number: u64, tbs: &[u8]) -> Result<(), Refusal> {
        let content = self.hasher.hash_one(tbs);
        match self.last.get(&key) {
            Some((signed, _)) if number < *signed => return Err(Refusal::CrlNumber { number, signed: *signed }),
            Some((signed, other)) if number == *signed && content != *other => {
                return Err(Refusal::CrlNumberTwice(number));
            }
            Some(_) | None => {}
        }
        self.last.insert(key, (number, content));
        Ok(())
    }
}

impl Rules {
    /// Checks a CRL against the rules, for one of the CA certificates with the issuer's key.
    pub(super) fn crl(
        &self,
        sign: &Sign<'_>,
        facts: &CrlFacts<'_>,
        cas: &[CaCertificate],
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let longest = self.max_crl_lifetime.ok_or(Refusal::Crl)?;
        if sign.message.len() > TBS_MAX {
            return Err(Refusal::CrlSize { bytes: sign.message.len(), most: TBS_MAX });
        }
        let mut last = Err(Refusal::Issuer);
        for ca in cas.iter().filter(|ca| ca.fingerprint == sign.key) {
            last = lint::crl(facts, &ca.ca.as_ca(), longest).map_err(Refusal::from);
            if last.is_ok() {
                break;
            }
        }
        last?;
        // As for certificates: thisUpdate is CLOCK_SKEW before the request, which may take as long to arrive, and the two
        // clocks may differ by as much.
        let before = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
        if facts.next_update <= now || before(facts.this_update, now) > CLOCK_SKEW * 2 {
            return Err(Refusal::CrlPast);
        }
        if before(now, facts.this_update) > CLOCK_SKEW {
            return Err(Refusal::CrlNotYet);
        }
        if before(now, facts.next_update) > longest.saturating_add(CLOCK_SKEW) {
            return Err(Refusal::CrlTooLate);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_each_key_only_grows() {
        let mut crls = SignedCrls::default();
        crls.admit([1; 32], 5, b"five").unwrap();
        crls.admit([1; 32], 5, b"five").unwrap();
        assert_eq!(crls.admit([1; 32], 5, b"another five"), Err(Refusal::CrlNumberTwice(5)));
        assert_eq!(crls.admit([1; 32], 4, b"four"), Err(Refusal::CrlNumber { number: 4, signed: 5 }));
        crls.admit([2; 32], 1, b"another CA's").unwrap();
        crls.admit([1; 32], 6, b"six").unwrap();
        assert_eq!(crls.admit([1; 32], 5, b"five"), Err(Refusal::CrlNumber { number: 5, signed: 6 }));
    }
}
