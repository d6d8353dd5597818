//! Grants for the requesters of cert-manager's CertificateRequests.

use super::*;
use crate::auth::{CertificateRequester, ClusterName};
use pki::testing::{DAY, P256, SoftCa, csr, now, plug_in};

const HOUR: Duration = Duration::from_secs(3600);
const WEB: &str = "system:serviceaccount:foo:web";

fn rules() -> Rules {
    let local: TrustDomain = "cluster.local".parse().unwrap();
    let rule = |namespace: &str, username: Option<&str>, group: Option<&str>, may, max_ttl| CertificateRules {
        namespaces: vec![namespace.to_owned()],
        username: username.map(str::to_owned),
        group: group.map(str::to_owned),
        may,
        max_ttl,
    };
    let ca = CertificateScope::Ca {
        organization: "SPIRE".to_owned(),
        dns_names: vec!["ca.test".parse().unwrap()],
        ignored_uris: vec!["spiffe://cluster.local".to_owned()],
    };
    Rules {
        default_ttl: DAY,
        max_ttl: 90 * DAY,
        trust_domains: vec![local.clone()],
        cert_signers: Vec::new(),
        serving_dns_names: Vec::new(),
        serving_ip_addresses: Vec::new(),
        serving_ttl: DAY,
        clusters: vec![ClusterRules {
            cluster: ClusterName::default(),
            trust_domain: local.clone(),
            controllers: Vec::new(),
            signers: Vec::new(),
            pod_signers: Vec::new(),
            profiles: vec![ProfileRules {
                name: "p".to_owned(),
                rules: vec![
                    rule("foo", None, None, CertificateScope::DnsNames(vec!["a.test".parse().unwrap()]), None),
                    rule("foo", Some(WEB), None, CertificateScope::Itself, Some(2 * HOUR)),
                    rule("*", None, Some("group"), CertificateScope::NamespaceWorkloads, None),
                    rule("mesh", Some("csr"), None, CertificateScope::AnyWorkload { trust_domain: local }, None),
                    rule("foo", Some("spire"), None, ca, Some(2 * DAY)),
                ],
            }],
        }],
    }
}

fn requester(namespace: &str, username: &str, groups: &[&str]) -> CertificateRequester {
    CertificateRequester {
        cluster: ClusterName::default(),
        profile: "p".to_owned(),
        namespace: namespace.to_owned(),
        username: username.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        is_ca: false,
    }
}

fn ca(username: &str) -> CertificateRequester {
    CertificateRequester { is_ca: true, ..requester("foo", username, &[]) }
}

fn decide(
    requester: &CertificateRequester,
    names: &[(u32, &[u8])],
    seconds: i64,
    issuer: &Issuer,
) -> Result<Template, Denied> {
    let identity = Identity::CertificateRequester(std::sync::Arc::new(requester.clone()));
    let asked = Asked { validity_seconds: seconds, ..Asked::default() };
    rules().grant(&identity, &csr(names), &asked, issuer, now()).map(|grant| grant.template().clone())
}

#[test]
fn one_rule_has_to_allow_all_of_a_request() {
    let issuer = SoftCa::new(&P256).issuer;
    let names = |requester: &CertificateRequester, names: &[(u32, &[u8])], seconds| {
        decide(requester, names, seconds, &issuer)
            .map(|template| template.names.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let id = |name: &'static str| (6, name.as_bytes());
    let foreign = |name: &str| Err(Denied::ForeignName(name.to_owned()));
    let no_rule = |namespace: &str, username: &str| {
        let (profile, namespace, username) = ("p".to_owned(), namespace.to_owned(), username.to_owned());
        Err(Denied::CertificateRequest { profile, namespace, username, what: "a certificate" })
    };
    let web = requester("foo", WEB, &[]);
    let (own, other) = ("spiffe://cluster.local/ns/foo/sa/web", "spiffe://cluster.local/ns/bar/sa/web");
    let member = requester("bar", "x", &["group"]);
    for (requester, asked, seconds, expected) in [
        (&web, vec![(2, b"a.test".as_slice())], 0, Ok(vec!["DNS:a.test".to_owned()])),
        (&web, vec![(2, b"A.TEST".as_slice())], 0, Ok(vec!["DNS:a.test".to_owned()])),
        (&web, vec![id(own)], 0, Ok(vec![format!("URI:{own}")])),
        (&web, vec![], 0, Ok(vec![format!("URI:{own}")])),
        (&member, vec![id(other)], 0, Ok(vec![format!("URI:{other}")])),
        (&requester("mesh", "csr", &[]), vec![id(other)], 0, Ok(vec![format!("URI:{other}")])),
        // Names of two rules, of another namespace, requester or group, or of no rule.
        (&web, vec![(2, b"a.test"), id(own)], 0, foreign(&format!("URI:{own}"))),
        (&web, vec![id(other)], 0, foreign(&format!("URI:{other}"))),
        (&web, vec![(2, b"b.test")], 0, foreign("DNS:b.test")),
        (&web, vec![(2, b"*.test")], 0, foreign("DNS:*.test")),
        (&web, vec![(7, b"\x0a\x00\x00\x01")], 0, foreign("IP:10.0.0.1")),
        (&requester("foo", "x", &[]), vec![id(own)], 0, foreign(&format!("URI:{own}"))),
        (&member, vec![id(own)], 0, foreign(&format!("URI:{own}"))),
        (&requester("bar", WEB, &[]), vec![id(own)], 0, no_rule("bar", WEB)),
        (&requester("bar", "x", &["groups", "Group"]), vec![id(other)], 0, no_rule("bar", "x")),
        (&requester("mesh", "csr2", &[]), vec![id(other)], 0, no_rule("mesh", "csr2")),
        (&requester("*", "x", &[]), vec![], 0, no_rule("*", "x")),
        (&requester("", "", &[""]), vec![(2, b"a.test")], 0, no_rule("", "")),
        // The rule's lifetime.
        (&web, vec![id(own)], 7201, Err(Denied::TtlTooLong { asked: 7201, longest: 7200 })),
        (&web, vec![(2, b"a.test")], 7_776_001, Err(Denied::TtlTooLong { asked: 7_776_001, longest: 7_776_000 })),
    ] {
        assert_eq!(names(requester, &asked, seconds), expected, "{requester:?} {asked:?}");
    }
    let unknown = CertificateRequester { profile: "q".to_owned(), ..web.clone() };
    assert_eq!(names(&unknown, &[], 0), Err(Denied::NotConfigured("the profile")));
    let life = |requester: &CertificateRequester, seconds| {
        let template = decide(requester, &[], seconds, &issuer).unwrap();
        template.not_after.duration_since(now()).unwrap()
    };
    assert_eq!((life(&web, 0), life(&web, 3600), life(&ca("spire"), 0)), (2 * HOUR, HOUR, 2 * DAY));
}

#[test]
fn ca_certificates_need_a_rule_of_their_own() {
    let issuer = SoftCa::new(&P256).issuer;
    let template = decide(&ca("spire"), &[(6, b"spiffe://cluster.local"), (2, b"CA.test")], 0, &issuer).unwrap();
    assert_eq!(template.profile, Profile::Intermediate { organization: "SPIRE".to_owned() });
    assert_eq!(template.names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["DNS:ca.test"]);
    let foreign = |name: &str| Denied::ForeignName(name.to_owned());
    let no_rule = |username: &str, what| {
        let (profile, namespace, username) = ("p".to_owned(), "foo".to_owned(), username.to_owned());
        Denied::CertificateRequest { profile, namespace, username, what }
    };
    for (requester, names, seconds, denied) in [
        (ca(WEB), vec![], 0, no_rule(WEB, "a CA certificate (isCA)")),
        (ca("spire"), vec![(6, b"spiffe://cluster.local/".as_slice())], 0, foreign("URI:spiffe://cluster.local/")),
        (ca("spire"), vec![(2, b"b.test")], 0, foreign("DNS:b.test")),
        (ca("spire"), vec![(7, b"\x0a\x00\x00\x01")], 0, foreign("IP:10.0.0.1")),
        (ca("spire"), vec![], 172_801, Denied::TtlTooLong { asked: 172_801, longest: 172_800 }),
        // The rule for a CA allows no leaf.
        (requester("foo", "spire", &[]), vec![(2, b"ca.test")], 0, foreign("DNS:ca.test")),
    ] {
        assert_eq!(decide(&requester, &names, seconds, &issuer), Err(denied), "{requester:?} {names:?}");
    }
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2025, 1, 1), rcgen::date_time_ymd(2026, 1, 3));
    let narrow = params.self_signed(&*P256).unwrap().pem();
    let narrow = plug_in(&narrow, &narrow);
    assert_eq!(decide(&ca("spire"), &[], 0, &narrow), Err(Denied::IntermediatePath));
    let rules = rules();
    assert_eq!(rules.clusters[0].profiles[0].longest_ca(), 2 * DAY);
    let names: Vec<_> = rules.clusters[0].server_names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["DNS:a.test", "DNS:ca.test"]);
}
