//! The cells of the matrix.

use testkit::random;
use token::error::{Entry, Recovery, TABLE, entry};

/// What makes a host call a function that it does not call for each signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A host that ends regularly, after a wrong signature.
    End,
    /// Every request.
    Load,
    /// The start of a host.
    Restart,
    /// A session that is replaced after a failed signature.
    Session,
}

/// The functions that a host calls; verified by `the_functions_are_those_that_a_host_calls`.
pub const FUNCTIONS: [(&str, Trigger); 15] = [
    ("C_GetFunctionList", Trigger::Restart),
    ("C_Initialize", Trigger::Restart),
    ("C_GetSlotList", Trigger::Restart),
    ("C_GetTokenInfo", Trigger::Restart),
    ("C_OpenSession", Trigger::Session),
    ("C_Login", Trigger::Restart),
    ("C_FindObjectsInit", Trigger::Session),
    ("C_FindObjects", Trigger::Session),
    ("C_FindObjectsFinal", Trigger::Session),
    ("C_GetAttributeValue", Trigger::Session),
    ("C_GetSessionInfo", Trigger::Session),
    ("C_SignInit", Trigger::Load),
    ("C_Sign", Trigger::Load),
    ("C_CloseSession", Trigger::Session),
    ("C_Finalize", Trigger::End),
];

/// Recoveries, from the mildest to the most disruptive.
pub const RECOVERIES: [Recovery; 8] = [
    Recovery::Ignore,
    Recovery::Retry,
    Recovery::RejectRequest,
    Recovery::NewSession,
    Recovery::Relogin,
    Recovery::NewProcess,
    Recovery::FixPin,
    Recovery::FixConfiguration,
];

/// Duration of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lasts {
    /// One call.
    Once,
    /// Three seconds.
    Seconds,
    /// Until it is removed, after every backoff has reached its maximum.
    ForGood,
}

/// All durations.
pub const LASTING: [Lasts; 3] = [Lasts::Once, Lasts::Seconds, Lasts::ForGood];

/// Cells run one after the other on one daemon: a function with codes of one recovery.
#[derive(Clone, Debug)]
pub struct Job {
    pub function: &'static str,
    pub trigger: Trigger,
    pub recovery: Recovery,
    pub cells: Vec<(Entry, Lasts)>,
}

/// Maximum number of codes per daemon.
const CODES_MOST: usize = 4;

/// The codes with a recovery: the standard's, and two unknown ones.
pub fn codes(recovery: Recovery) -> Vec<Entry> {
    let unknown = [entry(0x300), entry(0x8000_0001)];
    TABLE.iter().copied().chain(unknown).filter(|entry| entry.recovery == recovery).collect()
}

/// All codes for all functions.
pub fn all() -> Vec<Job> {
    jobs(|_, recovery| codes(recovery))
}

/// One code of each recovery for every function.
pub fn sample(seed: u64) -> Vec<Job> {
    let mut state = seed;
    jobs(|_, recovery| {
        let codes = codes(recovery);
        vec![*random::choose(&codes, &mut state)]
    })
}

fn jobs(mut choose: impl FnMut(&'static str, Recovery) -> Vec<Entry>) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (function, trigger) in FUNCTIONS {
        for recovery in RECOVERIES {
            for codes in choose(function, recovery).chunks(CODES_MOST) {
                let cells = codes.iter().flat_map(|code| LASTING.map(|lasts| (*code, lasts))).collect();
                jobs.push(Job { function, trigger, recovery, cells });
            }
        }
    }
    jobs
}

#[test]
fn a_seed_gives_the_same_sample_again_and_every_code_is_in_the_plan() {
    let of = |jobs: &[Job]| -> Vec<(&str, u64)> {
        jobs.iter().flat_map(|job| job.cells.iter().map(|(code, _)| (job.function, code.code))).collect()
    };
    assert_eq!(of(&sample(7)), of(&sample(7)));
    assert_ne!(of(&sample(7)), of(&sample(8)));
    assert_eq!(sample(7).len(), FUNCTIONS.len() * RECOVERIES.len());
    assert_eq!(of(&all()).len(), FUNCTIONS.len() * (TABLE.len() + 2) * LASTING.len());
}
