//! The objects of an external issuer of cert-manager: its CertificateRequests, and the issuers of this CA.
//!
//! Only the fields that are used, as they are in JSON: an API server without cert-manager's webhook accepts any text in
//! them, and one malformed object must not break the watch of all others.

use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

/// The API group of this CA's issuers.
pub const GROUP: &str = <HsmIssuer as Resource>::GROUP;
/// cert-manager's API group.
pub const CERT_MANAGER: &str = <CertificateRequest as Resource>::GROUP;

/// A CertificateRequest (cert-manager: pkg/apis/certmanager/v1/types_certificaterequest.go).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// The metadata.
    pub metadata: ObjectMeta,
    /// What is requested.
    #[serde(default)]
    pub spec: CertificateRequestSpec,
    /// The result.
    #[serde(default)]
    pub status: CertificateRequestStatus,
}

/// The spec of a CertificateRequest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateRequestSpec {
    /// The lifetime, a Go duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The issuer.
    pub issuer_ref: IssuerRef,
    /// The PEM certificate request in base64.
    pub request: String,
    /// Whether a CA certificate is requested.
    #[serde(rename = "isCA")]
    pub is_ca: bool,
    /// Key usages and extended key usages.
    pub usages: Vec<String>,
    /// Who created it; set by cert-manager's webhook.
    pub username: String,
    /// The groups of who created it; set by cert-manager's webhook.
    pub groups: Vec<String>,
}

/// A reference to an issuer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IssuerRef {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The name.
    pub name: String,
}

/// The status of a CertificateRequest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateRequestStatus {
    /// Known types: Ready, InvalidRequest, Approved, Denied.
    pub conditions: Vec<Condition>,
    /// The certificate and its chain, PEM in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The roots, PEM in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// When it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_time: Option<String>,
}

/// A condition of a CertificateRequest or an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// The type.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// When the status last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// One word for programs.
    pub reason: String,
    /// The reason for people.
    pub message: String,
    /// The generation of the spec that it is about; only in issuers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Sets a condition in a list. The time changes only with the status.
pub fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|known| known.type_ == condition.type_) {
        Some(known) => {
            if known.status == condition.status && known.last_transition_time.is_some() {
                condition.last_transition_time = known.last_transition_time.take();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// The condition of a type.
#[must_use]
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The spec of this CA's issuers: it selects a profile and holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IssuerSpec {
    /// The name of a profile in the daemon's configuration.
    pub profile: String,
    /// Which CA serves the issuer, if several do in one cluster: the class in its configuration.
    pub class: String,
}

/// The status of this CA's issuers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IssuerStatus {
    /// Only Ready.
    pub conditions: Vec<Condition>,
}

/// An issuer for CertificateRequests of its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HsmIssuer {
    /// The metadata.
    pub metadata: ObjectMeta,
    /// The profile.
    #[serde(default)]
    pub spec: IssuerSpec,
    /// Whether the profile exists.
    #[serde(default)]
    pub status: IssuerStatus,
}

/// An issuer for CertificateRequests of all namespaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HsmClusterIssuer {
    /// The metadata.
    pub metadata: ObjectMeta,
    /// The profile.
    #[serde(default)]
    pub spec: IssuerSpec,
    /// Whether the profile exists.
    #[serde(default)]
    pub status: IssuerStatus,
}

/// One of the two kinds of issuers.
pub trait AnyIssuer: Resource + Metadata<Ty = ObjectMeta> {
    /// The spec.
    fn spec(&self) -> &IssuerSpec;
    /// The status.
    fn status(&self) -> &IssuerStatus;
}

macro_rules! object {
    ($type:ty, $group:literal, $version:literal, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $type {
            const API_VERSION: &'static str = concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }

        impl Metadata for $type {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

object!(
    CertificateRequest,
    "cert-manager.io",
    "v1",
    "CertificateRequest",
    "certificaterequests",
    NamespaceResourceScope
);
object!(HsmIssuer, "istio-hsm-ca.dev", "v1alpha1", "HsmIssuer", "hsmissuers", NamespaceResourceScope);
object!(
    HsmClusterIssuer,
    "istio-hsm-ca.dev",
    "v1alpha1",
    "HsmClusterIssuer",
    "hsmclusterissuers",
    ClusterResourceScope
);

impl AnyIssuer for HsmIssuer {
    fn spec(&self) -> &IssuerSpec {
        &self.spec
    }

    fn status(&self) -> &IssuerStatus {
        &self.status
    }
}

impl AnyIssuer for HsmClusterIssuer {
    fn spec(&self) -> &IssuerSpec {
        &self.spec
    }

    fn status(&self) -> &IssuerStatus {
        &self.status
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn keys(object: &Value) -> Vec<String> {
        let mut keys: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    }

    #[test]
    fn custom_resource_definitions_in_the_chart_are_those_of_the_types() {
        let text = include_str!("../../deploy/helm/istio-hsm-ca/files/issuers.yaml");
        let definitions: Vec<Value> =
            text.split("\n---\n").map(|definition| serde_saphyr::from_str(definition).unwrap()).collect();
        let condition = Condition {
            last_transition_time: Some(String::new()),
            observed_generation: Some(1),
            ..Condition::default()
        };
        let status = IssuerStatus { conditions: vec![condition] };
        fn check<K: AnyIssuer>(definition: &Value, scope: &str, status: &IssuerStatus) {
            let spec = &definition["spec"];
            assert_eq!(definition["metadata"]["name"], format!("{}.{}", K::URL_PATH_SEGMENT, K::GROUP));
            assert_eq!((&spec["group"], &spec["scope"]), (&json!(K::GROUP), &json!(scope)));
            assert_eq!(
                (&spec["names"]["kind"], &spec["names"]["plural"]),
                (&json!(K::KIND), &json!(K::URL_PATH_SEGMENT))
            );
            let version = &spec["versions"][0];
            assert_eq!((&version["name"], &version["subresources"]), (&json!(K::VERSION), &json!({"status": {}})));
            let fields = &version["schema"]["openAPIV3Schema"]["properties"];
            let written = serde_json::to_value(IssuerSpec::default()).unwrap();
            assert_eq!(keys(&fields["spec"]["properties"]), keys(&written));
            let written = serde_json::to_value(status).unwrap();
            assert_eq!(keys(&fields["status"]["properties"]), keys(&written));
            let conditions = &fields["status"]["properties"]["conditions"];
            assert_eq!(keys(&conditions["items"]["properties"]), keys(&written["conditions"][0]));
        }
        let [issuer, cluster_issuer] = definitions.as_slice() else { panic!("{}", definitions.len()) };
        check::<HsmIssuer>(issuer, "Namespaced", &status);
        check::<HsmClusterIssuer>(cluster_issuer, "Cluster", &status);
    }

    #[test]
    fn time_of_a_condition_changes_only_with_its_status() {
        let condition = |status: &str, time: &str, message: &str| Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            last_transition_time: Some(time.to_owned()),
            message: message.to_owned(),
            ..Condition::default()
        };
        let mut conditions = vec![Condition { type_: "Approved".to_owned(), ..Condition::default() }];
        for (next, time) in [
            (condition("False", "1", "a"), "1"),
            (condition("False", "2", "b"), "1"),
            (condition("True", "3", "b"), "3"),
        ] {
            set_condition(&mut conditions, next.clone());
            let expected = Condition { last_transition_time: Some(time.to_owned()), ..next };
            assert_eq!(super::condition(&conditions, "Ready"), Some(&expected));
        }
        assert_eq!(conditions.len(), 2);
    }

    #[test]
    fn any_text_in_a_field_is_read() {
        let value =
            json!({"metadata": {"name": "a"}, "spec": {"request": "?", "duration": "x", "issuerRef": {"name": "b"}}});
        let request: CertificateRequest = serde_json::from_value(value).unwrap();
        assert_eq!((request.spec.request.as_str(), request.spec.duration.as_deref()), ("?", Some("x")));
    }
}
