//! All controllers of one daemon with its token: the API server goes away and comes back, and watches are interrupted,
//! with and without closing the connection. Afterwards all objects are in the desired state, nothing was issued twice,
//! and the endpoint served all the time.

use std::{
    collections::BTreeMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    harness::{Cluster, eventually, site},
    kinds::{ALL, Kind},
    outage::outage,
    proxy::Proxy,
    trust_bundles,
};
use testkit::{
    api_server::{ApiServer, SOON},
    daemon::{Daemon, IDENTITY, Site},
    plug_in::PlugIn,
};

/// An API server that goes away, used by no other test.
static GONE: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://gone.kube.test"));
/// An API server that stays, behind a proxy.
static CUT: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://cut.kube.test"));

type Serials = BTreeMap<String, String>;

/// A daemon with all controllers.
struct Scene {
    cluster: Cluster,
    site: Site,
    daemon: Daemon,
}

impl Scene {
    async fn start(server: &'static ApiServer, name: &str, proxy: Option<&Proxy>) -> Self {
        let cluster = Cluster::new(server, name).await;
        for kind in ALL {
            kind.prepare(&cluster).await;
        }
        let kubeconfig = cluster.admin();
        if let Some(proxy) = proxy {
            proxy.redirect(&kubeconfig, &server.url);
        }
        let site = site();
        let parts: String = ALL.map(|kind| kind.toml(&cluster)).concat();
        let daemon = site.serve(&format!(
            "[admin]\nstatus_address = '127.0.0.1:0'\n[token_host]\nallow_intermediate = true\n[kubernetes]\nnamespace = '{}'\nidentity = 'one'\n\
             [[kubernetes.cluster]]\nname = 'Kubernetes'\nkubeconfig = '{}'\n{parts}",
            cluster.namespace,
            kubeconfig.display()
        ));
        Self { cluster, site, daemon }
    }

    /// All objects are in the desired state, and no problems are reported.
    async fn well(&self) -> Serials {
        let mut last = String::new();
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(serials) = self.serials().await {
                last = self.daemon.get("/readyz").1;
                let controllers = last.lines().filter(|line| line.starts_with("controller "));
                if controllers.clone().count() == ALL.len() && controllers.clone().all(|line| line.ends_with(": ok")) {
                    return serials;
                }
            }
            assert!(Instant::now() < deadline, "not in the desired state:\n{last}\n{}", self.daemon.stderr());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Text of the status page.
    async fn page(&self) -> String {
        let line = self.daemon.wait_line(|line| line["message"] == "status page");
        reqwest::get(line["page"].as_str().unwrap()).await.unwrap().text().await.unwrap()
    }

    async fn serials(&self) -> Option<Serials> {
        let mut serials = Serials::new();
        for kind in ALL {
            serials.extend(kind.serials(&self.cluster).await?);
        }
        Some(serials)
    }

    /// Issues for callers whose authentication needs no API server; returns how many.
    async fn served(&self, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut count = 0;
        while Instant::now() < end {
            let answer = self.daemon.send(self.daemon.ask()).await;
            assert!(answer.is_ok(), "{answer:?}");
            assert_eq!(self.daemon.get("/readyz").0, 200, "{}", self.daemon.get("/readyz").1);
            count += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        count
    }

    /// Number of certificates in the log, without those of the test's own caller and the endpoint.
    fn issued(&self) -> usize {
        let of_others = |line: &serde_json::Value| {
            let caller = line["caller"]["identity"].as_str().unwrap();
            caller != IDENTITY && !caller.starts_with("internal:")
        };
        self.site.intents().into_values().filter(of_others).count()
    }

    /// Deletes and edits the objects of each controller, creates and removes some.
    async fn disturb(&self, round: &str) {
        let secrets: Api<Secret> = self.cluster.api();
        for name in ["istiod-tls", "istio.web"] {
            secrets.delete(name, &DeleteParams::default()).await.unwrap();
        }
        let edit = Patch::Merge(json!({"data": {"ca-cert.pem": "eA=="}}));
        secrets.patch("cacerts", &PatchParams::default(), &edit).await.unwrap();
        self.cluster.api::<ConfigMap>().delete("istio-ca-root-cert", &DeleteParams::default()).await.unwrap();
        let other: Api<ConfigMap> =
            Api::namespaced(self.cluster.client.clone(), &format!("{}-b", self.cluster.namespace));
        let edit = Patch::Merge(json!({"data": {"root-cert.pem": "wrong"}}));
        other.patch("istio-ca-root-cert", &PatchParams::default(), &edit).await.unwrap();
        Kind::Signer.ask(&self.cluster, round).await;
        Kind::Pods.ask(&self.cluster, round).await;
        let bundle = format!("{}.example.com:pods:root-cert", self.cluster.namespace);
        trust_bundles::write(&self.cluster, &bundle, &PlugIn::intermediate().root_cert).await;
        Kind::CertManager.ask(&self.cluster, round).await;
        self.cluster.account(&format!("new-{round}")).await;
        let namespace = format!("{}-{round}", self.cluster.namespace);
        self.cluster.make_namespace(&namespace).await;
        let label = Patch::Merge(json!({"metadata": {"labels": {"mesh": self.cluster.namespace}}}));
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        namespaces.patch(&namespace, &PatchParams::default(), &label).await.unwrap();
    }

    /// All of that is corrected, with one certificate per object.
    async fn put_right(&self, round: &str, before: &Serials, issued: usize) -> Serials {
        let secrets: Api<Secret> = self.cluster.api();
        eventually("the new account's Secret", async || {
            secrets.get_opt(&format!("istio.new-{round}")).await.unwrap().map(drop)
        })
        .await;
        let namespace = format!("{}-{round}", self.cluster.namespace);
        let roots: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), &namespace);
        eventually("the roots in the new namespace", async || {
            roots.get_opt("istio-ca-root-cert").await.unwrap().map(drop)
        })
        .await;
        let after = self.well().await;
        for (name, serial) in before {
            let another = ["istiod-tls", "istio.web", "cacerts"].contains(&name.as_str());
            assert_eq!(after[name] != *serial, another, "{name}");
        }
        // istiod's, the workload's, the intermediate; the new requests', the new account's.
        assert_eq!(self.issued(), issued + 7, "not one certificate per object");
        after
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn an_api_server_goes_and_comes_back_and_nothing_is_issued_twice() {
    let scene = Scene::start(&GONE, "gone", None).await;
    let before = scene.well().await;
    let issued = scene.issued();
    assert_eq!(u64::try_from(issued).unwrap(), ALL.iter().map(|kind| kind.certificates()).sum::<u64>());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let page = scene.page().await;
    assert!(page.contains("this replica leads") && page.contains("answers"), "{page}");
    assert_eq!(page.matches("all is as it should be").count(), ALL.len(), "{page}");
    for kind in ALL {
        assert!(page.contains(kind.name()), "{}", kind.name());
    }

    GONE.kill();
    // Longer than the Lease's duration: the former leader must become leader again.
    assert!(scene.served(outage()).await > 10);
    let page = scene.page().await;
    assert!(page.contains("this replica does not lead"), "{page}");
    assert_eq!(page.matches("stands by").count(), ALL.len(), "{page}");
    GONE.run();
    assert_eq!(scene.well().await, before, "objects were changed");
    eventually("its lead", async || {
        scene.daemon.get("/metrics").1.lines().any(|line| line == "istio_hsm_ca_leader 1").then_some(())
    })
    .await;
    assert_eq!(scene.issued(), issued, "certificates were issued");

    scene.disturb("after").await;
    scene.put_right("after", &before, issued).await;
    assert!(scene.served(Duration::from_secs(1)).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn watches_are_cut_and_what_was_missed_is_seen() {
    let to = CUT.url.strip_prefix("https://").unwrap().parse().unwrap();
    let proxy = Proxy::start(to).await;
    let scene = Scene::start(&CUT, "cut", Some(&proxy)).await;
    let mut serials = scene.well().await;
    let mut issued = scene.issued();

    // Interrupted and back at once; then interrupted for a while, with changes in between.
    proxy.cut();
    scene.served(Duration::from_secs(2)).await;
    scene.disturb("one").await;
    serials = scene.put_right("one", &serials, issued).await;
    issued = scene.issued();

    proxy.close(true);
    proxy.cut();
    scene.disturb("two").await;
    scene.served(Duration::from_secs(5)).await;
    assert_eq!(scene.issued(), issued, "the change cannot be known yet");
    proxy.close(false);
    serials = scene.put_right("two", &serials, issued).await;
    issued = scene.issued();

    // Silently: the connections stay open, but no data passes.
    proxy.silence();
    scene.disturb("three").await;
    scene.served(Duration::from_secs(2)).await;
    scene.put_right("three", &serials, issued).await;
}
