//! JWTs whose issuer's keys are in a file: the table of rejections, and the cache.

use std::io::Write;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use istio_hsm_ca::auth::{
    ClusterId, ClusterName, SetupError,
    credentials::BearerToken,
    jwt::{Jwt, JwtError},
};
use serde_json::json;

use super::keys::{
    ISSUER, Key, NOW, P256, P384, RSA, at, check, checker, claims, file_checker, jwks, reason, unsigned, with,
};

const GOOD: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn a_pods_token_is_known() {
    let keys = file(&jwks(&[&RSA, &P256, &P384]));
    let jwt = file_checker(keys.path(), "");
    for key in [&*RSA, &*P256, &*P384] {
        let proven = check(&jwt, &key.token(&claims())).await.unwrap();
        assert_eq!(proven.identity.to_string(), GOOD);
        assert_eq!(proven.cluster.as_str(), "Kubernetes");
        let pod = proven.pod.unwrap();
        assert_eq!((pod.name.as_str(), pod.uid.as_str()), ("cart-0", "u-2"));
    }
}

#[tokio::test]
async fn jwt_claims_decide_acceptance_and_identity() {
    let keys = file(&jwks(&[&P256]));
    let jwt = file_checker(keys.path(), "namespaces = ['shop', 'other']\nleeway = '30s'");
    let kubernetes = |namespace: &str, account: &str| json!({"kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": "u"}}});
    let many: Vec<String> = (0..100).map(|n| format!("a{n}")).chain(["istio-ca".to_owned()]).collect();
    let cases = [
        ("as it is", json!({}), GOOD),
        ("without kubernetes.io", json!({"kubernetes.io": null}), GOOD),
        ("one audience as text", json!({"aud": "istio-ca"}), GOOD),
        ("several audiences", json!({"aud": ["x", "istio-ca"]}), GOOD),
        ("dates with fractions", json!({"exp": (NOW + 5) as f64 + 0.5, "iat": NOW as f64 - 0.5}), GOOD),
        ("without nbf and iat", json!({"nbf": null, "iat": null}), GOOD),
        ("expired within the leeway", json!({"exp": NOW - 29}), GOOD),
        ("from the near future", json!({"nbf": NOW + 30, "iat": NOW + 30}), GOOD),
        ("unknown claims", json!({"x": {"y": [1, 2]}}), GOOD),
        ("expired", json!({"exp": NOW - 30}), "jwt_expired"),
        ("exp 0", json!({"exp": 0}), "jwt_expired"),
        ("not valid yet", json!({"nbf": NOW + 31}), "jwt_not_yet_valid"),
        ("issued in the future", json!({"iat": NOW + 31}), "jwt_issued_in_future"),
        ("without exp", json!({"exp": null}), "jwt_claims"),
        ("exp as text", json!({"exp": "1900000000"}), "jwt_claims"),
        ("exp negative", json!({"exp": -1}), "jwt_claims"),
        ("exp beyond time", json!({"exp": u64::MAX}), "jwt_claims"),
        ("exp beyond numbers", json!({"exp": 1e300}), "jwt_claims"),
        ("without iss", json!({"iss": null}), "jwt_claims"),
        ("iss as a list", json!({"iss": [ISSUER]}), "jwt_claims"),
        ("another issuer", json!({"iss": "https://other.example"}), "jwt_unknown_issuer"),
        ("the issuer with a slash", json!({"iss": format!("{ISSUER}/")}), "jwt_unknown_issuer"),
        ("without aud", json!({"aud": null}), "jwt_audience"),
        ("aud empty", json!({"aud": []}), "jwt_audience"),
        ("aud for another", json!({"aud": ["api"]}), "jwt_audience"),
        ("aud in another case", json!({"aud": "Istio-CA"}), "jwt_audience"),
        ("aud endless", json!({"aud": many}), "jwt_audience"),
        ("aud a number", json!({"aud": 1}), "jwt_claims"),
        ("without sub", json!({"sub": null}), "jwt_claims"),
        ("a user", json!({"sub": "alice", "kubernetes.io": null}), "jwt_subject"),
        ("a node", json!({"sub": "system:node:n", "kubernetes.io": null}), "jwt_subject"),
        ("sub cut", json!({"sub": "system:serviceaccount:shop", "kubernetes.io": null}), "jwt_subject"),
        ("sub too long", json!({"sub": "system:serviceaccount:shop:cart:x", "kubernetes.io": null}), "jwt_subject"),
        ("sub with a slash", json!({"sub": "system:serviceaccount:shop:a/b", "kubernetes.io": null}), "jwt_subject"),
        ("sub empty", json!({"sub": "system:serviceaccount::", "kubernetes.io": null}), "jwt_subject"),
        ("sub in upper case", json!({"sub": "system:serviceaccount:Shop:cart", "kubernetes.io": null}), "jwt_subject"),
        ("namespaces differ", kubernetes("other", "cart"), "jwt_disagree"),
        ("accounts differ", kubernetes("shop", "root"), "jwt_disagree"),
        ("kubernetes.io of another form", json!({"kubernetes.io": {"namespace": "shop"}}), "jwt_claims"),
        (
            "a foreign namespace",
            json!({"sub": "system:serviceaccount:kube-system:cart", "kubernetes.io": null}),
            "jwt_namespace",
        ),
        (
            "a pod without UID",
            json!({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "cart"}, "pod": {"name": "p"}}}),
            "jwt_claims",
        ),
        (
            "a pod with a strange name",
            json!({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "cart"},
                   "pod": {"name": "p\nq", "uid": "u"}}}),
            "jwt_claims",
        ),
    ];
    for (name, changes, expected) in cases {
        let result = check(&jwt, &P256.token(&with(changes))).await;
        assert_eq!(reason(&result), expected, "{name}");
    }
    let array = B64.encode("[]");
    let token = format!("{}.{array}", B64.encode(r#"{"alg":"ES256","kid":"p256"}"#));
    let token = format!("{token}.{}", B64.encode(P256.sign_bytes(token.as_bytes())));
    assert_eq!(reason(&check(&jwt, &token).await), "jwt_claims");
}

#[tokio::test]
async fn jwt_header_must_match_a_key_and_its_algorithm() {
    let keys = file(&jwks(&[&RSA, &P256, &P384]));
    let jwt = file_checker(keys.path(), "");
    let stranger = Key::p256("p256");
    let hmac = |secret: &[u8], kid: &str| {
        let signed = unsigned(&json!({"alg": "HS256", "kid": kid}), &claims());
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        format!("{signed}.{}", B64.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes())))
    };
    let none = |alg: &str, signature: &str| format!("{}.{signature}", unsigned(&json!({"alg": alg}), &claims()));
    let good = P256.token(&claims());
    let signed = good.rsplit_once('.').unwrap().0.to_owned();
    let signature = |bytes: &[u8]| format!("{signed}.{}", B64.encode(bytes));
    let raw = P256.sign_bytes(signed.as_bytes());
    let der = {
        let integer = |bytes: &[u8]| [&[2, 33, 0], bytes].concat();
        let body = [integer(&raw[..32]), integer(&raw[32..])].concat();
        [&[0x30, body.len() as u8], &*body].concat()
    };
    let swapped = [&raw[32..], &raw[..32]].concat();
    let doubled = [[0; 32].as_slice(), &raw[..32], &[0; 32], &raw[32..]].concat();
    let mut flipped = raw.clone();
    flipped[40] ^= 1;
    let jwk_inside = json!({"alg": "ES256", "kid": "evil", "jwk": stranger.jwk()});
    let cases = [
        ("as it is", good.clone(), GOOD),
        ("no kid", P256.sign(&json!({"alg": "ES256"}), &claims()), GOOD),
        ("no kid, another's key", stranger.sign(&json!({"alg": "ES256"}), &claims()), "jwt_signature"),
        ("another's key", stranger.token(&claims()), "jwt_signature"),
        ("unknown kid", P256.sign(&json!({"alg": "ES256", "kid": "x"}), &claims()), "jwt_unknown_key"),
        (
            "the kid of a key of another kind",
            P256.sign(&json!({"alg": "ES256", "kid": "rsa"}), &claims()),
            "jwt_unknown_key",
        ),
        ("a key in the header", stranger.sign(&jwk_inside, &claims()), "jwt_unknown_key"),
        ("crit", P256.sign(&json!({"alg": "ES256", "kid": "p256", "crit": ["exp"]}), &claims()), "jwt_critical"),
        ("HS256 with the RSA key as secret", hmac(&RSA.public_point(), "rsa"), "jwt_algorithm"),
        ("HS256 with the EC key as secret", hmac(&P256.public_point(), "p256"), "jwt_algorithm"),
        ("HS256 with an empty secret", hmac(b"", "rsa"), "jwt_algorithm"),
        ("alg none", none("none", "e30"), "jwt_algorithm"),
        ("alg None", none("None", "e30"), "jwt_algorithm"),
        ("alg none without signature", none("none", ""), "jwt_malformed"),
        ("alg PS256", none("PS256", "e30"), "jwt_algorithm"),
        ("alg RS512", none("RS512", "e30"), "jwt_algorithm"),
        ("alg in another case", none("es256", "e30"), "jwt_algorithm"),
        ("ES384 with the P-256 key", P256.sign(&json!({"alg": "ES384", "kid": "p256"}), &claims()), "jwt_unknown_key"),
        ("ES384 named, P-256 signed", P256.sign(&json!({"alg": "ES384", "kid": "p384"}), &claims()), "jwt_signature"),
        ("a signature in DER", signature(&der), "jwt_signature"),
        ("r and s swapped", signature(&swapped), "jwt_signature"),
        ("r and s padded", signature(&doubled), "jwt_signature"),
        ("zeros", signature(&[0; 64]), "jwt_signature"),
        ("ones", signature(&[0xff; 64]), "jwt_signature"),
        ("one byte", signature(&[0]), "jwt_signature"),
        ("cut", signature(&raw[..63]), "jwt_signature"),
        ("longer", signature(&[&raw[..], &[0]].concat()), "jwt_signature"),
        ("one bit", signature(&flipped), "jwt_signature"),
        ("not base64url", format!("{signed}.{}", "+".repeat(86)), "jwt_signature"),
        ("padded base64", format!("{good}="), "jwt_signature"),
        ("a space in front", format!(" {good}"), "jwt_malformed"),
        ("a newline behind", format!("{good}\n"), "jwt_signature"),
        (
            "other claims under the signature",
            {
                let claims = B64.encode(with(json!({"sub": "system:serviceaccount:shop:root"})).to_string());
                let parts: Vec<&str> = good.split('.').collect();
                format!("{}.{claims}.{}", parts[0], parts[2])
            },
            "jwt_signature",
        ),
        ("too long", format!("{good}{}", "a".repeat(16 * 1024)), "jwt_too_long"),
        ("nothing", String::new(), "jwt_malformed"),
    ];
    for (name, token, expected) in cases {
        assert_eq!(reason(&check(&jwt, &token).await), expected, "{name}");
    }
    let only_rsa = file_checker(keys.path(), "algorithms = ['RS256']");
    assert_eq!(reason(&check(&only_rsa, &good).await), "jwt_algorithm");
}

#[tokio::test]
async fn refusal_shows_what_was_received_and_what_is_configured() {
    let keys = file(&jwks(&[&P256]));
    let jwt = file_checker(keys.path(), "algorithms = ['ES256', 'RS256']");
    let (slashed, plain) = (format!("is \"{ISSUER}/\", and"), format!("are \"{ISSUER}\""));
    let header = |header: serde_json::Value| P256.sign(&header, &claims());
    let cases = [
        (P256.token(&with(json!({"aud": ["api", "vault"]}))), vec![r#""api", "vault""#, r#""istio-ca""#]),
        (P256.token(&with(json!({"aud": null}))), vec!["audience is none"]),
        (P256.token(&with(json!({"iss": format!("{ISSUER}/")}))), vec![&slashed, &plain]),
        (
            header(json!({"alg": "ES256", "kid": "rotated"})),
            vec![r#"no key "rotated" for ES256"#, r#"its keys are "p256""#],
        ),
        (
            header(json!({"alg": "HS256", "kid": "p256"})),
            vec![r#"algorithm is "HS256""#, r#""ES256", "RS256""#, ISSUER],
        ),
        (Key::p256("p256").token(&claims()), vec![r#"the key "p256""#, ISSUER]),
        (P256.token(&with(json!({"exp": NOW - 3600}))), vec!["expired at 20", ", and it is 20"]),
        (
            P256.token(&with(json!({"sub": "a\nlevel=ERROR \u{202e}", "kubernetes.io": null}))),
            vec![r#""a\nlevel=ERROR \u{202e}""#],
        ),
        (P256.token(&with(json!({"aud": "x".repeat(5000)}))), vec![r#"xxx"..., and"#]),
        (P256.token(&with(json!({"sub": null}))), vec!["claims are malformed: \""]),
    ];
    for (token, expected) in cases {
        let text = check(&jwt, &token).await.unwrap_err().to_string();
        assert!(expected.iter().all(|expected| text.contains(expected)), "{expected:?}: {text}");
        assert!(text.len() < 1000 && !text.contains(char::is_control), "{text:?}");
    }
    let token = P256.token(&claims());
    let elsewhere = jwt.check(BearerToken::new(&token), ClusterId::Named("west\u{7}"), at(NOW)).await;
    let text = elsewhere.unwrap_err().to_string();
    assert!(text.contains(r#"the cluster "west\u{7}", and issuer"#) && text.contains(r#""Kubernetes""#), "{text}");
}

#[tokio::test]
async fn without_a_kid_only_a_few_keys_are_tried() {
    let keys: Vec<Key> = (0..10).map(|n| Key::p256(&n.to_string())).collect();
    let all = file(&jwks(&keys.iter().collect::<Vec<_>>()));
    let jwt = file_checker(all.path(), "");
    let header = json!({"alg": "ES256"});
    assert_eq!(reason(&check(&jwt, &keys[3].sign(&header, &claims())).await), GOOD);
    assert_eq!(reason(&check(&jwt, &keys[4].sign(&header, &claims())).await), "jwt_signature");
}

#[tokio::test]
async fn an_issuer_speaks_for_its_cluster_only() {
    let (east, west) = (Key::p256("k"), Key::p256("k"));
    let (east_keys, west_keys) = (file(&jwks(&[&east])), file(&jwks(&[&west])));
    let jwt = checker(&format!(
        "[[jwt]]\nissuer = '{ISSUER}'\nkeys.file.path = '{}'\n\
         [[jwt]]\nissuer = '{ISSUER}'\nkeys.file.path = '{}'\ncluster = 'west'\ntrust_domain = 'west.local'\n",
        east_keys.path().display(),
        west_keys.path().display()
    ));
    let ask = async |token: &str, cluster| reason(&jwt.check(BearerToken::new(token), cluster, at(NOW)).await);
    let (of_east, of_west) = (east.token(&claims()), west.token(&claims()));
    // Twice, since the second result is from the cache.
    for _ in 0..2 {
        assert_eq!(ask(&of_east, ClusterId::Default).await, GOOD);
        assert_eq!(ask(&of_east, ClusterId::Named("Kubernetes")).await, GOOD);
        assert_eq!(ask(&of_east, ClusterId::Named("west")).await, "jwt_signature");
        assert_eq!(ask(&of_east, ClusterId::Named("north")).await, "jwt_wrong_cluster");
        assert_eq!(ask(&of_west, ClusterId::Named("west")).await, "spiffe://west.local/ns/shop/sa/cart");
        assert_eq!(ask(&of_west, ClusterId::Default).await, "jwt_signature");
    }
}

#[tokio::test]
async fn an_answer_never_outlives_its_token() {
    let keys = file(&jwks(&[&P256]));
    let jwt = file_checker(keys.path(), "leeway = '0s'");
    let token = P256.token(&with(json!({"exp": NOW + 10, "nbf": NOW, "iat": NOW})));
    let ask = async |now: u64| reason(&jwt.check(BearerToken::new(&token), ClusterId::Default, at(now)).await);
    assert_eq!(ask(NOW - 1).await, "jwt_not_yet_valid");
    assert_eq!(ask(NOW).await, GOOD);
    assert_eq!(ask(NOW + 9).await, GOOD);
    assert_eq!(ask(NOW + 10).await, "jwt_expired");
    assert_eq!(ask(NOW - 1).await, "jwt_not_yet_valid", "after the clock was set back");
}

#[tokio::test]
async fn keys_that_went_from_the_file_are_forgotten() {
    let (old, new) = (Key::p256("old"), Key::p256("new"));
    let keys = file(&jwks(&[&old]));
    let jwt = file_checker(keys.path(), "");
    jwt.start();
    let (of_old, of_new) = (old.token(&claims()), new.token(&claims()));
    assert_eq!(reason(&check(&jwt, &of_old).await), GOOD);
    std::fs::write(keys.path(), jwks(&[&new])).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(reason(&check(&jwt, &of_new).await), GOOD, "an unknown key ID triggers a reload");
    assert_eq!(reason(&check(&jwt, &of_old).await), "jwt_unknown_key", "the cached result outlives its key");
    std::fs::write(keys.path(), "{").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(reason(&check(&jwt, &of_old).await), "jwt_keys_stale", "a malformed file is an error");
    assert_eq!(reason(&check(&jwt, &of_new).await), GOOD, "the keys are lost");
}

#[tokio::test]
async fn a_missing_file_is_not_ready() {
    let jwt = file_checker(std::path::Path::new("/nonexistent/jwks"), "");
    let result = check(&jwt, &P256.token(&claims())).await;
    assert!(matches!(&result, Err(error @ JwtError::NotReady(_)) if error.is_temporary()), "{result:?}");
    let not_ready = jwt.not_ready();
    assert_eq!(not_ready[0].issuer, ISSUER);
    assert!(not_ready[0].failure.problem.contains("/nonexistent/jwks"), "{not_ready:?}");
}

#[test]
fn settings_that_contradict_each_other() {
    let one = format!("issuer = '{ISSUER}'\nkeys.file.path = 'x'\n");
    let settings: istio_hsm_ca::auth::Settings =
        toml::from_str(&format!("[[jwt]]\n{one}[[jwt]]\n{one}cluster = 'Kubernetes'\n")).unwrap();
    let own = ["cluster.local".parse().unwrap()];
    let errors = Jwt::new(&settings.jwt, ClusterName::default(), &own).unwrap_err();
    assert!(matches!(errors.as_slice(), [SetupError::SameIssuer { .. }]), "{errors:?}");
    let errors = Jwt::new(&settings.jwt, ClusterName::default(), &[]).unwrap_err();
    assert!(errors.iter().all(|error| matches!(error, SetupError::NoTrustDomain { .. })), "{errors:?}");
    let discovery: istio_hsm_ca::auth::Settings =
        toml::from_str("[[jwt]]\nissuer = 'not-a-url'\nkeys.discovery = {}\n").unwrap();
    let errors = Jwt::new(&discovery.jwt, ClusterName::default(), &own).unwrap_err();
    assert!(matches!(errors.as_slice(), [SetupError::KeySource { .. }]), "{errors:?}");
}
