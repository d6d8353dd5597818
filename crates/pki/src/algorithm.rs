//! Signature algorithms: their names, and their AlgorithmIdentifiers (RFC 5280, section 4.1.1.2).

use const_oid::{
    ObjectIdentifier,
    db::{rfc5912, rfc8410},
};
use der::Decode;
use spki::AlgorithmIdentifierRef;

/// The signature algorithms of certificates and requests (RFC 4055, RFC 5758, RFC 8410).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// ecdsa-with-SHA256.
    EcdsaSha256,
    /// ecdsa-with-SHA384.
    EcdsaSha384,
    /// ecdsa-with-SHA512.
    EcdsaSha512,
    /// Ed25519.
    Ed25519,
    /// sha256WithRSAEncryption (PKCS #1 v1.5).
    RsaSha256,
    /// sha384WithRSAEncryption.
    RsaSha384,
    /// sha512WithRSAEncryption.
    RsaSha512,
}

/// As OpenSSL writes it, such as `ecdsa-with-SHA256`.
impl std::fmt::Display for SignatureAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EcdsaSha256 => "ecdsa-with-SHA256",
            Self::EcdsaSha384 => "ecdsa-with-SHA384",
            Self::EcdsaSha512 => "ecdsa-with-SHA512",
            Self::Ed25519 => "ED25519",
            Self::RsaSha256 => "sha256WithRSAEncryption",
            Self::RsaSha384 => "sha384WithRSAEncryption",
            Self::RsaSha512 => "sha512WithRSAEncryption",
        })
    }
}

/// All supported signature algorithms of certificates and requests.
const ALL: [SignatureAlgorithm; 7] = [
    SignatureAlgorithm::EcdsaSha256,
    SignatureAlgorithm::EcdsaSha384,
    SignatureAlgorithm::EcdsaSha512,
    SignatureAlgorithm::Ed25519,
    SignatureAlgorithm::RsaSha256,
    SignatureAlgorithm::RsaSha384,
    SignatureAlgorithm::RsaSha512,
];

/// Known algorithms that are rejected, with their usual names.
const REFUSED: [(ObjectIdentifier, &str); 8] = [
    (rfc5912::DSA_WITH_SHA_1, "DSA with SHA-1"),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), "ECDSA with SHA-1"),
    (rfc5912::ECDSA_WITH_SHA_224, "ECDSA with SHA-224"),
    (rfc5912::ID_RSASSA_PSS, "RSASSA-PSS"),
    (rfc5912::MD_5_WITH_RSA_ENCRYPTION, "RSA with MD5"),
    (rfc5912::SHA_1_WITH_RSA_ENCRYPTION, "RSA with SHA-1"),
    (rfc5912::SHA_224_WITH_RSA_ENCRYPTION, "RSA with SHA-224"),
    (rfc8410::ID_ED_448, "Ed448"),
];

/// The whole DER AlgorithmIdentifier: for RSA with NULL parameters (RFC 4055, section 5), otherwise without any (RFC
/// 5758, section 3.2; RFC 8410, section 3).
pub(super) fn identifier(algorithm: SignatureAlgorithm) -> &'static [u8] {
    match algorithm {
        SignatureAlgorithm::EcdsaSha256 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
        SignatureAlgorithm::EcdsaSha384 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03",
        SignatureAlgorithm::EcdsaSha512 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04",
        SignatureAlgorithm::Ed25519 => b"\x30\x05\x06\x03\x2b\x65\x70",
        SignatureAlgorithm::RsaSha256 => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00",
        SignatureAlgorithm::RsaSha384 => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00",
        SignatureAlgorithm::RsaSha512 => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00",
    }
}

/// The algorithm with exactly this DER AlgorithmIdentifier.
pub(super) fn from_identifier(der: &[u8]) -> Option<SignatureAlgorithm> {
    ALL.into_iter().find(|algorithm| identifier(*algorithm) == der)
}

/// Like [`from_identifier`], but RSA algorithms may lack their parameters, which parsers must accept (RFC 4055, section
/// 5); the error is the name of the rejected algorithm.
pub(super) fn from_outside(der: &[u8]) -> Result<SignatureAlgorithm, &'static str> {
    if let Some(algorithm) = from_identifier(der) {
        return Ok(algorithm);
    }
    let unknown = "an unknown one";
    let AlgorithmIdentifierRef { oid, parameters } = AlgorithmIdentifierRef::from_der(der).map_err(|_error| unknown)?;
    if parameters.is_none() {
        let without_parameters = [
            (rfc5912::SHA_256_WITH_RSA_ENCRYPTION, SignatureAlgorithm::RsaSha256),
            (rfc5912::SHA_384_WITH_RSA_ENCRYPTION, SignatureAlgorithm::RsaSha384),
            (rfc5912::SHA_512_WITH_RSA_ENCRYPTION, SignatureAlgorithm::RsaSha512),
        ];
        if let Some((_, algorithm)) = without_parameters.into_iter().find(|(known, _)| *known == oid) {
            return Ok(algorithm);
        }
    }
    Err(REFUSED.iter().find(|(known, _)| *known == oid).map_or(unknown, |(_, name)| name))
}

/// The algorithm that the content of an AlgorithmIdentifier names, as people know it.
pub(super) fn name_of(content: &[u8]) -> String {
    if let Some(algorithm) = ALL.into_iter().find(|it| identifier(*it).get(2..) == Some(content)) {
        return algorithm.to_string();
    }
    let oid = ObjectIdentifier::from_der_partial(content).map(|(oid, _)| oid);
    let known = |oid: &ObjectIdentifier| REFUSED.iter().find(|(known, _)| known == oid);
    match &oid {
        Ok(oid) => known(oid).map_or_else(|| format!("an algorithm with OID {oid}"), |(_, name)| (*name).to_owned()),
        Err(_) => "an unknown algorithm".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use der::Encode;
    use spki::AlgorithmIdentifierOwned;

    use super::*;

    #[test]
    fn the_identifiers_are_those_of_the_registry() {
        let oids = [
            rfc5912::ECDSA_WITH_SHA_256,
            rfc5912::ECDSA_WITH_SHA_384,
            rfc5912::ECDSA_WITH_SHA_512,
            rfc8410::ID_ED_25519,
            rfc5912::SHA_256_WITH_RSA_ENCRYPTION,
            rfc5912::SHA_384_WITH_RSA_ENCRYPTION,
            rfc5912::SHA_512_WITH_RSA_ENCRYPTION,
        ];
        for (algorithm, oid) in ALL.into_iter().zip(oids) {
            let rsa = oid.to_string().starts_with("1.2.840.113549");
            let parameters = rsa.then(der::asn1::Any::null);
            let whole = AlgorithmIdentifierOwned { oid, parameters }.to_der().unwrap();
            assert_eq!(identifier(algorithm), whole, "{algorithm:?}");
            assert_eq!(from_identifier(&whole), Some(algorithm));
            assert_eq!(from_outside(&whole), Ok(algorithm));
            let bare = AlgorithmIdentifierOwned { oid, parameters: None }.to_der().unwrap();
            assert_eq!(from_identifier(&bare).is_some(), !rsa, "{algorithm:?} without parameters");
            assert_eq!(from_outside(&bare), Ok(algorithm));
            let null = AlgorithmIdentifierOwned { oid, parameters: Some(der::asn1::Any::null()) }.to_der().unwrap();
            assert_eq!(from_outside(&null).is_ok(), rsa, "{algorithm:?} with NULL parameters");
        }
    }

    #[test]
    fn old_algorithms_are_refused_by_name() {
        for (oid, name) in REFUSED {
            for parameters in [None, Some(der::asn1::Any::null())] {
                let der = AlgorithmIdentifierOwned { oid, parameters }.to_der().unwrap();
                assert_eq!(from_outside(&der), Err(name));
            }
        }
        assert_eq!(from_outside(b""), Err("an unknown one"));
    }
}
