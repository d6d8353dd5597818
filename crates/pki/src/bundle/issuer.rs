//! The part of a checked bundle that signing needs: the CA, its path and its roots, in the form needed for replies.

use std::time::{Duration, SystemTime};

use super::{LABEL, certificate::Certificate, path::Path};
use crate::{KeyAlgorithm, PublicKey, pem};

/// The CA data that a request uses from start to end.
#[derive(Clone, Debug)]
pub struct Issuer {
    certificate: Vec<u8>,
    subject: Vec<u8>,
    public_key: PublicKey,
    subject_key_id: Option<Vec<u8>>,
    path_len: Option<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
    path_pem: Vec<String>,
    roots_pem: String,
    roots: Vec<Vec<u8>>,
    root_pem: String,
    room_for_intermediate: bool,
}

impl Issuer {
    /// The issuer of a self-signed root to be generated (`generate --self-signed`): without certificate, path and
    /// roots. `subject` is a DER Name.
    #[must_use]
    pub fn self_signed(subject: Vec<u8>, public_key: PublicKey, not_before: SystemTime, not_after: SystemTime) -> Self {
        Self {
            certificate: Vec::new(),
            subject,
            subject_key_id: Some(public_key.key_id().to_vec()),
            public_key,
            path_len: None,
            not_before,
            not_after,
            path_pem: Vec::new(),
            roots_pem: String::new(),
            roots: Vec::new(),
            root_pem: String::new(),
            room_for_intermediate: true,
        }
    }

    pub(super) fn of_path(
        ca: &Certificate,
        path: &Path<'_>,
        public_key: PublicKey,
        roots_pem: String,
        roots: &[Certificate],
    ) -> Self {
        let ends = path.below_root.iter().chain(&path.instead).map(|certificate| certificate.not_after);
        let tops = path.instead.iter().copied().chain([path.root]).map(|root| (root, path.below_root.len() + 1));
        Self {
            certificate: ca.der.clone(),
            subject: ca.subject.clone(),
            public_key,
            subject_key_id: ca.subject_key_id.clone(),
            // A longer one is no limit to anybody.
            path_len: path_length(ca).and_then(|length| u8::try_from(length).ok()),
            not_before: ca.not_before,
            not_after: ends.fold(path.root.not_after, SystemTime::min),
            path_pem: path.below_root.iter().map(|certificate| pem::encode(LABEL, &certificate.der)).collect(),
            roots_pem,
            roots: roots.iter().map(|root| root.der.clone()).collect(),
            root_pem: pem::encode(LABEL, &path.root.der),
            room_for_intermediate: path.below_root.iter().copied().zip(1_usize..).chain(tops).all(
                |(certificate, below)| {
                    path_length(certificate).is_none_or(|most| usize::try_from(most).is_ok_and(|most| most >= below))
                },
            ),
        }
    }

    /// DER of the CA certificate.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// DER Name: the encoded subject of the CA certificate.
    #[must_use]
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The public key in the CA certificate.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The subject key identifier, if the CA certificate has one.
    #[must_use]
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.subject_key_id.as_deref()
    }

    /// pathLenConstraint of the CA certificate, if it has one.
    #[must_use]
    pub fn path_len(&self) -> Option<u8> {
        self.path_len
    }

    /// notBefore of the CA certificate.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The earliest notAfter from the CA certificate up to its root, which limits all certificates.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The path from the CA certificate up to, but not including, a root: one PEM certificate per element. Empty if the
    /// CA is a root.
    #[must_use]
    pub fn path_pem(&self) -> &[String] {
        &self.path_pem
    }

    /// root-cert.pem, unchanged.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// DER of each root.
    #[must_use]
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }

    /// The root of the CA's path as one PEM certificate.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Whether all path lengths from the CA certificate up to its root permit another CA below (RFC 5280, section
    /// 4.2.1.9).
    #[must_use]
    pub fn has_room_for_intermediate(&self) -> bool {
        self.room_for_intermediate
    }

    /// Whether the CA's subject consists of only this organization, in any encoding, as in
    /// [`crate::Profile::Intermediate`].
    #[must_use]
    pub fn is_organization(&self, organization: &str) -> bool {
        crate::lint::organization(&self.subject).is_ok_and(|own| own == organization)
    }

    /// Remaining lifetime of the CA's path.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// Type of the CA's key.
    #[must_use]
    pub fn key_algorithm(&self) -> KeyAlgorithm {
        self.public_key.algorithm()
    }
}

/// pathLenConstraint of a certificate, if it has one.
fn path_length(certificate: &Certificate) -> Option<u64> {
    certificate.basic_constraints.and_then(|(_, length)| length)
}
