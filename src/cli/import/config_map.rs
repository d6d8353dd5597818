//! `--bundle-configmap`: writes the bundle's files to a ConfigMap for pods to mount. They are public.
//!
//! Other keys, such as another token's receipt, are kept.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::cluster;
use pki::identity::Namespace;
use process::error::chain;

/// Timeout for all requests to the API server.
const PATIENCE: Duration = Duration::from_secs(60);

/// A ConfigMap, written `namespace/name`.
#[derive(Clone, Debug)]
pub(super) struct Target {
    namespace: Namespace,
    name: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no ConfigMap; write namespace/name");
        let (namespace, name) = text.split_once('/').ok_or_else(wrong)?;
        let namespace = namespace.parse().map_err(|_| wrong())?;
        if name.is_empty() || name.contains('/') {
            return Err(wrong());
        }
        Ok(Self { namespace, name: name.to_owned() })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why the ConfigMap could not be written, found before the import by a dry run at the API server.
pub(super) fn unwritable(target: &Target, kubeconfig: Option<&Path>) -> Option<String> {
    let tried = run(target, kubeconfig, &BTreeMap::new(), true).err()?;
    Some(format!("--bundle-configmap {target}: {}; allow this user to create and patch it", chain(tried.as_ref())))
}

fn run(
    target: &Target,
    kubeconfig: Option<&Path>,
    data: &BTreeMap<String, String>,
    dry_run: bool,
) -> anyhow::Result<()> {
    let kubeconfig = kubeconfig.map(Path::to_owned);
    let applied = async { tokio::time::timeout(PATIENCE, apply(target, kubeconfig, data, dry_run)).await };
    cluster::runtime()?.block_on(applied).unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer")))
}

/// Writes the files into the ConfigMap, and makes it if there is none.
///
/// # Errors
/// If the API server is unreachable or rejects the request; the files in the bundle's directory are written anyway.
pub(super) fn write(target: &Target, kubeconfig: Option<&Path>, files: &[(&str, &[u8])]) -> anyhow::Result<()> {
    let mut data = BTreeMap::new();
    for (name, content) in files {
        let content = std::str::from_utf8(content).with_context(|| format!("{name} is no text"))?;
        data.insert((*name).to_owned(), content.to_owned());
    }
    run(target, kubeconfig, &data, false).with_context(|| {
        format!("the bundle is written, but not into ConfigMap {target}; fix it and import again, which changes nothing else")
    })
}

async fn apply(
    target: &Target,
    kubeconfig: Option<PathBuf>,
    data: &BTreeMap<String, String>,
    dry_run: bool,
) -> anyhow::Result<()> {
    let (patching, posting) =
        (PatchParams { dry_run, ..PatchParams::default() }, PostParams { dry_run, ..PostParams::default() });
    let maps = Api::<ConfigMap>::namespaced(cluster::client(kubeconfig).await?, target.namespace.as_str());
    let patch = Patch::Merge(json!({ "data": data }));
    match maps.patch(&target.name, &patching, &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(|_| ()).map_err(Into::into),
    }
    let metadata = ObjectMeta { name: Some(target.name.clone()), ..ObjectMeta::default() };
    let map = ConfigMap { metadata, data: Some(data.clone()), ..ConfigMap::default() };
    match maps.create(&posting, &map).await {
        // Another token's import was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            maps.patch(&target.name, &patching, &patch).await.map(|_| ()).map_err(Into::into)
        }
        other => other.map(|_| ()).map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_namespace_and_a_name() {
        assert_eq!("istio-system/bundle".parse::<Target>().unwrap().to_string(), "istio-system/bundle");
        for wrong in ["bundle", "/bundle", "istio-system/", "a/b/c", "Not A Namespace/b"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
