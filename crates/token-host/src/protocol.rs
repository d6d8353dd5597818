//! The protocol between the daemon and a token host: length-prefixed protobuf frames (proto/token_host.proto) over a Unix
//! stream socket.
//!
//! Pure: bytes to values and back, without I/O or a clock. Arbitrary input gives a value or an error, never a panic, and
//! never an allocation larger than a frame.

mod codec;
mod status;

#[allow(missing_docs, clippy::doc_markdown, reason = "generated; tests/generated.rs compares it with the proto")]
mod proto {
    include!("generated/istio_hsm_ca.token_host.rs");
}

pub use status::{KeyCount, Status};
pub use token::Recovery;

/// The protocol version, sent in [`Request::Hello`] and [`Status`]. Version 1 had no protobuf: such a peer is
/// disconnected at its first frame. Version 3 added [`Kind::Crl`] and larger frames for it.
pub const VERSION: u32 = 3;

/// Maximum size of a frame in bytes, without its length field: a CRL of [`pki::crl::TBS_MAX`] bytes and the fields around
/// it.
pub const MAX_FRAME: usize = 768 * 1024;

/// Maximum size of a reply's frame; a whole one must fit into the daemon's read buffer of 64 KiB.
pub const MAX_REPLY: usize = 60 * 1024;

/// Maximum length of a text in a reply, in bytes; longer ones are truncated.
const MAX_TEXT: usize = 1024;

/// Maximum length of a request ID in bytes.
const MAX_REQUEST_ID: usize = 128;

/// SHA-256 of a key's DER SubjectPublicKeyInfo.
pub type Fingerprint = [u8; 32];

/// What a token host signs; no other kind exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A probe; signed by the canary key only.
    Canary,
    /// A tree head of the log; signed by the log key only.
    Checkpoint,
    /// A CRL's TBSCertList, if the host's own configuration permits it.
    Crl,
    /// An intermediate CA's TBSCertificate, if the host's own configuration permits it.
    Intermediate,
    /// A leaf's TBSCertificate.
    Leaf,
}

/// A request of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The caller of a request no longer waits: it is answered with [`Reply::Expired`] unless it has reached the token.
    /// Only for hosts that support it ([`Status::cancels`]). There is no reply to this request itself.
    Cancel {
        /// Correlation number of its [`Request::Sign`].
        correlation: u64,
    },
    /// A session of the host made a wrong signature and must not be used again. There is no reply.
    Discard {
        /// The session, as in [`Reply::Signed`].
        session: u32,
    },
    /// The first frame of a connection.
    Hello {
        /// The daemon's [`VERSION`].
        version: u32,
        /// The host's settings in JSON from a daemon to its child; a supervised host has its own and ignores these.
        settings: &'a [u8],
    },
    /// Looks up a CA key: the host reads its CA certificates again and finds the key in the token.
    Open {
        /// The key.
        key: Fingerprint,
        /// What the last [`Reply::Opened`] for this key in this token said; empty if there was none.
        known: &'a [u8],
    },
    /// Requests a status, which shows that the token is available and what was signed.
    Ping,
    /// Sign a message.
    Sign(Sign<'a>),
}

/// A message to be signed: always the whole message; the host computes the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sign<'a> {
    /// Kind of the message.
    pub kind: Kind,
    /// The key that must sign it.
    pub key: Fingerprint,
    /// The request ID, for the host's log.
    pub request_id: &'a str,
    /// Milliseconds from now after which the caller no longer waits.
    pub deadline_ms: u32,
    /// The message.
    pub message: &'a [u8],
}

/// A failure of the token, its library or its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The required recovery. [`Recovery::Ignore`] is sent as [`Recovery::NewSession`].
    pub recovery: Recovery,
    /// The CKR value (PKCS#11, section 4.11 "Return values"); 0 if there is none.
    pub code: u64,
    /// The PKCS#11 function that failed; empty if there is none.
    pub function: String,
    /// One sentence that names the object, then the remedy.
    pub text: String,
}

/// A reply of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The deadline passed, or the request was cancelled, before the token was called.
    Expired,
    /// The token, its library or its configuration failed.
    Fault(Fault),
    /// The key is in the token, and the host's own CA certificate names it.
    Opened {
        /// Where it was found, for the next [`Request::Open`]: a new host then need not find out by trial signatures.
        known: Vec<u8>,
        /// How it was found, for people.
        found: String,
    },
    /// The host's own rules forbid it.
    Refused {
        /// The limit.
        reason: String,
        /// Whether it is a limit on the number of certificates, which may permit the request at another time.
        limit: bool,
    },
    /// The signature: RSA unchanged, ECDSA as DER ECDSA-Sig-Value.
    Signed {
        /// The session that made it, for [`Request::Discard`].
        session: u32,
        /// The content of signatureValue.
        signature: Vec<u8>,
    },
    /// The host is ready; the reply to [`Request::Hello`] and [`Request::Ping`].
    Status(Box<Status>),
}

/// A violation of the protocol. It ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The bytes are not protobuf.
    #[error("a frame cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// A field is out of range, or the body is not the expected one.
    #[error("a frame's {0} is malformed")]
    Malformed(&'static str),
    /// The frame is empty, or larger than [`MAX_FRAME`], a reply than [`MAX_REPLY`].
    #[error("a frame of {0} bytes is out of bounds")]
    Size(usize),
}

/// A decoded frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Pairs request and reply.
    pub correlation: u64,
    body: proto::frame::Body,
}

impl Frame {
    /// The first whole frame of a buffer and its length in bytes; `None` if it is incomplete.
    ///
    /// # Errors
    /// If it is malformed. A length out of bounds is detected as soon as the length field is complete.
    pub fn split(buffer: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        Self::split_within(buffer, MAX_FRAME)
    }

    /// The same of a host, whose replies are smaller.
    ///
    /// # Errors
    /// Those of [`Frame::split`].
    pub fn split_reply(buffer: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        Self::split_within(buffer, MAX_REPLY)
    }

    /// The length in bytes that the first frame of a buffer has as a whole, with its length field; `None` while that field
    /// is incomplete.
    ///
    /// # Errors
    /// If it is out of bounds.
    pub fn length(buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        Self::length_within(buffer, MAX_FRAME)
    }

    fn length_within(buffer: &[u8], max: usize) -> Result<Option<usize>, ProtocolError> {
        let Some((length, _)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(1..=max).contains(&length) {
            return Err(ProtocolError::Size(length));
        }
        Ok(Some(4 + length))
    }

    fn split_within(buffer: &[u8], max: usize) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(whole) = Self::length_within(buffer, max)? else { return Ok(None) };
        let Some(payload) = buffer.get(4..whole) else { return Ok(None) };
        let proto::Frame { correlation, body } = prost::Message::decode(payload)?;
        let body = body.ok_or(ProtocolError::Malformed("body"))?;
        Ok(Some((Self { correlation, body }, whole)))
    }
}

#[cfg(test)]
mod tests;
