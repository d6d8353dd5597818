//! Keys made in the token: the CA's by `generate`, the log's and the probes' by `generate` and `import`.
//!
//! A pair is made as session objects, proves itself by a signature, and only then becomes the token's, public half
//! first: whatever interrupts it, a private key in the token is a whole one. Nothing is ever overwritten.

use cryptoki::{
    error::RvError,
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    CallError, Pkcs11Error, Token,
    key::{
        Flags, KeyError, find_private_key, hex,
        objects::{Made, Placed, place_certificate, place_public},
        proof::{self, ProofError},
        public,
        template::{self, Certificate, CertificateError, Name},
    },
    mechanism::signing_mechanism,
    module::Info,
};
use pki::{KeyAlgorithm, PublicKey};

pub mod service;

pub use service::{ServiceKey, ServiceKeys};

/// 65537, big-endian.
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

/// PKCS#11 v3.0's name of the curve, for tokens that do not take RFC 8410's OID.
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";

/// What was generated.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Generated {
    /// The new key's public half.
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
    /// The token.
    pub token: Info,
    /// The log's and the probes' keys.
    pub service_keys: ServiceKeys,
}

/// What became of a certificate.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Installed {
    /// CKA_LABEL of its object.
    pub label: String,
    /// CKA_ID of its object, hexadecimal.
    pub id: String,
    /// The certificate object.
    pub certificate: Placed,
    /// The public key object.
    pub public_key: Placed,
}

/// Why there is no new key, or no certificate beside it.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The certificate cannot be installed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The private key is not there, or unfit.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The label is taken.
    #[error("the token holds a key with the label `{0}` already, and keys are never overwritten; give another label")]
    LabelTaken(String),
    /// The token lacks what is needed.
    #[error("the token cannot make or use a {algorithm} key: it lacks {mechanism}; choose another type")]
    Mechanism {
        /// The key's type.
        algorithm: KeyAlgorithm,
        /// What is lacking.
        mechanism: &'static str,
    },
    /// What was made could not all be taken back.
    #[error(
        "{source}; besides, {left} of the objects made could not be removed again: remove them by the vendor's tool"
    )]
    NotUndone {
        /// How many are left.
        left: usize,
        /// What went wrong at first.
        source: Box<GenerateError>,
    },
    /// The new key does not work.
    #[error("the new key is not as it should be")]
    Proof(#[from] ProofError),
    /// The public half cannot be read.
    #[error("the token's public half of the new key cannot be read: {0}")]
    PublicHalf(#[from] public::Unreadable),
}

/// Makes the CA's key in the token: sensitive, not extractable, for signing alone, not modifiable; and the log's and
/// the probes' keys, where they are missing. `session` is a read-write one, logged in.
///
/// # Errors
/// When the label is taken, the token lacks the mechanism or fails, or the key does not prove itself; then everything
/// that was made is removed again.
pub fn run(token: &Token, session: &Session, algorithm: KeyAlgorithm, label: &str) -> Result<Generated, GenerateError> {
    let mechanisms = token.mechanisms().map_err(|source| call("list its mechanisms", source))?;
    check_mechanisms(algorithm, &mechanisms)?;
    if !labelled(session, ObjectClass::PRIVATE_KEY, label)?.is_empty() {
        return Err(GenerateError::LabelTaken(label.to_owned()));
    }
    let mut made = Made::new(session);
    let outcome = service::ensure(session, &mechanisms, &mut made).and_then(|service_keys| {
        let (public_key, attributes) = pair(session, &mechanisms, algorithm, label, &mut made)?;
        Ok(Generated {
            algorithm: algorithm.to_string(),
            label: label.to_owned(),
            id: hex(&public_key.key_id()),
            key_sha256: hex(&public_key.fingerprint()),
            public_key,
            attributes,
            token: token.info().clone(),
            service_keys,
        })
    });
    finish(made, outcome)
}

/// Writes the certificate object of a key that the token holds, in place of an older one of ours, and its public key
/// object if it is missing. `session` is a read-write one, logged in.
///
/// # Errors
/// When the certificate is not the key's, the key is not there or does not sign, or the token fails.
pub fn install(session: &Session, key: &PublicKey, certificate: &[u8]) -> Result<Installed, GenerateError> {
    let certificate = Certificate::new(certificate, key)?;
    let private = find_private_key(session, key)?;
    proof::signs(session, private, key)?;
    let read = |source| call("tell the key's label", source);
    let label = public::label_of(session, private).map_err(read)?.unwrap_or_default();
    let id = key.key_id();
    let name = Name { id: &id, label: &label };
    let mut made = Made::new(session);
    let outcome = place_public(session, key, &name, &mut made)
        .and_then(|public_key| Ok((public_key, place_certificate(session, &certificate, &name, &mut made)?)))
        .map_err(|source| call("store the certificate", source));
    let (public_key, (certificate, old)) = finish(made, outcome)?;
    for object in old {
        session.destroy_object(object).map_err(|e| call("remove the certificate that was replaced", e.into()))?;
    }
    Ok(Installed { label, id: hex(&id), certificate, public_key })
}

/// Makes a pair in the token, in the order that leaves no half key behind.
fn pair(
    session: &Session,
    mechanisms: &[MechanismType],
    algorithm: KeyAlgorithm,
    label: &str,
    made: &mut Made<'_>,
) -> Result<(PublicKey, Flags), GenerateError> {
    let (public_half, private) = session_pair(session, mechanisms, algorithm, label)?;
    made.scratch(public_half);
    made.scratch(private);
    let key = public::read(session, public_half).map_err(|source| call("tell the new public key", source))??;
    // The ID is the hash of a key that did not exist before.
    let id = [Attribute::Id(key.key_id().to_vec())];
    for object in [public_half, private] {
        session.update_attributes(object, &id).map_err(|e| call("set the new key's CKA_ID", e.into()))?;
    }
    proof::signs(session, private, &key)?;
    let keep = |object| session.copy_object(object, &template::keep());
    made.token(keep(public_half).map_err(|e| call("store the new public key", e.into()))?);
    let stored = made.token(keep(private).map_err(|e| call("store the new private key", e.into()))?);
    let flags = proof::attributes(session, stored, true)?;
    proof::unreadable(session, stored, algorithm)?;
    proof::signs(session, find_private_key(session, &key)?, &key)?;
    Ok((key, flags))
}

fn session_pair(
    session: &Session,
    mechanisms: &[MechanismType],
    algorithm: KeyAlgorithm,
    label: &str,
) -> Result<(ObjectHandle, ObjectHandle), GenerateError> {
    let name = Name { id: &[], label };
    let private = template::private_flags(&name, signing_mechanism(algorithm, mechanisms), false);
    let mut public = template::public_flags(false).to_vec();
    public.push(Attribute::Label(label.as_bytes().to_vec()));
    let mechanism = match algorithm {
        KeyAlgorithm::Rsa { bits } => {
            public.push(Attribute::ModulusBits(u64::from(bits).into()));
            public.push(Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()));
            Mechanism::RsaPkcsKeyPairGen
        }
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => {
            public.extend(curve(algorithm));
            Mechanism::EccKeyPairGen
        }
        KeyAlgorithm::Ed25519 => {
            public.extend(curve(algorithm));
            Mechanism::EccEdwardsKeyPairGen
        }
    };
    let first = session.generate_key_pair(&mechanism, &public, &private).map_err(Pkcs11Error::from);
    match (first, algorithm) {
        (Ok(pair), _) => Ok(pair),
        (Err(_), KeyAlgorithm::Ed25519) => {
            for attribute in &mut public {
                if matches!(attribute, Attribute::EcParams(_)) {
                    *attribute = Attribute::EcParams(EDWARDS25519.to_vec());
                }
            }
            session.generate_key_pair(&mechanism, &public, &private).map_err(|e| call("generate the key", e.into()))
        }
        (Err(source), KeyAlgorithm::P256 | KeyAlgorithm::P384 | KeyAlgorithm::Rsa { .. }) => {
            Err(call("generate the key", source))
        }
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

/// The token's objects of a class and label.
fn labelled(session: &Session, class: ObjectClass, label: &str) -> Result<Vec<ObjectHandle>, GenerateError> {
    let template = [Attribute::Class(class), Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())];
    session.find_objects(&template).map_err(|e| call("look for the label", e.into()))
}

fn finish<T>(made: Made<'_>, outcome: Result<T, GenerateError>) -> Result<T, GenerateError> {
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

fn call(step: &'static str, source: Pkcs11Error) -> GenerateError {
    CallError { step, source }.into()
}

impl GenerateError {
    /// Whether the token is unable by its nature, rather than by a fault of the moment.
    fn is_inability(&self) -> bool {
        match self {
            Self::Mechanism { .. } | Self::PublicHalf(_) => true,
            Self::Call(CallError { source, .. }) => {
                use super::Recovery;
                match source.recovery() {
                    Recovery::FixConfiguration | Recovery::FixKey | Recovery::RejectRequest => true,
                    // What Kryoptic and SoftHSM builds without the curve answer to its generation.
                    Recovery::NewSession | Recovery::NewProcess => {
                        source.is(RvError::FunctionFailed) || source.is(RvError::DeviceError)
                    }
                    Recovery::Retry | Recovery::Relogin | Recovery::FixPin | Recovery::Ignore => false,
                }
            }
            Self::Certificate(_) | Self::Key(_) | Self::LabelTaken(_) | Self::NotUndone { .. } | Self::Proof(_) => {
                false
            }
        }
    }
}
