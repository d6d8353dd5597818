//! What the daemon and a token host say to each other: length-prefixed frames over a Unix stream socket.
//!
//! Pure: bytes to values and back. No I/O, no clock; whatever bytes come in, it answers with a value or an error,
//! never with a panic, and never allocates more than a frame holds. Used by `host` and `client`.
//!
//! ```text
//! frame   := length:u32 kind:u8 correlation:u64 body     length counts what follows it; all numbers big-endian
//! request := Hello | Open | Sign | Ping | Cancel | Discard
//! reply   := Status | Opened | Signed | Refused | Fault | Expired
//! ```
//!
//! Every request gets exactly one reply with its correlation number, in any order; [`Request::Cancel`] and
//! [`Request::Discard`] get none. A [`Reply::Status`] with the correlation number 0 answers nothing: it is the last word of
//! a host that ends itself.

mod codec;
mod status;
mod wire;

pub use status::{KeyCount, Status};
use wire::Reader;

/// The version that both sides must speak; told in [`Request::Hello`].
pub const VERSION: u16 = 1;

/// The largest frame in bytes, its length field not counted. The largest TBSCertificate of this CA (a hundred names)
/// stays below 32 KiB, and a whole frame must fit into the host's read buffer of 64 KiB.
pub const MAX_FRAME: usize = 60 * 1024;

/// Bytes before the body that the length counts: kind and correlation.
const HEADER: usize = 1 + 8;

/// The longest text in a reply, in bytes; longer ones are cut.
const MAX_TEXT: usize = 1024;

/// The longest request id in bytes.
const MAX_REQUEST_ID: usize = 128;

/// How the protocol names a key: SHA-256 of its DER SubjectPublicKeyInfo.
pub type Fingerprint = [u8; 32];

/// What a token host signs. A closed list: there is no kind for bytes of any other meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A probe, by the canary key alone.
    Canary,
    /// The log's tree head, by the log key alone.
    Checkpoint,
    /// A subordinate CA's TBSCertificate, where the host's own configuration allows that.
    Intermediate,
    /// A leaf's TBSCertificate.
    Leaf,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Canary => 1,
            Self::Checkpoint => 2,
            Self::Intermediate => 3,
            Self::Leaf => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Canary,
            2 => Self::Checkpoint,
            3 => Self::Intermediate,
            4 => Self::Leaf,
            _ => return None,
        })
    }
}

/// What the daemon asks of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Nobody waits any more for a message that was to be signed: it is answered with [`Reply::Expired`] unless it has
    /// reached the token. Only for hosts that know it ([`Status::cancels`]). Not answered itself.
    Cancel {
        /// The correlation number of its [`Request::Sign`].
        correlation: u64,
    },
    /// A session of the host made a wrong signature and is not to be used again. Not answered.
    Discard {
        /// The session, as in [`Reply::Signed`].
        session: u32,
    },
    /// The first frame of a connection.
    Hello {
        /// The daemon's [`VERSION`].
        version: u16,
        /// The host's settings in JSON from a daemon to its child; a supervised host has its own and ignores these.
        settings: &'a [u8],
    },
    /// Look a CA key up: the host reads its CA certificates afresh and finds the key in the token.
    Open {
        /// The key.
        key: Fingerprint,
    },
    /// Say that the token is still there, and what was signed.
    Ping,
    /// Sign a message.
    Sign(Sign<'a>),
}

/// A message to be signed: always whole, the host hashes it itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sign<'a> {
    /// What the message is.
    pub kind: Kind,
    /// The key that is to sign it.
    pub key: Fingerprint,
    /// The request's id, for the host's log.
    pub request_id: &'a str,
    /// Milliseconds from now after which nobody waits for the signature any more.
    pub deadline_ms: u32,
    /// The message.
    pub message: &'a [u8],
}

/// What a PKCS#11 error means for the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// The token is there but has no room now (CKR_SESSION_COUNT and the like): later.
    Busy,
    /// This key cannot sign as it stands: it is not there, or its attributes or mechanisms forbid it.
    Key,
    /// The login is lost.
    Login,
    /// The module is broken: only another host helps.
    Module,
    /// The PIN is wrong or locked: nobody tries again until the PIN's file changes.
    Pin,
    /// This one message cannot be signed, whichever session does it; others may.
    Request,
    /// The session is lost.
    Session,
    /// What the host was configured with does not work; the text says what to change.
    Settings,
    /// The token is gone.
    Token,
}

impl FaultClass {
    const ALL: [Self; 9] = [
        Self::Busy,
        Self::Key,
        Self::Login,
        Self::Module,
        Self::Pin,
        Self::Request,
        Self::Session,
        Self::Settings,
        Self::Token,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Busy => 1,
            Self::Key => 2,
            Self::Login => 3,
            Self::Module => 4,
            Self::Pin => 5,
            Self::Request => 6,
            Self::Session => 7,
            Self::Settings => 8,
            Self::Token => 9,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.code() == code)
    }
}

/// Why the host did not sign although it was willing to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it means.
    pub class: FaultClass,
    /// The CKR value (PKCS#11, section 4.11 "Return values"), 0 where none is behind it.
    pub code: u64,
    /// The PKCS#11 function that failed; empty where none is behind it.
    pub function: String,
    /// One sentence that names the object, then what to do.
    pub text: String,
}

/// What the host answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The deadline passed, or the message was cancelled, before the token was asked.
    Expired,
    /// The token, or something before it, failed.
    Fault(Fault),
    /// The key is in the token, and the host's own CA certificate names it.
    Opened,
    /// The host's own rules forbid it.
    Refused {
        /// The rule.
        reason: String,
    },
    /// The signature: RSA as it is, ECDSA as DER ECDSA-Sig-Value.
    Signed {
        /// The session that made it, for [`Request::Discard`].
        session: u32,
        /// The content of signatureValue.
        signature: Vec<u8>,
    },
    /// The host is ready; the answer to [`Request::Hello`] and [`Request::Ping`].
    Status(Box<Status>),
}

/// Why bytes are not a frame of this protocol. The connection is of no use any more then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The body ends too early, goes on too long or holds a value out of range.
    #[error("a frame's {0} is malformed")]
    Malformed(&'static str),
    /// Longer than [`MAX_FRAME`], or shorter than its header.
    #[error("a frame of {0} bytes is out of bounds")]
    Size(usize),
    /// A kind of frame that this version does not know.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
}

/// A frame as it stands in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The number that pairs request and reply.
    pub correlation: u64,
    kind: u8,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first whole frame of a buffer and how many bytes it takes there; `None` when it is not whole yet.
    ///
    /// # Errors
    /// When its length is out of bounds: known from four bytes on, so that nobody waits for a gigabyte.
    pub fn split(buffer: &'a [u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(HEADER..=MAX_FRAME).contains(&length) {
            return Err(ProtocolError::Size(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let mut reader = Reader::new(payload);
        let kind = reader.u8("kind")?;
        let correlation = reader.u64("correlation")?;
        Ok(Some((Self { correlation, kind, body: reader.rest() }, 4 + length)))
    }
}

#[cfg(test)]
mod tests;
