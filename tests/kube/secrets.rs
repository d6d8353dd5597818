//! istiod's certificate and istiod's CA as Secrets.

use std::time::Duration;

use istio_hsm_ca::{kubernetes::secret::MANAGED_BY, telemetry::metrics};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use process::clock;
use rcgen::{BasicConstraints, CertifiedIssuer, IsCa};
use serde_json::json;

use super::{
    harness::{Cluster, eventually, named},
    rig::{Rig, certificate, openssl},
};
use testkit::{
    api_server::EAST,
    plug_in::{PlugIn, authority, p256},
};

fn value(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().and_then(|data| data.get(key)).map(|ByteString(bytes)| bytes.clone()).unwrap_or_default()
}

fn serial(secret: &Secret, key: &str) -> Option<String> {
    let bytes = value(secret, key);
    bytes.starts_with(b"-----BEGIN").then(|| certificate(&bytes).0)
}

/// Waits for a Secret whose certificate has another serial number.
async fn another(api: &Api<Secret>, name: &str, key: &str, last: &str) -> Secret {
    eventually("another certificate", async || {
        let found = api.get_opt(name).await.unwrap()?;
        serial(&found, key).filter(|serial| serial != last).map(|_| found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn istiod_has_a_certificate_that_is_never_old_and_never_wrong() {
    let cluster = Cluster::new(&EAST, "istiod").await;
    let namespace = &cluster.namespace;
    let toml = format!(
        "[kubernetes.cluster.istiod_certificate]\nnamespace = '{namespace}'\nrevisions = ['default', 'canary']\n\
         dns_names = ['istiod.example.com']\nip_addresses = ['10.1.2.3']"
    );
    let short = |config: &mut istio_hsm_ca::config::Config| {
        let cluster = &mut config.kubernetes.as_mut().unwrap().clusters[0];
        cluster.istiod_certificate.as_mut().unwrap().ttl = Duration::from_secs(30);
    };
    let plug_in = PlugIn::intermediate();
    let roots = plug_in.root_cert.clone();
    let rig = Rig::start(&cluster, plug_in, &toml, short, None).await;
    let api: Api<Secret> = cluster.api();

    let made = another(&api, "istiod-tls", "tls.crt", "").await;
    assert_eq!(made.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(value(&made, "ca.crt"), roots.as_bytes());
    assert_eq!(made.data.as_ref().unwrap().len(), 3);
    let (chain, key) = (value(&made, "tls.crt"), value(&made, "tls.key"));
    let arguments = ["verify", "-purpose", "sslserver", "-CAfile", "0", "-untrusted", "1", "-verify_hostname"];
    for name in ["istiod", "istiod-canary", "istiod-remote", "istio-pilot"] {
        let name = format!("{name}.{namespace}.svc");
        openssl(&[roots.as_bytes(), &chain], &[&arguments[..], &[&name, "1"]].concat()).unwrap();
    }
    openssl(&[roots.as_bytes(), &chain], &[&arguments[..], &["istiod.example.com", "1"]].concat()).unwrap();
    openssl(&[roots.as_bytes(), &chain], &[&arguments[..], &["other.svc", "1"]].concat()).unwrap_err();
    let public = openssl(&[&key], &["pkey", "-in", "0", "-pubout"]).unwrap();
    assert_eq!(openssl(&[&chain], &["x509", "-in", "0", "-noout", "-pubkey"]).unwrap(), public);

    // At half its lifetime, and not before.
    let first = serial(&made, "tls.crt").unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(serial(&api.get("istiod-tls").await.unwrap(), "tls.crt").unwrap(), first, "renewed too early");
    let renewed = another(&api, "istiod-tls", "tls.crt", &first).await;
    assert!(clock::now() < certificate(&chain).1, "the old one has expired");

    // Edited in each way, and deleted.
    let mut last = serial(&renewed, "tls.crt").unwrap();
    let other = value(&made, "tls.key");
    for (key, bytes) in
        [("tls.key", other), ("ca.crt", b"x".to_vec()), ("tls.crt", b"x".to_vec()), ("more", b"x".to_vec())]
    {
        let edit = Patch::Merge(json!({"data": {key: ByteString(bytes)}}));
        api.patch("istiod-tls", &PatchParams::default(), &edit).await.unwrap();
        let now = another(&api, "istiod-tls", "tls.crt", &last).await;
        assert_eq!(now.data.as_ref().unwrap().len(), 3, "{key}");
        last = serial(&now, "tls.crt").unwrap();
    }
    api.delete("istiod-tls", &DeleteParams::default()).await.unwrap();
    last = serial(&another(&api, "istiod-tls", "tls.crt", &last).await, "tls.crt").unwrap();

    // A token that is temporarily unavailable.
    rig.take_token(true);
    api.delete("istiod-tls", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(api.get_opt("istiod-tls").await.unwrap().is_none());
    rig.take_token(false);
    last = serial(&another(&api, "istiod-tls", "tls.crt", &last).await, "tls.crt").unwrap();

    let new = PlugIn::intermediate();
    let new_roots = new.root_cert.clone();
    rig.replace(new);
    let of_new = another(&api, "istiod-tls", "tls.crt", &last).await;
    assert_eq!(value(&of_new, "ca.crt"), new_roots.as_bytes());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn istiod_has_a_ca_of_its_own_and_a_foreign_one_is_not_touched() {
    let metrics = metrics::install();
    let cluster = Cluster::new(&EAST, "cacerts").await;
    let namespace = &cluster.namespace;
    let api: Api<Secret> = cluster.api();
    let foreign = Secret {
        metadata: named("cacerts"),
        string_data: Some([("ca-key.pem".to_owned(), "the only copy".to_owned())].into()),
        ..Secret::default()
    };
    let foreign = api.create(&PostParams::default(), &foreign).await.unwrap();
    let toml = format!("[kubernetes.cluster.intermediate]\nnamespace = '{namespace}'\norganization = 'istiod of one'");
    let short = |config: &mut istio_hsm_ca::config::Config| {
        let cluster = &mut config.kubernetes.as_mut().unwrap().clusters[0];
        cluster.name = "cacerts-test".to_owned().try_into().unwrap();
        cluster.intermediate.as_mut().unwrap().ttl = Duration::from_secs(30);
    };
    let plug_in = PlugIn::intermediate();
    let (roots, above) = (plug_in.root_cert.clone(), plug_in.ca_cert.clone());
    let rig = Rig::start(&cluster, plug_in, &toml, short, None).await;
    let wrong = "istio_hsm_ca_objects_in_error{controller=\"intermediate\",cluster=\"cacerts-test\"} 1";
    eventually("the metric", async || metrics.render()().contains(wrong).then_some(())).await;
    assert_eq!(api.get("cacerts").await.unwrap().resource_version(), foreign.resource_version(), "it was modified");

    api.delete("cacerts", &DeleteParams::default()).await.unwrap();
    let made = another(&api, "cacerts", "ca-cert.pem", "").await;
    let keys: Vec<_> = made.data.as_ref().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]);
    assert_eq!(made.labels().get(MANAGED_BY.0).map(String::as_str), Some(MANAGED_BY.1));
    let (ca, chain, key) = (value(&made, "ca-cert.pem"), value(&made, "cert-chain.pem"), value(&made, "ca-key.pem"));
    assert_eq!(value(&made, "root-cert.pem"), roots.as_bytes());
    assert_eq!(chain, [ca.as_slice(), above.as_bytes()].concat());
    let text = openssl(&[&ca], &["x509", "-in", "0", "-noout", "-text"]).unwrap();
    assert!(
        text.contains("CA:TRUE, pathlen:0") && text.contains("O = istiod of one") || text.contains("O=istiod of one"),
        "{text}"
    );
    openssl(&[roots.as_bytes(), &chain], &["verify", "-CAfile", "0", "-untrusted", "1", "1"]).unwrap();
    // What istiod does with it: issues a leaf, which verifies up to the root.
    openssl(
        &[&ca, &key],
        &[
            "req",
            "-x509",
            "-CA",
            "0",
            "-CAkey",
            "1",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "2",
            "-subj",
            "/",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "subjectAltName=critical,URI:spiffe://cluster.local/ns/a/sa/b",
            "-days",
            "1",
            "-out",
            "3",
        ],
    )
    .unwrap();

    let last = serial(&made, "ca-cert.pem").unwrap();
    let renewed = another(&api, "cacerts", "ca-cert.pem", &last).await;
    assert!(clock::now() < certificate(&ca).1, "the old one has expired");
    assert_ne!(value(&renewed, "ca-key.pem"), key);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn below_a_ca_of_path_length_0_there_is_no_other() {
    let metrics = metrics::install();
    let cluster = Cluster::new(&EAST, "narrow").await;
    let mut params = authority("Root CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = CertifiedIssuer::self_signed(params, p256()).unwrap();
    let pem = ca.pem();
    let plug_in = PlugIn { root: None, ca, ca_cert: pem.clone(), cert_chain: String::new(), root_cert: pem };
    let toml = format!("[kubernetes.cluster.intermediate]\nnamespace = '{}'", cluster.namespace);
    let name = |config: &mut istio_hsm_ca::config::Config| {
        config.kubernetes.as_mut().unwrap().clusters[0].name = "narrow-test".to_owned().try_into().unwrap();
    };
    let rig = Rig::start(&cluster, plug_in, &toml, name, None).await;
    let wrong = "istio_hsm_ca_objects_in_error{controller=\"intermediate\",cluster=\"narrow-test\"} 1";
    eventually("the metric", async || metrics.render()().contains(wrong).then_some(())).await;
    assert!(cluster.api::<Secret>().get_opt("cacerts").await.unwrap().is_none());
    rig.end().await;
}
