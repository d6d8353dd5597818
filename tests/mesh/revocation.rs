//! Scenario 10: CRLs are enabled, a workload's certificate is revoked, and CRLs are disabled.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    mesh::{Mesh, WORKLOADS},
    node::inside,
    rotation::readyz,
};

const REVOKED: &str = "reviews";
/// Until the kubelet has replaced the files and Envoy has loaded them.
const PASSED_ON: Duration = Duration::from_secs(10);

/// The same key, with cRLSign, which the sample's certificate lacks; and the root's CRL.
const PREPARE: &str = "openssl x509 -in bundle/ca-cert.pem -signkey cacerts/ca-key.pem -x509toreq -out crl.csr\n\
     printf 'basicConstraints = critical, CA:TRUE\\nkeyUsage = critical, keyCertSign, cRLSign\\n\
     subjectKeyIdentifier = hash\\nauthorityKeyIdentifier = keyid\\n' > crl.ext\n\
     openssl x509 -req -sha256 -days 365 -in crl.csr -CA cacerts/root-cert.pem -CAkey cacerts/offline/root-key.pem \
       -extfile crl.ext -out crl-ca.pem\n\
     istio-hsm-ca install --token \"$TOKEN\" --pin-file \"$PIN_FILE\" --ca-cert crl-ca.pem \
       --root-cert bundle/root-cert.pem --bundle crl-bundle\n\
     kubectl create configmap istio-hsm-ca-bundle -n istio-system --from-file=crl-bundle --dry-run=client -o yaml |\n\
     kubectl replace -f -\n\
     : > index\n\
     echo 01 > number\n\
     printf '[ca]\\ndefault_ca = d\\n[d]\\ndatabase = index\\ncrlnumber = number\\ndefault_md = sha256\\n\
     crl_extensions = e\\n[e]\\nauthorityKeyIdentifier = keyid\\n' > root.cnf\n\
     openssl ca -gencrl -config root.cnf -cert cacerts/root-cert.pem -keyfile cacerts/offline/root-key.pem \
       -crldays 365 -out root.crl";

/// The first step of enabling. Helm replaces lists as a whole.
const CONFIGURE: &str = "cat > revocation.yaml <<YAML\n\
     config:\n  \
       revocation:\n    \
         store: { config_map: istio-hsm-ca-revocations }\n    \
         root_crl_files: [/etc/istio-hsm-ca/crls/root.crl]\n  \
       kubernetes:\n    \
         cluster:\n      \
           - token_review: { issuers: [\"https://kubernetes.default.svc.cluster.local\"] }\n        \
             root_configmap: {}\n        \
             istiod_certificate: {}\n        \
             crl_configmap: {}\n\
     YAML\n\
     helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values -f revocation.yaml \
       --set-file 'crlFiles.root\\.crl=root.crl'";

/// A configuration with which `revoke` finds the store.
const COMMAND: &str = "cat > revoke.toml <<TOML\n\
     [ca]\nbundle = \"$PWD/crl-bundle\"\n\
     [[token]]\nname = \"trial\"\nuri = \"$TOKEN&pin-source=file:$PIN_FILE\"\n\
     [serving]\ndns_names = [\"istio-hsm-ca.istio-system.svc\"]\n\
     [log]\ndirectory = \"$PWD/revoke-log\"\n\
     [revocation]\nstore = { config_map = \"istio-hsm-ca-revocations\" }\n\
     [kubernetes]\nnamespace = \"istio-system\"\nidentity = \"operator\"\n\
     [[kubernetes.cluster]]\nkubeconfig = \"$KUBECONFIG\"\n\
     TOML";

async fn set_enabled(mesh: &Mesh, enabled: bool) {
    mesh.shell(&format!(
        "helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values --set config.revocation.enabled={enabled}"
    ))
    .await;
    mesh.ca_rolled().await;
}

/// Waits until the ConfigMap has CRLs, or is empty, and proxies have it.
async fn published(mesh: &Mesh, test: &str) {
    mesh.shell(&format!(
        "until crls=$(kubectl -n demo get configmap istio-ca-crl -o jsonpath='{{.data.ca-crl\\.pem}}') && {test}; do \
           sleep 0.5; done"
    ))
    .await;
    tokio::time::sleep(PASSED_ON).await;
}

/// Counters of connections that the other side rejected: as a server, and, after the client's handshake, as a client.
const FAILURES: [&str; 2] = ["cx_connect_fail", "cx_destroy_remote_with_active_rq"];

/// Failed connections from each workload to each other, as the clients' proxies count them.
async fn failed(mesh: &Mesh) -> BTreeMap<(String, String), u64> {
    let mut all = BTreeMap::new();
    for (pod, live) in mesh.kubelet.pods("demo") {
        let Some(client) = WORKLOADS.iter().find(|name| pod.starts_with(&format!("demo/{name}-"))) else { continue };
        let url = format!("http://{}:15090/stats/prometheus", live.address);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        for server in WORKLOADS.iter().filter(|server| *server != client) {
            let of_pair = |line: &&str| {
                FAILURES.iter().any(|name| line.starts_with(&format!("envoy_cluster_upstream_{name}{{")))
                    && line.contains(&format!("|{server}.demo.svc"))
            };
            let lines = text.lines().filter(of_pair).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            all.insert(((*client).to_owned(), (*server).to_owned()), lines.sum::<f64>() as u64);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn revoked_workload_is_cut_off_and_no_other_loses_a_request() {
    if !inside("revocation::revoked_workload_is_cut_off_and_no_other_loses_a_request") {
        return;
    }
    let mesh = Mesh::after_the_guide("10-revocation", &[]).await;
    let mut story = mesh.story("10", "Revocation").await;
    mesh.shell(PREPARE).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    mesh.shell(CONFIGURE).await;
    mesh.ca_rolled().await;
    published(&mesh, "[ -z \"$crls\" ]").await;
    // Agents pass the file on if it is there when Envoy requests the roots.
    mesh.restart_workloads().await;
    readyz(&mesh, "complete").await;
    story.step("`[revocation]` and empty ConfigMaps; workloads restarted").await;

    set_enabled(&mesh, true).await;
    published(&mesh, "[ -n \"$crls\" ]").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    story.step("CRLs enabled").await;

    let serial = mesh.workload_certificates().await[REVOKED].serial.clone();
    let before = failed(&mesh).await;
    mesh.shell(COMMAND).await;
    let at = Instant::now();
    mesh.shell(&format!(
        "istio-hsm-ca revoke --config revoke.toml --serial {serial} --reason keyCompromise --yes \
         $(printf -- '--log %s ' /run/mesh/claims/*/log)"
    ))
    .await;
    let shown = loop {
        let since = failed(&mesh).await;
        let cut_off = |(pair, count): (&(String, String), &u64)| {
            (pair.0 == REVOKED || pair.1 == REVOKED).then_some(*count > before[pair])
        };
        if since.iter().filter_map(cut_off).all(|is| is) {
            break at.elapsed();
        }
        assert!(at.elapsed() < Duration::from_secs(90), "not cut off: {since:?}\n{}", mesh.logs.tails(15));
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = failed(&mesh).await;
    for (pair, count) in after.iter().filter(|(pair, _)| pair.0 != REVOKED && pair.1 != REVOKED) {
        assert_eq!(count, &before[pair], "{pair:?} is not concerned");
    }
    story.failing_step("the certificate of one workload revoked: cut off, as intended").await;
    story.note(format!(
        "`{REVOKED}` was rejected as client and as server {} s after the command; requests between the others did not fail.",
        shown.as_secs()
    ));

    // A new key, and so a new certificate.
    mesh.shell(&format!("kubectl -n demo rollout restart deployment/{REVOKED}")).await;
    mesh.workloads_rolled().await;
    // Until the old pod has ended.
    tokio::time::sleep(Duration::from_secs(25)).await;
    story.failing_step("the workload restarted, with a new key").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    story.step("with its new certificate").await;

    set_enabled(&mesh, false).await;
    published(&mesh, "[ -z \"$crls\" ]").await;
    story.step("CRLs disabled").await;
    assert!(story.all_ours().await);
    story.end().await;
}
