//! Volumes of pods, as the kubelet provides them: files from objects are replaced atomically, through a symbolic link.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use serde_json::Value;

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A volume of a pod.
pub struct Volume {
    spec: Value,
    pub directory: PathBuf,
    group: Option<u32>,
    current: Option<Files>,
    /// When the current service account token was requested.
    token: Option<(std::time::Instant, Vec<u8>)>,
}

/// A pod whose volumes are provided.
pub struct Owner<'a> {
    pub client: &'a Client,
    pub pod: &'a Pod,
    pub value: &'a Value,
}

impl Owner<'_> {
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap()
    }

    /// A field of the pod, as in `fieldRef`.
    pub fn field(&self, path: &str) -> String {
        let metadata = &self.value["metadata"];
        if let Some((kind, key)) = path.strip_prefix("metadata.").and_then(|rest| rest.split_once("['")) {
            return metadata[kind][key.trim_end_matches("']")].as_str().unwrap_or_default().to_owned();
        }
        if let Some(kind @ ("labels" | "annotations")) = path.strip_prefix("metadata.") {
            let map = metadata[kind].as_object().cloned().unwrap_or_default();
            let line = |(key, value): (&String, &Value)| format!("{key}={value}");
            return map.iter().map(line).collect::<Vec<_>>().join("\n");
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        let text = self.value.pointer(&pointer).and_then(Value::as_str);
        text.unwrap_or_else(|| panic!("pod {}: no field {path}", self.name())).to_owned()
    }
}

impl Volume {
    /// Prepares an empty directory for a volume.
    pub fn new(spec: &Value, directory: PathBuf, group: Option<u32>) -> Self {
        let claim = spec["persistentVolumeClaim"]["claimName"].as_str();
        // Claims outlive their pods.
        let directory = match (claim, spec["hostPath"]["path"].as_str()) {
            (Some(claim), _) => PathBuf::from("/run/mesh/claims").join(claim),
            (None, Some(path)) => PathBuf::from(path),
            (None, None) => directory,
        };
        fs::create_dir_all(&directory).unwrap();
        if spec.get("emptyDir").is_some() || claim.is_some() {
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o2777)).unwrap();
            own(&directory, group);
        }
        Self { spec: spec.clone(), directory, group, current: None, token: None }
    }

    pub fn name(&self) -> &str {
        self.spec["name"].as_str().unwrap()
    }

    /// Updates the files of the volume.
    ///
    /// # Errors
    /// If an object that is required does not exist, or the API server is away.
    pub async fn refresh(&mut self, owner: &Owner<'_>) -> Result<(), String> {
        let spec = self.spec.clone();
        let mut files = Files::new();
        if spec.get("configMap").is_some() || spec.get("secret").is_some() || spec.get("downwardAPI").is_some() {
            self.source(&spec, owner, &mut files).await?;
        } else if let Some(sources) = spec["projected"]["sources"].as_array() {
            for source in sources {
                self.source(source, owner, &mut files).await?;
            }
        } else {
            return Ok(());
        }
        if self.current.as_ref() != Some(&files) {
            self.write(&files);
            self.current = Some(files);
        }
        Ok(())
    }

    async fn source(&mut self, source: &Value, owner: &Owner<'_>, files: &mut Files) -> Result<(), String> {
        let text = |error: kube::Error| error.to_string();
        if let Some(map) = source.get("configMap") {
            let name = map["name"].as_str().unwrap();
            let api = Api::<ConfigMap>::namespaced(owner.client.clone(), owner.namespace());
            let found = api.get_opt(name).await.map_err(text)?.map(|map| {
                let mut all: Files =
                    map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes())).collect();
                all.extend(map.binary_data.unwrap_or_default().into_iter().map(|(name, data)| (name, data.0)));
                all
            });
            return select(map, found, files, &format!("ConfigMap {name}"));
        }
        if let Some(secret) = source.get("secret") {
            let name = secret["secretName"].as_str().or_else(|| secret["name"].as_str()).unwrap();
            let api = Api::<Secret>::namespaced(owner.client.clone(), owner.namespace());
            let found = api.get_opt(name).await.map_err(text)?;
            let found = found
                .map(|secret| secret.data.unwrap_or_default().into_iter().map(|(name, data)| (name, data.0)).collect());
            return select(secret, found, files, &format!("Secret {name}"));
        }
        if let Some(downward) = source.get("downwardAPI") {
            for item in downward["items"].as_array().into_iter().flatten() {
                // Limits of resources are not needed by what runs here.
                if let Some(field) = item["fieldRef"]["fieldPath"].as_str() {
                    files.insert(item["path"].as_str().unwrap().to_owned(), owner.field(field).into_bytes());
                }
            }
            return Ok(());
        }
        if let Some(token) = source.get("serviceAccountToken") {
            let seconds = token["expirationSeconds"].as_i64().unwrap_or(3600);
            let audience = token["audience"].as_str();
            let due = |(at, _): &(std::time::Instant, _)| at.elapsed().as_secs() > seconds.unsigned_abs() * 8 / 10;
            if self.token.as_ref().is_none_or(due) {
                let token = request_token(owner, audience, seconds).await.map_err(text)?;
                self.token = Some((std::time::Instant::now(), token.into_bytes()));
            }
            files.insert(token["path"].as_str().unwrap().to_owned(), self.token.as_ref().unwrap().1.clone());
            return Ok(());
        }
        panic!("volume {} of pod {} is of a kind that is not provided here", self.name(), owner.name());
    }

    fn write(&self, files: &Files) {
        let stamp = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let data = format!("..{stamp}");
        let directory = self.directory.join(&data);
        fs::create_dir(&directory).unwrap();
        for (name, content) in files {
            let file = directory.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            // What the default of Secrets and of tokens comes to with the users of these pods.
            fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
            if self.spec.get("secret").is_some() && self.group.is_some() {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
                own(&file, self.group);
            }
        }
        let link = self.directory.join("..data");
        let old = fs::read_link(&link).ok();
        let new = self.directory.join("..data_tmp");
        symlink(&data, &new).unwrap();
        fs::rename(new, &link).unwrap();
        for name in files.keys() {
            let first = Path::new(name).components().next().unwrap();
            let visible = self.directory.join(first);
            if fs::symlink_metadata(&visible).is_err() {
                symlink(Path::new("..data").join(first), visible).unwrap();
            }
        }
        for entry in fs::read_dir(&self.directory).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Directories are places where other volumes are mounted.
            let link = entry.file_type().unwrap().is_symlink();
            if link && !name.starts_with("..") && !directory.join(&name).exists() {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.directory.join(old)).unwrap();
        }
    }
}

/// The token of a pod's service account, bound to the pod.
async fn request_token(owner: &Owner<'_>, audience: Option<&str>, seconds: i64) -> Result<String, kube::Error> {
    let request = serde_json::json!({"spec": {
        "audiences": audience.map_or_else(Vec::new, |audience| vec![audience]),
        "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": owner.name(), "uid": owner.pod.metadata.uid.as_deref(),
        },
        "expirationSeconds": seconds,
    }});
    let request: TokenRequest = serde_json::from_value(request).unwrap();
    let account = owner.value["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    let api = Api::<ServiceAccount>::namespaced(owner.client.clone(), owner.namespace());
    let made = api.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(made.status.unwrap().token.unwrap())
}

fn select(source: &Value, found: Option<Files>, files: &mut Files, what: &str) -> Result<(), String> {
    let optional = source["optional"] == true;
    let Some(found) = found else {
        return if optional { Ok(()) } else { Err(format!("{what} does not exist")) };
    };
    let Some(items) = source["items"].as_array() else {
        files.extend(found);
        return Ok(());
    };
    for item in items {
        let key = item["key"].as_str().unwrap();
        match found.get(key) {
            Some(content) => {
                files.insert(item["path"].as_str().unwrap().to_owned(), content.clone());
            }
            None if optional => {}
            None => return Err(format!("{what} has no key {key}")),
        }
    }
    Ok(())
}

/// Gives a file or directory to a group.
pub fn own(path: &Path, group: Option<u32>) {
    if group.is_some() {
        chown(path, None, group).unwrap();
    }
}
