//! TokenReview: real JWTs of real service accounts, and all kinds of invalid ones.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bench::agent::{TokenIssuer, Workload};
use istio_hsm_ca::{
    auth::{
        credentials::BearerToken,
        token_review::{Review, Reviewer},
    },
    kubernetes::{Cluster as Configured, reviewer::ApiServer as Asked},
};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, api::DeleteParams};
use process::clock;

use super::harness::{Cluster, ask, cluster_toml, eventually, may_review, site};
use testkit::api_server::{ApiServer, EAST, WEST};

fn reviewed(server: &ApiServer, more: &str) -> String {
    format!("[kubernetes.cluster.token_review]\nissuers = ['{}']\ncache = '1s'\n{more}", server.issuer)
}

fn id(cluster: &Cluster, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{account}", cluster.namespace)
}

/// A JWT as the API server would sign it, with its own key.
fn forged(server: &ApiServer, cluster: &Cluster, audience: &str, at: SystemTime) -> String {
    let issuer = TokenIssuer::new(server.token_key.as_bytes(), server.issuer.into(), audience.into()).unwrap();
    let workload = Workload { namespace: cluster.namespace.clone(), service_account: "web".into() };
    issuer.mint(&workload, at, Duration::from_secs(600)).unwrap()
}

/// The API server's own result, without our checks.
async fn review(cluster: &Cluster, kubeconfig: &std::path::Path, token: &str) -> Review {
    let settings = format!("kubeconfig = '{}'", kubeconfig.display());
    let own = ["cluster.local".parse().unwrap()];
    let configured = Configured::new(toml::from_str(&settings).unwrap(), &own).await.unwrap();
    let asked = Asked::new(Arc::new(configured));
    let review = asked.review(BearerToken::new(token), &["istio-ca".to_owned()]).await;
    review.unwrap_or_else(|error| panic!("{error}\n{}", cluster.server.log()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn tokens_prove_who_they_are_issued_for_and_nothing_else() {
    let cluster = Cluster::new(&EAST, "tokens").await;
    cluster.account("web").await;
    cluster.account("other").await;
    let pod = cluster.pod("web-1", "web", "node-1").await;
    let kubeconfig = cluster.user("daemon", &[may_review()], &[]).await;
    let site = site();
    let daemon = site.serve(&cluster_toml("Kubernetes", &kubeconfig, &reviewed(&EAST, "")));

    let good = cluster.token("web", "istio-ca", Some(&pod)).await;
    assert_eq!(ask(&daemon, &good, "Kubernetes", &id(&cluster, "web")).await, "issued");
    let line = daemon.wait_line(|line| line["message"] == "issued");
    assert_eq!(line["method"], "token_review");
    assert_eq!(ask(&daemon, &good, "", &id(&cluster, "web")).await, "issued", "no cluster means the default one");
    assert_eq!(ask(&daemon, &good, "other", &id(&cluster, "web")).await, "Unauthenticated");
    assert_eq!(ask(&daemon, &good, "Kubernetes", &id(&cluster, "other")).await, "PermissionDenied");

    // The issuer's other authentication method still works.
    let answer = daemon.send(daemon.ask()).await;
    assert!(answer.is_ok(), "{answer:?}");

    let unbound = cluster.token("web", "istio-ca", None).await;
    assert_eq!(ask(&daemon, &unbound, "Kubernetes", &id(&cluster, "web")).await, "issued");

    let elsewhere = cluster.token("web", "https://other.test", Some(&pod)).await;
    assert_eq!(ask(&daemon, &elsewhere, "Kubernetes", &id(&cluster, "web")).await, "Unauthenticated");
    assert!(!review(&cluster, &kubeconfig, &elsewhere).await.authenticated, "the API server accepts it");

    let signature = good.rfind('.').unwrap() + 10;
    let mut tampered = good.clone();
    tampered.replace_range(signature..=signature, if &good[signature..=signature] == "A" { "B" } else { "A" });
    assert_eq!(ask(&daemon, &tampered, "Kubernetes", &id(&cluster, "web")).await, "Unauthenticated");

    let now = clock::now();
    let expired = forged(&EAST, &cluster, "istio-ca", now - Duration::from_secs(1200));
    assert_eq!(ask(&daemon, &expired, "Kubernetes", &id(&cluster, "web")).await, "Unauthenticated");
    assert!(!review(&cluster, &kubeconfig, &expired).await.authenticated);

    // Signed with the API server's key, for an account that never existed with this UID.
    let invented = forged(&EAST, &cluster, "istio-ca", now);
    assert_eq!(ask(&daemon, &invented, "Kubernetes", &id(&cluster, "web")).await, "Unauthenticated");

    // Deleted with its pod; the result is cached for a second.
    cluster.delete_pod("web-1").await;
    eventually("the end of a deleted pod's token", async || {
        (ask(&daemon, &good, "Kubernetes", &id(&cluster, "web")).await == "Unauthenticated").then_some(())
    })
    .await;
    assert_eq!(ask(&daemon, &unbound, "Kubernetes", &id(&cluster, "web")).await, "issued");
    let accounts: Api<ServiceAccount> = cluster.api();
    accounts.delete("web", &DeleteParams::default()).await.unwrap();
    eventually("the end of a deleted account's token", async || {
        (ask(&daemon, &unbound, "Kubernetes", &id(&cluster, "web")).await == "Unauthenticated").then_some(())
    })
    .await;

    let log = daemon.stderr();
    for token in [&good, &unbound, &elsewhere, &expired] {
        assert!(!log.contains(token.rsplit('.').next().unwrap()), "a JWT is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_cluster_judges_its_own_tokens() {
    let (east, west) = (Cluster::new(&EAST, "east").await, Cluster::new(&WEST, "west").await);
    for cluster in [&east, &west] {
        cluster.account("web").await;
    }
    let east_user = east.user("daemon", &[may_review()], &[]).await;
    let west_user = west.user("daemon", &[may_review()], &[]).await;
    let site = site();
    let daemon = site.serve(&format!(
        "[ca]\ntrust_domains = ['cluster.local', 'west.local']\n{}{}",
        cluster_toml("east", &east_user, &reviewed(&EAST, "")),
        cluster_toml("west", &west_user, &format!("trust_domain = 'west.local'\n{}", reviewed(&WEST, ""))),
    ));
    let east_token = east.token("web", "istio-ca", None).await;
    let west_token = west.token("web", "istio-ca", None).await;
    let west_id = format!("spiffe://west.local/ns/{}/sa/web", west.namespace);
    assert_eq!(ask(&daemon, &east_token, "east", &id(&east, "web")).await, "issued");
    assert_eq!(ask(&daemon, &west_token, "west", &west_id).await, "issued");
    // Whichever cluster the client sends, the other API server never reviews it.
    for (token, named) in [(&east_token, "west"), (&west_token, "east"), (&west_token, "north")] {
        assert_eq!(ask(&daemon, token, named, &id(&east, "web")).await, "Unauthenticated");
        assert_eq!(ask(&daemon, token, named, &west_id).await, "Unauthenticated");
    }
    // A JWT with east's issuer signed by west: east reviews and rejects it.
    let west_key = TokenIssuer::new(WEST.token_key.as_bytes(), EAST.issuer.into(), "istio-ca".into()).unwrap();
    let workload = Workload { namespace: east.namespace.clone(), service_account: "web".into() };
    let forged = west_key.mint(&workload, clock::now(), Duration::from_secs(600)).unwrap();
    assert_eq!(ask(&daemon, &forged, "east", &id(&east, "web")).await, "Unauthenticated");
    assert_eq!(ask(&daemon, &forged, "west", &id(&east, "web")).await, "Unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn without_the_right_to_review_tokens_cannot_be_judged() {
    let cluster = Cluster::new(&EAST, "noreview").await;
    cluster.account("web").await;
    let kubeconfig = cluster.user("daemon", &[], &[]).await;
    let site = site();
    let daemon = site.serve(&cluster_toml("Kubernetes", &kubeconfig, &reviewed(&EAST, "")));
    let token = cluster.token("web", "istio-ca", None).await;
    assert_eq!(ask(&daemon, &token, "Kubernetes", &id(&cluster, "web")).await, "Unavailable");
    let line = daemon.wait_line(|line| line["message"] == "refused");
    assert!(line["reason"].as_str().unwrap().contains("tokenreviews.authentication.k8s.io is forbidden"), "{line}");
}
