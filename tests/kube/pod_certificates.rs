//! PodCertificateRequests: which pods get which certificates, and what happens to other requests. Each test runs with
//! both versions of the interface.

use std::{sync::LazyLock, time::Duration};

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};

use super::{
    harness::{Cluster, eventually},
    kubelet::{Answer, Kubelet, stub, with_request},
    rig::{Rig, openssl},
    trust_bundles,
};
use testkit::{
    api_server::{ApiServer, EAST, NEWEST, Version},
    plug_in::{PlugIn, p256},
};

const CONTROLLER: &str = "pod_certificates";

/// A signer of SPIFFE IDs, with more settings.
fn signer(cluster: &Cluster, more: &str) -> (String, String) {
    let name = format!("{}.example.com/istio", cluster.namespace);
    let toml = format!("[[kubernetes.cluster.pod_signer]]\nname = '{name}'\n{more}\n");
    (name, toml)
}

/// The subject alternative names of the first certificate, as openssl prints them.
fn names(chain: &str) -> String {
    let text = openssl(&[chain.as_bytes()], &["x509", "-in", "0", "-noout", "-ext", "subjectAltName"]).unwrap();
    text.lines().last().unwrap().trim().to_owned()
}

/// Tests with both versions of the interface.
macro_rules! both_versions {
    ($($test:ident, $beta:ident, $stable:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs an API server: make test-kube"]
            async fn $beta() {
                $test(&EAST).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs an API server: make test-kube"]
            async fn $stable() {
                $test(&NEWEST).await;
            }
        )*
    };
}

both_versions! {
    signs, pods_are_signed_as_their_service_account_in_the_beta_version,
        pods_are_signed_as_their_service_account_in_the_stable_version;
    services, pods_obtain_the_names_of_listed_services_in_the_beta_version,
        pods_obtain_the_names_of_listed_services_in_the_stable_version;
    attempts, author_of_a_pod_obtains_no_foreign_name_in_the_beta_version,
        author_of_a_pod_obtains_no_foreign_name_in_the_stable_version;
}

async fn signs(server: &'static ApiServer) {
    let cluster = Cluster::new(server, "podcerts").await;
    let ns = &cluster.namespace;
    let (name, toml) = signer(&cluster, "ttl = '12h'");
    let plug_in = PlugIn::intermediate();
    let (roots, above) = (plug_in.root_cert.clone(), plug_in.ca_cert.clone());
    let rig = Rig::start(&cluster, plug_in, &toml, |_| (), None).await;
    let kubelet = Kubelet::start(&cluster).await;
    let web = kubelet.pod("web-1", "web", &name, json!({})).await;

    // The chain without the root, the identity, the key, and times that the API server accepts.
    let key = p256();
    let answer = kubelet.certificate(&web, with_request(&stub(&key))).await;
    let chain = answer.chain();
    assert!(chain.ends_with(&above) && chain.matches("BEGIN CERTIFICATE").count() == 2, "{chain}");
    openssl(&[roots.as_bytes(), chain.as_bytes()], &["verify", "-CAfile", "0", "-untrusted", "1", "1"]).unwrap();
    assert_eq!(names(chain), format!("URI:spiffe://cluster.local/ns/{ns}/sa/web"));
    let public = openssl(&[chain.as_bytes()], &["x509", "-in", "0", "-noout", "-pubkey"]).unwrap();
    assert_eq!(public.replace('\n', ""), key.public_key_pem().replace(['\n', '\r'], ""));
    let lifetime = |answer: &Answer| answer.time("notAfter") - answer.time("notBefore");
    assert_eq!(lifetime(&answer), 12 * 3600);
    assert_eq!(answer.time("beginRefreshAt"), answer.time("notBefore") + 6 * 3600);

    // The pod's limit, from the minimum on.
    for seconds in [3600, 3601, 43_201] {
        let answer = kubelet.certificate(&web, json!({"spec": {"maxExpirationSeconds": seconds}})).await;
        assert_eq!(lifetime(&answer), seconds.min(12 * 3600));
    }

    // Every kind of key that this CA certifies; others are denied with what to use instead.
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        kubelet.certificate(&web, with_request(&stub(&key))).await.chain();
    }
    let unsupported = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let denied = kubelet.certificate(&web, with_request(&stub(&unsupported))).await;
    denied.denied("UnsupportedKeyType", "P-256, P-384");

    // An unavailable token delays a request: no answer, then the certificate.
    rig.take_token(true);
    let waiting = kubelet.request(&web, json!({})).await.unwrap();
    eventually("the delay's report", async || rig.remark(CONTROLLER)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(kubelet.status(&waiting).await.get("conditions").is_none());
    rig.take_token(false);
    kubelet.answer(&waiting).await.chain();
    eventually("the report's end", async || rig.remark(CONTROLLER).is_none().then_some(())).await;

    // What others write into an open request's metadata does no harm; an answer cannot be changed.
    rig.take_token(true);
    let edited = kubelet.request(&web, json!({})).await.unwrap();
    let requests = Kubelet::requests(&cluster);
    let label = Patch::Merge(json!({"metadata": {"labels": {"edited": "yes"}}}));
    requests.patch(&edited, &PatchParams::default(), &label).await.unwrap();
    rig.take_token(false);
    kubelet.answer(&edited).await.chain();
    let before = rig.intents();
    requests
        .patch(&edited, &PatchParams::default(), &Patch::Merge(json!({"metadata": {"labels": {"edited": null}}})))
        .await
        .unwrap();
    requests.delete(&waiting, &Default::default()).await.unwrap();
    let answered = Patch::Merge(json!({"status": {"conditions": []}}));
    requests.patch_status(&edited, &PatchParams::default(), &answered).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.intents(), before);

    // Another signer's requests, and those that another controller has answered, are left alone.
    let other = json!({"spec": {"signerName": format!("{ns}.example.com/other")}});
    let foreign = kubelet.pod("web-2", "web", &format!("{ns}.example.com/other"), json!({})).await;
    let foreign = kubelet.request(&foreign, other).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kubelet.status(&foreign).await.get("conditions").is_none());

    // A replica that does not lead signs nothing; the next leader signs what has waited.
    rig.leading.send_replace(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let late = kubelet.request(&web, json!({})).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kubelet.status(&late).await.get("conditions").is_none());
    rig.leading.send_replace(true);
    kubelet.answer(&late).await.chain();
    rig.end().await;
}

async fn service(cluster: &Cluster, name: &str, spec: Value) {
    let mut spec = spec;
    spec["ports"] = json!([{"port": 80}]);
    let service: Service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    cluster.api::<Service>().create(&PostParams::default(), &service).await.unwrap();
}

async fn services(server: &'static ApiServer) {
    let cluster = Cluster::new(server, "podservices").await;
    let ns = &cluster.namespace;
    let (name, toml) = signer(
        &cluster,
        &format!(
            "[[kubernetes.cluster.pod_signer.service]]\naccount = '{ns}/web'\nnames = ['web', 'web-headless', 'shop']"
        ),
    );
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &toml, |_| (), None).await;
    let kubelet = Kubelet::start(&cluster).await;
    service(&cluster, "web", json!({"selector": {"app": "web"}})).await;
    service(&cluster, "web-headless", json!({"selector": {"app": "web"}, "clusterIP": "None"})).await;
    service(&cluster, "other", json!({"selector": {"app": "web"}})).await;

    // Those that are listed and select the pod.
    let web = kubelet.pod("web-1", "web", &name, json!({"app": "web"})).await;
    let of = |services: &[&str]| {
        let both = |service: &&str| format!("DNS:{service}.{ns}.svc, DNS:{service}.{ns}.svc.cluster.local");
        services.iter().map(both).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(names(kubelet.certificate(&web, json!({})).await.chain()), of(&["web", "web-headless"]));

    // No Service selects the pod yet: no answer until one does.
    let shop = kubelet.pod("shop-1", "web", &name, json!({"app": "shop"})).await;
    let waiting = kubelet.request(&shop, json!({})).await.unwrap();
    eventually("the delay's report", async || rig.remark(CONTROLLER)?.contains("selects this pod").then_some(())).await;
    service(&cluster, "shop", json!({"selector": {"app": "shop"}})).await;
    assert_eq!(names(kubelet.answer(&waiting).await.chain()), of(&["shop"]));

    // Another service account has no names, whatever selects its pods.
    let stranger = kubelet.pod("stranger-1", "stranger", &name, json!({"app": "web"})).await;
    kubelet.certificate(&stranger, json!({})).await.denied("Refused", "no Service is listed");
    rig.end().await;
}

/// A request as a node could make it that its pod's author has taken over.
fn forged(names: &[SanType], subject: &str, extension: Option<CustomExtension>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.subject_alt_names = names.to_vec();
    params.custom_extensions = extension.into_iter().collect();
    params.serialize_request(&p256()).unwrap().der().to_vec()
}

/// What the author of a pod writes freely, and what a node could add: none of it gives another name than the one of the
/// pod's service account, or those of its listed Services.
async fn attempts(server: &'static ApiServer) {
    let cluster = Cluster::new(server, "podattempts").await;
    let ns = cluster.namespace.clone();
    let other = format!("{ns}-b");
    cluster.make_namespace(&other).await;
    let (name, mut toml) = signer(&cluster, &format!("namespaces = ['{ns}']"));
    let named = format!("{ns}.example.com/services");
    toml.push_str(&format!(
        "[[kubernetes.cluster.pod_signer]]\nname = '{named}'\n\
         [[kubernetes.cluster.pod_signer.service]]\naccount = '{ns}/web'\nnames = ['web']\n"
    ));
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &toml, |_| (), None).await;
    let kubelet = Kubelet::start(&cluster).await;
    let own = format!("URI:spiffe://cluster.local/ns/{ns}/sa/web");
    let victim = "spiffe://cluster.local/ns/istio-system/sa/istiod";
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());

    // Fields of the pod that its author chooses: labels, annotations, names. They change nothing.
    let labels = json!({"app": "istiod", "istio": "pilot", "serviceaccount": "istiod"});
    let author = kubelet.pod("istiod", "web", &name, labels).await;
    let edit = json!({"metadata": {"annotations": {"spiffe.io/spiffe-id": victim, "serviceAccountName": "istiod"}}});
    cluster.api::<Pod>().patch("istiod", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    assert_eq!(names(kubelet.certificate(&author, json!({})).await.chain()), own);

    // userAnnotations of the volume, which the kubelet copies: denied, whatever they say.
    for key in ["spiffe.io/spiffe-id", "cluster.local/service-account", "hsm.example.com/dns-names"] {
        let changes = json!({"spec": {"unverifiedUserAnnotations": {key: victim}}});
        kubelet.certificate(&author, changes).await.denied("InvalidUnverifiedUserAnnotations", key);
    }
    // Labels and annotations of the request itself.
    let changes = json!({"metadata": {"labels": {"service-account": "istiod"}, "annotations": {"a.b/id": victim}}});
    assert_eq!(names(kubelet.certificate(&author, changes).await.chain()), own);

    // Names in the request for a certificate.
    for (request, words) in [
        (forged(&[uri(victim)], "", None), "not the caller's"),
        (forged(&[SanType::DnsName("istiod.istio-system.svc".try_into().unwrap())], "", None), "not the caller's"),
        (forged(&[SanType::IpAddress([127, 0, 0, 1].into())], "", None), "not the caller's"),
        (forged(&[uri(&format!("spiffe://cluster.local/ns/{ns}/sa/web")), uri(victim)], "", None), "not the caller's"),
        (forged(&[uri(&format!("spiffe://cluster.local/ns/{other}/sa/web"))], "", None), "not the caller's"),
        // basicConstraints with CA:TRUE.
        (forged(&[], "", Some(CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]))), "CA"),
    ] {
        kubelet.certificate(&author, with_request(&request)).await.denied("Refused", words);
    }
    // A subject is ignored, as from every caller.
    let answer = kubelet.certificate(&author, with_request(&forged(&[], "istiod.istio-system.svc", None))).await;
    assert_eq!(names(answer.chain()), own);

    // Fields that the API server compares with the pod: another account, pod, node, namespace or signer.
    let zero = "00000000-0000-0000-0000-000000000000";
    for (changes, words) in [
        (json!({"spec": {"serviceAccountName": "default"}}), "that differs from running pod"),
        (json!({"spec": {"serviceAccountUID": zero}}), "differs from the running service account"),
        (json!({"spec": {"podUID": zero}}), "differs from running pod"),
        (json!({"spec": {"podName": "another"}}), "while retrieving pod"),
        (json!({"spec": {"nodeName": "another"}}), "which is not the requesting node"),
        (json!({"spec": {"nodeUID": zero}}), "inconsistent with the running node"),
        (json!({"spec": {"maxExpirationSeconds": 60}}), "must be in the range"),
        (json!({"spec": {"stubPKCS10Request": "YQ=="}}), "must be a valid PKCS#10 CSR"),
        (json!({"metadata": {"namespace": other}}), "does not match the namespace"),
    ] {
        let refused = kubelet.try_request(&author, changes.clone()).await.unwrap_err().to_string();
        assert!(refused.contains(words), "the API server refuses {changes}: {refused}");
    }
    // Nobody can change the spec afterwards.
    let made = kubelet.request(&author, json!({})).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"serviceAccountName": "istiod"}}));
    let refused = Kubelet::requests(&cluster).patch(&made, &PatchParams::default(), &patch).await.unwrap_err();
    assert!(refused.to_string().contains("immutable"), "{refused}");

    // Names of Services: labels that match one that is not listed, Services that the author adds, another namespace's.
    service(&cluster, "web", json!({"selector": {"app": "web"}})).await;
    service(&cluster, "istiod", json!({"selector": {"app": "web"}})).await;
    service(&cluster, "alias", json!({"type": "ExternalName", "externalName": "istiod.istio-system.svc"})).await;
    let of_service = format!("DNS:web.{ns}.svc, DNS:web.{ns}.svc.cluster.local");
    let web = kubelet.pod("web-1", "web", &named, json!({"app": "web", "istio": "pilot"})).await;
    assert_eq!(names(kubelet.certificate(&web, json!({})).await.chain()), of_service);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    for asked in [format!("istiod.{ns}.svc"), format!("web.{other}.svc"), "web".to_owned(), format!("*.{ns}.svc")] {
        let answer = kubelet.certificate(&web, with_request(&forged(&[dns(&asked)], "", None))).await;
        answer.denied("Refused", "not the caller's");
    }
    let answer = kubelet.certificate(&web, with_request(&forged(&[uri(victim)], "", None))).await;
    answer.denied("Refused", "not the caller's");
    // Another account in the namespace that makes its pod look like the Service's.
    let thief = kubelet.pod("web-2", "thief", &named, json!({"app": "web"})).await;
    kubelet.certificate(&thief, json!({})).await.denied("Refused", "no Service is listed");
    rig.end().await;
}

/// An API server that does not serve the interfaces at first, used by no other test.
static LATE: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::with("https://late.kube.test", Version::Usual, false));

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn missing_interfaces_are_reported_and_used_once_they_are_served() {
    let cluster = Cluster::new(&LATE, "late").await;
    let ns = &cluster.namespace;
    let (name, mut toml) = signer(&cluster, "");
    toml.push_str(&format!("[kubernetes.cluster.cluster_trust_bundle]\nsigners = ['{name}']\n"));
    let plug_in = PlugIn::intermediate();
    let roots = plug_in.root_cert.clone();
    let rig = Rig::start(&cluster, plug_in, &toml, |_| (), None).await;
    for (controller, interface) in
        [(CONTROLLER, "podcertificaterequests"), ("cluster_trust_bundle", "clustertrustbundles")]
    {
        let report = async || rig.remark(controller).filter(|problem| problem != "starting");
        let problem = eventually("the report", report).await;
        assert!(problem.contains(interface) && problem.contains("none of the versions v1, v1beta1"), "{problem}");
        // One failure, however often it is looked for.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(rig.status(controller).failures.len(), 1);
    }
    rig.sign().await;
    let missing = ["podcertificaterequests.certificates.k8s.io", "clustertrustbundles.certificates.k8s.io"];
    assert_eq!(rig.unserved().await, missing);

    tokio::task::block_in_place(|| LATE.enable_beta());
    let kubelet = Kubelet::start(&cluster).await;
    let web = kubelet.pod("web-1", "web", &name, json!({})).await;
    assert_eq!(
        names(kubelet.certificate(&web, json!({})).await.chain()),
        format!("URI:spiffe://cluster.local/ns/{ns}/sa/web")
    );
    let bundle = format!("{}:root-cert", name.replace('/', ":"));
    eventually("the roots", async || (trust_bundles::read(&cluster, &bundle).await? == roots).then_some(())).await;
    for controller in [CONTROLLER, "cluster_trust_bundle"] {
        eventually("the report's end", async || rig.remark(controller).is_none().then_some(())).await;
    }
    assert!(rig.unserved().await.is_empty());
    rig.end().await;
}
