//! Samples that a seed repeats.

use std::hash::{BuildHasher, RandomState};

/// The seed of this run: `FAULT_SEED`, or a new one.
pub fn fault_seed() -> u64 {
    let seed = std::env::var("FAULT_SEED").ok();
    seed.map_or_else(|| RandomState::new().hash_one(std::process::id()), |text| text.parse().expect("FAULT_SEED"))
}

/// One of the items, which must not be empty.
pub fn choose<'a, T>(items: &'a [T], state: &mut u64) -> &'a T {
    let at = next(state) % u64::try_from(items.len()).unwrap();
    &items[usize::try_from(at).unwrap()]
}

/// SplitMix64: small, and the same on all platforms.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
