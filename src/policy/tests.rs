#![expect(clippy::type_complexity, reason = "tables of cases are read where they stand")]

use std::sync::Arc;

use super::*;
use crate::auth::Method;
use pki::testing::{DAY, ID, P256, SoftCa, csr, now, public, san};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const OURS: &[u8] = b"spiffe://cluster.local/ns/foo/sa/bar";

fn rules() -> Rules {
    Rules {
        default_ttl: DAY,
        max_ttl: 90 * DAY,
        trust_domains: vec!["cluster.local".parse().unwrap(), "old.local".parse().unwrap()],
        cert_signers: vec!["clusterissuers.example/istio".to_owned()],
        serving_dns_names: vec!["istio-hsm-ca.istio-system.svc".parse().unwrap()],
        serving_ip_addresses: vec!["10.0.0.1".parse().unwrap()],
        serving_ttl: 7 * DAY,
        clusters: Vec::new(),
    }
}

fn workload() -> Identity {
    let Name::Spiffe(id) = san(ID) else { panic!("not a SPIFFE ID") };
    Identity::Workload(id)
}

const OPERATOR: Identity = Identity::Operator { uid: 0 };
const SERVING: Identity = Identity::Internal(InternalCaller::ServingCertificate);

fn issuer() -> Arc<Issuer> {
    SoftCa::new(&P256).issuer
}

fn decide(identity: &Identity, names: &[(u32, &[u8])], asked: &Asked) -> Result<Template, Denied> {
    rules().grant(identity, &csr(names), asked, &issuer(), now()).map(|grant| grant.template().clone())
}

fn wants(names: &[&str]) -> Asked {
    Asked { operator_names: names.iter().map(|name| san(name)).collect(), ..Asked::default() }
}

#[test]
fn each_identity_is_granted_its_names() {
    let other_domain = "URI:spiffe://old.local/ns/istio-system/sa/istiod";
    let serving = ["DNS:istio-hsm-ca.istio-system.svc", "IP:10.0.0.1"];
    let dns = b"istio-hsm-ca.istio-system.svc".as_slice();
    let cases: Vec<(Identity, Vec<(u32, &[u8])>, Asked, Vec<&str>)> = vec![
        (workload(), vec![], Asked::default(), vec![ID]),
        (workload(), vec![(6, OURS)], Asked::default(), vec![ID]),
        (workload(), vec![(6, OURS), (6, OURS)], Asked::default(), vec![ID]),
        (OPERATOR, vec![], wants(&[ID]), vec![ID]),
        (OPERATOR, vec![(6, OURS)], wants(&[ID]), vec![ID]),
        (OPERATOR, vec![], wants(&[ID, ID]), vec![ID]),
        (OPERATOR, vec![], wants(&[other_domain]), vec![other_domain]),
        (OPERATOR, vec![(2, dns)], wants(&serving), serving.to_vec()),
        (SERVING, vec![], Asked::default(), serving.to_vec()),
        (SERVING, vec![(2, b"ISTIO-HSM-CA.istio-system.svc"), (7, &[10, 0, 0, 1])], Asked::default(), serving.to_vec()),
    ];
    for (identity, names, asked, expected) in cases {
        let template = decide(&identity, &names, &asked).unwrap_or_else(|denied| panic!("{identity}: {denied}"));
        assert_eq!(template.names.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{identity}");
        assert_eq!(template.profile, Profile::Leaf);
        assert_eq!(template.public_key, public(&pki::testing::WORKLOAD));
    }
}

#[test]
fn each_refusal_with_its_kind() {
    use Kind::{InvalidArgument, PermissionDenied};
    let foreign = |name: &str| Denied::ForeignName(name.to_owned());
    let stranger = Identity::Workload("spiffe://evil.local/ns/foo/sa/bar".parse().unwrap());
    let evil = "evil.local".parse::<TrustDomain>().unwrap();
    let signer = |text: &str| Asked { cert_signer: Some(text.to_owned()), ..Asked::default() };
    let none = Asked::default;
    let other = "URI:spiffe://cluster.local/ns/foo/sa/other";
    let seconds = |validity_seconds| Asked { validity_seconds, ..Asked::default() };
    let longest = 90 * 86_400;
    let too_long = |asked| Denied::TtlTooLong { asked, longest };
    type Case<'a> = (Identity, Vec<(u32, &'a [u8])>, Asked, Denied, Kind);
    let cases: Vec<Case<'_>> = vec![
        (workload(), vec![(6, b"spiffe://cluster.local/ns/foo/sa/other")], none(), foreign(other), PermissionDenied),
        (
            workload(),
            vec![(6, OURS), (6, b"spiffe://x/ns/a/sa/b")],
            none(),
            foreign("URI:spiffe://x/ns/a/sa/b"),
            PermissionDenied,
        ),
        (
            workload(),
            vec![(6, b"SPIFFE://cluster.local/ns/foo/sa/bar")],
            none(),
            foreign("URI:SPIFFE://cluster.local/ns/foo/sa/bar"),
            PermissionDenied,
        ),
        (
            workload(),
            vec![(2, b"istio-hsm-ca.istio-system.svc")],
            none(),
            foreign("DNS:istio-hsm-ca.istio-system.svc"),
            PermissionDenied,
        ),
        (workload(), vec![(7, &[10, 0, 0, 1])], none(), foreign("IP:10.0.0.1"), PermissionDenied),
        (workload(), vec![(1, b"a@b")], none(), foreign("of kind rfc822Name (e-mail)"), PermissionDenied),
        (stranger, vec![], none(), Denied::TrustDomain(evil.clone()), PermissionDenied),
        (workload(), vec![], wants(&[ID]), Denied::OperatorNames, PermissionDenied),
        (SERVING, vec![], wants(&[ID]), Denied::OperatorNames, PermissionDenied),
        (SERVING, vec![(6, OURS)], none(), foreign(ID), PermissionDenied),
        (SERVING, vec![(2, b"other")], none(), foreign("DNS:other"), PermissionDenied),
        (OPERATOR, vec![], none(), Denied::NoNames, InvalidArgument),
        (OPERATOR, vec![], wants(&["DNS:other"]), Denied::NotServed(san("DNS:other")), PermissionDenied),
        (OPERATOR, vec![], wants(&["IP:10.0.0.2"]), Denied::NotServed(san("IP:10.0.0.2")), PermissionDenied),
        (OPERATOR, vec![], wants(&["URI:spiffe://evil.local/ns/a/sa/b"]), Denied::TrustDomain(evil), PermissionDenied),
        (OPERATOR, vec![], wants(&[ID, other]), Denied::SeveralIdentities, InvalidArgument),
        (OPERATOR, vec![], wants(&[ID, "DNS:istio-hsm-ca.istio-system.svc"]), Denied::MixedNames, InvalidArgument),
        (OPERATOR, vec![], wants(&["IP:10.0.0.1", ID]), Denied::MixedNames, InvalidArgument),
        (
            OPERATOR,
            vec![(6, b"spiffe://x/ns/a/sa/b")],
            wants(&[ID]),
            foreign("URI:spiffe://x/ns/a/sa/b"),
            PermissionDenied,
        ),
        (workload(), vec![], signer("foo"), Denied::CertSigner("foo".to_owned()), InvalidArgument),
        (workload(), vec![], signer(&"x".repeat(500)), Denied::CertSigner("x".repeat(64)), InvalidArgument),
        (workload(), vec![], seconds(90 * 86_400 + 1), too_long(longest + 1), InvalidArgument),
        (workload(), vec![], seconds(i64::MAX), too_long(i64::MAX.unsigned_abs()), InvalidArgument),
        (
            OPERATOR,
            vec![],
            Asked { validity_seconds: i64::MAX, ..wants(&[ID]) },
            too_long(i64::MAX.unsigned_abs()),
            InvalidArgument,
        ),
    ];
    for (identity, names, asked, expected, kind) in cases {
        let denied = decide(&identity, &names, &asked).expect_err(&expected.to_string());
        assert_eq!(denied, expected);
        assert_eq!(denied.kind(), kind, "{denied}");
    }
}

#[test]
fn impersonator_is_granted_the_impersonated_name_only() {
    let proxy = || Caller::workload("spiffe://cluster.local/ns/istio-system/sa/ztunnel".parse().unwrap(), Method::Jwt);
    let foreign = "spiffe://evil.local/ns/foo/sa/bar";
    let own = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";
    // (impersonation permitted by `auth`, requested identity, expected identity)
    let cases = [
        (None, None, Ok(own)),
        (Some(&ID[4..]), Some(&ID[4..]), Ok(&ID[4..])),
        (Some(&ID[4..]), None, Err(Denied::Impersonation)),
        (None, Some(&ID[4..]), Err(Denied::Impersonation)),
        (None, Some(own), Err(Denied::Impersonation)),
        (Some(&ID[4..]), Some(own), Err(Denied::Impersonation)),
        (Some(foreign), Some(foreign), Err(Denied::TrustDomain("evil.local".parse().unwrap()))),
    ];
    for (found, asked, expected) in cases {
        let caller = match found {
            Some(id) => proxy().acting_for(id.parse().unwrap(), "worker-1"),
            None => proxy(),
        };
        let asked = Asked { impersonated_identity: asked.map(str::to_owned), ..Asked::default() };
        let got = rules().decide(&caller, &csr(&[]), &asked, &issuer(), now());
        let got = got.map(|grant| grant.template().names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(got, expected.map(|id| vec![format!("URI:{id}")]), "{caller:?} {asked:?}");
    }
}

#[test]
fn the_empty_text_of_the_metadata_is_none() {
    let empty = Some(String::new());
    let asked = Asked { cert_signer: empty.clone(), impersonated_identity: empty, ..Asked::default() };
    assert!(decide(&workload(), &[], &asked).is_ok());
    let served = Asked { cert_signer: Some("clusterissuers.example/istio".to_owned()), ..Asked::default() };
    assert!(decide(&workload(), &[], &served).is_ok());
}

#[test]
fn subject_of_a_request_is_ignored() {
    use pki::testing::{WORKLOAD, signed_request};
    let common_name = b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01x";
    let csr = VerifiedCsr::from_der(&signed_request(&WORKLOAD, common_name, &[])).unwrap();
    for identity in [workload(), SERVING] {
        assert!(rules().grant(&identity, &csr, &Asked::default(), &issuer(), now()).is_ok());
    }
}

#[test]
fn workload_that_requests_its_former_name_gets_its_authenticated_one() {
    let cases: &[(&str, bool)] = &[
        ("spiffe://old.local/ns/foo/sa/bar", true),
        ("spiffe://cluster.local/ns/foo/sa/", true),
        ("spiffe://old.local/ns/foo/sa/", true),
        ("spiffe://evil.local/ns/foo/sa/bar", false),
        ("spiffe://evil.local/ns/foo/sa/", false),
        ("spiffe://old.local/ns/foo/sa/other", false),
        ("spiffe://old.local/ns/other/sa/bar", false),
        ("spiffe://cluster.local/ns/other/sa/", false),
        ("spiffe://old.local/ns/foo/sa/bar/", false),
        ("spiffe://old.local/ns/foo/sa", false),
        ("spiffe://old.local/ns//sa/", false),
        ("spiffe:///ns/foo/sa/bar", false),
        ("spiffe://OLD.local/ns/foo/sa/bar", false),
    ];
    for (requested, granted) in cases {
        let names = decide(&workload(), &[(6, requested.as_bytes())], &Asked::default());
        let names = names.map(|template| template.names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let foreign = || Denied::ForeignName(format!("URI:{requested}"));
        assert_eq!(names, if *granted { Ok(vec![ID.to_owned()]) } else { Err(foreign()) }, "{requested}");
    }
    let operator = decide(&OPERATOR, &[(6, b"spiffe://old.local/ns/foo/sa/bar")], &wants(&[ID]));
    assert!(matches!(operator, Err(Denied::ForeignName(_))), "only an authenticated workload has former names");
}

#[test]
fn a_serving_certificate_needs_a_name() {
    let rules = Rules { serving_dns_names: vec![], serving_ip_addresses: vec![], ..rules() };
    let denied = rules.grant(&SERVING, &csr(&[]), &Asked::default(), &issuer(), now()).unwrap_err();
    assert_eq!((denied.kind(), denied), (Kind::FailedPrecondition, Denied::NoServingNames));
}

#[test]
fn lifetimes() {
    let end = now() + DAY;
    let cases: &[(&Identity, i64, SystemTime)] = &[
        (&workload(), 0, end),
        (&workload(), -1, end),
        (&workload(), i64::MIN, end),
        (&workload(), 1, now() + SECOND),
        (&workload(), 3600, now() + HOUR),
        (&workload(), 90 * 86_400, now() + 90 * DAY),
        (&SERVING, 0, now() + 7 * DAY),
        (&SERVING, 1, now() + 7 * DAY),
    ];
    for (identity, validity_seconds, not_after) in cases {
        let asked = Asked { validity_seconds: *validity_seconds, ..Asked::default() };
        let template = decide(identity, &[], &asked).unwrap();
        assert_eq!(template.not_before, now() - 120 * SECOND);
        assert_eq!(template.not_after, *not_after, "{identity} {validity_seconds}");
    }
    let endless = Rules { default_ttl: Duration::MAX, max_ttl: Duration::MAX, serving_ttl: Duration::MAX, ..rules() };
    for identity in [workload(), SERVING] {
        let granted = endless.grant(&identity, &csr(&[]), &Asked::default(), &issuer(), now()).unwrap();
        assert_eq!(granted.template().not_after, issuer().not_after(), "longer than the CA");
    }
}

#[test]
fn validity_lies_within_the_cas() {
    let issuer = issuer();
    let (from, to) = (issuer.not_before(), issuer.not_after());
    let half = Duration::from_millis(500);
    let cases: &[(SystemTime, Result<(SystemTime, SystemTime), Denied>)] = &[
        (UNIX_EPOCH - SECOND, Err(Denied::IssuerNotYetValid)),
        (from - SECOND, Err(Denied::IssuerNotYetValid)),
        (from, Ok((from, from + DAY))),
        (from + 119 * SECOND, Ok((from, from + 119 * SECOND + DAY))),
        (from + 121 * SECOND, Ok((from + SECOND, from + 121 * SECOND + DAY))),
        (now() + half, Ok((now() - 120 * SECOND, now() + DAY))),
        (to - HOUR, Ok((to - HOUR - 120 * SECOND, to))),
        (to, Ok((to - 120 * SECOND, to))),
        (to + half, Ok((to - 120 * SECOND, to))),
        (to + SECOND, Err(Denied::IssuerExpired)),
    ];
    for (now, expected) in cases {
        let granted = rules().grant(&workload(), &csr(&[]), &Asked::default(), &issuer, *now);
        let found = granted.map(|grant| (grant.template().not_before, grant.template().not_after));
        assert_eq!(found, *expected, "{now:?}");
        if let Err(denied) = found {
            assert_eq!(denied.kind(), Kind::FailedPrecondition);
        }
    }
}

#[test]
fn every_grant_can_be_built() {
    let issuer = issuer();
    for now in [issuer.not_before(), now(), issuer.not_after()] {
        for (identity, asked) in [(workload(), Asked::default()), (OPERATOR, wants(&[ID])), (SERVING, Asked::default())]
        {
            let grant = rules().grant(&identity, &csr(&[]), &asked, &issuer, now).unwrap();
            let serial = pki::tbs::Serial::random();
            pki::Tbs::build(grant.template().clone(), Arc::clone(&issuer), serial).unwrap();
        }
    }
}

#[test]
fn an_operator_may_ask_through_the_public_door() {
    let granted = rules().decide(&Caller::operator(0), &csr(&[]), &wants(&[ID]), &issuer(), now()).unwrap();
    assert_eq!(granted.template().names, [san(ID)]);
}
