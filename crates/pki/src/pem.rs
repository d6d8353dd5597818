//! PEM (RFC 7468) with line numbers in the errors.
//!
//! Accepts what Go's `encoding/pem` and OpenSSL accept: text around the blocks (`Bag Attributes`,
//! `openssl x509 -text`), CRLF, white space at line ends, lines of any width, RFC 1421 headers. It never guesses: a
//! block that is broken, or whose BEGIN line is not at the start of its line, is an error, where Go would silently
//! drop it. Byte order marks and zero-width characters, which editors and chats leave behind, are skipped. Not the
//! `pem-rfc7468` crate: that wants lines of one width, refuses headers, reads one block a call, and
//! its errors carry no line number.

use std::{borrow::Cow, ops::Deref};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// Maximum size of a text: a bundle of two hundred RSA-4096 certificates is below half of it.
pub const TEXT_MAX: usize = 1 << 20;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// One PEM block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// The label, such as `CERTIFICATE`.
    pub label: String,
    /// Line of the BEGIN, counted from 1.
    pub line: usize,
    /// RFC 1421 header lines in the block, such as `Proc-Type: 4,ENCRYPTED`; usually none.
    pub headers: Vec<String>,
    /// The decoded content, zeroized when dropped since it may be a key.
    pub der: Zeroizing<Vec<u8>>,
}

/// Shows only the length of the content, which may be a key.
impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block")
            .field("label", &self.label)
            .field("line", &self.line)
            .field("bytes", &self.der.len())
            .finish_non_exhaustive()
    }
}

/// Error in a PEM text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct PemError {
    /// The line, counted from 1.
    pub line: usize,
    /// The error.
    pub reason: &'static str,
}

/// Splits a text into its PEM blocks; text outside of blocks is skipped, as Go and OpenSSL do.
///
/// # Errors
/// At the first malformed block, and if the text is larger than [`TEXT_MAX`].
pub fn blocks(text: &[u8]) -> Result<Vec<Block>, PemError> {
    if text.len() > TEXT_MAX {
        return fail(1, "the file is larger than 1 MiB; keep only the PEM blocks that are needed");
    }
    let text = cleaned(text);
    let mut lines = (1_usize..).zip(text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end));
    let mut found = Vec::new();
    while let Some((line, content)) = lines.next() {
        if let Some(label) = begin_label(line, content)? {
            found.push(block(label, line, &mut lines)?);
        }
    }
    Ok(found)
}

/// Whether a text has byte order marks, zero-width characters or no-break spaces, which nobody sees in an editor.
#[must_use]
pub fn has_marks(text: &[u8]) -> bool {
    matches!(cleaned(text), Cleaned::Without(_))
}

/// A text without byte order marks and zero-width characters, and with spaces in place of no-break spaces.
#[must_use]
pub fn without_marks(text: &str) -> Cow<'_, str> {
    match cleaned(text.as_bytes()) {
        Cleaned::AsIs(_) => Cow::Borrowed(text),
        Cleaned::Without(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
    }
}

/// A text without marks; the copy is zeroized, since it may be a key's.
pub(crate) enum Cleaned<'a> {
    /// There were none.
    AsIs(&'a [u8]),
    /// There were some.
    Without(Zeroizing<Vec<u8>>),
}

impl Deref for Cleaned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::AsIs(text) => text,
            Self::Without(text) => text,
        }
    }
}

/// [`without_marks`] for bytes.
pub(crate) fn cleaned(text: &[u8]) -> Cleaned<'_> {
    if text.is_ascii() {
        return Cleaned::AsIs(text);
    }
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = match rest {
            // U+FEFF, U+200B to U+200F, U+2060, U+00AD.
            [0xef, 0xbb, 0xbf, after @ ..]
            | [0xe2, 0x80, 0x8b..=0x8f, after @ ..]
            | [0xe2, 0x81, 0xa0, after @ ..]
            | [0xc2, 0xad, after @ ..] => after,
            // U+00A0.
            [0xc2, 0xa0, after @ ..] => {
                out.push(b' ');
                after
            }
            _ => {
                out.push(*first);
                after
            }
        };
    }
    if out.len() == text.len() { Cleaned::AsIs(text) } else { Cleaned::Without(out) }
}

/// Encodes one block, 64 columns, with a newline at the end. Not for secrets: the text is not zeroized.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = String::with_capacity(length(label, &base64));
    write(&mut text, label, &base64);
    text
}

/// Like [`encode`], for a secret: every buffer is zeroized, and none is reallocated.
#[must_use]
pub fn encode_secret(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(length(label, &base64)));
    write(&mut text, label, &base64);
    text
}

fn length(label: &str, base64: &str) -> usize {
    base64.len() + base64.len() / 64 + 2 * label.len() + 40
}

fn write(text: &mut String, label: &str, base64: &str) {
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = base64;
    while let Some((row, tail)) = rest.split_at_checked(64) {
        text.push_str(row);
        text.push('\n');
        rest = tail;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
}

fn fail<T>(line: usize, reason: &'static str) -> Result<T, PemError> {
    Err(PemError { line, reason })
}

/// The label, if the line begins a block.
fn begin_label(line: usize, content: &[u8]) -> Result<Option<String>, PemError> {
    let Some(rest) = content.strip_prefix(BEGIN) else {
        // `cat` of files without a newline at their ends, and indentation, look like this.
        if content.windows(BEGIN.len()).any(|window| window == BEGIN) {
            return fail(line, "BEGIN does not stand at the start of its line");
        }
        return Ok(None);
    };
    match rest.strip_suffix(DASHES).map(str::from_utf8) {
        Some(Ok(label)) if is_label(label) => Ok(Some(label.to_owned())),
        _ => fail(line, "the BEGIN line is malformed"),
    }
}

/// RFC 7468, section 3: printable ASCII, with single hyphens and spaces only inside.
fn is_label(label: &str) -> bool {
    (1..=64).contains(&label.len())
        && label.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && label.split([' ', '-']).all(|word| !word.is_empty())
}

/// Reads from the line after BEGIN up to and including END.
fn block<'a>(
    label: String,
    begin: usize,
    lines: &mut impl Iterator<Item = (usize, &'a [u8])>,
) -> Result<Block, PemError> {
    let mut headers: Vec<String> = Vec::new();
    let mut body: Vec<(usize, &[u8])> = Vec::new();
    loop {
        let Some((line, content)) = lines.next() else {
            return fail(begin, "the block that begins here has no END line");
        };
        if let Some(rest) = content.strip_prefix(END) {
            if rest.strip_suffix(DASHES) != Some(label.as_bytes()) {
                return fail(line, "the END line is malformed, or does not repeat the label of the BEGIN line");
            }
            return Ok(Block { der: decode(begin, &body)?, label, line: begin, headers });
        }
        if content.windows(BEGIN.len()).any(|window| window == BEGIN) {
            return fail(line, "a block begins before the one above it has ended");
        }
        let is_header = content.contains(&b':') || (content.starts_with(b" ") && !headers.is_empty());
        if body.is_empty() && is_header {
            match str::from_utf8(content) {
                Ok(header) => headers.push(header.to_owned()),
                Err(_) => return fail(line, "the block has a header that is not text"),
            }
        } else if !content.is_empty() {
            body.push((line, content));
        }
    }
}

/// Decodes the lines of a block into buffers of their final size, so that no reallocation leaves a copy behind.
fn decode(begin: usize, body: &[(usize, &[u8])]) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let Some((last, _)) = body.last() else {
        return fail(begin, "the block is empty");
    };
    let mut base64 = Zeroizing::new(Vec::with_capacity(body.iter().map(|(_, content)| content.len()).sum()));
    for (line, content) in body {
        for byte in content.iter().filter(|byte| !byte.is_ascii_whitespace()) {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')) {
                return fail(*line, "a character is not base64");
            }
            if *byte != b'=' && base64.last() == Some(&b'=') {
                return fail(*line, "base64 goes on after its padding");
            }
            base64.push(*byte);
        }
    }
    let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(base64.len())]);
    match STANDARD.decode_slice(&*base64, &mut der) {
        Ok(length) => der.truncate(length),
        Err(_) => return fail(*last, "the base64 is cut off or wrongly padded"),
    }
    Ok(der)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";

    #[test]
    fn takes_what_go_and_openssl_take() {
        let crlf = ONE.replace('\n', "\r\n");
        let cases: &[(&str, &str, &[usize])] = &[
            ("empty", "", &[]),
            ("only text", "hello\n----\n-----BEGIN\n", &[]),
            ("one", ONE, &[1]),
            ("no newline at the end", ONE.trim_end(), &[1]),
            ("two", &format!("{ONE}{ONE}"), &[1, 4]),
            ("crlf", &crlf, &[1]),
            ("bag attributes", &format!("Bag Attributes\n    friendlyName: x\nKey: <none>\n{ONE}after"), &[4]),
            ("white space at line ends", &ONE.replace('\n', " \t\n"), &[1]),
            ("narrow lines", &ONE.replace("AQID", "AQ\nI\n\nD"), &[1]),
            ("a byte order mark", &format!("\u{feff}{ONE}"), &[1]),
            (
                "characters nobody sees",
                &ONE.replace("AQID", "A\u{200b}Q\u{2060}ID").replace("BEGIN ", "BEGIN\u{a0}"),
                &[1],
            ),
            ("a header", &ONE.replace("AQID", "Proc-Type: 4,CLEAR\n folded\n\nAQID"), &[1]),
        ];
        for (name, text, lines) in cases {
            let found = blocks(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.iter().map(|block| block.line).collect::<Vec<_>>(), *lines, "{name}");
            assert!(found.iter().all(|block| **block.der == [1, 2, 3] && block.label == "CERTIFICATE"), "{name}");
        }
        let long = ONE.replace("AQID", &STANDARD.encode([7; 300]));
        assert_eq!(**blocks(long.as_bytes()).unwrap()[0].der, [7; 300], "one long line");
        let header = &blocks(cases[11].1.as_bytes()).unwrap()[0].headers;
        assert_eq!(*header, ["Proc-Type: 4,CLEAR", " folded"]);
    }

    #[test]
    fn names_the_line() {
        let glued = format!("{}{ONE}", ONE.trim_end());
        let nested = ONE.replace("AQID", ONE);
        let cases: &[(&str, usize, &str)] = &[
            (&ONE[..30], 1, "no END line"),
            (&ONE.replace("AQID", "AQID\nA*ID"), 3, "not base64"),
            (&ONE.replace("AQID", "AQI=\nAQID"), 3, "after its padding"),
            (&ONE.replace("AQID", "AQID\nAQI"), 3, "cut off"),
            (&ONE.replace("AQID", "AQJ="), 2, "cut off"),
            (&ONE.replace("AQID\n", ""), 1, "empty"),
            (&ONE.replace("END CERTIFICATE", "END CERT"), 3, "END line"),
            (&ONE.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE----"), 1, "BEGIN line"),
            (&ONE.replace("CERTIFICATE", ""), 1, "BEGIN line"),
            (&format!("  {ONE}"), 1, "start of its line"),
            (&glued, 3, "END line"),
            (&nested, 2, "before the one above"),
            (&" ".repeat(TEXT_MAX + 1), 1, "1 MiB"),
        ];
        for (text, line, reason) in cases {
            let error = blocks(text.as_bytes()).expect_err(reason);
            assert!(error.line == *line && error.reason.contains(reason), "{text:.80}: {error}");
        }
    }

    #[test]
    fn a_block_does_not_show_its_content() {
        let shown = format!("{:?}", blocks(ONE.as_bytes()).unwrap());
        assert_eq!(shown, r#"[Block { label: "CERTIFICATE", line: 1, bytes: 3, .. }]"#);
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = blocks(&bytes);
            let mut body = ONE.as_bytes()[..28].to_vec();
            body.extend(&bytes);
            let _ = blocks(&body);
        }

        #[test]
        fn encoded_pem_is_read_back(der in proptest::collection::vec(any::<u8>(), 1..400)) {
            let text = encode("X509 CRL", &der);
            prop_assert!(text.lines().all(|line| line.len() <= 64) && text.ends_with("-----\n"));
            let found = blocks(text.as_bytes()).unwrap();
            prop_assert_eq!(&*found[0].der, &der);
        }
    }
}
