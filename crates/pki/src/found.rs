//! Recognizes what a file is that should be PEM and is not, so that a message can say so and give the command that
//! converts it. Never shows a byte of the content: it may be a key.

mod blocks;
mod command;
mod text;

use std::fmt;

use const_oid::ObjectIdentifier;
use der::{AnyRef, Decode, Encode, Tag, Tagged};

pub(crate) use self::blocks::Blocks;
use self::{
    command::{in_place, quoted, replaced, replaced_secretly},
    text::text,
};

/// Files of old programs are encrypted with RC2, which OpenSSL 3 does not read by default.
const LEGACY: &str = "convert it, with the option -legacy if OpenSSL says that RC2 is unsupported";

/// How much of a file is searched for signs of its form.
const LOOKED_AT: usize = 64 * 1024;

/// What belongs in a file, which decides on the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// PEM certificates.
    Certificates,
    /// A private key.
    PrivateKey,
    /// A certificate request.
    Request,
    /// Text that is not PEM.
    Text,
}

/// What a file is instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// A predicate of the file: `is UTF-16 text`.
    pub what: String,
    /// What to do; a command where one helps.
    pub remedy: String,
}

/// Whether a structure is the bare file or stands in a PEM block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Der,
    Pem,
}

/// A kind of DER structure that is found in files of keys and certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Der {
    Certificate,
    Crl,
    EncryptedPrivateKey,
    Pkcs12,
    Pkcs7,
    PrivateKey,
    PublicKey,
    Request,
}

impl fmt::Display for Der {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "a certificate",
            Self::Crl => "a revocation list (CRL)",
            Self::EncryptedPrivateKey => "an encrypted private key",
            Self::Pkcs12 => "a PKCS#12 file",
            Self::Pkcs7 => "PKCS#7 (.p7b)",
            Self::PrivateKey => "a private key",
            Self::PublicKey => "a public key",
            Self::Request => "a certificate request",
        })
    }
}

impl Der {
    /// What to do where certificates belong.
    pub(crate) fn to_certificates(self, file: &str, form: Form) -> String {
        let inform = if form == Form::Der { "-inform DER " } else { "" };
        let file = &quoted(file);
        match self {
            Self::Certificate => replaced(file, &format!("openssl x509 {inform}-in {file}")),
            Self::Pkcs7 => replaced(file, &format!("openssl pkcs7 {inform}-in {file} -print_certs")),
            Self::Pkcs12 => format!("{LEGACY}: {}", replaced(file, &format!("openssl pkcs12 -in {file} -nokeys"))),
            Self::Request => {
                "a request is what the issuing CA signs; put the certificate that it returned for the request here"
                    .to_owned()
            }
            Self::PrivateKey | Self::EncryptedPrivateKey => {
                "keep the private key out of this public file, and put the certificate here".to_owned()
            }
            Self::Crl | Self::PublicKey => "put the certificate here".to_owned(),
        }
    }

    /// What to do where something else belongs.
    pub(crate) fn to(self, wanted: Wanted, file: &str) -> String {
        let quoted = &quoted(file);
        match (wanted, self) {
            (Wanted::PrivateKey, Self::PrivateKey) => {
                replaced_secretly(quoted, &format!("openssl pkey -inform DER -in {quoted}"))
            }
            // It stays encrypted, as `openssl pkey` would not leave it.
            (Wanted::PrivateKey, Self::EncryptedPrivateKey) => {
                let label = "ENCRYPTED PRIVATE KEY-----";
                let wrapped =
                    format!("{{ echo '-----BEGIN {label}'; base64 -w 64 {quoted}; echo '-----END {label}'; }}");
                replaced_secretly(quoted, &wrapped)
            }
            (Wanted::PrivateKey, Self::Pkcs12) => {
                let extracted = format!("openssl pkcs12 -in {quoted} -nocerts");
                format!("{LEGACY}: {}", replaced_secretly(quoted, &extracted))
            }
            (Wanted::PrivateKey, _) => "give the file with the CA's private key".to_owned(),
            (Wanted::Request, Self::Request) => replaced(quoted, &format!("openssl req -inform DER -in {quoted}")),
            (Wanted::Request, _) => "make a request: openssl req -new -key KEY -subj / -out REQUEST".to_owned(),
            (Wanted::Certificates, kind) => kind.to_certificates(file, Form::Der),
            (Wanted::Text, _) => "give the text file".to_owned(),
        }
    }
}

/// What a file is, when it is something that people take for PEM; `None` for PEM, and where nothing is recognized.
/// `file` is its path, for the command.
#[must_use]
pub fn file(bytes: &[u8], file: &str, wanted: Wanted) -> Option<Found> {
    let head = bytes.get(..LOOKED_AT).unwrap_or(bytes);
    let found = |what: &str, remedy: String| Some(Found { what: what.to_owned(), remedy });
    if let Some((encoding, what)) = wide(head) {
        let remedy = replaced(&quoted(file), &format!("iconv -f {encoding} -t UTF-8 {}", quoted(file)));
        return found(what, remedy);
    }
    if let Some((what, remedy)) = magic(head, file) {
        return found(what, remedy);
    }
    let several = certificates_in_a_row(bytes);
    if several.len() > 1 && wanted == Wanted::Certificates {
        let quoted = quoted(file);
        let each = |at: &usize| format!("tail -c +{} {quoted} | openssl x509 -inform DER; ", at.saturating_add(1));
        let each: String = several.iter().map(each).collect();
        let what = format!("is {} certificates in DER, one after the other, not in PEM", several.len());
        return found(&what, replaced(&quoted, &format!("{{ {each}}}")));
    }
    if let Some(kind) = der(bytes) {
        return found(&format!("is {kind} in DER, not in PEM"), kind.to(wanted, file));
    }
    if head.contains(&0) && contains(bytes, b"-----BEGIN ") {
        return found("has NUL characters", without_nul(file));
    }
    if head.contains(&0) {
        return found("is binary data, not PEM", format!("look what it is: file {}", quoted(file)));
    }
    text(bytes, file, wanted)
}

/// The kind of a DER structure, by its first elements.
pub(crate) fn der(bytes: &[u8]) -> Option<Der> {
    // Indefinite lengths are BER, which PKCS#12 and PKCS#7 files of some programs have.
    match bytes {
        [0x30, 0x80, 0x02, 0x01, 0x03, ..] => return Some(Der::Pkcs12),
        [0x30, 0x80, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, ..] => return Some(Der::Pkcs7),
        _ => {}
    }
    let (outer, _) = AnyRef::from_der_partial(bytes).ok()?;
    let parts = elements(outer)?;
    let tags: Vec<Tag> = parts.iter().map(Tagged::tag).collect();
    let first = parts.first()?;
    let inner = || elements(*first);
    match tags.as_slice() {
        [Tag::ObjectIdentifier, ..] => {
            let signed_data = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
            (first.decode_as::<ObjectIdentifier>() == Ok(signed_data)).then_some(Der::Pkcs7)
        }
        [Tag::Integer, Tag::Sequence, ..] if first.value() == [3] => Some(Der::Pkcs12),
        // PKCS#8, PKCS#1 and SEC 1.
        [Tag::Integer, Tag::Sequence, Tag::OctetString, ..] | [Tag::Integer, Tag::OctetString, ..] => {
            Some(Der::PrivateKey)
        }
        [Tag::Integer, Tag::Integer, _, _, ..] => Some(Der::PrivateKey),
        // PKCS#1.
        [Tag::Integer, Tag::Integer] => Some(Der::PublicKey),
        [Tag::Sequence, Tag::OctetString] => Some(Der::EncryptedPrivateKey),
        [Tag::Sequence, Tag::BitString] => Some(Der::PublicKey),
        [Tag::Sequence, Tag::Sequence, Tag::BitString] => {
            let inner: Vec<Tag> = inner()?.iter().map(Tagged::tag).collect();
            Some(match inner.as_slice() {
                [Tag::Integer, Tag::Sequence, Tag::Sequence, Tag::ContextSpecific { .. }] => Der::Request,
                [Tag::Integer, Tag::Sequence, Tag::Sequence, Tag::UtcTime | Tag::GeneralizedTime, ..] => Der::Crl,
                _ => Der::Certificate,
            })
        }
        _ => None,
    }
}

/// The command that takes a byte order mark and zero-width characters out of a file.
pub(crate) fn without_marks(file: &str) -> String {
    // The bytes of pem::MARKS, for a sed that knows no UTF-8.
    in_place(&quoted(file), r"s/\xEF\xBB\xBF\|\xE2\x80[\x8B-\x8F]\|\xE2\x81\xA0\|\xC2\xAD//g; s/\xC2\xA0/ /g")
}

/// The command that puts the output of another, about `FILE`, in place of a private key's file.
pub(crate) fn key_converted(file: &str, command: &str) -> String {
    let quoted = &quoted(file);
    replaced_secretly(quoted, &command.replace("FILE", quoted))
}

/// The command that converts an OpenSSH key; ssh-keygen does that in place.
pub(crate) fn ssh_key_converted(file: &str) -> String {
    let quoted = &quoted(file);
    let convert = format!("ssh-keygen -q -p -N '' -m PKCS8 -f {quoted}.new");
    format!("(umask 077; cp {quoted} {quoted}.new && {convert} && mv {quoted}.new {quoted})")
}

/// The command that corrects the label of a private key.
pub(crate) fn key_relabelled(file: &str, label: &str, right: &str) -> String {
    in_place(&quoted(file), &format!("s/\\(BEGIN\\|END\\) {}-----/\\1 {right}-----/", command::pattern(label)))
}

/// The command that leaves nothing but the PEM blocks of a file.
pub(crate) fn blocks_only(file: &str) -> String {
    let quoted = quoted(file);
    format!("LC_ALL=C sed -n -i '/^-----BEGIN /,/^-----END /p' {quoted}")
}

/// The command that takes NUL characters out of a file.
pub(crate) fn without_nul(file: &str) -> String {
    let quoted = &quoted(file);
    replaced(quoted, &format!("tr -d '\\000' < {quoted}"))
}

/// The command that takes empty lines, and white space at both ends of lines, out of a file.
pub(crate) fn without_blanks(file: &str) -> String {
    in_place(&quoted(file), "s/^[[:space:]]*//; s/[[:space:]]*$//; /^$/d")
}

/// The command that folds long lines to the usual length.
pub(crate) fn folded_to_64(file: &str) -> String {
    let quoted = &quoted(file);
    replaced(quoted, &format!("tr -d '\\r' < {quoted} | fold -w 64"))
}

/// Where each of a row of DER certificates begins, if there is nothing else.
fn certificates_in_a_row(bytes: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Ok((element, after)) = AnyRef::from_der_partial(rest) else { return Vec::new() };
        if element.to_der().ok().and_then(|der| self::der(&der)) != Some(Der::Certificate) {
            return Vec::new();
        }
        starts.push(bytes.len().saturating_sub(rest.len()));
        rest = after;
    }
    starts
}

/// The name by which iconv knows the encoding, when it is UTF-16 or UTF-32 of mostly ASCII, and what the file is.
fn wide(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const UTF16: &str = "is UTF-16 text, as Windows' editors and PowerShell write it";
    const UTF32: &str = "is UTF-32 text";
    // Of the first characters, the bytes that are not zero are all at one place.
    let is_at = |width: usize, place: usize| {
        let characters = head.chunks_exact(width).take(32);
        let is_one = |bytes: &[u8]| bytes.iter().enumerate().all(|(at, byte)| (*byte == 0) != (at == place));
        head.len() >= 4 * width && characters.clone().all(is_one)
    };
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some(("UTF-32", UTF32)),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(("UTF-16", UTF16)),
        _ if is_at(2, 0) => Some(("UTF-16LE", UTF16)),
        _ if is_at(2, 1) => Some(("UTF-16BE", UTF16)),
        _ if is_at(4, 0) => Some(("UTF-32LE", UTF32)),
        _ if is_at(4, 3) => Some(("UTF-32BE", UTF32)),
        _ => None,
    }
}

/// Files that their first bytes tell.
fn magic(head: &[u8], file: &str) -> Option<(&'static str, String)> {
    let quoted = &quoted(file);
    let unpacked = |by: &str| replaced(quoted, &format!("{by} -dc {quoted}"));
    let found = match head {
        [0xfe, 0xed, 0xfe, 0xed, ..] => {
            let convert = format!(
                "keytool -importkeystore -srckeystore {quoted} -deststoretype PKCS12 -destkeystore {quoted}.p12"
            );
            ("is a Java keystore (JKS)", format!("convert it, then export from the PKCS#12 file: {convert}"))
        }
        [0x1f, 0x8b, ..] => ("is compressed with gzip", unpacked("gzip")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("is compressed with xz", unpacked("xz")),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => ("is compressed with bzip2", unpacked("bzip2")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("is compressed with zstd", unpacked("zstd")),
        [b'P', b'K', 3, 4, ..] => {
            ("is a ZIP archive", format!("unpack it and give the PEM file in it: unzip {quoted}"))
        }
        _ if head.get(257..262) == Some(b"ustar") => {
            ("is a tar archive", format!("unpack it and give the PEM file in it: tar -xf {quoted}"))
        }
        [b'%', b'P', b'D', b'F', b'-', ..] => ("is a PDF document", "give the PEM file itself".to_owned()),
        _ => return None,
    };
    Some(found)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn elements(of: AnyRef<'_>) -> Option<Vec<AnyRef<'_>>> {
    let mut rest = if of.tag() == Tag::Sequence { of.value() } else { return None };
    let mut found = Vec::new();
    while !rest.is_empty() && found.len() < 16 {
        let (element, after) = AnyRef::from_der_partial(rest).ok()?;
        found.push(element);
        rest = after;
    }
    Some(found)
}
