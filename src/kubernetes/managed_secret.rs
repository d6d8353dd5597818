//! A Secret with a private key and a certificate of this CA.
//!
//! A Secret is written when its content differs from the desired one, the certificate is due for renewal, or the CA
//! changed. Only the content decides, so a new leader decides like the previous one. A Secret without our label is
//! never modified.

mod content;
mod key;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, api::ObjectMeta, core::PartialObjectMeta, runtime::watcher};
use zeroize::Zeroizing;

pub(super) use self::content::Layout;
use self::{
    content::{check, content, half_life},
    key::{FreshKey, KeyError},
};
use super::{
    Cluster,
    reconcile::{self, Reconcile, ReconcileResult},
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

/// The desired state of a Secret.
#[derive(Clone, Debug)]
pub(super) struct DesiredSecret {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) layout: Layout,
    /// The caller under which its certificate is requested.
    pub(super) caller: Caller,
    /// The names in its certificate.
    pub(super) names: Vec<Name>,
    pub(super) profile: Profile,
    /// Annotations and owners.
    pub(super) metadata: ObjectMeta,
}

/// A Secret is not in the desired state.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManagedSecretError {
    #[error(
        "a Secret of this name exists and is not managed by istio-hsm-ca; remove it, or label it \
         app.kubernetes.io/managed-by=istio-hsm-ca to have it overwritten"
    )]
    Foreign,
    #[error("cannot issue its certificate: {0}")]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("its type is {0:?}, which cannot be changed; remove it")]
    Kind(String),
    #[error("{}", super::cluster::chain(.0))]
    Secret(#[from] SecretError),
}

impl ManagedSecretError {
    /// Whether the Secret was changed meanwhile. The watch reports the change.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Secret(error) if error.is_conflict())
    }
}

/// A certificate and its key that could not be written, kept for the next attempt: while the API server fails, retries
/// must not issue a certificate each.
pub(super) struct Unwritten {
    key: Zeroizing<String>,
    issued: Issued,
}

impl Unwritten {
    /// Whether the current issuer issued it and it is not due for renewal.
    fn is_current(&self, issuer: &Arc<Issuer>, now: SystemTime) -> bool {
        Arc::ptr_eq(self.issued.tbs().issuer(), issuer)
            && half_life(self.issued.not_before(), self.issued.not_after()) > now
    }
}

/// The result of [`reconcile_secret`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reconciled {
    pub(super) written: bool,
    /// When the certificate is due for renewal.
    pub(super) due: SystemTime,
}

/// Brings a Secret into the desired state. `unwritten` carries a certificate from one failed attempt to the next.
pub(super) async fn reconcile_secret(
    client: &Client,
    ca: &CertificateAuthority,
    desired: &DesiredSecret,
    unwritten: &mut Option<Unwritten>,
    now: SystemTime,
) -> Result<Reconciled, ManagedSecretError> {
    let actual = secret::get(client, &desired.namespace, &desired.name).await?;
    let issuer = ca.issuer();
    let reason = match &actual {
        None => "it is missing".to_owned(),
        Some(secret) if !secret.is_ours() => return Err(ManagedSecretError::Foreign),
        Some(secret) if secret.kind != desired.layout.kind() => {
            return Err(ManagedSecretError::Kind(secret.kind.clone()));
        }
        Some(secret) => match check(secret, desired, &issuer) {
            Ok(due) if due > now => {
                *unwritten = None;
                return Ok(Reconciled { written: false, due });
            }
            Ok(_) => "half of its lifetime has passed".to_owned(),
            Err(reason) => reason,
        },
    };
    let made = match unwritten.take().filter(|unwritten| unwritten.is_current(&issuer, now)) {
        Some(made) => made,
        None => {
            let key = FreshKey::generate()?;
            Unwritten { issued: issue(ca, &desired.caller, key.csr, Arc::clone(&issuer)).await?, key: key.pem }
        }
    };
    let Unwritten { key, issued } = unwritten.insert(made);
    let content = content(desired, actual.as_ref(), issued, key.as_bytes());
    match &actual {
        None => secret::create(client, &desired.namespace, &content).await?,
        Some(_) => secret::change(client, &desired.namespace, &desired.name, &content).await?,
    }
    let reconciled = Reconciled { written: true, due: half_life(issued.not_before(), issued.not_after()) };
    let DesiredSecret { namespace, name, .. } = desired;
    tracing::info!(namespace, name, reason, serial = issued.serial().to_hex(), "wrote a Secret");
    *unwritten = None;
    Ok(reconciled)
}

/// Manages one Secret until dropped.
pub(super) async fn run(
    controller: &'static str,
    cluster: &Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    desired: DesiredSecret,
) {
    let secrets: Api<PartialObjectMeta<core::Secret>> = Api::namespaced(cluster.client(), &desired.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", desired.name));
    let (_store, signals) = reconcile::cached(secrets, only, format!("Secret {}/{}", desired.namespace, desired.name));
    let issuers = ca.issuers();
    let work = SingleSecret { client: cluster.client(), ca, desired, unwritten: None };
    reconcile::run(controller, cluster, vec![signals], issuers, work).await;
}

struct SingleSecret {
    client: Client,
    ca: Arc<CertificateAuthority>,
    desired: DesiredSecret,
    unwritten: Option<Unwritten>,
}

impl Reconcile for SingleSecret {
    async fn reconcile(&mut self) -> ReconcileResult {
        let mut result = ReconcileResult::default();
        let now = clock::now();
        match reconcile_secret(&self.client, &self.ca, &self.desired, &mut self.unwritten, now).await {
            Ok(reconciled) => {
                result.changed = usize::from(reconciled.written);
                result.due_at(reconciled.due);
            }
            Err(error) if error.is_conflict() => result.due_at(now),
            Err(error) => {
                result.failed(format!("{}/{}", self.desired.namespace, self.desired.name), error.to_string());
            }
        }
        result
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
