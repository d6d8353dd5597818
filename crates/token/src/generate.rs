//! Generates keys in the token: the CA key by `generate`, the log key and the canary key by `generate` and `import`.
//!
//! A pair is made as session objects, proves itself by a signature, and only then becomes the token's, public half
//! first: whatever interrupts it, a private key in the token is a whole one. A token without session objects or
//! C_CopyObject (a TPM) makes the pair at once. Nothing is ever overwritten.

use cryptoki::{
    error::RvError,
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    CallError, Pkcs11Error, Token, adopt,
    key::{
        Accepted, Flags, KeyError, LOG_KEY_LABEL, Locator, Weakness, hex,
        objects::{Made, await_visible},
        proof::{self, ProofError},
        public,
        template::{self, CertificateError, Name, Omission},
    },
    mechanism::{signing_mechanism, signing_mechanisms},
    module::Info,
};
use pki::{KeyAlgorithm, PublicKey};

pub mod service;

pub use service::{ServiceKey, ServiceKeys};

/// 65537, big-endian.
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

/// PKCS#11 v3.0's name of the curve, for tokens that do not accept RFC 8410's OID.
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";

/// Result of generating a key.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Generated {
    /// The public key.
    #[serde(skip)]
    pub public_key: PublicKey,
    /// Its type.
    pub algorithm: String,
    /// CKA_LABEL of its objects.
    pub label: String,
    /// CKA_ID of its objects, hexadecimal.
    pub id: String,
    /// SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    pub key_sha256: String,
    /// The private key's attributes as read back.
    pub attributes: Flags,
    /// Attributes that the token did not accept and chose itself.
    pub omitted_attributes: Vec<String>,
    /// What the key allows and the operator has accepted.
    pub accepted_weaknesses: Accepted,
    /// The token.
    pub token: Info,
    /// The log key and the canary key.
    pub service_keys: ServiceKeys,
}

/// Why there is no new key, or no certificate for it.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The certificate cannot be installed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The private key does not exist, or is not suitable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key with this label exists.
    #[error("the token holds a key with the label `{0}` already, and keys are never overwritten; give another label")]
    LabelTaken(String),
    /// The token lacks a mechanism.
    #[error("the token cannot make or use a {algorithm} key: it lacks {mechanism}; choose another type")]
    Mechanism {
        /// The key's type.
        algorithm: KeyAlgorithm,
        /// The missing mechanism.
        mechanism: &'static str,
    },
    /// Some of the created objects could not be removed.
    #[error(
        "{source}; in addition, {left} of the objects made could not be removed again: remove them by the vendor's tool"
    )]
    NotUndone {
        /// Number of objects left.
        left: usize,
        /// The original error.
        source: Box<GenerateError>,
    },
    /// The new key does not work.
    #[error("the new key is not as it should be")]
    Proof(#[from] ProofError),
    /// The public key cannot be read.
    #[error("the token's public half of the new key cannot be read: {0}")]
    PublicHalf(#[from] public::Unreadable),
    /// A key that others have made has weaknesses that nobody has accepted.
    #[error(
        "the private key with {locator} {}; use a better key, or accept this one with {}",
        adopt::listed(weaknesses),
        adopt::flags(weaknesses)
    )]
    Weak {
        /// The key.
        locator: Locator,
        /// The weaknesses.
        weaknesses: Vec<Weakness>,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers are available (internal error)")]
    Random,
}

/// Makes the CA's key in the token: sensitive, not extractable, for signing alone, not modifiable, as far as the token
/// allows; and the log's and the probes' keys, where they are missing. `session` is a read-write one, logged in.
///
/// # Errors
/// When the label is taken, the token lacks the mechanism or fails, or the key does not prove itself or has a weakness
/// that is not accepted; then everything that was made is removed again.
pub fn run(
    token: &Token,
    session: &Session,
    algorithm: KeyAlgorithm,
    label: &str,
    accepted: &Accepted,
) -> Result<Generated, GenerateError> {
    let mechanisms = token.mechanisms().map_err(|source| call("list its mechanisms", source))?;
    check_mechanisms(algorithm, &mechanisms)?;
    if !labelled(session, ObjectClass::PRIVATE_KEY, label)?.is_empty() {
        return Err(GenerateError::LabelTaken(label.to_owned()));
    }
    let mut made = Made::new(session);
    let outcome = pair(session, &mechanisms, algorithm, label, accepted, &mut made);
    let outcome = outcome.map(|pair| Generated {
        algorithm: algorithm.to_string(),
        label: label.to_owned(),
        id: hex(&pair.id),
        key_sha256: hex(&pair.key.fingerprint()),
        public_key: pair.key,
        attributes: pair.flags,
        omitted_attributes: pair.omitted,
        accepted_weaknesses: accepted.of(&pair.flags.weaknesses()),
        token: token.info().clone(),
        service_keys: service::ensure(session, &mechanisms, &mut made),
    });
    finish(made, outcome)
}

/// Makes the key that signs the checkpoints of the issuance log, in a token that need not hold the CA's key.
///
/// # Errors
/// When the token cannot make it, or holds another key of its label.
pub fn log_key(token: &Token, session: &Session) -> Result<ServiceKey, GenerateError> {
    let mechanisms = token.mechanisms().map_err(|source| call("list its mechanisms", source))?;
    let mut made = Made::new(session);
    let key = service::make(session, &mechanisms, KeyAlgorithm::Ed25519, LOG_KEY_LABEL, &mut made, &mut Vec::new());
    finish(made, key)
}

/// A new pair in the token.
struct Pair {
    key: PublicKey,
    id: Vec<u8>,
    flags: Flags,
    omitted: Vec<String>,
}

/// Makes a pair in the token, in the order that leaves no half key behind if the token allows it.
fn pair<'a>(
    session: &'a Session,
    mechanisms: &[MechanismType],
    algorithm: KeyAlgorithm,
    label: &str,
    accepted: &Accepted,
    made: &mut Made<'a>,
) -> Result<Pair, GenerateError> {
    let mut request = Request { session, mechanisms, algorithm, label, without: Omission::NONE };
    let mut attempt = Made::new(session);
    let mut staged = request.staged(&mut attempt);
    // NSS takes the restriction of a session object, and has no place for it in its database.
    if failed_with(&staged, |error| error.is(RvError::GeneralError)) {
        let _left = attempt.undo();
        attempt = Made::new(session);
        request.without = Omission::RESTRICTION;
        staged = request.staged(&mut attempt);
    }
    let (stored, key, omitted) = if failed_with(&staged, Pkcs11Error::is_inability) {
        // What is left of the attempt does not keep the second one from being whole.
        let _left = attempt.undo();
        request.at_once(made)?
    } else {
        made.absorb(attempt);
        staged?
    };
    request.finished(stored, key, omitted, accepted)
}

/// Whether a call failed with such an error.
fn failed_with<T>(outcome: &Result<T, GenerateError>, such: impl FnOnce(&Pkcs11Error) -> bool) -> bool {
    matches!(outcome, Err(GenerateError::Call(CallError { source, .. })) if such(source))
}

/// A pair to be made.
struct Request<'a> {
    session: &'a Session,
    mechanisms: &'a [MechanismType],
    algorithm: KeyAlgorithm,
    label: &'a str,
    /// What is left out from the start.
    without: Omission,
}

impl Request<'_> {
    /// As session objects that prove themselves before they are copied.
    fn staged(&self, made: &mut Made<'_>) -> Result<(ObjectHandle, PublicKey, Vec<String>), GenerateError> {
        let session = self.session;
        let (public_half, private, omitted) = self.generate(false, &[])?;
        made.scratch(public_half);
        made.scratch(private);
        let key = self.public_key(public_half)?;
        // The ID is the hash of a key that did not exist before.
        let id = [Attribute::Id(key.key_id().to_vec())];
        for object in [public_half, private] {
            session.update_attributes(object, &id).map_err(|e| call("set the new key's CKA_ID", e.into()))?;
        }
        proof::signs(session, private, &key)?;
        let keep = |object| {
            let kept = template::with_fallbacks(&template::keep(), |omission| {
                Ok(session.copy_object(object, &omission.apply(&template::keep()))?)
            });
            kept.map(|(stored, omission)| (stored, omission.names(&template::keep())))
        };
        let (stored, _) = keep(public_half).map_err(|source| call("store the new public key", source))?;
        made.token(stored);
        let (stored, also) = keep(private).map_err(|source| call("store the new private key", source))?;
        Ok((made.token(stored), key, [omitted, also].concat()))
    }

    /// As token objects from the start.
    fn at_once(&self, made: &mut Made<'_>) -> Result<(ObjectHandle, PublicKey, Vec<String>), GenerateError> {
        // Both halves need a common ID before the public key, which the ID is made of, is known.
        let mut id = [0; 20];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| GenerateError::Random)?;
        let (public_half, private, omitted) = self.generate(true, &id)?;
        made.token(public_half);
        made.token(private);
        let key = self.public_key(public_half)?;
        let id = [Attribute::Id(key.key_id().to_vec())];
        for object in [public_half, private] {
            if let Err(error) = self.session.update_attributes(object, &id) {
                tracing::debug!(error = %Pkcs11Error::from(error), "the token does not change the new key's CKA_ID");
                break;
            }
        }
        Ok((private, key, omitted))
    }

    /// Judges the pair that was stored.
    fn finished(
        &self,
        stored: ObjectHandle,
        key: PublicKey,
        omitted: Vec<String>,
        accepted: &Accepted,
    ) -> Result<Pair, GenerateError> {
        await_visible(self.session, stored, self.label).map_err(|source| call("look for the new key", source))?;
        let flags = proof::attributes(self.session, stored, true, accepted)?;
        proof::unreadable(self.session, stored, self.algorithm)?;
        proof::signs(self.session, stored, &key)?;
        let id = public::id_of(self.session, stored).map_err(|source| call("tell the new key's CKA_ID", source))?;
        Ok(Pair { key, id: id.unwrap_or_default(), flags, omitted })
    }

    fn public_key(&self, public_half: ObjectHandle) -> Result<PublicKey, GenerateError> {
        Ok(public::read(self.session, public_half).map_err(|source| call("tell the new public key", source))??)
    }

    /// Allows each mechanism to sign with that the token has: a TPM lists CKM_RSA_PKCS and signs with CKM_SHA256_RSA_PKCS.
    fn with_every_mechanism(&self, mut template: Vec<Attribute>) -> Vec<Attribute> {
        for attribute in &mut template {
            if let Attribute::AllowedMechanisms(allowed) = attribute {
                *allowed = signing_mechanisms(self.algorithm, self.mechanisms);
            }
        }
        template
    }

    fn generate(&self, token: bool, id: &[u8]) -> Result<(ObjectHandle, ObjectHandle, Vec<String>), GenerateError> {
        let signing = signing_mechanism(self.algorithm, self.mechanisms);
        let private = template::private_flags(&Name { id, label: self.label }, signing, false);
        let all = if token { template::kept(&self.with_every_mechanism(private)) } else { private };
        let private = self.without.apply(&all);
        // What the public half may do is of no importance, and a TPM has one set of attributes for both halves, which would
        // contradict each other.
        let mut public = match token {
            false => template::public_flags(false).to_vec(),
            true => vec![Attribute::Token(true), Attribute::Private(false)],
        };
        public.push(Attribute::Label(self.label.as_bytes().to_vec()));
        public.extend((!id.is_empty()).then(|| Attribute::Id(id.to_vec())));
        let mechanism = match self.algorithm {
            KeyAlgorithm::Rsa { bits } => {
                public.push(Attribute::ModulusBits(u64::from(bits).into()));
                public.push(Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()));
                Mechanism::RsaPkcsKeyPairGen
            }
            KeyAlgorithm::P256 | KeyAlgorithm::P384 => {
                public.extend(curve(self.algorithm));
                Mechanism::EccKeyPairGen
            }
            KeyAlgorithm::Ed25519 => {
                public.extend(curve(self.algorithm));
                Mechanism::EccEdwardsKeyPairGen
            }
        };
        let generate = |public: &[Attribute]| {
            template::with_fallbacks(&[public, &private].concat(), |omission| {
                let halves = (omission.apply(public), omission.apply(&private));
                Ok(self.session.generate_key_pair(&mechanism, &halves.0, &halves.1)?)
            })
        };
        let mut pair = generate(&public);
        if pair.is_err() && self.algorithm == KeyAlgorithm::Ed25519 {
            for attribute in &mut public {
                if matches!(attribute, Attribute::EcParams(_)) {
                    *attribute = Attribute::EcParams(EDWARDS25519.to_vec());
                }
            }
            pair = generate(&public);
        }
        let ((public_half, private_half), omission) = pair.map_err(|source| call("generate the key", source))?;
        Ok((public_half, private_half, omission.and(self.without).names(&all)))
    }
}

fn curve(algorithm: KeyAlgorithm) -> Option<Attribute> {
    algorithm.ec_parameters_der().map(|curve| Attribute::EcParams(curve.to_vec()))
}

fn check_mechanisms(algorithm: KeyAlgorithm, mechanisms: &[MechanismType]) -> Result<(), GenerateError> {
    let (generation, name) = match algorithm {
        KeyAlgorithm::Ed25519 => (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, "CKM_EC_EDWARDS_KEY_PAIR_GEN"),
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => (MechanismType::ECC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN"),
        KeyAlgorithm::Rsa { .. } => (MechanismType::RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN"),
    };
    if !mechanisms.contains(&generation) {
        return Err(GenerateError::Mechanism { algorithm, mechanism: name });
    }
    if signing_mechanism(algorithm, mechanisms).is_none() {
        return Err(GenerateError::Mechanism { algorithm, mechanism: "the mechanism to sign with it" });
    }
    Ok(())
}

/// The token's objects with a class and label.
fn labelled(session: &Session, class: ObjectClass, label: &str) -> Result<Vec<ObjectHandle>, GenerateError> {
    let template = [Attribute::Class(class), Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())];
    session.find_objects(&template).map_err(|e| call("look for the label", e.into()))
}

pub(crate) fn finish<T>(made: Made<'_>, outcome: Result<T, GenerateError>) -> Result<T, GenerateError> {
    match outcome {
        Ok(done) => {
            made.keep();
            Ok(done)
        }
        Err(error) => match made.undo() {
            0 => Err(error),
            left => Err(GenerateError::NotUndone { left, source: Box::new(error) }),
        },
    }
}

pub(crate) fn call(step: &'static str, source: Pkcs11Error) -> GenerateError {
    CallError { step, source }.into()
}
