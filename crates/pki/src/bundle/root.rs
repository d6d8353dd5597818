//! The issuer of a root that has not been signed yet: the root itself.

use std::sync::Arc;

use super::Issuer;
use crate::{
    Profile, Template,
    tbs::{TbsError, name},
};

impl Issuer {
    /// The issuer with which a self-signed root is built, signed and verified: its own name, key and key identifier,
    /// without certificate, path and roots. The result is a [`Bundle`](super::Bundle) like any other, which must be
    /// checked before anything is issued by it.
    ///
    /// # Errors
    /// If the template is not for a CA that can sign itself, or its organization is not valid in a name.
    pub fn of_new_root(template: &Template) -> Result<Arc<Self>, TbsError> {
        let subject = match &template.profile {
            Profile::Ca(profile) => profile.subject.clone(),
            Profile::SelfSignedRoot { organization } => name(organization)?,
            Profile::Intermediate { .. } | Profile::Leaf => {
                return Err(TbsError::Encoding("a root of a template for another kind of certificate"));
            }
        };
        let key = template.public_key.clone();
        Ok(Arc::new(Self::self_signed(subject, key, template.not_before, template.not_after)))
    }
}
