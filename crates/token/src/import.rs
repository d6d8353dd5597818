//! The CA's key goes from a file into the token, for good.
//!
//! [`plan()`] finds every reason to refuse before anything is written; [`run`] does it, in the order that leaves no half
//! key behind however it is interrupted: the private key arrives wrapped, as a session object, proves itself by a
//! signature, and becomes the token's by one copy, last of all. What [`run`] made it removes again when it fails. It
//! never deletes what it has not made, but for what its own mark shows to be left by an interrupted import, and an
//! older certificate of the same key and label. Called by the `import` command.

use cryptoki::{mechanism::MechanismType, object::ObjectHandle, session::Session};

use super::{
    CallError, Pkcs11Error, Recovery, Token,
    generate::{GenerateError, service},
    key::{
        Flags, KeyError, find_private_key, hex,
        objects::{Made, place_certificate, place_public},
        proof::{self, ProofError},
        template::{self, Certificate, CertificateError, Name},
    },
    mechanism::signing_mechanism,
};
use pki::{
    KeyAlgorithm,
    private_key::{PrivateKey, PrivateKeyError},
};

mod clear;
mod existing;
mod marker;
mod plan;
mod report;
mod wrap;

pub use clear::ClearTemplate;
pub use plan::{Problem, Ready, plan, reach};
pub use report::{Control, How, ImportReport, WrapAttempt};
use wrap::Wrapping;
pub use wrap::{KeyWrap, OaepHash, WrapError};

/// What the operator may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// CKA_LABEL of the key's objects; a key that is there already keeps its own.
    pub label: String,
    /// Whether the key may cross the PKCS#11 boundary in the clear, where the token cannot unwrap it.
    pub allow_plaintext: bool,
}

/// Why an import failed. Everything that it made has been removed again, unless it is [`ImportError::NotUndone`].
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The certificate is not the key's.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key in the token is unfit, or there are several.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The token cannot sign with such a key.
    #[error("the token cannot sign with a {0} key; use a token that can, or a CA key of another type")]
    Mechanism(KeyAlgorithm),
    /// The token cannot unwrap such a key, and the clear is not allowed.
    #[error("the token cannot take a {algorithm} key wrapped; --allow-plaintext-import hands it over in the clear")]
    NotWrapped {
        /// The key's type.
        algorithm: KeyAlgorithm,
        /// What was tried.
        #[source]
        source: WrapError,
    },
    /// What was made could not all be removed again.
    #[error("{source}; besides, {left} of the objects made could not be removed again: import again to clear them")]
    NotUndone {
        /// How many are left.
        left: usize,
        /// What went wrong at first.
        source: Box<ImportError>,
    },
    /// The software key cannot be taken apart.
    #[error(transparent)]
    PrivateKey(#[from] PrivateKeyError),
    /// The key in the token is not as it should be.
    #[error("the key in the token is not as it should be")]
    Proof(#[from] ProofError),
    /// The log's or the probes' key could not be made.
    #[error("the log's and the probes' keys could not be made ready")]
    ServiceKeys(#[from] GenerateError),
    /// An object with the key's ID does not work and is not ours.
    #[error(
        "the token holds a private key with {what} that does not work as the CA's key; delete it by the vendor's tool"
    )]
    Unproven {
        /// How the key was looked for.
        what: String,
        /// What is wrong.
        #[source]
        source: ProofError,
    },
    /// Wrapping failed.
    #[error("the token did not take the wrapped key")]
    Wrap(#[from] WrapError),
}

/// A private key in the token as a session object that has proven itself.
struct Staged {
    handle: ObjectHandle,
    how: How,
    restricted: bool,
}

/// Imports a key with its certificate, or finds it imported and brings the certificate up to date. `session` is a
/// read-write one, logged in.
///
/// # Errors
/// When the certificate is not the key's, the token cannot take the key or fails, or the key in the token does not
/// prove itself.
pub fn run(
    token: &Token,
    session: &Session,
    key: &PrivateKey,
    ca_certificate: &[u8],
    options: &Options,
) -> Result<ImportReport, ImportError> {
    let certificate = Certificate::new(ca_certificate, key.public_key())?;
    let mechanisms = token.mechanisms().map_err(|source| call("list its mechanisms", source))?;
    let algorithm = key.public_key().algorithm();
    let signing = signing_mechanism(algorithm, &mechanisms).ok_or(ImportError::Mechanism(algorithm))?;
    let import = Import { token, session, key, options, signing, mechanisms };
    let mut made = Made::new(session);
    match import.run(&certificate, &mut made) {
        Ok((mut report, obsolete)) => {
            made.keep();
            // The key is in and proven: what cannot be tidied up now is told, and no failure.
            for object in obsolete {
                if let Err(error) = session.destroy_object(object) {
                    report
                        .notes
                        .push(format!("an object that is not needed any more stays: {}", Pkcs11Error::from(error)));
                }
            }
            Ok(report)
        }
        Err(error) => match made.undo() {
            0 => Err(error),
            left => Err(ImportError::NotUndone { left, source: Box::new(error) }),
        },
    }
}

struct Import<'a> {
    token: &'a Token,
    session: &'a Session,
    key: &'a PrivateKey,
    options: &'a Options,
    signing: MechanismType,
    mechanisms: Vec<MechanismType>,
}

impl Import<'_> {
    /// Answers the report, and the objects to remove when nothing can fail any more.
    fn run(
        &self,
        certificate: &Certificate,
        made: &mut Made<'_>,
    ) -> Result<(ImportReport, Vec<ObjectHandle>), ImportError> {
        let (session, public) = (self.session, self.key.public_key());
        let found = existing::look(session, public)?;
        let cleared = existing::clear(session, public, &found)?;
        let mut notes = report::other_interruptions(session, public);
        let wrapping = Wrapping::establish(session, made);
        let staged = match &found.whole {
            Some(_) => None,
            None => Some(self.stage(wrapping.as_ref(), made)?),
        };
        let service_keys = service::ensure(session, &self.mechanisms, made)?;
        let id = public.key_id();
        let label = found.whole.as_ref().map_or(self.options.label.as_str(), |(_, _, label)| label.as_str());
        let name = Name { id: &id, label };
        let mut obsolete = found.interrupted;
        if staged.is_some() && obsolete.is_empty() {
            match marker::write(session, public) {
                Ok(mark) => obsolete.push(made.guard(mark)),
                Err(fault) => notes.push(format!("the token keeps no mark of an import under way: {fault}")),
            }
        }
        let public_key = place_public(session, public, &name, made).map_err(|e| call("store the public key", e))?;
        let (placed, old) =
            place_certificate(session, certificate, &name, made).map_err(|e| call("store the certificate", e))?;
        obsolete.extend(old);
        let flags = match (&staged, found.whole.as_ref()) {
            (Some(staged), _) => self.keep(staged, made)?,
            (None, Some((_, flags, _))) => {
                notes.extend(report::surplus_notes(flags));
                *flags
            }
            (None, None) => Flags::default(),
        };
        // Found as `serve` will find it, which also shows that nobody else imported it at the same time.
        let handle = find_private_key(session, public)?;
        proof::signs(session, handle, public)?;
        proof::unreadable(session, handle, public.algorithm())?;
        let wrap_attempt = self.wrap_attempt(wrapping.as_ref(), handle, made)?;
        let report = ImportReport {
            at: report::now(),
            algorithm: public.algorithm().to_string(),
            label: label.to_owned(),
            id: hex(&id),
            key_sha256: hex(&public.fingerprint()),
            certificate_sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der()).as_ref()),
            token: self.token.info().clone(),
            private_key: report::how(staged.as_ref()),
            public_key,
            certificate: placed,
            attributes: flags,
            restricted_to_mechanism: staged.as_ref().map(|staged| staged.restricted),
            read_attempt: "CKR_ATTRIBUTE_SENSITIVE",
            wrap_attempt,
            service_keys,
            cleared,
            notes,
        };
        Ok((report, obsolete))
    }

    /// Brings the key in as a session object and has it prove itself.
    fn stage(&self, wrapping: Result<&Wrapping<'_>, &WrapError>, made: &mut Made<'_>) -> Result<Staged, ImportError> {
        let public = self.key.public_key();
        let (handle, how, restricted) = match self.stage_wrapped(wrapping) {
            Ok(staged) => staged,
            Err(error) if !cannot(&error) => return Err(error.into()),
            Err(source) if !self.options.allow_plaintext => {
                return Err(ImportError::NotWrapped { algorithm: public.algorithm(), source });
            }
            Err(_) => {
                let template = ClearTemplate::new(self.key, self.template(Some(self.signing), false))?;
                let handle = self.session.create_object(template.attributes());
                (handle.map_err(|e| call("take the key in the clear", e.into()))?, How::Clear, true)
            }
        };
        made.scratch(handle);
        proof::attributes(self.session, handle, false)?;
        proof::signs(self.session, handle, public)?;
        Ok(Staged { handle, how, restricted })
    }

    fn stage_wrapped(
        &self,
        wrapping: Result<&Wrapping<'_>, &WrapError>,
    ) -> Result<(ObjectHandle, How, bool), WrapError> {
        let wrapping = wrapping.map_err(WrapError::clone)?;
        let how =
            How::Wrapped { oaep_hash: wrapping.oaep(), key_wrap: wrapping.key_wrap(), pair_bits: wrapping.pair_bits() };
        let unwrap = |allowed| wrapping.unwrap(self.key.pkcs8(), &self.template(allowed, false));
        match unwrap(Some(self.signing)) {
            Ok(handle) => Ok((handle, how, true)),
            // Tokens of before v2.20 do not know CKA_ALLOWED_MECHANISMS.
            Err(WrapError::KeyWrap(fault)) if template_refused(&fault) => Ok((unwrap(None)?, how, false)),
            Err(error) => Err(error),
        }
    }

    /// Makes the staged key the token's, and reads back what the token made of it.
    fn keep(&self, staged: &Staged, made: &mut Made<'_>) -> Result<Flags, ImportError> {
        let stored = self
            .session
            .copy_object(staged.handle, &template::keep())
            .map_err(|e| call("store the private key", e.into()))?;
        made.token(stored);
        Ok(proof::attributes(self.session, stored, true)?)
    }

    fn wrap_attempt(
        &self,
        wrapping: Result<&Wrapping<'_>, &WrapError>,
        handle: ObjectHandle,
        made: &mut Made<'_>,
    ) -> Result<WrapAttempt, ImportError> {
        let wrapping = match wrapping {
            Ok(wrapping) => wrapping,
            Err(error) => return Ok(WrapAttempt::NotTried { reason: told(error) }),
        };
        let answer = match wrapping.wrap_out(handle) {
            Ok(()) => return Err(ProofError::Wrappable.into()),
            Err(fault) => fault.to_string(),
        };
        let control = match self.twin(wrapping) {
            Ok(twin) => {
                made.scratch(twin);
                match wrapping.wrap_out(twin) {
                    Ok(()) => Control::Wrapped,
                    Err(fault) => Control::Failed { answer: fault.to_string() },
                }
            }
            Err(answer) => Control::Failed { answer },
        };
        Ok(WrapAttempt::Refused { answer, control })
    }

    /// The same key as a session object that may be wrapped out.
    fn twin(&self, wrapping: &Wrapping<'_>) -> Result<ObjectHandle, String> {
        let template = self.template(None, true);
        match wrapping.unwrap(self.key.pkcs8(), &template) {
            Ok(twin) => Ok(twin),
            Err(error) if !self.options.allow_plaintext => Err(told(&error)),
            Err(_) => {
                let clear = ClearTemplate::new(self.key, template).map_err(|e| e.to_string())?;
                self.session.create_object(clear.attributes()).map_err(|e| Pkcs11Error::from(e).to_string())
            }
        }
    }

    fn template(&self, allowed: Option<MechanismType>, extractable: bool) -> Vec<cryptoki::object::Attribute> {
        let public = self.key.public_key();
        let name = Name { id: &public.key_id(), label: &self.options.label };
        template::private(public.algorithm(), &name, allowed, extractable)
    }
}

/// Whether the token is unable, rather than busy or broken at this moment.
fn cannot(error: &WrapError) -> bool {
    match error.fault().map(Pkcs11Error::recovery) {
        // CKR_FUNCTION_FAILED is what SoftHSM says to a key type that it cannot unwrap.
        Some(Recovery::FixConfiguration | Recovery::RejectRequest | Recovery::NewSession) => true,
        Some(Recovery::Retry | Recovery::Relogin | Recovery::FixPin | Recovery::Ignore | Recovery::NewProcess)
        | None => false,
    }
}

fn template_refused(fault: &Pkcs11Error) -> bool {
    use cryptoki::error::RvError::{
        AttributeReadOnly, AttributeTypeInvalid, AttributeValueInvalid, TemplateInconsistent,
    };
    [AttributeReadOnly, AttributeTypeInvalid, AttributeValueInvalid, TemplateInconsistent]
        .into_iter()
        .any(|rv| fault.is(rv))
}

fn told(error: &WrapError) -> String {
    error.fault().map_or_else(|| error.to_string(), |fault| format!("{error}: {fault}"))
}

fn call(step: &'static str, source: Pkcs11Error) -> ImportError {
    CallError { step, source }.into()
}
