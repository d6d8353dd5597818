//! Kubernetes objects from YAML, as JSON.

use std::{fs, path::PathBuf};

use serde_json::Value;

/// Root directory of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The objects in a YAML text.
pub fn objects(text: &str) -> Vec<Value> {
    let parse = |document| serde_saphyr::from_str::<Value>(document).unwrap();
    format!("\n{text}").split("\n---").map(parse).filter(|object| !object.is_null()).collect()
}

/// The rendered manifests: each file's name and its objects.
pub fn all() -> Vec<(String, Vec<Value>)> {
    let directory = root().join("deploy/manifests");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            found.push((name, objects(&fs::read_to_string(&path).unwrap())));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["all-features", "minimal"]);
    found
}

/// The objects of a kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// An array's elements; empty if it is absent.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The strings of an array.
pub fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}
