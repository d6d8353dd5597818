//! All authentication methods in their order, with the issuer of a checked bundle.

use std::io::Write;

use istio_hsm_ca::auth::{
    AuthError, Authenticator, ClusterId, Credentials, Identity, Method, Settings, bearer,
    client_certificate::CertificateError, jwt::JwtError,
};
use istio_hsm_ca::revocation::Revocations;
use pki::{
    Bundle, Issuer,
    bundle::{BundleFiles, Input},
};
use rustls_pki_types::CertificateDer;
use serde_json::json;

use super::{
    certificates::{CART, Ca, uri},
    keys::{ISSUER, NOW, P256, at, claims, jwks, with},
};

const ADDRESS: [u8; 4] = [10, 1, 2, 3];

fn issuer(ca: &Ca) -> std::sync::Arc<Issuer> {
    let input = |name: &str, text: &str| Input { name: name.into(), bytes: text.as_bytes().to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", &ca.pem),
        cert_chain: input("cert-chain.pem", ""),
        root_cert: input("root-cert.pem", &ca.pem),
    };
    std::sync::Arc::clone(Bundle::check(files, at(NOW)).unwrap().issuer())
}

fn authenticator(more: &str) -> (Authenticator, tempfile::NamedTempFile) {
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    keys.write_all(jwks(&[&P256]).as_bytes()).unwrap();
    let settings = format!(
        "default_cluster = 'east'\n{more}\n[[jwt]]\nissuer = '{ISSUER}'\nkeys.file.path = '{}'\n",
        keys.path().display()
    );
    let settings: Settings = toml::from_str(&settings).unwrap();
    (Authenticator::new(&settings, &["cluster.local".parse().unwrap()], &Revocations::default()).unwrap(), keys)
}

#[tokio::test]
async fn certificate_first_then_token() {
    let (ca, foreign) = (Ca::new("ca"), Ca::new("foreign"));
    let (authenticator, _keys) = authenticator("client_certificate.max_age = '50s'");
    let authorization = format!("Bearer {}", P256.token(&claims()));
    let young = ca.leaf(|params| {
        params.not_before = at(NOW - 10).into();
        params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/web")];
    });
    let (old, unknown) = (ca.leaf(|_| ()), foreign.leaf(|_| ()));
    let issuer = issuer(&ca);
    let ask = async |certificate: Option<&CertificateDer<'static>>, token: bool| {
        let chain: Option<Vec<_>> = certificate.map(|one| vec![one.clone()]);
        let credentials = Credentials {
            bearer: bearer(Some(authorization.as_str()).filter(|_| token)),
            cluster_id: ClusterId::from_values(["east"]),
            client_chain: chain.as_deref(),
            peer: Some(ADDRESS.into()),
            client: None,
        };
        authenticator.authenticate(&credentials, &issuer, at(NOW)).await
    };

    for token in [false, true] {
        let caller = ask(Some(&young), token).await.unwrap();
        assert_eq!(caller.method(), Method::ClientCertificate);
        assert_eq!(caller.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!((caller.cluster(), caller.pod()), (None, None));
        assert_eq!(caller.peer(), Some(ADDRESS.into()));
    }
    for certificate in [None, Some(&old), Some(&unknown)] {
        let caller = ask(certificate, true).await.unwrap();
        assert_eq!(caller.method(), Method::Jwt);
        assert!(matches!(caller.identity(), Identity::Workload(id) if id.to_string() == CART));
        assert_eq!(caller.cluster(), Some("east"));
        assert_eq!(caller.pod().map(|pod| pod.name.as_str()), Some("cart-0"));
    }
    let cases = [
        (None, None, "no_credentials"),
        (Some(&old), Some(CertificateError::TooOld), "certificate_too_old"),
        (Some(&unknown), Some(CertificateError::UnknownIssuer), "certificate_unknown_issuer"),
    ];
    for (certificate, expected, label) in cases {
        let error = ask(certificate, false).await.unwrap_err();
        assert_eq!(error.reason(), label);
        let AuthError::Refused(refusals) = error else { panic!("{error:?}") };
        assert_eq!(refusals.client_certificate.map(|refusal| refusal.error), expected);
        assert_eq!((refusals.jwt, refusals.token_review), (None, None));
    }
}

#[tokio::test]
async fn the_error_says_what_each_method_said_and_when_to_try_again() {
    let ca = Ca::new("ca");
    let issuer = issuer(&ca);
    let (authenticator, _keys) =
        authenticator("[[jwt]]\nissuer = 'https://late.example'\nkeys.url.url = 'https://late.example/jwks'\n");
    let chain = [Ca::new("foreign").leaf(|_| ())];
    let ask = async |changes| {
        let token = format!("Bearer {}", P256.token(&with(changes)));
        let credentials =
            Credentials { bearer: bearer([token.as_str()]), client_chain: Some(&chain), ..Credentials::default() };
        authenticator.authenticate(&credentials, &issuer, at(NOW)).await.unwrap_err()
    };
    let never = ask(json!({"exp": NOW - 100})).await;
    assert!(matches!(never, AuthError::Refused(_)), "{never:?}");
    assert_eq!(never.reason(), "jwt_expired");
    let text = never.to_string();
    assert!(text.contains("not issued by this CA") && text.contains("the token expired at 20"), "{text}");

    let later = ask(json!({"iss": "https://late.example"})).await;
    assert!(matches!(later, AuthError::Unavailable(_)), "{later:?}");
    assert!(matches!(later.refusals().jwt, Some(JwtError::NotReady(_))), "{later}");
    assert_eq!(authenticator.not_ready()[0].issuer, "https://late.example");
}
