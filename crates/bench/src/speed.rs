//! Signing speed of a token: rounds of signatures over a fixed text in several concurrent sessions.
//!
//! Each session signs on its own thread with the key handle looked up once, like the token host. No object is created,
//! changed or deleted.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use cryptoki::{object::ObjectHandle, session::Session};
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};

use pki::PublicKey;
use token::{
    Pkcs11Error, Token,
    key::{self, KeyError},
    mechanism::{self, SignError},
};

/// The signed text, which cannot be taken for a certificate, a tree head or anything else that the keys sign.
const MESSAGE: &[u8] = b"istio-hsm-ca bench: this text only measures how fast a token signs";

/// A token's speed could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// The thread's CPU time cannot be read.
    #[error("the CPU time of a thread cannot be read")]
    CpuTime(#[source] Errno),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A session could not be opened.
    #[error("no session can be opened; ask for fewer")]
    Session(#[source] Pkcs11Error),
    /// The token does not sign.
    #[error("the token failed while it signed")]
    Sign(#[from] SignError),
    /// A signature is wrong.
    #[error("the token's signature does not verify with the public key; the private key is another one")]
    Signature,
    /// A thread panicked.
    #[error("a signing thread ended unexpectedly")]
    Thread,
}

/// A key to measure.
#[derive(Clone, Debug)]
pub struct SpeedKey {
    label: Option<String>,
    public_key: PublicKey,
}

impl SpeedKey {
    /// A CA key, by its public key.
    #[must_use]
    pub fn of(public_key: PublicKey) -> Self {
        Self { label: None, public_key }
    }

    /// One of our keys, by its label; the process must be logged in.
    ///
    /// # Errors
    /// If there is no such key, or more than one.
    pub fn labelled(token: &Token, label: &str) -> Result<Self, SpeedError> {
        let session = token.open_session(false).map_err(SpeedError::Session)?;
        let public_key = key::find_by_label(&session, label)?.public_key;
        Ok(Self { label: Some(label.to_owned()), public_key })
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn open(&self, token: &Token) -> Result<(Session, ObjectHandle), SpeedError> {
        let session = token.open_session(false).map_err(SpeedError::Session)?;
        let handle = match &self.label {
            Some(label) => key::find_by_label(&session, label)?.handle,
            None => key::find_private_key(&session, &self.public_key)?,
        };
        Ok((session, handle))
    }
}

/// Result of one session in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Signatures made.
    pub signatures: u32,
    /// Elapsed time.
    pub wall: Duration,
    /// CPU time of its thread, which excludes a network token's computation.
    pub cpu: Duration,
}

/// Signs in `sessions` concurrent sessions for `length`; the process must be logged in. The first signature of each
/// session is verified and not counted.
///
/// # Errors
/// If a session cannot be opened, the key does not exist, or a signature fails or is wrong.
pub fn round(token: &Token, key: &SpeedKey, sessions: u16, length: Duration) -> Result<Vec<Share>, SpeedError> {
    let ready = Barrier::new(usize::from(sessions));
    let one = || {
        let opened = warm(token, key);
        // A failed session also arrives here; otherwise the others would wait forever.
        ready.wait();
        let (session, handle) = opened?;
        let (cpu, start) = (cpu_time()?, Instant::now());
        let mut signatures = 0;
        while start.elapsed() < length {
            mechanism::sign(&session, handle, &key.public_key, MESSAGE)?;
            signatures += 1;
        }
        Ok(Share { signatures, wall: start.elapsed(), cpu: cpu_time()?.saturating_sub(cpu) })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..sessions).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| SpeedError::Thread)?).collect()
    })
}

fn warm(token: &Token, key: &SpeedKey) -> Result<(Session, ObjectHandle), SpeedError> {
    let (session, handle) = key.open(token)?;
    let signature = mechanism::sign(&session, handle, &key.public_key, MESSAGE)?;
    let algorithm = key.public_key.signature_algorithm();
    key.public_key.verify(algorithm, MESSAGE, &signature).map_err(|_| SpeedError::Signature)?;
    Ok((session, handle))
}

fn cpu_time() -> Result<Duration, SpeedError> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).map_err(SpeedError::CpuTime)
}
