//! The agent against the real endpoint: roots, names, client certificates, and many concurrent agents.

use clap::Parser;
use bench::{BenchArguments, agent::{AgentError, KeyKind, Tls, TokenIssuer, WorkloadKey, connect, create_certificate}};

use super::harness::{Pki, settings, start};

/// Runs a bench to completion, on a thread that may block.
async fn measure(arguments: &[&str]) -> anyhow::Result<()> {
    let arguments = ["istio-hsm-ca-bench", "--output", "json"].iter().chain(arguments);
    let arguments = BenchArguments::try_parse_from(arguments).unwrap();
    tokio::task::spawn_blocking(move || bench::run(arguments)).await.unwrap()
}

fn request() -> String {
    WorkloadKey::generate(KeyKind::P256).unwrap().request("spiffe://cluster.local/ns/demo/sa/httpbin").unwrap()
}

#[tokio::test]
async fn an_agent_shows_its_certificate_or_none() {
    let running = start(settings()).await;
    let root = running.pki.issuer.pem();
    let (certificate, key) = running.pki.leaf("workload");
    for (client, shown) in [(None, "0"), (Some((certificate.as_bytes(), key.as_bytes())), "1")] {
        let tls = Tls::new(root.as_bytes(), "localhost", client).unwrap();
        let channel = connect(running.address, &tls).await.unwrap();
        let reply = create_certificate(channel, Some("token"), "Kubernetes", request(), 3600).await.unwrap();
        assert_eq!(reply, ["127.0.0.1", shown]);
    }
}

#[tokio::test]
async fn an_agent_refuses_another_root_and_another_name() {
    let running = start(settings()).await;
    let (root, other) = (running.pki.issuer.pem(), Pki::new().issuer.pem());
    for (roots, name) in [(&root, "istiod.istio-system.svc"), (&other, "localhost")] {
        let tls = Tls::new(roots.as_bytes(), name, None).unwrap();
        let refused = connect(running.address, &tls).await;
        assert!(matches!(refused, Err(AgentError::Connect(..))), "{name}");
    }
    assert!(matches!(Tls::new(b"", "localhost", None), Err(AgentError::Roots(_))));
    assert!(matches!(Tls::new(root.as_bytes(), "not a name", None), Err(AgentError::ServerName(_))));
    let half = Some((root.as_bytes(), &b"no key"[..]));
    assert!(matches!(Tls::new(root.as_bytes(), "localhost", half), Err(AgentError::ClientCertificate(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_is_measured_in_closed_and_open_loop() {
    let running = start(settings()).await;
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let roots = write("roots.pem", &running.pki.issuer.pem());
    let key = write("key.pem", &TokenIssuer::generate_key().unwrap());
    let address = running.address.to_string();
    let pid = std::process::id().to_string();
    let common = [
        ["endpoint"],
        ["--address", &address],
        ["--roots", &roots],
        ["--token-key", &key],
        ["--issuer", "https://issuer.test"],
        ["--server-name", "localhost"],
        ["--connections", "2"],
        ["--streams", "2"],
        ["--seconds", "0.3"],
        ["--warm-up", "0.1"],
        ["--pid", &pid],
    ];
    for rate in [None, Some(["--rate", "100"])] {
        let arguments: Vec<&str> = common.iter().chain(&rate).flatten().copied().collect();
        measure(&arguments).await.unwrap();
    }
    // Nothing listens: the bench fails instead of printing zeros.
    drop(running);
    let mut arguments: Vec<&str> = common.iter().flatten().copied().collect();
    arguments[3] = "127.0.0.1:1";
    assert!(measure(&arguments).await.is_err());
}
