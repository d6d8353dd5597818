//! What stands in a Secret with a key and a certificate: its forms, what is to be written, and whether what is there is
//! as it should be. Pure.

use std::time::SystemTime;

use kube::api::ObjectMeta;
use zeroize::Zeroizing;

use super::{
    super::secret::{Content, MANAGED_BY, Secret, Value},
    Wanted,
};
use pki::{Issued, Issuer, held::Held, private_key::PrivateKey, profile::CLOCK_SKEW};

/// How the values of a Secret are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Form {
    /// istiod's plugged-in CA: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem.
    Ca,
    /// A server's: tls.crt, tls.key, ca.crt.
    Server,
    /// A workload's, as until Istio 1.5: cert-chain.pem, key.pem, root-cert.pem.
    Workload,
}

impl Form {
    /// The Secret's type.
    pub(in super::super) fn kind(self) -> &'static str {
        match self {
            Self::Ca => "Opaque",
            Self::Server => "kubernetes.io/tls",
            Self::Workload => "istio.io/key-and-cert",
        }
    }

    /// Certificate with chain, key, roots.
    fn keys(self) -> [&'static str; 3] {
        match self {
            Self::Ca => ["cert-chain.pem", "ca-key.pem", "root-cert.pem"],
            Self::Server => ["tls.crt", "tls.key", "ca.crt"],
            Self::Workload => ["cert-chain.pem", "key.pem", "root-cert.pem"],
        }
    }

    /// The public values for a certificate in PEM.
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

/// What is to be written: a key with its certificate, in place of what was `found`.
pub(super) fn content<'a>(wanted: &'a Wanted, found: Option<&'a Secret>, issued: &Issued, key: &[u8]) -> Content<'a> {
    let mut data: Vec<(&str, Option<Value>)> = vec![(wanted.form.keys()[1], Some(Zeroizing::new(key.to_vec())))];
    for (name, text) in wanted.form.public(&issued.to_pem(), issued.tbs().issuer()) {
        data.push((name, Some(Zeroizing::new(text.into_bytes()))));
    }
    // A stray value can mean something to who mounts the Secret: istiod takes another layout where tls.crt is there.
    let stray = found.iter().flat_map(|secret| secret.data.keys());
    let stray: Vec<_> = stray.filter(|key| !data.iter().any(|(name, _)| name == key)).collect();
    data.extend(stray.into_iter().map(|key| (key.as_str(), None)));
    let mut metadata = ObjectMeta { name: Some(wanted.name.clone()), ..wanted.metadata.clone() };
    metadata.labels.get_or_insert_default().insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if let Some(found) = found {
        metadata.resource_version.clone_from(&found.metadata.resource_version);
        metadata.uid.clone_from(&found.metadata.uid);
    }
    Content { kind: wanted.form.kind(), metadata, data }
}

/// Whether a Secret's content is as it should be, and when it is due; or why it is not.
pub(super) fn judge(secret: &Secret, wanted: &Wanted, issuer: &Issuer) -> Result<SystemTime, String> {
    let [chain, key, _] = wanted.form.keys();
    let held = Held::read(secret.value(chain), issuer).map_err(|error| error.to_string())?;
    let block = pki::pem::blocks(secret.value(chain)).map_err(|error| error.to_string())?.into_iter().next();
    let certificate = block.map(|block| pki::pem::encode("CERTIFICATE", &block.der)).unwrap_or_default();
    let public = wanted.form.public(&certificate, issuer);
    for (name, text) in &public {
        if secret.value(name) != text.as_bytes() {
            return Err(format!("its {name} is not what it should be"));
        }
    }
    if let Some(stray) = secret.data.keys().find(|name| *name != key && !public.iter().any(|(ours, _)| ours == name)) {
        return Err(format!("it has a value {stray:?}"));
    }
    if held.profile != wanted.profile {
        return Err("its certificate is of another kind".to_owned());
    }
    if held.names.len() != wanted.names.len() || wanted.names.iter().any(|name| !held.names.contains(name)) {
        return Err("its certificate has other names".to_owned());
    }
    let private = PrivateKey::from_pem(secret.value(key), None).map_err(|_| format!("its {key} is no key"))?;
    if private.public_key().spki_der() != held.spki {
        return Err(format!("its {key} is another certificate's"));
    }
    Ok(half_life(held.not_before, held.not_after))
}

/// The middle of a certificate's life, counted from its issuance.
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
        auth::{Caller, ClusterName, Controller},
        kubernetes::key::FreshKey,
    };
    use pki::{
        Profile, Tbs,
        csr::VerifiedCsr,
        tbs::Serial,
        testing::{DAY, P256, P384, SoftCa, leaf, now},
    };

    fn wanted(form: Form, names: &[&str]) -> Wanted {
        let template = leaf(names);
        Wanted {
            namespace: "istio-system".to_owned(),
            name: "istiod-tls".to_owned(),
            form,
            caller: Caller::controller(ClusterName::default(), Controller::IstiodCertificate),
            names: template.names,
            profile: template.profile,
            metadata: ObjectMeta::default(),
        }
    }

    fn made(ca: &SoftCa, wanted: &Wanted) -> Secret {
        let key = FreshKey::generate().unwrap();
        let public_key = VerifiedCsr::from_pem(&key.csr).unwrap().public_key().clone();
        let names = if wanted.profile == Profile::Leaf { wanted.names.clone() } else { Vec::new() };
        let template = pki::Template { profile: wanted.profile.clone(), public_key, names, ..leaf(&[]) };
        let tbs = Tbs::build(template, Arc::clone(&ca.issuer), Serial::random()).unwrap();
        let signature = ca.key.sign(tbs.der()).unwrap();
        let issued = Issued::assemble(tbs.into(), &signature).unwrap();
        let content = content(wanted, None, &issued, key.pem.as_bytes());
        let data = content.data.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        Secret { metadata: content.metadata, kind: content.kind.to_owned(), data }
    }

    #[test]
    fn what_was_made_is_as_it_should_be_until_half_of_its_life() {
        let ca = SoftCa::new(&P256);
        let intermediate = Profile::Intermediate { organization: "istiod".to_owned() };
        for wanted in [
            wanted(Form::Server, &["DNS:istiod.istio-system.svc"]),
            wanted(Form::Workload, &["URI:spiffe://cluster.local/ns/foo/sa/bar"]),
            Wanted { profile: intermediate, ..wanted(Form::Ca, &[]) },
        ] {
            let secret = made(&ca, &wanted);
            assert_eq!(judge(&secret, &wanted, &ca.issuer), Ok(now() + DAY / 2), "{:?}", wanted.form);
            assert!(secret.is_ours());
        }
    }

    #[test]
    fn whatever_is_changed_is_found() {
        let ca = SoftCa::new(&P256);
        let wanted = wanted(Form::Server, &["DNS:istiod.istio-system.svc"]);
        let other = made(&ca, &wanted);
        let root = || ca.issuer.roots_pem().as_bytes().to_vec();
        let changes: [(&str, Option<Vec<u8>>, &str); 8] = [
            ("tls.crt", None, "its certificate is malformed"),
            ("tls.crt", Some(b"nothing".to_vec()), "its certificate is malformed"),
            ("tls.crt", Some(other.value("tls.crt").to_vec()), "its tls.key is another certificate's"),
            ("tls.key", None, "its tls.key is no key"),
            ("tls.key", Some(other.value("tls.key").to_vec()), "its tls.key is another certificate's"),
            ("ca.crt", None, "its ca.crt is not what it should be"),
            ("ca.crt", Some([root(), b"\n".to_vec()].concat()), "its ca.crt is not what it should be"),
            ("more", Some(b"x".to_vec()), "it has a value \"more\""),
        ];
        for (key, value, reason) in changes {
            let mut secret = made(&ca, &wanted);
            match value {
                Some(value) => secret.data.insert(key.to_owned(), Zeroizing::new(value)),
                None => secret.data.remove(key),
            };
            assert_eq!(judge(&secret, &wanted, &ca.issuer).unwrap_err(), reason, "{key}");
        }
        let secret = made(&ca, &wanted);
        let renamed = Wanted { names: leaf(&["DNS:other.svc"]).names, ..wanted.clone() };
        assert_eq!(judge(&secret, &renamed, &ca.issuer).unwrap_err(), "its certificate has other names");
        let new_ca = SoftCa::new(&P384).issuer;
        assert_eq!(judge(&secret, &wanted, &new_ca).unwrap_err(), "its certificate is not of the CA in use");
    }
}
