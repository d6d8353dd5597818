//! What a token's hosts report: identity, signature counts, call statistics.

use std::sync::atomic::Ordering;

use super::State;
use token_host::protocol::{Kind, Status};

/// Maximum number of requests in flight to a host per session: enough for batches, and few enough that the others wait
/// in the queues, where expired requests are dropped.
const WINDOW_PER_SESSION: usize = 32;

impl State {
    /// Adds the call statistics of a host that ends.
    pub(in super::super) fn final_report(&mut self, status: Status) {
        self.add_calls(&status);
        (self.status.instance, self.status.calls) = (status.instance, status.calls);
        self.status.call_errors = status.call_errors;
    }

    /// Adds what a host has counted since its last report.
    fn add_calls(&mut self, status: &Status) {
        let same = status.instance == self.status.instance;
        let before = if same { (&*self.status.calls, &*self.status.call_errors) } else { (&[][..], &[][..]) };
        self.calls.add((&status.calls, &status.call_errors), before);
    }

    /// Processes a host's status, and counts the certificates that it has signed since the last one.
    pub(in super::super) fn reported(&mut self, status: Status) {
        self.window = WINDOW_PER_SESSION * usize::try_from(status.sessions.max(1)).unwrap_or(1);
        let signed = by_ca_keys(&status);
        // What a host signed before it served this process is not in this process's log.
        let known = if self.reported_by == self.host { by_ca_keys(&self.status) } else { signed };
        self.reported_by = self.host;
        self.add_calls(&status);
        self.status = status;
        self.handle.counters.reported.fetch_add(signed.saturating_sub(known), Ordering::Relaxed);
    }
}

/// The number of certificates and CRLs that a host has signed, by its own count: what the log has intents for.
fn by_ca_keys(status: &Status) -> u64 {
    let counted = |kind| match kind {
        Kind::Crl | Kind::Intermediate | Kind::Leaf => true,
        Kind::Canary | Kind::Checkpoint => false,
    };
    status.signed.iter().filter(|signed| counted(signed.kind)).map(|signed| signed.count).sum()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::breaker::Event, Token},
        *,
    };
    use token_host::protocol::KeyCount;

    #[test]
    fn certificates_are_counted_from_the_first_report_of_each_host() {
        let status = |leaves, canaries| Status {
            signed: [(Kind::Leaf, leaves), (Kind::Crl, 0), (Kind::Canary, canaries)]
                .map(|(kind, count)| KeyCount { key: "aa".to_owned(), kind, count })
                .into(),
            ..Status::default()
        };
        let token = Token::new("one".into(), false);
        let mut token = token.lock();
        let counted = |token: &mut State, status| {
            let before = token.handle.counters.reported.load(Ordering::Relaxed);
            token.reported(status);
            token.handle.counters.reported.load(Ordering::Relaxed) - before
        };
        token.connected();
        assert_eq!(counted(&mut token, status(7, 1)), 0, "signed before this process knew the host");
        assert_eq!(counted(&mut token, status(9, 5)), 2);
        assert_eq!(counted(&mut token, status(9, 6)), 0);
        token.disconnected(Event::Disconnected, "gone");
        token.connected();
        assert_eq!(counted(&mut token, status(0, 0)), 0);
        assert_eq!(counted(&mut token, status(3, 0)), 3);
    }
}
