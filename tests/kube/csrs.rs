//! CertificateSigningRequests: which requesters get which certificates, and what happens to other requests.

use std::time::Duration;

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use process::clock;
use rcgen::{CertificateParams, DistinguishedName, SanType};
use serde_json::json;

use super::{
    harness::{Cluster, client_of, eventually, named, rule},
    rig::{Rig, certificate, openssl},
};
use testkit::{
    api_server::EAST,
    plug_in::{PlugIn, p256},
};

pub const USAGES: [&str; 4] = ["digital signature", "key encipherment", "server auth", "client auth"];

pub fn pem(names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let san = |name: &&str| match name.contains("://") {
        true => SanType::URI((*name).try_into().unwrap()),
        false => SanType::DnsName((*name).try_into().unwrap()),
    };
    params.subject_alt_names = names.iter().map(san).collect();
    params.serialize_request(&p256()).unwrap().pem().unwrap()
}

struct Requests {
    admin: Api<CertificateSigningRequest>,
    signer: String,
    count: std::cell::Cell<u32>,
}

impl Requests {
    /// Creates a request as a given client; returns the object's name.
    async fn ask(&self, who: &Client, names: &[&str], usages: &[&str], seconds: i32) -> String {
        self.count.set(self.count.get() + 1);
        let name = format!("{}-{}", self.signer.replace(['/', '.'], "-"), self.count.get());
        let request = CertificateSigningRequest {
            metadata: named(&name),
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem(names).into_bytes()),
                signer_name: self.signer.clone(),
                usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
                expiration_seconds: Some(seconds),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        let api: Api<CertificateSigningRequest> = Api::all(who.clone());
        api.create(&PostParams::default(), &request).await.unwrap();
        name
    }

    async fn condition(&self, name: &str, kind: &str) {
        let patch = Patch::Merge(json!({"status": {"conditions": [
            {"type": kind, "status": "True", "reason": "Test", "message": "by the test"}
        ]}}));
        self.admin.patch_subresource("approval", name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn approved(&self, who: &Client, names: &[&str], usages: &[&str], seconds: i32) -> Result<Vec<u8>, String> {
        let name = self.ask(who, names, usages, seconds).await;
        self.condition(&name, "Approved").await;
        self.answer(&name).await
    }

    /// The certificate, or the message of the Failed condition.
    async fn answer(&self, name: &str) -> Result<Vec<u8>, String> {
        eventually("an answer", async || {
            let status = self.admin.get(name).await.unwrap().status?;
            if let Some(ByteString(certificate)) = status.certificate.filter(|it| !it.0.is_empty()) {
                return Some(Ok(certificate));
            }
            let failed = status.conditions?.into_iter().find(|condition| condition.type_ == "Failed")?;
            assert_eq!(failed.reason.as_deref(), Some("Refused"));
            Some(Err(failed.message.unwrap_or_default()))
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_requester_is_signed_for_what_its_entry_says_and_nothing_else() {
    let cluster = Cluster::new(&EAST, "csrs").await;
    let namespace = &cluster.namespace;
    let signer = format!("{namespace}.example.com/istio");
    let may_ask = [rule("certificates.k8s.io", &["certificatesigningrequests"], &["create"])];
    let mut clients = Vec::new();
    for account in ["istiod", "web", "stranger"] {
        clients.push(client_of(&cluster.user(account, &may_ask, &[]).await).await);
    }
    let [istiod, web, stranger] = clients.as_slice() else { panic!() };
    let user = |account: &str| format!("username = 'system:serviceaccount:{namespace}:{account}'");
    let toml = format!(
        "[[kubernetes.cluster.signer]]\nname = '{signer}'\n\
         [[kubernetes.cluster.signer.requester]]\n{}\nmay = {{ any_workload = {{ trust_domain = 'cluster.local' }} }}\n\
         [[kubernetes.cluster.signer.requester]]\n{}\nmay = {{ dns_names = ['istiod.{namespace}.svc'] }}\n\
         [[kubernetes.cluster.signer.requester]]\n{}\nmay = 'itself'\n",
        user("istiod"),
        user("istiod"),
        user("web"),
    );
    let plug_in = PlugIn::intermediate();
    let (roots, above) = (plug_in.root_cert.clone(), plug_in.ca_cert.clone());
    let rig = Rig::start(&cluster, plug_in, &toml, |_| (), None).await;
    let requests = Requests { admin: Api::all(cluster.client.clone()), signer, count: Default::default() };
    let other = "spiffe://cluster.local/ns/foo/sa/bar";
    let own = format!("spiffe://cluster.local/ns/{namespace}/sa/web");

    // Signed, with chain and root, for the requested lifetime.
    let signed = requests.approved(istiod, &[other], &USAGES, 3600).await.unwrap();
    let text = String::from_utf8(signed.clone()).unwrap();
    assert!(text.ends_with(&format!("{above}{roots}")), "{text}");
    openssl(&[roots.as_bytes(), &signed], &["verify", "-CAfile", "0", "-untrusted", "1", "1"]).unwrap();
    let left = certificate(&signed).1.duration_since(clock::now()).unwrap();
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3400), "{left:?}");
    assert!(openssl(&[&signed], &["x509", "-in", "0", "-noout", "-text"]).unwrap().contains(other));
    let dns = format!("istiod.{namespace}.svc");
    requests.approved(istiod, &[&dns], &USAGES, 3600).await.unwrap();
    requests.approved(web, &[&own], &USAGES[..2], 3600).await.unwrap();
    requests.approved(web, &[], &USAGES, 3600).await.unwrap();

    // Refused, each with its reason.
    for (who, names, usages, seconds, reason) in [
        (stranger, vec![own.as_str()], &USAGES[..], 3600, "list it as a requester"),
        (web, vec![other], &USAGES[..], 3600, "which is not the caller's"),
        (istiod, vec!["other.svc"], &USAGES[..], 3600, "which is not the caller's"),
        (istiod, vec!["spiffe://evil.local/ns/a/sa/b"], &USAGES[..], 3600, "which is not the caller's"),
        (istiod, vec![], &USAGES[..], 3600, "no name is requested"),
        (istiod, vec![other], &["digital signature", "cert sign"][..], 3600, "the usage \"cert sign\" is not granted"),
        (istiod, vec![other], &USAGES[..], 100 * 24 * 3600, "seconds are allowed"),
    ] {
        let refused = requests.approved(who, &names, usages, seconds).await.unwrap_err();
        assert!(refused.contains(reason), "{refused}");
    }

    // Neither unapproved nor denied requests are signed.
    let waiting = requests.ask(istiod, &[other], &USAGES, 3600).await;
    let denied = requests.ask(istiod, &[other], &USAGES, 3600).await;
    requests.condition(&denied, "Denied").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for name in [&waiting, &denied] {
        let status = requests.admin.get(name).await.unwrap().status.unwrap_or_default();
        assert!(status.certificate.is_none(), "{name}");
    }

    // An unavailable token delays a request but does not fail it.
    rig.take_token(true);
    requests.condition(&waiting, "Approved").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = requests.admin.get(&waiting).await.unwrap().status.unwrap();
    assert_eq!((status.certificate.is_none(), status.conditions.unwrap().len()), (true, 1));
    rig.take_token(false);
    requests.answer(&waiting).await.unwrap();
    rig.end().await;
}
