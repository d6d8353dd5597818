//! Counts durations and failures of PKCS#11 calls, in the token host's process, which makes all calls of the module.
//!
//! A call costs two readings of the clock and two additions; nothing is allocated unless it fails. Counters never
//! decrease. They are part of the host's status, and become the daemon's metrics.

use std::{
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cryptoki::error::Error;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::call_metrics::{BUCKETS, Histogram};

macro_rules! functions {
    ($($name:ident,)*) => {
        /// A PKCS#11 function that a token host calls. The binding makes some calls in a row: [`Function::Sign`] then
        /// stands for C_SignInit and C_Sign, [`Function::FindObjects`] for C_FindObjectsInit, C_FindObjects and
        /// C_FindObjectsFinal, while a failure is attributed to the function that failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "each is the function of its name")]
        pub enum Function { $($name,)* }

        impl Function {
            /// All functions.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The function's name in the standard.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => concat!("C_", stringify!($name)),)* }
            }

            fn at(self) -> usize {
                // The variants are numbered in order, so the conversion loses nothing.
                #[expect(clippy::as_conversions, reason = "a discriminant without data")]
                { self as usize }
            }
        }
    };
}

functions! {
    CloseSession,
    Finalize,
    FindObjects,
    FindObjectsFinal,
    FindObjectsInit,
    GetAttributeValue,
    GetSessionInfo,
    GetSlotList,
    GetTokenInfo,
    Initialize,
    Login,
    OpenSession,
    Sign,
    SignInit,
}

impl Function {
    /// The function with a name in the standard.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|function| function.name() == name)
    }

    fn of_binding(function: cryptoki::context::Function) -> Option<Self> {
        Self::of_name(&format!("C_{function:?}"))
    }
}

/// Maximum number of distinct pairs of function and return code.
const ERRORS_MOST: usize = 128;

struct Counted {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

static COUNTED: [Counted; Function::ALL.len()] =
    [const { Counted { buckets: [const { AtomicU64::new(0) }; BUCKETS], nanoseconds: AtomicU64::new(0) } };
        Function::ALL.len()];

static ERRORS: Mutex<BTreeMap<(Function, u64), u64>> = Mutex::new(BTreeMap::new());

/// The call in progress, in a process that watches it: one with a single thread that makes calls.
static IN_PROGRESS: OnceLock<Mutex<Option<(Function, Instant)>>> = OnceLock::new();

/// The call in progress and its duration so far. Calls are watched from the first time on that this is asked.
#[must_use]
pub fn in_progress() -> Option<(Function, Duration)> {
    let watched = IN_PROGRESS.get_or_init(Mutex::default).lock();
    watched.map(|(function, began)| (function, began.elapsed()))
}

fn watch(call: Option<(Function, Instant)>) {
    if let Some(watched) = IN_PROGRESS.get() {
        *watched.lock() = call;
    }
}

/// Makes a call and counts it.
///
/// # Errors
/// Those of the call.
pub fn call<T>(function: Function, call: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let began = Instant::now();
    watch(Some((function, began)));
    let result = call();
    watch(None);
    let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    if let Some(counted) = COUNTED.get(function.at()) {
        counted.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(bucket) = counted.buckets.get(Histogram::bucket(nanoseconds)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
    if let Err(Error::Pkcs11(rv, exactly)) = &result {
        let failed = (Function::of_binding(*exactly).unwrap_or(function), super::error::code_of(*rv));
        let mut errors = ERRORS.lock();
        if errors.len() < ERRORS_MOST || errors.contains_key(&failed) {
            *errors.entry(failed).or_default() += 1;
        }
    }
    result
}

/// Calls of one function, as reported by a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCalls {
    /// Its name in the standard.
    pub function: String,
    /// Calls by bucket ([`crate::call_metrics::BOUNDS`]).
    pub buckets: Vec<u64>,
    /// Sum of all durations in nanoseconds.
    pub nanoseconds: u64,
}

/// Failures of one function with one return code, as reported by a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionErrors {
    /// Its name in the standard.
    pub function: String,
    /// The return code (CK_RV).
    pub code: u64,
    /// Number of failures.
    pub count: u64,
}

/// What was counted in this process so far.
#[must_use]
pub fn snapshot() -> (Vec<FunctionCalls>, Vec<FunctionErrors>) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counted = Function::ALL.iter().zip(&COUNTED).map(|(function, counted)| FunctionCalls {
        function: function.name().to_owned(),
        buckets: counted.buckets.iter().map(load).collect(),
        nanoseconds: load(&counted.nanoseconds),
    });
    let errors = ERRORS.lock();
    let errors = errors.iter().map(|((function, code), count)| FunctionErrors {
        function: function.name().to_owned(),
        code: *code,
        count: *count,
    });
    (counted.filter(|calls| calls.buckets.iter().any(|bucket| *bucket > 0)).collect(), errors.collect())
}

/// Sum over the successive hosts of one token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    durations: BTreeMap<Function, Histogram>,
    /// By the name of the return code: unknown codes share a name, which bounds the number of entries.
    errors: BTreeMap<(Function, &'static str), u64>,
}

impl Sum {
    /// Adds what a host has counted since its last report; `before` is empty for a new host. Names unknown to this
    /// version are ignored.
    pub fn add(&mut self, now: (&[FunctionCalls], &[FunctionErrors]), before: (&[FunctionCalls], &[FunctionErrors])) {
        for calls in now.0 {
            let Some(function) = Function::of_name(&calls.function) else { continue };
            let earlier = before.0.iter().find(|earlier| earlier.function == calls.function);
            let sum = self.durations.entry(function).or_default();
            for (at, (bucket, calls)) in sum.buckets.iter_mut().zip(&calls.buckets).enumerate() {
                let earlier = earlier.and_then(|earlier| earlier.buckets.get(at)).copied().unwrap_or_default();
                *bucket = bucket.saturating_add(calls.saturating_sub(earlier));
            }
            let earlier = earlier.map_or(0, |earlier| earlier.nanoseconds);
            sum.nanoseconds = sum.nanoseconds.saturating_add(calls.nanoseconds.saturating_sub(earlier));
        }
        for errors in now.1 {
            let Some(function) = Function::of_name(&errors.function) else { continue };
            let same = |other: &&FunctionErrors| (&other.function, other.code) == (&errors.function, errors.code);
            let earlier = before.1.iter().find(same).map_or(0, |earlier| earlier.count);
            let count = self.errors.entry((function, super::error::entry(errors.code).name)).or_default();
            *count = count.saturating_add(errors.count.saturating_sub(earlier));
        }
    }

    /// The sum for the metrics, with the token's name.
    #[must_use]
    pub fn snapshot(&self, token: &str) -> crate::call_metrics::Calls {
        crate::call_metrics::Calls {
            token: token.to_owned(),
            durations: self.durations.iter().map(|(function, histogram)| (function.name(), *histogram)).collect(),
            errors: self.errors.iter().map(|((function, code), count)| (function.name(), *code, *count)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::error::RvError;

    use super::*;

    fn counted(name: &str) -> u64 {
        let (calls, _) = snapshot();
        calls.iter().find(|calls| calls.function == name).map_or(0, |calls| calls.buckets.iter().sum())
    }

    #[test]
    fn calls_and_failures_are_counted() {
        // No test of this crate makes these calls.
        let before = counted("C_Finalize");
        call(Function::Finalize, || Ok(())).unwrap();
        let failed = || Err::<(), _>(Error::Pkcs11(RvError::DeviceRemoved, cryptoki::context::Function::SignInit));
        call(Function::Finalize, failed).unwrap_err();
        assert_eq!(counted("C_Finalize"), before + 2);
        let (_, errors) = snapshot();
        let failure = FunctionErrors { function: "C_SignInit".to_owned(), code: 0x32, count: 1 };
        assert!(errors.contains(&failure), "{errors:?}");
    }

    #[test]
    fn hosts_add_up() {
        let counts = |buckets: [u64; 2], errors| {
            let calls =
                FunctionCalls { function: "C_Sign".into(), buckets: buckets.into(), nanoseconds: buckets[0] * 7 };
            let unknown = FunctionCalls { function: "C_Whatever\"}".into(), ..calls.clone() };
            (vec![calls, unknown], vec![FunctionErrors { function: "C_Sign".into(), code: 0x30, count: errors }])
        };
        let (first, then, other) = (counts([3, 1], 1), counts([5, 1], 4), counts([2, 0], 1));
        let mut sum = Sum::default();
        sum.add((&first.0, &first.1), (&[], &[]));
        sum.add((&then.0, &then.1), (&first.0, &first.1));
        sum.add((&other.0, &other.1), (&[], &[]));
        let sum = sum.snapshot("one");
        let [("C_Sign", histogram)] = sum.durations.as_slice() else { panic!("{sum:?}") };
        assert_eq!((histogram.buckets[0], histogram.buckets[1], histogram.nanoseconds), (7, 1, 49));
        assert_eq!(sum.errors, [("C_Sign", "CKR_DEVICE_ERROR", 5)]);
    }

    #[test]
    fn places_are_distinct() {
        for (at, function) in Function::ALL.iter().enumerate() {
            assert_eq!(function.at(), at);
            assert_eq!(Function::of_name(function.name()), Some(*function));
        }
    }
}
