//! Import of the CA's private key into a token.
//!
//! [`plan()`] finds every obstacle before anything is written, and its results are the input of [`run`]. The order of
//! steps leaves no partial key however it is interrupted: the private key is unwrapped as a session object, proves
//! itself by a signature, and becomes a token object by one C_CopyObject; a token without C_CopyObject gets it a second
//! time, as a token object, and one without session objects at once. The helper keys come last, since they are optional
//! and the token may have no room for them. On failure [`run`] removes what it created. It deletes other objects only if
//! its marker shows that an interrupted import left them, or if they are an older certificate of the same key and label.

use cryptoki::{
    error::RvError,
    mechanism::MechanismType,
    object::{Attribute, ObjectHandle},
};

use super::{
    CallError, Pkcs11Error,
    generate::service,
    key::{
        self, Accepted, Flags, KeyError, Weakness, hex,
        objects::{Made, Placed, await_visible, place_certificate, place_public},
        proof::{self, ProofError},
        template::{self, Certificate, Name, Omission},
    },
};
use pki::private_key::PrivateKey;

mod clear;
mod error;
mod existing;
mod marker;
mod plan;
mod rehearsal;
mod report;
mod wrap;

pub use clear::ClearTemplate;
use error::import_tool;
pub use error::{ImportError, NotWrapped};
pub use plan::{Problem, Ready, plan, plan_in_session, reach};
use rehearsal::Clear;
pub use report::{Control, How, ImportReport, WrapAttempt};
use wrap::Wrapping;
pub use wrap::{KeyWrap, Level, Number, OaepHash, WrapError};

/// Options of the operator.
#[derive(Clone, Debug)]
pub struct Options {
    /// CKA_LABEL of the key's objects. A key that is present already keeps its label.
    pub label: String,
    /// Whether the key may cross the PKCS#11 boundary in the clear if the token cannot unwrap it.
    pub allow_plaintext: bool,
    /// A vendor's mechanism number for RFC 5649.
    pub kwp_mechanism: Option<Number>,
    /// The weaknesses that are accepted of the key in the token.
    pub accepted: Accepted,
}

/// A private key in the token that has passed its checks.
struct Staged {
    handle: ObjectHandle,
    how: How,
    omission: Omission,
    /// Whether it is a token object already.
    stored: bool,
}

/// Imports a key with its certificate. If the key is present already, updates the certificate only.
///
/// # Errors
/// If the certificate or the private key does not belong to the planned key, a call fails, or the key in the token does
/// not pass its checks.
pub fn run(ready: Ready, key: &PrivateKey, ca_certificate: &[u8]) -> Result<ImportReport, ImportError> {
    let certificate = Certificate::new(ca_certificate, &ready.key)?;
    let import = Import { ready, key };
    let session = &import.ready.session;
    let mut made = Made::new(session);
    match import.run(&certificate, &mut made) {
        Ok((mut report, obsolete)) => {
            made.keep();
            // The key is imported and verified: a failed cleanup is reported but does not fail the import.
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
    fn run<'a>(
        &'a self,
        certificate: &Certificate,
        made: &mut Made<'a>,
    ) -> Result<(ImportReport, Vec<ObjectHandle>), ImportError> {
        let Ready { session, key: public, existing, options, .. } = &self.ready;
        let cleared = existing::clear(session, public, existing)?;
        let mut notes = report::other_interruptions(session, public);
        let mut obsolete = existing.interrupted.clone();
        if existing.whole.is_none() && obsolete.is_empty() {
            match marker::write(session, public) {
                Ok(mark) => obsolete.push(made.guard(mark)),
                Err(fault) if !fault.is_inability() => {
                    return Err(call("store the marker of an import in progress", fault));
                }
                Err(fault) => {
                    notes.push(format!("the token does not store the marker of an import in progress: {fault}"))
                }
            }
        }
        let staged = match &existing.whole {
            Some(_) => None,
            None => Some(self.stage(Omission::NONE, made)?),
        };
        let own_id = public.key_id();
        let locator = existing.whole.as_ref().map(|whole| &whole.locator);
        let id = locator.map(|locator| locator.id.as_slice()).filter(|id| !id.is_empty()).unwrap_or(&own_id);
        let label = locator.map_or(options.label.as_str(), |locator| &locator.label);
        let name = Name { id, label };
        let public_key = place_public(session, public, &name, made);
        let public_key = Placed::or_not(public_key, Placed::NotStored, "public key", &mut notes)
            .map_err(|e| call("store the public key", e))?;
        let placed = place_certificate(session, certificate, &name, made);
        let (placed, old) = Placed::or_not(placed, (Placed::NotStored, Vec::new()), "certificate", &mut notes)
            .map_err(|e| call("store the certificate", e))?;
        obsolete.extend(old);
        let (handle, flags, omitted_attributes) = match (&staged, existing.whole.as_ref()) {
            (Some(staged), _) => self.keep(staged, made)?,
            (None, Some(whole)) => (whole.handle, whole.flags, Vec::new()),
            (None, None) => return Err(KeyError::NotFound(format!("CKA_ID {}", hex(&own_id))).into()),
        };
        notes.extend(report::surplus_notes(&flags));
        // Another import of the same key at the same time makes a second one.
        let same = key::private_keys(session, public).map_err(|e| call("look for the key", e))?;
        if staged.is_some() && same.len() > 1 {
            return Err(KeyError::Ambiguous { what: format!("CKA_ID {}", hex(&own_id)), count: same.len() }.into());
        }
        existing::search(options).find_related(session, public)?;
        let mut weaknesses = flags.weaknesses();
        let read_attempt = proof::unreadable(session, handle, public.algorithm())?;
        let wrap_attempt = self.wrap_attempt(handle, made)?;
        if wrap_attempt == WrapAttempt::Accepted {
            weaknesses.push(Weakness::Extractable);
        }
        let service_keys = service::ensure(session, &self.ready.mechanisms, made);
        notes.extend(service_keys.disabled());
        let restricted = !omitted_attributes.iter().any(|name| name == "CKA_ALLOWED_MECHANISMS");
        let report = ImportReport {
            at: report::now(),
            algorithm: public.algorithm().to_string(),
            label: label.to_owned(),
            id: hex(id),
            key_sha256: hex(&public.fingerprint()),
            certificate_sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der()).as_ref()),
            token: self.ready.token.info().clone(),
            private_key: report::how(staged.as_ref()),
            public_key,
            certificate: placed,
            attributes: flags,
            restricted_to_mechanism: staged.as_ref().map(|_| restricted),
            omitted_attributes,
            accepted_weaknesses: options.accepted.of(&weaknesses),
            read_attempt,
            wrap_attempt,
            service_keys,
            cleared,
            notes,
        };
        Ok((report, obsolete))
    }

    /// Creates the key, as a session object if the token has such, and checks its attributes and signature.
    fn stage(&self, omission: Omission, made: &mut Made<'_>) -> Result<Staged, ImportError> {
        let staged = self.create(&self.template(Some(self.ready.signing), false), omission)?;
        if staged.stored {
            made.token(staged.handle)
        } else {
            made.scratch(staged.handle)
        };
        proof::attributes(&self.ready.session, staged.handle, staged.stored, &self.ready.options.accepted)?;
        proof::signs(&self.ready.session, staged.handle, &self.ready.key)?;
        Ok(staged)
    }

    /// Creates the key as an object, in the way that the plan found, and without what `omission` leaves out.
    fn create(&self, template: &[Attribute], omission: Omission) -> Result<Staged, ImportError> {
        let Ready { session, wrapping, clear, .. } = &self.ready;
        let (handle, how, omission) = match *clear {
            Some(Clear::Session(planned)) => {
                let omission = omission.and(planned);
                let template = ClearTemplate::new(self.key, omission.apply(template))?;
                let handle = session.create_object(template.attributes());
                (handle.map_err(|e| call("take the key in the clear", e.into()))?, How::Clear, omission)
            }
            Some(Clear::Token) => {
                let kept = template::kept(&omission.apply(template));
                let (handle, rejected) = rehearsal::create(session, self.key, &kept).map_err(|source| {
                    if !source.is_inability() && !template::rejects_template(&source) {
                        return call("take the key in the clear", source);
                    }
                    let tool = import_tool(&self.ready.token.library().unwrap_or_default());
                    let algorithm = self.ready.key.algorithm();
                    ImportError::NotTaken { algorithm, tool, source }
                })?;
                return Ok(Staged { handle, how: How::Clear, omission: omission.and(rejected), stored: true });
            }
            None => {
                let wrapping = wrapping.as_ref().map_err(WrapError::clone)?;
                let omission = omission.and(wrapping.unwraps()?);
                let handle = wrapping.unwrap(session, self.key.pkcs8(), &omission.apply(template))?;
                (handle, wrapping.how(), omission)
            }
        };
        proof::protect(session, handle);
        Ok(Staged { handle, how, omission, stored: false })
    }

    /// Makes the staged key a token object, and reads its attributes back. Returns also the attributes that were left
    /// out.
    fn keep(&self, staged: &Staged, made: &mut Made<'_>) -> Result<(ObjectHandle, Flags, Vec<String>), ImportError> {
        let session = &self.ready.session;
        let template = self.template(Some(self.ready.signing), false);
        let kept = template::keep();
        if staged.stored {
            let omitted = staged.omission.names(&template::kept(&template));
            return Ok((staged.handle, self.kept_flags(staged.handle)?, omitted));
        }
        let copy = |staged: &Staged| {
            template::with_fallbacks(&kept, |omission| Ok(session.copy_object(staged.handle, &omission.apply(&kept))?))
        };
        let mut created = staged.omission;
        let mut copied = copy(staged);
        // NSS takes the restriction of a session object, and has no place for it in its database.
        if !created.includes(Omission::RESTRICTION)
            && copied.as_ref().is_err_and(|error| error.is(RvError::GeneralError))
        {
            let unrestricted = self.stage(Omission::RESTRICTION, made)?;
            copied = copy(&unrestricted);
            created = unrestricted.omission;
        }
        let (stored, omission) = match copied {
            Ok(stored) => stored,
            Err(error) if error.is_inability() => {
                let again = match self.create(&template::kept(&template), created) {
                    // Only a token object has CKA_MODIFIABLE in its template.
                    Err(error) if error.rejects_template() => {
                        self.create(&template::kept(&template), created.and(Omission::MODIFIABLE))
                    }
                    again => again,
                }?;
                (again.handle, again.omission)
            }
            Err(error) => return Err(call("store the private key", error)),
        };
        made.token(stored);
        let omitted = [created.names(&template), omission.names(&kept)].concat();
        Ok((stored, self.kept_flags(stored)?, omitted))
    }

    /// The attributes of the key as a token object, once a search shows it.
    fn kept_flags(&self, stored: ObjectHandle) -> Result<Flags, ImportError> {
        let Ready { session, options, .. } = &self.ready;
        await_visible(session, stored, &options.label).map_err(|e| call("look for the key", e))?;
        Ok(proof::attributes(session, stored, true, &options.accepted)?)
    }

    fn wrap_attempt(&self, handle: ObjectHandle, made: &mut Made<'_>) -> Result<WrapAttempt, ImportError> {
        let wrapping = match &self.ready.wrapping {
            Ok(wrapping) => wrapping,
            Err(error) => return Ok(WrapAttempt::NotTried { reason: text(error) }),
        };
        let answer = match wrapping.wrap_out(&self.ready.session, handle) {
            Ok(()) if self.ready.options.accepted.allows(Weakness::Extractable) => return Ok(WrapAttempt::Accepted),
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
        let omission = wrapping.unwraps().unwrap_or(Omission::NONE);
        let template = omission.apply(&self.template(None, true));
        match wrapping.unwrap(&self.ready.session, self.key.pkcs8(), &template) {
            Ok(twin) => Ok(twin),
            Err(error) if !self.ready.options.allow_plaintext => Err(text(&error)),
            Err(_) => {
                let clear = ClearTemplate::new(self.key, template).map_err(|e| e.to_string())?;
                self.ready.session.create_object(clear.attributes()).map_err(|e| Pkcs11Error::from(e).to_string())
            }
        }
    }

    fn template(&self, allowed: Option<MechanismType>, extractable: bool) -> Vec<Attribute> {
        let public = &self.ready.key;
        let name = Name { id: &public.key_id(), label: &self.ready.options.label };
        template::private(public.algorithm(), &name, allowed, extractable)
    }
}

fn text(error: &WrapError) -> String {
    error.fault().map_or_else(|| error.to_string(), |fault| format!("{error}: {fault}"))
}

fn call(step: &'static str, source: Pkcs11Error) -> ImportError {
    CallError { step, source }.into()
}
