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
        for text in [text.clone(), text.replace("\n#: ", "\n")] {
            if let Err(problems) = Config::parse(&text, "") {
                panic!("{}: {problems:#?}", path.display());
            }
        }
        seen += 1;
    }
    assert!(seen > 0);
}
