//! What a connection counts for in the limits, from its acceptance to its end.
//!
//! A connection waits for its ClientHello, is opened, and is authenticated once a certificate was issued on it; before
//! that it is unauthenticated. A connection is idle while no complete request is in progress on it: the daemon waits for
//! its client. Idle connections make room: for a new connection, for one that is opened while there are too many
//! unauthenticated ones, and for a stream that finds no memory. Those that have waited longest go first, authenticated
//! ones last: their agents connect again when they need a certificate.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
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

#[derive(Debug, Default)]
struct Idle {
    connections: Queue,
    /// Those with streams, which hold memory.
    with_streams: Queue,
}

/// Idle connections in the order in which they are dropped.
#[derive(Debug, Default)]
struct Queue {
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

/// The order in which idle connections are dropped: the number is larger the later it entered the queue.
type Rank = (Stage, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has not sent a complete ClientHello.
    Waiting,
    /// Its handshake has begun, or it needs none.
    Opened,
    /// A certificate was issued on it.
    Authenticated,
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
    stage: Stage,
    /// Complete requests in progress, or one more while the connection waits for the daemon.
    busy: usize,
    /// Streams, each from its headers until its response is sent.
    streams: usize,
    /// Its places in the queues.
    idle: Option<Rank>,
    with_streams: Option<Rank>,
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
            let mut idle = idle.lock();
            let any = Stage::Waiting..=Stage::Authenticated;
            let dropped = idle.connections.drop_oldest(network, full, any, None, Duration::ZERO);
            if dropped { Ok(open.replace(network, 1)) } else { Err(full) }
        })?;
        let connection = numbers.fetch_add(1, Ordering::Relaxed);
        let standing = Standing {
            connections: Arc::clone(&self.0),
            client: Client { network, connection },
            cut: all.child_token(),
            authenticated: AtomicBool::new(false),
            state: Mutex::new(State {
                stage: Stage::Waiting,
                busy: 0,
                streams: 0,
                idle: None,
                with_streams: None,
                unauthenticated: None,
            }),
            _open: held,
        };
        standing.change(|_| ());
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
        self.change(|state| state.busy += 1);
        Busy(Arc::clone(self))
    }

    /// The connection has one more stream until the value is dropped.
    #[must_use]
    pub fn stream(self: &Arc<Self>) -> Stream {
        self.change(|state| state.streams += 1);
        Stream(Arc::clone(self))
    }

    /// Waits for a place among the unauthenticated connections, a free one or that of one that has been idle for a while,
    /// and counts the connection as opened.
    pub async fn open(&self) {
        while !self.try_open() {
            tokio::time::sleep(RETRY).await;
        }
    }

    fn try_open(&self) -> bool {
        let unauthenticated = &self.connections.unauthenticated;
        let network = self.client.network;
        let held = unauthenticated.take(network, 1).or_else(|full| {
            let opened = Stage::Opened..=Stage::Opened;
            let dropped = self.idle().connections.drop_oldest(network, full, opened, None, GRACE);
            if dropped { Ok(unauthenticated.replace(network, 1)) } else { Err(full) }
        });
        let Ok(held) = held else { return false };
        self.change(|state| {
            state.unauthenticated = Some(held);
            state.stage = Stage::Opened;
        });
        true
    }

    /// Drops another idle connection for the memory of its streams: one of the same address, or any if nothing is free.
    /// Returns whether there was one.
    #[must_use]
    pub fn make_room(&self, full: Full) -> bool {
        let own = self.state().with_streams;
        let opened = Stage::Opened..=Stage::Authenticated;
        self.idle().with_streams.drop_oldest(self.client.network, full, opened, own, Duration::ZERO)
    }

    /// A certificate was issued on the connection.
    pub fn authenticate(&self) {
        if !self.authenticated.swap(true, Ordering::Relaxed) {
            self.change(|state| {
                state.unauthenticated = None;
                state.stage = Stage::Authenticated;
            });
        }
    }

    /// Changes the state, and with it the places in the queues.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let state = &mut *state;
        change(state);
        let State { stage, busy, streams, .. } = *state;
        let is_idle = busy == 0;
        let mut idle = self.idle();
        let Idle { connections, with_streams } = &mut *idle;
        let places =
            [(&mut state.idle, connections, is_idle), (&mut state.with_streams, with_streams, is_idle && streams > 0)];
        for (place, queue, belongs) in places {
            if place.is_some() == belongs && place.is_none_or(|(at, _)| at == stage) {
                continue;
            }
            if let Some(rank) = place.take() {
                queue.remove(rank, self.client.network);
            }
            if belongs {
                let rank = (stage, self.connections.numbers.fetch_add(1, Ordering::Relaxed));
                queue.insert(rank, self.client.network, self.cut.clone());
                *place = Some(rank);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.connections.idle.lock()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        metrics::gauge!("istio_hsm_ca_connections").decrement(1);
        let (idle, with_streams) = {
            let state = self.state();
            (state.idle, state.with_streams)
        };
        let mut queues = self.idle();
        if let Some(rank) = idle {
            queues.connections.remove(rank, self.client.network);
        }
        if let Some(rank) = with_streams {
            queues.with_streams.remove(rank, self.client.network);
        }
    }
}

/// Keeps a connection from being dropped as idle.
#[derive(Debug)]
pub struct Busy(Arc<Standing>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|state| state.busy -= 1);
    }
}

/// A stream of a connection.
#[derive(Debug)]
pub struct Stream(Arc<Standing>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.change(|state| state.streams -= 1);
    }
}

impl Queue {
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

    /// Drops the connection that has been idle longest, at one of these stages, but not a certain one: one of this address,
    /// or any if nothing is free. Returns whether there was one that was idle for so long.
    fn drop_oldest(
        &mut self,
        network: Network,
        full: Full,
        stages: RangeInclusive<Stage>,
        not: Option<Rank>,
        idle_for: Duration,
    ) -> bool {
        let range = (*stages.start(), 0)..=(*stages.end(), u64::MAX);
        // One that was dropped by the other queue stays here until it has ended.
        let can_go = |rank: &Rank| {
            Some(*rank) != not && self.connections.get(rank).is_some_and(|entry| !entry.cut.is_cancelled())
        };
        let of_network =
            self.by_network.get(&network).and_then(|ranks| ranks.range(range.clone()).copied().find(can_go));
        let oldest = of_network.or_else(|| match full {
            Full::Address => None,
            Full::Total => self.connections.range(range).map(|(rank, _)| *rank).find(can_go),
        });
        let Some(rank) = oldest else { return false };
        let Some(entry) = self.connections.get(&rank) else { return false };
        if entry.since.elapsed() < idle_for {
            return false;
        }
        let network = entry.network;
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
        let idle = connections.0.idle.lock();
        for queue in [&idle.connections, &idle.with_streams] {
            assert!(queue.connections.is_empty() && queue.by_network.is_empty());
        }
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
        let _busy: Vec<_> = authenticated.iter().map(Standing::busy).collect();
        assert_eq!(full.admit(address(9), &all).unwrap_err(), Full::Total);
        assert!(authenticated.iter().all(|one| !one.cut().is_cancelled()));
    }

    #[test]
    fn authenticated_connections_make_room_after_all_others() {
        let (connections, all) = connections(3, 3);
        let authenticated: Vec<_> = (1..=2).map(|n| connections.admit(address(n), &all).unwrap()).collect();
        authenticated.iter().for_each(|one| one.authenticate());
        let other = connections.admit(address(3), &all).unwrap();
        assert!(other.try_open());
        let cut = || [&authenticated[0], &authenticated[1], &other].map(|one| one.cut().is_cancelled());
        let _next = connections.admit(address(4), &all).unwrap().busy();
        assert_eq!(cut(), [false, false, true]);
        let _last = connections.admit(address(5), &all).unwrap().busy();
        assert_eq!(cut(), [true, false, true], "the one that has been idle longest");
    }

    #[test]
    fn connections_with_streams_make_room_for_the_streams_of_others() {
        let (connections, all) = connections(8, 8);
        let opened: Vec<_> = (1..=4).map(|_| connections.admit(address(1), &all).unwrap()).collect();
        opened.iter().for_each(|one| assert!(one.try_open()));
        opened[1].authenticate();
        let streams: Vec<_> = opened[..3].iter().map(Standing::stream).collect();
        let busy = opened[2].busy();
        assert!(opened[0].make_room(Full::Address));
        let cut = |opened: &[Arc<Standing>]| opened.iter().map(|one| one.cut().is_cancelled()).collect::<Vec<_>>();
        assert_eq!(
            cut(&opened),
            [false, true, false, false],
            "neither its own, nor a busy one, nor one without streams"
        );
        drop(busy);
        assert!(opened[0].make_room(Full::Total));
        assert_eq!(cut(&opened), [false, true, true, false]);
        assert!(!opened[0].make_room(Full::Total), "none is left");
        drop(streams);
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
