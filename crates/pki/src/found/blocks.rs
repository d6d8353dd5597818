//! PEM blocks that are not certificates, in a file of certificates. Their content decides what they are, and only if it
//! does not, their label, which people write by hand.

use der::{Decode, Encode};

use super::{
    Der, Form, Found,
    command::{in_place, pattern, quoted, replaced},
    der,
};
use crate::{
    pem::Block,
    structure::{Signed, TbsCertificate},
};

const LABEL: &str = "CERTIFICATE";
/// A certificate followed by OpenSSL's trust settings.
const TRUSTED: &str = "TRUSTED CERTIFICATE";
/// OpenSSL's label of old.
const X509: &str = "X509 CERTIFICATE";

/// The blocks of one file.
pub(crate) struct Blocks<'a> {
    file: &'a str,
    blocks: &'a [Block],
}

/// What a block holds, whatever its label says.
fn kind(block: &Block) -> Option<Der> {
    let is_certificate = Signed::from_der(&block.der)
        .and_then(|outer| outer.content.to_der())
        .is_ok_and(|content| TbsCertificate::from_der(&content).is_ok());
    if is_certificate {
        return Some(Der::Certificate);
    }
    // Whatever else is signed looks like a certificate to the other reader, such as an attribute certificate.
    let may_be_certificate = [LABEL, TRUSTED, X509].contains(&block.label.as_str());
    der(&block.der).filter(|kind| *kind != Der::Certificate || may_be_certificate)
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(file: &'a str, blocks: &'a [Block]) -> Self {
        Self { file, blocks }
    }

    /// What a block is instead of a certificate, and what to do about it. `None` for a certificate, be it malformed.
    pub(crate) fn foreign(&self, block: &Block) -> Option<Found> {
        let kind = kind(block);
        if block.label != LABEL {
            return Some(Found { what: format!("holds a `{}`", block.label), remedy: self.remedy(block, kind) });
        }
        let kind = kind.filter(|kind| *kind != Der::Certificate)?;
        let what = format!("the certificate is {kind} under the label {LABEL}");
        Some(Found { what, remedy: self.remedy(block, Some(kind)) })
    }

    fn remedy(&self, block: &Block, kind: Option<Der>) -> String {
        let (quoted, label) = (&quoted(self.file), block.label.as_str());
        match kind {
            Some(Der::Pkcs7) => self.unpacked(),
            Some(Der::Certificate) if label == TRUSTED && self.blocks.len() == 1 => {
                replaced(quoted, &format!("openssl x509 -in {quoted}"))
            }
            Some(Der::Certificate) if label == TRUSTED => {
                replaced(quoted, &format!("openssl storeutl -certs {quoted} | sed -n '/BEGIN/,/END/p'"))
            }
            Some(Der::Certificate) => relabelled(quoted, label),
            None if label == X509 => relabelled(quoted, label),
            Some(Der::Pkcs12) if self.blocks.len() == 1 => {
                replaced(quoted, &format!("sed '/-----/d' {quoted} | base64 -d | openssl pkcs12 -nokeys"))
            }
            None if label == "AGE ENCRYPTED FILE" => replaced(quoted, &format!("age -d {quoted}")),
            Some(Der::PrivateKey | Der::EncryptedPrivateKey) => self.without(label, true),
            None if label.ends_with("PRIVATE KEY") => self.without(label, true),
            Some(Der::Request) if !self.has_certificate() => Der::Request.to_certificates(self.file, Form::Pem),
            Some(_) | None => self.without(label, false),
        }
    }

    /// Whether a certificate is left when everything else is taken out.
    fn has_certificate(&self) -> bool {
        self.blocks.iter().any(|block| matches!(kind(block), Some(Der::Certificate | Der::Pkcs7)))
    }

    /// The command that takes the blocks of a label out, where that leaves a certificate.
    fn without(&self, label: &str, is_private: bool) -> String {
        let is_shared = label == LABEL;
        if !self.has_certificate() || is_shared {
            let kind = if is_private { Der::PrivateKey } else { Der::PublicKey };
            return kind.to_certificates(self.file, Form::Pem);
        }
        let why = if is_private { "this file is public, remove it from there" } else { "remove it" };
        let label = pattern(label);
        let script = format!("/-----BEGIN {label}-----/,/-----END {label}-----/d");
        format!("{why}: {}", in_place(&quoted(self.file), &script))
    }

    /// The command that unpacks every PKCS#7 in the file, and leaves the rest as it is.
    fn unpacked(&self) -> String {
        let (file, quoted) = (self.file, &quoted(self.file));
        let print = |label: &str| match label {
            "PKCS7" | "PKCS #7 SIGNED DATA" | LABEL => "openssl pkcs7".to_owned(),
            other => format!("sed 's/ {}-----/ PKCS7-----/' | openssl pkcs7", pattern(other)),
        };
        match self.blocks {
            [only] if !print(&only.label).starts_with("sed") => Der::Pkcs7.to_certificates(file, Form::Pem),
            _ => {
                let packed: Vec<&Block> = self.blocks.iter().filter(|block| kind(block) == Some(Der::Pkcs7)).collect();
                let ranges: Vec<String> = packed.iter().map(|block| format!("{},/-----END/d", block.line)).collect();
                let parts: Vec<String> = packed
                    .iter()
                    .map(|block| {
                        let own = format!("sed -n '{},/-----END/p' {quoted}", block.line);
                        format!("{own} | {} -print_certs; ", print(&block.label))
                    })
                    .collect();
                replaced(quoted, &format!("{{ sed '{}' {quoted}; {}}}", ranges.join(";"), parts.concat()))
            }
        }
    }
}

fn relabelled(quoted: &str, label: &str) -> String {
    in_place(quoted, &format!("s/ {}-----/ {LABEL}-----/", pattern(label)))
}
