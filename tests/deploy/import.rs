//! The import Job against a real API server, with its own account and exactly the permissions of the manifests.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    rendered::{list, objects, of_kind, root, texts},
    tools::{Cluster, template, values_file},
};

/// A SoftHSM token, and the Job's command for it.
struct Job {
    directory: tempfile::TempDir,
    token: String,
    arguments: Vec<String>,
}

impl Job {
    fn new(objects: &[Value]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new(root().join("softhsm/init.sh")).arg(directory.path().join("token")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let pod = &of_kind(objects, "Job")[0]["spec"]["template"]["spec"];
        let arguments = texts(&list(&pod["containers"])[0]["args"]);
        Self { directory, token, arguments }
    }

    /// Runs the Job's command as rendered, except for the paths of the token and the bundle.
    fn run(&self, kubeconfig: &Path) -> Output {
        let directory = self.directory.path();
        let arguments = self.arguments.iter().map(|argument| match argument.split_once('=') {
            Some(("--token", _)) => format!("--token={}", self.token),
            Some(("--pin-file", _)) => format!("--pin-file={}", directory.join("token/pin").display()),
            Some(("--bundle", _)) => format!("--bundle={}", directory.join("bundle").display()),
            _ => argument.clone(),
        });
        Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
            .args(arguments)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .env("SOFTHSM2_CONF", directory.join("token/softhsm2.conf"))
            .output()
            .unwrap()
    }
}

#[test]
#[ignore = "needs Helm and an API server: make test-deploy"]
fn the_job_works_with_its_permissions_and_needs_each_of_them() {
    let cluster = Cluster::start();
    cluster.must(&["create", "namespace", "istio-system"]);
    let rendered = template(&["--values", &values_file("trial")]).unwrap();
    let manifest = tempfile::NamedTempFile::new().unwrap();
    fs::write(manifest.path(), &rendered).unwrap();
    cluster.must(&["apply", "--filename", manifest.path().to_str().unwrap()]);
    let cacerts = tempfile::tempdir().unwrap();
    let sample = Command::new(root().join("scripts/sample-ca.sh")).arg(cacerts.path()).status().unwrap();
    assert!(sample.success());
    let mut create = vec!["create", "secret", "generic", "cacerts", "--namespace", "istio-system"];
    let files = ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"];
    let files = files.map(|file| format!("--from-file={}", cacerts.path().join(file).display()));
    create.extend(files.iter().map(String::as_str));
    cluster.must(&create);

    let objects = objects(&rendered);
    let job = Job::new(&objects);
    let account = cluster.account("istio-hsm-ca-import");
    let bundle = ["configmap", "istio-hsm-ca-bundle", "--namespace", "istio-system"];
    let get = || {
        let arguments = [&["get"], &bundle[..], &["--output", "json"]].concat();
        serde_json::from_str::<Value>(&cluster.must(&arguments)).unwrap()
    };
    let delete = || cluster.must(&[&["delete"], &bundle[..], &["--ignore-not-found"]].concat());
    let works = |about: &str| {
        let output = job.run(&account);
        assert!(output.status.success(), "{about}: {}", String::from_utf8_lossy(&output.stderr));
    };
    works("the first time");
    let data = get()["data"].as_object().unwrap().clone();
    for file in ["ca-cert.pem", "root-cert.pem", "cert-chain.pem"] {
        assert_eq!(data[file].as_str().unwrap(), fs::read_to_string(cacerts.path().join(file)).unwrap(), "{file}");
    }
    assert!(data.keys().any(|key| key.starts_with("import-receipt-")), "{:?}", data.keys());
    assert!(!get().to_string().contains("PRIVATE KEY"));
    // The data of another token's import is kept.
    let other = json!({"data": {"import-receipt-other.json": "{}"}}).to_string();
    cluster.must(&[&["patch"], &bundle[..], &["--patch", &other]].concat());
    works("again");
    assert_eq!(get()["data"]["import-receipt-other.json"], "{}");

    let roles = of_kind(&objects, "Role").into_iter();
    for role in roles.filter(|role| role["metadata"]["name"].as_str().unwrap().contains("-import-")) {
        let name = role["metadata"]["name"].as_str().unwrap();
        let rules = list(&role["rules"]);
        let set = |rules: &[Value]| {
            let patch = json!({ "rules": rules }).to_string();
            cluster.must(&["patch", "role", name, "--namespace", "istio-system", "--type=merge", "--patch", &patch]);
        };
        for without in 0..rules.len() {
            let mut less = rules.to_vec();
            let rule = less.remove(without);
            set(&less);
            delete();
            let output = job.run(&account);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{name} does not need {rule}");
            assert!(error.contains("orbidden"), "{name} without {rule}: {error}");
        }
        set(rules);
    }
    works("with all of them again");
}
