//! A number of turns that are waited for in a fair order.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Client, Network};

/// A limited number of turns. They are granted to networks in turn, within a network to connections in turn, and within a
/// connection in order of arrival.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Ring<Network, Ring<u64, VecDeque<oneshot::Sender<Turn>>>>,
}

/// A turn, which ends when dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// So many at once; at least one.
    #[must_use]
    pub fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: at_once.max(1), waiting: Ring::default() }) })
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    pub async fn take(self: &Arc<Self>, client: Client) -> Turn {
        let granted = {
            let mut state = self.state.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(Arc::clone(self)));
            }
            let (sender, granted) = oneshot::channel();
            state.waiting.part(client.network).part(client.connection).push_back(sender);
            granted
        };
        // The sender is dropped without a turn only when `self` is.
        granted.await.unwrap_or(Turn(None))
    }

    /// Gives a turn that ended to the next who still waits.
    fn pass_on(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while let Some(next) = state.waiting.next() {
            match next.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It no longer waits. The turn must not be passed on by its drop: the lock is held.
                Err(mut turn) => turn.0 = None,
            }
        }
        state.free += 1;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

/// Something from which the next one is taken.
trait Line {
    type Item;
    fn next(&mut self) -> Option<Self::Item>;
    fn is_empty(&self) -> bool;
}

impl<T> Line for VecDeque<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.pop_front()
    }

    fn is_empty(&self) -> bool {
        VecDeque::is_empty(self)
    }
}

/// Lines by key, each of which gives one in turn.
#[derive(Debug)]
struct Ring<K, L> {
    order: VecDeque<K>,
    lines: HashMap<K, L>,
}

impl<K, L> Default for Ring<K, L> {
    fn default() -> Self {
        Self { order: VecDeque::new(), lines: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, L: Default> Ring<K, L> {
    fn part(&mut self, key: K) -> &mut L {
        self.lines.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            L::default()
        })
    }
}

impl<K: Copy + Eq + Hash, L: Line> Line for Ring<K, L> {
    type Item = L::Item;

    fn next(&mut self) -> Option<L::Item> {
        let key = self.order.pop_front()?;
        let line = self.lines.get_mut(&key)?;
        let next = line.next();
        if line.is_empty() {
            self.lines.remove(&key);
        } else {
            self.order.push_back(key);
        }
        next
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::IpAddr, task::Poll};

    use super::*;

    fn client(network: u8, connection: u64) -> Client {
        Client { network: IpAddr::from([192, 0, 2, network]).into(), connection }
    }

    /// The order in which clients get their turns.
    async fn order(turns: &Arc<Turns>, clients: &[(u8, u64)]) -> Vec<(u8, u64)> {
        let first = turns.take(client(0, 0)).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for &(network, connection) in clients {
            let (turns, order) = (Arc::clone(turns), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(client(network, connection)).await;
                order.lock().push((network, connection));
            }));
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        Arc::into_inner(served).unwrap().into_inner()
    }

    #[tokio::test]
    async fn turns_alternate_between_networks_and_within_one_between_connections() {
        let turns = Turns::new(1);
        let served = order(&turns, &[(1, 1), (1, 1), (1, 1), (1, 1), (1, 2), (2, 9), (2, 9)]).await;
        assert_eq!(served, [(1, 1), (2, 9), (1, 2), (2, 9), (1, 1), (1, 1), (1, 1)]);
    }

    #[tokio::test]
    async fn client_that_stops_waiting_loses_no_turn() {
        let turns = Turns::new(2);
        let held = (turns.take(client(1, 1)).await, turns.take(client(1, 1)).await);
        {
            let mut waiting = [Box::pin(turns.take(client(1, 2))), Box::pin(turns.take(client(2, 3)))];
            for one in &mut waiting {
                assert!(poll_fn(|cx| Poll::Ready(one.as_mut().poll(cx).is_pending())).await);
            }
            drop(held);
            // Both leave now, one of them with its turn in its hands.
        }
        let state = turns.state.lock();
        assert_eq!(state.free, 2);
        assert!(state.waiting.is_empty() && state.waiting.lines.is_empty());
    }
}
