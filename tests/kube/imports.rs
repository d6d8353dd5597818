//! Importing a plug-in CA from a Secret, and removing the key from the Secret.

use std::path::Path;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    harness::{Cluster, named, rule},
    proxy::Proxy,
};
use testkit::{api_server::EAST, daemon::Site, plug_in::PlugIn};

async fn put(api: &Api<Secret>, name: &str, kind: &str, values: &[(&str, &str)]) {
    let data = values.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
    let secret = Secret { metadata: named(name), data: Some(data), type_: Some(kind.to_owned()), ..Secret::default() };
    api.create(&PostParams::default(), &secret).await.unwrap();
}

/// Content of Istio's Secret `cacerts`.
fn cacerts<'a>(plug_in: &'a PlugIn, key: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("ca-cert.pem", &plug_in.ca_cert),
        ("ca-key.pem", key),
        ("root-cert.pem", &plug_in.root_cert),
        ("cert-chain.pem", &plug_in.cert_chain),
    ]
}

async fn key_of(api: &Api<Secret>, name: &str, key: &str) -> Option<Vec<u8>> {
    let secret = api.get(name).await.unwrap();
    secret.data.unwrap_or_default().remove(key).map(|ByteString(bytes)| bytes)
}

/// Runs `import`; returns its output or its error.
fn import(site: &Site, kubeconfig: &Path, secret: &str, more: &[&str]) -> Result<String, String> {
    let (token, bundle) = (site.uri(), site.bundle().display().to_string());
    let kubeconfig = kubeconfig.display().to_string();
    let usual =
        ["import", "--from-secret", secret, "--kubeconfig", &kubeconfig, "--token", &token, "--bundle", &bundle];
    let output = site.run(&[&usual[..], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn a_secret_is_imported_and_loses_its_key_only_when_all_is_proven() {
    let cluster = Cluster::new(&EAST, "import").await;
    let api: Api<Secret> = cluster.api();
    let plug_in = PlugIn::intermediate();
    let key = plug_in.ca.key().serialize_pem();
    let values = cacerts(&plug_in, &key);
    put(&api, "cacerts", "Opaque", &values).await;
    let renamed = [("cert", values[0].1), ("private", values[1].1), ("roots", values[2].1)];
    put(&api, "other", "Opaque", &renamed).await;
    put(
        &api,
        "tls",
        "kubernetes.io/tls",
        &[("tls.crt", values[0].1), ("tls.key", values[1].1), ("ca.crt", values[2].1)],
    )
    .await;
    let named = |name: &str| format!("{}/{name}", cluster.namespace);
    let kubeconfig =
        cluster.user("importer", &[], &[(&cluster.namespace, rule("", &["secrets"], &["get", "patch"]))]).await;
    let powerless = cluster.user("powerless", &[], &[]).await;

    // Imports that fail, with the reason and without any change.
    let site = Site::bare();
    for (kubeconfig, secret, more, reason) in [
        (&powerless, named("cacerts"), vec![], "have the right to get and patch it"),
        (&kubeconfig, named("nothing"), vec![], "does not exist"),
        (&kubeconfig, "cacerts".to_owned(), vec![], "write NAMESPACE/NAME"),
        (&kubeconfig, named("other"), vec![], "has no ca-cert.pem, root-cert.pem, ca-key.pem"),
        (&kubeconfig, named("cacerts"), vec!["--secret-ca-key=none"], "has no none"),
        (&kubeconfig, named("cacerts"), vec!["--remove-key-from-secret"], "give a second --token"),
    ] {
        let refused = import(&site, kubeconfig, &secret, &more).unwrap_err();
        assert!(refused.contains(reason), "{refused}");
        assert!(!refused.contains("PRIVATE KEY"), "{refused}");
    }

    // That the key could not be removed afterwards is found before the import.
    let remove = ["--remove-key-from-secret", "--i-have-a-backup"];
    put(&api, "fixed", "Opaque", &values).await;
    api.patch("fixed", &PatchParams::default(), &Patch::Merge(json!({"immutable": true}))).await.unwrap();
    let reader = cluster.user("reader", &[], &[(&cluster.namespace, rule("", &["secrets"], &["get"]))]).await;
    for (kubeconfig, secret, reason) in
        [(&kubeconfig, "fixed", "immutable"), (&reader, "cacerts", "have the right to get and patch it")]
    {
        let refused = import(&site, kubeconfig, &named(secret), &remove).unwrap_err();
        assert!(refused.contains("nothing was imported") && refused.contains(reason), "{refused}");
        assert!(refused.contains("--remove-key-from-secret: Secret "), "{refused}");
    }

    let reported = import(&site, &kubeconfig, &named("cacerts"), &[]).unwrap();
    assert!(reported.contains("the private key is still in Secret"), "{reported}");
    assert_eq!(key_of(&api, "cacerts", "ca-key.pem").await.as_deref(), Some(key.as_bytes()));
    let bundle = |name: &str| std::fs::read_to_string(site.bundle().join(name)).unwrap();
    assert_eq!((bundle("ca-cert.pem"), bundle("root-cert.pem")), (plug_in.ca_cert.clone(), plug_in.root_cert.clone()));

    // Other key names, and the private key removed.
    let names = ["--secret-ca-cert=cert", "--secret-ca-key=private", "--secret-root-cert=roots"];
    let reported = import(&site, &kubeconfig, &named("other"), &[&names[..], &remove].concat()).unwrap();
    assert!(reported.contains("took the private key out of Secret"), "{reported}");
    assert_eq!(key_of(&api, "other", "private").await, None);
    assert_eq!(
        key_of(&api, "other", "cert").await.as_deref(),
        Some(plug_in.ca_cert.as_bytes()),
        "other values were removed"
    );
    // The API server requires a tls.key in such a Secret: it becomes empty.
    import(&site, &kubeconfig, &named("tls"), &remove).unwrap();
    assert_eq!(key_of(&api, "tls", "tls.key").await.as_deref(), Some(b"".as_slice()));

    // A second token with the key counts as a backup.
    let second = Site::bare();
    import(&second, &kubeconfig, &named("cacerts"), &[]).unwrap();
    let edit = Patch::Merge(json!({"metadata": {"annotations": {"by": "hand"}}}));
    api.patch("cacerts", &PatchParams::default(), &edit).await.unwrap();
    import(&site, &kubeconfig, &named("cacerts"), &remove).unwrap();
    assert_eq!(key_of(&api, "cacerts", "ca-key.pem").await, None);
}

/// The Secret is changed after it was read and before its key is removed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn key_is_not_removed_from_a_changed_secret() {
    let cluster = Cluster::new(&EAST, "race").await;
    let api: Api<Secret> = cluster.api();
    let plug_in = PlugIn::intermediate();
    let key = plug_in.ca.key().serialize_pem();
    let values = cacerts(&plug_in, &key);
    put(&api, "cacerts", "Opaque", &values).await;
    let named = format!("{}/cacerts", cluster.namespace);
    let rights = [(cluster.namespace.as_str(), rule("", &["secrets"], &["get", "patch"]))];
    let kubeconfig = cluster.user("importer", &[], &rights).await;
    let proxy = Proxy::start(EAST.url.strip_prefix("https://").unwrap().parse().unwrap()).await;
    proxy.redirect(&kubeconfig, &EAST.url);
    let site = std::sync::Arc::new(Site::bare());
    let remove = || {
        // One connection reads the Secret, and one tries the change; the next one would make it.
        proxy.hold_after(2);
        let (site, kubeconfig, named) = (std::sync::Arc::clone(&site), kubeconfig.clone(), named.clone());
        let flags = ["--remove-key-from-secret", "--i-have-a-backup"];
        tokio::task::spawn_blocking(move || import(&site, &kubeconfig, &named, &flags))
    };
    let merge = async |change: serde_json::Value| {
        api.patch("cacerts", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    };

    // An annotation, other roots, another key: concurrent changes are kept, whatever they are.
    for change in [
        json!({"metadata": {"annotations": {"by": "hand"}}}),
        json!({"stringData": {"root-cert.pem": format!("{0}{0}", plug_in.root_cert)}}),
        json!({"stringData": {"ca-key.pem": "another key, the only copy of it"}}),
    ] {
        let running = remove();
        proxy.held().await;
        merge(change.clone()).await;
        let theirs = api.get("cacerts").await.unwrap();
        proxy.release();
        let refused = running.await.unwrap().unwrap_err();
        assert!(refused.contains("was changed since it was read, and its key is kept"), "{refused}");
        assert!(refused.contains("see who changed it, and import again"), "{refused}");
        assert!(refused.contains(&named) && !refused.contains("PRIVATE KEY"), "{refused}");
        assert_eq!(api.get("cacerts").await.unwrap(), theirs, "{change}");
        // As before, except for the annotation.
        merge(json!({"stringData": {"ca-key.pem": key, "root-cert.pem": plug_in.root_cert}})).await;
    }

    // Another Secret with the same name.
    let running = remove();
    proxy.held().await;
    api.delete("cacerts", &DeleteParams::default()).await.unwrap();
    put(&api, "cacerts", "Opaque", &[("ca-key.pem", "somebody else's")]).await;
    proxy.release();
    let refused = running.await.unwrap().unwrap_err();
    assert!(refused.contains("was changed since it was read"), "{refused}");
    assert_eq!(key_of(&api, "cacerts", "ca-key.pem").await.as_deref(), Some(b"somebody else's".as_slice()));

    // The Secret was deleted.
    api.delete("cacerts", &DeleteParams::default()).await.unwrap();
    put(&api, "cacerts", "Opaque", &values).await;
    let running = remove();
    proxy.held().await;
    api.delete("cacerts", &DeleteParams::default()).await.unwrap();
    proxy.release();
    let refused = running.await.unwrap().unwrap_err();
    assert!(refused.contains("is gone since it was read"), "{refused}");

    // Without concurrent changes, the key is removed.
    put(&api, "cacerts", "Opaque", &values).await;
    let running = remove();
    proxy.held().await;
    proxy.release();
    running.await.unwrap().unwrap();
    assert_eq!(key_of(&api, "cacerts", "ca-key.pem").await, None);
    assert_eq!(key_of(&api, "cacerts", "ca-cert.pem").await.as_deref(), Some(plug_in.ca_cert.as_bytes()));
}

/// Each permission of an import: the error without it, and what stays unchanged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_right_of_an_import_is_needed() {
    let cluster = Cluster::new(&EAST, "importrights").await;
    let (api, maps): (Api<Secret>, Api<ConfigMap>) = (cluster.api(), cluster.api());
    let plug_in = PlugIn::intermediate();
    let key = plug_in.ca.key().serialize_pem();
    let values = [
        ("ca-cert.pem", plug_in.ca_cert.as_str()),
        ("ca-key.pem", key.as_str()),
        ("root-cert.pem", plug_in.root_cert.as_str()),
    ];
    put(&api, "cacerts", "Opaque", &values).await;
    let secret = format!("{}/cacerts", cluster.namespace);
    let map = format!("--bundle-configmap={}/bundle", cluster.namespace);
    let flags = [map.as_str(), "--remove-key-from-secret", "--i-have-a-backup"];
    let all = [("secrets", "get"), ("secrets", "patch"), ("configmaps", "create"), ("configmaps", "patch")];
    let site = Site::bare();
    for (number, lacking) in all.iter().enumerate() {
        let rules: Vec<_> = all
            .iter()
            .filter(|right| *right != lacking)
            .map(|(resource, verb)| (cluster.namespace.as_str(), rule("", &[resource], &[verb])))
            .collect();
        let kubeconfig = cluster.user(&format!("importer-{number}"), &[], &rules).await;
        let refused = import(&site, &kubeconfig, &secret, &flags).unwrap_err();
        let words = format!("cannot {} resource \"{}\"", lacking.1, lacking.0);
        assert!(refused.contains(&words), "{words}: {refused}");
        assert_eq!(key_of(&api, "cacerts", "ca-key.pem").await.as_deref(), Some(key.as_bytes()), "{words}");
        let _none = maps.delete("bundle", &DeleteParams::default()).await;
    }
    let rules = all.map(|(resource, verb)| (cluster.namespace.as_str(), rule("", &[resource], &[verb])));
    let kubeconfig = cluster.user("importer-all", &[], &rules).await;
    import(&site, &kubeconfig, &secret, &flags).unwrap();
    assert_eq!(key_of(&api, "cacerts", "ca-key.pem").await, None);
    let data = maps.get("bundle").await.unwrap().data.unwrap();
    assert_eq!(data["ca-cert.pem"], plug_in.ca_cert);
    assert!(data.keys().any(|name| name.starts_with("import-receipt-")), "{:?}", data.keys());
}
