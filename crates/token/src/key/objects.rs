//! The objects that one operation creates in a token, so that it can remove exactly these on failure.

use std::time::{Duration, Instant};

use cryptoki::{
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    Pkcs11Error, public,
    template::{self, Certificate, Name},
};
use pki::PublicKey;

/// Most certificates that are read in one search.
pub(super) const MAX_CERTIFICATES: usize = 256;
/// How long a new private key may stay hidden.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);
/// Interval of the searches for it.
const VISIBLE_AGAIN: Duration = Duration::from_millis(100);

/// Objects created by one operation. Session objects are destroyed when it is dropped; token objects are destroyed by
/// [`Made::undo`], or kept by [`Made::keep`].
#[derive(Debug)]
pub struct Made<'a> {
    session: &'a Session,
    scratch: Vec<ObjectHandle>,
    token: Vec<ObjectHandle>,
    guard: Option<ObjectHandle>,
}

impl<'a> Made<'a> {
    /// Starts without objects.
    #[must_use]
    pub fn new(session: &'a Session) -> Self {
        Self { session, scratch: Vec::new(), token: Vec::new(), guard: None }
    }

    /// Records a session object.
    pub fn scratch(&mut self, object: ObjectHandle) -> ObjectHandle {
        self.scratch.push(object);
        object
    }

    /// Records a token object.
    pub fn token(&mut self, object: ObjectHandle) -> ObjectHandle {
        self.token.push(object);
        object
    }

    /// Records the token object that marks the others: it is destroyed last, and only if all others were destroyed.
    pub fn guard(&mut self, object: ObjectHandle) -> ObjectHandle {
        self.guard = Some(object);
        object
    }

    /// Takes over what a part of the operation has made.
    pub fn absorb(&mut self, mut part: Made<'a>) {
        self.scratch.append(&mut part.scratch);
        self.token.append(&mut part.token);
        self.guard = self.guard.or(part.guard.take());
    }

    /// Everything went well: the token objects stay.
    pub fn keep(mut self) {
        self.token.clear();
    }

    /// Destroys the token objects, last one first. Returns how many could not be destroyed.
    #[must_use]
    pub fn undo(mut self) -> usize {
        let mut left = 0;
        while let Some(object) = self.token.pop() {
            if let Err(error) = self.session.destroy_object(object) {
                tracing::error!(error = %Pkcs11Error::from(error), "an object that was made could not be removed again");
                left += 1;
            }
        }
        if let (Some(guard), 0) = (self.guard.take(), left)
            && let Err(error) = self.session.destroy_object(guard)
        {
            tracing::error!(error = %Pkcs11Error::from(error), "the mark of an import could not be removed again");
            left += 1;
        }
        left
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for object in self.scratch.drain(..) {
            // It would end with the session, too, but should not be found until then.
            if let Err(error) = self.session.destroy_object(object) {
                tracing::warn!(error = %Pkcs11Error::from(error), "a session object could not be removed");
            }
        }
    }
}

/// What was done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placed {
    /// The same object existed already.
    Unchanged,
    /// It replaced another certificate for the same key.
    Replaced,
    /// The token does not take such an object; nothing depends on it.
    NotStored,
    /// It is new.
    Written,
}

impl Placed {
    /// What a token that cannot store such an object makes of the attempt; notes why.
    ///
    /// # Errors
    /// When the attempt failed for another reason.
    pub fn or_not<T>(
        attempt: Result<T, Pkcs11Error>,
        otherwise: T,
        what: &str,
        notes: &mut Vec<String>,
    ) -> Result<T, Pkcs11Error> {
        attempt.or_else(|error| {
            if !error.is_inability() {
                return Err(error);
            }
            notes.push(format!("the token does not store the {what}, which is not needed: {error}"));
            Ok(otherwise)
        })
    }
}

/// Creates a public object, without the attributes that the token rejects.
fn create(session: &Session, template: &[Attribute]) -> Result<ObjectHandle, Pkcs11Error> {
    let created = template::with_fallbacks(template, |omission| Ok(session.create_object(&omission.apply(template))?));
    created.map(|(object, _)| object)
}

/// Waits until a search shows a new private key: AWS CloudHSM copies it to all of its HSMs first. A key that stays hidden
/// is not an error here; what needs it reports that.
///
/// # Errors
/// If a call fails.
pub fn await_visible(session: &Session, key: ObjectHandle, label: &str) -> Result<(), Pkcs11Error> {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    let until = Instant::now() + VISIBLE_WITHIN;
    while !session.find_objects(&template)?.contains(&key) && Instant::now() < until {
        std::thread::sleep(VISIBLE_AGAIN);
    }
    Ok(())
}

/// Writes the public key object, unless the token has one of this key.
///
/// # Errors
/// If a call fails.
pub fn place_public(
    session: &Session,
    key: &PublicKey,
    name: &Name<'_>,
    made: &mut Made<'_>,
) -> Result<Placed, Pkcs11Error> {
    for object in public::all(session, key)? {
        if public::read(session, object)?.as_ref() == Ok(key) {
            return Ok(Placed::Unchanged);
        }
    }
    made.token(create(session, &template::public(key, name))?);
    Ok(Placed::Written)
}

/// Writes the certificate object, unless the same one exists. Also returns the objects that it replaces, to be
/// destroyed at the end: certificates with the same label and the same CKA_ID or key, which are ours. Others are not modified.
///
/// # Errors
/// If a call fails.
pub fn place_certificate(
    session: &Session,
    certificate: &Certificate,
    name: &Name<'_>,
    made: &mut Made<'_>,
) -> Result<(Placed, Vec<ObjectHandle>), Pkcs11Error> {
    let mut same = false;
    let mut old = Vec::new();
    let key = public::of_certificate(certificate.der());
    // A token that gives objects a CKA_ID of its own has it under another one.
    for (object, label, value) in certificates(session)?.into_iter().take(MAX_CERTIFICATES) {
        if value == certificate.der() {
            same = true;
        } else if label == name.label
            && (public::id_of(session, object)?.as_deref() == Some(name.id) || public::of_certificate(&value) == key)
        {
            old.push(object);
        }
    }
    if !same {
        made.token(create(session, &template::certificate(certificate, name))?);
    }
    let placed = match (same, old.is_empty()) {
        (true, true) => Placed::Unchanged,
        (_, false) => Placed::Replaced,
        (false, true) => Placed::Written,
    };
    Ok((placed, old))
}

/// The token's X.509 certificates: handle, label, DER.
///
/// # Errors
/// If a call fails.
pub fn certificates(session: &Session) -> Result<Vec<(ObjectHandle, String, Vec<u8>)>, Pkcs11Error> {
    let template = [Attribute::Class(ObjectClass::CERTIFICATE), Attribute::Token(true)];
    let mut found = Vec::new();
    for object in session.find_objects(&template)? {
        let (mut label, mut value) = (String::new(), Vec::new());
        for attribute in session.get_attributes(object, &[AttributeType::Label, AttributeType::Value])? {
            match attribute {
                Attribute::Label(bytes) => label = String::from_utf8_lossy(&bytes).into_owned(),
                Attribute::Value(bytes) => value = bytes,
                _ => {}
            }
        }
        found.push((object, label, value));
    }
    Ok(found)
}
