//! The serial numbers that this process has signed: none is used for two certificates.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use super::Refusal;

/// Minimum number of remembered certificates, and half of the maximum: more than a mesh of 60,000 workloads renews
/// within the usual lifetime of a certificate, a day. Both halves take 9 MB when full.
const HALF: usize = 131_072;

/// Signed certificates, as 16 bytes each: hashes of serial number and content. Their key is random for each process, so
/// collisions cannot be constructed, and happen by chance once in 10^13 certificates.
///
/// Bounded: when the newer half is full, the older one is dropped.
#[derive(Debug, Default)]
pub(crate) struct SignedSerials {
    hasher: RandomState,
    newer: HashMap<u64, u64>,
    older: HashMap<u64, u64>,
}

impl SignedSerials {
    /// Whether the certificate is new. A daemon requests the same certificate again if it does not know that it was
    /// signed, which does not create a second one.
    pub(crate) fn is_new(&self, serial: &[u8], tbs: &[u8]) -> Result<bool, Refusal> {
        let key = self.hasher.hash_one(serial);
        match self.newer.get(&key).or_else(|| self.older.get(&key)) {
            None => Ok(true),
            Some(content) if *content == self.hasher.hash_one(tbs) => Ok(false),
            Some(_) => Err(Refusal::Serial),
        }
    }

    /// Stores a certificate.
    pub(crate) fn insert(&mut self, serial: &[u8], tbs: &[u8]) {
        if self.newer.len() == HALF {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(self.hasher.hash_one(serial), self.hasher.hash_one(tbs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_stands_for_one_certificate_until_it_is_forgotten() {
        let mut serials = SignedSerials::default();
        assert_eq!(serials.is_new(b"1", b"first"), Ok(true));
        serials.insert(b"1", b"first");
        assert_eq!(serials.is_new(b"1", b"first"), Ok(false));
        assert_eq!(serials.is_new(b"1", b"second"), Err(Refusal::Serial));
        let mut others = (0..).map(|number: u32| number.to_be_bytes());
        for serial in others.by_ref().take(HALF) {
            serials.insert(&serial, b"other");
        }
        assert_eq!(serials.is_new(b"1", b"second"), Err(Refusal::Serial), "after as many as are remembered");
        for serial in others.take(HALF) {
            serials.insert(&serial, b"other");
        }
        assert_eq!(serials.is_new(b"1", b"second"), Ok(true));
        assert!(serials.newer.len() + serials.older.len() <= 2 * HALF);
    }
}
