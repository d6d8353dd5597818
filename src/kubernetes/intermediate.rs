//! istiod stays the CA, with a key that lives for days: the Secret `cacerts` in Istio's form, below this CA.
//!
//! The key is made in memory and certified with path length 0; it stands in the Secret, and whoever reads it can speak
//! for the whole trust domain until it expires. Renewed at half its life, in time for istiod's own reload. A `cacerts`
//! that is not ours is never overwritten: it may hold the only copy of somebody's key. Under a CA whose path length
//! leaves no room there is none, and the metrics and the log say why. Called by `daemon` while this replica leads.

use std::sync::Arc;

use kube::api::ObjectMeta;

use super::{
    Cluster,
    kept::{self, Form, Wanted},
    settings::Intermediate,
};
use crate::{
    auth::{Caller, Controller},
    issue::CertificateAuthority,
};
use pki::Profile;

/// The controller's name in logs and metrics.
pub const NAME: &str = "intermediate";

/// Keeps the Secret until dropped.
pub async fn run(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, settings: Intermediate) {
    let wanted = Wanted {
        namespace: settings.namespace().to_string(),
        name: settings.secret,
        form: Form::Ca,
        caller: Caller::controller(cluster.name().clone(), Controller::Intermediate),
        names: Vec::new(),
        profile: Profile::Intermediate { organization: settings.organization },
        metadata: ObjectMeta::default(),
    };
    kept::keep_one(NAME, &cluster, ca, wanted).await;
}
