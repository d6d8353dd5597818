//! A sidecar without any call to a CA: Istio's pilot-agent and Envoy with a certificate that a kubelet has mounted. The
//! test plays the kubelet's part; there is no istiod. Run by `make test-istio`.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use k8s_openapi::api::core::v1::Pod;
use rcgen::KeyPair;
use serde_json::json;

use super::{
    harness::{Cluster, eventually},
    kubelet::{Kubelet, stub, with_request},
    rig::{Rig, certificate, openssl},
    trust_bundles,
};
use testkit::{
    api_server::{ApiServer, EAST, NEWEST},
    plug_in::{PlugIn, p256},
};

/// Where pilot-agent looks for mounted certificates (ISTIO: pkg/security/security.go), below its working directory.
const MOUNTED: &str = "var/run/secrets/workload-spiffe-credentials";

/// A listener in Envoy's bootstrap whose certificate and roots come from pilot-agent, as istiod configures them.
const LISTENER: &str = r#"{
  "name": "mtls",
  "address": {"pipe": {"path": "SOCKET"}},
  "filter_chains": [{
    "transport_socket": {
      "name": "envoy.transport_sockets.tls",
      "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": {
          "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": SDS}],
          "combined_validation_context": {
            "default_validation_context": {},
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": SDS}
          }
        }
      }
    },
    "filters": [{
      "name": "envoy.filters.network.http_connection_manager",
      "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "mtls",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
          "match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "served"}}
        }]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
          "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        }}]
      }
    }]
  }]
},"#;
const SDS: &str = r#"{"api_config_source": {"api_type": "GRPC", "transport_api_version": "V3",
  "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}], "set_node_on_first_message_only": true},
  "resource_api_version": "V3"}"#;

/// Ends pilot-agent when our end of the pipe closes, which then ends Envoy; nothing is left when tests are killed.
const UNDER_A_SHELL: &str = r#""$@" </dev/null & read -r _; kill $!; wait $!"#;

/// Where tests/istio/build.sh stores pilot-agent and Envoy.
fn mesh() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/istio/build.sh");
    let output = Command::new(script).args(["--where", "mesh"]).output().unwrap();
    let mesh = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let agent = mesh.join("bin/pilot-agent");
    assert!(agent.is_file(), "{} is missing: run `make test-istio`, or tests/istio/build.sh mesh", agent.display());
    mesh
}

/// A key with its certificate chain and the roots, as the kubelet projects them.
struct Credentials {
    key: String,
    chain: String,
    roots: String,
}

impl Credentials {
    async fn new(cluster: &Cluster, kubelet: &Kubelet<'_>, pod: &Pod) -> Self {
        let key: KeyPair = p256();
        let chain = kubelet.certificate(pod, with_request(&stub(&key))).await.chain().to_owned();
        let name = format!("{}.example.com:istio:root-cert", cluster.namespace);
        let roots = eventually("the trust bundle", async || trust_bundles::read(cluster, &name).await).await;
        Self { key: key.serialize_pem(), chain, roots }
    }

    /// Replaces the files of a volume at once, as the kubelet does (Kubernetes: pkg/volume/util/atomic_writer.go).
    fn project(&self, volume: &Path, version: &str) {
        let data = volume.join(format!("..{version}"));
        fs::create_dir_all(&data).unwrap();
        for (name, text) in [("key.pem", &self.key), ("cert-chain.pem", &self.chain), ("root-cert.pem", &self.roots)] {
            fs::write(data.join(name), text).unwrap();
            if !volume.join(name).exists() {
                let _there = symlink(format!("..data/{name}"), volume.join(name));
            }
        }
        symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    }

    fn serial(&self) -> String {
        certificate(self.chain.as_bytes()).0
    }
}

/// pilot-agent, which runs Envoy.
struct Sidecar {
    agent: Child,
    directory: tempfile::TempDir,
}

impl Sidecar {
    /// A container's file system, with roots for connections to istiod and to a CA, and a token.
    fn files(roots: &str) -> tempfile::TempDir {
        // A socket's path is at most 107 bytes long.
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in [MOUNTED, "etc/istio/proxy", "var/run/secrets/tokens", "var/run/secrets/istio"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("var/run/secrets/istio/root-cert.pem"), roots).unwrap();
        fs::write(path("var/run/secrets/tokens/istio-token"), "none").unwrap();
        directory
    }

    fn start(directory: tempfile::TempDir, ca: &TcpListener) -> Self {
        let mesh = mesh();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let listener = LISTENER.replace("SOCKET", &path("mtls")).replace("SDS", SDS);
        let bootstrap = fs::read_to_string(mesh.join("envoy_bootstrap_tmpl.json")).unwrap();
        let changed = bootstrap.replacen("\"listeners\":[", &format!("\"listeners\":[{listener}"), 1);
        assert_ne!(bootstrap, changed);
        // Without istiod: Envoy serves its bootstrap's listeners after a second without istiod's answer.
        let changed = changed.replace("\"initial_fetch_timeout\": \"0s\"", "\"initial_fetch_timeout\": \"1s\"");
        fs::write(path("bootstrap.json"), changed).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = json!({
            "binaryPath": mesh.join("bin/envoy"),
            "configPath": path("etc/istio/proxy"),
            "proxyBootstrapTemplatePath": path("bootstrap.json"),
            // Nothing listens there.
            "discoveryAddress": format!("localhost:{}", free()),
            "proxyAdminPort": free(),
            "statusPort": free(),
            "concurrency": 1,
        });
        let log = fs::File::create(path("log")).unwrap();
        let agent = Command::new("sh")
            .args(["-c", UNDER_A_SHELL, "sh"])
            .arg(mesh.join("bin/pilot-agent"))
            .args(["proxy", "sidecar", "--domain", "demo.svc.cluster.local"])
            .current_dir(directory.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PROXY_CONFIG", config.to_string())
            .env("POD_NAME", "web-1")
            .env("POD_NAMESPACE", "demo")
            .env("INSTANCE_IP", "127.0.0.1")
            .env("CA_ADDR", format!("localhost:{}", ca.local_addr().unwrap().port()))
            .env("XDS_ROOT_CA", path("var/run/secrets/istio/root-cert.pem"))
            .env("ENVOY_PROMETHEUS_PORT", free().to_string())
            .env("ENVOY_STATUS_PORT", free().to_string())
            .stdin(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        Self { agent, directory }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Sends a request to Envoy with a certificate, or without. Returns the serial number of Envoy's certificate and
    /// whether the request was served.
    fn request(&self, client: Option<&Credentials>, roots: &str) -> Option<(String, bool)> {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let socket = self.directory.path().join("mtls").display().to_string();
        let mut arguments: Vec<String> =
            ["s_client", "-unix", &socket, "-verify_return_error", "-ign_eof", "-CAfile", &file("roots", roots)]
                .map(str::to_owned)
                .to_vec();
        if let Some(client) = client {
            let (key, chain) = (file("key", &client.key), file("chain", &client.chain));
            arguments.extend(["-cert", &chain, "-cert_chain", &chain, "-key", &key].map(str::to_owned));
        }
        let mut openssl = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _closed =
            openssl.stdin.take().unwrap().write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let output = String::from_utf8_lossy(&openssl.wait_with_output().unwrap().stdout).into_owned();
        let begin = output.find("-----BEGIN CERTIFICATE-----")?;
        let serial = certificate(&output.as_bytes()[begin..]).0;
        Some((serial, output.contains("\r\n\r\nserved")))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        drop(self.agent.stdin.take());
        let _status = self.agent.wait();
    }
}

/// A listener in the CA's place, which only counts.
fn ca() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

async fn sidecar_serves_a_mounted_certificate(server: &'static ApiServer) {
    let cluster = Cluster::new(server, "sidecar").await;
    let signer = format!("{}.example.com/istio", cluster.namespace);
    let toml = format!(
        "[[kubernetes.cluster.pod_signer]]\nname = '{signer}'\n\
         [kubernetes.cluster.cluster_trust_bundle]\nsigners = ['{signer}']\n"
    );
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &toml, |_| (), None).await;
    let kubelet = Kubelet::start(&cluster).await;
    let web = kubelet.pod("web-1", "web", &signer, json!({})).await;
    let shop = kubelet.pod("shop-1", "shop", &signer, json!({})).await;
    let first = Credentials::new(&cluster, &kubelet, &web).await;
    let client = Credentials::new(&cluster, &kubelet, &shop).await;

    let files = Sidecar::files(&first.roots);
    first.project(&files.path().join(MOUNTED), "1");
    let ca = ca();
    let sidecar = Sidecar::start(files, &ca);
    let served = |credentials: &Credentials| sidecar.request(Some(&client), &credentials.roots);
    eventually("the first certificate", async || (served(&first)? == (first.serial(), true)).then_some(())).await;
    // Mutual TLS: not without a certificate of the mesh, nor with one of another CA.
    assert_eq!(sidecar.request(None, &first.roots).map(|(_, served)| served), Some(false));
    let other = testkit::plug_in::new_root("other");
    let foreign = Credentials { key: client.key.clone(), chain: other.pem(), roots: first.roots.clone() };
    assert!(sidecar.request(Some(&foreign), &first.roots).is_none_or(|(_, served)| !served));
    let text = openssl(&[first.chain.as_bytes()], &["x509", "-in", "0", "-noout", "-ext", "subjectAltName"]).unwrap();
    assert!(text.contains(&format!("URI:spiffe://cluster.local/ns/{}/sa/web", cluster.namespace)), "{text}");

    // The kubelet replaces the files.
    let second = Credentials::new(&cluster, &kubelet, &web).await;
    second.project(&sidecar.directory.path().join(MOUNTED), "2");
    eventually("the second certificate", async || (served(&second)? == (second.serial(), true)).then_some(())).await;

    assert!(sidecar.log().contains("workload certificate files detected"), "{}", sidecar.log());
    assert!(ca.accept().is_err(), "the agent has called the CA\n{}", sidecar.log());
    drop(sidecar);

    // Without the files, the same agent calls the CA.
    let sidecar = Sidecar::start(Sidecar::files(&first.roots), &ca);
    eventually("a call to the CA", async || ca.accept().ok()).await;
    drop(sidecar);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Istio's agent, Envoy and an API server: make test-istio"]
async fn sidecar_serves_a_mounted_certificate_of_the_beta_version() {
    sidecar_serves_a_mounted_certificate(&EAST).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Istio's agent, Envoy and an API server: make test-istio"]
async fn sidecar_serves_a_mounted_certificate_of_the_stable_version() {
    sidecar_serves_a_mounted_certificate(&NEWEST).await;
}
