//! A Secret with a key and a certificate of this CA, as it should be: judged by its content alone, made anew when that
//! is wrong, old, or of another CA.
//!
//! Nothing is remembered between looks but what could not be written yet, so that a new leader judges as the old one
//! did. A Secret without our label is
//! somebody else's and never touched. Called by `istiod_secret`, `intermediate` and `workload_secret`.

mod content;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, api::ObjectMeta, core::PartialObjectMeta, runtime::watcher};
use zeroize::Zeroizing;

pub(super) use self::content::Form;
use self::content::{content, half_life, judge};
use super::{
    Cluster,
    controller::{self, Look, Reconcile},
    key::{FreshKey, KeyError},
    secret::{self, SecretError},
};
use crate::{
    auth::Caller,
    issue::{CertificateAuthority, IssueError, Request},
    policy::Asked,
    telemetry::RequestId,
};
use pki::{Issued, Issuer, Profile, identity::Name};
use process::clock;

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
