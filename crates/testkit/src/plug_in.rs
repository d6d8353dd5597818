//! Plug-in CAs as operators have them: four files, made with software keys, in all forms that Istio accepts.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SigningKey,
    SubjectPublicKeyInfo,
};

/// A CA's key and certificate.
pub type Authority = CertifiedIssuer<'static, KeyPair>;

/// The four files of a plug-in CA, and their keys.
pub struct PlugIn {
    /// The offline root; `None` if the CA is a root.
    pub root: Option<Authority>,
    /// The CA that signs leaves.
    pub ca: Authority,
    pub ca_cert: String,
    pub cert_chain: String,
    pub root_cert: String,
}

impl PlugIn {
    /// A P-256 intermediate below a P-256 root; cert-chain.pem is ca-cert.pem, as in Istio's samples.
    pub fn intermediate() -> Self {
        Self::below(new_root("Root CA"), p256(), true)
    }

    /// An intermediate with the given key, with or without a subject key identifier.
    pub fn below(root: Authority, key: KeyPair, key_id: bool) -> Self {
        Self::of(root, key, key_id, "Intermediate CA")
    }

    /// A P-256 intermediate with this name.
    pub fn named(common_name: &str) -> Self {
        Self::of(new_root("Root CA"), p256(), true, common_name)
    }

    fn of(root: Authority, key: KeyPair, key_id: bool, common_name: &str) -> Self {
        let mut params = authority(common_name);
        params.use_authority_key_identifier_extension = true;
        if !key_id {
            params = without_key_id(params);
        }
        let ca = CertifiedIssuer::signed_by(params, key, &root).unwrap();
        let (ca_cert, root_cert) = (ca.pem(), root.pem());
        Self { root: Some(root), ca, cert_chain: ca_cert.clone(), ca_cert, root_cert }
    }

    /// A root that signs leaves; cert-chain.pem is empty.
    pub fn self_signed(key: KeyPair) -> Self {
        Self::of_root(authority("Root CA"), key)
    }

    /// The same root with a new certificate.
    pub fn renewed(&self) -> Self {
        let mut params = authority("Root CA");
        params.serial_number = Some(vec![2].into());
        Self::of_root(params, KeyPair::from_pem(&self.ca.key().serialize_pem()).unwrap())
    }

    fn of_root(params: CertificateParams, key: KeyPair) -> Self {
        let ca = CertifiedIssuer::self_signed(params, key).unwrap();
        let pem = ca.pem();
        Self { root: None, ca, ca_cert: pem.clone(), cert_chain: String::new(), root_cert: pem }
    }

    /// Writes the files with Istio's names.
    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("ca-key.pem"), self.ca.key().serialize_pem()).unwrap();
        self.write_public(directory);
    }

    /// Writes the three public files only.
    pub fn write_public(&self, directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        for (name, text) in
            [("ca-cert.pem", &self.ca_cert), ("cert-chain.pem", &self.cert_chain), ("root-cert.pem", &self.root_cert)]
        {
            fs::write(directory.join(name), text).unwrap();
        }
    }
}

/// Writes the three public files of an intermediate whose private key is elsewhere; `spki` is its public key in DER.
pub fn write_public_of(spki: &[u8], directory: &Path) {
    let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
    let root = new_root("Root CA");
    let mut params = authority("Intermediate CA");
    params.use_authority_key_identifier_extension = true;
    let ca = params.signed_by(&key, &root).unwrap().pem();
    fs::create_dir_all(directory).unwrap();
    for (name, text) in [("ca-cert.pem", &ca), ("cert-chain.pem", &ca), ("root-cert.pem", &root.pem())] {
        fs::write(directory.join(name), text).unwrap();
    }
}

/// A P-256 key.
pub fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A P-256 root.
pub fn new_root(common_name: &str) -> Authority {
    CertifiedIssuer::self_signed(authority(common_name), p256()).unwrap()
}

/// A leaf as this CA would issue it, signed with `issuer`'s software key: certificate and key in PEM.
pub fn leaf<S: SigningKey>(
    issuer: &rcgen::Issuer<'_, S>,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let key = p256();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![if name.contains("://") {
        SanType::URI(name.try_into().unwrap())
    } else {
        SanType::DnsName(name.try_into().unwrap())
    }];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    change(&mut params);
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// Parameters of a CA certificate.
pub fn authority(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Istio");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    params
}

/// rcgen writes a subject key identifier for every CA, except if it does not know the basicConstraints.
fn without_key_id(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::NoCa;
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff])];
    params
}
