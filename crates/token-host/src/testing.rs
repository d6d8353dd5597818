//! The host's judgement without a token, for fuzzing.

use std::time::SystemTime;

use crate::{
    Settings,
    policy::{CaCertificate, Policy, ReservedKeys},
    protocol::{Fingerprint, Sign},
};

/// A host's rules, one CA certificate, and what was signed.
#[derive(Debug)]
pub struct Judge {
    policy: Policy,
    ca: CaCertificate,
}

impl Judge {
    /// A host with one DER CA certificate that has signed nothing.
    ///
    /// # Errors
    /// When the certificate is not one of a CA of ours.
    pub fn new(settings: &Settings, ca: Vec<u8>) -> Result<Self, String> {
        let ca = CaCertificate::read(ca).map_err(|refusal| refusal.to_string())?;
        Ok(Self { policy: Policy::new(settings), ca })
    }

    /// The CA's key.
    #[must_use]
    pub fn key(&self) -> Fingerprint {
        self.ca.fingerprint
    }

    /// Whether a host would sign a message at this time; it then counts as signed.
    ///
    /// # Errors
    /// The rule that the message breaks.
    pub fn admit(&self, sign: &Sign<'_>, now: SystemTime) -> Result<(), String> {
        let admitted = self.policy.admit(sign, std::slice::from_ref(&self.ca), &ReservedKeys::default(), now);
        admitted.map_err(|refusal| refusal.to_string())
    }
}
