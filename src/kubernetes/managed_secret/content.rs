//! Content of a Secret with a private key and a certificate: layouts, what to write, and whether the present content is
//! the desired one. Pure.

use std::time::SystemTime;

use kube::api::ObjectMeta;
use zeroize::Zeroizing;

use super::{
    super::secret::{Content, MANAGED_BY, Secret, Value},
    DesiredSecret,
};
use pki::{Issued, Issuer, existing::ExistingCertificate, private_key::PrivateKey, profile::CLOCK_SKEW};

/// Names of the values, and the type of the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Layout {
    /// Istio's plug-in CA: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem.
    Ca,
    /// A server certificate: tls.crt, tls.key, ca.crt.
    Server,
    /// A workload certificate, as in Istio until 1.5: cert-chain.pem, key.pem, root-cert.pem.
    Workload,
}

impl Layout {
    /// The Secret's type.
    pub(in super::super) fn kind(self) -> &'static str {
        match self {
            Self::Ca => "Opaque",
            Self::Server => "kubernetes.io/tls",
            Self::Workload => "istio.io/key-and-cert",
        }
    }

    /// The names of certificate chain, key and roots.
    fn keys(self) -> [&'static str; 3] {
        match self {
            Self::Ca => ["cert-chain.pem", "ca-key.pem", "root-cert.pem"],
            Self::Server => ["tls.crt", "tls.key", "ca.crt"],
            Self::Workload => ["cert-chain.pem", "key.pem", "root-cert.pem"],
        }
    }

    /// All values but the key, for a certificate in PEM.
    fn public(self, certificate: &str, issuer: &Issuer) -> Vec<(&'static str, String)> {
        let [chain, _, roots] = self.keys();
        let whole = format!("{certificate}{}", issuer.path_pem().concat());
        let mut values = vec![(chain, whole), (roots, issuer.roots_pem().to_owned())];
        if self == Self::Ca {
            values.push(("ca-cert.pem", certificate.to_owned()));
        }
        values
    }
}

/// The Secret to write, in place of the `actual` one.
pub(super) fn content<'a>(
    desired: &'a DesiredSecret,
    actual: Option<&'a Secret>,
    issued: &Issued,
    key: &[u8],
) -> Content<'a> {
    let mut data: Vec<(&str, Option<Value>)> = vec![(desired.layout.keys()[1], Some(Zeroizing::new(key.to_vec())))];
    for (name, text) in desired.layout.public(&issued.to_pem(), issued.tbs().issuer()) {
        data.push((name, Some(Zeroizing::new(text.into_bytes()))));
    }
    // A stray value can matter to a pod that mounts the Secret: istiod uses another layout if tls.crt exists.
    let stray = actual.iter().flat_map(|secret| secret.data.keys());
    let stray: Vec<_> = stray.filter(|key| !data.iter().any(|(name, _)| name == key)).collect();
    data.extend(stray.into_iter().map(|key| (key.as_str(), None)));
    let mut metadata = ObjectMeta { name: Some(desired.name.clone()), ..desired.metadata.clone() };
    metadata.labels.get_or_insert_default().insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if let Some(actual) = actual {
        metadata.resource_version.clone_from(&actual.metadata.resource_version);
        metadata.uid.clone_from(&actual.metadata.uid);
    }
    Content { kind: desired.layout.kind(), metadata, data }
}

/// When the certificate is due for renewal.
///
/// # Errors
/// How the content differs from the desired state.
pub(super) fn check(secret: &Secret, desired: &DesiredSecret, issuer: &Issuer) -> Result<SystemTime, String> {
    let [chain, key, _] = desired.layout.keys();
    let held = ExistingCertificate::read(secret.value(chain), issuer).map_err(|error| error.to_string())?;
    let block = pki::pem::blocks(secret.value(chain)).map_err(|error| error.to_string())?.into_iter().next();
    let certificate = block.map(|block| pki::pem::encode("CERTIFICATE", &block.der)).unwrap_or_default();
    let public = desired.layout.public(&certificate, issuer);
    for (name, text) in &public {
        if secret.value(name) != text.as_bytes() {
            return Err(format!("its {name} is not the expected one"));
        }
    }
    if let Some(stray) = secret.data.keys().find(|name| *name != key && !public.iter().any(|(ours, _)| ours == name)) {
        return Err(format!("it has an unexpected value {stray:?}"));
    }
    if held.profile != desired.profile {
        return Err("its certificate has another profile".to_owned());
    }
    if held.names.len() != desired.names.len() || desired.names.iter().any(|name| !held.names.contains(name)) {
        return Err("its certificate has other names".to_owned());
    }
    let private =
        PrivateKey::from_pem(secret.value(key), None).map_err(|_| format!("its {key} is not a private key"))?;
    if private.public_key().spki_der() != held.spki {
        return Err(format!("its {key} does not belong to its certificate"));
    }
    Ok(half_life(held.not_before, held.not_after))
}

/// When half of a certificate's lifetime, from its issuance, has passed.
pub(super) fn half_life(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let issued = not_before.checked_add(CLOCK_SKEW).unwrap_or(not_before);
    issued + not_after.duration_since(issued).unwrap_or_default() / 2
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::SigningKey;

    use super::*;
    use crate::{
        auth::{Caller, ClusterName},
        kubernetes::managed_secret::key::FreshKey,
    };
    use pki::{
        Profile, Tbs,
        csr::VerifiedCsr,
        tbs::Serial,
        testing::{DAY, P256, P384, SoftCa, leaf, now},
    };

    fn desired(layout: Layout, names: &[&str]) -> DesiredSecret {
        let template = leaf(names);
        DesiredSecret {
            namespace: "istio-system".to_owned(),
            name: "istiod-tls".to_owned(),
            layout,
            caller: Caller::controller(ClusterName::default(), "istiod-certificate", None),
            names: template.names,
            profile: template.profile,
            metadata: ObjectMeta::default(),
        }
    }

    fn made(ca: &SoftCa, desired: &DesiredSecret) -> Secret {
        let key = FreshKey::generate().unwrap();
        let public_key = VerifiedCsr::from_pem(&key.csr).unwrap().public_key().clone();
        let names = if desired.profile == Profile::Leaf { desired.names.clone() } else { Vec::new() };
        let template = pki::Template { profile: desired.profile.clone(), public_key, names, ..leaf(&[]) };
        let tbs = Tbs::build(template, Arc::clone(&ca.issuer), Serial::random()).unwrap();
        let signature = ca.key.sign(tbs.der()).unwrap();
        let issued = Issued::assemble(tbs.into(), &signature).unwrap();
        let content = content(desired, None, &issued, key.pem.as_bytes());
        let data = content.data.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        Secret { metadata: content.metadata, kind: content.kind.to_owned(), data }
    }

    #[test]
    fn written_secret_is_current_until_half_of_its_lifetime() {
        let ca = SoftCa::new(&P256);
        let intermediate = Profile::Intermediate { organization: "istiod".to_owned() };
        for desired in [
            desired(Layout::Server, &["DNS:istiod.istio-system.svc"]),
            desired(Layout::Workload, &["URI:spiffe://cluster.local/ns/foo/sa/bar"]),
            DesiredSecret { profile: intermediate, ..desired(Layout::Ca, &[]) },
        ] {
            let secret = made(&ca, &desired);
            assert_eq!(check(&secret, &desired, &ca.issuer), Ok(now() + DAY / 2), "{:?}", desired.layout);
            assert!(secret.is_ours());
        }
    }

    #[test]
    fn check_finds_each_changed_value() {
        let ca = SoftCa::new(&P256);
        let desired = desired(Layout::Server, &["DNS:istiod.istio-system.svc"]);
        let other = made(&ca, &desired);
        let root = || ca.issuer.roots_pem().as_bytes().to_vec();
        let changes: [(&str, Option<Vec<u8>>, &str); 8] = [
            ("tls.crt", None, "its certificate is malformed"),
            ("tls.crt", Some(b"nothing".to_vec()), "its certificate is malformed"),
            ("tls.crt", Some(other.value("tls.crt").to_vec()), "its tls.key does not belong to its certificate"),
            ("tls.key", None, "its tls.key is not a private key"),
            ("tls.key", Some(other.value("tls.key").to_vec()), "its tls.key does not belong to its certificate"),
            ("ca.crt", None, "its ca.crt is not the expected one"),
            ("ca.crt", Some([root(), b"\n".to_vec()].concat()), "its ca.crt is not the expected one"),
            ("more", Some(b"x".to_vec()), "it has an unexpected value \"more\""),
        ];
        for (key, value, reason) in changes {
            let mut secret = made(&ca, &desired);
            match value {
                Some(value) => secret.data.insert(key.to_owned(), Zeroizing::new(value)),
                None => secret.data.remove(key),
            };
            assert_eq!(check(&secret, &desired, &ca.issuer).unwrap_err(), reason, "{key}");
        }
        let secret = made(&ca, &desired);
        let renamed = DesiredSecret { names: leaf(&["DNS:other.svc"]).names, ..desired.clone() };
        assert_eq!(check(&secret, &renamed, &ca.issuer).unwrap_err(), "its certificate has other names");
        let new_ca = SoftCa::new(&P384).issuer;
        assert_eq!(check(&secret, &desired, &new_ca).unwrap_err(), "its certificate was issued by another CA");
    }
}
