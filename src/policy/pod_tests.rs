//! Grants for the pods of PodCertificateRequests.

use super::*;
use crate::auth::ClusterName;
use pki::testing::{DAY, P256, SoftCa, csr, now};

const HOUR: Duration = Duration::from_secs(3600);
const IDENTITIES: &str = "hsm.example.com/istio";
const SERVICES: &str = "hsm.example.com/services";

fn rules() -> Rules {
    let local: TrustDomain = "cluster.local".parse().unwrap();
    let names = |service: &str| (service.to_owned(), vec![format!("{service}.foo.svc").parse().unwrap()]);
    let signer = |name: &str, services| PodSignerRules {
        name: name.to_owned(),
        ttl: DAY,
        namespaces: vec!["foo".parse().unwrap()],
        services,
    };
    let bar = PodServiceRules {
        namespace: "foo".parse().unwrap(),
        service_account: "bar".parse().unwrap(),
        names: vec![names("one"), names("two")],
    };
    Rules {
        default_ttl: HOUR,
        max_ttl: 90 * DAY,
        trust_domains: vec![local.clone()],
        cert_signers: Vec::new(),
        serving_dns_names: Vec::new(),
        serving_ip_addresses: Vec::new(),
        serving_ttl: DAY,
        clusters: vec![ClusterRules {
            cluster: ClusterName::default(),
            trust_domain: local,
            controllers: Vec::new(),
            signers: Vec::new(),
            profiles: Vec::new(),
            pod_signers: vec![signer(IDENTITIES, Vec::new()), signer(SERVICES, vec![bar])],
        }],
    }
}

fn pod(signer: &str, account: &str, services: &[&str]) -> Identity {
    Identity::Pod {
        cluster: ClusterName::default(),
        signer: signer.into(),
        account: account.parse().unwrap(),
        name: "pod-1".into(),
        services: services.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn asked(seconds: i64) -> Asked {
    Asked { validity_seconds: seconds, ..Asked::default() }
}

fn names(identity: &Identity, requested: &[(u32, &[u8])]) -> Result<Vec<String>, Denied> {
    let issuer = SoftCa::new(&P256).issuer;
    let grant = rules().grant(identity, &csr(requested), &asked(86_400), &issuer, now())?;
    Ok(grant.template().names.iter().map(ToString::to_string).collect())
}

const BAR: &str = "spiffe://cluster.local/ns/foo/sa/bar";

#[test]
fn pod_obtains_its_service_account_or_its_listed_services() {
    let uri = vec![format!("URI:{BAR}")];
    assert_eq!(names(&pod(IDENTITIES, BAR, &[]), &[]).unwrap(), uri);
    assert_eq!(names(&pod(IDENTITIES, BAR, &["one"]), &[(6, BAR.as_bytes())]).unwrap(), uri);
    assert_eq!(names(&pod(SERVICES, BAR, &["two", "three", "one.foo.svc"]), &[]).unwrap(), ["DNS:two.foo.svc"]);
    let both = ["DNS:one.foo.svc", "DNS:two.foo.svc"];
    assert_eq!(names(&pod(SERVICES, BAR, &["two", "one"]), &[(2, b"two.foo.svc")]).unwrap(), both);
}

#[test]
fn pod_obtains_no_other_name() {
    let other = "spiffe://cluster.local/ns/foo/sa/other";
    let no_services =
        |account: &str| Denied::NoServices { signer: SERVICES.to_owned(), account: account.parse().unwrap() };
    let foreign = |name: &str| Denied::ForeignName(name.to_owned());
    let cases: [(Identity, &[(u32, &[u8])], Denied); 9] = [
        (pod("hsm.example.com/other", BAR, &[]), &[], Denied::NotConfigured("the signer")),
        (pod(IDENTITIES, BAR, &[]), &[(6, other.as_bytes())], foreign(&format!("URI:{other}"))),
        (pod(IDENTITIES, BAR, &["one"]), &[(2, b"one.foo.svc")], foreign("DNS:one.foo.svc")),
        (pod(IDENTITIES, "spiffe://cluster.local/ns/x/sa/bar", &[]), &[], Denied::Namespace("x".parse().unwrap())),
        (
            pod(IDENTITIES, "spiffe://evil.local/ns/foo/sa/bar", &[]),
            &[],
            Denied::TrustDomain("evil.local".parse().unwrap()),
        ),
        (pod(SERVICES, other, &["one"]), &[], no_services(other)),
        (pod(SERVICES, BAR, &["three"]), &[], Denied::NotSelected(BAR.parse().unwrap())),
        (pod(SERVICES, BAR, &["one"]), &[(2, b"two.foo.svc")], foreign("DNS:two.foo.svc")),
        (pod(SERVICES, BAR, &["one"]), &[(6, BAR.as_bytes())], foreign(&format!("URI:{BAR}"))),
    ];
    for (identity, requested, denied) in cases {
        assert_eq!(names(&identity, requested), Err(denied), "{identity}");
    }
}

#[test]
fn pod_certificate_lasts_from_an_hour_to_what_the_pod_allows() {
    let issuer = SoftCa::new(&P256).issuer;
    let (from, to) = (issuer.not_before(), issuer.not_after());
    let lifetime = |rules: &Rules, seconds: i64, now: SystemTime| {
        let grant = rules.grant(&pod(IDENTITIES, BAR, &[]), &csr(&[]), &asked(seconds), &issuer, now)?;
        let template = grant.template();
        assert!(template.not_before <= now && template.not_after <= issuer.not_after());
        Ok(template.not_after.duration_since(template.not_before).unwrap().as_secs())
    };
    let rules = rules();
    for (seconds, at, expected) in [
        (3600, now(), Ok(3600)),
        (3599, now(), Err(Denied::PodLifetimeAsked(3599))),
        (0, now(), Err(Denied::PodLifetimeAsked(0))),
        (-1, now(), Err(Denied::PodLifetimeAsked(-1))),
        (86_399, now(), Ok(86_399)),
        (7_862_400, now(), Ok(86_400)),
        (3600, from, Ok(3600)),
        (86_400, to - HOUR, Ok(3720)),
        (3600, to - HOUR, Ok(3600)),
        (3600, to - HOUR + Duration::from_secs(121), Err(Denied::PodLifetime)),
    ] {
        assert_eq!(lifetime(&rules, seconds, at), expected, "{seconds} s");
    }
    let short = Rules { max_ttl: Duration::from_secs(1800), ..rules };
    assert_eq!(lifetime(&short, 3600, now()), Err(Denied::PodLifetime));
}
