//! Reads DER in place, element by element; the `der` crate checks tags and lengths.
//!
//! The lint parses each certificate three times (built, signed, and in the token host). Parsing into x509-cert's
//! TbsCertificate would take 3.8 us instead of 1.5 us each time, 3 % of a certificate in total, and the rules for
//! order, criticality and form would still have to be checked. Never allocates, never recurses.

use der::{Decode, Reader, SliceReader, Tag, Tagged, asn1::AnyRef};

/// Not the expected element, which the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<der::Error> for Malformed {
    fn from(_: der::Error) -> Self {
        Self
    }
}

/// A position in a sequence of DER elements.
#[derive(Clone, Debug)]
pub(crate) struct DerReader<'a>(SliceReader<'a>);

impl<'a> DerReader<'a> {
    /// Starts at the first element in `bytes`.
    pub(crate) fn over(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Ok(Self(SliceReader::new(bytes)?))
    }

    /// Enters the only element in `bytes`, which must have this tag.
    pub(crate) fn inside(bytes: &'a [u8], tag: Tag) -> Result<Self, Malformed> {
        let mut outer = Self::over(bytes)?;
        let inner = outer.enter(tag)?;
        outer.finish()?;
        Ok(inner)
    }

    /// The next element's tag and content.
    pub(crate) fn any(&mut self) -> Result<(Tag, &'a [u8]), Malformed> {
        let any = AnyRef::decode(&mut self.0)?;
        Ok((any.tag(), any.value()))
    }

    /// The content of the next element, which must have this tag.
    pub(crate) fn content(&mut self, tag: Tag) -> Result<&'a [u8], Malformed> {
        match self.any()? {
            (found, content) if found == tag => Ok(content),
            _ => Err(Malformed),
        }
    }

    /// The next element including its tag and length; it must have this tag.
    pub(crate) fn whole(&mut self, tag: Tag) -> Result<&'a [u8], Malformed> {
        if Tag::peek(&self.0)? != tag {
            return Err(Malformed);
        }
        Ok(self.0.tlv_bytes()?)
    }

    /// The next element including its tag and length, and its tag.
    pub(crate) fn any_whole(&mut self) -> Result<(Tag, &'a [u8]), Malformed> {
        let tag = Tag::peek(&self.0)?;
        Ok((tag, self.0.tlv_bytes()?))
    }

    /// Enters the next element, which must have this tag.
    pub(crate) fn enter(&mut self, tag: Tag) -> Result<Self, Malformed> {
        Self::over(self.content(tag)?)
    }

    /// The content of the next element if it has this tag.
    pub(crate) fn optional(&mut self, tag: Tag) -> Result<Option<&'a [u8]>, Malformed> {
        if self.at_end() || Tag::peek(&self.0)? != tag {
            return Ok(None);
        }
        self.content(tag).map(Some)
    }

    /// The content of the next element: a positive INTEGER in its shortest form, including its sign byte.
    pub(crate) fn positive_integer(&mut self) -> Result<&'a [u8], Malformed> {
        let content = self.content(Tag::Integer)?;
        match content {
            [] | [0] | [0x80..=0xff, ..] | [0, 0..=0x7f, ..] => Err(Malformed),
            _ => Ok(content),
        }
    }

    /// The content of the next element: a BIT STRING of whole bytes.
    pub(crate) fn bytes_in_bits(&mut self) -> Result<&'a [u8], Malformed> {
        match self.content(Tag::BitString)? {
            [0, bytes @ ..] => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// Whether there are no more elements.
    pub(crate) fn at_end(&self) -> bool {
        self.0.is_finished()
    }

    /// Checks that nothing follows.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        Ok(self.0.finish()?)
    }
}

/// A context-specific tag.
pub(crate) fn context(number: u32, constructed: bool) -> Tag {
    der::TagNumber(number).context_specific(constructed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_positive_and_shortest() {
        let cases: &[(&[u8], bool)] = &[
            (&[2, 1, 1], true),
            (&[2, 1, 0x7f], true),
            (&[2, 2, 0, 0x80], true),
            (&[2, 1, 0], false),
            (&[2, 1, 0x80], false),
            (&[2, 2, 0, 0x7f], false),
            (&[2, 0], false),
            (&[2, 2, 1], false),
            (&[2, 0x81, 1, 1], false),
            (&[4, 1, 1], false),
        ];
        for (bytes, good) in cases {
            let found = DerReader::over(bytes).and_then(|mut reader| reader.positive_integer().map(<[u8]>::len));
            assert_eq!(found.is_ok(), *good, "{bytes:02x?}");
        }
    }

    #[test]
    fn trailing_bytes_and_short_elements_are_refused() {
        assert!(DerReader::inside(&[0x30, 0], Tag::Sequence).is_ok());
        assert!(DerReader::inside(&[0x30, 0, 0], Tag::Sequence).is_err());
        assert!(DerReader::inside(&[0x30, 1], Tag::Sequence).is_err());
        assert!(DerReader::inside(&[0x31, 0], Tag::Sequence).is_err());
        assert!(DerReader::inside(&[0x30, 0x80, 0, 0], Tag::Sequence).is_err(), "indefinite length");
    }
}
