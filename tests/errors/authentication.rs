//! Credentials of callers that are refused, and keys of issuers that cannot be used: the operator's log line.

use std::fs;

use istio_hsm_ca::auth::{
    ClusterId, ClusterName,
    client_certificate::{ClientCertificates, previous::PreviousCa},
    credentials::BearerToken,
    jwt::{Jwt, Settings, source::FetchError},
};
use pki::testing::{
    P256, P384, WORKLOAD,
    draft::{Draft, basic_constraints, extended_key_usage},
    extension, now, san_value,
};
use process::error::{Report, chain};
use serde_json::{Value, json};

use super::{
    desk::{Desk, name, root},
    jwts::{self, ISSUER, NOW, at, claims, jwks, with},
    page::{Case, Section},
};

fn messages(input: &str, message: impl ToString) -> Case {
    Case { input: input.to_owned(), messages: vec![(message.to_string(), None)] }
}

/// JWTs, and what makes each.
fn tokens() -> Vec<Case> {
    let desk = Desk::new();
    desk.write("jwks.json", jwks(&[&jwts::P256]));
    let settings = format!(
        "issuer = '{ISSUER}'\nkeys.file.path = '{}'\nnamespaces = ['shop']\ncluster = 'east'\nalgorithms = ['ES256']",
        desk.path().join("jwks.json").display()
    );
    let settings: Settings = toml::from_str(&settings).unwrap();
    let jwt = Jwt::new(&[settings], ClusterName::default(), &["cluster.local".parse().unwrap()]).unwrap();
    let own = |changes: Value| jwts::P256.token(&with(changes));
    let stranger = jwts::Key::p256("p256");
    let cases = [
        ("Another audience", own(json!({"aud": ["api", "vault"]})), ClusterId::Named("east")),
        ("Another issuer", own(json!({"iss": "https://issuer.example/"})), ClusterId::Named("east")),
        ("A key that the issuer does not publish", jwts::Key::p256("new").token(&claims()), ClusterId::Named("east")),
        ("A signature by another key of that name", stranger.token(&claims()), ClusterId::Named("east")),
        ("An algorithm that is not configured", jwts::RSA.token(&claims()), ClusterId::Named("east")),
        ("Another cluster", own(json!({})), ClusterId::Named("west")),
        ("A token that has expired", own(json!({"exp": NOW - 3600})), ClusterId::Named("east")),
        ("A token from the future", own(json!({"nbf": NOW + 3600})), ClusterId::Named("east")),
        (
            "Another namespace",
            own(json!({"sub": "system:serviceaccount:kube-system:a", "kubernetes.io": null})),
            ClusterId::Default,
        ),
        ("No service account", own(json!({"sub": "alice", "kubernetes.io": null})), ClusterId::Named("east")),
        (
            "A value that would write its own log line",
            own(json!({"aud": "a\nERROR \u{1b}[31m"})),
            ClusterId::Named("east"),
        ),
        ("A token that is none", "hello".to_owned(), ClusterId::Named("east")),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases = cases.map(|(input, token, cluster)| {
        let error = runtime.block_on(jwt.check(BearerToken::new(&token), cluster, at(NOW))).err();
        messages(input, chain(&error.unwrap_or_else(|| panic!("{input}: accepted"))))
    });
    cases.into()
}

/// Client certificates, and what makes each.
fn certificates() -> Vec<Case> {
    let draft = |names: &[(u32, &[u8])]| {
        let mut draft = Draft::under(b"\x30\x00", &WORKLOAD, &name("Root CA"), now());
        let usage = extension(b"\x55\x1d\x0f", None, b"\x03\x02\x07\x80");
        let san = extension(b"\x55\x1d\x11", Some(0xff), &san_value(names));
        draft.extensions = vec![basic_constraints(false, None), extended_key_usage(&[1, 2]), usage, san];
        draft
    };
    let spiffe = |domain: &str| format!("spiffe://{domain}/ns/shop/sa/cart");
    let own = draft(&[(6, spiffe("cluster.local").as_bytes())]);
    let week = std::time::Duration::from_secs(7 * 86_400);
    let cases = [
        ("A client certificate of another CA", Draft { issuer: name("Another CA"), ..own.clone() }),
        ("A client certificate in another trust domain", draft(&[(6, spiffe("old.local").as_bytes())])),
        (
            "A client certificate that is too old",
            Draft { not_before: now() - week, not_after: now() + week, ..own.clone() },
        ),
        (
            "A client certificate that has expired",
            Draft { not_before: now() - week, not_after: now() - week / 2, ..own.clone() },
        ),
        ("A client certificate without a SPIFFE ID", draft(&[(2, b"a.example")])),
    ];
    let settings = toml::from_str("max_age = '24h'").unwrap();
    let checker = ClientCertificates::load(settings, &["cluster.local".parse().unwrap()]).unwrap();
    let ca = PreviousCa::parse_all(root().pem(&P384).as_bytes()).unwrap().remove(0);
    let cases = cases.map(|(input, draft)| {
        let refused = checker.check(&[draft.sign(&P384).into()], ca.accepted(), now());
        messages(input, refused.err().unwrap_or_else(|| panic!("{input}: accepted")))
    });
    cases.into()
}

/// Files of keys, and lists.
fn files() -> Vec<Case> {
    let cases: [(&str, &str, fn(&Desk) -> Vec<u8>); 9] = [
        ("A key set that is an HTML page", "jwks", |_| b"<!DOCTYPE html><title>Sign in</title>".to_vec()),
        ("A key set that is PEM", "jwks", |desk| desk.read("root-cert.pem")),
        ("A discovery document in place of the key set", "jwks", |_| {
            json!({"issuer": ISSUER, "jwks_uri": "https://a"}).to_string().into_bytes()
        }),
        ("A key in place of a key set", "jwks", |_| jwts::P256.jwk().to_string().into_bytes()),
        ("A key set without a usable key", "jwks", |_| br#"{"keys":[{"kty":"oct","k":"AA"}]}"#.to_vec()),
        ("A denylist in UTF-16", "denylist", |_| b"\xff\xfes\0h\0a\0".to_vec()),
        ("A wrong line of a denylist", "denylist", |_| b"# revoked\nsha256:12ab\nhttps://a/b\n".to_vec()),
        ("A previous CA in DER", "previous", |desk| {
            desk.shell("openssl x509 -in root-cert.pem -outform DER -out der");
            desk.read("der")
        }),
        ("A previous CA that is not a CA", "previous", |_| {
            let leaf = Draft::under(&name("leaf"), &P256, &name("Root CA"), now());
            Draft { extensions: vec![basic_constraints(false, None)], ..leaf }.pem(&P384).into_bytes()
        }),
    ];
    let cases = cases.map(|(input, kind, content)| {
        let desk = Desk::new();
        let content = content(&desk);
        desk.write(kind, content);
        let path = desk.path().join(kind).display().to_string();
        let settings = match kind {
            "jwks" => {
                let error = istio_hsm_ca::auth::jwt::jwks::parse(&fs::read(&path).unwrap()).err().unwrap();
                let Report { problem, remedy } = Report::from(&FetchError::KeyFile(kind.into(), error));
                return Case { input: input.to_owned(), messages: vec![(problem, remedy.map(|it| it.to_string()))] };
            }
            "denylist" => format!("denylist = '{path}'"),
            _ => format!("previous_ca_certificates = ['{path}']"),
        };
        let settings = toml::from_str(&settings).unwrap();
        let errors = ClientCertificates::load(settings, &[]).err().unwrap_or_else(|| panic!("{input}: accepted"));
        let messages = errors.iter().map(|error| {
            let Report { problem, remedy } = Report::from(error);
            let plain = |text: String| text.replace(&path, kind);
            (plain(problem), remedy.map(|it| plain(it.to_string())))
        });
        Case { input: input.to_owned(), messages: messages.collect() }
    });
    let discovery = FetchError::Issuer { found: "https://a.example/".into(), configured: "https://a.example".into() };
    let Report { problem, remedy } = Report::from(&discovery);
    let slash = Case {
        input: "A discovery document whose issuer differs by a slash".to_owned(),
        messages: vec![(problem, remedy.map(|it| it.to_string()))],
    };
    cases.into_iter().chain([slash]).collect()
}

pub fn section() -> Section {
    let cases = [tokens(), certificates(), files()];
    Section {
        title: "Authentication",
        about: "The daemon's log and `check` show these; the reply to a refused caller contains no reason.",
        cases: cases.into_iter().flatten().collect(),
    }
}

#[test]
fn received_and_configured_values_are_shown() {
    let messages: Vec<String> =
        tokens().into_iter().chain(certificates()).flat_map(|case| case.messages).map(|(message, _)| message).collect();
    for values in [
        ["\"api\", \"vault\"", "\"istio-ca\""],
        ["\"https://issuer.example/\"", "https://issuer.example"],
        ["\"new\"", ISSUER],
        ["RS256", "ES256"],
        ["\"west\"", "east"],
        ["\"CN=Another CA\"", "\"CN=Root CA\""],
        ["old.local", "\"cluster.local\""],
        ["it began at", "max_age is 1day"],
    ] {
        assert!(messages.iter().any(|it| values.iter().all(|value| it.contains(value))), "{values:?}: {messages:#?}");
    }
    assert!(messages.iter().all(|it| !it.contains('\n') && !it.contains('\u{1b}')), "{messages:#?}");
}
