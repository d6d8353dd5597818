//! Fetching keys over HTTP on loopback: rotation, failures, many concurrent requests, discovery.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use testkit::wait::eventually;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use istio_hsm_ca::auth::jwt::Jwt;
use serde_json::json;

use super::{
    certificates::Ca,
    keys::{ISSUER, Key, check, checker, claims, jwks, reason, with},
};

const GOOD: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// A server whose responses a test sets.
struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    keys: Mutex<(u16, String)>,
    discovery: Mutex<String>,
    hits: AtomicUsize,
    tokens: Mutex<Vec<Option<String>>>,
}

impl Server {
    async fn start(keys: &[&Key]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let server = Self { address, shared, task };
        server.answer(200, jwks(keys));
        server
    }

    fn answer(&self, status: u16, body: String) {
        *self.shared.keys.lock().unwrap() = (status, body);
    }

    fn hits(&self) -> usize {
        self.shared.hits.load(SeqCst)
    }

    fn url(&self) -> String {
        format!("http://{}/jwks", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, uri: Uri) -> Response {
    shared.hits.fetch_add(1, SeqCst);
    let token = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    shared.tokens.lock().unwrap().push(token);
    if uri.path() == "/.well-known/openid-configuration" {
        return shared.discovery.lock().unwrap().clone().into_response();
    }
    if uri.path() == "/elsewhere" {
        return shared.keys.lock().unwrap().1.clone().into_response();
    }
    let (status, body) = shared.keys.lock().unwrap().clone();
    let location = [(header::LOCATION, "/elsewhere")];
    (StatusCode::from_u16(status).unwrap(), location, body).into_response()
}

fn url_checker(url: &str, more: &str) -> Jwt {
    let jwt = checker(&format!("[[jwt]]\nissuer = '{ISSUER}'\nkeys.url.url = '{url}'\n{more}"));
    jwt.start();
    jwt
}

async fn until_ready(jwt: &Jwt) {
    eventually("keys are fetched", async || jwt.not_ready().is_empty()).await;
}

#[tokio::test]
async fn rotation_is_followed_and_old_answers_go() {
    let (old, new) = (Key::p256("old"), Key::p256("new"));
    let server = Server::start(&[&old]).await;
    let jwt = url_checker(&server.url(), "pause = '200ms'");
    until_ready(&jwt).await;
    let (of_old, of_new) = (old.token(&claims()), new.token(&claims()));
    assert_eq!(reason(&check(&jwt, &of_old).await), GOOD);
    server.answer(200, jwks(&[&old, &new]));
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(reason(&check(&jwt, &of_new).await), GOOD);
    assert_eq!(reason(&check(&jwt, &of_old).await), GOOD);
    server.answer(200, jwks(&[&new]));
    tokio::time::sleep(Duration::from_millis(250)).await;
    let stranger = Key::p256("stranger").token(&claims());
    assert_eq!(reason(&check(&jwt, &stranger).await), "jwt_unknown_key");
    assert_eq!(reason(&check(&jwt, &of_old).await), "jwt_unknown_key");
    assert_eq!(reason(&check(&jwt, &of_new).await), GOOD);
}

#[tokio::test]
async fn a_storm_of_unknown_key_ids_causes_no_fetches_and_no_waiting() {
    let key = Key::p256("k");
    let server = Server::start(&[&key]).await;
    let jwt = url_checker(&server.url(), "pause = '60s'");
    until_ready(&jwt).await;
    let started = std::time::Instant::now();
    for wave in 0..20 {
        for n in 0..10 {
            let token = key.sign(&json!({"alg": "ES256", "kid": format!("x{wave}-{n}")}), &claims());
            assert_eq!(reason(&check(&jwt, &token).await), "jwt_unknown_key");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(server.hits(), 1, "only the first fetch within the pause");
    assert_eq!(reason(&check(&jwt, &key.token(&claims())).await), GOOD);
}

#[tokio::test]
async fn failures_keep_the_old_keys() {
    let (key, other) = (Key::p256("k"), Key::p256("other"));
    let server = Server::start(&[&key]).await;
    let jwt = url_checker(&server.url(), "pause = '200ms'");
    until_ready(&jwt).await;
    let failures = [
        (500, "no".to_owned()),
        (302, jwks(&[&other])),
        (404, jwks(&[&other])),
        (200, "{".to_owned()),
        (200, r#"{"keys":[]}"#.to_owned()),
        (200, format!("{}{}", jwks(&[&other]), " ".repeat(600 * 1024))),
    ];
    for (status, body) in failures {
        server.answer(status, body);
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(reason(&check(&jwt, &other.token(&claims())).await), "jwt_keys_stale", "{status}");
        let fresh = with(json!({"jti": status}));
        assert_eq!(reason(&check(&jwt, &key.token(&fresh)).await), GOOD, "{status}");
        assert!(jwt.not_ready().is_empty());
    }
}

#[tokio::test]
async fn a_server_that_is_down_at_start_is_waited_for() {
    let key = Key::p256("k");
    let server = Server::start(&[&key]).await;
    server.answer(503, String::new());
    let jwt = url_checker(&server.url(), "");
    eventually("the reason of the failure", async || jwt.not_ready()[0].failure.problem.contains("503")).await;
    let result = check(&jwt, &key.token(&claims())).await;
    assert!(result.as_ref().is_err_and(istio_hsm_ca::auth::jwt::JwtError::is_temporary), "{result:?}");
    server.answer(200, jwks(&[&key]));
    until_ready(&jwt).await;
    assert_eq!(reason(&check(&jwt, &key.token(&claims())).await), GOOD);
}

#[tokio::test]
async fn keys_are_not_ready_when_the_server_refuses_connections() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let jwt = url_checker(&format!("http://{address}/jwks"), "");
    let result = check(&jwt, &Key::p256("k").token(&claims())).await;
    assert_eq!(reason(&result), "jwt_keys_not_ready");
}

#[tokio::test]
async fn discovery_speaks_only_for_its_issuer_and_keeps_the_token_to_itself() {
    let key = Key::p256("k");
    let server = Server::start(&[&key]).await;
    let elsewhere = Server::start(&[&key]).await;
    let issuer = format!("http://{}", server.address);
    let mut token = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut token, b"let-me-in\n").unwrap();
    let settings = format!(
        "[[jwt]]\nissuer = '{issuer}'\nkeys.discovery.token_file = '{}'\npause = '200ms'\n",
        token.path().display()
    );
    let document = |issuer: &str, keys: &str| json!({"issuer": issuer, "jwks_uri": keys}).to_string();
    let set = |text: String| *server.shared.discovery.lock().unwrap() = text;
    let mine = key.token(&with(json!({"iss": issuer})));

    for (document, message) in [
        (document("https://other.example", &server.url()), "names the issuer \"https://other.example\""),
        (document(&format!("{issuer}/"), &server.url()), "names the issuer http://127.0.0.1"),
        (document(&issuer, "http://keys.example/jwks"), "https://"),
        ("{}".to_owned(), "discovery document"),
    ] {
        let slash = document.contains(&format!("{issuer}/\""));
        set(document);
        let jwt = checker(&settings);
        jwt.start();
        let said = async {
            while !jwt.not_ready()[0].failure.problem.contains(message) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), said).await.expect(message);
        let failure = &jwt.not_ready()[0].failure;
        assert!(failure.problem.starts_with(&issuer), "the URL is named: {failure:?}");
        if slash {
            let line = format!("write `issuer = \"{issuer}/\"` in [[auth.jwt]]");
            assert!(failure.remedy.as_ref().unwrap().starts_with(&line), "{failure:?}");
        }
        assert_eq!(reason(&check(&jwt, &mine).await), "jwt_keys_not_ready");
    }

    set(document(&issuer, &elsewhere.url()));
    let jwt = checker(&settings);
    jwt.start();
    until_ready(&jwt).await;
    assert_eq!(reason(&check(&jwt, &mine).await), GOOD);
    let shown = server.shared.tokens.lock().unwrap().clone();
    assert!(shown.iter().all(|token| token.as_deref() == Some("Bearer let-me-in")), "{shown:?}");
    let shown = elsewhere.shared.tokens.lock().unwrap().clone();
    assert!(!shown.is_empty() && shown.iter().all(Option::is_none), "{shown:?}");
}

/// Serves one key set over TLS on every connection, with a certificate of `ca`.
async fn https(ca: &Ca, key: &Key) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server_key = rcgen::KeyPair::generate().unwrap();
    let name = rcgen::SanType::IpAddress([127, 0, 0, 1].into());
    let certificate = ca.leaf_with(&server_key, |params| {
        params.subject_alt_names = vec![name];
        let now = process::clock::now();
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
    });
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            rustls_pki_types::PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body = jwks(&[key]);
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(socket).await else { continue };
            let _ = tls.read(&mut [0; 4096]).await;
            let _ = tls.write_all(answer.as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn https_with_the_configured_roots_only() {
    let (ca, other, key) = (Ca::living(), Ca::living(), Key::p256("k"));
    let url = format!("https://{}/jwks", https(&ca, &key).await);
    let directory = tempfile::tempdir().unwrap();
    let roots = |ca: &Ca, name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, &ca.pem).unwrap();
        format!("keys.url.ca_file = '{}'", path.display())
    };
    let jwt = url_checker(&url, &roots(&ca, "right"));
    until_ready(&jwt).await;
    assert_eq!(reason(&check(&jwt, &key.token(&claims())).await), GOOD);
    for more in [roots(&other, "wrong"), String::new()] {
        let jwt = url_checker(&url, &more);
        let said = async {
            while !jwt.not_ready()[0].failure.problem.contains("certificate") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), said).await.unwrap_or_else(|_| panic!("{:?}", jwt.not_ready()));
        assert_eq!(reason(&check(&jwt, &key.token(&claims())).await), "jwt_keys_not_ready");
    }
}
