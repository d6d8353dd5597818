//! Import of the CA's private key into a token.
//!
//! [`plan()`] finds every obstacle before anything is written, and its results are the input of [`run`]. The order of
//! steps leaves no partial key however it is interrupted: the private key is unwrapped as a session object, proves
//! itself by a signature, and becomes a token object by one C_CopyObject, last of all. On failure [`run`] removes what
//! it created. It deletes other objects only if its marker shows that an interrupted import left them, or if they are
//! an older certificate of the same key and label.

use cryptoki::{mechanism::MechanismType, object::ObjectHandle};

use super::{
    CallError, Pkcs11Error, Recovery,
    generate::{GenerateError, service},
    key::{
        Flags, KeyError, find_private_key, hex,
        objects::{Made, place_certificate, place_public},
        proof::{self, ProofError},
        template::{self, Certificate, CertificateError, Name},
    },
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
pub use plan::{Problem, Ready, plan, plan_in_session, reach};
pub use report::{Control, How, ImportReport, WrapAttempt};
use wrap::Wrapping;
pub use wrap::{KeyWrap, OaepHash, WrapError};

/// Choices of the operator.
#[derive(Clone, Debug)]
pub struct Options {
    /// CKA_LABEL of the key's objects. A key that is present already keeps its label.
    pub label: String,
    /// Whether the key may cross the PKCS#11 boundary in the clear if the token cannot unwrap it.
    pub allow_plaintext: bool,
}

/// Errors of an import. Everything it created has been removed again, except for [`ImportError::NotUndone`].
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The certificate is for another key.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key in the token is unfit, or several keys match.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The token cannot unwrap such a key, and import in the clear is not allowed.
    #[error("the token cannot unwrap a {algorithm} key; --allow-plaintext-import imports it in the clear")]
    NotWrapped {
        /// Algorithm of the key.
        algorithm: KeyAlgorithm,
        /// The step that failed.
        #[source]
        source: WrapError,
    },
    /// Some of the created objects could not be removed.
    #[error("{source}; in addition, {left} of the created objects could not be removed: import again to remove them")]
    NotUndone {
        /// Number of objects left.
        left: usize,
        /// The original error.
        source: Box<ImportError>,
    },
    /// The software key cannot be decomposed.
    #[error(transparent)]
    PrivateKey(#[from] PrivateKeyError),
    /// The key in the token failed its checks.
    #[error("the key in the token failed its checks")]
    Proof(#[from] ProofError),
    /// The log key or the canary key could not be prepared.
    #[error("the log key and the canary key could not be prepared")]
    ServiceKeys(#[from] GenerateError),
    /// An object with the key's CKA_ID does not work and is not from an interrupted import.
    #[error(
        "the token holds a private key with {what} that does not work as the CA's key; delete it with the vendor's tool"
    )]
    Unproven {
        /// The search criterion.
        what: String,
        /// The failed check.
        #[source]
        source: ProofError,
    },
    /// Wrapping failed.
    #[error("the token did not accept the wrapped key")]
    Wrap(#[from] WrapError),
}

/// A private key in the token as a session object that has passed its checks.
struct Staged {
    handle: ObjectHandle,
    how: How,
    restricted: bool,
}

/// Imports a key with its certificate. If the key is present already, updates the certificate only.
///
/// # Errors
/// When the certificate or the private key does not belong to the planned key, a call fails, or the key in the token
/// does not pass its checks.
pub fn run(ready: Ready, key: &PrivateKey, ca_certificate: &[u8]) -> Result<ImportReport, ImportError> {
    let certificate = Certificate::new(ca_certificate, &ready.key)?;
    let import = Import { ready, key };
    let session = &import.ready.session;
    let mut made = Made::new(session);
    match import.run(&certificate, &mut made) {
        Ok((mut report, obsolete)) => {
            made.keep();
            // The key is imported and proven: failing to tidy up is reported, but does not fail the import.
            for object in obsolete {
                if let Err(error) = session.destroy_object(object) {
                    report.notes.push(format!("an obsolete object could not be removed: {}", Pkcs11Error::from(error)));
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
    ready: Ready,
    key: &'a PrivateKey,
}

impl Import<'_> {
    /// Returns the report, and the objects to remove once nothing can fail any more.
    fn run(
        &self,
        certificate: &Certificate,
        made: &mut Made<'_>,
    ) -> Result<(ImportReport, Vec<ObjectHandle>), ImportError> {
        let Ready { session, key: public, existing, options, .. } = &self.ready;
        let cleared = existing::clear(session, public, existing)?;
        let mut notes = report::other_interruptions(session, public);
        let staged = match &existing.whole {
            Some(_) => None,
            None => Some(self.stage(made)?),
        };
        let service_keys = service::ensure(session, &self.ready.mechanisms, made)?;
        let id = public.key_id();
        let label = existing.whole.as_ref().map_or(options.label.as_str(), |(_, _, label)| label.as_str());
        let name = Name { id: &id, label };
        let mut obsolete = existing.interrupted.clone();
        if staged.is_some() && obsolete.is_empty() {
            match marker::write(session, public) {
                Ok(mark) => obsolete.push(made.guard(mark)),
                Err(fault) => {
                    notes.push(format!("the token does not store the marker of an import in progress: {fault}"))
                }
            }
        }
        let public_key = place_public(session, public, &name, made).map_err(|e| call("store the public key", e))?;
        let (placed, old) =
            place_certificate(session, certificate, &name, made).map_err(|e| call("store the certificate", e))?;
        obsolete.extend(old);
        let flags = match (&staged, existing.whole.as_ref()) {
            (Some(staged), _) => self.keep(staged, made)?,
            (None, Some((_, flags, _))) => {
                notes.extend(report::surplus_notes(flags));
                *flags
            }
            (None, None) => Flags::default(),
        };
        // The same lookup as in `serve`. It also detects a concurrent import of the same key.
        let handle = find_private_key(session, public)?;
        proof::signs(session, handle, public)?;
        proof::unreadable(session, handle, public.algorithm())?;
        let wrap_attempt = self.wrap_attempt(handle, made)?;
        let report = ImportReport {
            at: report::now(),
            algorithm: public.algorithm().to_string(),
            label: label.to_owned(),
            id: hex(&id),
            key_sha256: hex(&public.fingerprint()),
            certificate_sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der()).as_ref()),
            token: self.ready.token.info().clone(),
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

    /// Creates the key as a session object and checks its attributes and signature.
    fn stage(&self, made: &mut Made<'_>) -> Result<Staged, ImportError> {
        let public = &self.ready.key;
        let (handle, how, restricted) = match self.stage_wrapped() {
            Ok(staged) => staged,
            Err(error) if !cannot(&error) => return Err(error.into()),
            Err(source) if !self.ready.options.allow_plaintext => {
                return Err(ImportError::NotWrapped { algorithm: public.algorithm(), source });
            }
            Err(_) => {
                let template = ClearTemplate::new(self.key, self.template(Some(self.ready.signing), false))?;
                let handle = self.ready.session.create_object(template.attributes());
                (handle.map_err(|e| call("take the key in the clear", e.into()))?, How::Clear, true)
            }
        };
        made.scratch(handle);
        proof::attributes(&self.ready.session, handle, false)?;
        proof::signs(&self.ready.session, handle, public)?;
        Ok(Staged { handle, how, restricted })
    }

    fn stage_wrapped(&self) -> Result<(ObjectHandle, How, bool), WrapError> {
        let wrapping = self.ready.wrapping.as_ref().map_err(WrapError::clone)?;
        let how = wrapping.how();
        let unwrap = |allowed| wrapping.unwrap(&self.ready.session, self.key.pkcs8(), &self.template(allowed, false));
        match unwrap(Some(self.ready.signing)) {
            Ok(handle) => Ok((handle, how, true)),
            // Tokens older than PKCS#11 v2.20 do not support CKA_ALLOWED_MECHANISMS.
            Err(WrapError::KeyWrap(fault)) if template_refused(&fault) => Ok((unwrap(None)?, how, false)),
            Err(error) => Err(error),
        }
    }

    /// Copies the staged key to a token object, and reads its attributes back.
    fn keep(&self, staged: &Staged, made: &mut Made<'_>) -> Result<Flags, ImportError> {
        let stored = self
            .ready
            .session
            .copy_object(staged.handle, &template::keep())
            .map_err(|e| call("store the private key", e.into()))?;
        made.token(stored);
        Ok(proof::attributes(&self.ready.session, stored, true)?)
    }

    fn wrap_attempt(&self, handle: ObjectHandle, made: &mut Made<'_>) -> Result<WrapAttempt, ImportError> {
        let wrapping = match &self.ready.wrapping {
            Ok(wrapping) => wrapping,
            Err(error) => return Ok(WrapAttempt::NotTried { reason: told(error) }),
        };
        let answer = match wrapping.wrap_out(&self.ready.session, handle) {
            Ok(()) => return Err(ProofError::Wrappable.into()),
            Err(fault) => fault.to_string(),
        };
        let control = match self.twin(wrapping) {
            Ok(twin) => {
                made.scratch(twin);
                match wrapping.wrap_out(&self.ready.session, twin) {
                    Ok(()) => Control::Wrapped,
                    Err(fault) => Control::Failed { answer: fault.to_string() },
                }
            }
            Err(answer) => Control::Failed { answer },
        };
        Ok(WrapAttempt::Refused { answer, control })
    }

    /// The same key as an extractable session object.
    fn twin(&self, wrapping: &Wrapping) -> Result<ObjectHandle, String> {
        let template = self.template(None, true);
        match wrapping.unwrap(&self.ready.session, self.key.pkcs8(), &template) {
            Ok(twin) => Ok(twin),
            Err(error) if !self.ready.options.allow_plaintext => Err(told(&error)),
            Err(_) => {
                let clear = ClearTemplate::new(self.key, template).map_err(|e| e.to_string())?;
                self.ready.session.create_object(clear.attributes()).map_err(|e| Pkcs11Error::from(e).to_string())
            }
        }
    }

    fn template(&self, allowed: Option<MechanismType>, extractable: bool) -> Vec<cryptoki::object::Attribute> {
        let public = &self.ready.key;
        let name = Name { id: &public.key_id(), label: &self.ready.options.label };
        template::private(public.algorithm(), &name, allowed, extractable)
    }
}

/// Whether the token lacks the ability, rather than being busy or failing temporarily.
fn cannot(error: &WrapError) -> bool {
    match error.fault().map(Pkcs11Error::recovery) {
        // SoftHSM returns CKR_FUNCTION_FAILED for a key type that it cannot unwrap.
        Some(Recovery::FixConfiguration | Recovery::FixKey | Recovery::RejectRequest | Recovery::NewSession) => true,
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
