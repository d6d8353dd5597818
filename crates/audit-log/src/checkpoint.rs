//! Checkpoints: signed tree heads in the C2SP formats (`tlog-checkpoint` in a `signed-note`, Ed25519).
//!
//! Third-party verifiers read these files. This module formats and parses them and holds no key: a
//! [`CheckpointSigner`], implemented by the token pool, signs.

use std::{fmt, future::Future, pin::Pin};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine, prelude::BASE64_STANDARD};
use signed_note::{Note, NoteError, Signature, StandardVerifier, VerifierList};

use super::tree::Hash;

/// The signature type of Ed25519 in a signed note (C2SP signed-note, "Signature types").
const ED25519_TYPE: u8 = 1;

/// An Ed25519 signature of a checkpoint and the public key that verifies it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSignature {
    /// The raw public key (RFC 8032, section 5.1.5).
    pub public_key: [u8; 32],
    /// The raw signature (RFC 8032, section 5.1.6).
    pub signature: [u8; 64],
}

impl fmt::Debug for CheckpointSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointSignature").finish_non_exhaustive()
    }
}

/// No token signed the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointSignError {
    /// It could not be signed now.
    #[error("the checkpoint was not signed: {0}")]
    Failed(String),
    /// There is no key to sign it with: checkpoints are off.
    #[error("no token has a log key")]
    NoKey,
}

/// Signs checkpoints with the log key of a token.
pub trait CheckpointSigner: fmt::Debug + Send + Sync {
    /// Signs a checkpoint's text (the message, not a hash of it) with Ed25519.
    ///
    /// # Errors
    /// If no token can sign now; the log retries with the next checkpoint.
    fn sign_checkpoint<'a>(
        &'a self,
        text: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<CheckpointSignature, CheckpointSignError>> + Send + 'a>>;
}

/// Not a valid or not a trusted checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes are not a signed note.
    #[error("it is not a signed note (c2sp.org/signed-note)")]
    Note(#[source] NoteError),
    /// The name is not a valid key name of a signed note.
    #[error("{0:?} cannot be an origin: it must not be empty, nor hold white space, control characters or '+'")]
    Origin(String),
    /// The note's text is not a tree head.
    #[error("its text is not a checkpoint (c2sp.org/tlog-checkpoint)")]
    Text,
    /// No signature verifies with a trusted key.
    #[error("no given verifier key has signed it")]
    Unverified(#[source] NoteError),
    /// The signature does not verify with the public key that came with it.
    #[error("the token's signature of the checkpoint does not verify")]
    WrongSignature,
}

/// A tree head, the content of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Identifies the log: unique for each replica, without a scheme.
    pub origin: String,
    /// The number of lines.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

impl Checkpoint {
    /// Checks that a name is valid as an origin and as the name of its key.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_origin(origin: &str) -> Result<(), CheckpointError> {
        if signed_note::is_key_name_valid(origin) && !origin.chars().any(char::is_control) {
            Ok(())
        } else {
            Err(CheckpointError::Origin(origin.to_owned()))
        }
    }

    /// The text to be signed: origin, size, and root in Base64, one per line.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64_STANDARD.encode(self.root))
    }

    /// Parses a checkpoint's text. Extension lines are rejected because the log does not write any.
    ///
    /// # Errors
    /// If the text is not a checkpoint.
    pub fn parse_text(text: &[u8]) -> Result<Self, CheckpointError> {
        let parsed = tlog_tiles::Checkpoint::from_bytes(text).map_err(|_| CheckpointError::Text)?;
        let checkpoint = Self { origin: parsed.origin().to_owned(), size: parsed.size(), root: parsed.hash().0 };
        Self::check_origin(&checkpoint.origin)?;
        if checkpoint.text().as_bytes() == text { Ok(checkpoint) } else { Err(CheckpointError::Text) }
    }

    /// Parses a signed note and the checkpoint in it, without verifying signatures.
    ///
    /// # Errors
    /// If the note or the checkpoint is malformed.
    pub fn parse_note(note: &[u8]) -> Result<Self, CheckpointError> {
        let note = Note::from_bytes(note).map_err(CheckpointError::Note)?;
        Self::parse_text(note.text())
    }

    /// Verifies that at least one of the keys signed a note.
    ///
    /// # Errors
    /// If none did, or if a signature with the name of one of the keys does not verify.
    pub fn verify_note(note: &[u8], keys: &VerifierKeys) -> Result<(), CheckpointError> {
        let note = Note::from_bytes(note).map_err(CheckpointError::Note)?;
        note.verify(&keys.0).map(|_| ()).map_err(CheckpointError::Unverified)
    }

    /// Assembles the signed note after verifying the signature.
    ///
    /// # Errors
    /// If the signature does not verify.
    pub fn signed(&self, by: &CheckpointSignature) -> Result<Vec<u8>, CheckpointError> {
        let text = self.text();
        UnparsedPublicKey::new(&ED25519, by.public_key)
            .verify(text.as_bytes(), &by.signature)
            .map_err(|_| CheckpointError::WrongSignature)?;
        let id = signed_note::key_id(&self.origin, &typed(&by.public_key));
        let signature =
            Signature::new(self.origin.clone(), id, by.signature.to_vec()).map_err(CheckpointError::Note)?;
        Ok(Note::new(text.as_bytes(), &[signature]).map_err(CheckpointError::Note)?.to_bytes())
    }
}

/// The verifier key of an Ed25519 key as printed in receipts and accepted by verifiers: `NAME+ID+KEY`.
///
/// # Errors
/// If the name is not a valid origin.
pub fn verifier_key(origin: &str, public_key: &[u8; 32]) -> Result<String, CheckpointError> {
    Checkpoint::check_origin(origin)?;
    let key = typed(public_key);
    Ok(format!("{origin}+{:08x}+{}", signed_note::key_id(origin, &key), BASE64_STANDARD.encode(&key)))
}

fn typed(public_key: &[u8; 32]) -> Vec<u8> {
    let mut key = vec![ED25519_TYPE];
    key.extend_from_slice(public_key);
    key
}

/// Keys whose checkpoints are trusted.
pub struct VerifierKeys(VerifierList);

impl fmt::Debug for VerifierKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifierKeys").finish_non_exhaustive()
    }
}

/// Not a valid verifier key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a verifier key (NAME+ID+KEY with an Ed25519 key, as the import's receipt prints it)")]
pub struct VerifierKeyError(String, #[source] signed_note::VerifierError);

impl VerifierKeys {
    /// Parses verifier keys.
    ///
    /// # Errors
    /// At the first malformed key.
    pub fn parse(texts: &[String]) -> Result<Self, VerifierKeyError> {
        let mut unique: Vec<&str> = texts.iter().map(|text| text.trim()).collect();
        unique.sort_unstable();
        unique.dedup();
        let mut list: Vec<Box<dyn signed_note::Verifier>> = Vec::new();
        for text in unique {
            let key = StandardVerifier::new(text).map_err(|e| VerifierKeyError(text.to_owned(), e))?;
            list.push(Box::new(key));
        }
        Ok(Self(VerifierList::new(list)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    /// A log key in software, for tests.
    pub(crate) struct SoftKey(Ed25519KeyPair);

    impl fmt::Debug for SoftKey {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("SoftKey")
        }
    }

    impl SoftKey {
        pub(crate) fn new(seed: u8) -> Self {
            Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
        }

        pub(crate) fn verifier_key(&self, origin: &str) -> String {
            verifier_key(origin, self.0.public_key().as_ref().try_into().unwrap()).unwrap()
        }

        pub(crate) fn sign(&self, text: &[u8]) -> CheckpointSignature {
            CheckpointSignature {
                public_key: self.0.public_key().as_ref().try_into().unwrap(),
                signature: self.0.sign(text).as_ref().try_into().unwrap(),
            }
        }
    }

    impl CheckpointSigner for SoftKey {
        fn sign_checkpoint<'a>(
            &'a self,
            text: &'a [u8],
        ) -> Pin<Box<dyn Future<Output = Result<CheckpointSignature, CheckpointSignError>> + Send + 'a>> {
            Box::pin(async { Ok(self.sign(text)) })
        }
    }

    #[test]
    fn a_checkpoint_comes_back_and_verifies() {
        let key = SoftKey::new(1);
        let checkpoint = Checkpoint { origin: "ca.example/replica-0".to_owned(), size: 42, root: [7; 32] };
        let note = checkpoint.signed(&key.sign(checkpoint.text().as_bytes())).unwrap();
        assert_eq!(Checkpoint::parse_note(&note).unwrap(), checkpoint);
        let right = VerifierKeys::parse(&[key.verifier_key(&checkpoint.origin)]).unwrap();
        Checkpoint::verify_note(&note, &right).unwrap();
        let other = VerifierKeys::parse(&[SoftKey::new(2).verifier_key(&checkpoint.origin)]).unwrap();
        assert!(matches!(Checkpoint::verify_note(&note, &other), Err(CheckpointError::Unverified(_))));

        let forged = String::from_utf8(note.clone()).unwrap().replace("\n42\n", "\n43\n");
        assert!(Checkpoint::verify_note(forged.as_bytes(), &right).is_err());
        let wrong = key.sign(b"something else");
        assert!(matches!(checkpoint.signed(&wrong), Err(CheckpointError::WrongSignature)));
    }

    #[test]
    fn texts_that_are_no_checkpoint() {
        let root = BASE64_STANDARD.encode([7; 32]);
        for text in [
            String::new(),
            format!("o\n1\n{root}"),
            format!("o\n01\n{root}\n"),
            format!("o\n+1\n{root}\n"),
            format!("o\n1\n{root}\nextension\n"),
            format!("o o\n1\n{root}\n"),
            format!("o\n1\n{}\n", BASE64_STANDARD.encode([7; 31])),
            format!("\n1\n{root}\n"),
        ] {
            assert!(Checkpoint::parse_text(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Checkpoint::parse_text(format!("o\n1\n{root}\n").as_bytes()).is_ok());
        assert!(VerifierKeys::parse(&["x+00+y".to_owned()]).is_err());
    }
}
