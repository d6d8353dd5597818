//! The fields of a frame: big-endian numbers, texts with a two-byte length, and "all the rest".

use super::{HEADER, MAX_FRAME, ProtocolError};

/// Takes fields off the front of a body.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ProtocolError> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(ProtocolError::Malformed(field))?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, ProtocolError> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, ProtocolError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, ProtocolError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, ProtocolError> {
        self.array(field).map(u64::from_be_bytes)
    }

    pub(super) fn text(&mut self, field: &'static str, most: usize) -> Result<&'a str, ProtocolError> {
        let length = usize::from(self.u16(field)?);
        if length > most {
            return Err(ProtocolError::Malformed(field));
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(ProtocolError::Malformed(field))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| ProtocolError::Malformed(field))
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn end(&self, frame: &'static str) -> Result<(), ProtocolError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtocolError::Malformed(frame)) }
    }
}

/// Appends one frame to a buffer; the length is filled in at the end.
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>, kind: u8, correlation: u64) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(kind);
        out.extend_from_slice(&correlation.to_be_bytes());
        Self { out, start }
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A text, cut at a character when it is longer than `most` bytes.
    pub(super) fn text(&mut self, text: &str, most: usize) {
        let text = text.get(..text.floor_char_boundary(most)).unwrap_or_default();
        self.u16(u16::try_from(text.len()).unwrap_or_default());
        self.all(text.as_bytes());
    }

    pub(super) fn all(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(super) fn finish(self) -> Result<(), ProtocolError> {
        let Self { out, start } = self;
        let length = out.len().saturating_sub(start + 4);
        let field = out.get_mut(start..start + 4);
        match (field, u32::try_from(length)) {
            (Some(field), Ok(prefix)) if (HEADER..=MAX_FRAME).contains(&length) => {
                field.copy_from_slice(&prefix.to_be_bytes());
                Ok(())
            }
            _ => {
                out.truncate(start);
                Err(ProtocolError::Size(length))
            }
        }
    }
}
