//! What a token's hosts tell of themselves: who they are, what they have signed, how their calls went.

use super::Token;
use token_host::protocol::{Kind, Status};

/// Frames in flight to a host for each of its sessions: enough for batches, few enough that what waits behind them
/// waits here, where deadlines drop it.
const WINDOW: usize = 32;

impl Token {
    /// Takes the last word of a host that ends itself: how its calls went. Its keys are none any more.
    pub(in super::super) fn last_word(&mut self, status: Status) {
        self.add_calls(&status);
        (self.status.instance, self.status.calls) = (status.instance, status.calls);
        self.status.call_errors = status.call_errors;
    }

    /// Adds what a host has counted since it last told.
    fn add_calls(&mut self, status: &Status) {
        let same = status.instance == self.status.instance;
        let before = if same { (&*self.status.calls, &*self.status.call_errors) } else { (&[][..], &[][..]) };
        self.calls.add((&status.calls, &status.call_errors), before);
    }

    /// Takes what its host tells of itself; returns how many certificates the host has signed since it last told.
    pub(in super::super) fn ready(&mut self, status: Status) -> u64 {
        self.window = WINDOW * usize::try_from(status.sessions.max(1)).unwrap_or(1);
        let signed = certificates(&status);
        // What a host had signed before this process knew it is not this process's to account for.
        let known = if self.told_by == self.host { certificates(&self.status) } else { signed };
        self.told_by = self.host;
        self.add_calls(&status);
        self.status = status;
        signed.saturating_sub(known)
    }
}

/// How many certificates a host says that it has signed.
fn certificates(status: &Status) -> u64 {
    let counted = |kind| match kind {
        Kind::Intermediate | Kind::Leaf => true,
        Kind::Canary | Kind::Checkpoint => false,
    };
    status.signed.iter().filter(|signed| counted(signed.kind)).map(|signed| signed.count).sum()
}

#[cfg(test)]
mod tests {
    use super::{super::Phase, *};
    use token_host::protocol::KeyCount;

    #[test]
    fn what_hosts_tell_of_their_signatures() {
        let status = |leaves, canaries| Status {
            signed: [(Kind::Leaf, leaves), (Kind::Canary, canaries)]
                .map(|(kind, count)| KeyCount { key: "aa".to_owned(), kind, count })
                .into(),
            ..Status::default()
        };
        let mut token = Token::new("one".into());
        token.link_up();
        assert_eq!(token.ready(status(7, 1)), 0, "made before this process knew the host");
        assert_eq!(token.ready(status(9, 5)), 2);
        assert_eq!(token.ready(status(9, 6)), 0);
        token.link_down(Phase::Down, "gone");
        token.link_up();
        assert_eq!(token.ready(status(0, 0)), 0);
        assert_eq!(token.ready(status(3, 0)), 3);
    }
}
