//! cert-manager's CertificateRequests: which requesters get which certificates, and what happens to other requests. The
//! API server has cert-manager's CustomResourceDefinitions, but neither its webhook nor its controllers, which
//! `cert_manager_itself` runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use istio_hsm_ca::kubernetes::{
    cert_manager::{
        CertificateRequest, CertificateRequestSpec, Condition, GROUP, HsmClusterIssuer, HsmIssuer, IssuerRef,
        IssuerSpec, condition,
    },
    controllers::certificate_requests::NAME,
};
use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    core::Request,
};
use process::clock;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, SanType};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    csrs::{self, USAGES},
    harness::{Cluster, client_of, eventually, named},
    rig::{Rig, certificate, openssl},
};
use testkit::{
    api_server::{ApiServer, EAST},
    plug_in::{PlugIn, p256},
};

/// What tests/cert-manager/build.sh has built.
pub fn built() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cert-manager/build.sh");
    let output = Command::new(script).arg("--where").output().unwrap();
    let built = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    assert!(built.is_dir(), "{} is missing: run `make test-kube`, or tests/cert-manager/build.sh", built.display());
    built
}

fn definitions(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parse = |document| serde_saphyr::from_str::<Value>(document).unwrap();
    format!("\n{text}").split("\n---").map(parse).filter(|object| !object.is_null()).collect()
}

/// cert-manager's CustomResourceDefinitions.
pub fn definitions_of_cert_manager() -> Vec<Value> {
    let names = ["certificaterequests", "certificates", "clusterissuers", "issuers"];
    names.iter().flat_map(|name| definitions(&built().join(format!("crds/cert-manager.io_{name}.yaml")))).collect()
}

/// Those of this CA's issuers.
pub fn definitions_of_issuers() -> Vec<Value> {
    definitions(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/istio-hsm-ca/files/issuers.yaml"))
}

/// Installs CustomResourceDefinitions and waits until they are served.
pub async fn install(cluster: &Cluster, definitions: &[Value]) {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for definition in definitions {
        let name = definition["metadata"]["name"].as_str().unwrap();
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(definition)).await.unwrap();
    }
    for definition in definitions {
        let name = definition["metadata"]["name"].as_str().unwrap();
        eventually(name, async || {
            let conditions = api.get(name).await.unwrap().status?.conditions?;
            conditions.iter().any(|one| one.type_ == "Established" && one.status == "True").then_some(())
        })
        .await;
    }
}

pub async fn install_all(cluster: &Cluster) {
    install(cluster, &definitions_of_cert_manager()).await;
    install(cluster, &definitions_of_issuers()).await;
}

/// Creates an object as a given client; `namespace` is for objects that have one.
pub async fn create<K>(client: &Client, namespace: Option<&str>, object: &K) -> Result<Value, kube::Error>
where
    K: k8s_openapi::Resource + Resource<DynamicType = ()> + Serialize,
{
    let mut value = serde_json::to_value(object).unwrap();
    (value["apiVersion"], value["kind"]) = (K::API_VERSION.into(), K::KIND.into());
    let request = Request::new(<K as Resource>::url_path(&(), namespace));
    client.request(request.create(&PostParams::default(), value.to_string().into_bytes()).unwrap()).await
}

/// Creates an HsmIssuer in the test's namespace for a profile. Its class is the namespace's name, since the tests of one
/// API server run several CAs.
pub async fn make_issuer(cluster: &Cluster, name: &str, profile: &str) {
    let spec = IssuerSpec { profile: profile.to_owned(), class: cluster.namespace.clone() };
    let issuer = HsmIssuer { metadata: named(name), spec, ..HsmIssuer::default() };
    create(&cluster.client, Some(&cluster.namespace), &issuer).await.unwrap();
}

/// Creates an HsmClusterIssuer with the name and class of the test's namespace.
pub async fn make_cluster_issuer(cluster: &Cluster, profile: &str) {
    let spec = IssuerSpec { profile: profile.to_owned(), class: cluster.namespace.clone() };
    let issuer = HsmClusterIssuer { metadata: named(&cluster.namespace), spec, ..HsmClusterIssuer::default() };
    create(&cluster.client, None, &issuer).await.unwrap();
}

/// The Ready condition of an HsmIssuer that is about its current spec.
pub async fn issuer_ready(cluster: &Cluster, name: &str) -> Option<Condition> {
    let issuer = cluster.api::<HsmIssuer>().get_opt(name).await.unwrap()?;
    let ready = condition(&issuer.status.conditions, "Ready")?.clone();
    (ready.observed_generation == issuer.metadata.generation).then_some(ready)
}

/// A CertificateRequest for a CSR.
pub fn request(name: &str, issuer: &str, csr: &str) -> CertificateRequest {
    CertificateRequest {
        metadata: named(name),
        spec: CertificateRequestSpec {
            issuer_ref: IssuerRef { group: GROUP.to_owned(), kind: "HsmIssuer".to_owned(), name: issuer.to_owned() },
            request: STANDARD.encode(csr),
            usages: USAGES.iter().map(|usage| (*usage).to_owned()).collect(),
            duration: Some("1h0m0s".to_owned()),
            ..CertificateRequestSpec::default()
        },
        ..CertificateRequest::default()
    }
}

/// Adds a condition as an approver does.
pub async fn set(api: &Api<CertificateRequest>, name: &str, type_: &str) {
    let condition = json!({
        "type": type_, "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-01T00:00:00Z"
    });
    let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

/// The PEM certificates of a signed request and its `status.ca`, or the message of a failed one.
pub async fn answer(api: &Api<CertificateRequest>, name: &str) -> Result<(Vec<u8>, Vec<u8>), String> {
    eventually(format!("an answer to {name}"), async || {
        let status = api.get(name).await.unwrap().status;
        let ready = condition(&status.conditions, "Ready")?;
        match ready.reason.as_str() {
            "Issued" => {
                assert_eq!((ready.status.as_str(), &status.failure_time), ("True", &None));
                let decode = |text: &Option<String>| STANDARD.decode(text.as_ref().unwrap()).unwrap();
                Some(Ok((decode(&status.certificate), decode(&status.ca))))
            }
            "Failed" => {
                let invalid = condition(&status.conditions, "InvalidRequest").unwrap();
                assert_eq!((ready.status.as_str(), invalid.status.as_str()), ("False", "True"));
                assert_eq!(ready.message, invalid.message);
                assert!(status.failure_time.is_some() && status.certificate.is_none() && status.ca.is_none());
                Some(Err(format!("{}: {}", invalid.reason, ready.message)))
            }
            _ => None,
        }
    })
    .await
}

/// Creates and approves a request; returns the answer.
async fn approved(cluster: &Cluster, request: &CertificateRequest) -> Result<(Vec<u8>, Vec<u8>), String> {
    let namespace = request.metadata.namespace.as_deref().unwrap_or(&cluster.namespace);
    let api: Api<CertificateRequest> = Api::namespaced(cluster.client.clone(), namespace);
    let name = request.metadata.name.as_deref().unwrap();
    create(&cluster.client, Some(namespace), request).await.unwrap();
    set(&api, name, "Approved").await;
    answer(&api, name).await
}

/// A CSR for a CA certificate, and its key.
fn ca_csr(names: &[&str]) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "a CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let san = |name: &&str| match name.contains("://") {
        true => SanType::URI((*name).try_into().unwrap()),
        false => SanType::DnsName((*name).try_into().unwrap()),
    };
    params.subject_alt_names = names.iter().map(san).collect();
    let key = p256();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

/// The configuration of the tests.
fn toml(namespace: &str) -> String {
    format!(
        "[kubernetes.cluster.cert_manager]\nclass = '{namespace}'\n\
         [[kubernetes.cluster.cert_manager.profile]]\nname = 'web'\n\
         [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\n\
         may = {{ dns_names = ['a.{namespace}.svc', 'b.{namespace}.svc'] }}\n\
         [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\n\
         username = 'system:serviceaccount:{namespace}:web'\nmay = 'itself'\nmax_ttl = '2h'\n\
         [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['*']\n\
         group = 'issuers'\nmay = 'namespace_workloads'\n\
         [[kubernetes.cluster.cert_manager.profile]]\nname = 'mesh'\n\
         [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\n\
         username = 'istio-csr'\nmay = {{ any_workload = {{ trust_domain = 'cluster.local' }} }}\n\
         [[kubernetes.cluster.cert_manager.profile]]\nname = 'ca'\n\
         [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\nmax_ttl = '48h'\nusername = 'spire'\n\
         may = {{ ca = {{ organization = 'SPIRE', ignored_uris = ['spiffe://cluster.local'] }} }}\n\
         [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\nmax_ttl = '48h'\nusername = 'linkerd'\n\
         may = {{ ca = {{ organization = 'Linkerd', dns_names = ['identity.linkerd.cluster.local'] }} }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_requester_is_signed_for_what_a_rule_says_and_nothing_else() {
    let cluster = Cluster::new(&EAST, "requests").await;
    install_all(&cluster).await;
    let namespace = cluster.namespace.as_str();
    let other_namespace = format!("{namespace}-other");
    cluster.make_namespace(&other_namespace).await;
    let plug_in = PlugIn::intermediate();
    let (roots, above) = (plug_in.root_cert.clone(), plug_in.ca_cert.clone());
    let rig = Rig::start(&cluster, plug_in, &toml(namespace), |_| (), None).await;
    for profile in ["web", "mesh", "ca"] {
        make_issuer(&cluster, profile, profile).await;
    }
    make_cluster_issuer(&cluster, "web").await;
    let ready = eventually("the issuer's condition", async || issuer_ready(&cluster, "web").await).await;
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "ProfileFound"));

    let mut count = 0;
    let mut leaf = |issuer: &str, username: &str, names: &[&str]| {
        count += 1;
        let mut request = request(&format!("r{count}"), issuer, &csrs::pem(names));
        request.spec.username = username.to_owned();
        request
    };
    let (a, b) = (format!("a.{namespace}.svc"), format!("b.{namespace}.svc"));
    let web = format!("system:serviceaccount:{namespace}:web");
    let own = format!("spiffe://cluster.local/ns/{namespace}/sa/web");
    let other = "spiffe://cluster.local/ns/foo/sa/bar";
    let in_group = |mut request: CertificateRequest| {
        request.spec.groups = vec!["system:authenticated".to_owned(), "issuers".to_owned()];
        request
    };

    // Signed, with chain and roots, for the requested lifetime.
    let (signed, ca) = approved(&cluster, &leaf("web", "anyone", &[&a, &b])).await.unwrap();
    assert!(String::from_utf8(signed.clone()).unwrap().ends_with(&above) && ca == roots.as_bytes());
    openssl(&[roots.as_bytes(), &signed], &["verify", "-CAfile", "0", "-untrusted", "1", "1"]).unwrap();
    let left = certificate(&signed).1.duration_since(clock::now()).unwrap();
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3400), "{left:?}");
    let text = openssl(&[&signed], &["x509", "-in", "0", "-noout", "-text"]).unwrap();
    assert!(text.contains(&format!("DNS:{a}, DNS:{b}")) && text.contains("CA:FALSE"), "{text}");
    for request in [
        leaf("web", &web, &[&own]),
        leaf("web", &web, &[]),
        in_group(leaf("web", "anyone", &[&format!("spiffe://cluster.local/ns/{namespace}/sa/any")])),
        leaf("mesh", "istio-csr", &[other]),
    ] {
        approved(&cluster, &request).await.unwrap();
    }
    let mut by_cluster = leaf("web", "anyone", &[&a]);
    by_cluster.spec.issuer_ref.kind = "HsmClusterIssuer".to_owned();
    by_cluster.spec.issuer_ref.name = namespace.to_owned();
    approved(&cluster, &by_cluster).await.unwrap();

    // CA certificates, which certify a leaf: SPIRE's, whose URI is left out, and Linkerd's with its name.
    for (username, asked, subject) in
        [("spire", "spiffe://cluster.local", "O = SPIRE"), ("linkerd", "identity.linkerd.cluster.local", "O = Linkerd")]
    {
        let (csr, key) = ca_csr(&[asked]);
        let mut ca = request(&format!("ca-{username}"), "ca", &csr);
        (ca.spec.username, ca.spec.is_ca) = (username.to_owned(), true);
        ca.spec.usages = ["cert sign", "crl sign", "server auth", "client auth"].map(str::to_owned).to_vec();
        ca.spec.duration = Some("48h".to_owned());
        let (signed, _) = approved(&cluster, &ca).await.unwrap();
        let text = openssl(&[&signed], &["x509", "-in", "0", "-noout", "-text", "-nameopt", "space_eq"]).unwrap();
        assert!(text.contains("CA:TRUE, pathlen:0") && text.contains(subject), "{text}");
        assert_eq!(text.contains("Subject Alternative Name"), username == "linkerd", "{text}");
        let leaf = openssl(
            &[&signed, key.as_bytes(), csrs::pem(&["x.test"]).as_bytes()],
            &["x509", "-req", "-in", "2", "-CA", "0", "-CAkey", "1", "-days", "1"],
        )
        .unwrap();
        let leaf = leaf[leaf.find("-----BEGIN").unwrap()..].to_owned();
        let chain = [roots.as_bytes(), &signed, leaf.as_bytes()];
        openssl(&chain, &["verify", "-CAfile", "0", "-untrusted", "1", "2"]).unwrap();
    }

    // Refused, each with its reason.
    let changed = |mut request: CertificateRequest, change: &dyn Fn(&mut CertificateRequestSpec)| {
        change(&mut request.spec);
        request
    };
    let ca = |csr: String| {
        move |spec: &mut CertificateRequestSpec| {
            (spec.is_ca, spec.request, spec.usages) = (true, STANDARD.encode(&csr), vec!["cert sign".to_owned()]);
        }
    };
    let foreign_names = ["other.svc", other, "spiffe://evil.local/ns/a/sa/b"];
    let mut refused: Vec<(CertificateRequest, &str)> = foreign_names
        .iter()
        .map(|name| (leaf("web", "anyone", &[name]), "NotAllowed: the request contains the name"))
        .collect();
    refused.extend([
        (leaf("web", "anyone", &[&a, "other.svc"]), "NotAllowed: the request contains the name DNS:other.svc"),
        (leaf("web", "anyone", &[]), "NotAllowed: no name is requested"),
        (leaf("web", &web, &[other]), "NotAllowed: the request contains the name"),
        (in_group(leaf("web", "anyone", &[other])), "NotAllowed: the request contains the name"),
        (leaf("mesh", "anyone", &[other]), "NotAllowed: no rule of the profile mesh allows \"anyone\""),
        (leaf("mesh", "istio-csr", &["a.svc"]), "NotAllowed: the request contains the name DNS:a.svc"),
        (leaf("ca", "spire", &[&own]), "a certificate; add a rule"),
        (changed(leaf("web", "anyone", &[&a]), &ca(ca_csr(&[]).0)), "a CA certificate (isCA); add a rule"),
        (changed(leaf("ca", "spire", &[]), &ca(ca_csr(&["spiffe://evil.local"]).0)), "URI:spiffe://evil.local"),
        (changed(leaf("ca", "spire", &[]), &ca(ca_csr(&["x.test"]).0)), "DNS:x.test"),
        (
            changed(leaf("ca", "spire", &[]), &|spec| {
                ca(ca_csr(&[]).0)(spec);
                spec.duration = Some("49h".to_owned());
            }),
            "a lifetime of 176400 seconds is requested; at most 172800",
        ),
        (
            changed(leaf("web", &web, &[&own]), &|spec| spec.duration = Some("3h".to_owned())),
            "a lifetime of 10800 seconds is requested; at most 7200",
        ),
        (
            changed(leaf("web", "anyone", &[&a]), &|spec| spec.usages.push("code signing".to_owned())),
            "Malformed: spec.usages: \"code signing\" is not granted",
        ),
        (
            changed(leaf("web", "anyone", &[&a]), &|spec| spec.request = STANDARD.encode(ca_csr(&[&a]).0)),
            "Malformed: spec.request: the request asks for a CA certificate",
        ),
        (
            changed(leaf("web", "anyone", &[&a]), &|spec| spec.request = STANDARD.encode("x")),
            "Malformed: spec.request: the request",
        ),
        (
            changed(leaf("web", "anyone", &[&a]), &|spec| spec.duration = Some("tomorrow".to_owned())),
            "Malformed: spec.duration: \"tomorrow\"",
        ),
        (
            changed(leaf("web", "anyone", &[&a]), &|spec| spec.issuer_ref.kind = "Issuer".to_owned()),
            "Malformed: spec.issuerRef.kind: istio-hsm-ca.dev has no \"Issuer\"",
        ),
    ]);
    // The same cluster-wide issuer, from a namespace for which no rule is.
    let mut elsewhere = leaf("web", "anyone", &[&a]);
    elsewhere.spec.issuer_ref = by_cluster.spec.issuer_ref.clone();
    elsewhere.metadata.namespace = Some(other_namespace.clone());
    refused.push((elsewhere, "NotAllowed: no rule of the profile web allows \"anyone\" in the namespace"));
    for (request, reason) in &refused {
        let message = approved(&cluster, request).await.unwrap_err();
        assert!(message.contains(reason), "{message}, not {reason}");
    }

    // Neither unapproved nor denied requests are signed, and a denied one gets the reason Denied.
    let api = cluster.api::<CertificateRequest>();
    let (waiting, denied) = (leaf("web", "anyone", &[&a]), leaf("web", "anyone", &[&a]));
    for request in [&waiting, &denied] {
        create(&cluster.client, Some(namespace), request).await.unwrap();
    }
    let denied = denied.metadata.name.unwrap();
    set(&api, &denied, "Denied").await;
    eventually("Denied", async || {
        let status = api.get(&denied).await.unwrap().status;
        let ready = condition(&status.conditions, "Ready")?;
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Denied"));
        assert!(status.certificate.is_none() && condition(&status.conditions, "Denied").is_some());
        status.failure_time.map(drop)
    })
    .await;
    let waiting = waiting.metadata.name.unwrap();
    assert_eq!(api.get(&waiting).await.unwrap().status, Default::default());

    // An unavailable token delays a request but does not fail it.
    let pending = async |name: &str, word: &str| {
        eventually(format!("{name} pending: {word}"), async || {
            let status = api.get(name).await.unwrap().status;
            let ready = condition(&status.conditions, "Ready")?;
            assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Pending"), "{ready:?}");
            assert!(status.failure_time.is_none() && condition(&status.conditions, "Approved").is_some());
            ready.message.contains(word).then_some(())
        })
        .await;
    };
    rig.take_token(true);
    set(&api, &waiting, "Approved").await;
    pending(&waiting, "it is away").await;
    let version = api.get(&waiting).await.unwrap().metadata.resource_version;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        api.get(&waiting).await.unwrap().metadata.resource_version,
        version,
        "written again for the same reason"
    );
    rig.take_token(false);
    answer(&api, &waiting).await.unwrap();

    // Nor does an issuer that is missing or selects an unknown profile.
    let early = leaf("later", "anyone", &[&a]);
    create(&cluster.client, Some(namespace), &early).await.unwrap();
    let early = early.metadata.name.unwrap();
    set(&api, &early, "Approved").await;
    pending(&early, "there is no HsmIssuer later; create it").await;
    make_issuer(&cluster, "later", "wbe").await;
    pending(&early, "the CA's configuration has no profile \"wbe\"; it has web, mesh, ca").await;
    let ready = eventually("the issuer's condition", async || issuer_ready(&cluster, "later").await).await;
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "ProfileNotFound"));
    let issuers = cluster.api::<HsmIssuer>();
    let correction = Patch::Merge(json!({"spec": {"profile": "web"}}));
    issuers.patch("later", &PatchParams::default(), &correction).await.unwrap();
    answer(&api, &early).await.unwrap();
    let ready = eventually("the issuer's condition", async || issuer_ready(&cluster, "later").await).await;
    assert_eq!(ready.status, "True");

    // Others edit the objects: a condition that was removed returns, and an answer is not given twice.
    let removed = Patch::Merge(json!({"status": {"conditions": []}}));
    issuers.patch_status("later", &PatchParams::default(), &removed).await.unwrap();
    eventually("the condition", async || issuer_ready(&cluster, "later").await).await;
    let issued = rig.intents();
    let before = api.get(&early).await.unwrap().status;
    set(&api, &early, "Approved").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = api.get(&early).await.unwrap().status;
    assert_eq!((&after.certificate, rig.intents()), (&before.certificate, issued));

    // Another CA's issuers are left alone.
    let foreign = HsmIssuer {
        metadata: named("foreign"),
        spec: IssuerSpec { profile: "web".to_owned(), class: "another".to_owned() },
        ..HsmIssuer::default()
    };
    create(&cluster.client, Some(namespace), &foreign).await.unwrap();
    // The watch reports it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let foreign = leaf("foreign", "anyone", &[&a]);
    create(&cluster.client, Some(namespace), &foreign).await.unwrap();
    set(&api, foreign.metadata.name.as_deref().unwrap(), "Approved").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = api.get(foreign.metadata.name.as_deref().unwrap()).await.unwrap().status;
    assert_eq!(status.conditions.len(), 1, "{status:?}");
    assert!(issuer_ready(&cluster, "foreign").await.is_none());
    assert!(rig.status(NAME).failures.is_empty(), "{:?}", rig.status(NAME));
    rig.end().await;
}

/// An API server that is used by no other test, since it lacks the CustomResourceDefinitions.
static BARE: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://bare.kube.test"));

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn missing_definitions_are_reported_and_picked_up_when_they_appear() {
    let cluster = Cluster::new(&BARE, "bare").await;
    let namespace = cluster.namespace.as_str();
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &toml(namespace), |_| (), None).await;
    let failures = async |count: usize| {
        eventually(format!("{count} failures"), async || (rig.status(NAME).failures.len() == count).then_some(()))
            .await;
    };
    failures(3).await;
    for (object, reason) in rig.status(NAME).failures {
        assert!(reason.contains("install its CustomResourceDefinition"), "{object}: {reason}");
    }
    assert!(rig.remark(NAME).unwrap().contains("3 failures"));
    install(&cluster, &definitions_of_cert_manager()).await;
    failures(2).await;
    install(&cluster, &definitions_of_issuers()).await;
    failures(0).await;
    make_issuer(&cluster, "web", "web").await;
    approved(&cluster, &request("r", "web", &csrs::pem(&[&format!("a.{namespace}.svc")]))).await.unwrap();

    // They are removed while the controller runs, and return.
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    api.delete("certificaterequests.cert-manager.io", &DeleteParams::default()).await.unwrap();
    failures(1).await;
    install(&cluster, &definitions_of_cert_manager()).await;
    failures(0).await;
    approved(&cluster, &request("r", "web", &csrs::pem(&[&format!("a.{namespace}.svc")]))).await.unwrap();
    rig.end().await;
}

/// An API server with the chart's admission policy, which the other tests would violate.
static GUARDED: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://guarded.kube.test"));

/// What happens to an attempt.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The API server does not accept the object.
    Rejected,
    /// The controller refuses the request.
    Refused,
    /// The certificate has the author's own name alone.
    OwnName,
    /// There is no answer.
    Waiting,
}

/// A CSR with this common name and these SANs.
fn csr(common_name: &str, names: &[SanType]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = names.to_vec();
    params.serialize_request(&p256()).unwrap().pem().unwrap()
}

/// Installs the chart's ValidatingAdmissionPolicy and its binding.
async fn install_policy(cluster: &Cluster) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests/all-features.yaml");
    for object in definitions(&file) {
        let (name, apply) = (object["metadata"]["name"].clone(), PatchParams::apply("test").force());
        let name = name.as_str().unwrap_or_default();
        match object["kind"].as_str().unwrap() {
            "ValidatingAdmissionPolicy" => {
                let api: Api<ValidatingAdmissionPolicy> = Api::all(cluster.client.clone());
                api.patch(name, &apply, &Patch::Apply(&object)).await.unwrap();
            }
            "ValidatingAdmissionPolicyBinding" => {
                let api: Api<ValidatingAdmissionPolicyBinding> = Api::all(cluster.client.clone());
                api.patch(name, &apply, &Patch::Apply(&object)).await.unwrap();
            }
            _ => {}
        }
    }
}

/// The author of CertificateRequests in a namespace may create and change them and their issuers there, and everything
/// that he creates is approved. cert-manager's webhook does not run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn author_of_a_request_obtains_no_foreign_name_through_any_field() {
    let cluster = Cluster::new(&GUARDED, "attempts").await;
    install_all(&cluster).await;
    install_policy(&cluster).await;
    let namespace = cluster.namespace.as_str();
    cluster.make_namespace("elsewhere").await;
    let rule = |namespaces: &str, who: &str, may: &str| {
        format!("[[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespaces}']\n{who}\nmay = {may}\n")
    };
    let profile = |name: &str| format!("[[kubernetes.cluster.cert_manager.profile]]\nname = '{name}'\n");
    let toml = [
        format!("[kubernetes.cluster.cert_manager]\nclass = '{namespace}'\n"),
        profile("web"),
        rule(namespace, "", "{ dns_names = ['own.test'] }"),
        rule(namespace, "username = 'victim'", "{ dns_names = ['victim.test'] }"),
        rule(namespace, "group = 'victims'", "{ dns_names = ['victim.test'] }"),
        rule("elsewhere", "", "{ dns_names = ['victim.test'] }"),
        profile("mesh"),
        rule(namespace, "username = 'victim'", "{ any_workload = { trust_domain = 'cluster.local' } }"),
        profile("ca"),
        rule(namespace, "username = 'victim'\nmax_ttl = '24h'", "{ ca = { organization = 'Victim' } }"),
    ]
    .concat();
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &toml, |_| (), None).await;
    make_issuer(&cluster, "web", "web").await;
    make_cluster_issuer(&cluster, "mesh").await;
    let mut abroad = HsmIssuer { metadata: named("abroad"), ..HsmIssuer::default() };
    abroad.spec = IssuerSpec { profile: "web".to_owned(), class: namespace.to_owned() };
    create(&cluster.client, Some("elsewhere"), &abroad).await.unwrap();
    let rights = [
        super::harness::rule("cert-manager.io", &["certificaterequests"], &["create", "get", "update", "patch"]),
        super::harness::rule(GROUP, &["hsmissuers"], &["create", "update", "patch"]),
    ];
    let inside: Vec<_> = rights.into_iter().map(|right| (namespace, right)).collect();
    let author = client_of(&cluster.user("author", &[], &inside).await).await;
    for profile in ["mesh", "ca"] {
        let spec = IssuerSpec { profile: profile.to_owned(), class: namespace.to_owned() };
        let issuer = HsmIssuer { metadata: named(profile), spec, ..HsmIssuer::default() };
        create(&author, Some(namespace), &issuer).await.unwrap();
    }
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let own = || request("x", "web", &csr("", &[dns("own.test")]));
    let victim = || request("x", "web", &csr("", &[dns("victim.test")]));
    // The API server applies a new policy after a moment.
    eventually("the policy", async || {
        let mut forged = own();
        forged.spec.username = "victim".to_owned();
        forged.metadata = ObjectMeta { generate_name: Some("policy-".to_owned()), ..ObjectMeta::default() };
        create(&author, Some(namespace), &forged).await.is_err()
    })
    .await;

    type Change = fn(&mut Value);
    let with = |request: CertificateRequest, change: Change| {
        let mut value = serde_json::to_value(request).unwrap();
        change(&mut value);
        value
    };
    let as_is: Change = |_| ();
    let asks = |names: &[SanType]| with(request("x", "web", &csr("", names)), as_is);
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let workload = || request("x", "mesh", &csr("", &[uri("spiffe://cluster.local/ns/foo/sa/bar")]));
    let ca = |issuer: &str| {
        let mut request = request("x", issuer, &ca_csr(&[]).0);
        (request.spec.is_ca, request.spec.usages) = (true, vec!["cert sign".to_owned()]);
        request
    };
    let mut by_cluster = workload();
    by_cluster.spec.issuer_ref.kind = "HsmClusterIssuer".to_owned();
    by_cluster.spec.issuer_ref.name = namespace.to_owned();
    use Outcome::{OwnName, Refused, Rejected, Waiting};
    let attempts: Vec<(&str, Value, Outcome)> = vec![
        ("his own name", with(own(), as_is), OwnName),
        ("a DNS name of another requester", with(victim(), as_is), Refused),
        ("both", asks(&[dns("own.test"), dns("victim.test")]), Refused),
        ("in upper case", asks(&[dns("VICTIM.TEST")]), Refused),
        ("with a final dot", asks(&[dns("victim.test.")]), Refused),
        ("a wildcard", asks(&[dns("*.test")]), Refused),
        ("a name below his own", asks(&[dns("a.own.test")]), Refused),
        ("an IP address", asks(&[dns("own.test"), SanType::IpAddress("10.0.0.1".parse().unwrap())]), Refused),
        (
            "an e-mail address",
            asks(&[dns("own.test"), SanType::Rfc822Name("a@victim.test".try_into().unwrap())]),
            Refused,
        ),
        ("a DNS name as a URI", asks(&[uri("https://victim.test")]), Refused),
        ("a workload", asks(&[uri("spiffe://cluster.local/ns/foo/sa/bar")]), Refused),
        ("no name", asks(&[]), Refused),
        ("the common name", with(request("x", "web", &csr("victim.test", &[dns("own.test")])), as_is), OwnName),
        ("the common name alone", with(request("x", "web", &csr("victim.test", &[])), as_is), Refused),
        ("spec.username", with(victim(), |request| request["spec"]["username"] = "victim".into()), Rejected),
        ("spec.groups", with(victim(), |request| request["spec"]["groups"] = json!(["victims"])), Rejected),
        (
            "spec.groups with his own",
            with(victim(), |request| {
                request["spec"]["groups"] = json!(["system:authenticated", "victims"]);
            }),
            Rejected,
        ),
        (
            "spec.uid and spec.extra",
            with(victim(), |request| {
                request["spec"]["uid"] = "victim".into();
                request["spec"]["extra"] =
                    json!({"username": ["victim"], "authentication.kubernetes.io/pod-name": ["victim"]});
            }),
            Refused,
        ),
        (
            "annotations",
            with(own(), |request| {
                request["metadata"]["annotations"] = json!({
                    "cert-manager.io/common-name": "victim.test",
                    "cert-manager.io/alt-names": "victim.test",
                    "cert-manager.io/uri-sans": "spiffe://cluster.local/ns/foo/sa/bar",
                    "cert-manager.io/subject-organizations": "victim.test",
                });
            }),
            OwnName,
        ),
        (
            "labels",
            with(own(), |request| {
                request["metadata"]["labels"] = json!({"cert-manager.io/common-name": "victim.test"});
            }),
            OwnName,
        ),
        (
            "an owner",
            with(victim(), |request| {
                request["metadata"]["ownerReferences"] =
                    json!([{"apiVersion": "v1", "kind": "ServiceAccount", "name": "victim", "uid": "1"}]);
            }),
            Refused,
        ),
        (
            "another namespace",
            with(victim(), |request| request["metadata"]["namespace"] = "elsewhere".into()),
            Rejected,
        ),
        (
            "an issuer of another namespace",
            with(victim(), |request| {
                request["spec"]["issuerRef"]["name"] = "abroad".into();
            }),
            Waiting,
        ),
        (
            "its path",
            with(victim(), |request| {
                request["spec"]["issuerRef"]["name"] = "elsewhere/abroad".into();
            }),
            Waiting,
        ),
        ("an issuer of his own for another's profile", with(workload(), as_is), Refused),
        ("a cluster-wide issuer", with(by_cluster, as_is), Refused),
        (
            "a kind of cert-manager",
            with(victim(), |request| request["spec"]["issuerRef"]["kind"] = "ClusterIssuer".into()),
            Refused,
        ),
        ("a CA", with(ca("web"), as_is), Refused),
        ("a CA of another requester", with(ca("ca"), as_is), Refused),
        (
            "a CA without isCA",
            with(ca("web"), |request| {
                request["spec"].as_object_mut().unwrap().remove("isCA");
                request["spec"]["usages"] = json!(["digital signature"]);
            }),
            Refused,
        ),
        ("the usage of a CA", with(own(), |request| request["spec"]["usages"] = json!(["cert sign"])), Refused),
        ("ten years", with(own(), |request| request["spec"]["duration"] = "87600h".into()), Refused),
        (
            "a status",
            with(victim(), |request| {
                request["status"] = json!({
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Issued"}],
                    "certificate": STANDARD.encode("victim.test"),
                });
            }),
            Refused,
        ),
        (
            "a name with a path",
            with(victim(), |request| request["metadata"]["name"] = "../elsewhere/x".into()),
            Rejected,
        ),
    ];
    let api = cluster.api::<CertificateRequest>();
    let post = async |mut value: Value| {
        (value["apiVersion"], value["kind"]) = ("cert-manager.io/v1".into(), "CertificateRequest".into());
        let place = value["metadata"]["namespace"].as_str().unwrap_or(namespace).to_owned();
        let path = Request::new(CertificateRequest::url_path(&(), Some(&place)));
        let posted = path.create(&PostParams::default(), value.to_string().into_bytes()).unwrap();
        author.request::<Value>(posted).await
    };
    let outcome = async |name: &str| {
        set(&api, name, "Approved").await;
        let ready = eventually(format!("an answer to {name}"), async || {
            let status = api.get(name).await.unwrap().status;
            condition(&status.conditions, "Ready").cloned()
        })
        .await;
        match ready.reason.as_str() {
            "Issued" => {
                let (signed, _) = answer(&api, name).await.unwrap();
                let text = openssl(&[&signed], &["x509", "-in", "0", "-noout", "-text"]).unwrap();
                assert!(text.contains("DNS:own.test\n") && text.contains("CA:FALSE"), "{text}");
                assert!(!text.to_lowercase().contains("victim") && !text.contains("spiffe"), "{text}");
                OwnName
            }
            "Pending" => Waiting,
            reason => {
                assert_eq!(reason, "Failed");
                assert!(api.get(name).await.unwrap().status.certificate.is_none());
                Refused
            }
        }
    };
    for (number, (what, mut value, expected)) in attempts.into_iter().enumerate() {
        let name = format!("attempt-{number}");
        if value["metadata"]["name"] == "x" {
            value["metadata"]["name"] = name.as_str().into();
        }
        let actual = match post(value).await {
            Err(_) => Rejected,
            Ok(_) => outcome(&name).await,
        };
        assert_eq!(actual, expected, "{what}");
    }

    // Changes after the creation, before and after an approval.
    let change = async |name: &str, spec: Value| {
        let own: Api<CertificateRequest> = Api::namespaced(author.clone(), namespace);
        own.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await
    };
    let mut foreign = with(victim(), |request| {
        request["spec"]["issuerRef"] = json!({"group": "cert-manager.io", "kind": "Issuer", "name": "web"});
        request["spec"]["username"] = "victim".into();
    });
    foreign["metadata"]["name"] = "changed".into();
    post(foreign).await.unwrap();
    change("changed", json!({"issuerRef": {"group": GROUP, "kind": "HsmIssuer"}})).await.unwrap_err();
    let mut later = with(own(), as_is);
    later["metadata"]["name"] = "later".into();
    post(later).await.unwrap();
    for spec in [json!({"username": "victim"}), json!({"request": victim().spec.request}), json!({"duration": "2h"})] {
        change("later", spec).await.unwrap_err();
    }
    assert_eq!(outcome("later").await, OwnName);
    let status = json!({"status": {"conditions": []}});
    let own: Api<CertificateRequest> = Api::namespaced(author.clone(), namespace);
    own.patch_status("later", &PatchParams::default(), &Patch::Merge(status)).await.unwrap_err();
    rig.end().await;
}
