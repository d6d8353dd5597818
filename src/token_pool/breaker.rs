//! The circuit breaker of one token: a pure table from state and event to the next state and the actions.
//!
//! [`transition`] is the whole state machine. [`Breaker`] adds the counters: repeated failures and the time of the next
//! probe. The table is rendered into docs/FAULTS.md, and a test compares every row.

use std::time::{Duration, Instant};

use super::health::Phase;
use token_host::protocol::Recovery;

/// Consecutive wrong signatures after which a serving token is taken out of service.
const MAX_WRONG_SIGNATURES: u32 = 3;
/// Consecutive requests that a serving token may fail while it shows no other failure.
const MAX_REQUEST_FAULTS: u32 = 4;
/// Consecutive failed probes after which a host is replaced.
const MAX_FAILED_PROBES: u32 = 3;
/// Initial and maximum delay between two attempts to probe a token or to start a host.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_millis(200);

/// The breaker's state. [`Phase`] is the public view, which does not distinguish `Replacing` from `Probing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No host has been reached yet.
    Starting,
    /// The last host is gone.
    Down,
    /// The last host ended because its PIN was rejected.
    PinRefused,
    /// Open: the canary key is probed.
    Probing,
    /// Open, and only a new host process helps.
    Replacing,
    /// A probe has passed; one real request at a time.
    HalfOpen,
    /// Closed.
    Serving,
}

impl State {
    fn phase(self) -> Phase {
        match self {
            Self::Starting => Phase::Starting,
            Self::Down => Phase::Down,
            Self::PinRefused => Phase::PinRefused,
            Self::Probing | Self::Replacing => Phase::Probing,
            Self::HalfOpen => Phase::HalfOpen,
            Self::Serving => Phase::Serving,
        }
    }
}

/// What happened to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A connection to a new host is established.
    Connected,
    /// The host is gone.
    Disconnected,
    /// The host is gone because the PIN is wrong or locked.
    PinRefused,
    /// The canary signature verified; without a canary key, the session answered.
    ProbePassed,
    /// The probe failed.
    ProbeFailed,
    /// A real signature verified.
    SignatureVerified,
    /// A signature did not verify.
    SignatureWrong,
    /// The same, [`MAX_WRONG_SIGNATURES`] times in a row.
    SignaturesWrong,
    /// One message could not be signed.
    RequestFault,
    /// The CA key cannot sign as it is.
    KeyFault,
    /// The session, the login or too many requests failed; the host recovers.
    TokenFault,
    /// The module, the PIN or the settings failed; the host cannot recover.
    HostFault,
    /// The half-open token's real request brought no verdict.
    TrialEnded,
}

/// What the owner of a token must do after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Count an outage, and do not trust the token again before a real signature verifies.
    TakeOutOfService,
    /// Trust the token and forget all failures.
    Trust,
    /// Forget wrong signatures.
    ForgetWrong,
    /// End the half-open token's real request.
    EndTrial,
    /// Make the host close the session of the wrong signature.
    DropSession,
    /// Look the CA key up again before it is used.
    ForgetKey,
    /// Wait longer before the next probe.
    DelayProbe,
    /// Probe at once.
    ProbeNow,
}

/// The breaker's table.
pub(super) const fn transition(state: State, event: Event) -> (State, &'static [Action]) {
    use Action::{DelayProbe, DropSession, EndTrial, ForgetKey, ForgetWrong, ProbeNow, TakeOutOfService, Trust};
    use State::{Down, HalfOpen, PinRefused, Probing, Replacing, Serving, Starting};
    const OUT: &[Action] = &[TakeOutOfService, EndTrial];
    match (event, state) {
        (Event::Connected, same) => (same, &[ProbeNow]),

        (Event::Disconnected, HalfOpen | Serving) => (Down, OUT),
        (Event::Disconnected, _) => (Down, &[]),
        (Event::PinRefused, HalfOpen | Serving) => (PinRefused, OUT),
        (Event::PinRefused, _) => (PinRefused, &[]),

        (Event::ProbePassed, Starting | Down | PinRefused | Probing) => (HalfOpen, &[]),
        (Event::ProbeFailed, Starting | Down | PinRefused | Probing) => (state, &[DelayProbe]),

        (Event::SignatureVerified, HalfOpen) => (Serving, &[Trust, EndTrial, ProbeNow]),
        (Event::SignatureVerified, Serving | Probing) => (state, &[ForgetWrong]),

        (Event::SignatureWrong, Serving | Probing | Replacing) => (state, &[DropSession]),
        (Event::SignaturesWrong, Probing | Replacing) => (Replacing, &[DropSession]),
        (Event::SignatureWrong, HalfOpen) | (Event::SignaturesWrong, HalfOpen | Serving) => {
            (Replacing, &[TakeOutOfService, EndTrial, DropSession])
        }

        // The canary signed and the real request did not: this counts as a failed probe.
        (Event::RequestFault | Event::TokenFault, HalfOpen) => (Probing, &[TakeOutOfService, EndTrial, DelayProbe]),
        (Event::TokenFault, Serving) => (Probing, OUT),
        (Event::HostFault, HalfOpen | Serving) => (Replacing, OUT),
        (Event::HostFault, Probing) => (Replacing, &[]),
        (Event::KeyFault, Probing | HalfOpen | Serving) => (state, &[ForgetKey]),

        (Event::TrialEnded, HalfOpen) => (HalfOpen, &[EndTrial]),

        // Nothing is in flight to a host that is not connected, and late replies do not change the state.
        (
            Event::ProbePassed
            | Event::ProbeFailed
            | Event::SignatureVerified
            | Event::SignatureWrong
            | Event::SignaturesWrong
            | Event::RequestFault
            | Event::KeyFault
            | Event::TokenFault
            | Event::HostFault
            | Event::TrialEnded,
            same,
        ) => (same, &[]),
    }
}

/// A token's breaker: its state with the counters behind the events.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    since: Instant,
    reason: String,
    /// Out of service since the last verified signature.
    distrusted: bool,
    wrong_signatures: u32,
    request_faults: u32,
    probes: Backoff,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Starting,
            since: now,
            reason: "its host is being started".to_owned(),
            distrusted: false,
            wrong_signatures: 0,
            request_faults: 0,
            probes: Backoff::new(now),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.phase()
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Why the token does not serve; empty while it does.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    pub(super) fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// Whether the host must be replaced.
    pub(super) fn needs_new_host(&self) -> bool {
        self.state == State::Replacing || self.probes.failures >= MAX_FAILED_PROBES
    }

    /// Whether a probe is due.
    pub(super) fn probe_is_due(&self, now: Instant) -> bool {
        !self.phase().is_ready() && now >= self.probes.next
    }

    /// The event for a fault of a real request (`ca_key`) or of another message.
    pub(super) fn fault(&mut self, recovery: Recovery, ca_key: bool) -> Event {
        match recovery {
            Recovery::FixKey if ca_key => Event::KeyFault,
            Recovery::RejectRequest if self.request_faults < MAX_REQUEST_FAULTS => {
                self.request_faults += 1;
                Event::RequestFault
            }
            Recovery::FixKey
            | Recovery::Ignore
            | Recovery::NewSession
            | Recovery::RejectRequest
            | Recovery::Relogin
            | Recovery::Retry => Event::TokenFault,
            Recovery::FixConfiguration | Recovery::FixPin | Recovery::NewProcess => Event::HostFault,
        }
    }

    /// The event for a signature that was verified.
    pub(super) fn verdict(&mut self, verified: bool) -> Event {
        if verified {
            return Event::SignatureVerified;
        }
        self.wrong_signatures += 1;
        if self.wrong_signatures < MAX_WRONG_SIGNATURES { Event::SignatureWrong } else { Event::SignaturesWrong }
    }

    /// The token has signed.
    pub(super) fn signed(&mut self) {
        self.request_faults = 0;
    }

    /// Makes a transition, and returns the actions for the token's owner.
    pub(super) fn apply(&mut self, event: Event, reason: &str, now: Instant) -> &'static [Action] {
        let (state, actions) = transition(self.state, event);
        for action in actions {
            match action {
                Action::TakeOutOfService => (self.distrusted, self.wrong_signatures) = (true, 0),
                Action::Trust => (self.distrusted, self.wrong_signatures, self.request_faults) = (false, 0, 0),
                Action::ForgetWrong => self.wrong_signatures = 0,
                Action::DelayProbe => self.probes.failed(now),
                Action::ProbeNow => self.probes = Backoff::new(now),
                Action::DropSession | Action::EndTrial | Action::ForgetKey => {}
            }
        }
        let stays_open = !state.phase().is_ready() && !reason.is_empty();
        if (state != self.state || stays_open) && self.reason != reason {
            reason.clone_into(&mut self.reason);
        }
        if state.phase() != self.state.phase() {
            self.since = now;
        }
        self.state = state;
        actions
    }
}

/// Exponential back-off.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Instant,
    delay: Duration,
    failures: u32,
}

impl Backoff {
    /// The first attempt is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, delay: Duration::ZERO, failures: 0 }
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures += 1;
        self.delay = (self.delay * 2).clamp(MIN_BACKOFF, MAX_BACKOFF);
        self.next = now + self.delay;
    }

    pub(super) fn delay(&self) -> Duration {
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Starting,
        State::Down,
        State::PinRefused,
        State::Probing,
        State::Replacing,
        State::HalfOpen,
        State::Serving,
    ];

    const EVENTS: [Event; 13] = [
        Event::Connected,
        Event::Disconnected,
        Event::PinRefused,
        Event::ProbePassed,
        Event::ProbeFailed,
        Event::SignatureVerified,
        Event::SignatureWrong,
        Event::SignaturesWrong,
        Event::RequestFault,
        Event::KeyFault,
        Event::TokenFault,
        Event::HostFault,
        Event::TrialEnded,
    ];

    /// The table in Markdown: one line for each event and state in which something happens.
    fn render() -> String {
        let mut text = "| event | state | next state | actions |\n|---|---|---|---|\n".to_owned();
        for event in EVENTS {
            for state in STATES {
                let (next, actions) = transition(state, event);
                if next != state || !actions.is_empty() {
                    let actions: Vec<_> = actions.iter().map(|action| format!("{action:?}")).collect();
                    text += &format!("| {event:?} | {state:?} | {next:?} | {} |\n", actions.join(", "));
                }
            }
        }
        text
    }

    #[test]
    fn every_row_of_the_table_is_the_documented_one() {
        let page = include_str!("../../docs/FAULTS.md");
        let (_, rest) = page.split_once("<!-- breaker -->\n").expect("docs/FAULTS.md lacks the breaker's table");
        let (documented, _) = rest.split_once("<!-- end of breaker -->").expect("the table has no end");
        assert_eq!(documented, render(), "docs/FAULTS.md must hold:\n{}", render());
    }

    #[test]
    fn only_a_verified_signature_closes_the_breaker() {
        for event in EVENTS {
            for state in STATES.into_iter().filter(|state| *state != State::Serving) {
                let closes = transition(state, event).0 == State::Serving;
                assert_eq!(
                    closes,
                    state == State::HalfOpen && event == Event::SignatureVerified,
                    "{state:?} {event:?}"
                );
            }
        }
    }

    #[test]
    fn leaving_service_is_an_outage_that_ends_the_trial() {
        for event in EVENTS {
            for state in STATES {
                let (next, actions) = transition(state, event);
                let leaves = state.phase().is_ready() && !next.phase().is_ready();
                assert_eq!(actions.contains(&Action::TakeOutOfService), leaves, "{state:?} {event:?}");
                assert!(!leaves || actions.contains(&Action::EndTrial), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn only_a_disconnect_leaves_replacing() {
        for event in EVENTS {
            let leaves = transition(State::Replacing, event).0 != State::Replacing;
            assert_eq!(leaves, matches!(event, Event::Disconnected | Event::PinRefused), "{event:?}");
        }
    }

    fn serving(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(now);
        for event in [Event::Connected, Event::ProbePassed, Event::SignatureVerified] {
            breaker.apply(event, "", now);
        }
        breaker
    }

    #[test]
    fn serving_token_leaves_at_the_third_wrong_signature_in_a_row() {
        let now = Instant::now();
        let mut breaker = serving(now);
        for verified in [false, false, true, false, false] {
            let event = breaker.verdict(verified);
            breaker.apply(event, "wrong", now);
            assert_eq!((breaker.state, breaker.reason()), (State::Serving, ""));
        }
        let event = breaker.verdict(false);
        breaker.apply(event, "wrong", now);
        assert_eq!((breaker.state, breaker.reason()), (State::Replacing, "wrong"));
        assert!(breaker.needs_new_host() && breaker.is_distrusted());
    }

    #[test]
    fn serving_token_leaves_at_the_fifth_request_fault_in_a_row() {
        let now = Instant::now();
        let mut breaker = serving(now);
        let mut fault = |signed: bool| {
            if signed {
                breaker.signed();
            }
            let event = breaker.fault(Recovery::RejectRequest, true);
            breaker.apply(event, "refused", now);
            breaker.state
        };
        for signed in [false, false, false, true, false, false, false] {
            assert_eq!(fault(signed), State::Serving);
        }
        assert_eq!(fault(false), State::Probing);
    }

    #[test]
    fn host_is_replaced_after_three_failed_probes() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        breaker.apply(Event::Connected, "", now);
        assert!(breaker.probe_is_due(now));
        for failed in 1..=MAX_FAILED_PROBES {
            assert!(!breaker.needs_new_host());
            breaker.apply(Event::ProbeFailed, "", now);
            assert!(!breaker.probe_is_due(now), "after {failed} failures");
        }
        assert!(breaker.needs_new_host());
        breaker.apply(Event::Disconnected, "gone", now);
        breaker.apply(Event::Connected, "", now);
        assert!(!breaker.needs_new_host() && breaker.probe_is_due(now));
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let now = Instant::now();
        let mut backoff = Backoff::new(now);
        let delays = std::iter::from_fn(|| {
            backoff.failed(now);
            Some(backoff.delay().as_millis())
        });
        assert_eq!(delays.take(8).collect::<Vec<_>>(), [50, 100, 200, 200, 200, 200, 200, 200]);
        assert_eq!(backoff.next, now + MAX_BACKOFF);
    }
}
