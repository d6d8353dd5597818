//! A certificate request as an agent sends it, with modifiable parts.

use bench::agent::{KeyKind, WorkloadKey};
use istio_api::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use tonic::{Request, Status, transport::Channel};

use super::daemon::SOON;

/// A request as Istio's agent sends it; each part can be changed.
pub struct Ask {
    pub csr: String,
    pub key_pem: String,
    pub validity: i64,
    pub metadata: prost_types::Struct,
    pub headers: Vec<(&'static str, String)>,
}

impl Ask {
    /// A new P-256 key and a CSR for an identity, for one day.
    pub fn new(identity: &str) -> Self {
        Self::with_key(identity, KeyKind::P256)
    }

    pub fn with_key(identity: &str, kind: KeyKind) -> Self {
        let key = WorkloadKey::generate(kind).unwrap();
        Self {
            csr: key.request(identity).unwrap(),
            key_pem: key.pem().unwrap().to_string(),
            validity: 86_400,
            metadata: prost_types::Struct::default(),
            headers: vec![("clusterid", "Kubernetes".into())],
        }
        .metadata("CertSigner", "")
    }

    pub fn token(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self
    }

    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.into())) };
        self.metadata.fields.insert(key.into(), value);
        self
    }

    pub fn csr(mut self, csr: impl Into<String>) -> Self {
        self.csr = csr.into();
        self
    }

    pub fn validity(mut self, seconds: i64) -> Self {
        self.validity = seconds;
        self
    }

    pub async fn send(self, channel: Channel) -> Result<Vec<String>, Status> {
        let mut request = Request::new(IstioCertificateRequest {
            csr: self.csr,
            validity_duration: self.validity,
            metadata: Some(self.metadata),
        });
        for (name, value) in self.headers {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(1 << 26);
        let answer = tokio::time::timeout(SOON, client.create_certificate(request)).await;
        Ok(answer.expect("no answer")?.into_inner().cert_chain)
    }
}
