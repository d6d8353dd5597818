//! Leader election: one replica leads, another takes over, and no replica leads that cannot renew.

use std::time::{Duration, Instant};

use istio_hsm_ca::kubernetes::leader::{Election, Timing};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt, api::PostParams};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::harness::{Cluster, cluster_toml, eventually, named, rule, site};
use testkit::{
    api_server::{EAST, SOON},
    daemon::Daemon,
};

const QUICK: Timing =
    Timing { lease: Duration::from_secs(3), renew: Duration::from_secs(2), retry: Duration::from_millis(300) };

struct Replica {
    leading: watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Replica {
    fn start(cluster: &Cluster, client: kube::Client, name: &str) -> Self {
        let election = Election::new("lease".into(), name.into(), QUICK);
        let (leading, stop) = (election.leading(), CancellationToken::new());
        let task = tokio::spawn(election.run(client, cluster.namespace.parse().unwrap(), stop.clone()));
        Self { leading, stop, task }
    }

    fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    async fn until(&mut self, leads: bool) {
        let changed = self.leading.wait_for(|now| *now == leads);
        tokio::time::timeout(SOON, changed).await.expect("it does not come").unwrap();
    }
}

async fn lease(cluster: &Cluster) -> Lease {
    cluster.api::<Lease>().get("lease").await.unwrap()
}

async fn holder(cluster: &Cluster) -> String {
    lease(cluster).await.spec.unwrap().holder_identity.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn one_leads_and_another_takes_over() {
    let cluster = Cluster::new(&EAST, "leader").await;
    let mut first = Replica::start(&cluster, cluster.client.clone(), "a");
    first.until(true).await;
    let mut second = Replica::start(&cluster, cluster.client.clone(), "b");
    // Longer than the Lease's duration: renewals keep it.
    tokio::time::sleep(QUICK.lease * 2).await;
    assert!(first.leads() && !second.leads());
    assert_eq!(holder(&cluster).await, "a");

    // Regular stop: the Lease is released, and the next replica need not wait.
    first.stop.cancel();
    first.task.await.unwrap();
    assert!(!*first.leading.borrow());
    second.until(true).await;
    let spec = lease(&cluster).await.spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(2)));

    // Killed: another replica waits until the Lease ends by its own clock, and not longer.
    let mut third = Replica::start(&cluster, cluster.client.clone(), "c");
    tokio::time::sleep(QUICK.retry * 3).await;
    let killed = Instant::now();
    second.task.abort();
    third.until(true).await;
    assert!(killed.elapsed() > QUICK.lease - QUICK.renew, "{:?}", killed.elapsed());
    assert_eq!(holder(&cluster).await, "c");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn replica_that_loses_its_lease_stops_leading() {
    let cluster = Cluster::new(&EAST, "robbed").await;
    let mut first = Replica::start(&cluster, cluster.client.clone(), "a");
    first.until(true).await;
    // A holder that renews by hand, with a clock far behind ours, which does not matter.
    let leases: Api<Lease> = cluster.api();
    let robbed = async {
        loop {
            let mut lease = lease(&cluster).await;
            let spec = lease.spec.as_mut().unwrap();
            spec.holder_identity = Some("robber".into());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
            let _ = leases.replace("lease", &PostParams::default(), &lease).await;
            tokio::time::sleep(QUICK.retry).await;
        }
    };
    tokio::select! {
        () = first.until(false) => {}
        () = robbed => {}
    }
    // The other holder stops renewing, and its Lease expires.
    first.until(true).await;
    assert_eq!(holder(&cluster).await, "a");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_right_on_leases_is_needed() {
    let cluster = Cluster::new(&EAST, "leaserights").await;
    let create = rule("coordination.k8s.io", &["leases"], &["create"]);
    let mut hold = rule("coordination.k8s.io", &["leases"], &["get", "update"]);
    hold.resource_names = Some(vec!["lease".into()]);
    let ns = cluster.namespace.as_str();
    // (permissions, whether it leads if there is no Lease yet, and whether it continues to lead)
    let without = |verb: &str| {
        let mut rule = hold.clone();
        rule.verbs.retain(|other| other != verb);
        rule
    };
    let cases = [
        ("all", vec![create.clone(), hold.clone()], true, true),
        ("nocreate", vec![hold.clone()], false, false),
        ("noget", vec![create.clone(), without("get")], false, false),
        ("noupdate", vec![create.clone(), without("update")], true, false),
    ];
    for (name, rules, takes, keeps) in cases {
        let rules: Vec<_> = rules.into_iter().map(|rule| (ns, rule)).collect();
        let kubeconfig = cluster.user(name, &[], &rules).await;
        let client = super::harness::client_of(&kubeconfig).await;
        let replica = Replica::start(&cluster, client, name);
        let deadline = Instant::now() + Duration::from_secs(if takes { 60 } else { 3 });
        while !replica.leads() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(replica.leads(), takes, "{name}");
        if takes && !keeps {
            eventually("the end of its lead", async || (!replica.leads()).then_some(())).await;
        } else if keeps {
            tokio::time::sleep(QUICK.renew * 2).await;
            assert!(replica.leads(), "{name}");
        }
        replica.stop.cancel();
        replica.task.await.unwrap();
        let _ = cluster.api::<Lease>().delete("lease", &kube::api::DeleteParams::default()).await;
    }
    let lease = Lease { metadata: named("other"), ..Lease::default() };
    assert_eq!(cluster.api::<Lease>().create(&PostParams::default(), &lease).await.unwrap().name_any(), "other");
}

/// Whether a daemon reports that it is the leader.
fn leads(daemon: &Daemon) -> bool {
    daemon.get("/metrics").1.lines().any(|line| line == "istio_hsm_ca_leader 1")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn a_replica_killed_while_it_leads_is_followed_by_the_other() {
    let cluster = Cluster::new(&EAST, "replicas").await;
    let kubeconfig = cluster.admin();
    let sites = [site(), site()];
    let serve = |index: usize| {
        sites[index].serve(&format!(
            "[kubernetes]\nnamespace = '{}'\nidentity = 'replica-{index}'\n{}",
            cluster.namespace,
            cluster_toml(
                "Kubernetes",
                &kubeconfig,
                "[kubernetes.cluster.root_configmap]\nnamespace_selector = 'nobody=here'",
            ),
        ))
    };
    let first = serve(0);
    eventually("a leader", async || leads(&first).then_some(())).await;
    let second = serve(1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(leads(&first) && !leads(&second));

    first.signal(Signal::SIGKILL);
    let killed = Instant::now();
    while !leads(&second) {
        // The endpoint runs on every replica, whichever leads.
        assert!(second.send(second.ask()).await.is_ok());
        assert!(killed.elapsed() < SOON, "no replica takes over:\n{}", second.stderr());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(first);
    // Regular end: the Lease is released, and the next replica need not wait.
    let third = serve(0);
    let (status, log) = second.stop();
    assert!(status.success() && log.contains("released the Lease"), "{log}");
    let ended = Instant::now();
    eventually("the next leader", async || leads(&third).then_some(())).await;
    assert!(ended.elapsed() < Timing::default().lease, "{:?}", ended.elapsed());
}
