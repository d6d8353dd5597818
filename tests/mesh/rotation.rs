//! Scenario 3: new CA certificates, keys and roots.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    mesh::{Mesh, REPLICAS, SOON},
    node::inside,
    story::Story,
};

/// What `/readyz` says of a bundle that drops a root.
const WARNING: &str = "workloads that trust only that one would fail; add it again, or set allow_root_removal";

/// Issues a CA certificate for a request by a root: names of files.
fn sign(request: &str, root: &str, key: &str, out: &str) -> String {
    format!(
        "printf 'basicConstraints = critical, CA:TRUE\\nkeyUsage = critical, keyCertSign, cRLSign\\n' > ca.ext\n\
         openssl x509 -req -sha256 -days 365 -in {request} -CA {root} -CAkey {key} -extfile ca.ext -out {out}"
    )
}

/// A CA key in the token and a request for it.
fn generate(label: &str, request: &str) -> String {
    format!(
        "istio-hsm-ca generate --token \"$TOKEN\" --pin-file \"$PIN_FILE\" --algorithm p256 --label {label} \
         --subject O=Istio,CN={label} \
         --csr {request}"
    )
}

/// Makes a bundle and publishes it.
fn install(ca: &str, roots: &str, bundle: &str) -> String {
    format!(
        "istio-hsm-ca install --token \"$TOKEN\" --pin-file \"$PIN_FILE\" --ca-cert {ca} --root-cert {roots} \
           --bundle {bundle}\n{}",
        publish(bundle)
    )
}

fn publish(bundle: &str) -> String {
    format!(
        "kubectl create configmap istio-hsm-ca-bundle -n istio-system --from-file={bundle} --dry-run=client -o yaml |\n\
         kubectl replace -f -"
    )
}

/// A root with its key.
fn root(name: &str) -> String {
    format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/O=Example/CN={name}' \
           -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
           -keyout {name}-key.pem -out {name}.pem"
    )
}

/// Waits until every replica's page says something about its bundle.
pub async fn readyz(mesh: &Mesh, wanted: &str) {
    let started = Instant::now();
    loop {
        let mut texts = Vec::new();
        for (pod, live) in mesh.kubelet.pods("istio-system") {
            if pod.starts_with("istio-system/istio-hsm-ca-") {
                let reply = reqwest::get(format!("http://{}:15014/readyz", live.address)).await;
                texts.push(match reply {
                    Ok(reply) => reply.text().await.unwrap_or_default(),
                    Err(error) => error.to_string(),
                });
            }
        }
        if !texts.is_empty() && texts.iter().all(|text| text.contains(wanted)) {
            return;
        }
        assert!(started.elapsed() < SOON, "no {wanted:?}: {texts:#?}\n{}", mesh.logs.tails(15));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until both replicas use a bundle of the checkout and each workload has a certificate that was issued after that.
pub async fn renewed_with(mesh: &Mesh, story: &Story<'_>, bundle: &str) {
    let started = Instant::now();
    let directory = mesh.logs.directory().join("checkout").join(bundle);
    let file = |name: &str| fs::read(directory.join(name)).unwrap();
    let (ca, roots) = (file("ca-cert.pem"), file("root-cert.pem"));
    let used = |claim: &fs::DirEntry| {
        let same =
            |name: &str, wanted: &[u8]| fs::read(claim.path().join("log").join(name)).is_ok_and(|is| is == wanted);
        same("ca-in-use.pem", &ca) && same("roots-in-use.pem", &roots)
    };
    loop {
        if fs::read_dir("/run/mesh/claims").unwrap().flatten().filter(used).count() == REPLICAS.len() {
            break;
        }
        assert!(started.elapsed() < SOON, "{bundle} is not in use\n{}", mesh.logs.tails(15));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    story.renewed().await;
}

/// Allows or forbids bundles that drop a root.
async fn allow_root_removal(mesh: &Mesh, allow: bool) {
    mesh.shell(&format!(
        "helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values --set config.ca.allow_root_removal={allow}"
    ))
    .await;
    mesh.ca_rolled().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn new_certificates_keys_and_roots_of_the_ca_fail_no_request() {
    if !inside("rotation::new_certificates_keys_and_roots_of_the_ca_fail_no_request") {
        return;
    }
    let mesh = Mesh::after_the_guide("3-rotation", &[("SECRET_TTL", "20s")]).await;
    let mut story = mesh.story("3", "New certificate, key and root of the CA").await;
    story.note("Certificates are valid for 20 s, and agents renew them after 10 s; each step includes a renewal.");

    new_certificate(&mesh, &mut story).await;
    new_key(&mesh, &mut story).await;

    mesh.shell(&root("second-root")).await;
    mesh.shell("cat bundle/root-cert.pem second-root.pem > both.pem").await;
    mesh.shell(
        "helm upgrade istiod istio/istiod -n istio-system --reuse-values --set pilot.env.ISTIO_MULTIROOT_MESH=true",
    )
    .await;
    mesh.shell("kubectl -n istio-system rollout status deployment/istiod --timeout=240s").await;
    mesh.shell(&install("second.pem", "both.pem", "overlap")).await;
    renewed_with(&mesh, &story, "overlap").await;
    let shown = mesh.workload_certificates().await;
    assert!(shown.values().all(|shown| shown.roots.len() >= 2), "every workload trusts both roots: {shown:#?}");
    story.step("a second root is trusted in addition").await;

    mesh.shell(&generate("third", "third.csr")).await;
    mesh.open_token();
    mesh.shell(&sign("third.csr", "second-root.pem", "second-root-key.pem", "third.pem")).await;
    // Too early: the certificates in use are below the first root.
    mesh.shell(&install("third.pem", "second-root.pem", "only-second")).await;
    readyz(&mesh, WARNING).await;
    story.step("the first root dropped too early: refused").await;
    mesh.shell(&install("third.pem", "both.pem", "third-bundle")).await;
    renewed_with(&mesh, &story, "third-bundle").await;
    story.step("CA below the second root").await;

    allow_root_removal(&mesh, true).await;
    mesh.shell(&publish("only-second")).await;
    renewed_with(&mesh, &story, "only-second").await;
    let shown = mesh.workload_certificates().await;
    assert!(shown.values().all(|shown| shown.roots.len() == 1), "{shown:#?}");
    allow_root_removal(&mesh, false).await;
    story.step("the first root removed after the last certificate below it").await;

    // The control: what the daemon refuses does break the mesh.
    mesh.shell(&root("third-root")).await;
    mesh.shell(&sign("third.csr", "third-root.pem", "third-root-key.pem", "fourth.pem")).await;
    mesh.shell(&install("fourth.pem", "third-root.pem", "too-early")).await;
    readyz(&mesh, WARNING).await;
    story.step("the second root dropped too early: refused").await;
    story.note(
        "Each time, `/readyz` of both replicas said that workloads would fail and which setting allows it, and the \
         previous bundle stayed in use.",
    );
    allow_root_removal(&mesh, true).await;
    renewed_with(&mesh, &story, "too-early").await;
    story.failing_step("the same with `allow_root_removal`: requests must fail").await;
    story.end().await;
}

/// A new CA certificate for the same key, by the guide.
pub async fn new_certificate(mesh: &Mesh, story: &mut Story<'_>) {
    mesh.guide("### Renewing the CA certificate", "### A new root").await;
    renewed_with(mesh, story, "renewed-bundle").await;
    story.step("new CA certificate for the same key (GUIDE)").await;
}

/// A new CA key below the same root, after [`new_certificate`]. As the guide says, the old certificate stays known, for
/// renewal by certificates below it.
pub async fn new_key(mesh: &Mesh, story: &mut Story<'_>) {
    mesh.shell(
        "helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values \
           --set-file 'authFiles.old-ca\\.pem=renewed-bundle/ca-cert.pem' \
           --set 'config.auth.client_certificate.previous_ca_certificates={/etc/istio-hsm-ca/auth/old-ca.pem}'",
    )
    .await;
    mesh.ca_rolled().await;
    mesh.shell(&generate("second", "second.csr")).await;
    mesh.open_token();
    mesh.shell(&sign("second.csr", "cacerts/root-cert.pem", "cacerts/offline/root-key.pem", "second.pem")).await;
    mesh.shell(&install("second.pem", "bundle/root-cert.pem", "second-bundle")).await;
    renewed_with(mesh, story, "second-bundle").await;
    story.step("new CA key below the same root").await;
}
