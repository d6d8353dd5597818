//! Cache of verified credentials, keyed by their SHA-256. Bounded and concurrent.
//!
//! The cache does not decide whether an entry is still valid: the caller checks validity and key again. Only results
//! backed by a verified signature are inserted, so that unauthenticated clients cannot evict entries.

use std::sync::Arc;

use quick_cache::sync::Cache;

/// The SHA-256 of a credential.
pub type Hash = [u8; 32];

/// Cached results of verified credentials.
pub type CredentialCache<V> = Cache<Hash, Arc<V>>;

/// The SHA-256 of a credential.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Hash {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hash = Hash::default();
    for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_is_bounded_and_keeps_the_newest_entry() {
        let cache = CredentialCache::new(64);
        for n in 0..10_000u32 {
            let hash = sha256(&n.to_be_bytes());
            cache.insert(hash, Arc::new(n));
            assert_eq!(cache.get(&hash).as_deref(), Some(&n));
        }
        assert!((32..=64).contains(&cache.len()), "{}", cache.len());
        assert!(cache.get(&sha256(&0u32.to_be_bytes())).is_none());
    }

    #[test]
    fn newer_entry_replaces_an_older_one_for_the_same_credential() {
        let cache = CredentialCache::new(16);
        let hash = sha256(b"x");
        for n in 0..100 {
            cache.insert(hash, Arc::new(n));
        }
        assert_eq!(cache.get(&hash).as_deref(), Some(&99));
        assert_eq!(cache.len(), 1);
    }
}
