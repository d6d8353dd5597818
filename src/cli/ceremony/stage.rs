//! Where an act is performed: the token and the issuance log, or their stand-ins in a rehearsal.

use std::sync::Arc;

use anyhow::Context;

use super::{
    books::Books,
    signing,
    transcript::{Signed, Transcript},
};
use crate::cli::{generate::left_behind, token::Opened};
use audit_log::{Recorded, timestamp, tree::sha256};
use pki::{CrlTbs, Issued, Profile, PublicKey, SignedCrl, Tbs, crl, pem, request::subject_text, verify};
use process::output::Output;
use token::{
    Session, TokenUri,
    generate::{self, Generated},
    key::{Accepted, hex},
};

/// CKA_LABEL of the stand-in for a key of the CA.
const STAND_IN: &str = "stand-in";

/// The place of an act.
pub(super) struct Stage<'a> {
    pub(super) uri: &'a TokenUri,
    pub(super) opened: &'a Opened,
    pub(super) session: &'a Session,
    pub(super) books: &'a Books,
    /// Whether keys stand in for those of the CA.
    pub(super) rehearsal: bool,
    pub(super) output: Output,
}

impl Stage<'_> {
    /// The label of the token.
    pub(super) fn token(&self) -> &str {
        &self.opened.token.info().label
    }

    /// Makes a key in the token.
    ///
    /// # Errors
    /// If the label is taken, or the token fails.
    pub(super) fn make_key(&self, algorithm: pki::KeyAlgorithm, label: &str) -> anyhow::Result<Generated> {
        Ok(generate::run(&self.opened.token, self.session, algorithm, label, &Accepted::default())?)
    }

    /// A key of the same type in the rehearsal's token.
    pub(super) fn stand_in(
        &self,
        algorithm: pki::KeyAlgorithm,
        transcript: &mut Transcript,
    ) -> anyhow::Result<PublicKey> {
        let made = self.make_key(algorithm, STAND_IN)?;
        transcript.step(self.output, format!("a {algorithm} key was made that stands in for that of the CA"));
        Ok(made.public_key)
    }

    /// Records, signs and verifies a certificate. Returns it in PEM. `new_key` is the key that the ceremony has made.
    ///
    /// # Errors
    /// If it cannot be recorded or signed, or the signed certificate is not the one that was built.
    pub(super) fn sign_certificate(
        &self,
        tbs: Tbs,
        new_key: Option<&Generated>,
        transcript: &mut Transcript,
    ) -> anyhow::Result<Vec<u8>> {
        let content = describe(&tbs);
        let key = tbs.issuer().public_key().clone();
        // The key of a new root is in the rehearsal's token, too.
        let stand_in = match self.rehearsal && new_key.is_none() {
            true => Some(self.stand_in(key.algorithm(), transcript)?),
            false => None,
        };
        let (sha256, comparable) = digests(tbs.der(), new_key.map(|made| &made.public_key));
        let sign = |recorded: &Recorded<Arc<Tbs>>| match &stand_in {
            Some(stand_in) => {
                let signature = signing::rehearse_certificate(self.session, recorded, stand_in)?;
                Ok(pem::encode("CERTIFICATE", &verify::rehearsed(recorded.value(), stand_in, &signature)?))
            }
            None => {
                let signature = signing::sign_certificate(self.session, recorded)?;
                Ok(Issued::assemble(Arc::clone(recorded.value()), &signature)?.to_pem())
            }
        };
        let (pem, intent) = self.books.sign(tbs, self.token(), sign)?;
        transcript.step(self.output, format!("the certificate was recorded as intent {intent}, signed and verified"));
        let what = "certificate".to_owned();
        transcript.signed = Some(Signed { what, sha256, comparable_sha256: comparable, intent, content });
        Ok(pem.into_bytes())
    }

    /// Records, signs and verifies a CRL. Returns it in PEM.
    ///
    /// # Errors
    /// As [`Stage::sign_certificate`].
    pub(super) fn sign_crl(&self, tbs: CrlTbs, transcript: &mut Transcript) -> anyhow::Result<Vec<u8>> {
        let content = describe_crl(&tbs);
        let algorithm = tbs.issuer().public_key().algorithm();
        let stand_in = self.rehearsal.then(|| self.stand_in(algorithm, transcript)).transpose()?;
        let (sha256, comparable) = digests(tbs.der(), None);
        let sign = |recorded: &Recorded<Arc<CrlTbs>>| match &stand_in {
            Some(stand_in) => {
                let signature = signing::rehearse_crl(self.session, recorded, stand_in)?;
                Ok(pem::encode(crl::LABEL, &crl::rehearsed(recorded.value(), stand_in, &signature)?))
            }
            None => {
                let signature = signing::sign_crl(self.session, recorded)?;
                Ok(SignedCrl::assemble(Arc::clone(recorded.value()), &signature)?.to_pem())
            }
        };
        let (pem, intent) = self.books.sign_crl(tbs, self.token(), sign)?;
        transcript.step(self.output, format!("the CRL was recorded as intent {intent}, signed and verified"));
        let what = "crl".to_owned();
        transcript.signed = Some(Signed { what, sha256, comparable_sha256: comparable, intent, content });
        Ok(pem.into_bytes())
    }

    /// Adds to an error what a failure leaves in the token.
    pub(super) fn with_key<T>(made: &Generated, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.with_context(|| left_behind(made))
    }
}

/// SHA-256 of the bytes to be signed, and of the same without a new key.
pub(super) fn digests(signed: &[u8], new_key: Option<&PublicKey>) -> (String, String) {
    let mut comparable = signed.to_vec();
    if let Some(key) = new_key {
        blank(&mut comparable, key.spki_der());
        blank(&mut comparable, &key.key_id());
    }
    (hex(&sha256(&[signed])), hex(&sha256(&[&comparable])))
}

/// Sets every occurrence of `part` to zero. New keys of one type have encodings of one length.
fn blank(bytes: &mut [u8], part: &[u8]) {
    let mut from = 0;
    while let Some(at) = bytes.get(from..).and_then(|rest| rest.windows(part.len()).position(|window| window == part)) {
        let end = from + at + part.len();
        if let Some(found) = bytes.get_mut(from + at..end) {
            found.fill(0);
        }
        from = end;
    }
}

/// What a certificate says.
fn describe(tbs: &Tbs) -> Vec<String> {
    let template = tbs.template();
    let mut lines = Vec::new();
    if let Profile::Ca(profile) = &template.profile {
        lines.push(format!("subject: {}", subject_text(&profile.subject)));
        lines.push(match profile.path_len {
            Some(length) => format!("path length: {length}"),
            None => "path length: no limit".to_owned(),
        });
    }
    lines.push(format!("issuer: {}", subject_text(tbs.issuer().subject())));
    lines.push(format!("serial number: {}", tbs.serial().to_hex()));
    lines.push(format!("not before: {}", timestamp::format(template.not_before)));
    lines.push(format!("not after: {}", timestamp::format(template.not_after)));
    lines.push(format!(
        "key: {}, SHA-256 {}",
        template.public_key.algorithm(),
        hex(&template.public_key.fingerprint())
    ));
    lines.push(format!("signed by the key with SHA-256 {}", hex(&tbs.issuer().public_key().fingerprint())));
    lines
}

/// What a CRL says.
fn describe_crl(tbs: &CrlTbs) -> Vec<String> {
    vec![
        format!("issuer: {}", subject_text(tbs.issuer().as_ca().subject)),
        format!("CRL number: {}", tbs.number()),
        format!("this update: {}", timestamp::format(tbs.this_update())),
        format!("next update: {}", timestamp::format(tbs.next_update())),
        format!("revoked certificates: {}", tbs.entries()),
        format!("signed by the key with SHA-256 {}", hex(&tbs.issuer().public_key().fingerprint())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_comparable_without_the_new_key() {
        let mut bytes = b"before KEY between KEY after".to_vec();
        blank(&mut bytes, b"KEY");
        assert_eq!(bytes, b"before \0\0\0 between \0\0\0 after");
        blank(&mut bytes, b"KEY");
        assert_eq!(digests(b"x", None).0, digests(b"x", None).1);
    }
}
