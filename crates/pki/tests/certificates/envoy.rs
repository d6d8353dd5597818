//! Envoy with listeners of its own: a client certificate is judged by a handshake and a request.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::judges::Presented;

/// One listener for each set of roots and CRLs, on Unix sockets. Ended when dropped.
pub struct Envoy {
    directory: tempfile::TempDir,
    process: Child,
}

/// How a listener gets its roots and CRLs.
pub enum Trust<'a> {
    /// Files that it reads once.
    Files {
        /// PEM.
        roots: &'a str,
        /// PEM; empty as an empty file.
        crls: &'a str,
    },
    /// A secret as Istio's agent sends it (ISTIO: security/pkg/nodeagent/sds/sdsservice.go, toEnvoySecret): the roots
    /// inline, and the CRLs as a file in a mounted ConfigMap, which Envoy watches.
    Mounted {
        /// PEM.
        roots: &'a str,
        /// The file in the mounted ConfigMap.
        crls: &'a Path,
    },
}

impl Envoy {
    /// Starts it; `server` has the certificate that it presents.
    pub fn start(server: &Presented, listeners: &[Trust<'_>]) -> Self {
        let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/istio/envoy.sh");
        let fetched = Command::new(fetch).output().unwrap();
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        let program = String::from_utf8(fetched.stdout).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let file = |name: &str, text: &str| {
            fs::write(path(name), text).unwrap();
            json!({ "filename": path(name) })
        };
        let certificate = json!([{
            "certificate_chain": file("server.crt", &server.chain()), "private_key": file("server.key", &server.key),
        }]);
        let listener = |(at, trust): (usize, &Trust<'_>)| {
            let mut common = json!({ "tls_certificates": certificate });
            match trust {
                Trust::Files { roots, crls } => {
                    let (roots, crls) = (file(&format!("{at}.roots"), roots), file(&format!("{at}.crls"), crls));
                    common["validation_context"] = json!({ "trusted_ca": roots, "crl": crls });
                }
                Trust::Mounted { roots, crls } => {
                    let secret = json!({ "resources": [{
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                        "name": "ROOTCA",
                        "validation_context": { "trusted_ca": { "inline_string": roots }, "crl": { "filename": crls } },
                    }]});
                    let secret = file(&format!("{at}.json"), &secret.to_string());
                    let source = json!({ "path_config_source": { "path": secret["filename"] } });
                    common["validation_context_sds_secret_config"] = json!({ "name": "ROOTCA", "sds_config": source });
                }
            }
            listener(&path(&format!("{at}.socket")), &common)
        };
        let listeners: Vec<Value> = listeners.iter().enumerate().map(listener).collect();
        let node = json!({ "id": "judge", "cluster": "judge" });
        let config = json!({ "node": node, "static_resources": { "listeners": listeners } });
        fs::write(path("envoy.json"), config.to_string()).unwrap();
        let process = Command::new(program.trim())
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "error", "-c"])
            .arg(path("envoy.json"))
            .spawn()
            .unwrap();
        let envoy = Self { directory, process };
        let begin = Instant::now();
        while (0..listeners.len()).any(|at| !envoy.socket(at).exists()) {
            assert!(begin.elapsed() < Duration::from_secs(20), "Envoy did not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        envoy
    }

    fn socket(&self, listener: usize) -> PathBuf {
        self.directory.path().join(format!("{listener}.socket"))
    }

    /// Why a listener rejects a client.
    pub fn verdict(&self, listener: usize, client: &Presented) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-unix"])
            .arg(self.socket(listener))
            .arg("-cert")
            .arg(file("crt", &client.chain()))
            .arg("-cert_chain")
            .arg(file("chain", &client.chain()))
            .arg("-key")
            .arg(file("key", &client.key))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended before the request.
        let mut request = openssl.stdin.take().unwrap();
        let _ = request.write_all(b"GET / HTTP/1.1\r\nHost: judge\r\nConnection: close\r\n\r\n");
        let output = openssl.wait_with_output().unwrap();
        drop(request);
        if output.stdout.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("alert"), "neither an answer nor a rejection: {error}");
        Err(error)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A listener that requires a client certificate and answers every request.
fn listener(socket: &Path, common_tls_context: &Value) -> Value {
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let tls = json!({
        "@type": typed("transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": common_tls_context,
    });
    let answer = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } });
    let router = json!({ "@type": typed("filters.http.router.v3.Router") });
    let http = json!({
        "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "judge",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [answer] }] },
        "http_filters": [{ "name": "router", "typed_config": router }],
    });
    json!({
        "name": socket,
        "address": { "pipe": { "path": socket } },
        "filter_chains": [{
            "transport_socket": { "name": "tls", "typed_config": tls },
            "filters": [{ "name": "http", "typed_config": http }],
        }],
    })
}
