//! Secrets, with their values in zeroizing types and never in an error, a log or a cache.
//!
//! This does not use `k8s_openapi`'s Secret: it keeps values in plain vectors that serde grows and frees without
//! zeroizing, and `kube`'s typed requests log a response body that they cannot parse. The buffers of HTTP and TLS are
//! not zeroized; see SECURITY.md. Watches receive metadata only.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Request;
use kube::{Client, api::ObjectMeta};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use zeroize::Zeroizing;

/// The label of the objects that are managed here, and its value.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "istio-hsm-ca");

/// An upper bound for the body without values and labels, in bytes.
const BODY_OVERHEAD: usize = 4096;

/// A decoded value.
pub type Value = Zeroizing<Vec<u8>>;

/// A Secret cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server rejects the request or is unreachable.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// A name is not valid in a request.
    #[error("cannot create the request: {0}")]
    Request(#[from] http::Error),
    /// Serialization failed.
    #[error("BUG: cannot encode the Secret")]
    Encoding,
    /// The response is not a Secret. Its text is not repeated.
    #[error("the API server's response is not a valid Secret (line {line}, column {column})")]
    Malformed {
        /// Line in the response.
        line: usize,
        /// Column in the line.
        column: usize,
    },
}

impl SecretError {
    /// Whether the Secret was changed or created meanwhile.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(error) if super::reconcile::is_conflict(error))
    }
}

/// A Secret. Its `Debug` omits the values.
#[derive(Deserialize)]
pub struct Secret {
    /// The metadata.
    pub metadata: ObjectMeta,
    /// Its type.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Its values.
    #[serde(default, deserialize_with = "values")]
    pub data: BTreeMap<String, Value>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

impl Secret {
    /// Whether it has our label.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        is_ours(&self.metadata)
    }

    /// A value; empty if there is none.
    #[must_use]
    pub fn value(&self, key: &str) -> &[u8] {
        self.data.get(key).map(|value| value.as_slice()).unwrap_or_default()
    }
}

/// Whether an object has our label.
#[must_use]
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|value| value == MANAGED_BY.1)
}

/// The Secret to write.
pub struct Content<'a> {
    /// Its type, which is immutable.
    pub kind: &'a str,
    /// Name and labels; for a change also resourceVersion and UID.
    pub metadata: ObjectMeta,
    /// The values. A change removes those that are `None`.
    pub data: Vec<(&'a str, Option<Value>)>,
}

/// Reads a Secret; `None` if it does not exist.
///
/// # Errors
/// If the API server rejects the request, is unreachable, or returns something else.
pub async fn get(client: &Client, namespace: &str, name: &str) -> Result<Option<Secret>, SecretError> {
    let request = Request::get(path(namespace, Some(name))).body(Vec::new())?;
    let text = match client.request_text(request).await {
        Ok(text) => Zeroizing::new(text),
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    parse(&text).map(Some)
}

/// Creates a Secret.
///
/// # Errors
/// As [`get`]; a conflict if it exists.
pub async fn create(client: &Client, namespace: &str, content: &Content<'_>) -> Result<(), SecretError> {
    let request = Request::post(path(namespace, None)).header(http::header::CONTENT_TYPE, "application/json");
    send(client, request.body(body(content)?)?).await
}

/// Changes a Secret by a merge patch, guarded by the resourceVersion and UID in the metadata.
///
/// # Errors
/// As [`get`]; a conflict if it was changed meanwhile.
pub async fn change(client: &Client, namespace: &str, name: &str, content: &Content<'_>) -> Result<(), SecretError> {
    patch(client, path(namespace, Some(name)), content).await
}

/// Asks the API server whether it would take that change, which changes nothing (`dryRun=All`).
///
/// # Errors
/// As [`change`].
pub async fn try_change(
    client: &Client,
    namespace: &str,
    name: &str,
    content: &Content<'_>,
) -> Result<(), SecretError> {
    patch(client, format!("{}?dryRun=All", path(namespace, Some(name))), content).await
}

async fn patch(client: &Client, path: String, content: &Content<'_>) -> Result<(), SecretError> {
    let request =
        Request::patch(path).header(http::header::CONTENT_TYPE, "application/merge-patch+json").body(body(content)?)?;
    send(client, request).await
}

async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<(), SecretError> {
    // The response repeats the values.
    client.request_text(request).await.map(Zeroizing::new)?;
    Ok(())
}

fn path(namespace: &str, name: Option<&str>) -> String {
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    format!("/api/v1/namespaces/{namespace}/secrets{name}")
}

fn parse(text: &str) -> Result<Secret, SecretError> {
    serde_json::from_str(text).map_err(|error| SecretError::Malformed { line: error.line(), column: error.column() })
}

/// The body, in a buffer large enough not to be reallocated, which would leave copies behind.
fn body(content: &Content<'_>) -> Result<Vec<u8>, SecretError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        api_version: &'static str,
        kind: &'static str,
        metadata: &'a ObjectMeta,
        r#type: &'a str,
        data: Data<'a>,
    }
    struct Data<'a>(&'a [(&'a str, Option<Value>)]);
    impl Serialize for Data<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.len()))?;
            for (key, value) in self.0 {
                let value = value.as_ref().map(|value| Zeroizing::new(STANDARD.encode(value.as_slice())));
                map.serialize_entry(key, &value.as_ref().map(|text| text.as_str()))?;
            }
            map.end()
        }
    }
    let values: usize = content.data.iter().filter_map(|(_, value)| value.as_ref()).map(|value| value.len() * 2).sum();
    let labels = content.metadata.labels.iter().chain(&content.metadata.annotations);
    let labels: usize = labels.flatten().map(|(key, value)| key.len() + value.len()).sum();
    let mut bytes = Vec::with_capacity(values + 2 * labels + BODY_OVERHEAD);
    let body = Body {
        api_version: "v1",
        kind: "Secret",
        metadata: &content.metadata,
        r#type: content.kind,
        data: Data(&content.data),
    };
    serde_json::to_writer(&mut bytes, &body).map_err(|_| SecretError::Encoding)?;
    Ok(bytes)
}

fn values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Value>, D::Error> {
    struct Decoded(Value);
    impl<'de> Deserialize<'de> for Decoded {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl de::Visitor<'_> for Visitor {
                type Value = Decoded;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("Base64")
                }

                fn visit_str<E: de::Error>(self, text: &str) -> Result<Decoded, E> {
                    let decoded = STANDARD.decode(text).map_err(|_| E::custom("a value is not Base64"))?;
                    Ok(Decoded(Zeroizing::new(decoded)))
                }
            }
            deserializer.deserialize_str(Visitor)
        }
    }
    let decoded = Option::<BTreeMap<String, Decoded>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(decoded.into_iter().map(|(key, Decoded(value))| (key, value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_body_reads_back_as_the_same_secret() {
        let metadata = ObjectMeta {
            name: Some("a".to_owned()),
            labels: Some([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let data = vec![("key", Some(Zeroizing::new(b"secret".to_vec()))), ("old", None)];
        let bytes = body(&Content { kind: "Opaque", metadata, data }).unwrap();
        assert!(bytes.len() * 2 < bytes.capacity(), "the buffer never grew");
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(r#""old":null"#), "{text}");
        let secret = parse(&text.replace(r#","old":null"#, "")).unwrap();
        assert_eq!((secret.value("key"), secret.value("old")), (b"secret".as_slice(), b"".as_slice()));
        assert!(secret.is_ours() && secret.kind == "Opaque");
        assert!(!format!("{secret:?}").contains("115"), "{secret:?}");
        assert_eq!(parse(r#"{"metadata": {}}"#).unwrap().data.len(), 0);
    }

    #[test]
    fn malformed_response_is_not_repeated_in_the_error() {
        for bad in
            [r#"{"metadata": {}, "data": "c2VjcmV0"}"#, r#"{"metadata": {}, "data": {"k": "c2VjcmV0!"}}"#, "c2VjcmV0"]
        {
            let error = parse(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("c2V"), "{error:?}");
        }
    }
}
