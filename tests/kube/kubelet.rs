//! Plays the part of a kubelet: creates PodCertificateRequests as the node that the pod runs on, under the admission
//! plugin NodeRestriction (Kubernetes: pkg/kubelet/podcertificate).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api, ResourceExt,
    api::PostParams,
    core::{ApiResource, DynamicObject},
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};

use super::harness::{Cluster, client_of, eventually, named};
use testkit::plug_in::p256;

/// A node of the test's cluster.
pub struct Kubelet<'a> {
    cluster: &'a Cluster,
    node: Node,
    requests: Api<DynamicObject>,
}

/// The interface of PodCertificateRequests in the version that the API server has.
pub fn resource(cluster: &Cluster, kind: &str, plural: &str) -> ApiResource {
    let version = cluster.server.certificates;
    ApiResource {
        group: "certificates.k8s.io".into(),
        version: version.into(),
        api_version: format!("certificates.k8s.io/{version}"),
        kind: kind.into(),
        plural: plural.into(),
    }
}

/// The answer to a PodCertificateRequest.
#[derive(Debug)]
pub struct Answer {
    pub condition: String,
    pub reason: String,
    pub message: String,
    /// The whole status.
    pub status: Value,
}

impl Answer {
    pub fn chain(&self) -> &str {
        assert_eq!(self.condition, "Issued", "{self:?}");
        self.status["certificateChain"].as_str().unwrap()
    }

    /// A time of the status, in seconds since 1970.
    pub fn time(&self, field: &str) -> i64 {
        self.status[field].as_str().unwrap().parse::<k8s_openapi::jiff::Timestamp>().unwrap().as_second()
    }

    /// Checks that it is a denial with this reason and these words.
    pub fn denied(&self, reason: &str, words: &str) {
        assert_eq!((self.condition.as_str(), self.reason.as_str()), ("Denied", reason), "{self:?}");
        assert!(self.message.contains(words), "{self:?}");
        assert!(self.status.get("certificateChain").is_none(), "{self:?}");
    }
}

/// A DER request without any name, as a kubelet makes it.
pub fn stub(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

/// Merges a JSON document into another (RFC 7396).
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            patch.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, patch) => *into = patch,
    }
}

impl<'a> Kubelet<'a> {
    /// The node of the test's namespace.
    pub async fn start(cluster: &'a Cluster) -> Self {
        let name = format!("{}-node", cluster.namespace);
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let node = match nodes.get_opt(&name).await.unwrap() {
            Some(node) => node,
            None => {
                let node = Node { metadata: named(&name), ..Node::default() };
                nodes.create(&PostParams::default(), &node).await.unwrap()
            }
        };
        let kubeconfig = cluster.user_with_certificate(&format!("system:node:{name}"), "system:nodes");
        let requests = resource(cluster, "PodCertificateRequest", "podcertificaterequests");
        let requests = Api::namespaced_with(client_of(&kubeconfig).await, &cluster.namespace, &requests);
        Self { cluster, node, requests }
    }

    /// The PodCertificateRequests of the test's namespace, for the administrator.
    pub fn requests(cluster: &Cluster) -> Api<DynamicObject> {
        let resource = resource(cluster, "PodCertificateRequest", "podcertificaterequests");
        Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource)
    }

    /// A pod on this node with a volume that asks the signer for a certificate. Creates the account if necessary.
    pub async fn pod(&self, name: &str, account: &str, signer: &str, labels: Value) -> Pod {
        if self.cluster.api::<ServiceAccount>().get_opt(account).await.unwrap().is_none() {
            self.cluster.account(account).await;
        }
        let source = json!({"podCertificate": {
            "signerName": signer, "keyType": "ECDSAP256", "credentialBundlePath": "bundle.pem",
        }});
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "serviceAccountName": account,
                "nodeName": self.node.name_any(),
                "containers": [{"name": "c", "image": "none.invalid/none"}],
                "volumes": [{"name": "identity", "projected": {"sources": [source]}}],
            },
        }))
        .unwrap();
        self.cluster.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Creates the request for a pod's certificate, with changes; returns its name. A node learns of a pod before the API
    /// server's admission does, so a kubelet retries.
    pub async fn request(&self, pod: &Pod, changes: Value) -> Result<String, kube::Error> {
        let mut last = None;
        for _ in 0..40 {
            match self.try_request(pod, changes.clone()).await {
                Err(kube::Error::Api(status)) if status.message.contains("retrieving") || status.code >= 500 => {
                    last = Some(kube::Error::Api(status));
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                result => return result,
            }
        }
        Err(last.unwrap())
    }

    /// [`Self::request`] without retries.
    pub async fn try_request(&self, pod: &Pod, changes: Value) -> Result<String, kube::Error> {
        let spec = pod.spec.as_ref().unwrap();
        let account = spec.service_account_name.clone().unwrap();
        let account_uid = self.cluster.api::<ServiceAccount>().get(&account).await.unwrap().uid();
        let signer = spec.volumes.iter().flatten().flat_map(|volume| &volume.projected).find_map(|projected| {
            Some(projected.sources.as_ref()?.first()?.pod_certificate.as_ref()?.signer_name.clone())
        });
        let mut request = json!({
            "metadata": {"generateName": "req-"},
            "spec": {
                "signerName": signer.unwrap(),
                "podName": pod.name_any(),
                "podUID": pod.uid(),
                "serviceAccountName": account,
                "serviceAccountUID": account_uid,
                "nodeName": self.node.name_any(),
                "nodeUID": self.node.uid(),
                "maxExpirationSeconds": 86_400,
                "stubPKCS10Request": base64(&stub(&p256())),
            },
        });
        merge(&mut request, changes);
        let request: DynamicObject = serde_json::from_value(request).unwrap();
        Ok(self.requests.create(&PostParams::default(), &request).await?.name_any())
    }

    /// The answer to a request.
    pub async fn answer(&self, name: &str) -> Answer {
        eventually("an answer", async || {
            let status = self.status(name).await;
            let condition = status["conditions"].get(0)?.clone();
            assert_eq!(condition["status"], "True");
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            Some(Answer { condition: text("type"), reason: text("reason"), message: text("message"), status })
        })
        .await
    }

    /// The status of a request.
    pub async fn status(&self, name: &str) -> Value {
        let request = Self::requests(self.cluster).get(name).await.unwrap();
        request.data.get("status").cloned().unwrap_or_default()
    }

    /// Requests and returns the answer.
    pub async fn certificate(&self, pod: &Pod, changes: Value) -> Answer {
        let name = self.request(pod, changes).await.unwrap();
        self.answer(&name).await
    }
}

/// A request in `spec.stubPKCS10Request`.
pub fn with_request(der: &[u8]) -> Value {
    json!({"spec": {"stubPKCS10Request": base64(der)}})
}
