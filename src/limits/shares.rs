//! A resource of fixed size, shared by network address.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::Network;

/// How many times the free rest an address may hold ("dynamic thresholds", Choudhury and Hahne 1998). With three, one address
/// gets up to 3/4, and several that go on asking come to equal shares. Nothing is taken away from who holds it: where that
/// is for long, the caller must see to it that room is made.
const TIMES_FREE: usize = 3;

/// A resource of fixed size: connections, bytes, places.
#[derive(Debug)]
pub struct Shares {
    size: usize,
    most: usize,
    held: Mutex<Amounts>,
}

#[derive(Debug, Default)]
struct Amounts {
    total: usize,
    by_network: HashMap<Network, usize>,
}

/// Why nothing more can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The address holds its share.
    #[error("this address has its share")]
    Address,
    /// Nothing is free.
    #[error("all are in use")]
    Total,
}

/// A part of the resource, given back when dropped.
#[derive(Debug)]
pub struct Held {
    shares: Arc<Shares>,
    network: Network,
    amount: usize,
}

impl Shares {
    /// A resource of a size.
    #[must_use]
    pub fn new(size: usize) -> Arc<Self> {
        Self::with_most_per_address(size, None)
    }

    /// A resource of which no address may hold more than a fixed amount either.
    #[must_use]
    pub fn with_most_per_address(size: usize, most: Option<usize>) -> Arc<Self> {
        Arc::new(Self { size, most: most.unwrap_or(size), held: Mutex::default() })
    }

    /// Takes a part.
    ///
    /// # Errors
    /// When too little is free, or the address holds its share.
    pub fn take(self: &Arc<Self>, network: Network, amount: usize) -> Result<Held, Full> {
        self.held.lock().add(self, network, amount)?;
        Ok(Held { shares: Arc::clone(self), network, amount })
    }

    /// Takes a part even if too little is free: for one that replaces another which is about to be given back.
    #[must_use]
    pub fn replace(self: &Arc<Self>, network: Network, amount: usize) -> Held {
        let mut held = self.held.lock();
        held.total += amount;
        *held.by_network.entry(network).or_default() += amount;
        Held { shares: Arc::clone(self), network, amount }
    }

    /// How much is held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.lock().total
    }
}

impl Amounts {
    fn add(&mut self, shares: &Shares, network: Network, amount: usize) -> Result<(), Full> {
        let free = shares.size.saturating_sub(self.total);
        if amount > free {
            return Err(Full::Total);
        }
        let of_network = self.by_network.entry(network).or_default();
        let wanted = *of_network + amount;
        if *of_network > 0 && wanted > shares.most.min(free.saturating_mul(TIMES_FREE)) {
            return Err(Full::Address);
        }
        *of_network = wanted;
        self.total += amount;
        Ok(())
    }
}

impl Held {
    /// Takes more for the same purpose.
    ///
    /// # Errors
    /// As [`Shares::take`]; what was held stays.
    pub fn grow(&mut self, amount: usize) -> Result<(), Full> {
        self.shares.held.lock().add(&self.shares, self.network, amount)?;
        self.amount += amount;
        Ok(())
    }

    /// Takes more even if too little is free, as [`Shares::replace`].
    pub fn grow_by_replacing(&mut self, amount: usize) {
        let mut held = self.shares.held.lock();
        held.total += amount;
        *held.by_network.entry(self.network).or_default() += amount;
        self.amount += amount;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.total = held.total.saturating_sub(self.amount);
        if let Some(of_network) = held.by_network.get_mut(&self.network) {
            *of_network = of_network.saturating_sub(self.amount);
            if *of_network == 0 {
                held.by_network.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn network(n: u8) -> Network {
        IpAddr::from([192, 0, 2, n]).into()
    }

    fn fill(shares: &Arc<Shares>, n: u8) -> Vec<Held> {
        std::iter::from_fn(|| shares.take(network(n), 1).ok()).collect()
    }

    #[test]
    fn one_address_gets_three_quarters_and_others_find_room() {
        let shares = Shares::new(1000);
        let first = fill(&shares, 1);
        assert_eq!(first.len(), 750);
        assert_eq!(shares.take(network(1), 1).unwrap_err(), Full::Address);
        let others: Vec<_> = (2..=4).map(|n| fill(&shares, n)).collect();
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [188, 47, 12]);
        drop(first);
        assert!(fill(&shares, 2).len() > 300, "the share grows with what is free");
    }

    /// What is held for a short time, as requests are, comes to equal shares.
    #[test]
    fn addresses_that_go_on_asking_come_to_equal_shares() {
        let shares = Shares::new(1000);
        let mut held: Vec<std::collections::VecDeque<Held>> = (1..=4).map(|_| Default::default()).collect();
        for round in 0..20_000 {
            let n = round % held.len();
            let of_address = &mut held[n];
            // Each gives back one and asks for three.
            drop(of_address.pop_front());
            of_address.extend((0..3).filter_map(|_| shares.take(network(n as u8), 1).ok()));
        }
        let held: Vec<usize> = held.iter().map(|of_address| of_address.len()).collect();
        assert!(held.iter().all(|held| (215..=240).contains(held)), "{held:?}: 3/13 each");
    }

    #[test]
    fn a_small_resource_can_be_used_whole() {
        for size in 1..=3 {
            let shares = Shares::new(size);
            assert_eq!(fill(&shares, 1).len(), size);
        }
        let shares = Shares::new(2);
        let _all = fill(&shares, 1);
        assert_eq!(shares.take(network(2), 1).unwrap_err(), Full::Total);
    }

    #[test]
    fn a_fixed_amount_per_address_holds_too_and_everything_is_given_back() {
        let shares = Shares::with_most_per_address(100, Some(4));
        let mut held = fill(&shares, 1);
        assert_eq!(held.len(), 4);
        assert_eq!(held[0].grow(1), Err(Full::Address));
        let mut other = shares.take(network(2), 1).unwrap();
        other.grow(2).unwrap();
        let replacing = shares.replace(network(1), 1);
        assert_eq!(shares.held(), 8);
        drop((held, other, replacing));
        assert_eq!(shares.held(), 0);
        assert!(shares.held.lock().by_network.is_empty());
    }
}
