//! A plug-in CA in a Kubernetes Secret: read for an import; its key is removed after a successful import.

use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::{Client, api::ObjectMeta};
use tokio::runtime::{Builder, Runtime};
use zeroize::Zeroizing;

use crate::kubernetes::{
    Cluster, cluster,
    secret::{self, Content, Secret, SecretError, Value},
    settings,
};
use pki::bundle::{BundleFiles, Input};
use process::error::chain;

/// Where the Secret is, and what its values are called.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct SecretArgs {
    /// Read the CA from a Secret, such as istio-system/cacerts, instead of files
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        conflicts_with_all = ["from", "ca_cert", "ca_key", "root_cert", "cert_chain"]
    )]
    from_secret: Option<String>,
    /// Kubeconfig for the API server [default: the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The value with the CA certificate [default: tls.crt if present, otherwise ca-cert.pem]
    #[arg(long, value_name = "KEY", requires = "from_secret")]
    secret_ca_cert: Option<String>,
    /// The value with the CA's private key [default: tls.key or ca-key.pem]
    #[arg(long, value_name = "KEY", requires = "from_secret")]
    secret_ca_key: Option<String>,
    /// The value with the roots [default: ca.crt or root-cert.pem]
    #[arg(long, value_name = "KEY", requires = "from_secret")]
    secret_root_cert: Option<String>,
    /// The value with the intermediate certificates [default: cert-chain.pem, or none]
    #[arg(long, value_name = "KEY", requires = "from_secret")]
    secret_cert_chain: Option<String>,
}

/// Content of the Secret.
pub(super) struct Fetched {
    pub(super) files: BundleFiles,
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) secret: KeySecret,
}

/// The Secret that a key came from, as it was read.
#[derive(Clone, Debug)]
pub(super) struct KeySecret {
    namespace: String,
    name: String,
    key: String,
    kind: String,
    resource_version: Option<String>,
    uid: Option<String>,
    kubeconfig: Option<PathBuf>,
}

/// Names of the values.
struct Keys {
    ca_cert: String,
    ca_key: String,
    root_cert: String,
    /// Optional unless given by the operator; `None` in the layout with tls.crt.
    cert_chain: Option<String>,
}

impl SecretArgs {
    /// The kubeconfig, if one is given.
    pub(super) fn kubeconfig(&self) -> Option<&Path> {
        self.kubeconfig.as_deref()
    }

    /// Whether the arguments name a Secret.
    pub(super) fn is_named(&self) -> bool {
        self.from_secret.is_some()
    }

    /// Reads the Secret, if the arguments name one.
    pub(super) fn fetch(&self) -> Option<Result<Fetched, String>> {
        let named = self.from_secret.as_deref()?;
        Some(match named.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                self.read(namespace, name).map_err(|error| chain(error.as_ref()))
            }
            _ => Err(format!("--from-secret {named:?}: write NAMESPACE/NAME, for example istio-system/cacerts")),
        })
    }

    fn read(&self, namespace: &str, name: &str) -> anyhow::Result<Fetched> {
        let shown = format!("Secret {namespace}/{name}");
        let runtime = runtime()?;
        let found = runtime.block_on(async {
            let client = client(self.kubeconfig.clone()).await?;
            secret::get(&client, namespace, name).await.map_err(|error| failure(&shown, "read", &error))
        })?;
        let mut secret = found
            .with_context(|| format!("{shown} does not exist; name another, or import from files if it is gone"))?;
        let keys = self.keys(&secret);
        let mut missing = Vec::new();
        let mut input = |key: &str| {
            let bytes = secret.data.get(key).map(|value| value.to_vec()).unwrap_or_default();
            if bytes.is_empty() {
                missing.push(key.to_owned());
            }
            Input { name: format!("{shown} {key}"), bytes }
        };
        let ca_cert = input(&keys.ca_cert);
        let root_cert = input(&keys.root_cert);
        let cert_chain = match &keys.cert_chain {
            Some(key) if self.secret_cert_chain.is_some() => input(key),
            Some(key) => Input {
                name: format!("{shown} {key}"),
                bytes: secret.data.get(key).map(|value| value.to_vec()).unwrap_or_default(),
            },
            None => Input { name: ca_cert.name.clone(), bytes: Vec::new() },
        };
        let key = secret.data.remove(&keys.ca_key).filter(|value| !value.is_empty());
        if key.is_none() {
            missing.push(keys.ca_key.clone());
        }
        let (Some(key), []) = (key, missing.as_slice()) else {
            anyhow::bail!(
                "{shown} has no {}; a plug-in CA has ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, or tls.crt, \
                 tls.key and ca.crt; name others by --secret-ca-cert and the like",
                missing.join(", ")
            );
        };
        let secret = KeySecret {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            key: keys.ca_key,
            kind: secret.kind.clone(),
            resource_version: secret.metadata.resource_version.clone(),
            uid: secret.metadata.uid.clone(),
            kubeconfig: self.kubeconfig.clone(),
        };
        Ok(Fetched { files: BundleFiles { ca_cert, cert_chain, root_cert }, key, secret })
    }

    /// The names in Istio's two layouts (security/pkg/pki/ca, istio_ca.go), overridden by the operator's arguments.
    fn keys(&self, secret: &Secret) -> Keys {
        let tls = secret.data.contains_key("tls.crt") && self.secret_ca_cert.is_none();
        let take = |given: &Option<String>, tls_key: &str, plain: &str| {
            given.clone().unwrap_or_else(|| if tls { tls_key } else { plain }.to_owned())
        };
        Keys {
            ca_cert: take(&self.secret_ca_cert, "tls.crt", "ca-cert.pem"),
            ca_key: take(&self.secret_ca_key, "tls.key", "ca-key.pem"),
            root_cert: take(&self.secret_root_cert, "ca.crt", "root-cert.pem"),
            cert_chain: self.secret_cert_chain.clone().or_else(|| (!tls).then(|| "cert-chain.pem".to_owned())),
        }
    }
}

impl KeySecret {
    /// Name of the key's value, for messages.
    pub(super) fn key_name(&self) -> String {
        format!("{self} {}", self.key)
    }

    /// Why the key could not be taken out of the Secret, found before the import by a dry run at the API server.
    pub(super) fn unremovable(&self) -> Option<String> {
        let error = match self.without_key(true) {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => failure(&self.to_string(), "changed", &error),
            Err(error) => error,
        };
        let remedy = "make the Secret changeable (immutable: true forbids it), or leave the flag out";
        Some(format!("--remove-key-from-secret: {}; {remedy}", chain(error.as_ref())))
    }

    /// Removes the key, if the Secret is unchanged since it was read.
    pub(super) fn remove_key(&self) -> anyhow::Result<()> {
        match self.without_key(false)? {
            Ok(()) => Ok(()),
            Err(error) if error.is_conflict() => anyhow::bail!(
                "{self} was changed since it was read, and its key is kept; see who changed it, and import again"
            ),
            Err(SecretError::Api(kube::Error::Api(status))) if status.code == 404 => anyhow::bail!(
                "{self} is gone since it was read, so that no key was taken out of it; see who deleted it, and whether the \
                 key is kept elsewhere"
            ),
            Err(error) => Err(failure(&self.to_string(), "changed, and its key is kept", &error)),
        }
    }

    fn without_key(&self, is_trial: bool) -> anyhow::Result<Result<(), SecretError>> {
        // The API server rejects a kubernetes.io/tls Secret without tls.key; it may be empty.
        let empty: Option<Value> = (self.kind == "kubernetes.io/tls").then(Value::default);
        let metadata = ObjectMeta {
            resource_version: self.resource_version.clone(),
            uid: self.uid.clone(),
            ..ObjectMeta::default()
        };
        let content = Content { kind: &self.kind, metadata, data: vec![(&self.key, empty)] };
        runtime()?.block_on(async {
            let client = client(self.kubeconfig.clone()).await?;
            Ok(match is_trial {
                true => secret::try_change(&client, &self.namespace, &self.name, &content).await,
                false => secret::change(&client, &self.namespace, &self.name, &content).await,
            })
        })
    }
}

impl std::fmt::Display for KeySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret {}/{}", self.namespace, self.name)
    }
}

/// Whether a text is a valid Kubernetes name; it is used in a URL path.
fn is_name(text: &str) -> bool {
    text.parse::<pki::identity::ServiceAccount>().is_ok()
}

fn failure(what: &str, not: &str, error: &SecretError) -> anyhow::Error {
    let remedy = match error {
        SecretError::Api(kube::Error::Api(status)) if status.code == 403 => {
            "; have the right to get and patch it, or use another kubeconfig"
        }
        _ => "",
    };
    anyhow::anyhow!("{what} could not be {not}: {}{remedy}", cluster::chain(error))
}

pub(super) fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("no runtime for the API server's client can be made")
}

pub(super) async fn client(kubeconfig: Option<PathBuf>) -> anyhow::Result<Client> {
    let settings = settings::Cluster { kubeconfig, ..settings::Cluster::default() };
    // The trust domain does not matter here.
    let own = "cluster.local".parse().into_iter().collect::<Vec<_>>();
    let cluster = Cluster::new(settings, &own).await;
    Ok(cluster.context("give --kubeconfig, or run it in a pod")?.client())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[arg(long)]
        from: Option<PathBuf>,
        #[arg(long)]
        ca_cert: Option<PathBuf>,
        #[arg(long)]
        ca_key: Option<PathBuf>,
        #[arg(long)]
        root_cert: Option<PathBuf>,
        #[arg(long)]
        cert_chain: Option<PathBuf>,
        #[command(flatten)]
        secret: SecretArgs,
    }

    fn keys(flags: &[&str], there: &[&str]) -> [String; 4] {
        let flags = ["x", "--from-secret=a/b"].iter().chain(flags);
        let data = there.iter().map(|key| ((*key).to_owned(), Value::default())).collect();
        let secret = Secret { metadata: ObjectMeta::default(), kind: "Opaque".to_owned(), data };
        let keys = Command::try_parse_from(flags).unwrap().secret.keys(&secret);
        [keys.ca_cert, keys.ca_key, keys.root_cert, keys.cert_chain.unwrap_or_default()]
    }

    #[test]
    fn istios_layouts_and_the_operators_words() {
        let plain = ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"];
        assert_eq!(keys(&[], &plain), plain);
        assert_eq!(keys(&[], &["tls.crt", "ca-cert.pem"]), ["tls.crt", "tls.key", "ca.crt", ""]);
        let others = ["--secret-ca-cert=a", "--secret-ca-key=b", "--secret-root-cert=c", "--secret-cert-chain=d"];
        assert_eq!(keys(&others, &["tls.crt"]), ["a", "b", "c", "d"]);
        assert!(Command::try_parse_from(["x", "--from-secret=a/b", "--from=d"]).is_err());
    }

    #[test]
    fn invalid_secret_name_is_reported() {
        for wrong in ["cacerts", "a/", "/b", "A/b", "a/b/c", "../x/y"] {
            let command = Command::try_parse_from(["x", &format!("--from-secret={wrong}")]).unwrap();
            let Some(Err(reason)) = command.secret.fetch() else { panic!("{wrong}") };
            assert!(reason.contains("istio-system/cacerts"), "{reason}");
        }
    }
}
