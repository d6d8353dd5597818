//! root-cert.pem as text. It goes out to workloads byte for byte, and Istio's clients read PEM less leniently than
//! [`pem`] does: what one of them cannot read is refused here.

use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{Input, Problem};
use crate::{found, pem};

/// BoringSSL reads lines in pieces of this length.
const PIECE: usize = 253;

/// The text, if all of Istio's clients read the same certificates from it; the problems otherwise. Empty where the file
/// has problems already.
pub(super) fn passed_on(input: &Input, problems: &mut Vec<Problem>) -> String {
    if problems.iter().any(|problem| problem.file == input.name) {
        return String::new();
    }
    if let Some((reason, remedy)) = unreadable(input) {
        problems.push(Problem::with_remedy(&input.name, reason, remedy));
    }
    String::from_utf8(input.bytes.clone()).unwrap_or_default()
}

/// What is wrong with a text that [`pem`] reads, and what to do.
fn unreadable(Input { name, bytes }: &Input) -> Option<(&'static str, String)> {
    if pem::has_marks(bytes) {
        let reason =
            "has a byte order mark, zero-width characters or no-break spaces, and goes out to workloads as it is";
        return Some((reason, found::without_marks(name)));
    }
    if str::from_utf8(bytes).is_err() {
        return Some(("is not UTF-8 text, as the reply to Istio's agents must be", found::blocks_only(name)));
    }
    if bytes.iter().position(|byte| *byte == 0).is_some_and(|nul| has_block_after(bytes, nul)) {
        let reason = "has NUL characters, which stop Envoy (BoringSSL) and OpenSSL from reading on";
        return Some((reason, found::without_nul(name)));
    }
    let blocks = pem::blocks(bytes).unwrap_or_default();
    if blocks.iter().any(|block| !block.headers.is_empty()) {
        let remedy = "remove the lines with a colon between BEGIN and the base64, and the empty line after them";
        return Some(("has a PEM block with a header, and Go skips such a block", remedy.to_owned()));
    }
    let inside = blocks.iter().flat_map(|block| lines_of(bytes, block.line));
    for (at, line) in inside {
        let text = line.trim_ascii_end();
        if at > 0 && text.is_empty() {
            let reason = "has empty lines within a certificate, which Envoy (BoringSSL) and OpenSSL do not read";
            return Some((reason, found::without_blanks(name)));
        }
        if line.iter().any(|byte| matches!(byte, b'\x0b' | b'\x0c')) {
            let reason = "has form feeds or vertical tabs within a certificate, which Go does not read";
            return Some((reason, found::without_blanks(name)));
        }
        if is_cut_at_end(line) {
            let reason = "has lines of 253 characters, or a multiple, after which Envoy (BoringSSL) takes the end of the line \
                          for an empty line";
            return Some((reason, found::folded_to_64(name)));
        }
    }
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let is_same =
        read.is_ok_and(|read| read.iter().map(|it| it.as_ref()).eq(blocks.iter().map(|it| it.der.as_slice())));
    let reason = "has BEGIN or END lines, or lines of base64, in a form that rustls (ztunnel) does not read";
    (!is_same).then(|| (reason, found::without_blanks(name)))
}

fn has_block_after(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.windows(9).any(|window| window == b"-----END "))
}

/// The lines of a block after its BEGIN, with their number in the block.
fn lines_of(bytes: &[u8], begin: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = bytes.split(|byte| *byte == b'\n').skip(begin);
    lines.take_while(|line| !line.starts_with(b"-----END ")).enumerate()
}

/// Whether a reader of such pieces has nothing but white space in the last piece of a line.
fn is_cut_at_end(line: &[u8]) -> bool {
    let last = line.len().checked_rem(PIECE).unwrap_or_default();
    let rest = line.get(line.len().saturating_sub(last)..).unwrap_or_default();
    line.len() >= PIECE && rest.trim_ascii().is_empty()
}
