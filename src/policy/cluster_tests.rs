//! Grants for controllers and requesters of CertificateSigningRequests.

use super::*;
use crate::auth::ClusterName;
use pki::{
    identity::SpiffeId,
    testing::{DAY, P256, SoftCa, csr, now, plug_in, san},
};

const HOUR: Duration = Duration::from_secs(3600);
const ISTIOD: &str = "system:serviceaccount:istio-system:istiod";
const SIGNER: &str = "hsm.example.com/istio";
const INTERMEDIATE: &str = "intermediate";
const ISTIOD_CERTIFICATE: &str = "istiod-certificate";
const WORKLOAD_SECRET: &str = "workload-secret";

fn rules() -> Rules {
    let requester = |username: &str, may| RequesterRules { username: username.to_owned(), may };
    let local: TrustDomain = "cluster.local".parse().unwrap();
    Rules {
        default_ttl: DAY,
        max_ttl: 90 * DAY,
        trust_domains: vec![local.clone()],
        cert_signers: Vec::new(),
        serving_dns_names: Vec::new(),
        serving_ip_addresses: Vec::new(),
        serving_ttl: DAY,
        clusters: vec![ClusterRules {
            pod_signers: Vec::new(),
            cluster: ClusterName::default(),
            trust_domain: local.clone(),
            controllers: vec![
                ControllerRules {
                    controller: ISTIOD_CERTIFICATE,
                    grant: ControllerGrant::Server {
                        names: vec![san("DNS:istiod.istio-system.svc"), san("IP:10.0.0.1")],
                    },
                    ttl: HOUR,
                },
                ControllerRules {
                    controller: INTERMEDIATE,
                    grant: ControllerGrant::Intermediate { organization: "istiod".to_owned() },
                    ttl: 7 * DAY,
                },
                ControllerRules {
                    controller: WORKLOAD_SECRET,
                    grant: ControllerGrant::Workload { namespaces: vec!["foo".parse().unwrap()] },
                    ttl: 2 * DAY,
                },
            ],
            signers: vec![SignerRules {
                name: SIGNER.to_owned(),
                requesters: vec![
                    requester(ISTIOD, Scope::DnsNames(vec!["istiod.istio-system.svc".parse().unwrap()])),
                    requester(ISTIOD, Scope::AnyWorkload { trust_domain: local }),
                    requester("system:serviceaccount:foo:bar", Scope::Itself),
                    requester("alice", Scope::Itself),
                ],
            }],
            profiles: Vec::new(),
        }],
    }
}

fn controller(name: &'static str, subject: Option<&str>) -> Identity {
    let subject = subject.map(|id| id.parse::<SpiffeId>().unwrap());
    Identity::Controller { cluster: ClusterName::default(), name, subject }
}

fn requester(username: &str) -> Identity {
    Identity::Requester { cluster: ClusterName::default(), signer: SIGNER.into(), username: username.into() }
}

fn secret(id: &str) -> Identity {
    controller(WORKLOAD_SECRET, Some(id))
}

fn decide(identity: &Identity, names: &[(u32, &[u8])], issuer: &Issuer) -> Result<Template, Denied> {
    rules().grant(identity, &csr(names), &Asked::default(), issuer, now()).map(|grant| grant.template().clone())
}

#[test]
fn names_come_from_the_configuration_and_the_caller() {
    let issuer = SoftCa::new(&P256).issuer;
    let own = b"spiffe://cluster.local/ns/foo/sa/bar".as_slice();
    let other = b"spiffe://cluster.local/ns/x/sa/y".as_slice();
    let dns = b"istiod.istio-system.svc".as_slice();
    let bar = "system:serviceaccount:foo:bar";
    let cases: [(Identity, Vec<(u32, &[u8])>, Vec<&str>, Duration); 7] = [
        (controller(ISTIOD_CERTIFICATE, None), vec![], vec!["DNS:istiod.istio-system.svc", "IP:10.0.0.1"], HOUR),
        (secret("spiffe://cluster.local/ns/foo/sa/z"), vec![], vec!["URI:spiffe://cluster.local/ns/foo/sa/z"], 2 * DAY),
        (requester(bar), vec![], vec!["URI:spiffe://cluster.local/ns/foo/sa/bar"], DAY),
        (requester(bar), vec![(6, own)], vec!["URI:spiffe://cluster.local/ns/foo/sa/bar"], DAY),
        (requester(ISTIOD), vec![(6, other)], vec!["URI:spiffe://cluster.local/ns/x/sa/y"], DAY),
        (requester(ISTIOD), vec![(2, dns)], vec!["DNS:istiod.istio-system.svc"], DAY),
        (requester(ISTIOD), vec![(2, b"ISTIOD.istio-system.svc")], vec!["DNS:istiod.istio-system.svc"], DAY),
    ];
    for (identity, names, expected, ttl) in cases {
        let template = decide(&identity, &names, &issuer).unwrap_or_else(|denied| panic!("{identity}: {denied}"));
        assert_eq!(template.names.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{identity}");
        assert_eq!((&template.profile, template.not_after), (&Profile::Leaf, now() + ttl), "{identity}");
    }
}

#[test]
fn grant_refuses_what_is_not_configured() {
    let issuer = SoftCa::new(&P256).issuer;
    let own = b"spiffe://cluster.local/ns/foo/sa/bar".as_slice();
    let evil = b"spiffe://evil.local/ns/foo/sa/bar".as_slice();
    let two: Vec<(u32, &[u8])> = vec![(6, own), (6, b"spiffe://cluster.local/ns/x/sa/y")];
    let bar = "system:serviceaccount:foo:bar";
    let elsewhere = "other".to_owned().try_into().unwrap();
    let foreign = |name: &str| Denied::ForeignName(name.to_owned());
    let unlisted = |username: &str| Denied::Requester { signer: SIGNER.to_owned(), username: username.to_owned() };
    let other_signer =
        Identity::Requester { cluster: ClusterName::default(), signer: "x.y/z".into(), username: ISTIOD.into() };
    let account = "spiffe://cluster.local/ns/foo/sa/y";
    let cases: [(Identity, Vec<(u32, &[u8])>, Denied); 18] = [
        (controller("other", None), vec![], Denied::NotConfigured("other")),
        (controller(WORKLOAD_SECRET, None), vec![], Denied::NoNames),
        (controller(INTERMEDIATE, Some(account)), vec![], foreign(&format!("URI:{account}"))),
        (controller(ISTIOD_CERTIFICATE, Some(account)), vec![], foreign(&format!("URI:{account}"))),
        (secret("spiffe://cluster.local/ns/x/sa/y"), vec![], Denied::Namespace("x".parse().unwrap())),
        (secret("spiffe://evil.local/ns/foo/sa/y"), vec![], Denied::TrustDomain("evil.local".parse().unwrap())),
        (
            secret("spiffe://cluster.local/ns/foo/sa/y"),
            vec![(6, own)],
            foreign("URI:spiffe://cluster.local/ns/foo/sa/bar"),
        ),
        (
            Identity::Controller { cluster: elsewhere, name: INTERMEDIATE, subject: None },
            vec![],
            Denied::NotConfigured("anything"),
        ),
        (requester("mallory"), vec![], unlisted("mallory")),
        (requester("system:serviceaccount:foo:barx"), vec![], unlisted("system:serviceaccount:foo:barx")),
        (requester("alice"), vec![], Denied::NotAServiceAccount("alice".to_owned())),
        (other_signer, vec![], Denied::NotConfigured("the signer")),
        (requester(bar), two.clone(), foreign("URI:spiffe://cluster.local/ns/x/sa/y")),
        (requester(bar), vec![(2, b"foo")], foreign("DNS:foo")),
        (requester(ISTIOD), vec![], Denied::NoNames),
        (requester(ISTIOD), vec![(2, b"istiod.evil.svc")], foreign("DNS:istiod.evil.svc")),
        (requester(ISTIOD), vec![(6, evil)], foreign("URI:spiffe://evil.local/ns/foo/sa/bar")),
        (requester(ISTIOD), vec![(6, own), (2, b"x")], foreign("URI:spiffe://cluster.local/ns/foo/sa/bar")),
    ];
    for (identity, names, denied) in cases {
        assert_eq!(decide(&identity, &names, &issuer), Err(denied), "{identity}");
    }
    // Two identities in one certificate, for a requester that may obtain each of them.
    let only_workloads = |mut rules: Rules| {
        rules.clusters[0].signers[0].requesters.remove(0);
        rules
    };
    let granted = only_workloads(rules()).grant(&requester(ISTIOD), &csr(&two), &Asked::default(), &issuer, now());
    assert_eq!(granted.map(|_| ()), Err(Denied::SeveralIdentities));
}

#[test]
fn only_the_intermediate_controller_obtains_a_ca_and_only_below_a_ca_that_permits_it() {
    let certificate = |name: &str, constraints| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
        params.is_ca = rcgen::IsCa::Ca(constraints);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 3);
        let pem = params.self_signed(&*P256).unwrap().pem();
        plug_in(&pem, &pem)
    };
    let who = controller(INTERMEDIATE, None);
    let wide = certificate("root", rcgen::BasicConstraints::Unconstrained);
    let template = decide(&who, &[], &wide).unwrap();
    assert_eq!(template.profile, Profile::Intermediate { organization: "istiod".to_owned() });
    assert!(template.names.is_empty());
    assert_eq!(template.not_after, wide.not_after(), "never longer than the CA");
    let narrow = certificate("root", rcgen::BasicConstraints::Constrained(0));
    assert_eq!(decide(&who, &[], &narrow), Err(Denied::IntermediatePath));
    assert_eq!(Denied::IntermediatePath.kind(), Kind::FailedPrecondition);
    let same_name = certificate("istiod", rcgen::BasicConstraints::Unconstrained);
    assert_eq!(decide(&who, &[], &same_name), Err(Denied::IntermediateName("istiod".to_owned())));
    let named = decide(&who, &[(2, b"a")], &wide);
    assert_eq!(named, Err(Denied::ForeignName("DNS:a".to_owned())));
    for other in [
        requester(ISTIOD),
        Identity::Operator { uid: 0 },
        Identity::Workload("spiffe://cluster.local/ns/foo/sa/bar".parse().unwrap()),
    ] {
        if let Ok(template) = decide(&other, &[], &wide) {
            assert_eq!(template.profile, Profile::Leaf, "{other}");
        }
    }
}
