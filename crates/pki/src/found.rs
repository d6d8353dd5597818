//! Recognizes what a file is that should be PEM and is not, so that a message can say so and give the command that
//! converts it. Never shows a byte of the content: it may be a key.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use const_oid::ObjectIdentifier;
use der::{AnyRef, Decode, Tag, Tagged};
use zeroize::Zeroizing;

use crate::pem;

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
            Self::Pkcs12 => replaced(file, &format!("openssl pkcs12 -in {file} -nokeys")),
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
            (Wanted::PrivateKey, Self::PrivateKey | Self::EncryptedPrivateKey) => {
                replaced_secretly(quoted, &format!("openssl pkey -inform DER -in {quoted}"))
            }
            (Wanted::PrivateKey, Self::Pkcs12) => {
                replaced_secretly(quoted, &format!("openssl pkcs12 -in {quoted} -nocerts"))
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
    if let Some(encoding) = utf16(head) {
        let remedy = replaced(&quoted(file), &format!("iconv -f {encoding} -t UTF-8 {}", quoted(file)));
        return found("is UTF-16 text, as Windows' editors and PowerShell write it", remedy);
    }
    if let Some((what, remedy)) = magic(head, file) {
        return found(what, remedy);
    }
    if let Some(kind) = der(bytes) {
        return found(&format!("is {kind} in DER, not in PEM"), kind.to(wanted, file));
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

/// What to do about a PEM block other than a certificate in a file of certificates.
pub(crate) fn foreign_block(label: &str, file: &str, is_alone: bool) -> Found {
    let quoted = &quoted(file);
    let what = format!("holds a `{label}`");
    let remedy = match label {
        "PKCS7" | "PKCS #7 SIGNED DATA" => Der::Pkcs7.to_certificates(file, Form::Pem),
        "CMS" => replaced(quoted, &format!("sed 's/ CMS-/ PKCS7-/' {quoted} | openssl pkcs7 -print_certs")),
        "TRUSTED CERTIFICATE" if is_alone => replaced(quoted, &format!("openssl x509 -in {quoted}")),
        "TRUSTED CERTIFICATE" => {
            let each = "openssl storeutl -certs";
            replaced(quoted, &format!("{each} {quoted} | sed -n '/BEGIN/,/END/p'"))
        }
        "X509 CERTIFICATE" => in_place(quoted, "s/ X509 CERTIFICATE-----/ CERTIFICATE-----/"),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Der::Request.to_certificates(file, Form::Pem),
        _ if is_alone && label.ends_with("PRIVATE KEY") => Der::PrivateKey.to_certificates(file, Form::Pem),
        _ if is_alone => Der::PublicKey.to_certificates(file, Form::Pem),
        _ => {
            let why =
                if label.ends_with("PRIVATE KEY") { "this file is public, remove it from there" } else { "remove it" };
            let label = label.replace(['/', '.', '*', '[', ']'], ".");
            format!("{why}: {}", in_place(quoted, &format!("/-----BEGIN {label}-----/,/-----END {label}-----/d")))
        }
    };
    Found { what, remedy }
}

/// The command that takes a byte order mark and zero-width characters out of a file.
pub(crate) fn without_marks(file: &str) -> String {
    // The bytes of pem::MARKS, for a sed that knows no UTF-8.
    in_place(&quoted(file), r"s/\xEF\xBB\xBF\|\xE2\x80[\x8B-\x8F]\|\xE2\x81\xA0\|\xC2\xAD//g; s/\xC2\xA0/ /g")
}

/// A command in place of which a shell sees one word.
fn quoted(file: &str) -> String {
    if file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte)) && !file.is_empty() {
        return file.to_owned();
    }
    format!("'{}'", file.replace('\'', r"'\''"))
}

fn in_place(quoted: &str, script: &str) -> String {
    format!("LC_ALL=C sed -i '{script}' {quoted}")
}

fn replaced(quoted: &str, command: &str) -> String {
    format!("{command} > {quoted}.new && mv {quoted}.new {quoted}")
}

fn replaced_secretly(quoted: &str, command: &str) -> String {
    format!("(umask 077; {})", replaced(quoted, command))
}

/// The name by which iconv knows the encoding, when it is UTF-16 of mostly ASCII.
fn utf16(head: &[u8]) -> Option<&'static str> {
    let (units, _) = head.as_chunks::<2>();
    let zeros = |at: fn(&[u8; 2]) -> (u8, u8)| {
        let letters = units.iter().take(32).map(at).filter(|(letter, zero)| *zero == 0 && *letter != 0).count();
        units.len() >= 4 && letters == units.len().min(32)
    };
    match head {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ if zeros(|[one, two]| (*one, *two)) => Some("UTF-16LE"),
        _ if zeros(|[one, two]| (*two, *one)) => Some("UTF-16BE"),
        _ => None,
    }
}

/// Files that their first bytes tell.
fn magic(head: &[u8], file: &str) -> Option<(&'static str, String)> {
    let quoted = &quoted(file);
    match head {
        [0xfe, 0xed, 0xfe, 0xed, ..] => {
            let convert = format!(
                "keytool -importkeystore -srckeystore {quoted} -deststoretype PKCS12 -destkeystore {quoted}.p12"
            );
            Some(("is a Java keystore (JKS)", format!("convert it, then export from the PKCS#12 file: {convert}")))
        }
        [0x1f, 0x8b, ..] => Some(("is compressed with gzip", replaced(quoted, &format!("gzip -dc {quoted}")))),
        [b'P', b'K', 3, 4, ..] => {
            Some(("is a ZIP archive", format!("unpack it and give the PEM file in it: unzip {quoted}")))
        }
        _ => None,
    }
}

/// Text that people take for PEM.
fn text(bytes: &[u8], file: &str, wanted: Wanted) -> Option<Found> {
    if wanted == Wanted::Text {
        return None;
    }
    let cleaned = pem::cleaned(bytes);
    let text = cleaned.trim_ascii_start();
    let quoted = &quoted(file);
    let (what, remedy) = match in_base64(text, quoted, wanted).or_else(|| foreign(text, quoted)) {
        Some(found) => found,
        None if contains(text, b"-----BEGIN ") || contains(text, b"-----END ") => folded(text, quoted, wanted)?,
        None => without_blocks(text)?,
    };
    Some(Found { what, remedy })
}

/// A predicate of the file, and the remedy.
type Kind = (String, String);

fn in_base64(text: &[u8], quoted: &str, wanted: Wanted) -> Option<Kind> {
    let decoded = |by: &str| match wanted {
        Wanted::PrivateKey => replaced_secretly(quoted, &format!("base64 -d {quoted}{by}")),
        Wanted::Certificates | Wanted::Request | Wanted::Text => replaced(quoted, &format!("base64 -d {quoted}{by}")),
    };
    if text.starts_with(b"LS0t") {
        return Some(("is base64 of PEM, as in the data of a Kubernetes Secret".to_owned(), decoded("")));
    }
    if text.starts_with(b"TFMwd") {
        return Some(("is PEM in base64 twice".to_owned(), decoded(" | base64 -d")));
    }
    let kind = bare_base64(text)?;
    let remedy = match (wanted, kind) {
        (Wanted::Certificates, Der::Certificate) => decoded(" | openssl x509 -inform DER"),
        (Wanted::Certificates, Der::Pkcs7) => decoded(" | openssl pkcs7 -inform DER -print_certs"),
        (Wanted::PrivateKey, Der::PrivateKey) => decoded(" | openssl pkey -inform DER"),
        (Wanted::Request, Der::Request) => decoded(" | openssl req -inform DER"),
        (_, kind) => kind.to(wanted, quoted),
    };
    Some((format!("is {kind} in base64 without BEGIN and END lines"), remedy))
}

/// Text of other programs.
fn foreign(text: &[u8], quoted: &str) -> Option<Kind> {
    let starts = |with: &str| text.get(..with.len()).is_some_and(|head| head.eq_ignore_ascii_case(with.as_bytes()));
    let (what, remedy) = if ["<!doctype", "<html", "<?xml", "<head"].into_iter().any(starts) {
        let remedy =
            "it is what a server answered in place of the file, often a login or error page: download it again";
        ("is an HTML page", remedy.to_owned())
    } else if starts("apiVersion:") || contains(text, b"\nkind: Secret") || contains(text, b"\"kind\": \"Secret\"") {
        let remedy = "give the value in it, not the manifest: kubectl get secret NAME -n NAMESPACE -o \
                      jsonpath='{.data.ca-cert\\.pem}' | base64 -d";
        ("is a Kubernetes manifest", remedy.to_owned())
    } else if starts("{") {
        ("is JSON", format!("give the PEM text in it: jq -r .FIELD {quoted}"))
    } else if starts("$ANSIBLE_VAULT;") {
        ("is encrypted by Ansible Vault", format!("decrypt it: ansible-vault decrypt {quoted}"))
    } else if starts("PuTTY-User-Key-File") {
        ("is a PuTTY key, an SSH key", "give the CA's own file in PEM".to_owned())
    } else if starts("ssh-") || starts("ecdsa-sha2-") {
        ("is an OpenSSH public key", "give the CA's own file in PEM".to_owned())
    } else {
        return None;
    };
    Some((what.to_owned(), remedy))
}

/// PEM whose line ends were lost.
fn folded(text: &[u8], quoted: &str, wanted: Wanted) -> Option<Kind> {
    if ["\\n-----END", "-----\\n", "-----\\r\\n"].into_iter().any(|part| contains(text, part.as_bytes())) {
        let script = r#"s/\\r//g; s/\\n/\n/g; s/^[[:space:]]*["'"'"']//; s/["'"'"'],*$//"#;
        return Some(("has \\n as two characters in place of line ends".to_owned(), in_place(quoted, script)));
    }
    if contains(text, b"----------BEGIN ") {
        let what = "has the END line of a block and the BEGIN line of the next on one line";
        return Some((what.to_owned(), in_place(quoted, r"s/----------BEGIN /-----\n-----BEGIN /g")));
    }
    let mut lines = text.split(|byte| *byte == b'\n');
    lines.find(|line| contains(line, b"-----BEGIN ") && contains(line, b"-----END "))?;
    let blocks = r"s/ *(-----BEGIN [A-Z0-9 ]+-----) */\n\1\n/g; s/ *(-----END [A-Z0-9 ]+-----) */\n\1\n/g";
    let command = format!(r"sed -E '{blocks}' {quoted} | sed -E '/-----/!s/ +/\n/g' | sed '/^$/d'");
    let remedy = match wanted {
        Wanted::PrivateKey => replaced_secretly(quoted, &command),
        Wanted::Certificates | Wanted::Request | Wanted::Text => replaced(quoted, &command),
    };
    Some(("is PEM folded into one line".to_owned(), remedy))
}

fn without_blocks(text: &[u8]) -> Option<Kind> {
    let has = |part: &str| contains(text, part.as_bytes());
    let (what, remedy) = if has("BEGIN ") && (has("\u{2013}") || has("\u{2014}")) {
        let remedy = "copy it again, not through a word processor, a mail or a chat";
        ("has typographic dashes in place of hyphens in its BEGIN line", remedy)
    } else if has("Data:") && has("Signature Algorithm:") {
        let remedy = "export it again without -noout, or as PEM";
        ("is OpenSSL's description of a certificate or request, without itself", remedy)
    } else {
        return None;
    };
    Some((what.to_owned(), remedy.to_owned()))
}

/// The structure that a text of nothing but base64 holds.
fn bare_base64(text: &[u8]) -> Option<Der> {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte) || byte.is_ascii_whitespace();
    if !text.starts_with(b"MI") || !text.iter().all(is_base64) {
        return None;
    }
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    plain.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plain.len())]);
    let length = STANDARD.decode_slice(&*plain, &mut bytes).ok()?;
    bytes.truncate(length);
    der(&bytes)
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
