//! The issuer of a root that is yet to be signed: the root itself.

use std::sync::Arc;

use super::Issuer;
use crate::pki::{
    Profile, Template,
    tbs::{TbsError, name},
};

impl Issuer {
    /// The issuer with which a self-signed root is built, signed and verified: its own name, key and key
    /// identifier, no certificate yet, no path and no roots. What comes of it is a
    /// [`Bundle`](super::Bundle) like any other, to be checked before anything is issued under it.
    ///
    /// # Errors
    /// When the template is no self-signed root's, or its organization cannot be a name.
    pub fn of_new_root(template: &Template) -> Result<Arc<Self>, TbsError> {
        let Profile::SelfSignedRoot { organization } = &template.profile else {
            return Err(TbsError::Encoding("a root of a template for another kind of certificate"));
        };
        Ok(Arc::new(Self {
            certificate: Vec::new(),
            subject: name(organization)?,
            public_key: template.public_key.clone(),
            subject_key_id: Some(template.public_key.key_id().to_vec()),
            path_len: None,
            not_before: template.not_before,
            not_after: template.not_after,
            path_pem: Vec::new(),
            roots_pem: String::new(),
            roots: Vec::new(),
        }))
    }

    /// An issuer of parts, until `Bundle::check` makes them.
    #[cfg(test)]
    pub(crate) fn for_tests(certificate: &[u8], path_pem: Vec<String>, roots_pem: String) -> Arc<Self> {
        let ca = crate::pki::lint::Ca::from_certificate(certificate).unwrap();
        Arc::new(Self {
            certificate: certificate.to_vec(),
            subject: ca.subject.to_vec(),
            public_key: crate::pki::PublicKey::from_spki_der(ca.spki).unwrap(),
            subject_key_id: ca.subject_key_id.map(<[u8]>::to_vec),
            path_len: ca.path_len,
            not_before: ca.not_before,
            not_after: ca.not_after,
            path_pem,
            roots_pem,
            roots: Vec::new(),
        })
    }
}
