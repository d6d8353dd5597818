//! Encodes and decodes requests and replies.

use prost::Message;

use super::{
    Fault, Fingerprint, Frame, Kind, MAX_FRAME, MAX_REPLY, MAX_REQUEST_ID, MAX_TEXT, ProtocolError, Recovery, Reply,
    Request, Sign, Status,
    proto::{self, frame::Body},
};

impl From<Kind> for proto::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Canary => Self::Canary,
            Kind::Checkpoint => Self::Checkpoint,
            Kind::Crl => Self::Crl,
            Kind::Intermediate => Self::Intermediate,
            Kind::Leaf => Self::Leaf,
        }
    }
}

impl TryFrom<proto::Kind> for Kind {
    type Error = ProtocolError;

    fn try_from(kind: proto::Kind) -> Result<Self, ProtocolError> {
        Ok(match kind {
            proto::Kind::Unspecified => return Err(ProtocolError::Malformed("kind of message")),
            proto::Kind::Canary => Self::Canary,
            proto::Kind::Checkpoint => Self::Checkpoint,
            proto::Kind::Crl => Self::Crl,
            proto::Kind::Intermediate => Self::Intermediate,
            proto::Kind::Leaf => Self::Leaf,
        })
    }
}

impl From<Recovery> for proto::Recovery {
    fn from(recovery: Recovery) -> Self {
        match recovery {
            Recovery::FixConfiguration => Self::FixConfiguration,
            Recovery::FixKey => Self::FixKey,
            Recovery::FixPin => Self::FixPin,
            Recovery::Ignore | Recovery::NewSession => Self::NewSession,
            Recovery::NewProcess => Self::NewProcess,
            Recovery::RejectRequest => Self::RejectRequest,
            Recovery::Relogin => Self::Relogin,
            Recovery::Retry => Self::Retry,
        }
    }
}

impl TryFrom<proto::Recovery> for Recovery {
    type Error = ProtocolError;

    fn try_from(recovery: proto::Recovery) -> Result<Self, ProtocolError> {
        Ok(match recovery {
            proto::Recovery::Unspecified => return Err(ProtocolError::Malformed("recovery")),
            proto::Recovery::FixConfiguration => Self::FixConfiguration,
            proto::Recovery::FixKey => Self::FixKey,
            proto::Recovery::FixPin => Self::FixPin,
            proto::Recovery::NewProcess => Self::NewProcess,
            proto::Recovery::NewSession => Self::NewSession,
            proto::Recovery::RejectRequest => Self::RejectRequest,
            proto::Recovery::Relogin => Self::Relogin,
            proto::Recovery::Retry => Self::Retry,
        })
    }
}

fn fingerprint(key: &[u8]) -> Result<Fingerprint, ProtocolError> {
    key.try_into().map_err(|_| ProtocolError::Malformed("key"))
}

/// Truncates a text at a character boundary.
fn truncate(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// Appends a frame of at most `max` bytes. The buffer is unchanged after an error.
fn encode(correlation: u64, body: Body, max: usize, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let frame = proto::Frame { correlation, body: Some(body) };
    let length = frame.encoded_len();
    let too_large = || ProtocolError::Size(length);
    let prefix = u32::try_from(length).ok().filter(|_| length <= max).ok_or_else(too_large)?;
    out.extend_from_slice(&prefix.to_be_bytes());
    frame.encode(out).map_err(|_| too_large())
}

impl<'a> Request<'a> {
    /// Appends the request's frame to a buffer.
    ///
    /// # Errors
    /// If it is larger than [`MAX_FRAME`]; the buffer is unchanged then.
    pub fn encode(&self, correlation: u64, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let body = match self {
            Self::Cancel { correlation } => Body::Cancel(proto::Cancel { correlation: *correlation }),
            Self::Discard { session } => Body::Discard(proto::Discard { session: *session }),
            Self::Hello { version, settings } => {
                Body::Hello(proto::Hello { version: *version, settings: settings.to_vec() })
            }
            Self::Open { key, known } => Body::Open(proto::Open { key: key.to_vec(), known: known.to_vec() }),
            Self::Ping => Body::Ping(proto::Ping {}),
            Self::Sign(sign) => Body::Sign(proto::Sign {
                kind: proto::Kind::from(sign.kind).into(),
                key: sign.key.to_vec(),
                deadline_ms: sign.deadline_ms,
                request_id: truncate(sign.request_id, MAX_REQUEST_ID),
                message: sign.message.to_vec(),
            }),
        };
        encode(correlation, body, MAX_FRAME, out)
    }

    /// Reads a request.
    ///
    /// # Errors
    /// If the frame is not a valid request.
    pub fn decode(frame: &'a Frame) -> Result<Self, ProtocolError> {
        Ok(match &frame.body {
            Body::Cancel(cancel) => Self::Cancel { correlation: cancel.correlation },
            Body::Discard(discard) => Self::Discard { session: discard.session },
            Body::Hello(hello) => Self::Hello { version: hello.version, settings: &hello.settings },
            Body::Open(open) => Self::Open { key: fingerprint(&open.key)?, known: &open.known },
            Body::Ping(proto::Ping {}) => Self::Ping,
            Body::Sign(sign) => {
                if sign.request_id.len() > MAX_REQUEST_ID {
                    return Err(ProtocolError::Malformed("request id"));
                }
                Self::Sign(Sign {
                    kind: sign.kind().try_into()?,
                    key: fingerprint(&sign.key)?,
                    request_id: &sign.request_id,
                    deadline_ms: sign.deadline_ms,
                    message: &sign.message,
                })
            }
            Body::Expired(_)
            | Body::Fault(_)
            | Body::Opened(_)
            | Body::Refused(_)
            | Body::Signed(_)
            | Body::Status(_) => return Err(ProtocolError::Malformed("direction")),
        })
    }
}

impl Reply {
    /// Appends the reply's frame to a buffer.
    ///
    /// # Errors
    /// If it is larger than [`MAX_REPLY`]; the buffer is unchanged then.
    pub fn encode(&self, correlation: u64, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let body = match self {
            Self::Expired => Body::Expired(proto::Expired {}),
            Self::Fault(fault) => Body::Fault(proto::Fault {
                recovery: proto::Recovery::from(fault.recovery).into(),
                code: fault.code,
                function: truncate(&fault.function, MAX_TEXT),
                text: truncate(&fault.text, MAX_TEXT),
            }),
            Self::Opened { known, found } => {
                Body::Opened(proto::Opened { known: known.clone(), found: truncate(found, MAX_TEXT) })
            }
            Self::Refused { reason, limit } => {
                Body::Refused(proto::Refused { reason: truncate(reason, MAX_TEXT), limit: *limit })
            }
            Self::Signed { session, signature } => {
                Body::Signed(proto::Signed { session: *session, signature: signature.clone() })
            }
            Self::Status(status) => Body::Status(status.to_proto()),
        };
        encode(correlation, body, MAX_REPLY, out)
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// If the frame is not a valid reply.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolError> {
        Ok(match frame.body {
            Body::Expired(proto::Expired {}) => Self::Expired,
            Body::Fault(fault) => Self::Fault(Fault {
                recovery: fault.recovery().try_into()?,
                code: fault.code,
                function: fault.function,
                text: fault.text,
            }),
            Body::Opened(opened) => Self::Opened { known: opened.known, found: opened.found },
            Body::Refused(refused) => Self::Refused { reason: refused.reason, limit: refused.limit },
            Body::Signed(signed) => Self::Signed { session: signed.session, signature: signed.signature },
            Body::Status(status) => Self::Status(Box::new(Status::from_proto(status)?)),
            Body::Cancel(_) | Body::Discard(_) | Body::Hello(_) | Body::Open(_) | Body::Ping(_) | Body::Sign(_) => {
                return Err(ProtocolError::Malformed("direction"));
            }
        })
    }
}
