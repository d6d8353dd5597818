//! What a connection counts for in the limits, from its acceptance to its end.
//!
//! A connection waits for its ClientHello, is opened, and is authenticated once a certificate was issued on it; before
//! that it is unauthenticated. A new connection that finds no room, and one that is opened while there are too many
//! unauthenticated ones, takes the place of the oldest connection that does nothing: which waits for its client, and on
//! which no complete request is in progress.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::settings::Limits;
use crate::limits::{Client, Full, Held, Network, Shares};

/// How long an unauthenticated opened connection may be idle although another waits for its place. When a whole mesh comes
/// at once, its agents are slow as well.
const GRACE: Duration = Duration::from_secs(2);
/// How often a connection looks for a place among the unauthenticated ones.
const RETRY: Duration = Duration::from_millis(200);

/// All connections of the endpoint.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    open: Arc<Shares>,
    /// Those that are opened and not authenticated.
    unauthenticated: Arc<Shares>,
    numbers: AtomicU64,
    idle: Mutex<Idle>,
}

/// Connections that do nothing, those without a ClientHello first, and of each kind the oldest first.
#[derive(Debug, Default)]
struct Idle {
    connections: BTreeMap<Rank, Entry>,
    by_network: HashMap<Network, BTreeSet<Rank>>,
}

/// An idle connection.
#[derive(Debug)]
struct Entry {
    network: Network,
    cut: CancellationToken,
    since: Instant,
}

/// The order in which idle connections are dropped: the number is larger the later it became idle.
type Rank = (Stage, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has not sent a complete ClientHello.
    Waiting,
    /// Its handshake has begun, or it needs none.
    Opened,
}

/// One connection's place in the limits, given back when dropped.
#[derive(Debug)]
pub struct Standing {
    connections: Arc<Inner>,
    client: Client,
    cut: CancellationToken,
    authenticated: AtomicBool,
    state: Mutex<State>,
    _open: Held,
}

#[derive(Debug)]
struct State {
    rank: Rank,
    /// Complete requests in progress, or one more while the connection waits for the daemon.
    busy: usize,
    unauthenticated: Option<Held>,
}

impl Connections {
    /// Limits connections.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self(Arc::new(Inner {
            open: Shares::with_most_per_address(limits.connections, limits.connections_per_address),
            unauthenticated: Shares::new(limits.unauthenticated_connections),
            numbers: AtomicU64::new(0),
            idle: Mutex::default(),
        }))
    }

    /// Counts a connection in. `all` cuts every connection.
    ///
    /// # Errors
    /// When there is no room, and no idle connection of its address, or of any if none are left, gives its place.
    pub fn admit(&self, address: IpAddr, all: &CancellationToken) -> Result<Arc<Standing>, Full> {
        let Inner { open, numbers, idle, .. } = &*self.0;
        let network = Network::from(address);
        let held = open.take(network, 1).or_else(|full| {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let dropped = idle.drop_oldest_of(network, Stage::Waiting, None, Duration::ZERO)
                || (full == Full::Total && idle.drop_oldest(Stage::Waiting, None, Duration::ZERO));
            if dropped { Ok(open.replace(network, 1)) } else { Err(full) }
        })?;
        let connection = numbers.fetch_add(1, Ordering::Relaxed);
        let standing = Standing {
            connections: Arc::clone(&self.0),
            client: Client { network, connection },
            cut: all.child_token(),
            authenticated: AtomicBool::new(false),
            state: Mutex::new(State { rank: (Stage::Waiting, connection), busy: 0, unauthenticated: None }),
            _open: held,
        };
        standing.idle().insert((Stage::Waiting, connection), network, standing.cut.clone());
        metrics::gauge!("istio_hsm_ca_connections").increment(1);
        Ok(Arc::new(standing))
    }

    /// How many connections there are, handshakes included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.open.held()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Standing {
    /// Whose connection it is.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
    }

    /// Cancelled when the connection must end.
    #[must_use]
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Whether a certificate was issued on the connection.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// The connection waits for the daemon, and not for its client, until the value is dropped.
    #[must_use]
    pub fn busy(self: &Arc<Self>) -> Busy {
        if self.is_authenticated() {
            return Busy(None);
        }
        let mut state = self.state();
        state.busy += 1;
        if state.busy == 1 {
            self.idle().remove(state.rank, self.client.network);
        }
        Busy(Some(Arc::clone(self)))
    }

    /// Waits for a place among the unauthenticated connections, a free one or that of one that has been idle for a while,
    /// and counts the connection as opened.
    pub async fn open(&self) {
        while !self.try_open() {
            tokio::time::sleep(RETRY).await;
        }
    }

    fn try_open(&self) -> bool {
        let Inner { unauthenticated, numbers, .. } = &*self.connections;
        let mut state = self.state();
        let mut idle = self.idle();
        let network = self.client.network;
        let held = unauthenticated.take(network, 1).or_else(|full| {
            let dropped = idle.drop_oldest_of(network, Stage::Opened, None, GRACE)
                || (full == Full::Total && idle.drop_oldest(Stage::Opened, None, GRACE));
            if dropped { Ok(unauthenticated.replace(network, 1)) } else { Err(full) }
        });
        let Ok(held) = held else { return false };
        idle.remove(state.rank, network);
        state.unauthenticated = Some(held);
        state.rank = (Stage::Opened, numbers.fetch_add(1, Ordering::Relaxed));
        if state.busy == 0 {
            idle.insert(state.rank, network, self.cut.clone());
        }
        true
    }

    /// Drops the oldest idle unauthenticated connection except this one for what it holds: one of the same address, or any
    /// if nothing is free. Returns whether there was one.
    #[must_use]
    pub fn make_room(&self, full: Full) -> bool {
        let own = self.state().rank;
        let mut idle = self.idle();
        idle.drop_oldest_of(self.client.network, Stage::Opened, Some(own), Duration::ZERO)
            || (full == Full::Total && idle.drop_oldest(Stage::Opened, Some(own), Duration::ZERO))
    }

    /// A certificate was issued on the connection.
    pub fn authenticate(&self) {
        if !self.authenticated.swap(true, Ordering::Relaxed) {
            let mut state = self.state();
            state.unauthenticated = None;
            self.idle().remove(state.rank, self.client.network);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.connections.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        metrics::gauge!("istio_hsm_ca_connections").decrement(1);
        let rank = self.state().rank;
        self.idle().remove(rank, self.client.network);
    }
}

/// Keeps a connection from being dropped as idle.
#[derive(Debug)]
pub struct Busy(Option<Arc<Standing>>);

impl Drop for Busy {
    fn drop(&mut self) {
        let Some(standing) = &self.0 else { return };
        let mut state = standing.state();
        state.busy -= 1;
        if state.busy == 0 && !standing.is_authenticated() {
            state.rank.1 = standing.connections.numbers.fetch_add(1, Ordering::Relaxed);
            standing.idle().insert(state.rank, standing.client.network, standing.cut.clone());
        }
    }
}

impl Idle {
    fn insert(&mut self, rank: Rank, network: Network, cut: CancellationToken) {
        self.connections.insert(rank, Entry { network, cut, since: Instant::now() });
        self.by_network.entry(network).or_default().insert(rank);
    }

    fn remove(&mut self, rank: Rank, network: Network) -> Option<CancellationToken> {
        let Entry { cut, .. } = self.connections.remove(&rank)?;
        if let Some(ranks) = self.by_network.get_mut(&network) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.by_network.remove(&network);
            }
        }
        Some(cut)
    }

    /// Drops the connection of a network that has been idle longest, at a stage or a later one, but not a certain one; says
    /// whether there was one that was idle for so long.
    fn drop_oldest_of(&mut self, network: Network, stage: Stage, not: Option<Rank>, idle_for: Duration) -> bool {
        let ranks = self.by_network.get(&network);
        let oldest = ranks.and_then(|ranks| ranks.range((stage, 0)..).copied().find(|rank| Some(*rank) != not));
        let oldest =
            oldest.filter(|rank| self.connections.get(rank).is_some_and(|entry| entry.since.elapsed() >= idle_for));
        oldest.is_some_and(|rank| self.cut(rank, network))
    }

    /// The same for all networks.
    fn drop_oldest(&mut self, stage: Stage, not: Option<Rank>, idle_for: Duration) -> bool {
        let oldest = self.connections.range((stage, 0)..).find(|(rank, _)| Some(**rank) != not);
        let oldest = oldest.filter(|(_, entry)| entry.since.elapsed() >= idle_for);
        let oldest = oldest.map(|(rank, entry)| (*rank, entry.network));
        oldest.is_some_and(|(rank, network)| self.cut(rank, network))
    }

    fn cut(&mut self, rank: Rank, network: Network) -> bool {
        metrics::counter!("istio_hsm_ca_connections_dropped_total").increment(1);
        self.remove(rank, network).inspect(CancellationToken::cancel).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(connections: usize, unauthenticated_connections: usize) -> (Connections, CancellationToken) {
        let limits = Limits { connections, unauthenticated_connections, ..Limits::default() };
        (Connections::new(&limits), CancellationToken::new())
    }

    fn address(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    #[test]
    fn the_oldest_idle_connection_of_the_address_gives_its_place() {
        let (connections, all) = connections(8, 8);
        let mut first: Vec<_> = (0..6).map(|_| connections.admit(address(1), &all).unwrap()).collect();
        let other = connections.admit(address(2), &all).unwrap();
        let busy = first[0].busy();
        let seventh = connections.admit(address(1), &all).unwrap();
        let cut: Vec<bool> = first.iter().chain([&other, &seventh]).map(|one| one.cut().is_cancelled()).collect();
        assert_eq!(cut, [false, true, false, false, false, false, false, false]);
        drop(busy);
        let eighth = connections.admit(address(1), &all).unwrap();
        assert!(
            first[2].cut().is_cancelled() && !first[0].cut().is_cancelled(),
            "the first is idle again, but not longest"
        );
        first.retain(|one| !one.cut().is_cancelled());
        let all_busy: Vec<_> = first.iter().chain([&seventh, &eighth]).map(Standing::busy).collect();
        assert_eq!(connections.admit(address(1), &all).unwrap_err(), Full::Address);
        drop((all_busy, first, seventh, eighth, other));
        assert!(connections.is_empty());
        let idle = connections.0.idle.lock().unwrap();
        assert!(idle.connections.is_empty() && idle.by_network.is_empty());
    }

    #[test]
    fn new_connection_finds_room_among_many_unauthenticated_ones() {
        let (connections, all) = connections(4, 4);
        let unauthenticated: Vec<_> = (1..=4).map(|n| connections.admit(address(n), &all).unwrap()).collect();
        let _newcomer = connections.admit(address(9), &all).unwrap();
        assert!(unauthenticated[0].cut().is_cancelled() && !unauthenticated[1].cut().is_cancelled());
        let (full, all) = self::connections(2, 2);
        let authenticated: Vec<_> = (1..=2).map(|n| full.admit(address(n), &all).unwrap()).collect();
        authenticated.iter().for_each(|one| one.authenticate());
        assert_eq!(full.admit(address(9), &all).unwrap_err(), Full::Total);
        assert!(authenticated.iter().all(|one| !one.cut().is_cancelled()));
    }

    #[test]
    fn unauthenticated_connections_beyond_the_limit_are_dropped_unless_busy() {
        let (connections, all) = connections(100, 3);
        let opened: Vec<_> = (1..=3).map(|n| connections.admit(address(n), &all).unwrap()).collect();
        opened.iter().for_each(|one| assert!(one.try_open()));
        let waiting = connections.admit(address(4), &all).unwrap();
        opened[0].authenticate();
        let _busy = opened[1].busy();
        let next: Vec<_> = (5..=6).map(|n| connections.admit(address(n), &all).unwrap()).collect();
        assert!(next[0].try_open());
        assert!(!next[1].try_open(), "the one that is idle is not so for long");
        std::thread::sleep(GRACE);
        assert!(next[1].try_open());
        let cut: Vec<bool> = opened.iter().chain([&waiting]).map(|one| one.cut().is_cancelled()).collect();
        assert_eq!(cut, [false, false, true, false]);
        all.cancel();
        assert!(waiting.cut().is_cancelled());
    }
}
