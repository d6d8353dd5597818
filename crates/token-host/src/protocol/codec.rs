//! Requests and replies to frames and back. Pure; used through their own methods.

use super::{
    Fault, FaultClass, Frame, Kind, MAX_REQUEST_ID, MAX_TEXT, ProtocolError, Reply, Request, Sign, Status,
    wire::{Reader, Writer},
};

pub(super) mod kind {
    pub(in super::super) const DISCARD: u8 = 0x01;
    pub(in super::super) const HELLO: u8 = 0x02;
    pub(in super::super) const OPEN: u8 = 0x03;
    pub(in super::super) const PING: u8 = 0x04;
    pub(in super::super) const SIGN: u8 = 0x05;
    pub(in super::super) const CANCEL: u8 = 0x06;
    pub(in super::super) const EXPIRED: u8 = 0x81;
    pub(in super::super) const FAULT: u8 = 0x82;
    pub(in super::super) const OPENED: u8 = 0x83;
    pub(in super::super) const REFUSED: u8 = 0x84;
    pub(in super::super) const SIGNED: u8 = 0x85;
    pub(in super::super) const STATUS: u8 = 0x86;
}

impl<'a> Request<'a> {
    /// Appends the request's frame to a buffer.
    ///
    /// # Errors
    /// When it is larger than [`MAX_FRAME`](super::MAX_FRAME); the buffer then is as it was.
    pub fn encode(&self, correlation: u64, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let code = match self {
            Self::Cancel { .. } => kind::CANCEL,
            Self::Discard { .. } => kind::DISCARD,
            Self::Hello { .. } => kind::HELLO,
            Self::Open { .. } => kind::OPEN,
            Self::Ping => kind::PING,
            Self::Sign(_) => kind::SIGN,
        };
        let mut writer = Writer::begin(out, code, correlation);
        match self {
            Self::Cancel { correlation } => writer.u64(*correlation),
            Self::Discard { session } => writer.u32(*session),
            Self::Hello { version, settings } => {
                writer.u16(*version);
                writer.all(settings);
            }
            Self::Open { key } => writer.all(key),
            Self::Ping => {}
            Self::Sign(sign) => {
                writer.u8(sign.kind.code());
                writer.all(&sign.key);
                writer.u32(sign.deadline_ms);
                writer.text(sign.request_id, MAX_REQUEST_ID);
                writer.all(sign.message);
            }
        }
        writer.finish()
    }

    /// Which message a frame cancels; none where it is another request or malformed.
    #[must_use]
    pub fn cancelled_by(frame: &Frame<'a>) -> Option<u64> {
        let mut reader = (frame.kind == kind::CANCEL).then(|| Reader::new(frame.body))?;
        reader.u64("correlation").ok()
    }

    /// Reads a request.
    ///
    /// # Errors
    /// When the frame is none.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(frame.body);
        Ok(match frame.kind {
            kind::CANCEL => {
                let correlation = reader.u64("correlation")?;
                reader.end("Cancel")?;
                Self::Cancel { correlation }
            }
            kind::DISCARD => {
                let session = reader.u32("session")?;
                reader.end("Discard")?;
                Self::Discard { session }
            }
            kind::HELLO => Self::Hello { version: reader.u16("version")?, settings: reader.rest() },
            kind::OPEN => {
                let key = reader.array("key")?;
                reader.end("Open")?;
                Self::Open { key }
            }
            kind::PING => {
                reader.end("Ping")?;
                Self::Ping
            }
            kind::SIGN => Self::Sign(Sign {
                kind: Kind::from_code(reader.u8("kind of message")?)
                    .ok_or(ProtocolError::Malformed("kind of message"))?,
                key: reader.array("key")?,
                deadline_ms: reader.u32("deadline")?,
                request_id: reader.text("request id", MAX_REQUEST_ID)?,
                message: reader.rest(),
            }),
            other => return Err(ProtocolError::UnknownKind(other)),
        })
    }
}

impl Reply {
    /// Appends the reply's frame to a buffer.
    ///
    /// # Errors
    /// When it is larger than [`MAX_FRAME`](super::MAX_FRAME); the buffer then is as it was.
    pub fn encode(&self, correlation: u64, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let code = match self {
            Self::Expired => kind::EXPIRED,
            Self::Fault(_) => kind::FAULT,
            Self::Opened => kind::OPENED,
            Self::Refused { .. } => kind::REFUSED,
            Self::Signed { .. } => kind::SIGNED,
            Self::Status(_) => kind::STATUS,
        };
        let mut writer = Writer::begin(out, code, correlation);
        match self {
            Self::Expired | Self::Opened => {}
            Self::Fault(fault) => {
                writer.u8(fault.class.code());
                writer.u64(fault.code);
                writer.text(&fault.function, MAX_TEXT);
                writer.text(&fault.text, MAX_TEXT);
            }
            Self::Refused { reason } => writer.text(reason, MAX_TEXT),
            Self::Signed { session, signature } => {
                writer.u32(*session);
                writer.all(signature);
            }
            Self::Status(status) => writer.all(&status.to_json()),
        }
        writer.finish()
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// When the frame is none.
    pub fn decode(frame: &Frame<'_>) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(frame.body);
        Ok(match frame.kind {
            kind::EXPIRED => {
                reader.end("Expired")?;
                Self::Expired
            }
            kind::FAULT => {
                let fault = Fault {
                    class: FaultClass::from_code(reader.u8("class")?).ok_or(ProtocolError::Malformed("class"))?,
                    code: reader.u64("code")?,
                    function: reader.text("function", MAX_TEXT)?.to_owned(),
                    text: reader.text("text", MAX_TEXT)?.to_owned(),
                };
                reader.end("Fault")?;
                Self::Fault(fault)
            }
            kind::OPENED => {
                reader.end("Opened")?;
                Self::Opened
            }
            kind::REFUSED => {
                let reason = reader.text("reason", MAX_TEXT)?.to_owned();
                reader.end("Refused")?;
                Self::Refused { reason }
            }
            kind::SIGNED => Self::Signed { session: reader.u32("session")?, signature: reader.rest().to_vec() },
            kind::STATUS => Self::Status(Box::new(Status::from_json(reader.rest())?)),
            other => return Err(ProtocolError::UnknownKind(other)),
        })
    }
}
