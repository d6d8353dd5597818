//! The CRLs in every selected namespace: empty until they are enabled and complete.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use istio_hsm_ca::{
    kubernetes::controllers::crl_configmap::{KEY, NAME},
    publication::Publication,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use pki::{
    bundle::Input,
    crl::{CrlContent, CrlIssuer, CrlTbs, SignedCrl},
};
use process::clock;
use rcgen::{CertifiedIssuer, KeyPair, SigningKey};
use serde_json::json;

use super::{
    harness::{Cluster, eventually},
    rig::{Rig, issuer},
};
use testkit::{api_server::EAST, plug_in::PlugIn};

const CONFIGMAP: &str = "istio-ca-crl";
const DAY: Duration = Duration::from_secs(86_400);

/// A CRL without entries, in PEM.
fn crl(authority: &CertifiedIssuer<'_, KeyPair>, number: u64) -> String {
    let seconds = clock::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let this_update = UNIX_EPOCH + Duration::from_secs(seconds) - DAY;
    let content = CrlContent { number, this_update, next_update: this_update + 30 * DAY, entries: Vec::new() };
    let tbs = Arc::new(CrlTbs::build(CrlIssuer::from_certificate(authority.der()).unwrap(), content).unwrap());
    let signature = authority.key().sign(tbs.der()).unwrap();
    SignedCrl::assemble(tbs, &signature).unwrap().to_pem()
}

/// The CA's CRL with a number, and the root's, if it is there.
fn publication(plug_in: &PlugIn, number: u64, with_root: bool) -> Publication {
    let root = Input { name: "root.crl".to_owned(), bytes: crl(plug_in.root.as_ref().unwrap(), 1).into_bytes() };
    let files = if with_root { vec![root] } else { Vec::new() };
    let own = crl(&plug_in.ca, number);
    Publication::new(&issuer(plug_in), Some(&own), &files, clock::now(), 6 * DAY)
}

fn configmaps(cluster: &Cluster) -> Api<ConfigMap> {
    cluster.api()
}

/// Waits until the namespace has exactly these CRLs.
async fn has(cluster: &Cluster, crls: &str) {
    eventually("the CRLs", async || {
        let data = configmaps(cluster).get_opt(CONFIGMAP).await.unwrap()?.data.unwrap_or_default();
        (data.len() == 1 && data.get(KEY).is_some_and(|text| text == crls)).then_some(())
    })
    .await;
}

async fn remark(rig: &Rig, wanted: &str) {
    eventually(wanted, async || rig.remark(NAME)?.contains(wanted).then_some(())).await;
}

async fn write(cluster: &Cluster, crls: &str) {
    let manager = PatchParams { field_manager: Some("pilot-discovery".to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"data": {KEY: crls}}));
    configmaps(cluster).patch(CONFIGMAP, &manager, &patch).await.unwrap();
}

fn toml(cluster: &Cluster) -> String {
    let namespace = &cluster.namespace;
    format!("[kubernetes.cluster.crl_configmap]\nnamespace_selector = 'kubernetes.io/metadata.name={namespace}'")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn crls_are_published_when_they_are_enabled_and_complete() {
    let cluster = Cluster::new(&EAST, "crls").await;
    let plug_in = PlugIn::intermediate();
    let (incomplete, first, second) =
        (publication(&plug_in, 1, false), publication(&plug_in, 1, true), publication(&plug_in, 2, true));
    let rig = Rig::start(&cluster, plug_in, &toml(&cluster), |_| (), None).await;
    // Before anything is enabled, so that pods have the file and proxies watch it.
    has(&cluster, "").await;

    rig.ca.replace_publication(incomplete.clone());
    remark(&rig, "the CRLs are not published").await;
    remark(&rig, "has no CRL").await;
    has(&cluster, "").await;

    rig.ca.replace_publication(first.clone());
    has(&cluster, &first.text).await;
    eventually("no remark", async || rig.remark(NAME).is_none().then_some(())).await;
    for edit in ["", "rubbish"] {
        write(&cluster, edit).await;
        has(&cluster, &first.text).await;
    }
    rig.ca.replace_publication(second.clone());
    has(&cluster, &second.text).await;

    // A replica whose state is old, and a CRL that is lost.
    rig.ca.replace_publication(first);
    remark(&rig, "a CRL with a higher number is published already").await;
    rig.ca.replace_publication(incomplete);
    remark(&rig, "the published CRLs are not replaced").await;
    has(&cluster, &second.text).await;

    rig.ca.replace_publication(Publication { enabled: false, ..second });
    has(&cluster, "").await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn another_writer_of_the_crls_is_reported_with_the_setting_that_stops_it() {
    let cluster = Cluster::new(&EAST, "crl-conflict").await;
    let plug_in = PlugIn::intermediate();
    let complete = publication(&plug_in, 1, true);
    let rig = Rig::start(&cluster, plug_in, &toml(&cluster), |_| (), None).await;
    rig.ca.replace_publication(complete.clone());
    has(&cluster, &complete.text).await;
    // As istiod's controller without CRLs of its own.
    let conflict = async {
        loop {
            write(&cluster, "").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::select! {
        () = conflict => {}
        () = remark(&rig, "PILOT_ENABLE_CA_CRL=false") => {}
    }
    remark(&rig, "field manager pilot-discovery").await;
    rig.end().await;
}
