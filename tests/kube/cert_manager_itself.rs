//! cert-manager's own controllers and webhook (tests/cert-manager) on an API server of their own, with the daemon as the
//! external issuer: a Certificate becomes a Secret.

use std::{collections::BTreeMap, fs, net::TcpListener, sync::LazyLock, time::Duration};

use istio_hsm_ca::kubernetes::cert_manager::CertificateRequest;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        coordination::v1::Lease,
        core::v1::Secret,
    },
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    cert_manager::{self, create, install_all, make_cluster_issuer, make_issuer, request},
    csrs,
    harness::{Cluster, client_of, eventually, rule, site},
    rig::{Rig, certificate, openssl},
};
use testkit::{
    api_server::{ApiServer, Program, Version},
    plug_in::PlugIn,
};

/// An API server on which cert-manager runs.
static WITH: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://cert-manager.kube.test"));

/// The same with the newest Kubernetes.
static WITH_NEWEST: LazyLock<ApiServer> =
    LazyLock::new(|| ApiServer::with("https://cert-manager-newest.kube.test", Version::Newest, true));

/// The same for the test that kills leaders.
static REPLICAS: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://cert-manager-replicas.kube.test"));

/// cert-manager in a cluster.
struct CertManager {
    _controllers: Program,
    _webhook: Program,
    files: tempfile::TempDir,
    /// The user name of its controllers.
    username: String,
}

impl CertManager {
    /// Starts the webhook, registers it, and starts the controllers under an account with the rights of cert-manager's
    /// chart, that to approve for this CA's issuers among them.
    async fn start(cluster: &Cluster) -> Self {
        install_all(cluster).await;
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name: &str| files.path().join(name).display().to_string();
        let program = cert_manager::built().join("cert-manager").display().to_string();
        let (certificate, key) = cluster.server.user("cert-manager-webhook", None);
        fs::write(path("tls.crt"), certificate).unwrap();
        fs::write(path("tls.key"), key).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let admin = cluster.admin().display().to_string();
        let command = [&program, "webhook", &admin, &port.to_string(), &path("tls.crt"), &path("tls.key")];
        let webhook = Program::start(&command.map(str::to_owned), files.path(), "webhook.log");
        eventually("the webhook", async || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        // As in cert-manager's chart.
        let hook = |kind: &str, name: &str, path: &str, operations: Value, resources: Value| {
            let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &cluster.server.ca);
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": kind,
                "metadata": {"name": "cert-manager-webhook"},
                "webhooks": [{
                    "name": name,
                    "rules": [{
                        "apiGroups": ["cert-manager.io"], "apiVersions": ["v1"], "operations": operations, "resources": resources
                    }],
                    "admissionReviewVersions": ["v1"],
                    "matchPolicy": "Equivalent",
                    "failurePolicy": "Fail",
                    "sideEffects": "None",
                    "clientConfig": {"url": format!("https://127.0.0.1:{port}{path}"), "caBundle": bundle},
                }],
            })
        };
        let (kind, name) = ("MutatingWebhookConfiguration", "webhook.cert-manager.io");
        let mutating = hook(kind, name, "/mutate", json!(["CREATE"]), json!(["certificaterequests"]));
        let mutating: MutatingWebhookConfiguration = serde_json::from_value(mutating).unwrap();
        Api::all(cluster.client.clone()).create(&PostParams::default(), &mutating).await.unwrap();
        let validating =
            hook("ValidatingWebhookConfiguration", name, "/validate", json!(["CREATE", "UPDATE"]), json!(["*/*"]));
        let validating: ValidatingWebhookConfiguration = serde_json::from_value(validating).unwrap();
        Api::all(cluster.client.clone()).create(&PostParams::default(), &validating).await.unwrap();

        let mut approve = rule("cert-manager.io", &["signers"], &["approve"]);
        approve.resource_names =
            Some(["hsmissuers.istio-hsm-ca.dev/*", "hsmclusterissuers.istio-hsm-ca.dev/*"].map(str::to_owned).to_vec());
        let rights = [
            rule("cert-manager.io", &["*"], &["get", "list", "watch", "create", "update", "patch", "delete"]),
            rule("", &["secrets"], &["get", "list", "watch", "create", "update", "patch", "delete"]),
            rule("", &["events"], &["create", "patch"]),
            approve,
        ];
        let kubeconfig = cluster.user("cert-manager", &rights, &[]).await;
        let command = [&program, "controllers", &kubeconfig.display().to_string()];
        let controllers = Program::start(&command.map(str::to_owned), files.path(), "controllers.log");
        let username = format!("system:serviceaccount:{}:cert-manager", cluster.namespace);
        Self { _controllers: controllers, _webhook: webhook, files, username }
    }

    /// The last output of its programs.
    fn log(&self) -> String {
        let text = ["webhook.log", "controllers.log"]
            .map(|name| fs::read_to_string(self.files.path().join(name)).unwrap_or_default());
        let lines: Vec<&str> = text.iter().flat_map(|text| text.lines()).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn certificates(cluster: &Cluster) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "cert-manager.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "cert-manager.io/v1".to_owned(),
        kind: "Certificate".to_owned(),
        plural: "certificates".to_owned(),
    };
    Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource)
}

/// Creates a Certificate of cert-manager, whose Secret has the same name.
async fn ask(cluster: &Cluster, name: &str, kind: &str, issuer: &str, spec: Value) {
    let mut all = json!({
        "secretName": name,
        "duration": "1h",
        "issuerRef": {"group": "istio-hsm-ca.dev", "kind": kind, "name": issuer},
        "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Always"},
    });
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let object = json!({"metadata": {"name": name}, "spec": all});
    let mut object: DynamicObject = serde_json::from_value(object).unwrap();
    object.types = Some(kube::core::TypeMeta { api_version: "cert-manager.io/v1".into(), kind: "Certificate".into() });
    certificates(cluster).create(&PostParams::default(), &object).await.unwrap();
}

/// The Certificate's condition of a type.
async fn condition(cluster: &Cluster, name: &str, type_: &str) -> Option<Value> {
    let certificate = certificates(cluster).get(name).await.unwrap();
    let conditions = certificate.data["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|condition| condition["type"] == type_)
}

/// The Secret of a Certificate that is ready.
async fn secret(cluster: &Cluster, manager: &CertManager, name: &str) -> BTreeMap<String, Vec<u8>> {
    let what = std::fmt::from_fn(|f| write!(f, "the Secret {name}\n{}", manager.log()));
    eventually(what, async || {
        let ready = condition(cluster, name, "Ready").await?;
        if ready["status"] != "True" {
            return None;
        }
        let data = cluster.api::<Secret>().get_opt(name).await.unwrap()?.data?;
        Some(data.into_iter().map(|(key, ByteString(value))| (key, value)).collect())
    })
    .await
}

/// Why a Certificate was not issued.
async fn failure(cluster: &Cluster, manager: &CertManager, name: &str) -> String {
    let what = std::fmt::from_fn(|f| write!(f, "the failure of {name}\n{}", manager.log()));
    eventually(what, async || {
        let issuing = condition(cluster, name, "Issuing").await?;
        (issuing["status"] == "False").then(|| issuing["message"].as_str().unwrap().to_owned())
    })
    .await
}

/// openssl accepts the certificate under ca.crt, and the key is the certificate's.
fn verify(secret: &BTreeMap<String, Vec<u8>>, purpose: &str, expected: &str) -> String {
    let (chain, key, ca) = (&secret["tls.crt"], &secret["tls.key"], &secret["ca.crt"]);
    openssl(&[ca, chain], &["verify", "-CAfile", "0", "-untrusted", "1", "-purpose", purpose, "1"]).unwrap();
    let of_certificate = openssl(&[chain], &["x509", "-in", "0", "-noout", "-pubkey"]).unwrap();
    assert_eq!(of_certificate, openssl(&[key], &["pkey", "-in", "0", "-pubout"]).unwrap());
    let text = openssl(&[chain], &["x509", "-in", "0", "-noout", "-text", "-nameopt", "space_eq"]).unwrap();
    assert!(text.contains(expected), "{text}");
    text
}

fn toml(cluster: &Cluster, manager: &CertManager) -> String {
    let (namespace, username) = (&cluster.namespace, &manager.username);
    let rule = format!(
        "[[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\nusername = '{username}'\n"
    );
    format!(
        "[kubernetes.cluster.cert_manager]\nclass = '{namespace}'\n\
         [[kubernetes.cluster.cert_manager.profile]]\nname = 'web'\n\
         {rule}may = {{ dns_names = ['a.{namespace}.svc', 'b.{namespace}.svc'] }}\n\
         {rule}may = 'namespace_workloads'\n\
         [[kubernetes.cluster.cert_manager.profile]]\nname = 'ca'\n\
         {rule}may = {{ ca = {{ organization = 'Linkerd', dns_names = ['identity.linkerd.cluster.local'] }} }}\n\
         max_ttl = '48h'\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server and cert-manager's code: make test-kube"]
async fn certificates_become_secrets_and_are_renewed() {
    certificates_become_secrets(&WITH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server and cert-manager's code: make test-kube"]
async fn certificates_become_secrets_and_are_renewed_on_the_newest_api_server() {
    certificates_become_secrets(&WITH_NEWEST).await;
}

async fn certificates_become_secrets(server: &'static ApiServer) {
    let cluster = Cluster::new(server, "manager").await;
    let namespace = cluster.namespace.as_str();
    let manager = CertManager::start(&cluster).await;
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &toml(&cluster, &manager), |_| (), None).await;
    for profile in ["web", "ca"] {
        make_issuer(&cluster, profile, profile).await;
    }
    make_cluster_issuer(&cluster, "web").await;
    let (a, b) = (format!("a.{namespace}.svc"), format!("b.{namespace}.svc"));

    // cert-manager's defaults for everything else, usages and common name among them.
    ask(&cluster, "web", "HsmIssuer", "web", json!({"commonName": a, "dnsNames": [a, b]})).await;
    let web = secret(&cluster, &manager, "web").await;
    let text = verify(&web, "sslserver", &format!("DNS:{a}, DNS:{b}"));
    assert!(text.contains("X509v3 Subject Alternative Name: critical"), "the subject is empty: {text}");
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/web");
    ask(&cluster, "workload", "HsmClusterIssuer", namespace, json!({"uris": [id]})).await;
    verify(&secret(&cluster, &manager, "workload").await, "sslclient", &format!("URI:{id}"));

    // Renewed by cert-manager, with another key, ten seconds after the issuance.
    ask(&cluster, "short", "HsmIssuer", "web", json!({"dnsNames": [a], "renewBefore": "59m50s"})).await;
    let first = secret(&cluster, &manager, "short").await;
    let second = eventually("a renewal", async || {
        let now = secret(&cluster, &manager, "short").await;
        (now["tls.crt"] != first["tls.crt"]).then_some(now)
    })
    .await;
    certificates(&cluster).delete("short", &DeleteParams::default()).await.unwrap();
    verify(&second, "sslserver", &format!("DNS:{a}"));
    assert_ne!(first["tls.key"], second["tls.key"]);
    assert_ne!(certificate(&first["tls.crt"]).0, certificate(&second["tls.crt"]).0);

    // A CA certificate as Linkerd's documentation requests it.
    let linkerd = json!({
        "commonName": "identity.linkerd.cluster.local", "dnsNames": ["identity.linkerd.cluster.local"], "isCA": true,
        "duration": "48h", "renewBefore": "25h", "usages": ["cert sign", "crl sign", "server auth", "client auth"],
    });
    ask(&cluster, "linkerd-identity-issuer", "HsmIssuer", "ca", linkerd.clone()).await;
    let issuer = secret(&cluster, &manager, "linkerd-identity-issuer").await;
    verify(&issuer, "sslserver", "CA:TRUE, pathlen:0");
    verify(&issuer, "sslserver", "DNS:identity.linkerd.cluster.local");

    // Refused, and cert-manager shows why.
    ask(&cluster, "foreign", "HsmIssuer", "web", json!({"dnsNames": [a, "bank.example.com"]})).await;
    let why = failure(&cluster, &manager, "foreign").await;
    assert!(why.contains("the request contains the name DNS:bank.example.com"), "{why}");
    ask(&cluster, "no-ca", "HsmIssuer", "web", linkerd).await;
    let why = failure(&cluster, &manager, "no-ca").await;
    assert!(why.contains("no rule of the profile web allows"), "{why}");
    for name in ["foreign", "no-ca"] {
        assert!(
            !cluster
                .api::<Secret>()
                .get(name)
                .await
                .unwrap_or_default()
                .data
                .is_some_and(|data| data.contains_key("tls.crt"))
        );
    }

    // While the token is away, cert-manager waits.
    rig.take_token(true);
    ask(&cluster, "later", "HsmIssuer", "web", json!({"dnsNames": [a]})).await;
    eventually("the pending request", async || {
        let requests = cluster.api::<CertificateRequest>().list(&Default::default()).await.unwrap();
        requests.into_iter().any(|request| {
            let ready = istio_hsm_ca::kubernetes::cert_manager::condition(&request.status.conditions, "Ready");
            ready.is_some_and(|ready| ready.reason == "Pending" && ready.message.contains("it is away"))
        })
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(condition(&cluster, "later", "Issuing").await.unwrap()["status"], "True");
    rig.take_token(false);
    verify(&secret(&cluster, &manager, "later").await, "sslserver", &format!("DNS:{a}"));

    // The webhook replaces a forged requester.
    let may_ask = [rule("cert-manager.io", &["certificaterequests"], &["create"])];
    let stranger = client_of(&cluster.user("stranger", &may_ask, &[]).await).await;
    let mut forged = request("forged", "web", &csrs::pem(&[&a]));
    (forged.spec.username, forged.spec.groups) = (manager.username.clone(), vec!["system:masters".to_owned()]);
    let created = create(&stranger, Some(namespace), &forged).await.unwrap();
    let true_name = format!("system:serviceaccount:{namespace}:stranger");
    assert_eq!(created["spec"]["username"], true_name);
    let why = cert_manager::answer(&cluster.api(), "forged").await.unwrap_err();
    assert!(why.contains(&format!("no rule of the profile web allows \"{true_name}\"")), "{why}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server and cert-manager's code: make test-kube"]
async fn other_replica_signs_after_the_leader_is_killed() {
    let cluster = Cluster::new(&REPLICAS, "signers").await;
    let namespace = cluster.namespace.as_str();
    let manager = CertManager::start(&cluster).await;
    let toml = |identity: &str| {
        format!(
            "[token_host]\nallow_intermediate = true\n[kubernetes]\nnamespace = '{namespace}'\nidentity = '{identity}'\n\
             [[kubernetes.cluster]]\nkubeconfig = '{}'\n{}",
            cluster.admin().display(),
            toml(&cluster, &manager)
        )
    };
    let one = site();
    let two = one.duplicate();
    let mut first = one.serve(&toml("one"));
    let holder = async |wanted: &str| {
        eventually(format!("{wanted} leads"), async || {
            let lease = cluster.api::<Lease>().get_opt("istio-hsm-ca").await.unwrap()?;
            (lease.spec?.holder_identity? == wanted).then_some(())
        })
        .await;
    };
    holder("one").await;
    let second = two.serve(&toml("two"));
    make_issuer(&cluster, "web", "web").await;
    make_issuer(&cluster, "ca", "ca").await;
    let a = format!("a.{namespace}.svc");
    ask(&cluster, "before", "HsmIssuer", "web", json!({"dnsNames": [a]})).await;
    let before = secret(&cluster, &manager, "before").await;
    // The token host permits the names and the lifetime that the rules mention.
    let ca = json!({"dnsNames": ["identity.linkerd.cluster.local"], "isCA": true, "duration": "48h", "usages": ["cert sign"]});
    ask(&cluster, "ca", "HsmIssuer", "ca", ca).await;
    verify(&secret(&cluster, &manager, "ca").await, "sslserver", "CA:TRUE, pathlen:0");

    first.signal(Signal::SIGKILL);
    first.ended();
    ask(&cluster, "after", "HsmIssuer", "web", json!({"dnsNames": [a]})).await;
    verify(&secret(&cluster, &manager, "after").await, "sslserver", &format!("DNS:{a}"));
    holder("two").await;
    assert_eq!(secret(&cluster, &manager, "before").await["tls.crt"], before["tls.crt"]);
    let requests = cluster.api::<CertificateRequest>().list(&Default::default()).await.unwrap();
    assert_eq!(requests.items.len(), 3, "nothing was requested twice");
    let readyz = second.get("/readyz").1;
    assert!(readyz.contains("controller certificate_requests in") && second.get("/readyz").0 == 200, "{readyz}");
}
