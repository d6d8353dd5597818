//! istiod's serving certificate: the Secret `istiod-tls` (tls.crt, tls.key, ca.crt), which istiod mounts once it is no
//! CA itself (ISTIO: manifests/charts/istio-control/istio-discovery/templates/deployment.yaml).
//!
//! Issued for the configured names, renewed at half its life, and made anew when names, CA or roots change, or somebody
//! edits or deletes it. Called by `daemon` while this replica leads.

use std::sync::Arc;

use kube::api::ObjectMeta;

use super::{
    Cluster,
    kept::{self, Form, Wanted},
    settings::IstiodCertificate,
};
use crate::{
    auth::{Caller, Controller},
    issue::CertificateAuthority,
};
use pki::Profile;

/// The controller's name in logs and metrics.
pub const NAME: &str = "istiod_certificate";

/// Keeps the Secret until dropped.
pub async fn run(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, settings: IstiodCertificate) {
    let wanted = Wanted {
        namespace: settings.namespace().to_string(),
        name: settings.secret.clone(),
        form: Form::Server,
        caller: Caller::controller(cluster.name().clone(), Controller::IstiodCertificate),
        names: settings.names(),
        profile: Profile::Leaf,
        metadata: ObjectMeta::default(),
    };
    kept::keep_one(NAME, &cluster, ca, wanted).await;
}
