//! Each annotated configuration is one that the daemon takes, also with every commented value in force.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use istio_hsm_ca::config::Config;

#[test]
fn every_annotated_configuration_parses() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/hsm-config");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for text in [text.clone(), text.replace("\n#: ", "\n"), with_kubernetes(&text)] {
            if let Err(problems) = Config::parse(&text, "") {
                panic!("{}: {problems:#?}", path.display());
            }
        }
        seen += 1;
    }
    assert!(seen > 0);
}

/// The text with its Kubernetes part in force, which needs more than the daemon's defaults.
fn with_kubernetes(text: &str) -> String {
    let Some((before, rest)) = text.split_once("\n#   [kubernetes]\n") else { return text.to_owned() };
    let (part, after) = rest.split_once("\n[admin]").unwrap();
    let part = format!("\n{part}").replace("\n#   ", "\n");
    let before = before.replace("#: allow_intermediate = false", "allow_intermediate = true");
    format!("{before}\n[kubernetes]{part}\n[admin]{after}")
}
