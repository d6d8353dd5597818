//! A Secret with a key and a certificate of this CA, as it should be: judged by its content alone, made anew when that
//! is wrong, old, or of another CA.
//!
//! Nothing is remembered between looks, so that a new leader judges as the old one did. A Secret without our label is
//! somebody else's and never touched. Called by `istiod_secret`, `intermediate` and `workload_secret`.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, api::ObjectMeta, core::PartialObjectMeta, runtime::watcher};
use zeroize::Zeroizing;

use super::{
    Cluster,
    controller::{self, Look, Reconcile},
    key::{FreshKey, KeyError},
    secret::{self, Content, MANAGED_BY, Secret, SecretError, Value},
};
use crate::{
    auth::Caller,
    clock,
    identity::Name,
    issue::{CertificateAuthority, IssueError, Request},
    pki::{Issued, Issuer, Profile, held::Held, private_key::PrivateKey, profile::CLOCK_SKEW},
    policy::Asked,
    telemetry::RequestId,
};

/// How the values of a Secret are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// istiod's plugged-in CA: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem.
    Ca,
    /// A server's: tls.crt, tls.key, ca.crt.
    Server,
    /// A workload's, as until Istio 1.5: cert-chain.pem, key.pem, root-cert.pem.
    Workload,
}

/// What a Secret should be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) form: Form,
    /// Who asks for its certificate.
    pub(super) caller: Caller,
    /// The names in its certificate.
    pub(super) names: Vec<Name>,
    pub(super) profile: Profile,
    /// Annotations and owners.
    pub(super) metadata: ObjectMeta,
}

/// Why a Secret is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    #[error(
        "it exists and is not ours; remove it, or label it app.kubernetes.io/managed-by=istio-hsm-ca to have it overwritten"
    )]
    Foreign,
    #[error("its certificate was not issued: {0}")]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("its type is {0:?}, which cannot be changed; remove it")]
    Kind(String),
    #[error("{}", super::cluster::chain(.0))]
    Secret(#[from] SecretError),
}

/// A key with its certificate that did not get into its Secret yet, for the next attempt: an API server that is away
/// or refuses must not cost a certificate at each.
pub(super) struct Unwritten {
    key: Zeroizing<String>,
    issued: Issued,
}

impl Unwritten {
    /// Whether it is still what would be made.
    fn serves(&self, issuer: &Arc<Issuer>, now: SystemTime) -> bool {
        Arc::ptr_eq(self.issued.tbs().issuer(), issuer)
            && half_life(self.issued.not_before(), self.issued.not_after()) > now
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Whether it was written.
    pub(super) written: bool,
    /// When it is due again.
    pub(super) due: SystemTime,
}

impl Form {
    /// The Secret's type.
    pub(super) fn kind(self) -> &'static str {
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

/// Has a Secret as it should be. `unwritten` is what the last attempt left, and what this one leaves.
pub(super) async fn keep(
    client: &Client,
    ca: &CertificateAuthority,
    wanted: &Wanted,
    unwritten: &mut Option<Unwritten>,
    now: SystemTime,
) -> Result<Kept, KeptError> {
    let found = secret::get(client, &wanted.namespace, &wanted.name).await?;
    let issuer = ca.issuer();
    let reason = match &found {
        None => "it is missing".to_owned(),
        Some(secret) if !secret.is_ours() => return Err(KeptError::Foreign),
        Some(secret) if secret.kind != wanted.form.kind() => return Err(KeptError::Kind(secret.kind.clone())),
        Some(secret) => match judge(secret, wanted, &issuer) {
            Ok(due) if due > now => {
                *unwritten = None;
                return Ok(Kept { written: false, due });
            }
            Ok(_) => "half of its life is over".to_owned(),
            Err(reason) => reason,
        },
    };
    let made = match unwritten.take().filter(|unwritten| unwritten.serves(&issuer, now)) {
        Some(made) => made,
        None => {
            let key = FreshKey::generate()?;
            Unwritten { issued: issue(ca, &wanted.caller, key.csr, Arc::clone(&issuer)).await?, key: key.pem }
        }
    };
    let Unwritten { key, issued } = unwritten.insert(made);
    let content = content(wanted, found.as_ref(), issued, key.as_bytes());
    match &found {
        None => secret::create(client, &wanted.namespace, &content).await?,
        Some(_) => secret::change(client, &wanted.namespace, &wanted.name, &content).await?,
    }
    let kept = Kept { written: true, due: half_life(issued.not_before(), issued.not_after()) };
    let Wanted { namespace, name, .. } = wanted;
    tracing::info!(namespace, name, reason, serial = issued.serial().to_hex(), "wrote a Secret");
    *unwritten = None;
    Ok(kept)
}

/// Keeps one Secret until dropped.
pub(super) async fn keep_one(
    name: &'static str,
    cluster: &Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    wanted: Wanted,
) {
    let secrets: Api<PartialObjectMeta<core::Secret>> = Api::namespaced(cluster.client(), &wanted.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", wanted.name));
    let (_store, signals) = controller::cached(secrets, only, format!("Secret {}/{}", wanted.namespace, wanted.name));
    let replaced = ca.replacements();
    let work = One { client: cluster.client(), ca, wanted, unwritten: None };
    controller::run(name, cluster, vec![signals], replaced, work).await;
}

struct One {
    client: Client,
    ca: Arc<CertificateAuthority>,
    wanted: Wanted,
    unwritten: Option<Unwritten>,
}

impl Reconcile for One {
    async fn look(&mut self) -> Look {
        let mut look = Look::default();
        let object = format!("{}/{}", self.wanted.namespace, self.wanted.name);
        match keep(&self.client, &self.ca, &self.wanted, &mut self.unwritten, clock::now()).await {
            Ok(kept) => {
                look.changed = usize::from(kept.written);
                look.at(kept.due);
            }
            // It is another by now, which the watch shows; and if that was missed, another look does.
            Err(KeptError::Secret(error)) if error.is_conflict() => look.at(clock::now()),
            Err(error) => look.failed(object, error.to_string()),
        }
        look
    }
}

async fn issue(
    ca: &CertificateAuthority,
    caller: &Caller,
    csr: String,
    issuer: Arc<Issuer>,
) -> Result<Issued, IssueError> {
    let request = Request {
        id: RequestId::random().into(),
        caller: caller.clone(),
        csr,
        asked: Asked::default(),
        issuer: Some(issuer),
        arrived: Instant::now(),
        deadline: None,
    };
    ca.issue(request).await
}

fn content<'a>(wanted: &'a Wanted, found: Option<&'a Secret>, issued: &Issued, key: &[u8]) -> Content<'a> {
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
fn judge(secret: &Secret, wanted: &Wanted, issuer: &Issuer) -> Result<SystemTime, String> {
    let [chain, key, _] = wanted.form.keys();
    let held = Held::read(secret.value(chain), issuer).map_err(|error| error.to_string())?;
    let block = crate::pki::pem::blocks(secret.value(chain)).map_err(|error| error.to_string())?.into_iter().next();
    let certificate = block.map(|block| crate::pki::pem::encode("CERTIFICATE", &block.der)).unwrap_or_default();
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
fn half_life(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let issued = not_before.checked_add(CLOCK_SKEW).unwrap_or(not_before);
    issued + not_after.duration_since(issued).unwrap_or_default() / 2
}

#[cfg(test)]
mod tests {
    use rcgen::SigningKey;

    use super::*;
    use crate::{
        auth::{ClusterName, Controller},
        pki::{
            Tbs,
            csr::VerifiedCsr,
            tbs::Serial,
            testing::{DAY, P256, P384, SoftCa, leaf, now},
        },
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
        let template = crate::pki::Template { profile: wanted.profile.clone(), public_key, names, ..leaf(&[]) };
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
