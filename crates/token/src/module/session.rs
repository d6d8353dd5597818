//! Opening sessions of tokens with limits of their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cryptoki::error::RvError;

use crate::Pkcs11Error;

/// Pauses before a session is opened again that was opened too quickly after another one (AWS CloudHSM).
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];

/// What opening sessions has shown about a token.
#[derive(Clone, Debug, Default)]
pub(super) struct Opening {
    /// Whether it has read-write sessions only.
    read_write_only: Arc<AtomicBool>,
}

impl Opening {
    /// Opens a session with `open`, which takes whether it is a read-write one.
    pub(super) fn open<T>(&self, rw: bool, open: impl Fn(bool) -> Result<T, Pkcs11Error>) -> Result<T, Pkcs11Error> {
        if rw || self.read_write_only.load(Ordering::Relaxed) {
            return unhurried(|| open(true));
        }
        match unhurried(|| open(false)) {
            // AWS CloudHSM's library returns the first one for every read-only session.
            Err(error) if error.is(RvError::FunctionFailed) || error.is(RvError::FunctionNotSupported) => {
                // The error of a token that opens no session at all is the first one.
                let session = unhurried(|| open(true)).map_err(|_| error)?;
                self.read_write_only.store(true, Ordering::Relaxed);
                Ok(session)
            }
            other => other,
        }
    }
}

/// Repeats a call that was made too quickly after another one.
fn unhurried<T>(open: impl Fn() -> Result<T, Pkcs11Error>) -> Result<T, Pkcs11Error> {
    let mut result = open();
    for pause in PAUSES {
        if !result.as_ref().is_err_and(|error| error.is(RvError::ArgumentsBad)) {
            break;
        }
        std::thread::sleep(pause);
        result = open();
    }
    result
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use cryptoki::{context::Function, error::Error};

    use super::*;

    /// Opens sessions of a token that answers in turn, each `true` for read-write; returns the calls.
    fn calls(rw: bool, times: usize, answers: &[Result<(), RvError>]) -> (Vec<bool>, Option<u64>) {
        let (made, opening) = (RefCell::new(Vec::new()), Opening::default());
        let mut last = None;
        for _ in 0..times {
            let opened = opening.open(rw, |rw| {
                let answer = answers.get(made.borrow().len()).copied().unwrap_or(Ok(()));
                made.borrow_mut().push(rw);
                answer.map_err(|rv| Error::Pkcs11(rv, Function::OpenSession).into())
            });
            last = opened.err().and_then(|error| error.code());
        }
        (made.into_inner(), last)
    }

    #[test]
    fn token_without_read_only_sessions_gets_read_write_ones() {
        assert_eq!(calls(false, 2, &[Err(RvError::FunctionFailed)]), (vec![false, true, true], None));
        assert_eq!(calls(false, 2, &[]), (vec![false, false], None));
        let broken = [Err(RvError::FunctionFailed), Err(RvError::DeviceError)];
        assert_eq!(calls(false, 1, &broken), (vec![false, true], Some(0x6)), "the first error counts");
        assert_eq!(calls(false, 1, &[Err(RvError::SessionCount)]), (vec![false], Some(0xb1)));
    }

    #[test]
    fn session_opened_too_quickly_is_opened_again() {
        let hurried = Err(RvError::ArgumentsBad);
        assert_eq!(calls(true, 1, &[hurried, hurried]), (vec![true; 3], None));
        assert_eq!(calls(true, 1, &[hurried; 4]), (vec![true; 4], Some(0x7)));
    }
}
