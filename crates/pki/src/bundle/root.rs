//! The issuer of a root that is yet to be signed: the root itself.

use std::sync::Arc;

use super::Issuer;
use crate::{
    Profile, Template,
    tbs::{TbsError, name},
};

impl Issuer {
    /// The issuer with which a self-signed root is built, signed and verified: its own name, key and key
    /// identifier, no certificate yet, no path and no roots. What comes of it is a
    /// [`Bundle`](super::Bundle) like any other, to be checked before anything is issued under it.
    ///
    /// # Errors
    /// When the template is not for a self-signed root, or its organization cannot be a name.
    pub fn of_new_root(template: &Template) -> Result<Arc<Self>, TbsError> {
        let Profile::SelfSignedRoot { organization } = &template.profile else {
            return Err(TbsError::Encoding("a root of a template for another kind of certificate"));
        };
        let key = template.public_key.clone();
        Ok(Arc::new(Self::self_signed(name(organization)?, key, template.not_before, template.not_after)))
    }
}
