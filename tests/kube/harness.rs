//! Operations in a cluster: namespaces, service accounts, pods, JWTs, permissions, and the daemon in it.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};
pub use testkit::wait::eventually;

use bench::agent;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Pod, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use testkit::{
    api_server::ApiServer,
    daemon::{Ask, Daemon, SERVER, Site},
    plug_in::PlugIn,
};

/// A test's namespace, and the administrator's client. A client belongs to the runtime that created it.
pub struct Cluster {
    pub server: &'static ApiServer,
    pub client: Client,
    /// The test's namespace.
    pub namespace: String,
    files: tempfile::TempDir,
}

impl Cluster {
    /// Creates a namespace whose name begins with `name`.
    pub async fn new(server: &'static ApiServer, name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (certificate, key) = server.user("admin", Some("system:masters"));
        let user = json!({"client-certificate-data": base64(&certificate), "client-key-data": base64(&key)});
        let client = client(&kubeconfig(server, &user)).await;
        let this = Self { server, client, namespace, files };
        this.make_namespace(&this.namespace).await;
        this
    }

    /// Creates a namespace.
    pub async fn make_namespace(&self, name: &str) {
        let namespace = Namespace { metadata: named(name), ..Namespace::default() };
        Api::<Namespace>::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    /// An API in the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a service account in the test's namespace.
    pub async fn account(&self, name: &str) {
        let account = ServiceAccount { metadata: named(name), ..ServiceAccount::default() };
        self.api::<ServiceAccount>().create(&PostParams::default(), &account).await.unwrap();
    }

    /// Creates a running pod on a node.
    pub async fn pod(&self, name: &str, account: &str, node: &str) -> Pod {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "serviceAccountName": account,
                "nodeName": if node.is_empty() { None } else { Some(node) },
                "containers": [{"name": "c", "image": "none.invalid/none"}],
            },
        }))
        .unwrap();
        let pod = self.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
        if !node.is_empty() {
            self.phase(name, "Running").await;
        }
        pod
    }

    /// Sets a pod's phase, as a kubelet does.
    pub async fn phase(&self, pod: &str, phase: &str) {
        let patch = Patch::Merge(json!({"status": {"phase": phase}}));
        self.api::<Pod>().patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Deletes a pod immediately, as after its node has terminated it.
    pub async fn delete_pod(&self, name: &str) {
        self.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    /// A JWT as projected by the kubelet, optionally bound to a pod.
    pub async fn token(&self, account: &str, audience: &str, pod: Option<&Pod>) -> String {
        self.try_token(account, audience, pod).await.unwrap()
    }

    pub async fn try_token(&self, account: &str, audience: &str, pod: Option<&Pod>) -> Result<String, kube::Error> {
        let bound = |pod: &Pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.into()]),
                bound_object_ref: pod.map(bound),
                expiration_seconds: Some(3600),
                attestations: None,
            }),
            ..TokenRequest::default()
        };
        let accounts = self.api::<ServiceAccount>();
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(made.status.unwrap().token.unwrap())
    }

    /// A kubeconfig of a service account in this namespace that has exactly these permissions, in the whole cluster and
    /// in namespaces.
    pub async fn user(&self, account: &str, everywhere: &[PolicyRule], inside: &[(&str, PolicyRule)]) -> PathBuf {
        self.account(account).await;
        self.grant(account, "all", everywhere, inside).await;
        let token = self.token(account, self.server.issuer, None).await;
        self.kubeconfig(account, &json!({"token": token}))
    }

    /// Grants permissions to a service account, in the whole cluster and in namespaces, with a name for them.
    pub async fn grant(&self, account: &str, what: &str, everywhere: &[PolicyRule], inside: &[(&str, PolicyRule)]) {
        let name = format!("{}-{account}-{what}", self.namespace);
        let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": self.namespace}]);
        let made = PostParams::default();
        if !everywhere.is_empty() {
            let role =
                ClusterRole { metadata: named(&name), rules: Some(everywhere.to_vec()), ..ClusterRole::default() };
            Api::<ClusterRole>::all(self.client.clone()).create(&made, &role).await.unwrap();
            let binding: ClusterRoleBinding = serde_json::from_value(json!({
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": subject,
            }))
            .unwrap();
            Api::<ClusterRoleBinding>::all(self.client.clone()).create(&made, &binding).await.unwrap();
        }
        for (number, (namespace, rule)) in inside.iter().enumerate() {
            let name = format!("{name}-{number}");
            let role = Role { metadata: named(&name), rules: Some(vec![rule.clone()]) };
            Api::<Role>::namespaced(self.client.clone(), namespace).create(&made, &role).await.unwrap();
            let binding: RoleBinding = serde_json::from_value(json!({
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": subject,
            }))
            .unwrap();
            Api::<RoleBinding>::namespaced(self.client.clone(), namespace).create(&made, &binding).await.unwrap();
        }
    }

    /// A kubeconfig of the administrator.
    pub fn admin(&self) -> PathBuf {
        self.user_with_certificate("admin", "system:masters")
    }

    /// A kubeconfig of a user with a client certificate.
    pub fn user_with_certificate(&self, name: &str, group: &str) -> PathBuf {
        let (certificate, key) = self.server.user(name, Some(group));
        let user = json!({"client-certificate-data": base64(&certificate), "client-key-data": base64(&key)});
        self.kubeconfig(name, &user)
    }

    fn kubeconfig(&self, name: &str, user: &serde_json::Value) -> PathBuf {
        let file = self.files.path().join(format!("{name}.kubeconfig"));
        fs::write(&file, kubeconfig(self.server, user)).unwrap();
        file
    }
}

/// An RBAC rule; the core group is "".
pub fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(texts(resources)),
        verbs: texts(verbs),
        ..PolicyRule::default()
    }
}

/// Permissions for TokenReview.
pub fn may_review() -> PolicyRule {
    rule("authentication.k8s.io", &["tokenreviews"], &["create"])
}

/// Permissions for node impersonation.
pub fn may_see_pods() -> PolicyRule {
    rule("", &["pods"], &["get", "list", "watch"])
}

/// Metadata with only a name.
pub fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

fn kubeconfig(server: &ApiServer, user: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {
            "server": server.url, "certificate-authority-data": base64(&server.ca)
        }}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    })
    .to_string()
}

/// A client for a kubeconfig's user.
pub async fn client_of(kubeconfig: &std::path::Path) -> Client {
    client(&fs::read_to_string(kubeconfig).unwrap()).await
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The URI name of a leaf.
fn uri(leaf: &str) -> String {
    use x509_cert::{
        Certificate,
        der::DecodePem,
        ext::pkix::{SubjectAltName, name::GeneralName},
    };
    let leaf = Certificate::from_pem(leaf).unwrap();
    let (_, SubjectAltName(names)) = leaf.tbs_certificate().get_extension().unwrap().unwrap();
    let [GeneralName::UniformResourceIdentifier(uri)] = names.as_slice() else { panic!("{names:?}") };
    uri.to_string()
}

/// A site with a plug-in CA in its token.
pub fn site() -> Site {
    Site::new(&PlugIn::intermediate())
}

/// A cluster in the configuration: kubeconfig, issuer, and additional TOML.
pub fn cluster_toml(name: &str, kubeconfig: &std::path::Path, more: &str) -> String {
    format!("[[kubernetes.cluster]]\nname = '{name}'\nkubeconfig = '{}'\n{more}\n", kubeconfig.display())
}

/// Requests an identity like Istio's agent; returns the first URI of the leaf, or the name of the code.
pub async fn ask(daemon: &Daemon, token: &str, cluster: &str, identity: &str) -> String {
    answer(daemon, Ask::new(identity).token(token).header("clusterid", cluster), identity).await
}

/// Requests an identity by impersonation, like ztunnel.
pub async fn ask_for(daemon: &Daemon, token: &str, identity: &str) -> String {
    // The name in the CSR must be valid; the requested identity need not be.
    let named = if identity.parse::<pki::identity::SpiffeId>().is_ok() { identity } else { "spiffe://a/ns/b/sa/c" };
    let ask = Ask::new(named);
    answer(daemon, ask.token(token).metadata("ImpersonatedIdentity", identity), identity).await
}

async fn answer(daemon: &Daemon, ask: Ask, identity: &str) -> String {
    let tls = agent::Tls::new(daemon.roots.as_bytes(), SERVER, None).unwrap();
    let channel = agent::connect(daemon.address, &tls).await.unwrap();
    match ask.send(channel).await {
        Ok(chain) => {
            assert!(chain.len() >= 2);
            assert_eq!(uri(&chain[0]), identity);
            "issued".to_owned()
        }
        Err(status) => format!("{:?}", status.code()),
    }
}
