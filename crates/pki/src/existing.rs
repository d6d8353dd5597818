//! A certificate issued earlier by this CA, read back from storage.
//!
//! Returns its key, names and validity after its signature was verified with the CA's key; anything else is an error.

use std::time::SystemTime;

use der::{Decode, Encode};

use super::{
    Issuer, Profile, algorithm,
    lint::{Facts, Finding},
    pem::{self, PemError},
    structure::Signed,
};
use crate::identity::Name;

/// A certificate of a given issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingCertificate {
    /// Its profile.
    pub profile: Profile,
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// The subject alternative names.
    pub names: Vec<Name>,
    /// notBefore.
    pub not_before: SystemTime,
    /// notAfter, inclusive.
    pub not_after: SystemTime,
}

/// The text has no certificate of that issuer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExistingCertificateError {
    /// It violates a rule of this CA's certificates.
    #[error("its certificate was not issued by this CA: {0}")]
    Foreign(#[from] Finding),
    /// It was signed by another CA or key.
    #[error("its certificate was issued by another CA")]
    Issuer,
    /// It is not a certificate.
    #[error("its certificate is malformed")]
    Malformed,
    /// It is not PEM.
    #[error("its certificate is not PEM: {0}")]
    Pem(#[from] PemError),
}

impl ExistingCertificate {
    /// Parses the first certificate of a PEM text.
    ///
    /// # Errors
    /// If `issuer` did not sign it.
    pub fn read(text: &[u8], issuer: &Issuer) -> Result<Self, ExistingCertificateError> {
        let block = pem::blocks(text)?.into_iter().next().ok_or(ExistingCertificateError::Malformed)?;
        let signed = Signed::from_der(&block.der).map_err(|_error| ExistingCertificateError::Malformed)?;
        let content = signed.content.to_der().map_err(|_error| ExistingCertificateError::Malformed)?;
        let facts = Facts::parse(&content)?;
        let algorithm = issuer.public_key().signature_algorithm();
        let verifies = |signature| issuer.public_key().verify(algorithm, &content, signature).is_ok();
        let is_ours = facts.issuer == issuer.subject()
            && signed.algorithm.to_der().ok().as_deref() == Some(algorithm::identifier(algorithm))
            && signed.signature.as_bytes().is_some_and(verifies);
        if !is_ours {
            return Err(ExistingCertificateError::Issuer);
        }
        Ok(Self {
            profile: facts.profile,
            spki: facts.spki.to_vec(),
            names: facts.names,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::SigningKey;

    use super::*;
    use crate::{
        Tbs,
        tbs::Serial,
        testing::{ID, P256, P384, SoftCa, leaf, plug_in},
        verify::Issued,
    };

    #[test]
    fn only_issued_certificates_are_read_back() {
        let ca = SoftCa::new(&P256);
        let tbs = Tbs::build(leaf(&[ID]), ca.issuer.clone(), Serial::random()).unwrap();
        let signature = ca.key.sign(tbs.der()).unwrap();
        let issued = Issued::assemble(tbs.into(), &signature).unwrap();
        let held = ExistingCertificate::read(issued.to_pem().as_bytes(), &ca.issuer).unwrap();
        assert_eq!((held.names.as_slice(), held.not_after), (issued.names(), issued.not_after()));
        assert_eq!(held.profile, Profile::Leaf);

        let other = SoftCa::new(&P384);
        assert_eq!(
            ExistingCertificate::read(issued.to_pem().as_bytes(), &other.issuer),
            Err(ExistingCertificateError::Issuer)
        );
        let mut wrong = issued.der().to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(
            ExistingCertificate::read(pem::encode("CERTIFICATE", &wrong).as_bytes(), &ca.issuer),
            Err(ExistingCertificateError::Issuer)
        );
        assert_eq!(ExistingCertificate::read(b"", &ca.issuer), Err(ExistingCertificateError::Malformed));
        assert!(matches!(
            ExistingCertificate::read(ca.issuer.root_pem().as_bytes(), &ca.issuer),
            Err(ExistingCertificateError::Foreign(_))
        ));
    }

    #[test]
    fn room_for_an_intermediate_follows_every_path_length() {
        let certificate = |length: Option<u8>| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, format!("{length:?}"));
            let constraints =
                length.map_or(rcgen::BasicConstraints::Unconstrained, rcgen::BasicConstraints::Constrained);
            params.is_ca = rcgen::IsCa::Ca(constraints);
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
            params.not_before = rcgen::date_time_ymd(2025, 1, 1);
            params.not_after = rcgen::date_time_ymd(2035, 1, 1);
            params
        };
        let cases = [
            (None, None, true),
            (None, Some(0), false),
            (None, Some(1), true),
            (Some(1), None, false),
            (Some(1), Some(1), false),
            (Some(2), Some(1), true),
        ];
        for (root, below, room) in cases {
            let root = rcgen::CertifiedIssuer::self_signed(certificate(root), &*P256).unwrap();
            let mut params = certificate(below);
            params.distinguished_name.push(rcgen::DnType::CommonName, "below");
            let ca = params.signed_by(&*P384, &root).unwrap();
            assert_eq!(plug_in(&ca.pem(), &root.pem()).has_room_for_intermediate(), room, "{below:?}");
        }
        for (length, room) in [(None, true), (Some(0), false), (Some(1), true)] {
            let root = certificate(length).self_signed(&*P256).unwrap().pem();
            let issuer = plug_in(&root, &root);
            assert_eq!(issuer.has_room_for_intermediate(), room, "{length:?}");
            assert!(issuer.is_organization(&format!("{length:?}")) && !issuer.is_organization("other"));
        }
    }
}
