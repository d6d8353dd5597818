//! Credentials that were verified once, by the SHA-256 of what proved them: bounded, sharded, and only positive ones.
//!
//! It never decides whether an answer still holds: who takes one out checks its time and its key again. Only what
//! a genuine signature proved comes in, so that a stranger cannot push answers out. Called by `jwt` and
//! `client_certificate`.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock},
};

/// How a credential is named: its SHA-256.
pub type Hash = [u8; 32];

/// Sixteen locks: two cores never meet on one often (the figures are in docs/PERFORMANCE.md).
const SHARDS: usize = 16;

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

/// A bounded map from credential to answer; the oldest answer goes first.
#[derive(Debug)]
pub struct CredentialCache<V> {
    shards: Vec<RwLock<Shard<V>>>,
    most_per_shard: usize,
}

#[derive(Debug)]
struct Shard<V> {
    answers: HashMap<Hash, Arc<V>>,
    order: VecDeque<Hash>,
}

impl<V> CredentialCache<V> {
    /// An empty map of at most about `most` answers.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let shard = || RwLock::new(Shard { answers: HashMap::new(), order: VecDeque::new() });
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            most_per_shard: most.div_ceil(SHARDS).max(1),
        }
    }

    /// The answer for a credential.
    #[must_use]
    pub fn get(&self, hash: &Hash) -> Option<Arc<V>> {
        let shard = self.shard(hash)?.read().unwrap_or_else(PoisonError::into_inner);
        shard.answers.get(hash).cloned()
    }

    /// Keeps an answer, in the place of an older one for the same credential.
    pub fn insert(&self, hash: Hash, answer: Arc<V>) {
        let Some(shard) = self.shard(&hash) else { return };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if shard.answers.insert(hash, answer).is_some() {
            return;
        }
        shard.order.push_back(hash);
        if shard.order.len() > self.most_per_shard
            && let Some(oldest) = shard.order.pop_front()
        {
            shard.answers.remove(&oldest);
        }
    }

    /// How many answers are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).answers.len()).sum()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, hash: &Hash) -> Option<&RwLock<Shard<V>>> {
        let first = hash.first().copied().map(usize::from)?;
        self.shards.get(first % SHARDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_the_newest_stays() {
        let cache = CredentialCache::new(64);
        for n in 0..10_000u32 {
            let hash = sha256(&n.to_be_bytes());
            cache.insert(hash, Arc::new(n));
            assert_eq!(cache.get(&hash).as_deref(), Some(&n));
        }
        assert_eq!(cache.len(), 64);
        assert!(cache.get(&sha256(&0u32.to_be_bytes())).is_none());
    }

    #[test]
    fn a_newer_answer_takes_the_place_of_an_older_one() {
        let cache = CredentialCache::new(16);
        let hash = sha256(b"x");
        for n in 0..100 {
            cache.insert(hash, Arc::new(n));
        }
        assert_eq!(cache.get(&hash).as_deref(), Some(&99));
        assert_eq!(cache.len(), 1);
    }
}
