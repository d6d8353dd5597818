//! Repeatable randomness: SplitMix64, seeded by SOAK_SEED or the clock.

/// A generator; the same seed produces the same numbers.
pub struct Random(u64);

impl Random {
    /// Seeds it, and prints the seed, with which the run can be repeated.
    pub fn seeded(test: &str) -> Self {
        let seed = match std::env::var("SOAK_SEED") {
            Ok(text) => text.parse().expect("SOAK_SEED must be a number"),
            Err(_) => {
                let now = process::clock::now().duration_since(std::time::UNIX_EPOCH).unwrap();
                now.as_secs() ^ u64::from(std::process::id()) << 32
            }
        };
        println!("{test}: SOAK_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, inclusive.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// One of several values.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let last = u64::try_from(all.len()).unwrap() - 1;
        &all[usize::try_from(self.between(0, last)).unwrap()]
    }
}
