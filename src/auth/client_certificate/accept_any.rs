//! Client certificates in the handshake: any certificate is accepted unless it is revoked, and only possession of its key is
//! verified.
//!
//! Agents that migrate from another CA first present its certificate; if the handshake failed, they could never use
//! their JWT. Therefore the certificate is checked at the request ([`super::ClientCertificates`]), not here.

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature_with_raw_key},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};

use crate::revocation::Revocations;

/// Accepts any client certificate that is not revoked, or none.
#[derive(Debug)]
pub struct AcceptAny {
    revocations: Revocations,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AcceptAny {
    /// A verifier with the signature algorithms of a provider.
    #[must_use]
    pub fn new(provider: &rustls::crypto::CryptoProvider, revocations: Revocations) -> Self {
        Self { revocations, algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AcceptAny {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints, so that clients send whatever certificate they have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // The issuer is not established here, so serial number and key must match. The request is checked again.
        let revoked = super::leaf::serial_and_key(end_entity)
            .is_some_and(|(serial, key)| self.revocations.has_revoked_key(&serial, key));
        if revoked {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    /// Reads the key from the certificate without webpki, which rejects certificates that other CAs have issued
    /// (version 1, unknown critical extensions) before it checks the signature.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki =
            super::leaf::public_key_info(cert).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(spki), dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
